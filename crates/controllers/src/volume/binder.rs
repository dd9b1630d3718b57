//! persistentvolume-binder: binds claims to volumes, asks for volumes to be provisioned, and releases volumes.
//!
//! A volume's `claimRef` is written before the claim's `volumeName`: of two claims that want one volume, the API server lets
//! one write through, and a restart in between completes the same binding.
//!
//! Follows: `pkg/controller/volume/persistentvolume`.

use std::sync::Arc;

use apimachinery::quantity::Quantity;
use apimachinery::{Value, json};
use informer::events::ObjectReference;
use informer::{DeleteOptions, Header, Informer, ObjectKey, Outcome};

use super::{ClaimReference, PersistentVolume, ProvisionRequest, StorageClass};
use crate::context::{Context, ReconcileError, ReconcileResult, ignore_not_found};
use crate::resources::{PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES};
use crate::types::PersistentVolumeClaim;

const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const WAIT_FOR_FIRST_CONSUMER: &str = "WaitForFirstConsumer";

fn class_of(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.storage_class_name.as_deref().unwrap_or("")
}

fn quantity(text: Option<&str>) -> Option<Quantity> {
    Quantity::parse(text?).ok()
}

fn mode(mode: &str) -> &str {
    if mode.is_empty() { "Filesystem" } else { mode }
}

fn refers_to(reference: &ClaimReference, claim: &PersistentVolumeClaim) -> bool {
    reference.namespace == claim.metadata.namespace
        && reference.name == claim.metadata.name
        && (reference.uid.is_empty() || reference.uid == claim.metadata.uid)
}

/// The volume that fits a claim best: one that was made for it, else the smallest that is large enough.
fn best_match<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
) -> Option<&'a Arc<PersistentVolume>> {
    let asked = quantity(claim.spec.resources.requests.get("storage"));
    let size = |v: &PersistentVolume| quantity(v.spec.capacity.get("storage"));
    let fits = |v: &&Arc<PersistentVolume>| {
        let reserved = v.spec.claim_ref.as_ref();
        if reserved.is_some_and(|r| !refers_to(r, claim)) || v.metadata.is_deleting() {
            return false;
        }
        let attributes = |name: &Option<apimachinery::json::Str>| name.clone().unwrap_or_default();
        size(v) >= asked
            && mode(&v.spec.volume_mode) == mode(&claim.spec.volume_mode)
            && v.spec.storage_class_name == class_of(claim)
            && attributes(&v.spec.volume_attributes_class_name) == attributes(&claim.spec.volume_attributes_class_name)
            && claim.spec.access_modes.iter().all(|m| v.spec.access_modes.contains(m))
            && (reserved.is_some() || matches!(v.status.phase.as_str(), "Available" | "" | "Pending"))
            && (reserved.is_some() || claim.spec.selector.as_ref().is_none_or(|s| s.matches(&v.metadata.labels)))
    };
    volumes
        .iter()
        .filter(fits)
        .min_by(|a, b| b.spec.claim_ref.is_some().cmp(&a.spec.claim_ref.is_some()).then_with(|| size(a).cmp(&size(b))))
}

struct Binder {
    context: Context,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
}

