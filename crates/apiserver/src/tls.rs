//! TLS of servers: certificates from PEM; client certificates are asked for, and demanded where nobody comes without one.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("could not read the {what}")]
    Pem {
        what: &'static str,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("the client CA cannot be used")]
    ClientCa(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the serving certificate cannot be used")]
    Serving(#[source] rustls::Error),
}

/// Verifies servers as Go does: a certificate that is trusted itself may be served, although it is an authority. So are those
/// that `openssl req -x509` makes.
#[derive(Debug)]
pub struct ServerVerifier {
    chains: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl ServerVerifier {
    /// Trusts chains to `roots`, and `trusted` themselves.
    pub fn new(
        roots: RootCertStore,
        trusted: Vec<CertificateDer<'static>>,
    ) -> Result<ServerVerifier, rustls::server::VerifierBuilderError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(ServerVerifier { chains, trusted })
    }

    /// Is it one of those that are trusted themselves, with this name and at this time?
    fn is_trusted(&self, certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> bool {
        let in_time = || {
            let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
            let now = x509_parser::time::ASN1Time::from_timestamp(i64::try_from(now.as_secs()).ok()?).ok()?;
            Some(parsed.validity().is_valid_at(now))
        };
        self.trusted.iter().any(|trusted| trusted == certificate)
            && in_time() == Some(true)
            && ParsedCertificate::try_from(certificate)
                .is_ok_and(|parsed| rustls::client::verify_server_name(&parsed, name).is_ok())
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(_) if self.is_trusted(end_entity, server_name, now) => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// A serving certificate that can be replaced while connections are served: new connections get the new one.
#[derive(Debug)]
pub struct ServingCertificate(RwLock<Arc<CertifiedKey>>);

impl ServingCertificate {
    /// From PEM texts: the chain, leaf first, and its key.
    pub fn new(certificates: &[u8], key: &[u8]) -> Result<Arc<ServingCertificate>, TlsError> {
        Ok(Arc::new(ServingCertificate(RwLock::new(Arc::new(certified(certificates, key)?)))))
    }

    pub fn replace(&self, certificates: &[u8], key: &[u8]) -> Result<(), TlsError> {
        let new = Arc::new(certified(certificates, key)?);
        *self.0.write() = new;
        Ok(())
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

fn certified(certificates: &[u8], key: &[u8]) -> Result<CertifiedKey, TlsError> {
    let read = |what: &'static str| move |source| TlsError::Pem { what, source };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(certificates).collect::<Result<_, _>>().map_err(read("serving certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(read("serving key"))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(TlsError::Serving)
}

/// A server's TLS configuration from PEM texts. A client certificate that is shown must be signed by `client_ca`; without
/// a CA no client certificate is asked for.
pub fn server_config(
    certificates: &[u8],
    key: &[u8],
    client_ca: Option<&[u8]>,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    server_config_with(ServingCertificate::new(certificates, key)?, client_ca)
}

/// The same for a server that talks to nobody without a client certificate.
pub fn server_config_for_clients(
    certificates: &[u8],
    key: &[u8],
    client_ca: &[u8],
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    configuration(ServingCertificate::new(certificates, key)?, Some(client_ca), true)
}

/// The same with a serving certificate that may be replaced later.
pub fn server_config_with(
    serving: Arc<ServingCertificate>,
    client_ca: Option<&[u8]>,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    configuration(serving, client_ca, false)
}

fn configuration(
    serving: Arc<ServingCertificate>,
    client_ca: Option<&[u8]>,
    demanded: bool,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Serving)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|source| TlsError::Pem { what: "client CA", source })?;
                roots.add(certificate).map_err(|e| TlsError::ClientCa(e.into()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if demanded { verifier } else { verifier.allow_unauthenticated() };
            let verifier = verifier.build().map_err(|e| TlsError::ClientCa(e.into()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(ca: bool, names: &[&str], expired: bool) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        if ca {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        if expired {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        }
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_that_is_trusted_itself_may_be_served_under_its_names_and_in_time() {
        let own = certificate(true, &["a.example"], false);
        for (served, trusted, name, want) in [
            (own.clone(), own.clone(), "a.example", true),
            (own.clone(), own.clone(), "b.example", false),
            (own.clone(), certificate(true, &["a.example"], false), "a.example", false),
            (certificate(true, &["a.example"], false), own, "a.example", false),
        ] {
            check(served, trusted, name, want);
        }
        for (ca, expired) in [(false, false), (true, true)] {
            let own = certificate(ca, &["a.example"], expired);
            check(own.clone(), own, "a.example", !expired);
        }
    }

    fn check(served: CertificateDer<'static>, trusted: CertificateDer<'static>, name: &str, want: bool) {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let verifier = ServerVerifier::new(roots, vec![trusted]).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let result = verifier.verify_server_cert(&served, &[], &name, &[], UnixTime::now());
        assert_eq!(result.is_ok(), want, "{name:?}: {result:?}");
    }
}
