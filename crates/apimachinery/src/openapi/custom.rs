//! Schemas and paths of custom resources.
//!
//! v3 shows the structural schema as it is; v2 drops what it cannot say and what kubectl cannot read.
//!
//! Follows: `apiextensions-apiserver/pkg/controller/openapi/{builder,v2}`.

use crate::json;
use crate::json::{Map, Value};

use super::{Dialect, Docs, META, ServedResource, ServedSubresource, paths, v3_document};

/// One version of a custom resource.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomResource {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub kind: String,
    pub list_kind: String,
    pub namespaced: bool,
    /// The version's `openAPIV3Schema`, absent when the definition has none.
    pub schema: Option<Value>,
    /// The `status` and `scale` subresources are on.
    pub status: bool,
    pub scale: bool,
    /// JSON paths of `selectableFields`.
    pub selectable_fields: Vec<String>,
}

impl CustomResource {
    fn model(&self, kind: &str) -> String {
        let group: Vec<&str> = self.group.split('.').rev().collect();
        format!("{}.{}.{kind}", group.join("."), self.version)
    }

    fn served(&self) -> ServedResource {
        let own = |name: &str| ServedSubresource {
            name: name.into(),
            verbs: vec!["get".into(), "patch".into(), "update".into()],
            group: self.group.clone(),
            version: self.version.clone(),
            kind: self.kind.clone(),
            model: self.model(&self.kind),
            connect: false,
        };
        let mut subresources = Vec::new();
        if self.scale {
            subresources.push(ServedSubresource {
                group: "autoscaling".into(),
                version: "v1".into(),
                kind: "Scale".into(),
                model: "io.k8s.api.autoscaling.v1.Scale".into(),
                ..own("scale")
            });
        }
        if self.status {
            subresources.push(own("status"));
        }
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        ServedResource {
            group: self.group.clone(),
            version: self.version.clone(),
            plural: self.plural.clone(),
            kind: self.kind.clone(),
            namespaced: self.namespaced,
            verbs: verbs.map(String::from).to_vec(),
            model: self.model(&self.kind),
            list_model: self.model(&self.list_kind),
            builtin: false,
            deletes_object: false,
            subresources,
        }
    }

    fn gvk(&self, kind: &str) -> Value {
        json!([{"group": self.group, "version": self.version, "kind": kind}])
    }

    fn selectable(&self, schema: &mut Map) {
        if !self.selectable_fields.is_empty() {
            let fields: Vec<Value> =
                self.selectable_fields.iter().map(|f| json!({"fieldPath": f.strip_prefix('.').unwrap_or(f)})).collect();
            schema.insert("x-kubernetes-selectable-fields", Value::Array(fields));
        }
    }

    /// The schema of an object.
    fn object_schema(&self, dialect: Dialect, docs: &Docs) -> Value {
        let preserves = |s: &Value| s["x-kubernetes-preserve-unknown-fields"] == true;
        let mut schema = match &self.schema {
            None => json!({"type": "object"}),
            // kubectl takes a schema with some properties for complete.
            Some(s) if dialect == Dialect::V2 && preserves(s) => json!({"type": "object"}),
            Some(s) => {
                let mut s = s.clone();
                if dialect == Dialect::V2 {
                    lower(&mut s);
                }
                embedded(&mut s, dialect, docs);
                type_meta(&mut s, dialect, docs);
                s
            }
        };
        let map = schema.make_object();
        map.insert("x-kubernetes-group-version-kind", self.gvk(&self.kind));
        self.selectable(map);
        schema
    }

    fn list_schema(&self, dialect: Dialect, docs: &Docs) -> Value {
        let mut schema = json!({
            "type": "object",
            "description": format!("{} is a list of {}", self.list_kind, self.kind),
            "required": ["items"],
            "properties": {"items": {
                "type": "array",
                "items": {"$ref": dialect.reference(&self.model(&self.kind))},
                "description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", self.plural),
            }},
            "x-kubernetes-group-version-kind": self.gvk(&self.list_kind),
        });
        type_meta(&mut schema, dialect, docs);
        let description = docs.of_field(&format!("{META}.PartialObjectMetadataList"), "metadata");
        schema["properties"]["metadata"] = reference(dialect, &format!("{META}.ListMeta"), description);
        self.selectable(schema.make_object());
        schema
    }
}

