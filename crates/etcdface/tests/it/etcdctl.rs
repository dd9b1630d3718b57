//! etcd's own command-line client, with the same commands against etcd and against ours: the same answers.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use etcdface::{Face, Listener, Options};
use store::servers::{Kind, Server};
use store::{Endpoint, Store, TlsFiles};
use tokio_util::sync::CancellationToken;

use crate::{options, server};

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join("etcdctl")).find(|program| program.is_file());
    if found.is_none() {
        println!("skipped: etcdctl is not installed");
    }
    found
}

/// etcdctl against one server.
struct Etcdctl {
    program: PathBuf,
    url: String,
    folder: PathBuf,
}

impl Etcdctl {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("ETCDCTL_API", "3")
            .arg("--endpoints")
            .arg(&self.url)
            .args(["--command-timeout=20s", "--dial-timeout=10s"])
            .args(arguments)
            .current_dir(&self.folder);
        command
    }

    /// What a command prints, and whether it succeeded, with what differs between two servers taken out.
    fn run(&self, arguments: &[&str], input: &str) -> String {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("etcdctl starts");
        // It need not read its input.
        let _ = child.stdin.take().expect("its input").write_all(input.as_bytes());
        let output = child.wait_with_output().expect("etcdctl ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        // Only the texts of errors; the client's log has times in it.
        let errors: Vec<&str> =
            errors.lines().filter(|line| line.contains("Error") || line.contains("health")).collect();
        let text = format!("{}\n{text}{}", output.status.success(), errors.join("\n"));
        self.without_own(&text)
    }

    fn without_own(&self, text: &str) -> String {
        let text = text.replace(&self.url, "URL");
        let text = match text.split_once("took = ") {
            Some((before, _)) => before.to_string(),
            None => text,
        };
        // How long a lease still has.
        let text = match text.split_once("remaining(") {
            Some((before, rest)) => {
                format!("{before}remaining({}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
            }
            None => text,
        };
        // Numbers of members, clusters and leases.
        let mut words = Vec::new();
        for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            let is_id = bare.len() >= 12 && bare.chars().all(|c| c.is_ascii_hexdigit());
            words.push(if is_id { word.replace(bare, "ID") } else { word.to_string() });
        }
        words.concat()
    }

    /// The first lines of a watch.
    fn watch(&self, arguments: &[&str], lines: usize) -> Vec<String> {
        let mut child = self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let seen = output.lines().take(lines).collect::<Result<Vec<_>, _>>().expect("lines");
        child.kill().expect("it runs until it is ended");
        child.wait().expect("its end");
        seen
    }

    fn grant(&self) -> String {
        let output = self.command(&["lease", "grant", "600"]).output().expect("etcdctl runs");
        let text = String::from_utf8(output.stdout).expect("text");
        text.split_whitespace().nth(1).unwrap_or_else(|| panic!("no lease: {text}")).to_string()
    }
}

