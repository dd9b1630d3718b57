//! The methods and functions an expression may call.

use apimachinery::{Map, Value};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::parser::{FLAGS, REGEX};
use super::{Js, Machine, SIZE_MAX, ScriptError, number, strict_equal, text, to_number, to_text, truthy};

/// Names that are defined everywhere.
pub fn global(name: &str) -> Option<Js> {
    const GLOBALS: [&str; 15] = [
        "JSON",
        "Object",
        "Math",
        "Array",
        "String",
        "Number",
        "Boolean",
        "parseInt",
        "parseFloat",
        "isNaN",
        "atob",
        "btoa",
        "virtualToHostDNS",
        "encodeURIComponent",
        "NaN",
    ];
    match GLOBALS.into_iter().find(|g| *g == name)? {
        "NaN" => Some(Js::Json(Value::Null)),
        found => Some(Js::Builtin(found)),
    }
}

/// A member that is not called.
pub fn member(object: &Js, key: &Js) -> Js {
    let name = to_text(key);
    let value = match object {
        Js::Json(Value::String(s)) => match name.as_str() {
            "length" => return number(s.chars().count() as f64),
            _ => name.parse::<usize>().ok().and_then(|i| s.chars().nth(i)).map(|c| Value::from(c.to_string())),
        },
        Js::Json(Value::Array(a)) => match name.as_str() {
            "length" => return number(a.len() as f64),
            _ => name.parse::<usize>().ok().and_then(|i| a.get(i).cloned()),
        },
        Js::Json(Value::Object(m)) => m.get(&name).cloned(),
        _ => None,
    };
    value.map_or(Js::Undefined, Js::Json)
}

fn type_error<T>(message: impl Into<String>) -> Result<T, ScriptError> {
    Err(ScriptError::Type(message.into()))
}

fn value_of(js: Js) -> Value {
    match js {
        Js::Json(value) => value,
        _ => Value::Null,
    }
}

/// An index as `slice` and `substring` read it.
fn index(argument: Option<&Js>, length: usize, default: usize, negative: bool) -> usize {
    let Some(argument) = argument.filter(|a| !matches!(a, Js::Undefined)) else { return default };
    let n = to_number(argument);
    if n.is_nan() {
        return 0;
    }
    if n < 0.0 {
        return if negative { length.saturating_sub((-n) as usize) } else { 0 };
    }
    (n as usize).min(length)
}

fn compiled(value: &Js) -> Option<Result<(regex::Regex, bool), ScriptError>> {
    let Js::Json(Value::Object(map)) = value else { return None };
    let pattern = map.get(REGEX)?.as_str()?;
    let flags = map.get(FLAGS).and_then(Value::as_str).unwrap_or("");
    let built = regex::RegexBuilder::new(pattern)
        .case_insensitive(flags.contains('i'))
        .multi_line(flags.contains('m'))
        .size_limit(1 << 18)
        .build();
    Some(match built {
        Ok(regex) => Ok((regex, flags.contains('g'))),
        Err(error) => type_error(format!("regular expression /{pattern}/: {error}")),
    })
}

/// `this.name(arguments)`.
pub fn call(machine: &mut Machine<'_>, this: &Js, name: &str, arguments: &[Js]) -> Result<Js, ScriptError> {
    match this {
        Js::Builtin(object) => call_static(machine, object, name, arguments),
        Js::Json(Value::String(s)) => call_string(machine, s, name, arguments),
        Js::Json(Value::Array(a)) => call_list(machine, a, name, arguments),
        Js::Json(Value::Number(_)) if name == "toString" => text(to_text(this)),
        Js::Json(Value::Number(_)) if name == "toFixed" => {
            let digits = arguments.first().map_or(0.0, to_number).clamp(0.0, 20.0) as usize;
            text(format!("{:.digits$}", to_number(this)))
        }
        Js::Json(Value::Bool(_)) if name == "toString" => text(to_text(this)),
        Js::Json(Value::Object(map)) if name == "hasOwnProperty" => {
            Ok(Js::Json(map.contains_key(&arguments.first().map(to_text).unwrap_or_default()).into()))
        }
        regex @ Js::Json(Value::Object(_)) if name == "test" => match compiled(regex) {
            Some(found) => Ok(Js::Json(found?.0.is_match(&arguments.first().map(to_text).unwrap_or_default()).into())),
            None => type_error("test is not a function"),
        },
        Js::Undefined | Js::Json(Value::Null) => type_error(format!("cannot call {name} of {}", to_text(this))),
        _ => type_error(format!("{name} is not a function")),
    }
}

