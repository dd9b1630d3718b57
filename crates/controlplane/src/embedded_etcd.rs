//! `controlPlane.backingStore.etcd.embedded`: an etcd member in each pod of the control plane, as a supervised program.
//!
//! One replica keeps its member on the loopback. Several are one etcd cluster over the pods' names, with as many members as
//! there were replicas at first: the list of members is not changed afterwards.
//!
//! Invariants:
//! - Nobody without the cluster's own etcd certificates is answered, by clients' and by peers' ports.
//! - What the cluster had in its file or in an etcd beside it is moved once, into an empty etcd, before anything else is
//!   written. A move that was cut short begins anew.
//!
//! Follows: vCluster's embedded etcd as far as its documentation tells (`/data/etcd`, ports, `migrateFromDeployedEtcd`).

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use config::{Config, StoreType};
use store::{Endpoint, OpenError, Store, TlsFiles};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::Replica;
use crate::certificates::Certificates;
use crate::distro::child::{Health, Program};

const ETCD: &str = "etcd";
const FILES: [&str; 7] = [
    "apiserver-etcd-client.crt",
    "apiserver-etcd-client.key",
    "etcd-ca.crt",
    "etcd-peer.crt",
    "etcd-peer.key",
    "etcd-server.crt",
    "etcd-server.key",
];
/// Ports of several members. Source: vCluster's headless Service.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// How long etcd may take to answer: the other members may start much later.
const READY_TIMEOUT: Duration = Duration::from_secs(300);
const READY_PERIOD: Duration = Duration::from_millis(100);
/// A program that ends this often before it ever answered is not going to.
const FIRST_STARTS_MAX: u64 = 5;
const GRACE: Duration = Duration::from_secs(5);
/// Beside the member's data while a move is under way.
const MOVING: &str = "etcd.moving";

/// Why the embedded etcd cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedEtcdError {
    #[error(
        "there is no {program}: the init container copies it from controlPlane.distro.k8s.image; elsewhere name a directory with --binaries or ALCOVE_BINARIES"
    )]
    Missing { program: PathBuf },
    #[error("it needs a directory for its data")]
    NoDataDirectory,
    #[error("{path}")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("cannot write its certificates")]
    Files(#[from] pki::PkiError),
    #[error("no free port on the loopback")]
    Port(#[source] std::io::Error),
    #[error("the name of the pod, {pod:?}, is none of a StatefulSet's")]
    Pod { pod: String },
    #[error("etcd {last}")]
    Ended { last: String },
    #[error("etcd did not answer within {} s: {last}", READY_TIMEOUT.as_secs())]
    NotReady { last: String },
    #[error("the data of the cluster cannot be moved into it")]
    Move(#[source] OpenError),
    #[error("the data of the cluster is not complete in it; it was left where it was")]
    Incomplete,
    #[error(
        "data is only moved into an etcd of one member: set statefulSet.highAvailability.replicas to 1, or take a snapshot and restore it"
    )]
    MoveToSeveral,
}

/// A running member.
pub(crate) struct EmbeddedEtcd {
    endpoint: Endpoint,
    /// Its certificates; gone with this.
    folder: tempfile::TempDir,
    health: Arc<Health>,
    cancel: CancellationToken,
    _ends: DropGuard,
    tasks: TaskTracker,
}

/// What a member is started with.
struct Member {
    name: String,
    data: PathBuf,
    pki: PathBuf,
    listen_client: String,
    advertise_client: String,
    listen_peer: String,
    advertise_peer: String,
    /// `NAME=URL` of all members.
    cluster: Vec<String>,
    token: String,
}

/// Which cluster the member belongs to.
pub(crate) struct Place<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub data_dir: Option<&'a Path>,
    pub binaries: &'a Path,
    pub replica: Option<&'a Replica>,
}

