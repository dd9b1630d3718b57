//! Kubelets that are served by this process: the [`Kubelets`] seam. A request whose host name is a node's is for its kubelet.
//!
//! Authorized as kubelets do it, but for `/healthz`, which is open like that of the API: by rights on `nodes/metrics`, `nodes/stats`, `nodes/log`, `nodes/proxy` and their kin.
//!
//! Follows: `pkg/kubelet/server/auth.go`.

use apimachinery::status::StatusResult;
use async_trait::async_trait;
use http::{Method, Request, Response};

use crate::body::{Body, RequestBody};
use crate::request_info::RequestInfo;
use crate::server::ApiServer;

/// Answers for the kubelets of all nodes.
#[async_trait]
pub trait Kubelets: Send + Sync {
    /// Which node's kubelet a `Host` header means, if any. The node need not exist.
    fn node(&self, host: &str) -> Option<String>;

    /// Answers a request that may be answered; `path` begins with `/`.
    async fn answer(
        &self,
        server: &ApiServer,
        node: &str,
        path: &str,
        request: Request<RequestBody>,
    ) -> StatusResult<Response<Body>>;
}

/// What a request to a kubelet needs the right to.
pub(crate) fn attributes(node: &str, method: &Method, path: &str) -> RequestInfo {
    if path.trim_end_matches('/') == "/healthz" && matches!(*method, Method::GET | Method::HEAD) {
        // Whether a node is alive is no more of a secret than whether the API is.
        return RequestInfo { path: "/healthz".to_owned(), verb: "get".to_owned(), ..RequestInfo::default() };
    }
    let under = |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    let subresource = if under("/stats") {
        "stats"
    } else if under("/metrics") {
        "metrics"
    } else if under("/logs") {
        "log"
    } else {
        "proxy"
    };
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    RequestInfo {
        is_resource: true,
        path: path.to_owned(),
        verb: verb.to_owned(),
        version: "v1".to_owned(),
        resource: "nodes".to_owned(),
        subresource: subresource.to_owned(),
        name: node.to_owned(),
        ..RequestInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_need_the_rights_that_kubelets_ask_for() {
        for (method, path, want) in [
            (Method::GET, "/stats/summary", "get nodes/stats"),
            (Method::GET, "/metrics", "get nodes/metrics"),
            (Method::GET, "/metrics/cadvisor", "get nodes/metrics"),
            (Method::GET, "/metricsx", "get nodes/proxy"),
            (Method::POST, "/exec/a/b/c", "create nodes/proxy"),
            (Method::GET, "/logs/x", "get nodes/log"),
        ] {
            let info = attributes("n", &method, path);
            assert_eq!(format!("{} {}/{}", info.verb, info.resource, info.subresource), want, "{path}");
        }
        let alive = attributes("n", &Method::GET, "/healthz");
        assert_eq!((alive.is_resource, alive.path.as_str(), alive.verb.as_str()), (false, "/healthz", "get"));
        assert!(attributes("n", &Method::POST, "/healthz").is_resource);
        assert!(attributes("n", &Method::GET, "/healthz/x").is_resource);
    }
}
