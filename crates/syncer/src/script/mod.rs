//! The expressions of patches: one JavaScript expression over JSON values, without statements, loops or the world.
//!
//! Deterministic and bounded: no clock, no randomness, no I/O; evaluation ends after a fixed number of steps, nesting is
//! limited, strings and lists have a largest size.
//!
//! Built: literals, template strings, member and index access, optional chaining, calls of the methods listed in
//! `methods`, arrow functions, objects and lists, spread, arithmetic, comparison, logic, `??`, `?:`, `typeof`.
//!
//! Follows: the examples vCluster publishes for `sync.*.patches`.

mod lexer;
mod methods;
mod parser;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use apimachinery::{Map, Value};

use parser::{Expr, Op, Unary};

const STEPS_MAX: u32 = 100_000;
const DEPTH_MAX: u32 = 64;
/// Bytes of a string, elements of a list.
pub(crate) const SIZE_MAX: usize = 1 << 20;

/// Why an expression gave no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    #[error("expression, character {at}: {message}")]
    Syntax { at: usize, message: String },
    #[error("{0} is not defined")]
    Undefined(String),
    #[error("{0}")]
    Type(String),
    #[error("the expression takes too many steps")]
    Steps,
    #[error("the expression nests too deeply")]
    Depth,
    #[error("a value became too large")]
    Size,
}

/// A value while an expression is evaluated.
#[derive(Clone, Debug)]
pub(crate) enum Js {
    Undefined,
    Json(Value),
    /// An arrow function with the variables it sees.
    Function(Rc<Function>),
    /// `JSON`, `Object`, `Math`, `Array`, and functions such as `atob`.
    Builtin(&'static str),
}

#[derive(Debug)]
pub(crate) struct Function {
    parameters: Vec<String>,
    body: Expr,
    scope: Scope,
}

type Scope = BTreeMap<String, Js>;

/// A parsed expression. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Script {
    text: String,
    expr: Arc<Expr>,
}

impl PartialEq for Script {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Script {
    pub fn parse(text: &str) -> Result<Script, ScriptError> {
        Ok(Script { text: text.to_owned(), expr: Arc::new(parser::parse(text)?) })
    }

    /// The value, `None` for `undefined`. `dns` is the helper `virtualToHostDNS`.
    pub fn eval(
        &self,
        variables: impl IntoIterator<Item = (&'static str, Option<Value>)>,
        dns: &dyn Fn(&str) -> String,
    ) -> Result<Option<Value>, ScriptError> {
        let scope = variables.into_iter().map(|(k, v)| (k.to_owned(), v.map_or(Js::Undefined, Js::Json))).collect();
        let mut machine = Machine { steps: 0, depth: 0, dns };
        match machine.eval(&self.expr, &scope)? {
            Js::Undefined => Ok(None),
            Js::Json(value) => Ok(Some(value)),
            Js::Function(_) | Js::Builtin(_) => Err(ScriptError::Type("the expression gives a function".into())),
        }
    }
}

pub(crate) struct Machine<'a> {
    steps: u32,
    depth: u32,
    pub dns: &'a dyn Fn(&str) -> String,
}

pub(crate) fn truthy(value: &Js) -> bool {
    match value {
        Js::Undefined => false,
        Js::Function(_) | Js::Builtin(_) => true,
        Js::Json(v) => match v {
            Value::Null => false,
            Value::Bool(b) => *b,
            Value::String(s) => !s.is_empty(),
            Value::Number(_) => v.as_f64().is_some_and(|f| f != 0.0 && !f.is_nan()),
            Value::Array(_) | Value::Object(_) => true,
        },
    }
}

pub(crate) fn to_text(value: &Js) -> String {
    match value {
        Js::Undefined => "undefined".into(),
        Js::Function(_) | Js::Builtin(_) => "function".into(),
        Js::Json(Value::String(s)) => s.to_string(),
        Js::Json(Value::Array(a)) => {
            let parts: Vec<String> =
                a.iter().map(|v| if v.is_null() { String::new() } else { to_text(&Js::Json(v.clone())) }).collect();
            parts.join(",")
        }
        Js::Json(Value::Object(_)) => "[object Object]".into(),
        Js::Json(v) => v.to_string(),
    }
}

pub(crate) fn to_number(value: &Js) -> f64 {
    match value {
        Js::Json(Value::Bool(b)) => f64::from(u8::from(*b)),
        Js::Json(Value::Null) => 0.0,
        Js::Json(Value::String(s)) if s.trim().is_empty() => 0.0,
        Js::Json(Value::String(s)) => s.trim().parse().unwrap_or(f64::NAN),
        Js::Json(v @ Value::Number(_)) => v.as_f64().unwrap_or(f64::NAN),
        _ => f64::NAN,
    }
}

pub(crate) fn number(f: f64) -> Js {
    if !f.is_finite() {
        // JSON has no such numbers.
        return Js::Json(Value::Null);
    }
    Js::Json(if f.fract() == 0.0 && f.abs() < 9e15 { Value::from(f as i64) } else { Value::from(f) })
}

pub(crate) fn text(s: impl Into<String>) -> Result<Js, ScriptError> {
    let s: String = s.into();
    if s.len() > SIZE_MAX { Err(ScriptError::Size) } else { Ok(Js::Json(s.into())) }
}

pub(crate) fn strict_equal(a: &Js, b: &Js) -> bool {
    match (a, b) {
        (Js::Undefined, Js::Undefined) => true,
        (Js::Json(a @ Value::Number(_)), Js::Json(b @ Value::Number(_))) => a.as_f64() == b.as_f64(),
        (Js::Json(a), Js::Json(b)) => a == b,
        _ => false,
    }
}

fn loose_equal(a: &Js, b: &Js) -> bool {
    let nothing = |v: &Js| matches!(v, Js::Undefined | Js::Json(Value::Null));
    if nothing(a) || nothing(b) {
        return nothing(a) && nothing(b);
    }
    strict_equal(a, b) || {
        let (x, y) = (to_number(a), to_number(b));
        !matches!((a, b), (Js::Json(Value::String(_)), Js::Json(Value::String(_)))) && x == y
    }
}

impl Machine<'_> {
    fn step(&mut self) -> Result<(), ScriptError> {
        self.steps += 1;
        if self.steps > STEPS_MAX { Err(ScriptError::Steps) } else { Ok(()) }
    }

