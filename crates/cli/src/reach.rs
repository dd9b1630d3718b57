//! How the API of a virtual cluster is reached from here: directly, through a load balancer, a node's port or an Ingress, or
//! through a port that this program forwards.
//!
//! A forwarded port is a connection to the host's API server per connection, so it needs nothing but the right to
//! `pods/portforward`. For kubectl it is held by a background process of this program that ends with `disconnect`; no
//! container engine is involved and no terminal is blocked.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Node, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::args::{ForwardArgs, Global};
use crate::clusters::Cluster;
use crate::commands::connect;
use crate::failure::Failure;
use crate::home::Home;
use crate::host::{self, Host};
use crate::kubeconfig;
use crate::manifests::poll;
use crate::ui::Ui;

/// The port of a control plane's pod.
const API_PORT: u16 = 8443;
/// The port of a Service unless its configuration says another.
const API_SERVICE_PORT: i32 = 443;
/// How long an address may take to accept a connection.
const PROBE: Duration = Duration::from_secs(5);

/// The way to a cluster's API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// As the kubeconfig says.
    Direct,
    /// At another address.
    Server(String),
    /// Through a port forwarded to the control plane's pod.
    Forward,
}

/// Chooses the way by what the cluster's Service is, and by what answers.
pub async fn choose(
    host: &Host,
    cluster: &Cluster,
    config: &Value,
    timeout: Duration,
    ui: Option<&Ui>,
) -> anyhow::Result<Way> {
    let written = config.pointer("/clusters/0/cluster/server").and_then(Value::as_str).unwrap_or_default();
    // A hub writes the address at which it listens. Somebody who sets another may mean one for pods of the host only.
    let own = authority(written).is_none_or(|(name, _)| is_loopback(&name));
    // A pod names its own port of its own machine. Another port there is somebody's way to it, if anybody listens.
    let in_pod = own && authority(written).is_none_or(|(_, port)| port == API_PORT);
    let direct = match cluster.placement {
        "hub" => accepts(written).await,
        _ => !in_pod && accepts(written).await,
    };
    if direct {
        return Ok(Way::Direct);
    }
    let services: Api<Service> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let service = services.get_opt(&cluster.name).await.map_err(|error| host::unreachable(&host.context, error))?;
    let kind = service.as_ref().and_then(|service| service.spec.as_ref()?.type_.clone()).unwrap_or_default();
    match kind.as_str() {
        "LoadBalancer" => return load_balancer(&services, &cluster.name, timeout, ui).await.map(Way::Server),
        "NodePort" => {
            if let Some(server) = node_port(host, service.as_ref()).await? {
                return Ok(Way::Server(server));
            }
        }
        _ => {}
    }
    if let Some(name) = ingress_host(host, cluster).await? {
        return Ok(Way::Server(format!("https://{name}")));
    }
    // The development host's hub is in no pod; its port is on this machine.
    let forwards = cluster.placement != "hub" || listening(&host.client, cluster).await.is_some();
    Ok(if forwards { Way::Forward } else { Way::Direct })
}

/// Host and port of a URL.
fn authority(url: &str) -> Option<(String, u16)> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && (!name.contains(':') || name.ends_with(']')) => {
            (name, port.parse().ok()?)
        }
        _ => (authority, 443),
    };
    let name = name.trim_matches(['[', ']']);
    (!name.is_empty()).then(|| (name.to_string(), port))
}

