//! Tokens that another server judges: a TokenReview is sent to it (`--authentication-token-webhook-config-file`).
//!
//! Answers are kept for a while, by the hash of the token; a bounded number of them.
//!
//! Follows: `k8s.io/apiserver/plugin/pkg/authenticator/token/webhook`, `pkg/authentication/token/cache`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::{Value, json};
use async_trait::async_trait;
use base64::Engine;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::outgoing::Client;
use crate::aggregator::ProxyIdentity;
use crate::aggregator::trust::{self, Trust};
use crate::authn::{ALL_AUTHENTICATED, AuthenticationError, UserInfo};
use crate::tokens::{TokenAuthenticator, TokenUser};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a call is tried, and how long to wait before the second time; then longer. Source: `DefaultRetryBackoff`.
const ATTEMPTS: u32 = 5;
const RETRY_MIN: Duration = Duration::from_millis(500);
/// How many answers are kept.
const KEPT_MAX: usize = 4096;

/// Why the other server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("it is no kubeconfig: {0}")]
    Kubeconfig(String),
    #[error("{what} {path:?} cannot be read")]
    File {
        what: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("version {0:?} is not supported: there are v1 and v1beta1")]
    Version(String),
    #[error(transparent)]
    Tls(#[from] crate::aggregator::TrustError),
}

type Kept = (Instant, Option<TokenUser>);

/// Asks another server about tokens.
pub struct WebhookTokens {
    client: Client,
    url: String,
    headers: HeaderMap,
    version: &'static str,
    ttl: Duration,
    /// `--api-audiences`: what an answer without audiences is for.
    api_audiences: Vec<String>,
    kept: Mutex<HashMap<[u8; 32], Kept>>,
}

/// The item of a list by its name, without the wrapping.
fn named<'a>(kubeconfig: &'a Value, list: &str, name: &str, member: &str) -> Option<&'a Value> {
    let mut items = kubeconfig.array_at(&[list]).iter();
    items.find(|item| item.str_at(&["name"]) == name).and_then(|item| item.get(member))
}

/// PEM from `KEY-data` or the file that `KEY` names.
fn pem(section: &Value, key: &'static str, folder: &Path) -> Result<String, WebhookError> {
    let data = section.str_at(&[&format!("{key}-data")]);
    if !data.is_empty() {
        let bytes = base64::engine::general_purpose::STANDARD.decode(data);
        let bytes = bytes.map_err(|error| WebhookError::Kubeconfig(format!("{key}-data: {error}")))?;
        return String::from_utf8(bytes).map_err(|error| WebhookError::Kubeconfig(format!("{key}-data: {error}")));
    }
    match section.str_at(&[key]) {
        "" => Ok(String::new()),
        path => read(key, path, folder),
    }
}

fn read(what: &'static str, path: &str, folder: &Path) -> Result<String, WebhookError> {
    let found = std::fs::read_to_string(folder.join(path));
    found.map_err(|source| WebhookError::File { what, path: path.to_owned(), source })
}

