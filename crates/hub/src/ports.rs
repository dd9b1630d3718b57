//! Ports that last: kubeconfigs name them, so that a cluster has to get its own again when its hub comes back.
//!
//! The system takes ports of outgoing connections from a range of its own, also while the hub is away. New ports come from
//! below that range, and from below the node ports of Services.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, TcpListener};

const FIRST: u16 = 20_000;
/// The first of the usual node ports.
const END: u16 = 30_000;
const TRIES_MAX: u16 = 200;

/// Listens on a port that nobody else is likely to take; each `owner` begins to look somewhere else. Where the system has no
/// such ports, on any that is free.
pub fn bind_lasting(address: IpAddr, owner: &str) -> io::Result<TcpListener> {
    let span = outgoing_start().unwrap_or(END).min(END).saturating_sub(FIRST);
    let mut hasher = DefaultHasher::new();
    owner.hash(&mut hasher);
    for step in 0..TRIES_MAX.min(span) {
        let offset = (hasher.finish() + u64::from(step)) % u64::from(span);
        let port = u16::try_from(u64::from(FIRST) + offset).map_err(io::Error::other)?;
        match TcpListener::bind((address, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    TcpListener::bind((address, 0))
}

/// Where the ports of outgoing connections begin (`net.ipv4.ip_local_port_range`).
fn outgoing_start() -> Option<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_not_those_of_outgoing_connections_and_nobody_gets_one_twice() {
        let address = IpAddr::from([127, 0, 0, 1]);
        let bound: Vec<_> = (0..20).map(|_| bind_lasting(address, "one owner").unwrap()).collect();
        let mut ports: Vec<u16> = bound.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let start = outgoing_start().unwrap_or(END);
        // Elsewhere the system may have given its whole range away.
        if start >= FIRST + 1000 {
            assert!(ports.iter().all(|port| (FIRST..start).contains(port)), "{ports:?}");
        }
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), bound.len());
    }
}
