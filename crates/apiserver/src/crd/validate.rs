//! Whether an object's values are as its schema wants them, in upstream's words.
//!
//! Follows: `k8s.io/kube-openapi/pkg/validation/validate` and the translation of its results to field errors in
//! `apiextensions-apiserver/pkg/apiserver/validation`. What that translation does not know (`anyOf`, number formats) has the
//! field `<nil>`.

use std::collections::HashMap;

use apimachinery::field::{BadValue, FieldError, FieldPath};
use apimachinery::gvk::GroupVersion;
use apimachinery::json::Number;
use apimachinery::{Value, kinds, names};

use super::formats;
use super::schema::{Additional, Checks, ListType, Node, NodeType};

/// Checks `value` against `schema`. `path` is the dotted path so far, empty at the root. What is wrong with parts that are
/// as they were in `old` was accepted before the schema became stricter, and is no error.
pub fn validate(value: &Value, old: Option<&Value>, schema: &Node, path: &str, errors: &mut Vec<FieldError>) {
    let mut result = Outcome::default();
    check(value, old, schema, path, &mut result);
    errors.append(&mut result.errors);
}

/// Whether a value is as it was: parts that the schema does not describe cannot be told, and elements of list maps are
/// found by their keys.
///
/// Source: `k8s.io/apiserver/pkg/cel/common` (`CorrelatedObject`).
pub fn unchanged(new: &Value, old: &Value, schema: &Node) -> bool {
    match (new, old) {
        (Value::Null, Value::Null) => true,
        (Value::Null, _) | (_, Value::Null) => false,
        (Value::Array(list), Value::Array(before)) if schema.list_type == ListType::Map => {
            list.len() == before.len()
                && list.iter().enumerate().all(|(i, item)| {
                    let was = place_before(item, i, before, schema).and_then(|at| before.get(at));
                    was.zip(schema.items.as_ref()).is_some_and(|(was, items)| unchanged(item, was, items))
                })
        }
        (Value::Object(members), Value::Object(before)) => {
            members.len() == before.len()
                && members.iter().all(|(name, member)| match (before.get(name), schema.member(name)) {
                    (Some(was), Some(node)) => unchanged(member, was, node),
                    _ => false,
                })
        }
        (new, old) => new == old,
    }
}

/// Where an element of a list map was before. `at`: where it is now, which is where it mostly was.
pub fn place_before(item: &Value, at: usize, before: &[Value], schema: &Node) -> Option<usize> {
    if schema.list_type != ListType::Map {
        return None;
    }
    let same = |was: &Value| was.is_object() && schema.list_map_keys.iter().all(|k| was.get(k) == item.get(k));
    if before.get(at).is_some_and(same) {
        return Some(at);
    }
    before.iter().position(same)
}

/// Errors of one check, and how many of its parts held; the best of several alternatives is the one with most.
#[derive(Default)]
struct Outcome {
    errors: Vec<FieldError>,
    matches: usize,
}

impl Outcome {
    fn field(&mut self, path: &str, make: impl FnOnce(&FieldPath) -> FieldError) {
        self.errors.push(make(&field_path(path)));
    }

    /// An error that belongs to no field.
    fn general(&mut self, message: String) {
        self.errors.push(FieldError::invalid(&field_path(""), "", message));
    }
}

/// The field of an error; upstream's root has none.
fn field_path(path: &str) -> FieldPath {
    if path.is_empty() { FieldPath::new("<nil>") } else { FieldPath::new(path) }
}

/// Larger whole numbers are no integers when they come as floats. Source: `swag.IsFloat64AJSONInteger`.
const FLOAT_INTEGER_MAX: f64 = 9_007_199_254_740_991.0;

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Number(Number::Float(f)) if f.fract() == 0.0 && f.abs() <= FLOAT_INTEGER_MAX => "integer",
        // Beyond what Go's int64 holds.
        Value::Number(Number::UInt(u)) if i64::try_from(*u).is_err() => "number",
        other => other.type_name(),
    }
}

