//! Objects over the store: reads from the watch cache, compare-and-swap writes, lists on one snapshot.
//!
//! Access rules, admission and validation are not applied here; the handlers do that before they come here. Admission
//! plugins and bookkeeping (address allocation, quotas) use these functions directly.
//!
//! Invariants:
//! - A read of an object or a list sees every write that was acknowledged before it began, by whichever replica; `lookup`,
//!   `find`, `all` and `known` see those of this one.
//! - A write returns after the store made it durable; its entry carries the revision the store gave it.
//! - `resourceVersion` (a string of the API) becomes `revision` (a number of the store) only in this module.
//!
//! Follows: `k8s.io/apiserver/pkg/storage/etcd3`, `k8s.io/apiserver/pkg/storage` (continue tokens).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::decode;
use apimachinery::status::{Status, StatusResult, cause};
use base64::Engine;
use bytes::Bytes;
use store::{Expect, Op, ReadError, Revision, Store, WriteError};

use crate::cache::{CacheError, Caches, Entry, ResourceCache, encode_stored};
use crate::expiry::Expiry;
use crate::registry::{Registry, Resource, ResourceStorage};
use crate::webhook::Pool;

/// How long a request waits for a revision that is not there yet. Source: `cacher.blockTimeout`.
const FUTURE_REVISION_WAIT: Duration = Duration::from_secs(3);

/// The stored state of one server.
pub struct Storage {
    pub store: Store,
    pub caches: Arc<Caches>,
    pub registry: Registry,
    /// Connections to webhooks that are kept for the next call.
    pub webhooks: Arc<Pool>,
    pub expiry: Expiry,
}

/// How a write went wrong.
pub enum WriteFailure {
    /// Somebody else wrote first; here is what is there now (`None`: nothing).
    Conflict(Option<Box<Entry>>),
    Status(Box<Status>),
}

impl From<Box<Status>> for WriteFailure {
    fn from(status: Box<Status>) -> Self {
        WriteFailure::Status(status)
    }
}

/// What a list asks for.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    pub resource_version: String,
    pub resource_version_match: String,
    pub limit: u64,
    pub continue_token: String,
    /// Selectors are given: how many more match is not known.
    pub selective: bool,
}

/// One page of a list.
pub struct ListPage {
    pub revision: Revision,
    pub entries: Vec<Arc<Entry>>,
    pub continue_token: String,
    pub remaining: Option<u64>,
}

/// The state of a list between two pages, as it travels through the client.
#[derive(serde::Serialize, serde::Deserialize)]
struct ContinueToken {
    #[serde(rename = "v")]
    version: String,
    /// The snapshot's revision; -1: continue with whatever is newest.
    #[serde(rename = "rv")]
    revision: i64,
    /// The first key of the next page, relative to the resource's prefix.
    #[serde(rename = "start")]
    start: String,
}

impl ContinueToken {
    fn encode(revision: i64, start: &str) -> String {
        let token = ContinueToken { version: "meta.k8s.io/v1".to_owned(), revision, start: start.to_owned() };
        let json = serde_json::to_vec(&token).expect("a token of strings and numbers always encodes");
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)
    }

    fn decode(text: &str) -> StatusResult<ContinueToken> {
        let invalid = |reason: String| {
            Box::new(Status::bad_request(format!("invalid continue token: continue key is not valid: {reason}")))
        };
        let engine = base64::engine::GeneralPurpose::new(
            &base64::alphabet::URL_SAFE,
            base64::engine::general_purpose::NO_PAD
                .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent)
                .with_decode_allow_trailing_bits(true),
        );
        let json = engine.decode(text).map_err(|e| {
            let at = match e {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                // Go names where the last, incomplete group begins.
                base64::DecodeError::InvalidLength(length) => length - length % 4,
                base64::DecodeError::InvalidPadding => text.len(),
            };
            invalid(format!("illegal base64 data at input byte {at}"))
        })?;
        let token: ContinueToken = serde_json::from_slice(&json).map_err(|e| invalid(go_json_error(&json, &e)))?;
        if token.version != "meta.k8s.io/v1" {
            return Err(invalid(format!("server does not recognize this encoded version {}", token.version)));
        }
        if token.start.is_empty() || token.start.split('/').any(|s| s == "..") {
            return Err(invalid("encoded start key empty (version meta.k8s.io/v1)".to_owned()));
        }
        Ok(token)
    }
}

