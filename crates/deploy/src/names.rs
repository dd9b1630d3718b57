//! Names of host objects, and which names a virtual cluster may have.

use sha2::{Digest, Sha256};

/// The namespace a cluster goes to when none is named.
pub fn default_namespace(name: &str) -> String {
    format!("vcluster-{name}")
}
/// Secret with `config.yaml`.
pub fn config_secret(name: &str) -> String {
    format!("vc-config-{name}")
}
/// Secret with the kubeconfig.
pub fn kubeconfig_secret(name: &str) -> String {
    format!("vc-{name}")
}
/// Secret with all keys and certificates.
pub fn certs_secret(name: &str) -> String {
    format!("{name}-certs")
}
/// ServiceAccount, Role and RoleBinding of the control plane.
pub fn service_account(name: &str) -> String {
    format!("vc-{name}")
}
/// ServiceAccount of all synced pods, unless the configuration names another.
pub fn workload_service_account(name: &str) -> String {
    format!("vc-workload-{name}")
}
pub fn headless_service(name: &str) -> String {
    format!("{name}-headless")
}
/// StatefulSet and Service of an etcd of the cluster's own.
pub fn etcd(name: &str) -> String {
    format!("{name}-etcd")
}
/// The headless Service of [`etcd`], which gives each member a name.
pub fn etcd_headless(name: &str) -> String {
    format!("{name}-etcd-headless")
}
/// DaemonSet, ServiceAccount, Role and RoleBinding of the host path mapper.
pub fn hostpath_mapper(name: &str) -> String {
    format!("{name}-hostpath-mapper")
}
/// ClusterRole and ClusterRoleBinding: `vc-NAME-v-NAMESPACE`, shortened with a hash when longer than 63.
pub fn cluster_role(name: &str, namespace: &str) -> String {
    shorten(&format!("vc-{name}-v-{namespace}"))
}

/// The ClusterRole that takes the place of the Role when every virtual namespace has a host namespace.
pub fn namespaces_role(name: &str, namespace: &str) -> String {
    shorten(&format!("vc-mn-{name}-v-{namespace}"))
}
/// NetworkPolicy of one kind of pods.
pub fn network_policy(pods: &str, name: &str) -> String {
    format!("vc-{pods}-{name}")
}

fn shorten(name: &str) -> String {
    if name.len() <= 63 {
        return name.to_string();
    }
    let digest = Sha256::digest(name.as_bytes());
    let hex: String = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{hex}", name[..52].trim_end_matches(['-', '.']))
}

/// Why a name cannot be the name of a virtual cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} cannot be the name of a virtual cluster: it must be at most 52 lower case letters, digits and '-', and begin with a letter and end with a letter or digit"
)]
pub struct NameError {
    name: String,
}

/// The name becomes a Service (begins with a letter), a label value and a part of longer names (at most 52).
pub fn check_name(name: &str) -> Result<(), NameError> {
    let good = !name.is_empty()
        && name.len() <= 52
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-');
    if good { Ok(()) } else { Err(NameError { name: name.to_string() }) }
}
