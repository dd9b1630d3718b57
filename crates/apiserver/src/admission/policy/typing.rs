//! What is odd about the types in a ValidatingAdmissionPolicy, which its status tells.
//!
//! The kinds that a policy is about are looked up among what is served, and their types are made from the OpenAPI
//! documents that are published. Nothing here changes what a policy does.
//!
//! Follows: `k8s.io/apiserver/pkg/admission/plugin/policy/validating/typechecking.go`; `cel/common/schemas.go` (types),
//! `cel/openapi/resolver` (references).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::GroupVersionKind;
use cel::value::escape;
use cel::{Decl, Environment, Program, Type};

use crate::admission::expressions::{AUTHORIZER, Typed};
use crate::openapi::Published;
use crate::registry::Resources;

/// How many kinds are looked at.
const KINDS_MAX: usize = 10;

/// A remark on one expression of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Such as `spec.validations[0].expression`.
    pub field: String,
    pub text: String,
}

/// What is odd about the types in `policy`, given what a server serves.
pub fn remarks(policy: &Value, resources: &Resources, published: &Published) -> Vec<Remark> {
    let mut schemas = Schemas { published, documents: BTreeMap::new() };
    let spec = &policy["spec"];
    let params = spec["paramKind"].is_object().then(|| {
        let api_version = spec.str_at(&["paramKind", "apiVersion"]);
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        schemas.decl(group, version, spec.str_at(&["paramKind", "kind"])).flatten()
    });
    let environments: Vec<(String, Environment)> = kinds(spec, resources)
        .into_iter()
        .filter_map(|kind| {
            let decl = schemas.decl(&kind.group, &kind.version, &kind.kind)?;
            let mut typed = Typed::new(decl.as_ref(), true).with("authorizer", Decl::new(Type::Opaque(AUTHORIZER)));
            if let Some(params) = &params {
                let decl = params.clone().unwrap_or_else(|| Arc::new(Decl::new(Type::Dyn)));
                typed = typed.with("params", decl);
            }
            typed.declare(spec.array_at(&["variables"]), Environment::clone);
            let name = format!("{}/{}, Kind={}", kind.group, kind.version, kind.kind);
            Some((name, typed.environment().clone()))
        })
        .collect();
    let mut remarks = Vec::new();
    for (i, validation) in spec.array_at(&["validations"]).iter().enumerate() {
        for key in ["expression", "messageExpression"] {
            let source = validation.str_at(&[key]);
            if source.is_empty() && key == "messageExpression" {
                continue;
            }
            let problems: Vec<String> = environments
                .iter()
                .filter_map(|(kind, environment)| {
                    let error = Program::compile(source, environment).err()?;
                    // Nothing is evaluated here.
                    if matches!(error, cel::CompileError::Program(_)) {
                        return None;
                    }
                    Some(format!("{kind}: {error}\n"))
                })
                .collect();
            if !problems.is_empty() {
                remarks.push(Remark { field: format!("spec.validations[{i}].{key}"), text: problems.join("\n") });
            }
        }
    }
    remarks
}

/// The kinds that a policy names, without wildcards and subresources, in order.
fn kinds(spec: &Value, resources: &Resources) -> Vec<GroupVersionKind> {
    let mut found: BTreeMap<(String, String, String), GroupVersionKind> = BTreeMap::new();
    for rule in spec.array_at(&["matchConstraints", "resourceRules"]) {
        let texts = |key: &str| -> BTreeSet<&str> { rule.array_at(&[key]).iter().filter_map(Value::as_str).collect() };
        let (groups, versions) = (texts("apiGroups"), texts("apiVersions"));
        if groups.iter().chain(&versions).any(|text| text.contains('*')) {
            continue;
        }
        let mut count = 0;
        for group in &groups {
            for version in &versions {
                for name in texts("resources").into_iter().filter(|name| !name.contains(['*', '/'])) {
                    let name = name.to_lowercase();
                    // The core group's empty name stands for any group.
                    let fits = resources.all().filter(|r| {
                        (group.is_empty() || *r.gvr.group == **group)
                            && *r.gvr.version == **version
                            && (*r.gvr.resource == *name || r.singular == name)
                    });
                    for resource in fits {
                        let kind = &resource.gvk;
                        let key = (kind.group.to_string(), kind.version.to_string(), kind.kind.to_string());
                        found.insert(key, kind.clone());
                        count += 1;
                        if count == KINDS_MAX {
                            return found.into_values().collect();
                        }
                    }
                }
            }
        }
    }
    found.into_values().collect()
}

