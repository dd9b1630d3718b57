//! pvc-protection and pv-protection: keep claims that pods use, and volumes that are bound, until they are not.
//!
//! Follows: `pkg/controller/volume/pvcprotection`, `pkg/controller/volume/pvprotection`.

use std::sync::Arc;

use apimachinery::Value;
use informer::{Informer, ObjectKey, ObjectMeta, Outcome, Resource};

use super::{BY_CLAIM, PersistentVolume, add_claim_index};
use crate::context::{Context, ReconcileResult, ignore_not_found, key_queue};
use crate::pod;
use crate::resources::{PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS};
use crate::types::{PersistentVolumeClaim, Pod};

pub const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
pub const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

/// The finalizers an object should have; `None` when they are right.
fn wanted(metadata: &ObjectMeta, finalizer: &'static str, in_use: bool) -> Option<Vec<String>> {
    let has = metadata.has_finalizer(finalizer);
    let others = || metadata.finalizers.iter().map(ToString::to_string).filter(|f| f != finalizer);
    match (metadata.is_deleting(), has) {
        (true, true) if !in_use => Some(others().collect()),
        (false, false) => Some(others().chain([finalizer.to_owned()]).collect()),
        _ => None,
    }
}

async fn write(
    context: &Context,
    resource: &Resource,
    metadata: &ObjectMeta,
    finalizers: Vec<String>,
) -> ReconcileResult {
    let finalizers: Vec<&str> = finalizers.iter().map(String::as_str).collect();
    ignore_not_found(context.set_finalizers(resource, metadata, finalizers).await)?;
    Ok(Outcome::Done)
}

pub(crate) fn start_claims(context: &Context) {
    let context = context.for_controller("pvc-protection-controller", "pvc-protection-controller");
    let queue = key_queue();
    let claims: Informer<PersistentVolumeClaim> = context.factory.informer(PERSISTENT_VOLUME_CLAIMS);
    let pods = context.pods();
    add_claim_index(&pods);
    let adds = queue.clone();
    claims.on_change(move |change| {
        if !change.is_deleted() {
            adds.add(change.object().metadata.key());
        }
    });
    let (adds, all) = (queue.clone(), claims.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        if !change.is_deleted() && !pod::is_terminal(pod) {
            return;
        }
        for claim in all.list_namespace(&pod.metadata.namespace) {
            if claim.metadata.is_deleting() {
                adds.add(claim.metadata.key());
            }
        }
    });
    let synced = vec![claims.synced(), pods.synced()];
    context
        .clone()
        .run("pvc-protection", 1, &queue, synced, move |key| claim(context.clone(), claims.clone(), pods.clone(), key));
}

/// A pod uses its claims from its creation until it has ended.
fn uses(pod: &Pod) -> bool {
    !pod::is_terminal(pod)
}

async fn claim(
    context: Context,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
    key: ObjectKey,
) -> ReconcileResult {
    let Some(claim) = claims.get(&key) else { return Ok(Outcome::Done) };
    let mut in_use = pods.by_index(BY_CLAIM, &key.to_string()).iter().any(|p| uses(p));
    if claim.metadata.is_deleting() && !in_use {
        // The cache may lag: a pod that was created a moment ago must keep its data.
        let live: Vec<Value> = context.rest.list_as(&PODS, &key.namespace, "", "").await?;
        in_use = live.iter().filter_map(|p| p.to::<Pod>().ok()).any(|pod| {
            uses(&pod)
                && pod.spec.volumes.iter().any(|v| {
                    v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == key.name)
                        || (v.ephemeral.is_some() && super::ephemeral_claim_name(&pod, &v.name) == key.name.as_str())
                })
        });
    }
    match wanted(&claim.metadata, CLAIM_FINALIZER, in_use) {
        Some(finalizers) => write(&context, &PERSISTENT_VOLUME_CLAIMS, &claim.metadata, finalizers).await,
        None => Ok(Outcome::Done),
    }
}

pub(crate) fn start_volumes(context: &Context) {
    let context = context.for_controller("pv-protection-controller", "pv-protection-controller");
    let queue = key_queue();
    let volumes: Informer<PersistentVolume> = context.factory.informer(PERSISTENT_VOLUMES);
    let adds = queue.clone();
    volumes.on_change(move |change| {
        if !change.is_deleted() {
            adds.add(change.object().metadata.key());
        }
    });
    let synced = vec![volumes.synced()];
    let context = Arc::new(context);
    context.clone().run("pv-protection", 1, &queue, synced, move |key| {
        let (context, volumes) = (context.clone(), volumes.clone());
        async move {
            let Some(volume) = volumes.get(&key) else { return Ok(Outcome::Done) };
            match wanted(&volume.metadata, VOLUME_FINALIZER, volume.status.phase == "Bound") {
                Some(finalizers) => write(&context, &PERSISTENT_VOLUMES, &volume.metadata, finalizers).await,
                None => Ok(Outcome::Done),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn the_finalizer_stays_while_in_use() {
        for (deleting, finalizers, in_use, want) in [
            (false, json!([]), false, Some(vec![CLAIM_FINALIZER])),
            (false, json!([CLAIM_FINALIZER]), false, None),
            (true, json!([CLAIM_FINALIZER, "x"]), false, Some(vec!["x"])),
            (true, json!([CLAIM_FINALIZER]), true, None),
            (true, json!([]), false, None),
        ] {
            let mut object = json!({"name": "c"});
            object["finalizers"] = finalizers;
            if deleting {
                object["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            let got = wanted(&object.to().unwrap(), CLAIM_FINALIZER, in_use);
            assert_eq!(got, want.map(|w| w.into_iter().map(str::to_owned).collect::<Vec<_>>()));
        }
    }
}