/// Paths and schemas of custom resources, with the built-in schemas they refer to.
pub fn custom_fragment(resources: &[CustomResource], dialect: Dialect) -> (Map, Map) {
    let docs = Docs::load();
    let mut builder = super::Builder::new(dialect, &docs);
    for name in ["ObjectMeta", "ListMeta", "Status", "DeleteOptions", "Patch"] {
        builder.refer(&format!("{META}.{name}"));
    }
    let mut own = Map::new();
    for r in resources {
        for (path, item) in paths::resource_paths(&r.served(), dialect, &docs) {
            builder.paths.insert(path, item);
        }
        if r.scale {
            builder.refer("io.k8s.api.autoscaling.v1.Scale");
        }
        own.insert(r.model(&r.kind), r.object_schema(dialect, &docs));
        own.insert(r.model(&r.list_kind), r.list_schema(dialect, &docs));
    }
    let (paths, mut schemas) = builder.finish();
    schemas.extend(own);
    (paths, schemas)
}

/// The v3 document of a group and version that has custom resources only.
pub fn custom_v3(resources: &[CustomResource]) -> Value {
    let (paths, schemas) = custom_fragment(resources, Dialect::V3);
    let mut components = Map::new();
    components.insert("schemas", Value::Object(schemas));
    v3_document(paths, components)
}

fn reference(dialect: Dialect, model: &str, description: &str) -> Value {
    let reference = dialect.reference(model);
    match dialect {
        Dialect::V2 => json!({"$ref": reference, "description": description}),
        Dialect::V3 => json!({"allOf": [{"$ref": reference}], "description": description}),
    }
}

/// `apiVersion`, `kind` and `metadata` of a whole object.
fn type_meta(schema: &mut Value, dialect: Dialect, docs: &Docs) {
    let model = format!("{META}.PartialObjectMetadata");
    for name in ["apiVersion", "kind"] {
        schema["properties"][name] = json!({"type": "string", "description": docs.of_field(&model, name)});
    }
    schema["properties"]["metadata"] =
        reference(dialect, &format!("{META}.ObjectMeta"), docs.of_field(&model, "metadata"));
}

/// Gives embedded resources the fields of an object.
fn embedded(schema: &mut Value, dialect: Dialect, docs: &Docs) {
    each_child(schema, &mut |child| {
        embedded(child, dialect, docs);
        if child["x-kubernetes-embedded-resource"] != true
            || dialect == Dialect::V2 && child["x-kubernetes-preserve-unknown-fields"] == true
        {
            return;
        }
        type_meta(child, dialect, docs);
        let map = child.make_object();
        let required = map.get_or_insert_with("required", || Value::Array(Vec::new()));
        if let Value::Array(required) = required {
            for name in ["kind", "apiVersion"] {
                if !required.iter().any(|r| r == name) {
                    required.push(name.into());
                }
            }
        }
    });
}

fn each_child(schema: &mut Value, f: &mut dyn FnMut(&mut Value)) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(&mut *f);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(child) = schema.get_mut(name).filter(|c| c.is_object()) {
            f(child);
        }
    }
}

