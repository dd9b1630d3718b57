//! Comparison of answers: placeholders, same-as, exact and subset.

use std::collections::HashMap;

use regex::Regex;
use serde_json::{Map, Value};

/// What placeholders with a label were bound to so far in a case.
#[derive(Clone, Default)]
pub struct Bindings {
    values: HashMap<(String, String), String>,
}

/// The shape of each kind of placeholder.
fn shape(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "uid" => "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "rv" | "listrv" => "[1-9][0-9]*",
        "time" => r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
        "microtime" => r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z",
        "suffix" => "[bcdfghjklmnpqrstvwxz2456789]{5}",
        "jwt" => r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+",
        "clusterip" => r"10\.96\.\d{1,3}\.\d{1,3}",
        "nodeport" => r"3[0-2]\d{3}",
        "continue" => "[A-Za-z0-9_=-]+",
        "age" => r"(?:<unknown>|(?:\d+[smhdy])+)",
        "int" => r"\d+",
        "hex" => "[0-9a-f]+",
        "any" => "(?s:.*)",
        _ => return None,
    })
}

struct Placeholder {
    kind: String,
    label: String,
}

/// Splits a text into literals and placeholders.
fn parse(text: &str) -> (Vec<String>, Vec<Placeholder>) {
    let mut literals = vec![String::new()];
    let mut placeholders = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("<<") {
        let after = &rest[start + 2..];
        let parsed = after.find(">>").and_then(|end| {
            let (kind, label) = after[..end].split_once(':').unwrap_or((&after[..end], ""));
            shape(kind).map(|_| (end, kind.to_owned(), label.to_owned()))
        });
        let literal = literals.last_mut().expect("there is always one");
        match parsed {
            Some((end, kind, label)) => {
                literal.push_str(&rest[..start]);
                placeholders.push(Placeholder { kind, label });
                literals.push(String::new());
                rest = &after[end + 2..];
            }
            None => {
                literal.push_str(&rest[..start + 2]);
                rest = after;
            }
        }
    }
    literals.last_mut().expect("there is always one").push_str(rest);
    (literals, placeholders)
}

impl Bindings {
    fn bind(&mut self, placeholder: &Placeholder, actual: &str) -> Result<(), String> {
        if placeholder.label.is_empty() {
            return Ok(());
        }
        let key = (placeholder.kind.clone(), placeholder.label.clone());
        let shown = format!("<<{}:{}>>", key.0, key.1);
        if let Some(bound) = self.values.get(&key) {
            return if bound == actual { Ok(()) } else { Err(format!("must be the same as {shown} = {bound}")) };
        }
        if matches!(key.0.as_str(), "uid" | "rv" | "clusterip" | "nodeport")
            && let Some(((kind, label), _)) = self.values.iter().find(|((k, _), v)| *k == key.0 && *v == actual)
        {
            return Err(format!("must differ from <<{kind}:{label}>> = {actual}"));
        }
        self.values.insert(key, actual.to_owned());
        Ok(())
    }

    /// Matches a text. The error says why not, beyond "differs".
    fn text(&mut self, expected: &str, actual: &str) -> Result<(), Option<String>> {
        if !expected.contains("<<") {
            return if expected == actual { Ok(()) } else { Err(None) };
        }
        let (literals, placeholders) = parse(expected);
        let mut pattern = String::from("^");
        for (i, literal) in literals.iter().enumerate() {
            pattern.push_str(&regex::escape(literal));
            if let Some(placeholder) = placeholders.get(i) {
                pattern.push_str(&format!("({})", shape(&placeholder.kind).unwrap_or(".*")));
            }
        }
        pattern.push('$');
        let regex = Regex::new(&pattern).map_err(|e| Some(e.to_string()))?;
        let captures = regex.captures(actual).ok_or(None)?;
        for (i, placeholder) in placeholders.iter().enumerate() {
            let value = captures.get(i + 1).map_or("", |m| m.as_str());
            self.bind(placeholder, value).map_err(Some)?;
        }
        Ok(())
    }

    /// Puts bound values into a key.
    fn fill(&self, key: &str) -> String {
        if !key.contains("<<") {
            return key.to_owned();
        }
        let (literals, placeholders) = parse(key);
        let mut out = String::new();
        for (i, literal) in literals.iter().enumerate() {
            out.push_str(literal);
            if let Some(p) = placeholders.get(i) {
                let bound = self.values.get(&(p.kind.clone(), p.label.clone()));
                out.push_str(bound.map_or("<<unbound>>", String::as_str));
            }
        }
        out
    }
}

fn show(value: Option<&Value>) -> String {
    match value {
        None => "(absent)".to_owned(),
        Some(value) => {
            let text = value.to_string();
            match text.char_indices().nth(1200) {
                Some((at, _)) => format!("{}…", &text[..at]),
                None => text,
            }
        }
    }
}

fn differs(path: &str, expected: Option<&Value>, actual: Option<&Value>) -> String {
    format!("    {path}\n      expected {}\n      actual   {}\n", show(expected), show(actual))
}

