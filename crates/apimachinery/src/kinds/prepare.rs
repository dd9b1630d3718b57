//! What the server itself does to an object between decoding and validating: status and spec kept apart, generation,
//! allocated labels, fields that a request may not set.
//!
//! The caller has filled `metadata.uid`, `creationTimestamp` and the name before [`prepare_create`]; the clock is
//! `creationTimestamp` there and an argument of [`prepare_update`]. Follows the `PrepareForCreate` and
//! `PrepareForUpdate` of `pkg/registry/*/*/strategy.go`.

use super::access::{Fields, each, object_at, semantic_equal};
use super::core::resources;
use super::pod_warnings;
use crate::gvk::GroupVersionKind;
use crate::json;
use crate::json::{Map, Value};
use crate::names;

/// Where kinds keep a pod spec.
const POD_SPECS: &[&[&str]] = &[
    &["spec"],
    &["spec", "template", "spec"],
    &["template", "spec"],
    &["spec", "jobTemplate", "spec", "template", "spec"],
];

/// Fields of features that are off by default vanish, unless the stored object uses them.
fn drop_disabled(kind: &str, new: &mut Value, old: Option<&Value>) {
    let own: &[&str] = match kind {
        "StatefulSet" => &["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"],
        "CSIDriver" => &["spec", "preventPodSchedulingIfMissing"],
        _ => &[],
    };
    if !own.is_empty() && old.is_none_or(|o| o.at(own).is_none_or(Value::is_null)) {
        new.remove_at(own);
    }
    match kind {
        // Never used there, and not shown when older versions stored it.
        "Service" if new.v("spec").s("type") == "ExternalName" => {
            new.remove_at(&["spec", "internalTrafficPolicy"]);
        }
        "EndpointSlice" => drop_topology(new, old),
        "ResourceSlice" => drop_device_members(new, old),
        _ => {}
    }
    for path in POD_SPECS {
        let old = old.and_then(|o| o.at(path));
        let Some(spec) = new.at_mut(path).filter(|s| s.get("containers").is_some()) else { continue };
        if old.is_none_or(|o| !o.has("schedulingGroup")) {
            spec.make_object().remove("schedulingGroup");
        }
        for source in ["clusterTrustBundle", "podCertificate"] {
            let projects = |v: &Value| v.v("projected").list("sources").iter().any(|s| s.has(source));
            if old.is_some_and(|o| o.list("volumes").iter().any(projects)) {
                continue;
            }
            for volume in each(spec, "volumes") {
                for projection in volume.get_mut("projected").into_iter().flat_map(|p| each(p, "sources")) {
                    projection.make_object().remove(source);
                }
            }
        }
        let lists = ["initContainers", "containers"];
        let in_use =
            old.is_some_and(|o| lists.iter().flat_map(|l| o.list(l)).any(|c| c.v("lifecycle").has("stopSignal")));
        if !in_use {
            for list in lists {
                for container in each(spec, list) {
                    container.remove_at(&["lifecycle", "stopSignal"]);
                    if container.v("lifecycle").as_object().is_some_and(Map::is_empty) {
                        container.make_object().remove("lifecycle");
                    }
                }
            }
        }
    }
}

/// Members of a pod's status whose gates are off.
fn drop_disabled_status(new: &mut Value, old: &Value) {
    const CLAIMS: &str = "nodeAllocatableResourceClaimStatuses";
    if !old.v("status").has(CLAIMS) {
        new.remove_at(&["status", CLAIMS]);
    }
    const LISTS: [&str; 3] = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let mounts = |container: &Value| container.list("volumeMounts").iter().any(|mount| mount.has("volumeStatus"));
    if LISTS.iter().flat_map(|list| old.v("status").list(list)).any(mounts) {
        return;
    }
    for list in LISTS {
        for container in each(object_at(new, "status"), list) {
            for mount in each(container, "volumeMounts") {
                mount.make_object().remove("volumeStatus");
            }
        }
    }
}

