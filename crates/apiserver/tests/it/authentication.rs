//! Tokens that others vouch for: an OpenID Connect issuer and a webhook, both inside the test.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use apiserver::authentication::AuthenticationFlags;
use apiserver::body::request_body;
use apiserver::{ApiServer, Config, SecureOptions, UserInfo};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

/// Serves one connection with a function from path and body to code and answer.
async fn serve<S>(stream: S, answer: impl Fn(&str, Bytes) -> (u16, Value) + Clone)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let (code, value) = answer(parts.uri.path(), bytes);
            let response = Response::builder().status(code).header("content-type", "application/json");
            Ok::<_, Infallible>(response.body(Full::new(Bytes::from(value.to_string()))).unwrap())
        }
    });
    // The other side may go at any time.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// An issuer of tokens with keys that may change.
struct Issuer {
    address: SocketAddr,
    authority: String,
    keys: Mutex<Vec<(String, EncodingKey, Value)>>,
    fetches: AtomicUsize,
}

impl Issuer {
    async fn start() -> Arc<Issuer> {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let tls = apiserver::tls::server_config(certificate.as_bytes(), key.serialize_pem().as_bytes(), None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Arc::new(Issuer {
            address: listener.local_addr().unwrap(),
            authority: certificate,
            keys: Mutex::default(),
            fetches: AtomicUsize::new(0),
        });
        issuer.rotate("first");
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        let own = Arc::clone(&issuer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, issuer) = (acceptor.clone(), Arc::clone(&own));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    serve(stream, move |path, _| issuer.answer(path)).await;
                });
            }
        });
        issuer
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    fn answer(&self, path: &str) -> (u16, Value) {
        match path {
            "/.well-known/openid-configuration" | "/elsewhere" => {
                (200, json!({"issuer": self.url(), "jwks_uri": format!("{}/keys", self.url())}))
            }
            "/keys" => {
                self.fetches.fetch_add(1, Ordering::SeqCst);
                let keys: Vec<_> = self.keys.lock().iter().map(|(_, _, jwk)| jwk.clone()).collect();
                (200, json!({"keys": keys}))
            }
            _ => (404, json!({})),
        }
    }

    /// Signs with another key from now on.
    fn rotate(&self, id: &str) {
        let pair = rcgen::KeyPair::generate().unwrap();
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap()).unwrap();
        jwk["kid"] = id.into();
        jwk["use"] = "sig".into();
        *self.keys.lock() = vec![(id.to_owned(), key, jwk)];
    }

    /// A token with these claims beside the usual ones.
    fn token(&self, claims: &Value) -> String {
        let mut all = json!({"iss": self.url(), "aud": "kube", "sub": "jane", "exp": 4_000_000_000_u64});
        for (name, value) in claims.as_object().unwrap() {
            all[name] = value.clone();
        }
        let keys = self.keys.lock();
        let (id, key, _) = &keys[0];
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(id.clone());
        jsonwebtoken::encode(&header, &all, key).unwrap()
    }
}

async fn start(flags: &AuthenticationFlags) -> ApiServer {
    let mut config: Config = apiserver::secure_config(&SecureOptions::default()).unwrap();
    flags.apply(&mut config).unwrap();
    let store = store::Store::in_memory(store::Options::default()).await;
    ApiServer::start(config, store).await.unwrap()
}

/// What a TokenReview says.
async fn review(server: &ApiServer, token: &str) -> Value {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("authentication.k8s.io", "v1", "TokenReview"));
    let api: Api<DynamicObject> = Api::all_with(server.kube_client(UserInfo::admin()), &resource);
    let object = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
        "spec": {"token": token}});
    let review = api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    review.data["status"].clone()
}

