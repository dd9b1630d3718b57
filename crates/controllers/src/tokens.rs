//! serviceaccount-token: fills Secrets of type `kubernetes.io/service-account-token` and removes those of deleted accounts.
//!
//! Tokens are signed by the hook in [`ManagerConfig::token_signer`](crate::ManagerConfig); without it only the cleaning is
//! done. Tokens never appear in logs or events.
//!
//! Follows: `pkg/controller/serviceaccount/tokens_controller.go`.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::json::Str;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use informer::{DeleteOptions, Header, Informer, ObjectKey, ObjectMeta, Outcome, Source, StrMap, null_default};
use serde::Deserialize;

use crate::context::{Context, ReconcileResult, ignore_not_found, key_queue};
use crate::resources::{SECRETS, SERVICE_ACCOUNTS};
use crate::types::cached;

const SECRET_TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// For whom a token is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSubject {
    pub namespace: String,
    pub service_account: String,
    pub service_account_uid: String,
    pub secret: String,
}

/// Signs a token without expiry for a Secret.
#[derive(Clone)]
pub struct TokenSigner(Arc<dyn Fn(&TokenSubject) -> Option<String> + Send + Sync>);

impl TokenSigner {
    pub fn new(sign: impl Fn(&TokenSubject) -> Option<String> + Send + Sync + 'static) -> Self {
        TokenSigner(Arc::new(sign))
    }
}

impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenSigner")
    }
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct TokenSecret {
    metadata: ObjectMeta,
    #[serde(deserialize_with = "null_default")]
    data: StrMap,
}

cached!(TokenSecret);

#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Delete,
    Fill,
}

/// What a token Secret needs. `account` is the uid of the account it names, when that exists.
fn plan(secret: &TokenSecret, account: Option<&str>, ca: Option<&str>) -> Plan {
    let uid = secret.metadata.annotations.get(ACCOUNT_UID).unwrap_or("");
    match account {
        None => Plan::Delete,
        Some(account) if !uid.is_empty() && uid != account => Plan::Delete,
        Some(_) => {
            let filled = |key: &str| secret.data.get(key).is_some_and(|v| !v.is_empty());
            let ca_current = ca.is_none_or(|ca| secret.data.get("ca.crt") == Some(&STANDARD.encode(ca)));
            if filled("token") && filled("namespace") && ca_current && !uid.is_empty() {
                Plan::Nothing
            } else {
                Plan::Fill
            }
        }
    }
}

struct Controller {
    context: Context,
    secrets: Informer<TokenSecret>,
    accounts: Informer<Header>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("tokens-controller", "serviceaccount-token-controller");
    let queue = key_queue();
    let secrets: Informer<TokenSecret> =
        context.factory.informer(Source::all(SECRETS).fields(Str::from(format!("type={SECRET_TYPE}"))));
    let accounts: Informer<Header> = context.factory.informer(SERVICE_ACCOUNTS);
    let adds = queue.clone();
    secrets.on_change(move |change| {
        if !change.is_deleted() {
            adds.add(change.object().metadata.key());
        }
    });
    let (adds, all) = (queue.clone(), secrets.clone());
    accounts.on_change(move |change| {
        let account = &change.object().metadata;
        for secret in all.list_namespace(&account.namespace) {
            if secret.metadata.annotations.get(ACCOUNT_NAME) == Some(&account.name) {
                adds.add(secret.metadata.key());
            }
        }
    });
    let synced = vec![secrets.synced(), accounts.synced()];
    let controller = Arc::new(Controller { context: context.clone(), secrets, accounts });
    context.run("serviceaccount-token", 2, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(secret) = self.secrets.get(&key) else { return Ok(Outcome::Done) };
        let name = secret.metadata.annotations.get(ACCOUNT_NAME).unwrap_or("").to_owned();
        let cached = self.accounts.get(&ObjectKey::new(key.namespace.clone(), name.as_str()));
        let mut account = cached.map(|a| a.metadata.uid.clone());
        if account.is_none() && !name.is_empty() {
            // Deleting a token is final: the API server has to say that the account is gone.
            match self.context.rest.get_as::<Header>(&SERVICE_ACCOUNTS, &key.namespace, &name).await {
                Ok(live) => account = Some(live.metadata.uid),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let config = &self.context.config;
        let ca = config.root_ca.as_deref();
        match plan(&secret, account.as_deref(), ca) {
            Plan::Nothing => Ok(Outcome::Done),
            Plan::Delete => {
                let options = DeleteOptions::uid(secret.metadata.uid.clone());
                self.context.delete(&SECRETS, &key, &options).await?;
                Ok(Outcome::Done)
            }
            Plan::Fill => {
                let uid = account.unwrap_or_default();
                let mut patch = Value::object();
                patch.set_at(&["metadata", "annotations", ACCOUNT_UID], uid.as_str().into());
                patch.set_at(&["data", "namespace"], STANDARD.encode(key.namespace.as_str()).into());
                if let Some(ca) = ca {
                    patch.set_at(&["data", "ca.crt"], STANDARD.encode(ca).into());
                }
                if secret.data.get("token").is_none_or(str::is_empty) {
                    let subject = TokenSubject {
                        namespace: key.namespace.to_string(),
                        service_account: name,
                        service_account_uid: uid.to_string(),
                        secret: key.name.to_string(),
                    };
                    let token = config.token_signer.as_ref().and_then(|signer| (signer.0)(&subject));
                    let Some(token) = token else { return Ok(Outcome::Done) };
                    patch.set_at(&["data", "token"], STANDARD.encode(token).into());
                }
                ignore_not_found(self.context.merge(&SECRETS, &secret.metadata, patch).await)?;
                Ok(Outcome::Done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn token_secrets_are_filled_and_go_with_their_account() {
        let secret = |uid: &str, data: Value| -> TokenSecret {
            let mut object = json!({"metadata": {"name": "s", "annotations": {ACCOUNT_NAME: "a", ACCOUNT_UID: uid}}});
            object["data"] = data;
            object.to().unwrap()
        };
        let full = || json!({"token": "x", "namespace": "x", "ca.crt": STANDARD.encode("ca")});
        for (secret, account, want) in [
            (secret("u", full()), None, Plan::Delete),
            (secret("u", full()), Some("other"), Plan::Delete),
            (secret("u", full()), Some("u"), Plan::Nothing),
            (secret("", full()), Some("u"), Plan::Fill),
            (secret("u", json!({})), Some("u"), Plan::Fill),
            (secret("u", json!({"token": "x", "namespace": "x", "ca.crt": "old"})), Some("u"), Plan::Fill),
        ] {
            assert_eq!(plan(&secret, account, Some("ca")), want);
        }
    }
}
