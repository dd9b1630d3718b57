//! Admission by policy and by webhook configuration.

use apimachinery::{Value, json};

use crate::api::*;

const BASE: &str = "/apis/admissionregistration.k8s.io/v1";

fn rules(operations: Value) -> Value {
    json!([{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": operations, "resources": ["deployments"]}])
}

fn in_namespace(ns: &str) -> Value {
    json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns}}})
}

fn deployment(name: &str, replicas: i64) -> Value {
    workload("Deployment", name, replicas, json!({"app": name}), "web")
}

/// Sends dry runs until the answer is as wanted: policies take effect a moment after they are written.
async fn until_effective(api: &Api, path: &str, object: &Value, wanted: impl Fn(&Result<Value, Refusal>) -> bool) {
    let begin = std::time::Instant::now();
    loop {
        let answer = api.try_post(&format!("{path}?dryRun=All"), object).await;
        if wanted(&answer) {
            return;
        }
        assert!(begin.elapsed().as_secs() < 30, "the policy has no effect: {answer:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_told_in_their_status_about_types() {
    let api = Api::start().await;
    let policy = json!({"metadata": {"name": "typed"}, "spec": {
        "matchConstraints": {"resourceRules": rules(json!(["CREATE"]))},
        "validations": [{"expression": "object.spec.replicas > 1"}, {"expression": "object.spec.replica > 1"}]}});
    let made = api.post(&format!("{BASE}/validatingadmissionpolicies"), policy).await;
    let checked = api
        .until("checked", &format!("{BASE}/validatingadmissionpolicies/typed"), |p| {
            p["status"]["observedGeneration"] == made["metadata"]["generation"]
        })
        .await;
    let text = "apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'replica'\n | object.spec.replica > 1\n | ...........^\n";
    let warnings = json!([{"fieldRef": "spec.validations[1].expression", "warning": text}]);
    assert_eq!(checked["status"]["typeChecking"]["expressionWarnings"], warnings);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_refuse_deployments_by_expression_and_variables() {
    let api = Api::start().await;
    let ns = api.namespace("validated").await;
    let deployments = format!("/apis/apps/v1/namespaces/{ns}/deployments");
    for (name, spec, message) in [
        (
            "limit",
            json!({"validations": [{"expression": "object.spec.replicas > 1", "messageExpression": "'wants replicas > 1, got ' + string(object.spec.replicas)"}]}),
            "wants replicas > 1, got 1",
        ),
        (
            "variables",
            json!({"variables": [{"name": "replicas", "expression": "object.spec.replicas"},
            {"name": "oddReplicas", "expression": "variables.replicas % 2 == 1"}, {"name": "enough", "expression": "variables.replicas > 1"}],
            "validations": [{"expression": "variables.enough"}, {"expression": "variables.oddReplicas || variables.replicas > 4"}]}),
            "failed expression: variables.enough",
        ),
    ] {
        let mut policy = json!({"metadata": {"name": name}, "spec": {"matchConstraints": {"resourceRules": rules(json!(["CREATE", "UPDATE"]))}}});
        for (key, value) in spec.as_object().into_iter().flat_map(|m| m.iter()) {
            policy["spec"][key.as_str()] = value.clone();
        }
        let made = api.post(&format!("{BASE}/validatingadmissionpolicies"), policy).await;
        api.until("checked", &format!("{BASE}/validatingadmissionpolicies/{name}"), |p| {
            p["status"]["observedGeneration"] == made["metadata"]["generation"]
        })
        .await;
        api.post(
            &format!("{BASE}/validatingadmissionpolicybindings"),
            json!({"metadata": {"name": name}, "spec": {"policyName": name,
            "matchResources": in_namespace(&ns), "validationActions": ["Deny"]}}),
        )
        .await;
        until_effective(&api, &deployments, &deployment("probe", 1), |a| {
            a.as_ref().is_err_and(|r| r.message.contains(message))
        })
        .await;
        let refused = api.try_post(&deployments, &deployment("one", 1)).await.expect_err("refused");
        assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"), "{}", refused.message);
        api.post(&deployments, deployment(&format!("{name}-three"), 3)).await;
        api.delete(&format!("{BASE}/validatingadmissionpolicybindings/{name}")).await;
        until_effective(&api, &deployments, &deployment("probe", 1), Result::is_ok).await;
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_change_deployments_by_patch_and_by_configuration() {
    let api = Api::start().await;
    let ns = api.namespace("mutated").await;
    let deployments = format!("/apis/apps/v1/namespaces/{ns}/deployments");
    for (name, mutation, effect) in [
        (
            "labels",
            json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {\"mutated\": \"yes\"}}}"}}),
            ["metadata", "labels", "mutated"],
        ),
        (
            "annotations",
            json!({"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: \"add\", path: \"/metadata/annotations\", value: {\"mutated\": \"yes\"}}]"}}),
            ["metadata", "annotations", "mutated"],
        ),
    ] {
        api.post(
            &format!("{BASE}/mutatingadmissionpolicies"),
            json!({"metadata": {"name": name}, "spec": {"failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": rules(json!(["CREATE"]))}, "mutations": [mutation]}}),
        )
        .await;
        api.post(
            &format!("{BASE}/mutatingadmissionpolicybindings"),
            json!({"metadata": {"name": name}, "spec": {"policyName": name, "matchResources": in_namespace(&ns)}}),
        )
        .await;
        until_effective(&api, &deployments, &deployment("probe", 1), |a| {
            a.as_ref().is_ok_and(|d| d.str_at(&effect) == "yes")
        })
        .await;
        let made = api.post(&deployments, deployment(name, 0)).await;
        assert_eq!(made.str_at(&effect), "yes");
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn match_conditions_of_webhooks_must_compile() {
    let api = Api::start().await;
    for (resource, kind) in [
        ("validatingwebhookconfigurations", "ValidatingWebhookConfiguration"),
        ("mutatingwebhookconfigurations", "MutatingWebhookConfiguration"),
    ] {
        let collection = format!("{BASE}/{resource}");
        let hook = |conditions: Value| {
            json!([{"name": "hook.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://127.0.0.1:1/none"}, "failurePolicy": "Ignore", "matchConditions": conditions,
            "rules": [{"apiGroups": ["example.com"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["none"]}]}])
        };
        let conditions = json!([{"name": "expression-1", "expression": "object.metadata.namespace == 'production'"}]);
        let made = api.post(&collection, json!({"kind": kind, "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "good"}, "webhooks": hook(conditions)})).await;
        assert_eq!(made["webhooks"][0].array_at(&["matchConditions"]).len(), 1);
        let two = json!([{"name": "expression-1", "expression": "object.metadata.namespace == 'production'"},
            {"name": "expression-2", "expression": "object.metadata.namespace == 'staging'"}]);
        let updated = api.update(&format!("{collection}/good"), |w| w["webhooks"] = hook(two.clone())).await;
        assert_eq!(updated["webhooks"][0].array_at(&["matchConditions"]).len(), 2);
        let bad = json!([{"name": "invalid-expression-1", "expression": "... [] bad expression"}, {"name": "ok", "expression": "true"}]);
        let refused = api
            .try_post(&collection, &json!({"metadata": {"name": "bad"}, "webhooks": hook(bad)}))
            .await
            .expect_err("it does not compile");
        assert!(refused.code == 422 && refused.message.contains("compilation failed"), "{}", refused.message);
        api.delete(&format!("{collection}/good")).await;
    }
    api.stop().await;
}
