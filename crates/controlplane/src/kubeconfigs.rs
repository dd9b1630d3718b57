//! Secrets with kubeconfigs on the host: `vc-NAME`, and more ones under `exportKubeConfig`.
//!
//! They are written when the cluster starts, when certificates change, and when somebody else changes or removes them. One
//! Secret that cannot be written (another namespace, no right there) does not keep the others from being written.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::{Value, json};
use apiserver::{ApiServer, UserInfo};
use base64::Engine;
use config::Config;
use deploy::names;
use deploy::secrets::{AdminAccess, kubeconfig_secret};
use informer::{ApiError, DeleteOptions, Factory, Resource, Rest, Source};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::certificates::Certificates;
use crate::host::{Host, HostError, SECRETS, failed};

const SERVICE_ACCOUNTS: Resource = Resource::new("", "v1", "serviceaccounts");
const BINDINGS: Resource = Resource::new("rbac.authorization.k8s.io", "v1", "clusterrolebindings");
const TOKEN_REVIEWS: Resource = Resource::new("authentication.k8s.io", "v1", "tokenreviews");
/// As vCluster: readers copy the Secret and do not come back.
const TOKEN_SECONDS: u64 = 10 * 365 * 24 * 3600;
/// Until the next try after a failure.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Why a kubeconfig could not be handed out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("no token for service account {account} of exportKubeConfig")]
    Token { account: String, source: ApiError },
}

/// One Secret to be written.
struct Export {
    secret: String,
    namespace: String,
    context: String,
    server: String,
    insecure: bool,
    account: config::KubeConfigServiceAccount,
}

/// Writes the Secrets of one cluster.
pub(crate) struct Kubeconfigs {
    pub name: String,
    pub config: Arc<Config>,
    pub certificates: Arc<Certificates>,
    /// The server that kubeconfigs name unless the configuration names another.
    pub public_url: String,
    pub host: Host,
    /// UID of Service `NAME`.
    pub owner: String,
    pub server: ApiServer,
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_string() } else { text.to_string() }
}

impl Kubeconfigs {
    fn exports(&self) -> Vec<Export> {
        let export = &self.config.export_kube_config;
        let default_name = names::kubeconfig_secret(&self.name);
        let own = |secret: &str, namespace: &str| Export {
            secret: or(secret, &default_name),
            namespace: or(namespace, &self.host.namespace),
            context: export.context.clone(),
            server: or(&export.server, &self.public_url),
            insecure: export.insecure,
            account: export.service_account.clone(),
        };
        let mut all = vec![own("", "")];
        if !(export.secret.name.is_empty() && export.secret.namespace.is_empty()) {
            all.push(own(&export.secret.name, &export.secret.namespace));
        }
        all.extend(export.additional_secrets.iter().map(|more| Export {
            secret: or(&more.name, &default_name),
            namespace: or(&more.namespace, &self.host.namespace),
            context: or(&more.context, &export.context),
            server: or(&more.server, &or(&export.server, &self.public_url)),
            insecure: more.insecure,
            account: more.service_account.clone(),
        }));
        all
    }

    /// Writes all Secrets; gives the first failure, after all have been tried.
    pub async fn write(&self) -> Result<(), ExportError> {
        let mut result = Ok(());
        for export in self.exports() {
            if let Err(error) = self.write_one(&export).await {
                result = result.and(Err(error));
            }
        }
        result
    }

    async fn write_one(&self, export: &Export) -> Result<(), ExportError> {
        let mut access = self.certificates.access(&export.server, export.insecure);
        if !export.account.name.is_empty() {
            access.token = self.token(export).await?;
        }
        // An owner in another namespace would make the garbage collector remove the Secret.
        let owner = (export.namespace == self.host.namespace).then_some(self.owner.as_str());
        let secret = kubeconfig_secret(&self.name, &export.secret, &export.namespace, &export.context, &access, owner);
        Ok(self.host.put(&Value::from(secret)).await?)
    }