/// Taints of devices say since when they are there.
fn date_device_taints(object: &mut Value, now: &Value) {
    let date = |taint: &mut Value| {
        if taint.is_object() && !taint.has("timeAdded") {
            taint.make_object().insert("timeAdded", now.clone());
        }
    };
    if let Some(taint) = object.at_mut(&["spec", "taint"]) {
        date(taint);
    }
    for device in each(object_at(object, "spec"), "devices") {
        each(device, "taints").for_each(date);
    }
}

/// The topology of endpoints is not written through `v1`; the name of a node that it held moves to its field.
fn drop_topology(new: &mut Value, old: Option<&Value>) {
    const HOST: &str = "kubernetes.io/hostname";
    if old.is_some_and(|old| semantic_equal(old.v("endpoints"), new.v("endpoints"))) {
        return;
    }
    for endpoint in each(new, "endpoints") {
        let Some(topology) = endpoint.remove_at(&["deprecatedTopology"]) else { continue };
        let node = topology.s(HOST);
        let known = old.is_some_and(|old| {
            old.list("endpoints").iter().any(|e| !node.is_empty() && e.v("deprecatedTopology").s(HOST) == node)
        });
        if !endpoint.has("nodeName") && known && names::name_is_dns_subdomain(node, false).is_empty() {
            endpoint.set_at(&["nodeName"], node.into());
        }
    }
}

/// Members of devices whose gates are off.
fn drop_device_members(new: &mut Value, old: Option<&Value>) {
    const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];
    const MAPPINGS: &str = "nodeAllocatableResourceMappings";
    let before = old.map(|old| old.v("spec").list("devices")).unwrap_or_default();
    let has_list = |device: &Value| device.members("attributes").values().any(|a| LISTS.iter().any(|l| a.has(l)));
    let (lists, mappings) = (before.iter().any(has_list), before.iter().any(|device| device.has(MAPPINGS)));
    for device in each(object_at(new, "spec"), "devices") {
        if !mappings {
            device.remove_at(&[MAPPINGS]);
        }
        if let Some(attributes) = device.get_mut("attributes").and_then(Value::as_object_mut).filter(|_| !lists) {
            for attribute in attributes.values_mut() {
                for list in LISTS {
                    attribute.remove_at(&[list]);
                }
            }
        }
    }
}

/// How `metadata.generation` of a kind counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Generation {
    /// Not managed: what the first write said stays.
    None,
    /// 1 on create, then one more for each change of these members.
    Members(&'static [&'static str]),
    /// 1 on create, and never again.
    One,
    /// As `Members(&["spec"])`, but not set on create.
    SpecUpdatesOnly,
}

