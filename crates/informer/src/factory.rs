//! Informers and the factory that shares them.
//!
//! An informer is a cache, the task that keeps it, and the handlers that are told. Handlers run on that task, one change
//! at a time, after the cache has changed; they must not block (put a key in a queue) and must not register handlers.

use std::any::TypeId;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, Change, Object, Objects, typed};
use crate::meta::{Cached, LeanHeader, ObjectKey, ObjectMeta};
use crate::reflector::Reflector;
use crate::resource::Source;
use crate::rest::Rest;

type Handler = Box<dyn Fn(Told<'_>) + Send + Sync>;
type ListedHandler = Box<dyn Fn(&str) + Send + Sync>;

/// What an informer has met.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub skipped: AtomicU64,
    pub relists: AtomicU64,
    pub errors: AtomicU64,
}

/// What an informer has met so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InformerStats {
    /// Objects and events that could not be read.
    pub skipped: u64,
    /// Times the history was gone.
    pub relists: u64,
    /// Lists and watches that failed.
    pub errors: u64,
}

/// A change as the core tells it.
pub(crate) enum Told<'a> {
    Added(&'a Object),
    Updated { old: &'a Object, new: &'a Object },
    Deleted(&'a Object),
}

/// What an informer keeps: the same for every kind.
pub(crate) struct Shared {
    pub objects: Objects,
    // Held for reading while a change is made and told, for writing while a handler is added and told what exists: so a
    // new handler misses nothing and hears nothing twice.
    handlers: RwLock<Vec<Handler>>,
    listed: RwLock<Vec<ListedHandler>>,
    synced: watch::Sender<bool>,
    cancel: CancellationToken,
    read: fn(&str) -> serde_json::Result<Object>,
    pub stats: Counters,
}

impl Shared {
    /// Reads an object as the kind of this informer.
    pub fn read(&self, json: &str) -> serde_json::Result<Object> {
        (self.read)(json)
    }

    /// Makes the cache hold exactly `objects`, which is what the server had at `version`, telling the difference.
    pub fn replace(&self, objects: Vec<Object>, version: &str) {
        let mut gone: BTreeSet<ObjectKey> = self.objects.keys().into_iter().collect();
        for object in objects {
            gone.remove(&object.meta().key());
            self.apply(object, false);
        }
        let handlers = self.handlers.read();
        for key in gone {
            if let Some(old) = self.objects.remove(&key) {
                handlers.iter().for_each(|h| h(Told::Deleted(&old)));
            }
        }
        drop(handlers);
        self.listed.read().iter().for_each(|h| h(version));
        self.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
    }

    pub fn apply(&self, object: Object, deleted: bool) {
        let handlers = self.handlers.read();
        if deleted {
            let known = self.objects.remove(&object.meta().key());
            // The last state, which came with the event, is newer than the one known.
            if known.is_some() {
                handlers.iter().for_each(|h| h(Told::Deleted(&object)));
            }
            return;
        }
        match self.objects.put(object.clone()) {
            None => handlers.iter().for_each(|h| h(Told::Added(&object))),
            Some(old) if old.meta().uid != object.meta().uid => {
                // Deleted and created again in a gap: two objects, not one that changed.
                handlers.iter().for_each(|h| h(Told::Deleted(&old)));
                handlers.iter().for_each(|h| h(Told::Added(&object)));
            }
            Some(old)
                if old.meta().resource_version == object.meta().resource_version
                    && !object.meta().resource_version.is_empty() => {}
            Some(old) => handlers.iter().for_each(|h| h(Told::Updated { old: &old, new: &object })),
        }
    }

    /// Calls `handler` with every object that exists, then with every change until the informer ends.
    fn on_change(&self, handler: Handler) {
        let mut handlers = self.handlers.write();
        for object in self.objects.list() {
            handler(Told::Added(&object));
        }
        if !self.cancel.is_cancelled() {
            handlers.push(handler);
        }
    }

    /// Lets go of the handlers of an informer that has ended. They hold the controllers that they serve, and those hold
    /// the informer: without this neither would ever be freed.
    fn end(&self) {
        let handlers = std::mem::take(&mut *self.handlers.write());
        let listed = std::mem::take(&mut *self.listed.write());
        // Not under the locks: what a handler owns may do anything when it is dropped.
        drop((handlers, listed));
    }
}

/// A handle to a shared cache and its watch. Derefs to the [`Cache`]. Cheap to clone.
pub struct Informer<K> {
    cache: Cache<K>,
    shared: Arc<Shared>,
    source: Source,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { cache: self.cache.clone(), shared: self.shared.clone(), source: self.source.clone() }
    }
}

