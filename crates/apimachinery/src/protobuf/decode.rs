//! Messages to trees.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::decode::normalize_struct;
use crate::json::{Map, Str, Value};
use crate::quantity::Quantity;
use crate::schema::{self, FieldRef, Scalar, Shape, TypeRef};
use crate::time::Timestamp;

use super::wire::{Raw, Reader};
use super::{DecodeError, MAGIC, MAX_DEPTH};

type Result<T> = std::result::Result<T, DecodeError>;

/// Decodes a message without envelope.
pub fn decode_message(bytes: &[u8], ty: TypeRef<'_>) -> Result<Value> {
    message(bytes, ty, 0)
}

pub(super) fn message(bytes: &[u8], ty: TypeRef<'_>, depth: usize) -> Result<Value> {
    if depth > MAX_DEPTH {
        return Err(DecodeError::TooDeep);
    }
    let mut map = Map::new();
    fields(bytes, ty, &[], &mut map, depth)?;
    normalize_struct(&mut map, ty);
    Ok(Value::Object(map))
}

/// Reads the fields of a message that JSON flattens into `map`: those whose path of embedded messages is `prefix`.
fn fields(bytes: &[u8], ty: TypeRef<'_>, prefix: &[u16], map: &mut Map, depth: usize) -> Result<()> {
    let mut reader = Reader::new(bytes);
    let level = prefix.len();
    while let Some((number, raw)) = reader.field()? {
        let Ok(number) = u16::try_from(number) else { continue };
        let here = |f: &FieldRef<'_>| f.inline.iter().take(level).eq(prefix.iter());
        let own = ty.fields().find(|f| f.number == number && here(f) && f.inline.get(level).is_none_or(|n| *n == 0));
        if let Some(field) = own {
            add(field, raw, map, depth)?;
            continue;
        }
        let embedded = level < 2 && ty.fields().any(|f| here(&f) && f.inline[level] == number);
        if embedded {
            let Raw::Bytes(inner) = raw else { return Err(DecodeError::WireType(format!("{number}"))) };
            let mut prefix = prefix.to_vec();
            prefix.push(number);
            fields(inner, ty, &prefix, map, depth)?;
        }
        // Anything else is from a newer version: dropped, as Go does.
    }
    Ok(())
}

fn add(field: FieldRef<'_>, raw: Raw<'_>, map: &mut Map, depth: usize) -> Result<()> {
    let ty = field.ty();
    let wrong = || DecodeError::WireType(field.name().to_owned());
    match ty.shape() {
        Shape::List(list) if !list.wrapped => {
            let element = ty.other(list.element);
            let slot = map.get_or_insert_with(field.name(), || Value::Array(Vec::new()));
            let Value::Array(items) = slot else { return Err(wrong()) };
            match (raw, element.scalar()) {
                (Raw::Bytes(packed), Some(Scalar::Int32 | Scalar::Int64 | Scalar::Bool)) => {
                    let mut reader = Reader::new(packed);
                    while !reader.is_empty() {
                        let v = reader.varint()?;
                        items.push(value(Raw::Varint(v), element, depth, field.name())?);
                    }
                }
                _ => items.push(value(raw, element, depth, field.name())?),
            }
        }
        Shape::Map(m) => {
            let element = ty.other(m.value);
            let Raw::Bytes(entry) = raw else { return Err(wrong()) };
            let mut reader = Reader::new(entry);
            let mut key = Str::default();
            let mut v = None;
            while let Some((number, raw)) = reader.field()? {
                match (number, raw) {
                    (1, Raw::Bytes(k)) => key = text(k),
                    (2, raw) => v = Some(value(raw, element, depth, field.name())?),
                    _ => {}
                }
            }
            let v = match v {
                Some(v) => v,
                None if element.scalar() == Some(Scalar::Bytes) => "".into(),
                None => crate::decode::zero(element),
            };
            map.object_mut(field.name()).insert(key, v);
        }
        _ => {
            let v = value(raw, ty, depth, field.name())?;
            map.insert(field.name(), v);
        }
    }
    Ok(())
}

fn text(bytes: &[u8]) -> Str {
    match std::str::from_utf8(bytes) {
        Ok(s) => s.into(),
        Err(_) => Str::from(String::from_utf8_lossy(bytes)),
    }
}

