//! What an extension server says about itself: its resources and its OpenAPI documents, fetched now and then and kept.
//!
//! Follows: `k8s.io/kube-aggregator/pkg/apiserver/handler_discovery.go`, `pkg/controllers/{openapi,openapiv3}`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::{Map, Value, json};

use super::remote::{Remote, Spec};
use crate::authn::{SYSTEM_MASTERS, UserInfo};

const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);
const OPENAPI_TIMEOUT: Duration = Duration::from_secs(60);
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// What is known of an extension server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Documents {
    /// The resources in the form of aggregated discovery; `None` while they are not known.
    pub resources: Option<Value>,
    discovery_etag: String,
    /// OpenAPI v3 documents: path below `/openapi/v3/` to the URL under which the extension server has it.
    pub v3: BTreeMap<String, String>,
    /// The part of the v2 document that is about this group and version.
    pub v2: Arc<Fragment>,
    v2_etag: String,
}

/// Paths of an OpenAPI v2 document with the definitions that they need.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fragment {
    pub paths: Map,
    pub definitions: Map,
}

/// Asks for the resources; an error means that nothing is known any more.
pub(crate) async fn discover(remote: &Remote, known: &Documents) -> Result<Documents, String> {
    let spec = &remote.spec;
    let user = UserInfo::new("system:kube-aggregator", [SYSTEM_MASTERS]);
    let text = |error: super::remote::CallError| error.to_string();
    let etag = known.resources.as_ref().map_or("", |_| known.discovery_etag.as_str());
    let answer = remote.fetch("/apis", AGGREGATED, etag, &user, DISCOVERY_TIMEOUT).await;
    let (code, headers, bytes) = answer.map_err(text)?;
    let header =
        |name: http::HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    match code {
        304 => return Ok(known.clone()),
        503 => return Err("the service answered with 503".to_owned()),
        200 if header(http::header::CONTENT_TYPE).contains("as=APIGroupDiscoveryList") => {
            let list = Value::from_slice(&bytes).map_err(|error| error.to_string())?;
            let found = aggregated_resources(&list, spec);
            return Ok(Documents {
                // A group that is not listed has no resources.
                resources: Some(found.unwrap_or_else(|| json!([]))),
                discovery_etag: header(http::header::ETAG),
                ..known.clone()
            });
        }
        _ => {}
    }
    let answer = remote.fetch(&spec.path(), "application/json", "", &user, DISCOVERY_TIMEOUT).await;
    let (code, _, bytes) = answer.map_err(text)?;
    if code != 200 {
        return Err(format!("{} was answered with {code}", spec.path()));
    }
    let list = Value::from_slice(&bytes).map_err(|error| error.to_string())?;
    let resources = Some(classic_resources(&list)?);
    Ok(Documents { resources, discovery_etag: String::new(), ..known.clone() })
}

/// The resources of a group and version in an `APIGroupDiscoveryList`.
fn aggregated_resources(list: &Value, spec: &Spec) -> Option<Value> {
    let group = list.array_at(&["items"]).iter().find(|g| g.str_at(&["metadata", "name"]) == spec.group)?;
    let version = group.array_at(&["versions"]).iter().find(|v| v.str_at(&["version"]) == spec.version)?;
    let mut resources = version.array_at(&["resources"]).to_vec();
    for resource in &mut resources {
        with_kind(resource);
        if let Some(list) = resource.get_mut("subresources").and_then(Value::as_array_mut) {
            list.iter_mut().for_each(with_kind);
        }
    }
    Some(Value::Array(resources))
}

/// Some clients do not expect that a kind is missing.
fn with_kind(resource: &mut Value) {
    if resource["responseKind"].is_null() {
        resource["responseKind"] = json!({"group": "", "version": "", "kind": ""});
    }
}

