//! Revisions of a StatefulSet's or DaemonSet's pod template, kept as ControllerRevisions.
//!
//! Follows: `pkg/controller/history`.

use std::sync::Arc;

use apimachinery::{Value, json};
use informer::{ApiError, DeleteOptions, Informer, StrMap};

use crate::context::Context;
use crate::names::{fnv32a, safe_encode};
use crate::ownership::{Owner, candidates, claim_objects};
use crate::resources::CONTROLLER_REVISIONS;
use crate::selector::LabelSelector;
use crate::types::{ControllerRevision, raw_value, to_value};

/// The label with the hash on revisions of StatefulSets; those of DaemonSets have it under [`REVISION_LABEL`].
pub const HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// The label on pods that names their revision.
pub const REVISION_LABEL: &str = "controller-revision-hash";

/// What a revision stores: a patch that replaces the template.
pub fn revision_data(template: &Value) -> Value {
    let mut template = template.clone();
    template["$patch"] = "replace".into();
    let mut data = Value::object();
    data.set_at(&["spec", "template"], template);
    data
}

/// The template that a revision stores.
pub fn stored_template(revision: &ControllerRevision) -> Value {
    let mut template = raw_value(&revision.data)["spec"]["template"].clone();
    template.remove_at(&["$patch"]);
    template
}

/// The revisions of `owner`, oldest first, adopting those that are selected.
pub async fn list_revisions(
    context: &Context,
    revisions: &Informer<ControllerRevision>,
    owner: &Owner<'_>,
    selector: &LabelSelector,
) -> Result<Vec<Arc<ControllerRevision>>, ApiError> {
    let all = candidates(revisions, owner.metadata);
    let selected = |r: &ControllerRevision| selector.matches(&r.metadata.labels);
    let mut owned = claim_objects(context, &CONTROLLER_REVISIONS, owner, all, selected, &[]).await?;
    sort(&mut owned);
    Ok(owned)
}

pub fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by(|a, b| {
        let key = |r: &ControllerRevision| (r.revision, r.metadata.creation_timestamp, r.metadata.name.clone());
        key(a).cmp(&key(b))
    });
}

/// What has to be done so that the newest revision is that of `data`.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// This one is the newest already.
    Keep(usize),
    /// This older one becomes the newest, with this number: a rollback.
    Renew(usize, i64),
    Create(i64),
}

/// `revisions` are ordered from old to new.
pub fn next(revisions: &[Arc<ControllerRevision>], data: &Value) -> Next {
    let number = revisions.iter().map(|r| r.revision).max().unwrap_or(0) + 1;
    let same = revisions.iter().rposition(|r| raw_value(&r.data) == *data);
    match same {
        Some(at) if at + 1 == revisions.len() => Next::Keep(at),
        Some(at) => Next::Renew(at, number),
        None => Next::Create(number),
    }
}

/// Takes out of `revisions`, which are ordered from old to new, all of `data` but the newest.
pub fn take_doubles(revisions: &mut Vec<Arc<ControllerRevision>>, data: &Value) -> Vec<Arc<ControllerRevision>> {
    let same = |r: &Arc<ControllerRevision>| raw_value(&r.data) == *data;
    let Some(newest) = revisions.iter().rposition(same) else { return Vec::new() };
    let (mut nth, mut doubles) = (0, Vec::new());
    revisions.retain(|revision| {
        let double = nth < newest && same(revision);
        nth += 1;
        if double {
            doubles.push(revision.clone());
        }
        !double
    });
    doubles
}

