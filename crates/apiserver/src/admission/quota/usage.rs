//! What an object counts against a quota. Pure.
//!
//! Follows: `pkg/quota/v1/evaluator/core`, `k8s.io/apiserver/pkg/quota/v1/generic`.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::Value;
use apimachinery::kinds::qos_class;
use apimachinery::meta::ObjectMeta;
use apimachinery::quantity::{Format, Quantity};

use crate::admission::pod_resources::{ResourceList, pod_total};

const STORAGE_CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";
const PVC_RESOURCES: [&str; 2] = ["persistentvolumeclaims", "requests.storage"];
const POD_RESOURCES: [&str; 11] = [
    "count/pods",
    "pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];
/// What every container must say when a quota limits it.
const MUST_SPECIFY: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSI)
}

/// `count/pods`, `count/deployments.apps`.
fn count_name(group: &str, resource: &str) -> String {
    if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") }
}

/// The resources of a quota that objects of this resource count against.
pub fn matching(group: &str, resource: &str, names: &[String]) -> Vec<String> {
    let count = count_name(group, resource);
    let matches = |name: &str| match (group, resource) {
        ("", "pods") => {
            POD_RESOURCES.contains(&name)
                || name.starts_with("hugepages-")
                || name.starts_with("requests.hugepages-")
                || name.strip_prefix("requests.").is_some_and(is_extended)
        }
        ("", "services") => {
            name == count || matches!(name, "services" | "services.nodeports" | "services.loadbalancers")
        }
        ("", "persistentvolumeclaims") => {
            name == count
                || PVC_RESOURCES.contains(&name)
                || PVC_RESOURCES.iter().any(|r| name.ends_with(&format!("{STORAGE_CLASS_SUFFIX}{r}")))
        }
        ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
            name == count || name == resource
        }
        _ => name == count,
    };
    names.iter().filter(|n| matches(n)).cloned().collect()
}

fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.starts_with("kubernetes.io/")
}

/// What one object counts.
pub fn usage(group: &str, resource: &str, object: &Value) -> ResourceList {
    let mut used = BTreeMap::new();
    used.insert(count_name(group, resource), one());
    match (group, resource) {
        ("", "pods") => {
            if counts_resources(object) {
                let (mut requests, mut limits) = (pod_total(object, "requests"), pod_total(object, "limits"));
                let overhead = ResourceList::read(&object["spec"]["overhead"]);
                requests.add(&overhead);
                let limited: Vec<String> = limits.0.keys().cloned().collect();
                limits.add(&overhead.mask(&limited));
                used.extend(compute(&requests, &limits));
            }
        }
        ("", "services") => {
            used.insert("services".to_owned(), one());
            let ports = object.array_at(&["spec", "ports"]);
            let ports_in = |n: usize| Quantity::new(n as i64, Format::DecimalSI);
            match object.str_at(&["spec", "type"]) {
                "NodePort" => {
                    used.insert("services.nodeports".to_owned(), ports_in(ports.len()));
                }
                "LoadBalancer" => {
                    let count = if object["spec"]["allocateLoadBalancerNodePorts"] == false {
                        ports.iter().filter(|p| p["nodePort"].as_i64().is_some_and(|n| n != 0)).count()
                    } else {
                        ports.len()
                    };
                    used.insert("services.nodeports".to_owned(), ports_in(count));
                    used.insert("services.loadbalancers".to_owned(), one());
                }
                _ => {}
            }
        }
        ("", "persistentvolumeclaims") => {
            used.insert("persistentvolumeclaims".to_owned(), one());
            let asked = object.at(&["spec", "resources", "requests", "storage"]);
            let asked = asked.and_then(|q| Quantity::from_value(q).ok());
            let allocated = object.at(&["status", "allocatedResources", "storage"]);
            let allocated = allocated.and_then(|q| Quantity::from_value(q).ok());
            let storage = asked.max(allocated);
            let class = object
                .annotation("volume.beta.kubernetes.io/storage-class")
                .unwrap_or_else(|| object.str_at(&["spec", "storageClassName"]));
            if !class.is_empty() {
                used.insert(format!("{class}{STORAGE_CLASS_SUFFIX}persistentvolumeclaims"), one());
            }
            if let Some(storage) = storage {
                if !class.is_empty() {
                    used.insert(format!("{class}{STORAGE_CLASS_SUFFIX}requests.storage"), storage.clone());
                }
                used.insert("requests.storage".to_owned(), storage);
            }
        }
        ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
            used.insert(resource.to_owned(), one());
        }
        _ => {}
    }
    ResourceList(used)
}

/// Whether a pod still takes room: not when it has ended, nor when its time to end has passed.
fn counts_resources(pod: &Value) -> bool {
    if matches!(pod.str_at(&["status", "phase"]), "Failed" | "Succeeded") {
        return false;
    }
    let grace = pod.deletion_grace_period_seconds();
    let Some((deadline, grace)) = pod.deletion_timestamp().zip(grace) else { return true };
    let _ = grace;
    let deadline = apimachinery::time::Timestamp::parse(deadline);
    deadline.is_none_or(|d| d > apimachinery::time::Timestamp::from(std::time::SystemTime::now()))
}

