//! The form in which a configuration is kept on a host: only what differs from the defaults, and always the same bytes for
//! the same configuration, whoever writes it (the CLI, or Helm with `charts/alcove`).
//!
//! The text is JSON as Go's encoder indents it, which is YAML too: two spaces, sorted keys, `<`, `>` and `&` escaped.

use serde_json::{Map, Number, Value};

/// What `values` has other than `defaults`; a default that is missing in `values` becomes `null`.
pub(crate) fn difference(values: &Value, defaults: &Value) -> Value {
    let (Value::Object(values), Value::Object(defaults)) = (values, defaults) else { return values.clone() };
    let mut found = Map::new();
    for (key, value) in values {
        match (value, defaults.get(key)) {
            (value, Some(default)) if canonical(value) == canonical(default) => {}
            (Value::Object(_), Some(default @ Value::Object(_))) => {
                found.insert(key.clone(), difference(value, default));
            }
            _ => {
                found.insert(key.clone(), value.clone());
            }
        }
    }
    for key in defaults.keys().filter(|key| !values.contains_key(*key)) {
        found.insert(key.clone(), Value::Null);
    }
    Value::Object(found)
}

/// One line, for hashing.
pub fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write(value, None, &mut text);
    text
}

/// Indented, for people.
pub fn pretty(value: &Value) -> String {
    let mut text = String::new();
    write(value, Some(0), &mut text);
    text
}

fn write(value: &Value, indent: Option<usize>, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&number_text(number)),
        Value::String(text) => string(text, out),
        Value::Array(items) => {
            list(items.iter(), indent, ['[', ']'], out, write);
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            list(entries.into_iter(), indent, ['{', '}'], out, |(key, value), indent, out| {
                string(key, out);
                out.push_str(if indent.is_some() { ": " } else { ":" });
                write(value, indent, out);
            });
        }
    }
}

fn list<T>(
    items: impl ExactSizeIterator<Item = T>,
    indent: Option<usize>,
    [open, close]: [char; 2],
    out: &mut String,
    mut one: impl FnMut(T, Option<usize>, &mut String),
) {
    let inner = indent.map(|depth| depth + 1);
    let line = |depth: Option<usize>, out: &mut String| {
        if let Some(depth) = depth {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        }
    };
    let empty = items.len() == 0;
    out.push(open);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(',');
        }
        line(inner, out);
        one(item, inner, out);
    }
    if !empty {
        line(indent, out);
    }
    out.push(close);
}

/// A number as Go writes it: Helm reads every number as a float; whole ones are written without a point.
pub fn number_text(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e21 => format!("{float:.0}"),
        _ => number.to_string(),
    }
}

fn string(text: &str, out: &mut String) {
    use std::fmt::Write;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_differs_is_kept() {
        let defaults = json!({"a": 1, "b": {"c": true, "d": "x"}, "e": {"f": []}});
        for (values, want) in [
            (json!({"a": 1, "b": {"c": true, "d": "x"}, "e": {"f": []}}), json!({})),
            (json!({"a": 1.0, "b": {"c": true, "d": "y"}, "e": {"f": []}}), json!({"b": {"d": "y"}})),
            (json!({"a": 1, "b": {"c": true}, "e": {"f": [1]}}), json!({"b": {"d": null}, "e": {"f": [1]}})),
            (json!({"b": "text", "e": {"f": []}, "g": {}}), json!({"a": null, "b": "text", "g": {}})),
        ] {
            assert_eq!(difference(&values, &defaults), want, "{values}");
        }
    }

    #[test]
    fn the_text_is_that_of_go() {
        let value = json!({"b": [1, 2.0, {"x": {}}], "a": "<&>\n\u{1}\u{e9}", "c": []});
        assert_eq!(
            canonical(&value),
            "{\"a\":\"\\u003c\\u0026\\u003e\\n\\u0001\u{e9}\",\"b\":[1,2,{\"x\":{}}],\"c\":[]}"
        );
        assert_eq!(
            pretty(&value),
            "{\n  \"a\": \"\\u003c\\u0026\\u003e\\n\\u0001\u{e9}\",\n  \"b\": [\n    1,\n    2,\n    {\n      \"x\": {}\n    }\n  ],\n  \"c\": []\n}"
        );
        assert_eq!(pretty(&json!({})), "{}");
    }
}
