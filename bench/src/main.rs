//! The command `bench`.
//!
//! Prints a table and, with `--json FILE`, the same numbers for machines. CPU time is read from `/proc/PID/stat` before and
//! after, so it counts what the server spent and nothing of this client.

use std::path::PathBuf;

use bench::{api, dns, etcd, faults, machinery, scale, soak, start, tenants};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bench", about = "Measures a Kubernetes API through any kubeconfig")]
struct Arguments {
    /// Also writes the results as JSON to this file
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// GET, LIST, CREATE and watch latency against one API server
    Api(api::Options),
    /// Apply and patch of large objects, long lists, one write to many watches, memory per watch
    Machinery(machinery::Options),
    /// Time from process start to ready, empty and with objects
    Start(start::Options),
    /// Clusters in a hub: time to create one, and memory per idle cluster
    Clusters(scale::ClusterOptions),
    /// Questions to the DNS server: how many per second, and how long each takes
    Dns(dns::Options),
    /// etcd's API, ours over a file and etcd's own: put, create, range, watch
    Etcd(etcd::Options),
    /// Kills and outages of control plane and store under write load; fails unless nothing acknowledged is lost
    Faults(faults::Options),
    /// Virtual pod created to host pod created
    Pods(scale::PodOptions),
    /// Thousands of pods under random changes, with controllers that are restarted; fails unless the end is exact
    Soak(soak::SoakOptions),
    /// Deployment to pods created and ready, and the CPU time of an idle control plane
    Controllers(soak::ControllerOptions),
    /// Many tenants with many pods in this process: host requests per pod, latency, memory
    Tenants(tenants::Options),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let report = match arguments.command {
        Command::Api(options) => api::run(options).await?,
        Command::Machinery(options) => machinery::run(options).await?,
        Command::Start(options) => start::run(options).await?,
        Command::Clusters(options) => scale::clusters(options).await?,
        Command::Dns(options) => dns::run(options).await?,
        Command::Etcd(options) => etcd::run(options).await?,
        Command::Faults(options) => faults::run(options).await?,
        Command::Pods(options) => scale::pods(options).await?,
        Command::Soak(options) => soak::soak(options).await?,
        Command::Controllers(options) => soak::controllers(options).await?,
        Command::Tenants(options) => tenants::run(options).await?,
    };
    report.print();
    if let Some(path) = arguments.json {
        std::fs::write(path, report.to_json())?;
    }
    Ok(())
}
