//! Requests passed on to a server in a pod: `pods/proxy` and `services/proxy`.
//!
//! Who may be reached is decided by the caller. Credentials of the request do not go along; the certificate of an HTTPS
//! server is not checked, as nobody vouches for one.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/proxy.UpgradeAwareHandler`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::{Status, StatusResult};
use futures::StreamExt;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, LOCATION, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::body::{Body, RequestBody};

/// How long a connection and its handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A server in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    pub address: SocketAddr,
    pub https: bool,
}

/// `name`, `name:port` or `scheme:name:port`, as a proxied pod or Service is named in a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyName<'a> {
    pub scheme: &'a str,
    pub name: &'a str,
    pub port: &'a str,
}

impl<'a> ProxyName<'a> {
    /// Source: `k8s.io/apimachinery/pkg/util/net.SplitSchemeNamePort`.
    pub fn parse(text: &'a str) -> Option<ProxyName<'a>> {
        let parts: Vec<&str> = text.split(':').collect();
        let parsed = match parts.as_slice() {
            [name] => ProxyName { scheme: "", name, port: "" },
            [name, port] => ProxyName { scheme: "", name, port },
            [scheme @ ("http" | "https" | ""), name, port] => ProxyName { scheme, name, port },
            _ => return None,
        };
        (!parsed.name.is_empty()).then_some(parsed)
    }

    pub fn is_https(&self) -> bool {
        self.scheme == "https"
    }
}

/// Is this an address that may be proxied to? Not this machine and not its link. Source: `IP.IsGlobalUnicast`.
pub fn is_proxyable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast())
        }
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_proxyable(ip.into()),
            None => !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local()),
        },
    }
}

fn unavailable(error: &dyn std::fmt::Display) -> Box<Status> {
    Box::new(Status::service_unavailable(format!("error trying to reach service: {error}")))
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
    .contains(&name.as_str())
}

/// What a program in a pod must not be told.
fn is_credential(name: &HeaderName) -> bool {
    *name == AUTHORIZATION || name.as_str().starts_with("impersonate-") || name.as_str().starts_with("x-remote-")
}

fn asks_for_upgrade(request: &Request<RequestBody>) -> bool {
    let connection = request.headers().get(CONNECTION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    request.headers().contains_key(UPGRADE)
        && connection.split(',').any(|part| part.trim().eq_ignore_ascii_case("upgrade"))
}

/// Passes `request` on; `path` is what follows `proxy` in its own path: empty, or beginning with `/`.
pub async fn forward(
    destination: Destination,
    path: &str,
    request: Request<RequestBody>,
) -> StatusResult<Response<Body>> {
    let upgrades = asks_for_upgrade(&request);
    if path.is_empty() && !upgrades && [Method::GET, Method::HEAD].contains(request.method()) {
        // Relative links in the answer must stay below this path.
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let location = HeaderValue::from_str(&format!("{}/{query}", request.uri().path()))
            .map_err(|error| Box::new(Status::bad_request(error.to_string())))?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        response.headers_mut().insert(LOCATION, location);
        return Ok(response);
    }
    let connect = async {
        let stream = TcpStream::connect(destination.address).await?;
        stream.set_nodelay(true)?;
        if !destination.https {
            return send(stream, destination, path, request, upgrades).await;
        }
        // A server in a pod has a certificate of its own making.
        let config = store::unchecked_client_config().map(Arc::new).map_err(std::io::Error::other)?;
        let name = ServerName::IpAddress(destination.address.ip().into());
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
        send(stream, destination, path, request, upgrades).await
    };
    // The time is for the head of the answer; its body may take as long as it likes.
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(unavailable(&error)),
        Err(_) => Err(unavailable(&"no answer in time")),
    }
}

