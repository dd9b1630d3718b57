//! A pod that runs: the few fields that can still change go down, the status comes up.

use apimachinery::{Value, json};

use super::{COMPUTED_ANNOTATIONS, add_tolerations, computed_annotations, downward, env, volumes};
use crate::kind;
use crate::metadata::{self, HostOnlyKeys, LastSynced, MetadataRules, hash_value, name_of, uid_of};
use crate::names::NAMESPACE_LABEL_PREFIX;
use crate::plan::{Action, LastSeen};
use crate::types::{Context, Desired, Refusal};

/// Conditions that the host's kubelet and scheduler own: what they say, or no longer say, holds. `DisruptionTarget` is not one
/// of them: an eviction in the virtual cluster sets it before the pod goes, and a Job's failure policy asks for it.
const HOST_CONDITIONS: [&str; 8] = [
    "PodScheduled",
    "Initialized",
    "ContainersReady",
    "Ready",
    "PodReadyToStartContainers",
    "PodResizePending",
    "PodResizeInProgress",
    "AllContainersRestarting",
];

/// Annotation of the token Secret: when the first of its tokens has to be renewed, in seconds since 1970.
pub const RENEW_AT_ANNOTATION: &str = "alcove.dev/renew-at";

pub fn reconcile(pod: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>) -> Result<Desired, Refusal> {
    let mut actions = Vec::new();
    let host_node = host.str_at(&["spec", "nodeName"]);
    let virtual_node = pod.str_at(&["spec", "nodeName"]);
    if virtual_node != host_node {
        if !virtual_node.is_empty() {
            // They cannot be brought together: whoever made the pod makes it again.
            return Ok(Desired {
                virtual_: pod.clone(),
                host: host.clone(),
                actions: vec![Action::delete_virtual(pod, Some(30))],
                seen: last.clone(),
            });
        }
        actions.push(Action::BindVirtual { node: host_node.to_owned() });
    }

    let mut new_virtual = pod.clone();
    let mut new_host = host.clone();
    update_spec(pod, &mut new_host, ctx);
    sync_gates(pod, &mut new_virtual, &mut new_host);
    let host_only = sync_pod_metadata(&mut new_virtual, &mut new_host, &last.host_only, ctx);
    add_ephemeral_containers(pod, host, ctx, &mut actions);
    resize(pod, host, ctx, &mut actions);
    let sent = actions.is_empty() && new_host.get("spec") == host.get("spec");
    reflect_status(&mut new_virtual, host, sent, ctx);
    // What was decided about readiness gates wins over the host's list.
    keep_gate_conditions(pod, &mut new_virtual, &new_host);
    renew_tokens(pod, ctx, &mut actions);
    Ok(Desired { virtual_: new_virtual, host: new_host, actions, seen: LastSeen { on_host: true, host_only } })
}

fn update_spec(pod: &Value, host: &mut Value, ctx: &Context<'_>) {
    match pod.at(&["spec", "activeDeadlineSeconds"]) {
        Some(seconds) if !seconds.is_null() => host["spec"]["activeDeadlineSeconds"] = seconds.clone(),
        _ => {}
    }
    for member in ["initContainers", "containers"] {
        for container in pod.array_at(&["spec", member]) {
            let mut wanted = json!({"image": (container.str_at(&["image"]))});
            super::translate_image(&mut wanted, ctx);
            let running = host
                .at_mut(&["spec", member])
                .and_then(Value::as_array_mut)
                .and_then(|l| l.iter_mut().find(|c| c["name"] == container["name"]));
            if let Some(running) = running
                && running["image"] != wanted["image"]
            {
                running["image"] = wanted["image"].take();
            }
        }
    }
    // Gates can only be removed from a pod.
    let gates: Vec<Value> = host
        .array_at(&["spec", "schedulingGates"])
        .iter()
        .filter(|g| pod.array_at(&["spec", "schedulingGates"]).contains(g))
        .cloned()
        .collect();
    if gates.len() != host.array_at(&["spec", "schedulingGates"]).len() {
        if gates.is_empty() {
            host.remove_at(&["spec", "schedulingGates"]);
        } else {
            host["spec"]["schedulingGates"] = Value::Array(gates);
        }
    }
    // Tolerations can only be added.
    add_tolerations(host, pod.array_at(&["spec", "tolerations"]));
    add_tolerations(host, &ctx.settings.pods.enforce_tolerations);
}

