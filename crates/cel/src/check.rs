//! The type checker: what type every part of an expression has, or why it cannot have one.
//!
//! Invariants: an expression whose type cannot be told is of type [`Type::Error`], which fits everywhere, so that one mistake
//! is told once; no type is larger than [`TYPE_PARTS_MAX`].
//!
//! Follows: cel-go's checker (substitution of type parameters, the more general of two types that fit), with its message
//! texts.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ast::{Comprehension, Entry, Expr, ExprKind, Literal, Position, op};
use crate::declarations::{Signature, signatures};
use crate::parser::qualified_name;
use crate::types::{ObjectType, Type};
use crate::{CompileIssue, Environment};

/// What the checker found out: the type of every expression and the meaning of every call, by id.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    pub types: BTreeMap<u32, Type>,
    pub calls: BTreeMap<u32, ResolvedCall>,
    /// Selections that are one name, such as a type's.
    pub names: BTreeMap<u32, Arc<str>>,
}

/// What a call calls.
#[derive(Clone, Debug)]
pub struct ResolvedCall {
    /// With its namespace, such as `ip.isCanonical`; then the target is part of the name and no argument.
    pub name: String,
    pub receiver: bool,
    /// The ways to call it that fit; several when arguments are `dyn`.
    pub signatures: Vec<&'static Signature>,
}

/// Checks `expr`; the errors are in the order in which they were found.
pub fn check(expr: &Expr, environment: &Environment) -> Result<Checked, Vec<CompileIssue>> {
    let mut checker = Checker {
        environment,
        scopes: Vec::new(),
        bindings: BTreeMap::new(),
        trail: Vec::new(),
        next: 0,
        types: BTreeMap::new(),
        calls: BTreeMap::new(),
        names: BTreeMap::new(),
        issues: Vec::new(),
    };
    checker.infer(expr);
    if checker.issues.is_empty() {
        let types = checker.types.iter().map(|(id, ty)| (*id, checker.substitute(ty, true))).collect();
        return Ok(Checked { types, calls: checker.calls, names: checker.names });
    }
    Err(checker.issues)
}

/// How many parts a type may have. Types of nested literals double with every level.
const TYPE_PARTS_MAX: usize = 10_000;

struct Checker<'a> {
    environment: &'a Environment,
    /// Variables of comprehensions, innermost last.
    scopes: Vec<(Arc<str>, Type)>,
    /// What type parameters stand for.
    bindings: BTreeMap<u32, Type>,
    /// What `bindings` held before, for taking back what did not fit.
    trail: Vec<(u32, Option<Type>)>,
    next: u32,
    types: BTreeMap<u32, Type>,
    calls: BTreeMap<u32, ResolvedCall>,
    names: BTreeMap<u32, Arc<str>>,
    issues: Vec<CompileIssue>,
}

