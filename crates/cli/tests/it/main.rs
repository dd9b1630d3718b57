//! The binary as its users meet it.

mod dedicated;
mod docs;
mod envtest;
mod kubectl;
mod lifecycle;
mod policies;
mod serve;
mod snapshots;
mod support;
