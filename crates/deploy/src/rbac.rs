//! The rights of a virtual cluster's control plane on the host: no more than its configuration needs.
//!
//! `docs/rbac.md` lists them by feature; a test compares.

use serde_json::{Value, json};

use crate::names;
use crate::objects::Release;

const ALL: [&str; 7] = ["create", "delete", "patch", "update", "get", "list", "watch"];
const READ: [&str; 3] = ["get", "list", "watch"];
const GATEWAY: &str = "gateway.networking.k8s.io";

pub(crate) fn objects(release: &Release<'_>) -> Vec<Value> {
    let rbac = &release.config.rbac;
    let mut objects = Vec::new();
    if rbac.role.enabled {
        // With a host namespace for every virtual one, the same rights are needed in namespaces that do not exist yet.
        if release.config.sync.to_host.namespaces.enabled {
            let name = names::namespaces_role(release.name, release.namespace);
            objects.extend(role(release, "ClusterRole", &name, role_rules(release)));
        } else {
            objects.extend(role(release, "Role", &names::service_account(release.name), role_rules(release)));
        }
    }
    let rules = cluster_role_rules(release);
    if rbac.cluster_role.enabled.enabled(!rules.is_empty()) {
        let name = names::cluster_role(release.name, release.namespace);
        objects.extend(role(release, "ClusterRole", &name, rules));
    }
    objects
}

/// A role and its binding to the control plane's ServiceAccount.
fn role(release: &Release<'_>, kind: &str, name: &str, rules: Vec<Value>) -> [Value; 2] {
    let none = Default::default();
    let metadata = match kind {
        "Role" => release.metadata(name, &none, &none),
        _ => release.cluster_metadata(name, &none, &none),
    };
    [
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": kind,
            "metadata": metadata,
            "rules": rules,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": format!("{kind}Binding"),
            "metadata": metadata,
            "subjects": [{
                "kind": "ServiceAccount",
                "name": release.service_account(),
                "namespace": release.namespace,
            }],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        }),
    ]
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
        rule(&[""], &["endpoints", "pods/log"], &READ),
        rule(&["", "events.k8s.io"], &["events"], &["create", "get", "list", "watch"]),
    ];
    if to_host.endpoints.enabled {
        rules.push(rule(&[""], &["endpoints"], &["create", "delete", "patch", "update"]));
    }
    if to_host.endpoint_slices.enabled {
        rules.push(rule(&["discovery.k8s.io"], &["endpointslices"], &ALL));
    }
    let replicas = config.control_plane.stateful_set.high_availability.replicas;
    if replicas > 1 || config.control_plane.backing_store.etcd.embedded.enabled {
        rules.push(rule(&["coordination.k8s.io"], &["leases"], &ALL));
    }
    if config.is_on("integrations.metricsServer.enabled") && config.is_on("integrations.metricsServer.pods") {
        rules.push(rule(&["metrics.k8s.io"], &["pods"], &["get", "list"]));
    }
    if to_host.ingresses.enabled {
        rules.push(rule(&["networking.k8s.io"], &["ingresses"], &ALL));
    }
    rules.extend(gateway_rules(release));
    for (enabled, group, resource) in [
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
    if to_host.resource_claims.enabled {
        rules.push(rule(&["resource.k8s.io"], &["resourceclaims/status"], &["patch", "update"]));
    }
    for (key, resource) in &to_host.custom_resources {
        if resource.enabled {
            let (name, group) = resource_of(key);
            rules.push(rule(&[group], &[name], &ALL));
        }
    }
    rules.extend(role.extra_rules.iter().cloned());
    rules
}

/// `plural.group[/version]`.
fn resource_of(key: &str) -> (&str, &str) {
    let key = key.split('/').next().unwrap_or(key);
    key.split_once('.').unwrap_or((key, ""))
}

/// Routes and policies of the Gateway API: keys below `sync.toHost.gatewayApi` and resources.
const ROUTES: [(&str, &str); 6] = [
    ("httpRoutes", "httproutes"),
    ("tlsRoutes", "tlsroutes"),
    ("grpcRoutes", "grpcroutes"),
    ("tcpRoutes", "tcproutes"),
    ("udpRoutes", "udproutes"),
    ("backendTLSPolicies", "backendtlspolicies"),
];

/// Is a kind of the Gateway API copied to the host? The umbrella switch stands for Gateways and HTTPRoutes.
fn gateway_kind(release: &Release<'_>, kind: &str) -> bool {
    let on = |key: &str| release.config.is_on(&format!("sync.toHost.gatewayApi.{key}"));
    on(&format!("{kind}.enabled")) || on("enabled") && matches!(kind, "gateways" | "httpRoutes")
}

fn any_route(release: &Release<'_>) -> bool {
    ROUTES.iter().any(|(key, _)| gateway_kind(release, key))
}

fn gateway_rules(release: &Release<'_>) -> Vec<Value> {
    let mut rules = Vec::new();
    for (key, resource) in [("gateways", "gateways")].into_iter().chain(ROUTES) {
        if gateway_kind(release, key) {
            rules.push(rule(&[GATEWAY], &[resource], &ALL));
        }
    }
    let routes = any_route(release);
    let namespaces = release.config.sync.to_host.namespaces.enabled;
    if release.config.is_on("sync.toHost.gatewayApi.referenceGrants.enabled") || routes && namespaces {
        rules.push(rule(&[GATEWAY], &["referencegrants"], &ALL));
    } else if routes {
        rules.push(rule(&[GATEWAY], &["referencegrants"], &READ));
    }
    rules
}