/// The code of a request from the network.
async fn code(server: &ApiServer, path: &str, token: Option<&str>) -> u16 {
    let mut request = Request::builder().uri(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    server.handle(parts, request_body(Full::new(Bytes::new()))).await.status().as_u16()
}

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> Option<std::path::PathBuf> {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    Some(path)
}

#[tokio::test]
async fn tokens_of_the_issuer_in_the_flags_name_users() {
    let (issuer, folder) = (Issuer::start().await, tempfile::tempdir().unwrap());
    let mut flags =
        AuthenticationFlags { oidc_ca_file: file(&folder, "ca.pem", &issuer.authority), ..Default::default() };
    for (name, value) in [
        ("oidc-issuer-url", issuer.url().as_str()),
        ("oidc-client-id", "kube"),
        ("oidc-groups-claim", "roles"),
        ("oidc-groups-prefix", "oidc:"),
        ("oidc-required-claim", "team=a"),
        ("oidc-signing-algs", "ES256"),
    ] {
        flags.set(name, value).unwrap();
    }
    let server = start(&flags).await;
    let good = json!({"team": "a", "roles": ["dev", "ops"], "jti": "7"});
    let status = review(&server, &issuer.token(&good)).await;
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(status["user"]["username"], format!("{}#jane", issuer.url()));
    assert_eq!(status["user"]["groups"], json!(["oidc:dev", "oidc:ops", "system:authenticated"]));
    assert_eq!(status["user"]["extra"], json!({"authentication.kubernetes.io/credential-id": ["JTI=7"]}));
    assert_eq!(code(&server, "/version", Some(&issuer.token(&good))).await, 200);

    for (claims, want) in [
        (json!({"roles": "dev"}), "oidc: required claim team not present in ID token"),
        (json!({"team": "b"}), "oidc: required claim team value does not match. Got = b, want = a"),
        (json!({"team": "a", "roles": 5}), "oidc: parse groups claim \"roles\": it is no string and no list"),
        (json!({"aud": "x"}), "oidc: verify token: oidc: expected audience \"kube\" got [\"x\"]"),
        (json!({"exp": 5}), "oidc: verify token: oidc: token is expired (Token Expiry: 1970-01-01T00:00:05Z)"),
    ] {
        let token = issuer.token(&claims);
        let status = review(&server, &token).await;
        assert_eq!(status["error"], format!("[invalid bearer token, {want}]"), "{claims}");
        assert_eq!(code(&server, "/version", Some(&token)).await, 401);
    }
    let stranger = Issuer::start().await;
    assert_eq!(review(&server, &stranger.token(&good)).await["error"], "invalid bearer token");

    // A new key is fetched when the first token with it comes; one that nobody has is not asked for without end.
    assert_eq!(issuer.fetches.load(Ordering::SeqCst), 1);
    issuer.rotate("second");
    assert_eq!(review(&server, &issuer.token(&good)).await["authenticated"], true);
    assert_eq!(issuer.fetches.load(Ordering::SeqCst), 2);
    let (mut forged, known) = (issuer.token(&good), issuer.token(&good));
    forged.truncate(forged.len() - 8);
    forged.push_str("AAAAAAAA");
    let status = review(&server, &forged).await;
    let text =
        "[invalid bearer token, oidc: verify token: failed to verify signature: failed to verify id token signature]";
    assert_eq!(status["error"], text);
    for _ in 0..30 {
        review(&server, &forged).await;
    }
    let fetches = issuer.fetches.load(Ordering::SeqCst);
    assert!(fetches < 20, "{fetches}");
    assert_eq!(review(&server, &known).await["authenticated"], true);
    server.shutdown().await;
}

#[tokio::test]
async fn an_authentication_configuration_maps_claims_by_expressions() {
    let (issuer, folder) = (Issuer::start().await, tempfile::tempdir().unwrap());
    let config = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "anonymous": {"enabled": true, "conditions": [{"path": "/livez"}]},
        "jwt": [{
            "issuer": {"url": issuer.url(), "discoveryURL": format!("{}/elsewhere", issuer.url()),
                "certificateAuthority": issuer.authority, "audiences": ["kube", "other"],
                "audienceMatchPolicy": "MatchAny"},
            "claimMappings": {
                "username": {"expression": "claims.sub + '@' + claims.realm"},
                "groups": {"expression": "claims.roles.map(r, 'r:' + r)"},
                "uid": {"claim": "id"},
                "extra": [{"key": "example.com/tenant", "valueExpression": "claims.realm"}],
            },
            "claimValidationRules": [{"expression": "claims.exp - claims.iat <= 86400", "message": "it lives too long"}],
            "userValidationRules": [{"expression": "!user.username.startsWith('system:')", "message": "reserved"}],
        }],
    });
    let flags = AuthenticationFlags {
        authentication_config: file(&folder, "authentication.yaml", &config.to_string()),
        ..Default::default()
    };
    let server = start(&flags).await;
    let exp = 4_000_000_000_u64;
    let claims = |more: Value| {
        let mut claims = json!({"realm": "x", "roles": ["a"], "id": "u", "iat": exp - 60, "aud": ["other"]});
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        issuer.token(&claims)
    };
    let status = review(&server, &claims(json!({}))).await;
    let user = &status["user"];
    assert_eq!((&user["username"], &user["uid"]), (&json!("jane@x"), &json!("u")), "{status}");
    assert_eq!(user["groups"], json!(["r:a", "system:authenticated"]));
    assert_eq!(user["extra"], json!({"example.com/tenant": ["x"]}));
    for (more, want) in [
        (json!({"iat": 5}), "it lives too long"),
        (json!({"sub": "system:admin"}), "reserved"),
        (json!({"aud": "third"}), "oidc: expected audience in [\"kube\" \"other\"] got [\"third\"]"),
        (json!({"realm": 5}), "oidc: error evaluating username claim expression"),
    ] {
        let status = review(&server, &claims(more)).await;
        assert!(status["error"].as_str().unwrap_or_default().contains(want), "{want}: {status}");
    }
    assert_eq!(code(&server, "/livez", None).await, 200);
    assert_eq!(code(&server, "/version", None).await, 401, "nobody in particular may ask for one path only");
    assert_eq!(code(&server, "/version", Some(&claims(json!({})))).await, 200);
    server.shutdown().await;
}

