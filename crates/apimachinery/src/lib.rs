//! The Kubernetes object model: what an object is, how kinds differ, and every rule that needs no I/O.
//!
//! Pure: no clock, no randomness, no network, no store. Everything here is a function of its arguments.

pub mod apply;
pub mod decode;
pub mod field;
pub mod fields;
pub mod gvk;
pub mod intstr;
pub mod json;
pub mod kinds;
pub mod labels;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod pod_security;
pub mod protobuf;
pub mod quantity;
pub mod resources;
pub mod schema;
pub mod status;
pub mod table;
pub mod text;
pub mod time;

pub use json::{Map, Number, Value};
#[doc(hidden)]
pub use serde_json;
