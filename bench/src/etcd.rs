//! etcd's API, ours and etcd's own, with the same client and the same requests.
//!
//! Both run on this machine with their data in files and are asked over the loopback; a write counts when it is durable.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ::etcd::proto as pb;
use ::etcd::proto::compare::TargetUnion;
use ::etcd::proto::request_op::Request;
use ::etcd::proto::watch_request::RequestUnion;
use ::etcd::{Client, Tls};
use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::StreamExt;
use store::servers::{Kind, Server, StartError};

use crate::measure::{Report, Row, cpu_time, resident_mib};

#[derive(clap::Args)]
pub struct Options {
    /// The `alcove` binary
    #[arg(long, default_value = "target/release/alcove")]
    binary: PathBuf,
    /// Writes per row
    #[arg(long, default_value_t = 2000)]
    writes: usize,
    /// Keys of a range
    #[arg(long, default_value_t = 1000)]
    keys: usize,
    /// Ranges per row
    #[arg(long, default_value_t = 200)]
    ranges: usize,
    /// Bytes of a value
    #[arg(long, default_value_t = 900)]
    value_bytes: usize,
    /// Clients of the rows with several
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Address of a server to be measured instead, and no other
    #[arg(long)]
    endpoint: Option<String>,
}

/// A server process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Either error means that the process is gone already, which is what is wanted.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[allow(clippy::print_stdout, reason = "what is not measured is said in this program's output")]
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let mut report = Report::default();
    if let Some(endpoint) = &options.endpoint {
        measure(endpoint, endpoint, None, &options, &mut report).await?;
        return Ok(report);
    }
    let folder = tempfile::tempdir()?;
    let (process, url) = ours(&options.binary, folder.path()).await?;
    measure("alcove", &url, Some(process.0.id()), &options, &mut report).await?;
    drop(process);
    match Server::start(Kind::Etcd, folder.path()) {
        Ok(server) => measure("etcd", &server.url(""), Some(server.id()), &options, &mut report).await?,
        Err(StartError::NotInstalled(what)) => println!("{what} is not installed: there is nothing to compare with"),
        Err(error) => return Err(error.into()),
    }
    Ok(report)
}

