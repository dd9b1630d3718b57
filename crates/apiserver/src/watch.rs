//! One watch: what is there already, then every change, as a stream of encoded events.
//!
//! Invariants:
//! - Events come in the order of their revisions, each once; an object that starts or stops to match the selection comes as
//!   ADDED or DELETED.
//! - A watch owns a position and no queue, so one that is read slowly costs nothing. When its position is compacted away it
//!   ends with an ERROR event `Expired`.
//! - A bookmark's resourceVersion is never ahead of what was sent.
//!
//! Follows: `k8s.io/apiserver/pkg/storage/cacher`, `k8s.io/apiserver/pkg/endpoints/handlers/watch.go`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::json;
use apimachinery::status::{Status, StatusResult};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use rand::Rng;
use store::{Revision, WatchError, Watcher};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::Body;
use crate::cache::{Entry, Event, ResourceCache, Window, historic_event};
use crate::negotiate::Encoding;
use crate::output::{self, Form, ListMeta};
use crate::registry::ResourceHandle;
use crate::selection::Selection;
use crate::storage::{Storage, cache_status, parse_revision, stored};

/// Without `timeoutSeconds` a watch ends after this, at most twice as much. Source: `--min-request-timeout`.
const TIMEOUT_MIN: Duration = Duration::from_secs(1800);
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// The annotation of the bookmark after the initial events.
pub const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What a watch asks for, apart from the selection.
#[derive(Clone, Debug, Default)]
pub struct WatchRequest {
    pub resource_version: String,
    pub send_initial_events: Option<bool>,
    pub allow_bookmarks: bool,
    pub timeout: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EventType {
    Added,
    Modified,
    Deleted,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Added => "ADDED",
            EventType::Modified => "MODIFIED",
            EventType::Deleted => "DELETED",
        }
    }
}

struct Watch {
    storage: Arc<Storage>,
    resource: ResourceHandle,
    cache: Arc<ResourceCache>,
    namespace: String,
    selection: Selection,
    form: Form,
    /// Everything up to here was sent.
    after: Revision,
    initial: VecDeque<Arc<Entry>>,
    /// The revision of the bookmark that ends the initial events.
    initial_end: Option<Revision>,
    pending: VecDeque<Bytes>,
    /// Reads the store's history until the window of the cache is reached.
    history: Option<Watcher>,
    changed: watch::Receiver<Revision>,
    deadline: Instant,
    next_bookmark: Option<Instant>,
    columns_sent: bool,
    done: bool,
    stop: CancellationToken,
}

