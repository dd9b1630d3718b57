//! etcd's documented behaviour, checked on real etcd and on ours over every kind of store with the same client.

// Case names and skipped servers, shown when a test fails.
#![allow(clippy::print_stdout)]

mod etcdctl;
mod kv;
mod lease;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd::proto as pb;
use etcd::proto::request_op::Request;
use etcd::{Client, Status, Tls};
use etcdface::{Face, Listener, Options};
use store::servers::{Kind, Server, StartError};
use store::{Endpoint, Store, TlsFiles, prefix_end};
use tokio_util::sync::CancellationToken;

/// Longest wait for something that must happen.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A client, and keys that no other case has.
pub struct Place {
    pub client: Client,
    prefix: String,
}

impl Place {
    pub fn key(&self, name: &str) -> Bytes {
        Bytes::from(format!("{}{name}", self.prefix))
    }

    /// All keys of this case.
    pub fn all(&self) -> (Bytes, Bytes) {
        let start = self.key("");
        let end = prefix_end(&start);
        (start, end)
    }

    pub fn put_request(&self, name: &str, value: &str) -> pb::PutRequest {
        let value = Bytes::copy_from_slice(value.as_bytes());
        pb::PutRequest { key: self.key(name), value, ..pb::PutRequest::default() }
    }

    /// Returns the revision.
    pub async fn put(&self, name: &str, value: &str) -> i64 {
        let answer = self.client.put(self.put_request(name, value)).await.expect("a put succeeds");
        revision(&answer.header)
    }

    pub async fn delete(&self, name: &str) -> i64 {
        let request = pb::DeleteRangeRequest { key: self.key(name), ..pb::DeleteRangeRequest::default() };
        revision(&self.client.delete_range(request).await.expect("a delete succeeds").header)
    }

    pub fn range_request(&self) -> pb::RangeRequest {
        let (key, range_end) = self.all();
        pb::RangeRequest { key, range_end, ..pb::RangeRequest::default() }
    }

    pub async fn range(&self, change: impl FnOnce(&mut pb::RangeRequest)) -> Result<pb::RangeResponse, Status> {
        let mut request = self.range_request();
        change(&mut request);
        self.client.range(request).await
    }

    /// Names of keys without the case's prefix.
    pub fn names(&self, kvs: &[pb::KeyValue]) -> Vec<String> {
        kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key[self.prefix.len()..]).into_owned()).collect()
    }
}

pub fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().expect("every answer has a header").revision
}

pub fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

type Case = for<'a> fn(&'a Place) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

macro_rules! cases {
    ($($module:ident::$name:ident),* $(,)?) => {
        fn cases() -> Vec<(&'static str, Case)> {
            vec![$((stringify!($name), |place| Box::pin($module::$name(place)))),*]
        }
    };
}

cases!(
    kv::a_put_counts_revisions_and_versions,
    kv::a_range_has_limits_orders_and_filters,
    kv::the_past_can_be_read_until_it_is_compacted,
    kv::wrong_requests_have_etcds_errors,
    kv::a_delete_of_a_range_is_one_revision,
    kv::a_transaction_compares_and_takes_one_branch,
    kv::a_transaction_is_one_revision_and_sees_itself,
    kv::transactions_are_nested_and_never_write_a_key_twice,
    kv::concurrent_transactions_lose_nothing,
    kv::the_server_tells_about_itself,
    watch::a_watch_has_every_event_from_its_revision_on,
    watch::watches_share_a_stream_and_are_cancelled_one_by_one,
    watch::events_are_filtered,
    watch::progress_comes_after_the_events,
    watch::a_compacted_watch_is_cancelled,
    watch::large_answers_are_cut_into_fragments,
    lease::a_lease_takes_its_keys_with_it,
    lease::a_lease_is_kept_alive_and_runs_out,
);

async fn run(url: &str) {
    let client = Client::new(&[url.to_string()], &Tls::default()).expect("a client");
    for (name, case) in cases() {
        println!("{name}");
        case(&Place { client: client.clone(), prefix: format!("/{name}/") }).await;
    }
}

/// Serves a store and runs every case on it.
async fn ours(store: Store) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let stop = CancellationToken::new();
    let options = Options { progress_interval: Duration::from_millis(200), ..Options::default() };
    let face = Face::new(store.clone(), options);
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { face.serve(Listener::Tcp(listener), stop).await }
    });
    run(&url).await;
    stop.cancel();
    serving.await.expect("no panic").expect("served");
    store.close().await;
}

fn options() -> store::Options {
    store::Options { compaction_interval: None, ..store::Options::default() }
}

fn server(kind: Kind, folder: &std::path::Path) -> Option<Server> {
    match Server::start(kind, folder) {
        Ok(server) => Some(server),
        Err(StartError::NotInstalled(what)) => {
            println!("skipped: {what} is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

async fn ours_on(kind: Kind) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let Some(server) = server(kind, folder.path()) else { return };
    let endpoint = Endpoint::parse(&server.url("face")).expect("an address");
    ours(endpoint.open(&TlsFiles::default(), options()).await.expect("the store opens")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_itself() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let Some(server) = server(Kind::Etcd, folder.path()) else { return };
    run(&server.url("")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_in_memory() {
    ours(Store::in_memory(options()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_on_sqlite() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    ours(Store::open_sqlite(folder.path().join("state.db"), options()).await.expect("the store opens")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_on_postgres() {
    ours_on(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_on_mariadb() {
    ours_on(Kind::Mysql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_on_etcd() {
    ours_on(Kind::Etcd).await;
}

/// etcd's HTTP pages on the same port, and TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_on_the_same_port() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let stop = CancellationToken::new();
    let face = Face::new(Store::in_memory(options()).await, Options::default());
    let serving = Arc::new(face);
    let task = tokio::spawn({
        let (face, stop) = (serving.clone(), stop.clone());
        async move { face.serve(Listener::Tcp(listener), stop).await }
    });
    for (path, expected) in
        [("/health", "\"health\":\"true\""), ("/version", "\"etcdserver\":\"3."), ("/readyz", "ok"), ("/no", "404")]
    {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.contains(expected), "{path}: {answer}");
    }
    stop.cancel();
    task.await.expect("no panic").expect("served");
}
