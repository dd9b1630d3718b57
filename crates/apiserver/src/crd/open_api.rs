//! What a definition's schema may say beside being structural: keywords, extensions, defaults, rules.
//!
//! Follows: `ValidateCustomResourceDefinitionOpenAPISchema`, `specStandardValidatorV3` and
//! `validateCustomResourceDefinitionValidation` of `apiextensions-apiserver/pkg/apis/apiextensions/validation`.

use apimachinery::Value;
use apimachinery::field::{BadValue, FieldError, FieldPath};

use super::rules::{Problem, Ratchet, Rules};
use super::schema::{Additional, Node};
use super::structural::{DEPTH_MAX, child, children, flag};
use super::{prune, structural, validate};

const META: [&str; 3] = ["metadata", "kind", "apiVersion"];
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Members of JSONSchemaProps as Go names and orders them, with whether a root may have them beside a status subresource.
const ROOT_MEMBERS: &[(&str, bool)] = &[
    ("id", false),
    ("$schema", false),
    ("$ref", false),
    ("description", true),
    ("nullable", false),
    ("format", true),
    ("title", true),
    ("default", false),
    ("maximum", true),
    ("exclusiveMaximum", true),
    ("minimum", true),
    ("exclusiveMinimum", true),
    ("maxLength", true),
    ("minLength", true),
    ("pattern", true),
    ("maxItems", true),
    ("minItems", true),
    ("uniqueItems", true),
    ("multipleOf", true),
    ("enum", false),
    ("maxProperties", false),
    ("minProperties", false),
    ("required", true),
    ("items", true),
    ("allOf", false),
    ("oneOf", false),
    ("anyOf", false),
    ("not", false),
    ("properties", true),
    ("additionalProperties", false),
    ("patternProperties", false),
    ("dependencies", false),
    ("additionalItems", false),
    ("definitions", false),
    ("externalDocs", true),
    ("example", true),
    ("x-kubernetes-preserve-unknown-fields", true),
    ("x-kubernetes-embedded-resource", false),
    ("x-kubernetes-int-or-string", false),
    ("x-kubernetes-list-map-keys", false),
    ("x-kubernetes-list-type", false),
    ("x-kubernetes-map-type", false),
    ("x-kubernetes-validations", true),
];
const ROOT_ALLOWED: &str = "[Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations]";

/// Checks the schema at `path` (which ends in `openAPIV3Schema`). `unchanged`: it was accepted before, so that what its
/// rules cost is no reason to refuse it.
pub fn validate_schema(
    schema: &Value,
    path: &FieldPath,
    status_subresource: bool,
    unchanged: bool,
    errors: &mut Vec<FieldError>,
) {
    let mut found = Vec::new();
    if status_subresource {
        root_beside_status(schema, path, &mut found);
    }
    if flag(schema, "nullable") {
        found.push(FieldError::forbidden(&path.child("nullable"), "nullable cannot be true at the root"));
    }
    // The rules are looked at only in a schema that is in order, and a schema with keywords that have no meaning here
    // only for those.
    let mut node = None;
    if convertible(schema, 0) {
        let structural_errors = structural::validate(schema, path);
        if structural_errors.is_empty() {
            match Node::compile(schema) {
                Ok(compiled) => {
                    let before = found.len();
                    validate_defaults(&compiled, path, true, false, &mut found);
                    node = (found.len() == before).then_some(compiled);
                }
                Err(bad) => {
                    let at = path.child("pattern");
                    found.push(FieldError::invalid(&at, bad.pattern.as_str(), bad.to_string()));
                }
            }
        } else {
            found.extend(structural_errors);
        }
    }
    let before = found.len();
    let scope = Scope { root: true, ..Scope::default() };
    keywords(schema, path, &scope, 0, &mut found);
    if let Some(node) = node.filter(|_| found.len() == before) {
        compile_rules(&node, path, unchanged, &mut found);
    }
    if found.is_empty() && names_its_schema(schema, 0) {
        found.push(FieldError::invalid(path, "", "OpenAPIV3Schema 'schema' is not supported"));
    }
    errors.extend(found);
}