fn generation_rule(group: &str, kind: &str) -> Generation {
    use Generation::*;
    const SPEC: Generation = Members(&["spec"]);
    match (group, kind) {
        (
            "admissionregistration.k8s.io",
            "MutatingAdmissionPolicy"
            | "MutatingAdmissionPolicyBinding"
            | "ValidatingAdmissionPolicy"
            | "ValidatingAdmissionPolicyBinding",
        ) => SPEC,
        ("admissionregistration.k8s.io", _) => Members(&["webhooks"]),
        ("apps", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet") => SPEC,
        ("batch", "CronJob" | "Job") => SPEC,
        ("", "Pod" | "ReplicationController") => SPEC,
        ("", "PodTemplate") => Members(&["template"]),
        ("discovery.k8s.io", "EndpointSlice") => Members(&["addressType", "endpoints", "ports"]),
        ("flowcontrol.apiserver.k8s.io", _) => SPEC,
        ("networking.k8s.io", "Ingress" | "IngressClass" | "NetworkPolicy") => SPEC,
        ("policy", "PodDisruptionBudget") => SPEC,
        ("resource.k8s.io", "DeviceClass" | "DeviceTaintRule" | "ResourceSlice") => SPEC,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => SPEC,
        ("scheduling.k8s.io", "PriorityClass") => One,
        ("storage.k8s.io", "CSIDriver") => SpecUpdatesOnly,
        _ => None,
    }
}

/// Kinds with a `status` that clients cannot write through the main resource.
fn has_status(group: &str, kind: &str) -> bool {
    matches!(
        (group, kind),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy")
            | ("apps", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet")
            | ("autoscaling", "HorizontalPodAutoscaler")
            | ("batch", "CronJob" | "Job")
            | ("certificates.k8s.io", "CertificateSigningRequest")
            | (
                "",
                "Namespace"
                    | "PersistentVolume"
                    | "PersistentVolumeClaim"
                    | "Pod"
                    | "ReplicationController"
                    | "ResourceQuota"
                    | "Service"
            )
            | ("flowcontrol.apiserver.k8s.io", _)
            | ("networking.k8s.io", "Ingress" | "ServiceCIDR")
            | ("policy", "PodDisruptionBudget")
            | ("resource.k8s.io", "ResourceClaim" | "DeviceTaintRule")
            | ("storage.k8s.io", "VolumeAttachment")
            | ("apiregistration.k8s.io", "APIService")
            | ("apiextensions.k8s.io", "CustomResourceDefinition")
    )
}

/// The status of a new object, with the members that are always written.
fn empty_status(group: &str, kind: &str, version: &str) -> Value {
    match (group, kind) {
        ("", "Service") | ("networking.k8s.io", "Ingress") => json!({"loadBalancer": {}}),
        ("apps", "ReplicaSet") | ("", "ReplicationController") => json!({"replicas": 0}),
        ("apps", "StatefulSet") => json!({"replicas": 0, "availableReplicas": 0}),
        ("apps", "DaemonSet") => {
            json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0})
        }
        ("policy", "PodDisruptionBudget") => {
            json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0})
        }
        ("autoscaling", "HorizontalPodAutoscaler") if version == "v1" => {
            json!({"currentReplicas": 0, "desiredReplicas": 0})
        }
        ("autoscaling", "HorizontalPodAutoscaler") => json!({"desiredReplicas": 0, "currentMetrics": null}),
        ("", "Namespace") => json!({"phase": "Active"}),
        ("", "PersistentVolume" | "PersistentVolumeClaim") => json!({"phase": "Pending"}),
        ("storage.k8s.io", "VolumeAttachment") => json!({"attached": false}),
        _ => Value::object(),
    }
}

/// Prepares a decoded and defaulted object for being created.
pub fn prepare_create(gvk: &GroupVersionKind, object: &mut Value) {
    let (group, kind) = (gvk.group.as_str(), gvk.kind.as_str());
    if kind == "DaemonSet" && group == "apps" {
        set_template_generation(object, template_generation(object).max(1));
    }
    if has_status(group, kind) {
        object.make_object().insert("status", empty_status(group, kind, &gvk.version));
    }
    if matches!(generation_rule(group, kind), Generation::Members(_) | Generation::One) {
        object.set_at(&["metadata", "generation"], 1.into());
    }
    drop_disabled(kind, object, None);
    match (group, kind) {
        ("resource.k8s.io", "ResourceSlice" | "DeviceTaintRule") => {
            let now = object.v("metadata").v("creationTimestamp").clone();
            if !now.is_null() {
                date_device_taints(object, &now);
            }
        }
        ("", "Pod") => pod_create(object),
        ("", "Namespace") => {
            let spec = object_at(object, "spec").make_object();
            let finalizers = spec.get_or_insert_with("finalizers", || Value::Array(Vec::new()));
            if !finalizers.is_array() {
                *finalizers = Value::Array(Vec::new());
            }
            if let Some(list) = finalizers.as_array_mut()
                && !list.iter().any(|f| *f == "kubernetes")
            {
                list.push("kubernetes".into());
            }
            canonicalize_namespace(object);
        }
        ("", "PersistentVolume") => {
            if let Some(now) = object.at(&["metadata", "creationTimestamp"]).filter(|t| !t.is_null()).cloned() {
                object.set_at(&["status", "lastPhaseTransitionTime"], now);
            }
        }
        ("", "PersistentVolumeClaim") => claim_data_sources(object_at(object, "spec"), false),
        ("", "ServiceAccount") => clean_secret_references(object),
        ("", "Node") => {
            object_at(object, "spec").make_object().remove("configSource");
            object.remove_at(&["status", "config"]);
        }
        ("batch", "Job") => job_selector(object),
        ("coordination.k8s.io", "Lease") => {
            object.remove_at(&["spec", "strategy"]);
            object.remove_at(&["spec", "preferredHolder"]);
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            let spec = object_at(object, "spec").make_object();
            for key in ["username", "uid", "groups", "extra"] {
                spec.remove(key);
            }
        }
        _ => {}
    }
}