fn sync_pod_metadata(pod: &mut Value, host: &mut Value, seen: &HostOnlyKeys, ctx: &Context<'_>) -> HostOnlyKeys {
    let rules = MetadataRules { excluded: &COMPUTED_ANNOTATIONS, down_only: false };
    let host_only = metadata::sync_metadata(pod, host, &kind::POD, ctx.names, rules, Some(seen));
    for (key, value) in computed_annotations(pod) {
        match value {
            Some(value) => host.set_at(&["metadata", "annotations", key], value.into()),
            // What a host controller wrote under these keys of the autoscaler stays.
            None if key.starts_with("vcluster.loft.sh/") || key == downward::ANNOTATIONS_ANNOTATION => {
                host.remove_at(&["metadata", "annotations", key]);
            }
            None => {}
        }
    }
    let labels = host["metadata"].make_object().object_mut("labels");
    labels.retain(|key, _| !key.starts_with(NAMESPACE_LABEL_PREFIX));
    for (key, value) in ctx.facts.namespace_labels.iter() {
        labels.insert(ctx.names.namespace_label(key), value.clone());
    }
    host_only
}

/// The virtual status for a host pod's. Keeps what only the virtual cluster knows. `sent`: the host has all of the virtual
/// pod's spec.
pub fn reflect_status(pod: &mut Value, host: &Value, sent: bool, ctx: &Context<'_>) {
    let Some(host_status) = host.get("status").filter(|s| !s.is_null()) else { return };
    let old = pod["status"].clone();
    let mut status = host_status.clone();
    for member in ["qosClass"] {
        match old.get(member) {
            Some(value) => status[member] = value.clone(),
            None => {
                status.remove_at(&[member]);
            }
        }
    }
    // Generations count changes of the host object: who has seen its newest one has seen the virtual pod's.
    let newest = host.at(&["metadata", "generation"]).cloned();
    let observed = |of_host: &mut Value, before: Option<&Value>| {
        let seen = of_host.get("observedGeneration").cloned();
        of_host.remove_at(&["observedGeneration"]);
        let generation = pod.at(&["metadata", "generation"]).filter(|_| sent && seen.is_some() && seen == newest);
        if let Some(generation) = generation.or_else(|| before?.get("observedGeneration")) {
            of_host["observedGeneration"] = generation.clone();
        }
    };
    observed(&mut status, Some(&old));
    for (member, spec_member) in [
        ("initContainerStatuses", "initContainers"),
        ("containerStatuses", "containers"),
        ("ephemeralContainerStatuses", "ephemeralContainers"),
    ] {
        // Containers that the host injected are not the tenant's.
        let known: Vec<Value> = status
            .array_at(&[member])
            .iter()
            .filter(|s| pod.array_at(&["spec", spec_member]).iter().any(|c| c["name"] == s["name"]))
            .cloned()
            .collect();
        if known.is_empty() {
            status.remove_at(&[member]);
        } else {
            status[member] = Value::Array(known);
        }
    }
    let mut conditions: Vec<Value> = status.array_at(&["conditions"]).to_vec();
    for condition in &mut conditions {
        let before = old.array_at(&["conditions"]).iter().find(|c| c["type"] == condition["type"]);
        observed(condition, before);
    }
    for condition in old.array_at(&["conditions"]) {
        let kind = condition.str_at(&["type"]);
        if !HOST_CONDITIONS.contains(&kind) && !conditions.iter().any(|c| c.str_at(&["type"]) == kind) {
            conditions.push(condition.clone());
        }
    }
    if !conditions.is_empty() {
        status["conditions"] = Value::Array(conditions);
    }
    let (host_name, name) = (name_of(host), name_of(pod));
    crate::types::show_messages(&mut status, &|text| {
        ctx.names.to_virtual_text(text, Some((&host_name, &name))).replace(uid_of(host), uid_of(pod))
    });
    if ctx.settings.resource_claims {
        // Made here from templates; the host's pod names the claims themselves.
        status.remove_at(&["resourceClaimStatuses"]);
        if let Some(claims) = old.get("resourceClaimStatuses") {
            status["resourceClaimStatuses"] = claims.clone();
        }
    } else if let Some(claims) = status.get_mut("resourceClaimStatuses").and_then(Value::as_array_mut) {
        for claim in claims {
            let of = pod
                .array_at(&["spec", "resourceClaims"])
                .iter()
                .find(|c| c["name"] == claim["name"])
                .map(|c| c.str_at(&["resourceClaimName"]).to_owned());
            match of.filter(|n| !n.is_empty()) {
                Some(name) => claim["resourceClaimName"] = name.into(),
                None => {
                    claim.remove_at(&["resourceClaimName"]);
                }
            }
        }
    }
    pod["status"] = status;
}

