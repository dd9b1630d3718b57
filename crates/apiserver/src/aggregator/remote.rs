//! One extension server as an APIService names it: where it is, how it is spoken to, what it said about itself.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use apimachinery::Value;
use apimachinery::meta::ObjectMeta;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected as HyperConnected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::{Mutex, RwLock};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::documents::Documents;
use super::resolver::{ConnectError, ServicePort, ServiceResolver, Stream};
use super::trust::{self, ProxyIdentity, Trust};
use crate::authn::UserInfo;
use crate::body::{BoxError, RequestBody, request_body};
use crate::storage::Storage;
use crate::upstream::pass;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for its next request, and how many do.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const IDLE_MAX: usize = 16;
/// The largest document that is read of an extension server.
const DOCUMENT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What an APIService with a service says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub name: String,
    pub group: String,
    pub version: String,
    pub service: ServicePort,
    pub ca_bundle: String,
    pub insecure: bool,
    pub group_priority: i64,
    pub version_priority: i64,
}

impl Spec {
    /// `None` for a local APIService, and for the core group, which is always answered here.
    pub fn read(object: &Value) -> Option<Spec> {
        let spec = object.at(&["spec"])?;
        let service = spec.get("service").filter(|service| !service.is_null())?;
        let text = |key: &str| spec.str_at(&[key]).to_owned();
        let number = |key: &str| spec[key].as_i64().unwrap_or_default();
        if text("group").is_empty() {
            return None;
        }
        Some(Spec {
            name: object.name().to_owned(),
            group: text("group"),
            version: text("version"),
            service: ServicePort {
                namespace: service.str_at(&["namespace"]).to_owned(),
                name: service.str_at(&["name"]).to_owned(),
                port: service["port"].as_i64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
            },
            ca_bundle: text("caBundle"),
            insecure: spec["insecureSkipTLSVerify"] == true,
            group_priority: number("groupPriorityMinimum"),
            version_priority: number("versionPriority"),
        })
    }

    /// The name that its certificate has to be for.
    fn host(&self) -> String {
        format!("{}.{}.svc", self.service.name, self.service.namespace)
    }

    /// Where requests go, by name.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host(), self.service.port)
    }

    /// The path that an extension server must answer.
    pub fn path(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }
}

type Http = Client<Connector, RequestBody>;

/// What remotes of one server share.
pub(crate) struct Means {
    pub storage: Arc<Storage>,
    pub resolver: Arc<dyn ServiceResolver>,
    pub identity: Option<Arc<ProxyIdentity>>,
}

/// Why a request did not get an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// TLS cannot be set up with what the APIService says.
    #[error("{0}")]
    Setup(String),
    /// There is no endpoint.
    #[error("{0}")]
    Unresolved(String),
    #[error("{message}")]
    Unreachable { address: Option<String>, message: String },
    #[error("the request cannot be passed on: {0}")]
    Request(String),
}

/// One extension server.
pub(crate) struct Remote {
    pub spec: Spec,
    means: Arc<Means>,
    client: RwLock<Result<Http, String>>,
    /// The condition `Available` of the stored object is true.
    available: AtomicBool,
    /// Wakes the task that looks after this remote.
    pub kick: Notify,
    /// What the last check was made for; another one is due when it differs.
    pub seen: Mutex<u64>,
    pub documents: RwLock<Arc<Documents>>,
    pub stop: CancellationToken,
}

impl Remote {
    pub fn new(spec: Spec, means: &Arc<Means>, documents: Arc<Documents>) -> Remote {
        Remote {
            client: RwLock::new(client(&spec, means)),
            spec,
            means: Arc::clone(means),
            available: AtomicBool::new(false),
            kick: Notify::new(),
            seen: Mutex::new(0),
            documents: RwLock::new(documents),
            stop: CancellationToken::new(),
        }
    }

    pub fn is_available(&self) -> bool {
        self.available.load(Ordering::Acquire)
    }

    pub fn set_available(&self, available: bool) {
        self.available.store(available, Ordering::Release);
    }

    /// Leaves the connections that are open to whoever uses them, and makes new ones from now on: the Service leads
    /// elsewhere, or this server has another certificate.
    pub fn reconnect(&self) {
        *self.client.write() = client(&self.spec, &self.means);
    }

    /// The setup error, which all requests get.
    pub fn setup_error(&self) -> Option<String> {
        self.client.read().as_ref().err().cloned()
    }

