//! The expressions of patches: JavaScript over JSON values, without the world.
//!
//! Deterministic and bounded: no clock, no randomness, no I/O; evaluation ends after a fixed number of steps, nesting is
//! limited, strings and lists have a largest size, and what is put into a variable costs steps by its size.
//!
//! Built: literals, template strings, member and index access, optional chaining, calls of the methods listed in
//! `methods`, arrow functions, objects and lists, spread, arithmetic, comparison, logic, `??`, `?:`, `typeof`; assignments
//! (`=`, `+=`, `-=`, `??=`, `||=`, `&&=`), `delete`, and in functions `const`, `let`, `if`, `for (const x of list)`, `return`.
//!
//! Objects and lists are values here. A name given to a part of a variable (`const m = value.metadata`), a parameter and
//! the variable of a loop stand for that part, so that changing them changes the whole, as in JavaScript.
//!
//! Follows: the examples vCluster publishes for `sync.*.patches`.

mod lexer;
mod methods;
mod parser;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use apimachinery::{Map, Value};

use parser::{Assign, Expr, Op, Statement, Unary};

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

/// Where a variable's value is: a cell, or a part of what is in one.
#[derive(Clone, Debug)]
struct Place {
    cell: usize,
    path: Vec<String>,
}

type Scope = BTreeMap<String, Place>;