/// `name(arguments)`.
pub fn call_builtin(machine: &mut Machine<'_>, name: &str, arguments: &[Js]) -> Result<Js, ScriptError> {
    let first = arguments.first().cloned().unwrap_or(Js::Undefined);
    match name {
        "String" => text(to_text(&first)),
        "Number" | "parseFloat" => Ok(number(to_number(&first))),
        "Boolean" => Ok(Js::Json(truthy(&first).into())),
        "isNaN" => Ok(Js::Json(to_number(&first).is_nan().into())),
        "parseInt" => {
            let s = to_text(&first);
            let s = s.trim();
            let radix = arguments.get(1).map_or(10.0, to_number);
            if !(2.0..=36.0).contains(&radix) {
                return type_error("parseInt: the base must be between 2 and 36");
            }
            let (sign, digits) = match s.strip_prefix('-') {
                Some(rest) => (-1, rest),
                None => (1, s.trim_start_matches('+')),
            };
            let end = digits.find(|c: char| !c.is_digit(radix as u32)).unwrap_or(digits.len());
            Ok(i64::from_str_radix(&digits[..end], radix as u32)
                .map_or(Js::Json(Value::Null), |n| Js::Json((sign * n).into())))
        }
        "atob" => match STANDARD.decode(to_text(&first)).ok().and_then(|b| String::from_utf8(b).ok()) {
            Some(decoded) => text(decoded),
            None => type_error("atob: not base64 of a text"),
        },
        "btoa" => text(STANDARD.encode(to_text(&first))),
        "virtualToHostDNS" => text((machine.dns)(&to_text(&first))),
        "encodeURIComponent" => text(
            percent_encoding::utf8_percent_encode(&to_text(&first), percent_encoding::NON_ALPHANUMERIC).to_string(),
        ),
        other => type_error(format!("{other} is not a function")),
    }
}

fn call_static(machine: &mut Machine<'_>, object: &str, name: &str, arguments: &[Js]) -> Result<Js, ScriptError> {
    let first = arguments.first().cloned().unwrap_or(Js::Undefined);
    let map = || match &first {
        Js::Json(Value::Object(map)) => Ok(map.clone()),
        other => type_error(format!("{object}.{name} needs an object, not {}", to_text(other))),
    };
    match (object, name) {
        ("JSON", "stringify") => match &first {
            Js::Json(value) => text(value.to_string()),
            _ => Ok(Js::Undefined),
        },
        ("JSON", "parse") => match Value::from_slice(to_text(&first).as_bytes()) {
            Ok(value) => Ok(Js::Json(value)),
            Err(error) => type_error(format!("JSON.parse: {error}")),
        },
        ("Object", "keys") => Ok(Js::Json(Value::Array(map()?.keys().map(|k| Value::from(k.as_str())).collect()))),
        ("Object", "values") => Ok(Js::Json(Value::Array(map()?.values().cloned().collect()))),
        ("Object", "entries") => {
            let pairs = map()?.into_iter().map(|(k, v)| Value::Array(vec![k.into(), v])).collect();
            Ok(Js::Json(Value::Array(pairs)))
        }
        ("Object", "fromEntries") => {
            let Js::Json(Value::Array(pairs)) = &first else { return type_error("Object.fromEntries needs a list") };
            let map: Map = pairs.iter().map(|p| (to_text(&Js::Json(p[0].clone())), p[1].clone())).collect();
            Ok(Js::Json(map.into()))
        }
        ("Object", "assign") => {
            let mut out = map()?;
            for more in &arguments[1..] {
                if let Js::Json(Value::Object(more)) = more {
                    out.extend(more.clone());
                }
            }
            Ok(Js::Json(out.into()))
        }
        ("Array", "isArray") => Ok(Js::Json(matches!(first, Js::Json(Value::Array(_))).into())),
        ("Math", _) => {
            let numbers = arguments.iter().map(to_number);
            let n = to_number(&first);
            Ok(number(match name {
                "max" => numbers.fold(f64::NEG_INFINITY, f64::max),
                "min" => numbers.fold(f64::INFINITY, f64::min),
                "floor" => n.floor(),
                "ceil" => n.ceil(),
                "round" => (n + 0.5).floor(),
                "abs" => n.abs(),
                "trunc" => n.trunc(),
                other => return type_error(format!("Math.{other} is not supported")),
            }))
        }
        _ => {
            let _ = machine;
            type_error(format!("{object}.{name} is not supported"))
        }
    }
}

