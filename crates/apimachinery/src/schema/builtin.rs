//! The schema of the built-in kinds: the generated table, parsed once per process and shared.
//!
//! The table is written by `cargo xtask schema`; its format is described there. A table that does not parse is a bug of
//! the build and ends the process on first use; tests parse it.

use std::collections::HashMap;
use std::sync::LazyLock;

use compact_str::CompactString;

use crate::json::{Str, Value};
use crate::schema::{
    Field, List, ListType, MapType, PatchStrategy, Scalar, Schema, Shape, Struct, TypeId, TypeRef, Union,
};

static TABLE: &str = include_str!("data/types.txt");

struct Builtin {
    schema: Schema,
    kinds: HashMap<(&'static str, &'static str, &'static str), TypeId>,
}

static BUILTIN: LazyLock<Builtin> = LazyLock::new(|| match parse(TABLE) {
    Ok(builtin) => builtin,
    Err(e) => panic!("the built-in schema table is broken: {e}"),
});

/// The text of the table.
pub(crate) fn source() -> &'static [u8] {
    TABLE.as_bytes()
}

/// The schema that holds every built-in type.
pub fn schema() -> &'static Schema {
    &BUILTIN.schema
}

/// The type of a built-in kind, also of kinds that no resource serves (`Scale`, `Status`, lists, options).
///
/// Options and `WatchEvent` belong to every group and version; `PartialObjectMetadata` and `Table` to
/// `meta.k8s.io/v1`.
pub fn lookup(group: &str, version: &str, kind: &str) -> Option<TypeRef<'static>> {
    let builtin = &*BUILTIN;
    let id = builtin.kinds.get(&(group, version, kind)).or_else(|| builtin.kinds.get(&("*", "*", kind)))?;
    Some(TypeRef { schema: &builtin.schema, id: *id })
}

/// A built-in struct type by its OpenAPI model name, such as `io.k8s.api.core.v1.Container`.
pub fn lookup_name(model: &str) -> Option<TypeRef<'static>> {
    BUILTIN.schema.named(model)
}

