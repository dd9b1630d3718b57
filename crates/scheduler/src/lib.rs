//! Binds pods to nodes, for the development host and for virtual schedulers.
//!
//! [`decide`] is the pure decision over a [`snapshot::Snapshot`]; [`driver`] keeps the snapshot and carries decisions out.
//!
//! Follows: kube-scheduler 1.36's default profile, without volume binding of its own and without extenders.

pub mod decide;
pub mod driver;
pub mod filter;
pub mod resources;
pub mod score;
pub mod snapshot;
pub mod types;
