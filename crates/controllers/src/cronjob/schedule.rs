//! Cron schedules: five fields, descriptors and `@every`, in a time zone.
//!
//! Follows: `github.com/robfig/cron/v3` (`ParseStandard`), which Kubernetes uses.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan as _};

/// Why a schedule cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("expected exactly 5 fields, found {found}: {fields:?}")]
    FieldCount { found: usize, fields: Vec<String> },
    #[error("failed to parse {part:?} of the schedule")]
    Field { part: String },
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
}

/// One field: a bit per value, and whether it was a star.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    bits: u64,
    star: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        self.bits & (1 << value) != 0
    }
}

/// When to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    Fields(Box<Fields>),
    Every(SignedDuration),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule without a match for this long has none (31 February).
const YEARS_MAX: i16 = 5;

fn number(text: &str, names: &[&str], first: u32) -> Option<u32> {
    let named = names.iter().position(|n| n.eq_ignore_ascii_case(text)).map(|i| i as u32 + first);
    named.or_else(|| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten())
}

fn field(text: &str, min: u32, max: u32, names: &[&str]) -> Result<Field, ScheduleError> {
    let bad = || ScheduleError::Field { part: text.to_owned() };
    let mut field = Field { bits: 0, star: false };
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let (start, end) = match range.split_once('-') {
            _ if range == "*" || range == "?" => {
                field.star |= step.is_none_or(|s| s == "1");
                (min, max)
            }
            Some((start, end)) => {
                (number(start, names, min).ok_or_else(bad)?, number(end, names, min).ok_or_else(bad)?)
            }
            None => {
                let start = number(range, names, min).ok_or_else(bad)?;
                // `N/step` means from N on.
                (start, if step.is_some() { max } else { start })
            }
        };
        let step: u32 = step.map_or(Some(1), |s| s.parse().ok()).filter(|s| *s > 0).ok_or_else(bad)?;
        if start < min || end > max || start > end {
            return Err(bad());
        }
        (start..=end).step_by(step as usize).for_each(|value| field.bits |= 1 << value);
    }
    Ok(field)
}

/// A Go duration such as `1h30m`.
fn go_duration(text: &str) -> Option<SignedDuration> {
    let mut seconds = 0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, factor) = [("ms", 0.001), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))?;
        seconds += value * factor;
        rest = &rest[unit.len()..];
    }
    (!text.is_empty()).then(|| SignedDuration::from_secs((seconds as i64).max(1)))
}

impl Schedule {
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        let text = text.trim();
        let standard = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => {
                if let Some(every) = text.strip_prefix("@every ") {
                    let duration = go_duration(every.trim());
                    return duration.map(Schedule::Every).ok_or_else(|| ScheduleError::Descriptor(text.to_owned()));
                }
                if text.starts_with('@') {
                    return Err(ScheduleError::Descriptor(text.to_owned()));
                }
                text
            }
        };
        let fields: Vec<&str> = standard.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            let fields: Vec<String> = fields.into_iter().map(str::to_owned).collect();
            return Err(ScheduleError::FieldCount { found: fields.len(), fields });
        };
        Ok(Schedule::Fields(Box::new(Fields {
            minute: field(minute, 0, 59, &[])?,
            hour: field(hour, 0, 23, &[])?,
            day: field(day, 1, 31, &[])?,
            month: field(month, 1, 12, &MONTHS)?,
            weekday: field(weekday, 0, 6, &WEEKDAYS)?,
        })))
    }

    /// The first time after `after`, `None` when there is none within five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Schedule::Every(duration) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*duration).ok(),
            Schedule::Fields(fields) => fields.next(after, zone),
        }
    }
}

impl Fields {
    fn day_matches(&self, date: Date) -> bool {
        let day = self.day.has(date.day());
        let weekday = self.weekday.has(date.weekday().to_sunday_zero_offset());
        // Two restrictions are alternatives; with a star only the other counts.
        let days = if self.day.star || self.weekday.star { day && weekday } else { day || weekday };
        days && self.month.has(date.month())
    }

    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let begin: DateTime = zone.to_datetime(after);
        let mut date = begin.date();
        let last_year = date.year() + YEARS_MAX;
        while date.year() <= last_year {
            if self.day_matches(date) {
                for hour in (0..24).filter(|h| self.hour.has(*h)) {
                    for minute in (0..60).filter(|m| self.minute.has(*m)) {
                        let at = DateTime::from_parts(date, Time::constant(hour, minute, 0, 0));
                        // A clock set back repeats times that have passed: look a few hours back.
                        if at.checked_add(3.hours()).is_ok_and(|limit| limit < begin) {
                            continue;
                        }
                        if let Some(found) = instant_after(at, after, zone) {
                            return Some(found);
                        }
                    }
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }
}

/// The first instant after `after` at which clocks show `at`. A time that is skipped by a clock change has none.
fn instant_after(at: DateTime, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let offsets = match zone.to_ambiguous_timestamp(at).offset() {
        AmbiguousOffset::Unambiguous { offset } => [Some(offset), None],
        AmbiguousOffset::Gap { .. } => [None, None],
        AmbiguousOffset::Fold { before, after } => [Some(before), Some(after)],
    };
    offsets.into_iter().flatten().filter_map(|offset| offset.to_timestamp(at).ok()).find(|t| *t > after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_give_the_next_time() {
        // Source: robfig/cron spec_test.go, and the Kubernetes documentation of CronJob.
        for (schedule, zone, after, want) in [
            ("* * * * *", "UTC", "2026-01-01T00:00:30Z", Some("2026-01-01T00:01:00Z")),
            ("*/15 * * * *", "UTC", "2026-01-01T00:15:00Z", Some("2026-01-01T00:30:00Z")),
            ("20-35/15 * * * *", "UTC", "2026-01-01T00:21:00Z", Some("2026-01-01T00:35:00Z")),
            ("5/20 * * * *", "UTC", "2026-01-01T00:06:00Z", Some("2026-01-01T00:25:00Z")),
            ("0 3 * * mon-fri", "UTC", "2026-01-02T04:00:00Z", Some("2026-01-05T03:00:00Z")),
            ("0 0 13 * 5", "UTC", "2026-01-01T00:00:00Z", Some("2026-01-02T00:00:00Z")),
            ("0 0 29 FEB ?", "UTC", "2026-01-01T00:00:00Z", Some("2028-02-29T00:00:00Z")),
            ("59 23 31 2 *", "UTC", "2026-01-01T00:00:00Z", None),
            ("@daily", "America/New_York", "2026-01-01T00:00:00Z", Some("2026-01-01T05:00:00Z")),
            ("@every 90m", "UTC", "2026-01-01T00:00:00.5Z", Some("2026-01-01T01:30:00Z")),
            // 2:30 does not exist on 8 March 2026 in New York, and 1:30 is there twice on 1 November.
            ("30 2 * * *", "America/New_York", "2026-03-08T05:00:00Z", Some("2026-03-09T06:30:00Z")),
            ("30 1 * * *", "America/New_York", "2026-11-01T05:30:00Z", Some("2026-11-01T06:30:00Z")),
        ] {
            let got = Schedule::parse(schedule).unwrap().next(after.parse().unwrap(), &TimeZone::get(zone).unwrap());
            assert_eq!(got, want.map(|w| w.parse().unwrap()), "{schedule} in {zone} after {after}");
        }
    }

    #[test]
    fn bad_schedules_are_refused() {
        for schedule in
            ["", "* * * *", "60 * * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *", "@foo", "@every x", "a * * * *"]
        {
            assert!(Schedule::parse(schedule).is_err(), "{schedule}");
        }
    }
}