fn is_loopback(name: &str) -> bool {
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn accepts(url: &str) -> bool {
    let Some((name, port)) = authority(url) else { return false };
    matches!(tokio::time::timeout(PROBE, TcpStream::connect((name.as_str(), port))).await, Ok(Ok(_)))
}

async fn load_balancer(
    services: &Api<Service>,
    name: &str,
    timeout: Duration,
    ui: Option<&Ui>,
) -> anyhow::Result<String> {
    let address = async || {
        let service = services.get_opt(name).await.ok().flatten()?;
        let port = https_port(&service).map_or(API_SERVICE_PORT, |port| port.port);
        let first = service.status?.load_balancer?.ingress?.into_iter().next()?;
        Some((first.hostname.filter(|name| !name.is_empty()).or(first.ip)?, port))
    };
    let (found, port) = match address().await {
        Some(found) => found,
        None => {
            if let Some(ui) = ui {
                ui.info("Waiting for vcluster LoadBalancer ip...");
            }
            poll(timeout, Duration::from_secs(1), address).await.ok_or_else(|| {
                Failure::timed_out(format!(
                    "the load balancer of Service {name} has no address after {} seconds",
                    timeout.as_secs()
                ))
                .hint("has the host cluster a controller for load balancers? name another address with --server")
            })?
        }
    };
    Ok(url(&found, port))
}

/// The address of an API at a host name or address.
fn url(name: &str, port: i32) -> String {
    let name = if name.contains(':') { format!("[{name}]") } else { name.to_string() };
    if port == API_SERVICE_PORT { format!("https://{name}") } else { format!("https://{name}:{port}") }
}

/// The port of the API among those of its Service.
fn https_port(service: &Service) -> Option<ServicePort> {
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    ports.iter().find(|port| port.name.as_deref() == Some("https")).or(ports.first()).cloned()
}

/// A node at which the Service's port answers.
async fn node_port(host: &Host, service: Option<&Service>) -> anyhow::Result<Option<String>> {
    let Some(port) = service.and_then(https_port).and_then(|port| port.node_port) else { return Ok(None) };
    let nodes: Api<Node> = Api::all(host.client.clone());
    let Ok(list) = nodes.list(&ListParams::default()).await else { return Ok(None) };
    for kind in ["ExternalIP", "InternalIP"] {
        for node in &list.items {
            let addresses = node.status.as_ref().and_then(|status| status.addresses.clone()).unwrap_or_default();
            for address in addresses.iter().filter(|address| address.type_ == kind) {
                let server = url(&address.address, port);
                if accepts(&server).await {
                    return Ok(Some(server));
                }
            }
        }
    }
    Ok(None)
}

/// The name under which the cluster's own Ingress shows its API.
async fn ingress_host(host: &Host, cluster: &Cluster) -> anyhow::Result<Option<String>> {
    use k8s_openapi::api::networking::v1::Ingress;
    let ingresses: Api<Ingress> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let params = ListParams::default().labels(&format!("app=vcluster,release={}", cluster.name));
    let Ok(list) = ingresses.list(&params).await else { return Ok(None) };
    let names =
        list.items.into_iter().filter_map(|ingress| ingress.spec?.rules?.into_iter().find_map(|rule| rule.host));
    for name in names {
        if accepts(&format!("https://{name}")).await {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The administrator's kubeconfig of a cluster, with an address that works from here. What is forwarded ends with the
/// second value.
pub async fn kubeconfig(host: &Host, cluster: &Cluster, timeout: Duration) -> anyhow::Result<(Value, Option<Forward>)> {
    let mut config = connect::read_kubeconfig(host, &cluster.namespace, &cluster.name, timeout).await?;
    match choose(host, cluster, &config, timeout, None).await? {
        Way::Direct => Ok((config, None)),
        Way::Server(server) => {
            config["clusters"][0]["cluster"]["server"] = server.into();
            Ok((config, None))
        }
        Way::Forward => {
            let forward = Forward::start(host.client.clone(), cluster, Ipv4Addr::LOCALHOST.into(), 0).await?;
            config["clusters"][0]["cluster"]["server"] = format!("https://127.0.0.1:{}", forward.port).into();
            Ok((config, Some(forward)))
        }
    }
}

/// A local port whose connections go to the control plane's pod; closed when this is dropped.
pub struct Forward {
    pub port: u16,
    _guard: DropGuard,
}

impl Forward {
    pub async fn start(client: kube::Client, cluster: &Cluster, address: IpAddr, port: u16) -> anyhow::Result<Forward> {
        let listener = TcpListener::bind((address, port)).await.map_err(|error| {
            Failure::failed(format!("cannot listen on {address}:{port}: {error}"))
                .hint("choose another with --local-port")
        })?;
        let port = listener.local_addr()?.port();
        let cancel = CancellationToken::new();
        let (cluster, ended) = (cluster.clone(), cancel.clone());
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = ended.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { continue };
                let (client, cluster, ended) = (client.clone(), cluster.clone(), ended.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = ended.cancelled() => {}
                        result = carry(stream, &client, &cluster) => if let Err(error) = result {
                            tracing::debug!(%error, "a forwarded connection ended");
                        },
                    }
                });
            }
        });
        Ok(Forward { port, _guard: cancel.drop_guard() })
    }
}

