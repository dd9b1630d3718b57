//! What kube-controller-manager does: loops that make what is look like what was asked for.
//!
//! Each controller reads shared caches, decides with a pure function and acts through `kube::Client`. It takes no event as
//! input: it looks at what is, so a lost event or a restart changes nothing. Writes carry the version that was read, and
//! patch only what the controller owns, so fields it does not know survive.
//!
//! Follows: `k8s.io/kubernetes/pkg/controller`.

mod autoscaler;
mod cluster_role;
mod context;
mod cronjob;
mod csr;
mod daemonset;
mod deployment;
mod discovery;
mod disruption;
mod endpoints;
mod gc;
mod history;
mod job;
mod manager;
mod names;
mod namespace;
mod node;
mod ownership;
mod pod;
mod pod_gc;
mod policy_status;
mod quota;
mod replicaset;
mod resource_claim;
mod resources;
mod root_ca;
mod selector;
mod service_cidr;
mod serviceaccount;
mod statefulset;
mod tokens;
mod types;
mod volume;

pub use context::QueueStats;
pub use cronjob::schedule::{Schedule, ScheduleError};
pub use csr::SigningCa;
pub use manager::{ControllerStats, Manager, ManagerConfig, ManagerError, controller_names};
pub use policy_status::{ExpressionWarning, PolicyChecker};
pub use tokens::{TokenSigner, TokenSubject};
pub use volume::{ProvisionRequest, VolumeProvisioner};
