//! The Kubernetes DNS specification 1.1.0, section by section, and what CoreDNS adds to it.

use std::time::Duration;

use apimachinery::{Value, json};
use dns::DnsConfig;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};

use crate::support::*;

/// Services of every kind.
async fn zoo() -> Cluster {
    let cluster = Cluster::start().await;
    let https = || json!([{"name": "https", "port": 443}]);
    cluster
        .service(
            "default",
            "web",
            json!({"clusterIP": "10.96.1.1", "ports": [
        {"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        )
        .await;
    cluster.slice("default", "web", "web-1", &[("10.1.0.9", "", true)], json!([{"name": "http", "port": 8080}])).await;
    cluster.service("default", "plain", json!({"clusterIP": "10.96.1.2", "ports": [{"port": 8080}]})).await;
    cluster
        .service(
            "default",
            "dual",
            json!({
        "clusterIPs": ["10.96.1.3", "fd00:10::3"], "clusterIP": "10.96.1.3", "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "RequireDualStack", "ports": (https())}),
        )
        .await;
    cluster.service("default", "headless", json!({"clusterIP": "None", "ports": (https())})).await;
    cluster
        .slice(
            "default",
            "headless",
            "headless-1",
            &[("10.3.0.1", "my-pet", true), ("10.3.0.2", "", true), ("10.3.0.3", "sick", false)],
            https(),
        )
        .await;
    cluster.slice("default", "headless", "headless-2", &[("10.3.1.1", "my-pet", true)], https()).await;
    cluster.slice("default", "headless", "headless-6", &[("2001:db8::1", "my-pet", true)], https()).await;
    cluster.service("default", "empty", json!({"clusterIP": "None", "ports": (https())})).await;
    cluster.service("default", "portless", json!({"clusterIP": "None"})).await;
    cluster.slice("default", "portless", "portless-1", &[("10.4.0.1", "", true)], Value::Null).await;
    cluster
        .service("default", "ext", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}))
        .await;
    cluster.service("default", "far", json!({"type": "ExternalName", "externalName": "www.example.com"})).await;
    cluster
        .service(
            "default",
            "ring-a",
            json!({"type": "ExternalName", "externalName": "ring-b.default.svc.cluster.local"}),
        )
        .await;
    cluster
        .service(
            "default",
            "ring-b",
            json!({"type": "ExternalName", "externalName": "ring-a.default.svc.cluster.local"}),
        )
        .await;
    cluster
        .service(
            "kube-system",
            "kube-dns",
            json!({"clusterIP": "10.96.0.10", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}),
        )
        .await;
    cluster
}

#[tokio::test]
async fn every_record_of_the_specification_is_answered() {
    use RecordType::{A, AAAA, CNAME, HTTPS, MX, NS, PTR, SRV, TXT};
    let cluster = zoo().await;
    let dns = cluster.dns(DnsConfig::default()).await;
    let cases: &[(&str, RecordType, &[&str])] = &[
        // 2.2 schema version
        ("dns-version.cluster.local.", TXT, &["dns-version.cluster.local. 28800 TXT 1.1.0"]),
        ("dns-version.cluster.local.", A, &["NoError"]),
        // 2.3.1 addresses of a ClusterIP
        ("web.default.svc.cluster.local.", A, &["web.default.svc.cluster.local. 5 A 10.96.1.1"]),
        ("web.default.svc.cluster.local.", AAAA, &["NoError"]),
        ("web.default.svc.cluster.local.", TXT, &["NoError"]),
        ("web.default.svc.cluster.local.", MX, &["NoError"]),
        ("web.default.svc.cluster.local.", HTTPS, &["NoError"]),
        ("web.default.svc.cluster.local.", CNAME, &["NoError"]),
        ("WEB.Default.SVC.Cluster.Local.", A, &["WEB.Default.SVC.Cluster.Local. 5 A 10.96.1.1"]),
        ("dual.default.svc.cluster.local.", A, &["dual.default.svc.cluster.local. 5 A 10.96.1.3"]),
        ("dual.default.svc.cluster.local.", AAAA, &["dual.default.svc.cluster.local. 5 AAAA fd00:10::3"]),
        // 2.3.2 SRV
        (
            "_http._tcp.web.default.svc.cluster.local.",
            SRV,
            &["_http._tcp.web.default.svc.cluster.local. 5 SRV 0 100 80 web.default.svc.cluster.local."],
        ),
        (
            "_dns._udp.web.default.svc.cluster.local.",
            SRV,
            &["_dns._udp.web.default.svc.cluster.local. 5 SRV 0 100 53 web.default.svc.cluster.local."],
        ),
        (
            "_HTTP._TCP.web.default.svc.cluster.local.",
            SRV,
            &["_HTTP._TCP.web.default.svc.cluster.local. 5 SRV 0 100 80 web.default.svc.cluster.local."],
        ),
        ("_http._udp.web.default.svc.cluster.local.", SRV, &["NXDomain"]),
        ("_nope._tcp.web.default.svc.cluster.local.", SRV, &["NXDomain"]),
        ("_http._tcp.web.default.svc.cluster.local.", A, &["_http._tcp.web.default.svc.cluster.local. 5 A 10.96.1.1"]),
        ("_tcp.web.default.svc.cluster.local.", SRV, &["NoError"]),
        ("_tcp.nope.default.svc.cluster.local.", SRV, &["NXDomain"]),
        (
            "web.default.svc.cluster.local.",
            SRV,
            &[
                "web.default.svc.cluster.local. 5 SRV 0 50 53 web.default.svc.cluster.local.",
                "web.default.svc.cluster.local. 5 SRV 0 50 80 web.default.svc.cluster.local.",
            ],
        ),
        (
            "_._tcp.plain.default.svc.cluster.local.",
            SRV,
            &["_._tcp.plain.default.svc.cluster.local. 5 SRV 0 100 8080 plain.default.svc.cluster.local."],
        ),
        // 2.3.3 PTR
        ("1.1.96.10.in-addr.arpa.", PTR, &["1.1.96.10.in-addr.arpa. 5 PTR web.default.svc.cluster.local."]),
        ("1.1.96.10.in-addr.arpa.", A, &["NoError"]),
        (
            "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            &[
                "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.d.f.ip6.arpa. 5 PTR dual.default.svc.cluster.local.",
            ],
        ),
        // 2.4.1 addresses of a headless Service and of its host names
        (
            "headless.default.svc.cluster.local.",
            A,
            &[
                "headless.default.svc.cluster.local. 5 A 10.3.0.1",
                "headless.default.svc.cluster.local. 5 A 10.3.0.2",
                "headless.default.svc.cluster.local. 5 A 10.3.1.1",
            ],
        ),
        ("headless.default.svc.cluster.local.", AAAA, &["headless.default.svc.cluster.local. 5 AAAA 2001:db8::1"]),
        (
            "my-pet.headless.default.svc.cluster.local.",
            A,
            &[
                "my-pet.headless.default.svc.cluster.local. 5 A 10.3.0.1",
                "my-pet.headless.default.svc.cluster.local. 5 A 10.3.1.1",
            ],
        ),
        (
            "my-pet.headless.default.svc.cluster.local.",
            AAAA,
            &["my-pet.headless.default.svc.cluster.local. 5 AAAA 2001:db8::1"],
        ),
        (
            "10-3-0-2.headless.default.svc.cluster.local.",
            A,
            &["10-3-0-2.headless.default.svc.cluster.local. 5 A 10.3.0.2"],
        ),
        ("10-3-0-2.headless.default.svc.cluster.local.", AAAA, &["NoError"]),
        ("sick.headless.default.svc.cluster.local.", A, &["NXDomain"]),
        ("empty.default.svc.cluster.local.", A, &["NXDomain"]),
        ("portless.default.svc.cluster.local.", A, &["portless.default.svc.cluster.local. 5 A 10.4.0.1"]),
        ("portless.default.svc.cluster.local.", SRV, &["NoError"]),
        ("10-1-0-9.web.default.svc.cluster.local.", A, &["10-1-0-9.web.default.svc.cluster.local. 5 A 10.1.0.9"]),
        // 2.4.2 SRV of endpoints
        (
            "_https._tcp.headless.default.svc.cluster.local.",
            SRV,
            &[
                "_https._tcp.headless.default.svc.cluster.local. 5 SRV 0 25 443 10-3-0-2.headless.default.svc.cluster.local.",
                "_https._tcp.headless.default.svc.cluster.local. 5 SRV 0 25 443 my-pet.headless.default.svc.cluster.local.",
            ],
        ),
        // 2.4.3 PTR of endpoints
        ("2.0.3.10.in-addr.arpa.", PTR, &["2.0.3.10.in-addr.arpa. 5 PTR 10-3-0-2.headless.default.svc.cluster.local."]),
        ("1.0.3.10.in-addr.arpa.", PTR, &["1.0.3.10.in-addr.arpa. 5 PTR my-pet.headless.default.svc.cluster.local."]),
        // 2.5 external names
        (
            "ext.default.svc.cluster.local.",
            A,
            &[
                "ext.default.svc.cluster.local. 5 CNAME web.default.svc.cluster.local.",
                "web.default.svc.cluster.local. 5 A 10.96.1.1",
            ],
        ),
        ("far.default.svc.cluster.local.", CNAME, &["far.default.svc.cluster.local. 5 CNAME www.example.com."]),
        ("far.default.svc.cluster.local.", A, &["far.default.svc.cluster.local. 5 CNAME www.example.com."]),
        ("x.far.default.svc.cluster.local.", A, &["NXDomain"]),
        ("ring-a.default.svc.cluster.local.", A, &["ServFail"]),
        // names between others, and names that do not exist
        ("cluster.local.", A, &["NoError"]),
        ("cluster.local.", NS, &["cluster.local. 5 NS kube-dns.kube-system.svc.cluster.local."]),
        ("ns.dns.cluster.local.", A, &["ns.dns.cluster.local. 5 A 10.96.0.10"]),
        ("svc.cluster.local.", A, &["NoError"]),
        ("pod.cluster.local.", A, &["NoError"]),
        ("default.svc.cluster.local.", A, &["NoError"]),
        ("nope.svc.cluster.local.", A, &["NXDomain"]),
        ("nope.default.svc.cluster.local.", A, &["NXDomain"]),
        ("web.nope.svc.cluster.local.", A, &["NXDomain"]),
        ("a.b.c.web.default.svc.cluster.local.", A, &["NXDomain"]),
        ("web.default.cluster.local.", A, &["NXDomain"]),
        // pods by address
        ("10-9-8-7.default.pod.cluster.local.", A, &["10-9-8-7.default.pod.cluster.local. 5 A 10.9.8.7"]),
        ("10-9-8-7.default.pod.cluster.local.", AAAA, &["NoError"]),
        ("fd00--7.default.pod.cluster.local.", AAAA, &["fd00--7.default.pod.cluster.local. 5 AAAA fd00::7"]),
        ("web.default.pod.cluster.local.", A, &["NXDomain"]),
        ("10-9-8-7.nope.pod.cluster.local.", A, &["NXDomain"]),
    ];
    for (name, kind, want) in cases {
        assert_eq!(answers(&dns, name, *kind).await, *want, "{name} {kind}");
    }
    dns.shutdown().await;
}

#[tokio::test]
async fn answers_have_flags_authority_and_additional_addresses() {
    let cluster = zoo().await;
    let dns = cluster.dns(DnsConfig::default()).await;
    let found = ask(&dns, "web.default.svc.cluster.local.", RecordType::A).await;
    assert!(found.metadata.authoritative && found.metadata.recursion_desired && !found.metadata.recursion_available);
    for (name, code) in [
        ("nope.default.svc.cluster.local.", ResponseCode::NXDomain),
        ("default.svc.cluster.local.", ResponseCode::NoError),
    ] {
        let message = ask(&dns, name, RecordType::A).await;
        assert_eq!((message.metadata.response_code, message.metadata.authoritative), (code, true));
        let [authority] = message.authorities.as_slice() else { panic!("one SOA: {message:?}") };
        let RData::SOA(soa) = &authority.data else { panic!("a SOA: {authority}") };
        assert_eq!((authority.name.to_string(), soa.minimum), ("cluster.local.".to_string(), 5));
        assert!(soa.serial > 1_700_000_000, "the serial is the time of the last change");
    }
    let message = ask(&dns, "_https._tcp.headless.default.svc.cluster.local.", RecordType::SRV).await;
    let mut lines: Vec<String> = message.additionals.iter().map(line).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "10-3-0-2.headless.default.svc.cluster.local. 5 A 10.3.0.2",
            "my-pet.headless.default.svc.cluster.local. 5 A 10.3.0.1",
            "my-pet.headless.default.svc.cluster.local. 5 A 10.3.1.1",
            "my-pet.headless.default.svc.cluster.local. 5 AAAA 2001:db8::1",
        ]
    );
    // Each client gets another order, so that the first address is not everybody's.
    let mut firsts = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let message = ask(&dns, "headless.default.svc.cluster.local.", RecordType::A).await;
        firsts.insert(message.answers[0].data.to_string());
    }
    assert_eq!(firsts.len(), 3);
}

#[tokio::test]
async fn another_domain_is_used_everywhere_and_the_usual_one_still_answers() {
    let cluster = zoo().await;
    let dns = cluster.dns(DnsConfig { cluster_domain: "corp.internal".into(), ..DnsConfig::default() }).await;
    for (name, kind, want) in [
        ("web.default.svc.corp.internal.", RecordType::A, "web.default.svc.corp.internal. 5 A 10.96.1.1"),
        ("web.default.svc.cluster.local.", RecordType::A, "web.default.svc.cluster.local. 5 A 10.96.1.1"),
        ("1.1.96.10.in-addr.arpa.", RecordType::PTR, "1.1.96.10.in-addr.arpa. 5 PTR web.default.svc.corp.internal."),
        (
            "_http._tcp.web.default.svc.corp.internal.",
            RecordType::SRV,
            "_http._tcp.web.default.svc.corp.internal. 5 SRV 0 100 80 web.default.svc.corp.internal.",
        ),
        ("dns-version.corp.internal.", RecordType::TXT, "dns-version.corp.internal. 28800 TXT 1.1.0"),
        ("nope.default.svc.corp.internal.", RecordType::A, "NXDomain"),
        // Not ours, and there is nobody to ask.
        ("web.default.svc.other.internal.", RecordType::A, "Refused"),
    ] {
        assert_eq!(answers(&dns, name, kind).await, [want], "{name}");
    }
}

#[tokio::test]
async fn changes_are_visible_within_a_second() {
    let cluster = zoo().await;
    let dns = cluster.dns(DnsConfig::default()).await;
    let name = "late.default.svc.cluster.local.";
    assert_eq!(answers(&dns, name, RecordType::A).await, ["NXDomain"]);
    cluster.service("default", "late", json!({"clusterIP": "None", "ports": [{"port": 80}]})).await;
    let ports = json!([{"port": 80}]);
    cluster.slice("default", "late", "late-1", &[("10.7.0.1", "", true)], ports.clone()).await;
    let mut longest = until(&dns, name, RecordType::A, &["late.default.svc.cluster.local. 5 A 10.7.0.1"]).await;
    // Not ready, then another address, then gone.
    for (endpoint, want) in [
        (("10.7.0.1", "", false), "NXDomain"),
        (("10.7.0.2", "", true), "late.default.svc.cluster.local. 5 A 10.7.0.2"),
    ] {
        let object = slice("late", "late-1", &[endpoint], ports.clone());
        cluster.rest.update(&SLICES, "", "default", "late-1", &object).await.unwrap();
        longest = longest.max(until(&dns, name, RecordType::A, &[want]).await);
    }
    assert_eq!(answers(&dns, "2.0.7.10.in-addr.arpa.", RecordType::PTR).await.len(), 1);
    cluster.rest.delete(&SERVICES, "default", "late", &Default::default()).await.unwrap();
    longest = longest.max(until(&dns, name, RecordType::A, &["NXDomain"]).await);
    until(&dns, "2.0.7.10.in-addr.arpa.", RecordType::PTR, &["Refused"]).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "fresh"}});
    cluster.create(&NAMESPACES, "", namespace).await;
    longest = longest.max(until(&dns, "fresh.svc.cluster.local.", RecordType::A, &["NoError"]).await);
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[tokio::test]
async fn a_zone_of_five_thousand_services_is_answered_whole() {
    let cluster = Cluster::start().await;
    let create = async |from: usize| {
        for number in (from..5_000).step_by(8) {
            let name = format!("s{number}");
            cluster.service("default", &name, json!({"type": "ExternalName", "externalName": "x.example"})).await;
        }
    };
    tokio::join!(create(0), create(1), create(2), create(3), create(4), create(5), create(6), create(7));
    let dns = cluster.dns(DnsConfig::default()).await;
    for number in (0..5_000).step_by(7) {
        let name = format!("s{number}.default.svc.cluster.local.");
        assert_eq!(answers(&dns, &name, RecordType::CNAME).await, [format!("{name} 5 CNAME x.example.")]);
    }
    assert!(dns.metrics().contains("alcove_dns_services 5001"), "{}", dns.metrics());
}
