//! The objects an informer knows, by key and by index.
//!
//! One untyped core serves all kinds, so that a kind costs the code of its reader and of a thin typed face, not another copy of
//! maps and indexes.
//!
//! Invariants:
//! - Objects are immutable; a reader keeps its `Arc` while the cache moves on.
//! - Each index holds exactly the values its function gives for the objects that are present.

use std::any::Any;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use apimachinery::json::Str;
use parking_lot::RwLock;

use crate::factory::Shared;
use crate::meta::{Cached, ObjectKey, ObjectMeta};

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

/// What the untyped core knows of an object.
pub(crate) trait Held: Any + Send + Sync {
    fn meta(&self) -> &ObjectMeta;
}

impl<K: Cached> Held for K {
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }
}

/// An object of a kind that only its informer's face knows.
pub(crate) type Object = Arc<dyn Held>;

/// The object as its kind.
pub(crate) fn typed<K: Cached>(object: &Object) -> Arc<K> {
    let object: Arc<dyn Any + Send + Sync> = object.clone();
    object.downcast().expect("an informer reads objects of its own type only")
}

type IndexFn = Box<dyn Fn(&dyn Held, &mut Vec<Str>) + Send + Sync>;

struct Index {
    name: &'static str,
    values: IndexFn,
    keys: BTreeMap<Str, Vec<ObjectKey>>,
}

impl Index {
    fn insert(&mut self, key: &ObjectKey, object: &dyn Held) {
        let mut values = Vec::new();
        (self.values)(object, &mut values);
        for value in values {
            let keys = self.keys.entry(value).or_default();
            if let Err(i) = keys.binary_search(key) {
                keys.insert(i, key.clone());
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey, object: &dyn Held) {
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

#[derive(Default)]
struct State {
    objects: BTreeMap<ObjectKey, Object>,
    indexes: Vec<Index>,
}

/// The objects of one source, whatever their kind.
#[derive(Default)]
pub(crate) struct Objects {
    state: RwLock<State>,
}

impl Objects {
    fn add_index(&self, name: &'static str, values: IndexFn) {
        let mut guard = self.state.write();
        let state = &mut *guard;
        if state.indexes.iter().any(|i| i.name == name) {
            return;
        }
        let mut index = Index { name, values, keys: BTreeMap::new() };
        for (key, object) in &state.objects {
            index.insert(key, &**object);
        }
        state.indexes.push(index);
    }

    fn get(&self, key: &ObjectKey) -> Option<Object> {
        self.state.read().objects.get(key).cloned()
    }

    pub fn list(&self) -> Vec<Object> {
        self.state.read().objects.values().cloned().collect()
    }

    fn list_namespace(&self, namespace: &str) -> Vec<Object> {
        let state = self.state.read();
        let from = ObjectKey::new(namespace, "");
        state
            .objects
            .range(from..)
            .take_while(|(k, _)| k.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    fn by_index(&self, name: &'static str, value: &str) -> Vec<Object> {
        let state = self.state.read();
        let Some(index) = state.indexes.iter().find(|i| i.name == name) else { return Vec::new() };
        let Some(keys) = index.keys.get(value) else { return Vec::new() };
        keys.iter().filter_map(|k| state.objects.get(k).cloned()).collect()
    }

    fn count_index(&self, name: &'static str, value: &str) -> usize {
        let state = self.state.read();
        state.indexes.iter().find(|i| i.name == name).and_then(|i| i.keys.get(value)).map_or(0, Vec::len)
    }

    pub fn keys(&self) -> Vec<ObjectKey> {
        self.state.read().objects.keys().cloned().collect()
    }

    fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// Puts an object, giving the one it replaces.
    pub fn put(&self, object: Object) -> Option<Object> {
        let key = object.meta().key();
        let mut guard = self.state.write();
        let state = &mut *guard;
        let old = state.objects.get(&key).cloned();
        for index in &mut state.indexes {
            if let Some(old) = &old {
                index.remove(&key, &**old);
            }
            index.insert(&key, &*object);
        }
        state.objects.insert(key, object);
        old
    }

    pub fn remove(&self, key: &ObjectKey) -> Option<Object> {
        let mut guard = self.state.write();
        let state = &mut *guard;
        let old = state.objects.remove(key)?;
        for index in &mut state.indexes {
            index.remove(key, &*old);
        }
        Some(old)
    }
}

fn all_typed<K: Cached>(objects: &[Object]) -> Vec<Arc<K>> {
    objects.iter().map(typed).collect()
}

/// The objects of one source.
pub struct Cache<K> {
    shared: Arc<Shared>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Cache { shared: self.shared.clone(), kind: PhantomData }
    }
}

impl<K: Cached> Cache<K> {
    /// The face of a core that reads objects as `K`.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Cache { shared, kind: PhantomData }
    }

    /// Adds an index, or does nothing when one of that name exists. `values` gives the values an object is found by.
    pub fn add_index(&self, name: &'static str, values: impl Fn(&K, &mut Vec<Str>) + Send + Sync + 'static) {
        let values = move |object: &dyn Held, found: &mut Vec<Str>| {
            let object: &dyn Any = object;
            if let Some(object) = object.downcast_ref::<K>() {
                values(object, found);
            }
        };
        self.shared.objects.add_index(name, Box::new(values));
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.shared.objects.get(key).as_ref().map(typed)
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        all_typed(&self.shared.objects.list())
    }

    /// The objects of one namespace, ordered by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        all_typed(&self.shared.objects.list_namespace(namespace))
    }

    /// The objects for which the index `name` has `value`. None when there is no such index.
    pub fn by_index(&self, name: &'static str, value: &str) -> Vec<Arc<K>> {
        all_typed(&self.shared.objects.by_index(name, value))
    }

    /// How many objects the index `name` has for `value`.
    pub fn count_index(&self, name: &'static str, value: &str) -> usize {
        self.shared.objects.count_index(name, value)
    }

    pub fn keys(&self) -> Vec<ObjectKey> {
        self.shared.objects.keys()
    }

    pub fn len(&self) -> usize {
        self.shared.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
