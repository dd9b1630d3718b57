//! Defaults as data: a path and the value an unset field gets.
//!
//! A path is member names joined by dots. `name` is entered, and made when absent (a Go struct); `name?` is entered only
//! when present (a pointer); `name[]` visits each element of a list. The last name is the field to fill.

use super::access::Fields;
use crate::json::Value;

/// What an unset field gets, and what "unset" means for its Go type.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fill {
    /// A string that is unset when absent or empty.
    Str(&'static str),
    /// A pointer to a string: unset only when absent.
    StrPtr(&'static str),
    /// An integer that is unset when absent or zero.
    Int(i64),
    /// A pointer to an integer: unset only when absent.
    IntPtr(i64),
    /// A pointer to a boolean.
    BoolPtr(bool),
    /// A pointer to a struct whose default is the empty struct.
    Empty,
    /// A list of strings, unset when absent or empty.
    Strs(&'static [&'static str]),
}

/// One default: path and value.
pub(crate) type Rule = (&'static str, Fill);

/// Applies rules in order.
pub(crate) fn apply(object: &mut Value, rules: &[Rule]) {
    for (path, fill) in rules {
        walk(object, path, *fill);
    }
}

fn walk(object: &mut Value, path: &str, fill: Fill) {
    let Some((step, rest)) = path.split_once('.') else {
        set(object, path, fill);
        return;
    };
    if let Some(name) = step.strip_suffix("[]") {
        for element in object.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten() {
            walk(element, rest, fill);
        }
    } else if let Some(name) = step.strip_suffix('?') {
        if let Some(child) = object.get_mut(name).filter(|v| v.is_object()) {
            walk(child, rest, fill);
        }
    } else {
        walk(super::access::object_at(object, step), rest, fill);
    }
}

fn set(object: &mut Value, key: &str, fill: Fill) {
    let unset = match fill {
        Fill::Str(_) => object.s(key).is_empty(),
        Fill::Int(_) => object.i(key) == 0,
        Fill::Strs(_) => object.list(key).is_empty(),
        Fill::StrPtr(_) | Fill::IntPtr(_) | Fill::BoolPtr(_) | Fill::Empty => !object.has(key),
    };
    if unset {
        let value = match fill {
            Fill::Str(s) | Fill::StrPtr(s) => s.into(),
            Fill::Int(i) | Fill::IntPtr(i) => i.into(),
            Fill::BoolPtr(b) => b.into(),
            Fill::Empty => Value::object(),
            Fill::Strs(list) => list.to_vec().into(),
        };
        object.make_object().insert(key, value);
    }
}
