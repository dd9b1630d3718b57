//! Names that other servers know.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use apimachinery::json;
use dns::{DnsConfig, Policy};
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::support::*;

fn a(octets: [u8; 4]) -> RData {
    RData::A(A(octets.into()))
}

/// Knows `*.example.com`, one alias, one large name, and nothing else.
fn internet(query: &Query) -> Option<(ResponseCode, Vec<RData>)> {
    let name = query.name.to_string().to_lowercase();
    Some(match (name.as_str(), query.query_type) {
        ("alias.example.com.", RecordType::A) => {
            let target = Name::from_ascii("target.example.com.").unwrap();
            (ResponseCode::NoError, vec![RData::CNAME(CNAME(target)), a([192, 0, 2, 2])])
        }
        ("large.example.com.", RecordType::A) => (ResponseCode::NoError, (0..200).map(|n| a([192, 0, 2, n])).collect()),
        (name, RecordType::A) if name.ends_with(".example.com.") => (ResponseCode::NoError, vec![a([192, 0, 2, 1])]),
        (name, _) if name.ends_with(".example.com.") => (ResponseCode::NoError, vec![]),
        _ => (ResponseCode::NXDomain, vec![]),
    })
}

fn to(servers: &[SocketAddr]) -> DnsConfig {
    DnsConfig { forward: servers.to_vec(), policy: Policy::Sequential, ..DnsConfig::default() }
}

#[tokio::test]
async fn names_outside_are_asked_kept_and_aged() {
    let cluster = Cluster::start().await;
    let upstream = Upstream::start(internet).await;
    let dns = cluster.dns(to(&[upstream.address])).await;
    let first = ask(&dns, "www.example.com.", RecordType::A).await;
    assert_eq!(text(&first), ["www.example.com. 30 A 192.0.2.1"]);
    assert!(first.metadata.recursion_available && !first.metadata.authoritative);
    // The probe for loops is a question too.
    let asked = upstream.asked();
    for name in ["www.example.com.", "WWW.Example.com."] {
        let kept = ask(&dns, name, RecordType::A).await;
        assert_eq!(kept.answers[0].data, a([192, 0, 2, 1]));
        assert!(kept.answers[0].ttl <= 30);
    }
    for _ in 0..3 {
        assert_eq!(answers(&dns, "nope.invalid.", RecordType::A).await, ["NXDomain"]);
        assert_eq!(answers(&dns, "www.example.com.", RecordType::AAAA).await, ["NoError"]);
    }
    assert!(upstream.asked() <= asked + 3, "denials are kept: {} after {asked}", upstream.asked());
    assert!(dns.metrics().contains("coredns_cache_hits_total{type=\"denial\"} 4"), "{}", dns.metrics());
    assert_eq!(
        answers(&dns, "alias.example.com.", RecordType::A).await,
        ["alias.example.com. 30 CNAME target.example.com.", "target.example.com. 30 A 192.0.2.2",]
    );
    // An address that no Service has.
    assert_eq!(answers(&dns, "9.9.9.9.in-addr.arpa.", RecordType::PTR).await, ["NXDomain"]);
    // A name of the cluster never leaves it.
    let asked = upstream.asked();
    assert_eq!(answers(&dns, "nope.default.svc.cluster.local.", RecordType::A).await, ["NXDomain"]);
    assert_eq!(upstream.asked(), asked);
}

#[tokio::test]
async fn an_external_name_is_followed_to_other_servers() {
    let cluster = Cluster::start().await;
    let service = |name: &str| json!({"type": "ExternalName", "externalName": (name)});
    cluster.service("default", "far", service("www.example.com")).await;
    cluster.service("default", "gone", service("gone.invalid")).await;
    let upstream = Upstream::start(internet).await;
    let dns = cluster.dns(to(&[upstream.address])).await;
    assert_eq!(
        answers(&dns, "far.default.svc.cluster.local.", RecordType::A).await,
        ["far.default.svc.cluster.local. 5 CNAME www.example.com.", "www.example.com. 30 A 192.0.2.1",]
    );
    assert_eq!(
        answers(&dns, "gone.default.svc.cluster.local.", RecordType::A).await,
        ["gone.default.svc.cluster.local. 5 CNAME gone.invalid."]
    );
}

#[tokio::test]
async fn a_cut_answer_is_fetched_over_tcp() {
    let cluster = Cluster::start().await;
    let upstream = Upstream::start(internet).await;
    let dns = cluster.dns(to(&[upstream.address])).await;
    let answer = tcp(dns.address(), &question("large.example.com.", RecordType::A)).await;
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (200, false));
    assert!(ask(&dns, "large.example.com.", RecordType::A).await.metadata.truncation);
}

#[tokio::test]
async fn a_silent_server_is_waited_for_once() {
    let cluster = Cluster::start().await;
    let silent = Upstream::start(|_| None).await;
    let good = Upstream::start(internet).await;
    let dns = cluster.dns(to(&[silent.address, good.address])).await;
    let begin = Instant::now();
    assert_eq!(answers(&dns, "a.example.com.", RecordType::A).await, ["a.example.com. 30 A 192.0.2.1"]);
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    // From now on it is asked last: another wait would be another failure.
    assert_eq!(answers(&dns, "b.example.com.", RecordType::A).await, ["b.example.com. 30 A 192.0.2.1"]);
    assert!(dns.metrics().contains(&format!("coredns_forward_failures_total{{to=\"{}\"}} 1", silent.address)));
}

#[tokio::test]
async fn a_server_that_fails_is_followed_by_the_next() {
    let cluster = Cluster::start().await;
    let failing = Upstream::start(|_| Some((ResponseCode::ServFail, vec![]))).await;
    let good = Upstream::start(internet).await;
    let dns = cluster.dns(to(&[failing.address, good.address])).await;
    assert_eq!(answers(&dns, "a.example.com.", RecordType::A).await, ["a.example.com. 30 A 192.0.2.1"]);
    let alone = cluster.dns(to(&[failing.address])).await;
    assert_eq!(answers(&alone, "a.example.com.", RecordType::A).await, ["ServFail"]);
}

#[tokio::test]
async fn many_clients_with_one_question_cost_one_question() {
    let cluster = Cluster::start().await;
    let started = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&held);
    let upstream = Upstream::start(move |query| {
        if query.query_type == RecordType::A {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        internet(query)
    })
    .await;
    let dns = cluster.dns(to(&[upstream.address])).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (address, started) = (dns.address(), Arc::clone(&started));
        clients.spawn(async move {
            let _all = started.acquire().await;
            text(&udp(address, &question("one.example.com.", RecordType::A)).await)
        });
    }
    started.add_permits(100);
    while let Some(answer) = clients.join_next().await {
        assert_eq!(answer.unwrap()[0].split(' ').next_back(), Some("192.0.2.1"));
    }
    assert_eq!(held.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn questions_that_come_back_are_noticed() {
    let cluster = Cluster::start().await;
    let sockets = dns::Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let own = sockets.address().unwrap();
    let dns = dns::Dns::start(cluster.rest.client().clone(), to(&[own]), sockets).unwrap();
    let begin = Instant::now();
    // The probe needs a moment; from then on the answer comes at once.
    loop {
        let asked = Instant::now();
        let answer = answers(&dns, "www.example.com.", RecordType::A).await;
        assert_eq!(answer, ["ServFail"]);
        if asked.elapsed() < Duration::from_millis(500) {
            break;
        }
        assert!(begin.elapsed() < DEADLINE);
    }
    assert_eq!(answers(&dns, "cluster.local.", RecordType::A).await, ["NoError"]);
    dns.shutdown().await;
}
