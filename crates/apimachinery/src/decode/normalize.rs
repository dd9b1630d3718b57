//! The form in which Go's encoder writes a struct.
//!
//! Optional members with empty values vanish unless the Go field is a pointer; members without `omitempty` and embedded
//! structs are always there.

use std::borrow::Cow;

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
    for field in ty.fields() {
        let name = field.name();
        match map.get(name) {
            Some(v) if !v.is_null() => {
                if is_left_out(field, v) {
                    map.remove(name);
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

/// The form of an object after it was stored and read again: protobuf does not tell an empty list from none, so
/// required ones that are empty become `null`. Kinds that upstream stores as JSON keep them.
pub fn as_stored<'v>(object: &'v Value, ty: TypeRef<'_>) -> Cow<'v, Value> {
    if ty.name().starts_with("io.k8s.apiextensions-apiserver.") || !has_empty_required(object, ty) {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    empty_to_null(&mut object, ty);
    Cow::Owned(object)
}

fn is_empty_required(field: FieldRef<'_>, v: &Value) -> bool {
    !field.pointer
        && !field.omit_empty
        && is_empty_collection(v)
        && matches!(field.ty().shape(), Shape::List(_) | Shape::Map(_))
}

fn has_empty_required(v: &Value, ty: TypeRef<'_>) -> bool {
    match (v, ty.shape()) {
        (Value::Object(map), Shape::Struct(_)) => map
            .iter()
            .any(|(name, v)| ty.field(name).is_some_and(|f| is_empty_required(f, v) || has_empty_required(v, f.ty()))),
        (Value::Object(map), Shape::Map(m)) => map.values().any(|v| has_empty_required(v, ty.other(m.value))),
        (Value::Array(items), Shape::List(l)) => items.iter().any(|v| has_empty_required(v, ty.other(l.element))),
        _ => false,
    }
}

fn empty_to_null(v: &mut Value, ty: TypeRef<'_>) {
    match (v, ty.shape()) {
        (Value::Object(map), Shape::Struct(_)) => {
            for (name, v) in map.iter_mut() {
                let Some(field) = ty.field(name) else { continue };
                if is_empty_required(field, v) {
                    *v = Value::Null;
                } else {
                    empty_to_null(v, field.ty());
                }
            }
        }
        (Value::Object(map), Shape::Map(m)) => map.values_mut().for_each(|v| empty_to_null(v, ty.other(m.value))),
        (Value::Array(items), Shape::List(l)) => items.iter_mut().for_each(|v| empty_to_null(v, ty.other(l.element))),
        _ => {}
    }
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
    // An empty list is a request to forget the owners of fields; the tracking of fields takes it away.
    if field.name() == "managedFields" && v.is_array() {
        return false;
    }
    match field.ty().shape() {
        // `omitempty` never applies to structs; `omitzero` does, and only times have it.
        Shape::Struct(_) => field.omit_zero && is_empty_collection(v),
        Shape::List(_) | Shape::Map(_) => is_empty_collection(v),
        Shape::Enum(_) => v == "",
        Shape::Scalar(s) => match s {
            Scalar::String | Scalar::Bytes => v == "",
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
