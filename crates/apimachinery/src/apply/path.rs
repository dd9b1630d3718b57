//! One step of a path through an object, as apply names it: a field, an element by its keys or by its value, an index.
//!
//! Steps are ordered (fields, keys, values, indexes) so that sets of them are sorted lists.
//!
//! Follows: `sigs.k8s.io/structured-merge-diff/fieldpath`.

use std::cmp::Ordering;
use std::fmt;

use crate::json::{Number, Str, Value};
use crate::text;

/// One step.
#[derive(Clone, Debug)]
pub enum PathElement {
    /// A member of an object.
    Field(Str),
    /// The element of a list map with these keys, sorted by name.
    Key(Vec<(Str, Value)>),
    /// An element of a set.
    Value(Value),
    /// An element by position. Only read from stored field sets, never made.
    Index(i64),
}

/// Why a step of a stored field set cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseElementError {
    #[error("key must be 2 characters long:")]
    TooShort,
    #[error("missing colon: {0}")]
    MissingColon(String),
    #[error("{0}")]
    Content(String),
}

impl PathElement {
    pub fn field(name: &str) -> Self {
        PathElement::Field(name.into())
    }

    /// The step as a member name of `fieldsV1`: `f:spec`, `k:{"name":"a"}`, `v:"x"`, `i:0`.
    pub fn to_key(&self) -> String {
        match self {
            PathElement::Field(name) => format!("f:{name}"),
            PathElement::Key(keys) => {
                let mut out = String::with_capacity(32 * keys.len());
                out.push_str("k:{");
                for (i, (name, value)) in keys.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    text::push_json_string(name, &mut out);
                    out.push(':');
                    text::push_json(value, &mut out);
                }
                out.push('}');
                out
            }
            PathElement::Value(value) => {
                let mut out = String::from("v:");
                text::push_json(value, &mut out);
                out
            }
            PathElement::Index(i) => format!("i:{i}"),
        }
    }

    /// Reads what [`Self::to_key`] writes; `None` for kinds of steps that are not known and must be skipped.
    pub fn from_key(key: &str) -> Result<Option<Self>, ParseElementError> {
        let bytes = key.as_bytes();
        if bytes.len() < 2 {
            return Err(ParseElementError::TooShort);
        }
        if bytes[1] != b':' {
            return Err(ParseElementError::MissingColon(key.to_owned()));
        }
        let rest = key.get(2..).unwrap_or("");
        let parse =
            |rest: &str| Value::from_slice(rest.as_bytes()).map_err(|e| ParseElementError::Content(e.to_string()));
        Ok(Some(match bytes[0] {
            b'f' => PathElement::field(rest),
            b'v' => PathElement::Value(parse(rest)?),
            b'k' => match parse(rest)? {
                Value::Object(members) => PathElement::Key(members.into_iter().collect()),
                _ => return Err(ParseElementError::Content("expected an object of keys".to_owned())),
            },
            b'i' => PathElement::Index(
                rest.parse().map_err(|_| ParseElementError::Content(format!("invalid index {rest}")))?,
            ),
            _ => return Ok(None),
        }))
    }
}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathElement::Field(name) => write!(f, ".{name}"),
            PathElement::Key(keys) => {
                f.write_str("[")?;
                for (i, (name, value)) in keys.iter().enumerate() {
                    if i > 0 {
                        f.write_str(",")?;
                    }
                    write!(f, "{name}={}", print_value(value))?;
                }
                f.write_str("]")
            }
            PathElement::Value(value) => write!(f, "[={}]", print_value(value)),
            PathElement::Index(i) => write!(f, "[{i}]"),
        }
    }
}

/// A path in the form of conflict messages: `.spec.containers[name="c"].image`.
pub fn print_path(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}

