//! Slim views of objects: the metadata every controller reads, and the ways an object can be held.

use std::fmt;

use apimachinery::Value;
use apimachinery::json::Str;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// An object a cache can hold.
pub trait Cached: DeserializeOwned + Send + Sync + 'static {
    fn metadata(&self) -> &ObjectMeta;
}

/// Where an object is within its resource. `namespace` is empty for cluster-scoped objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: Str,
    pub name: Str,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<Str>, name: impl Into<Str>) -> Self {
        ObjectKey { namespace: namespace.into(), name: name.into() }
    }

    pub fn cluster(name: impl Into<Str>) -> Self {
        ObjectKey { namespace: Str::const_new(""), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Labels or annotations: pairs sorted by key. Empty ones allocate nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct StrMap(Vec<(Str, Str)>);

impl StrMap {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok().map(|i| self.0[i].1.as_str())
    }

    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn insert(&mut self, key: impl Into<Str>, value: impl Into<Str>) {
        let key = key.into();
        match self.0.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(i) => self.0[i].1 = value.into(),
            Err(i) => self.0.insert(i, (key, value.into())),
        }
    }

    pub fn remove(&mut self, key: &str) -> Option<Str> {
        self.0.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok().map(|i| self.0.remove(i).1)
    }

    pub fn to_value(&self) -> Value {
        Value::Object(self.iter().map(|(k, v)| (k, Value::from(v))).collect())
    }
}

impl<K: Into<Str>, V: Into<Str>> FromIterator<(K, V)> for StrMap {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(iter: T) -> Self {
        let mut pairs: Vec<(Str, Str)> = iter.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        // Stable: of equal keys the last one wins.
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs.reverse();
        pairs.dedup_by(|a, b| a.0 == b.0);
        pairs.reverse();
        pairs.shrink_to_fit();
        StrMap(pairs)
    }
}

impl Serialize for StrMap {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for StrMap {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = StrMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }
            fn visit_unit<E>(self) -> Result<StrMap, E> {
                Ok(StrMap::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<StrMap, A::Error> {
                let mut pairs: Vec<(Str, Str)> = Vec::new();
                while let Some((k, v)) = access.next_entry::<Str, Option<Str>>()? {
                    pairs.push((k, v.unwrap_or_default()));
                }
                Ok(pairs.into_iter().collect())
            }
        }
        d.deserialize_any(V)
    }
}

/// Reads `null` as the default, as Go does.
pub fn null_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// The part of `metadata` that controllers read. Leaves out managedFields and the rest.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    pub name: Str,
    #[serde(deserialize_with = "null_default")]
    pub namespace: Str,
    #[serde(deserialize_with = "null_default")]
    pub uid: Str,
    #[serde(deserialize_with = "null_default")]
    pub resource_version: Str,
    #[serde(deserialize_with = "null_default")]
    pub generation: i64,
    pub creation_timestamp: Option<Timestamp>,
    pub deletion_timestamp: Option<Timestamp>,
    pub deletion_grace_period_seconds: Option<i64>,
    #[serde(deserialize_with = "null_default")]
    pub labels: StrMap,
    #[serde(deserialize_with = "null_default")]
    pub annotations: StrMap,
    #[serde(deserialize_with = "null_default")]
    pub owner_references: Vec<OwnerReference>,
    #[serde(deserialize_with = "null_default")]
    pub finalizers: Vec<Str>,
}

impl ObjectMeta {
    pub fn key(&self) -> ObjectKey {
        ObjectKey { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// The owner reference that has `controller: true`.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|o| o.controller == Some(true))
    }

    pub fn is_controlled_by(&self, uid: &str) -> bool {
        self.controller().is_some_and(|o| o.uid == uid)
    }

    pub fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    pub fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|f| f == name)
    }
}

/// `metadata.ownerReferences[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    pub api_version: Str,
    pub kind: Str,
    pub name: Str,
    pub uid: Str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

/// An object of which only the metadata is kept.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Header {
    pub metadata: ObjectMeta,
}

impl Cached for Header {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// An object of which only the metadata is kept, without labels and annotations.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeanHeader {
    metadata: ObjectMeta,
}

