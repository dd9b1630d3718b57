//! Paths of the node that show all tenants' logs and volumes: replaced by those that the host path mapper fills with this
//! virtual cluster's own, under the tenant's names.
//!
//! The mapper's files are links to the real ones, so containers that see the former get the latter mounted elsewhere.
//!
//! Follows: vCluster `resources/pods/translate/hostpath.go`.

use apimachinery::{Value, json};

use crate::host_files::{
    KUBELET_PODS, LOGS, PHYSICAL_KUBELET_PODS, PHYSICAL_LOGS, PHYSICAL_POD_LOGS, POD_LOGS, virtual_directory,
};
use crate::types::Context;

const PHYSICAL_SUFFIX: &str = "vcluster-physical";

/// The mapped path for a path of the node, the real directory it leads into, and where that is mounted.
fn mapped(path: &str, base: &str) -> Option<(String, &'static str, &'static str)> {
    // However it is spelled.
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    let path = parts.fold(String::new(), |path, part| format!("{path}/{part}"));
    let path = path.as_str();
    if path == POD_LOGS || path.starts_with("/var/log/pods/") {
        let rest = &path[POD_LOGS.len()..];
        return Some((format!("{base}/log/pods{rest}"), POD_LOGS, PHYSICAL_POD_LOGS));
    }
    if path == LOGS {
        return Some((format!("{base}/log"), LOGS, PHYSICAL_LOGS));
    }
    if path == KUBELET_PODS || path.starts_with("/var/lib/kubelet/pods/") {
        let rest = &path[KUBELET_PODS.len()..];
        return Some((format!("{base}/kubelet/pods{rest}"), KUBELET_PODS, PHYSICAL_KUBELET_PODS));
    }
    None
}

/// Rewrites the host paths of a host pod's spec.
pub fn translate(host: &mut Value, ctx: &Context<'_>) {
    let base = virtual_directory(ctx.names.install_namespace(), ctx.names.virtual_cluster());
    let mut more: Vec<(String, &'static str, &'static str, Value)> = Vec::new();
    for volume in host.at_mut(&["spec", "volumes"]).and_then(Value::as_array_mut).into_iter().flatten() {
        let name = volume.str_at(&["name"]).to_owned();
        let Some((path, real, mount)) = mapped(volume.str_at(&["hostPath", "path"]), &base) else { continue };
        let kind = volume["hostPath"]["type"].clone();
        volume["hostPath"]["path"] = path.into();
        more.push((name, real, mount, kind));
    }
    if more.is_empty() {
        return;
    }
    for member in ["initContainers", "containers"] {
        for container in host.at_mut(&["spec", member]).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(mounts) = container.get_mut("volumeMounts").and_then(Value::as_array_mut) else { continue };
            let mut added: Vec<Value> = Vec::new();
            for mount in mounts.iter_mut() {
                let Some((name, _, at, _)) = more.iter().find(|(name, ..)| name == mount.str_at(&["name"])) else {
                    continue;
                };
                let path = mount.str_at(&["mountPath"]).trim_end_matches('/').to_owned();
                if [LOGS, POD_LOGS, KUBELET_PODS].contains(&path.as_str()) {
                    mount["mountPropagation"] = "HostToContainer".into();
                }
                // Once for each place, however many volumes lead there.
                if !added.iter().any(|m| m.str_at(&["mountPath"]) == *at) {
                    let mut physical = json!({"name": (format!("{name}-{PHYSICAL_SUFFIX}")), "mountPath": (*at)});
                    if let Some(propagation) = mount.get("mountPropagation") {
                        physical["mountPropagation"] = propagation.clone();
                    }
                    added.push(physical);
                }
            }
            mounts.extend(added);
        }
    }
    let volumes = host["spec"].make_object().get_or_insert_with("volumes", || Value::Array(Vec::new()));
    if let Some(volumes) = volumes.as_array_mut() {
        for (name, real, _, kind) in more {
            let mut source = json!({ "path": real });
            if !kind.is_null() {
                source["type"] = kind;
            }
            volumes.push(json!({"name": (format!("{name}-{PHYSICAL_SUFFIX}")), "hostPath": source}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_paths_become_the_tenants_own() {
        for (path, want) in [
            ("/var/log", Some("/b/log")),
            ("/var/log/", Some("/b/log")),
            ("/var/log/pods", Some("/b/log/pods")),
            ("/var/log/pods/x", Some("/b/log/pods/x")),
            ("/var/lib/kubelet/pods", Some("/b/kubelet/pods")),
            ("/var/lib/kubelet/pods/u/volumes", Some("/b/kubelet/pods/u/volumes")),
            ("//var/./log/", Some("/b/log")),
            ("/var/logs", None),
            ("/data", None),
        ] {
            assert_eq!(mapped(path, "/b").map(|m| m.0).as_deref(), want, "{path}");
        }
    }
}
