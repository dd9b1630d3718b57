//! The grammar: expressions by precedence, and the few statements that published patches use.

use std::collections::BTreeSet;

use apimachinery::Value;
use apimachinery::json;

use super::lexer::{Token, tokens};
use super::{DEPTH_MAX, ScriptError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Or,
    And,
    Nullish,
    Equal,
    NotEqual,
    LooseEqual,
    LooseNotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    Not,
    Minus,
    Plus,
    Typeof,
}

/// How a value is put into a variable or a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assign {
    Set,
    Add,
    Subtract,
    /// Only where there is nothing.
    Nullish,
    Or,
    And,
}

#[derive(Clone, Debug)]
pub enum Statement {
    Expr(Expr),
    Let(String, Option<Expr>),
    Return(Option<Expr>),
    If(Expr, Vec<Statement>, Vec<Statement>),
    ForOf(String, Expr, Vec<Statement>),
}

#[derive(Clone, Debug)]
pub enum Expr {
    Literal(Value),
    Undefined,
    Name(String),
    Template(Vec<Expr>),
    /// `true`: spread.
    List(Vec<(bool, Expr)>),
    /// No key: spread.
    Object(Vec<(Option<Expr>, Expr)>),
    Member {
        object: Box<Expr>,
        key: Box<Expr>,
        optional: bool,
    },
    Call {
        callee: Box<Expr>,
        arguments: Vec<Expr>,
    },
    Arrow {
        parameters: Vec<String>,
        body: Box<Expr>,
    },
    /// The body of an arrow function in braces; gives what it returns.
    Block(Vec<Statement>),
    /// A whole text; gives its last value.
    Program(Vec<Statement>),
    Assign {
        target: Box<Expr>,
        how: Assign,
        value: Box<Expr>,
    },
    Delete(Box<Expr>),
    Unary(Unary, Box<Expr>),
    Binary(Op, Box<Expr>, Box<Expr>),
    If(Box<Expr>, Box<Expr>, Box<Expr>),
}

/// A regular expression is an object that only `replace`, `test`, `match` and `split` understand.
pub const REGEX: &str = "\u{0}regex";
pub const FLAGS: &str = "\u{0}flags";

pub fn parse(text: &str) -> Result<Expr, ScriptError> {
    let tokens = tokens(text)?;
    let chars: Vec<char> = text.chars().collect();
    let mut lines = BTreeSet::new();
    let mut before = 0;
    for (at, _) in &tokens {
        if chars[before..*at].contains(&'\n') {
            lines.insert(*at);
        }
        before = *at;
    }
    let mut parser = Parser { tokens, lines, at: 0, depth: 0 };
    let mut statements = parser.statements(|parser| matches!(parser.peek(), Token::End))?;
    match (statements.pop(), statements.is_empty()) {
        (Some(Statement::Expr(only)), true) => Ok(only),
        (Some(last), _) => {
            statements.push(last);
            Ok(Expr::Program(statements))
        }
        (None, _) => Err(parser.error("the expression is empty")),
    }
}