/// What the queue holds: both kinds, so that one worker set orders them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Item {
    Claim(ObjectKey),
    Volume(ObjectKey),
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("persistent-volume-binder", "persistentvolume-controller");
    let queue: informer::Queue<Item> = informer::Queue::default();
    let claims: Informer<PersistentVolumeClaim> = context.factory.informer(PERSISTENT_VOLUME_CLAIMS);
    let volumes: Informer<PersistentVolume> = context.factory.informer(PERSISTENT_VOLUMES);
    let classes: Informer<StorageClass> = context.factory.informer(STORAGE_CLASSES);
    let (adds, all) = (queue.clone(), volumes.clone());
    claims.on_change(move |change| {
        let claim = change.object();
        adds.add(Item::Claim(claim.metadata.key()));
        if !claim.spec.volume_name.is_empty() {
            adds.add(Item::Volume(ObjectKey::cluster(claim.spec.volume_name.clone())));
        } else if change.is_deleted() {
            for volume in all.list().iter().filter(|v| v.spec.claim_ref.as_ref().is_some_and(|r| refers_to(r, claim))) {
                adds.add(Item::Volume(volume.metadata.key()));
            }
        }
    });
    let (adds, all) = (queue.clone(), claims.clone());
    volumes.on_change(move |change| {
        let volume = change.object();
        adds.add(Item::Volume(volume.metadata.key()));
        match &volume.spec.claim_ref {
            Some(claim) => adds.add(Item::Claim(ObjectKey::new(claim.namespace.clone(), claim.name.clone()))),
            // A new volume may be what others wait for.
            None => all
                .list()
                .iter()
                .filter(|c| c.status.phase != "Bound")
                .for_each(|c| adds.add(Item::Claim(c.metadata.key()))),
        }
    });
    let (adds, all) = (queue.clone(), claims.clone());
    classes.on_change(move |change| {
        let name = &change.object().metadata.name;
        for claim in all.list().iter().filter(|c| c.status.phase != "Bound" && class_of(c) == name) {
            adds.add(Item::Claim(claim.metadata.key()));
        }
    });
    let synced = vec![claims.synced(), volumes.synced(), classes.synced()];
    let binder = Arc::new(Binder { context: context.clone(), claims, volumes, classes });
    // One worker: two claims must not be matched with the same volume at once.
    context.run("persistentvolume-binder", 1, &queue, synced, move |item| {
        let binder = binder.clone();
        async move {
            match item {
                Item::Claim(key) => binder.sync_claim(key).await,
                Item::Volume(key) => binder.sync_volume(key).await,
            }
        }
    });
}

impl Binder {
    async fn sync_claim(&self, key: ObjectKey) -> ReconcileResult {
        let Some(claim) = self.claims.get(&key) else { return Ok(Outcome::Done) };
        let reference = ObjectReference::new("v1", "PersistentVolumeClaim", &claim.metadata);
        let completed = claim.metadata.annotations.contains_key(BIND_COMPLETED);
        if !claim.spec.volume_name.is_empty() {
            let volume = self.volumes.get(&ObjectKey::cluster(claim.spec.volume_name.clone()));
            return match volume {
                Some(volume) if volume.spec.claim_ref.as_ref().is_none_or(|r| refers_to(r, &claim)) => {
                    self.bind(&claim, &volume).await
                }
                _ if completed => {
                    if claim.status.phase != "Lost" {
                        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                        self.context.recorder.warning(&reference, "ClaimLost", message);
                        self.claim_status(&claim, json!({"phase": "Lost"})).await?;
                    }
                    Ok(Outcome::Done)
                }
                _ => self.pending(&claim).await,
            };
        }
        if claim.metadata.is_deleting() {
            return Ok(Outcome::Done);
        }
        let class = self.classes.get(&ObjectKey::cluster(class_of(&claim)));
        let late = class.as_ref().is_some_and(|c| c.volume_binding_mode.as_deref() == Some(WAIT_FOR_FIRST_CONSUMER))
            && !claim.metadata.annotations.contains_key(SELECTED_NODE);
        let volumes = self.volumes.list();
        let reserved = |v: &Arc<PersistentVolume>| v.spec.claim_ref.as_ref().is_some_and(|r| refers_to(r, &claim));
        if !late || volumes.iter().any(reserved) {
            if let Some(volume) = best_match(&claim, &volumes) {
                return self.bind(&claim, volume).await;
            }
        } else {
            let message = "waiting for first consumer to be created before binding";
            self.context.recorder.normal(&reference, WAIT_FOR_FIRST_CONSUMER, message);
            return self.pending(&claim).await;
        }
        let Some(class) = class else {
            let recorder = &self.context.recorder;
            if class_of(&claim).is_empty() {
                let message = "no persistent volumes available for this claim and no storage class is set";
                recorder.normal(&reference, "FailedBinding", message);
            } else {
                let message = format!("storageclass.storage.k8s.io \"{}\" not found", class_of(&claim));
                recorder.warning(&reference, "ProvisioningFailed", message);
            }
            return self.pending(&claim).await;
        };
        self.provision(&claim, &class, &reference).await
    }

    async fn pending(&self, claim: &PersistentVolumeClaim) -> ReconcileResult {
        if claim.status.phase != "Pending" {
            self.claim_status(claim, json!({"phase": "Pending"})).await?;
        }
        Ok(Outcome::Done)
    }

