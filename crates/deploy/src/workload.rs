//! The pod of placement `dedicated`: StatefulSet (or Deployment when there is nothing to keep on a disk), headless
//! Service, disruption budget.

use config::{StoreType, Strings};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::names;
use crate::objects::Release;

pub(crate) fn objects(release: &Release<'_>) -> Vec<Value> {
    let mut objects = Vec::new();
    let stateful = stateful(release);
    if stateful {
        objects.push(headless_service(release));
    }
    objects.push(workload(release, stateful));
    let budget = &release.config.control_plane.advanced.pod_disruption_budget;
    if budget["enabled"] == json!(true) {
        let mut spec = json!({"selector": {"matchLabels": selector(release)}});
        for key in ["minAvailable", "maxUnavailable", "unhealthyPodEvictionPolicy"] {
            if !budget[key].is_null() {
                spec[key] = budget[key].clone();
            }
        }
        objects.push(json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": release.metadata(release.name, &Strings::new(), &Strings::new()),
            "spec": spec,
        }));
    }
    objects
}

fn selector(release: &Release<'_>) -> Value {
    json!({"app": "vcluster", "release": release.name})
}

/// A claim is made for what lives on the pod's disk; a store elsewhere needs none.
fn claim(release: &Release<'_>) -> bool {
    let own_disk = matches!(release.config.store_type(), StoreType::EmbeddedDatabase | StoreType::EmbeddedEtcd);
    let persistence = &release.config.control_plane.stateful_set.persistence;
    persistence.data_volume.is_empty() && persistence.volume_claim.enabled.enabled(own_disk)
}

fn stateful(release: &Release<'_>) -> bool {
    claim(release)
        || release.config.store_type() == StoreType::EmbeddedEtcd
        || !release.config.control_plane.stateful_set.persistence.volume_claim_templates.is_empty()
}

fn headless_service(release: &Release<'_>) -> Value {
    let metadata = &release.config.control_plane.advanced.headless_service;
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": release.metadata(&names::headless_service(release.name), &metadata.labels, &metadata.annotations),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "ports": [{"name": "https", "port": 443, "targetPort": 8443, "protocol": "TCP"}],
            "selector": selector(release),
        },
    })
}

fn workload(release: &Release<'_>, stateful: bool) -> Value {
    let config = &release.config.control_plane.stateful_set;
    let mut spec = json!({
        "replicas": config.high_availability.replicas,
        "selector": {"matchLabels": selector(release)},
        "template": template(release),
    });
    if stateful {
        spec["serviceName"] = json!(names::headless_service(release.name));
        spec["podManagementPolicy"] = json!(config.scheduling.pod_management_policy);
        let volume_claim = &config.persistence.volume_claim;
        spec["persistentVolumeClaimRetentionPolicy"] = json!({"whenDeleted": volume_claim.retention_policy});
        if !config.persistence.volume_claim_templates.is_empty() {
            spec["volumeClaimTemplates"] = json!(config.persistence.volume_claim_templates);
        } else if claim(release) {
            let mut claim = json!({
                "accessModes": volume_claim.access_modes,
                "resources": {"requests": {"storage": volume_claim.size}},
            });
            if !volume_claim.storage_class.is_empty() {
                claim["storageClassName"] = json!(volume_claim.storage_class);
            }
            spec["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": claim}]);
        }
    } else {
        let unavailable = u32::from(config.high_availability.replicas > 1);
        spec["strategy"] =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": unavailable}});
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": if stateful { "StatefulSet" } else { "Deployment" },
        "metadata": release.metadata(release.name, &config.labels, &config.annotations),
        "spec": spec,
    })
}

