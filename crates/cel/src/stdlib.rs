//! What the functions do: operators, conversions, times, lists, sets, optional values. Strings and the Kubernetes libraries
//! have modules of their own.
//!
//! An error text that is empty means that no function takes such arguments.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use crate::ast::op;
use crate::value::{Key, Val};
use crate::{k8s, net, semver, strings};

pub(crate) type Outcome = Result<Val, String>;

/// No function takes such arguments.
pub(crate) const NO_OVERLOAD: String = String::new();

/// The longest list that `lists.range` makes.
const RANGE_MAX: i64 = 1_000_000;

/// How many values an attribute of a device has at most. Source: `ResourceSliceMaxAttributeValuesPerDevice`.
pub(crate) const INCLUDED_MAX: usize = 48;

/// Calls a function; a method's receiver is the first argument.
pub(crate) fn call(name: &str, receiver: bool, args: &[Val]) -> Outcome {
    match (name, args) {
        (op::NOT, [Val::Bool(b)]) => Ok((!b).into()),
        (op::NEGATE, [Val::Int(i)]) => i.checked_neg().map(Val::Int).ok_or_else(overflow),
        (op::NEGATE, [Val::Double(d)]) => Ok(Val::Double(-d)),
        (op::EQUALS, [a, b]) => Ok(a.equals(b).into()),
        (op::NOT_EQUALS, [a, b]) => Ok((!a.equals(b)).into()),
        (op::LESS, [a, b]) => ordered(a, b, Ordering::is_lt),
        (op::LESS_EQUALS, [a, b]) => ordered(a, b, Ordering::is_le),
        (op::GREATER, [a, b]) => ordered(a, b, Ordering::is_gt),
        (op::GREATER_EQUALS, [a, b]) => ordered(a, b, Ordering::is_ge),
        (op::ADD | op::SUBTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [a, b]) => arithmetic(name, a, b),
        (op::INDEX, [of, index]) => element(of, index),
        (op::OPT_INDEX, [of, index]) => optional_element(of, index),
        (op::IN, [value, Val::List(list)]) => Ok(list.iter().any(|v| v.equals(value)).into()),
        (op::IN, [value, Val::Map(map)]) => Ok(value.key().is_some_and(|k| map.contains_key(&k)).into()),
        (op::MAP_INSERT, [Val::Map(map), Val::Map(more)]) => {
            more.iter().try_fold(map.clone(), |map, (k, v)| insert(&map, k, v)).map(Val::Map)
        }
        (op::MAP_INSERT, [Val::Map(map), key, value]) => {
            let key = key.key().ok_or("unsupported key type")?;
            insert(map, &key, value).map(Val::Map)
        }
        ("size", [Val::String(_) | Val::Bytes(_) | Val::List(_) | Val::Map(_)]) => Ok(Val::Int(args[0].size() as i64)),
        ("type", [v]) => Ok(Val::Type(Arc::new(v.type_of()))),
        ("dyn", [v]) => Ok(v.clone()),
        ("bool" | "bytes" | "double" | "duration" | "int" | "string" | "timestamp" | "uint", [v]) => convert(name, v),
        ("includes", [Val::List(list), _]) if list.len() > INCLUDED_MAX => {
            Err(format!("'includes' function cannot be applied to lists longer than {INCLUDED_MAX} values"))
        }
        ("includes", [Val::List(list), value]) => Ok(list.iter().any(|v| v.equals(value)).into()),
        ("includes", [one, value]) => Ok(one.equals(value).into()),
        _ if name.starts_with("optional.") || matches!(name, "hasValue" | "value") => optional(name, args),
        _ if name.starts_with("get") && receiver => match args.first() {
            Some(Val::Timestamp(_) | Val::Duration(_)) => time_part(name, args),
            _ => k8s::call(name, args),
        },
        _ if name.starts_with("sets.") => sets(name, args),
        ("lists.range", [Val::Int(n)]) if *n > RANGE_MAX => {
            Err(format!("lists.range: {n} exceeds the limit of {RANGE_MAX}"))
        }
        ("lists.range", [Val::Int(n)]) => Ok((0..*n).map(Val::Int).collect::<Vec<_>>().into()),
        _ => match args.first() {
            Some(Val::String(_)) if receiver && !matches!(name, "find" | "findAll") => strings::call(name, args),
            Some(Val::List(list)) if receiver => lists(name, list, args),
            _ if name == "matches" || name.starts_with("strings.") => strings::call(name, args),
            _ => match net::call(name, args) {
                Err(message) if message.is_empty() => match semver::call(name, args) {
                    Err(message) if message.is_empty() => k8s::call(name, args),
                    outcome => outcome,
                },
                outcome => outcome,
            },
        },
    }
}