impl<'de> Deserialize<'de> for LeanHeader {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut metadata = Header::deserialize(d)?.metadata;
        metadata.labels = StrMap::default();
        metadata.annotations = StrMap::default();
        Ok(LeanHeader { metadata })
    }
}

impl Cached for LeanHeader {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// An object kept as the bytes that were received: the least memory for a whole object.
///
/// Objects that came from a LIST of a built-in kind carry no `apiVersion` and `kind`; those from a WATCH do.
#[derive(Clone, Debug)]
pub struct RawObject {
    pub metadata: ObjectMeta,
    pub json: Box<RawValue>,
}

impl RawObject {
    /// The tree of this object.
    pub fn to_tree(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_str(self.json.get())
    }
}

impl<'de> Deserialize<'de> for RawObject {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(d)?;
        let header: Header = serde_json::from_str(json.get()).map_err(serde::de::Error::custom)?;
        Ok(RawObject { metadata: header.metadata, json })
    }
}

impl Cached for RawObject {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// An object whose content is wanted once: kept as the bytes that were received until [`ReadOnce::spend`], then only its
/// metadata without labels and annotations.
#[derive(Debug)]
pub struct ReadOnce {
    metadata: ObjectMeta,
    json: Mutex<Option<Box<RawValue>>>,
}

impl ReadOnce {
    /// The tree of this object; `None` once it is spent.
    pub fn to_tree(&self) -> Option<Value> {
        self.json.lock().as_ref().and_then(|json| serde_json::from_str(json.get()).ok())
    }

    /// Gives the content back.
    pub fn spend(&self) {
        *self.json.lock() = None;
    }
}

impl<'de> Deserialize<'de> for ReadOnce {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(d)?;
        let mut metadata = serde_json::from_str::<Header>(json.get()).map_err(serde::de::Error::custom)?.metadata;
        metadata.labels = StrMap::default();
        metadata.annotations = StrMap::default();
        Ok(ReadOnce { metadata, json: Mutex::new(Some(json)) })
    }
}

impl Cached for ReadOnce {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// An object kept as its tree, with its metadata read beside it.
#[derive(Clone, Debug)]
pub struct TreeObject {
    pub metadata: ObjectMeta,
    pub value: Value,
}

impl<'de> Deserialize<'de> for TreeObject {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(d)?;
        let header: Header = serde_json::from_str(raw.get()).map_err(serde::de::Error::custom)?;
        let value = serde_json::from_str(raw.get()).map_err(serde::de::Error::custom)?;
        Ok(TreeObject { metadata: header.metadata, value })
    }
}

impl Cached for TreeObject {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_reads_what_is_there_and_takes_null_as_absent() {
        let json = r#"{"kind":"Pod","metadata":{"name":"a","namespace":"n","uid":"u","labels":{"b":"2","a":"1"},
            "annotations":null,"creationTimestamp":"2026-01-02T03:04:05Z","deletionTimestamp":null,"managedFields":[{}],
            "ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"r","uid":"ru","controller":true}]}}"#;
        let raw: RawObject = serde_json::from_str(json).unwrap();
        assert_eq!(raw.metadata.key().to_string(), "n/a");
        assert_eq!(raw.metadata.labels.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
        assert!(raw.metadata.is_controlled_by("ru") && !raw.metadata.is_deleting());
        assert_eq!(raw.to_tree().unwrap().str_at(&["kind"]), "Pod");
        let tree: TreeObject = serde_json::from_str(json).unwrap();
        assert_eq!(tree.metadata, raw.metadata);
    }

    #[test]
    fn what_is_read_once_is_given_back() {
        let json = r#"{"metadata":{"name":"a","namespace":"n","annotations":{"a":"1"}},"reason":"Started"}"#;
        let event: ReadOnce = serde_json::from_str(json).unwrap();
        assert_eq!(event.to_tree().unwrap().str_at(&["reason"]), "Started");
        event.spend();
        assert!(event.to_tree().is_none());
        assert_eq!(event.metadata().key().to_string(), "n/a");
        assert!(event.metadata().annotations.is_empty());
    }

    #[test]
    fn of_equal_keys_the_last_wins() {
        let map: StrMap = [("a", "1"), ("b", "2"), ("a", "3")].into_iter().collect();
        assert_eq!(map.get("a"), Some("3"));
        assert_eq!(map.len(), 2);
    }
}
