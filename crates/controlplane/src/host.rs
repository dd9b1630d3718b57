//! The host side of a control plane: its Service, and the Secrets it keeps there.

use std::collections::BTreeMap;
use std::time::Duration;

use apimachinery::{Value, json};
use base64::Engine;
use config::Config;
use deploy::names;
use deploy::secrets::{AdminAccess, certs_secret, kubeconfig_secret};
use informer::{ApiError, DeleteOptions, PatchType, Resource, Rest};

const SECRETS: Resource = Resource::new("", "v1", "secrets");
const PODS: Resource = Resource::new("", "v1", "pods");
const SERVICES: Resource = Resource::new("", "v1", "services");
const SERVICE_CIDRS: Resource = Resource::new("networking.k8s.io", "v1", "servicecidrs");

/// How long removed pods may take to be gone, beyond their grace period.
const PODS_GONE_TIMEOUT: Duration = Duration::from_secs(120);

/// Removes the host pods of a cluster whose control plane does not run, and waits until they are gone.
/// `grace_seconds` replaces each pod's own grace period.
pub async fn remove_pods(client: kube::Client, namespace: &str, name: &str) -> Result<(), HostError> {
    remove_synced_pods(&Rest::new(client, "alcove"), namespace, name, None).await
}

async fn remove_synced_pods(
    rest: &Rest,
    namespace: &str,
    name: &str,
    grace_seconds: Option<i64>,
) -> Result<(), HostError> {
    let labels = format!("vcluster.loft.sh/managed-by={name}");
    let object = || format!("the synced pods in namespace {namespace}");
    let begin = tokio::time::Instant::now();
    loop {
        let pods: Vec<Value> = rest.list_as(&PODS, namespace, &labels, "").await.map_err(failed("list", object()))?;
        if pods.is_empty() {
            return Ok(());
        }
        for pod in pods.iter().filter(|pod| pod.at(&["metadata", "deletionTimestamp"]).is_none()) {
            let mut options = DeleteOptions::uid(pod.str_at(&["metadata", "uid"]));
            options.grace_period_seconds = grace_seconds;
            match rest.delete(&PODS, namespace, pod.str_at(&["metadata", "name"]), &options).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => {
                    return Err(failed("delete", object())(error));
                }
                _ => {}
            }
        }
        if begin.elapsed() > PODS_GONE_TIMEOUT {
            let error = ApiError::Timeout(PODS_GONE_TIMEOUT);
            return Err(failed("wait for the end of", object())(error));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The host cluster and the namespace of the virtual cluster in it.
#[derive(Clone)]
pub struct Host {
    pub client: kube::Client,
    pub namespace: String,
    rest: Rest,
}

/// Service `NAME` on the host.
#[derive(Clone, Debug)]
pub(crate) struct HostService {
    pub uid: String,
    /// Cluster addresses and load balancer addresses.
    pub addresses: Vec<String>,
}

/// A request to the host that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {object}")]
pub struct HostError {
    action: &'static str,
    object: String,
    source: ApiError,
}

fn failed(action: &'static str, object: impl Into<String>) -> impl FnOnce(ApiError) -> HostError {
    let object = object.into();
    move |source| HostError { action, object, source }
}

impl Host {
    pub fn new(client: kube::Client, namespace: impl Into<String>) -> Host {
        let rest = Rest::new(client.clone(), "alcove");
        Host { client, namespace: namespace.into(), rest }
    }

    /// Service `NAME`, which must exist: it owns what is synced.
    pub(crate) async fn service(&self, name: &str) -> Result<HostService, HostError> {
        let service = self
            .rest
            .get(&SERVICES, &self.namespace, name)
            .await
            .map_err(failed("read", format!("Service {}/{name}", self.namespace)))?;
        let mut addresses: Vec<String> = service
            .array_at(&["spec", "clusterIPs"])
            .iter()
            .filter_map(Value::as_str)
            .filter(|address| *address != "None")
            .map(str::to_string)
            .collect();
        for ingress in service.array_at(&["status", "loadBalancer", "ingress"]) {
            addresses.extend([ingress.str_at(&["ip"]), ingress.str_at(&["hostname"])].map(str::to_string));
        }
        Ok(HostService { uid: service.str_at(&["metadata", "uid"]).to_string(), addresses })
    }

    /// Removes the pods that were synced for the cluster and waits until they are gone: what comes up under their names
    /// must not be taken for them.
    pub(crate) async fn remove_synced_pods(&self, name: &str) -> Result<(), HostError> {
        remove_synced_pods(&self.rest, &self.namespace, name, Some(1)).await
    }

    /// Were the host pods removed while the control plane did not run? The mark is taken off.
    pub(crate) async fn take_pods_removed(&self, name: &str) -> Result<bool, HostError> {
        let secret_name = names::config_secret(name);
        let object = || format!("Secret {}/{secret_name}", self.namespace);
        let secret = match self.rest.get(&SECRETS, &self.namespace, &secret_name).await {
            // Whoever may not read it has not paused the cluster through it either.
            Err(error) if error.is_not_found() || error.is_forbidden() => return Ok(false),
            result => result.map_err(failed("read", object()))?,
        };
        if secret.str_at(&["metadata", "annotations", deploy::PODS_REMOVED_ANNOTATION]) != "true" {
            return Ok(false);
        }
        let mut patch = json!({"metadata": {"annotations": {}}});
        patch["metadata"]["annotations"][deploy::PODS_REMOVED_ANNOTATION] = Value::Null;
        let patched = self.rest.patch(&SECRETS, "", &self.namespace, &secret_name, PatchType::Merge, &patch).await;
        patched.map_err(failed("write", object()))?;
        Ok(true)
    }

    /// The range of the host's Services; virtual Services carry addresses of it. Hosts before 1.33 do not tell.
    pub(crate) async fn service_range(&self) -> Option<String> {
        let object = self.rest.get(&SERVICE_CIDRS, "", "kubernetes").await.ok()?;
        let ranges: Vec<&str> = object.array_at(&["spec", "cidrs"]).iter().filter_map(Value::as_str).collect();
        (!ranges.is_empty()).then(|| ranges.join(","))
    }

    /// The files in Secret `NAME-certs`; none when it does not exist.
    pub(crate) async fn read_certificates(&self, name: &str) -> Result<BTreeMap<String, String>, HostError> {
        let secret_name = names::certs_secret(name);
        let secret = match self.rest.get(&SECRETS, &self.namespace, &secret_name).await {
            Err(error) if error.is_not_found() => return Ok(BTreeMap::new()),
            result => result.map_err(failed("read", format!("Secret {}/{secret_name}", self.namespace)))?,
        };
        let mut files = BTreeMap::new();
        for (file, encoded) in secret.at(&["data"]).and_then(Value::as_object).into_iter().flat_map(|data| data.iter())
        {
            let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.as_str().unwrap_or_default());
            if let Some(text) = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()) {
                files.insert(file.to_string(), text);
            }
        }
        Ok(files)
    }

    pub(crate) async fn write_certificates(
        &self,
        name: &str,
        files: &BTreeMap<String, String>,
        service: Option<&HostService>,
    ) -> Result<(), HostError> {
        let uid = service.map(|service| service.uid.as_str());
        self.put(&Value::from(certs_secret(name, &self.namespace, files, uid))).await
    }

    /// Secret `vc-NAME` and those that `exportKubeConfig` asks for.
    pub(crate) async fn write_kubeconfigs(
        &self,
        name: &str,
        config: &Config,
        access: &AdminAccess,
        service: &HostService,
    ) -> Result<(), HostError> {
        let export = &config.export_kube_config;
        let mut secrets =
            vec![(names::kubeconfig_secret(name), self.namespace.clone(), export.context.clone(), access.clone())];
        let or = |text: &str, default: &str| if text.is_empty() { default.to_string() } else { text.to_string() };
        if !(export.secret.name.is_empty() && export.secret.namespace.is_empty()) {
            secrets.push((
                or(&export.secret.name, &names::kubeconfig_secret(name)),
                or(&export.secret.namespace, &self.namespace),
                export.context.clone(),
                access.clone(),
            ));
        }
        for more in &export.additional_secrets {
            let access =
                AdminAccess { server: or(&more.server, &access.server), insecure: more.insecure, ..access.clone() };
            secrets.push((
                or(&more.name, &names::kubeconfig_secret(name)),
                or(&more.namespace, &self.namespace),
                or(&more.context, &export.context),
                access,
            ));
        }
        for (secret_name, namespace, context, access) in secrets {
            // An owner in another namespace would make the garbage collector remove the Secret.
            let owner = (namespace == self.namespace).then_some(service.uid.as_str());
            let secret = kubeconfig_secret(name, &secret_name, &namespace, &context, &access, owner);
            self.put(&Value::from(secret)).await?;
        }
        Ok(())
    }

    /// Creates the Secret, or merges it into the one that exists.
    async fn put(&self, secret: &Value) -> Result<(), HostError> {
        let namespace = secret.str_at(&["metadata", "namespace"]);
        let name = secret.str_at(&["metadata", "name"]);
        let object = format!("Secret {namespace}/{name}");
        match self.rest.create(&SECRETS, namespace, secret).await {
            Err(error) if error.is_already_exists() => {
                let patch = json!({
                    "metadata": {
                        "labels": (secret.at(&["metadata", "labels"]).cloned().unwrap_or_default()),
                        "ownerReferences": (secret.at(&["metadata", "ownerReferences"]).cloned().unwrap_or_default()),
                    },
                    "data": (secret.at(&["data"]).cloned().unwrap_or_default()),
                });
                let written = self.rest.patch(&SECRETS, "", namespace, name, PatchType::Merge, &patch).await;
                written.map(drop).map_err(failed("write", object))
            }
            result => result.map(drop).map_err(failed("write", object)),
        }
    }
}
