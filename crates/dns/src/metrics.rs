//! Counters of one DNS server, under CoreDNS's names so that existing dashboards work.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use parking_lot::Mutex;

use crate::cache::Answer;

/// Upper bounds of the histogram in microseconds.
const BOUNDS: [u64; 12] = [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000];
const TYPES: [RecordType; 11] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::CNAME,
    RecordType::HTTPS,
    RecordType::MX,
    RecordType::NS,
    RecordType::PTR,
    RecordType::SOA,
    RecordType::SRV,
    RecordType::SVCB,
    RecordType::TXT,
];
const CODES: [(ResponseCode, &str); 6] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::Refused, "REFUSED"),
];

#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    sum: AtomicU64,
    count: AtomicU64,
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(at) = BOUNDS.iter().position(|bound| micros <= *bound) {
            add(&self.buckets[at]);
        }
        self.sum.fetch_add(micros, Ordering::Relaxed);
        add(&self.count);
    }
}

#[derive(Clone, Copy, Default)]
struct Forwarded {
    answers: u64,
    failures: u64,
    micros: u64,
}

/// What a DNS server has done.
#[derive(Default)]
pub(crate) struct Metrics {
    /// By protocol and type; the last type stands for all others.
    requests: [[AtomicU64; TYPES.len() + 1]; 2],
    responses: [AtomicU64; CODES.len() + 1],
    durations: Histogram,
    hits: AtomicU64,
    denial_hits: AtomicU64,
    misses: AtomicU64,
    dropped: AtomicU64,
    forwarded: Mutex<BTreeMap<SocketAddr, Forwarded>>,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Metrics {
    pub fn request(&self, tcp: bool, kind: RecordType) {
        let at = TYPES.iter().position(|known| *known == kind).unwrap_or(TYPES.len());
        add(&self.requests[usize::from(tcp)][at]);
    }

    pub fn response(&self, code: ResponseCode, took: Duration) {
        let at = CODES.iter().position(|(known, _)| *known == code).unwrap_or(CODES.len());
        add(&self.responses[at]);
        self.durations.observe(took);
    }

    pub fn cache(&self, answer: Option<&Answer>) {
        add(match answer {
            Some(answer) if answer.is_denial() => &self.denial_hits,
            Some(_) => &self.hits,
            None => &self.misses,
        });
    }

    /// A packet that got no answer because too much is under way.
    pub fn dropped(&self) {
        add(&self.dropped);
    }

    pub fn forwarded(&self, server: SocketAddr, took: Duration, answered: bool) {
        let mut all = self.forwarded.lock();
        // A configuration names few servers; one that is changed all the time must not fill memory.
        if all.len() >= 256 && !all.contains_key(&server) {
            return;
        }
        let one = all.entry(server).or_default();
        if answered {
            one.answers += 1;
        } else {
            one.failures += 1;
        }
        one.micros += u64::try_from(took.as_micros()).unwrap_or_default();
    }

    /// In Prometheus's text format.
    pub fn text(&self, cache_entries: usize, services: usize) -> String {
        let mut text = String::with_capacity(4096);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut family = |name: &str, kind: &str, help: &str, lines: Vec<(String, f64)>| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let mut requests = Vec::new();
        for (at, protocol) in ["udp", "tcp"].into_iter().enumerate() {
            for (kind, counter) in self.requests[at].iter().enumerate() {
                let count = get(counter);
                if count > 0 {
                    let kind = TYPES.get(kind).map_or("other".to_string(), ToString::to_string);
                    let labels = format!("{{server=\"dns://:1053\",zone=\".\",proto=\"{protocol}\",type=\"{kind}\"}}");
                    requests.push((labels, count as f64));
                }
            }
        }
        family("coredns_dns_requests_total", "counter", "Questions received.", requests);
        let responses = self.responses.iter().enumerate().filter(|(_, counter)| get(counter) > 0);
        let responses = responses.map(|(at, counter)| {
            let code = CODES.get(at).map_or("other", |(_, name)| *name);
            (format!("{{server=\"dns://:1053\",zone=\".\",rcode=\"{code}\"}}"), get(counter) as f64)
        });
        family("coredns_dns_responses_total", "counter", "Answers sent, by response code.", responses.collect());
        let mut cumulative = 0;
        let mut buckets = Vec::new();
        for (bound, counter) in BOUNDS.iter().zip(&self.durations.buckets) {
            cumulative += get(counter);
            buckets.push((format!("_bucket{{le=\"{}\"}}", *bound as f64 / 1e6), cumulative as f64));
        }
        let count = get(&self.durations.count) as f64;
        buckets.push(("_bucket{le=\"+Inf\"}".into(), count));
        buckets.push(("_sum".into(), get(&self.durations.sum) as f64 / 1e6));
        buckets.push(("_count".into(), count));
        family("coredns_dns_request_duration_seconds", "histogram", "Time from question to answer.", buckets);
        let hits = vec![
            ("{type=\"success\"}".to_string(), get(&self.hits) as f64),
            ("{type=\"denial\"}".to_string(), get(&self.denial_hits) as f64),
        ];
        family("coredns_cache_hits_total", "counter", "Answers of other servers given again.", hits);
        let one = |value: f64| vec![(String::new(), value)];
        family(
            "coredns_cache_misses_total",
            "counter",
            "Questions that had to be asked.",
            one(get(&self.misses) as f64),
        );
        family("coredns_cache_entries", "gauge", "Answers that are kept.", one(cache_entries as f64));
        let forwarded: Vec<_> = self.forwarded.lock().iter().map(|(server, one)| (*server, *one)).collect();
        let lines = |value: fn(&Forwarded) -> f64| {
            forwarded.iter().map(|(server, one)| (format!("{{to=\"{server}\"}}"), value(one))).collect::<Vec<_>>()
        };
        family("coredns_forward_requests_total", "counter", "Questions sent to a server.", {
            lines(|one| (one.answers + one.failures) as f64)
        });
        family("coredns_forward_failures_total", "counter", "Questions a server did not answer.", {
            lines(|one| one.failures as f64)
        });
        family("coredns_forward_seconds_total", "counter", "Time servers took.", lines(|one| one.micros as f64 / 1e6));
        family("alcove_dns_dropped_total", "counter", "Packets dropped under load.", one(get(&self.dropped) as f64));
        family("alcove_dns_services", "gauge", "Services that have names.", one(services as f64));
        text
    }
}
