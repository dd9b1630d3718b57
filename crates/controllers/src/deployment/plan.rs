//! The decisions of the deployment controller: how large each replica set should be, and what the status says.
//!
//! Pure. Follows: `pkg/controller/deployment` (`rolling.go`, `sync.go`, `progress.go`, `util`).

use std::cmp::{Ordering, Reverse};

use apimachinery::Value;
use informer::StrMap;
use jiff::{SignedDuration, Timestamp};

use crate::types::{Condition, Deployment, DeploymentStatus, ReplicaSet, find_condition, raw_value};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
/// About a hundred revisions.
const HISTORY_CHARS_MAX: usize = 2000;
/// `progressDeadlineSeconds` of this means none.
const NO_DEADLINE: i64 = i32::MAX as i64;

/// What a deployment asks for, resolved to numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub replicas: i64,
    pub rolling: bool,
    pub max_surge: i64,
    pub max_unavailable: i64,
    /// As written, before it is balanced against `max_unavailable`.
    surge_written: i64,
}

impl Wanted {
    pub fn of(deployment: &Deployment) -> Self {
        let replicas = deployment.spec.replicas.unwrap_or(1);
        let rolling = deployment.spec.strategy.kind != "Recreate";
        let rolling_update = deployment.spec.strategy.rolling_update.clone().unwrap_or_default();
        let surge = rolling_update.max_surge.and_then(|s| s.scaled(replicas, true)).unwrap_or(0);
        let mut unavailable = rolling_update.max_unavailable.and_then(|u| u.scaled(replicas, false)).unwrap_or(0);
        if surge == 0 && unavailable == 0 {
            // Both round to zero: something must give way or nothing would ever move.
            unavailable = 1;
        }
        Wanted {
            replicas,
            rolling,
            max_surge: if rolling { surge } else { 0 },
            max_unavailable: if rolling && replicas != 0 { unavailable.min(replicas) } else { 0 },
            surge_written: surge,
        }
    }

    pub fn max_replicas(&self) -> i64 {
        self.replicas + self.max_surge
    }

    /// The size of the new replica set when all sets together have `total`.
    pub fn new_size(&self, new: i64, total: i64) -> i64 {
        if !self.rolling {
            return self.replicas;
        }
        let room = self.replicas + self.surge_written - total;
        if room <= 0 { new } else { new + room.min(self.replicas - new) }
    }
}

pub fn replicas(set: &ReplicaSet) -> i64 {
    set.spec.replicas.unwrap_or(1)
}

/// The sizes after one step of a rolling update.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    New(i64),
    /// Sizes of the old sets, in the order given.
    Old(Vec<i64>),
    Nothing,
}

/// One step of a rolling update. A set is (size, available pods); `old` is ordered by age.
pub fn roll(wanted: &Wanted, new: (i64, i64), old: &[(i64, i64)]) -> Step {
    let total = new.0 + old.iter().map(|(size, _)| size).sum::<i64>();
    let new_size = match new.0.cmp(&wanted.replicas) {
        Ordering::Greater => wanted.replicas,
        Ordering::Equal => new.0,
        Ordering::Less => wanted.new_size(new.0, total),
    };
    if new_size != new.0 {
        return Step::New(new_size);
    }
    let min_available = wanted.replicas - wanted.max_unavailable;
    let most = total - min_available - (new.0 - new.1);
    if total == new.0 || most <= 0 {
        return Step::Nothing;
    }
    // Unhealthy pods go first: they give no availability and would block the rollout.
    let mut sizes: Vec<i64> = old.iter().map(|(size, _)| *size).collect();
    let mut left = most;
    for (size, (_, available)) in sizes.iter_mut().zip(old) {
        let down = left.min(*size - available).max(0);
        *size -= down;
        left -= down;
    }
    let available = new.1 + old.iter().map(|(_, available)| available).sum::<i64>();
    let mut left = (available - min_available).max(0);
    for size in &mut sizes {
        let down = left.min(*size);
        *size -= down;
        left -= down;
    }
    if sizes.iter().zip(old).all(|(size, (before, _))| size == before) { Step::Nothing } else { Step::Old(sizes) }
}

fn annotation_number(set: &ReplicaSet, name: &str) -> Option<i64> {
    set.metadata.annotations.get(name)?.parse::<i32>().ok().filter(|n| *n >= 0).map(Into::into)
}

