//! What expressions cost: exactly while they run, and at worst before they run.
//!
//! A unit is one step. Functions that look at all of a string pay a tenth of its length, those that look at all of a list its
//! length. An estimate takes sizes from declarations; what has no bound is taken to be as large as a request allows.
//!
//! Follows: cel-go `checker/cost.go` and `interpreter/runtimecost.go`; `k8s.io/apiserver/pkg/cel/library/cost.go`.

use std::sync::Arc;

use crate::Environment;
use crate::ast::{Comprehension, Expr, ExprKind, Literal, op};
use crate::check::{Checked, declaration};
use crate::types::{Decl, Type};
use crate::value::Val;

/// A request body's limit in bytes: nothing in a request is longer.
const UNBOUNDED: u64 = 3 * 1024 * 1024;

/// The bounds of what one evaluation costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostEstimate {
    pub min: u64,
    pub max: u64,
}

fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

fn quarter(size: u64) -> u64 {
    size.div_ceil(4)
}

/// The cost of calling `function` with arguments of these sizes: the same rule for values and for estimates.
fn sized_call_cost(function: &str, sizes: &[u64], first_is_list: bool) -> u64 {
    let size = |i: usize| sizes.get(i).copied().unwrap_or(1);
    match function {
        op::EQUALS | op::NOT_EQUALS | op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS => {
            tenth(size(0).min(size(1))).max(1)
        }
        op::ADD if first_is_list => 1,
        op::ADD => tenth(size(0).saturating_add(size(1))).max(1),
        op::IN => size(1).max(1),
        "matches" => tenth(size(0) + 1).saturating_mul(quarter(size(1))).max(1),
        "find" | "findAll" => tenth(size(0) + 1).saturating_mul(quarter(size(1))).max(1),
        "contains" => tenth(size(0)).saturating_mul(tenth(size(1))).max(1),
        "startsWith" | "endsWith" => tenth(size(1)).max(1),
        "indexOf" | "lastIndexOf" if !first_is_list => tenth(size(0)).saturating_mul(tenth(size(1))).max(1),
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" | "reverse" | "flatten" | "slice" => {
            size(0).max(1)
        }
        "distinct" | "sort" => size(0).saturating_mul(size(0)).max(1),
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)).max(1),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2).max(1),
        "lists.range" => 10,
        "string"
        | "bytes"
        | "url"
        | "isURL"
        | "ip"
        | "isIP"
        | "cidr"
        | "isCIDR"
        | "ip.isCanonical"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "charAt"
        | "join"
        | "split"
        | "replace"
        | "format"
        | "strings.quote"
        | "jsonpatch.escapeKey" => tenth(size(0)).max(1),
        "validate" => tenth(size(1)).saturating_mul(15).max(1),
        "check" => 350_000,
        _ => 1,
    }
}

/// The cost of a call with these values.
pub(crate) fn call_cost(function: &str, args: &[Val]) -> u64 {
    let sizes: Vec<u64> = args
        .iter()
        .enumerate()
        .map(|(i, v)| match (function, v) {
            // Comparing lists looks into their elements.
            (op::EQUALS | op::NOT_EQUALS, Val::List(_) | Val::Map(_)) => deep_size(v).saturating_mul(10),
            ("join", Val::List(list)) if i == 0 => list.iter().map(Val::size).fold(0, u64::saturating_add),
            ("lists.range", Val::Int(n)) => (*n).max(0) as u64,
            _ => v.size(),
        })
        .collect();
    let cost = sized_call_cost(function, &sizes, matches!(args.first(), Some(Val::List(_))));
    // Building a list copies it.
    match (function, args) {
        (op::ADD, [Val::List(a), Val::List(b)]) => cost + tenth((a.len() + b.len()) as u64),
        ("lists.range", _) => cost + sizes[0],
        _ => cost,
    }
}

fn deep_size(value: &Val) -> u64 {
    match value {
        Val::List(list) => list.iter().map(deep_size).fold(1, u64::saturating_add),
        Val::Map(map) => map.values().map(deep_size).fold(1, u64::saturating_add),
        other => tenth(other.size()).max(1),
    }
}

/// Bounds `expr` by the sizes that declarations give.
pub(crate) fn estimate(expr: &Expr, environment: &Environment, checked: &Checked) -> CostEstimate {
    let mut estimator = Estimator { environment, checked, scopes: Vec::new(), local_sizes: Vec::new() };
    let (cost, _) = estimator.walk(expr);
    cost
}

struct Estimator<'a> {
    environment: &'a Environment,
    checked: &'a Checked,
    scopes: Vec<(Arc<str>, Option<Arc<Decl>>)>,
    /// The most that variables without declarations (accumulators, elements of built lists) can hold.
    local_sizes: Vec<(Arc<str>, u64)>,
}

fn plus(a: CostEstimate, b: CostEstimate) -> CostEstimate {
    CostEstimate { min: a.min.saturating_add(b.min), max: a.max.saturating_add(b.max) }
}

fn fixed(cost: u64) -> CostEstimate {
    CostEstimate { min: cost, max: cost }
}

