//! The one place that calls the YAML library, so that its options are the same everywhere.
//!
//! `legacy_octal_numbers` is on: Kubernetes's own YAML reads `0644` as octal, and file modes depend on it. A duplicate key
//! is an error. A text without a document, or with only comments, is `None`.

use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// A text that is not YAML (or not of the wanted shape).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct YamlError {
    pub line: u64,
    pub column: u64,
    pub message: String,
}

/// A value with the position it was read from.
#[derive(Clone, Debug)]
pub struct Node {
    pub line: u64,
    pub column: u64,
    pub data: Data,
}

#[derive(Clone, Debug)]
pub enum Data {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Seq(Vec<Node>),
    /// Key, position of the key, value.
    Map(Vec<(String, u64, u64, Node)>),
}

impl Node {
    pub fn to_value(&self) -> Value {
        match &self.data {
            Data::Null => Value::Null,
            Data::Bool(b) => Value::Bool(*b),
            Data::Number(n) => Value::Number(n.clone()),
            Data::String(s) => Value::String(s.clone()),
            Data::Seq(items) => Value::Array(items.iter().map(Node::to_value).collect()),
            Data::Map(entries) => {
                Value::Object(entries.iter().map(|(k, _, _, v)| (k.clone(), v.to_value())).collect::<Map<_, _>>())
            }
        }
    }
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false }
}

fn error(error: serde_saphyr::Error) -> YamlError {
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    let full = error.without_snippet().to_string();
    // The library appends its own position; ours stands in front.
    let message = full.split(" at line ").next().unwrap_or(&full).trim().to_string();
    YamlError { line, column, message }
}

/// Parses one document, keeping positions.
pub fn parse(text: &str) -> Result<Option<Node>, YamlError> {
    if is_blank(text) {
        return Ok(None);
    }
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options()).map_err(error)?;
    Ok(match raw.value {
        Raw::Null => None,
        _ => Some(raw.into()),
    })
}

/// Parses one document into `T`.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    serde_saphyr::from_str_with_options(text, options()).map_err(error)
}

/// Parses all documents of a stream; empty ones are left out.
pub fn documents(text: &str) -> Result<Vec<Value>, YamlError> {
    if is_blank(text) {
        return Ok(Vec::new());
    }
    let all: Vec<Raw> = serde_saphyr::from_multiple_with_options(text, options()).map_err(error)?;
    Ok(all
        .into_iter()
        .map(|raw| Node { line: 0, column: 0, data: raw.into_data() }.to_value())
        .filter(|value| !value.is_null())
        .collect())
}

/// Writes one document, block style.
pub fn to_string<T: Serialize>(value: &T) -> Result<String, YamlError> {
    serde_saphyr::to_string(value).map_err(|error| YamlError { line: 0, column: 0, message: error.to_string() })
}

fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
    })
}

enum Raw {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Seq(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl Raw {
    fn into_data(self) -> Data {
        match self {
            Raw::Null => Data::Null,
            Raw::Bool(b) => Data::Bool(b),
            Raw::Number(n) => Data::Number(n),
            Raw::String(s) => Data::String(s),
            Raw::Seq(items) => Data::Seq(items.into_iter().map(Node::from).collect()),
            Raw::Map(entries) => Data::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| (key.value, key.referenced.line(), key.referenced.column(), Node::from(value)))
                    .collect(),
            ),
        }
    }
}

impl From<Spanned<Raw>> for Node {
    fn from(raw: Spanned<Raw>) -> Node {
        Node { line: raw.referenced.line(), column: raw.referenced.column(), data: raw.value.into_data() }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw::Number(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
        Ok(Raw::Number(v.into()))
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Raw, E> {
        Number::from_f64(v).map(Raw::Number).ok_or_else(|| E::custom("not a finite number"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
        Ok(Raw::String(v.to_string()))
    }
    fn visit_string<E>(self, v: String) -> Result<Raw, E> {
        Ok(Raw::String(v))
    }
    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::Seq(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}
