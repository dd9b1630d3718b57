//! How upstream prints its own structures in messages about values that are not allowed.
//!
//! Validation there works on unversioned Go structs without JSON tags: members print under Go's names in the order of
//! declaration, absent ones as Go's zero value. The table says for each type, by the OpenAPI model name of its versioned
//! twin, the Go name, the JSON name (empty when the versioned type keeps it elsewhere) and the zero value of each member;
//! `@metadata` stands for the members of `metadata`. What is not in the table (labels selectors, metadata) prints as in
//! the API, in the order of Go's fields.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use super::{TypeRef, lookup_name};
use crate::json::Value;
use crate::text;

static TABLE: LazyLock<HashMap<&'static str, Vec<Member>>> = LazyLock::new(|| {
    let lines = include_str!("data/internal.txt").lines();
    lines.filter_map(|line| line.split_once(' ')).map(|(model, members)| (model, read(members))).collect()
});

struct Member {
    go: &'static str,
    json: &'static str,
    zero: &'static str,
}

fn read(members: &'static str) -> Vec<Member> {
    let mut out = Vec::new();
    for member in members.split(' ') {
        let mut parts = member.split(':');
        let mut next = || parts.next().unwrap_or_default();
        out.push(Member { go: next(), json: next(), zero: next() });
    }
    out
}

const POD_SPEC: &str = "io.k8s.api.core.v1.PodSpec";

/// A tree that keeps the order of members.
enum Node {
    Text(String),
    List(Vec<Node>),
    Members(Vec<(String, Node)>),
}

/// `value` of type `ty` in one line.
pub fn compact(value: &Value, ty: TypeRef<'_>) -> String {
    let mut out = String::new();
    node(value, Some(ty), None).write(&mut out, None);
    out
}

/// `value` of type `ty`, a line for each member, indented by one space.
pub fn pretty(value: &Value, ty: TypeRef<'_>) -> String {
    let mut out = String::new();
    node(value, Some(ty), None).write(&mut out, Some(0));
    out
}

/// The same with those members alone of which `only` has the JSON name, as if they were a structure of their own.
pub fn pretty_part(value: &Value, ty: TypeRef<'_>, only: impl Fn(&str) -> bool) -> String {
    let members = TABLE.get(ty.name()).map_or(&[][..], Vec::as_slice).iter().filter(|member| only(member.json));
    let mut out = String::new();
    Node::Members(members.map(|m| (m.go.to_owned(), member_node(m, value, ty, None))).collect())
        .write(&mut out, Some(0));
    out
}

/// Whether a value of type `ty` prints in another way than in the API.
pub fn prints_differently(ty: TypeRef<'_>) -> bool {
    let mut ty = ty;
    while let Some(element) = ty.element() {
        ty = element;
    }
    TABLE.contains_key(ty.name())
}

fn node(value: &Value, ty: Option<TypeRef<'_>>, parent: Option<&Value>) -> Node {
    match value {
        Value::Array(items) => {
            let element = ty.and_then(TypeRef::element);
            Node::List(items.iter().map(|item| node(item, element, None)).collect())
        }
        Value::Object(members) => {
            if let Some(ty) = ty
                && let Some(table) = TABLE.get(ty.name())
            {
                let mut out = Vec::new();
                for member in table {
                    if member.go == "@metadata" {
                        let metadata = ty.field("metadata").map(|field| field.ty());
                        out.extend(in_order(value.get("metadata"), metadata));
                    } else {
                        out.push((member.go.to_owned(), member_node(member, value, ty, parent)));
                    }
                }
                return Node::Members(out);
            }
            let _ = members;
            Node::Members(in_order(Some(value), ty))
        }
        scalar => Node::Text(text::json(scalar)),
    }
}

/// The members of an object that prints as in the API.
fn in_order(value: Option<&Value>, ty: Option<TypeRef<'_>>) -> Vec<(String, Node)> {
    let Some(Value::Object(members)) = value else { return Vec::new() };
    let place = |name: &str| ty.and_then(|ty| ty.field(name)).map_or(u16::MAX, |field| field.order);
    let mut sorted: Vec<_> = members.iter().collect();
    sorted.sort_by_key(|(name, _)| place(name));
    let one = |(name, member): (&crate::json::Str, &Value)| {
        (name.to_string(), node(member, ty.and_then(|ty| ty.member(name)), None))
    };
    sorted.into_iter().map(one).collect()
}

