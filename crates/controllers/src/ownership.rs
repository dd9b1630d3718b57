//! Pods and other objects that belong to a controller object: making, removing, adopting and releasing them.
//!
//! Invariant: an object with a controlling owner is never touched by another; adoption first asks the API server whether
//! the owner still exists and is not being deleted.
//!
//! Follows: `pkg/controller/controller_ref_manager.go`, `pkg/controller/controller_utils.go` (`RealPodControl`).

use std::future::Future;
use std::sync::Arc;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use futures::future::join_all;
use informer::events::ObjectReference;
use informer::{
    ApiError, Cached, Change, DeleteOptions, Header, Informer, ObjectKey, ObjectMeta, OwnerReference, PatchType, Queue,
    Resource, UidExpectations,
};

use crate::context::{BY_CONTROLLER, Context};
use crate::pod;
use crate::resources::PODS;
use crate::types::{Pod, to_value};

/// What an object is to a controller object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Owned,
    Adopt,
    /// Owned, but no longer selected.
    Release,
    Foreign,
}

/// Decides what `object` is to the owner with `owner_uid`.
pub fn claim(object: &ObjectMeta, owner: &ObjectMeta, selected: bool) -> Claim {
    match object.controller() {
        Some(reference) if reference.uid != owner.uid => Claim::Foreign,
        Some(_) if selected => Claim::Owned,
        Some(_) if owner.is_deleting() => Claim::Foreign,
        Some(_) => Claim::Release,
        None if owner.is_deleting() || !selected || object.is_deleting() => Claim::Foreign,
        None if object.namespace != owner.namespace => Claim::Foreign,
        None => Claim::Adopt,
    }
}

/// A controller object, as its dependents name it.
pub struct Owner<'a> {
    pub resource: &'a Resource,
    pub reference: OwnerReference,
    pub metadata: &'a ObjectMeta,
}

/// The index value under which objects of a namespace without a controller are found.
pub fn orphans_of(namespace: &str) -> Str {
    Str::from(format!("orphans/{namespace}"))
}

/// Indexes objects by controller uid, and those without one by namespace.
pub fn add_owner_index<K: Cached>(informer: &Informer<K>) {
    informer.add_index(BY_CONTROLLER, |object: &K, out| match object.metadata().controller() {
        Some(owner) => out.push(owner.uid.clone()),
        None => out.push(orphans_of(&object.metadata().namespace)),
    });
}

/// Objects that the owner controls or might adopt.
pub fn candidates<K: Cached>(informer: &Informer<K>, owner: &ObjectMeta) -> Vec<Arc<K>> {
    let mut all = informer.by_index(BY_CONTROLLER, &owner.uid);
    all.retain(|o| o.metadata().namespace == owner.namespace);
    if !owner.is_deleting() {
        all.extend(informer.by_index(BY_CONTROLLER, &orphans_of(&owner.namespace)));
    }
    all
}

