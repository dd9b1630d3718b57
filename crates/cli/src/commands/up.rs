//! `alcove up`, `down`, `status`: a development host and a hub in one process, in the foreground or detached.
//!
//! The process listens on `control.sock` in its data directory. Who can open the directory can stop it; nobody else can,
//! and a process id is never trusted.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use devhost::{DevHost, DevHostConfig};
use dns::{Dns, DnsConfig, ResolvConf, Sockets};
use hub::{Hub, HubConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::args::{Global, Output};
use crate::commands::hub::SleepAfter;
use crate::failure::Failure;
use crate::home::Home;
use crate::host::DEVELOPMENT_CONTEXT;
use crate::kubeconfig::{self, Change};
use crate::manifests::poll;
use crate::signals;
use crate::ui::Ui;

#[derive(Clone, Debug, ClapArgs)]
pub struct Up {
    /// Number of simulated nodes
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Port of the host's API; 0 takes a free one, or the one it had
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub bind_address: IpAddr,
    /// Put a cluster to sleep that nobody has used for this long and that runs nothing; 0 keeps all awake
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = crate::commands::hub::sleep_after)]
    pub sleep_after: SleepAfter,
    /// Stay in the foreground
    #[arg(long)]
    pub foreground: bool,
    /// Leave the kubeconfig as it is
    #[arg(long)]
    pub no_kubeconfig: bool,
    /// How long to wait until it answers, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Status {
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

pub async fn up(global: &Global, args: &Up, ui: &Ui) -> anyhow::Result<ExitCode> {
    let home = Home::new(global.data_dir.as_deref())?;
    if let Ok(status) = ask(&home, "status").await {
        let server = status["server"].as_str().unwrap_or_default().to_string();
        write_contexts(global, args, &home, ui)?;
        ui.done(&format!("the development host is running already at {server}"));
        return Ok(ExitCode::SUCCESS);
    }
    home.create()?;
    if args.foreground { foreground(global, args, &home, ui).await } else { detach(global, args, &home, ui).await }
}

/// A development host with a hub.
pub struct Running {
    pub host: DevHost,
    pub hub: Hub,
    /// The host's own names, which clusters ask for with `fallbackHostCluster` and `resolveDNS`.
    dns: Option<Dns>,
}

impl Running {
    pub async fn start(
        home: &Home,
        nodes: usize,
        bind: SocketAddr,
        sleep_after: Option<Duration>,
    ) -> anyhow::Result<Running> {
        let config = DevHostConfig { nodes, data_dir: Some(home.host_data()), bind, ..DevHostConfig::default() };
        let host = DevHost::start(config).await.map_err(|error| {
            let hint = match &error {
                devhost::StartError::Listen { .. } => Some("choose another port with --port"),
                devhost::StartError::Store(_) => Some("if the data is not needed any more, remove the data directory"),
                _ => None,
            };
            let failure = Failure::failed(format!("the development host did not start: {}", chain(&error)));
            match hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        })?;
        let dns = host_dns(&host, bind.ip()).await;
        let hub = Hub::start(
            host.client(),
            HubConfig {
                data_dir: Some(home.clusters()),
                bind_address: bind.ip(),
                public_address: bind.ip().to_string(),
                sleep_after,
                dns_servers: dns.iter().map(Dns::address).collect(),
                database: None,
                advertised: None,
                image: None,
            },
        );
        Ok(Running { host, hub, dns })
    }

    /// A kubeconfig of the host's administrator.
    pub fn kubeconfig(&self, name: &str) -> Value {
        let access = self.host.access();
        deploy::secrets::kubeconfig(
            name,
            &deploy::secrets::AdminAccess {
                server: access.server.clone(),
                insecure: false,
                certificate_authority: access.certificate_authority.clone(),
                client_certificate: access.client_certificate.clone(),
                client_key: access.client_key.clone(),
                token: String::new(),
            },
        )
    }

    pub async fn stop(self) {
        self.hub.shutdown().await;
        if let Some(dns) = self.dns {
            dns.shutdown().await;
        }
        self.host.stop().await;
    }
}

