//! The functions templates may call.

use base64::Engine;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

type Answer = Result<Value, String>;

/// Is a value taken for true? Empty things are not.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A value as text.
pub(super) fn print(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(print).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut parts: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", print(value))).collect();
            parts.sort();
            format!("map[{}]", parts.join(" "))
        }
        Value::Number(number) => config::stored::number_text(number),
        Value::Bool(value) => value.to_string(),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

fn number(value: &Value) -> f64 {
    match value {
        Value::Number(number) => number.as_f64().unwrap_or_default(),
        Value::String(text) => text.parse().unwrap_or_default(),
        Value::Bool(value) => f64::from(u8::from(*value)),
        _ => 0.0,
    }
}

fn whole(value: f64) -> Value {
    json!(value as i64)
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

fn yaml(value: &Value) -> Result<String, String> {
    config::yaml::to_string(value)
        .map(|text| text.trim_end_matches('\n').to_string())
        .map_err(|error| error.to_string())
}

fn indent(spaces: &Value, text: &Value) -> String {
    let pad = " ".repeat((number(spaces) as usize).min(1000));
    format!("{pad}{}", print(text).replace('\n', &format!("\n{pad}")))
}

pub(super) fn call(name: &str, arguments: Vec<Value>) -> Answer {
    let text = |index: usize| print(arguments.get(index).unwrap_or(&Value::Null));
    let numbers = || arguments.iter().map(number);
    let string = |text: String| Ok(Value::String(text));
    match (name, arguments.as_slice()) {
        ("not", [value]) => Ok(json!(!truth(value))),
        ("empty", [value]) => Ok(json!(!truth(value))),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => Ok(json!(rest.iter().any(|value| same(first, value)))),
        ("ne", [a, b]) => Ok(json!(!same(a, b))),
        ("lt", [a, b]) => Ok(json!(less(a, b))),
        ("gt", [a, b]) => Ok(json!(less(b, a))),
        ("le", [a, b]) => Ok(json!(!less(b, a))),
        ("ge", [a, b]) => Ok(json!(!less(a, b))),
        ("default", [default, value]) => Ok(if truth(value) { value.clone() } else { default.clone() }),
        ("default", [default]) => Ok(default.clone()),
        ("coalesce", values) => Ok(values.iter().find(|value| truth(value)).cloned().unwrap_or_default()),
        ("ternary", [yes, no, which]) => Ok(if truth(which) { yes.clone() } else { no.clone() }),
        ("required", [message, value]) => match value {
            Value::Null => Err(print(message)),
            Value::String(text) if text.is_empty() => Err(print(message)),
            value => Ok(value.clone()),
        },
        ("fail", [message]) => Err(print(message)),
        ("quote", values) => string(
            values
                .iter()
                .filter(|v| !v.is_null())
                .map(|v| Value::String(print(v)).to_string())
                .collect::<Vec<_>>()
                .join(" "),
        ),
        ("squote", values) => string(
            values.iter().filter(|v| !v.is_null()).map(|v| format!("'{}'", print(v))).collect::<Vec<_>>().join(" "),
        ),
        ("print", values) => string(values.iter().map(print).collect::<Vec<_>>().join("")),
        ("println", values) => string(values.iter().map(print).collect::<Vec<_>>().join(" ") + "\n"),
        ("printf", [format, values @ ..]) => formatted(&print(format), values).map(Value::String),
        ("toString", [_]) => string(text(0)),
        ("upper", [_]) => string(text(0).to_uppercase()),
        ("lower", [_]) => string(text(0).to_lowercase()),
        ("title", [_]) => string(title(&text(0))),
        ("trim", [_]) => string(text(0).trim().to_string()),
        ("trimSuffix", [_, _]) => string(text(1).strip_suffix(&text(0)).map_or_else(|| text(1), str::to_string)),
        ("trimPrefix", [_, _]) => string(text(1).strip_prefix(&text(0)).map_or_else(|| text(1), str::to_string)),
        ("replace", [_, _, _]) => string(text(2).replace(&text(0), &text(1))),
        ("contains", [_, _]) => Ok(json!(text(1).contains(&text(0)))),
        ("hasPrefix", [_, _]) => Ok(json!(text(1).starts_with(&text(0)))),
        ("hasSuffix", [_, _]) => Ok(json!(text(1).ends_with(&text(0)))),
        ("trunc", [length, _]) => {
            let chars: Vec<char> = text(1).chars().collect();
            let length = number(length) as i64;
            let keep = (length.unsigned_abs() as usize).min(chars.len());
            string(if length < 0 { chars[chars.len() - keep..].iter() } else { chars[..keep].iter() }.collect())
        }
        ("repeat", [count, _]) => string(text(1).repeat((number(count) as usize).min(10_000))),
        ("indent", [spaces, value]) => string(indent(spaces, value)),
        ("nindent", [spaces, value]) => string(format!("\n{}", indent(spaces, value))),
        ("toYaml", [value]) => yaml(value).map(Value::String),
        ("toJson", [value]) => string(config::stored::canonical(value)),
        ("fromYaml", [_]) => config::yaml::from_str(&text(0)).map_err(|error| error.to_string()),
        ("fromJson", [_]) => serde_json::from_str(&text(0)).map_err(|error| error.to_string()),
        ("b64enc", [_]) => string(base64::engine::general_purpose::STANDARD.encode(text(0))),
        ("b64dec", [_]) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text(0)).map_err(|error| error.to_string())?;
            string(String::from_utf8_lossy(&bytes).into_owned())
        }
        ("sha256sum", [_]) => {
            string(Sha256::digest(text(0).as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect())
        }
        ("int" | "int64" | "atoi", [value]) => Ok(whole(number(value).trunc())),
        ("float64", [value]) => Ok(json!(number(value))),
        ("add", _) => Ok(whole(numbers().map(f64::trunc).sum())),
        ("add1", [value]) => Ok(whole(number(value).trunc() + 1.0)),
        ("sub", [a, b]) => Ok(whole(number(a).trunc() - number(b).trunc())),
        ("mul", _) => Ok(whole(numbers().map(f64::trunc).product())),
        ("div" | "mod", [_, b]) if number(b).trunc() == 0.0 => Err("division by zero".into()),
        ("div", [a, b]) => Ok(json!(number(a) as i64 / number(b) as i64)),
        ("mod", [a, b]) => Ok(json!(number(a) as i64 % number(b) as i64)),
        ("max", _) => Ok(whole(numbers().fold(f64::MIN, f64::max))),
        ("min", _) => Ok(whole(numbers().fold(f64::MAX, f64::min))),
        ("len", [value]) => match value {
            Value::String(text) => Ok(json!(text.len())),
            Value::Array(items) => Ok(json!(items.len())),
            Value::Object(map) => Ok(json!(map.len())),
            other => Err(format!("{} has no length", kind(other))),
        },
        ("list" | "tuple", values) => Ok(json!(values)),
        ("dict", values) => {
            let pairs =
                values.chunks(2).map(|pair| (print(&pair[0]), pair.get(1).cloned().unwrap_or_else(|| json!(""))));
            Ok(Value::Object(pairs.collect()))
        }
        ("get", [Value::Object(map), key]) => Ok(map.get(&print(key)).cloned().unwrap_or_else(|| json!(""))),
        ("hasKey", [Value::Object(map), key]) => Ok(json!(map.contains_key(&print(key)))),
        ("keys", [Value::Object(map)]) => Ok(json!(map.keys().collect::<Vec<_>>())),
        ("values", [Value::Object(map)]) => Ok(json!(map.values().collect::<Vec<_>>())),
        ("merge", [Value::Object(first), rest @ ..]) => {
            let mut merged = first.clone();
            rest.iter().filter_map(Value::as_object).for_each(|map| fill(&mut merged, map));
            Ok(Value::Object(merged))
        }
        ("has", [item, Value::Array(items)]) => Ok(json!(items.iter().any(|other| same(item, other)))),
        ("first", [Value::Array(items)]) => Ok(items.first().cloned().unwrap_or_default()),
        ("last", [Value::Array(items)]) => Ok(items.last().cloned().unwrap_or_default()),
        ("rest", [Value::Array(items)]) => Ok(json!(items.get(1..).unwrap_or_default())),
        ("append", [Value::Array(items), item]) => Ok(json!([items.as_slice(), std::slice::from_ref(item)].concat())),
        ("concat", lists) => Ok(json!(lists.iter().filter_map(Value::as_array).flatten().collect::<Vec<_>>())),
        ("uniq", [Value::Array(items)]) => {
            let mut seen: Vec<Value> = Vec::new();
            items.iter().for_each(|item| {
                if !seen.contains(item) {
                    seen.push(item.clone());
                }
            });
            Ok(json!(seen))
        }
        ("sortAlpha", [Value::Array(items)]) => {
            let mut texts: Vec<String> = items.iter().map(print).collect();
            texts.sort();
            Ok(json!(texts))
        }
        ("until", [count]) => Ok(json!((0..(number(count) as i64).clamp(0, 10_000)).collect::<Vec<_>>())),
        ("join", [separator, Value::Array(items)]) => {
            string(items.iter().map(print).collect::<Vec<_>>().join(&print(separator)))
        }
        ("splitList", [separator, value]) => {
            Ok(json!(print(value).split(print(separator).as_str()).collect::<Vec<_>>()))
        }
        ("index", [value, keys @ ..]) => index(value, keys),
        ("typeOf" | "kindOf", [value]) => string(go_kind(value).into()),
        ("kindIs" | "typeIs", [wanted, value]) => Ok(json!(print(wanted) == go_kind(value))),
        (name, arguments) if KNOWN.contains(&name) => {
            let kinds: Vec<&str> = arguments.iter().map(kind).collect();
            Err(format!(
                "{name} does not take these arguments: {}",
                if kinds.is_empty() { "none".into() } else { kinds.join(", ") }
            ))
        }
        (name, _) => Err(format!("function {name:?} is not known here")),
    }
}