fn has_type(value: &Value, wanted: NodeType) -> bool {
    match (wanted, type_of(value)) {
        (NodeType::IntOrString, "integer" | "string") => true,
        (NodeType::Number, "integer" | "number") => true,
        (wanted, actual) => wanted.text() == actual,
    }
}

fn check(value: &Value, old: Option<&Value>, schema: &Node, path: &str, out: &mut Outcome) {
    let before = out.errors.len();
    check_parts(value, old, schema, path, out);
    if out.errors.len() > before && old.is_some_and(|old| unchanged(value, old, schema)) {
        out.errors.truncate(before);
    }
}

fn check_parts(value: &Value, old: Option<&Value>, schema: &Node, path: &str, out: &mut Outcome) {
    if let Some(wanted) = schema.ty {
        let fits = (value.is_null() && schema.nullable) || has_type(value, wanted);
        if !fits {
            // A format that is known for numbers names the types.
            let format = schema.checks.as_ref().map_or("", |c| c.format.as_str());
            let by_format = formats::of_numbers(wanted, format) && !matches!(value, Value::String(_) | Value::Array(_));
            let (wanted, actual) = match (by_format && !value.is_null(), value) {
                (true, Value::Number(Number::Float(_) | Number::UInt(_))) => (format, "float64"),
                (true, Value::Number(_)) => (format, "int64"),
                (true, _) => (format, ""),
                (false, _) => (wanted.text(), type_of(value)),
            };
            let message = format!("{path} in body must be of type {wanted}: {actual:?}");
            out.field(path, |p| FieldError::type_invalid(p, actual, message));
        }
    }
    out.matches += 1;
    if value.is_null() {
        if let Some(checks) = &schema.checks
            && !schema.nullable
        {
            check_allowed(value, checks, path, out);
        }
        return;
    }
    if let Some(checks) = &schema.checks {
        check_combinations(value, checks, path, out);
        if let Value::String(text) = value {
            check_string(text, checks, path, out);
        }
    }
    if let Value::Number(number) = value {
        check_number(*number, value, schema.ty, schema.checks.as_deref(), path, out);
    }
    if let (Value::Array(list), Some(items)) = (value, &schema.items) {
        let before = old.and_then(Value::as_array);
        for (i, item) in list.iter().enumerate() {
            let was = before.and_then(|before| before.get(place_before(item, i, before, schema)?));
            check(item, was, items, &format!("{path}[{i}]"), out);
        }
    }
    if let (Value::Array(list), Some(checks)) = (value, &schema.checks) {
        check_list(list, checks, path, out);
    }
    if let Some(checks) = &schema.checks {
        check_allowed(value, checks, path, out);
    }
    if value.is_object() {
        check_object(value, old, schema, path, out);
    }
}

fn check_combinations(value: &Value, checks: &Checks, path: &str, out: &mut Outcome) {
    let try_one = |node: &Node| {
        let mut result = Outcome::default();
        check(value, None, node, path, &mut result);
        result
    };
    let best = |results: Vec<Outcome>| {
        results.into_iter().fold(None::<Outcome>, |best, r| match best {
            Some(best) if best.matches >= r.matches => Some(best),
            _ => Some(r),
        })
    };
    if !checks.any_of.is_empty() {
        let (valid, failed): (Vec<_>, Vec<_>) = checks.any_of.iter().map(try_one).partition(|r| r.errors.is_empty());
        if valid.is_empty() {
            out.general(format!("{path:?} must validate at least one schema (anyOf)"));
            out.errors.extend(best(failed).into_iter().flat_map(|r| r.errors));
        }
    }
    if !checks.one_of.is_empty() {
        let (valid, failed): (Vec<_>, Vec<_>) = checks.one_of.iter().map(try_one).partition(|r| r.errors.is_empty());
        match valid.len() {
            1 => {}
            0 => {
                out.general(format!("{path:?} must validate one and only one schema (oneOf). Found none valid"));
                out.errors.extend(best(failed).into_iter().flat_map(|r| r.errors));
            }
            n => out.general(format!(
                "{path:?} must validate one and only one schema (oneOf). Found {n} valid alternatives"
            )),
        }
    }
    if !checks.all_of.is_empty() {
        let results: Vec<_> = checks.all_of.iter().map(try_one).collect();
        let valid = results.iter().filter(|r| r.errors.is_empty()).count();
        out.errors.extend(results.into_iter().flat_map(|r| r.errors));
        if valid != checks.all_of.len() {
            let more = if valid == 0 { ". None validated" } else { "" };
            out.general(format!("{path:?} must validate all the schemas (allOf){more}"));
        }
    }
    if let Some(not) = &checks.not
        && try_one(not).errors.is_empty()
    {
        out.general(format!("{path:?} must not validate the schema (not)"));
    }
}

