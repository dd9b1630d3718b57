//! Control planes on a host with RBAC: several replicas on one store, and a store that is full.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::{Value, json, resources};
use apiserver::UserInfo;
use controlplane::dns::DnsPlace;
use controlplane::{ControlPlane, Host, Options, Replica, acting_as, service_account_user};
use deploy::{Placement, Release};
use devhost::{DevHost, DevHostConfig};
use informer::{Resource, Rest};
use store::{Sqlite, SqliteOptions, Store};
use tokio::net::TcpListener;

pub const NAME: &str = "team-a";
pub const NAMESPACE: &str = "vcluster-team-a";
pub const PODS: Resource = Resource::new("", "v1", "pods");
const SERVICES: Resource = Resource::new("", "v1", "services");
pub const CONFIG_MAPS: Resource = Resource::new("", "v1", "configmaps");
const LEASES: Resource = Resource::new("coordination.k8s.io", "v1", "leases");
pub const CRDS: Resource = Resource::new("apiextensions.k8s.io", "v1", "customresourcedefinitions");
/// The right that the Role has when there are several replicas; those need a store that no test starts, so the test hands in
/// one and asks for the right by itself.
const ELECTING: &str = "rbac: {role: {extraRules: [{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create, get, update]}]}}";

/// Tries until `ready` gives something.
pub async fn eventually<T>(what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = ready().await {
            return value;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub struct World {
    pub host: DevHost,
    pub rest: Rest,
    config: config::Config,
}

impl World {
    pub async fn new(values: &str) -> World {
        // A test process installs the provider once; another test may have done so.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let host = DevHost::start(DevHostConfig { nodes: 1, ..DevHostConfig::default() }).await.unwrap();
        let rest = Rest::new(host.client(), "test");
        let config = config::Config::from_yaml("vcluster.yaml", values).unwrap();
        let release = Release {
            name: NAME,
            namespace: NAMESPACE,
            placement: Placement::Dedicated,
            config: &config,
            version: "0.0.0",
        };
        for object in std::iter::once(deploy::namespace(NAMESPACE)).chain(deploy::host_objects(&release).unwrap()) {
            let object = Value::from(object);
            let api_version = object.str_at(&["apiVersion"]);
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            if ["StatefulSet", "Deployment"].contains(&object.str_at(&["kind"])) {
                continue;
            }
            let kind = resources::by_kind(group, version, object.str_at(&["kind"])).unwrap();
            let resource = Resource { group: group.into(), version: version.into(), resource: kind.name.into() };
            rest.create(&resource, if kind.namespaced { NAMESPACE } else { "" }, &object).await.unwrap();
        }
        World { host, rest, config }
    }

    /// Starts a replica on `store`, reaching the host over a port that can be cut.
    pub async fn start(&self, store: &Store, identity: &str, elects: bool) -> (ControlPlane, Wire) {
        self.start_with_dns(store, identity, elects, None).await
    }

    pub async fn start_with_dns(
        &self,
        store: &Store,
        identity: &str,
        elects: bool,
        dns: Option<DnsPlace>,
    ) -> (ControlPlane, Wire) {
        let (client, wire) = self.client().await;
        (self.start_on(client, store, identity, elects, dns).await, wire)
    }

    /// A client with the rights of the cluster's service account, over a port that can be cut.
    pub async fn client(&self) -> (kube::Client, Wire) {
        let wire = Wire::to(self.host.address()).await;
        let access = self.host.access();
        let kubeconfig = deploy::secrets::AdminAccess {
            server: format!("https://{}", wire.address),
            certificate_authority: access.certificate_authority.clone(),
            client_certificate: access.client_certificate.clone(),
            client_key: access.client_key.clone(),
            ..Default::default()
        };
        let text = deploy::secrets::kubeconfig_yaml("host", &kubeconfig);
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        let client = kube::Client::try_from(config).unwrap();
        let user = service_account_user(NAMESPACE, &deploy::names::service_account(NAME));
        (acting_as(&client, &user), wire)
    }

    pub async fn start_on(
        &self,
        client: kube::Client,
        store: &Store,
        identity: &str,
        elects: bool,
        dns: Option<DnsPlace>,
    ) -> ControlPlane {
        let host = Host::new(client, NAMESPACE);
        let options = Options {
            name: NAME.into(),
            config: self.config.clone(),
            data_dir: None,
            store: Some(store.clone()),
            database: None,
            etcd: None,
            binaries: None,
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            public_url: "https://localhost:8443".into(),
            dns,
            replica: Some(Replica { identity: identity.into(), elects, pod_ip: None, node_ip: None }),
        };
        ControlPlane::start(options, Some(host)).await.unwrap()
    }

    async fn holder(&self) -> String {
        let lease = self.rest.get(&LEASES, NAMESPACE, "vcluster-team-a-controller").await.ok();
        lease.map(|lease| lease.str_at(&["spec", "holderIdentity"]).to_string()).unwrap_or_default()
    }
}

/// A TCP proxy that can be cut.
pub struct Wire {
    address: SocketAddr,
    pub open: tokio::sync::watch::Sender<bool>,
}

impl Wire {
    async fn to(target: SocketAddr) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = tokio::sync::watch::Sender::new(true);
        let state = open.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut state = state.subscribe();
                tokio::spawn(async move {
                    if !*state.borrow_and_update() {
                        return;
                    }
                    let Ok(mut far) = tokio::net::TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Wire { address, open }
    }
}

pub fn admin(control_plane: &ControlPlane) -> Rest {
    Rest::new(control_plane.kube_client(UserInfo::admin()), "test")
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "web"}]}})
}

