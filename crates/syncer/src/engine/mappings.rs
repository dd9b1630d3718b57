//! The pairs of virtual and host objects, kept in the virtual cluster's own store under vCluster's keys: other tools and
//! other replicas find them there, and a name that was given to one object is not given to another after a restart.
//!
//! Writing is apart from syncing: a store that is slow or away holds nothing up.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::{Value, json};
use informer::{Outcome, Queue};
use parking_lot::Mutex;

use super::Engine;
use crate::kind::Kind;
use crate::names::NamespacedName;

pub const PREFIX: &str = "/vcluster/mappings/";
/// Where pairs are kept. Errors are texts: there is nothing to do about them but to try again.
#[async_trait::async_trait]
pub trait MappingStore: Send + Sync {
    /// All keys with this prefix, with their values.
    async fn load(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, String>;
    async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), String>;
    async fn delete(&self, key: &str) -> Result<(), String>;
}

/// A virtual object with its host object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub virtual_: NamespacedName,
    pub host: NamespacedName,
}

impl Pair {
    pub fn new(kind: &Kind, virtual_: &NamespacedName, host: &NamespacedName) -> Pair {
        Pair {
            group: kind.group.to_string(),
            version: kind.version.to_string(),
            kind: kind.kind.to_string(),
            virtual_: virtual_.clone(),
            host: host.clone(),
        }
    }

    fn group_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The key in the store.
    pub fn key(&self) -> String {
        format!("{PREFIX}{}/{}/{}", self.group_version(), self.kind.to_lowercase(), self.virtual_)
    }

    fn host_key(&self) -> String {
        format!("{}/{}/{}", self.group_version(), self.kind.to_lowercase(), self.host)
    }

    /// The value in the store.
    pub fn encode(&self, sender: &str) -> Vec<u8> {
        let name = |n: &NamespacedName| json!({"Namespace": (n.namespace.as_str()), "Name": (n.name.as_str())});
        let value = json!({
            "Group": (self.group.as_str()), "Version": (self.version.as_str()), "Kind": (self.kind.as_str()),
            "VirtualName": (name(&self.virtual_)), "HostName": (name(&self.host)), "sender": sender,
        });
        value.to_string().into_bytes()
    }

    pub fn decode(bytes: &[u8]) -> Option<Pair> {
        let value = Value::from_slice(bytes).ok()?;
        let text = |path: &[&str]| value.str_at(path).to_owned();
        let name = |member: &str| NamespacedName::new(text(&[member, "Namespace"]), text(&[member, "Name"]));
        let pair = Pair {
            group: text(&["Group"]),
            version: text(&["Version"]),
            kind: text(&["Kind"]),
            virtual_: name("VirtualName"),
            host: name("HostName"),
        };
        (!pair.kind.is_empty() && !pair.virtual_.name.is_empty() && !pair.host.name.is_empty()).then_some(pair)
    }
}

#[derive(Default)]
struct Known {
    by_key: HashMap<String, Pair>,
    by_host: HashMap<String, String>,
}

/// The pairs of one virtual cluster.
pub struct Mappings {
    store: Option<Arc<dyn MappingStore>>,
    known: Mutex<Known>,
    /// Keys whose value in the store may be another one than here.
    pub queue: Queue<String>,
}

impl Mappings {
    pub fn new(store: Option<Arc<dyn MappingStore>>) -> Mappings {
        Mappings { store, known: Mutex::default(), queue: Queue::default() }
    }

    pub fn is_on(&self) -> bool {
        self.store.is_some()
    }

    /// Remembers a pair. False: the host object is another virtual object's.
    pub fn record(&self, pair: Pair) -> bool {
        if self.store.is_none() {
            return true;
        }
        let (key, host_key) = (pair.key(), pair.host_key());
        let mut known = self.known.lock();
        match known.by_key.get(&key) {
            Some(old) if *old == pair => return true,
            Some(old) => {
                let old = old.host_key();
                known.by_host.remove(&old);
            }
            None => {}
        }
        if known.by_host.get(&host_key).is_some_and(|other| *other != key) {
            return false;
        }
        known.by_host.insert(host_key, key.clone());
        known.by_key.insert(key.clone(), pair);
        drop(known);
        self.queue.add(key);
        true
    }

    pub fn forget(&self, pair: &Pair) {
        let key = pair.key();
        let mut known = self.known.lock();
        if let Some(old) = known.by_key.remove(&key) {
            known.by_host.remove(&old.host_key());
            drop(known);
            self.queue.add(key);
        }
    }

