//! One object as it lies in memory: the stored bytes and a small index over them.
//!
//! Invariants:
//! - The bytes are the stored value itself (shared with the store, never copied), always laid out as
//!   `{"apiVersion":"..","kind":"..",` + the other members. A value written by someone else is laid out anew once, here.
//! - Stored bytes have no `metadata.resourceVersion`: it is the revision of the write, put in while bytes are sent.
//!
//! Follows: `k8s.io/apiserver/pkg/storage/etcd3` (the version lives outside of the value).

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::sync::{Arc, OnceLock};

use apimachinery::Value;
use apimachinery::json::Str;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use store::Revision;

/// Why stored bytes cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error("the stored value of {key} is not a JSON object: {reason}")]
    Undecodable { key: String, reason: String },
}

/// An object of the watch cache.
#[derive(Debug)]
pub struct Entry {
    /// The key behind the resource's prefix: `namespace/name`, or `name` for cluster-scoped resources.
    key: Box<str>,
    pub revision: Revision,
    raw: Bytes,
    /// Where the members after `apiVersion` and `kind` start.
    body_at: u32,
    /// Where `"resourceVersion":"N",` is put: right behind `"metadata":{`.
    version_at: u32,
    namespace_len: u32,
    labels: Box<[(Str, Str)]>,
    /// What field selectors have asked for: kept, so that many watchers with selectors parse an object once.
    fields: OnceLock<Box<Mutex<Vec<FieldValue>>>>,
}

#[derive(Debug)]
struct FieldValue {
    /// Of the resource that asked: versions have different fields.
    api_version: Box<str>,
    field: Box<str>,
    value: Box<str>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    labels: Option<apimachinery::Map>,
    #[serde(default, rename = "resourceVersion")]
    resource_version: Option<serde::de::IgnoredAny>,
}

/// How values begin that kube-apiserver has stored in its default encoding.
const PROTOBUF: &[u8] = b"k8s\0";

/// Encodes an object for the store: `apiVersion` and `kind` first, no resourceVersion.
pub fn encode_stored(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    let mut comma = false;
    let mut member = |out: &mut Vec<u8>, key: &str, value: &Value| {
        if std::mem::replace(&mut comma, true) {
            out.push(b',');
        }
        write_string(out, key);
        out.push(b':');
        value.write_to(out);
    };
    for key in ["apiVersion", "kind"] {
        member(&mut out, key, object.get(key).unwrap_or(&Value::String(Str::const_new(""))));
    }
    for (key, value) in object.as_object().into_iter().flat_map(|m| m.iter()) {
        match key.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" if value.get("resourceVersion").is_some() => {
                let mut value = value.clone();
                value.remove_at(&["resourceVersion"]);
                member(&mut out, key, &value);
            }
            _ => member(&mut out, key, value),
        }
    }
    out.push(b'}');
    out
}

fn write_string(out: &mut Vec<u8>, s: &str) {
    serde_json::to_writer(out, s).expect("writing a string to memory cannot fail");
}

impl Entry {
    /// Whether a selectable field equals `wanted`; `read` reads the field from the object when nobody has before.
    pub fn field_is(&self, api_version: &str, field: &str, wanted: &str, read: impl FnOnce(&Value) -> String) -> bool {
        let fields = self.fields.get_or_init(Box::default);
        let known = |f: &&FieldValue| *f.field == *field && *f.api_version == *api_version;
        if let Some(known) = fields.lock().iter().find(known) {
            return *known.value == *wanted;
        }
        let value = read(&self.to_value());
        let equal = value == wanted;
        self.learn_field(api_version, field, &value);
        equal
    }

    /// Has [`Entry::field_is`] or [`Entry::learn_field`] been told the value in this version?
    pub fn knows_field(&self, api_version: &str, field: &str) -> bool {
        let Some(fields) = self.fields.get() else { return false };
        fields.lock().iter().any(|f| *f.field == *field && *f.api_version == *api_version)
    }

    /// Remembers what a selectable field of the object is in one version.
    pub fn learn_field(&self, api_version: &str, field: &str, value: &str) {
        let mut fields = self.fields.get_or_init(Box::default).lock();
        // Somebody else may have been faster.
        if !fields.iter().any(|f| *f.field == *field && *f.api_version == *api_version) {
            fields.push(FieldValue { api_version: api_version.into(), field: field.into(), value: value.into() });
            fields.shrink_to_fit();
        }
    }