impl<K> Deref for Informer<K> {
    type Target = Cache<K>;
    fn deref(&self) -> &Cache<K> {
        &self.cache
    }
}

impl<K: Cached> Informer<K> {
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Calls `handler` with every object that exists, then with every change.
    pub fn on_change(&self, handler: impl Fn(Change<'_, K>) + Send + Sync + 'static) {
        self.shared.on_change(Box::new(move |told| match told {
            Told::Added(object) => handler(Change::Added(&typed(object))),
            Told::Updated { old, new } => handler(Change::Updated { old: &typed(old), new: &typed(new) }),
            Told::Deleted(object) => handler(Change::Deleted(&typed(object))),
        }));
    }

    /// Calls `handler` with the resource version each time the whole collection was read, after its differences were told. An
    /// object that came and went in between is told by nothing else.
    pub fn on_listed(&self, handler: impl Fn(&str) + Send + Sync + 'static) {
        self.shared.listed.write().push(Box::new(handler));
    }

    /// Whether the cache has held the whole collection once.
    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// A receiver that turns true once the cache has held the whole collection.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.shared.synced.subscribe()
    }

    /// Returns once the cache has held the whole collection, or the informer has been stopped.
    pub async fn wait_synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        tokio::select! {
            // Cancel-safe: both only wait.
            _ = synced.wait_for(|synced| *synced) => {}
            () = self.shared.cancel.cancelled() => {}
        }
    }

    pub fn stats(&self) -> InformerStats {
        let stats = &self.shared.stats;
        InformerStats {
            skipped: stats.skipped.load(Ordering::Relaxed),
            relists: stats.relists.load(Ordering::Relaxed),
            errors: stats.errors.load(Ordering::Relaxed),
        }
    }
}

/// A change of which only the metadata is told.
pub struct HeaderChange<'a> {
    pub old: Option<&'a ObjectMeta>,
    /// The new state; at deletion the last.
    pub object: &'a ObjectMeta,
    pub deleted: bool,
}

/// An informer of the factory, and the type it reads objects as.
#[derive(Clone)]
struct Known {
    kind: TypeId,
    shared: Arc<Shared>,
}

/// Shares one informer per source and type, and ends all of them together. Cheap to clone.
#[derive(Clone)]
pub struct Factory {
    inner: Arc<FactoryInner>,
}

struct FactoryInner {
    rest: Rest,
    informers: Mutex<HashMap<Source, Vec<Known>>>,
    cancel: CancellationToken,
    tasks: TaskTracker,
    streaming: bool,
}

impl Factory {
    pub fn new(rest: Rest) -> Self {
        Factory::with_streaming(rest, true)
    }

    /// `streaming: false` lists with LIST even where the server could stream.
    pub fn with_streaming(rest: Rest, streaming: bool) -> Self {
        Factory {
            inner: Arc::new(FactoryInner {
                rest,
                informers: Mutex::new(HashMap::new()),
                cancel: CancellationToken::new(),
                tasks: TaskTracker::new(),
                streaming,
            }),
        }
    }

    pub fn rest(&self) -> &Rest {
        &self.inner.rest
    }

