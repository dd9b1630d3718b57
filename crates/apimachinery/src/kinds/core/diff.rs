//! A readable difference of two trees, for messages about changes that are not allowed.

use crate::json::Value;

/// Lists each path whose value differs, removed (`-`) and added (`+`) values under it.
pub(crate) fn text(old: &Value, new: &Value) -> String {
    let mut out = String::new();
    walk("", old, new, &mut out);
    out
}

fn walk(path: &str, old: &Value, new: &Value, out: &mut String) {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(k))) {
                let (x, y) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
                let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
                walk(&path, x, y, out);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for i in 0..a.len().max(b.len()) {
                let (x, y) = (a.get(i).unwrap_or(&Value::Null), b.get(i).unwrap_or(&Value::Null));
                walk(&format!("{path}[{i}]"), x, y, out);
            }
        }
        (a, b) if crate::kinds::access::semantic_equal(a, b) => {}
        (a, b) => {
            out.push_str(&format!("@@ {path} @@\n"));
            if !a.is_null() {
                out.push_str(&format!("-{a}\n"));
            }
            if !b.is_null() {
                out.push_str(&format!("+{b}\n"));
            }
        }
    }
}