/// What is told apart from a wrong name when the arguments do not fit.
const KNOWN: &[&str] = &[
    "not",
    "empty",
    "eq",
    "ne",
    "lt",
    "gt",
    "le",
    "ge",
    "default",
    "ternary",
    "required",
    "fail",
    "printf",
    "toString",
    "upper",
    "lower",
    "title",
    "trim",
    "trimSuffix",
    "trimPrefix",
    "replace",
    "contains",
    "hasPrefix",
    "hasSuffix",
    "trunc",
    "repeat",
    "indent",
    "nindent",
    "toYaml",
    "toJson",
    "fromYaml",
    "fromJson",
    "b64enc",
    "b64dec",
    "sha256sum",
    "int",
    "int64",
    "atoi",
    "float64",
    "add1",
    "sub",
    "div",
    "mod",
    "len",
    "get",
    "hasKey",
    "keys",
    "values",
    "merge",
    "has",
    "first",
    "last",
    "rest",
    "append",
    "uniq",
    "sortAlpha",
    "until",
    "join",
    "splitList",
    "index",
    "typeOf",
    "kindOf",
    "kindIs",
    "typeIs",
];

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

fn less(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a < b,
        _ => number(a) < number(b),
    }
}

fn title(text: &str) -> String {
    let mut start = true;
    text.chars()
        .map(|c| {
            let shown = if start { c.to_ascii_uppercase() } else { c };
            start = c.is_whitespace();
            shown
        })
        .collect()
}

