//! The type checker: what type every part of an expression has, or why it cannot have one.
//!
//! Follows: cel-go's checker (unification of type parameters, `dyn` fits everywhere), with its message texts.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ast::{Comprehension, Expr, ExprKind, Literal, Position};
use crate::declarations::{Signature, signatures};
use crate::parser::qualified_name;
use crate::types::{ObjectType, Type};
use crate::{CompileIssue, Environment};

/// What the checker found out: the type of every expression and the meaning of every call, by id.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    pub types: BTreeMap<u32, Type>,
    pub calls: BTreeMap<u32, ResolvedCall>,
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

/// Checks `expr`; the errors are in the order of the source.
pub fn check(expr: &Expr, environment: &Environment) -> Result<Checked, Vec<CompileIssue>> {
    let mut checker = Checker {
        environment,
        scopes: Vec::new(),
        bindings: BTreeMap::new(),
        next: 1000,
        types: BTreeMap::new(),
        calls: BTreeMap::new(),
        issues: Vec::new(),
        formatting: false,
    };
    checker.infer(expr);
    if checker.issues.is_empty() {
        let types = checker.types.iter().map(|(id, ty)| (*id, checker.resolve(ty))).collect();
        return Ok(Checked { types, calls: checker.calls });
    }
    checker.issues.sort_by_key(|i| i.position);
    Err(checker.issues)
}

struct Checker<'a> {
    environment: &'a Environment,
    /// Variables of comprehensions, innermost last.
    scopes: Vec<(Arc<str>, Type)>,
    /// What the checker's own type parameters turned out to be.
    bindings: BTreeMap<u32, Type>,
    next: u32,
    types: BTreeMap<u32, Type>,
    calls: BTreeMap<u32, ResolvedCall>,
    issues: Vec<CompileIssue>,
    /// Inside the arguments of `format`, whose lists hold anything.
    formatting: bool,
}

