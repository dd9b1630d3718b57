//! What objects use of a quota. Pure.
//!
//! Follows: `pkg/quota/v1/evaluator/core`, `k8s.io/component-helpers/resource` (`PodRequests`, `PodLimits`).

use std::collections::BTreeMap;

use apimachinery::json::Str;
use apimachinery::quantity::Quantity;
use informer::{StrMap, null_default};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use crate::pod;
use crate::types::{Container, PersistentVolumeClaim, Pod, ResourceList};

pub type Usage = BTreeMap<String, Quantity>;

pub fn one() -> Quantity {
    count(1)
}

pub fn count(n: usize) -> Quantity {
    Quantity::parse(&n.to_string()).unwrap_or_else(|_| unreachable!("digits are a quantity"))
}

pub fn add(usage: &mut Usage, name: &str, amount: &Quantity) {
    match usage.get_mut(name) {
        Some(known) => known.add(amount),
        None => drop(usage.insert(name.to_owned(), amount.clone())),
    }
}

fn parse(list: &ResourceList) -> Usage {
    list.iter().filter_map(|(name, text)| Some((name.to_owned(), Quantity::parse(text).ok()?))).collect()
}

pub fn sum_into(into: &mut Usage, other: &Usage) {
    other.iter().for_each(|(name, amount)| add(into, name, amount));
}

fn max(into: &mut Usage, other: &Usage) {
    for (name, amount) in other {
        match into.get_mut(name) {
            Some(known) if *known >= *amount => {}
            Some(known) => *known = amount.clone(),
            None => drop(into.insert(name.clone(), amount.clone())),
        }
    }
}

/// What a pod asks for: its containers together, or an init container with the sidecars before it if that is more.
fn pod_resources(
    pod: &Pod,
    of: impl Fn(&Container) -> &ResourceList,
    pod_level: Option<&ResourceList>,
    limits: bool,
) -> Usage {
    let mut total = Usage::new();
    for container in &pod.spec.containers {
        sum_into(&mut total, &parse(of(container)));
    }
    let (mut sidecars, mut init) = (Usage::new(), Usage::new());
    for container in &pod.spec.init_containers {
        let mut own = parse(of(container));
        if container.restart_policy == "Always" {
            sum_into(&mut total, &own);
            sum_into(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            sum_into(&mut own, &sidecars);
        }
        max(&mut init, &own);
    }
    max(&mut total, &init);
    if let Some(pod_level) = pod_level {
        for (name, amount) in parse(pod_level) {
            total.insert(name, amount);
        }
    }
    for (name, amount) in parse(&pod.spec.overhead) {
        // Without a limit there is none, overhead or not.
        if !limits || total.contains_key(&name) {
            add(&mut total, &name, &amount);
        }
    }
    total
}

/// Whether a pod still counts for what it uses.
pub fn counts(pod: &Pod, now: Timestamp) -> bool {
    if pod::is_terminal(pod) {
        return false;
    }
    // Long past its end: the node is gone and will never say so.
    let overdue = pod.metadata.deletion_timestamp.zip(pod.metadata.deletion_grace_period_seconds);
    overdue.is_none_or(|(at, grace)| now <= at + SignedDuration::from_secs(grace))
}

pub fn pod_usage(pod: &Pod, now: Timestamp) -> Usage {
    let mut usage = Usage::from([("count/pods".to_owned(), one())]);
    if !counts(pod, now) {
        return usage;
    }
    usage.insert("pods".into(), one());
    let level = pod.spec.resources.as_deref();
    let requests = pod_resources(pod, |c| &c.resources.requests, level.map(|l| &l.requests), false);
    let limits = pod_resources(pod, |c| &c.resources.limits, level.map(|l| &l.limits), true);
    for (name, amount) in requests {
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                usage.insert(format!("requests.{name}"), amount.clone());
                usage.insert(name, amount);
            }
            _ if name.starts_with("hugepages-") => {
                usage.insert(format!("requests.{name}"), amount.clone());
                usage.insert(name, amount);
            }
            // Extended resources have a domain.
            _ if name.contains('/') => drop(usage.insert(format!("requests.{name}"), amount)),
            _ => {}
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), amount);
        }
    }
    usage
}

/// A Service as far as quotas count it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct ServiceForQuota {
    spec: ServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Str,
    #[serde(deserialize_with = "null_default")]
    ports: Vec<Port>,
    allocate_load_balancer_node_ports: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    node_port: i64,
}

pub fn service_usage(service: &ServiceForQuota) -> Usage {
    let spec = &service.spec;
    let mut usage = Usage::from([("count/services".to_owned(), one()), ("services".to_owned(), one())]);
    match spec.kind.as_str() {
        "NodePort" => drop(usage.insert("services.nodeports".into(), count(spec.ports.len()))),
        "LoadBalancer" => {
            usage.insert("services.loadbalancers".into(), one());
            let ports = if spec.allocate_load_balancer_node_ports == Some(false) {
                spec.ports.iter().filter(|p| p.node_port != 0).count()
            } else {
                spec.ports.len()
            };
            usage.insert("services.nodeports".into(), count(ports));
        }
        _ => {}
    }
    usage
}

