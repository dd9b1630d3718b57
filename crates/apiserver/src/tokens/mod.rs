//! Service account tokens: what is in them, who accepts them, and other bearer tokens.
//!
//! Invariants:
//! - A token is good while its signature, issuer, audience and time are, and while its service account and the object it is
//!   bound to exist with the uid that the token names.
//! - Tokens never appear in logs or messages.
//!
//! Follows: `pkg/serviceaccount/{claims.go,jwt.go}`, `k8s.io/apiserver/pkg/authentication/{token,request/bearertoken}`.

pub mod bootstrap;
pub mod file;
pub mod keys;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use apimachinery::meta::ObjectMeta;
use apimachinery::time::Timestamp;
use apimachinery::{Value, json};
use async_trait::async_trait;
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::authn::{AuthenticationError, UserInfo};
use crate::storage::Storage;

pub use keys::{KeyError, ServiceAccountKeys};

/// How long tokens stay good after their time and how early before it: clocks differ. Source: `jwt.DefaultLeeway`.
const LEEWAY_SECONDS: i64 = 60;

/// A bearer token's user and those audiences of the request that the token is for.
#[derive(Clone, Debug)]
pub struct TokenUser {
    pub user: UserInfo,
    pub audiences: Vec<String>,
}

/// Recognises one kind of bearer token.
#[async_trait]
pub trait TokenAuthenticator: Send + Sync {
    /// Gives the authenticator read access to the server's objects; called once, before the first request.
    fn attach(&self, _storage: &Arc<Storage>) {}

    /// The token's user, `None` when it is a token of another kind, or why it is refused. `audiences` is never empty.
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<TokenUser>, AuthenticationError>;
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reference {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl Reference {
    pub fn to(object: &Value) -> Reference {
        Reference { name: object.name().to_owned(), uid: object.uid().to_owned() }
    }
}

/// The claims of Kubernetes, under `kubernetes.io`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct KubernetesClaims {
    #[serde(default)]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    #[serde(default)]
    pub serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
    aud: Option<Audience>,
    exp: Option<i64>,
    iat: Option<i64>,
    iss: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    jti: String,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: KubernetesClaims,
    nbf: Option<i64>,
    #[serde(default)]
    sub: String,
}

/// The issuer of tokens in Secrets. Source: `pkg/serviceaccount.LegacyIssuer`.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// A token Secret with this label is no longer good.
const INVALID_SINCE_LABEL: &str = "kubernetes.io/legacy-token-invalid-since";

/// The claims of a token in a Secret: no time, no audience.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct LegacyClaims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace", default)]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name", default)]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name", default)]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid", default)]
    account_uid: String,
    #[serde(default)]
    sub: String,
}

/// Issues and verifies the service account tokens of one server.
pub struct TokenAuthority {
    keys: ServiceAccountKeys,
    /// `--service-account-issuer`.
    pub issuer: String,
    /// `--api-audiences`: what tokens are for when a request does not say.
    pub audiences: Vec<String>,
    /// `--service-account-max-token-expiration`, in seconds; 0: no limit.
    pub max_expiration_seconds: i64,
    /// `--service-account-extend-token-expiration`: tokens that kubelets ask for live for a year.
    pub extend_expiration: bool,
    storage: OnceLock<Arc<Storage>>,
}

impl TokenAuthority {
    /// An authority whose audience is its issuer.
    pub fn new(keys: ServiceAccountKeys, issuer: impl Into<String>) -> TokenAuthority {
        let issuer = issuer.into();
        TokenAuthority {
            keys,
            audiences: vec![issuer.clone()],
            issuer,
            max_expiration_seconds: 0,
            extend_expiration: true,
            storage: OnceLock::new(),
        }
    }

