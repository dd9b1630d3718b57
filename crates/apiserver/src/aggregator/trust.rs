//! TLS towards servers inside the cluster: who is trusted, and as whom this server comes.
//!
//! Follows: `k8s.io/client-go/transport.TLSConfigFor`, `crypto/x509.Certificate.Verify`.

use std::sync::Arc;

use base64::Engine;
use parking_lot::RwLock;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::sync::watch;

/// Where distributions keep the authorities that everybody trusts.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why TLS towards a server cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("unable to load root certificates: {0}")]
    Bundle(String),
    #[error("the certificate of the proxy cannot be used: {0}")]
    Identity(String),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// The certificate with which this server proves to extension servers that it may name users
/// (`--proxy-client-cert-file`, `--proxy-client-key-file`). It may be replaced while the server runs.
#[derive(Debug)]
pub struct ProxyIdentity {
    current: RwLock<Arc<(String, String)>>,
    replaced: watch::Sender<()>,
}

impl ProxyIdentity {
    /// From PEM texts: the chain, leaf first, and its key.
    pub fn new(certificate: &str, key: &str) -> Result<Arc<ProxyIdentity>, TrustError> {
        read_identity(certificate, key)?;
        let current = RwLock::new(Arc::new((certificate.to_owned(), key.to_owned())));
        Ok(Arc::new(ProxyIdentity { current, replaced: watch::Sender::new(()) }))
    }

    /// New connections show this certificate from now on.
    pub fn replace(&self, certificate: &str, key: &str) -> Result<(), TrustError> {
        read_identity(certificate, key)?;
        *self.current.write() = Arc::new((certificate.to_owned(), key.to_owned()));
        self.replaced.send_replace(());
        Ok(())
    }

    pub(crate) fn replacements(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_identity(certificate: &str, key: &str) -> Result<Identity, TrustError> {
    let wrong = |error: rustls_pki_types::pem::Error| TrustError::Identity(error.to_string());
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>().map_err(wrong)?;
    if chain.is_empty() {
        return Err(TrustError::Identity("there is no certificate".to_owned()));
    }
    Ok((chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(wrong)?))
}

/// The certificates in `bundle`, the base64 of PEM as `caBundle` has it.
pub(crate) fn bundle(bundle: &str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let pem = base64::engine::general_purpose::STANDARD.decode(bundle);
    let pem = pem.map_err(|error| TrustError::Bundle(error.to_string()))?;
    pem_bundle(&String::from_utf8_lossy(&pem))
}

/// Why no authority can be taken from the bundle. Only when there is none at all the rest is looked at.
pub(crate) fn check_bundle(text: &str) -> Result<(), TrustError> {
    let pem = base64::engine::general_purpose::STANDARD.decode(text);
    let pem = pem.map_err(|error| TrustError::Bundle(error.to_string()))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem).flatten().collect();
    if found.iter().any(|certificate| x509_parser::parse_x509_certificate(certificate).is_ok()) {
        return Ok(());
    }
    let problem = match (found.is_empty(), pem.windows(10).any(|bytes| bytes == b"-----BEGIN")) {
        (false, _) => "failed to parse certificate: x509: malformed certificate",
        (true, true) => "no valid certificate authority data seen",
        (true, false) => "unable to parse bytes as PEM block",
    };
    Err(TrustError::Bundle(problem.to_owned()))
}

/// The certificates in a PEM text.
pub(crate) fn pem_bundle(pem: &str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().collect();
    if found.is_empty() {
        return Err(TrustError::Bundle("unable to parse bytes as PEM block".to_owned()));
    }
    Ok(found)
}

/// Who is trusted to be the server.
pub(crate) enum Trust {
    /// Those whom these authorities have signed, and these certificates themselves.
    Bundle(Vec<CertificateDer<'static>>),
    /// Those whom the system's authorities have signed.
    System,
    /// Anybody.
    Unchecked,
}

/// A client's configuration for HTTP/1.1.
pub(crate) fn client_config(trust: Trust, identity: Option<&ProxyIdentity>) -> Result<Arc<ClientConfig>, TrustError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::Unchecked => builder.dangerous().with_custom_certificate_verifier(store::unchecked_verifier(provider)),
        Trust::System => {
            let mut roots = RootCertStore::empty();
            let pem = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
            for certificate in CertificateDer::pem_slice_iter(&pem).flatten() {
                // The system's file may hold certificates that rustls does not take.
                let _ = roots.add(certificate);
            }
            builder.with_root_certificates(roots)
        }
        Trust::Bundle(certificates) => {
            let verifier = OfBundle::new(certificates, provider)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let pair = identity.current.read().clone();
            let (chain, key) = read_identity(&pair.0, &pair.1)?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Servers with certificates signed by an authority of a bundle, and with such as stand in the bundle themselves: many servers
/// make one certificate that is its own authority, which other implementations of TLS take.
#[derive(Debug)]
struct OfBundle {
    chains: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl OfBundle {
    fn new(certificates: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Result<OfBundle, TrustError> {
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|error| TrustError::Bundle(error.to_string()))?;
        }
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let chains = chains.build().map_err(|error| TrustError::Bundle(error.to_string()))?;
        Ok(OfBundle { chains, certificates })
    }
}

impl ServerCertVerifier for OfBundle {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.certificates.iter().any(|known| known == end_entity) {
            return self.chains.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        }
        let bad = |_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, certificate) = x509_parser::parse_x509_certificate(end_entity).map_err(bad)?;
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let validity = certificate.validity();
        if seconds < validity.not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if seconds > validity.not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// A failed handshake in the words of upstream.
pub(crate) fn handshake_text(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(problem)) => {
            let text = match problem {
                CertificateError::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "certificate has expired or is not yet valid".to_owned()
                }
                CertificateError::NotValidForName => "certificate is not valid for this name".to_owned(),
                CertificateError::NotValidForNameContext { expected, presented } => {
                    let names: Vec<&str> = presented.iter().map(|name| plain_name(name)).collect();
                    let expected = expected.to_str();
                    match names.is_empty() {
                        true => format!("certificate is not valid for any names, but wanted to match {expected}"),
                        false => format!("certificate is valid for {}, not {expected}", names.join(", ")),
                    }
                }
                other => other.to_string(),
            };
            format!("tls: failed to verify certificate: x509: {text}")
        }
        Some(other) => format!("tls: {other}"),
        None => error.to_string(),
    }
}

/// `DnsName("a.example")` without its wrapping.
fn plain_name(shown: &str) -> &str {
    shown.split_once("(\"").and_then(|(_, rest)| rest.strip_suffix("\")")).unwrap_or(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str, authority: bool) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        if authority {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_of_the_bundle_vouches_for_itself() {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        for authority in [true, false] {
            let own = certificate("s.a.svc", authority);
            let verifier = OfBundle::new(vec![own.clone()], provider.clone()).unwrap();
            let verify = |certificate: &CertificateDer<'_>, name: &'static str, now: UnixTime| {
                verifier.verify_server_cert(certificate, &[], &ServerName::try_from(name).unwrap(), &[], now).is_ok()
            };
            let now = UnixTime::now();
            assert!(verify(&own, "s.a.svc", now), "authority: {authority}");
            assert!(!verify(&own, "t.a.svc", now), "another name");
            let late = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_secs() + 10_000 * 365 * 86400));
            assert!(!verify(&own, "s.a.svc", late), "too late");
            assert!(!verify(&certificate("s.a.svc", authority), "s.a.svc", now), "not in the bundle");
        }
    }
}
