//! What the validators of all kinds share: collecting errors, and checks of common field types.

use std::net::{IpAddr, Ipv4Addr};

use super::access::{Fields, semantic_equal};
use crate::field::{BadValue, FieldError, FieldPath};
use crate::json::{Map, Value};
use crate::{labels, names};

/// The errors of one object, in the order in which they were found.
pub(crate) type Errors = Vec<FieldError>;

pub(crate) const IMMUTABLE: &str = "field is immutable";
pub(crate) const NEGATIVE: &str = "must be greater than or equal to 0";
pub(crate) const NOT_POSITIVE: &str = "must be greater than zero";

/// Short forms of adding an error to a list.
pub(crate) trait Report {
    fn invalid(&mut self, path: &FieldPath, value: impl Into<BadValue>, detail: impl Into<String>);
    fn required(&mut self, path: &FieldPath, detail: impl Into<String>);
    fn forbidden(&mut self, path: &FieldPath, detail: impl Into<String>);
    fn duplicate(&mut self, path: &FieldPath, value: impl Into<BadValue>);
    fn not_found(&mut self, path: &FieldPath, value: impl Into<BadValue>);
    fn not_supported(&mut self, path: &FieldPath, value: impl Into<BadValue>, supported: &[&str]);
    /// One invalid-value error for each message.
    fn messages(&mut self, path: &FieldPath, value: &str, messages: Vec<String>);
}

impl Report for Errors {
    fn invalid(&mut self, path: &FieldPath, value: impl Into<BadValue>, detail: impl Into<String>) {
        self.push(FieldError::invalid(path, value, detail));
    }
    fn required(&mut self, path: &FieldPath, detail: impl Into<String>) {
        self.push(FieldError::required(path, detail));
    }
    fn forbidden(&mut self, path: &FieldPath, detail: impl Into<String>) {
        self.push(FieldError::forbidden(path, detail));
    }
    fn duplicate(&mut self, path: &FieldPath, value: impl Into<BadValue>) {
        self.push(FieldError::duplicate(path, value));
    }
    fn not_found(&mut self, path: &FieldPath, value: impl Into<BadValue>) {
        self.push(FieldError::not_found(path, value));
    }
    fn not_supported(&mut self, path: &FieldPath, value: impl Into<BadValue>, supported: &[&str]) {
        self.push(FieldError::not_supported(path, value, supported));
    }
    fn messages(&mut self, path: &FieldPath, value: &str, messages: Vec<String>) {
        for message in messages {
            self.push(FieldError::invalid(path, value, message));
        }
    }
}

/// The member as it prints in an error: null when absent.
pub(crate) fn shown(v: &Value) -> BadValue {
    BadValue::Value(v.clone())
}

pub(crate) fn nonnegative(value: i64, path: &FieldPath, errors: &mut Errors) {
    if value < 0 {
        errors.invalid(path, value, NEGATIVE);
    }
}

/// An integer member that must not be negative.
pub(crate) fn nonnegative_member(object: &Value, key: &str, path: &FieldPath, errors: &mut Errors) {
    nonnegative(object.i(key), &path.child(key), errors);
}

pub(crate) fn positive(value: i64, path: &FieldPath, errors: &mut Errors) {
    if value <= 0 {
        errors.invalid(path, value, NOT_POSITIVE);
    }
}

pub(crate) fn immutable(new: &Value, old: &Value, path: &FieldPath, errors: &mut Errors) {
    if !semantic_equal(new, old) {
        errors.invalid(path, shown(new), IMMUTABLE);
    }
}

/// A member that must be set and one of an enumeration, which is printed in the order given.
pub(crate) fn one_of(object: &Value, key: &str, supported: &[&str], path: &FieldPath, errors: &mut Errors) {
    let value = object.s(key);
    if value.is_empty() {
        errors.required(&path.child(key), "");
    } else if !supported.contains(&value) {
        errors.not_supported(&path.child(key), value, supported);
    }
}

/// The same for a pointer: an empty string is a value, and not a supported one.
pub(crate) fn one_of_present(object: &Value, key: &str, supported: &[&str], path: &FieldPath, errors: &mut Errors) {
    if object.has(key) {
        optional_one_of(object, key, supported, path, errors);
    } else {
        errors.required(&path.child(key), "");
    }
}

