//! What a tenant configures: rules of `resolveDNS`, host search, nodes, and snippets in ConfigMap `coredns-custom`.

use std::time::Instant;

use apimachinery::{Value, json};
use dns::{Dns, DnsConfig, Rule, RuleSource, RuleTarget, Sockets, StartError};
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, RecordType};

use crate::support::*;

/// The DNS server of a host cluster `host.local` with three Services.
fn host(query: &Query) -> Option<(ResponseCode, Vec<RData>)> {
    let address: [u8; 4] = match query.name.to_string().to_lowercase().as_str() {
        "db.shared.svc.host.local." => [10, 200, 0, 1],
        "pod-0.db.shared.svc.host.local." => [10, 200, 0, 9],
        "web-x-default-x-team-b.vcluster-team-b.svc.host.local." => [10, 200, 0, 2],
        "www.example.com." => [192, 0, 2, 1],
        _ => return Some((ResponseCode::NXDomain, vec![])),
    };
    let data = if query.query_type == RecordType::A { vec![RData::A(A(address.into()))] } else { vec![] };
    Some((ResponseCode::NoError, data))
}

async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.service("default", "web", json!({"clusterIP": "10.96.1.1", "ports": [{"name": "http", "port": 80}]})).await;
    cluster
}

fn service(namespace: &str, name: &str) -> RuleSource {
    RuleSource::Service { namespace: namespace.into(), name: name.into() }
}

fn host_service(namespace: &str, name: &str) -> RuleTarget {
    RuleTarget::HostService { namespace: namespace.into(), name: name.into() }
}

#[tokio::test]
async fn rules_lead_to_their_five_kinds_of_targets() {
    let cluster = cluster().await;
    let upstream = Upstream::start(host).await;
    let hostname = |name: &str| RuleSource::Hostname(name.into());
    let rule = |source, target| Rule { source, target };
    let config = DnsConfig {
        forward: vec![upstream.address],
        host_servers: vec![upstream.address],
        host_domain: "host.local".into(),
        rules: vec![
            rule(hostname("db.corp"), host_service("shared", "db")),
            rule(hostname("one.corp"), RuleTarget::Ip("10.9.9.9".parse().unwrap())),
            rule(hostname("six.corp"), RuleTarget::Ip("fd00::9".parse().unwrap())),
            rule(hostname("alias.corp"), RuleTarget::Hostname("web.default.svc.cluster.local".into())),
            rule(hostname("out.corp"), RuleTarget::Hostname("www.example.com".into())),
            rule(hostname("*.star.corp"), RuleTarget::Hostname("*.default.svc.cluster.local".into())),
            rule(hostname("pre.*"), RuleTarget::Hostname("web.default.svc.*".into())),
            rule(hostname("other.corp"), host_service("vcluster-team-b", "web-x-default-x-team-b")),
            rule(service("default", "db"), host_service("shared", "db")),
            rule(service("default", "web"), RuleTarget::Hostname("www.example.com".into())),
            rule(RuleSource::Namespace("lent".into()), RuleTarget::HostNamespace("shared".into())),
        ],
        ..DnsConfig::default()
    };
    let dns = cluster.dns(config).await;
    for (name, kind, want) in [
        ("db.corp.", RecordType::A, "db.corp. 30 A 10.200.0.1"),
        ("DB.corp.", RecordType::A, "DB.corp. 30 A 10.200.0.1"),
        ("one.corp.", RecordType::A, "one.corp. 5 A 10.9.9.9"),
        ("one.corp.", RecordType::AAAA, "NoError"),
        ("six.corp.", RecordType::AAAA, "six.corp. 5 AAAA fd00::9"),
        ("alias.corp.", RecordType::A, "alias.corp. 5 A 10.96.1.1"),
        ("out.corp.", RecordType::A, "out.corp. 30 A 192.0.2.1"),
        ("web.star.corp.", RecordType::A, "web.star.corp. 5 A 10.96.1.1"),
        ("nope.star.corp.", RecordType::A, "NXDomain"),
        ("star.corp.", RecordType::A, "NXDomain"),
        ("pre.cluster.local.", RecordType::A, "pre.cluster.local. 5 A 10.96.1.1"),
        ("other.corp.", RecordType::A, "other.corp. 30 A 10.200.0.2"),
        ("db.default.svc.cluster.local.", RecordType::A, "db.default.svc.cluster.local. 30 A 10.200.0.1"),
        ("pod-0.db.default.svc.cluster.local.", RecordType::A, "pod-0.db.default.svc.cluster.local. 30 A 10.200.0.9"),
        ("web.default.svc.cluster.local.", RecordType::A, "web.default.svc.cluster.local. 30 A 192.0.2.1"),
        ("db.lent.svc.cluster.local.", RecordType::A, "db.lent.svc.cluster.local. 30 A 10.200.0.1"),
        ("nope.lent.svc.cluster.local.", RecordType::A, "NXDomain"),
    ] {
        assert_eq!(answers(&dns, name, kind).await, [want], "{name} {kind}");
    }
}

