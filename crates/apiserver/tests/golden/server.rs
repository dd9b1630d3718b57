//! The server under test, set up as section 1 of the format says.

use std::net::SocketAddr;
use std::sync::Arc;

use apiserver::{ApiServer, Config, SecureOptions};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

pub struct TestServer {
    pub address: SocketAddr,
    /// TLS of a client with the administrator's certificate, and of one without a certificate.
    pub admin: Arc<rustls::ClientConfig>,
    pub nobody: Arc<rustls::ClientConfig>,
    _server: ApiServer,
}

pub async fn start() -> TestServer {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "golden-ca");
    let ca_certificate = ca.self_signed(&ca_key).expect("a CA");
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate().expect("a key");
    let serving = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names");
    let serving = serving.signed_by(&key, &issuer).expect("a certificate");

    let client_key = KeyPair::generate().expect("a key");
    let mut client = CertificateParams::default();
    client.distinguished_name.push(DnType::CommonName, "kubernetes-admin");
    client.distinguished_name.push(DnType::OrganizationName, "system:masters");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let client = client.signed_by(&client_key, &issuer).expect("a certificate");

    let tls = apiserver::tls::server_config(
        serving.pem().as_bytes(),
        key.serialize_pem().as_bytes(),
        Some(ca_certificate.pem().as_bytes()),
    )
    .expect("TLS");

    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca_certificate.der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = || {
        rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_root_certificates(roots.clone())
    };
    let chain: Vec<CertificateDer<'static>> = vec![client.der().clone()];
    let client_key = PrivateKeyDer::try_from(client_key.serialize_der()).expect("a key");
    let admin = builder().with_client_auth_cert(chain, client_key).expect("a client certificate");
    let nobody = builder().with_no_client_auth();

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let store = store::Store::in_memory(store::Options::default()).await;
    let token_key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).expect("a key");
    let options = SecureOptions { service_account_signing_key: token_key.serialize_pem(), ..SecureOptions::default() };
    let config = apiserver::secure_config(&options).expect("a configuration");
    let config = Config { secure_port: address.port(), ..config };
    let server = ApiServer::start(config, store).await.expect("the server starts");
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener, tls, CancellationToken::new()).await });
    TestServer { address, admin: Arc::new(admin), nobody: Arc::new(nobody), _server: server }
}
