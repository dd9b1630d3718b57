//! The binary as its users meet it.

mod dedicated;
mod envtest;
mod kubectl;
mod lifecycle;
mod serve;
mod snapshots;
mod support;
