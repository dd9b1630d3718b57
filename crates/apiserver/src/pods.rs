//! What only the node of a pod can answer: logs, exec, attach, port-forward, proxy. The [`PodBackend`] seam.
//!
//! The embedding program supplies it: a development host answers for its simulated nodes, a virtual cluster tunnels to the
//! host cluster's pod.

use std::net::IpAddr;

use apimachinery::Value;
use apimachinery::status::StatusResult;
use async_trait::async_trait;
use http::{Request, Response};

use crate::body::{Body, RequestBody};

/// Connections to pods. The pod exists, its container was checked, and the caller is authorized.
#[async_trait]
pub trait PodBackend: Send + Sync {
    /// Answers `pods/log` of one container. `request` is the request as it came, with the query.
    async fn log(&self, pod: &Value, container: &str, request: Request<RequestBody>) -> StatusResult<Response<Body>>;

    /// Answers `pods/{exec,attach,portforward}`: an upgrade. `subresource` says which. The connection's
    /// `hyper::upgrade::OnUpgrade` is in the request's extensions.
    async fn connect(
        &self,
        pod: &Value,
        subresource: &str,
        container: &str,
        request: Request<RequestBody>,
    ) -> StatusResult<Response<Body>>;

    /// Where the pod is reached for `pods/proxy` and `services/proxy`. Never what the pod's status says when others than the
    /// node may write that.
    async fn address(&self, pod: &Value) -> StatusResult<IpAddr>;
}
