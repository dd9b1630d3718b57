//! Label selectors: the text form of query parameters, and `LabelSelector` objects.
//!
//! A [`Selector`] is a conjunction of requirements, sorted by key when parsed, so that equal selectors print equally.
//! [`Selector::nothing`] is a value of its own: no set of requirements says it.
//!
//! Follows: `k8s.io/apimachinery/pkg/labels`, `meta/v1` `LabelSelectorAsSelector`, `meta/v1/validation`.

use std::collections::BTreeSet;
use std::fmt;

use crate::field::{self, FieldError, FieldPath};
use crate::json::{Map, Value};
use crate::names;
use crate::text::quote;

/// How a requirement compares a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    DoesNotExist,
    Equals,
    DoubleEquals,
    In,
    NotEquals,
    NotIn,
    Exists,
    GreaterThan,
    LessThan,
}

impl Operator {
    /// The operator as upstream's `selection` package spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Operator::DoesNotExist => "!",
            Operator::Equals => "=",
            Operator::DoubleEquals => "==",
            Operator::In => "in",
            Operator::NotEquals => "!=",
            Operator::NotIn => "notin",
            Operator::Exists => "exists",
            Operator::GreaterThan => "gt",
            Operator::LessThan => "lt",
        }
    }
}

/// What can be asked for the value of a label.
pub trait Labels {
    fn get_label(&self, key: &str) -> Option<&str>;
}

impl Labels for Map {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

impl<K, V, S> Labels for std::collections::HashMap<K, V, S>
where
    K: std::borrow::Borrow<str> + Eq + std::hash::Hash,
    V: AsRef<str>,
    S: std::hash::BuildHasher,
{
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).map(AsRef::as_ref)
    }
}