/// Commands in turn with what they are given; `LEASE` is a lease that was granted before.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["put", "/a", "1"], ""),
    (&["put", "/a", "2", "--prev-kv"], ""),
    (&["put", "/b", "1"], ""),
    (&["put", "/c"], "from the input"),
    (&["get", "/a"], ""),
    (&["get", "/", "--prefix", "--keys-only"], ""),
    (&["get", "/", "--prefix", "--limit=2", "--order=DESCEND", "--sort-by=KEY"], ""),
    (&["get", "/a", "--rev=2", "--print-value-only"], ""),
    (&["get", "/", "--prefix", "--count-only", "--write-out=fields"], ""),
    (&["get", "/a", "-w", "json"], ""),
    (&["get", "/none"], ""),
    (&["get", "/a", "--rev=1000"], ""),
    (&["txn"], "value(\"/a\") = \"2\"\nversion(\"/b\") > \"0\"\n\nput /t yes\nget /a\ndel /c\n\nput /t no\n\n"),
    (&["txn"], "mod(\"/a\") < \"1\"\n\nput /t yes\n\nput /t no\nget /t\n\n"),
    (&["txn"], "create(\"/new\") = \"0\"\n\nput /new 1\n\n\n"),
    (&["del", "/none"], ""),
    (&["del", "/b", "--prev-kv"], ""),
    (&["put", "/l", "leased", "--lease=LEASE"], ""),
    (&["put", "/l", "leased", "--lease=1234"], ""),
    (&["lease", "timetolive", "LEASE", "--keys"], ""),
    (&["lease", "keep-alive", "LEASE", "--once"], ""),
    (&["lease", "list"], ""),
    (&["lease", "revoke", "LEASE"], ""),
    (&["lease", "timetolive", "LEASE"], ""),
    (&["get", "/l"], ""),
    (&["put", "/many/1", "x"], ""),
    (&["put", "/many/2", "x"], ""),
    (&["del", "/many/", "--prefix"], ""),
    (&["compaction", "5"], ""),
    (&["compaction", "5"], ""),
    (&["get", "/a", "--rev=3"], ""),
    (&["defrag"], ""),
    (&["alarm", "list"], ""),
    (&["alarm", "disarm"], ""),
    (&["endpoint", "health"], ""),
    (&["endpoint", "hashkv", "--write-out=simple"], ""),
    (&["user", "list"], ""),
    (&["role", "list"], ""),
];

/// Answers of all commands; hashes are those of each server's own format.
fn transcript(etcdctl: &Etcdctl) -> Vec<String> {
    let lease = etcdctl.grant();
    let mut answers = Vec::new();
    for (arguments, input) in COMMANDS {
        let with_lease: Vec<String> = arguments.iter().map(|argument| argument.replace("LEASE", &lease)).collect();
        let with_lease: Vec<&str> = with_lease.iter().map(String::as_str).collect();
        let mut answer = etcdctl.run(&with_lease, input);
        if arguments.contains(&"hashkv") {
            answer = answer.chars().filter(|c| !c.is_ascii_digit()).collect();
        }
        answers.push(format!("{} {answer}", arguments.join(" ")));
    }
    answers.push(etcdctl.watch(&["watch", "/", "--prefix", "--rev=6"], 12).join("\n"));
    answers
}