/// Whether the number of replicas was changed since the sets were last sized.
pub fn is_scaling_event(wanted: &Wanted, sets: &[&ReplicaSet]) -> bool {
    let active = sets.iter().filter(|set| replicas(set) > 0);
    active.filter_map(|set| annotation_number(set, DESIRED_REPLICAS)).any(|desired| desired != wanted.replicas)
}

/// The new sizes after a change of scale in the middle of a rollout, or while paused: (index into `new` + `old`, size).
/// Index 0 is the new set, if there is one; the old ones follow.
pub fn scale(
    wanted: &Wanted,
    status_replicas: i64,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
) -> Vec<(usize, i64)> {
    let all: Vec<(usize, &ReplicaSet)> =
        new.into_iter().map(|n| (0, n)).chain(old.iter().enumerate().map(|(i, o)| (i + 1, *o))).collect();
    let active: Vec<(usize, &ReplicaSet)> = all.iter().copied().filter(|(_, set)| replicas(set) > 0).collect();
    let single = match active.as_slice() {
        [] => new.map(|n| (0, n)).or_else(|| all.iter().copied().max_by_key(|(_, s)| age_key(s))),
        [one] => Some(*one),
        _ => None,
    };
    if let Some((index, set)) = single {
        return if replicas(set) == wanted.replicas { Vec::new() } else { vec![(index, wanted.replicas)] };
    }
    if new.is_some_and(|n| is_saturated(wanted, n)) {
        return active.iter().filter(|(index, _)| *index != 0).map(|(index, _)| (*index, 0)).collect();
    }
    if !wanted.rolling {
        return Vec::new();
    }
    let total: i64 = active.iter().map(|(_, set)| replicas(set)).sum();
    let allowed = if wanted.replicas > 0 { wanted.max_replicas() } else { 0 };
    let to_add = allowed - total;
    let mut sorted = active;
    if to_add > 0 {
        sorted.sort_by_key(|(_, set)| (Reverse(replicas(set)), Reverse(age_key(set))));
    } else {
        sorted.sort_by_key(|(_, set)| (Reverse(replicas(set)), age_key(set)));
    }
    let mut added = 0;
    let mut sizes: Vec<(usize, i64)> = Vec::new();
    for (index, set) in &sorted {
        let proportion = proportion(wanted, status_replicas, set, to_add, added);
        added += proportion;
        sizes.push((*index, replicas(set) + proportion));
    }
    if let Some((_, largest)) = sizes.first_mut().filter(|_| to_add != 0) {
        *largest = (*largest + to_add - added).max(0);
    }
    sizes
}

fn age_key(set: &ReplicaSet) -> (Option<Timestamp>, &str) {
    (set.metadata.creation_timestamp, &set.metadata.name)
}

fn proportion(wanted: &Wanted, status_replicas: i64, set: &ReplicaSet, to_add: i64, added: i64) -> i64 {
    let size = replicas(set);
    if size == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = if wanted.replicas == 0 {
        -size
    } else {
        let before = annotation_number(set, MAX_REPLICAS).filter(|n| *n != 0).unwrap_or(status_replicas);
        if before == 0 { 0 } else { ((size * wanted.max_replicas()) as f64 / before as f64).round() as i64 - size }
    };
    let allowed = to_add - added;
    if to_add > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
}

fn is_saturated(wanted: &Wanted, set: &ReplicaSet) -> bool {
    replicas(set) == wanted.replicas
        && annotation_number(set, DESIRED_REPLICAS) == Some(wanted.replicas)
        && set.status.available_replicas == wanted.replicas
}

pub fn size_annotations_differ(set: &ReplicaSet, wanted: &Wanted) -> bool {
    annotation_number(set, DESIRED_REPLICAS) != Some(wanted.replicas)
        || annotation_number(set, MAX_REPLICAS) != Some(wanted.max_replicas())
}

/// A template without what the deployment controller adds.
pub fn bare_template(template: &Value) -> Value {
    let mut template = template.clone();
    template.remove_at(&["metadata", "labels", POD_TEMPLATE_HASH]);
    prune_nulls(&mut template);
    template
}

fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(prune_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

/// The oldest set that has the deployment's template.
pub fn find_new(template: &Value, sets: &[&ReplicaSet]) -> Option<usize> {
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.sort_by_key(|i| age_key(sets[*i]));
    order.into_iter().find(|i| bare_template(&raw_value(&sets[*i].spec.template)) == *template)
}

pub fn revision(set: &ReplicaSet) -> i64 {
    set.metadata.annotations.get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The annotations to write on the new set: the deployment's own, the revision and the history of revisions.
pub fn new_set_annotations(deployment: &StrMap, set: &StrMap, new_revision: i64) -> StrMap {
    let mut changes = StrMap::default();
    for (key, value) in deployment.iter() {
        let skip =
            matches!(key, LAST_APPLIED | REVISION | REVISION_HISTORY | DESIRED_REPLICAS | MAX_REPLICAS | ROLLBACK_TO);
        if !skip && set.get(key) != Some(value) {
            changes.insert(key, value);
        }
    }
    let old = set.get(REVISION);
    let old_number = match old {
        None | Some("") => 0,
        Some(text) => match text.parse::<i64>() {
            Ok(number) => number,
            // Someone else's text: not ours to overwrite.
            Err(_) => return changes,
        },
    };
    if old_number >= new_revision {
        return changes;
    }
    changes.insert(REVISION, new_revision.to_string());
    if let Some(old) = old {
        let history = set.get(REVISION_HISTORY).unwrap_or("");
        let mut revisions: Vec<&str> = history.split(',').filter(|r| !r.is_empty()).collect();
        revisions.push(old);
        let mut text = revisions.join(",");
        while text.len() > HISTORY_CHARS_MAX && revisions.len() > 1 {
            revisions.remove(0);
            text = revisions.join(",");
        }
        changes.insert(REVISION_HISTORY, text);
    }
    changes
}

pub fn has_deadline(deployment: &Deployment) -> bool {
    deployment.spec.progress_deadline_seconds.is_some_and(|s| s != NO_DEADLINE)
}

pub fn condition(kind: &str, status: &str, reason: &str, message: impl Into<String>, now: Timestamp) -> Condition {
    Condition {
        kind: kind.into(),
        status: status.into(),
        last_update_time: Some(now),
        last_transition_time: Some(now),
        reason: reason.into(),
        message: message.into().into(),
        ..Condition::default()
    }
}

/// Sets a condition; one with the same status and reason stays as it is.
pub fn set_condition(conditions: &mut Vec<Condition>, mut condition: Condition) {
    if let Some(known) = find_condition(conditions, &condition.kind) {
        if known.status == condition.status && known.reason == condition.reason {
            return;
        }
        if known.status == condition.status {
            condition.last_transition_time = known.last_transition_time;
        }
    }
    conditions.retain(|c| c.kind != condition.kind);
    conditions.push(condition);
}

/// The status that the replica sets give, without progress.
pub fn calculate_status(
    deployment: &Deployment,
    status: &DeploymentStatus,
    wanted: &Wanted,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let all = || new.into_iter().chain(old.iter().copied());
    let available: i64 = all().map(|s| s.status.available_replicas).sum();
    let total: i64 = all().map(replicas).sum();
    let terminating = all()
        .filter(|s| s.status.observed_generation != 0 || s.status.terminating_replicas.is_some())
        .map(|s| s.status.terminating_replicas)
        .sum::<Option<i64>>();
    let mut conditions = status.conditions.clone();
    let (state, reason, message) = if available >= wanted.replicas - wanted.max_unavailable {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set_condition(&mut conditions, condition("Available", state, reason, message, now));
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: all().map(|s| s.status.replicas).sum(),
        updated_replicas: new.map_or(0, |s| s.status.replicas),
        ready_replicas: all().map(|s| s.status.ready_replicas).sum(),
        available_replicas: available,
        unavailable_replicas: (total - available).max(0),
        terminating_replicas: terminating,
        collision_count: status.collision_count,
        conditions,
    }
}

pub fn is_complete(wanted: &Wanted, generation: i64, status: &DeploymentStatus) -> bool {
    status.updated_replicas == wanted.replicas
        && status.replicas == wanted.replicas
        && status.available_replicas == wanted.replicas
        && status.observed_generation >= generation
}

/// The status during a rollout, with the conditions that tell its progress.
pub fn rollout_status(
    deployment: &Deployment,
    status: &DeploymentStatus,
    wanted: &Wanted,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let mut next = calculate_status(deployment, status, wanted, new, old, now);
    let deadline = has_deadline(deployment);
    if !deadline {
        next.conditions.retain(|c| c.kind != "Progressing");
    }
    let current = find_condition(&status.conditions, "Progressing");
    let finished_before =
        next.replicas == next.updated_replicas && current.is_some_and(|c| c.reason == "NewReplicaSetAvailable");
    if deadline && !finished_before {
        let subject = match new {
            Some(set) => format!("ReplicaSet \"{}\"", set.metadata.name),
            None => format!("Deployment \"{}\"", deployment.metadata.name),
        };
        if is_complete(wanted, deployment.metadata.generation, &next) {
            let message = format!("{subject} has successfully progressed.");
            set_condition(
                &mut next.conditions,
                condition("Progressing", "True", "NewReplicaSetAvailable", message, now),
            );
        } else if has_progressed(status, &next) {
            let message = format!("{subject} is progressing.");
            let mut progressing = condition("Progressing", "True", "ReplicaSetUpdated", message, now);
            if let Some(current) = current.filter(|c| c.is_true()) {
                progressing.last_transition_time = current.last_transition_time;
            }
            // Unlike other conditions it is renewed with the same reason: its update time is the sign of life.
            next.conditions.retain(|c| c.kind != "Progressing");
            next.conditions.push(progressing);
        } else if timed_out(deployment, &next, now) {
            let message = format!("{subject} has timed out progressing.");
            let failed = condition("Progressing", "False", "ProgressDeadlineExceeded", message, now);
            set_condition(&mut next.conditions, failed);
        }
    }
    let failure =
        new.into_iter().chain(old.iter().copied()).find_map(|s| find_condition(&s.status.conditions, "ReplicaFailure"));
    match failure {
        Some(failure) => {
            let failure = Condition { last_update_time: failure.last_transition_time, ..failure.clone() };
            set_condition(&mut next.conditions, failure);
        }
        None => next.conditions.retain(|c| c.kind != "ReplicaFailure"),
    }
    next
}

fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    after.updated_replicas > before.updated_replicas
        || after.replicas - after.updated_replicas < before.replicas - before.updated_replicas
        || after.ready_replicas > before.ready_replicas
        || after.available_replicas > before.available_replicas
}

fn timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(condition) = find_condition(&status.conditions, "Progressing") else { return false };
    match condition.reason.as_str() {
        "NewReplicaSetAvailable" => false,
        "ProgressDeadlineExceeded" => true,
        _ => deadline_in(deployment, condition, now).is_some_and(|left| left.is_negative()),
    }
}

