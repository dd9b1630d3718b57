//! The JSON Schema of `vcluster.yaml`, for editors: `alcove config schema`.

use serde_json::{Map, Value, json};

use crate::check::{Built, built};
use crate::table::{Key, Kind, known_keys};

/// JSON Schema (draft 2020-12) of all known keys. What is not built says so in its description.
pub fn json_schema() -> Value {
    let mut schema = object(known_keys(), "");
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("vcluster.yaml");
    schema
}

fn object(key: &Key, path: &str) -> Value {
    let properties: Map<String, Value> = key
        .children
        .iter()
        .map(|child| {
            let path = if path.is_empty() { child.name.to_string() } else { format!("{path}.{}", child.name) };
            (child.name.to_string(), property(child, &path))
        })
        .collect();
    json!({"type": "object", "properties": properties, "additionalProperties": false})
}

fn property(key: &Key, path: &str) -> Value {
    let mut schema = match key.kind {
        Kind::Object => return object(key, path),
        Kind::ListOfObjects => json!({"type": "array", "items": object(key, path)}),
        Kind::MapOfObjects => json!({"type": "object", "additionalProperties": object(key, path)}),
        Kind::List(of) => json!({"type": "array", "items": scalar(of)}),
        Kind::MapOf(of) => json!({"type": "object", "additionalProperties": scalar(of)}),
        Kind::String => scalar("str"),
        Kind::Bool => scalar("bool"),
        Kind::Int => scalar("int"),
        Kind::Number => scalar("num"),
        Kind::FreeObject => scalar("obj"),
        Kind::Any => scalar("any"),
        Kind::Switch => json!({"oneOf": [{"type": "boolean"}, {"enum": ["auto", "true", "false"]}]}),
        Kind::Image => json!({"oneOf": [{"type": "string"}, {
            "type": "object",
            "properties": {"registry": scalar("str"), "repository": scalar("str"), "tag": scalar("str")},
            "additionalProperties": false,
        }]}),
    };
    if let Some(default) = &key.default {
        schema["default"] = default.clone();
    }
    let note = match built(path) {
        Built::Everywhere => return schema,
        Built::Hub => "Placement hub only.".to_string(),
        Built::Dedicated => "Placement dedicated only.".to_string(),
        Built::NothingToDo(note) => format!("Accepted without effect: {note}."),
        Built::Removed(note) => format!("Refused: {note}."),
        Built::No => "Not supported yet.".to_string(),
    };
    schema["description"] = json!(note);
    schema
}

fn scalar(word: &str) -> Value {
    match word {
        "str" => json!({"type": "string"}),
        "bool" => json!({"type": "boolean"}),
        "int" => json!({"type": "integer"}),
        "num" => json!({"type": "number"}),
        "obj" => json!({"type": "object"}),
        _ => json!({}),
    }
}
