//! Many virtual clusters on one host, and the way of a pod from a virtual cluster to the host.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::json;

use crate::api::{client, request};
use crate::measure::{Report, Row, resident_mib};

#[derive(clap::Args)]
pub struct ClusterOptions {
    /// The `alcove` binary; `alcove up` must be running
    #[arg(long, default_value = "target/release/alcove")]
    binary: PathBuf,
    /// Process id of the running hub
    #[arg(long)]
    pid: u32,
    /// How many clusters to create in all
    #[arg(long, default_value_t = 100)]
    clusters: usize,
    /// The hub's --sleep-after in seconds: measures clusters asleep, and their waking
    #[arg(long, value_name = "SECONDS")]
    sleep_after: Option<u64>,
}

pub async fn clusters(options: ClusterOptions) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let empty = resident_mib(options.pid)?;
    report.rows.push(Row::value("resident memory, no cluster", empty, "MiB"));
    let mut samples = Vec::new();
    for i in 1..=options.clusters {
        let begin = Instant::now();
        let output = Command::new(&options.binary)
            .args(["create", &format!("bench-{i}"), "--connect=false"])
            .output()
            .context("could not run alcove create")?;
        anyhow::ensure!(output.status.success(), "create failed: {}", String::from_utf8_lossy(&output.stderr));
        samples.push(begin.elapsed());
        if [1, 10, 100, 1000].contains(&i) {
            // Memory of a cluster that has settled, not of one that is starting.
            tokio::time::sleep(Duration::from_secs(5)).await;
            let each = (resident_mib(options.pid)? - empty) / i as f64;
            report.rows.push(Row::value(format!("resident memory per idle cluster, of {i}"), each, "MiB"));
        }
    }
    report.rows.push(Row::latency("alcove create to first successful request", samples, None));
    if let Some(seconds) = options.sleep_after {
        sleeping(&options, &mut report, empty, Duration::from_secs(seconds)).await?;
    }
    for i in 1..=options.clusters {
        let status = Command::new(&options.binary).args(["delete", &format!("bench-{i}")]).output()?.status;
        anyhow::ensure!(status.success(), "delete of bench-{i} failed");
    }
    Ok(report)
}

