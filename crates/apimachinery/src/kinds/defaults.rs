//! What is filled in when an object of a built-in kind is decoded, before and after mutating admission.
//!
//! Idempotent: defaulting a defaulted object changes nothing. Most kinds are rows of [`rules::Rule`]; code is left for
//! values that follow from other fields. Follows `pkg/apis/*/v1/defaults.go` and the `+default` markers of the API types.

use super::access::{Fields, default_integer, default_string, default_to, each, object_at, present};
use super::core::{pod_defaults, resources};
use super::rules::{self, Fill::*, Rule};
use crate::gvk::GroupVersionKind;
use crate::json;
use crate::json::Value;

/// Fills in the unset fields of an object of a built-in kind; a kind without defaults is left alone.
pub fn default_object(gvk: &GroupVersionKind, object: &mut Value) {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", kind) => core(kind, object),
        ("apps", kind) if kind != "ControllerRevision" => apps(kind, object),
        ("batch", "Job") => job(object),
        ("batch", "CronJob") => {
            rules::apply(object, CRON_JOB);
            let template = object_at(object_at(object, "spec"), "jobTemplate");
            object_at(template, "metadata");
            job_template(object_at(template, "spec"));
        }
        ("autoscaling", "HorizontalPodAutoscaler") => {
            default_to(object_at(object, "spec"), "minReplicas", 1);
            if gvk.version == "v2" {
                hpa_v2(object_at(object, "spec"));
            } else {
                hpa_v1(object);
            }
        }
        ("admissionregistration.k8s.io", kind) => admission(kind, object),
        ("apiregistration.k8s.io", "APIService") => rules::apply(object, &[("spec.service?.port", IntPtr(443))]),
        ("authentication.k8s.io", "TokenRequest") => {
            rules::apply(object, &[("spec.expirationSeconds", IntPtr(3600))]);
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            rules::apply(object, &[("ports[].name", StrPtr("")), ("ports[].protocol", StrPtr("TCP"))]);
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => {
            rules::apply(object, &[("spec.matchingPrecedence", Int(1000))]);
        }
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => rules::apply(object, PRIORITY_LEVEL),
        ("networking.k8s.io", "NetworkPolicy") => network_policy(object),
        ("networking.k8s.io", "IngressClass") => {
            rules::apply(object, &[("spec.parameters?.scope", StrPtr("Cluster"))]);
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            rules::apply(object, &[("roleRef.apiGroup", Str("rbac.authorization.k8s.io"))]);
            for subject in each(object, "subjects") {
                if matches!(subject.s("kind"), "User" | "Group") {
                    default_string(subject, "apiGroup", "rbac.authorization.k8s.io");
                }
            }
        }
        ("resource.k8s.io", "ResourceClaim") => claim_devices(object.at_mut(&["spec", "devices"])),
        ("resource.k8s.io", "ResourceClaimTemplate") => {
            object_at(object_at(object, "spec"), "metadata");
            claim_devices(object.at_mut(&["spec", "spec", "devices"]));
        }
        ("resource.k8s.io", "ResourceSlice") => {
            for device in present(object, "spec").into_iter().flat_map(|s| each(s, "devices")) {
                for mapping in present(device, "nodeAllocatableResourceMappings")
                    .and_then(Value::as_object_mut)
                    .into_iter()
                    .flat_map(|m| m.values_mut())
                {
                    default_to(mapping, "allocationMultiplier", "1");
                }
            }
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            rules::apply(object, &[("preemptionPolicy", StrPtr("PreemptLowerPriority"))]);
        }
        ("storage.k8s.io", "StorageClass") => {
            rules::apply(object, &[("reclaimPolicy", StrPtr("Delete")), ("volumeBindingMode", StrPtr("Immediate"))])
        }
        ("storage.k8s.io", "CSIDriver") => rules::apply(object, CSI_DRIVER),
        ("storage.k8s.io", "VolumeAttachment") => {
            if let Some(spec) = object.at_mut(&["spec", "source", "inlineVolumeSpec"]) {
                pod_defaults::volume_source(spec);
            }
        }
        ("node.k8s.io", "RuntimeClass") => {
            if let Some(fixed) = object.at_mut(&["overhead", "podFixed"]) {
                resources::round_up(fixed);
            }
        }
        _ => {}
    }
}

