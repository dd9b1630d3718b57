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

use super::open_api::walk_path;
use super::schema::{Additional, ListType, Node, NodeType, Rule};
use super::validate::{child_path, place_before, unchanged};

const CALL_BUDGET: u64 = 1_000_000;
const OBJECT_BUDGET: u64 = 10_000_000;
/// Source: `validation.StaticEstimatedCostLimit`.
const ESTIMATE_MAX: u64 = 10_000_000;
/// For all rules of a schema. Source: `validation.StaticEstimatedCRDCostLimit`.
const TOTAL_ESTIMATE_MAX: u64 = 100_000_000;
/// How many of the most expensive rules are named when the total is too high, and from which share on.
const EXPENSIVE_MAX: usize = 4;
const EXPENSIVE_FROM: u64 = TOTAL_ESTIMATE_MAX / 100;
/// The longest message that an expression may make.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
const TYPE_META: [&str; 3] = ["apiVersion", "kind", "metadata"];
const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;
/// The longest text in a request, and what is left of a request for the members of a list.
const STRING_MAX: u64 = REQUEST_BYTES_MAX - 2;

struct Compiled {
    rule: Rule,
    program: Program,
    message: Option<Program>,
    uses_old: bool,
    /// `fieldPath` as messages show it.
    field_path: String,
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
}

/// Whether rules are excused that fail on parts which are as they were: their errors become warnings.
pub enum Ratchet<'w> {
    Off,
    On(&'w mut Vec<String>),
}

/// What is wrong with a rule.
pub struct RuleError {
    /// Where, below the schema, such as `properties[spec].x-kubernetes-validations[0].rule`; empty: the schema itself.
    pub path: String,
    pub problem: Problem,
}

pub enum Problem {
    /// The rule cannot be used: the value that a message shows, and why.
    Invalid(BadValue, String),
    /// One estimate is too high.
    TooCostly(String),
    /// All estimates together are.
    TotalTooHigh(String),
}

/// The declaration of a node's values; `None`: expressions do not see it. `resource` nodes have `apiVersion`, `kind` and
/// `metadata` (name and generateName).
///
/// Source: `k8s.io/apiserver/pkg/cel/common/schemas.go` (`SchemaDeclType`): sizes are part of what is accepted.
fn declare(node: &Node, resource: bool, name: &str) -> Option<Decl> {
    let checks = node.checks.as_deref();
    let max =
        |max: fn(&super::schema::Checks) -> Option<i64>| checks.and_then(max).map(|m| u64::try_from(m).unwrap_or(0));
    Some(match node.ty {
        Some(NodeType::IntOrString) => match max(|c| c.max_length) {
            Some(length) => Decl::sized(Type::Dyn, length * 4),
            None => Decl::sized(Type::Dyn, STRING_MAX),
        },
        None if resource || node.embedded_resource => object(node, true, name),
        // Nothing is known about it.
        None => return None,
        Some(NodeType::Boolean) => Decl::new(Type::Bool),
        Some(NodeType::Integer) => Decl::new(Type::Int),
        Some(NodeType::Number) => Decl::new(Type::Double),
        Some(NodeType::String) => {
            let longest = || {
                let values = checks.and_then(|c| c.allowed.as_ref()).filter(|v| !v.is_empty())?;
                Some(values.iter().filter_map(Value::as_str).map(|s| s.len() as u64).max().unwrap_or(0))
            };
            let length = max(|c| c.max_length);
            match checks.map_or("", |c| c.format.as_str()) {
                "byte" => Decl::sized(Type::Bytes, length.unwrap_or(STRING_MAX)),
                "duration" => Decl::sized(Type::Duration, 32),
                "date" => Decl::sized(Type::Timestamp, 12),
                "date-time" => Decl::sized(Type::Timestamp, 32),
                // Lengths are of characters, sizes of bytes.
                _ => Decl::sized(Type::String, length.map(|l| l * 4).or_else(longest).unwrap_or(STRING_MAX)),
            }
        }
        Some(NodeType::Array) => {
            let items = node.items.as_deref()?;
            let element = declare(items, items.embedded_resource, &format!("{name}.@idx"))?;
            let most = max(|c| c.max_items).unwrap_or_else(|| STRING_MAX / (smallest(items).unwrap_or(0) + 1));
            Decl::list(Arc::new(element), Some(most))
        }
        Some(NodeType::Object) => match &node.additional {
            Additional::Schema(values) => {
                let element = declare(values, values.embedded_resource, &format!("{name}.@elem"))?;
                let most =
                    max(|c| c.max_properties).unwrap_or_else(|| STRING_MAX / (smallest(values).unwrap_or(0) + 6));
                // Upstream counts the keys as empty.
                Decl::map(Arc::new(Decl::sized(Type::String, 0)), Arc::new(element), Some(most))
            }
            _ => object(node, resource || node.embedded_resource, name),
        },
    })
}

