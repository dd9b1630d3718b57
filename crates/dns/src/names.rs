//! Names as text: lower case, without the last dot, labels from left to right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

/// A name in lower case without the last dot. A byte that no host name has becomes a control character, so that such a
/// name equals nothing.
pub(crate) fn lower(name: &Name) -> String {
    let mut text = String::with_capacity(64);
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| match byte {
            b'.' => '\u{1}',
            b'!'..=b'~' => byte.to_ascii_lowercase() as char,
            _ => '\u{2}',
        }));
    }
    text
}

/// Text from a configuration as [`lower`] writes it.
pub(crate) fn normal(text: &str) -> String {
    text.trim_end_matches('.').to_ascii_lowercase()
}

/// A name from text, fully qualified.
pub(crate) fn name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// What is left of `name` below `zone`: empty at the zone itself, `None` outside.
pub(crate) fn below<'a>(name: &'a str, zone: &str) -> Option<&'a str> {
    if zone.is_empty() {
        return Some(name);
    }
    let rest = name.strip_suffix(zone)?;
    if rest.is_empty() { Some("") } else { rest.strip_suffix('.') }
}

/// The address that `4.3.2.1.in-addr.arpa` or the 32 nibbles below `ip6.arpa` stand for.
pub(crate) fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(rest) = below(name, "in-addr.arpa") {
        let mut octets = [0u8; 4];
        let mut labels = rest.split('.');
        for octet in octets.iter_mut().rev() {
            let label = labels.next()?;
            // `01` is no way to write an octet.
            if label.len() > 1 && label.starts_with('0') || label.starts_with('+') {
                return None;
            }
            *octet = label.parse().ok()?;
        }
        return labels.next().is_none().then(|| Ipv4Addr::from(octets).into());
    }
    let rest = below(name, "ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for label in rest.split('.') {
        let &[digit] = label.as_bytes() else { return None };
        let digit = (digit as char).to_digit(16)?;
        if count == 32 {
            return None;
        }
        bits |= u128::from(digit) << (4 * count);
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(bits).into())
}

/// The label of an endpoint without a host name: its address with dashes.
pub(crate) fn dashed(address: &IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string().replace('.', "-"),
        IpAddr::V6(address) => {
            let text = address.to_string().replace(':', "-");
            // A label must not end with a dash.
            if text.ends_with('-') { text + "0" } else { text }
        }
    }
}

/// The address in a pod's label such as `10-1-2-3` or `fd00--1`.
pub(crate) fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.matches('-').count() == 3 && !label.contains("--");
    if v4 { label.replace('-', ".").parse().ok() } else { label.replace('-', ":").parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_are_read_whole_or_not_at_all() {
        for (text, want) in [
            ("4.3.2.1.in-addr.arpa", Some("1.2.3.4")),
            ("3.2.1.in-addr.arpa", None),
            ("5.4.3.2.1.in-addr.arpa", None),
            ("04.3.2.1.in-addr.arpa", None),
            ("x.3.2.1.in-addr.arpa", None),
            ("in-addr.arpa", None),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", Some("2001:db8::1")),
            ("0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", None),
            ("ip6.arpa", None),
            ("a.example", None),
        ] {
            assert_eq!(reverse_address(text), want.map(|text| text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn addresses_become_labels_and_back() {
        for (address, label) in [("10.1.2.3", "10-1-2-3"), ("fd00::1", "fd00--1"), ("fd00::", "fd00--0")] {
            assert_eq!(dashed(&address.parse().unwrap()), label);
        }
        for (label, want) in [
            ("10-1-2-3", Some("10.1.2.3")),
            ("fd00--1", Some("fd00::1")),
            ("1-2-3", None),
            ("10-1-2-300", None),
            ("web", None),
        ] {
            assert_eq!(undashed(label), want.map(|text| text.parse().unwrap()), "{label}");
        }
    }

    #[test]
    fn a_dot_inside_a_label_is_no_separator() {
        let name = Name::from_labels([&b"a.b"[..], b"C", b"x y"]).unwrap();
        assert_eq!(lower(&name), "a\u{1}b.c.x\u{2}y");
        assert_eq!(below("a.b", "b"), Some("a"));
        assert_eq!(below("ab", "b"), None);
        assert_eq!(below("b", "b"), Some(""));
    }
}
