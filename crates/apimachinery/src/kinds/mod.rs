//! What the server knows about each built-in kind: defaults, preparation, validation, warnings, strategies, field
//! selectors.
//!
//! Pure functions over object trees, chosen by group, version and kind. Objects of custom resources never come here.
//! Trees are as decoding leaves them: known fields have the right type, and an absent field means its zero value.

pub(crate) mod access;
mod admission;
mod apps;
mod autoscaling;
mod batch;
mod certificates;
mod check;
mod conversion;
pub(crate) mod core;
mod defaults;
mod devices;
mod expressions;
mod flowcontrol;
mod networking;
mod object_meta;
mod pod_warnings;
mod policy;
mod prepare;
mod rbac;
mod rules;
mod selectable;
mod storage;
mod strategy;
mod validation;
mod warnings;

pub use admission::validate_webhook_client_config;
pub use certificates::request_der;
pub use check::annotations as validate_annotations;
pub use conversion::{event_to_core, event_to_events_group, hpa_to_v1, hpa_to_v2};
pub use core::resources::qos_class;
pub use core::service::service_address_errors;
pub use defaults::default_object;
pub use expressions::{Expression, ExpressionCheck, ExpressionUse, TOO_COMPLEX};
pub use object_meta::{
    field_manager as validate_field_manager, validate_common_update, validate_custom as validate_custom_metadata,
    validate_custom_update as validate_custom_metadata_update,
};
pub use prepare::{prepare_create, prepare_update, set_requester};
pub use selectable::{convert_field_label, field_value, selectable_fields};
pub use strategy::{DefaultGarbageCollection, Strategy, strategy};
pub use validation::{error_group, validate_create, validate_create_with, validate_update, validate_update_with};
pub use warnings::{warnings_before_create, warnings_create, warnings_update};

#[cfg(test)]
mod details;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transitions;
