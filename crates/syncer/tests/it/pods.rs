//! What a tenant sees of its pods and what the host has, end to end.

use apimachinery::json;

use crate::cluster::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_on_the_host_with_what_it_refers_to_and_goes_again() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let syncer = tenant.sync(&host).await;

    tenant.api.create(&CONFIG_MAPS, "default", json!({"metadata": {"name": "settings"}, "data": {"a": "1"}})).await;
    tenant.api.create(&CONFIG_MAPS, "default", json!({"metadata": {"name": "unused"}, "data": {"a": "1"}})).await;
    tenant.api.create(&SECRETS, "default", json!({"metadata": {"name": "password"}, "stringData": {"p": "x"}})).await;
    let mut web = pod(
        "web",
        json!([{
            "name": "app", "image": "nginx",
            "envFrom": [{"configMapRef": {"name": "settings"}}],
            "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        }]),
    );
    web["spec"]["volumes"] = json!([{"name": "p", "secret": {"secretName": "password"}}]);
    tenant.api.create(&PODS, "default", web).await;

    let on_host = tenant.on_host("default", "web");
    let running = eventually("the virtual pod runs", || async {
        let pod = tenant.api.get(&PODS, "default", "web").await?;
        (pod.str_at(&["status", "phase"]) == "Running").then_some(pod)
    })
    .await;
    let host_pod = host_api.get(&PODS, &on_host.namespace, &on_host.name).await.expect("the host pod exists");
    assert_eq!(running["status"]["podIP"], host_pod["status"]["podIP"]);
    assert_eq!(running["spec"]["nodeName"], host_pod["spec"]["nodeName"]);
    let node = running.str_at(&["spec", "nodeName"]).to_owned();
    assert!(tenant.api.get(&NODES, "", &node).await.is_some(), "the pod's node is shown");
    assert_eq!(
        host_pod.str_at(&["metadata", "annotations", "vcluster.loft.sh/object-name"]),
        "web",
        "the host pod says where it comes from"
    );
    for (resource, name) in [(&CONFIG_MAPS, "settings"), (&SECRETS, "password")] {
        let name = tenant.on_host("default", name);
        eventually("what the pod refers to is on the host", || async {
            host_api.get(resource, &name.namespace, &name.name).await
        })
        .await;
    }
    let unused = tenant.on_host("default", "unused");
    assert!(host_api.get(&CONFIG_MAPS, &unused.namespace, &unused.name).await.is_none());

    // Data flows both ways.
    let settings = tenant.on_host("default", "settings");
    tenant.api.patch(&CONFIG_MAPS, "default", "settings", json!({"data": {"a": "2"}})).await;
    eventually("the tenant's change is on the host", || async {
        let map = host_api.get(&CONFIG_MAPS, &settings.namespace, &settings.name).await?;
        (map.str_at(&["data", "a"]) == "2").then_some(())
    })
    .await;
    host_api.patch(&CONFIG_MAPS, &settings.namespace, &settings.name, json!({"data": {"b": "3"}})).await;
    eventually("the host's change is shown", || async {
        let map = tenant.api.get(&CONFIG_MAPS, "default", "settings").await?;
        (map.str_at(&["data", "b"]) == "3").then_some(())
    })
    .await;

    let (requests, _) = syncer.requests();
    assert!(requests <= 4 + 3, "a pod, two objects it refers to and two changes took {requests} host requests");

    tenant.api.delete(&PODS, "default", "web").await;
    eventually("nothing of the pod is left", || async {
        let pods = host_api.list(&PODS, &tenant.host_namespace).await;
        let virtual_pods = tenant.api.list(&PODS, "default").await;
        let maps = host_api.get(&CONFIG_MAPS, &settings.namespace, &settings.name).await;
        let nodes = tenant.api.list(&NODES, "").await;
        (pods.is_empty() && virtual_pods.is_empty() && maps.is_none() && nodes.is_empty()).then_some(())
    })
    .await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_on_the_host_is_deleted_in_the_virtual_cluster() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let syncer = tenant.sync(&host).await;
    tenant.api.create(&PODS, "default", simple_pod("web")).await;
    let on_host = tenant.on_host("default", "web");
    eventually("the virtual pod runs", || async {
        let pod = tenant.api.get(&PODS, "default", "web").await?;
        (pod.str_at(&["status", "phase"]) == "Running").then_some(())
    })
    .await;
    host_api.delete(&PODS, &on_host.namespace, &on_host.name).await;
    eventually("the virtual pod is gone", || async {
        tenant.api.get(&PODS, "default", "web").await.is_none().then_some(())
    })
    .await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_bound_and_events_are_told() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let syncer = tenant.sync(&host).await;
    tenant
        .api
        .create(
            &CLAIMS,
            "default",
            json!({"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
                "storageClassName": "standard"}}),
        )
        .await;
    let mut db = simple_pod("db");
    db["spec"]["volumes"] = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]);
    tenant.api.create(&PODS, "default", db).await;
    let on_host = tenant.on_host("default", "data");
    eventually("the claim is on the host", || async { host_api.get(&CLAIMS, &on_host.namespace, &on_host.name).await })
        .await;
    let claim = eventually("the virtual claim is bound", || async {
        let claim = tenant.api.get(&CLAIMS, "default", "data").await?;
        (claim.str_at(&["status", "phase"]) == "Bound").then_some(claim)
    })
    .await;
    let volume = claim.str_at(&["spec", "volumeName"]).to_owned();
    eventually("its volume is shown", || async {
        let volume = tenant.api.get(&VOLUMES, "", &volume).await?;
        (volume.str_at(&["status", "phase"]) == "Bound").then_some(())
    })
    .await;
    // Nodes tell what they do with a pod; the tenant sees it on its own pod.
    let host_pod = tenant.on_host("default", "db");
    let told = json!({
        "metadata": {"name": (format!("{}.1", host_pod.name))}, "type": "Warning", "reason": "FailedMount",
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": (host_pod.namespace.as_str()), "name": (host_pod.name.as_str())},
        "message": (format!("cannot mount {} of {host_pod}", on_host.name)),
    });
    host_api.create(&EVENTS, &host_pod.namespace, told).await;
    let event = eventually("the event is told", || async { tenant.api.get(&EVENTS, "default", "db.1").await }).await;
    assert_eq!(event.str_at(&["message"]), "cannot mount data of default/db");
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_has_seen_what_the_tenant_wrote() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let syncer = tenant.sync(&host).await;
    tenant.api.create(&PODS, "default", simple_pod("web")).await;
    // The pod's own generation, whatever the host counts.
    let seen = || async {
        let pod = tenant.api.get(&PODS, "default", "web").await?;
        let (generation, observed) =
            (pod.at(&["metadata", "generation"]).cloned()?, pod.at(&["status", "observedGeneration"]).cloned()?);
        (pod.str_at(&["status", "phase"]) == "Running" && generation == observed).then_some(generation)
    };
    let before = eventually("the pod runs and was seen", seen).await;
    let on_host = tenant.on_host("default", "web");
    // A change of the host alone is none of the tenant's.
    let tolerate = async |api: &Api, namespace: &str, name: &str, key: &str| {
        let pod = api.get(&PODS, namespace, name).await.unwrap_or_default();
        let mut list = pod.array_at(&["spec", "tolerations"]).to_vec();
        list.push(json!({"key": key, "operator": "Exists"}));
        api.patch(&PODS, namespace, name, json!({"spec": {"tolerations": list}})).await;
    };
    tolerate(&host_api, &on_host.namespace, &on_host.name, "host").await;
    tolerate(&tenant.api, "default", "web", "tenant").await;
    eventually("the change is on the host and was seen there", || async {
        let pod = host_api.get(&PODS, &on_host.namespace, &on_host.name).await?;
        let has = |key: &str| pod.array_at(&["spec", "tolerations"]).iter().any(|t| t.str_at(&["key"]) == key);
        let after = seen().await?;
        (has("tenant") && has("host") && after != before).then_some(())
    })
    .await;
    syncer.shutdown().await;
}
