//! All host objects of one virtual cluster.

use std::collections::BTreeMap;

use base64::Engine;
use config::{Config, Strings};
use serde_json::{Map, Value, json};

use crate::{CREATED_ANNOTATION, PLACEMENT_HUB, PLACEMENT_LABEL, STORE_ANNOTATION, names, rbac, workload};

/// Where the control plane of a virtual cluster runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the process of a hub, beside others.
    Hub,
    /// In a pod of its own.
    Dedicated,
}

/// One virtual cluster to be put on a host.
#[derive(Clone, Debug)]
pub struct Release<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub placement: Placement,
    pub config: &'a Config,
    /// Version of Alcove, for the `chart` label and the default image.
    pub version: &'a str,
}

/// Labels of every object of a release.
pub fn labels(name: &str, version: &str) -> Strings {
    BTreeMap::from([
        ("app".to_string(), "vcluster".to_string()),
        ("chart".to_string(), format!("alcove-{version}")),
        ("release".to_string(), name.to_string()),
        ("heritage".to_string(), "Helm".to_string()),
    ])
}

impl Release<'_> {
    /// `metadata` with the release's labels and the global annotations under the given ones.
    pub(crate) fn metadata(&self, name: &str, more_labels: &Strings, annotations: &Strings) -> Value {
        let mut labels = labels(self.name, self.version);
        labels.extend(more_labels.clone());
        let mut all = self.config.control_plane.advanced.global_metadata.annotations.clone();
        all.extend(annotations.clone());
        let mut metadata = json!({"name": name, "namespace": self.namespace, "labels": labels});
        if !all.is_empty() {
            metadata["annotations"] = json!(all);
        }
        metadata
    }

    /// Name of the ServiceAccount of synced pods.
    pub fn workload_service_account(&self) -> String {
        let name = &self.config.control_plane.advanced.workload_service_account.name;
        if name.is_empty() { names::workload_service_account(self.name) } else { name.clone() }
    }

    /// Name of the ServiceAccount of the control plane.
    pub fn service_account(&self) -> String {
        let name = &self.config.control_plane.advanced.service_account.name;
        if name.is_empty() { names::service_account(self.name) } else { name.clone() }
    }
}

/// The Namespace for a virtual cluster, marked so that `delete` may remove it.
pub fn namespace(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": namespace, "annotations": {(CREATED_ANNOTATION): "true"}},
    })
}

/// All objects of the release in the order in which they should be applied. The config Secret is last in placement hub,
/// because a hub starts when it sees it; the namespace is not among them (see [`namespace`]).
pub fn host_objects(release: &Release<'_>) -> Vec<Value> {
    let mut objects = Vec::new();
    objects.extend(policies(release));
    objects.extend(service_accounts(release));
    objects.extend(rbac::objects(release));
    objects.push(service(release));
    objects.push(config_secret(release));
    if release.placement == Placement::Dedicated {
        objects.extend(workload::objects(release));
    }
    objects
}

/// Secret `vc-config-NAME`.
pub fn config_secret(release: &Release<'_>) -> Value {
    let mut labels = Strings::new();
    if release.placement == Placement::Hub {
        labels.insert(PLACEMENT_LABEL.to_string(), PLACEMENT_HUB.to_string());
    }
    let annotations = Strings::from([(STORE_ANNOTATION.to_string(), release.config.store_type().as_str().to_string())]);
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": release.metadata(&names::config_secret(release.name), &labels, &annotations),
        "type": "Opaque",
        "data": {"config.yaml": base64::engine::general_purpose::STANDARD.encode(release.config.to_yaml())},
    })
}

fn service(release: &Release<'_>) -> Value {
    let config = &release.config.control_plane.service;
    let mut labels = config.labels.clone();
    labels.insert("vcluster.loft.sh/service".into(), "true".into());
    let mut spec = config.spec.as_object().cloned().unwrap_or_default();
    let load_balancer = spec.get("type").and_then(Value::as_str) == Some("LoadBalancer");
    spec.entry("ports").or_insert_with(|| {
        let mut ports = vec![port("https", 443, config.https_node_port)];
        // Fake kubelets answer at the same port; a load balancer would show them to everybody.
        if release.config.networking.advanced.proxy_kubelets.by_hostname && !load_balancer {
            ports.push(port("kubelet", 10250, config.kubelet_node_port));
        }
        json!(ports)
    });
    // A hub's pods are not the cluster's: the hub writes the addresses itself.
    if release.placement == Placement::Dedicated {
        spec.entry("selector").or_insert_with(|| json!({"app": "vcluster", "release": release.name}));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": release.metadata(release.name, &labels, &config.annotations),
        "spec": spec,
    })
}

fn port(name: &str, port: u16, node_port: u16) -> Value {
    let mut value = json!({"name": name, "port": port, "targetPort": 8443, "protocol": "TCP"});
    if node_port != 0 {
        value["nodePort"] = json!(node_port);
    }
    value
}

fn service_accounts(release: &Release<'_>) -> Vec<Value> {
    let advanced = &release.config.control_plane.advanced;
    let mut objects = Vec::new();
    let control_plane = &advanced.service_account;
    if control_plane.enabled {
        objects.push(with_pull_secrets(
            json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": release.metadata(&release.service_account(), &control_plane.labels, &control_plane.annotations),
            }),
            &control_plane.image_pull_secrets,
        ));
    }
    let workload = &advanced.workload_service_account;
    if workload.enabled {
        let secrets = [control_plane.image_pull_secrets.as_slice(), workload.image_pull_secrets.as_slice()].concat();
        objects.push(with_pull_secrets(
            json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": release.metadata(&release.workload_service_account(), &workload.labels, &workload.annotations),
            }),
            &secrets,
        ));
    }
    objects
}

fn with_pull_secrets(mut account: Value, secrets: &[Value]) -> Value {
    if !secrets.is_empty() {
        account["imagePullSecrets"] = json!(secrets);
    }
    account
}

/// ResourceQuota and LimitRange `vc-NAME`. `auto` follows the other one: limits need defaults and the other way round.
fn policies(release: &Release<'_>) -> Vec<Value> {
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