/// Where the control plane of a cluster listens on the host.
#[derive(Debug, PartialEq, Eq)]
struct Listening {
    namespace: String,
    pod: String,
    port: u16,
}

/// The newest pod of a cluster that is ready; of a cluster in a hub, the hub's pod.
async fn listening(client: &kube::Client, cluster: &Cluster) -> Option<Listening> {
    if cluster.placement == "hub" {
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &cluster.namespace);
        return at_hub(&slices.get_opt(&format!("{}-hub", cluster.name)).await.ok()??);
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &cluster.namespace);
    let params = ListParams::default().labels(&format!("app=vcluster,release={}", cluster.name));
    let mut list = pods.list(&params).await.map(|list| list.items).unwrap_or_default();
    list.retain(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
    list.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
    let pod = list.pop()?.metadata.name?;
    Some(Listening { namespace: cluster.namespace.clone(), pod, port: API_PORT })
}

/// The hub's pod and the cluster's port there, as the hub has written them for the cluster's Service.
fn at_hub(slice: &EndpointSlice) -> Option<Listening> {
    let target = slice.endpoints.iter().flatten().find_map(|endpoint| endpoint.target_ref.clone())?;
    let ports = slice.ports.iter().flatten();
    let port = ports.filter(|port| port.name.as_deref() == Some("https")).find_map(|port| port.port)?;
    Some(Listening { namespace: target.namespace?, pod: target.name?, port: u16::try_from(port).ok()? })
}

