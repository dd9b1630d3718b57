//! What a cluster has to do although nobody asks for anything.
//!
//! Read from the store, so that it costs nothing between two questions. A value that cannot be read counts as work: better
//! awake for nothing than asleep over something.

use std::collections::BTreeMap;

use apimachinery::Value;
use bytes::Bytes;
use serde::Deserialize;
use store::{Expect, KeyValue, Op, RangeRequest, Store};

use crate::StartError;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Object {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
    #[serde(rename = "deletionTimestamp")]
    deletion_timestamp: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    suspend: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    phase: String,
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Object {
    fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn is_finished_job(&self) -> bool {
        let ends = ["Complete", "Failed"];
        let conditions = self.status.conditions.iter().flatten();
        conditions.into_iter().any(|c| ends.contains(&c.kind.as_str()) && c.status == "True")
    }

    fn full_name(&self) -> String {
        match self.metadata.namespace.as_str() {
            "" => self.metadata.name.clone(),
            namespace => format!("{namespace}/{}", self.metadata.name),
        }
    }
}

/// Is this object of a kind work that waits?
fn waits(kind: &str, object: &Object) -> bool {
    match kind {
        "pods" => !object.has_ended(),
        "jobs" => !object.is_suspended() && !object.is_finished_job(),
        // The next run comes by the clock.
        "cronjobs" => !object.is_suspended(),
        "namespaces" => object.metadata.deletion_timestamp.is_some(),
        _ => false,
    }
}

async fn all(store: &Store, kind: &str) -> Result<Vec<KeyValue>, store::ReadError> {
    Ok(store.range(RangeRequest::prefix(format!("/registry/{kind}/"))).await?.kvs)
}

/// One thing that keeps the cluster awake.
pub(crate) async fn work(store: &Store) -> Option<String> {
    for kind in ["pods", "jobs", "cronjobs", "namespaces"] {
        let Ok(kvs) = all(store, kind).await else { return Some(format!("the {kind} cannot be read")) };
        for kv in kvs {
            match serde_json::from_slice::<Object>(&kv.value) {
                Ok(object) if waits(kind, &object) => return Some(format!("{kind} {}", object.full_name())),
                Ok(_) => {}
                Err(_) => return Some(format!("{} cannot be read", String::from_utf8_lossy(&kv.key))),
            }
        }
    }
    None
}

pub(crate) async fn has_running_pods(store: &Store, labels: &BTreeMap<String, String>) -> bool {
    let Ok(pods) = all(store, "pods").await else { return true };
    pods.iter().any(|kv| match serde_json::from_slice::<Object>(&kv.value) {
        Ok(pod) => !pod.has_ended() && labels.iter().all(|(key, value)| pod.metadata.labels.get(key) == Some(value)),
        Err(_) => true,
    })
}

/// Takes node and status off every pod that has not ended: its host pod is gone, and it shall run again.
pub(crate) async fn schedule_again(store: &Store) -> Result<(), StartError> {
    for kv in all(store, "pods").await.map_err(snapshot::restore::RestoreError::from)? {
        let Ok(mut pod) = Value::from_slice(&kv.value) else { continue };
        let ended = matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed");
        // One on its way out goes the rest of the way.
        if ended || pod.at(&["metadata", "deletionTimestamp"]).is_some() {
            continue;
        }
        pod.remove_at(&["spec", "nodeName"]);
        pod.remove_at(&["status"]);
        pod.set_at(&["status", "phase"], "Pending".into());
        let op = Op::Put { value: Bytes::from(pod.to_vec()), lease: kv.lease };
        match store.txn(kv.key, Expect::ModRevision(kv.mod_revision), op).await {
            // Somebody was faster, and knows better.
            Err(store::WriteError::Conflict { .. }) => {}
            written => drop(written.map_err(snapshot::restore::RestoreError::from)?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    async fn store_with(objects: &[(&str, Value)]) -> Store {
        let store = Store::in_memory(store::Options::default()).await;
        for (key, value) in objects {
            let op = Op::Put { value: value.to_vec().into(), lease: 0 };
            store.txn(Bytes::from(format!("/registry/{key}")), Expect::Any, op).await.unwrap();
        }
        store
    }

    fn named(name: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "d", "labels": {"app": "web"}}})
    }

    fn with(mut object: Value, path: &[&str], value: Value) -> Value {
        object.set_at(path, value);
        object
    }

    #[tokio::test]
    async fn what_runs_or_will_run_keeps_a_cluster_awake() {
        let phase = |phase: &str| with(named("a"), &["status", "phase"], phase.into());
        let complete = json!([{"type": "Complete", "status": "True"}]);
        for (key, object, want) in [
            ("pods/d/a", phase("Running"), Some("pods d/a")),
            ("pods/d/a", named("a"), Some("pods d/a")),
            ("pods/d/a", phase("Succeeded"), None),
            ("pods/d/a", phase("Failed"), None),
            ("pods/d/a", json!([1]), Some("/registry/pods/d/a cannot be read")),
            ("jobs/d/a", named("a"), Some("jobs d/a")),
            ("jobs/d/a", with(named("a"), &["status", "conditions"], complete), None),
            ("jobs/d/a", with(named("a"), &["spec", "suspend"], true.into()), None),
            ("cronjobs/d/a", named("a"), Some("cronjobs d/a")),
            ("cronjobs/d/a", with(named("a"), &["spec", "suspend"], true.into()), None),
            ("namespaces/a", named("a"), None),
            ("namespaces/a", with(named("a"), &["metadata", "deletionTimestamp"], "t".into()), Some("namespaces d/a")),
            ("configmaps/d/a", named("a"), None),
        ] {
            let store = store_with(&[(key, object.clone())]).await;
            assert_eq!(work(&store).await.as_deref(), want, "{key} {object:?}");
        }
    }

    #[tokio::test]
    async fn pods_that_have_not_ended_are_scheduled_again() {
        let pod = |name: &str, phase: &str| {
            let pod = with(named(name), &["status", "phase"], phase.into());
            with(pod, &["spec", "nodeName"], "n".into())
        };
        let leaving = with(pod("c", "Running"), &["metadata", "deletionTimestamp"], "t".into());
        let store = store_with(&[
            ("pods/d/a", pod("a", "Running")),
            ("pods/d/b", pod("b", "Succeeded")),
            ("pods/d/c", leaving),
        ])
        .await;
        assert!(has_running_pods(&store, &BTreeMap::from([("app".to_owned(), "web".to_owned())])).await);
        assert!(!has_running_pods(&store, &BTreeMap::from([("app".to_owned(), "db".to_owned())])).await);
        schedule_again(&store).await.unwrap();
        let nodes: Vec<String> = all(&store, "pods")
            .await
            .unwrap()
            .iter()
            .map(|kv| Value::from_slice(&kv.value).unwrap().str_at(&["spec", "nodeName"]).to_owned())
            .collect();
        assert_eq!(nodes, ["", "n", "n"]);
    }
}
