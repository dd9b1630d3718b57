//! Nodes that stop answering, and pods that must leave a node.

pub mod lifecycle;
pub mod taint_eviction;
