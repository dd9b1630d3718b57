//! What the host's operators do with a running control plane: take a snapshot, hand in one to be restored, keep users out
//! while it is moved ([`Gate`]).
//!
//! Served on the cluster's own port below [`PREFIX`], so that it works wherever the cluster is reached. The tenant may not:
//! a caller proves with [`host_key`] that it can read Secret `NAME-certs` on the host, whose authority key no tenant has.
//!
//! A restore is two steps: the whole snapshot is received, checked and kept in the data directory; then the control plane
//! asks to be started anew ([`Operations::restart_wanted`]) and puts it in place before anything else runs. So nothing is
//! lost when either step is cut short.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use apimachinery::json;
use apimachinery::status::Status;
use apiserver::body::{Body, RequestBody};
use apiserver::extension::Extension;
use apiserver::output::status_response;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::request::Parts;
use http::{HeaderMap, Method, Response};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use snapshot::archive::{self, Header, Release};
use snapshot::restore::RestoreError;
use store::Store;
use syncer::MappingStore;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, watch};

use crate::gate::Gate;
use crate::restore::{self, Staged};

/// Where the operations are below the API's address.
pub const PREFIX: &str = "/alcove/v1/";
/// The header with the [`host_key`].
pub const KEY_HEADER: &str = "alcove-host-key";
/// The largest snapshot that is taken in.
const SNAPSHOT_BYTES_MAX: u64 = 8 << 30;
/// Pieces of a snapshot between the thread that packs it and the connection.
const PIECES: usize = 8;
const PIECE_BYTES: usize = 64 << 10;
/// The longest time for which users are turned away at once.
const HOLD_MAX_SECONDS: u64 = 600;
/// When who is turned away should come again.
const RETRY_AFTER_SECONDS: i32 = 1;

/// Proves the right to operate a cluster: derived from the private key of its authority, which only the host keeps.
pub fn host_key(authority_key_pem: &str) -> String {
    use aws_lc_rs::hmac;
    let key = hmac::Key::new(hmac::HMAC_SHA256, authority_key_pem.trim().as_bytes());
    let tag = hmac::sign(&key, b"alcove: operations of the host");
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The operations of one control plane.
pub(crate) struct Operations {
    key: String,
    release: Release,
    /// Nothing is kept on disk without one.
    data_dir: Option<PathBuf>,
    /// Where `container://` paths begin.
    files: Mutex<Option<PathBuf>>,
    /// Set once the store is open.
    store: Mutex<Option<Store>>,
    restart: AtomicBool,
    restart_told: Notify,
    /// One restore at a time.
    receiving: tokio::sync::Mutex<()>,
    /// Whether users are answered.
    pub gate: Gate,
    /// How many requests are under way.
    in_flight: Mutex<Option<watch::Receiver<usize>>>,
}

fn failed(status: Status) -> Response<Body> {
    status_response(&status, &HeaderMap::new())
}

fn internal(what: &str, error: &dyn std::error::Error) -> Response<Body> {
    let mut text = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    failed(Status::internal_error(text))
}

fn answer(code: u16, value: &apimachinery::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_vec()));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::OK);
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

impl Operations {
    pub fn new(authority_key_pem: &str, release: Release, data_dir: Option<&Path>) -> Arc<Operations> {
        Arc::new(Operations {
            // Without a key of an authority nobody can prove anything.
            key: match authority_key_pem.trim() {
                "" => format!("{}{}", uuid::Uuid::new_v4(), uuid::Uuid::new_v4()),
                key => host_key(key),
            },
            release,
            data_dir: data_dir.map(Path::to_owned),
            files: Mutex::new(data_dir.map(|folder| folder.join("files"))),
            store: Mutex::new(None),
            restart: AtomicBool::new(false),
            restart_told: Notify::new(),
            receiving: tokio::sync::Mutex::new(()),
            gate: Gate::default(),
            in_flight: Mutex::new(None),
        })
    }

    pub fn set_in_flight(&self, count: watch::Receiver<usize>) {
        *self.in_flight.lock() = Some(count);
    }

