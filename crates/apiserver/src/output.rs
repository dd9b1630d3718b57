//! Objects, lists and errors as bytes of an answer, in the encoding and form that were negotiated.
//!
//! The common case (JSON, the stored version, no transformation) copies cached bytes; every other case decodes, transforms
//! and encodes.
//!
//! Follows: `k8s.io/apiserver/pkg/endpoints/handlers/{response,responsewriters}`.

use std::sync::Arc;

use apimachinery::json;
use apimachinery::status::{Status, StatusDetails, StatusResult, reason};
use apimachinery::time::Timestamp;
use apimachinery::{Map, Value};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use store::Revision;

use crate::body::Body;
use crate::cache::Entry;
use crate::negotiate::{self, Accepted, Encoding, Restrictions};
use crate::registry::Resource;
use crate::request_info::RequestInfo;

/// Bodies larger than this are compressed for clients that accept it. Source: `responsewriters.defaultGzipThresholdBytes`.
const GZIP_BYTES_MIN: usize = 128 * 1024;

/// What the rows of a Table carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

/// How objects of an answer look.
#[derive(Clone, Debug)]
pub struct Form {
    pub accepted: Accepted,
    pub include: IncludeObject,
}

/// List metadata.
#[derive(Clone, Debug, Default)]
pub struct ListMeta {
    pub revision: Revision,
    pub continue_token: String,
    pub remaining: Option<u64>,
}

impl ListMeta {
    fn to_value(&self) -> Value {
        let mut meta = Map::new();
        meta.insert("resourceVersion", self.revision.to_string().into());
        if !self.continue_token.is_empty() {
            meta.insert("continue", self.continue_token.as_str().into());
        }
        if let Some(remaining) = self.remaining {
            meta.insert("remainingItemCount", remaining.into());
        }
        meta.into()
    }

    /// The metadata of a plain list: lists of custom resources always say where they go on, upstream's being untyped.
    fn for_list(&self, resource: &Resource) -> Value {
        let mut meta = self.to_value();
        if !resource.builtin {
            meta.make_object().get_or_insert_with("continue", || "".into());
        }
        meta
    }
}

impl Form {
    pub fn json() -> Form {
        Form { accepted: Accepted::json(), include: IncludeObject::Metadata }
    }

    /// Negotiates the form of a resource's objects. 406 when nothing fits.
    pub fn negotiate(resource: &Resource, info: &RequestInfo, headers: &http::HeaderMap) -> StatusResult<Form> {
        let restrictions = match resource.builtin {
            true if resource.storage.is_none() && resource.gvr.resource != "componentstatuses" => {
                Restrictions::UNSTORED
            }
            true => Restrictions::BUILTIN,
            false => Restrictions::CUSTOM,
        };
        let streaming = info.verb == "watch";
        let collection = matches!(info.verb.as_str(), "list" | "watch");
        if resource.builtin && !negotiate::routed(accept_header(headers)) {
            return Err(Box::new(not_routed(collection)));
        }
        // Watches too are first negotiated as if they were lists.
        let Some(mut accepted) = negotiate::negotiate_output(accept_header(headers), restrictions) else {
            return Err(not_acceptable(false));
        };
        if streaming && accepted.encoding == Encoding::Yaml {
            return Err(not_acceptable(true));
        }
        accepted.pretty |= negotiate::is_pretty(info.query.get("pretty"), user_agent(headers));
        let include = match info.query.str("includeObject") {
            "" | "Metadata" => IncludeObject::Metadata,
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            other if accepted.wants("Table") => {
                return Err(Box::new(Status::bad_request(format!(
                    "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
                    Value::from(other)
                ))));
            }
            _ => IncludeObject::Metadata,
        };
        Ok(Form { accepted, include })
    }

    /// Whether cached bytes can be sent as they are.
    pub fn is_plain(&self, resource: &Resource) -> bool {
        self.accepted.encoding == Encoding::Json && self.accepted.convert.is_none() && !resource.converts()
    }
}

/// Built-in resources are refused by upstream's router, with its own text, when it knows none of the media types.
fn not_routed(collection: bool) -> Status {
    let mut types = negotiate::supported(false);
    if collection {
        types = format!("{types}, {}", negotiate::supported(true));
    }
    let text = format!("406: Not Acceptable\n\nAvailable representations: {types}");
    Status { details: Some(StatusDetails::default()), ..Status::failure(406, reason::NOT_ACCEPTABLE, text) }
}

