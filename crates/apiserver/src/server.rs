//! The server: its parts, the chain that every request goes through, and its connections.
//!
//! Invariants:
//! - Authorization is decided before anything is looked up: who may not see a resource does not learn whether it exists.
//! - No request can stop the server: a panic in a handler is a 500, a slow one a 504.
//!
//! Follows: `k8s.io/apiserver/pkg/server.DefaultBuildHandlerChain`.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use apimachinery::Value;
use apimachinery::gvk::GroupResource;
use apimachinery::status::{Status, StatusResult};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Response, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use store::Store;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::{Activity, is_probe};
use crate::admission::AdmissionChain;
use crate::admission::policy::typing::{self, Remark};
use crate::aggregator::{self, Aggregator};
use crate::authn::{PeerCertificate, UserInfo, bearer_token};
use crate::authz::{Attributes, Decision, forbidden_message, is_privileged};
use crate::body::{Body, RequestBody, request_body};
use crate::cache::{CacheError, Caches};
use crate::config::Config;
use crate::expiry::Expiry;
use crate::handlers::{self, Cx};
use crate::hooks::WriteHooks;
use crate::in_process::{InProcess, InProcessUser};
use crate::metrics::Metrics;
use crate::openapi::Published;
use crate::output::{compress, raw_response, status_response};
use crate::registry::{Registry, builtin_prefixes};
use crate::request_info::{RequestInfo, own_timeout};
use crate::services::ServiceAddresses;
use crate::storage::Storage;
use crate::{bootstrap, discovery, flow_control, groups, health, impersonate, kubelets, tokens, upstream};

/// How long a request may take, except watches and connections. Source: `--request-timeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Source: `http2-max-streams-per-connection`.
const STREAMS_MAX: u32 = 250;
/// How long connections may take to end after everything else has.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client has for its TLS handshake and its request headers.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

const TEXT: &str = "text/plain; charset=utf-8";

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("could not load the stored objects")]
    Load(#[from] CacheError),
    #[error("could not create the objects of a fresh cluster: {message}")]
    Bootstrap { message: String },
}

/// The parts of a server, shared by all its requests.
pub struct Inner {
    pub config: Config,
    pub storage: Arc<Storage>,
    pub admission: AdmissionChain,
    pub hooks: WriteHooks,
    /// OpenAPI documents of custom resources.
    pub openapi: Published,
    pub(crate) aggregator: Aggregator,
    pub(crate) metrics: Metrics,
    /// How busy the network side is.
    pub activity: Arc<Activity>,
    flow: Arc<flow_control::FlowControl>,
    /// Cancelled when the server stops: ends watches and background tasks.
    pub stop: CancellationToken,
    shutting_down: AtomicBool,
    /// Requests under way that end by themselves: no watches, no connections to pods.
    in_flight: watch::Sender<usize>,
    tasks: TaskTracker,
}

impl Inner {
    /// One request more or less is under way.
    pub(crate) fn count_in_flight(&self, change: isize) {
        self.in_flight.send_modify(|count| *count = count.saturating_add_signed(change));
    }

    /// `/readyz` fails from [`ApiServer::begin_shutdown`] on.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::Acquire)
    }
}

/// Counts a request while it exists.
struct InFlight<'a>(&'a watch::Sender<usize>);