    /// Turns users away for some time, and waits until what they asked for before has been answered.
    async fn hold(&self, seconds: u64) -> Response<Body> {
        let time = Duration::from_secs(seconds.clamp(1, HOLD_MAX_SECONDS));
        self.gate.hold(time);
        let count = self.in_flight.lock().clone();
        if let Some(mut count) = count {
            let ended = tokio::time::timeout(time / 2, count.wait_for(|count| *count == 0).map(drop)).await;
            if ended.is_err() {
                self.gate.release();
                return failed(Status::timeout("requests that are under way do not end", 1));
            }
        }
        answer(200, &json!({"seconds": (time.as_secs())}))
    }

    /// Whether users are answered, and what is awaited if not.
    fn told_hold(&self) -> Response<Body> {
        answer(200, &json!({"held": (self.gate.is_held()), "awaits": (self.gate.awaited().unwrap_or_default())}))
    }

    /// Turns one user away.
    fn turned_away(&self, path: &str) -> Response<Body> {
        if path == "/readyz" {
            // The host must lead to this port, or the data does not come.
            let mut response = Response::new(Body::from(b"ok".to_vec()));
            let text = http::HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(http::header::CONTENT_TYPE, text);
            return response;
        }
        let message = "the virtual cluster is being moved; try again in a moment";
        failed(Status::failure(503, "ServiceUnavailable", message).with_retry_after(RETRY_AFTER_SECONDS))
    }

    pub fn set_store(&self, store: &Store) {
        *self.store.lock() = Some(store.clone());
    }

    pub fn set_files(&self, folder: PathBuf) {
        *self.files.lock() = Some(folder);
    }

    pub fn is_restart_wanted(&self) -> bool {
        self.restart.load(Ordering::Acquire)
    }

    /// Asks for the control plane to be stopped and started again.
    pub fn want_restart(&self) {
        self.restart.store(true, Ordering::Release);
        self.restart_told.notify_waiters();
    }

    /// Returns when the control plane must be stopped and started again.
    pub async fn restart_wanted(&self) {
        loop {
            let told = self.restart_told.notified();
            if self.is_restart_wanted() {
                return;
            }
            told.await;
        }
    }

    fn is_operator(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(KEY_HEADER).map(http::HeaderValue::as_bytes).unwrap_or_default();
        aws_lc_rs::constant_time::verify_slices_are_equal(given, self.key.as_bytes()).is_ok()
    }