impl Checker<'_> {
    fn issue(&mut self, position: Position, message: String) -> Type {
        self.issues.push(CompileIssue { position, message });
        Type::Error
    }

    fn fresh(&mut self) -> Type {
        self.next += 1;
        Type::Param(self.next - 1)
    }

    fn infer(&mut self, expr: &Expr) -> Type {
        let mut ty = self.infer_kind(expr);
        if parts(&ty, TYPE_PARTS_MAX).is_none() {
            ty = self.issue(expr.position, format!("the type has more than {TYPE_PARTS_MAX} parts"));
        }
        self.types.insert(expr.id, ty.clone());
        ty
    }

    fn infer_kind(&mut self, expr: &Expr) -> Type {
        match &expr.kind {
            ExprKind::Literal(literal) => match literal {
                Literal::Null => Type::Null,
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) => Type::Int,
                Literal::Uint(_) => Type::Uint,
                Literal::Double(_) => Type::Double,
                Literal::String(_) => Type::String,
                Literal::Bytes(_) => Type::Bytes,
            },
            ExprKind::Ident(name) => match self.lookup(name) {
                Some(ty) => ty,
                None => self.undeclared(expr.position, name),
            },
            ExprKind::Select { operand, field, test } => self.select(expr, operand, field, *test),
            ExprKind::Call { target, function, args } => self.call(expr, target.as_deref(), function, args),
            ExprKind::List { elements, optional } => {
                let mut joined = None;
                for (i, element) in elements.iter().enumerate() {
                    let ty = self.infer(element);
                    let ty = if optional.contains(&i) { self.held(element.position, ty) } else { ty };
                    joined = Some(self.join(joined, ty));
                }
                Type::list(joined.unwrap_or_else(|| self.fresh()))
            }
            ExprKind::Map { entries } => {
                let (mut keys, mut values) = (None, None);
                for entry in entries {
                    let key = self.infer(&entry.key);
                    keys = Some(self.join(keys, key));
                    let value = self.infer(&entry.value);
                    let value = if entry.optional { self.held(entry.value.position, value) } else { value };
                    values = Some(self.join(values, value));
                }
                match (keys, values) {
                    (Some(keys), Some(values)) => Type::map(keys, values),
                    _ => {
                        let keys = self.fresh();
                        Type::map(keys, self.fresh())
                    }
                }
            }
            ExprKind::Message { name, fields } => self.message(expr, name, fields),
            ExprKind::Comprehension(c) => self.comprehension(c),
        }
    }

    fn undeclared(&mut self, position: Position, name: &str) -> Type {
        self.issue(position, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn lookup(&self, name: &str) -> Option<Type> {
        let bare = name.trim_start_matches('.');
        if let Some((_, ty)) = self.scopes.iter().rev().find(|(n, _)| &**n == bare) {
            return Some(ty.clone());
        }
        if let Some(decl) = self.environment.variable(bare) {
            return Some(decl.ty.clone());
        }
        type_name(bare).map(|ty| Type::Type(Arc::new(ty)))
    }

    fn select(&mut self, expr: &Expr, operand: &Expr, field: &Arc<str>, test: bool) -> Type {
        // `a.b` may be one name, such as a type's.
        if !test
            && let Some(name) = qualified_name(expr)
            && let Some(ty) = self.lookup(&name)
        {
            self.names.insert(expr.id, name.into());
            return ty;
        }
        let of = self.infer(operand);
        let ty = self.field_type(expr.position, &of, field, false);
        if test { Type::Bool } else { self.substitute(&ty, false) }
    }

    fn field_type(&mut self, position: Position, of: &Type, field: &str, optional: bool) -> Type {
        let of = self.substitute(of, false);
        let (of, optional) = match of {
            Type::Optional(held) => (Type::clone(&held), true),
            other => (other, optional),
        };
        let ty = match &of {
            Type::Map(_, value) => Type::clone(value),
            Type::Object(object) => match object.fields.get(field) {
                Some(decl) => decl.ty.clone(),
                None if self.environment.is_dynamic_object(&object.name) => Type::Dyn,
                None => self.issue(position, format!("undefined field '{field}'")),
            },
            // Objects whose fields nobody knows; addresses are no objects.
            Type::Opaque(name) if !name.starts_with("net.") => {
                self.issue(position, format!("unexpected failed resolution of '{name}'"))
            }
            Type::Param(_) => {
                self.assign(&Type::Dyn, &of);
                Type::Dyn
            }
            Type::Dyn | Type::Any | Type::Error => Type::Dyn,
            other => {
                self.issue(position, format!("type '{}' does not support field selection", other.in_message()));
                Type::Dyn
            }
        };
        if optional { Type::optional(ty) } else { ty }
    }

    /// What an optional element or value holds.
    fn held(&mut self, position: Position, ty: Type) -> Type {
        match &ty {
            Type::Optional(held) => return Type::clone(held),
            Type::Dyn | Type::Any => {}
            other => {
                let (want, found) = (Type::optional(other.clone()).in_message(), other.in_message());
                self.issue(position, format!("expected type '{want}' but found '{found}'"));
            }
        }
        ty
    }

    /// The one type of several: the more general one, `dyn` when they differ.
    fn join(&mut self, before: Option<Type>, ty: Type) -> Type {
        match before {
            None => ty,
            Some(before) if self.assign(&before, &ty) => more_general(before, ty),
            Some(_) => Type::Dyn,
        }
    }

    fn message(&mut self, expr: &Expr, name: &str, fields: &[Entry<Arc<str>>]) -> Type {
        let bare = name.trim_start_matches('.');
        let object = self.environment.object(bare).cloned();
        let dynamic = self.environment.is_dynamic_object(bare);
        let ty = match &object {
            Some(object) => object.ty.clone(),
            None if dynamic => Type::Object(Arc::new(ObjectType { name: bare.to_owned(), fields: BTreeMap::new() })),
            None => match self.lookup(name) {
                None => return self.undeclared(expr.position, name),
                Some(Type::Type(of)) => {
                    self.issue(expr.position, format!("'{}' is not a message type", of.base_name()))
                }
                Some(other) => self.issue(expr.position, format!("'{}' is not a type", other.base_name())),
            },
        };
        for entry in fields {
            let value = self.infer(&entry.value);
            let value = if entry.optional { self.held(entry.value.position, value) } else { value };
            let Some(object) = &object else { continue };
            let Some(decl) = object.field(&entry.key) else {
                self.issue(entry.position, format!("undefined field '{}'", entry.key));
                continue;
            };
            if !self.assign(&decl.ty, &value) {
                let (want, found) = (decl.ty.in_message(), value.in_message());
                let message =
                    format!("expected type of field '{}' is '{want}' but provided type is '{found}'", entry.key);
                self.issue(entry.position, message);
            }
        }
        ty
    }

    fn comprehension(&mut self, c: &Comprehension) -> Type {
        let range = self.infer(&c.range);
        let accumulator = self.infer(&c.init);
        let range = self.substitute(&range, false);
        let two = c.variable2.is_some();
        let (first, second) = match &range {
            Type::List(element) if two => (Type::Int, Type::clone(element)),
            Type::List(element) => (Type::clone(element), Type::Dyn),
            Type::Map(key, value) => (Type::clone(key), Type::clone(value)),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.assign(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                    other.in_message()
                );
                (self.issue(c.range.position, message), Type::Error)
            }
        };
        let outer = self.scopes.len();
        self.scopes.push((c.accumulator.clone(), accumulator.clone()));
        self.scopes.push((c.variable.clone(), first));
        if let Some(variable2) = &c.variable2 {
            self.scopes.push((variable2.clone(), second));
        }
        let condition = self.infer(&c.condition);
        self.expect(c.condition.position, &Type::Bool, &condition);
        let step = self.infer(&c.step);
        self.expect(c.step.position, &accumulator, &step);
        self.scopes.truncate(outer + 1);
        let result = self.infer(&c.result);
        self.scopes.truncate(outer);
        self.substitute(&result, false)
    }

    fn expect(&mut self, position: Position, want: &Type, found: &Type) {
        if !self.assign(want, found) {
            let (want, found) = (want.in_message(), found.in_message());
            self.issue(position, format!("expected type '{want}' but found '{found}'"));
        }
    }

    fn call(&mut self, expr: &Expr, target: Option<&Expr>, function: &str, args: &[Expr]) -> Type {
        if function == op::OPT_SELECT {
            return self.optional_select(expr, args);
        }
        let mut types: Vec<Type> = args.iter().map(|arg| self.infer(arg)).collect();
        // `a.b.f(x)` may be a namespaced function instead of a method of `a.b`.
        let namespaced = namespaced(target, function).filter(|name| self.is_known(name));
        let (name, receiver) = match (&namespaced, target) {
            (Some(name), _) => (name.as_str(), false),
            (None, Some(target)) => {
                types.insert(0, self.infer(target));
                (function, true)
            }
            (None, None) => (function.trim_start_matches('.'), false),
        };
        let Some(candidates) = signatures().get(name).filter(|_| self.is_known(name)) else {
            return self.undeclared(expr.position, function);
        };
        if matches!(name, op::AND | op::OR) {
            let issues = self.issues.len();
            for (arg, ty) in args.iter().zip(&types) {
                if !self.assign(ty, &Type::Bool) {
                    let found = ty.in_message();
                    self.issue(arg.position, format!("expected type 'bool' but found '{found}'"));
                }
            }
            if self.issues.len() > issues {
                return Type::Error;
            }
            let signatures = candidates.iter().collect();
            self.calls.insert(expr.id, ResolvedCall { name: name.to_owned(), receiver, signatures });
            return Type::Bool;
        }
        let mut result: Option<Type> = None;
        let mut fitting = Vec::new();
        for signature in candidates.iter().filter(|s| s.receiver == receiver) {
            let mut own = BTreeMap::new();
            let returned = self.instantiate(&signature.result, &mut own);
            let params: Vec<Type> = signature.params.iter().map(|p| self.instantiate(p, &mut own)).collect();
            if params.len() != types.len() || !self.assign_all(types.iter().zip(&params)) {
                continue;
            }
            fitting.push(signature);
            let returned = self.substitute(&returned, false);
            result = match result {
                None => Some(returned),
                Some(unknown @ (Type::Dyn | Type::Any)) => Some(unknown),
                Some(before) if before == returned => Some(before),
                // Arguments of type `dyn` fit several ways to call it.
                Some(_) => Some(Type::Dyn),
            };
        }
        let Some(result) = result else {
            let shown: Vec<String> = types.iter().map(|t| self.substitute(t, true).in_message()).collect();
            let applied = match receiver {
                true => format!("{}.({})", shown[0], shown[1..].join(", ")),
                false => format!("({})", shown.join(", ")),
            };
            return self
                .issue(expr.position, format!("found no matching overload for '{name}' applied to '{applied}'"));
        };
        self.calls.insert(expr.id, ResolvedCall { name: name.to_owned(), receiver, signatures: fitting });
        result
    }

    /// Functions of patches exist where there is a type for patches, those of devices where there is a device.
    fn is_known(&self, function: &str) -> bool {
        match function {
            "includes" => self.environment.variable("device").is_some(),
            other => !other.starts_with("jsonpatch.") || self.environment.object("JSONPatch").is_some(),
        }
    }

    fn optional_select(&mut self, expr: &Expr, args: &[Expr]) -> Type {
        let [operand, Expr { kind: ExprKind::Literal(Literal::String(field)), .. }] = args else {
            return self.issue(expr.position, "unsupported optional field selection".into());
        };
        let of = self.infer(operand);
        let ty = self.field_type(expr.position, &of, field, true);
        self.substitute(&ty, false)
    }

    fn instantiate(&mut self, ty: &Type, own: &mut BTreeMap<u32, Type>) -> Type {
        match ty {
            Type::Param(i) => match own.get(i) {
                Some(ty) => ty.clone(),
                None => {
                    let fresh = self.fresh();
                    own.insert(*i, fresh.clone());
                    fresh
                }
            },
            Type::List(e) => Type::list(self.instantiate(e, own)),
            Type::Map(k, v) => {
                let key = self.instantiate(k, own);
                Type::map(key, self.instantiate(v, own))
            }
            Type::Optional(h) => Type::optional(self.instantiate(h, own)),
            Type::Type(t) => Type::Type(Arc::new(self.instantiate(t, own))),
            other => other.clone(),
        }
    }

    /// Replaces type parameters by what they stand for; with `dynamic` those that stand for nothing by `dyn`.
    fn substitute(&self, ty: &Type, dynamic: bool) -> Type {
        match ty {
            Type::Param(i) => match self.bindings.get(i) {
                Some(bound) => self.substitute(bound, dynamic),
                None if dynamic => Type::Dyn,
                None => ty.clone(),
            },
            Type::List(e) => Type::list(self.substitute(e, dynamic)),
            Type::Map(k, v) => Type::map(self.substitute(k, dynamic), self.substitute(v, dynamic)),
            Type::Optional(h) => Type::optional(self.substitute(h, dynamic)),
            Type::Type(t) => Type::Type(Arc::new(self.substitute(t, dynamic))),
            other => other.clone(),
        }
    }

    fn bind(&mut self, param: u32, ty: Type) {
        let before = self.bindings.insert(param, ty);
        self.trail.push((param, before));
    }

    /// Whether a value of type `from` fits where `to` is wanted. What is learnt about type parameters stays when it does.
    fn assign(&mut self, to: &Type, from: &Type) -> bool {
        self.assign_all([(to, from)].into_iter())
    }

    fn assign_all<'t>(&mut self, mut pairs: impl Iterator<Item = (&'t Type, &'t Type)>) -> bool {
        let fits = pairs.all(|(a, b)| self.unify(a, b));
        while let Some((param, before)) = self.trail.pop() {
            match before {
                _ if fits => {}
                Some(before) => {
                    self.bindings.insert(param, before);
                }
                None => {
                    self.bindings.remove(&param);
                }
            }
        }
        fits
    }

    fn unify(&mut self, a: &Type, b: &Type) -> bool {
        if let Type::Param(param) = b {
            match self.stands_for(*param, b, a) {
                (true, _) => return true,
                (false, true) => return false,
                (false, false) => {}
            }
        }
        if let Type::Param(param) = a {
            return self.stands_for(*param, a, b).0;
        }
        match (a, b) {
            (Type::Dyn | Type::Any | Type::Error, _) | (_, Type::Dyn | Type::Any | Type::Error) => true,
            (Type::Null, other) | (other, Type::Null) => other.is_nullable(),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(x), Type::List(y)) | (Type::Optional(x), Type::Optional(y)) => self.unify(x, y),
            (Type::Map(k, v), Type::Map(l, w)) => self.unify(k, l) && self.unify(v, w),
            _ => a == b,
        }
    }

    /// Whether `param` can stand for `ty`, and whether it stood for something before.
    fn stands_for(&mut self, param: u32, itself: &Type, ty: &Type) -> (bool, bool) {
        if itself == ty {
            return (true, true);
        }
        let Some(before) = self.bindings.get(&param).cloned() else {
            let fits = !self.mentions(ty, param);
            if fits {
                self.bind(param, ty.clone());
            }
            return (fits, false);
        };
        if before == *ty {
            return (true, true);
        }
        if !self.unify(ty, &before) {
            return (false, true);
        }
        let general = more_general(ty.clone(), before);
        if !self.mentions(&general, param) {
            self.bind(param, general);
        }
        (true, true)
    }

    fn mentions(&self, ty: &Type, param: u32) -> bool {
        match ty {
            Type::Param(i) if *i == param => true,
            Type::Param(i) => self.bindings.get(i).is_some_and(|bound| self.mentions(bound, param)),
            Type::List(t) | Type::Optional(t) | Type::Type(t) => self.mentions(t, param),
            Type::Map(k, v) => self.mentions(k, param) || self.mentions(v, param),
            _ => false,
        }
    }
}

