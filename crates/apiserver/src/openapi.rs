//! `/openapi/v2` and `/openapi/v3`: what the API looks like, for clients that validate and explain.
//!
//! Documents of built-in groups are the same in every server of the process: made on first use, kept compressed, shared.
//! Documents of custom resources belong to a server: [`Published::set`] replaces those of one definition. The v2 document
//! holds everything and is put together again after a change, when somebody asks.
//!
//! Follows: `kube-openapi/pkg/{handler,handler3}`, `apiextensions-apiserver/pkg/controller/{openapi,openapiv3}`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::SystemTime;

use apimachinery::openapi::{self, CustomResource, Dialect};
use apimachinery::{Map, Value, json};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::aggregator::documents::{Fragment, merge_v2};
use crate::body::Body;
use crate::output::{accept_header, accepts_gzip, raw_response};
use crate::request_info::RequestInfo;

const JSON: &str = "application/json";
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The name under which older clients ask for [`V2_PROTOBUF`].
const V2_PROTOBUF_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const YEAR: u64 = 365 * 24 * 3600;

/// A document, compressed, with the hash by which clients cache it.
#[derive(Clone)]
struct Document {
    gzip: Bytes,
    etag: Arc<str>,
}

impl Document {
    fn new(bytes: &[u8]) -> Document {
        let etag = hash([bytes]);
        Document { gzip: compressed(bytes), etag: etag.into() }
    }
}

/// The documents of the built-in groups by path, each made when it is first asked for.
struct Builtin {
    fingerprint: String,
    v3: BTreeMap<String, OnceLock<Document>>,
    v2: OnceLock<Document>,
    v2_protobuf: OnceLock<Document>,
}

static BUILTIN: LazyLock<Builtin> = LazyLock::new(|| Builtin {
    fingerprint: hash(openapi::sources().into_iter().chain([env!("CARGO_PKG_VERSION").as_bytes()])),
    v3: openapi::v3_index().into_iter().map(|path| (path, OnceLock::new())).collect(),
    v2: OnceLock::new(),
    v2_protobuf: OnceLock::new(),
});

impl Builtin {
    /// Known without making the document.
    fn v3_etag(&self, path: &str) -> String {
        hash([self.fingerprint.as_bytes(), path.as_bytes()])
    }

    fn v3(&self, path: &str) -> Option<Document> {
        let slot = self.v3.get(path)?;
        let document = slot.get_or_init(|| {
            let bytes = openapi::v3_at(path).map(|v| v.to_vec()).unwrap_or_default();
            Document { gzip: compressed(&bytes), etag: self.v3_etag(path).into() }
        });
        Some(document.clone())
    }

    fn v2(&self, protobuf: bool) -> Document {
        let slot = if protobuf { &self.v2_protobuf } else { &self.v2 };
        slot.get_or_init(|| v2_document(openapi::v2(), protobuf)).clone()
    }
}

fn v2_document(document: Value, protobuf: bool) -> Document {
    Document::new(&if protobuf { openapi::v2_to_protobuf(&document) } else { document.to_vec() })
}

/// What one server publishes besides the built-in groups.
#[derive(Default)]
pub struct Published {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Versions by group and plural.
    custom: BTreeMap<(String, String), Vec<CustomResource>>,
    /// Documents that extension servers have: path to their URL.
    remote_v3: BTreeMap<String, String>,
    /// What extension servers add to the v2 document.
    remote_v2: Vec<Arc<Fragment>>,
    /// Documents by path, made when they are asked for.
    v3: BTreeMap<String, Option<Document>>,
    /// JSON and protobuf.
    v2: [Option<Document>; 2],
}

