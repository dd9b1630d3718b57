//! Field selectors of the built-in kinds: which labels are understood, and what an object's value is.
//!
//! Values are computed from the object in the version that was asked for, so `events.k8s.io` has its own names.
//! Follows the `AddFieldLabelConversionFunc` of `pkg/apis` and the `ToSelectableFields` of `pkg/registry`.

use super::access::Fields;
use crate::gvk::GroupVersionKind;
use crate::json::Value;

const NAME: &[&str] = &["metadata.name"];
const NAME_NAMESPACE: &[&str] = &["metadata.name", "metadata.namespace"];

/// The field labels that a selector may use with a kind.
pub fn selectable_fields(gvk: &GroupVersionKind) -> &'static [&'static str] {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") => &[
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "Node") => &["metadata.name", "spec.unschedulable"],
        ("", "ReplicationController") => &["metadata.name", "metadata.namespace", "status.replicas"],
        ("", "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
            "metadata.namespace",
            "metadata.name",
        ],
        ("events.k8s.io", "Event") => &[
            "reason",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reportingController",
            "type",
            "metadata.namespace",
            "metadata.name",
        ],
        ("", "Namespace") => &["status.phase", "metadata.name"],
        ("", "Secret") => &["type", "metadata.namespace", "metadata.name"],
        ("", "Service") => &["metadata.namespace", "metadata.name", "spec.clusterIP", "spec.type"],
        ("batch", "Job") => &["metadata.name", "metadata.namespace", "status.successful"],
        ("certificates.k8s.io", "CertificateSigningRequest" | "ClusterTrustBundle") => {
            &["metadata.name", "spec.signerName"]
        }
        ("resource.k8s.io", "ResourceSlice") => &["metadata.name", "spec.nodeName", "spec.driver"],
        ("apiextensions.k8s.io" | "apiregistration.k8s.io", _) => NAME,
        _ => NAME_NAMESPACE,
    }
}

/// Translates a field label of a request to the one values are kept under; `Err` is the message of a 400.
pub fn convert_field_label<'a>(gvk: &GroupVersionKind, label: &'a str) -> Result<&'a str, String> {
    if (gvk.group.as_str(), gvk.kind.as_str(), label) == ("", "Pod", "spec.host") {
        return Ok("spec.nodeName");
    }
    if selectable_fields(gvk).contains(&label) {
        return Ok(label);
    }
    Err(match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod" | "Node" | "ReplicationController" | "Event" | "Namespace" | "Secret" | "Service")
        | ("events.k8s.io", "Event")
        | ("certificates.k8s.io", _) => format!("field label not supported: {label}"),
        ("batch", "Job") => format!("field label {label:?} not supported for Job"),
        ("resource.k8s.io", "ResourceSlice") => {
            format!("field label not supported for {}/{}, Kind={}: {label}", gvk.group, gvk.version, gvk.kind)
        }
        _ if label == "metadata.namespace" => String::new(),
        _ => format!("{label:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""),
    })
}

/// The value of a field label in an object; `""` for what the object does not have.
pub fn field_value(gvk: &GroupVersionKind, object: &Value, label: &str) -> String {
    match (gvk.group.as_str(), gvk.kind.as_str(), label) {
        ("", "Pod", "spec.hostNetwork") => object.v("spec").b("hostNetwork").to_string(),
        ("", "Pod", "status.podIP" | "status.podIPs") => {
            object.array_at(&["status", "podIPs"]).first().map_or("", |ip| ip.s("ip")).to_owned()
        }
        ("", "Node", "spec.unschedulable") => object.v("spec").b("unschedulable").to_string(),
        ("", "ReplicationController", "status.replicas") => object.v("status").i("replicas").to_string(),
        ("batch", "Job", "status.successful") => object.v("status").i("succeeded").to_string(),
        ("", "Event", "source") => {
            let source = object.v("source").s("component");
            if source.is_empty() { object.s("reportingComponent") } else { source }.to_owned()
        }
        _ => {
            let mut value = object;
            for step in label.split('.') {
                value = value.v(step);
            }
            value.as_str().unwrap_or("").to_owned()
        }
    }
}