impl<K, V> Labels for std::collections::BTreeMap<K, V>
where
    K: std::borrow::Borrow<str> + Ord,
    V: AsRef<str>,
{
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).map(AsRef::as_ref)
    }
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// Why a selector was refused; the text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl Requirement {
    /// Checks key, operator and values. `path` prefixes the fields named in the error.
    pub fn new(
        key: &str,
        operator: Operator,
        values: Vec<String>,
        path: &FieldPath,
    ) -> Result<Requirement, SelectorError> {
        let mut errors = Vec::new();
        errors.extend(label_key_error(key, &path.child("key")));
        let value_path = path.child("values");
        let printed = || Value::from(values.clone());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => errors.push(FieldError::invalid(
                &value_path,
                printed(),
                "for 'in', 'notin' operators, values set can't be empty",
            )),
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => errors.push(
                FieldError::invalid(&value_path, printed(), "exact-match compatibility requires one single value"),
            ),
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                errors.push(FieldError::invalid(
                    &value_path,
                    printed(),
                    "values set must be empty for exists and does not exist",
                ));
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    errors.push(FieldError::invalid(
                        &value_path,
                        printed(),
                        "for 'Gt', 'Lt' operators, exactly one value is required",
                    ));
                }
                for (i, value) in values.iter().enumerate() {
                    if parse_int(value).is_none() {
                        errors.push(FieldError::invalid(
                            &value_path.index(i),
                            value.as_str(),
                            "for 'Gt', 'Lt' operators, the value must be an integer",
                        ));
                    }
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let messages = names::is_label_value(value);
            if !messages.is_empty() {
                errors.push(FieldError::invalid(&value_path.index(i).key(key), value.as_str(), messages.join("; ")));
            }
        }
        if errors.is_empty() {
            Ok(Requirement { key: key.to_owned(), operator, values })
        } else {
            Err(SelectorError(field::aggregate(&errors)))
        }
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn operator(&self) -> Operator {
        self.operator
    }

    pub fn values(&self) -> &[String] {
        &self.values
    }

    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        let value = labels.get_label(&self.key);
        let has = |value: &str| self.values.iter().any(|v| v == value);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(has),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(has),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let (Some(label), [wanted]) = (value.and_then(parse_int), self.values.as_slice()) else {
                    return false;
                };
                let Some(wanted) = parse_int(wanted) else { return false };
                if self.operator == Operator::GreaterThan { label > wanted } else { label < wanted }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Requirement { key, operator, values } = self;
        let mut sorted: Vec<&str> = values.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        let values = sorted.join(",");
        match operator {
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::Exists => f.write_str(key),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// A conjunction of requirements; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// Matches everything.
    pub const fn everything() -> Self {
        Selector { requirements: Vec::new(), nothing: false }
    }

    /// Matches nothing, whatever is added to it.
    pub const fn nothing() -> Self {
        Selector { requirements: Vec::new(), nothing: true }
    }

    /// Reads the form of `labelSelector=`: `app=web,tier in (a,b),!x`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Self::parse_at(text, &FieldPath::nil())
    }

    /// The same, with the field that holds the text named in errors.
    pub fn parse_at(text: &str, path: &FieldPath) -> Result<Self, SelectorError> {
        let mut requirements = Parser::new(text, path).parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector { requirements, nothing: false })
    }

    /// Exactly these labels; nothing is checked, as the map comes from a validated object.
    pub fn from_map(labels: &Map) -> Self {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.to_string(),
                operator: Operator::Equals,
                values: vec![value.as_str().unwrap_or("").to_owned()],
            })
            .collect();
        Selector { requirements, nothing: false }
    }

    /// A `LabelSelector` object: `null` selects nothing, `{}` everything.
    pub fn from_label_selector(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Selector::nothing());
        }
        let mut requirements = Vec::new();
        if let Some(labels) = selector["matchLabels"].as_object() {
            for (key, value) in labels.iter() {
                let values = vec![value.as_str().unwrap_or("").to_owned()];
                requirements.push(Requirement::new(key, Operator::Equals, values, &FieldPath::nil())?);
            }
        }
        for expression in selector.array_at(&["matchExpressions"]) {
            let operator = match expression.str_at(&["operator"]) {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!("{} is not a valid label selector operator", quote(other))));
                }
            };
            let values = expression.array_at(&["values"]).iter().map(|v| v.as_str().unwrap_or("").to_owned()).collect();
            requirements.push(Requirement::new(expression.str_at(&["key"]), operator, values, &FieldPath::nil())?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector { requirements, nothing: false })
    }

    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Whether every object is selected.
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn matches_nothing(&self) -> bool {
        self.nothing
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Adds requirements, keeping the order by key.
    pub fn add(&mut self, requirements: impl IntoIterator<Item = Requirement>) {
        if !self.nothing {
            self.requirements.extend(requirements);
            self.requirements.sort_by(|a, b| a.key.cmp(&b.key));
        }
    }

    /// The one value `key` must have for a match, when there is one.
    pub fn requires_exact_match(&self, key: &str) -> Option<&str> {
        let requirement = self.requirements.iter().find(|r| r.key == key)?;
        match (requirement.operator, requirement.values.as_slice()) {
            (Operator::Equals | Operator::DoubleEquals | Operator::In, [value]) => Some(value),
            _ => None,
        }
    }

    /// The `LabelSelector` object that says the same; `None` for operators it does not have (`>`, `<`).
    pub fn to_label_selector(&self) -> Option<Value> {
        let mut labels = Map::new();
        let mut expressions = Vec::new();
        for r in &self.requirements {
            let operator = match r.operator {
                Operator::Equals | Operator::DoubleEquals => {
                    labels.insert(r.key.as_str(), r.values.first().map_or("", String::as_str).into());
                    continue;
                }
                Operator::In => "In",
                Operator::NotIn | Operator::NotEquals => "NotIn",
                Operator::Exists => "Exists",
                Operator::DoesNotExist => "DoesNotExist",
                Operator::GreaterThan | Operator::LessThan => return None,
            };
            let mut expression = Map::new();
            expression.insert("key", r.key.as_str().into());
            expression.insert("operator", operator.into());
            if !r.values.is_empty() {
                expression.insert("values", r.values.clone().into());
            }
            expressions.push(Value::Object(expression));
        }
        let mut out = Map::new();
        if !labels.is_empty() {
            out.insert("matchLabels", labels.into());
        }
        if !expressions.is_empty() {
            out.insert("matchExpressions", Value::Array(expressions));
        }
        Some(out.into())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

/// Prints a `LabelSelector` object as `kubectl` and tables show it: `<none>` for an empty one, `<error>` for a bad one.
pub fn format_label_selector(selector: &Value) -> String {
    match Selector::from_label_selector(selector) {
        Err(_) => "<error>".to_owned(),
        Ok(selector) => {
            let text = selector.to_string();
            if text.is_empty() { "<none>".to_owned() } else { text }
        }
    }
}

fn label_key_error(key: &str, path: &FieldPath) -> Option<FieldError> {
    let messages = names::is_label_key(key);
    (!messages.is_empty()).then(|| FieldError::invalid(path, key, messages.join("; ")))
}

/// Go's `strconv.ParseInt(s, 10, 64)`.
fn parse_int(text: &str) -> Option<i64> {
    text.parse().ok()
}

/// What validation of a `LabelSelector` may let pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct LabelSelectorOptions {
    /// For objects stored before values were checked.
    pub allow_invalid_label_value: bool,
    /// For access reviews, which only warn about unknown operators.
    pub allow_unknown_operator: bool,
}

/// Checks a `LabelSelector` object.
pub fn validate_label_selector(selector: &Value, options: LabelSelectorOptions, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(labels) = selector["matchLabels"].as_object() {
        errors.extend(validate_labels(labels, &path.child("matchLabels")));
    }
    for (i, expression) in selector.array_at(&["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        errors.extend(validate_label_selector_requirement(expression, options, &path));
    }
    errors
}

/// Checks one entry of `matchExpressions`.
pub fn validate_label_selector_requirement(
    expression: &Value,
    options: LabelSelectorOptions,
    path: &FieldPath,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let values = expression.array_at(&["values"]);
    match expression.str_at(&["operator"]) {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.push(FieldError::required(
                    &path.child("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ));
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.push(FieldError::forbidden(
                    &path.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ));
            }
        }
        other => {
            if !options.allow_unknown_operator {
                errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator"));
            }
        }
    }
    errors.extend(validate_label_name(expression.str_at(&["key"]), &path.child("key")));
    if !options.allow_invalid_label_value {
        for (i, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or("");
            for message in names::is_label_value(value) {
                errors.push(FieldError::invalid(&path.child("values").index(i), value, message));
            }
        }
    }
    errors
}

/// Whether a stored selector has values that would be refused today.
pub fn has_invalid_label_value(selector: &Value) -> bool {
    selector
        .array_at(&["matchExpressions"])
        .iter()
        .flat_map(|e| e.array_at(&["values"]))
        .any(|v| !names::is_label_value(v.as_str().unwrap_or("")).is_empty())
}

/// Checks a label's key.
pub fn validate_label_name(name: &str, path: &FieldPath) -> Vec<FieldError> {
    names::is_label_key(name).into_iter().map(|m| FieldError::invalid(path, name, m)).collect()
}

/// Checks a set of labels: all keys and values.
pub fn validate_labels(labels: &Map, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.iter() {
        errors.extend(validate_label_name(key, path));
        let value = value.as_str().unwrap_or("");
        errors.extend(names::is_label_value(value).into_iter().map(|m| FieldError::invalid(path, value, m)));
    }
    errors
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Error,
    EndOfString,
    ClosedPar,
    Comma,
    DoesNotExist,
    DoubleEquals,
    Equals,
    GreaterThan,
    Identifier,
    In,
    LessThan,
    NotEquals,
    NotIn,
    OpenPar,
}

fn token(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::ClosedPar,
        "," => Token::Comma,
        "!" => Token::DoesNotExist,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::GreaterThan,
        "in" => Token::In,
        "<" => Token::LessThan,
        "!=" => Token::NotEquals,
        "notin" => Token::NotIn,
        "(" => Token::OpenPar,
        _ => return None,
    })
}

const fn is_special(b: u8) -> bool {
    matches!(b, b'=' | b'!' | b'(' | b')' | b',' | b'>' | b'<')
}

const fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\r' | b'\n')
}