/// Types of kinds, from published documents.
struct Schemas<'a> {
    published: &'a Published,
    /// The schemas of groups and versions that were asked for.
    documents: BTreeMap<(String, String), Option<Value>>,
}

impl Schemas<'_> {
    /// The type of a kind: `None` when there is no schema, `Some(None)` when its schema says nothing.
    fn decl(&mut self, group: &str, version: &str, kind: &str) -> Option<Option<Arc<Decl>>> {
        let published = self.published;
        let document = self
            .documents
            .entry((group.to_owned(), version.to_owned()))
            .or_insert_with(|| published.schemas(group, version))
            .as_ref()?;
        let is_kind = |k: &Value| {
            k.str_at(&["group"]) == group && k.str_at(&["version"]) == version && k.str_at(&["kind"]) == kind
        };
        let (name, _) = document
            .as_object()?
            .iter()
            .find(|(_, schema)| schema.array_at(&["x-kubernetes-group-version-kind"]).iter().any(is_kind))?;
        let mut walk = Walk { schemas: document, above: vec![name.as_str()] };
        Some(walk.decl(&document[name.as_str()], true, kind).map(Arc::new))
    }
}

struct Walk<'a> {
    schemas: &'a Value,
    /// The named schemas that are being looked at: one inside itself is an object without fields.
    above: Vec<&'a str>,
}

fn reference(schema: &Value) -> Option<&str> {
    let text = schema["$ref"].as_str().or_else(|| schema.array_at(&["allOf"]).iter().find_map(reference))?;
    Some(text.strip_prefix("#/components/schemas/").unwrap_or(text))
}

impl<'a> Walk<'a> {
    fn decl(&mut self, schema: &'a Value, resource: bool, name: &str) -> Option<Decl> {
        let Some(target) = reference(schema) else { return self.plain(schema, resource, name) };
        if self.above.contains(&target) {
            return Some(Decl::object(name, BTreeMap::new()));
        }
        self.above.push(target);
        let decl = self.plain(&self.schemas[target], resource, name);
        self.above.pop();
        decl
    }

    fn plain(&mut self, schema: &'a Value, resource: bool, name: &str) -> Option<Decl> {
        if schema["format"] == "int-or-string" || schema["x-kubernetes-int-or-string"] == true {
            return Some(Decl::new(Type::Dyn));
        }
        let embedded = |schema: &Value| schema["x-kubernetes-embedded-resource"] == true;
        Some(match schema.str_at(&["type"]) {
            "array" => {
                let items = schema.get("items")?;
                Decl::list(Arc::new(self.decl(items, embedded(items), &format!("{name}.@idx"))?), None)
            }
            "object" if schema["additionalProperties"].is_object() => {
                let values = &schema["additionalProperties"];
                let value = self.decl(values, embedded(values), &format!("{name}.@elem"))?;
                Decl::map(Arc::new(Decl::new(Type::String)), Arc::new(value), None)
            }
            "object" => self.object(schema, resource, name),
            "" if resource => self.object(schema, true, name),
            "string" => Decl::new(match schema.str_at(&["format"]) {
                "byte" => Type::Bytes,
                "duration" => Type::Duration,
                "date" | "date-time" => Type::Timestamp,
                _ => Type::String,
            }),
            "boolean" => Decl::new(Type::Bool),
            "number" => Decl::new(Type::Double),
            "integer" => Decl::new(Type::Int),
            _ => return None,
        })
    }

    fn object(&mut self, schema: &'a Value, resource: bool, name: &str) -> Decl {
        let mut fields: BTreeMap<String, Arc<Decl>> = BTreeMap::new();
        for (field, property) in schema["properties"].as_object().into_iter().flat_map(|p| p.iter()) {
            let resource = property["x-kubernetes-embedded-resource"] == true;
            if let Some(decl) = self.decl(property, resource, &format!("{name}.{field}")) {
                fields.insert(escape(field).into_owned(), Arc::new(decl));
            }
        }
        if resource && !fields.contains_key("metadata") {
            let text = || Arc::new(Decl::new(Type::String));
            fields.insert("apiVersion".to_owned(), text());
            fields.insert("kind".to_owned(), text());
            let names = BTreeMap::from([("name".to_owned(), text()), ("generateName".to_owned(), text())]);
            fields.insert("metadata".to_owned(), Arc::new(Decl::object(format!("{name}.metadata"), names)));
        }
        Decl::object(name, fields)
    }
}