impl EmbeddedEtcd {
    /// Starts the member of this pod. It need not answer yet.
    pub fn start(
        config: &Config,
        place: &Place<'_>,
        certificates: &Arc<Certificates>,
    ) -> Result<EmbeddedEtcd, EmbeddedEtcdError> {
        let program = place.binaries.join(ETCD);
        if !program.is_file() {
            return Err(EmbeddedEtcdError::Missing { program });
        }
        let data_dir = place.data_dir.ok_or(EmbeddedEtcdError::NoDataDirectory)?;
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| EmbeddedEtcdError::Folder { path, source }
        };
        let folder = tempfile::Builder::new().prefix("alcove-etcd-").tempdir();
        let folder = folder.map_err(failed(&std::env::temp_dir()))?;
        write(folder.path(), certificates)?;
        std::fs::create_dir_all(data_dir).map_err(failed(data_dir))?;
        let work = data_dir.canonicalize().map_err(failed(data_dir))?;
        let data = work.join(ETCD);
        if work.join(MOVING).exists() {
            tracing::warn!("data was not moved completely into the embedded etcd; it is moved again");
            remove_tree(&data).map_err(failed(&data))?;
        }
        let (member, port) = member(config, place, data, folder.path())?;
        let embedded = &config.control_plane.backing_store.etcd.embedded;
        let mut line = vec![program.canonicalize().unwrap_or(program).display().to_string()];
        line.extend(flags(&member, embedded.snapshot_count));
        let line = with_extra(line, &embedded.extra_args);
        let health: Arc<Health> = Arc::default();
        let program = Program { name: ETCD, line, folder: work, grace: GRACE, health: Arc::clone(&health) };
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(program.keep_running(cancel.clone()));
        tasks.spawn(follow(folder.path().to_path_buf(), Arc::clone(certificates), cancel.clone()));
        let url = format!("https://127.0.0.1:{port}");
        let endpoint = Endpoint::parse(&url).map_err(|_| EmbeddedEtcdError::Pod { pod: url })?;
        Ok(EmbeddedEtcd { endpoint, folder, health, _ends: cancel.clone().drop_guard(), cancel, tasks })
    }

    fn tls(&self) -> TlsFiles {
        client_files(self.folder.path())
    }

    /// Opens the store in it, with the data that the cluster had elsewhere, and waits as long as that takes.
    pub async fn open(
        &self,
        config: &Config,
        data_dir: Option<&Path>,
        deployed: &str,
    ) -> Result<Store, EmbeddedEtcdError> {
        let begin = tokio::time::Instant::now();
        loop {
            let error = match self.endpoint.open(&self.tls(), store::Options::default()).await {
                Ok(store) => return self.with_earlier_data(store, config, data_dir, deployed).await,
                Err(error) => error,
            };
            if self.health.starts() >= FIRST_STARTS_MAX
                || (self.health.starts() == 0 && !self.health.last_end().is_empty())
            {
                return Err(EmbeddedEtcdError::Ended { last: self.health.last_end() });
            }
            if begin.elapsed() > READY_TIMEOUT {
                return Err(EmbeddedEtcdError::NotReady { last: chain(&error) });
            }
            tracing::debug!(error = &error as &dyn std::error::Error, "the embedded etcd does not answer yet");
            tokio::time::sleep(READY_PERIOD).await;
        }
    }

    /// Moves what the cluster had before into an empty etcd.
    async fn with_earlier_data(
        &self,
        store: Store,
        config: &Config,
        data_dir: Option<&Path>,
        deployed: &str,
    ) -> Result<Store, EmbeddedEtcdError> {
        let snapshot = store.snapshot();
        let Some(folder) = data_dir.filter(|_| snapshot.kvs.is_empty()) else { return Ok(store) };
        let file = folder.join("state.db");
        let wants_deployed = config.control_plane.backing_store.etcd.embedded.migrate_from_deployed_etcd;
        let options = || store::Options { compaction_interval: None, ..store::Options::default() };
        let source = if wants_deployed {
            let endpoint =
                Endpoint::parse(deployed).map_err(|_| EmbeddedEtcdError::Pod { pod: deployed.to_string() })?;
            endpoint.open(&self.tls(), options()).await
        } else if file.exists() {
            Store::open_sqlite(&file, options()).await
        } else {
            return Ok(store);
        };
        let source = source.map_err(EmbeddedEtcdError::Move)?;
        let earlier = source.snapshot();
        if earlier.kvs.is_empty() {
            source.close().await;
            return Ok(store);
        }
        if config.control_plane.stateful_set.high_availability.replicas > 1 {
            source.close().await;
            store.close().await;
            return Err(EmbeddedEtcdError::MoveToSeveral);
        }
        store.close().await;
        tracing::info!(keys = earlier.kvs.len(), "the data of the cluster is moved into the embedded etcd");
        let mark = folder.join(MOVING);
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| EmbeddedEtcdError::Folder { path, source }
        };
        std::fs::write(&mark, "").map_err(failed(&mark))?;
        let filled = self.endpoint.open_from(&earlier, &self.tls(), store::Options::default()).await;
        source.close().await;
        let filled = filled.map_err(EmbeddedEtcdError::Move)?;
        let now = filled.snapshot();
        let same = now.kvs.len() == earlier.kvs.len()
            && now.kvs.iter().zip(&earlier.kvs).all(|(a, b)| a.key == b.key && a.value == b.value);
        if !same {
            filled.close().await;
            return Err(EmbeddedEtcdError::Incomplete);
        }
        if !wants_deployed {
            // Not taken for the cluster's data again, and not lost.
            for suffix in ["", "-wal", "-shm"] {
                let from = folder.join(format!("state.db{suffix}"));
                if from.exists() {
                    let to = folder.join(format!("state.db{suffix}.moved"));
                    std::fs::rename(&from, &to).map_err(failed(&from))?;
                }
            }
        }
        std::fs::remove_file(&mark).map_err(failed(&mark))?;
        Ok(filled)
    }

    /// Ends the member. The store has been closed.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What this pod's member is, and the port that clients use.
