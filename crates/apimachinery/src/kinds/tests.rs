//! Requests and answers recorded from a real 1.36 server, as far as they concern one object alone.

use super::access::Fields;
use super::*;
use crate::gvk::GroupVersionKind;
use crate::json;
use crate::json::Value;

pub(crate) fn recorded(text: &str) -> Vec<Value> {
    Value::from_slice(text.as_bytes()).unwrap().as_array().unwrap().clone()
}

pub(crate) fn gvk_of(case: &Value) -> GroupVersionKind {
    let gvk = case.v("gvk");
    GroupVersionKind { group: gvk.s("group").into(), version: gvk.s("version").into(), kind: gvk.s("kind").into() }
}

/// The object as it is stored, with placeholders for what a server makes up.
fn created(case: &Value) -> Value {
    created_as(case, "<<uid:1>>")
}

fn created_as(case: &Value, uid: &str) -> Value {
    let gvk = gvk_of(case);
    let mut object = case.v("object").clone();
    for (key, value) in [("uid", uid), ("creationTimestamp", "<<time>>")] {
        object.set_at(&["metadata", key], value.into());
    }
    let namespace = case.s("namespace");
    if !namespace.is_empty() && gvk.kind != "Namespace" {
        object.set_at(&["metadata", "namespace"], namespace.into());
    }
    default_object(&gvk, &mut object);
    prepare_create(&gvk, &mut object);
    object
}

/// Drops what encoding would leave out, and what is allocated or set by admission.
fn comparable(mut v: Value) -> Value {
    for path in [
        &["spec", "tolerations"][..],
        &["spec", "priority"],
        &["spec", "preemptionPolicy"],
        &["spec", "serviceAccountName"],
        &["spec", "serviceAccount"],
        &["spec", "taints"],
        &["spec", "clusterIP"],
        &["spec", "clusterIPs"],
        &["spec", "ipFamilies"],
        &["spec", "ipFamilyPolicy"],
        &["spec", "healthCheckNodePort"],
        &["metadata", "finalizers"],
        &["status", "nodeInfo"],
    ] {
        v.remove_at(path);
    }
    for port in v.at_mut(&["spec", "ports"]).and_then(Value::as_array_mut).into_iter().flatten() {
        port.remove_at(&["nodePort"]);
    }
    strip(v)
}

fn strip(v: Value) -> Value {
    match v {
        Value::Object(m) => m
            .into_iter()
            .map(|(k, v)| (k, strip(v)))
            .filter(|(_, v)| !access::is_zero(v) && v.as_i64() != Some(0))
            .collect::<crate::json::Map>()
            .into(),
        Value::Array(a) => Value::Array(a.into_iter().map(strip).collect()),
        other => other,
    }
}

