//! Questions to a DNS server about a zone of many Services.
//!
//! The Services are made through the API, so that the server has them from its watches; then several clients ask about them
//! in turn over UDP, each waiting for its answer. A wrong or missing answer ends the run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::net::UdpSocket;

use crate::api::{client, request};
use crate::measure::{Report, Row, cpu_time};

/// Where a cluster without an address that pods reach tells its own.
const ADDRESS_ANNOTATION: &str = "/metadata/annotations/alcove.dev~1dns-address";
/// Services that are created at the same time.
const CREATIONS: usize = 32;
const TYPE_A: u16 = 1;
const TYPE_SRV: u16 = 33;

#[derive(clap::Args)]
pub struct Options {
    /// Kubeconfig of the virtual cluster
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Its DNS server [default: what Service kube-system/kube-dns says]
    #[arg(long)]
    server: Option<SocketAddr>,
    /// Domain of the cluster
    #[arg(long, default_value = "cluster.local")]
    domain: String,
    /// Process id of the server, to count its CPU time
    #[arg(long)]
    pid: Option<u32>,
    /// Services in the zone
    #[arg(long, default_value_t = 5_000)]
    services: usize,
    /// Questions per row
    #[arg(long, default_value_t = 100_000)]
    questions: usize,
    /// Clients that ask at the same time
    #[arg(long, default_value_t = 8)]
    clients: usize,
}

pub async fn run(options: Options) -> anyhow::Result<Report> {
    let api = client(&options.kubeconfig).await?;
    let server = match options.server {
        Some(server) => server,
        None => {
            let text = api.request_text(request("GET", "/api/v1/namespaces/kube-system/services/kube-dns", None)?);
            let service: Value = serde_json::from_str(&text.await.context("the cluster has no Service kube-dns")?)?;
            let address = service.pointer(ADDRESS_ANNOTATION).and_then(Value::as_str);
            address.context("the Service does not tell the server's address; name it with --server")?.parse()?
        }
    };
    let namespace = format!("bench-{}", std::process::id());
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    api.request_text(request("POST", "/api/v1/namespaces", Some(body))?).await?;
    let begin = Instant::now();
    let path = format!("/api/v1/namespaces/{namespace}/services");
    let mut creations = futures::stream::iter(0..options.services)
        .map(|number| {
            let body = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{number}")},
                "spec": {"ports": [{"name": "http", "port": 80}]}});
            let (api, path) = (api.clone(), &path);
            async move { anyhow::Ok(api.request_text(request("POST", path, Some(body))?).await?) }
        })
        // Each waits for its Service on the host.
        .buffer_unordered(CREATIONS);
    while let Some(created) = creations.next().await {
        created?;
    }
    let made = begin.elapsed();
    let begin = Instant::now();
    for number in 0..options.services {
        let last = name("", number, &namespace, &options.domain);
        while ask(server, &last, TYPE_A).await? == 0 {
            ensure!(begin.elapsed() < Duration::from_secs(30), "Service s{number} has no name after 30 s");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let mut rows = vec![Row::value(format!("Services created, {}", options.services), made.as_secs_f64(), "s")];
    for (what, prefix, kind) in [("A", "", TYPE_A), ("SRV", "_http._tcp.", TYPE_SRV)] {
        rows.extend(measure(&options, server, &namespace, what, prefix, kind).await?);
    }
    api.request_text(request("DELETE", &format!("/api/v1/namespaces/{namespace}"), None)?).await?;
    Ok(Report { rows })
}

async fn measure(
    options: &Options,
    server: SocketAddr,
    namespace: &str,
    what: &str,
    prefix: &'static str,
    kind: u16,
) -> anyhow::Result<Vec<Row>> {
    let before = options.pid.map(cpu_time).transpose()?;
    let begin = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..options.clients {
        let (namespace, domain) = (namespace.to_owned(), options.domain.clone());
        let (services, clients_total) = (options.services, options.clients);
        let questions = options.questions / options.clients;
        clients.spawn(async move {
            let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
            socket.connect(server).await?;
            let mut samples = Vec::with_capacity(questions);
            let mut buffer = [0; 4096];
            for number in 0..questions {
                // A stride that meets every Service, in another order for each client.
                let service = (number * 7919 + client * services / clients_total) % services;
                let packet = packet(&name(prefix, service, &namespace, &domain), kind, number as u16)?;
                let asked = Instant::now();
                socket.send(&packet).await?;
                let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
                let length = received.context("no answer within 5 s")??;
                samples.push(asked.elapsed());
                ensure!(answers(&buffer[..length]) == Some(1), "s{service} has no answer");
            }
            anyhow::Ok(samples)
        });
    }
    let mut samples = Vec::with_capacity(options.questions);
    while let Some(client) = clients.join_next().await {
        samples.extend(client??);
    }
    let took = begin.elapsed();
    let cpu = match (options.pid, before) {
        (Some(pid), Some(before)) => Some(cpu_time(pid)?.saturating_sub(before)),
        _ => None,
    };
    let rate = samples.len() as f64 / took.as_secs_f64();
    let title = format!("{what}, {} clients, {} Services", options.clients, options.services);
    Ok(vec![Row::latency(title.clone(), samples, cpu), Row::value(title, rate, "questions per second")])
}

fn name(prefix: &str, service: usize, namespace: &str, domain: &str) -> String {
    format!("{prefix}s{service}.{namespace}.svc.{domain}")
}

/// How many records answer a question.
async fn ask(server: SocketAddr, name: &str, kind: u16) -> anyhow::Result<u16> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
    socket.connect(server).await?;
    socket.send(&packet(name, kind, 1)?).await?;
    let mut buffer = [0; 4096];
    let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
    let length = received.with_context(|| format!("{server} does not answer"))??;
    answers(&buffer[..length]).context("the answer is too short")
}

/// A question as it goes over the wire.
fn packet(name: &str, kind: u16, id: u16) -> anyhow::Result<Vec<u8>> {
    let mut packet = Vec::with_capacity(64);
    packet.extend_from_slice(&id.to_be_bytes());
    // Recursion desired; one question.
    packet.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let Ok(length @ 1..=63) = u8::try_from(label.len()) else { bail!("{name} is no DNS name") };
        packet.push(length);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    Ok(packet)
}

fn answers(packet: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]))
}
