//! From text to nodes.

use serde_json::Value;

use super::{TemplateError, fail};

/// Blocks within blocks.
const MAX_DEPTH: usize = 64;

#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Action(usize, Pipeline),
    If(usize, Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    With(usize, Pipeline, Vec<Node>, Vec<Node>),
    /// Line, names of variables, what is ranged over, body, body when there is nothing.
    Range(usize, Vec<String>, Pipeline, Vec<Node>, Vec<Node>),
}

#[derive(Debug)]
pub(super) struct Pipeline {
    /// Name and whether it is declared here.
    pub variable: Option<(String, bool)>,
    pub commands: Vec<Vec<Operand>>,
}

#[derive(Debug)]
pub(super) enum Operand {
    Literal(Value),
    Dot(Vec<String>),
    Variable(String, Vec<String>),
    Group(Pipeline, Vec<String>),
    Function(String),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    /// `.a.b`; empty for the dot itself.
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Literal(Value),
    Open,
    /// With the fields taken of the group.
    Close(Vec<String>),
    Pipe,
    Comma,
    Declare,
    Assign,
}

enum Piece {
    Text(String),
    Action(usize, Vec<Token>),
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, TemplateError> {
    let pieces = pieces(text)?;
    let mut parser = Parser { pieces: pieces.into_iter().peekable(), depth: 0 };
    let (nodes, end) = parser.block()?;
    match end {
        Closing::Eof => Ok(nodes),
        Closing::End(line) | Closing::Else(line, _) => Err(fail(line, "unexpected {{ end }} or {{ else }}")),
    }
}

/// Cuts text and actions apart and trims what `{{-` and `-}}` ask for.
fn pieces(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    let mut line = 1;
    loop {
        let Some(start) = rest.find("{{") else {
            pieces.push(Piece::Text(if trim_next { rest.trim_start() } else { rest }.to_string()));
            return Ok(pieces);
        };
        let mut before = &rest[..start];
        line += before.matches('\n').count();
        let inner = &rest[start + 2..];
        let trim_before = inner.starts_with("- ") || inner.starts_with("-\n") || inner.starts_with("-\t");
        if trim_next {
            before = before.trim_start();
        }
        if trim_before {
            before = before.trim_end();
        }
        pieces.push(Piece::Text(before.to_string()));
        let body = if trim_before { &inner[1..] } else { inner };
        let length = action_length(body).ok_or_else(|| fail(line, "unclosed action or unterminated string"))?;
        let action = &body[..length];
        rest = &body[length + 2..];
        trim_next = action.ends_with(" -") || action.ends_with("\n-") || action.ends_with("\t-");
        let content = if trim_next { &action[..action.len() - 1] } else { action };
        let trimmed = content.trim();
        if !(trimmed.starts_with("/*") && trimmed.ends_with("*/")) {
            pieces.push(Piece::Action(line, tokens(line, content)?));
        }
        line += action.matches('\n').count();
    }
}

/// Bytes up to the closing braces that are not in a string or comment.
fn action_length(body: &str) -> Option<usize> {
    let bytes = body.as_bytes();
    if body.trim_start().starts_with("/*") {
        let comment = body.find("*/")?;
        return body[comment..].find("}}").map(|at| comment + at);
    }
    let mut index = 0;
    while index < bytes.len() {
        match bytes[index] {
            b'`' => index += body[index + 1..].find('`')? + 1,
            quote @ (b'"' | b'\'') => {
                index += 1;
                while *bytes.get(index)? != quote {
                    if bytes[index] == b'\n' {
                        return None;
                    }
                    index += if bytes[index] == b'\\' { 2 } else { 1 };
                }
            }
            b'}' if bytes.get(index + 1) == Some(&b'}') => return Some(index),
            _ => {}
        }
        index += 1;
    }
    None
}

fn tokens(line: usize, text: &str) -> Result<Vec<Token>, TemplateError> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let word = |at: &mut usize| {
        let start = *at;
        while *at < chars.len() && is_word(chars[*at]) {
            *at += 1;
        }
        chars[start..*at].iter().collect::<String>()
    };
    let fields = |at: &mut usize| {
        let mut fields = Vec::new();
        while *at + 1 < chars.len() && chars[*at] == '.' && is_word(chars[*at + 1]) {
            *at += 1;
            fields.push(word(at));
        }
        fields
    };
    while at < chars.len() {
        let c = chars[at];
        match c {
            _ if c.is_whitespace() => at += 1,
            '(' => {
                tokens.push(Token::Open);
                at += 1;
            }
            ')' => {
                at += 1;
                tokens.push(Token::Close(fields(&mut at)));
            }
            '|' => {
                tokens.push(Token::Pipe);
                at += 1;
            }
            ',' => {
                tokens.push(Token::Comma);
                at += 1;
            }
            ':' if chars.get(at + 1) == Some(&'=') => {
                tokens.push(Token::Declare);
                at += 2;
            }
            '=' => {
                tokens.push(Token::Assign);
                at += 1;
            }
            '.' => {
                let path = fields(&mut at);
                if path.is_empty() {
                    at += 1;
                }
                tokens.push(Token::Field(path));
            }
            '$' => {
                at += 1;
                let name = format!("${}", word(&mut at));
                let path = fields(&mut at);
                tokens.push(Token::Variable(name, path));
            }
            '`' => {
                let end = chars[at + 1..].iter().position(|c| *c == '`').map(|end| at + 1 + end);
                let Some(end) = end else { return Err(fail(line, "unterminated string")) };
                tokens.push(Token::Literal(Value::String(chars[at + 1..end].iter().collect())));
                at = end + 1;
            }
            '"' => {
                let (value, next) = quoted(line, &chars, at)?;
                tokens.push(Token::Literal(value));
                at = next;
            }
            _ if c.is_ascii_digit() || c == '-' && chars.get(at + 1).is_some_and(char::is_ascii_digit) => {
                let start = at;
                at += 1;
                while at < chars.len() && (is_word(chars[at]) || chars[at] == '.') {
                    at += 1;
                }
                let text: String = chars[start..at].iter().collect();
                let number = text.parse::<i64>().map(Value::from).or_else(|_| text.parse::<f64>().map(Value::from));
                tokens.push(Token::Literal(number.map_err(|_| fail(line, format!("bad number {text}")))?));
            }
            _ if is_word(c) => {
                let word = word(&mut at);
                tokens.push(match word.as_str() {
                    "true" => Token::Literal(Value::Bool(true)),
                    "false" => Token::Literal(Value::Bool(false)),
                    "nil" => Token::Literal(Value::Null),
                    _ => Token::Word(word),
                });
            }
            _ => return Err(fail(line, format!("unexpected character {c:?}"))),
        }
    }
    Ok(tokens)
}