/// Puts who asks into a CertificateSigningRequest, after [`prepare_create`] removed what the client claimed.
pub fn set_requester(object: &mut Value, username: &str, uid: &str, groups: &[String], extra: Value) {
    let spec = object_at(object, "spec").make_object();
    if !username.is_empty() {
        spec.insert("username", username.into());
    }
    if !uid.is_empty() {
        spec.insert("uid", uid.into());
    }
    if !groups.is_empty() {
        spec.insert("groups", groups.to_vec().into());
    }
    if extra.as_object().is_some_and(|m| !m.is_empty()) {
        spec.insert("extra", extra);
    }
}

/// Prepares a decoded and defaulted object for replacing `old`.
///
/// `subresource` is `""` for the main resource. `now` is an RFC 3339 time in whole seconds.
pub fn prepare_update(gvk: &GroupVersionKind, subresource: &str, new: &mut Value, old: &Value, now: &str) {
    let (group, kind) = (gvk.group.as_str(), gvk.kind.as_str());
    copy_member(new, old, &["metadata", "generation"]);
    match subresource {
        "" => {}
        "status" => return prepare_status(group, kind, new, old, now),
        "finalize" => {
            copy_member(new, old, &["status"]);
            return canonicalize_namespace(new);
        }
        "approval" => return prepare_approval(new, old, now),
        "ephemeralcontainers" => {
            return prepare_pod_part(new, old, |new, old| {
                copy_or_remove(new, old, "ephemeralContainers");
            });
        }
        "resize" => return prepare_resize(new, old),
        _ => return,
    }
    match (group, kind) {
        ("", "Namespace") => {
            copy_member(new, old, &["spec", "finalizers"]);
            canonicalize_namespace(new);
        }
        ("", "Node") => {
            copy_member(new, old, &["status"]);
            if !old.v("spec").has("configSource") {
                new.remove_at(&["spec", "configSource"]);
            }
        }
        ("", "Secret") if new.s("type").is_empty() => copy_member(new, old, &["type"]),
        ("", "ServiceAccount") => clean_secret_references(new),
        ("", "PersistentVolumeClaim") => {
            let in_use = old.v("spec").has("dataSource") || old.v("spec").has("dataSourceRef");
            claim_data_sources(object_at(new, "spec"), in_use);
        }
        ("", "Service") => service_type_change(new, old),
        ("certificates.k8s.io", "CertificateSigningRequest") => copy_member(new, old, &["spec"]),
        ("coordination.k8s.io", "Lease") => {
            for key in ["strategy", "preferredHolder"] {
                if !old.v("spec").has(key) {
                    new.remove_at(&["spec", key]);
                }
            }
        }
        ("apps", "DaemonSet") => {
            let changed = !semantic_equal(old.v("spec").v("template"), new.v("spec").v("template"));
            set_template_generation(new, template_generation(old) + i64::from(changed));
        }
        _ => {}
    }
    if has_status(group, kind) {
        copy_member(new, old, &["status"]);
        if (group, kind) == ("", "Service") && new.v("spec").s("type") != "LoadBalancer" {
            new.set_at(&["status", "loadBalancer"], Value::object());
        }
    }
    drop_disabled(kind, new, Some(old));
    if group == "resource.k8s.io" && matches!(kind, "ResourceSlice" | "DeviceTaintRule") {
        date_device_taints(new, &now.into());
    }
    let changed = match generation_rule(group, kind) {
        Generation::Members(members) => {
            members.iter().any(|m| !semantic_equal(new.v(m), old.v(m)))
                || (kind == "Deployment"
                    && !semantic_equal(new.v("metadata").v("annotations"), old.v("metadata").v("annotations")))
                || (kind == "EndpointSlice"
                    && !semantic_equal(new.v("metadata").v("labels"), old.v("metadata").v("labels")))
        }
        Generation::SpecUpdatesOnly => !semantic_equal(new.v("spec"), old.v("spec")),
        Generation::One | Generation::None => false,
    };
    if changed {
        bump_generation(new, old);
    }
}

