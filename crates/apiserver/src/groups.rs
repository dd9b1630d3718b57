//! API groups that something else answers, in the place of an aggregated API server: the [`ApiGroup`] seam.
//!
//! Such a group is in discovery like any other; its requests are authenticated and authorized here. Nothing is kept.

use apimachinery::status::{Status, StatusResult};
use apimachinery::{Value, json};
use async_trait::async_trait;
use http::{HeaderMap, Response};

use crate::body::Body;
use crate::discovery;
use crate::output::{json_response, status_response};
use crate::request_info::RequestInfo;
use crate::server::{ApiServer, Inner};

/// One resource of a group, for discovery. All can be read only.
#[derive(Clone, Copy, Debug)]
pub struct GroupResource {
    pub name: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
}

/// A read-only group in one version.
#[async_trait]
pub trait ApiGroup: Send + Sync {
    /// Such as `metrics.k8s.io`.
    fn name(&self) -> &str;
    fn version(&self) -> &str;
    fn resources(&self) -> &[GroupResource];

    /// Answers a `get` (with a name) or a `list`. The resource is one of [`ApiGroup::resources`].
    async fn read(&self, server: &ApiServer, info: &RequestInfo) -> StatusResult<Value>;
}

/// `APIGroup` without kind and version, as it stands in lists.
pub(crate) fn group_value(group: &dyn ApiGroup) -> Value {
    let version = json!({
        "groupVersion": (format!("{}/{}", group.name(), group.version())),
        "version": (group.version()),
    });
    json!({"name": (group.name()), "versions": [(version.clone())], "preferredVersion": version})
}

/// `APIResourceList`.
pub(crate) fn resource_list(group: &dyn ApiGroup) -> Value {
    let resource = |resource: &GroupResource| {
        json!({
            "name": (resource.name),
            "singularName": "",
            "namespaced": (resource.namespaced),
            "kind": (resource.kind),
            "verbs": ["get", "list"],
        })
    };
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": (format!("{}/{}", group.name(), group.version())),
        "resources": (Value::Array(group.resources().iter().map(resource).collect())),
    })
}

/// The group in aggregated discovery.
pub(crate) fn aggregated_value(group: &dyn ApiGroup) -> Value {
    json!({"metadata": {"name": (group.name())}, "versions": [(aggregated_version(group))]})
}

/// Its version in there.
pub(crate) fn aggregated_version(group: &dyn ApiGroup) -> Value {
    let resource = |resource: &GroupResource| {
        json!({
            "resource": (resource.name),
            "responseKind": {"group": (group.name()), "version": (group.version()), "kind": (resource.kind)},
            "scope": (if resource.namespaced { "Namespaced" } else { "Cluster" }),
            "singularResource": "",
            "verbs": ["get", "list"],
        })
    };
    let resources = Value::Array(group.resources().iter().map(resource).collect());
    json!({"version": (group.version()), "resources": resources, "freshness": "Current"})
}

/// Answers a request on a resource that is not in the registry; `None` when no group knows it.
pub(crate) async fn answer(server: &ApiServer, info: &RequestInfo, headers: &HeaderMap) -> Option<Response<Body>> {
    let mut groups = server.inner().config.groups.iter();
    let group = groups.find(|group| group.name() == info.group && group.version() == info.version)?;
    let known = group.resources().iter().find(|resource| resource.name == info.resource)?;
    let readable = matches!(info.verb.as_str(), "get" | "list") && info.subresource.is_empty();
    let needs_namespace = known.namespaced && !info.name.is_empty() && info.namespace.is_empty();
    let result = if !readable {
        Err(Box::new(Status::method_not_allowed()))
    } else if needs_namespace || (!known.namespaced && !info.namespace.is_empty()) {
        Err(Box::new(Status::path_not_found()))
    } else {
        group.read(server, info).await
    };
    Some(match result {
        Ok(value) => json_response(200, &value),
        Err(status) => status_response(&status, headers),
    })
}

/// Answers a discovery path of one of the groups.
pub(crate) fn discover(server: &Inner, parts: &[&str], headers: &HeaderMap) -> Option<Response<Body>> {
    let ["apis", name, version] = parts else { return None };
    let group = server.config.groups.iter().find(|group| group.name() == *name && group.version() == *version)?;
    Some(discovery::answer_negotiated(&resource_list(group.as_ref()), headers))
}