pub async fn runs(rest: &Rest, name: &str) {
    eventually("the pod is accepted", async || match rest.create(&PODS, "default", &pod(name)).await {
        Ok(_) => Some(()),
        Err(error) => error.is_already_exists().then_some(()),
    })
    .await;
    eventually("the pod runs", async || {
        let pod = rest.get(&PODS, "default", name).await.ok()?;
        (pod.str_at(&["status", "phase"]) == "Running").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_one_works_both_answer_and_the_other_takes_over() {
    let world = World::new(ELECTING).await;
    let store = Store::in_memory(store::Options::default()).await;
    let (first, first_wire) = world.start(&store, "team-a-0", true).await;
    eventually("a leader", async || (world.holder().await == "team-a-0-external-vcluster-controller").then_some(()))
        .await;
    let (second, _second_wire) = world.start(&store, "team-a-1", true).await;
    let (on_first, on_second) = (admin(&first), admin(&second));
    // What is written at one replica is worked on by the leader and seen at both.
    runs(&on_second, "one").await;
    on_first.get(&PODS, "default", "one").await.unwrap();
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
    eventually("the standby knows the host", async || {
        let ready = on_second.get_path("/readyz/syncer", "text/plain").await;
        ready.is_err_and(|error| error.code() == 0).then_some(())
    })
    .await;
    let made = on_second.create(&SERVICES, "default", &service).await.unwrap();
    let on_host = world.rest.get(&SERVICES, NAMESPACE, "web-x-default-x-team-a").await.unwrap();
    assert_eq!(made["spec"]["clusterIP"], on_host["spec"]["clusterIP"], "also where nobody leads");

    // The leader is cut off from the host: it stops, and the other one goes on.
    first_wire.open.send_replace(false);
    eventually("the other leads", async || {
        (world.holder().await == "team-a-1-external-vcluster-controller").then_some(())
    })
    .await;
    runs(&on_second, "two").await;
    // The first one still answers, and stands by again when the host is back.
    on_first.get(&PODS, "default", "two").await.unwrap();
    first_wire.open.send_replace(true);
    let pods: Vec<Value> = world.rest.list_as(&PODS, NAMESPACE, "", "").await.unwrap();
    assert_eq!(pods.len(), 2, "nothing is made twice");

    // A leader that stops in order makes room.
    second.stop().await;
    eventually("the first leads again", async || {
        (world.holder().await == "team-a-0-external-vcluster-controller").then_some(())
    })
    .await;
    runs(&on_first, "three").await;
    first.stop().await;
    world.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_with_a_status_and_reads_go_on() {
    let world = World::new("").await;
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions { size_bytes_max: Some(6 << 20), ..SqliteOptions::default() };
    let backend = Sqlite::open(folder.path().join("state.db"), options).await.unwrap();
    let store = Store::open(Arc::new(backend), store::Options::default()).await.unwrap();
    let (control_plane, _wire) = world.start(&store, "team-a-0", false).await;
    let rest = admin(&control_plane);
    eventually("the namespace", async || rest.get(&Resource::new("", "v1", "namespaces"), "", "default").await.ok())
        .await;
    let data: String = "x".repeat(200_000);
    let mut stored = 0;
    let refused = loop {
        let name = format!("c{stored}");
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": data.as_str()}});
        match rest.create(&CONFIG_MAPS, "default", &object).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 100, "the disk is never full");
    };
    assert!(stored > 3, "{stored}");
    assert!(refused.code() >= 500 && !refused.reason().is_empty(), "a Status: {refused:?}");
    for i in 0..stored {
        let read = rest.get(&CONFIG_MAPS, "default", &format!("c{i}")).await.unwrap();
        assert_eq!(read.str_at(&["data", "k"]).len(), data.len());
    }
    let listed: Vec<Value> = rest.list_as(&CONFIG_MAPS, "default", "", "").await.unwrap();
    assert!(listed.len() >= stored);
    // Tenants can make room.
    rest.delete(&CONFIG_MAPS, "default", "c0", &Default::default()).await.unwrap();
    control_plane.stop().await;
    world.host.stop().await;
}

/// The host's metrics API, as far as its objects go: a custom resource of that group.
fn measured(plural: &str, kind: &str, scope: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": (format!("{plural}.metrics.k8s.io")),
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes/kubernetes/pull/1"},
        },
        "spec": {
            "group": "metrics.k8s.io",
            "scope": scope,
            "names": {"plural": plural, "singular": (kind.to_lowercase()), "kind": kind},
            "versions": [{"name": "v1beta1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_of_the_host_are_shown_for_the_tenants_own_pods_alone() {
    let world = World::new("integrations: {metricsServer: {enabled: true}}").await;
    for (plural, kind, scope) in [("pods", "PodMetrics", "Namespaced"), ("nodes", "NodeMetrics", "Cluster")] {
        world.rest.create(&CRDS, "", &measured(plural, kind, scope)).await.unwrap();
    }
    let store = Store::in_memory(store::Options::default()).await;
    let (control_plane, _wire) = world.start(&store, "team-a-0", false).await;
    let rest = admin(&control_plane);
    runs(&rest, "one").await;
    let pod_metrics = Resource::new("metrics.k8s.io", "v1beta1", "pods");
    let numbers = |name: &str, managed: &str| {
        json!({"apiVersion": "metrics.k8s.io/v1beta1", "kind": "PodMetrics",
            "metadata": {"name": name, "labels": {"vcluster.loft.sh/managed-by": managed}},
            "timestamp": "2026-01-01T00:00:00Z", "window": "15s",
            "containers": [{"name": "c", "usage": {"cpu": "5m", "memory": "10Mi"}}]})
    };
    for (name, managed) in [("one-x-default-x-team-a", "team-a"), ("other", "team-b")] {
        eventually("the host's metrics API", async || {
            world.rest.create(&pod_metrics, NAMESPACE, &numbers(name, managed)).await.ok()
        })
        .await;
    }
    let all: Vec<Value> = rest.list_as(&pod_metrics, "", "", "").await.unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0].str_at(&["metadata", "name"]), "one");
    assert_eq!(all[0].str_at(&["metadata", "namespace"]), "default");
    assert_eq!(all[0]["containers"][0]["usage"]["cpu"], "5m");
    let one = rest.get(&pod_metrics, "default", "one").await.unwrap();
    assert_eq!(one["metadata"]["labels"], json!({"app": "web"}), "the tenant's labels");
    let none: Vec<Value> = rest.list_as(&pod_metrics, "default", "app=other", "").await.unwrap();
    assert!(none.is_empty());
    let missing = rest.get(&pod_metrics, "default", "two").await.unwrap_err();
    assert_eq!(missing.to_string(), "pods.metrics.k8s.io \"default/two\" not found");
    let groups = rest.get_path("/apis", "application/json").await.unwrap();
    assert!(groups.array_at(&["groups"]).iter().any(|group| group.str_at(&["name"]) == "metrics.k8s.io"));
    let list = rest.get_path("/apis/metrics.k8s.io/v1beta1", "application/json").await.unwrap();
    assert_eq!(list.array_at(&["resources"]).len(), 2, "{list}");
    control_plane.stop().await;
    world.host.stop().await;
}
