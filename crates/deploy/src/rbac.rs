//! The rights of a virtual cluster's control plane on the host: no more than its configuration needs.

use serde_json::{Value, json};

use crate::names;
use crate::objects::Release;

const ALL: [&str; 7] = ["create", "delete", "patch", "update", "get", "list", "watch"];

pub(crate) fn objects(release: &Release<'_>) -> Vec<Value> {
    let rbac = &release.config.rbac;
    let subject = json!([{
        "kind": "ServiceAccount",
        "name": release.service_account(),
        "namespace": release.namespace,
    }]);
    let none = Default::default();
    let mut objects = Vec::new();
    if rbac.role.enabled {
        let name = names::service_account(release.name);
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": release.metadata(&name, &none, &none),
            "rules": role_rules(release),
        }));
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": release.metadata(&name, &none, &none),
            "subjects": subject,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        }));
    }
    let rules = cluster_role_rules(release);
    if rbac.cluster_role.enabled.enabled(!rules.is_empty()) {
        let name = names::cluster_role(release.name, release.namespace);
        let cluster_scoped = |kind: &str| {
            let mut metadata = release.metadata(&name, &none, &none);
            metadata.as_object_mut().map(|map| map.remove("namespace"));
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata})
        };
        let mut role = cluster_scoped("ClusterRole");
        role["rules"] = json!(rules);
        let mut binding = cluster_scoped("ClusterRoleBinding");
        binding["subjects"] = subject;
        binding["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
        objects.push(role);
        objects.push(binding);
    }
    objects
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

/// Rules of Role `vc-NAME` in the host namespace.
fn role_rules(release: &Release<'_>) -> Vec<Value> {
    let config = release.config;
    let role = &config.rbac.role;
    if !role.overwrite_rules.is_empty() {
        return role.overwrite_rules.clone();
    }
    let to_host = &config.sync.to_host;
    let mut rules = vec![
        rule(
            &[""],
            &[
                "configmaps",
                "secrets",
                "services",
                "pods",
                "pods/attach",
                "pods/portforward",
                "pods/exec",
                "persistentvolumeclaims",
            ],
            &ALL,
        ),
        rule(&[""], &["pods/status", "pods/ephemeralcontainers", "pods/resize"], &["patch", "update"]),
        rule(&["apps"], &["statefulsets", "replicasets", "deployments"], &["get", "list", "watch", "patch", "update"]),
        rule(&[""], &["endpoints", "pods/log"], &["get", "list", "watch"]),
        rule(&["", "events.k8s.io"], &["events"], &["create", "get", "list", "watch"]),
    ];
    if to_host.endpoints.enabled {
        rules.push(rule(&[""], &["endpoints"], &["create", "delete", "patch", "update"]));
    }
    if to_host.endpoint_slices.enabled {
        rules.push(rule(&["discovery.k8s.io"], &["endpointslices"], &ALL));
    }
    if config.control_plane.stateful_set.high_availability.replicas > 1 {
        rules.push(rule(&["coordination.k8s.io"], &["leases"], &ALL));
    }
    for (enabled, group, resource) in [
        (to_host.ingresses.enabled, "networking.k8s.io", "ingresses"),
        (to_host.network_policies.enabled, "networking.k8s.io", "networkpolicies"),
        (to_host.service_accounts.enabled, "", "serviceaccounts"),
        (to_host.pod_disruption_budgets.enabled, "policy", "poddisruptionbudgets"),
        (to_host.resource_claims.enabled, "resource.k8s.io", "resourceclaims"),
        (to_host.resource_claim_templates.enabled, "resource.k8s.io", "resourceclaimtemplates"),
    ] {
        if enabled {
            rules.push(rule(&[group], &[resource], &ALL));
        }
    }
    rules.extend(role.extra_rules.iter().cloned());
    rules
}

/// Rules of the ClusterRole; empty when no feature needs one.
fn cluster_role_rules(release: &Release<'_>) -> Vec<Value> {
    let config = release.config;
    let overwrite = &config.rbac.cluster_role.overwrite_rules;
    if !overwrite.is_empty() {
        return overwrite.clone();
    }
    let read = ["get", "list", "watch"];
    let (to_host, from_host) = (&config.sync.to_host, &config.sync.from_host);
    let mut rules = Vec::new();
    if from_host.nodes.enabled {
        rules.push(rule(&[""], &["pods", "nodes", "nodes/status"], &read));
        rules.push(rule(&[""], &["nodes/metrics", "nodes/stats", "nodes/proxy"], &["get"]));
        if from_host.nodes.sync_back_changes {
            rules.push(rule(&[""], &["nodes", "nodes/status"], &["patch", "update"]));
        }
    }
    let on = |switch: config::Switch| switch.enabled(false);
    for (enabled, group, resource, verbs) in [
        (on(from_host.storage_classes.enabled), "storage.k8s.io", "storageclasses", &read[..]),
        (on(from_host.csi_nodes.enabled), "storage.k8s.io", "csinodes", &read[..]),
        (on(from_host.csi_drivers.enabled), "storage.k8s.io", "csidrivers", &read[..]),
        (on(from_host.csi_storage_capacities.enabled), "storage.k8s.io", "csistoragecapacities", &read[..]),
        (from_host.ingress_classes.enabled, "networking.k8s.io", "ingressclasses", &read[..]),
        (from_host.runtime_classes.enabled, "node.k8s.io", "runtimeclasses", &read[..]),
        (from_host.priority_classes.enabled, "scheduling.k8s.io", "priorityclasses", &read[..]),
        (to_host.storage_classes.enabled, "storage.k8s.io", "storageclasses", &ALL[..]),
        (to_host.persistent_volumes.enabled, "", "persistentvolumes", &ALL[..]),
        (to_host.priority_classes.enabled, "scheduling.k8s.io", "priorityclasses", &ALL[..]),
    ] {
        if enabled {
            rules.push(rule(&[group], &[resource], verbs));
        }
    }
    rules.extend(config.rbac.cluster_role.extra_rules.iter().cloned());
    rules
}
