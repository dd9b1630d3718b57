//! Blocks of addresses, and what two of them have in common.

use std::net::IpAddr;

use apimachinery::{Value, json};

/// A range such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cidr {
    v6: bool,
    first: u128,
    bits: u32,
}

impl Cidr {
    fn parse(text: &str) -> Option<Cidr> {
        let (address, bits) = text.split_once('/')?;
        let (v6, address, width) = match address.parse().ok()? {
            IpAddr::V4(address) => (false, u128::from(u32::from(address)), 32),
            IpAddr::V6(address) => (true, u128::from(address), 128),
        };
        let bits: u32 = bits.parse().ok().filter(|bits| *bits <= width)?;
        // All addresses as the lower bits of one number; IPv4 has 96 bits in front.
        let bits = bits + 128 - width;
        Some(Cidr { v6, first: address & mask(bits), bits })
    }

    fn holds(&self, other: &Cidr) -> bool {
        self.v6 == other.v6 && self.bits <= other.bits && other.first & mask(self.bits) == self.first
    }
}

fn mask(bits: u32) -> u128 {
    u128::MAX.checked_shl(128 - bits).unwrap_or(0)
}

/// Addresses that tenants may open their pods to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressBlock {
    pub cidr: String,
    pub except: Vec<String>,
}

impl AddressBlock {
    pub fn new(cidr: &str, except: &[&str]) -> AddressBlock {
        AddressBlock { cidr: cidr.to_owned(), except: except.iter().map(|range| (*range).to_owned()).collect() }
    }

    /// The block as a peer of a NetworkPolicy.
    pub fn peer(&self) -> Value {
        let mut block = json!({"cidr": (self.cidr.as_str())});
        if !self.except.is_empty() {
            block["except"] = json!(self.except);
        }
        json!({ "ipBlock": block })
    }

    /// What an `ipBlock` of a tenant has in common with this block; nothing when there is no such address.
    pub fn common(&self, asked: &Value) -> Option<AddressBlock> {
        let texts: Vec<&str> = asked.array_at(&["except"]).iter().filter_map(Value::as_str).collect();
        let (own, theirs) = (Cidr::parse(&self.cidr)?, Cidr::parse(asked.str_at(&["cidr"]))?);
        let (smaller, cidr) = if own.holds(&theirs) {
            (theirs, asked.str_at(&["cidr"]))
        } else if theirs.holds(&own) {
            (own, self.cidr.as_str())
        } else {
            return None;
        };
        let mut except: Vec<String> = Vec::new();
        for text in self.except.iter().map(String::as_str).chain(texts) {
            // An exception that nobody can read excepts everything.
            let range = Cidr::parse(text)?;
            if range.holds(&smaller) {
                return None;
            }
            if smaller.holds(&range) && !except.iter().any(|known| known == text) {
                except.push(text.to_owned());
            }
        }
        Some(AddressBlock { cidr: cidr.to_owned(), except })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_blocks_have_in_common() {
        let public = AddressBlock::new("0.0.0.0/0", &["10.0.0.0/8", "169.254.0.0/16"]);
        let block = |cidr: &str, except: &[&str]| Some(AddressBlock::new(cidr, except));
        for (asked, want) in [
            (json!({"cidr": "8.8.8.0/24"}), block("8.8.8.0/24", &[])),
            (json!({"cidr": "8.8.8.0/24", "except": ["8.8.8.8/32"]}), block("8.8.8.0/24", &["8.8.8.8/32"])),
            (json!({"cidr": "0.0.0.0/0"}), block("0.0.0.0/0", &["10.0.0.0/8", "169.254.0.0/16"])),
            (json!({"cidr": "8.0.0.0/6"}), block("8.0.0.0/6", &["10.0.0.0/8"])),
            (json!({"cidr": "169.254.169.254/32"}), None),
            (json!({"cidr": "10.0.0.0/8"}), None),
            (json!({"cidr": "10.1.0.0/16"}), None),
            (json!({"cidr": "::/0"}), None),
            (json!({"cidr": "nonsense"}), None),
            (json!({"cidr": "8.8.8.0/33"}), None),
            (json!({}), None),
        ] {
            assert_eq!(public.common(&asked), want, "{asked}");
        }
        let office = AddressBlock::new("192.0.2.0/24", &["192.0.2.128/25"]);
        let asked = json!({"cidr": "0.0.0.0/0", "except": ["192.0.2.1/32", "10.0.0.0/8"]});
        assert_eq!(office.common(&asked), block("192.0.2.0/24", &["192.0.2.128/25", "192.0.2.1/32"]));
        assert_eq!(office.common(&json!({"cidr": "0.0.0.0/0", "except": ["192.0.0.0/16"]})), None);
        let six = AddressBlock::new("::/0", &["fc00::/7"]);
        assert_eq!(six.common(&json!({"cidr": "2001:db8::/32"})), block("2001:db8::/32", &[]));
        assert_eq!(six.common(&json!({"cidr": "fd00::/8"})), None);
        assert_eq!(six.common(&json!({"cidr": "0.0.0.0/0"})), None);
    }
}
