//! Kubelets as the tenant sees them: each virtual node answers like a kubelet, at `nodes/proxy` and at its own host name
//! (`NODE.nodes.vcluster.com`) or the address of its Service on the host, with what the host node's kubelet says about the tenant's own pods.
//!
//! Invariants:
//! - Only paths that are known to be harmless are asked of the host's kubelet, and only read.
//! - Pods, volumes and series of others are left out; names are the tenant's. A series that names a pod or a claim which is
//!   not the tenant's does not pass, nor does one of a control group that is neither the node's nor a named pod's.
//!
//! Follows: vCluster `pkg/server/filters/{kubelet,metrics,nodename}.go`.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::status::{Status, StatusResult};
use apimachinery::{Value, json};
use apiserver::body::{Body, RequestBody};
use apiserver::kubelets::Kubelets;
use apiserver::{ApiServer, UserInfo};
use async_trait::async_trait;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response};
use informer::{ApiError, Resource, Rest};
use parking_lot::RwLock;
use syncer::names::NamespacedName;

use crate::host::Host;
use crate::link::Link;

const NODES: Resource = Resource::new("", "v1", "nodes");
const PODS: Resource = Resource::new("", "v1", "pods");
const CLAIMS: Resource = Resource::new("", "v1", "persistentvolumeclaims");
const NODE_DOMAIN: &str = ".nodes.vcluster.com";
/// On Services that stand for nodes: the node, whole in the annotation, shortened in the label if it is long.
const NODE_ANNOTATION: &str = "alcove.dev/node";
const NODE_LABEL: &str = "vcluster.loft.sh/node";

/// The kubelets of one cluster.
pub(crate) struct HostKubelets {
    pub host: Host,
    pub link: Arc<Link>,
    /// `networking.advanced.proxyKubelets.byHostname`.
    pub by_hostname: bool,
    /// `networking.advanced.proxyKubelets.byIP`: addresses of the Services that stand for nodes.
    pub by_ip: NodeAddresses,
}

/// Which node an address of a Service stands for. Kept by who follows the host.
#[derive(Clone, Default)]
pub(crate) struct NodeAddresses(Arc<RwLock<HashMap<IpAddr, String>>>);

impl NodeAddresses {
    /// Takes the addresses of all Services that stand for nodes.
    pub fn set<'a>(&self, services: impl Iterator<Item = &'a Value>) {
        let mut nodes = HashMap::new();
        for service in services {
            let text = |path: &[&str]| service.str_at(path);
            let node = match text(&["metadata", "annotations", NODE_ANNOTATION]) {
                "" => text(&["metadata", "labels", NODE_LABEL]),
                node => node,
            };
            let addresses = service.array_at(&["spec", "clusterIPs"]).iter().filter_map(Value::as_str);
            let addresses = addresses.chain([text(&["spec", "clusterIP"])]).filter_map(|text| text.parse().ok());
            nodes.extend(addresses.filter(|_| !node.is_empty()).map(|address: IpAddr| (address, node.to_string())));
        }
        *self.0.write() = nodes;
    }

    /// The node of `ADDRESS:PORT`, as a `Host` header has it.
    fn node(&self, host: &str) -> Option<String> {
        let address = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next()?,
            None => host.split(':').next()?,
        };
        self.0.read().get(&address.parse::<IpAddr>().ok()?).cloned()
    }
}

/// What a path of a kubelet answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Plain,
    Metrics,
    Summary,
    Pods,
    Logs,
}

fn answer_of(path: &str) -> Option<Answer> {
    Some(match path.trim_end_matches('/') {
        "/healthz" => Answer::Plain,
        "/metrics"
        | "/metrics/cadvisor"
        | "/metrics/probes"
        | "/metrics/resource"
        | "/metrics/resource/v1alpha1"
        | "/metrics/resource/v1beta1" => Answer::Metrics,
        "/stats/summary" => Answer::Summary,
        "/pods" | "/runningpods" => Answer::Pods,
        path if path.starts_with("/containerLogs/") => Answer::Logs,
        _ => return None,
    })
}

