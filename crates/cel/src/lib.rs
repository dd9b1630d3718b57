//! The Common Expression Language as Kubernetes uses it: parser, type checker, cost estimate, evaluator with a budget.
//!
//! Knows JSON trees and quantities of `apimachinery`; does not know requests, schemas of CRDs or policies: callers declare
//! variables ([`Environment`]) and bring values.
//!
//! Invariants:
//! - Evaluation ends: every step counts against a [`Budget`], and nothing loops but over finite lists and maps.
//! - The same expression over the same values gives the same result and the same cost.
//! - A string literal used as a regular expression is checked when the expression is compiled.
//!
//! Follows: the CEL language definition; cel-go; `k8s.io/apiserver/pkg/cel` (libraries and costs).

pub mod ast;
mod check;
mod cost;
pub mod declarations;
mod estimate;
mod eval;
mod format;
mod k8s;
mod lexer;
mod macros;
mod net;
mod parser;
mod semver;
mod stdlib;
mod strings;
pub mod types;
mod validate;
pub mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::ast::{Expr, ExprKind, Position};
pub use crate::check::Checked;
pub use crate::estimate::CostEstimate;
pub use crate::eval::{Budget, EvalError, Host, NoHost};
pub use crate::strings::regex_error;
pub use crate::types::{Decl, Type};
pub use crate::value::{Key, Opaque, Val};

/// The variables and message types that expressions may use.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, Arc<Decl>>,
    objects: BTreeMap<String, Arc<Decl>>,
    /// Messages of this name, and those below it, may have any fields.
    dynamic_objects: Option<String>,
    has_bindings: bool,
}

impl Environment {
    pub fn new() -> Environment {
        Environment::default()
    }

    /// Declares a variable.
    pub fn with(mut self, name: impl Into<String>, decl: impl Into<Arc<Decl>>) -> Environment {
        self.variables.insert(name.into(), decl.into());
        self
    }

    /// Declares a message type that expressions may build: `Object.spec{replicas: 1}`.
    pub fn with_object(mut self, decl: Arc<Decl>) -> Environment {
        if let Type::Object(object) = &decl.ty {
            self.objects.insert(object.name.clone(), decl.clone());
        }
        self
    }

    /// Gives the object that the variable `name` is one more field.
    pub fn add_field(&mut self, name: &str, field: impl Into<String>, decl: impl Into<Arc<Decl>>) {
        let Some(variable) = self.variables.get_mut(name) else { return };
        if let Type::Object(object) = &mut Arc::make_mut(variable).ty {
            Arc::make_mut(object).fields.insert(field.into(), decl.into());
        }
    }

    /// Lets expressions build messages `name{...}`, `name.spec{...}` and so on, with fields that are checked at run time.
    pub fn with_dynamic_objects(mut self, name: impl Into<String>) -> Environment {
        self.dynamic_objects = Some(name.into());
        self
    }

    /// Lets expressions name parts of themselves: `cel.bind(x, 1, x + x)`.
    pub fn with_bindings(mut self) -> Environment {
        self.has_bindings = true;
        self
    }

    pub(crate) fn is_dynamic_object(&self, name: &str) -> bool {
        let below =
            |root: &String| name.strip_prefix(root.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        self.dynamic_objects.as_ref().is_some_and(below)
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&Arc<Decl>> {
        self.variables.get(name)
    }

    pub(crate) fn object(&self, name: &str) -> Option<&Arc<Decl>> {
        self.objects.get(name)
    }
}

/// One thing that is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileIssue {
    pub position: Position,
    pub message: String,
}

/// Source text that is not an expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct SyntaxError {
    source_text: String,
    issue: CompileIssue,
}

impl SyntaxError {
    pub(crate) fn new(source: &str, position: Position, message: impl Into<String>) -> SyntaxError {
        SyntaxError { source_text: source.to_owned(), issue: CompileIssue { position, message: message.into() } }
    }
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_issue(f, &self.source_text, &self.issue)
    }
}

