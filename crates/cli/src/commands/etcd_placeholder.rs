//! `alcove etcd-placeholder`: what stands where a test environment starts etcd.
//!
//! `alcove apiserver` has a store of its own. Programmes that start kube-apiserver start etcd first and wait for its
//! health check: this answers the check and nothing else. It stores nothing, and a client of etcd is told so.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Arg, ArgMatches, Args as ClapArgs, Command, FromArgMatches};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, lookup_host};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::failure::Failure;
use crate::signals;
use crate::ui::Ui;

/// How long a connection may take to send a request, and an answer to be read when the process ends.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, ClapArgs)]
pub struct EtcdPlaceholder {
    /// Addresses to answer on
    #[arg(long, value_delimiter = ',', value_name = "URLS", default_value = "http://localhost:2379")]
    pub listen_client_urls: Vec<String>,
    /// Accepted: there are no peers
    #[arg(long, value_delimiter = ',', value_name = "URLS")]
    pub listen_peer_urls: Vec<String>,
    /// Accepted: nobody is told
    #[arg(long, value_delimiter = ',', value_name = "URLS")]
    pub advertise_client_urls: Vec<String>,
    /// Accepted: nothing is written
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub unsafe_no_fsync: Option<bool>,
    #[command(flatten)]
    pub others: OtherFlags,
}

/// Flags of etcd that change nothing here.
#[derive(Clone, Debug, Default)]
pub struct OtherFlags;

/// Source: `etcd --help`, 3.6. Flags about TLS and authentication are not among them: they are refused.
const OTHER_FLAGS: &[&str] = &[
    "name",
    "wal-dir",
    "snapshot-count",
    "heartbeat-interval",
    "election-timeout",
    "initial-election-tick-advance",
    "quota-backend-bytes",
    "backend-bbolt-freelist-type",
    "backend-batch-interval",
    "backend-batch-limit",
    "max-txn-ops",
    "max-request-bytes",
    "max-concurrent-streams",
    "grpc-keepalive-min-time",
    "grpc-keepalive-interval",
    "grpc-keepalive-timeout",
    "socket-reuse-port",
    "socket-reuse-address",
    "listen-metrics-urls",
    "metrics",
    "initial-advertise-peer-urls",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "strict-reconfig-check",
    "pre-vote",
    "auto-compaction-retention",
    "auto-compaction-mode",
    "logger",
    "log-outputs",
    "log-level",
    "log-format",
    "enable-log-rotation",
    "log-rotation-config-json",
    "enable-pprof",
    "experimental-initial-corrupt-check",
    "experimental-watch-progress-notify-interval",
    "watch-progress-notify-interval",
    "feature-gates",
    "force-new-cluster",
];

impl ClapArgs for OtherFlags {
    fn augment_args(command: Command) -> Command {
        command.args(OTHER_FLAGS.iter().map(|name| Arg::new(*name).long(*name).hide(true).num_args(0..=1)))
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OtherFlags {
    fn from_arg_matches(_: &ArgMatches) -> Result<OtherFlags, clap::Error> {
        Ok(OtherFlags)
    }
    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }
}

pub async fn run(args: &EtcdPlaceholder, ui: &Ui) -> anyhow::Result<ExitCode> {
    let mut listeners = Vec::new();
    for url in &args.listen_client_urls {
        listeners.push(listen(url).await?);
    }
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    for listener in listeners {
        ui.done(&format!(
            "answering etcd's health check on http://{}/health; nothing is stored",
            listener.local_addr()?
        ));
        tasks.spawn(serve(listener, stop.clone()));
    }
    tasks.close();
    signals::wait().await;
    stop.cancel();
    let _ = tokio::time::timeout(STOP_TIMEOUT, tasks.wait()).await;
    Ok(ExitCode::SUCCESS)
}

async fn listen(url: &str) -> anyhow::Result<TcpListener> {
    let address = match url.split_once("://") {
        Some(("http", rest)) => rest.trim_end_matches('/'),
        Some((scheme, _)) => {
            return Err(Failure::invalid(format!("--listen-client-urls {url}: {scheme} is not supported"))
                .hint("this is no etcd: it answers a health check over http")
                .into());
        }
        None => return Err(Failure::invalid(format!("--listen-client-urls {url}: must be a URL")).into()),
    };
    let addresses: Vec<SocketAddr> = lookup_host(address)
        .await
        .map_err(|error| Failure::invalid(format!("--listen-client-urls {url}: {error}")))?
        .collect();
    TcpListener::bind(addresses.as_slice()).await.with_context(|| format!("cannot listen on {url}"))
}

async fn serve(listener: TcpListener, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let stop = stop.clone();
        connections.spawn(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(CONNECTION_TIMEOUT);
            let connection = builder.serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer));
            tokio::pin!(connection);
            let _ = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
        });
    }
    connections.close();
    connections.wait().await;
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, content_type, body) = match request.uri().path() {
        "/health" => (200, "application/json", r#"{"health":"true"}"#),
        "/livez" | "/readyz" => (200, "text/plain; charset=utf-8", "ok\n"),
        "/version" => (200, "application/json", r#"{"etcdserver":"3.6.0","etcdcluster":"3.6.0","storage":"3.6.0"}"#),
        _ => (
            501,
            "text/plain; charset=utf-8",
            "this is a placeholder for etcd: it answers /health and stores nothing\n",
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    Ok(response)
}
