//! Service account tokens of pods: asked of the virtual API server, kept in a host Secret, renewed in time.
//!
//! Invariant: a token is only ever in the Secret that the pod mounts. It is never logged and never in an annotation.

use apimachinery::{Map, Value, json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::SyncError;
use super::side::Side;
use crate::kind;
use crate::metadata::{
    HOST_NAME_ANNOTATION, HOST_NAMESPACE_ANNOTATION, KIND_ANNOTATION, MANAGED_BY_LABEL, NAME_ANNOTATION,
    NAMESPACE_ANNOTATION, NAMESPACE_LABEL, UID_ANNOTATION, annotation, name_of, uid_of,
};
use crate::names::{Names, NamespacedName};
use crate::plan::TokenPlan;
use crate::types::pod::update::RENEW_AT_ANNOTATION;

/// The share of a token's life after which it is renewed.
const RENEW_AT: f64 = 0.8;

/// True for a host Secret that holds tokens of the pod `pod`.
pub fn belongs_to(secret: &Value, pod: &NamespacedName) -> bool {
    annotation(secret, KIND_ANNOTATION) == kind::POD.gvk()
        && annotation(secret, NAME_ANNOTATION) == pod.name
        && annotation(secret, NAMESPACE_ANNOTATION) == pod.namespace
}

/// Requests all tokens of a pod and writes them to its Secret.
pub async fn write(
    virtual_side: &Side,
    host_side: &Side,
    names: &Names,
    pod: &Value,
    host_pod: &Value,
    plan: &TokenPlan,
    now: Timestamp,
) -> Result<(), SyncError> {
    let pod_name = name_of(pod);
    let account = NamespacedName::new(pod_name.namespace.clone(), plan.service_account.clone());
    let mut data = Map::new();
    let mut renew_at = i64::MAX;
    for token in &plan.tokens {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": (token.audiences.clone()),
                "expirationSeconds": (token.expiration_seconds),
                "boundObjectRef": {
                    "apiVersion": "v1", "kind": "Pod", "name": (pod_name.name.as_str()), "uid": (uid_of(pod)),
                },
            },
        });
        let answer = virtual_side
            .subresource(&kind::SERVICE_ACCOUNT, &account, "token", &request)
            .await
            .map_err(|source| SyncError::Token { account: account.to_string(), source })?;
        let expires: i64 = answer
            .str_at(&["status", "expirationTimestamp"])
            .parse::<Timestamp>()
            .map_or_else(|_| now.as_second() + token.expiration_seconds, Timestamp::as_second);
        let life = (expires - now.as_second()).max(0) as f64;
        renew_at = renew_at.min(now.as_second() + (life * RENEW_AT) as i64);
        data.insert(token.key.as_str(), STANDARD.encode(answer.str_at(&["status", "token"])).into());
    }
    let host = names.token_secret(&pod_name.name, &pod_name.namespace);
    let mut secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": (host.name.as_str()),
            "namespace": (host.namespace.as_str()),
            "labels": {
                MANAGED_BY_LABEL: (names.virtual_cluster()),
                NAMESPACE_LABEL: (pod_name.namespace.as_str()),
            },
            "annotations": {
                NAME_ANNOTATION: (pod_name.name.as_str()),
                NAMESPACE_ANNOTATION: (pod_name.namespace.as_str()),
                UID_ANNOTATION: (uid_of(pod)),
                KIND_ANNOTATION: (kind::POD.gvk()),
                HOST_NAME_ANNOTATION: (host.name.as_str()),
                HOST_NAMESPACE_ANNOTATION: (host.namespace.as_str()),
                RENEW_AT_ANNOTATION: (renew_at.to_string()),
            },
            // Goes with the pod, also when nobody is there to clean up.
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Pod",
                "name": (host_pod.str_at(&["metadata", "name"])), "uid": (uid_of(host_pod)),
            }],
        },
    });
    secret["data"] = data.into();
    let existing = match host_side.get(&kind::SECRET, &host) {
        Some(existing) => Some(existing),
        None => match host_side.create(&kind::SECRET, &secret).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_already_exists() => Some(host_side.read(&kind::SECRET, &host).await?),
            Err(error) => return Err(error.into()),
        },
    };
    let Some(existing) = existing.filter(|e| belongs_to(e, &pod_name)) else {
        return Err(SyncError::Clash(host));
    };
    secret.remove_at(&["apiVersion"]);
    secret.remove_at(&["kind"]);
    secret.remove_at(&["type"]);
    host_side.change(&kind::SECRET, &host, &existing, &secret).await?;
    Ok(())
}
