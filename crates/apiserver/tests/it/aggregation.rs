//! An extension server beside the API server: found, proxied to, discovered, described, and missed when it is gone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apiserver::aggregator::resolver::{ConnectError, Connected, ServicePort, ServiceResolver, dial};
use apiserver::aggregator::{ClientTrust, ProxyIdentity};
use apiserver::authn::RequestHeaderOptions;
use apiserver::storage::Storage;
use apiserver::{ApiServer, SecureOptions, UserInfo};
use async_trait::async_trait;
use base64::Engine;
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::core::{ApiResource, GroupVersionKind};
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tower::ServiceExt;

const DEADLINE: Duration = Duration::from_secs(60);
const GROUP: &str = "wardle.example.com";

/// An authority and what it signs, PEM.
struct Authority {
    params: rcgen::CertificateParams,
    key: rcgen::KeyPair,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { params, key, pem }
    }

    fn issue(&self, name: &str, usage: rcgen::ExtendedKeyUsagePurpose) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    }
}

type Answer = UnsyncBoxBody<Bytes, std::convert::Infallible>;

fn full(code: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Answer> {
    let body = Full::new(body.into()).boxed_unsync();
    Response::builder().status(code).header(header::CONTENT_TYPE, content_type).body(body).unwrap()
}

fn object(code: u16, value: &serde_json::Value) -> Response<Answer> {
    full(code, "application/json", value.to_string())
}

/// What an extension server saw of one request.
#[derive(Clone, Debug, Default)]
struct Seen {
    path: String,
    proxy: String,
    headers: BTreeMap<String, Vec<String>>,
}

/// A little API server with one resource, `flunders`.
struct Extension {
    flunders: Mutex<BTreeMap<String, serde_json::Value>>,
    events: broadcast::Sender<serde_json::Value>,
    seen: Mutex<Vec<Seen>>,
    /// Whether it has the newer forms of discovery and OpenAPI.
    modern: bool,
    /// Whether it answers for its group with an error.
    broken: Mutex<bool>,
}

impl Extension {
    async fn start(serving: &Authority, front: &Authority, modern: bool) -> (Arc<Extension>, SocketAddr) {
        let (certificate, key) = serving.issue("api.ext.svc", rcgen::ExtendedKeyUsagePurpose::ServerAuth);
        let tls =
            apiserver::tls::server_config_for_clients(certificate.as_bytes(), key.as_bytes(), front.pem.as_bytes());
        let acceptor = tokio_rustls::TlsAcceptor::from(tls.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let extension = Arc::new(Extension {
            flunders: Mutex::default(),
            events: broadcast::Sender::new(64),
            seen: Mutex::default(),
            modern,
            broken: Mutex::new(false),
        });
        let serve = Arc::clone(&extension);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, extension) = (acceptor.clone(), Arc::clone(&serve));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
                    let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).unwrap();
                    let proxy = certificate.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned();
                    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                        let (extension, proxy) = (Arc::clone(&extension), proxy.clone());
                        async move { Ok::<_, std::convert::Infallible>(extension.answer(request, &proxy).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    // The other side may go at any time.
                    let _ = connection.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                });
            }
        });
        (extension, address)
    }

    async fn answer(&self, request: Request<Incoming>, proxy: &str) -> Response<Answer> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let mut seen = Seen { path: path.clone(), proxy: proxy.to_owned(), ..Seen::default() };
        for (name, value) in request.headers() {
            let values = seen.headers.entry(name.to_string()).or_default();
            values.push(value.to_str().unwrap().to_owned());
        }
        self.seen.lock().push(seen);
        let accepts = |text: &str| {
            request.headers().get(header::ACCEPT).is_some_and(|accept| accept.to_str().unwrap().contains(text))
        };
        let kind = json!({"group": GROUP, "version": "v1alpha1", "kind": "Flunder"});
        let verbs = json!(["create", "get", "list", "watch"]);
        let group = format!("/apis/{GROUP}/v1alpha1");
        if *self.broken.lock() && path == group {
            return full(500, "text/plain", "broken\n");
        }
        let list = format!("{group}/namespaces/default/flunders");
        match path.as_str() {
            "/apis" if self.modern && accepts("apidiscovery.k8s.io") => {
                let resource = json!({"resource": "flunders", "responseKind": kind, "scope": "Namespaced",
                    "singularResource": "flunder", "verbs": verbs, "shortNames": ["fl"]});
                let versions = json!([{"version": "v1alpha1", "resources": [resource], "freshness": "Current"}]);
                let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
                    "metadata": {}, "items": [{"metadata": {"name": GROUP}, "versions": versions}]});
                let media = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
                full(200, media, list.to_string())
            }
            path if path == group => object(
                200,
                &json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/v1alpha1"),
                    "resources": [{"name": "flunders", "singularName": "flunder", "namespaced": true,
                        "kind": "Flunder", "verbs": verbs, "shortNames": ["fl"]}]}),
            ),
            "/openapi/v3" if self.modern => {
                let name = format!("apis/{GROUP}/v1alpha1");
                object(
                    200,
                    &json!({"paths": {"version": {"serverRelativeURL": "/openapi/v3/version?hash=0"},
                    name.as_str(): {"serverRelativeURL": format!("/openapi/v3/{name}?hash=7")}}}),
                )
            }
            path if self.modern && path == format!("/openapi/v3/apis/{GROUP}/v1alpha1") => {
                object(200, &json!({"openapi": "3.0.0", "info": {"title": "flunders"}, "query": query}))
            }
            "/openapi/v2" => object(
                200,
                &json!({"swagger": "2.0", "paths": {list.as_str(): {"get": {"responses": {"200": {"description": "OK",
                    "schema": {"$ref": "#/definitions/com.example.Flunder"}}}}}},
                    "definitions": {"com.example.Flunder": {"type": "object"}, "com.example.Unused": {}}}),
            ),
            path if path == format!("{list}/redirect") => {
                let mut response = full(302, "text/plain", "");
                response.headers_mut().insert(header::LOCATION, "https://elsewhere.example/".parse().unwrap());
                response
            }
            path if path == format!("{list}/a/echo") => {
                tokio::spawn(async move {
                    let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
                    let mut stream = TokioIo::new(upgraded);
                    let mut bytes = [0; 4];
                    if stream.read_exact(&mut bytes).await.is_ok() {
                        bytes.reverse();
                        let _ = stream.write_all(&bytes).await;
                    }
                });
                let mut response = full(101, "text/plain", "");
                response.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
                response.headers_mut().insert(header::UPGRADE, "echo".parse().unwrap());
                response
            }
            path if path == list && query.contains("watch=") => {
                let events = self.events.subscribe();
                let known: Vec<_> = self.flunders.lock().values().cloned().collect();
                let known = futures::stream::iter(known.into_iter().map(|o| json!({"type": "ADDED", "object": o})));
                let later = futures::stream::unfold(events, |mut events| async move {
                    let event = events.recv().await.ok()?;
                    Some((event, events))
                });
                let frames = known.chain(later).map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
                Response::builder()
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(BodyExt::boxed_unsync(StreamBody::new(frames)))
                    .unwrap()
            }
            path if path == list && request.method() == http::Method::POST => {
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                let mut flunder: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                flunder["metadata"]["uid"] = "u-1".into();
                flunder["metadata"]["resourceVersion"] = "1".into();
                let name = flunder["metadata"]["name"].as_str().unwrap().to_owned();
                self.flunders.lock().insert(name, flunder.clone());
                // Without watchers nobody hears it.
                let _ = self.events.send(json!({"type": "ADDED", "object": flunder}));
                object(201, &flunder)
            }
            path if path == list => {
                let items: Vec<_> = self.flunders.lock().values().cloned().collect();
                object(
                    200,
                    &json!({"kind": "FlunderList", "apiVersion": format!("{GROUP}/v1alpha1"),
                    "metadata": {"resourceVersion": "1"}, "items": items}),
                )
            }
            path => match path.strip_prefix(&format!("{list}/")).and_then(|n| self.flunders.lock().get(n).cloned()) {
                Some(flunder) => object(200, &flunder),
                None => object(
                    404,
                    &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                    "reason": "NotFound", "message": "flunders not found", "metadata": {}}),
                ),
            },
        }
    }

    /// The last request on a path.
    fn last(&self, path: &str) -> Seen {
        let seen = self.seen.lock();
        seen.iter().rev().find(|seen| seen.path == path).cloned().unwrap_or_else(|| panic!("nobody asked for {path}"))
    }
}