fn member(config: &Config, place: &Place<'_>, data: PathBuf, pki: &Path) -> Result<(Member, u16), EmbeddedEtcdError> {
    let replicas = config.control_plane.stateful_set.high_availability.replicas;
    let (data, pki, token) = (data, pki.to_path_buf(), place.name.to_string());
    if replicas <= 1 {
        let [client, peer] = free_ports().map_err(EmbeddedEtcdError::Port)?;
        let url = |port: u16| format!("https://127.0.0.1:{port}");
        let name = format!("{}-0", place.name);
        let member = Member {
            cluster: vec![format!("{name}={}", url(peer))],
            name,
            data,
            pki,
            listen_client: url(client),
            advertise_client: url(client),
            listen_peer: url(peer),
            advertise_peer: url(peer),
            token,
        };
        return Ok((member, client));
    }
    let pod = place.replica.map(|replica| replica.identity.as_str()).unwrap_or_default();
    let ordinal = pod.strip_prefix(place.name).and_then(|rest| rest.strip_prefix('-')?.parse::<u32>().ok());
    let ordinal = ordinal.ok_or_else(|| EmbeddedEtcdError::Pod { pod: pod.to_string() })?;
    let domain = format!("{}.{}", deploy::names::headless_service(place.name), place.namespace);
    let host = |n: u32| format!("{}-{n}.{domain}", place.name);
    let peer = |n: u32| format!("https://{}:{PEER_PORT}", host(n));
    let member = Member {
        name: pod.to_string(),
        data,
        pki,
        listen_client: format!("https://0.0.0.0:{CLIENT_PORT}"),
        advertise_client: format!("https://{}:{CLIENT_PORT}", host(ordinal)),
        listen_peer: format!("https://0.0.0.0:{PEER_PORT}"),
        advertise_peer: peer(ordinal),
        cluster: (0..replicas).map(|n| format!("{}-{n}={}", place.name, peer(n))).collect(),
        token,
    };
    Ok((member, CLIENT_PORT))
}