/// The status of a pod whose host pod is gone before its last status was seen: it has ended, as the kubelet says of
/// containers that it cannot find any more.
pub fn end(pod: &mut Value) {
    if matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed") {
        return;
    }
    let mut failed = pod.array_at(&["status", "containerStatuses"]).is_empty();
    for member in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
        let Some(list) = pod.at_mut(&["status", member]).and_then(Value::as_array_mut) else { continue };
        for container in list {
            let code = container.at(&["state", "terminated", "exitCode"]).and_then(Value::as_i64);
            failed |= member == "containerStatuses" && code != Some(0);
            if code.is_none() {
                container["state"] = json!({"terminated": {
                    "exitCode": 137, "reason": "ContainerStatusUnknown",
                    "message": "The container could not be located when the pod was terminated",
                    "startedAt": null, "finishedAt": null,
                }});
                container["ready"] = false.into();
                container["started"] = false.into();
            }
        }
    }
    pod.set_at(&["status", "phase"], if failed { "Failed" } else { "Succeeded" }.into());
    if let Some(conditions) = pod.at_mut(&["status", "conditions"]).and_then(Value::as_array_mut) {
        for condition in conditions {
            if matches!(condition.str_at(&["type"]), "Ready" | "ContainersReady") && condition["status"] != "False" {
                condition["status"] = "False".into();
                condition["reason"] = if failed { "PodFailed" } else { "PodCompleted" }.into();
            }
        }
    }
}

fn gate_conditions(pod: &Value, status_of: &Value) -> Vec<Value> {
    let gates = pod.array_at(&["spec", "readinessGates"]);
    status_of
        .array_at(&["status", "conditions"])
        .iter()
        .filter(|c| gates.iter().any(|g| g["conditionType"] == c["type"]))
        .cloned()
        .collect()
}

/// Readiness gates are set by controllers on either side; the kubelet, which needs them, is on the host.
fn sync_gates(pod: &Value, new_virtual: &mut Value, host: &mut Value) {
    if pod.array_at(&["spec", "readinessGates"]).is_empty() {
        return;
    }
    let of_virtual = gate_conditions(pod, pod);
    let mut synced = LastSynced::of(host);
    let hash = hash_value(uid_of(pod), &Value::Array(of_virtual.clone()));
    if synced.agrees("gates", &hash) {
        let of_host = gate_conditions(pod, host);
        if of_host != of_virtual {
            new_virtual.set_at(&["status", "conditions"], Value::Array(of_host.clone()));
            synced.set("gates", &hash_value(uid_of(pod), &Value::Array(of_host)));
            synced.store(host);
        }
        return;
    }
    if !of_virtual.is_empty() {
        let mut conditions: Vec<Value> = host.array_at(&["status", "conditions"]).to_vec();
        for condition in &of_virtual {
            match conditions.iter_mut().find(|c| c["type"] == condition["type"]) {
                Some(existing) => *existing = condition.clone(),
                None => conditions.push(condition.clone()),
            }
        }
        host.set_at(&["status", "conditions"], Value::Array(conditions));
    }
    synced.set("gates", &hash);
    synced.store(host);
}

