//! Field selectors: `metadata.name=a,status.phase!=Running`.
//!
//! Only equality exists. Which fields a resource can be selected by is the resource's business: callers pass every term
//! through [`Selector::parse_with`] and refuse those they do not know.
//!
//! Follows: `k8s.io/apimachinery/pkg/fields`.

use std::fmt;

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub field: String,
    pub value: String,
    /// `!=` when true.
    pub negated: bool,
}

/// A conjunction of terms; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// Why a field selector was refused; the text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl Selector {
    pub const fn everything() -> Self {
        Selector { requirements: Vec::new(), nothing: false }
    }

    pub const fn nothing() -> Self {
        Selector { requirements: Vec::new(), nothing: true }
    }

    /// One field with one value.
    pub fn one(field: &str, value: &str) -> Self {
        let requirement = Requirement { field: field.to_owned(), value: value.to_owned(), negated: false };
        Selector { requirements: vec![requirement], nothing: false }
    }

    /// Reads the form of `fieldSelector=`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Self::parse_with(text, |field, value| Ok((field.to_owned(), value.to_owned())))
    }

    /// The same, with every term's field and value converted (and checked) by `convert`. A term that becomes two empty
    /// strings is dropped.
    pub fn parse_with(
        text: &str,
        convert: impl Fn(&str, &str) -> Result<(String, String), String>,
    ) -> Result<Self, SelectorError> {
        let mut terms = split_terms(text);
        terms.sort_unstable();
        let mut parsed = Vec::new();
        for term in terms {
            if term.is_empty() {
                continue;
            }
            let Some((field, negated, value)) = split_term(term) else {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'")));
            };
            parsed.push((field, negated, unescape(value)?));
        }
        let mut requirements = Vec::with_capacity(parsed.len());
        for (field, negated, value) in parsed {
            let (field, value) = convert(field, &value).map_err(SelectorError)?;
            if !(field.is_empty() && value.is_empty()) {
                requirements.push(Requirement { field, value, negated });
            }
        }
        Ok(Selector { requirements, nothing: false })
    }

    /// Whether `get` answers every field as demanded; an absent field is `""`.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> &'a str) -> bool {
        !self.nothing && self.requirements.iter().all(|r| (get(&r.field) == r.value) != r.negated)
    }

    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// The value `field` must have for a match, when there is one.
    pub fn requires_exact_match(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.field == field && !r.negated).map(|r| r.value.as_str())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{}{}{}", r.field, if r.negated { "!=" } else { "=" }, escape(&r.value))?;
        }
        Ok(())
    }
}

/// Puts a backslash before `\`, `,` and `=`.
pub fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '\\' | ',' | '=') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => {
                    return Err(SelectorError(format!("invalid field selector: invalid escape sequence: \\{c}")));
                }
                None => {
                    return Err(SelectorError("invalid field selector: invalid escape sequence: \\".to_owned()));
                }
            },
            // Upstream prints the rune's number.
            ',' | '=' => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {}",
                    c as u32
                )));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

fn split_terms(text: &str) -> Vec<&str> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// The field, whether the operator is `!=`, and the raw value.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (i, _) in term.char_indices() {
        for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
            if let Some(value) = term[i..].strip_prefix(operator) {
                return Some((&term[..i], negated, value));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_split_sorted_and_printed() {
        for (input, want) in [
            ("", Ok("")),
            ("b=1,a==2,c!=3", Ok("a=2,b=1,c!=3")),
            ("a=1,,", Ok("a=1")),
            (r"a=x\,y\=z\\", Ok(r"a=x\,y\=z\\")),
            ("=b", Ok("=b")),
            ("a", Err("invalid selector: 'a'; can't understand 'a'")),
            (r"a=\x", Err(r"invalid field selector: invalid escape sequence: \x")),
            ("a=b=c", Err("invalid field selector: unescaped character in value: 61")),
        ] {
            let got = Selector::parse(input);
            assert_eq!(
                got.map(|s| s.to_string()),
                want.map(str::to_owned).map_err(|e| SelectorError(e.to_owned())),
                "{input:?}"
            );
        }
    }

    #[test]
    fn absent_fields_are_empty_strings() {
        let get = |field: &str| if field == "metadata.name" { "a" } else { "" };
        for (selector, want) in
            [("metadata.name=a", true), ("metadata.name!=a", false), ("x=", true), ("x!=,metadata.name=a", false)]
        {
            assert_eq!(Selector::parse(selector).map(|s| s.matches(get)), Ok(want), "{selector}");
        }
    }
}
