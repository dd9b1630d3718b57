//! Expressions of webhooks and policies: what they may name, and the `authorizer` they may ask.
//!
//! Follows: `k8s.io/apiserver/pkg/admission/plugin/cel`, `k8s.io/apiserver/pkg/cel/library/authz.go`.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::kinds::{Expression, ExpressionUse, TOO_COMPLEX};
use cel::{Budget, Decl, Environment, EvalError, Host, Opaque, Program, Type, Val};
use futures::FutureExt;

use super::AdmissionRequest;
use crate::authn::UserInfo;
use crate::authz::{Attributes, Authorization, Authorizer, Decision, is_privileged};

/// What all expressions of one policy or webhook may spend. Source: `RuntimeCELCostBudget`.
pub const BUDGET: u64 = 10_000_000;
/// What one of them may spend. Source: `PerCallLimit`.
const CALL_BUDGET: u64 = 1_000_000;
pub(crate) const AUTHORIZER: &str = cel::declarations::AUTHORIZER;
const QUANTITY: &str = "kubernetes.Quantity";
const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";

/// The environment of admission expressions.
pub fn environment() -> Environment {
    with_authorizer(values().with("params", Decl::new(Type::Dyn)))
}

/// What every expression may name.
fn values() -> Environment {
    let names = ["object", "oldObject", "request", "namespaceObject", "variables"];
    names.into_iter().fold(Environment::new(), |all, name| all.with(name, Decl::new(Type::Dyn)))
}

fn with_authorizer(environment: Environment) -> Environment {
    environment
        .with("authorizer", Decl::new(Type::Opaque(AUTHORIZER)))
        .with("authorizer.requestResource", Decl::new(Type::Opaque(RESOURCE_CHECK)))
}

