//! The watch cache: every live object in memory, fed by one watch over the whole store.
//!
//! Answers GET, LIST and WATCH without touching the disk. Knows keys, entries and events; does not know selectors, HTTP or
//! access rules.
//!
//! Invariants:
//! - There is one feed, so one `progress` counts for all resources: every write at or below it is in the cache.
//! - Within a resource, events are applied in the order of their revisions, and `last` is the newest one applied.
//! - A reader that waited with `wait_current` sees every write that any replica had acknowledged before it asked; one that
//!   waited with `wait_own` those of this process.
//! - A watcher owns no queue. It remembers the last revision it saw and reads the shared window of events; when it falls
//!   behind the window it reads the store's history, and is told `Expired` when that is compacted too.
//!
//! Follows: `k8s.io/apiserver/pkg/storage/cacher`.

mod entry;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use store::{EventKind, KeyValue, Revision, Store};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use entry::{ByKey, Entry, EntryError, encode_stored, write_decimal};

/// All keys of objects start with this.
pub const ROOT: &str = "/registry/";
/// The end of the range of all objects' keys.
const ROOT_END: &str = "/registry0";

/// How many events of one resource are kept for watchers to read. A watcher that falls behind reads the store instead.
const WINDOW_EVENTS_MAX: usize = 1024;
/// Bytes of objects that those events keep in memory once they are not brand new. What they are sent as comes on top.
const WINDOW_BYTES_MAX: usize = 1 << 20;
/// A watcher that is this late was not busy but stuck.
const WINDOW_FRESH: Duration = Duration::from_secs(5);
/// Events are kept this long at most: a cluster in which nothing happens holds none.
const WINDOW_KEEP: Duration = Duration::from_secs(60);

/// Longest time for the cache to have what the store has.
const CATCH_UP: Duration = Duration::from_secs(3);

/// A change of one object.
#[derive(Debug)]
pub struct Event {
    pub revision: Revision,
    /// `None` after a deletion.
    pub current: Option<Arc<Entry>>,
    /// What was there before, if anything.
    pub previous: Option<Arc<Entry>>,
    at: Instant,
    /// The event encoded as JSON for watchers that want the object as stored: ADDED, MODIFIED, DELETED.
    pub frames: [OnceLock<Bytes>; 3],
}

impl Event {
    fn new(revision: Revision, current: Option<Arc<Entry>>, previous: Option<Arc<Entry>>) -> Event {
        Event { revision, current, previous, at: Instant::now(), frames: Default::default() }
    }

    /// Bytes that only the window holds sooner or later.
    fn bytes(&self) -> usize {
        self.previous.as_ref().map_or(0, |entry| entry.raw().len())
    }
}

#[derive(Default)]
struct State {
    objects: BTreeSet<ByKey>,
    events: VecDeque<Arc<Event>>,
    /// The bytes of `events`.
    bytes: usize,
    /// Every event after this revision is in `events`.
    window_start: Revision,
    last: Revision,
}

impl State {
    fn drop_oldest(&mut self) {
        if let Some(dropped) = self.events.pop_front() {
            self.window_start = dropped.revision;
            self.bytes -= dropped.bytes();
        }
    }

    /// Drops events that are too many, too old or too large.
    fn trim(&mut self) {
        while let Some(oldest) = self.events.front() {
            let age = oldest.at.elapsed();
            let large = self.bytes > WINDOW_BYTES_MAX && age >= WINDOW_FRESH;
            if self.events.len() <= WINDOW_EVENTS_MAX && age < WINDOW_KEEP && !large {
                break;
            }
            self.drop_oldest();
        }
        if self.events.capacity() > 64 && self.events.len() * 4 < self.events.capacity() {
            self.events.shrink_to_fit();
        }
    }
}

/// The objects of one resource.
pub struct ResourceCache {
    /// `/registry/<resource>/`.
    pub prefix: String,
    pub namespaced: bool,
    state: RwLock<State>,
    changed: watch::Sender<Revision>,
}

