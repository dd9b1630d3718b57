//! CEL rules of custom resources: compiled with the definition, run on every write.
//!
//! Invariants: what all rules of one object may spend is bounded ([`OBJECT_BUDGET`]), and so is one rule ([`CALL_BUDGET`]).
//!
//! Follows: `apiextensions-apiserver/pkg/apiserver/schema/cel`; limits of `k8s.io/apiserver/pkg/apis/cel/config.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::field::{BadValue, ErrorType, FieldError, FieldPath};
use apimachinery::json::Str;
use cel::value::escape;
use cel::{Budget, Decl, Environment, EvalError, Program, Type, Val};

use super::schema::{Additional, ListType, Node, NodeType, Rule};

const CALL_BUDGET: u64 = 1_000_000;
const OBJECT_BUDGET: u64 = 10_000_000;
/// Source: `validation.StaticEstimatedCostLimit`.
const ESTIMATE_MAX: u64 = 10_000_000;
/// Our estimates are coarser than upstream's, and must not refuse what a real server accepts.
const ESTIMATE_SLACK: u64 = 10;
/// The longest message that an expression may make.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
const TYPE_META: [&str; 3] = ["apiVersion", "kind", "metadata"];
const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;

struct Compiled {
    rule: Rule,
    program: Program,
    message: Option<Program>,
    uses_old: bool,
}

/// The rules of one place and below it.
#[derive(Default)]
pub struct Rules {
    own: Vec<Compiled>,
    decl: Option<Arc<Decl>>,
    type_text: &'static str,
    properties: BTreeMap<Str, Rules>,
    additional: Option<Box<Rules>>,
    items: Option<Box<Rules>>,
    /// For list maps: what elements are matched with their old state by.
    keys: Option<Vec<Str>>,
}

/// A rule that cannot be used: where it stands in the schema, which member, and why.
pub struct RuleError {
    pub path: String,
    pub rule: Rule,
    pub member: &'static str,
    pub message: String,
    /// The estimate is too high; else the expression is wrong.
    pub too_costly: bool,
}

/// The declaration of a node's values. `resource` nodes have `apiVersion`, `kind` and `metadata` (name and generateName).
fn declare(node: &Node, resource: bool, name: &str) -> Decl {
    let string =
        |max: Option<i64>| Decl { size_max: max.and_then(|m| u64::try_from(m).ok()), ..Decl::new(Type::String) };
    let checks = node.checks.as_deref();
    match node.ty {
        None if resource || node.embedded_resource => object(node, true, name),
        None | Some(NodeType::IntOrString) => Decl::new(Type::Dyn),
        Some(NodeType::Boolean) => Decl::new(Type::Bool),
        Some(NodeType::Integer) => Decl::new(Type::Int),
        Some(NodeType::Number) => Decl::new(Type::Double),
        Some(NodeType::String) => {
            let longest = checks.and_then(|c| c.allowed.as_ref()).map(|values| {
                values.iter().filter_map(Value::as_str).map(|s| s.chars().count() as i64).max().unwrap_or(0)
            });
            match checks.map_or("", |c| c.format.as_str()) {
                "byte" => Decl { ty: Type::Bytes, ..string(checks.and_then(|c| c.max_length)) },
                "duration" => Decl::new(Type::Duration),
                "date" | "date-time" => Decl::new(Type::Timestamp),
                _ => string(longest.or(checks.and_then(|c| c.max_length))),
            }
        }
        Some(NodeType::Array) => {
            let element = node
                .items
                .as_ref()
                .map_or_else(|| Decl::new(Type::Dyn), |i| declare(i, false, &format!("{name}.@idx")));
            let max = checks.and_then(|c| c.max_items).and_then(|m| u64::try_from(m).ok());
            let max = max.unwrap_or_else(|| REQUEST_BYTES_MAX / (smallest(node.items.as_deref()) + 1));
            Decl::list(Arc::new(element), Some(max))
        }
        Some(NodeType::Object) => match &node.additional {
            Additional::Schema(values) if node.properties.is_empty() => {
                let element = declare(values, false, &format!("{name}.@elem"));
                let max = checks.and_then(|c| c.max_properties).and_then(|m| u64::try_from(m).ok());
                let max = max.unwrap_or_else(|| REQUEST_BYTES_MAX / (smallest(Some(values)) + 3));
                Decl::map(Arc::new(Decl::new(Type::String)), Arc::new(element), Some(max))
            }
            _ => object(node, resource || node.embedded_resource, name),
        },
    }
}