    pub fn all(&self) -> Vec<Pair> {
        let mut all: Vec<Pair> = self.known.lock().by_key.values().cloned().collect();
        all.sort_by_key(Pair::key);
        all
    }

    /// Reads what was kept before. A pair that contradicts another one is dropped.
    pub async fn load(&self) {
        let Some(store) = &self.store else { return };
        match store.load(PREFIX).await {
            Ok(entries) => {
                for (key, value) in entries {
                    let pair = Pair::decode(&value).filter(|p| p.key() == key);
                    if !pair.is_some_and(|p| self.record(p)) {
                        self.queue.add(key);
                    }
                }
            }
            Err(error) => tracing::warn!(error, "could not read the mappings; they are made again"),
        }
    }

    /// Makes the store hold what is known of a key.
    pub async fn write(&self, key: &str, sender: &str) -> Result<Outcome, MappingError> {
        let Some(store) = &self.store else { return Ok(Outcome::Done) };
        let pair = self.known.lock().by_key.get(key).cloned();
        let written = match pair {
            Some(pair) => store.put(key, pair.encode(sender)).await,
            None => store.delete(key).await,
        };
        written.map(|()| Outcome::Done).map_err(MappingError)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("could not write a mapping: {0}")]
pub struct MappingError(String);

impl Engine {
    /// Drops pairs whose two objects are gone.
    pub(super) fn collect_mappings(&self) {
        let types = self.all_types();
        for pair in self.mappings.all() {
            let of = types.iter().find(|t| t.ty.kind().kind == pair.kind && t.ty.kind().group == pair.group);
            // Of a kind that is not synced any more nothing is known.
            let gone = of.is_none_or(|t| {
                let kind = t.ty.kind();
                self.virtual_side.get(kind, &pair.virtual_).is_none() && self.host_side.get(kind, &pair.host).is_none()
            });
            if gone {
                self.mappings.forget(&pair);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind;

    #[test]
    fn keys_and_values_are_vclusters() {
        let pair = |name: &str, host: &str| {
            Pair::new(&kind::POD, &NamespacedName::new("default", name), &NamespacedName::new("h", host))
        };
        let web = pair("web", "web-x-default-x-vc");
        assert_eq!(web.key(), "/vcluster/mappings/v1/pod/default/web");
        let class = Pair::new(&kind::STORAGE_CLASS, &NamespacedName::new("", "fast"), &NamespacedName::new("", "f"));
        assert_eq!(class.key(), "/vcluster/mappings/storage.k8s.io/v1/storageclass/fast");
        let value = Value::from_slice(&web.encode("me")).expect("JSON");
        assert_eq!(
            value,
            json!({"Group": "", "Version": "v1", "Kind": "Pod", "sender": "me",
                "VirtualName": {"Namespace": "default", "Name": "web"},
                "HostName": {"Namespace": "h", "Name": "web-x-default-x-vc"}})
        );
        assert_eq!(Pair::decode(&web.encode("me")), Some(web.clone()));
        assert_eq!(Pair::decode(b"{}"), None);
    }

    #[tokio::test]
    async fn one_host_object_is_one_virtual_objects() {
        struct Nowhere;
        #[async_trait::async_trait]
        impl MappingStore for Nowhere {
            async fn load(&self, _: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
                Ok(vec![("/vcluster/mappings/v1/pod/a/b".into(), b"{}".to_vec())])
            }
            async fn put(&self, _: &str, _: Vec<u8>) -> Result<(), String> {
                Ok(())
            }
            async fn delete(&self, _: &str) -> Result<(), String> {
                Ok(())
            }
        }
        let mappings = Mappings::new(Some(Arc::new(Nowhere)));
        mappings.load().await;
        assert_eq!(mappings.queue.len(), 1, "what cannot be read is removed");
        let pair = |virtual_: &str, host: &str| {
            Pair::new(&kind::POD, &NamespacedName::new("n", virtual_), &NamespacedName::new("h", host))
        };
        for (virtual_, host, want) in
            [("a", "x", true), ("b", "x", false), ("a", "x", true), ("a", "y", true), ("b", "x", true)]
        {
            assert_eq!(mappings.record(pair(virtual_, host)), want, "{virtual_} {host}");
        }
        mappings.forget(&pair("a", "y"));
        assert_eq!(mappings.all(), [pair("b", "x")]);
    }
}
