//! JSON with the members of structs in the order of Go's fields, for documents that people and scripts read as text.
//!
//! Our trees are sorted maps; upstream writes structs as they are declared. Members that the type does not know come
//! last, sorted.

use super::{TypeRef, lookup_name};
use crate::json::Value;

/// Writes `value`, which is of type `ty` as far as that is known.
pub fn to_vec(value: &Value, ty: Option<TypeRef<'_>>) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, ty, &mut out);
    out
}

/// Writes a document of `meta/v1` (a list of groups or resources, a Status), found by its kind.
pub fn meta_v1_to_vec(value: &Value) -> Vec<u8> {
    let name = format!("io.k8s.apimachinery.pkg.apis.meta.v1.{}", value.str_at(&["kind"]));
    to_vec(value, lookup_name(&name))
}

fn write(value: &Value, ty: Option<TypeRef<'_>>, out: &mut Vec<u8>) {
    match value {
        Value::Object(members) => {
            let place = |name: &str| ty.and_then(|ty| ty.field(name)).map_or(u16::MAX, |field| field.order);
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_by_key(|(name, _)| place(name));
            out.push(b'{');
            for (i, (name, member)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                Value::from(name.as_str()).write_to(out);
                out.push(b':');
                write(member, ty.and_then(|ty| ty.member(name)), out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            let element = ty.and_then(TypeRef::element);
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, element, out);
            }
            out.push(b']');
        }
        scalar => scalar.write_to(out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn members_stand_in_the_order_of_go_and_unknown_ones_last() {
        let resource = json!({
            "categories": ["all"], "kind": "Pod", "name": "pods", "namespaced": true, "shortNames": ["po"],
            "singularName": "pod", "storageVersionHash": "x", "verbs": ["get"], "a": {"b": 1},
        });
        let list =
            json!({"apiVersion": "v1", "groupVersion": "v1", "kind": "APIResourceList", "resources": [resource]});
        assert_eq!(
            String::from_utf8(meta_v1_to_vec(&list)).unwrap(),
            concat!(
                r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"v1","resources":[{"name":"pods","#,
                r#""singularName":"pod","namespaced":true,"kind":"Pod","verbs":["get"],"shortNames":["po"],"#,
                r#""categories":["all"],"storageVersionHash":"x","a":{"b":1}}]}"#
            )
        );
        let unknown = json!({"kind": "Nothing", "b": [1, "x", null], "a": {}});
        assert_eq!(meta_v1_to_vec(&unknown), unknown.to_vec());
    }
}
