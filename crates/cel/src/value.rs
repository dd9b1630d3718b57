//! Values at run time: equality, ordering, size, and the way in from JSON.

use std::any::Any;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use apimachinery::json::{Number, Value};
use jiff::{SignedDuration, Timestamp};

use crate::types::{Decl, Type};

/// A map's key. Numbers that are equal are one key, whatever their type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    /// Wide enough for `int` and `uint`.
    Integer(i128),
    String(Arc<str>),
}

/// A value with functions of its own, made by a library.
pub trait Opaque: Any + Send + Sync + fmt::Debug {
    fn type_name(&self) -> &'static str;
    fn equals(&self, other: &dyn Opaque) -> bool;
    /// For `string(x)`, where the type has such a conversion.
    fn text(&self) -> Option<String> {
        None
    }
    fn as_any(&self) -> &dyn Any;
}

/// A value.
#[derive(Clone, Debug)]
pub enum Val {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<Vec<Val>>),
    /// Maps and objects; whether a key remembers that it was an `uint` does not matter to any function.
    Map(Arc<BTreeMap<Key, Val>>),
    Duration(SignedDuration),
    Timestamp(Timestamp),
    Type(Arc<Type>),
    Optional(Option<Arc<Val>>),
    Opaque(Arc<dyn Opaque>),
}

impl From<bool> for Val {
    fn from(v: bool) -> Self {
        Val::Bool(v)
    }
}
impl From<i64> for Val {
    fn from(v: i64) -> Self {
        Val::Int(v)
    }
}
impl From<&str> for Val {
    fn from(v: &str) -> Self {
        Val::String(v.into())
    }
}
impl From<String> for Val {
    fn from(v: String) -> Self {
        Val::String(v.into())
    }
}
impl From<Vec<Val>> for Val {
    fn from(v: Vec<Val>) -> Self {
        Val::List(Arc::new(v))
    }
}

impl Val {
    /// The key this value is in a map, if it can be one.
    pub fn key(&self) -> Option<Key> {
        Some(match self {
            Val::Bool(b) => Key::Bool(*b),
            Val::Int(i) => Key::Integer((*i).into()),
            Val::Uint(u) => Key::Integer((*u).into()),
            Val::Double(d) if d.fract() == 0.0 && d.abs() < 1.8e19 => Key::Integer(*d as i128),
            Val::String(s) => Key::String(s.clone()),
            _ => return None,
        })
    }

    /// The name of the value's type, as error messages write it.
    pub fn type_name(&self) -> String {
        self.type_of().to_string()
    }

    /// The value's type; what a list or a map holds is `dyn`.
    pub fn type_of(&self) -> Type {
        match self {
            Val::Null => Type::Null,
            Val::Bool(_) => Type::Bool,
            Val::Int(_) => Type::Int,
            Val::Uint(_) => Type::Uint,
            Val::Double(_) => Type::Double,
            Val::String(_) => Type::String,
            Val::Bytes(_) => Type::Bytes,
            Val::List(_) => Type::list(Type::Dyn),
            Val::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Val::Duration(_) => Type::Duration,
            Val::Timestamp(_) => Type::Timestamp,
            Val::Type(t) => Type::Type(t.clone()),
            Val::Optional(_) => Type::optional(Type::Dyn),
            Val::Opaque(o) => Type::Opaque(o.type_name()),
        }
    }

    /// Characters, bytes, elements or entries; 1 for everything else. What costs are counted by.
    pub fn size(&self) -> u64 {
        match self {
            Val::String(s) => s.chars().count() as u64,
            Val::Bytes(b) => b.len() as u64,
            Val::List(l) => l.len() as u64,
            Val::Map(m) => m.len() as u64,
            Val::Optional(Some(v)) => v.size(),
            _ => 1,
        }
    }

