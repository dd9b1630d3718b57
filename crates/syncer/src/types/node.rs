//! Nodes: invented ones that stand for the host nodes a tenant's pods run on, or copies of the real ones.

use apimachinery::{Map, Value, json};
use jiff::Timestamp;

use crate::kind;
use crate::metadata::string_map;
use crate::names::{hex_prefix, safe_concat};
use crate::settings::Settings;
use crate::types::object;

pub const FAKE_NODE_LABEL: &str = "vcluster.loft.sh/fake-node";
pub const ORIGINAL_TAINTS_ANNOTATION: &str = "vcluster.loft.sh/original-taints";
/// What of a node was last shown, so that the tenant's changes can be told from the host's.
const SEEN_ANNOTATION: &str = "alcove.dev/node-seen";
const KUBELET_PORT: i64 = 10250;

/// The host name under which a node's kubelet is reached through the control plane.
pub fn kubelet_host(node: &str) -> String {
    format!("{}.nodes.vcluster.com", node.replace('.', "-"))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Looks like a machine id, says nothing, and is the same every time.
fn guid(node: &str, what: &str) -> String {
    let digits = hex_prefix(&format!("{what}/{node}"), 32);
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

/// What a node's kubelet is shown under.
pub fn addresses(node: &str, kubelet_ip: Option<&str>, settings: &Settings) -> Value {
    let mut out = Vec::new();
    if settings.proxy_kubelets_by_hostname {
        out.push(json!({"type": "Hostname", "address": (kubelet_host(node))}));
    }
    if let Some(ip) = kubelet_ip.filter(|ip| settings.proxy_kubelets_by_ip && !ip.is_empty()) {
        out.push(json!({"type": "InternalIP", "address": ip}));
    }
    Value::Array(out)
}

/// The node that is shown for a host node: its name and nothing else of it.
pub fn fake_node(name: &str, kubelet_ip: Option<&str>, settings: &Settings, now: Timestamp) -> Value {
    let arch = architecture();
    let now = informer::clock::format_seconds(now);
    let resources = json!({
        "cpu": "16", "memory": "32Gi", "ephemeral-storage": "100Gi",
        "hugepages-1Gi": "0", "hugepages-2Mi": "0", "pods": "110",
    });
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": (now.as_str()), "lastTransitionTime": (now.as_str()),
        })
    };
    let mut node = object(
        &kind::NODE,
        json!({
            "name": name,
            "labels": {
                FAKE_NODE_LABEL: "true",
                "beta.kubernetes.io/arch": arch,
                "beta.kubernetes.io/os": "linux",
                "kubernetes.io/arch": arch,
                "kubernetes.io/os": "linux",
                "kubernetes.io/hostname": (safe_concat(&["fake", name])),
            },
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "false",
            },
        }),
    );
    node["status"] = json!({
        "capacity": (&resources),
        "allocatable": (&resources),
        "conditions": [
            (condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available")),
            (condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure")),
            (condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available")),
            (condition("Ready", "True", "KubeletReady", "kubelet is posting ready status")),
        ],
        "addresses": (addresses(name, kubelet_ip, settings)),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
        "nodeInfo": {
            "architecture": arch,
            "bootID": (guid(name, "boot")),
            "containerRuntimeVersion": "docker://19.3.12",
            "kernelVersion": "4.19.76-fakelinux",
            "kubeProxyVersion": (settings.kubelet_version.as_str()),
            "kubeletVersion": (settings.kubelet_version.as_str()),
            "machineID": (guid(name, "machine")),
            "systemUUID": (guid(name, "system")),
            "operatingSystem": "linux",
            "osImage": "Fake Kubernetes Image",
        },
    });
    node
}

/// True for nodes this syncer invented.
pub fn is_fake(node: &Value) -> bool {
    crate::metadata::label(node, FAKE_NODE_LABEL) == "true"
}

/// The virtual node for a real host node. `virtual_` is what is there now: labels, annotations and taints that were set in
/// the virtual cluster only survive.
pub fn real_node(host: &Value, virtual_: Option<&Value>, kubelet_ip: Option<&str>, settings: &Settings) -> Value {
    let name = host.str_at(&["metadata", "name"]);
    let mut node = virtual_.cloned().unwrap_or_else(|| object(&kind::NODE, json!({ "name": name })));
    let managed = |key: &str| node_keys(virtual_, key);
    let labels = merge_keys(host, virtual_, "labels", &managed(crate::metadata::MANAGED_LABELS_ANNOTATION));
    let mut annotations =
        merge_keys(host, virtual_, "annotations", &managed(crate::metadata::MANAGED_ANNOTATIONS_ANNOTATION));

    // Taints of the host now, as texts: what was the host's before and is no more goes away.
    let of_host: Vec<String> = host.array_at(&["spec", "taints"]).iter().map(Value::to_string).collect();
    let before: Vec<String> = virtual_
        .map(|v| crate::metadata::annotation(v, ORIGINAL_TAINTS_ANNOTATION))
        .and_then(|t| Value::from_slice(t.as_bytes()).ok())
        .and_then(|v| v.as_array().map(|a| a.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect()))
        .unwrap_or_default();
    let mut taints: Vec<Value> = host.array_at(&["spec", "taints"]).to_vec();
    for taint in virtual_.map_or(&[][..], |v| v.array_at(&["spec", "taints"])) {
        let text = taint.to_string();
        let not_ready = taint.str_at(&["key"]) == "node.kubernetes.io/not-ready";
        if !before.contains(&text) && !of_host.contains(&text) && !not_ready {
            taints.push(taint.clone());
        }
    }
    // Every pod tolerates these anyway.
    taints.retain(|t| !settings.pods.enforce_tolerations.iter().any(|tol| tolerates(tol, t)));
    if of_host.is_empty() {
        annotations.remove(ORIGINAL_TAINTS_ANNOTATION);
    } else {
        annotations.insert(ORIGINAL_TAINTS_ANNOTATION, Value::from(of_host).to_string().into());
    }
    annotations.insert(
        crate::metadata::MANAGED_LABELS_ANNOTATION,
        host_keys(host, "labels").map(|(k, _)| k).collect::<Vec<_>>().join("\n").into(),
    );
    annotations.insert(
        crate::metadata::MANAGED_ANNOTATIONS_ANNOTATION,
        host_keys(host, "annotations").map(|(k, _)| k).collect::<Vec<_>>().join("\n").into(),
    );
    node["metadata"]["labels"] = labels.into();
    node["metadata"]["annotations"] = annotations.into();
    let mut spec = host["spec"].clone();
    spec.remove_at(&["taints"]);
    if !taints.is_empty() {
        spec["taints"] = Value::Array(taints);
    }
    node["spec"] = spec;
    let mut status = host["status"].clone();
    if settings.proxy_kubelets_by_hostname || settings.proxy_kubelets_by_ip {
        status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": KUBELET_PORT}});
        status["addresses"] = addresses(name, kubelet_ip, settings);
    }
    if let crate::settings::Nodes::Real { clear_image_status: true, .. } = &settings.nodes {
        status.remove_at(&["images"]);
    }
    // Volumes of other tenants.
    for member in ["volumesAttached", "volumesInUse"] {
        status.remove_at(&[member]);
    }
    node["status"] = status;
    if let crate::settings::Nodes::Real { sync_back_changes: true, .. } = &settings.nodes {
        let text = seen(&node).to_string();
        node.set_at(&["metadata", "annotations", SEEN_ANNOTATION], text.into());
    }
    node
}

fn node_keys(virtual_: Option<&Value>, annotation: &str) -> Vec<String> {
    let text = virtual_.map_or("", |v| crate::metadata::annotation(v, annotation));
    text.split('\n').filter(|k| !k.is_empty()).map(str::to_owned).collect()
}

/// What Rancher's agents count on the cluster they are in, which is another one for the tenant's.
const COUNTED: [&str; 2] = ["management.cattle.io/pod-requests", "management.cattle.io/pod-limits"];

/// Labels or annotations of a host node that are shown.
fn host_keys<'a>(host: &'a Value, member: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    string_map(host.at(&["metadata", member])).filter(|(key, _)| !COUNTED.contains(key))
}

/// The host's keys, and those of the virtual node that never were the host's.
fn merge_keys(host: &Value, virtual_: Option<&Value>, member: &str, before: &[String]) -> Map {
    let mut out: Map = host_keys(host, member).map(|(k, v)| (k, Value::from(v))).collect();
    for (key, value) in string_map(virtual_.and_then(|v| v.at(&["metadata", member]))) {
        if !out.contains_key(key) && !before.iter().any(|b| b == key) {
            out.insert(key, value.into());
        }
    }
    out
}

/// Marks host Services that stand for kubelets.
pub const BELONGS_TO_LABEL: &str = "vcluster.loft.sh/belongs-to";
const NODE_LABEL: &str = "vcluster.loft.sh/node";
/// The node's name, which can be too long for a label.
pub const NODE_ANNOTATION: &str = "alcove.dev/node";
/// The control plane's port.
const PROXY_PORT: i64 = 8443;

/// The host Service that stands for a node's kubelet: what comes to it goes to the control plane.
pub fn node_service(
    node: &str,
    name: &crate::names::NamespacedName,
    selector: &Value,
    owner: Option<&crate::metadata::HostOwner>,
    names: &crate::names::Names,
) -> Value {
    let mut metadata = json!({
        "name": (name.name.as_str()),
        "namespace": (name.namespace.as_str()),
        "labels": {BELONGS_TO_LABEL: (names.virtual_cluster()), NODE_LABEL: (safe_concat(&[node]))},
        "annotations": {NODE_ANNOTATION: node},
    });
    if let Some(owner) = owner {
        metadata["ownerReferences"] = json!([{
            "apiVersion": (owner.api_version.as_str()), "kind": (owner.kind.as_str()),
            "name": (owner.name.as_str()), "uid": (owner.uid.as_str()), "controller": false,
        }]);
    }
    let mut service = object(&kind::SERVICE, metadata);
    service["spec"] = json!({
        "selector": selector,
        "ports": [{"name": "kubelet", "port": KUBELET_PORT, "targetPort": PROXY_PORT, "protocol": "TCP"}],
    });
    service
}

/// Keys of nodes that the tenant must not change on the host: others find nodes and each other by them.
fn is_protected(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    matches!(domain, "vcluster.loft.sh" | "alcove.dev" | "node.kubernetes.io" | "kubernetes.io")
        || domain.ends_with(".node.kubernetes.io")
        || domain.ends_with("node-restriction.kubernetes.io")
}

/// What the tenant changed on a node since it was last written, as a merge patch of the host node: labels, taints, and
/// whether pods may be placed there. `None`: nothing.
pub fn node_changes(virtual_: &Value, host: &Value) -> Option<Value> {
    let seen = Value::from_slice(crate::metadata::annotation(virtual_, SEEN_ANNOTATION).as_bytes()).ok()?;
    let mut labels = Map::new();
    let now = virtual_.at(&["metadata", "labels"]);
    let of_host = |key: &str| host.str_at(&["metadata", "labels", key]);
    for (key, value) in string_map(now) {
        let before = seen.str_at(&["labels", key]);
        if before != value && of_host(key) == before && !is_protected(key) {
            labels.insert(key, value.into());
        }
    }
    for (key, value) in string_map(seen.get("labels")) {
        if now.and_then(|l| l.get(key)).is_none() && of_host(key) == value && !is_protected(key) {
            labels.insert(key, Value::Null);
        }
    }
    let mut spec = Map::new();
    let blocked = |node: &Value| node.at(&["spec", "unschedulable"]).is_some_and(|v| *v == true);
    let was_blocked = seen["unschedulable"] == true;
    if blocked(virtual_) != was_blocked && blocked(host) == was_blocked {
        spec.insert("unschedulable", if blocked(virtual_) { true.into() } else { Value::Null });
    }
    let before = seen.array_at(&["taints"]);
    let shown = virtual_.array_at(&["spec", "taints"]);
    let same = |a: &Value, b: &Value| a["key"] == b["key"] && a["effect"] == b["effect"] && a["value"] == b["value"];
    let mut taints: Vec<Value> = host.array_at(&["spec", "taints"]).to_vec();
    let count = taints.len();
    taints.retain(|t| {
        let gone = before.iter().any(|b| same(b, t)) && !shown.iter().any(|s| same(s, t));
        !gone || is_protected(t.str_at(&["key"]))
    });
    let mut changed = taints.len() != count;
    for taint in shown {
        let new = !before.iter().any(|b| same(b, taint)) && !taints.iter().any(|t| same(t, taint));
        // Cordoning adds its taint on each side by itself.
        if new && !is_protected(taint.str_at(&["key"])) {
            taints.push(taint.clone());
            changed = true;
        }
    }
    if changed {
        spec.insert("taints", Value::Array(taints));
    }
    if labels.is_empty() && spec.is_empty() {
        return None;
    }
    let mut metadata = Map::new();
    metadata.insert("uid", crate::metadata::uid_of(host).into());
    metadata.insert("resourceVersion", host.str_at(&["metadata", "resourceVersion"]).into());
    if !labels.is_empty() {
        metadata.insert("labels", labels.into());
    }
    let mut patch = Map::new();
    patch.insert("metadata", metadata.into());
    if !spec.is_empty() {
        patch.insert("spec", spec.into());
    }
    Some(patch.into())
}

/// The merge patch that remembers a virtual node as it is, once its changes are on the host.
pub fn remember_node(virtual_: &Value) -> Value {
    let uid = crate::metadata::uid_of(virtual_);
    json!({"metadata": {"uid": uid, "annotations": {SEEN_ANNOTATION: (seen(virtual_).to_string())}}})
}

/// What is remembered of a node for [`node_changes`].
fn seen(shown: &Value) -> Value {
    json!({
        "labels": (shown.at(&["metadata", "labels"]).cloned().unwrap_or_else(|| json!({}))),
        "taints": (Value::Array(shown.array_at(&["spec", "taints"]).to_vec())),
        "unschedulable": (shown.at(&["spec", "unschedulable"]).is_some_and(|v| *v == true)),
    })
}

/// Takes what pods of others ask for off what a node has to give.
pub fn reduce_allocatable(node: &mut Value, pods: &[Value]) {
    use apimachinery::quantity::Quantity;
    let Some(allocatable) = node.at_mut(&["status", "allocatable"]).and_then(Value::as_object_mut) else { return };
    for (resource, value) in allocatable.iter_mut() {
        let Ok(mut rest) = Quantity::from_value(value) else { continue };
        for pod in pods {
            let used = match resource.as_str() {
                "pods" => Quantity::parse("1").ok(),
                resource => requested(pod, resource),
            };
            if let Some(used) = used {
                rest.sub(&used);
            }
        }
        *value = if rest.sign() < 0 { "0".into() } else { rest.to_string().into() };
    }
}

/// What a pod asks for of a resource: its containers together, or an init container that asks for more.
fn requested(pod: &Value, resource: &str) -> Option<apimachinery::quantity::Quantity> {
    use apimachinery::quantity::Quantity;
    let of = |container: &Value| {
        let value = container.at(&["resources", "requests", resource])?;
        Quantity::from_value(value).ok()
    };
    let mut sum = Quantity::parse("0").ok()?;
    let sidecars = pod.array_at(&["spec", "initContainers"]).iter();
    let sidecars = sidecars.filter(|c| c.str_at(&["restartPolicy"]) == "Always");
    for quantity in pod.array_at(&["spec", "containers"]).iter().chain(sidecars).filter_map(of) {
        sum.add(&quantity);
    }
    for quantity in pod.array_at(&["spec", "initContainers"]).iter().filter_map(of) {
        let mut rest = quantity.clone();
        rest.sub(&sum);
        if rest.sign() > 0 {
            sum = quantity;
        }
    }
    if let Some(overhead) = pod.at(&["spec", "overhead", resource]).and_then(|v| Quantity::from_value(v).ok()) {
        sum.add(&overhead);
    }
    Some(sum)
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let effect = toleration.str_at(&["effect"]);
    if !effect.is_empty() && effect != taint.str_at(&["effect"]) {
        return false;
    }
    let key = toleration.str_at(&["key"]);
    match toleration.str_at(&["operator"]) {
        "Exists" => key.is_empty() || key == taint.str_at(&["key"]),
        "" | "Equal" => key == taint.str_at(&["key"]) && toleration.str_at(&["value"]) == taint.str_at(&["value"]),
        _ => false,
    }
}
