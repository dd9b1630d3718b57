//! One of the two clusters: its client, its caches, and what was written but is not in the caches yet.
//!
//! Invariant: [`Side::get`] never goes back in time: after a write of ours it gives that result until the cache has it, so a
//! run right after does not do the same again.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use apimachinery::json::Str;
use apimachinery::patch::merge;
use apimachinery::{Map, Value};
use informer::{
    ApiError, Change, DeleteOptions, Factory, Informer, ObjectKey, PatchType, RawObject, Resource, Rest, Source,
};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::recent::Recent;
use crate::diff::merge_patch;
use crate::kind::Kind;
use crate::metadata::uid_of;
use crate::names::NamespacedName;
use crate::ownership::{self, Write};

/// A written object is held this long at most: an event that never comes must not hide the truth.
const WRITTEN_MAX: Duration = Duration::from_secs(20);

/// A change that came to nothing is not tried again this long: by then the server may be another one.
const FUTILE: Duration = Duration::from_secs(600);
/// A deletion is not asked again this long.
const ASKED_MAX: Duration = Duration::from_secs(5);

/// The cache's name, and the object's.
type Address = (Str, NamespacedName);

struct Written {
    value: Value,
    version: u64,
    at: Instant,
}

pub struct Side {
    pub rest: Rest,
    pub factory: Factory,
    caches: Arc<RwLock<HashMap<String, Informer<RawObject>>>>,
    written: Arc<Mutex<HashMap<Address, Written>>>,
    /// Uids of objects whose deletion was seen lately: the answer to a write can come after the object is gone again, and
    /// nothing would ever say so a second time.
    gone: Arc<Mutex<Recent<Address, String>>>,
    /// Deletions that were asked for, so that they are not asked again before they show.
    deleted: Mutex<Recent<Address, (String, Option<i64>)>>,
    /// Changes that the server took and did not make: fields that its version does not know. By a hash of the patch.
    futile: Mutex<Recent<(Address, &'static str), u64>>,
    /// Requests sent, watches aside.
    pub requests: AtomicU64,
}

/// Preconditions aside, what a merge patch changes.
fn change_of(patch: &Value) -> Value {
    let mut change = patch.clone();
    for member in ["uid", "resourceVersion"] {
        change.remove_at(&["metadata", member]);
    }
    if change.at(&["metadata"]).and_then(Value::as_object).is_some_and(Map::is_empty) {
        change.remove_at(&["metadata"]);
    }
    change
}

fn hash(value: &Value) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish()
}

/// Whether an apply was refused for a field that the server's version does not have. It says so with code 500.
fn is_unknown_field(error: &ApiError) -> bool {
    matches!(error, ApiError::Status { message, .. } if message.contains("field not declared in schema"))
}

pub fn resource(kind: &Kind) -> Resource {
    Resource {
        group: kind.group.as_ref().into(),
        version: kind.version.as_ref().into(),
        resource: kind.plural.as_ref().into(),
    }
}

fn key(name: &NamespacedName) -> ObjectKey {
    ObjectKey::new(name.namespace.as_str(), name.name.as_str())
}

fn address(kind: &Kind, name: &NamespacedName) -> Address {
    (cache_name(kind).into(), name.clone())
}

fn cache_name(kind: &Kind) -> String {
    format!("{}.{}", kind.plural, kind.group)
}

impl Side {
    pub fn new(rest: Rest) -> Side {
        Side {
            factory: Factory::new(rest.clone()),
            rest,
            caches: Arc::default(),
            written: Arc::default(),
            gone: Arc::new(Mutex::new(Recent::new(WRITTEN_MAX))),
            deleted: Mutex::new(Recent::new(ASKED_MAX)),
            futile: Mutex::new(Recent::new(FUTILE)),
            requests: AtomicU64::new(0),
        }
    }

    /// Starts a cache of a kind, or gives the one there is.
    pub fn watch(&self, kind: &Kind, source: Source) -> Informer<RawObject> {
        let name = cache_name(kind);
        if let Some(cache) = self.caches.read().get(&name) {
            return cache.clone();
        }
        let informer: Informer<RawObject> = self.factory.informer(source);
        let (written, gone) = (self.written.clone(), self.gone.clone());
        let plural = Str::from(name.as_str());
        informer.on_change(move |change| {
            let object = change.object();
            let at = NamespacedName::new(object.metadata.namespace.as_str(), object.metadata.name.as_str());
            let address = (plural.clone(), at);
            // One lock after the other, in the order in which `remember` takes them.
            let mut written = written.lock();
            if let Change::Deleted(object) = &change {
                gone.lock().insert(address.clone(), object.metadata.uid.to_string());
            }
            let Some(known) = written.get(&address) else { return };
            let seen: u64 = object.metadata.resource_version.parse().unwrap_or(u64::MAX);
            let same = uid_of(&known.value) == object.metadata.uid.as_str();
            if seen >= known.version || (same && matches!(change, Change::Deleted(_))) {
                written.remove(&address);
            }
        });
        // What was written and is not in a later listing is gone again, and no event says so.
        let (written, plural, cache) = (self.written.clone(), name.clone(), Arc::downgrade(&self.caches));
        informer.on_listed(move |version| {
            let Some(caches) = cache.upgrade() else { return };
            let Some(cache) = caches.read().get(&plural).cloned() else { return };
            let listed: u64 = version.parse().unwrap_or(0);
            written
                .lock()
                .retain(|(of, name), w| of.as_str() != plural || w.version > listed || cache.get(&key(name)).is_some());
        });
        self.caches.write().insert(name, informer.clone());
        informer
    }

