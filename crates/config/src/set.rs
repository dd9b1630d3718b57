//! Helm's `--set` language: `a.b=c,d[0].e=f,g={x,y}`, with `\` before `,` `.` `=` `[` to mean the character itself.
//!
//! A bare `true`, `false`, `null` or integer is that value; everything else is a string.
//! Follows: helm.sh/helm/v3/pkg/strvals.

use serde_json::{Map, Value};

const INDEX_MAX: usize = 65_536;

/// Applies one `--set` argument to `values`. The error says what is wrong with the argument.
pub fn parse_set(argument: &str, values: &mut Value) -> Result<(), String> {
    let mut rest = argument.chars().peekable();
    loop {
        let mut path = Vec::new();
        // The key part, up to '='.
        loop {
            let (word, stop) = take(&mut rest, &['.', '=', '[', ',']);
            match stop {
                Some('.') => {
                    if !word.is_empty() {
                        path.push(Step::Key(word));
                    } else if path.is_empty() {
                        return Err("a key is missing before '.'".into());
                    }
                }
                Some('[') => {
                    if !word.is_empty() {
                        path.push(Step::Key(word));
                    }
                    let (index, stop) = take(&mut rest, &[']']);
                    if stop.is_none() {
                        return Err("']' is missing".into());
                    }
                    let index: usize = index.parse().map_err(|_| format!("{index:?} is not an index"))?;
                    if index > INDEX_MAX {
                        return Err(format!("index {index} is larger than {INDEX_MAX}"));
                    }
                    path.push(Step::Index(index));
                }
                Some('=') => {
                    if !word.is_empty() {
                        path.push(Step::Key(word));
                    }
                    break;
                }
                _ if word.is_empty() && path.is_empty() => return Err("a key is missing".into()),
                _ => return Err(format!("key {:?} has no value; write KEY=VALUE", word)),
            }
        }
        if !matches!(path.first(), Some(Step::Key(_))) {
            return Err("a key is missing before '='".into());
        }
        let (value, more) = take_value(&mut rest)?;
        put(values, &path, value);
        if !more {
            return Ok(());
        }
    }
}

enum Step {
    Key(String),
    Index(usize),
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Reads up to one of `stops` (which is consumed and returned) or the end; `\x` is `x`.
fn take(rest: &mut Chars<'_>, stops: &[char]) -> (String, Option<char>) {
    let mut word = String::new();
    while let Some(c) = rest.next() {
        match c {
            '\\' => word.extend(rest.next()),
            c if stops.contains(&c) => return (word, Some(c)),
            c => word.push(c),
        }
    }
    (word, None)
}

fn take_value(rest: &mut Chars<'_>) -> Result<(Value, bool), String> {
    if rest.peek() == Some(&'{') {
        rest.next();
        let mut items = Vec::new();
        loop {
            let (word, stop) = take(rest, &[',', '}']);
            if !(stop == Some('}') && word.is_empty() && items.is_empty()) {
                items.push(scalar(word));
            }
            match stop {
                Some('}') => break,
                None => return Err("'}' is missing".into()),
                _ => {}
            }
        }
        return match rest.next() {
            None => Ok((Value::Array(items), false)),
            Some(',') => Ok((Value::Array(items), true)),
            Some(c) => Err(format!("unexpected {c:?} after '}}'")),
        };
    }
    let (word, stop) = take(rest, &[',']);
    Ok((scalar(word), stop == Some(',') && rest.peek().is_some()))
}

fn scalar(word: String) -> Value {
    match word.as_str() {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        "0" => Value::from(0),
        // A leading zero means text: "0644" and phone numbers stay what was typed.
        _ if word.starts_with('0') || word.starts_with('+') => Value::String(word),
        _ => word.parse::<i64>().map(Value::from).unwrap_or(Value::String(word)),
    }
}

fn put(at: &mut Value, path: &[Step], value: Value) {
    let Some((step, rest)) = path.split_first() else {
        *at = value;
        return;
    };
    match step {
        Step::Key(key) => {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            let slot = at.as_object_mut().expect("just made").entry(key.clone()).or_insert(Value::Null);
            put(slot, rest, value);
        }
        Step::Index(index) => {
            if !at.is_array() {
                *at = Value::Array(Vec::new());
            }
            let list = at.as_array_mut().expect("just made");
            if list.len() <= *index {
                list.resize(index + 1, Value::Null);
            }
            put(&mut list[*index], rest, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_become_values_as_in_helm() {
        for (argument, want) in [
            ("a=b", json!({"a": "b"})),
            ("a.b=1,c=true", json!({"a": {"b": 1}, "c": true})),
            ("a[0]=x,a[1]=y", json!({"a": ["x", "y"]})),
            ("a[1].b=x", json!({"a": [null, {"b": "x"}]})),
            ("a={x,y,1}", json!({"a": ["x", "y", 1]})),
            ("a={}", json!({"a": []})),
            (r"a\.b=c", json!({"a.b": "c"})),
            (r"a=b\,c", json!({"a": "b,c"})),
            ("a=", json!({"a": ""})),
            ("a=null", json!({"a": null})),
            ("a=0644", json!({"a": "0644"})),
            ("a=0", json!({"a": 0})),
            ("a=1.5", json!({"a": "1.5"})),
            ("a=k=v:NoSchedule", json!({"a": "k=v:NoSchedule"})),
        ] {
            let mut got = json!({});
            parse_set(argument, &mut got).unwrap_or_else(|e| panic!("{argument}: {e}"));
            assert_eq!(got, want, "{argument}");
        }
    }

    #[test]
    fn a_bad_argument_says_what_is_missing() {
        for (argument, want) in [
            ("a", "no value"),
            ("=b", "key is missing"),
            ("a[x]=1", "not an index"),
            ("a[0=1", "']' is missing"),
            ("a={x", "'}' is missing"),
            ("a[99999999]=1", "larger than"),
        ] {
            let got = parse_set(argument, &mut json!({})).unwrap_err();
            assert!(got.contains(want), "{argument}: {got}");
        }
    }
}
