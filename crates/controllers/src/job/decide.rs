//! The decisions of the job controller about single pods, indexes, failures and success. Pure.
//!
//! Follows: `pkg/controller/job` (`indexed_job_utils.go`, `pod_failure_policy.go`, `success_policy.go`, `backoff_utils.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use apimachinery::{Value, json};
use jiff::{SignedDuration, Timestamp};

use super::indexes::Indexes;
use super::types::{Job, OnExitCodes};
use crate::pod;
use crate::types::{ContainerStatus, Pod};

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub const FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-failure-count";
pub const IGNORED_FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const BACKOFF: SignedDuration = SignedDuration::from_secs(10);
const BACKOFF_MAX: SignedDuration = SignedDuration::from_secs(600);
/// The longest `generateName` that is used whole.
const PREFIX_MAX: usize = 63 - 5;

pub fn completion_index(pod: &Pod) -> Option<i64> {
    pod.metadata.annotations.get(COMPLETION_INDEX)?.parse().ok().filter(|i| *i >= 0)
}

/// The index of a pod if the job has it.
pub fn valid_index(job: &Job, pod: &Pod) -> Option<i64> {
    completion_index(pod).filter(|i| *i < job.completions())
}

pub fn is_failed(job: &Job, pod: &Pod) -> bool {
    match pod.status.phase.as_str() {
        "Failed" => true,
        "Succeeded" => false,
        // A pod that is being deleted may never get to say that it failed.
        _ => !job.replaces_only_failed() && pod.metadata.is_deleting(),
    }
}

/// What the pod failure policy says about a failed pod.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Count,
    Ignore,
    FailIndex,
    FailJob(String),
}

pub fn failure_verdict(job: &Job, pod: &Pod) -> Verdict {
    let Some(policy) = &job.spec.pod_failure_policy else { return Verdict::Count };
    let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
    for (index, rule) in policy.rules.iter().enumerate() {
        let message = if let Some(codes) = &rule.on_exit_codes {
            let statuses = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
            let found = statuses.filter_map(|s| exit_code_matches(codes, s).map(|code| (&s.name, code))).next();
            found.map(|(container, code)| {
                format!("Container {container} for pod {namespace}/{name} failed with exit code {code} matching {} rule at index {index}", rule.action)
            })
        } else {
            let mut conditions = pod.status.conditions.iter();
            let patterns = &rule.on_pod_conditions;
            let found = conditions.find(|c| patterns.iter().any(|p| p.kind == c.kind && p.status == c.status));
            found.map(|c| {
                format!(
                    "Pod {namespace}/{name} has condition {} matching {} rule at index {index}",
                    c.kind, rule.action
                )
            })
        };
        if let Some(message) = message {
            return match rule.action.as_str() {
                "Ignore" => Verdict::Ignore,
                "FailIndex" => Verdict::FailIndex,
                "FailJob" => Verdict::FailJob(message),
                _ => Verdict::Count,
            };
        }
    }
    Verdict::Count
}

fn exit_code_matches(codes: &OnExitCodes, status: &ContainerStatus) -> Option<i64> {
    let code = status.state.terminated.as_ref()?.exit_code;
    let named = codes.container_name.as_ref().is_none_or(|name| *name == status.name);
    let listed = codes.values.contains(&code);
    let wanted = if codes.operator == "In" { listed } else { codes.operator == "NotIn" && !listed };
    (named && code != 0 && wanted).then_some(code)
}

/// The message of the success policy rule that is met.
pub fn success_policy_met(job: &Job, succeeded: &Indexes) -> Option<String> {
    let policy = job.spec.success_policy.as_ref()?;
    if succeeded.total() == 0 {
        return None;
    }
    let met = policy.rules.iter().position(|rule| match &rule.succeeded_indexes {
        Some(indexes) => {
            let required = Indexes::parse(indexes, job.completions());
            let done = required.overlap(succeeded);
            required.total() > 0 && (done == required.total() || rule.succeeded_count.is_some_and(|c| done >= c))
        }
        None => rule.succeeded_count.is_some_and(|count| succeeded.total() >= count),
    });
    met.map(|index| format!("Matched rules at index {index}"))
}

