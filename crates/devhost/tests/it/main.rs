//! A development host, whole: what a cluster does, and the steps of Kubernetes's conformance tests that need no container.
//!
//! Which conformance test is covered by which test here is listed in `docs/conformance.md`; `listing` keeps the list true.

mod admission;
mod api;
mod apps;
mod cluster;
mod definitions;
mod garbage;
mod lifecycle;
mod listing;
mod network;
mod pods;
mod quota;
mod soak;
mod watch;
