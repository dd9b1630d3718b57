//! Pod addresses: each node hands out the addresses of its own /24 range.
//!
//! Invariant: an address belongs to at most one pod, and a pod keeps its address as long as it lives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The ranges of all nodes: node `i` has `base + i * 256`, addresses `.2` to `.254`.
#[derive(Debug)]
pub struct Addresses {
    base: Ipv4Addr,
    by_pod: BTreeMap<String, Ipv4Addr>,
    used: BTreeSet<Ipv4Addr>,
    next: BTreeMap<usize, u8>,
}

const FIRST: u8 = 2;
const LAST: u8 = 254;

impl Addresses {
    pub fn new(base: Ipv4Addr) -> Addresses {
        Addresses { base, by_pod: BTreeMap::new(), used: BTreeSet::new(), next: BTreeMap::new() }
    }

    /// `spec.podCIDR` of node `index`.
    pub fn range(&self, index: usize) -> String {
        format!("{}/24", self.network(index))
    }

    fn network(&self, index: usize) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + u32::try_from(index).unwrap_or(0) * 256)
    }

    /// Remembers an address that a pod has already.
    pub fn adopt(&mut self, uid: &str, address: Ipv4Addr) {
        if self.used.insert(address) {
            self.by_pod.insert(uid.to_owned(), address);
        }
    }

    /// The pod's address; a new one of node `index` when it has none. `None` when the range is exhausted.
    ///
    /// Addresses are taken in turn, so that one is not used again right after it was freed.
    pub fn of(&mut self, uid: &str, index: usize) -> Option<Ipv4Addr> {
        if let Some(address) = self.by_pod.get(uid) {
            return Some(*address);
        }
        let network = u32::from(self.network(index));
        let start = self.next.get(&index).copied().unwrap_or(FIRST);
        let turn = (start..=LAST).chain(FIRST..start);
        let (last, address) =
            turn.map(|last| (last, Ipv4Addr::from(network + u32::from(last)))).find(|(_, a)| !self.used.contains(a))?;
        self.next.insert(index, if last == LAST { FIRST } else { last + 1 });
        self.adopt(uid, address);
        Some(address)
    }

    pub fn free(&mut self, uid: &str) {
        if let Some(address) = self.by_pod.remove(uid) {
            self.used.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_kept_and_reused_late() {
        let mut addresses = Addresses::new(Ipv4Addr::new(10, 244, 0, 0));
        assert_eq!(addresses.range(3), "10.244.3.0/24");
        addresses.adopt("old", Ipv4Addr::new(10, 244, 1, 2));
        let first = addresses.of("a", 1).expect("room");
        assert_eq!(first, Ipv4Addr::new(10, 244, 1, 3), "an adopted address is not given again");
        assert_eq!(addresses.of("a", 1), Some(first));
        addresses.free("a");
        assert_ne!(addresses.of("b", 1), Some(first));
        let more = (0..300).filter_map(|i| addresses.of(&format!("p{i}"), 1)).count();
        assert_eq!(more, 253 - 2, "the range ends");
    }
}
