//! `application/vnd.kubernetes.protobuf`: object trees to and from the messages of the built-in kinds.
//!
//! Driven by the schema table. What Go's generated code writes is matched byte for byte: scalar fields that are no
//! pointers are always on the wire, pointers only when set. Decoding gives the same form of an object as decoding JSON
//! does. Custom resources have no messages.
//!
//! Follows: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf`, the `generated.proto` files.

mod decode;
mod encode;
pub mod wire;

use crate::decode::{Decoded, ObjectError, check_kind};
use crate::gvk::{GroupVersion, GroupVersionKind};
use crate::json::Value;
use crate::schema::{self, TypeRef};
use wire::{Raw, Reader, WireError, bytes_field, message_field, string_field};

pub use decode::decode_message;
pub use encode::encode_message;

/// What every encoded object begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

const SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Messages inside messages beyond this are refused.
const MAX_DEPTH: usize = crate::decode::MAX_DEPTH;

/// Why a body is not an object.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("proto: wrong wireType for field {0}")]
    WireType(String),
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("exceeded max depth")]
    TooDeep,
    #[error("{0}")]
    Value(String),
}

/// Why an object has no encoding.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EncodeError {
    #[error("object kind {kind:?} of {api_version:?} does not implement the protobuf marshalling interface")]
    NoMessage { api_version: String, kind: String },
    #[error("{field}: {found} does not fit")]
    Type { field: String, found: &'static str },
}

/// The message type of a kind, when it has one.
pub fn message_type(group: &str, version: &str, kind: &str) -> Option<TypeRef<'static>> {
    // Metadata alone has had one form in both versions.
    let version = match (group, version, kind) {
        ("meta.k8s.io", "v1beta1", "PartialObjectMetadata" | "PartialObjectMetadataList") => "v1",
        _ => version,
    };
    schema::lookup(group, version, kind).filter(|t| t.fields().any(|f| f.number != 0))
}

/// Encodes an object, or a list of objects, of a built-in kind with its envelope.
pub fn encode(object: &Value) -> Result<Vec<u8>, EncodeError> {
    let (api_version, kind) = crate::decode::type_meta(object);
    let no_message = || EncodeError::NoMessage { api_version: api_version.to_owned(), kind: kind.to_owned() };
    let gv = GroupVersion::parse(api_version).map_err(|_| no_message())?;
    let ty = message_type(&gv.group, &gv.version, kind).ok_or_else(no_message)?;
    let mut raw = Vec::with_capacity(1024);
    encode_message(object, ty, &mut raw)?;
    Ok(envelope(api_version, kind, &raw))
}

/// Wraps a message.
pub fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + 64);
    out.extend_from_slice(MAGIC);
    message_field(&mut out, 1, |o| {
        string_field(o, 1, api_version);
        string_field(o, 2, kind);
    });
    bytes_field(&mut out, 2, raw);
    // Content encoding and type: always written, never used.
    string_field(&mut out, 3, "");
    string_field(&mut out, 4, "");
    out
}

/// The parts of an envelope.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unknown<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
}

/// Opens an envelope.
pub fn open(body: &[u8]) -> Result<Unknown<'_>, DecodeError> {
    let mut reader = Reader::new(body.strip_prefix(MAGIC).ok_or(DecodeError::NoMagic)?);
    let mut unknown = Unknown::default();
    while let Some((number, raw)) = reader.field()? {
        match (number, raw) {
            (1, Raw::Bytes(meta)) => {
                let mut meta = Reader::new(meta);
                while let Some((number, raw)) = meta.field()? {
                    let Raw::Bytes(text) = raw else { return Err(DecodeError::WireType("typeMeta".into())) };
                    let text = std::str::from_utf8(text).map_err(|e| DecodeError::Value(e.to_string()))?;
                    match number {
                        1 => unknown.api_version = text,
                        2 => unknown.kind = text,
                        _ => {}
                    }
                }
            }
            (2, Raw::Bytes(raw)) => unknown.raw = raw,
            _ => {}
        }
    }
    Ok(unknown)
}

/// Decodes an object of whichever built-in kind the envelope names.
pub fn decode(body: &[u8]) -> Result<Value, DecodeError> {
    decode_nested(body, 0)
}

fn decode_nested(body: &[u8], depth: usize) -> Result<Value, DecodeError> {
    let unknown = open(body)?;
    let unknown_kind =
        || DecodeError::UnknownKind { api_version: unknown.api_version.into(), kind: unknown.kind.into() };
    let gv = GroupVersion::parse(unknown.api_version).map_err(|_| unknown_kind())?;
    let ty = message_type(&gv.group, &gv.version, unknown.kind).ok_or_else(unknown_kind)?;
    let mut object = decode::message(unknown.raw, ty, depth)?;
    gv.with_kind(unknown.kind).set_on(&mut object);
    Ok(object)
}

/// Decodes the body of a request for objects of a built-in kind, with upstream's messages. An envelope without
/// `apiVersion` and `kind` is taken for the expected kind.
pub fn object(body: &[u8], expected: &GroupVersionKind) -> Result<Decoded, ObjectError> {
    let unrecognized = |e: DecodeError| {
        let shown: String = body.iter().take(30).map(|b| format!("{b:02x}")).collect();
        let kind = &expected.kind;
        ObjectError { message: format!("the object provided is unrecognized (must be of type {kind}): {e} ({shown})") }
    };
    let unknown = open(body).map_err(unrecognized)?;
    check_kind(unknown.api_version, unknown.kind, expected)?;
    let Some(ty) = message_type(&expected.group, &expected.version, &expected.kind) else {
        let error = DecodeError::UnknownKind { api_version: expected.api_version(), kind: expected.kind.to_string() };
        return Err(unrecognized(error));
    };
    let mut object = decode_message(unknown.raw, ty)
        .map_err(|e| ObjectError { message: crate::decode::cannot_be_handled(expected, &expected.kind, &e) })?;
    expected.set_on(&mut object);
    Ok(Decoded { object, strict_errors: Vec::new() })
}

/// One frame of a watch: the length in four bytes, then a `WatchEvent` without envelope whose object has one.
/// `object` is an encoded object, as [`encode`] gives it.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    string_field(&mut out, 1, event);
    message_field(&mut out, 2, |o| bytes_field(o, 1, object));
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// Takes the first whole frame off a watch: event type, encoded object, bytes used. `None` when more bytes are needed.
pub fn read_watch_frame(bytes: &[u8]) -> Result<Option<(String, &[u8], usize)>, DecodeError> {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    let Some(frame) = rest.get(..length) else { return Ok(None) };
    let mut reader = Reader::new(frame);
    let (mut event, mut object): (String, &[u8]) = (String::new(), &[]);
    while let Some((number, raw)) = reader.field()? {
        match (number, raw) {
            (1, Raw::Bytes(text)) => event = String::from_utf8_lossy(text).into_owned(),
            (2, Raw::Bytes(extension)) => {
                let mut reader = Reader::new(extension);
                while let Some((number, raw)) = reader.field()? {
                    if let (1, Raw::Bytes(bytes)) = (number, raw) {
                        object = bytes;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Some((event, object, 4 + length)))
}

#[cfg(test)]
mod tests;
