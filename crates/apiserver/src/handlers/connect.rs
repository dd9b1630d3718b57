//! Connections to pods, services and nodes: log, exec, attach, port-forward, proxy.
//!
//! Checks what can be known without the node, then hands over to the [`crate::pods::PodBackend`].
//!
//! Follows: `pkg/registry/core/pod/{strategy.go,rest}`, `pkg/registry/core/service/storage`.

use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::GroupKind;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use apimachinery::{Value, json};
use http::{Request, Response, StatusCode};

use super::Cx;
use crate::admission::Operation;
use crate::body::{Body, RequestBody};
use crate::proxy::{self, Destination, ProxyName};
use crate::server::ApiServer;

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

/// Asks webhooks and policies about a connection. They see its options as the object; what they change in it stays without
/// effect.
///
/// Source: `k8s.io/apiserver/pkg/endpoints/handlers.ConnectResource`.
async fn admit(cx: &Cx) -> StatusResult<()> {
    let Some(subresource) = cx.resource.subresource(&cx.info.subresource) else { return Ok(()) };
    let request = |object| cx.admission(Operation::Connect, &subresource.kind, object, None, Value::Null, false);
    let object = cx.admit(request(Some(options(cx, &subresource.kind.kind)))).await?;
    cx.validate(request(object)).await
}

/// The options of a connection, as the query has them.
fn options(cx: &Cx, kind: &str) -> Value {
    let query = &cx.info.query;
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    match cx.info.subresource.as_str() {
        "exec" | "attach" => {
            for name in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(name) {
                    options[name] = true.into();
                }
            }
            if !query.str("container").is_empty() {
                options["container"] = query.str("container").into();
            }
            let command: Vec<Value> = query.all("command").map(Value::from).collect();
            if !command.is_empty() && cx.info.subresource == "exec" {
                options["command"] = Value::Array(command);
            }
        }
        "portforward" => {
            let ports =
                query.all("ports").flat_map(|ports| ports.split(',')).filter_map(|port| port.parse::<i64>().ok());
            let ports: Vec<Value> = ports.map(Value::from).collect();
            if !ports.is_empty() {
                options["ports"] = Value::Array(ports);
            }
        }
        _ => {
            let path = proxied_path(cx);
            if !path.is_empty() {
                options["path"] = path.into();
            }
        }
    }
    options
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
    admit(cx).await?;
    match cx.resource.gvr.resource.as_str() {
        "pods" if cx.info.subresource == "proxy" => proxy_pod(cx, body).await,
        "pods" => connect_pod(cx, body).await,
        "services" => proxy_service(cx, body).await,
        _ => connect_node(cx, body).await,
    }
}

async fn connect_pod(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let subresource = cx.info.subresource.as_str();
    let name = &cx.info.name;
    let pod = pod(cx, name).await?;
    let container = match subresource {
        "exec" | "attach" => container(cx, &pod, false)?,
        _ => String::new(),
    };
    let node = pod.str_at(&["spec", "nodeName"]).to_owned();
    if node.is_empty() {
        return Err(bad(format!("pod {name} does not have a host assigned")));
    }
    match &cx.server.config.pods {
        Some(backend) => backend.connect(&pod, subresource, &container, request(cx, body)).await,
        None => Err(node_missing(cx, &node).await),
    }
}

/// What follows `proxy` in the path as it came: empty, or beginning with `/`.
fn proxied_path(cx: &Cx) -> String {
    let parts: Vec<&str> = cx.uri.path().split('/').collect();
    // .../{pods,services,nodes}/NAME/proxy/...
    let at = parts.iter().skip(1).position(|part| *part == "proxy").map(|at| at + 1);
    // A namespace or an object may be called `proxy` as well: the subresource is the one that follows the name.
    let at = at.and_then(|first| {
        (first..parts.len())
            .find(|at| parts[*at] == "proxy" && parts[..*at].len() >= 4 && parts[at - 2] == cx.info.resource)
    });
    match at {
        Some(at) if at + 1 < parts.len() => format!("/{}", parts[at + 1..].join("/")),
        _ => String::new(),
    }
}

/// Passes a request on to a port of a pod, at the address where the backend knows the pod to be.
async fn forward(cx: &Cx, pod: &Value, https: bool, port: u16, body: RequestBody) -> StatusResult<Response<Body>> {
    let Some(backend) = &cx.server.config.pods else {
        return Err(node_missing(cx, pod.str_at(&["spec", "nodeName"])).await);
    };
    let address = backend.address(pod).await?;
    if !proxy::is_proxyable(address) {
        return Err(bad("address not allowed".to_owned()));
    }
    let destination = Destination { address: (address, port).into(), https };
    proxy::forward(destination, &proxied_path(cx), request(cx, body)).await
}