    /// Sends a request for a user. The path and the query are those of `uri`; `headers` must not name anybody.
    pub async fn send(
        &self,
        method: Method,
        path_and_query: &str,
        mut headers: HeaderMap,
        body: RequestBody,
        user: &UserInfo,
    ) -> Result<Response<Incoming>, CallError> {
        let client = self.client.read().clone().map_err(CallError::Setup)?;
        pass::name_user(&mut headers, user).map_err(|status| CallError::Request(status.message))?;
        let uri = format!("https://{}{path_and_query}", self.spec.authority());
        let request = Request::builder().method(method).uri(uri).body(body);
        let mut request = request.map_err(|error| CallError::Request(error.to_string()))?;
        *request.headers_mut() = headers;
        client.request(request).await.map_err(|error| why(&error))
    }

    /// Reads a document in this server's own name: the code, the headers and the content.
    pub async fn fetch(
        &self,
        path: &str,
        accept: &'static str,
        etag: &str,
        user: &UserInfo,
        timeout: Duration,
    ) -> Result<(u16, HeaderMap, Bytes), CallError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, http::HeaderValue::from_static(accept));
        if let Ok(etag) = http::HeaderValue::from_str(etag)
            && !etag.is_empty()
        {
            headers.insert(header::IF_NONE_MATCH, etag);
        }
        let exchange = async {
            let body = request_body(Full::new(Bytes::new()));
            let response = self.send(Method::GET, path, headers, body, user).await?;
            let (parts, body) = response.into_parts();
            let bytes = Limited::new(body, DOCUMENT_BYTES_MAX).collect().await;
            let unread = |error: BoxError| CallError::Unreachable { address: None, message: error.to_string() };
            Ok((parts.status.as_u16(), parts.headers, bytes.map_err(unread)?.to_bytes()))
        };
        let late = || CallError::Unreachable { address: None, message: "context deadline exceeded".to_owned() };
        tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| Err(late()))
    }
}

/// The innermost reason that is ours, else the whole chain.
fn why(error: &hyper_util::client::legacy::Error) -> CallError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(known) = inner.downcast_ref::<ConnectError>() {
            return match &known.address {
                None => CallError::Unresolved(known.message.clone()),
                address => CallError::Unreachable { address: address.clone(), message: known.message.clone() },
            };
        }
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    CallError::Unreachable { address: None, message: text }
}

fn client(spec: &Spec, means: &Arc<Means>) -> Result<Http, String> {
    let trust = if spec.insecure {
        Trust::Unchecked
    } else if spec.ca_bundle.is_empty() {
        Trust::System
    } else {
        Trust::Bundle(trust::bundle(&spec.ca_bundle).map_err(|error| error.to_string())?)
    };
    let tls = trust::client_config(trust, means.identity.as_deref()).map_err(|error| error.to_string())?;
    let server_name = ServerName::try_from(spec.host()).map_err(|error| error.to_string())?;
    let connector = Connector(Arc::new(Way {
        tls: tls.into(),
        server_name,
        service: spec.service.clone(),
        means: Arc::clone(means),
    }));
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_MAX)
        .build(connector))
}

struct Way {
    tls: TlsConnector,
    server_name: ServerName<'static>,
    service: ServicePort,
    means: Arc<Means>,
}

#[derive(Clone)]
struct Connector(Arc<Way>);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Wire>, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let way = Arc::clone(&self.0);
        Box::pin(async move {
            let connected = way.means.resolver.connect(&way.means.storage, &way.service).await?;
            let address = connected.address;
            let handshake = way.tls.connect(way.server_name.clone(), connected.stream);
            let failed = |message: String| ConnectError { address: Some(address.clone()), message };
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => Ok(TokioIo::new(Wire { stream, address })),
                Ok(Err(error)) => Err(failed(trust::handshake_text(&error))),
                Err(_) => Err(failed("net/http: TLS handshake timeout".to_owned())),
            }
        })
    }
}

/// The address of the other side, in the extensions of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Answered(pub String);

/// A connection that knows where it leads.
pub(crate) struct Wire {
    stream: TlsStream<Box<dyn Stream>>,
    address: String,
}

impl Connection for Wire {
    fn connected(&self) -> HyperConnected {
        HyperConnected::new().extra(Answered(self.address.clone()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
