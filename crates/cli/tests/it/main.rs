//! The binary as its users meet it.

mod snapshots;
mod support;