fn check_string(text: &str, checks: &Checks, path: &str, out: &mut Outcome) {
    let length = || text.chars().count() as i64;
    // The first of these is told.
    if let Some(max) = checks.max_length.filter(|max| length() > *max) {
        out.field(path, |p| FieldError::too_long(p, max));
    } else if let Some(min) = checks.min_length.filter(|min| length() < *min) {
        let message = format!("{path} in body should be at least {min} chars long");
        out.field(path, |p| FieldError::invalid(p, text, message));
    } else if let Some(pattern) = checks.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
        let message = format!("{path} in body should match '{pattern}'");
        out.field(path, |p| FieldError::invalid(p, text, message));
    }
    if !checks.format.is_empty() && !formats::matches(&checks.format, text) {
        let message = format!("{path} in body must be of type {}: {text:?}", checks.format);
        out.field(path, |p| FieldError::type_invalid(p, text, message));
    }
}

/// A bound as Go prints it: integers without a fraction.
fn bound(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e21 { format!("{value:.0}") } else { value.to_string() }
}

fn check_number(
    number: Number,
    value: &Value,
    ty: Option<NodeType>,
    checks: Option<&Checks>,
    path: &str,
    out: &mut Outcome,
) {
    let n = match number {
        Number::Int(i) => i as f64,
        Number::UInt(u) => u as f64,
        Number::Float(f) => f,
    };
    let whole = n.fract() == 0.0;
    let integer = ty == Some(NodeType::Integer);
    let range = match checks.map_or("", |c| c.format.as_str()) {
        "int32" if integer => Some((f64::from(i32::MIN), f64::from(i32::MAX), "with format int32")),
        "int64" if integer => Some((-(2f64.powi(63)), 2f64.powi(63), "with format int64")),
        _ if integer => Some((-(2f64.powi(63)), 2f64.powi(63), "(default format)")),
        "float" if ty == Some(NodeType::Number) => {
            Some((f64::from(f32::MIN), f64::from(f32::MAX), "with format float"))
        }
        _ => None,
    };
    // What is written as a float is no whole number beyond 2^53, and 2^63 is too much for an integer.
    let too_large = !matches!(number, Number::Int(_)) && n.abs() > FLOAT_INTEGER_MAX;
    if let Some((min, max, format)) = range
        && (n < min || n > max || (integer && (!whole || too_large)))
    {
        let kind = if integer { "integer" } else { "number" };
        out.general(format!("Checked value must be of type {kind} {format} in {path}"));
    }
    let Some(checks) = checks else { return };
    let invalid = |out: &mut Outcome, message: String| {
        out.field(path, |p| FieldError::invalid(p, BadValue::from(value.clone()), message));
    };
    if let Some(factor) = checks.multiple_of {
        // An integer is compared with the factor as an integer, whatever is lost of that.
        let (factor, multiple) = match number {
            Number::Int(i) => {
                let whole = factor.trunc();
                (whole, whole > 0.0 && i % (whole as i64) == 0)
            }
            _ => {
                let quotient = if factor < 1.0 { 1.0 / factor * n } else { n / factor };
                (factor, (quotient - quotient.round()).abs() <= 1e-9)
            }
        };
        if factor <= 0.0 {
            let message = format!("factor MultipleOf declared for {path} must be positive: {}", bound(factor));
            out.field(path, |p| FieldError::invalid(p, factor as i64, message));
        } else if !multiple {
            invalid(out, format!("{path} in body should be a multiple of {}", bound(factor)));
        }
    }
    if let Some(max) = checks.maximum {
        let text = bound(max);
        if checks.exclusive_maximum && n >= max {
            invalid(out, format!("{path} in body should be less than {text}"));
        } else if n > max {
            invalid(out, format!("{path} in body should be less than or equal to {text}"));
        }
    }
    if let Some(min) = checks.minimum {
        let text = bound(min);
        if checks.exclusive_minimum && n <= min {
            invalid(out, format!("{path} in body should be greater than {text}"));
        } else if n < min {
            invalid(out, format!("{path} in body should be greater than or equal to {text}"));
        }
    }
}