/// Adopts and releases among `candidates`; gives those that belong to the owner now.
///
/// `finalizers` are added with the adoption (Jobs track their pods by one).
pub async fn claim_objects<K: Cached>(
    context: &Context,
    resource: &Resource,
    owner: &Owner<'_>,
    candidates: Vec<Arc<K>>,
    selected: impl Fn(&K) -> bool,
    finalizers: &[&str],
) -> Result<Vec<Arc<K>>, ApiError> {
    let mut owned = Vec::new();
    let mut may_adopt: Option<bool> = None;
    for object in candidates {
        let metadata = object.metadata();
        match claim(metadata, owner.metadata, selected(&object)) {
            Claim::Owned => owned.push(object),
            Claim::Foreign => {}
            Claim::Release => {
                let patch = json!({"metadata": {"uid": metadata.uid.as_str(),
                    "ownerReferences": [{"$patch": "delete", "uid": owner.reference.uid.as_str()}]}});
                let (namespace, name) = (&metadata.namespace, &metadata.name);
                match context.rest.patch(resource, "", namespace, name, PatchType::Strategic, &patch).await {
                    Ok(_) => {}
                    // Gone, or another object of that name: nothing is ours any more.
                    Err(error) if error.is_not_found() || error.is_invalid() || error.is_conflict() => {}
                    Err(error) => return Err(error),
                }
            }
            Claim::Adopt => {
                let allowed = match may_adopt {
                    Some(allowed) => allowed,
                    None => {
                        let allowed = owner_lives(context, owner).await?;
                        may_adopt = Some(allowed);
                        allowed
                    }
                };
                if !allowed {
                    continue;
                }
                let mut patch = json!({"metadata": {"uid": metadata.uid.as_str()}});
                patch.set_at(&["metadata", "ownerReferences"], Value::Array(vec![to_value(&owner.reference)]));
                if !finalizers.is_empty() {
                    patch.set_at(&["metadata", "finalizers"], finalizers.to_vec().into());
                }
                let (namespace, name) = (&metadata.namespace, &metadata.name);
                match context.rest.patch(resource, "", namespace, name, PatchType::Strategic, &patch).await {
                    Ok(_) => owned.push(object),
                    Err(error) if error.is_not_found() || error.is_invalid() => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(owned)
}

/// Whether the API server, and not only the cache, knows the owner as living.
async fn owner_lives(context: &Context, owner: &Owner<'_>) -> Result<bool, ApiError> {
    let (namespace, name) = (&owner.metadata.namespace, &owner.metadata.name);
    match context.rest.get_as::<Header>(owner.resource, namespace, name).await {
        Ok(live) => Ok(live.metadata.uid == owner.metadata.uid && !live.metadata.is_deleting()),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// A pod made from `template`, without a name.
pub fn pod_from_template(template: &Value, namespace: &str, owner: &OwnerReference) -> Value {
    let mut metadata = json!({"namespace": namespace});
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template.at(&["metadata", field]).filter(|v| !v.is_null()) {
            metadata[field] = value.clone();
        }
    }
    metadata["ownerReferences"] = Value::Array(vec![to_value(owner)]);
    let mut pod = json!({"kind": "Pod", "apiVersion": "v1"});
    pod["metadata"] = metadata;
    pod["spec"] = template["spec"].clone();
    pod
}

/// The `generateName` for pods of `owner`; too long a name is cut as the API server would.
pub fn pod_name_prefix(owner: &str) -> String {
    format!("{owner}-")
}

/// Creates a pod and records the event on `owner`.
pub async fn create_pod(context: &Context, pod: &Value, owner: &ObjectReference) -> Result<Value, ApiError> {
    match context.rest.create(&PODS, pod.str_at(&["metadata", "namespace"]), pod).await {
        Ok(created) => {
            let name = created.str_at(&["metadata", "name"]);
            context.recorder.normal(owner, "SuccessfulCreate", format!("Created pod: {name}"));
            Ok(created)
        }
        Err(error) => {
            // In a namespace that goes away every creation fails; saying so helps nobody.
            if !error.is_namespace_terminating() {
                context.recorder.warning(owner, "FailedCreate", format!("Error creating: {error}"));
            }
            Err(error)
        }
    }
}

/// Deletes a pod and records the event on `owner`. Not found is an error, so that expectations can be lowered.
pub async fn delete_pod(context: &Context, pod: &ObjectMeta, owner: &ObjectReference) -> Result<(), ApiError> {
    match context.rest.delete(&PODS, &pod.namespace, &pod.name, &DeleteOptions::default()).await {
        Ok(()) => {
            context.recorder.normal(owner, "SuccessfulDelete", format!("Deleted pod: {}", pod.name));
            Ok(())
        }
        Err(error) => {
            if !error.is_not_found() {
                context.recorder.warning(owner, "FailedDelete", format!("Error deleting: {error}"));
            }
            Err(error)
        }
    }
}

/// Calls `work` `count` times in batches of 1, 2, 4, ...; stops after the first batch with a failure.
///
/// Gives how many succeeded and the first error: what fails for one pod (quota, say) would fail for all.
pub async fn slow_start<F, Fut>(count: usize, work: F) -> (usize, Option<ApiError>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), ApiError>>,
{
    let mut done = 0;
    let mut batch = 1;
    while done < count {
        let size = batch.min(count - done);
        let results = join_all((done..done + size).map(&work)).await;
        let mut first_error = None;
        let mut succeeded = 0;
        for result in results {
            match result {
                Ok(()) => succeeded += 1,
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        done += succeeded;
        if first_error.is_some() {
            return (done, first_error);
        }
        batch *= 2;
    }
    (done, None)
}

/// Enqueues the owners of pods as pods change, and lowers expectations.
///
/// `owner` finds the controlling object that a reference names (by name and uid); `matching` those that would adopt a pod.
pub fn watch_pods(
    pods: &Informer<Pod>,
    kind: &'static str,
    queue: &Queue<ObjectKey>,
    expectations: Arc<UidExpectations>,
    owner: impl Fn(&ObjectKey, &str) -> bool + Send + Sync + 'static,
    matching: impl Fn(&Pod) -> Vec<ObjectKey> + Send + Sync + 'static,
) {
    let queue = queue.clone();
    pods.on_change(move |change| {
        let resolve = |object: &Pod| {
            let reference = object.metadata.controller().filter(|r| r.kind == kind)?;
            let key = ObjectKey::new(object.metadata.namespace.clone(), reference.name.clone());
            owner(&key, &reference.uid).then_some(key)
        };
        let enqueue_matching = |object: &Pod| matching(object).into_iter().for_each(|key| queue.add(key));
        match change {
            Change::Added(object) => match object.metadata.controller() {
                Some(_) => {
                    let Some(key) = resolve(object) else { return };
                    if object.metadata.is_deleting() {
                        // After a restart a pod can first be seen while it goes.
                        expectations.saw_delete(&key, &object.metadata.uid);
                    } else {
                        expectations.saw_add(&key);
                    }
                    queue.add(key);
                }
                None if !object.metadata.is_deleting() => enqueue_matching(object),
                None => {}
            },
            Change::Updated { old, new } => {
                let (before, after) = (old.metadata.controller(), new.metadata.controller());
                if before != after
                    && let Some(key) = resolve(old)
                {
                    queue.add(key);
                }
                match after {
                    Some(_) => {
                        let Some(key) = resolve(new) else { return };
                        if new.metadata.is_deleting() {
                            expectations.saw_delete(&key, &new.metadata.uid);
                        }
                        queue.add(key);
                    }
                    None if before.is_some() || old.metadata.labels != new.metadata.labels => enqueue_matching(new),
                    None => {}
                }
            }
            Change::Deleted(object) => {
                let Some(key) = resolve(object) else { return };
                expectations.saw_delete(&key, &object.metadata.uid);
                queue.add(key);
            }
        }
    });
}

/// Of `pods`, the `count` to delete first. `related` counts pods of the same purpose per node.
pub fn choose_to_delete(pods: &[Arc<Pod>], related: &[Arc<Pod>], count: usize, now: jiff::Timestamp) -> Vec<Arc<Pod>> {
    if count >= pods.len() {
        return pods.to_vec();
    }
    let mut per_node: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
    for other in related.iter().filter(|p| pod::is_active(p)) {
        *per_node.entry(other.spec.node_name.as_str()).or_insert(0) += 1;
    }
    let rank = |p: &Pod| per_node.get(p.spec.node_name.as_str()).copied().unwrap_or(0);
    let mut sorted = pods.to_vec();
    sorted.sort_by(|a, b| pod::deletion_order((a, rank(a)), (b, rank(b)), now));
    sorted.truncate(count);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(owner: Option<&str>, deleting: bool) -> ObjectMeta {
        let mut metadata = json!({"name": "p", "namespace": "n", "uid": "p"});
        if let Some(uid) = owner {
            metadata["ownerReferences"] = json!([{"uid": uid, "controller": true}]);
        }
        if deleting {
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        metadata.to().unwrap()
    }

    #[test]
    fn claims_follow_owner_selector_and_deletion() {
        let owner = |deleting: bool| ObjectMeta { uid: "o".into(), ..meta(None, deleting) };
        // (object's owner, object deleting, owner deleting, selected, claim)
        for (object_owner, object_deleting, owner_deleting, selected, want) in [
            (Some("o"), false, false, true, Claim::Owned),
            (Some("o"), false, false, false, Claim::Release),
            (Some("o"), false, true, false, Claim::Foreign),
            (Some("x"), false, false, true, Claim::Foreign),
            (None, false, false, true, Claim::Adopt),
            (None, false, false, false, Claim::Foreign),
            (None, true, false, true, Claim::Foreign),
            (None, false, true, true, Claim::Foreign),
        ] {
            let got = claim(&meta(object_owner, object_deleting), &owner(owner_deleting), selected);
            assert_eq!(got, want, "{object_owner:?} {object_deleting} {owner_deleting} {selected}");
        }
    }

    #[tokio::test]
    async fn slow_start_doubles_and_stops_at_the_first_failing_batch() {
        let calls = std::cell::RefCell::new(Vec::new());
        let fail_at = |limit: usize| {
            let calls = &calls;
            move |i: usize| {
                calls.borrow_mut().push(i);
                async move { if i >= limit { Err(ApiError::Timeout(std::time::Duration::ZERO)) } else { Ok(()) } }
            }
        };
        let (done, error) = slow_start(10, fail_at(100)).await;
        assert_eq!((done, error.is_none()), (10, true));
        calls.borrow_mut().clear();
        let (done, error) = slow_start(10, fail_at(2)).await;
        assert_eq!((done, error.is_some()), (2, true));
        assert_eq!(*calls.borrow(), [0, 1, 2], "the third batch is never begun");
    }

    #[test]
    fn pods_take_over_what_the_template_says() {
        let template = json!({"metadata": {"labels": {"a": "b"}, "annotations": null, "creationTimestamp": null},
            "spec": {"containers": [{"name": "c", "unknown": 1}]}});
        let owner = OwnerReference { uid: "o".into(), controller: Some(true), ..OwnerReference::default() };
        let pod = pod_from_template(&template, "n", &owner);
        assert_eq!(pod["metadata"]["labels"], json!({"a": "b"}));
        assert!(pod["metadata"].get("annotations").is_none());
        assert_eq!(pod["spec"], template["spec"]);
        assert_eq!(pod.str_at(&["metadata", "namespace"]), "n");
    }
}
