//! The decision: the best node for one pod, or why there is none, or whom to evict for it. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::filter::{Filter, Reasons};
use crate::score::scores;
use crate::snapshot::Snapshot;
use crate::types::Pod;

/// Why no node takes the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unschedulable {
    pub nodes: usize,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<String, usize>,
}

impl Unschedulable {
    /// As in `FailedScheduling` events: `0/3 nodes are available: 3 Insufficient cpu.`
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut parts: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        parts.sort();
        format!("0/{} nodes are available: {}.", self.nodes, parts.join(", "))
    }
}

/// Chooses a node. Equal scores are decided by name rotated by `salt`, so that equal nodes share the load and a test can
/// repeat a run.
pub fn schedule(pod: &Pod, snapshot: &Snapshot, salt: usize) -> Result<String, Unschedulable> {
    let filter = Filter::new(pod, snapshot);
    let mut reasons = BTreeMap::new();
    let mut fitting = Vec::new();
    for node in &snapshot.nodes {
        match filter.check(node) {
            Ok(()) => fitting.push(node),
            Err(why) => count(&mut reasons, why),
        }
    }
    if fitting.is_empty() {
        return Err(Unschedulable { nodes: snapshot.nodes.len(), reasons });
    }
    let scores = scores(pod, &fitting, snapshot);
    let best = scores.iter().copied().max().unwrap_or(0);
    let winners: Vec<_> = fitting.iter().zip(&scores).filter(|(_, s)| **s == best).map(|(n, _)| n).collect();
    Ok(winners[salt % winners.len()].node.metadata.name.to_string())
}

fn count(reasons: &mut BTreeMap<String, usize>, why: Reasons) {
    for reason in why {
        *reasons.entry(reason).or_default() += 1;
    }
}

/// Whom to delete so that `pod` fits: the node where the highest victim priority is lowest, then the fewest victims.
/// `None` when no set of pods of lower priority would help.
///
/// Source: `pkg/scheduler/framework/preemption` without disruption budgets as a tie breaker.
pub fn preempt(pod: &Pod, snapshot: &Snapshot) -> Option<(String, Vec<Arc<Pod>>)> {
    let mut best: Option<((i32, usize), String, Vec<Arc<Pod>>)> = None;
    for i in 0..snapshot.nodes.len() {
        let mut lower: Vec<Arc<Pod>> =
            snapshot.nodes[i].pods.iter().filter(|p| p.spec.priority < pod.spec.priority).cloned().collect();
        if lower.is_empty() {
            continue;
        }
        let mut trial = snapshot.clone();
        for victim in &lower {
            trial.nodes[i].remove(&victim.metadata.uid);
        }
        let fits = |trial: &Snapshot| Filter::new(pod, trial).check(&trial.nodes[i]).is_ok();
        if !fits(&trial) {
            continue;
        }
        // Give back as many as possible, the most important first.
        lower.sort_by_key(|p| std::cmp::Reverse(p.spec.priority));
        let mut victims = Vec::new();
        for candidate in lower {
            trial.nodes[i].add(candidate.clone());
            if !fits(&trial) {
                trial.nodes[i].remove(&candidate.metadata.uid);
                victims.push(candidate);
            }
        }
        let cost = (victims.iter().map(|p| p.spec.priority).max().unwrap_or(i32::MIN), victims.len());
        if best.as_ref().is_none_or(|(other, ..)| cost < *other) {
            best = Some((cost, snapshot.nodes[i].node.metadata.name.to_string(), victims));
        }
    }
    best.map(|(_, node, victims)| (node, victims))
}