    /// A token for the service account in `kubernetes`.
    pub fn issue(
        &self,
        kubernetes: KubernetesClaims,
        audiences: &[String],
        now: Timestamp,
        expiration_seconds: i64,
    ) -> Result<String, String> {
        let account = &kubernetes.serviceaccount.name;
        self.keys.sign(&Claims {
            aud: Some(Audience::Many(audiences.to_vec())),
            exp: Some(now.seconds + expiration_seconds),
            iat: Some(now.seconds),
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            nbf: Some(now.seconds),
            sub: format!("system:serviceaccount:{}:{account}", kubernetes.namespace),
            kubernetes,
        })
    }

    /// A token for a Secret of type `kubernetes.io/service-account-token`. It is good while the Secret holds it.
    pub fn issue_legacy(
        &self,
        namespace: &str,
        account: &str,
        account_uid: &str,
        secret: &str,
    ) -> Result<String, String> {
        self.keys.sign(&LegacyClaims {
            iss: LEGACY_ISSUER.to_owned(),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            account: account.to_owned(),
            account_uid: account_uid.to_owned(),
            sub: format!("system:serviceaccount:{namespace}:{account}"),
        })
    }

    /// Source: `pkg/serviceaccount.legacyValidator`.
    async fn validate_legacy(&self, token: &str, claims: LegacyClaims) -> Result<UserInfo, String> {
        let LegacyClaims { namespace, secret, account, account_uid, .. } = &claims;
        for (name, value) in [
            ("sub", &claims.sub),
            ("namespace", namespace),
            ("secretName", secret),
            ("serviceAccountName", account),
            ("serviceAccountUID", account_uid),
        ] {
            if value.is_empty() {
                return Err(format!("{name} claim is missing"));
            }
        }
        if claims.sub != format!("system:serviceaccount:{namespace}:{account}") {
            return Err("sub claim is invalid".to_owned());
        }
        let held = self.find("secrets", namespace, secret).await?;
        let held = held.filter(|s| s.deletion_timestamp().is_none()).ok_or("Token has been invalidated")?;
        let copy =
            base64::engine::general_purpose::STANDARD.decode(held.str_at(&["data", "token"])).unwrap_or_default();
        // Hashes are compared: how long that takes tells nothing about the token.
        if Sha256::digest(&copy) != Sha256::digest(token.as_bytes()) {
            return Err("Token does not match server's copy".to_owned());
        }
        let found = self.find("serviceaccounts", namespace, account).await?;
        let found = found.ok_or_else(|| format!("serviceaccounts {account:?} not found"))?;
        if found.deletion_timestamp().is_some() {
            return Err(format!("ServiceAccount {namespace}/{account} has been deleted"));
        }
        if found.uid() != account_uid {
            return Err(format!("ServiceAccount UID ({}) does not match claim ({account_uid})", found.uid()));
        }
        if !held.str_at(&["metadata", "labels", INVALID_SINCE_LABEL]).is_empty() {
            return Err(format!(
                "the token in secret {namespace}/{secret} for service account {namespace}/{account} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE_LABEL}' label from the secret to temporarily allow use of this token"
            ));
        }
        let mut user = UserInfo::service_account(namespace, account);
        user.uid.clone_from(account_uid);
        Ok(user)
    }

