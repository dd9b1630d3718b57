//! The shell's language, the small part of it that is understood: words with quotes and variables, `;`, `&&`, `||`, `|`,
//! `>` and `>>`.

/// What stands between two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joint {
    Then,
    And,
    Or,
}

/// A program with its words, and where its output goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Simple {
    pub words: Vec<String>,
    /// File, and whether it is appended to.
    pub output: Option<(String, bool)>,
    pub errors_to_output: bool,
    pub errors_dropped: bool,
}

/// Programs joined by `|`, and what comes before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline {
    pub joint: Joint,
    pub commands: Vec<Simple>,
}

/// What a line is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Operator(&'static str),
}

const OPERATORS: [&str; 10] = ["2>/dev/null", "2>&1", "&&", "||", ">>", "|", ";", ">", "\n", "&"];

/// The parts of a script between `;`, `&&`, `||` and line ends. They are taken apart one by one, because each may set
/// variables that the next one uses.
pub fn split(script: &str) -> Vec<(Joint, &str)> {
    let mut parts = Vec::new();
    let (mut joint, mut start, mut at) = (Joint::Then, 0, 0);
    let mut quote: Option<char> = None;
    while let Some(c) = script[at..].chars().next() {
        let rest = &script[at..];
        let operator =
            ["&&", "||", ";", "\n"].into_iter().find(|operator| quote.is_none() && rest.starts_with(operator));
        if let Some(operator) = operator {
            parts.push((joint, &script[start..at]));
            joint = match operator {
                "&&" => Joint::And,
                "||" => Joint::Or,
                _ => Joint::Then,
            };
            at += operator.len();
            start = at;
            continue;
        }
        match (quote, c) {
            (Some('\''), '\\') => {}
            // What follows is no quote.
            (_, '\\') => at += rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
        at += c.len_utf8();
    }
    parts.push((joint, &script[start..]));
    parts
}

/// Takes a part of a script apart. `value` gives the text of a variable.
pub fn parse(line: &str, value: &dyn Fn(&str) -> String) -> Result<Vec<Pipeline>, String> {
    let mut pipelines = Vec::new();
    let mut joint = Joint::Then;
    let mut commands = Vec::new();
    let mut current = Simple::default();
    let mut tokens = tokens(line, value)?.into_iter();
    let mut finish = |commands: &mut Vec<Simple>, current: &mut Simple, joint: Joint| -> Result<(), String> {
        if !current.words.is_empty() {
            commands.push(std::mem::take(current));
        } else if !commands.is_empty() {
            return Err("syntax error: unexpected end of a pipe".to_owned());
        }
        if !commands.is_empty() {
            pipelines.push(Pipeline { joint, commands: std::mem::take(commands) });
        }
        Ok(())
    };
    while let Some(token) = tokens.next() {
        match token {
            Token::Word(word) => current.words.push(word),
            Token::Operator("|") if current.words.is_empty() => {
                return Err("syntax error near unexpected token `|'".to_owned());
            }
            Token::Operator("|") => commands.push(std::mem::take(&mut current)),
            Token::Operator("2>&1") => current.errors_to_output = true,
            Token::Operator("2>/dev/null") => current.errors_dropped = true,
            Token::Operator(operator @ (">" | ">>")) => match tokens.next() {
                Some(Token::Word(file)) => current.output = Some((file, operator == ">>")),
                _ => return Err(format!("syntax error near unexpected token `{operator}'")),
            },
            Token::Operator("&") => return Err("programs in the background are not simulated".to_owned()),
            Token::Operator(operator) => {
                if matches!(operator, "&&" | "||") && current.words.is_empty() {
                    return Err(format!("syntax error near unexpected token `{operator}'"));
                }
                finish(&mut commands, &mut current, joint)?;
                joint = match operator {
                    "&&" => Joint::And,
                    "||" => Joint::Or,
                    _ => Joint::Then,
                };
            }
        }
    }
    finish(&mut commands, &mut current, joint)?;
    Ok(pipelines)
}

fn tokens(line: &str, value: &dyn Fn(&str) -> String) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let at_start = word.is_none();
        if let Some(operator) = OPERATORS.iter().find(|operator| rest.starts_with(**operator))
            && (at_start || !operator.starts_with('2'))
        {
            tokens.extend(word.take().map(Token::Word));
            tokens.push(Token::Operator(operator));
            rest = &rest[operator.len()..];
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            ' ' | '\t' => tokens.extend(word.take().map(Token::Word)),
            '#' if at_start => rest = rest.find('\n').map_or("", |end| &rest[end..]),
            '\'' => {
                let end = rest.find('\'').ok_or("syntax error: unterminated quoted string")?;
                word.get_or_insert_default().push_str(&rest[..end]);
                rest = &rest[end + 1..];
            }
            '"' => rest = double_quoted(rest, word.get_or_insert_default(), value)?,
            '\\' => {
                if let Some(next) = rest.chars().next() {
                    rest = &rest[next.len_utf8()..];
                    if next != '\n' {
                        word.get_or_insert_default().push(next);
                    }
                }
            }
            '$' => {
                let (text, after) = variable(rest, value)?;
                rest = after;
                // Without quotes a value becomes words.
                let mut parts = text.split_whitespace();
                if let Some(first) = parts.next() {
                    word.get_or_insert_default().push_str(first);
                }
                for part in parts {
                    tokens.extend(word.replace(part.to_owned()).map(Token::Word));
                }
            }
            '`' => return Err("command substitution is not simulated".to_owned()),
            c => word.get_or_insert_default().push(c),
        }
    }
    tokens.extend(word.map(Token::Word));
    Ok(tokens)
}

fn double_quoted<'a>(mut rest: &'a str, word: &mut String, value: &dyn Fn(&str) -> String) -> Result<&'a str, String> {
    loop {
        let c = rest.chars().next().ok_or("syntax error: unterminated quoted string")?;
        rest = &rest[c.len_utf8()..];
        match c {
            '"' => return Ok(rest),
            '\\' => {
                let next = rest.chars().next().ok_or("syntax error: unterminated quoted string")?;
                rest = &rest[next.len_utf8()..];
                if !matches!(next, '"' | '\\' | '$' | '`' | '\n') {
                    word.push('\\');
                }
                if next != '\n' {
                    word.push(next);
                }
            }
            '$' => {
                let (text, after) = variable(rest, value)?;
                word.push_str(&text);
                rest = after;
            }
            '`' => return Err("command substitution is not simulated".to_owned()),
            c => word.push(c),
        }
    }
}

/// What follows a `$`.
fn variable<'a>(rest: &'a str, value: &dyn Fn(&str) -> String) -> Result<(String, &'a str), String> {
    if let Some(inner) = rest.strip_prefix('{') {
        let end = inner.find('}').ok_or("syntax error: missing '}'")?;
        let name = &inner[..end];
        let (name, default) = name.split_once(":-").unwrap_or((name, ""));
        let found = value(name);
        return Ok((if found.is_empty() { default.to_owned() } else { found }, &inner[end + 1..]));
    }
    if rest.starts_with('(') {
        return Err("command substitution is not simulated".to_owned());
    }
    if let Some(after) = rest.strip_prefix('?') {
        return Ok((value("?"), after));
    }
    let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    if length == 0 {
        return Ok(("$".to_owned(), rest));
    }
    Ok((value(&rest[..length]), &rest[length..]))
}
