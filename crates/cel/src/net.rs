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

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let bad = || {
        format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        )
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
        let bad = || format!("{PROBLEM}: {PROBLEM}: netip.ParsePrefix({text:?}): bad bits after slash");
        let no_slash = || format!("{PROBLEM}: {PROBLEM}: netip.ParsePrefix({text:?}): no '/'");
        let (address, prefix) = text.split_once('/').ok_or_else(no_slash)?;
        let address = parse_ip(address)?;
        if prefix.is_empty() || prefix.starts_with('+') || (prefix.len() > 1 && prefix.starts_with('0')) {
            return Err(bad());
        }
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if prefix > bits(address).1 {
            return Err(bad());
        }
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
            ("containsIP", [Val::String(s)]) => Ok(self.holds(parse_ip(s)?).into()),
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