    pub fn cache(&self, kind: &Kind) -> Option<Informer<RawObject>> {
        self.caches.read().get(&cache_name(kind)).cloned()
    }

    /// The cache of `plural.group`, whatever version was asked for.
    pub fn cache_named(&self, name: &str) -> Option<Informer<RawObject>> {
        self.caches.read().get(name).cloned()
    }

    /// The object as it is known: from the cache, or newer from our own last write.
    pub fn get(&self, kind: &Kind, name: &NamespacedName) -> Option<Value> {
        let cached = self.cache(kind).and_then(|c| c.get(&key(name)));
        let mut written = self.written.lock();
        let at = address(kind, name);
        if let Some(known) = written.get(&at) {
            let newer = match &cached {
                None => true,
                Some(cached) => cached.metadata.resource_version.parse::<u64>().is_ok_and(|seen| seen < known.version),
            };
            if newer && known.at.elapsed() < WRITTEN_MAX {
                return Some(known.value.clone());
            }
            written.remove(&at);
        }
        drop(written);
        cached.and_then(|c| c.to_tree().ok())
    }

    /// Whether [`Side::get`] gave what we wrote, because the cache does not have it. When no event ever comes about it, only
    /// another look after [`Side::DOUBT`] finds out.
    pub fn believes(&self, kind: &Kind, name: &NamespacedName) -> bool {
        self.written.lock().contains_key(&address(kind, name))
    }

    /// When what was written is not believed any more.
    pub const DOUBT: Duration = Duration::from_secs(WRITTEN_MAX.as_secs() + 1);

    /// All cached objects that an index gives, as trees.
    pub fn by_index(&self, kind: &Kind, index: &'static str, value: &str) -> Vec<Value> {
        let Some(cache) = self.cache(kind) else { return Vec::new() };
        cache.by_index(index, value).iter().filter_map(|o| o.to_tree().ok()).collect()
    }

    pub fn remember(&self, kind: &Kind, name: &NamespacedName, value: &Value) {
        let Ok(version) = value.str_at(&["metadata", "resourceVersion"]).parse() else { return };
        // Without a cache nothing would ever take it away again.
        let Some(cache) = self.cache(kind) else { return };
        if cache
            .get(&key(name))
            .is_some_and(|c| c.metadata.resource_version.parse::<u64>().is_ok_and(|seen| seen >= version))
        {
            return;
        }
        let written = Written { value: value.clone(), version, at: Instant::now() };
        let mut all = self.written.lock();
        if self.gone.lock().get(&address(kind, name)).is_some_and(|uid| uid == uid_of(value)) {
            return;
        }
        all.insert(address(kind, name), written);
    }

    /// Forgets what was written: the server said something that does not fit.
    pub fn forget(&self, kind: &Kind, name: &NamespacedName) {
        self.written.lock().remove(&address(kind, name));
        self.deleted.lock().remove(&address(kind, name));
    }

    /// Drops what is too old to matter.
    pub fn purge(&self) {
        let mut written = self.written.lock();
        written.retain(|_, w| w.at.elapsed() < WRITTEN_MAX);
        written.shrink_to_fit();
        drop(written);
        self.gone.lock().purge();
        self.futile.lock().purge();
        self.deleted.lock().purge();
    }