fn flags(member: &Member, snapshot_count: u64) -> Vec<String> {
    let flags = [
        ("name", member.name.clone()),
        ("data-dir", member.data.display().to_string()),
        ("listen-client-urls", member.listen_client.clone()),
        ("advertise-client-urls", member.advertise_client.clone()),
        ("listen-peer-urls", member.listen_peer.clone()),
        ("initial-advertise-peer-urls", member.advertise_peer.clone()),
        ("initial-cluster", member.cluster.join(",")),
        ("initial-cluster-token", member.token.clone()),
    ];
    let snapshot_count = if snapshot_count == 0 { 10_000 } else { snapshot_count };
    let file = |name: &str| member.pki.join(name).display().to_string();
    let flags = flags.into_iter().chain(deploy::etcd::member_flags(file, snapshot_count));
    flags.map(|(flag, value)| format!("--{flag}={value}")).collect()
}

/// Flags of `extra` take the place of the same flags.
fn with_extra(line: Vec<String>, extra: &[String]) -> Vec<String> {
    let flag = |arg: &str| arg.split('=').next().unwrap_or_default().to_string();
    let given: Vec<String> = extra.iter().map(|arg| flag(arg)).collect();
    let kept = line.into_iter().filter(|arg| !given.contains(&flag(arg)));
    kept.chain(extra.iter().cloned()).collect()
}

fn client_files(folder: &Path) -> TlsFiles {
    TlsFiles {
        ca_file: Some(folder.join("etcd-ca.crt")),
        cert_file: Some(folder.join("apiserver-etcd-client.crt")),
        key_file: Some(folder.join("apiserver-etcd-client.key")),
    }
}

fn write(folder: &Path, certificates: &Certificates) -> Result<(), pki::PkiError> {
    pki::files::write(folder, &FILES.iter().map(|name| ((*name).to_string(), certificates.file(name))).collect())
}

/// etcd reads its certificates again for each connection.
async fn follow(folder: PathBuf, certificates: Arc<Certificates>, cancel: CancellationToken) {
    let mut changes = certificates.changes();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        if let Err(error) = write(&folder, &certificates) {
            tracing::error!(error = &error as &dyn std::error::Error, "renewed certificates cannot be written");
        }
    }
}

/// Two ports that are free now.
fn free_ports() -> std::io::Result<[u16; 2]> {
    let bind = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners = [bind()?, bind()?];
    Ok([listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()])
}

