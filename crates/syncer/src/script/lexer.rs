//! Tokens of an expression.

use super::ScriptError;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Number(f64),
    Text(String),
    /// Parts of a template string: texts, and sources of the expressions between them.
    Template(Vec<Result<String, String>>),
    /// Pattern and flags.
    Regex(String, String),
    Name(String),
    Punctuation(&'static str),
    End,
}

impl Token {
    /// Whether nothing is missing after it for another statement to begin.
    pub fn ends_statement(&self) -> bool {
        matches!(self, Token::Punctuation(";"))
    }
}

/// Longest first.
const PUNCTUATION: [&str; 40] = [
    "...", "===", "!==", "??=", "||=", "&&=", "+=", "-=", "=>", "==", "!=", "<=", ">=", "&&", "||", "??", "?.", "(",
    ")", "[", "]", "{", "}", ",", ".", "?", ":", "+", "-", "*", "/", "%", "<", ">", "!", ";", "=", "&", "|", "^",
];

fn error(at: usize, message: impl Into<String>) -> ScriptError {
    ScriptError::Syntax { at, message: message.into() }
}

/// All tokens with their positions, the last is [`Token::End`].
pub fn tokens(text: &str) -> Result<Vec<(usize, Token)>, ScriptError> {
    let chars: Vec<char> = text.chars().collect();
    let mut out: Vec<(usize, Token)> = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        let start = i;
        let pair = (c, chars.get(i + 1).copied());
        if c.is_whitespace() {
            i += 1;
        } else if pair == ('/', Some('/')) {
            i = chars[i..].iter().position(|c| *c == '\n').map_or(chars.len(), |n| i + n);
        } else if pair == ('/', Some('*')) {
            let end = chars[i + 2..].windows(2).position(|w| w == ['*', '/']);
            i += end.ok_or_else(|| error(start, "the comment is not closed"))? + 4;
        } else if c.is_ascii_digit() {
            while i < chars.len() && (chars[i].is_ascii_alphanumeric() || chars[i] == '.') {
                i += 1;
            }
            let word: String = chars[start..i].iter().collect();
            out.push((
                start,
                Token::Number(word.parse().map_err(|_| error(start, format!("{word} is not a number")))?),
            ));
        } else if c == '"' || c == '\'' {
            let (value, next) = quoted(&chars, i)?;
            out.push((start, Token::Text(value)));
            i = next;
        } else if c == '`' {
            let (parts, next) = template(&chars, i)?;
            out.push((start, Token::Template(parts)));
            i = next;
        } else if c.is_alphabetic() || c == '_' || c == '$' {
            while i < chars.len() && (chars[i].is_alphanumeric() || chars[i] == '_' || chars[i] == '$') {
                i += 1;
            }
            out.push((start, Token::Name(chars[start..i].iter().collect())));
        } else if c == '/' && regex_may_follow(out.last().map(|(_, t)| t)) {
            let (pattern, flags, next) = regex(&chars, i)?;
            out.push((start, Token::Regex(pattern, flags)));
            i = next;
        } else {
            let rest: String = chars[i..chars.len().min(i + 3)].iter().collect();
            let Some(found) = PUNCTUATION.into_iter().find(|p| rest.starts_with(p)) else {
                return Err(error(i, format!("{c:?} has no meaning here")));
            };
            // `?.5` is a condition and a number.
            i += found.len();
            out.push((start, Token::Punctuation(found)));
        }
    }
    out.push((chars.len(), Token::End));
    Ok(out)
}

fn regex_may_follow(last: Option<&Token>) -> bool {
    match last {
        None => true,
        Some(Token::Punctuation(p)) => !matches!(*p, ")" | "]" | "}"),
        Some(_) => false,
    }
}

fn escape(chars: &[char], at: usize) -> Result<(String, usize), ScriptError> {
    let unfinished = || error(at, "unfinished escape");
    let c = *chars.get(at + 1).ok_or_else(unfinished)?;
    let simple = |c: char| Ok((c.to_string(), at + 2));
    match c {
        'n' => simple('\n'),
        't' => simple('\t'),
        'r' => simple('\r'),
        '0' => simple('\0'),
        'u' => {
            let digits: String = chars.get(at + 2..at + 6).ok_or_else(unfinished)?.iter().collect();
            let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
            Ok((code.ok_or_else(|| error(at, "not a character"))?.to_string(), at + 6))
        }
        other => simple(other),
    }
}

fn quoted(chars: &[char], start: usize) -> Result<(String, usize), ScriptError> {
    let mut out = String::new();
    let mut i = start + 1;
    while let Some(&c) = chars.get(i) {
        if c == chars[start] {
            return Ok((out, i + 1));
        }
        if c == '\\' {
            let (text, next) = escape(chars, i)?;
            out.push_str(&text);
            i = next;
        } else {
            out.push(c);
            i += 1;
        }
    }
    Err(error(start, "the string is not closed"))
}

fn template(chars: &[char], start: usize) -> Result<(Vec<Result<String, String>>, usize), ScriptError> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut i = start + 1;
    while let Some(&c) = chars.get(i) {
        if c == '`' {
            parts.push(Ok(text));
            return Ok((parts, i + 1));
        }
        if c == '\\' {
            let (more, next) = escape(chars, i)?;
            text.push_str(&more);
            i = next;
        } else if c == '$' && chars.get(i + 1) == Some(&'{') {
            let mut depth = 1;
            let begin = i + 2;
            i = begin;
            while depth > 0 {
                match chars.get(i) {
                    None => return Err(error(start, "the template is not closed")),
                    Some('{') => depth += 1,
                    Some('}') => depth -= 1,
                    _ => {}
                }
                i += 1;
            }
            parts.push(Ok(std::mem::take(&mut text)));
            parts.push(Err(chars[begin..i - 1].iter().collect()));
        } else {
            text.push(c);
            i += 1;
        }
    }
    Err(error(start, "the template is not closed"))
}

fn regex(chars: &[char], start: usize) -> Result<(String, String, usize), ScriptError> {
    let mut pattern = String::new();
    let mut class = false;
    let mut i = start + 1;
    loop {
        match chars.get(i) {
            None | Some('\n') => return Err(error(start, "the regular expression is not closed")),
            Some('\\') => {
                pattern.push('\\');
                pattern.extend(chars.get(i + 1));
                i += 2;
                continue;
            }
            Some('/') if !class => break,
            Some(c) => {
                class = match c {
                    '[' => true,
                    ']' => false,
                    _ => class,
                };
                pattern.push(*c);
            }
        }
        i += 1;
    }
    i += 1;
    let begin = i;
    while chars.get(i).is_some_and(char::is_ascii_alphabetic) {
        i += 1;
    }
    Ok((pattern, chars[begin..i].iter().collect(), i))
}
