//! The FlowSchemas and priority levels that every server has.
//!
//! Two of each are mandatory: their spec is restored at start whatever somebody made of it. The others are suggested:
//! they are updated as long as their annotation says so, and made again when they are missing.
//!
//! Follows: `k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap`, `pkg/registry/flowcontrol/ensurer`.

use std::sync::Arc;

use apimachinery::gvk::GroupVersionKind;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::StatusResult;
use apimachinery::{Value, json};

use super::GROUP;
use crate::storage::{Storage, WriteFailure};

const MANAGER: &str = "api-priority-and-fairness-config-producer-v1";
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// Name, nominal shares, lendable percent, and queues, hand size and queue length when requests queue.
const LIMITED: &[(&str, i64, i64, Option<(i64, i64, i64)>)] = &[
    ("system", 30, 33, Some((64, 6, 50))),
    ("node-high", 40, 25, Some((64, 6, 50))),
    ("leader-election", 10, 0, Some((16, 4, 50))),
    ("workload-high", 40, 50, Some((128, 6, 50))),
    ("workload-low", 100, 90, Some((128, 6, 50))),
    ("global-default", 20, 50, Some((128, 6, 50))),
    ("catch-all", 5, 0, None),
];

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let mut object =
        json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": {"name": name}, "status": {}});
    object.set_annotation(AUTO_UPDATE, "true");
    object["spec"] = spec;
    object
}

/// The priority levels, with all their defaults.
pub(super) fn levels() -> Vec<Value> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let limited = LIMITED.iter().map(|(name, shares, lendable, queuing)| {
        let response = match queuing {
            None => json!({"type": "Reject"}),
            Some((queues, hand, length)) => json!({"type": "Queue",
                "queuing": {"queues": *queues, "handSize": *hand, "queueLengthLimit": *length}}),
        };
        let mut spec = json!({"type": "Limited",
            "limited": {"nominalConcurrencyShares": *shares, "lendablePercent": *lendable}});
        spec.set_at(&["limited", "limitResponse"], response);
        object("PriorityLevelConfiguration", name, spec)
    });
    limited.chain([object("PriorityLevelConfiguration", "exempt", exempt)]).collect()
}

/// The FlowSchemas, with all their defaults.
pub(super) fn schemas() -> Vec<Value> {
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let user = |name: &str| json!({"kind": "User", "user": {"name": name}});
    let everybody = || vec![group("system:unauthenticated"), group("system:authenticated")];
    let kube_system = || json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}});
    let resource = |verbs: &[&str], group: &str, resources: &[&str], cluster: bool| {
        let mut rule = json!({"verbs": verbs.to_vec(), "apiGroups": [group], "resources": resources.to_vec()});
        rule["namespaces"] = json!(["*"]);
        if cluster {
            rule["clusterScope"] = true.into();
        }
        rule
    };
    let everything = || vec![resource(&["*"], "*", &["*"], true)];
    let all_paths = || json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]);
    let schema = |name: &str,
                  level: &str,
                  precedence: i64,
                  by: &str,
                  subjects: Vec<Value>,
                  resources: Vec<Value>,
                  paths: Value| {
        let mut rule = json!({"subjects": Value::Array(subjects)});
        if !resources.is_empty() {
            rule["resourceRules"] = Value::Array(resources);
        }
        if !paths.is_null() {
            rule["nonResourceRules"] = paths;
        }
        let mut spec = json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence});
        if !by.is_empty() {
            spec["distinguisherMethod"] = json!({"type": by});
        }
        spec["rules"] = Value::Array(vec![rule]);
        object("FlowSchema", name, spec)
    };
    let leases = |verbs: &[&str]| resource(verbs, "coordination.k8s.io", &["leases"], false);
    let probes = json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]);
    let (manager, scheduler) = ("system:kube-controller-manager", "system:kube-scheduler");
    let nodes = || vec![group("system:nodes")];
    let node_objects = vec![resource(&["*"], "", &["nodes", "nodes/status"], true), leases(&["*"])];
    let electing = vec![user(manager), user(scheduler), kube_system()];
    vec![
        schema("exempt", "exempt", 1, "", vec![group("system:masters")], everything(), all_paths()),
        schema("probes", "exempt", 2, "", everybody(), Vec::new(), probes),
        schema(
            "system-leader-election",
            "leader-election",
            100,
            "ByUser",
            electing,
            vec![leases(&["get", "create", "update"])],
            Value::Null,
        ),
        schema("system-node-high", "node-high", 400, "ByUser", nodes(), node_objects, Value::Null),
        schema("system-nodes", "system", 500, "ByUser", nodes(), everything(), all_paths()),
        schema(
            "kube-controller-manager",
            "workload-high",
            800,
            "ByNamespace",
            vec![user(manager)],
            everything(),
            all_paths(),
        ),
        schema("kube-scheduler", "workload-high", 800, "ByNamespace", vec![user(scheduler)], everything(), all_paths()),
        schema(
            "kube-system-service-accounts",
            "workload-high",
            900,
            "ByNamespace",
            vec![kube_system()],
            everything(),
            all_paths(),
        ),
        schema(
            "service-accounts",
            "workload-low",
            9000,
            "ByUser",
            vec![group("system:serviceaccounts")],
            everything(),
            all_paths(),
        ),
        schema("global-default", "global-default", 9900, "ByUser", everybody(), everything(), all_paths()),
        schema("catch-all", "catch-all", 10000, "ByUser", everybody(), everything(), all_paths()),
    ]
}