/// Leads Service `ext/api` to an address that the test chooses, after the objects were looked at as usual.
struct To(Mutex<Option<SocketAddr>>);

#[async_trait]
impl ServiceResolver for To {
    async fn connect(&self, _: &Storage, service: &ServicePort) -> Result<Connected, ConnectError> {
        assert_eq!((service.namespace.as_str(), service.name.as_str(), service.port), ("ext", "api", 7443));
        let address = *self.0.lock();
        match address {
            Some(address) => dial(address, DEADLINE).await,
            None => Err(ConnectError::unresolved("no endpoints available for service \"api\"")),
        }
    }
}

struct Setup {
    server: ApiServer,
    extension: Arc<Extension>,
    resolver: Arc<To>,
    serving: Authority,
}

impl Setup {
    async fn start(modern: bool) -> Setup {
        let (serving, front) = (Authority::new("serving"), Authority::new("front-proxy-ca"));
        let (extension, address) = Extension::start(&serving, &front, modern).await;
        let resolver = Arc::new(To(Mutex::new(Some(address))));
        let (certificate, key) = front.issue("front-proxy-client", rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        let mut config = apiserver::secure_config(&SecureOptions::default()).unwrap();
        let names = |name: &str| vec![name.to_owned()];
        config.aggregation = apiserver::aggregator::Options {
            resolver: resolver.clone(),
            identity: Some(ProxyIdentity::new(&certificate, &key).unwrap()),
            trust: Some(Arc::new(ClientTrust {
                client_ca: serving.pem.clone(),
                request_headers: Some(RequestHeaderOptions {
                    client_ca: front.pem.clone(),
                    allowed_names: names("front-proxy-client"),
                    users: names("X-Remote-User"),
                    groups: names("X-Remote-Group"),
                    uids: Vec::new(),
                    extra_prefixes: names("X-Remote-Extra-"),
                }),
            })),
        };
        let store = store::Store::in_memory(store::Options::default()).await;
        let server = ApiServer::start(config, store).await.unwrap();
        Setup { server, extension, resolver, serving }
    }

    fn api(&self, api_version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
        self.api_as(UserInfo::admin(), api_version, kind, namespace)
    }

    fn api_as(&self, user: UserInfo, api_version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match namespace {
            "" => Api::all_with(self.server.kube_client(user), &resource),
            namespace => Api::namespaced_with(self.server.kube_client(user), namespace, &resource),
        }
    }

    fn api_services(&self) -> Api<DynamicObject> {
        self.api("apiregistration.k8s.io/v1", "APIService", "")
    }

    fn flunders(&self, user: UserInfo) -> Api<DynamicObject> {
        self.api_as(user, &format!("{GROUP}/v1alpha1"), "Flunder", "default")
    }

    async fn create(&self, object: serde_json::Value) {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let namespace = text(&object["metadata"]["namespace"]);
        let api = self.api(&text(&object["apiVersion"]), &text(&object["kind"]), &namespace);
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    /// Lets a user do everything with one resource of the extension server.
    async fn grant(&self, resource: &str, user: &str) {
        self.create(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": user}, "rules": [{"apiGroups": [GROUP], "resources": [resource], "verbs": ["*"]}]}))
            .await;
        self.bind(user, user).await;
    }

    async fn bind(&self, role: &str, user: &str) {
        self.create(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]}))
            .await;
    }