fn call_string(machine: &mut Machine<'_>, s: &str, name: &str, arguments: &[Js]) -> Result<Js, ScriptError> {
    let argument = |n: usize| arguments.get(n).map(to_text).unwrap_or_default();
    let boolean = |b: bool| Ok(Js::Json(b.into()));
    let chars = || s.chars().collect::<Vec<char>>();
    match name {
        "startsWith" => boolean(s.starts_with(&argument(0))),
        "endsWith" => boolean(s.ends_with(&argument(0))),
        "includes" => boolean(s.contains(&argument(0))),
        "indexOf" | "lastIndexOf" => {
            let needle = argument(0);
            let found = if name == "indexOf" { s.find(&needle) } else { s.rfind(&needle) };
            Ok(number(found.map_or(-1.0, |at| s[..at].chars().count() as f64)))
        }
        "slice" | "substring" => {
            let chars = chars();
            let negative = name == "slice";
            let from = index(arguments.first(), chars.len(), 0, negative);
            let to = index(arguments.get(1), chars.len(), chars.len(), negative);
            let (from, to) = if !negative && from > to { (to, from) } else { (from, to.max(from)) };
            text(chars[from..to].iter().collect::<String>())
        }
        "charAt" | "at" => {
            let chars = chars();
            let at = index(arguments.first(), chars.len(), 0, name == "at");
            text(chars.get(at).map(char::to_string).unwrap_or_default())
        }
        "toUpperCase" => text(s.to_uppercase()),
        "toLowerCase" => text(s.to_lowercase()),
        "trim" => text(s.trim()),
        "trimStart" => text(s.trim_start()),
        "trimEnd" => text(s.trim_end()),
        "toString" => text(s),
        "concat" => text(arguments.iter().fold(s.to_owned(), |all, a| all + &to_text(a))),
        "repeat" => {
            let n = to_number(arguments.first().unwrap_or(&Js::Undefined));
            if !(0.0..=SIZE_MAX as f64).contains(&n) || (n as usize).saturating_mul(s.len()) > SIZE_MAX {
                return Err(ScriptError::Size);
            }
            text(s.repeat(n as usize))
        }
        "padStart" | "padEnd" => {
            let width = index(arguments.first(), SIZE_MAX, 0, false);
            let fill = arguments.get(1).map_or(" ".to_owned(), to_text);
            let missing = width.saturating_sub(s.chars().count());
            let pad: String = fill.chars().cycle().take(if fill.is_empty() { 0 } else { missing }).collect();
            text(if name == "padStart" { pad + s } else { s.to_owned() + &pad })
        }
        "split" => {
            let parts: Vec<Value> = match arguments.first() {
                None | Some(Js::Undefined) => vec![s.into()],
                Some(separator) => match compiled(separator) {
                    Some(regex) => regex?.0.split(s).map(Value::from).collect(),
                    None => match to_text(separator).as_str() {
                        "" => s.chars().map(|c| Value::from(c.to_string())).collect(),
                        separator => s.split(separator).map(Value::from).collect(),
                    },
                },
            };
            Ok(Js::Json(Value::Array(parts)))
        }
        "match" => match arguments.first().and_then(compiled) {
            Some(regex) => {
                let (regex, all) = regex?;
                if all {
                    let found: Vec<Value> = regex.find_iter(s).map(|m| m.as_str().into()).collect();
                    return Ok(Js::Json(if found.is_empty() { Value::Null } else { Value::Array(found) }));
                }
                Ok(Js::Json(regex.captures(s).map_or(Value::Null, |c| {
                    Value::Array(c.iter().map(|g| g.map_or(Value::Null, |g| g.as_str().into())).collect())
                })))
            }
            None => type_error("match needs a regular expression"),
        },
        "replace" | "replaceAll" => {
            let pattern = arguments.first().cloned().unwrap_or(Js::Undefined);
            let by = arguments.get(1).cloned().unwrap_or(Js::Undefined);
            replace(machine, s, &pattern, &by, name == "replaceAll")
        }
        other => type_error(format!("{other} is not a method of strings")),
    }
}

fn replace(machine: &mut Machine<'_>, s: &str, pattern: &Js, by: &Js, all: bool) -> Result<Js, ScriptError> {
    let function = matches!(by, Js::Function(_) | Js::Builtin(_));
    let Some(regex) = compiled(pattern) else {
        let pattern = to_text(pattern);
        let with = if function { to_text(&machine.call(by, &[text(pattern.as_str())?])?) } else { to_text(by) };
        if with.len().saturating_mul(s.len() + 1) > SIZE_MAX {
            return Err(ScriptError::Size);
        }
        return text(if all { s.replace(&pattern, &with) } else { s.replacen(&pattern, &with, 1) });
    };
    let (regex, global) = regex?;
    let mut out = String::new();
    let mut last = 0;
    for found in regex.captures_iter(s) {
        let whole = found.get(0).expect("a match has a whole");
        out.push_str(&s[last..whole.start()]);
        last = whole.end();
        if function {
            let groups: Result<Vec<Js>, ScriptError> =
                found.iter().map(|g| g.map_or(Ok(Js::Undefined), |g| text(g.as_str()))).collect();
            out.push_str(&to_text(&machine.call(by, &groups?)?));
        } else {
            // `$1` as JavaScript writes it.
            let template = to_text(by);
            let mut rest = template.as_str();
            while let Some(at) = rest.find('$') {
                out.push_str(&rest[..at]);
                let tail = &rest[at + 1..];
                let digits: String = tail.chars().take_while(char::is_ascii_digit).take(2).collect();
                match (digits.parse::<usize>(), tail.starts_with('&')) {
                    (Ok(n), _) => {
                        out.push_str(found.get(n).map_or("", |g| g.as_str()));
                        rest = &tail[digits.len()..];
                    }
                    (_, true) => {
                        out.push_str(whole.as_str());
                        rest = &tail[1..];
                    }
                    _ => {
                        out.push('$');
                        rest = tail;
                    }
                }
            }
            out.push_str(rest);
        }
        if out.len() > SIZE_MAX {
            return Err(ScriptError::Size);
        }
        if !global && !all {
            break;
        }
    }
    out.push_str(&s[last..]);
    text(out)
}

