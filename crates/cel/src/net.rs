//! IP addresses and networks.
//!
//! Follows: `k8s.io/apiserver/pkg/cel/library/{ip,cidr}.go`: no zones, no IPv4-mapped IPv6 addresses.

use std::any::Any;
use std::net::IpAddr;

use crate::k8s::opaque;
use crate::stdlib::{NO_OVERLOAD, Outcome};
use crate::value::{Opaque, Val};

#[derive(Debug, PartialEq)]
struct Ip(IpAddr);

#[derive(Debug, PartialEq)]
struct Cidr {
    address: IpAddr,
    prefix: u8,
}

pub(crate) fn call(name: &str, args: &[Val]) -> Outcome {
    match (name, args) {
        ("ip", [Val::String(s)]) => parse_ip(s).map(|ip| opaque(Ip(ip))),
        ("isIP", [Val::String(s)]) => Ok(parse_ip(s).is_ok().into()),
        ("ip.isCanonical", [Val::String(s)]) => parse_ip(s).map(|ip| (ip.to_string() == **s).into()),
        ("cidr", [Val::String(s)]) => Cidr::parse(s).map(opaque),
        ("isCIDR", [Val::String(s)]) => Ok(Cidr::parse(s).is_ok().into()),
        (_, [Val::Opaque(o), rest @ ..]) => {
            if let Some(Ip(ip)) = o.as_any().downcast_ref::<Ip>() {
                ip_call(*ip, name, rest)
            } else if let Some(cidr) = o.as_any().downcast_ref::<Cidr>() {
                cidr.call(name, rest)
            } else {
                Err(NO_OVERLOAD)
            }
        }
        _ => Err(NO_OVERLOAD),
    }
}

/// Why a text is no address, in the words of Go's `netip`.
fn address_problem(text: &str) -> String {
    match text.find(['.', ':', '%']).map(|i| &text[i..=i]) {
        Some(".") => {}
        Some("%") => return "missing IPv6 address".to_owned(),
        Some(_) => return version_6_problem(text),
        None => return "unable to parse IP".to_owned(),
    }
    let (mut value, mut digits, mut fields) = (0_u32, 0, 0);
    for (i, c) in text.char_indices() {
        let rest = &text[i..];
        match c.to_digit(10) {
            Some(_) if digits == 1 && value == 0 => return "IPv4 field has octet with leading zero".to_owned(),
            Some(digit) => {
                (value, digits) = (value * 10 + digit, digits + 1);
                if value > 255 {
                    return "IPv4 field has value >255".to_owned();
                }
            }
            None if c == '.' && (digits == 0 || rest == ".") => {
                return format!("IPv4 field must have at least one digit (at {rest:?})");
            }
            None if c == '.' && fields == 3 => return "IPv4 address too long".to_owned(),
            None if c == '.' => (value, digits, fields) = (0, 0, fields + 1),
            None => return format!("unexpected character (at {rest:?})"),
        }
    }
    "IPv4 address too short".to_owned()
}

fn version_6_problem(text: &str) -> String {
    let mut rest = text.strip_prefix("::").unwrap_or(text);
    let mut ellipsis = rest.len() < text.len();
    let mut fields = 0;
    while fields < 8 && !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        if digits == 0 {
            return format!("each colon-separated field must have at least one digit (at {rest:?})");
        }
        if digits > 4 {
            return format!("each group must have 4 or less digits (at {rest:?})");
        }
        fields += 1;
        rest = &rest[digits..];
        if rest.is_empty() {
            break;
        }
        let Some(after) = rest.strip_prefix(':') else {
            return format!("unexpected character, want colon (at {rest:?})");
        };
        if after.is_empty() {
            return format!("colon must be followed by more characters (at {rest:?})");
        }
        rest = after;
        if let Some(after) = rest.strip_prefix(':') {
            if ellipsis {
                return format!("multiple :: in address (at {rest:?})");
            }
            (ellipsis, rest) = (true, after);
        }
    }
    if !rest.is_empty() {
        return format!("trailing garbage after address (at {rest:?})");
    }
    if fields < 8 { "address string too short" } else { "the :: must expand to at least one field of zeros" }.to_owned()
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let bad = || {
        let problem = address_problem(text);
        format!("IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): {problem}")
    };
    if text.contains('%') {
        return Err(format!("IP address {text:?} with zone value is not allowed"));
    }
    let ip: IpAddr = text.parse().map_err(|_| bad())?;
    if let IpAddr::V6(v6) = ip
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"));
    }
    Ok(ip)
}

