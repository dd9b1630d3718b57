//! What the fields of every kind are, as data: names, types, list keys, patch strategies, defaults, protobuf numbers.
//!
//! One model serves built-in kinds (a table generated from Kubernetes's Go types, parsed once per process) and custom
//! resources (built from a CRD's structural schema, one [`Schema`] per version). Everything that walks objects by
//! schema (decoding, apply, strategic merge, defaulting, OpenAPI, protobuf) takes a [`TypeRef`] and works for both.
//!
//! Invariants: a schema is immutable once built; fields of a struct are sorted by name, each name once; every
//! [`TypeId`] in a schema points into the same schema.
//!
//! ```
//! use apimachinery::schema;
//! let pod = schema::lookup("", "v1", "Pod").unwrap();
//! let containers = pod.path(&["spec", "containers"]).unwrap();
//! assert_eq!(containers.list().unwrap().keys, ["name"]);
//! assert_eq!(containers.element().unwrap().name(), "io.k8s.api.core.v1.Container");
//! ```

pub mod builtin;
pub mod internal;
pub mod ordered;
mod structural;

use std::collections::HashMap;
use std::ops::{Deref, Range};

use crate::json::{Str, Value};
pub use builtin::{lookup, lookup_name};
pub use structural::StructuralError;

/// The release that the tables describe.
pub const KUBERNETES_VERSION: &str = "v1.36.4";

/// The number of a type in its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(pub(crate) u32);

/// A set of types that refer to each other.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<Type>,
    fields: Vec<Field>,
    /// Struct types by name.
    names: HashMap<Str, TypeId>,
    root: Option<TypeId>,
}

/// One type.
#[derive(Debug, Clone)]
pub struct Type {
    pub shape: Shape,
    /// `null` is a value of this type and is kept (custom resources only).
    pub nullable: bool,
    /// Members that the schema does not name are kept (custom resources and raw types).
    pub preserve_unknown_fields: bool,
    /// The value is a whole object with `apiVersion`, `kind` and `metadata`.
    pub embedded_resource: bool,
    /// What stands for null in a list or map (custom resources only; members have theirs in [`Field::default`]).
    pub default: Option<Box<Value>>,
}

#[derive(Debug, Clone)]
pub enum Shape {
    Scalar(Scalar),
    /// A string of which upstream's OpenAPI knows the values. Decoding does not check them.
    Enum(Vec<Str>),
    List(List),
    Map(MapType),
    Struct(Struct),
    /// Anything; how it merges is deduced from the value itself (`x-kubernetes-preserve-unknown-fields` without type).
    Any,
}

/// Values without named parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scalar {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// An integer or a number without stated width (custom resources).
    Integer,
    Number,
    /// Base64 in JSON.
    Bytes,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// `1h2m3s`.
    Duration,
    Quantity,
    IntOrString,
    /// An embedded object kept as it is (`runtime.RawExtension`).
    RawExtension,
    /// `metav1.FieldsV1`.
    FieldsV1,
    /// Any JSON (`apiextensions.JSON`).
    Json,
    /// `apiextensions.JSONSchemaPropsOrBool`, `...OrArray`, `...OrStringArray`: the schema inside is
    /// `io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps`.
    SchemaOrBool,
    SchemaOrArray,
    SchemaOrStringArray,
}

/// How lists of a type merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListType {
    /// Replaced as a whole; also what a list without marker is.
    #[default]
    Atomic,
    Set,
    Map,
}

#[derive(Debug, Clone)]
pub struct List {
    pub element: TypeId,
    pub list_type: ListType,
    /// The source states the list type (`Atomic` is otherwise only the fallback).
    pub explicit: bool,
    /// For [`ListType::Map`]: the members that identify an element.
    pub keys: Vec<Str>,
    /// The wire has a message with `repeated items = 1` in place of a repeated field (`ExtraValue`, `Verbs`).
    pub wrapped: bool,
}