fn annotated_count(pod: &Pod, name: &str) -> i64 {
    pod.metadata.annotations.get(name).and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// All failures of an index up to this pod, counted and ignored ones.
fn absolute_failures(pod: &Pod) -> i64 {
    annotated_count(pod, FAILURE_COUNT) + annotated_count(pod, IGNORED_FAILURE_COUNT)
}

/// Whether the failure of `pod` fails its index.
pub fn fails_index(job: &Job, pod: &Pod) -> bool {
    let Some(limit) = job.spec.backoff_limit_per_index else { return false };
    if !is_failed(job, pod) {
        return false;
    }
    match failure_verdict(job, pod) {
        Verdict::FailIndex => true,
        Verdict::Ignore => false,
        Verdict::Count | Verdict::FailJob(_) => annotated_count(pod, FAILURE_COUNT) >= limit,
    }
}

/// The failure counts that the pod replacing `replaced` carries: (counted, ignored).
pub fn next_failure_counts(job: &Job, replaced: Option<&Pod>) -> (i64, i64) {
    let Some(pod) = replaced else { return (0, 0) };
    let (counted, ignored) = (annotated_count(pod, FAILURE_COUNT), annotated_count(pod, IGNORED_FAILURE_COUNT));
    match failure_verdict(job, pod) {
        Verdict::Ignore => (counted, ignored + 1),
        _ => (counted + 1, ignored),
    }
}

/// Of each index without a living pod, the last failed pod: kept until its replacement has taken over its counts.
pub fn delayed_pods<'a>(
    job: &Job,
    pods: &'a [Arc<Pod>],
    active: &BTreeSet<i64>,
    succeeded: &Indexes,
    failed: &Indexes,
) -> BTreeMap<i64, &'a Arc<Pod>> {
    let mut last: BTreeMap<i64, &Arc<Pod>> = BTreeMap::new();
    for pod in pods.iter().filter(|p| p.metadata.has_finalizer(FINALIZER) && is_failed(job, p)) {
        let Some(index) = valid_index(job, pod) else { continue };
        if succeeded.has(index) || failed.has(index) || active.contains(&index) {
            continue;
        }
        let newer = last.get(&index).is_none_or(|known| {
            absolute_failures(known) <= absolute_failures(pod) && finished_at(known) <= finished_at(pod)
        });
        if newer {
            last.insert(index, pod);
        }
    }
    last
}

/// When a pod ended, as well as can be told.
pub fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let restartable =
        |name: &str| pod.spec.init_containers.iter().any(|c| c.name == name && c.restart_policy == "Always");
    let sidecars = pod.status.init_container_statuses.iter().filter(|s| restartable(&s.name));
    let statuses: Vec<&ContainerStatus> = pod.status.container_statuses.iter().chain(sidecars).collect();
    let ends = statuses.iter().map(|s| s.state.terminated.as_ref().and_then(|t| t.finished_at));
    let from_containers = ends.collect::<Option<Vec<Timestamp>>>().and_then(|ends| ends.into_iter().max());
    from_containers
        .or_else(|| pod::ready_condition(pod).filter(|c| c.status == "False").and_then(|c| c.last_transition_time))
        .or_else(|| {
            let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
            pod.metadata.deletion_timestamp.map(|at| at - grace)
        })
        .or(pod.metadata.creation_timestamp)
}

/// Failures in a row, and the last of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backoff {
    pub failures: i64,
    pub last_failure: Option<Timestamp>,
}

impl Backoff {
    /// Takes over pods that have newly ended: a success starts over, failures after it count.
    pub fn next(&self, succeeded: &[&Arc<Pod>], failed: &[&Arc<Pod>]) -> Backoff {
        let last_success = succeeded.iter().filter_map(|p| finished_at(p)).max();
        let failures: Vec<Timestamp> = failed.iter().filter_map(|p| finished_at(p)).collect();
        match last_success {
            None if failed.is_empty() => self.clone(),
            None => Backoff {
                failures: self.failures + failed.len() as i64,
                last_failure: failures.into_iter().max().or(self.last_failure),
            },
            Some(success) => {
                let after: Vec<Timestamp> = failures.into_iter().filter(|f| *f > success).collect();
                Backoff { failures: after.len() as i64, last_failure: after.into_iter().max() }
            }
        }
    }

    /// How long to wait before the next pod.
    pub fn remaining(&self, now: Timestamp) -> SignedDuration {
        remaining(self.failures, self.last_failure, now)
    }
}

fn remaining(failures: i64, last: Option<Timestamp>, now: Timestamp) -> SignedDuration {
    let Some(last) = last.filter(|_| failures > 0) else { return SignedDuration::ZERO };
    let factor = 1 << (failures - 1).min(10);
    let delay = (BACKOFF * factor).min(BACKOFF_MAX);
    (delay - now.duration_since(last)).max(SignedDuration::ZERO)
}

/// How long to wait before the pod that replaces `failed` at its index.
pub fn remaining_for_index(failed: &Pod, now: Timestamp) -> SignedDuration {
    remaining(absolute_failures(failed) + 1, finished_at(failed), now)
}

