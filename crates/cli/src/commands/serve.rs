//! `alcove serve`: the process in the pod of a virtual cluster with placement `dedicated`.
//!
//! In a pod everything is found by itself: the name and addresses in the environment, the namespace and the credentials for
//! the host in the service account mount, the configuration in a mounted Secret. Outside of one (development, tests) flags
//! and a kubeconfig say the same.
//!
//! A host that does not answer is waited for; a configuration that cannot work ends the process with code 2.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args as ClapArgs;
use config::Config;
use controlplane::dns::DnsPlace;
use controlplane::{ControlPlane, Host, Options, Replica};
use tokio::net::TcpListener;

use crate::args::Global;
use crate::commands::up::chain;
use crate::failure::Failure;
use crate::signals;
use crate::ui::Ui;
use crate::{host, kubeconfig};

/// Where a pod finds its namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
/// Pauses between tries to start while the host does not answer.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, ClapArgs)]
pub struct ServeArgs {
    /// Name of the virtual cluster
    #[arg(long, env = "VCLUSTER_NAME", value_name = "NAME")]
    pub name: String,
    /// Its vcluster.yaml
    #[arg(long, default_value = "/var/lib/vcluster/config.yaml", value_name = "FILE")]
    pub config: PathBuf,
    /// Address to listen on [default: controlPlane.proxy.bindAddress]
    #[arg(long, value_name = "ADDRESS")]
    pub bind_address: Option<IpAddr>,
    /// Port of the API; 0 takes a free one [default: controlPlane.proxy.port]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Name of this pod: tells replicas apart
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,
    /// Address of this pod
    #[arg(long, env = "POD_IP", value_name = "ADDRESS")]
    pub pod_ip: Option<IpAddr>,
    /// Address of this pod's node
    #[arg(long, env = "NODE_IP", value_name = "ADDRESS")]
    pub node_ip: Option<IpAddr>,
    /// Image of this pod: pods that need an init container of this program take it from there
    #[arg(long, env = "ALCOVE_IMAGE", value_name = "IMAGE")]
    pub image: Option<String>,
    /// Server that kubeconfigs name unless exportKubeConfig.server does
    #[arg(long, default_value = "https://localhost:8443", value_name = "URL")]
    pub server: String,
    /// Where the cluster's own etcd is reached (controlPlane.backingStore.etcd.deploy) [default: its Service]
    #[arg(long, value_name = "URL")]
    pub etcd: Option<String>,
    /// Where kube-apiserver and kube-controller-manager are (controlPlane.distro.k8s)
    #[arg(long, env = "ALCOVE_BINARIES", default_value = "/binaries", value_name = "DIR")]
    pub binaries: PathBuf,
    /// How long to serve after a signal to stop, while /readyz says no, so that load balancers notice
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub shutdown_delay_duration: u64,
}

