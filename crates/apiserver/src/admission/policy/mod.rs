//! ValidatingAdmissionPolicy: expressions that requests must satisfy, and what both kinds of policies share.
//!
//! Follows: `k8s.io/apiserver/pkg/admission/plugin/policy/{generic,matching,validating}`.

pub mod mutating;
pub mod typing;

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::GroupVersionResource;
use apimachinery::labels::Selector;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{StatusResult, reason};
use async_trait::async_trait;
use cel::{Environment, EvalError, Program, Val};

use super::expressions::{self, Inputs};
use super::matching::{Cached, Criteria, converted, is_policy, is_review, request_value};
use super::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::Authorizer;

const GROUP_VERSION: (&str, &str) = ("admissionregistration.k8s.io", "v1");
/// Source: `MaxEvaluatedMessageExpressionSizeBytes`.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;

/// A policy or a part of it that does not compile, as text.
type Compiled = Result<Program, String>;

fn compile(expression: &str, environment: &Environment) -> Compiled {
    Program::compile(expression, environment).map_err(|e| e.detail())
}

/// What validating and mutating policies have in common.
struct Policy {
    name: String,
    /// `failurePolicy: Ignore`.
    ignores_failures: bool,
    criteria: Criteria,
    param_kind: Option<(String, String)>,
    conditions: Vec<(String, Compiled)>,
    variables: Vec<(String, Program)>,
    /// A variable does not compile.
    broken: Option<String>,
    bindings: Vec<Binding>,
    reinvoke: bool,
}

struct Binding {
    name: String,
    criteria: Criteria,
    param_ref: Value,
    actions: Vec<String>,
}

impl Policy {
    fn read(policy: &Value, bindings: &[Value], environment: &Environment) -> Policy {
        let spec = &policy["spec"];
        let mut broken = None;
        let mut variables = Vec::new();
        for variable in spec.array_at(&["variables"]) {
            match compile(variable.str_at(&["expression"]), environment) {
                Ok(program) => variables.push((variable.str_at(&["name"]).to_owned(), program)),
                Err(error) => broken = broken.or(Some(error)),
            }
        }
        let param_kind = spec["paramKind"].is_object().then(|| {
            (spec.str_at(&["paramKind", "apiVersion"]).to_owned(), spec.str_at(&["paramKind", "kind"]).to_owned())
        });
        let bindings = bindings.iter().filter(|b| b.str_at(&["spec", "policyName"]) == policy.name());
        Policy {
            name: policy.name().to_owned(),
            ignores_failures: spec.str_at(&["failurePolicy"]) == "Ignore",
            criteria: Criteria::of_match_resources(&spec["matchConstraints"], false),
            param_kind,
            conditions: expressions::compile_conditions(spec.array_at(&["matchConditions"]), environment),
            variables,
            broken,
            bindings: bindings
                .map(|b| Binding {
                    name: b.name().to_owned(),
                    criteria: Criteria::of_match_resources(&b["spec"]["matchResources"], true),
                    param_ref: b["spec"]["paramRef"].clone(),
                    actions: b
                        .array_at(&["spec", "validationActions"])
                        .iter()
                        .filter_map(Value::as_str)
                        .map(str::to_owned)
                        .collect(),
                })
                .collect(),
            reinvoke: spec.str_at(&["reinvocationPolicy"]) == "IfNeeded",
        }
    }

