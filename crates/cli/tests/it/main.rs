//! The binary as its users meet it.

mod envtest;
mod kubectl;
mod life;
mod lifecycle;
mod serve;
mod snapshots;
mod support;