/// Every built-in kind.
pub fn kinds() -> impl Iterator<Item = ((&'static str, &'static str, &'static str), TypeRef<'static>)> {
    let builtin = &*BUILTIN;
    builtin.kinds.iter().map(|(&gvk, &id)| (gvk, TypeRef { schema: &builtin.schema, id }))
}

fn text(s: &'static str) -> Str {
    CompactString::const_new(s)
}

fn parse(table: &'static str) -> Result<Builtin, String> {
    let mut builtin = Builtin { schema: Schema::default(), kinds: HashMap::new() };
    let schema = &mut builtin.schema;
    let mut open: Option<(TypeId, Vec<Field>)> = None;
    for line in table.lines().filter(|l| !l.starts_with('#')) {
        let mut columns = line.split('\t');
        let mut next = || columns.next().ok_or_else(|| format!("line {line:?} is too short"));
        let tag = next()?;
        if tag == "f" {
            let Some((_, fields)) = &mut open else { return Err(format!("field outside a struct: {line:?}")) };
            fields.push(field(&mut next)?);
            continue;
        }
        if let Some((id, fields)) = open.take() {
            schema.set_fields(id, fields);
        }
        match tag {
            "s" => {
                schema.add(Shape::Scalar(scalar(next()?)?));
            }
            "e" => {
                schema.add(Shape::Enum(next()?.split('|').map(text).collect()));
            }
            "l" => {
                let (element, kind, keys) = (type_id(next()?)?, next()?, next()?);
                let list_type = match kind.trim_end_matches('w') {
                    "a" | "-" => ListType::Atomic,
                    "s" => ListType::Set,
                    "m" => ListType::Map,
                    other => return Err(format!("list type {other:?}")),
                };
                schema.add(Shape::List(List {
                    element,
                    list_type,
                    explicit: !kind.starts_with('-'),
                    keys: keys.split(',').filter(|k| !k.is_empty()).map(text).collect(),
                    wrapped: kind.ends_with('w'),
                }));
            }
            "m" => {
                let (value, kind) = (type_id(next()?)?, next()?);
                schema.add(Shape::Map(MapType { value, atomic: kind == "a", explicit: kind != "-" }));
            }
            "v" => {
                let (of, flags) = (type_id(next()?)?, next()?);
                let mut shape = schema.types.get(of.0 as usize).map(|t| t.shape.clone());
                match &mut shape {
                    Some(Shape::Struct(s)) => s.atomic = flags.contains('a'),
                    _ => return Err(format!("{line:?} is no variant of a struct before it")),
                }
                schema.add(shape.ok_or("no shape")?);
            }
            "o" => {
                let (name, flags, gvk, unions) = (next()?, next()?, next()?, next()?);
                let mut parts = gvk.split('|');
                let gvk = match (parts.next(), parts.next(), parts.next()) {
                    (Some(g), Some(v), Some(k)) => Some((g, v, k)),
                    _ => None,
                };
                let id = schema.add(Shape::Struct(Struct {
                    name: text(name),
                    atomic: flags.contains('a'),
                    unions: unions.split(';').filter_map(union).collect(),
                    gvk: gvk.map(|(g, v, k)| (text(g), text(v), text(k))),
                    ..Struct::default()
                }));
                schema.names.insert(text(name), id);
                if let Some(gvk) = gvk {
                    builtin.kinds.insert(gvk, id);
                }
                open = Some((id, Vec::new()));
            }
            other => return Err(format!("line of type {other:?}")),
        }
    }
    if let Some((id, fields)) = open.take() {
        schema.set_fields(id, fields);
    }
    schema.types.shrink_to_fit();
    schema.fields.shrink_to_fit();
    let types = schema.types.len() as u32;
    if schema.fields.iter().any(|f| f.ty.0 >= types) {
        return Err("a field refers to a type that is not there".into());
    }
    Ok(builtin)
}

fn field(next: &mut impl FnMut() -> Result<&'static str, String>) -> Result<Field, String> {
    let (name, ty, flags, numbers) = (next()?, type_id(next()?)?, next()?, next()?);
    let (merge_key, default, order) = (next()?, next()?, next()?);
    let mut numbers = numbers.split('/').map(|n| n.parse::<u16>().map_err(|e| format!("number {n:?}: {e}")));
    let mut number = || numbers.next().transpose().map(Option::unwrap_or_default);
    let has = |flag: char| flags.contains(flag);
    Ok(Field {
        name: text(name),
        ty,
        required: has('r'),
        pointer: has('p'),
        omit_empty: has('e'),
        omit_zero: has('z'),
        patch: PatchStrategy { merge: has('M'), retain_keys: has('K'), replace: has('R') },
        merge_key: text(merge_key),
        default: if default.is_empty() {
            None
        } else {
            Some(Box::new(Value::from_slice(default.as_bytes()).map_err(|e| e.to_string())?))
        },
        number: number()?,
        inline: [number()?, number()?],
        order: order.parse().map_err(|e| format!("place {order:?}: {e}"))?,
    })
}

fn type_id(text: &str) -> Result<TypeId, String> {
    text.parse().map(TypeId).map_err(|e| format!("type number {text:?}: {e}"))
}

fn union(text_: &'static str) -> Option<Union> {
    let (discriminator, members) = text_.split_once('=')?;
    Some(Union {
        discriminator: (!discriminator.is_empty()).then(|| text(discriminator)),
        fields: members.split(',').filter_map(|m| m.split_once(':')).map(|(json, go)| (text(json), text(go))).collect(),
    })
}

fn scalar(name: &str) -> Result<Scalar, String> {
    Ok(match name {
        "String" => Scalar::String,
        "Bool" => Scalar::Bool,
        "Int32" => Scalar::Int32,
        "Int64" => Scalar::Int64,
        "Double" => Scalar::Double,
        "Bytes" => Scalar::Bytes,
        "Time" => Scalar::Time,
        "MicroTime" => Scalar::MicroTime,
        "Duration" => Scalar::Duration,
        "Quantity" => Scalar::Quantity,
        "IntOrString" => Scalar::IntOrString,
        "RawExtension" => Scalar::RawExtension,
        "FieldsV1" => Scalar::FieldsV1,
        "Json" => Scalar::Json,
        "SchemaOrBool" => Scalar::SchemaOrBool,
        "SchemaOrArray" => Scalar::SchemaOrArray,
        "SchemaOrStringArray" => Scalar::SchemaOrStringArray,
        other => return Err(format!("scalar {other:?}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources;

    #[test]
    fn every_served_kind_its_list_and_its_subresources_have_types() {
        for r in resources::RESOURCES {
            let ty = lookup(r.group, r.version, r.kind).unwrap_or_else(|| panic!("{} has no type", r.kind));
            assert!(ty.field("metadata").is_some() || r.kind.ends_with("Review"), "{}", r.kind);
            if r.has_verb("list") {
                let list = lookup(r.group, r.version, &r.list_kind()).unwrap_or_else(|| panic!("{}", r.list_kind()));
                assert_eq!(list.path(&["items"]).unwrap().element(), Some(ty));
            }
            for s in r.subresources {
                let kind = s.kind.unwrap_or_else(|| r.own_kind());
                assert!(lookup(kind.group, kind.version, kind.kind).is_some(), "{}/{}", r.name, s.name);
            }
        }
        for (group, version, kind) in [
            ("", "v1", "Status"),
            ("apps", "v1", "DeleteOptions"),
            ("meta.k8s.io", "v1", "PartialObjectMetadataList"),
            ("admission.k8s.io", "v1", "AdmissionReview"),
            ("apiextensions.k8s.io", "v1", "ConversionReview"),
            ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList"),
        ] {
            assert!(lookup(group, version, kind).is_some(), "{kind}");
        }
    }

    #[test]
    fn fields_know_keys_strategies_defaults_and_numbers() {
        let container = lookup_name("io.k8s.api.core.v1.Container").unwrap();
        let ports = container.field("ports").unwrap();
        assert_eq!(ports.ty().list().unwrap().keys, ["containerPort", "protocol"]);
        assert_eq!((ports.merge_key.as_str(), ports.patch.merge, ports.number), ("containerPort", true, 6));
        let protocol = ports.ty().element().unwrap().field("protocol").unwrap();
        assert_eq!(protocol.default_value(), Some(&Value::from("TCP")));
        let spec = lookup("", "v1", "Pod").unwrap().member("spec").unwrap();
        assert!(spec.field("automountServiceAccountToken").unwrap().pointer);
        assert!(!spec.field("hostNetwork").unwrap().pointer);
        let volumes = spec.field("volumes").unwrap();
        assert!(volumes.patch.merge && volumes.patch.retain_keys);
        let volume = volumes.ty().element().unwrap();
        assert_eq!(volume.field("name").unwrap().inline, [0, 0]);
        assert_eq!(volume.field("emptyDir").unwrap().inline, [2, 0]);
        assert!(lookup_name("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector").unwrap().is_atomic());
        let claim = lookup("", "v1", "PersistentVolume").unwrap().path(&["spec", "claimRef"]).unwrap();
        assert!(!claim.is_atomic() && lookup_name(claim.name()).unwrap().is_atomic());
        assert!(claim.field("uid").is_some());
        let rule = lookup_name("io.k8s.api.admissionregistration.v1.NamedRuleWithOperations").unwrap();
        assert_eq!(rule.field("apiGroups").unwrap().inline, [2, 2]);
    }
}