/// A variable, or a member of a member ... of a variable.
fn is_place(expr: &Expr) -> bool {
    match expr {
        Expr::Name(_) => true,
        Expr::Member { object, optional: false, .. } => is_place(object),
        _ => false,
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    /// Where tokens stand that begin a line.
    lines: BTreeSet<usize>,
    at: usize,
    depth: u32,
}

const WORDS: [&str; 17] = [
    "new", "function", "class", "let", "const", "var", "while", "for", "if", "else", "return", "throw", "delete",
    "void", "await", "yield", "import",
];

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].1
    }

    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].1.clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    fn error(&self, message: impl Into<String>) -> ScriptError {
        ScriptError::Syntax { at: self.tokens[self.at].0, message: message.into() }
    }

    fn is(&self, punctuation: &str) -> bool {
        matches!(self.peek(), Token::Punctuation(p) if *p == punctuation)
    }

    fn accept(&mut self, punctuation: &str) -> bool {
        let is = self.is(punctuation);
        if is {
            self.next();
        }
        is
    }

    fn expect(&mut self, punctuation: &str) -> Result<(), ScriptError> {
        if self.accept(punctuation) { Ok(()) } else { Err(self.error(format!("expected {punctuation}"))) }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Name(name) if name == word)
    }

    fn accept_word(&mut self, word: &str) -> bool {
        let is = self.is_word(word);
        if is {
            self.next();
        }
        is
    }

    fn name(&mut self) -> Result<String, ScriptError> {
        let start = self.at;
        match self.next() {
            Token::Name(name) if !WORDS.contains(&name.as_str()) => Ok(name),
            _ => {
                self.at = start;
                Err(self.error("expected a name"))
            }
        }
    }

    fn statements(&mut self, ends: impl Fn(&Parser) -> bool) -> Result<Vec<Statement>, ScriptError> {
        let mut out = Vec::new();
        loop {
            while self.accept(";") {}
            if ends(self) {
                return Ok(out);
            }
            // Two expressions side by side are a mistake, not two statements.
            let bare = matches!(out.last(), Some(Statement::Expr(_))) && !self.tokens[self.at - 1].1.ends_statement();
            if bare && !self.begins_line() {
                return Err(self.error(format!("unexpected {:?}", self.peek())));
            }
            out.push(self.statement()?);
        }
    }

    /// Whether a line ends before the next token.
    fn begins_line(&self) -> bool {
        self.lines.contains(&self.tokens[self.at].0)
    }

    /// `{ ... }`, or one statement.
    fn body(&mut self) -> Result<Vec<Statement>, ScriptError> {
        if self.accept("{") { self.block() } else { Ok(vec![self.statement()?]) }
    }

    /// What follows a `{`, with the `}`.
    fn block(&mut self) -> Result<Vec<Statement>, ScriptError> {
        let statements = self.statements(|parser| parser.is("}") || matches!(parser.peek(), Token::End))?;
        self.expect("}")?;
        Ok(statements)
    }

    fn statement(&mut self) -> Result<Statement, ScriptError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(ScriptError::Depth);
        }
        let result = self.statement_inner();
        self.depth -= 1;
        result
    }

    fn statement_inner(&mut self) -> Result<Statement, ScriptError> {
        if ["const", "let", "var"].into_iter().any(|word| self.accept_word(word)) {
            let name = self.name()?;
            let value = if self.accept("=") { Some(self.expression()?) } else { None };
            return Ok(Statement::Let(name, value));
        }
        if self.accept_word("return") {
            let nothing = self.is(";") || self.is("}") || matches!(self.peek(), Token::End);
            return Ok(Statement::Return(if nothing { None } else { Some(self.expression()?) }));
        }
        if self.accept_word("if") {
            self.expect("(")?;
            let condition = self.expression()?;
            self.expect(")")?;
            let yes = self.body()?;
            let at = self.at;
            while self.accept(";") {}
            if !self.accept_word("else") {
                self.at = at;
                return Ok(Statement::If(condition, yes, Vec::new()));
            }
            return Ok(Statement::If(condition, yes, self.body()?));
        }
        if self.accept_word("for") {
            self.expect("(")?;
            if !["const", "let", "var"].into_iter().any(|word| self.accept_word(word)) {
                return Err(self.error("only `for (const x of list)` is supported"));
            }
            let name = self.name()?;
            if !self.accept_word("of") {
                return Err(self.error("only `for (const x of list)` is supported"));
            }
            let list = self.expression()?;
            self.expect(")")?;
            return Ok(Statement::ForOf(name, list, self.body()?));
        }
        Ok(Statement::Expr(self.expression()?))
    }

    fn expression(&mut self) -> Result<Expr, ScriptError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(ScriptError::Depth);
        }
        let result = self.arrow_or_condition();
        self.depth -= 1;
        result
    }

    fn arrow_or_condition(&mut self) -> Result<Expr, ScriptError> {
        if let Some(parameters) = self.arrow_parameters() {
            let body = if self.accept("{") { Expr::Block(self.block()?) } else { self.expression()? };
            return Ok(Expr::Arrow { parameters, body: Box::new(body) });
        }
        let condition = self.binary(0)?;
        let assignments = [
            ("=", Assign::Set),
            ("+=", Assign::Add),
            ("-=", Assign::Subtract),
            ("??=", Assign::Nullish),
            ("||=", Assign::Or),
            ("&&=", Assign::And),
        ];
        if let Some((_, how)) = assignments.into_iter().find(|(p, _)| self.is(p)) {
            if !is_place(&condition) {
                return Err(self.error("only a variable or a member can be assigned to"));
            }
            self.next();
            let value = Box::new(self.expression()?);
            return Ok(Expr::Assign { target: Box::new(condition), how, value });
        }
        if !self.accept("?") {
            return Ok(condition);
        }
        let yes = self.expression()?;
        self.expect(":")?;
        let no = self.expression()?;
        Ok(Expr::If(Box::new(condition), Box::new(yes), Box::new(no)))
    }

    /// `x =>`, `(x, y) =>`, `([k, v]) =>`; nothing is consumed when it is something else.
    fn arrow_parameters(&mut self) -> Option<Vec<String>> {
        let start = self.at;
        let found = self.try_arrow_parameters();
        if found.is_none() {
            self.at = start;
        }
        found
    }

    fn try_arrow_parameters(&mut self) -> Option<Vec<String>> {
        let mut parameters = Vec::new();
        if let Token::Name(name) = self.peek().clone() {
            self.next();
            parameters.push(name);
        } else {
            if !self.accept("(") {
                return None;
            }
            while !self.accept(")") {
                if self.accept("[") {
                    // A pair taken apart: `[k, v]`, kept as one name that says so.
                    let mut names = Vec::new();
                    while !self.accept("]") {
                        let Token::Name(name) = self.next() else { return None };
                        names.push(name);
                        self.accept(",");
                    }
                    parameters.push(format!("[{}", names.join(",")));
                } else {
                    let Token::Name(name) = self.next() else { return None };
                    parameters.push(name);
                }
                if !self.accept(",") && !self.is(")") {
                    return None;
                }
            }
        }
        self.accept("=>").then_some(parameters)
    }

    fn operator(&self) -> Option<(Op, u8)> {
        Some(match self.peek() {
            Token::Punctuation(p) => match *p {
                "??" => (Op::Nullish, 1),
                "||" => (Op::Or, 2),
                "&&" => (Op::And, 3),
                "===" => (Op::Equal, 4),
                "!==" => (Op::NotEqual, 4),
                "==" => (Op::LooseEqual, 4),
                "!=" => (Op::LooseNotEqual, 4),
                "<" => (Op::Less, 5),
                "<=" => (Op::LessEqual, 5),
                ">" => (Op::Greater, 5),
                ">=" => (Op::GreaterEqual, 5),
                "+" => (Op::Add, 6),
                "-" => (Op::Subtract, 6),
                "*" => (Op::Multiply, 7),
                "/" => (Op::Divide, 7),
                "%" => (Op::Remainder, 7),
                _ => return None,
            },
            Token::Name(name) if name == "in" => (Op::In, 5),
            _ => return None,
        })
    }

    fn binary(&mut self, lowest: u8) -> Result<Expr, ScriptError> {
        let mut left = self.unary()?;
        while let Some((op, strength)) = self.operator().filter(|(_, s)| *s > lowest) {
            self.next();
            let right = self.binary(strength)?;
            left = Expr::Binary(op, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, ScriptError> {
        let op = match self.peek() {
            Token::Punctuation("!") => Unary::Not,
            Token::Punctuation("-") => Unary::Minus,
            Token::Punctuation("+") => Unary::Plus,
            Token::Name(name) if name == "typeof" => Unary::Typeof,
            Token::Name(name) if name == "delete" => {
                self.next();
                let target = self.postfix()?;
                if !matches!(target, Expr::Member { .. }) || !is_place(&target) {
                    return Err(self.error("only a member can be deleted"));
                }
                return Ok(Expr::Delete(Box::new(target)));
            }
            _ => return self.postfix(),
        };
        self.next();
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(ScriptError::Depth);
        }
        let inner = self.unary()?;
        self.depth -= 1;
        Ok(Expr::Unary(op, Box::new(inner)))
    }

    fn postfix(&mut self) -> Result<Expr, ScriptError> {
        let mut expr = self.primary()?;
        let mut links = 0;
        loop {
            links += 1;
            if links > DEPTH_MAX {
                return Err(ScriptError::Depth);
            }
            let optional = self.accept("?.");
            if self.accept("[") {
                let key = Box::new(self.expression()?);
                self.expect("]")?;
                expr = Expr::Member { object: Box::new(expr), key, optional };
            } else if self.is("(") && !optional {
                let arguments = self.arguments()?;
                expr = Expr::Call { callee: Box::new(expr), arguments };
            } else if optional || self.accept(".") {
                let Token::Name(name) = self.next() else { return Err(self.error("expected a member's name")) };
                expr = Expr::Member { object: Box::new(expr), key: Box::new(Expr::Literal(name.into())), optional };
            } else {
                return Ok(expr);
            }
        }
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, ScriptError> {
        self.expect("(")?;
        let mut out = Vec::new();
        while !self.accept(")") {
            out.push(self.expression()?);
            if !self.accept(",") && !self.is(")") {
                return Err(self.error("expected , or )"));
            }
        }
        Ok(out)
    }

    fn primary(&mut self) -> Result<Expr, ScriptError> {
        let start = self.at;
        Ok(match self.next() {
            Token::Number(n) => Expr::Literal(match super::number(n) {
                super::Js::Json(value) => value,
                _ => Value::Null,
            }),
            Token::Text(text) => Expr::Literal(text.into()),
            Token::Template(parts) => {
                let parts: Result<Vec<Expr>, ScriptError> = parts
                    .into_iter()
                    .map(|part| match part {
                        Ok(text) => Ok(Expr::Literal(text.into())),
                        Err(source) => parse(&source),
                    })
                    .collect();
                Expr::Template(parts?)
            }
            Token::Regex(pattern, flags) => Expr::Literal(json!({REGEX: pattern, FLAGS: flags})),
            Token::Name(name) => match name.as_str() {
                "true" => Expr::Literal(true.into()),
                "false" => Expr::Literal(false.into()),
                "null" => Expr::Literal(Value::Null),
                "undefined" => Expr::Undefined,
                word if WORDS.contains(&word) => {
                    self.at = start;
                    return Err(self.error(format!("{word} is not supported here")));
                }
                _ => Expr::Name(name),
            },
            Token::Punctuation("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                inner
            }
            Token::Punctuation("[") => {
                let mut items = Vec::new();
                while !self.accept("]") {
                    let spread = self.accept("...");
                    items.push((spread, self.expression()?));
                    if !self.accept(",") && !self.is("]") {
                        return Err(self.error("expected , or ]"));
                    }
                }
                Expr::List(items)
            }
            Token::Punctuation("{") => {
                let mut members = Vec::new();
                while !self.accept("}") {
                    members.push(self.object_member()?);
                    if !self.accept(",") && !self.is("}") {
                        return Err(self.error("expected , or }"));
                    }
                }
                Expr::Object(members)
            }
            other => {
                self.at = start;
                return Err(self.error(match other {
                    Token::End => "the expression ends too early".to_owned(),
                    other => format!("unexpected {other:?}"),
                }));
            }
        })
    }

    fn object_member(&mut self) -> Result<(Option<Expr>, Expr), ScriptError> {
        if self.accept("...") {
            return Ok((None, self.expression()?));
        }
        let key = match self.next() {
            Token::Name(name) => {
                if !self.is(":") {
                    // `{name}`
                    return Ok((Some(Expr::Literal(name.as_str().into())), Expr::Name(name)));
                }
                Expr::Literal(name.into())
            }
            Token::Text(text) => Expr::Literal(text.into()),
            Token::Number(n) => Expr::Literal(n.to_string().into()),
            Token::Punctuation("[") => {
                let key = self.expression()?;
                self.expect("]")?;
                key
            }
            _ => return Err(self.error("expected a member's name")),
        };
        self.expect(":")?;
        Ok((Some(key), self.expression()?))
    }
}
