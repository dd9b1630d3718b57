//! The syncer: what a tenant creates in a virtual cluster appears on the host, and what happens to it there comes back.
//!
//! Two layers. Pure: [`names`], [`metadata`], [`types`] and [`plan`](mod@plan) decide what should be, from objects alone.
//! The engine executes: caches of both sides, one queue per type, retries, events, metrics.
//!
//! Two words only: *virtual* (the tenant's cluster) and *host* (where the pods run).

pub mod backend;
pub mod decisions;
pub mod diff;
mod engine;
pub mod host_files;
pub mod kind;
pub mod metadata;
pub mod names;
mod ownership;
pub mod patches;
pub mod plan;
pub mod registry;
pub mod script;
pub mod selectors;
pub mod settings;
pub mod types;

pub use decisions::Pair;
pub use engine::mappings::{self, MappingStore};
pub use engine::{ControlPlaneAddress, StartError, SyncError, Syncer, SyncerConfig, TypeMetrics};