/// A member that may be absent and otherwise must be one of an enumeration.
pub(crate) fn optional_one_of(object: &Value, key: &str, supported: &[&str], path: &FieldPath, errors: &mut Errors) {
    if let Some(value) = object.os(key)
        && !supported.contains(&value)
    {
        errors.not_supported(&path.child(key), value, supported);
    }
}

pub(crate) fn required_string(object: &Value, key: &str, path: &FieldPath, errors: &mut Errors) {
    if object.s(key).is_empty() {
        errors.required(&path.child(key), "");
    }
}

/// A member that must be set and fit into a path as one segment: names and kinds of any object.
pub(crate) fn required_path_segment(object: &Value, key: &str, path: &FieldPath, errors: &mut Errors) {
    let value = object.s(key);
    if value.is_empty() {
        errors.required(&path.child(key), "");
    } else {
        errors.messages(&path.child(key), value, names::is_path_segment_name(value));
    }
}

pub(crate) fn dns_label(value: &str, path: &FieldPath, errors: &mut Errors) {
    errors.messages(path, value, names::is_dns1123_label(value));
}

pub(crate) fn dns_subdomain(value: &str, path: &FieldPath, errors: &mut Errors) {
    errors.messages(path, value, names::is_dns1123_subdomain(value));
}

pub(crate) fn qualified_name(value: &str, path: &FieldPath, errors: &mut Errors) {
    errors.messages(path, value, names::is_qualified_name(value));
}

/// A label key.
pub(crate) fn label_name(value: &str, path: &FieldPath, errors: &mut Errors) {
    errors.append(&mut labels::validate_label_name(value, path));
}

/// A map of labels; keys and values are reported at the map's own path.
pub(crate) fn labels(labels: &Map, path: &FieldPath, errors: &mut Errors) {
    errors.append(&mut labels::validate_labels(labels, path));
}

/// Total size of keys and values of annotations, in bytes.
pub(crate) const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// Checks the annotations of an object.
pub fn annotations(annotations: &Map, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let mut size = 0;
    for (key, value) in annotations.iter() {
        // Annotation keys are not case sensitive to this check.
        let lower = key.to_lowercase();
        for message in names::is_qualified_name(&lower) {
            errors.push(FieldError::invalid(path, key.as_str(), message));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX_BYTES as i64));
    }
}

pub(crate) use crate::labels::LabelSelectorOptions as SelectorOptions;

pub(crate) fn label_selector(
    selector: Option<&Value>,
    options: SelectorOptions,
    path: &FieldPath,
    errors: &mut Errors,
) {
    if let Some(selector) = selector {
        errors.append(&mut labels::validate_label_selector(selector, options, path));
    }
}

/// True when a stored selector has values that today's rules refuse.
pub(crate) fn selector_has_invalid_value(selector: &Value) -> bool {
    labels::has_invalid_label_value(selector)
}

/// Whether the selector selects everything.
pub(crate) fn selector_is_empty(selector: &Value) -> bool {
    selector.members("matchLabels").is_empty() && selector.list("matchExpressions").is_empty()
}

/// Whether a selector can be evaluated at all.
pub(crate) fn selector_is_valid(selector: &Value) -> bool {
    labels::Selector::from_label_selector(selector).is_ok()
}

/// Whether labels fulfil a selector.
pub(crate) fn selector_matches(selector: &Value, labels: &Map) -> bool {
    labels::Selector::from_label_selector(selector).is_ok_and(|s| s.matches(labels))
}

/// A port number, or the name of a port.
pub(crate) fn port_or_name(port: &Value, path: &FieldPath, errors: &mut Errors) {
    match port {
        Value::String(name) => errors.messages(path, name, names::is_valid_port_name(name)),
        number => {
            let number = number.as_i64().unwrap_or(0);
            port_number(number, path, errors);
        }
    }
}

pub(crate) fn port_number(port: i64, path: &FieldPath, errors: &mut Errors) {
    for message in names::is_valid_port_num(port) {
        errors.invalid(path, port, message);
    }
}

