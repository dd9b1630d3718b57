//! Whether an object's values are as its schema wants them, in upstream's words.
//!
//! Follows: `k8s.io/kube-openapi/pkg/validation/validate` and the translation of its results to field errors in
//! `apiextensions-apiserver/pkg/apiserver/validation`. What that translation does not know (`anyOf`, number formats) has the
//! field `<nil>`.

use apimachinery::Value;
use apimachinery::field::{BadValue, FieldError, FieldPath};
use apimachinery::json::Number;

use super::formats;
use super::schema::{Additional, Checks, Node, NodeType};

/// Checks `value` against `schema`. `path` is the dotted path so far, empty at the root.
pub fn validate(value: &Value, schema: &Node, path: &str, errors: &mut Vec<FieldError>) {
    let mut result = Outcome::default();
    check(value, schema, path, &mut result);
    errors.append(&mut result.errors);
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

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Number(Number::Float(f)) if f.fract() == 0.0 => "integer",
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

fn check(value: &Value, schema: &Node, path: &str, out: &mut Outcome) {
    if let Some(wanted) = schema.ty {
        let fits = (value.is_null() && schema.nullable) || has_type(value, wanted);
        if !fits {
            let actual = type_of(value);
            let message = format!("{path} in body must be of type {}: {actual:?}", wanted.text());
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
        match value {
            Value::String(text) => check_string(text, checks, path, out),
            Value::Number(number) => check_number(*number, value, checks, path, out),
            Value::Array(list) => check_list(list, checks, path, out),
            _ => {}
        }
    }
    if let (Value::Array(list), Some(items)) = (value, &schema.items) {
        for (i, item) in list.iter().enumerate() {
            check(item, items, &format!("{path}[{i}]"), out);
        }
    }
    if let Some(checks) = &schema.checks {
        check_allowed(value, checks, path, out);
    }
    if value.is_object() {
        check_object(value, schema, path, out);
    }
}

fn check_combinations(value: &Value, checks: &Checks, path: &str, out: &mut Outcome) {
    let try_one = |node: &Node| {
        let mut result = Outcome::default();
        check(value, node, path, &mut result);
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
    if let Some(max) = checks.max_length.filter(|max| length() > *max) {
        out.field(path, |p| FieldError::too_long(p, max));
    }
    if let Some(min) = checks.min_length.filter(|min| length() < *min) {
        let message = format!("{path} in body should be at least {min} chars long");
        out.field(path, |p| FieldError::invalid(p, text, message));
    }
    if let Some(pattern) = checks.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
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

fn check_number(number: Number, value: &Value, checks: &Checks, path: &str, out: &mut Outcome) {
    let n = match number {
        Number::Int(i) => i as f64,
        Number::UInt(u) => u as f64,
        Number::Float(f) => f,
    };
    let whole = n.fract() == 0.0;
    let range = match checks.format.as_str() {
        "int32" => Some((f64::from(i32::MIN), f64::from(i32::MAX), "integer")),
        "int64" => Some((-9.223_372_036_854_775_8e18, 9.223_372_036_854_775_8e18, "integer")),
        "uint32" => Some((0.0, f64::from(u32::MAX), "integer")),
        "float" => Some((f64::from(f32::MIN), f64::from(f32::MAX), "number")),
        _ => None,
    };
    if let Some((min, max, kind)) = range
        && (n < min || n > max || (kind == "integer" && !whole))
    {
        out.general(format!("Checked value must be of type {kind} with format {} in {path}", checks.format));
    }
    let mut invalid =
        |message: String| out.field(path, |p| FieldError::invalid(p, BadValue::from(value.clone()), message));
    if let Some(factor) = checks.multiple_of.filter(|factor| *factor != 0.0) {
        let quotient = n / factor;
        if (quotient - quotient.round()).abs() > 1e-9 {
            invalid(format!("{path} in body should be a multiple of {}", bound(factor)));
        }
    }
    if let Some(max) = checks.maximum {
        let text = bound(max);
        if checks.exclusive_maximum && n >= max {
            invalid(format!("{path} in body should be less than {text}"));
        } else if n > max {
            invalid(format!("{path} in body should be less than or equal to {text}"));
        }
    }
    if let Some(min) = checks.minimum {
        let text = bound(min);
        if checks.exclusive_minimum && n <= min {
            invalid(format!("{path} in body should be greater than {text}"));
        } else if n < min {
            invalid(format!("{path} in body should be greater than or equal to {text}"));
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

fn check_object(value: &Value, schema: &Node, path: &str, out: &mut Outcome) {
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
        for name in checks.required.iter().filter(|name| !map.contains_key(name)) {
            out.field(&join(name), |p| FieldError::required(p, ""));
        }
    }
    for (name, member) in map.iter() {
        match (schema.properties.get(name), &schema.additional) {
            (Some(node), _) => check(member, node, &join(name), out),
            (None, Additional::Schema(node)) => check(member, node, &join(name), out),
            (None, Additional::Any | Additional::Unspecified) => {}
        }
    }
}

/// Uniqueness in sets and list maps, which the checks above do not see.
///
/// Source: `apiextensions-apiserver/pkg/apiserver/schema/listtype`.
pub fn validate_lists(value: &Value, schema: &Node, path: &str, errors: &mut Vec<FieldError>) {
    use super::schema::ListType;
    match value {
        Value::Array(list) => {
            match schema.list_type {
                ListType::Atomic => {}
                ListType::Set => {
                    for (i, item) in list.iter().enumerate() {
                        if list[..i].contains(item) && list[..i].iter().filter(|v| *v == item).count() == 1 {
                            let at = field_path(&format!("{path}[{i}]"));
                            errors.push(FieldError::duplicate(&at, BadValue::from(item.clone())));
                        }
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
                    for (i, own) in keys.iter().enumerate() {
                        if keys[..i].iter().filter(|k| *k == own).count() == 1 {
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
                    let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
                    validate_lists(member, node, &path, errors);
                }
            }
        }
        _ => {}
    }
}

/// Takes back errors about values that have not changed: they were accepted before the schema became stricter.
///
/// Source: KEP-4008 (ratcheting). Only places that can be found in the old object count: members of objects, and elements
/// of list maps.
pub fn ratchet(errors: &mut Vec<FieldError>, new: &Value, old: &Value, schema: &Node) {
    errors.retain(|error| {
        if error.field == "<nil>" {
            return true;
        }
        !unchanged(new, old, schema, &error.field)
    });
}

fn unchanged(new: &Value, old: &Value, schema: &Node, path: &str) -> bool {
    if path.is_empty() {
        return new == old;
    }
    if let Some(rest) = path.strip_prefix('[') {
        let Some((index, rest)) = rest.split_once(']') else { return false };
        let rest = rest.strip_prefix('.').unwrap_or(rest);
        let (Value::Array(list), Ok(i), Some(items)) = (new, index.parse::<usize>(), &schema.items) else {
            return false;
        };
        let Some(item) = list.get(i) else { return false };
        if schema.list_type != super::schema::ListType::Map {
            // Elements without keys are compared as part of their whole list.
            return new == old;
        }
        let same = |o: &&Value| schema.list_map_keys.iter().all(|k| o.get(k) == item.get(k));
        return old.as_array().and_then(|o| o.iter().find(same)).is_some_and(|o| unchanged(item, o, items, rest));
    }
    // Member names may contain dots: the longest name that exists wins.
    let (Value::Object(map), Value::Object(before)) = (new, old) else { return false };
    let fits = |name: &str| path.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    let found = map.keys().filter_map(|name| Some((name, fits(name)?))).max_by_key(|(name, _)| name.len());
    match found {
        Some((name, rest)) => match (map.get(name), before.get(name), schema.member(name)) {
            (Some(n), Some(o), Some(node)) => unchanged(n, o, node, rest.strip_prefix('.').unwrap_or(rest)),
            _ => false,
        },
        // A required member that is missing: nothing changed if it was missing in the same object before.
        None => new == old,
    }
}

/// Embedded resources must say what they are.
///
/// Source: `apiextensions-apiserver/pkg/apiserver/schema/objectmeta/validation.go`.
pub fn validate_embedded(value: &Value, schema: &Node, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            if schema.embedded_resource {
                for name in ["apiVersion", "kind"] {
                    if map.get(name).and_then(Value::as_str).unwrap_or("").is_empty() {
                        errors.push(FieldError::required(&field_path(&join(name)), ""));
                    }
                }
            }
            for (name, member) in map.iter() {
                if let Some(node) = schema.member(name) {
                    validate_embedded(member, node, &join(name), errors);
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