/// Drops what v2 cannot express, in the way that kubectl's reader of v2 needs.
fn lower(schema: &mut Value) {
    let is = |s: &Value, name: &str| s[name] == true;
    let (nullable, preserves) = (is(schema, "nullable"), is(schema, "x-kubernetes-preserve-unknown-fields"));
    let nullable_properties: Vec<String> = schema["properties"]
        .as_object()
        .into_iter()
        .flat_map(Map::iter)
        .filter(|(_, p)| is(p, "nullable"))
        .map(|(k, _)| k.to_string())
        .collect();
    let nullable_values = is(&schema["additionalProperties"], "nullable");
    let Some(map) = schema.as_object_mut() else { return };
    for name in ["allOf", "oneOf", "anyOf", "not", "nullable"] {
        map.remove(name);
    }
    if nullable || preserves {
        map.remove("items");
        map.remove("properties");
    }
    let array_without_items = map.get("type").is_some_and(|t| t == "array") && !map.contains_key("items");
    let open_object = preserves && map.get("type").is_some_and(|t| t == "object");
    if nullable || array_without_items || open_object {
        map.remove("type");
    }
    if let Some(Value::Array(required)) = map.get_mut("required") {
        required.retain(|r| !nullable_properties.iter().any(|n| r == n.as_str()));
        if nullable_values || required.is_empty() {
            map.remove("required");
        }
    }
    // v2 has no defaults in Kubernetes.
    map.remove("default");
    each_child(schema, &mut lower);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widget() -> CustomResource {
        CustomResource {
            group: "example.com".into(),
            version: "v1".into(),
            plural: "widgets".into(),
            kind: "Widget".into(),
            list_kind: "WidgetList".into(),
            namespaced: true,
            schema: Some(json!({"type": "object", "description": "A widget.", "properties": {"spec": {
                "type": "object", "required": ["size", "note"], "properties": {
                    "size": {"type": "integer", "minimum": 1, "default": 3},
                    "note": {"type": "string", "nullable": true},
                    "either": {"oneOf": [{"required": ["a"]}], "type": "object", "properties": {"a": {"type": "string"}}},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "inner": {"type": "object", "x-kubernetes-embedded-resource": true}
                }
            }}})),
            status: true,
            scale: true,
            selectable_fields: vec![".spec.size".into()],
        }
    }

    #[test]
    fn v3_shows_the_schema_as_it_is() {
        let doc = custom_v3(&[widget()]);
        let schema = doc.at(&["components", "schemas", "com.example.v1.Widget"]).unwrap();
        assert_eq!(schema.at(&["properties", "spec", "properties", "note", "nullable"]), Some(&true.into()));
        assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
        assert_eq!(schema["x-kubernetes-selectable-fields"], json!([{"fieldPath": "spec.size"}]));
        let meta = schema.at(&["properties", "metadata", "allOf"]).unwrap();
        assert_eq!(meta[0]["$ref"], "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
        let inner = schema.at(&["properties", "spec", "properties", "inner"]).unwrap();
        assert_eq!(inner["required"], json!(["kind", "apiVersion"]));
        let paths = doc["paths"].as_object().unwrap();
        assert!(paths.contains_key("/apis/example.com/v1/namespaces/{namespace}/widgets/{name}/scale"));
        let patch = &doc["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"];
        assert_eq!(patch["operationId"], "patchExampleComV1NamespacedWidget");
        assert!(patch.at(&["requestBody", "content", "application/strategic-merge-patch+json"]).is_none());
    }

    #[test]
    fn v2_drops_what_it_cannot_say() {
        let (_, definitions) = custom_fragment(&[widget()], Dialect::V2);
        let widget = definitions.get("com.example.v1.Widget").unwrap();
        assert_eq!(widget["x-kubernetes-selectable-fields"], json!([{"fieldPath": "spec.size"}]));
        let spec = widget.at(&["properties", "spec"]).unwrap();
        assert_eq!(spec["required"], json!(["size"]));
        assert_eq!(spec["properties"]["note"], json!({}));
        assert_eq!(spec["properties"]["free"], json!({"x-kubernetes-preserve-unknown-fields": true}));
        assert_eq!(spec["properties"]["either"], json!({"type": "object", "properties": {"a": {"type": "string"}}}));
        assert_eq!(spec["properties"]["size"], json!({"type": "integer", "minimum": 1}));
    }
}
