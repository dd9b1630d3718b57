//! pvc-protection, pv-protection and vac-protection: keep claims that pods use, volumes that are bound, and classes of
//! attributes that claims and volumes name, until they are not.
//!
//! Follows: `pkg/controller/volume/{pvcprotection,pvprotection,vacprotection}`.

use std::sync::Arc;

use apimachinery::Value;
use informer::{Header, Informer, ObjectKey, ObjectMeta, Outcome, Resource};

use super::{BY_CLAIM, PersistentVolume, add_claim_index};
use crate::context::{Context, ReconcileResult, ignore_not_found, key_queue};
use crate::pod;
use crate::resources::{PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS, VOLUME_ATTRIBUTES_CLASSES};
use crate::types::{PersistentVolumeClaim, Pod};

pub const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
pub const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
pub const ATTRIBUTES_FINALIZER: &str = "kubernetes.io/vac-protection";

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

/// Whether a claim or volume names a class, wants it, or has it.
fn names_class(object: &Value, class: &str) -> bool {
    let paths: [&[&str]; 3] = [
        &["spec", "volumeAttributesClassName"],
        &["status", "currentVolumeAttributesClassName"],
        &["status", "modifyVolumeStatus", "targetVolumeAttributesClassName"],
    ];
    paths.iter().any(|path| object.str_at(path) == class)
}

pub(crate) fn start_attributes_classes(context: &Context) {
    let context = context
        .for_controller("volumeattributesclass-protection-controller", "volumeattributesclass-protection-controller");
    let queue = key_queue();
    let classes: Informer<Header> = context.factory.informer(VOLUME_ATTRIBUTES_CLASSES);
    let claims: Informer<PersistentVolumeClaim> = context.factory.informer(PERSISTENT_VOLUME_CLAIMS);
    let volumes: Informer<PersistentVolume> = context.factory.informer(PERSISTENT_VOLUMES);
    let adds = queue.clone();
    classes.on_change(move |change| {
        if !change.is_deleted() {
            adds.add(change.object().metadata.key());
        }
    });
    // A claim or volume that changes or goes may be the last one that a class waits for.
    let (adds, all) = (queue.clone(), classes.clone());
    let look_again = move || {
        for class in all.list().iter().filter(|c| c.metadata.is_deleting()) {
            adds.add(class.metadata.key());
        }
    };
    let look = look_again.clone();
    claims.on_change(move |_| look());
    volumes.on_change(move |_| look_again());
    let synced = vec![classes.synced(), claims.synced(), volumes.synced()];
    context.clone().run("volumeattributesclass-protection", 1, &queue, synced, move |key| {
        let (context, classes) = (context.clone(), classes.clone());
        async move {
            let Some(class) = classes.get(&key) else { return Ok(Outcome::Done) };
            let mut in_use = false;
            if class.metadata.is_deleting() {
                for resource in [&PERSISTENT_VOLUME_CLAIMS, &PERSISTENT_VOLUMES] {
                    let all: Vec<Value> = context.rest.list_as(resource, "", "", "").await?;
                    in_use |= all.iter().any(|object| names_class(object, &key.name));
                }
            }
            match wanted(&class.metadata, ATTRIBUTES_FINALIZER, in_use) {
                Some(finalizers) => write(&context, &VOLUME_ATTRIBUTES_CLASSES, &class.metadata, finalizers).await,
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
    fn a_class_is_used_by_what_names_wants_or_has_it() {
        for (object, want) in [
            (json!({"spec": {"volumeAttributesClassName": "gold"}}), true),
            (json!({"spec": {"volumeAttributesClassName": "silver"}}), false),
            (json!({"status": {"currentVolumeAttributesClassName": "gold"}}), true),
            (json!({"status": {"modifyVolumeStatus": {"targetVolumeAttributesClassName": "gold"}}}), true),
            (json!({}), false),
        ] {
            assert_eq!(names_class(&object, "gold"), want, "{object}");
        }
    }

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
