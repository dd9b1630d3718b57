//! What the cluster's objects say, as an immutable value.
//!
//! Invariants:
//! - A [`Snapshot`] that was changed service by service equals one that was built anew from the same objects.
//! - Changing one service copies one bucket of each table, not the tables.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::json::Str;
use informer::ObjectKey;

use crate::names::dashed;
use crate::objects::{EndpointSlice, Service};

const BUCKETS: usize = 256;

/// A map whose copies share what did not change.
#[derive(Clone)]
struct Shared<K, V> {
    buckets: Vec<Arc<HashMap<K, V>>>,
    hasher: RandomState,
    len: usize,
}

impl<K: Hash + Eq + Clone, V: Clone> Shared<K, V> {
    fn new() -> Self {
        Shared { buckets: vec![Arc::default(); BUCKETS], hasher: RandomState::new(), len: 0 }
    }

    fn bucket<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        (self.hasher.hash_one(key) as usize) % BUCKETS
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.buckets[self.bucket(key)].get(key)
    }

    fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.bucket(&key);
        let old = Arc::make_mut(&mut self.buckets[at]).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.bucket(key);
        self.buckets[at].get(key)?;
        let old = Arc::make_mut(&mut self.buckets[at]).remove(key);
        self.len -= usize::from(old.is_some());
        old
    }

    fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.buckets.iter().flat_map(|bucket| bucket.iter())
    }
}

impl<K: Hash + Eq + Clone, V: Clone + PartialEq> PartialEq for Shared<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().all(|(key, value)| other.get(key) == Some(value))
    }
}

/// A port of a Service or of its endpoints; number 0 stands for "no ports declared".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub name: Str,
    /// In lower case.
    pub protocol: Str,
    pub number: u16,
}

impl Port {
    /// An empty word matches every port.
    pub fn matches(&self, name: &str, protocol: &str) -> bool {
        (name.is_empty() || self.name.eq_ignore_ascii_case(name)) && (protocol.is_empty() || self.protocol == protocol)
    }
}

/// Endpoints that share their ports: what was one EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group {
    pub endpoints: Vec<Address>,
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    /// The endpoint's host name, else its address with dashes.
    pub hostname: Str,
    pub ip: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    ClusterIp { ips: Vec<IpAddr>, ports: Vec<Port> },
    Headless,
    External(Str),
}

/// All that is known of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Records {
    pub target: Target,
    pub groups: Vec<Group>,
}

impl Records {
    pub fn build<'a>(service: &Service, slices: impl IntoIterator<Item = &'a EndpointSlice>) -> Records {
        let lower = |text: &Str| Str::from(text.to_ascii_lowercase());
        let protocol = |text: &Str| if text.is_empty() { Str::const_new("tcp") } else { lower(text) };
        let spec = &service.spec;
        let target = if spec.type_ == "ExternalName" {
            Target::External(spec.external_name.clone())
        } else if spec.cluster_ip == "None" {
            Target::Headless
        } else {
            let mut ips: Vec<IpAddr> = spec.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect();
            if ips.is_empty() {
                ips.extend(spec.cluster_ip.parse::<IpAddr>());
            }
            let ports = spec.ports.iter();
            let ports =
                ports.map(|p| Port { name: p.name.clone(), protocol: protocol(&p.protocol), number: p.port }).collect();
            Target::ClusterIp { ips, ports }
        };
        let mut groups: Vec<Group> = slices
            .into_iter()
            .map(|slice| {
                let mut ports: Vec<Port> = slice
                    .ports
                    .iter()
                    .map(|p| Port {
                        name: p.name.clone(),
                        protocol: protocol(&p.protocol),
                        number: p.port.unwrap_or(0),
                    })
                    .collect();
                if ports.is_empty() {
                    ports.push(Port { name: Str::const_new(""), protocol: Str::const_new(""), number: 0 });
                }
                let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready != Some(false));
                let endpoints = ready.flat_map(|endpoint| {
                    endpoint.addresses.iter().filter_map(|text| {
                        let ip: IpAddr = text.parse().ok()?;
                        let hostname = match endpoint.hostname.as_str() {
                            "" => Str::from(dashed(&ip)),
                            _ => lower(&endpoint.hostname),
                        };
                        Some(Address { hostname, ip })
                    })
                });
                Group { endpoints: endpoints.collect(), ports }
            })
            .filter(|group| !group.endpoints.is_empty())
            .collect();
        // Slices come in no order.
        groups.sort();
        Records { target, groups }
    }

    fn reverse(&self, key: &ObjectKey) -> BTreeSet<(IpAddr, Pointer)> {
        let mut found = BTreeSet::new();
        if let Target::ClusterIp { ips, .. } = &self.target {
            found.extend(ips.iter().map(|ip| (*ip, Pointer { service: key.clone(), hostname: None })));
        }
        for address in self.groups.iter().flat_map(|group| &group.endpoints) {
            let pointer = Pointer { service: key.clone(), hostname: Some(address.hostname.clone()) };
            found.insert((address.ip, pointer));
        }
        found
    }
}

