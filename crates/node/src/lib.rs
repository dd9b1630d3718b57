//! Simulated kubelets: nodes that run nothing and report what a kubelet would.
//!
//! [`lifecycle`] is the pure life of a pod, [`behaviour`] what its containers do.

pub mod behaviour;
pub mod lifecycle;
