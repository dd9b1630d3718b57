//! The zone of a cluster: which records a name below its domain has.
//!
//! Follows: the Kubernetes DNS specification 1.1.0; where it leaves room, CoreDNS's `kubernetes` plugin with
//! `pods insecure`.

use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, NS, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use informer::ObjectKey;
use rand::seq::SliceRandom;

use crate::names::{name, normal, undashed};
use crate::snapshot::{Records, Snapshot, Target};

/// The version of the specification that is answered under `dns-version`.
const SCHEMA_VERSION: &str = "1.1.0";
const SCHEMA_TTL: u32 = 28800;
/// The time to live of all records of the cluster, as CoreDNS's.
pub(crate) const TTL: u32 = 5;

/// What the cluster says about a name.
#[derive(Debug)]
pub(crate) enum Found {
    NoName,
    /// The name exists, without data of the type asked for.
    NoData,
    Data {
        ttl: u32,
        answers: Vec<RData>,
        additionals: Vec<Record>,
    },
    Alias(Name),
}

/// A forward zone.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    /// In lower case, without the last dot.
    pub domain: String,
    pub apex: Name,
}

impl Zone {
    pub fn new(domain: &str) -> Option<Zone> {
        let domain = normal(domain);
        let apex = name(&domain)?;
        Some(Zone { domain, apex })
    }

    pub fn soa(&self, serial: u32) -> Option<RData> {
        let server = name(&format!("ns.dns.{}", self.domain))?;
        let mail = name(&format!("hostmaster.{}", self.domain))?;
        Some(RData::SOA(SOA::new(server, mail, serial, 7200, 1800, 86400, TTL)))
    }

