//! Simple JSON paths, and the Tables of custom resources made with them.
//!
//! Follows: `apiextensions-apiserver/pkg/registry/customresource/tableconvertor`.

use apimachinery::table;
use apimachinery::time::Timestamp;
use apimachinery::{Value, json};

/// A path such as `.spec.items[0].name`, `.status.conditions[?(@.type=="Ready")].status` or `.spec.list[*].x`.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Member(String),
    Index(i64),
    /// Elements from one index up to another; negative ones count from the end.
    Slice(i64, Option<i64>),
    All,
    /// Elements whose member at this path equals (or not) a literal.
    Where {
        path: Vec<String>,
        equal: bool,
        literal: Value,
    },
}

impl JsonPath {
    /// Reads a path; `None` when it is not one.
    pub fn parse(text: &str) -> Option<JsonPath> {
        let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        if !rest.starts_with(['.', '[']) {
            return None;
        }
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let mut name = String::new();
                let mut chars = after.char_indices();
                let mut end = after.len();
                while let Some((i, c)) = chars.next() {
                    match c {
                        '\\' => name.extend(chars.next().map(|(_, c)| c)),
                        '.' | '[' => {
                            end = i;
                            break;
                        }
                        c => name.push(c),
                    }
                }
                rest = &after[end..];
                match name.as_str() {
                    "" if rest.starts_with('[') => {}
                    "" => return None,
                    "*" => steps.push(Step::All),
                    _ => steps.push(Step::Member(name)),
                }
            } else {
                let after = rest.strip_prefix('[')?;
                let end = closing(after)?;
                steps.push(bracket(after[..end].trim())?);
                rest = &after[end + 1..];
            }
        }
        (!steps.is_empty()).then_some(JsonPath(steps))
    }

    /// All values at the path.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|v| step.of(v)).collect();
        }
        found
    }

    /// The first value at the path.
    pub fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.find(value).into_iter().next()
    }
}

/// Where the bracket that is open ends, quotes and parentheses aside.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn unquoted(text: &str) -> Option<&str> {
    ['\'', '"'].iter().find_map(|q| text.strip_prefix(*q)?.strip_suffix(*q))
}

