//! Tokens to syntax tree: recursive descent by precedence, macros expanded by [`crate::macros`] on the way.
//!
//! Limits: [`SOURCE_CHARS_MAX`] characters, [`DEPTH_MAX`] levels of nesting, so that no input exhausts the stack.
//!
//! Follows: the CEL language definition, section "Syntax"; cel-go's parser for limits.

use std::sync::Arc;

use crate::ast::{Entry, Expr, ExprKind, Literal, Position, op};
use crate::lexer::{Token, tokens};
use crate::macros;
use crate::{NOWHERE, SyntaxError};

/// cel-go's default `ExpressionSizeCodePointLimit`.
pub const SOURCE_CHARS_MAX: usize = 100_000;
/// cel-go allows 250 levels of its grammar's recursion; ours counts nested expressions.
pub const DEPTH_MAX: usize = 100;

/// Parses one expression; with `has_bindings` it may use `cel.bind`.
pub fn parse(source: &str, has_bindings: bool) -> Result<Expr, SyntaxError> {
    if source.chars().count() > SOURCE_CHARS_MAX {
        let message = format!(
            "expression code point size exceeds limit: size: {}, limit {SOURCE_CHARS_MAX}",
            source.chars().count()
        );
        return Err(SyntaxError::new("", NOWHERE, message));
    }
    let mut parser = Parser { source, tokens: tokens(source)?, at: 0, next_id: 1, depth: 0, has_bindings };
    let expr = parser.expr()?;
    match parser.peek() {
        Token::End => Ok(expr),
        other => Err(parser.unexpected(&other.clone())),
    }
}

/// Builds expressions with fresh ids at one place of the source; macros use it.
pub(crate) struct Parser<'a> {
    source: &'a str,
    tokens: Vec<(Token, Position)>,
    at: usize,
    next_id: u32,
    depth: usize,
    pub(crate) has_bindings: bool,
}

type Result<T, E = SyntaxError> = std::result::Result<T, E>;

fn describe(token: &Token) -> String {
    match token {
        Token::End => "<EOF>".into(),
        Token::Punct(p) => (*p).into(),
        Token::Ident(i) => i.to_string(),
        Token::Literal(Literal::String(s)) => format!("\"{s}\""),
        Token::Literal(Literal::Int(i)) => i.to_string(),
        Token::Literal(Literal::Uint(u)) => format!("{u}u"),
        Token::Literal(Literal::Double(d)) => d.to_string(),
        Token::Literal(Literal::Bool(b)) => b.to_string(),
        Token::Literal(Literal::Null) => "null".into(),
        Token::Literal(Literal::Bytes(_)) => "bytes".into(),
    }
}

/// Words that the grammar keeps for itself.
pub(crate) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

impl<'a> Parser<'a> {
    /// A parser that only makes expressions.
    pub(crate) fn of_nothing(source: &'a str, has_bindings: bool) -> Parser<'a> {
        Parser { source, tokens: Vec::new(), at: 0, next_id: 1, depth: 0, has_bindings }
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn position(&self) -> Position {
        self.tokens[self.at].1
    }

    fn advance(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    fn accept(&mut self, punct: &str) -> bool {
        let hit = matches!(self.peek(), Token::Punct(p) if *p == punct);
        if hit {
            self.at += 1;
        }
        hit
    }

    fn expect(&mut self, punct: &str) -> Result<()> {
        if self.accept(punct) {
            return Ok(());
        }
        let found = describe(self.peek());
        Err(self.error(self.position(), format!("Syntax error: mismatched input '{found}' expecting '{punct}'")))
    }

    pub(crate) fn error(&self, position: Position, message: impl Into<String>) -> SyntaxError {
        SyntaxError::new(self.source, position, message)
    }

    fn unexpected(&self, token: &Token) -> SyntaxError {
        let found = describe(token);
        self.error(self.position(), format!("Syntax error: mismatched input '{found}' expecting <EOF>"))
    }

    pub(crate) fn make(&mut self, position: Position, kind: ExprKind) -> Expr {
        let id = self.next_id;
        self.next_id += 1;
        Expr { id, position, kind }
    }

    pub(crate) fn call(&mut self, position: Position, function: &str, args: Vec<Expr>) -> Expr {
        self.make(position, ExprKind::Call { target: None, function: function.into(), args })
    }

    pub(crate) fn ident(&mut self, position: Position, name: &str) -> Expr {
        self.make(position, ExprKind::Ident(name.into()))
    }

    pub(crate) fn literal(&mut self, position: Position, literal: Literal) -> Expr {
        self.make(position, ExprKind::Literal(literal))
    }

    fn expr(&mut self) -> Result<Expr> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error(self.position(), format!("expression recursion limit exceeded: {DEPTH_MAX}")));
        }
        let result = self.conditional();
        self.depth -= 1;
        result
    }

