//! Whether a schema is structural: every place has a type, and value rules do not bring in structure of their own.
//!
//! Follows: `apiextensions-apiserver/pkg/apiserver/schema/{validation,complete}.go` (KEP-1111).

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};

use super::schema::compile_pattern;

/// Deeper schemas are refused.
pub(super) const DEPTH_MAX: usize = 200;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Checks the schema of one version; the errors are sorted by their text.
pub fn validate(schema: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    invariants(schema, Level::Root, path, 0, &mut errors);
    values_complete(schema, Some(schema), path, path, &mut errors);
    errors.sort_by_cached_key(ToString::to_string);
    errors
}

pub(super) fn flag(schema: &Value, key: &str) -> bool {
    schema[key] == true
}

/// The members of a map of schemas.
pub(super) fn children<'v>(schema: &'v Value, key: &str) -> impl Iterator<Item = (&'v str, &'v Value)> {
    schema[key].as_object().into_iter().flat_map(|map| map.iter()).map(|(name, child)| (name.as_str(), child))
}

/// A member that is a schema.
pub(super) fn child<'v>(schema: &'v Value, key: &str) -> Option<&'v Value> {
    schema.get(key).filter(|c| c.is_object())
}

/// `anyOf: [{type: integer}, {type: string}]`, the one pattern in which types are allowed below a junctor.
fn is_int_or_string(schema: &Value) -> bool {
    let only = |s: &Value, ty: &str| s.as_object().is_some_and(|m| m.len() == 1) && s["type"] == ty;
    matches!(schema.array_at(&["anyOf"]), [a, b] if only(a, "integer") && only(b, "string"))
}

fn invariants(schema: &Value, level: Level, path: &FieldPath, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > DEPTH_MAX {
        errors.push(FieldError::forbidden(path, "the schema is nested too deeply"));
        return;
    }
    let ty = schema.str_at(&["type"]);
    let forbid = |errors: &mut Vec<FieldError>, key: &str, text: &str| {
        errors.push(FieldError::forbidden(&path.child(key), text));
    };
    match child(schema, "items") {
        Some(items) => invariants(items, Level::Item, &path.child("items"), depth + 1, errors),
        None if ty == "array" => errors.push(FieldError::required(&path.child("items"), "must be specified")),
        None => {}
    }
    for (name, property) in children(schema, "properties") {
        invariants(property, Level::Field, &path.child("properties").key(name), depth + 1, errors);
    }
    let additional = schema.get("additionalProperties").filter(|a| !a.is_null());
    if let Some(additional) = additional {
        if level == Level::Root {
            forbid(errors, "additionalProperties", "must not be used at the root");
        }
        if additional.is_object() {
            invariants(additional, Level::Field, &path.child("additionalProperties"), depth + 1, errors);
        }
    }
    let int_or_string = flag(schema, "x-kubernetes-int-or-string");
    let preserve = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    if int_or_string {
        for (key, set) in
            [("x-kubernetes-preserve-unknown-fields", preserve), ("x-kubernetes-embedded-resource", embedded)]
        {
            if set {
                let text = "must be false if x-kubernetes-int-or-string is true";
                errors.push(FieldError::invalid(&path.child(key), true, text));
            }
        }
    }
    let first_of_all = schema.array_at(&["allOf"]).first().is_some_and(is_int_or_string);
    values(schema, is_int_or_string(schema), first_of_all, path, depth, errors);

    let at = path.child("type");
    if embedded && ty != "object" {
        let text = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match ty {
            "" => FieldError::required(&at, text),
            ty => FieldError::invalid(&at, ty, text),
        });
    } else if ty.is_empty() && !int_or_string && !preserve {
        let text = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(&at, text));
    }
    if embedded && additional.is_some() {
        forbid(errors, "additionalProperties", "must not be used if x-kubernetes-embedded-resource is set");
    }
    if level == Level::Root && !ty.is_empty() && ty != "object" {
        errors.push(FieldError::invalid(&at, ty, "must be object at the root"));
    }
    let properties = path.child("properties");
    if level == Level::Root || embedded {
        for name in ["kind", "apiVersion"] {
            if let Some(property) = schema.at(&["properties", name])
                && property["type"] != "string"
            {
                let at = properties.key(name).child("type");
                errors.push(FieldError::invalid(&at, property.str_at(&["type"]), "must be string"));
            }
        }
    }
    if let Some(metadata) = schema.at(&["properties", "metadata"]) {
        let at = properties.key("metadata");
        if (level == Level::Root || embedded) && metadata["type"] != "object" {
            errors.push(FieldError::invalid(&at.child("type"), metadata.str_at(&["type"]), "must be object"));
        }
        if level == Level::Root && !names_only(metadata) {
            let text =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(FieldError::forbidden(&at, text));
        }
    }
    if embedded && !preserve && children(schema, "properties").next().is_none() {
        let text =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(&properties, text));
    }
}

