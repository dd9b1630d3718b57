//! `string.format`: templates with clauses such as `%s` and `%.2f`.
//!
//! Numbers are written for en_US: groups of thousands in `%f`, powers of ten in `%e`.
//!
//! Follows: cel-go `ext/formatting.go` (version 1, which Kubernetes asks for).

use crate::stdlib::{format_duration, show};
use crate::strings::{format_double, short_escape};
use crate::types::Type;
use crate::value::{Key, Val};

/// What a clause asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    Text,
    Decimal,
    Fixed(Option<usize>),
    Scientific(Option<usize>),
    Binary,
    Octal,
    Hex { upper: bool },
}

/// More digits than any number has; a longer precision is cut.
const PRECISION_MAX: usize = 1000;
const PRECISION: usize = 6;

/// Why a clause cannot print a value of a type.
pub(crate) fn unsuitable(clause: Clause, ty: &str) -> String {
    let what = match clause {
        Clause::Text => {
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, \
             and timestamps"
        }
        Clause::Decimal => "decimal clause can only be used on integers",
        Clause::Fixed(_) => "fixed-point clause can only be used on doubles",
        Clause::Scientific(_) => "scientific clause can only be used on doubles",
        Clause::Binary => "only integers and bools can be formatted as binary",
        Clause::Octal => "octal clause can only be used on integers",
        Clause::Hex { .. } => "only integers, byte buffers, and strings can be formatted as hex",
    };
    format!("{what}, was given {ty}")
}

/// Goes through a template; `print` writes value number `index`. Errors of `print` keep what they carry.
pub(crate) fn interpolate<P>(
    template: &str,
    values: usize,
    print: &mut dyn FnMut(usize, Clause) -> Result<String, (P, String)>,
) -> Result<String, (Option<P>, String)> {
    let plain = |text: String| (None, text);
    let clause_error = |text: &str| plain(format!("could not parse formatting clause: {text}"));
    let mut out = String::new();
    let mut chars = template.chars().peekable();
    let mut index = 0;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        if chars.peek().is_none() {
            // Which of the two is told first depends on whether there is a value.
            return Err(plain("unexpected end of string".to_owned()));
        }
        if index >= values {
            return Err(plain(format!("index {index} out of range")));
        }
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            if chars.peek().is_none() {
                return Err(clause_error("error while parsing precision: could not find end of precision specifier"));
            }
            let parsed: i64 = digits.parse().map_err(|_| {
                let why = if digits.is_empty() { "invalid syntax" } else { "value out of range" };
                clause_error(&format!(
                    "error while parsing precision: error while converting precision to integer: strconv.Atoi: \
                     parsing {digits:?}: {why}"
                ))
            })?;
            precision = Some(usize::try_from(parsed).map_or(PRECISION_MAX, |p| p.min(PRECISION_MAX)));
        }
        let clause = match chars.next() {
            Some('s') => Clause::Text,
            Some('d') => Clause::Decimal,
            Some('f') => Clause::Fixed(precision),
            Some('e') => Clause::Scientific(precision),
            Some('b') => Clause::Binary,
            Some('o') => Clause::Octal,
            Some('x') => Clause::Hex { upper: false },
            Some('X') => Clause::Hex { upper: true },
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(clause_error(&format!("unrecognized formatting clause \"{other}\"")));
            }
        };
        let text = print(index, clause).map_err(|(at, text)| (Some(at), format!("error during formatting: {text}")))?;
        out.push_str(&text);
        index += 1;
    }
    Ok(out)
}

/// `template.format(values)`.
pub(crate) fn format(template: &str, values: &[Val]) -> Result<String, String> {
    interpolate(template, values.len(), &mut |index, clause| print(&values[index], clause).map_err(|text| ((), text)))
        .map_err(|(_, text)| text)
}

fn print(value: &Val, clause: Clause) -> Result<String, String> {
    let bad = || unsuitable(clause, &value.base_name());
    Ok(match (clause, value) {
        (Clause::Text, v) => text(v)?,
        (Clause::Decimal, Val::Int(_) | Val::Uint(_)) => show(value),
        (Clause::Fixed(precision), v) => fixed(number(v).ok_or_else(bad)?, precision.unwrap_or(PRECISION)),
        (Clause::Scientific(precision), v) => scientific(number(v).ok_or_else(bad)?, precision.unwrap_or(PRECISION)),
        (Clause::Binary, Val::Int(i)) => signed(*i, |u| format!("{u:b}")),
        (Clause::Binary, Val::Uint(u)) => format!("{u:b}"),
        (Clause::Binary, Val::Bool(b)) => u8::from(*b).to_string(),
        (Clause::Octal, Val::Int(i)) => signed(*i, |u| format!("{u:o}")),
        (Clause::Octal, Val::Uint(u)) => format!("{u:o}"),
        (Clause::Hex { upper }, v) => {
            let digits = match v {
                Val::Int(i) => signed(*i, |u| format!("{u:x}")),
                Val::Uint(u) => format!("{u:x}"),
                Val::String(s) => s.bytes().map(|b| format!("{b:02x}")).collect(),
                Val::Bytes(b) => b.iter().map(|b| format!("{b:02x}")).collect(),
                _ => return Err(bad()),
            };
            if upper { digits.to_uppercase() } else { digits }
        }
        _ => return Err(bad()),
    })
}

