//! The API operations of every kind, as the conformance tests go through them: discovery, create, get, list in a namespace
//! and over all, watch, patch, update, status, delete, delete of a collection.

use apimachinery::{Value, json};

use crate::api::*;

/// One kind: where it is, what an object looks like (`$I`: a number of its own, `$N`: the namespace), and what can be
/// written to its status.
struct Kind {
    group_version: &'static str,
    resource: &'static str,
    namespaced: bool,
    body: &'static str,
    /// `""` when there is no status subresource.
    status: &'static str,
}

const fn namespaced(
    group_version: &'static str,
    resource: &'static str,
    body: &'static str,
    status: &'static str,
) -> Kind {
    Kind { group_version, resource, namespaced: true, body, status }
}

const fn cluster(
    group_version: &'static str,
    resource: &'static str,
    body: &'static str,
    status: &'static str,
) -> Kind {
    Kind { group_version, resource, namespaced: false, body, status }
}

const PATCHED_CONDITION: &str = r#"{"conditions":[{"type":"StatusUpdate","status":"True","reason":"E2E","message":"set by a test",
    "lastTransitionTime":"2026-01-01T00:00:00Z"}]}"#;
const CSR: &str = r#"{"spec":{"signerName":"example.com/s","usages":["client auth"],"request":"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlJQ2JEQ0NBVlFDQVFBd0p6RVBNQTBHQTFVRUNnd0daMjlzWkdWdU1SUXdFZ1lEVlFRRERBdG5iMnhrWlc0dApkWE5sY2pDQ0FTSXdEUVlKS29aSWh2Y05BUUVCQlFBRGdnRVBBRENDQVFvQ2dnRUJBS1M4TXhlUElrdEFFWVFUCit0bDUyL1YzRUQ4SSsvVExaMUtrNmF6bzl6aUNSekQzTU83MlNGczZrZXlCTUY3QUw3Y1pPNm5RQkphT1JWZEYKN3o5ZEhoNmord01vOHBRbWdBRU5TM3Z4V2xMbWVoNyt2Z3dqaERVenJtN2xZejBLRHdkT3BCL2ZkV1Z4SFg4TwpDUEg1QzQ3VjlValdzMXQwZmg1NUhhRzdIcmdJMjk2WGppdXBmQ05XeTVkRXpRZlAwVlJGVzVLbEZlb2x2L3FhCndPUlZMdU9aSDFsY09zcGV2cmN5SkNxbmRYMEVKbnVRcU85VlFoK2VKZDZyOW80NlhDb2FuOXh1K28vZHcvdjUKWk5BWDNLTUkzM1RSUVBhcW41a2I2bmZmbTJFYko0V0JyR1RneURCVGxpM0ozWjJaUEgrV0tVZXQ4eHZkNUg1WQp6TWljQ1NzQ0F3RUFBYUFBTUEwR0NTcUdTSWIzRFFFQkN3VUFBNElCQVFBM2R6SnUveUVGdDJYdkROd0dQMWx2CnU4TGhhVlZqT0FOTE9kUUNFK2lvRHY5ZlR2RDhTTENkWEc5TUp2VTE5cXROTGJCRnlnZDVQbU5ObFFhUWpuRjUKRnc1MmNHL2l6aFBXbTV5Q0tIdnhKUkRhL2ZHRExKbnNYb3pqU0pMci9NVDhMOTBTc0k5WUpEdFo5WXc4aVZLNgpOMktMZTN3YWk0cHVlWDM1T0Y2MGdtY3c4QXdGMzJvTnhVMU52ZHhqYUhiZ01HMGZiYkRZSnZxMmU3MWRFMk5VCnhVaXpQc2QwYVhtS2REY2JYYTZLR3lNU0FqRnNGcEMvWHY3ZWVvSnl1eitwUjY0UVdXbytzRG1DSUFGKzdKRFEKQlN3VVA3dCt1K1NoL3F4dzB2UkdsNHEwSDBCb2hyY01xM0ZZN0xjVzJUVHZ0Vi9iVmZZc294QWdJKzNpc1BKSgotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K"}}"#;

