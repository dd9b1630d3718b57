//! The pairs of virtual and host objects, kept in the virtual cluster's own store under vCluster's keys: other tools and
//! other replicas find them there, and a name that was given to one object is not given to another after a restart.
//!
//! Writing is apart from syncing: a store that is slow or away holds nothing up.

use std::sync::Arc;

use apimachinery::{Value, json};
use informer::{ObjectMeta, Outcome, Queue};

use super::Engine;
use crate::decisions::{Decisions, Pair, deciding};
use crate::kind::{Kind, Naming};
use crate::metadata::{HOST_NAME_ANNOTATION, HOST_NAMESPACE_ANNOTATION};
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

/// Of which object the store may hold something else than is decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    group: String,
    version: String,
    /// In lower case.
    kind: String,
    virtual_: NamespacedName,
}

impl Key {
    fn of(pair: &Pair) -> Key {
        Key {
            group: pair.group.clone(),
            version: pair.version.clone(),
            kind: pair.kind.to_lowercase(),
            virtual_: pair.virtual_.clone(),
        }
    }

    /// The key in the store.
    fn encode(&self) -> String {
        let separator = if self.group.is_empty() { "" } else { "/" };
        format!("{PREFIX}{}{separator}{}/{}/{}", self.group, self.version, self.kind, self.virtual_)
    }
}

/// The value in the store.
fn encode(pair: &Pair, sender: &str) -> Vec<u8> {
    let name = |n: &NamespacedName| json!({"Namespace": (n.namespace.as_str()), "Name": (n.name.as_str())});
    let value = json!({
        "Group": (pair.group.as_str()), "Version": (pair.version.as_str()), "Kind": (pair.kind.as_str()),
        "VirtualName": (name(&pair.virtual_)), "HostName": (name(&pair.host)), "sender": sender,
    });
    value.to_string().into_bytes()
}