    fn release_header(&self, revision: u64, url: &str) -> Header {
        let time = apimachinery::time::Timestamp::from_seconds(
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs() as i64),
        );
        let request = json!({
            "metadata": {
                "name": (format!("{}-snapshot-{revision}", self.release.release_name)),
                "creationTimestamp": (time.to_rfc3339()),
            },
            "spec": {"url": url},
            "status": {"phase": "Completed"},
        });
        Header { release: Some(self.release.clone()), request: Some(request), revision: Some(revision) }
    }

    /// Packs everything of one revision. Blocks; `out` may be slow.
    fn pack<W: std::io::Write>(&self, out: W, url: &str) -> std::io::Result<(W, u64)> {
        let store = self.store.lock().clone().ok_or_else(|| std::io::Error::other("the store is not open yet"))?;
        // Values are shared with the store: writes go on meanwhile.
        let taken = store.snapshot();
        let entries = taken.kvs.iter().map(|kv| (&kv.key[..], &kv.value[..]));
        let out = archive::write(out, &self.release_header(taken.revision, url), entries)?;
        Ok((out, taken.revision))
    }

    /// Writes a snapshot to a file. Blocks.
    pub fn write_snapshot(&self, file: &Path, url: &str) -> std::io::Result<u64> {
        let (file, revision) = self.pack(std::fs::File::create(file)?, url)?;
        file.sync_all()?;
        Ok(revision)
    }

    /// The file of a `container://` path, or why there is none.
    pub fn container_file(&self, path: &str) -> Result<PathBuf, String> {
        self.file(path).map_err(|status| status.message)
    }

    fn stream(self: &Arc<Self>, url: String) -> Response<Body> {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(PIECES);
        let operations = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let out = std::io::BufWriter::with_capacity(PIECE_BYTES, Pieces(sender));
            // The receiver sees a broken archive when this ends early.
            match operations.pack(out, &url) {
                Ok((mut out, _)) => drop(std::io::Write::flush(&mut out)),
                Err(error) => tracing::warn!(%error, "a snapshot was not sent to its end"),
            }
        });
        let stream = futures::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        let mut response = Response::new(Body::Stream(stream.boxed()));
        let gzip = http::HeaderValue::from_static("application/gzip");
        response.headers_mut().insert(http::header::CONTENT_TYPE, gzip);
        response
    }

    /// The file of a `container://` path. Never outside of the folder.
    fn file(&self, path: &str) -> Result<PathBuf, Status> {
        let folder = self.files.lock().clone();
        let folder = folder.ok_or_else(|| Status::bad_request("this control plane keeps nothing on disk"))?;
        let relative = Path::new(path.trim_start_matches('/'));
        let stays = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if path.is_empty() || !stays {
            return Err(Status::bad_request(format!("{path:?} is not a path in the container")));
        }
        Ok(folder.join(relative))
    }

    /// Writes a snapshot to a file beside the data.
    async fn save(self: &Arc<Self>, path: &str) -> Response<Body> {
        let file = match self.file(path) {
            Ok(file) => file,
            Err(status) => return failed(status),
        };
        let (operations, url) = (Arc::clone(self), format!("container://{path}"));
        let write = move || -> std::io::Result<(u64, u64)> {
            let folder = file.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(folder)?;
            let target = tempfile::Builder::new().prefix(".snapshot-").tempfile_in(folder)?;
            let (target, revision) = operations.pack(target, &url)?;
            target.as_file().sync_all()?;
            let bytes = target.as_file().metadata()?.len();
            target.persist(&file).map_err(|error| error.error)?;
            Ok((bytes, revision))
        };
        match tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok((bytes, revision)) => answer(201, &json!({"path": path, "bytes": bytes, "revision": revision})),
            Err(error) => internal(&format!("the snapshot could not be written to {path}"), &error),
        }
    }

    /// The snapshots at a path, or in a folder.
    async fn list(&self, path: &str) -> Response<Body> {
        let file = match self.file(path) {
            Ok(file) => file,
            Err(status) => return failed(status),
        };
        let parsed = snapshot::Target::parse(&format!("file://{}", file.display()), &snapshot::Environment::EMPTY);
        let Ok(target) = parsed else { return failed(Status::bad_request("not a path")) };
        let found = match target.list().await {
            Ok(found) => found,
            Err(snapshot::TargetError::NotFound { .. }) => return failed(not_there(path)),
            Err(error) => return internal("the snapshots could not be listed", &error),
        };
        let shown = |url: &str| {
            let inside = url.strip_prefix(&format!("file://{}", file.display())).unwrap_or_default();
            format!("container://{}{inside}", path.trim_end_matches('/'))
        };
        let items: Vec<apimachinery::Value> = found
            .iter()
            .map(|found| {
                let saved = found.saved_at.map(apimachinery::time::Timestamp::to_rfc3339).unwrap_or_default();
                json!({"url": (shown(&found.url)), "bytes": (found.size_bytes.unwrap_or(0)), "savedAt": saved})
            })
            .collect();
        answer(200, &json!({"items": (apimachinery::Value::Array(items))}))
    }

    /// The syncer's pairs of virtual and host objects, as the store has them.
    async fn mappings(&self) -> Response<Body> {
        let Some(store) = self.store.lock().clone() else {
            return failed(Status::failure(503, "ServiceUnavailable", "the store is not open yet"));
        };
        match crate::mappings::InStore(store).load(syncer::mappings::PREFIX).await {
            Ok(entries) => {
                let items = entries.iter().filter_map(|(_, value)| apimachinery::Value::from_slice(value).ok());
                answer(200, &json!({"items": (apimachinery::Value::Array(items.collect()))}))
            }
            Err(error) => failed(Status::internal_error(format!("the mappings could not be read: {error}"))),
        }
    }

    async fn remove(&self, path: &str) -> Response<Body> {
        let file = match self.file(path) {
            Ok(file) => file,
            Err(status) => return failed(status),
        };
        match tokio::fs::remove_file(&file).await {
            Ok(()) => answer(200, &json!({"path": path})),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => failed(not_there(path)),
            Err(error) => internal("the snapshot could not be removed", &error),
        }
    }

    /// Takes in a snapshot, checks it to its end, keeps it and asks for the restart that restores it.
    /// `new_name`: the snapshot is of another cluster; when it is not given, the snapshot tells.
    /// `moved`: the snapshot is this cluster's own from another place, under this name.
    async fn receive(
        &self,
        body: RequestBody,
        path: Option<&str>,
        new_name: Option<bool>,
        moved: Option<String>,
    ) -> Response<Body> {
        let awaited = self.gate.awaited();
        if awaited != moved {
            return failed(match awaited {
                Some(_) => Status::bad_request("this control plane awaits other data"),
                None => Status::bad_request("this control plane awaits no data"),
            });
        }
        let Some(data_dir) = self.data_dir.clone() else {
            return failed(Status::bad_request(
                "this control plane keeps nothing on disk: there is nothing to restore to",
            ));
        };
        let _one = self.receiving.lock().await;
        // Whose store is elsewhere has not needed it so far.
        if let Err(error) = tokio::fs::create_dir_all(&data_dir).await {
            return internal("the data directory cannot be made", &error);
        }
        let part = restore::part_path(&data_dir);
        let received = match path {
            Some(path) => match self.file(path) {
                Ok(file) => tokio::fs::copy(&file, &part).await.map(drop),
                Err(status) => return failed(status),
            },
            None => write_body(body, &part).await,
        };
        match received {
            Ok(()) => {}
            Err(error) if path.is_some() && error.kind() == std::io::ErrorKind::NotFound => {
                return failed(not_there(path.unwrap_or_default()));
            }
            Err(error) => return internal("the snapshot was not received", &error),
        }
        let checked = {
            let (part, release, moved) = (part.clone(), self.release.clone(), moved.is_some());
            let check = move || {
                let new_name = match new_name {
                    Some(new_name) => new_name,
                    None if moved => false,
                    None => {
                        let failed = |source| RestoreError::File { path: part.clone(), source };
                        let file = std::fs::File::open(&part).map_err(failed)?;
                        // One that does not say of what it is may be of anything.
                        archive::read_header(file)?.release.is_none_or(|taken| !is_same_cluster(&taken, &release))
                    }
                };
                let origin = Staged { id: String::new(), new_name, moved }.origin();
                Ok((snapshot::restore::load(&part, origin)?, new_name))
            };
            tokio::task::spawn_blocking(check).await
        };
        let (content, new_name) = match checked {
            Ok(Ok(checked)) => checked,
            Ok(Err::<_, RestoreError>(error)) => {
                let _ = tokio::fs::remove_file(&part).await;
                return failed(Status::bad_request(format!("the snapshot cannot be restored: {error}")));
            }
            Err(error) => return internal("the snapshot was not checked", &error),
        };
        let keys = content.entries.len();
        drop(content);
        let (is_moved, id) = (moved.is_some(), moved.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()));
        if let Err(error) = restore::stage(&data_dir, &Staged { id: id.clone(), new_name, moved: is_moved }) {
            return internal("the snapshot could not be kept", &error);
        }
        self.want_restart();
        answer(202, &json!({"id": id, "keys": keys, "newName": new_name}))
    }
}

