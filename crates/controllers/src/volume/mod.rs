//! Volumes as far as the API goes: binding, provisioning by a hook, protection while in use, claims of ephemeral volumes.
//!
//! Attaching and mounting are a node's business.

pub mod binder;
pub mod ephemeral;
pub mod protection;

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::json::Str;
use informer::{Informer, ObjectMeta, null_default};
use serde::Deserialize;

use crate::types::{Pod, ResourceList, cached};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PersistentVolume {
    pub metadata: ObjectMeta,
    pub spec: VolumeSpec,
    pub status: VolumeStatus,
}

cached!(PersistentVolume);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeSpec {
    #[serde(deserialize_with = "null_default")]
    pub capacity: ResourceList,
    #[serde(deserialize_with = "null_default")]
    pub access_modes: Vec<Str>,
    pub claim_ref: Option<ClaimReference>,
    pub persistent_volume_reclaim_policy: Str,
    pub storage_class_name: Str,
    pub volume_mode: Str,
    pub volume_attributes_class_name: Option<Str>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClaimReference {
    pub namespace: Str,
    pub name: Str,
    pub uid: Str,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct VolumeStatus {
    pub phase: Str,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StorageClass {
    pub metadata: ObjectMeta,
    pub provisioner: Str,
    pub reclaim_policy: Option<Str>,
    pub volume_binding_mode: Option<Str>,
    #[serde(deserialize_with = "null_default")]
    pub mount_options: Vec<Str>,
}

cached!(StorageClass);

/// What a provisioner is asked for.
#[derive(Clone, Debug)]
pub struct ProvisionRequest {
    pub volume_name: String,
    pub claim_namespace: String,
    pub claim_name: String,
    /// The quantity asked for, as written.
    pub storage: String,
}

/// Makes volumes in this process, for hosts without a storage driver: gives the source part of a PersistentVolume's spec,
/// such as `{"hostPath": {"path": "..."}}`.
#[derive(Clone)]
pub struct VolumeProvisioner {
    name: Str,
    provision: Arc<dyn Fn(&ProvisionRequest) -> Option<Value> + Send + Sync>,
}

impl VolumeProvisioner {
    /// `name` is what StorageClasses give as `provisioner`.
    pub fn new(
        name: impl Into<Str>,
        provision: impl Fn(&ProvisionRequest) -> Option<Value> + Send + Sync + 'static,
    ) -> Self {
        VolumeProvisioner { name: name.into(), provision: Arc::new(provision) }
    }
}

impl std::fmt::Debug for VolumeProvisioner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VolumeProvisioner({})", self.name)
    }
}

/// The pod index by the claims that pods use, as `namespace/name`.
pub const BY_CLAIM: &str = "claim";

/// The name of the claim of an ephemeral volume.
pub fn ephemeral_claim_name(pod: &Pod, volume: &str) -> String {
    format!("{}-{volume}", pod.metadata.name)
}

pub fn add_claim_index(pods: &Informer<Pod>) {
    pods.add_index(BY_CLAIM, |pod: &Pod, out| {
        for volume in &pod.spec.volumes {
            let namespace = &pod.metadata.namespace;
            if let Some(claim) = &volume.persistent_volume_claim {
                out.push(Str::from(format!("{namespace}/{}", claim.claim_name)));
            } else if volume.ephemeral.is_some() {
                out.push(Str::from(format!("{namespace}/{}", ephemeral_claim_name(pod, &volume.name))));
            }
        }
    });
}