impl Checker<'_> {
    fn issue(&mut self, position: Position, message: String) -> Type {
        self.issues.push(CompileIssue { position, message });
        Type::Dyn
    }

    fn fresh(&mut self) -> Type {
        self.next += 1;
        Type::Param(self.next)
    }

    fn infer(&mut self, expr: &Expr) -> Type {
        let ty = self.infer_kind(expr);
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
                None => self.issue(expr.position, format!("undeclared reference to '{name}' (in container '')")),
            },
            ExprKind::Select { operand, field, test } => self.select(expr, operand, field, *test),
            ExprKind::Call { target, function, args } => self.call(expr, target.as_deref(), function, args),
            ExprKind::List { elements, optional } => {
                let types: Vec<Type> = elements
                    .iter()
                    .enumerate()
                    .map(|(i, e)| {
                        let ty = self.infer(e);
                        if optional.contains(&i) { self.held(e.position, ty) } else { ty }
                    })
                    .collect();
                self.same_types(elements.iter().map(|e| e.position), &types);
                Type::list(self.join(types))
            }
            ExprKind::Map { entries } => {
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                for entry in entries {
                    keys.push(self.infer(&entry.key));
                    let value = self.infer(&entry.value);
                    values.push(if entry.optional { self.held(entry.value.position, value) } else { value });
                }
                self.same_types(entries.iter().map(|e| e.key.position), &keys);
                self.same_types(entries.iter().map(|e| e.value.position), &values);
                Type::map(self.join(keys), self.join(values))
            }
            ExprKind::Message { name, fields } => self.message(expr, name, fields),
            ExprKind::Comprehension(c) => self.comprehension(c),
        }
    }

    fn lookup(&self, name: &str) -> Option<Type> {
        let bare = name.trim_start_matches('.');
        if !name.starts_with('.')
            && let Some((_, ty)) = self.scopes.iter().rev().find(|(n, _)| &**n == name)
        {
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
            && !self.scopes.iter().any(|(n, _)| name.split('.').next() == Some(&**n))
            && self.environment.variable(name.split('.').next().unwrap_or_default()).is_none()
            && let Some(ty) = self.lookup(&name)
        {
            return ty;
        }
        let of = self.infer(operand);
        let ty = self.field_type(expr.position, &of, field);
        if test { Type::Bool } else { ty }
    }

    fn field_type(&mut self, position: Position, of: &Type, field: &str) -> Type {
        match self.resolve(of) {
            Type::Dyn | Type::Param(_) => Type::Dyn,
            Type::Map(key, value) => {
                if self.unify(&key, &Type::String) {
                    (*value).clone()
                } else {
                    self.issue(position, format!("type '{}' does not support field selection", Type::Map(key, value)))
                }
            }
            Type::Object(object) => match object.fields.get(field) {
                Some(decl) => decl.ty.clone(),
                None if self.environment.is_dynamic_object(&object.name) => Type::Dyn,
                None => self.issue(position, format!("undefined field '{field}'")),
            },
            Type::Optional(held) => {
                let ty = self.field_type(position, &held, field);
                Type::optional(ty)
            }
            other => self.issue(position, format!("type '{other}' does not support field selection")),
        }
    }

    fn held(&mut self, position: Position, ty: Type) -> Type {
        match self.resolve(&ty) {
            Type::Optional(held) => (*held).clone(),
            Type::Dyn => Type::Dyn,
            other => self.issue(position, format!("expected type 'optional_type(A)' but found '{other}'")),
        }
    }

    /// The one type of several, `dyn` when they differ.
    fn join(&mut self, types: Vec<Type>) -> Type {
        let mut types = types.into_iter();
        let Some(first) = types.next() else { return self.fresh() };
        for ty in types {
            if !self.unify(&first, &ty) {
                return Type::Dyn;
            }
        }
        first
    }

    fn message(&mut self, expr: &Expr, name: &str, fields: &[crate::ast::Entry<Arc<str>>]) -> Type {
        let object = self.environment.object(name).cloned();
        for entry in fields {
            let mut value = self.infer(&entry.value);
            if entry.optional {
                value = self.held(entry.value.position, value);
            }
            let Some(object) = &object else { continue };
            match object.field(&entry.key) {
                Some(decl) if self.unify(&decl.ty, &value) => {}
                Some(decl) => {
                    let (want, found) = (decl.ty.clone(), self.resolve(&value));
                    let message =
                        format!("expected type of field '{}' is '{want}' but provided type is '{found}'", entry.key);
                    self.issue(entry.value.position, message);
                }
                None => {
                    self.issue(entry.value.position, format!("undefined field '{}'", entry.key));
                }
            }
        }
        match object {
            Some(object) => object.ty.clone(),
            None if self.environment.is_dynamic_object(name) => {
                Type::Object(Arc::new(ObjectType { name: name.to_owned(), fields: BTreeMap::new() }))
            }
            None => self.issue(expr.position, format!("undeclared reference to '{name}' (in container '')")),
        }
    }

    fn comprehension(&mut self, c: &Comprehension) -> Type {
        let range = self.infer(&c.range);
        let (first, second) = match self.resolve(&range) {
            Type::List(element) if c.variable2.is_some() => (Type::Int, (*element).clone()),
            Type::List(element) => ((*element).clone(), Type::Dyn),
            Type::Map(key, value) => ((*key).clone(), (*value).clone()),
            Type::Dyn | Type::Param(_) => (Type::Dyn, Type::Dyn),
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                (self.issue(c.range.position, message), Type::Dyn)
            }
        };
        let accumulator = self.infer(&c.init);
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
        result
    }

    /// The elements of a literal must be of one type, but for those that are formatted.
    ///
    /// Source: cel-go's `HomogeneousAggregateLiterals`, which Kubernetes turns on.
    fn same_types(&mut self, positions: impl Iterator<Item = Position>, types: &[Type]) {
        if self.formatting {
            return;
        }
        let plain =
            |ty: &Type| matches!(ty, Type::Bool | Type::Int | Type::Uint | Type::Double | Type::String | Type::Bytes);
        let resolved: Vec<Type> = types.iter().map(|ty| self.resolve(ty)).collect();
        let Some(first) = resolved.first() else { return };
        let other = positions.zip(&resolved).find(|(_, ty)| plain(first) && plain(ty) && *ty != first);
        if let Some((position, found)) = other {
            self.issue(position, format!("expected type '{first}' but found '{found}'"));
        }
    }

    fn expect(&mut self, position: Position, want: &Type, found: &Type) {
        if !self.unify(want, found) {
            let (want, found) = (self.resolve(want), self.resolve(found));
            self.issue(position, format!("expected type '{want}' but found '{found}'"));
        }
    }

    fn call(&mut self, expr: &Expr, target: Option<&Expr>, function: &str, args: &[Expr]) -> Type {
        if function == crate::ast::op::OPT_SELECT {
            return self.optional_select(expr, args);
        }
        // `a.b.f(x)` may be a namespaced function instead of a method of `a.b`.
        let qualified = target
            .and_then(qualified_name)
            .filter(|name| !self.is_variable(name.split('.').next().unwrap_or_default()))
            .map(|name| format!("{name}.{function}"))
            .filter(|name| signatures().contains_key(name));
        let (name, receiver, all): (&str, bool, Vec<&Expr>) = match (&qualified, target) {
            (Some(name), _) => (name, false, args.iter().collect()),
            (None, Some(target)) => (function, true, std::iter::once(target).chain(args).collect()),
            (None, None) => (function, false, args.iter().collect()),
        };
        let outer = std::mem::replace(&mut self.formatting, name == "format");
        let types: Vec<Type> = all.iter().map(|arg| self.infer(arg)).collect();
        self.formatting = outer;
        if matches!(name, crate::ast::op::AND | crate::ast::op::OR) {
            let issues = self.issues.len();
            for (arg, ty) in all.iter().zip(&types) {
                self.expect(arg.position, &Type::Bool, ty);
            }
            if self.issues.len() > issues {
                return Type::Bool;
            }
        }
        let Some(candidates) = signatures().get(name) else {
            return self.issue(expr.position, format!("undeclared reference to '{name}' (in container '')"));
        };
        let mut result: Option<Type> = None;
        let mut fitting = Vec::new();
        for signature in candidates.iter().filter(|s| s.receiver == receiver && s.params.len() == types.len()) {
            let Some(ty) = self.try_signature(signature, &types) else { continue };
            fitting.push(signature);
            result = match result {
                None => Some(ty),
                Some(before) if self.resolve(&before) == self.resolve(&ty) => Some(before),
                // Arguments of type `dyn` fit several ways to call it.
                Some(_) => Some(Type::Dyn),
            };
            if !types.iter().any(|t| matches!(self.resolve(t), Type::Dyn)) {
                break;
            }
        }
        let resolved = ResolvedCall { name: name.to_owned(), receiver, signatures: fitting };
        self.calls.insert(expr.id, resolved);
        match result {
            Some(ty) => ty,
            None => {
                let shown: Vec<String> = types.iter().map(|t| self.resolve(t).to_string()).collect();
                let applied = match receiver {
                    true => format!("{}.({})", shown[0], shown[1..].join(", ")),
                    false => format!("({})", shown.join(", ")),
                };
                self.issue(expr.position, format!("found no matching overload for '{name}' applied to '{applied}'"))
            }
        }
    }

    fn is_variable(&self, name: &str) -> bool {
        self.scopes.iter().any(|(n, _)| &**n == name) || self.environment.variable(name).is_some()
    }

    fn optional_select(&mut self, expr: &Expr, args: &[Expr]) -> Type {
        let [operand, Expr { kind: ExprKind::Literal(Literal::String(field)), .. }] = args else {
            return self.issue(expr.position, "unsupported optional field selection".into());
        };
        let of = self.infer(operand);
        let of = match self.resolve(&of) {
            Type::Optional(held) => (*held).clone(),
            other => other,
        };
        Type::optional(self.field_type(expr.position, &of, field))
    }

    /// The result of calling `signature` with `types`, when they fit; what is learnt about type parameters stays.
    fn try_signature(&mut self, signature: &Signature, types: &[Type]) -> Option<Type> {
        let saved = self.bindings.clone();
        let mut own = BTreeMap::new();
        let params: Vec<Type> = signature.params.iter().map(|p| self.instantiate(p, &mut own)).collect();
        let result = self.instantiate(&signature.result, &mut own);
        if params.iter().zip(types).all(|(param, ty)| self.unify(param, ty)) {
            return Some(self.resolve(&result));
        }
        self.bindings = saved;
        None
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
            Type::Map(k, v) => Type::map(self.instantiate(k, own), self.instantiate(v, own)),
            Type::Optional(h) => Type::optional(self.instantiate(h, own)),
            Type::Type(t) => Type::Type(Arc::new(self.instantiate(t, own))),
            other => other.clone(),
        }
    }

    /// Replaces type parameters by what is known about them.
    fn resolve(&self, ty: &Type) -> Type {
        match ty {
            Type::Param(i) => match self.bindings.get(i) {
                Some(bound) => self.resolve(bound),
                None => ty.clone(),
            },
            Type::List(e) => Type::list(self.resolve(e)),
            Type::Map(k, v) => Type::map(self.resolve(k), self.resolve(v)),
            Type::Optional(h) => Type::optional(self.resolve(h)),
            other => other.clone(),
        }
    }

    /// Makes two types one, if they can be.
    fn unify(&mut self, a: &Type, b: &Type) -> bool {
        let (a, b) = (self.resolve(a), self.resolve(b));
        match (&a, &b) {
            _ if a == b => true,
            (Type::Param(i), other) | (other, Type::Param(i)) => {
                if mentions(other, *i) {
                    return false;
                }
                self.bindings.insert(*i, other.clone());
                true
            }
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            // Objects and everything that is held by reference may be compared with null.
            (Type::Null, Type::Object(_) | Type::Duration | Type::Timestamp | Type::Opaque(_) | Type::Optional(_))
            | (Type::Object(_) | Type::Duration | Type::Timestamp | Type::Opaque(_) | Type::Optional(_), Type::Null) => {
                true
            }
            (Type::List(x), Type::List(y))
            | (Type::Optional(x), Type::Optional(y))
            | (Type::Type(x), Type::Type(y)) => self.unify(x, y),
            (Type::Map(k, v), Type::Map(l, w)) => self.unify(k, l) && self.unify(v, w),
            _ => false,
        }
    }
}

fn mentions(ty: &Type, param: u32) -> bool {
    match ty {
        Type::Param(i) => *i == param,
        Type::List(t) | Type::Optional(t) | Type::Type(t) => mentions(t, param),
        Type::Map(k, v) => mentions(k, param) || mentions(v, param),
        _ => false,
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
        "kubernetes.URL" => Type::Opaque("kubernetes.URL"),
        "kubernetes.Quantity" => Type::Opaque("kubernetes.Quantity"),
        _ => return None,
    })
}
