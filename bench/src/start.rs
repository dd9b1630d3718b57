//! How long a stand-alone server takes from process start to `/readyz`, empty and with a data directory full of objects.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::api::{client, config_map, request};
use crate::measure::{Report, Row, resident_mib};

#[derive(clap::Args)]
pub struct Options {
    /// The `alcove` binary
    #[arg(long, default_value = "target/release/alcove")]
    binary: PathBuf,
    /// Starts per row
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Objects in the data directory of the second row
    #[arg(long, default_value_t = 10_000)]
    objects: usize,
}

/// A server process that ends with this value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Either error means that the process is gone already, which is what is wanted.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Starts a server and waits for the kubeconfig that it writes when it is ready.
async fn start(binary: &Path, data: &Path) -> anyhow::Result<(Server, Duration, PathBuf)> {
    let kubeconfig = data.join("admin.kubeconfig");
    if kubeconfig.exists() {
        std::fs::remove_file(&kubeconfig)?;
    }
    let begin = Instant::now();
    let child = Command::new(binary)
        .args(["apiserver", "--bind-address=127.0.0.1", "--secure-port=0"])
        .arg(format!("--data-dir={}", data.join("data").display()))
        .arg(format!("--cert-dir={}", data.join("certs").display()))
        .arg(format!("--kubeconfig-out={}", kubeconfig.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("could not start {}", binary.display()))?;
    let server = Server(child);
    while !kubeconfig.exists() {
        anyhow::ensure!(begin.elapsed() < Duration::from_secs(60), "not ready after 60 s");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = begin.elapsed();
    client(&kubeconfig).await?.request_text(request("GET", "/readyz", None)?).await.context("not ready")?;
    Ok((server, took, kubeconfig))
}

pub async fn run(options: Options) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let mut samples = Vec::new();
    let mut memory = 0.0;
    for _ in 0..options.runs {
        let data = tempfile::tempdir()?;
        let (server, took, _) = start(&options.binary, data.path()).await?;
        memory = resident_mib(server.0.id())?;
        samples.push(took);
    }
    report.rows.push(Row::latency("process start to ready, empty", samples, None));
    report.rows.push(Row::value("resident memory, empty", memory, "MiB"));

    let data = tempfile::tempdir()?;
    {
        let (_server, _, kubeconfig) = start(&options.binary, data.path()).await?;
        let client = client(&kubeconfig).await?;
        let path = "/api/v1/namespaces/default/configmaps";
        for i in 0..options.objects {
            client.request_text(request("POST", path, Some(config_map(&format!("c{i}"), 900)))?).await?;
        }
    }
    let mut samples = Vec::new();
    for _ in 0..options.runs {
        let (server, took, _) = start(&options.binary, data.path()).await?;
        memory = resident_mib(server.0.id())?;
        samples.push(took);
    }
    report.rows.push(Row::latency(format!("process start to ready, {} objects", options.objects), samples, None));
    report.rows.push(Row::value(format!("resident memory, {} ConfigMaps of 0.9 KiB", options.objects), memory, "MiB"));
    Ok(report)
}