    /// `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        self.keys.jwks()
    }

    /// `/.well-known/openid-configuration`; `address` is where clients reach the server.
    pub fn openid_configuration(&self, address: &str) -> Value {
        json!({
            "issuer": self.issuer.as_str(), "jwks_uri": format!("https://{address}/openid/v1/jwks"),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": self.keys.algorithms(),
        })
    }

    async fn validate(&self, claims: Claims) -> Result<UserInfo, String> {
        let now = Timestamp::from(std::time::SystemTime::now()).seconds;
        if claims.exp.is_some_and(|exp| now - LEEWAY_SECONDS > exp) {
            return Err("service account token has expired".to_owned());
        }
        if claims.nbf.is_some_and(|nbf| now + LEEWAY_SECONDS < nbf) {
            return Err("service account token is not valid yet".to_owned());
        }
        if claims.iat.is_some_and(|iat| now + LEEWAY_SECONDS < iat) {
            return Err("service account token is issued in the future".to_owned());
        }
        let private = claims.kubernetes;
        let (namespace, account) = (private.namespace.as_str(), &private.serviceaccount);
        let found = self.find("serviceaccounts", namespace, &account.name).await?;
        let found = found.ok_or_else(|| format!("serviceaccounts {:?} not found", account.name))?;
        if found.uid() != account.uid {
            return Err(format!("service account UID ({}) does not match claim ({})", found.uid(), account.uid));
        }
        if deleted_before(&found, now - LEEWAY_SECONDS) {
            return Err(format!("service account {namespace}/{} has been deleted", account.name));
        }
        let bound = [
            ("secrets", "secret", namespace, private.secret.as_ref()),
            ("pods", "pod", namespace, private.pod.as_ref()),
            // A token of a pod only tells where the pod runs.
            ("nodes", "node", "", private.node.as_ref().filter(|_| private.pod.is_none())),
        ];
        for (resource, kind, namespace, reference) in bound {
            let Some(reference) = reference else { continue };
            let invalidated = || "service account token has been invalidated".to_owned();
            let found = self.find(resource, namespace, &reference.name).await?.ok_or_else(invalidated)?;
            if found.uid() != reference.uid {
                let shown = match kind {
                    "secret" => "secret UID",
                    "pod" => "pod UID",
                    _ => "node UID",
                };
                return Err(format!(
                    "{shown} ({}) does not match service account {kind} ref claim ({})",
                    found.uid(),
                    reference.uid
                ));
            }
            if deleted_before(&found, now - LEEWAY_SECONDS) {
                return Err(invalidated());
            }
        }
        let mut user = UserInfo::service_account(namespace, &account.name);
        // The authenticated group is added to every user at the end.
        user.uid.clone_from(&account.uid);
        let mut extra = BTreeMap::new();
        let mut add = |key: &str, value: &str| {
            if !value.is_empty() {
                extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
            }
        };
        if !claims.jti.is_empty() {
            add("credential-id", &format!("JTI={}", claims.jti));
        }
        if let Some(pod) = &private.pod {
            add("pod-name", &pod.name);
            add("pod-uid", &pod.uid);
        }
        if let Some(node) = &private.node {
            add("node-name", &node.name);
            add("node-uid", &node.uid);
        }
        user.extra = extra;
        Ok(user)
    }

    async fn find(&self, resource: &str, namespace: &str, name: &str) -> Result<Option<Value>, String> {
        let Some(storage) = self.storage.get() else { return Ok(None) };
        let Some(resource) = storage.registry.get("", "v1", resource) else { return Ok(None) };
        storage.lookup(&resource, namespace, name).await.map_err(|s| s.message)
    }
}

fn deleted_before(object: &Value, seconds: i64) -> bool {
    object.deletion_timestamp().and_then(Timestamp::parse).is_some_and(|t| t.seconds < seconds)
}

/// The claims of a token before anything is verified: enough to see whose it is.
fn unverified_issuer(token: &str) -> Option<String> {
    use base64::Engine;
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    let value = Value::from_slice(&payload).ok()?;
    Some(value.str_at(&["iss"]).to_owned())
}

