//! Answers that are not objects: every failure a client sees, and the few successes without an object.
//!
//! Reasons, codes, texts and details are exactly upstream's; clients match on all of them.
//!
//! Follows: `k8s.io/apimachinery/pkg/api/errors`, `meta/v1.Status`.

use std::fmt;

use crate::field::{self, FieldError};
use crate::gvk::{GroupKind, GroupResource};
use crate::json::{Map, Value};
use crate::text::quote;

/// The values of `reason`.
pub mod reason {
    pub const UNAUTHORIZED: &str = "Unauthorized";
    pub const FORBIDDEN: &str = "Forbidden";
    pub const NOT_FOUND: &str = "NotFound";
    pub const ALREADY_EXISTS: &str = "AlreadyExists";
    pub const CONFLICT: &str = "Conflict";
    pub const GONE: &str = "Gone";
    pub const INVALID: &str = "Invalid";
    pub const SERVER_TIMEOUT: &str = "ServerTimeout";
    pub const STORE_READ_ERROR: &str = "StorageReadError";
    pub const TIMEOUT: &str = "Timeout";
    pub const TOO_MANY_REQUESTS: &str = "TooManyRequests";
    pub const BAD_REQUEST: &str = "BadRequest";
    pub const METHOD_NOT_ALLOWED: &str = "MethodNotAllowed";
    pub const NOT_ACCEPTABLE: &str = "NotAcceptable";
    pub const REQUEST_ENTITY_TOO_LARGE: &str = "RequestEntityTooLarge";
    pub const UNSUPPORTED_MEDIA_TYPE: &str = "UnsupportedMediaType";
    pub const INTERNAL_ERROR: &str = "InternalError";
    pub const EXPIRED: &str = "Expired";
    pub const SERVICE_UNAVAILABLE: &str = "ServiceUnavailable";
}

/// The values of a cause's `reason` beside those of [`field::ErrorType`].
pub mod cause {
    pub const UNEXPECTED_SERVER_RESPONSE: &str = "UnexpectedServerResponse";
    pub const FIELD_MANAGER_CONFLICT: &str = "FieldManagerConflict";
    pub const RESOURCE_VERSION_TOO_LARGE: &str = "ResourceVersionTooLarge";
    pub const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";
    pub const DISRUPTION_BUDGET: &str = "DisruptionBudget";
}

/// One single cause of a failure; empty members are not written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusCause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// What the failure is about; empty members are not written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusDetails {
    pub name: String,
    pub group: String,
    /// The resource (`pods`) in most errors, the kind (`Pod`) in `Invalid` ones, as upstream has it.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<StatusCause>,
    pub retry_after_seconds: i32,
}

/// A `v1` Status object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// `Failure` or `Success`.
    pub status: String,
    pub message: String,
    pub reason: String,
    pub details: Option<StatusDetails>,
    /// The HTTP status code.
    pub code: u16,
    /// `metadata.continue`: set when an expired list can be continued without consistency.
    pub continue_token: String,
}

/// The status of one of these, boxed because failures are rare and [`Status`] is large.
pub type StatusResult<T> = Result<T, Box<Status>>;