fn signed(i: i64, digits: impl Fn(u64) -> String) -> String {
    format!("{}{}", if i < 0 { "-" } else { "" }, digits(i.unsigned_abs()))
}

/// A double, or one of the words that stand for one.
fn number(value: &Val) -> Option<f64> {
    match value {
        Val::Double(d) => Some(*d),
        Val::String(s) => match &**s {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

fn not_finite(d: f64) -> Option<String> {
    (!d.is_finite()).then(|| {
        if d.is_nan() {
            "NaN"
        } else if d > 0.0 {
            "∞"
        } else {
            "-∞"
        }
        .to_owned()
    })
}

fn fixed(d: f64, precision: usize) -> String {
    if let Some(text) = not_finite(d) {
        return text;
    }
    let plain = format!("{d:.precision$}");
    let (sign, plain) = plain.strip_prefix('-').map_or(("", plain.as_str()), |rest| ("-", rest));
    let (whole, fraction) = plain.split_once('.').map_or((plain, None), |(w, f)| (w, Some(f)));
    let mut out = sign.to_owned();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    fraction.into_iter().for_each(|f| {
        out.push('.');
        out.push_str(f);
    });
    out
}

fn scientific(d: f64, precision: usize) -> String {
    if let Some(text) = not_finite(d) {
        return text;
    }
    let plain = format!("{d:.precision$e}");
    let (mantissa, exponent) = plain.split_once('e').unwrap_or((&plain, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let raised: String = format!("{:02}", exponent.abs())
        .chars()
        .filter_map(|c| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(c.to_digit(10)? as usize))
        .collect();
    format!("{mantissa}×10{}{raised}", if exponent < 0 { "⁻" } else { "" })
}

fn text(value: &Val) -> Result<String, String> {
    Ok(match value {
        Val::List(_) | Val::Map(_) => part(value)?,
        Val::Null => "null".into(),
        Val::Bytes(b) => match std::str::from_utf8(b) {
            Ok(s) => s.to_owned(),
            Err(_) => return Err("could not convert argument %!q(<nil>) to string".to_owned()),
        },
        Val::Duration(d) => format_duration(*d),
        Val::Timestamp(t) => t.to_string(),
        Val::Type(t) => t.base_name(),
        Val::Optional(_) | Val::Opaque(_) => return Err(unsuitable(Clause::Text, &value.base_name())),
        other => show(other),
    })
}

/// A value within a list or a map, as a literal.
fn part(value: &Val) -> Result<String, String> {
    Ok(match value {
        Val::List(list) => format!("[{}]", list.iter().map(part).collect::<Result<Vec<_>, _>>()?.join(", ")),
        Val::Map(map) => {
            let entry = |(key, value): (&Key, &Val)| Ok((part(&crate::eval::key_value(key))?, part(value)?));
            let mut entries: Vec<(String, String)> = map.iter().map(entry).collect::<Result<_, String>>()?;
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            let entries: Vec<String> = entries.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
            format!("{{{}}}", entries.join(", "))
        }
        Val::String(s) => quoted(s),
        Val::Bytes(b) => format!("b{}", quoted(&String::from_utf8_lossy(b))),
        Val::Double(d) if d.is_finite() => format!("{d:.PRECISION$}"),
        Val::Double(d) => quoted(&format_double(*d)),
        Val::Duration(d) => format!("duration({})", quoted(&format_duration(*d))),
        Val::Timestamp(t) => format!("timestamp({})", quoted(&t.to_string())),
        Val::Optional(_) | Val::Opaque(_) => return Err(format!("no formatting function for {}", value.base_name())),
        other => text(other)?,
    })
}

/// As Go's `%q`.
fn quoted(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match short_escape(c) {
            Some(escape) => out.push_str(escape),
            None if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            None => out.push(c),
        }
    }
    out.push('"');
    out
}

impl Val {
    /// The type's name without parameters.
    pub(crate) fn base_name(&self) -> String {
        match self {
            Val::Null => Type::Null.base_name(),
            Val::List(_) => "list".to_owned(),
            Val::Map(_) => "map".to_owned(),
            Val::Optional(_) => "optional_type".to_owned(),
            Val::Type(_) => "type".to_owned(),
            other => other.type_name(),
        }
    }
}
