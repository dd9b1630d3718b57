//! The requests every client makes, one after another, so that latency is the server's and not a queue's.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::AsyncBufReadExt;
use http::Request;
use serde_json::json;

use crate::measure::{Report, Row, cpu_time, resident_mib};

#[derive(clap::Args)]
pub struct Options {
    /// Kubeconfig of the server under test
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Process id of the server, to count its CPU time and memory (may be repeated: kube-apiserver and etcd)
    #[arg(long)]
    pid: Vec<u32>,
    /// Requests per row
    #[arg(long, default_value_t = 2000)]
    requests: usize,
    /// Objects that LIST returns
    #[arg(long, default_value_t = 1000)]
    objects: usize,
}

pub async fn client(kubeconfig: &PathBuf) -> anyhow::Result<kube::Client> {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// The sum of several processes' CPU time, `None` when none is known.
pub fn cpu(pids: &[u32]) -> anyhow::Result<Option<Duration>> {
    if pids.is_empty() {
        return Ok(None);
    }
    Ok(Some(pids.iter().map(|pid| cpu_time(*pid)).sum::<anyhow::Result<Duration>>()?))
}

pub fn request(method: &str, path: &str, body: Option<serde_json::Value>) -> anyhow::Result<Request<Vec<u8>>> {
    let body = body.map(|b| serde_json::to_vec(&b)).transpose()?.unwrap_or_default();
    Ok(Request::builder().method(method).uri(path).header("content-type", "application/json").body(body)?)
}

pub fn config_map(name: &str, size_bytes: usize) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": "bench"}},
        "data": {"value": "x".repeat(size_bytes)}})
}

pub async fn run(options: Options) -> anyhow::Result<Report> {
    let client = client(&options.kubeconfig).await?;
    let namespace = format!("bench-{}", std::process::id());
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    client
        .request_text(request("POST", "/api/v1/namespaces", Some(body))?)
        .await
        .context("could not create a namespace")?;
    let base = format!("/api/v1/namespaces/{namespace}/configmaps");
    let mut report = Report::default();

    let before = cpu(&options.pid)?;
    let mut samples = Vec::new();
    for i in 0..options.objects {
        let start = Instant::now();
        client.request_text(request("POST", &base, Some(config_map(&format!("c{i}"), 900)))?).await?;
        samples.push(start.elapsed());
    }
    report.rows.push(Row::latency("CREATE ConfigMap 0.9 KiB", samples, spent(before, &options.pid)?));

    let before = cpu(&options.pid)?;
    let mut samples = Vec::new();
    for i in 0..options.requests {
        let path = format!("{base}/c{}", i % options.objects);
        let start = Instant::now();
        client.request_text(request("GET", &path, None)?).await?;
        samples.push(start.elapsed());
    }
    report.rows.push(Row::latency("GET ConfigMap", samples, spent(before, &options.pid)?));

    let before = cpu(&options.pid)?;
    let mut samples = Vec::new();
    for _ in 0..(options.requests / 20).max(20) {
        let start = Instant::now();
        let text = client.request_text(request("GET", &base, None)?).await?;
        samples.push(start.elapsed());
        anyhow::ensure!(text.len() > options.objects * 900, "the list is too short: {} bytes", text.len());
    }
    let name = format!("LIST {} ConfigMaps", options.objects);
    report.rows.push(Row::latency(name, samples, spent(before, &options.pid)?));

    let watch = request("GET", &format!("{base}?watch=true"), None)?;
    let mut lines = client.request_stream(watch).await?.lines();
    for _ in 0..options.objects {
        next_line(&mut lines).await?;
    }
    let before = cpu(&options.pid)?;
    let mut samples = Vec::new();
    for i in 0..(options.requests / 4).max(50) {
        let name = format!("w{i}");
        let start = Instant::now();
        let create = client.request_text(request("POST", &base, Some(config_map(&name, 900)))?);
        let (created, event) = tokio::join!(create, next_line(&mut lines));
        created?;
        anyhow::ensure!(event?.contains(&name), "the watch answered another event");
        samples.push(start.elapsed());
    }
    report.rows.push(Row::latency("CREATE to watch event", samples, spent(before, &options.pid)?));

    for pid in &options.pid {
        report.rows.push(Row::value(format!("resident memory of process {pid}"), resident_mib(*pid)?, "MiB"));
    }
    let delete = request("DELETE", &format!("/api/v1/namespaces/{namespace}"), None)?;
    client.request_text(delete).await.context("could not delete the namespace")?;
    Ok(report)
}

pub fn spent(before: Option<Duration>, pids: &[u32]) -> anyhow::Result<Option<Duration>> {
    Ok(before.zip(cpu(pids)?).map(|(before, after)| after.saturating_sub(before)))
}

pub async fn next_line(
    lines: &mut (impl futures::Stream<Item = std::io::Result<String>> + Unpin),
) -> anyhow::Result<String> {
    use futures::StreamExt;
    let line = tokio::time::timeout(Duration::from_secs(30), lines.next()).await.context("no watch event in 30 s")?;
    Ok(line.context("the watch ended")??)
}