/// A DNS server for the host. Without one clusters ask the servers of this machine.
async fn host_dns(host: &DevHost, bind: IpAddr) -> Option<Dns> {
    let text = tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default();
    let resolv_conf = ResolvConf::parse(&text);
    let config = DnsConfig { forward: resolv_conf.servers.clone(), resolv_conf, ..DnsConfig::default() };
    let started = match Sockets::bind(SocketAddr::new(bind, 0)).await {
        Ok(sockets) => Dns::start(host.client(), config, sockets),
        Err(error) => Err(error.into()),
    };
    started.inspect_err(|error| tracing::warn!(%error, "the development host has no DNS server")).ok()
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

async fn foreground(global: &Global, args: &Up, home: &Home, ui: &Ui) -> anyhow::Result<ExitCode> {
    let control = listen(home).await?;
    let started = Instant::now();
    let running =
        Running::start(home, args.nodes, SocketAddr::new(args.bind_address, port(args, home)), args.sleep_after.0)
            .await?;
    kubeconfig::write(&home.host_kubeconfig(), &running.kubeconfig(DEVELOPMENT_CONTEXT))?;
    write_contexts(global, args, home, ui)?;
    ui.done(&format!(
        "development host with {} nodes at {} ({} ms)",
        args.nodes,
        running.host.access().server,
        started.elapsed().as_millis()
    ));
    let running = Arc::new(running);
    let stop = CancellationToken::new();
    let answering = tokio::spawn(answer(control, Arc::clone(&running), stop.clone(), started));
    tokio::select! {
        () = signals::wait() => {}
        () = stop.cancelled() => {}
    }
    ui.info("stopping");
    // The socket goes first: from now on nobody takes this for a running host.
    let _ = std::fs::remove_file(home.control_socket());
    stop.cancel();
    let waiting = answering.await.unwrap_or_default();
    if let Some(running) = Arc::into_inner(running) {
        running.stop().await;
    }
    drop(waiting);
    Ok(ExitCode::SUCCESS)
}

/// The port asked for, else the one the host had: contexts in kubeconfigs stay true.
fn port(args: &Up, home: &Home) -> u16 {
    if args.port != 0 {
        return args.port;
    }
    let recorded = kubeconfig::read(&home.host_kubeconfig()).ok();
    let server =
        recorded.as_ref().and_then(|config| config.pointer("/clusters/0/cluster/server")?.as_str()).unwrap_or("");
    let recorded = server.rsplit(':').next().and_then(|port| port.parse().ok());
    // Somebody else may have it now.
    if let Some(port) = recorded
        && std::net::TcpListener::bind((args.bind_address, port)).is_ok()
    {
        return port;
    }
    let bound = hub::bind_lasting(args.bind_address, &home.root().to_string_lossy());
    bound.and_then(|listener| listener.local_addr()).map_or(0, |address| address.port())
}

async fn listen(home: &Home) -> anyhow::Result<UnixListener> {
    let path = home.control_socket();
    if ask(home, "status").await.is_ok() {
        return Err(
            Failure::exists(format!("a development host is running already in {}", home.root().display())).into()
        );
    }
    // What is left of one that was killed.
    let _ = std::fs::remove_file(&path);
    UnixListener::bind(&path).map_err(|error| {
        Failure::failed(format!("cannot listen on {}: {error}", path.display()))
            .hint("the path of the data directory may be too long for a socket; choose another with --data-dir")
            .into()
    })
}

/// Answers on the control socket until stopped; returns the connections that wait for the end.
async fn answer(
    control: UnixListener,
    running: Arc<Running>,
    stop: CancellationToken,
    started: Instant,
) -> Vec<UnixStream> {
    let mut waiting = Vec::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return waiting,
            accepted = control.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
        };
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_line(&mut line)).await;
        if !matches!(read, Ok(Ok(_))) {
            continue;
        }
        let mut stream = stream.into_inner();
        let answer = match line.trim() {
            "status" => status_value(&running, started),
            "stop" => json!({"stopping": true}),
            _ => json!({"error": "unknown request"}),
        };
        let _ = stream.write_all(format!("{answer}\n").as_bytes()).await;
        if line.trim() == "stop" {
            waiting.push(stream);
            stop.cancel();
        }
    }
}

fn status_value(running: &Running, started: Instant) -> Value {
    let clusters: Vec<Value> = running
        .hub
        .clusters()
        .into_iter()
        .map(|cluster| json!({"name": cluster.name, "namespace": cluster.namespace, "port": cluster.port, "sleeping": cluster.sleeping}))
        .collect();
    json!({
        "server": running.host.access().server,
        "pid": std::process::id(),
        "upSeconds": started.elapsed().as_secs(),
        "memoryBytes": memory_bytes(),
        "clusters": clusters,
    })
}

/// Resident memory of this process, where the system tells.
pub fn memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Sends one request to the control socket.
async fn ask(home: &Home, request: &str) -> anyhow::Result<Value> {
    let answer = async {
        let (value, _) = open(home, request).await?;
        Ok::<_, anyhow::Error>(value)
    };
    tokio::time::timeout(Duration::from_secs(5), answer).await.context("no answer")?
}