fn object(node: &Node, resource: bool, name: &str) -> Decl {
    let mut fields: BTreeMap<String, Arc<Decl>> = BTreeMap::new();
    for (field, child) in &node.properties {
        // A field that a rule cannot write is a field that rules cannot see.
        let decl = declare(child, false, &format!("{name}.{field}"));
        fields.insert(escape(field).into_owned(), Arc::new(decl));
    }
    if resource {
        let text = || Arc::new(Decl::sized(Type::String, 253));
        fields.insert("apiVersion".to_owned(), text());
        fields.insert("kind".to_owned(), text());
        let metadata = [("name".to_owned(), text()), ("generateName".to_owned(), text())].into();
        fields.insert("metadata".to_owned(), Arc::new(Decl::object(format!("{name}.metadata"), metadata)));
    }
    Decl::object(name, fields)
}

/// The fewest bytes that a value takes in a request.
fn smallest(node: Option<&Node>) -> u64 {
    match node.and_then(|n| n.ty) {
        Some(NodeType::Object) => {
            let required =
                node.and_then(|n| n.checks.as_ref()).map_or(0, |c| c.required.iter().map(|r| r.len() as u64 + 4).sum());
            2 + required
        }
        Some(NodeType::Array | NodeType::String) => 2,
        Some(NodeType::Boolean) => 4,
        _ => 1,
    }
}

impl Rules {
    /// Compiles the rules of a schema. Errors name the rule by its place, such as `properties[spec]`.
    pub fn compile(root: &Node, errors: &mut Vec<RuleError>) -> Rules {
        let name = "object".to_owned();
        compile(root, Place { resource: true, path: String::new(), name, times: 1, decl: None }, errors)
    }

    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.properties.is_empty() && self.additional.is_none() && self.items.is_none()
    }

    /// Runs the rules on `object`; transition rules need `old`.
    pub fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        if self.is_empty() {
            return;
        }
        let mut run = Run { left: OBJECT_BUDGET, exhausted: false, errors };
        run.node(self, object, old, "");
    }
}

/// Where in the schema a node stands.
struct Place {
    /// A root or embedded object: has `apiVersion`, `kind` and `metadata`.
    resource: bool,
    path: String,
    /// Of its type, in messages.
    name: String,
    /// How often the node can occur in an object.
    times: u64,
    /// Its declaration, when a node above has made it: nothing is declared twice.
    decl: Option<Arc<Decl>>,
}

impl Place {
    fn below(&self, path: &str, name: &str, times: u64, decl: Option<&Arc<Decl>>) -> Place {
        Place {
            resource: false,
            path: format!("{}{path}.", self.path),
            name: format!("{}.{name}", self.name),
            times: self.times.saturating_mul(times),
            decl: decl.cloned(),
        }
    }
}

fn compile(node: &Node, mut place: Place, errors: &mut Vec<RuleError>) -> Rules {
    let mut rules = Rules {
        type_text: node.ty.map_or("object", NodeType::text),
        keys: (node.list_type == ListType::Map).then(|| node.list_map_keys.clone()),
        ..Rules::default()
    };
    if !node.rules.is_empty() {
        let decl = place.decl.get_or_insert_with(|| Arc::new(declare(node, place.resource, &place.name))).clone();
        for (i, rule) in node.rules.iter().enumerate() {
            let at = format!("{}x-kubernetes-validations[{i}]", place.path);
            rules.own.extend(compile_rule(rule, &decl, &at, place.times, errors));
        }
        rules.decl = Some(decl);
    }
    let decl = place.decl.as_deref();
    let resource = place.resource || node.embedded_resource;
    for (field, child) in &node.properties {
        // The declaration of an object's metadata is not made from the schema.
        let known = decl.filter(|_| !(resource && TYPE_META.contains(&field.as_str())));
        let known = known.and_then(|d| d.field(&escape(field)));
        let compiled = compile(child, place.below(&format!("properties[{field}]"), field, 1, known), errors);
        if !compiled.is_empty() {
            rules.properties.insert(field.clone(), compiled);
        }
    }
    let checks = node.checks.as_deref();
    let bound = |max: Option<i64>, child: &Node| {
        max.and_then(|m| u64::try_from(m).ok()).unwrap_or_else(|| REQUEST_BYTES_MAX / (smallest(Some(child)) + 1))
    };
    let element = decl.and_then(|d| d.element.as_ref());
    if let Additional::Schema(child) = &node.additional {
        let times = bound(checks.and_then(|c| c.max_properties), child);
        let compiled = compile(child, place.below("additionalProperties", "@elem", times, element), errors);
        rules.additional = (!compiled.is_empty()).then(|| Box::new(compiled));
    }
    if let Some(child) = &node.items {
        let times = bound(checks.and_then(|c| c.max_items), child);
        let compiled = compile(child, place.below("items", "@idx", times, element), errors);
        rules.items = (!compiled.is_empty()).then(|| Box::new(compiled));
    }
    rules
}