/// An `APIResourceList` in the form of aggregated discovery. Source: `endpoints.ConvertGroupVersionIntoToDiscovery`.
fn classic_resources(list: &Value) -> Result<Value, String> {
    let scope = |resource: &Value| if resource["namespaced"] == true { "Namespaced" } else { "Cluster" };
    let kind = |resource: &Value| {
        json!({
            "group": resource.str_at(&["group"]), "version": resource.str_at(&["version"]),
            "kind": resource.str_at(&["kind"]),
        })
    };
    let list = list.array_at(&["resources"]);
    let mut out: Vec<Value> = Vec::new();
    for resource in list.iter().filter(|r| !r.str_at(&["name"]).contains('/')) {
        let mut shown = json!({
            "resource": resource.str_at(&["name"]), "scope": scope(resource), "responseKind": kind(resource),
            "singularResource": resource.str_at(&["singularName"]), "verbs": resource["verbs"].clone(),
        });
        for key in ["shortNames", "categories"] {
            if !resource.array_at(&[key]).is_empty() {
                shown[key] = resource[key].clone();
            }
        }
        out.push(shown);
    }
    for resource in list {
        let Some((parent, name)) = resource.str_at(&["name"]).split_once('/') else { continue };
        let at = out.iter().position(|shown| shown["resource"] == parent).unwrap_or_else(|| {
            let none = json!({"group": "", "version": "", "kind": ""});
            out.push(json!({
                "resource": parent, "scope": scope(resource), "responseKind": none, "singularResource": "", "verbs": [],
            }));
            out.len() - 1
        });
        if out[at]["scope"] != scope(resource) {
            return Err(format!("the scopes of {parent} and its subresource {name} differ"));
        }
        let shown = json!({"subresource": name, "verbs": resource["verbs"].clone(), "responseKind": kind(resource)});
        let parent = out[at].make_object();
        if let Some(list) = parent.get_or_insert_with("subresources", || json!([])).as_array_mut() {
            list.push(shown);
        }
    }
    Ok(Value::Array(out))
}

/// Asks for the OpenAPI documents; what cannot be had stays as it was.
pub(crate) async fn describe(remote: &Remote, known: &Documents) -> Documents {
    let mut out = known.clone();
    let user = UserInfo::new("system:aggregator", Vec::<String>::new());
    match remote.fetch("/openapi/v3", "application/json", "", &user, OPENAPI_TIMEOUT).await {
        Ok((200, _, bytes)) => match Value::from_slice(&bytes) {
            Ok(index) => out.v3 = v3_paths(&index, &remote.spec),
            Err(error) => tracing::debug!(%error, name = remote.spec.name, "the index of OpenAPI v3 cannot be read"),
        },
        // A server that does not have it.
        Ok((404, ..)) => out.v3.clear(),
        Ok((code, ..)) => tracing::debug!(code, name = remote.spec.name, "no index of OpenAPI v3"),
        Err(error) => tracing::debug!(%error, name = remote.spec.name, "no index of OpenAPI v3"),
    }
    match remote.fetch("/openapi/v2", "application/json", &known.v2_etag, &user, OPENAPI_TIMEOUT).await {
        Ok((200, headers, bytes)) => match Value::from_slice(&bytes) {
            Ok(document) => {
                let etag = headers.get(http::header::ETAG).and_then(|v| v.to_str().ok()).unwrap_or_default();
                out.v2 = Arc::new(fragment(&document, &remote.spec));
                etag.clone_into(&mut out.v2_etag);
            }
            Err(error) => tracing::debug!(%error, name = remote.spec.name, "the OpenAPI v2 document cannot be read"),
        },
        Ok((304, ..)) => {}
        Ok((404, ..)) => {
            out.v2 = Arc::default();
            out.v2_etag.clear();
        }
        Ok((code, ..)) => tracing::debug!(code, name = remote.spec.name, "no OpenAPI v2 document"),
        Err(error) => tracing::debug!(%error, name = remote.spec.name, "no OpenAPI v2 document"),
    }
    out
}

/// The documents of a group in the index of its server; the rest is about the server itself.
fn v3_paths(index: &Value, spec: &Spec) -> BTreeMap<String, String> {
    let group = format!("apis/{}", spec.group);
    let version = format!("{group}/{}", spec.version);
    let paths = index.at(&["paths"]).and_then(Value::as_object);
    let own = paths.into_iter().flat_map(Map::iter).filter(|(path, _)| **path == group || **path == version);
    own.map(|(path, entry)| (path.to_string(), entry.str_at(&["serverRelativeURL"]).to_owned())).collect()
}