    async fn create_namespace_and_service(&self) {
        self.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ext"}})).await;
        self.create(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": "ext"},
            "spec": {"ports": [{"name": "https", "port": 7443}]}}))
            .await;
    }

    async fn create_slice(&self, port: &str, ready: bool) {
        self.create(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("api-{port}-{ready}"), "namespace": "ext",
                "labels": {"kubernetes.io/service-name": "api"}},
            "endpoints": [{"addresses": ["10.1.2.3"], "conditions": {"ready": ready}}],
            "ports": [{"name": port, "port": 8443}]}))
            .await;
    }

    async fn create_api_service(&self) {
        let bundle = base64::engine::general_purpose::STANDARD.encode(&self.serving.pem);
        self.create(json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": format!("v1alpha1.{GROUP}")},
            "spec": {"group": GROUP, "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
                "caBundle": bundle, "service": {"namespace": "ext", "name": "api", "port": 7443}}}))
            .await;
    }

    /// Waits until the APIService says what is expected.
    async fn condition(&self, want: impl Fn(&str, &str, &str) -> bool) {
        let name = format!("v1alpha1.{GROUP}");
        let api = self.api_services();
        let mut last = String::new();
        let found = tokio::time::timeout(DEADLINE, async {
            loop {
                let object = api.get(&name).await.unwrap();
                let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let text = |key: &str| conditions.first().and_then(|c| c[key].as_str()).unwrap_or_default().to_owned();
                if want(&text("status"), &text("reason"), &text("message")) {
                    return;
                }
                last = serde_json::Value::from(conditions).to_string();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let found = found.await;
        found.unwrap_or_else(|_| panic!("the condition did not come; last {last}"));
    }

    async fn ready(&self) {
        self.create_namespace_and_service().await;
        self.create_slice("https", true).await;
        self.create_api_service().await;
        self.condition(|status, reason, message| (status, reason, message) == ("True", "Passed", "all checks passed"))
            .await;
    }

    /// Asks for a path as a user: the code, the content type, the text.
    async fn get(&self, user: UserInfo, path: &str, headers: &[(&str, &str)]) -> (u16, String, String) {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let response = self.server.service(user).oneshot(request).await.unwrap();
        let code = response.status().as_u16();
        let media = response.headers().get(header::CONTENT_TYPE).map(|v| v.to_str().unwrap().to_owned());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, media.unwrap_or_default(), String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// The group as aggregated discovery has it.
    async fn discovered(&self) -> Option<serde_json::Value> {
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let (_, _, text) = self.get(UserInfo::admin(), "/apis", &[("accept", accept)]).await;
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut groups = list["items"].as_array().unwrap().iter();
        groups.find(|group| group["metadata"]["name"] == GROUP).cloned()
    }
}

fn flunder(name: &str) -> DynamicObject {
    serde_json::from_value(json!({"apiVersion": format!("{GROUP}/v1alpha1"), "kind": "Flunder",
        "metadata": {"name": name, "namespace": "default"}, "spec": {"reference": "x"}}))
    .unwrap()
}

#[tokio::test]
async fn requests_for_the_group_reach_the_extension_server_in_the_name_of_the_user() {
    let setup = Setup::start(true).await;
    setup.ready().await;
    let admin = setup.flunders(UserInfo::admin());
    let watch = admin.watch(&WatchParams::default(), "0").await.unwrap();
    let created = admin.create(&PostParams::default(), &flunder("a")).await.unwrap();
    assert_eq!(created.metadata.uid.as_deref(), Some("u-1"));
    let first = tokio::time::timeout(DEADLINE, Box::pin(watch).next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(first, WatchEvent::Added(object) if object.metadata.name.as_deref() == Some("a")));
    assert_eq!(admin.get("a").await.unwrap().data["spec"]["reference"], "x");
    assert!(admin.get_opt("b").await.unwrap().is_none(), "the extension server's own 404");

    // Who may not is refused before anybody else is asked.
    let mut jane = UserInfo::new("jane", ["dev", "system:authenticated"]);
    jane.uid = "7".to_owned();
    jane.extra.insert("Acme.com/Project".to_owned(), vec!["p".to_owned(), "q".to_owned()]);
    let refused = setup.flunders(jane.clone()).list(&ListParams::default()).await.unwrap_err();
    let kube::Error::Api(status) = refused else { panic!("{refused}") };
    assert_eq!(
        (status.code, status.message.as_str()),
        (
            403,
            "flunders.wardle.example.com is forbidden: User \"jane\" cannot list resource \"flunders\" in API group \"wardle.example.com\" in the namespace \"default\""
        )
    );
    setup.grant("flunders", "jane").await;
    let path = format!("/apis/{GROUP}/v1alpha1/namespaces/default/flunders");
    let forged = [
        ("x-remote-user", "admin"),
        ("x-remote-group", "system:masters"),
        ("x-remote-extra-role", "root"),
        ("authorization", "Bearer secret"),
        ("x-app", "kept"),
    ];
    let (code, _, _) = setup.get(jane, &format!("{path}?limit=5"), &forged).await;
    assert_eq!(code, 200);
    let seen = setup.extension.last(&path);
    assert_eq!(seen.proxy, "front-proxy-client");
    let header = |name: &str| seen.headers.get(name).cloned().unwrap_or_default();
    assert_eq!(header("x-remote-user"), ["jane"]);
    assert_eq!(header("x-remote-uid"), ["7"]);
    assert_eq!(header("x-remote-group"), ["dev", "system:authenticated"]);
    assert_eq!(header("x-remote-extra-acme.com%2fproject"), ["p", "q"]);
    assert_eq!(header("x-remote-extra-role"), Vec::<String>::new());
    assert_eq!(header("authorization"), Vec::<String>::new());
    assert_eq!(header("x-app"), ["kept"]);

    let (code, _, text) = setup.get(UserInfo::admin(), &format!("{path}/redirect"), &[]).await;
    assert_eq!(
        (code, text.as_str()),
        (502, "the backend attempted to redirect this request, which is not permitted\n")
    );
    setup.server.shutdown().await;
}

#[tokio::test]
async fn the_condition_says_why_an_extension_server_cannot_be_used() {
    let setup = Setup::start(true).await;
    setup.create_api_service().await;
    let is = |want: (&'static str, &'static str, &'static str)| {
        move |status: &str, reason: &str, message: &str| (status, reason, message) == want
    };
    setup.condition(is(("False", "ServiceNotFound", "service/api in \"ext\" is not present"))).await;
    let path = format!("/apis/{GROUP}/v1alpha1/namespaces/default/flunders");
    for path in [path.as_str(), &format!("/apis/{GROUP}/v1alpha1")] {
        let (code, media, text) = setup.get(UserInfo::admin(), path, &[]).await;
        assert_eq!((code, media.as_str(), text.as_str()), (503, "text/plain; charset=utf-8", "service unavailable\n"));
    }
    let stale = setup.discovered().await.unwrap();
    assert_eq!(stale["versions"], json!([{"version": "v1alpha1", "freshness": "Stale"}]));

    setup.create_namespace_and_service().await;
    let text = "cannot find endpointslices for service/api in \"ext\"";
    setup.condition(is(("False", "EndpointsNotFound", text))).await;
    setup.create_slice("other", true).await;
    setup.create_slice("https", false).await;
    let text = "endpointslices for service/api in \"ext\" have no addresses with port name \"https\"";
    setup.condition(is(("False", "MissingEndpoints", text))).await;
    let address = setup.resolver.0.lock().take();
    setup.create_slice("https", true).await;
    let text = "no endpoints available for service \"api\"";
    setup.condition(is(("False", "FailedDiscoveryCheck", text))).await;
    *setup.resolver.0.lock() = address;
    setup.condition(is(("True", "Passed", "all checks passed"))).await;

    // A server that answers wrongly, and one that is away, are noticed when something changes.
    *setup.extension.broken.lock() = true;
    setup.create_slice("more", true).await;
    setup
        .condition(|status, reason, message| {
            (status, reason) == ("False", "FailedDiscoveryCheck")
                && message.starts_with("failing or missing response from https://127.0.0.1:")
                && message.contains(&format!("/apis/{GROUP}/v1alpha1: bad status from https://127.0.0.1:"))
                && message.ends_with(": 500")
        })
        .await;
    *setup.extension.broken.lock() = false;
    setup.condition(is(("True", "Passed", "all checks passed"))).await;
    let ports = setup.api("v1", "Service", "ext");
    let patch = json!({"spec": {"ports": [{"name": "https", "port": 443}]}});
    ports.patch("api", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let text = "service/api in \"ext\" is not listening on port 7443";
    setup.condition(is(("False", "ServicePortError", text))).await;

    // Local again: always there, and answered here.
    let patch = json!({"spec": {"service": null, "caBundle": null}});
    let name = format!("v1alpha1.{GROUP}");
    setup.api_services().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    setup.condition(is(("True", "Local", "Local APIServices are always available"))).await;
    let (code, _, text) = setup.get(UserInfo::admin(), &path, &[]).await;
    assert_eq!((code, text.as_str()), (404, "404 page not found\n"));
    setup.server.shutdown().await;
}

#[tokio::test]
async fn a_certificate_of_others_is_not_trusted() {
    let setup = Setup::start(true).await;
    setup.create_namespace_and_service().await;
    setup.create_slice("https", true).await;
    setup.create_api_service().await;
    let name = format!("v1alpha1.{GROUP}");
    let others = base64::engine::general_purpose::STANDARD.encode(Authority::new("others").pem);
    let patch = json!({"spec": {"caBundle": others}});
    setup.api_services().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    setup
        .condition(|status, reason, message| {
            (status, reason) == ("False", "FailedDiscoveryCheck")
                && message.ends_with("tls: failed to verify certificate: x509: certificate signed by unknown authority")
        })
        .await;
    let patch = json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}});
    setup.api_services().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    setup.condition(|status, reason, _| (status, reason) == ("True", "Passed")).await;
    setup.server.shutdown().await;
}

#[tokio::test]
async fn discovery_and_openapi_have_the_group_until_its_api_service_is_gone() {
    for modern in [true, false] {
        let setup = Setup::start(modern).await;
        setup.ready().await;
        let found = setup.discovered().await.unwrap();
        let version = &found["versions"][0];
        assert_eq!((&version["version"], &version["freshness"]), (&json!("v1alpha1"), &json!("Current")), "{found}");
        let resource = &version["resources"][0];
        assert_eq!((&resource["resource"], &resource["scope"]), (&json!("flunders"), &json!("Namespaced")));
        assert_eq!(resource["responseKind"]["kind"], "Flunder");

        let admin = UserInfo::admin;
        let parse = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
        let groups = parse(&setup.get(admin(), "/apis", &[]).await.2);
        let names: Vec<_> = groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
        let at = |name: &str| names.iter().position(|n| *n == name);
        assert!(at("apiregistration.k8s.io") == Some(0) && at("apps") < at(GROUP), "{names:?}");
        let group = parse(&setup.get(admin(), &format!("/apis/{GROUP}"), &[]).await.2);
        assert_eq!((&group["kind"], &group["preferredVersion"]["version"]), (&json!("APIGroup"), &json!("v1alpha1")));
        let list = parse(&setup.get(admin(), &format!("/apis/{GROUP}/v1alpha1"), &[]).await.2);
        assert_eq!(list["resources"][0]["shortNames"], json!(["fl"]));

        // Documents are fetched after the condition was written.
        let key = format!("apis/{GROUP}/v1alpha1");
        let documents = async {
            loop {
                let v2 = parse(&setup.get(admin(), "/openapi/v2", &[]).await.2);
                if v2["definitions"].get("com.example.Flunder").is_some() {
                    break v2;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let v2 = tokio::time::timeout(DEADLINE, documents).await.expect("the v2 document has the group");
        assert!(v2["definitions"].get("com.example.Unused").is_none());
        assert!(v2["paths"].get(format!("/apis/{GROUP}/v1alpha1/namespaces/default/flunders")).is_some());
        let index = parse(&setup.get(admin(), "/openapi/v3", &[]).await.2);
        let url = index["paths"][&key]["serverRelativeURL"].as_str().unwrap_or_default().to_owned();
        if modern {
            assert_eq!(url, format!("/openapi/v3/{key}?hash=7"));
            let document = parse(&setup.get(admin(), &url, &[]).await.2);
            assert_eq!((&document["info"]["title"], &document["query"]), (&json!("flunders"), &json!("hash=7")));
        } else {
            assert_eq!(url, "");
        }

        setup.api_services().delete(&format!("v1alpha1.{GROUP}"), &DeleteParams::default()).await.unwrap();
        let gone = async {
            while setup.discovered().await.is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, gone).await.expect("the group goes with its APIService");
        let path = format!("/apis/{GROUP}/v1alpha1/namespaces/default/flunders");
        assert_eq!(setup.get(admin(), &path, &[]).await.0, 404);
        let v2 = parse(&setup.get(admin(), "/openapi/v2", &[]).await.2);
        assert!(v2["definitions"].get("com.example.Flunder").is_none());
        setup.server.shutdown().await;
    }
}

#[tokio::test]
async fn another_protocol_is_spoken_through_the_server() {
    let setup = Setup::start(true).await;
    setup.ready().await;
    let authority = Authority::new("own");
    let (certificate, key) = authority.issue("localhost", rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    let client_authority = Authority::new("clients");
    let tls =
        apiserver::tls::server_config(certificate.as_bytes(), key.as_bytes(), Some(client_authority.pem.as_bytes()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let (server, cancel) = (setup.server.clone(), stop.clone());
    let serving = tokio::spawn(async move { server.serve(listener, tls.unwrap(), cancel).await });

    // Nobody in particular may do it, once somebody says so.
    setup.grant("flunders/echo", "system:anonymous").await;
    let mut config = store::unchecked_client_config().unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let path = format!("/apis/{GROUP}/v1alpha1/namespaces/default/flunders/a/echo");
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = async {
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            seen.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"abcd").await.unwrap();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.unwrap();
        (String::from_utf8(seen).unwrap(), bytes)
    };
    let (head, bytes) = tokio::time::timeout(DEADLINE, answer).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(&bytes, b"dcba");
    assert_eq!(setup.extension.last(&path).headers["x-remote-user"], ["system:anonymous"]);
    drop(stream);
    stop.cancel();
    setup.server.shutdown().await;
    serving.await.unwrap();
}

#[tokio::test]
async fn extension_servers_are_told_whom_to_trust() {
    let setup = Setup::start(true).await;
    let api = setup.api("v1", "ConfigMap", "kube-system");
    let name = "extension-apiserver-authentication";
    let read = || async {
        let found = async {
            loop {
                if let Some(object) = api.get_opt(name).await.unwrap() {
                    break object;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, found).await.expect("the ConfigMap is there")
    };
    let object = read().await;
    let data = |key: &str| object.data["data"][key].as_str().unwrap_or_default().to_owned();
    assert!(data("client-ca-file").starts_with("-----BEGIN CERTIFICATE-----\n"));
    assert!(data("requestheader-client-ca-file").starts_with("-----BEGIN CERTIFICATE-----\n"));
    assert_eq!(data("requestheader-allowed-names"), "[\"front-proxy-client\"]");
    assert_eq!(data("requestheader-username-headers"), "[\"X-Remote-User\"]");
    assert_eq!(data("requestheader-group-headers"), "[\"X-Remote-Group\"]");
    assert_eq!(data("requestheader-extra-headers-prefix"), "[\"X-Remote-Extra-\"]");
    api.delete(name, &DeleteParams::default()).await.unwrap();
    assert_eq!(read().await.data["data"], object.data["data"], "it comes back");
    setup.server.shutdown().await;
}

#[tokio::test]
async fn definitions_have_api_services_as_long_as_they_are_served() {
    let setup = Setup::start(true).await;
    let definition = |served: bool| {
        let schema = json!({"openAPIV3Schema": {"type": "object"}});
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.things.example"},
        "spec": {"group": "things.example", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema.clone()},
                {"name": "v2", "served": served, "storage": false, "schema": schema},
            ]}})
    };
    setup.create(definition(true)).await;
    let api = setup.api_services();
    let is = |name: &'static str, wanted: bool| {
        let api = api.clone();
        async move {
            let reached = async {
                while api.get_opt(name).await.unwrap().is_some() != wanted {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(DEADLINE, reached).await.unwrap_or_else(|_| panic!("{name}: {wanted}"));
        }
    };
    is("v2.things.example", true).await;
    let object = api.get("v2.things.example").await.unwrap();
    assert_eq!(object.metadata.labels.unwrap()["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!(
        object.data["spec"],
        json!({"group": "things.example", "version": "v2", "groupPriorityMinimum": 1000, "versionPriority": 100})
    );
    assert_eq!(object.data["status"]["conditions"][0]["reason"], "Local");
    // One that is deleted comes back, one that is changed is put right.
    api.delete("v1.things.example", &DeleteParams::default()).await.unwrap();
    is("v1.things.example", true).await;
    let patch = json!({"spec": {"versionPriority": 7}});
    api.patch("v2.things.example", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let right = async {
        while api.get("v2.things.example").await.unwrap().data["spec"]["versionPriority"] != 100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, right).await.expect("the priority is put right");
    let definitions = setup.api("apiextensions.k8s.io/v1", "CustomResourceDefinition", "");
    let patch = json!({"spec": definition(false)["spec"].clone()});
    definitions.patch("widgets.things.example", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    is("v2.things.example", false).await;
    definitions.delete("widgets.things.example", &DeleteParams::default()).await.unwrap();
    is("v1.things.example", false).await;
    assert!(api.get_opt("v1.apps").await.unwrap().is_some());
    setup.server.shutdown().await;
}

#[tokio::test]
async fn kubectl_gets_the_resource() {
    let Some(kubectl) = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|file| file.is_file()))
    else {
        return;
    };
    let setup = Setup::start(true).await;
    setup.ready().await;
    setup.flunders(UserInfo::admin()).create(&PostParams::default(), &flunder("seen-by-kubectl")).await.unwrap();
    let (own, clients) = (Authority::new("own"), Authority::new("clients"));
    let (certificate, key) = own.issue("localhost", rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    let tls = apiserver::tls::server_config(certificate.as_bytes(), key.as_bytes(), Some(clients.pem.as_bytes()));
    setup.bind("cluster-admin", "jane").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let (server, cancel) = (setup.server.clone(), stop.clone());
    let serving = tokio::spawn(async move { server.serve(listener, tls.unwrap(), cancel).await });
    let home = tempfile::tempdir().unwrap();
    let (certificate, key) = clients.issue("jane", rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    let data = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("https://{address}"),
            "certificate-authority-data": data(&own.pem)}}],
        "users": [{"name": "c", "user": {"client-certificate-data": data(&certificate),
            "client-key-data": data(&key)}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
    std::fs::write(home.path().join("config"), kubeconfig.to_string()).unwrap();
    let run = tokio::process::Command::new(kubectl)
        .args(["--tls-server-name", "localhost", "get", "fl", "-o", "name"])
        .env("HOME", home.path())
        .env("KUBECONFIG", home.path().join("config"))
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, run).await.expect("kubectl ends").unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(out, format!("flunder.{GROUP}/seen-by-kubectl\n"), "{err}");
    stop.cancel();
    setup.server.shutdown().await;
    serving.await.unwrap();
}
