//! What is special about storing each kind: how it may be written, what a delete answers, what happens to its dependents.
//!
//! Follows `pkg/registry/*/*/strategy.go` and `storage/storage.go`. What is not listed has [`Strategy::DEFAULT`].

use crate::gvk::GroupVersionKind;

/// What becomes of dependents when a delete request does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultGarbageCollection {
    /// The collector deletes them.
    Delete,
    /// They lose their owner reference and stay: Jobs and ReplicationControllers.
    Orphan,
    /// The kind cannot own anything that the collector looks at: Events.
    Unsupported,
}

/// The rules of writing and deleting a kind that are not about its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// PUT of an object that does not exist creates it.
    pub create_on_update: bool,
    /// PUT without `metadata.resourceVersion` overwrites.
    pub unconditional_update: bool,
    pub garbage_collection: DefaultGarbageCollection,
    /// A successful immediate delete answers the object instead of a Status.
    pub returns_deleted_object: bool,
    /// A delete may first set `deletionTimestamp` and wait for somebody to finish: Pods.
    pub graceful_deletion: bool,
}

impl Strategy {
    pub const DEFAULT: Strategy = Strategy {
        create_on_update: false,
        unconditional_update: true,
        garbage_collection: DefaultGarbageCollection::Delete,
        returns_deleted_object: false,
        graceful_deletion: false,
    };
}

/// The strategy of a built-in kind.
pub fn strategy(gvk: &GroupVersionKind) -> Strategy {
    let mut s = Strategy::DEFAULT;
    let (group, kind) = (gvk.group.as_str(), gvk.kind.as_str());
    s.create_on_update = matches!(
        (group, kind),
        ("coordination.k8s.io", "Lease" | "LeaseCandidate")
            | ("", "Endpoints" | "Event" | "LimitRange" | "Service")
            | ("events.k8s.io", "Event")
            | ("node.k8s.io", "RuntimeClass")
            | ("rbac.authorization.k8s.io", _)
    );
    s.unconditional_update = !matches!(
        (group, kind),
        ("admissionregistration.k8s.io", _)
            | ("certificates.k8s.io", "ClusterTrustBundle" | "PodCertificateRequest")
            | ("coordination.k8s.io", _)
            | ("node.k8s.io", "RuntimeClass")
            | ("policy", "PodDisruptionBudget")
            | ("resource.k8s.io", "ResourcePoolStatusRequest")
            | ("storage.k8s.io", "CSIDriver" | "CSINode" | "CSIStorageCapacity" | "VolumeAttachment")
            | ("apiregistration.k8s.io" | "apiextensions.k8s.io", _)
    );
    s.garbage_collection = match (group, kind) {
        ("batch", "Job") | ("", "ReplicationController") => DefaultGarbageCollection::Orphan,
        ("" | "events.k8s.io", "Event") => DefaultGarbageCollection::Unsupported,
        _ => DefaultGarbageCollection::Delete,
    };
    s.returns_deleted_object = matches!(
        (group, kind),
        ("resource.k8s.io", _)
            | (
                "storage.k8s.io",
                "CSIDriver" | "StorageClass" | "VolumeAttachment" | "CSINode" | "VolumeAttributesClass"
            )
            | (
                "",
                "ResourceQuota"
                    | "PersistentVolume"
                    | "ServiceAccount"
                    | "PersistentVolumeClaim"
                    | "Namespace"
                    | "Pod"
                    | "Service"
                    | "PodTemplate"
            )
    );
    s.graceful_deletion = (group, kind) == ("", "Pod");
    s
}