    fn eval(&mut self, expr: &Expr, scope: &Scope) -> Result<Js, ScriptError> {
        self.step()?;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(ScriptError::Depth);
        }
        let result = self.eval_inner(expr, scope);
        self.depth -= 1;
        result
    }

    fn eval_inner(&mut self, expr: &Expr, scope: &Scope) -> Result<Js, ScriptError> {
        Ok(match expr {
            Expr::Literal(value) => Js::Json(value.clone()),
            Expr::Undefined => Js::Undefined,
            Expr::Name(name) => match scope.get(name) {
                Some(value) => value.clone(),
                None => methods::global(name).ok_or_else(|| ScriptError::Undefined(name.clone()))?,
            },
            Expr::Template(parts) => {
                let mut out = String::new();
                for part in parts {
                    let value = self.eval(part, scope)?;
                    out.push_str(&to_text(&value));
                    if out.len() > SIZE_MAX {
                        return Err(ScriptError::Size);
                    }
                }
                text(out)?
            }
            Expr::List(items) => {
                let mut out = Vec::new();
                for (spread, item) in items {
                    match (spread, self.eval(item, scope)?) {
                        (true, Js::Json(Value::Array(more))) => out.extend(more),
                        (true, _) => return Err(ScriptError::Type("only a list can be spread in a list".into())),
                        (false, Js::Json(value)) => out.push(value),
                        (false, _) => out.push(Value::Null),
                    }
                    if out.len() > SIZE_MAX {
                        return Err(ScriptError::Size);
                    }
                }
                Js::Json(Value::Array(out))
            }
            Expr::Object(members) => {
                let mut out = Map::new();
                for (key, value) in members {
                    let value = self.eval(value, scope)?;
                    match key {
                        Some(key) => {
                            let key = to_text(&self.eval(key, scope)?);
                            if let Js::Json(value) = value {
                                out.insert(key, value);
                            }
                        }
                        None => {
                            if let Js::Json(Value::Object(more)) = value {
                                out.extend(more);
                            }
                        }
                    }
                }
                Js::Json(out.into())
            }
            Expr::Member { object, key, optional } => {
                let object = self.eval(object, scope)?;
                if matches!(object, Js::Undefined | Js::Json(Value::Null)) {
                    if *optional {
                        return Ok(Js::Undefined);
                    }
                    let key = to_text(&self.eval(key, scope)?);
                    return Err(ScriptError::Type(format!("cannot read {key:?} of {}", to_text(&object))));
                }
                let key = self.eval(key, scope)?;
                methods::member(&object, &key)
            }
            Expr::Call { callee, arguments } => return self.call_expr(callee, arguments, scope),
            Expr::Arrow { parameters, body } => Js::Function(Rc::new(Function {
                parameters: parameters.clone(),
                body: (**body).clone(),
                scope: scope.clone(),
            })),
            Expr::Unary(op, inner) => {
                // `typeof missing` is no error.
                if let (Unary::Typeof, Expr::Name(name)) = (op, inner.as_ref())
                    && !scope.contains_key(name)
                    && methods::global(name).is_none()
                {
                    return text("undefined");
                }
                let value = self.eval(inner, scope)?;
                match op {
                    Unary::Not => Js::Json((!truthy(&value)).into()),
                    Unary::Minus => number(-to_number(&value)),
                    Unary::Plus => number(to_number(&value)),
                    Unary::Typeof => text(match value {
                        Js::Undefined => "undefined",
                        Js::Function(_) | Js::Builtin(_) => "function",
                        Js::Json(Value::String(_)) => "string",
                        Js::Json(Value::Number(_)) => "number",
                        Js::Json(Value::Bool(_)) => "boolean",
                        Js::Json(_) => "object",
                    })?,
                }
            }
            Expr::Binary(op, a, b) => return self.binary(*op, a, b, scope),
            Expr::If(condition, yes, no) => {
                let condition = self.eval(condition, scope)?;
                return self.eval(if truthy(&condition) { yes } else { no }, scope);
            }
        })
    }

    fn binary(&mut self, op: Op, a: &Expr, b: &Expr, scope: &Scope) -> Result<Js, ScriptError> {
        let left = self.eval(a, scope)?;
        match op {
            Op::And if !truthy(&left) => return Ok(left),
            Op::Or if truthy(&left) => return Ok(left),
            Op::Nullish if !matches!(left, Js::Undefined | Js::Json(Value::Null)) => return Ok(left),
            _ => {}
        }
        let right = self.eval(b, scope)?;
        let boolean = |b: bool| Js::Json(b.into());
        Ok(match op {
            Op::And | Op::Or | Op::Nullish => right,
            Op::Equal => boolean(strict_equal(&left, &right)),
            Op::NotEqual => boolean(!strict_equal(&left, &right)),
            Op::LooseEqual => boolean(loose_equal(&left, &right)),
            Op::LooseNotEqual => boolean(!loose_equal(&left, &right)),
            Op::Add => {
                let is_text = |v: &Js| matches!(v, Js::Json(Value::String(_) | Value::Array(_) | Value::Object(_)));
                if is_text(&left) || is_text(&right) {
                    text(to_text(&left) + &to_text(&right))?
                } else {
                    number(to_number(&left) + to_number(&right))
                }
            }
            Op::Subtract => number(to_number(&left) - to_number(&right)),
            Op::Multiply => number(to_number(&left) * to_number(&right)),
            Op::Divide => number(to_number(&left) / to_number(&right)),
            Op::Remainder => number(to_number(&left) % to_number(&right)),
            Op::Less | Op::LessEqual | Op::Greater | Op::GreaterEqual => {
                let order = match (&left, &right) {
                    (Js::Json(Value::String(x)), Js::Json(Value::String(y))) => Some(x.as_str().cmp(y.as_str())),
                    _ => to_number(&left).partial_cmp(&to_number(&right)),
                };
                boolean(order.is_some_and(|o| match op {
                    Op::Less => o.is_lt(),
                    Op::LessEqual => o.is_le(),
                    Op::Greater => o.is_gt(),
                    _ => o.is_ge(),
                }))
            }
            Op::In => match &right {
                Js::Json(Value::Object(map)) => boolean(map.contains_key(&to_text(&left))),
                _ => return Err(ScriptError::Type("the right side of `in` must be an object".into())),
            },
        })
    }

    fn call_expr(&mut self, callee: &Expr, arguments: &[Expr], scope: &Scope) -> Result<Js, ScriptError> {
        if let Expr::Member { object, key, optional } = callee {
            let this = self.eval(object, scope)?;
            if *optional && matches!(this, Js::Undefined | Js::Json(Value::Null)) {
                return Ok(Js::Undefined);
            }
            let name = to_text(&self.eval(key, scope)?);
            let arguments = self.arguments(arguments, scope)?;
            return methods::call(self, &this, &name, &arguments);
        }
        let function = self.eval(callee, scope)?;
        let arguments = self.arguments(arguments, scope)?;
        self.call(&function, &arguments)
    }

    fn arguments(&mut self, list: &[Expr], scope: &Scope) -> Result<Vec<Js>, ScriptError> {
        list.iter().map(|a| self.eval(a, scope)).collect()
    }

    pub(crate) fn call(&mut self, function: &Js, arguments: &[Js]) -> Result<Js, ScriptError> {
        match function {
            Js::Function(function) => {
                let mut scope = function.scope.clone();
                for (n, parameter) in function.parameters.iter().enumerate() {
                    let argument = arguments.get(n).cloned().unwrap_or(Js::Undefined);
                    match parameter.strip_prefix('[') {
                        // A pair taken apart.
                        Some(names) => {
                            for (i, name) in names.split(',').enumerate() {
                                scope.insert(name.to_owned(), methods::member(&argument, &number(i as f64)));
                            }
                        }
                        None => drop(scope.insert(parameter.clone(), argument)),
                    }
                }
                self.eval(&function.body, &scope)
            }
            Js::Builtin(name) => methods::call_builtin(self, name, arguments),
            other => Err(ScriptError::Type(format!("{} is not a function", to_text(other)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    fn run(text: &str, value: Value) -> Result<Option<Value>, ScriptError> {
        let context =
            json!({"vcluster": {"name": "vc", "namespace": "host"}, "virtualObject": {"metadata": {"name": "web"}}});
        Script::parse(text)?
            .eval([("value", Some(value)), ("valueExists", Some(true.into())), ("context", Some(context))], &|name| {
                format!("{name}.host")
            })
    }

    #[test]
    fn expressions() {
        for (expression, value, want) in [
            ("'my-prefix-' + value", json!("a"), json!("my-prefix-a")),
            ("\"my-prefix-\"+value", json!("a"), json!("my-prefix-a")),
            ("value.slice(\"my-prefix-\".length)", json!("my-prefix-a"), json!("a")),
            ("value.startsWith('www.') ? value.slice(4) : `www.${value}`", json!("x.org"), json!("www.x.org")),
            ("value.replace('a', 'b').toUpperCase()", json!("aa"), json!("BA")),
            ("value.replace(/a+/g, 'b')", json!("aaxa"), json!("bxb")),
            ("value.replaceAll('a', 'b')", json!("aa"), json!("bb")),
            ("value.map(v => v + '-' + context.vcluster.name)", json!(["a", "b"]), json!(["a-vc", "b-vc"])),
            ("value.filter((v, i) => i > 0 && v !== 'c').join('/')", json!(["a", "b", "c", "d"]), json!("b/d")),
            ("value.split(',').length", json!("a,b,c"), json!(3)),
            ("context.virtualObject.metadata.name", json!(null), json!("web")),
            ("context.virtualObject.metadata?.annotations?.x ?? 'none'", json!(null), json!("none")),
            ("valueExists && value > 3 ? value * 2 : 0", json!(4), json!(8)),
            ("({...value, b: [1, ...[2, 3]]})", json!({"a": 1}), json!({"a": 1, "b": [1, 2, 3]})),
            ("Object.keys(value).sort()", json!({"b": 1, "a": 2}), json!(["a", "b"])),
            ("Object.entries(value).map(([k, v]) => k + v)", json!({"a": 1}), json!(["a1"])),
            ("JSON.parse(value).a[1]", json!("{\"a\":[1,2]}"), json!(2)),
            ("JSON.stringify({a: value})", json!("x"), json!("{\"a\":\"x\"}")),
            ("btoa(value)", json!("hi"), json!("aGk=")),
            ("atob(value)", json!("aGk="), json!("hi")),
            ("virtualToHostDNS(value)", json!("svc"), json!("svc.host")),
            ("typeof value === 'string' && !value.includes('z')", json!("abc"), json!(true)),
            ("value == null ? 'x' : String(value)", json!(null), json!("x")),
            ("parseInt(value) % 2", json!("7"), json!(1)),
            ("Math.max(1, value)", json!(5), json!(5)),
            ("value.trim().padStart(4, '0')", json!(" 7 "), json!("0007")),
            ("value.some(v => v.name == 'a') || false", json!([{"name": "a"}]), json!(true)),
            ("value.find(v => v.n === 2).m", json!([{"n": 1}, {"n": 2, "m": "x"}]), json!("x")),
            ("value.reduce((sum, v) => sum + v, 0)", json!([1, 2, 3]), json!(6)),
            ("/^a\\d+$/.test(value)", json!("a12"), json!(true)),
        ] {
            assert_eq!(run(expression, value), Ok(Some(want)), "{expression}");
        }
        assert_eq!(run("value.missing", json!({})), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for expression in [
            "",
            "value +",
            "value)",
            "process.exit(1)",
            "require('fs')",
            "value.a.b.c",
            "while(true){}",
            "value = 1",
            "new Date()",
            "(() => value)",
            "value.constructor('x')()",
            "'unclosed",
            "`${value`",
            "1 ? 2",
        ] {
            assert!(run(expression, json!({})).is_err(), "{expression}");
        }
        let deep = format!("{}1{}", "(".repeat(500), ")".repeat(500));
        assert!(run(&deep, json!(1)).is_err());
        assert_eq!(run("(f => f(f))(f => f(f))", json!(1)), Err(ScriptError::Depth));
        assert!(run("'x'.repeat(1e9)", json!(1)).is_err());
    }
}