fn compile_rule(
    rule: &Rule,
    decl: &Arc<Decl>,
    path: &str,
    times: u64,
    errors: &mut Vec<RuleError>,
) -> Option<Compiled> {
    let mut fail = |member: &'static str, message: String, too_costly: bool| {
        errors.push(RuleError { path: path.to_owned(), rule: rule.clone(), member, message, too_costly });
    };
    if rule.rule.trim().is_empty() {
        return None;
    }
    let optional_old = rule.optional_old_self == Some(true);
    let old = match optional_old {
        true => Arc::new(Decl::new(Type::optional(decl.ty.clone()))),
        false => decl.clone(),
    };
    let environment = Environment::new().with("self", decl.clone()).with("oldSelf", old);
    let program = match Program::compile(&rule.rule, &environment) {
        Ok(program) => program,
        Err(error) => {
            fail("rule", format!("compilation failed: {error}"), false);
            return None;
        }
    };
    if !matches!(program.output(), Type::Bool | Type::Dyn) {
        fail("rule", "cel expression must evaluate to a bool".into(), false);
        return None;
    }
    let uses_old = program.uses("oldSelf");
    if optional_old && !uses_old {
        fail("optionalOldSelf", "may not be set if oldSelf is not used in rule".into(), false);
    }
    if let Some(factor) = over_budget(program.cost().max, times) {
        fail("rule", format!("estimated rule cost exceeds budget by factor of {factor}"), true);
    }
    let message = match rule.message_expression.trim() {
        "" => None,
        expression => match Program::compile(expression, &environment) {
            Ok(message) if matches!(message.output(), Type::String | Type::Dyn) => Some(message),
            Ok(_) => {
                fail("messageExpression", "messageExpression must evaluate to a string".into(), false);
                None
            }
            Err(error) => {
                fail("messageExpression", format!("messageExpression compilation failed: {error}"), false);
                None
            }
        },
    };
    Some(Compiled { rule: rule.clone(), program, message, uses_old })
}

