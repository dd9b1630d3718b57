//! Discovery: which groups, versions and resources there are, in the classic and the aggregated form; /version; /.
//!
//! Follows: `k8s.io/apiserver/pkg/endpoints/discovery`, `k8s.io/kube-aggregator/pkg/apiserver/handler_discovery.go`.

use std::sync::Arc;

use apimachinery::schema;
use apimachinery::status::Status;
use apimachinery::{Map, Value, json, resources as builtin};
use http::{HeaderMap, HeaderValue, Response, header};
use sha2::{Digest, Sha256};

use crate::aggregator::Remote;
use crate::aggregator::order::{Entry, Group, Ties, ordered};
use crate::aggregator::registration::{GROUP_PRIORITY, VERSION_PRIORITY};
use crate::body::Body;
use crate::groups::{self, ApiGroup};
use crate::negotiate::{self, Encoding};
use crate::output::{accept_header, json_response, raw_response, status_response};
use crate::registry::{Resource, Resources, Subresource};
use crate::request_info::RequestInfo;
use crate::server::Inner;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The version of Kubernetes that is served, as `/version` says it.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": "v1.36.2", "gitCommit": env!("CARGO_PKG_VERSION"), "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

fn version_info() -> Response<Body> {
    let info = schema::lookup_name("io.k8s.apimachinery.pkg.version.Info");
    raw_response(200, "application/json", schema::ordered::to_vec(&version(), info))
}

/// Who answers for a version of a group.
#[derive(Clone)]
enum Source {
    Own,
    Embedded(Arc<dyn ApiGroup>),
    Remote(Arc<Remote>),
}

/// All groups but the core one, in the order of discovery.
fn groups_in_order(server: &Inner, resources: &Resources, ties: Ties) -> Vec<Group<Source>> {
    let table = server.aggregator.table();
    let embedded = |group: &str, version: &str| {
        server.config.groups.iter().find(|g| g.name() == group && g.version() == version).cloned()
    };
    let mut entries = Vec::new();
    let mut add = |group: &str, version: &str, own: (i64, i64), source: Source| {
        let key = (group.to_owned(), version.to_owned());
        let (group_priority, version_priority) = table.priorities.get(&key).copied().unwrap_or(own);
        entries.push(Entry { group: key.0, version: key.1, group_priority, version_priority, source });
    };
    for group in resources.groups().iter().filter(|group| !group.name.is_empty()) {
        let known = builtin::group(&group.name);
        for version in &group.versions {
            if server.aggregator.remote(&group.name, version).is_some() || embedded(&group.name, version).is_some() {
                continue;
            }
            let priority = known.and_then(|known| known.versions.iter().find(|v| v.version == version));
            let own = match (known, priority) {
                (Some(group), Some(version)) => (i64::from(group.priority), i64::from(version.priority)),
                _ => (GROUP_PRIORITY, VERSION_PRIORITY),
            };
            add(&group.name, version, own, Source::Own);
        }
    }
    for group in &server.config.groups {
        add(group.name(), group.version(), (GROUP_PRIORITY, VERSION_PRIORITY), Source::Embedded(group.clone()));
    }
    for remote in table.remotes() {
        let spec = &remote.spec;
        let own = (spec.group_priority, spec.version_priority);
        add(&spec.group, &spec.version, own, Source::Remote(remote.clone()));
    }
    ordered(entries, ties)
}

/// Answers a path that names no resource; `None` when it is not a discovery path.
pub fn answer(server: &Inner, info: &RequestInfo, headers: &HeaderMap) -> Option<Response<Body>> {
    let parts: Vec<&str> = info.path.trim_matches('/').split('/').collect();
    let resources = server.storage.registry.current();
    if matches!(info.verb.as_str(), "get" | "head")
        && let Some(answer) = groups::discover(server, &parts, headers)
    {
        return Some(answer);
    }
    let answer = match parts.as_slice() {
        [""] => root(server, &resources),
        ["version"] => return readonly(info).or_else(|| Some(version_info())),
        ["api"] => {
            if let Some(refused) = readonly(info) {
                return Some(refused);
            }
            if wants_aggregated(headers) {
                return Some(aggregated(server, &resources, true, headers));
            }
            json!({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{
                    "clientCIDR": "0.0.0.0/0",
                    "serverAddress": format!("{}:{}", server.config.advertise_address, server.config.secure_port),
                }],
            })
        }
        ["apis"] => {
            if let Some(refused) = readonly(info) {
                return Some(refused);
            }
            if wants_aggregated(headers) {
                return Some(aggregated(server, &resources, false, headers));
            }
            let groups = groups_in_order(server, &resources, Ties::ServiceName).iter().map(group_value).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": Value::Array(groups)})
        }
        ["apis", group] => {
            match groups_in_order(server, &resources, Ties::ServiceName).iter().find(|g| g.name == *group) {
                Some(group) => {
                    let mut value = group_value(group);
                    value["kind"] = "APIGroup".into();
                    value["apiVersion"] = "v1".into();
                    value
                }
                None => return Some(not_found_text()),
            }
        }
        ["api", version] => return Some(version_answer(&resources, "", version, info, headers)),
        ["apis", group, version] => return Some(version_answer(&resources, group, version, info, headers)),
        _ => return None,
    };
    readonly(info).or_else(|| Some(answer_negotiated(&answer, headers)))
}