/// The tenant's names of what is on one host node.
#[derive(Debug, Default)]
struct Known {
    /// Host namespace and name to the virtual pod.
    pods: HashMap<(String, String), Value>,
    /// Host namespace and name to virtual namespace and name.
    claims: HashMap<(String, String), NamespacedName>,
}

impl Known {
    fn pod(&self, namespace: &str, name: &str) -> Option<&Value> {
        self.pods.get(&(namespace.to_string(), name.to_string()))
    }

    fn claim(&self, namespace: &str, name: &str) -> Option<&NamespacedName> {
        self.claims.get(&(namespace.to_string(), name.to_string()))
    }
}

fn refused(error: ApiError) -> Box<Status> {
    match error {
        // What exactly the host says is not the tenant's business.
        ApiError::Status { code: 403, .. } => {
            Box::new(Status::service_unavailable("the host cluster does not let this virtual cluster see its nodes"))
        }
        ApiError::Status { code, message, .. } if code < 500 => Box::new(Status::failure(code, "", message)),
        error => {
            tracing::warn!(error = &error as &dyn std::error::Error, "a host node could not be asked");
            Box::new(Status::service_unavailable("the node cannot be reached"))
        }
    }
}

impl HostKubelets {
    async fn known(&self, server: &ApiServer, node: &str) -> StatusResult<Known> {
        let rest = Rest::new(server.kube_client(UserInfo::admin()), "alcove");
        let Some(syncer) = self.link.syncer() else { return Ok(Known::default()) };
        let mut known = Known::default();
        let on_node = format!("spec.nodeName={node}");
        let pods: Vec<Value> = rest.list_as(&PODS, "", "", &on_node).await.map_err(refused)?;
        for pod in pods {
            if let Some(host) = syncer.host_pod_for(&pod) {
                known.pods.insert((host.namespace, host.name), pod);
            }
        }
        let claims: Vec<Value> = rest.list_as(&CLAIMS, "", "", "").await.map_err(refused)?;
        for claim in claims {
            let name = syncer::metadata::name_of(&claim);
            let host = syncer::kind::PERSISTENT_VOLUME_CLAIM.known_host_name(syncer.names(), &name);
            known.claims.insert((host.namespace, host.name), name);
        }
        Ok(known)
    }

    /// Asks the kubelet of the host node.
    async fn ask(&self, node: &str, path: &str, query: &str) -> StatusResult<bytes::Bytes> {
        let mut uri = format!("/api/v1/nodes/{node}/proxy{path}");
        if !query.is_empty() {
            uri.push('?');
            uri.push_str(query);
        }
        let request = http::Request::get(uri).body(kube::client::Body::empty());
        let request = request.map_err(|error| Box::new(Status::bad_request(error.to_string())))?;
        self.host.rest.send(request).await.map_err(refused)
    }
}

#[async_trait]
impl Kubelets for HostKubelets {
    fn node(&self, host: &str) -> Option<String> {
        match host.split(':').next()?.strip_suffix(NODE_DOMAIN) {
            Some(name) => (self.by_hostname && !name.is_empty()).then(|| name.to_string()),
            None => self.by_ip.node(host),
        }
    }