fn object(node: &Node, resource: bool, name: &str) -> Decl {
    let mut fields: BTreeMap<String, Arc<Decl>> = BTreeMap::new();
    for (field, child) in &node.properties {
        if let Some(decl) = declare(child, child.embedded_resource, &format!("{name}.{field}")) {
            fields.insert(escape(field).into_owned(), Arc::new(decl));
        }
    }
    if resource && !specifies_metadata(&fields) {
        let text = || Arc::new(Decl::sized(Type::String, STRING_MAX));
        fields.insert("apiVersion".to_owned(), text());
        fields.insert("kind".to_owned(), text());
        let metadata = [("name".to_owned(), text()), ("generateName".to_owned(), text())].into();
        fields.insert("metadata".to_owned(), Arc::new(Decl::object(format!("{name}.metadata"), metadata)));
    }
    Decl::object(name, fields)
}

/// Whether a schema says all about `apiVersion`, `kind` and the names in `metadata` that rules may look at.
fn specifies_metadata(fields: &BTreeMap<String, Arc<Decl>>) -> bool {
    let text = |decl: Option<&Arc<Decl>>| decl.is_some_and(|d| d.ty == Type::String);
    let metadata = fields.get("metadata");
    let named = |name: &str| text(metadata.and_then(|m| m.field(name)));
    text(fields.get("kind")) && text(fields.get("apiVersion")) && named("name") && named("generateName")
}

/// The fewest bytes that a value takes in a request.
fn smallest(node: &Node) -> Option<u64> {
    Some(match node.ty {
        Some(NodeType::IntOrString | NodeType::Integer | NodeType::Number) => 1,
        Some(NodeType::Boolean) => 4,
        Some(NodeType::String) => match node.checks.as_deref().map_or("", |c| c.format.as_str()) {
            "duration" => 3,
            "date" => 12,
            "date-time" => 21,
            _ => 2,
        },
        Some(NodeType::Array) => {
            smallest(node.items.as_deref()?)?;
            2
        }
        Some(NodeType::Object) if matches!(node.additional, Additional::Schema(_)) => {
            let Additional::Schema(values) = &node.additional else { return None };
            smallest(values)?;
            2
        }
        None if !node.embedded_resource => return None,
        Some(NodeType::Object) | None => {
            let required = node.checks.as_deref().map_or(&[][..], |c| &c.required);
            let fields = node.properties.iter().filter(|(name, child)| {
                // What has a default need not be sent.
                child.default.is_none() && required.contains(name)
            });
            2 + fields.filter_map(|(name, child)| Some(name.len() as u64 + smallest(child)? + 4)).sum::<u64>()
        }
    })
}

impl Rules {
    /// Compiles the rules of a schema. `base` is the schema's path, for messages that name another place in it.
    pub fn compile(root: &Node, base: &str, errors: &mut Vec<RuleError>) -> Rules {
        let decl = declare(root, true, "object").map(Arc::new);
        let place = Place { resource: true, path: String::new(), cardinality: Some(1), decl, uncorrelated: None };
        let mut costs = Costs { base, total: 0, expensive: Vec::new() };
        let rules = compile(root, place, &mut costs, errors);
        if costs.total > TOTAL_ESTIMATE_MAX {
            for (path, _) in costs.expensive {
                let text = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
                errors.push(RuleError { path, problem: Problem::TotalTooHigh(text.to_owned()) });
            }
            let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
            let text = over_budget(name, costs.total, TOTAL_ESTIMATE_MAX);
            errors.push(RuleError { path: String::new(), problem: Problem::TotalTooHigh(text) });
        }
        rules
    }

    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.properties.is_empty() && self.additional.is_none() && self.items.is_none()
    }

    /// Runs the rules on `object`; transition rules need `old`.
    pub fn validate(
        &self,
        node: &Node,
        object: &Value,
        old: Option<&Value>,
        ratchet: Ratchet<'_>,
        errors: &mut Vec<FieldError>,
    ) {
        if self.is_empty() {
            return;
        }
        let (current, warnings) = match ratchet {
            Ratchet::Off => (None, None),
            Ratchet::On(warnings) => (old, Some(warnings)),
        };
        let mut run = Run { left: OBJECT_BUDGET, exhausted: false, errors, warnings };
        run.node(self, node, object, old, "", Correlation { current, nearest: None });
    }
}