impl Published {
    /// Replaces the published versions of the custom resource `group`/`plural`; none unpublishes it.
    pub fn set(&self, group: &str, plural: &str, versions: Vec<CustomResource>) {
        let mut state = self.state.lock();
        let key = (group.to_owned(), plural.to_owned());
        if state.custom.get(&key).map_or(versions.is_empty(), |old| *old == versions) {
            return;
        }
        if versions.is_empty() {
            state.custom.remove(&key);
        } else {
            state.custom.insert(key, versions);
        }
        state.v2 = [None, None];
        state.v3.retain(|path, _| !path.starts_with(&format!("apis/{group}/")));
        let paths: Vec<String> = state
            .custom
            .values()
            .flatten()
            .filter(|r| r.group == group)
            .map(|r| openapi::v3_path(&r.group, &r.version))
            // A built-in group and version keeps its own document.
            .filter(|path| !BUILTIN.v3.contains_key(path))
            .collect();
        state.v3.extend(paths.into_iter().map(|path| (path, None)));
    }

    /// Replaces what extension servers publish.
    pub(crate) fn set_remote(&self, v3: BTreeMap<String, String>, v2: Vec<Arc<Fragment>>) {
        let mut state = self.state.lock();
        state.remote_v3 = v3;
        if state.remote_v2 != v2 {
            state.remote_v2 = v2;
            state.v2 = [None, None];
        }
    }

    fn v3(&self, path: &str) -> Option<Document> {
        let mut state = self.state.lock();
        let State { custom, v3, .. } = &mut *state;
        let Some(slot) = v3.get_mut(path) else {
            drop(state);
            return BUILTIN.v3(path);
        };
        let document = slot.get_or_insert_with(|| {
            let here = |r: &&CustomResource| openapi::v3_path(&r.group, &r.version) == path;
            let resources: Vec<CustomResource> = custom.values().flatten().filter(here).cloned().collect();
            Document::new(&openapi::custom_v3(&resources).to_vec())
        });
        Some(document.clone())
    }

    /// The schemas of a group's version, by name.
    pub(crate) fn schemas(&self, group: &str, version: &str) -> Option<Value> {
        let path = openapi::v3_path(group, version);
        let here = |r: &&CustomResource| openapi::v3_path(&r.group, &r.version) == path;
        let custom: Vec<CustomResource> = self.state.lock().custom.values().flatten().filter(here).cloned().collect();
        let mut document = match custom.is_empty() {
            true => openapi::v3_at(&path)?,
            false => openapi::custom_v3(&custom),
        };
        document.remove_at(&["components", "schemas"])
    }

    fn v3_index(&self) -> Value {
        let mut paths = Map::new();
        let mut add =
            |path: &str, etag: &str| paths.insert(path, json!({"serverRelativeURL": relative_url(path, etag)}));
        for path in BUILTIN.v3.keys() {
            add(path, &BUILTIN.v3_etag(path));
        }
        let custom: Vec<String> = self.state.lock().v3.keys().cloned().collect();
        for path in custom {
            // Removed in between: then it is not listed.
            if let Some(document) = self.v3(&path) {
                add(&path, &document.etag);
            }
        }
        for (path, url) in &self.state.lock().remote_v3 {
            paths.insert(path.as_str(), json!({"serverRelativeURL": url.as_str()}));
        }
        let mut index = Value::object();
        index["paths"] = Value::Object(paths);
        index
    }

    fn v2(&self, protobuf: bool) -> Document {
        let mut state = self.state.lock();
        if state.custom.is_empty() && state.remote_v2.is_empty() {
            drop(state);
            return BUILTIN.v2(protobuf);
        }
        let State { custom, v2, remote_v2, .. } = &mut *state;
        let slot = &mut v2[usize::from(protobuf)];
        let document = slot.get_or_insert_with(|| {
            let resources: Vec<CustomResource> = custom.values().flatten().cloned().collect();
            let (paths, definitions) = openapi::custom_fragment(&resources, Dialect::V2);
            let mut document = openapi::v2();
            document.make_object().object_mut("paths").extend(paths);
            document.make_object().object_mut("definitions").extend(definitions);
            remote_v2.iter().for_each(|fragment| merge_v2(&mut document, fragment));
            v2_document(document, protobuf)
        });
        document.clone()
    }