/// A name without the backslashes that keep its characters plain.
fn unescaped(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

fn bracket(inner: &str) -> Option<Step> {
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(name) = unquoted(inner) {
        return Some(Step::Member(unescaped(name)));
    }
    if let Some((from, to)) = inner.split_once(':').filter(|_| !inner.starts_with('?')) {
        let index = |text: &str| match text.trim() {
            "" => Some(None),
            text => text.parse().ok().map(Some),
        };
        return Some(Step::Slice(index(from)?.unwrap_or(0), index(to)?));
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        let (left, right, equal) = match filter.split_once("==") {
            Some((l, r)) => (l, r, true),
            None => {
                let (l, r) = filter.split_once("!=")?;
                (l, r, false)
            }
        };
        let path: Vec<String> = left.trim().strip_prefix("@.")?.split('.').map(str::to_owned).collect();
        let right = right.trim();
        let literal = match unquoted(right) {
            Some(text) => text.into(),
            None => Value::from_slice(right.as_bytes()).ok()?,
        };
        return Some(Step::Where { path, equal, literal });
    }
    inner.parse().ok().map(Step::Index)
}

impl Step {
    fn of<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        match (self, value) {
            (Step::Member(name), Value::Object(map)) => map.get(name).into_iter().collect(),
            (Step::All, Value::Array(list)) => list.iter().collect(),
            (Step::All, Value::Object(map)) => map.values().collect(),
            (Step::Index(i), Value::Array(list)) => {
                let i = if *i < 0 { i + list.len() as i64 } else { *i };
                usize::try_from(i).ok().and_then(|i| list.get(i)).into_iter().collect()
            }
            (Step::Slice(from, to), Value::Array(list)) => {
                let length = list.len() as i64;
                let place = |i: i64| (if i < 0 { i + length } else { i }).clamp(0, length) as usize;
                let (from, to) = (place(*from), to.map_or(list.len(), place));
                list.get(from..to).unwrap_or_default().iter().collect()
            }
            (Step::Where { path, equal, literal }, Value::Array(list)) => {
                let names: Vec<&str> = path.iter().map(String::as_str).collect();
                list.iter().filter(|v| v.at(&names).is_some_and(|v| (v == literal) == *equal)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// One of `additionalPrinterColumns`.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub definition: Value,
    kind: String,
    path: Option<JsonPath>,
}

impl Column {
    /// Reads a column of a definition.
    pub fn new(column: &Value) -> Column {
        let text = |key: &str| column.str_at(&[key]).to_owned();
        let description = match text("description") {
            empty if empty.is_empty() => {
                format!("Custom resource definition column (in JSONPath format): {}", text("jsonPath"))
            }
            description => description,
        };
        let definition = json!({"name": text("name"), "type": text("type"), "format": text("format"),
            "description": description, "priority": column["priority"].as_i64().unwrap_or(0)});
        Column { definition, kind: text("type"), path: JsonPath::parse(&text("jsonPath")) }
    }

    /// The column that a definition without columns has.
    pub fn age() -> Column {
        let definition = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
            "description": table::CREATION_TIMESTAMP_TEXT});
        Column::new(&definition)
    }

    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let Some(first) = self.path.as_ref().and_then(|p| p.first(object)) else { return Value::Null };
        match (self.kind.as_str(), first) {
            ("integer", v) => v.as_i64().map_or(Value::Null, Value::from),
            ("number", v) => v.as_f64().map_or(Value::Null, |_| v.clone()),
            ("boolean", v) => v.as_bool().map_or(Value::Null, Value::from),
            ("date", Value::String(s)) => table::age(s, now).into(),
            // Only the first of several values is shown.
            ("string", v) => v.as_str().map_or_else(|| v.to_string(), str::to_owned).into(),
            _ => Value::Null,
        }
    }
}

/// `columnDefinitions`: the name, then what the definition says.
pub fn definitions(columns: &[Column]) -> Vec<Value> {
    let name =
        json!({"name": "Name", "type": "string", "format": "name", "description": table::NAME_TEXT, "priority": 0});
    std::iter::once(name).chain(columns.iter().map(|c| c.definition.clone())).collect()
}

/// The cells of one object.
pub fn cells(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    let name = object.str_at(&["metadata", "name"]).into();
    std::iter::once(name).chain(columns.iter().map(|c| c.cell(object, now))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_values() {
        let object = json!({"spec": {"n": 3, "l": [{"k": "a", "v": 1}, {"k": "b", "v": 2}], "a.b": "dot"}});
        for (path, want) in [
            (".spec.n", "[3]"),
            (".spec.l[0].k", r#"["a"]"#),
            (".spec.l[-1].k", r#"["b"]"#),
            (".spec.l[*].v", "[1,2]"),
            (".spec.l[?(@.k==\"b\")].v", "[2]"),
            (".spec.l[?(@.k!='b')].v", "[1]"),
            (".spec['a.b']", r#"["dot"]"#),
            (r".spec['a\.b']", r#"["dot"]"#),
            (".spec.l[-1:].k", r#"["b"]"#),
            (".spec.l[0:1].k", r#"["a"]"#),
            (".spec.l[:].v", "[1,2]"),
            (".spec.l[1:0].v", "[]"),
            (r".spec.a\.b", r#"["dot"]"#),
            (".spec.missing", "[]"),
        ] {
            let found: Vec<Value> =
                JsonPath::parse(path).unwrap_or_else(|| panic!("{path}")).find(&object).into_iter().cloned().collect();
            assert_eq!(Value::Array(found).to_string(), want, "{path}");
        }
        for bad in ["spec", ".spec[", "", ".", ".spec..x"] {
            assert_eq!(JsonPath::parse(bad), None, "{bad}");
        }
    }
}
