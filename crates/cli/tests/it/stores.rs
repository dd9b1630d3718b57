//! `alcove store`: the data of a cluster moves between stores; and a clock that jumps under a server.

#![allow(clippy::print_stdout, reason = "skipped servers, shown when a test fails")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use store::servers::{Kind, StartError};

use crate::support::alcove;

/// A process that is killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `alcove apiserver` on a data directory.
struct Server {
    _process: Process,
    client: kube::Client,
}

async fn serve(home: &Path, data: &str) -> Server {
    serve_with(home, data, |_| {}).await
}

async fn serve_with(home: &Path, data: &str, change: impl FnOnce(&mut Command)) -> Server {
    let kubeconfig = home.join(format!("{data}.kubeconfig"));
    let _ = std::fs::remove_file(&kubeconfig);
    let mut command = alcove(home);
    command
        .args(["apiserver", "--bind-address=127.0.0.1", "--secure-port=0", "--cert-dir=certs"])
        .arg(format!("--data-dir={data}"))
        .arg(format!("--kubeconfig-out={}", kubeconfig.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    change(&mut command);
    let process = Process(command.spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        // The file appears whole, once the server is ready.
        if let Ok(read) = Kubeconfig::read_from(&kubeconfig) {
            let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
            return Server { _process: process, client: kube::Client::try_from(config).unwrap() };
        }
        assert!(Instant::now() < deadline, "the API server is not ready after a minute");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn config_maps(server: &Server) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "ConfigMap"));
    Api::namespaced_with(server.client.clone(), "default", &resource)
}

fn store(home: &Path, arguments: &[&str]) -> Output {
    alcove(home).arg("store").args(arguments).output().unwrap()
}

#[tokio::test]
async fn data_moves_to_another_store_and_never_over_data() {
    let home = tempfile::tempdir().unwrap();
    let server = serve(home.path(), "first").await;
    let object = serde_json::from_value(serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"a": "b"}}))
    .unwrap();
    let before = config_maps(&server).create(&PostParams::default(), &object).await.unwrap();
    // Killed, not stopped: what was acknowledged is in the file.
    drop(server);
    std::fs::create_dir(home.path().join("second")).unwrap();

    let moved = store(home.path(), &["migrate", "--from", "first/state.db", "--to", "second/state.db"]);
    assert!(moved.status.success(), "{moved:?}");
    let server = serve(home.path(), "second").await;
    let after = config_maps(&server).get("kept").await.unwrap();
    assert_eq!((&after.metadata.uid, &after.data), (&before.metadata.uid, &before.data));
    assert_eq!(after.metadata.resource_version, before.metadata.resource_version, "the history goes on");

    let served = store(home.path(), &["migrate", "--from", "second/state.db", "--to", "third.db"]);
    assert!(!served.status.success(), "a store in use is not copied: {served:?}");
    drop(server);
    let again = store(home.path(), &["migrate", "--from", "first/state.db", "--to", "second/state.db"]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("is not empty"), "{said}");
    let absent = store(home.path(), &["migrate", "--from", "absent.db", "--to", "fourth.db"]);
    let said = String::from_utf8_lossy(&absent.stderr).into_owned();
    assert!(!absent.status.success() && said.contains("there is no file absent.db"), "{said}");
}

fn config_map(name: &str) -> DynamicObject {
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"large": "x".repeat(20_000)}});
    serde_json::from_value(object).unwrap()
}

/// What a client sees of the objects, apart from revisions.
async fn seen(server: &Server) -> Vec<(String, String, serde_json::Value)> {
    let list = config_maps(server).list(&ListParams::default()).await.unwrap();
    let one = |object: DynamicObject| {
        (object.metadata.name.unwrap_or_default(), object.metadata.uid.unwrap_or_default(), object.data)
    };
    list.items.into_iter().map(one).collect()
}

/// From a file to a database server, on there, and back to another file.
async fn data_moves_to_a_server_and_back(kind: Kind) {
    let home = tempfile::tempdir().unwrap();
    let database = match store::servers::Server::start(kind, home.path()) {
        Ok(database) => database,
        Err(StartError::NotInstalled(what)) => return println!("skipped: {what} is not installed"),
        Err(error) => panic!("{error}"),
    };
    let url = database.url("moved");
    let server = serve(home.path(), "first").await;
    for number in 0..60 {
        config_maps(&server).create(&PostParams::default(), &config_map(&format!("m{number}"))).await.unwrap();
    }
    let before = seen(&server).await;
    let newest = config_maps(&server).get("m59").await.unwrap().metadata.resource_version.unwrap();
    drop(server);

    let moved = store(home.path(), &["migrate", "--from", "first/state.db", "--to", &url]);
    assert!(moved.status.success(), "{moved:?}");
    let again = store(home.path(), &["migrate", "--from", "first/state.db", "--to", &url]);
    assert!(!again.status.success(), "data is not overwritten: {again:?}");
    let server = serve_with(home.path(), "there", |command| {
        command.arg("--store").arg(&url);
    })
    .await;
    assert_eq!(seen(&server).await, before);
    if kind != Kind::Etcd {
        let moved = config_maps(&server).get("m59").await.unwrap();
        assert_eq!(moved.metadata.resource_version, Some(newest), "the history goes on");
    }
    config_maps(&server).create(&PostParams::default(), &config_map("written-there")).await.unwrap();
    let before = seen(&server).await;
    drop(server);

    std::fs::create_dir(home.path().join("back")).unwrap();
    let moved = store(home.path(), &["migrate", "--from", &url, "--to", "back/state.db"]);
    assert!(moved.status.success(), "{moved:?}");
    let server = serve(home.path(), "back").await;
    assert_eq!(seen(&server).await, before);
    config_maps(&server).create(&PostParams::default(), &config_map("written-back")).await.unwrap();
}