fn overflow() -> String {
    "integer overflow".into()
}

fn ordered(a: &Val, b: &Val, holds: fn(Ordering) -> bool) -> Outcome {
    match a.compare(b) {
        Some(ordering) => Ok(holds(ordering).into()),
        // Nothing is less or more than what is no number.
        None if a.type_of().is_numeric() && b.type_of().is_numeric() => Ok(false.into()),
        None => Err(NO_OVERLOAD),
    }
}

fn arithmetic(name: &str, a: &Val, b: &Val) -> Outcome {
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => {
            let result = match name {
                op::ADD => a.checked_add(*b),
                op::SUBTRACT => a.checked_sub(*b),
                op::MULTIPLY => a.checked_mul(*b),
                op::DIVIDE | op::MODULO if *b == 0 => return Err(by_zero(name)),
                op::DIVIDE => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            result.map(Val::Int).ok_or_else(overflow)
        }
        (Val::Uint(a), Val::Uint(b)) => {
            let result = match name {
                op::ADD => a.checked_add(*b),
                op::SUBTRACT => a.checked_sub(*b),
                op::MULTIPLY => a.checked_mul(*b),
                op::DIVIDE | op::MODULO if *b == 0 => return Err(by_zero(name)),
                op::DIVIDE => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            result.map(Val::Uint).ok_or_else(|| "unsigned integer overflow".into())
        }
        (Val::Double(a), Val::Double(b)) => Ok(Val::Double(match name {
            op::ADD => a + b,
            op::SUBTRACT => a - b,
            op::MULTIPLY => a * b,
            op::DIVIDE => a / b,
            _ => return Err(NO_OVERLOAD),
        })),
        (Val::String(a), Val::String(b)) if name == op::ADD => Ok(format!("{a}{b}").into()),
        (Val::Bytes(a), Val::Bytes(b)) if name == op::ADD => Ok(Val::Bytes([&**a, &**b].concat().into())),
        (Val::List(a), Val::List(b)) if name == op::ADD => Ok([a.as_slice(), b.as_slice()].concat().into()),
        (Val::Duration(a), Val::Duration(b)) => {
            let result = match name {
                op::ADD => a.checked_add(*b),
                op::SUBTRACT => a.checked_sub(*b),
                _ => return Err(NO_OVERLOAD),
            };
            // Durations are 64 bits of nanoseconds.
            let fits = result.filter(|d| i64::try_from(d.as_nanos()).is_ok());
            fits.map(Val::Duration).ok_or_else(overflow)
        }
        (Val::Timestamp(t), Val::Duration(d)) | (Val::Duration(d), Val::Timestamp(t)) if name == op::ADD => {
            t.checked_add(*d).map(Val::Timestamp).map_err(|_| "timestamp overflow".into())
        }
        (Val::Timestamp(t), Val::Duration(d)) if name == op::SUBTRACT => {
            t.checked_sub(*d).map(Val::Timestamp).map_err(|_| "timestamp overflow".into())
        }
        (Val::Timestamp(a), Val::Timestamp(b)) if name == op::SUBTRACT => Ok(Val::Duration(a.duration_since(*b))),
        _ => Err(NO_OVERLOAD),
    }
}

fn by_zero(name: &str) -> String {
    if name == op::DIVIDE { "division by zero".into() } else { "modulus by zero".into() }
}

fn list_index(index: &Val) -> Option<i64> {
    match index {
        Val::Int(i) => Some(*i),
        Val::Uint(u) => i64::try_from(*u).ok(),
        Val::Double(d) if d.fract() == 0.0 => Some(*d as i64),
        _ => None,
    }
}

fn element(of: &Val, index: &Val) -> Outcome {
    match of {
        Val::List(list) => {
            let i = list_index(index).ok_or(NO_OVERLOAD)?;
            let found = usize::try_from(i).ok().and_then(|i| list.get(i));
            found.cloned().ok_or_else(|| format!("index out of bounds: {i}"))
        }
        Val::Map(map) => {
            let found = index.key().and_then(|k| map.get(&k));
            found.cloned().ok_or_else(|| format!("no such key: {}", show(index)))
        }
        Val::Optional(_) => optional_element(of, index),
        _ => Err(NO_OVERLOAD),
    }
}

fn optional_element(of: &Val, index: &Val) -> Outcome {
    match of {
        Val::Optional(None) => Ok(Val::Optional(None)),
        Val::Optional(Some(held)) => optional_element(held, index),
        Val::List(_) | Val::Map(_) => Ok(Val::Optional(element(of, index).ok().map(Arc::new))),
        _ => Err(NO_OVERLOAD),
    }
}

fn insert(map: &Arc<BTreeMap<Key, Val>>, key: &Key, value: &Val) -> Result<Arc<BTreeMap<Key, Val>>, String> {
    if map.contains_key(key) {
        return Err(format!("insert failed: key {} already exists", show(&crate::eval::key_value(key))));
    }
    let mut map = BTreeMap::clone(map);
    map.insert(key.clone(), value.clone());
    Ok(Arc::new(map))
}

/// A value in an error message.
pub(crate) fn show(value: &Val) -> String {
    match value {
        Val::String(s) => s.to_string(),
        Val::Int(i) => i.to_string(),
        Val::Uint(u) => u.to_string(),
        Val::Bool(b) => b.to_string(),
        Val::Double(d) => strings::format_double(*d),
        other => other.type_name(),
    }
}

fn not_converted(to: &str) -> String {
    format!("type conversion error from 'string' to '{to}'")
}

fn convert(name: &str, value: &Val) -> Outcome {
    let range = || format!("{name} conversion error: value out of range");
    match (name, value) {
        ("bool", Val::Bool(_))
        | ("bytes", Val::Bytes(_))
        | ("double", Val::Double(_))
        | ("duration", Val::Duration(_)) => Ok(value.clone()),
        ("int", Val::Int(_))
        | ("string", Val::String(_))
        | ("timestamp", Val::Timestamp(_))
        | ("uint", Val::Uint(_)) => Ok(value.clone()),
        ("bool", Val::String(s)) => match &**s {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true.into()),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false.into()),
            _ => Err(not_converted("bool")),
        },
        ("bytes", Val::String(s)) => Ok(Val::Bytes(s.as_bytes().into())),
        ("double", Val::Int(i)) => Ok(Val::Double(*i as f64)),
        ("double", Val::Uint(u)) => Ok(Val::Double(*u as f64)),
        ("double", Val::String(s)) => s.parse().map(Val::Double).map_err(|_| not_converted("double")),
        ("duration", Val::String(s)) => {
            parse_duration(s).map(Val::Duration).map_err(|_| not_converted("google.protobuf.Duration"))
        }
        ("duration", Val::Int(i)) => Ok(Val::Duration(SignedDuration::from_nanos(*i))),
        ("int", Val::Uint(u)) => i64::try_from(*u).map(Val::Int).map_err(|_| "integer overflow".into()),
        ("int", Val::Double(d)) if *d > -9.223_372_036_854_775e18 && *d < 9.223_372_036_854_775e18 => {
            Ok(Val::Int(*d as i64))
        }
        ("int", Val::Double(_)) => Err("integer overflow".into()),
        ("int", Val::String(s)) => s.parse().map(Val::Int).map_err(|_| not_converted("int")),
        ("int", Val::Timestamp(t)) => Ok(Val::Int(t.as_second())),
        ("int", Val::Duration(d)) => i64::try_from(d.as_nanos()).map(Val::Int).map_err(|_| range()),
        ("uint", Val::Int(i)) => u64::try_from(*i).map(Val::Uint).map_err(|_| "unsigned integer overflow".into()),
        ("uint", Val::Double(d)) if *d >= 0.0 && *d < 1.844_674_407_370_955e19 => Ok(Val::Uint(*d as u64)),
        ("uint", Val::Double(_)) => Err("unsigned integer overflow".into()),
        ("uint", Val::String(s)) => s.parse().map(Val::Uint).map_err(|_| not_converted("uint")),
        ("timestamp", Val::String(s)) => {
            parse_timestamp(s).map(Val::Timestamp).map_err(|_| not_converted("google.protobuf.Timestamp"))
        }
        ("timestamp", Val::Int(i)) => timestamp_at(*i).map(Val::Timestamp),
        ("string", v) => match v {
            Val::Bool(_) | Val::Int(_) | Val::Uint(_) | Val::Double(_) => Ok(show(v).into()),
            Val::Bytes(b) => match std::str::from_utf8(b) {
                Ok(s) => Ok(s.into()),
                Err(_) => Err("invalid UTF-8 in bytes, cannot convert to string".into()),
            },
            Val::Timestamp(t) => Ok(t.to_string().into()),
            Val::Duration(d) => Ok(format_duration(*d).into()),
            Val::Opaque(o) => o.text().map(Into::into).ok_or(NO_OVERLOAD),
            _ => Err(NO_OVERLOAD),
        },
        _ => Err(NO_OVERLOAD),
    }
}

