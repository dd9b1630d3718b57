//! Functions of strings.
//!
//! Positions count characters, as cel-go's do. Follows: cel-go `ext/strings.go` version 2.

use std::sync::Arc;

use crate::stdlib::{NO_OVERLOAD, Outcome};
use crate::value::Val;

pub(crate) fn call(name: &str, args: &[Val]) -> Outcome {
    match (name, args) {
        ("contains", [Val::String(s), Val::String(part)]) => Ok(s.contains(&**part).into()),
        ("startsWith", [Val::String(s), Val::String(part)]) => Ok(s.starts_with(&**part).into()),
        ("endsWith", [Val::String(s), Val::String(part)]) => Ok(s.ends_with(&**part).into()),
        ("matches", [Val::String(s), Val::String(pattern)]) => Ok(regex(pattern)?.is_match(s).into()),
        ("charAt", [Val::String(s), Val::Int(i)]) => {
            let length = s.chars().count() as i64;
            if *i < 0 || *i > length {
                return Err(format!("index out of range: {i}"));
            }
            Ok(s.chars().nth(*i as usize).map(String::from).unwrap_or_default().into())
        }
        ("indexOf", [Val::String(s), Val::String(part)]) => Ok(index_of(s, part, 0)),
        // An empty part is wherever one looks.
        ("indexOf" | "lastIndexOf", [Val::String(_), Val::String(part), Val::Int(from)]) if part.is_empty() => {
            Ok(Val::Int(*from))
        }
        ("indexOf", [Val::String(s), Val::String(part), Val::Int(from)]) => {
            Ok(index_of(s, part, start(*from)?.min(s.len())))
        }
        ("lastIndexOf", [Val::String(s), Val::String(part)]) => Ok(last_index_of(s, part, usize::MAX)),
        ("lastIndexOf", [Val::String(s), Val::String(part), Val::Int(from)]) => {
            let from = start(*from)?;
            Ok(if from < s.chars().count() { last_index_of(s, part, from) } else { Val::Int(-1) })
        }
        ("join", [Val::List(list)]) => join(list, ""),
        ("join", [Val::List(list), Val::String(separator)]) => join(list, separator),
        ("lowerAscii", [Val::String(s)]) => Ok(s.to_ascii_lowercase().into()),
        ("upperAscii", [Val::String(s)]) => Ok(s.to_ascii_uppercase().into()),
        ("replace", [Val::String(s), Val::String(from), Val::String(to)]) => Ok(s.replace(&**from, to).into()),
        ("replace", [Val::String(s), Val::String(from), Val::String(to), Val::Int(n)]) => match usize::try_from(*n) {
            Ok(n) => Ok(s.replacen(&**from, to, n).into()),
            Err(_) => Ok(s.replace(&**from, to).into()),
        },
        ("split", [Val::String(s), Val::String(separator)]) => Ok(split(s, separator, -1)),
        ("split", [Val::String(s), Val::String(separator), Val::Int(n)]) => Ok(split(s, separator, *n)),
        ("substring", [Val::String(s), Val::Int(from)]) => {
            offset(s, *from)?;
            substring(s, *from, s.chars().count() as i64)
        }
        ("substring", [Val::String(s), Val::Int(from), Val::Int(to)]) => substring(s, *from, *to),
        ("trim", [Val::String(s)]) => Ok(s.trim().into()),
        ("strings.quote", [Val::String(s)]) => Ok(quote(s).into()),
        ("format", [Val::String(s), Val::List(values)]) => crate::format::format(s, values).map(Into::into),
        ("size", [Val::String(s)]) => Ok(Val::Int(s.chars().count() as i64)),
        _ => Err(NO_OVERLOAD),
    }
}

pub(crate) fn regex(pattern: &str) -> Result<regex::Regex, String> {
    // Bounded, so that no pattern takes more than a few MiB to compile.
    let built = regex::RegexBuilder::new(pattern).size_limit(1 << 22).build();
    built.map_err(|e| regex_error(pattern, &e))
}

