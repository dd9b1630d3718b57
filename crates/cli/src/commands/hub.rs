//! `alcove hub`: runs the virtual clusters of any host that ask for placement hub. `alcove hub install` puts one there.

mod install;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use hub::{Advertised, Hub, HubConfig};
use store::{Endpoint, TlsFiles};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::args::Global;
use crate::commands::store::address;
use crate::failure::Failure;
use crate::home::Home;
use crate::host;
use crate::signals;
use crate::ui::Ui;

#[derive(Clone, Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct HubArgs {
    #[command(subcommand)]
    pub command: Option<HubCommand>,
    /// Address the clusters' ports are bound to
    #[arg(long, default_value = "127.0.0.1")]
    pub bind_address: IpAddr,
    /// Name or address of this machine in kubeconfigs [default: the bound address; in a pod, each cluster's Service]
    #[arg(long, value_name = "NAME")]
    pub public_address: Option<String>,
    /// Put a cluster to sleep that nobody has used for this long and that runs nothing; 0 keeps all awake
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = sleep_after)]
    pub sleep_after: SleepAfter,
    /// Database server that keeps the clusters' data, as postgres://... or mysql://...: each cluster has a database there,
    /// named after this one [default: files in the data directory]
    #[arg(long, env = "ALCOVE_HUB_STORE", hide_env_values = true, value_name = "URL")]
    pub store: Option<String>,
    /// Authorities for TLS towards that server
    #[arg(long, value_name = "FILE", requires = "store")]
    pub store_cafile: Option<PathBuf>,
    /// Client certificate for that server
    #[arg(long, value_name = "FILE", requires = "store_keyfile")]
    pub store_certfile: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "store_certfile")]
    pub store_keyfile: Option<PathBuf>,
    /// Address that answers /healthz, /livez and /readyz over HTTP
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub health_address: Option<SocketAddr>,
    /// Address of this pod: the Services of clusters lead there
    #[arg(long, env = "POD_IP", value_name = "ADDRESS")]
    pub pod_ip: Option<IpAddr>,
    /// Image of this pod: pods that need an init container of this program take it from there
    #[arg(long, env = "ALCOVE_IMAGE", value_name = "IMAGE")]
    pub image: Option<String>,
    /// Name of this pod
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "")]
    pub pod_name: String,
    /// Namespace of this pod
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", default_value = "")]
    pub pod_namespace: String,
    /// Node of this pod
    #[arg(long, env = "NODE_NAME", value_name = "NAME", default_value = "")]
    pub node_name: String,
}

#[derive(Clone, Debug, Subcommand)]
pub enum HubCommand {
    /// Put a hub on the host: a Deployment that runs clusters with placement hub
    #[command(
        after_help = "Examples:\n  alcove hub install\n  alcove hub install -n alcove-system --set persistence.size=50Gi\n  alcove hub install --print | kubectl apply -f -"
    )]
    Install(install::Install),
    /// Take the hub off the host; the claim with the clusters' data stays
    #[command(after_help = "Example:\n  alcove hub uninstall")]
    Uninstall(install::Uninstall),
}

/// How long a cluster is unused until it sleeps; never when there is nothing.
#[derive(Clone, Copy, Debug)]
pub struct SleepAfter(pub Option<Duration>);

/// Reads `15m`; `0` is never.
pub fn sleep_after(text: &str) -> Result<SleepAfter, String> {
    match text.trim() {
        "0" | "0s" | "never" => Ok(SleepAfter(None)),
        text => match ::config::duration(text) {
            Some(duration) => Ok(SleepAfter(Some(duration))),
            None => Err("expected a duration such as 15m, or 0".to_string()),
        },
    }
}