/// Go's `time.ParseDuration`: `1h30m`, `-1.5s`, `100ms`.
pub(crate) fn parse_duration(text: &str) -> Result<SignedDuration, String> {
    let bad = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(bad()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(bad());
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
        nanos = nanos.checked_add(whole.checked_mul(scale).ok_or_else(bad)?).ok_or_else(bad)?;
        let mut place = scale;
        for digit in fraction.bytes() {
            place /= 10;
            nanos += i128::from(digit - b'0') * place;
        }
        rest = after;
    }
    let nanos = if negative { -nanos } else { nanos };
    i64::try_from(nanos).map(SignedDuration::from_nanos).map_err(|_| bad())
}

/// As cel-go writes durations: seconds, `90s`, `1.5s`.
pub(crate) fn format_duration(d: SignedDuration) -> String {
    let nanos = d.as_nanos();
    let (sign, nanos) = if nanos < 0 { ("-", -nanos) } else { ("", nanos) };
    let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let fraction = format!("{fraction:09}");
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { format!("{sign}{seconds}s") } else { format!("{sign}{seconds}.{fraction}s") }
}

/// Seconds since 1970, within the years 1 to 9999.
pub(crate) fn timestamp_at(seconds: i64) -> Result<Timestamp, String> {
    let valid = (-62_135_596_800..=253_402_300_799).contains(&seconds);
    valid.then(|| Timestamp::from_second(seconds).ok()).flatten().ok_or_else(|| "timestamp overflow".to_owned())
}

