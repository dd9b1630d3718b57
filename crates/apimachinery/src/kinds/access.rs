//! Reading and filling fields the way Go code reads typed structs: an absent field, a null and a zero value are the same
//! unless the caller asks for presence.

use crate::json::{Map, Value};

static EMPTY: Map = Map::new();
static ABSENT: Value = Value::Null;

/// Field access on object trees; every getter has Go's zero value as its answer for a missing field.
pub(crate) trait Fields {
    /// The member, `None` when absent or null: a nil pointer.
    fn o(&self, key: &str) -> Option<&Value>;
    /// The member, null when absent.
    fn v(&self, key: &str) -> &Value;
    fn s(&self, key: &str) -> &str;
    fn i(&self, key: &str) -> i64;
    fn oi(&self, key: &str) -> Option<i64>;
    fn b(&self, key: &str) -> bool;
    fn ob(&self, key: &str) -> Option<bool>;
    fn list(&self, key: &str) -> &[Value];
    fn members(&self, key: &str) -> &Map;
    fn has(&self, key: &str) -> bool;
    fn os(&self, key: &str) -> Option<&str>;
}

impl Fields for Value {
    fn o(&self, key: &str) -> Option<&Value> {
        self.get(key).filter(|v| !v.is_null())
    }
    fn v(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(&ABSENT)
    }
    fn s(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or("")
    }
    fn i(&self, key: &str) -> i64 {
        self.oi(key).unwrap_or(0)
    }
    fn oi(&self, key: &str) -> Option<i64> {
        self.get(key).and_then(Value::as_i64)
    }
    fn b(&self, key: &str) -> bool {
        self.ob(key).unwrap_or(false)
    }
    fn ob(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(Value::as_bool)
    }
    fn list(&self, key: &str) -> &[Value] {
        self.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
    fn members(&self, key: &str) -> &Map {
        self.get(key).and_then(Value::as_object).unwrap_or(&EMPTY)
    }
    fn has(&self, key: &str) -> bool {
        self.o(key).is_some()
    }
    fn os(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

/// Sets a member that is absent or null; true when it did.
pub(crate) fn default_to(object: &mut Value, key: &str, value: impl Into<Value>) -> bool {
    let slot = object.make_object().get_or_insert_with(key, || Value::Null);
    let unset = slot.is_null();
    if unset {
        *slot = value.into();
    }
    unset
}

/// Sets a string member that is absent or empty: Go strings that are not pointers.
pub(crate) fn default_string(object: &mut Value, key: &str, value: &str) {
    if object.s(key).is_empty() {
        object.make_object().insert(key, value.into());
    }
}

/// Sets an integer member that is absent or zero: Go integers that are not pointers.
pub(crate) fn default_integer(object: &mut Value, key: &str, value: i64) {
    if object.i(key) == 0 {
        object.make_object().insert(key, value.into());
    }
}

/// The member as an object to write to, made when absent.
pub(crate) fn object_at<'a>(object: &'a mut Value, key: &str) -> &'a mut Value {
    let slot = object.make_object().get_or_insert_with(key, Value::object);
    if !slot.is_object() {
        *slot = Value::object();
    }
    slot
}

/// The member to write to when it is present and not null.
pub(crate) fn present<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    object.get_mut(key).filter(|v| !v.is_null())
}

/// The elements of a list member to write to.
pub(crate) fn each<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Equality of typed values: an absent member equals null and the zero value of its type, as Go's
/// `apiequality.Semantic.DeepEqual` sees decoded objects.
pub(crate) fn semantic_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let mut left = x.iter().filter(|(_, v)| !is_zero(v)).peekable();
            let mut right = y.iter().filter(|(_, v)| !is_zero(v)).peekable();
            loop {
                match (left.next(), right.next()) {
                    (None, None) => return true,
                    (Some((k, v)), Some((l, w))) if k == l && semantic_equal(v, w) => {}
                    _ => return false,
                }
            }
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(v, w)| semantic_equal(v, w)),
        (Value::Number(_), Value::Number(_)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b || (is_zero(a) && is_zero(b)),
    }
}

/// Null, an empty string, list or object. Pointers to zero numbers and booleans are values.
pub(crate) fn is_zero(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.values().all(is_zero),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