#[test]
fn created_objects_get_the_recorded_defaults() {
    let mut failed = Vec::new();
    for case in recorded(include_str!("../../testdata/defaults.json")) {
        let (got, want) = (comparable(created(&case)), comparable(case.v("want").clone()));
        if got != want {
            failed.push(format!("{}\n  got  {got}\n  want {want}", case.s("name")));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// What the server does to a service before it validates.
fn allocate(object: &mut Value) {
    if object.s("kind") != "Service" {
        return;
    }
    let ip = object.v("spec").v("clusterIP").clone();
    if !ip.is_null() && object.v("spec").list("clusterIPs").is_empty() {
        object.set_at(&["spec", "clusterIPs"], vec![ip].into());
    }
    if object.v("spec").s("externalTrafficPolicy") == "Local" && object.v("spec").s("type") == "LoadBalancer" {
        object.set_at(&["spec", "healthCheckNodePort"], 31_000.into());
    }
}

/// Cases about more than the object: admission, allocation, expressions, managed fields.
const ELSEWHERE: &[&str] =
    &["admission/", "apply/", "generate", "clusterip-conflict", "ipfamilies-dual", "nodeport-range", "vap-expression"];

/// What a recorded answer says about an object, and what we say.
fn verdicts(case: &Value) -> (String, String) {
    let mut object = created_as(case, "0");
    allocate(&mut object);
    let errors = validate_create(&gvk_of(case), &object);
    let want = case.v("want");
    let name = object.str_at(&["metadata", "name"]).to_owned();
    if want.s("message").is_empty() {
        let got: Vec<String> = errors.iter().map(|e| format!("{} {}", e.kind.reason(), e.field)).collect();
        let want: Vec<String> = want
            .list("errors")
            .iter()
            .map(|e| format!("{} {}", e[0].as_str().unwrap_or(""), e[1].as_str().unwrap_or("")))
            .collect();
        return (got.join("; "), want.join("; "));
    }
    let gvk = gvk_of(case);
    let kind = crate::gvk::GroupKind { group: error_group(&gvk).into(), kind: gvk.kind.clone() };
    let status = crate::status::Status::invalid(&kind, &name, &errors);
    (status.message, want.s("message").to_owned())
}

#[test]
fn new_objects_are_refused_as_recorded() {
    let mut failed = Vec::new();
    let cases = recorded(include_str!("../../testdata/creates.json"));
    let total = cases.len();
    for case in cases {
        if ELSEWHERE.iter().any(|part| case.s("name").contains(part)) {
            continue;
        }
        let (got, want) = verdicts(&case);
        if got != want {
            failed.push(format!("{} {}\n  got  {got}\n  want {want}", case.s("name"), case.v("gvk").s("kind")));
        }
    }
    assert!(failed.is_empty(), "{} of {total}\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn clients_are_warned_as_recorded() {
    for case in recorded(include_str!("../../testdata/creates.json")) {
        let want: Vec<&str> = case.list("warnings").iter().filter_map(Value::as_str).collect();
        // Admission and decoding warn as well, and nobody is warned about what is refused.
        let refused = !case.v("want").list("errors").is_empty() || !case.v("want").s("message").is_empty();
        if refused || ["vap-", "podsecurity", "fieldvalidation"].iter().any(|part| case.s("name").contains(part)) {
            continue;
        }
        assert_eq!(warnings_create(&gvk_of(&case), &created(&case)), want, "{}", case.s("name"));
    }
}

#[test]
fn pods_that_hide_things_are_warned_about() {
    let pod = crate::json!({
        "metadata": {"name": "a.b", "annotations": {"scheduler.alpha.kubernetes.io/critical-pod": ""}},
        "spec": {
            "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "containers": [{
                "name": "c",
                "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)x"}],
                "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"memory": "1500m"}}
            }],
            "volumes": [{"name": "v", "configMap": {"name": "m", "items": [{"path": "a"}, {"path": "a/b"}]}}]
        }
    });
    let gvk = GroupVersionKind::new("", "v1", "Pod");
    let got = warnings_create(&gvk, &pod);
    assert!(got[0].starts_with("metadata.name: this is used in the Pod's hostname"), "{}", got[0]);
    assert_eq!(
        got[1..],
        [
            "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            "metadata.annotations[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the \"priorityClassName\" field instead",
            "volume \"v\" (ConfigMap \"m\"): overlapping paths: \"a/b\" with \"a\"",
            "spec.containers[0].resources.limits[memory]: fractional byte value \"1500m\" is invalid, must be an integer",
            "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
            "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
        ]
    );
}

#[test]
fn the_one_address_of_a_pod_is_the_first_of_all() {
    let gvk = GroupVersionKind::new("", "v1", "Pod");
    for (status, want) in [
        (json!({"podIPs": [{"ip": "1.1.1.1"}]}), json!({"podIP": "1.1.1.1", "podIPs": [{"ip": "1.1.1.1"}]})),
        (json!({"podIP": "1.1.1.1"}), json!({"podIP": "1.1.1.1", "podIPs": [{"ip": "1.1.1.1"}]})),
        (
            json!({"podIP": "1.1.1.1", "podIPs": [{"ip": "2.2.2.2"}, {"ip": "::1"}]}),
            json!({"podIP": "1.1.1.1", "podIPs": [{"ip": "1.1.1.1"}]}),
        ),
        (
            json!({"podIP": "2.2.2.2", "podIPs": [{"ip": "2.2.2.2"}, {"ip": "::1"}]}),
            json!({"podIP": "2.2.2.2", "podIPs": [{"ip": "2.2.2.2"}, {"ip": "::1"}]}),
        ),
    ] {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}});
        pod["status"] = status.clone();
        default_object(&gvk, &mut pod);
        for field in ["podIP", "podIPs"] {
            assert_eq!(pod["status"][field], want[field], "{status}");
        }
    }
}
