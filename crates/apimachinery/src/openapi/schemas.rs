//! Schemas of the built-in types.

use crate::json::{Map, Value};
use crate::schema::{self, FieldRef, ListType, Scalar, Shape, TypeRef};
use crate::{json, resources};

use super::{Dialect, Docs};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// The model name of a scalar that has a schema of its own.
fn scalar_model(scalar: Scalar) -> Option<String> {
    Some(match scalar {
        Scalar::Time => format!("{META}.Time"),
        Scalar::MicroTime => format!("{META}.MicroTime"),
        Scalar::Duration => format!("{META}.Duration"),
        Scalar::FieldsV1 => format!("{META}.FieldsV1"),
        Scalar::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity".into(),
        Scalar::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString".into(),
        Scalar::RawExtension => "io.k8s.apimachinery.pkg.runtime.RawExtension".into(),
        Scalar::Json => format!("{EXTENSIONS}.JSON"),
        Scalar::SchemaOrBool => format!("{EXTENSIONS}.JSONSchemaPropsOrBool"),
        Scalar::SchemaOrArray => format!("{EXTENSIONS}.JSONSchemaPropsOrArray"),
        Scalar::SchemaOrStringArray => format!("{EXTENSIONS}.JSONSchemaPropsOrStringArray"),
        _ => return None,
    })
}

/// The schema of a named type; names of types it refers to go to `refer`.
pub fn definition(model: &str, dialect: Dialect, docs: &Docs, refer: &mut Vec<String>) -> Option<Value> {
    let mut out = match schema::lookup_name(model) {
        Some(ty) => structure(ty, dialect, docs, refer),
        None => special(model, dialect)?,
    };
    let description = match docs.of_type(model) {
        "" if model.ends_with(".meta.v1.Patch") => {
            "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body."
        }
        d => d,
    };
    if !description.is_empty() {
        out.insert("description", description.into());
    }
    Some(Value::Object(out))
}

/// Types that are not structs in JSON.
fn special(model: &str, dialect: Dialect) -> Option<Map> {
    let v3 = dialect == Dialect::V3;
    let value = match model.rsplit('.').next()? {
        "Time" | "MicroTime" => json!({"type": "string", "format": "date-time"}),
        "Duration" => json!({"type": "string"}),
        "FieldsV1" | "RawExtension" | "Patch" => json!({"type": "object"}),
        "Quantity" if v3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        "Quantity" => json!({"type": "string"}),
        "IntOrString" if v3 => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        "IntOrString" => json!({"format": "int-or-string", "type": "string"}),
        "JSON" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray" => json!({}),
        _ => return None,
    };
    match value {
        Value::Object(map) => Some(map),
        _ => None,
    }
}

fn structure(ty: TypeRef<'_>, dialect: Dialect, docs: &Docs, refer: &mut Vec<String>) -> Map {
    let mut out = Map::new();
    out.insert("type", "object".into());
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in ty.fields() {
        if field.required {
            required.push(field);
        }
        properties.insert(field.name(), property(field, ty.name(), dialect, docs, refer));
    }
    if !required.is_empty() {
        required.sort_by_key(|f| f.order);
        out.insert("required", required.iter().map(|f| f.name()).collect::<Vec<_>>().into());
    }
    if !properties.is_empty() {
        out.insert("properties", Value::Object(properties));
    }
    if let Some(s) = ty.structure() {
        if s.atomic {
            out.insert("x-kubernetes-map-type", "atomic".into());
        }
        if !s.unions.is_empty() {
            let unions: Vec<Value> = s
                .unions
                .iter()
                .map(|u| {
                    let fields: Map = u.fields.iter().map(|(json, go)| (json.clone(), go.clone().into())).collect();
                    let mut union = Map::new();
                    union.insert("fields-to-discriminateBy", Value::Object(fields));
                    if let Some(d) = &u.discriminator {
                        union.insert("discriminator", d.clone().into());
                    }
                    Value::Object(union)
                })
                .collect();
            out.insert("x-kubernetes-unions", Value::Array(unions));
        }
        if let Some((group, version, kind)) = &s.gvk {
            let one = |g: &str, v: &str| json!({"group": g, "version": v, "kind": kind.as_str()});
            let gvks: Vec<Value> = if group == "*" {
                // Registered with every group and version.
                resources::GROUPS.iter().flat_map(|g| g.versions.iter().map(|v| one(g.name, v.version))).collect()
            } else {
                vec![one(group, version)]
            };
            out.insert("x-kubernetes-group-version-kind", Value::Array(gvks));
        }
    }
    out
}

