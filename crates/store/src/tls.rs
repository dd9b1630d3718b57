//! TLS towards a database or etcd.
//!
//! Follows: the meanings that PostgreSQL's `sslmode` gives to how far a server is trusted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::BackendError;

/// Files for TLS towards a store: all of them optional.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities that the server's certificate is checked against, and no others. Without it the system's count, for MySQL
    /// the public ones that this program brings along.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate and its key.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

impl TlsFiles {
    pub fn is_empty(&self) -> bool {
        self.ca_file.is_none() && self.cert_file.is_none() && self.key_file.is_none()
    }

    /// Our certificate and its key, if we have one.
    pub(crate) fn identity(&self) -> Result<Option<(&PathBuf, &PathBuf)>, BackendError> {
        match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
            (None, None) => Ok(None),
            _ => Err(BackendError::new("use a client certificate", "certificate and key have to be given together")),
        }
    }
}

/// How far a server has to prove who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Not at all: the connection is encrypted, and that is all.
    Anyone,
    /// A certificate of a known authority, for whatever name.
    Authority,
    /// A certificate of a known authority for the name that was asked for.
    Name,
}

/// Where systems keep the authorities they trust.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

fn authorities_file(files: &TlsFiles) -> Result<PathBuf, BackendError> {
    let system = || SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists());
    files.ca_file.clone().or_else(system).ok_or_else(|| {
        BackendError::new("check the server's certificate", "no authorities are known: give a file with them")
    })
}

/// The authorities as PEM: those that were given, or the system's.
pub(crate) fn authorities(files: &TlsFiles) -> Result<String, BackendError> {
    let path = authorities_file(files)?;
    std::fs::read_to_string(&path).map_err(|error| failure(&path)(error.into()))
}

fn failure(path: &Path) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> BackendError {
    let doing = format!("use {}", path.display());
    move |error| BackendError::new(doing, error)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BackendError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| failure(path)(error.to_string().into()))?;
    if found.is_empty() {
        return Err(failure(path)("it holds no certificate".into()));
    }
    Ok(found)
}

/// A client's configuration that takes any certificate: the connection is encrypted, and that is all. For servers that have
/// certificates of their own making, and for users who ask for it.
pub fn unchecked_client_config() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(unchecked_verifier(provider));
    Ok(builder.with_no_client_auth())
}

/// What [`unchecked_client_config`] takes certificates with, for configurations that have more to say.
pub fn unchecked_verifier(provider: Arc<CryptoProvider>) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Unverified { provider })
}

/// A client's configuration.
pub(crate) fn client_config(files: &TlsFiles, trust: Trust) -> Result<ClientConfig, BackendError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| BackendError::new("prepare TLS", error))?;
    let builder = if trust == Trust::Anyone {
        builder.dangerous().with_custom_certificate_verifier(unchecked_verifier(provider))
    } else {
        let mut roots = RootCertStore::empty();
        let path = authorities_file(files)?;
        // A system's bundle may hold some that are no longer good; one's own may not.
        for certificate in certificates(&path)? {
            if let Err(error) = roots.add(certificate)
                && files.ca_file.is_some()
            {
                return Err(failure(&path)(error.into()));
            }
        }
        if trust == Trust::Authority {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| BackendError::new("prepare TLS", error))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName { verifier }))
        } else {
            builder.with_root_certificates(roots)
        }
    };
    let Some((certificate, key)) = files.identity()? else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| failure(key)(error.to_string().into()))?;
    builder.with_client_auth_cert(chain, secret).map_err(|error| failure(certificate)(error.into()))
}

#[derive(Debug)]
struct Unverified {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug)]
struct AnyName {
    verifier: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.verifier.verify_server_cert(certificate, chain, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