/// Objects of one resource as of one revision.
pub struct Snapshot {
    pub revision: Revision,
    pub entries: Vec<Arc<Entry>>,
}

/// What a watcher finds in the window.
pub enum Window {
    Events(Vec<Arc<Event>>),
    /// The window starts after the revision asked for.
    Behind {
        window_start: Revision,
    },
}

impl ResourceCache {
    fn new(prefix: String, namespaced: bool, start: Revision) -> ResourceCache {
        let state = State { window_start: start, last: start, ..State::default() };
        ResourceCache { prefix, namespaced, state: RwLock::new(state), changed: watch::Sender::new(start) }
    }

    /// The part of a store key behind this resource's prefix.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
    }

    pub fn store_key(&self, namespace: &str, name: &str) -> Bytes {
        let key = if self.namespaced {
            format!("{}{namespace}/{name}", self.prefix)
        } else {
            format!("{}{name}", self.prefix)
        };
        key.into()
    }

    /// The range of store keys of a namespace, or of all with `""`.
    pub fn store_range(&self, namespace: &str) -> (Bytes, Bytes) {
        let start = if namespace.is_empty() { self.prefix.clone() } else { format!("{}{namespace}/", self.prefix) };
        let mut end = start.clone();
        end.pop();
        // '0' follows '/'.
        end.push('0');
        (start.into(), end.into())
    }

    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.state.read().objects.get(key).map(|e| e.0.clone())
    }

    /// The revision of the last change.
    pub fn revision(&self) -> Revision {
        *self.changed.borrow()
    }

    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects of a namespace (`""` for all), ascending by key, that `keep` accepts.
    pub fn snapshot(&self, namespace: &str, progress: Revision, mut keep: impl FnMut(&Entry) -> bool) -> Snapshot {
        let state = self.state.read();
        let mut entries = Vec::new();
        if namespace.is_empty() {
            entries.extend(state.objects.iter().filter(|e| keep(&e.0)).map(|e| e.0.clone()));
        } else {
            let start = format!("{namespace}/");
            let range = state.objects.range::<str, _>((Bound::Included(start.as_str()), Bound::Unbounded));
            for e in range.take_while(|e| e.0.key().starts_with(&start)) {
                if keep(&e.0) {
                    entries.push(e.0.clone());
                }
            }
        }
        Snapshot { revision: progress.max(state.last), entries }
    }

    /// The same as of `revision`, when nothing has changed since; the store's history has it otherwise.
    pub fn snapshot_at(
        &self,
        namespace: &str,
        revision: Revision,
        keep: impl FnMut(&Entry) -> bool,
    ) -> Option<Snapshot> {
        let snapshot = self.snapshot(namespace, 0, keep);
        (snapshot.revision <= revision).then_some(snapshot)
    }

    /// Events after `after`, oldest first.
    pub fn events_after(&self, after: Revision) -> Window {
        let state = self.state.read();
        if after < state.window_start {
            return Window::Behind { window_start: state.window_start };
        }
        let from = state.events.partition_point(|e| e.revision <= after);
        Window::Events(state.events.range(from..).cloned().collect())
    }

    /// Wakes at every change.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }

    fn apply(&self, key: &str, revision: Revision, put: Option<Arc<Entry>>) {
        let mut state = self.state.write();
        let previous = match &put {
            Some(entry) => state.objects.replace(ByKey(entry.clone())),
            None => state.objects.take(key),
        };
        state.last = revision;
        if put.is_none() && previous.is_none() {
            return;
        }
        let event = Event::new(revision, put, previous.map(|e| e.0));
        state.bytes += event.bytes();
        state.events.push_back(Arc::new(event));
        state.trim();
        drop(state);
        self.changed.send_replace(revision);
    }

    /// Drops old events; tells whether some are left.
    fn trim(&self) -> bool {
        if self.state.read().events.is_empty() {
            return false;
        }
        let mut state = self.state.write();
        state.trim();
        !state.events.is_empty()
    }
}

