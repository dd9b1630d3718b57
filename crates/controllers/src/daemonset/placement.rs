//! On which nodes a daemon set runs: node name, node selector, required node affinity, taints. Pure.
//!
//! Follows: `pkg/controller/daemon` (`NodeShouldRunDaemonPod`), `k8s.io/component-helpers/scheduling/corev1/nodeaffinity`.

use apimachinery::{Value, json};
use informer::StrMap;

use crate::types::{Node, Taint, Toleration};

/// Whether a node should get a pod, and whether a pod that is there may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    pub run: bool,
    pub stay: bool,
}

fn requirement_matches(requirement: &Value, labels: &StrMap) -> bool {
    let value = labels.get(requirement.str_at(&["key"]));
    let values = requirement.array_at(&["values"]);
    let listed = |v: &str| values.iter().any(|w| w.as_str() == Some(v));
    let compare = |than: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(Value::as_str).and_then(|v| v.parse::<i64>().ok());
        match (value.and_then(|v| v.parse::<i64>().ok()), bound) {
            (Some(value), Some(bound)) => than(value, bound),
            _ => false,
        }
    };
    match requirement.str_at(&["operator"]) {
        "In" => value.is_some_and(listed),
        "NotIn" => value.is_none_or(|v| !listed(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|a, b| a > b),
        "Lt" => compare(|a, b| a < b),
        _ => false,
    }
}

/// Whether a node matches `nodeSelector` and the required node affinity of a pod spec.
pub fn affinity_matches(spec: &Value, node: &Node) -> bool {
    let labels = &node.metadata.labels;
    let selected = spec
        .at(&["nodeSelector"])
        .and_then(Value::as_object)
        .is_none_or(|selector| selector.iter().all(|(k, v)| labels.get(k) == v.as_str()));
    let required = spec.at(&["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"]);
    let Some(required) = required.filter(|r| !r.is_null()) else { return selected };
    let fields: StrMap = [("metadata.name", node.metadata.name.as_str())].into_iter().collect();
    let terms = required.array_at(&["nodeSelectorTerms"]);
    let term_matches = |term: &Value| {
        let (expressions, on_fields) = (term.array_at(&["matchExpressions"]), term.array_at(&["matchFields"]));
        // An empty term matches nothing.
        (!expressions.is_empty() || !on_fields.is_empty())
            && expressions.iter().all(|e| requirement_matches(e, labels))
            && on_fields.iter().all(|f| requirement_matches(f, &fields))
    };
    selected && terms.iter().any(term_matches)
}

/// The tolerations that every daemon pod has.
pub fn daemon_tolerations(host_network: bool) -> Vec<Value> {
    let mut all = vec![
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if host_network {
        all.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    all.into_iter().map(|(key, effect)| json!({"key": key, "operator": "Exists", "effect": effect})).collect()
}

fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|t| t.tolerates(taint))
}

/// Where pods made from `spec` (a template's pod spec) belong.
pub fn placement(spec: &Value, node: &Node) -> Placement {
    let no = Placement { run: false, stay: false };
    let name = spec.str_at(&["nodeName"]);
    if (!name.is_empty() && name != node.metadata.name) || !affinity_matches(spec, node) {
        return no;
    }
    let mut all = spec.array_at(&["tolerations"]).to_vec();
    all.extend(daemon_tolerations(spec["hostNetwork"] == true));
    let tolerations: Vec<Toleration> = all.iter().filter_map(|t| t.to().ok()).collect();
    let blocked = |effects: &[&str]| {
        node.spec.taints.iter().any(|t| effects.contains(&t.effect.as_str()) && !tolerated(t, &tolerations))
    };
    if blocked(&["NoSchedule", "NoExecute"]) {
        return Placement { run: false, stay: !blocked(&["NoExecute"]) };
    }
    Placement { run: true, stay: true }
}

/// Binds a pod to a node by affinity, so that the scheduler places it and accounts for it.
pub fn pin_to_node(pod: &mut Value, node: &str) {
    let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]});
    let path =
        ["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"];
    // Terms are alternatives: other terms would let the pod go elsewhere, and were checked already.
    pod.set_at(&path, Value::Array(vec![term]));
    let mut tolerations = pod.array_at(&["spec", "tolerations"]).to_vec();
    let host_network = pod["spec"]["hostNetwork"] == true;
    for toleration in daemon_tolerations(host_network) {
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    pod.set_at(&["spec", "tolerations"], Value::Array(tolerations));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_run_where_selectors_and_taints_let_them() {
        let node = |taints: Value| -> Node {
            let mut object = json!({"metadata": {"name": "n1", "labels": {"disk": "ssd", "cpus": "8"}}});
            object["spec"]["taints"] = taints;
            object.to().unwrap()
        };
        let affinity = |term: Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [term]}}}})
        };
        let taint = |effect: &str| json!([{"key": "k", "value": "v", "effect": effect}]);
        for (spec, taints, run, stay) in [
            (json!({}), json!([]), true, true),
            (json!({"nodeSelector": {"disk": "ssd"}}), json!([]), true, true),
            (json!({"nodeSelector": {"disk": "hdd"}}), json!([]), false, false),
            (json!({"nodeName": "n2"}), json!([]), false, false),
            (
                affinity(json!({"matchExpressions": [{"key": "cpus", "operator": "Gt", "values": ["4"]}]})),
                json!([]),
                true,
                true,
            ),
            (
                affinity(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]})),
                json!([]),
                false,
                false,
            ),
            (affinity(json!({})), json!([]), false, false),
            (json!({}), taint("NoSchedule"), false, true),
            (json!({}), taint("NoExecute"), false, false),
            (json!({}), taint("PreferNoSchedule"), true, true),
            (json!({"tolerations": [{"operator": "Exists"}]}), taint("NoExecute"), true, true),
            (json!({}), json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]), true, true),
        ] {
            let got = placement(&spec, &node(taints.clone()));
            assert_eq!(got, Placement { run, stay }, "{spec} {taints}");
        }
    }
}
