//! The host path mapper: on every node, links from the tenant's names to the node's files (`controlPlane.hostPathMapper`).
//!
//! Invariants:
//! - It has an account of its own, which may look at pods and nothing else.
//! - The node's logs and volumes are mounted for reading; only the cluster's own directory is written.

use serde_json::{Value, json};

use crate::names;
use crate::objects::Release;
use crate::workload::{image, set_if_any};

/// Label `app` of the mapper's pods; `app=vcluster` would put them behind the API's Service.
pub const APP: &str = "vcluster-hostpath-mapper";

pub(crate) fn objects(release: &Release<'_>) -> Vec<Value> {
    let mapper = &release.config.control_plane.host_path_mapper;
    // The central one is a hub's.
    if !mapper.enabled || mapper.central {
        return Vec::new();
    }
    let name = names::hostpath_mapper(release.name);
    let none = Default::default();
    let metadata = release.metadata(&name, &none, &none);
    let mut account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata});
    set_if_any(
        &mut account,
        "imagePullSecrets",
        json!(release.config.control_plane.advanced.service_account.image_pull_secrets),
    );
    vec![
        account,
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": release.namespace}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": {"app": APP, "release": release.name}},
                "template": {
                    "metadata": {"labels": {"app": APP, "release": release.name}},
                    "spec": pod(release, &name),
                },
            },
        }),
    ]
}

fn pod(release: &Release<'_>, account: &str) -> Value {
    let directory = format!("/tmp/vcluster/{}/{}", release.namespace, release.name);
    let mut spec = pod_spec(&image(release), account, &directory, &[format!("--name={}", release.name)]);
    set_if_any(
        &mut spec["containers"][0],
        "imagePullPolicy",
        json!(release.config.control_plane.stateful_set.image_pull_policy),
    );
    // Where else would the tenant's pods be?
    set_if_any(&mut spec, "nodeSelector", json!(release.config.sync.from_host.nodes.selector.labels));
    spec
}

/// A mapper's pod, which writes into one directory of the node.
pub(crate) fn pod_spec(image: &str, account: &str, directory: &str, arguments: &[String]) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut args = vec!["hostpath-mapper".to_string()];
    args.extend_from_slice(arguments);
    json!({
        "serviceAccountName": account,
        "terminationGracePeriodSeconds": 5,
        "tolerations": [{"operator": "Exists"}],
        "containers": [{
            "name": "hostpath-mapper",
            "image": image,
            "args": args,
            "env": [field("POD_NAMESPACE", "metadata.namespace"), field("NODE_NAME", "spec.nodeName")],
            // The node's directories are root's.
            "securityContext": {
                "runAsUser": 0,
                "runAsGroup": 0,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
            "volumeMounts": [
                {"name": "logs", "mountPath": "/var/log", "readOnly": true},
                {"name": "kubelet-pods", "mountPath": "/var/lib/kubelet/pods", "readOnly": true},
                {"name": "virtual", "mountPath": directory},
            ],
        }],
        "volumes": [
            {"name": "logs", "hostPath": {"path": "/var/log"}},
            {"name": "kubelet-pods", "hostPath": {"path": "/var/lib/kubelet/pods"}},
            {"name": "virtual", "hostPath": {"path": directory, "type": "DirectoryOrCreate"}},
        ],
    })
}