async fn proxy_pod(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let asked = &cx.info.name;
    let name =
        ProxyName::parse(asked).ok_or_else(|| bad(format!("invalid pod request {}", Value::from(asked.as_str()))))?;
    let pod = pod(cx, name.name).await?;
    if pod.str_at(&["status", "podIP"]).is_empty() {
        return Err(bad("address not allowed".to_owned()));
    }
    let first = || {
        let containers = pod.array_at(&["spec", "containers"]).iter();
        containers.filter_map(|c| c.array_at(&["ports"]).first()).find_map(|port| port["containerPort"].as_i64())
    };
    let port = match name.port {
        "" => first().and_then(|port| u16::try_from(port).ok()).unwrap_or(if name.is_https() { 443 } else { 80 }),
        port => port.parse().map_err(|_| {
            Box::new(Status::service_unavailable(format!("error trying to reach service: unknown port {port}")))
        })?,
    };
    forward(cx, &pod, name.is_https(), port, body).await
}

/// Source: `pkg/registry/core/service/storage.REST.ResourceLocation`.
async fn proxy_service(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let asked = cx.info.name.as_str();
    let name = ProxyName::parse(asked).ok_or_else(|| bad(format!("invalid service request {}", Value::from(asked))))?;
    let not_found = || Box::new(Status::not_found(&cx.resource.group_resource(), name.name));
    let service = cx.server.storage.get(&cx.resource, &cx.info.namespace, name.name).await?;
    let mut port_name = name.port.to_owned();
    if let Ok(number) = name.port.parse::<i64>() {
        let service =
            cx.server.storage.read(&cx.resource, &cx.info.namespace, name.name).await?.ok_or_else(not_found)?;
        let ports = service.array_at(&["spec", "ports"]);
        let known = ports.iter().find(|port| port["port"].as_i64() == Some(number)).ok_or_else(|| {
            Box::new(Status::service_unavailable(format!(
                "no service port {number} found for service {}",
                Value::from(name.name)
            )))
        })?;
        known.str_at(&["name"]).clone_into(&mut port_name);
    }
    if service.is_none() {
        return Err(not_found());
    }
    let endpoints = cx.server.storage.registry.get("", "v1", "endpoints").ok_or_else(no_backend)?;
    // Without Endpoints upstream answers as if there were no Service.
    let endpoints = cx.server.storage.read(&endpoints, &cx.info.namespace, name.name).await?.ok_or_else(not_found)?;
    let none = || {
        let text = format!("no endpoints available for service {}", Value::from(asked));
        Box::new(Status::service_unavailable(text))
    };
    let mut found = Vec::new();
    for subset in endpoints.array_at(&["subsets"]) {
        let port = subset.array_at(&["ports"]).iter().find(|port| port.str_at(&["name"]) == port_name);
        let Some(port) = port.and_then(|port| u16::try_from(port["port"].as_i64()?).ok()) else { continue };
        for address in subset.array_at(&["addresses"]) {
            // Only pods of this namespace: anybody may write any address into Endpoints.
            let target = &address["targetRef"];
            let own = ["", cx.info.namespace.as_str()].contains(&target.str_at(&["namespace"]));
            if target.str_at(&["kind"]) == "Pod" && own {
                found.push((target.str_at(&["name"]).to_owned(), address.str_at(&["ip"]).to_owned(), port));
            }
        }
    }
    let first = rand::random_range(0..found.len().max(1));
    for (pod_name, ip, port) in found.iter().cycle().skip(first).take(found.len()) {
        let Ok(pod) = pod(cx, pod_name).await else { continue };
        let ips = pod.array_at(&["status", "podIPs"]).iter().map(|ip| ip.str_at(&["ip"]));
        if ips.chain([pod.str_at(&["status", "podIP"])]).any(|known| known == ip) {
            return forward(cx, &pod, name.is_https(), *port, body).await;
        }
    }
    Err(none())
}

async fn connect_node(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let asked = cx.info.name.as_str();
    let name = ProxyName::parse(asked).ok_or_else(|| bad(format!("invalid node request {}", Value::from(asked))))?;
    let not_found = || Box::new(Status::not_found(&cx.resource.group_resource(), name.name));
    cx.server.storage.get(&cx.resource, "", name.name).await?.ok_or_else(not_found)?;
    let Some(kubelets) = &cx.server.config.kubelets else { return Err(no_backend()) };
    let path = proxied_path(cx);
    let path = if path.is_empty() { "/" } else { path.as_str() };
    kubelets.answer(&ApiServer::of(cx.server.clone()), name.name, path, request(cx, body)).await
}