    /// Answers a path below `/openapi`; `None` when there is no such document.
    pub(crate) fn answer(&self, info: &RequestInfo, headers: &HeaderMap, now: SystemTime) -> Option<Response<Body>> {
        let path = info.path.trim_end_matches('/');
        if path == "/openapi/v2" {
            let Some(protobuf) = wants_protobuf(accept_header(headers)) else { return Some(not_acceptable()) };
            let content_type = if protobuf { V2_PROTOBUF } else { JSON };
            return Some(respond(&self.v2(protobuf), content_type, headers));
        }
        if path == "/openapi/v3" {
            let bytes = self.v3_index().to_vec();
            return Some(respond(&Document::new(&bytes), JSON, headers));
        }
        let name = path.strip_prefix("/openapi/v3/")?;
        let document = self.v3(name)?;
        if !accepts_json(accept_header(headers)) {
            return Some(not_acceptable());
        }
        let Some(wanted) = info.query.get("hash").filter(|h| !h.is_empty()) else {
            return Some(respond(&document, JSON, headers));
        };
        if wanted != &*document.etag {
            let mut moved = Response::new(Body::empty());
            *moved.status_mut() = StatusCode::MOVED_PERMANENTLY;
            if let Ok(url) = HeaderValue::from_str(&relative_url(name, &document.etag)) {
                moved.headers_mut().insert(header::LOCATION, url);
            }
            return Some(moved);
        }
        let mut response = respond(&document, JSON, headers);
        // The address names the content: it may be kept for ever.
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        let expires = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()) + YEAR;
        if let Ok(value) = HeaderValue::from_str(&http_date(expires)) {
            response.headers_mut().insert(header::EXPIRES, value);
        }
        Some(response)
    }
}

fn relative_url(path: &str, etag: &str) -> String {
    format!("/openapi/v3/{path}?hash={etag}")
}

fn http_date(seconds: u64) -> String {
    jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or(i64::MAX))
        .map(|t| t.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        .unwrap_or_default()
}

fn respond(document: &Document, content_type: &'static str, headers: &HeaderMap) -> Response<Body> {
    let etag = format!("\"{}\"", document.etag);
    let unchanged = headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
    let mut response = if unchanged {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if accepts_gzip(headers) {
        let mut response = raw_response(200, content_type, document.gzip.clone());
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let mut bytes = Vec::new();
        match flate2::read::GzDecoder::new(document.gzip.as_ref()).read_to_end(&mut bytes) {
            Ok(_) => raw_response(200, content_type, bytes),
            Err(_) => raw_response(500, "text/plain; charset=utf-8", "the document could not be unpacked\n"),
        }
    };
    if let Ok(value) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    response
}

fn not_acceptable() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
    response
}

/// The media types of an `Accept` header without parameters, in the order given.
fn media_types(accept: &str) -> impl Iterator<Item = &str> {
    let accept = if accept.trim().is_empty() { "*/*" } else { accept };
    accept.split(',').map(|part| part.split(';').next().unwrap_or("").trim())
}

fn is_json(media_type: &str) -> bool {
    matches!(media_type, JSON | "application/*" | "*/*")
}

fn accepts_json(accept: &str) -> bool {
    media_types(accept).any(is_json)
}

/// Whether the first acceptable form of the v2 document is protobuf; `None` when none is acceptable.
fn wants_protobuf(accept: &str) -> Option<bool> {
    media_types(accept).find_map(|m| match m {
        V2_PROTOBUF | V2_PROTOBUF_OLD => Some(true),
        m if is_json(m) => Some(false),
        _ => None,
    })
}

fn compressed(bytes: &[u8]) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 8), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("writing to memory cannot fail").into()
}

fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    parts.into_iter().for_each(|p| hasher.update(p));
    hasher.finalize().iter().fold(String::with_capacity(64), |mut out, byte| {
        let _ = write!(out, "{byte:02X}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widget(version: &str) -> CustomResource {
        CustomResource {
            group: "example.com".into(),
            version: version.into(),
            plural: "widgets".into(),
            kind: "Widget".into(),
            list_kind: "WidgetList".into(),
            namespaced: true,
            schema: Some(json!({"type": "object"})),
            status: false,
            scale: false,
            selectable_fields: Vec::new(),
        }
    }

    fn get(published: &Published, target: &str, headers: &[(&'static str, &str)]) -> Option<(Response<()>, Vec<u8>)> {
        let uri: http::Uri = target.parse().unwrap();
        let info = RequestInfo::new(&http::Method::GET, uri.path(), uri.query());
        let headers = headers.iter().map(|(k, v)| (http::HeaderName::from_static(k), v.parse().unwrap())).collect();
        let (parts, body) = published.answer(&info, &headers, SystemTime::UNIX_EPOCH)?.into_parts();
        let bytes = match body {
            Body::Full(bytes) => bytes.unwrap_or_default().to_vec(),
            Body::Stream(_) => panic!("documents are sent whole"),
        };
        Some((Response::from_parts(parts, ()), bytes))
    }

    #[test]
    fn documents_are_listed_with_hashes_and_kept_by_them() {
        let published = Published::default();
        let (_, index) = get(&published, "/openapi/v3", &[]).unwrap();
        let index = Value::from_slice(&index).unwrap();
        let url = index.str_at(&["paths", "apis/coordination.k8s.io/v1", "serverRelativeURL"]).to_owned();
        let (response, body) = get(&published, &url, &[]).unwrap();
        assert_eq!(response.headers()[header::CACHE_CONTROL], "public, immutable");
        assert_eq!(response.headers()[header::EXPIRES], "Fri, 01 Jan 1971 00:00:00 GMT");
        assert!(
            Value::from_slice(&body)
                .unwrap()
                .at(&["components", "schemas", "io.k8s.api.coordination.v1.Lease"])
                .is_some()
        );
        let etag = response.headers()[header::ETAG].to_str().unwrap().to_owned();
        let (unchanged, _) = get(&published, &url, &[("if-none-match", &etag)]).unwrap();
        assert_eq!(unchanged.status(), StatusCode::NOT_MODIFIED);
        let (moved, _) = get(&published, "/openapi/v3/apis/coordination.k8s.io/v1?hash=0", &[]).unwrap();
        assert_eq!(moved.headers()[header::LOCATION], url.as_str());
        assert!(get(&published, "/openapi/v3/apis/nope/v1", &[]).is_none());
        let (refused, _) = get(&published, &url, &[("accept", "text/html")]).unwrap();
        assert_eq!(refused.status(), StatusCode::NOT_ACCEPTABLE);
    }

    #[test]
    fn custom_resources_come_and_go() {
        let published = Published::default();
        published.set("example.com", "widgets", vec![widget("v1"), widget("v2")]);
        let definition = ["definitions", "com.example.v2.Widget"];
        let v2 = || Value::from_slice(&get(&published, "/openapi/v2", &[]).unwrap().1).unwrap();
        assert!(v2().at(&definition).is_some());
        let (_, v3) = get(&published, "/openapi/v3/apis/example.com/v2", &[]).unwrap();
        assert!(Value::from_slice(&v3).unwrap().at(&["components", "schemas", "com.example.v2.Widget"]).is_some());
        published.set("example.com", "widgets", vec![widget("v1")]);
        assert!(v2().at(&definition).is_none());
        assert!(get(&published, "/openapi/v3/apis/example.com/v2", &[]).is_none());
        assert!(get(&published, "/openapi/v3/apis/example.com/v1", &[]).is_some());
        published.set("example.com", "widgets", Vec::new());
        assert!(get(&published, "/openapi/v3/apis/example.com/v1", &[]).is_none());
    }

    #[test]
    fn v2_comes_as_protobuf_when_asked() {
        for (accept, want) in [
            (V2_PROTOBUF_OLD, Some(true)),
            ("application/com.github.proto-openapi.spec.v2.v1.0+protobuf,application/json", Some(true)),
            ("application/json", Some(false)),
            ("", Some(false)),
            ("text/html", None),
        ] {
            assert_eq!(wants_protobuf(accept), want, "{accept}");
        }
    }
}