/// Whether `$schema` is set anywhere.
fn names_its_schema(schema: &Value, depth: usize) -> bool {
    let lists = ["allOf", "anyOf", "oneOf"].iter().flat_map(|key| schema.array_at(&[key]).iter());
    let single = ["items", "additionalProperties", "not"].iter().filter_map(|key| child(schema, key));
    let named = children(schema, "properties").map(|(_, c)| c);
    !schema.str_at(&["$schema"]).is_empty()
        || (depth <= DEPTH_MAX && lists.chain(single).chain(named).any(|c| names_its_schema(c, depth + 1)))
}

/// Beside a status subresource the schema of the status must be all that is said about the status.
fn root_beside_status(schema: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let ty = schema.str_at(&["type"]);
    if !ty.is_empty() && ty != "object" {
        let text =
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.push(FieldError::invalid(&path.child("type"), ty, text));
        return;
    }
    let set = |key: &str| match schema.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    };
    if ROOT_MEMBERS.iter().any(|(key, allowed)| !allowed && set(key)) {
        let text = format!(
            "only {ROOT_ALLOWED} fields are allowed at the root of the schema if the status subresource is enabled"
        );
        errors.push(FieldError::invalid(path, BadValue::Printed(printed(schema, 0)), text));
    }
}

/// A schema as upstream prints its structure: every member, in the order of declaration.
fn printed(schema: &Value, depth: usize) -> String {
    if depth > DEPTH_MAX || !schema.is_object() {
        return "null".to_owned();
    }
    let below = |value: &Value| printed(value, depth + 1);
    let list = |value: &Value| match value.as_array() {
        Some(list) if !list.is_empty() => format!("[{}]", list.iter().map(below).collect::<Vec<_>>().join(",")),
        _ => "null".to_owned(),
    };
    let map = |value: &Value| match value.as_object() {
        Some(map) if !map.is_empty() => {
            let members = map.iter().map(|(k, v)| format!("{}:{}", Value::from(k.as_str()), below(v)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        _ => "null".to_owned(),
    };
    let or_bool = |value: &Value| match value {
        Value::Bool(allows) => format!("{{\"Allows\":{allows},\"Schema\":null}}"),
        Value::Object(_) => format!("{{\"Allows\":true,\"Schema\":{}}}", below(value)),
        _ => "null".to_owned(),
    };
    let items = |value: &Value| match value {
        Value::Object(_) => format!("{{\"Schema\":{},\"JSONSchemas\":null}}", below(value)),
        Value::Array(_) => format!("{{\"Schema\":null,\"JSONSchemas\":{}}}", list(value)),
        _ => "null".to_owned(),
    };
    let rules = |value: &Value| match value.as_array() {
        Some(rules) if !rules.is_empty() => {
            let rule = |rule: &Value| {
                let text = |key: &str| Value::from(rule.str_at(&[key]));
                format!(
                    "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{}}}",
                    text("rule"),
                    text("message"),
                    text("messageExpression"),
                    rule["reason"],
                    text("fieldPath"),
                    rule["optionalOldSelf"]
                )
            };
            format!("[{}]", rules.iter().map(rule).collect::<Vec<_>>().join(","))
        }
        _ => "null".to_owned(),
    };
    let docs = |value: &Value| match value {
        Value::Object(_) => {
            let text = |key: &str| Value::from(value.str_at(&[key]));
            format!("{{\"Description\":{},\"URL\":{}}}", text("description"), text("url"))
        }
        _ => "null".to_owned(),
    };
    let member = |(name, key): &(&str, &str)| {
        let value = &schema[*key];
        let text = match *name {
            "ID" | "Schema" | "Description" | "Type" | "Format" | "Title" | "Pattern" => {
                Value::from(schema.str_at(&[key])).to_string()
            }
            "Nullable" | "ExclusiveMaximum" | "ExclusiveMinimum" | "UniqueItems" | "XEmbeddedResource"
            | "XIntOrString" => flag(schema, key).to_string(),
            "Items" => items(value),
            "AllOf" | "OneOf" | "AnyOf" => list(value),
            "Not" => below(value),
            "Properties" | "PatternProperties" | "Definitions" => map(value),
            "AdditionalProperties" | "AdditionalItems" => or_bool(value),
            "ExternalDocs" => docs(value),
            "XValidations" => rules(value),
            _ => value.to_string(),
        };
        format!("\"{name}\":{text}")
    };
    format!("{{{}}}", PRINTED_MEMBERS.iter().map(member).collect::<Vec<_>>().join(","))
}

/// The members of upstream's structure and what they are in JSON.
const PRINTED_MEMBERS: [(&str, &str); 44] = [
    ("ID", "id"),
    ("Schema", "$schema"),
    ("Ref", "$ref"),
    ("Description", "description"),
    ("Type", "type"),
    ("Nullable", "nullable"),
    ("Format", "format"),
    ("Title", "title"),
    ("Default", "default"),
    ("Maximum", "maximum"),
    ("ExclusiveMaximum", "exclusiveMaximum"),
    ("Minimum", "minimum"),
    ("ExclusiveMinimum", "exclusiveMinimum"),
    ("MaxLength", "maxLength"),
    ("MinLength", "minLength"),
    ("Pattern", "pattern"),
    ("MaxItems", "maxItems"),
    ("MinItems", "minItems"),
    ("UniqueItems", "uniqueItems"),
    ("MultipleOf", "multipleOf"),
    ("Enum", "enum"),
    ("MaxProperties", "maxProperties"),
    ("MinProperties", "minProperties"),
    ("Required", "required"),
    ("Items", "items"),
    ("AllOf", "allOf"),
    ("OneOf", "oneOf"),
    ("AnyOf", "anyOf"),
    ("Not", "not"),
    ("Properties", "properties"),
    ("AdditionalProperties", "additionalProperties"),
    ("PatternProperties", "patternProperties"),
    ("Dependencies", "dependencies"),
    ("AdditionalItems", "additionalItems"),
    ("Definitions", "definitions"),
    ("ExternalDocs", "externalDocs"),
    ("Example", "example"),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields"),
    ("XEmbeddedResource", "x-kubernetes-embedded-resource"),
    ("XIntOrString", "x-kubernetes-int-or-string"),
    ("XListMapKeys", "x-kubernetes-list-map-keys"),
    ("XListType", "x-kubernetes-list-type"),
    ("XMapType", "x-kubernetes-map-type"),
    ("XValidations", "x-kubernetes-validations"),
];

/// Whether a schema can be read as a structural one at all.
fn convertible(schema: &Value, depth: usize) -> bool {
    let set = |key: &str| schema.get(key).is_some_and(|v| !v.is_null() && *v != "");
    let none = ["id", "$schema", "$ref", "patternProperties", "dependencies", "additionalItems", "definitions"];
    if none.iter().any(|key| set(key)) || schema["items"].is_array() {
        return false;
    }
    if schema.get("x-kubernetes-preserve-unknown-fields").is_some_and(|v| *v == false) {
        return false;
    }
    let lists = ["allOf", "anyOf", "oneOf"].iter().flat_map(|key| schema.array_at(&[key]).iter());
    let single = ["items", "additionalProperties", "not"].iter().filter_map(|key| child(schema, key));
    let named = children(schema, "properties").map(|(_, c)| c);
    depth <= DEPTH_MAX && lists.chain(single).chain(named).all(|c| convertible(c, depth + 1))
}

/// What holds for a place because of the places above it.
#[derive(Clone, Default)]
struct Scope {
    root: bool,
    inside_meta: bool,
    /// Why defaults are not allowed.
    no_defaults: Option<String>,
}

fn keywords(schema: &Value, path: &FieldPath, scope: &Scope, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > DEPTH_MAX {
        errors.push(FieldError::forbidden(path, "the schema is nested too deeply"));
        return;
    }
    standard(schema, path, scope, errors);
    if flag(schema, "uniqueItems") {
        let text = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(&path.child("uniqueItems"), text));
    }
    let inner = Scope { root: false, ..scope.clone() };
    if let Some(additional) = schema.get("additionalProperties").filter(|a| !a.is_null()) {
        let at = path.child("additionalProperties");
        if children(schema, "properties").next().is_some() && *additional != true {
            errors.push(FieldError::forbidden(&at, "additionalProperties and properties are mutual exclusive"));
        }
        if additional.is_object() {
            let mut below = inner.clone();
            if scope.inside_meta {
                below.no_defaults = Some("inside additionalProperties applying to object metadata".to_owned());
            }
            keywords(additional, &at, &below, depth + 1, errors);
        }
    }
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    for (name, property) in children(schema, "properties") {
        let mut below = inner.clone();
        if (scope.root || embedded) && META.contains(&name) {
            below.inside_meta = true;
            if scope.root {
                below.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        keywords(property, &path.child("properties").key(name), &below, depth + 1, errors);
    }
    if let Some(not) = child(schema, "not") {
        keywords(not, &path.child("not"), &inner, depth + 1, errors);
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        for (i, part) in schema.array_at(&[key]).iter().enumerate() {
            keywords(part, &path.child(key).index(i), &inner, depth + 1, errors);
        }
    }
    for (name, part) in children(schema, "definitions") {
        keywords(part, &path.child("definitions").key(name), &inner, depth + 1, errors);
    }
    if let Some(items) = child(schema, "items") {
        keywords(items, &path.child("items"), &inner, depth + 1, errors);
    }
    for (i, part) in schema["items"].as_array().into_iter().flatten().enumerate() {
        keywords(part, &path.child("items").index(i), &inner, depth + 1, errors);
    }
    if schema.get("x-kubernetes-preserve-unknown-fields").is_some_and(|v| *v == false) {
        let at = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(&at, false, "must be true or undefined"));
    }
    list_and_map_types(schema, path, errors);
    rules(schema, path, errors);
}

/// Keywords of JSON schema that definitions do not have.
fn standard(schema: &Value, path: &FieldPath, scope: &Scope, errors: &mut Vec<FieldError>) {
    let ty = schema.str_at(&["type"]);
    if !ty.is_empty() && !TYPES.contains(&ty) {
        errors.push(FieldError::not_supported(&path.child("type"), ty, &TYPES));
    }
    if let Some(reason) = &scope.no_defaults
        && schema.get("default").is_some_and(|d| !d.is_null())
    {
        errors.push(FieldError::forbidden(&path.child("default"), format!("must not be set {reason}")));
    }
    for key in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        let set = match schema.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.is_empty() || key == "$ref",
            Some(Value::Object(map)) if matches!(key, "patternProperties" | "definitions") => !map.is_empty(),
            Some(_) => true,
        };
        if set {
            errors.push(FieldError::forbidden(&path.child(key), format!("{key} is not supported")));
        }
    }
    if ty == "null" {
        let text = "type cannot be set to null, use nullable as an alternative";
        errors.push(FieldError::forbidden(&path.child("type"), text));
    }
    if schema["items"].as_array().is_some_and(|items| !items.is_empty()) {
        let text = "items must be a schema object and not an array";
        errors.push(FieldError::forbidden(&path.child("items"), text));
    }
    if scope.inside_meta && flag(schema, "x-kubernetes-embedded-resource") {
        let at = path.child("x-kubernetes-embedded-resource");
        errors.push(FieldError::forbidden(&at, "must not be used inside of resource meta"));
    }
}

fn list_and_map_types(schema: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let ty = schema.str_at(&["type"]);
    let of_type = |errors: &mut Vec<FieldError>, wanted: &str, extension: &str| {
        let text = format!("must be {wanted} if {extension} is specified");
        errors.push(match ty {
            "" => FieldError::required(&path.child("type"), text),
            ty => FieldError::invalid(&path.child("type"), ty, text),
        });
    };
    let map_type = schema["x-kubernetes-map-type"].as_str();
    if map_type.is_some() && ty != "object" {
        of_type(errors, "object", "x-kubernetes-map-type");
    }
    if let Some(other) = map_type.filter(|m| *m != "atomic" && *m != "granular") {
        errors.push(FieldError::not_supported(&path.child("x-kubernetes-map-type"), other, &["atomic", "granular"]));
    }
    let list_type = schema["x-kubernetes-list-type"].as_str();
    let items = child(schema, "items");
    let items_path = path.child("items");
    if list_type.is_some() && ty != "array" {
        of_type(errors, "array", "x-kubernetes-list-type");
    } else if list_type == Some("set")
        && let Some(items) = items
    {
        let text = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let own = items["x-kubernetes-list-type"].as_str();
        let shown = || BadValue::from(own.map_or(Value::Null, Value::from));
        match items.str_at(&["type"]) {
            "array" if own.is_some_and(|t| t != "atomic") => {
                errors.push(FieldError::invalid(&items_path.child("x-kubernetes-list-type"), shown(), text));
            }
            "object" if items["x-kubernetes-map-type"] != "atomic" => {
                errors.push(FieldError::invalid(&items_path.child("x-kubernetes-map-type"), shown(), text));
            }
            _ => {}
        }
    }
    let type_path = path.child("x-kubernetes-list-type");
    if let Some(other) = list_type.filter(|t| !matches!(*t, "atomic" | "set" | "map")) {
        errors.push(FieldError::not_supported(&type_path, other, &["atomic", "set", "map"]));
    }
    let keys = schema.array_at(&["x-kubernetes-list-map-keys"]);
    if !keys.is_empty() && list_type != Some("map") {
        let text = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(match list_type {
            None => FieldError::required(&type_path, text),
            Some(other) => FieldError::invalid(&type_path, other, text),
        });
    }
    if list_type == Some("map") {
        map_keys(schema, keys, items, path, errors);
    }
    if matches!(list_type, Some("set" | "map"))
        && let Some(items) = items
    {
        items_of_maps_and_sets(keys, items, list_type.unwrap_or_default(), path, errors);
    }
}

fn map_keys(schema: &Value, keys: &[Value], items: Option<&Value>, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let keys_path = path.child("x-kubernetes-list-map-keys");
    let items_path = path.child("items");
    if keys.is_empty() {
        errors.push(FieldError::required(&keys_path, "must not be empty if x-kubernetes-list-type is map"));
    }
    let Some(items) = items else {
        errors.push(match schema["items"].is_array() {
            true => {
                let text = "must only have a single schema if x-kubernetes-list-type is map";
                FieldError::invalid(&items_path, BadValue::from(schema["items"].clone()), text)
            }
            false => FieldError::required(&items_path, "must have a schema if x-kubernetes-list-type is map"),
        });
        return;
    };
    if items["type"] != "object" {
        let text = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(&items_path.child("type"), items.str_at(&["type"]), text));
        return;
    }
    let shown = || BadValue::from(Value::Array(keys.to_vec()));
    for (i, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or_default();
        match items.at(&["properties", name]) {
            Some(property) if matches!(property.str_at(&["type"]), "array" | "object") => {
                let at = items_path.child("properties").key(name).child("type");
                let text = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.push(FieldError::invalid(&at, items.str_at(&["type"]), text));
            }
            Some(_) => {}
            None => {
                let text = "entries must all be names of item properties";
                errors.push(FieldError::invalid(&keys_path, shown(), text));
            }
        }
        if keys[..i].contains(key) {
            errors.push(FieldError::invalid(&keys_path, shown(), "must not contain duplicate entries"));
        }
    }
}