/// Why an expression cannot be used. Prints as cel-go does: place, message, the line and a mark.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("{0}")]
    Syntax(SyntaxError),
    #[error("{}", Issues(source_text, issues))]
    Types { source_text: String, issues: Vec<CompileIssue> },
}

impl CompileError {
    /// The first message, without the place.
    pub fn message(&self) -> &str {
        match self {
            CompileError::Syntax(e) => &e.issue.message,
            CompileError::Types { issues, .. } => issues.first().map_or("", |i| &i.message),
        }
    }
}

struct Issues<'a>(&'a str, &'a [CompileIssue]);

impl fmt::Display for Issues<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, issue) in self.1.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write_issue(f, self.0, issue)?;
        }
        Ok(())
    }
}

fn write_issue(f: &mut fmt::Formatter<'_>, source: &str, issue: &CompileIssue) -> fmt::Result {
    let before: Vec<char> = source.chars().take(issue.position as usize).collect();
    let line_number = before.iter().filter(|c| **c == '\n').count() + 1;
    let column = before.iter().rev().take_while(|c| **c != '\n').count();
    let line = source.lines().nth(line_number - 1).unwrap_or("");
    write!(f, "ERROR: <input>:{line_number}:{}: {}\n | {line}\n | {}^", column + 1, issue.message, ".".repeat(column))
}

/// An expression that can be evaluated.
#[derive(Clone, Debug)]
pub struct Program {
    source: Arc<str>,
    expr: Arc<Expr>,
    output: Type,
    cost: CostEstimate,
}

impl Program {
    /// Parses and checks `source`.
    pub fn compile(source: &str, environment: &Environment) -> Result<Program, CompileError> {
        let expr = parser::parse(source, environment.has_bindings).map_err(CompileError::Syntax)?;
        let types = |mut issues: Vec<CompileIssue>| {
            issues.sort_by_key(|issue| issue.position);
            CompileError::Types { source_text: source.to_owned(), issues }
        };
        let checked = check::check(&expr, environment).map_err(types)?;
        let issues = validate::validate(&expr, &checked);
        if !issues.is_empty() {
            return Err(types(issues));
        }
        let output = checked.types.get(&expr.id).cloned().unwrap_or(Type::Dyn);
        let cost = estimate::estimate(&expr, environment, &checked);
        Ok(Program { source: source.into(), expr: Arc::new(expr), output, cost })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// The type of the result.
    pub fn output(&self) -> &Type {
        &self.output
    }

    /// Whether the expression is a variable or a part of one, without any operation.
    pub fn is_path(&self) -> bool {
        let mut only = true;
        self.expr.walk(&mut |e| only &= matches!(&e.kind, ExprKind::Ident(_) | ExprKind::Select { test: false, .. }));
        only
    }

    /// How much one evaluation can cost, by the sizes that the environment declares.
    pub fn cost(&self) -> CostEstimate {
        self.cost
    }

    /// Whether the expression mentions a variable.
    pub fn uses(&self, variable: &str) -> bool {
        let mut used = false;
        self.expr.walk(&mut |e| used |= matches!(&e.kind, ExprKind::Ident(name) if &**name == variable));
        used
    }

    /// Evaluates with the variables of `variables`, spending from `budget`.
    pub fn evaluate(&self, variables: &BTreeMap<&str, Val>, budget: &mut Budget) -> Result<Val, EvalError> {
        self.evaluate_with(variables, budget, &NoHost)
    }

    /// The same with functions that ask the outside, such as `authorizer`.
    pub fn evaluate_with(
        &self,
        variables: &BTreeMap<&str, Val>,
        budget: &mut Budget,
        host: &dyn Host,
    ) -> Result<Val, EvalError> {
        eval::evaluate(&self.expr, variables, budget, host)
    }
}
