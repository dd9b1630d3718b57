//! ServiceAccount: every pod runs as one, mounts its token and uses its image pull secrets.
//!
//! Follows: `plugin/pkg/admission/serviceaccount`.

use std::collections::BTreeSet;
use std::time::Duration;

use apimachinery::gvk::GroupVersionResource;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::StatusResult;
use apimachinery::{Value, json};
use async_trait::async_trait;

use super::{AdmissionPlugin, AdmissionRequest, Operation};

const DEFAULT_ACCOUNT: &str = "default";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR_POD: &str = "kubernetes.io/config.mirror";
const ENFORCE_MOUNTABLE_SECRETS: &str = "kubernetes.io/enforce-mountable-secrets";
const TOKEN_SECONDS: i64 = 3607;
/// How long a pod waits for the account `default`, which a controller makes in every new namespace.
const DEFAULT_ACCOUNT_WAIT: Duration = Duration::from_millis(1500);

pub struct ServiceAccount;

impl ServiceAccount {
    async fn account(&self, request: &AdmissionRequest<'_>, name: &str) -> StatusResult<Value> {
        let namespace = request.namespace.as_str();
        let find = || request.find("", "v1", "serviceaccounts", namespace, name);
        if let Some(account) = find().await? {
            return Ok(account);
        }
        if name == DEFAULT_ACCOUNT && !namespace.is_empty() {
            let resource = request.storage.registry.get("", "v1", "serviceaccounts");
            if let Some(storage) = resource.as_ref().and_then(|r| r.storage.as_ref()) {
                let mut changes = storage.cache.subscribe();
                let key = storage.cache.key(namespace, name);
                let appears = changes.wait_for(|_| storage.cache.get(&key).is_some());
                if tokio::time::timeout(DEFAULT_ACCOUNT_WAIT, appears).await.is_ok_and(|r| r.is_ok())
                    && let Some(account) = find().await?
                {
                    return Ok(account);
                }
            }
        }
        Err(request.forbidden(format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        )))
    }

    async fn check(&self, request: &AdmissionRequest<'_>) -> StatusResult<()> {
        let Some(pod) = &request.object else { return Ok(()) };
        let name = pod.str_at(&["spec", "serviceAccountName"]);
        let ephemeral = request.operation == Operation::Update;
        if !ephemeral && pod.annotation(MIRROR_POD).is_some() {
            return check_mirror_pod(request, pod);
        }
        if name.is_empty() {
            let message = format!("no service account specified for pod {}/{}", request.namespace, pod.name());
            return Err(request.forbidden(message));
        }
        let account = self.account(request, name).await?;
        let enforced = account.annotation(ENFORCE_MOUNTABLE_SECRETS);
        if !enforced.is_some_and(|v| matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True")) {
            return Ok(());
        }
        let refused = if ephemeral {
            check_containers(&account, pod, &[("ephemeralContainers", "ephemeral container")])
        } else {
            check_secrets(&account, pod)
        };
        refused.map_or(Ok(()), |message| Err(request.forbidden(message)))
    }
}

