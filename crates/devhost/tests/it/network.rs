//! Services and what stands behind them.

use apimachinery::{Value, json};

use crate::api::*;

fn addresses(slices: &Value) -> Vec<String> {
    let mut all: Vec<String> = slices
        .array_at(&["items"])
        .iter()
        .flat_map(|s| s.array_at(&["endpoints"]))
        .flat_map(|e| e.array_at(&["addresses"]))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_is_a_service_of_its_own() {
    let api = Api::start().await;
    let service = api.get("/api/v1/namespaces/default/services/kubernetes").await;
    let port = &service["spec"]["ports"][0];
    assert_eq!((port.str_at(&["name"]), port["port"].as_i64()), ("https", Some(443)));
    let endpoints = api
        .until("endpoints", "/api/v1/namespaces/default/endpoints/kubernetes", |e| !e.array_at(&["subsets"]).is_empty())
        .await;
    assert_eq!(endpoints["subsets"][0]["ports"][0].str_at(&["name"]), "https");
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name%3Dkubernetes";
    let slices = api.until("a slice", slices, |l| !addresses(l).is_empty()).await;
    assert_eq!(addresses(&slices)[0], endpoints["subsets"][0]["addresses"][0].str_at(&["ip"]));
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_and_slices_follow_selectors_and_pods() {
    let api = Api::start().await;
    let ns = api.namespace("endpoints").await;
    let services = format!("/api/v1/namespaces/{ns}/services");
    let slices = |name: &str| {
        format!(
            "/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices?labelSelector=kubernetes.io/service-name%3D{name}"
        )
    };
    let endpoints = |name: &str| format!("/api/v1/namespaces/{ns}/endpoints/{name}");
    // A selector that matches nothing has empty ones, which go with the Service.
    api.post(
        &services,
        json!({"metadata": {"name": "empty"}, "spec": {"selector": {"does": "not-match"}, "ports": [{"port": 80}]}}),
    )
    .await;
    api.until("Endpoints", &endpoints("empty"), |e| e.array_at(&["subsets"]).is_empty()).await;
    let empty = api.until_count("a slice", &slices("empty"), 1).await;
    assert!(addresses(&empty).is_empty());
    assert_eq!(empty["items"][0]["metadata"]["ownerReferences"][0].str_at(&["name"]), "empty");
    api.delete(&format!("{services}/empty")).await;
    api.until_gone(&endpoints("empty")).await;
    api.until_count("no slice", &slices("empty"), 0).await;
    // Two pods, three Services: one for each, by name and by number, one for both.
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    for (name, port) in [("pod1", 8080), ("pod2", 8090)] {
        api.post(&pods, json!({"metadata": {"name": name, "labels": {"foo": "bar", name: "bar"}}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "web", "ports": [{"name": "example-name", "containerPort": port}]}]}})).await;
    }
    for (name, selector, target) in [
        ("svc1", json!({"pod1": "bar"}), Value::from("example-name")),
        ("svc2", json!({"pod2": "bar"}), Value::from(8090)),
        ("svc3", json!({"foo": "bar"}), Value::from("example-name")),
    ] {
        api.post(
            &services,
            json!({"metadata": {"name": name}, "spec": {"selector": selector, "publishNotReadyAddresses": true,
            "ports": [{"name": "example-name", "port": 80, "targetPort": target}]}}),
        )
        .await;
    }
    let ip = async |name: &str| {
        api.until("an address", &format!("{pods}/{name}"), |p| condition(p, "Ready") == "True")
            .await
            .str_at(&["status", "podIP"])
            .to_owned()
    };
    let (one, two) = (ip("pod1").await, ip("pod2").await);
    let mut both = vec![one.clone(), two.clone()];
    both.sort_unstable();
    for (name, want) in [("svc1", vec![one.clone()]), ("svc2", vec![two.clone()]), ("svc3", both)] {
        api.until(name, &slices(name), |l| addresses(l) == want).await;
        let found = api
            .until(name, &endpoints(name), |e| {
                e.array_at(&["subsets"]).iter().map(|s| s.array_at(&["addresses"]).len()).sum::<usize>() == want.len()
            })
            .await;
        for subset in found.array_at(&["subsets"]) {
            let port = subset["ports"][0]["port"].as_i64();
            let ip = subset["addresses"][0].str_at(&["ip"]);
            assert_eq!(port, Some(if ip == one { 8080 } else { 8090 }), "{name}");
        }
    }
    // A pod that goes leaves all of them.
    api.delete(&format!("{pods}/pod1")).await;
    api.until("svc1 is empty", &slices("svc1"), |l| addresses(l).is_empty()).await;
    api.until("svc3 has one", &slices("svc3"), |l| addresses(l) == [two.clone()]).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_written_endpoints_are_mirrored_through_their_life() {
    let api = Api::start().await;
    let ns = api.namespace("mirrored").await;
    api.post(
        &format!("/api/v1/namespaces/{ns}/services"),
        json!({"metadata": {"name": "custom"}, "spec": {"ports": [{"name": "example", "port": 80}]}}),
    )
    .await;
    let endpoints = format!("/api/v1/namespaces/{ns}/endpoints");
    let subset = |ip: &str| json!([{"addresses": [{"ip": ip}], "ports": [{"name": "example", "port": 80}]}]);
    api.post(&endpoints, json!({"metadata": {"name": "custom"}, "subsets": subset("10.1.2.3")})).await;
    let slices = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices?labelSelector=kubernetes.io/service-name%3Dcustom"
    );
    let mirrored = api.until("mirrored", &slices, |l| addresses(l) == ["10.1.2.3"]).await;
    assert_eq!(
        mirrored["items"][0].str_at(&["metadata", "labels", "endpointslice.kubernetes.io/managed-by"]),
        "endpointslicemirroring-controller.k8s.io"
    );
    api.merge(&format!("{endpoints}/custom"), json!({"subsets": subset("10.2.3.4")})).await;
    api.until("follows", &slices, |l| addresses(l) == ["10.2.3.4"]).await;
    api.delete(&format!("{endpoints}/custom")).await;
    api.until_count("gone", &slices, 0).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_change_their_type_and_status_and_go_together() {
    let api = Api::start().await;
    let ns = api.namespace("services").await;
    let services = format!("/api/v1/namespaces/{ns}/services");
    let version = version_of(&api.get(&services).await).to_owned();
    let mut events = api.watch(&services, &version, "&labelSelector=test-service-static%3Dtrue").await;
    api.post(
        &services,
        json!({"metadata": {"name": "s", "labels": {"test-service-static": "true"}},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "port": 80}]}}),
    )
    .await;
    events.until("ADDED", "s", |_| true).await;
    let status = format!("{services}/s/status");
    api.merge(&status, json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}})).await;
    let seen =
        events.until("MODIFIED", "s", |s| s.str_at(&["metadata", "annotations", "patchedstatus"]) == "true").await;
    assert_eq!(seen["status"]["loadBalancer"]["ingress"][0].str_at(&["ipMode"]), "VIP");
    api.update(&status, |s| {
        s.set_at(&["status", "conditions"], json!([{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]));
    }).await;
    events.until("MODIFIED", "s", |s| condition(s, "StatusUpdate") == "True").await;
    let found = api.get("/api/v1/services?labelSelector=test-service-static%3Dtrue").await;
    assert_eq!(name_of(&found["items"][0]), "s");
    let ip = found["items"][0].str_at(&["spec", "clusterIP"]).to_owned();
    let address = api.get(&format!("/apis/networking.k8s.io/v1/ipaddresses/{ip}")).await;
    assert_eq!(address.str_at(&["spec", "parentRef", "name"]), "s");
    // Away from the load balancer, to a name, and back to an address.
    let plain = api.merge(&format!("{services}/s"), json!({"spec": {"type": "ClusterIP"}})).await;
    assert!(
        plain["spec"]["ports"][0].get("nodePort").is_none()
            && plain.array_at(&["status", "loadBalancer", "ingress"]).is_empty(),
        "{plain}"
    );
    let named = api
        .merge(&format!("{services}/s"), json!({"spec": {"type": "ExternalName", "externalName": "foo.example.com"}}))
        .await;
    assert_eq!(named.str_at(&["spec", "clusterIP"]), "");
    api.until_gone(&format!("/apis/networking.k8s.io/v1/ipaddresses/{ip}")).await;
    let back = api.merge(&format!("{services}/s"), json!({"spec": {"type": "ClusterIP", "externalName": null}})).await;
    assert!(back.str_at(&["spec", "clusterIP"]).starts_with("10."), "{back}");
    events.until("MODIFIED", "s", |s| s.str_at(&["spec", "type"]) == "ExternalName").await;
    for (name, label) in [("a", "e2e"), ("b", "e2e"), ("c", "other")] {
        api.post(
            &services,
            json!({"metadata": {"name": name, "labels": {"testing": label}}, "spec": {"ports": [{"port": 80}]}}),
        )
        .await;
    }
    api.delete(&format!("{services}?labelSelector=testing%3De2e")).await;
    let left = api.get(&format!("{services}?labelSelector=testing")).await;
    assert_eq!(left.array_at(&["items"]).iter().map(name_of).collect::<Vec<_>>(), ["c"]);
    api.stop().await;
}
