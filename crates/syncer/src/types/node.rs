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

fn addresses(node: &str, kubelet_ip: Option<&str>, settings: &Settings) -> Value {
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
        string_map(host.at(&["metadata", "labels"])).map(|(k, _)| k).collect::<Vec<_>>().join("\n").into(),
    );
    annotations.insert(
        crate::metadata::MANAGED_ANNOTATIONS_ANNOTATION,
        string_map(host.at(&["metadata", "annotations"])).map(|(k, _)| k).collect::<Vec<_>>().join("\n").into(),
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
    node
}

fn node_keys(virtual_: Option<&Value>, annotation: &str) -> Vec<String> {
    let text = virtual_.map_or("", |v| crate::metadata::annotation(v, annotation));
    text.split('\n').filter(|k| !k.is_empty()).map(str::to_owned).collect()
}

/// The host's keys, and those of the virtual node that never were the host's.
fn merge_keys(host: &Value, virtual_: Option<&Value>, member: &str, before: &[String]) -> Map {
    let mut out: Map = string_map(host.at(&["metadata", member])).map(|(k, v)| (k, Value::from(v))).collect();
    for (key, value) in string_map(virtual_.and_then(|v| v.at(&["metadata", member]))) {
        if !out.contains_key(key) && !before.iter().any(|b| b == key) {
            out.insert(key, value.into());
        }
    }
    out
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