fn keep_gate_conditions(pod: &Value, new_virtual: &mut Value, new_host: &Value) {
    let decided = gate_conditions(pod, new_host);
    let Some(conditions) = new_virtual.at_mut(&["status", "conditions"]).and_then(Value::as_array_mut) else { return };
    for condition in decided {
        match conditions.iter_mut().find(|c| c["type"] == condition["type"]) {
            Some(existing) => *existing = condition,
            None => conditions.push(condition),
        }
    }
}

fn add_ephemeral_containers(pod: &Value, host: &Value, ctx: &Context<'_>, actions: &mut Vec<Action>) {
    let existing = host.array_at(&["spec", "ephemeralContainers"]);
    let missing: Vec<&Value> = pod
        .array_at(&["spec", "ephemeralContainers"])
        .iter()
        .filter(|c| !existing.iter().any(|e| e["name"] == c["name"]))
        .collect();
    if missing.is_empty() {
        return;
    }
    let services = env::service_env(pod, ctx);
    let mut list = existing.to_vec();
    for container in missing {
        let mut container = container.clone();
        super::translate_container(&mut container, pod.str_at(&["metadata", "namespace"]), &services, ctx);
        if host.at(&["metadata", "annotations", "vcluster.loft.sh/hosts-rewritten"]).is_some() {
            let mounts = container.make_object().get_or_insert_with("volumeMounts", || Value::Array(Vec::new()));
            if let Some(mounts) = mounts.as_array_mut() {
                mounts.push(json!({"mountPath": "/etc/hosts", "name": (super::REWRITE_HOSTS), "subPath": "hosts"}));
            }
        }
        list.push(container);
    }
    actions.push(Action::PatchHost {
        patch: json!({"metadata": {"uid": (uid_of(host))}, "spec": {"ephemeralContainers": (Value::Array(list))}}),
        subresource: "ephemeralcontainers",
    });
}

/// In-place resize: the tenant changed resources of running containers. Hosts before 1.35 cannot.
fn resize(pod: &Value, host: &Value, ctx: &Context<'_>, actions: &mut Vec<Action>) {
    if ctx.settings.host_version.is_none_or(|v| v < (1, 35)) {
        return;
    }
    // A pod that was resized before keeps what host admission added: compare only what the tenant wrote.
    let mut changed = false;
    let mut list: Vec<Value> = host.array_at(&["spec", "containers"]).to_vec();
    for container in &mut list {
        let wanted = pod.array_at(&["spec", "containers"]).iter().find(|c| c["name"] == container["name"]);
        let Some(wanted) = wanted.and_then(|c| c.get("resources")).filter(|r| !r.is_null()) else { continue };
        for part in ["requests", "limits"] {
            let Some(values) = wanted.get(part).and_then(Value::as_object) else { continue };
            for (resource, quantity) in values.iter() {
                if container.at(&["resources", part, resource]) != Some(quantity) {
                    container.set_at(&["resources", part, resource], quantity.clone());
                    changed = true;
                }
            }
        }
    }
    if changed {
        actions.push(Action::PatchHost {
            patch: json!({"metadata": {"uid": (uid_of(host))}, "spec": {"containers": (Value::Array(list))}}),
            subresource: "resize",
        });
    }
}

fn renew_tokens(pod: &Value, ctx: &Context<'_>, actions: &mut Vec<Action>) {
    let Some(tokens) = volumes::token_plan(pod, ctx) else { return };
    let finished = matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed");
    if finished {
        return;
    }
    let secret = ctx.facts.token_secret.as_ref();
    let complete = secret.is_some_and(|s| tokens.tokens.iter().all(|t| s.at(&["data", &t.key]).is_some()));
    let renew_at: i64 = secret.map_or("", |s| metadata::annotation(s, RENEW_AT_ANNOTATION)).parse().unwrap_or(0);
    let now = ctx.now.as_second();
    if !complete || renew_at <= now {
        actions.push(Action::WriteTokens(tokens));
    } else {
        actions.push(Action::Again { seconds: (renew_at - now).clamp(1, 86_400) as u64 });
    }
}
