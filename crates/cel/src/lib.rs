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
mod explain;
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
use crate::eval::Facts;
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

/// The position of what concerns the whole text.
pub(crate) const NOWHERE: Position = Position::MAX;

impl CompileIssue {
    /// Sorts issues as they are told: those of the whole text first.
    pub(crate) fn place(&self) -> Position {
        self.position.wrapping_add(1)
    }
}

/// Source text that is not an expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct SyntaxError {
    source_text: String,
    /// At least one.
    issues: Vec<CompileIssue>,
}

impl SyntaxError {
    pub(crate) fn new(source: &str, position: Position, message: impl Into<String>) -> SyntaxError {
        SyntaxError { source_text: source.to_owned(), issues: vec![CompileIssue { position, message: message.into() }] }
    }
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Issues(&self.source_text, &self.issues).fmt(f)
    }
}

/// Why an expression cannot be used. Prints as cel-go does: place, message, the line and a mark.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("{0}")]
    Syntax(SyntaxError),
    #[error("{}", Issues(source_text, issues))]
    Types { source_text: String, issues: Vec<CompileIssue> },
    /// What is constant in it cannot be evaluated.
    #[error("{0}")]
    Program(String),
}

impl CompileError {
    /// What is wrong, with the step that found it, as the API server tells it.
    pub fn detail(&self) -> String {
        match self {
            CompileError::Program(message) => format!("program instantiation failed: {message}"),
            other => format!("compilation failed: {other}"),
        }
    }

    /// The first message, without the place.
    pub fn message(&self) -> &str {
        match self {
            CompileError::Syntax(SyntaxError { issues, .. }) | CompileError::Types { issues, .. } => {
                issues.first().map_or("", |i| &i.message)
            }
            CompileError::Program(message) => message,
        }
    }
}

struct Issues<'a>(&'a str, &'a [CompileIssue]);

impl fmt::Display for Issues<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for issue in self.1 {
            let begin = text.len();
            if begin > 0 {
                text.push('\n');
            }
            write_issue(&mut text, self.0, issue)?;
            // Each one shows its line.
            if begin > 0 && text.len() > MESSAGE_BYTES_MAX {
                text.truncate(begin);
                break;
            }
        }
        f.write_str(&text)
    }
}

fn write_issue(f: &mut impl fmt::Write, source: &str, issue: &CompileIssue) -> fmt::Result {
    if issue.position == NOWHERE {
        return write!(f, "ERROR: <input>:-1:0: {}", issue.message);
    }
    let before = source.chars().take(issue.position as usize);
    let (mut line_number, mut column) = (1, 0);
    for c in before {
        (line_number, column) = if c == '\n' { (line_number + 1, 0) } else { (line_number, column + 1) };
    }
    write!(f, "ERROR: <input>:{line_number}:{}: {}", column + 1, issue.message)?;
    let line = source.split('\n').nth(line_number - 1).unwrap_or("");
    if line.len() > SNIPPET_BYTES_MAX {
        return Ok(());
    }
    // Characters of more than one byte are marked by wide signs.
    let mark =
        |c: Option<char>, narrow: char, wide: char| if c.is_some_and(|c| c.len_utf8() > 1) { wide } else { narrow };
    let dots: String = line.chars().take(column).map(|c| mark(Some(c), '.', '．')).collect();
    let caret = mark(line.chars().nth(column), '^', '＾');
    write!(f, "\n | {}\n | {dots}{caret}", line.replace('\t', " "))
}

/// Issues are told as long as they fit in here; a definition may have hundreds of expressions, each a long line.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Longer lines are not shown. Source: `maxSnippetLength`.
const SNIPPET_BYTES_MAX: usize = 16384;

/// An expression that can be evaluated.
#[derive(Clone, Debug)]
pub struct Program {
    source: Arc<str>,
    expr: Arc<Expr>,
    output: Type,
    cost: CostEstimate,
    facts: Arc<Facts>,
}

impl Program {
    /// Parses and checks `source`.
    pub fn compile(source: &str, environment: &Environment) -> Result<Program, CompileError> {
        let expr = parser::parse(source, environment.has_bindings).map_err(|error| {
            // What the parser stopped at, and all else that is wrong.
            let issues = explain::explain(source, environment.has_bindings);
            let issues = if issues.is_empty() { error.issues } else { issues };
            CompileError::Syntax(SyntaxError { source_text: source.to_owned(), issues })
        })?;
        let types = |mut issues: Vec<CompileIssue>| {
            issues.sort_by_key(CompileIssue::place);
            CompileError::Types { source_text: source.to_owned(), issues }
        };
        let checked = check::check(&expr, environment).map_err(types)?;
        let issues = validate::validate(&expr, &checked);
        if !issues.is_empty() {
            return Err(types(issues));
        }
        let output = checked.types.get(&expr.id).cloned().unwrap_or(Type::Dyn);
        let cost = estimate::estimate(&expr, environment, &checked);
        let facts = eval::facts(&expr, checked).map_err(|error| CompileError::Program(error.to_string()))?;
        Ok(Program { source: source.into(), expr: Arc::new(expr), output, cost, facts: Arc::new(facts) })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// The type of the result.
    pub fn output(&self) -> &Type {
        &self.output
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
        eval::evaluate(&self.expr, variables, budget, host, &self.facts)
    }
}