/// What an address belongs to. A Service's own address comes before endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pointer {
    pub hostname: Option<Str>,
    pub service: ObjectKey,
}

/// The names of a cluster at one moment.
#[derive(Clone, PartialEq)]
pub(crate) struct Snapshot {
    services: Shared<ObjectKey, Arc<Records>>,
    reverse: Shared<IpAddr, BTreeSet<Pointer>>,
    namespaces: Arc<HashSet<Str>>,
    hosts: Arc<Vec<(IpAddr, Str)>>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Snapshot { services: Shared::new(), reverse: Shared::new(), namespaces: Arc::default(), hosts: Arc::default() }
    }
}

impl Snapshot {
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Records>> {
        self.services.get(&ObjectKey::new(namespace, name))
    }

    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// To what an address belongs: to one Service, or to the endpoints of several.
    pub fn pointers(&self, address: &IpAddr) -> impl Iterator<Item = &Pointer> {
        let all = self.reverse.get(address);
        let own = all.and_then(|all| all.first()).is_some_and(|first| first.hostname.is_none());
        all.into_iter().flatten().take(if own { 1 } else { usize::MAX })
    }

    /// Addresses and host names of nodes.
    pub fn hosts(&self) -> &[(IpAddr, Str)] {
        &self.hosts
    }

    pub fn services_len(&self) -> usize {
        self.services.len
    }

    /// Puts what is known of a Service, or removes it.
    pub fn set_service(&mut self, key: &ObjectKey, records: Option<Records>) {
        let known = self.services.get(key);
        if known.map(|known| &**known) == records.as_ref() {
            return;
        }
        let before = known.map(|known| known.reverse(key)).unwrap_or_default();
        let after = records.as_ref().map(|records| records.reverse(key)).unwrap_or_default();
        for (ip, pointer) in before.difference(&after) {
            let mut left = self.reverse.remove(ip).unwrap_or_default();
            left.remove(pointer);
            if !left.is_empty() {
                self.reverse.insert(*ip, left);
            }
        }
        for (ip, pointer) in after.difference(&before) {
            let mut all = self.reverse.get(ip).cloned().unwrap_or_default();
            all.insert(pointer.clone());
            self.reverse.insert(*ip, all);
        }
        match records {
            Some(records) => self.services.insert(key.clone(), Arc::new(records)),
            None => self.services.remove(key),
        };
    }

    pub fn set_namespace(&mut self, name: &Str, exists: bool) {
        if self.namespaces.contains(name) != exists {
            let namespaces = Arc::make_mut(&mut self.namespaces);
            if exists {
                namespaces.insert(name.clone())
            } else {
                namespaces.remove(name)
            };
        }
    }