async fn open(home: &Home, request: &str) -> anyhow::Result<(Value, BufReader<UnixStream>)> {
    let mut stream = BufReader::new(UnixStream::connect(home.control_socket()).await?);
    stream.write_all(format!("{request}\n").as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    Ok((serde_json::from_str(&line)?, stream))
}

/// Starts this program again in the foreground, without a terminal, and waits until it answers.
async fn detach(global: &Global, args: &Up, home: &Home, ui: &Ui) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let log_path = home.log();
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("cannot write {}", log_path.display()))?;
    let log_start = log.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = std::process::Command::new(program);
    command.arg("up").arg("--foreground").arg("--no-kubeconfig");
    command.arg("--data-dir").arg(home.root());
    command.args(["--nodes", &args.nodes.to_string(), "--port", &args.port.to_string()]);
    command.args(["--bind-address", &args.bind_address.to_string()]);
    let sleep_after = args.sleep_after.0.map_or_else(|| "0".to_string(), |limit| format!("{}ms", limit.as_millis()));
    command.args(["--sleep-after", &sleep_after]);
    if global.debug {
        command.arg("--debug");
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/").process_group(0);
    let step = ui.step("Starting the development host...");
    let mut child = command.spawn().context("cannot start the development host")?;
    let answered = poll(Duration::from_secs(args.timeout), Duration::from_millis(10), async || {
        if let Ok(Some(_)) = child.try_wait() {
            return Some(None);
        }
        ask(home, "status").await.ok().map(Some)
    })
    .await;
    let tail = || {
        let text = std::fs::read(&log_path).unwrap_or_default();
        let new = text.get(log_start as usize..).unwrap_or_default();
        String::from_utf8_lossy(new).trim().to_string()
    };
    match answered {
        Some(Some(status)) => {
            step.done(&format!(
                "development host with {} nodes at {}",
                args.nodes,
                status["server"].as_str().unwrap_or_default()
            ));
        }
        Some(None) => {
            // The process has said why, in the same words as this one would.
            let said = tail();
            let reason = said.strip_prefix("error").unwrap_or(&said).trim_start();
            let reason = if reason.is_empty() { "the development host did not start" } else { reason };
            return Err(Failure::failed(reason).into());
        }
        None => {
            let _ = child.kill();
            return Err(Failure::timed_out(format!("the development host did not answer in {} seconds", args.timeout))
                .hint(format!("see {}", log_path.display()))
                .into());
        }
    }
    write_contexts(global, args, home, ui)?;
    ui.info("Use `alcove create NAME` to create a virtual cluster, `alcove down` to stop");
    Ok(ExitCode::SUCCESS)
}

/// Adds the context of the host to the user's kubeconfig and makes it current.
fn write_contexts(global: &Global, args: &Up, home: &Home, ui: &Ui) -> anyhow::Result<()> {
    if args.no_kubeconfig {
        return Ok(());
    }
    let config = kubeconfig::read(&home.host_kubeconfig())?;
    let paths = kubeconfig::paths(global.kubeconfig.as_deref());
    kubeconfig::change(&paths, &Change::AddAndSwitch(&config))?;
    ui.info(&format!("Switched active kube context to {DEVELOPMENT_CONTEXT}"));
    Ok(())
}

pub async fn down(global: &Global, ui: &Ui) -> anyhow::Result<ExitCode> {
    let home = Home::new(global.data_dir.as_deref())?;
    let Ok((_, mut stream)) = open(&home, "stop").await else {
        ui.info(&format!("no development host is running in {}", home.root().display()));
        return Ok(ExitCode::SUCCESS);
    };
    let step = ui.step("Stopping the development host...");
    let mut rest = String::new();
    // The other side closes the connection when everything has ended.
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_line(&mut rest)).await;
    if ended.is_err() {
        return Err(Failure::timed_out("the development host has not stopped after 60 seconds")
            .hint(format!("see {}", home.log().display()))
            .into());
    }
    step.done(&format!("stopped; data stays in {}", home.root().display()));
    Ok(ExitCode::SUCCESS)
}

pub async fn status(global: &Global, args: &Status) -> anyhow::Result<ExitCode> {
    let home = Home::new(global.data_dir.as_deref())?;
    let status = ask(&home, "status").await.ok();
    let running = status.is_some();
    let mut value = status.unwrap_or_else(|| json!({}));
    value["running"] = json!(running);
    value["dataDir"] = json!(home.root());
    match args.output {
        Output::Json => println!("{value:#}"),
        Output::Yaml => print!("{}", config::yaml::to_string(&value)?),
        Output::Table if running => print_status(&value, home.root()),
        Output::Table => {
            println!("not running (data directory {})", home.root().display());
            println!("start it with `alcove up`");
        }
    }
    Ok(if running { ExitCode::SUCCESS } else { ExitCode::from(crate::failure::Reason::NotFound as u8) })
}

fn print_status(value: &Value, root: &Path) {
    let line = |name: &str, text: String| println!("{name:<11} {text}");
    line("Host:", value["server"].as_str().unwrap_or_default().to_string());
    line("Process:", format!("{}, up {} s", value["pid"], value["upSeconds"]));
    if let Some(bytes) = value["memoryBytes"].as_u64() {
        line("Memory:", format!("{} MiB", bytes / (1024 * 1024)));
    }
    line("Data:", root.display().to_string());
    let empty = Vec::new();
    let clusters = value["clusters"].as_array().unwrap_or(&empty);
    line("Clusters:", clusters.len().to_string());
    let text =
        |cluster: &Value, key: &str| cluster[key].as_str().map_or_else(|| cluster[key].to_string(), str::to_string);
    for cluster in clusters {
        let sleeping = if cluster["sleeping"] == true { ", sleeping" } else { "" };
        println!(
            "  {} (namespace {}, port {}{sleeping})",
            text(cluster, "name"),
            text(cluster, "namespace"),
            text(cluster, "port")
        );
    }
}
