//! Macros: calls that are rewritten while parsing.
//!
//! Follows: cel-go's standard macros, optional types (`optMap`, `optFlatMap`) and two-variable comprehensions, which is what
//! Kubernetes 1.36 turns on.

use std::sync::Arc;

use crate::SyntaxError;
use crate::ast::{Comprehension, Entry, Expr, ExprKind, Literal, Position, op};
use crate::parser::Parser;

type Expansion = Result<Option<Expr>, SyntaxError>;

/// The accumulator's name; not a name that a source can contain.
pub(crate) const RESULT: &str = "@result";

/// `has(a.b)`.
pub(crate) fn expand_global(p: &mut Parser<'_>, position: Position, name: &str, args: &[Expr]) -> Expansion {
    if name != "has" || args.len() != 1 {
        return Ok(None);
    }
    match &args[0].kind {
        ExprKind::Select { operand, field, test: false } => {
            let kind = ExprKind::Select { operand: operand.clone(), field: field.clone(), test: true };
            Ok(Some(p.make(position, kind)))
        }
        _ => Err(p.error(args[0].position, "invalid argument to has() macro")),
    }
}

/// Macros with a receiver, such as `list.all(x, x > 0)`.
pub(crate) fn expand_member(p: &mut Parser<'_>, at: Position, target: &Expr, name: &str, args: &[Expr]) -> Expansion {
    let range = || target.clone();
    Ok(Some(match (name, args) {
        ("all", [v, test]) => {
            let v = variable(p, v)?;
            all(p, at, range(), v, None, test)
        }
        ("all", [v, v2, test]) => {
            let (v, v2) = two_variables(p, v, v2)?;
            all(p, at, range(), v, Some(v2), test)
        }
        ("exists", [v, test]) => {
            let v = variable(p, v)?;
            exists(p, at, range(), v, None, test)
        }
        ("exists", [v, v2, test]) => {
            let (v, v2) = two_variables(p, v, v2)?;
            exists(p, at, range(), v, Some(v2), test)
        }
        ("exists_one" | "existsOne", [v, test]) => {
            let v = variable(p, v)?;
            exists_one(p, at, range(), v, None, test)
        }
        ("exists_one" | "existsOne", [v, v2, test]) => {
            let (v, v2) = two_variables(p, v, v2)?;
            exists_one(p, at, range(), v, Some(v2), test)
        }
        ("map", [v, value]) => {
            let v = named(p, v, "argument is not an identifier")?;
            collect(p, at, range(), v, None, None, value)
        }
        ("map", [v, test, value]) => {
            let v = named(p, v, "argument is not an identifier")?;
            collect(p, at, range(), v, None, Some(test), value)
        }
        ("filter", [v, test]) => {
            let v = named(p, v, "argument is not an identifier")?;
            let value = p.ident(args[0].position, &v);
            collect(p, at, range(), v, None, Some(test), &value)
        }
        ("transformList", [v, v2, value]) => {
            let (v, v2) = two_variables(p, v, v2)?;
            collect(p, at, range(), v, Some(v2), None, value)
        }
        ("transformList", [v, v2, test, value]) => {
            let (v, v2) = two_variables(p, v, v2)?;
            collect(p, at, range(), v, Some(v2), Some(test), value)
        }
        ("transformMap", [v, v2, value]) => {
            let (v, v2) = two_variables(p, v, v2)?;
            transform_map(p, at, range(), v, v2, None, value, false)
        }
        ("transformMap", [v, v2, test, value]) => {
            let (v, v2) = two_variables(p, v, v2)?;
            transform_map(p, at, range(), v, v2, Some(test), value, false)
        }
        ("transformMapEntry", [v, v2, value]) => {
            let (v, v2) = two_variables(p, v, v2)?;
            transform_map(p, at, range(), v, v2, None, value, true)
        }
        ("transformMapEntry", [v, v2, test, value]) => {
            let (v, v2) = two_variables(p, v, v2)?;
            transform_map(p, at, range(), v, v2, Some(test), value, true)
        }
        ("optMap", [v, value]) => optional(p, at, target, v, value, true)?,
        ("optFlatMap", [v, value]) => optional(p, at, target, v, value, false)?,
        ("sortBy", [v, key]) => {
            let v = named(p, v, "argument is not an identifier")?;
            sort_by(p, at, target, v, key)
        }
        ("bind", [v, value, result])
            if p.has_bindings && matches!(&target.kind, ExprKind::Ident(n) if &**n == "cel") =>
        {
            let v = named(p, v, "cel.bind() variable names must be simple identifiers")?;
            bind(p, at, v, value.clone(), result.clone())
        }
        _ => return Ok(None),
    }))
}