/// Reads an IP address as Go used to: leading zeros in IPv4 octets are accepted.
pub(crate) fn parse_ip_sloppy(value: &str) -> Option<IpAddr> {
    if let Ok(ip) = value.parse::<IpAddr>() {
        return Some(ip);
    }
    let octets: Vec<&str> = value.split('.').collect();
    if octets.len() != 4 {
        return None;
    }
    let mut out = [0u8; 4];
    for (slot, octet) in out.iter_mut().zip(octets) {
        if octet.is_empty() || !octet.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *slot = octet
            .trim_start_matches('0')
            .parse()
            .or_else(|e| if octet.bytes().all(|b| b == b'0') { Ok(0) } else { Err(e) })
            .ok()?;
    }
    Some(IpAddr::V4(Ipv4Addr::from(out)))
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The IPv4 address inside a mapped IPv6 one, anything else as it is: what Go's `net.IP` prints.
pub(crate) fn unmapped(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// An address of a field that predates strict checking; values that were stored before pass.
pub(crate) fn legacy_ip(value: &str, old: &[&str], path: &FieldPath, errors: &mut Errors) -> bool {
    if old.contains(&value) {
        return true;
    }
    let before = errors.len();
    strict_ip(value, path, errors);
    errors.len() == before
}

fn strict_ip(value: &str, path: &FieldPath, errors: &mut Errors) -> Option<IpAddr> {
    let Some(ip) = parse_ip_sloppy(value) else {
        errors.invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        return None;
    };
    match value.parse::<IpAddr>() {
        Err(_) => errors.invalid(path, value, "must not have leading 0s"),
        Ok(ip) if is_mapped(ip) => errors.invalid(path, value, "must not be an IPv4-mapped IPv6 address"),
        Ok(_) => return Some(ip),
    }
    None
}

/// An address in its one canonical spelling.
pub(crate) fn canonical_ip(value: &str, path: &FieldPath, errors: &mut Errors) {
    if let Some(ip) = strict_ip(value, path, errors)
        && ip.to_string() != value
    {
        errors.invalid(path, value, format!("must be in canonical form ({:?})", ip.to_string()));
    }
}

/// An address and prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub ip: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// The network's first address.
    pub fn network(self) -> IpAddr {
        match self.ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4((u32::from(ip) & mask).into())
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6((u128::from(ip) & mask).into())
            }
        }
    }

    pub fn contains(self, ip: IpAddr) -> bool {
        self.ip.is_ipv4() == ip.is_ipv4() && Cidr { ip, prefix: self.prefix }.network() == self.network()
    }

    pub fn is_ipv6(self) -> bool {
        self.ip.is_ipv6()
    }
}

/// Reads `address/length`, accepting leading zeros.
pub(crate) fn parse_cidr_sloppy(value: &str) -> Option<Cidr> {
    let (ip, prefix) = value.split_once('/')?;
    let ip = parse_ip_sloppy(ip)?;
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let prefix: u8 = prefix.parse().ok()?;
    let max = if ip.is_ipv4() { 32 } else { 128 };
    (prefix <= max).then_some(Cidr { ip, prefix })
}

