//! Definitions that change while they are in use: what watches, stored objects and writers see of it.

use apiserver::UserInfo;
use futures::StreamExt;
use kube::api::{Api, DynamicObject, WatchEvent, WatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use crate::crd::{APPLY, DEFINITIONS, MERGE, PATIENCE, ask, established, eventually, get, post};
use crate::server as started;

const THINGS: &str = "/apis/example.com/v2/namespaces/default/things";

/// Two versions, the second one stored; `fields` are the members of its spec, all known to the first one too.
fn definition(fields: &Value, group: &str) -> Value {
    let schema = |fields: &Value| json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}}});
    let plain = |fields: &Value| -> Value {
        let names = fields.as_object().into_iter().flat_map(|map| map.keys());
        names.map(|name| (name.clone(), json!({"type": "string"}))).collect()
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("things.{group}")},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [
                {"name": "v1", "served": true, "storage": false, "schema": schema(&plain(fields))},
                {"name": "v2", "served": true, "storage": true, "schema": schema(fields)}]}})
}

fn thing(spec: &Value) -> Value {
    json!({"apiVersion": "example.com/v2", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_objects_are_read_under_the_schema_of_today() {
    let server = started().await;
    let path = format!("{DEFINITIONS}/things.example.com");
    post(&server, DEFINITIONS, definition(&json!({"a": {"type": "string"}, "old": {"type": "string"}}), "example.com"))
        .await
        .unwrap();
    eventually(&server, &path, established).await;
    post(&server, THINGS, thing(&json!({"a": "1", "old": "x"}))).await.unwrap();

    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v2", "Thing"));
    let api = Api::<DynamicObject>::all_with(server.kube_client(UserInfo::admin()), &kind);
    let mut watch = api.watch(&WatchParams::default().disable_bookmarks(), "0").await.unwrap().boxed();
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Added(_)))));

    // A field goes, and one with a default comes, in the version that is stored.
    let changed =
        definition(&json!({"a": {"type": "string"}, "new": {"type": "string", "default": "n"}}), "example.com");
    ask(&server, "PATCH", &path, MERGE, Some(&json!({"spec": changed["spec"]}))).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, async { while watch.next().await.is_some() {} }).await;
    end.expect("a watch ends with the schema it began under");
    for version in ["v1", "v2"] {
        let path = format!("{THINGS}/a").replace("v2", version);
        let read = eventually(&server, &path, |object| object["spec"].get("old").is_none()).await;
        assert_eq!(read["spec"], json!({"a": "1", "new": "n"}), "{version}");
        let list = get(&server, &THINGS.replace("v2", version)).await.unwrap();
        assert_eq!(list["items"][0]["spec"], json!({"a": "1", "new": "n"}), "{version}");
    }
    // A field that the schema does not know any more is not read from what was stored before, without any default too.
    let fewer = definition(&json!({"a": {"type": "string"}}), "example.com");
    ask(&server, "PATCH", &path, MERGE, Some(&json!({"spec": fewer["spec"]}))).await.unwrap();
    eventually(&server, &format!("{THINGS}/a"), |object| object["spec"] == json!({"a": "1"})).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_created_while_a_definition_goes_nor_outside_of_its_scope() {
    let server = started().await;
    let path = format!("{DEFINITIONS}/things.example.com");
    let mut crd = definition(&json!({"a": {"type": "string"}}), "example.com");
    crd["metadata"]["finalizers"] = json!(["example.com/wait"]);
    post(&server, DEFINITIONS, crd).await.unwrap();
    eventually(&server, &path, established).await;
    let everywhere = "/apis/example.com/v2/things";
    for (method, path) in [("POST", everywhere), ("DELETE", everywhere)] {
        let (code, _) = ask(&server, method, path, "application/json", Some(&thing(&json!({})))).await.unwrap_err();
        assert_eq!(code, 404, "{method}");
    }
    get(&server, everywhere).await.expect("lists are for all namespaces");

    ask(&server, "DELETE", &path, "application/json", None).await.unwrap();
    let terminating = "create not allowed while custom resource definition is terminating";
    let named = format!("{THINGS}/a");
    for (method, path, kind, code) in [("POST", THINGS, "application/json", 405), ("PATCH", named.as_str(), APPLY, 403)]
    {
        // The condition is there before the definition is looked at again.
        let refusal = async {
            loop {
                let path = format!("{path}?dryRun=All&fieldManager=m");
                match ask(&server, method, &path, kind, Some(&thing(&json!({})))).await {
                    Err(refusal) => return refusal,
                    Ok(_) => tokio::task::yield_now().await,
                }
            }
        };
        let (found, message) = tokio::time::timeout(PATIENCE, refusal).await.expect("a refusal");
        assert_eq!(found, code, "{message}");
        assert!(message.ends_with(terminating), "{message}");
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_become_free_are_accepted_and_approvals_are_told() {
    let server = started().await;
    let fields = json!({"a": {"type": "string"}});
    post(&server, DEFINITIONS, definition(&fields, "example.com")).await.unwrap();
    eventually(&server, &format!("{DEFINITIONS}/things.example.com"), established).await;
    let mut second = definition(&fields, "example.com");
    second["metadata"]["name"] = json!("others.example.com");
    second["spec"]["names"] = json!({"plural": "others", "kind": "Thing"});
    post(&server, DEFINITIONS, second).await.unwrap();
    let second = format!("{DEFINITIONS}/others.example.com");
    let condition = |kind: &'static str, status: &'static str| {
        move |definition: &Value| {
            let conditions = definition["status"]["conditions"].as_array();
            conditions.is_some_and(|c| c.iter().any(|c| c["type"] == kind && c["status"] == status))
        }
    };
    eventually(&server, &second, condition("NamesAccepted", "False")).await;
    ask(&server, "DELETE", &format!("{DEFINITIONS}/things.example.com"), "application/json", None).await.unwrap();
    eventually(&server, &second, condition("Established", "True")).await;

    let mut approved = definition(&fields, "sigs.k8s.io");
    approved["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "https://github.com/x/y/pull/1"});
    post(&server, DEFINITIONS, approved).await.unwrap();
    let path = format!("{DEFINITIONS}/things.sigs.k8s.io");
    eventually(&server, &path, condition("KubernetesAPIApprovalPolicyConformant", "True")).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_in_other_versions_keep_their_fields_through_status_and_scale() {
    let server = started().await;
    let path = format!("{DEFINITIONS}/things.example.com");
    let mut crd = definition(&json!({"a": {"type": "string"}}), "example.com");
    for version in crd["spec"]["versions"].as_array_mut().unwrap() {
        let properties = &mut version["schema"]["openAPIV3Schema"]["properties"];
        properties["spec"]["properties"]["replicas"] = json!({"type": "integer"});
        properties["status"] = json!({"type": "object", "properties": {"replicas": {"type": "integer"}}});
        version["subresources"] = json!({"status": {},
            "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}});
    }
    post(&server, DEFINITIONS, crd).await.unwrap();
    eventually(&server, &path, established).await;
    let v1 = format!("{THINGS}/a").replace("v2", "v1");
    let body = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"a": "1", "replicas": 1}});
    ask(&server, "PATCH", &format!("{v1}?fieldManager=owner"), APPLY, Some(&body)).await.unwrap();
    let owned = async || {
        let object = get(&server, &v1).await.unwrap();
        let entries = object["metadata"]["managedFields"].as_array().unwrap().clone();
        let own = entries.into_iter().find(|entry| entry["manager"] == "owner").expect("it owns something");
        own["fieldsV1"].clone()
    };
    let before = owned().await;
    let change = json!({"spec": {"a": "not through here"}, "status": {"replicas": 1}});
    ask(&server, "PATCH", &format!("{THINGS}/a/status"), MERGE, Some(&change)).await.unwrap();
    assert_eq!(owned().await, before);
    ask(&server, "PATCH", &format!("{THINGS}/a/scale"), MERGE, Some(&json!({"spec": {"replicas": 2}}))).await.unwrap();
    assert_eq!(owned().await, json!({"f:spec": {"f:a": {}}}), "the number has another owner now");
    server.shutdown().await;
}
