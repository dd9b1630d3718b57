//! The pod of placement `dedicated`: a StatefulSet, or a Deployment when there is nothing to keep on a disk.

use config::{StoreType, VolumeClaim};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::names;
use crate::network;
use crate::objects::{Release, RenderError, templated};

pub(crate) fn objects(release: &Release<'_>) -> Result<Vec<Value>, RenderError> {
    let mut objects = Vec::new();
    let stateful = stateful(release);
    if stateful {
        objects.push(network::headless_service(release));
    }
    objects.push(workload(release, stateful)?);
    objects.extend(network::disruption_budget(release));
    objects.extend(network::service_monitor(release));
    Ok(objects)
}

/// Is the data of the cluster on the pod's own disk?
fn own_disk(release: &Release<'_>) -> bool {
    matches!(release.config.store_type(), StoreType::EmbeddedDatabase | StoreType::EmbeddedEtcd)
}

/// A claim is made for what lives on the pod's disk; a store elsewhere needs none.
fn claim(release: &Release<'_>) -> bool {
    let persistence = &release.config.control_plane.stateful_set.persistence;
    !persistence.volume_claim_templates.is_empty() || persistence.volume_claim.enabled.enabled(own_disk(release))
}

fn stateful(release: &Release<'_>) -> bool {
    claim(release) || release.config.store_type() == StoreType::EmbeddedEtcd
}

fn claim_templates(release: &Release<'_>) -> Vec<Value> {
    let persistence = &release.config.control_plane.stateful_set.persistence;
    if !persistence.volume_claim_templates.is_empty() {
        return persistence.volume_claim_templates.clone();
    }
    // A volume that the user brings takes the place of the claim.
    if !claim(release) || !persistence.data_volume.is_empty() {
        return Vec::new();
    }
    vec![claim_of(&persistence.volume_claim)]
}

/// The template of claim `data`.
pub(crate) fn claim_of(volume_claim: &VolumeClaim) -> Value {
    let mut spec = json!({
        "accessModes": volume_claim.access_modes,
        "resources": {"requests": {"storage": volume_claim.size}},
    });
    if !volume_claim.storage_class.is_empty() {
        spec["storageClassName"] = json!(volume_claim.storage_class);
    }
    json!({"metadata": {"name": "data"}, "spec": spec})
}

fn workload(release: &Release<'_>, stateful: bool) -> Result<Value, RenderError> {
    let config = &release.config.control_plane.stateful_set;
    let mut spec = json!({
        "replicas": config.high_availability.replicas,
        "selector": {"matchLabels": network::selector(release)},
        "template": template(release)?,
    });
    if stateful {
        spec["serviceName"] = json!(names::headless_service(release.name));
        spec["podManagementPolicy"] = json!(config.scheduling.pod_management_policy);
        spec["persistentVolumeClaimRetentionPolicy"] =
            json!({"whenDeleted": config.persistence.volume_claim.retention_policy});
        let templates = claim_templates(release);
        if !templates.is_empty() {
            spec["volumeClaimTemplates"] = json!(templates);
        }
    } else if own_disk(release) && !config.persistence.data_volume.is_empty() {
        // Two pods must not open one database: the old one goes first.
        spec["strategy"] = json!({"type": "Recreate"});
    } else {
        let unavailable = u32::from(config.high_availability.replicas > 1);
        spec["strategy"] =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": unavailable}});
    }
    Ok(json!({
        "apiVersion": "apps/v1",
        "kind": if stateful { "StatefulSet" } else { "Deployment" },
        "metadata": release.metadata(release.name, &config.labels, &config.annotations),
        "spec": spec,
    }))
}

