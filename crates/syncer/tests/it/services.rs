//! Services and what belongs to them, end to end.

use apimachinery::{Value, json};
use syncer::names::NamespacedName;
use syncer::settings::ReplicatedService;

use crate::cluster::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_service_has_one_address_on_both_sides() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let syncer = tenant.sync(&host).await;
    let web = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    tenant.api.create(&SERVICES, "default", web).await;
    let on_host = tenant.on_host("default", "web");
    eventually("both sides have the host's address", || async {
        let host_service = host_api.get(&SERVICES, &on_host.namespace, &on_host.name).await?;
        let service = tenant.api.get(&SERVICES, "default", "web").await?;
        let ip = host_service.str_at(&["spec", "clusterIP"]);
        (!ip.is_empty() && service.str_at(&["spec", "clusterIP"]) == ip).then_some(())
    })
    .await;
    // Types change while it lives.
    for (change, kind) in [
        (json!({"type": "NodePort"}), "NodePort"),
        (json!({"type": "LoadBalancer"}), "LoadBalancer"),
        (json!({"type": "ClusterIP"}), "ClusterIP"),
    ] {
        tenant.api.patch(&SERVICES, "default", "web", json!({ "spec": change })).await;
        eventually(&format!("the host's type is {kind}"), || async {
            let host_service = host_api.get(&SERVICES, &on_host.namespace, &on_host.name).await?;
            let service = tenant.api.get(&SERVICES, "default", "web").await?;
            let ports = |s: &apimachinery::Value| s.array_at(&["spec", "ports"])[0]["nodePort"].clone();
            (host_service.str_at(&["spec", "type"]) == kind && ports(&service) == ports(&host_service)).then_some(())
        })
        .await;
    }
    tenant.api.delete(&SERVICES, "default", "web").await;
    eventually("the host Service is gone", || async {
        host_api.get(&SERVICES, &on_host.namespace, &on_host.name).await.is_none().then_some(())
    })
    .await;

    // The API's own Service has the control plane's address.
    eventually("the API's Service is the control plane's", || async {
        let service = tenant.api.get(&SERVICES, "default", "kubernetes").await?;
        let own = host_api.get(&SERVICES, &tenant.host_namespace, "vc").await?;
        (service["spec"]["clusterIP"] == own["spec"]["clusterIP"]).then_some(())
    })
    .await;
    // Its endpoints are the control plane's pods, also after somebody has removed them.
    let pods = json!({"metadata": {"name": "vc"},
        "subsets": [{"addresses": [{"ip": "192.0.2.9"}], "ports": [{"name": "https", "port": 8443}]}]});
    host_api.create(&ENDPOINTS, &tenant.host_namespace, pods).await;
    for round in ["made", "made again"] {
        eventually(&format!("the endpoints of the API's Service are {round}"), || async {
            let endpoints = tenant.api.get(&ENDPOINTS, "default", "kubernetes").await?;
            let slice = tenant.api.get(&SLICES, "default", "kubernetes").await?;
            let address = endpoints["subsets"][0]["addresses"][0].str_at(&["ip"]).to_owned();
            (address == "192.0.2.9"
                && slice["endpoints"][0]["addresses"] == json!(["192.0.2.9"])
                && slice["ports"][0]["port"] == json!(8443))
            .then_some(())
        })
        .await;
        tenant.api.delete(&ENDPOINTS, "default", "kubernetes").await;
        tenant.api.delete(&SLICES, "default", "kubernetes").await;
    }
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_the_tenant_writes_reach_the_host() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let syncer = tenant.sync(&host).await;
    tenant
        .api
        .create(&SERVICES, "default", json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}}))
        .await;
    tenant
        .api
        .create(
            &SLICES,
            "default",
            json!({"metadata": {"name": "db-1", "labels": {"kubernetes.io/service-name": "db"}}, "addressType": "IPv4",
                "endpoints": [{"addresses": ["192.0.2.8"]}], "ports": [{"port": 5432}]}),
        )
        .await;
    // Written together with their Service, before it has the host's address.
    let endpoints = json!({"metadata": {"name": "db"},
        "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5432}]}]});
    tenant.api.create(&ENDPOINTS, "default", endpoints).await;
    let (db, slice) = (tenant.on_host("default", "db"), tenant.on_host("default", "db-1"));
    eventually("the endpoints are on the host", || async {
        let endpoints = host_api.get(&ENDPOINTS, &db.namespace, &db.name).await?;
        endpoints.to_string().contains("192.0.2.7").then_some(())
    })
    .await;
    eventually("the slice is on the host", || async {
        let slice = host_api.get(&SLICES, &slice.namespace, &slice.name).await?;
        let service = slice.str_at(&["metadata", "labels", "kubernetes.io/service-name"]).to_owned();
        (service == db.name).then_some(())
    })
    .await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn single_services_are_replicated_both_ways() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let mut config = tenant.config();
    config.settings.replicate_to_host = vec![ReplicatedService {
        from: NamespacedName::new("default", "web"),
        to: NamespacedName::new("", "tenant-web"),
    }];
    config.settings.replicate_from_host = vec![ReplicatedService {
        from: NamespacedName::new("default", "shared"),
        to: NamespacedName::new("tools", "shared"),
    }];
    let syncer = tenant.sync_with(host.client(), config).await;
    let web = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    tenant.api.create(&SERVICES, "default", web).await;
    let shared = json!({"metadata": {"name": "shared"}, "spec": {"selector": {"app": "s"}, "ports": [{"port": 443}]}});
    host_api.create(&SERVICES, "default", shared).await;
    let replica = eventually("the tenant's Service is on the host under its name", || async {
        host_api.get(&SERVICES, &tenant.host_namespace, "tenant-web").await
    })
    .await;
    assert_eq!(replica.str_at(&["spec", "selector", "vcluster.loft.sh/managed-by"]), "vc");
    eventually("the host's Service is in the virtual cluster", || async {
        let host_service = host_api.get(&SERVICES, "default", "shared").await?;
        let service = tenant.api.get(&SERVICES, "tools", "shared").await?;
        let endpoints = tenant.api.get(&ENDPOINTS, "tools", "shared").await?;
        let ip = host_service.str_at(&["spec", "clusterIP"]).to_owned();
        (service.str_at(&["spec", "clusterIP"]) == "None" && endpoints.to_string().contains(&ip)).then_some(())
    })
    .await;
    tenant.api.delete(&SERVICES, "default", "web").await;
    host_api.delete(&SERVICES, "default", "shared").await;
    eventually("both replicas are gone", || async {
        let there = host_api.get(&SERVICES, &tenant.host_namespace, "tenant-web").await;
        let here = tenant.api.get(&SERVICES, "tools", "shared").await;
        (there.is_none() && here.is_none()).then_some(())
    })
    .await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_headless_services_are_replicated_both_ways() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let mut config = tenant.config();
    config.settings.replicate_to_host = vec![ReplicatedService {
        from: NamespacedName::new("default", "web"),
        to: NamespacedName::new("", "tenant-web"),
    }];
    config.settings.replicate_from_host =
        vec![ReplicatedService { from: NamespacedName::new("default", "db"), to: NamespacedName::new("tools", "db") }];
    let syncer = tenant.sync_with(host.client(), config).await;
    let addresses = |endpoints: &Value| -> Vec<String> {
        let subsets = endpoints.array_at(&["subsets"]).iter().flat_map(|s| s.array_at(&["addresses"]));
        let mut all: Vec<String> = subsets.map(|a| a.str_at(&["ip"]).to_owned()).collect();
        all.sort();
        all
    };
    let headless = |name: &str, selector: Value| json!({"metadata": {"name": name}, "spec": {"clusterIP": "None", "selector": selector}});
    // The tenant's pods are behind the host's Service.
    tenant.api.create(&SERVICES, "default", headless("web", json!({"app": "web"}))).await;
    for name in ["web-0", "web-1"] {
        let mut pod = simple_pod(name);
        pod["metadata"]["labels"] = json!({"app": "web"});
        tenant.api.create(&PODS, "default", pod).await;
    }
    let both = |count: usize| {
        let (tenant, host_api) = (&tenant, &host_api);
        move || async move {
            let here = tenant.api.get(&ENDPOINTS, "default", "web").await?;
            let there = host_api.get(&ENDPOINTS, &tenant.host_namespace, "tenant-web").await?;
            (addresses(&here).len() == count && addresses(&here) == addresses(&there)).then_some(())
        }
    };
    eventually("both sides have the two addresses", both(2)).await;
    tenant.api.delete(&PODS, "default", "web-1").await;
    eventually("both sides have one", both(1)).await;

    // The host's addresses, as they come and go.
    host_api.create(&SERVICES, "default", headless("db", Value::Null)).await;
    let subsets =
        |ips: &[&str]| json!([{"addresses": (ips.iter().map(|ip| json!({ "ip": (*ip) })).collect::<Vec<_>>())}]);
    let endpoints = json!({"metadata": {"name": "db"}, "subsets": (subsets(&["10.9.0.1", "10.9.0.2"]))});
    host_api.create(&ENDPOINTS, "default", endpoints).await;
    let shown = |want: &'static [&'static str]| {
        let api = &tenant.api;
        move || async move { (addresses(&api.get(&ENDPOINTS, "tools", "db").await?) == want).then_some(()) }
    };
    eventually("the host's addresses are shown", shown(&["10.9.0.1", "10.9.0.2"])).await;
    host_api.patch(&ENDPOINTS, "default", "db", json!({"subsets": (subsets(&["10.9.0.3"]))})).await;
    eventually("they follow", shown(&["10.9.0.3"])).await;
    host_api.delete(&SERVICES, "default", "db").await;
    eventually("Service and Endpoints are gone", || async {
        let service = tenant.api.get(&SERVICES, "tools", "db").await;
        (service.is_none() && tenant.api.get(&ENDPOINTS, "tools", "db").await.is_none()).then_some(())
    })
    .await;
    syncer.shutdown().await;
}
