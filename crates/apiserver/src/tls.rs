//! TLS of servers: certificates from PEM; client certificates are asked for, and demanded where nobody comes without one.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Clients whose next connection may skip a part of the handshake. The room is taken at once, for each cluster.
const SESSIONS_MAX: usize = 32;

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
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS_MAX);
    Ok(Arc::new(config))
}