fn value(raw: Raw<'_>, ty: TypeRef<'_>, depth: usize, name: &str) -> Result<Value> {
    let wrong = || DecodeError::WireType(name.to_owned());
    let scalar = match ty.shape() {
        Shape::Struct(_) => {
            let Raw::Bytes(bytes) = raw else { return Err(wrong()) };
            return message(bytes, ty, depth + 1);
        }
        Shape::List(list) => {
            // A message around a list.
            let Raw::Bytes(bytes) = raw else { return Err(wrong()) };
            let element = ty.other(list.element);
            let mut reader = Reader::new(bytes);
            let mut items = Vec::new();
            while let Some((number, raw)) = reader.field()? {
                if number == 1 {
                    items.push(value(raw, element, depth, name)?);
                }
            }
            return Ok(Value::Array(items));
        }
        Shape::Map(_) | Shape::Any => return Err(wrong()),
        Shape::Enum(_) => Scalar::String,
        Shape::Scalar(s) => *s,
    };
    Ok(match (scalar, raw) {
        (Scalar::String, Raw::Bytes(b)) => Value::String(text(b)),
        (Scalar::Bool, Raw::Varint(v)) => (v != 0).into(),
        (Scalar::Int32, Raw::Varint(v)) => (v as i32).into(),
        (Scalar::Int64 | Scalar::Integer, Raw::Varint(v)) => (v as i64).into(),
        (Scalar::Double | Scalar::Number, Raw::Fixed64(v)) => {
            let f = f64::from_bits(v);
            // The tree writes whole floats as integers, as decoding JSON reads them.
            if f.fract() == 0.0 && f.abs() < 1e15 { (f as i64).into() } else { f.into() }
        }
        (Scalar::Bytes, Raw::Bytes(b)) => STANDARD.encode(b).into(),
        (Scalar::Time | Scalar::MicroTime, Raw::Bytes(b)) => {
            if b.is_empty() {
                return Ok(Value::Null);
            }
            let numbers = numbers(b)?;
            let at = Timestamp { seconds: numbers[0], nanos: u32::try_from(numbers[1]).unwrap_or(0) };
            match scalar {
                Scalar::Time => at.to_rfc3339().into(),
                _ => at.to_rfc3339_micro().into(),
            }
        }
        (Scalar::Quantity, Raw::Bytes(b)) => {
            let mut reader = Reader::new(b);
            let mut quantity = Str::from("0");
            while let Some((number, raw)) = reader.field()? {
                if let (1, Raw::Bytes(b)) = (number, raw) {
                    quantity = text(b);
                }
            }
            match Quantity::parse(&quantity) {
                Ok(q) => q.to_string().into(),
                Err(e) => return Err(DecodeError::Value(e.to_string())),
            }
        }
        (Scalar::IntOrString, Raw::Bytes(b)) => {
            let mut reader = Reader::new(b);
            let (mut kind, mut int, mut string) = (0, 0i32, Str::default());
            while let Some((number, raw)) = reader.field()? {
                match (number, raw) {
                    (1, Raw::Varint(v)) => kind = v,
                    (2, Raw::Varint(v)) => int = v as i32,
                    (3, Raw::Bytes(b)) => string = text(b),
                    _ => {}
                }
            }
            if kind == 0 { int.into() } else { string.into() }
        }
        (Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json, Raw::Bytes(b)) => {
            let mut reader = Reader::new(b);
            let mut inner: &[u8] = &[];
            while let Some((number, raw)) = reader.field()? {
                if let (1, Raw::Bytes(b)) = (number, raw) {
                    inner = b;
                }
            }
            if inner.is_empty() {
                Value::Null
            } else if inner.starts_with(MAGIC) {
                super::decode_nested(inner, depth + 1)?
            } else {
                Value::from_slice(inner).map_err(|e| DecodeError::Value(format!("{name}: {e}")))?
            }
        }
        (Scalar::SchemaOrBool | Scalar::SchemaOrArray | Scalar::SchemaOrStringArray, Raw::Bytes(b)) => {
            schema_or(scalar, b, depth)?
        }
        (Scalar::Duration, Raw::Bytes(_)) => {
            return Err(DecodeError::Value(format!("{name}: durations have no protobuf form here")));
        }
        _ => return Err(wrong()),
    })
}

/// The varints 1 and 2 of a message.
fn numbers(bytes: &[u8]) -> Result<[i64; 2]> {
    let mut reader = Reader::new(bytes);
    let mut out = [0; 2];
    while let Some((number, raw)) = reader.field()? {
        if let (1 | 2, Raw::Varint(v)) = (number, raw) {
            out[number as usize - 1] = v as i64;
        }
    }
    Ok(out)
}

fn schema_or(scalar: Scalar, bytes: &[u8], depth: usize) -> Result<Value> {
    let props = schema::lookup_name(super::SCHEMA_PROPS).ok_or_else(|| DecodeError::Value("no schema type".into()))?;
    let mut reader = Reader::new(bytes);
    let (mut allows, mut one, mut many) = (false, None, Vec::new());
    while let Some((number, raw)) = reader.field()? {
        match (scalar, number, raw) {
            (Scalar::SchemaOrBool, 1, Raw::Varint(v)) => allows = v != 0,
            (Scalar::SchemaOrBool, 2, Raw::Bytes(b)) => one = Some(message(b, props, depth + 1)?),
            (_, 1, Raw::Bytes(b)) => one = Some(message(b, props, depth + 1)?),
            (Scalar::SchemaOrArray, 2, Raw::Bytes(b)) => many.push(message(b, props, depth + 1)?),
            (Scalar::SchemaOrStringArray, 2, Raw::Bytes(b)) => many.push(Value::String(text(b))),
            _ => {}
        }
    }
    Ok(match (scalar, one) {
        (Scalar::SchemaOrBool, None) => allows.into(),
        (_, Some(v)) if many.is_empty() => v,
        (_, None) if many.is_empty() => Value::Null,
        _ => Value::Array(many),
    })
}
