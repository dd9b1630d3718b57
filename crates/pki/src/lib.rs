//! Keys and certificates of a cluster: authorities, serving and client certificates, service account keys.
//!
//! Knows PEM texts and how to keep them in a directory. Does not know Secrets, TLS connections or what a name in a certificate is allowed to do.
//!
//! Invariants:
//! - An authority lives 10 years, what it signs 1 year; what has less than 90 days left counts as due.
//! - All keys are ECDSA P-256: made in microseconds, so that creating a cluster does not wait for RSA.
//! - A certificate starts an hour in the past, for clients whose clock is behind.
//!
//! Follows: kubeadm's certificate layout (`kubeadm/app/phases/certs`).

mod cluster;
pub mod files;

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

pub use cluster::{ADMIN, CONTROLLER_MANAGER, ClusterCertificates, SCHEDULER, Wanted};

const DAY: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_DAYS: u32 = 3650;
const LEAF_DAYS: u32 = 365;
const DUE_DAYS: u32 = 90;

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    #[error("cannot sign the certificate of {subject}")]
    Sign { subject: String, source: rcgen::Error },
    #[error("{what} is not readable: {reason}")]
    Read { what: String, reason: String },
    #[error("cannot keep keys in {}", path.display())]
    File { path: std::path::PathBuf, source: std::io::Error },
}

/// A certificate and its private key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Usage {
    /// A client: common name is the user, organisations are the groups.
    Client,
    /// A server under these DNS names and IP addresses.
    Server(Vec<String>),
    /// Both, as members of an etcd cluster are to each other.
    Peer(Vec<String>),
}

/// A certificate to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub common_name: &'a str,
    pub organizations: &'a [&'a str],
    pub usage: Usage,
}

/// Makes a self-signed authority.
pub fn authority(common_name: &str) -> Result<Pair, PkiError> {
    authority_at(common_name, SystemTime::now())
}

/// The same as of `now`.
pub fn authority_at(common_name: &str, now: SystemTime) -> Result<Pair, PkiError> {
    let key = new_key()?;
    let mut params = params(common_name, &[], AUTHORITY_DAYS, now);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = sans(&[common_name.to_string()]);
    let certificate =
        params.self_signed(&key).map_err(|source| PkiError::Sign { subject: common_name.to_string(), source })?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Makes a key and a certificate for it, signed by `authority`.
pub fn issue(authority: &Pair, request: &Request<'_>) -> Result<Pair, PkiError> {
    issue_at(authority, request, SystemTime::now())
}

/// The same as of `now`.
pub fn issue_at(authority: &Pair, request: &Request<'_>, now: SystemTime) -> Result<Pair, PkiError> {
    let unreadable = |reason: rcgen::Error| PkiError::Read { what: "the authority".into(), reason: reason.to_string() };
    let authority_key = KeyPair::from_pem(&authority.key).map_err(unreadable)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, authority_key).map_err(unreadable)?;
    let key = new_key()?;
    let mut params = params(request.common_name, request.organizations, LEAF_DAYS, now);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    match &request.usage {
        Usage::Client => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server(names) => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names = sans(names);
        }
        Usage::Peer(names) => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            params.subject_alt_names = sans(names);
        }
    }
    let certificate = params
        .signed_by(&key, &issuer)
        .map_err(|source| PkiError::Sign { subject: request.common_name.to_string(), source })?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A key that signs service account tokens: private (PKCS#8) and public (SPKI), both PEM. `certificate` holds the public.
pub fn service_account_key() -> Result<Pair, PkiError> {
    let key = new_key()?;
    Ok(Pair { certificate: key.public_key_pem(), key: key.serialize_pem() })
}

/// Is less than 90 days left, or is it unreadable?
pub fn is_due(certificate_pem: &str, now: SystemTime) -> bool {
    let until = expiry(certificate_pem);
    until.is_none_or(|until| until < now + DAY * DUE_DAYS)
}

/// DNS names and IP addresses of a certificate, sorted.
pub fn names_of(certificate_pem: &str) -> Result<Vec<String>, PkiError> {
    let read = |reason: String| PkiError::Read { what: "the certificate".into(), reason };
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).map_err(|e| read(e.to_string()))?;
    let certificate = pem.parse_x509().map_err(|e| read(e.to_string()))?;
    let extension = certificate.subject_alternative_name().map_err(|e| read(e.to_string()))?;
    let mut names: Vec<String> = Vec::new();
    for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            x509_parser::extensions::GeneralName::DNSName(name) => names.push((*name).to_string()),
            x509_parser::extensions::GeneralName::IPAddress(bytes) => {
                if let Ok(four) = <[u8; 4]>::try_from(*bytes) {
                    names.push(std::net::IpAddr::from(four).to_string());
                } else if let Ok(sixteen) = <[u8; 16]>::try_from(*bytes) {
                    names.push(std::net::IpAddr::from(sixteen).to_string());
                }
            }
            _ => {}
        }
    }
    names.sort();
    Ok(names)
}

/// When the certificate ends; `None` when it is unreadable.
pub fn expiry(certificate_pem: &str) -> Option<SystemTime> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).ok()?;
    let seconds = pem.parse_x509().ok()?.validity().not_after.timestamp();
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// Was a certificate signed with the key of one of the authorities in a PEM bundle? Told by the identifiers of their keys;
/// where one of them has none, by the names.
pub fn is_issued_by(certificate_pem: &str, authorities_pem: &str) -> bool {
    use x509_parser::extensions::ParsedExtension;
    use x509_parser::prelude::X509Certificate;
    let identifier = |certificate: &X509Certificate<'_>, of_issuer: bool| {
        certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(issuer) if of_issuer => {
                issuer.key_identifier.as_ref().map(|identifier| identifier.0.to_vec())
            }
            ParsedExtension::SubjectKeyIdentifier(own) if !of_issuer => Some(own.0.to_vec()),
            _ => None,
        })
    };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()) else { return false };
    let Ok(certificate) = pem.parse_x509() else { return false };
    let authorities = x509_parser::pem::Pem::iter_from_buffer(authorities_pem.as_bytes()).filter_map(Result::ok);
    authorities.into_iter().any(|pem| {
        let Ok(authority) = pem.parse_x509() else { return false };
        match (identifier(&certificate, true), identifier(&authority, false)) {
            (Some(wanted), Some(own)) => wanted == own,
            _ => certificate.issuer() == authority.subject(),
        }
    })
}

/// What a certificate says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    pub subject: String,
    pub issuer: String,
    pub not_after: SystemTime,
}

/// Reads the first certificate of a PEM text.
pub fn describe(certificate_pem: &str) -> Result<CertificateInfo, PkiError> {
    let read = |reason: String| PkiError::Read { what: "the certificate".into(), reason };
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).map_err(|e| read(e.to_string()))?;
    let certificate = pem.parse_x509().map_err(|e| read(e.to_string()))?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(CertificateInfo {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
    })
}

fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Key)
}

fn params(common_name: &str, organizations: &[&str], days: u32, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, *organization);
    }
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + DAY * days).into();
    params
}

/// Names that are neither an IP address nor printable ASCII are left out: a certificate cannot hold them.
fn sans(names: &[String]) -> Vec<SanType> {
    names
        .iter()
        .filter_map(|name| match name.parse() {
            Ok(address) => Some(SanType::IpAddress(address)),
            Err(_) => name.as_str().try_into().ok().map(SanType::DnsName),
        })
        .collect()
}