fn variable(p: &Parser<'_>, expr: &Expr) -> Result<Arc<str>, SyntaxError> {
    named(p, expr, "argument must be a simple name")
}

/// The name that is to be a variable; `problem` says what else it is.
fn named(p: &Parser<'_>, expr: &Expr, problem: &str) -> Result<Arc<str>, SyntaxError> {
    match &expr.kind {
        ExprKind::Ident(name) if !name.starts_with('.') => Ok(name.clone()),
        _ => Err(p.error(expr.position, problem)),
    }
}

fn two_variables(p: &Parser<'_>, first: &Expr, second: &Expr) -> Result<(Arc<str>, Arc<str>), SyntaxError> {
    let (v, v2) = (variable(p, first)?, variable(p, second)?);
    if v == v2 {
        return Err(p.error(second.position, format!("duplicate variable name: {v}")));
    }
    Ok((v, v2))
}

struct Loop {
    range: Expr,
    variable: Arc<str>,
    variable2: Option<Arc<str>>,
}

fn fold(p: &mut Parser<'_>, at: Position, l: Loop, init: Expr, condition: Expr, step: Expr, result: Expr) -> Expr {
    let Loop { range, variable, variable2 } = l;
    let accumulator = RESULT.into();
    let comprehension = Comprehension { range, variable, variable2, accumulator, init, condition, step, result };
    p.make(at, ExprKind::Comprehension(Box::new(comprehension)))
}

fn all(p: &mut Parser<'_>, at: Position, range: Expr, v: Arc<str>, v2: Option<Arc<str>>, test: &Expr) -> Expr {
    let init = p.literal(at, Literal::Bool(true));
    let accumulator = p.ident(at, RESULT);
    let condition = p.call(at, op::NOT_STRICTLY_FALSE, vec![accumulator]);
    let accumulator = p.ident(at, RESULT);
    let step = p.call(at, op::AND, vec![accumulator, test.clone()]);
    let result = p.ident(at, RESULT);
    fold(p, at, Loop { range, variable: v, variable2: v2 }, init, condition, step, result)
}

fn exists(p: &mut Parser<'_>, at: Position, range: Expr, v: Arc<str>, v2: Option<Arc<str>>, test: &Expr) -> Expr {
    let init = p.literal(at, Literal::Bool(false));
    let accumulator = p.ident(at, RESULT);
    let negated = p.call(at, op::NOT, vec![accumulator]);
    let condition = p.call(at, op::NOT_STRICTLY_FALSE, vec![negated]);
    let accumulator = p.ident(at, RESULT);
    let step = p.call(at, op::OR, vec![accumulator, test.clone()]);
    let result = p.ident(at, RESULT);
    fold(p, at, Loop { range, variable: v, variable2: v2 }, init, condition, step, result)
}

fn exists_one(p: &mut Parser<'_>, at: Position, range: Expr, v: Arc<str>, v2: Option<Arc<str>>, test: &Expr) -> Expr {
    let init = p.literal(at, Literal::Int(0));
    let condition = p.literal(at, Literal::Bool(true));
    let (accumulator, one) = (p.ident(at, RESULT), p.literal(at, Literal::Int(1)));
    let counted = p.call(at, op::ADD, vec![accumulator, one]);
    let accumulator = p.ident(at, RESULT);
    let step = p.call(at, op::CONDITIONAL, vec![test.clone(), counted, accumulator]);
    let (accumulator, one) = (p.ident(at, RESULT), p.literal(at, Literal::Int(1)));
    let result = p.call(at, op::EQUALS, vec![accumulator, one]);
    fold(p, at, Loop { range, variable: v, variable2: v2 }, init, condition, step, result)
}

fn guarded(p: &mut Parser<'_>, at: Position, test: Option<&Expr>, step: Expr) -> Expr {
    match test {
        None => step,
        Some(test) => {
            let unchanged = p.ident(at, RESULT);
            p.call(at, op::CONDITIONAL, vec![test.clone(), step, unchanged])
        }
    }
}