#[rustfmt::skip]
const CORE: &[Kind] = &[
    namespaced("v1", "configmaps", r#"{"data":{"key":"value"}}"#, ""),
    namespaced("v1", "secrets", r#"{"stringData":{"key":"value"}}"#, ""),
    namespaced("v1", "serviceaccounts", r#"{"automountServiceAccountToken":false}"#, ""),
    namespaced("v1", "services", r#"{"spec":{"ports":[{"port":80}],"selector":{"none":"such"}}}"#, PATCHED_CONDITION),
    namespaced("v1", "endpoints", r#"{"subsets":[{"addresses":[{"ip":"10.0.0.24"}],"ports":[{"name":"http","port":80}]}]}"#, ""),
    namespaced("v1", "events", r#"{"involvedObject":{"namespace":"$N","name":"x","kind":"Pod"},"reason":"Test","message":"m","type":"Normal","count":1}"#, ""),
    namespaced("v1", "limitranges", r#"{"spec":{"limits":[{"type":"Pod","max":{"cpu":"10"}}]}}"#, ""),
    namespaced("v1", "resourcequotas", r#"{"spec":{"hard":{"count/nothing.example.com":"5"}}}"#, r#"{"hard":{"count/nothing.example.com":"5"},"used":{"count/nothing.example.com":"1"}}"#),
    namespaced("v1", "podtemplates", r#"{"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}"#, ""),
    namespaced("v1", "replicationcontrollers", r#"{"spec":{"replicas":0,"selector":{"a":"b"},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#, PATCHED_CONDITION),
    namespaced("v1", "persistentvolumeclaims", r#"{"spec":{"accessModes":["ReadWriteOnce"],"storageClassName":"none","resources":{"requests":{"storage":"1Gi"}}}}"#, PATCHED_CONDITION),
    cluster("v1", "persistentvolumes", r#"{"spec":{"accessModes":["ReadWriteOnce"],"capacity":{"storage":"1Gi"},"storageClassName":"other","hostPath":{"path":"/tmp/a"}}}"#, r#"{"message":"set by a test","reason":"E2E"}"#),
    cluster("v1", "nodes", r#"{"spec":{"unschedulable":true}}"#, r#"{"capacity":{"example.com/fakecpu":"7"}}"#),
    cluster("v1", "namespaces", "{}", PATCHED_CONDITION),
];

#[rustfmt::skip]
const WORKLOADS: &[Kind] = &[
    namespaced("apps/v1", "controllerrevisions", r#"{"revision":1,"data":{"a":1}}"#, ""),
    namespaced("apps/v1", "daemonsets", r#"{"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"nodeSelector":{"none":"such"},"containers":[{"name":"c","image":"i"}]}}}}"#, PATCHED_CONDITION),
    namespaced("apps/v1", "deployments", r#"{"spec":{"replicas":0,"selector":{"matchLabels":{"a":"b$I"}},"template":{"metadata":{"labels":{"a":"b$I"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#, PATCHED_CONDITION),
    namespaced("apps/v1", "replicasets", r#"{"spec":{"replicas":0,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#, PATCHED_CONDITION),
    namespaced("apps/v1", "statefulsets", r#"{"spec":{"replicas":0,"serviceName":"s","selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#, PATCHED_CONDITION),
    namespaced("batch/v1", "cronjobs", r#"{"spec":{"schedule":"0 0 1 1 *","jobTemplate":{"spec":{"template":{"spec":{"restartPolicy":"OnFailure","containers":[{"name":"c","image":"i"}]}}}}}}"#, r#"{"lastScheduleTime":"2026-01-01T00:00:00Z"}"#),
    namespaced("batch/v1", "jobs", r#"{"spec":{"suspend":true,"template":{"spec":{"restartPolicy":"OnFailure","containers":[{"name":"c","image":"i"}]}}}}"#, r#"{"conditions":[{"type":"CustomConditionType","status":"True","reason":"E2E","message":"set by a test","lastTransitionTime":"2026-01-01T00:00:00Z"}]}"#),
    namespaced("autoscaling/v2", "horizontalpodautoscalers", r#"{"spec":{"maxReplicas":2,"scaleTargetRef":{"kind":"Deployment","name":"none","apiVersion":"apps/v1"}}}"#, r#"{"currentReplicas":1}"#),
    namespaced("policy/v1", "poddisruptionbudgets", r#"{"spec":{"minAvailable":1,"selector":{"matchLabels":{"a":"b"}}}}"#, PATCHED_CONDITION),
    namespaced("coordination.k8s.io/v1", "leases", r#"{"spec":{"holderIdentity":"h","leaseDurationSeconds":30}}"#, ""),
    namespaced("events.k8s.io/v1", "events", r#"{"eventTime":"2026-01-01T00:00:00.000000Z","reportingController":"test","reportingInstance":"i","action":"Do","reason":"Test","type":"Normal","note":"n","regarding":{"namespace":"$N","name":"x","kind":"Pod"}}"#, ""),
    cluster("scheduling.k8s.io/v1", "priorityclasses", r#"{"value":$I,"description":"d"}"#, ""),
    cluster("node.k8s.io/v1", "runtimeclasses", r#"{"handler":"h"}"#, ""),
    cluster("certificates.k8s.io/v1", "certificatesigningrequests", CSR, r#"{"conditions":[{"type":"StatusUpdate","status":"True","reason":"E2E","message":"set by a test"}]}"#),
];

#[rustfmt::skip]
const NETWORK_AND_STORAGE: &[Kind] = &[
    namespaced("networking.k8s.io/v1", "ingresses", r#"{"spec":{"defaultBackend":{"service":{"name":"s","port":{"number":80}}}}}"#, r#"{"loadBalancer":{"ingress":[{"ip":"169.1.1.1"}]}}"#),
    namespaced("networking.k8s.io/v1", "networkpolicies", r#"{"spec":{"podSelector":{}}}"#, ""),
    cluster("networking.k8s.io/v1", "ingressclasses", r#"{"spec":{"controller":"example.com/c"}}"#, ""),
    cluster("networking.k8s.io/v1", "servicecidrs", r#"{"spec":{"cidrs":["10.1$I.0.0/24"]}}"#, PATCHED_CONDITION),
    cluster("networking.k8s.io/v1", "ipaddresses", r#"{"metadata":{"name":"10.217.0.1$I"},"spec":{"parentRef":{"resource":"services","namespace":"default","name":"kubernetes"}}}"#, ""),
    namespaced("discovery.k8s.io/v1", "endpointslices", r#"{"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"]}],"ports":[]}"#, ""),
    cluster("storage.k8s.io/v1", "storageclasses", r#"{"provisioner":"example.com/p"}"#, ""),
    cluster("storage.k8s.io/v1", "volumeattachments", r#"{"spec":{"attacher":"example.com","nodeName":"node-0","source":{"persistentVolumeName":"v"}}}"#, r#"{"attached":true}"#),
    cluster("storage.k8s.io/v1", "csidrivers", r#"{"spec":{"attachRequired":false}}"#, ""),
    cluster("storage.k8s.io/v1", "csinodes", r#"{"spec":{"drivers":[{"name":"example.com","nodeID":"n","topologyKeys":[]}]}}"#, ""),
    namespaced("storage.k8s.io/v1", "csistoragecapacities", r#"{"storageClassName":"s","capacity":"1Gi"}"#, ""),
    cluster("storage.k8s.io/v1", "volumeattributesclasses", r#"{"driverName":"example.com","parameters":{"iops":"1"}}"#, ""),
    cluster("resource.k8s.io/v1", "deviceclasses", "{}", ""),
    namespaced("resource.k8s.io/v1", "resourceclaims", r#"{"spec":{"devices":{"requests":[{"name":"r","exactly":{"deviceClassName":"c"}}]}}}"#, r#"{"allocation":{"devices":{"results":[{"request":"r","driver":"example.com","pool":"p","device":"d"}]}}}"#),
    namespaced("resource.k8s.io/v1", "resourceclaimtemplates", r#"{"spec":{"spec":{"devices":{"requests":[{"name":"r","exactly":{"deviceClassName":"c"}}]}}}}"#, ""),
    cluster("resource.k8s.io/v1", "resourceslices", r#"{"spec":{"driver":"example.com","nodeName":"none","pool":{"name":"p","resourceSliceCount":1},"devices":[{"name":"d"}]}}"#, ""),
];

#[rustfmt::skip]
const SERVER: &[Kind] = &[
    cluster("flowcontrol.apiserver.k8s.io/v1", "flowschemas", r#"{"spec":{"matchingPrecedence":9999,"priorityLevelConfiguration":{"name":"global-default"},
        "rules":[{"subjects":[{"kind":"User","user":{"name":"example"}}],"nonResourceRules":[{"verbs":["get"],"nonResourceURLs":["/healthz"]}]}]}}"#, PATCHED_CONDITION),
    cluster("flowcontrol.apiserver.k8s.io/v1", "prioritylevelconfigurations", r#"{"spec":{"type":"Limited","limited":{"nominalConcurrencyShares":2,"limitResponse":{"type":"Reject"}}}}"#, PATCHED_CONDITION),
    cluster("admissionregistration.k8s.io/v1", "validatingadmissionpolicies", r#"{"spec":{"failurePolicy":"Ignore","matchConstraints":{"resourceRules":[{"apiGroups":["example.com"],"apiVersions":["*"],"operations":["*"],"resources":["*"]}]},"validations":[{"expression":"true"}]}}"#, PATCHED_CONDITION),
    cluster("admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings", r#"{"spec":{"policyName":"none","validationActions":["Deny"]}}"#, ""),
    cluster("admissionregistration.k8s.io/v1", "mutatingadmissionpolicies", r#"{"spec":{"failurePolicy":"Ignore","reinvocationPolicy":"Never","matchConstraints":{"resourceRules":[{"apiGroups":["example.com"],"apiVersions":["*"],"operations":["CREATE"],"resources":["*"]}]},
        "mutations":[{"patchType":"JSONPatch","jsonPatch":{"expression":"[JSONPatch{op: \"add\", path: \"/metadata/labels\", value: {}}]"}}]}}"#, ""),
    cluster("admissionregistration.k8s.io/v1", "mutatingadmissionpolicybindings", r#"{"spec":{"policyName":"none"}}"#, ""),
    cluster("admissionregistration.k8s.io/v1", "validatingwebhookconfigurations", r#"{"webhooks":[]}"#, ""),
    cluster("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations", r#"{"webhooks":[]}"#, ""),
    namespaced("rbac.authorization.k8s.io/v1", "roles", r#"{"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}"#, ""),
    namespaced("rbac.authorization.k8s.io/v1", "rolebindings", r#"{"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"r"},"subjects":[]}"#, ""),
    cluster("rbac.authorization.k8s.io/v1", "clusterroles", r#"{"rules":[]}"#, ""),
    cluster("rbac.authorization.k8s.io/v1", "clusterrolebindings", r#"{"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"r"},"subjects":[]}"#, ""),
];

fn base(group_version: &str) -> String {
    if group_version.contains('/') { format!("/apis/{group_version}") } else { format!("/api/{group_version}") }
}

async fn operations(api: &Api, kind: &Kind, namespace: &str) {
    let (base, resource) = (base(kind.group_version), kind.resource);
    // Discovery.
    let listed = api.get(&base).await;
    let entry = listed.array_at(&["resources"]).iter().find(|r| r.str_at(&["name"]) == resource);
    let entry = entry.unwrap_or_else(|| panic!("{resource} is not in {base}")).clone();
    assert_eq!(entry["namespaced"], kind.namespaced, "{resource}");
    for verb in ["create", "get", "list", "watch", "patch", "update", "delete"] {
        assert!(entry.array_at(&["verbs"]).iter().any(|v| *v == verb), "{resource}: {verb}");
    }
    let all = format!("{base}/{resource}");
    let collection = if kind.namespaced { format!("{base}/namespaces/{namespace}/{resource}") } else { all.clone() };
    let selected = format!("labelSelector=special%3D{resource}");

    // Create, get, list.
    let mut names = Vec::new();
    for i in 0..3 {
        let text = kind.body.replace("$I", &i.to_string()).replace("$N", namespace);
        let mut body = Value::from_slice(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
        body.set_at(&["apiVersion"], kind.group_version.into());
        body.set_at(&["kind"], entry["kind"].clone());
        body.set_at(&["metadata", "labels", "special"], resource.into());
        if name_of(&body).is_empty() {
            body.set_at(&["metadata", "name"], format!("e2e-{resource}-{i}").into());
        }
        let created = api.post(&collection, body).await;
        assert!(!created.str_at(&["metadata", "uid"]).is_empty(), "{resource}: {created}");
        names.push(name_of(&created).to_owned());
        let got = api.get(&format!("{collection}/{}", names[i])).await;
        assert_eq!(got.str_at(&["metadata", "uid"]), created.str_at(&["metadata", "uid"]), "{resource}");
    }
    assert_eq!(api.get(&format!("{collection}?{selected}")).await.array_at(&["items"]).len(), 3, "{resource}");
    let list = api.get(&format!("{all}?{selected}")).await;
    assert_eq!(list.array_at(&["items"]).len(), 3, "{resource}, all namespaces");

    // Watch, patch, update.
    let mut events = api.watch(&all, version_of(&list), &format!("&{selected}")).await;
    let path = format!("{collection}/{}", names[0]);
    let patched = api.merge(&path, json!({"metadata": {"annotations": {"patched": "true"}}})).await;
    assert_eq!(patched.str_at(&["metadata", "annotations", "patched"]), "true", "{resource}");
    events.until("MODIFIED", &names[0], |o| o.str_at(&["metadata", "annotations", "patched"]) == "true").await;
    let updated = api.update(&path, |o| o.set_at(&["metadata", "annotations", "updated"], "true".into())).await;
    assert_eq!(updated.str_at(&["metadata", "annotations", "patched"]), "true", "{resource} keeps what it had");
    events.until("MODIFIED", &names[0], |o| o.str_at(&["metadata", "annotations", "updated"]) == "true").await;

    // Status.
    if !kind.status.is_empty() {
        let status = Value::from_slice(kind.status.as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", kind.status));
        let at = format!("{path}/status");
        let answer = api.merge(&at, json!({"status": status.clone()})).await;
        for (key, value) in status.as_object().into_iter().flat_map(|m| m.iter()) {
            let set = answer["status"][key.as_str()].to_string();
            let part = value.as_array().and_then(|a| a[0].get("type")).unwrap_or(value).to_string();
            assert!(set.contains(part.trim_matches(['{', '}'])), "{resource}: {key} is {set}");
        }
        let read = api.get(&at).await;
        assert_eq!(name_of(&read), names[0], "{resource}");
        let again =
            api.update(&at, |o| o.set_at(&["metadata", "resourceVersion"], Value::from(version_of(&o.clone())))).await;
        assert_eq!(name_of(&again), names[0], "{resource}");
    }

    // Delete, one and all.
    api.delete(&path).await;
    if kind.resource == "namespaces" {
        api.delete(&format!("{collection}/{}", names[1])).await;
        api.delete(&format!("{collection}/{}", names[2])).await;
    } else {
        events.until("DELETED", &names[0], |_| true).await;
        api.delete(&format!("{collection}?{selected}")).await;
    }
    api.until_gone(&path).await;
    api.until_count("the collection is empty", &format!("{collection}?{selected}"), 0).await;
}

async fn all_operations(kinds: &[Kind]) {
    let api = Api::start().await;
    let namespace = api.namespace("operations").await;
    for kind in kinds {
        operations(&api, kind, &namespace).await;
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn core_kinds_go_through_all_their_operations() {
    all_operations(CORE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads_go_through_all_their_operations() {
    all_operations(WORKLOADS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn network_and_storage_kinds_go_through_all_their_operations() {
    all_operations(NETWORK_AND_STORAGE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_of_the_server_itself_go_through_all_their_operations() {
    all_operations(SERVER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_are_patched_updated_and_finalized() {
    let api = Api::start().await;
    api.namespace("plain").await;
    let path = "/api/v1/namespaces/plain";
    let patched = api.merge(path, json!({"metadata": {"labels": {"testLabel": "testValue"}}})).await;
    assert_eq!(patched.str_at(&["metadata", "labels", "testLabel"]), "testValue");
    let updated = api.update(path, |o| o.set_at(&["metadata", "labels", "updated"], "yes".into())).await;
    assert_eq!(updated.str_at(&["metadata", "labels", "updated"]), "yes");
    // Status: a condition by patch, another by update.
    let status = api
        .merge(
            &format!("{path}/status"),
            json!({"status": {"conditions": [
        {"type": "StatusPatch", "status": "True", "reason": "E2E", "message": "m"}]}}),
        )
        .await;
    assert_eq!(condition(&status, "StatusPatch"), "True");
    let status = api
        .update(&format!("{path}/status"), |o| {
            o.set_at(
                &["status", "conditions"],
                json!([{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "m"}]),
            );
        })
        .await;
    assert_eq!(condition(&status, "StatusUpdate"), "True");
    // A finalizer of its own is added and taken off through `finalize`.
    let finalized = |wanted: &'static [&'static str]| {
        move |o: &mut Value| {
            o.set_at(&["spec", "finalizers"], wanted.to_vec().into());
        }
    };
    let with = api.update(path, |_| {}).await;
    let mut with = with;
    finalized(&["kubernetes", "e2e.example.com/fake"])(&mut with);
    let with = api.try_put(&format!("{path}/finalize"), &with).await.expect("a finalizer is added");
    assert!(with.array_at(&["spec", "finalizers"]).iter().any(|f| *f == "e2e.example.com/fake"));
    let mut without = api.get(path).await;
    finalized(&["kubernetes"])(&mut without);
    let without = api.try_put(&format!("{path}/finalize"), &without).await.expect("a finalizer is removed");
    assert_eq!(without.array_at(&["spec", "finalizers"]).len(), 1);
    api.delete(path).await;
    api.until_gone(path).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_created_by_put_and_a_claim_by_apply() {
    let api = Api::start().await;
    let ns = api.namespace("upserts").await;
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
        "spec": {"holderIdentity": "me", "leaseDurationSeconds": 30, "leaseTransitions": 0, "acquireTime": "2026-01-01T00:00:00.000000Z"}});
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{ns}/leases/l");
    let made = api.try_put(&path, &lease).await.expect("PUT makes a Lease");
    assert_eq!(made.str_at(&["spec", "acquireTime"]), "2026-01-01T00:00:00.000000Z");
    let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c"},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}});
    let path = format!("/apis/resource.k8s.io/v1/namespaces/{ns}/resourceclaims/c");
    let applied = api.try_patch(&format!("{path}?fieldManager=e2e"), "application/apply-patch+yaml", &claim).await;
    let applied = applied.expect("apply makes a claim");
    assert_eq!(applied["spec"]["devices"]["requests"][0]["exactly"].str_at(&["allocationMode"]), "ExactCount");
    assert!(applied.array_at(&["metadata", "managedFields"]).iter().any(|m| m.str_at(&["operation"]) == "Apply"));
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn immutable_maps_and_values_stay_as_they_are() {
    let api = Api::start().await;
    let ns = api.namespace("immutable").await;
    for (resource, kind, data) in [("configmaps", "ConfigMap", "one"), ("secrets", "Secret", "b25l")] {
        let collection = format!("/api/v1/namespaces/{ns}/{resource}");
        let empty = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "empty"}, "data": {"": "dmFsdWU="}});
        let refused = api.try_post(&collection, &empty).await.expect_err("an empty key is refused");
        assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"), "{}", refused.message);
        api.post(
            &collection,
            json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "a"}, "data": {"key": data}}),
        )
        .await;
        let path = format!("{collection}/a");
        api.merge(&path, json!({"data": {"other": data}})).await;
        api.merge(&path, json!({"immutable": true})).await;
        for change in [json!({"data": {"key": null}}), json!({"immutable": null}), json!({"immutable": false})] {
            let refused = api.try_patch(&path, MERGE, &change).await.expect_err("an immutable object does not change");
            assert_eq!(refused.code, 422, "{kind} {change}: {}", refused.message);
        }
        api.merge(&path, json!({"metadata": {"labels": {"still": "possible"}}})).await;
        api.delete(&path).await;
    }
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    for (name, value) in [("p1", 1), ("p2", 2)] {
        api.post(classes, json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value})).await;
    }
    let refused =
        api.try_patch(&format!("{classes}/p1"), MERGE, &json!({"value": 2})).await.expect_err("a value stays");
    assert_eq!(refused.code, 422, "{}", refused.message);
    let described = api.merge(&format!("{classes}/p1"), json!({"description": "updated"})).await;
    assert_eq!(described["value"], 1);
    let refused =
        api.try_delete(&format!("{classes}/system-node-critical"), None).await.expect_err("system classes stay");
    assert_eq!(refused.code, 403, "{}", refused.message);
    api.stop().await;
}
