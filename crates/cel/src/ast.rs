//! The abstract syntax of an expression, after macros are expanded.
//!
//! Operators are calls of functions with the names that the language definition gives them, such as `_+_`.

use std::sync::Arc;

/// Where something is: an offset in characters from the start of the source.
pub type Position = u32;

/// A literal value.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

/// An expression with its place in the source. `id` is unique within one parsed expression and indexes what the checker
/// finds out.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    pub id: u32,
    pub position: Position,
    pub kind: ExprKind,
}

/// An entry of a map or message literal; `optional` entries (`?key: value`) are left out when their value is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<K> {
    /// Of the colon.
    pub position: Position,
    pub key: K,
    pub value: Expr,
    pub optional: bool,
}

/// What loops: every macro that walks a list or a map becomes one of these.
#[derive(Clone, Debug, PartialEq)]
pub struct Comprehension {
    pub range: Expr,
    /// The element of a list, the key of a map; with `variable2` the index or key.
    pub variable: Arc<str>,
    /// With two variables: the element or value.
    pub variable2: Option<Arc<str>>,
    pub accumulator: Arc<str>,
    pub init: Expr,
    /// Goes on while this is true.
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    Literal(Literal),
    Ident(Arc<str>),
    /// `operand.field`; `test` is `has(operand.field)`.
    Select {
        operand: Box<Expr>,
        field: Arc<str>,
        test: bool,
    },
    Call {
        target: Option<Box<Expr>>,
        function: Arc<str>,
        args: Vec<Expr>,
    },
    /// `optional` lists the indexes of `?element`s.
    List {
        elements: Vec<Expr>,
        optional: Vec<usize>,
    },
    Map {
        entries: Vec<Entry<Expr>>,
    },
    Message {
        name: Arc<str>,
        fields: Vec<Entry<Arc<str>>>,
    },
    Comprehension(Box<Comprehension>),
}

/// Names of operators.
pub mod op {
    pub const CONDITIONAL: &str = "_?_:_";
    pub const AND: &str = "_&&_";
    pub const OR: &str = "_||_";
    pub const NOT: &str = "!_";
    pub const NEGATE: &str = "-_";
    pub const EQUALS: &str = "_==_";
    pub const NOT_EQUALS: &str = "_!=_";
    pub const LESS: &str = "_<_";
    pub const LESS_EQUALS: &str = "_<=_";
    pub const GREATER: &str = "_>_";
    pub const GREATER_EQUALS: &str = "_>=_";
    pub const ADD: &str = "_+_";
    pub const SUBTRACT: &str = "_-_";
    pub const MULTIPLY: &str = "_*_";
    pub const DIVIDE: &str = "_/_";
    pub const MODULO: &str = "_%_";
    pub const INDEX: &str = "_[_]";
    pub const OPT_INDEX: &str = "_[?_]";
    pub const OPT_SELECT: &str = "_?._";
    pub const IN: &str = "@in";
    pub const NOT_STRICTLY_FALSE: &str = "@not_strictly_false";
    /// Puts a key and a value into the map that a two-variable macro builds; fails when the key is there.
    pub const MAP_INSERT: &str = "cel.@mapInsert";
}

impl Expr {
    /// Calls `visit` for this expression and everything in it.
    pub fn walk<'a>(&'a self, visit: &mut dyn FnMut(&'a Expr)) {
        visit(self);
        self.children(&mut |child| child.walk(visit));
    }

    /// Calls `visit` for the expressions that this one consists of.
    pub fn children<'a>(&'a self, visit: &mut dyn FnMut(&'a Expr)) {
        match &self.kind {
            ExprKind::Literal(_) | ExprKind::Ident(_) => {}
            ExprKind::Select { operand, .. } => visit(operand),
            ExprKind::Call { target, args, .. } => target.as_deref().into_iter().chain(args).for_each(visit),
            ExprKind::List { elements, .. } => elements.iter().for_each(visit),
            ExprKind::Map { entries } => entries.iter().for_each(|e| {
                visit(&e.key);
                visit(&e.value);
            }),
            ExprKind::Message { fields, .. } => fields.iter().for_each(|f| visit(&f.value)),
            ExprKind::Comprehension(c) => {
                [&c.range, &c.init, &c.condition, &c.step, &c.result].into_iter().for_each(visit)
            }
        }
    }
}
