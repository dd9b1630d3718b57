//! Requests passed on to an extension server, and the answers back.
//!
//! Invariants:
//! - Headers that name a user never come from the client: they are taken off and set for the user that this server has
//!   authenticated and authorized (after impersonation).
//! - The client's credentials do not go along.
//!
//! Follows: `k8s.io/kube-aggregator/pkg/apiserver/handler_proxy.go`, `k8s.io/apimachinery/pkg/util/proxy`.

use std::any::Any;
use std::sync::Arc;

use http::header::{CONNECTION, HOST, LOCATION, UPGRADE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::remote::{CallError, Remote};
use crate::authn::UserInfo;
use crate::body::{Body, RequestBody};
use crate::output::raw_response;
use crate::upstream::pass;

const TEXT: &str = "text/plain; charset=utf-8";
/// A bearer token among the protocols of a WebSocket.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// An answer of this server's own. Source: `net/http.Error`.
fn error(code: StatusCode, text: &str) -> Response<Body> {
    let mut response = raw_response(code.as_u16(), TEXT, format!("{text}\n"));
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(HeaderName::from_static("x-content-type-options"), nosniff);
    response
}

/// Answers a request whose group and version another server has.
pub(crate) async fn forward(
    remote: &Arc<Remote>,
    mut parts: Parts,
    body: RequestBody,
    user: &UserInfo,
) -> Response<Body> {
    if !remote.is_available() {
        return error(StatusCode::SERVICE_UNAVAILABLE, "service unavailable");
    }
    if let Some(text) = remote.setup_error() {
        return error(StatusCode::INTERNAL_SERVER_ERROR, &text);
    }
    let near = pass::take_near(&mut parts);
    // A cluster that is not used sleeps; one with an open connection is used.
    let keep = parts.extensions.remove::<crate::activity::InFlight>().map(|keep| Box::new(keep) as Box<dyn Any + Send>);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let headers = headers(&parts);
    match remote.send(parts.method.clone(), path, headers, body, user).await {
        Ok(mut answer) => {
            let switched = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
            if answer.status().is_redirection() && answer.headers().contains_key(LOCATION) {
                let text = "the backend attempted to redirect this request, which is not permitted";
                return error(StatusCode::BAD_GATEWAY, text);
            }
            if switched {
                pass::join(near, &mut answer, keep);
                return pass::response(answer, ());
            }
            pass::response(answer, keep)
        }
        Err(problem) => {
            tracing::debug!(name = remote.spec.name, error = %problem, "an extension server was not reached");
            match problem {
                CallError::Setup(text) => error(StatusCode::INTERNAL_SERVER_ERROR, &text),
                CallError::Unresolved(_) => error(StatusCode::SERVICE_UNAVAILABLE, "service unavailable"),
                CallError::Request(text) => error(StatusCode::BAD_REQUEST, &text),
                CallError::Unreachable { message, .. } => {
                    let text = format!("error trying to reach service: {message}");
                    error(StatusCode::SERVICE_UNAVAILABLE, &text)
                }
            }
        }
    }
}

/// What of the client's headers the extension server gets.
fn headers(parts: &Parts) -> http::HeaderMap {
    let upgrade = pass::upgrades(&parts.headers);
    let mut out = http::HeaderMap::with_capacity(parts.headers.len());
    for (name, value) in &parts.headers {
        let hop = pass::is_hop_by_hop(name) && !(upgrade && (*name == CONNECTION || *name == UPGRADE));
        let credential = *name == http::header::AUTHORIZATION
            || ["x-remote-", "impersonate-"].iter().any(|prefix| name.as_str().starts_with(prefix));
        if hop || credential || *name == HOST {
            continue;
        }
        if name.as_str() == "sec-websocket-protocol" {
            let text = value.to_str().unwrap_or_default();
            let protocols: Vec<&str> =
                text.split(',').map(str::trim).filter(|protocol| !protocol.starts_with(TOKEN_PROTOCOL)).collect();
            if let Ok(value) = HeaderValue::from_str(&protocols.join(", "))
                && !protocols.is_empty()
            {
                out.append(name, value);
            }
            continue;
        }
        out.append(name, value.clone());
    }
    let host = parts.uri.authority().map(|authority| authority.as_str().to_owned());
    let host = host.or_else(|| Some(parts.headers.get(HOST)?.to_str().ok()?.to_owned()));
    for (name, value) in [("x-forwarded-host", host), ("x-forwarded-uri", Some(parts.uri.path().to_owned()))] {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            out.insert(HeaderName::from_static(name), value);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_names_or_proves_somebody_goes_along() {
        let request = http::Request::builder()
            .uri("/apis/x.example/v1/flunders?watch=1")
            .header("host", "front.example:6443")
            .header("authorization", "Bearer secret")
            .header("x-remote-user", "admin")
            .header("x-remote-extra-a", "b")
            .header("impersonate-user", "admin")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("te", "trailers")
            .header("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.c2VjcmV0, v4.channel.k8s.io")
            .header("accept", "application/json")
            .body(())
            .unwrap();
        let out = headers(&request.into_parts().0);
        let mut got: Vec<(&str, &str)> = out.iter().map(|(k, v)| (k.as_str(), v.to_str().unwrap())).collect();
        got.sort_unstable();
        assert_eq!(
            got,
            [
                ("accept", "application/json"),
                ("connection", "Upgrade"),
                ("sec-websocket-protocol", "v4.channel.k8s.io"),
                ("upgrade", "websocket"),
                ("x-forwarded-host", "front.example:6443"),
                ("x-forwarded-uri", "/apis/x.example/v1/flunders"),
            ]
        );
    }
}
