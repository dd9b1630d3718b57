//! Who sends a request: the [`Authenticator`] seam, client certificates, and the anonymous user.
//!
//! The server asks its authenticators in order. The first that recognises a credential decides; when none does the request
//! is anonymous (if allowed). Impersonation is applied afterwards by the server.
//!
//! Follows: `k8s.io/apiserver/pkg/authentication`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

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

/// The client certificate of a TLS connection, verified against the server's client CA when the connection was made. Clones,
/// one for each request, share what was read of it.
#[derive(Clone, Debug)]
pub struct PeerCertificate(Arc<Peer>);

#[derive(Debug)]
struct Peer {
    der: rustls_pki_types::CertificateDer<'static>,
    subject: OnceLock<Result<Subject, AuthenticationError>>,
}

#[derive(Debug)]
struct Subject {
    common_name: String,
    organizations: Vec<String>,
    /// First and last second in which it is valid, since the epoch.
    valid: RangeInclusive<i64>,
}

impl PeerCertificate {
    pub fn new(der: rustls_pki_types::CertificateDer<'static>) -> PeerCertificate {
        PeerCertificate(Arc::new(Peer { der, subject: OnceLock::new() }))
    }

    /// Whom it names. A connection may outlive its certificate, so that each request asks.
    fn subject(&self) -> Result<&Subject, AuthenticationError> {
        let subject = self.0.subject.get_or_init(|| Subject::read(&self.0.der)).as_ref().map_err(Clone::clone)?;
        let now = rustls_pki_types::UnixTime::now().as_secs();
        if i64::try_from(now).is_ok_and(|now| subject.valid.contains(&now)) {
            return Ok(subject);
        }
        Err(AuthenticationError("the client certificate has expired or is not yet valid".to_owned()))
    }
}

impl Subject {
    fn read(der: &[u8]) -> Result<Subject, AuthenticationError> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der)
            .map_err(|error| AuthenticationError(format!("the client certificate cannot be read: {error}")))?;
        let (subject, validity) = (certificate.subject(), certificate.validity());
        let common_name = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
        Ok(Subject {
            common_name: common_name.to_owned(),
            organizations: subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect(),
            valid: validity.not_before.timestamp()..=validity.not_after.timestamp(),
        })
    }
}

/// Why a credential was refused. The client sees 401 `Unauthorized` and nothing else; this goes to the log.
#[derive(Clone, Debug, thiserror::Error)]
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
        let Some(certificate) = request.extensions.get::<PeerCertificate>() else { return Ok(None) };
        let subject = certificate.subject()?;
        if subject.common_name.is_empty() {
            return Ok(None);
        }
        let mut groups = subject.organizations.clone();
        groups.push(ALL_AUTHENTICATED.to_owned());
        Ok(Some(UserInfo::new(&subject.common_name, groups)))
    }
}

/// A proxy in front that has authenticated the user and names it in headers. It proves that it may by a client certificate
/// of an authority of its own (`--requestheader-client-ca-file`).
///
/// Source: `k8s.io/apiserver/pkg/authentication/request/headerrequest`.
#[derive(Debug)]
pub struct RequestHeaders {
    verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    allowed_names: Vec<String>,
    users: Vec<String>,
    groups: Vec<String>,
    uids: Vec<String>,
    extra_prefixes: Vec<String>,
}

/// What a [`RequestHeaders`] looks for. Names of headers are lower case.
#[derive(Clone, Debug, Default)]
pub struct RequestHeaderOptions {
    /// Authorities of the proxies' certificates, PEM.
    pub client_ca: String,
    /// `--requestheader-allowed-names`; empty: any name.
    pub allowed_names: Vec<String>,
    /// `--requestheader-username-headers`.
    pub users: Vec<String>,
    /// `--requestheader-group-headers`.
    pub groups: Vec<String>,
    /// `--requestheader-uid-headers`.
    pub uids: Vec<String>,
    /// `--requestheader-extra-headers-prefix`.
    pub extra_prefixes: Vec<String>,
}

impl RequestHeaders {
    /// Reads the authorities.
    pub fn new(options: &RequestHeaderOptions) -> Result<RequestHeaders, AuthenticationError> {
        use rustls_pki_types::pem::PemObject;
        let wrong =
            |reason: String| AuthenticationError(format!("the authorities of proxies cannot be used: {reason}"));
        let mut roots = rustls::RootCertStore::empty();
        for certificate in rustls_pki_types::CertificateDer::pem_slice_iter(options.client_ca.as_bytes()) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = builder.build().map_err(|error| wrong(error.to_string()))?;
        let lower = |names: &[String]| names.iter().map(|name| name.to_lowercase()).collect();
        Ok(RequestHeaders {
            verifier,
            allowed_names: options.allowed_names.clone(),
            users: lower(&options.users),
            groups: lower(&options.groups),
            uids: lower(&options.uids),
            extra_prefixes: lower(&options.extra_prefixes),
        })
    }
}

