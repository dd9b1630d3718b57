//! The form in which Go's encoder writes a struct.
//!
//! Optional members with empty values vanish unless the Go field is a pointer; members without `omitempty` and embedded
//! structs are always there. Stored as protobuf, an empty list is the same as none: required lists that are empty
//! become `null`, except in the groups that upstream stores as JSON and in lists of objects, which are never stored.

use crate::json::{Map, Number, Value};
use crate::schema::{FieldRef, Scalar, Shape, TypeRef};

/// Brings a value that has the right types into the form that decoding gives.
pub fn normalize(value: &mut Value, ty: TypeRef<'_>) {
    match ty.shape() {
        Shape::Struct(_) => {
            if let Value::Object(map) = value {
                for field in ty.fields() {
                    if let Some(v) = map.get_mut(field.name()) {
                        normalize(v, field.ty());
                    }
                }
                finish(map, ty);
            }
        }
        Shape::List(_) => {
            if let (Value::Array(items), Some(element)) = (value, ty.element()) {
                items.iter_mut().for_each(|v| normalize(v, element));
            }
        }
        Shape::Map(_) => {
            if let (Value::Object(map), Some(element)) = (value, ty.element()) {
                map.values_mut().for_each(|v| normalize(v, element));
            }
        }
        Shape::Scalar(_) | Shape::Enum(_) | Shape::Any => {}
    }
}

/// Drops what Go would leave out of an object whose members are already in form, and adds what it would write.
pub(crate) fn finish(map: &mut Map, ty: TypeRef<'_>) {
    // Kinds stored as JSON keep the difference between an empty list and none.
    let keep_empty = ty.name().starts_with("io.k8s.apiextensions-apiserver.");
    for field in ty.fields() {
        let name = field.name();
        match map.get_mut(name) {
            Some(v) if !v.is_null() => {
                if is_left_out(field, v) {
                    map.remove(name);
                } else if !keep_empty
                    && name != "items"
                    && !field.pointer
                    && is_empty_collection(v)
                    && is_collection(field.ty())
                {
                    *v = Value::Null;
                }
            }
            found => {
                let there = found.is_some();
                match zero_member(field) {
                    Some(v) => {
                        map.insert(name, v);
                    }
                    None if there => {
                        map.remove(name);
                    }
                    None => {}
                }
            }
        }
    }
}

fn is_collection(ty: TypeRef<'_>) -> bool {
    matches!(ty.shape(), Shape::List(_) | Shape::Map(_))
}

fn is_empty_collection(v: &Value) -> bool {
    match v {
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.is_empty(),
        _ => false,
    }
}

/// Whether Go leaves this member out although it is set.
fn is_left_out(field: FieldRef<'_>, v: &Value) -> bool {
    if field.pointer || !(field.omit_empty || field.omit_zero) {
        return false;
    }
    match field.ty().shape() {
        // `omitempty` never applies to structs; `omitzero` does, and only times have it.
        Shape::Struct(_) => field.omit_zero && is_empty_collection(v),
        Shape::List(_) | Shape::Map(_) => is_empty_collection(v),
        Shape::Enum(_) => v == &"",
        Shape::Scalar(s) => match s {
            Scalar::String | Scalar::Bytes => v == &"",
            Scalar::Bool => v == &false,
            Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::Integer | Scalar::Number => {
                matches!(v, Value::Number(Number::Int(0))) || matches!(v, Value::Number(Number::Float(f)) if *f == 0.0)
            }
            _ => false,
        },
        Shape::Any => false,
    }
}

/// What Go writes for an unset member, `None` when nothing.
fn zero_member(field: FieldRef<'_>) -> Option<Value> {
    if field.pointer {
        return (!field.omit_empty).then_some(Value::Null);
    }
    if field.omit_zero {
        return None;
    }
    let ty = field.ty();
    match ty.shape() {
        Shape::Struct(_) => Some(zero(ty)),
        // Structs in Go, although not in JSON: `omitempty` does not apply.
        Shape::Scalar(
            Scalar::Time
            | Scalar::MicroTime
            | Scalar::Duration
            | Scalar::Quantity
            | Scalar::IntOrString
            | Scalar::RawExtension,
        ) => Some(zero(ty)),
        _ if field.omit_empty => None,
        _ => Some(zero(ty)),
    }
}

/// What Go writes for the zero value of a type.
pub fn zero(ty: TypeRef<'_>) -> Value {
    match ty.shape() {
        Shape::Struct(_) => {
            let mut map = Map::new();
            for field in ty.fields() {
                if let Some(v) = zero_member(field) {
                    map.insert(field.name(), v);
                }
            }
            Value::Object(map)
        }
        Shape::Enum(_) | Shape::Scalar(Scalar::String) => "".into(),
        Shape::Scalar(s) => match s {
            Scalar::Bool => false.into(),
            Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::Integer | Scalar::Number | Scalar::IntOrString => {
                0i64.into()
            }
            Scalar::Quantity => "0".into(),
            Scalar::Duration => "0s".into(),
            _ => Value::Null,
        },
        Shape::List(_) | Shape::Map(_) | Shape::Any => Value::Null,
    }
}
