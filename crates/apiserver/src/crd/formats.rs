//! Formats of strings that schemas may ask for.
//!
//! Unknown formats are ignored, as upstream strips them. Follows: `k8s.io/kube-openapi/pkg/validation/strfmt` and the list of
//! supported formats in `apiextensions-apiserver/pkg/apiserver/validation/formats.go`.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::LazyLock;

use base64::Engine as _;
use regex::Regex;

use super::schema::NodeType;

/// Whether `text` is of `format`; unknown formats hold everything.
pub fn matches(format: &str, text: &str) -> bool {
    match format {
        "uuid" => uuid(text, None),
        "uuid3" => uuid(text, Some(b'3')),
        "uuid4" => uuid(text, Some(b'4')),
        "uuid5" => uuid(text, Some(b'5')),
        "ipv4" => ipv4(text),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text.replace(['\n', '\r'], "")).is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "datetime" | "date-time" => date_time(text),
        "duration" => duration(text),
        "email" => email(text),
        "hostname" => hostname(text),
        "uri" => uri(text),
        "hexcolor" => hex_color(text),
        "rgbcolor" => rgb_color(text),
        "creditcard" => credit_card(text),
        "ssn" => shape(text, "ddd-dd-dddd") || shape(text, "ddd dd dddd"),
        "isbn" => isbn(text, 10) || isbn(text, 13),
        "isbn10" => isbn(text, 10),
        "isbn13" => isbn(text, 13),
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "k8s-short-name" => apimachinery::names::is_dns1123_label(text).is_empty(),
        "k8s-long-name" => apimachinery::names::is_dns1123_subdomain(text).is_empty(),
        _ => true,
    }
}

fn uuid(text: &str, version: Option<u8>) -> bool {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    let dashes = match text.len() {
        36 => text.bytes().enumerate().all(|(i, b)| (b == b'-') == matches!(i, 8 | 13 | 18 | 23)),
        32 => !text.contains('-'),
        _ => false,
    };
    dashes && digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit) && version.is_none_or(|v| digits[12] == v)
}

fn cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else { return false };
    let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
    match (address.parse::<IpAddr>(), prefix.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(prefix)) => digits && prefix <= 32,
        (Ok(IpAddr::V6(_)), Ok(prefix)) => digits && prefix <= 128,
        _ => false,
    }
}

fn mac(text: &str) -> bool {
    let separator = if text.contains('-') { '-' } else { ':' };
    let groups: Vec<&str> = text.split(separator).collect();
    matches!(groups.len(), 6 | 8 | 20)
        && groups.iter().all(|g| g.len() == 2 && g.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn date_time(text: &str) -> bool {
    text.len() >= 19
        && matches!(text.as_bytes()[10], b'T' | b't')
        && text.to_uppercase().parse::<jiff::Timestamp>().is_ok()
}

/// Go's durations, or numbers with words: `3 days`, `2 h`.
fn duration(text: &str) -> bool {
    if go_duration(text) {
        return true;
    }
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if digits == 0 {
        return false;
    }
    let unit = text[digits..].trim();
    let units = [
        "ns",
        "nano",
        "nanos",
        "nanosecond",
        "nanoseconds",
        "us",
        "µs",
        "micro",
        "micros",
        "microsecond",
        "microseconds",
        "ms",
        "milli",
        "millis",
        "millisecond",
        "milliseconds",
        "s",
        "sec",
        "secs",
        "second",
        "seconds",
        "m",
        "min",
        "mins",
        "minute",
        "minutes",
        "h",
        "hr",
        "hrs",
        "hour",
        "hours",
        "d",
        "day",
        "days",
        "w",
        "wk",
        "wks",
        "week",
        "weeks",
    ];
    units.contains(&unit)
}

fn go_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        if number.is_empty() || number == "." || number.matches('.').count() > 1 {
            return false;
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        if !["ns", "us", "µs", "μs", "ms", "s", "m", "h"].contains(&&after[..end]) {
            return false;
        }
        rest = &after[end..];
    }
    true
}

fn email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    !local.is_empty()
        && !domain.is_empty()
        && !text.contains([' ', '<', '>', ','])
        && !local.starts_with('.')
        && !local.ends_with('.')
}

/// One label, or labels with a top-level domain of at least two letters.
fn hostname(text: &str) -> bool {
    static PATTERN: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let letter = r"a-zA-Z0-9\p{S}\p{L}";
        let one = format!("[{letter}](-?[{letter}]{{0,62}})?");
        let many = format!(r"([{letter}]([{letter}-]{{0,61}}[{letter}])?\.)+[a-zA-Z\p{{L}}]{{2,63}}");
        Regex::new(&format!("^({one}|{many})$")).ok()
    });
    let matches = |pattern: &Regex| pattern.is_match(text);
    text.len() <= 255 && text.split('.').all(|l| l.len() <= 63) && PATTERN.as_ref().is_some_and(matches)
}

