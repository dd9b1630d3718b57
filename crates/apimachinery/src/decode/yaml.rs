//! YAML as `sigs.k8s.io/yaml` reads it: `0644` is octal, `yes` and `on` are booleans, keys become strings, the last of
//! duplicate keys wins and is told.

use std::fmt::Write;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

use super::DecodeError;

/// A YAML document as JSON text, in document order.
pub struct Yaml {
    pub json: Vec<u8>,
    /// Duplicate keys in the words of Go's YAML library.
    pub duplicates: Option<String>,
}

enum Node {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    String(String),
    Seq(Vec<Node>),
    /// Key, its line, value.
    Map(Vec<(String, u64, Node)>),
}

/// Nodes that aliases may stand for, all together: more than a manifest has, and soon refused.
const ALIASED_MAX: usize = 60_000;

pub fn to_json(body: &[u8]) -> Result<Yaml, DecodeError> {
    let text = std::str::from_utf8(body).map_err(|_| DecodeError::Syntax("yaml: invalid UTF-8".into()))?;
    let mut options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        with_snippet: false,
        duplicate_keys: DuplicateKeyPolicy::LastWins,
    };
    options.alias_limits.max_total_replayed_events = ALIASED_MAX;
    let node: Node = serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        let line = e.location().map_or(1, |at| at.line());
        let full = e.without_snippet().to_string();
        let reason = full.split(" at line ").next().unwrap_or(&full).trim();
        DecodeError::Syntax(go_error(reason, line))
    })?;
    let mut json = Vec::with_capacity(body.len());
    let mut duplicates = String::new();
    write(&node, &mut json, &mut duplicates);
    let duplicates = (!duplicates.is_empty()).then(|| format!("yaml: unmarshal errors:{duplicates}"));
    Ok(Yaml { json, duplicates })
}

/// A syntax error in the words of Go's YAML library, which does not tell the first line.
fn go_error(reason: &str, line: u64) -> String {
    let scanned = |text: &str| match line {
        0 | 1 => format!("yaml: {text}"),
        line => format!("yaml: line {line}: {text}"),
    };
    if reason.starts_with("unexpected character") {
        return scanned("found character that cannot start any token");
    }
    match reason {
        "unclosed quote" => scanned("found unexpected end of stream"),
        "mapping values are not allowed in this context" => scanned(reason),
        "alias references unknown anchor" => "yaml: unknown anchor referenced".to_owned(),
        "unclosed bracket '['" => format!("yaml: line {line}: did not find expected ',' or ']'"),
        "unclosed bracket '{'" => format!("yaml: line {line}: did not find expected ',' or '}}'"),
        other => format!("yaml: line {line}: {other}"),
    }
}

fn write(node: &Node, out: &mut Vec<u8>, duplicates: &mut String) {
    match node {
        Node::Null => out.extend_from_slice(b"null"),
        Node::Bool(b) => out.extend_from_slice(if *b { b"true" } else { b"false" }),
        Node::Int(i) => out.extend_from_slice(i.to_string().as_bytes()),
        Node::UInt(u) => out.extend_from_slice(u.to_string().as_bytes()),
        Node::Float(f) if f.is_finite() => out.extend_from_slice(f.to_string().as_bytes()),
        Node::Float(f) => string(&f.to_string(), out),
        Node::String(s) => string(s, out),
        Node::Seq(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out, duplicates);
            }
            out.push(b']');
        }
        Node::Map(entries) => {
            out.push(b'{');
            let mut last = std::collections::HashMap::with_capacity(entries.len());
            for (i, (key, line, _)) in entries.iter().enumerate() {
                if last.insert(key.as_str(), i).is_some() {
                    let _ = write!(duplicates, "\n  line {line}: key {key:?} already set in map");
                }
            }
            let mut first = true;
            for (i, (key, _, value)) in entries.iter().enumerate() {
                if last.get(key.as_str()) != Some(&i) {
                    continue;
                }
                if !std::mem::take(&mut first) {
                    out.push(b',');
                }
                string(key, out);
                out.push(b':');
                write(value, out, duplicates);
            }
            out.push(b'}');
        }
    }
}

fn string(s: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, s).expect("a string always encodes and writing to memory cannot fail");
}

impl Node {
    /// A key as a string, as `sigs.k8s.io/yaml` converts keys for JSON.
    fn into_key(self) -> String {
        match self {
            Node::String(s) => s,
            Node::Bool(b) => b.to_string(),
            Node::Int(i) => i.to_string(),
            Node::UInt(u) => u.to_string(),
            Node::Float(f) => f.to_string(),
            Node::Null | Node::Seq(_) | Node::Map(_) => "null".into(),
        }
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any YAML value")
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
        d.deserialize_any(NodeVisitor)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Node, E> {
        Ok(Node::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Node, E> {
        Ok(Node::Int(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Node, E> {
        Ok(Node::UInt(v))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Node, E> {
        Ok(Node::Float(v))
    }
    fn visit_str<E>(self, v: &str) -> Result<Node, E> {
        Ok(Node::String(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Node, E> {
        Ok(Node::String(v))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut out = Vec::new();
        while let Some(v) = seq.next_element()? {
            out.push(v);
        }
        Ok(Node::Seq(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut out = Vec::new();
        while let Some(key) = access.next_key::<Spanned<Node>>()? {
            let line = key.defined.line();
            out.push((key.value.into_key(), line, access.next_value()?));
        }
        Ok(Node::Map(out))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(NodeVisitor)
    }
}
