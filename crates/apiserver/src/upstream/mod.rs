//! The API of another server behind this one: kube-apiserver on the same store (`distro: k8s`).
//!
//! The server here keeps the port, TLS and the watch cache. What only a virtual control plane can answer (logs and
//! connections of pods, kubelets, groups of the embedding program, its health checks) is answered here; everything else is
//! passed on as it came, and the answer back as it came.
//!
//! Invariants:
//! - Headers that name a user (`X-Remote-*`) never come from a client: they are taken off, and set only for a user whom this
//!   server has authenticated. Bearer tokens are passed on and judged by the other server.
//! - Nothing is written here: no bootstrap objects, no status of definitions. The other server does that.
//! - Who may do what is always the other server's word ([`Reviews`]).
//!
//! Follows: `k8s.io/apiserver/pkg/authentication/request/headerrequest` (what the other side expects).

mod own;
pub(crate) mod pass;
mod reviews;
mod services;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::status::{Status, StatusResult};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::authn::{Authenticator, ClientCertificates, PeerCertificate, SYSTEM_MASTERS, UserInfo};
use crate::body::{RequestBody, request_body};
use crate::in_process::InProcessUser;

pub(crate) use own::{is_own, pass_on};
pub use reviews::Reviews;

/// How long a connection may wait for its next request, and how many do.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const IDLE_MAX: usize = 64;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request of this server's own may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer to such a request.
const ANSWER_BYTES_MAX: usize = 3 * 1024 * 1024;
/// When to come again while the other server is away.
const RETRY_AFTER_SECONDS: i32 = 1;

type Http = Client<HttpsConnector<HttpConnector>, RequestBody>;

/// Why the way to the other server cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("could not read the {what}")]
    Pem {
        what: &'static str,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("the certificates cannot be used")]
    Tls(#[from] rustls::Error),
}

/// What the other server is reached with, as PEM.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// Authorities of the other server's serving certificate.
    pub server_ca: String,
    /// The certificate with which users may be named (`--requestheader-client-ca-file`), and its key.
    pub proxy_certificate: String,
    pub proxy_key: String,
}

/// The other server.
pub struct Upstream {
    address: SocketAddr,
    clients: RwLock<Clients>,
}

#[derive(Clone)]
struct Clients {
    /// Names users in headers.
    proxy: Http,
    /// Has no credentials of its own.
    plain: Http,
}

/// For whom a request is passed on.
pub(crate) enum Caller {
    /// This server knows who it is.
    User(Arc<UserInfo>),
    /// The request's own bearer token says, or nobody.
    AsSent,
}

impl Upstream {
    /// A server on this machine. Nothing is asked of it yet.
    pub fn new(address: SocketAddr, credentials: &Credentials) -> Result<Upstream, UpstreamError> {
        Ok(Upstream { address, clients: RwLock::new(clients(credentials)?) })
    }

    /// Uses other credentials from now on.
    pub fn replace(&self, credentials: &Credentials) -> Result<(), UpstreamError> {
        *self.clients.write() = clients(credentials)?;
        Ok(())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks for something in this server's own name.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> StatusResult<Value> {
        let bytes = body.map(Value::to_vec).unwrap_or_default();
        let mut headers = HeaderMap::new();
        if !bytes.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let (code, answer) = self.exchange(method, path, headers, bytes.into(), &own_user()).await?;
        if code < 400 {
            return Ok(answer);
        }
        let unread = || Status::failure(code, "", format!("the upstream API server answered with {code}"));
        Err(Box::new(Status::from_value(&answer).unwrap_or_else(unread)))
    }