impl Estimator<'_> {
    fn ty(&self, expr: &Expr) -> &Type {
        self.checked.types.get(&expr.id).unwrap_or(&Type::Dyn)
    }

    fn size_of_decl(&self, decl: &Decl) -> u64 {
        match &decl.ty {
            Type::String | Type::Bytes | Type::List(_) | Type::Map(..) | Type::Dyn => {
                decl.size_max.unwrap_or(UNBOUNDED)
            }
            _ => 1,
        }
    }

    /// The cost of an expression and the largest size of its value.
    fn walk(&mut self, expr: &Expr) -> (CostEstimate, u64) {
        match &expr.kind {
            ExprKind::Literal(literal) => {
                let size = match literal {
                    Literal::String(s) => s.chars().count() as u64,
                    Literal::Bytes(b) => b.len() as u64,
                    _ => 1,
                };
                (CostEstimate::default(), size)
            }
            ExprKind::Ident(name) => {
                if let Some((_, size)) = self.local_sizes.iter().rev().find(|(n, _)| n == name) {
                    return (fixed(1), *size);
                }
                (fixed(1), self.declared_size(expr))
            }
            ExprKind::Select { operand, test, .. } => {
                let (cost, _) = self.walk(operand);
                (plus(cost, fixed(1)), if *test { 1 } else { self.declared_size(expr) })
            }
            ExprKind::List { elements, .. } => {
                let cost = elements.iter().fold(fixed(10), |sum, e| plus(sum, self.walk(e).0));
                (cost, elements.len() as u64)
            }
            ExprKind::Map { entries } => {
                let cost = entries
                    .iter()
                    .fold(fixed(30), |sum, e| plus(plus(sum, self.walk(&e.key).0), self.walk(&e.value).0));
                (cost, entries.len() as u64)
            }
            ExprKind::Message { fields, .. } => {
                (fields.iter().fold(fixed(40), |sum, f| plus(sum, self.walk(&f.value).0)), fields.len() as u64)
            }
            ExprKind::Call { target, function, args } => self.call(expr, target.as_deref(), function, args),
            ExprKind::Comprehension(c) => self.comprehension(c),
        }
    }

    fn declared_size(&self, expr: &Expr) -> u64 {
        match declaration(expr, self.environment, &self.scopes) {
            Some(decl) => self.size_of_decl(&decl),
            None => match self.ty(expr) {
                Type::String | Type::Bytes | Type::List(_) | Type::Map(..) | Type::Dyn => UNBOUNDED,
                _ => 1,
            },
        }
    }

    fn call(&mut self, expr: &Expr, target: Option<&Expr>, function: &str, args: &[Expr]) -> (CostEstimate, u64) {
        let all: Vec<&Expr> = target.into_iter().chain(args).collect();
        if matches!(function, op::AND | op::OR) {
            let (left, right) = (self.walk(all[0]).0, self.walk(all[1]).0);
            return (CostEstimate { min: left.min, max: left.max.saturating_add(right.max) }, 1);
        }
        if function == op::CONDITIONAL {
            let (test, _) = self.walk(all[0]);
            let ((yes, a), (no, b)) = (self.walk(all[1]), self.walk(all[2]));
            let branch = CostEstimate { min: yes.min.min(no.min), max: yes.max.max(no.max) };
            return (plus(test, branch), a.max(b));
        }
        let mut cost = CostEstimate::default();
        let mut sizes = Vec::with_capacity(all.len());
        for arg in &all {
            let (own, size) = self.walk(arg);
            cost = plus(cost, own);
            sizes.push(size);
        }
        let list = all.first().is_some_and(|a| matches!(self.ty(a), Type::List(_)));
        if function == op::NOT_STRICTLY_FALSE {
            return (cost, 1);
        }
        // Comparing things of fixed size costs one step; what has no bound costs as much as it could be.
        let max = sized_call_cost(function, &sizes, list);
        let own = CostEstimate { min: 1.min(max), max };
        let size = match function {
            op::ADD => sizes.iter().copied().fold(0, u64::saturating_add),
            op::INDEX | op::OPT_INDEX | op::OPT_SELECT => self.declared_size(expr),
            _ => match self.ty(expr) {
                Type::String | Type::Bytes | Type::List(_) | Type::Map(..) => sizes.iter().copied().max().unwrap_or(1),
                Type::Dyn => UNBOUNDED,
                _ => 1,
            },
        };
        (plus(cost, own), size)
    }

    fn comprehension(&mut self, c: &Comprehension) -> (CostEstimate, u64) {
        let (range, times) = self.walk(&c.range);
        let (init, _) = self.walk(&c.init);
        let decl = declaration(&c.range, self.environment, &self.scopes);
        let outer = (self.scopes.len(), self.local_sizes.len());
        // What a loop collects is at most one element a round; booleans and counters have no size.
        let collects = matches!(self.ty(&c.init), Type::List(_) | Type::Map(..));
        self.local_sizes.push((c.accumulator.clone(), if collects { times } else { 1 }));
        let is_map = matches!(self.ty(&c.range), Type::Map(..));
        let element = decl.as_ref().and_then(|d| d.element.clone());
        let key = decl.as_ref().and_then(|d| d.key.clone());
        let index = || Some(Arc::new(Decl::new(Type::Int)));
        let (first, second) = match (is_map, &c.variable2) {
            (true, _) => (key, element),
            (false, Some(_)) => (index(), element),
            (false, None) => (element, None),
        };
        self.scopes.push((c.variable.clone(), first));
        if let Some(variable2) = &c.variable2 {
            self.scopes.push((variable2.clone(), second));
        }
        let body = plus(self.walk(&c.condition).0, self.walk(&c.step).0);
        self.scopes.truncate(outer.0);
        let (result, size) = self.walk(&c.result);
        self.local_sizes.truncate(outer.1);
        let looped = CostEstimate { min: 0, max: body.max.saturating_mul(times) };
        (plus(plus(range, init), plus(looped, result)), size)
    }
}
