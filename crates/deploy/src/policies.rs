//! What limits a virtual cluster on its host: quota, limit range, network policies.
//!
//! Invariants:
//! - The cloud's metadata service (169.254.0.0/16) is out of reach of workloads while all public addresses are allowed.
//! - The host's API and DNS stay in reach of the control plane, and the virtual API and DNS of workloads.

use serde_json::{Map, Value, json};

use crate::objects::{Placement, Release};
use crate::{HUB_APP, names};

/// Link-local addresses: what clouds hand credentials out on.
const LINK_LOCAL: &str = "169.254.0.0/16";
/// Where NodeLocal DNSCache listens on every node.
const NODE_LOCAL_DNS: &str = "169.254.20.10/32";

pub(crate) fn objects(release: &Release<'_>) -> Vec<Value> {
    let mut objects = limits(release);
    objects.extend(network_policies(release));
    objects
}

/// ResourceQuota and LimitRange `vc-NAME`. `auto` follows the other one: limits need defaults and the other way round.
fn limits(release: &Release<'_>) -> Vec<Value> {
    let policies = &release.config.policies;
    let quota = &policies.resource_quota;
    let range = &policies.limit_range;
    let mut objects = Vec::new();
    let name = names::service_account(release.name);
    if quota.enabled.enabled(range.enabled == config::Switch::On) {
        let mut spec = json!({"hard": quantities(&quota.quota)});
        if quota.scope_selector["matchExpressions"].as_array().is_some_and(|list| !list.is_empty()) {
            spec["scopeSelector"] = quota.scope_selector.clone();
        }
        if !quota.scopes.is_empty() {
            spec["scopes"] = json!(quota.scopes);
        }
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": release.metadata(&name, &quota.labels, &quota.annotations),
            "spec": spec,
        }));
    }
    if range.enabled.enabled(quota.enabled == config::Switch::On) {
        let mut limit = Map::from_iter([("type".to_string(), json!("Container"))]);
        for (key, values) in [
            ("default", &range.default),
            ("defaultRequest", &range.default_request),
            ("min", &range.min),
            ("max", &range.max),
        ] {
            let values = quantities(values);
            if !values.is_empty() {
                limit.insert(key.to_string(), Value::Object(values));
            }
        }
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": release.metadata(&name, &range.labels, &range.annotations),
            "spec": {"limits": [limit]},
        }));
    }
    objects
}

/// Quantities may be written as numbers; objects want strings.
fn quantities(value: &Value) -> Map<String, Value> {
    let Value::Object(map) = value else { return Map::new() };
    map.iter()
        .map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            (name.clone(), Value::String(text))
        })
        .collect()
}

fn network_policies(release: &Release<'_>) -> Vec<Value> {
    if !release.config.policies.network_policy.enabled {
        return Vec::new();
    }
    let mut objects = vec![workload_policy(release)];
    // In a hub the pods that serve the cluster are the hub's, in another namespace.
    if release.placement == Placement::Dedicated {
        objects.push(control_plane_policy(release));
    }
    if release.config.dns_mode() == config::DnsMode::Deployed {
        objects.push(dns_policy(release));
    }
    if release.placement == Placement::Dedicated {
        objects.push(snapshot_policy(release));
    }
    objects
}

fn policy(release: &Release<'_>, name: String, pods: Value, egress: Vec<Value>, ingress: Vec<Value>) -> Value {
    let config = &release.config.policies.network_policy;
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": release.metadata(&name, &config.labels, &config.annotations),
        "spec": {
            "podSelector": {"matchLabels": pods},
            "policyTypes": ["Egress", "Ingress"],
            "egress": egress,
            "ingress": ingress,
        },
    })
}

/// Labels of the synced pods of the release.
fn workloads(release: &Release<'_>) -> Value {
    json!({"vcluster.loft.sh/managed-by": release.name})
}

fn pods(labels: Value) -> Value {
    json!({"podSelector": {"matchLabels": labels}})
}

/// The pods that serve the cluster's API.
fn control_plane(release: &Release<'_>) -> Value {
    match release.placement {
        Placement::Dedicated => pods(json!({"release": release.name})),
        // A tenant's pod may carry any label of its own, but is always marked as synced.
        Placement::Hub => json!({
            "namespaceSelector": {},
            "podSelector": {
                "matchLabels": {"app": HUB_APP},
                "matchExpressions": [{"key": "vcluster.loft.sh/managed-by", "operator": "DoesNotExist"}],
            },
        }),
    }
}