    async fn claim_status(&self, claim: &PersistentVolumeClaim, status: Value) -> Result<(), ReconcileError> {
        ignore_not_found(self.context.patch_status(&PERSISTENT_VOLUME_CLAIMS, &claim.metadata, status).await)?;
        Ok(())
    }

    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        reference: &ObjectReference,
    ) -> ReconcileResult {
        let provisioner = class.provisioner.as_str();
        let annotations = &claim.metadata.annotations;
        if annotations.get(STORAGE_PROVISIONER) != Some(provisioner) {
            let mut patch = Value::object();
            for key in [STORAGE_PROVISIONER, BETA_STORAGE_PROVISIONER] {
                patch.set_at(&["metadata", "annotations", key], provisioner.into());
            }
            // The change brings the claim back here.
            ignore_not_found(self.context.merge(&PERSISTENT_VOLUME_CLAIMS, &claim.metadata, patch).await)?;
            return Ok(Outcome::Done);
        }
        let hook = self.context.config.volume_provisioner.as_ref().filter(|p| p.name == provisioner);
        let Some(hook) = hook else {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
            );
            self.context.recorder.normal(reference, "ExternalProvisioning", message);
            return self.pending(claim).await;
        };
        let storage = claim.spec.resources.requests.get("storage").unwrap_or("0");
        let request = ProvisionRequest {
            volume_name: format!("pvc-{}", claim.metadata.uid),
            claim_namespace: claim.metadata.namespace.to_string(),
            claim_name: claim.metadata.name.to_string(),
            storage: storage.to_owned(),
        };
        let Some(source) = (hook.provision)(&request) else {
            let message = format!("failed to provision volume with StorageClass \"{}\"", class.metadata.name);
            self.context.recorder.warning(reference, "ProvisioningFailed", message);
            return self.pending(claim).await;
        };
        let name = request.volume_name.as_str();
        let mut volume = json!({"kind": "PersistentVolume", "apiVersion": "v1", "metadata": {"name": name},
            "spec": {"capacity": {"storage": storage}, "storageClassName": class.metadata.name.as_str(),
                "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
                "volumeMode": mode(&claim.spec.volume_mode)}});
        volume.set_at(&["metadata", "annotations", PROVISIONED_BY], provisioner.into());
        volume["spec"]["accessModes"] = claim.spec.access_modes.clone().into();
        volume["spec"]["claimRef"] = claim_reference(claim);
        if !class.mount_options.is_empty() {
            volume["spec"]["mountOptions"] = class.mount_options.clone().into();
        }
        for (key, value) in source.as_object().into_iter().flat_map(|s| s.iter()) {
            volume["spec"][key.as_str()] = value.clone();
        }
        match self.context.rest.create(&PERSISTENT_VOLUMES, "", &volume).await {
            Ok(_) => {
                let message = format!("Successfully provisioned volume {name} using {provisioner}");
                self.context.recorder.normal(reference, "ProvisioningSucceeded", message);
            }
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
        self.pending(claim).await
    }

    /// Binds in four writes, each of which is done only if it is missing.
    async fn bind(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> ReconcileResult {
        let context = &self.context;
        let bound = volume.spec.claim_ref.as_ref().is_some_and(|r| r.uid == claim.metadata.uid);
        if !bound {
            let mut patch = Value::object();
            patch.set_at(&["spec", "claimRef"], claim_reference(claim));
            if volume.spec.claim_ref.is_none() {
                patch.set_at(&["metadata", "annotations", BOUND_BY_CONTROLLER], "yes".into());
            }
            context.merge(&PERSISTENT_VOLUMES, &volume.metadata, patch).await?;
        }
        let named = !claim.spec.volume_name.is_empty();
        let mut metadata = claim.metadata.clone();
        if !named || !claim.metadata.annotations.contains_key(BIND_COMPLETED) {
            let mut patch = json!({"spec": {"volumeName": volume.metadata.name.as_str()}});
            patch.set_at(&["metadata", "annotations", BIND_COMPLETED], "yes".into());
            if !named {
                patch.set_at(&["metadata", "annotations", BOUND_BY_CONTROLLER], "yes".into());
            }
            let written = context.merge(&PERSISTENT_VOLUME_CLAIMS, &claim.metadata, patch).await?;
            metadata.resource_version = written.str_at(&["metadata", "resourceVersion"]).into();
        }
        if claim.status.phase != "Bound" {
            let mut status = json!({"phase": "Bound"});
            status["accessModes"] = volume.spec.access_modes.clone().into();
            status["capacity"] = volume.spec.capacity.to_value();
            ignore_not_found(context.patch_status(&PERSISTENT_VOLUME_CLAIMS, &metadata, status).await)?;
        }
        Ok(Outcome::Done)
    }

    async fn sync_volume(&self, key: ObjectKey) -> ReconcileResult {
        let Some(volume) = self.volumes.get(&key) else { return Ok(Outcome::Done) };
        let Some(reference) = volume.spec.claim_ref.clone() else { return self.phase(&volume, "Available").await };
        if reference.uid.is_empty() {
            // Reserved by an administrator for a claim that has not come.
            return self.phase(&volume, "Available").await;
        }
        let claim_key = ObjectKey::new(reference.namespace.clone(), reference.name.clone());
        let mut claim = self.claims.get(&claim_key).map(|c| c.metadata.uid.clone());
        if claim.as_ref() != Some(&reference.uid) {
            // Releasing is final: the API server has to say that the claim is gone.
            match self
                .context
                .rest
                .get_as::<Header>(&PERSISTENT_VOLUME_CLAIMS, &claim_key.namespace, &claim_key.name)
                .await
            {
                Ok(live) => claim = Some(live.metadata.uid),
                Err(error) if error.is_not_found() => claim = None,
                Err(error) => return Err(error.into()),
            }
        }
        if claim.as_ref() == Some(&reference.uid) {
            return self.phase(&volume, "Bound").await;
        }
        self.phase(&volume, "Released").await?;
        let provisioner = self.context.config.volume_provisioner.as_ref();
        let ours =
            provisioner.is_some_and(|p| volume.metadata.annotations.get(PROVISIONED_BY) == Some(p.name.as_str()));
        if ours && volume.spec.persistent_volume_reclaim_policy == "Delete" && !volume.metadata.is_deleting() {
            let options = DeleteOptions::uid(volume.metadata.uid.clone());
            self.context.delete(&PERSISTENT_VOLUMES, &key, &options).await?;
        }
        Ok(Outcome::Done)
    }

    async fn phase(&self, volume: &PersistentVolume, phase: &str) -> ReconcileResult {
        if volume.status.phase != phase {
            let status = json!({"phase": phase});
            ignore_not_found(self.context.patch_status(&PERSISTENT_VOLUMES, &volume.metadata, status).await)?;
        }
        Ok(Outcome::Done)
    }
}

