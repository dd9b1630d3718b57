//! OpenAPI documents, made on demand from the schema table and the resource table.
//!
//! v3: one document per group and version. v2: one document for everything, also as protobuf. The documents are large
//! and asked for rarely: nothing is kept here, callers cache the encoded bytes. Custom resources bring their own
//! schemas: [`custom_v3`] and [`custom_fragment`] turn them into documents and parts of them.
//!
//! Follows: `kube-openapi/pkg/{builder,builder3}`, `apiserver/pkg/endpoints/installer.go` (operation names, parameters).

mod custom;
mod docs;
pub mod paths;
mod schemas;
mod v2_protobuf;

use std::collections::BTreeSet;

use crate::json::{Map, Value};
use crate::resources::{self, Resource};
use crate::schema;

pub use custom::{CustomResource, custom_fragment, custom_v3};
pub use docs::Docs;
use paths::Fixed;
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

/// The paths of the v3 documents, as `/openapi/v3` lists them (`api/v1`, `apis/apps/v1`, also `apis/apps`, `version`).
pub fn v3_index() -> Vec<String> {
    let mut index: Vec<String> = Fixed::others().iter().map(document_of).collect();
    for group in resources::GROUPS {
        index.push(document_of(&Fixed::group(group.name)));
        index.extend(group.versions.iter().map(|v| v3_path(group.name, v.version)));
    }
    index.sort();
    index
}

/// The v3 document at a path of [`v3_index`].
pub fn v3_at(path: &str) -> Option<Value> {
    for group in resources::GROUPS {
        if let Some(v) = group.versions.iter().find(|v| v3_path(group.name, v.version) == path) {
            return v3(group.name, v.version);
        }
    }
    let groups = resources::GROUPS.iter().map(|g| Fixed::group(g.name));
    let fixed = Fixed::others().into_iter().chain(groups).find(|f| document_of(f) == path)?;
    let docs = Docs::load();
    let mut builder = Builder::new(Dialect::V3, &docs);
    builder.fixed(&fixed);
    Some(builder.v3())
}

fn document_of(fixed: &Fixed) -> String {
    fixed.path.trim_matches('/').to_owned()
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
    builder.fixed(&Fixed::group_version(group, version));
    Some(builder.v3())
}

/// A v3 document around paths and components.
pub fn v3_document(paths: Map, components: Map) -> Value {
    crate::json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": schema::KUBERNETES_VERSION}})
        .with("paths", Value::Object(paths))
        .with("components", Value::Object(components))
}

/// What the built-in documents are made from: equal bytes give equal documents.
pub fn sources() -> [&'static [u8]; 2] {
    [schema::builtin::source(), docs::source()]
}

/// The v2 document of all built-in groups.
pub fn v2() -> Value {
    let docs = Docs::load();
    let mut builder = Builder::new(Dialect::V2, &docs);
    for resource in resources::RESOURCES {
        builder.resource(resource);
    }
    for group in resources::GROUPS {
        builder.fixed(&Fixed::group(group.name));
        for version in group.versions {
            builder.fixed(&Fixed::group_version(group.name, version.version));
        }
    }
    Fixed::others().iter().for_each(|f| builder.fixed(f));
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

    fn fixed(&mut self, fixed: &Fixed) {
        if let Some(model) = &fixed.model {
            self.refer(model);
        }
        self.paths.insert(fixed.path.as_str(), fixed.item(self.dialect));
    }

    fn v3(self) -> Value {
        let (paths, schemas) = self.finish();
        let mut components = Map::new();
        components.insert("schemas", Value::Object(schemas));
        components.insert("securitySchemes", security_schemes());
        v3_document(paths, components)
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
    use crate::protobuf::wire::{Raw, Reader};

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
        let index = v3_index();
        assert!(
            ["version", "api", "api/v1", "apis", "apis/apps", "apis/apps/v1"]
                .iter()
                .all(|p| index.iter().any(|i| i == p))
        );
        for path in index {
            let doc = v3_at(&path).unwrap();
            let mut found = BTreeSet::new();
            references(&doc, &mut found);
            for r in found {
                let model = r.strip_prefix("#/components/schemas/").unwrap();
                assert!(doc.at(&["components", "schemas", model]).is_some(), "{path}: {r}");
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
    fn the_protobuf_form_holds_every_definition_and_path() {
        let doc = v2();
        let bytes = v2_to_protobuf(&doc);
        let mut reader = Reader::new(&bytes);
        let mut names = BTreeSet::new();
        let mut paths = 0;
        while let Some((number, raw)) = reader.field().unwrap() {
            let (9 | 8, Raw::Bytes(list)) = (number, raw) else { continue };
            let mut entries = Reader::new(list);
            while let Some((_, Raw::Bytes(entry))) = entries.field().unwrap() {
                let mut parts = Reader::new(entry);
                let Some((1, Raw::Bytes(name))) = parts.field().unwrap() else {
                    panic!("an entry begins with its name")
                };
                let Some((2, Raw::Bytes(_))) = parts.field().unwrap() else { panic!("the value follows") };
                if number == 8 {
                    paths += 1;
                } else {
                    names.insert(String::from_utf8(name.to_vec()).unwrap());
                }
            }
        }
        assert_eq!(paths, doc["paths"].as_object().unwrap().len());
        assert!(names.iter().eq(doc["definitions"].as_object().unwrap().keys().map(|k| k.as_str())));
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