    /// Sends a request for a user and reads its JSON answer, whatever the answer says.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        user: &Arc<UserInfo>,
    ) -> StatusResult<(u16, Value)> {
        let mut parts = Request::builder().method(method).uri(path).body(()).map_err(bad)?.into_parts().0;
        parts.headers = headers;
        let exchange = async {
            let response = self.send(parts, request_body(Full::new(body)), &Caller::User(user.clone())).await?;
            let code = response.status().as_u16();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
            let bytes = body.collect().await.map_err(away)?.to_bytes();
            let value = Value::from_slice(&bytes).unwrap_or_default();
            Ok((code, value))
        };
        match tokio::time::timeout(CALL_TIMEOUT, exchange).await {
            Ok(result) => result,
            Err(_) => Err(away("no answer in time")),
        }
    }

    /// Is this path answered with 200?
    pub async fn is_ok(&self, path: &str) -> bool {
        let parts = match Request::builder().uri(path).body(()) {
            Ok(request) => request.into_parts().0,
            Err(_) => return false,
        };
        let caller = Caller::User(own_user());
        let ask = self.send(parts, request_body(Full::new(Bytes::new())), &caller);
        matches!(tokio::time::timeout(CONNECT_TIMEOUT, ask).await, Ok(Ok(response)) if response.status() == 200)
    }

    /// Passes a request on.
    pub(crate) async fn send(
        &self,
        parts: Parts,
        body: RequestBody,
        caller: &Caller,
    ) -> StatusResult<Response<Incoming>> {
        let mut parts = parts;
        let near = pass::take_near(&mut parts);
        let request = pass::request(self.address, parts, body, caller)?;
        let client = {
            let clients = self.clients.read();
            match caller {
                Caller::User(_) => clients.proxy.clone(),
                Caller::AsSent => clients.plain.clone(),
            }
        };
        let mut answer = client.request(request).await.map_err(away)?;
        pass::join(near, &mut answer, ());
        Ok(answer)
    }
}

/// Who this server is to the other one.
fn own_user() -> Arc<UserInfo> {
    Arc::new(UserInfo::new("system:alcove", [SYSTEM_MASTERS]))
}

/// Who a request is from, as far as this server can tell without asking.
pub(crate) async fn caller(parts: &Parts) -> StatusResult<Caller> {
    if let Some(InProcessUser(user)) = parts.extensions.get::<InProcessUser>() {
        return Ok(Caller::User(user.clone()));
    }
    if parts.extensions.get::<PeerCertificate>().is_some() {
        // Verified against the client CA in the handshake.
        match ClientCertificates.authenticate(parts).await {
            Ok(Some(user)) => return Ok(Caller::User(Arc::new(user))),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "a credential was refused");
                return Err(Box::new(Status::unauthorized("Unauthorized")));
            }
        }
    }
    Ok(Caller::AsSent)
}

fn away(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Box<Status> {
    let error: Box<dyn std::error::Error> = error.into();
    tracing::debug!(error, "the upstream API server is away");
    let status = Status::service_unavailable("the API server is starting; try again in a moment");
    Box::new(status.with_retry_after(RETRY_AFTER_SECONDS))
}

fn bad(error: impl std::fmt::Display) -> Box<Status> {
    Box::new(Status::bad_request(error.to_string()))
}

fn clients(credentials: &Credentials) -> Result<Clients, UpstreamError> {
    let read = |what: &'static str| move |source| UpstreamError::Pem { what, source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(credentials.server_ca.as_bytes()) {
        roots.add(certificate.map_err(read("server CA"))?)?;
    }
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(credentials.proxy_certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(read("certificate of the proxy"))?;
    let key = PrivateKeyDer::from_pem_slice(credentials.proxy_key.as_bytes()).map_err(read("key of the proxy"))?;
    let builder = || {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        builder.map(|builder| builder.with_root_certificates(roots.clone()))
    };
    let proxy = builder()?.with_client_auth_cert(chain, key)?;
    let plain = builder()?.with_no_client_auth();
    Ok(Clients { proxy: client(proxy), plain: client(plain) })
}

/// One request at a time on a connection: watches would use up the streams of a shared one.
fn client(tls: rustls::ClientConfig) -> Http {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().wrap_connector(connector);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_MAX)
        .build(https)
}