fn check_list(list: &[Value], checks: &Checks, path: &str, out: &mut Outcome) {
    let length = list.len() as i64;
    if let Some(min) = checks.min_items.filter(|min| length < *min) {
        let message = format!("{path} in body should have at least {min} items");
        out.field(path, |p| FieldError::invalid(p, length, message));
    }
    if let Some(max) = checks.max_items.filter(|max| length > *max) {
        out.field(path, |p| FieldError::too_many(p, length, max));
    }
    if checks.unique_items && list.iter().enumerate().any(|(i, v)| list[..i].contains(v)) {
        let message = format!("{path} in body shouldn't contain duplicates");
        out.field(path, |p| FieldError::invalid(p, "", message));
    }
}

fn check_allowed(value: &Value, checks: &Checks, path: &str, out: &mut Outcome) {
    let Some(allowed) = &checks.allowed else { return };
    let same = |a: &Value| a == value || (a.as_f64().is_some() && a.as_f64() == value.as_f64());
    if allowed.iter().any(same) {
        return;
    }
    let texts: Vec<String> = allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
    out.field(path, |p| FieldError::not_supported(p, BadValue::from(value.clone()), &texts));
}

fn check_object(value: &Value, old: Option<&Value>, schema: &Node, path: &str, out: &mut Outcome) {
    let Some(map) = value.as_object() else { return };
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let length = map.len() as i64;
    if let Some(checks) = &schema.checks {
        if let Some(min) = checks.min_properties.filter(|min| length < *min) {
            let message = format!("{path} in body should have at least {min} properties");
            out.field(path, |p| FieldError::invalid(p, length, message));
        }
        if let Some(max) = checks.max_properties.filter(|max| length > *max) {
            out.field(path, |p| FieldError::too_many(p, length, max));
        }
    }
    for (name, member) in map.iter() {
        // The kind and its version are always those of the request.
        let was = old
            .and_then(|o| o.get(name))
            .filter(|_| !(path.is_empty() && matches!(name.as_str(), "kind" | "apiVersion")));
        match (schema.properties.get(name), &schema.additional) {
            (Some(node), _) => check(member, was, node, &join(name), out),
            (None, Additional::Schema(node)) => check(member, was, node, &join(name), out),
            (None, Additional::Any | Additional::Unspecified) => {}
        }
    }
    for name in schema.checks.iter().flat_map(|c| &c.required).filter(|name| !map.contains_key(name)) {
        out.field(&join(name), |p| FieldError::required(p, ""));
    }
}

/// How often values have been seen.
#[derive(Default)]
struct Seen(HashMap<Vec<u8>, usize>);

impl Seen {
    /// Whether this is the second time: each value is told once.
    fn again(&mut self, value: &Value) -> bool {
        let times = self.0.entry(value.to_vec()).or_default();
        *times += 1;
        *times == 2
    }
}

