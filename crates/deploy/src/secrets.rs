//! The Secrets a running control plane writes: `vc-NAME` (kubeconfig) and `NAME-certs`.

use std::collections::BTreeMap;

use base64::Engine;
use serde_json::{Map, Value, json};

use crate::names;

/// What a client needs to reach a cluster as its administrator. All PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminAccess {
    pub server: String,
    pub insecure: bool,
    pub certificate_authority: String,
    pub client_certificate: String,
    pub client_key: String,
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A kubeconfig with one cluster, user and context, all named `name`, as JSON (which is YAML).
pub fn kubeconfig(name: &str, access: &AdminAccess) -> Value {
    let mut cluster = json!({"server": access.server});
    if access.insecure {
        cluster["insecure-skip-tls-verify"] = json!(true);
    } else {
        cluster["certificate-authority-data"] = json!(encode(&access.certificate_authority));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {
            "client-certificate-data": encode(&access.client_certificate),
            "client-key-data": encode(&access.client_key),
        }}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    })
}

/// The kubeconfig as the YAML text that is kept in Secrets and files.
pub fn kubeconfig_yaml(name: &str, access: &AdminAccess) -> String {
    let value = kubeconfig(name, access);
    config::yaml::to_string(&value).unwrap_or_else(|_| value.to_string())
}

fn metadata(name: &str, namespace: &str, cluster: &str, owner_service_uid: Option<&str>) -> Value {
    let mut metadata = json!({
        "name": name,
        "namespace": namespace,
        "labels": {"app": "vcluster", "vcluster-name": cluster},
    });
    if let Some(uid) = owner_service_uid {
        metadata["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Service", "name": cluster, "uid": uid}]);
    }
    metadata
}

/// Secret `vc-NAME`, or one more of `exportKubeConfig` under another name. `owner_service_uid` is the UID of Service
/// `NAME`; an owner must be in the same namespace.
pub fn kubeconfig_secret(
    cluster: &str,
    secret_name: &str,
    namespace: &str,
    context: &str,
    access: &AdminAccess,
    owner_service_uid: Option<&str>,
) -> Value {
    let context = if context.is_empty() { "my-vcluster" } else { context };
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(secret_name, namespace, cluster, owner_service_uid),
        "type": "Opaque",
        "data": {
            "config": encode(kubeconfig_yaml(context, access)),
            "certificate-authority": encode(&access.certificate_authority),
            "client-certificate": encode(&access.client_certificate),
            "client-key": encode(&access.client_key),
        },
    })
}

/// Secret `NAME-certs`: file name to content.
pub fn certs_secret(
    cluster: &str,
    namespace: &str,
    files: &BTreeMap<String, String>,
    owner_service_uid: Option<&str>,
) -> Value {
    let data: Map<String, Value> = files.iter().map(|(name, text)| (name.clone(), json!(encode(text)))).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(&names::certs_secret(cluster), namespace, cluster, owner_service_uid),
        "type": "Opaque",
        "data": data,
    })
}
