//! Objects of custom resources: what Go's decoder does for built-in kinds is done here by the structural schema.
//!
//! Decoding keeps wrong types (validation tells them), drops unknown members and nulls that nothing allows, and reads the
//! metadata of the object and of embedded objects strictly. Defaults are a step of their own, also needed when an object
//! is read back.
//!
//! Follows: `apiextensions-apiserver/pkg/apiserver/schema/{pruning,defaulting,objectmeta}`.

use crate::gvk::GroupVersionKind;
use crate::json::{Map, Value};
use crate::schema::{self, TypeRef};

use super::{Decoded, Format, ObjectError, cannot_be_handled, type_meta, untyped};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Decodes the body of a request for custom objects; `root` is the root of the version's schema
/// ([`schema::Schema::from_structural`]).
pub fn custom(
    body: &[u8],
    format: Format,
    expected: &GroupVersionKind,
    root: TypeRef<'_>,
) -> Result<Decoded, ObjectError> {
    let unrecognized = |e: &dyn std::fmt::Display| super::unrecognized(body, &expected.kind, &e.to_string());
    let decoded = untyped(body, format).map_err(|e| match format {
        Format::Json => unrecognized(&format!("couldn't get version/kind; json parse error: {e}")),
        Format::Yaml => unrecognized(&e),
    })?;
    if !decoded.object.is_object() {
        return Err(unrecognized(&"the body is not an object"));
    }
    let (api_version, kind) = type_meta(&decoded.object);
    let (api_version, kind) = (api_version.to_owned(), kind.to_owned());
    if !api_version.is_empty() && api_version != expected.api_version() {
        return Err(ObjectError {
            message: format!(
                "the API version in the data ({api_version}) does not match the expected API version ({})",
                expected.api_version()
            ),
        });
    }
    if !kind.is_empty() && kind != expected.kind {
        let actual = expected.group_version().with_kind(kind.as_str());
        let cause = format!("{kind} is not {}", expected.kind);
        return Err(ObjectError { message: cannot_be_handled(&actual, &expected.kind, &cause) });
    }
    let Decoded { mut object, mut strict_errors } = decoded;
    expected.set_on(&mut object);
    let unknown = coerce(&mut object, root)
        .map_err(|e| ObjectError { message: cannot_be_handled(expected, &expected.kind, &e) })?;
    strict_errors.extend(unknown.iter().map(|path| format!("unknown field {}", crate::text::quote(path))));
    Ok(Decoded { object, strict_errors })
}

/// Brings a tree into the form that [`custom`] gives; returns the paths of what it dropped as unknown, sorted. The error
/// is the decoder's about metadata.
pub fn coerce(object: &mut Value, root: TypeRef<'_>) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    prune(object, Some(root), &mut String::new(), &mut unknown);
    drop_nulls(object, Some(root));
    unknown.sort();
    metadata(object, Some(root), true, &mut String::new(), &mut unknown)?;
    Ok(unknown)
}

/// Fills in the defaults of the schema.
pub fn default_custom(value: &mut Value, ty: TypeRef<'_>) {
    match value {
        Value::Object(map) => {
            for field in ty.fields() {
                let Some(default) = field.default_value() else { continue };
                if map.get(field.name()).is_none_or(|v| v.is_null() && !field.ty().get().nullable) {
                    map.insert(field.name(), default.clone());
                }
            }
            for (name, v) in map.iter_mut() {
                if let Some(member) = ty.member(name).filter(|_| !(whole(ty) && is_meta(name))) {
                    default_null(v, member);
                    default_custom(v, member);
                }
            }
        }
        Value::Array(items) => {
            if let Some(element) = ty.list().map(|l| ty.other(l.element)) {
                for v in items {
                    default_null(v, element);
                    default_custom(v, element);
                }
            }
        }
        _ => {}
    }
}

fn default_null(v: &mut Value, ty: TypeRef<'_>) {
    if let (true, false, Some(default)) = (v.is_null(), ty.get().nullable, &ty.get().default) {
        *v = Value::clone(default);
    }
}