    fn conditional(&mut self) -> Result<Expr> {
        let test = self.or()?;
        let position = self.position();
        if !self.accept("?") {
            return Ok(test);
        }
        let yes = self.or()?;
        self.expect(":")?;
        let no = self.expr()?;
        Ok(self.call(position, op::CONDITIONAL, vec![test, yes, no]))
    }

    fn or(&mut self) -> Result<Expr> {
        let mut terms = vec![self.and()?];
        let mut places = Vec::new();
        while matches!(self.peek(), Token::Punct("||")) {
            places.push(self.position());
            self.at += 1;
            terms.push(self.and()?);
        }
        Ok(self.balance(op::OR, terms, &places))
    }

    fn and(&mut self) -> Result<Expr> {
        let mut terms = vec![self.relation()?];
        let mut places = Vec::new();
        while matches!(self.peek(), Token::Punct("&&")) {
            places.push(self.position());
            self.at += 1;
            terms.push(self.relation()?);
        }
        Ok(self.balance(op::AND, terms, &places))
    }

    /// Long chains of `&&` become a balanced tree, so that evaluation nests by the logarithm of their length.
    fn balance(&mut self, function: &str, mut terms: Vec<Expr>, places: &[Position]) -> Expr {
        if terms.len() == 1 {
            return terms.swap_remove(0);
        }
        let middle = terms.len() / 2;
        let right = terms.split_off(middle);
        let left = self.balance(function, terms, &places[..middle - 1]);
        let right = self.balance(function, right, &places[middle..]);
        self.call(places[middle - 1], function, vec![left, right])
    }

    fn relation(&mut self) -> Result<Expr> {
        let operator = |token: &Token| match token {
            Token::Punct("<") => Some(op::LESS),
            Token::Punct("<=") => Some(op::LESS_EQUALS),
            Token::Punct(">") => Some(op::GREATER),
            Token::Punct(">=") => Some(op::GREATER_EQUALS),
            Token::Punct("==") => Some(op::EQUALS),
            Token::Punct("!=") => Some(op::NOT_EQUALS),
            Token::Punct("in") => Some(op::IN),
            _ => None,
        };
        self.left_associative(operator, |p| {
            let sum = |token: &Token| match token {
                Token::Punct("+") => Some(op::ADD),
                Token::Punct("-") => Some(op::SUBTRACT),
                _ => None,
            };
            p.left_associative(sum, |p| {
                let product = |token: &Token| match token {
                    Token::Punct("*") => Some(op::MULTIPLY),
                    Token::Punct("/") => Some(op::DIVIDE),
                    Token::Punct("%") => Some(op::MODULO),
                    _ => None,
                };
                p.left_associative(product, Parser::unary)
            })
        })
    }