/// Makes what is missing and updates what may be updated.
pub async fn ensure(storage: &Arc<Storage>) -> StatusResult<()> {
    let levels = levels()
        .into_iter()
        .map(|o| ensure_one(storage, "prioritylevelconfigurations", "PriorityLevelConfiguration", o));
    let schemas = schemas().into_iter().map(|o| ensure_one(storage, "flowschemas", "FlowSchema", o));
    futures::try_join!(futures::future::try_join_all(levels), futures::future::try_join_all(schemas)).map(drop)
}

async fn ensure_one(storage: &Arc<Storage>, resource: &str, kind: &'static str, mut object: Value) -> StatusResult<()> {
    let Some(handle) = storage.registry.get(GROUP, "v1", resource) else { return Ok(()) };
    let gvk = GroupVersionKind::new(GROUP, "v1", kind);
    let Some(entry) = storage.get_cached(&handle, "", object.name()) else {
        object.set_generation(1);
        crate::managed_fields::track_system_as(&gvk, kind, &mut object, MANAGER);
        return crate::bootstrap::ensure(storage, GROUP, "v1", resource, object).await;
    };
    let current = entry.to_value();
    let Some(mut revised) = revise(&current, &object) else { return Ok(()) };
    if revised["spec"] != current["spec"] {
        revised.set_generation(current.generation() + 1);
    }
    crate::managed_fields::track_system_update_as(&gvk, kind, "", &current, &mut revised, MANAGER);
    match storage.replace(&handle, "", object.name(), &revised, entry.revision).await {
        // Somebody else has just written: the next start looks again.
        Ok(_) | Err(WriteFailure::Conflict(_)) => Ok(()),
        Err(WriteFailure::Status(status)) => Err(status),
    }
}

/// What an existing object is to become; `None`: it stays.
fn revise(current: &Value, wanted: &Value) -> Option<Value> {
    let annotation = match current.annotation(AUTO_UPDATE) {
        Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Some(true),
        Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Some(false),
        _ => None,
    };
    // Without a word of the operator, an untouched spec may be updated.
    let update = MANDATORY.contains(&wanted.name()) || annotation.unwrap_or(current.generation() == 1);
    let spec_changed = update && current["spec"] != wanted["spec"];
    if annotation == Some(update) && !spec_changed {
        return None;
    }
    let mut revised = current.clone();
    if spec_changed {
        revised["spec"] = wanted["spec"].clone();
    }
    revised.set_annotation(AUTO_UPDATE, if update { "true" } else { "false" });
    Some(revised)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_objects_are_valid_and_have_all_their_defaults() {
        for (kind, objects) in [("PriorityLevelConfiguration", levels()), ("FlowSchema", schemas())] {
            let gvk = GroupVersionKind::new(GROUP, "v1", kind);
            for object in objects {
                let mut defaulted = object.clone();
                apimachinery::kinds::default_object(&gvk, &mut defaulted);
                assert_eq!(defaulted, object, "{}", object.name());
                let errors = apimachinery::kinds::validate_create(&gvk, &object);
                assert!(errors.is_empty(), "{}: {errors:?}", object.name());
            }
        }
        assert_eq!((levels().len(), schemas().len()), (8, 11));
    }

    #[test]
    fn suggested_objects_follow_their_annotation_and_mandatory_ones_never_do() {
        let find = |name: &str| levels().into_iter().find(|o| o.name() == name).unwrap();
        // (object, annotation, generation, spec changed) -> (spec restored, annotation afterwards); `None`: untouched
        for (name, annotation, generation, changed, want) in [
            ("system", "true", 1, false, None),
            ("system", "true", 3, true, Some((true, "true"))),
            ("system", "false", 3, true, None),
            ("system", "", 1, false, Some((true, "true"))),
            ("system", "", 2, true, Some((false, "false"))),
            ("catch-all", "false", 5, true, Some((true, "true"))),
            ("catch-all", "true", 5, false, None),
        ] {
            let wanted = find(name);
            let mut current = wanted.clone();
            current.set_generation(generation);
            current.set_annotation(AUTO_UPDATE, annotation);
            if changed {
                current.set_at(&["spec", "limited", "nominalConcurrencyShares"], 77.into());
            }
            let got = revise(&current, &wanted);
            let got = got.as_ref().map(|o| (o["spec"] == wanted["spec"], o.annotation(AUTO_UPDATE).unwrap_or("")));
            assert_eq!(got, want, "{name} {annotation:?} {generation} {changed}");
        }
    }
}