/// The name of a namespaced function, when a call with a target is one.
fn namespaced(target: Option<&Expr>, function: &str) -> Option<String> {
    let name = format!("{}.{function}", qualified_name(target?)?);
    let name = name.trim_start_matches('.');
    signatures().contains_key(name).then(|| name.to_owned())
}

/// How many parts are left of `left` when those of a type are taken; `None` when it has more.
fn parts(ty: &Type, left: usize) -> Option<usize> {
    let left = left.checked_sub(1)?;
    match ty {
        Type::List(t) | Type::Optional(t) | Type::Type(t) => parts(t, left),
        Type::Map(k, v) => parts(v, parts(k, left)?),
        _ => Some(left),
    }
}

/// The more general of two types that fit each other.
fn more_general(a: Type, b: Type) -> Type {
    if is_as_general(&a, &b) { a } else { b }
}

fn is_as_general(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Dyn | Type::Any | Type::Param(_), _) => true,
        (_, Type::Dyn | Type::Any | Type::Param(_)) => false,
        (Type::List(x), Type::List(y)) | (Type::Optional(x), Type::Optional(y)) => is_as_general(x, y),
        (Type::Map(k, v), Type::Map(l, w)) => is_as_general(k, l) && is_as_general(v, w),
        (Type::Type(_), Type::Type(_)) => true,
        _ => a == b,
    }
}

/// The types that an expression can name.
pub(crate) fn type_name(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "null_type" => Type::Null,
        "type" => Type::Type(Arc::new(Type::Dyn)),
        "google.protobuf.Duration" => Type::Duration,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "optional_type" => Type::optional(Type::Dyn),
        "net.IP" => Type::Opaque("net.IP"),
        "net.CIDR" => Type::Opaque("net.CIDR"),
        "kubernetes.Semver" => Type::Opaque("kubernetes.Semver"),
        "kubernetes.NamedFormat" => Type::Opaque("kubernetes.NamedFormat"),
        "kubernetes.URL" => Type::Opaque("kubernetes.URL"),
        "kubernetes.Quantity" => Type::Opaque("kubernetes.Quantity"),
        _ => return None,
    })
}