    /// CEL equality: numbers by value across types, everything else only within its type.
    pub fn equals(&self, other: &Val) -> bool {
        match (self, other) {
            (Val::Null, Val::Null) => true,
            (Val::Bool(a), Val::Bool(b)) => a == b,
            (Val::String(a), Val::String(b)) => a == b,
            (Val::Bytes(a), Val::Bytes(b)) => a == b,
            (Val::Duration(a), Val::Duration(b)) => a == b,
            (Val::Timestamp(a), Val::Timestamp(b)) => a == b,
            (Val::List(a), Val::List(b)) => a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b)),
            (Val::Map(a), Val::Map(b)) => {
                a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| v.equals(w)))
            }
            (Val::Type(a), Val::Type(b)) => same_kind(a, b),
            (Val::Optional(a), Val::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Val::Opaque(a), Val::Opaque(b)) => a.equals(&**b),
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }

    /// Orders values of one kind, and numbers across types; `None` when there is no order (also for NaN).
    pub fn compare(&self, other: &Val) -> Option<Ordering> {
        match (self, other) {
            (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
            (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
            (Val::Uint(a), Val::Uint(b)) => Some(a.cmp(b)),
            (Val::Double(a), Val::Double(b)) => a.partial_cmp(b),
            (Val::Int(a), Val::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Val::Uint(a), Val::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Val::Double(a), Val::Int(b)) => compare_double(*a, (*b).into()),
            (Val::Double(a), Val::Uint(b)) => compare_double(*a, (*b).into()),
            (Val::Int(a), Val::Double(b)) => compare_double(*b, (*a).into()).map(Ordering::reverse),
            (Val::Uint(a), Val::Double(b)) => compare_double(*b, (*a).into()).map(Ordering::reverse),
            (Val::String(a), Val::String(b)) => Some(a.cmp(b)),
            (Val::Bytes(a), Val::Bytes(b)) => Some(a.cmp(b)),
            (Val::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
            (Val::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// A JSON tree as a value of a declared type: strings of format `date-time` become timestamps, and so on. Fields that
    /// the type does not have are left out. `None` as declaration is `dyn`.
    pub fn from_json(value: &Value, decl: Option<&Decl>) -> Val {
        match value {
            Value::Null => Val::Null,
            Value::Bool(b) => Val::Bool(*b),
            Value::Number(n) => from_number(*n, decl),
            Value::String(s) => from_string(s, decl),
            Value::Array(a) => {
                let element = decl.and_then(|d| d.element.as_deref());
                Val::from(a.iter().map(|v| Val::from_json(v, element)).collect::<Vec<_>>())
            }
            Value::Object(m) => {
                let object = decl.and_then(|d| match &d.ty {
                    Type::Object(object) => Some(object),
                    _ => None,
                });
                let element = decl.and_then(|d| d.element.as_deref());
                let entry = |(k, v): (&apimachinery::json::Str, &Value)| {
                    let (field, name): (_, Arc<str>) = match object {
                        None => (element, k.as_str().into()),
                        Some(object) => {
                            let escaped = escape(k);
                            (Some(object.fields.get(&*escaped)?.as_ref()), (&*escaped).into())
                        }
                    };
                    // An unset field and a null one are the same to an object.
                    (object.is_none() || !v.is_null()).then(|| (Key::String(name), Val::from_json(v, field)))
                };
                Val::Map(Arc::new(m.iter().filter_map(entry).collect()))
            }
        }
    }

    /// The value as JSON, `None` for what JSON, or memory, cannot hold.
    pub fn to_json(&self) -> Option<Value> {
        (crate::cost::deep_size(self) < u64::MAX).then(|| self.tree()).flatten()
    }

    fn tree(&self) -> Option<Value> {
        Some(match self {
            Val::Null => Value::Null,
            Val::Bool(b) => (*b).into(),
            Val::Int(i) => (*i).into(),
            Val::Uint(u) => (*u).into(),
            Val::Double(d) => (*d).into(),
            Val::String(s) => (&**s).into(),
            Val::Bytes(b) => base64::Engine::encode(&base64::engine::general_purpose::STANDARD, b).into(),
            Val::List(l) => Value::Array(l.iter().map(Val::tree).collect::<Option<_>>()?),
            Val::Map(m) => {
                let name = |k: &Key| match k {
                    Key::Bool(b) => b.to_string(),
                    Key::Integer(i) => i.to_string(),
                    Key::String(s) => unescape(s),
                };
                Value::Object(m.iter().map(|(k, v)| Some((name(k), v.tree()?))).collect::<Option<_>>()?)
            }
            Val::Duration(d) => crate::stdlib::format_duration(*d).into(),
            Val::Timestamp(t) => t.to_string().into(),
            Val::Optional(Some(v)) => v.tree()?,
            Val::Type(_) | Val::Optional(None) | Val::Opaque(_) => return None,
        })
    }
}

fn from_number(n: Number, decl: Option<&Decl>) -> Val {
    let wanted = decl.map(|d| &d.ty);
    match n {
        Number::Int(i) if wanted == Some(&Type::Double) => Val::Double(i as f64),
        Number::Int(i) => Val::Int(i),
        Number::UInt(u) => Val::Uint(u),
        Number::Float(f) if wanted == Some(&Type::Int) && f.fract() == 0.0 => Val::Int(f as i64),
        Number::Float(f) => Val::Double(f),
    }
}

fn from_string(s: &str, decl: Option<&Decl>) -> Val {
    match decl.map(|d| &d.ty) {
        Some(Type::Timestamp) => match crate::stdlib::parse_timestamp(s) {
            Ok(t) => Val::Timestamp(t),
            Err(_) => s.into(),
        },
        Some(Type::Duration) => match crate::stdlib::parse_duration(s) {
            Ok(d) => Val::Duration(d),
            Err(_) => s.into(),
        },
        Some(Type::Bytes) => match base64::Engine::decode(&base64::engine::general_purpose::STANDARD, s) {
            Ok(bytes) => Val::Bytes(bytes.into()),
            Err(_) => s.into(),
        },
        _ => s.into(),
    }
}

fn compare_double(a: f64, b: i128) -> Option<Ordering> {
    if a.is_nan() {
        return None;
    }
    // Both `int` and `uint` lie within ±2^64; larger doubles compare by sign.
    if a >= 1.85e19 {
        return Some(Ordering::Greater);
    }
    if a <= -9.3e18 {
        return Some(Ordering::Less);
    }
    let whole = a.trunc();
    Some((whole as i128).cmp(&b).then_with(|| (a - whole).partial_cmp(&0.0).unwrap_or(Ordering::Equal)))
}

fn same_kind(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::List(_), Type::List(_))
        | (Type::Map(..) | Type::Object(_), Type::Map(..) | Type::Object(_))
        | (Type::Optional(_), Type::Optional(_))
        | (Type::Type(_), Type::Type(_)) => true,
        _ => a == b,
    }
}

/// Words that cannot be field names in an expression.
const ESCAPED_WORDS: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A property name as an expression writes it: `__dot__` for `.`, `__kebab__`... are Kubernetes's escapes.
///
/// Source: `k8s.io/apiserver/pkg/cel.Escape`.
pub fn escape(name: &str) -> std::borrow::Cow<'_, str> {
    const LONGEST_WORD: usize = 9;
    if name.len() <= LONGEST_WORD && ESCAPED_WORDS.contains(&name) {
        return format!("__{name}__").into();
    }
    let bytes = name.as_bytes();
    if !bytes.iter().any(|b| matches!(b, b'.' | b'-' | b'/')) && !bytes.windows(2).any(|pair| pair == b"__") {
        return name.into();
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
        .into()
}

fn unescape(name: &str) -> String {
    if !name.contains("__") {
        return name.to_owned();
    }
    if let Some(word) = name.strip_prefix("__").and_then(|n| n.strip_suffix("__"))
        && ESCAPED_WORDS.contains(&word)
    {
        return word.to_owned();
    }
    name.replace("__dot__", ".").replace("__dash__", "-").replace("__slash__", "/").replace("__underscores__", "__")
}
