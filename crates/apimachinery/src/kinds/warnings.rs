//! What a client is warned of when it writes an object that is valid all the same.

use std::collections::BTreeMap;

use super::access::{Fields, semantic_equal};
use super::check::{cidr_warnings, ip_warnings, strings};
use super::core::resources::{canonical, quantity};
use super::pod_warnings;
use crate::field::FieldPath;
use crate::gvk::GroupVersionKind;
use crate::json::Value;
use crate::names;

/// Warnings about an object that is created.
pub fn warnings_create(gvk: &GroupVersionKind, object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    of_kind(gvk, object, None, &mut out);
    out
}

/// Warnings about an object that is to be created, as it was before [`super::prepare_create`].
pub fn warnings_before_create(gvk: &GroupVersionKind, object: &Value) -> Vec<String> {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") => pod_warnings::annotated_profiles(object).into_iter().filter_map(|one| one.warning).collect(),
        _ => Vec::new(),
    }
}

/// Warnings about an object that replaces `old`, through the main resource or a subresource.
pub fn warnings_update(gvk: &GroupVersionKind, subresource: &str, new: &Value, old: &Value) -> Vec<String> {
    let mut out = Vec::new();
    match (gvk.kind.as_str(), subresource) {
        (_, "") => of_kind(gvk, new, Some(old), &mut out),
        ("Pod", "status") => {
            for (key, path) in [("podIPs", "podIPs"), ("hostIPs", "hostIPs")] {
                for (i, one) in new.v("status").list(key).iter().enumerate() {
                    out.extend(ip_warnings(one.s("ip"), &at(&["status", path]).index(i).child("ip")));
                }
            }
        }
        ("Service" | "Ingress", "status") => {
            for (i, one) in new.v("status").v("loadBalancer").list("ingress").iter().enumerate() {
                let ip = one.s("ip");
                if !ip.is_empty() {
                    out.extend(ip_warnings(ip, &at(&["status", "loadBalancer", "ingress"]).index(i)));
                }
            }
        }
        _ => {}
    }
    out
}

fn at(names: &[&str]) -> FieldPath {
    FieldPath::new(names[0]).children(&names[1..])
}

type Warnings = Vec<String>;

fn of_kind(gvk: &GroupVersionKind, new: &Value, old: Option<&Value>, out: &mut Warnings) {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") if old.is_none() => {
            pod_name(new, "the Pod's hostname", out);
            pod_warnings::pod(new, out);
        }
        ("", "PodTemplate") if generation_changed(new, old) => {
            pod_warnings::template(new.v("template"), &at(&["template"]), out);
        }
        ("", "ReplicationController") | ("apps", "Deployment" | "ReplicaSet") | ("batch", "Job" | "CronJob") => {
            if old.is_none() {
                pod_name(new, "Pod names and hostnames", out);
            }
            workload(gvk, new, old, out);
        }
        ("apps", "DaemonSet" | "StatefulSet") => workload(gvk, new, old, out),
        ("", "Service") => service(new, out),
        ("", "Endpoints") => endpoints(new, out),
        ("", "Node") => node(new, out),
        ("", "Secret") => secret(new, out),
        ("", "ServiceAccount") => service_account(new, old, out),
        ("", "PersistentVolume") => volume(new, out),
        ("", "PersistentVolumeClaim") => claim(new, out),
        ("", "ResourceQuota") if old.is_none() => quota(new, out),
        ("networking.k8s.io", "Ingress") if old.is_none() => ingress(new, out),
        ("networking.k8s.io", "NetworkPolicy") => network_policy(new, out),
        ("discovery.k8s.io", "EndpointSlice") => endpoint_slice(new, old, out),
        ("node.k8s.io", "RuntimeClass") => {
            for key in new.v("scheduling").members("nodeSelector").keys() {
                if let Some(message) = deprecated_label(key) {
                    out.push(format!("scheduling.nodeSelector: {message}"));
                }
            }
        }
        ("storage.k8s.io", "StorageClass") => storage_class(new, out),
        ("storage.k8s.io", "CSIStorageCapacity") => node_selector(new.v("nodeTopology"), out),
        ("storage.k8s.io", "CSIDriver") => csi_driver(new, old, out),
        ("resource.k8s.io", "ResourceSlice") => {
            let driver = new.v("spec").s("driver");
            if driver != driver.to_lowercase() {
                out.push(format!(
                    "spec.driver: driver names should be lowercase; {driver:?} contains uppercase characters"
                ));
            }
        }
        ("admissionregistration.k8s.io", _) => {
            const SUFFIX: &str = ".static.k8s.io";
            if new.v("metadata").s("name").ends_with(SUFFIX) {
                out.push(format!("metadata.name: names ending with {SUFFIX:?} are reserved for static manifest-based configurations and cannot be managed via the API"));
            }
        }
        _ => {}
    }
}

