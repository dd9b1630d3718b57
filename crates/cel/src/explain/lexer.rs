//! Source text to tokens as ANTLR's lexer sees it: longest match, and what cannot be read is told and passed over.

use std::ops::Range;

use crate::CompileIssue;
use crate::explain::grammar::*;

/// A token: its type and its characters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub ty: u8,
    pub start: usize,
    pub end: usize,
}

/// What one way of reading came to: where the longest match ended, and the character at which no match went on.
#[derive(Clone, Copy)]
struct Reading {
    end: Option<usize>,
    dead: usize,
}

/// All tokens but white space and comments, the last being the end; what could not be read, as issues and as places.
pub(super) fn tokens(chars: &[char]) -> (Vec<Token>, Vec<CompileIssue>, Vec<Range<usize>>) {
    let (mut tokens, mut issues, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = 0;
    while at < chars.len() {
        let mut best: Option<(usize, u8)> = None;
        let mut dead = at;
        for (ty, reading) in readings(chars, at) {
            dead = dead.max(reading.dead);
            if let Some(end) = reading.end
                && best.is_none_or(|(longest, of)| end > longest || (end == longest && ty < of))
            {
                best = Some((end, ty));
            }
        }
        match best {
            Some((end, ty)) => {
                if ty != HIDDEN {
                    tokens.push(Token { ty, start: at, end });
                }
                at = end;
            }
            None => {
                let after = (dead + 1).min(chars.len());
                let text: String = chars[at..after].iter().collect();
                let message = format!("Syntax error: token recognition error at: '{}'", escaped(&text));
                issues.push(CompileIssue { position: at as u32, message });
                dropped.push(at..after);
                at = after;
            }
        }
    }
    tokens.push(Token { ty: EOF, start: chars.len(), end: chars.len() });
    (tokens, issues, dropped)
}

/// White space as messages write it.
pub(super) fn escaped(text: &str) -> String {
    text.replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

/// Every way to read a token at `at`.
fn readings(chars: &[char], at: usize) -> Vec<(u8, Reading)> {
    let mut out = Vec::new();
    let peek = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let run =
        |from: usize, fits: fn(char) -> bool| (from..).find(|i| *i >= chars.len() || !fits(chars[*i])).unwrap_or(from);
    for (ty, literal) in LITERALS.iter().enumerate() {
        let matched = literal.chars().enumerate().take_while(|(i, c)| chars.get(at + i) == Some(c)).count();
        if matched > 0 && !literal.is_empty() {
            let whole = matched == literal.chars().count();
            out.push((ty as u8, Reading { end: whole.then_some(at + matched), dead: at + matched }));
        }
    }
    let some = |end: usize, from: usize| (end > from).then_some(end);
    let blank = run(at, |c| "\t \r\n\u{c}".contains(c));
    out.push((HIDDEN, Reading { end: some(blank, at), dead: blank }));
    if peek(at) == '/' && peek(at + 1) == '/' {
        let end = run(at, |c| c != '\n');
        out.push((HIDDEN, Reading { end: Some(end), dead: end }));
    }
    let digits = run(at, |c| c.is_ascii_digit());
    if digits > at {
        out.push((NUM_INT, Reading { end: Some(digits), dead: digits }));
        let unsigned = matches!(peek(digits), 'u' | 'U');
        let end = digits + usize::from(unsigned);
        out.push((NUM_UINT, Reading { end: unsigned.then_some(end), dead: end }));
        out.push((NUM_FLOAT, exponent(chars, digits, None)));
    }
    if peek(digits) == '.' {
        let fraction = run(digits + 1, |c| c.is_ascii_digit());
        out.push(match some(fraction, digits + 1) {
            None => (NUM_FLOAT, Reading { end: None, dead: digits + 1 }),
            end => (NUM_FLOAT, exponent(chars, fraction, end)),
        });
    }
    if peek(at) == '0' && peek(at + 1) == 'x' {
        let end = run(at + 2, |c| c.is_ascii_hexdigit());
        let whole = some(end, at + 2);
        out.push((NUM_INT, Reading { end: whole, dead: end }));
        let unsigned = whole.is_some() && matches!(peek(end), 'u' | 'U');
        let after = end + usize::from(unsigned);
        out.push((NUM_UINT, Reading { end: unsigned.then_some(after), dead: after }));
    }
    let is_word = |c: char| c == '_' || c.is_ascii_alphanumeric();
    if peek(at) == '_' || peek(at).is_ascii_alphabetic() {
        let end = run(at, is_word);
        out.push((IDENTIFIER, Reading { end: Some(end), dead: end }));
    }
    if peek(at) == '`' {
        let end = run(at + 1, |c| c.is_ascii_alphanumeric() || "_.-/ ".contains(c));
        let closed = end > at + 1 && peek(end) == '`';
        let after = end + usize::from(closed);
        out.push((ESC_IDENTIFIER, Reading { end: closed.then_some(after), dead: after }));
    }
    strings(chars, at, STRING, &mut out);
    if matches!(peek(at), 'b' | 'B') {
        out.push((BYTES, Reading { end: None, dead: at + 1 }));
        strings(chars, at + 1, BYTES, &mut out);
    }
    out
}

/// The exponent of a number whose digits end at `from`; `end` when the number may do without.
fn exponent(chars: &[char], from: usize, end: Option<usize>) -> Reading {
    let is = |i: usize, set: &str| chars.get(i).is_some_and(|c| set.contains(*c));
    if !is(from, "eE") {
        return Reading { end, dead: from };
    }
    let digits = from + 1 + usize::from(is(from + 1, "+-"));
    let after = (digits..).find(|i| !chars.get(*i).is_some_and(char::is_ascii_digit)).unwrap_or(digits);
    Reading { end: if after > digits { Some(after) } else { end }, dead: after }
}

/// Strings at `at`, with and without the mark for raw ones.
fn strings(chars: &[char], at: usize, ty: u8, out: &mut Vec<(u8, Reading)>) {
    let (raw, open) = match chars.get(at) {
        Some('r' | 'R') => (true, at + 1),
        _ => (false, at),
    };
    if raw {
        out.push((ty, Reading { end: None, dead: open }));
    }
    let Some(quote @ ('"' | '\'')) = chars.get(open).copied() else { return };
    let is_quote = |i: usize| chars.get(i) == Some(&quote);
    out.push((ty, body(chars, open + 1, quote, raw, false)));
    let triple = (open..open + 3).take_while(|i| is_quote(*i)).count();
    if triple == 3 {
        out.push((ty, body(chars, open + 3, quote, raw, true)));
    } else {
        out.push((ty, Reading { end: None, dead: open + triple }));
    }
}

fn body(chars: &[char], from: usize, quote: char, raw: bool, triple: bool) -> Reading {
    let mut at = from;
    loop {
        match chars.get(at).copied() {
            None => return Reading { end: None, dead: at },
            Some(c) if c == quote && !triple => return Reading { end: Some(at + 1), dead: at + 1 },
            Some(c) if c == quote && (at..at + 3).all(|i| chars.get(i) == Some(&quote)) => {
                return Reading { end: Some(at + 3), dead: at + 3 };
            }
            Some('\n' | '\r') if !triple => return Reading { end: None, dead: at },
            Some('\\') if !raw => match escape(chars, at + 1) {
                Ok(after) => at = after,
                Err(dead) => return Reading { end: None, dead },
            },
            Some(_) => at += 1,
        }
    }
}

/// Where an escape sequence ends, or the character that does not belong to any.
fn escape(chars: &[char], at: usize) -> Result<usize, usize> {
    let digits = |from: usize, count: usize, fits: fn(&char) -> bool| {
        let wrong = (from..from + count).find(|i| !chars.get(*i).is_some_and(fits));
        wrong.map_or(Ok(from + count), Err)
    };
    match chars.get(at) {
        Some('a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '\\' | '?' | '`') => Ok(at + 1),
        Some('x' | 'X') => digits(at + 1, 2, char::is_ascii_hexdigit),
        Some('u') => digits(at + 1, 4, char::is_ascii_hexdigit),
        Some('U') => digits(at + 1, 8, char::is_ascii_hexdigit),
        Some('0'..='3') => digits(at + 1, 2, |c| ('0'..='7').contains(c)),
        _ => Err(at),
    }
}
