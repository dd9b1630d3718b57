//! What a Kubernetes controller is made of: shared caches, work queues, expectations, event recording, leader election.
//!
//! Speaks `kube::Client` with raw requests only. Does not know kinds: the caller brings slim types that read the fields it
//! needs ([`Cached`]), or keeps the bytes ([`RawObject`]) or the tree ([`TreeObject`]).
//!
//! Invariants:
//! - One watch per [`Source`] and type in a [`Factory`], however many controllers use it.
//! - A handler sees every object that exists, then every change, in the order of the server's history; after a gap it sees
//!   the difference between what was known and what is.
//! - One object that cannot be read is logged, counted and skipped; it never stops a watch.
//! - A key is worked on by one worker at a time; a key added meanwhile is worked on again.
//!
//! Follows: `k8s.io/client-go` (`tools/cache`, `util/workqueue`, `tools/record`, `tools/leaderelection`).

mod backoff;
mod cache;
pub mod clock;
pub mod events;
pub mod expectations;
mod factory;
pub mod leader;
mod meta;
mod queue;
mod reflector;
mod resource;
mod rest;
mod workers;

pub use backoff::Backoff;
pub use cache::{Cache, Change};
pub use clock::Clock;
pub use expectations::{Expectations, UidExpectations};
pub use factory::{Factory, HeaderChange, Informer, InformerStats};
pub use meta::{
    Cached, Header, ObjectKey, ObjectMeta, OwnerReference, RawObject, ReadOnce, StrMap, TreeObject, null_default,
};
pub use queue::{Queue, QueueConfig};
pub use resource::{Resource, Source};
pub use rest::{ApiError, DeleteOptions, PatchType, Rest};
pub use workers::{Outcome, WorkerStats, run_workers};