fn member_node(member: &Member, value: &Value, ty: TypeRef<'_>, parent: Option<&Value>) -> Node {
    let field = ty.field(member.json).map(|field| field.ty());
    let given = match member.json {
        // What the versioned type has in the pod's spec is in its security context here.
        "" => {
            let name = member.go[..1].to_ascii_lowercase() + &member.go[1..];
            parent.and_then(|parent| parent.get(&name))
        }
        json => value.get(json),
    };
    if ty.name() == POD_SPEC && member.json == "securityContext" {
        return node(given.unwrap_or(&Value::object()), field, Some(value));
    }
    match given {
        Some(given) if !given.is_null() => node(given, field, None),
        _ => match member.zero {
            "o" => node(&Value::object(), field, None),
            "s" => Node::Text("\"\"".to_owned()),
            "b" => Node::Text("false".to_owned()),
            "i" => Node::Text("0".to_owned()),
            "q" => Node::Text("\"0\"".to_owned()),
            "d" => Node::Text("\"0s\"".to_owned()),
            _ => Node::Text("null".to_owned()),
        },
    }
}

impl Node {
    /// `depth`: how deep the lines are indented, when there are lines.
    fn write(&self, out: &mut String, depth: Option<usize>) {
        let line = |out: &mut String, depth: Option<usize>| {
            if let Some(depth) = depth {
                let _ = write!(out, "\n{:depth$}", "");
            }
        };
        let inside = depth.map(|depth| depth + 1);
        match self {
            Node::Text(text) => out.push_str(text),
            Node::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    line(out, inside);
                    item.write(out, inside);
                }
                if !items.is_empty() {
                    line(out, depth);
                }
                out.push(']');
            }
            Node::Members(members) => {
                out.push('{');
                for (i, (name, member)) in members.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    line(out, inside);
                    out.push_str(&text::json(&Value::from(name.as_str())));
                    out.push_str(if depth.is_some() { ": " } else { ":" });
                    member.write(out, inside);
                }
                if !members.is_empty() {
                    line(out, depth);
                }
                out.push('}');
            }
        }
    }
}

/// The type that a field path such as `spec.containers[0].securityContext` leads to, from the type of a kind.
pub fn at_path<'a>(root: TypeRef<'a>, path: &str) -> Option<TypeRef<'a>> {
    let mut ty = root;
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let (_, after) = inside.split_once(']')?;
            ty = ty.element()?;
            rest = after.strip_prefix('.').unwrap_or(after);
            continue;
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        ty = ty.member(&rest[..end])?;
        rest = rest[end..].strip_prefix('.').unwrap_or(&rest[end..]);
    }
    Some(ty)
}

/// A type of `core/v1`.
pub(crate) fn core(name: &str) -> Option<TypeRef<'static>> {
    lookup_name(&format!("io.k8s.api.core.v1.{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use crate::schema;

    #[test]
    fn structures_print_with_gos_names_in_gos_order() {
        let pod = schema::lookup("", "v1", "Pod").unwrap();
        for (path, value, want) in [
            (
                "spec.resourceClaims[0]",
                json!({"name": "a"}),
                r#"{"Name":"a","ResourceClaimName":null,"ResourceClaimTemplateName":null}"#,
            ),
            ("status.podIPs", json!([{"ip": "::1"}, {"ip": "::2"}]), r#"[{"IP":"::1"},{"IP":"::2"}]"#),
            (
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution",
                json!({"nodeSelectorTerms": [{"matchFields": [{"operator": "In", "key": "a", "values": ["b"]}]}]}),
                r#"{"NodeSelectorTerms":[{"MatchExpressions":null,"MatchFields":[{"Key":"a","Operator":"In","Values":["b"]}]}]}"#,
            ),
            ("metadata.labels", json!({"b": "<", "a": "1"}), r#"{"a":"1","b":"\u003c"}"#),
        ] {
            assert_eq!(compact(&value, at_path(pod, path).unwrap()), want, "{path}");
        }
        let spec = compact(&json!({"hostNetwork": true}), core("PodSpec").unwrap());
        assert!(spec.contains(r#""SecurityContext":{"HostNetwork":true,"HostPID":false,"#), "{spec}");
        let template =
            compact(&json!({"metadata": {"name": "n", "labels": {"a": "b"}}}), core("PodTemplateSpec").unwrap());
        assert!(template.starts_with(r#"{"name":"n","labels":{"a":"b"},"Spec":{"Volumes":null,"#), "{template}");
        let source = |name: &str| matches!(name, "nfs" | "hostPath");
        let part = pretty_part(&json!({"nfs": {"server": "s"}}), core("PersistentVolumeSpec").unwrap(), source);
        assert_eq!(
            part,
            "{\n \"HostPath\": null,\n \"NFS\": {\n  \"Server\": \"s\",\n  \"Path\": \"\",\n  \"ReadOnly\": false\n }\n}"
        );
    }
}
