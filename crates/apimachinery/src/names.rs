//! What names, label keys and label values may look like, with upstream's explanations.
//!
//! Each `is_*` function returns what is wrong, in upstream's order; nothing wrong is an empty list.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/validation`, `api/validate/content`, `api/validation`.

use crate::field::{FieldError, FieldPath};

/// What a validation of one string found.
pub type Messages = Vec<String>;

/// Checks a name; with `prefix` the name is a `generateName` and may end in a dash.
pub type ValidateName = fn(name: &str, prefix: bool) -> Messages;

pub const DNS1123_LABEL_MAX: usize = 63;
pub const DNS1123_SUBDOMAIN_MAX: usize = 253;
pub const DNS1035_LABEL_MAX: usize = 63;
pub const LABEL_VALUE_MAX: usize = 63;

const DNS1123_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_LABEL_TEXT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const DNS1123_SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1123_SUBDOMAIN_TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const DNS1123_SUBDOMAIN_CASELESS_TEXT: &str = "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const DNS1123_SUBDOMAIN_UNDERSCORE: &str = r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
const DNS1123_SUBDOMAIN_UNDERSCORE_TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character";
const DNS1035_LABEL: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const DNS1035_LABEL_TEXT: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_KEY_TEXT: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const LABEL_VALUE_TEXT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// `must be no more than N characters`.
pub fn max_len_error(length: usize) -> String {
    format!("must be no more than {length} characters")
}

/// `must be no more than N bytes`: the newer wording, used for label keys and values.
pub fn max_bytes_error(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

/// The explanation of a failed pattern, with examples.
pub fn regex_error(text: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{text} (regex used for validation is '{pattern}')");
    }
    let mut out = format!("{text} (e.g. ");
    for (i, example) in examples.iter().enumerate() {
        if i > 0 {
            out.push_str(" or ");
        }
        out.push('\'');
        out.push_str(example);
        out.push_str("', ");
    }
    out.push_str("regex used for validation is '");
    out.push_str(pattern);
    out.push_str("')");
    out
}

/// `must be between LO and HI, inclusive`.
pub fn inclusive_range_error(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// `must be non-empty`.
pub fn empty_error() -> String {
    "must be non-empty".to_owned()
}

/// Starts and ends with `edge`, consists of `inner`.
fn delimited(s: &str, edge: fn(&u8) -> bool, inner: fn(&u8) -> bool) -> bool {
    match s.as_bytes() {
        [] => false,
        [only] => edge(only),
        [first, middle @ .., last] => edge(first) && edge(last) && middle.iter().all(inner),
    }
}

fn lower_alnum(b: &u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn matches_dns1123_label(s: &str) -> bool {
    delimited(s, lower_alnum, |b| lower_alnum(b) || *b == b'-')
}

fn matches_dns1123_subdomain(s: &str) -> bool {
    s.split('.').all(matches_dns1123_label)
}

fn matches_dns1123_subdomain_underscore(s: &str) -> bool {
    s.split('.').all(|label| {
        delimited(label.strip_prefix('_').unwrap_or(label), lower_alnum, |b| lower_alnum(b) || *b == b'-' || *b == b'_')
    })
}

fn matches_label_key(s: &str) -> bool {
    delimited(s, u8::is_ascii_alphanumeric, |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// An RFC 1123 label: most names that become DNS labels.
pub fn is_dns1123_label(value: &str) -> Messages {
    let mut out = Messages::new();
    if value.len() > DNS1123_LABEL_MAX {
        out.push(max_len_error(DNS1123_LABEL_MAX));
    }
    if !matches_dns1123_label(value) {
        if matches_dns1123_subdomain(value) {
            out.push("must not contain dots".to_owned());
        } else {
            out.push(regex_error(DNS1123_LABEL_TEXT, DNS1123_LABEL, &["my-name", "123-abc"]));
        }
    }
    out
}

/// An RFC 1123 subdomain: the usual form of object names.
pub fn is_dns1123_subdomain(value: &str) -> Messages {
    let mut out = Messages::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        out.push(max_len_error(DNS1123_SUBDOMAIN_MAX));
    }
    if !matches_dns1123_subdomain(value) {
        out.push(regex_error(DNS1123_SUBDOMAIN_TEXT, DNS1123_SUBDOMAIN, &["example.com"]));
    }
    out
}

/// A subdomain in either case, as a few old fields (driver names) allow it.
pub fn is_dns1123_subdomain_caseless(value: &str) -> Messages {
    let mut out = Messages::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        out.push(max_bytes_error(DNS1123_SUBDOMAIN_MAX));
    }
    if !matches_dns1123_subdomain(&value.to_ascii_lowercase()) {
        out.push(regex_error(DNS1123_SUBDOMAIN_CASELESS_TEXT, DNS1123_SUBDOMAIN, &["Example.com"]));
    }
    out
}

/// A subdomain whose labels may have underscores (DNS search paths).
pub fn is_dns1123_subdomain_with_underscore(value: &str) -> Messages {
    let mut out = Messages::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        out.push(max_len_error(DNS1123_SUBDOMAIN_MAX));
    }
    if !matches_dns1123_subdomain_underscore(value) {
        out.push(regex_error(DNS1123_SUBDOMAIN_UNDERSCORE_TEXT, DNS1123_SUBDOMAIN_UNDERSCORE, &["example.com"]));
    }
    out
}

/// A subdomain whose first label is `*`.
pub fn is_wildcard_dns1123_subdomain(value: &str) -> Messages {
    let mut out = Messages::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        out.push(max_len_error(DNS1123_SUBDOMAIN_MAX));
    }
    if !value.strip_prefix("*.").is_some_and(matches_dns1123_subdomain) {
        out.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!(r"\*\.{DNS1123_SUBDOMAIN}"),
            &["*.example.com"],
        ));
    }
    out
}