fn not_acceptable(streaming: bool) -> Box<Status> {
    Box::new(Status::not_acceptable(&[negotiate::supported(streaming)]))
}

pub fn accept_header(headers: &http::HeaderMap) -> &str {
    headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("")
}

pub fn user_agent(headers: &http::HeaderMap) -> &str {
    headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("")
}

/// The answer with one stored object.
pub async fn entry_response(
    resource: &Resource,
    form: &Form,
    code: u16,
    entry: &Entry,
    revision: Revision,
) -> StatusResult<Response<Body>> {
    if form.is_plain(resource) && resource.sends_as_stored(entry) {
        let mut out = Vec::with_capacity(entry.encoded_len() + 32);
        entry.write(&mut out, revision);
        return Ok(bytes_response(code, form, out));
    }
    let object = resource.strategy.to_version(entry.to_value_at(revision), &resource.gvk).await?;
    object_response(resource, form, code, object).await
}

/// The answer with one object in the resource's version.
pub async fn object_response(
    resource: &Resource,
    form: &Form,
    code: u16,
    object: Value,
) -> StatusResult<Response<Body>> {
    let transformed = match &form.accepted.convert {
        None => object,
        Some(_) if object.str_at(&["kind"]) == "Status" && object.str_at(&["apiVersion"]) == "v1" => object,
        Some(c) if c.kind == "PartialObjectMetadata" => partial(object, &c.version),
        Some(c) if c.kind == "Table" => {
            let meta = ListMeta {
                revision: object.str_at(&["metadata", "resourceVersion"]).parse().unwrap_or(0),
                ..ListMeta::default()
            };
            table(resource, form, &c.version, &meta, vec![object], true)
        }
        Some(c) => return Err(not_list_form(resource, &c.kind)),
    };
    encode_response(form, code, &transformed)
}

fn not_list_form(resource: &Resource, kind: &str) -> Box<Status> {
    let message = format!(
        "you requested {kind}, but the requested object is not a list (*{}.{})",
        go_package(resource),
        resource.gvk.kind
    );
    Box::new(Status::failure(406, "NotAcceptable", message))
}

fn go_package(resource: &Resource) -> &str {
    if !resource.builtin {
        return "unstructured";
    }
    match resource.gvk.group.as_str() {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    }
}

/// The answer with a list of stored objects.
pub async fn list_response(
    resource: &Resource,
    form: &Form,
    meta: &ListMeta,
    entries: &[Arc<Entry>],
) -> StatusResult<Response<Body>> {
    if form.is_plain(resource) && entries.iter().all(|entry| resource.sends_as_stored(entry)) {
        let mut out = Vec::with_capacity(256 + entries.iter().map(|e| e.encoded_len() + 32).sum::<usize>());
        out.extend_from_slice(
            format!(
                "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{},\"items\":[",
                Value::from(resource.list_kind.as_str()),
                Value::from(resource.api_version()),
                meta.for_list(resource)
            )
            .as_bytes(),
        );
        for (i, entry) in entries.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            if resource.builtin {
                entry.write_as(b"{", &mut out, entry.revision);
            } else {
                entry.write(&mut out, entry.revision);
            }
        }
        out.extend_from_slice(b"]}");
        return Ok(bytes_response(200, form, out));
    }
    let objects = entries.iter().map(|e| e.to_value()).collect();
    let objects = resource.strategy.all_to_version(objects, &resource.gvk).await?;
    objects_response(resource, form, meta, objects)
}

/// The answer with a list of objects in the resource's version.
pub fn objects_response(
    resource: &Resource,
    form: &Form,
    meta: &ListMeta,
    mut objects: Vec<Value>,
) -> StatusResult<Response<Body>> {
    let answer = match &form.accepted.convert {
        None => {
            if resource.builtin {
                for object in &mut objects {
                    object.make_object().retain(|k, _| k != "kind" && k != "apiVersion");
                }
            }
            json!({
                "kind": resource.list_kind, "apiVersion": resource.api_version(),
                "metadata": meta.for_list(resource), "items": Value::Array(objects),
            })
        }
        Some(c) if c.kind == "Table" => table(resource, form, &c.version, meta, objects, true),
        Some(c) if c.kind == "PartialObjectMetadataList" => {
            let items: Vec<Value> = objects.into_iter().map(|o| partial(o, &c.version)).collect();
            json!({
                "kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{}", c.version),
                "metadata": meta.to_value(), "items": Value::Array(items),
            })
        }
        Some(c) => {
            let message = format!(
                "you requested {}, but the requested object is a list (*{}.{})",
                c.kind,
                go_package(resource),
                resource.list_kind
            );
            return Err(Box::new(Status::failure(406, "NotAcceptable", message)));
        }
    };
    encode_response(form, 200, &answer)
}