/// Whether the schema of a root's metadata says nothing but what `name` and `generateName` look like.
fn names_only(metadata: &Value) -> bool {
    let names = |p: &Value| {
        let known = |name: &str| name == "name" || name == "generateName";
        p.as_object().is_some_and(|p| p.keys().all(|k| known(k)))
    };
    metadata.as_object().is_some_and(|members| {
        members.iter().all(|(key, member)| match key.as_str() {
            // Structure and value rules; texts for readers are none, and `default` is refused elsewhere.
            "type" | "default" | "example" | "externalDocs" => true,
            "properties" => names(member),
            _ => member.is_null() || *member == "" || *member == false,
        })
    })
}

/// Value validations: what is in junctors, and the pattern.
fn values(
    schema: &Value,
    skip_any_of: bool,
    skip_first_all_of: bool,
    path: &FieldPath,
    depth: usize,
    errors: &mut Vec<FieldError>,
) {
    for key in ["anyOf", "allOf", "oneOf"] {
        if key == "anyOf" && skip_any_of {
            continue;
        }
        for (i, part) in schema.array_at(&[key]).iter().enumerate() {
            let skip = key == "allOf" && i == 0 && skip_first_all_of;
            nested(part, skip, &path.child(key).index(i), depth + 1, errors);
        }
    }
    if let Some(not) = child(schema, "not") {
        nested(not, false, &path.child("not"), depth + 1, errors);
    }
    if let Some(pattern) = schema["pattern"].as_str().filter(|p| !p.is_empty())
        && let Err(bad) = compile_pattern(pattern)
    {
        let text = format!("must be a valid regular expression, but isn't: {}", bad.reason);
        errors.push(FieldError::invalid(&path.child("pattern"), pattern, text));
    }
}

/// Below a junctor only values are restricted; structure is said outside.
fn nested(schema: &Value, skip_any_of: bool, path: &FieldPath, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > DEPTH_MAX {
        errors.push(FieldError::forbidden(path, "the schema is nested too deeply"));
        return;
    }
    values(schema, skip_any_of, false, path, depth, errors);
    if let Some(items) = child(schema, "items") {
        nested(items, false, &path.child("items"), depth + 1, errors);
    }
    for (name, property) in children(schema, "properties") {
        nested(property, false, &path.child("properties").key(name), depth + 1, errors);
    }
    const EMPTY: &str = "must be empty to be structural";
    const UNDEFINED: &str = "must be undefined to be structural";
    const FALSE: &str = "must be false to be structural";
    for (key, text) in [
        ("type", EMPTY),
        ("additionalProperties", UNDEFINED),
        ("default", UNDEFINED),
        ("title", EMPTY),
        ("description", EMPTY),
        ("nullable", FALSE),
        ("x-kubernetes-preserve-unknown-fields", FALSE),
        ("x-kubernetes-embedded-resource", FALSE),
        ("x-kubernetes-int-or-string", FALSE),
        ("x-kubernetes-list-map-keys", EMPTY),
        ("x-kubernetes-list-type", UNDEFINED),
        ("x-kubernetes-map-type", UNDEFINED),
        ("x-kubernetes-validations", EMPTY),
    ] {
        let set = match schema.get(key) {
            None | Some(Value::Null) => false,
            Some(value) if text == EMPTY => *value != "" && value.as_array().is_none_or(|list| !list.is_empty()),
            Some(value) if text == FALSE => *value == true,
            Some(_) => true,
        };
        if set {
            errors.push(FieldError::forbidden(&path.child(key), text));
        }
    }
    if schema.at(&["properties", "metadata"]).is_some() {
        let at = path.child("properties").key("metadata");
        errors.push(FieldError::forbidden(&at, "must not be specified in a nested context"));
    }
}