fn items_of_maps_and_sets(
    keys: &[Value],
    items: &Value,
    list_type: &str,
    path: &FieldPath,
    errors: &mut Vec<FieldError>,
) {
    let items_path = path.child("items");
    if flag(items, "nullable") {
        let text = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(FieldError::forbidden(&items_path.child("nullable"), text));
    }
    if list_type != "map" {
        return;
    }
    for key in keys {
        let name = key.as_str().unwrap_or_default();
        let Some(property) = items.at(&["properties", name]) else { continue };
        let at = items_path.child("properties").key(name);
        if !items.array_at(&["required"]).contains(key) && property.get("default").is_none_or(Value::is_null) {
            let text =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(&at.child("default"), text));
        }
        if flag(property, "nullable") {
            let text = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(&at.child("nullable"), text));
        }
    }
}

fn has_newlines(text: &str) -> bool {
    text.contains(['\n', '\r'])
}

/// The members of rules, apart from their expressions.
fn rules(schema: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    for (i, rule) in schema.array_at(&["x-kubernetes-validations"]).iter().enumerate() {
        let at = |member: &str| path.child("x-kubernetes-validations").index(i).child(member);
        let text = |member: &str| rule.str_at(&[member]);
        let (message, trimmed) = (text("message"), text("message").trim());
        if text("rule").trim().is_empty() {
            errors.push(FieldError::required(&at("rule"), "rule is not specified"));
        } else if !message.is_empty() && trimmed.is_empty() {
            errors.push(FieldError::invalid(&at("message"), message, "must be non-empty if specified"));
        } else if has_newlines(trimmed) {
            errors.push(FieldError::invalid(&at("message"), message, "must not contain line breaks"));
        } else if has_newlines(text("rule").trim()) && trimmed.is_empty() {
            let text = "message must be specified if rule contains line breaks";
            errors.push(FieldError::required(&at("message"), text));
        }
        if !text("messageExpression").is_empty() && text("messageExpression").trim().is_empty() {
            let text = "messageExpression must be non-empty if specified";
            errors.push(FieldError::required(&at("messageExpression"), text));
        }
        if let Some(reason) = rule["reason"].as_str().filter(|r| !REASONS.contains(r)) {
            errors.push(FieldError::not_supported(&at("reason"), reason, &REASONS));
        }
        let field = text("fieldPath");
        if !field.is_empty() && field.trim().is_empty() {
            errors.push(FieldError::invalid(&at("fieldPath"), field, "must be non-empty if specified"));
        }
        if has_newlines(field) {
            errors.push(FieldError::invalid(&at("fieldPath"), field, "must not contain line breaks"));
        }
        if !field.is_empty() && field_of_path(schema, field, true).is_err() {
            errors.push(FieldError::invalid(&at("fieldPath"), field, "must be a valid path"));
        }
    }
}

