//! Validation of objects of built-in kinds, chosen by kind and subresource.
//!
//! Errors come in upstream's order: metadata first, then the spec from top to bottom, then what may not change.

use super::check::Errors;
use super::expressions::{ExpressionCheck, any_expression};
use super::object_meta::{self, MetaRules};
use super::{
    admission, apps, autoscaling, batch, certificates, core, devices, flowcontrol, networking, policy, rbac, storage,
};
use crate::field::{BadValue, FieldError};
use crate::gvk::GroupVersionKind;
use crate::json::Value;
use crate::names;
use crate::schema::{self, TypeRef, internal};

/// Validates a defaulted and prepared object that is to be created; expressions in it are not compiled.
pub fn validate_create(gvk: &GroupVersionKind, object: &Value) -> Vec<FieldError> {
    validate_create_with(gvk, object, &any_expression)
}

/// Validates a defaulted and prepared object that is to be created, and the expressions in it.
pub fn validate_create_with(gvk: &GroupVersionKind, object: &Value, compile: ExpressionCheck<'_>) -> Vec<FieldError> {
    let mut errors = Errors::new();
    by_kind(gvk, object, None, compile, &mut errors);
    if errors.is_empty() {
        object_meta::validate(object, common_meta(object), &mut errors);
    }
    print_as_upstream(gvk, &mut errors);
    errors
}

/// Structures in messages print as upstream's own, which have no JSON names.
fn print_as_upstream(gvk: &GroupVersionKind, errors: &mut [FieldError]) {
    let Some(root) = schema::lookup(&gvk.group, &gvk.version, &gvk.kind) else { return };
    for error in errors {
        let BadValue::Value(value) = &error.bad_value else { continue };
        let holds_structures = match value {
            Value::Object(_) => true,
            Value::Array(items) => items.iter().any(Value::is_object),
            _ => false,
        };
        if !holds_structures {
            continue;
        }
        // The value is not always the whole of what the path leads to: an element of a list, say.
        let known = |ty: TypeRef<'_>, value: &Value| {
            value.as_object().is_none_or(|members| members.keys().all(|name| ty.field(name).is_some()))
        };
        let at = internal::at_path(root, &error.field);
        let ty = match (at, value) {
            (Some(ty), Value::Object(_)) => ty.list().and(ty.element()).or(Some(ty)),
            (ty, _) => ty,
        };
        if let Some(ty) = ty.filter(|ty| internal::prints_differently(*ty) && known(*ty, value)) {
            error.bad_value = BadValue::Printed(internal::compact(value, ty));
        }
    }
}

/// Validates an object that is to replace `old`, through the main resource (`""`) or a subresource; expressions in it are
/// not compiled.
pub fn validate_update(gvk: &GroupVersionKind, subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    validate_update_with(gvk, subresource, new, old, &any_expression)
}

/// The same, with the expressions.
///
/// What holds for metadata of every kind is for the caller to check first, see `validate_common_update`.
pub fn validate_update_with(
    gvk: &GroupVersionKind,
    subresource: &str,
    new: &Value,
    old: &Value,
    compile: ExpressionCheck<'_>,
) -> Vec<FieldError> {
    let mut errors = Errors::new();
    if !by_subresource(gvk, subresource, new, old, &mut errors) {
        by_kind(gvk, new, Some(old), compile, &mut errors);
    }
    print_as_upstream(gvk, &mut errors);
    errors
}

/// The group that errors about objects of a kind name: events are core's, whichever group serves them.
pub fn error_group(gvk: &GroupVersionKind) -> &str {
    if gvk.group == "events.k8s.io" { "" } else { &gvk.group }
}

