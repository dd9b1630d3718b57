//! The objects that a virtual cluster needs on its host, as pure functions of its name, namespace and configuration.
//!
//! Knows names, labels and layouts. Does not talk to a cluster; who applies the objects is not known here.
//!
//! Invariants:
//! - Names, labels and Secret layouts are vCluster's, so that tools which look for them find them ([`names`], [`secrets`]).
//! - Our own marks start with `alcove.dev/`. A config Secret with the label [`PLACEMENT_LABEL`]`=hub` asks to be run by a
//!   hub; without it the cluster has a pod of its own (`dedicated`), as in vCluster.
//! - Placement `hub` has the objects of placement `dedicated` without the workload and what serves only the workload.
//! - Every object carries `app=vcluster` (an etcd of its own: `app=vcluster-etcd`) and `release=NAME`, so that all of a
//!   cluster can be found again ([`selector`]).
//!
//! Follows: the vCluster chart 0.36, `chart/templates`.

pub mod etcd;
pub mod hostpaths;
pub mod hub;
pub mod names;
mod network;
mod objects;
mod policies;
mod rbac;
pub mod secrets;
pub mod template;
mod workload;

pub use objects::{Placement, Release, RenderError, config_secret, host_objects, labels, namespace, ownership};

/// Label `app` of a hub's pods and objects.
pub const HUB_APP: &str = "alcove-hub";

/// Label selector of all objects of a release, with those of an etcd of its own.
pub fn selector(name: &str) -> String {
    format!("app in (vcluster,{}),release={name}", etcd::APP)
}

/// Label of the config Secret `vc-config-NAME`: `hub` asks a hub to run the cluster.
pub const PLACEMENT_LABEL: &str = "alcove.dev/placement";
/// Value of [`PLACEMENT_LABEL`].
pub const PLACEMENT_HUB: &str = "hub";
/// Annotation of the config Secret, written by the hub: the TCP port that serves the cluster. Kept over restarts.
pub const PORT_ANNOTATION: &str = "alcove.dev/port";
/// Annotation of the config Secret, written by the hub: `Running`, `Sleeping`, `Pending: reason` or `Failed: reason`.
pub const STATUS_ANNOTATION: &str = "alcove.dev/status";
/// Annotation of a namespace that was made for a virtual cluster and may be removed with it.
pub const CREATED_ANNOTATION: &str = "vcluster.loft.sh/created";
/// Annotation of the config Secret: which kind of store the cluster was created with.
pub const STORE_ANNOTATION: &str = "vcluster.loft.sh/store";
/// Annotation of the config Secret: the host pods were removed while the control plane did not run; when it starts, pods
/// that have not ended are scheduled anew.
pub const PODS_REMOVED_ANNOTATION: &str = "alcove.dev/pods-removed";
/// Annotation of the config Secret: the control plane serves nobody before the data with this name has arrived.
pub const AWAITS_DATA_ANNOTATION: &str = "alcove.dev/awaits-data";
/// Annotation of a hub's config Secret: `stop` ends the control plane and keeps everything, [`MOVING_GONE`] makes the hub
/// forget the cluster and its data, because it runs elsewhere now.
pub const MOVING_ANNOTATION: &str = "alcove.dev/moving";
/// Value of [`MOVING_ANNOTATION`].
pub const MOVING_STOP: &str = "stop";
/// Value of [`MOVING_ANNOTATION`].
pub const MOVING_GONE: &str = "gone";
/// Annotation of the config Secret: a new value starts the control plane anew.
pub const RESTART_ANNOTATION: &str = "alcove.dev/restarted-at";
/// Annotation of what runs the control plane (the config Secret in a hub): `true` stops it until it is taken off.
pub const PAUSED_ANNOTATION: &str = "loft.sh/paused";
/// Annotation beside [`PAUSED_ANNOTATION`]: since when.
pub const PAUSED_DATE_ANNOTATION: &str = "loft.sh/paused-date";
/// Annotation beside [`PAUSED_ANNOTATION`]: how many replicas come back.
pub const PAUSED_REPLICAS_ANNOTATION: &str = "loft.sh/paused-replicas";
/// Annotation of the config Secret, written by the hub: since when the cluster sleeps, in seconds since 1970.
pub const SLEEPING_SINCE_ANNOTATION: &str = "sleepmode.loft.sh/sleeping-since";