    /// Reads the index of a stored value. `key` is the part behind the resource's prefix.
    pub fn new(key: &str, namespaced: bool, revision: Revision, raw: Bytes) -> Result<Entry, EntryError> {
        match Entry::index(key, namespaced, revision, raw.clone()) {
            Some(entry) => Ok(entry),
            // Another layout: lay it out anew.
            None => {
                let undecodable = |reason: String| EntryError::Undecodable { key: key.to_owned(), reason };
                let mut value = if raw.starts_with(PROTOBUF) {
                    apimachinery::protobuf::decode(&raw).map_err(|e| undecodable(e.to_string()))?
                } else {
                    Value::from_slice(&raw).map_err(|e| undecodable(e.to_string()))?
                };
                crate::crd::stored::upgrade(&mut value);
                if !value["metadata"].is_object() {
                    return Err(undecodable("no metadata".to_owned()));
                }
                Entry::index(key, namespaced, revision, encode_stored(&value).into())
                    .ok_or_else(|| undecodable("no metadata".to_owned()))
            }
        }
    }

    fn index(key: &str, namespaced: bool, revision: Revision, raw: Bytes) -> Option<Entry> {
        let bytes: &[u8] = &raw;
        let mut at = 0;
        for member in [&b"{\"apiVersion\":"[..], b"\"kind\":"] {
            if !bytes[at..].starts_with(member) {
                return None;
            }
            at = skip_value(bytes, at + member.len())?;
            if *bytes.get(at)? != b',' {
                return None;
            }
            at += 1;
        }
        let body_at = at;
        let metadata = loop {
            let value_at = skip_value(bytes, at)? + 1;
            let key = &bytes[at..value_at - 1];
            let end = skip_value(bytes, value_at)?;
            if key == b"\"metadata\"" {
                break value_at..end;
            }
            if *bytes.get(end)? != b',' {
                return None;
            }
            at = end + 1;
        };
        let header: Header = serde_json::from_slice(&bytes[metadata.clone()]).ok()?;
        // An empty object would need no comma behind the version; every object has a name.
        if header.resource_version.is_some() || metadata.len() <= 2 {
            return None;
        }
        let labels = header.labels.map(apimachinery::Map::into_iter).into_iter().flatten();
        let labels = labels.map(|(k, v)| (k, v.as_str().unwrap_or("").into())).collect();
        let namespace_len = if namespaced { key.find('/').unwrap_or(0) } else { 0 };
        Some(Entry {
            key: key.into(),
            revision,
            body_at: body_at as u32,
            version_at: metadata.start as u32 + 1,
            namespace_len: namespace_len as u32,
            labels,
            fields: OnceLock::new(),
            raw,
        })
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn namespace(&self) -> &str {
        &self.key[..self.namespace_len as usize]
    }

    pub fn name(&self) -> &str {
        match self.namespace_len {
            0 => &self.key,
            n => &self.key[n as usize + 1..],
        }
    }

    pub fn labels(&self) -> &[(Str, Str)] {
        &self.labels
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok().map(|i| self.labels[i].1.as_str())
    }

    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    pub fn encoded_len(&self) -> usize {
        self.raw.len() + 48
    }

    /// Appends the object as it is stored, with `revision` as its resourceVersion.
    pub fn write(&self, out: &mut Vec<u8>, revision: Revision) {
        out.extend_from_slice(&self.raw[..self.version_at as usize]);
        self.write_version_and_rest(out, revision);
    }

    /// Appends the object with another `{"apiVersion":..,"kind":..,` in front (`prefix` ends with a comma, or is `{`).
    pub fn write_as(&self, prefix: &[u8], out: &mut Vec<u8>, revision: Revision) {
        out.extend_from_slice(prefix);
        out.extend_from_slice(&self.raw[self.body_at as usize..self.version_at as usize]);
        self.write_version_and_rest(out, revision);
    }

    fn write_version_and_rest(&self, out: &mut Vec<u8>, revision: Revision) {
        out.extend_from_slice(b"\"resourceVersion\":\"");
        write_decimal(out, revision);
        out.extend_from_slice(b"\",");
        out.extend_from_slice(&self.raw[self.version_at as usize..]);
    }

    /// The object as a tree, with its resourceVersion.
    pub fn to_value(&self) -> Value {
        self.to_value_at(self.revision)
    }

    pub fn to_value_at(&self, revision: Revision) -> Value {
        let mut value = Value::from_slice(&self.raw).expect("the bytes were indexed, so they are JSON");
        value.set_at(&["metadata", "resourceVersion"], revision.to_string().into());
        value
    }

    /// Only `metadata`, with its resourceVersion.
    pub fn metadata_at(&self, revision: Revision) -> Value {
        let start = self.version_at as usize - 1;
        let end = skip_value(&self.raw, start).unwrap_or(self.raw.len());
        let mut value = Value::from_slice(&self.raw[start..end]).expect("the bytes were indexed, so they are JSON");
        value.set_at(&["resourceVersion"], revision.to_string().into());
        value
    }
}

/// Appends `n` in decimal.
pub fn write_decimal(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The position behind the compact JSON value that starts at `at`.
fn skip_value(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0usize;
    loop {
        match *bytes.get(at)? {
            b'"' => {
                at += 1;
                loop {
                    match *bytes.get(at)? {
                        b'"' => break,
                        b'\\' => at += 2,
                        _ => at += 1,
                    }
                }
                at += 1;
            }
            b'{' | b'[' => {
                depth += 1;
                at += 1;
                continue;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            b',' | b':' => {
                if depth == 0 {
                    return None;
                }
                at += 1;
                continue;
            }
            b' ' | b'\n' | b'\t' | b'\r' => return None,
            _ => {
                while !matches!(bytes.get(at)?, b',' | b'}' | b']') {
                    at += 1;
                }
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Entries ordered by key, to be found by key.
#[derive(Clone, Debug)]
pub struct ByKey(pub Arc<Entry>);

impl Borrow<str> for ByKey {
    fn borrow(&self) -> &str {
        &self.0.key
    }
}
impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}
impl Eq for ByKey {}
impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    fn written(entry: &Entry) -> String {
        let mut out = Vec::new();
        entry.write(&mut out, entry.revision);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_revision_is_put_into_the_stored_bytes() {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a\"b": "{\\\"}"},
            "metadata": {"name": "x", "namespace": "n", "resourceVersion": "3", "labels": {"b": "2", "a": "1"}}});
        let stored = encode_stored(&object);
        let entry = Entry::new("n/x", true, 17, stored.into()).unwrap();
        assert_eq!((entry.namespace(), entry.name()), ("n", "x"));
        assert_eq!(entry.label("b"), Some("2"));
        assert_eq!(entry.label("c"), None);
        let mut want = object.clone();
        want.set_at(&["metadata", "resourceVersion"], "17".into());
        assert_eq!(Value::from_slice(written(&entry).as_bytes()).unwrap(), want);
        assert_eq!(entry.to_value(), want);
        assert_eq!(entry.metadata_at(17), want["metadata"]);
        let mut item = Vec::new();
        entry.write_as(b"{", &mut item, 17);
        want.as_object_mut().unwrap().retain(|k, _| k != "kind" && k != "apiVersion");
        assert_eq!(Value::from_slice(&item).unwrap(), want);
    }

    #[test]
    fn values_in_protobuf_are_read() {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "b"},
            "metadata": {"name": "x", "namespace": "n", "labels": {"a": "1"}}});
        let raw = apimachinery::protobuf::encode(&object).unwrap();
        assert!(raw.starts_with(PROTOBUF));
        let entry = Entry::new("n/x", true, 7, raw.into()).unwrap();
        assert_eq!((entry.label("a"), entry.to_value()["data"]["a"].as_str()), (Some("1"), Some("b")));
        assert!(Entry::new("n/x", true, 7, Bytes::from_static(b"k8s\0broken")).is_err());
    }

    #[test]
    fn values_of_another_layout_are_laid_out_anew() {
        for raw in [
            r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"}}"#,
            "{ \"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"x\", \"resourceVersion\": \"9\"} }\n",
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}"#,
        ] {
            let entry = Entry::new("x", false, 5, Bytes::from_static(raw.as_bytes())).unwrap();
            assert_eq!(
                written(&entry),
                r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"resourceVersion":"5","name":"x"}}"#,
                "{raw}"
            );
        }
        for raw in ["", "[]", "{}", "k8s\0", r#"{"apiVersion":"v1","kind":"X"}"#] {
            assert!(Entry::new("x", false, 5, Bytes::from_static(raw.as_bytes())).is_err(), "{raw}");
        }
    }
}