/// The rules of a kind for objects that are created, or replace an `old` one through the main resource.
fn by_kind(gvk: &GroupVersionKind, new: &Value, old: Option<&Value>, compile: ExpressionCheck<'_>, e: &mut Errors) {
    match gvk.group.as_str() {
        "" => core_kind(&gvk.kind, new, old, e),
        "events.k8s.io" => core::config::event(new, old, false, e),
        "apps" | "batch" => workload_kind(&gvk.kind, new, old, e),
        "networking.k8s.io" | "discovery.k8s.io" => network_kind(&gvk.kind, new, old, e),
        "autoscaling" if gvk.kind == "Scale" => autoscaling::scale(new, e),
        "autoscaling" if gvk.version == "v1" => {
            let old = old.map(super::hpa_to_v2);
            autoscaling::autoscaler(&super::hpa_to_v2(new), old.as_ref(), e);
        }
        "autoscaling" => autoscaling::autoscaler(new, old, e),
        "storage.k8s.io" => storage_kind(&gvk.kind, new, old, e),
        "admissionregistration.k8s.io" => admission_kind(&gvk.kind, new, old, compile, e),
        "resource.k8s.io" => match gvk.kind.as_str() {
            "ResourceClaim" => devices::claim(new, old, compile, e),
            "ResourceClaimTemplate" => devices::claim_template(new, old, compile, e),
            "DeviceClass" => devices::device_class(new, old, compile, e),
            _ => devices::slice(new, old, e),
        },
        _ => other_kind(&gvk.kind, new, old, e),
    }
}

fn core_kind(kind: &str, new: &Value, old: Option<&Value>, e: &mut Errors) {
    match (kind, old) {
        ("Pod", None) => core::pod::create(new, e),
        ("Pod", Some(old)) => core::pod::update(new, old, e),
        ("PodTemplate", _) => core::config::pod_template(new, old, e),
        ("ReplicationController", _) => core::config::replication_controller(new, old, e),
        ("Service", None) => core::service::create(new, e),
        ("Service", Some(old)) => core::service::update(new, old, e),
        ("Endpoints", _) => core::service::endpoints(new, old, e),
        ("Node", None) => core::node::create(new, e),
        ("Node", Some(old)) => core::node::update(new, old, e),
        ("Secret", None) => core::config::create_secret(new, e),
        ("Secret", Some(old)) => core::config::update_secret(new, old, e),
        ("ConfigMap", None) => core::config::create_config_map(new, e),
        ("ConfigMap", Some(old)) => core::config::update_config_map(new, old, e),
        ("ServiceAccount", _) => core::config::service_account(new, old, e),
        ("Namespace", None) => core::config::create_namespace(new, e),
        ("Namespace", Some(old)) => core::config::update_namespace(new, old, "", e),
        ("PersistentVolumeClaim", None) => core::claims::create_claim(new, e),
        ("PersistentVolumeClaim", Some(old)) => core::claims::update_claim(new, old, e),
        ("PersistentVolume", None) => core::claims::create_volume(new, e),
        ("PersistentVolume", Some(old)) => core::claims::update_volume(new, old, e),
        ("ResourceQuota", None) => core::quota::create_quota(new, e),
        ("ResourceQuota", Some(old)) => core::quota::update_quota(new, old, e),
        ("LimitRange", _) => core::quota::limit_range(new, e),
        ("Event", _) => core::config::event(new, old, true, e),
        ("Binding", _) => core::pod::binding(new, e),
        _ => {}
    }
}

fn workload_kind(kind: &str, new: &Value, old: Option<&Value>, e: &mut Errors) {
    match kind {
        "Deployment" => apps::deployment(new, old, e),
        "ReplicaSet" => apps::replica_set(new, old, e),
        "DaemonSet" => apps::daemon_set(new, old, e),
        "StatefulSet" => apps::stateful_set(new, old, e),
        "ControllerRevision" => apps::controller_revision(new, old, e),
        "Job" => batch::job(new, old, e),
        "CronJob" => batch::cron_job(new, old, e),
        _ => {}
    }
}

fn network_kind(kind: &str, new: &Value, old: Option<&Value>, e: &mut Errors) {
    match kind {
        "NetworkPolicy" => networking::policy(new, old, e),
        "Ingress" => networking::ingress(new, old, e),
        "IngressClass" => networking::ingress_class(new, old, e),
        "IPAddress" => networking::ip_address(new, old, e),
        "ServiceCIDR" => networking::service_cidr(new, old, e),
        "EndpointSlice" => networking::endpoint_slice(new, old, e),
        _ => {}
    }
}

fn storage_kind(kind: &str, new: &Value, old: Option<&Value>, e: &mut Errors) {
    match kind {
        "StorageClass" => storage::storage_class(new, old, e),
        "VolumeAttachment" => storage::attachment(new, old, e),
        "CSINode" => storage::csi_node(new, old, e),
        "CSIDriver" => storage::csi_driver(new, old, e),
        "CSIStorageCapacity" => storage::csi_capacity(new, old, e),
        "VolumeAttributesClass" => storage::attributes_class(new, old, e),
        _ => {}
    }
}