#[async_trait]
impl TokenAuthenticator for TokenAuthority {
    fn attach(&self, storage: &Arc<Storage>) {
        let _ = self.storage.set(storage.clone());
    }

    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<TokenUser>, AuthenticationError> {
        match unverified_issuer(token) {
            Some(issuer) if issuer == self.issuer => {}
            Some(issuer) if issuer == LEGACY_ISSUER => {
                let claims = self.keys.verify(token).map_err(|e| AuthenticationError(e.to_owned()))?;
                // Such a token is for this server alone, whatever audiences this server has.
                let common: Vec<String> = self.audiences.iter().filter(|a| audiences.contains(a)).cloned().collect();
                if common.is_empty() {
                    return Err(AuthenticationError(format!(
                        "token audiences {} is invalid for the target audiences {}",
                        crate::rbac::rules::quoted_list(&self.audiences),
                        crate::rbac::rules::quoted_list(audiences)
                    )));
                }
                let user = self.validate_legacy(token, claims).await.map_err(AuthenticationError)?;
                return Ok(Some(TokenUser { user, audiences: common }));
            }
            _ => return Ok(None),
        }
        let claims: Claims = self.keys.verify(token).map_err(|e| AuthenticationError(e.to_owned()))?;
        let token_audiences = match &claims.aud {
            Some(Audience::One(one)) => vec![one.clone()],
            Some(Audience::Many(many)) => many.clone(),
            None => Vec::new(),
        };
        // Tokens from before audiences count as the server's own.
        let token_audiences = if token_audiences.is_empty() { self.audiences.clone() } else { token_audiences };
        let common: Vec<String> = token_audiences.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if common.is_empty() {
            return Err(AuthenticationError(format!(
                "token audiences {} is invalid for the target audiences {}",
                crate::rbac::rules::quoted_list(&token_audiences),
                crate::rbac::rules::quoted_list(audiences)
            )));
        }
        let user = self.validate(claims).await.map_err(AuthenticationError)?;
        Ok(Some(TokenUser { user, audiences: common }))
    }
}

/// Tokens from a list that does not change (`--token-auth-file`).
#[derive(Default)]
pub struct StaticTokens(BTreeMap<String, UserInfo>);

impl StaticTokens {
    /// Reads lines of `token,user,uid[,"group1,group2"]`. Returns the number of the first line that cannot be read.
    pub fn parse(text: &str) -> Result<StaticTokens, usize> {
        let mut tokens = BTreeMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let mut fields = line.splitn(4, ',').map(str::trim);
            let (Some(token), Some(name), Some(uid)) = (fields.next(), fields.next(), fields.next()) else {
                return Err(number + 1);
            };
            if token.is_empty() || name.is_empty() {
                return Err(number + 1);
            }
            let groups = fields.next().unwrap_or("").trim_matches('"').split(',').map(str::trim);
            let mut user = UserInfo::new(name, groups.filter(|g| !g.is_empty()));
            user.uid = uid.to_owned();
            user.groups.push(crate::authn::ALL_AUTHENTICATED.to_owned());
            tokens.insert(token.to_owned(), user);
        }
        Ok(StaticTokens(tokens))
    }
}

#[async_trait]
impl TokenAuthenticator for StaticTokens {
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<TokenUser>, AuthenticationError> {
        Ok(self.0.get(token).map(|user| TokenUser { user: user.clone(), audiences: audiences.to_vec() }))
    }
}

/// Asks token authenticators in order. The error is the text that a TokenReview shows.
pub async fn authenticate(
    authenticators: &[Arc<dyn TokenAuthenticator>],
    token: &str,
    audiences: &[String],
) -> Result<TokenUser, String> {
    const INVALID: &str = "invalid bearer token";
    let mut errors = Vec::new();
    for authenticator in authenticators {
        match authenticator.authenticate_token(token, audiences).await {
            Ok(Some(user)) => return Ok(user),
            Ok(None) => {}
            Err(error) => errors.push(error.0),
        }
    }
    if errors.is_empty() { Err(INVALID.to_owned()) } else { Err(format!("[{INVALID}, {}]", errors.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_tokens_have_user_uid_and_groups() {
        let tokens = StaticTokens::parse("t1,jane,7,\"a, b\"\n\nt2,joe,8\n").unwrap_or_else(|n| panic!("line {n}"));
        assert_eq!(tokens.0["t1"].groups, ["a", "b", "system:authenticated"]);
        assert_eq!(tokens.0["t2"].uid, "8");
        assert_eq!(StaticTokens::parse("t1,jane,7\nbroken").err(), Some(2));
    }
}
