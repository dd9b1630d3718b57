//! The Kubernetes object model: what an object is, how kinds differ, and every rule that needs no I/O.
//!
//! Pure: no clock, no randomness, no network, no store. Everything here is a function of its arguments.

pub mod json;
pub mod resources;

pub use json::{Map, Number, Value};
#[doc(hidden)]
pub use serde_json;
