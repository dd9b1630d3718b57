//! The bootstrap policy in the store: what is missing is created, what is there gets what it lacks.
//!
//! Objects whose annotation `rbac.authorization.kubernetes.io/autoupdate` is `false` stay as they are. Nothing that an
//! administrator added is taken away.
//!
//! Follows: `k8s.io/component-helpers/auth/rbac/reconciliation`, `pkg/registry/rbac/rest.PostStartHook`.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::StatusResult;
use futures::stream::{StreamExt, TryStreamExt};

use super::GROUP;
use super::bootstrap::{self, Bootstrap};
use super::rules::{PolicyRule, uncovered};
use crate::bootstrap::ensure;
use crate::storage::{Storage, WriteFailure};

const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// Writes that are on their way at once; the store commits them together.
const WRITES_AT_ONCE: usize = 128;
/// Attempts against other servers that reconcile at the same time.
const ATTEMPTS: usize = 5;

/// Brings the bootstrap policy into the store.
pub async fn run(storage: &Arc<Storage>) -> StatusResult<()> {
    futures::stream::iter(bootstrap::objects())
        .map(|wanted| reconcile(storage, wanted))
        .buffer_unordered(WRITES_AT_ONCE)
        .try_collect::<()>()
        .await
}

async fn reconcile(storage: &Arc<Storage>, wanted: Bootstrap) -> StatusResult<()> {
    let Some(resource) = storage.registry.get(GROUP, "v1", wanted.resource) else { return Ok(()) };
    let name = wanted.object.name().to_owned();
    for _ in 0..ATTEMPTS {
        let Some(entry) = storage.get_cached(&resource, &wanted.namespace, &name) else {
            return ensure(storage, GROUP, "v1", wanted.resource, wanted.object).await;
        };
        let existing = entry.to_value();
        if existing.annotation(AUTO_UPDATE) == Some("false") {
            return Ok(());
        }
        let changed = if wanted.resource.ends_with("bindings") {
            reconciled_binding(&existing, &wanted.object)
        } else {
            reconciled_role(&existing, &wanted.object)
        };
        let Some(changed) = changed else { return Ok(()) };
        match storage.replace(&resource, &wanted.namespace, &name, &changed, entry.revision).await {
            Ok(_) => return Ok(()),
            Err(WriteFailure::Conflict(_)) => storage.caches.wait_current().await.map_or((), |_| ()),
            Err(WriteFailure::Status(status)) => return Err(status),
        }
    }
    tracing::warn!(resource = wanted.resource, name, "the bootstrap policy could not be brought up to date");
    Ok(())
}

/// Adds labels and annotations that are missing; a changed value is set back.
fn add_metadata(existing: &mut Value, wanted: &Value) {
    for map in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][map].as_object().into_iter().flat_map(|m| m.iter()) {
            // Only an absent annotation is added: its value is the administrator's switch.
            if map == "labels" || existing.annotation(key).is_none() {
                existing.set_at(&["metadata", map, key], value.clone());
            }
        }
    }
}

/// The role with what it lacks, `None` when it lacks nothing.
fn reconciled_role(existing: &Value, wanted: &Value) -> Option<Value> {
    let mut changed = existing.clone();
    add_metadata(&mut changed, wanted);
    if wanted["aggregationRule"].is_object() {
        let path = ["aggregationRule", "clusterRoleSelectors"];
        let mut selectors = existing.array_at(&path).to_vec();
        for selector in wanted.array_at(&path) {
            if !selectors.contains(selector) {
                selectors.push(selector.clone());
            }
        }
        changed.set_at(&path, Value::Array(selectors));
    } else if existing["rules"] != wanted["rules"] {
        let missing = uncovered(&PolicyRule::of_role(existing), &PolicyRule::of_role(wanted));
        if !missing.is_empty() {
            let mut rules = existing.array_at(&["rules"]).to_vec();
            rules.extend(missing.iter().map(PolicyRule::to_value));
            changed["rules"] = Value::Array(rules);
        }
    }
    (changed != *existing).then_some(changed)
}

/// The binding with the subjects it lacks; its role is set back when it was made anew with another one.
fn reconciled_binding(existing: &Value, wanted: &Value) -> Option<Value> {
    let mut changed = existing.clone();
    add_metadata(&mut changed, wanted);
    let mut subjects = existing.array_at(&["subjects"]).to_vec();
    for subject in wanted.array_at(&["subjects"]) {
        if !subjects.contains(subject) {
            subjects.push(subject.clone());
        }
    }
    if subjects.len() != existing.array_at(&["subjects"]).len() {
        changed["subjects"] = Value::Array(subjects);
    }
    changed["roleRef"] = wanted["roleRef"].clone();
    (changed != *existing).then_some(changed)
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn roles_get_what_they_lack_and_keep_what_was_added() {
        let wanted = json!({"metadata": {"name": "r", "labels": {"a": "b"}},
            "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}]});
        let same = wanted.clone();
        assert_eq!(reconciled_role(&same, &wanted), None);
        let wider = json!({"metadata": {"name": "r", "labels": {"a": "b"}},
            "rules": [{"verbs": ["*"], "apiGroups": [""], "resources": ["*"]}]});
        assert_eq!(reconciled_role(&wider, &wanted), None, "more than asked for is fine");
        let narrower = json!({"metadata": {"name": "r"},
            "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
        let changed = reconciled_role(&narrower, &wanted).expect("it lacks list");
        assert_eq!(
            changed["rules"],
            json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
                {"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}])
        );
        assert_eq!(changed.label("a"), Some("b"));
    }
}