/// The schema that a path such as `.spec.a['b c']` leads to, or what is wrong with the path.
///
/// Source: `cel.ValidFieldPath`.
pub fn field_of_path<'s>(schema: &'s Value, path: &str, brackets: bool) -> Result<(String, &'s Value), String> {
    let mut node = schema;
    let shown = walk_path(path, brackets, |name| {
        if node["properties"].is_object() {
            node = node.at(&["properties", name])?;
            Some(false)
        } else {
            node = child(node, "additionalProperties")?;
            Some(true)
        }
    })?;
    Ok((shown, node))
}

/// Takes a path apart. `step` goes to the member of a name and says whether it is one of a map; `None`: there is none.
/// Returns the path as messages show it.
pub fn walk_path(path: &str, brackets: bool, mut step: impl FnMut(&str) -> Option<bool>) -> Result<String, String> {
    let mut rest = path;
    let mut shown = String::new();
    let mut go = |name: &str| -> Result<(), String> {
        match step(name) {
            None => return Err("does not refer to a valid field".to_owned()),
            Some(true) => shown.push_str(&format!("[{name}]")),
            Some(false) => {
                if !shown.is_empty() {
                    shown.push('.');
                }
                shown.push_str(name);
            }
        }
        Ok(())
    };
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            if after.is_empty() {
                return Err("unexpected end of JSON path".to_owned());
            }
            let end = match after.find(['.', '[', ']']) {
                // A delimiter in place of a name is taken for the name.
                Some(0) => 1,
                Some(end) => end,
                None => after.len(),
            };
            go(&after[..end])?;
            rest = &after[end..];
        } else if let Some(after) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".to_owned());
            }
            let quoted = after.strip_prefix('\'').and_then(|text| {
                let mut previous = '\'';
                let end = text.char_indices().find_map(|(i, c)| {
                    let ends = c == '\'' && previous != '\\';
                    previous = c;
                    ends.then_some(i)
                })?;
                Some((&text[..end], &text[end + 1..]))
            });
            let Some((name, after_name)) = quoted else {
                if after.is_empty() {
                    return Err("unexpected end of JSON path".to_owned());
                }
                let end = after.find(['.', '[', ']']).unwrap_or(after.len()).max(1);
                let token = after.get(..end).unwrap_or(after);
                return Err(format!("expected single quoted string but got {token}"));
            };
            go(&name.replace("\\'", "'").replace("\\\\", "\\"))?;
            rest = match after_name.strip_prefix(']') {
                Some(rest) => rest,
                None if after_name.is_empty() => return Err("unexpected end of JSON path".to_owned()),
                None => return Err(format!("expected ] but got {after_name}")),
            };
        } else {
            let end = rest.find(['.', '[', ']']).unwrap_or(rest.len());
            return Err(format!("expected [ or . but got: {}", &rest[..end.max(1)]));
        }
    }
    Ok(shown)
}