impl<'a> InFlight<'a> {
    fn begin(count: &'a watch::Sender<usize>) -> InFlight<'a> {
        count.send_modify(|count| *count += 1);
        InFlight(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// A running API server. Cheap to clone; runs until [`ApiServer::shutdown`].
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

impl ApiServer {
    /// Loads the stored objects and makes what a fresh cluster needs. The server answers in process from then on, and
    /// on the network once [`ApiServer::serve`] is called.
    pub fn start(config: Config, store: Store) -> BoxFuture<'static, Result<ApiServer, StartError>> {
        Box::pin(ApiServer::start_parts(config, store))
    }

    async fn start_parts(config: Config, store: Store) -> Result<ApiServer, StartError> {
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (caches, feed) = Caches::start(store.clone(), builtin_prefixes(), stop.clone()).await?;
        tasks.spawn(async move {
            // The feed ends when the server stops; it never fails.
            let _ = feed.await;
        });
        let registry = Registry::builtin(&caches);
        let expiry = Expiry::new(config.event_ttl);
        let storage = Arc::new(Storage { store, caches, registry, webhooks: Arc::default(), expiry });
        config.authorizer.attach(&storage);
        config.token_authenticators.iter().for_each(|a| a.attach(&storage));
        // A server behind this one writes all that.
        let writes = config.upstream.is_none();
        let mut hooks = config.hooks.clone();
        if writes {
            bootstrap::run(&storage, &config).await.map_err(|s| StartError::Bootstrap { message: s.message })?;
            hooks.0.insert(0, Arc::new(ServiceAddresses::new(&config)));
            for hook in &hooks.0 {
                hook.start(&storage).await.map_err(|s| StartError::Bootstrap { message: s.message })?;
            }
        }
        let inner = Arc::new(Inner {
            admission: config.admission.clone(),
            hooks,
            openapi: Published::default(),
            aggregator: Aggregator::default(),
            metrics: Metrics::default(),
            activity: Arc::default(),
            flow: Arc::default(),
            storage,
            config,
            stop,
            shutting_down: AtomicBool::new(false),
            in_flight: watch::Sender::new(0),
            tasks,
        });
        let server = ApiServer { inner };
        if !writes {
            return Ok(server);
        }
        let served = crate::crd::load(&server);
        server.spawn(crate::crd::run(server.clone(), served));
        aggregator::load(&server);
        server.spawn(aggregator::run(server.clone()));
        let flow = server.inner.flow.clone();
        server.spawn(flow_control::run(server.storage().clone(), flow, server.service(flow_control::user())));
        Ok(server)
    }

    pub fn storage(&self) -> &Arc<Storage> {
        &self.inner.storage
    }

    pub fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// A client of this server for one user: no socket, no TLS.
    pub fn kube_client(&self, user: UserInfo) -> kube::Client {
        kube::Client::new(InProcess::new(self.clone(), user), "default")
    }

    /// What is odd about the types in a ValidatingAdmissionPolicy.
    pub fn policy_remarks(&self, policy: &Value) -> Vec<Remark> {
        typing::remarks(policy, &self.inner.storage.registry.current(), &self.inner.openapi)
    }

    /// The tower service of one user.
    pub fn service(&self, user: UserInfo) -> InProcess {
        InProcess::new(self.clone(), user)
    }

    /// Runs a background task until it ends or the server stops.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.stop.clone();
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// The first step of an orderly end: `/readyz` fails, everything else is answered as before.
    pub fn begin_shutdown(&self) {
        self.inner.shutting_down.store(true, Ordering::Release);
    }

    /// Waits until no request is under way but those that do not end by themselves, such as watches.
    pub async fn drained(&self) {
        let mut count = self.inner.in_flight.subscribe();
        // The sender lives in the server itself.
        let _ = count.wait_for(|count| *count == 0).await;
    }

    /// How many requests are under way that are not of those that last.
    pub fn requests_in_flight(&self) -> watch::Receiver<usize> {
        self.inner.in_flight.subscribe()
    }

    /// Ends watches and background tasks, and waits for them. The store is left open: its owner closes it.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Serves TLS connections until `shutdown` is cancelled or the server is shut down, then lets requests finish.
    pub async fn serve(&self, listener: TcpListener, tls: Arc<rustls::ServerConfig>, shutdown: CancellationToken) {
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.inner.stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, mostly: others end in a moment.
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let (server, acceptor, shutdown) = (self.clone(), acceptor.clone(), shutdown.clone());
            connections.spawn(async move {
                let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
                let stream = tokio::select! {
                    // A client that has not even said hello is not waited for.
                    () = shutdown.cancelled() => return,
                    () = server.inner.stop.cancelled() => return,
                    stream = handshake => stream,
                };
                let Ok(Ok(stream)) = stream else { return };
                let peer = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let peer = peer.map(|c| PeerCertificate::new(c.clone().into_owned()));
                server.serve_connection(stream, peer, shutdown).await;
            });
        }
        connections.close();
        if tokio::time::timeout(REQUEST_TIMEOUT, connections.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }

    async fn serve_connection<I>(&self, stream: I, peer: Option<PeerCertificate>, shutdown: CancellationToken)
    where
        I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
        let server = self.clone();
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (server, peer) = (server.clone(), peer.clone());
            async move {
                let (mut parts, body) = request.into_parts();
                if let Some(peer) = peer {
                    parts.extensions.insert(peer);
                }
                let in_flight = (!is_probe(parts.uri.path())).then(|| server.inner.activity.enter());
                if let Some(in_flight) = &in_flight {
                    parts.extensions.insert(in_flight.clone());
                }
                let response = server.handle(parts, request_body(body)).await;
                Ok::<_, std::convert::Infallible>(response.map(|body| match body {
                    // A watch is under way until its stream is dropped.
                    Body::Stream(stream) => Body::Stream(Box::pin(stream.inspect(move |_| {
                        let _ = &in_flight;
                    }))),
                    full => full,
                }))
            }
        });
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                // A client that does not close its side is not waited for when the server ends.
                tokio::select! {
                    ended = connection => ended,
                    () = self.closing_time() => Ok(()),
                }
            }
            () = self.inner.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = self.closing_time() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    /// Some time after the server was shut down.
    async fn closing_time(&self) {
        self.inner.stop.cancelled().await;
        tokio::time::sleep(CLOSE_TIMEOUT).await;
    }

