//! OpenAPI documents, made on demand from the schema table and the resource table.
//!
//! v3: one document per group and version. v2: one document for everything, also as protobuf. The documents are large
//! and asked for rarely: nothing is kept here, callers cache the encoded bytes. Custom resources bring their own
//! schemas; [`paths::resource_paths`] makes their paths and the API server merges both in.
//!
//! Follows: `kube-openapi/pkg/{builder,builder3}`, `apiserver/pkg/endpoints/installer.go` (operation names, parameters).

mod docs;
pub mod paths;
mod schemas;
mod v2_protobuf;

use std::collections::BTreeSet;

use crate::json::{Map, Value};
use crate::resources::{self, Resource};
use crate::schema;

pub use docs::Docs;
pub use paths::{ServedResource, ServedSubresource};
pub use v2_protobuf::v2_to_protobuf;

/// Which OpenAPI a fragment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// The reference to a named schema.
    pub fn reference(self, model: &str) -> String {
        match self {
            Dialect::V2 => format!("#/definitions/{model}"),
            Dialect::V3 => format!("#/components/schemas/{model}"),
        }
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The paths of the v3 documents of the built-in groups and versions, as `/openapi/v3` lists them (`api/v1`,
/// `apis/apps/v1`).
pub fn v3_index() -> Vec<String> {
    let mut index = Vec::new();
    for group in resources::GROUPS {
        for version in group.versions {
            index.push(v3_path(group.name, version.version));
        }
    }
    index
}

/// `api/v1` or `apis/<group>/<version>`.
pub fn v3_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The v3 document of a built-in group and version.
pub fn v3(group: &str, version: &str) -> Option<Value> {
    let docs = Docs::load();
    let mut builder = Builder::new(Dialect::V3, &docs);
    let mut any = false;
    for resource in resources::in_group_version(group, version) {
        any = true;
        builder.resource(resource);
    }
    if !any {
        return None;
    }
    builder.group_version(group, version);
    let (paths, schemas) = builder.finish();
    let mut components = Map::new();
    components.insert("schemas", Value::Object(schemas));
    components.insert("securitySchemes", security_schemes());
    Some(v3_document(paths, components))
}

/// A v3 document around paths and components.
pub fn v3_document(paths: Map, components: Map) -> Value {
    crate::json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": schema::KUBERNETES_VERSION}})
        .with("paths", Value::Object(paths))
        .with("components", Value::Object(components))
}

/// The v2 document of all built-in groups.
pub fn v2() -> Value {
    let docs = Docs::load();
    let mut builder = Builder::new(Dialect::V2, &docs);
    for resource in resources::RESOURCES {
        builder.resource(resource);
    }
    for group in resources::GROUPS {
        for version in group.versions {
            builder.group_version(group.name, version.version);
        }
    }
    let (paths, definitions) = builder.finish();
    crate::json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": schema::KUBERNETES_VERSION},
        "security": [{"BearerToken": []}],
    })
    .with("securityDefinitions", security_schemes())
    .with("paths", Value::Object(paths))
    .with("definitions", Value::Object(definitions))
}

/// The built-in schemas that custom resources refer to (`ObjectMeta`, `Status`, `DeleteOptions`, ...), by name.
pub fn meta_schemas(dialect: Dialect) -> Map {
    let docs = Docs::load();
    let mut builder = Builder::new(dialect, &docs);
    for name in ["ObjectMeta", "ListMeta", "Status", "DeleteOptions", "Patch", "WatchEvent"] {
        builder.refer(&format!("{META}.{name}"));
    }
    builder.finish().1
}

fn security_schemes() -> Value {
    crate::json!({"BearerToken": {
        "type": "apiKey", "in": "header", "name": "authorization", "description": "Bearer Token authentication"
    }})
}

impl Value {
    fn with(mut self, key: &str, value: Value) -> Value {
        self.make_object().insert(key, value);
        self
    }
}

