//! The binary as its users meet it.

mod dedicated;
mod distro;
mod docs;
mod edges;
mod envtest;
mod faults;
mod hostpaths;
mod kubectl;
mod life;
mod lifecycle;
mod moving;
mod serve;
mod shared_store;
mod snapshots;
mod stores;
mod support;