/// Uniqueness in sets and list maps, which the checks above do not see.
///
/// Source: `apiextensions-apiserver/pkg/apiserver/schema/listtype`.
pub fn validate_lists(value: &Value, schema: &Node, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Array(list) => {
            match schema.list_type {
                ListType::Atomic => {}
                ListType::Set => {
                    let mut seen = Seen::default();
                    for (i, item) in list.iter().enumerate() {
                        // `1` and `1.0` are not the same here.
                        if seen.again(item) {
                            let at = field_path(&format!("{path}[{i}]"));
                            errors.push(FieldError::duplicate(&at, BadValue::from(item.clone())));
                        }
                    }
                }
                ListType::Map if list.iter().any(|item| !item.is_object() && !item.is_null()) => {
                    for (i, item) in
                        list.iter().enumerate().filter(|(_, item)| !item.is_object() && !item.is_null()).take(1)
                    {
                        let at = field_path(&format!("{path}[{i}]"));
                        let message = "must be an object for an array of list-type map";
                        errors.push(FieldError::invalid(&at, BadValue::from(item.clone()), message));
                    }
                }
                ListType::Map => {
                    let key = |item: &Value| -> Value {
                        let mut key = Value::object();
                        for name in &schema.list_map_keys {
                            if let Some(v) = item.get(name) {
                                key.set_at(&[name], v.clone());
                            }
                        }
                        key
                    };
                    let keys: Vec<Value> = list.iter().map(key).collect();
                    let mut seen = Seen::default();
                    for (i, own) in keys.iter().enumerate() {
                        if seen.again(own) {
                            let at = field_path(&format!("{path}[{i}]"));
                            errors.push(FieldError::duplicate(&at, BadValue::from(own.clone())));
                        }
                    }
                }
            }
            if let Some(items) = &schema.items {
                for (i, item) in list.iter().enumerate() {
                    validate_lists(item, items, &format!("{path}[{i}]"), errors);
                }
            }
        }
        Value::Object(map) => {
            for (name, member) in map.iter() {
                if let Some(node) = schema.member(name) {
                    validate_lists(member, node, &child_path(schema, path, name), errors);
                }
            }
        }
        _ => {}
    }
}

/// The path of a member: one of a map is in brackets.
pub fn child_path(schema: &Node, path: &str, name: &str) -> String {
    if !schema.properties.contains_key(name) && matches!(schema.additional, Additional::Schema(_)) {
        return format!("{path}[{name}]");
    }
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Embedded resources must say what they are.
///
/// Source: `apiextensions-apiserver/pkg/apiserver/schema/objectmeta/validation.go`.
pub fn validate_embedded(value: &Value, schema: &Node, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            if schema.embedded_resource {
                embedded(value, path, errors);
            }
            for (name, member) in map.iter() {
                if let Some(node) = schema.member(name) {
                    validate_embedded(member, node, &child_path(schema, path, name), errors);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                for (i, item) in list.iter().enumerate() {
                    validate_embedded(item, items, &format!("{path}[{i}]"), errors);
                }
            }
        }
        _ => {}
    }
}

/// What a resource inside another must say of itself.
pub fn embedded(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for name in ["apiVersion", "kind"] {
        let at = field_path(&join(name));
        match value.get(name) {
            None => errors.push(FieldError::required(&at, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(&at, "", "must not be empty"));
            }
            Some(Value::String(text)) if name == "apiVersion" => {
                if let Err(error) = GroupVersion::parse(text) {
                    errors.push(FieldError::invalid(&at, text.as_str(), error.to_string()));
                }
            }
            Some(Value::String(text)) => {
                let problems = names::is_dns1035_label(&text.to_lowercase());
                if !problems.is_empty() {
                    let message = format!("may have mixed case, but should otherwise match: {}", problems.join(","));
                    errors.push(FieldError::invalid(&at, text.as_str(), message));
                }
            }
            Some(other) => errors.push(FieldError::invalid(&at, BadValue::from(other.clone()), "must be a string")),
        }
    }
    let Some(metadata) = value.get("metadata").filter(|m| m.is_object()) else { return };
    let mut object = Value::object();
    object["metadata"] = metadata.clone();
    // None is needed, and one may be of another kind's rules.
    object.set_at(&["metadata", "name"], "fakename".into());
    let name = metadata.str_at(&["name"]);
    if !name.is_empty() {
        for problem in names::is_path_segment_name(name) {
            errors.push(FieldError::invalid(&field_path(&join("metadata.name")), name, problem));
        }
    }
    let namespaced = !metadata.str_at(&["namespace"]).is_empty();
    errors.extend(kinds::validate_custom_metadata(&object, namespaced).into_iter().map(|mut e| {
        e.field = join(&e.field);
        e
    }));
}