/// What the rules of a schema cost together.
struct Costs<'a> {
    base: &'a str,
    total: u64,
    expensive: Vec<(String, u64)>,
}

impl Costs<'_> {
    fn observe(&mut self, path: &str, cost: u64) {
        self.total = self.total.saturating_add(cost);
        if cost >= EXPENSIVE_FROM {
            self.expensive.push((path.to_owned(), cost));
            self.expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
            self.expensive.truncate(EXPENSIVE_MAX);
        }
    }
}

/// Where in the schema a node stands.
struct Place {
    /// A root or embedded object: has `apiVersion`, `kind` and `metadata`.
    resource: bool,
    path: String,
    /// How often the node can occur in an object; `None` when nothing bounds it.
    cardinality: Option<u64>,
    /// Its declaration, which the node above has made: nothing is declared twice. `None`: expressions do not see it.
    decl: Option<Arc<Decl>>,
    /// The place above whose parts cannot be matched with what they were before.
    uncorrelated: Option<String>,
}

impl Place {
    fn below(&self, node: &Node, path: &str, resource: bool, decl: Option<&Arc<Decl>>) -> Place {
        let own = self.path.trim_end_matches('.').to_owned();
        // Members of maps are known by their names.
        let unmatched = path == "items" && node.list_type != ListType::Map;
        Place {
            resource,
            path: format!("{}{path}.", self.path),
            cardinality: self.cardinality.zip(most(node)).map(|(a, b)| a.saturating_mul(b)),
            decl: decl.cloned(),
            uncorrelated: self.uncorrelated.clone().or_else(|| unmatched.then_some(own)),
        }
    }
}

/// How many children of one kind a value can have.
fn most(node: &Node) -> Option<u64> {
    let checks = node.checks.as_deref();
    let bound = |max: Option<i64>| max.map(|m| u64::try_from(m).unwrap_or(0));
    match node.ty {
        Some(NodeType::Object) if !matches!(node.additional, Additional::Unspecified) => {
            bound(checks.and_then(|c| c.max_properties))
        }
        Some(NodeType::Array) => bound(checks.and_then(|c| c.max_items)),
        _ => Some(1),
    }
}

fn compile(node: &Node, place: Place, costs: &mut Costs<'_>, errors: &mut Vec<RuleError>) -> Rules {
    let mut rules = Rules { type_text: node.ty.map_or("object", NodeType::text), ..Rules::default() };
    if !node.rules.is_empty() {
        match &place.decl {
            Some(decl) => {
                for (i, rule) in node.rules.iter().enumerate() {
                    let at = format!("{}x-kubernetes-validations[{i}]", place.path);
                    rules.own.extend(compile_rule(node, rule, decl, &at, &place, costs, errors));
                }
                rules.decl = Some(decl.clone());
            }
            None => {
                let text = "internal error: failed to retrieve type information for x-kubernetes-validations";
                let path = format!("{}x-kubernetes-validations", place.path);
                errors.push(RuleError { path, problem: Problem::Invalid(BadValue::Omitted, text.to_owned()) });
            }
        }
    }
    let resource = place.resource || node.embedded_resource;
    for (field, child) in &node.properties {
        let known = place.decl.as_deref().and_then(|d| d.field(&escape(field)));
        // The declaration of an object's metadata may not be the schema's.
        let own = (resource && TYPE_META.contains(&field.as_str()) && !child.rules.is_empty())
            .then(|| declare(child, child.embedded_resource, field).map(Arc::new))
            .flatten();
        let below = place.below(node, &format!("properties[{field}]"), child.embedded_resource, own.as_ref().or(known));
        let compiled = compile(child, below, costs, errors);
        if !compiled.is_empty() {
            rules.properties.insert(field.clone(), compiled);
        }
    }
    let element = place.decl.as_deref().and_then(|d| d.element.as_ref());
    if let Additional::Schema(child) = &node.additional {
        let below = place.below(node, "additionalProperties", child.embedded_resource, element);
        let compiled = compile(child, below, costs, errors);
        rules.additional = (!compiled.is_empty()).then(|| Box::new(compiled));
    }
    if let Some(child) = &node.items {
        let below = place.below(node, "items", child.embedded_resource, element);
        let compiled = compile(child, below, costs, errors);
        rules.items = (!compiled.is_empty()).then(|| Box::new(compiled));
    }
    rules
}

