//! How values of a type merge: the view of a schema that apply works with.
//!
//! A type resolves to an [`Atom`]: which of scalar, list and map a value may be, and for each how it merges. Where the
//! schema says nothing (fields that preserve unknown members, untyped values) the value itself decides.
//!
//! Follows: `sigs.k8s.io/structured-merge-diff/{schema,typed}`, `k8s.io/kube-openapi/pkg/schemaconv`.

use std::fmt;

use super::path::PathElement;
use crate::json::{Map, Str, Value};
use crate::schema::{FieldRef, ListType, Scalar, Shape, TypeRef};
use crate::text;

/// A type of the built-in kinds or of a custom resource.
#[derive(Clone, Copy, Debug)]
pub enum Type<'a> {
    Known {
        ty: TypeRef<'a>,
        /// Unknown members are allowed here, because a type further up says so.
        preserve: bool,
        /// The keys of a list whose type does not say how it merges while its field's patch strategy does.
        merge_keys: Option<&'a [Str]>,
    },
    /// Anything; objects merge by member, lists are replaced.
    Deduced,
    /// Anything; objects and lists are replaced.
    Untyped,
}

/// Which JSON scalars a type takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalarKind {
    Numeric,
    String,
    Boolean,
    Untyped,
}

/// How a list merges.
#[derive(Clone, Copy, Debug)]
pub struct ListAtom<'a> {
    /// Elements are found again by their keys or, without keys, by value; otherwise the list is replaced as a whole.
    pub associative: bool,
    pub keys: &'a [Str],
    pub element: Type<'a>,
}

/// How an object merges.
#[derive(Clone, Copy, Debug)]
pub struct MapAtom<'a> {
    /// The struct that declares the members.
    pub fields: Option<TypeRef<'a>>,
    /// The type of members that are not declared; `None` when there must not be any.
    pub element: Option<Type<'a>>,
    pub atomic: bool,
    preserve: bool,
}

/// What values of a type may be. At least one is set.
#[derive(Clone, Copy, Debug)]
pub struct Atom<'a> {
    pub scalar: Option<ScalarKind>,
    pub list: Option<ListAtom<'a>>,
    pub map: Option<MapAtom<'a>>,
}

impl<'a> Type<'a> {
    /// The type of whole objects.
    pub fn root(ty: TypeRef<'a>) -> Self {
        Type::Known { ty, preserve: false, merge_keys: None }
    }

    fn below(ty: TypeRef<'a>, preserve: bool) -> Self {
        Type::Known { ty, preserve, merge_keys: None }
    }

    fn of_field(field: FieldRef<'a>, preserve: bool) -> Self {
        let ty = field.ty();
        let merge_keys = match ty.list() {
            Some(list) if !list.explicit && field.patch.merge => {
                let key = field.merge_key();
                Some(if key.is_empty() { &[][..] } else { std::slice::from_ref(field.merge_key_str()) })
            }
            _ => None,
        };
        Type::Known { ty, preserve, merge_keys }
    }

    pub fn resolve(self) -> Atom<'a> {
        let anything = |element: Type<'a>, atomic: bool| Atom {
            scalar: Some(ScalarKind::Untyped),
            list: Some(ListAtom { associative: false, keys: &[], element: Type::Untyped }),
            map: Some(MapAtom { fields: None, element: Some(element), atomic, preserve: false }),
        };
        let scalar = |kind| Atom { scalar: Some(kind), list: None, map: None };
        let (ty, inherited, merge_keys) = match self {
            Type::Deduced => return anything(Type::Deduced, false),
            Type::Untyped => return anything(Type::Untyped, true),
            Type::Known { ty, preserve, merge_keys } => (ty, preserve, merge_keys),
        };
        let preserve = inherited || ty.get().preserve_unknown_fields;
        match ty.shape() {
            Shape::Any => anything(Type::Deduced, false),
            Shape::Enum(_) => scalar(ScalarKind::String),
            Shape::Struct(s) => Atom {
                scalar: None,
                list: None,
                map: Some(MapAtom {
                    fields: Some(ty),
                    element: (preserve || ty.fields().len() == 0).then_some(Type::Deduced),
                    atomic: s.atomic,
                    preserve,
                }),
            },
            Shape::Map(m) => Atom {
                scalar: None,
                list: None,
                map: Some(MapAtom {
                    fields: None,
                    element: Some(Type::below(ty.other(m.value), preserve)),
                    atomic: m.atomic,
                    preserve,
                }),
            },
            Shape::List(l) => {
                let (associative, keys) = match (merge_keys, l.list_type) {
                    (Some(keys), _) => (true, keys),
                    (None, ListType::Map) => (true, l.keys.as_slice()),
                    (None, ListType::Set) => (true, &[][..]),
                    (None, ListType::Atomic) => (false, &[][..]),
                };
                let element = Type::below(ty.other(l.element), preserve);
                Atom { scalar: None, list: Some(ListAtom { associative, keys, element }), map: None }
            }
            Shape::Scalar(s) => match s {
                Scalar::String | Scalar::Bytes | Scalar::Duration => scalar(ScalarKind::String),
                Scalar::Bool => scalar(ScalarKind::Boolean),
                Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::Integer | Scalar::Number => {
                    scalar(ScalarKind::Numeric)
                }
                Scalar::Time | Scalar::MicroTime | Scalar::Quantity => scalar(ScalarKind::Untyped),
                Scalar::RawExtension => anything(Type::Untyped, true),
                Scalar::FieldsV1 => Atom { scalar: None, list: None, ..anything(Type::Deduced, false) },
                Scalar::IntOrString
                | Scalar::Json
                | Scalar::SchemaOrBool
                | Scalar::SchemaOrArray
                | Scalar::SchemaOrStringArray => anything(Type::Deduced, false),
            },
        }
    }
}

