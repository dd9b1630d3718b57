//! Times as the API writes them: RFC 3339 in UTC, whole seconds (`Time`) or microseconds (`MicroTime`).
//!
//! No clock here: the time of a request is passed in.
//!
//! Follows: `meta/v1.Time`, `meta/v1.MicroTime`, Go's `time.RFC3339`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time; ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// 0 to 999,999,999, added to the seconds.
    pub nanos: u32,
}

impl Timestamp {
    pub const fn from_seconds(seconds: i64) -> Self {
        Timestamp { seconds, nanos: 0 }
    }

    /// `2006-01-02T15:04:05Z`: a `Time`.
    pub fn to_rfc3339(self) -> String {
        let days = self.seconds.div_euclid(86_400);
        let second = self.seconds.rem_euclid(86_400);
        let (year, month, day) = civil(days);
        format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
    }

    /// `2006-01-02T15:04:05.000000Z`: a `MicroTime`.
    pub fn to_rfc3339_micro(self) -> String {
        let mut out = self.to_rfc3339();
        out.pop();
        out.push_str(&format!(".{:06}Z", self.nanos / 1000));
        out
    }

    /// Reads RFC 3339 with any offset and any fraction.
    pub fn parse(text: &str) -> Option<Self> {
        let b = text.as_bytes();
        let number = |range: std::ops::Range<usize>| -> Option<i64> {
            let digits = b.get(range)?;
            digits.iter().all(u8::is_ascii_digit).then(|| digits.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0')))
        };
        let separated = |at: usize, c: u8| b.get(at) == Some(&c);
        if !(separated(4, b'-')
            && separated(7, b'-')
            && separated(10, b'T')
            && separated(13, b':')
            && separated(16, b':'))
        {
            return None;
        }
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        if !(1..=12).contains(&month) || !(1..=days_in(year, month)).contains(&day) {
            return None;
        }
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let mut at = 19;
        let mut nanos = 0;
        if matches!(b.get(at), Some(b'.' | b',')) {
            let start = at + 1;
            at = start;
            while b.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            if at == start {
                return None;
            }
            for i in 0..9 {
                let digit = if start + i < at { b[start + i] - b'0' } else { 0 };
                nanos = nanos * 10 + u32::from(digit);
            }
        }
        let offset = match (b.get(at)?, b.len() - at) {
            (b'Z', 1) => 0,
            (sign @ (b'+' | b'-'), 6) if b[at + 3] == b':' => {
                let (hours, minutes) = (number(at + 1..at + 3)?, number(at + 4..at + 6)?);
                if hours > 24 || minutes > 59 {
                    return None;
                }
                let offset = hours * 3600 + minutes * 60;
                if *sign == b'-' { -offset } else { offset }
            }
            _ => return None,
        };
        let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
        Some(Timestamp { seconds, nanos })
    }

    /// Without the part below a second, as `Time` stores it.
    pub const fn truncated(self) -> Self {
        Timestamp { seconds: self.seconds, nanos: 0 }
    }

    /// The time from `earlier` to this one; zero when it is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        let nanos = i128::from(self.seconds - earlier.seconds) * 1_000_000_000 + i128::from(self.nanos)
            - i128::from(earlier.nanos);
        u64::try_from(nanos).map_or(if nanos > 0 { Duration::MAX } else { Duration::ZERO }, Duration::from_nanos)
    }

    pub fn plus(self, duration: Duration) -> Self {
        let nanos = self.nanos + duration.subsec_nanos();
        let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        Timestamp {
            seconds: self.seconds.saturating_add(seconds).saturating_add(i64::from(nanos / 1_000_000_000)),
            nanos: nanos % 1_000_000_000,
        }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(d) => Timestamp { seconds: d.as_secs() as i64, nanos: d.subsec_nanos() },
            Err(before) => {
                let d = before.duration();
                let (seconds, nanos) = (-(d.as_secs() as i64), d.subsec_nanos());
                if nanos == 0 {
                    Timestamp { seconds, nanos }
                } else {
                    Timestamp { seconds: seconds - 1, nanos: 1_000_000_000 - nanos }
                }
            }
        }
    }
}

/// A duration as tables show ages: `5d3h`, `<unknown>` is the caller's.
///
/// Source: `k8s.io/apimachinery/pkg/util/duration.HumanDuration`.
pub fn human_duration(d: Duration) -> String {
    let seconds = d.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |major: u64, unit: &str, minor: u64, minor_unit: &str| {
        if minor == 0 { format!("{major}{unit}") } else { format!("{major}{unit}{minor}{minor_unit}") }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 192 {
        two(days, "d", hours % 24, "h")
    } else if hours < 24 * 365 * 2 {
        format!("{days}d")
    } else if hours < 24 * 365 * 8 {
        two(days / 365, "y", days % 365, "d")
    } else {
        format!("{}y", days / 365)
    }
}

/// Days from 1970-01-01 to a civil date.
const fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years start in March here, so that the leap day is the last one.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The civil date of a number of days from 1970-01-01.
const fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

const fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (input, want) in [
            ("2024-02-29T12:34:56Z", Some("2024-02-29T12:34:56.000000Z")),
            ("2024-02-29T12:34:56.123456789Z", Some("2024-02-29T12:34:56.123456Z")),
            ("2024-03-01T01:00:00+02:00", Some("2024-02-29T23:00:00.000000Z")),
            ("1969-12-31T23:59:59-00:30", Some("1970-01-01T00:29:59.000000Z")),
            ("0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00.000000Z")),
            ("2023-02-29T00:00:00Z", None),
            ("2023-02-28T24:00:00Z", None),
            ("2023-02-28 00:00:00Z", None),
            ("2023-02-28T00:00:00", None),
            ("2023-02-28T00:00:00.Z", None),
            ("", None),
        ] {
            let got = Timestamp::parse(input);
            assert_eq!(got.map(|t| t.to_rfc3339_micro()).as_deref(), want, "{input}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_round_trips() {
        for day in -150_000..150_000 {
            let (y, m, d) = civil(day);
            assert_eq!(days(y, m, d), day);
        }
    }

    #[test]
    fn ages_print_as_kubectl_shows_them() {
        for (seconds, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (28_740, "7h59m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (691_199, "7d23h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
        ] {
            assert_eq!(human_duration(Duration::from_secs(seconds)), want, "{seconds}");
        }
    }
}