fn deadline_in(deployment: &Deployment, condition: &Condition, now: Timestamp) -> Option<SignedDuration> {
    let seconds = deployment.spec.progress_deadline_seconds?;
    Some(SignedDuration::from_secs(seconds) - now.duration_since(condition.last_update_time?))
}

/// When a rollout that shows no progress has to be looked at again.
pub fn next_check(
    deployment: &Deployment,
    wanted: &Wanted,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<SignedDuration> {
    let condition = find_condition(&status.conditions, "Progressing")?;
    if !has_deadline(deployment)
        || is_complete(wanted, deployment.metadata.generation, status)
        || condition.reason == "ProgressDeadlineExceeded"
    {
        return None;
    }
    // A second more, since times in conditions are whole seconds.
    Some(deadline_in(deployment, condition, now)?.max(SignedDuration::ZERO) + SignedDuration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    fn deployment(replicas: i64, surge: Value, unavailable: Value) -> Deployment {
        json!({"metadata": {"name": "d", "generation": 1}, "spec": {"replicas": replicas, "progressDeadlineSeconds": 60,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}})
        .to()
        .unwrap()
    }

    fn set(name: &str, size: i64, annotations: Value, created: &str) -> ReplicaSet {
        json!({"metadata": {"name": name, "annotations": annotations, "creationTimestamp": created},
            "spec": {"replicas": size}})
        .to()
        .unwrap()
    }

    #[test]
    fn surge_and_unavailable_resolve_to_numbers() {
        // Source: the table above ResolveFenceposts.
        for (replicas, surge, unavailable, want) in [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (2, json!("0%"), json!("1%"), (0, 1)),
            (1, json!(0), json!(5), (0, 1)),
            (0, json!(1), json!(1), (1, 0)),
        ] {
            let wanted = Wanted::of(&deployment(replicas, surge.clone(), unavailable.clone()));
            assert_eq!((wanted.max_surge, wanted.max_unavailable), want, "{replicas} {surge} {unavailable}");
        }
    }

    #[test]
    fn a_rolling_update_goes_in_safe_steps() {
        let wanted = Wanted::of(&deployment(10, json!(3), json!(2)));
        for (new, old, want, why) in [
            ((0, 0), vec![(10, 10)], Step::New(3), "surge"),
            ((3, 0), vec![(10, 10)], Step::Old(vec![8]), "two may be unavailable"),
            ((5, 0), vec![(8, 8)], Step::Nothing, "new pods are not available yet"),
            ((5, 5), vec![(8, 8)], Step::Old(vec![3]), "all that is above the minimum"),
            ((10, 10), vec![(0, 0)], Step::Nothing, "done"),
            ((3, 0), vec![(10, 4)], Step::Old(vec![8]), "unhealthy first"),
            ((12, 12), vec![], Step::New(10), "scaled down"),
        ] {
            assert_eq!(roll(&wanted, new, &old), want, "{why}");
        }
    }

    #[test]
    fn scaling_during_a_rollout_is_proportional() {
        let annotated = |max: &str| json!({MAX_REPLICAS: max, DESIRED_REPLICAS: "10"});
        let wanted = Wanted::of(&deployment(15, json!(3), json!(2)));
        let new = set("new", 5, annotated("13"), "2026-01-02T00:00:00Z");
        let old = set("old", 8, annotated("13"), "2026-01-01T00:00:00Z");
        let sizes = scale(&wanted, 13, Some(&new), &[&old]);
        assert_eq!(sizes, [(1, 11), (0, 7)]);
        let to_zero = Wanted::of(&deployment(0, json!(3), json!(2)));
        assert_eq!(scale(&to_zero, 13, Some(&new), &[&old]), [(1, 0), (0, 0)]);
        assert_eq!(scale(&wanted, 0, Some(&new), &[]), [(0, 15)]);
        assert!(is_scaling_event(&wanted, &[&new]));
    }

    #[test]
    fn revisions_and_annotations_are_carried_to_the_new_set() {
        let of = |v: Value| -> StrMap { v.to().unwrap() };
        let deployment = of(json!({"a": "1", REVISION: "9", LAST_APPLIED: "x"}));
        let changes = new_set_annotations(&deployment, &of(json!({})), 3);
        assert_eq!(changes.iter().collect::<Vec<_>>(), [("a", "1"), (REVISION, "3")]);
        let back = new_set_annotations(&deployment, &of(json!({"a": "1", REVISION: "2", REVISION_HISTORY: "1"})), 3);
        assert_eq!(back.iter().collect::<Vec<_>>(), [(REVISION, "3"), (REVISION_HISTORY, "1,2")]);
        assert!(new_set_annotations(&deployment, &of(json!({"a": "1", REVISION: "3"})), 3).is_empty());
    }

    #[test]
    fn progress_is_told_in_conditions() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        let deployment = deployment(1, json!(1), json!(0));
        let wanted = Wanted::of(&deployment);
        let mut new = set("new", 1, json!({}), "2026-01-01T00:00:00Z");
        let reason = |s: &DeploymentStatus| find_condition(&s.conditions, "Progressing").map(|c| c.reason.to_string());
        let mut status = DeploymentStatus::default();
        status.conditions.push(condition("Progressing", "True", "NewReplicaSetCreated", "", now));
        new.status.replicas = 1;
        let progressing = rollout_status(&deployment, &status, &wanted, Some(&new), &[], now);
        assert_eq!(reason(&progressing).as_deref(), Some("ReplicaSetUpdated"));
        assert_eq!(next_check(&deployment, &wanted, &progressing, now).unwrap().as_secs(), 61);
        let stuck = rollout_status(&deployment, &progressing, &wanted, Some(&new), &[], later);
        assert_eq!(reason(&stuck).as_deref(), Some("ProgressDeadlineExceeded"));
        new.status.available_replicas = 1;
        new.status.ready_replicas = 1;
        let done = rollout_status(&deployment, &stuck, &wanted, Some(&new), &[], later);
        assert_eq!(reason(&done).as_deref(), Some("NewReplicaSetAvailable"));
        assert_eq!(done, rollout_status(&deployment, &done, &wanted, Some(&new), &[], later), "settles");
    }

    #[test]
    fn templates_are_equal_apart_from_the_hash() {
        let template = json!({"metadata": {"labels": {"a": "b"}, "creationTimestamp": null}, "spec": {"x": 1}});
        let mut hashed = template.clone();
        hashed.set_at(&["metadata", "labels", POD_TEMPLATE_HASH], "abc".into());
        assert_eq!(bare_template(&template), bare_template(&hashed));
    }
}