fn call_list(machine: &mut Machine<'_>, list: &[Value], name: &str, arguments: &[Js]) -> Result<Js, ScriptError> {
    let first = arguments.first().cloned().unwrap_or(Js::Undefined);
    let each = |machine: &mut Machine<'_>, n: usize| -> Result<Js, ScriptError> {
        machine.call(&first, &[Js::Json(list[n].clone()), Js::Json(n.into())])
    };
    match name {
        "map" | "flatMap" => {
            let mut out = Vec::new();
            for n in 0..list.len() {
                match (name, value_of(each(machine, n)?)) {
                    ("flatMap", Value::Array(more)) => out.extend(more),
                    (_, value) => out.push(value),
                }
            }
            Ok(Js::Json(Value::Array(out)))
        }
        "filter" => {
            let mut out = Vec::new();
            for n in 0..list.len() {
                if truthy(&each(machine, n)?) {
                    out.push(list[n].clone());
                }
            }
            Ok(Js::Json(Value::Array(out)))
        }
        "find" | "findIndex" | "some" | "every" => {
            for n in 0..list.len() {
                let yes = truthy(&each(machine, n)?);
                match name {
                    "find" if yes => return Ok(Js::Json(list[n].clone())),
                    "findIndex" if yes => return Ok(Js::Json(n.into())),
                    "some" if yes => return Ok(Js::Json(true.into())),
                    "every" if !yes => return Ok(Js::Json(false.into())),
                    _ => {}
                }
            }
            Ok(match name {
                "find" => Js::Undefined,
                "findIndex" => number(-1.0),
                "some" => Js::Json(false.into()),
                _ => Js::Json(true.into()),
            })
        }
        "reduce" => {
            let mut result = match arguments.get(1) {
                Some(start) => start.clone(),
                None if list.is_empty() => return type_error("reduce of an empty list without a start"),
                None => Js::Json(list[0].clone()),
            };
            for (n, value) in list.iter().enumerate().skip(usize::from(arguments.len() < 2)) {
                result = machine.call(&first, &[result, Js::Json(value.clone()), Js::Json(n.into())])?;
            }
            Ok(result)
        }
        "includes" => Ok(Js::Json(list.iter().any(|v| strict_equal(&Js::Json(v.clone()), &first)).into())),
        "indexOf" => {
            Ok(number(list.iter().position(|v| strict_equal(&Js::Json(v.clone()), &first)).map_or(-1.0, |n| n as f64)))
        }
        "join" => {
            let separator = if arguments.is_empty() { ",".to_owned() } else { to_text(&first) };
            let parts: Vec<String> =
                list.iter().map(|v| if v.is_null() { String::new() } else { to_text(&Js::Json(v.clone())) }).collect();
            text(parts.join(&separator))
        }
        "slice" => {
            let from = index(arguments.first(), list.len(), 0, true);
            let to = index(arguments.get(1), list.len(), list.len(), true).max(from);
            Ok(Js::Json(Value::Array(list[from..to].to_vec())))
        }
        "concat" => {
            let mut out = list.to_vec();
            for more in arguments {
                match value_of(more.clone()) {
                    Value::Array(more) => out.extend(more),
                    value => out.push(value),
                }
            }
            if out.len() > SIZE_MAX {
                return Err(ScriptError::Size);
            }
            Ok(Js::Json(Value::Array(out)))
        }
        "reverse" => Ok(Js::Json(Value::Array(list.iter().rev().cloned().collect()))),
        "sort" => {
            let mut out = list.to_vec();
            out.sort_by_cached_key(|v| to_text(&Js::Json(v.clone())));
            Ok(Js::Json(Value::Array(out)))
        }
        "at" => Ok(list.get(index(arguments.first(), list.len(), 0, true)).cloned().map_or(Js::Undefined, Js::Json)),
        "toString" => text(to_text(&Js::Json(Value::Array(list.to_vec())))),
        other => type_error(format!("{other} is not a method of lists")),
    }
}