/// What a v2 document says about a group and version.
fn fragment(document: &Value, spec: &Spec) -> Fragment {
    let prefix = format!("{}/", spec.path());
    let mut out = Fragment::default();
    let paths = document.at(&["paths"]).and_then(Value::as_object);
    for (path, item) in paths.into_iter().flat_map(Map::iter).filter(|(path, _)| path.starts_with(&prefix)) {
        out.paths.insert(path.clone(), item.clone());
    }
    let mut wanted: Vec<String> = Vec::new();
    out.paths.values().for_each(|item| references(item, &mut wanted));
    while let Some(name) = wanted.pop() {
        if out.definitions.contains_key(&name) {
            continue;
        }
        if let Some(definition) = document.at(&["definitions", &name]) {
            references(definition, &mut wanted);
            out.definitions.insert(name, definition.clone());
        }
    }
    out
}

const DEFINITION: &str = "#/definitions/";

fn references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, member) in map.iter() {
                match member.as_str().and_then(|text| text.strip_prefix(DEFINITION)) {
                    Some(name) if *key == "$ref" => out.push(name.to_owned()),
                    _ => references(member, out),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|member| references(member, out)),
        _ => {}
    }
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, member) in map.iter_mut() {
                let new = member.as_str().and_then(|text| text.strip_prefix(DEFINITION));
                match new.filter(|_| *key == "$ref").and_then(|name| names.get(name)) {
                    Some(new) => *member = format!("{DEFINITION}{new}").into(),
                    None => rename(member, names),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|member| rename(member, names)),
        _ => {}
    }
}