#[tokio::test]
async fn names_the_cluster_does_not_have_are_looked_for_on_the_host_when_asked_for() {
    let cluster = cluster().await;
    let upstream = Upstream::start(host).await;
    let config = |fallback: bool, domain: &str| DnsConfig {
        cluster_domain: domain.into(),
        host_servers: vec![upstream.address],
        host_domain: "host.local".into(),
        fallback_host_cluster: fallback,
        ..DnsConfig::default()
    };
    let with = cluster.dns(config(true, "cluster.local")).await;
    let other = cluster.dns(config(true, "team.internal")).await;
    let without = cluster.dns(config(false, "cluster.local")).await;
    for (dns, name, want) in [
        (&with, "db.shared.svc.cluster.local.", "db.shared.svc.cluster.local. 30 A 10.200.0.1"),
        (&with, "web.default.svc.cluster.local.", "web.default.svc.cluster.local. 5 A 10.96.1.1"),
        (&with, "db.shared.svc.host.local.", "db.shared.svc.host.local. 30 A 10.200.0.1"),
        (&with, "nope.shared.svc.cluster.local.", "NXDomain"),
        (&other, "db.shared.svc.team.internal.", "db.shared.svc.team.internal. 30 A 10.200.0.1"),
        (&without, "db.shared.svc.cluster.local.", "NXDomain"),
    ] {
        assert_eq!(answers(dns, name, RecordType::A).await, [want], "{name}");
    }
}

#[tokio::test]
async fn nodes_have_names() {
    let cluster = cluster().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "status": {"addresses": [
        {"type": "InternalIP", "address": "10.0.0.5"}, {"type": "Hostname", "address": "node-1.lan"}]}});
    cluster.create(&NODES, "", node.clone()).await;
    let _ = cluster.rest.update(&NODES, "status", "", "node-1", &node).await;
    let kubernetes = cluster.rest.get(&SERVICES, "default", "kubernetes").await.ok();
    let dns = cluster.dns(DnsConfig { node_names: true, ..DnsConfig::default() }).await;
    until(&dns, "node-1.lan.", RecordType::A, &["node-1.lan. 60 A 10.0.0.5"]).await;
    assert_eq!(
        answers(&dns, "5.0.0.10.in-addr.arpa.", RecordType::PTR).await,
        ["5.0.0.10.in-addr.arpa. 60 PTR node-1.lan."]
    );
    if let Some(service) = kubernetes {
        let name = "node-1.nodes.vcluster.com.";
        let want = format!("{name} 5 A {}", service.str_at(&["spec", "clusterIP"]));
        assert_eq!(answers(&dns, name, RecordType::A).await, [want]);
    }
    cluster.rest.delete(&NODES, "", "node-1", &Default::default()).await.unwrap();
    until(&dns, "node-1.lan.", RecordType::A, &["Refused"]).await;
}