impl Status {
    /// A failure with no details.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Status {
            status: "Failure".to_owned(),
            message: message.into(),
            reason: reason.to_owned(),
            details: None,
            code,
            continue_token: String::new(),
        }
    }

    /// A success; `code` is 0 when upstream leaves it out.
    pub fn success(code: u16, details: Option<StatusDetails>) -> Self {
        Status { status: "Success".to_owned(), details, code, ..Status::default() }
    }

    fn about(mut self, resource: &GroupResource, name: &str) -> Self {
        self.details = Some(StatusDetails {
            name: name.to_owned(),
            group: resource.group.to_string(),
            kind: resource.resource.to_string(),
            ..StatusDetails::default()
        });
        self
    }

    /// Sets `details.retryAfterSeconds`, which also becomes the `Retry-After` header.
    pub fn with_retry_after(mut self, seconds: i32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    pub fn with_uid(mut self, uid: &str) -> Self {
        self.details.get_or_insert_default().uid = uid.to_owned();
        self
    }

    pub fn with_cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Self {
        self.details.get_or_insert_default().causes.push(StatusCause {
            reason: reason.to_owned(),
            message: message.into(),
            field: field.to_owned(),
        });
        self
    }

    /// 404: no such object.
    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        let message = format!("{resource} {} not found", quote(name));
        Status::failure(404, reason::NOT_FOUND, message).about(resource, name)
    }

    /// 404: no such path. The body is a Status without a name, as the generic handler answers it.
    pub fn path_not_found() -> Self {
        Status {
            details: Some(StatusDetails::default()),
            ..Status::failure(404, reason::NOT_FOUND, "the server could not find the requested resource")
        }
    }

    /// 409: the name is taken.
    pub fn already_exists(resource: &GroupResource, name: &str) -> Self {
        let message = format!("{resource} {} already exists", quote(name));
        Status::failure(409, reason::ALREADY_EXISTS, message).about(resource, name)
    }

    /// 409: no free name was found for `generateName`.
    pub fn generate_name_conflict(resource: &GroupResource, name: &str, retry_after_seconds: i32) -> Self {
        let message = format!(
            "{resource} {} already exists, the server was not able to generate a unique name for the object",
            quote(name)
        );
        Status::failure(409, reason::ALREADY_EXISTS, message)
            .about(resource, name)
            .with_retry_after(retry_after_seconds)
    }

    /// 401. An empty message becomes `not authorized`; the generic handler sends `Unauthorized`.
    pub fn unauthorized(message: &str) -> Self {
        Status::failure(401, reason::UNAUTHORIZED, if message.is_empty() { "not authorized" } else { message })
    }

    /// 403, by authorization or admission.
    pub fn forbidden(resource: &GroupResource, name: &str, error: impl fmt::Display) -> Self {
        let message = if resource.is_empty() {
            format!("forbidden: {error}")
        } else if name.is_empty() {
            format!("{resource} is forbidden: {error}")
        } else {
            format!("{resource} {} is forbidden: {error}", quote(name))
        };
        Status::failure(403, reason::FORBIDDEN, message).about(resource, name)
    }

    /// 409: the write does not fit the object's present state.
    pub fn conflict(resource: &GroupResource, name: &str, error: impl fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} {}: {error}", quote(name));
        Status::failure(409, reason::CONFLICT, message).about(resource, name)
    }

    /// 409: an apply would take fields from other managers.
    pub fn apply_conflict(causes: Vec<StatusCause>, message: impl Into<String>) -> Self {
        Status {
            details: Some(StatusDetails { causes, ..StatusDetails::default() }),
            ..Status::failure(409, reason::CONFLICT, message)
        }
    }

    /// 410 `Gone`; lists and watches that are too old answer [`Status::expired`] instead.
    pub fn gone(message: impl Into<String>) -> Self {
        Status::failure(410, reason::GONE, message)
    }

    /// 410 `Expired`: the resourceVersion or continue token is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Status::failure(410, reason::EXPIRED, message)
    }

    /// 422 with one cause per error, in order.
    pub fn invalid(kind: &GroupKind, name: &str, errors: &[FieldError]) -> Self {
        let mut message = format!("{kind} {} is invalid", quote(name));
        if !errors.is_empty() {
            message.push_str(": ");
            message.push_str(&field::aggregate(errors));
        }
        let causes = errors
            .iter()
            .map(|e| StatusCause { reason: e.kind.reason().to_owned(), message: e.body(), field: e.field.clone() })
            .collect();
        Status {
            details: Some(StatusDetails {
                name: name.to_owned(),
                group: kind.group.to_string(),
                kind: kind.kind.to_string(),
                causes,
                ..StatusDetails::default()
            }),
            ..Status::failure(422, reason::INVALID, message)
        }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Status::failure(400, reason::BAD_REQUEST, message)
    }

    /// 429, to be retried; [`Status::too_many_requests_error`] is the one without a delay.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: i32) -> Self {
        Status::failure(429, reason::TOO_MANY_REQUESTS, message).with_retry_after(retry_after_seconds)
    }

    /// 429 by the request's priority level.
    pub fn too_many_requests_error(message: impl fmt::Display) -> Self {
        Status::failure(429, reason::TOO_MANY_REQUESTS, format!("Too many requests: {message}"))
    }

    /// 503.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Status::failure(503, reason::SERVICE_UNAVAILABLE, message)
    }

    /// 405: the resource has no such verb.
    pub fn method_not_supported(resource: &GroupResource, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {}", quote(&resource.to_string()));
        Status::failure(405, reason::METHOD_NOT_ALLOWED, message).about(resource, "")
    }

    /// 405: the path has no such method.
    pub fn method_not_allowed() -> Self {
        Status {
            details: Some(StatusDetails::default()),
            ..Status::failure(
                405,
                reason::METHOD_NOT_ALLOWED,
                "the server does not allow this method on the requested resource",
            )
        }
    }

    /// 500 `ServerTimeout`: a passing failure, try again. Upstream puts the operation into `details.name`.
    pub fn server_timeout(resource: &GroupResource, operation: &str, retry_after_seconds: i32) -> Self {
        let message = format!(
            "The {operation} operation against {resource} could not be completed at this time, please try again."
        );
        Status::failure(500, reason::SERVER_TIMEOUT, message)
            .about(resource, operation)
            .with_retry_after(retry_after_seconds)
    }

    /// 500 `InternalError` with the text as its one cause.
    pub fn internal_error(error: impl fmt::Display) -> Self {
        let message = error.to_string();
        Status {
            details: Some(StatusDetails {
                causes: vec![StatusCause { message: message.clone(), ..StatusCause::default() }],
                ..StatusDetails::default()
            }),
            ..Status::failure(500, reason::INTERNAL_ERROR, format!("Internal error occurred: {message}"))
        }
    }

    /// 500 as upstream's generic error path answers an error that is no API error: no reason, no details.
    pub fn plain_error(message: impl Into<String>) -> Self {
        Status::failure(500, "", message)
    }

    /// 504: the request took too long; it may still be completed.
    pub fn timeout(message: impl fmt::Display, retry_after_seconds: i32) -> Self {
        Status::failure(504, reason::TIMEOUT, format!("Timeout: {message}")).with_retry_after(retry_after_seconds)
    }

    /// 413.
    pub fn request_entity_too_large(message: impl fmt::Display) -> Self {
        Status::failure(413, reason::REQUEST_ENTITY_TOO_LARGE, format!("Request entity too large: {message}"))
    }

    /// 406: none of the accepted media types can be produced.
    pub fn not_acceptable(accepted: &[impl AsRef<str>]) -> Self {
        let list = accepted.iter().map(|s| s.as_ref()).collect::<Vec<_>>().join(", ");
        Status::failure(406, reason::NOT_ACCEPTABLE, format!("only the following media types are accepted: {list}"))
    }

    /// 415: the body's media type is none of these.
    pub fn unsupported_media_type(accepted: &[impl AsRef<str>]) -> Self {
        let list = accepted.iter().map(|s| s.as_ref()).collect::<Vec<_>>().join(", ");
        Status::failure(
            415,
            reason::UNSUPPORTED_MEDIA_TYPE,
            format!("the body of the request was in an unknown format - accepted media types include: {list}"),
        )
    }

    /// A failure known by its code alone, as clients and a few handlers make it from a bare response.
    pub fn generic_server_response(
        code: u16,
        verb: &str,
        resource: &GroupResource,
        name: &str,
        server_message: &str,
        retry_after_seconds: i32,
        unexpected_response: bool,
    ) -> Self {
        let (reason, mut message) = match code {
            409 => (
                if verb == "POST" { reason::ALREADY_EXISTS } else { reason::CONFLICT },
                "the server reported a conflict".to_owned(),
            ),
            404 => (reason::NOT_FOUND, "the server could not find the requested resource".to_owned()),
            400 => (reason::BAD_REQUEST, "the server rejected our request for an unknown reason".to_owned()),
            401 => (reason::UNAUTHORIZED, "the server has asked for the client to provide credentials".to_owned()),
            403 => (reason::FORBIDDEN, server_message.to_owned()),
            406 if server_message.is_empty() || server_message == "unknown" => (
                reason::NOT_ACCEPTABLE,
                "the server was unable to respond with a content type that the client supports".to_owned(),
            ),
            406 => (reason::NOT_ACCEPTABLE, server_message.to_owned()),
            415 => (reason::UNSUPPORTED_MEDIA_TYPE, server_message.to_owned()),
            405 => (
                reason::METHOD_NOT_ALLOWED,
                "the server does not allow this method on the requested resource".to_owned(),
            ),
            422 => (reason::INVALID, "the server rejected our request due to an error in our request".to_owned()),
            503 => {
                (reason::SERVICE_UNAVAILABLE, "the server is currently unable to handle the request".to_owned())
            }
            504 => (
                reason::TIMEOUT,
                "the server was unable to return a response in the time allotted, but may still be processing the request"
                    .to_owned(),
            ),
            429 => (
                reason::TOO_MANY_REQUESTS,
                "the server has received too many requests and has asked us to try again later".to_owned(),
            ),
            code if code >= 500 => (
                reason::INTERNAL_ERROR,
                format!("an error on the server ({}) has prevented the request from succeeding", quote(server_message)),
            ),
            _ => (
                "",
                format!("the server responded with the status code {code} but did not return more information"),
            ),
        };
        let verb = verb.to_lowercase();
        if !resource.is_empty() && !name.is_empty() {
            message = format!("{message} ({verb} {resource} {name})");
        } else if !resource.is_empty() {
            message = format!("{message} ({verb} {resource})");
        }
        let mut status = Status::failure(code, reason, message).about(resource, name);
        if unexpected_response {
            status = status.with_cause(cause::UNEXPECTED_SERVER_RESPONSE, server_message, "");
        }
        status.with_retry_after(retry_after_seconds)
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == reason::NOT_FOUND
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == reason::ALREADY_EXISTS
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == reason::CONFLICT
    }

    pub fn is_failure(&self) -> bool {
        self.status == "Failure"
    }

    /// Seconds for the `Retry-After` header, when there is a delay.
    pub fn retry_after(&self) -> Option<i32> {
        self.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0)
    }

    /// The object as it is sent.
    pub fn to_value(&self) -> Value {
        let mut out = Map::with_capacity(8);
        out.insert("kind", "Status".into());
        out.insert("apiVersion", "v1".into());
        let mut metadata = Map::new();
        put(&mut metadata, "continue", &self.continue_token);
        out.insert("metadata", metadata.into());
        put(&mut out, "status", &self.status);
        put(&mut out, "message", &self.message);
        put(&mut out, "reason", &self.reason);
        if let Some(details) = &self.details {
            out.insert("details", details.to_value());
        }
        if self.code != 0 {
            out.insert("code", i64::from(self.code).into());
        }
        out.into()
    }

    /// The object's JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_value().to_vec()
    }

    /// Reads a Status object; `None` when it is another kind.
    pub fn from_value(value: &Value) -> Option<Status> {
        if value.str_at(&["kind"]) != "Status" {
            return None;
        }
        let text = |path: &[&str]| value.str_at(path).to_owned();
        let details = value.get("details").filter(|d| d.is_object()).map(|d| StatusDetails {
            name: d.str_at(&["name"]).to_owned(),
            group: d.str_at(&["group"]).to_owned(),
            kind: d.str_at(&["kind"]).to_owned(),
            uid: d.str_at(&["uid"]).to_owned(),
            causes: d
                .array_at(&["causes"])
                .iter()
                .map(|c| StatusCause {
                    reason: c.str_at(&["reason"]).to_owned(),
                    message: c.str_at(&["message"]).to_owned(),
                    field: c.str_at(&["field"]).to_owned(),
                })
                .collect(),
            retry_after_seconds: d["retryAfterSeconds"].as_i64().and_then(|s| i32::try_from(s).ok()).unwrap_or(0),
        });
        Some(Status {
            status: text(&["status"]),
            message: text(&["message"]),
            reason: text(&["reason"]),
            details,
            code: value["code"].as_i64().and_then(|c| u16::try_from(c).ok()).unwrap_or(0),
            continue_token: text(&["metadata", "continue"]),
        })
    }
}