#[derive(Debug, Clone)]
pub struct MapType {
    pub value: TypeId,
    pub atomic: bool,
    /// The source states the map type.
    pub explicit: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Struct {
    /// The OpenAPI model name, such as `io.k8s.api.core.v1.Pod`; empty for anonymous types of custom resources.
    pub name: Str,
    fields: Range<u32>,
    /// Replaced as a whole by apply.
    pub atomic: bool,
    pub unions: Vec<Union>,
    /// Group, version and kind when the type is a kind of its own.
    pub gvk: Option<(Str, Str, Str)>,
}

/// `x-kubernetes-unions`.
#[derive(Debug, Clone)]
pub struct Union {
    pub discriminator: Option<Str>,
    /// JSON name and Go name of each member.
    pub fields: Vec<(Str, Str)>,
}

/// A member of a struct.
#[derive(Debug, Clone)]
pub struct Field {
    pub name: Str,
    pub(crate) ty: TypeId,
    pub required: bool,
    /// The Go field is a pointer: zero values of it are kept, and the wire omits it only when unset.
    pub pointer: bool,
    /// Go leaves the member out of JSON when it is empty.
    pub omit_empty: bool,
    /// Go leaves the member out of JSON when it is the zero struct.
    pub omit_zero: bool,
    pub patch: PatchStrategy,
    /// `patchMergeKey`, empty when absent.
    pub merge_key: Str,
    /// The schema's default, without the zero values that OpenAPI documents add.
    pub default: Option<Box<Value>>,
    /// The protobuf field number, 0 when the field is not on the wire (`apiVersion`, `kind`).
    pub number: u16,
    /// The numbers of the messages that Go embeds and JSON flattens, outermost first, in which the field is on the
    /// wire; 0 means no more.
    pub inline: [u16; 2],
    /// Place in the Go struct: the order in which OpenAPI lists required fields.
    pub order: u16,
}

/// `patchStrategy` of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
    /// Written out as `replace`, which is also what no strategy means.
    pub replace: bool,
}

/// A type together with the schema it lives in.
#[derive(Clone, Copy, Debug)]
pub struct TypeRef<'a> {
    schema: &'a Schema,
    id: TypeId,
}

/// A field together with the schema it lives in.
#[derive(Clone, Copy, Debug)]
pub struct FieldRef<'a> {
    schema: &'a Schema,
    field: &'a Field,
}

impl PartialEq for TypeRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.schema, other.schema) && self.id == other.id
    }
}

impl Schema {
    /// The type that this schema was made for, when it was made for one (a version of a custom resource).
    pub fn root(&self) -> Option<TypeRef<'_>> {
        self.root.map(|id| TypeRef { schema: self, id })
    }

    /// A struct type by its OpenAPI model name.
    pub fn named(&self, name: &str) -> Option<TypeRef<'_>> {
        self.names.get(name).map(|&id| TypeRef { schema: self, id })
    }

    /// All struct types that have a name, in no particular order.
    pub fn structs(&self) -> impl Iterator<Item = TypeRef<'_>> {
        self.names.values().map(|&id| TypeRef { schema: self, id })
    }

    /// Adds a type of which no other type needs to know more than its number.
    pub(crate) fn add(&mut self, shape: Shape) -> TypeId {
        self.types.push(Type {
            shape,
            nullable: false,
            preserve_unknown_fields: false,
            embedded_resource: false,
            default: None,
        });
        TypeId(self.types.len() as u32 - 1)
    }

    /// Gives struct `id` its fields, sorting them.
    pub(crate) fn set_fields(&mut self, id: TypeId, mut fields: Vec<Field>) {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        fields.dedup_by(|a, b| a.name == b.name);
        let start = self.fields.len() as u32;
        self.fields.extend(fields);
        if let Shape::Struct(s) = &mut self.types[id.0 as usize].shape {
            s.fields = start..self.fields.len() as u32;
        }
    }
}

impl Field {
    /// An optional field with nothing special about it.
    pub(crate) fn plain(name: impl Into<Str>, ty: TypeId) -> Field {
        Field {
            name: name.into(),
            ty,
            required: false,
            pointer: false,
            omit_empty: true,
            omit_zero: false,
            patch: PatchStrategy::default(),
            merge_key: Str::default(),
            default: None,
            number: 0,
            inline: [0, 0],
            order: 0,
        }
    }
}

