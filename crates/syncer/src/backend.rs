//! Into a pod: logs, exec, attach, port-forward and proxy of a virtual pod are answered by its host pod.
//!
//! The bytes of an upgraded connection (SPDY or WebSocket) are passed on as they are; nothing of them is read here.
//! Credentials and identity of the tenant's request never reach the host: the host sees the syncer's client.

use std::sync::Arc;

use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName,
    TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::{Method, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use parking_lot::Mutex;

use crate::names::NamespacedName;

/// What stands between a tenant and a host in this process.
const PIPE_BYTES: usize = 256 << 10;

/// The end of a connection for a host in this process, in the extensions of a request to be upgraded.
type InProcessStream = Arc<Mutex<Option<tokio::io::DuplexStream>>>;

/// A connection that is joined with another.
trait Joined: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Joined for T {}

/// A tenant's request to look into a pod.
pub struct TunnelRequest<'a> {
    pub method: Method,
    /// `log`, `exec`, `attach`, `portforward` or `proxy`.
    pub subresource: &'a str,
    /// What follows `proxy/`, else empty.
    pub path: &'a str,
    /// As it came, already encoded.
    pub query: &'a str,
    pub headers: &'a HeaderMap,
    pub body: Body,
    /// The tenant's connection, when it asks for an upgrade.
    pub upgrade: Option<OnUpgrade>,
    /// Kept as long as the joined connections last.
    pub keep: Option<Box<dyn std::any::Any + Send>>,
}

#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("the path into the pod is not valid")]
    Path(#[from] http::Error),
    #[error("the path into the pod must not leave it")]
    Traversal,
    #[error("the host cluster did not answer")]
    Host(#[from] Box<kube::Error>),
}

/// Headers that speak about one connection or about the tenant's identity.
fn is_private(name: &HeaderName) -> bool {
    [AUTHORIZATION, COOKIE, HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name)
        || name.as_str().starts_with("impersonate-")
        || name.as_str().starts_with("x-remote-")
        || name.as_str().starts_with("x-forwarded-")
}

fn upgrades(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some()
        && headers
            .get(CONNECTION)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade")))
}

fn host_uri(pod: &NamespacedName, request: &TunnelRequest<'_>) -> Result<String, TunnelError> {
    let mut uri = format!("/api/v1/namespaces/{}/pods/{}/{}", pod.namespace, pod.name, request.subresource);
    if !request.path.is_empty() {
        // A path with dots could be resolved to another pod's.
        let plain = percent_encoding::percent_decode_str(request.path).decode_utf8_lossy();
        if plain.split(['/', '\\']).any(|part| part == ".." || part == ".") {
            return Err(TunnelError::Traversal);
        }
        uri.push('/');
        uri.push_str(request.path.trim_start_matches('/'));
    }
    if !request.query.is_empty() {
        uri.push('?');
        uri.push_str(request.query);
    }
    Ok(uri)
}

/// Passes a request on to the host pod and gives the host's answer. After a 101 the two connections are joined until one
/// of them ends.
pub async fn tunnel(
    host_client: &kube::Client,
    host_pod: &NamespacedName,
    request: TunnelRequest<'_>,
) -> Result<Response<Body>, TunnelError> {
    let uri = host_uri(host_pod, &request)?;
    let upgrading = upgrades(request.headers) && request.upgrade.is_some();
    let mut to_host = Request::builder().method(request.method.clone()).uri(uri);
    for (name, value) in request.headers {
        let about_connection = *name == CONNECTION || *name == UPGRADE || name.as_str().starts_with("sec-websocket-");
        let passes = [ACCEPT, CONTENT_TYPE, USER_AGENT].contains(name)
            || name.as_str() == "x-stream-protocol-version"
            || (about_connection && upgrading)
            // A program in the pod may want any header.
            || (request.subresource == "proxy" && !about_connection);
        if passes && !is_private(name) {
            to_host = to_host.header(name, value);
        }
    }
    let mut to_host = to_host.body(request.body)?;
    // A host in this process has no connection of its own to upgrade: it takes this end of a pipe. Others never see it.
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    if upgrading {
        let far: InProcessStream = Arc::new(Mutex::new(Some(far)));
        to_host.extensions_mut().insert(far);
    }
    let mut answer = host_client.send(to_host).await.map_err(Box::new)?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(tenant) = request.upgrade
    {
        let over_network = answer.extensions().get::<OnUpgrade>().is_some();
        let host = over_network.then(|| hyper::upgrade::on(&mut answer));
        let keep = request.keep;
        tokio::spawn(async move {
            let _keep = keep;
            let host = async {
                match host {
                    Some(host) => host.await.map(|host| Box::new(TokioIo::new(host)) as Box<dyn Joined>),
                    None => Ok(Box::new(near) as Box<dyn Joined>),
                }
            };
            let (tenant, mut host) = match tokio::join!(tenant, host) {
                (Ok(tenant), Ok(host)) => (tenant, host),
                (tenant, host) => {
                    let error = tenant.err().or(host.err());
                    tracing::debug!(?error, "a connection into a pod was not upgraded");
                    return;
                }
            };
            let mut tenant = TokioIo::new(tenant);
            // Either side may end it; what is not delivered then has no reader any more.
            if let Err(error) = tokio::io::copy_bidirectional(&mut tenant, &mut host).await {
                tracing::debug!(%error, "a connection into a pod broke");
            }
        });
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(subresource: &'a str, path: &'a str, query: &'a str, headers: &'a HeaderMap) -> TunnelRequest<'a> {
        TunnelRequest {
            method: Method::GET,
            subresource,
            path,
            query,
            headers,
            body: Body::empty(),
            upgrade: None,
            keep: None,
        }
    }

    #[test]
    fn paths_stay_inside_the_pod() {
        let pod = NamespacedName::new("host", "web-x-default-x-vc");
        let headers = HeaderMap::new();
        let base = "/api/v1/namespaces/host/pods/web-x-default-x-vc";
        for (subresource, path, query, want) in [
            ("log", "", "follow=true", Some(format!("{base}/log?follow=true"))),
            ("exec", "", "command=sh&stdin=1", Some(format!("{base}/exec?command=sh&stdin=1"))),
            ("proxy", "a/b", "", Some(format!("{base}/proxy/a/b"))),
            ("proxy", "/a", "x=1", Some(format!("{base}/proxy/a?x=1"))),
            ("proxy", "../../other/proxy", "", None),
            ("proxy", "a/%2e%2e/%2E%2E/other", "", None),
            ("proxy", "a\\..\\b", "", None),
        ] {
            let got = host_uri(&pod, &request(subresource, path, query, &headers)).ok();
            assert_eq!(got, want, "{subresource} {path}");
        }
    }

    #[test]
    fn identities_are_private() {
        for (name, want) in [
            ("authorization", true),
            ("cookie", true),
            ("impersonate-user", true),
            ("x-remote-group", true),
            ("x-stream-protocol-version", false),
            ("accept", false),
        ] {
            assert_eq!(is_private(&HeaderName::from_static(name)), want, "{name}");
        }
    }
}