/// Waits until all clusters sleep, then wakes each with one request.
async fn sleeping(options: &ClusterOptions, report: &mut Report, empty: f64, after: Duration) -> anyhow::Result<()> {
    let list = || -> anyhow::Result<serde_json::Value> {
        let output = Command::new(&options.binary).args(["list", "-o", "json"]).output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let begin = Instant::now();
    loop {
        let clusters = list()?;
        let all = clusters.as_array().context("a list")?;
        if all.iter().all(|cluster| cluster["Status"] == "Sleeping") {
            break;
        }
        anyhow::ensure!(begin.elapsed() < after * 4 + Duration::from_secs(60), "the clusters do not sleep");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // The hub gives memory back a moment after the last of them.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let each = (resident_mib(options.pid)? - empty) / options.clusters as f64;
    report.rows.push(Row::value(format!("resident memory per sleeping cluster, of {}", options.clusters), each, "MiB"));
    let mut samples = Vec::new();
    for i in 1..=options.clusters {
        let output = Command::new(&options.binary)
            .args(["list", "-o", "json", "-n", &format!("vcluster-bench-{i}")])
            .output()?;
        let clusters: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        anyhow::ensure!(clusters[0]["Status"] == "Sleeping", "bench-{i} was woken by something else");
        // The kubeconfig on the host, read without touching the cluster.
        let secret = Command::new("kubectl")
            .args([
                "get",
                "secret",
                &format!("vc-bench-{i}"),
                "-n",
                &format!("vcluster-bench-{i}"),
                "-o",
                "jsonpath={.data.config}",
            ])
            .output()
            .context("kubectl is needed to read kubeconfigs")?;
        let text = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, secret.stdout)?;
        let file = std::env::temp_dir().join(format!("bench-{}-{i}.kubeconfig", std::process::id()));
        std::fs::write(&file, text)?;
        let woken = client(&file).await?;
        let begin = Instant::now();
        woken.request_text(request("GET", "/api/v1/namespaces", None)?).await?;
        samples.push(begin.elapsed());
        std::fs::remove_file(&file)?;
    }
    report.rows.push(Row::latency("first request to a sleeping cluster", samples, None));
    Ok(())
}

#[derive(clap::Args)]
pub struct PodOptions {
    /// Kubeconfig of the virtual cluster
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Kubeconfig of the host cluster
    #[arg(long)]
    host_kubeconfig: PathBuf,
    /// Host namespace of the virtual cluster
    #[arg(long)]
    host_namespace: String,
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// Pods created per second; 0 creates one after another
    #[arg(long, default_value_t = 0)]
    rate: u64,
}

pub async fn pods(options: PodOptions) -> anyhow::Result<Report> {
    let virtual_client = client(&options.kubeconfig).await?;
    let host_client = client(&options.host_kubeconfig).await?;
    let path = format!("/api/v1/namespaces/{}/pods", options.host_namespace);
    let list: serde_json::Value =
        serde_json::from_str(&host_client.request_text(request("GET", &format!("{path}?limit=1"), None)?).await?)?;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
    let watch = request("GET", &format!("{path}?watch=true&resourceVersion={revision}"), None)?;
    let mut lines = host_client.request_stream(watch).await?.lines();
    let run = std::process::id();
    let hosts = hosts_own(&host_client, &path, &mut lines, options.pods).await?;
    let mut created = Vec::with_capacity(options.pods);
    let mut seen: Vec<Option<Duration>> = vec![None; options.pods];
    let mut own = Vec::with_capacity(options.pods);
    let prefix = format!("bench-{run}-");
    let interval = Duration::from_micros(1_000_000_u64.checked_div(options.rate).unwrap_or(0));
    for i in 0..options.pods {
        let begin = Instant::now();
        created.push(begin);
        let body = Some(pod(&format!("{prefix}{i}")));
        virtual_client.request_text(request("POST", "/api/v1/namespaces/default/pods", body)?).await?;
        own.push(begin.elapsed());
        if options.rate == 0 {
            while seen[i].is_none() {
                note(&mut lines, &prefix, &created, &mut seen).await?;
            }
        } else {
            let next = interval.saturating_sub(begin.elapsed());
            let pause = tokio::time::sleep(next);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    noted = note(&mut lines, &prefix, &created, &mut seen) => noted?,
                }
            }
        }
    }
    while seen.iter().any(Option::is_none) {
        note(&mut lines, &prefix, &created, &mut seen).await?;
    }
    for i in 0..options.pods {
        virtual_client
            .request_text(request(
                "DELETE",
                &format!("/api/v1/namespaces/default/pods/{prefix}{i}?gracePeriodSeconds=0"),
                None,
            )?)
            .await?;
    }
    let rate = if options.rate == 0 { "one after another".to_owned() } else { format!("{} per second", options.rate) };
    let samples: Vec<Duration> = seen.into_iter().flatten().collect();
    let after = samples.iter().zip(&own).map(|(seen, own)| seen.saturating_sub(*own)).collect();
    Ok(Report {
        rows: vec![
            Row::latency("host's own pod, create call to seen, one after another", hosts, None),
            Row::latency(format!("virtual pod create call, {rate}"), own, None),
            Row::latency(format!("virtual pod create call to host pod seen, {rate}"), samples, None),
            Row::latency(format!("virtual pod created to host pod seen, {rate}"), after, None),
        ],
    })
}

fn pod(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "web"}]}})
}

/// What the host takes for a pod that is created there, from the call until a watch tells of it.
async fn hosts_own(
    host: &kube::Client,
    path: &str,
    lines: &mut (impl futures::Stream<Item = std::io::Result<String>> + Unpin),
    pods: usize,
) -> anyhow::Result<Vec<Duration>> {
    let prefix = format!("bench-host-{}-", std::process::id());
    let mut created = Vec::with_capacity(pods);
    let mut seen = vec![None; pods];
    for i in 0..pods {
        created.push(Instant::now());
        host.request_text(request("POST", path, Some(pod(&format!("{prefix}{i}"))))?).await?;
        while seen[i].is_none() {
            note(lines, &prefix, &created, &mut seen).await?;
        }
    }
    for i in 0..pods {
        let path = format!("{path}/{prefix}{i}?gracePeriodSeconds=0");
        host.request_text(request("DELETE", &path, None)?).await?;
    }
    Ok(seen.into_iter().flatten().collect())
}

/// Reads one event of the host's watch and notes when the pod it is about first appeared.
async fn note(
    lines: &mut (impl futures::Stream<Item = std::io::Result<String>> + Unpin),
    prefix: &str,
    created: &[Instant],
    seen: &mut [Option<Duration>],
) -> anyhow::Result<()> {
    let line = tokio::time::timeout(Duration::from_secs(30), lines.next()).await.context("no host event in 30 s")?;
    let event: serde_json::Value = serde_json::from_str(&line.context("the watch ended")??)?;
    let name = event["object"]["metadata"]["name"].as_str().unwrap_or("");
    let index = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next()?.parse::<usize>().ok());
    if let Some(i) = index.filter(|i| *i < seen.len()) {
        seen[i].get_or_insert_with(|| created[i].elapsed());
    }
    Ok(())
}
