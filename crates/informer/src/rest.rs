//! Requests for single objects and lists, over `kube::Client`, with trees instead of generated types.
//!
//! Every request carries a user agent and a field manager and ends within a time limit.

use std::time::Duration;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::resource::{Resource, push_query};

/// How long a request other than a watch may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// An answer larger than this is refused; nothing a server stores comes near it.
const BODY_BYTES_MAX: usize = 1 << 30;

/// Why a request did not give an object.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The server answered with a `Status`.
    #[error("{message}")]
    Status { code: u16, reason: String, message: String, details: Box<Value>, retry_after: Option<Duration> },
    #[error("could not reach the API server")]
    Transport(#[source] Box<kube::Error>),
    #[error("the API server's answer broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("could not read the answer")]
    Decode(#[from] serde_json::Error),
    #[error("could not build the request")]
    Request(#[from] http::Error),
}

impl ApiError {
    /// The HTTP status code, 0 when the server did not answer.
    pub fn code(&self) -> u16 {
        match self {
            ApiError::Status { code, .. } => *code,
            ApiError::Transport(_)
            | ApiError::Body(_)
            | ApiError::Timeout(_)
            | ApiError::Decode(_)
            | ApiError::Request(_) => 0,
        }
    }

    /// The `Status` reason, empty when the server did not answer.
    pub fn reason(&self) -> &str {
        match self {
            ApiError::Status { reason, .. } => reason,
            _ => "",
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    pub fn is_conflict(&self) -> bool {
        self.code() == 409 && self.reason() != "AlreadyExists"
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }

    pub fn is_invalid(&self) -> bool {
        self.code() == 422
    }

    pub fn is_forbidden(&self) -> bool {
        self.code() == 403
    }

    /// The namespace is going away: nothing can be created in it.
    pub fn is_namespace_terminating(&self) -> bool {
        matches!(self, ApiError::Status { code: 403, details, .. }
            if details.array_at(&["causes"]).iter().any(|c| c.str_at(&["reason"]) == "NamespaceTerminating"))
    }

    /// The resource version asked for is no longer available.
    pub fn is_expired(&self) -> bool {
        self.code() == 410
    }

    fn from_status(code: u16, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let status = Value::from_slice(body).unwrap_or_default();
        if status.str_at(&["kind"]) == "Status" {
            return ApiError::status_value(code, retry_after, status);
        }
        let text = String::from_utf8_lossy(&body[..body.len().min(1024)]).trim().to_owned();
        let message = if text.is_empty() { format!("the server answered with code {code}") } else { text };
        ApiError::Status { code, reason: String::new(), message, details: Box::default(), retry_after }
    }

    /// A `Status` object as it comes in an `ERROR` watch event.
    pub(crate) fn status_value(code: u16, retry_after: Option<Duration>, mut status: Value) -> Self {
        let code = if code >= 400 { code } else { status["code"].as_i64().unwrap_or(500) as u16 };
        ApiError::Status {
            code,
            reason: status.str_at(&["reason"]).to_owned(),
            message: status.str_at(&["message"]).to_owned(),
            details: Box::new(status["details"].take()),
            retry_after,
        }
    }
}

/// The media type of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    fn content_type(self) -> &'static str {
        match self {
            PatchType::Json => "application/json-patch+json",
            PatchType::Merge => "application/merge-patch+json",
            PatchType::Strategic => "application/strategic-merge-patch+json",
            PatchType::Apply => "application/apply-patch+yaml",
        }
    }
}

/// `DeleteOptions` as far as controllers use them.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub uid: Str,
    pub resource_version: Str,
    pub propagation_policy: &'static str,
    pub grace_period_seconds: Option<i64>,
}

impl DeleteOptions {
    pub fn uid(uid: impl Into<Str>) -> Self {
        DeleteOptions { uid: uid.into(), ..DeleteOptions::default() }
    }

    pub fn background() -> Self {
        DeleteOptions { propagation_policy: "Background", ..DeleteOptions::default() }
    }

    fn body(&self) -> Value {
        let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if !self.uid.is_empty() {
            body.set_at(&["preconditions", "uid"], self.uid.as_str().into());
        }
        if !self.resource_version.is_empty() {
            body.set_at(&["preconditions", "resourceVersion"], self.resource_version.as_str().into());
        }
        if !self.propagation_policy.is_empty() {
            body["propagationPolicy"] = self.propagation_policy.into();
        }
        if let Some(seconds) = self.grace_period_seconds {
            body["gracePeriodSeconds"] = seconds.into();
        }
        body
    }
}

/// A client that asks for trees. Cheap to clone.
#[derive(Clone)]
pub struct Rest {
    client: kube::Client,
    user_agent: HeaderValue,
    field_manager: Str,
    timeout: Duration,
    dry_run: bool,
}

impl Rest {
    /// `component` is the field manager and the first word of the user agent, such as `kube-controller-manager`.
    pub fn new(client: kube::Client, component: &str) -> Self {
        Rest {
            client,
            user_agent: user_agent(component),
            field_manager: component.into(),
            timeout: TIMEOUT,
            dry_run: false,
        }
    }

    /// The same client for a part of the component: `kube-controller-manager/... deployment-controller`.
    pub fn for_part(&self, part: &str) -> Self {
        let user_agent = user_agent(&format!("{}/{part}", self.field_manager));
        Rest { user_agent, ..self.clone() }
    }

    /// The same client with another name in `managedFields`.
    pub fn with_field_manager(self, field_manager: &str) -> Self {
        Rest { field_manager: field_manager.into(), ..self }
    }

    pub fn with_timeout(self, timeout: Duration) -> Self {
        Rest { timeout, ..self }
    }

    /// The same client whose creations, updates and patches are looked at by the server and not stored.
    pub fn with_dry_run(self) -> Self {
        Rest { dry_run: true, ..self }
    }

    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    pub(crate) fn request(&self, method: Method, path: &str, query: &str) -> http::request::Builder {
        let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        Request::builder().method(method).uri(uri).header(USER_AGENT, self.user_agent.clone())
    }

    /// Sends a request and gives the answer's head when its code is a success.
    pub(crate) async fn open(&self, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let response = self.client.send(request).await.map_err(|e| ApiError::Transport(Box::new(e)))?;
        let code = response.status().as_u16();
        if code < 400 {
            return Ok(response);
        }
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse().ok())
            .map(Duration::from_secs);
        let body = collect(response.into_body()).await?;
        Err(ApiError::from_status(code, retry_after, &body))
    }

    /// Sends a request and gives the answer's bytes.
    pub async fn send(&self, request: Request<Body>) -> Result<Bytes, ApiError> {
        let answer = async { collect(self.open(request).await?.into_body()).await };
        tokio::time::timeout(self.timeout, answer).await.unwrap_or(Err(ApiError::Timeout(self.timeout)))
    }

    /// A GET of any path, such as discovery.
    pub async fn get_path(&self, path: &str, accept: &'static str) -> Result<Value, ApiError> {
        let request = self.request(Method::GET, path, "").header(ACCEPT, accept).body(Body::empty())?;
        Ok(Value::from_slice(&self.send(request).await?)?)
    }

    pub async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Value, ApiError> {
        self.get_as(resource, namespace, name).await
    }

    pub async fn get_as<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<T, ApiError> {
        let request = self.request(Method::GET, &resource.path(namespace, name, ""), "").body(Body::empty())?;
        Ok(serde_json::from_slice(&self.send(request).await?)?)
    }

    /// Only the metadata of an object.
    pub async fn get_metadata(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<crate::Header, ApiError> {
        let request = self
            .request(Method::GET, &resource.path(namespace, name, ""), "")
            .header(ACCEPT, ACCEPT_METADATA)
            .body(Body::empty())?;
        Ok(serde_json::from_slice(&self.send(request).await?)?)
    }

    /// All objects that match, read page by page.
    pub async fn list_as<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        namespace: &str,
        label_selector: &str,
        field_selector: &str,
    ) -> Result<Vec<T>, ApiError> {
        let mut items = Vec::new();
        let mut next = String::new();
        loop {
            let mut query = String::from("limit=500");
            for (key, value) in
                [("labelSelector", label_selector), ("fieldSelector", field_selector), ("continue", next.as_str())]
            {
                if !value.is_empty() {
                    push_query(&mut query, key, value);
                }
            }
            let request = self.request(Method::GET, &resource.path(namespace, "", ""), &query).body(Body::empty())?;
            let page: ListOf<T> = serde_json::from_slice(&self.send(request).await?)?;
            items.extend(page.items.unwrap_or_default());
            if page.metadata.next.is_empty() {
                return Ok(items);
            }
            next = page.metadata.next;
        }
    }

    fn write_query(&self, force: bool) -> String {
        let mut query = String::new();
        push_query(&mut query, "fieldManager", &self.field_manager);
        if force {
            push_query(&mut query, "force", "true");
        }
        if self.dry_run {
            push_query(&mut query, "dryRun", "All");
        }
        query
    }

    async fn write(
        &self,
        method: Method,
        path: &str,
        query: &str,
        content_type: &'static str,
        body: &Value,
    ) -> Result<Value, ApiError> {
        let request =
            self.request(method, path, query).header(CONTENT_TYPE, content_type).body(Body::from(body.to_vec()))?;
        Ok(Value::from_slice(&self.send(request).await?)?)
    }

    pub async fn create(&self, resource: &Resource, namespace: &str, object: &Value) -> Result<Value, ApiError> {
        let path = resource.path(namespace, "", "");
        self.write(Method::POST, &path, &self.write_query(false), "application/json", object).await
    }

    /// POST to a subresource, such as `binding`, `eviction`, `token`.
    pub async fn create_subresource(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: &Value,
    ) -> Result<Value, ApiError> {
        let path = resource.path(namespace, name, subresource);
        self.write(Method::POST, &path, &self.write_query(false), "application/json", object).await
    }

    /// PUT of an object, or of its `subresource` when that is not empty.
    pub async fn update(
        &self,
        resource: &Resource,
        subresource: &str,
        namespace: &str,
        name: &str,
        object: &Value,
    ) -> Result<Value, ApiError> {
        let path = resource.path(namespace, name, subresource);
        self.write(Method::PUT, &path, &self.write_query(false), "application/json", object).await
    }

    /// PATCH of an object, or of its `subresource` when that is not empty. Server-side apply forces conflicts.
    pub async fn patch(
        &self,
        resource: &Resource,
        subresource: &str,
        namespace: &str,
        name: &str,
        patch_type: PatchType,
        patch: &Value,
    ) -> Result<Value, ApiError> {
        let path = resource.path(namespace, name, subresource);
        let query = self.write_query(patch_type == PatchType::Apply);
        self.write(Method::PATCH, &path, &query, patch_type.content_type(), patch).await
    }

    pub async fn delete(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), ApiError> {
        let path = resource.path(namespace, name, "");
        self.write(Method::DELETE, &path, "", "application/json", &options.body()).await.map(drop)
    }

    /// Deletes all objects of a collection.
    pub async fn delete_collection(&self, resource: &Resource, namespace: &str) -> Result<(), ApiError> {
        let path = resource.path(namespace, "", "");
        let options = DeleteOptions::background();
        self.write(Method::DELETE, &path, "", "application/json", &options.body()).await.map(drop)
    }
}

pub(crate) const ACCEPT_METADATA: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
pub(crate) const ACCEPT_METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// A list's envelope.
#[derive(Deserialize)]
pub(crate) struct ListOf<T> {
    #[serde(default)]
    pub metadata: ListMeta,
    // Not defaulted: `T` need not have a default.
    pub items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ListMeta {
    pub resource_version: Str,
    #[serde(rename = "continue")]
    pub next: String,
}

fn user_agent(component: &str) -> HeaderValue {
    let text = format!("{component} alcove/{}", env!("CARGO_PKG_VERSION"));
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("alcove"))
}

pub(crate) async fn collect(body: Body) -> Result<Bytes, ApiError> {
    let limited = http_body_util::Limited::new(body, BODY_BYTES_MAX);
    limited.collect().await.map(http_body_util::Collected::to_bytes).map_err(ApiError::Body)
}
