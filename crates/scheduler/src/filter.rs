//! Which nodes a pod may run on, and in the scheduler's words why the others are out.
//!
//! Source: the default plugins of kube-scheduler 1.36 (`pkg/scheduler/framework/plugins`), in their order.

use std::collections::{BTreeMap, BTreeSet};

use crate::resources::{Amounts, pod_requests};
use crate::snapshot::{Claim, NodeInfo, Snapshot};
use crate::types::{LabelSelector, Pod, PodAffinityTerm, Taint, TopologySpreadConstraint};

/// Why one node is out: the reasons as they appear in `FailedScheduling` events.
pub type Reasons = Vec<String>;

/// Checks that need the whole cluster, computed once for a pod and then asked for each node.
pub struct Filter<'a> {
    pod: &'a Pod,
    requests: Amounts,
    snapshot: &'a Snapshot,
    spread: Vec<Spread<'a>>,
    affinity: Vec<TermDomains<'a>>,
    anti_affinity: Vec<TermDomains<'a>>,
    /// Topology (key, value) pairs that running pods with anti-affinity keep this pod out of.
    repelled: BTreeSet<(String, String)>,
}

struct Spread<'a> {
    constraint: &'a TopologySpreadConstraint,
    count_by_domain: BTreeMap<&'a str, i64>,
}

struct TermDomains<'a> {
    term: &'a PodAffinityTerm,
    domains: BTreeSet<&'a str>,
}

/// Whether `term`, written in a pod of namespace `own`, selects `other`.
pub fn term_matches(term: &PodAffinityTerm, own: &str, other: &Pod, snapshot: &Snapshot) -> bool {
    let namespace = &other.metadata.namespace;
    let by_name = term.namespaces.iter().any(|n| n == namespace)
        || (term.namespaces.is_empty() && term.namespace_selector.is_none() && namespace == own);
    let by_labels = || {
        term.namespace_selector
            .as_ref()
            .is_some_and(|s| snapshot.namespaces.get(namespace.as_str()).is_some_and(|labels| s.matches(labels)))
    };
    (by_name || by_labels()) && selects(&term.label_selector, other)
}

/// An absent selector selects nothing, an empty one everything.
fn selects(selector: &Option<LabelSelector>, pod: &Pod) -> bool {
    selector.as_ref().is_some_and(|s| s.matches(&pod.metadata.labels))
}

impl<'a> Filter<'a> {
    pub fn new(pod: &'a Pod, snapshot: &'a Snapshot) -> Filter<'a> {
        let own = pod.metadata.namespace.as_str();
        let affinity = pod.spec.affinity.as_ref();
        let terms = |terms: Option<&'a Vec<PodAffinityTerm>>| {
            terms.into_iter().flatten().map(|term| TermDomains::new(term, own, snapshot)).collect()
        };
        let mut repelled = BTreeSet::new();
        for (node, other) in snapshot.pods() {
            for term in other.spec.affinity.iter().flat_map(|a| &a.pod_anti_affinity).flat_map(|a| &a.required) {
                if term_matches(term, &other.metadata.namespace, pod, snapshot)
                    && let Some(value) = node.label(&term.topology_key)
                {
                    repelled.insert((term.topology_key.clone(), value.to_owned()));
                }
            }
        }
        Filter {
            pod,
            requests: pod_requests(pod),
            snapshot,
            spread: pod
                .spec
                .topology_spread_constraints
                .iter()
                .filter(|c| c.when_unsatisfiable != "ScheduleAnyway")
                .map(|c| Spread::new(c, pod, snapshot))
                .collect(),
            affinity: terms(affinity.and_then(|a| a.pod_affinity.as_ref()).map(|a| &a.required)),
            anti_affinity: terms(affinity.and_then(|a| a.pod_anti_affinity.as_ref()).map(|a| &a.required)),
            repelled,
        }
    }

    /// `Ok` when the pod fits on `node`.
    pub fn check(&self, node: &NodeInfo) -> Result<(), Reasons> {
        let spec = &self.pod.spec;
        let one = |reason: &str| Err(vec![reason.to_owned()]);
        let unschedulable =
            Taint { key: "node.kubernetes.io/unschedulable".into(), value: String::new(), effect: "NoSchedule".into() };
        if node.node.spec.unschedulable && !spec.tolerations.iter().any(|t| t.tolerates(&unschedulable)) {
            return one("node(s) were unschedulable");
        }
        if let Some(taint) = untolerated(self.pod, node, |t| t.effect == "NoSchedule" || t.effect == "NoExecute") {
            let value = if taint.value.is_empty() { String::new() } else { format!(": {}", taint.value) };
            return Err(vec![format!("node(s) had untolerated taint {{{}{value}}}", taint.key)]);
        }
        if !matches_node_affinity(self.pod, node) {
            return one("node(s) didn't match Pod's node affinity/selector");
        }
        if ports_conflict(self.pod, node) {
            return one("node(s) didn't have free ports for the requested pod ports");
        }
        let short = self.insufficient(node);
        if !short.is_empty() {
            return Err(short);
        }
        self.volumes(node)?;
        if self.spread.iter().any(|s| !s.allows(node, self.pod)) {
            return one("node(s) didn't match pod topology spread constraints");
        }
        self.pod_affinity(node)
    }

    fn insufficient(&self, node: &NodeInfo) -> Reasons {
        let mut reasons = Vec::new();
        let pods = node.allocatable.get("pods");
        if node.allocatable.0.contains_key("pods") && node.pods.len() as i64 + 1 > pods {
            reasons.push("Too many pods".to_owned());
        }
        for (name, amount) in &self.requests.0 {
            if *amount > 0 && *amount > node.allocatable.get(name) - node.requested.get(name) {
                reasons.push(format!("Insufficient {name}"));
            }
        }
        reasons
    }

    fn volumes(&self, node: &NodeInfo) -> Result<(), Reasons> {
        for volume in &self.pod.spec.volumes {
            let name = match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(claim), _) => claim.claim_name.clone(),
                (None, Some(_)) => format!("{}-{}", self.pod.metadata.name, volume.name),
                (None, None) => continue,
            };
            match self.snapshot.claims.get(&(self.pod.metadata.namespace.to_string(), name.clone())) {
                None => return Err(vec![format!("persistentvolumeclaim \"{name}\" not found")]),
                Some(Claim::UnboundImmediate) => {
                    return Err(vec!["pod has unbound immediate PersistentVolumeClaims".to_owned()]);
                }
                Some(Claim::Bound(Some(selector))) if !selector.matches(&node.node) => {
                    return Err(vec!["node(s) had volume node affinity conflict".to_owned()]);
                }
                Some(Claim::Bound(_) | Claim::UnboundWaiting) => {}
            }
        }
        Ok(())
    }

    fn pod_affinity(&self, node: &NodeInfo) -> Result<(), Reasons> {
        let one = |reason: &str| Err(vec![reason.to_owned()]);
        let repels = |(key, value): &(String, String)| node.label(key) == Some(value);
        if self.repelled.iter().any(repels) {
            return one("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        for term in &self.anti_affinity {
            if node.label(&term.term.topology_key).is_some_and(|v| term.domains.contains(v)) {
                return one("node(s) didn't match pod anti-affinity rules");
            }
        }
        // The first pod of a group that wants to be near itself may go anywhere.
        let own = &self.pod.metadata.namespace;
        let first_of_group = self.affinity.iter().all(|t| t.domains.is_empty())
            && self.affinity.iter().all(|t| term_matches(t.term, own, self.pod, self.snapshot));
        for term in &self.affinity {
            match node.label(&term.term.topology_key) {
                Some(value) if term.domains.contains(value) || first_of_group => {}
                _ => return one("node(s) didn't match pod affinity rules"),
            }
        }
        Ok(())
    }
}

