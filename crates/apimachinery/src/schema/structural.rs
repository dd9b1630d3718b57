//! A CRD's structural schema in the model of built-in types.
//!
//! Takes what decoding, apply and OpenAPI need to know (types, list and map types, nullable, unknown fields, defaults).
//! Value rules (`maximum`, `pattern`, CEL) stay with the definition. The schema must already be structural: what cannot
//! be expressed is refused.
//!
//! Follows: `k8s.io/apiextensions-apiserver/pkg/apiserver/schema` and `pkg/controller/openapi/builder`.

use crate::json::{Str, Value};
use crate::schema::{Field, List, ListType, MapType, Scalar, Schema, Shape, Struct, TypeId, builtin};

/// Why a schema could not be taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StructuralError {
    #[error("{path}: type {type_name:?} is unknown")]
    UnknownType { path: String, type_name: String },
    #[error("{path}: schemas are nested too deeply")]
    TooDeep { path: String },
}

/// Deeper than any schema that fits in a CRD of reasonable size.
const MAX_DEPTH: usize = 256;

impl Schema {
    /// The schema of one version of a custom resource, from its `openAPIV3Schema`. `apiVersion`, `kind` and
    /// `metadata` are added at the root, with the built-in type of `metadata`.
    pub fn from_structural(open_api: &Value, gvk: (&str, &str, &str)) -> Result<Schema, StructuralError> {
        let mut schema = Schema::default();
        let mut builder = Builder { schema: &mut schema, meta: None };
        let root = builder.convert(open_api, "", 0, true)?;
        let node = &mut schema.types[root.0 as usize];
        if let Shape::Struct(s) = &mut node.shape {
            s.gvk = Some((gvk.0.into(), gvk.1.into(), gvk.2.into()));
        }
        schema.root = Some(root);
        Ok(schema)
    }
}

struct Builder<'a> {
    schema: &'a mut Schema,
    meta: Option<TypeId>,
}

impl Builder<'_> {
    fn convert(&mut self, s: &Value, path: &str, depth: usize, root: bool) -> Result<TypeId, StructuralError> {
        if depth > MAX_DEPTH {
            return Err(StructuralError::TooDeep { path: path.to_owned() });
        }
        let is = |name: &str| s[name].as_bool() == Some(true);
        let embedded = is("x-kubernetes-embedded-resource");
        let preserve = is("x-kubernetes-preserve-unknown-fields");
        let id = if is("x-kubernetes-int-or-string") || s.str_at(&["format"]) == "int-or-string" {
            self.schema.add(Shape::Scalar(Scalar::IntOrString))
        } else {
            match s.str_at(&["type"]) {
                "object" => self.object(s, path, depth, root || embedded)?,
                "" if root || embedded => self.object(s, path, depth, true)?,
                "array" => self.array(s, path, depth)?,
                "string" => {
                    let scalar = if s.str_at(&["format"]) == "byte" { Scalar::Bytes } else { Scalar::String };
                    self.schema.add(Shape::Scalar(scalar))
                }
                "boolean" => self.schema.add(Shape::Scalar(Scalar::Bool)),
                "integer" => {
                    let scalar = match s.str_at(&["format"]) {
                        "int32" => Scalar::Int32,
                        "int64" => Scalar::Int64,
                        _ => Scalar::Integer,
                    };
                    self.schema.add(Shape::Scalar(scalar))
                }
                "number" => self.schema.add(Shape::Scalar(Scalar::Number)),
                "" => self.schema.add(Shape::Any),
                other => {
                    return Err(StructuralError::UnknownType { path: path.to_owned(), type_name: other.to_owned() });
                }
            }
        };
        let node = &mut self.schema.types[id.0 as usize];
        node.nullable = is("nullable");
        node.preserve_unknown_fields = preserve;
        node.embedded_resource = embedded;
        node.default = s.get("default").filter(|d| !d.is_null()).cloned().map(Box::new);
        Ok(id)
    }

    fn object(&mut self, s: &Value, path: &str, depth: usize, whole: bool) -> Result<TypeId, StructuralError> {
        let atomic = s.str_at(&["x-kubernetes-map-type"]) == "atomic";
        let properties = s["properties"].as_object();
        let additional = &s["additionalProperties"];
        if !whole && properties.is_none_or(|p| p.is_empty()) {
            if additional.is_object() {
                let value = self.convert(additional, &format!("{path}.*"), depth + 1, false)?;
                return Ok(self.schema.add(Shape::Map(MapType { value, atomic, explicit: atomic })));
            }
            let free = additional.as_bool() == Some(true) || s["x-kubernetes-preserve-unknown-fields"] == true;
            if free {
                let value = self.schema.add(Shape::Any);
                return Ok(self.schema.add(Shape::Map(MapType { value, atomic, explicit: atomic })));
            }
        }
        // The number first: nothing below refers to it, and types are laid out parents first.
        let id = self.schema.add(Shape::Struct(Struct { atomic, ..Struct::default() }));
        let required: Vec<&str> = s.array_at(&["required"]).iter().filter_map(Value::as_str).collect();
        let mut fields = Vec::new();
        if whole {
            let string = self.schema.add(Shape::Scalar(Scalar::String));
            let meta = self.metadata();
            fields.push(Field::plain("apiVersion", string));
            fields.push(Field::plain("kind", string));
            fields.push(Field::plain("metadata", meta));
        }
        for (name, property) in properties.into_iter().flat_map(|p| p.iter()) {
            if whole && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let ty = self.convert(property, &format!("{path}.{name}"), depth + 1, false)?;
            let mut field = Field::plain(name.clone(), ty);
            field.required = required.contains(&name.as_str());
            field.default = property.get("default").filter(|d| !d.is_null()).cloned().map(Box::new);
            fields.push(field);
        }
        self.schema.set_fields(id, fields);
        Ok(id)
    }

    fn array(&mut self, s: &Value, path: &str, depth: usize) -> Result<TypeId, StructuralError> {
        let element = if s["items"].is_object() {
            self.convert(&s["items"], &format!("{path}[]"), depth + 1, false)?
        } else {
            self.schema.add(Shape::Any)
        };
        let stated = s.str_at(&["x-kubernetes-list-type"]);
        let keys: Vec<Str> =
            s.array_at(&["x-kubernetes-list-map-keys"]).iter().filter_map(Value::as_str).map(Str::from).collect();
        let list_type = match stated {
            "set" => ListType::Set,
            "map" => ListType::Map,
            _ => ListType::Atomic,
        };
        Ok(self.schema.add(Shape::List(List {
            element,
            list_type,
            explicit: !stated.is_empty(),
            keys,
            wrapped: false,
        })))
    }

    /// `ObjectMeta`, copied from the built-in table once per schema.
    fn metadata(&mut self) -> TypeId {
        if let Some(id) = self.meta {
            return id;
        }
        let id = match builtin::lookup_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
            Some(source) => copy(self.schema, source),
            None => self.schema.add(Shape::Any),
        };
        self.meta = Some(id);
        id
    }
}