    /// The parameters that a binding brings; one `None` when there are none to bring.
    async fn params(&self, request: &AdmissionRequest<'_>, binding: &Binding) -> Result<Vec<Option<Value>>, String> {
        let Some((api_version, kind)) = &self.param_kind else { return Ok(vec![None]) };
        let reference = &binding.param_ref;
        if !reference.is_object() {
            return Ok(vec![None]);
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resources = request.storage.registry.current();
        let Some(resource) = resources.by_kind(group, version, kind).filter(|r| r.storage.is_some()) else {
            return Err(format!("paramKind kind `{api_version}, Kind={kind}` not known"));
        };
        let mut namespace = reference.str_at(&["namespace"]);
        if resource.namespaced {
            if namespace.is_empty() {
                namespace = request.namespace.as_str();
            }
            if namespace.is_empty() {
                return Err(
                    "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned()
                );
            }
        } else if !namespace.is_empty() {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
        let text = |s: Box<apimachinery::status::Status>| s.message;
        let name = reference.str_at(&["name"]);
        let found: Vec<Option<Value>> = if !name.is_empty() {
            let found = request.storage.lookup(resource, namespace, name).await.map_err(text)?;
            found.into_iter().map(Some).collect()
        } else {
            let selector = Selector::from_label_selector(&reference["selector"]).map_err(|e| e.to_string())?;
            let (gvr, all) = (&resource.gvr, namespace);
            let all = request.list(&gvr.group, &gvr.version, &gvr.resource, all).await.map_err(text)?;
            all.into_iter().filter(|o| selector.matches(o.labels())).map(Some).collect()
        };
        if found.is_empty() && reference.str_at(&["parameterNotFoundAction"]) == "Deny" {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
        }
        Ok(found)
    }
}

/// The Namespace of a request's object; none for cluster-scoped objects and Namespaces.
async fn namespace_object(request: &AdmissionRequest<'_>) -> StatusResult<Option<Value>> {
    let is_namespace = request.gvk.group.is_empty() && request.gvk.kind == "Namespace";
    if request.namespace.is_empty() || is_namespace {
        return Ok(None);
    }
    request.find("", "v1", "namespaces", "", &request.namespace).await
}

fn evaluation_error(expression: &str, error: &EvalError, variables: &[String]) -> String {
    // A variable that failed is the reason why an expression that uses it fails.
    match variables.first().filter(|_| error.to_string().contains("no such key")) {
        Some(variable) => format!("expression '{expression}' resulted in error: {variable}"),
        None => format!("expression '{expression}' resulted in error: {error}"),
    }
}

struct Validation {
    expression: String,
    program: Compiled,
    message: String,
    message_program: Option<Program>,
    reason: String,
}

struct ValidatingPolicy {
    policy: Policy,
    validations: Vec<Validation>,
}

impl ValidatingPolicy {
    fn read(policy: &Value, bindings: &[Value], environment: &Environment) -> ValidatingPolicy {
        let validations = policy.array_at(&["spec", "validations"]).iter();
        ValidatingPolicy {
            policy: Policy::read(policy, bindings, environment),
            validations: validations
                .map(|v| Validation {
                    expression: v.str_at(&["expression"]).trim().to_owned(),
                    program: compile(v.str_at(&["expression"]), environment),
                    message: v.str_at(&["message"]).trim().to_owned(),
                    message_program: Some(v.str_at(&["messageExpression"]))
                        .filter(|e| !e.is_empty())
                        .and_then(|e| compile(e, environment).ok()),
                    reason: v.str_at(&["reason"]).to_owned(),
                })
                .collect(),
        }
    }

    /// Why the request is denied: message and reason of every failed validation, in order.
    fn evaluate(&self, inputs: &mut Inputs, authorizer: &dyn Authorizer) -> Vec<(String, String)> {
        let failed = |message: String| {
            if self.policy.ignores_failures { Vec::new() } else { vec![(message, String::new())] }
        };
        if let Some(error) = &self.policy.broken {
            return failed(error.clone());
        }
        match expressions::conditions_hold(&self.policy.conditions, inputs, authorizer) {
            Ok(true) => {}
            Ok(false) => return Vec::new(),
            Err(error) => return failed(error),
        }
        let variables = inputs.set_variables(&self.policy.variables, authorizer);
        let mut denials = Vec::new();
        for validation in &self.validations {
            let result = match &validation.program {
                Ok(program) => inputs
                    .evaluate(program, authorizer)
                    .map_err(|e| evaluation_error(&validation.expression, &e, &variables)),
                Err(error) => Err(error.clone()),
            };
            match result {
                Ok(Val::Bool(true)) => {}
                Ok(_) => {
                    let message = validation.message(inputs, authorizer);
                    denials.push((message, validation.reason.clone()));
                }
                Err(message) => denials.extend(failed(message)),
            }
        }
        denials
    }
}

impl Validation {
    fn message(&self, inputs: &mut Inputs, authorizer: &dyn Authorizer) -> String {
        if let Some(program) = &self.message_program
            && let Ok(Val::String(text)) = inputs.evaluate(program, authorizer)
        {
            let text = text.trim();
            if !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n') {
                return text.to_owned();
            }
        }
        match self.message.as_str() {
            "" => format!("failed expression: {}", self.expression),
            message => message.to_owned(),
        }
    }
}

/// The code that belongs to a reason. Source: `policy/validating/errors.go`.
fn code_of(reason_text: &str) -> u16 {
    match reason_text {
        reason::FORBIDDEN => 403,
        reason::UNAUTHORIZED => 401,
        reason::REQUEST_ENTITY_TOO_LARGE => 413,
        _ => 422,
    }
}

pub struct ValidatingAdmissionPolicy {
    authorizer: Arc<dyn Authorizer>,
    cached: Cached<Vec<ValidatingPolicy>>,
}

impl ValidatingAdmissionPolicy {
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        ValidatingAdmissionPolicy { authorizer, cached: Cached::default() }
    }
}

