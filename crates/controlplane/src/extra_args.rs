//! Flags of kube-apiserver in `controlPlane.distro.k8s.apiServer.extraArgs`, for our own API server.
//!
//! Those that it knows are honoured, those about matters that it decides by itself are named in the log, and all others are
//! refused by name. Files can be named only where the process is the cluster's own.

use std::time::Duration;

use apiserver::authentication::flags::{WITHOUT_EFFECT, duration};
use apiserver::authentication::{AuthenticationFlags, FlagError};
use apiserver::{Config, SecureOptions};

/// Why a flag is refused.
#[derive(Debug, thiserror::Error)]
pub enum ExtraArgsError {
    #[error("{0:?} is no flag: flags begin with --")]
    NoFlag(String),
    #[error("--{0} is not supported by the native distro")]
    Unknown(String),
    #[error("--{flag}: {value:?} is no {kind}")]
    Value { flag: String, value: String, kind: &'static str },
    #[error("--{0} names a file, and in a hub files are those of all clusters")]
    NoFiles(&'static str),
    #[error(transparent)]
    Authentication(#[from] FlagError),
}

/// The flags that have an effect.
#[derive(Debug, Default)]
pub(crate) struct ExtraArgs {
    authentication: AuthenticationFlags,
    api_audiences: Vec<String>,
    enable_admission_plugins: Vec<String>,
    disable_admission_plugins: Vec<String>,
    event_ttl: Option<Duration>,
    allow_privileged: Option<bool>,
    max_token_expiration: Option<Duration>,
    exact_token_expiration: Option<bool>,
}

impl ExtraArgs {
    /// Reads flags as `--name=value`, or `--name` for true. `own_files`: the process is the cluster's own.
    pub fn parse(args: &[String], own_files: bool) -> Result<ExtraArgs, ExtraArgsError> {
        let mut out = ExtraArgs::default();
        for arg in args {
            let flag = arg.strip_prefix("--").ok_or_else(|| ExtraArgsError::NoFlag(arg.clone()))?;
            let (flag, value) = flag.split_once('=').unwrap_or((flag, "true"));
            let list = || value.split(',').filter(|item| !item.is_empty()).map(str::to_owned);
            let wrong = |kind| ExtraArgsError::Value { flag: flag.to_owned(), value: value.to_owned(), kind };
            match flag {
                _ if out.authentication.set(flag, value)? => {}
                "api-audiences" => out.api_audiences.extend(list()),
                "enable-admission-plugins" => out.enable_admission_plugins.extend(list()),
                "disable-admission-plugins" => out.disable_admission_plugins.extend(list()),
                "event-ttl" => out.event_ttl = Some(duration(value).ok_or_else(|| wrong("duration such as 1h0m0s"))?),
                "allow-privileged" => {
                    out.allow_privileged = Some(value.parse().map_err(|_| wrong("boolean"))?);
                }
                "service-account-max-token-expiration" => {
                    let limit = duration(value).filter(|limit| (3600..=1 << 32).contains(&limit.as_secs()));
                    out.max_token_expiration = Some(limit.ok_or_else(|| wrong("duration of an hour or more"))?);
                }
                "service-account-extend-token-expiration" => {
                    let extend: bool = value.parse().map_err(|_| wrong("boolean"))?;
                    out.exact_token_expiration = Some(!extend);
                }
                _ if WITHOUT_EFFECT.contains(&flag) => {
                    tracing::info!(flag, "a flag has no effect in the native distro")
                }
                _ => return Err(ExtraArgsError::Unknown(flag.to_owned())),
            }
        }
        let file = out.authentication.files().next().map(|(flag, _)| flag);
        match file.filter(|_| !own_files) {
            Some(flag) => Err(ExtraArgsError::NoFiles(flag)),
            None => Ok(out),
        }
    }

    pub fn secure(&self, options: &mut SecureOptions) {
        if let Some(limit) = self.max_token_expiration {
            options.max_token_expiration_seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        }
        if let Some(exact) = self.exact_token_expiration {
            options.exact_token_expiration = exact;
        }
        options.api_audiences.extend(self.api_audiences.iter().cloned());
        options.enable_admission_plugins.extend(self.enable_admission_plugins.iter().cloned());
        options.disable_admission_plugins.extend(self.disable_admission_plugins.iter().cloned());
    }

    pub fn apply(&self, config: &mut Config) -> Result<(), ExtraArgsError> {
        if let Some(ttl) = self.event_ttl {
            config.event_ttl = ttl;
        }
        if let Some(allow) = self.allow_privileged {
            config.allow_privileged = allow;
        }
        Ok(self.authentication.apply(config)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_honoured_named_or_refused() {
        for (args, own_files, want) in [
            (&["--oidc-issuer-url=https://i.example", "--oidc-client-id=kube", "--v=4"][..], false, Ok(2)),
            (&["--anonymous-auth=false", "--event-ttl=2h", "--allow-privileged"], false, Ok(1)),
            (
                &["--service-account-max-token-expiration=2h", "--service-account-extend-token-expiration=false"],
                false,
                Ok(1),
            ),
            (
                &["--service-account-max-token-expiration=2m"],
                false,
                Err("--service-account-max-token-expiration: \"2m\" is no duration of an hour or more"),
            ),
            (
                &["--authentication-config=/etc/a.yaml"],
                true,
                Err("--authentication-config \"/etc/a.yaml\" cannot be read"),
            ),
            (
                &["--oidc-ca-file=/etc/ca.pem"],
                false,
                Err("--oidc-ca-file names a file, and in a hub files are those of all clusters"),
            ),
            (&["--audit-log-path=-"], true, Err("--audit-log-path is not supported by the native distro")),
            (&["--event-ttl=soon"], true, Err("--event-ttl: \"soon\" is no duration such as 1h0m0s")),
            (&["oidc-client-id=a"], true, Err("\"oidc-client-id=a\" is no flag: flags begin with --")),
        ] {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            let got = ExtraArgs::parse(&args, own_files).and_then(|parsed| {
                let mut options = SecureOptions {
                    service_account_signing_key: String::from_utf8(key()).unwrap(),
                    ..SecureOptions::default()
                };
                parsed.secure(&mut options);
                let mut config = apiserver::secure_config(&options).unwrap();
                parsed.apply(&mut config)?;
                if args.contains(&"--service-account-max-token-expiration=2h".to_owned()) {
                    assert_eq!((options.max_token_expiration_seconds, options.exact_token_expiration), (7200, true));
                }
                if args.contains(&"--event-ttl=2h".to_owned()) {
                    assert!(!config.anonymous && config.allow_privileged);
                    assert_eq!(config.event_ttl, Duration::from_secs(7200));
                }
                Ok(config.token_authenticators.len())
            });
            assert_eq!(got.map_err(|error| error.to_string()), want.map_err(str::to_owned), "{args:?}");
        }
    }

    fn key() -> Vec<u8> {
        pki::service_account_key().unwrap().key.into_bytes()
    }
}