fn bump_generation(new: &mut Value, old: &Value) {
    let generation = old.v("metadata").i("generation") + 1;
    new.set_at(&["metadata", "generation"], generation.into());
}

/// A write to `/status` keeps everything but the status, and what else the kind lets through.
fn prepare_status(group: &str, kind: &str, new: &mut Value, old: &Value, now: &str) {
    copy_member(new, old, &["spec"]);
    match (group, kind) {
        ("apps", "Deployment") => copy_member(new, old, &["metadata", "labels"]),
        ("admissionregistration.k8s.io", _)
        | ("apiregistration.k8s.io", "APIService")
        | ("networking.k8s.io", "ServiceCIDR")
        | ("resource.k8s.io", _)
        | ("storage.k8s.io", "VolumeAttachment") => reset_metadata(new, old),
        ("flowcontrol.apiserver.k8s.io", _) => {
            let managed = new.remove_at(&["metadata", "managedFields"]);
            copy_member(new, old, &["metadata"]);
            if let Some(managed) = managed {
                new.set_at(&["metadata", "managedFields"], managed);
            }
        }
        ("", "Pod") => {
            for key in ["deletionTimestamp", "ownerReferences"] {
                copy_member(new, old, &["metadata", key]);
            }
            if new.v("status").s("qosClass").is_empty() {
                copy_member(new, old, &["status", "qosClass"]);
            }
            pod_observed_generations(new, old);
            drop_disabled_status(new, old);
        }
        ("", "Node") if !old.v("status").has("config") => {
            new.remove_at(&["status", "config"]);
        }
        ("", "Namespace") => canonicalize_namespace(new),
        ("", "PersistentVolume") => {
            let (was, is) = (old.v("status"), new.v("status"));
            let unset = !is.has("lastPhaseTransitionTime");
            if was.s("phase") == is.s("phase") {
                if unset {
                    copy_member(new, old, &["status", "lastPhaseTransitionTime"]);
                }
            } else if unset || was.v("lastPhaseTransitionTime") == is.v("lastPhaseTransitionTime") {
                new.set_at(&["status", "lastPhaseTransitionTime"], now.into());
            }
        }
        ("apps", "DaemonSet") => set_template_generation(new, template_generation(old)),
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            for kind in ["Approved", "Denied"] {
                preserve_conditions(new, old, kind);
            }
            stamp_conditions(new, old, now);
        }
        _ => {}
    }
}

fn prepare_approval(new: &mut Value, old: &Value, now: &str) {
    stamp_conditions(new, old, now);
    let conditions = new.v("status").v("conditions").clone();
    copy_member(new, old, &["spec"]);
    copy_member(new, old, &["status"]);
    let status = object_at(new, "status").make_object();
    match conditions {
        Value::Array(list) if !list.is_empty() => status.insert("conditions", Value::Array(list)),
        _ => status.remove("conditions"),
    };
}

/// Conditions of this type cannot be changed through `/status`: the old ones come back where they are missing.
fn preserve_conditions(new: &mut Value, old: &Value, kind: &str) {
    let of_type = |o: &Value| -> Vec<Value> {
        o.v("status").list("conditions").iter().filter(|c| c.s("type") == kind).cloned().collect()
    };
    let (before, after) = (of_type(old), of_type(new));
    if after.len() < before.len() {
        let status = object_at(new, "status").make_object();
        if let Value::Array(list) = status.get_or_insert_with("conditions", || Value::Array(Vec::new())) {
            list.extend(before.into_iter().skip(after.len()));
        }
    }
}