/// Defaults must be what the schema allows.
fn validate_defaults(node: &Node, path: &FieldPath, root: bool, inside_meta: bool, errors: &mut Vec<FieldError>) {
    let inside_meta = inside_meta && !node.embedded_resource;
    if let Some(default) = &node.default {
        let at = path.child("default");
        let mut value = default.clone();
        let mut removed = Vec::new();
        prune::prune(&mut value, node, false, "", &mut removed);
        // What is unknown inside of metadata goes when the default is used.
        if !removed.is_empty() && !inside_meta {
            errors.push(FieldError::invalid(&at, BadValue::from(default.clone()), "must not have unknown fields"));
        }
        let mut problems = Vec::new();
        validate::validate(default, None, node, "", &mut problems);
        validate::validate_embedded(default, node, "", &mut problems);
        if root && !node.embedded_resource {
            validate::embedded(default, "", &mut problems);
        }
        if problems.is_empty() {
            let rules = Rules::compile(node, "", &mut Vec::new());
            rules.validate(node, default, Some(default), Ratchet::Off, &mut problems);
            if problems.is_empty() {
                rules.validate(node, default, None, Ratchet::Off, &mut problems);
            }
        }
        errors.extend(problems.into_iter().map(|mut e| {
            e.field = match e.field.as_str() {
                "<nil>" | "" => at.to_string(),
                below if below.starts_with('[') => format!("{at}{below}"),
                below => format!("{at}.{below}"),
            };
            e
        }));
    }
    if let Some(items) = &node.items {
        validate_defaults(items, &path.child("items"), false, inside_meta, errors);
    }
    for (name, child) in &node.properties {
        let inside_meta = inside_meta || (node.embedded_resource && META.contains(&&**name));
        validate_defaults(child, &path.child("properties").key(name), false, inside_meta, errors);
    }
    if let Additional::Schema(child) = &node.additional {
        validate_defaults(child, &path.child("additionalProperties"), false, inside_meta, errors);
    }
}

