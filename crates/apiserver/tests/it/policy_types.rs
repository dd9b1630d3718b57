//! What policies are told about the types in their expressions, as a kube-apiserver v1.36 with its controller manager
//! told it (`data/policy_types.json`).

use apimachinery::Value;
use serde_json::json;

use crate::crd::{DEFINITIONS, established, eventually, post};
use crate::server as started;

fn definition() -> serde_json::Value {
    let spec = json!({
        "cronSpec": {"type": "string"}, "replicas": {"type": "integer"}, "for": {"type": "string"},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
        "obj": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "port": {"x-kubernetes-int-or-string": true},
        "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "number"}}}},
        "emb": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        "map": {"type": "object", "additionalProperties": {"type": "string", "format": "date-time"}},
    });
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": spec}}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {"group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

/// A case of the table as a policy.
fn policy(case: &Value) -> Value {
    let rules = case.array_at(&["rules"]).iter().map(|rule| {
        apimachinery::json!({"apiGroups": [rule[0].clone()], "apiVersions": rule[1].clone(), "operations": ["CREATE"], "resources": rule[2].clone()})
    });
    let variables = case
        .array_at(&["variables"])
        .iter()
        .map(|v| apimachinery::json!({"name": v[0].clone(), "expression": v[1].clone()}));
    let validations = case.array_at(&["expressions"]).iter().map(|e| apimachinery::json!({"expression": e.clone()}));
    let mut spec = apimachinery::json!({
        "matchConstraints": {"resourceRules": rules.collect::<Vec<_>>()},
        "variables": variables.collect::<Vec<_>>(),
        "validations": validations.collect::<Vec<_>>(),
    });
    if case["paramKind"].is_object() {
        spec["paramKind"] = case["paramKind"].clone();
    }
    apimachinery::json!({"metadata": {"name": "p"}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_cannot_be_right_are_remarked_upon_for_each_kind() {
    let server = started().await;
    post(&server, DEFINITIONS, definition()).await.unwrap();
    eventually(&server, &format!("{DEFINITIONS}/crontabs.stable.example.com"), established).await;
    // What is served is known, and published, a moment after the definition is established.
    let crontabs =
        apimachinery::json!({"rules": [["stable.example.com", ["v1"], ["crontabs"]]], "expressions": ["object.nope"]});
    let deadline = std::time::Instant::now() + crate::crd::PATIENCE;
    while server.policy_remarks(&policy(&crontabs)).is_empty() {
        assert!(std::time::Instant::now() < deadline, "the definition is never published");
        tokio::task::yield_now().await;
    }
    let cases = Value::from_slice(include_bytes!("data/policy_types.json")).expect("the table is JSON");
    let mut wrong = Vec::new();
    for case in cases.as_array().expect("the table is a list") {
        let remarks = server.policy_remarks(&policy(case));
        for (i, expression) in case.array_at(&["expressions"]).iter().enumerate() {
            let field = format!("spec.validations[{i}].expression");
            let got = remarks.iter().find(|r| r.field == field).map(|r| r.text.as_str());
            if got != case["warnings"][i].as_str() {
                wrong.push(format!("{expression}\n  want {}\n  got  {got:?}", case["warnings"][i]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    server.shutdown().await;
}