fn fill(target: &mut Map<String, Value>, source: &Map<String, Value>) {
    for (key, value) in source {
        match (target.get_mut(key), value) {
            (Some(Value::Object(target)), Value::Object(source)) => fill(target, source),
            (Some(_), _) => {}
            (None, value) => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

fn index(value: &Value, keys: &[Value]) -> Answer {
    let mut value = value;
    for key in keys {
        value = match (value, key) {
            (Value::Object(map), key) => map.get(&print(key)).unwrap_or(&Value::Null),
            (Value::Array(items), Value::Number(_)) => {
                items.get(number(key) as usize).ok_or_else(|| format!("index {} is out of range", print(key)))?
            }
            (other, _) => return Err(format!("cannot index {}", kind(other))),
        };
    }
    Ok(value.clone())
}

/// `%s %v %d %q %%`, with plain widths left to the manifests' author.
fn formatted(format: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let verb = chars.next();
        if verb == Some('%') {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else { return Err("printf has too few arguments".into()) };
        match verb {
            Some('s' | 'v') => out.push_str(&print(value)),
            Some('d') => out.push_str(&(number(value) as i64).to_string()),
            Some('q') => out.push_str(&Value::String(print(value)).to_string()),
            other => return Err(format!("printf: %{} is not supported here", other.unwrap_or(' '))),
        }
    }
    Ok(out)
}