fn strict_cidr(value: &str, path: &FieldPath, errors: &mut Errors) -> Option<Cidr> {
    let Some(cidr) = parse_cidr_sloppy(value) else {
        errors.invalid(path, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        return None;
    };
    let (ip, prefix) = value.split_once('/').unwrap_or((value, ""));
    let zeros = ip.parse::<IpAddr>().is_err() || (prefix.len() > 1 && prefix.starts_with('0'));
    if zeros {
        errors.invalid(path, value, "must not have leading 0s in IP or prefix length");
    } else if is_mapped(cidr.ip) {
        errors.invalid(path, value, "must not have an IPv4-mapped IPv6 address");
    } else if cidr.ip != cidr.network() {
        errors.invalid(path, value, "must not have bits set beyond the prefix length");
    } else {
        return Some(cidr);
    }
    None
}

/// A CIDR of a field that predates strict checking; values that were stored before pass.
pub(crate) fn legacy_cidr(value: &str, old: &[&str], path: &FieldPath, errors: &mut Errors) -> bool {
    if old.contains(&value) {
        return true;
    }
    let before = errors.len();
    strict_cidr(value, path, errors);
    errors.len() == before
}

/// A CIDR in its one canonical spelling.
pub(crate) fn canonical_cidr(value: &str, path: &FieldPath, errors: &mut Errors) {
    if let Some(cidr) = strict_cidr(value, path, errors) {
        let canonical = format!("{}/{}", cidr.network(), cidr.prefix);
        if canonical != value {
            errors.invalid(path, value, format!("must be in canonical form ({canonical:?})"));
        }
    }
}

/// Two addresses, one of each family.
pub(crate) fn is_dual_stack(ips: &[&str]) -> bool {
    let families: Vec<bool> =
        ips.iter().filter_map(|ip| parse_ip_sloppy(ip)).map(|ip| unmapped(ip).is_ipv6()).collect();
    families.contains(&true) && families.contains(&false)
}

/// Warnings about addresses that are valid and still not written as they should be.
pub(crate) fn ip_warnings(value: &str, path: &FieldPath) -> Vec<String> {
    let Some(ip) = parse_ip_sloppy(value) else { return Vec::new() };
    match value.parse::<IpAddr>() {
        Ok(strict) if !is_mapped(strict) => {
            if strict.is_ipv6() && strict.to_string() != value {
                vec![format!(
                    "{path}: IPv6 address {value:?} should be in RFC 5952 canonical format ({:?})",
                    strict.to_string()
                )]
            } else {
                Vec::new()
            }
        }
        _ => vec![format!("{path}: non-standard IP address {value:?} is invalid: use {:?}", unmapped(ip).to_string())],
    }
}

/// The same for CIDRs.
pub(crate) fn cidr_warnings(value: &str, path: &FieldPath) -> Vec<String> {
    let Some(cidr) = parse_cidr_sloppy(value) else { return Vec::new() };
    let network = format!("{}/{}", unmapped(cidr.network()), cidr.prefix);
    let mut out = Vec::new();
    if cidr.ip != cidr.network() {
        let bits = if cidr.is_ipv6() { 128 } else { 32 };
        let single = format!("{}/{bits}", cidr.ip);
        out.push(format!(
            "{path}: CIDR value {value:?} is ambiguous in this context (should be {network:?} or {single:?}?)"
        ));
    }
    let (ip, prefix) = value.split_once('/').unwrap_or((value, ""));
    let strict = ip.parse::<IpAddr>().is_ok() && !(prefix.len() > 1 && prefix.starts_with('0'));
    if !strict || is_mapped(cidr.ip) {
        out.push(format!("{path}: non-standard CIDR value {value:?} is invalid: use {network:?}"));
    }
    if out.is_empty() && cidr.is_ipv6() && format!("{}/{}", cidr.ip, cidr.prefix) != value {
        out.push(format!(
            "{path}: IPv6 CIDR value {value:?} should be in RFC 5952 canonical format ({:?})",
            format!("{}/{}", cidr.ip, cidr.prefix)
        ));
    }
    out
}

/// The strings of a list member.
pub(crate) fn strings<'a>(object: &'a Value, key: &str) -> Vec<&'a str> {
    object.list(key).iter().map(|v| v.as_str().unwrap_or("")).collect()
}

/// `metav1.Condition` in a status.
pub(crate) fn conditions(conditions: &[Value], path: &FieldPath, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        let kind = condition.s("type");
        if seen.contains(&kind) {
            errors.duplicate(&path.child("type"), kind);
        } else {
            seen.push(kind);
        }
        label_name(kind, &path.child("type"), errors);
        if !matches!(condition.s("status"), "True" | "False" | "Unknown") {
            errors.not_supported(&path.child("status"), condition.s("status"), &["False", "True", "Unknown"]);
        }
        if condition.i("observedGeneration") < 0 {
            errors.invalid(
                &path.child("observedGeneration"),
                condition.i("observedGeneration"),
                "must be greater than or equal to zero",
            );
        }
        if !condition.has("lastTransitionTime") {
            errors.required(&path.child("lastTransitionTime"), "");
        }
        let reason = condition.s("reason");
        if reason.is_empty() {
            errors.required(&path.child("reason"), "");
        } else {
            if !is_condition_reason(reason) {
                errors.invalid(
                    &path.child("reason"),
                    reason,
                    names::regex_error(
                        "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
                        "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
                        &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"],
                    ),
                );
            }
            if reason.len() > 1024 {
                errors.push(FieldError::too_long(&path.child("reason"), 1024));
            }
        }
        if condition.s("message").len() > 32 * 1024 {
            errors.push(FieldError::too_long(&path.child("message"), 32 * 1024));
        }
    }
}

fn is_condition_reason(reason: &str) -> bool {
    let bytes = reason.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_,:".contains(b))
}