async fn send<S>(
    stream: S,
    destination: Destination,
    path: &str,
    mut request: Request<RequestBody>,
    upgrades: bool,
) -> std::io::Result<Response<Body>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let other = |error: hyper::Error| std::io::Error::other(error);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended early");
        }
    });
    let tenant = request.extensions_mut().remove::<OnUpgrade>();
    let (parts, body) = request.into_parts();
    let mut target = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
    if let Some(query) = parts.uri.query() {
        target = format!("{target}?{query}");
    }
    let uri: Uri = target.parse().map_err(std::io::Error::other)?;
    let mut out = Request::builder().method(parts.method).uri(uri);
    for (name, value) in &parts.headers {
        let passes = !is_hop_by_hop(name) || (upgrades && (*name == CONNECTION || *name == UPGRADE));
        if passes && *name != HOST && !is_credential(name) {
            out = out.header(name, value);
        }
    }
    out = out.header(HOST, destination.address.to_string());
    out = out.header("x-forwarded-uri", parts.uri.path());
    if let Some(host) = parts.headers.get(HOST) {
        out = out.header("x-forwarded-host", host);
    }
    let mut answer = sender.send_request(out.body(body).map_err(std::io::Error::other)?).await.map_err(other)?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(tenant) = tenant
    {
        let far = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            if let (Ok(tenant), Ok(far)) = tokio::join!(tenant, far) {
                let (mut tenant, mut far) = (TokioIo::new(tenant), TokioIo::new(far));
                // Either side may end it; what is not delivered then has no reader any more.
                if let Err(error) = tokio::io::copy_bidirectional(&mut tenant, &mut far).await {
                    tracing::debug!(%error, "a proxied connection broke");
                }
            }
        });
    }
    let switched = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
    let (mut parts, body) = answer.into_parts();
    if !switched {
        for name in ["connection", "keep-alive", "upgrade"] {
            parts.headers.remove(name);
        }
        parts.headers.remove(TRANSFER_ENCODING);
    }
    // A broken connection ends the answer; its head has been sent by then.
    let chunks = body.into_data_stream().take_while(|chunk| std::future::ready(chunk.is_ok()));
    let stream = chunks.filter_map(|chunk| std::future::ready(chunk.ok()));
    Ok(Response::from_parts(parts, Body::Stream(stream.boxed())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::request_body;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn names_have_an_optional_scheme_and_port() {
        for (text, want) in [
            ("web", Some(("", "web", ""))),
            ("web:80", Some(("", "web", "80"))),
            ("https:web:http", Some(("https", "web", "http"))),
            (":web:", Some(("", "web", ""))),
            ("ftp:web:1", None),
            ("a:b:c:d", None),
            ("", None),
        ] {
            let got = ProxyName::parse(text).map(|n| (n.scheme, n.name, n.port));
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn this_machine_and_its_link_are_not_reached() {
        for (address, want) in [
            ("10.0.0.1", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("fd00::1", true),
            ("fe80::1", false),
            ("::ffff:127.0.0.1", false),
        ] {
            assert_eq!(is_proxyable(address.parse().unwrap()), want, "{address}");
        }
    }

    #[tokio::test]
    async fn requests_reach_the_server_without_the_credentials() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let destination = Destination { address: listener.local_addr().unwrap(), https: false };
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; 4096];
            let read = stream.read(&mut seen).await.unwrap();
            stream.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\nx-own: 1\r\n\r\nhi").await.unwrap();
            String::from_utf8(seen[..read].to_vec()).unwrap()
        });
        let request = || {
            let request = Request::builder().uri("/api/v1/namespaces/a/pods/p/proxy/x/y?q=1");
            let request = request.header("authorization", "Bearer secret").header("impersonate-user", "x");
            request.header("x-app", "kept").body(request_body(http_body_util::Empty::new())).unwrap()
        };
        let answer = forward(destination, "/x/y", request()).await.unwrap();
        assert_eq!(answer.status(), 201);
        assert_eq!(answer.headers()["x-own"], "1");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&body[..], b"hi");
        let seen = server.await.unwrap();
        assert!(seen.starts_with("GET /x/y?q=1 HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("x-app: kept") && !seen.contains("secret") && !seen.contains("impersonate"), "{seen}");

        // Nobody listens any more; and the root is asked for with a slash.
        let status = forward(destination, "/", request()).await.map(drop).unwrap_err();
        assert_eq!(status.code, 503);
        assert!(status.message.starts_with("error trying to reach service: "), "{}", status.message);
        let moved = forward(destination, "", request()).await.unwrap();
        assert_eq!(moved.status(), 301);
        assert!(moved.headers()["location"].to_str().unwrap().ends_with("/x/y/?q=1"));
    }
}