fn template(release: &Release<'_>) -> Value {
    let config = &release.config.control_plane.stateful_set;
    let mut annotations = config.pods.annotations.clone();
    // A change of the configuration restarts the pod.
    annotations.insert("vClusterConfigHash".into(), config_hash(release));
    let mut labels =
        Strings::from([("app".to_string(), "vcluster".to_string()), ("release".to_string(), release.name.to_string())]);
    labels.extend(config.pods.labels.clone());

    let mut volumes = vec![
        json!({"name": "certs", "emptyDir": {}}),
        json!({"name": "tmp", "emptyDir": {}}),
        json!({"name": "vcluster-config", "secret": {"secretName": names::config_secret(release.name)}}),
    ];
    if !config.persistence.data_volume.is_empty() {
        volumes.extend(config.persistence.data_volume.iter().cloned());
    } else if !claim(release) && config.persistence.volume_claim_templates.is_empty() {
        volumes.push(json!({"name": "data", "emptyDir": {}}));
    }
    volumes.extend(config.persistence.add_volumes.iter().cloned());

    let mut spec = json!({
        "terminationGracePeriodSeconds": 15,
        "serviceAccountName": release.service_account(),
        "enableServiceLinks": config.enable_service_links,
        "volumes": volumes,
    });
    let mut containers = vec![container(release)];
    containers.extend(config.sidecar_containers.iter().cloned());
    spec["containers"] = json!(containers);
    for (key, value) in [
        ("initContainers", json!(config.init_containers)),
        ("nodeSelector", config.scheduling.node_selector.clone()),
        ("affinity", config.scheduling.affinity.clone()),
        ("tolerations", json!(config.scheduling.tolerations)),
        ("topologySpreadConstraints", json!(config.scheduling.topology_spread_constraints)),
        ("priorityClassName", json!(config.scheduling.priority_class_name)),
        ("securityContext", config.security.pod_security_context.clone()),
        ("dnsPolicy", json!(config.dns_policy)),
        ("dnsConfig", config.dns_config.clone().unwrap_or_default()),
        ("hostAliases", json!(config.host_aliases)),
        ("runtimeClassName", json!(config.runtime_class_name)),
    ] {
        set_if_any(&mut spec, key, value);
    }
    json!({"metadata": {"labels": labels, "annotations": annotations}, "spec": spec})
}

fn container(release: &Release<'_>) -> Value {
    let config = &release.config.control_plane.stateful_set;
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut env = vec![
        json!({"name": "VCLUSTER_NAME", "value": release.name}),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
        field("NODE_NAME", "spec.nodeName"),
        field("NODE_IP", "status.hostIP"),
    ];
    env.extend(config.env.iter().cloned());
    let mut mounts = vec![
        json!({"name": "data", "mountPath": "/data"}),
        json!({"name": "certs", "mountPath": "/pki"}),
        json!({"name": "vcluster-config", "mountPath": "/var/lib/vcluster"}),
        json!({"name": "tmp", "mountPath": "/tmp"}),
    ];
    mounts.extend(config.persistence.add_volume_mounts.iter().cloned());
    let args = if config.command.is_empty() && config.args.is_empty() {
        vec!["serve".to_string()]
    } else {
        config.args.clone()
    };
    let mut container = json!({
        "name": "syncer",
        "image": image(release),
        "env": env,
        "volumeMounts": mounts,
        "resources": config.resources,
    });
    for (key, value) in [
        ("command", json!(config.command)),
        ("args", json!(args)),
        ("imagePullPolicy", json!(config.image_pull_policy)),
        ("workingDir", json!(config.working_dir)),
        ("securityContext", config.security.container_security_context.clone()),
    ] {
        set_if_any(&mut container, key, value);
    }
    for (key, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz"), ("startupProbe", "/readyz")] {
        let probe = &config.probes[key];
        if probe["enabled"] == json!(true) {
            let mut rendered = probe.clone();
            rendered.as_object_mut().map(|map| map.remove("enabled"));
            rendered["httpGet"] = json!({"path": path, "port": 8443, "scheme": "HTTPS"});
            container[key] = rendered;
        }
    }
    container
}

/// The image: what is configured, else ours. The chart's own default names vCluster's image, which cannot run Alcove.
fn image(release: &Release<'_>) -> String {
    let registry = &release.config.control_plane.advanced.default_image_registry;
    let configured = &release.config.control_plane.stateful_set.image;
    let is_set = release.config.overrides().pointer("/controlPlane/statefulSet/image").is_some();
    if is_set {
        return configured.reference(registry);
    }
    config::Image { registry: "ghcr.io".into(), repository: "alcove/alcove".into(), tag: release.version.into() }
        .reference(registry)
}

fn config_hash(release: &Release<'_>) -> String {
    let mut values = release.config.values().clone();
    if let Some(private_nodes) = values.get_mut("privateNodes").and_then(Value::as_object_mut) {
        private_nodes.remove("autoNodes");
    }
    Sha256::digest(values.to_string().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn set_if_any(object: &mut Value, key: &str, value: Value) {
    let empty = match &value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if !empty {
        object[key] = value;
    }
}
