//! Questions to a DNS server about a zone of many Services.
//!
//! The server is the one of a virtual cluster (`--kubeconfig`), or a process of its own with an API server in memory. The
//! Services are made through the API, so that the server has them from its watches; then several clients ask about them in
//! turn over UDP, each waiting for its answer. A wrong or missing answer ends the run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UdpSocket;

use crate::api::{client, request};
use crate::measure::{Report, Row, cpu_time, resident_mib};

/// Where a cluster without an address that pods reach tells its own.
const ADDRESS_ANNOTATION: &str = "/metadata/annotations/alcove.dev~1dns-address";
/// Services that are created at the same time.
const CREATIONS: usize = 32;
const TYPE_A: u16 = 1;
const TYPE_SRV: u16 = 33;

#[derive(clap::Args)]
pub struct Options {
    /// Kubeconfig of a virtual cluster [default: a DNS server in a process of its own]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Be that process: make the Services, tell the address, serve until the standard input ends
    #[arg(long, hide = true)]
    serve: bool,
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

/// What a question is about.
#[derive(Clone, Copy)]
struct Question {
    what: &'static str,
    prefix: &'static str,
    suffix: &'static str,
    kind: u16,
    answers: u16,
}

const QUESTIONS: [Question; 3] = [
    Question { what: "A", prefix: "", suffix: "", kind: TYPE_A, answers: 1 },
    Question { what: "SRV", prefix: "_http._tcp.", suffix: "", kind: TYPE_SRV, answers: 1 },
    // The first try of a pod with `ndots: 5` and its search path.
    Question { what: "NXDOMAIN", prefix: "", suffix: ".default.svc.cluster.local", kind: TYPE_A, answers: 0 },
];

pub async fn run(mut options: Options) -> anyhow::Result<Report> {
    if options.serve {
        // With more than this program's one thread, as the real one has.
        let served = tokio::task::spawn_blocking(move || tokio::runtime::Runtime::new()?.block_on(serve(&options)));
        served.await??;
        return Ok(Report::default());
    }
    let mut rows = Vec::new();
    match options.kubeconfig.clone() {
        Some(kubeconfig) => of_cluster(&mut options, &kubeconfig, &mut rows).await?,
        None => of_own_process(&mut options, &mut rows).await?,
    }
    Ok(Report { rows })
}

/// Asks all questions.
async fn ask_all(options: &Options, server: SocketAddr, namespace: &str, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let begin = Instant::now();
    for number in 0..options.services {
        let last = name("", number, namespace, &options.domain);
        while ask(server, &last, TYPE_A).await? == 0 {
            ensure!(begin.elapsed() < Duration::from_secs(30), "Service s{number} has no name after 30 s");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for question in QUESTIONS {
        rows.extend(measure(options, server, namespace, question).await?);
    }
    if let Some(pid) = options.pid {
        rows.push(Row::value(format!("resident memory of process {pid}"), resident_mib(pid)?, "MiB"));
    }
    Ok(())
}

async fn of_cluster(options: &mut Options, kubeconfig: &PathBuf, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let api = client(kubeconfig).await?;
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
    let begin = Instant::now();
    create_services(&api, &namespace, options.services).await?;
    rows.push(Row::value(format!("Services created, {}", options.services), begin.elapsed().as_secs_f64(), "s"));
    ask_all(options, server, &namespace, rows).await?;
    api.request_text(request("DELETE", &format!("/api/v1/namespaces/{namespace}"), None)?).await?;
    Ok(())
}

async fn create_services(api: &kube::Client, namespace: &str, count: usize) -> anyhow::Result<()> {
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    api.request_text(request("POST", "/api/v1/namespaces", Some(body))?).await?;
    let path = format!("/api/v1/namespaces/{namespace}/services");
    let mut creations = futures::stream::iter(0..count)
        .map(|number| {
            let body = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{number}")},
                "spec": {"ports": [{"name": "http", "port": 80}]}});
            let (api, path) = (api.clone(), &path);
            async move { anyhow::Ok(api.request_text(request("POST", path, Some(body))?).await?) }
        })
        // Each waits for its Service on the host, where there is one.
        .buffer_unordered(CREATIONS);
    while let Some(created) = creations.next().await {
        created?;
    }
    Ok(())
}

/// A process with the server alone, so that its CPU time can be told from that of the clients.
async fn of_own_process(options: &mut Options, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .args(["dns", "--serve", "--services"])
        .arg(options.services.to_string())
        .arg("--domain")
        .arg(&options.domain)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    let mut lines = BufReader::new(output).lines();
    let line = tokio::time::timeout(Duration::from_secs(300), lines.next_line()).await.context("it is not ready")??;
    let line = line.context("the server has ended")?;
    let server = line.strip_prefix("serving ").with_context(|| format!("the server says {line:?}"))?.parse()?;
    options.pid = child.id();
    ask_all(options, server, NAMESPACE, rows).await?;
    child.kill().await?;
    Ok(())
}

/// The namespace of the Services in a process of its own.
const NAMESPACE: &str = "bench";

/// The process of [`of_own_process`].
#[allow(clippy::print_stdout, reason = "how the other process learns the address")]
async fn serve(options: &Options) -> anyhow::Result<()> {
    let store = store::Store::in_memory(store::Options::default()).await;
    let config = apiserver::Config { service_cluster_ip_range: "10.96.0.0/12".into(), ..apiserver::Config::default() };
    let server = apiserver::ApiServer::start(config, store).await?;
    let api = server.kube_client(apiserver::UserInfo::admin());
    create_services(&api, NAMESPACE, options.services).await?;
    let sockets = ::dns::Sockets::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let config = ::dns::DnsConfig { cluster_domain: options.domain.clone(), ..::dns::DnsConfig::default() };
    let dns = ::dns::Dns::start(api, config, sockets)?;
    dns.wait_synced().await;
    println!("serving {}", dns.address());
    // Until the other process ends.
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
    dns.shutdown().await;
    server.shutdown().await;
    Ok(())
}

async fn measure(
    options: &Options,
    server: SocketAddr,
    namespace: &str,
    question: Question,
) -> anyhow::Result<Vec<Row>> {
    let Question { what, prefix, suffix, kind, answers: wanted } = question;
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
                let name = name(prefix, service, &namespace, &domain) + suffix;
                let packet = packet(&name, kind, number as u16)?;
                let asked = Instant::now();
                socket.send(&packet).await?;
                let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
                let length = received.context("no answer within 5 s")??;
                samples.push(asked.elapsed());
                ensure!(buffer[..2] == packet[..2], "{name}: the answer to another question");
                ensure!(answers(&buffer[..length]) == Some(wanted), "{name}: not {wanted} answers");
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
