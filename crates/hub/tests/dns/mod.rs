//! The names of a tenant, asked at the port its cluster really has.

use std::net::SocketAddr;
use std::time::Duration;

use apimachinery::{Value, json};
use devhost::{DevHost, DevHostConfig};
use dns::{Dns, DnsConfig, Sockets};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use hub::{Hub, HubConfig};
use informer::{PatchType, Resource, Rest};
use tokio::net::UdpSocket;

use crate::{NAMESPACE, PODS, SECRETS, eventually, put_release, virtual_client};

const SERVICES: Resource = Resource::new("", "v1", "services");
const CONFIG_MAPS: Resource = Resource::new("", "v1", "configmaps");
const DEPLOYMENTS: Resource = Resource::new("apps", "v1", "deployments");
const SYSTEM: &str = "kube-system";

struct Tenant {
    _data: tempfile::TempDir,
    host: DevHost,
    host_dns: Dns,
    host_rest: Rest,
    hub: Hub,
    rest: Rest,
}

impl Tenant {
    async fn start(config: &str) -> Tenant {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let host = DevHost::start(DevHostConfig::default()).await.expect("the host starts");
        let host_rest = Rest::new(host.client(), "test");
        let sockets = Sockets::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
        let host_dns = Dns::start(host.client(), DnsConfig::default(), sockets).expect("the host's DNS starts");
        let data = tempfile::tempdir().expect("a directory");
        let hub_config = HubConfig {
            data_dir: Some(data.path().to_owned()),
            bind_address: [127, 0, 0, 1].into(),
            public_address: "127.0.0.1".into(),
            sleep_after: None,
            dns_servers: vec![host_dns.address()],
            database: None,
            advertised: None,
            image: None,
        };
        let hub = Hub::start(host.client(), hub_config);
        put_release(&host_rest, config).await;
        let rest = virtual_client(&host_rest).await;
        Tenant { _data: data, host, host_dns, host_rest, hub, rest }
    }

    async fn dns(&self) -> SocketAddr {
        eventually("the cluster's DNS", async || self.hub.clusters().first().and_then(|cluster| cluster.dns)).await
    }

    async fn stop(self) {
        self.hub.shutdown().await;
        self.host_dns.shutdown().await;
        self.host.stop().await;
    }
}