impl<'a> TermDomains<'a> {
    fn new(term: &'a PodAffinityTerm, own: &str, snapshot: &'a Snapshot) -> Self {
        let domains = snapshot
            .pods()
            .filter(|(_, pod)| term_matches(term, own, pod, snapshot))
            .filter_map(|(node, _)| node.label(&term.topology_key))
            .collect();
        TermDomains { term, domains }
    }
}

impl<'a> Spread<'a> {
    fn new(constraint: &'a TopologySpreadConstraint, pod: &Pod, snapshot: &'a Snapshot) -> Self {
        let mut count_by_domain = BTreeMap::new();
        for node in snapshot.nodes.iter().filter(|n| matches_node_affinity(pod, n)) {
            let Some(domain) = node.label(&constraint.topology_key) else { continue };
            let matching = node.pods.iter().filter(|p| counts(constraint, pod, p)).count() as i64;
            *count_by_domain.entry(domain).or_default() += matching;
        }
        Spread { constraint, count_by_domain }
    }

    fn allows(&self, node: &NodeInfo, pod: &Pod) -> bool {
        let Some(domain) = node.label(&self.constraint.topology_key) else { return false };
        let here = self.count_by_domain.get(domain).copied().unwrap_or(0);
        let too_few = self.constraint.min_domains.is_some_and(|min| (self.count_by_domain.len() as i64) < min);
        let least = if too_few { 0 } else { self.count_by_domain.values().copied().min().unwrap_or(0) };
        let own = i64::from(selects(&self.constraint.label_selector, pod));
        here + own - least <= self.constraint.max_skew
    }
}

/// Whether a running pod counts for a spread constraint of `pod`.
pub fn counts(constraint: &TopologySpreadConstraint, pod: &Pod, other: &Pod) -> bool {
    other.metadata.namespace == pod.metadata.namespace
        && other.metadata.deletion_timestamp.is_none()
        && selects(&constraint.label_selector, other)
}

/// `spec.nodeSelector` and required node affinity.
pub fn matches_node_affinity(pod: &Pod, node: &NodeInfo) -> bool {
    pod.spec.node_selector.iter().all(|(k, v)| node.label(k) == Some(v))
        && pod
            .spec
            .affinity
            .iter()
            .flat_map(|a| &a.node_affinity)
            .flat_map(|a| &a.required)
            .all(|selector| selector.matches(&node.node))
}

/// The first taint that `considered` names and the pod does not tolerate.
pub fn untolerated<'n>(pod: &Pod, node: &'n NodeInfo, considered: impl Fn(&Taint) -> bool) -> Option<&'n Taint> {
    node.node.spec.taints.iter().find(|t| considered(t) && !pod.spec.tolerations.iter().any(|tol| tol.tolerates(t)))
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = (i32, &str, &str)> {
    pod.spec.containers.iter().chain(&pod.spec.init_containers).flat_map(|c| &c.ports).filter(|p| p.host_port > 0).map(
        |p| {
            let protocol = if p.protocol.is_empty() { "TCP" } else { p.protocol.as_str() };
            let ip = if p.host_ip.is_empty() { "0.0.0.0" } else { p.host_ip.as_str() };
            (p.host_port, protocol, ip)
        },
    )
}

fn ports_conflict(pod: &Pod, node: &NodeInfo) -> bool {
    host_ports(pod).any(|(port, protocol, ip)| {
        node.pods.iter().flat_map(|p| host_ports(p)).any(|(other_port, other_protocol, other_ip)| {
            port == other_port
                && protocol == other_protocol
                && (ip == other_ip || ip == "0.0.0.0" || other_ip == "0.0.0.0")
        })
    })
}