#[tokio::test]
async fn data_moves_to_postgres_and_back() {
    data_moves_to_a_server_and_back(Kind::Postgres).await;
}

#[tokio::test]
async fn data_moves_to_mariadb_and_back() {
    data_moves_to_a_server_and_back(Kind::Mysql).await;
}

#[tokio::test]
async fn data_moves_to_etcd_and_back() {
    data_moves_to_a_server_and_back(Kind::Etcd).await;
}

/// The clock of a process, moved by a library that is loaded before the others.
struct Clock {
    library: PathBuf,
    /// By how much it is moved.
    file: PathBuf,
}

impl Clock {
    fn new(home: &Path) -> Option<Clock> {
        let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
        let library = folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|library| library.is_file());
        if library.is_none() {
            println!("skipped: faketime is not installed");
        }
        Some(Clock { library: library?, file: home.join("clock") })
    }

    fn set(&self, by: &str) {
        // Whole at once: the process reads it at any moment.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{by}\n")).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }

    async fn serve(&self, home: &Path) -> Server {
        serve_with(home, "data", |command| {
            command
                .env("LD_PRELOAD", &self.library)
                .env("FAKETIME_TIMESTAMP_FILE", &self.file)
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        })
        .await
    }
}

/// Seconds since 1970 at which an object says that it was made.
fn made_at(object: &DynamicObject) -> i64 {
    object.metadata.creation_timestamp.as_ref().unwrap().0.as_second()
}

#[tokio::test]
async fn a_clock_that_jumps_changes_times_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let Some(clock) = Clock::new(home.path()) else { return };
    clock.set("+0");
    let server = clock.serve(home.path()).await;
    let first = config_maps(&server).create(&PostParams::default(), &config_map("first")).await.unwrap();
    // It goes after an hour, by its own time.
    let event = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Event"));
    let events: Api<DynamicObject> = Api::namespaced_with(server.client.clone(), "default", &event);
    let object = serde_json::from_value(serde_json::json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "kept"}, "involvedObject": {"namespace": "default"}}))
    .unwrap();
    events.create(&PostParams::default(), &object).await.unwrap();
    let start = first.metadata.resource_version.clone().unwrap();
    let mut watch = Box::pin(config_maps(&server).watch(&Default::default(), &start).await.unwrap());
    let mut revision: u64 = start.parse().unwrap();
    for (name, by, seconds) in [("forward", "+2h", 7200), ("back", "-30m", -1800), ("now", "+0", 0)] {
        clock.set(by);
        let made = config_maps(&server).create(&PostParams::default(), &config_map(name)).await.unwrap();
        let moved = made_at(&made) - made_at(&first) - seconds;
        assert!((-1..60).contains(&moved), "{name} was made {moved} s from where the clock is");
        let next: u64 = made.metadata.resource_version.unwrap().parse().unwrap();
        assert!(next > revision, "{name}: revision {next} after {revision}");
        revision = next;
        let event = tokio::time::timeout(Duration::from_secs(20), futures::TryStreamExt::try_next(&mut watch)).await;
        match event.expect("the watch tells of it").unwrap() {
            Some(kube::core::WatchEvent::Added(object)) => assert_eq!(object.metadata.name.as_deref(), Some(name)),
            other => panic!("{other:?}"),
        }
        events.get("kept").await.expect("its hour is not over");
    }
}

/// A server that was not started for so long that its certificates have run out makes new ones, of the same authority, with the
/// data that it had.
#[tokio::test]
async fn certificates_that_have_run_out_are_made_anew_at_start() {
    let home = tempfile::tempdir().unwrap();
    let Some(clock) = Clock::new(home.path()) else { return };
    clock.set("-500d");
    // Its kubeconfig is of no use to this client, whose clock is right.
    drop(clock.serve(home.path()).await);
    let old = pki::files::read(&home.path().join("certs")).unwrap();
    let now = std::time::SystemTime::now();
    assert!(pki::expiry(&old["apiserver.crt"]).is_some_and(|end| end < now), "the old one has run out");
    let server = serve(home.path(), "data").await;
    config_maps(&server).create(&PostParams::default(), &config_map("after")).await.unwrap();
    let new = pki::files::read(&home.path().join("certs")).unwrap();
    assert_eq!(new["server-ca.crt"], old["server-ca.crt"], "the same authority");
    assert!(pki::expiry(&new["apiserver.crt"]).is_some_and(|end| end > now));
    assert_ne!(new["admin.crt"], old["admin.crt"]);
}