/// Only the metadata of an object.
pub fn partial(object: Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object["metadata"].clone(),
    })
}

/// Objects as a Table.
pub fn table(
    resource: &Resource,
    form: &Form,
    version: &str,
    meta: &ListMeta,
    objects: Vec<Value>,
    headers: bool,
) -> Value {
    let now = Timestamp::from(std::time::SystemTime::now());
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let (cells, conditions) = resource.strategy.table_row(&object, now);
            let mut row = Map::new();
            row.insert("cells", Value::Array(cells));
            if !conditions.is_empty() {
                row.insert("conditions", Value::Array(conditions));
            }
            let object = match form.include {
                IncludeObject::None => Value::Null,
                IncludeObject::Metadata => partial(object, version),
                IncludeObject::Object => object,
            };
            row.insert("object", object);
            row.into()
        })
        .collect();
    let columns = if headers { resource.strategy.table_columns() } else { Vec::new() };
    let columns = if columns.is_empty() { Value::Null } else { Value::Array(columns) };
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": if meta.revision == 0 { Value::object() } else { meta.to_value() },
        "columnDefinitions": columns, "rows": Value::Array(rows),
    })
}

/// Encodes a tree in the negotiated encoding.
pub fn encode(form: &Form, value: &Value) -> StatusResult<Vec<u8>> {
    match form.accepted.encoding {
        Encoding::Json => Ok(value.to_vec()),
        Encoding::Yaml => Ok(negotiate::to_yaml(&value.to_vec())),
        Encoding::Protobuf => crate::protobuf::encode(value),
    }
}

fn encode_response(form: &Form, code: u16, value: &Value) -> StatusResult<Response<Body>> {
    let encoded = encode(form, value)?;
    Ok(bytes_response(code, form, encoded))
}

fn bytes_response(code: u16, form: &Form, mut bytes: Vec<u8>) -> Response<Body> {
    if form.accepted.encoding == Encoding::Json {
        if form.accepted.pretty {
            bytes = negotiate::to_pretty_json(&bytes);
        } else {
            bytes.push(b'\n');
        }
    }
    raw_response(code, form.accepted.encoding.media_type(), bytes)
}

/// An answer with a content type.
pub fn raw_response(code: u16, content_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes.into()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer with a JSON document that is no object of a resource.
pub fn json_response(code: u16, value: &Value) -> Response<Body> {
    raw_response(code, "application/json", value.to_vec())
}

/// The answer with a Status. The encoding is negotiated without transformations; 406 itself is always JSON unless
/// protobuf is what the client asked for.
pub fn status_response(status: &Status, headers: &http::HeaderMap) -> Response<Body> {
    let (status, encoding) = match negotiate::negotiate_output(accept_header(headers), Restrictions::PLAIN) {
        Some(accepted) => (status.clone(), accepted.encoding),
        // What went wrong matters more than how it is told.
        None => (status.clone(), Encoding::Json),
    };
    let value = status.to_value();
    let form = Form { accepted: Accepted { encoding, convert: None, pretty: false }, include: IncludeObject::None };
    let mut response = match encode(&form, &value) {
        Ok(bytes) => raw_response(status.code, encoding.media_type(), bytes),
        Err(_) => json_response(status.code, &value),
    };
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0)
        && let Ok(value) = HeaderValue::from_str(&seconds.to_string())
    {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// Whether the client reads gzip.
pub fn accepts_gzip(headers: &http::HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|v| v.split(';').next().is_some_and(|v| v.trim() == "gzip"))
}

/// Compresses a large answer for a client that accepts it.
pub fn compress(response: Response<Body>, headers: &http::HeaderMap) -> Response<Body> {
    use std::io::Write;
    if response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let accepts = accepts_gzip(headers);
    let (mut parts, body) = response.into_parts();
    let bytes = match body {
        Body::Full(Some(bytes)) if accepts && bytes.len() > GZIP_BYTES_MIN && parts.status == StatusCode::OK => bytes,
        other => return Response::from_parts(parts, other),
    };
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 4), flate2::Compression::fast());
    let body = match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
        Ok(compressed) => {
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            Body::from(compressed)
        }
        Err(_) => Body::from(bytes),
    };
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    Response::from_parts(parts, body)
}