fn ip_call(ip: IpAddr, name: &str, args: &[Val]) -> Outcome {
    if !args.is_empty() {
        return Err(NO_OVERLOAD);
    }
    let link_local_multicast = match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let link_local_unicast = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    };
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    Ok(match name {
        "family" => Val::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => ip.is_unspecified().into(),
        "isLoopback" => ip.is_loopback().into(),
        "isLinkLocalMulticast" => link_local_multicast.into(),
        "isLinkLocalUnicast" => link_local_unicast.into(),
        "isGlobalUnicast" => {
            (!ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !link_local_unicast && !broadcast)
                .into()
        }
        _ => return Err(NO_OVERLOAD),
    })
}

fn bits(ip: IpAddr) -> (u128, u8) {
    match ip {
        // Shifted so that the prefix is at the top for both families.
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

impl Cidr {
    fn parse(text: &str) -> Result<Cidr, String> {
        const PROBLEM: &str = "network address parse error during conversion from string";
        let wrong = |why: String| format!("{PROBLEM}: {PROBLEM}: netip.ParsePrefix({text:?}): {why}");
        let (address, prefix) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'".to_owned()))?;
        let address = match address.parse::<IpAddr>() {
            Err(_) => return Err(wrong(format!("ParseAddr({address:?}): {}", address_problem(address)))),
            Ok(ip) => ip,
        };
        if let IpAddr::V6(v6) = address
            && v6.to_ipv4_mapped().is_some()
        {
            return Err(format!("{PROBLEM}: IPv4-mapped IPv6 address {text:?} is not allowed"));
        }
        let bad = || wrong(format!("bad bits after slash: {prefix:?}"));
        let digits = prefix.bytes().all(|b| b.is_ascii_digit());
        if !digits || (prefix.len() > 1 && prefix.starts_with('0')) {
            return Err(bad());
        }
        let length: i64 = prefix.parse().map_err(|_| bad())?;
        let out_of_range = || wrong("prefix length out of range".to_owned());
        let prefix = u8::try_from(length).ok().filter(|p| *p <= bits(address).1).ok_or_else(out_of_range)?;
        Ok(Cidr { address, prefix })
    }

    fn mask(&self) -> u128 {
        if self.prefix == 0 { 0 } else { u128::MAX << (128 - u32::from(self.prefix)) }
    }

    fn holds(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.address.is_ipv4() && bits(ip).0 & self.mask() == bits(self.address).0 & self.mask()
    }

    fn masked(&self) -> Cidr {
        let network = bits(self.address).0 & self.mask();
        let address = match self.address {
            IpAddr::V4(_) => IpAddr::from(((network >> 96) as u32).to_be_bytes()),
            IpAddr::V6(_) => IpAddr::from(network.to_be_bytes()),
        };
        Cidr { address, prefix: self.prefix }
    }

    fn call(&self, name: &str, args: &[Val]) -> Outcome {
        match (name, args) {
            // What is no address is told as an argument of a wrong type.
            ("containsIP", [Val::String(s)]) => match parse_ip(s) {
                Ok(ip) => Ok(self.holds(ip).into()),
                Err(_) => Err("no such overload".to_owned()),
            },
            ("containsIP", [Val::Opaque(o)]) => {
                o.as_any().downcast_ref::<Ip>().map(|ip| self.holds(ip.0).into()).ok_or(NO_OVERLOAD)
            }
            ("containsCIDR", [Val::String(s)]) => {
                let other = Cidr::parse(s)?;
                Ok((other.prefix >= self.prefix && self.holds(other.address)).into())
            }
            ("containsCIDR", [Val::Opaque(o)]) => {
                let other = o.as_any().downcast_ref::<Cidr>().ok_or(NO_OVERLOAD)?;
                Ok((other.prefix >= self.prefix && self.holds(other.address)).into())
            }
            ("ip", []) => Ok(opaque(Ip(self.address))),
            ("masked", []) => Ok(opaque(self.masked())),
            ("prefixLength", []) => Ok(Val::Int(self.prefix.into())),
            _ => Err(NO_OVERLOAD),
        }
    }
}

impl Opaque for Ip {
    fn type_name(&self) -> &'static str {
        "net.IP"
    }
    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<Ip>() == Some(self)
    }
    fn text(&self) -> Option<String> {
        Some(self.0.to_string())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Opaque for Cidr {
    fn type_name(&self) -> &'static str {
        "net.CIDR"
    }
    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<Cidr>() == Some(self)
    }
    fn text(&self) -> Option<String> {
        Some(format!("{}/{}", self.address, self.prefix))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
