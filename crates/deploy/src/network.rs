//! How the API of a virtual cluster is reached: Services, Ingress, TLSRoute, and what scrapes its metrics.

use config::{StoreType, Strings};
use serde_json::{Value, json};

use crate::names;
use crate::objects::{Placement, Release, RenderError, templated};

/// Service `NAME`: where pods and users reach the API, and the owner of all that is synced.
pub(crate) fn service(release: &Release<'_>) -> Value {
    let config = &release.config.control_plane.service;
    let mut labels = config.labels.clone();
    labels.insert("vcluster.loft.sh/service".into(), "true".into());
    let mut spec = config.spec.as_object().cloned().unwrap_or_default();
    let load_balancer = spec.get("type").and_then(Value::as_str) == Some("LoadBalancer");
    spec.entry("ports").or_insert_with(|| {
        let mut ports = vec![port(release, "https", 443, config.https_node_port)];
        // Fake kubelets answer at the same port; a load balancer would show them to everybody.
        if release.config.networking.advanced.proxy_kubelets.by_hostname && !load_balancer {
            ports.push(port(release, "kubelet", 10250, config.kubelet_node_port));
        }
        json!(ports)
    });
    // A hub's pods are not the cluster's: the hub writes the addresses itself.
    if release.placement == Placement::Dedicated {
        spec.entry("selector").or_insert_with(|| selector(release));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": release.metadata(release.name, &labels, &config.annotations),
        "spec": spec,
    })
}

/// What selects the control plane's pods.
pub(crate) fn selector(release: &Release<'_>) -> Value {
    json!({"app": "vcluster", "release": release.name})
}

fn port(release: &Release<'_>, name: &str, port: u16, node_port: u16) -> Value {
    let mut value = json!({"name": name, "port": port, "targetPort": release.port(), "protocol": "TCP"});
    if node_port != 0 {
        value["nodePort"] = json!(node_port);
    }
    value
}

/// Service `NAME-headless` of a StatefulSet.
pub(crate) fn headless_service(release: &Release<'_>) -> Value {
    let metadata = &release.config.control_plane.advanced.headless_service;
    let mut ports = vec![port(release, "https", 443, 0)];
    if release.config.store_type() == StoreType::EmbeddedEtcd {
        for (name, number) in [("etcd", 2379), ("peer", 2380)] {
            ports.push(json!({"name": name, "port": number, "targetPort": number, "protocol": "TCP"}));
        }
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": release.metadata(&names::headless_service(release.name), &metadata.labels, &metadata.annotations),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "ports": ports,
            "selector": selector(release),
        },
    })
}

/// Ingress and TLSRoute `NAME`, when they are asked for.
pub(crate) fn routes(release: &Release<'_>) -> Result<Vec<Value>, RenderError> {
    let mut objects = Vec::new();
    let ingress = &release.config.control_plane.ingress;
    if ingress.enabled {
        let mut spec = templated(release, "controlPlane.ingress.spec", &ingress.spec)?;
        if !spec.is_object() {
            spec = json!({});
        }
        if is_empty(&spec["rules"]) {
            spec["rules"] = json!([{
                "host": ingress.host,
                "http": {"paths": [{
                    "path": "/",
                    "pathType": ingress.path_type,
                    "backend": {"service": {"name": release.name, "port": {"name": "https"}}},
                }]},
            }]);
        }
        objects.push(json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": release.metadata(release.name, &ingress.labels, &ingress.annotations),
            "spec": spec,
        }));
    }
    let route = &release.config.control_plane.tls_route;
    if route.enabled {
        let mut spec = templated(release, "controlPlane.tlsRoute.spec", &route.spec)?;
        if !spec.is_object() {
            spec = json!({});
        }
        if is_empty(&spec["parentRefs"]) && !route.parent_refs.is_empty() {
            spec["parentRefs"] = json!(route.parent_refs);
        }
        if is_empty(&spec["hostnames"]) {
            spec["hostnames"] = json!([route.host]);
        }
        if is_empty(&spec["rules"]) {
            spec["rules"] = json!([{"backendRefs": [{"name": release.name, "port": 443}]}]);
        }
        objects.push(json!({
            "apiVersion": route.api_version,
            "kind": "TLSRoute",
            "metadata": release.metadata(release.name, &route.labels, &route.annotations),
            "spec": spec,
        }));
    }
    Ok(objects)
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// ServiceMonitor `vc-NAME`: all parts answer at one path of the API, with the administrator's certificate.
pub(crate) fn service_monitor(release: &Release<'_>) -> Option<Value> {
    let config = &release.config.control_plane.service_monitor;
    if !config.enabled {
        return None;
    }
    let mut metadata = release.metadata(&names::service_account(release.name), &config.labels, &config.annotations);
    // Prometheus is often told to look for a release of its own.
    if let Some(label) = config.labels.get("release") {
        metadata["labels"]["release"] = json!(label);
    }
    let mut labels = crate::labels(release.name, release.version);
    labels.insert("vcluster.loft.sh/service".into(), "true".into());
    labels.remove("app.kubernetes.io/managed-by");
    let secret = names::kubeconfig_secret(release.name);
    let key = |key: &str| json!({"name": secret, "key": key});
    Some(json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": labels},
            "endpoints": [{
                "interval": "30s",
                "port": "https",
                "path": "/metrics",
                "scheme": "https",
                "relabelings": [{"targetLabel": "endpoint", "replacement": "apiserver"}],
                "tlsConfig": {
                    "ca": {"secret": key("certificate-authority")},
                    "cert": {"secret": key("client-certificate")},
                    "keySecret": key("client-key"),
                    "serverName": "localhost",
                },
            }],
        },
    }))
}

/// PodDisruptionBudget `NAME`.
pub(crate) fn disruption_budget(release: &Release<'_>) -> Option<Value> {
    let budget = &release.config.control_plane.advanced.pod_disruption_budget;
    if budget["enabled"] != json!(true) {
        return None;
    }
    let mut spec = json!({"selector": {"matchLabels": selector(release)}});
    // One of the two; an object with both is refused.
    let bound = ["minAvailable", "maxUnavailable"].into_iter().find(|key| !budget[*key].is_null());
    for key in bound.into_iter().chain(["unhealthyPodEvictionPolicy"]) {
        if !budget[key].is_null() && budget[key] != json!("") {
            spec[key] = budget[key].clone();
        }
    }
    Some(json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": release.metadata(release.name, &Strings::new(), &Strings::new()),
        "spec": spec,
    }))
}
