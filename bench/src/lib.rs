//! Measures a Kubernetes API server through any kubeconfig, ours or another, with the same requests; and what faults do to
//! one of ours.
//!
//! A library, so that tests run small versions of what the command `bench` runs at length.

pub mod api;
pub mod dns;
pub mod etcd;
pub mod faults;
pub mod machinery;
pub mod measure;
pub mod scale;
pub mod soak;
pub mod start;
pub mod tenants;