#[tokio::test]
async fn snippets_are_taken_changed_and_refused_with_an_event() {
    let cluster = cluster().await;
    let upstream = Upstream::start(host).await;
    let map = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "coredns-custom"}, "data": (data)});
    let forward = format!("example.com:1053 {{\n errors\n cache 30\n forward . {}\n}}", upstream.address);
    let text = "corp.test {\n hosts {\n  10.1.1.1 a.corp.test\n  fallthrough\n }\n \
                rewrite name exact b.corp.test web.default.svc.cluster.local\n \
                template IN A {\n  match \"^ip-(?P<n>[0-9]+)\\.corp\\.test\\.$\"\n  answer \"{{ .Name }} 60 IN A 10.2.0.{{ .Group.n }}\"\n  fallthrough\n }\n \
                kubernetes cluster.local\n}";
    let data = json!({"a.server": (text), "b.server": (forward), "bad.server": "x.test {\n file /etc/zone\n}",
        "c.override": "log"});
    cluster.create(&CONFIG_MAPS, "kube-system", map(data)).await;
    let dns = cluster.dns(DnsConfig::default()).await;
    for (name, want) in [
        ("a.corp.test.", "a.corp.test. 3600 A 10.1.1.1"),
        ("b.corp.test.", "b.corp.test. 5 A 10.96.1.1"),
        ("ip-7.corp.test.", "ip-7.corp.test. 60 A 10.2.0.7"),
        ("other.corp.test.", "Refused"),
        ("www.example.com.", "www.example.com. 30 A 192.0.2.1"),
        ("x.test.", "Refused"),
        ("web.default.svc.cluster.local.", "web.default.svc.cluster.local. 5 A 10.96.1.1"),
    ] {
        assert_eq!(answers(&dns, name, RecordType::A).await, [want], "{name}");
    }
    let begin = Instant::now();
    loop {
        let events: Vec<Value> = cluster.rest.list_as(&EVENTS, "kube-system", "", "").await.unwrap();
        let mut messages: Vec<&str> = events.iter().map(|event| event.str_at(&["message"])).collect();
        messages.sort();
        if messages.len() == 2 {
            assert_eq!(
                messages,
                [
                    "bad.server: line 2: file is not supported; known here: rewrite, template, hosts, kubernetes, forward",
                    "c.override is ignored: only keys that end in .server are read",
                ]
            );
            break;
        }
        assert!(begin.elapsed() < DEADLINE, "{messages:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let changed = map(json!({"a.server": "corp.test {\n hosts {\n  10.1.1.2 a.corp.test\n }\n}"}));
    cluster.rest.update(&CONFIG_MAPS, "", "kube-system", "coredns-custom", &changed).await.unwrap();
    until(&dns, "a.corp.test.", RecordType::A, &["a.corp.test. 3600 A 10.1.1.2"]).await;
    assert_eq!(answers(&dns, "other.corp.test.", RecordType::A).await, ["NXDomain"]);
    cluster.rest.delete(&CONFIG_MAPS, "kube-system", "coredns-custom", &Default::default()).await.unwrap();
    until(&dns, "a.corp.test.", RecordType::A, &["Refused"]).await;
}

#[tokio::test]
async fn a_whole_corefile_replaces_the_chain() {
    let cluster = cluster().await;
    let upstream = Upstream::start(host).await;
    let corefile = format!(
        ".:1053 {{\n errors\n health\n ready\n kubernetes cluster.local in-addr.arpa ip6.arpa {{\n  pods insecure\n  fallthrough in-addr.arpa ip6.arpa\n }}\n \
         hosts /etc/coredns/NodeHosts {{\n  ttl 60\n  reload 15s\n  fallthrough\n }}\n forward . {}\n cache 30\n loop\n loadbalance\n}}",
        upstream.address
    );
    let dns = cluster.dns(DnsConfig { corefile: Some(corefile), ..DnsConfig::default() }).await;
    assert_eq!(
        answers(&dns, "web.default.svc.cluster.local.", RecordType::A).await,
        ["web.default.svc.cluster.local. 5 A 10.96.1.1"]
    );
    assert_eq!(answers(&dns, "www.example.com.", RecordType::A).await, ["www.example.com. 30 A 192.0.2.1"]);
    for (text, want) in [
        (". {\n etcd\n}", "line 2: etcd is not supported; known here: rewrite, template, hosts, kubernetes, forward"),
        ("a {\n}", "line 1: needs one server block, for the root zone; others go to ConfigMap coredns-custom"),
    ] {
        let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let config = DnsConfig { corefile: Some(text.into()), ..DnsConfig::default() };
        let Err(StartError::Corefile(error)) = Dns::start(cluster.rest.client().clone(), config, sockets) else {
            panic!("{text} was taken");
        };
        assert_eq!(error.to_string(), want);
    }
}