/// The message of Go's decoder for the most common mistake, a text that is no JSON at all.
fn go_json_error(json: &[u8], error: &serde_json::Error) -> String {
    match json.first() {
        None => "unexpected end of JSON input".to_owned(),
        Some(first) if !b"{[\"-0123456789tfn \t\r\n".contains(first) => {
            let text = match first {
                0x20..0x7f => (*first as char).to_string(),
                other => format!("\\u{other:04x}"),
            };
            format!("invalid character '{text}' looking for beginning of value")
        }
        Some(_) => error.to_string(),
    }
}

impl Storage {
    /// The object as it is now.
    pub async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> StatusResult<Option<Arc<Entry>>> {
        let storage = stored(resource)?;
        self.caches.wait_current().await.map_err(cache_status)?;
        Ok(storage.cache.get(&storage.cache.key(namespace, name)))
    }

    /// The object as it is in the cache, however old (`resourceVersion=0`).
    pub fn get_cached(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        let cache = &resource.storage.as_ref()?.cache;
        cache.get(&cache.key(namespace, name))
    }

    /// The object as it is now, as a tree in the resource's version.
    pub async fn read(&self, resource: &Resource, namespace: &str, name: &str) -> StatusResult<Option<Value>> {
        match self.get(resource, namespace, name).await? {
            Some(entry) => Ok(Some(resource.strategy.to_version(entry.to_value(), &resource.gvk).await?)),
            None => Ok(None),
        }
    }

    /// The same for lookups beside the object of a request (its namespace, its service account): what the cache has counts,
    /// and the store is asked only for what it has not, so that these need no store that answers.
    pub async fn lookup(&self, resource: &Resource, namespace: &str, name: &str) -> StatusResult<Option<Value>> {
        self.caches.wait_own().await.map_err(cache_status)?;
        let cached = self.get_cached(resource, namespace, name);
        let entry = match cached {
            Some(entry) => Some(entry),
            None => self.get(resource, namespace, name).await?,
        };
        match entry {
            Some(entry) => Ok(Some(resource.strategy.to_version(entry.to_value(), &resource.gvk).await?)),
            None => Ok(None),
        }
    }

