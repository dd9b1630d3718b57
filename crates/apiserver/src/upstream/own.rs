//! What is answered here although another server is behind, and how the rest is passed on.

use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::status::{Status, StatusResult};
use apimachinery::{Value, meta::ObjectMeta};
use http::request::Parts;
use http::{HeaderMap, Method, Response, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use super::{Caller, Upstream, caller, pass, services};
use crate::authz::{Attributes, forbidden_message};
use crate::body::{Body, RequestBody};
use crate::groups;
use crate::health;
use crate::impersonate;
use crate::output::{json_response, status_response};
use crate::request_info::RequestInfo;
use crate::server::{ApiServer, Inner};

/// The largest list of groups that is read to add to it.
const GROUPS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Counts a request as long as its answer is under way.
struct Passing(Arc<Inner>);

impl Passing {
    fn begin(inner: &Arc<Inner>) -> Passing {
        inner.count_in_flight(1);
        Passing(inner.clone())
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.count_in_flight(-1);
    }
}

/// Does this server answer such a request itself?
pub(crate) fn is_own(server: &Inner, info: &RequestInfo) -> bool {
    let config = &server.config;
    if info.is_resource {
        let connects = info.group.is_empty()
            && matches!(
                (info.resource.as_str(), info.subresource.as_str()),
                ("pods", "log" | "exec" | "attach" | "portforward" | "proxy") | ("services" | "nodes", "proxy")
            );
        let in_group = config.groups.iter().any(|g| g.name() == info.group && g.version() == info.version);
        return connects && config.pods.is_some() || in_group;
    }
    let mut parts = info.path.trim_matches('/').split('/');
    match (parts.next(), parts.next()) {
        (Some("metrics"), Some(name)) => config.metrics.iter().any(|source| source.name() == name),
        (Some("apis"), Some(group)) => config.groups.iter().any(|g| g.name() == group),
        (Some(endpoint @ ("healthz" | "livez" | "readyz")), Some(check)) => health::is_own(server, endpoint, check),
        _ => false,
    }
}

/// Passes a request on and the answer back.
pub(crate) async fn pass_on(
    server: &ApiServer,
    upstream: &Upstream,
    parts: Parts,
    body: RequestBody,
    info: &RequestInfo,
) -> Response<Body> {
    let headers = parts.headers.clone();
    let answer = try_pass_on(server, upstream, parts, body, info).await;
    answer.unwrap_or_else(|status| status_response(&status, &headers))
}

async fn try_pass_on(
    server: &ApiServer,
    upstream: &Upstream,
    mut parts: Parts,
    body: RequestBody,
    info: &RequestInfo,
) -> StatusResult<Response<Body>> {
    let inner = server.inner();
    let passing = (!info.is_long_running()).then(|| Passing::begin(inner));
    let caller = caller(&parts).await?;
    veto(server, &parts, info).await?;
    let path = info.path.trim_matches('/');
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    if matches!(path, "healthz" | "livez" | "readyz")
        && let Some(failed) = health::own_failure(inner, path, &info.query).await
    {
        return Ok(failed);
    }
    if path == "apis" && reads && !inner.config.groups.is_empty() {
        // The answer is read here.
        parts.headers.remove(header::ACCEPT_ENCODING);
        let answer = upstream.send(parts, body, &caller).await?;
        return with_groups(inner, answer).await;
    }
    if services::is_create(info)
        && let Some(addressing) = inner.config.service_addressing.clone()
    {
        return services::create(server, upstream, addressing.as_ref(), parts, body, &caller).await;
    }
    let answer = upstream.send(parts, body, &caller).await?;
    Ok(pass::response(answer, passing))
}

/// Rules that hold for everybody, whatever the other server allows.
async fn veto(server: &ApiServer, parts: &Parts, info: &RequestInfo) -> StatusResult<()> {
    let authorizer = server.inner().config.authorizer.as_ref();
    if !authorizer.has_vetoes() || !info.is_resource {
        return Ok(());
    }
    // Whom this server does not know the other one refuses, or knows as anonymous.
    let user = server.authenticate(parts).await.unwrap_or_else(|| Arc::new(crate::UserInfo::anonymous()));
    let user = impersonate::effective_user(authorizer, user, info, &parts.headers).await?;
    let attributes = Attributes::new(&user, info);
    let Some(reason) = authorizer.veto(&attributes) else { return Ok(()) };
    let resource = GroupResource::new(info.group.as_str(), info.resource.as_str());
    Err(Box::new(Status::forbidden(&resource, &info.name, forbidden_message(&attributes, &reason))))
}

/// The other server's list of groups with those that are answered here.
async fn with_groups(server: &Inner, answer: Response<Incoming>) -> StatusResult<Response<Body>> {
    let json = |headers: &HeaderMap| {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        content_type.starts_with("application/json")
    };
    if answer.status() != 200 || !json(answer.headers()) {
        return Ok(pass::response(answer, ()));
    }
    let (parts, body) = answer.into_parts();
    let bytes = Limited::new(body, GROUPS_BYTES_MAX).collect().await.map_err(super::away)?.to_bytes();
    let mut list = Value::from_slice(&bytes).map_err(|error| Box::new(Status::internal_error(error.to_string())))?;
    let own = server.config.groups.iter();
    let (member, added): (_, Vec<Value>) = match list.str_at(&["kind"]) {
        "APIGroupDiscoveryList" => ("items", own.map(|group| groups::aggregated_value(group.as_ref())).collect()),
        _ => ("groups", own.map(|group| groups::group_value(group.as_ref())).collect()),
    };
    let mut all = list.array_at(&[member]).to_vec();
    let name = |group: &Value| match member {
        "items" => group.name().to_owned(),
        _ => group.str_at(&["name"]).to_owned(),
    };
    all.retain(|group| !added.iter().any(|own| name(own) == name(group)));
    all.extend(added);
    list[member] = Value::Array(all);
    let mut response = json_response(200, &list);
    // The aggregated form names itself there.
    if let Some(content_type) = parts.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
    }
    response.headers_mut().insert(header::VARY, http::HeaderValue::from_static("Accept"));
    Ok(response)
}

/// For callers that have read the body of a request.
pub(super) async fn send_bytes(
    upstream: &Upstream,
    parts: Parts,
    bytes: bytes::Bytes,
    caller: &Caller,
) -> StatusResult<Response<Incoming>> {
    upstream.send(parts, crate::body::request_body(http_body_util::Full::new(bytes)), caller).await
}