/// A rule as messages show it.
fn shown(rule: &Rule) -> BadValue {
    let quoted = |text: &str| apimachinery::text::json(&text.into());
    let reason = if rule.reason.is_empty() { "null".to_owned() } else { quoted(&rule.reason) };
    let optional = rule.optional_old_self.map_or("null".to_owned(), |o| o.to_string());
    BadValue::Printed(format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{reason},\"FieldPath\":{},\"OptionalOldSelf\":{optional}}}",
        quoted(&rule.rule),
        quoted(&rule.message),
        quoted(&rule.message_expression),
        quoted(&rule.field_path),
    ))
}

fn compile_rule(
    node: &Node,
    rule: &Rule,
    decl: &Arc<Decl>,
    path: &str,
    place: &Place,
    costs: &mut Costs<'_>,
    errors: &mut Vec<RuleError>,
) -> Option<Compiled> {
    if rule.rule.trim().is_empty() {
        return None;
    }
    let mut fail = |member: &str, problem: Problem| {
        errors.push(RuleError { path: format!("{path}.{member}"), problem });
    };
    let optional_old = rule.optional_old_self == Some(true);
    let old = match optional_old {
        true => Arc::new(Decl::new(Type::optional(decl.ty.clone()))),
        false => decl.clone(),
    };
    let environment = Environment::new().with("self", decl.clone()).with("oldSelf", old);
    let program = match Program::compile(&rule.rule, &environment) {
        Ok(program) => program,
        Err(error) => {
            fail("rule", Problem::Invalid(shown(rule), error.detail()));
            return None;
        }
    };
    if *program.output() != Type::Bool {
        fail("rule", Problem::Invalid(shown(rule), "cel expression must evaluate to a bool".into()));
        return None;
    }
    let times = place.cardinality.unwrap_or_else(|| REQUEST_BYTES_MAX / (smallest(node).unwrap_or(0) + 1));
    let cost = program.cost().max.saturating_mul(times);
    if cost > ESTIMATE_MAX {
        fail("rule", Problem::TooCostly(over_budget("estimated rule cost", cost, ESTIMATE_MAX)));
    }
    costs.observe(&format!("{path}.rule"), cost);
    let message = match rule.message_expression.trim() {
        "" => None,
        expression => match Program::compile(expression, &environment) {
            Ok(message) if *message.output() == Type::String => {
                let cost = message.cost().max;
                if cost > ESTIMATE_MAX {
                    let text = over_budget("estimated messageExpression cost", cost, ESTIMATE_MAX);
                    fail("messageExpression", Problem::TooCostly(text));
                }
                costs.observe(&format!("{path}.messageExpression"), cost);
                Some(message)
            }
            Ok(_) => {
                let text = "messageExpression must evaluate to a string";
                fail("messageExpression", Problem::Invalid(shown(rule), text.into()));
                None
            }
            Err(error) => {
                let text = format!("messageExpression {}", error.detail());
                fail("messageExpression", Problem::Invalid(shown(rule), text));
                None
            }
        },
    };
    let uses_old = program.uses("oldSelf");
    if uses_old {
        if let Some(unmatched) = &place.uncorrelated {
            let within = match unmatched.as_str() {
                "" => costs.base.to_owned(),
                below => format!("{}.{below}", costs.base),
            };
            let text = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}");
            fail("rule", Problem::Invalid(BadValue::from(rule.rule.as_str()), text));
        }
    } else if let Some(given) = rule.optional_old_self {
        let text = "may not be set if oldSelf is not used in rule";
        fail("optionalOldSelf", Problem::Invalid(BadValue::from(given), text.into()));
    }
    let mut at = node;
    let field_path = walk_path(&rule.field_path, true, |name| match at.properties.get(name) {
        Some(child) => {
            at = child;
            Some(false)
        }
        None => match &at.additional {
            Additional::Schema(values) if at.properties.is_empty() => {
                at = values;
                Some(true)
            }
            _ => None,
        },
    });
    let field_path = field_path.unwrap_or_default();
    Some(Compiled { rule: rule.clone(), program, message, uses_old, field_path })
}

