//! Which of the fitting nodes is best: more is better, each part from 0 to 100 before its weight.
//!
//! Source: kube-scheduler's default score plugins and weights (`apis/config/v1/default_plugins.go`).

use crate::filter::{counts, term_matches};
use crate::resources::{Amounts, pod_requests};
use crate::snapshot::{NodeInfo, Snapshot};
use crate::types::{Pod, Taint};

const MAX: i64 = 100;

/// The weighted score of each of `nodes`, in their order.
pub fn scores(pod: &Pod, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Vec<i64> {
    let requests = pod_requests(pod);
    let mut totals = vec![0; nodes.len()];
    let mut add = |weight: i64, part: Vec<i64>| {
        for (total, score) in totals.iter_mut().zip(part) {
            *total += weight * score;
        }
    };
    add(1, nodes.iter().map(|n| least_allocated(&requests, n)).collect());
    add(1, nodes.iter().map(|n| balanced_allocation(&requests, n)).collect());
    add(3, inverted(nodes.iter().map(|n| intolerable_preferences(pod, n)).collect()));
    add(2, normalized(nodes.iter().map(|n| preferred_node_affinity(pod, n)).collect()));
    add(2, normalized(pod_affinity(pod, nodes, snapshot)));
    add(2, inverted(spread(pod, nodes, snapshot)));
    totals
}

fn used(requests: &Amounts, node: &NodeInfo, name: &str) -> (i64, i64) {
    (node.requested.get(name) + requests.get(name), node.allocatable.get(name))
}

fn least_allocated(requests: &Amounts, node: &NodeInfo) -> i64 {
    let free = ["cpu", "memory"].map(|name| match used(requests, node, name) {
        (_, 0) => 0,
        (used, all) => (all - used).max(0) * MAX / all,
    });
    free.iter().sum::<i64>() / free.len() as i64
}

fn balanced_allocation(requests: &Amounts, node: &NodeInfo) -> i64 {
    let [cpu, memory] = ["cpu", "memory"].map(|name| match used(requests, node, name) {
        (_, 0) => 0.0,
        (used, all) => (used as f64 / all as f64).min(1.0),
    });
    // The standard deviation of two numbers is half their distance.
    ((1.0 - (cpu - memory).abs() / 2.0) * MAX as f64) as i64
}

fn intolerable_preferences(pod: &Pod, node: &NodeInfo) -> i64 {
    let soft = |t: &&Taint| t.effect == "PreferNoSchedule";
    let tolerated = |t: &&Taint| pod.spec.tolerations.iter().any(|tol| tol.tolerates(t));
    node.node.spec.taints.iter().filter(soft).filter(|t| !tolerated(t)).count() as i64
}

fn preferred_node_affinity(pod: &Pod, node: &NodeInfo) -> i64 {
    let preferred = pod.spec.affinity.iter().flat_map(|a| &a.node_affinity).flat_map(|a| &a.preferred);
    preferred.filter(|p| p.preference.matches(&node.node)).map(|p| p.weight).sum()
}

fn pod_affinity(pod: &Pod, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Vec<i64> {
    let affinity = pod.spec.affinity.as_ref();
    let near = affinity.and_then(|a| a.pod_affinity.as_ref()).map(|a| (1, &a.preferred));
    let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref()).map(|a| (-1, &a.preferred));
    let mut scores = vec![0; nodes.len()];
    for (sign, terms) in near.into_iter().chain(far) {
        for weighted in terms {
            let term = &weighted.pod_affinity_term;
            for (there, other) in snapshot.pods() {
                if !term_matches(term, &pod.metadata.namespace, other, snapshot) {
                    continue;
                }
                let Some(domain) = there.label(&term.topology_key) else { continue };
                for (score, node) in scores.iter_mut().zip(nodes) {
                    if node.label(&term.topology_key) == Some(domain) {
                        *score += sign * weighted.weight;
                    }
                }
            }
        }
    }
    scores
}

/// Pods already in each node's domains: the soft constraints of the pod, or else pods of the same labels by host, which
/// spreads replicas as the default constraints do.
fn spread(pod: &Pod, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Vec<i64> {
    let soft: Vec<_> =
        pod.spec.topology_spread_constraints.iter().filter(|c| c.when_unsatisfiable == "ScheduleAnyway").collect();
    if soft.is_empty() && pod.spec.topology_spread_constraints.is_empty() {
        let twin = |p: &Pod| {
            p.metadata.namespace == pod.metadata.namespace
                && !pod.metadata.labels.is_empty()
                && p.metadata.labels == pod.metadata.labels
        };
        return nodes.iter().map(|n| n.pods.iter().filter(|p| twin(p)).count() as i64).collect();
    }
    let in_domain = |key: &str, domain: &str, constraint| {
        let same = snapshot.nodes.iter().filter(|n| n.label(key) == Some(domain));
        same.flat_map(|n| &n.pods).filter(|p| counts(constraint, pod, p)).count() as i64
    };
    let of = |node: &&NodeInfo| {
        soft.iter().map(|c| node.label(&c.topology_key).map_or(0, |d| in_domain(&c.topology_key, d, c))).sum()
    };
    nodes.iter().map(of).collect()
}

/// Scales to 0..=100, the largest becoming 100. Negative values count as the distance from the smallest.
fn normalized(mut raw: Vec<i64>) -> Vec<i64> {
    let least = raw.iter().copied().min().unwrap_or(0).min(0);
    let most = raw.iter().copied().max().unwrap_or(0) - least;
    for score in &mut raw {
        *score = if most == 0 { 0 } else { (*score - least) * MAX / most };
    }
    raw
}

/// As [`normalized`], the smallest becoming 100.
fn inverted(raw: Vec<i64>) -> Vec<i64> {
    normalized(raw).into_iter().map(|score| MAX - score).collect()
}