impl<'a> TypeRef<'a> {
    pub fn schema(self) -> &'a Schema {
        self.schema
    }

    /// The type itself.
    pub fn get(self) -> &'a Type {
        &self.schema.types[self.id.0 as usize]
    }

    pub fn shape(self) -> &'a Shape {
        &self.get().shape
    }

    /// Another type of the same schema.
    pub fn other(self, id: TypeId) -> TypeRef<'a> {
        TypeRef { schema: self.schema, id }
    }

    pub fn scalar(self) -> Option<Scalar> {
        match self.shape() {
            Shape::Scalar(s) => Some(*s),
            Shape::Enum(_) => Some(Scalar::String),
            _ => None,
        }
    }

    pub fn list(self) -> Option<&'a List> {
        match self.shape() {
            Shape::List(l) => Some(l),
            _ => None,
        }
    }

    pub fn map(self) -> Option<&'a MapType> {
        match self.shape() {
            Shape::Map(m) => Some(m),
            _ => None,
        }
    }

    pub fn structure(self) -> Option<&'a Struct> {
        match self.shape() {
            Shape::Struct(s) => Some(s),
            _ => None,
        }
    }

    /// The OpenAPI model name of a struct, `""` for everything else.
    pub fn name(self) -> &'a str {
        self.structure().map_or("", |s| s.name.as_str())
    }

    /// The fields of a struct, sorted by name; none for everything else.
    pub fn fields(self) -> impl DoubleEndedIterator<Item = FieldRef<'a>> + ExactSizeIterator {
        let schema = self.schema;
        self.field_slice().iter().map(move |field| FieldRef { schema, field })
    }

    fn field_slice(self) -> &'a [Field] {
        match self.shape() {
            Shape::Struct(s) => &self.schema.fields[s.fields.start as usize..s.fields.end as usize],
            _ => &[],
        }
    }

    /// A field of a struct by its JSON name.
    pub fn field(self, name: &str) -> Option<FieldRef<'a>> {
        let fields = self.field_slice();
        let i = fields.binary_search_by(|f| f.name.as_str().cmp(name)).ok()?;
        Some(FieldRef { schema: self.schema, field: &fields[i] })
    }

    /// What a list's elements or a map's values are.
    pub fn element(self) -> Option<TypeRef<'a>> {
        match self.shape() {
            Shape::List(l) => Some(self.other(l.element)),
            Shape::Map(m) => Some(self.other(m.value)),
            _ => None,
        }
    }

    /// The type of member `name` of an object of this type: a struct's field or a map's value.
    pub fn member(self, name: &str) -> Option<TypeRef<'a>> {
        match self.shape() {
            Shape::Struct(_) => self.field(name).map(|f| f.ty()),
            Shape::Map(m) => Some(self.other(m.value)),
            _ => None,
        }
    }

    /// Follows member names; lists are not entered.
    pub fn path(self, names: &[&str]) -> Option<TypeRef<'a>> {
        names.iter().try_fold(self, |t, name| t.member(name))
    }

    /// Whether apply replaces values of this type as a whole.
    pub fn is_atomic(self) -> bool {
        match self.shape() {
            Shape::Struct(s) => s.atomic,
            Shape::Map(m) => m.atomic,
            Shape::List(l) => l.list_type == ListType::Atomic,
            Shape::Scalar(_) | Shape::Enum(_) => true,
            Shape::Any => false,
        }
    }

    /// Whether objects of this type may have members that the schema does not name.
    pub fn preserves_unknown_fields(self) -> bool {
        self.get().preserve_unknown_fields
            || matches!(
                self.shape(),
                Shape::Any | Shape::Scalar(Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json)
            )
    }
}

impl Deref for FieldRef<'_> {
    type Target = Field;
    fn deref(&self) -> &Field {
        self.field
    }
}

impl<'a> FieldRef<'a> {
    pub fn ty(self) -> TypeRef<'a> {
        TypeRef { schema: self.schema, id: self.field.ty }
    }

    /// The name, for as long as the schema lives.
    pub fn name(self) -> &'a str {
        &self.field.name
    }

    /// `patchMergeKey`, for as long as the schema lives.
    pub fn merge_key(self) -> &'a str {
        &self.field.merge_key
    }

    pub(crate) fn merge_key_str(self) -> &'a Str {
        &self.field.merge_key
    }

    /// The default, for as long as the schema lives.
    pub fn default_value(self) -> Option<&'a Value> {
        self.field.default.as_deref()
    }
}