    pub fn set_hosts(&mut self, mut hosts: Vec<(IpAddr, Str)>) {
        hosts.sort();
        hosts.dedup();
        self.hosts = Arc::new(hosts);
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;
    use proptest::prelude::*;

    use super::*;

    fn service(name: usize, kind: u8, ip: u8) -> Service {
        let cluster_ip = if kind == 0 { "None".to_string() } else { format!("10.0.0.{ip}") };
        let type_ = if kind == 1 { "ExternalName" } else { "ClusterIP" };
        let value = json!({
            "metadata": {"name": (format!("s{name}")), "namespace": "n"},
            "spec": {"type": (type_), "clusterIP": (cluster_ip), "externalName": "x.example",
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
        });
        serde_json::from_str(&value.to_string()).unwrap()
    }

    fn slice(service: usize, ips: &[u8]) -> EndpointSlice {
        let endpoints = ips.iter().map(|ip| {
            json!({"addresses": [(format!("10.0.1.{ip}"))], "hostname": (if ip % 2 == 0 { "even" } else { "" }),
                "conditions": {"ready": (ip % 3 != 0)}})
        });
        let value = json!({
            "metadata": {"name": "x", "namespace": "n",
                "labels": {"kubernetes.io/service-name": (format!("s{service}"))}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": (apimachinery::Value::Array(endpoints.collect())),
        });
        serde_json::from_str(&value.to_string()).unwrap()
    }

    type State = std::collections::BTreeMap<usize, (Service, Vec<EndpointSlice>)>;

    fn rebuilt(state: &State, namespaces: &HashSet<Str>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, (service, slices)) in state {
            let key = ObjectKey::new("n", format!("s{name}"));
            snapshot.set_service(&key, Some(Records::build(service, slices)));
        }
        for name in namespaces {
            snapshot.set_namespace(name, true);
        }
        snapshot
    }

    proptest! {
        #[test]
        fn a_snapshot_changed_step_by_step_equals_one_built_anew(
            steps in proptest::collection::vec((0usize..6, 0u8..5, 0u8..4, proptest::collection::vec(0u8..8, 0..4)), 1..60)
        ) {
            let mut state = State::new();
            let mut namespaces = HashSet::new();
            let mut snapshot = Snapshot::default();
            for (name, what, number, ips) in steps {
                let key = ObjectKey::new("n", format!("s{name}"));
                match what {
                    0 => { state.remove(&name); }
                    1 => {
                        let namespace = Str::from(format!("n{number}"));
                        let exists = namespaces.insert(namespace.clone()) || { namespaces.remove(&namespace); false };
                        snapshot.set_namespace(&namespace, exists);
                    }
                    _ => { state.insert(name, (service(name, number % 3, number), vec![slice(name, &ips)])); }
                }
                let before = snapshot.clone();
                let records = state.get(&name).map(|(service, slices)| Records::build(service, slices));
                snapshot.set_service(&key, records);
                prop_assert!(snapshot == rebuilt(&state, &namespaces));
                // What readers hold does not change under them.
                let mut again = before;
                let records = state.get(&name).map(|(service, slices)| Records::build(service, slices));
                again.set_service(&key, records);
                prop_assert!(again == snapshot);
            }
        }
    }

    #[test]
    fn a_services_own_address_comes_before_endpoints() {
        let mut snapshot = Snapshot::default();
        let endpoint = slice(1, &[1]);
        let build = |name: usize, ip: u8, slices: &[EndpointSlice]| Some(Records::build(&service(name, 2, ip), slices));
        snapshot.set_service(&ObjectKey::new("n", "s1"), build(1, 1, std::slice::from_ref(&endpoint)));
        snapshot.set_service(&ObjectKey::new("n", "s2"), build(2, 2, std::slice::from_ref(&endpoint)));
        let names = |snapshot: &Snapshot, ip: &str| {
            let ip: IpAddr = ip.parse().unwrap();
            snapshot.pointers(&ip).map(|p| p.service.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&snapshot, "10.0.1.1"), ["s1", "s2"], "two Services may share an endpoint");
        let own: Service = Service {
            spec: crate::objects::ServiceSpec { cluster_ip: "10.0.1.1".into(), ..service(3, 2, 1).spec.clone() },
            ..service(3, 2, 1)
        };
        snapshot.set_service(&ObjectKey::new("n", "s3"), Some(Records::build(&own, [])));
        assert_eq!(names(&snapshot, "10.0.1.1"), ["s3"]);
        snapshot.set_service(&ObjectKey::new("n", "s3"), None);
        snapshot.set_service(&ObjectKey::new("n", "s1"), None);
        assert_eq!(names(&snapshot, "10.0.1.1"), ["s2"]);
    }
}
