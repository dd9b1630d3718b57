//! The core group, and pod specs wherever they occur.

pub(crate) mod pod_defaults;
pub(crate) mod resources;