fn admission_kind(kind: &str, new: &Value, old: Option<&Value>, compile: ExpressionCheck<'_>, e: &mut Errors) {
    let mutating = kind.starts_with("Mutating");
    if kind.ends_with("WebhookConfiguration") {
        admission::webhooks(new, old, mutating, compile, e);
    } else if kind.ends_with("Binding") {
        admission::policy_binding(new, mutating, e);
    } else {
        admission::policy(new, old, mutating, compile, e);
    }
}

fn other_kind(kind: &str, new: &Value, old: Option<&Value>, e: &mut Errors) {
    match kind {
        "Role" => rbac::role(new, old, true, e),
        "ClusterRole" => rbac::role(new, old, false, e),
        "RoleBinding" => rbac::binding(new, old, true, e),
        "ClusterRoleBinding" => rbac::binding(new, old, false, e),
        "PodDisruptionBudget" => policy::disruption_budget(new, old, e),
        "PriorityClass" => policy::priority_class(new, old, e),
        "RuntimeClass" => policy::runtime_class(new, old, e),
        "Lease" => policy::lease(new, old, e),
        "FlowSchema" => flowcontrol::flow_schema(new, e),
        "PriorityLevelConfiguration" => flowcontrol::priority_level(new, e),
        "CertificateSigningRequest" => certificates::signing_request(new, old, "", e),
        "APIService" => admission::api_service(new, old, e),
        _ => {}
    }
}

/// The rules of a subresource; false when it has none of its own and those of the main resource hold.
fn by_subresource(gvk: &GroupVersionKind, subresource: &str, new: &Value, old: &Value, e: &mut Errors) -> bool {
    match (gvk.kind.as_str(), subresource) {
        (_, "") => return false,
        // What these change is decided by the server.
        ("Pod", "binding" | "eviction") => {}
        ("Pod", "status") => core::pod::update_status(new, old, e),
        ("Pod", "ephemeralcontainers") => core::pod::update_ephemeral_containers(new, old, e),
        ("Pod", "resize") => core::pod::resize(new, old, e),
        ("ReplicationController" | "ReplicaSet", "status") => core::config::replica_status(new, old, e),
        ("Service", "status") => core::service::update_status(new, old, e),
        ("Node", "status") => core::node::update_status(new, old, e),
        ("Namespace", sub) => core::config::update_namespace(new, old, sub, e),
        ("PersistentVolumeClaim", "status") => core::claims::update_claim_status(new, old, e),
        ("PersistentVolume", "status") => core::claims::update_volume_status(new, old, e),
        ("ResourceQuota", "status") => core::quota::update_quota_status(new, old, e),
        ("Deployment", "status") => apps::deployment_status(new, old, e),
        ("DaemonSet", "status") => apps::daemon_set_status(new, old, e),
        ("StatefulSet", "status") => apps::stateful_set_status(new, old, e),
        ("Job", "status") => batch::job_status(new, old, e),
        ("CronJob", "status") => batch::cron_job_status(new, old, e),
        ("Ingress", "status") => networking::ingress_status(new, old, e),
        ("ServiceCIDR", "status") => object_meta::validate_update(new, old, true, e),
        ("HorizontalPodAutoscaler", "status") => autoscaling::autoscaler_status(new, old, e),
        ("PodDisruptionBudget", "status") => policy::disruption_budget_status(new, old, e),
        ("FlowSchema" | "PriorityLevelConfiguration", "status") => flowcontrol::conditions(new, e),
        ("ValidatingAdmissionPolicy", "status") => admission::policy_status(new, e),
        ("CertificateSigningRequest", sub) => certificates::signing_request(new, Some(old), sub, e),
        ("ResourceClaim", "status") => devices::claim_status(new, old, e),
        ("APIService", "status") => admission::api_service_status(new, old, e),
        _ => return false,
    }
    true
}

/// What holds for the metadata of every kind.
fn common_meta(object: &Value) -> MetaRules {
    let namespaced = !object.str_at(&["metadata", "namespace"]).is_empty();
    MetaRules { namespaced, kube_finalizers: false, ..MetaRules::namespaced(path_segment) }
}

fn path_segment(name: &str, prefix: bool) -> Vec<String> {
    names::name_is_path_segment(name, prefix)
}
