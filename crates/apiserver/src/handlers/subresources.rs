//! Subresources, and kinds that are answered without being stored.

use apimachinery::status::{Status, StatusResult};
use http::Response;

use super::{Cx, read, scale, write};
use crate::body::{Body, RequestBody};

pub async fn dispatch(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    match (cx.info.subresource.as_str(), cx.info.verb.as_str()) {
        ("token", "create") => super::token_request::create(cx, body).await,
        ("scale", "get") => scale::get(cx).await,
        ("scale", "update") => scale::update(cx, body).await,
        ("scale", "patch") => scale::patch(cx, body).await,
        ("status", "get") => read::get(cx).await,
        ("status", "update") => write::update(cx, body).await,
        ("status", "patch") => super::patch::patch(cx, body).await,
        (other, _) => {
            let message = format!("the subresource {other} is not supported yet");
            Err(Box::new(Status::failure(501, "NotImplemented", message)))
        }
    }
}

pub async fn dispatch_unstored(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    if super::reviews::handles(cx) {
        return super::reviews::create(cx, body).await;
    }
    let message = format!("{} is not supported yet", cx.resource.gvk.kind);
    Err(Box::new(Status::failure(501, "NotImplemented", message)))
}