/// Splits the text into tokens. A NUL byte ends an identifier, as the end of the text does.
fn scan(text: &str) -> Vec<(Token, String)> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut pos = 0;
    loop {
        while pos < bytes.len() && is_space(bytes[pos]) {
            pos += 1;
        }
        if pos >= bytes.len() || bytes[pos] == 0 {
            tokens.push((Token::EndOfString, String::new()));
            return tokens;
        }
        let start = pos;
        if is_special(bytes[pos]) {
            let mut last = None;
            while pos < bytes.len() && is_special(bytes[pos]) {
                let symbol = &text[start..=pos];
                match (token(symbol), &last) {
                    (Some(t), _) => last = Some((t, symbol.to_owned())),
                    (None, Some(_)) => break,
                    (None, None) => {}
                }
                pos += 1;
            }
            tokens.push(
                last.unwrap_or_else(|| {
                    (Token::Error, format!("error expected: keyword found '{}'", &text[start..pos]))
                }),
            );
        } else {
            while pos < bytes.len() && bytes[pos] != 0 && !is_special(bytes[pos]) && !is_space(bytes[pos]) {
                pos += 1;
            }
            let literal = &text[start..pos];
            tokens.push((token(literal).unwrap_or(Token::Identifier), literal.to_owned()));
            if pos < bytes.len() && bytes[pos] == 0 {
                pos += 1;
            }
        }
    }
}