/// Why the cache cannot start or answer.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("could not read the store")]
    Read(#[from] store::ReadError),
    #[error("could not watch the store")]
    Watch(#[from] store::WatchError),
    #[error("the cache did not reach revision {wanted}, it is at {current}")]
    TooNew { wanted: Revision, current: Revision },
}

/// The caches of all resources.
pub struct Caches {
    store: Store,
    /// By the key prefix behind `/registry/`, such as `pods` or `services/specs` or `example.com/things`.
    by_prefix: RwLock<HashMap<String, Arc<ResourceCache>>>,
    progress: watch::Sender<Revision>,
}

impl Caches {
    /// Loads every object and starts the feed. `known` lists the prefixes of built-in resources and whether they have
    /// namespaces; all other keys count as custom resources, `<group>/<plural>/[<namespace>/]<name>`.
    pub async fn start(
        store: Store,
        known: impl IntoIterator<Item = (String, bool)>,
        stop: CancellationToken,
    ) -> Result<(Arc<Caches>, tokio::task::JoinHandle<()>), CacheError> {
        let response = store
            .range(store::RangeRequest {
                start: Bytes::from_static(ROOT.as_bytes()),
                end: Bytes::from_static(ROOT_END.as_bytes()),
                ..Default::default()
            })
            .await?;
        let revision = response.revision;
        let by_prefix = known
            .into_iter()
            .map(|(prefix, namespaced)| {
                let cache = ResourceCache::new(format!("{ROOT}{prefix}/"), namespaced, revision);
                (prefix, Arc::new(cache))
            })
            .collect();
        let caches = Arc::new(Caches {
            store: store.clone(),
            by_prefix: RwLock::new(by_prefix),
            progress: watch::Sender::new(revision),
        });
        for kv in response.kvs {
            caches.load(kv, revision);
        }
        let watcher = caches.watch_root(revision).await?;
        let feed = tokio::spawn(caches.clone().feed(watcher, stop));
        Ok((caches, feed))
    }

    async fn watch_root(&self, after: Revision) -> Result<store::Watcher, store::WatchError> {
        // All keys, also those that are no objects: their revisions move `progress` too.
        self.store.watch(Bytes::from_static(b"\0"), Bytes::from_static(b"\0"), after, false).await
    }

    fn load(&self, kv: KeyValue, start: Revision) {
        let Some((cache, key)) = self.route(&kv.key, start) else { return };
        match Entry::new(&key, cache.namespaced, kv.mod_revision, kv.value) {
            Ok(entry) => {
                cache.state.write().objects.replace(ByKey(Arc::new(entry)));
            }
            Err(error) => tracing::warn!(%error, "skipping a stored object that cannot be read"),
        }
    }

    /// The cache a key belongs to, and the rest of the key. Keys of other things (ranges, leases of servers) have none.
    fn route(&self, key: &[u8], start: Revision) -> Option<(Arc<ResourceCache>, String)> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?;
        let (first, rest) = key.split_once('/')?;
        {
            let map = self.by_prefix.read();
            if let Some(cache) = map.get(first) {
                return Some((cache.clone(), rest.to_owned()));
            }
            if let Some((second, rest)) = rest.split_once('/') {
                let prefix = &key[..first.len() + 1 + second.len()];
                if let Some(cache) = map.get(prefix) {
                    return Some((cache.clone(), rest.to_owned()));
                }
            }
        }
        // A custom resource of which no definition was seen yet. Group names have a dot, other things have none.
        let (second, rest) = rest.split_once('/')?;
        if !first.contains('.') {
            return None;
        }
        let cache = self.custom_at(&format!("{first}/{second}"), rest.contains('/'), start);
        Some((cache, rest.to_owned()))
    }

    fn custom_at(&self, prefix: &str, namespaced: bool, start: Revision) -> Arc<ResourceCache> {
        let mut map = self.by_prefix.write();
        let cache = map
            .entry(prefix.to_owned())
            .or_insert_with(|| Arc::new(ResourceCache::new(format!("{ROOT}{prefix}/"), namespaced, start)));
        cache.clone()
    }

    /// The cache of a custom resource. Objects that are stored already are in it.
    pub fn custom(&self, group: &str, plural: &str, namespaced: bool) -> Arc<ResourceCache> {
        let prefix = format!("{group}/{plural}");
        let existing = self.by_prefix.read().get(&prefix).cloned();
        match existing {
            Some(cache) if cache.namespaced == namespaced || !cache.is_empty() => cache,
            Some(_) => {
                // The plural was used with the other scope before and is empty now.
                self.by_prefix.write().remove(&prefix);
                self.custom_at(&prefix, namespaced, self.progress())
            }
            None => self.custom_at(&prefix, namespaced, self.progress()),
        }
    }

    pub fn builtin(&self, prefix: &str) -> Option<Arc<ResourceCache>> {
        self.by_prefix.read().get(prefix).cloned()
    }

    /// Every write at or below this revision is in the caches.
    pub fn progress(&self) -> Revision {
        *self.progress.borrow()
    }

    /// Wakes when [`Caches::progress`] moves.
    pub fn subscribe_progress(&self) -> watch::Receiver<Revision> {
        self.progress.subscribe()
    }

    /// Waits until every write that is acknowledged now is in the cache, whichever replica has acknowledged it. Asks the
    /// store where others may write to it.
    pub async fn wait_current(&self) -> Result<Revision, CacheError> {
        self.wait_for(self.store.synchronize().await?, CATCH_UP).await
    }

    /// Waits until every write that this process has acknowledged is in the cache.
    pub async fn wait_own(&self) -> Result<Revision, CacheError> {
        self.wait_for(self.store.current_revision(), CATCH_UP).await
    }

    /// Waits until `wanted` is in the cache, for at most `timeout`.
    pub async fn wait_for(&self, wanted: Revision, timeout: Duration) -> Result<Revision, CacheError> {
        let current = self.progress();
        if current >= wanted {
            return Ok(current);
        }
        let mut progress = self.progress.subscribe();
        let waited = tokio::time::timeout(timeout, progress.wait_for(|p| *p >= wanted)).await;
        match waited {
            Ok(Ok(p)) => Ok(*p),
            _ => Err(CacheError::TooNew { wanted, current: self.progress() }),
        }
    }

    async fn feed(self: Arc<Self>, mut watcher: store::Watcher, stop: CancellationToken) {
        // While there is something to trim.
        let mut trim_at: Option<Instant> = None;
        loop {
            let batch = tokio::select! {
                // Cancel-safe: a batch is taken only when it is returned, the others only wait.
                () = stop.cancelled() => return,
                batch = watcher.next() => batch,
                () = tokio::time::sleep_until(trim_at.unwrap_or_else(Instant::now)), if trim_at.is_some() => {
                    trim_at = self.trim().then(|| Instant::now() + WINDOW_KEEP / 2);
                    continue;
                }
            };
            match batch {
                Some(Ok(batch)) => {
                    for event in batch.events {
                        self.apply(&event);
                    }
                    trim_at.get_or_insert_with(|| Instant::now() + WINDOW_KEEP / 2);
                    self.progress.send_if_modified(|p| {
                        let moved = batch.revision > *p;
                        *p = batch.revision.max(*p);
                        moved
                    });
                }
                // The store is closed for good: what is cached stays as it is.
                Some(Err(store::WatchError::Closed)) => return,
                // The store ended the watch (its history could not be read for a moment): go on where it ended.
                ended => {
                    if let Some(Err(error)) = ended {
                        tracing::warn!(%error, "the feed of the watch cache was interrupted");
                    }
                    watcher = loop {
                        tokio::select! {
                            () = stop.cancelled() => return,
                            () = tokio::time::sleep(Duration::from_millis(100)) => {}
                        }
                        match self.watch_root(self.progress()).await {
                            Ok(watcher) => break watcher,
                            Err(error) => tracing::error!(%error, "the watch cache cannot follow the store"),
                        }
                    };
                }
            }
        }
    }

    /// Drops old events of all resources; tells whether some are left.
    fn trim(&self) -> bool {
        let caches: Vec<Arc<ResourceCache>> = self.by_prefix.read().values().cloned().collect();
        caches.iter().fold(false, |left, cache| cache.trim() | left)
    }

    fn apply(&self, event: &store::Event) {
        let revision = event.kv.mod_revision;
        let Some((cache, key)) = self.route(&event.kv.key, revision.saturating_sub(1)) else { return };
        let put = match event.kind {
            EventKind::Delete => None,
            EventKind::Put => match Entry::new(&key, cache.namespaced, revision, event.kv.value.clone()) {
                Ok(entry) => Some(Arc::new(entry)),
                Err(error) => {
                    tracing::warn!(%error, "skipping a stored object that cannot be read");
                    return;
                }
            },
        };
        cache.apply(&key, revision, put);
    }
}