impl StatusDetails {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        put(&mut out, "name", &self.name);
        put(&mut out, "group", &self.group);
        put(&mut out, "kind", &self.kind);
        put(&mut out, "uid", &self.uid);
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|c| {
                let mut out = Map::new();
                put(&mut out, "reason", &c.reason);
                put(&mut out, "message", &c.message);
                put(&mut out, "field", &c.field);
                Value::Object(out)
            });
            out.insert("causes", Value::Array(causes.collect()));
        }
        if self.retry_after_seconds != 0 {
            out.insert("retryAfterSeconds", self.retry_after_seconds.into());
        }
        out.into()
    }
}

fn put(map: &mut Map, key: &str, value: &str) {
    if !value.is_empty() {
        map.insert(key, value.into());
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::FieldPath;
    use crate::json;

    #[test]
    fn failures_are_written_as_upstream_writes_them() {
        let pods = GroupResource::new("", "pods");
        let deployments = GroupResource::new("apps", "deployments");
        for (status, want) in [
            (
                Status::not_found(&pods, "a"),
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
                    "reason": "NotFound", "message": "pods \"a\" not found", "details": {"name": "a", "kind": "pods"}}),
            ),
            (
                Status::conflict(&deployments, "web", "the object has been modified"),
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 409,
                    "reason": "Conflict",
                    "message": "Operation cannot be fulfilled on deployments.apps \"web\": the object has been modified",
                    "details": {"name": "web", "group": "apps", "kind": "deployments"}}),
            ),
            (
                Status::internal_error("boom"),
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 500,
                    "reason": "InternalError", "message": "Internal error occurred: boom",
                    "details": {"causes": [{"message": "boom"}]}}),
            ),
            (
                Status::method_not_supported(&pods, "create"),
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 405,
                    "reason": "MethodNotAllowed", "message": "create is not supported on resources of kind \"pods\"",
                    "details": {"kind": "pods"}}),
            ),
            (
                Status::too_many_requests("later", 1),
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 429,
                    "reason": "TooManyRequests", "message": "later", "details": {"retryAfterSeconds": 1}}),
            ),
        ] {
            assert_eq!(status.to_value(), want);
            assert_eq!(Status::from_value(&want), Some(status));
        }
    }

    #[test]
    fn an_invalid_object_has_one_cause_per_error() {
        let errors = [
            FieldError::required(&FieldPath::new("spec"), ""),
            FieldError::invalid(&FieldPath::new("a"), 1, "must be 2"),
        ];
        let status = Status::invalid(&GroupKind::new("apps", "Deployment"), "web", &errors);
        assert_eq!(
            status.message,
            r#"Deployment.apps "web" is invalid: [spec: Required value, a: Invalid value: 1: must be 2]"#
        );
        assert_eq!(
            status.to_value()["details"],
            json!({"name": "web", "group": "apps", "kind": "Deployment", "causes": [
                {"reason": "FieldValueRequired", "message": "Required value", "field": "spec"},
                {"reason": "FieldValueInvalid", "message": "Invalid value: 1: must be 2", "field": "a"}]})
        );
    }
}
