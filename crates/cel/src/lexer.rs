//! Source text to tokens.
//!
//! Follows: the CEL language definition, section "Syntax".

use std::sync::Arc;

use crate::SyntaxError;
use crate::ast::{Literal, Position};

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Literal(Literal),
    Ident(Arc<str>),
    /// An operator or a bracket.
    Punct(&'static str),
    End,
}

/// Longest first, so that `<=` is not read as `<`.
const PUNCT: [&str; 26] = [
    "==", "!=", "<=", ">=", "&&", "||", "(", ")", "[", "]", "{", "}", ".", ",", "?", ":", "!", "-", "+", "*", "/", "%",
    "<", ">", "=", "in",
];

struct Lexer<'a> {
    chars: Vec<char>,
    at: usize,
    source: &'a str,
}

/// All tokens with their positions, the last being [`Token::End`].
pub fn tokens(source: &str) -> Result<Vec<(Token, Position)>, SyntaxError> {
    let mut lexer = Lexer { chars: source.chars().collect(), at: 0, source };
    let mut out = Vec::new();
    loop {
        lexer.skip_blank();
        let position = lexer.at as Position;
        let token = lexer.next()?;
        let end = token == Token::End;
        out.push((token, position));
        if end {
            return Ok(out);
        }
    }
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn error(&self, at: usize, message: impl Into<String>) -> SyntaxError {
        SyntaxError::new(self.source, at as Position, format!("Syntax error: {}", message.into()))
    }

    fn skip_blank(&mut self) {
        loop {
            if matches!(self.peek(0), ' ' | '\t' | '\r' | '\n' | '\u{c}') && self.at < self.chars.len() {
                self.at += 1;
            } else if self.peek(0) == '/' && self.peek(1) == '/' {
                while self.at < self.chars.len() && self.peek(0) != '\n' {
                    self.at += 1;
                }
            } else {
                return;
            }
        }
    }

    fn next(&mut self) -> Result<Token, SyntaxError> {
        if self.at >= self.chars.len() {
            return Ok(Token::End);
        }
        let c = self.peek(0);
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_ascii_digit()) {
            return self.number();
        }
        if let Some((raw, bytes, skip)) = self.string_prefix() {
            self.at += skip;
            return self.string(raw, bytes);
        }
        if c == '_' || c.is_ascii_alphabetic() {
            let start = self.at;
            while self.peek(0) == '_' || self.peek(0).is_ascii_alphanumeric() {
                self.at += 1;
            }
            let word: String = self.chars[start..self.at].iter().collect();
            return Ok(match word.as_str() {
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                "null" => Token::Literal(Literal::Null),
                "in" => Token::Punct("in"),
                _ => Token::Ident(word.into()),
            });
        }
        for punct in PUNCT {
            if punct.chars().enumerate().all(|(i, p)| self.peek(i) == p) && punct != "in" && punct != "=" {
                self.at += punct.len();
                return Ok(Token::Punct(punct));
            }
        }
        Err(self.error(self.at, format!("token recognition error at: '{c}'")))
    }

    /// Whether a string starts here: raw, bytes, and how many prefix characters there are.
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let bytes = matches!(self.peek(0), 'b' | 'B');
        let raw = matches!(self.peek(usize::from(bytes)), 'r' | 'R');
        let length = usize::from(bytes) + usize::from(raw);
        matches!(self.peek(length), '"' | '\'').then_some((raw, bytes, length))
    }

    fn number(&mut self) -> Result<Token, SyntaxError> {
        let start = self.at;
        let bad = |lexer: &Self, kind: &str| {
            let text: String = lexer.chars[start..lexer.at].iter().collect();
            SyntaxError::new(lexer.source, start as Position, format!("invalid {kind} literal: {text}"))
        };
        if self.peek(0) == '0' && self.peek(1) == 'x' && self.peek(2).is_ascii_hexdigit() {
            self.at += 2;
            while self.peek(0).is_ascii_hexdigit() {
                self.at += 1;
            }
            let digits: String = self.chars[start + 2..self.at].iter().collect();
            if matches!(self.peek(0), 'u' | 'U') {
                self.at += 1;
                let value = u64::from_str_radix(&digits, 16).map_err(|_| bad(self, "uint"))?;
                return Ok(Token::Literal(Literal::Uint(value)));
            }
            // Hexadecimal integers have no sign of their own; the parser joins `-` with the literal.
            let value = i64::from_str_radix(&digits, 16).map_err(|_| bad(self, "int"))?;
            return Ok(Token::Literal(Literal::Int(value)));
        }
        let mut double = false;
        while self.peek(0).is_ascii_digit() {
            self.at += 1;
        }
        if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
            double = true;
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
        }
        if matches!(self.peek(0), 'e' | 'E') {
            let sign = usize::from(matches!(self.peek(1), '+' | '-'));
            if self.peek(1 + sign).is_ascii_digit() {
                double = true;
                self.at += 1 + sign;
                while self.peek(0).is_ascii_digit() {
                    self.at += 1;
                }
            }
        }
        let text: String = self.chars[start..self.at].iter().collect();
        if double {
            let value = text.parse().map_err(|_| bad(self, "double"))?;
            return Ok(Token::Literal(Literal::Double(value)));
        }
        if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            let value = text.parse().map_err(|_| bad(self, "uint"))?;
            return Ok(Token::Literal(Literal::Uint(value)));
        }
        match text.parse::<i64>() {
            Ok(value) => Ok(Token::Literal(Literal::Int(value))),
            // The magnitude of the smallest integer is allowed after a minus only; the parser checks that.
            Err(_) if text == "9223372036854775808" => Ok(Token::Literal(Literal::Int(i64::MIN))),
            Err(_) => Err(bad(self, "int")),
        }
    }

    fn string(&mut self, raw: bool, bytes: bool) -> Result<Token, SyntaxError> {
        let start = self.at;
        let quote = self.peek(0);
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        self.at += if triple { 3 } else { 1 };
        let mut text = String::new();
        let mut data: Vec<u8> = Vec::new();
        loop {
            if self.at >= self.chars.len() || (!triple && matches!(self.peek(0), '\n' | '\r')) {
                return Err(self.error(
                    start,
                    format!(
                        "token recognition error at: '{}'",
                        self.chars[start..self.at.min(self.chars.len())].iter().collect::<String>()
                    ),
                ));
            }
            let c = self.peek(0);
            let closes = c == quote && (!triple || (self.peek(1) == quote && self.peek(2) == quote));
            if closes {
                self.at += if triple { 3 } else { 1 };
                break;
            }
            self.at += 1;
            if c == '\\' && !raw {
                self.escape(bytes, &mut text, &mut data)?;
            } else {
                text.push(c);
                data.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok(Token::Literal(if bytes { Literal::Bytes(data.into()) } else { Literal::String(text.into()) }))
    }

    fn escape(&mut self, bytes: bool, text: &mut String, data: &mut Vec<u8>) -> Result<(), SyntaxError> {
        let start = self.at - 1;
        let c = self.peek(0);
        self.at += 1;
        let simple = match c {
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            '\\' | '\'' | '"' | '`' | '?' => c,
            'x' | 'X' | 'u' | 'U' | '0'..='7' => {
                let (digits, radix) = match c {
                    'x' | 'X' => (2, 16),
                    'u' => (4, 16),
                    'U' => (8, 16),
                    _ => (3, 8),
                };
                if radix == 8 {
                    self.at -= 1;
                }
                let word: String = (0..digits).map(|i| self.peek(i)).collect();
                self.at += digits;
                let value = u32::from_str_radix(&word, radix).ok();
                let byte_escape = digits < 4;
                return match value {
                    Some(value) if bytes && byte_escape && value < 256 => {
                        data.push(value as u8);
                        Ok(())
                    }
                    Some(value) if !(bytes && !byte_escape) => match char::from_u32(value) {
                        Some(c) => {
                            text.push(c);
                            data.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                            Ok(())
                        }
                        None => Err(self.error(start, "invalid unicode code point")),
                    },
                    _ => Err(self.error(start, format!("unable to decode escape sequence \\{c}"))),
                };
            }
            _ => return Err(self.error(start, format!("token recognition error at: '\\{c}'"))),
        };
        text.push(simple);
        data.extend_from_slice(simple.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }
}
