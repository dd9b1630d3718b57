//! Types of expressions, and declarations: types with the bounds that cost estimation needs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The static type of an expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Checked at run time.
    Dyn,
    /// Checked at run time too, but not gone through: `google.protobuf.Any`.
    Any,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Object(Arc<ObjectType>),
    Optional(Arc<Type>),
    /// The type of a type.
    Type(Arc<Type>),
    /// A type with functions and no visible parts, such as `net.IP`.
    Opaque(&'static str),
    /// What is wrong is told elsewhere: it fits everywhere.
    Error,
    /// Stands for one type throughout a signature; or, when numbered by the checker, for one not known yet.
    Param(u32),
}

/// An object with named fields. Compared by name: names are unique within an environment.
#[derive(Clone, Debug)]
pub struct ObjectType {
    pub name: String,
    pub fields: BTreeMap<String, Arc<Decl>>,
}

impl PartialEq for ObjectType {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// A type together with how large its values can be.
#[derive(Clone, Debug, PartialEq)]
pub struct Decl {
    pub ty: Type,
    /// The most characters, bytes, elements or entries that a value can have; `None` when nothing bounds it.
    pub size_max: Option<u64>,
    /// The elements of a list, the values of a map.
    pub element: Option<Arc<Decl>>,
    /// The keys of a map.
    pub key: Option<Arc<Decl>>,
}

impl Decl {
    pub fn new(ty: Type) -> Decl {
        Decl { ty, size_max: None, element: None, key: None }
    }

    pub fn list(element: Arc<Decl>, size_max: Option<u64>) -> Decl {
        Decl { ty: Type::List(Arc::new(element.ty.clone())), size_max, element: Some(element), key: None }
    }

    pub fn map(key: Arc<Decl>, value: Arc<Decl>, size_max: Option<u64>) -> Decl {
        let ty = Type::Map(Arc::new(key.ty.clone()), Arc::new(value.ty.clone()));
        Decl { ty, size_max, element: Some(value), key: Some(key) }
    }

    pub fn object(name: impl Into<String>, fields: BTreeMap<String, Arc<Decl>>) -> Decl {
        Decl::new(Type::Object(Arc::new(ObjectType { name: name.into(), fields })))
    }

    pub fn sized(ty: Type, size_max: u64) -> Decl {
        Decl { size_max: Some(size_max), ..Decl::new(ty) }
    }

    /// The declaration of a field, when this is an object that has it.
    pub fn field(&self, name: &str) -> Option<&Arc<Decl>> {
        match &self.ty {
            Type::Object(object) => object.fields.get(name),
            _ => None,
        }
    }
}

impl Type {
    pub fn list(element: Type) -> Type {
        Type::List(Arc::new(element))
    }

    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value))
    }

    pub fn optional(held: Type) -> Type {
        Type::Optional(Arc::new(held))
    }

    pub fn is_numeric(&self) -> bool {
        matches!(self, Type::Int | Type::Uint | Type::Double)
    }
}

impl Type {
    /// Whether null fits where this is wanted: objects, and what is held by reference.
    pub(crate) fn is_nullable(&self) -> bool {
        matches!(
            self,
            Type::Null
                | Type::Dyn
                | Type::Any
                | Type::Object(_)
                | Type::Duration
                | Type::Timestamp
                | Type::Opaque(_)
                | Type::Optional(_)
        )
    }

    /// The name without parameters, as `type(x)` has it.
    pub(crate) fn base_name(&self) -> String {
        match self {
            Type::List(_) => "list".to_owned(),
            Type::Map(..) => "map".to_owned(),
            Type::Optional(_) => "optional_type".to_owned(),
            Type::Type(_) => "type".to_owned(),
            other => other.to_string(),
        }
    }

    /// As messages of the checker write it: `timestamp` and `null`, where the type's own name is longer.
    pub(crate) fn in_message(&self) -> String {
        match self {
            Type::Duration => "duration".to_owned(),
            Type::Timestamp => "timestamp".to_owned(),
            Type::Null => "null".to_owned(),
            Type::Any => "any".to_owned(),
            Type::List(element) => format!("list({})", element.in_message()),
            Type::Map(key, value) => format!("map({}, {})", key.in_message(), value.in_message()),
            Type::Optional(held) => format!("optional_type({})", held.in_message()),
            Type::Type(inner) => match &**inner {
                Type::Type(of) if **of == Type::Dyn => "type(type)".to_owned(),
                inner => format!("type({})", inner.in_message()),
            },
            other => other.to_string(),
        }
    }
}

/// As cel-go names them: `list(int)`, `map(string, dyn)`.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Any => f.write_str("google.protobuf.Any"),
            Type::Error => f.write_str("!error!"),
            Type::Null => f.write_str("null_type"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Duration => f.write_str("google.protobuf.Duration"),
            Type::Timestamp => f.write_str("google.protobuf.Timestamp"),
            Type::List(element) => write!(f, "list({element})"),
            Type::Map(key, value) => write!(f, "map({key}, {value})"),
            Type::Object(object) => f.write_str(&object.name),
            Type::Optional(held) => write!(f, "optional_type({held})"),
            // The type of `type` itself has no parameter.
            Type::Type(inner) => match &**inner {
                Type::Type(of) if **of == Type::Dyn => f.write_str("type(type)"),
                inner => write!(f, "type({inner})"),
            },
            Type::Opaque(name) => f.write_str(name),
            Type::Param(i) => write!(f, "_var{i}"),
        }
    }
}