/// Whether restarts within pods (`restartPolicy: OnFailure`) have used up the backoff limit.
pub fn restarts_exceed_limit(job: &Job, restart_policy: &str, pods: &[Arc<Pod>]) -> bool {
    if restart_policy != "OnFailure" {
        return false;
    }
    let living = pods.iter().filter(|p| matches!(p.status.phase.as_str(), "Running" | "Pending"));
    let statuses = living.flat_map(|p| p.status.init_container_statuses.iter().chain(&p.status.container_statuses));
    let restarts: i64 = statuses.map(|s| s.restart_count).sum();
    let limit = job.spec.backoff_limit.unwrap_or(6);
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// The active pods to remove: those that double an index or have none, then the least useful, `at_least` in all.
pub fn pods_to_remove(job: &Job, active: &[Arc<Pod>], at_least: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let by_use = |a: &Arc<Pod>, b: &Arc<Pod>| pod::deletion_order((a, 0), (b, 0), now);
    let mut remove: Vec<Arc<Pod>> = Vec::new();
    let mut left: Vec<Arc<Pod>> = Vec::new();
    if job.is_indexed() {
        let mut by_index: BTreeMap<i64, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in active {
            match valid_index(job, pod) {
                Some(index) => by_index.entry(index).or_default().push(pod.clone()),
                None => remove.push(pod.clone()),
            }
        }
        for mut same in by_index.into_values() {
            same.sort_by(by_use);
            left.extend(same.pop());
            remove.extend(same);
        }
    } else {
        left = active.to_vec();
    }
    if remove.len() < at_least {
        left.sort_by(by_use);
        left.truncate(at_least - remove.len());
        remove.extend(left);
    }
    remove
}

/// How many pods should be active.
pub fn wanted_active(job: &Job, active: i64, succeeded: i64) -> i64 {
    let parallelism = job.spec.parallelism.unwrap_or(1);
    match job.spec.completions {
        // Any success ends the job: what runs may finish, nothing new begins.
        None if succeeded > 0 => active,
        None => parallelism,
        Some(completions) => (completions - succeeded).min(parallelism).max(0),
    }
}

/// The pod template as pods of this job get it: with the tracking finalizer, and the index in their environment.
pub fn tracked_template(job: &Job, template: &Value) -> Value {
    let mut template = template.clone();
    let mut finalizers: Vec<Value> = template.array_at(&["metadata", "finalizers"]).to_vec();
    if !finalizers.iter().any(|f| *f == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    template.set_at(&["metadata", "finalizers"], Value::Array(finalizers));
    if job.is_indexed() {
        for list in ["initContainers", "containers"] {
            let containers = template.at_mut(&["spec", list]).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                if container.array_at(&["env"]).iter().any(|e| e.str_at(&["name"]) == "JOB_COMPLETION_INDEX") {
                    continue;
                }
                let variable = json!({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef":
                    {"fieldPath": format!("metadata.labels['{COMPLETION_INDEX}']")}}});
                let mut env = container.array_at(&["env"]).to_vec();
                env.push(variable);
                container["env"] = Value::Array(env);
            }
        }
    }
    template
}

