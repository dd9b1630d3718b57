//! kube-apiserver's flags about authentication, and those that have no effect here.
//!
//! Follows: `pkg/kubeapiserver/options/authentication.go`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::config::{
    AuthenticationConfiguration, ClaimMappings, ClaimValidationRule, Issuer, JwtAuthenticator, Mapping,
};
use super::oidc::{ALGORITHMS, OidcAuthenticator, OidcError};
use super::webhook::{self, WebhookError};
use crate::config::Config;

/// How long answers of a webhook are kept. Source: `--authentication-token-webhook-cache-ttl`.
const CACHE_TTL: Duration = Duration::from_secs(120);

/// Flags of kube-apiserver about matters that this server does not have or decides by itself.
///
/// Source: `kube-apiserver --help`, v1.36.
pub const WITHOUT_EFFECT: &[&str] = &[
    "v",
    "vmodule",
    "logging-format",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-json-split-stream",
    "log-text-info-buffer-size",
    "log-text-split-stream",
    "logtostderr",
    "alsologtostderr",
    "profiling",
    "contention-profiling",
    "feature-gates",
    "runtime-config",
    "storage-media-type",
    "delete-collection-workers",
    "enable-garbage-collector",
    "etcd-compaction-interval",
    "etcd-count-metric-poll-period",
    "etcd-db-metric-poll-interval",
    "etcd-healthcheck-timeout",
    "etcd-readycheck-timeout",
    "watch-cache",
    "watch-cache-sizes",
    "default-watch-cache-size",
    "max-requests-inflight",
    "max-mutating-requests-inflight",
    "enable-priority-and-fairness",
    "goaway-chance",
    "http2-max-streams-per-connection",
    "request-timeout",
    "min-request-timeout",
    "livez-grace-period",
    "shutdown-delay-duration",
    "shutdown-send-retry-after",
    "endpoint-reconciler-type",
    "apiserver-count",
    "kubernetes-service-node-port",
    "external-hostname",
    "tls-min-version",
    "tls-cipher-suites",
    "permit-port-sharing",
    "permit-address-sharing",
    "enable-logs-handler",
    "enable-aggregator-routing",
    "kubelet-certificate-authority",
    "kubelet-client-certificate",
    "kubelet-client-key",
    "kubelet-preferred-address-types",
    "kubelet-timeout",
    "service-account-lookup",
    "service-account-jwks-uri",
    "show-hidden-metrics-for-version",
    "allow-metric-labels",
    "disabled-metrics",
    "emulated-version",
    "min-compatibility-version",
    "runtime-config-emulation-forward-compatible",
    "lease-reuse-duration-seconds",
    "node-lease-duration-seconds",
    "token-auth-ttl",
];

/// Why flags are refused. Flags are named without dashes.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    #[error("--{flag}: {message}")]
    Value { flag: &'static str, message: String },
    #[error("--{flag} {path:?} cannot be read")]
    File {
        flag: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("--{flag}")]
    Webhook {
        flag: &'static str,
        #[source]
        source: WebhookError,
    },
}

fn wrong(flag: &'static str, message: impl Into<String>) -> FlagError {
    FlagError::Value { flag, message: message.into() }
}

/// The flags as they were given; empty ones were not.
#[derive(Clone, Debug, Default)]
pub struct AuthenticationFlags {
    pub oidc_issuer_url: String,
    pub oidc_client_id: String,
    pub oidc_username_claim: String,
    pub oidc_username_prefix: String,
    pub oidc_groups_claim: String,
    pub oidc_groups_prefix: String,
    /// `key=value`.
    pub oidc_required_claim: Vec<String>,
    pub oidc_ca_file: Option<PathBuf>,
    pub oidc_signing_algs: Vec<String>,
    pub authentication_config: Option<PathBuf>,
    pub webhook_config_file: Option<PathBuf>,
    pub webhook_version: String,
    pub webhook_cache_ttl: Option<Duration>,
    pub anonymous_auth: Option<bool>,
}

fn read(flag: &'static str, path: &Path) -> Result<String, FlagError> {
    std::fs::read_to_string(path).map_err(|source| FlagError::File { flag, path: path.to_owned(), source })
}