/// A DNS label that starts with a letter: Service names.
pub fn is_dns1035_label(value: &str) -> Messages {
    let mut out = Messages::new();
    if value.len() > DNS1035_LABEL_MAX {
        out.push(max_len_error(DNS1035_LABEL_MAX));
    }
    if !(matches_dns1123_label(value) && value.starts_with(|c: char| c.is_ascii_lowercase())) {
        out.push(regex_error(DNS1035_LABEL_TEXT, DNS1035_LABEL, &["my-name", "abc-123"]));
    }
    out
}

/// A label or annotation key, also called a qualified name: `[prefix/]name`.
pub fn is_label_key(value: &str) -> Messages {
    let pattern = || regex_error(LABEL_KEY_TEXT, LABEL_KEY, &["MyName", "my.name", "123-abc"]);
    let mut out = Messages::new();
    let name = match value.split_once('/') {
        None => value,
        Some((_, name)) if name.contains('/') => {
            out.push(format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                pattern()
            ));
            return out;
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                out.push(format!("prefix part {}", empty_error()));
            } else {
                if prefix.len() > DNS1123_SUBDOMAIN_MAX {
                    out.push(format!("prefix part {}", max_bytes_error(DNS1123_SUBDOMAIN_MAX)));
                }
                if !matches_dns1123_subdomain(prefix) {
                    out.push(format!(
                        "prefix part {}",
                        regex_error(DNS1123_SUBDOMAIN_TEXT, DNS1123_SUBDOMAIN, &["example.com"])
                    ));
                }
            }
            name
        }
    };
    if name.is_empty() {
        out.push(format!("name part {}", empty_error()));
    } else if name.len() > 63 {
        out.push(format!("name part {}", max_bytes_error(63)));
    }
    if !matches_label_key(name) {
        out.push(format!("name part {}", pattern()));
    }
    out
}

/// The same as [`is_label_key`], under the name most callers know.
pub fn is_qualified_name(value: &str) -> Messages {
    is_label_key(value)
}

/// A label's value: may be empty.
pub fn is_label_value(value: &str) -> Messages {
    let mut out = Messages::new();
    if value.len() > LABEL_VALUE_MAX {
        out.push(max_bytes_error(LABEL_VALUE_MAX));
    }
    if !value.is_empty() && !matches_label_key(value) {
        out.push(regex_error(LABEL_VALUE_TEXT, LABEL_VALUE, &["MyValue", "my_value", "12345"]));
    }
    out
}