    /// The server whose parts these are.
    pub(crate) fn of(inner: Arc<Inner>) -> ApiServer {
        ApiServer { inner }
    }

    /// The node whose kubelet a request from the network is for, by the host name it was sent to.
    fn kubelet_of(&self, parts: &Parts) -> Option<String> {
        let kubelets = self.inner.config.kubelets.as_ref()?;
        let host = match parts.uri.authority() {
            Some(authority) => authority.as_str(),
            None => parts.headers.get(header::HOST)?.to_str().ok()?,
        };
        kubelets.node(host)
    }

    /// Answers one request.
    // Boxed: the code of all handlers is compiled once and not again in each crate that calls, and an idle connection keeps
    // a pointer instead of room for them.
    pub fn handle(&self, parts: Parts, body: RequestBody) -> BoxFuture<'_, Response<Body>> {
        Box::pin(self.answer_in_time(parts, body))
    }

    async fn answer_in_time(&self, parts: Parts, body: RequestBody) -> Response<Body> {
        if let Some(extension) = self.inner.config.extension.as_ref().filter(|e| e.handles(parts.uri.path())) {
            return extension.answer(parts, body).await;
        }
        let started = Instant::now();
        let kubelet = self.kubelet_of(&parts);
        let info = match &kubelet {
            Some(node) => kubelets::attributes(node, &parts.method, parts.uri.path()),
            None => RequestInfo::new(&parts.method, parts.uri.path(), parts.uri.query()),
        };
        if let Some(upstream) = self.inner.config.upstream.as_ref()
            && kubelet.is_none()
            && !upstream::is_own(&self.inner, &info)
        {
            return upstream::pass_on(self, upstream, parts, body, &info).await;
        }
        let headers = parts.headers.clone();
        let method = parts.method.clone();
        let (verb, metric_info) = (info.verb.clone(), info.clone());
        let long_running = info.is_long_running();
        let mut deadline = REQUEST_TIMEOUT;
        if !long_running {
            match own_timeout(&info.query) {
                Ok(Some(asked)) if !asked.is_zero() => deadline = deadline.min(asked),
                Ok(_) => {}
                Err(message) => return status_response(&Status::bad_request(message), &headers),
            }
        }
        let _in_flight = (!long_running).then(|| InFlight::begin(&self.inner.in_flight));
        let said = Arc::new(Mutex::new(Said::default()));
        let work = AssertUnwindSafe(self.answer(parts, body, info, kubelet, said.clone())).catch_unwind();
        let result = if long_running {
            work.await
        } else {
            match tokio::time::timeout(deadline, work).await {
                Ok(result) => result,
                Err(_) => Ok(status_response(
                    &Status::timeout("request did not complete within the allotted timeout", 0),
                    &headers,
                )),
            }
        };
        let response = result.unwrap_or_else(|_| {
            tracing::error!(path = %metric_info.path, "a request handler panicked");
            status_response(&Status::internal_error("the request handler failed"), &headers)
        });
        let mut response = compress(response, &headers);
        let out = response.headers_mut();
        out.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        if let Some(directives) = &self.inner.config.strict_transport_security {
            out.insert(header::STRICT_TRANSPORT_SECURITY, directives.clone());
        }
        let audit_id = headers.get("audit-id").cloned();
        let audit_id = audit_id.or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
        if let Some(id) = audit_id {
            out.insert(HeaderName::from_static("audit-id"), id);
        }
        let said = std::mem::take(&mut *said.lock());
        for text in &said.warnings {
            if let Some(value) = warning_value(text) {
                out.append(header::WARNING, value);
            }
        }
        if let Some(class) = said.class {
            out.insert(HeaderName::from_static("x-kubernetes-pf-flowschema-uid"), class.schema.clone());
            out.insert(HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid"), class.level.clone());
        }
        let known = self.inner.storage.registry.get(&metric_info.group, &metric_info.version, &metric_info.resource);
        let code = response.status().as_u16();
        self.inner.metrics.record(&verb, &metric_info, known.is_some(), code, started.elapsed());
        if method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }

    async fn answer(
        &self,
        parts: Parts,
        body: RequestBody,
        info: RequestInfo,
        kubelet: Option<String>,
        said: Arc<Mutex<Said>>,
    ) -> Response<Body> {
        let inner = &self.inner;
        let user = match self.authenticate(&parts).await {
            Some(user) => user,
            None => return status_response(&Status::unauthorized("Unauthorized"), &parts.headers),
        };
        let authorizer = inner.config.authorizer.as_ref();
        let user = match impersonate::effective_user(authorizer, user, &info, &parts.headers).await {
            Ok(user) => user,
            Err(status) => return status_response(&status, &parts.headers),
        };
        // Callers in the process do not look at these headers.
        if parts.extensions.get::<InProcessUser>().is_none() && (info.verb == "watch" || !info.is_long_running()) {
            said.lock().class = inner.flow.classify(&user, &info);
        }
        if let Err(status) = self.authorize(&user, &info).await {
            return status_response(&status, &parts.headers);
        }
        if let (Some(node), Some(kubelets)) = (kubelet, &inner.config.kubelets) {
            let (headers, path) = (parts.headers.clone(), parts.uri.path().to_owned());
            let request = http::Request::from_parts(parts, body);
            let answer = kubelets.answer(self, &node, &path, request).await;
            return answer.unwrap_or_else(|status| status_response(&status, &headers));
        }
        if let Some(remote) = inner.aggregator.remote_of(&info) {
            return aggregator::proxy::forward(&remote, parts, body, &user).await;
        }
        let headers = parts.headers;
        if !info.is_resource {
            return self.answer_path(&info, &headers).await;
        }
        let Some(resource) = inner.storage.registry.get(&info.group, &info.version, &info.resource) else {
            let other = groups::answer(self, &info, &headers).await;
            return other.unwrap_or_else(|| match inner.storage.registry.current().is_builtin_group(&info.group) {
                true => status_response(&Status::path_not_found(), &headers),
                false => discovery::not_found_text(),
            });
        };
        if info.name == "." || info.name == ".." {
            let text = format!("Name parameter invalid: {:?}: may not be '{}'", info.name, info.name);
            return status_response(&Status::bad_request(text), &headers);
        }
        let cx = Cx {
            server: inner.clone(),
            info,
            user,
            headers,
            extensions: parts.extensions,
            method: parts.method,
            uri: parts.uri,
            resource,
            warnings: Mutex::new(Vec::new()),
            conversions: Default::default(),
        };
        if let Some(text) = cx.resource.strategy.deprecation() {
            cx.warn(text);
        }
        if let Some(text) = deprecation(&cx) {
            cx.warn(text);
        }
        let response = match handlers::dispatch(&cx, body).await {
            Ok(response) => response,
            Err(status) => status_response(&status, &cx.headers),
        };
        said.lock().warnings = cx.warnings.into_inner();
        response
    }

    pub(crate) async fn authenticate(&self, parts: &Parts) -> Option<Arc<UserInfo>> {
        if let Some(InProcessUser(user)) = parts.extensions.get::<InProcessUser>() {
            return Some(user.clone());
        }
        let mut refused = false;
        for authenticator in &self.inner.config.authenticators {
            match authenticator.authenticate(parts).await {
                Ok(Some(user)) => return Some(Arc::new(user)),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "a credential was refused");
                    refused = true;
                }
            }
        }
        if let Some(token) = bearer_token(parts) {
            let config = &self.inner.config;
            match tokens::authenticate(&config.token_authenticators, token, &config.api_audiences).await {
                Ok(found) => return Some(Arc::new(found.user)),
                Err(error) => tracing::debug!(error, "a bearer token was refused"),
            }
        }
        let has_token = parts.headers.contains_key(header::AUTHORIZATION);
        let config = &self.inner.config;
        let open = config.anonymous_paths.is_empty() || config.anonymous_paths.iter().any(|p| p == parts.uri.path());
        (!refused && !has_token && config.anonymous && open).then(|| Arc::new(UserInfo::anonymous()))
    }

    async fn authorize(&self, user: &UserInfo, info: &RequestInfo) -> StatusResult<()> {
        if self.inner.config.authorizer.has_vetoes() {
            let attributes = Attributes::new(user, info);
            if let Some(reason) = self.inner.config.authorizer.veto(&attributes) {
                let resource = GroupResource::new(info.group.as_str(), info.resource.as_str());
                let message = forbidden_message(&attributes, &reason);
                return Err(Box::new(Status::forbidden(&resource, &info.name, message)));
            }
        }
        if is_privileged(user) {
            return Ok(());
        }
        let attributes = Attributes::new(user, info);
        let authorization = self.inner.config.authorizer.authorize(&attributes).await;
        if authorization.decision == Decision::Allow {
            return Ok(());
        }
        let resource = GroupResource::new(info.group.as_str(), info.resource.as_str());
        let message = forbidden_message(&attributes, &authorization.reason);
        Err(Box::new(Status::forbidden(&resource, &info.name, message)))
    }

    /// The public half of the keys that sign service account tokens.
    fn answer_openid(&self, path: &str) -> Option<Response<Body>> {
        let config = &self.inner.config;
        let tokens = config.tokens.as_ref()?;
        let (content_type, body) = match path {
            "/openid/v1/jwks" => ("application/jwk-set+json", tokens.jwks()),
            "/.well-known/openid-configuration" => {
                let address = std::net::SocketAddr::new(config.advertise_address, config.secure_port);
                ("application/json", tokens.openid_configuration(&address.to_string()))
            }
            _ => return None,
        };
        let mut response = raw_response(200, content_type, body.to_string());
        let age = HeaderValue::from_static("public, max-age=3600");
        response.headers_mut().insert(header::CACHE_CONTROL, age);
        Some(response)
    }

    /// `/metrics`, and `/metrics/NAME` for the parts of the program beside the server.
    fn answer_metrics(&self, path: &str) -> Option<Response<Body>> {
        let inner = &self.inner;
        let content_type = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
        let sources = &inner.config.metrics;
        let mut text = String::new();
        match path.trim_end_matches('/').strip_prefix("/metrics")? {
            "" => {
                let resources = inner.storage.registry.current();
                let counts = resources.all().filter_map(|r| {
                    let cache = &r.storage.as_ref()?.cache;
                    Some((r.group_resource().to_string(), cache.len()))
                });
                let mut counts: Vec<_> = counts.collect();
                counts.sort();
                counts.dedup_by(|a, b| a.0 == b.0);
                text = inner.metrics.render(counts.into_iter());
                sources.iter().for_each(|source| source.render(&mut text));
            }
            part => {
                let source = sources.iter().find(|source| part.strip_prefix('/') == Some(source.name()))?;
                source.render(&mut text);
            }
        }
        Some(raw_response(200, content_type, text))
    }

    /// Answers a path that names no resource.
    async fn answer_path(&self, info: &RequestInfo, headers: &http::HeaderMap) -> Response<Body> {
        let inner = &self.inner;
        let first = info.path.trim_start_matches('/').split('/').next().unwrap_or("");
        let answer = match first {
            "openid" | ".well-known" => self.answer_openid(&info.path),
            "healthz" | "livez" | "readyz" => health::answer(inner, &info.path, &info.query).await,
            "metrics" => self.answer_metrics(&info.path),
            "openapi" => inner.openapi.answer(info, headers, std::time::SystemTime::now()),
            _ => discovery::answer(inner, info, headers),
        };
        answer.unwrap_or_else(|| raw_response(404, TEXT, "404 page not found\n"))
    }
}

/// What goes into the headers of an answer, whatever the answer is.
#[derive(Default)]
struct Said {
    warnings: Vec<String>,
    class: Option<flow_control::Class>,
}

/// Kinds that a client should no longer use.
fn deprecation(cx: &Cx) -> Option<&'static str> {
    match (cx.resource.gvk.group.as_str(), cx.resource.gvk.kind.as_str()) {
        ("", "Endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        ("", "ComponentStatus") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        _ => None,
    }
}

/// A `Warning` header. Source: `k8s.io/apimachinery/pkg/util/net.NewWarningHeader`.
fn warning_value(text: &str) -> Option<HeaderValue> {
    let mut out = String::from("299 - \"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.push('"');
    HeaderValue::from_bytes(out.as_bytes()).ok()
}