    /// How much is held: cached objects, our own writes that are not in the caches yet, deletions seen and asked for.
    pub fn kept(&self) -> [(&'static str, usize); 4] {
        let objects = self.caches.read().values().map(|cache| cache.len()).sum();
        let (written, gone, deleted) = (self.written.lock().len(), self.gone.lock().len(), self.deleted.lock().len());
        [("objects", objects), ("written", written), ("gone", gone), ("deleted", deleted)]
    }

    fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub async fn create(&self, kind: &Kind, object: &Value) -> Result<Value, ApiError> {
        self.count();
        let name = crate::metadata::name_of(object);
        let made = self.rest.create(&resource(kind), &name.namespace, object).await?;
        self.remember(kind, &name, &made);
        Ok(made)
    }

    /// Asks whether an object could be created; nothing is stored.
    pub async fn try_create(&self, kind: &Kind, object: &Value) -> Result<Value, ApiError> {
        self.count();
        let namespace = object.str_at(&["metadata", "namespace"]);
        self.rest.clone().with_dry_run().create(&resource(kind), namespace, object).await
    }

    /// Asks whether an object could be changed; nothing is stored.
    pub async fn try_patch(&self, kind: &Kind, name: &NamespacedName, patch: &Value) -> Result<Value, ApiError> {
        self.count();
        let rest = self.rest.clone().with_dry_run();
        rest.patch(&resource(kind), "", &name.namespace, &name.name, PatchType::Merge, patch).await
    }

    pub async fn read(&self, kind: &Kind, name: &NamespacedName) -> Result<Value, ApiError> {
        self.count();
        let object = self.rest.get(&resource(kind), &name.namespace, &name.name).await?;
        Ok(object)
    }

    pub async fn patch(
        &self,
        kind: &Kind,
        name: &NamespacedName,
        subresource: &str,
        patch: &Value,
    ) -> Result<Value, ApiError> {
        self.count();
        let made =
            self.rest.patch(&resource(kind), subresource, &name.namespace, &name.name, PatchType::Merge, patch).await?;
        // Some subresources answer with another kind.
        if subresource.is_empty() || subresource == "status" {
            self.remember(kind, name, &made);
        }
        Ok(made)
    }

    /// Changes an object: `patch` is a merge patch that was made from `from`. Sent as server-side apply of what is ours
    /// where that can express it.
    pub async fn change(
        &self,
        kind: &Kind,
        name: &NamespacedName,
        from: &Value,
        patch: &Value,
    ) -> Result<Value, ApiError> {
        let (migrate, mut config) = match ownership::write(kind, from, patch) {
            Write::Apply { migrate, config } => (migrate, config),
            Write::Merge { patch, why } => {
                tracing::debug!(kind = %kind.kind, object = %name, why, "written as a merge patch");
                return self.patch(kind, name, "", &patch).await;
            }
        };
        if let Some(migrate) = migrate {
            let made = self.patch(kind, name, "", &migrate).await?;
            config.set_at(&["metadata", "resourceVersion"], made["metadata"]["resourceVersion"].clone());
        }
        self.count();
        let written =
            self.rest.patch(&resource(kind), "", &name.namespace, &name.name, PatchType::Apply, &config).await;
        match written {
            Ok(made) => {
                self.remember(kind, name, &made);
                Ok(made)
            }
            // An apply is all or nothing; a merge patch loses what the server does not know.
            Err(error) if is_unknown_field(&error) => {
                tracing::debug!(kind = %kind.kind, object = %name, %error, "written as a merge patch");
                let mut patch = patch.clone();
                // Moved on by the change of owners.
                if patch.at(&["metadata", "resourceVersion"]).is_some() {
                    patch.set_at(&["metadata", "resourceVersion"], config["metadata"]["resourceVersion"].clone());
                }
                self.patch(kind, name, "", &patch).await
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the same change was sent lately and came to nothing.
    pub fn is_futile(&self, kind: &Kind, name: &NamespacedName, subresource: &'static str, patch: &Value) -> bool {
        let futile = self.futile.lock();
        futile.get(&(address(kind, name), subresource)).is_some_and(|of| *of == hash(&change_of(patch)))
    }

    /// Looks whether a change came to nothing: `made` is what the server answered.
    pub fn note_outcome(
        &self,
        kind: &Kind,
        name: &NamespacedName,
        subresource: &'static str,
        patch: &Value,
        made: &Value,
    ) {
        let change = change_of(patch);
        let missing = merge_patch(made, &merge::apply(made, &change));
        let mut futile = self.futile.lock();
        match missing {
            // The next look finds the same difference: what is missing is all that is left of it.
            Some(missing) => futile.insert((address(kind, name), subresource), hash(&missing)),
            None => futile.remove(&(address(kind, name), subresource)),
        }
    }

    /// Asks for a deletion once: the same again within some seconds is not sent.
    pub async fn delete(
        &self,
        kind: &Kind,
        name: &NamespacedName,
        uid: &str,
        grace_period_seconds: Option<i64>,
    ) -> Result<(), ApiError> {
        let at = address(kind, name);
        {
            let mut deleted = self.deleted.lock();
            if deleted.get(&at).is_some_and(|(u, grace)| u == uid && *grace == grace_period_seconds) {
                return Ok(());
            }
            deleted.insert(at.clone(), (uid.to_owned(), grace_period_seconds));
        }
        self.count();
        let options = DeleteOptions { uid: uid.into(), grace_period_seconds, ..DeleteOptions::default() };
        let result = self.rest.delete(&resource(kind), &name.namespace, &name.name, &options).await;
        self.written.lock().remove(&at);
        match result {
            // A conflict is not the same: another object has the name, or the server wants to be asked again.
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => {
                self.deleted.lock().remove(&at);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    pub async fn subresource(
        &self,
        kind: &Kind,
        name: &NamespacedName,
        subresource: &str,
        body: &Value,
    ) -> Result<Value, ApiError> {
        self.count();
        self.rest.create_subresource(&resource(kind), &name.namespace, &name.name, subresource, body).await
    }
}