/// What a junctor in `schema` restricts must be specified in `structure`.
fn values_complete(
    schema: &Value,
    structure: Option<&Value>,
    at: &FieldPath,
    path: &FieldPath,
    errors: &mut Vec<FieldError>,
) {
    if let Some(not) = child(schema, "not") {
        complete(not, structure, at, &path.child("not"), errors);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, part) in schema.array_at(&[key]).iter().enumerate() {
            complete(part, structure, at, &path.child(key).index(i), errors);
        }
    }
}

fn complete(schema: &Value, structure: Option<&Value>, at: &FieldPath, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let missing =
        |at: &FieldPath, path: &FieldPath| FieldError::required(at, format!("because it is defined in {path}"));
    let Some(structure) = structure else {
        errors.push(missing(at, path));
        return;
    };
    values_complete(schema, Some(structure), at, path, errors);
    if let Some(items) = child(schema, "items") {
        complete(items, child(structure, "items"), &at.child("items"), &path.child("items"), errors);
    }
    for (name, property) in children(schema, "properties") {
        let (at, path) = (at.child("properties").key(name), path.child("properties").key(name));
        match structure.at(&["properties", name]) {
            Some(own) => complete(property, Some(own), &at, &path, errors),
            None => errors.push(missing(&at, &path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn schemas_that_are_not_structural_are_refused_in_upstreams_words() {
        // (schema, errors). Source: `apiextensions-apiserver/pkg/apiserver/schema/validation_test.go`.
        for (schema, want) in [
            (json!({"type": "object"}), &[][..]),
            (json!({}), &["s.type: Required value: must not be empty at the root"]),
            (json!({"type": "string"}), &["s.type: Invalid value: \"string\": must be object at the root"]),
            (
                json!({"type": "object", "properties": {"a": {"type": "array"}, "b": {}}}),
                &[
                    "s.properties[a].items: Required value: must be specified",
                    "s.properties[b].type: Required value: must not be empty for specified object fields",
                ],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "items": {}}}}),
                &["s.properties[a].items.type: Required value: must not be empty for specified array items"],
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                &["s.additionalProperties: Forbidden: must not be used at the root"],
            ),
            (
                json!({"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": true,
                    "anyOf": [{"type": "integer"}, {"type": "string"}]}}}),
                &[],
            ),
            (
                json!({"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": true,
                    "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"pattern": "x"}]}}}),
                &[],
            ),
            (
                json!({"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": true,
                    "anyOf": [{"type": "string"}, {"type": "integer"}]}}}),
                &[
                    "s.properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
                    "s.properties[a].anyOf[1].type: Forbidden: must be empty to be structural",
                ],
            ),
            (
                json!({"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": true,
                    "x-kubernetes-preserve-unknown-fields": true}}}),
                &[
                    "s.properties[a].x-kubernetes-preserve-unknown-fields: Invalid value: true: must be false if x-kubernetes-int-or-string is true",
                ],
            ),
            (
                json!({"type": "object", "properties": {"a": {"x-kubernetes-embedded-resource": true}}}),
                &[
                    "s.properties[a].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
                    "s.properties[a].type: Required value: must be object if x-kubernetes-embedded-resource is true",
                ],
            ),
            (
                json!({"type": "object", "properties": {"kind": {"type": "integer"}, "metadata": {"type": "object",
                    "properties": {"name": {"type": "string"}, "labels": {"type": "object"}}}}}),
                &[
                    "s.properties[kind].type: Invalid value: \"integer\": must be string",
                    "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
                ],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "object"}},
                    "allOf": [{"properties": {"b": {"description": "d", "default": 1}}}],
                    "not": {"items": {"nullable": true}}}),
                &[
                    "s.allOf[0].properties[b].default: Forbidden: must be undefined to be structural",
                    "s.allOf[0].properties[b].description: Forbidden: must be empty to be structural",
                    "s.items: Required value: because it is defined in s.not.items",
                    "s.not.items.nullable: Forbidden: must be false to be structural",
                    "s.properties[b]: Required value: because it is defined in s.allOf[0].properties[b]",
                ],
            ),
            (
                json!({"type": "object", "oneOf": [{"properties": {"metadata": {}}}], "properties": {"metadata": {"type": "object"}}}),
                &["s.oneOf[0].properties[metadata]: Forbidden: must not be specified in a nested context"],
            ),
        ] {
            let got: Vec<String> = validate(&schema, &FieldPath::new("s")).iter().map(ToString::to_string).collect();
            assert_eq!(got, want, "{schema}");
        }
    }
}