/// An event made from the store's history.
pub fn historic_event(cache: &ResourceCache, event: &store::Event) -> Option<Event> {
    let revision = event.kv.mod_revision;
    let key = std::str::from_utf8(&event.kv.key).ok()?.strip_prefix(&cache.prefix)?.to_owned();
    let entry =
        |kv: &KeyValue| Entry::new(&key, cache.namespaced, kv.mod_revision, kv.value.clone()).ok().map(Arc::new);
    let previous = event.prev.as_ref().and_then(entry);
    let current = match event.kind {
        EventKind::Put => Some(entry(&event.kv)?),
        EventKind::Delete => None,
    };
    Some(Event::new(revision, current, previous))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, revision: Revision, bytes: usize) -> Arc<Entry> {
        let fill = "x".repeat(bytes);
        let value =
            format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a"}},"data":{{"k":"{fill}"}}}}"#);
        Arc::new(Entry::new(key, true, revision, value.into()).expect("an object"))
    }

    fn events(cache: &ResourceCache) -> usize {
        cache.state.read().events.len()
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_is_bounded_by_number_bytes_and_time() {
        let cache = ResourceCache::new("/registry/configmaps/".into(), true, 0);
        for revision in 1..=2_000 {
            cache.apply("n/a", revision, Some(entry("n/a", revision, 10)));
        }
        assert_eq!(events(&cache), WINDOW_EVENTS_MAX);
        assert!(matches!(cache.events_after(0), Window::Behind { window_start: 976 }));
        assert!(matches!(cache.events_after(976), Window::Events(events) if events.len() == WINDOW_EVENTS_MAX));

        // Large ones go, but not while they are new.
        for revision in 2_001..=2_040 {
            cache.apply("n/a", revision, Some(entry("n/a", revision, 100_000)));
        }
        assert_eq!(events(&cache), WINDOW_EVENTS_MAX);
        tokio::time::advance(WINDOW_FRESH).await;
        cache.apply("n/a", 2_041, Some(entry("n/a", 2_041, 10)));
        let left = events(&cache);
        assert!((10..=12).contains(&left), "{left} of 100 kB each");
        assert!(cache.state.read().bytes <= WINDOW_BYTES_MAX);

        tokio::time::advance(WINDOW_KEEP).await;
        assert!(!cache.trim(), "nothing is left");
        assert_eq!((events(&cache), cache.state.read().bytes), (0, 0));
        assert!(matches!(cache.events_after(2_041), Window::Events(events) if events.is_empty()));
        assert!(matches!(cache.events_after(2_040), Window::Behind { window_start: 2_041 }));
    }
}