/// How far an estimate is over what is allowed, as a message says it.
fn over_budget(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        f if f > 100.0 => "more than 100x".to_owned(),
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// What a value was before, as far as it can be told. Source: `ratchetingOptions` of upstream's validator.
#[derive(Clone, Copy)]
struct Correlation<'v> {
    /// The value itself.
    current: Option<&'v Value>,
    /// The nearest value above of which it can be told: now, before, and its schema.
    nearest: Option<(&'v Value, &'v Value, &'v Node)>,
}

impl<'v> Correlation<'v> {
    /// That of a part of `value`; `was`: the part before, if it can be found.
    fn below(self, node: &'v Node, value: &'v Value, was: impl FnOnce(&'v Value) -> Option<&'v Value>) -> Self {
        match self.current {
            None => self,
            Some(old) => Correlation { current: was(old), nearest: Some((value, old, node)) },
        }
    }

    fn member(self, node: &'v Node, value: &'v Value, name: &str) -> Self {
        // The kind and its version are always those of the request.
        if self.current.is_some() && self.nearest.is_none() && matches!(name, "apiVersion" | "kind") {
            return Correlation { current: None, nearest: None };
        }
        self.below(node, value, |old| old.get(name).filter(|_| node.member(name).is_some()))
    }

    fn unchanged(self, node: &Node, value: &Value) -> bool {
        match (self.current, self.nearest) {
            (Some(old), _) => unchanged(value, old, node),
            (None, Some((value, old, node))) => unchanged(value, old, node),
            (None, None) => false,
        }
    }
}

struct Run<'a> {
    left: u64,
    exhausted: bool,
    errors: &'a mut Vec<FieldError>,
    /// Where excused errors go.
    warnings: Option<&'a mut Vec<String>>,
}

fn field(path: &str) -> FieldPath {
    FieldPath::new(if path.is_empty() { "<nil>" } else { path })
}

/// A rule in messages about its evaluation.
fn rule_text(rule: &Rule) -> &str {
    if rule.message.is_empty() { rule.rule.trim() } else { rule.message.trim() }
}

impl Run<'_> {
    fn node(
        &mut self,
        rules: &Rules,
        node: &Node,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        correlation: Correlation<'_>,
    ) {
        if value.is_null() || self.exhausted {
            return;
        }
        if let Some(decl) = &rules.decl {
            self.own(rules, decl, node, value, old, path, correlation);
        }
        match value {
            Value::Object(map) => {
                for (name, member) in map.iter() {
                    let below = rules.properties.get(name).or(rules.additional.as_deref());
                    if let (Some(below), Some(child)) = (below, node.member(name)) {
                        let at = child_path(node, path, name);
                        let was = old.and_then(|o| o.get(name));
                        self.node(below, child, member, was, &at, correlation.member(node, value, name));
                    }
                }
            }
            Value::Array(list) => {
                if let (Some(below), Some(items)) = (&rules.items, &node.items) {
                    for (i, item) in list.iter().enumerate() {
                        // Only elements of list maps can be matched with what they were.
                        let was = |old: &'_ Value| place_before(item, i, old.as_array()?, node);
                        let matching = old.and_then(|o| o.as_array()?.get(was(o)?));
                        let inner = correlation.below(node, value, |o| o.as_array()?.get(was(o)?));
                        self.node(below, items, item, matching, &format!("{path}[{i}]"), inner);
                    }
                }
            }
            _ => {}
        }
    }

    fn own(
        &mut self,
        rules: &Rules,
        decl: &Decl,
        node: &Node,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        correlation: Correlation<'_>,
    ) {
        let old = old.filter(|o| !o.is_null());
        let this = Val::from_json(value, Some(decl));
        let wants_old = rules.own.iter().any(|c| c.uses_old || c.rule.optional_old_self == Some(true));
        let old_value = old.filter(|_| wants_old).map(|o| Val::from_json(o, Some(decl)));
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
            let shown = rule_text(&compiled.rule);
            let invalid = |detail: String| FieldError::invalid(&field(path), rules.type_text, detail);
            match self.evaluate(&compiled.program, &variables) {
                Ok(Val::Bool(true)) => {}
                Ok(Val::Bool(false)) => {
                    let at = match compiled.field_path.as_str() {
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
                    let (kind, bad, detail) = match self.message(compiled, &variables) {
                        Ok(_) if kind == ErrorType::Duplicate => (kind, bad, String::new()),
                        Ok(detail) => (kind, bad, detail),
                        // No further rules are run.
                        Err(detail) => (ErrorType::Invalid, BadValue::from(rules.type_text), detail),
                    };
                    let error = FieldError::new(kind, &at, bad, detail);
                    match &mut self.warnings {
                        Some(warnings) if !compiled.uses_old && correlation.unchanged(node, value) => {
                            warnings.push(error.to_string());
                        }
                        _ => self.errors.push(error),
                    }
                    if self.exhausted {
                        return;
                    }
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

    /// The message of a rule that failed; an error when there is nothing left to spend.
    fn message(&mut self, compiled: &Compiled, variables: &BTreeMap<&str, Val>) -> Result<String, String> {
        if let Some(program) = &compiled.message {
            match self.evaluate(program, variables) {
                Ok(Val::String(text)) => {
                    let text = text.trim();
                    if !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n') {
                        return Ok(text.to_owned());
                    }
                }
                Err(EvalError::OverBudget) => {
                    self.exhausted = true;
                    let expression = &compiled.rule.message_expression;
                    return Err(match self.left {
                        0 => "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".to_owned(),
                        _ => format!("no further validation rules will be run due to call cost exceeds limit for messageExpression: {expression:?}"),
                    });
                }
                Ok(_) | Err(EvalError::Failed(_)) => {}
            }
        }
        Ok(match compiled.rule.message.trim() {
            "" => format!("failed rule: {}", compiled.rule.rule.trim()),
            message => message.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    /// The estimate of `rule` on a schema, or why the rule does not compile.
    fn cost(schema: &Value, rule: &str) -> Result<u64, String> {
        let node = Node::compile(schema).expect("a schema");
        let decl = Arc::new(declare(&node, false, "object").expect("a declaration"));
        let environment = Environment::new().with("self", decl.clone()).with("oldSelf", decl);
        Program::compile(rule, &environment).map(|p| p.cost().max).map_err(|e| e.to_string())
    }

    #[test]
    fn estimates_are_upstreams_to_the_unit() {
        let list = |items: Value, max: Option<i64>| {
            let mut list = json!({"type": "array", "items": items});
            if let Some(max) = max {
                list["maxItems"] = max.into();
            }
            list
        };
        let map = |values: Value, max: Option<i64>| {
            let mut map = json!({"type": "object", "additionalProperties": values});
            if let Some(max) = max {
                map["maxProperties"] = max.into();
            }
            map
        };
        let text = |max: Option<i64>| match max {
            Some(max) => json!({"type": "string", "maxLength": max}),
            None => json!({"type": "string"}),
        };
        let of = |ty: &str| json!({"type": ty});
        let formatted = |format: &str| json!({"type": "string", "format": format});
        let either = || json!({"x-kubernetes-int-or-string": true});
        let object = |fields: &[(&str, Value)]| {
            let mut object = json!({"type": "object", "properties": {}});
            for (name, field) in fields {
                object["properties"][*name] = field.clone();
            }
            object
        };
        let val = |one: Value| object(&[("val1", one.clone()), ("val2", one)]);
        let required = |fields: &[(&str, Value)], names: &[&str]| {
            let mut object = object(fields);
            object["required"] = json!(names.to_vec());
            object
        };
        // Numbers: `TestCostEstimation` and `TestCelEstimatedCostStability` of apiextensions-apiserver's `schema/cel`.
        let rows: Vec<(Value, &str, u64)> = vec![
            (list(of("number"), None), "self.all(x, true)", 4_718_591),
            (list(of("number"), Some(10)), "self.all(x, true)", 32),
            (list(of("string"), None), "self.all(x, true)", 3_145_727),
            (list(of("string"), Some(20)), "self.all(x, true)", 62),
            (list(of("boolean"), None), "self.all(x, true)", 1_887_437),
            (list(list(of("number"), None), None), "self.all(x, true)", 3_145_727),
            (
                list(required(&[("required", of("string")), ("optional", of("string"))], &["required"]), Some(50)),
                "self.all(x, true)",
                152,
            ),
            (map(of("number"), None), "self.all(x, true)", 1_348_169),
            (map(of("number"), None), "has(self.x)", 1),
            (map(of("string"), None), "self.all(x, true)", 1_179_647),
            (map(of("boolean"), None), "self.all(x, true)", 943_718),
            (text(None), "self.contains('test')", 314_574),
            (text(Some(10)), "self.contains('test')", 5),
            (text(None), "self.startsWith('test')", 2),
            (text(None), "size(self + \"hello\") > size(\"hello\")", 314_578),
            (text(Some(4)), "size(self + \"hello\") > size(\"hello\")", 7),
            (list(of("number"), None), "self[1] == 0.0", 2),
            (list(of("string"), None), "self[1] == self[1]", 314_577),
            (list(of("number"), Some(10)), "self.all(x, self.all(y, true))", 352),
            (list(of("number"), Some(10)), "self.all(x, self.all(y, self.all(z, true)))", 3552),
            (text(None), "self.matches(\"x\")", 314_574),
            (text(Some(50)), "self.matches(\"x\")", 22),
            (text(None), "\"\".matches(\"(((((((((())))))))))[0-9]\")", 7),
            (text(None), "self.matches(\"\")", 1),
            (map(text(None), None), "self.all(x, x.contains(self[x]))", 2_752_507),
            (map(text(Some(10)), Some(10)), "self.all(x, x.contains(self[x]))", 72),
            (text(None), "self == \"x\"", 2),
            (text(Some(0)), "self == \"x\"", 1),
            (list(of("number"), None), "self.all(x, x == 0.0)", 6_291_454),
            (list(either(), None), "self.all(x, true)", 4_718_591),
            (list(either(), None), "self[0] == 5", 3),
            (list(of("boolean"), None), "self[0] == false", 2),
            (list(object(&[("a", of("string"))]), None), "self[0] == null", 2),
            (list(list(of("number"), None), None), "self[0][0] == -1.0", 3),
            (list(map(of("number"), None), None), "self.all(x, x.y == 25.2)", 6_291_452),
            (list(map(of("number"), None), None), "self[0].x > 2.0", 4),
            (list(formatted("duration"), None), "self.all(x, true)", 2_359_295),
            (list(formatted("duration"), None), "self[0].getHours() == 2", 4),
            (list(formatted("date"), None), "self.all(x, true)", 725_936),
            (list(formatted("date-time"), None), "self.all(x, true)", 428_963),
            (list(formatted("date-time"), None), "self[2].getMinutes() == 45", 4),
            (map(either(), None), "self.all(x, true)", 1_348_169),
            (map(map(of("number"), None), None), "self.all(x, true)", 1_179_647),
            (map(formatted("duration"), None), "self.all(x, true)", 1_048_577),
            (map(formatted("date"), None), "self.all(x, true)", 524_288),
            (map(formatted("date-time"), None), "self.all(x, true)", 349_526),
            (text(None), "self.find('[0-9]+') == ''", 629_147),
            (text(Some(10)), "self.find('[0-9]+') == ''", 11),
            (list(text(None), None), "self.join(' ') == 'aa bb'", 329_853_068_905),
            (list(text(Some(10)), Some(10)), "self.join(' ') == 'aa bb'", 43),
            (list(text(None), None), "self.isSorted() == true", 329_854_432_052),
            (list(text(Some(10)), Some(10)), "self.isSorted() == true", 52),
            (
                object(&[("str", text(None)), ("before", text(Some(2))), ("after", text(Some(4)))]),
                "self.str.replace(self.before, self.after) == 'does not matter'",
                629_154,
            ),
            (
                object(&[("str", text(Some(4))), ("before", text(Some(2))), ("after", text(Some(4)))]),
                "self.str.replace(self.before, self.after) == 'does not matter'",
                12,
            ),
            (
                object(&[("str", text(None)), ("separator", text(None))]),
                "self.str.split(self.separator) == []",
                629_160,
            ),
            (text(None), "self.lowerAscii() == 'lower!'", 314_575),
            (text(Some(10)), "self.lowerAscii() == 'lower!'", 6),
            (map(of("integer"), None), "oldSelf.size() == self.size()", 5),
            (map(formatted("date-time"), None), "self[\"a\"] == self[\"b\"]", 8),
            (val(of("integer")), "self.val1 == self.val2", 4),
            (val(of("integer")), "type(self.val1) == int", 4),
            (val(of("number")), "int(self.val1) < 5", 4),
            (val(text(None)), "self.val1.matches('^[^0-9]*$')", 943_721),
            (val(text(None)), "!self.val1.matches('^[0-9]*$')", 629_149),
            (val(text(None)), "self.val1.charAt(3) == 'k'", 4),
            (val(text(None)), "self.val1.indexOf('o') == 1", 314_576),
            (val(text(None)), "self.val1.replace(' ', 'x') == 'Rookxtakesx👑'", 629_150),
            (val(text(None)), "self.val1.split(' ', 2) == ['Rook', 'takes 👑']", 629_159),
            (val(text(None)), "self.val1.substring(4, 10).trim() == 'takes'", 629_149),
            (val(text(None)), "self.val1.lowerAscii() == self.val1.lowerAscii()", 943_723),
            (val(formatted("byte")), "self.val1 == self.val2", 314_577),
            (val(formatted("byte")), "self.val1 == b'AB'", 3),
            (val(formatted("duration")), "self.val1 == duration('1h2m') + duration('3s4ms')", 6),
            (val(formatted("duration")), "type(self.val1) == google.protobuf.Duration", 4),
            (val(list(of("integer"), None)), "1 in self.val1", 1_572_865),
            (val(list(of("integer"), None)), "self.val2[0] in self.val1", 1_572_868),
            (val(list(of("integer"), None)), "self.val1 + self.val2 == [1, 2, 3, 1, 2, 3]", 16),
            (val(list(of("integer"), None)), "self.val1 + [4, 5] == [1, 2, 3, 4, 5]", 24),
            (val(list(of("integer"), None)), "has(self.val1) && has(self.val2)", 2),
            (val(list(of("integer"), None)), "self.val1.all(k, size(self.val1) > 0)", 11_010_044),
            (val(list(of("integer"), None)), "self.val1.exists_one(k, self.val1 == [2])", 23_592_949),
            (val(list(of("integer"), None)), "size(self.val1.filter(k, size(self.val1) > 1)) == 1", 26_738_686),
            (
                val(list(of("integer"), None)),
                "self.val1.map(e, e * 20).filter(e, e > 50).exists(e, e == 60)",
                53_477_367,
            ),
            (val(map(of("string"), None)), "self.val1 == self.val2", 39_326),
            (val(map(of("string"), None)), "'k1' in self.val1", 3),
            (val(map(of("string"), None)), "self.val1 == {'k1': 'a', 'k2': 'b'}", 33),
            (val(map(of("integer"), None)), "self.val1.all(k, self.val1[k] > 0)", 3_595_115),
            (val(map(of("integer"), None)), "size(self.val1.filter(k, self.val1[k] > 1)) == 1", 8_089_017),
            (val(object(&[("b", of("integer"))])), "has(self.val1.b)", 2),
            (val(object(&[("b", of("integer"))])), "type(self) == type(self)", 1_844_674_407_370_955_268),
            (val(either()), "self.val1 == 1 || self.val1 == '25%'", 6),
            (val(either()), "self.val1 != ['anything']", 13),
            (val(either()), "type(self.val1) == string && self.val1.matches(r'(\\d+(\\.\\d+)?%)')", 1_258_298),
        ];
        let mut wrong = Vec::new();
        for (schema, rule, want) in rows {
            let got = cost(&schema, rule);
            if got != Ok(want) {
                wrong.push(format!("{rule} on {schema}: want {want}, got {got:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn what_a_schema_does_not_describe_cannot_be_named() {
        let schema = json!({"type": "object", "properties": {"free": {"x-kubernetes-preserve-unknown-fields": true},
            "list": {"type": "array", "items": {"x-kubernetes-preserve-unknown-fields": true}}}});
        for rule in ["has(self.free)", "self.list.size() > 0"] {
            let error = cost(&schema, rule).unwrap_err();
            assert!(error.contains("undefined field"), "{rule}: {error}");
        }
    }
}