/// Does nothing in the process's name before everything is known to be usable.
pub async fn run(global: &Global, data_dir: Option<&Path>, args: &ServeArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    deploy::names::check_name(&args.name).map_err(|error| Failure::invalid(error.to_string()))?;
    let namespace = namespace(global)?;
    let config = read_config(&args.config)?;
    for (path, reason) in config.without_effect(false) {
        ui.warn(&format!("{path} has no effect: {reason}"));
    }
    let client = client(global).await?;
    let proxy = &config.control_plane.proxy;
    let address = match args.bind_address {
        Some(address) => address,
        None => proxy.bind_address.parse().map_err(|_| {
            Failure::invalid(format!("controlPlane.proxy.bindAddress: {:?} is not an IP address", proxy.bind_address))
        })?,
    };
    let listen = SocketAddr::new(address, args.port.unwrap_or(proxy.port));
    let replica = Replica {
        identity: args.pod_name.clone().unwrap_or_else(|| args.name.clone()),
        elects: config.control_plane.stateful_set.high_availability.replicas > 1,
        pod_ip: args.pod_ip,
        node_ip: args.node_ip,
    };
    let data_dir = data_dir.unwrap_or(Path::new("/data"));
    ui.info(&format!("starting virtual cluster {} in host namespace {namespace}", args.name));

    // The socket outlives the control plane: while that starts anew, connections wait.
    let cannot_listen = |error| Failure::failed(format!("cannot listen on {listen}: {error}"));
    let socket = TcpListener::bind(listen).await.and_then(TcpListener::into_std).map_err(cannot_listen)?;
    let start = || async {
        let mut pause = RETRY_MIN;
        loop {
            let listener = socket.try_clone().and_then(TcpListener::from_std).map_err(cannot_listen)?;
            let host = Host::new(client.clone(), namespace.clone()).with_own_image(args.image.clone());
            check_host(&host, args, &config).await?;
            let options = Options {
                name: args.name.clone(),
                config: config.clone(),
                data_dir: Some(data_dir.to_path_buf()),
                store: None,
                database: None,
                etcd: args.etcd.clone(),
                binaries: Some(args.binaries.clone()),
                listener,
                public_url: args.server.clone(),
                replica: Some(replica.clone()),
                dns: Some(DnsPlace::pod(address, replica.identity.as_str(), replica.pod_ip)),
            };
            match ControlPlane::start(options, Some(host)).await {
                Ok(control_plane) => return anyhow::Ok(control_plane),
                // The host or the store may be away, or the chart's objects still on their way.
                Err(error) if error.is_passing() => {
                    ui.warn(&format!("not started yet, trying again: {}", chain(&error)));
                }
                Err(error) => return Err(Failure::failed(chain(&error)).into()),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    };
    let control_plane = loop {
        let control_plane = tokio::select! {
            control_plane = start() => control_plane?,
            () = signals::wait() => return Ok(ExitCode::SUCCESS),
        };
        // The container is the cluster's own: snapshots go to whatever volume is mounted in it.
        control_plane.set_container_root("/".into());
        ui.done(&format!("serving virtual cluster {} on https://{}", args.name, control_plane.address()));
        tokio::select! {
            () = signals::wait() => break control_plane,
            // A snapshot was handed in, which is put in place before anything else runs; or authorities were replaced.
            () = control_plane.restart_wanted() => {
                ui.info("starting anew");
                control_plane.stop().await;
            }
        }
    };
    ui.info("stopping");
    // From here on nobody waits for a control plane that does not come.
    drop(socket);
    control_plane.begin_stop();
    let delay = tokio::time::sleep(Duration::from_secs(args.shutdown_delay_duration));
    tokio::select! {
        () = delay => {}
        // A second signal does not want to wait.
        () = signals::wait() => {}
    }
    control_plane.stop().await;
    Ok(ExitCode::SUCCESS)
}

fn read_config(path: &Path) -> anyhow::Result<Config> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            return Err(Failure::invalid(format!("cannot read the configuration {}: {error}", path.display()))
                .hint("mount Secret vc-config-NAME there, or name another file with --config")
                .into());
        }
    };
    Config::from_yaml(&path.display().to_string(), &text).map_err(|error| Failure::invalid(error.to_string()).into())
}

/// `--namespace`, else what the pod says about itself.
pub(super) fn namespace(global: &Global) -> anyhow::Result<String> {
    if let Some(namespace) = &global.namespace {
        return Ok(namespace.clone());
    }
    if let Ok(namespace) = std::env::var("POD_NAMESPACE")
        && !namespace.is_empty()
    {
        return Ok(namespace);
    }
    let read = std::fs::read_to_string(NAMESPACE_FILE).ok().map(|text| text.trim().to_string());
    read.filter(|namespace| !namespace.is_empty()).ok_or_else(|| {
        Failure::invalid("the host namespace is not known").hint("name it with --namespace or POD_NAMESPACE").into()
    })
}

/// A client of the host: the kubeconfig that is named, else the pod's service account.
pub(super) async fn client(global: &Global) -> anyhow::Result<kube::Client> {
    let named = global.kubeconfig.is_some() || std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty());
    if named || global.context.is_some() {
        let config = kubeconfig::merged(&kubeconfig::paths(global.kubeconfig.as_deref()))?;
        return host::client(&config, global.context.as_deref()).await;
    }
    let mut config = kube::Config::incluster().map_err(|error| {
        Failure::invalid(format!("there is no host cluster: {error}"))
            .hint("run in a pod with a service account, or name a cluster with --kubeconfig")
    })?;
    config.connect_timeout = Some(Duration::from_secs(10));
    kube::Client::try_from(config).context("cannot make a client for the host cluster")
}

/// Refuses what would destroy something: another cluster in the namespace, another kind of store than the data is in.
async fn check_host(host: &Host, args: &ServeArgs, config: &Config) -> anyhow::Result<()> {
    use controlplane::placement::{PlacementError, check};
    match check(host, &args.name, config).await {
        Ok(()) => Ok(()),
        Err(error @ PlacementError::Host(_)) => {
            // Starting says the same and is tried again.
            tracing::warn!(error = chain(&error), "the host namespace could not be checked");
            Ok(())
        }
        Err(error) => Err(Failure::invalid(error.to_string()).into()),
    }
}