#[async_trait]
impl Authenticator for RequestHeaders {
    async fn authenticate(&self, request: &http::request::Parts) -> Result<Option<UserInfo>, AuthenticationError> {
        let values = |names: &[String]| -> Vec<String> {
            let found = names.iter().flat_map(|name| request.headers.get_all(name.as_str()));
            found.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
        };
        let Some(name) = values(&self.users).into_iter().find(|name| !name.is_empty()) else { return Ok(None) };
        let Some(certificate) = request.extensions.get::<PeerCertificate>() else { return Ok(None) };
        let now = rustls_pki_types::UnixTime::now();
        if self.verifier.verify_client_cert(&certificate.0.der, &[], now).is_err() {
            // Somebody else's certificate: its own name counts, the headers do not.
            return Ok(None);
        }
        let proxy = &certificate.subject()?.common_name;
        if !self.allowed_names.is_empty() && !self.allowed_names.contains(proxy) {
            return Err(AuthenticationError(format!("a proxy named {proxy:?} may not name users")));
        }
        let mut user = UserInfo::new(name, values(&self.groups));
        user.uid = values(&self.uids).into_iter().next().unwrap_or_default();
        for header in request.headers.keys() {
            let key = self.extra_prefixes.iter().find_map(|prefix| header.as_str().strip_prefix(prefix.as_str()));
            let Some(key) = key else { continue };
            let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned();
            let found = request.headers.get_all(header).iter();
            let found = found.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            user.extra.entry(key).or_default().extend(found);
        }
        if user.name != ANONYMOUS && !user.is_in(ALL_UNAUTHENTICATED) && !user.is_in(ALL_AUTHENTICATED) {
            user.groups.push(ALL_AUTHENTICATED.to_owned());
        }
        Ok(Some(user))
    }
}

/// The bearer token of a request, if it has one.
pub fn bearer_token(request: &http::request::Parts) -> Option<&str> {
    let value = request.headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Authority(rcgen::CertificateParams, rcgen::KeyPair, String);

    fn authority(name: &str) -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority(params, key, pem)
    }

    fn leaf(ca: &Authority, name: &str) -> PeerCertificate {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = rcgen::Issuer::from_params(&ca.0, &ca.1);
        let der = params.signed_by(&key, &issuer).unwrap().der().clone();
        PeerCertificate::new(der)
    }

    #[tokio::test]
    async fn a_certificate_counts_while_it_is_valid() {
        let key = rcgen::KeyPair::generate().unwrap();
        let (past, future) = (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2901, 1, 1));
        for (not_before, not_after, valid) in
            [(past, future, true), (past, rcgen::date_time_ymd(2002, 1, 1), false), (future, future, false)]
        {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, "jane");
            params.distinguished_name.push(rcgen::DnType::OrganizationName, "dev");
            (params.not_before, params.not_after) = (not_before, not_after);
            let certificate = PeerCertificate::new(params.self_signed(&key).unwrap().der().clone());
            let mut parts = http::Request::new(()).into_parts().0;
            parts.extensions.insert(certificate);
            let got = ClientCertificates.authenticate(&parts).await;
            match valid {
                true => assert_eq!(got.unwrap(), Some(UserInfo::new("jane", ["dev", ALL_AUTHENTICATED]))),
                false => assert!(got.is_err(), "{got:?}"),
            }
        }
    }

    #[tokio::test]
    async fn only_a_proxy_with_its_certificate_names_users() {
        let (front, client) = (authority("front-proxy-ca"), authority("kubernetes"));
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let headers = RequestHeaders::new(&RequestHeaderOptions {
            client_ca: front.2.clone(),
            allowed_names: names(&["front-proxy-client"]),
            users: names(&["X-Remote-User"]),
            groups: names(&["X-Remote-Group"]),
            uids: names(&["X-Remote-Uid"]),
            extra_prefixes: names(&["X-Remote-Extra-"]),
        })
        .unwrap();
        let proxy = leaf(&front, "front-proxy-client");
        for (certificate, user, want) in [
            (Some(proxy.clone()), Some("jane"), Ok(Some("jane"))),
            (Some(proxy), None, Ok(None)),
            (Some(leaf(&front, "other")), Some("jane"), Err(())),
            (Some(leaf(&client, "front-proxy-client")), Some("jane"), Ok(None)),
            (None, Some("jane"), Ok(None)),
        ] {
            let mut request = http::Request::builder().header("x-remote-group", "dev");
            request = request.header("x-remote-extra-acme.com%2fproject", "p").header("x-remote-uid", "7");
            if let Some(user) = user {
                request = request.header("x-remote-user", user);
            }
            let mut parts = request.body(()).unwrap().into_parts().0;
            if let Some(certificate) = certificate {
                parts.extensions.insert(certificate);
            }
            let got = headers.authenticate(&parts).await.map_err(|_| ());
            assert_eq!(got.as_ref().ok().map(|u| u.as_ref().map(|u| u.name.as_str())), want.ok());
            if let Ok(Some(user)) = got {
                assert_eq!(user.groups, ["dev", ALL_AUTHENTICATED]);
                assert_eq!((user.uid.as_str(), &*user.extra["acme.com/project"]), ("7", &["p".to_owned()][..]));
            }
        }
    }
}
