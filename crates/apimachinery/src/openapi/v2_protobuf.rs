//! The v2 document as `application/com.github.proto-openapi.spec.v2.v1.0+protobuf`: what client-go asks for.
//!
//! Encodes the JSON document straight into the messages of gnostic's `OpenAPIv2.proto`. Only what our own documents
//! contain has a place; other members of a document are left out.

use crate::json::{Map, Number, Value};
use crate::protobuf::wire::{bytes_field, double_field, message_field, string_field, varint_field};

type Out = Vec<u8>;

/// Encodes a v2 document.
pub fn v2_to_protobuf(document: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    string(&mut out, 1, &document["swagger"]);
    message_field(&mut out, 2, |o| {
        string(o, 1, &document["info"]["title"]);
        string(o, 2, &document["info"]["version"]);
    });
    message_field(&mut out, 8, |o| {
        for (path, item) in members(&document["paths"]) {
            named(o, 2, path, |o| path_item(o, item));
        }
    });
    message_field(&mut out, 9, |o| {
        for (name, schema) in members(&document["definitions"]) {
            named(o, 1, name, |o| self::schema(o, schema));
        }
    });
    for requirement in document.array_at(&["security"]) {
        message_field(&mut out, 12, |o| {
            for (name, scopes) in members(requirement) {
                named(o, 1, name, |o| strings(o, 1, scopes));
            }
        });
    }
    message_field(&mut out, 13, |o| {
        for (name, definition) in members(&document["securityDefinitions"]) {
            named(o, 1, name, |o| {
                message_field(o, 2, |o| {
                    string(o, 1, &definition["type"]);
                    string(o, 2, &definition["name"]);
                    string(o, 3, &definition["in"]);
                    string(o, 4, &definition["description"]);
                });
            });
        }
    });
    extensions(&mut out, 16, document);
    out
}

fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter).map(|(k, v)| (k.as_str(), v))
}

fn named(out: &mut Out, number: u32, name: &str, value: impl FnOnce(&mut Out)) {
    message_field(out, number, |o| {
        string_field(o, 1, name);
        message_field(o, 2, value);
    });
}

fn string(out: &mut Out, number: u32, value: &Value) {
    if let Some(s) = value.as_str().filter(|s| !s.is_empty()) {
        string_field(out, number, s);
    }
}

fn strings(out: &mut Out, number: u32, value: &Value) {
    for s in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
        string_field(out, number, s);
    }
}

fn boolean(out: &mut Out, number: u32, value: &Value) {
    if value == &true {
        varint_field(out, number, 1);
    }
}

/// `Any`: YAML text, of which JSON is a subset.
fn any(out: &mut Out, value: &Value) {
    bytes_field(out, 2, &value.to_vec());
}

fn extensions(out: &mut Out, number: u32, value: &Value) {
    for (name, v) in members(value).filter(|(k, _)| k.starts_with("x-")) {
        named(out, number, name, |o| any(o, v));
    }
}

fn path_item(out: &mut Out, item: &Value) {
    for (method, number) in
        [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("options", 6), ("head", 7), ("patch", 8)]
    {
        if let Some(op) = item.get(method) {
            message_field(out, number, |o| operation(o, op));
        }
    }
    for p in item.array_at(&["parameters"]) {
        message_field(out, 9, |o| message_field(o, 1, |o| parameter(o, p)));
    }
    extensions(out, 10, item);
}

fn operation(out: &mut Out, op: &Value) {
    strings(out, 1, &op["tags"]);
    string(out, 3, &op["description"]);
    string(out, 5, &op["operationId"]);
    strings(out, 6, &op["produces"]);
    strings(out, 7, &op["consumes"]);
    for p in op.array_at(&["parameters"]) {
        message_field(out, 8, |o| message_field(o, 1, |o| parameter(o, p)));
    }
    message_field(out, 9, |o| {
        for (code, response) in members(&op["responses"]) {
            named(o, 1, code, |o| {
                message_field(o, 1, |o| {
                    string(o, 1, &response["description"]);
                    if let Some(s) = response.get("schema") {
                        message_field(o, 2, |o| message_field(o, 1, |o| schema(o, s)));
                    }
                });
            });
        }
    });
    strings(out, 10, &op["schemes"]);
    extensions(out, 13, op);
}

fn parameter(out: &mut Out, p: &Value) {
    match p.str_at(&["in"]) {
        "body" => message_field(out, 1, |o| {
            string(o, 1, &p["description"]);
            string(o, 2, &p["name"]);
            string(o, 3, &p["in"]);
            boolean(o, 4, &p["required"]);
            message_field(o, 5, |o| schema(o, &p["schema"]));
        }),
        place => {
            // Path parameters have no `allowEmptyValue` and so other numbers from there on.
            let (oneof, shift) = if place == "path" { (4, 0) } else { (3, 1) };
            message_field(out, 2, |o| {
                message_field(o, oneof, |o| {
                    boolean(o, 1, &p["required"]);
                    string(o, 2, &p["in"]);
                    string(o, 3, &p["description"]);
                    string(o, 4, &p["name"]);
                    string(o, 5 + shift, &p["type"]);
                    string(o, 6 + shift, &p["format"]);
                    boolean(o, 19 + shift, &p["uniqueItems"]);
                });
            });
        }
    }
}

fn schema(out: &mut Out, s: &Value) {
    string(out, 1, &s["$ref"]);
    string(out, 2, &s["format"]);
    string(out, 3, &s["title"]);
    string(out, 4, &s["description"]);
    if let Some(default) = s.get("default") {
        message_field(out, 5, |o| any(o, default));
    }
    for (name, number) in [("multipleOf", 6), ("maximum", 7), ("minimum", 9)] {
        if let Some(f) = s[name].as_f64() {
            double_field(out, number, f);
        }
    }
    boolean(out, 8, &s["exclusiveMaximum"]);
    boolean(out, 10, &s["exclusiveMinimum"]);
    for (name, number) in [
        ("maxLength", 11),
        ("minLength", 12),
        ("maxItems", 14),
        ("minItems", 15),
        ("maxProperties", 17),
        ("minProperties", 18),
    ] {
        if let Value::Number(Number::Int(i)) = s[name] {
            varint_field(out, number, i as u64);
        }
    }
    string(out, 13, &s["pattern"]);
    boolean(out, 16, &s["uniqueItems"]);
    strings(out, 19, &s["required"]);
    for v in s.array_at(&["enum"]) {
        message_field(out, 20, |o| any(o, v));
    }
    match s.get("additionalProperties") {
        Some(Value::Bool(b)) => message_field(out, 21, |o| varint_field(o, 2, u64::from(*b))),
        Some(v) if v.is_object() => message_field(out, 21, |o| message_field(o, 1, |o| schema(o, v))),
        _ => {}
    }
    match s.get("type") {
        Some(t) if t.is_string() => message_field(out, 22, |o| string(o, 1, t)),
        Some(t) if t.is_array() => message_field(out, 22, |o| strings(o, 1, t)),
        _ => {}
    }
    if let Some(items) = s.get("items") {
        message_field(out, 23, |o| message_field(o, 1, |o| schema(o, items)));
    }
    for v in s.array_at(&["allOf"]) {
        message_field(out, 24, |o| schema(o, v));
    }
    if s.get("properties").is_some() {
        message_field(out, 25, |o| {
            for (name, v) in members(&s["properties"]) {
                named(o, 1, name, |o| schema(o, v));
            }
        });
    }
    extensions(out, 31, s);
}