struct Parser<'a> {
    tokens: Vec<(Token, String)>,
    position: usize,
    path: &'a FieldPath,
}

impl<'a> Parser<'a> {
    fn new(text: &str, path: &'a FieldPath) -> Self {
        Parser { tokens: scan(text), position: 0, path }
    }

    /// The token here; `in` and `notin` are identifiers unless an operator is expected.
    fn peek(&self, operator_expected: bool) -> (Token, String) {
        let (token, literal) = self.tokens.get(self.position).cloned().unwrap_or((Token::EndOfString, String::new()));
        match token {
            Token::In | Token::NotIn if !operator_expected => (Token::Identifier, literal),
            token => (token, literal),
        }
    }

    fn next(&mut self, operator_expected: bool) -> (Token, String) {
        let next = self.peek(operator_expected);
        self.position += 1;
        next
    }

    fn parse(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            let (token, literal) = self.peek(false);
            match token {
                Token::Identifier | Token::DoesNotExist => {
                    let requirement = self
                        .parse_requirement()
                        .map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?;
                    requirements.push(requirement);
                    let (token, literal) = self.next(false);
                    match token {
                        Token::EndOfString => return Ok(requirements),
                        Token::Comma => {
                            let (token, literal) = self.peek(false);
                            if token != Token::Identifier && token != Token::DoesNotExist {
                                return Err(SelectorError(format!(
                                    "found '{literal}', expected: identifier after ','"
                                )));
                            }
                        }
                        _ => {
                            return Err(SelectorError(format!("found '{literal}', expected: ',' or 'end of string'")));
                        }
                    }
                }
                Token::EndOfString => return Ok(requirements),
                _ => {
                    return Err(SelectorError(format!(
                        "found '{literal}', expected: !, identifier, or 'end of string'"
                    )));
                }
            }
        }
    }

    fn parse_requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut literal) = self.next(false);
        let negated = token == Token::DoesNotExist;
        if negated {
            (token, literal) = self.next(false);
        }
        if token != Token::Identifier {
            return Err(SelectorError(format!("found '{literal}', expected: identifier")));
        }
        if let Some(error) = label_key_error(&literal, self.path) {
            return Err(SelectorError(error.to_string()));
        }
        let key = literal;
        let ends = matches!(self.peek(false).0, Token::EndOfString | Token::Comma);
        // `!key` is complete whatever follows: the caller refuses what does not belong there.
        if negated || ends {
            let operator = if negated { Operator::DoesNotExist } else { Operator::Exists };
            return Requirement::new(&key, operator, Vec::new(), self.path);
        }
        let (token, literal) = self.next(true);
        let operator = match token {
            Token::In => Operator::In,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::GreaterThan => Operator::GreaterThan,
            Token::LessThan => Operator::LessThan,
            Token::NotIn => Operator::NotIn,
            Token::NotEquals => Operator::NotEquals,
            _ => {
                return Err(SelectorError(format!("found '{literal}', expected: in, notin, =, ==, !=, gt, lt")));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.parse_values()?,
            _ => self.parse_exact_value()?,
        };
        Requirement::new(&key, operator, values.into_iter().collect(), self.path)
    }

    fn parse_values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let (token, literal) = self.next(false);
        if token != Token::OpenPar {
            return Err(SelectorError(format!("found '{literal}' expected: '('")));
        }
        let (token, literal) = self.peek(false);
        match token {
            Token::Identifier | Token::Comma => {
                let values = self.parse_identifiers()?;
                if self.next(false).0 != Token::ClosedPar {
                    return Err(SelectorError(format!("found '{literal}', expected: ')'")));
                }
                Ok(values)
            }
            Token::ClosedPar => {
                self.position += 1;
                Ok(BTreeSet::from([String::new()]))
            }
            _ => Err(SelectorError(format!("found '{literal}', expected: ',', ')' or identifier"))),
        }
    }

    /// A list that may have empty elements: `(a,,b)`, `(,`.
    fn parse_identifiers(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let mut values = BTreeSet::new();
        loop {
            let (token, literal) = self.next(false);
            match token {
                Token::Identifier => {
                    values.insert(literal);
                    let (token, literal) = self.peek(false);
                    match token {
                        Token::Comma => {}
                        Token::ClosedPar => return Ok(values),
                        _ => return Err(SelectorError(format!("found '{literal}', expected: ',' or ')'"))),
                    }
                }
                Token::Comma => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.peek(false).0 {
                        Token::ClosedPar => {
                            values.insert(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                _ => return Err(SelectorError(format!("found '{literal}', expected: ',', or identifier"))),
            }
        }
    }

    fn parse_exact_value(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        if matches!(self.peek(false).0, Token::EndOfString | Token::Comma) {
            return Ok(BTreeSet::from([String::new()]));
        }
        let (token, literal) = self.next(false);
        if token == Token::Identifier {
            return Ok(BTreeSet::from([literal]));
        }
        Err(SelectorError(format!("found '{literal}', expected: identifier")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[track_caller]
    fn check(selector: &str, labels: &Value, want: bool) {
        let parsed = Selector::parse(selector).unwrap_or_else(|e| panic!("{selector:?}: {e}"));
        let labels = labels.as_object().expect("labels are an object");
        assert_eq!(parsed.matches(labels), want, "{selector:?} on {labels:?}");
        let again = Selector::parse(&parsed.to_string()).unwrap_or_else(|e| panic!("{parsed}: {e}"));
        assert_eq!(again, parsed, "{selector:?} prints as {parsed}");
    }

    #[test]
    fn selectors_match_labels() {
        for (selector, labels, want) in [
            ("", json!({}), true),
            ("app=web", json!({"app": "web", "x": "y"}), true),
            ("app==web", json!({"app": "db"}), false),
            ("app!=web", json!({}), true), // an absent key satisfies !=
            ("app notin (web)", json!({}), true),
            ("app in (web,db)", json!({"app": "db"}), true),
            ("app in (web,db)", json!({}), false),
            ("app", json!({"app": ""}), true),
            ("!app", json!({"app": ""}), false), // an empty value is still present
            ("!app", json!({}), true),
            ("app=", json!({"app": ""}), true),
            ("app in ()", json!({"app": ""}), true),
            ("n>1", json!({"n": "2"}), true),
            ("n<1", json!({"n": "2"}), false),
            ("n>1", json!({"n": "x"}), false),
            ("x in (a,,b),y", json!({"x": "", "y": "1"}), true),
            ("in in (in,notin)", json!({"in": "notin"}), true),
            (" a = b , c ", json!({"a": "b", "c": "d"}), true),
        ] {
            check(selector, &labels, want);
        }
    }

    #[test]
    fn bad_selectors_are_explained_as_upstream_does() {
        for (selector, want) in [
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a,", "found '', expected: identifier after ','"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("=b", "found '=', expected: !, identifier, or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (", "unable to parse requirement: found '', expected: ',', ')' or identifier"),
            ("a=!", "unable to parse requirement: found '!', expected: identifier"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            (
                "a=b-",
                "unable to parse requirement: values[0][a]: Invalid value: \"b-\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
            (
                "n>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(
                Selector::parse(selector).map(|s| s.to_string()),
                Err(SelectorError(want.into())),
                "{selector:?}"
            );
        }
    }

    #[test]
    fn label_selector_objects_convert_both_ways() {
        let object = json!({"matchLabels": {"b": "1"}, "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "c", "operator": "DoesNotExist"}]});
        let selector = Selector::from_label_selector(&object).expect("valid");
        assert_eq!(selector.to_string(), "a in (x,y),b=1,!c");
        assert_eq!(selector.to_label_selector(), Some(object));
        assert!(Selector::from_label_selector(&json!({})).expect("valid").is_empty());
        assert!(!Selector::from_label_selector(&Value::Null).expect("valid").matches(&Map::new()));
        assert_eq!(
            Selector::from_label_selector(&json!({"matchExpressions": [{"key": "a", "operator": "Foo"}]})),
            Err(SelectorError("\"Foo\" is not a valid label selector operator".into()))
        );
    }

    #[test]
    fn a_bad_label_selector_has_one_error_per_fault() {
        let selector = json!({"matchLabels": {"/": "ok"}, "matchExpressions": [
            {"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["x"]},
            {"key": "a", "operator": "x"}, {"key": "a", "operator": "In", "values": ["-"]}]});
        let errors = validate_label_selector(&selector, LabelSelectorOptions::default(), &"s".into());
        let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "s.matchLabels",
                "s.matchLabels",
                "s.matchLabels",
                "s.matchExpressions[0].values",
                "s.matchExpressions[1].values",
                "s.matchExpressions[2].operator",
                "s.matchExpressions[3].values[0]"
            ]
        );
    }
}