fn readonly(info: &RequestInfo) -> Option<Response<Body>> {
    if matches!(info.verb.as_str(), "get" | "head") {
        return None;
    }
    Some(json_response(405, &Status::method_not_allowed().to_value()))
}

pub(crate) fn answer_negotiated(value: &Value, headers: &HeaderMap) -> Response<Body> {
    match negotiate::negotiate_output(accept_header(headers), negotiate::Restrictions::PLAIN) {
        Some(a) if a.encoding == Encoding::Yaml => {
            raw_response(200, Encoding::Yaml.media_type(), negotiate::to_yaml(&value.to_vec()))
        }
        Some(_) => raw_response(200, "application/json", schema::ordered::meta_v1_to_vec(value)),
        None => status_response(&Status::not_acceptable(&[negotiate::supported(false)]), headers),
    }
}

/// Where no handler of upstream's is, its router answers.
pub(crate) fn not_found_text() -> Response<Body> {
    raw_response(404, "text/plain; charset=utf-8", "404 page not found\n")
}

fn version_answer(
    resources: &Resources,
    group: &str,
    version: &str,
    info: &RequestInfo,
    headers: &HeaderMap,
) -> Response<Body> {
    let Some(list) = resources.in_version(group, version) else {
        if !group.is_empty() && !resources.is_builtin_group(group) {
            return not_found_text();
        }
        return status_response(&Status::path_not_found(), headers);
    };
    if let Some(refused) = readonly(info) {
        return refused;
    }
    let mut out = Vec::new();
    for resource in list {
        out.push(resource_value(resource));
        out.extend(resource.subresources.iter().map(|s| subresource_value(resource, s)));
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let answer = json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": Value::Array(out),
    });
    answer_negotiated(&answer, headers)
}

fn root(server: &Inner, resources: &Resources) -> Value {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/apis/",
        "/healthz",
        "/healthz/etcd",
        "/healthz/log",
        "/healthz/ping",
        "/livez",
        "/livez/etcd",
        "/livez/log",
        "/livez/ping",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/openid/v1/jwks",
        "/readyz",
        "/readyz/etcd",
        "/readyz/log",
        "/readyz/ping",
        "/readyz/shutdown",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
    for group in groups_in_order(server, resources, Ties::GroupName) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|(version, _)| format!("/apis/{}/{version}", group.name)));
    }
    paths.sort();
    json!({"paths": paths})
}

fn group_value(group: &Group<Source>) -> Value {
    let version = |(version, _): &(String, Source)| json!({"groupVersion": format!("{}/{version}", group.name), "version": version.as_str()});
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": group.name.as_str(), "versions": Value::Array(versions), "preferredVersion": preferred})
}

fn strings(list: &[String]) -> Value {
    Value::Array(list.iter().map(|s| Value::from(s.as_str())).collect())
}

fn resource_value(resource: &Resource) -> Value {
    let mut out = Map::new();
    out.insert("name", resource.gvr.resource.clone().into());
    out.insert("singularName", resource.singular.as_str().into());
    out.insert("namespaced", resource.namespaced.into());
    out.insert("kind", resource.gvk.kind.clone().into());
    out.insert("verbs", strings(&resource.verbs));
    if !resource.short_names.is_empty() {
        out.insert("shortNames", strings(&resource.short_names));
    }
    if !resource.categories.is_empty() {
        out.insert("categories", strings(&resource.categories));
    }
    if let Some(hash) = resource.storage.as_ref().map(|s| s.version_hash.as_str()).filter(|h| !h.is_empty()) {
        out.insert("storageVersionHash", hash.into());
    }
    out.into()
}