/// Joins a connection with the control plane.
async fn carry(mut stream: TcpStream, client: &kube::Client, cluster: &Cluster) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let at = loop {
        let found = listening(client, cluster).await;
        if found.is_some() || tokio::time::Instant::now() > deadline {
            break found;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let at = at.with_context(|| format!("no pod of {} is ready", cluster.name))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &at.namespace);
    let mut forwarder = pods.portforward(&at.pod, &[at.port]).await?;
    let mut remote = forwarder.take_stream(at.port).context("the pod gave no stream")?;
    tokio::io::copy_bidirectional(&mut stream, &mut remote).await?;
    drop(remote);
    forwarder.abort();
    Ok(())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

/// The socket of the background process for a context. Short, because sockets have short paths.
fn socket(home: &Home, context: &str) -> PathBuf {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(context.as_bytes());
    let short: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    home.root().join("forwards").join(format!("{short}.sock"))
}

/// Starts the background process, or finds the one that runs; returns its port.
pub async fn in_background(
    global: &Global,
    host: &Host,
    cluster: &Cluster,
    context: &str,
    address: IpAddr,
    port: u16,
) -> anyhow::Result<u16> {
    use std::os::unix::process::CommandExt;
    let home = Home::new(global.data_dir.as_deref())?;
    home.create()?;
    let path = socket(&home, context);
    if let Some(port) = ask(&path, "port").await.and_then(|answer| answer.parse().ok()) {
        return Ok(port);
    }
    let folder = path.parent().context("a folder")?.to_path_buf();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let log_path = path.with_extension("log");
    let log = std::fs::File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut command = std::process::Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg("forward").arg(&cluster.name).args(["--namespace", &cluster.namespace, "--context", &host.context]);
    command.arg("--socket").arg(&path).args(["--address", &address.to_string(), "--port", &port.to_string()]);
    if let Some(file) = &global.kubeconfig {
        command.arg("--kubeconfig").arg(std::path::absolute(file)?);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/").process_group(0);
    let mut child = command.spawn().context("cannot start the port forwarding")?;
    let answered = poll(Duration::from_secs(20), Duration::from_millis(20), async || {
        if let Ok(Some(_)) = child.try_wait() {
            return Some(None);
        }
        ask(&path, "port").await.and_then(|answer| answer.parse::<u16>().ok()).map(Some)
    });
    match answered.await {
        Some(Some(port)) => Ok(port),
        _ => {
            let said = std::fs::read_to_string(&log_path).unwrap_or_default();
            Err(Failure::failed(format!("the port is not forwarded: {}", said.trim())).into())
        }
    }
}

/// Ends the background process of a context, if there is one.
pub async fn end(global: &Global, context: &str) {
    if let Ok(home) = Home::new(global.data_dir.as_deref()) {
        ask(&socket(&home, context), "stop").await;
    }
}

async fn ask(path: &std::path::Path, request: &str) -> Option<String> {
    let answer = async {
        let mut stream = BufReader::new(UnixStream::connect(path).await.ok()?);
        stream.write_all(format!("{request}\n").as_bytes()).await.ok()?;
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        Some(line.trim().to_string())
    };
    tokio::time::timeout(Duration::from_secs(5), answer).await.ok().flatten()
}

/// The background process itself: forwards until it is told to stop, or until the cluster is gone.
pub async fn serve(global: &Global, args: &ForwardArgs) -> anyhow::Result<std::process::ExitCode> {
    let host = host::connect(global).await?;
    let cluster = crate::clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    let forward = Forward::start(host.client.clone(), &cluster, args.address, args.port).await?;
    // What is left of one that was killed.
    let _ = std::fs::remove_file(&args.socket);
    let listener =
        UnixListener::bind(&args.socket).with_context(|| format!("cannot listen on {}", args.socket.display()))?;
    let stop = CancellationToken::new();
    let gone = async {
        loop {
            tokio::time::sleep(Duration::from_secs(60)).await;
            match crate::clusters::find(&host, &args.name, Some(&cluster.namespace)).await {
                Err(error)
                    if error
                        .downcast_ref::<Failure>()
                        .is_some_and(|f| f.reason == crate::failure::Reason::NotFound) =>
                {
                    return;
                }
                // An unreachable host may come back.
                _ => {}
            }
        }
    };
    let answering = async {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            let read = tokio::time::timeout(Duration::from_secs(5), stream.read_line(&mut line)).await;
            if !matches!(read, Ok(Ok(_))) {
                continue;
            }
            let answer = match line.trim() {
                "port" => forward.port.to_string(),
                "stop" => "stopping".to_string(),
                _ => "unknown request".to_string(),
            };
            let _ = stream.get_mut().write_all(format!("{answer}\n").as_bytes()).await;
            if line.trim() == "stop" {
                stop.cancel();
            }
        }
    };
    tokio::select! {
        () = answering => {}
        () = gone => {}
        () = stop.cancelled() => {}
        () = crate::signals::wait() => {}
    }
    let _ = std::fs::remove_file(&args.socket);
    Ok(std::process::ExitCode::SUCCESS)
}

/// Is there a context of this name in the kubeconfig?
pub fn has_context(host: &Host, context: &str) -> bool {
    kubeconfig::merged(&host.paths).is_ok_and(|config| kubeconfig::find(&config, "contexts", context).is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_hub_says_where_a_cluster_listens() {
        let slice = |endpoint: Value, ports: Value| {
            serde_json::from_value::<EndpointSlice>(json!({
                "addressType": "IPv4", "endpoints": [endpoint], "ports": ports
            }))
            .unwrap()
        };
        let pod = json!({"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "namespace": "sys", "name": "hub-0"}});
        let ports = json!([{"name": "kubelet", "port": 1}, {"name": "https", "port": 31000}]);
        let want = Listening { namespace: "sys".into(), pod: "hub-0".into(), port: 31000 };
        assert_eq!(at_hub(&slice(pod.clone(), ports.clone())), Some(want));
        assert_eq!(at_hub(&slice(json!({"addresses": ["10.0.0.1"]}), ports)), None, "a process in no pod");
        assert_eq!(at_hub(&slice(pod, json!([]))), None);
    }

    #[test]
    fn urls_have_a_host_and_a_port() {
        for (url, want) in [
            ("https://localhost:8443", Some(("localhost", 8443))),
            ("https://a.example", Some(("a.example", 443))),
            ("https://[::1]:1/x", Some(("::1", 1))),
            ("https://[::1]", Some(("::1", 443))),
            ("", None),
        ] {
            let got = authority(url);
            assert_eq!(got.as_ref().map(|(name, port)| (name.as_str(), *port)), want, "{url}");
        }
        assert!(is_loopback("127.0.0.1") && is_loopback("localhost") && is_loopback("::1"));
        assert!(!is_loopback("10.0.0.1") && !is_loopback("localhost.example"));
    }
}