const CRON_JOB: &[Rule] = &[
    ("spec.concurrencyPolicy", Str("Allow")),
    ("spec.suspend", BoolPtr(false)),
    ("spec.successfulJobsHistoryLimit", IntPtr(3)),
    ("spec.failedJobsHistoryLimit", IntPtr(1)),
];

const PRIORITY_LEVEL: &[Rule] = &[
    ("spec.exempt?.nominalConcurrencyShares", IntPtr(0)),
    ("spec.exempt?.lendablePercent", IntPtr(0)),
    ("spec.limited?.nominalConcurrencyShares", IntPtr(30)),
    ("spec.limited?.lendablePercent", IntPtr(0)),
    ("spec.limited?.limitResponse?.queuing?.handSize", Int(8)),
    ("spec.limited?.limitResponse?.queuing?.queues", Int(64)),
    ("spec.limited?.limitResponse?.queuing?.queueLengthLimit", Int(50)),
];

const CSI_DRIVER: &[Rule] = &[
    ("spec.attachRequired", BoolPtr(true)),
    ("spec.podInfoOnMount", BoolPtr(false)),
    ("spec.storageCapacity", BoolPtr(false)),
    ("spec.fsGroupPolicy", StrPtr("ReadWriteOnceWithFSType")),
    ("spec.volumeLifecycleModes", Strs(&["Persistent"])),
    ("spec.requiresRepublish", BoolPtr(false)),
    ("spec.seLinuxMount", BoolPtr(false)),
];

const WEBHOOK: &[Rule] = &[
    ("webhooks[].failurePolicy", StrPtr("Fail")),
    ("webhooks[].matchPolicy", StrPtr("Equivalent")),
    ("webhooks[].namespaceSelector", Empty),
    ("webhooks[].objectSelector", Empty),
    ("webhooks[].timeoutSeconds", IntPtr(10)),
    ("webhooks[].clientConfig?.service?.port", IntPtr(443)),
    ("webhooks[].rules[].scope", StrPtr("*")),
];

const MATCH_CONSTRAINTS: &[Rule] = &[
    ("spec.matchConstraints?.matchPolicy", StrPtr("Equivalent")),
    ("spec.matchConstraints?.namespaceSelector", Empty),
    ("spec.matchConstraints?.objectSelector", Empty),
    ("spec.matchConstraints?.resourceRules[].scope", StrPtr("*")),
    ("spec.matchConstraints?.excludeResourceRules[].scope", StrPtr("*")),
];

const MATCH_RESOURCES: &[Rule] = &[
    ("spec.matchResources?.matchPolicy", StrPtr("Equivalent")),
    ("spec.matchResources?.namespaceSelector", Empty),
    ("spec.matchResources?.objectSelector", Empty),
    ("spec.matchResources?.resourceRules[].scope", StrPtr("*")),
    ("spec.matchResources?.excludeResourceRules[].scope", StrPtr("*")),
];