fn subresource_value(resource: &Resource, subresource: &Subresource) -> Value {
    let mut out = Map::new();
    out.insert("name", format!("{}/{}", resource.gvr.resource, subresource.name).into());
    out.insert("singularName", "".into());
    out.insert("namespaced", resource.namespaced.into());
    let kind = &subresource.kind;
    if kind.group != resource.gvk.group || kind.version != resource.gvk.version {
        out.insert("group", kind.group.clone().into());
        out.insert("version", kind.version.clone().into());
    }
    out.insert("kind", kind.kind.clone().into());
    out.insert("verbs", strings(&subresource.verbs));
    out.into()
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    accept_header(headers).split(',').any(|clause| {
        let mut fields = clause.split(';').map(str::trim);
        let media_type = fields.next();
        let fields: Vec<&str> = fields.collect();
        matches!(media_type, Some("application/json"))
            && ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"].iter().all(|f| fields.contains(f))
    })
}

fn aggregated(server: &Inner, resources: &Resources, core: bool, headers: &HeaderMap) -> Response<Body> {
    let items: Vec<Value> = if core {
        let core = resources.groups().iter().filter(|group| group.name.is_empty());
        let shown = core.map(|group| {
            let versions = group.versions.iter().map(|version| aggregated_version(resources, "", version)).collect();
            json!({"metadata": {}, "versions": Value::Array(versions)})
        });
        shown.collect()
    } else {
        let shown = |group: &Group<Source>| {
            let versions = group.versions.iter().map(|(version, source)| match source {
                Source::Own => aggregated_version(resources, &group.name, version),
                Source::Embedded(embedded) => groups::aggregated_version(embedded.as_ref()),
                Source::Remote(remote) => remote_version(remote),
            });
            json!({"metadata": {"name": group.name.as_str()}, "versions": Value::Array(versions.collect())})
        };
        groups_in_order(server, resources, Ties::GroupName).iter().map(shown).collect()
    };
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": Value::Array(items),
    });
    let bytes = list.to_vec();
    let mut etag = String::from("\"");
    for byte in Sha256::digest(&bytes) {
        etag.push_str(&format!("{byte:02X}"));
    }
    etag.push('"');
    let unchanged = headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
    let mut response = if unchanged {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        response
    } else {
        raw_response(200, AGGREGATED, bytes)
    };
    if let Ok(value) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// What an extension server has, as far as it is known.
fn remote_version(remote: &Remote) -> Value {
    let version = remote.spec.version.as_str();
    match &remote.documents.read().resources {
        Some(resources) => json!({"version": version, "resources": resources.clone(), "freshness": "Current"}),
        None => json!({"version": version, "freshness": "Stale"}),
    }
}

fn aggregated_version(resources: &Resources, group: &str, version: &str) -> Value {
    let list = resources.in_version(group, version).into_iter().flatten();
    let resources: Vec<Value> = list.map(|r| aggregated_resource(r)).collect();
    json!({"version": version, "resources": Value::Array(resources), "freshness": "Current"})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut out = Map::new();
    out.insert("resource", resource.gvr.resource.clone().into());
    out.insert("responseKind", json!({"group": "", "version": "", "kind": resource.gvk.kind.as_str()}));
    out.insert("scope", if resource.namespaced { "Namespaced" } else { "Cluster" }.into());
    out.insert("singularResource", resource.singular.as_str().into());
    out.insert("verbs", strings(&resource.verbs));
    if !resource.short_names.is_empty() {
        out.insert("shortNames", strings(&resource.short_names));
    }
    if !resource.categories.is_empty() {
        out.insert("categories", strings(&resource.categories));
    }
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|s| {
            let own = s.kind.group == resource.gvk.group && s.kind.version == resource.gvk.version;
            let (group, version) = if own { ("", "") } else { (s.kind.group.as_str(), s.kind.version.as_str()) };
            json!({
                "subresource": s.name, "verbs": strings(&s.verbs),
                "responseKind": {"group": group, "version": version, "kind": s.kind.kind.as_str()},
            })
        })
        .collect();
    if !subresources.is_empty() {
        out.insert("subresources", Value::Array(subresources));
    }
    out.into()
}