/// A list as Go prints it.
fn printed(messages: &[String]) -> String {
    format!("[{}]", messages.join(" "))
}

fn pod_name(object: &Value, used_in: &str, out: &mut Warnings) {
    let messages = names::is_dns1123_label(object.v("metadata").s("name"));
    if !messages.is_empty() {
        out.push(format!(
            "metadata.name: this is used in {used_in}, which can result in surprising behavior; a DNS label is recommended: {}",
            printed(&messages)
        ));
    }
}

fn generation_changed(new: &Value, old: Option<&Value>) -> bool {
    old.is_none_or(|old| new.v("metadata").i("generation") != old.v("metadata").i("generation"))
}

fn workload(gvk: &GroupVersionKind, new: &Value, old: Option<&Value>, out: &mut Warnings) {
    let (spec, path) = (new.v("spec"), at(&["spec"]));
    if generation_changed(new, old) {
        match gvk.kind.as_str() {
            "Job" => job(spec, &path, out),
            "CronJob" => job(spec.v("jobTemplate").v("spec"), &path.child("jobTemplate").child("spec"), out),
            _ => pod_warnings::template(spec.v("template"), &path.child("template"), out),
        }
    }
    match gvk.kind.as_str() {
        "CronJob" if old.is_some() && spec.s("schedule").contains("TZ") => out.push(
            "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".to_owned(),
        ),
        "StatefulSet" => {
            for (i, claim) in spec.list("volumeClaimTemplates").iter().enumerate() {
                let mut path = path.child("volumeClaimTemplates").index(i);
                if old.is_some() {
                    path = path.child("Spec");
                }
                claim_spec(claim.v("spec"), &path, out);
            }
            if spec.i("revisionHistoryLimit") < 0 {
                out.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".to_owned());
            }
        }
        _ => {}
    }
}

fn job(spec: &Value, path: &FieldPath, out: &mut Warnings) {
    if spec.s("completionMode") == "Indexed" && spec.i("completions") > 100_000 && spec.i("parallelism") > 10_000 {
        out.push(format!("{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"));
    }
    pod_warnings::template(spec.v("template"), &path.child("template"), out);
}

fn service(service: &Value, out: &mut Warnings) {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    let (spec, path) = (service.v("spec"), at(&["spec"]));
    if service.v("metadata").v("annotations").has(HINTS) {
        out.push(format!("annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"));
    }
    let (kind, ip) = (spec.s("type"), spec.s("clusterIP"));
    if !matches!(ip, "" | "None") {
        for (i, ip) in strings(spec, "clusterIPs").into_iter().enumerate() {
            out.extend(ip_warnings(ip, &path.child("clusterIPs").index(i)));
        }
    }
    let external = strings(spec, "externalIPs");
    let headless = kind == "ClusterIP" && ip == "None";
    if headless {
        let affinity = spec.s("sessionAffinity") != "None";
        for (set, key) in [
            (!spec.s("loadBalancerIP").is_empty(), "loadBalancerIP"),
            (!external.is_empty(), "externalIPs"),
            (affinity, "SessionAffinity"),
        ] {
            if set {
                out.push(format!("spec.{key} is ignored for headless services"));
            }
        }
    }
    for (i, ip) in external.iter().enumerate() {
        out.extend(ip_warnings(ip, &path.child("externalIPs").index(i)));
    }
    if !external.is_empty() && !headless && kind != "ExternalName" {
        out.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned());
    }
    if !spec.s("loadBalancerIP").is_empty() {
        out.extend(ip_warnings(spec.s("loadBalancerIP"), &path.child("loadBalancerIP")));
    }
    for (i, range) in strings(spec, "loadBalancerSourceRanges").into_iter().enumerate() {
        out.extend(cidr_warnings(range, &path.child("loadBalancerSourceRanges").index(i)));
    }
    if kind == "ExternalName" && !external.is_empty() {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if kind != "ExternalName" && !spec.s("externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.s("trafficDistribution") == "PreferClose" {
        out.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned());
    }
}

fn endpoints(endpoints: &Value, out: &mut Warnings) {
    let label = endpoints.v("metadata").v("labels").s("endpoints.kubernetes.io/managed-by");
    if label == "endpoint-controller" {
        return;
    }
    for (i, subset) in endpoints.list("subsets").iter().enumerate() {
        for key in ["addresses", "notReadyAddresses"] {
            for (j, address) in subset.list(key).iter().enumerate() {
                let path = at(&["subsets"]).index(i).child(key).index(j).child("ip");
                out.extend(ip_warnings(address.s("ip"), &path));
            }
        }
    }
}