fn quoted(line: usize, chars: &[char], start: usize) -> Result<(Value, usize), TemplateError> {
    let mut text = String::new();
    let mut at = start + 1;
    loop {
        match chars.get(at) {
            None => return Err(fail(line, "unterminated string")),
            Some('"') => return Ok((Value::String(text), at + 1)),
            Some('\\') => {
                at += 1;
                match chars.get(at) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some(c @ ('"' | '\\' | '\'')) => text.push(*c),
                    _ => return Err(fail(line, "unknown escape in a string")),
                }
            }
            Some(c) => text.push(*c),
        }
        at += 1;
    }
}

enum Closing {
    Eof,
    End(usize),
    Else(usize, Vec<Token>),
}

struct Parser {
    pieces: std::iter::Peekable<std::vec::IntoIter<Piece>>,
    depth: usize,
}

impl Parser {
    fn block(&mut self) -> Result<(Vec<Node>, Closing), TemplateError> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (line, tokens) = match piece {
                Piece::Text(text) => {
                    if !text.is_empty() {
                        nodes.push(Node::Text(text));
                    }
                    continue;
                }
                Piece::Action(line, tokens) => (line, tokens),
            };
            let keyword = match tokens.first() {
                Some(Token::Word(word)) => word.as_str(),
                _ => "",
            };
            match keyword {
                "end" => return Ok((nodes, Closing::End(line))),
                "else" => return Ok((nodes, Closing::Else(line, tokens[1..].to_vec()))),
                "if" => nodes.push(self.condition(line, &tokens[1..])?),
                "with" => {
                    let condition = pipeline(line, &tokens[1..])?;
                    let (body, otherwise) = self.body(line)?;
                    nodes.push(Node::With(line, condition, body, otherwise));
                }
                "range" => {
                    let (names, rest) = range_names(&tokens[1..]);
                    let over = pipeline(line, rest)?;
                    let (body, otherwise) = self.body(line)?;
                    nodes.push(Node::Range(line, names, over, body, otherwise));
                }
                "define" | "template" | "block" | "break" | "continue" => {
                    return Err(fail(line, format!("{keyword:?} is not supported here")));
                }
                _ => nodes.push(Node::Action(line, pipeline(line, &tokens)?)),
            }
        }
        Ok((nodes, Closing::Eof))
    }

    fn nested(&mut self, line: usize) -> Result<(Vec<Node>, Closing), TemplateError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(fail(line, format!("more than {MAX_DEPTH} blocks within each other")));
        }
        let result = self.block();
        self.depth -= 1;
        match result? {
            (_, Closing::Eof) => Err(fail(line, "unclosed block: {{ end }} is missing")),
            found => Ok(found),
        }
    }

    /// A body with an optional `else`.
    fn body(&mut self, line: usize) -> Result<(Vec<Node>, Vec<Node>), TemplateError> {
        let (body, end) = self.nested(line)?;
        match end {
            Closing::Else(line, rest) if rest.is_empty() => match self.nested(line)? {
                (otherwise, Closing::End(_)) => Ok((body, otherwise)),
                _ => Err(fail(line, "unexpected {{ else }}")),
            },
            Closing::Else(line, _) => Err(fail(line, "only {{ if }} takes {{ else if }}")),
            _ => Ok((body, Vec::new())),
        }
    }

    fn condition(&mut self, line: usize, tokens: &[Token]) -> Result<Node, TemplateError> {
        let mut condition = pipeline(line, tokens)?;
        let mut branches = Vec::new();
        loop {
            let (body, end) = self.nested(line)?;
            branches.push((condition, body));
            match end {
                Closing::Else(line, rest) if rest.is_empty() => match self.nested(line)? {
                    (otherwise, Closing::End(_)) => return Ok(Node::If(line, branches, otherwise)),
                    _ => return Err(fail(line, "unexpected {{ else }}")),
                },
                Closing::Else(line, rest) if rest[0] == Token::Word("if".into()) => {
                    condition = pipeline(line, &rest[1..])?;
                }
                Closing::Else(line, _) => return Err(fail(line, "unexpected words after else")),
                _ => return Ok(Node::If(line, branches, Vec::new())),
            }
        }
    }
}

