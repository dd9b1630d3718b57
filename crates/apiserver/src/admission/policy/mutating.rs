//! MutatingAdmissionPolicy: expressions that change objects, by an apply configuration or a JSON patch.
//!
//! Follows: `k8s.io/apiserver/pkg/admission/plugin/policy/mutating`.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::apply::{BuiltinVersions, FieldManager};
use apimachinery::gvk::{GroupVersionKind, GroupVersionResource};
use apimachinery::patch::json::JsonPatch;
use apimachinery::status::{Status, StatusResult, reason};
use apimachinery::time::Timestamp;
use async_trait::async_trait;
use cel::{Decl, Environment, Type};

use super::{Compiled, GROUP_VERSION, Policy, compile, evaluation_error, handles, namespace_object};
use crate::admission::expressions::{self, Inputs};
use crate::admission::matching::{Cached, converted, request_value};
use crate::admission::webhook::set_object;
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::Authorizer;

enum Mutation {
    Apply { expression: String, program: Compiled },
    JsonPatch { expression: String, program: Compiled },
}

struct MutatingPolicy {
    policy: Policy,
    mutations: Vec<Mutation>,
}

/// The environment of mutations: besides the usual names, `Object{...}` of any shape and `JSONPatch{...}`.
fn environment() -> Environment {
    with_patches(expressions::environment())
}

/// Adds the types that mutations build.
pub fn with_patches(environment: Environment) -> Environment {
    let text = || Arc::new(Decl::new(Type::String));
    let patch = BTreeMap::from([
        ("op".to_owned(), text()),
        ("path".to_owned(), text()),
        ("from".to_owned(), text()),
        ("value".to_owned(), Arc::new(Decl::new(Type::Dyn))),
    ]);
    environment.with_dynamic_objects("Object").with_object(Arc::new(Decl::object("JSONPatch", patch)))
}

impl MutatingPolicy {
    fn read(policy: &Value, bindings: &[Value], environment: &Environment) -> MutatingPolicy {
        let mutations = policy.array_at(&["spec", "mutations"]).iter();
        let mutation = |m: &Value| {
            let key = if m.str_at(&["patchType"]) == "JSONPatch" { "jsonPatch" } else { "applyConfiguration" };
            let expression = m.str_at(&[key, "expression"]).to_owned();
            let program = compile(&expression, environment);
            if key == "jsonPatch" {
                Mutation::JsonPatch { expression, program }
            } else {
                Mutation::Apply { expression, program }
            }
        };
        MutatingPolicy {
            policy: Policy::read(policy, bindings, environment),
            mutations: mutations.map(mutation).collect(),
        }
    }
}

pub struct MutatingAdmissionPolicy {
    authorizer: Arc<dyn Authorizer>,
    cached: Cached<Vec<MutatingPolicy>>,
}

impl MutatingAdmissionPolicy {
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        MutatingAdmissionPolicy { authorizer, cached: Cached::default() }
    }

    /// Runs one policy; true when it changed the object. Failures are told in `errors`.
    async fn invoke(
        &self,
        policy: &MutatingPolicy,
        request: &mut AdmissionRequest<'_>,
        errors: &mut Vec<String>,
    ) -> StatusResult<bool> {
        let Some((resource, kind)) = policy.policy.criteria.matches(request).await? else { return Ok(false) };
        let mut changed = false;
        for binding in &policy.policy.bindings {
            if binding.criteria.matches(request).await?.is_none() {
                continue;
            }
            let said = |message: String| {
                format!("policy '{}' with binding '{}' denied request: {message}", policy.policy.name, binding.name)
            };
            let mut fail = |message: String| {
                if !policy.policy.ignores_failures {
                    errors.push(said(message));
                }
            };
            let params = match policy.policy.params(request, binding).await {
                Ok(params) => params,
                Err(error) => {
                    fail(format!("failed to configure binding: {error}"));
                    continue;
                }
            };
            let namespace = namespace_object(request).await?;
            for param in params {
                let (Some(mut object), old) = converted(request, &kind).await? else { continue };
                let value = request_value(request, &resource, &kind);
                let before = object.clone();
                let mut inputs =
                    Inputs::new(request, Some(&object), old.as_ref(), &value, param.as_ref(), namespace.as_ref());
                match self.mutate(policy, request, &resource, &kind, &mut object, &mut inputs) {
                    Ok(()) => {}
                    Err(message) => {
                        fail(message);
                        continue;
                    }
                }
                if object != before {
                    changed = true;
                    set_object(request, object, &kind).await?;
                }
            }
        }
        Ok(changed)
    }

    fn mutate(
        &self,
        policy: &MutatingPolicy,
        request: &AdmissionRequest<'_>,
        resource: &GroupVersionResource,
        kind: &GroupVersionKind,
        object: &mut Value,
        inputs: &mut Inputs,
    ) -> Result<(), String> {
        let authorizer = self.authorizer.as_ref();
        if let Some(error) = &policy.policy.broken {
            return Err(error.clone());
        }
        if !expressions::conditions_hold(&policy.policy.conditions, inputs, authorizer)? {
            return Ok(());
        }
        for mutation in &policy.mutations {
            let variables = inputs.set_variables(&policy.policy.variables, authorizer);
            let (Mutation::Apply { expression, program } | Mutation::JsonPatch { expression, program }) = mutation;
            let program = program.as_ref().map_err(Clone::clone)?;
            let result =
                inputs.evaluate(program, authorizer).map_err(|e| evaluation_error(expression, &e, &variables))?;
            let result = result.to_json().ok_or_else(|| format!("expression '{expression}' gave no object"))?;
            *object = match mutation {
                Mutation::JsonPatch { .. } => json_patched(object, &result)?,
                Mutation::Apply { .. } => applied(request, resource, kind, object, result)?,
            };
            inputs.set_object(object);
        }
        Ok(())
    }
}