/// Starts a watch and answers its stream.
pub async fn start(
    storage: Arc<Storage>,
    resource: ResourceHandle,
    namespace: String,
    selection: Selection,
    form: Form,
    request: WatchRequest,
    stop: CancellationToken,
) -> StatusResult<Response<Body>> {
    let cache = stored(&resource)?.cache.clone();
    let requested = match request.resource_version.as_str() {
        "" => None,
        text => Some(parse_revision(text).map_err(|reason| {
            let reason = format!("resourceVersion: Invalid value: {}: {reason}", Value::from(text));
            Box::new(Status::plain_error(reason))
        })?),
    };
    let changed = cache.subscribe();
    let from_now = matches!(requested, None | Some(0));
    let initial_wanted = match request.send_initial_events {
        Some(wanted) => wanted,
        None => from_now,
    };
    match (requested, request.send_initial_events) {
        (None, _) => {
            storage.caches.wait_current().await.map_err(cache_status)?;
        }
        (Some(revision), Some(true)) if revision > 0 => {
            storage.caches.wait_for(revision, Duration::from_secs(3)).await.map_err(cache_status)?;
        }
        _ => {}
    }
    let mut watch = Watch {
        after: requested.unwrap_or(0),
        initial: VecDeque::new(),
        initial_end: None,
        pending: VecDeque::new(),
        history: None,
        changed,
        deadline: Instant::now()
            + request.timeout.unwrap_or_else(|| TIMEOUT_MIN.mul_f64(1.0 + rand::rng().random::<f64>())),
        next_bookmark: request.allow_bookmarks.then(|| Instant::now() + BOOKMARK_INTERVAL),
        columns_sent: false,
        done: false,
        stop,
        storage,
        resource,
        cache,
        namespace,
        selection,
        form,
    };
    if initial_wanted || from_now {
        let progress = watch.storage.caches.progress();
        let mut snapshot = watch
            .cache
            .snapshot(&watch.namespace, progress, |e| initial_wanted && watch.selection.may_match(&watch.resource, e));
        watch.selection.narrow(&watch.resource, &mut snapshot.entries).await?;
        watch.after = snapshot.revision;
        watch.initial = snapshot.entries.into();
        if request.send_initial_events == Some(true) && request.allow_bookmarks {
            watch.initial_end = Some(snapshot.revision);
        }
    } else if requested.is_some_and(|r| r < watch.storage.store.compact_revision()) {
        let status = too_old(watch.after, watch.storage.store.compact_revision());
        watch.pending.push_back(watch.frame("ERROR", &status.to_value()));
        watch.done = true;
    }
    let content_type = watch.form.accepted.encoding.stream_media_type();
    let stream = futures::stream::unfold(watch, |mut watch| async move {
        let frame = watch.next().await?;
        Some((frame, watch))
    });
    let mut response = Response::new(Body::Stream(Box::pin(stream)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

fn too_old(requested: Revision, compacted: Revision) -> Status {
    Status::expired(format!("too old resource version: {requested} ({compacted})"))
}

impl Watch {
    /// The next piece of the stream; `None` ends it.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.pending.pop_front() {
                return Some(frame);
            }
            if self.done || Instant::now() >= self.deadline {
                return None;
            }
            if let Some(entry) = self.initial.pop_front() {
                let frame = self.encode(EventType::Added, &entry, entry.revision, None).await;
                return Some(frame);
            }
            if let Some(revision) = self.initial_end.take() {
                return Some(self.bookmark(revision, true));
            }
            if let Err(error) = self.advance().await {
                self.done = true;
                let status = match error {
                    WatchError::Compacted { requested, compact_revision } => too_old(requested, compact_revision),
                    WatchError::Unavailable { .. } | WatchError::Closed => return None,
                };
                return Some(self.frame("ERROR", &status.to_value()));
            }
        }
    }

    /// Moves `after` forward: queues frames of what changed, or waits for something to happen.
    async fn advance(&mut self) -> Result<(), WatchError> {
        if let Some(history) = &mut self.history {
            let batch = tokio::select! {
                () = tokio::time::sleep_until(self.deadline) => { self.done = true; return Ok(()) }
                () = self.stop.cancelled() => { self.done = true; return Ok(()) }
                () = self.resource.replaced.cancelled() => { self.done = true; return Ok(()) }
                batch = history.next() => batch.ok_or(WatchError::Closed)??,
            };
            for event in &batch.events {
                if let Some(event) = historic_event(&self.cache, event) {
                    self.push(&event).await;
                }
            }
            self.after = self.after.max(batch.revision);
            if matches!(self.cache.events_after(self.after), Window::Events(_)) {
                self.history = None;
            }
            return Ok(());
        }
        self.changed.mark_unchanged();
        // Read before the window: all events up to here are in it.
        let progress = self.storage.caches.progress();
        match self.cache.events_after(self.after) {
            Window::Behind { window_start } => {
                // Nothing of this resource may have happened since: then there is no history to read.
                let (start, end) = self.cache.store_range(&self.namespace);
                let watcher = self.storage.store.watch(start, end, self.after, true).await?;
                if watcher.progress() >= window_start {
                    self.after = window_start;
                } else {
                    self.history = Some(watcher);
                }
            }
            Window::Events(events) if events.is_empty() => self.wait(progress).await,
            Window::Events(events) => {
                for event in events {
                    self.push(&event).await;
                    self.after = event.revision;
                }
            }
        }
        Ok(())
    }

    async fn wait(&mut self, progress: Revision) {
        let wake = self.next_bookmark.map_or(self.deadline, |b| b.min(self.deadline));
        tokio::select! {
            changed = self.changed.changed() => self.done |= changed.is_err(),
            () = self.stop.cancelled() => self.done = true,
            // What happened until then is still told.
            () = self.resource.replaced.cancelled() => {
                self.done = !matches!(self.cache.events_after(self.after), Window::Events(events) if !events.is_empty());
            }
            () = tokio::time::sleep_until(wake) => {
                if self.next_bookmark.is_some() {
                    self.next_bookmark = Some(Instant::now() + BOOKMARK_INTERVAL);
                    let frame = self.bookmark(progress.max(self.after), false);
                    self.pending.push_back(frame);
                }
            }
        }
    }

    /// Queues the frame of a change, if the watcher is to see it.
    async fn push(&mut self, event: &Event) {
        let Some(some) = event.current.as_ref().or(event.previous.as_ref()) else { return };
        if !self.namespace.is_empty() && some.namespace() != self.namespace {
            return;
        }
        let both = event.current.iter().chain(&event.previous);
        if let Err(status) = self.selection.read_fields(&self.resource, both).await {
            self.done = true;
            let frame = self.frame("ERROR", &status.to_value());
            self.pending.push_back(frame);
            return;
        }
        let is = self.selection.matches_some(&self.resource, event.current.as_ref());
        let was = self.selection.matches_some(&self.resource, event.previous.as_ref());
        let (event_type, entry) = match (was, is) {
            (false, false) => return,
            (false, true) => (EventType::Added, event.current.as_ref()),
            (true, true) => (EventType::Modified, event.current.as_ref()),
            (true, false) => (EventType::Deleted, event.previous.as_ref()),
        };
        let Some(entry) = entry else { return };
        let frame = self.encode(event_type, entry, event.revision, Some(event)).await;
        self.pending.push_back(frame);
    }

    async fn encode(
        &mut self,
        event_type: EventType,
        entry: &Entry,
        revision: Revision,
        event: Option<&Event>,
    ) -> Bytes {
        if self.form.is_plain(&self.resource) && self.resource.sends_as_stored(entry) {
            let make = || {
                let mut out = Vec::with_capacity(entry.encoded_len() + 64);
                out.extend_from_slice(b"{\"type\":\"");
                out.extend_from_slice(event_type.as_str().as_bytes());
                out.extend_from_slice(b"\",\"object\":");
                entry.write(&mut out, revision);
                out.extend_from_slice(b"}\n");
                Bytes::from(out)
            };
            return match event {
                // Watchers that want the same bytes share them.
                Some(event) => event.frames[event_type as usize].get_or_init(make).clone(),
                None => make(),
            };
        }
        let object = match self.resource.strategy.to_version(entry.to_value_at(revision), &self.resource.gvk).await {
            Ok(object) => object,
            Err(status) => {
                self.done = true;
                return self.frame("ERROR", &status.to_value());
            }
        };
        let object = self.transform(object);
        self.frame(event_type.as_str(), &object)
    }

    fn transform(&mut self, object: Value) -> Value {
        match &self.form.accepted.convert {
            Some(c) if c.kind == "PartialObjectMetadata" => output::partial(object, &c.version),
            Some(c) if c.kind == "Table" => {
                let meta = ListMeta {
                    revision: object.str_at(&["metadata", "resourceVersion"]).parse().unwrap_or(0),
                    ..ListMeta::default()
                };
                let columns = !std::mem::replace(&mut self.columns_sent, true);
                let version = c.version.clone();
                output::table(&self.resource, &self.form, &version, &meta, vec![object], columns)
            }
            _ => object,
        }
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool) -> Bytes {
        let mut object = json!({
            "kind": self.resource.gvk.kind.as_str(), "apiVersion": self.resource.api_version(),
            "metadata": {"resourceVersion": revision.to_string()},
        });
        if initial_end {
            object.set_at(&["metadata", "annotations", INITIAL_EVENTS_END], "true".into());
        }
        let object = self.transform(object);
        self.frame("BOOKMARK", &object)
    }

    fn frame(&self, event_type: &str, object: &Value) -> Bytes {
        if self.form.accepted.encoding == Encoding::Protobuf {
            return crate::protobuf::watch_frame(event_type, object);
        }
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(format!("{{\"type\":\"{event_type}\",\"object\":").as_bytes());
        object.write_to(&mut out);
        out.extend_from_slice(b"}\n");
        out.into()
    }
}