/// How far an estimate is over what is allowed, as a message says it.
fn over_budget(cost: u64, times: u64) -> Option<String> {
    let total = cost.saturating_mul(times);
    if total <= ESTIMATE_MAX.saturating_mul(ESTIMATE_SLACK) {
        return None;
    }
    let factor = total as f64 / ESTIMATE_MAX as f64;
    let shown = if factor > 100.0 { "more than 100x".to_owned() } else { format!("{factor:.1}x") };
    Some(format!(
        "{shown} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    ))
}

struct Run<'a> {
    left: u64,
    exhausted: bool,
    errors: &'a mut Vec<FieldError>,
}

fn field(path: &str) -> FieldPath {
    FieldPath::new(if path.is_empty() { "<nil>" } else { path })
}

impl Run<'_> {
    fn node(&mut self, rules: &Rules, value: &Value, old: Option<&Value>, path: &str) {
        if value.is_null() || self.exhausted {
            return;
        }
        if let Some(decl) = &rules.decl {
            self.own(rules, decl, value, old, path);
        }
        match value {
            Value::Object(map) => {
                for (name, member) in map.iter() {
                    let below = rules.properties.get(name).or(rules.additional.as_deref());
                    if let Some(below) = below {
                        let at = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
                        self.node(below, member, old.and_then(|o| o.get(name)), &at);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(below) = &rules.items {
                    for (i, item) in list.iter().enumerate() {
                        // Only elements of list maps can be matched with what they were.
                        let matching = rules.keys.as_ref().and_then(|keys| {
                            let same = |o: &&Value| keys.iter().all(|k| o.get(k) == item.get(k));
                            old.and_then(Value::as_array)?.iter().find(same)
                        });
                        self.node(below, item, matching, &format!("{path}[{i}]"));
                    }
                }
            }
            _ => {}
        }
    }

    fn own(&mut self, rules: &Rules, decl: &Decl, value: &Value, old: Option<&Value>, path: &str) {
        let old = old.filter(|o| !o.is_null());
        let this = Val::from_json(value, Some(decl));
        let old_value = old.map(|o| Val::from_json(o, Some(decl)));
        for compiled in &rules.own {
            let optional = compiled.rule.optional_old_self == Some(true);
            if compiled.uses_old && old_value.is_none() && !optional {
                continue;
            }
            let mut variables = BTreeMap::from([("self", this.clone())]);
            match (&old_value, optional) {
                (old, true) => {
                    variables.insert("oldSelf", Val::Optional(old.clone().map(Arc::new)));
                }
                (Some(old), false) => {
                    variables.insert("oldSelf", old.clone());
                }
                (None, false) => {}
            }
            let shown = compiled.rule.rule.trim();
            let invalid = |detail: String| FieldError::invalid(&field(path), rules.type_text, detail);
            match self.evaluate(&compiled.program, &variables) {
                Ok(Val::Bool(true)) => {}
                Ok(Val::Bool(false)) => {
                    // What has not changed and was accepted before stays accepted.
                    if !compiled.uses_old && old.is_some_and(|o| o == value) {
                        continue;
                    }
                    let detail = self.message(compiled, &variables);
                    let at = match compiled.rule.field_path.trim_start_matches('.') {
                        "" => field(path),
                        below if path.is_empty() => FieldPath::new(below),
                        below => FieldPath::new(&format!("{path}.{below}")),
                    };
                    let bad = match value {
                        Value::Object(_) | Value::Array(_) => BadValue::Omitted,
                        other => BadValue::from(other.clone()),
                    };
                    let kind = match compiled.rule.reason.as_str() {
                        "FieldValueForbidden" => ErrorType::Forbidden,
                        "FieldValueRequired" => ErrorType::Required,
                        "FieldValueDuplicate" => ErrorType::Duplicate,
                        _ => ErrorType::Invalid,
                    };
                    self.errors.push(FieldError::new(kind, &at, bad, detail));
                }
                Ok(_) => self.errors.push(invalid(format!("rule did not evaluate to a bool: {shown}"))),
                Err(EvalError::OverBudget) if self.left == 0 => {
                    self.exhausted = true;
                    let detail =
                        "validation failed due to running out of cost budget, no further validation rules will be run";
                    self.errors.push(invalid(detail.to_owned()));
                    return;
                }
                Err(EvalError::OverBudget) => {
                    self.exhausted = true;
                    self.errors.push(invalid(format!(
                        "'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: {shown}"
                    )));
                    return;
                }
                Err(EvalError::Failed(error)) if error.starts_with("no such overload") => {
                    self.errors.push(invalid(format!(
                        "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {shown}"
                    )));
                }
                Err(EvalError::Failed(error)) => self.errors.push(invalid(format!("{error} evaluating rule: {shown}"))),
            }
        }
    }

    fn evaluate(&mut self, program: &Program, variables: &BTreeMap<&str, Val>) -> Result<Val, EvalError> {
        let limit = self.left.min(CALL_BUDGET);
        let mut budget = Budget::new(limit);
        let result = program.evaluate(variables, &mut budget);
        self.left -= limit - budget.remaining;
        result
    }

    fn message(&mut self, compiled: &Compiled, variables: &BTreeMap<&str, Val>) -> String {
        if let Some(program) = &compiled.message
            && let Ok(Val::String(text)) = self.evaluate(program, variables)
            && !text.trim().is_empty()
            && text.len() <= MESSAGE_BYTES_MAX
            && !text.contains('\n')
        {
            return text.trim().to_owned();
        }
        match compiled.rule.message.trim() {
            "" => format!("failed rule: {}", compiled.rule.rule.trim()),
            message => message.to_owned(),
        }
    }
}
