//! A cluster in memory, a DNS server for it, a stub resolver, and a scripted server to forward to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use apimachinery::{Value, json};
use apiserver::{ApiServer, Config, UserInfo};
use dns::{Dns, DnsConfig, Sockets};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use informer::{Resource, Rest};
use store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

pub const SERVICES: Resource = Resource::new("", "v1", "services");
pub const SLICES: Resource = Resource::new("discovery.k8s.io", "v1", "endpointslices");
pub const NAMESPACES: Resource = Resource::new("", "v1", "namespaces");
pub const NODES: Resource = Resource::new("", "v1", "nodes");
pub const CONFIG_MAPS: Resource = Resource::new("", "v1", "configmaps");
pub const EVENTS: Resource = Resource::new("", "v1", "events");

pub const DEADLINE: Duration = Duration::from_secs(10);

pub struct Cluster {
    pub rest: Rest,
    _server: ApiServer,
}

impl Cluster {
    pub async fn start() -> Cluster {
        let config = Config { service_cluster_ip_range: "10.96.0.0/12,fd00:10::/108".into(), ..Config::default() };
        let store = Store::in_memory(store::Options::default()).await;
        let server = ApiServer::start(config, store).await.expect("the API server starts");
        let client = server.kube_client(UserInfo::new("test", [apiserver::authn::SYSTEM_MASTERS]));
        let cluster = Cluster { rest: Rest::new(client, "test"), _server: server };
        for name in ["default", "kube-system"] {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": (name)}});
            // The server may have made it by itself.
            match cluster.rest.create(&NAMESPACES, "", &object).await {
                Err(error) if !error.is_already_exists() => panic!("{error}"),
                _ => {}
            }
        }
        cluster
    }

    pub async fn dns(&self, config: DnsConfig) -> Dns {
        let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).await.expect("a free port");
        let dns = Dns::start(self.rest.client().clone(), config, sockets).expect("the DNS server starts");
        let begin = Instant::now();
        while !dns.is_ready() {
            assert!(begin.elapsed() < DEADLINE, "the DNS server did not become ready");
            tokio::task::yield_now().await;
        }
        dns
    }

    pub async fn create(&self, resource: &Resource, namespace: &str, object: Value) {
        self.rest.create(resource, namespace, &object).await.unwrap_or_else(|error| panic!("{error}: {object:?}"));
    }

    pub async fn service(&self, namespace: &str, name: &str, spec: Value) {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": (name)}, "spec": (spec)});
        self.create(&SERVICES, namespace, object).await;
    }

    /// Endpoints as (address, host name, ready).
    pub async fn slice(
        &self,
        namespace: &str,
        service: &str,
        name: &str,
        endpoints: &[(&str, &str, bool)],
        ports: Value,
    ) {
        self.create(&SLICES, namespace, slice(service, name, endpoints, ports)).await;
    }
}

pub fn slice(service: &str, name: &str, endpoints: &[(&str, &str, bool)], ports: Value) -> Value {
    let family = if endpoints.iter().any(|(address, ..)| address.contains(':')) { "IPv6" } else { "IPv4" };
    let endpoints = endpoints.iter().map(|(address, hostname, ready)| {
        let mut endpoint = json!({"addresses": [(*address)], "conditions": {"ready": (*ready)}});
        if !hostname.is_empty() {
            endpoint["hostname"] = (*hostname).into();
        }
        endpoint
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": (name), "labels": {"kubernetes.io/service-name": (service)}},
        "addressType": (family),
        "endpoints": (Value::Array(endpoints.collect())),
        "ports": (ports),
    })
}

pub fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message
}

pub fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

/// Sends bytes and gives the answer, `None` when nothing comes within `wait`.
pub async fn raw_udp(server: SocketAddr, packet: &[u8], wait: Duration) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut buffer = vec![0; 65535];
    let length = tokio::time::timeout(wait, socket.recv(&mut buffer)).await.ok()?.ok()?;
    buffer.truncate(length);
    Some(buffer)
}