fn object(name: &str, fields: impl IntoIterator<Item = (&'static str, Decl)>) -> Decl {
    Decl::object(name, fields.into_iter().map(|(field, decl)| (field.to_owned(), Arc::new(decl))).collect())
}

/// The type of `request`. Source: `plugincel.BuildRequestType`.
fn request_type() -> Decl {
    let text = || Decl::new(Type::String);
    let list = |element: Decl| Decl::list(Arc::new(element), None);
    let map = |value: Decl| Decl::map(Arc::new(text()), Arc::new(value), None);
    let kind = || object("kubernetes.GroupVersionKind", ["group", "version", "kind"].map(|f| (f, text())));
    let resource = || object("kubernetes.GroupVersionResource", ["group", "version", "resource"].map(|f| (f, text())));
    let user = object(
        "kubernetes.UserInfo",
        [("username", text()), ("uid", text()), ("groups", list(text())), ("extra", map(list(text())))],
    );
    let texts = ["subResource", "requestSubResource", "name", "namespace", "operation"];
    object(
        "kubernetes.AdmissionRequest",
        texts.into_iter().map(|field| (field, text())).chain([
            ("kind", kind()),
            ("resource", resource()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("userInfo", user),
            ("dryRun", Decl::new(Type::Bool)),
            ("options", Decl::new(Type::Dyn)),
        ]),
    )
}

/// The type of `namespaceObject`. Source: `plugincel.BuildNamespaceType`.
fn namespace_type() -> Decl {
    let text = || Decl::new(Type::String);
    let time = || Decl::new(Type::Timestamp);
    let list = |element: Decl| Decl::list(Arc::new(element), None);
    let map = |value: Decl| Decl::map(Arc::new(text()), Arc::new(value), None);
    let condition = ["status", "type", "message", "reason"].map(|field| (field, text()));
    let condition = condition.into_iter().chain([("lastTransitionTime", time())]);
    let status = [("conditions", list(object("kubernetes.NamespaceCondition", condition))), ("phase", text())];
    let texts = ["name", "generateName", "namespace", "UID", "resourceVersion"];
    let metadata = texts.into_iter().map(|field| (field, text())).chain([
        ("labels", map(text())),
        ("annotations", map(text())),
        ("creationTimestamp", time()),
        ("deletionGracePeriodSeconds", Decl::new(Type::Int)),
        ("deletionTimestamp", time()),
        ("generation", Decl::new(Type::Int)),
        ("finalizers", list(text())),
    ]);
    object(
        "kubernetes.Namespace",
        [
            ("metadata", object("kubernetes.NamespaceMetadata", metadata)),
            ("spec", object("kubernetes.NamespaceSpec", [("finalizers", list(text()))])),
            ("status", object("kubernetes.NamespaceStatus", status)),
        ],
    )
}

/// What the expressions of one policy may name, with types: what is checked when a policy is written, and afterwards
/// for its status.
pub struct Typed {
    environment: Environment,
    /// How many of the policy's variables are in the environment.
    variables: usize,
}

impl Typed {
    /// `object` and `params` are the types of what the policy is about; without one they are checked at run time.
    pub fn new(object: Option<&Arc<Decl>>, composed: bool) -> Typed {
        let or_any = |decl: Option<&Arc<Decl>>| decl.cloned().unwrap_or_else(|| Arc::new(Decl::new(Type::Dyn)));
        let environment = Environment::new()
            .with("object", or_any(object))
            .with("oldObject", or_any(object))
            .with("request", request_type())
            .with("namespaceObject", namespace_type());
        let environment = match composed {
            true => environment.with("variables", Decl::object("kubernetes.variables", BTreeMap::new())),
            false => environment,
        };
        Typed { environment, variables: 0 }
    }

    /// Declares one name more.
    pub fn with(self, name: &str, decl: impl Into<Arc<Decl>>) -> Typed {
        Typed { environment: self.environment.with(name, decl), ..self }
    }

    /// Declares `variables`, each with the type of its expression. Those that are declared already are passed over.
    pub fn declare(&mut self, variables: &[Value], with: impl Fn(&Environment) -> Environment) {
        for variable in variables.iter().skip(self.variables) {
            let program = Program::compile(variable.str_at(&["expression"]), &with(&self.environment));
            let decl = program.map_or(Decl::new(Type::Dyn), |program| composed_type(program.output()));
            self.environment.add_field("variables", variable.str_at(&["name"]), decl);
        }
        self.variables = self.variables.max(variables.len());
    }

    pub fn environment(&self) -> &Environment {
        &self.environment
    }
}

/// What is known of a variable: plain types, and lists and maps of them. Source: `convertCelTypeToDeclType`.
fn composed_type(ty: &Type) -> Decl {
    match ty {
        Type::List(element) => Decl::list(Arc::new(composed_type(element)), None),
        Type::Map(key, value) => Decl::map(Arc::new(composed_type(key)), Arc::new(composed_type(value)), None),
        Type::Object(_) | Type::Optional(_) | Type::Type(_) | Type::Opaque(_) | Type::Error | Type::Param(_) => {
            Decl::new(Type::Dyn)
        }
        plain => Decl::new(plain.clone()),
    }
}

/// Judges the expressions of one object that a client writes, in their order.
#[derive(Default)]
pub struct Judge {
    /// The environment of policies with variables, which grows with them.
    composed: RefCell<Option<Typed>>,
}

impl Judge {
    /// Why an expression is refused. Expressions that are stored already pass.
    pub fn refused(&self, expression: &Expression<'_>) -> Option<String> {
        if expression.stored {
            return None;
        }
        if expression.usage == ExpressionUse::DeviceSelector {
            return device_selector(expression.source);
        }
        let optional = |environment: &Environment, has_authorizer: bool| {
            let mut environment = environment.clone();
            if expression.has_params {
                environment = environment.with("params", Decl::new(Type::Dyn));
            }
            if has_authorizer { with_authorizer(environment) } else { environment }
        };
        let returns: &[&str] = match expression.usage {
            ExpressionUse::MatchCondition | ExpressionUse::Validation => &["bool"],
            ExpressionUse::Message => &["string"],
            ExpressionUse::AuditAnnotation => &["string", "null_type"],
            ExpressionUse::ApplyConfiguration => &["Object"],
            ExpressionUse::JsonPatch => &["list(JSONPatch)"],
            ExpressionUse::Variable | ExpressionUse::DeviceSelector => &[],
        };
        let patches = matches!(expression.usage, ExpressionUse::ApplyConfiguration | ExpressionUse::JsonPatch);
        // Conditions see no variables; nor does anything of a validating policy that has none.
        let sees_variables = match expression.usage {
            ExpressionUse::MatchCondition => false,
            ExpressionUse::Variable => true,
            _ => patches || !expression.variables.is_empty(),
        };
        let environment = if sees_variables {
            let mut composed = self.composed.borrow_mut();
            let typed = composed.get_or_insert_with(|| Typed::new(None, true));
            typed.declare(expression.variables, |environment| optional(environment, true));
            optional(typed.environment(), expression.has_authorizer)
        } else {
            optional(Typed::new(None, false).environment(), expression.has_authorizer)
        };
        let environment = if patches { super::policy::mutating::with_patches(environment) } else { environment };
        let program = match Program::compile(expression.source, &environment) {
            Ok(program) => program,
            Err(error) => return Some(error.detail()),
        };
        let output = program.output().to_string();
        if returns.is_empty() || returns.contains(&output.as_str()) {
            return None;
        }
        Some(match returns {
            [one] => format!("must evaluate to {one} but got {output}"),
            _ => format!("must evaluate to one of [{}] but got {output}", returns.join(" ")),
        })
    }
}

/// What one evaluation of a device selector may cost. Source: `CELSelectorExpressionMaxCost`.
const SELECTOR_COST: u64 = 1_000_000;

/// The environment of device selectors. Source: `k8s.io/dynamic-resource-allocation/cel`; the sizes are those that
/// validation of ResourceSlices allows.
fn device() -> Environment {
    let text = |size| Arc::new(Decl::sized(Type::String, size));
    let by_name = |value: Decl| {
        let inner = Arc::new(Decl::map(text(32), Arc::new(value), Some(32)));
        Arc::new(Decl::map(text(63), inner, Some(32)))
    };
    let fields = BTreeMap::from([
        ("driver".to_owned(), text(63)),
        ("allowMultipleAllocations".to_owned(), Arc::new(Decl::sized(Type::Bool, 1))),
        ("attributes".to_owned(), by_name(Decl::sized(Type::Any, 64))),
        ("capacity".to_owned(), by_name(Decl::new(Type::Opaque(QUANTITY)))),
    ]);
    Environment::new().with("device", Decl::object("kubernetes.DRADevice", fields)).with_bindings()
}

fn device_selector(source: &str) -> Option<String> {
    let program = match Program::compile(source, &device()) {
        Ok(program) => program,
        Err(error) => return Some(error.detail()),
    };
    let output = program.output();
    if !matches!(output, Type::Bool | Type::Any) {
        return Some(format!("must evaluate to bool or the unknown type, not {output}"));
    }
    (program.cost().max > SELECTOR_COST).then(|| TOO_COMPLEX.to_owned())
}

/// What expressions see of one request.
pub struct Inputs {
    values: BTreeMap<&'static str, Val>,
    pub budget: Budget,
}

impl Inputs {
    pub fn new(
        request: &AdmissionRequest<'_>,
        object: Option<&Value>,
        old_object: Option<&Value>,
        request_value: &Value,
        params: Option<&Value>,
        namespace: Option<&Value>,
    ) -> Inputs {
        let val = |v: Option<&Value>| v.map_or(Val::Null, |v| Val::from_json(v, None));
        let resource = Attributes {
            user: request.user.clone(),
            namespace: request.namespace.clone(),
            group: request.gvr.group.to_string(),
            version: "*".to_owned(),
            resource: request.gvr.resource.to_string(),
            subresource: request.subresource.clone(),
            name: request.name.clone(),
            is_resource: true,
            ..Attributes::default()
        };
        let values = BTreeMap::from([
            ("object", val(object)),
            ("oldObject", val(old_object)),
            ("request", Val::from_json(request_value, None)),
            ("params", val(params)),
            ("namespaceObject", val(namespace)),
            ("authorizer", Val::Opaque(Arc::new(Check::User(request.user.clone())))),
            ("authorizer.requestResource", Val::Opaque(Arc::new(Check::Resource(Box::new(resource))))),
        ]);
        Inputs { values, budget: Budget::new(BUDGET) }
    }

    /// The object was changed.
    pub fn set_object(&mut self, object: &Value) {
        self.values.insert("object", Val::from_json(object, None));
    }

    pub fn evaluate(&mut self, program: &Program, authorizer: &dyn Authorizer) -> Result<Val, EvalError> {
        let limit = self.budget.remaining.min(CALL_BUDGET);
        let mut budget = Budget::new(limit);
        let result = program.evaluate_with(&self.values, &mut budget, &AuthorizerHost(authorizer));
        self.budget.remaining -= limit - budget.remaining;
        result
    }

    /// Evaluates `variables` in order. One that fails is told when an expression uses it.
    pub fn set_variables(&mut self, variables: &[(String, Program)], authorizer: &dyn Authorizer) -> Vec<String> {
        let mut known = BTreeMap::new();
        let mut errors = Vec::new();
        for (name, program) in variables {
            self.values.insert("variables", Val::Map(Arc::new(known.clone())));
            match self.evaluate(program, authorizer) {
                Ok(value) => {
                    known.insert(cel::Key::String(name.as_str().into()), value);
                }
                Err(error) => {
                    errors.push(format!("composited variable {name:?} fails to evaluate: {error}"));
                }
            }
        }
        self.values.insert("variables", Val::Map(Arc::new(known)));
        errors
    }
}

/// Whether all conditions hold: `Err` tells which could not be evaluated, unless another is false.
pub fn conditions_hold(
    conditions: &[(String, Result<Program, String>)],
    inputs: &mut Inputs,
    authorizer: &dyn Authorizer,
) -> Result<bool, String> {
    let mut errors = Vec::new();
    for (name, program) in conditions {
        let result = match program {
            Ok(program) => inputs
                .evaluate(program, authorizer)
                .map_err(|e| format!("expression '{}' resulted in error: {e}", program.source())),
            Err(error) => Err(error.clone()),
        };
        match result {
            Ok(Val::Bool(true)) => {}
            Ok(Val::Bool(false)) => return Ok(false),
            Ok(_) => errors.push(format!("match condition {name:?} evaluated to no boolean")),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(true) } else { Err(apimachinery::field::aggregate_texts(errors)) }
}

/// Compiles `matchConditions`.
pub fn compile_conditions(conditions: &[Value], environment: &Environment) -> Vec<(String, Result<Program, String>)> {
    let compile = |c: &Value| {
        let program = Program::compile(c.str_at(&["expression"]), environment).map_err(|e| e.to_string());
        (c.str_at(&["name"]).to_owned(), program)
    };
    conditions.iter().map(compile).collect()
}

/// The values of the `authorizer` library.
#[derive(Clone, Debug)]
enum Check {
    User(UserInfo),
    Path(UserInfo, String),
    Group(UserInfo, String),
    Resource(Box<Attributes>),
    Decision(Authorization),
}

impl Opaque for Check {
    fn type_name(&self) -> &'static str {
        match self {
            Check::User(_) => AUTHORIZER,
            Check::Path(..) => "kubernetes.authorization.PathCheck",
            Check::Group(..) => "kubernetes.authorization.GroupCheck",
            Check::Resource(_) => RESOURCE_CHECK,
            Check::Decision(_) => "kubernetes.authorization.Decision",
        }
    }
    fn equals(&self, _: &dyn Opaque) -> bool {
        false
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct AuthorizerHost<'a>(&'a dyn Authorizer);

impl AuthorizerHost<'_> {
    fn decide(&self, attributes: &Attributes) -> Result<Val, String> {
        let answer = if is_privileged(&attributes.user) {
            Authorization { decision: Decision::Allow, reason: String::new() }
        } else {
            // The policy in memory answers at once; one that would have to wait cannot be asked from an expression.
            let answer = self.0.authorize(attributes).now_or_never();
            answer.ok_or_else(|| "the authorizer could not answer at once".to_owned())?
        };
        Ok(Val::Opaque(Arc::new(Check::Decision(answer))))
    }
}

impl Host for AuthorizerHost<'_> {
    fn call(&self, function: &str, args: &[Val]) -> Option<Result<Val, String>> {
        let (Val::Opaque(receiver), rest) = args.split_first()? else { return None };
        let receiver = receiver.as_any().downcast_ref::<Check>()?;
        let texts: Vec<&str> =
            rest.iter().filter_map(|v| if let Val::String(s) = v { Some(&**s) } else { None }).collect();
        let check = |c: Check| Some(Ok(Val::Opaque(Arc::new(c))));
        match (receiver, function, texts.as_slice()) {
            (Check::User(user), "path", [path]) => check(Check::Path(user.clone(), (*path).to_owned())),
            (Check::User(user), "group", [group]) => check(Check::Group(user.clone(), (*group).to_owned())),
            (Check::User(_), "serviceAccount", [namespace, name]) => {
                check(Check::User(UserInfo::service_account(namespace, name)))
            }
            (Check::Group(user, group), "resource", [resource]) => check(Check::Resource(Box::new(Attributes {
                user: user.clone(),
                group: group.clone(),
                version: "*".to_owned(),
                resource: (*resource).to_owned(),
                is_resource: true,
                ..Attributes::default()
            }))),
            (Check::Resource(attributes), "check", [verb]) => {
                Some(self.decide(&Attributes { verb: (*verb).to_owned(), ..Attributes::clone(attributes) }))
            }
            (Check::Resource(attributes), _, [text]) => {
                let mut attributes = attributes.clone();
                let field = match function {
                    "subresource" => &mut attributes.subresource,
                    "namespace" => &mut attributes.namespace,
                    "name" => &mut attributes.name,
                    "fieldSelector" => &mut attributes.field_selector,
                    "labelSelector" => &mut attributes.label_selector,
                    _ => return None,
                };
                *field = (*text).to_owned();
                check(Check::Resource(attributes))
            }
            (Check::Path(user, path), "check", [verb]) => Some(self.decide(&Attributes {
                user: user.clone(),
                verb: (*verb).to_owned(),
                path: path.clone(),
                ..Attributes::default()
            })),
            (Check::Decision(d), "allowed", []) => Some(Ok((d.decision == Decision::Allow).into())),
            (Check::Decision(d), "reason", []) => Some(Ok(d.reason.clone().into())),
            (Check::Decision(_), "errored", []) => Some(Ok(false.into())),
            (Check::Decision(_), "error", []) => Some(Ok("".into())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_selectors_must_be_affordable_booleans_over_device() {
        // A refusal is given by its beginning.
        for (source, want) in [
            (r#"device.driver == "dra.example.com""#, None),
            (r#"device.attributes["dra.example.com"].model == "a""#, None),
            (r#"device.attributes["dra.example.com"].someBoolean"#, None),
            (r#"device.attributes["d"].version.isGreaterThan(semver("1.0.0"))"#, None),
            (r#"device.capacity["dra.example.com"].memory.compareTo(quantity("1Gi")) >= 0"#, None),
            (r#"cel.bind(dra, device.attributes["dra.example.com"], dra.one && dra.two)"#, None),
            (r#"has(device.attributes["d"].x)"#, None),
            (r#"device.attributes["d"].?x.orValue("") == "y""#, None),
            (r#"device.attributes["d"].name.matches("a.*")"#, None),
            (
                r#"device.attributes["d"].list.exists(x, x == 1)"#,
                Some(
                    "compilation failed: ERROR: <input>:1:23: expression of type 'any' cannot be range of a comprehension",
                ),
            ),
            ("device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, a == b)))", None),
            (
                "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, a == b))))",
                Some(TOO_COMPLEX),
            ),
            (r#"device.attributes.all(k, device.attributes[k].all(j, device.attributes[k][j] == "a"))"#, None),
            (r#"device.attributes["d"].models.includes("a")"#, None),
            ("device.allowMultipleAllocations == true", None),
            ("noSuchVar", Some("compilation failed: ERROR: <input>:1:1: undeclared reference to 'noSuchVar'")),
            (
                "device.attributes[true].someBoolean",
                Some("compilation failed: ERROR: <input>:1:18: found no matching overload for '_[_]'"),
            ),
            ("device.noSuch == 1", Some("compilation failed: ERROR: <input>:1:7: undefined field 'noSuch'")),
            ("device.driver", Some("must evaluate to bool or the unknown type, not string")),
            ("1 + 1", Some("must evaluate to bool or the unknown type, not int")),
            (
                "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10].all(a, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].all(b, [1, 2, 3, 4, 5, 6, 7, 8, 9, \
                 10].all(c, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].all(d, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].all(e, [1, 2, 3, 4, 5, 6, \
                 7, 8, 9, 10].all(f, a < 100))))))",
                Some(TOO_COMPLEX),
            ),
        ] {
            let got = device_selector(source);
            match want {
                None => assert_eq!(got, None, "{source}"),
                Some(want) => assert!(got.as_deref().is_some_and(|got| got.starts_with(want)), "{source}: {got:?}"),
            }
        }
    }
}
