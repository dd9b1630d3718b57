//! What is checked after types are: literals whose text must be valid, literals of one type, templates of `format`.
//!
//! Follows: the validators of cel-go that Kubernetes turns on (`ValidateDurationLiterals` and kin,
//! `ValidateHomogeneousAggregateLiterals`), and `ext/formatting.go`.

use crate::ast::{Expr, ExprKind, Literal, Position};
use crate::check::Checked;
use crate::format::{self, Clause};
use crate::strings;
use crate::types::Type;
use crate::{CompileIssue, stdlib};

/// What is wrong with an expression whose types are right.
pub(crate) fn validate(expr: &Expr, checked: &Checked) -> Vec<CompileIssue> {
    let mut validator = Validator { checked, issues: Vec::new() };
    validator.one_type(expr, false);
    validator.literals(expr);
    validator.issues
}

struct Validator<'a> {
    checked: &'a Checked,
    issues: Vec<CompileIssue>,
}

impl Validator<'_> {
    fn issue(&mut self, position: Position, message: impl Into<String>) {
        self.issues.push(CompileIssue { position, message: message.into() });
    }

    fn ty(&self, expr: &Expr) -> Type {
        self.checked.types.get(&expr.id).cloned().unwrap_or(Type::Dyn)
    }

    /// The type of an element or value; what it holds when it is optional.
    fn held(&self, expr: &Expr, optional: bool) -> Type {
        match self.ty(expr) {
            Type::Optional(held) if optional => Type::clone(&held),
            other => other,
        }
    }

    fn mismatch(&mut self, position: Position, want: &Type, found: &Type) {
        let (want, found) = (want.in_message(), found.in_message());
        self.issue(position, format!("expected type '{want}' but found '{found}'"));
    }

    /// All elements of a literal are of one type, but within `format`.
    fn one_type(&mut self, expr: &Expr, within_format: bool) {
        let mut within = within_format;
        match &expr.kind {
            ExprKind::Call { function, .. } => within |= &**function == "format",
            ExprKind::List { elements, optional } if !within => {
                let types: Vec<Type> =
                    elements.iter().enumerate().map(|(i, e)| self.held(e, optional.contains(&i))).collect();
                if let Some(i) = types.iter().position(|ty| *ty != types[0]) {
                    self.mismatch(elements[i].position, &types[0], &types[i]);
                }
            }
            ExprKind::Map { entries } if !within => {
                let types: Vec<(Type, Type)> =
                    entries.iter().map(|e| (self.ty(&e.key), self.held(&e.value, e.optional))).collect();
                for (entry, (key, value)) in entries.iter().zip(&types).skip(1) {
                    if *key != types[0].0 {
                        self.mismatch(entry.key.position, &types[0].0, key);
                    }
                    if *value != types[0].1 {
                        self.mismatch(entry.value.position, &types[0].1, value);
                    }
                }
            }
            _ => {}
        }
        expr.children(&mut |child| self.one_type(child, within));
    }

    fn literals(&mut self, expr: &Expr) {
        expr.walk(&mut |e| {
            let ExprKind::Call { target, function, args } = &e.kind else { return };
            let first = args.first().and_then(|arg| match &arg.kind {
                ExprKind::Literal(literal) => Some((arg.position, literal)),
                _ => None,
            });
            match (&**function, first) {
                // What is no text is told apart by evaluating it.
                ("duration", Some((at, literal))) => {
                    let valid = match literal {
                        Literal::String(s) => stdlib::parse_duration(s).is_ok(),
                        _ => false,
                    };
                    if !valid {
                        self.issue(at, "invalid duration argument");
                    }
                }
                ("timestamp", Some((at, literal))) => {
                    let valid = match literal {
                        Literal::String(s) => stdlib::parse_timestamp(s).is_ok(),
                        Literal::Int(i) => stdlib::timestamp_at(*i).is_ok(),
                        _ => false,
                    };
                    if !valid {
                        self.issue(at, "invalid timestamp argument");
                    }
                }
                // As a function its first argument is the text.
                ("matches", Some((at, Literal::String(s)))) if strings::regex(s).is_err() => {
                    self.issue(at, "invalid matches argument");
                }
                ("format", _) => {
                    if let (Some(template), [Expr { kind: ExprKind::List { elements, .. }, .. }]) = (target, &**args)
                        && let ExprKind::Literal(Literal::String(template)) = &template.kind
                    {
                        self.template(e.position, template, elements);
                    }
                }
                _ => {}
            }
        });
    }

    fn template(&mut self, position: Position, template: &str, values: &[Expr]) {
        let mut used = 0;
        let problem = format::interpolate(template, values.len(), &mut |index, clause| {
            used = index + 1;
            match self.misplaced(&values[index], clause) {
                None => Ok(String::new()),
                Some((at, ty)) => Err((at, format::unsuitable(clause, &ty.base_name()))),
            }
        });
        match problem {
            Err((at, text)) => self.issue(at.unwrap_or(position), text),
            Ok(_) if values.len() > used => self.issue(
                position,
                format!("too many arguments supplied to string.format (expected {used}, got {})", values.len()),
            ),
            Ok(_) => {}
        }
    }

    /// The part of a value that a clause cannot print.
    fn misplaced(&self, value: &Expr, clause: Clause) -> Option<(Position, Type)> {
        let ty = self.ty(value);
        let suits = match (&ty, clause) {
            (Type::Dyn, _) => true,
            (_, Clause::Text) => !matches!(ty, Type::Optional(_) | Type::Object(_) | Type::Opaque(_)),
            (Type::Int | Type::Uint, Clause::Decimal | Clause::Octal | Clause::Binary | Clause::Hex { .. }) => true,
            (Type::Bool, Clause::Binary) | (Type::String | Type::Bytes, Clause::Hex { .. }) => true,
            (Type::Double | Type::String, Clause::Fixed(_) | Clause::Scientific(_)) => true,
            _ => false,
        };
        if !suits {
            return Some((value.position, ty));
        }
        match &value.kind {
            ExprKind::List { elements, .. } if clause == Clause::Text => {
                elements.iter().find_map(|e| self.misplaced(e, clause))
            }
            ExprKind::Map { entries } if clause == Clause::Text => {
                entries.iter().find_map(|e| self.misplaced(&e.key, clause).or_else(|| self.misplaced(&e.value, clause)))
            }
            _ => None,
        }
    }
}
