//! Informers and the factory that shares them.
//!
//! An informer is a cache, the task that keeps it, and the handlers that are told. Handlers run on that task, one change
//! at a time, after the cache has changed; they must not block (put a key in a queue) and must not register handlers.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, Change};
use crate::meta::{Cached, LeanHeader, ObjectKey, ObjectMeta};
use crate::reflector::Reflector;
use crate::resource::Source;
use crate::rest::Rest;

type Handler<K> = Box<dyn Fn(Change<'_, K>) + Send + Sync>;

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

pub(crate) struct Shared<K> {
    cache: Cache<K>,
    // Held for reading while a change is made and told, for writing while a handler is added and told what exists: so a
    // new handler misses nothing and hears nothing twice.
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    pub stats: Counters,
}

impl<K: Cached> Shared<K> {
    /// Makes the cache hold exactly `objects`, telling the difference.
    pub fn replace(&self, objects: Vec<Arc<K>>) {
        let mut gone: BTreeSet<ObjectKey> = self.cache.keys().into_iter().collect();
        for object in objects {
            gone.remove(&object.metadata().key());
            self.apply(object, false);
        }
        let handlers = self.handlers.read();
        for key in gone {
            if let Some(old) = self.cache.remove(&key) {
                handlers.iter().for_each(|h| h(Change::Deleted(&old)));
            }
        }
        drop(handlers);
        self.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
    }

    pub fn apply(&self, object: Arc<K>, deleted: bool) {
        let handlers = self.handlers.read();
        if deleted {
            let known = self.cache.remove(&object.metadata().key());
            // The last state, which came with the event, is newer than the one known.
            if known.is_some() {
                handlers.iter().for_each(|h| h(Change::Deleted(&object)));
            }
            return;
        }
        match self.cache.put(object.clone()) {
            None => handlers.iter().for_each(|h| h(Change::Added(&object))),
            Some(old) if old.metadata().uid != object.metadata().uid => {
                // Deleted and created again in a gap: two objects, not one that changed.
                handlers.iter().for_each(|h| h(Change::Deleted(&old)));
                handlers.iter().for_each(|h| h(Change::Added(&object)));
            }
            Some(old)
                if old.metadata().resource_version == object.metadata().resource_version
                    && !object.metadata().resource_version.is_empty() => {}
            Some(old) => handlers.iter().for_each(|h| h(Change::Updated { old: &old, new: &object })),
        }
    }
}

/// A handle to a shared cache and its watch. Derefs to the [`Cache`]. Cheap to clone.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
    source: Source,
    cancel: CancellationToken,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { shared: self.shared.clone(), source: self.source.clone(), cancel: self.cancel.clone() }
    }
}

impl<K> Deref for Informer<K> {
    type Target = Cache<K>;
    fn deref(&self) -> &Cache<K> {
        &self.shared.cache
    }
}

impl<K: Cached> Informer<K> {
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Calls `handler` with every object that exists, then with every change.
    pub fn on_change(&self, handler: impl Fn(Change<'_, K>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.write();
        for object in self.shared.cache.list() {
            handler(Change::Added(&object));
        }
        handlers.push(Box::new(handler));
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
            () = self.cancel.cancelled() => {}
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

trait AnyInformer: Send + Sync {
    fn any(&self) -> &dyn Any;
    fn on_header(&self, handler: Box<dyn Fn(HeaderChange<'_>) + Send + Sync>);
    fn synced(&self) -> watch::Receiver<bool>;
    fn stop(&self);
}

impl<K: Cached> AnyInformer for Informer<K> {
    fn any(&self) -> &dyn Any {
        self
    }

    fn on_header(&self, handler: Box<dyn Fn(HeaderChange<'_>) + Send + Sync>) {
        self.on_change(move |change| {
            let object = change.object().metadata();
            let old = match &change {
                Change::Updated { old, .. } => Some(old.metadata()),
                Change::Added(_) | Change::Deleted(_) => None,
            };
            handler(HeaderChange { old, object, deleted: change.is_deleted() });
        });
    }

    fn synced(&self) -> watch::Receiver<bool> {
        self.shared.synced.subscribe()
    }

    fn stop(&self) {
        self.cancel.cancel();
    }
}

/// Shares one informer per source and type, and ends all of them together. Cheap to clone.
#[derive(Clone)]
pub struct Factory {
    inner: Arc<FactoryInner>,
}

struct FactoryInner {
    rest: Rest,
    informers: Mutex<HashMap<Source, Vec<Arc<dyn AnyInformer>>>>,
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
        let mut informers = self.inner.informers.lock();
        let known = informers.entry(source.clone()).or_default();
        if let Some(informer) = known.iter().find_map(|i| i.any().downcast_ref::<Informer<K>>()) {
            return informer.clone();
        }
        let informer = self.start(source);
        known.push(Arc::new(informer.clone()));
        informer
    }

    fn start<K: Cached>(&self, source: Source) -> Informer<K> {
        let shared = Arc::new(Shared {
            cache: Cache::default(),
            handlers: RwLock::new(Vec::new()),
            synced: watch::Sender::new(false),
            stats: Counters::default(),
        });
        let cancel = self.inner.cancel.child_token();
        let reflector = Reflector {
            rest: self.inner.rest.clone(),
            source: source.clone(),
            shared: shared.clone(),
            streaming: self.inner.streaming,
        };
        self.spawn(reflector.run(cancel.clone()));
        Informer { shared, source, cancel }
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
        let informer: Arc<dyn AnyInformer> = match existing {
            Some(informer) => informer,
            None => Arc::new(self.informer::<LeanHeader>(source.metadata_only())),
        };
        informer.on_header(Box::new(handler));
        informer.synced()
    }

    /// Stops the informers of a source that no longer exists, such as a removed custom resource.
    pub fn stop_source(&self, source: &Source) {
        for source in [source.clone(), source.clone().metadata_only()] {
            for informer in self.inner.informers.lock().remove(&source).unwrap_or_default() {
                informer.stop();
            }
        }
    }

    /// Whether every informer so far has synced.
    pub fn has_synced(&self) -> bool {
        self.inner.informers.lock().values().flatten().all(|i| *i.synced().borrow())
    }

    /// Returns once every informer so far has synced, or the factory was shut down.
    pub async fn wait_synced(&self) {
        let all: Vec<watch::Receiver<bool>> =
            self.inner.informers.lock().values().flatten().map(|i| i.synced()).collect();
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