    /// Looks up a name given by its labels below the domain. `own` is the Service of this DNS server.
    pub fn find(&self, snapshot: &Snapshot, below: &str, kind: RecordType, serial: u32, own: &ObjectKey) -> Found {
        let labels: Vec<&str> = if below.is_empty() { Vec::new() } else { below.split('.').collect() };
        match labels.as_slice() {
            [] => self.apex(snapshot, kind, serial, own),
            ["svc" | "pod" | "dns"] => Found::NoData,
            ["ns", "dns"] => {
                let ips = own_addresses(snapshot, own);
                addresses(ips, kind)
            }
            ["dns-version"] if kind == RecordType::TXT => Found::Data {
                ttl: SCHEMA_TTL,
                answers: vec![RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_string()]))],
                additionals: Vec::new(),
            },
            ["dns-version"] => Found::NoData,
            [namespace, "svc" | "pod"] if snapshot.has_namespace(namespace) => Found::NoData,
            [pod, namespace, "pod"] if snapshot.has_namespace(namespace) => match undashed(pod) {
                Some(ip) => addresses(vec![ip], kind),
                None => Found::NoName,
            },
            [rest @ .., service, namespace, "svc"] => match snapshot.service(namespace, service) {
                Some(records) => self.service(records, rest, &format!("{service}.{namespace}.svc"), kind),
                None => Found::NoName,
            },
            _ => Found::NoName,
        }
    }

    fn apex(&self, snapshot: &Snapshot, kind: RecordType, serial: u32, own: &ObjectKey) -> Found {
        match kind {
            RecordType::SOA => match self.soa(serial) {
                Some(soa) => data(vec![soa], Vec::new()),
                None => Found::NoData,
            },
            RecordType::NS => {
                let ips = own_addresses(snapshot, own);
                let text = if ips.is_empty() {
                    format!("ns.dns.{}", self.domain)
                } else {
                    format!("{}.{}.svc.{}", own.name, own.namespace, self.domain)
                };
                let Some(server) = name(&text) else { return Found::NoData };
                let additionals = ips.into_iter().map(|ip| Record::from_rdata(server.clone(), TTL, address(ip)));
                data(vec![RData::NS(NS(server.clone()))], additionals.collect())
            }
            _ => Found::NoData,
        }
    }

    /// `rest` are the labels to the left of the Service's name.
    fn service(&self, records: &Records, rest: &[&str], service: &str, kind: RecordType) -> Found {
        match (&records.target, rest) {
            (Target::External(external), []) => {
                // An address is no name to point at.
                if external.is_empty() || external.parse::<IpAddr>().is_ok() {
                    return Found::NoName;
                }
                name(external).map_or(Found::NoName, Found::Alias)
            }
            (Target::External(_), _) => Found::NoName,
            (Target::ClusterIp { ips, ports }, []) => self.cluster_ip(ips, ports.iter(), service, kind),
            (Target::ClusterIp { ips, ports }, [port, protocol]) => {
                let (port, protocol) = (word(port), word(protocol));
                let mut matching = ports.iter().filter(|p| p.matches(port, protocol)).peekable();
                if matching.peek().is_none() {
                    return Found::NoName;
                }
                self.cluster_ip(ips, matching, service, kind)
            }
            (Target::Headless, []) => self.endpoints(records, "", "", None, service, kind),
            (Target::Headless, [port, protocol]) => {
                self.endpoints(records, word(port), word(protocol), None, service, kind)
            }
            (target, [endpoint]) => {
                let found = self.endpoints(records, "", "", Some(endpoint), service, kind);
                // `_tcp.web.default.svc` lies between names that exist.
                let between = |protocol: &str| match target {
                    Target::ClusterIp { ports, .. } => ports.iter().any(|p| p.matches("", protocol)),
                    _ => {
                        let mut groups = records.groups.iter();
                        groups.any(|group| group.ports.iter().any(|p| p.number != 0 && p.matches("", protocol)))
                    }
                };
                match (found, endpoint.strip_prefix('_')) {
                    (Found::NoName, Some(protocol)) if !protocol.is_empty() && between(protocol) => Found::NoData,
                    (found, _) => found,
                }
            }
            _ => Found::NoName,
        }
    }

    fn cluster_ip<'a>(
        &self,
        ips: &[IpAddr],
        ports: impl Iterator<Item = &'a crate::snapshot::Port>,
        service: &str,
        kind: RecordType,
    ) -> Found {
        if kind != RecordType::SRV {
            return addresses(ips.to_vec(), kind);
        }
        let numbers: Vec<u16> = ports.map(|port| port.number).collect();
        let entries = numbers.iter().flat_map(|number| ips.iter().map(|ip| (service.to_string(), *ip, *number)));
        self.srv(entries.collect())
    }

    fn endpoints(
        &self,
        records: &Records,
        port: &str,
        protocol: &str,
        endpoint: Option<&str>,
        service: &str,
        kind: RecordType,
    ) -> Found {
        let mut entries = Vec::new();
        for group in &records.groups {
            for address in &group.endpoints {
                if endpoint.is_some_and(|wanted| address.hostname != wanted) {
                    continue;
                }
                let ports = group.ports.iter().filter(|p| p.matches(port, protocol));
                entries.extend(ports.map(|p| (format!("{}.{service}", address.hostname), address.ip, p.number)));
            }
        }
        if entries.is_empty() {
            return Found::NoName;
        }
        if kind == RecordType::SRV {
            return self.srv(entries);
        }
        let mut ips: Vec<IpAddr> = Vec::with_capacity(entries.len());
        let mut seen = std::collections::HashSet::new();
        ips.extend(entries.into_iter().map(|(_, ip, _)| ip).filter(|ip| seen.insert(*ip)));
        addresses(ips, kind)
    }

    /// One record per target and port; the addresses of the targets go along.
    fn srv(&self, entries: Vec<(String, IpAddr, u16)>) -> Found {
        let weight = u16::try_from(100 / entries.len().max(1)).unwrap_or(1).max(1);
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        let mut seen = std::collections::HashSet::new();
        let mut seen_addresses = std::collections::HashSet::new();
        for (target, ip, port) in entries {
            // Endpoints without declared ports.
            if port == 0 {
                continue;
            }
            let Some(target) = name(&format!("{target}.{}", self.domain)) else { continue };
            if seen.insert((target.clone(), port)) {
                answers.push(RData::SRV(SRV::new(0, weight, port, target.clone())));
            }
            if seen_addresses.insert((target.clone(), ip)) {
                additionals.push(Record::from_rdata(target, TTL, address(ip)));
            }
        }
        data(answers, additionals)
    }
}

fn own_addresses(snapshot: &Snapshot, own: &ObjectKey) -> Vec<IpAddr> {
    match snapshot.service(&own.namespace, &own.name).map(|records| &records.target) {
        Some(Target::ClusterIp { ips, .. }) => ips.clone(),
        _ => Vec::new(),
    }
}

/// A label of an SRV name without its underscore.
fn word(label: &str) -> &str {
    label.strip_prefix('_').unwrap_or(label)
}

pub(crate) fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// The addresses of the family asked for.
pub(crate) fn addresses(ips: Vec<IpAddr>, kind: RecordType) -> Found {
    let wanted = ips.into_iter().filter(|ip| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        _ => false,
    });
    data(wanted.map(address).collect(), Vec::new())
}

fn data(mut answers: Vec<RData>, additionals: Vec<Record>) -> Found {
    if answers.is_empty() {
        return Found::NoData;
    }
    // Clients take the first address: each gets another one.
    if answers.len() > 1 {
        answers.shuffle(&mut rand::rng());
    }
    Found::Data { ttl: TTL, answers, additionals }
}
