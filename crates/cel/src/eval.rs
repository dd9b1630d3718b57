//! The evaluator: walks the tree, counting what every step costs.
//!
//! Errors are values to `&&`, `||`, `?:` and the macros built on them, as the language definition has it: `false && error` is
//! `false`. Only running out of budget ends everything.
//!
//! Follows: cel-go's interpreter; runtime costs of `k8s.io/apiserver/pkg/cel/library/cost.go` and cel-go's `CostTracker`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ast::{Comprehension, Expr, ExprKind, Literal, op};
use crate::check::Checked;
use crate::cost::call_cost;
use crate::stdlib;
use crate::value::{Key, Val};

/// What evaluations may still spend, in cost units (about 50 ns each upstream). Shared by the rules of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub remaining: u64,
}

impl Budget {
    pub fn new(limit: u64) -> Budget {
        Budget { remaining: limit }
    }

    fn spend(&mut self, cost: u64) -> Result<(), EvalError> {
        match self.remaining.checked_sub(cost) {
            Some(rest) => {
                self.remaining = rest;
                Ok(())
            }
            None => {
                self.remaining = 0;
                Err(EvalError::OverBudget)
            }
        }
    }
}

/// Why an evaluation gave no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    #[error("{0}")]
    Failed(String),
    #[error("operation cancelled: actual cost limit exceeded")]
    OverBudget,
}

impl EvalError {
    pub fn new(message: impl Into<String>) -> EvalError {
        EvalError::Failed(message.into())
    }
}

/// Functions that need to ask the outside. The cost of a call is 1 unless the function says otherwise.
pub trait Host: Sync {
    /// Calls `function`; `None` when it is not one of the host's. A method's receiver is the first argument.
    fn call(&self, function: &str, args: &[Val]) -> Option<Result<Val, String>>;
}

/// A host without functions.
pub struct NoHost;

impl Host for NoHost {
    fn call(&self, _: &str, _: &[Val]) -> Option<Result<Val, String>> {
        None
    }
}

pub(crate) fn evaluate(
    expr: &Expr,
    variables: &BTreeMap<&str, Val>,
    budget: &mut Budget,
    host: &dyn Host,
    facts: &Facts,
) -> Result<Val, EvalError> {
    Evaluator { variables, scopes: Vec::new(), budget, host, facts }.eval(expr)
}

struct Evaluator<'a> {
    variables: &'a BTreeMap<&'a str, Val>,
    scopes: Vec<(Arc<str>, Val)>,
    budget: &'a mut Budget,
    host: &'a dyn Host,
    facts: &'a Facts,
}

/// What is known about an expression before it is evaluated, by id.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Literals, and conversions of literals, that were evaluated beforehand; they cost nothing.
    constants: BTreeMap<u32, Val>,
    /// Selections that are one name.
    names: BTreeMap<u32, Arc<str>>,
    /// Calls of functions with a namespace.
    functions: BTreeMap<u32, String>,
}

/// Collects what is known. Evaluates literals of lists and maps that hold nothing but constants, and conversions of
/// constants; a conversion that fails does so for the whole expression.
///
/// Source: cel-go's `decOptimize`.
pub(crate) fn facts(expr: &Expr, checked: Checked) -> Result<Facts, EvalError> {
    let calls = checked.calls.into_iter();
    let functions = calls.filter(|(_, call)| call.name.contains('.')).map(|(id, call)| (id, call.name)).collect();
    let mut facts = Facts { constants: BTreeMap::new(), names: checked.names, functions };
    fold(expr, &mut facts)?;
    Ok(facts)
}