/// Copies a type and everything it refers to. Only for types that do not contain themselves.
fn copy(into: &mut Schema, source: super::TypeRef<'_>) -> TypeId {
    let shape = match source.shape() {
        Shape::List(l) => {
            let element = copy(into, source.other(l.element));
            Shape::List(List { element, ..l.clone() })
        }
        Shape::Map(m) => {
            let value = copy(into, source.other(m.value));
            Shape::Map(MapType { value, ..m.clone() })
        }
        other => other.clone(),
    };
    let id = into.add(shape);
    if matches!(source.shape(), Shape::Struct(_)) {
        let fields = source
            .fields()
            .map(|f| {
                let ty = copy(into, f.ty());
                Field { ty, ..(*f).clone() }
            })
            .collect();
        into.set_fields(id, fields);
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn a_structural_schema_becomes_types() {
        let schema = Schema::from_structural(
            &json!({
                "type": "object",
                "required": ["spec"],
                "properties": {
                    "spec": {"type": "object", "properties": {
                        "replicas": {"type": "integer", "format": "int32", "default": 1},
                        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                        "ports": {"type": "array", "x-kubernetes-list-type": "map",
                                  "x-kubernetes-list-map-keys": ["name"],
                                  "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "free": {"x-kubernetes-preserve-unknown-fields": true},
                        "note": {"type": "string", "nullable": true}
                    }}
                }
            }),
            ("example.com", "v1", "Widget"),
        )
        .unwrap();
        let root = schema.root().unwrap();
        assert!(root.field("spec").unwrap().required);
        assert!(root.path(&["metadata", "labels"]).unwrap().map().is_some());
        assert_eq!(root.path(&["spec", "replicas"]).unwrap().scalar(), Some(Scalar::Int32));
        let spec = root.member("spec").unwrap();
        assert_eq!(spec.field("replicas").unwrap().default_value(), Some(&Value::from(1)));
        assert_eq!(spec.member("ports").unwrap().list().unwrap().keys, ["name"]);
        assert!(spec.member("free").unwrap().preserves_unknown_fields());
        assert!(spec.member("note").unwrap().get().nullable);
        assert_eq!(spec.path(&["labels", "any"]).unwrap().scalar(), Some(Scalar::String));
    }
}