impl AuthenticationFlags {
    /// Takes a flag with its value as text; false when the flag is about something else.
    pub fn set(&mut self, flag: &str, value: &str) -> Result<bool, FlagError> {
        let list =
            |value: &str| value.split(',').map(str::to_owned).filter(|item| !item.is_empty()).collect::<Vec<_>>();
        let path = || Some(PathBuf::from(value)).filter(|path| !path.as_os_str().is_empty());
        match flag {
            "oidc-issuer-url" => value.clone_into(&mut self.oidc_issuer_url),
            "oidc-client-id" => value.clone_into(&mut self.oidc_client_id),
            "oidc-username-claim" => value.clone_into(&mut self.oidc_username_claim),
            "oidc-username-prefix" => value.clone_into(&mut self.oidc_username_prefix),
            "oidc-groups-claim" => value.clone_into(&mut self.oidc_groups_claim),
            "oidc-groups-prefix" => value.clone_into(&mut self.oidc_groups_prefix),
            "oidc-required-claim" => self.oidc_required_claim.extend(list(value)),
            "oidc-ca-file" => self.oidc_ca_file = path(),
            "oidc-signing-algs" => self.oidc_signing_algs = list(value),
            "authentication-config" => self.authentication_config = path(),
            "authentication-token-webhook-config-file" => self.webhook_config_file = path(),
            "authentication-token-webhook-version" => value.clone_into(&mut self.webhook_version),
            "authentication-token-webhook-cache-ttl" => {
                const FLAG: &str = "authentication-token-webhook-cache-ttl";
                let text = format!("{value:?} is no duration such as 2m0s");
                self.webhook_cache_ttl = Some(duration(value).ok_or_else(|| wrong(FLAG, text))?);
            }
            "anonymous-auth" => {
                let text = format!("{value:?} is neither true nor false");
                self.anonymous_auth = Some(value.parse().map_err(|_| wrong("anonymous-auth", text))?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The files that are named.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [
            ("oidc-ca-file", &self.oidc_ca_file),
            ("authentication-config", &self.authentication_config),
            ("authentication-token-webhook-config-file", &self.webhook_config_file),
        ];
        files.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?)))
    }

    fn has_oidc(&self) -> bool {
        let texts = [
            &self.oidc_issuer_url,
            &self.oidc_client_id,
            &self.oidc_username_claim,
            &self.oidc_username_prefix,
            &self.oidc_groups_claim,
            &self.oidc_groups_prefix,
        ];
        texts.into_iter().any(|text| !text.is_empty())
            || self.oidc_ca_file.is_some()
            || !(self.oidc_required_claim.is_empty() && self.oidc_signing_algs.is_empty())
    }

    /// What the `--oidc-*` flags mean.
    fn issuer(&self) -> Result<Option<JwtAuthenticator>, FlagError> {
        if !self.has_oidc() {
            return Ok(None);
        }
        if self.oidc_issuer_url.is_empty() || self.oidc_client_id.is_empty() {
            let text = "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set";
            return Err(wrong("oidc-issuer-url", text));
        }
        let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
        let claim = or(&self.oidc_username_claim, "sub");
        let prefix = match self.oidc_username_prefix.as_str() {
            "-" => String::new(),
            // Names of other issuers must not be taken for those of this cluster.
            "" if claim != "email" => format!("{}#", self.oidc_issuer_url),
            prefix => prefix.to_owned(),
        };
        let groups = match self.oidc_groups_claim.as_str() {
            "" => Mapping::default(),
            claim => Mapping {
                claim: claim.to_owned(),
                prefix: Some(self.oidc_groups_prefix.clone()),
                expression: String::new(),
            },
        };
        let mut rules = Vec::new();
        for text in &self.oidc_required_claim {
            let (claim, value) = text
                .split_once('=')
                .ok_or_else(|| wrong("oidc-required-claim", format!("{text:?} must be key=value")))?;
            rules.push(ClaimValidationRule {
                claim: claim.to_owned(),
                required_value: value.to_owned(),
                ..ClaimValidationRule::default()
            });
        }
        let authority = match &self.oidc_ca_file {
            Some(path) => read("oidc-ca-file", path)?,
            None => String::new(),
        };
        Ok(Some(JwtAuthenticator {
            issuer: Issuer {
                url: self.oidc_issuer_url.clone(),
                certificate_authority: authority,
                audiences: vec![self.oidc_client_id.clone()],
                ..Issuer::default()
            },
            claim_validation_rules: rules,
            claim_mappings: ClaimMappings {
                username: Mapping { claim, prefix: Some(prefix), expression: String::new() },
                groups,
                ..ClaimMappings::default()
            },
            user_validation_rules: Vec::new(),
        }))
    }

