//! The core group, and pod specs wherever they occur.

pub(crate) mod claims;
pub(crate) mod config;
pub(crate) mod containers;
pub(crate) mod diff;
mod env;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod pod_defaults;
pub(crate) mod pod_spec;
pub(crate) mod pod_status;
mod probes;
pub(crate) mod quota;
pub(crate) mod resources;
pub(crate) mod scheduling;
pub(crate) mod security;
pub(crate) mod service;
pub(crate) mod volume_sources;
mod volumes;