/// `lastUpdateTime` and `lastTransitionTime` of conditions that are new.
fn stamp_conditions(new: &mut Value, old: &Value, now: &str) {
    let before = old.v("status").list("conditions").to_vec();
    let Some(status) = new.get_mut("status") else { return };
    for condition in each(status, "conditions") {
        let same_type = before.iter().find(|b| b.s("type") == condition.s("type"));
        if !condition.has("lastTransitionTime") {
            let kept = same_type.filter(|b| b.s("status") == condition.s("status") && b.has("lastTransitionTime"));
            let time = kept.map_or_else(|| now.into(), |b| b.v("lastTransitionTime").clone());
            condition.make_object().insert("lastTransitionTime", time);
        }
        if !condition.has("lastUpdateTime") {
            let unchanged = same_type.filter(|b| {
                ["status", "reason", "message"].iter().all(|k| b.s(k) == condition.s(k)) && b.has("lastUpdateTime")
            });
            let time = unchanged.map_or_else(|| now.into(), |b| b.v("lastUpdateTime").clone());
            condition.make_object().insert("lastUpdateTime", time);
        }
    }
}

fn pod_create(pod: &mut Value) {
    // Negative means at once: older versions took it so.
    if pod.v("spec").i("terminationGracePeriodSeconds") < 0 {
        pod.set_at(&["spec", "terminationGracePeriodSeconds"], 1.into());
    }
    for annotated in pod_warnings::annotated_profiles(pod) {
        let Some(profile) = annotated.profile else { continue };
        if let Some(container) = each(object_at(pod, "spec"), annotated.list).nth(annotated.index) {
            container.set_at(&["securityContext", "appArmorProfile"], profile);
        }
    }
    let qos = resources::qos_class(pod.v("spec"));
    let mut status = json!({"phase": "Pending", "qosClass": qos});
    if !pod.v("spec").list("schedulingGates").is_empty() {
        let mut condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates", "lastProbeTime": null
        });
        let now = pod.v("metadata").v("creationTimestamp").clone();
        condition.make_object().insert("lastTransitionTime", now);
        status.make_object().insert("conditions", Value::Array(vec![condition]));
    }
    pod.make_object().insert("status", status);
    let labels = pod.v("metadata").members("labels").clone();
    let spec = object_at(pod, "spec");
    for which in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.at_mut(&["affinity", which]).filter(|a| a.is_object()) else { continue };
        for weighted in each(affinity, "preferredDuringSchedulingIgnoredDuringExecution") {
            if let Some(term) = weighted.get_mut("podAffinityTerm") {
                apply_label_keys(term, "matchLabelKeys", "In", &labels);
                apply_label_keys(term, "mismatchLabelKeys", "NotIn", &labels);
            }
        }
        for term in each(affinity, "requiredDuringSchedulingIgnoredDuringExecution") {
            apply_label_keys(term, "matchLabelKeys", "In", &labels);
            apply_label_keys(term, "mismatchLabelKeys", "NotIn", &labels);
        }
    }
    for constraint in each(spec, "topologySpreadConstraints") {
        apply_label_keys(constraint, "matchLabelKeys", "In", &labels);
    }
}

/// `matchLabelKeys` and its like become requirements of the term's selector, with the pod's own label values.
fn apply_label_keys(term: &mut Value, keys: &str, operator: &str, labels: &Map) {
    if !term.has("labelSelector") {
        return;
    }
    let requirements: Vec<Value> = term
        .list(keys)
        .iter()
        .filter_map(|k| Some((k.as_str()?, labels.get(k.as_str()?)?.as_str()?)))
        .map(|(key, value)| json!({"key": key, "operator": operator, "values": [value]}))
        .collect();
    if requirements.is_empty() {
        return;
    }
    let selector = object_at(term, "labelSelector").make_object();
    if let Value::Array(list) = selector.get_or_insert_with("matchExpressions", || Value::Array(Vec::new())) {
        list.extend(requirements);
    }
}

/// A status write that leaves out observed generations keeps the recorded ones.
fn pod_observed_generations(new: &mut Value, old: &Value) {
    if new.v("status").i("observedGeneration") == 0 && old.v("status").i("observedGeneration") != 0 {
        copy_member(new, old, &["status", "observedGeneration"]);
    }
    let before = old.v("status").list("conditions").to_vec();
    let Some(status) = new.get_mut("status") else { return };
    for condition in each(status, "conditions") {
        if condition.i("observedGeneration") == 0
            && let Some(b) = before.iter().find(|b| b.s("type") == condition.s("type"))
            && b.i("observedGeneration") != 0
        {
            condition.make_object().insert("observedGeneration", b.v("observedGeneration").clone());
        }
    }
}