/// Marks a pod made from the template with its index.
pub fn set_index(job: &Job, pod: &mut Value, index: i64, failures: Option<(i64, i64)>) {
    let text = index.to_string();
    pod.set_at(&["metadata", "labels", COMPLETION_INDEX], text.as_str().into());
    pod.set_at(&["metadata", "annotations", COMPLETION_INDEX], text.as_str().into());
    if let Some((counted, ignored)) = failures {
        pod.set_at(&["metadata", "annotations", FAILURE_COUNT], counted.to_string().into());
        if ignored > 0 {
            pod.set_at(&["metadata", "annotations", IGNORED_FAILURE_COUNT], ignored.to_string().into());
        }
    }
    pod.set_at(&["spec", "hostname"], format!("{}-{index}", job.metadata.name).into());
    let suffix = format!("-{index}-");
    let keep = job.metadata.name.len().min(PREFIX_MAX - suffix.len());
    pod.set_at(&["metadata", "generateName"], format!("{}{suffix}", &job.metadata.name[..keep]).into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(spec: Value) -> Job {
        let mut object = json!({"metadata": {"name": "j", "namespace": "n"}});
        object["spec"] = spec;
        object.to().unwrap()
    }

    fn pod(phase: &str, extra: Value) -> Arc<Pod> {
        let mut object =
            json!({"metadata": {"name": "p", "namespace": "n", "finalizers": [FINALIZER]}, "status": {"phase": phase}});
        for (key, value) in extra.as_object().unwrap().iter() {
            object.set_at(&key.split('|').collect::<Vec<_>>(), value.clone());
        }
        Arc::new(object.to().unwrap())
    }

    fn exited(code: i64) -> Value {
        json!({"status|containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": code}}}]})
    }

    #[test]
    fn failure_policies_are_matched_in_order() {
        let policy = json!({"podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 42]}},
        ]}});
        let disrupted = json!({"status|conditions": [{"type": "DisruptionTarget", "status": "True"}]});
        for (pod, want) in [
            (pod("Failed", disrupted), Verdict::Ignore),
            (
                pod("Failed", exited(42)),
                Verdict::FailJob(
                    "Container c for pod n/p failed with exit code 42 matching FailJob rule at index 1".into(),
                ),
            ),
            (pod("Failed", exited(7)), Verdict::FailIndex),
            (pod("Failed", exited(1)), Verdict::Count),
            (pod("Failed", exited(0)), Verdict::Count),
        ] {
            assert_eq!(failure_verdict(&job(policy.clone()), &pod), want);
        }
    }

    #[test]
    fn success_policies_are_met_by_indexes_or_counts() {
        for (rule, succeeded, want) in [
            (json!({"succeededIndexes": "0,2"}), "0-2", true),
            (json!({"succeededIndexes": "0,2"}), "0,1", false),
            (json!({"succeededIndexes": "0-4", "succeededCount": 2}), "1,3", true),
            (json!({"succeededCount": 3}), "0,1", false),
            (json!({"succeededCount": 1}), "", false),
        ] {
            let job = job(json!({"completions": 5, "successPolicy": {"rules": [rule.clone()]}}));
            let met = success_policy_met(&job, &Indexes::parse(succeeded, 5)).is_some();
            assert_eq!(met, want, "{rule} {succeeded}");
        }
    }

    #[test]
    fn backoff_grows_with_failures_and_starts_over_with_success() {
        let at = |second: i64| {
            json!({"status|containerStatuses": [{"name": "c", "state": {"terminated":
            {"exitCode": 1, "finishedAt": Timestamp::from_second(second).unwrap().to_string()}}}]})
        };
        let now = Timestamp::from_second(1015).unwrap();
        let failed = pod("Failed", at(1010));
        let one = Backoff::default().next(&[], &[&failed]);
        assert_eq!((one.failures, one.remaining(now).as_secs()), (1, 5));
        let two = one.next(&[], &[&failed]);
        assert_eq!(two.remaining(now).as_secs(), 15);
        let later_success = pod("Succeeded", at(1012));
        assert_eq!(two.next(&[&later_success], &[&failed]), Backoff::default());
        let earlier_success = pod("Succeeded", at(1001));
        assert_eq!(two.next(&[&earlier_success], &[&failed]).failures, 1);
    }

    #[test]
    fn the_right_number_of_pods_is_active() {
        for (spec, active, succeeded, want) in [
            (json!({"parallelism": 3, "completions": 5}), 0, 0, 3),
            (json!({"parallelism": 3, "completions": 5}), 1, 4, 1),
            (json!({"parallelism": 3, "completions": 5}), 0, 5, 0),
            (json!({"parallelism": 3}), 2, 0, 3),
            (json!({"parallelism": 3}), 2, 1, 2),
        ] {
            assert_eq!(wanted_active(&job(spec.clone()), active, succeeded), want, "{spec}");
        }
    }

    #[test]
    fn indexed_pods_carry_their_index() {
        let job = job(json!({"completionMode": "Indexed", "completions": 2}));
        let template = tracked_template(&job, &json!({"spec": {"containers": [{"name": "c"}]}}));
        assert_eq!(template["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
        assert_eq!(template["metadata"]["finalizers"], json!([FINALIZER]));
        let mut pod = template.clone();
        set_index(&job, &mut pod, 1, Some((2, 0)));
        assert_eq!(pod.str_at(&["metadata", "generateName"]), "j-1-");
        assert_eq!(pod.str_at(&["spec", "hostname"]), "j-1");
        assert_eq!(pod.str_at(&["metadata", "annotations", FAILURE_COUNT]), "2");
    }

    #[test]
    fn an_index_fails_after_its_own_limit() {
        let job = job(json!({"completionMode": "Indexed", "completions": 3, "backoffLimitPerIndex": 1}));
        let failed =
            |count: &str| pod("Failed", json!({"metadata|annotations": {COMPLETION_INDEX: "0", FAILURE_COUNT: count}}));
        assert!(!fails_index(&job, &failed("0")));
        assert!(fails_index(&job, &failed("1")));
        assert_eq!(next_failure_counts(&job, Some(&failed("0"))), (1, 0));
        let pods = [failed("0"), failed("1")];
        let none = Indexes::default();
        let delayed = delayed_pods(&job, &pods, &BTreeSet::new(), &none, &none);
        assert_eq!(delayed[&0].metadata.annotations.get(FAILURE_COUNT), Some("1"));
    }
}
