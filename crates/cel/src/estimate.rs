//! What an expression can cost at worst, before it runs.
//!
//! Rules of custom resources are accepted or refused by this number, so it is upstream's to the unit: the same sizes of the
//! same things, the same factors, the same arithmetic in floating point. What looks odd here is odd there: sizes are looked
//! up from `self` whatever variable a path begins with, and numbers and objects that are declared have size 0.
//!
//! Follows: cel-go `checker/cost.go` (v0.26), `ext/{sets,lists}.go`; `k8s.io/apiserver/pkg/cel/library/cost.go`;
//! `apiextensions-apiserver/pkg/apiserver/schema/cel/compilation.go` (sizes).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::Environment;
use crate::ast::{Comprehension, Expr, ExprKind, Literal, op};
use crate::check::{Checked, ResolvedCall};
use crate::declarations::Signature;
use crate::stdlib::INCLUDED_MAX;
use crate::types::{Decl, Type};

/// Sizes and costs are ranges, and bounded: they stop at the largest number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostEstimate {
    pub min: u64,
    pub max: u64,
}

/// Characters, bytes, elements or entries.
type Size = CostEstimate;

const STRING_FACTOR: f64 = 0.1;
const REGEX_FACTOR: f64 = 0.25;
const LIST_COST: CostEstimate = CostEstimate::fixed(10);
const MAP_COST: CostEstimate = CostEstimate::fixed(30);
const STRUCT_COST: CostEstimate = CostEstimate::fixed(40);
const ONE: CostEstimate = CostEstimate::fixed(1);
const ZERO: CostEstimate = CostEstimate::fixed(0);
const UNKNOWN: Size = Size { min: 0, max: u64::MAX };
/// What a string or a value of any type can hold when nothing bounds it. Source: `cel.DefaultMaxRequestSizeBytes`.
const UNBOUNDED: u64 = 3 * 1024 * 1024 - 2;
/// The variable of device selectors.
const DEVICE: &str = "device";
/// Source: `cel.MaxNameFormatRegexSize`.
const FORMAT_REGEX_SIZE: f64 = 128.0;
const FORMAT_SIZE_MAX: u64 = 64;

impl CostEstimate {
    pub const fn fixed(cost: u64) -> CostEstimate {
        CostEstimate { min: cost, max: cost }
    }

