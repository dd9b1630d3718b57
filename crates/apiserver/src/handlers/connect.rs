//! Connections to pods, services and nodes: log, exec, attach, port-forward, proxy.
//!
//! Checks what can be known without the node, then hands over to the [`crate::pods::PodBackend`].
//!
//! Follows: `pkg/registry/core/pod/{strategy.go,rest}`, `pkg/registry/core/service/storage`.

use apimachinery::Value;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use http::{Request, Response, StatusCode};

use super::Cx;
use crate::body::{Body, RequestBody};

fn bad(message: String) -> Box<Status> {
    Box::new(Status::bad_request(message))
}

fn no_backend() -> Box<Status> {
    Box::new(Status::service_unavailable("this server has no connection to nodes"))
}

async fn pod(cx: &Cx, name: &str) -> StatusResult<Value> {
    let pods = cx.server.storage.registry.get("", "v1", "pods").ok_or_else(|| Box::new(Status::path_not_found()))?;
    let pod = cx.server.storage.read(&pods, &cx.info.namespace, name).await?;
    pod.ok_or_else(|| Box::new(Status::not_found(&pods.group_resource(), name)))
}

const LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

fn has_container(pod: &Value, name: &str) -> bool {
    LISTS.iter().any(|list| pod.array_at(&["spec", list]).iter().any(|c| c.str_at(&["name"]) == name))
}

fn names(pod: &Value, list: &str) -> String {
    let names: Vec<&str> = pod.array_at(&["spec", list]).iter().map(|c| c.str_at(&["name"])).collect();
    names.join(" ")
}

/// The container that is meant; the pod's only one (or its default) when none is named.
fn container(cx: &Cx, pod: &Value, log: bool) -> StatusResult<String> {
    let asked = cx.info.query.str("container");
    let name = pod.name();
    if !asked.is_empty() {
        return if has_container(pod, asked) {
            Ok(asked.to_owned())
        } else {
            Err(bad(format!("container {asked} is not valid for pod {name}")))
        };
    }
    if let Some(default) = pod.annotation("kubectl.kubernetes.io/default-container").filter(|_| !log)
        && has_container(pod, default)
    {
        return Ok(default.to_owned());
    }
    match pod.array_at(&["spec", "containers"]) {
        [only] => Ok(only.str_at(&["name"]).to_owned()),
        [] => Err(bad(format!("a container name must be specified for pod {name}"))),
        _ => {
            let mut message = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                names(pod, "containers")
            );
            let others = names(pod, "initContainers");
            if !others.is_empty() {
                message += &format!(" or one of the init containers: [{others}]");
            }
            let others = names(pod, "ephemeralContainers");
            if !others.is_empty() {
                message += &format!(" or one of the ephemeral containers: [{others}]");
            }
            Err(bad(message))
        }
    }
}

fn request(cx: &Cx, body: RequestBody) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = cx.method.clone();
    *request.uri_mut() = cx.uri.clone();
    *request.headers_mut() = cx.headers.clone();
    *request.extensions_mut() = cx.extensions.clone();
    request
}

pub async fn log(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let pod = pod(cx, &cx.info.name).await?;
    let container = container(cx, &pod, true)?;
    if pod.str_at(&["spec", "nodeName"]).is_empty() {
        // Nothing has run yet: an empty answer, not an error.
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Ok(response);
    }
    let node = pod.str_at(&["spec", "nodeName"]).to_owned();
    match &cx.server.config.pods {
        Some(backend) => backend.log(&pod, &container, request(cx, body)).await,
        None => Err(node_missing(cx, &node).await),
    }
}

/// Why a node cannot be reached when there is no backend. Upstream names the request's resource, not `nodes`.
async fn node_missing(cx: &Cx, node: &str) -> Box<Status> {
    let Some(nodes) = cx.server.storage.registry.get("", "v1", "nodes") else { return no_backend() };
    match cx.server.storage.get(&nodes, "", node).await {
        Ok(None) => Box::new(Status::not_found(&cx.resource.group_resource(), node)),
        _ => no_backend(),
    }
}

pub async fn connect(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    match cx.resource.gvr.resource.as_str() {
        "pods" => connect_pod(cx, body).await,
        "services" => connect_service(cx).await,
        _ => connect_node(cx).await,
    }
}

async fn connect_pod(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let subresource = cx.info.subresource.as_str();
    // A proxied pod may be named `scheme:name:port`.
    let name = match (subresource, cx.info.name.split(':').collect::<Vec<_>>().as_slice()) {
        ("proxy", [_, name, _]) | ("proxy", [name, _]) => (*name).to_owned(),
        _ => cx.info.name.clone(),
    };
    let pod = pod(cx, &name).await?;
    let container = match subresource {
        "exec" | "attach" => container(cx, &pod, false)?,
        _ => String::new(),
    };
    let node = pod.str_at(&["spec", "nodeName"]).to_owned();
    if subresource == "proxy" {
        if pod.str_at(&["status", "podIP"]).is_empty() {
            return Err(bad("address not allowed".to_owned()));
        }
    } else if node.is_empty() {
        return Err(bad(format!("pod {name} does not have a host assigned")));
    }
    let path = cx.info.rest.join("/");
    match &cx.server.config.pods {
        Some(backend) => backend.connect(&pod, subresource, &container, &path, request(cx, body)).await,
        None => Err(node_missing(cx, &node).await),
    }
}

async fn connect_service(cx: &Cx) -> StatusResult<Response<Body>> {
    let name = match cx.info.name.split(':').collect::<Vec<_>>().as_slice() {
        [_, name, _] | [name, _] => (*name).to_owned(),
        _ => cx.info.name.clone(),
    };
    let service = cx.server.storage.get(&cx.resource, &cx.info.namespace, &name).await?;
    let not_found = || Box::new(Status::not_found(&cx.resource.group_resource(), &name));
    if service.is_none() {
        return Err(not_found());
    }
    let endpoints = cx.server.storage.registry.get("", "v1", "endpoints").ok_or_else(no_backend)?;
    // Without Endpoints upstream answers as if there were no Service.
    match cx.server.storage.get(&endpoints, &cx.info.namespace, &name).await? {
        None => Err(not_found()),
        Some(_) => Err(Box::new(Status::service_unavailable(format!(
            "no endpoints available for service {}",
            Value::from(cx.info.name.as_str())
        )))),
    }
}

async fn connect_node(cx: &Cx) -> StatusResult<Response<Body>> {
    match cx.server.storage.get(&cx.resource, "", &cx.info.name).await? {
        None => Err(cx.not_found()),
        Some(_) => Err(no_backend()),
    }
}
