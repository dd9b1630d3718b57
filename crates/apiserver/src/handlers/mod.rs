//! The verbs of resources.
//!
//! [`dispatch`] is called after authentication and authorization. Everything a handler needs to know about a request is in
//! [`Cx`]; every way to fail is a [`Status`].
//!
//! Follows: `k8s.io/apiserver/pkg/endpoints/{installer.go,handlers}`.

pub mod connect;
pub mod delete;
pub mod eviction;
pub mod patch;
pub mod permissions;
pub mod read;
pub mod reviews;
pub mod scale;
pub mod subresources;
pub mod token_request;
pub mod write;

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::GroupVersionKind;
use apimachinery::status::{Status, StatusResult};
use bytes::Bytes;
use http::{HeaderMap, Response};
use parking_lot::Mutex;

use crate::admission::{AdmissionRequest, Operation};
use crate::authn::UserInfo;
use crate::authz::{Attributes, Decision, forbidden_message, is_privileged};
use crate::body::{Body, ReadBodyError, RequestBody, read_body};
use crate::managed_fields::Conversions;
use crate::negotiate::{self, Encoding};
use crate::registry::{Resource, ResourceHandle};
use crate::request_info::RequestInfo;
use crate::server::Inner;
use crate::strategy::{Decoded, FieldValidation};

/// The largest request body. Source: `server.Config.MaxRequestBodyBytes`.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// One request on a resource.
pub struct Cx {
    pub server: Arc<Inner>,
    pub info: RequestInfo,
    pub user: Arc<UserInfo>,
    pub headers: HeaderMap,
    pub extensions: http::Extensions,
    pub method: http::Method,
    pub uri: http::Uri,
    pub resource: ResourceHandle,
    /// Texts for `Warning` headers of the answer.
    pub warnings: Mutex<Vec<String>>,
    pub conversions: Conversions,
}

impl Cx {
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    pub fn warn_all(&self, texts: impl IntoIterator<Item = String>) {
        texts.into_iter().for_each(|t| self.warn(t));
    }

    pub fn user_agent(&self) -> &str {
        crate::output::user_agent(&self.headers)
    }

    pub fn not_found(&self) -> Box<Status> {
        Box::new(Status::not_found(&self.resource.group_resource(), &self.info.name))
    }

    /// An update or a patch is about to create: that takes the right to create as well.
    ///
    /// Source: `endpoints/handlers/update.go` (`withAuthorization`).
    pub async fn authorize_create(&self) -> StatusResult<()> {
        if is_privileged(&self.user) {
            return Ok(());
        }
        let mut attributes = Attributes::new(&self.user, &self.info);
        attributes.verb = "create".to_owned();
        let authorization = self.server.config.authorizer.authorize(&attributes).await;
        if authorization.decision == Decision::Allow {
            return Ok(());
        }
        let message = forbidden_message(&attributes, &authorization.reason);
        Err(Box::new(Status::forbidden(&self.resource.group_resource(), &self.info.name, message)))
    }

    /// The encoding of the request body, or 415.
    pub fn input_encoding(&self) -> StatusResult<Encoding> {
        let content_type = self.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        match negotiate::negotiate_input(content_type) {
            Some(Encoding::Protobuf) if !self.resource.builtin => {
                Err(Box::new(Status::unsupported_media_type(&["application/json, application/yaml"])))
            }
            Some(encoding) => Ok(encoding),
            None => Err(Box::new(Status::unsupported_media_type(&[negotiate::supported(false)]))),
        }
    }

    /// Decodes a request body; what is odd about it becomes a warning.
    pub fn decode(
        &self,
        kind: &GroupVersionKind,
        body: &[u8],
        encoding: Encoding,
        validation: FieldValidation,
    ) -> StatusResult<Value> {
        let Decoded { object, warnings } = self.resource.strategy.decode(kind, body, encoding, validation)?;
        self.warn_all(warnings);
        Ok(object)
    }