#[tokio::test]
async fn a_webhook_judges_tokens_and_its_answers_are_kept() {
    let calls = Arc::new(Mutex::new(Vec::<Value>::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(serve(stream, move |path, body| {
                let review: Value = serde_json::from_slice(&body).unwrap();
                let token = review["spec"]["token"].as_str().unwrap().to_owned();
                let first = {
                    let mut seen = seen.lock();
                    seen.push(review);
                    seen.len() == 1
                };
                assert_eq!(path, "/review");
                let user = json!({"username": token, "uid": "1", "groups": ["g"], "extra": {"k": ["v"]}});
                match token.as_str() {
                    _ if first => (500, json!({})),
                    "good" => (200, json!({"status": {"authenticated": true, "user": user}})),
                    "elsewhere" => {
                        (200, json!({"status": {"authenticated": true, "user": user, "audiences": ["other"]}}))
                    }
                    "told" => (200, json!({"status": {"authenticated": false, "error": "it is old"}})),
                    _ => (200, json!({"status": {"authenticated": false}})),
                }
            }));
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}/review")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    let flags = AuthenticationFlags {
        webhook_config_file: file(&folder, "webhook.yaml", &kubeconfig.to_string()),
        webhook_version: "v1".to_owned(),
        ..Default::default()
    };
    let server = start(&flags).await;
    // The first call fails and is made again; the second review is answered from what is known.
    for _ in 0..2 {
        let status = review(&server, "good").await;
        assert_eq!(status["user"]["username"], "good", "{status}");
        assert_eq!(status["user"]["groups"], json!(["g", "system:authenticated"]));
        assert_eq!((&status["user"]["uid"], &status["user"]["extra"]["k"]), (&json!("1"), &json!(["v"])));
    }
    assert_eq!(calls.lock().len(), 2);
    assert_eq!(calls.lock()[0]["apiVersion"], "authentication.k8s.io/v1");
    for (token, want) in [
        ("bad", "invalid bearer token"),
        ("elsewhere", "invalid bearer token"),
        ("told", "[invalid bearer token, it is old]"),
    ] {
        assert_eq!(review(&server, token).await["error"], want, "{token}");
    }
    assert_eq!(code(&server, "/version", Some("good")).await, 200);
    assert_eq!(code(&server, "/version", Some("bad")).await, 401);
    server.shutdown().await;
}