    /// [`Storage::lookup`] for a resource by name; `None` also when no such resource is served.
    pub async fn find(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> StatusResult<Option<Value>> {
        match self.registry.get(group, version, resource) {
            Some(resource) => self.lookup(&resource, namespace, name).await,
            None => Ok(None),
        }
    }

    /// All objects of a resource in a namespace (`""`: all), ascending by name, as this replica knows them.
    pub async fn all(&self, group: &str, version: &str, resource: &str, namespace: &str) -> StatusResult<Vec<Value>> {
        let Some(resource) = self.registry.get(group, version, resource) else { return Ok(Vec::new()) };
        let objects = self.known(&resource, namespace).await?.iter().map(|e| e.to_value()).collect();
        resource.strategy.all_to_version(objects, &resource.gvk).await
    }

    /// The entries of a resource in a namespace (`""`: all), ascending by name, as this replica knows them.
    pub async fn known(&self, resource: &Resource, namespace: &str) -> StatusResult<Vec<Arc<Entry>>> {
        let cache = &stored(resource)?.cache;
        let progress = self.caches.wait_own().await.map_err(cache_status)?;
        Ok(cache.snapshot(namespace, progress, |_| true).entries)
    }

    /// Writes an object that must not exist.
    pub async fn insert(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        object: &Value,
    ) -> Result<Arc<Entry>, WriteFailure> {
        self.put(resource, namespace, name, object, Expect::Absent).await
    }

    /// Overwrites an object that must still be at `expected`.
    pub async fn replace(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        object: &Value,
        expected: Revision,
    ) -> Result<Arc<Entry>, WriteFailure> {
        self.put(resource, namespace, name, object, Expect::ModRevision(expected)).await
    }

    async fn put(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        object: &Value,
        expect: Expect,
    ) -> Result<Arc<Entry>, WriteFailure> {
        let value = self.encode(resource, object).await?;
        let storage = stored(resource)?;
        let key = storage.cache.store_key(namespace, name);
        let refused = |error| write_failure(error, &storage.cache, namespace, name);
        let lease = self.expiry.lease(&self.store, resource).await.map_err(refused)?;
        let written = self.store.txn(key.clone(), expect, Op::Put { value: value.clone(), lease }).await;
        let committed = match written {
            // It ran out on a slow store, or was lost with a server of it.
            Err(WriteError::LeaseNotFound { lease }) => {
                self.expiry.forget(lease);
                let lease = self.expiry.lease(&self.store, resource).await.map_err(refused)?;
                self.store.txn(key, expect, Op::Put { value: value.clone(), lease }).await
            }
            other => other,
        };
        let committed = committed.map_err(refused)?;
        let entry = new_entry(&storage.cache, namespace, name, committed.revision, value)?;
        Ok(Arc::new(entry))
    }

    /// The bytes of an object as the store keeps them.
    pub async fn encode(&self, resource: &Resource, object: &Value) -> StatusResult<Bytes> {
        let storage = stored(resource)?;
        if storage.api_version == object.str_at(&["apiVersion"]) {
            let own = resource.api_version() == storage.api_version;
            let object = match resource.strategy.patch_schema().filter(|_| own) {
                Some(ty) => decode::as_stored(object, ty),
                None => Cow::Borrowed(object),
            };
            return Ok(encode_stored(&object).into());
        }
        let kind = match storage.api_version.rsplit_once('/') {
            Some((group, version)) => {
                apimachinery::gvk::GroupVersionKind::new(group, version, resource.gvk.kind.as_str())
            }
            None => {
                apimachinery::gvk::GroupVersionKind::new("", storage.api_version.as_str(), resource.gvk.kind.as_str())
            }
        };
        let converted = resource.strategy.converted(object.clone(), &kind).await?;
        Ok(encode_stored(&converted).into())
    }

    /// An object that is not written (dry run), as it would be after it was stored and read.
    pub fn unwritten(&self, resource: &Resource, object: Value) -> Value {
        match resource.strategy.patch_schema() {
            Some(ty) => decode::as_stored(&object, ty).into_owned(),
            None => object,
        }
    }

    /// Removes an object that must still be at `expected`, returning the revision of the removal.
    pub async fn remove(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        expected: Revision,
    ) -> Result<Revision, WriteFailure> {
        let storage = stored(resource)?;
        let key = storage.cache.store_key(namespace, name);
        let committed = self
            .store
            .txn(key, Expect::ModRevision(expected), Op::Delete)
            .await
            .map_err(|e| write_failure(e, &storage.cache, namespace, name))?;
        Ok(committed.revision)
    }

    /// One page of the objects of a namespace (`""`: all) that `keep` accepts, ascending by key.
    pub async fn list(
        &self,
        resource: &Resource,
        namespace: &str,
        request: &ListRequest,
        mut keep: impl FnMut(&Entry) -> bool,
    ) -> StatusResult<ListPage> {
        let cache = &stored(resource)?.cache;
        let mut exact: Option<Revision> = None;
        let mut start: Option<String> = None;
        if !request.continue_token.is_empty() {
            let token = ContinueToken::decode(&request.continue_token)?;
            if !request.resource_version.is_empty() && request.resource_version != "0" {
                return Err(Box::new(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                )));
            }
            start = Some(token.start);
            if token.revision > 0 {
                exact = Some(token.revision as Revision);
            } else {
                self.caches.wait_current().await.map_err(cache_status)?;
            }
        } else {
            match request.resource_version.as_str() {
                "" => {
                    self.caches.wait_current().await.map_err(cache_status)?;
                }
                "0" => {}
                text => {
                    let revision = parse_revision(text).map_err(|reason| {
                        Box::new(Status::bad_request(format!(
                            "invalid resource version: resourceVersion: Invalid value: {}: {reason}",
                            Value::from(text)
                        )))
                    })?;
                    // Without a match, a limit asks for exactly this revision (the meaning from before the parameter).
                    let legacy_exact = request.resource_version_match.is_empty() && request.limit > 0;
                    self.caches.wait_for(revision, FUTURE_REVISION_WAIT).await.map_err(cache_status)?;
                    if request.resource_version_match == "Exact" || legacy_exact {
                        exact = Some(revision);
                    }
                }
            }
        }

        let after_start = |key: &str| start.as_deref().is_none_or(|s| key >= s);
        let (revision, mut entries) = match exact {
            Some(revision) => {
                let kept = |e: &Entry| after_start(e.key()) && keep(e);
                let unchanged = match self.caches.progress() >= revision && revision >= self.store.compact_revision() {
                    true => cache.snapshot_at(namespace, revision, kept).map(|s| s.entries),
                    false => None,
                };
                let entries = match unchanged {
                    Some(entries) => entries,
                    None => {
                        let first_page = request.continue_token.is_empty();
                        let all = self.range_at(cache, namespace, revision, start.as_deref(), first_page).await?;
                        all.into_iter().filter(|e| after_start(e.key()) && keep(e)).collect::<Vec<_>>()
                    }
                };
                (revision, entries)
            }
            None => {
                let snapshot = cache.snapshot(namespace, self.caches.progress(), |e| after_start(e.key()) && keep(e));
                (snapshot.revision, snapshot.entries)
            }
        };
        let mut page = ListPage { revision, entries: Vec::new(), continue_token: String::new(), remaining: None };
        let limit = match request.resource_version.as_str() {
            // Upstream answers from its cache then, and all of it.
            "0" => 0,
            _ => usize::try_from(request.limit).unwrap_or(usize::MAX),
        };
        if limit > 0 && entries.len() > limit {
            let rest = entries.len() - limit;
            page.continue_token = ContinueToken::encode(revision as i64, entries[limit].key());
            page.remaining = (!request.selective).then_some(rest as u64);
            entries.truncate(limit);
        }
        page.entries = entries;
        Ok(page)
    }

