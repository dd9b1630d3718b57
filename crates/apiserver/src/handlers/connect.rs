//! Connections to pods, services and nodes: log, exec, attach, port-forward, proxy.
//!
//! Checks what can be known without the node, then hands over to the [`crate::pods::PodBackend`].
//!
//! Follows: `pkg/registry/core/pod/{strategy.go,rest}`, `pkg/registry/core/service/storage`.

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::GroupKind;
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

/// The options of `pods/log` that are wrong.
fn log_option_errors(cx: &Cx) -> StatusResult<Vec<FieldError>> {
    let query = &cx.info.query;
    let integer = |name: &str| -> StatusResult<Option<i64>> {
        let Some(text) = query.get(name).filter(|t| !t.is_empty()) else { return Ok(None) };
        let out_of_range = text.trim_start_matches(['-', '+']).bytes().all(|b| b.is_ascii_digit());
        let why = if out_of_range { "value out of range" } else { "invalid syntax" };
        let unreadable = |_| bad(format!("strconv.ParseInt: parsing {}: {why}", Value::from(text)));
        text.parse().map(Some).map_err(unreadable)
    };
    let mut errors = Vec::new();
    if let Some(lines) = integer("tailLines")?.filter(|n| *n < 0) {
        let path = FieldPath::new("tailLines");
        errors.push(FieldError::invalid(&path, lines, "must be greater than or equal to 0"));
    }
    if let Some(bytes) = integer("limitBytes")?.filter(|n| *n < 1) {
        errors.push(FieldError::invalid(&FieldPath::new("limitBytes"), bytes, "must be greater than 0"));
    }
    match (integer("sinceSeconds")?, query.get("sinceTime").filter(|t| !t.is_empty())) {
        (Some(_), Some(_)) => {
            let text = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::forbidden(&FieldPath::unnamed(), text));
        }
        (Some(seconds), None) if seconds < 1 => {
            errors.push(FieldError::invalid(&FieldPath::new("sinceSeconds"), seconds, "must be greater than 0"));
        }
        _ => {}
    }
    if query.get("stream").is_some_and(|s| !s.is_empty()) {
        errors.push(FieldError::forbidden(&FieldPath::new("stream"), "may not be specified"));
    }
    Ok(errors)
}

pub async fn log(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let errors = log_option_errors(cx)?;
    if !errors.is_empty() {
        let kind = GroupKind::new("", "PodLogOptions");
        return Err(Box::new(Status::invalid(&kind, &cx.info.name, &errors)));
    }
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

/// A proxied name is `name`, `name:port` or `scheme:name:port`.
fn scheme_name_port(id: &str) -> Option<(&str, &str)> {
    match id.split(':').collect::<Vec<_>>().as_slice() {
        [name] => Some((*name, "")),
        [name, port] => Some((*name, *port)),
        ["http" | "https" | "", name, port] => Some((*name, *port)),
        _ => None,
    }
}

async fn connect_service(cx: &Cx) -> StatusResult<Response<Body>> {
    let id = cx.info.name.as_str();
    let Some((name, port)) = scheme_name_port(id).filter(|(name, _)| !name.is_empty()) else {
        return Err(bad(format!("invalid service request {}", Value::from(id))));
    };
    let not_found = || Box::new(Status::not_found(&cx.resource.group_resource(), name));
    let unavailable = |text: String| Err(Box::new(Status::service_unavailable(text)));
    let Some(service) = cx.server.storage.read(&cx.resource, &cx.info.namespace, name).await? else {
        return Err(not_found());
    };
    let mut port = port.to_owned();
    if let Ok(number) = port.parse::<i64>() {
        let declared = service.array_at(&["spec", "ports"]).iter().find(|p| p["port"] == number);
        match declared {
            Some(declared) => port = declared.str_at(&["name"]).to_owned(),
            None => {
                let text = format!("no service port {number} found for service {}", Value::from(name));
                return unavailable(text);
            }
        }
    }
    let endpoints = cx.server.storage.registry.get("", "v1", "endpoints").ok_or_else(no_backend)?;
    // Without Endpoints upstream answers as if there were no Service.
    let Some(endpoints) = cx.server.storage.read(&endpoints, &cx.info.namespace, name).await? else {
        return Err(not_found());
    };
    let serves = |subset: &Value| {
        !subset.array_at(&["addresses"]).is_empty()
            && subset.array_at(&["ports"]).iter().any(|p| p.str_at(&["name"]) == port)
    };
    let subsets = endpoints.array_at(&["subsets"]);
    if subsets.is_empty() {
        return unavailable(format!("no endpoints available for service {}", Value::from(name)));
    }
    if !subsets.iter().any(serves) {
        return unavailable(format!("no endpoints available for service {}", Value::from(id)));
    }
    Err(no_backend())
}

async fn connect_node(cx: &Cx) -> StatusResult<Response<Body>> {
    match cx.server.storage.get(&cx.resource, "", &cx.info.name).await? {
        None => Err(cx.not_found()),
        Some(_) => Err(no_backend()),
    }
}