impl WebhookTokens {
    /// From a kubeconfig in `folder`, whose current context says who is asked and as whom.
    pub fn new(
        kubeconfig: &str,
        folder: &Path,
        version: &str,
        ttl: Duration,
        api_audiences: &[String],
    ) -> Result<WebhookTokens, WebhookError> {
        let wrong = |text: &str| WebhookError::Kubeconfig(text.to_owned());
        let known = ["v1", "v1beta1"].into_iter().find(|known| *known == version);
        let version = known.ok_or_else(|| WebhookError::Version(version.to_owned()))?;
        let parsed: Value =
            serde_saphyr::from_str(kubeconfig).map_err(|error| WebhookError::Kubeconfig(error.to_string()))?;
        let context = named(&parsed, "contexts", parsed.str_at(&["current-context"]), "context");
        let context = context.ok_or_else(|| wrong("there is no current context"))?;
        let cluster = named(&parsed, "clusters", context.str_at(&["cluster"]), "cluster");
        let cluster = cluster.ok_or_else(|| wrong("the current context names no cluster"))?;
        let nobody = Value::object();
        let user = named(&parsed, "users", context.str_at(&["user"]), "user").unwrap_or(&nobody);
        for unsupported in ["exec", "auth-provider"] {
            if user.get(unsupported).is_some() {
                return Err(wrong(&format!("users with {unsupported} are not supported")));
            }
        }
        let authorities = pem(cluster, "certificate-authority", folder)?;
        let trust = if cluster["insecure-skip-tls-verify"] == true {
            Trust::Unchecked
        } else if authorities.is_empty() {
            Trust::System
        } else {
            Trust::Bundle(trust::pem_bundle(&authorities)?)
        };
        let certificate = pem(user, "client-certificate", folder)?;
        let identity = match certificate.is_empty() {
            true => None,
            false => Some(ProxyIdentity::new(&certificate, &pem(user, "client-key", folder)?)?),
        };
        let tls = trust::client_config(trust, identity.as_deref())?;
        let server_name = Some(cluster.str_at(&["tls-server-name"]).to_owned()).filter(|name| !name.is_empty());
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let token = match (user.str_at(&["token"]), user.str_at(&["tokenFile"])) {
            ("", "") => None,
            ("", path) => Some(read("tokenFile", path, folder)?.trim().to_owned()),
            (token, _) => Some(token.to_owned()),
        };
        let credential = match (token, user.str_at(&["username"])) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, "") => None,
            (None, name) => {
                let pair = format!("{name}:{}", user.str_at(&["password"]));
                Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
            }
        };
        if let Some(credential) = credential {
            let value = HeaderValue::from_str(&credential).map_err(|_| wrong("the user's token cannot be sent"))?;
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(WebhookTokens {
            client: Client::new(tls, server_name, CALL_TIMEOUT),
            url: cluster.str_at(&["server"]).to_owned(),
            headers,
            version,
            ttl,
            api_audiences: api_audiences.to_vec(),
            kept: Mutex::default(),
        })
    }

    /// Sends the review and gives the status in the answer.
    async fn review(&self, token: &str, audiences: &[String]) -> Result<Value, String> {
        let review = json!({
            "kind": "TokenReview", "apiVersion": (format!("authentication.k8s.io/{}", self.version)),
            "metadata": {"creationTimestamp": null},
            "spec": {"token": token, "audiences": (Value::Array(audiences.iter().map(|a| a.as_str().into()).collect()))},
            "status": {"user": {}},
        });
        let body = Bytes::from(review.to_vec());
        let mut wait = RETRY_MIN;
        let mut attempt = 1;
        loop {
            let answer = self.client.exchange(Method::POST, &self.url, self.headers.clone(), body.clone()).await;
            let error = match answer {
                Ok((200 | 201, _, bytes)) => {
                    let answer = Value::from_slice(&bytes).map_err(|error| error.to_string())?;
                    return Ok(answer["status"].clone());
                }
                Ok((code @ (429 | 500..), ..)) => format!("the webhook answered with {code}"),
                Ok((code, ..)) => return Err(format!("the webhook answered with {code}")),
                Err(error) => error,
            };
            if attempt == ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
            tokio::time::sleep(wait).await;
            wait = wait * 3 / 2;
        }
    }

    async fn ask(&self, token: &str, audiences: &[String]) -> Result<Option<TokenUser>, String> {
        let status = self.review(token, audiences).await?;
        let said: Vec<String> =
            status.array_at(&["audiences"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let said = if said.is_empty() { &self.api_audiences } else { &said };
        let common: Vec<String> = said.iter().filter(|audience| audiences.contains(audience)).cloned().collect();
        if common.is_empty() {
            return Ok(None);
        }
        if status["authenticated"] != true {
            return match status.str_at(&["error"]) {
                "" => Ok(None),
                error => Err(error.to_owned()),
            };
        }
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let user = &status["user"];
        let mut found = UserInfo::new(user.str_at(&["username"]), texts(&user["groups"]));
        user.str_at(&["uid"]).clone_into(&mut found.uid);
        for (key, values) in user["extra"].as_object().into_iter().flat_map(apimachinery::Map::iter) {
            found.extra.insert(key.to_string(), texts(values));
        }
        if !found.is_in(ALL_AUTHENTICATED) {
            found.groups.push(ALL_AUTHENTICATED.to_owned());
        }
        Ok(Some(TokenUser { user: found, audiences: common }))
    }
}

#[async_trait]
impl TokenAuthenticator for WebhookTokens {
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<TokenUser>, AuthenticationError> {
        let mut hasher = Sha256::new();
        hasher.update(token);
        for audience in audiences {
            hasher.update([0]);
            hasher.update(audience);
        }
        let key: [u8; 32] = hasher.finalize().into();
        let now = Instant::now();
        if let Some((until, known)) = self.kept.lock().get(&key)
            && *until > now
        {
            return Ok(known.clone());
        }
        // Errors are not kept.
        let found = self.ask(token, audiences).await.map_err(AuthenticationError)?;
        if !self.ttl.is_zero() {
            let mut kept = self.kept.lock();
            if kept.len() >= KEPT_MAX {
                kept.retain(|_, (until, _)| *until > now);
            }
            if kept.len() < KEPT_MAX {
                kept.insert(key, (now + self.ttl, found.clone()));
            }
        }
        Ok(found)
    }
}

/// The authenticator that a file describes.
pub(crate) fn from_file(
    path: &Path,
    version: &str,
    ttl: Duration,
    api_audiences: &[String],
) -> Result<Arc<WebhookTokens>, WebhookError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| WebhookError::File { what: "the kubeconfig", path: shown, source })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    Ok(Arc::new(WebhookTokens::new(&text, folder, version, ttl, api_audiences)?))
}