    fn plus(self, other: CostEstimate) -> CostEstimate {
        CostEstimate { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: CostEstimate) -> CostEstimate {
        CostEstimate { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn scaled(self, factor: f64) -> CostEstimate {
        // Conversions to u64 saturate, as upstream's do.
        let scale = |x: u64| (x as f64 * factor).ceil() as u64;
        CostEstimate { min: scale(self.min), max: scale(self.max) }
    }

    fn union(self, other: CostEstimate) -> CostEstimate {
        CostEstimate { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// Bounds `expr` by the sizes that the declaration of `self`, or else that of `device`, gives.
pub(crate) fn estimate(expr: &Expr, environment: &Environment, checked: &Checked) -> CostEstimate {
    let mut coster = Coster {
        root: environment.variable("self").or_else(|| environment.variable(DEVICE)).cloned(),
        of_device: environment.variable("self").is_none(),
        checked,
        paths: HashMap::new(),
        locals: BTreeMap::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
    };
    coster.cost(expr)
}

/// From a variable to a part of it: `self`, `spec`, `@items`.
type Path = Vec<Arc<str>>;

/// The sizes of what a list or map holds.
#[derive(Clone, Copy)]
struct Entries {
    list: bool,
    key: Size,
    value: Size,
}

struct Local {
    path: Path,
    size: Option<Size>,
    entries: Option<Entries>,
}

/// What a function's rule looks at.
struct Node<'e> {
    path: Path,
    ty: Type,
    /// What is known without looking at the declaration's elements.
    size: Option<Size>,
    expr: Option<&'e Expr>,
}

struct CallCost {
    cost: CostEstimate,
    result: Option<Size>,
}

struct Coster<'a> {
    root: Option<Arc<Decl>>,
    /// Sizes are those of a device.
    of_device: bool,
    checked: &'a Checked,
    paths: HashMap<u32, Path>,
    locals: BTreeMap<Arc<str>, Vec<Local>>,
    sizes: HashMap<u32, Size>,
    entries: HashMap<u32, Entries>,
}

fn declared_size(decl: &Decl) -> Size {
    let unbounded = match decl.ty {
        Type::String | Type::Bytes | Type::Dyn | Type::Any => UNBOUNDED,
        Type::List(_) | Type::Map(..) => u64::MAX,
        _ => 0,
    };
    Size { min: 0, max: decl.size_max.unwrap_or(unbounded) }
}

fn is_scalar(ty: &Type) -> bool {
    match ty {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        Type::Optional(held) => is_scalar(held),
        _ => false,
    }
}

fn literal_size(expr: &Expr) -> Option<Size> {
    Some(Size::fixed(match &expr.kind {
        ExprKind::Literal(Literal::String(s)) => s.chars().count() as u64,
        ExprKind::Literal(Literal::Bytes(b)) => b.len() as u64,
        ExprKind::Literal(_) => 1,
        ExprKind::List { elements, .. } => elements.len() as u64,
        ExprKind::Map { entries } => entries.len() as u64,
        _ => return None,
    }))
}

impl Coster<'_> {
    fn ty(&self, expr: &Expr) -> Type {
        self.checked.types.get(&expr.id).cloned().unwrap_or(Type::Dyn)
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.get(name)?.last()
    }

    fn push(&mut self, name: &Arc<str>, local: Local) {
        self.locals.entry(name.clone()).or_default().push(local);
    }

    fn pop(&mut self, name: &Arc<str>) {
        if let Some(stack) = self.locals.get_mut(name) {
            stack.pop();
        }
    }

    fn path(&self, expr: &Expr) -> Path {
        if let ExprKind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&expr.id).cloned().unwrap_or_default()
    }

    /// The declared size of what a path leads to; its first step is not looked at.
    fn size_of_path(&self, path: &[Arc<str>]) -> Option<Size> {
        let (variable, steps) = path.split_first()?;
        let mut decl = self.root.as_ref()?;
        if self.of_device && &**variable != DEVICE {
            return None;
        }
        for step in steps {
            decl = match &**step {
                "@items" | "@values" => decl.element.as_ref()?,
                "@keys" => decl.key.as_ref()?,
                // Attributes of a device are all of one size, whatever their names.
                field => match decl.field(field) {
                    None if self.of_device => decl.element.as_ref().filter(|element| element.ty == Type::Any)?,
                    found => found?,
                },
            };
        }
        Some(declared_size(decl))
    }

    fn size(&mut self, expr: &Expr) -> Option<Size> {
        if let Some(size) = self.sizes.get(&expr.id).copied().or_else(|| literal_size(expr)) {
            return Some(size);
        }
        if let Some(size) = self.size_of_path(&self.path(expr)) {
            self.sizes.insert(expr.id, size);
            return Some(size);
        }
        if is_scalar(&self.ty(expr)) {
            return Some(ONE);
        }
        match &expr.kind {
            ExprKind::Ident(name) => self.local(name).and_then(|l| l.size),
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, expr: &Expr) -> Size {
        self.size(expr).unwrap_or(UNKNOWN)
    }

    fn entries(&self, expr: &Expr) -> Option<Entries> {
        self.entries.get(&expr.id).copied().or_else(|| match &expr.kind {
            ExprKind::Ident(name) => self.local(name).and_then(|l| l.entries),
            _ => None,
        })
    }

    fn node<'e>(&mut self, expr: &'e Expr) -> Node<'e> {
        let path = self.path(expr);
        let size = self.size(expr);
        Node { path, ty: self.ty(expr), size, expr: Some(expr) }
    }

    /// The elements of a list, or of whatever has parameters.
    fn element_node(&self, list: &Node<'_>) -> Option<Node<'static>> {
        let ty = match &list.ty {
            Type::List(t) | Type::Map(t, _) | Type::Optional(t) | Type::Type(t) => Type::clone(t),
            _ => return None,
        };
        let mut path = list.path.clone();
        if !path.is_empty() {
            path.push("@items".into());
        }
        Some(Node { path, ty, size: None, expr: None })
    }

    fn node_size(&self, node: &Node<'_>) -> Size {
        node.size.or_else(|| self.size_of_path(&node.path)).unwrap_or(UNKNOWN)
    }

    fn cost(&mut self, expr: &Expr) -> CostEstimate {
        match &expr.kind {
            ExprKind::Literal(_) => ZERO,
            ExprKind::Ident(name) => {
                let path = self.local(name).map_or_else(|| vec![name.clone()], |l| l.path.clone());
                self.paths.insert(expr.id, path);
                ONE
            }
            ExprKind::Select { operand, field, test } => self.select(expr, operand, field, *test),
            ExprKind::Call { target, args, .. } => self.call(expr, target.as_deref(), args),
            ExprKind::List { elements, .. } => {
                let mut sum = ZERO;
                let mut value = Size { min: if elements.is_empty() { 0 } else { u64::MAX }, max: 0 };
                for element in elements {
                    sum = sum.plus(self.cost(element));
                    value = value.union(self.size_or_unknown(element));
                }
                self.entries.insert(expr.id, Entries { list: true, key: ONE, value });
                sum.plus(LIST_COST)
            }
            ExprKind::Map { entries } => {
                let mut sum = ZERO;
                let empty = Size { min: if entries.is_empty() { 0 } else { u64::MAX }, max: 0 };
                let (mut key, mut value) = (empty, empty);
                for entry in entries {
                    sum = sum.plus(self.cost(&entry.key)).plus(self.cost(&entry.value));
                    key = key.union(self.size_or_unknown(&entry.key));
                    value = value.union(self.size_or_unknown(&entry.value));
                }
                self.entries.insert(expr.id, Entries { list: false, key, value });
                sum.plus(MAP_COST)
            }
            ExprKind::Message { fields, .. } => {
                fields.iter().fold(ZERO, |sum, f| sum.plus(self.cost(&f.value))).plus(STRUCT_COST)
            }
            ExprKind::Comprehension(c) => self.comprehension(expr, c),
        }
    }

    fn select(&mut self, expr: &Expr, operand: &Expr, field: &Arc<str>, test: bool) -> CostEstimate {
        // The name of a type is one name, whatever dots are in it.
        if !self.checked.types.contains_key(&operand.id) {
            self.paths.insert(expr.id, vec![field.clone()]);
            return ONE;
        }
        let sum = self.cost(operand);
        // Kubernetes lets `has` be free.
        if test {
            return sum;
        }
        let mut path = self.path(operand);
        path.push(field.clone());
        self.paths.insert(expr.id, path);
        match self.ty(operand) {
            Type::Map(..) | Type::Object(_) | Type::Param(_) => sum.plus(ONE),
            _ => sum,
        }
    }

    fn call(&mut self, expr: &Expr, target: Option<&Expr>, args: &[Expr]) -> CostEstimate {
        let ExprKind::Call { function, .. } = &expr.kind else { return ZERO };
        if &**function == "dyn" && args.len() == 1 {
            let cost = self.cost(&args[0]);
            if let Some(size) = self.size(&args[0]) {
                self.sizes.insert(expr.id, size);
            }
            if let Some(entries) = self.entries(&args[0]) {
                self.entries.insert(expr.id, entries);
            }
            return cost.plus(ONE);
        }
        let costs: Vec<CostEstimate> = args.iter().map(|arg| self.cost(arg)).collect();
        let nodes: Vec<Node<'_>> = args.iter().map(|arg| self.node(arg)).collect();
        let arg_sum = costs.iter().fold(ZERO, |sum, cost| sum.plus(*cost));
        // Optional selection is resolved without a signature.
        let Some(resolved) = self.checked.calls.get(&expr.id) else { return arg_sum.plus(ONE) };
        let (target_cost, target_node) = match target.filter(|_| resolved.receiver) {
            Some(target) => (self.cost(target), Some(self.node(target))),
            None => (ZERO, None),
        };
        let mut range = CostEstimate { min: u64::MAX, max: 0 };
        let mut result: Option<Size> = None;
        for signature in &resolved.signatures {
            let call = self.overload(expr, resolved, signature, target_node.as_ref(), &nodes, args, &costs, arg_sum);
            range = range.union(call.cost);
            result = match (result, call.result) {
                (Some(a), Some(b)) => Some(a.union(b)),
                (a, b) => b.or(a),
            };
            if resolved.name == op::INDEX
                && let (Some(container), Some(Type::List(_) | Type::Map(..))) = (args.first(), signature.params.first())
            {
                result = self.entries(container).map(|e| e.value);
                let mut path = self.path(container);
                let list = matches!(signature.params[0], Type::List(_));
                path.push(if list { "@items" } else { "@values" }.into());
                self.paths.insert(expr.id, path);
            }
            if result.is_none() {
                result = self.size(expr);
            }
        }
        if let Some(size) = result {
            self.sizes.insert(expr.id, size);
        }
        target_cost.plus(range)
    }

    /// The cost of one way to call a function, with that of its arguments.
    fn overload(
        &mut self,
        expr: &Expr,
        call: &ResolvedCall,
        signature: &Signature,
        target: Option<&Node<'_>>,
        nodes: &[Node<'_>],
        args: &[Expr],
        costs: &[CostEstimate],
        arg_sum: CostEstimate,
    ) -> CallCost {
        let library = match list_function(self, call, target, nodes) {
            Some(cost) => Some(cost),
            None => library_function(self, call, signature, target, nodes),
        };
        if let Some(CallCost { cost, result }) = library {
            return CallCost { cost: cost.plus(arg_sum), result };
        }
        let only = |cost: CostEstimate| CallCost { cost, result: None };
        let first = signature.params.first();
        match (call.name.as_str(), call.receiver) {
            ("format", true) => only(target.map_or(ONE, |t| self.known_size(t).scaled(STRING_FACTOR)).plus(arg_sum)),
            ("bytes", false) if matches!(first, Some(Type::String)) => {
                let size = self.known_size(&nodes[0]);
                let result = Size { min: size.min, max: size.max.wrapping_mul(4) };
                CallCost { cost: size.scaled(STRING_FACTOR).plus(arg_sum), result: Some(result) }
            }
            ("string", false) if matches!(first, Some(Type::Bytes)) => {
                let size = self.known_size(&nodes[0]);
                let result = Size { min: size.min / 4, max: size.max };
                CallCost { cost: size.scaled(STRING_FACTOR).plus(arg_sum), result: Some(result) }
            }
            ("strings.quote", false) => {
                let size = self.known_size(&nodes[0]);
                let result = Size { min: size.min.wrapping_add(2), max: size.max.wrapping_mul(2).wrapping_add(2) };
                CallCost { cost: size.scaled(STRING_FACTOR).plus(arg_sum), result: Some(result) }
            }
            ("startsWith" | "endsWith", true) => only(self.known_size(&nodes[0]).scaled(STRING_FACTOR).plus(arg_sum)),
            (op::IN, _) if matches!(signature.params.get(1), Some(Type::List(_))) => {
                only(self.known_size(&nodes[1]).scaled(1.0).plus(arg_sum))
            }
            ("matches", true) => {
                let size = target.map_or(UNKNOWN, |t| self.known_size(t));
                let regex = self.known_size(&nodes[0]).scaled(REGEX_FACTOR);
                only(size.plus(ONE).scaled(STRING_FACTOR).times(regex).plus(arg_sum))
            }
            ("contains", true) => {
                let size = target.map_or(UNKNOWN, |t| self.known_size(t)).scaled(STRING_FACTOR);
                only(size.times(self.known_size(&nodes[0]).scaled(STRING_FACTOR)).plus(arg_sum))
            }
            (op::AND | op::OR, _) => {
                only(CostEstimate { min: costs[0].min, max: costs[0].max.saturating_add(costs[1].max) })
            }
            (op::CONDITIONAL, _) => {
                let size = self.known_size(&nodes[1]).union(self.known_size(&nodes[2]));
                if let (Some(a), Some(b)) = (self.entries(&args[1]), self.entries(&args[2])) {
                    let joined = Entries { list: a.list, key: a.key.union(b.key), value: a.value.union(b.value) };
                    self.entries.insert(expr.id, joined);
                }
                CallCost { cost: costs[0].plus(costs[1].union(costs[2])), result: Some(size) }
            }
            (op::ADD, _) if matches!(first, Some(Type::String | Type::Bytes | Type::List(_))) => {
                let size = self.known_size(&nodes[0]).plus(self.known_size(&nodes[1]));
                if let (Some(a), Some(b)) = (self.entries(&args[0]), self.entries(&args[1])) {
                    let joined = Entries { list: a.list, key: a.key.union(b.key), value: a.value.union(b.value) };
                    self.entries.insert(expr.id, joined);
                }
                let own = if matches!(first, Some(Type::List(_))) { ONE } else { size.scaled(STRING_FACTOR) };
                CallCost { cost: own.plus(arg_sum), result: Some(size) }
            }
            (op::EQUALS | op::NOT_EQUALS, _) => only(self.comparison(nodes).plus(arg_sum)),
            (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, _)
                if matches!(first, Some(Type::String | Type::Bytes)) =>
            {
                only(self.comparison(nodes).plus(arg_sum))
            }
            _ => only(arg_sum.plus(ONE)),
        }
    }

    /// A size as the language's own functions take it: what has been worked out, else anything.
    fn known_size(&self, node: &Node<'_>) -> Size {
        node.size.unwrap_or(UNKNOWN)
    }

    fn comparison(&self, nodes: &[Node<'_>]) -> CostEstimate {
        let max = self.known_size(&nodes[0]).max.min(self.known_size(&nodes[1]).max);
        CostEstimate { min: u64::from(max > 0), max }.scaled(STRING_FACTOR)
    }

    fn comprehension(&mut self, expr: &Expr, c: &Comprehension) -> CostEstimate {
        let mut sum = self.cost(&c.range);
        sum = sum.plus(self.cost(&c.init));
        let init = Local { path: self.path(&c.init), size: self.size(&c.init), entries: self.entries(&c.init) };
        self.push(&c.accumulator, init);
        if is_bind(c) {
            sum = sum.plus(self.cost(&c.result));
            self.pop(&c.accumulator);
            if let Some(size) = self.size(&c.result) {
                self.sizes.insert(expr.id, size);
            }
            if let Some(entries) = self.entries(&c.result) {
                self.entries.insert(expr.id, entries);
            }
            return sum;
        }
        let range_entries = self.entries(&c.range);
        let range_path = self.path(&c.range);
        let list = range_entries.map_or_else(|| matches!(self.ty(&c.range), Type::List(_)), |e| e.list);
        let iterated = |step: &str, size: Option<Size>| {
            let mut path = range_path.clone();
            path.push(step.into());
            Local { path, size, entries: None }
        };
        let (key, value) = (range_entries.map(|e| e.key), range_entries.map(|e| e.value));
        match &c.variable2 {
            Some(second) => {
                self.push(&c.variable, iterated(if list { "@indices" } else { "@keys" }, key));
                self.push(second, iterated(if list { "@items" } else { "@values" }, value));
            }
            None if list => self.push(&c.variable, iterated("@items", value)),
            None => self.push(&c.variable, iterated("@keys", key)),
        }
        let condition = self.cost(&c.condition);
        let step = self.cost(&c.step);
        self.pop(&c.variable);
        if let Some(second) = &c.variable2 {
            self.pop(second);
        }
        sum = sum.plus(self.cost(&c.result));
        self.pop(&c.accumulator);
        let times = self.size_or_unknown(&c.range);
        sum = sum.plus(times.times(step.plus(condition)));
        match &c.init.kind {
            ExprKind::Literal(_) => {
                if let Some(size) = self.size(&c.init) {
                    self.sizes.insert(expr.id, size);
                }
            }
            ExprKind::List { .. } | ExprKind::Map { .. } => {
                self.sizes.insert(expr.id, times);
                if let Some(entries) = self.entries(&c.step) {
                    self.entries.insert(expr.id, entries);
                }
            }
            _ => {}
        }
        sum
    }
}

/// A loop over nothing that only gives a name to a value.
fn is_bind(c: &Comprehension) -> bool {
    matches!(&c.range.kind, ExprKind::List { elements, .. } if elements.is_empty())
        && matches!(c.condition.kind, ExprKind::Literal(Literal::Bool(false)))
        && &*c.accumulator != crate::macros::RESULT
}

fn int_literal(node: Option<&Node<'_>>) -> Option<u64> {
    match &node?.expr?.kind {
        ExprKind::Literal(Literal::Int(i)) => Some(u64::try_from(*i).unwrap_or(0)),
        _ => None,
    }
}

/// The libraries of lists and sets.
fn list_function(
    c: &Coster<'_>,
    call: &ResolvedCall,
    target: Option<&Node<'_>>,
    args: &[Node<'_>],
) -> Option<CallCost> {
    let allocating = |factor: f64, size: Size| {
        Some(CallCost { cost: size.scaled(factor).plus(ONE).plus(LIST_COST), result: Some(size) })
    };
    let on_list = target.filter(|t| matches!(t.ty, Type::List(_) | Type::Dyn | Type::Param(_)));
    match (call.name.as_str(), on_list) {
        ("sets.contains" | "sets.intersects" | "sets.equivalent", _) => {
            let factor = if call.name == "sets.equivalent" { 2.0 } else { 1.0 };
            let sizes = c.node_size(&args[0]).times(c.node_size(&args[1]));
            Some(CallCost { cost: sizes.scaled(factor).plus(ONE), result: None })
        }
        ("includes", _) => {
            let values = Size { min: 0, max: INCLUDED_MAX as u64 };
            Some(CallCost { cost: values, result: None })
        }
        ("lists.range", _) => allocating(1.0, Size::fixed(int_literal(args.first()).unwrap_or(u64::MAX))),
        ("slice", Some(target)) => {
            let start = int_literal(args.first()).unwrap_or(0);
            let end = int_literal(args.get(1)).unwrap_or_else(|| c.node_size(target).max);
            allocating(1.0, Size::fixed(end.wrapping_sub(start)))
        }
        ("reverse", Some(target)) => allocating(1.0, c.node_size(target)),
        ("flatten", Some(target)) => {
            let depth = if args.is_empty() { 1 } else { int_literal(args.first()).unwrap_or(u64::MAX) };
            allocating(depth as f64, c.node_size(target))
        }
        ("distinct", Some(target)) => allocating(2.0, c.node_size(target).times(c.node_size(target))),
        ("sort" | "@sortByAssociatedKeys", Some(target)) => {
            let text = matches!(&target.ty, Type::List(t) if matches!(**t, Type::String | Type::Bytes));
            let factor = if text { 2.0 + STRING_FACTOR } else { 2.0 };
            allocating(factor, c.node_size(target).times(c.node_size(target)))
        }
        _ => None,
    }
}

/// The Kubernetes libraries, and the functions of strings that they have rules for.
fn library_function(
    c: &Coster<'_>,
    call: &ResolvedCall,
    signature: &Signature,
    target: Option<&Node<'_>>,
    args: &[Node<'_>],
) -> Option<CallCost> {
    let only = |cost: CostEstimate| Some(CallCost { cost, result: None });
    let size = |node: &Node<'_>| c.node_size(node);
    let traversal = |node: &Node<'_>| size(node).scaled(STRING_FACTOR);
    let text_param = matches!(signature.params.last(), Some(Type::String));
    match (call.name.as_str(), target, args) {
        ("check", ..) => only(CostEstimate::fixed(350_000)),
        (
            "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name" | "allowed"
            | "reason" | "error" | "errored",
            ..,
        ) => only(ONE),
        ("fieldSelector" | "labelSelector", _, [selector]) => {
            let parse = traversal(selector);
            let requirements = size(selector).scaled(0.5).scaled(50.0);
            only(LIST_COST.plus(parse).plus(requirements))
        }
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", Some(target), _) => {
            let Some(element) = c.element_node(target) else { return only(traversal(target)) };
            let mut each = ONE;
            if matches!(element.ty, Type::String | Type::Bytes) {
                each = each.plus(traversal(&element));
            }
            only(size(target).times(each))
        }
        ("url" | "jsonpatch.escapeKey", _, [text]) => {
            Some(CallCost { cost: traversal(text), result: Some(size(text)) })
        }
        ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(target), _) => {
            Some(CallCost { cost: traversal(target), result: Some(size(target)) })
        }
        ("replace", Some(target), [from, to, ..]) => {
            let result = replaced(size(target), size(from), size(to));
            Some(CallCost { cost: size(target).scaled(2.0 * STRING_FACTOR), result: Some(result) })
        }
        ("split", Some(target), _) => {
            let max = int_literal(args.get(1)).unwrap_or_else(|| size(target).max);
            Some(CallCost { cost: size(target).scaled(2.0 * STRING_FACTOR), result: Some(Size { min: 0, max }) })
        }
        ("join", Some(target), _) => {
            let list = size(target);
            let mut result = c.element_node(target).map_or(ZERO, |element| list.times(size(&element)));
            if let Some(separator) = args.first() {
                let times = Size { min: list.min.saturating_sub(1), max: list.max.saturating_sub(1) };
                result = result.plus(size(separator).times(times));
            }
            Some(CallCost { cost: result.scaled(STRING_FACTOR), result: Some(result) })
        }
        ("find" | "findAll", Some(target), [regex, ..]) => {
            let text = size(target).plus(ONE).scaled(STRING_FACTOR);
            let cost = text.times(size(regex).scaled(REGEX_FACTOR));
            Some(CallCost { cost, result: Some(Size { min: 0, max: size(target).max }) })
        }
        ("ip", Some(_), _) => only(ONE),
        ("cidr" | "isIP" | "isCIDR" | "ip", _, [text, ..]) => only(traversal(text)),
        ("ip.isCanonical", _, [text]) => only(size(text).scaled(2.0 * STRING_FACTOR)),
        (
            "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast",
            ..,
        ) => only(ONE),
        ("containsIP" | "containsCIDR", _, [other]) => {
            let bytes = Size { min: 4, max: 16 };
            let mut cost = bytes.plus(bytes).scaled(STRING_FACTOR);
            if call.name == "containsCIDR" {
                cost = cost.plus(bytes.scaled(STRING_FACTOR)).plus(ONE);
            }
            if text_param {
                cost = cost.plus(traversal(other));
            }
            only(cost)
        }
        ("quantity" | "isQuantity" | "semver" | "isSemver", _, [text, ..]) => only(traversal(text)),
        ("validate", _, [text]) => only(traversal(text).scaled(FORMAT_REGEX_SIZE * REGEX_FACTOR)),
        (
            "format.named" | "sign" | "asInteger" | "isInteger" | "asApproximateFloat" | "isGreaterThan" | "isLessThan"
            | "compareTo" | "add" | "sub" | "major" | "minor" | "patch" | "getScheme" | "getHostname" | "getHost"
            | "getPort" | "getEscapedPath" | "getQuery",
            ..,
        ) => only(ONE),
        (op::EQUALS, _, [left, right]) if left.ty == right.ty => match left.ty {
            Type::Opaque("kubernetes.NamedFormat") => {
                only(CostEstimate { min: 1, max: FORMAT_SIZE_MAX }.scaled(STRING_FACTOR))
            }
            Type::Opaque("kubernetes.URL") => {
                // Only the right side is looked at.
                let max = right.size.map_or(1, |s| s.max);
                only(CostEstimate { min: 1, max }.scaled(STRING_FACTOR))
            }
            Type::Opaque(_) => only(ONE),
            _ => None,
        },
        _ => None,
    }
}

/// The size of a text in which every `from` became `to`.
fn replaced(text: Size, from: Size, to: Size) -> Size {
    let (mut count, mut kept) = (ZERO, ZERO);
    let parts = |whole: u64, part: u64| (whole as f64 / part as f64).ceil() as u64;
    if from.min == 0 {
        // Replacing nothing surrounds every character.
        count.max = text.max.saturating_add(1);
        kept.max = text.max;
    } else if to.max <= from.min {
        kept.max = text.max;
    } else {
        count.max = parts(text.max, from.min);
    }
    if from.max == 0 {
        count.min = text.min.saturating_add(1);
        kept.min = text.min;
    } else if from.max <= to.min {
        kept.min = text.min;
    } else {
        count.min = parts(text.min, from.max);
    }
    count.times(to).plus(kept)
}