fn prepare_pod_part(new: &mut Value, old: &Value, keep: impl Fn(&mut Map, &Value)) {
    let wanted = new.v("spec").clone();
    copy_member(new, old, &["spec"]);
    copy_member(new, old, &["status"]);
    reset_metadata(new, old);
    keep(object_at(new, "spec").make_object(), &wanted);
    if !semantic_equal(new.v("spec"), old.v("spec")) {
        bump_generation(new, old);
    }
}

fn prepare_resize(new: &mut Value, old: &Value) {
    let lists = ["containers", "initContainers"];
    // Other shapes are left for validation to refuse.
    if lists.iter().any(|l| new.v("spec").list(l).len() != old.v("spec").list(l).len()) {
        return;
    }
    prepare_pod_part(new, old, |spec, wanted| {
        copy_or_remove(spec, wanted, "resources");
        for list in lists {
            let (from, old_list) = (wanted.list(list), old.v("spec").list(list));
            if from.is_empty() {
                continue;
            }
            if from.iter().zip(old_list).any(|(a, b)| a.s("name") != b.s("name")) {
                spec.insert(list, Value::Array(from.to_vec()));
                continue;
            }
            let Some(Value::Array(to)) = spec.get_mut(list) else { continue };
            for (container, wanted) in to.iter_mut().zip(from) {
                let container = container.make_object();
                copy_or_remove(container, wanted, "resources");
                copy_or_remove(container, wanted, "resizePolicy");
            }
        }
    });
}

fn copy_or_remove(to: &mut Map, from: &Value, key: &str) {
    match from.o(key) {
        Some(v) => to.insert(key, v.clone()),
        None => to.remove(key),
    };
}

/// The metadata that a status write cannot change in newer kinds.
fn reset_metadata(new: &mut Value, old: &Value) {
    for key in ["deletionTimestamp", "generation", "selfLink", "labels", "annotations", "finalizers", "ownerReferences"]
    {
        copy_member(new, old, &["metadata", key]);
    }
}

fn copy_member(new: &mut Value, old: &Value, path: &[&str]) {
    match old.at(path) {
        Some(v) => new.set_at(path, v.clone()),
        None => {
            new.remove_at(path);
        }
    }
}

/// Every namespace carries its name as a label.
fn canonicalize_namespace(object: &mut Value) {
    let name = object.str_at(&["metadata", "name"]).to_owned();
    object.set_at(&["metadata", "labels", "kubernetes.io/metadata.name"], name.into());
}

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(object: &Value) -> i64 {
    object.v("metadata").v("annotations").s(TEMPLATE_GENERATION).parse().unwrap_or(0)
}

fn set_template_generation(object: &mut Value, generation: i64) {
    object.set_at(&["metadata", "annotations", TEMPLATE_GENERATION], generation.to_string().into());
}

/// The selector and labels that tie a Job to its pods, unless the client does that itself.
fn job_selector(job: &mut Value) {
    if job.v("spec").b("manualSelector") {
        return;
    }
    let name = job.v("metadata").v("name").clone();
    let uid = job.v("metadata").v("uid").clone();
    let mirrored = job.v("metadata").v("labels") == job.v("spec").v("template").v("metadata").v("labels")
        || job.v("metadata").members("labels").is_empty();
    let template = object_at(object_at(job, "spec"), "template");
    let labels = object_at(object_at(template, "metadata"), "labels").make_object();
    for (key, value) in [
        ("job-name", &name),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("batch.kubernetes.io/controller-uid", &uid),
    ] {
        labels.get_or_insert_with(key, || value.clone());
    }
    // Defaulting shares one map between the Job and its template, so the Job's labels grow as well.
    if mirrored {
        let labels = Value::Object(labels.clone());
        job.set_at(&["metadata", "labels"], labels);
    }
    let selector = object_at(object_at(object_at(job, "spec"), "selector"), "matchLabels").make_object();
    selector.get_or_insert_with("batch.kubernetes.io/controller-uid", || uid);
}

