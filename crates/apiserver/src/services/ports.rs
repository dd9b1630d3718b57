//! Which node ports are in use.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use rand::Rng;

/// Why a port is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    #[error("provided port is not in the valid range. The range of valid ports is {0}-{1}")]
    NotInRange(u16, u16),
    #[error("provided port is already allocated")]
    Allocated,
    #[error("range is full")]
    Full,
}

/// The ports of `--service-node-port-range` that are in use.
pub struct NodePorts {
    first: u16,
    last: u16,
    used: Mutex<BTreeSet<u16>>,
}

impl NodePorts {
    /// An inclusive range.
    pub fn new((first, last): (u16, u16)) -> NodePorts {
        NodePorts { first, last, used: Mutex::default() }
    }

    /// What is wrong with numbers that are no node ports.
    pub fn not_in_range(&self) -> PortError {
        PortError::NotInRange(self.first, self.last)
    }

    /// Whether nobody has the port. As upstream, dry runs do not look at the range.
    pub fn check_free(&self, port: u16) -> Result<(), PortError> {
        if self.used.lock().contains(&port) { Err(PortError::Allocated) } else { Ok(()) }
    }

    pub fn take(&self, port: u16) -> Result<(), PortError> {
        if port < self.first || port > self.last {
            return Err(self.not_in_range());
        }
        if self.used.lock().insert(port) { Ok(()) } else { Err(PortError::Allocated) }
    }

    /// Any free port, by preference not from the lower part of the range, which is left to ports that are chosen by hand.
    pub fn take_next(&self, dry_run: bool) -> Result<u16, PortError> {
        let (first, last) = (u32::from(self.first), u32::from(self.last));
        let size = last + 1 - first;
        // Source: portallocator's static band.
        let band = if size < 16 { 0 } else { (size / 32).clamp(16, 128) };
        let mut used = self.used.lock();
        for (start, end) in [(first + band, last), (first, first + band)] {
            let count = end.saturating_sub(start) + 1;
            let offset = rand::rng().random_range(0..count);
            let free = (0..count).map(|i| start + (offset + i) % count).find(|p| !used.contains(&(*p as u16)));
            if let Some(port) = free {
                if !dry_run {
                    used.insert(port as u16);
                }
                return Ok(port as u16);
            }
        }
        Err(PortError::Full)
    }

    pub fn release(&self, ports: &[u16]) {
        let mut used = self.used.lock();
        for port in ports {
            used.remove(port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_is_given_once_until_it_is_released() {
        let ports = NodePorts::new((30000, 30019));
        let all: BTreeSet<u16> = (0..20).map(|_| ports.take_next(false).unwrap()).collect();
        assert_eq!(all.len(), 20);
        assert_eq!(ports.take_next(false), Err(PortError::Full));
        assert_eq!(ports.take(30000), Err(PortError::Allocated));
        assert_eq!(ports.take(80), Err(PortError::NotInRange(30000, 30019)));
        ports.release(&[30005]);
        assert_eq!(ports.take_next(true), Ok(30005));
        assert_eq!(ports.take_next(false), Ok(30005));
    }
}