/// Leading zeros are digits like others.
fn ipv4(text: &str) -> bool {
    let number = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && part.parse::<u32>().is_ok_and(|n| n <= 255)
    };
    let parts: Vec<&str> = text.split('.').collect();
    parts.len() == 4 && parts.into_iter().all(number)
}

/// Whether values of a type are checked to be numbers of this format.
pub fn of_numbers(ty: NodeType, format: &str) -> bool {
    matches!((ty, format), (NodeType::Integer, "int32" | "int64") | (NodeType::Number, "float" | "double"))
}

/// Whether a format means something for values of this `type`. Others are ignored, with a warning.
pub fn is_known(ty: &str, format: &str) -> bool {
    const STRINGS: [&str; 27] = [
        "bsonobjectid",
        "uri",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "cidr",
        "mac",
        "uuid",
        "uuid3",
        "uuid4",
        "uuid5",
        "isbn",
        "isbn10",
        "isbn13",
        "creditcard",
        "ssn",
        "hexcolor",
        "rgbcolor",
        "byte",
        "password",
        "date",
        "duration",
        "datetime",
        "k8sshortname",
        "k8slongname",
        "",
    ];
    match ty {
        "" | "string" => STRINGS.contains(&format.replace('-', "").as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

/// Source: `net/url.ParseRequestURI`.
fn uri(text: &str) -> bool {
    if text.is_empty() || text.contains(char::is_control) || text.contains(' ') {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        && !rest.is_empty()
}

fn hex_color(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or(text);
    matches!(digits.len(), 3 | 6) && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

fn rgb_color(text: &str) -> bool {
    let Some(inner) = text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')')) else { return false };
    let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
    parts.len() == 3 && parts.iter().all(|p| p.parse::<u8>().is_ok())
}

fn credit_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let only = text.chars().all(|c| c.is_ascii_digit() || c == '-' || c == ' ');
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| match (i % 2, d * 2) {
            (0, _) => *d,
            (_, doubled) if doubled > 9 => doubled - 9,
            (_, doubled) => doubled,
        })
        .sum();
    only && (13..=19).contains(&digits.len()) && sum.is_multiple_of(10)
}

/// `d` in `pattern` is a digit.
fn shape(text: &str, pattern: &str) -> bool {
    text.len() == pattern.len()
        && text.chars().zip(pattern.chars()).all(|(c, p)| if p == 'd' { c.is_ascii_digit() } else { c == p })
}

fn isbn(text: &str, length: usize) -> bool {
    let plain: Vec<char> = text.chars().filter(|c| *c != '-' && *c != ' ').collect();
    if plain.len() != length {
        return false;
    }
    let digit = |i: usize| match plain[i] {
        'X' | 'x' if length == 10 && i == 9 => Some(10),
        c => c.to_digit(10),
    };
    let Some(digits) = (0..length).map(digit).collect::<Option<Vec<u32>>>() else { return false };
    let weighted = |weight: &dyn Fn(usize) -> u32| digits.iter().enumerate().map(|(i, d)| d * weight(i)).sum::<u32>();
    match length {
        10 => weighted(&|i| 10 - i as u32).is_multiple_of(11),
        _ => weighted(&|i| if i % 2 == 0 { 1 } else { 3 }).is_multiple_of(10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_hold_what_they_name() {
        for (format, good, bad) in [
            ("uuid", "3fa85f64-5717-4562-b3fc-2c963f66afa6", "3fa85f64"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "00:1a:2b:3c:4d:5e", "00:1a"),
            ("byte", "aGVsbG8=", "%"),
            ("date", "2026-01-02", "2026-13-02"),
            ("date-time", "2026-01-02T03:04:05Z", "2026-01-02"),
            ("duration", "1h30m", "x"),
            ("duration", "3 days", "days"),
            ("email", "a@b.example", "a"),
            ("hostname", "a.example", "-a"),
            ("uri", "https://a.example/x", "a b"),
            ("hexcolor", "#fff", "#ggg"),
            ("creditcard", "4111-1111-1111-1111", "4111-1111-1111-1112"),
            ("isbn10", "0-306-40615-2", "0-306-40615-3"),
            ("isbn13", "978-0-306-40615-7", "978-0-306-40615-8"),
        ] {
            assert!(matches(format, good), "{format} {good}");
            assert!(!matches(format, bad), "{format} {bad}");
        }
        assert!(matches("made-up", "anything"));
    }
}