/// RFC 3339 with any offset.
pub(crate) fn parse_timestamp(text: &str) -> Result<Timestamp, String> {
    let bad = || format!("parsing time {text:?} as RFC 3339 failed");
    let bytes = text.as_bytes();
    let has_zone = text.ends_with('Z') || (bytes.len() > 6 && matches!(bytes[bytes.len() - 6], b'+' | b'-'));
    if bytes.len() < 20 || bytes[10] != b'T' || !has_zone {
        return Err(bad());
    }
    text.parse().map_err(|_| bad())
}

fn time_part(name: &str, args: &[Val]) -> Outcome {
    if let [Val::Duration(d)] = args {
        let nanos = d.as_nanos();
        return Ok(Val::Int(match name {
            "getHours" => nanos / 3_600_000_000_000,
            "getMinutes" => nanos / 60_000_000_000,
            "getSeconds" => nanos / 1_000_000_000,
            "getMilliseconds" => nanos / 1_000_000,
            _ => return Err(NO_OVERLOAD),
        } as i64));
    }
    let (t, zone) = match args {
        [Val::Timestamp(t)] => (t, TimeZone::UTC),
        [Val::Timestamp(t), Val::String(zone)] => (t, time_zone(zone)?),
        _ => return Err(NO_OVERLOAD),
    };
    let z: Zoned = t.to_zoned(zone);
    Ok(Val::Int(match name {
        "getFullYear" => z.year().into(),
        "getMonth" => i64::from(z.month()) - 1,
        "getDate" => z.day().into(),
        "getDayOfMonth" => i64::from(z.day()) - 1,
        "getDayOfYear" => i64::from(z.day_of_year()) - 1,
        "getDayOfWeek" => i64::from(z.weekday().to_sunday_zero_offset()),
        "getHours" => z.hour().into(),
        "getMinutes" => z.minute().into(),
        "getSeconds" => z.second().into(),
        "getMilliseconds" => z.millisecond().into(),
        _ => return Err(NO_OVERLOAD),
    }))
}