pub fn claim_usage(claim: &PersistentVolumeClaim) -> Usage {
    let mut usage =
        Usage::from([("count/persistentvolumeclaims".to_owned(), one()), ("persistentvolumeclaims".to_owned(), one())]);
    let class = claim.spec.storage_class_name.as_deref().unwrap_or("");
    let prefix = format!("{class}.storageclass.storage.k8s.io/");
    if !class.is_empty() {
        usage.insert(format!("{prefix}persistentvolumeclaims"), one());
    }
    let request = claim.spec.resources.requests.get("storage").and_then(|s| Quantity::parse(s).ok());
    let reserved = claim.status.capacity.get("storage").and_then(|s| Quantity::parse(s).ok());
    if let Some(storage) = request.into_iter().chain(reserved).max() {
        usage.insert("requests.storage".into(), storage.clone());
        if !class.is_empty() {
            usage.insert(format!("{prefix}requests.storage"), storage);
        }
    }
    usage
}

/// `spec.scopes[]` and `spec.scopeSelector.matchExpressions[]` as one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ScopeRequirement {
    pub scope_name: Str,
    pub operator: Str,
    #[serde(deserialize_with = "null_default")]
    pub values: Vec<Str>,
}

/// Whether a pod is in a scope.
pub fn in_scope(requirement: &ScopeRequirement, pod: &Pod) -> bool {
    let best_effort = || {
        let empty = |list: &StrMap| list.is_empty();
        let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
        let quiet = containers.into_iter().all(|c| empty(&c.resources.requests) && empty(&c.resources.limits));
        if pod.status.qos_class.is_empty() { quiet } else { pod.status.qos_class == "BestEffort" }
    };
    match requirement.scope_name.as_str() {
        "Terminating" => pod.spec.active_deadline_seconds.is_some_and(|s| s >= 0),
        "NotTerminating" => pod.spec.active_deadline_seconds.is_none_or(|s| s < 0),
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            let class = &pod.spec.priority_class_name;
            let listed = requirement.values.contains(class);
            match requirement.operator.as_str() {
                "In" => !class.is_empty() && listed,
                "NotIn" => !listed,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => pod.spec.affinity.as_ref().is_some_and(|affinity| {
            let terms = [&affinity.pod_affinity, &affinity.pod_anti_affinity];
            terms.into_iter().flatten().any(|kind| {
                let preferred =
                    kind.preferred_during_scheduling_ignored_during_execution.iter().map(|w| &w.pod_affinity_term);
                let all = kind.required_during_scheduling_ignored_during_execution.iter().chain(preferred);
                all.into_iter().any(|t| !t.namespaces.is_empty() || t.namespace_selector.is_some())
            })
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::{Value, json};

    fn texts(usage: &Usage) -> Vec<String> {
        usage.iter().map(|(name, amount)| format!("{name}={amount}")).collect()
    }

    #[test]
    fn pods_use_the_larger_of_containers_and_init_containers() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let of = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let container = |cpu: &str| json!({"name": "c", "resources": of(cpu)});
        let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": of(cpu)});
        for (containers, init, want) in [
            (json!([container("100m"), container("200m")]), json!([]), "300m"),
            (json!([container("100m")]), json!([container("1")]), "1"),
            (json!([container("100m")]), json!([sidecar("50m"), container("70m")]), "150m"),
            (json!([container("100m")]), json!([sidecar("50m"), container("200m")]), "250m"),
        ] {
            let mut object = json!({"metadata": {"name": "p"}});
            object["spec"]["containers"] = containers;
            object["spec"]["initContainers"] = init;
            let usage = pod_usage(&object.to().unwrap(), now);
            assert_eq!(usage["requests.cpu"].to_string(), want);
            assert_eq!(usage["pods"].to_string(), "1");
        }
        let done: Pod = json!({"metadata": {"name": "p"}, "status": {"phase": "Succeeded"}}).to().unwrap();
        assert_eq!(texts(&pod_usage(&done, now)), ["count/pods=1"]);
    }

    #[test]
    fn services_and_claims_count_by_what_they_are() {
        let service = |spec: Value| -> ServiceForQuota {
            let mut object = Value::object();
            object["spec"] = spec;
            object.to().unwrap()
        };
        let balanced = service(json!({"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}));
        assert_eq!(
            texts(&service_usage(&balanced)),
            ["count/services=1", "services=1", "services.loadbalancers=1", "services.nodeports=2"]
        );
        let claim: PersistentVolumeClaim = json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "gold",
            "resources": {"requests": {"storage": "1Gi"}}}})
        .to()
        .unwrap();
        let usage = claim_usage(&claim);
        assert_eq!(usage["gold.storageclass.storage.k8s.io/requests.storage"].to_string(), "1Gi");
    }

    #[test]
    fn scopes_choose_pods() {
        let pod: Pod =
            json!({"metadata": {"name": "p"}, "spec": {"priorityClassName": "high", "containers": [{"name": "c"}],
            "activeDeadlineSeconds": 5}})
            .to()
            .unwrap();
        for (scope, operator, values, want) in [
            ("Terminating", "Exists", json!([]), true),
            ("NotTerminating", "Exists", json!([]), false),
            ("BestEffort", "Exists", json!([]), true),
            ("PriorityClass", "In", json!(["high"]), true),
            ("PriorityClass", "NotIn", json!(["high"]), false),
            ("PriorityClass", "DoesNotExist", json!([]), false),
            ("CrossNamespacePodAffinity", "Exists", json!([]), false),
        ] {
            let requirement =
                ScopeRequirement { scope_name: scope.into(), operator: operator.into(), values: values.to().unwrap() };
            assert_eq!(in_scope(&requirement, &pod), want, "{scope} {operator}");
        }
    }
}