fn endpoint_slice(slice: &Value, old: Option<&Value>, out: &mut Warnings) {
    if old.is_none() && slice.s("addressType") == "FQDN" {
        out.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
    }
    let manager = slice.v("metadata").v("labels").s("endpointslice.kubernetes.io/managed-by");
    if matches!(manager, "endpointslice-controller.k8s.io" | "endpointslicemirroring-controller.k8s.io") {
        return;
    }
    for (i, endpoint) in slice.list("endpoints").iter().enumerate() {
        for (j, address) in strings(endpoint, "addresses").into_iter().enumerate() {
            out.extend(ip_warnings(address, &at(&["endpoints"]).index(i).child("addresses").index(j)));
        }
    }
}

fn node(node: &Value, out: &mut Warnings) {
    let spec = node.v("spec");
    if spec.has("configSource") {
        out.push("spec.configSource: the feature is removed".to_owned());
    }
    if !spec.s("externalID").is_empty() {
        out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
    }
    for (i, range) in strings(spec, "podCIDRs").into_iter().enumerate() {
        out.extend(cidr_warnings(range, &at(&["spec", "podCIDRs"]).index(i)));
    }
}

/// A TLS secret whose certificate or key cannot be read at all. Whether they belong together is not checked.
fn secret(secret: &Value, out: &mut Warnings) {
    if secret.s("type") != "kubernetes.io/tls" {
        return;
    }
    let has_pem = |key: &str| {
        super::certificates::decoded(secret.v("data").s(key))
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .is_some_and(|text| text.contains("-----BEGIN ") && text.contains("-----END "))
    };
    for (key, what) in [("tls.crt", "certificate"), ("tls.key", "key")] {
        if !has_pem(key) {
            return out.push(format!("tls: failed to find any PEM data in {what} input"));
        }
    }
}

fn service_account(new: &Value, old: Option<&Value>, out: &mut Warnings) {
    const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
    let has = |object: &Value| object.v("metadata").v("annotations").has(ENFORCE);
    if has(new) && !old.is_some_and(has) {
        out.push(format!("metadata.annotations[{ENFORCE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"));
    }
}

fn volume(volume: &Value, out: &mut Warnings) {
    let annotations = volume.v("metadata").v("annotations");
    for (key, message) in [
        (
            "volume.beta.kubernetes.io/storage-class",
            "deprecated since v1.8; use \"storageClassName\" attribute instead",
        ),
        ("volume.beta.kubernetes.io/mount-options", "deprecated since v1.31; use \"mountOptions\" attribute instead"),
    ] {
        if annotations.has(key) {
            out.push(format!("metadata.annotations[{key}]: {message}"));
        }
    }
    let (spec, path) = (volume.v("spec"), at(&["spec"]));
    if spec.s("persistentVolumeReclaimPolicy") == "Recycle" {
        out.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".to_owned());
    }
    let terms = spec.v("nodeAffinity").v("required").list("nodeSelectorTerms");
    for (i, term) in terms.iter().enumerate() {
        let path = path.children(&["nodeAffinity", "required", "nodeSelectorTerms"]).index(i);
        selector_term(term, false, &path, out);
    }
    for (key, message) in [
        ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ] {
        if spec.has(key) {
            let shown = if key == "storageos" { "storageOS" } else { key };
            out.push(format!("{}: {message}", path.child(shown)));
        }
    }
}

fn claim(claim: &Value, out: &mut Warnings) {
    const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
    if claim.v("metadata").v("annotations").has(CLASS) {
        out.push(format!(
            "metadata.annotations[{CLASS}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
        ));
    }
    claim_spec(claim.v("spec"), &at(&["spec"]), out);
}

pub(crate) fn claim_spec(spec: &Value, path: &FieldPath, out: &mut Warnings) {
    for key in ["requests", "limits"] {
        let list = spec.v("resources").v(key);
        fraction(list, "storage", &path.child("resources").child(key), out);
    }
}

/// Amounts of bytes that are no whole numbers.
pub(crate) fn fraction(list: &Value, resource: &str, path: &FieldPath, out: &mut Warnings) {
    if let Some(value) = list.o(resource)
        && quantity(value).milli_value() % 1000 != 0
    {
        let value = canonical(value);
        out.push(format!("{}: fractional byte value {value:?} is invalid, must be an integer", path.key(resource)));
    }
}