    /// The token that ends everything started here.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.inner.cancel
    }

    /// Spawns a task that [`Factory::shutdown`] waits for; the task must end when [`Factory::cancellation`] does.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.inner.tasks.spawn(task);
    }

    /// The informer of `source` as `K`, started if it is new.
    pub fn informer<K: Cached>(&self, source: impl Into<Source>) -> Informer<K> {
        let source = source.into();
        let shared = self.shared(&source, TypeId::of::<K>(), |json| {
            serde_json::from_str::<K>(json).map(|object| Arc::new(object) as Object)
        });
        Informer { cache: Cache::new(shared.clone()), shared, source }
    }

    fn shared(&self, source: &Source, kind: TypeId, read: fn(&str) -> serde_json::Result<Object>) -> Arc<Shared> {
        let mut informers = self.inner.informers.lock();
        let known = informers.entry(source.clone()).or_default();
        if let Some(known) = known.iter().find(|k| k.kind == kind) {
            return known.shared.clone();
        }
        let shared = Arc::new(Shared {
            objects: Objects::default(),
            handlers: RwLock::new(Vec::new()),
            listed: RwLock::new(Vec::new()),
            synced: watch::Sender::new(false),
            cancel: self.inner.cancel.child_token(),
            read,
            stats: Counters::default(),
        });
        known.push(Known { kind, shared: shared.clone() });
        let reflector = Reflector {
            rest: self.inner.rest.clone(),
            source: source.clone(),
            shared: shared.clone(),
            streaming: self.inner.streaming,
        };
        let ended = shared.clone();
        self.spawn(async move {
            reflector.run(ended.cancel.clone()).await;
            ended.end();
        });
        shared
    }

    /// Tells the metadata of all objects of `source` and their changes: from an informer that exists, of whatever type,
    /// or else from one that asks for metadata only (and keeps no labels and annotations). Gives a receiver that turns true
    /// when all have been told.
    pub fn headers(
        &self,
        source: impl Into<Source>,
        handler: impl Fn(HeaderChange<'_>) + Send + Sync + 'static,
    ) -> watch::Receiver<bool> {
        let source = source.into();
        let existing = self.inner.informers.lock().get(&source).and_then(|known| known.first().cloned());
        let shared = match existing {
            Some(known) => known.shared,
            None => self.informer::<LeanHeader>(source.metadata_only()).shared,
        };
        shared.on_change(Box::new(move |told| {
            let (old, object, deleted) = match told {
                Told::Added(object) => (None, object, false),
                Told::Updated { old, new } => (Some(old.meta()), new, false),
                Told::Deleted(object) => (None, object, true),
            };
            handler(HeaderChange { old, object: object.meta(), deleted });
        }));
        shared.synced.subscribe()
    }

    /// Stops the informers of a source that no longer exists, such as a removed custom resource.
    pub fn stop_source(&self, source: &Source) {
        for source in [source.clone(), source.clone().metadata_only()] {
            for informer in self.inner.informers.lock().remove(&source).unwrap_or_default() {
                informer.shared.cancel.cancel();
            }
        }
    }

    /// Whether informers of a source run, of whatever type.
    pub fn watches(&self, source: &Source) -> bool {
        let informers = self.inner.informers.lock();
        [source.clone(), source.clone().metadata_only()].iter().any(|source| informers.contains_key(source))
    }

    /// Whether every informer so far has synced.
    pub fn has_synced(&self) -> bool {
        self.inner.informers.lock().values().flatten().all(|i| *i.shared.synced.borrow())
    }

    /// Returns once every informer so far has synced, or the factory was shut down.
    pub async fn wait_synced(&self) {
        let all: Vec<watch::Receiver<bool>> =
            self.inner.informers.lock().values().flatten().map(|i| i.shared.synced.subscribe()).collect();
        let wait = async {
            for mut synced in all {
                // An error means that the informer is gone, which nobody has to wait for.
                let _ = synced.wait_for(|synced| *synced).await;
            }
        };
        tokio::select! {
            // Cancel-safe: both only wait.
            () = wait => {}
            () = self.inner.cancel.cancelled() => {}
        }
    }

    /// Ends all informers and tasks and waits for them.
    pub async fn shutdown(&self) {
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.informers.lock().clear();
    }
}