fn template(release: &Release<'_>) -> Result<Value, RenderError> {
    let config = &release.config.control_plane.stateful_set;
    let mut annotations = config.pods.annotations.clone();
    // A change of the configuration restarts the pod.
    annotations.insert("vClusterConfigHash".into(), config_hash(release));
    let mut labels = config.pods.labels.clone();
    labels.insert("app".into(), "vcluster".into());
    labels.insert("release".into(), release.name.into());

    let persistence = &config.persistence;
    let mut volumes = vec![
        json!({"name": "certs", "emptyDir": {}}),
        json!({"name": "tmp", "emptyDir": {}}),
        json!({"name": "vcluster-config", "secret": {"secretName": names::config_secret(release.name)}}),
    ];
    if upstream(release) {
        volumes.extend(persistence.binaries_volume.iter().cloned());
    }
    if !persistence.data_volume.is_empty() {
        volumes.extend(persistence.data_volume.iter().cloned());
    } else if claim_templates(release).is_empty() {
        volumes.push(json!({"name": "data", "emptyDir": {}}));
    }
    let path = "controlPlane.statefulSet.persistence.addVolumes";
    for volume in &persistence.add_volumes {
        volumes.push(templated(release, path, volume)?);
    }

    let mut init_containers: Vec<Value> = Vec::new();
    if upstream(release) {
        init_containers.push(binaries_container(release));
    }
    init_containers.extend(config.init_containers.iter().cloned());
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
        ("initContainers", json!(init_containers)),
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
    Ok(json!({"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}))
}

/// Does the pod run upstream's programs, which come in an image of their own?
fn upstream(release: &Release<'_>) -> bool {
    let control_plane = &release.config.control_plane;
    control_plane.distro.k8s.enabled
        || control_plane.backing_store.etcd.embedded.enabled
        || !release.config.experimental.deploy.vcluster.helm.is_empty()
}

/// Copies upstream's binaries to where the control plane starts them.
fn binaries_container(release: &Release<'_>) -> Value {
    let config = release.config;
    let distro = |key: &str| config.at("controlPlane.distro.k8s").map(|k8s| k8s[key].clone()).unwrap_or_default();
    let mut image: config::Image = serde_json::from_value(distro("image")).unwrap_or_default();
    let version = &config.control_plane.distro.k8s.version;
    if !version.is_empty() {
        image.tag.clone_from(version);
    }
    let mut container = json!({
        "name": "kubernetes",
        "image": image.reference(&config.control_plane.advanced.default_image_registry),
        "command": ["cp"],
        "args": ["-r", "/kubernetes/.", "/binaries/"],
        "volumeMounts": [{"name": "binaries", "mountPath": "/binaries"}],
    });
    let mut security = config.control_plane.stateful_set.security.container_security_context.clone();
    if distro("securityContext").as_object().is_some_and(|map| !map.is_empty()) {
        security = distro("securityContext");
    }
    for (key, value) in [
        ("imagePullPolicy", distro("imagePullPolicy")),
        ("securityContext", security),
        ("resources", distro("resources")),
    ] {
        set_if_any(&mut container, key, value);
    }
    container
}

fn container(release: &Release<'_>) -> Value {
    let config = &release.config.control_plane.stateful_set;
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let encoding = release.config.at("logging.encoding").and_then(Value::as_str).filter(|word| !word.is_empty());
    let mut env = vec![
        json!({"name": "VCLUSTER_NAME", "value": release.name}),
        json!({"name": "LOFT_LOG_ENCODING", "value": encoding.unwrap_or("console")}),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
        field("NODE_NAME", "spec.nodeName"),
        field("NODE_IP", "status.hostIP"),
        json!({"name": "ALCOVE_IMAGE", "value": image(release)}),
    ];
    env.extend(config.env.iter().cloned());
    let mut mounts = vec![
        json!({"name": "data", "mountPath": "/data"}),
        json!({"name": "certs", "mountPath": "/pki"}),
        json!({"name": "vcluster-config", "mountPath": "/var/lib/vcluster"}),
        json!({"name": "tmp", "mountPath": "/tmp"}),
    ];
    if upstream(release) {
        let more = release.config.at("controlPlane.distro.k8s.env").and_then(Value::as_array);
        env.extend(more.into_iter().flatten().cloned());
        mounts.push(json!({"name": "binaries", "mountPath": "/binaries"}));
    }
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
        "ports": [{"name": "https", "containerPort": release.port(), "protocol": "TCP"}],
        // The last lines of the log say why it ended: `alcove create` repeats them.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    for (key, value) in [
        ("command", json!(config.command)),
        ("args", json!(args)),
        ("imagePullPolicy", json!(config.image_pull_policy)),
        ("workingDir", json!(config.working_dir)),
        ("securityContext", config.security.container_security_context.clone()),
        ("resources", config.resources.clone()),
    ] {
        set_if_any(&mut container, key, value);
    }
    for (key, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz"), ("startupProbe", "/readyz")] {
        let probe = &config.probes[key];
        if probe["enabled"] == json!(true) {
            let mut rendered = probe.clone();
            rendered.as_object_mut().map(|map| map.remove("enabled"));
            rendered["httpGet"] = json!({"path": path, "port": release.port(), "scheme": "HTTPS"});
            container[key] = rendered;
        }
    }
    container
}

/// The image as configured; without a tag, of this version.
pub(crate) fn image(release: &Release<'_>) -> String {
    let mut image = release.config.control_plane.stateful_set.image.clone();
    if image.tag.is_empty() {
        image.tag = release.version.into();
    }
    image.reference(&release.config.control_plane.advanced.default_image_registry)
}

fn config_hash(release: &Release<'_>) -> String {
    Sha256::digest(release.config.canonical().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sets a key unless the value is empty.
pub(crate) fn set_if_any(object: &mut Value, key: &str, value: Value) {
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