    /// The objects as they were at `revision`.
    async fn range_at(
        &self,
        cache: &ResourceCache,
        namespace: &str,
        revision: Revision,
        start_key: Option<&str>,
        first_page: bool,
    ) -> StatusResult<Vec<Arc<Entry>>> {
        let (mut start, end) = cache.store_range(namespace);
        if let Some(key) = start_key {
            start = start.max(format!("{}{key}", cache.prefix).into());
        }
        let request = store::RangeRequest { start, end, revision, ..Default::default() };
        let response = self.store.range(request).await.map_err(|error| match error {
            ReadError::Compacted { .. } if first_page => {
                Box::new(Status::expired("The resourceVersion for the provided list is too old."))
            }
            ReadError::Compacted { .. } => Box::new(expired_continue(start_key.unwrap_or_default())),
            other => read_status(other),
        })?;
        Ok(response
            .kvs
            .into_iter()
            .filter_map(|kv| {
                let key = std::str::from_utf8(&kv.key).ok()?.strip_prefix(&cache.prefix)?.to_owned();
                Entry::new(&key, cache.namespaced, kv.mod_revision, kv.value).ok().map(Arc::new)
            })
            .collect())
    }
}

/// 410 for a token whose snapshot is gone, with a token that goes on without consistency.
fn expired_continue(start: &str) -> Status {
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
         the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
         Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
         deleted between the time the first chunk was returned and now may show up in the list.",
    );
    status.continue_token = ContinueToken::encode(-1, start);
    status
}