/// What a statement leads to.
enum Flow {
    Next(Js),
    Return(Js),
}

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
        let mut machine = Machine { steps: 0, depth: 0, cells: Vec::new(), dns };
        let mut scope = Scope::new();
        for (name, value) in variables {
            let place = machine.cell(value.map_or(Js::Undefined, Js::Json));
            scope.insert(name.to_owned(), place);
        }
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
    /// What variables hold.
    cells: Vec<Js>,
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
                Some(place) => self.read(place),
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
                let out = Value::Array(out);
                self.charge(&out)?;
                Js::Json(out)
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
                let out = Value::from(out);
                self.charge(&out)?;
                Js::Json(out)
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
            Expr::Block(statements) => match self.statements(statements, &mut scope.clone())? {
                Flow::Return(value) => value,
                Flow::Next(_) => Js::Undefined,
            },
            Expr::Program(statements) => match self.statements(statements, &mut scope.clone())? {
                Flow::Return(value) | Flow::Next(value) => value,
            },
            Expr::Assign { target, how, value } => return self.assign(target, *how, value, scope),
            Expr::Delete(target) => {
                let Some(place) = self.place(target, scope)? else {
                    return Err(ScriptError::Type("nothing to delete from".into()));
                };
                self.write(&place, Js::Undefined)?;
                Js::Json(true.into())
            }
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
            Op::Add => self.add(&left, &right)?,
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
            if let Some(result) = self.each_in_place(object, key, arguments, scope)? {
                return Ok(result);
            }
            let this = self.eval(object, scope)?;
            if *optional && matches!(this, Js::Undefined | Js::Json(Value::Null)) {
                return Ok(Js::Undefined);
            }
            let name = to_text(&self.eval(key, scope)?);
            let arguments = self.arguments(arguments, scope)?;
            return methods::call(self, &this, &name, &arguments);
        }
        let function = self.eval(callee, scope)?;
        if let Js::Function(function) = &function {
            // Objects are passed as what they are, not as copies.
            let mut places = Vec::new();
            for argument in arguments {
                places.push(self.binding(argument, scope)?);
            }
            return self.enter(function, places);
        }
        let arguments = self.arguments(arguments, scope)?;
        self.call(&function, &arguments)
    }

    /// `list.forEach(x => ...)` and `list.map(x => ...)`, where `x` stands for the items themselves.
    fn each_in_place(
        &mut self,
        object: &Expr,
        key: &Expr,
        arguments: &[Expr],
        scope: &Scope,
    ) -> Result<Option<Js>, ScriptError> {
        let Expr::Literal(Value::String(method)) = key else { return Ok(None) };
        if !matches!(method.as_str(), "forEach" | "map") || arguments.len() != 1 {
            return Ok(None);
        }
        let Some(place) = self.place(object, scope)? else { return Ok(None) };
        let Some(Value::Array(list)) = self.look(&place) else { return Ok(None) };
        let count = list.len();
        let Js::Function(function) = self.eval(&arguments[0], scope)? else { return Ok(None) };
        let mut results = Vec::new();
        for n in 0..count {
            let mut item = place.clone();
            item.path.push(n.to_string());
            let index = self.cell(Js::Json(n.into()));
            let result = self.enter(&function, vec![item, index])?;
            results.push(if let Js::Json(value) = result { value } else { Value::Null });
        }
        if method.as_str() == "forEach" {
            return Ok(Some(Js::Undefined));
        }
        let results = Value::Array(results);
        self.charge(&results)?;
        Ok(Some(Js::Json(results)))
    }

    /// A new variable.
    fn cell(&mut self, value: Js) -> Place {
        self.cells.push(value);
        Place { cell: self.cells.len() - 1, path: Vec::new() }
    }

    /// What a parameter or a `const` becomes: the object itself where the expression names one, else a value of its own.
    fn binding(&mut self, expr: &Expr, scope: &Scope) -> Result<Place, ScriptError> {
        if let Expr::Name(_) | Expr::Member { optional: false, .. } = expr
            && let Some(place) = self.place(expr, scope)?
            && let Some(Value::Object(_) | Value::Array(_)) = self.look(&place)
        {
            return Ok(place);
        }
        let value = self.eval(expr, scope)?;
        if let Js::Json(value) = &value {
            self.charge(value)?;
        }
        Ok(self.cell(value))
    }

    /// Where a variable or a member of one is; nothing for values that are in no variable.
    fn place(&mut self, expr: &Expr, scope: &Scope) -> Result<Option<Place>, ScriptError> {
        self.step()?;
        match expr {
            Expr::Name(name) => Ok(scope.get(name).cloned()),
            Expr::Member { object, key, optional: false } => {
                let Some(mut place) = self.place(object, scope)? else { return Ok(None) };
                let key = self.eval(key, scope)?;
                place.path.push(to_text(&key));
                Ok(Some(place))
            }
            _ => Ok(None),
        }
    }

    /// The JSON value at a place.
    fn look(&self, place: &Place) -> Option<&Value> {
        let Js::Json(root) = &self.cells[place.cell] else { return None };
        place.path.iter().try_fold(root, |value, key| match value {
            Value::Object(map) => map.get(key),
            Value::Array(list) => list.get(key.parse::<usize>().ok()?),
            _ => None,
        })
    }

    fn read(&self, place: &Place) -> Js {
        match place.path.is_empty() {
            true => self.cells[place.cell].clone(),
            false => self.look(place).map_or(Js::Undefined, |value| Js::Json(value.clone())),
        }
    }

    /// Puts a value there; `undefined` takes a member away.
    fn write(&mut self, place: &Place, value: Js) -> Result<(), ScriptError> {
        let Some((last, parents)) = place.path.split_last() else {
            self.cells[place.cell] = value;
            return Ok(());
        };
        let missing = || ScriptError::Type(format!("cannot set {last:?} of undefined"));
        let Js::Json(root) = &mut self.cells[place.cell] else { return Err(missing()) };
        let parent = parents.iter().try_fold(root, |value, key| match value {
            Value::Object(map) => map.get_mut(key),
            Value::Array(list) => list.get_mut(key.parse::<usize>().ok()?),
            _ => None,
        });
        match (parent, value) {
            (Some(Value::Object(map)), Js::Json(value)) => drop(map.insert(last.as_str(), value)),
            (Some(Value::Object(map)), Js::Undefined) => drop(map.remove(last)),
            (Some(Value::Array(list)), Js::Json(value)) => {
                let at = last.parse::<usize>().ok().filter(|at| *at <= list.len());
                match at.ok_or_else(|| ScriptError::Type(format!("{last:?} is no place in the list")))? {
                    at if at == list.len() => list.push(value),
                    at => list[at] = value,
                }
            }
            (Some(_), Js::Function(_) | Js::Builtin(_)) => {
                return Err(ScriptError::Type("a function cannot be a member".into()));
            }
            (Some(Value::Null) | None, _) => return Err(missing()),
            (Some(_), _) => return Err(ScriptError::Type(format!("cannot set {last:?} of a plain value"))),
        }
        Ok(())
    }

    fn assign(&mut self, target: &Expr, how: Assign, value: &Expr, scope: &Scope) -> Result<Js, ScriptError> {
        let place = self.place(target, scope)?;
        let Some(place) = place else {
            let name = if let Expr::Name(name) = target { name.as_str() } else { "the target" };
            return Err(ScriptError::Undefined(name.to_owned()));
        };
        let old = self.read(&place);
        let is_nothing = matches!(old, Js::Undefined | Js::Json(Value::Null));
        match how {
            Assign::Nullish if !is_nothing => return Ok(old),
            Assign::Or if truthy(&old) => return Ok(old),
            Assign::And if !truthy(&old) => return Ok(old),
            _ => {}
        }
        let new = self.eval(value, scope)?;
        let new = match how {
            Assign::Add => self.add(&old, &new)?,
            Assign::Subtract => number(to_number(&old) - to_number(&new)),
            _ => new,
        };
        if let Js::Json(value) = &new {
            self.charge(value)?;
        }
        self.write(&place, new.clone())?;
        Ok(new)
    }

    /// What is kept costs steps by its size, so that values cannot grow beyond what the steps allow.
    fn charge(&mut self, value: &Value) -> Result<(), ScriptError> {
        fn size(value: &Value, most: u32) -> u32 {
            let mut total: u32 = 1;
            let mut add = |value: &Value| {
                if total < most {
                    total = total.saturating_add(size(value, most - total));
                }
            };
            match value {
                Value::Array(list) => list.iter().for_each(&mut add),
                Value::Object(map) => map.values().for_each(&mut add),
                Value::String(text) => total = total.saturating_add((text.len() / 64) as u32),
                _ => {}
            }
            total
        }
        self.steps = self.steps.saturating_add(size(value, STEPS_MAX));
        if self.steps > STEPS_MAX { Err(ScriptError::Steps) } else { Ok(()) }
    }

    fn statements(&mut self, list: &[Statement], scope: &mut Scope) -> Result<Flow, ScriptError> {
        let mut last = Js::Undefined;
        for statement in list {
            match self.statement(statement, scope)? {
                Flow::Next(value) => last = value,
                done => return Ok(done),
            }
        }
        Ok(Flow::Next(last))
    }

    fn statement(&mut self, statement: &Statement, scope: &mut Scope) -> Result<Flow, ScriptError> {
        self.step()?;
        Ok(match statement {
            Statement::Expr(expr) => Flow::Next(self.eval(expr, scope)?),
            Statement::Let(name, value) => {
                let place = match value {
                    Some(value) => self.binding(value, scope)?,
                    None => self.cell(Js::Undefined),
                };
                scope.insert(name.clone(), place);
                Flow::Next(Js::Undefined)
            }
            Statement::Return(value) => Flow::Return(match value {
                Some(value) => self.eval(value, scope)?,
                None => Js::Undefined,
            }),
            Statement::If(condition, yes, no) => {
                let condition = self.eval(condition, scope)?;
                let branch = if truthy(&condition) { yes } else { no };
                self.statements(branch, &mut scope.clone())?
            }
            Statement::ForOf(name, list, body) => {
                let list = self.binding(list, scope)?;
                let Some(Value::Array(items)) = self.look(&list) else {
                    return Err(ScriptError::Type("only a list can be gone through".into()));
                };
                for n in 0..items.len() {
                    let mut item = list.clone();
                    item.path.push(n.to_string());
                    let mut inner = scope.clone();
                    inner.insert(name.clone(), item);
                    if let Flow::Return(value) = self.statements(body, &mut inner)? {
                        return Ok(Flow::Return(value));
                    }
                }
                Flow::Next(Js::Undefined)
            }
        })
    }

    fn add(&self, left: &Js, right: &Js) -> Result<Js, ScriptError> {
        let is_text = |v: &Js| matches!(v, Js::Json(Value::String(_) | Value::Array(_) | Value::Object(_)));
        if is_text(left) || is_text(right) {
            return text(to_text(left) + &to_text(right));
        }
        Ok(number(to_number(left) + to_number(right)))
    }

    /// Runs a function with its parameters at these places.
    fn enter(&mut self, function: &Function, arguments: Vec<Place>) -> Result<Js, ScriptError> {
        let mut scope = function.scope.clone();
        let mut arguments = arguments.into_iter();
        for parameter in &function.parameters {
            let argument = match arguments.next() {
                Some(place) => place,
                None => self.cell(Js::Undefined),
            };
            match parameter.strip_prefix('[') {
                // A pair taken apart.
                Some(names) => {
                    for (i, name) in names.split(',').enumerate() {
                        let mut part = argument.clone();
                        part.path.push(i.to_string());
                        scope.insert(name.to_owned(), part);
                    }
                }
                None => drop(scope.insert(parameter.clone(), argument)),
            }
        }
        self.eval(&function.body, &scope)
    }

    fn arguments(&mut self, list: &[Expr], scope: &Scope) -> Result<Vec<Js>, ScriptError> {
        list.iter().map(|a| self.eval(a, scope)).collect()
    }

    pub(crate) fn call(&mut self, function: &Js, arguments: &[Js]) -> Result<Js, ScriptError> {
        match function {
            Js::Function(function) => {
                let places = arguments.iter().map(|argument| self.cell(argument.clone())).collect();
                self.enter(function, places)
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
            (
                "value[\"demos.loft.sh/project\"]=\"p\";value",
                json!({"a": "b"}),
                json!({"a": "b", "demos.loft.sh/project": "p"}),
            ),
            ("value.a.b = 1; value.a.c += 'x'\nvalue", json!({"a": {"c": "c"}}), json!({"a": {"b": 1, "c": "cx"}})),
            (
                "(v => { const m = v.m; m.x = 1; let n = 2; n -= 1; m.y ??= n; return v })(value)",
                json!({"m": {}}),
                json!({"m": {"x": 1, "y": 1}}),
            ),
            (
                "(v => { for (const c of v) { c.n = c.n * 2; if (c.n > 2) { delete c.k } else c.small = true } return v; })(value)",
                json!([{"n": 1, "k": 1}, {"n": 2, "k": 1}]),
                json!([{"n": 2, "k": 1, "small": true}, {"n": 4}]),
            ),
            ("value.forEach((c, i) => { c.i = i }); value", json!([{}, {}]), json!([{"i": 0}, {"i": 1}])),
            ("/* all */ value.map(c => ({...c, a: 1})) // new ones", json!([{}]), json!([{"a": 1}])),
            ("(v => { if (v) return 'yes'; return 'no' })(value)", json!(0), json!("no")),
            ("[]", json!([{"type": "InternalIP"}]), json!([])),
            ("value = value || 'x'; value", json!(""), json!("x")),
            (
                "(value => {\n  value.metadata ??= {};\n  value.metadata.annotations ??= {};\n  value.metadata.annotations[\"patched-by\"] = \"vcluster\";\n  return value;\n})(value)\n",
                json!({"spec": {"replicas": 3}}),
                json!({"spec": {"replicas": 3}, "metadata": {"annotations": {"patched-by": "vcluster"}}}),
            ),
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
            "missing = 1",
            "1 = 1",
            "value.a.b = 1",
            "value 1",
            "for (const x of value) {}",
            "let x = () => 1; value.f = x",
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
        // What grows by itself ends.
        let grows = "value.l = [1]; const f = v => { v.l = [v.l, v.l, v.l, v.l]; return f(v) }; f(value)";
        assert!(run(grows, json!({})).is_err());
        let doubled = format!("(v => {{ {} return v }})([1])", "v = [v, v]; ".repeat(60));
        assert_eq!(run(&doubled, json!(1)), Err(ScriptError::Steps));
    }
}