fn quota(object: &Value, out: &mut Warnings) {
    let hard = object.v("spec").v("hard");
    for resource in ["cpu", "memory", "storage", "ephemeral-storage"] {
        let mut name = format!("requests.{resource}");
        if !hard.has(&name) && matches!(resource, "cpu" | "memory") {
            name = resource.to_owned();
        }
        let limit_name = format!("limits.{resource}");
        if let (Some(request), Some(limit)) = (hard.o(&name), hard.o(&limit_name))
            && quantity(request) > quantity(limit)
        {
            out.push(format!(
                "ResourceQuota {name} ({}) should be less than {limit_name} ({})",
                canonical(request),
                canonical(limit)
            ));
        }
    }
}

fn ingress(ingress: &Value, out: &mut Warnings) {
    const CLASS: &str = "kubernetes.io/ingress.class";
    if ingress.v("metadata").v("annotations").has(CLASS) && !ingress.v("spec").has("ingressClassName") {
        out.push(format!("annotation {CLASS:?} is deprecated, please use 'spec.ingressClassName' instead"));
    }
}

fn network_policy(policy: &Value, out: &mut Warnings) {
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in policy.v("spec").list(list).iter().enumerate() {
            for (j, peer) in rule.list(peers).iter().enumerate() {
                let Some(block) = peer.o("ipBlock") else { continue };
                let path = at(&["spec", list]).index(i).child(peers).index(j).child("ipBlock");
                out.extend(cidr_warnings(block.s("cidr"), &path.child("cidr")));
                for (k, except) in strings(block, "except").into_iter().enumerate() {
                    out.extend(cidr_warnings(except, &path.child("except").index(k)));
                }
            }
        }
    }
}

fn storage_class(class: &Value, out: &mut Warnings) {
    for (i, term) in class.list("allowedTopologies").iter().enumerate() {
        for (j, one) in term.list("matchLabelExpressions").iter().enumerate() {
            if let Some(message) = deprecated_label(one.s("key")) {
                let path = at(&["allowedTopologies"]).index(i).child("matchLabelExpressions").index(j).child("key");
                out.push(format!("{path}: {message}"));
            }
        }
    }
}

fn csi_driver(new: &Value, old: Option<&Value>, out: &mut Warnings) {
    let spec = new.v("spec");
    let changed = old.is_none_or(|old| !semantic_equal(old.v("spec").v("tokenRequests"), spec.v("tokenRequests")));
    if changed && !spec.list("tokenRequests").is_empty() && !spec.has("serviceAccountTokenInSecrets") {
        out.push("spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes".to_owned());
    }
}

/// Labels of nodes that have a successor.
pub(crate) fn deprecated_label(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => "deprecated since v1.22; use Taints and Tolerations instead",
        "node-role.kubernetes.io/master" => "use \"node-role.kubernetes.io/control-plane\" instead",
        _ => return None,
    })
}

fn deprecated_keys(expressions: &[Value], path: &FieldPath, out: &mut Warnings) {
    for (i, one) in expressions.iter().enumerate() {
        let key = one.s("key");
        if let Some(message) = deprecated_label(key) {
            out.push(format!("{}: {key} is {message}", path.index(i).child("key")));
        }
    }
}

fn node_selector(selector: &Value, out: &mut Warnings) {
    let path = at(&["nodeTopology"]);
    deprecated_keys(selector.list("matchExpressions"), &path.child("matchExpressions"), out);
    for label in selector.members("matchLabels").keys() {
        if let Some(message) = deprecated_label(label) {
            out.push(format!("{}: {message}", path.child("matchLabels").child(label)));
        }
    }
}

/// A term that selects nodes.
pub(crate) fn selector_term(term: &Value, check_values: bool, path: &FieldPath, out: &mut Warnings) {
    let path = path.child("matchExpressions");
    for (i, one) in term.list("matchExpressions").iter().enumerate() {
        let path = path.index(i);
        let key = one.s("key");
        if let Some(message) = deprecated_label(key) {
            out.push(format!("{}: {key} is {message}", path.child("key")));
        }
        if !check_values {
            continue;
        }
        for (j, value) in strings(one, "values").into_iter().enumerate() {
            for message in names::is_label_value(value) {
                out.push(format!("{}: {value} is invalid, {message}", path.child("values").index(j)));
            }
        }
    }
}

/// The values that came before in a list, with their places.
pub(crate) fn repeated<'a>(values: impl Iterator<Item = &'a str>) -> Vec<(usize, &'a str)> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut out = Vec::new();
    for (i, value) in values.enumerate() {
        let count = seen.entry(value).or_default();
        if *count > 0 {
            out.push((i, value));
        }
        *count += 1;
    }
    out
}