/// Why a pattern cannot be used, in the words of Go's `regexp` for common mistakes.
pub fn regex_error(pattern: &str, error: &regex::Error) -> String {
    let regex::Error::Syntax(text) = error else {
        return "error parsing regexp: expression too large".to_owned();
    };
    // The part that is wrong is underlined with carets, and the last line says what is wrong.
    let reason = text.lines().last().and_then(|l| l.strip_prefix("error: ")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let marked = lines.windows(2).find_map(|pair| {
        let from = pair[1].find('^').filter(|_| pair[1].trim_matches([' ', '^']).is_empty())?;
        let chars = pair[1].matches('^').count();
        Some(pair[0].chars().skip(from).take(chars).collect::<String>())
    });
    let part = marked.unwrap_or_else(|| pattern.to_owned());
    let (reason, part) = match reason {
        "unclosed group" => ("missing closing )", pattern.to_owned()),
        "unopened group" => ("unexpected )", pattern.to_owned()),
        "unclosed character class" => {
            let from = pattern.find('[').unwrap_or(0);
            ("missing closing ]", pattern[from..].to_owned())
        }
        "repetition operator missing expression" => ("missing argument to repetition operator", part),
        "look-around, including look-ahead and look-behind, is not supported" => {
            ("invalid or unsupported Perl syntax", part)
        }
        "backreferences are not supported" | "unrecognized escape sequence" => ("invalid escape sequence", part),
        "incomplete escape sequence, reached end of pattern prematurely" => {
            return "error parsing regexp: trailing backslash at end of expression: ``".to_owned();
        }
        "Unicode property not found" => ("invalid character class range", part),
        r if r.starts_with("invalid character class range") => ("invalid character class range", part),
        r if r.starts_with("invalid repetition count range") => ("invalid repeat count", part),
        other => (other, part),
    };
    format!("error parsing regexp: {reason}: `{part}`")
}

fn offset(s: &str, at: i64) -> Result<usize, String> {
    let length = s.chars().count();
    usize::try_from(at).ok().filter(|at| *at <= length).ok_or_else(|| format!("index out of range: {at}"))
}

/// Where a search begins; beyond the end nothing is found.
fn start(at: i64) -> Result<usize, String> {
    usize::try_from(at).map_err(|_| format!("index out of range: {at}"))
}

fn index_of(s: &str, part: &str, from: usize) -> Val {
    let start = s.char_indices().nth(from).map_or(s.len(), |(i, _)| i);
    let found = s[start..].find(part).map(|i| s[..start + i].chars().count() as i64);
    Val::Int(found.unwrap_or(-1))
}

/// The last place at or before character `from` where `part` starts.
fn last_index_of(s: &str, part: &str, from: usize) -> Val {
    let limit = s.char_indices().nth(from).map_or(s.len(), |(i, _)| i);
    let end = limit.saturating_add(part.len()).min(s.len());
    let end = (end..=s.len()).find(|i| s.is_char_boundary(*i)).unwrap_or(s.len());
    let found = s[..end].rfind(part).map(|i| s[..i].chars().count() as i64);
    Val::Int(found.unwrap_or(-1))
}

fn join(list: &[Val], separator: &str) -> Outcome {
    let mut out = String::new();
    for (i, value) in list.iter().enumerate() {
        let Val::String(s) = value else { return Err(NO_OVERLOAD) };
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(s);
    }
    Ok(out.into())
}

fn split(s: &str, separator: &str, n: i64) -> Val {
    let strings = |parts: Vec<&str>| Val::from(parts.into_iter().map(Val::from).collect::<Vec<_>>());
    match usize::try_from(n) {
        Ok(0) => Val::from(Vec::new()),
        limit if separator.is_empty() => {
            let mut parts: Vec<String> = s.chars().map(String::from).collect();
            if let Ok(limit) = limit
                && parts.len() > limit
            {
                let rest = parts.split_off(limit - 1).concat();
                parts.push(rest);
            }
            Val::from(parts.into_iter().map(Val::from).collect::<Vec<_>>())
        }
        Ok(limit) => strings(s.splitn(limit, separator).collect()),
        Err(_) => strings(s.split(separator).collect()),
    }
}

fn substring(s: &str, from: i64, to: i64) -> Outcome {
    let length = s.chars().count() as i64;
    if from > to || from < 0 || to > length {
        let message = if from > to {
            format!("invalid substring range. start: {from}, end: {to}")
        } else {
            format!("index out of range: {}", if (0..=length).contains(&from) { to } else { from })
        };
        return Err(message);
    }
    Ok(s.chars().skip(from as usize).take((to - from) as usize).collect::<String>().into())
}

/// How CEL and Go write a character that has a short escape.
pub(crate) fn short_escape(c: char) -> Option<&'static str> {
    Some(match c {
        '\x07' => "\\a",
        '\x08' => "\\b",
        '\x0c' => "\\f",
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        '\x0b' => "\\v",
        '\\' => "\\\\",
        '"' => "\\\"",
        _ => return None,
    })
}

fn quote(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match short_escape(c) {
            Some(escape) => out.push_str(escape),
            None => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A double as Go prints it with the fewest digits: exponents only for very large or small numbers.
pub(crate) fn format_double(d: f64) -> String {
    if d.is_nan() {
        return "NaN".into();
    }
    if d.is_infinite() {
        return if d > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let magnitude = d.abs();
    if magnitude != 0.0 && !(1e-4..1e6).contains(&magnitude) {
        let text = format!("{d:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        return format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
    d.to_string()
}

/// `"%s has %d".format(["a", 1])`.
/// All strings of a list, for functions that return one.
pub(crate) fn list_of(strings: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Val {
    strings.into_iter().map(|s| Val::String(s.into())).collect::<Vec<_>>().into()
}