fn is_meta(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

/// Whether values of this type are objects with metadata: the root, and embedded objects.
fn whole(ty: TypeRef<'_>) -> bool {
    ty.get().embedded_resource || ty.schema().root() == Some(ty)
}

fn with_step(path: &mut String, step: &str, f: impl FnOnce(&mut String)) {
    let length = path.len();
    if !path.is_empty() && !step.starts_with('[') {
        path.push('.');
    }
    path.push_str(step);
    f(path);
    path.truncate(length);
}

/// Drops the members that no schema names. `None`: nothing is known about the value, so it may have no members.
fn prune(value: &mut Value, ty: Option<TypeRef<'_>>, path: &mut String, unknown: &mut Vec<String>) {
    let open = ty.is_some_and(|t| t.preserves_unknown_fields());
    match value {
        Value::Object(map) => {
            let mut gone = Vec::new();
            for (name, v) in map.iter_mut() {
                if ty.is_some_and(|t| whole(t) && is_meta(name)) {
                    continue;
                }
                match ty.and_then(|t| t.member(name)) {
                    Some(member) => with_step(path, name, |path| prune(v, Some(member), path, unknown)),
                    None if open => {}
                    None => gone.push(name.clone()),
                }
            }
            for name in gone {
                map.remove(&name);
                with_step(path, &name, |path| unknown.push(path.clone()));
            }
        }
        Value::Array(items) => {
            let element = ty.and_then(|t| t.list().map(|l| t.other(l.element)));
            if element.is_none() && open {
                return;
            }
            for (i, v) in items.iter_mut().enumerate() {
                with_step(path, &format!("[{i}]"), |path| prune(v, element, path, unknown));
            }
        }
        _ => {}
    }
}

/// Drops members that are null where the schema allows neither null nor brings a default.
fn drop_nulls(value: &mut Value, ty: Option<TypeRef<'_>>) {
    match value {
        Value::Object(map) => map.retain(|name, v| {
            let field = ty.and_then(|t| t.field(name));
            let member = ty.and_then(|t| t.member(name));
            let default =
                field.is_some_and(|f| f.default.is_some()) || member.is_some_and(|m| m.get().default.is_some());
            if v.is_null() && !default && member.is_some_and(|m| !m.get().nullable) {
                return false;
            }
            drop_nulls(v, member);
            true
        }),
        Value::Array(items) => {
            let element = ty.and_then(|t| t.list().map(|l| t.other(l.element)));
            items.iter_mut().for_each(|v| drop_nulls(v, element));
        }
        _ => {}
    }
}

/// Reads the metadata of the object and of embedded objects as `ObjectMeta`.
fn metadata(
    value: &mut Value,
    ty: Option<TypeRef<'_>>,
    root: bool,
    path: &mut String,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    let mut result = Ok(());
    match value {
        Value::Object(map) => {
            if root || ty.is_some_and(|t| t.get().embedded_resource) {
                object_meta(map, path, unknown)?;
            }
            for (name, v) in map.iter_mut() {
                if let Some(member) = ty.and_then(|t| t.member(name)).filter(|_| !(root && is_meta(name))) {
                    with_step(path, name, |path| {
                        if result.is_ok() {
                            result = metadata(v, Some(member), false, path, unknown);
                        }
                    });
                }
            }
        }
        Value::Array(items) => {
            let element = ty.and_then(|t| t.list().map(|l| t.other(l.element)));
            for (i, v) in items.iter_mut().enumerate() {
                with_step(path, &format!("[{i}]"), |path| {
                    if result.is_ok() {
                        result = metadata(v, element, false, path, unknown);
                    }
                });
            }
        }
        _ => {}
    }
    result
}

fn object_meta(map: &mut Map, path: &str, unknown: &mut Vec<String>) -> Result<(), String> {
    let Some(given) = map.get_mut("metadata") else { return Ok(()) };
    let Some(ty) = schema::lookup_name(OBJECT_META) else { return Ok(()) };
    let decoded = super::value(given, ty).map_err(|e| e.to_string())?;
    for problem in &decoded.strict_errors {
        // `unknown field "x"`: the path inside the metadata.
        let inner = problem.split('"').nth(1).unwrap_or(problem);
        unknown.push(if path.is_empty() { format!("metadata.{inner}") } else { format!("{path}.metadata.{inner}") });
    }
    *given = decoded.object;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use crate::schema::Schema;

    fn thing(spec: &Value) -> Schema {
        let mut open_api = json!({"type": "object", "properties": {}});
        open_api["properties"]["spec"] = spec.clone();
        Schema::from_structural(&open_api, ("example.com", "v1", "Thing")).unwrap()
    }

    fn decode(schema: &Schema, body: &str) -> Result<Decoded, ObjectError> {
        let kind = GroupVersionKind::new("example.com", "v1", "Thing");
        custom(body.as_bytes(), Format::Json, &kind, schema.root().unwrap())
    }

    #[test]
    fn unknown_members_are_dropped_and_told() {
        let schema = thing(&json!({"type": "object", "properties": {
            "known": {"type": "object", "properties": {"x": {"type": "string"}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                     "properties": {"strict": {"type": "object", "properties": {"y": {"type": "string"}}}}},
            "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"z": {"type": "string"}}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}}
        }}));
        let body = r#"{"metadata":{"name":"a","bogus":1},"other":1,"spec":{"known":{"x":"1","gone":1},
            "free":{"stays":1,"strict":{"y":"1","gone":1}},"m":{"k":{"z":"1","gone":1}},"l":[{"b":1}],"gone":{"x":1}}}"#;
        let decoded = decode(&schema, body).unwrap();
        assert_eq!(
            decoded.object,
            json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"},
                   "spec": {"known": {"x": "1"}, "free": {"stays": 1, "strict": {"y": "1"}},
                            "m": {"k": {"z": "1"}}, "l": [{}]}})
        );
        let told = [
            "other",
            "spec.free.strict.gone",
            "spec.gone",
            "spec.known.gone",
            "spec.l[0].b",
            "spec.m.k.gone",
            "metadata.bogus",
        ];
        let told: Vec<String> = told.iter().map(|p| format!("unknown field \"{p}\"")).collect();
        assert_eq!(decoded.strict_errors, told);
        let twice = decode(&schema, r#"{"spec":{"known":{"x":"1","x":"2"}}}"#).unwrap();
        assert_eq!(twice.strict_error().unwrap(), r#"strict decoding error: duplicate field "spec.known.x""#);
    }

    #[test]
    fn defaults_fill_in_at_every_level() {
        let schema = thing(&json!({"type": "object", "default": {}, "properties": {
            "a": {"type": "string", "default": "A"},
            "n": {"type": "string", "nullable": true, "default": "N"},
            "o": {"type": "object", "default": {}, "properties": {"b": {"type": "integer", "default": 5}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"d": {"type": "string", "default": "D"}}}},
            "m": {"type": "object", "additionalProperties": {"type": "object", "default": {"e": "X"},
                  "properties": {"e": {"type": "string", "default": "E"}}}}
        }}));
        let root = schema.root().unwrap();
        for (given, want) in [
            (json!({}), json!({"spec": {"a": "A", "n": "N", "o": {"b": 5}}})),
            (
                json!({"spec": {"a": null, "n": null, "l": [{}, {"d": "x"}], "m": {"k": {}, "z": null}}}),
                json!({"spec": {"a": "A", "n": null, "o": {"b": 5}, "l": [{"d": "D"}, {"d": "x"}],
                                "m": {"k": {"e": "E"}, "z": {"e": "X"}}}}),
            ),
        ] {
            let mut object = given.clone();
            default_custom(&mut object, root);
            assert_eq!(object, want, "{given}");
        }
    }

    #[test]
    fn metadata_is_read_strictly_also_of_embedded_objects() {
        let schema = thing(&json!({"type": "object", "properties": {
            "f": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
            "null": {"type": "string"}
        }}));
        let body = r#"{"metadata":{"name":"a","creationTimestamp":null,"labels":{}},
            "spec":{"null":null,"f":{"kind":"X","metadata":{"name":"n","x":1},"y":1}}}"#;
        let decoded = decode(&schema, body).unwrap();
        assert_eq!(decoded.object["metadata"], json!({"name": "a"}));
        assert_eq!(decoded.object["spec"], json!({"f": {"kind": "X", "metadata": {"name": "n"}, "y": 1}}));
        assert_eq!(decoded.strict_errors, [r#"unknown field "spec.f.metadata.x""#]);
        for (body, want) in [
            (
                r#"{"metadata":{"labels":{"a":1}}}"#,
                "Thing in version \"v1\" cannot be handled as a Thing: json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string",
            ),
            (
                r#"{"apiVersion":"example.com/v2","kind":"Thing"}"#,
                "the API version in the data (example.com/v2) does not match the expected API version (example.com/v1)",
            ),
        ] {
            assert_eq!(decode(&schema, body).unwrap_err().message, want);
        }
    }
}