/// Adds a fragment to a v2 document. Paths that are there stay; a definition that differs from one of the same name gets
/// another name.
pub(crate) fn merge_v2(document: &mut Value, fragment: &Fragment) {
    let same = |a: &Value, b: &Value| {
        let without = |value: &Value| {
            let mut value = value.clone();
            value.make_object().remove("x-kubernetes-group-version-kind");
            value
        };
        without(a) == without(b)
    };
    let root = document.make_object();
    let definitions = root.object_mut("definitions");
    let mut names = BTreeMap::new();
    for (name, definition) in fragment.definitions.iter() {
        let numbered = (2..).map(|number| format!("{name}_v{number}"));
        let free = std::iter::once(name.to_string())
            .chain(numbered)
            .find(|name| definitions.get(name).is_none_or(|known| same(known, definition)));
        if let Some(free) = free.filter(|free| *free != **name) {
            names.insert(name.to_string(), free);
        }
    }
    for (name, definition) in fragment.definitions.iter() {
        let name = names.get(name.as_str()).map_or(name.as_str(), String::as_str);
        if !definitions.contains_key(name) {
            let mut definition = definition.clone();
            rename(&mut definition, &names);
            definitions.insert(name, definition);
        }
    }
    let paths = root.object_mut("paths");
    for (path, item) in fragment.paths.iter() {
        if !paths.contains_key(path) {
            let mut item = item.clone();
            rename(&mut item, &names);
            paths.insert(path.clone(), item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregator::resolver::ServicePort;

    fn spec() -> Spec {
        Spec {
            name: "v1.x.example".into(),
            group: "x.example".into(),
            version: "v1".into(),
            service: ServicePort { namespace: "a".into(), name: "s".into(), port: 443 },
            ca_bundle: String::new(),
            insecure: true,
            group_priority: 100,
            version_priority: 10,
        }
    }

    #[test]
    fn classic_discovery_becomes_aggregated() {
        let list = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"],
                "shortNames": ["fl"]},
            {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["update"]},
            {"name": "ghosts/scale", "singularName": "", "namespaced": false, "kind": "Scale", "group": "autoscaling",
                "version": "v1", "verbs": ["get"]},
        ]});
        let none = json!({"group": "", "version": "", "kind": ""});
        let flunder = json!({"group": "", "version": "", "kind": "Flunder"});
        let scale = json!({"group": "autoscaling", "version": "v1", "kind": "Scale"});
        assert_eq!(
            classic_resources(&list).unwrap(),
            json!([
                {"resource": "flunders", "scope": "Namespaced", "responseKind": flunder.clone(),
                    "singularResource": "flunder", "verbs": ["get"], "shortNames": ["fl"],
                    "subresources": [{"subresource": "status", "verbs": ["update"], "responseKind": flunder}]},
                {"resource": "ghosts", "scope": "Cluster", "responseKind": none, "singularResource": "", "verbs": [],
                    "subresources": [{"subresource": "scale", "verbs": ["get"], "responseKind": scale}]},
            ])
        );
        let mixed = json!({"resources": [
            {"name": "a", "namespaced": true, "kind": "A"}, {"name": "a/b", "namespaced": false, "kind": "A"},
        ]});
        assert!(classic_resources(&mixed).is_err());
    }

    #[test]
    fn aggregated_discovery_gives_the_version_asked_for() {
        let list = json!({"items": [{"metadata": {"name": "x.example"}, "versions": [
            {"version": "v2", "resources": []},
            {"version": "v1", "resources": [{"resource": "flunders", "subresources": [{"subresource": "status"}]}]},
        ]}]});
        let none = json!({"group": "", "version": "", "kind": ""});
        let want = json!([{
            "resource": "flunders", "responseKind": none.clone(),
            "subresources": [{"subresource": "status", "responseKind": none}],
        }]);
        assert_eq!(aggregated_resources(&list, &spec()), Some(want));
        assert_eq!(aggregated_resources(&json!({"items": []}), &spec()), None);
    }

    #[test]
    fn a_fragment_of_openapi_brings_its_definitions_under_free_names() {
        let own = json!({
            "paths": {
                "/apis/x.example/v1/flunders": {"get": {"schema": {"$ref": "#/definitions/Flunder"}}},
                "/apis/x.example/v2/flunders": {"get": {"schema": {"$ref": "#/definitions/Other"}}},
            },
            "definitions": {
                "Flunder": {"properties": {"m": {"$ref": "#/definitions/Meta"}, "t": {"$ref": "#/definitions/Time"}}},
                "Meta": {"description": "theirs"}, "Time": {"type": "string", "x-kubernetes-group-version-kind": []},
                "Other": {},
            },
        });
        let fragment = fragment(&own, &spec());
        assert_eq!(fragment.paths.len(), 1);
        let mut document = json!({
            "paths": {"/version": {}},
            "definitions": {"Meta": {"description": "ours"}, "Time": {"type": "string"}},
        });
        merge_v2(&mut document, &fragment);
        assert_eq!(
            document,
            json!({
                "paths": {
                    "/version": {},
                    "/apis/x.example/v1/flunders": {"get": {"schema": {"$ref": "#/definitions/Flunder"}}},
                },
                "definitions": {
                    "Flunder": {"properties": {
                        "m": {"$ref": "#/definitions/Meta_v2"}, "t": {"$ref": "#/definitions/Time"},
                    }},
                    "Meta": {"description": "ours"}, "Meta_v2": {"description": "theirs"}, "Time": {"type": "string"},
                },
            })
        );
    }

    #[test]
    fn only_documents_of_the_group_are_taken_from_an_index() {
        let url = |path: &str| json!({"serverRelativeURL": (format!("/openapi/v3/{path}?hash=1"))});
        let mut index = json!({"paths": {}});
        for path in ["version", "apis", "apis/x.example", "apis/x.example/v1", "apis/x.example/v2"] {
            index["paths"][path] = url(path);
        }
        let found = v3_paths(&index, &spec());
        assert_eq!(found.keys().collect::<Vec<_>>(), ["apis/x.example", "apis/x.example/v1"]);
        assert_eq!(found["apis/x.example/v1"], "/openapi/v3/apis/x.example/v1?hash=1");
    }
}
