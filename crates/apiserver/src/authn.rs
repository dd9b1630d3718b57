//! Who sends a request: the [`Authenticator`] seam, client certificates, and the anonymous user.
//!
//! The server asks its authenticators in order. The first that recognises a credential decides; when none does the request
//! is anonymous (if allowed). Impersonation is applied afterwards by the server.
//!
//! Follows: `k8s.io/apiserver/pkg/authentication`.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

/// The group of everybody who has shown a credential.
pub const ALL_AUTHENTICATED: &str = "system:authenticated";
pub const ALL_UNAUTHENTICATED: &str = "system:unauthenticated";
pub const ANONYMOUS: &str = "system:anonymous";
/// Members may do everything, whatever the authorizer says.
pub const SYSTEM_MASTERS: &str = "system:masters";

/// Who is asking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    pub fn new(name: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> UserInfo {
        UserInfo { name: name.into(), groups: groups.into_iter().map(Into::into).collect(), ..UserInfo::default() }
    }

    /// An administrator of `system:masters`.
    pub fn admin() -> UserInfo {
        UserInfo::new("kubernetes-admin", [SYSTEM_MASTERS, ALL_AUTHENTICATED])
    }

    /// A service account, with the groups every service account has.
    pub fn service_account(namespace: &str, name: &str) -> UserInfo {
        UserInfo::new(
            format!("system:serviceaccount:{namespace}:{name}"),
            [
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                ALL_AUTHENTICATED.to_owned(),
            ],
        )
    }

    pub fn anonymous() -> UserInfo {
        UserInfo::new(ANONYMOUS, [ALL_UNAUTHENTICATED])
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// The client certificate of a TLS connection, verified against the server's client CA when the connection was made.
#[derive(Clone, Debug)]
pub struct PeerCertificate(pub Arc<rustls_pki_types::CertificateDer<'static>>);

/// Why a credential was refused. The client sees 401 `Unauthorized` and nothing else; this goes to the log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthenticationError(pub String);

/// Recognises one kind of credential.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// The user, `None` when the request carries no credential of this kind, or an error when it carries a bad one.
    /// `request.extensions` may hold a [`PeerCertificate`].
    async fn authenticate(&self, request: &http::request::Parts) -> Result<Option<UserInfo>, AuthenticationError>;
}

/// Client certificates: the common name is the user, organisations are the groups.
#[derive(Debug, Default)]
pub struct ClientCertificates;

#[async_trait]
impl Authenticator for ClientCertificates {
    async fn authenticate(&self, request: &http::request::Parts) -> Result<Option<UserInfo>, AuthenticationError> {
        let Some(PeerCertificate(der)) = request.extensions.get::<PeerCertificate>() else { return Ok(None) };
        let (_, certificate) = x509_parser::parse_x509_certificate(der)
            .map_err(|e| AuthenticationError(format!("the client certificate cannot be read: {e}")))?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next().and_then(|a| a.as_str().ok()).unwrap_or("");
        if name.is_empty() {
            return Ok(None);
        }
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|a| a.as_str().ok()).map(str::to_owned).collect();
        groups.push(ALL_AUTHENTICATED.to_owned());
        Ok(Some(UserInfo::new(name, groups)))
    }
}

/// The bearer token of a request, if it has one.
pub fn bearer_token(request: &http::request::Parts) -> Option<&str> {
    let value = request.headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()).filter(|t| !t.is_empty())
}