/// Serves a store as long as `work` takes.
async fn with_ours<T: Send + 'static>(store: Store, work: impl FnOnce(String) -> T + Send + 'static) -> T {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let stop = CancellationToken::new();
    let face = Face::new(store.clone(), Options { client_urls: vec![url.clone()], ..Options::default() });
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { face.serve(Listener::Tcp(listener), stop).await }
    });
    let done = tokio::task::spawn_blocking(move || work(url)).await;
    stop.cancel();
    serving.await.expect("no panic").expect("served");
    store.close().await;
    done.expect("the checks pass")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_gets_the_same_answers_from_us_as_from_etcd() {
    let Some(program) = program() else { return };
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().to_path_buf();
    let Some(etcd) = server(Kind::Etcd, &path) else { return };
    let theirs = Etcdctl { program: program.clone(), url: etcd.url(""), folder: path.clone() };
    let theirs = tokio::task::spawn_blocking(move || transcript(&theirs)).await.expect("no panic");
    let store = Store::open_sqlite(path.join("state.db"), options()).await.expect("the store opens");
    let ours = with_ours(store, move |url| transcript(&Etcdctl { program, url, folder: path })).await;
    for (ours, theirs) in ours.iter().zip(&theirs) {
        println!("{ours}");
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_hears_about_the_member() {
    let Some(program) = program() else { return };
    let folder = tempfile::tempdir().expect("a temporary directory");
    let folder_path = folder.path().to_path_buf();
    with_ours(Store::in_memory(options()).await, move |url| {
        let etcdctl = Etcdctl { program, url, folder: folder_path };
        let members = etcdctl.run(&["member", "list", "-w", "json"], "");
        assert!(members.contains(r#""name":"alcove""#) && members.contains(r#""clientURLs":["URL"]"#), "{members}");
        let status = etcdctl.run(&["endpoint", "status", "-w", "json"], "");
        assert!(status.starts_with("true") && status.contains(r#""version":"3."#), "{status}");
        let health = etcdctl.run(&["endpoint", "health", "--cluster"], "");
        assert!(health.contains("is healthy"), "{health}");
        let add = etcdctl.run(&["member", "add", "other", "--peer-urls=http://127.0.0.1:1"], "");
        assert!(add.starts_with("false"), "{add}");
    })
    .await;
}

/// A member of etcd that is started from our snapshot goes on with our keys and revisions; and so do we with a copy of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_goes_on_from_a_snapshot_of_ours() {
    const KEYS: usize = 3_000;
    let Some(program) = program() else { return };
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().to_path_buf();
    if server(Kind::Etcd, &path).is_none() {
        return;
    }
    let store = Store::in_memory(options()).await;
    let put = async |key: String, value: Vec<u8>| {
        let op = store::Op::Put { value: value.into(), lease: 0 };
        store.txn(key.into(), store::Expect::Any, op).await.expect("written").revision
    };
    for number in 0..KEYS {
        put(format!("/many/{number:05}"), vec![b'v'; number % 300]).await;
    }
    put("/large".to_string(), vec![b'L'; 1_000_000]).await;
    put("/changed".to_string(), b"1".to_vec()).await;
    put("/changed".to_string(), b"2".to_vec()).await;
    let lease = store.lease_grant(4711, 3600).await.expect("granted").id;
    let op = store::Op::Put { value: "leased".into(), lease };
    store.txn("/leased".into(), store::Expect::Any, op).await.expect("written");
    // The newest revision is a deletion: it has to count all the same.
    put("/gone".to_string(), b"1".to_vec()).await;
    let gone = store.txn("/gone".into(), store::Expect::Any, store::Op::Delete).await.expect("deleted");
    let wanted = store.range(store::RangeRequest::prefix("/")).await.expect("readable").kvs;
    let client = program.clone();
    with_ours(store, {
        let path = path.clone();
        move |url| {
            let etcdctl = Etcdctl { program: client, url, folder: path };
            let saved = etcdctl.run(&["snapshot", "save", "file.db"], "");
            assert!(saved.starts_with("true") && saved.contains("file.db"), "{saved}");
            let status = etcdctl.run(&["snapshot", "status", "file.db", "-w", "json"], "");
            // Keys, the lease, and four numbers about the whole.
            assert!(status.contains(&format!(r#""totalKey":{}"#, KEYS + 3 + 1 + 4)), "{status}");
            let restored = etcdctl.run(&["snapshot", "restore", "file.db", "--data-dir=restored"], "");
            assert!(restored.starts_with("true"), "{restored}");
        }
    })
    .await;
    let started = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || Server::start_etcd_on(&path, &path.join("restored"))).await
    };
    let etcd = started.expect("no panic").expect("etcd starts from the snapshot");
    let endpoint = Endpoint::parse(&etcd.url("")).expect("an address");
    let tls = TlsFiles::default();
    let open = endpoint.open(&tls, options());
    let restored = tokio::time::timeout(Duration::from_secs(30), open).await.expect("in time").expect("opens");
    let found = restored.range(store::RangeRequest::prefix("/")).await.expect("readable");
    assert!(found.kvs == wanted, "{} keys instead of {}", found.kvs.len(), wanted.len());
    assert_eq!(restored.current_revision(), gone.revision, "the history goes on");
    let leases: Vec<(i64, i64)> = restored.leases().iter().map(|lease| (lease.id, lease.ttl_seconds)).collect();
    assert_eq!(leases, [(4711, 3600)]);
    let op = store::Op::Put { value: "new".into(), lease: 0 };
    let written = restored.txn("/new".into(), store::Expect::Absent, op).await.expect("written");
    assert_eq!(written.revision, gone.revision + 1);
    restored.close().await;
}
