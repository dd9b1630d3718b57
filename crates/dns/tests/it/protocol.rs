//! Packets: sizes, truncation, EDNS, TCP, and what is no question.

use std::time::Duration;

use apimachinery::json;
use dns::DnsConfig;
use hickory_proto::op::{Edns, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test]
async fn a_large_answer_is_cut_over_udp_and_whole_over_tcp() {
    let cluster = Cluster::start().await;
    cluster.service("default", "many", json!({"clusterIP": "None", "ports": [{"name": "p", "port": 80}]})).await;
    let addresses: Vec<String> = (0..100).map(|n| format!("10.5.0.{n}")).collect();
    let endpoints: Vec<_> = addresses.iter().map(|address| (address.as_str(), "", true)).collect();
    cluster.slice("default", "many", "many-1", &endpoints, json!([{"name": "p", "port": 80}])).await;
    let dns = cluster.dns(DnsConfig::default()).await;
    let name = "many.default.svc.cluster.local.";
    let plain = question(name, RecordType::A);
    for (message, least, truncated) in [
        (plain.clone(), 20, true),
        (with_edns(plain.clone(), 100), 20, true),
        (with_edns(plain.clone(), 1232), 60, true),
        (with_edns(plain.clone(), 4096), 100, false),
    ] {
        // `udp` checks the size against what was offered, but 512 are always taken.
        let offered = message.edns.as_ref().map_or(512, Edns::max_payload).max(512);
        let packet = raw_udp(dns.address(), &message.to_vec().unwrap(), DEADLINE).await.unwrap();
        assert!(packet.len() <= offered.into(), "{} of {offered}", packet.len());
        let answer = hickory_proto::op::Message::from_vec(&packet).unwrap();
        assert_eq!(answer.metadata.truncation, truncated, "{offered}");
        assert!(answer.answers.len() >= least, "{} answers in {offered}", answer.answers.len());
        assert_eq!(answer.edns.is_some(), message.edns.is_some());
    }
    for kind in [RecordType::A, RecordType::SRV] {
        let whole = tcp(dns.address(), &question(name, kind)).await;
        assert_eq!((whole.answers.len(), whole.metadata.truncation), (100, false));
    }
}

#[tokio::test]
async fn one_connection_carries_many_questions() {
    let cluster = Cluster::start().await;
    let dns = cluster.dns(DnsConfig::default()).await;
    let mut stream = TcpStream::connect(dns.address()).await.unwrap();
    let messages: Vec<_> = (0..50).map(|_| question("kubernetes.default.svc.cluster.local.", RecordType::A)).collect();
    let mut bytes = Vec::new();
    for message in &messages {
        let packet = message.to_vec().unwrap();
        bytes.extend_from_slice(&(packet.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&packet);
    }
    // In two pieces that fall into the middle of a question.
    stream.write_all(&bytes[..61]).await.unwrap();
    stream.flush().await.unwrap();
    stream.write_all(&bytes[61..]).await.unwrap();
    for message in &messages {
        let mut packet = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut packet).await.unwrap();
        assert_eq!(packet[..2], message.metadata.id.to_be_bytes());
    }
}

#[tokio::test]
async fn what_is_no_question_gets_an_error_or_nothing() {
    let cluster = Cluster::start().await;
    let dns = cluster.dns(DnsConfig::default()).await;
    let good = || question("kubernetes.default.svc.cluster.local.", RecordType::A);
    let mut two = good();
    two.add_query(good().queries[0].clone());
    let mut none = good();
    none.queries.clear();
    let mut update = good();
    update.metadata.op_code = OpCode::Update;
    let mut chaos = good();
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut future = good();
    let mut edns = Edns::new();
    edns.set_version(1);
    future.set_edns(edns);
    let transfer = question("cluster.local.", RecordType::AXFR);
    for (what, message, want) in [
        ("two questions", two, ResponseCode::FormErr),
        ("no question", none, ResponseCode::FormErr),
        ("an update", update, ResponseCode::NotImp),
        ("another class", chaos, ResponseCode::Refused),
        ("a later EDNS", future, ResponseCode::BADVERS),
        ("a transfer", transfer, ResponseCode::Refused),
    ] {
        let packet = raw_udp(dns.address(), &message.to_vec().unwrap(), DEADLINE).await.expect(what);
        let answer = hickory_proto::op::Message::from_vec(&packet).unwrap();
        // Number 16 has two names.
        assert_eq!(u16::from(answer.metadata.response_code), u16::from(want), "{what}");
        assert_eq!(answer.metadata.id, message.metadata.id, "{what}");
    }
    let mut cut = good().to_vec().unwrap();
    cut.truncate(20);
    let packet = raw_udp(dns.address(), &cut, DEADLINE).await.expect("an answer to a broken question");
    let answer = hickory_proto::op::Message::from_vec(&packet).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    // Neither too little for a header nor an answer may be answered; a question after them is.
    let mut reply = good();
    reply.metadata.message_type = MessageType::Response;
    for packet in [vec![1, 2, 3], reply.to_vec().unwrap()] {
        assert_eq!(raw_udp(dns.address(), &packet, Duration::from_millis(50)).await, None);
    }
    assert_eq!(ask(&dns, "cluster.local.", RecordType::A).await.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn counters_tell_what_was_asked() {
    let cluster = Cluster::start().await;
    let dns = cluster.dns(DnsConfig::default()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    dns.serve_metrics(listener);
    ask(&dns, "nope.default.svc.cluster.local.", RecordType::A).await;
    tcp(dns.address(), &question("cluster.local.", RecordType::SOA)).await;
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = get("/metrics").await;
    for line in [
        "coredns_dns_requests_total{server=\"dns://:1053\",zone=\".\",proto=\"udp\",type=\"A\"} 1\n",
        "coredns_dns_requests_total{server=\"dns://:1053\",zone=\".\",proto=\"tcp\",type=\"SOA\"} 1\n",
        "coredns_dns_responses_total{server=\"dns://:1053\",zone=\".\",rcode=\"NXDOMAIN\"} 1\n",
        "coredns_dns_request_duration_seconds_count 2\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(get("/ready").await.starts_with("HTTP/1.0 200"));
    assert!(get("/other").await.starts_with("HTTP/1.0 404"));
}
