//! `/etc/resolv.conf`: the servers and search domains of the machine or pod.

use std::net::{IpAddr, SocketAddr};

use crate::names::normal;

/// What a `resolv.conf` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    pub servers: Vec<SocketAddr>,
    pub search: Vec<String>,
}

impl ResolvConf {
    pub fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A zone such as `%eth0` cannot be used here.
                    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    conf.servers.extend(address.map(|address| SocketAddr::new(address, 53)));
                }
                // The last one counts.
                Some("search" | "domain") => conf.search = words.map(normal).collect(),
                _ => {}
            }
        }
        conf
    }

    /// The domain of the cluster in whose pod this process runs, by the search list a kubelet writes.
    pub fn cluster_domain(&self) -> Option<&str> {
        self.search.iter().find_map(|domain| domain.strip_prefix("svc."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_resolv_conf_tells_servers_and_domain() {
        let conf = ResolvConf::parse(
            "# made by kubelet\nsearch team-a.svc.corp.local svc.corp.local corp.local lan\nnameserver 10.96.0.10\n\
             nameserver fd00::10 ; second\nnameserver nonsense\noptions ndots:5\n",
        );
        assert_eq!(conf.servers, ["10.96.0.10:53".parse().unwrap(), "[fd00::10]:53".parse().unwrap()]);
        assert_eq!(conf.cluster_domain(), Some("corp.local"));
        assert_eq!(ResolvConf::parse("nameserver 1.1.1.1").cluster_domain(), None);
    }
}
