//! Answers of other servers, for as long as they may be kept.
//!
//! Bounded by entries and bytes. Two generations instead of a list by age: when the young one is full it becomes the old
//! one, and what was not asked for meanwhile goes with the one before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};

/// As CoreDNS's `cache 30`.
const LIFE_MAX: u32 = 30;
const LIFE_MIN: u32 = 5;
/// Entries of one generation.
const ENTRIES_MAX: usize = 5_000;
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// A question to a group of servers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub upstream: u32,
    /// In lower case.
    pub name: String,
    pub kind: RecordType,
    pub class: DNSClass,
    pub dnssec: bool,
    pub checking_disabled: bool,
}

/// What a server said.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub code: ResponseCode,
    pub authentic: bool,
    pub truncated: bool,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    pub bytes: usize,
    pub since: Instant,
}

impl Answer {
    /// A name that does not exist, or has nothing of this type.
    pub fn is_denial(&self) -> bool {
        self.code == ResponseCode::NXDomain || self.code == ResponseCode::NoError && self.answers.is_empty()
    }

    /// How long it may be kept, `None` when not at all.
    pub fn life(&self) -> Option<Duration> {
        if self.truncated {
            return None;
        }
        let seconds = match self.code {
            ResponseCode::NoError if !self.answers.is_empty() => self.answers.iter().map(|record| record.ttl).min(),
            ResponseCode::NoError | ResponseCode::NXDomain => self
                .authorities
                .iter()
                .find_map(|record| match &record.data {
                    RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
                    _ => None,
                })
                .or(Some(LIFE_MIN)),
            ResponseCode::ServFail => Some(LIFE_MIN),
            _ => None,
        };
        seconds.map(|seconds| Duration::from_secs(seconds.clamp(LIFE_MIN, LIFE_MAX).into()))
    }

    /// The time to live that a client is told now.
    pub fn ttl(&self, now: Instant) -> Option<u32> {
        let left = self.life()?.checked_sub(now.saturating_duration_since(self.since))?;
        u32::try_from(left.as_millis().div_ceil(1000)).ok()
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.life().is_some_and(|life| now.saturating_duration_since(self.since) < life)
    }
}

#[derive(Default)]
struct Generation {
    entries: HashMap<Question, Arc<Answer>>,
    bytes: usize,
}

/// The cache of one DNS server.
#[derive(Default)]
pub(crate) struct Cache {
    young: Generation,
    old: Generation,
}

impl Cache {
    pub fn get(&mut self, question: &Question, now: Instant) -> Option<Arc<Answer>> {
        if let Some(answer) = self.young.entries.get(question) {
            return answer.is_fresh(now).then(|| Arc::clone(answer));
        }
        let answer = self.old.entries.remove(question)?;
        if !answer.is_fresh(now) {
            return None;
        }
        self.insert(question.clone(), Arc::clone(&answer));
        Some(answer)
    }

    pub fn insert(&mut self, question: Question, answer: Arc<Answer>) {
        if answer.life().is_none() {
            return;
        }
        if self.young.entries.len() >= ENTRIES_MAX || self.young.bytes + answer.bytes > BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.bytes += answer.bytes;
        if let Some(before) = self.young.entries.insert(question, answer) {
            self.young.bytes -= before.bytes;
        }
    }

    pub fn len(&self) -> usize {
        self.young.entries.len() + self.old.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::SOA;
    use hickory_proto::rr::{Name, rdata::A};

    use super::*;

    fn answer(code: ResponseCode, ttls: &[u32], since: Instant) -> Answer {
        let record = |ttl: &u32| Record::from_rdata(Name::root(), *ttl, RData::A(A([1, 2, 3, 4].into())));
        Answer {
            code,
            authentic: false,
            truncated: false,
            answers: ttls.iter().map(record).collect(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            bytes: 100,
            since,
        }
    }

    fn question(number: usize) -> Question {
        Question {
            upstream: 0,
            name: format!("n{number}.example"),
            kind: RecordType::A,
            class: DNSClass::IN,
            dnssec: false,
            checking_disabled: false,
        }
    }

    #[test]
    fn answers_live_between_five_and_thirty_seconds() {
        let now = Instant::now();
        let mut denial = answer(ResponseCode::NXDomain, &[], now);
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 12);
        denial.authorities = vec![Record::from_rdata(Name::root(), 3600, RData::SOA(soa))];
        for (answer, want) in [
            (answer(ResponseCode::NoError, &[300, 60], now), Some(30)),
            (answer(ResponseCode::NoError, &[300, 8], now), Some(8)),
            (answer(ResponseCode::NoError, &[0], now), Some(5)),
            (answer(ResponseCode::NXDomain, &[], now), Some(5)),
            (denial, Some(12)),
            (answer(ResponseCode::ServFail, &[], now), Some(5)),
            (answer(ResponseCode::Refused, &[], now), None),
            (Answer { truncated: true, ..answer(ResponseCode::NoError, &[60], now) }, None),
        ] {
            assert_eq!(answer.life(), want.map(Duration::from_secs), "{answer:?}");
        }
    }

    #[test]
    fn an_answer_ages_and_ends() {
        let now = Instant::now();
        let mut cache = Cache::default();
        cache.insert(question(1), Arc::new(answer(ResponseCode::NoError, &[10], now)));
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(cache.get(&question(1), later(4)).unwrap().ttl(later(4)), Some(6));
        assert!(cache.get(&question(1), later(10)).is_none());
        assert!(cache.get(&question(2), now).is_none());
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_asked_for() {
        let now = Instant::now();
        let mut cache = Cache::default();
        for number in 0..10 * ENTRIES_MAX {
            cache.insert(question(number), Arc::new(answer(ResponseCode::NoError, &[30], now)));
            assert!(cache.get(&question(0), now).is_some(), "asked for all the time");
            assert!(cache.len() <= 2 * ENTRIES_MAX);
        }
        assert!(cache.get(&question(1), now).is_none());
        let large = Arc::new(Answer { bytes: BYTES_MAX / 2, ..answer(ResponseCode::NoError, &[30], now) });
        for number in 0..10 {
            cache.insert(question(number), Arc::clone(&large));
        }
        assert!(cache.len() <= 4, "bytes count too");
    }
}