    /// The token that the Secret has, when it is still good, else a new one.
    async fn token(&self, export: &Export) -> Result<String, ExportError> {
        let rest = Rest::new(self.server.kube_client(UserInfo::admin()), "alcove");
        let namespace = or(&export.account.namespace, "kube-system");
        let account = &export.account.name;
        let failed = |source| ExportError::Token { account: format!("{namespace}/{account}"), source };
        ensure_account(&rest, &namespace, account, &export.account.cluster_role).await.map_err(failed)?;
        let kept = self.kept_token(export).await?;
        if !kept.is_empty() {
            let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": kept.as_str()}});
            let answer = rest.create(&TOKEN_REVIEWS, "", &review).await.map_err(failed)?;
            let user = crate::host::service_account_user(&namespace, account);
            if answer["status"]["authenticated"] == true && answer.str_at(&["status", "user", "username"]) == user {
                return Ok(kept);
            }
        }
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_SECONDS},
        });
        let answer =
            rest.create_subresource(&SERVICE_ACCOUNTS, &namespace, account, "token", &request).await.map_err(failed)?;
        Ok(answer.str_at(&["status", "token"]).to_string())
    }

    async fn kept_token(&self, export: &Export) -> Result<String, HostError> {
        let secret = match self.host.rest.get(&SECRETS, &export.namespace, &export.secret).await {
            Err(error) if error.is_not_found() => return Ok(String::new()),
            result => result.map_err(failed("read", format!("Secret {}/{}", export.namespace, export.secret)))?,
        };
        let bytes = base64::engine::general_purpose::STANDARD.decode(secret.str_at(&["data", "token"]));
        Ok(bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default())
    }

    /// Writes once more whenever that may be needed, until `cancel`.
    pub async fn run(self, cancel: CancellationToken) {
        let changed = Arc::new(Notify::new());
        // Of other namespaces nothing is watched: that right is mostly not there.
        let factory = Factory::new(self.host.rest.clone());
        let selector = format!("app=vcluster,vcluster-name={}", self.name);
        let told = Arc::clone(&changed);
        let certs = names::certs_secret(&self.name);
        factory.headers(Source::namespaced(SECRETS, self.host.namespace.as_str()).labels(selector), move |change| {
            if change.object.name.as_str() != certs {
                told.notify_one();
            }
        });
        let mut renewed = self.certificates.changes();
        let mut retry = RETRY_MIN;
        loop {
            let pause = match self.write().await {
                Ok(()) => {
                    retry = RETRY_MIN;
                    None
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(cluster = self.name, error, "a kubeconfig could not be handed out");
                    retry = (retry * 2).min(RETRY_MAX);
                    Some(retry)
                }
            };
            let wait = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Cancel-safe: a notification that is not taken stays.
                () = cancel.cancelled() => break,
                () = changed.notified(), if pause.is_none() => {}
                Ok(()) = renewed.changed() => {}
                () = wait => {}
            }
        }
        factory.shutdown().await;
    }
}

/// Makes the account (only when a role is named: otherwise it is the tenant's own) and binds it to its role.
async fn ensure_account(rest: &Rest, namespace: &str, account: &str, role: &str) -> Result<(), ApiError> {
    if role.is_empty() {
        return rest.get_metadata(&SERVICE_ACCOUNTS, namespace, account).await.map(drop);
    }
    let object =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace}});
    match rest.create(&SERVICE_ACCOUNTS, namespace, &object).await {
        Err(error) if !error.is_already_exists() => return Err(error),
        _ => {}
    }
    let name = syncer::names::safe_concat(&["vcluster", "sa", account, namespace]);
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name.as_str()},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    });
    match rest.get(&BINDINGS, "", &name).await {
        Ok(known) if known.str_at(&["roleRef", "name"]) == role => return Ok(()),
        // A binding's role cannot be changed.
        Ok(known) => {
            let options = DeleteOptions::uid(known.str_at(&["metadata", "uid"]));
            match rest.delete(&BINDINGS, "", &name, &options).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    match rest.create(&BINDINGS, "", &binding).await {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}

/// How an administrator reaches the cluster.
pub(crate) fn administrator(certificates: &Certificates, config: &Config, public_url: &str) -> AdminAccess {
    let export = &config.export_kube_config;
    certificates.access(&or(&export.server, public_url), export.insecure)
}