fn check_mirror_pod(request: &AdmissionRequest<'_>, pod: &Value) -> StatusResult<()> {
    if !pod.str_at(&["spec", "serviceAccountName"]).is_empty() {
        return Err(request.forbidden("a mirror pod may not reference service accounts"));
    }
    let volumes = pod.array_at(&["spec", "volumes"]);
    let containers = ["initContainers", "containers"].into_iter().flat_map(|k| pod.array_at(&["spec", k]));
    let env_secret =
        containers.clone().flat_map(|c| c.array_at(&["env"])).any(|e| e.at(&["valueFrom", "secretKeyRef"]).is_some())
            || containers.flat_map(|c| c.array_at(&["envFrom"])).any(|e| e.at(&["secretRef"]).is_some());
    let sources = volumes.iter().flat_map(|v| v.array_at(&["projected", "sources"]));
    let volume_secret =
        volumes.iter().any(|v| v.at(&["secret"]).is_some()) || sources.clone().any(|s| s.at(&["secret"]).is_some());
    if env_secret || volume_secret || !pod.array_at(&["spec", "imagePullSecrets"]).is_empty() {
        return Err(request.forbidden("a mirror pod may not reference secrets"));
    }
    if sources.into_iter().any(|s| s.at(&["serviceAccountToken"]).is_some()) {
        return Err(request.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
    }
    Ok(())
}

/// The first use of a secret that the account does not list.
fn check_secrets(account: &Value, pod: &Value) -> Option<String> {
    let mountable: BTreeSet<&str> = account.array_at(&["secrets"]).iter().map(|s| s.str_at(&["name"])).collect();
    for volume in pod.array_at(&["spec", "volumes"]) {
        let name = volume.str_at(&["secret", "secretName"]);
        if volume.at(&["secret"]).is_some() && !mountable.contains(name) {
            return Some(format!(
                "volume with secret.secretName=\"{name}\" is not allowed because service account {} does not reference that secret",
                account.name()
            ));
        }
    }
    if let Some(message) =
        check_containers(account, pod, &[("initContainers", "init container"), ("containers", "container")])
    {
        return Some(message);
    }
    let pull: BTreeSet<&str> = account.array_at(&["imagePullSecrets"]).iter().map(|s| s.str_at(&["name"])).collect();
    for (i, reference) in pod.array_at(&["spec", "imagePullSecrets"]).iter().enumerate() {
        let name = reference.str_at(&["name"]);
        if !pull.contains(name) {
            return Some(format!(
                "imagePullSecrets[{i}].name=\"{name}\" is not allowed because service account {} does not reference that imagePullSecret",
                account.name()
            ));
        }
    }
    None
}

fn check_containers(account: &Value, pod: &Value, kinds: &[(&str, &str)]) -> Option<String> {
    let mountable: BTreeSet<&str> = account.array_at(&["secrets"]).iter().map(|s| s.str_at(&["name"])).collect();
    for (key, shown) in kinds {
        for container in pod.array_at(&["spec", key]) {
            let container_name = container.name_of();
            for env in container.array_at(&["env"]) {
                let name = env.str_at(&["valueFrom", "secretKeyRef", "name"]);
                if env.at(&["valueFrom", "secretKeyRef"]).is_some() && !mountable.contains(name) {
                    return Some(format!(
                        "{shown} {container_name} with envVar {} referencing secret.secretName=\"{name}\" is not allowed because service account {} does not reference that secret",
                        env.name_of(),
                        account.name()
                    ));
                }
            }
            for env in container.array_at(&["envFrom"]) {
                let name = env.str_at(&["secretRef", "name"]);
                if env.at(&["secretRef"]).is_some() && !mountable.contains(name) {
                    return Some(format!(
                        "{shown} {container_name} with envFrom referencing secret.secretName=\"{name}\" is not allowed because service account {} does not reference that secret",
                        account.name()
                    ));
                }
            }
        }
    }
    None
}

/// `name` of something that is not a whole object.
trait NameOf {
    fn name_of(&self) -> &str;
}

impl NameOf for Value {
    fn name_of(&self) -> &str {
        self.str_at(&["name"])
    }
}

/// Adds the volume with token, root certificate and namespace, and mounts it where nothing else is mounted.
fn mount_token(pod: &mut Value) {
    let existing = pod.array_at(&["spec", "volumes"]).iter().map(NameOf::name_of);
    let existing = existing.clone().find(|n| n.starts_with(VOLUME_PREFIX)).map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| crate::handlers::write::generated_name(VOLUME_PREFIX));
    let mount = json!({"name": name.as_str(), "readOnly": true, "mountPath": MOUNT_PATH});
    let mut needed = false;
    for key in ["initContainers", "containers"] {
        let Some(containers) = pod.at_mut(&["spec", key]).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            if container.array_at(&["volumeMounts"]).iter().any(|m| m.str_at(&["mountPath"]) == MOUNT_PATH) {
                continue;
            }
            let mut mounts = container.array_at(&["volumeMounts"]).to_vec();
            mounts.push(mount.clone());
            container["volumeMounts"] = Value::Array(mounts);
            needed = true;
        }
    }
    if existing.is_some() || !needed {
        return;
    }
    let volume = json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    let mut volumes = pod.array_at(&["spec", "volumes"]).to_vec();
    volumes.push(volume);
    pod.set_at(&["spec", "volumes"], Value::Array(volumes));
}

#[async_trait]
impl AdmissionPlugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        gvr.group.is_empty()
            && gvr.resource == "pods"
            && match operation {
                Operation::Create => subresource.is_empty(),
                Operation::Update => subresource == "ephemeralcontainers",
                _ => false,
            }
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        if request.operation == Operation::Create
            && let Some(mut pod) = request.object.take()
            && pod.annotation(MIRROR_POD).is_none()
        {
            if pod.str_at(&["spec", "serviceAccountName"]).is_empty() {
                pod.set_at(&["spec", "serviceAccountName"], DEFAULT_ACCOUNT.into());
            }
            let name = pod.str_at(&["spec", "serviceAccountName"]).to_owned();
            pod.set_at(&["spec", "serviceAccount"], name.as_str().into());
            request.object = Some(pod);
            let account = self.account(request, &name).await?;
            let Some(pod) = request.object.as_mut() else { return Ok(()) };
            let wants = |v: &Value, path: &[&str]| v.at(path).and_then(Value::as_bool);
            if wants(pod, &["spec", "automountServiceAccountToken"])
                .or_else(|| wants(&account, &["automountServiceAccountToken"]))
                .unwrap_or(true)
            {
                mount_token(pod);
            }
            let secrets = account.array_at(&["imagePullSecrets"]);
            if pod.array_at(&["spec", "imagePullSecrets"]).is_empty() && !secrets.is_empty() {
                pod.set_at(&["spec", "imagePullSecrets"], Value::Array(secrets.to_vec()));
            }
        }
        self.check(request).await
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        self.check(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_where_nothing_else_is() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"},
            {"name": "b", "volumeMounts": [{"name": "v", "mountPath": MOUNT_PATH}]},
        ]}});
        mount_token(&mut pod);
        let name = pod["spec"]["volumes"][0].str_at(&["name"]).to_owned();
        assert!(name.starts_with(VOLUME_PREFIX));
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0].str_at(&["name"]), name);
        assert_eq!(pod["spec"]["containers"][1].array_at(&["volumeMounts"]).len(), 1);
        let before = pod.clone();
        mount_token(&mut pod);
        assert_eq!(pod, before, "a second run adds nothing");
    }
}