/// An identifier as C has them.
pub fn is_c_identifier(value: &str) -> Messages {
    let ok = match value.as_bytes() {
        [first, rest @ ..] => {
            (first.is_ascii_alphabetic() || *first == b'_')
                && rest.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
        }
        [] => false,
    };
    if ok {
        return Messages::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// A port number: 1 to 65535.
pub fn is_valid_port_num(port: i64) -> Messages {
    is_in_range(port, 1, 65535)
}

/// A number within bounds, both included.
pub fn is_in_range(value: i64, low: i64, high: i64) -> Messages {
    if (low..=high).contains(&value) { Messages::new() } else { vec![inclusive_range_error(low, high)] }
}

/// A Unix group id: 0 to 2^31-1.
pub fn is_valid_group_id(id: i64) -> Messages {
    is_in_range(id, 0, i64::from(i32::MAX))
}

/// A Unix user id: 0 to 2^31-1.
pub fn is_valid_user_id(id: i64) -> Messages {
    is_in_range(id, 0, i64::from(i32::MAX))
}

/// A port's name (an IANA service name): at most 15 characters, with a letter, no double dash.
pub fn is_valid_port_name(port: &str) -> Messages {
    let mut out = Messages::new();
    if port.len() > 15 {
        out.push(max_len_error(15));
    }
    if port.is_empty() || !port.bytes().all(|b| lower_alnum(&b) || b == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !port.bytes().any(|b| b.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if port.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if port.starts_with('-') || port.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// A percentage such as `25%`.
pub fn is_valid_percent(percent: &str) -> Messages {
    match percent.strip_suffix('%') {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => Messages::new(),
        _ => vec![regex_error(
            "a valid percent string must be a numeric string followed by an ending '%'",
            "[0-9]+%",
            &["1%", "93%"],
        )],
    }
}

/// The name of an HTTP header.
pub fn is_http_header_name(value: &str) -> Messages {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Messages::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// The name of an environment variable, by the strict rule.
pub fn is_env_var_name(value: &str) -> Messages {
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let ok = match value.as_bytes() {
        [first, rest @ ..] => inner(first) && !first.is_ascii_digit() && rest.iter().all(inner),
        [] => false,
    };
    let mut out = Messages::new();
    if !ok {
        out.push(regex_error(
            "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        ));
    }
    out.extend(has_ch_dir_prefix(value));
    out
}

/// The name of an environment variable, by the rule in force since 1.34: printable ASCII without `=`.
pub fn is_relaxed_env_var_name(value: &str) -> Messages {
    let mut out = Messages::new();
    if value.is_empty() {
        out.push(format!("environment variable name {}", empty_error()));
    }
    if !value.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        out.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    out
}

/// A key of a ConfigMap's or Secret's data.
pub fn is_config_map_key(value: &str) -> Messages {
    let mut out = Messages::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        out.push(max_len_error(DNS1123_SUBDOMAIN_MAX));
    }
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        out.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    out.extend(has_ch_dir_prefix(value));
    out
}

fn has_ch_dir_prefix(value: &str) -> Option<String> {
    match value {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if value.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// A name that is safe as one segment of a path.
pub fn is_path_segment_name(name: &str) -> Messages {
    match name {
        "." | ".." => vec![format!("may not be '{name}'")],
        _ => is_path_segment_prefix(name),
    }
}

/// The same for a `generateName`.
pub fn is_path_segment_prefix(name: &str) -> Messages {
    ["/", "%"].into_iter().filter(|bad| name.contains(bad)).map(|bad| format!("may not contain '{bad}'")).collect()
}

/// [`ValidateName`] of most kinds.
pub fn name_is_dns_subdomain(name: &str, prefix: bool) -> Messages {
    is_dns1123_subdomain(&mask_trailing_dash(name, prefix))
}

/// [`ValidateName`] of Namespaces and other kinds whose name is one DNS label.
pub fn name_is_dns_label(name: &str, prefix: bool) -> Messages {
    is_dns1123_label(&mask_trailing_dash(name, prefix))
}

/// [`ValidateName`] of Services.
pub fn name_is_dns1035_label(name: &str, prefix: bool) -> Messages {
    is_dns1035_label(&mask_trailing_dash(name, prefix))
}

/// [`ValidateName`] of RBAC kinds and others that only have to fit into a URL.
pub fn name_is_path_segment(name: &str, prefix: bool) -> Messages {
    if prefix { is_path_segment_prefix(name) } else { is_path_segment_name(name) }
}

/// A `generateName` may end in a dash: upstream replaces the last two characters by an `a` before it checks.
fn mask_trailing_dash(name: &str, prefix: bool) -> String {
    if prefix && name.len() > 1 && name.ends_with('-') {
        return format!("{}a", String::from_utf8_lossy(&name.as_bytes()[..name.len() - 2]));
    }
    name.to_owned()
}

/// Three labels at least, no trailing dot.
pub fn is_fully_qualified_name(path: &FieldPath, name: &str) -> Vec<FieldError> {
    if name.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let messages = is_dns1123_subdomain(name);
    if !messages.is_empty() {
        return vec![FieldError::invalid(path, name, messages.join(","))];
    }
    if name.split('.').count() < 3 {
        return vec![FieldError::invalid(
            path,
            name,
            "should be a domain with at least three segments separated by dots",
        )];
    }
    Vec::new()
}

/// Two labels at least; one trailing dot is accepted.
pub fn is_fully_qualified_domain_name(path: &FieldPath, name: &str) -> Vec<FieldError> {
    if name.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let messages = is_dns1123_subdomain(name);
    if !messages.is_empty() {
        return vec![FieldError::invalid(path, name, messages.join(","))];
    }
    if name.split('.').count() < 2 {
        return vec![FieldError::invalid(
            path,
            name,
            "should be a domain with at least two segments separated by dots",
        )];
    }
    name.split('.')
        .map(|label| (label, is_dns1123_label(label)))
        .find(|(_, messages)| !messages.is_empty())
        .map(|(label, messages)| FieldError::invalid(path, label, messages.join(",")))
        .into_iter()
        .collect()
}

/// `acme.io/foo`: a subdomain and an HTTP path.
pub fn is_domain_prefixed_path(path: &FieldPath, value: &str) -> Vec<FieldError> {
    if value.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let (host, rest) = match value.split_once('/') {
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => (host, rest),
        _ => {
            return vec![FieldError::invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")")];
        }
    };
    let mut out: Vec<FieldError> =
        is_dns1123_subdomain(host).into_iter().map(|m| FieldError::invalid(path, host, m)).collect();
    if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
        out.push(FieldError::invalid(path, rest, regex_error("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", &[])));
    }
    out
}

/// `acme.io/foo`: a label key that must have a prefix.
pub fn is_domain_prefixed_key(path: &FieldPath, key: &str) -> Vec<FieldError> {
    if key.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let out: Vec<FieldError> = is_label_key(key).into_iter().map(|m| FieldError::invalid(path, key, m)).collect();
    if out.is_empty() && !key.contains('/') {
        return vec![FieldError::invalid(path, key, "must be a domain-prefixed key (such as \"acme.io/foo\")")];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(value, whether it is valid)`, for each kind of name.
    #[track_caller]
    fn check(validate: fn(&str) -> Messages, rows: &[(&str, bool)]) {
        for (value, valid) in rows {
            let messages = validate(value);
            assert_eq!(messages.is_empty(), *valid, "{value:?}: {messages:?}");
        }
    }

    #[test]
    fn names_are_accepted_by_their_grammar() {
        let long = "a".repeat(64);
        check(
            is_dns1123_label,
            &[("a", true), ("1-b", true), ("", false), ("-a", false), ("a.b", false), (&long, false)],
        );
        check(
            is_dns1123_subdomain,
            &[("a.b", true), ("a..b", false), ("A", false), ("a_b", false), (".", false), (&long, true)],
        );
        check(is_dns1035_label, &[("a1", true), ("1a", false), ("a-", false), ("a.b", false)]);
        check(
            is_label_key,
            &[
                ("a", true),
                ("A_b.c", true),
                ("x.io/a", true),
                ("X/a", false),
                ("/a", false),
                ("a/", false),
                ("a/b/c", false),
                ("", false),
            ],
        );
        check(is_label_value, &[("", true), ("A_1", true), ("-a", false), ("a b", false), (&long, false)]);
        check(is_valid_port_name, &[("http", true), ("80", false), ("a--b", false), ("-a", false), ("", false)]);
        check(
            is_config_map_key,
            &[("a.b", true), (".", false), ("..a", false), (".a", true), ("a/b", false), ("", false)],
        );
        check(is_wildcard_dns1123_subdomain, &[("*.a.b", true), ("*", false), ("a.b", false), ("*.*.a", false)]);
        check(is_env_var_name, &[("A.b-c", true), ("1a", false), ("", false)]);
        check(is_relaxed_env_var_name, &[("1 a", true), ("a=b", false), ("", false), ("é", false)]);
        check(is_dns1123_subdomain_with_underscore, &[("_a._b", true), ("__a", false), ("a_b", true)]);
    }

    #[test]
    fn explanations_are_upstreams() {
        assert_eq!(
            is_dns1123_subdomain("A"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(is_dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            is_label_key(""),
            [
                "name part must be non-empty",
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            ]
        );
        assert_eq!(is_label_value(&"a".repeat(64)), ["must be no more than 63 bytes"]);
    }

    #[test]
    fn a_generate_name_may_end_in_a_dash() {
        assert!(name_is_dns_subdomain("web-", true).is_empty());
        assert!(!name_is_dns_subdomain("web-", false).is_empty());
        assert!(!name_is_dns_label("é-", true).is_empty());
    }
}