fn clean_secret_references(account: &mut Value) {
    for secret in each(account, "secrets") {
        *secret = match secret.os("name") {
            Some(name) => json!({"name": name}),
            None => Value::object(),
        };
    }
}

/// `dataSource` and `dataSourceRef` say the same thing; what older servers dropped silently is dropped still.
fn claim_data_sources(spec: &mut Value, in_use: bool) {
    let spec_map = spec.make_object();
    let foreign = |spec: &Map| {
        spec.get("dataSourceRef")
            .and_then(|r| r.get("namespace"))
            .and_then(Value::as_str)
            .is_some_and(|n| !n.is_empty())
    };
    // Cross-namespace sources are off by default: the reference is dropped.
    if !in_use && foreign(spec_map) {
        spec_map.remove("dataSourceRef");
    }
    let source = spec_map.get("dataSource").filter(|v| !v.is_null()).cloned();
    let reference = spec_map.get("dataSourceRef").filter(|v| !v.is_null()).cloned();
    if !in_use && reference.is_none() {
        let known = source.as_ref().is_some_and(|s| {
            matches!(
                (s.s("kind"), s.s("apiGroup")),
                ("PersistentVolumeClaim", "") | ("VolumeSnapshot", "snapshot.storage.k8s.io")
            )
        });
        if !known {
            spec_map.remove("dataSource");
            return;
        }
    }
    match (source, reference) {
        (Some(source), None) => {
            spec_map.insert("dataSourceRef", source);
        }
        (None, Some(reference)) if reference.s("namespace").is_empty() => {
            let mut source = reference;
            source.make_object().remove("namespace");
            spec_map.insert("dataSource", source);
        }
        _ => {}
    }
}

/// Fields of a Service that only its old type used are dropped when the client sent them back unchanged.
fn service_type_change(new: &mut Value, old: &Value) {
    let old_spec = old.v("spec");
    let (was, is) = (old_spec.s("type").to_owned(), new.v("spec").s("type").to_owned());
    let policy = |spec: &Value| spec.s("externalTrafficPolicy").to_owned();
    let needs_ip = |t: &str| t != "ExternalName";
    let needs_port = |t: &str| matches!(t, "NodePort" | "LoadBalancer");
    let external = |t: &str, spec: &Value| needs_port(t) || (t == "ClusterIP" && !spec.list("externalIPs").is_empty());
    let (was_external, is_external) = (external(&was, old_spec), external(&is, new.v("spec")));
    let (old_policy, new_policy) = (policy(old_spec), policy(new.v("spec")));
    let spec = object_at(new, "spec");
    let same = |spec: &Value, key: &str| semantic_equal(spec.v(key), old_spec.v(key));
    if needs_ip(&was) && !needs_ip(&is) {
        let (ips, families, family_policy) = (
            same(spec, "clusterIP") && same(spec, "clusterIPs"),
            same(spec, "ipFamilies"),
            same(spec, "ipFamilyPolicy"),
        );
        let map = spec.make_object();
        if ips {
            map.remove("clusterIP");
            map.remove("clusterIPs");
        }
        if families {
            map.remove("ipFamilies");
        }
        if family_policy {
            map.remove("ipFamilyPolicy");
        }
    }
    if needs_port(&was) && !needs_port(&is) {
        let ports = |spec: &Value| -> Vec<i64> {
            spec.list("ports").iter().map(|p| p.i("nodePort")).filter(|p| *p != 0).collect()
        };
        let had = ports(old_spec);
        if ports(spec).iter().all(|p| had.contains(p)) {
            for port in each(spec, "ports") {
                port.make_object().remove("nodePort");
            }
        }
    }
    let health = |t: &str, policy: &str| t == "LoadBalancer" && policy == "Local";
    if health(&was, &old_policy) && !health(&is, &new_policy) && same(spec, "healthCheckNodePort") {
        spec.make_object().remove("healthCheckNodePort");
    }
    if was == "LoadBalancer" && is != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(spec, key) {
                spec.make_object().remove(key);
            }
        }
    }
    if was_external && !is_external && old_policy == new_policy {
        spec.make_object().remove("externalTrafficPolicy");
    }
}
