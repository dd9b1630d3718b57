//! A hub that is stopped in the middle of much work and started again loses nothing and makes nothing twice; Services lead
//! to where it runs.

mod dns;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use apimachinery::{Value, json, resources};
use deploy::{Placement, Release};
use devhost::{DevHost, DevHostConfig};
use hub::{Hub, HubConfig};
use informer::{Resource, Rest};

const PODS: Resource = Resource::new("", "v1", "pods");
const SECRETS: Resource = Resource::new("", "v1", "secrets");
const PODS_TOTAL: usize = 200;
const NAME: &str = "team-a";
const NAMESPACE: &str = "vcluster-team-a";

/// Tries until `ready` gives something.
async fn eventually<T>(what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = ready().await {
            return value;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn put_release(host: &Rest, config: &str) {
    let config = config::Config::from_yaml("vcluster.yaml", config).expect("the configuration is valid");
    let release =
        Release { name: "team-a", namespace: NAMESPACE, placement: Placement::Hub, config: &config, version: "0.0.0" };
    for object in std::iter::once(deploy::namespace(NAMESPACE)).chain(deploy::host_objects(&release).unwrap()) {
        let object = Value::from_serialize(&object).expect("an object");
        let (group, version) =
            object.str_at(&["apiVersion"]).split_once('/').unwrap_or(("", object.str_at(&["apiVersion"])));
        let kind = resources::by_kind(group, version, object.str_at(&["kind"])).expect("a built-in kind");
        let resource = Resource { group: group.into(), version: version.into(), resource: kind.name.into() };
        let namespace = if kind.namespaced { NAMESPACE } else { "" };
        host.create(&resource, namespace, &object).await.expect("the object is created");
    }
}

/// A client of the virtual cluster through its port and the kubeconfig that the hub wrote.
async fn virtual_client(host: &Rest) -> Rest {
    let secret = eventually("the kubeconfig", async || host.get(&SECRETS, NAMESPACE, "vc-team-a").await.ok()).await;
    let encoded = secret.str_at(&["data", "config"]);
    let text = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded).expect("base64");
    let kubeconfig =
        kube::config::Kubeconfig::from_yaml(&String::from_utf8(text).expect("text")).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.expect("a config");
    Rest::new(kube::Client::try_from(config).expect("a client"), "test")
}

async fn uids(rest: &Rest, namespace: &str) -> BTreeMap<String, String> {
    let pods: Vec<Value> = rest.list_as(&PODS, namespace, "", "").await.expect("pods");
    let text = |p: &Value, path: &[&str]| p.str_at(path).to_owned();
    pods.iter().map(|p| (text(p, &["metadata", "name"]), text(p, &["metadata", "uid"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_restarted_amid_200_pods_loses_and_repeats_nothing() {
    // A test process installs the provider once; another test may have done so.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let host = DevHost::start(DevHostConfig::default()).await.expect("the host starts");
    let host_rest = Rest::new(host.client(), "test");
    let data = tempfile::tempdir().expect("a directory");
    let config = HubConfig {
        data_dir: Some(data.path().to_owned()),
        bind_address: [127, 0, 0, 1].into(),
        public_address: "127.0.0.1".into(),
        sleep_after: None,
        dns_servers: Vec::new(),
        database: None,
        advertised: None,
        image: None,
    };
    let first = Hub::start(host.client(), config.clone());
    put_release(&host_rest, "").await;
    let tenant = virtual_client(&host_rest).await;
    for i in 0..PODS_TOTAL {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{i}")},
            "spec": {"containers": [{"name": "c", "image": "web"}]}});
        eventually("the pod is accepted", async || tenant.create(&PODS, "default", &pod).await.ok()).await;
    }
    let created = uids(&tenant, "default").await;
    assert_eq!(created.len(), PODS_TOTAL);
    let before = uids(&host_rest, NAMESPACE).await;
    first.shutdown().await;

    let second = Hub::start(host.client(), config);
    eventually("all pods run", async || {
        let pods: Vec<Value> = tenant.list_as(&PODS, "default", "", "").await.ok()?;
        let running = pods.iter().filter(|p| p.str_at(&["status", "phase"]) == "Running").count();
        (running == PODS_TOTAL).then_some(())
    })
    .await;
    assert_eq!(uids(&tenant, "default").await, created, "the tenant's pods are the ones that were acknowledged");
    let after = uids(&host_rest, NAMESPACE).await;
    assert_eq!(after.len(), PODS_TOTAL, "one host pod for each");
    for (name, uid) in &before {
        assert_eq!(after.get(name), Some(uid), "{name} was not made again");
    }
    second.shutdown().await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_of_a_cluster_leads_to_the_hub_while_it_runs() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let host = DevHost::start(DevHostConfig::default()).await.expect("the host starts");
    let host_rest = Rest::new(host.client(), "test");
    let data = tempfile::tempdir().expect("a directory");
    let hub_at = |address: [u8; 4]| HubConfig {
        data_dir: Some(data.path().to_owned()),
        bind_address: [127, 0, 0, 1].into(),
        public_address: String::new(),
        sleep_after: None,
        dns_servers: Vec::new(),
        database: None,
        advertised: Some(hub::Advertised {
            address: address.into(),
            pod_name: "hub-0".into(),
            pod_namespace: "alcove-system".into(),
            node_name: "node-1".into(),
        }),
        image: None,
    };
    let slices = Resource::new("discovery.k8s.io", "v1", "endpointslices");
    let first = Hub::start(host.client(), hub_at([10, 1, 2, 3]));
    put_release(&host_rest, "").await;
    // The slice, once its endpoint has this address, and the port that the hub serves.
    let published = async |hub: &Hub, address: &str| {
        eventually("the slice is published", async || {
            let port = hub.clusters().first()?.port;
            let selector = format!("kubernetes.io/service-name={NAME}");
            let all: Vec<Value> = host_rest.list_as(&slices, NAMESPACE, &selector, "").await.ok()?;
            let slice = all.into_iter().next()?;
            let there = slice["endpoints"][0]["addresses"][0].as_str() == Some(address)
                && slice["ports"][0]["port"].as_i64() == Some(i64::from(port));
            there.then_some(slice)
        })
        .await
    };
    let slice = published(&first, "10.1.2.3").await;
    assert_eq!(slice["endpoints"][0]["targetRef"]["name"].as_str(), Some("hub-0"));
    assert_eq!(slice["ports"][1]["name"].as_str(), Some("kubelet"));
    let service = host_rest.get(&Resource::new("", "v1", "services"), NAMESPACE, NAME).await.expect("the Service");
    assert!(service.at(&["spec", "selector"]).is_none());
    // Tools inside of the host find the Service in the kubeconfig.
    let secret = eventually("the kubeconfig is written", async || {
        host_rest.get(&SECRETS, NAMESPACE, &format!("vc-{NAME}")).await.ok()
    })
    .await;
    let config = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, secret.str_at(&["data", "config"]))
        .expect("base64");
    let server = format!("server: https://{NAME}.{NAMESPACE}.svc");
    assert!(String::from_utf8_lossy(&config).contains(&server));
    first.shutdown().await;

    // The pod comes back elsewhere.
    let second = Hub::start(host.client(), hub_at([10, 1, 2, 4]));
    published(&second, "10.1.2.4").await;
    let secret_name = deploy::names::config_secret(NAME);
    host_rest.delete(&SECRETS, NAMESPACE, &secret_name, &Default::default()).await.expect("the Secret is deleted");
    eventually("the slice is gone", async || {
        let all: Vec<Value> = host_rest.list_as(&slices, NAMESPACE, "release", "").await.ok()?;
        all.is_empty().then_some(())
    })
    .await;
    second.shutdown().await;
    host.stop().await;
}

// A skipped test says so.
#[allow(clippy::print_stdout)]
#[tokio::test(flavor = "multi_thread")]
async fn clusters_of_a_hub_have_databases_of_their_own_on_one_server() {
    use store::servers::{Kind, Server, StartError};
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().expect("a directory");
    let root = folder.path().to_owned();
    for kind in [Kind::Postgres, Kind::Mysql] {
        let within = root.clone();
        let server = tokio::task::spawn_blocking(move || Server::start(kind, &within)).await.expect("a thread");
        let server = match server {
            Err(StartError::NotInstalled(name)) => {
                println!("skipped: {name} is not installed");
                continue;
            }
            server => server.unwrap_or_else(|error| panic!("{kind:?}: {error}")),
        };
        let host = DevHost::start(DevHostConfig::default()).await.expect("the host starts");
        let host_rest = Rest::new(host.client(), "test");
        let all = store::Endpoint::parse(&server.url("clusters")).expect("an address");
        let config = HubConfig {
            // The pod has lost its disk each time.
            data_dir: None,
            bind_address: [127, 0, 0, 1].into(),
            public_address: "127.0.0.1".into(),
            sleep_after: None,
            dns_servers: Vec::new(),
            database: Some((all.clone(), store::TlsFiles::default())),
            advertised: None,
            image: None,
        };
        let first = Hub::start(host.client(), config.clone());
        put_release(&host_rest, "").await;
        let tenant = virtual_client(&host_rest).await;
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "image": "web"}]}});
        eventually("the pod is accepted", async || tenant.create(&PODS, "default", &pod).await.ok()).await;
        let created = uids(&tenant, "default").await;
        first.shutdown().await;

        let second = Hub::start(host.client(), config);
        eventually("the cluster answers", async || {
            tenant.list_as::<Value>(&PODS, "default", "", "").await.ok().map(drop)
        })
        .await;
        assert_eq!(uids(&tenant, "default").await, created, "{kind:?}");
        let secret_name = deploy::names::config_secret(NAME);
        let secret = host_rest.get(&SECRETS, NAMESPACE, &secret_name).await.expect("the Secret");
        let own = all.sibling(&secret.str_at(&["metadata", "uid"]).replace('-', "_")).expect("a database");
        let keys = async || {
            let options = store::Options { compaction_interval: None, ..Default::default() };
            let opened = own.open(&store::TlsFiles::default(), options).await.expect("the database");
            let keys = opened.range(store::RangeRequest::prefix("/registry/")).await.expect("keys").kvs.len();
            opened.close().await;
            keys
        };
        assert!(keys().await > 10, "{kind:?}: the data is in the cluster's own database");
        host_rest.delete(&SECRETS, NAMESPACE, &secret_name, &Default::default()).await.expect("the Secret is deleted");
        eventually("the Secret is gone", async || {
            host_rest
                .get(&SECRETS, NAMESPACE, &secret_name)
                .await
                .is_err_and(|error| error.is_not_found())
                .then_some(())
        })
        .await;
        assert_eq!(keys().await, 0, "{kind:?}: the database went with the cluster, this is a new one");
        second.shutdown().await;
        host.stop().await;
    }
}
