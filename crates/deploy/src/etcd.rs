//! `controlPlane.backingStore.etcd.deploy`: an etcd of the cluster's own, in pods beside it, with either placement.
//!
//! Its certificates are in Secret `NAME-certs`, which the control plane writes: the pods wait for it. Members find each
//! other by the headless Service, also before they are ready.

use config::{Image, Switch};
use serde_json::{Value, json};

use crate::names;
use crate::objects::Release;
use crate::workload::{claim_of, set_if_any};

/// Label `app` of the pods and their objects.
pub(crate) const APP: &str = "vcluster-etcd";
/// Where the pods find their certificates.
const CERTIFICATES: &str = "/run/config/pki";

pub(crate) fn objects(release: &Release<'_>) -> Vec<Value> {
    let etcd = &release.config.control_plane.backing_store.etcd.deploy;
    if !release.config.has_deployed_etcd() {
        return Vec::new();
    }
    let name = names::etcd_headless(release.name);
    let mut objects = vec![service(release, &name, true, &etcd.headless_service.annotations)];
    if etcd.service.enabled {
        let name = names::etcd(release.name);
        objects.push(service(release, &name, false, &etcd.service.annotations));
    }
    if etcd.stateful_set.enabled {
        objects.push(stateful_set(release));
    }
    objects
}

fn metadata(release: &Release<'_>, name: &str, labels: &config::Strings, annotations: &config::Strings) -> Value {
    let mut metadata = release.metadata(name, labels, annotations);
    metadata["labels"]["app"] = json!(APP);
    metadata
}

fn selector(release: &Release<'_>) -> Value {
    json!({"app": APP, "release": release.name})
}

fn service(release: &Release<'_>, name: &str, headless: bool, annotations: &config::Strings) -> Value {
    let ports = [("etcd", 2379), ("peer", 2380)]
        .map(|(name, port)| json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"}));
    let mut spec = json!({"ports": ports, "selector": selector(release)});
    if headless {
        spec["clusterIP"] = json!("None");
        spec["publishNotReadyAddresses"] = json!(true);
    } else {
        spec["type"] = json!("ClusterIP");
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(release, name, &config::Strings::new(), annotations),
        "spec": spec,
    })
}

/// Not two members on one node, and not all in one zone, when it can be helped.
fn apart(release: &Release<'_>) -> Value {
    let members = json!({"matchExpressions": [
        {"key": "app", "operator": "In", "values": [APP]},
        {"key": "release", "operator": "In", "values": [release.name]},
    ]});
    let term = |weight: u32, key: &str| json!({"weight": weight, "podAffinityTerm": {"labelSelector": members, "topologyKey": key}});
    json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        term(100, "kubernetes.io/hostname"),
        term(50, "topology.kubernetes.io/zone"),
    ]}})
}

