//! The decisions of the statefulset controller. Pure: pods and revisions in, the next action out.
//!
//! Follows: `pkg/controller/statefulset` (`stateful_set_control.go`, `stateful_set_utils.go`).

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use informer::{ObjectMeta, OwnerReference, null_default};
use jiff::Timestamp;
use serde::Deserialize;

use crate::history::REVISION_LABEL;
use crate::ownership::pod_from_template;
use crate::pod;
use crate::selector::LabelSelector;
use crate::types::{Condition, Pod, Raw, Strategy, cached, raw_value};

pub const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StatefulSet {
    pub metadata: ObjectMeta,
    pub spec: StatefulSetSpec,
    pub status: StatefulSetStatus,
}

cached!(StatefulSet);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StatefulSetSpec {
    pub replicas: Option<i64>,
    pub selector: LabelSelector,
    pub template: Option<Raw>,
    #[serde(deserialize_with = "null_default")]
    pub volume_claim_templates: Vec<Raw>,
    pub service_name: Str,
    pub pod_management_policy: Str,
    pub update_strategy: Strategy,
    pub revision_history_limit: Option<i64>,
    pub min_ready_seconds: i64,
    pub persistent_volume_claim_retention_policy: Option<Retention>,
    pub ordinals: Option<Ordinals>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Retention {
    pub when_deleted: Str,
    pub when_scaled: Str,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ordinals {
    pub start: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StatefulSetStatus {
    pub observed_generation: i64,
    pub replicas: i64,
    pub ready_replicas: i64,
    pub current_replicas: i64,
    pub updated_replicas: i64,
    pub available_replicas: i64,
    pub current_revision: Str,
    pub update_revision: Str,
    pub collision_count: Option<i64>,
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<Condition>,
}

impl StatefulSet {
    pub fn start(&self) -> i64 {
        self.spec.ordinals.as_ref().map_or(0, |o| o.start)
    }

    pub fn replicas(&self) -> i64 {
        self.spec.replicas.unwrap_or(1)
    }

    pub fn pod_name(&self, ordinal: i64) -> String {
        format!("{}-{ordinal}", self.metadata.name)
    }

    /// The ordinal of a pod of this set.
    pub fn ordinal(&self, name: &str) -> Option<i64> {
        name.strip_prefix(self.metadata.name.as_str())?.strip_prefix('-')?.parse().ok().filter(|o| *o >= 0)
    }

    pub fn in_range(&self, ordinal: i64) -> bool {
        (self.start()..self.start() + self.replicas()).contains(&ordinal)
    }

    pub fn retention(&self) -> (bool, bool) {
        let policy = self.spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
        (policy.when_deleted == "Delete", policy.when_scaled == "Delete")
    }

    fn is_rolling(&self) -> bool {
        self.spec.update_strategy.kind != "OnDelete"
    }

    fn max_unavailable(&self) -> i64 {
        let rolling = self.spec.update_strategy.rolling_update.as_ref();
        let written = rolling.and_then(|r| r.max_unavailable.as_ref()).and_then(|m| m.scaled(self.replicas(), false));
        written.unwrap_or(1).max(1)
    }

    fn partition(&self) -> Option<i64> {
        self.spec.update_strategy.rolling_update.as_ref().map(|r| r.partition.unwrap_or(0))
    }

    /// Whether a new pod of this ordinal is made from the current revision and not from the update revision.
    pub fn uses_current(&self, ordinal: i64) -> bool {
        let below = |count: i64| ordinal < self.start() + count;
        self.is_rolling() && self.partition().map_or_else(|| below(self.status.current_replicas), below)
    }
}

pub fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.get(REVISION_LABEL).unwrap_or("")
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pod.status.phase == "Running" && pod::is_ready(pod)
}

fn is_healthy(set: &StatefulSet, pod: &Pod, now: Timestamp) -> bool {
    is_running_and_ready(pod) && pod::is_available(pod, set.spec.min_ready_seconds, now) && !pod.metadata.is_deleting()
}

/// What to do next with the pods of a set.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Create the pod of this ordinal.
    Create(i64),
    Delete(Str),
    /// Make sure that the claims of this pod exist, since it still waits for something.
    EnsureClaims(i64),
}

/// The actions that are due. In ordered sets this is at most one creation or deletion.
pub fn plan(set: &StatefulSet, pods: &[Arc<Pod>], update_revision: &str, now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    if set.metadata.is_deleting() {
        return actions;
    }
    let mut replicas: BTreeMap<i64, Option<&Arc<Pod>>> = (0..set.replicas()).map(|i| (set.start() + i, None)).collect();
    let mut condemned: BTreeMap<i64, &Arc<Pod>> = BTreeMap::new();
    for pod in pods {
        let Some(ordinal) = set.ordinal(&pod.metadata.name) else { continue };
        if set.in_range(ordinal) {
            replicas.insert(ordinal, Some(pod));
        } else {
            condemned.insert(ordinal, pod);
        }
    }
    let healthy = |pod: &Pod| is_healthy(set, pod, now);
    let ordered = set.spec.pod_management_policy != "Parallel";
    for (ordinal, pod) in &replicas {
        let Some(pod) = pod else {
            actions.push(Action::Create(*ordinal));
            if ordered {
                return actions;
            }
            continue;
        };
        if pod::is_terminal(pod) {
            if !pod.metadata.is_deleting() {
                actions.push(Action::Delete(pod.metadata.name.clone()));
            }
            if ordered {
                return actions;
            }
            continue;
        }
        if pod.status.phase == "Pending" || pod.status.phase.is_empty() {
            actions.push(Action::EnsureClaims(*ordinal));
        }
        if ordered && !healthy(pod) {
            return actions;
        }
    }
    // What is missing was asked for above; before it is there nothing is taken away.
    let acted = actions.iter().any(|a| !matches!(a, Action::EnsureClaims(_)));
    let first_unhealthy = replicas
        .values()
        .filter_map(|p| *p)
        .chain(condemned.values().copied())
        .find(|p| !healthy(p))
        .map(|p| p.metadata.name.clone());
    for pod in condemned.values().rev() {
        if pod.metadata.is_deleting() {
            if ordered {
                return actions;
            }
            continue;
        }
        if ordered && !healthy(pod) && first_unhealthy.as_ref() != Some(&pod.metadata.name) {
            return actions;
        }
        actions.push(Action::Delete(pod.metadata.name.clone()));
        if ordered {
            return actions;
        }
    }
    if acted || !condemned.is_empty() || !set.is_rolling() {
        return actions;
    }
    let unavailable = replicas.values().filter(|p| p.is_none_or(|p| !healthy(p))).count() as i64;
    let mut room = set.max_unavailable() - unavailable;
    let lowest = set.start() + set.partition().unwrap_or(0);
    for (_, pod) in replicas.range(lowest..).rev() {
        let Some(pod) = pod else { continue };
        let outdated = revision_of(pod) != update_revision && !pod.metadata.is_deleting();
        if !outdated {
            continue;
        }
        // An old pod that is broken goes without counting against the limit: it gives nothing that could be lost. Only
        // when it is the reason for the wait, so that one bad pod does not take others along.
        let broken = !healthy(pod) && unavailable <= set.max_unavailable();
        if room > 0 || broken {
            actions.push(Action::Delete(pod.metadata.name.clone()));
            room -= i64::from(!broken);
        }
        if room <= 0 {
            break;
        }
    }
    actions
}

/// The status that the pods give.
pub fn status(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    current: &str,
    update: &str,
    collisions: Option<i64>,
    now: Timestamp,
) -> StatefulSetStatus {
    let created: Vec<&Arc<Pod>> =
        pods.iter().filter(|p| !p.status.phase.is_empty() && set.ordinal(&p.metadata.name).is_some()).collect();
    let of = |revision: &str| {
        created.iter().filter(|p| !p.metadata.is_deleting() && revision_of(p) == revision).count() as i64
    };
    let ready = created.iter().filter(|p| is_running_and_ready(p));
    let mut status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: created.len() as i64,
        ready_replicas: ready.clone().count() as i64,
        available_replicas: ready.filter(|p| pod::is_available(p, set.spec.min_ready_seconds, now)).count() as i64,
        current_replicas: of(current),
        updated_replicas: of(update),
        current_revision: current.into(),
        update_revision: update.into(),
        collision_count: Some(collisions.unwrap_or(0)),
        conditions: set.status.conditions.clone(),
    };
    let all = set.replicas();
    if set.is_rolling() && status.updated_replicas == all && status.ready_replicas == all && status.replicas == all {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
    status
}

/// The name of a claim of a pod.
pub fn claim_name(set: &StatefulSet, template: &Value, ordinal: i64) -> String {
    format!("{}-{}-{ordinal}", template.str_at(&["metadata", "name"]), set.metadata.name)
}

/// The claims of the pod of an ordinal.
pub fn claims(set: &StatefulSet, ordinal: i64) -> Vec<Value> {
    let templates = set.spec.volume_claim_templates.iter().filter_map(|t| serde_json::from_str::<Value>(t.get()).ok());
    templates
        .map(|mut claim| {
            let name = claim_name(set, &claim, ordinal);
            claim["kind"] = "PersistentVolumeClaim".into();
            claim["apiVersion"] = "v1".into();
            claim.set_at(&["metadata", "name"], name.into());
            claim.set_at(&["metadata", "namespace"], set.metadata.namespace.as_str().into());
            // The selector's labels let users find the claims of a set.
            for (key, value) in set.spec.selector.match_labels.iter() {
                claim.set_at(&["metadata", "labels", key], value.into());
            }
            claim.remove_at(&["status"]);
            claim
        })
        .collect()
}

/// The pod of an ordinal, made from a revision's template.
pub fn new_pod(set: &StatefulSet, template: &Value, revision: &str, ordinal: i64, owner: &OwnerReference) -> Value {
    let name = set.pod_name(ordinal);
    let mut pod = pod_from_template(template, &set.metadata.namespace, owner);
    pod.set_at(&["metadata", "name"], name.as_str().into());
    pod.set_at(&["metadata", "labels", POD_NAME], name.as_str().into());
    pod.set_at(&["metadata", "labels", POD_INDEX], ordinal.to_string().into());
    pod.set_at(&["metadata", "labels", REVISION_LABEL], revision.into());
    pod.set_at(&["spec", "hostname"], name.as_str().into());
    if !set.spec.service_name.is_empty() {
        pod.set_at(&["spec", "subdomain"], set.spec.service_name.as_str().into());
    }
    let templates: Vec<Value> = set.spec.volume_claim_templates.iter().map(|t| raw_value(&Some(t.clone()))).collect();
    let names: Vec<&str> = templates.iter().map(|t| t.str_at(&["metadata", "name"])).collect();
    let mut volumes: Vec<Value> = templates
        .iter()
        .map(|t| {
            json!({"name": t.str_at(&["metadata", "name"]),
                "persistentVolumeClaim": {"claimName": claim_name(set, t, ordinal)}})
        })
        .collect();
    let own = pod.array_at(&["spec", "volumes"]).iter().filter(|v| !names.contains(&v.str_at(&["name"])));
    volumes.extend(own.cloned());
    if !volumes.is_empty() {
        pod.set_at(&["spec", "volumes"], Value::Array(volumes));
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:01:00Z";

    fn set(spec: Value) -> StatefulSet {
        let mut object = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"replicas": 3,
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}});
        for (key, value) in spec.as_object().unwrap().iter() {
            object["spec"][key.as_str()] = value.clone();
        }
        object.to().unwrap()
    }

    /// `+` ready, `-` not ready, `x` failed, `d` going; then the revision.
    fn pods(states: &[(i64, &str)]) -> Vec<Arc<Pod>> {
        let one = |(ordinal, state): &(i64, &str)| {
            let (state, revision) = state.split_at(1);
            let mut pod = json!({"metadata": {"name": format!("s-{ordinal}"), "labels": {REVISION_LABEL: revision}},
                "status": {"phase": if state == "x" { "Failed" } else { "Running" }, "conditions": [{"type": "Ready",
                    "status": if matches!(state, "+" | "d") { "True" } else { "False" },
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
            if state == "d" {
                pod.set_at(&["metadata", "deletionTimestamp"], NOW.into());
            }
            Arc::new(pod.to().unwrap())
        };
        states.iter().map(one).collect()
    }

    #[test]
    fn pods_come_and_go_in_order() {
        use Action::{Create, Delete};
        let delete = |name: &str| Delete(name.into());
        let parallel = json!({"podManagementPolicy": "Parallel"});
        for (spec, states, want, why) in [
            (json!({}), vec![], vec![Create(0)], "the first"),
            (json!({}), vec![(0, "-a")], vec![], "waits for it"),
            (json!({}), vec![(0, "+a")], vec![Create(1)], "then the next"),
            (json!({}), vec![(0, "+a"), (1, "xa")], vec![delete("s-1")], "failed pods are replaced"),
            (json!({}), vec![(0, "+a"), (1, "da")], vec![], "waits until it is gone"),
            (parallel.clone(), vec![(1, "-a")], vec![Create(0), Create(2)], "all at once"),
            (json!({"replicas": 1}), vec![(0, "+a"), (1, "+a"), (2, "+a")], vec![delete("s-2")], "from the end"),
            (json!({"replicas": 1}), vec![(0, "-a"), (1, "+a")], vec![], "predecessors must be ready"),
            (json!({"replicas": 1}), vec![(0, "+a"), (1, "-a"), (2, "+a")], vec![delete("s-2")], "s-2 is healthy"),
            (json!({}), vec![(0, "+a"), (1, "+a"), (2, "+a")], vec![], "done"),
            (json!({}), vec![(0, "+b"), (1, "+b"), (2, "+b")], vec![delete("s-2")], "update from the end"),
            (json!({}), vec![(0, "+b"), (1, "+b"), (2, "-a")], vec![], "one at a time"),
            (json!({}), vec![(0, "+b"), (1, "+b"), (2, "+a")], vec![delete("s-1")], "and on"),
            (
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}),
                vec![(0, "+b"), (1, "+b"), (2, "+a")],
                vec![],
                "not below the partition",
            ),
            (
                json!({"updateStrategy": {"type": "OnDelete"}}),
                vec![(0, "+b"), (1, "+b"), (2, "+b")],
                vec![],
                "on delete",
            ),
            (
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}}),
                vec![(0, "+b"), (1, "+b"), (2, "+b")],
                vec![delete("s-2"), delete("s-1")],
                "two at a time",
            ),
            (json!({"ordinals": {"start": 5}, "replicas": 1}), vec![(0, "+a")], vec![Create(5)], "start"),
        ] {
            let got = plan(&set(spec), &pods(&states), "a", NOW.parse().unwrap());
            assert_eq!(got, want, "{why}");
        }
    }

    #[test]
    fn a_finished_update_becomes_the_current_revision() {
        let now = NOW.parse().unwrap();
        let done = status(&set(json!({})), &pods(&[(0, "+b"), (1, "+b"), (2, "+b")]), "a", "b", None, now);
        assert_eq!((done.current_revision.as_str(), done.current_replicas, done.updated_replicas), ("b", 3, 3));
        let half = status(&set(json!({})), &pods(&[(0, "+a"), (1, "+a"), (2, "-b")]), "a", "b", None, now);
        assert_eq!((half.current_revision.as_str(), half.current_replicas, half.ready_replicas), ("a", 2, 2));
    }

    #[test]
    fn pods_have_a_stable_identity_and_their_claims() {
        let set = set(json!({"serviceName": "svc", "selector": {"matchLabels": {"app": "x"}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]}));
        let template =
            json!({"spec": {"volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}});
        let pod = new_pod(&set, &template, "s-abc", 1, &OwnerReference::default());
        assert_eq!(pod.str_at(&["metadata", "labels", POD_NAME]), "s-1");
        assert_eq!(pod.str_at(&["spec", "subdomain"]), "svc");
        assert_eq!(pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-s-1");
        assert_eq!(pod.array_at(&["spec", "volumes"]).len(), 2);
        let claims = claims(&set, 1);
        assert_eq!(claims[0].str_at(&["metadata", "name"]), "data-s-1");
        assert_eq!(claims[0].str_at(&["metadata", "labels", "app"]), "x");
    }
}
