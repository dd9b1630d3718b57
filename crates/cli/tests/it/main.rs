//! The binary as its users meet it.

mod kubectl;
mod lifecycle;
mod snapshots;
mod support;
