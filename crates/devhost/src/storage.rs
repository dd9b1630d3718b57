//! The development host's storage: a default class whose volumes exist in name only.
//!
//! Follows: the external provisioner and the PV controller as far as they bind a claim to the volume made for it.

use std::sync::Arc;

use apimachinery::{Value, json};
use informer::{
    ApiError, DeleteOptions, Factory, Informer, ObjectKey, Outcome, PatchType, Queue, Resource, Rest, TreeObject,
    WorkerStats, run_workers,
};

const CLASSES: Resource = Resource::new("storage.k8s.io", "v1", "storageclasses");
const CLAIMS: Resource = Resource::new("", "v1", "persistentvolumeclaims");
const VOLUMES: Resource = Resource::new("", "v1", "persistentvolumes");
/// The class that claims get when they name none.
const CLASS: &str = "standard";
const PROVISIONER: &str = "sim.alcove.dev/volumes";

/// Makes volumes for the claims of the default class and removes them with their claims.
pub struct Provisioner {
    factory: Factory,
}

struct Shared {
    rest: Rest,
    claims: Informer<TreeObject>,
    volumes: Informer<TreeObject>,
}

impl Provisioner {
    /// Creates the class, if it is not there, and starts.
    pub async fn start(client: kube::Client) -> Result<Provisioner, ApiError> {
        let rest = Rest::new(client, "alcove-provisioner");
        let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate", "allowVolumeExpansion": true});
        match rest.create(&CLASSES, "", &class).await {
            Err(error) if !error.is_already_exists() => return Err(error),
            _ => {}
        }
        let factory = Factory::new(rest.clone());
        let shared = Arc::new(Shared { rest, claims: factory.informer(CLAIMS), volumes: factory.informer(VOLUMES) });
        let queue: Queue<ObjectKey> = Queue::default();
        let claims_queue = queue.clone();
        shared.claims.on_change(move |change| claims_queue.add(change.object().metadata.key()));
        let volumes_queue = queue.clone();
        shared.volumes.on_change(move |change| {
            let claim = &change.object().value["spec"]["claimRef"];
            if !claim.is_null() {
                volumes_queue.add(ObjectKey::new(claim.str_at(&["namespace"]), claim.str_at(&["name"])));
            }
        });
        let (starter, cancel) = (factory.clone(), factory.cancellation().clone());
        factory.spawn(async move {
            starter.wait_synced().await;
            run_workers("provisioner", 4, queue, cancel, Arc::<WorkerStats>::default(), move |key| {
                let shared = shared.clone();
                async move { shared.reconcile(&key).await }
            })
            .await;
        });
        Ok(Provisioner { factory })
    }

    pub async fn shutdown(&self) {
        self.factory.shutdown().await;
    }
}

/// The volume made for a claim.
fn volume_name(claim_uid: &str) -> String {
    format!("pvc-{claim_uid}")
}

fn volume_for(claim: &Value) -> Value {
    let uid = claim.str_at(&["metadata", "uid"]);
    let mut volume = json!({"apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": volume_name(uid), "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {"persistentVolumeReclaimPolicy": "Delete", "storageClassName": CLASS,
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "uid": uid,
                "namespace": claim.str_at(&["metadata", "namespace"]), "name": claim.str_at(&["metadata", "name"])},
            "hostPath": {"path": format!("/simulated/{}", volume_name(uid))}}});
    for key in ["accessModes", "volumeMode"] {
        if let Some(value) = claim.at(&["spec", key]) {
            volume.set_at(&["spec", key], value.clone());
        }
    }
    volume.set_at(
        &["spec", "capacity"],
        claim.at(&["spec", "resources", "requests"]).cloned().unwrap_or_else(Value::object),
    );
    volume
}

impl Shared {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, ApiError> {
        match self.claims.get(key) {
            Some(claim) if claim.value.str_at(&["spec", "storageClassName"]) == CLASS => {
                self.provide(&claim.value).await?
            }
            Some(_) => {}
            None => self.clean_up(key).await?,
        }
        Ok(Outcome::Done)
    }

    async fn provide(&self, claim: &Value) -> Result<(), ApiError> {
        let (namespace, name) = (claim.str_at(&["metadata", "namespace"]), claim.str_at(&["metadata", "name"]));
        let given = claim.str_at(&["spec", "volumeName"]);
        let volume = volume_name(claim.str_at(&["metadata", "uid"]));
        if (!given.is_empty() && given != volume) || claim.at(&["metadata", "deletionTimestamp"]).is_some() {
            return Ok(());
        }
        if self.volumes.get(&ObjectKey::cluster(volume.as_str())).is_none() {
            match self.rest.create(&VOLUMES, "", &volume_for(claim)).await {
                Err(error) if !error.is_already_exists() => return Err(error),
                _ => {}
            }
        }
        if claim.str_at(&["status", "phase"]) == "Bound" {
            return Ok(());
        }
        let bound = json!({"status": {"phase": "Bound"}});
        self.rest.patch(&VOLUMES, "status", "", &volume, PatchType::Merge, &bound).await?;
        if given.is_empty() {
            let patch = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes",
                    "pv.kubernetes.io/bound-by-controller": "yes", "volume.kubernetes.io/storage-provisioner": PROVISIONER}},
                "spec": {"volumeName": volume}});
            self.rest.patch(&CLAIMS, "", namespace, name, PatchType::Merge, &patch).await?;
        }
        let mut patch = bound;
        patch.set_at(
            &["status", "capacity"],
            claim.at(&["spec", "resources", "requests"]).cloned().unwrap_or_else(Value::object),
        );
        patch.set_at(
            &["status", "accessModes"],
            claim.at(&["spec", "accessModes"]).cloned().unwrap_or_else(|| json!([])),
        );
        match self.rest.patch(&CLAIMS, "status", namespace, name, PatchType::Merge, &patch).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes volumes whose claim is gone.
    async fn clean_up(&self, key: &ObjectKey) -> Result<(), ApiError> {
        for volume in self.volumes.list() {
            let claim = &volume.value["spec"]["claimRef"];
            let ours =
                volume.value.str_at(&["metadata", "annotations", "pv.kubernetes.io/provisioned-by"]) == PROVISIONER;
            let named =
                claim.str_at(&["namespace"]) == key.namespace.as_str() && claim.str_at(&["name"]) == key.name.as_str();
            if ours && named && volume.value.str_at(&["spec", "persistentVolumeReclaimPolicy"]) == "Delete" {
                let options = DeleteOptions::uid(volume.metadata.uid.clone());
                match self.rest.delete(&VOLUMES, "", &volume.metadata.name, &options).await {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
