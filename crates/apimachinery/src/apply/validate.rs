//! Whether a value fits its type, as far as apply needs it to: kinds of JSON, declared fields, keys of list elements.
//!
//! Follows: `sigs.k8s.io/structured-merge-diff/typed/validate.go`, whose texts reach clients.

use std::collections::BTreeSet;

use super::typed::{ListAtom, MapAtom, ScalarKind, Type, TypedError, TypedErrors, list_element};
use crate::json::{Map, Value};
use crate::text::{go_syntax, go_type, go_value};

/// The way from the root, built only when there is an error to report.
enum Trail<'t> {
    Root,
    Field(&'t Trail<'t>, &'t str),
    Element(&'t Trail<'t>, &'t ListAtom<'t>, &'t Value),
    Index(&'t Trail<'t>, usize),
}

impl Trail<'_> {
    fn print(&self) -> String {
        match self {
            Trail::Root => String::new(),
            Trail::Field(parent, name) => format!("{}.{name}", parent.print()),
            Trail::Element(parent, list, item) => match list_element(list, item) {
                Ok(step) => format!("{}{step}", parent.print()),
                Err(_) => parent.print(),
            },
            Trail::Index(parent, i) => format!("{}[{i}]", parent.print()),
        }
    }
}

struct Validator {
    allow_duplicates: bool,
    errors: Vec<TypedError>,
}

/// Checks `value`. Stored objects may hold duplicates (`allow_duplicates`), applied ones may not.
pub fn validate(ty: Type<'_>, value: &Value, allow_duplicates: bool) -> Result<(), TypedErrors> {
    let mut validator = Validator { allow_duplicates, errors: Vec::new() };
    validator.value(ty, value, &Trail::Root);
    if validator.errors.is_empty() { Ok(()) } else { Err(TypedErrors(validator.errors)) }
}

/// What is wrong with a scalar; `null` is always fine.
pub(super) fn scalar_error(kind: ScalarKind, value: &Value) -> Option<String> {
    let scalar = matches!(value, Value::Bool(_) | Value::Number(_) | Value::String(_));
    match (kind, value) {
        (_, Value::Null)
        | (ScalarKind::Numeric, Value::Number(_))
        | (ScalarKind::String, Value::String(_))
        | (ScalarKind::Boolean, Value::Bool(_)) => None,
        (ScalarKind::Untyped, _) if scalar => None,
        (ScalarKind::Numeric, other) => Some(format!("expected numeric (int or float), got {}", go_type(other))),
        (ScalarKind::String, other) => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(other)))
        }
        (ScalarKind::Boolean, other) => Some(format!("expected boolean, got &{{{}}}", go_value(other))),
        (ScalarKind::Untyped, other) => Some(format!("expected any scalar, got &{{{}}}", go_value(other))),
    }
}

impl Validator {
    fn error(&mut self, trail: &Trail<'_>, message: String) {
        self.errors.push(TypedError { path: trail.print(), message });
    }

    fn value(&mut self, ty: Type<'_>, value: &Value, trail: &Trail<'_>) {
        let atom = ty.resolve().deduce(Some(value));
        if let Some(map) = atom.map {
            match value {
                Value::Null => {}
                Value::Object(members) => self.map(&map, members, trail),
                other => self.error(trail, format!("expected map, got &{{{}}}", go_value(other))),
            }
        } else if let Some(kind) = atom.scalar {
            if let Some(message) = scalar_error(kind, value) {
                self.error(trail, message);
            }
        } else if let Some(list) = atom.list {
            match value {
                Value::Null => {}
                Value::Array(items) => self.list(&list, items, trail),
                other => self.error(trail, format!("expected list, got &{{{}}}", go_value(other))),
            }
        }
    }

    fn map(&mut self, map: &MapAtom<'_>, members: &Map, trail: &Trail<'_>) {
        for (name, value) in members.iter() {
            let trail = Trail::Field(trail, name);
            match map.member(name) {
                Some(ty) => self.value(ty, value, &trail),
                None => {
                    // Upstream stops at the first unknown field of an object.
                    self.error(&trail, "field not declared in schema".to_owned());
                    return;
                }
            }
        }
    }

    fn list(&mut self, list: &ListAtom<'_>, items: &[Value], trail: &Trail<'_>) {
        if !list.associative {
            for (i, item) in items.iter().enumerate() {
                self.value(list.element, item, &Trail::Index(trail, i));
            }
            return;
        }
        let mut seen = BTreeSet::new();
        let whole_keys = |item: &Value| {
            let members = item.as_object();
            !list.keys.is_empty() && members.is_some_and(|m| list.keys.iter().all(|k| m.contains_key(k)))
        };
        for (i, item) in items.iter().enumerate() {
            // What names all its keys can be found again; which element it is matters where there must not be two.
            if !(self.allow_duplicates && whole_keys(item)) {
                match list_element(list, item) {
                    Ok(step) if self.allow_duplicates => drop(step),
                    Ok(step) => {
                        if seen.contains(&step) {
                            self.error(trail, format!("duplicate entries for key {step}"));
                        }
                        seen.insert(step);
                    }
                    Err(message) => {
                        self.error(trail, format!("element {i}: {message}"));
                        return;
                    }
                }
            }
            self.value(list.element, item, &Trail::Element(trail, list, item));
        }
    }
}
