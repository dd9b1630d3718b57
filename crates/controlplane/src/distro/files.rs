//! The files that upstream's programs read: certificates, keys, kubeconfigs. They follow the cluster's certificates; the
//! programs read changed files again by themselves.

use std::collections::BTreeMap;
use std::path::Path;

use apiserver::upstream::Credentials;
use serde_json::json;

use crate::certificates::Certificates;

const FILES: [&str; 18] = [
    "apiserver.crt",
    "apiserver.key",
    "apiserver-etcd-client.crt",
    "apiserver-etcd-client.key",
    "client-ca.crt",
    "client-ca.key",
    "controller-manager.crt",
    "controller-manager.key",
    "etcd-ca.crt",
    "front-proxy-ca.crt",
    "front-proxy-client.crt",
    "front-proxy-client.key",
    "sa.key",
    "sa.pub",
    "scheduler.crt",
    "scheduler.key",
    "server-ca.crt",
    "server-ca.key",
];

/// Writes all files, each in one step.
pub(super) fn write(folder: &Path, certificates: &Certificates, servers: &Servers) -> Result<(), pki::PkiError> {
    let mut files: BTreeMap<String, String> =
        FILES.iter().map(|name| ((*name).to_string(), certificates.file(name))).collect();
    for (user, server) in [("controller-manager", &servers.controller_manager), ("scheduler", &servers.scheduler)] {
        files.insert(format!("{user}.conf"), kubeconfig(folder, user, server));
    }
    pki::files::write(folder, &files)
}

/// Where the programs reach the API.
pub(super) struct Servers {
    pub controller_manager: String,
    pub scheduler: String,
}

/// Names files, so that renewed certificates are used without a restart.
fn kubeconfig(folder: &Path, user: &str, server: &str) -> String {
    let file = |name: &str| folder.join(name).display().to_string();
    let value = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": user,
        "clusters": [{"name": "kubernetes", "cluster": {"server": server, "certificate-authority": file("server-ca.crt")}}],
        "users": [{"name": user, "user": {
            "client-certificate": file(&format!("{user}.crt")), "client-key": file(&format!("{user}.key")),
        }}],
        "contexts": [{"name": user, "context": {"cluster": "kubernetes", "user": user}}],
    });
    // JSON is YAML.
    value.to_string()
}

/// How the proxy in front reaches kube-apiserver.
pub(super) fn credentials(certificates: &Certificates) -> Credentials {
    Credentials {
        server_ca: certificates.file("server-ca.crt"),
        proxy_certificate: certificates.file("front-proxy-client.crt"),
        proxy_key: certificates.file("front-proxy-client.key"),
    }
}