impl<'a> MapAtom<'a> {
    /// Whether the schema names this member.
    pub fn declares(&self, name: &str) -> bool {
        self.fields.is_some_and(|ty| ty.field(name).is_some())
    }

    /// The type of a member, declared or not.
    pub fn member(&self, name: &str) -> Option<Type<'a>> {
        match self.fields.and_then(|ty| ty.field(name)) {
            Some(field) => Some(Type::of_field(field, self.preserve)),
            None => self.element,
        }
    }

    /// Whether nothing is known about the members.
    pub fn is_deduced(&self) -> bool {
        self.fields.is_none_or(|ty| ty.fields().len() == 0) && matches!(self.element, Some(Type::Deduced))
    }
}

impl Atom<'_> {
    /// The one kind that fits the value; everything when the value is absent, null or fits none.
    pub fn deduce(self, value: Option<&Value>) -> Self {
        let none = Atom { scalar: None, list: None, map: None };
        match value {
            Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) if self.scalar.is_some() => {
                Atom { scalar: self.scalar, ..none }
            }
            Some(Value::Array(_)) if self.list.is_some() => Atom { list: self.list, ..none },
            Some(Value::Object(_)) if self.map.is_some() => Atom { map: self.map, ..none },
            _ => self,
        }
    }

    /// Whether two deductions of one atom came out the same.
    pub fn same_as(&self, other: &Self) -> bool {
        let kinds = |a: &Self| (a.scalar.is_some(), a.list.is_some(), a.map.is_some());
        kinds(self) == kinds(other)
    }
}

/// The object in a value; nothing for `null` and everything else.
pub(super) fn as_map(value: Option<&Value>) -> Option<&Map> {
    value.and_then(Value::as_object)
}

/// The list in a value; nothing for `null` and everything else.
pub(super) fn as_list(value: Option<&Value>) -> Option<&Vec<Value>> {
    value.and_then(Value::as_array)
}

/// How an element of an associative list is found again.
pub(super) fn list_element(list: &ListAtom<'_>, item: &Value) -> Result<PathElement, String> {
    if !list.associative {
        return Err("invalid indexing of non-associative list".to_owned());
    }
    if list.keys.is_empty() {
        return match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
            scalar => Ok(PathElement::Value(scalar.clone())),
        };
    }
    let members = match item {
        Value::Object(members) => members,
        Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
        _ => return Err("associative list with keys may not have non-map elements".to_owned()),
    };
    let mut keys: Vec<(Str, Value)> = Vec::with_capacity(list.keys.len());
    for key in list.keys {
        match members.get(key) {
            Some(value) => keys.push((key.clone(), value.clone())),
            None => keys.extend(key_default(list.element, key).map(|value| (key.clone(), value))),
        }
    }
    if keys.is_empty() {
        let names: Vec<String> = list.keys.iter().map(|k| text::quote(k)).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields {} (and doesn't have default values for any key fields)",
            text::list(&names)
        ));
    }
    keys.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(PathElement::Key(keys))
}

/// The default of a key field. Upstream's schema of built-in kinds also gives required scalars their zero value.
fn key_default(element: Type<'_>, key: &str) -> Option<Value> {
    let field = element.resolve().map?.fields?.field(key)?;
    if let Some(default) = field.default_value() {
        return Some(default.clone());
    }
    if field.omit_empty || field.pointer {
        return None;
    }
    match field.ty().scalar()? {
        Scalar::String => Some("".into()),
        Scalar::Bool => Some(false.into()),
        Scalar::Int32 | Scalar::Int64 | Scalar::Double => Some(0.into()),
        _ => None,
    }
}

/// A mistake in a value, with the path to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedError {
    pub path: String,
    pub message: String,
}

/// All mistakes in a value. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct TypedErrors(pub Vec<TypedError>);

impl fmt::Display for TypedErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |e: &TypedError| {
            if e.path.is_empty() { e.message.clone() } else { format!("{}: {}", e.path, e.message) }
        };
        match self.0.as_slice() {
            [error] => f.write_str(&one(error)),
            errors => {
                f.write_str("errors:")?;
                errors.iter().try_for_each(|e| write!(f, "\n  {}", one(e)))
            }
        }
    }
}