fn property(field: FieldRef<'_>, model: &str, dialect: Dialect, docs: &Docs, refer: &mut Vec<String>) -> Value {
    let ty = field.ty();
    let description = docs.of_field(model, field.name());
    let mut out = inline_schema(ty, dialect, refer);
    if dialect == Dialect::V3 {
        match field.default_value() {
            Some(default) => {
                out.insert("default", default.clone());
            }
            None if matches!(ty.shape(), Shape::Struct(_)) && !field.pointer => {
                out.insert("default", Value::object());
            }
            None if !field.pointer && !field.omit_empty => {
                if let Some(zero) = plain_zero(ty) {
                    out.insert("default", zero);
                }
            }
            None => {}
        }
    }
    if !description.is_empty() {
        out.insert("description", description.into());
    }
    // In v3 a reference has no siblings.
    if dialect == Dialect::V3
        && out.len() > 1
        && let Some(reference) = out.remove("$ref")
    {
        out.insert("allOf", json!([]));
        if let Some(Value::Array(all)) = out.get_mut("allOf") {
            all.push(Value::object());
            all[0]["$ref"] = reference;
        }
    }
    if let (Some(s), Some(named)) = (ty.structure(), schema::lookup_name(ty.name()))
        && s.atomic != named.is_atomic()
    {
        out.insert("x-kubernetes-map-type", if s.atomic { "atomic" } else { "granular" }.into());
    }
    if field.patch.merge || field.patch.retain_keys || field.patch.replace {
        let strategy =
            [(field.patch.merge, "merge"), (field.patch.retain_keys, "retainKeys"), (field.patch.replace, "replace")];
        let names: Vec<&str> = strategy.iter().filter(|(on, _)| *on).map(|(_, n)| *n).collect();
        out.insert("x-kubernetes-patch-strategy", names.join(",").into());
    }
    if !field.merge_key.is_empty() {
        out.insert("x-kubernetes-patch-merge-key", field.merge_key.clone().into());
    }
    Value::Object(out)
}

fn plain_zero(ty: TypeRef<'_>) -> Option<Value> {
    Some(match ty.scalar()? {
        Scalar::String => "".into(),
        Scalar::Bool => false.into(),
        Scalar::Int32 | Scalar::Int64 | Scalar::Double => 0i64.into(),
        _ => return None,
    })
}

/// The schema of a value where it stands: a reference for named types.
fn inline_schema(ty: TypeRef<'_>, dialect: Dialect, refer: &mut Vec<String>) -> Map {
    let mut out = Map::new();
    let mut refer_to = |model: String, out: &mut Map| {
        out.insert("$ref", dialect.reference(&model).into());
        refer.push(model);
    };
    match ty.shape() {
        Shape::Struct(s) => refer_to(s.name.to_string(), &mut out),
        Shape::Scalar(s) => match scalar_model(*s) {
            Some(model) => refer_to(model, &mut out),
            None => {
                let (name, format) = match s {
                    Scalar::Bool => ("boolean", ""),
                    Scalar::Int32 => ("integer", "int32"),
                    Scalar::Int64 => ("integer", "int64"),
                    Scalar::Integer => ("integer", ""),
                    Scalar::Double => ("number", "double"),
                    Scalar::Number => ("number", ""),
                    Scalar::Bytes => ("string", "byte"),
                    _ => ("string", ""),
                };
                out.insert("type", name.into());
                if !format.is_empty() {
                    out.insert("format", format.into());
                }
            }
        },
        Shape::Enum(values) => {
            out.insert("type", "string".into());
            out.insert("enum", values.iter().map(|v| Value::String(v.clone())).collect::<Vec<_>>().into());
        }
        Shape::List(list) => {
            out.insert("type", "array".into());
            if let Some(element) = ty.element() {
                out.insert("items", nested(element, dialect, refer));
            }
            if list.explicit {
                let name = match list.list_type {
                    ListType::Atomic => "atomic",
                    ListType::Set => "set",
                    ListType::Map => "map",
                };
                out.insert("x-kubernetes-list-type", name.into());
            }
            if !list.keys.is_empty() {
                let keys: Vec<Value> = list.keys.iter().map(|k| Value::String(k.clone())).collect();
                out.insert("x-kubernetes-list-map-keys", Value::Array(keys));
            }
        }
        Shape::Map(map) => {
            out.insert("type", "object".into());
            if let Some(element) = ty.element() {
                out.insert("additionalProperties", nested(element, dialect, refer));
            }
            if map.explicit {
                out.insert("x-kubernetes-map-type", if map.atomic { "atomic" } else { "granular" }.into());
            }
        }
        Shape::Any => {}
    }
    out
}

/// The schema of a list's elements or a map's values.
fn nested(ty: TypeRef<'_>, dialect: Dialect, refer: &mut Vec<String>) -> Value {
    Value::Object(inline_schema(ty, dialect, refer))
}