/// Rules of the ClusterRole; empty when no feature needs one.
fn cluster_role_rules(release: &Release<'_>) -> Vec<Value> {
    let config = release.config;
    let overwrite = &config.rbac.cluster_role.overwrite_rules;
    if !overwrite.is_empty() {
        return overwrite.clone();
    }
    let (to_host, from_host) = (&config.sync.to_host, &config.sync.from_host);
    let mut rules = Vec::new();
    if from_host.nodes.enabled {
        rules.push(rule(&[""], &["nodes", "nodes/status"], &READ));
        let kubelets = &config.networking.advanced.proxy_kubelets;
        if kubelets.by_hostname || kubelets.by_ip {
            rules.push(rule(&[""], &["nodes/metrics", "nodes/stats", "nodes/proxy"], &["get"]));
        }
        if from_host.nodes.sync_back_changes {
            rules.push(rule(&[""], &["nodes", "nodes/status"], &["patch", "update"]));
        }
    }
    let scheduler = config.virtual_scheduler();
    if scheduler {
        // What others use of a node is not there for the tenant's pods.
        rules.push(rule(&[""], &["pods"], &READ));
    }
    // What a scheduler of our own has to know about volumes is switched on with it.
    let on = |key: &str| config.is_on(&format!("sync.fromHost.{key}.enabled"));
    let any_gateway = gateway_kind(release, "gateways") || any_route(release);
    let classes = on("gatewayClasses") || on("gateways") || config.is_on("sync.toHost.gatewayApi.enabled");
    let claims = to_host.resource_claims.enabled || to_host.resource_claim_templates.enabled || on("deviceClasses");
    for (enabled, group, resource, verbs) in [
        // Whether another tenant has a host name of an Ingress already.
        (to_host.ingresses.enabled, "networking.k8s.io", "ingresses", &["list", "watch"][..]),
        (scheduler || on("storageClasses"), "storage.k8s.io", "storageclasses", &READ[..]),
        (scheduler || on("csiNodes"), "storage.k8s.io", "csinodes", &READ[..]),
        (scheduler || on("csiDrivers"), "storage.k8s.io", "csidrivers", &READ[..]),
        (scheduler || on("csiStorageCapacities"), "storage.k8s.io", "csistoragecapacities", &READ[..]),
        (from_host.ingress_classes.enabled, "networking.k8s.io", "ingressclasses", &READ[..]),
        (classes, GATEWAY, "gatewayclasses", &READ[..]),
        (on("gateways"), GATEWAY, "gateways", &READ[..]),
        (from_host.runtime_classes.enabled, "node.k8s.io", "runtimeclasses", &READ[..]),
        (from_host.priority_classes.enabled, "scheduling.k8s.io", "priorityclasses", &READ[..]),
        (claims, "resource.k8s.io", "deviceclasses", &READ[..]),
        (to_host.storage_classes.enabled, "storage.k8s.io", "storageclasses", &ALL[..]),
        (to_host.persistent_volumes.enabled, "", "persistentvolumes", &ALL[..]),
        (to_host.priority_classes.enabled, "scheduling.k8s.io", "priorityclasses", &ALL[..]),
    ] {
        if enabled {
            rules.push(rule(&[group], &[resource], verbs));
        }
    }
    if !config.networking.replicate_services.from_host.is_empty() {
        rules.push(rule(&[""], &["services", "endpoints"], &READ));
    }
    if to_host.namespaces.enabled {
        rules.push(rule(&[""], &["namespaces", "serviceaccounts"], &ALL));
    }
    if config.is_on("integrations.metricsServer.enabled") && config.is_on("integrations.metricsServer.nodes") {
        rules.push(rule(&["metrics.k8s.io"], &["nodes"], &["get", "list"]));
    }
    let custom = !to_host.custom_resources.is_empty() || !from_host.custom_resources.is_empty();
    if custom || any_gateway || on("gatewayClasses") || on("gateways") {
        rules.push(rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], &READ));
    }
    for (kind, import) in [("configmaps", &from_host.config_maps), ("secrets", &from_host.secrets)] {
        if import.enabled {
            rules.extend(import_rules(release, kind, import.mappings.by_name.keys()));
        }
    }
    for (key, resource) in &from_host.custom_resources {
        if resource.enabled {
            let (name, group) = resource_of(key);
            rules.push(rule(&[group], &[name], &READ));
        }
    }
    rules.extend(config.rbac.cluster_role.extra_rules.iter().cloned());
    rules
}

/// Reading named ConfigMaps or Secrets of other namespaces. A watch cannot be limited by name, a get can.
fn import_rules<'a>(release: &Release<'_>, kind: &str, keys: impl Iterator<Item = &'a String>) -> Vec<Value> {
    let (mut namespaces, mut objects) = (Vec::new(), Vec::new());
    let mut all = false;
    for key in keys {
        let (namespace, name) = key.split_once('/').unwrap_or((key, "*"));
        namespaces.push(if namespace.is_empty() { release.namespace } else { namespace });
        match name {
            "*" => all = true,
            name => objects.push(name),
        }
    }
    for list in [&mut namespaces, &mut objects] {
        list.sort_unstable();
        list.dedup();
    }
    let mut named = rule(&[""], &["namespaces"], &READ);
    named["resourceNames"] = json!(namespaces);
    let mut get = rule(&[""], &[kind], &["get"]);
    if !all {
        get["resourceNames"] = json!(objects);
    }
    vec![named, rule(&[""], &[kind], &["list", "watch"]), get]
}