fn compute(requests: &ResourceList, limits: &ResourceList) -> BTreeMap<String, Quantity> {
    let mut used = BTreeMap::from([("pods".to_owned(), one())]);
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(request) = requests.get(name) {
            used.insert(name.to_owned(), request.clone());
            used.insert(format!("requests.{name}"), request.clone());
        }
        if let Some(limit) = limits.get(name) {
            used.insert(format!("limits.{name}"), limit.clone());
        }
    }
    for (name, request) in &requests.0 {
        if name.starts_with("hugepages-") {
            used.insert(name.clone(), request.clone());
            used.insert(format!("requests.{name}"), request.clone());
        } else if is_extended(name) {
            used.insert(format!("requests.{name}"), request.clone());
        }
    }
    used
}

/// What a pod's containers do not say although a quota limits it: `limits.memory for: c; requests.cpu for: c,d`.
pub fn unspecified(pod: &Value, limited: &[String]) -> Option<String> {
    if pod["spec"]["resources"].as_object().is_some_and(|r| !r.is_empty()) {
        return None;
    }
    let required: BTreeSet<&str> = limited.iter().map(String::as_str).filter(|n| MUST_SPECIFY.contains(n)).collect();
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in ["containers", "initContainers"].iter().flat_map(|k| pod.array_at(&["spec", k])) {
        let of = |kind: &str| ResourceList::read(container.at(&["resources", kind]).unwrap_or(&Value::Null));
        let used = compute(&of("requests"), &of("limits"));
        for name in required.iter().filter(|n| !used.contains_key(**n)) {
            missing.entry(name).or_default().insert(container.str_at(&["name"]));
        }
    }
    if missing.is_empty() {
        return None;
    }
    let parts = missing.iter().map(|(name, containers)| {
        let containers: Vec<&str> = containers.iter().copied().collect();
        format!("{name} for: {}", containers.join(","))
    });
    Some(parts.collect::<Vec<_>>().join("; "))
}

/// Whether a quota is about this object at all, by its scopes.
pub fn in_scope(quota: &Value, group: &str, resource: &str, object: &Value) -> bool {
    let scopes = quota.array_at(&["spec", "scopes"]).iter().filter_map(Value::as_str);
    let plain = scopes.map(|s| (s, "Exists", &[][..]));
    let selectors = quota.array_at(&["spec", "scopeSelector", "matchExpressions"]).iter();
    let selectors = selectors.map(|s| (s.str_at(&["scopeName"]), s.str_at(&["operator"]), s.array_at(&["values"])));
    plain.chain(selectors).all(|(scope, operator, values)| match (group, resource) {
        ("", "pods") => pod_in_scope(object, scope, operator, values),
        ("", "persistentvolumeclaims") if scope == "VolumeAttributesClass" => {
            selects(object.str_at(&["spec", "volumeAttributesClassName"]), operator, values)
        }
        _ => false,
    })
}

fn selects(value: &str, operator: &str, values: &[Value]) -> bool {
    let listed = values.iter().any(|v| v == value);
    match operator {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => !value.is_empty(),
        "DoesNotExist" => value.is_empty(),
        _ => false,
    }
}

fn pod_in_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let best_effort = || qos_class(pod) == "BestEffort";
    match scope {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => selects(pod.str_at(&["spec", "priorityClassName"]), operator, values),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

/// Whether the pod has an end.
pub fn is_terminating(pod: &Value) -> bool {
    pod.at(&["spec", "activeDeadlineSeconds"]).and_then(Value::as_i64).is_some_and(|s| s >= 0)
}

fn crosses_namespaces(pod: &Value) -> bool {
    let kinds = ["podAffinity", "podAntiAffinity"];
    kinds.iter().any(|kind| {
        let affinity = pod.at(&["spec", "affinity", kind]).unwrap_or(&Value::Null);
        let required = affinity.array_at(&["requiredDuringSchedulingIgnoredDuringExecution"]).iter();
        let preferred = affinity.array_at(&["preferredDuringSchedulingIgnoredDuringExecution"]).iter();
        required
            .chain(preferred.filter_map(|p| p.at(&["podAffinityTerm"])))
            .any(|term| !term.array_at(&["namespaces"]).is_empty() || term["namespaceSelector"].is_object())
    })
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn objects_count_what_they_use() {
        for (group, resource, object, want) in [
            ("", "configmaps", json!({}), json!({"configmaps": "1", "count/configmaps": "1"})),
            ("apps", "deployments", json!({}), json!({"count/deployments.apps": "1"})),
            (
                "",
                "services",
                json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}}),
                json!({"count/services": "1", "services": "1", "services.nodeports": "2", "services.loadbalancers": "1"}),
            ),
            (
                "",
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}}),
                json!({"count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "1Gi",
                    "fast.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
                    "fast.storageclass.storage.k8s.io/requests.storage": "1Gi"}),
            ),
            (
                "",
                "pods",
                json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "example.com/gpu": "2"}, "limits": {"memory": "1Gi"}}}]}}),
                json!({"count/pods": "1", "pods": "1", "cpu": "1", "requests.cpu": "1", "limits.memory": "1Gi",
                    "requests.example.com/gpu": "2"}),
            ),
            ("", "pods", json!({"status": {"phase": "Succeeded"}}), json!({"count/pods": "1"})),
        ] {
            assert_eq!(usage(group, resource, &object).to_value(), want, "{resource}");
        }
    }

    #[test]
    fn containers_must_say_what_is_limited() {
        let pod =
            json!({"spec": {"containers": [{"name": "c"}, {"name": "d", "resources": {"limits": {"memory": "1Gi"}}}]}});
        let limited: Vec<String> = ["requests.cpu", "limits.memory", "pods"].map(str::to_owned).to_vec();
        assert_eq!(unspecified(&pod, &limited).unwrap(), "limits.memory for: c; requests.cpu for: c,d");
    }
}