fn decode(bytes: &[u8]) -> Option<Pair> {
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

/// The decisions of one virtual cluster, and what keeps them.
pub struct Mappings {
    store: Option<Arc<dyn MappingStore>>,
    pub decisions: Arc<Decisions>,
    pub queue: Queue<Key>,
}

impl Mappings {
    pub fn new(store: Option<Arc<dyn MappingStore>>) -> Mappings {
        let queue: Queue<Key> = Queue::default();
        let (of, is_on) = (queue.clone(), store.is_some());
        let decisions = Decisions::new(move |pair| {
            if is_on {
                of.add(Key::of(&pair));
            }
        });
        Mappings { store, decisions: Arc::new(decisions), queue }
    }

    pub fn is_on(&self) -> bool {
        self.store.is_some()
    }

    /// Reads what was kept before. What contradicts the host's own objects, or another pair, is dropped.
    pub async fn load(&self) -> Result<(), MappingError> {
        let Some(store) = &self.store else { return Ok(()) };
        for (key, value) in store.load(PREFIX).await.map_err(MappingError)? {
            let pair = decode(&value).filter(|p| Key::of(p).encode() == key);
            let kept = pair
                .as_ref()
                .is_some_and(|p| self.decisions.adopt(&p.group, &p.version, &p.kind, &p.virtual_, &p.host));
            match pair {
                Some(pair) if !kept => self.queue.add(Key::of(&pair)),
                Some(_) => {}
                None => {
                    tracing::warn!(key, "removing a mapping that cannot be read");
                    store.delete(&key).await.map_err(MappingError)?;
                }
            }
        }
        Ok(())
    }

    /// Looks for what the store holds and nobody decided: a replica that stops may write once more after another one has read.
    pub async fn compare(&self) -> Result<(), MappingError> {
        let Some(store) = &self.store else { return Ok(()) };
        for (_, value) in store.load(PREFIX).await.map_err(MappingError)? {
            let Some(pair) = decode(&value) else { continue };
            let key = Key::of(&pair);
            if self.decisions.recorded(&key.group, &key.version, &key.kind, &key.virtual_) != Some(pair) {
                self.queue.add(key);
            }
        }
        Ok(())
    }

    /// Makes the store hold what is decided.
    pub async fn write(&self, key: &Key, sender: &str) -> Result<Outcome, MappingError> {
        let Some(store) = &self.store else { return Ok(Outcome::Done) };
        let written = match self.decisions.recorded(&key.group, &key.version, &key.kind, &key.virtual_) {
            Some(pair) => store.put(&key.encode(), encode(&pair, sender)).await,
            None => store.delete(&key.encode()).await,
        };
        written.map(|()| Outcome::Done).map_err(MappingError)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("could not write a mapping: {0}")]
pub struct MappingError(String);

impl Engine {
    /// A host object of ours has the name that it has: also when the store has nothing about it, when other rules gave the
    /// name, and when another object would get it by the rules of now.
    pub(super) fn adopt_name(&self, kind: &Kind, virtual_: &NamespacedName, host: &ObjectMeta) {
        let at = NamespacedName::new(host.namespace.as_str(), host.name.as_str());
        if self.mappings.decisions.known(kind, virtual_).is_some_and(|known| known == at) {
            return;
        }
        let says = |key| host.annotations.get(key).unwrap_or_default();
        // A copy that some controller made carries the annotations of the original.
        let original = says(HOST_NAME_ANNOTATION) == at.name && says(HOST_NAMESPACE_ANNOTATION) == at.namespace;
        if original
            && kind.naming != Naming::Mirror
            // A Service decides for its Endpoints.
            && (deciding(kind) == kind || kind.rule(&self.names, virtual_) != at)
            && (at.namespace.is_empty() || self.names.is_target_namespace(&at.namespace))
        {
            let kind = deciding(kind);
            self.mappings.decisions.adopt(&kind.group, &kind.version, &kind.kind, virtual_, &at);
        }
    }

    /// Drops pairs whose two objects are gone, and names that nothing refers to any more. At the start not all kinds are known.
    pub(super) fn collect_mappings(&self, at_start: bool) {
        let types = self.all_types();
        for (pair, _) in self.mappings.decisions.all() {
            let of = types.iter().find(|t| t.ty.kind().kind == pair.kind && t.ty.kind().group == pair.group);
            // Of a kind that is not synced any more nothing is known.
            let gone = of.map_or(!at_start, |t| {
                let kind = t.ty.kind();
                self.virtual_side.get(kind, &pair.virtual_).is_none()
                    && self.host_side.get(kind, &pair.host).is_none()
                    && !self.is_referred(kind, &pair.virtual_)
            });
            if gone {
                self.mappings.decisions.forget(&pair.group, &pair.kind, &pair.virtual_);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind;

    fn pair(kind: &Kind, virtual_: NamespacedName, host: NamespacedName) -> Pair {
        let of = |part: &std::borrow::Cow<'static, str>| part.to_string();
        Pair { group: of(&kind.group), version: of(&kind.version), kind: of(&kind.kind), virtual_, host }
    }

    #[test]
    fn keys_and_values_are_vclusters() {
        let on_host = NamespacedName::new("h", "web-x-default-x-vc");
        let web = pair(&kind::POD, NamespacedName::new("default", "web"), on_host);
        assert_eq!(Key::of(&web).encode(), "/vcluster/mappings/v1/pod/default/web");
        let class = pair(&kind::STORAGE_CLASS, NamespacedName::new("", "fast"), NamespacedName::new("", "f"));
        assert_eq!(Key::of(&class).encode(), "/vcluster/mappings/storage.k8s.io/v1/storageclass/fast");
        let value = Value::from_slice(&encode(&web, "me")).expect("JSON");
        assert_eq!(
            value,
            json!({"Group": "", "Version": "v1", "Kind": "Pod", "sender": "me",
                "VirtualName": {"Namespace": "default", "Name": "web"},
                "HostName": {"Namespace": "h", "Name": "web-x-default-x-vc"}})
        );
        assert_eq!(decode(&encode(&web, "me")), Some(web.clone()));
        assert_eq!(decode(b"{}"), None);
    }

    /// A store in memory.
    #[derive(Default)]
    struct InMemory(parking_lot::Mutex<std::collections::BTreeMap<String, Vec<u8>>>);

    #[async_trait::async_trait]
    impl MappingStore for InMemory {
        async fn load(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
            let all = self.0.lock();
            Ok(all.iter().filter(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), String> {
            self.0.lock().insert(key.to_owned(), value);
            Ok(())
        }
        async fn delete(&self, key: &str) -> Result<(), String> {
            self.0.lock().remove(key);
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_was_decided_is_decided_after_a_restart() {
        let store = Arc::new(InMemory::default());
        let broken = "/vcluster/mappings/v1/pod/a/b".to_owned();
        store.0.lock().insert(broken.clone(), b"{}".to_vec());
        let start = || Mappings::new(Some(store.clone() as Arc<dyn MappingStore>));
        let names = |m: &Mappings| crate::names::Names::new("vc", "h").with_decisions(m.decisions.clone());
        let (first, second) = (NamespacedName::new("c", "a-x-b"), NamespacedName::new("b-x-c", "a"));

        let mappings = start();
        mappings.load().await.expect("the store is there");
        assert!(!store.0.lock().contains_key(&broken), "what cannot be read is removed");
        let usual = kind::POD.host_name(&names(&mappings), &first);
        let other = kind::POD.host_name(&names(&mappings), &second);
        assert_ne!(usual, other, "two objects, two names");
        assert!(other.name.len() <= 63 && other.name.starts_with("a-x-b-x-c"), "{other}");
        assert!(mappings.decisions.record(&kind::POD, &first, &usual));
        while !mappings.queue.is_empty() {
            let key = mappings.queue.get().await.expect("not shut down");
            mappings.write(&key, "me").await.expect("the store is there");
            mappings.queue.done(&key);
        }
        assert_eq!(store.0.lock().len(), 2);

        // Asked in the other order.
        let mappings = start();
        mappings.load().await.expect("the store is there");
        assert_eq!(kind::POD.host_name(&names(&mappings), &second), other);
        assert_eq!(kind::POD.host_name(&names(&mappings), &first), usual);
    }
}