    async fn answer(
        &self,
        server: &ApiServer,
        node: &str,
        path: &str,
        request: Request<RequestBody>,
    ) -> StatusResult<Response<Body>> {
        let forbidden = |text: String| Box::new(Status::failure(403, "Forbidden", text));
        let Some(kind) = answer_of(path) else {
            return Err(forbidden(format!("path {path} of a node is not served")));
        };
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return Err(Box::new(Status::method_not_allowed()));
        }
        let rest = Rest::new(server.kube_client(UserInfo::admin()), "alcove");
        // A host name has dashes where the node's name has dots.
        let nodes: Vec<Value> = rest.list_as(&NODES, "", "", "").await.map_err(refused)?;
        let name =
            nodes.iter().map(|n| n.str_at(&["metadata", "name"])).find(|n| *n == node || n.replace('.', "-") == node);
        let not_found = || Box::new(Status::not_found(&apimachinery::gvk::GroupResource::new("", "nodes"), node));
        let node = name.ok_or_else(not_found)?;
        let query = request.uri().query().unwrap_or_default();
        let (content_type, body) = match kind {
            Answer::Plain => ("text/plain; charset=utf-8", self.ask(node, path, query).await?.to_vec()),
            Answer::Metrics => {
                let text = self.ask(node, path, query).await?;
                let known = self.known(server, node).await?;
                (
                    "text/plain; version=0.0.4; charset=utf-8",
                    metrics(&String::from_utf8_lossy(&text), &known).into_bytes(),
                )
            }
            Answer::Summary => {
                let bytes = self.ask(node, path, query).await?;
                let value =
                    Value::from_slice(&bytes).map_err(|error| Box::new(Status::internal_error(error.to_string())))?;
                ("application/json", summary(value, &self.known(server, node).await?).to_vec())
            }
            Answer::Pods => {
                let bytes = self.ask(node, path, query).await?;
                let value =
                    Value::from_slice(&bytes).map_err(|error| Box::new(Status::internal_error(error.to_string())))?;
                ("application/json", pods(&value, &self.known(server, node).await?).to_vec())
            }
            Answer::Logs => {
                let known = self.known(server, node).await?;
                let path =
                    logs(path, &known).ok_or_else(|| forbidden(format!("there are no such logs on node {node}")))?;
                ("text/plain", self.ask(node, &path, query).await?.to_vec())
            }
        };
        let mut response = Response::new(Body::from(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Ok(response)
    }
}

/// `/containerLogs/NAMESPACE/POD/CONTAINER` with the host's names; `None` when the pod is not the tenant's, or the container
/// one that the host has put in.
fn logs(path: &str, known: &Known) -> Option<String> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let [_, namespace, pod, container] = parts.as_slice() else { return None };
    if [namespace, pod, container].iter().any(|part| part.contains("..") || part.contains('%')) {
        return None;
    }
    let found = known.pods.iter().find(|(_, virtual_)| {
        virtual_.str_at(&["metadata", "namespace"]) == *namespace && virtual_.str_at(&["metadata", "name"]) == *pod
    });
    let ((host_namespace, host_name), pod) = found?;
    let mut containers = ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| pod.array_at(&["spec", list]))
        .map(|one| one.str_at(&["name"]));
    containers
        .any(|name| name == *container)
        .then(|| format!("/containerLogs/{host_namespace}/{host_name}/{container}"))
}

/// The tenant's own objects in place of the host's.
fn pods(list: &Value, known: &Known) -> Value {
    let shown = list.array_at(&["items"]).iter().filter_map(|pod| {
        let of = |key| pod.str_at(&["metadata", key]);
        known.pod(of("namespace"), of("name")).cloned()
    });
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": (Value::Array(shown.collect()))})
}

fn summary(mut value: Value, known: &Known) -> Value {
    let mut shown = Vec::new();
    for pod in value.array_at(&["pods"]) {
        let of = |key| pod.str_at(&["podRef", key]);
        let Some(virtual_) = known.pod(of("namespace"), of("name")) else { continue };
        let mut pod = pod.clone();
        for key in ["name", "namespace", "uid"] {
            pod["podRef"][key] = virtual_["metadata"][key].clone();
        }
        let mut volumes = pod.array_at(&["volume"]).to_vec();
        for volume in &mut volumes {
            let claim = known.claim(volume.str_at(&["pvcRef", "namespace"]), volume.str_at(&["pvcRef", "name"]));
            if let Some(claim) = claim {
                volume["pvcRef"] = json!({"name": (claim.name.as_str()), "namespace": (claim.namespace.as_str())});
            } else {
                volume.remove_at(&["pvcRef"]);
            }
        }
        if pod.at(&["volume"]).is_some() {
            pod["volume"] = Value::Array(volumes);
        }
        shown.push(pod);
    }
    value["pods"] = Value::Array(shown);
    value
}