    /// An admission request about this request's object.
    pub fn admission<'a>(
        &'a self,
        operation: Operation,
        kind: &GroupVersionKind,
        object: Option<Value>,
        old_object: Option<Value>,
        options: Value,
        dry_run: bool,
    ) -> AdmissionRequest<'a> {
        AdmissionRequest {
            operation,
            gvk: kind.clone(),
            gvr: self.resource.gvr.clone(),
            subresource: self.info.subresource.clone(),
            namespace: self.info.namespace.clone(),
            name: self.info.name.clone(),
            object,
            old_object,
            options,
            dry_run,
            user: UserInfo::clone(&self.user),
            warnings: Vec::new(),
            reinvoke: false,
            storage: &self.server.storage,
        }
    }

    /// Runs the mutating plugins, returning the object.
    pub async fn admit(&self, mut request: AdmissionRequest<'_>) -> StatusResult<Option<Value>> {
        if self.server.admission.is_empty() {
            return Ok(request.object);
        }
        let result = self.server.admission.admit(&mut request).await;
        self.warn_all(request.warnings);
        result?;
        Ok(request.object)
    }

    /// Runs the validating plugins.
    pub async fn validate(&self, mut request: AdmissionRequest<'_>) -> StatusResult<()> {
        if self.server.admission.is_empty() {
            return Ok(());
        }
        let result = self.server.admission.validate(&mut request).await;
        self.warn_all(request.warnings);
        result
    }
}

/// Reads the body of a request.
pub async fn body_bytes(body: RequestBody) -> StatusResult<Bytes> {
    read_body(body, BODY_BYTES_MAX).await.map_err(|error| match error {
        ReadBodyError::TooLarge { limit } => Box::new(Status::request_entity_too_large(format!("limit is {limit}"))),
        ReadBodyError::Interrupted(_) => Box::new(Status::bad_request(error.to_string())),
    })
}

/// Whether the resource or subresource has this verb at this kind of path; 405 when not.
fn check_verb(resource: &Resource, info: &RequestInfo, method: &http::Method) -> StatusResult<()> {
    let refuse = || Err(Box::new(Status::method_not_allowed()));
    let collection = info.name.is_empty() || info.name_from_selector;
    // Only what is passed on takes it.
    if *method == http::Method::HEAD && info.subresource != "proxy" {
        return refuse();
    }
    if !info.subresource.is_empty() {
        let Some(subresource) = resource.subresource(&info.subresource) else {
            if !resource.builtin {
                return Err(Box::new(Status::not_found(&resource.group_resource(), &info.name)));
            }
            return Err(Box::new(Status::path_not_found()));
        };
        if !resource.builtin && !subresource.verbs.contains(&info.verb) {
            return Err(Box::new(Status::method_not_supported(&resource.group_resource(), &info.verb)));
        }
        // A proxy passes on OPTIONS too, which is no verb.
        let passed_on = info.subresource == "proxy" && *method == http::Method::OPTIONS;
        return if passed_on || subresource.verbs.contains(&info.verb) { Ok(()) } else { refuse() };
    }
    let in_place = match info.verb.as_str() {
        "create" => collection && (info.namespace.is_empty() != resource.namespaced || !resource.namespaced),
        "list" | "watch" => true,
        "deletecollection" => collection && (info.namespace.is_empty() != resource.namespaced),
        _ => !collection,
    };
    if in_place && resource.has_verb(&info.verb) { Ok(()) } else { refuse() }
}

/// Serves a request on a resource.
pub async fn dispatch(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let info = &cx.info;
    // `/api/v1/namespaces/x/nodes` and `/api/v1/pods/x` are no paths.
    let namespaced_path = !info.namespace.is_empty() && cx.resource.gvr.resource != "namespaces";
    let across = matches!(info.verb.as_str(), "list" | "watch");
    if !cx.resource.builtin && namespaced_path != cx.resource.namespaced && (namespaced_path || !across) {
        return Ok(crate::output::raw_response(404, "text/plain; charset=utf-8", "404 page not found\n"));
    }
    if namespaced_path && !cx.resource.namespaced {
        return Err(Box::new(Status::path_not_found()));
    }
    let named = !info.name.is_empty() && !info.name_from_selector;
    if named && cx.resource.namespaced && info.namespace.is_empty() {
        return Err(Box::new(Status::path_not_found()));
    }
    // What can only be created has no names.
    let only_created = cx.resource.verbs.iter().all(|verb| verb == "create");
    if named && only_created && info.subresource.is_empty() {
        return Err(Box::new(Status::path_not_found()));
    }
    check_verb(&cx.resource, info, &cx.method)?;
    if !info.subresource.is_empty() {
        return subresources::dispatch(cx, body).await;
    }
    if cx.resource.storage.is_none() {
        return subresources::dispatch_unstored(cx, body).await;
    }
    match info.verb.as_str() {
        "get" => read::get(cx).await,
        "list" => read::list(cx).await,
        "watch" => read::watch(cx).await,
        "create" => write::create(cx, body).await,
        "update" => write::update(cx, body).await,
        "patch" => patch::patch(cx, body).await,
        "delete" => delete::delete(cx, body).await,
        "deletecollection" => delete::delete_collection(cx, body).await,
        _ => Err(Box::new(Status::method_not_allowed())),
    }
}