/// Whether `expr` is a constant.
fn fold(expr: &Expr, facts: &mut Facts) -> Result<bool, EvalError> {
    let mut constant = true;
    let mut failed = None;
    expr.children(&mut |child| match fold(child, facts) {
        Ok(is_constant) => constant &= is_constant,
        Err(error) => failed = failed.take().or(Some(error)),
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let foldable = match &expr.kind {
        ExprKind::Literal(_) => return Ok(true),
        ExprKind::List { optional, .. } => optional.is_empty(),
        ExprKind::Map { entries } => entries.iter().all(|entry| !entry.optional),
        ExprKind::Call { target: None, function, args } => {
            let converts = matches!(
                &**function,
                "bool" | "bytes" | "double" | "duration" | "dyn" | "int" | "string" | "timestamp" | "uint"
            );
            converts && args.len() == 1
        }
        _ => false,
    };
    if !constant || !foldable {
        return Ok(false);
    }
    let evaluated = evaluate(expr, &BTreeMap::new(), &mut Budget::new(u64::MAX), &NoHost, facts);
    match evaluated {
        Ok(value) => {
            facts.constants.insert(expr.id, value);
            Ok(true)
        }
        // Literals with a key twice fail when they are evaluated.
        Err(_) if !matches!(expr.kind, ExprKind::Call { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

type Result<T, E = EvalError> = std::result::Result<T, E>;

impl Evaluator<'_> {
    fn eval(&mut self, expr: &Expr) -> Result<Val> {
        if let Some(value) = self.facts.constants.get(&expr.id) {
            return Ok(value.clone());
        }
        match &expr.kind {
            ExprKind::Literal(literal) => Ok(match literal {
                Literal::Null => Val::Null,
                Literal::Bool(b) => Val::Bool(*b),
                Literal::Int(i) => Val::Int(*i),
                Literal::Uint(u) => Val::Uint(*u),
                Literal::Double(d) => Val::Double(*d),
                Literal::String(s) => Val::String(s.clone()),
                Literal::Bytes(b) => Val::Bytes(b.clone()),
            }),
            ExprKind::Ident(name) => {
                self.budget.spend(1)?;
                self.lookup(name)
            }
            ExprKind::Select { operand, field, test } => self.select(expr, operand, field, *test),
            ExprKind::Call { target, function, args } => self.call(expr.id, target.as_deref(), function, args),
            ExprKind::List { elements, optional } => {
                self.budget.spend(10)?;
                let mut list = Vec::with_capacity(elements.len());
                for (i, element) in elements.iter().enumerate() {
                    match self.eval(element)? {
                        Val::Optional(held) if optional.contains(&i) => list.extend(held.map(|v| (*v).clone())),
                        value => list.push(value),
                    }
                }
                Ok(list.into())
            }
            ExprKind::Map { entries } => {
                self.budget.spend(30)?;
                let mut map = BTreeMap::new();
                for entry in entries {
                    let key = self.eval(&entry.key)?;
                    let value = match self.eval(&entry.value)? {
                        Val::Optional(held) if entry.optional => match held {
                            Some(held) => (*held).clone(),
                            None => continue,
                        },
                        value => value,
                    };
                    let name = key.key().ok_or_else(|| EvalError::new("unsupported key type"))?;
                    // The last one of a key counts.
                    map.insert(name, value);
                }
                Ok(Val::Map(Arc::new(map)))
            }
            ExprKind::Message { fields, .. } => {
                self.budget.spend(40)?;
                let mut map = BTreeMap::new();
                for entry in fields {
                    let value = match self.eval(&entry.value)? {
                        Val::Optional(held) if entry.optional => match held {
                            Some(held) => (*held).clone(),
                            None => continue,
                        },
                        value => value,
                    };
                    map.insert(Key::String(entry.key.clone()), value);
                }
                Ok(Val::Map(Arc::new(map)))
            }
            ExprKind::Comprehension(c) => self.comprehension(c),
        }
    }

    fn lookup(&self, name: &str) -> Result<Val> {
        self.known(name).ok_or_else(|| EvalError::new(format!("no such attribute(s): {name}")))
    }

    fn known(&self, name: &str) -> Option<Val> {
        let bare = name.trim_start_matches('.');
        let scoped = self.scopes.iter().rev().find(|(n, _)| &**n == bare).map(|(_, value)| value);
        let found = scoped.or_else(|| self.variables.get(bare)).cloned();
        found.or_else(|| crate::check::type_name(bare).map(|ty| Val::Type(Arc::new(ty))))
    }

    fn select(&mut self, expr: &Expr, operand: &Expr, field: &Arc<str>, test: bool) -> Result<Val> {
        // `a.b` may be one name, such as a variable's or a type's.
        if !test
            && let Some(name) = self.facts.names.get(&expr.id)
            && let Some(value) = self.known(name)
        {
            self.budget.spend(1)?;
            return Ok(value);
        }
        let of = self.eval(operand)?;
        if !test {
            self.budget.spend(1)?;
        }
        if test {
            return Ok(Val::Bool(match &of {
                Val::Map(map) => map.contains_key(&Key::String(field.clone())),
                Val::Optional(held) => {
                    matches!(held.as_deref(), Some(Val::Map(map)) if map.contains_key(&Key::String(field.clone())))
                }
                other => return Err(not_selectable(other, field)),
            }));
        }
        match &of {
            Val::Map(map) => map
                .get(&Key::String(field.clone()))
                .cloned()
                .ok_or_else(|| EvalError::new(format!("no such key: {field}"))),
            Val::Optional(held) => Ok(Val::Optional(held.as_deref().and_then(|v| member(v, field)).map(Arc::new))),
            other => Err(not_selectable(other, field)),
        }
    }

    fn call(&mut self, id: u32, target: Option<&Expr>, function: &str, args: &[Expr]) -> Result<Val> {
        match function {
            op::AND => return self.and_or(args, false),
            op::OR => return self.and_or(args, true),
            op::CONDITIONAL => {
                return match self.eval(&args[0])? {
                    Val::Bool(true) => self.eval(&args[1]),
                    Val::Bool(false) => self.eval(&args[2]),
                    _ => Err(EvalError::new("no such overload")),
                };
            }
            op::NOT_STRICTLY_FALSE => {
                return match self.eval(&args[0]) {
                    Ok(Val::Bool(false)) => Ok(Val::Bool(false)),
                    Err(EvalError::OverBudget) => Err(EvalError::OverBudget),
                    _ => Ok(Val::Bool(true)),
                };
            }
            // Only evaluates its argument when it is needed.
            "orValue" | "or" if target.is_some() && args.len() == 1 => {
                let held = match target {
                    Some(target) => self.eval(target)?,
                    None => return Err(EvalError::new("no such overload")),
                };
                self.budget.spend(1)?;
                return match held {
                    Val::Optional(Some(v)) if function == "orValue" => Ok((*v).clone()),
                    Val::Optional(Some(v)) => Ok(Val::Optional(Some(v))),
                    Val::Optional(None) => self.eval(&args[0]),
                    other => Err(EvalError::new(format!("no such overload: {}.{function}", other.type_name()))),
                };
            }
            op::OPT_SELECT => {
                let of = self.eval(&args[0])?;
                self.budget.spend(1)?;
                let ExprKind::Literal(Literal::String(field)) = &args[1].kind else {
                    return Err(EvalError::new("unsupported optional field selection"));
                };
                let held = match &of {
                    Val::Optional(held) => held.as_deref().and_then(|v| member(v, field)),
                    other => member(other, field),
                };
                return Ok(Val::Optional(held.map(Arc::new)));
            }
            _ => {}
        }
        let qualified = target.and_then(|_| self.facts.functions.get(&id));
        let mut values = Vec::with_capacity(args.len() + 1);
        let name = match (&qualified, target) {
            (Some(name), _) => name.as_str(),
            (None, Some(target)) => {
                values.push(self.eval(target)?);
                function
            }
            (None, None) => function.trim_start_matches('.'),
        };
        for arg in args {
            values.push(self.eval(arg)?);
        }
        let receiver = target.is_some() && qualified.is_none();
        // The worst is paid before the work is done.
        self.budget.spend(call_cost(name, &values))?;
        let result = match self.host.call(name, &values) {
            Some(result) => result,
            None => stdlib::call(name, receiver, &values),
        };
        result.map_err(|message| match message.is_empty() {
            true => no_overload(name, &values),
            false => EvalError::new(message),
        })
    }

    /// `&&` and `||`: an error on one side does not matter when the other side decides.
    fn and_or(&mut self, args: &[Expr], decisive: bool) -> Result<Val> {
        let left = self.eval(&args[0]);
        match &left {
            Ok(Val::Bool(b)) if *b == decisive => return Ok(Val::Bool(decisive)),
            Err(EvalError::OverBudget) => return left,
            _ => {}
        }
        let right = self.eval(&args[1]);
        match (left, right) {
            (_, Err(EvalError::OverBudget)) => Err(EvalError::OverBudget),
            (_, Ok(Val::Bool(b))) if b == decisive => Ok(Val::Bool(decisive)),
            (Ok(Val::Bool(_)), Ok(Val::Bool(_))) => Ok(Val::Bool(!decisive)),
            (Err(error), _) | (_, Err(error)) => Err(error),
            _ => Err(EvalError::new("no such overload")),
        }
    }

    fn comprehension(&mut self, c: &Comprehension) -> Result<Val> {
        let range = self.eval(&c.range)?;
        let items: Vec<(Val, Val)> = match &range {
            Val::List(list) if c.variable2.is_some() => {
                list.iter().enumerate().map(|(i, v)| (Val::Int(i as i64), v.clone())).collect()
            }
            Val::List(list) => list.iter().map(|v| (v.clone(), Val::Null)).collect(),
            Val::Map(map) => map.iter().map(|(k, v)| (key_value(k), v.clone())).collect(),
            other => return Err(EvalError::new(format!("no such overload: range of {}", other.type_name()))),
        };
        let accumulator = self.eval(&c.init)?;
        let outer = self.scopes.len();
        self.scopes.push((c.accumulator.clone(), accumulator));
        let mut outcome: Result<Val> = Ok(Val::Null);
        for (first, second) in items {
            self.scopes.truncate(outer + 1);
            self.scopes.push((c.variable.clone(), first));
            if let Some(variable2) = &c.variable2 {
                self.scopes.push((variable2.clone(), second));
            }
            // While the last step failed there is no accumulator; `all` and `exists` go on looking for a decision.
            let go_on = match (&outcome, self.eval(&c.condition)) {
                (_, Err(EvalError::OverBudget)) => return Err(EvalError::OverBudget),
                (_, Ok(Val::Bool(false))) => false,
                _ => true,
            };
            if !go_on {
                break;
            }
            match self.step(c, &outcome) {
                Ok(value) => {
                    self.scopes[outer].1 = value;
                    outcome = Ok(Val::Null);
                }
                Err(EvalError::OverBudget) => return Err(EvalError::OverBudget),
                Err(error) => {
                    if !decides(c) {
                        self.scopes.truncate(outer);
                        return Err(error);
                    }
                    outcome = Err(error);
                }
            }
        }
        self.scopes.truncate(outer + 1);
        let result = outcome.and_then(|_| self.eval(&c.result));
        self.scopes.truncate(outer);
        result
    }

    /// One step of a loop. After a failed step of `all` or `exists` only a decisive test counts.
    fn step(&mut self, c: &Comprehension, before: &Result<Val>) -> Result<Val> {
        let value = self.eval(&c.step)?;
        match (before, &c.step.kind) {
            (Err(error), ExprKind::Call { function, .. }) => {
                let decisive = &**function == op::OR;
                if matches!(value, Val::Bool(b) if b == decisive) { Ok(value) } else { Err(error.clone()) }
            }
            _ => Ok(value),
        }
    }
}

/// Whether a loop is `all` or `exists`, which absorb errors.
fn decides(c: &Comprehension) -> bool {
    matches!(&c.step.kind, ExprKind::Call { function, .. } if matches!(&**function, op::AND | op::OR))
}

/// No function takes such arguments. An operator names itself when its left side cannot be an operand at all, and a
/// function of an extension says what it was given.
fn no_overload(name: &str, values: &[Val]) -> EvalError {
    let left = values.first();
    let number = matches!(left, Some(Val::Int(_) | Val::Uint(_) | Val::Double(_)));
    let time = matches!(left, Some(Val::Duration(_) | Val::Timestamp(_)));
    let text = matches!(left, Some(Val::String(_) | Val::Bytes(_)));
    let known = match name {
        op::NOT => true,
        op::ADD => number || time || text || matches!(left, Some(Val::List(_))),
        op::SUBTRACT => number || time,
        op::MULTIPLY | op::DIVIDE => number,
        op::MODULO => matches!(left, Some(Val::Int(_) | Val::Uint(_))),
        op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS => {
            number || time || text || matches!(left, Some(Val::Bool(_)))
        }
        op::IN => true,
        _ => false,
    };
    let standard = name.contains('_')
        || name.starts_with("get")
        || matches!(
            name,
            "size"
                | "contains"
                | "startsWith"
                | "endsWith"
                | "matches"
                | "bool"
                | "bytes"
                | "double"
                | "duration"
                | "int"
                | "string"
                | "timestamp"
                | "uint"
                | "type"
        );
    if known {
        return EvalError::new("no such overload");
    }
    if standard {
        return EvalError::new(format!("no such overload: {name}"));
    }
    let types: Vec<String> = values.iter().map(Val::base_name).collect();
    EvalError::new(format!("no such overload: {name}({})", types.join(", ")))
}

/// Why a value has no field.
fn not_selectable(value: &Val, field: &str) -> EvalError {
    EvalError::new(match value {
        Val::List(_) => "unsupported index type 'string' in list".to_owned(),
        _ => format!("no such key: {field}"),
    })
}

fn member(value: &Val, field: &Arc<str>) -> Option<Val> {
    match value {
        Val::Map(map) => map.get(&Key::String(field.clone())).cloned(),
        _ => None,
    }
}

pub(crate) fn key_value(key: &Key) -> Val {
    match key {
        Key::Bool(b) => Val::Bool(*b),
        Key::Integer(i) => {
            i64::try_from(*i).map_or_else(|_| Val::Uint(u64::try_from(*i).unwrap_or(u64::MAX)), Val::Int)
        }
        Key::String(s) => Val::String(s.clone()),
    }
}
