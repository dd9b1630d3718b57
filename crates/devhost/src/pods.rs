//! What simulated nodes answer when someone wants to see into a pod.

use std::net::IpAddr;

use apimachinery::Value;
use apimachinery::status::{Status, StatusResult};
use apiserver::body::{Body, RequestBody};
use apiserver::pods::PodBackend;
use async_trait::async_trait;
use http::header::CONTENT_TYPE;
use http::{Request, Response};

/// Logs of one line, and nothing to connect to.
pub struct SimulatedPods;

#[async_trait]
impl PodBackend for SimulatedPods {
    async fn log(&self, pod: &Value, container: &str, _: Request<RequestBody>) -> StatusResult<Response<Body>> {
        let node = pod.str_at(&["spec", "nodeName"]);
        let text = format!("container {container} has no output: node {node} is simulated and runs nothing\n");
        let response = Response::builder().header(CONTENT_TYPE, "text/plain").body(Body::from(text.into_bytes()));
        response.map_err(|e| Box::new(Status::internal_error(e.to_string())))
    }

    async fn connect(
        &self,
        pod: &Value,
        subresource: &str,
        _container: &str,
        _request: Request<RequestBody>,
    ) -> StatusResult<Response<Body>> {
        let node = pod.str_at(&["spec", "nodeName"]);
        Err(Box::new(Status::bad_request(format!(
            "{subresource} is not possible: node {node} is simulated and runs nothing"
        ))))
    }

    async fn address(&self, pod: &Value) -> StatusResult<IpAddr> {
        let node = pod.str_at(&["spec", "nodeName"]);
        Err(Box::new(Status::service_unavailable(format!(
            "error trying to reach service: node {node} is simulated and runs nothing"
        ))))
    }
}