fn print_value(value: &Value) -> String {
    match value {
        Value::String(s) => text::quote(s),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(print_value).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(members) => members.iter().map(|(k, v)| format!("{k}={}", print_value(v))).collect(),
        scalar => text::plain(scalar),
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |e: &PathElement| match e {
            PathElement::Field(_) => 0,
            PathElement::Key(_) => 1,
            PathElement::Value(_) => 2,
            PathElement::Index(_) => 3,
        };
        match (self, other) {
            (PathElement::Field(a), PathElement::Field(b)) => a.as_str().cmp(b.as_str()),
            (PathElement::Key(a), PathElement::Key(b)) => {
                for ((a_name, a_value), (b_name, b_value)) in a.iter().zip(b) {
                    let order = a_name.as_str().cmp(b_name.as_str()).then_with(|| compare_values(a_value, b_value));
                    if order.is_ne() {
                        return order;
                    }
                }
                a.len().cmp(&b.len())
            }
            (PathElement::Value(a), PathElement::Value(b)) => compare_values(a, b),
            (PathElement::Index(a), PathElement::Index(b)) => a.cmp(b),
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PathElement {}

/// A total order of values in which `1` and `1.0` are equal.
pub fn compare_values(a: &Value, b: &Value) -> Ordering {
    let rank = |v: &Value| match v {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    };
    match (a, b) {
        (Value::Number(Number::Int(a)), Value::Number(Number::Int(b))) => a.cmp(b),
        (Value::Number(_), Value::Number(_)) => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
        (Value::String(a), Value::String(b)) => a.as_str().cmp(b.as_str()),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            for (a, b) in a.iter().zip(b) {
                let order = compare_values(a, b);
                if order.is_ne() {
                    return order;
                }
            }
            a.len().cmp(&b.len())
        }
        (Value::Object(a), Value::Object(b)) => {
            for ((a_key, a_value), (b_key, b_value)) in a.iter().zip(b.iter()) {
                let order = a_key.as_str().cmp(b_key.as_str()).then_with(|| compare_values(a_value, b_value));
                if order.is_ne() {
                    return order;
                }
            }
            a.len().cmp(&b.len())
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

/// Equality in which `1` and `1.0` are equal.
pub fn equal_values(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => compare_values(a, b).is_eq(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal_values(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b.iter()).all(|((ak, av), (bk, bv))| ak == bk && equal_values(av, bv))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn steps_are_written_and_read() {
        for (key, printed) in [
            ("f:spec", ".spec"),
            ("f:a/b.c", ".a/b.c"),
            (r#"k:{"name":"c"}"#, r#"[name="c"]"#),
            (r#"k:{"containerPort":80,"protocol":"TCP"}"#, r#"[containerPort=80,protocol="TCP"]"#),
            (r#"v:"x\u003c""#, r#"[="x<"]"#),
            ("v:1.5", "[=1.5]"),
            ("v:true", "[=true]"),
            ("i:3", "[3]"),
        ] {
            let step = PathElement::from_key(key).expect(key).expect(key);
            assert_eq!((step.to_key().as_str(), step.to_string().as_str()), (key, printed));
        }
        assert_eq!(PathElement::from_key("x:1"), Ok(None));
        assert_eq!(PathElement::from_key("f"), Err(ParseElementError::TooShort));
        assert_eq!(PathElement::from_key("foo"), Err(ParseElementError::MissingColon("foo".into())));
        assert!(PathElement::from_key("v:{").is_err());
        assert!(PathElement::from_key("fé").is_err());
    }

    #[test]
    fn steps_are_totally_ordered() {
        let steps = [
            PathElement::field("a"),
            PathElement::field("b"),
            PathElement::Key(vec![("a".into(), 1.into())]),
            PathElement::Key(vec![("a".into(), 1.into()), ("b".into(), 1.into())]),
            PathElement::Key(vec![("a".into(), "x".into())]),
            PathElement::Value(1.into()),
            PathElement::Value(1.5.into()),
            PathElement::Value("1".into()),
            PathElement::Value(false.into()),
            PathElement::Value(json!([])),
            PathElement::Value(json!({})),
            PathElement::Value(Value::Null),
            PathElement::Index(0),
        ];
        for (i, a) in steps.iter().enumerate() {
            for (j, b) in steps.iter().enumerate() {
                assert_eq!(a.cmp(b), i.cmp(&j), "{a} {b}");
            }
        }
        assert!(equal_values(&json!({"a": [1]}), &json!({"a": [1.0]})));
    }
}
