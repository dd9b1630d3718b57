//! The configuration of a server as one starts it for real: RBAC, service account tokens, the default admission plugins.

use std::sync::Arc;

use crate::admission::chain::{PluginError, chain};
use crate::authz::{AlwaysAllow, AlwaysDeny, Authorizer};
use crate::config::Config;
use crate::rbac::Rbac;
use crate::rbac::escalation::Escalation;
use crate::tokens::{KeyError, ServiceAccountKeys, TokenAuthority};

/// What [`secure_config`] needs to know. The default suits tests: no tokens are issued.
#[derive(Clone, Debug, Default)]
pub struct SecureOptions {
    /// `--service-account-signing-key-file`: a private key, PEM. Empty: no tokens are issued or accepted.
    pub service_account_signing_key: String,
    /// `--service-account-key-file`: more keys that verify, public or private, PEM.
    pub service_account_keys: Vec<String>,
    /// `--service-account-issuer`; empty: `https://kubernetes.default.svc.cluster.local`.
    pub service_account_issuer: String,
    /// `--api-audiences`; empty: the issuer.
    pub api_audiences: Vec<String>,
    /// `--enable-admission-plugins`, beside the default ones.
    pub enable_admission_plugins: Vec<String>,
    /// `--disable-admission-plugins`.
    pub disable_admission_plugins: Vec<String>,
    /// `--authorization-mode=AlwaysAllow`: no RBAC.
    pub always_allow: bool,
    /// `--authorization-mode=AlwaysDeny`: only `system:masters` may do anything.
    pub always_deny: bool,
    /// `--service-account-max-token-expiration`, in seconds; 0: no limit.
    pub max_token_expiration_seconds: i64,
    /// `--service-account-extend-token-expiration=false`: tokens of pods end when they say.
    pub exact_token_expiration: bool,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    #[error("the keys of service account tokens cannot be used: {0}")]
    Keys(#[from] KeyError),
    #[error(transparent)]
    Plugins(#[from] PluginError),
}

/// A configuration with RBAC, service account tokens and admission as kube-apiserver has them by default. The caller sets
/// addresses, ranges and the rest on it. One configuration belongs to one server.
pub fn secure_config(options: &SecureOptions) -> Result<Config, SecureError> {
    let rbac = Arc::new(Rbac::new());
    let authorizer: Arc<dyn Authorizer> = match (options.always_deny, options.always_allow) {
        (true, _) => Arc::new(AlwaysDeny),
        (_, true) => Arc::new(AlwaysAllow),
        _ => rbac.clone(),
    };
    let mut config = Config { authorizer: authorizer.clone(), bootstrap_rbac: true, ..Config::default() };
    if !options.service_account_issuer.is_empty() {
        config.service_account_issuer.clone_from(&options.service_account_issuer);
    }
    config.api_audiences = match options.api_audiences.as_slice() {
        [] => vec![config.service_account_issuer.clone()],
        given => given.to_vec(),
    };
    if !options.service_account_signing_key.is_empty() {
        let others: Vec<&str> = options.service_account_keys.iter().map(String::as_str).collect();
        let keys = ServiceAccountKeys::from_pem(&options.service_account_signing_key, &others)?;
        let mut authority = TokenAuthority::new(keys, config.service_account_issuer.clone());
        authority.audiences.clone_from(&config.api_audiences);
        authority.max_expiration_seconds = options.max_token_expiration_seconds;
        authority.extend_expiration = !options.exact_token_expiration;
        let authority = Arc::new(authority);
        config.token_authenticators.push(authority.clone());
        config.tokens = Some(authority);
    }
    config.admission = chain(&authorizer, &options.enable_admission_plugins, &options.disable_admission_plugins)?;
    if !options.always_allow {
        // Last: it looks at what will be stored.
        config.admission.0.push(Arc::new(Escalation::new(rbac)));
    }
    Ok(config)
}