/// Compares texts, `path` says which.
pub fn compare_text(bindings: &mut Bindings, expected: &str, actual: &str, path: &str, out: &mut String) {
    match bindings.text(expected, actual) {
        Ok(()) => {}
        Err(None) => out.push_str(&differs(path, Some(&expected.into()), Some(&actual.into()))),
        Err(Some(why)) => out.push_str(&format!("    {path}: {why}\n")),
    }
}

fn number_equal(a: &serde_json::Number, b: &serde_json::Number) -> bool {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a == b,
        _ => a.as_f64() == b.as_f64(),
    }
}

/// Compares `actual` with `expected`, appending differences to `out`.
pub fn compare(
    bindings: &mut Bindings,
    expected: &Value,
    actual: Option<&Value>,
    subset: bool,
    path: &str,
    out: &mut String,
) {
    let Some(actual) = actual else {
        out.push_str(&differs(path, Some(expected), None));
        return;
    };
    match (expected, actual) {
        (Value::String(e), _) if e == "<<any>>" => {}
        (Value::String(e), Value::String(a)) => compare_text(bindings, e, a, path, out),
        (Value::String(e), Value::Number(n)) if e.starts_with("<<nodeport") || e.starts_with("<<int") => {
            compare_text(bindings, e, &n.to_string(), path, out);
        }
        (Value::Number(e), Value::Number(a)) if number_equal(e, a) => {}
        (Value::Object(e), Value::Object(a)) => compare_objects(bindings, e, a, subset, path, out),
        (Value::Array(e), Value::Array(a)) if subset => subset_array(bindings, e, a, path, out),
        (Value::Array(e), Value::Array(a)) => {
            if path.ends_with(".managedFields") {
                let (e, a) = (sorted_managers(e), sorted_managers(a));
                return exact_array(bindings, &e, &a, path, out);
            }
            exact_array(bindings, e, a, path, out);
        }
        (e, a) if e == a => {}
        (e, a) => out.push_str(&differs(path, Some(e), Some(a))),
    }
}

fn sorted_managers(entries: &[Value]) -> Vec<Value> {
    let mut entries = entries.to_vec();
    entries.sort_by_key(|e| {
        ["operation", "manager", "apiVersion", "subresource"].map(|k| e[k].as_str().unwrap_or("").to_owned())
    });
    entries
}

fn compare_objects(
    bindings: &mut Bindings,
    expected: &Map<String, Value>,
    actual: &Map<String, Value>,
    subset: bool,
    path: &str,
    out: &mut String,
) {
    let mut seen = Vec::with_capacity(expected.len());
    for (key, value) in expected {
        let key = bindings.fill(key);
        compare(bindings, value, actual.get(&key), subset, &format!("{path}.{key}"), out);
        seen.push(key);
    }
    if !subset {
        for (key, value) in actual.iter().filter(|(k, _)| !seen.contains(k)) {
            out.push_str(&differs(&format!("{path}.{key}"), None, Some(value)));
        }
    }
}

fn exact_array(bindings: &mut Bindings, expected: &[Value], actual: &[Value], path: &str, out: &mut String) {
    for i in 0..expected.len().max(actual.len()) {
        let path = format!("{path}[{i}]");
        match (expected.get(i), actual.get(i)) {
            (Some(e), a) => compare(bindings, e, a, false, &path, out),
            (None, a) => out.push_str(&differs(&path, None, a)),
        }
    }
}

fn subset_array(bindings: &mut Bindings, expected: &[Value], actual: &[Value], path: &str, out: &mut String) {
    let mut taken = vec![false; actual.len()];
    for (i, e) in expected.iter().enumerate() {
        let mut nearest: Option<String> = None;
        let found = actual.iter().enumerate().any(|(j, a)| {
            if taken[j] {
                return false;
            }
            let mut trial = bindings.clone();
            let mut differences = String::new();
            compare(&mut trial, e, Some(a), true, &format!("{path}[{i}]"), &mut differences);
            if differences.is_empty() {
                taken[j] = true;
                *bindings = trial;
                return true;
            }
            if nearest.as_ref().is_none_or(|n| n.len() > differences.len()) {
                nearest = Some(differences);
            }
            false
        });
        if !found {
            out.push_str(&format!("    {path}[{i}]: no element matches {}\n", show(Some(e))));
            if let Some(nearest) = nearest.filter(|n| n.len() < 2000) {
                out.push_str(&format!("      the nearest differs:\n{nearest}"));
            }
        }
    }
}

/// Removes every `managedFields`.
pub fn strip_managed_fields(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("managedFields");
            map.values_mut().for_each(strip_managed_fields);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_managed_fields),
        _ => {}
    }
}

/// Removes what is not compared in a failure.
pub fn loosen_failure(expected: &mut Value, actual: &mut Value, loose_message: bool) {
    if expected["kind"] != "Status" || expected["status"] != "Failure" {
        return;
    }
    for value in [&mut *expected, &mut *actual] {
        let causes = value.pointer_mut("/details/causes").and_then(Value::as_array_mut);
        for cause in causes.into_iter().flatten() {
            if let Some(cause) = cause.as_object_mut() {
                cause.remove("message");
            }
        }
    }
    if loose_message && actual["message"].as_str().is_some_and(|m| !m.is_empty()) {
        for value in [expected, actual] {
            if let Some(map) = value.as_object_mut() {
                map.remove("message");
            }
        }
    }
}