pub async fn run(global: &Global, args: &HubArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    match &args.command {
        Some(HubCommand::Install(command)) => return install::install(global, command, ui).await,
        Some(HubCommand::Uninstall(command)) => return install::uninstall(global, command, ui).await,
        None => {}
    }
    let database = database(args)?;
    let host = host::connect(global).await?;
    host.client.apiserver_version().await.map_err(|error| host::unreachable(&host.context, error))?;
    let home = Home::new(global.data_dir.as_deref())?;
    home.create()?;
    let hub = Hub::start(
        host.client.clone(),
        HubConfig {
            data_dir: Some(home.clusters()),
            bind_address: args.bind_address,
            public_address: match (&args.public_address, args.pod_ip) {
                (Some(address), _) => address.clone(),
                (None, Some(_)) => String::new(),
                (None, None) => args.bind_address.to_string(),
            },
            sleep_after: args.sleep_after.0,
            dns_servers: Vec::new(),
            database,
            advertised: args.pod_ip.map(|address| Advertised {
                address,
                pod_name: args.pod_name.clone(),
                pod_namespace: args.pod_namespace.clone(),
                node_name: args.node_name.clone(),
            }),
            image: args.image.clone(),
        },
    );
    let hub = Arc::new(hub);
    let health = match args.health_address {
        Some(address) => {
            let listener = TcpListener::bind(address)
                .await
                .map_err(|error| Failure::failed(format!("cannot listen on {address}: {error}")))?;
            Some(tokio::spawn(serve_health(listener, Arc::clone(&hub))))
        }
        None => None,
    };
    ui.done(&format!("running virtual clusters of host {}", host.context));
    signals::wait().await;
    ui.info("stopping");
    if let Some(health) = health {
        health.abort();
        let _ = health.await;
    }
    if let Some(hub) = Arc::into_inner(hub) {
        hub.shutdown().await;
    }
    Ok(ExitCode::SUCCESS)
}

/// The database server of `--store`.
fn database(args: &HubArgs) -> anyhow::Result<Option<(Endpoint, TlsFiles)>> {
    let Some(text) = args.store.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
    let endpoint = address("--store", text)?;
    if endpoint.sibling("x").is_none() {
        return Err(Failure::invalid(format!("--store: {endpoint} has no databases"))
            .hint("a hub keeps its clusters in PostgreSQL, MySQL or MariaDB, or in files")
            .into());
    }
    let tls = TlsFiles {
        ca_file: args.store_cafile.clone(),
        cert_file: args.store_certfile.clone(),
        key_file: args.store_keyfile.clone(),
    };
    Ok(Some((endpoint, tls)))
}

/// Answers probes, one request per connection.
async fn serve_health(listener: TcpListener, hub: Arc<Hub>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A probe that says nothing does not keep the others waiting for long.
                let _ = tokio::time::timeout(Duration::from_secs(2), answer_probe(stream, hub.is_ready())).await;
            }
            Err(error) => {
                tracing::warn!(%error, "a probe was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer_probe(mut stream: TcpStream, ready: bool) -> std::io::Result<()> {
    let mut buffer = [0; 1024];
    let length = stream.read(&mut buffer).await?;
    let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
    stream.write_all(probe_response(&request, ready).as_bytes()).await?;
    stream.shutdown().await
}

/// The answer to the first line of a request.
fn probe_response(request: &str, ready: bool) -> String {
    let path = request.strip_prefix("GET ").and_then(|rest| rest.split([' ', '?']).next()).unwrap_or_default();
    let (status, body) = match path {
        "/healthz" | "/livez" => ("200 OK", "ok"),
        "/readyz" if ready => ("200 OK", "ok"),
        "/readyz" => ("503 Service Unavailable", "the host's virtual clusters are not known yet"),
        _ => ("404 Not Found", "not found"),
    };
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::probe_response;

    #[test]
    fn probes_are_answered_by_path() {
        for (request, ready, want) in [
            ("GET /healthz HTTP/1.1\r\n", false, "HTTP/1.1 200"),
            ("GET /livez?verbose HTTP/1.1\r\n", false, "HTTP/1.1 200"),
            ("GET /readyz HTTP/1.1\r\n", true, "HTTP/1.1 200"),
            ("GET /readyz HTTP/1.1\r\n", false, "HTTP/1.1 503"),
            ("GET /other HTTP/1.1\r\n", true, "HTTP/1.1 404"),
            ("POST /healthz HTTP/1.1\r\n", true, "HTTP/1.1 404"),
            ("", true, "HTTP/1.1 404"),
        ] {
            assert!(probe_response(request, ready).starts_with(want), "{request:?}");
        }
    }
}