/// A zone by name, or a fixed offset such as `-08:00`.
fn time_zone(text: &str) -> Result<TimeZone, String> {
    // The server's own zone is UTC.
    if matches!(text, "" | "Local") {
        return Ok(TimeZone::UTC);
    }
    if let Some((hours, minutes)) = text.split_once(':') {
        let bad = || format!("unknown time zone {text}");
        let negative = hours.starts_with('-');
        let hours: i32 = hours.parse().map_err(|_| bad())?;
        let minutes: i32 = minutes.parse().map_err(|_| bad())?;
        let seconds = hours * 3600 + if negative { -minutes } else { minutes } * 60;
        return Offset::from_seconds(seconds).map(TimeZone::fixed).map_err(|_| bad());
    }
    TimeZone::get(text).map_err(|_| format!("unknown time zone {text}"))
}

fn optional(name: &str, args: &[Val]) -> Outcome {
    match (name, args) {
        ("optional.unwrap", [Val::List(list)]) => unwrap(list),
        ("optional.of", [v]) => Ok(Val::Optional(Some(Arc::new(v.clone())))),
        ("optional.none", []) => Ok(Val::Optional(None)),
        ("optional.ofNonZeroValue", [v]) => Ok(Val::Optional((!is_zero(v)).then(|| Arc::new(v.clone())))),
        ("hasValue", [Val::Optional(held)]) => Ok(held.is_some().into()),
        ("value", [Val::Optional(held)]) => {
            held.as_deref().cloned().ok_or_else(|| "optional.none() dereference".into())
        }
        _ => Err(NO_OVERLOAD),
    }
}

fn is_zero(value: &Val) -> bool {
    match value {
        Val::Null | Val::Optional(None) => true,
        Val::Bool(b) => !b,
        Val::Int(i) => *i == 0,
        Val::Uint(u) => *u == 0,
        Val::Double(d) => *d == 0.0,
        Val::String(_) | Val::Bytes(_) | Val::List(_) | Val::Map(_) => value.size() == 0,
        Val::Duration(d) => d.is_zero(),
        _ => false,
    }
}

fn sets(name: &str, args: &[Val]) -> Outcome {
    let [Val::List(a), Val::List(b)] = args else { return Err(NO_OVERLOAD) };
    let has_all = |list: &[Val], wanted: &[Val]| wanted.iter().all(|w| list.iter().any(|v| v.equals(w)));
    Ok(match name {
        "sets.contains" => has_all(a, b),
        "sets.equivalent" => has_all(a, b) && has_all(b, a),
        "sets.intersects" => a.iter().any(|v| b.iter().any(|w| v.equals(w))),
        _ => return Err(NO_OVERLOAD),
    }
    .into())
}