/// `$v :=` and `$i, $v :=`.
fn range_names(tokens: &[Token]) -> (Vec<String>, &[Token]) {
    match tokens {
        [Token::Variable(value, _), Token::Declare, rest @ ..] => (vec![value.clone()], rest),
        [Token::Variable(index, _), Token::Comma, Token::Variable(value, _), Token::Declare, rest @ ..] => {
            (vec![index.clone(), value.clone()], rest)
        }
        _ => (Vec::new(), tokens),
    }
}

fn pipeline(line: usize, tokens: &[Token]) -> Result<Pipeline, TemplateError> {
    let mut at = 0;
    let pipeline = pipeline_at(line, tokens, &mut at, 0)?;
    if at < tokens.len() {
        return Err(fail(line, "unexpected )"));
    }
    Ok(pipeline)
}

fn pipeline_at(line: usize, tokens: &[Token], at: &mut usize, depth: usize) -> Result<Pipeline, TemplateError> {
    if depth > MAX_DEPTH {
        return Err(fail(line, "too many parentheses"));
    }
    let variable = match (&tokens[*at..], depth) {
        ([Token::Variable(name, path), sign @ (Token::Declare | Token::Assign), ..], 0) if path.is_empty() => {
            *at += 2;
            Some((name.clone(), *sign == Token::Declare))
        }
        _ => None,
    };
    let mut commands = vec![Vec::new()];
    while let Some(token) = tokens.get(*at) {
        if matches!(token, Token::Close(_)) {
            break;
        }
        *at += 1;
        let operand = match token {
            Token::Pipe => {
                commands.push(Vec::new());
                continue;
            }
            Token::Word(word) => Operand::Function(word.clone()),
            Token::Field(path) => Operand::Dot(path.clone()),
            Token::Variable(name, path) => Operand::Variable(name.clone(), path.clone()),
            Token::Literal(value) => Operand::Literal(value.clone()),
            Token::Open => {
                let inner = pipeline_at(line, tokens, at, depth + 1)?;
                let Some(Token::Close(path)) = tokens.get(*at) else { return Err(fail(line, "unclosed (")) };
                *at += 1;
                Operand::Group(inner, path.clone())
            }
            Token::Close(_) | Token::Comma | Token::Declare | Token::Assign => {
                return Err(fail(line, "unexpected sign in an action"));
            }
        };
        if let Some(command) = commands.last_mut() {
            command.push(operand);
        }
    }
    if commands.iter().any(Vec::is_empty) {
        return Err(fail(line, "missing value"));
    }
    Ok(Pipeline { variable, commands })
}
