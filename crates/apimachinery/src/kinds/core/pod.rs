//! Pods: creating one, and what may change afterwards through each subresource.

use super::pod_spec::{self, PodOptions};
use super::pod_status;
use super::{containers, resources, scheduling};
use crate::field::{BadValue, FieldPath};
use crate::json::{Map, Value};
use crate::kinds::access::{Fields, semantic_equal};
use crate::kinds::check::{self, Errors, Report, is_dual_stack, legacy_ip, qualified_name, shown};
use crate::kinds::object_meta::{self, MetaRules};
use crate::names;

const META: MetaRules = MetaRules::namespaced(names::name_is_dns_subdomain);
const MIRROR: &str = "kubernetes.io/config.mirror";

fn options(old: Option<&Value>) -> PodOptions {
    let mut options =
        PodOptions::from_old(old.and_then(|o| o.o("spec")), old.map(|o| o.v("metadata").members("annotations")));
    options.is_pod = true;
    options
}

fn metadata_and_spec(pod: &Value, options: PodOptions, errors: &mut Errors) {
    let (meta, spec) = (pod.v("metadata"), pod.v("spec"));
    let path = FieldPath::new("spec");
    object_meta::validate(pod, META, errors);
    pod_spec::annotations(
        meta.members("annotations"),
        spec,
        &FieldPath::new("metadata").child("annotations"),
        options,
        errors,
    );
    pod_spec::validate(spec, Some(meta), &path, options, errors);
    if spec.s("serviceAccountName").is_empty() {
        for (i, volume) in spec.list("volumes").iter().enumerate() {
            let sources = path.child("volumes").index(i).child("projected").child("sources");
            for (j, source) in volume.v("projected").list("sources").iter().enumerate() {
                if source.has("serviceAccountToken") {
                    errors.forbidden(
                        &sources.index(j).child("serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    );
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in spec.list(list).iter().enumerate() {
            containers::image_whitespace(container, &path.child(list).index(i), errors);
        }
    }
}

pub(crate) fn create(pod: &Value, errors: &mut Errors) {
    metadata_and_spec(pod, options(None), errors);
    let (spec, path) = (pod.v("spec"), FieldPath::new("spec"));
    if !spec.list("ephemeralContainers").is_empty() {
        errors.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.s("nodeName").is_empty() && !spec.list("schedulingGates").is_empty() {
        errors.forbidden(&path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    pod_spec::annotations_match_fields(pod.v("metadata").members("annotations"), spec, &path, errors);
}

fn annotation_updates(new: &Value, old: &Value, options: PodOptions, errors: &mut Errors) {
    let path = FieldPath::new("metadata").child("annotations");
    let (after, before) = (new.v("metadata").members("annotations"), old.v("metadata").members("annotations"));
    for (key, value) in before.iter() {
        if after.get(key) == Some(value) {
            continue;
        }
        if key.starts_with(pod_spec::APP_ARMOR) {
            errors.forbidden(&path.key(key), "may not remove or update AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(&path.key(key), "may not remove or update mirror pod annotation");
        }
    }
    for key in after.keys().filter(|k| !before.contains_key(k)) {
        if key.starts_with(pod_spec::APP_ARMOR) {
            errors.forbidden(&path.key(key), "may not add AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(&path.key(key), "may not add mirror pod annotation");
        }
    }
    pod_spec::annotations(after, new.v("spec"), &path, options, errors);
}

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(crate) fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let options = options(Some(old));
    object_meta::validate_update(new, old, true, errors);
    metadata_and_spec(new, options, errors);
    annotation_updates(new, old, options, errors);
    let (spec, old_spec, path) = (new.v("spec"), old.v("spec"), FieldPath::new("spec"));
    for list in ["containers", "initContainers"] {
        let at = path.child(list);
        if spec.list(list).len() != old_spec.list(list).len() {
            errors.forbidden(&at, "pod updates may not add or remove containers");
            return;
        }
        for (i, container) in spec.list(list).iter().enumerate() {
            if container.s("image").is_empty() {
                errors.required(&at.index(i).child("image"), "");
            }
            containers::image_whitespace(container, &at.index(i), errors);
        }
    }
    let at = path.child("activeDeadlineSeconds");
    match (spec.oi("activeDeadlineSeconds"), old_spec.oi("activeDeadlineSeconds")) {
        (Some(seconds), before) => {
            if !(0..=i64::from(i32::MAX)).contains(&seconds) {
                errors.invalid(&at, seconds, names::inclusive_range_error(0, i64::from(i32::MAX)));
                return;
            }
            if before.is_some_and(|b| b < seconds) {
                errors.invalid(&at, seconds, "must be less than or equal to previous value");
                return;
            }
        }
        (None, Some(_)) => {
            errors.invalid(&at, Value::Null, "must not update from a positive integer to nil value");
        }
        (None, None) => {}
    }
    only_added_tolerations(spec, old_spec, &path.child("tolerations"), errors);
    only_removed_gates(spec, old_spec, &path.child("schedulingGates"), errors);
    if semantic_equal(spec, old_spec) {
        return;
    }
    // What may change is set to what it was; anything left over was not to change.
    let mut munged = spec.clone();
    for list in ["containers", "initContainers"] {
        for (container, before) in each(&mut munged, list).zip(old_spec.list(list)) {
            container.make_object().insert("image", before.v("image").clone());
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        restore(&mut munged, old_spec, key);
    }
    if old_spec.i("terminationGracePeriodSeconds") < 0 && munged.oi("terminationGracePeriodSeconds") == Some(1) {
        restore(&mut munged, old_spec, "terminationGracePeriodSeconds");
    }
    if !old_spec.list("schedulingGates").is_empty() {
        gated(&mut munged, spec, old_spec, &path, errors);
    }
    if !semantic_equal(&munged, old_spec) {
        errors.forbidden(&path, format!("{UPDATABLE}\n{}", super::diff::of("PodSpec", old_spec, &munged)));
    }
}

/// A pod behind scheduling gates may still narrow where it runs.
fn gated(munged: &mut Value, spec: &Value, old: &Value, path: &FieldPath, errors: &mut Errors) {
    if !semantic_equal(spec.v("nodeSelector"), old.v("nodeSelector")) {
        node_selector_additions(spec, old, &path.child("nodeSelector"), errors);
        restore(munged, old, "nodeSelector");
    }
    let (affinity, before) = (spec.v("affinity").v("nodeAffinity"), old.v("affinity").v("nodeAffinity"));
    if !semantic_equal(affinity, before) {
        node_affinity_additions(affinity, before, &path.child("affinity").child("nodeAffinity"), errors);
        if before.is_null() {
            munged.remove_at(&["affinity", "nodeAffinity"]);
        } else {
            munged.set_at(&["affinity", "nodeAffinity"], before.clone());
        }
    }
}

/// Keys may be added to a node selector, none changed or removed.
pub(crate) fn node_selector_additions(new: &Value, old: &Value, path: &FieldPath, errors: &mut Errors) {
    let after = new.members("nodeSelector");
    if old.members("nodeSelector").iter().any(|(k, v)| after.get(k) != Some(v)) {
        errors.invalid(
            path,
            shown(new.v("nodeSelector")),
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
}

/// Required node affinity may only become narrower.
pub(crate) fn node_affinity_additions(new: &Value, old: &Value, path: &FieldPath, errors: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    if !old.has(REQUIRED) {
        return;
    }
    let before = old.v(REQUIRED).list("nodeSelectorTerms");
    let after = new.v(REQUIRED).list("nodeSelectorTerms");
    let at = path.child(REQUIRED).child("nodeSelectorTerms");
    if !before.is_empty() && before.len() != after.len() {
        errors.invalid(
            &at,
            shown(new.v(REQUIRED).v("nodeSelectorTerms")),
            "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
        );
        return;
    }
    let extends = |new: &Value, old: &Value, key: &str| {
        let (a, b) = (new.list(key), old.list(key));
        a.len() >= b.len() && a.iter().zip(b).all(|(x, y)| semantic_equal(x, y))
    };
    for (i, (term, was)) in after.iter().zip(before).enumerate() {
        let was_empty = was.list("matchExpressions").is_empty() && was.list("matchFields").is_empty();
        let is_empty = term.list("matchExpressions").is_empty() && term.list("matchFields").is_empty();
        let narrower = if was_empty {
            is_empty
        } else {
            extends(term, was, "matchExpressions") && extends(term, was, "matchFields")
        };
        if !narrower {
            errors.invalid(&at.index(i), term, "only additions are allowed (no mutations or deletions)");
        }
    }
}

fn each<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    crate::kinds::access::each(object, key)
}

fn restore(to: &mut Value, from: &Value, key: &str) {
    let to = to.make_object();
    match from.get(key) {
        Some(v) => to.insert(key, v.clone()),
        None => to.remove(key),
    };
}

fn only_added_tolerations(new: &Value, old: &Value, path: &FieldPath, errors: &mut Errors) {
    let without_seconds = |t: &Value| {
        let mut t = t.clone();
        t.make_object().remove("tolerationSeconds");
        t
    };
    let after: Vec<Value> = new.list("tolerations").iter().map(without_seconds).collect();
    for before in old.list("tolerations").iter().map(without_seconds) {
        if !after.iter().any(|a| semantic_equal(a, &before)) {
            errors.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
            return;
        }
    }
    scheduling::tolerations(new.list("tolerations"), path, errors);
}

fn only_removed_gates(new: &Value, old: &Value, path: &FieldPath, errors: &mut Errors) {
    let before: Vec<&str> = old.list("schedulingGates").iter().map(|g| g.s("name")).collect();
    for (i, gate) in new.list("schedulingGates").iter().enumerate() {
        if !before.contains(&gate.s("name")) {
            errors.forbidden(
                &path.index(i).child("name"),
                format!("only deletion is allowed, but found new scheduling gate '{}'", gate.s("name")),
            );
        }
    }
}

pub(crate) fn update_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    annotation_updates(new, old, options(Some(old)), errors);
    let (status, before, path) = (new.v("status"), old.v("status"), FieldPath::new("status"));
    for (i, condition) in status.list("conditions").iter().enumerate() {
        let at = path.child("conditions").index(i);
        if condition.i("observedGeneration") < 0 {
            errors.invalid(
                &at.child("observedGeneration"),
                condition.i("observedGeneration"),
                "must be a non-negative integer",
            );
        }
        if !matches!(condition.s("type"), "PodScheduled" | "Ready" | "Initialized") {
            qualified_name(condition.s("type"), &at.child("Type"), errors);
        }
    }
    if new.v("spec").s("nodeName") != old.v("spec").s("nodeName") {
        errors.forbidden(&path.child("nodeName"), "may not be changed directly");
    }
    let nominated = status.s("nominatedNodeName");
    if nominated != before.s("nominatedNodeName") && !nominated.is_empty() {
        let at = path.child("nominatedNodeName");
        errors.messages(&at, nominated, names::name_is_dns_subdomain(nominated, false));
        if !old.v("spec").s("nodeName").is_empty() {
            errors.forbidden(&at, "may not be set on pods that are already bound to a node");
        }
    }
    if status.i("observedGeneration") < 0 {
        errors.invalid(
            &path.child("observedGeneration"),
            status.i("observedGeneration"),
            "must be a non-negative integer",
        );
    }
    if status.s("qosClass") != before.s("qosClass") {
        errors.invalid(&path.child("qosClass"), status.s("qosClass"), check::IMMUTABLE);
    }
    state_transitions(new, old, "containerStatuses", "containers", &path, errors);
    state_transitions(new, old, "initContainerStatuses", "initContainers", &path, errors);
    for (i, old_status) in before.list("ephemeralContainerStatuses").iter().enumerate() {
        let running_again = status
            .list("ephemeralContainerStatuses")
            .iter()
            .any(|s| s.s("name") == old_status.s("name") && !s.v("state").has("terminated"));
        if old_status.v("state").has("terminated") && running_again {
            errors.forbidden(
                &path.child("ephemeralContainerStatuses").index(i).child("state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
    claim_statuses(new, &path.child("resourceClaimStatuses"), errors);
    pod_status::extended_claim(new, &path.child("extendedResourceClaimStatus"), errors);
    ips(status, before, "podIPs", &path, errors);
    let host_ips = status.list("hostIPs");
    if let Some(first) = host_ips.first()
        && status.s("hostIP") != first.s("ip")
    {
        errors.invalid(&path.child("hostIPs").index(0).child("ip"), first.s("ip"), "must be equal to `hostIP`");
    }
    ips(status, before, "hostIPs", &path, errors);
    pod_status::container_statuses(new, &path, errors);
}

fn ips(status: &Value, before: &Value, key: &str, path: &FieldPath, errors: &mut Errors) {
    let of = |s: &'_ Value| -> Vec<String> { s.list(key).iter().map(|i| i.s("ip").to_owned()).collect() };
    let (all, old) = (of(status), of(before));
    let old: Vec<&str> = old.iter().map(String::as_str).collect();
    let at = path.child(key);
    for (i, ip) in all.iter().enumerate() {
        legacy_ip(ip, &old, &at.index(i), errors);
    }
    let refs: Vec<&str> = all.iter().map(String::as_str).collect();
    if refs.len() > 1 && (!is_dual_stack(&refs) || refs.len() > 2) {
        errors.invalid(&at, shown(status.v(key)), "may specify no more than one IP for each IP family");
    }
}

fn claim_statuses(pod: &Value, path: &FieldPath, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, status) in pod.v("status").list("resourceClaimStatuses").iter().enumerate() {
        let (name, at) = (status.s("name"), path.index(i));
        if !pod.v("spec").list("resourceClaims").iter().any(|c| c.s("name") == name) {
            errors.invalid(&at.child("name"), name, "must match the name of an entry in `spec.resourceClaims`");
        }
        if seen.contains(&name) {
            errors.duplicate(&at.child("name"), name);
        } else {
            seen.push(name);
        }
        if let Some(claim) = status.os("resourceClaimName") {
            errors.messages(&at.child("resourceClaimName"), claim, names::name_is_dns_subdomain(claim, false));
        }
    }
}

/// Whether a container starts again after it ended with `code`.
fn restarts(container: &Value, spec: &Value, code: i64) -> bool {
    if let Some(policy) = container.os("restartPolicy") {
        for rule in container.list("restartPolicyRules") {
            let codes = rule.v("exitCodes");
            let listed = codes.list("values").iter().any(|v| v.as_i64() == Some(code));
            let applies = match codes.s("operator") {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            };
            if applies {
                return rule.s("action") == "Restart";
            }
        }
        return match policy {
            "Always" => true,
            "OnFailure" => code != 0,
            _ => false,
        };
    }
    match spec.s("restartPolicy") {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    }
}

fn state_transitions(
    new: &Value,
    old: &Value,
    statuses: &str,
    containers: &str,
    path: &FieldPath,
    errors: &mut Errors,
) {
    let spec = old.v("spec");
    let all_restart = ["containers", "initContainers"]
        .iter()
        .flat_map(|l| spec.list(l))
        .any(|c| c.list("restartPolicyRules").iter().any(|r| r.s("action") == "RestartAllContainers"));
    if all_restart {
        return;
    }
    for (i, before) in old.v("status").list(statuses).iter().enumerate() {
        let Some(terminated) = before.v("state").o("terminated") else { continue };
        let name = before.s("name");
        let running_again =
            new.v("status").list(statuses).iter().find(|s| s.s("name") == name && !s.v("state").has("terminated"));
        if running_again.is_none() {
            continue;
        }
        let allowed = spec
            .list(containers)
            .iter()
            .find(|c| c.s("name") == name)
            .is_some_and(|c| restarts(c, spec, terminated.i("exitCode")));
        if !allowed {
            errors.forbidden(
                &path.child(statuses).index(i).child("state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
}

pub(crate) fn update_ephemeral_containers(new: &Value, old: &Value, errors: &mut Errors) {
    let options = options(Some(old));
    object_meta::validate_update(new, old, true, errors);
    metadata_and_spec(new, options, errors);
    annotation_updates(new, old, options, errors);
    if old.v("metadata").members("annotations").contains_key(MIRROR) {
        errors.clear();
        errors.forbidden(&FieldPath::unnamed(), "static pods do not support ephemeral containers");
        return;
    }
    let path = FieldPath::new("spec").child("ephemeralContainers");
    for before in old.v("spec").list("ephemeralContainers") {
        let name = before.s("name");
        match new.v("spec").list("ephemeralContainers").iter().rfind(|c| c.s("name") == name) {
            None => errors.forbidden(&path, format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(after) if !semantic_equal(before, after) => errors.forbidden(
                &path,
                format!(
                    "existing ephemeral containers {name:?} may not be changed\n{}",
                    super::diff::of("EphemeralContainer", before, after)
                ),
            ),
            Some(_) => {}
        }
    }
}

pub(crate) fn resize(new: &Value, old: &Value, errors: &mut Errors) {
    let options = options(Some(old));
    object_meta::validate_update(new, old, true, errors);
    metadata_and_spec(new, options, errors);
    if old.v("metadata").members("annotations").contains_key(MIRROR) {
        errors.clear();
        return errors.forbidden(&FieldPath::unnamed(), "static pods cannot be resized");
    }
    let (spec, old_spec, path) = (new.v("spec"), old.v("spec"), FieldPath::new("spec"));
    if old_spec.v("os").s("name") == "windows" {
        errors.clear();
        return errors.forbidden(&FieldPath::unnamed(), "windows pods cannot be resized");
    }
    let stored_qos = old.v("status").s("qosClass");
    let old_qos = if stored_qos.is_empty() { resources::qos_class(old_spec) } else { stored_qos };
    if old_qos != resources::qos_class(spec) {
        errors.invalid(&path, new.v("status").s("qosClass"), "Pod QOS Class may not change as a result of resizing");
    }
    let running = old.v("status").list("containerStatuses").iter().find(|s| s.v("state").has("running"));
    if running.is_some_and(|s| !s.has("resources")) {
        errors.forbidden(&path, "Pod running on node without support for resize");
    }
    let mut munged = spec.clone();
    if spec.has("resources") || old_spec.has("resources") {
        pod_level_resize(&mut munged, old_spec, &path, errors);
    }
    if !container_order(spec, old_spec, &path, errors) {
        return;
    }
    for list in ["initContainers", "containers"] {
        for (i, (after, before)) in spec.list(list).iter().zip(old_spec.list(list)).enumerate() {
            let at = path.child(list).index(i).child("resources");
            for (kind, what) in [("requests", "resource requests"), ("limits", "resource limits")] {
                let (a, b) = (after.v("resources").members(kind), before.v("resources").members(kind));
                if removed(a, b) {
                    errors.forbidden(&at.child(kind), format!("{what} cannot be removed"));
                }
            }
        }
    }
    for (container, before) in each(&mut munged, "containers").zip(old_spec.list("containers")) {
        drop_compute(container, before);
        if !semantic_equal(container, before) {
            errors.forbidden(&path, "only cpu and memory resources are mutable");
        }
    }
    let init = path.child("initContainers");
    for (i, (container, before)) in each(&mut munged, "initContainers").zip(old_spec.list("initContainers")).enumerate()
    {
        let modified = !semantic_equal(container, before);
        drop_compute(container, before);
        if !semantic_equal(container, before) {
            errors
                .forbidden(&init.index(i), "only cpu and memory resources for init or sidecar containers are mutable");
        }
        if modified && container.s("restartPolicy") != "Always" {
            for _ in container.list("resizePolicy").iter().filter(|p| p.s("restartPolicy") == "RestartContainer") {
                errors.forbidden(
                    &init.index(i),
                    "non-sidecar init containers with a resize policy of RestartContainer cannot be resized",
                );
            }
        }
    }
    if errors.is_empty() && !semantic_equal(&munged, old_spec) {
        errors.forbidden(&path, "only cpu and memory resources are mutable");
    }
}

fn pod_level_resize(munged: &mut Value, old: &Value, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("resources");
    if old.has("resources") && !munged.has("resources") {
        return errors.forbidden(&at, "pod-level resources cannot be removed");
    }
    for (kind, what) in [("requests", "pod-level resource requests"), ("limits", "pod-level resource limits")] {
        if removed(munged.v("resources").members(kind), old.v("resources").members(kind)) {
            errors.forbidden(&at.child(kind), format!("{what} cannot be removed"));
        }
    }
    drop_compute(munged, old);
    if !semantic_equal(munged.v("resources"), old.v("resources")) {
        errors.forbidden(path, "only cpu and memory resources are mutable at pod-level");
    }
}

fn container_order(spec: &Value, old: &Value, path: &FieldPath, errors: &mut Errors) -> bool {
    let before = errors.len();
    for list in ["containers", "initContainers"] {
        let at = path.child(list);
        if spec.list(list).len() != old.list(list).len() {
            errors.forbidden(&at, format!("{list} may not be added or removed on resize"));
            continue;
        }
        for (i, (a, b)) in spec.list(list).iter().zip(old.list(list)).enumerate() {
            if a.s("name") != b.s("name") {
                errors
                    .forbidden(&at.index(i).child("name"), format!("{list} may not be renamed or reordered on resize"));
            }
        }
    }
    errors.len() == before
}

fn removed(after: &Map, before: &Map) -> bool {
    before.len() > after.len() || before.keys().any(|k| !after.contains_key(k))
}

/// Sets cpu and memory of limits and requests to what they were, so that other changes show.
fn drop_compute(owner: &mut Value, old: &Value) {
    for kind in ["limits", "requests"] {
        let before = old.v("resources").members(kind);
        let mut list = owner.v("resources").members(kind).clone();
        for name in ["cpu", "memory"] {
            match before.get(name) {
                Some(q) => list.insert(name, q.clone()),
                None => list.remove(name),
            };
        }
        if list.is_empty() {
            owner.remove_at(&["resources", kind]);
        } else {
            owner.set_at(&["resources", kind], list.into());
        }
    }
}

/// A Binding names a node.
pub(crate) fn binding(binding: &Value, errors: &mut Errors) {
    let target = binding.v("target");
    let path = FieldPath::new("target");
    if !matches!(target.s("kind"), "" | "Node") {
        errors.not_supported(&path.child("kind"), BadValue::from(target.s("kind")), &["Node", "<empty>"]);
    }
    if target.s("name").is_empty() {
        errors.required(&path.child("name"), "");
    }
}
