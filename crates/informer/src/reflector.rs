//! Keeps a cache equal to the server's collection: list, then watch, forever.
//!
//! Asks for the objects in the watch itself (`sendInitialEvents`) and falls back to LIST where a server refuses that. A
//! watch that ends is resumed from the last resource version seen; 410 starts over. Nothing but cancellation ends it.
//!
//! Follows: `k8s.io/client-go/tools/cache/reflector.go`; KEP-3157 (streaming lists), KEP-956 (bookmarks).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::json::Str;
use bytes::{Buf, Bytes, BytesMut};
use http::Method;
use http::header::{ACCEPT, ACCEPT_ENCODING};
use http_body_util::BodyExt;
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::cache::Object;
use crate::factory::Shared;
use crate::meta::Header;
use crate::resource::{Source, push_query};
use crate::rest::{ACCEPT_METADATA, ACCEPT_METADATA_LIST, ApiError, ListOf, Rest};

/// client-go asks for five to ten minutes, so that the watches of a fleet do not end together.
const WATCH_SECONDS: u64 = 300;
/// What a server may take beyond the time asked for before the connection counts as dead.
const WATCH_GRACE: Duration = Duration::from_secs(30);
/// How long a server may take to begin to answer, or to finish a page or the initial events.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// A watch that ends sooner than this was not useful: wait before the next one.
const SHORT_WATCH: Duration = Duration::from_secs(1);
const PAGE: &str = "500";
/// A line buffer above this is given back once it is empty.
const BUFFER_KEEP: usize = 16 * 1024;

enum Stop {
    /// Watch again from the last resource version.
    Resume,
    /// The history is gone: list again.
    Relist,
    /// The server does not know `sendInitialEvents`.
    NoStreaming,
}

pub(crate) struct Reflector {
    pub rest: Rest,
    pub source: Source,
    pub shared: Arc<Shared>,
    pub streaming: bool,
}

#[derive(Deserialize)]
struct WatchEvent<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl Reflector {
    pub async fn run(mut self, cancel: CancellationToken) {
        let ended = cancel.clone();
        tokio::select! {
            // Cancel-safe: the cache is changed in whole steps between awaits.
            () = ended.cancelled() => {}
            () = self.run_forever() => {}
        }
    }