/// Makes the newest revision that of `data`; gives it and the collision count to store.
pub async fn ensure(
    context: &Context,
    owner: &Owner<'_>,
    revisions: &mut Vec<Arc<ControllerRevision>>,
    data: &Value,
    labels: &StrMap,
    hash_label: &'static str,
    collisions: Option<i64>,
) -> Result<(Arc<ControllerRevision>, Option<i64>), ApiError> {
    match next(revisions, data) {
        Next::Keep(at) => Ok((revisions[at].clone(), collisions)),
        Next::Renew(at, number) => {
            let old = revisions.remove(at);
            let written = context.merge(&CONTROLLER_REVISIONS, &old.metadata, json!({"revision": number})).await?;
            let renewed: Arc<ControllerRevision> = Arc::new(written.to()?);
            revisions.push(renewed.clone());
            Ok((renewed, collisions))
        }
        Next::Create(number) => {
            let mut collisions = collisions;
            loop {
                let mut bytes = data.to_vec();
                if let Some(collisions) = collisions {
                    bytes.extend(collisions.to_string().into_bytes());
                }
                let hash = safe_encode(fnv32a(&bytes));
                let prefix = &owner.metadata.name[..owner.metadata.name.len().min(223)];
                let name = format!("{prefix}-{hash}");
                let namespace = owner.metadata.namespace.as_str();
                let mut labels = labels.clone();
                labels.insert(hash_label, hash.as_str());
                let mut object = json!({"kind": "ControllerRevision", "apiVersion": "apps/v1", "revision": number,
                    "metadata": {"name": name.as_str(), "namespace": namespace}});
                object["metadata"]["labels"] = labels.to_value();
                // `kubectl rollout history` finds the cause of the change in them.
                if !owner.metadata.annotations.is_empty() {
                    object["metadata"]["annotations"] = owner.metadata.annotations.to_value();
                }
                object["metadata"]["ownerReferences"] = Value::Array(vec![to_value(&owner.reference)]);
                object["data"] = data.clone();
                match context.rest.create(&CONTROLLER_REVISIONS, namespace, &object).await {
                    Ok(created) => {
                        let created: Arc<ControllerRevision> = Arc::new(created.to()?);
                        revisions.push(created.clone());
                        return Ok((created, collisions));
                    }
                    Err(error) if error.is_already_exists() => {
                        let existing: ControllerRevision =
                            context.rest.get_as(&CONTROLLER_REVISIONS, namespace, &name).await?;
                        if raw_value(&existing.data) == *data && existing.metadata.is_controlled_by(&owner.metadata.uid)
                        {
                            let existing = Arc::new(existing);
                            revisions.push(existing.clone());
                            return Ok((existing, collisions));
                        }
                        collisions = Some(collisions.unwrap_or(0) + 1);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// Deletes the oldest revisions beyond `limit` that nothing uses.
pub async fn truncate(
    context: &Context,
    revisions: &[Arc<ControllerRevision>],
    limit: i64,
    in_use: impl Fn(&ControllerRevision) -> bool,
) -> Result<(), ApiError> {
    let unused: Vec<&Arc<ControllerRevision>> = revisions.iter().filter(|r| !in_use(r)).collect();
    let excess = unused.len().saturating_sub(limit.max(0) as usize);
    for revision in unused.into_iter().take(excess) {
        context.delete(&CONTROLLER_REVISIONS, &revision.metadata.key(), &DeleteOptions::default()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_revision_is_kept_or_renewed() {
        let revision = |number: i64, image: &str| -> Arc<ControllerRevision> {
            let mut object = json!({"metadata": {"name": image}, "revision": number});
            object["data"] = revision_data(&json!({"image": image}));
            Arc::new(object.to().unwrap())
        };
        let all = [revision(1, "a"), revision(2, "b")];
        for (image, want) in [("b", Next::Keep(1)), ("a", Next::Renew(0, 3)), ("c", Next::Create(3))] {
            assert_eq!(next(&all, &revision_data(&json!({"image": image}))), want, "{image}");
        }
        let mut twice = vec![revision(1, "a"), revision(2, "b"), revision(3, "a"), revision(4, "c")];
        let doubles = take_doubles(&mut twice, &revision_data(&json!({"image": "a"})));
        assert_eq!(doubles.iter().map(|r| r.revision).collect::<Vec<_>>(), [1]);
        assert_eq!(twice.iter().map(|r| r.revision).collect::<Vec<_>>(), [2, 3, 4]);
        assert!(take_doubles(&mut twice, &revision_data(&json!({"image": "d"}))).is_empty());
        assert_eq!(stored_template(&all[0]), json!({"image": "a"}));
    }
}