fn lists(name: &str, list: &Arc<Vec<Val>>, args: &[Val]) -> Outcome {
    let index = |i: Option<usize>| Val::Int(i.map_or(-1, |i| i as i64));
    match (name, args) {
        ("isSorted", [_]) => {
            let pairs = list.windows(2).map(|w| w[0].compare(&w[1]));
            pairs
                .map(|o| o.map(Ordering::is_le))
                .try_fold(true, |all, o| Some(all && o?))
                .map(Val::Bool)
                .ok_or(NO_OVERLOAD)
        }
        ("sum", [_]) => match list.split_first() {
            None => Ok(Val::Int(0)),
            Some((first, rest)) => rest.iter().try_fold(first.clone(), |sum, v| arithmetic(op::ADD, &sum, v)),
        },
        ("min" | "max", [_]) => {
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let (first, rest) = list.split_first().ok_or_else(|| format!("{name} called on empty list"))?;
            rest.iter().try_fold(first.clone(), |best, v| match v.compare(&best) {
                Some(o) if o == wanted => Ok(v.clone()),
                Some(_) => Ok(best),
                None => Err(NO_OVERLOAD),
            })
        }
        ("indexOf", [_, wanted]) => Ok(index(list.iter().position(|v| v.equals(wanted)))),
        ("lastIndexOf", [_, wanted]) => Ok(index(list.iter().rposition(|v| v.equals(wanted)))),
        ("distinct", [_]) => {
            let mut out: Vec<Val> = Vec::new();
            for v in list.iter() {
                if !out.iter().any(|o| o.equals(v)) {
                    out.push(v.clone());
                }
            }
            Ok(out.into())
        }
        ("flatten", [_]) => Ok(flatten(list, 1).into()),
        ("flatten", [_, Val::Int(depth)]) if *depth < 0 => Err("level must be non-negative".into()),
        ("flatten", [_, Val::Int(depth)]) => Ok(flatten(list, *depth).into()),
        ("reverse", [_]) => Ok(list.iter().rev().cloned().collect::<Vec<_>>().into()),
        ("slice", [_, Val::Int(from), Val::Int(to)]) => {
            let failed = |why: &str| Err(format!("cannot slice({from}, {to}), {why}"));
            let (Ok(start), Ok(end)) = (usize::try_from(*from), usize::try_from(*to)) else {
                return failed("negative indexes not supported");
            };
            if start > end {
                return failed("start index must be less than or equal to end index");
            }
            match list.get(start..end) {
                Some(part) => Ok(part.to_vec().into()),
                None => failed(&format!("list is length {}", list.len())),
            }
        }
        ("first", [_]) => Ok(Val::Optional(list.first().cloned().map(Arc::new))),
        ("last", [_]) => Ok(Val::Optional(list.last().cloned().map(Arc::new))),
        ("unwrapOpt", [_]) => unwrap(list),
        ("sort", [_]) => sort_by_keys(list, list),
        ("@sortByAssociatedKeys", [_, Val::List(keys)]) => sort_by_keys(list, keys),
        ("join", _) => strings::call(name, args),
        _ => Err(NO_OVERLOAD),
    }
}

/// What those of the elements hold that hold something.
fn unwrap(list: &[Val]) -> Outcome {
    let mut held = Vec::with_capacity(list.len());
    for element in list {
        match element {
            Val::Optional(value) => held.extend(value.as_deref().cloned()),
            _ => return Err("optional.unwrap() failed: value not optional".to_owned()),
        }
    }
    Ok(held.into())
}

/// The elements of a list in the order of the keys that belong to them.
fn sort_by_keys(list: &[Val], keys: &[Val]) -> Outcome {
    if keys.windows(2).any(|w| w[0].base_name() != w[1].base_name()) {
        return Err("list elements must have the same type".to_owned());
    }
    if keys.windows(2).any(|w| w[0].compare(&w[1]).is_none()) {
        return Err("list elements must be comparable".to_owned());
    }
    let mut pairs: Vec<(&Val, &Val)> = keys.iter().zip(list).collect();
    pairs.sort_by(|(a, _), (b, _)| a.compare(b).unwrap_or(Ordering::Equal));
    Ok(pairs.into_iter().map(|(_, value)| value.clone()).collect::<Vec<_>>().into())
}

fn flatten(list: &[Val], depth: i64) -> Vec<Val> {
    list.iter()
        .flat_map(|v| match v {
            Val::List(inner) if depth > 0 => flatten(inner, depth - 1),
            other => vec![other.clone()],
        })
        .collect()
}