fn collect(
    p: &mut Parser<'_>,
    at: Position,
    range: Expr,
    v: Arc<str>,
    v2: Option<Arc<str>>,
    test: Option<&Expr>,
    value: &Expr,
) -> Expr {
    let init = p.make(at, ExprKind::List { elements: Vec::new(), optional: Vec::new() });
    let condition = p.literal(at, Literal::Bool(true));
    let accumulator = p.ident(at, RESULT);
    let one = p.make(at, ExprKind::List { elements: vec![value.clone()], optional: Vec::new() });
    let step = p.call(at, op::ADD, vec![accumulator, one]);
    let step = guarded(p, at, test, step);
    let result = p.ident(at, RESULT);
    fold(p, at, Loop { range, variable: v, variable2: v2 }, init, condition, step, result)
}

fn transform_map(
    p: &mut Parser<'_>,
    at: Position,
    range: Expr,
    v: Arc<str>,
    v2: Arc<str>,
    test: Option<&Expr>,
    value: &Expr,
    whole_entry: bool,
) -> Expr {
    let init = p.make(at, ExprKind::Map { entries: Vec::<Entry<Expr>>::new() });
    let condition = p.literal(at, Literal::Bool(true));
    let accumulator = p.ident(at, RESULT);
    let args = if whole_entry {
        vec![accumulator, value.clone()]
    } else {
        let key = p.ident(at, &v);
        vec![accumulator, key, value.clone()]
    };
    let step = p.call(at, op::MAP_INSERT, args);
    let step = guarded(p, at, test, step);
    let result = p.ident(at, RESULT);
    fold(p, at, Loop { range, variable: v, variable2: Some(v2) }, init, condition, step, result)
}

/// `result` with `v` being `value`: a loop over nothing that begins with its accumulator being `value`.
fn bind(p: &mut Parser<'_>, at: Position, v: Arc<str>, value: Expr, result: Expr) -> Expr {
    let range = p.make(at, ExprKind::List { elements: Vec::new(), optional: Vec::new() });
    let (condition, step) = (p.literal(at, Literal::Bool(false)), p.ident(at, &v));
    let comprehension = Comprehension {
        range,
        variable: "#unused".into(),
        variable2: None,
        accumulator: v,
        init: value,
        condition,
        step,
        result,
    };
    p.make(at, ExprKind::Comprehension(Box::new(comprehension)))
}

/// `target.sortBy(v, key)`: the elements in the order of what `key` comes to for each.
fn sort_by(p: &mut Parser<'_>, at: Position, target: &Expr, v: Arc<str>, key: &Expr) -> Expr {
    const INPUT: &str = "@__sortBy_input__";
    let input = p.ident(at, INPUT);
    let keys = collect(p, at, input, v, None, None, key);
    let input = Some(Box::new(p.ident(at, INPUT)));
    let call = ExprKind::Call { target: input, function: "@sortByAssociatedKeys".into(), args: vec![keys] };
    let sorted = p.make(at, call);
    bind(p, at, INPUT.into(), target.clone(), sorted)
}

/// `target.optMap(v, value)`: `value` with `v` being what `target` holds, none when it holds nothing.
fn optional(
    p: &mut Parser<'_>,
    at: Position,
    target: &Expr,
    v: &Expr,
    value: &Expr,
    wrap: bool,
) -> Result<Expr, SyntaxError> {
    let function = if wrap { "optMap" } else { "optFlatMap" };
    let v = named(p, v, &format!("{function}() variable name must be a simple identifier"))?;
    let member = |p: &mut Parser<'_>, target: &Expr, name: &str| {
        let target = Some(Box::new(target.clone()));
        p.make(at, ExprKind::Call { target, function: name.into(), args: Vec::new() })
    };
    let test = member(p, target, "hasValue");
    let held = member(p, target, "value");
    let bound = bind(p, at, v, held, value.clone());
    let some = if wrap { p.call(at, "optional.of", vec![bound]) } else { bound };
    let none = p.call(at, "optional.none", Vec::new());
    Ok(p.call(at, op::CONDITIONAL, vec![test, some, none]))
}