/// A resourceVersion as a revision, or Go's complaint about it.
pub fn parse_revision(text: &str) -> Result<Revision, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("strconv.ParseUint: parsing {}: invalid syntax", Value::from(text)));
    }
    text.parse().map_err(|_| format!("strconv.ParseUint: parsing {}: value out of range", Value::from(text)))
}

fn new_entry(
    cache: &ResourceCache,
    namespace: &str,
    name: &str,
    revision: Revision,
    value: Bytes,
) -> StatusResult<Entry> {
    Entry::new(&cache.key(namespace, name), cache.namespaced, revision, value)
        .map_err(|e| Box::new(Status::internal_error(e)))
}

/// Where objects of a resource are; an internal error for kinds that are never stored.
pub fn stored(resource: &Resource) -> StatusResult<&ResourceStorage> {
    resource.storage.as_ref().ok_or_else(|| Box::new(Status::method_not_allowed()))
}

fn write_failure(error: WriteError, cache: &ResourceCache, namespace: &str, name: &str) -> WriteFailure {
    match error {
        WriteError::Conflict { current } => WriteFailure::Conflict(current.and_then(|kv| {
            let entry = Entry::new(&cache.key(namespace, name), cache.namespaced, kv.mod_revision, kv.value);
            entry.ok().map(Box::new)
        })),
        WriteError::TooLarge { .. } => WriteFailure::Status(Box::new(Status::request_entity_too_large(error))),
        WriteError::Unavailable { .. } => {
            tracing::error!(%error, "the store refused a write");
            WriteFailure::Status(Box::new(store_unavailable()))
        }
        WriteError::Full => {
            tracing::error!("there is no space left for the store");
            WriteFailure::Status(Box::new(store_full()))
        }
        WriteError::EmptyKey | WriteError::LeaseNotFound { .. } | WriteError::LeaseExists { .. } => {
            tracing::error!(%error, "the store refused a write");
            WriteFailure::Status(Box::new(Status::internal_error(error)))
        }
    }
}

/// Seconds after which a client should try again when the store was away.
const STORE_RETRY_SECONDS: i32 = 5;

/// The database cannot be reached. What exactly is wrong, and its address, is for the log.
fn store_unavailable() -> Status {
    Status::service_unavailable("the store of this API server is not available at the moment, please try again")
        .with_retry_after(STORE_RETRY_SECONDS)
}

/// Nothing can be written until there is room; reads and deletes go on.
fn store_full() -> Status {
    Status::service_unavailable(
        "there is no space left for the store of this API server: nothing can be written until some is made",
    )
    .with_retry_after(6 * STORE_RETRY_SECONDS)
}

fn read_status(error: ReadError) -> Box<Status> {
    match error {
        ReadError::Compacted { .. } => {
            Box::new(Status::expired("The resourceVersion for the provided list is too old."))
        }
        ReadError::FutureRevision { requested, current } => Box::new(too_large(requested, current)),
        ReadError::Unavailable(_) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the store could not be read");
            Box::new(store_unavailable())
        }
    }
}

/// Why the cache cannot answer, as a Status.
pub fn cache_status(error: CacheError) -> Box<Status> {
    match error {
        CacheError::TooNew { wanted, current } => Box::new(too_large(wanted, current)),
        CacheError::Read(error) => read_status(error),
        CacheError::Watch(error) => Box::new(Status::internal_error(error)),
    }
}

fn too_large(wanted: Revision, current: Revision) -> Status {
    Status::timeout(format!("Too large resource version: {wanted}, current: {current}"), 1).with_cause(
        cause::RESOURCE_VERSION_TOO_LARGE,
        "Too large resource version",
        "",
    )
}