fn handles(operation: Operation, gvr: &GroupVersionResource) -> bool {
    let _ = operation;
    !is_policy(gvr) && !is_review(gvr)
}

/// A denial on its way to the client.
struct Denied {
    message: String,
    reason: String,
}

#[async_trait]
impl AdmissionPlugin for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, _subresource: &str) -> bool {
        handles(operation, gvr)
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let resources = ["validatingadmissionpolicies", "validatingadmissionpolicybindings"];
        let build = |lists: Vec<Vec<Value>>| {
            let environment = expressions::environment();
            let [policies, bindings] = lists.as_slice() else { return Vec::new() };
            policies.iter().map(|p| ValidatingPolicy::read(p, bindings, &environment)).collect()
        };
        let Some(policies) = self.cached.get(request, GROUP_VERSION, &resources, build).await? else {
            return Ok(());
        };
        let authorizer = self.authorizer.as_ref();
        let mut denied: Vec<Denied> = Vec::new();
        let mut namespace = None;
        for policy in policies.iter().filter(|p| !p.policy.bindings.is_empty()) {
            let Some((resource, kind)) = policy.policy.criteria.matches(request).await? else { continue };
            for binding in &policy.policy.bindings {
                if binding.criteria.matches(request).await?.is_none() {
                    continue;
                }
                let said = |message: &str| {
                    format!(
                        "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {message}",
                        policy.policy.name, binding.name
                    )
                };
                let params = match policy.policy.params(request, binding).await {
                    Ok(params) => params,
                    Err(_) if policy.policy.ignores_failures => continue,
                    Err(error) => {
                        let message = said(&format!("failed to configure binding: {error}"));
                        denied.push(Denied { message, reason: String::new() });
                        continue;
                    }
                };
                if params.is_empty() {
                    continue;
                }
                if namespace.is_none() {
                    namespace = Some(namespace_object(request).await?);
                }
                let (object, old) = converted(request, &kind).await?;
                let value = request_value(request, &resource, &kind);
                for param in params {
                    let namespace = namespace.as_ref().and_then(Option::as_ref);
                    let mut inputs =
                        Inputs::new(request, object.as_ref(), old.as_ref(), &value, param.as_ref(), namespace);
                    for (message, reason) in policy.evaluate(&mut inputs, authorizer) {
                        for action in &binding.actions {
                            match action.as_str() {
                                "Deny" => denied.push(Denied { message: said(&message), reason: reason.clone() }),
                                "Warn" => request.warnings.push(format!(
                                    "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {message}",
                                    policy.policy.name, binding.name
                                )),
                                // There is no audit log.
                                _ => {}
                            }
                        }
                    }
                }
            }
        }
        let Some(Denied { message, reason }) = denied.into_iter().next() else { return Ok(()) };
        let mut status = *request.forbidden(&message);
        status.reason = if reason.is_empty() { reason::INVALID.to_owned() } else { reason };
        status.code = code_of(&status.reason);
        Err(Box::new(status.with_cause("", message, "")))
    }
}