/// `alcove etcd` over a file.
async fn ours(binary: &Path, folder: &Path) -> anyhow::Result<(Process, String)> {
    let told = folder.join("address");
    let child = Command::new(binary)
        .args(["etcd", "--listen-client-urls=http://127.0.0.1:0"])
        .arg(format!("--data-dir={}", folder.join("data").display()))
        .arg(format!("--address-out={}", told.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("could not start {}", binary.display()))?;
    let process = Process(child);
    let began = Instant::now();
    loop {
        let url = std::fs::read_to_string(&told).unwrap_or_default();
        if !url.is_empty() {
            return Ok((process, url));
        }
        ensure!(began.elapsed() < Duration::from_secs(60), "it does not serve after a minute");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What one server needs for each kind of request.
struct Bench<'a> {
    who: &'a str,
    pid: Option<u32>,
    client: Client,
    value: Bytes,
    rows: Vec<Row>,
}

impl Bench<'_> {
    fn key(&self, group: &str, number: usize) -> Bytes {
        Bytes::from(format!("/registry/{group}/{number:08}"))
    }

    fn put(&self, key: Bytes) -> pb::PutRequest {
        pb::PutRequest { key, value: self.value.clone(), ..pb::PutRequest::default() }
    }

    /// Runs requests, so many at the same time, and takes a row of their latencies and one of their rate.
    async fn requests<F>(
        &mut self,
        what: &str,
        count: usize,
        at_once: usize,
        request: impl Fn(usize) -> F,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let before = self.pid.map(cpu_time).transpose()?;
        let began = Instant::now();
        let samples: Vec<anyhow::Result<Duration>> = futures::stream::iter(0..count)
            .map(|number| {
                let request = request(number);
                async move {
                    let asked = Instant::now();
                    request.await.map(|()| asked.elapsed())
                }
            })
            .buffer_unordered(at_once)
            .collect()
            .await;
        let took = began.elapsed();
        let samples = samples.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let cpu = match (self.pid, before) {
            (Some(pid), Some(before)) => Some(cpu_time(pid)?.saturating_sub(before)),
            _ => None,
        };
        let name = format!("{}: {what}", self.who);
        self.rows.push(Row::latency(name.clone(), samples, cpu));
        if at_once > 1 {
            self.rows.push(Row::value(name, count as f64 / took.as_secs_f64(), "per second"));
        }
        Ok(())
    }
}

async fn measure(who: &str, url: &str, pid: Option<u32>, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let client = Client::new(&[url.to_string()], &Tls::default())?;
    let value = Bytes::from(vec![b'x'; options.value_bytes]);
    let mut bench = Bench { who, pid, client: client.clone(), value, rows: Vec::new() };

    let puts: Vec<_> = (0..options.writes).map(|number| bench.put(bench.key("one", number))).collect();
    let put = |number: usize| {
        let (client, request) = (client.clone(), puts[number].clone());
        async move { client.put(request).await.map(drop).map_err(|status| anyhow::anyhow!("{status}")) }
    };
    bench.requests("put, one client", options.writes, 1, put).await?;
    let what = format!("put, {} clients", options.clients);
    bench.requests(&what, options.writes, options.clients, put).await?;

    // As kube-apiserver creates and changes objects.
    let creates: Vec<_> = (0..options.keys).map(|number| create(bench.put(bench.key("range", number)))).collect();
    let created = |number: usize| {
        let (client, request) = (client.clone(), creates[number].clone());
        async move {
            let answer = client.txn(request).await.map_err(|status| anyhow::anyhow!("{status}"))?;
            ensure!(answer.succeeded, "the key was there already");
            Ok(())
        }
    };
    let what = format!("create in a transaction, {} clients", options.clients);
    bench.requests(&what, options.keys, options.clients, created).await?;

    let range = pb::RangeRequest {
        key: Bytes::from_static(b"/registry/range/"),
        range_end: Bytes::from_static(b"/registry/range0"),
        ..pb::RangeRequest::default()
    };
    let keys = options.keys;
    let read = |request: pb::RangeRequest| {
        let client = client.clone();
        async move {
            let answer = client.range(request).await.map_err(|status| anyhow::anyhow!("{status}"))?;
            ensure!(answer.kvs.len() == keys, "{} keys instead of {keys}", answer.kvs.len());
            Ok(())
        }
    };
    bench.requests(&format!("range of {keys} keys"), options.ranges, 1, |_| read(range.clone())).await?;
    let single = |number: usize| {
        let client = client.clone();
        let key = Bytes::from(format!("/registry/range/{:08}", number % keys));
        async move {
            let request = pb::RangeRequest { key, ..pb::RangeRequest::default() };
            let answer = client.range(request).await.map_err(|status| anyhow::anyhow!("{status}"))?;
            ensure!(answer.kvs.len() == 1, "the key is not there");
            Ok(())
        }
    };
    bench.requests("get of one key", options.writes, 1, single).await?;
    watch_latency(&mut bench, options.writes / 4).await?;
    if let Some(pid) = pid {
        bench.rows.push(Row::value(format!("{who}: resident memory"), resident_mib(pid)?, "MiB"));
    }
    report.rows.append(&mut bench.rows);
    Ok(())
}

fn create(put: pb::PutRequest) -> pb::TxnRequest {
    let compare = pb::Compare {
        result: pb::CompareResult::Equal as i32,
        target: pb::CompareTarget::Mod as i32,
        key: put.key.clone(),
        target_union: Some(TargetUnion::ModRevision(0)),
        range_end: Bytes::new(),
    };
    let success = vec![pb::RequestOp { request: Some(Request::RequestPut(put)) }];
    pb::TxnRequest { compare: vec![compare], success, failure: Vec::new() }
}

/// From the request of a put to its event on a watch.
async fn watch_latency(bench: &mut Bench<'_>, count: usize) -> anyhow::Result<()> {
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: Bytes::from_static(b"/registry/watched/"),
        range_end: Bytes::from_static(b"/registry/watched0"),
        prev_kv: true,
        ..pb::WatchCreateRequest::default()
    };
    requests.send(pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }).await?;
    let sent = futures::stream::unfold(receiver, |mut receiver| async move {
        let request = receiver.recv().await?;
        Some((request, receiver))
    });
    let mut watch = bench.client.watch(Box::pin(sent)).await.map_err(|status| anyhow::anyhow!("{status}"))?;
    let created = watch.message().await.map_err(|status| anyhow::anyhow!("{status}"))?;
    ensure!(created.is_some_and(|answer| answer.created), "the watch did not begin");
    let mut samples = Vec::with_capacity(count);
    for number in 0..count {
        let request = bench.put(bench.key("watched", number));
        let asked = Instant::now();
        let client = bench.client.clone();
        let put = tokio::spawn(async move { client.put(request).await });
        let event = tokio::time::timeout(Duration::from_secs(30), watch.message()).await.context("no event in 30 s")?;
        let event = event.map_err(|status| anyhow::anyhow!("{status}"))?.context("the watch ended")?;
        samples.push(asked.elapsed());
        ensure!(event.events.len() == 1, "{} events instead of one", event.events.len());
        put.await?.map_err(|status| anyhow::anyhow!("{status}"))?;
    }
    bench.rows.push(Row::latency(format!("{}: put to watch event", bench.who), samples, None));
    Ok(())
}
