//! The objects an informer knows, by key and by index.
//!
//! Invariants:
//! - Objects are immutable; a reader keeps its `Arc` while the cache moves on.
//! - Each index holds exactly the values its function gives for the objects that are present.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::json::Str;
use parking_lot::RwLock;

use crate::meta::{Cached, ObjectKey};

/// What happened to an object.
pub enum Change<'a, K> {
    Added(&'a Arc<K>),
    Updated {
        old: &'a Arc<K>,
        new: &'a Arc<K>,
    },
    /// The last state known; after a gap this can be older than the state at deletion.
    Deleted(&'a Arc<K>),
}

impl<'a, K> Change<'a, K> {
    /// The object: its new state, or its last when it is gone.
    pub fn object(&self) -> &'a Arc<K> {
        match self {
            Change::Added(o) | Change::Deleted(o) => o,
            Change::Updated { new, .. } => new,
        }
    }

    pub fn is_deleted(&self) -> bool {
        matches!(self, Change::Deleted(_))
    }
}

type IndexFn<K> = Box<dyn Fn(&K, &mut Vec<Str>) + Send + Sync>;

struct Index<K> {
    name: &'static str,
    values: IndexFn<K>,
    keys: BTreeMap<Str, Vec<ObjectKey>>,
}

impl<K> Index<K> {
    fn insert(&mut self, key: &ObjectKey, object: &K) {
        let mut values = Vec::new();
        (self.values)(object, &mut values);
        for value in values {
            let keys = self.keys.entry(value).or_default();
            if let Err(i) = keys.binary_search(key) {
                keys.insert(i, key.clone());
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey, object: &K) {
        let mut values = Vec::new();
        (self.values)(object, &mut values);
        for value in values {
            let Some(keys) = self.keys.get_mut(&value) else { continue };
            if let Ok(i) = keys.binary_search(key) {
                keys.remove(i);
            }
            if keys.is_empty() {
                self.keys.remove(&value);
            }
        }
    }
}

struct State<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    indexes: Vec<Index<K>>,
}

/// The objects of one source.
pub struct Cache<K> {
    state: RwLock<State<K>>,
}

impl<K: Cached> Default for Cache<K> {
    fn default() -> Self {
        Cache { state: RwLock::new(State { objects: BTreeMap::new(), indexes: Vec::new() }) }
    }
}

impl<K: Cached> Cache<K> {
    /// Adds an index, or does nothing when one of that name exists. `values` gives the values an object is found by.
    pub fn add_index(&self, name: &'static str, values: impl Fn(&K, &mut Vec<Str>) + Send + Sync + 'static) {
        let mut guard = self.state.write();
        let state = &mut *guard;
        if state.indexes.iter().any(|i| i.name == name) {
            return;
        }
        let mut index = Index { name, values: Box::new(values), keys: BTreeMap::new() };
        for (key, object) in &state.objects {
            index.insert(key, object);
        }
        state.indexes.push(index);
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.state.read().objects.get(key).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.state.read().objects.values().cloned().collect()
    }

    /// The objects of one namespace, ordered by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let state = self.state.read();
        let from = ObjectKey::new(namespace, "");
        state
            .objects
            .range(from..)
            .take_while(|(k, _)| k.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// The objects for which the index `name` has `value`. None when there is no such index.
    pub fn by_index(&self, name: &'static str, value: &str) -> Vec<Arc<K>> {
        let state = self.state.read();
        let Some(index) = state.indexes.iter().find(|i| i.name == name) else { return Vec::new() };
        let Some(keys) = index.keys.get(value) else { return Vec::new() };
        keys.iter().filter_map(|k| state.objects.get(k).cloned()).collect()
    }

    /// How many objects the index `name` has for `value`.
    pub fn count_index(&self, name: &'static str, value: &str) -> usize {
        let state = self.state.read();
        state.indexes.iter().find(|i| i.name == name).and_then(|i| i.keys.get(value)).map_or(0, Vec::len)
    }

    pub fn keys(&self) -> Vec<ObjectKey> {
        self.state.read().objects.keys().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts an object, giving the one it replaces.
    pub(crate) fn put(&self, object: Arc<K>) -> Option<Arc<K>> {
        let key = object.metadata().key();
        let mut guard = self.state.write();
        let state = &mut *guard;
        let old = state.objects.get(&key).cloned();
        for index in &mut state.indexes {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, &object);
        }
        state.objects.insert(key, object);
        old
    }

    pub(crate) fn remove(&self, key: &ObjectKey) -> Option<Arc<K>> {
        let mut guard = self.state.write();
        let state = &mut *guard;
        let old = state.objects.remove(key)?;
        for index in &mut state.indexes {
            index.remove(key, &old);
        }
        Some(old)
    }
}
