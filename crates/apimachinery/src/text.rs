//! How Go prints values, for messages that clients compare byte for byte.
//!
//! Follows: `strconv.Quote` (`%q`), `fmt` `%v` of floats, `encoding/json` with HTML escaping.

use std::fmt::Write as _;

use crate::json::{Number, Value};

/// A string in double quotes as Go's `%q` prints it.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            _ if is_print(c) => out.push(c),
            c if (c as u32) < 0x80 => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if (c as u32) < 0x10000 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => {
                let _ = write!(out, "\\U{:08x}", c as u32);
            }
        }
    }
    out.push('"');
    out
}

/// Whether Go's `unicode.IsPrint` holds: letters, marks, numbers, punctuation, symbols and the ASCII space.
pub fn is_print(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    // The standard library's own printability table, reached through string escaping: only the first character of a
    // string has its combining marks escaped, so a letter goes in front.
    let mut s = String::with_capacity(8);
    s.push('a');
    s.push(c);
    s.escape_debug().count() == 2
}

/// A float as `%v` prints it: shortest digits, with an exponent below 1e-4 and from 1e21 on.
pub fn float(f: f64) -> String {
    if f == 0.0 || !f.is_finite() {
        return match f {
            f if f.is_nan() => "NaN".to_owned(),
            f if f == f64::INFINITY => "+Inf".to_owned(),
            f if f == f64::NEG_INFINITY => "-Inf".to_owned(),
            f if f.is_sign_negative() => "-0".to_owned(),
            _ => "0".to_owned(),
        };
    }
    let magnitude = f.abs();
    if (1e-4..1e21).contains(&magnitude) {
        return format!("{f}");
    }
    let exponential = format!("{f:e}");
    match exponential.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => exponential,
    }
}

/// JSON as Go's `json.Marshal` writes it: compact, with `<`, `>`, `&` and the line separators escaped.
pub fn json(value: &Value) -> String {
    let plain = value.to_string();
    if !plain.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return plain;
    }
    // These characters occur inside string literals only, so replacing them in the text is exact.
    let mut out = String::with_capacity(plain.len() + 16);
    for c in plain.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// Appends what [`json`] gives.
pub fn push_json(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => push_json_string(text, out),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(Number::Int(i)) => {
            let _ = write!(out, "{i}");
        }
        other => out.push_str(&json(other)),
    }
}

/// Appends a string as [`json`] gives it.
pub fn push_json_string(text: &str, out: &mut String) {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'<' | b'>' | b'&') || b == b' ';
    if text.bytes().all(plain) {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&json(&text.into()));
    }
}

/// A scalar as `%v` prints it; everything else as JSON.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.to_string(),
        Value::Number(Number::Float(f)) => float(*f),
        other => json(other),
    }
}

/// A tree as `%v` prints Go's unstructured content: `map[a:1 b:[x y]]`, `<nil>` for null.
pub fn go_value(value: &Value) -> String {
    let mut out = String::new();
    write_go_value(&mut out, value);
    out
}

fn write_go_value(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("<nil>"),
        Value::String(s) => out.push_str(s),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                write_go_value(out, item);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push_str("map[");
            for (i, (key, item)) in members.iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                out.push_str(key);
                out.push(':');
                write_go_value(out, item);
            }
            out.push(']');
        }
        scalar => out.push_str(&plain(scalar)),
    }
}

/// A tree as `%#v` prints Go's unstructured content: `map[string]interface {}{"a":1}`.
pub fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::String(s) => quote(s),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_syntax).collect();
            format!("[]interface {{}}{{{}}}", items.join(", "))
        }
        Value::Object(members) => {
            let members: Vec<String> = members.iter().map(|(k, v)| format!("{}:{}", quote(k), go_syntax(v))).collect();
            format!("map[string]interface {{}}{{{}}}", members.join(", "))
        }
        scalar => plain(scalar),
    }
}

/// The Go type that unstructured content of this kind has, as `%T` prints it.
pub fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(Number::Float(_)) => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A list of strings as `%v` prints a Go slice: `[a b]`.
pub fn list<S: AsRef<str>>(items: &[S]) -> String {
    let mut out = String::from("[");
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(' ');
        }
        out.push_str(item.as_ref());
    }
    out.push(']');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn strings_are_quoted_as_go_does() {
        for (input, want) in [
            ("web", r#""web""#),
            ("a\"b\\c\n", r#""a\"b\\c\n""#),
            ("\u{0}\u{7f}", r#""\x00\x7f""#),
            ("é\u{a0}\u{301}😀\u{e000}", "\"é\\u00a0\u{301}😀\\ue000\""),
            ("\u{f0000}", r#""\U000f0000""#),
        ] {
            assert_eq!(quote(input), want, "input {input:?}");
        }
    }

    #[test]
    fn floats_print_as_percent_v() {
        for (input, want) in
            [(1.5, "1.5"), (0.00001, "1e-05"), (1e21, "1e+21"), (123456789.0, "123456789"), (-0.25, "-0.25")]
        {
            assert_eq!(float(input), want);
        }
    }

    #[test]
    fn trees_print_as_go_prints_them() {
        let tree = json!({"b": [1, "x", null, true], "a": {"c": 1.5}});
        assert_eq!(go_value(&tree), "map[a:map[c:1.5] b:[1 x <nil> true]]");
        assert_eq!(go_syntax(&json!({"a": ["x"]})), r#"map[string]interface {}{"a":[]interface {}{"x"}}"#);
    }

    #[test]
    fn json_escapes_html() {
        assert_eq!(json(&json!({"a": "<b>&"})), r#"{"a":"\u003cb\u003e\u0026"}"#);
    }
}