/// The labels of a series: `name{a="b",c="d"} rest`. `None` when the line cannot be read.
fn labels(line: &str) -> Option<(&str, Vec<(&str, String)>, &str)> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let Some(mut rest) = rest.strip_prefix('{') else { return Some((name, Vec::new(), rest)) };
    let mut out = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(tail) = rest.strip_prefix('}') {
            return Some((name, out, tail));
        }
        let (label, tail) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = tail.char_indices();
        let end = loop {
            match chars.next()? {
                (_, '\\') => {
                    let (_, c) = chars.next()?;
                    value.push(if c == 'n' { '\n' } else { c });
                }
                (at, '"') => break at,
                (_, c) => value.push(c),
            }
        };
        out.push((label, value));
        rest = &tail[end + 1..];
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Series of the node itself and of the tenant's pods and claims, under the tenant's names.
fn metrics(text: &str, known: &Known) -> String {
    let mut out = String::with_capacity(text.len() / 2);
    for line in text.lines() {
        if line.starts_with('#') || line.is_empty() {
            out.push_str(line);
            out.push('\n');
            continue;
        }
        let Some((name, mut labels, rest)) = labels(line) else { continue };
        let get = |labels: &[(&str, String)], wanted: &[&str]| {
            let found = labels.iter().find(|(label, value)| wanted.contains(label) && !value.is_empty());
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let namespace = get(&labels, &["namespace", "pod_namespace"]);
        let (pod, claim) = (get(&labels, &["pod", "pod_name"]), get(&labels, &["persistentvolumeclaim"]));
        if !pod.is_empty() || !claim.is_empty() {
            let new_pod = known.pod(&namespace, &pod).map(|pod| {
                let of = |key| pod.str_at(&["metadata", key]).to_string();
                NamespacedName::new(of("namespace"), of("name"))
            });
            let new_claim = known.claim(&namespace, &claim).cloned();
            if (!pod.is_empty() && new_pod.is_none()) || (!claim.is_empty() && new_claim.is_none()) {
                continue;
            }
            let new_namespace =
                new_pod.as_ref().or(new_claim.as_ref()).map(|of| of.namespace.clone()).unwrap_or_default();
            for (label, value) in &mut labels {
                match (*label, &new_pod, &new_claim) {
                    ("namespace" | "pod_namespace", ..) => value.clone_from(&new_namespace),
                    ("pod" | "pod_name", Some(pod), _) => value.clone_from(&pod.name),
                    ("persistentvolumeclaim", _, Some(claim)) => value.clone_from(&claim.name),
                    // Names of control groups and of containers at the runtime tell the host's names.
                    ("id" | "name", ..) => value.clear(),
                    ("uid" | "pod_uid", ..) => value.clear(),
                    _ => {}
                }
            }
        } else if !namespace.is_empty() || !["", "/"].contains(&get(&labels, &["id"]).as_str()) {
            continue;
        }
        out.push_str(name);
        if !labels.is_empty() {
            let labels: Vec<String> =
                labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
            let _ = write!(out, "{{{}}}", labels.join(","));
        }
        out.push_str(rest);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let mut known = Known::default();
        let pod = json!({"metadata": {"name": "web", "namespace": "default", "uid": "v1"},
            "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "setup"}]}});
        known.pods.insert(("ns".into(), "web-x-default-x-a".into()), pod);
        known.claims.insert(("ns".into(), "data-x-default-x-a".into()), NamespacedName::new("default", "data"));
        known
    }

    #[test]
    fn the_address_of_a_nodes_service_names_the_node() {
        let addresses = NodeAddresses::default();
        let service = |node: &str, annotated: bool, ips: Value| {
            let mut service = json!({"metadata": {"labels": {}, "annotations": {}}, "spec": {"clusterIPs": ips}});
            let (place, key) = if annotated { ("annotations", NODE_ANNOTATION) } else { ("labels", NODE_LABEL) };
            service["metadata"][place][key] = node.into();
            service
        };
        let services = [
            service("long.node", true, json!(["10.0.0.7", "fd00::7"])),
            service("other", false, json!(["10.0.0.8"])),
            service("headless", true, json!(["None"])),
        ];
        addresses.set(services.iter());
        for (host, want) in [
            ("10.0.0.7:10250", Some("long.node")),
            ("10.0.0.7", Some("long.node")),
            ("[fd00::7]:10250", Some("long.node")),
            ("10.0.0.8:10250", Some("other")),
            ("10.0.0.9:10250", None),
            ("localhost:8443", None),
            ("[broken", None),
        ] {
            assert_eq!(addresses.node(host).as_deref(), want, "{host}");
        }
        addresses.set([].iter());
        assert_eq!(addresses.node("10.0.0.7"), None, "a node that has gone");
    }

    #[test]
    fn series_of_others_do_not_pass_and_names_are_the_tenants() {
        for (line, want) in [
            ("# TYPE a counter", Some("# TYPE a counter")),
            ("up 1", Some("up 1")),
            ("node_cpu_usage_seconds_total 3 1700", Some("node_cpu_usage_seconds_total 3 1700")),
            (
                r#"m{container="c",namespace="ns",pod="web-x-default-x-a"} 5 17"#,
                Some(r#"m{container="c",namespace="default",pod="web"} 5 17"#),
            ),
            (r#"m{namespace="ns",pod="other"} 5"#, None),
            (r#"m{namespace="kube-system",pod="web-x-default-x-a"} 5"#, None),
            (
                r#"v{namespace="ns",persistentvolumeclaim="data-x-default-x-a"} 5"#,
                Some(r#"v{namespace="default",persistentvolumeclaim="data"} 5"#),
            ),
            (r#"v{namespace="ns",persistentvolumeclaim="other"} 5"#, None),
            (r#"c{id="/kubepods/burstable/pod1"} 1"#, None),
            (r#"c{id="/"} 1"#, Some(r#"c{id="/"} 1"#)),
            (r#"c{namespace="ns"} 1"#, None),
            (
                r#"c{id="/kubepods/pod1/x",name="k8s_c_web-x",namespace="ns",pod="web-x-default-x-a",image="a\"b"} 1"#,
                Some(r#"c{id="",name="",namespace="default",pod="web",image="a\"b"} 1"#),
            ),
            (r#"broken{a="b 1"#, None),
        ] {
            let want = want.map(|text| format!("{text}\n")).unwrap_or_default();
            assert_eq!(metrics(line, &known()), want, "{line}");
        }
    }

    #[test]
    fn summaries_pods_and_logs_are_the_tenants_own() {
        let value = json!({"node": {"nodeName": "n"}, "pods": [
            {"podRef": {"name": "web-x-default-x-a", "namespace": "ns", "uid": "h"}, "volume": [
                {"name": "d", "pvcRef": {"name": "data-x-default-x-a", "namespace": "ns"}},
                {"name": "e", "pvcRef": {"name": "foreign", "namespace": "ns"}}]},
            {"podRef": {"name": "foreign", "namespace": "ns", "uid": "x"}},
        ]});
        let shown = summary(value, &known());
        assert_eq!(shown.array_at(&["pods"]).len(), 1, "{shown}");
        assert_eq!(shown["pods"][0]["podRef"], json!({"name": "web", "namespace": "default", "uid": "v1"}));
        assert_eq!(shown["pods"][0]["volume"][0]["pvcRef"], json!({"name": "data", "namespace": "default"}));
        assert!(!shown.to_string().contains("foreign"), "{shown}");
        let list = json!({"items": [{"metadata": {"name": "web-x-default-x-a", "namespace": "ns"}}, {"metadata": {"name": "x", "namespace": "ns"}}]});
        assert_eq!(
            pods(&list, &known())["items"],
            json!([{"metadata": {"name": "web", "namespace": "default", "uid": "v1"},
                "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "setup"}]}}])
        );
        for (path, want) in [
            ("/containerLogs/default/web/c", Some("/containerLogs/ns/web-x-default-x-a/c")),
            ("/containerLogs/default/web/setup", Some("/containerLogs/ns/web-x-default-x-a/setup")),
            ("/containerLogs/default/web/injected", None),
            ("/containerLogs/ns/web-x-default-x-a/c", None),
            ("/containerLogs/default/web/..", None),
            ("/containerLogs/default/web", None),
        ] {
            assert_eq!(logs(path, &known()).as_deref(), want, "{path}");
        }
        for (path, want) in [
            ("/stats/summary", Some(Answer::Summary)),
            ("/metrics/cadvisor", Some(Answer::Metrics)),
            ("/configz", None),
            ("/run/ns/pod/c", None),
            ("/exec/ns/pod/c", None),
            ("/logs/", None),
        ] {
            assert_eq!(answer_of(path), want, "{path}");
        }
    }
}
