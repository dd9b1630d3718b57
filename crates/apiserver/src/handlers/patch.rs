//! patch: JSON patch, merge patch, strategic merge patch, apply.
//!
//! Follows: `k8s.io/apiserver/pkg/endpoints/handlers/patch.go`.

use apimachinery::status::{Status, StatusResult};
use http::Response;

use super::Cx;
use crate::body::{Body, RequestBody};

pub async fn patch(_cx: &Cx, _body: RequestBody) -> StatusResult<Response<Body>> {
    Err(Box::new(Status::failure(501, "NotImplemented", "patches are not supported yet")))
}