    /// Adds what the flags ask for to a configuration that has its issuer and audiences already.
    pub fn apply(&self, config: &mut Config) -> Result<(), FlagError> {
        let disallowed = [config.service_account_issuer.clone()];
        let from_flags = self.issuer()?;
        let mut issuers = Vec::new();
        let mut algorithms = self.oidc_signing_algs.clone();
        let mut flag = "oidc-issuer-url";
        if let Some(issuer) = from_flags {
            if self.authentication_config.is_some() {
                let text = "authentication-config file and oidc-* flags are mutually exclusive";
                return Err(wrong("authentication-config", text));
            }
            issuers.push(issuer);
            if algorithms.is_empty() {
                algorithms.push("RS256".to_owned());
            }
        }
        if let Some(anonymous) = self.anonymous_auth {
            config.anonymous = anonymous;
        }
        if let Some(path) = &self.authentication_config {
            flag = "authentication-config";
            let parsed = AuthenticationConfiguration::parse(&read(flag, path)?).map_err(|text| wrong(flag, text))?;
            let errors = parsed.validate(&disallowed);
            if !errors.is_empty() {
                return Err(wrong(flag, apimachinery::field::aggregate(&errors)));
            }
            if let Some(anonymous) = parsed.anonymous {
                if self.anonymous_auth.is_some() {
                    let text = "--anonymous-auth flag cannot be set when anonymous field is configured in authentication configuration file";
                    return Err(wrong("anonymous-auth", text));
                }
                config.anonymous = anonymous.enabled;
                config.anonymous_paths = anonymous.conditions.into_iter().map(|condition| condition.path).collect();
            }
            issuers = parsed.jwt;
            algorithms = ALGORITHMS.map(str::to_owned).to_vec();
        }
        for issuer in issuers {
            let made = OidcAuthenticator::new(issuer, &algorithms, &config.api_audiences, &disallowed);
            let flag = if matches!(made, Err(OidcError::Algorithm(_))) { "oidc-signing-algs" } else { flag };
            let made = made.map_err(|error| wrong(flag, error.to_string()))?;
            config.token_authenticators.push(Arc::new(made));
        }
        let Some(path) = &self.webhook_config_file else { return Ok(()) };
        let flag = "authentication-token-webhook-config-file";
        let version = if self.webhook_version.is_empty() { "v1beta1" } else { self.webhook_version.as_str() };
        let ttl = self.webhook_cache_ttl.unwrap_or(CACHE_TTL);
        let made = webhook::from_file(path, version, ttl, &config.api_audiences);
        config.token_authenticators.push(made.map_err(|source| FlagError::Webhook { flag, source })?);
        Ok(())
    }
}

/// A duration as Go writes it, of hours, minutes, seconds and milliseconds.
pub fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..units] {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(u32::try_from(number).ok()?)?)?;
        rest = &rest[units..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(given: &[(&str, &str)]) -> AuthenticationFlags {
        let mut flags = AuthenticationFlags::default();
        for (name, value) in given {
            assert!(flags.set(name, value).unwrap(), "{name}");
        }
        flags
    }

    const URL: (&str, &str) = ("oidc-issuer-url", "https://i.example");
    const ID: (&str, &str) = ("oidc-client-id", "kube");

    #[test]
    fn names_of_other_issuers_have_a_prefix_unless_somebody_says_otherwise() {
        for (given, claim, prefix) in [
            (vec![URL, ID], "sub", "https://i.example#"),
            (vec![URL, ID, ("oidc-username-claim", "email")], "email", ""),
            (vec![URL, ID, ("oidc-username-prefix", "-")], "sub", ""),
            (vec![URL, ID, ("oidc-username-prefix", "x:")], "sub", "x:"),
        ] {
            let issuer = flags(&given).issuer().unwrap().unwrap();
            let name = issuer.claim_mappings.username;
            assert_eq!((name.claim.as_str(), name.prefix.as_deref()), (claim, Some(prefix)), "{given:?}");
        }
        assert!(flags(&[]).issuer().unwrap().is_none());
    }

    #[test]
    fn flags_that_cannot_be_used_are_refused_by_name() {
        for (given, want) in [
            (
                vec![ID],
                "--oidc-issuer-url: oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set",
            ),
            (
                vec![("oidc-issuer-url", "http://i.example"), ID],
                "--oidc-issuer-url: jwt.issuer.url: Invalid value: \"http://i.example\": URL scheme must be https",
            ),
            (
                vec![URL, ID, ("oidc-signing-algs", "RS256,ES512")],
                "--oidc-signing-algs: oidc: unsupported signing alg: \"ES512\"",
            ),
            (vec![URL, ID, ("oidc-required-claim", "a")], "--oidc-required-claim: \"a\" must be key=value"),
            (vec![("authentication-config", "/nowhere")], "--authentication-config \"/nowhere\" cannot be read"),
            (
                vec![URL, ID, ("authentication-config", "/nowhere")],
                "--authentication-config: authentication-config file and oidc-* flags are mutually exclusive",
            ),
        ] {
            let refused = flags(&given).apply(&mut Config::default()).unwrap_err();
            assert_eq!(refused.to_string(), want);
        }
        let mut flags = AuthenticationFlags::default();
        assert!(!flags.set("v", "4").unwrap());
        assert!(flags.set("anonymous-auth", "maybe").is_err());
        assert_eq!(duration("1h2m3s"), Some(Duration::from_secs(3723)));
        assert_eq!((duration("2"), duration("")), (None, None));
    }
}