fn is_same_cluster(a: &Release, b: &Release) -> bool {
    a.release_name == b.release_name && a.release_namespace == b.release_namespace
}

fn not_there(path: &str) -> Status {
    Status::failure(404, "NotFound", format!("there is no snapshot at container://{path}"))
}

async fn write_body(mut body: RequestBody, path: &Path) -> std::io::Result<()> {
    let mut file = tokio::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path).await?;
    let mut total = 0_u64;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(std::io::Error::other)?.into_data() else { continue };
        total += data.len() as u64;
        if total > SNAPSHOT_BYTES_MAX {
            return Err(std::io::Error::other(format!("it is larger than {SNAPSHOT_BYTES_MAX} bytes")));
        }
        file.write_all(&data).await?;
    }
    file.sync_all().await
}

/// Hands pieces of a file to a connection; fails when nobody reads any more.
struct Pieces(tokio::sync::mpsc::Sender<Bytes>);

impl std::io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The extension that serves [`Operations`].
pub(crate) struct Served(pub Arc<Operations>);

#[async_trait]
impl Extension for Served {
    fn handles(&self, path: &str) -> bool {
        path.starts_with(PREFIX) || self.0.gate.is_closed_for(path)
    }

    async fn answer(&self, parts: Parts, body: RequestBody) -> Response<Body> {
        let operations = &self.0;
        if !parts.uri.path().starts_with(PREFIX) {
            return operations.turned_away(parts.uri.path());
        }
        if !operations.is_operator(&parts.headers) {
            return failed(Status::unauthorized("Unauthorized"));
        }
        let query = |name: &str| {
            let pairs = parts.uri.query().unwrap_or_default().split('&');
            let value = pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?.1;
            Some(percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned())
        };
        let path = query("path");
        let new_name = query("new-name").map(|value| value == "true");
        match (&parts.method, parts.uri.path().strip_prefix(PREFIX).unwrap_or_default()) {
            (&Method::GET, "snapshot") => operations.stream(query("url").unwrap_or_default()),
            (&Method::POST, "snapshot") => operations.save(path.as_deref().unwrap_or_default()).await,
            (&Method::GET, "snapshots") => operations.list(path.as_deref().unwrap_or_default()).await,
            (&Method::DELETE, "snapshots") => operations.remove(path.as_deref().unwrap_or_default()).await,
            (&Method::PUT, "restore") => operations.receive(body, path.as_deref(), new_name, query("moved")).await,
            (&Method::POST, "hold") => {
                operations.hold(query("seconds").and_then(|text| text.parse().ok()).unwrap_or(HOLD_MAX_SECONDS)).await
            }
            (&Method::GET, "hold") => operations.told_hold(),
            (&Method::DELETE, "hold") => {
                operations.gate.release();
                operations.told_hold()
            }
            (&Method::GET, "mappings") => operations.mappings().await,
            (&Method::GET, "restore") => match operations.data_dir.as_deref().and_then(restore::last_result) {
                Some(result) => answer(200, &result),
                None => failed(Status::failure(404, "NotFound", "nothing was restored yet")),
            },
            (_, "snapshot" | "snapshots" | "restore" | "hold" | "mappings") => failed(Status::method_not_allowed()),
            _ => failed(Status::path_not_found()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_the_authoritys_key_is_an_operator() {
        let operations = Operations::new("secret\n", Release::default(), None);
        for (given, want) in [
            (Some(host_key("secret")), true),
            (Some(host_key("other")), false),
            (Some(String::new()), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(given) = &given {
                headers.insert(KEY_HEADER, given.parse().unwrap());
            }
            assert_eq!(operations.is_operator(&headers), want, "{given:?}");
        }
    }

    #[test]
    fn paths_stay_in_the_folder() {
        let operations = Operations::new("k", Release::default(), Some(Path::new("/d")));
        for (path, want) in [
            ("/data/a.tar.gz", Some("/d/files/data/a.tar.gz")),
            ("a.tar.gz", Some("/d/files/a.tar.gz")),
            ("/../a", None),
            ("/a/../../b", None),
            ("", None),
        ] {
            assert_eq!(operations.file(path).ok(), want.map(PathBuf::from), "{path}");
        }
        operations.set_files("/".into());
        assert_eq!(operations.file("/data/a").unwrap(), Path::new("/data/a"));
        assert!(Operations::new("k", Release::default(), None).file("/a").is_err());
    }
}
