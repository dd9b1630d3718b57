//! Paths that the embedding program answers itself, beside the Kubernetes API. The [`Extension`] seam.

use async_trait::async_trait;
use http::Response;
use http::request::Parts;

use crate::body::{Body, RequestBody};

/// More paths of a server. They are asked before authentication: an extension decides itself who may use it.
#[async_trait]
pub trait Extension: Send + Sync {
    /// Is the path one of the extension's?
    fn handles(&self, path: &str) -> bool;

    /// Answers a request. There is no time limit.
    async fn answer(&self, parts: Parts, body: RequestBody) -> Response<Body>;
}
