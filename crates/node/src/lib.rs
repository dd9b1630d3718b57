//! Simulated kubelets: nodes that run nothing and report what a kubelet would.
//!
//! [`lifecycle`] is the pure life of a pod, [`behaviour`] what its containers do, [`address`] the pods' IPs, [`shell`] what is answered to `exec`; [`driver`] registers
//! the nodes, renews their leases and writes what the pure parts decide. One driver serves all nodes of a cluster.

pub mod address;
pub mod behaviour;
pub mod driver;
pub mod lifecycle;
pub mod shell;

pub use driver::{Config, Nodes};