fn remove_tree(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Is the store of this configuration an embedded etcd?
pub(crate) fn is_wanted(config: &Config) -> bool {
    config.store_type() == StoreType::EmbeddedEtcd
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(pod: &str) -> Replica {
        Replica { identity: pod.into(), elects: true, pod_ip: None, node_ip: None }
    }

    #[test]
    fn members_find_each_other_by_the_names_of_their_pods() {
        let config = Config::from_yaml(
            "t",
            "controlPlane: {backingStore: {etcd: {embedded: {enabled: true}}}, statefulSet: {highAvailability: {replicas: 3}}}",
        )
        .unwrap();
        for (pod, want) in [
            ("team-a-1", Some("https://team-a-1.team-a-headless.ns:2380")),
            ("team-a", None),
            ("team-a-x", None),
            ("", None),
        ] {
            let replica = replica(pod);
            let place = Place {
                name: "team-a",
                namespace: "ns",
                data_dir: None,
                binaries: Path::new("/binaries"),
                replica: Some(&replica),
            };
            let made = member(&config, &place, "/data/etcd".into(), Path::new("/pki")).ok();
            assert_eq!(made.as_ref().map(|(member, _)| member.advertise_peer.as_str()), want, "{pod}");
            if let Some((member, port)) = made {
                assert_eq!(port, 2379);
                assert_eq!(member.cluster.len(), 3);
                assert_eq!(member.cluster[2], "team-a-2=https://team-a-2.team-a-headless.ns:2380");
                let line = with_extra(flags(&member, 5000), &["--snapshot-count=7".into()]);
                assert!(line.contains(&"--snapshot-count=7".to_string()), "{line:?}");
                assert!(!line.contains(&"--snapshot-count=5000".to_string()), "{line:?}");
            }
        }
    }

    #[test]
    fn one_member_stays_on_the_loopback() {
        let config =
            Config::from_yaml("t", "controlPlane: {backingStore: {etcd: {embedded: {enabled: true}}}}").unwrap();
        let place = Place { name: "a", namespace: "ns", data_dir: None, binaries: Path::new("/b"), replica: None };
        let (member, _) = member(&config, &place, "/data/etcd".into(), Path::new("/pki")).unwrap();
        for url in [&member.listen_client, &member.listen_peer, &member.advertise_client, &member.advertise_peer] {
            assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        }
    }

    /// Three members with the flags of three pods, at other addresses; one is killed.
    #[allow(clippy::print_stdout)]
    #[tokio::test]
    async fn three_members_are_one_store_and_go_on_without_one_of_them() {
        use bytes::Bytes;
        let path =
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).find(|d| d.join(ETCD).is_file());
        let Some(binaries) = path else {
            println!("skipped: etcd is not installed");
            return;
        };
        let home = tempfile::tempdir().unwrap();
        let names = ["localhost".to_string(), "127.0.0.1".to_string()];
        let wanted = pki::Wanted { serving_names: &names, etcd_names: Some(&names), now: std::time::SystemTime::now() };
        let files = pki::ClusterCertificates::complete_as(Default::default(), &wanted).unwrap();
        let pki = home.path().join("pki");
        pki::files::write(&pki, files.files()).unwrap();
        let ports: Vec<[u16; 2]> = (0..3).map(|_| free_ports().unwrap()).collect();
        let url = |port: u16| format!("https://127.0.0.1:{port}");
        let cluster: Vec<String> = (0..3).map(|n| format!("m-{n}={}", url(ports[n][1]))).collect();
        let mut running = Vec::new();
        for n in 0..3 {
            let member = Member {
                name: format!("m-{n}"),
                data: home.path().join(format!("data-{n}")),
                pki: pki.clone(),
                listen_client: url(ports[n][0]),
                advertise_client: url(ports[n][0]),
                listen_peer: url(ports[n][1]),
                advertise_peer: url(ports[n][1]),
                cluster: cluster.clone(),
                token: "m".into(),
            };
            let mut line = vec![binaries.join(ETCD).display().to_string()];
            line.extend(flags(&member, 0));
            let folder = home.path().join(format!("work-{n}"));
            std::fs::create_dir(&folder).unwrap();
            let cancel = CancellationToken::new();
            let program = Program { name: ETCD, line, folder, grace: Duration::ZERO, health: Arc::default() };
            running.push((cancel.clone(), tokio::spawn(program.keep_running(cancel))));
        }
        let open = async |n: usize| {
            let endpoint = Endpoint::parse(&url(ports[n][0])).unwrap();
            let begin = std::time::Instant::now();
            loop {
                match endpoint.open(&client_files(&pki), store::Options::default()).await {
                    Ok(store) => return store,
                    Err(error) => assert!(begin.elapsed() < Duration::from_secs(60), "{}", chain(&error)),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let (first, second) = (open(0).await, open(1).await);
        let put = |text: &'static str| store::Op::Put { value: Bytes::from_static(text.as_bytes()), lease: 0 };
        let key = Bytes::from_static(b"/registry/x");
        first.txn(key.clone(), store::Expect::Absent, put("one")).await.unwrap();
        second.synchronize().await.unwrap();
        assert_eq!(second.get(&key, 0).await.unwrap().unwrap().value, "one");
        let (cancel, ended) = running.remove(2);
        cancel.cancel();
        ended.await.unwrap();
        // The one that is gone may have led: etcd refuses writes until another does.
        let begin = std::time::Instant::now();
        loop {
            match second.txn(key.clone(), store::Expect::Any, put("two")).await {
                Ok(_) => break,
                Err(store::WriteError::Unavailable { .. }) if begin.elapsed() < Duration::from_secs(60) => {}
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        first.synchronize().await.unwrap();
        assert_eq!(first.get(&key, 0).await.unwrap().unwrap().value, "two");
        first.close().await;
        second.close().await;
        for (cancel, ended) in running {
            cancel.cancel();
            ended.await.unwrap();
        }
    }
}