fn compile_rules(node: &Node, path: &FieldPath, unchanged: bool, errors: &mut Vec<FieldError>) {
    let mut problems = Vec::new();
    Rules::compile(node, &path.to_string(), &mut problems);
    for problem in problems {
        let at = match problem.path.as_str() {
            "" => path.clone(),
            below => FieldPath::new(&format!("{path}.{below}")),
        };
        match problem.problem {
            Problem::TooCostly(_) if unchanged => {}
            Problem::TooCostly(text) | Problem::TotalTooHigh(text) => errors.push(FieldError::forbidden(&at, text)),
            Problem::Invalid(BadValue::Omitted, text) => errors.push(FieldError::internal(&at, text)),
            Problem::Invalid(value, text) => errors.push(FieldError::invalid(&at, value, text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn keywords_and_extensions_are_checked_in_upstreams_words() {
        let spec = |spec: Value| json!({"type": "object", "properties": {"spec": spec}});
        for (schema, want) in [
            (
                spec(json!({"type": "string", "uniqueItems": true})),
                "s.properties[spec].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            ),
            (
                spec(json!({"type": "text"})),
                "s.properties[spec].type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
            ),
            (
                spec(json!({"type": "object", "definitions": {"a": {"type": "string"}}})),
                "s.properties[spec].definitions: Forbidden: definitions is not supported",
            ),
            (
                spec(json!({"type": "object", "$ref": "#/x"})),
                "s.properties[spec].$ref: Forbidden: $ref is not supported",
            ),
            (
                spec(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false})),
                "s.properties[spec].x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined",
            ),
            (
                spec(json!({"type": "string", "x-kubernetes-map-type": "atomic"})),
                "s.properties[spec].type: Invalid value: \"string\": must be object if x-kubernetes-map-type is specified",
            ),
            (
                spec(json!({"type": "object", "x-kubernetes-map-type": "other"})),
                "s.properties[spec].x-kubernetes-map-type: Unsupported value: \"other\": supported values: \"atomic\", \"granular\"",
            ),
            (
                spec(json!({"type": "string", "x-kubernetes-list-type": "set"})),
                "s.properties[spec].type: Invalid value: \"string\": must be array if x-kubernetes-list-type is specified",
            ),
            (
                spec(json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"})),
                "s.properties[spec].items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set",
            ),
            (
                spec(json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "bag"})),
                "s.properties[spec].x-kubernetes-list-type: Unsupported value: \"bag\": supported values: \"atomic\", \"set\", \"map\"",
            ),
            (
                spec(json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-map-keys": ["a"]})),
                "s.properties[spec].x-kubernetes-list-type: Required value: must be map if x-kubernetes-list-map-keys is non-empty",
            ),
            (
                spec(
                    json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"]}),
                ),
                "s.properties[spec].items.type: Invalid value: \"string\": must be object if parent array's x-kubernetes-list-type is map",
            ),
            (
                spec(
                    json!({"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"]}),
                ),
                "s.properties[spec].items.properties[a].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ),
            (
                spec(
                    json!({"type": "array", "items": {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "b"]}),
                ),
                "s.properties[spec].x-kubernetes-list-map-keys: Invalid value: [\"a\",\"b\"]: entries must all be names of item properties",
            ),
            (
                spec(
                    json!({"type": "array", "items": {"type": "string", "nullable": true}, "x-kubernetes-list-type": "set"}),
                ),
                "s.properties[spec].items.nullable: Forbidden: cannot be nullable when x-kubernetes-list-type is set",
            ),
            (
                json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "default": "x"}}}}}),
                "s.properties[metadata].properties[name].default: Forbidden: must not be set in top-level metadata",
            ),
            (
                spec(json!({"type": "string", "default": 1})),
                "s.properties[spec].default: Invalid value: \"integer\":  in body must be of type string: \"integer\"",
            ),
            (
                spec(json!({"type": "object", "default": {"a": 1}})),
                "s.properties[spec].default: Invalid value: {\"a\":1}: must not have unknown fields",
            ),
            (
                spec(json!({"type": "string", "x-kubernetes-validations": [{"rule": " "}]})),
                "s.properties[spec].x-kubernetes-validations[0].rule: Required value: rule is not specified",
            ),
            (
                spec(json!({"type": "string", "x-kubernetes-validations": [{"rule": "true", "message": "a\nb"}]})),
                "s.properties[spec].x-kubernetes-validations[0].message: Invalid value: \"a\\nb\": must not contain line breaks",
            ),
            (
                spec(json!({"type": "string", "x-kubernetes-validations": [{"rule": "true\n||true"}]})),
                "s.properties[spec].x-kubernetes-validations[0].message: Required value: message must be specified if rule contains line breaks",
            ),
            (
                spec(json!({"type": "string", "x-kubernetes-validations": [{"rule": "true", "reason": "Odd"}]})),
                "s.properties[spec].x-kubernetes-validations[0].reason: Unsupported value: \"Odd\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\"",
            ),
            (
                spec(json!({"type": "string", "x-kubernetes-validations": [{"rule": "true", "fieldPath": ".a"}]})),
                "s.properties[spec].x-kubernetes-validations[0].fieldPath: Invalid value: \".a\": must be a valid path",
            ),
            (
                spec(
                    json!({"type": "string", "x-kubernetes-validations": [{"rule": "self == 'x'", "optionalOldSelf": true}]}),
                ),
                "s.properties[spec].x-kubernetes-validations[0].optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule",
            ),
            (
                spec(
                    json!({"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}),
                ),
                "s.properties[spec].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[spec]",
            ),
            (
                spec(
                    json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [{"rule": "self.all(x, self.all(y, self.all(z, x == y && y == z)))"}]}),
                ),
                "s.properties[spec].x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
            ),
        ] {
            let mut errors = Vec::new();
            validate_schema(&schema, &FieldPath::new("s"), false, false, &mut errors);
            let got: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert!(got.iter().any(|e| e == want), "{schema}\nwant {want}\ngot {got:#?}");
        }
    }

    #[test]
    fn paths_lead_to_fields() {
        let schema = json!({"properties": {"spec": {"properties": {"a b": {"additionalProperties": {"type": "string"}}, "c": {}}}}});
        for (path, want) in [
            (".spec.c", Ok("spec.c")),
            (".spec['a b'].x", Ok("spec.a b[x]")),
            ("['spec']['c']", Ok("spec.c")),
            ("spec", Err("expected [ or . but got: spec")),
            (".spec.d", Err("does not refer to a valid field")),
            (".spec.c.d", Err("does not refer to a valid field")),
            (".spec.", Err("unexpected end of JSON path")),
            (".spec[0]", Err("expected single quoted string but got 0")),
        ] {
            let got = field_of_path(&schema, path, true).map(|(shown, _)| shown);
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned), "{path}");
        }
        assert_eq!(field_of_path(&schema, "['spec']", false).unwrap_err(), "array notation is not allowed");
    }
}
