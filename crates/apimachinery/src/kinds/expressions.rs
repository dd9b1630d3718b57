//! CEL expressions inside objects: validation hands each to whoever can compile it.

use super::check::{Errors, Report};
use crate::field::FieldPath;
use crate::json::Value;

/// What an expression is for, which decides its variables and its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpressionUse {
    /// A webhook's or policy's match condition: a boolean.
    MatchCondition,
    /// A policy's validation: a boolean.
    Validation,
    /// The message of a failed validation: a string.
    Message,
    /// The value of an audit annotation: a string or null.
    AuditAnnotation,
    /// A variable of a policy, of any type.
    Variable,
    /// A mutation that yields an apply configuration.
    ApplyConfiguration,
    /// A mutation that yields a list of JSON patch steps.
    JsonPatch,
    /// A device selector: a boolean over `device`.
    DeviceSelector,
}

/// An expression to be compiled.
#[derive(Clone, Copy, Debug)]
pub struct Expression<'a> {
    pub source: &'a str,
    pub usage: ExpressionUse,
    pub has_params: bool,
    pub has_authorizer: bool,
    /// The policy's variables that the expression may name, with their `name` and `expression`.
    pub variables: &'a [Value],
    /// The stored object has the same expression: it compiles against everything a server may have accepted before.
    pub stored: bool,
}

/// Why an expression is refused: the detail of an invalid-value error.
pub type ExpressionCheck<'a> = &'a dyn Fn(&Expression<'_>) -> Option<String>;

/// What is said of an expression that compiles and may cost too much; it is forbidden rather than invalid.
pub const TOO_COMPLEX: &str = "too complex, exceeds cost limit";

/// Accepts every expression.
pub fn any_expression(_: &Expression<'_>) -> Option<String> {
    None
}

pub(crate) fn expression(
    check: ExpressionCheck<'_>,
    expression: Expression<'_>,
    path: &FieldPath,
    errors: &mut Errors,
) {
    match check(&expression) {
        Some(detail) if detail == TOO_COMPLEX => errors.forbidden(path, detail),
        Some(detail) => errors.invalid(path, expression.source, detail),
        None => {}
    }
}