/// The flags that every member of a cluster's own etcd has, wherever it runs. `file` tells where a certificate or key is,
/// `snapshot_count` after how many writes a member makes a snapshot of its own.
pub fn member_flags(file: impl Fn(&str) -> String, snapshot_count: u64) -> [(&'static str, String); 11] {
    [
        ("initial-cluster-state", "new".to_string()),
        ("client-cert-auth", "true".to_string()),
        ("cert-file", file("etcd-server.crt")),
        ("key-file", file("etcd-server.key")),
        ("trusted-ca-file", file("etcd-ca.crt")),
        ("peer-client-cert-auth", "true".to_string()),
        ("peer-cert-file", file("etcd-peer.crt")),
        ("peer-key-file", file("etcd-peer.key")),
        ("peer-trusted-ca-file", file("etcd-ca.crt")),
        ("snapshot-count", snapshot_count.to_string()),
        // The largest object of the API with its headers is larger than what etcd takes by default.
        ("max-request-bytes", "8388608".to_string()),
    ]
}

fn command(release: &Release<'_>) -> Vec<String> {
    let set = &release.config.control_plane.backing_store.etcd.deploy.stateful_set;
    let (name, domain) = (release.name, format!("{}.{}", names::etcd_headless(release.name), release.namespace));
    let member = |index| format!("{name}-etcd-{index}=https://{name}-etcd-{index}.{domain}:2380");
    let members: Vec<String> = (0..set.high_availability.replicas).map(member).collect();
    let flags = [
        ("name", "$(NAME)".to_string()),
        ("data-dir", "/var/lib/etcd".to_string()),
        ("listen-client-urls", "https://0.0.0.0:2379".to_string()),
        ("advertise-client-urls", format!("https://$(NAME).{domain}:2379")),
        ("listen-peer-urls", "https://0.0.0.0:2380".to_string()),
        ("initial-advertise-peer-urls", format!("https://$(NAME).{domain}:2380")),
        ("listen-metrics-urls", "http://0.0.0.0:2381".to_string()),
        ("initial-cluster", members.join(",")),
        ("initial-cluster-token", name.to_string()),
    ];
    let flags = flags.into_iter().chain(member_flags(|name| format!("{CERTIFICATES}/{name}"), 10_000));
    let flags = flags.map(|(flag, value)| format!("--{flag}={value}"));
    std::iter::once("etcd".to_string()).chain(flags).chain(set.extra_args.iter().cloned()).collect()
}

fn image(release: &Release<'_>, image: &Image) -> String {
    image.reference(&release.config.control_plane.advanced.default_image_registry)
}

fn stateful_set(release: &Release<'_>) -> Value {
    let set = &release.config.control_plane.backing_store.etcd.deploy.stateful_set;
    let probe = |path: &str, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": 2381, "scheme": "HTTP"},
            "initialDelaySeconds": if path == "/livez" { 10 } else { 0 },
            "timeoutSeconds": 15,
            "periodSeconds": if path == "/livez" { 10 } else { 2 },
            "successThreshold": 1,
            "failureThreshold": failures,
        })
    };
    let mut env = vec![json!({"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})];
    env.extend(set.env.iter().cloned());
    let mut mounts = vec![
        json!({"name": "data", "mountPath": "/var/lib/etcd"}),
        json!({"name": "certs", "mountPath": CERTIFICATES, "readOnly": true}),
    ];
    mounts.extend(set.persistence.add_volume_mounts.iter().cloned());
    let mut container = json!({
        "name": "etcd",
        "image": image(release, &set.image),
        "command": command(release),
        "env": env,
        "volumeMounts": mounts,
        "livenessProbe": probe("/livez", 8),
        "startupProbe": probe("/readyz", 120),
    });
    for (key, value) in [
        ("imagePullPolicy", json!(set.image_pull_policy)),
        ("securityContext", set.security.container_security_context.clone()),
        ("resources", set.resources.clone()),
    ] {
        set_if_any(&mut container, key, value);
    }

    let templates = claim_templates(release);
    let mut volumes = vec![json!({"name": "certs", "secret": {"secretName": names::certs_secret(release.name)}})];
    volumes.extend(set.persistence.add_volumes.iter().cloned());
    if templates.is_empty() {
        volumes.push(json!({"name": "data", "emptyDir": {}}));
    }
    let mut pod = json!({
        "terminationGracePeriodSeconds": 10,
        "automountServiceAccountToken": false,
        "serviceAccountName": release.service_account(),
        "enableServiceLinks": set.enable_service_links,
        "volumes": volumes,
        "containers": [container],
        "affinity": apart(release),
    });
    let scheduling = &set.scheduling;
    for (key, value) in [
        ("affinity", scheduling.affinity.clone()),
        ("nodeSelector", scheduling.node_selector.clone()),
        ("tolerations", json!(scheduling.tolerations)),
        ("topologySpreadConstraints", json!(scheduling.topology_spread_constraints)),
        ("priorityClassName", json!(scheduling.priority_class_name)),
        ("securityContext", set.security.pod_security_context.clone()),
    ] {
        set_if_any(&mut pod, key, value);
    }
    let mut labels = set.pods.labels.clone();
    labels.insert("app".into(), APP.into());
    labels.insert("release".into(), release.name.into());
    let mut pod_metadata = json!({"labels": labels});
    set_if_any(&mut pod_metadata, "annotations", json!(set.pods.annotations));
    let mut spec = json!({
        "replicas": set.high_availability.replicas,
        "podManagementPolicy": scheduling.pod_management_policy,
        "serviceName": names::etcd_headless(release.name),
        "selector": {"matchLabels": selector(release)},
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": set.persistence.volume_claim.retention_policy},
        "template": {"metadata": pod_metadata, "spec": pod},
    });
    set_if_any(&mut spec, "volumeClaimTemplates", json!(templates));
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(release, &names::etcd(release.name), &set.labels, &set.annotations),
        "spec": spec,
    })
}

fn claim_templates(release: &Release<'_>) -> Vec<Value> {
    let persistence = &release.config.control_plane.backing_store.etcd.deploy.stateful_set.persistence;
    if !persistence.volume_claim_templates.is_empty() {
        return persistence.volume_claim_templates.clone();
    }
    if persistence.volume_claim.enabled == Switch::Off { Vec::new() } else { vec![claim_of(&persistence.volume_claim)] }
}
