//! Trees to messages.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::json::{Map, Value};
use crate::schema::{self, FieldRef, Scalar, Shape, TypeRef};
use crate::time::Timestamp;

use super::EncodeError;
use super::wire::{bytes_field, double_field, message_field, string_field, varint_field};

type Result = std::result::Result<(), EncodeError>;

/// Appends the message of an object, without envelope.
pub fn encode_message(object: &Value, ty: TypeRef<'_>, out: &mut Vec<u8>) -> Result {
    static EMPTY: Map = Map::new();
    match object {
        Value::Object(map) => fields(map, ty, &[], out),
        Value::Null => fields(&EMPTY, ty, &[], out),
        other => Err(EncodeError::Type { field: ty.name().to_owned(), found: other.type_name() }),
    }
}

/// Writes the fields whose path of embedded messages is `prefix`, by ascending number.
fn fields(map: &Map, ty: TypeRef<'_>, prefix: &[u16], out: &mut Vec<u8>) -> Result {
    let level = prefix.len();
    // Number, and the field unless it is an embedded message.
    let mut order: Vec<(u16, Option<FieldRef<'_>>)> = Vec::new();
    for f in ty.fields() {
        if f.number == 0 || !f.inline.iter().take(level).eq(prefix.iter()) {
            continue;
        }
        match f.inline.get(level) {
            Some(&n) if n != 0 => {
                if !order.iter().any(|(o, _)| *o == n) {
                    order.push((n, None));
                }
            }
            _ => order.push((f.number, Some(f))),
        }
    }
    order.sort_by_key(|(n, _)| *n);
    let mut result = Ok(());
    for (number, field) in order {
        match field {
            Some(f) => self::field(map.get(f.name()).unwrap_or(&Value::Null), f, out)?,
            None => message_field(out, number.into(), |o| {
                let mut prefix = prefix.to_vec();
                prefix.push(number);
                if result.is_ok() {
                    result = fields(map, ty, &prefix, o);
                }
            }),
        }
    }
    result
}

fn field(v: &Value, f: FieldRef<'_>, out: &mut Vec<u8>) -> Result {
    let ty = f.ty();
    let number = u32::from(f.number);
    let wrong = || EncodeError::Type { field: f.name().to_owned(), found: v.type_name() };
    match (ty.shape(), v) {
        (Shape::List(list), Value::Array(items)) if !list.wrapped => {
            let element = ty.other(list.element);
            items.iter().try_for_each(|item| value(item, element, number, out, f.name()))
        }
        (Shape::List(_) | Shape::Map(_), Value::Null) => Ok(()),
        (Shape::Map(m), Value::Object(entries)) => {
            let element = ty.other(m.value);
            let mut result = Ok(());
            for (key, item) in entries.iter() {
                message_field(out, number, |o| {
                    string_field(o, 1, key);
                    if result.is_ok() {
                        result = value(item, element, 2, o, f.name());
                    }
                });
            }
            result
        }
        (Shape::Map(_), _) => Err(wrong()),
        (_, Value::Null) if f.pointer || ty.scalar() == Some(Scalar::Bytes) => Ok(()),
        _ => value(v, ty, number, out, f.name()),
    }
}

/// Writes one value; null is the zero value.
fn value(v: &Value, ty: TypeRef<'_>, number: u32, out: &mut Vec<u8>, name: &str) -> Result {
    let wrong = || EncodeError::Type { field: name.to_owned(), found: v.type_name() };
    let mut result = Ok(());
    let scalar = match ty.shape() {
        Shape::Struct(_) => {
            message_field(out, number, |o| result = encode_message(v, ty, o));
            return result;
        }
        Shape::List(list) => {
            let element = ty.other(list.element);
            message_field(out, number, |o| {
                result = v.as_array().into_iter().flatten().try_for_each(|item| value(item, element, 1, o, name));
            });
            return result;
        }
        Shape::Map(_) | Shape::Any => return Err(wrong()),
        Shape::Enum(_) => Scalar::String,
        Shape::Scalar(s) => *s,
    };
    let null = v.is_null();
    match scalar {
        Scalar::String if null => string_field(out, number, ""),
        Scalar::String => string_field(out, number, v.as_str().ok_or_else(wrong)?),
        Scalar::Bool if null => varint_field(out, number, 0),
        Scalar::Bool => varint_field(out, number, v.as_bool().ok_or_else(wrong)?.into()),
        Scalar::Int32 | Scalar::Int64 | Scalar::Integer if null => varint_field(out, number, 0),
        Scalar::Int32 | Scalar::Int64 | Scalar::Integer => {
            varint_field(out, number, v.as_i64().ok_or_else(wrong)? as u64);
        }
        Scalar::Double | Scalar::Number if null => double_field(out, number, 0.0),
        Scalar::Double | Scalar::Number => double_field(out, number, v.as_f64().ok_or_else(wrong)?),
        Scalar::Bytes => {
            let decoded = STANDARD.decode(v.as_str().unwrap_or_default()).map_err(|_| wrong())?;
            bytes_field(out, number, &decoded);
        }
        Scalar::Time | Scalar::MicroTime if null => bytes_field(out, number, &[]),
        Scalar::Time | Scalar::MicroTime => {
            let at = v.as_str().and_then(Timestamp::parse).ok_or_else(wrong)?;
            let nanos = if scalar == Scalar::Time { 0 } else { at.nanos / 1000 * 1000 };
            message_field(out, number, |o| {
                varint_field(o, 1, at.seconds as u64);
                varint_field(o, 2, nanos.into());
            });
        }
        Scalar::Quantity => {
            let text = match v {
                Value::Null => "0".to_owned(),
                Value::String(s) => s.to_string(),
                Value::Number(_) => v.to_string(),
                _ => return Err(wrong()),
            };
            message_field(out, number, |o| string_field(o, 1, &text));
        }
        Scalar::IntOrString => {
            let (kind, int, text) = match v {
                Value::Null => (0, 0, ""),
                Value::String(s) => (1, 0, s.as_str()),
                v => (0, v.as_i64().ok_or_else(wrong)?, ""),
            };
            message_field(out, number, |o| {
                varint_field(o, 1, kind);
                varint_field(o, 2, int as u64);
                string_field(o, 3, text);
            });
        }
        Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json => message_field(out, number, |o| {
            if !null {
                bytes_field(o, 1, &v.to_vec());
            }
        }),
        Scalar::SchemaOrBool | Scalar::SchemaOrArray | Scalar::SchemaOrStringArray => {
            message_field(out, number, |o| result = schema_or(scalar, v, o, name));
            return result;
        }
        Scalar::Duration => return Err(wrong()),
    }
    Ok(())
}

fn schema_or(scalar: Scalar, v: &Value, out: &mut Vec<u8>, name: &str) -> Result {
    let wrong = || EncodeError::Type { field: name.to_owned(), found: v.type_name() };
    let props = schema::lookup_name(super::SCHEMA_PROPS).ok_or_else(wrong)?;
    let mut result = Ok(());
    let mut schema = |out: &mut Vec<u8>, number: u32, v: &Value| {
        message_field(out, number, |o| result = result.clone().and_then(|()| encode_message(v, props, o)));
    };
    match (scalar, v) {
        (Scalar::SchemaOrBool, Value::Bool(b)) => varint_field(out, 1, u64::from(*b)),
        (Scalar::SchemaOrBool, Value::Object(_)) => {
            varint_field(out, 1, 1);
            schema(out, 2, v);
        }
        (_, Value::Object(_)) => schema(out, 1, v),
        (Scalar::SchemaOrArray, Value::Array(items)) => items.iter().for_each(|v| schema(out, 2, v)),
        (Scalar::SchemaOrStringArray, Value::Array(items)) => {
            items.iter().filter_map(Value::as_str).for_each(|s| string_field(out, 2, s));
        }
        (_, Value::Null) => {}
        _ => return Err(wrong()),
    }
    result
}
