//! Subresources, and kinds that are answered without being stored.
//!
//! `status`, `approval`, `finalize`, `ephemeralcontainers` and `resize` are the object itself, of which a write may change
//! only some fields: the kind's rules for that subresource see to it. The others have their own modules.

use apimachinery::status::{Status, StatusResult};
use http::Response;

use super::{Cx, connect, eviction, patch, read, scale, token_request, write};
use crate::body::{Body, RequestBody};

pub async fn dispatch(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    match (cx.info.subresource.as_str(), cx.info.verb.as_str()) {
        ("token", "create") => token_request::create(cx, body).await,
        ("status" | "approval" | "finalize" | "ephemeralcontainers" | "resize", verb) => match verb {
            "get" => read::get(cx).await,
            "update" => write::update(cx, body).await,
            "patch" => patch::patch(cx, body).await,
            _ => Err(Box::new(Status::method_not_allowed())),
        },
        ("scale", "get") => scale::get(cx).await,
        ("scale", "update") => scale::update(cx, body).await,
        ("scale", "patch") => scale::patch(cx, body).await,
        ("binding", "create") => eviction::bind(cx, body).await,
        ("eviction", "create") => eviction::evict(cx, body).await,
        ("log", _) => connect::log(cx, body).await,
        ("exec" | "attach" | "portforward" | "proxy", _) => connect::connect(cx, body).await,
        _ => Err(Box::new(Status::path_not_found())),
    }
}

pub async fn dispatch_unstored(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    if super::reviews::handles(cx) {
        return super::reviews::create(cx, body).await;
    }
    match (cx.resource.gvr.resource.as_str(), cx.info.verb.as_str()) {
        ("bindings", "create") => eviction::bind(cx, body).await,
        ("componentstatuses", "list") => {
            let form = crate::output::Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
            crate::output::objects_response(&cx.resource, &form, &Default::default(), Vec::new())
        }
        ("componentstatuses", "get") => Err(cx.not_found()),
        _ => Err(Box::new(Status::method_not_allowed())),
    }
}