    async fn run_forever(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(400), Duration::from_secs(30), Duration::from_secs(120));
        let mut version = Str::const_new("");
        let mut listed = false;
        loop {
            let began = Instant::now();
            let initial = !listed && self.streaming;
            let result = if !listed && !self.streaming {
                self.list(&mut version).await.map(|()| {
                    listed = true;
                    None
                })
            } else {
                self.watch(&mut version, initial, &mut listed).await.map(Some)
            };
            match result {
                Ok(None) => continue,
                Ok(Some(Stop::Resume)) if began.elapsed() >= SHORT_WATCH => {
                    backoff.reset();
                    continue;
                }
                Ok(Some(Stop::Resume)) => debug!(source = %self.source, "watch ended at once"),
                Ok(Some(Stop::Relist)) => {
                    debug!(source = %self.source, "resource version expired, listing again");
                    self.shared.stats.relists.fetch_add(1, Ordering::Relaxed);
                    listed = false;
                    version = Str::const_new("");
                }
                Ok(Some(Stop::NoStreaming)) => {
                    debug!(source = %self.source, "server has no streaming lists, falling back to LIST");
                    self.streaming = false;
                    continue;
                }
                Err(error) => {
                    self.shared.stats.errors.fetch_add(1, Ordering::Relaxed);
                    if !error.is_not_found() {
                        warn!(source = %self.source, error = &error as &dyn std::error::Error, "watch failed, will retry");
                    }
                }
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    fn query(&self) -> String {
        let mut query = String::new();
        for (key, value) in
            [("labelSelector", &self.source.label_selector), ("fieldSelector", &self.source.field_selector)]
        {
            if !value.is_empty() {
                push_query(&mut query, key, value);
            }
        }
        query
    }

    async fn list(&mut self, version: &mut Str) -> Result<(), ApiError> {
        let path = self.source.resource.path(&self.source.namespace, "", "");
        let accept = if self.source.metadata_only { ACCEPT_METADATA_LIST } else { "application/json" };
        let mut objects = Vec::new();
        let mut next = String::new();
        loop {
            let mut query = self.query();
            push_query(&mut query, "limit", PAGE);
            if !next.is_empty() {
                push_query(&mut query, "continue", &next);
            }
            let request = self.rest.request(Method::GET, &path, &query).header(ACCEPT, accept).body(Body::empty())?;
            let bytes = self.rest.send(request).await?;
            let page: ListOf<&RawValue> = serde_json::from_slice(&bytes)?;
            for item in page.items.unwrap_or_default() {
                objects.extend(self.decode(item.get()));
            }
            if page.metadata.next.is_empty() {
                *version = page.metadata.resource_version;
                break;
            }
            next = page.metadata.next;
        }
        self.shared.replace(objects, version);
        Ok(())
    }

    fn decode(&self, json: &str) -> Option<Object> {
        match self.shared.read(json) {
            Ok(object) => Some(object),
            Err(error) => {
                let key = serde_json::from_str::<Header>(json).map(|h| h.metadata.key()).unwrap_or_default();
                self.shared.stats.skipped.fetch_add(1, Ordering::Relaxed);
                warn!(source = %self.source, object = %key, %error, "skipping an object that cannot be read");
                None
            }
        }
    }

    async fn watch(&mut self, version: &mut Str, initial: bool, listed: &mut bool) -> Result<Stop, ApiError> {
        let seconds = WATCH_SECONDS + rand::random_range(0..WATCH_SECONDS);
        let mut query = self.query();
        push_query(&mut query, "watch", "true");
        push_query(&mut query, "allowWatchBookmarks", "true");
        push_query(&mut query, "timeoutSeconds", &seconds.to_string());
        if initial {
            push_query(&mut query, "sendInitialEvents", "true");
            push_query(&mut query, "resourceVersionMatch", "NotOlderThan");
        }
        push_query(&mut query, "resourceVersion", version);
        let path = self.source.resource.path(&self.source.namespace, "", "");
        let accept = if self.source.metadata_only { ACCEPT_METADATA } else { "application/json" };
        let request = self
            .rest
            .request(Method::GET, &path, &query)
            .header(ACCEPT, accept)
            // A compressed watch is one member per event from Kubernetes 1.37 on, and decoders stop after the first.
            .header(ACCEPT_ENCODING, "identity")
            .body(Body::empty())?;
        let opened = timeout(ANSWER_TIMEOUT, self.rest.open(request)).await;
        let response = match opened.unwrap_or(Err(ApiError::Timeout(ANSWER_TIMEOUT))) {
            Ok(response) => response,
            Err(error) if error.is_expired() => return Ok(Stop::Relist),
            Err(error) if initial && matches!(error.code(), 400 | 405 | 415 | 422) => {
                return Ok(Stop::NoStreaming);
            }
            Err(error) => return Err(error),
        };
        let deadline = Instant::now() + Duration::from_secs(seconds) + WATCH_GRACE;
        let mut gathered = initial.then(Vec::new);
        let gathered_by = Instant::now() + ANSWER_TIMEOUT;
        let mut lines = Lines { body: response.into_body(), buffer: BytesMut::new(), frame: Bytes::new() };
        loop {
            let until = if gathered.is_some() { gathered_by } else { deadline };
            let line = match timeout_at(until, lines.next()).await {
                Ok(Some(line)) => line?,
                // Without the end of the initial events nothing is known: begin again.
                Ok(None) => return Ok(Stop::Resume),
                Err(_) if gathered.is_some() => return Err(ApiError::Timeout(ANSWER_TIMEOUT)),
                Err(_) => return Ok(Stop::Resume),
            };
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let event: WatchEvent<'_> = match serde_json::from_slice(&line) {
                Ok(event) => event,
                Err(error) => {
                    self.shared.stats.skipped.fetch_add(1, Ordering::Relaxed);
                    warn!(source = %self.source, %error, "skipping a watch event that cannot be read");
                    continue;
                }
            };
            match event.event_type {
                "BOOKMARK" => {
                    let header: Header = serde_json::from_str(event.object.get())?;
                    *version = header.metadata.resource_version;
                    if header.metadata.annotations.get("k8s.io/initial-events-end") == Some("true")
                        && let Some(objects) = gathered.take()
                    {
                        self.shared.replace(objects, version);
                        *listed = true;
                    }
                }
                "ERROR" => {
                    let status: Value = serde_json::from_str(event.object.get())?;
                    let error = ApiError::status_value(0, None, status);
                    return match gathered {
                        _ if error.is_expired() => Ok(Stop::Relist),
                        // A server whose storage cannot tell how far it is says so only here.
                        Some(_) => {
                            debug!(source = %self.source, %error, "no initial events");
                            Ok(Stop::NoStreaming)
                        }
                        None => Err(error),
                    };
                }
                kind => {
                    let Some(object) = self.decode(event.object.get()) else { continue };
                    if let Some(objects) = &mut gathered {
                        objects.push(object);
                        continue;
                    }
                    *version = object.meta().resource_version.clone();
                    self.shared.apply(object, kind == "DELETED");
                }
            }
        }
    }
}

/// The lines of a body. A line that lies within one frame is not copied.
struct Lines {
    body: Body,
    buffer: BytesMut,
    frame: Bytes,
}

impl Lines {
    async fn next(&mut self) -> Option<Result<Bytes, ApiError>> {
        loop {
            if let Some(end) = self.frame.iter().position(|b| *b == b'\n') {
                let mut line = self.frame.split_to(end + 1);
                line.truncate(end);
                if self.buffer.is_empty() {
                    return Some(Ok(line));
                }
                self.buffer.extend_from_slice(&line);
                return Some(Ok(self.take_buffer()));
            }
            if self.frame.has_remaining() {
                self.buffer.extend_from_slice(&self.frame);
            }
            self.frame = Bytes::new();
            match self.body.frame().await {
                Some(Ok(frame)) => self.frame = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Some(Err(ApiError::Body(error.into()))),
                None if self.buffer.is_empty() => return None,
                None => return Some(Ok(self.take_buffer())),
            }
        }
    }

    fn take_buffer(&mut self) -> Bytes {
        if self.buffer.capacity() > BUFFER_KEEP {
            return std::mem::take(&mut self.buffer).freeze();
        }
        self.buffer.split().freeze()
    }
}