fn claim_reference(claim: &PersistentVolumeClaim) -> Value {
    json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": claim.metadata.namespace.as_str(),
        "name": claim.metadata.name.as_str(), "uid": claim.metadata.uid.as_str(),
        "resourceVersion": claim.metadata.resource_version.as_str()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_volume_that_fits_is_chosen() {
        let volume = |name: &str, size: &str, extra: Value| -> Arc<PersistentVolume> {
            let mut object = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size},
                "accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Available"}});
            for (key, value) in extra.as_object().unwrap().iter() {
                object["spec"][key.as_str()] = value.clone();
            }
            Arc::new(object.to().unwrap())
        };
        let claim: PersistentVolumeClaim = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
        .to()
        .unwrap();
        let mine = json!({"claimRef": {"namespace": "n", "name": "c"}});
        let other = json!({"claimRef": {"namespace": "n", "name": "d"}});
        for (volumes, want) in [
            (vec![volume("big", "5Gi", json!({})), volume("fit", "1024Mi", json!({}))], Some("fit")),
            (vec![volume("small", "1G", json!({}))], None),
            (vec![volume("fit", "1Gi", json!({})), volume("mine", "9Gi", mine)], Some("mine")),
            (vec![volume("other", "1Gi", other)], None),
            (vec![volume("class", "1Gi", json!({"storageClassName": "x"}))], None),
            (vec![volume("block", "1Gi", json!({"volumeMode": "Block"}))], None),
            (vec![volume("ro", "1Gi", json!({"accessModes": ["ReadOnlyMany"]}))], None),
        ] {
            let got = best_match(&claim, &volumes).map(|v| v.metadata.name.to_string());
            assert_eq!(got.as_deref(), want);
        }
    }
}
