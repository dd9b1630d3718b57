//! Connections into simulated pods: exec, attach and port-forward, over WebSocket and SPDY/3.1, as a kubelet answers them.
//!
//! | asked for | protocols |
//! |---|---|
//! | exec, attach | WebSocket `v5.channel.k8s.io`, `v4.channel.k8s.io`; SPDY `v4.channel.k8s.io` |
//! | port-forward | WebSocket `v4.channel.k8s.io` and `SPDY/3.1+portforward.k8s.io`; SPDY `portforward.k8s.io` |
//!
//! The connection is hyper's, or, from a client in this process, one end of a pipe in the request's extensions.
//!
//! Follows: `k8s.io/kubelet/pkg/cri/streaming`, `k8s.io/apimachinery/pkg/util/remotecommand`.

mod channels;
mod forward;
mod programs;
mod spdy;

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::{Status, StatusResult};
use apiserver::body::Body;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use node::shell::Container;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};

/// What a client in this process puts into the extensions of a request to be upgraded.
type InProcessStream = Arc<Mutex<Option<DuplexStream>>>;

/// A connection that is spoken on after the upgrade.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}
pub(crate) type BoxConnection = Box<dyn Connection>;

/// What is to be run, and which streams the client wants.
pub(crate) struct ExecRequest {
    pub container: Container,
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A pod whose ports are forwarded.
pub(crate) struct ForwardRequest {
    pub pod: Value,
    /// Only the channel protocol names them in the request.
    pub ports: Vec<u16>,
}

/// What happens on a connection.
pub(crate) enum Purpose {
    Exec(ExecRequest),
    Forward(ForwardRequest),
}

const EXEC_PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// SPDY has no way to close one direction but FIN, which is what v5 adds to WebSocket.
const EXEC_SPDY_PROTOCOLS: [&str; 1] = ["v4.channel.k8s.io"];
const FORWARD_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const FORWARD_PROTOCOLS: [&str; 2] = [FORWARD_TUNNEL, "v4.channel.k8s.io"];
const FORWARD_SPDY_PROTOCOL: &str = "portforward.k8s.io";

fn bad(message: impl Into<String>) -> Box<Status> {
    Box::new(Status::bad_request(message))
}

/// The values of a header that may be repeated and may hold lists.
fn values<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let all = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(',')).map(str::trim).filter(|value| !value.is_empty()).collect()
}

/// Answers with 101 and speaks the protocol that both sides know.
pub(crate) fn upgrade(
    headers: &HeaderMap,
    extensions: &mut http::Extensions,
    purpose: Purpose,
) -> StatusResult<Response<Body>> {
    let asked = values(headers, UPGRADE.as_str());
    let is = |name: &str| asked.iter().any(|value| value.eq_ignore_ascii_case(name));
    let (websocket, spdy) = (is("websocket"), is("SPDY/3.1"));
    if !websocket && !spdy {
        return Err(bad("Upgrade request required"));
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let protocol = if websocket {
        let offered = values(headers, "sec-websocket-protocol");
        let known: &[&'static str] = match purpose {
            Purpose::Exec(_) => &EXEC_PROTOCOLS,
            Purpose::Forward(_) => &FORWARD_PROTOCOLS,
        };
        let protocol = known.iter().find(|protocol| offered.contains(*protocol));
        let protocol =
            *protocol.ok_or_else(|| bad(format!("none of the protocols {offered:?} is known; known are {known:?}")))?;
        let key = headers.get("sec-websocket-key").ok_or_else(|| bad("a WebSocket has a key"))?;
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
        out.insert(UPGRADE, HeaderValue::from_static("websocket"));
        out.insert("sec-websocket-accept", HeaderValue::from_str(&accept).map_err(|error| bad(error.to_string()))?);
        out.insert("sec-websocket-protocol", HeaderValue::from_static(protocol));
        protocol
    } else {
        let offered = values(headers, "x-stream-protocol-version");
        let known: &[&'static str] = match purpose {
            Purpose::Exec(_) => &EXEC_SPDY_PROTOCOLS,
            Purpose::Forward(_) => &[FORWARD_SPDY_PROTOCOL],
        };
        let protocol = known.iter().find(|protocol| offered.contains(*protocol));
        let protocol =
            *protocol.ok_or_else(|| bad(format!("none of the protocols {offered:?} is known; known are {known:?}")))?;
        out.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        out.insert("x-stream-protocol-version", HeaderValue::from_static(protocol));
        protocol
    };
    let connection = connection(extensions).ok_or_else(|| bad("the connection cannot be upgraded"))?;
    tokio::spawn(async move {
        let Some(connection) = connection.await else { return };
        match (purpose, websocket) {
            (Purpose::Exec(request), true) => {
                channels::exec(connection, request, protocol == "v5.channel.k8s.io").await
            }
            (Purpose::Exec(request), false) => spdy::exec(connection, request).await,
            (Purpose::Forward(request), true) if protocol == FORWARD_TUNNEL => {
                spdy::forward(channels::tunnel(connection).await, request).await;
            }
            (Purpose::Forward(request), true) => channels::forward(connection, request).await,
            (Purpose::Forward(request), false) => spdy::forward(connection, request).await,
        }
    });
    Ok(response)
}

/// The connection below a request, once it has been upgraded.
fn connection(
    extensions: &mut http::Extensions,
) -> Option<impl Future<Output = Option<BoxConnection>> + Send + 'static> {
    let in_process = extensions.remove::<InProcessStream>().and_then(|stream| stream.lock().take());
    let upgrade = extensions.remove::<OnUpgrade>();
    if in_process.is_none() && upgrade.is_none() {
        return None;
    }
    Some(async move {
        if let Some(stream) = in_process {
            return Some(Box::new(stream) as BoxConnection);
        }
        match upgrade?.await {
            Ok(upgraded) => Some(Box::new(TokioIo::new(upgraded)) as BoxConnection),
            Err(error) => {
                tracing::debug!(%error, "a connection into a pod was not upgraded");
                None
            }
        }
    })
}