/// Code and data of an answer.
async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> (String, Vec<String>) {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    socket.send_to(&message.to_vec().expect("a question"), server).await.expect("sent");
    let mut buffer = [0; 4096];
    let received = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer));
    let length = received.await.expect("an answer in time").expect("an answer");
    let answer = Message::from_vec(&buffer[..length]).expect("a message");
    let mut data: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    (format!("{:?}", answer.metadata.response_code), data)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_names_resolve_at_the_clusters_own_port() {
    let tenant = Tenant::start("networking: {advanced: {clusterDomain: team.internal}}").await;
    let server = tenant.dns().await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]}});
    tenant.rest.create(&SERVICES, "default", &service).await.expect("the Service is accepted");
    // The address may change once, to the one the host chose.
    eventually("the Service's name", async || {
        let service = tenant.rest.get(&SERVICES, "default", "web").await.ok()?;
        let host = tenant.host_rest.get(&SERVICES, NAMESPACE, "web-x-default-x-team-a").await.ok()?;
        let address = service.str_at(&["spec", "clusterIP"]).to_string();
        let (_, data) = ask(server, "web.default.svc.team.internal.", RecordType::A).await;
        (data == [address.clone()] && host.str_at(&["spec", "clusterIP"]) == address).then_some(())
    })
    .await;
    let (code, _) = ask(server, "nope.default.svc.team.internal.", RecordType::A).await;
    assert_eq!(code, "NXDomain");

    // Pods get the host's address of the Service that leads here.
    let kube_dns = eventually("the Service of DNS on the host", async || {
        let service = tenant.host_rest.get(&SERVICES, NAMESPACE, "kube-dns-x-kube-system-x-team-a").await.ok()?;
        let address = service.str_at(&["spec", "clusterIP"]).to_string();
        (!address.is_empty()).then_some(address)
    })
    .await;
    let headless = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
        "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 5432}]}});
    tenant.rest.create(&SERVICES, "default", &headless).await.expect("the Service is accepted");
    let name = "db.default.svc.team.internal.";
    let pod = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": (name), "labels": {"app": "db"}},
        "spec": {"hostname": (name), "subdomain": "db", "containers": [{"name": "c", "image": "db"}]}})
    };
    for (number, want) in [(0, 1), (1, 2)] {
        let object = pod(&format!("db-{number}"));
        eventually("the pod is accepted", async || tenant.rest.create(&PODS, "default", &object).await.ok()).await;
        eventually("the pod's address", async || {
            (ask(server, name, RecordType::A).await.1.len() == want).then_some(())
        })
        .await;
    }
    let (_, data) = ask(server, "db-1.db.default.svc.team.internal.", RecordType::A).await;
    let pod = tenant.rest.get(&PODS, "default", "db-1").await.expect("the pod");
    assert_eq!(data, [pod.str_at(&["status", "podIP"])]);
    let on_host = tenant.host_rest.get(&PODS, NAMESPACE, "db-1-x-default-x-team-a").await.expect("the host pod");
    assert_eq!(on_host["spec"]["dnsConfig"]["nameservers"][0], kube_dns.as_str());
    assert_eq!(on_host["spec"]["dnsConfig"]["searches"][0], "default.svc.team.internal");

    // Endpoints that go take their name with them.
    tenant.rest.delete(&PODS, "default", "db-1", &Default::default()).await.expect("deleted");
    eventually("the end of the endpoint", async || {
        let slices: Vec<Value> = tenant
            .rest
            .list_as(
                &Resource::new("discovery.k8s.io", "v1", "endpointslices"),
                "default",
                "kubernetes.io/service-name=db",
                "",
            )
            .await
            .ok()?;
        let ready = slices.iter().flat_map(|slice| slice.array_at(&["endpoints"]));
        (ready.filter(|endpoint| endpoint["conditions"]["ready"] != false).count() == 1).then_some(())
    })
    .await;
    eventually("the end of the name", async || (ask(server, name, RecordType::A).await.1.len() == 1).then_some(()))
        .await;
    tenant.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coredns_is_deployed_when_asked_for_and_removed_when_not() {
    let tenant = Tenant::start("controlPlane: {coredns: {embedded: false, deployment: {replicas: 2}}}").await;
    eventually("CoreDNS runs", async || {
        let deployment = tenant.rest.get(&DEPLOYMENTS, SYSTEM, "coredns").await.ok()?;
        (deployment["status"]["readyReplicas"] == 2).then_some(())
    })
    .await;
    assert_eq!(tenant.hub.clusters()[0].dns, None);
    let service = tenant.rest.get(&SERVICES, SYSTEM, "kube-dns").await.expect("the Service");
    assert_eq!(service["spec"]["selector"]["k8s-app"], "vcluster-kube-dns");
    let map = eventually("the nodes' lines", async || {
        let map = tenant.rest.get(&CONFIG_MAPS, SYSTEM, "coredns").await.ok()?;
        map.str_at(&["data", "NodeHosts"]).contains("nodes.vcluster.com").then_some(map)
    })
    .await;
    assert!(map.str_at(&["data", "Corefile"]).starts_with(".:1053 {"));

    // The config Secret says otherwise now: the hub starts the cluster anew, with `{}`.
    let patch = json!({"data": {"config.yaml": "e30K"}});
    tenant
        .host_rest
        .patch(&SECRETS, "", NAMESPACE, "vc-config-team-a", PatchType::Merge, &patch)
        .await
        .expect("patched");
    let server = tenant.dns().await;
    let rest = virtual_client(&tenant.host_rest).await;
    eventually("the Service leads to the embedded server", async || {
        let service = rest.get(&SERVICES, SYSTEM, "kube-dns").await.ok()?;
        let gone = rest.get(&DEPLOYMENTS, SYSTEM, "coredns").await.is_err_and(|error| error.is_not_found());
        (gone && service.at(&["spec", "selector"]).is_none_or(Value::is_null)).then_some(())
    })
    .await;
    let (code, data) = ask(server, "kubernetes.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!((code.as_str(), data.len()), ("NoError", 1));
    tenant.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_lead_to_services_of_the_host_and_of_virtual_clusters() {
    let tenant = Tenant::start(
        "networking:\n  advanced: {fallbackHostCluster: true}\n  resolveDNS:\n  \
         - {hostname: db.corp, target: {hostService: shared/db}}\n  \
         - {hostname: web.corp, target: {vClusterService: vcluster-team-a/team-a/default/web}}\n  \
         - {hostname: ip.corp, target: {ip: 10.7.7.7}}\n  \
         - {hostname: \"*.star.corp\", target: {hostname: \"*.default.svc.cluster.local\"}}\n  \
         - {service: default/cache, target: {hostService: shared/db}}\n  \
         - {namespace: lent, target: {hostNamespace: shared}}\n",
    )
    .await;
    let server = tenant.dns().await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shared"}});
    tenant.host_rest.create(&Resource::new("", "v1", "namespaces"), "", &namespace).await.expect("a namespace");
    let service = |name: &str| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": (name)}, "spec": {"ports": [{"port": 80}]}});
    let db = tenant.host_rest.create(&SERVICES, "shared", &service("db")).await.expect("the host's Service");
    let db = db.str_at(&["spec", "clusterIP"]).to_string();
    tenant.rest.create(&SERVICES, "default", &service("web")).await.expect("the tenant's Service");
    let web = eventually("the Service on the host", async || {
        let host = tenant.host_rest.get(&SERVICES, NAMESPACE, "web-x-default-x-team-a").await.ok()?;
        let own = tenant.rest.get(&SERVICES, "default", "web").await.ok()?;
        let address = host.str_at(&["spec", "clusterIP"]).to_string();
        (own.str_at(&["spec", "clusterIP"]) == address).then_some(address)
    })
    .await;
    // The first question may come before the servers have seen the Services; what they said then is kept for 5 s.
    eventually("the host's name", async || {
        let direct = ask(tenant.host_dns.address(), "db.shared.svc.cluster.local.", RecordType::A).await.1;
        let on_host = ask(
            tenant.host_dns.address(),
            &format!("web-x-default-x-team-a.{NAMESPACE}.svc.cluster.local."),
            RecordType::A,
        )
        .await
        .1;
        let own = ask(server, "web.default.svc.cluster.local.", RecordType::A).await.1;
        (direct == [db.clone()] && on_host == [web.clone()] && own == [web.clone()]).then_some(())
    })
    .await;
    for (name, want) in [
        ("db.shared.svc.cluster.local.", db.as_str()),
        ("db.corp.", &db),
        ("web.corp.", &web),
        ("ip.corp.", "10.7.7.7"),
        ("web.star.corp.", &web),
        ("cache.default.svc.cluster.local.", &db),
        ("db.lent.svc.cluster.local.", &db),
    ] {
        let answer = ask(server, name, RecordType::A).await;
        assert_eq!(answer, ("NoError".to_string(), vec![want.to_string()]), "{name}");
    }
    tenant.stop().await;
}