    fn left_associative(
        &mut self,
        operator: impl Fn(&Token) -> Option<&'static str>,
        operand: impl Fn(&mut Self) -> Result<Expr>,
    ) -> Result<Expr> {
        let mut left = operand(self)?;
        let mut length = 0;
        while let Some(function) = operator(self.peek()) {
            let position = self.position();
            length += 1;
            if length > DEPTH_MAX {
                return Err(self.error(position, format!("expression recursion limit exceeded: {DEPTH_MAX}")));
            }
            self.at += 1;
            let right = operand(self)?;
            left = self.call(position, function, vec![left, right]);
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr> {
        let position = self.position();
        let mut nots = 0;
        while self.accept("!") {
            nots += 1;
        }
        if nots > 0 {
            let operand = self.member()?;
            // An even number of `!` is none, as cel-go has it.
            return Ok(if nots % 2 == 1 { self.call(position, op::NOT, vec![operand]) } else { operand });
        }
        let mut minuses = 0;
        while self.accept("-") {
            minuses += 1;
        }
        if minuses == 0 {
            return self.member();
        }
        let negative = minuses % 2 == 1;
        let literal = match self.peek() {
            Token::Literal(Literal::Int(i)) if negative => Some(Literal::Int(i.wrapping_neg())),
            Token::Literal(Literal::Double(d)) if negative => Some(Literal::Double(-d)),
            _ => None,
        };
        if let Some(literal) = literal {
            self.at += 1;
            let literal = self.literal(position, literal);
            return self.suffixes(literal);
        }
        let operand = self.member()?;
        Ok(if negative { self.call(position, op::NEGATE, vec![operand]) } else { operand })
    }

    fn member(&mut self) -> Result<Expr> {
        let primary = self.primary()?;
        self.suffixes(primary)
    }

    fn suffixes(&mut self, mut expr: Expr) -> Result<Expr> {
        let mut length = 0;
        loop {
            length += 1;
            if length > DEPTH_MAX {
                return Err(self.error(self.position(), format!("expression recursion limit exceeded: {DEPTH_MAX}")));
            }
            let position = self.position();
            if self.accept(".") {
                let optional = self.accept("?");
                let place = self.position();
                let field: Arc<str> = match self.advance() {
                    Token::Ident(name) => name,
                    other => {
                        let found = if matches!(other, Token::End) { String::new() } else { describe(&other) };
                        let message = format!("Syntax error: no viable alternative at input '.{found}'");
                        return Err(self.error(place, message));
                    }
                };
                if optional {
                    let name = self.literal(position, Literal::String(field));
                    expr = self.call(position, op::OPT_SELECT, vec![expr, name]);
                } else if matches!(self.peek(), Token::Punct("(")) {
                    // A call is where its arguments begin.
                    let place = self.position();
                    self.at += 1;
                    let args = self.arguments(")")?;
                    expr = match macros::expand_member(self, place, &expr, &field, &args)? {
                        Some(expanded) => expanded,
                        None => {
                            let target = Some(Box::new(expr));
                            self.make(place, ExprKind::Call { target, function: field, args })
                        }
                    };
                } else if matches!(self.peek(), Token::Punct("{")) && qualified_name(&expr).is_some() {
                    let name = format!("{}.{field}", qualified_name(&expr).unwrap_or_default());
                    let position = self.position();
                    self.at += 1;
                    expr = self.message(position, &name)?;
                } else {
                    expr = self.make(position, ExprKind::Select { operand: Box::new(expr), field, test: false });
                }
            } else if self.accept("[") {
                let optional = self.accept("?");
                let index = self.expr()?;
                self.expect("]")?;
                let function = if optional { op::OPT_INDEX } else { op::INDEX };
                expr = self.call(position, function, vec![expr, index]);
            } else {
                return Ok(expr);
            }
        }
    }

    fn arguments(&mut self, close: &str) -> Result<Vec<Expr>> {
        let mut args = Vec::new();
        if self.accept(close) {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if self.accept(close) {
                return Ok(args);
            }
            self.expect(",")?;
        }
    }

    fn primary(&mut self) -> Result<Expr> {
        let position = self.position();
        match self.advance() {
            Token::Literal(Literal::Int(i64::MIN)) => Err(self.error(position, "invalid int literal")),
            Token::Literal(literal) => Ok(self.literal(position, literal)),
            Token::Punct("(") => {
                let expr = self.expr()?;
                self.expect(")")?;
                Ok(expr)
            }
            // A sign belongs to the number after it where no operation can begin.
            Token::Punct("-") => match self.advance() {
                Token::Literal(Literal::Int(i)) => Ok(self.literal(position, Literal::Int(i.wrapping_neg()))),
                Token::Literal(Literal::Double(d)) => Ok(self.literal(position, Literal::Double(-d))),
                other => Err(self.unexpected(&other)),
            },
            Token::Punct("[") => self.list(position),
            Token::Punct("{") => self.map(position),
            Token::Punct(".") => match self.advance() {
                Token::Ident(name) => self.name(position + 1, format!(".{name}").into()),
                other => {
                    let found = describe(&other);
                    Err(self.error(position, format!("Syntax error: no viable alternative at input '.{found}'")))
                }
            },
            Token::Ident(name) => self.name(position, name),
            other => {
                let found = describe(&other);
                let message = format!(
                    "Syntax error: mismatched input '{found}' expecting {{'[', '{{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}}"
                );
                Err(self.error(position, message))
            }
        }
    }

    fn name(&mut self, position: Position, name: Arc<str>) -> Result<Expr> {
        let bare = name.trim_start_matches('.');
        if RESERVED.contains(&bare) {
            return Err(self.error(position, format!("reserved identifier: {bare}")));
        }
        let place = self.position();
        if self.accept("(") {
            let position = place;
            let args = self.arguments(")")?;
            return match macros::expand_global(self, position, &name, &args)? {
                Some(expanded) => Ok(expanded),
                None => Ok(self.make(position, ExprKind::Call { target: None, function: name, args })),
            };
        }
        let place = self.position();
        if self.accept("{") {
            return self.message(place, &name);
        }
        Ok(self.ident(position, &name))
    }

    /// A literal may hold nothing but a comma.
    fn lone_comma(&mut self, close: &str) {
        let closes = matches!(self.tokens.get(self.at + 1), Some((Token::Punct(p), _)) if *p == close);
        if closes {
            self.accept(",");
        }
    }

    fn list(&mut self, position: Position) -> Result<Expr> {
        let mut elements = Vec::new();
        let mut optional = Vec::new();
        self.lone_comma("]");
        while !self.accept("]") {
            if self.accept("?") {
                optional.push(elements.len());
            }
            elements.push(self.expr()?);
            if !matches!(self.peek(), Token::Punct("]")) {
                self.expect(",")?;
            }
        }
        Ok(self.make(position, ExprKind::List { elements, optional }))
    }

    fn map(&mut self, position: Position) -> Result<Expr> {
        let mut entries = Vec::new();
        self.lone_comma("}");
        while !self.accept("}") {
            let optional = self.accept("?");
            let key = self.expr()?;
            let position = self.position();
            self.expect(":")?;
            let value = self.expr()?;
            entries.push(Entry { position, key, value, optional });
            if !matches!(self.peek(), Token::Punct("}")) {
                self.expect(",")?;
            }
        }
        Ok(self.make(position, ExprKind::Map { entries }))
    }

    fn message(&mut self, position: Position, name: &str) -> Result<Expr> {
        let mut fields = Vec::new();
        self.lone_comma("}");
        while !self.accept("}") {
            let optional = self.accept("?");
            let place = self.position();
            let key = match self.advance() {
                Token::Ident(name) => name,
                other => {
                    let found = describe(&other);
                    return Err(
                        self.error(place, format!("Syntax error: mismatched input '{found}' expecting IDENTIFIER"))
                    );
                }
            };
            let colon = self.position();
            self.expect(":")?;
            let value = self.expr()?;
            fields.push(Entry { position: colon, key, value, optional });
            if !matches!(self.peek(), Token::Punct("}")) {
                self.expect(",")?;
            }
        }
        Ok(self.make(position, ExprKind::Message { name: name.into(), fields }))
    }
}

/// `a.b.c` as text, when the expression is nothing else.
pub(crate) fn qualified_name(expr: &Expr) -> Option<String> {
    match &expr.kind {
        ExprKind::Ident(name) => Some(name.to_string()),
        ExprKind::Select { operand, field, test: false } => Some(format!("{}.{field}", qualified_name(operand)?)),
        _ => None,
    }
}
