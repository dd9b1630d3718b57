//! The syntax of a Corefile: server blocks, directives, their arguments and their own blocks. Knows no directive.
//!
//! Follows: Caddy's file format as CoreDNS uses it.

/// Text longer than this is no configuration.
const BYTES_MAX: usize = 1024 * 1024;

/// `ZONE... { DIRECTIVES }`
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServerBlock {
    pub keys: Vec<String>,
    pub directives: Vec<Directive>,
    pub line: usize,
}

/// `NAME ARGUMENT... { LINES }`
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Directive {
    pub name: String,
    pub arguments: Vec<String>,
    /// The lines of its block, by words.
    pub lines: Vec<Vec<String>>,
    pub line: usize,
}

/// Why a text is not a Corefile, or asks for what is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct CorefileError {
    pub line: usize,
    pub message: String,
}

pub(crate) fn error(line: usize, message: impl Into<String>) -> CorefileError {
    CorefileError { line, message: message.into() }
}

struct Token {
    text: String,
    line: usize,
    /// A brace in quotes is a word.
    quoted: bool,
}

impl Token {
    fn is(&self, brace: &str) -> bool {
        !self.quoted && self.text == brace
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, CorefileError> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => line += 1,
            c if c.is_whitespace() => {}
            '#' => {
                while chars.peek().is_some_and(|c| *c != '\n') {
                    chars.next();
                }
            }
            '"' => {
                let (start, mut word) = (line, String::new());
                loop {
                    match chars.next() {
                        None => return Err(error(start, "a quote is not closed")),
                        Some('"') => break,
                        Some('\\') if chars.peek() == Some(&'"') => word.extend(chars.next()),
                        Some(c) => {
                            line += usize::from(c == '\n');
                            word.push(c);
                        }
                    }
                }
                tokens.push(Token { text: word, line: start, quoted: true });
            }
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.peek().filter(|c| !c.is_whitespace()) {
                    word.push(*c);
                    chars.next();
                }
                tokens.push(Token { text: word, line, quoted: false });
            }
        }
    }
    Ok(tokens)
}

/// Reads a Corefile.
pub(crate) fn parse(text: &str) -> Result<Vec<ServerBlock>, CorefileError> {
    if text.len() > BYTES_MAX {
        return Err(error(1, format!("longer than {BYTES_MAX} bytes")));
    }
    let mut tokens = tokens(text)?.into_iter().peekable();
    let mut blocks = Vec::new();
    while let Some(first) = tokens.next() {
        let line = first.line;
        let mut keys = Vec::new();
        let mut token = Some(first);
        loop {
            match token {
                Some(token) if token.is("{") => break,
                Some(token) if token.is("}") => return Err(error(token.line, "a } without a {")),
                Some(token) => {
                    keys.extend(token.text.split(',').filter(|key| !key.is_empty()).map(str::to_string));
                }
                None => return Err(error(line, "a server block needs { and }")),
            }
            token = tokens.next();
        }
        if keys.is_empty() {
            return Err(error(line, "a server block needs a zone"));
        }
        let mut directives = Vec::new();
        loop {
            let Some(name) = tokens.next() else { return Err(error(line, "a { is not closed")) };
            if name.is("}") {
                break;
            }
            if name.is("{") {
                return Err(error(name.line, "a { without a directive"));
            }
            let mut directive =
                Directive { name: name.text, arguments: Vec::new(), lines: Vec::new(), line: name.line };
            let mut has_block = false;
            while let Some(token) = tokens.next_if(|token| token.line == directive.line && !token.is("}")) {
                if token.is("{") {
                    has_block = true;
                    break;
                }
                directive.arguments.push(token.text);
            }
            if has_block {
                let mut last_line = 0;
                loop {
                    let Some(token) = tokens.next() else {
                        return Err(error(directive.line, format!("the block of {} is not closed", directive.name)));
                    };
                    if token.is("}") {
                        break;
                    }
                    if token.is("{") {
                        return Err(error(token.line, format!("{} has no blocks in its block", directive.name)));
                    }
                    if token.line != last_line {
                        directive.lines.push(Vec::new());
                        last_line = token.line;
                    }
                    if let Some(words) = directive.lines.last_mut() {
                        words.push(token.text);
                    }
                }
            }
            directives.push(directive);
        }
        blocks.push(ServerBlock { keys, directives, line });
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_directives_and_their_blocks_are_read() {
        let blocks = parse(
            "# ours\nexample.com:1053, example.org {\n  errors\n  hosts {\n    10.0.0.1 a.example.com b # x\n    fallthrough\n  }\n\
             \x20 template IN A {\n answer \"{{ .Name }} 60 IN A 1.2.3.4\"\n }\n  forward . 1.1.1.1 8.8.8.8\n}\nother { }\n",
        )
        .unwrap();
        assert_eq!(blocks.len(), 2);
        assert_eq!(blocks[0].keys, ["example.com:1053", "example.org"]);
        let names: Vec<_> = blocks[0].directives.iter().map(|d| (d.name.as_str(), d.arguments.len())).collect();
        assert_eq!(names, [("errors", 0), ("hosts", 0), ("template", 2), ("forward", 3)]);
        assert_eq!(blocks[0].directives[1].lines, [vec!["10.0.0.1", "a.example.com", "b"], vec!["fallthrough"]]);
        assert_eq!(blocks[0].directives[2].lines, [vec!["answer", "{{ .Name }} 60 IN A 1.2.3.4"]]);
        assert!(blocks[1].directives.is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, want) in [
            ("a {\n errors\n", "line 1: a { is not closed"),
            ("a\n", "line 1: a server block needs { and }"),
            ("\n}\n", "line 2: a } without a {"),
            ("a {\n hosts {\n 1.2.3.4 b\n", "line 2: the block of hosts is not closed"),
            ("a {\n hosts {\n x {\n}\n}\n}", "line 3: hosts has no blocks in its block"),
            ("a {\n \"b\n", "line 2: a quote is not closed"),
            ("{\n}", "line 1: a server block needs a zone"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), want);
        }
    }
}