fn ports(ports: &[(u16, &str)]) -> Value {
    ports.iter().map(|(port, protocol)| json!({"port": port, "protocol": protocol})).collect()
}

fn host_dns() -> Vec<Value> {
    vec![
        json!({"to": [{
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        }]}),
        json!({"ports": ports(&[(53, "UDP"), (53, "TCP")]), "to": [{"ipBlock": {"cidr": NODE_LOCAL_DNS}}]}),
    ]
}

/// By port alone: some network plugins do not match nodes by address, and the API may run on any.
fn host_api() -> Value {
    json!({"ports": ports(&[(443, "TCP"), (8443, "TCP"), (6443, "TCP")])})
}

fn workload_policy(release: &Release<'_>) -> Value {
    let config = &release.config.policies.network_policy.workload;
    let mut to_control_plane = json!({"to": [control_plane(release)]});
    if release.placement == Placement::Dedicated {
        to_control_plane["ports"] = ports(&[(1053, "UDP"), (1053, "TCP"), (release.port(), "TCP")]);
    }
    let mut egress = vec![to_control_plane, json!({"to": [pods(workloads(release))]})];
    let public = &config.public_egress;
    if public.enabled {
        let mut except = public.except.clone();
        if public.cidr == "0.0.0.0/0" && !except.iter().any(|range| range == LINK_LOCAL) {
            except.push(LINK_LOCAL.to_string());
        }
        let mut block = json!({"cidr": public.cidr});
        if !except.is_empty() {
            block["except"] = json!(except);
        }
        egress.push(json!({"to": [{"ipBlock": block}]}));
    }
    egress.extend(config.egress.iter().cloned());
    let mut ingress = vec![json!({"from": [control_plane(release)]}), json!({"from": [pods(workloads(release))]})];
    ingress.extend(config.ingress.iter().cloned());
    policy(release, names::network_policy("work", release.name), workloads(release), egress, ingress)
}

fn control_plane_policy(release: &Release<'_>) -> Value {
    let config = &release.config.policies.network_policy.control_plane;
    let own = json!({"release": release.name});
    let mut egress = host_dns();
    egress.extend([host_api(), json!({"to": [pods(own.clone())]}), json!({"to": [pods(workloads(release))]})]);
    egress.extend(config.egress.iter().cloned());
    let mut ingress = vec![
        // Users, ingress controllers and load balancers come from anywhere.
        json!({"ports": ports(&[(release.port(), "TCP")])}),
        json!({"from": [pods(own.clone())]}),
        json!({
            "ports": ports(&[(1053, "UDP"), (1053, "TCP"), (release.port(), "TCP")]),
            "from": [pods(workloads(release))],
        }),
        json!({"from": [pods(json!({"app": "vcluster-snapshot"}))]}),
    ];
    ingress.extend(config.ingress.iter().cloned());
    policy(release, names::network_policy("cp", release.name), own, egress, ingress)
}

/// Of the CoreDNS pods that run as workloads of the virtual cluster.
fn dns_policy(release: &Release<'_>) -> Value {
    let mut selector = workloads(release);
    selector["k8s-app"] = json!("vcluster-kube-dns");
    let mut egress = host_dns();
    let mut to_control_plane = json!({"to": [control_plane(release)]});
    if release.placement == Placement::Dedicated {
        to_control_plane["ports"] = ports(&[(release.port(), "TCP")]);
    }
    egress.push(to_control_plane);
    let ingress = vec![json!({
        "ports": ports(&[(1053, "TCP"), (1053, "UDP")]),
        "from": [pods(workloads(release))],
    })];
    policy(release, names::network_policy("kube-dns", release.name), selector, egress, ingress)
}

fn snapshot_policy(release: &Release<'_>) -> Value {
    let mut egress = vec![json!({"to": [pods(json!({"release": release.name}))]})];
    egress.extend(host_dns());
    egress.push(host_api());
    let name = names::network_policy("snapshot", release.name);
    policy(release, name, json!({"app": "vcluster-snapshot"}), egress, Vec::new())
}
