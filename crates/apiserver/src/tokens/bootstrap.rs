//! Bootstrap tokens (`--enable-bootstrap-token-auth`): with one a node or a tool gets its first credential.
//!
//! Follows: `plugin/pkg/auth/authenticator/token/bootstrap`, `cluster-bootstrap/token`.

use std::sync::{Arc, OnceLock};

use apimachinery::Value;
use apimachinery::meta::ObjectMeta;
use apimachinery::time::Timestamp;
use async_trait::async_trait;
use base64::Engine;
use sha2::{Digest, Sha256};

use super::{TokenAuthenticator, TokenUser};
use crate::authn::{ALL_AUTHENTICATED, AuthenticationError, UserInfo};
use crate::storage::Storage;

const NAMESPACE: &str = "kube-system";
const PREFIX: &str = "bootstrap-token-";
const GROUP: &str = "system:bootstrappers";

/// Accepts the tokens in Secrets `kube-system/bootstrap-token-ID`.
#[derive(Default)]
pub struct BootstrapTokens {
    storage: OnceLock<Arc<Storage>>,
}

/// `ID.SECRET`: six and sixteen lower case letters and digits.
fn split(token: &str) -> Option<(&str, &str)> {
    let plain =
        |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    token.split_once('.').filter(|(id, secret)| plain(id, 6) && plain(secret, 16))
}

/// The groups of the token's user; nothing when the Secret does not allow it.
fn groups(secret: &Value, id: &str, token_secret: &str, now: Timestamp) -> Option<Vec<String>> {
    let data = |key: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(secret.str_at(&["data", key])).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    let alive = secret.deletion_timestamp().is_none() && secret.str_at(&["type"]) == "bootstrap.kubernetes.io/token";
    // Hashes are compared: how long that takes tells nothing about the token.
    let same = Sha256::digest(data("token-secret").as_bytes()) == Sha256::digest(token_secret.as_bytes());
    let expiration = data("expiration");
    let in_time = expiration.is_empty() || Timestamp::parse(&expiration).is_some_and(|end| end.seconds > now.seconds);
    if !alive || !same || data("token-id") != id || !in_time || data("usage-bootstrap-authentication") != "true" {
        return None;
    }
    let mut groups = vec![GROUP.to_owned()];
    for extra in data("auth-extra-groups").split(',').map(str::trim).filter(|group| !group.is_empty()) {
        // Only groups of their own kind: a token must not make anybody an administrator.
        let name = extra.strip_prefix("system:bootstrappers:")?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b':' | b'-');
        if name.is_empty() || !name.bytes().all(plain) {
            return None;
        }
        groups.push(extra.to_owned());
    }
    groups.push(ALL_AUTHENTICATED.to_owned());
    Some(groups)
}

#[async_trait]
impl TokenAuthenticator for BootstrapTokens {
    fn attach(&self, storage: &Arc<Storage>) {
        let _ = self.storage.set(storage.clone());
    }

    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<TokenUser>, AuthenticationError> {
        let (Some((id, token_secret)), Some(storage)) = (split(token), self.storage.get()) else { return Ok(None) };
        let secret = storage.find("", "v1", "secrets", NAMESPACE, &format!("{PREFIX}{id}")).await;
        let secret = secret.map_err(|status| AuthenticationError(status.message))?;
        let now = Timestamp::from(std::time::SystemTime::now());
        let groups = secret.and_then(|secret| groups(&secret, id, token_secret, now));
        let user = groups.map(|groups| UserInfo::new(format!("system:bootstrap:{id}"), groups));
        Ok(user.map(|user| TokenUser { user, audiences: audiences.to_vec() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn a_bootstrap_token_is_good_while_its_secret_says_so() {
        let now = Timestamp::parse("2026-11-21T08:00:00Z").unwrap();
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let secret = |changes: &[(&str, &str)]| {
            let mut object = json!({"type": "bootstrap.kubernetes.io/token", "metadata": {"name": "bootstrap-token-abcdef"}, "data": {}});
            let usual = [
                ("token-id", "abcdef"),
                ("token-secret", "0123456789abcdef"),
                ("usage-bootstrap-authentication", "true"),
                ("auth-extra-groups", "system:bootstrappers:kubeadm:default-node-token"),
            ];
            for (key, value) in usual.iter().chain(changes) {
                object["data"][*key] = encode(value).into();
            }
            object
        };
        for (changes, want) in [
            (&[][..], true),
            (&[("expiration", "2026-11-21T09:00:00Z")][..], true),
            (&[("expiration", "2026-11-21T07:00:00Z")][..], false),
            (&[("expiration", "soon")][..], false),
            (&[("token-secret", "0123456789abcdee")][..], false),
            (&[("token-id", "abcdeg")][..], false),
            (&[("usage-bootstrap-authentication", "false")][..], false),
            (&[("auth-extra-groups", "system:masters")][..], false),
        ] {
            let got = groups(&secret(changes), "abcdef", "0123456789abcdef", now);
            assert_eq!(got.is_some(), want, "{changes:?}");
            if let Some(groups) = got {
                assert_eq!(groups, [GROUP, "system:bootstrappers:kubeadm:default-node-token", ALL_AUTHENTICATED]);
            }
        }
        let mut other = secret(&[]);
        other["type"] = "Opaque".into();
        assert!(groups(&other, "abcdef", "0123456789abcdef", now).is_none());
        for (token, want) in [
            ("abcdef.0123456789abcdef", true),
            ("abcdef.0123456789abcde", false),
            ("ABCDEF.0123456789abcdef", false),
            ("eyJhbGciOi.J9.x", false),
        ] {
            assert_eq!(split(token).is_some(), want, "{token}");
        }
    }
}