struct Builder<'d> {
    dialect: Dialect,
    docs: &'d Docs,
    paths: Map,
    wanted: BTreeSet<String>,
}

impl<'d> Builder<'d> {
    fn new(dialect: Dialect, docs: &'d Docs) -> Self {
        Builder { dialect, docs, paths: Map::new(), wanted: BTreeSet::new() }
    }

    fn refer(&mut self, model: &str) {
        self.wanted.insert(model.to_owned());
    }

    fn resource(&mut self, resource: &'static Resource) {
        let served = ServedResource::builtin(resource);
        for (path, item) in paths::resource_paths(&served, self.dialect, self.docs) {
            self.paths.insert(path, item);
        }
        for model in served.models() {
            self.refer(&model);
        }
        for (verb, names) in [
            ("delete", ["Status", "DeleteOptions"]),
            ("patch", ["Patch", "Patch"]),
            ("watch", ["WatchEvent", "WatchEvent"]),
        ] {
            if resource.has_verb(verb) {
                names.iter().for_each(|name| self.refer(&format!("{META}.{name}")));
            }
        }
    }

    fn group_version(&mut self, group: &str, version: &str) {
        self.refer(&format!("{META}.APIResourceList"));
        let (path, item) = paths::discovery_path(group, version, self.dialect);
        self.paths.insert(path, item);
    }

    /// The paths, and the schemas of everything referred to.
    fn finish(self) -> (Map, Map) {
        let mut schemas = Map::new();
        let mut todo: Vec<String> = self.wanted.into_iter().collect();
        while let Some(model) = todo.pop() {
            if schemas.contains_key(&model) {
                continue;
            }
            if let Some(definition) = schemas::definition(&model, self.dialect, self.docs, &mut todo) {
                schemas.insert(model, definition);
            }
        }
        (self.paths, schemas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(m) => m.iter().for_each(|(k, v)| match v.as_str() {
                Some(s) if k == "$ref" => {
                    found.insert(s.to_owned());
                }
                _ => references(v, found),
            }),
            Value::Array(a) => a.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_of_every_document_resolves() {
        for group in resources::GROUPS {
            for version in group.versions {
                let doc = v3(group.name, version.version).unwrap();
                let mut found = BTreeSet::new();
                references(&doc, &mut found);
                for r in found {
                    let model = r.strip_prefix("#/components/schemas/").unwrap();
                    assert!(doc.at(&["components", "schemas", model]).is_some(), "{}/{r}", group.name);
                }
            }
        }
        let doc = v2();
        let mut found = BTreeSet::new();
        references(&doc, &mut found);
        for r in found {
            assert!(doc.at(&["definitions", r.strip_prefix("#/definitions/").unwrap()]).is_some(), "{r}");
        }
    }

    #[test]
    fn patches_say_that_fields_are_validated() {
        let doc = v3("apps", "v1").unwrap();
        let patch = doc.at(&["paths", "/apis/apps/v1/namespaces/{namespace}/deployments/{name}", "patch"]).unwrap();
        assert_eq!(patch.at(&["x-kubernetes-group-version-kind", "kind"]), Some(&"Deployment".into()));
        assert!(patch.array_at(&["parameters"]).iter().any(|p| p["name"] == "fieldValidation"));
    }

    #[test]
    fn schemas_carry_what_clients_merge_by() {
        let doc = v3("", "v1").unwrap();
        let spec = doc.at(&["components", "schemas", "io.k8s.api.core.v1.PodSpec"]).unwrap();
        let containers = spec.at(&["properties", "containers"]).unwrap();
        assert_eq!(containers["x-kubernetes-list-map-keys"], crate::json!(["name"]));
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        let policy = spec.at(&["properties", "restartPolicy"]).unwrap();
        assert_eq!(policy["enum"], crate::json!(["Always", "Never", "OnFailure"]));
        assert!(
            policy
                .str_at(&["description"])
                .ends_with("Possible enum values:\n - `\"Always\"`\n - `\"Never\"`\n - `\"OnFailure\"`")
        );
    }
}