fn json_patched(object: &Value, operations: &Value) -> Result<Value, String> {
    let patch = JsonPatch::decode(operations.to_string().as_bytes()).map_err(|e| e.to_string())?;
    match patch.apply(object) {
        // A patch whose test fails is not for this object.
        Err(error) if error.to_string().ends_with("test failed") => Ok(object.clone()),
        other => other.map_err(|e| format!("JSON Patch: {e}")),
    }
}

/// Merges an apply configuration into the object; who owns what stays as it was.
fn applied(
    request: &AdmissionRequest<'_>,
    resource: &GroupVersionResource,
    kind: &GroupVersionKind,
    object: &Value,
    mut configuration: Value,
) -> Result<Value, String> {
    let found = request.storage.registry.get(&resource.group, &resource.version, &resource.resource);
    let found = found.ok_or_else(|| format!("{kind} is not served"))?;
    kind.set_on(&mut configuration);
    let mut live = object.clone();
    let managed_fields = live["metadata"].remove_at(&["managedFields"]);
    let same = |object: &Value, _: &str| Ok(object.clone());
    // A Scale has one version.
    let single = BuiltinVersions { kind: &kind.kind, convert: &same };
    let manager = FieldManager {
        kind,
        subresource: "",
        versions: if kind.kind == found.gvk.kind { found.strategy.versions() } else { &single },
        filters: &BTreeMap::new(),
        now: Timestamp::from(std::time::SystemTime::now()),
    };
    let mut merged = manager
        .apply(Some(&live), &configuration, "mutating-admission-policy", true)
        .map_err(|e| format!("error applying patch: {e}"))?;
    match managed_fields {
        Some(fields) => merged.set_at(&["metadata", "managedFields"], fields),
        None => {
            merged["metadata"].remove_at(&["managedFields"]);
        }
    }
    Ok(merged)
}

#[async_trait]
impl AdmissionPlugin for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    fn is_dynamic(&self) -> bool {
        true
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, _subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update) && handles(operation, gvr)
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let resources = ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"];
        let build = |lists: Vec<Vec<Value>>| {
            let environment = environment();
            let [policies, bindings] = lists.as_slice() else { return Vec::new() };
            policies.iter().map(|p| MutatingPolicy::read(p, bindings, &environment)).collect()
        };
        let Some(policies) = self.cached.get(request, GROUP_VERSION, &resources, build).await? else {
            return Ok(());
        };
        let mut errors = Vec::new();
        let mut last_change = None;
        for (i, policy) in policies.iter().enumerate().filter(|(_, p)| !p.policy.bindings.is_empty()) {
            if self.invoke(policy, request, &mut errors).await? {
                last_change = Some(i);
            }
        }
        // Those that ran before the last change and want to see it.
        for policy in policies.iter().take(last_change.unwrap_or(0)).filter(|p| p.policy.reinvoke) {
            self.invoke(policy, request, &mut errors).await?;
        }
        let Some(first) = errors.first().cloned() else { return Ok(()) };
        let mut status: Status = *request.forbidden("");
        status.message = first;
        status.reason = reason::INVALID.to_owned();
        for error in errors {
            status = status.with_cause("", error, "");
        }
        Err(Box::new(status))
    }
}
