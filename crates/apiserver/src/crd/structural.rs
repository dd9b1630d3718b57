//! Whether a schema is structural: every place has a type, and value rules do not bring in structure of their own.
//!
//! Follows: `apiextensions-apiserver/pkg/apiserver/schema/validation.go` and `specStandardValidatorV3` of
//! `pkg/apis/apiextensions/validation` (KEP-1111).

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};

use super::schema::compile_pattern;

/// Deeper schemas are refused.
const DEPTH_MAX: usize = 200;

/// Where in a schema a node stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    /// A property of an object.
    Field,
    /// Items or additional properties.
    Element,
}

/// Checks the schema of one version.
pub fn validate(schema: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let before = errors.len();
    node(schema, path, Place::Root, 0, errors);
    if errors.len() == before {
        types(schema, path, Place::Root, 0, errors);
    }
}

fn flag(schema: &Value, key: &str) -> bool {
    schema[key] == true
}

fn node(schema: &Value, path: &FieldPath, place: Place, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > DEPTH_MAX {
        errors.push(FieldError::forbidden(path, "the schema is nested too deeply"));
        return;
    }
    let forbid = |errors: &mut Vec<FieldError>, key: &str, message: &str| {
        errors.push(FieldError::forbidden(&path.child(key), message));
    };
    if !schema.str_at(&["$ref"]).is_empty() {
        forbid(errors, "$ref", "$ref is not supported");
    }
    for (key, message) in [
        ("definitions", "definitions is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("patternProperties", "patternProperties is not supported"),
        ("id", "id is not supported"),
        ("additionalItems", "additionalItems is not supported"),
    ] {
        if schema.get(key).is_some_and(|v| !v.is_null() && *v != "") {
            forbid(errors, key, message);
        }
    }
    if flag(schema, "uniqueItems") {
        forbid(
            errors,
            "uniqueItems",
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    let properties = schema["properties"].as_object();
    let additional = schema.get("additionalProperties").filter(|v| !v.is_null());
    if let Some(additional) = additional {
        if properties.is_some_and(|p| !p.is_empty()) && *additional != false {
            forbid(errors, "additionalProperties", "additionalProperties and properties are mutual exclusive");
        }
        if *additional == false {
            forbid(errors, "additionalProperties", "additionalProperties cannot be set to false");
        }
        if place == Place::Root {
            forbid(errors, "additionalProperties", "must not be used at the root");
        }
    }
    if place == Place::Root && flag(schema, "nullable") {
        forbid(errors, "nullable", "nullable cannot be true at the root");
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && compile_pattern(pattern).is_err()
    {
        errors.push(FieldError::invalid(
            &path.child("pattern"),
            pattern,
            format!("must be a valid regular expression, but isn't: {pattern}"),
        ));
    }
    let (int_or_string, preserve) =
        (flag(schema, "x-kubernetes-int-or-string"), flag(schema, "x-kubernetes-preserve-unknown-fields"));
    if schema.get("x-kubernetes-preserve-unknown-fields").is_some_and(|v| *v == false) {
        errors.push(FieldError::invalid(
            &path.child("x-kubernetes-preserve-unknown-fields"),
            false,
            "must be true or undefined",
        ));
    }
    if int_or_string && preserve {
        errors.push(FieldError::invalid(
            &path.child("x-kubernetes-preserve-unknown-fields"),
            true,
            "must be false if x-kubernetes-int-or-string is true",
        ));
    }
    if flag(schema, "x-kubernetes-embedded-resource") {
        if properties.is_none_or(|p| p.is_empty()) && !preserve {
            errors.push(FieldError::required(
                &path.child("properties"),
                "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            ));
        }
        if schema.str_at(&["type"]) != "object" && !schema.str_at(&["type"]).is_empty() {
            errors.push(FieldError::invalid(
                &path.child("type"),
                schema.str_at(&["type"]),
                "must be object if x-kubernetes-embedded-resource is true",
            ));
        }
    }
    if place == Place::Root
        && let Some(metadata) = schema.at(&["properties", "metadata"])
    {
        let allowed = |m: &Value| {
            m.as_object().is_some_and(|m| {
                m.iter().all(|(key, v)| match key.as_str() {
                    "type" => *v == "object",
                    "description" => true,
                    "properties" => v.as_object().is_some_and(|p| p.keys().all(|k| k == "name" || k == "generateName")),
                    _ => false,
                })
            })
        };
        if !allowed(metadata) {
            let at = path.child("properties").key("metadata");
            let message =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(FieldError::forbidden(&at, message));
        }
    }
    lists(schema, path, errors);
    for (name, child) in properties.into_iter().flat_map(|p| p.iter()) {
        node(child, &path.child("properties").key(name), Place::Field, depth + 1, errors);
    }
    if let Some(child) = additional.filter(|a| a.is_object()) {
        node(child, &path.child("additionalProperties"), Place::Element, depth + 1, errors);
    }
    match &schema["items"] {
        Value::Array(_) => forbid(errors, "items", "items must be a schema object and not an array"),
        items if items.is_object() => node(items, &path.child("items"), Place::Element, depth + 1, errors),
        _ => {}
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, child) in schema.array_at(&[key]).iter().enumerate() {
            value_only(child, schema, &path.child(key).index(i), int_or_string && key == "anyOf", errors);
        }
    }
    if let Some(not) = schema.get("not") {
        value_only(not, schema, &path.child("not"), false, errors);
    }
}

/// Lists: items, list types and map keys.
fn lists(schema: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let is_array = schema.str_at(&["type"]) == "array";
    if is_array && !schema["items"].is_object() && !schema["items"].is_array() {
        errors.push(FieldError::required(&path.child("items"), "must be specified"));
    }
    let keys = schema.array_at(&["x-kubernetes-list-map-keys"]);
    let keys_path = path.child("x-kubernetes-list-map-keys");
    match schema.str_at(&["x-kubernetes-list-type"]) {
        "" if !keys.is_empty() => {
            errors.push(FieldError::forbidden(&keys_path, "must be empty if x-kubernetes-list-type is not map"))
        }
        "" => {}
        "atomic" | "set" if !keys.is_empty() => {
            errors.push(FieldError::forbidden(&keys_path, "must be empty if x-kubernetes-list-type is not map"));
        }
        "atomic" => {}
        "set" => {
            let items = &schema["items"];
            let atomic = match items.str_at(&["type"]) {
                "object" => items.str_at(&["x-kubernetes-map-type"]) == "atomic",
                "array" => matches!(items.str_at(&["x-kubernetes-list-type"]), "" | "atomic"),
                _ => true,
            };
            if !atomic {
                let at = path.child("items").child("x-kubernetes-map-type");
                errors.push(FieldError::invalid(
                    &at,
                    "",
                    "must be atomic as item of a list with x-kubernetes-list-type=set",
                ));
            }
            if flag(items, "nullable") {
                errors.push(FieldError::forbidden(
                    &path.child("items").child("nullable"),
                    "cannot be nullable when x-kubernetes-list-type is set",
                ));
            }
        }
        "map" => map_keys(schema, keys, path, errors),
        other => errors.push(FieldError::not_supported(
            &path.child("x-kubernetes-list-type"),
            other,
            &["atomic", "map", "set"],
        )),
    }
    match schema.str_at(&["x-kubernetes-map-type"]) {
        "" | "atomic" | "granular" => {}
        other => {
            errors.push(FieldError::not_supported(&path.child("x-kubernetes-map-type"), other, &["atomic", "granular"]))
        }
    }
}

fn map_keys(schema: &Value, keys: &[Value], path: &FieldPath, errors: &mut Vec<FieldError>) {
    let keys_path = path.child("x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.push(FieldError::required(&keys_path, "must not be empty if x-kubernetes-list-type is map"));
    }
    let items = &schema["items"];
    let items_path = path.child("items");
    if items.is_object() && items.str_at(&["type"]) != "object" {
        let message = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(&items_path.child("type"), items.str_at(&["type"]), message));
    }
    if flag(items, "nullable") {
        errors.push(FieldError::forbidden(
            &items_path.child("nullable"),
            "cannot be nullable when x-kubernetes-list-type is map",
        ));
    }
    for (i, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or_default();
        if keys[..i].contains(key) {
            errors.push(FieldError::invalid(&keys_path.index(i), name, "must be unique"));
        }
        let at = items_path.child("properties").key(name);
        match items.at(&["properties", name]) {
            None => errors.push(FieldError::invalid(
                &keys_path.index(i),
                name,
                "entries must all be names of item properties",
            )),
            Some(property) => {
                if matches!(property.str_at(&["type"]), "array" | "object") {
                    let message = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                    errors.push(FieldError::invalid(&at.child("type"), property.str_at(&["type"]), message));
                }
                let required = items.array_at(&["required"]).contains(key);
                if !required && property.get("default").is_none() {
                    let message = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                    errors.push(FieldError::required(&at.child("default"), message));
                }
                if flag(property, "nullable") {
                    let message = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                    errors.push(FieldError::forbidden(&at.child("nullable"), message));
                }
            }
        }
    }
}

/// Inside `allOf` and its kin only values are restricted; structure is said outside.
fn value_only(schema: &Value, outer: &Value, path: &FieldPath, may_type: bool, errors: &mut Vec<FieldError>) {
    for key in [
        "description",
        "type",
        "default",
        "additionalProperties",
        "nullable",
        "title",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-map-type",
    ] {
        let set = schema.get(key).is_some_and(|v| !v.is_null() && *v != "" && *v != false);
        // The one pattern in which types are allowed: `anyOf: [{type: integer}, {type: string}]`.
        if set && !(key == "type" && may_type) {
            errors.push(FieldError::forbidden(&path.child(key), "must be undefined to be structural"));
        }
    }
    for (name, child) in schema["properties"].as_object().into_iter().flat_map(|p| p.iter()) {
        let at = path.child("properties").key(name);
        match outer.at(&["properties", name]) {
            Some(own) => value_only(child, own, &at, flag(own, "x-kubernetes-int-or-string"), errors),
            None if outer.get("additionalProperties").is_some_and(Value::is_object) => {
                value_only(child, &outer["additionalProperties"], &at, false, errors);
            }
            None if flag(outer, "x-kubernetes-preserve-unknown-fields") => {}
            None => {
                let message = format!("because it is defined in {path}.properties[{name}]");
                errors.push(FieldError::required(
                    &FieldPath::new(&format!("{path}")).child("properties").key(name),
                    message,
                ));
            }
        }
    }
    if let Some(items) = schema.get("items").filter(|i| i.is_object()) {
        value_only(items, &outer["items"], &path.child("items"), false, errors);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, child) in schema.array_at(&[key]).iter().enumerate() {
            value_only(child, outer, &path.child(key).index(i), may_type, errors);
        }
    }
    if let Some(not) = schema.get("not") {
        value_only(not, outer, &path.child("not"), false, errors);
    }
}

/// Every place has a type, children first.
fn types(schema: &Value, path: &FieldPath, place: Place, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > DEPTH_MAX {
        return;
    }
    if let Some(items) = schema.get("items").filter(|i| i.is_object()) {
        types(items, &path.child("items"), Place::Element, depth + 1, errors);
    }
    for (name, child) in schema["properties"].as_object().into_iter().flat_map(|p| p.iter()) {
        types(child, &path.child("properties").key(name), Place::Field, depth + 1, errors);
    }
    if let Some(child) = schema.get("additionalProperties").filter(|a| a.is_object()) {
        types(child, &path.child("additionalProperties"), Place::Element, depth + 1, errors);
    }
    let at = path.child("type");
    match schema.str_at(&["type"]) {
        "" => {
            let free =
                flag(schema, "x-kubernetes-int-or-string") || flag(schema, "x-kubernetes-preserve-unknown-fields");
            match place {
                Place::Root => errors.push(FieldError::required(&at, "must not be empty at the root")),
                _ if free => {}
                Place::Field => errors.push(FieldError::required(&at, "must not be empty for specified object fields")),
                Place::Element if path.to_string().ends_with("items") => {
                    errors.push(FieldError::required(&at, "must not be empty for specified array items"));
                }
                Place::Element => {
                    errors.push(FieldError::required(&at, "must not be empty for specified object fields"))
                }
            }
        }
        "object" => {}
        other if place == Place::Root => {
            errors.push(FieldError::invalid(&at, other, "must be object at the root"));
        }
        "array" | "string" | "integer" | "number" | "boolean" => {}
        other => errors.push(FieldError::not_supported(
            &at,
            other,
            &["array", "boolean", "integer", "number", "object", "string"],
        )),
    }
}