pub async fn udp(server: SocketAddr, message: &Message) -> Message {
    let packet = raw_udp(server, &message.to_vec().unwrap(), DEADLINE).await.expect("an answer");
    let limit = message.edns.as_ref().map_or(512, |edns| edns.max_payload()).into();
    assert!(packet.len() <= limit, "{} bytes are more than {limit}", packet.len());
    checked(message, &packet)
}

pub async fn tcp(server: SocketAddr, message: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let packet = message.to_vec().unwrap();
    stream.write_u16(packet.len() as u16).await.unwrap();
    stream.write_all(&packet).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await.unwrap();
    checked(message, &answer)
}

fn checked(asked: &Message, packet: &[u8]) -> Message {
    let answer = Message::from_vec(packet).expect("an answer is a message");
    assert_eq!(answer.metadata.id, asked.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert_eq!(answer.queries, asked.queries, "the question comes back");
    assert_eq!(answer.edns.is_some(), asked.edns.is_some(), "EDNS is answered with EDNS");
    answer
}

pub async fn ask(dns: &Dns, name: &str, kind: RecordType) -> Message {
    udp(dns.address(), &question(name, kind)).await
}

/// The data of the answers, sorted; the code when there is none.
pub fn text(message: &Message) -> Vec<String> {
    let mut lines: Vec<String> = message.answers.iter().map(line).collect();
    lines.sort();
    if message.metadata.response_code != ResponseCode::NoError || lines.is_empty() {
        lines.push(format!("{:?}", message.metadata.response_code));
    }
    lines
}

pub fn line(record: &Record) -> String {
    format!("{} {} {} {}", record.name, record.ttl, record.record_type(), record.data)
}

pub async fn answers(dns: &Dns, name: &str, kind: RecordType) -> Vec<String> {
    text(&ask(dns, name, kind).await)
}

/// Asks until the answer is `want`; gives how long it took.
pub async fn until(dns: &Dns, name: &str, kind: RecordType, want: &[&str]) -> Duration {
    let begin = Instant::now();
    loop {
        let got = answers(dns, name, kind).await;
        if got == want {
            return begin.elapsed();
        }
        assert!(begin.elapsed() < DEADLINE, "{name} {kind}: {got:?}, want {want:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A server with answers of its own, on UDP and TCP.
pub struct Upstream {
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Upstream {
    pub async fn start(
        answer: impl Fn(&Query) -> Option<(ResponseCode, Vec<RData>)> + Send + Sync + 'static,
    ) -> Upstream {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(answer);
        let reply = move |packet: &[u8]| -> Option<Message> {
            let message = Message::from_vec(packet).ok()?;
            let (code, data) = answer(&message.queries[0])?;
            let mut reply = Message::response(message.metadata.id, OpCode::Query);
            reply.metadata.response_code = code;
            reply.metadata.recursion_available = true;
            let name = message.queries[0].name.clone();
            let mut owner = name;
            for data in data {
                let next = if let RData::CNAME(target) = &data { Some(target.0.clone()) } else { None };
                reply.add_answer(Record::from_rdata(owner.clone(), 60, data));
                owner = next.unwrap_or(owner);
            }
            reply.queries = message.queries;
            Some(reply)
        };
        let (count, over_udp) = (Arc::clone(&asked), reply.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                let Some(mut message) = over_udp(&buffer[..length]) else { continue };
                if message.to_vec().unwrap().len() > 1232 {
                    message = message.truncate();
                }
                let _ = udp.send_to(&message.to_vec().unwrap(), client).await;
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let length = stream.read_u16().await.unwrap();
                let mut packet = vec![0; length.into()];
                stream.read_exact(&mut packet).await.unwrap();
                let Some(message) = reply(&packet) else { continue };
                let packet = message.to_vec().unwrap();
                stream.write_u16(packet.len() as u16).await.unwrap();
                stream.write_all(&packet).await.unwrap();
            }
        });
        Upstream { address, asked }
    }

    /// How many questions came over UDP.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}
