//! Validation of objects of built-in kinds, chosen by kind and subresource.
//!
//! Errors come in upstream's order: metadata first, then the spec from top to bottom, then what may not change.

use super::check::Errors;
use super::object_meta::{self, MetaRules};
use super::{apps, batch, core};
use crate::field::FieldError;
use crate::gvk::GroupVersionKind;
use crate::json::Value;
use crate::names;

/// Validates a defaulted and prepared object that is to be created.
pub fn validate_create(gvk: &GroupVersionKind, object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let e = &mut errors;
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") => core::pod::create(object, e),
        ("", "PodTemplate") => core::config::pod_template(object, None, e),
        ("", "ReplicationController") => core::config::replication_controller(object, None, e),
        ("", "Service") => core::service::create(object, e),
        ("", "Endpoints") => core::service::endpoints(object, None, e),
        ("", "Node") => core::node::create(object, e),
        ("", "Secret") => core::config::create_secret(object, e),
        ("", "ConfigMap") => core::config::create_config_map(object, e),
        ("", "ServiceAccount") => core::config::service_account(object, None, e),
        ("", "Namespace") => core::config::create_namespace(object, e),
        ("", "PersistentVolumeClaim") => core::claims::create_claim(object, e),
        ("", "PersistentVolume") => core::claims::create_volume(object, e),
        ("", "ResourceQuota") => core::quota::create_quota(object, e),
        ("", "LimitRange") => core::quota::limit_range(object, None, e),
        ("", "Event") => core::config::event(object, None, true, e),
        ("events.k8s.io", "Event") => core::config::event(object, None, false, e),
        ("", "Binding") => core::pod::binding(object, e),
        ("apps", "Deployment") => apps::deployment(object, None, e),
        ("apps", "ReplicaSet") => apps::replica_set(object, None, e),
        ("apps", "DaemonSet") => apps::daemon_set(object, None, e),
        ("apps", "StatefulSet") => apps::stateful_set(object, None, e),
        ("apps", "ControllerRevision") => apps::controller_revision(object, None, e),
        ("batch", "Job") => batch::job(object, None, e),
        ("batch", "CronJob") => batch::cron_job(object, None, e),
        _ => object_meta::validate(object, other_meta(object), e),
    }
    errors
}

/// Validates an object that is to replace `old`, through the main resource (`""`) or a subresource.
pub fn validate_update(gvk: &GroupVersionKind, subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let e = &mut errors;
    match (gvk.group.as_str(), gvk.kind.as_str(), subresource) {
        ("", "Pod", "") => core::pod::update(new, old, e),
        ("", "Pod", "status") => core::pod::update_status(new, old, e),
        ("", "Pod", "ephemeralcontainers") => core::pod::update_ephemeral_containers(new, old, e),
        ("", "Pod", "resize") => core::pod::resize(new, old, e),
        ("", "PodTemplate", _) => core::config::pod_template(new, Some(old), e),
        ("", "ReplicationController", "status") | ("apps", "ReplicaSet", "status") => {
            core::config::replica_status(new, old, e);
        }
        ("", "ReplicationController", _) => core::config::replication_controller(new, Some(old), e),
        ("", "Service", "status") => core::service::update_status(new, old, e),
        ("", "Service", _) => core::service::update(new, old, e),
        ("", "Endpoints", _) => core::service::endpoints(new, Some(old), e),
        ("", "Node", "status") => core::node::update_status(new, old, e),
        ("", "Node", _) => core::node::update(new, old, e),
        ("", "Secret", _) => core::config::update_secret(new, old, e),
        ("", "ConfigMap", _) => core::config::update_config_map(new, old, e),
        ("", "ServiceAccount", _) => core::config::service_account(new, Some(old), e),
        ("", "Namespace", sub) => core::config::update_namespace(new, old, sub, e),
        ("", "PersistentVolumeClaim", "status") => core::claims::update_claim_status(new, old, e),
        ("", "PersistentVolumeClaim", _) => core::claims::update_claim(new, old, e),
        ("", "PersistentVolume", "status") => core::claims::update_volume_status(new, old, e),
        ("", "PersistentVolume", _) => core::claims::update_volume(new, old, e),
        ("", "ResourceQuota", "status") => core::quota::update_quota_status(new, old, e),
        ("", "ResourceQuota", _) => core::quota::update_quota(new, old, e),
        ("", "LimitRange", _) => core::quota::limit_range(new, Some(old), e),
        ("", "Event", _) => core::config::event(new, Some(old), true, e),
        ("events.k8s.io", "Event", _) => core::config::event(new, Some(old), false, e),
        ("apps", "Deployment", "status") => apps::deployment_status(new, old, e),
        ("apps", "Deployment", _) => apps::deployment(new, Some(old), e),
        ("apps", "ReplicaSet", _) => apps::replica_set(new, Some(old), e),
        ("apps", "DaemonSet", "status") => apps::daemon_set_status(new, old, e),
        ("apps", "DaemonSet", _) => apps::daemon_set(new, Some(old), e),
        ("apps", "StatefulSet", "status") => apps::stateful_set_status(new, old, e),
        ("apps", "StatefulSet", _) => apps::stateful_set(new, Some(old), e),
        ("apps", "ControllerRevision", _) => apps::controller_revision(new, Some(old), e),
        ("batch", "Job", "status") => batch::job_status(new, old, e),
        ("batch", "Job", _) => batch::job(new, Some(old), e),
        ("batch", "CronJob", "status") => batch::cron_job_status(new, old, e),
        ("batch", "CronJob", _) => batch::cron_job(new, Some(old), e),
        _ => object_meta::validate_update(new, old, true, e),
    }
    errors
}

/// Metadata rules of kinds without rules of their own.
fn other_meta(object: &Value) -> MetaRules {
    let namespaced = !object.str_at(&["metadata", "namespace"]).is_empty();
    MetaRules { namespaced, ..MetaRules::namespaced(names::name_is_path_segment) }
}
