//! The Secrets a running control plane writes: `vc-NAME` (kubeconfig) and `NAME-certs`.

use std::collections::BTreeMap;

use base64::Engine;
use serde_json::{Map, Value, json};

use crate::names;

/// What a client needs to reach a cluster as its administrator. Certificates and keys are PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AdminAccess {
    pub server: String,
    pub insecure: bool,
    pub certificate_authority: String,
    pub client_certificate: String,
    pub client_key: String,
    /// A bearer token, shown in place of the client certificate when it is not empty.
    pub token: String,
}

impl std::fmt::Debug for AdminAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminAccess").field("server", &self.server).finish_non_exhaustive()
    }
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
    let user = if access.token.is_empty() {
        json!({
            "client-certificate-data": encode(&access.client_certificate),
            "client-key-data": encode(&access.client_key),
        })
    } else {
        json!({"token": access.token})
    };
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
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
    // Readers of the single keys must find what the kubeconfig says, and nothing more.
    let unless = |absent: bool, text: &str| if absent { String::new() } else { encode(text) };
    let has_token = !access.token.is_empty();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(secret_name, namespace, cluster, owner_service_uid),
        "type": "Opaque",
        "data": {
            "config": encode(kubeconfig_yaml(context, access)),
            "certificate-authority": unless(access.insecure, &access.certificate_authority),
            "client-certificate": unless(has_token, &access.client_certificate),
            "client-key": unless(has_token, &access.client_key),
            "token": encode(&access.token),
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