fn admission(kind: &str, object: &mut Value) {
    match kind {
        "ValidatingWebhookConfiguration" => rules::apply(object, WEBHOOK),
        "MutatingWebhookConfiguration" => {
            rules::apply(object, WEBHOOK);
            rules::apply(object, &[("webhooks[].reinvocationPolicy", StrPtr("Never"))]);
        }
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => {
            rules::apply(object, &[("spec.failurePolicy", StrPtr("Fail"))]);
            rules::apply(object, MATCH_CONSTRAINTS);
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => rules::apply(object, MATCH_RESOURCES),
        _ => {}
    }
}

fn core(kind: &str, object: &mut Value) {
    match kind {
        "Pod" => {
            pod_defaults::pod(object);
            if let Some(status) = present(object, "status") {
                one_pod_address(status);
            }
        }
        "PodTemplate" => pod_defaults::pod_template(object_at(object, "template")),
        "ReplicationController" => replication_controller(object),
        "Service" => service(object),
        "Secret" => {
            fold_string_data(object);
            default_string(object, "type", "Opaque");
        }
        "Endpoints" => {
            for subset in each(object, "subsets") {
                rules::apply(subset, &[("ports[].protocol", Str("TCP"))]);
            }
        }
        "Namespace" => {
            let name = object.str_at(&["metadata", "name"]).to_owned();
            if !name.is_empty() {
                object.set_at(&["metadata", "labels", "kubernetes.io/metadata.name"], name.into());
            }
            default_string(object_at(object, "status"), "phase", "Active");
        }
        "Node" => {
            one_pod_range(object_at(object, "spec"));
            let status = object_at(object, "status");
            for list in ["capacity", "allocatable"] {
                if let Some(r) = present(status, list) {
                    resources::round_up(r);
                }
            }
            if let Some(capacity) = status.o("capacity").cloned() {
                default_to(status, "allocatable", capacity);
            }
        }
        "PersistentVolume" => {
            default_string(object_at(object, "status"), "phase", "Pending");
            let spec = object_at(object, "spec");
            default_string(spec, "persistentVolumeReclaimPolicy", "Retain");
            default_to(spec, "volumeMode", "Filesystem");
            if let Some(capacity) = present(spec, "capacity") {
                resources::round_up(capacity);
            }
            pod_defaults::volume_source(spec);
        }
        "PersistentVolumeClaim" => persistent_volume_claim(object),
        "LimitRange" => {
            for item in present(object, "spec").into_iter().flat_map(|s| each(s, "limits")) {
                limit_range_item(item);
            }
        }
        "ResourceQuota" => {
            for (parent, key) in [("spec", "hard"), ("status", "hard"), ("status", "used")] {
                if let Some(list) = object.at_mut(&[parent, key]) {
                    resources::round_up(list);
                }
            }
        }
        _ => {}
    }
}

fn persistent_volume_claim(claim: &mut Value) {
    pod_defaults::claim_spec(object_at(claim, "spec"));
    let status = object_at(claim, "status");
    default_string(status, "phase", "Pending");
    for list in ["capacity", "allocatedResources"] {
        if let Some(r) = present(status, list) {
            resources::round_up(r);
        }
    }
}

fn replication_controller(object: &mut Value) {
    default_to(object_at(object, "spec"), "replicas", 1);
    let labels = object.at(&["spec", "template", "metadata", "labels"]).filter(|l| l.is_object()).cloned();
    if let Some(labels) = labels {
        if object.v("spec").members("selector").is_empty() {
            object.set_at(&["spec", "selector"], labels.clone());
        }
        if object.v("metadata").members("labels").is_empty() {
            object.set_at(&["metadata", "labels"], labels);
        }
    }
    if let Some(template) = present(object_at(object, "spec"), "template") {
        pod_defaults::pod_template(template);
    }
}

fn service(object: &mut Value) {
    let spec = object_at(object, "spec");
    default_string(spec, "sessionAffinity", "None");
    match spec.s("sessionAffinity") {
        "None" => {
            spec.make_object().remove("sessionAffinityConfig");
        }
        "ClientIP" if spec.at(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]).is_none_or(Value::is_null) => {
            spec.make_object().insert("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    default_string(spec, "type", "ClusterIP");
    for port in each(spec, "ports") {
        default_string(port, "protocol", "TCP");
        let unset = match port.o("targetPort") {
            None => true,
            Some(Value::String(s)) => s.is_empty(),
            Some(v) => v.as_i64() == Some(0),
        };
        if unset {
            let number = port.i("port");
            port.make_object().insert("targetPort", number.into());
        }
    }
    let kind = spec.s("type").to_owned();
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !spec.list("externalIPs").is_empty());
    if external {
        default_string(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        default_to(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default_to(spec, "allocateLoadBalancerNodePorts", true);
        if let Some(balancer) = object.at_mut(&["status", "loadBalancer"]) {
            for ingress in each(balancer, "ingress") {
                if !ingress.s("ip").is_empty() {
                    default_to(ingress, "ipMode", "VIP");
                }
            }
        }
    }
}

fn limit_range_item(item: &mut Value) {
    for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        if let Some(r) = present(item, list) {
            resources::round_up(r);
        }
    }
    if item.s("type") != "Container" {
        return;
    }
    for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
        let source = item.members(from).clone();
        if source.is_empty() {
            continue;
        }
        let target = object_at(item, to).make_object();
        for (name, value) in source {
            target.get_or_insert_with(&name, || value);
        }
    }
}

fn apps(kind: &str, object: &mut Value) {
    let spec = object_at(object, "spec");
    match kind {
        "Deployment" => {
            default_to(spec, "replicas", 1);
            let strategy = object_at(spec, "strategy");
            default_string(strategy, "type", "RollingUpdate");
            if strategy.s("type") == "RollingUpdate" {
                let rolling = object_at(strategy, "rollingUpdate");
                default_to(rolling, "maxUnavailable", "25%");
                default_to(rolling, "maxSurge", "25%");
            }
            default_to(spec, "revisionHistoryLimit", 10);
            default_to(spec, "progressDeadlineSeconds", 600);
        }
        "DaemonSet" => {
            let strategy = object_at(spec, "updateStrategy");
            default_string(strategy, "type", "RollingUpdate");
            if strategy.s("type") == "RollingUpdate" {
                let rolling = object_at(strategy, "rollingUpdate");
                default_to(rolling, "maxUnavailable", 1);
                default_to(rolling, "maxSurge", 0);
            }
            default_to(spec, "revisionHistoryLimit", 10);
        }
        "StatefulSet" => stateful_set(spec),
        "ReplicaSet" => {
            default_to(spec, "replicas", 1);
        }
        _ => return,
    }
    pod_defaults::pod_template(object_at(spec, "template"));
}

fn stateful_set(spec: &mut Value) {
    default_string(spec, "podManagementPolicy", "OrderedReady");
    let strategy = object_at(spec, "updateStrategy");
    if strategy.s("type").is_empty() {
        strategy.make_object().insert("type", "RollingUpdate".into());
        object_at(strategy, "rollingUpdate");
    }
    if strategy.s("type") == "RollingUpdate"
        && let Some(rolling) = present(strategy, "rollingUpdate")
    {
        default_to(rolling, "partition", 0);
    }
    let retention = object_at(spec, "persistentVolumeClaimRetentionPolicy");
    default_string(retention, "whenDeleted", "Retain");
    default_string(retention, "whenScaled", "Retain");
    default_to(spec, "replicas", 1);
    default_to(spec, "revisionHistoryLimit", 10);
    for claim in each(spec, "volumeClaimTemplates") {
        // Templates carry their type: the server writes it even when the client left it out.
        default_string(claim, "kind", "PersistentVolumeClaim");
        default_string(claim, "apiVersion", "v1");
        object_at(claim, "metadata");
        persistent_volume_claim(claim);
    }
}

fn job(object: &mut Value) {
    let spec = object_at(object, "spec");
    if !spec.has("completions") && !spec.has("parallelism") {
        default_to(spec, "completions", 1);
    }
    default_to(spec, "parallelism", 1);
    default_to(spec, "backoffLimit", if spec.has("backoffLimitPerIndex") { i32::MAX } else { 6 });
    default_to(spec, "completionMode", "NonIndexed");
    default_to(spec, "suspend", false);
    default_to(
        spec,
        "podReplacementPolicy",
        if spec.has("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" },
    );
    default_to(spec, "manualSelector", false);
    job_template(spec);
    let labels = object.at(&["spec", "template", "metadata", "labels"]).filter(|l| l.is_object()).cloned();
    if let Some(labels) = labels
        && object.v("metadata").members("labels").is_empty()
    {
        object.set_at(&["metadata", "labels"], labels);
    }
}

/// What the spec of a Job gets also inside a CronJob.
fn job_template(spec: &mut Value) {
    pod_defaults::pod_template(object_at(spec, "template"));
    if let Some(policy) = present(spec, "podFailurePolicy") {
        for rule in each(policy, "rules") {
            for pattern in each(rule, "onPodConditions") {
                default_string(pattern, "status", "True");
            }
        }
    }
}

/// `podCIDR` is the first of `podCIDRs`; where they differ the older member counts.
fn one_pod_range(spec: &mut Value) {
    let (one, first) = (spec.s("podCIDR").to_owned(), spec.list("podCIDRs").first().cloned());
    match first {
        Some(first) if one.is_empty() => spec.set_at(&["podCIDR"], first),
        first if !one.is_empty() && first.as_ref().is_none_or(|f| *f != one.as_str()) => {
            spec.set_at(&["podCIDRs"], Value::Array(vec![one.into()]));
        }
        _ => {}
    }
}

/// `podIP` is the first of `podIPs`; where they differ the older member counts.
fn one_pod_address(status: &mut Value) {
    let one = status.s("podIP").to_owned();
    let first = status.list("podIPs").first().map(|ip| ip.s("ip").to_owned());
    match first {
        Some(first) if one.is_empty() => status.set_at(&["podIP"], first.into()),
        first if !one.is_empty() && first.as_ref() != Some(&one) => {
            status.set_at(&["podIPs"], json!([{"ip": one}]));
        }
        _ => {}
    }
}

/// Without any metric the processor's is taken, which the other version has as a metric.
fn hpa_v1(object: &mut Value) {
    let others = object.at(&["metadata", "annotations", "autoscaling.alpha.kubernetes.io/metrics"]).is_some();
    let spec = object_at(object, "spec");
    if !others {
        default_to(spec, "targetCPUUtilizationPercentage", 80);
    }
}

fn hpa_v2(spec: &mut Value) {
    if spec.list("metrics").is_empty() {
        spec.make_object().insert(
            "metrics",
            json!([{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    let Some(behavior) = present(spec, "behavior") else { return };
    let up = object_at(behavior, "scaleUp");
    default_to(up, "stabilizationWindowSeconds", 0);
    default_to(up, "selectPolicy", "Max");
    default_to(
        up,
        "policies",
        json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
    );
    let down = object_at(behavior, "scaleDown");
    default_to(down, "selectPolicy", "Max");
    default_to(down, "policies", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
}

fn network_policy(object: &mut Value) {
    rules::apply(
        object,
        &[("spec.ingress[].ports[].protocol", StrPtr("TCP")), ("spec.egress[].ports[].protocol", StrPtr("TCP"))],
    );
    let spec = object_at(object, "spec");
    if spec.list("policyTypes").is_empty() {
        let types = if spec.list("egress").is_empty() { vec!["Ingress"] } else { vec!["Ingress", "Egress"] };
        spec.make_object().insert("policyTypes", types.into());
    }
}

fn claim_devices(devices: Option<&mut Value>) {
    let Some(devices) = devices else { return };
    for request in each(devices, "requests") {
        if let Some(exactly) = present(request, "exactly") {
            device_request(exactly);
        }
        for sub in each(request, "firstAvailable") {
            device_request(sub);
        }
    }
}

fn device_request(request: &mut Value) {
    default_string(request, "allocationMode", "ExactCount");
    if request.s("allocationMode") == "ExactCount" {
        default_integer(request, "count", 1);
    }
    for toleration in each(request, "tolerations") {
        default_string(toleration, "operator", "Equal");
    }
}

/// `stringData` is write-only: it is folded into `data`, in base64.
fn fold_string_data(secret: &mut Value) {
    let Some(Value::Object(plain)) = secret.make_object().remove("stringData") else { return };
    if plain.is_empty() {
        return;
    }
    let data = object_at(secret, "data").make_object();
    for (key, value) in plain {
        data.insert(key, base64(value.as_str().unwrap_or("").as_bytes()).into());
    }
}

/// Standard base64 with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            if i <= chunk.len() {
                out.push(char::from(ALPHABET[(n >> (18 - 6 * i)) as usize & 63]));
            } else {
                out.push('=');
            }
        }
    }
    out
}
