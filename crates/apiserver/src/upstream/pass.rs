//! Requests and answers on their way through, with what belongs to one connection taken off.

use std::net::SocketAddr;

use apimachinery::status::StatusResult;
use futures::StreamExt;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::{Caller, bad};
use crate::authn::UserInfo;
use crate::body::{Body, RequestBody};

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA: &str = "x-remote-extra-";
/// What may not stand in the name of a header. Source: `client-go/transport.headerKeyEscape`.
const NOT_IN_NAMES: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'%')
    .add(b'(')
    .add(b')')
    .add(b',')
    .add(b'/')
    .add(b':')
    .add(b';')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'@')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'{')
    .add(b'}');

/// Is a header about one connection only?
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    ["keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"]
        .contains(&name.as_str())
        || *name == CONNECTION
        || *name == UPGRADE
}

/// Does a request ask for another protocol?
pub(crate) fn upgrades(headers: &HeaderMap) -> bool {
    let connection = headers.get(CONNECTION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    headers.contains_key(UPGRADE) && connection.split(',').any(|part| part.trim().eq_ignore_ascii_case("upgrade"))
}

/// The request as the other server gets it.
pub(super) fn request(
    address: SocketAddr,
    parts: Parts,
    body: RequestBody,
    caller: &Caller,
) -> StatusResult<Request<RequestBody>> {
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut out = Request::builder().method(parts.method).uri(format!("https://{address}{target}"));
    let upgrade = upgrades(&parts.headers);
    for (name, value) in &parts.headers {
        let hop = is_hop_by_hop(name) && !(upgrade && (*name == CONNECTION || *name == UPGRADE));
        let names_user = name.as_str().starts_with("x-remote-");
        let replaced = *name == AUTHORIZATION && matches!(caller, Caller::User(_));
        if !hop && !names_user && !replaced && *name != HOST {
            out = out.header(name, value);
        }
    }
    if let Caller::User(user) = caller {
        let headers = out.headers_mut().ok_or_else(|| bad("the request cannot be passed on"))?;
        name_user(headers, user)?;
    }
    out.body(body).map_err(bad)
}

/// Source: `k8s.io/client-go/transport.SetAuthProxyHeaders`.
pub(crate) fn name_user(headers: &mut HeaderMap, user: &UserInfo) -> StatusResult<()> {
    headers.insert(USER, HeaderValue::from_bytes(user.name.as_bytes()).map_err(bad)?);
    if !user.uid.is_empty() {
        headers.insert(UID, HeaderValue::from_bytes(user.uid.as_bytes()).map_err(bad)?);
    }
    for group in &user.groups {
        headers.append(GROUP, HeaderValue::from_bytes(group.as_bytes()).map_err(bad)?);
    }
    for (key, values) in &user.extra {
        let name = format!("{EXTRA}{}", utf8_percent_encode(&key.to_lowercase(), NOT_IN_NAMES));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(bad)?;
        for value in values {
            headers.append(&name, HeaderValue::from_bytes(value.as_bytes()).map_err(bad)?);
        }
    }
    Ok(())
}

/// Takes the client's connection off a request that asks for another protocol.
pub(crate) fn take_near(parts: &mut Parts) -> Option<OnUpgrade> {
    if upgrades(&parts.headers) { parts.extensions.remove::<OnUpgrade>() } else { None }
}

/// The answer as the client gets it; `keep` lives as long as its body.
pub(crate) fn response(answer: Response<Incoming>, keep: impl Send + 'static) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    let switched = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    if !switched {
        let gone: Vec<HeaderName> = parts.headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
        for name in gone {
            parts.headers.remove(name);
        }
    }
    if http_body::Body::is_end_stream(&body) {
        return Response::from_parts(parts, Body::empty());
    }
    // A broken connection ends the answer; its head has been sent by then.
    let chunks = body.into_data_stream().take_while(|chunk| std::future::ready(chunk.is_ok()));
    let stream = chunks.filter_map(move |chunk| {
        let _ = &keep;
        std::future::ready(chunk.ok())
    });
    Response::from_parts(parts, Body::Stream(stream.boxed()))
}

/// Joins both connections after the protocol has been switched; `keep` lives as long as they do.
pub(crate) fn join(near: Option<OnUpgrade>, answer: &mut Response<Incoming>, keep: impl Send + 'static) {
    let Some(near) = near.filter(|_| answer.status() == StatusCode::SWITCHING_PROTOCOLS) else { return };
    let far = hyper::upgrade::on(answer);
    tokio::spawn(async move {
        let _keep = keep;
        if let (Ok(near), Ok(far)) = tokio::join!(near, far) {
            let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
            // Either side may end it; what is not delivered then has no reader any more.
            if let Err(error) = tokio::io::copy_bidirectional(&mut near, &mut far).await {
                tracing::debug!(%error, "a connection to the upstream API server broke");
            }
        }
    });
}
