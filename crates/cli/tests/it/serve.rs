//! `alcove serve` against a host with RBAC, with the rights of the cluster's own service account and no others.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::{Value, json, resources};
use base64::Engine;
use deploy::{Placement, Release};
use devhost::{DevHost, DevHostConfig};
use informer::{PatchType, Resource, Rest};
use parking_lot::Mutex;

use crate::support::alcove;

pub const NAME: &str = "team-a";
pub const NAMESPACE: &str = "vcluster-team-a";
pub const PODS: Resource = Resource::new("", "v1", "pods");
const SECRETS: Resource = Resource::new("", "v1", "secrets");
pub const SERVICES: Resource = Resource::new("", "v1", "services");
pub const CONFIG_MAPS: Resource = Resource::new("", "v1", "configmaps");
pub const SERVICE_ACCOUNTS: Resource = Resource::new("", "v1", "serviceaccounts");

/// Tries until `ready` gives something.
pub async fn eventually<T>(what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = ready().await {
            return value;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A TCP proxy in front of the host's API that can be cut.
struct Wire {
    address: std::net::SocketAddr,
    open: tokio::sync::watch::Sender<bool>,
}

impl Wire {
    async fn to(target: std::net::SocketAddr) -> Wire {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = tokio::sync::watch::Sender::new(true);
        let state = open.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut state = state.subscribe();
                tokio::spawn(async move {
                    if !*state.borrow_and_update() {
                        return;
                    }
                    let Ok(mut far) = tokio::net::TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Wire { address, open }
    }

    fn cut(&self, cut: bool) {
        self.open.send_replace(!cut);
    }
}

/// A development host with the objects of one cluster, and the directory of its `alcove serve`.
pub struct World {
    pub host: DevHost,
    pub rest: Rest,
    wire: Wire,
    pub home: tempfile::TempDir,
}

impl World {
    pub async fn new(values: &str) -> World {
        // A test process installs the provider once; another test may have done so.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let host = DevHost::start(DevHostConfig { nodes: 2, ..DevHostConfig::default() }).await.unwrap();
        let rest = Rest::new(host.client(), "test");
        let wire = Wire::to(host.address()).await;
        let home = tempfile::Builder::new().prefix("alcove-serve-").tempdir().unwrap();
        let config = config::Config::from_yaml("vcluster.yaml", values).unwrap();
        std::fs::write(home.path().join("vcluster.yaml"), values).unwrap();
        let release = Release {
            name: NAME,
            namespace: NAMESPACE,
            placement: Placement::Dedicated,
            config: &config,
            version: "0.0.0",
        };
        for object in std::iter::once(deploy::namespace(NAMESPACE)).chain(deploy::host_objects(&release).unwrap()) {
            let object = Value::from(object);
            if ["StatefulSet", "Deployment"].contains(&object.str_at(&["kind"])) {
                // The process is started by the test in place of the pod.
                continue;
            }
            let api_version = object.str_at(&["apiVersion"]);
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let kind = resources::by_kind(group, version, object.str_at(&["kind"])).unwrap();
            let resource = Resource { group: group.into(), version: version.into(), resource: kind.name.into() };
            let namespace = if kind.namespaced { NAMESPACE } else { "" };
            rest.create(&resource, namespace, &object).await.unwrap();
        }
        let world = World { host, rest, wire, home };
        world.write_kubeconfig().await;
        world
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.home.path().join("host.kubeconfig")
    }

    /// A kubeconfig of the cluster's service account on the host, through the wire.
    async fn write_kubeconfig(&self) {
        self.write_kubeconfig_of(&deploy::names::service_account(NAME)).await;
    }

    /// The same of another of its accounts.
    pub async fn write_kubeconfig_of(&self, account: &str) {
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let answer =
            self.rest.create_subresource(&SERVICE_ACCOUNTS, NAMESPACE, account, "token", &request).await.unwrap();
        let access = deploy::secrets::AdminAccess {
            server: format!("https://{}", self.wire.address),
            certificate_authority: self.host.access().certificate_authority.clone(),
            token: answer.str_at(&["status", "token"]).to_string(),
            ..Default::default()
        };
        std::fs::write(self.kubeconfig(), deploy::secrets::kubeconfig_yaml("host", &access)).unwrap();
    }

    /// Starts `alcove serve` and waits until it serves.
    pub async fn serve(&self, data: &str, pod: &str) -> Served {
        self.serve_with(data, pod, &[]).await
    }

    /// Runs `alcove serve`, which must not come to serve; returns what it said.
    pub fn refused(&self, more: &[&str]) -> String {
        let output = self.command("data", "team-a-0", more).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        said
    }

    fn command(&self, data: &str, pod: &str, more: &[&str]) -> std::process::Command {
        let mut command = alcove(self.home.path());
        command
            .args(["serve", "--name", NAME, "--port", "0", "--bind-address", "127.0.0.1", "--config", "vcluster.yaml"])
            .args(["--namespace", NAMESPACE, "--data-dir", data, "--pod-name", pod])
            .args(more)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .stderr(Stdio::piped());
        command
    }

    pub async fn serve_with(&self, data: &str, pod: &str, more: &[&str]) -> Served {
        let mut child = self.command(data, pod, more).spawn().unwrap();
        let said: Arc<Mutex<String>> = Arc::default();
        let (log, stderr) = (Arc::clone(&said), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = log.lock();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let begin = Instant::now();
        let port = loop {
            let text = said.lock().clone();
            if let Some((_, rest)) = text.split_once("on https://127.0.0.1:") {
                break rest.lines().next().unwrap().trim().parse().unwrap();
            }
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && begin.elapsed() < Duration::from_secs(60), "{ended:?}: {text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        Served { child, port, said }
    }

    pub async fn secret(&self, name: &str) -> BTreeMap<String, String> {
        let secret = eventually(name, async || self.rest.get(&SECRETS, NAMESPACE, name).await.ok()).await;
        let decode = |value: &Value| {
            let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        secret["data"].as_object().unwrap().iter().map(|(key, value)| (key.to_string(), decode(value))).collect()
    }

    pub async fn host_pods(&self) -> BTreeMap<String, String> {
        let pods: Vec<Value> = self.rest.list_as(&PODS, NAMESPACE, "", "").await.unwrap();
        let text = |pod: &Value, path: &[&str]| pod.str_at(path).to_owned();
        pods.iter().map(|pod| (text(pod, &["metadata", "name"]), text(pod, &["metadata", "uid"]))).collect()
    }

    /// A client with the kubeconfig that the cluster has written to the host.
    pub async fn tenant(&self, served: &Served) -> Rest {
        self.client(served, "vc-team-a", None).await
    }

    /// The same from another Secret, and with another name expected in the certificate.
    async fn client(&self, served: &Served, secret: &str, server_name: Option<&str>) -> Rest {
        let text = self.secret(secret).await["config"].clone();
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        config.cluster_url = format!("https://127.0.0.1:{}", served.port).parse().unwrap();
        config.tls_server_name = server_name.map(str::to_string);
        Rest::new(kube::Client::try_from(config).unwrap(), "test").with_timeout(Duration::from_secs(10))
    }
}

/// A running `alcove serve`; killed at the end.
pub struct Served {
    pub child: Child,
    pub port: u16,
    pub said: Arc<Mutex<String>>,
}

impl Served {
    /// As when the node loses power.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
}

// What the process said belongs to a failed test.
#[allow(clippy::print_stderr)]
impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- alcove serve\n{}", self.said.lock());
        }
    }
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "web"}]}})
}

pub async fn create_pod(tenant: &Rest, name: &str) {
    // The default service account may be a moment away.
    eventually("the pod is accepted", async || tenant.create(&PODS, "default", &pod(name)).await.ok()).await;
}

pub async fn runs(tenant: &Rest, name: &str) {
    eventually("the pod runs", async || {
        let pod = tenant.get(&PODS, "default", name).await.ok()?;
        (pod.str_at(&["status", "phase"]) == "Running").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_with_the_rights_of_the_service_account_and_survive_kill_9() {
    let world = World::new("").await;
    let first = world.serve("data", "team-a-0").await;
    let tenant = world.tenant(&first).await;
    create_pod(&tenant, "one").await;
    runs(&tenant, "one").await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "web"}}});
    let made = tenant.create(&SERVICES, "default", &service).await.unwrap();
    let host_service = world.rest.get(&SERVICES, NAMESPACE, "web-x-default-x-team-a").await.unwrap();
    assert_eq!(made["spec"]["clusterIP"], host_service["spec"]["clusterIP"], "one address on both sides");
    let before = world.host_pods().await;
    let keys = world.secret("team-a-certs").await;
    for key in ["admin.conf", "ca.key", "etcd-peer.crt", "front-proxy-client.key", "sa.pub", "scheduler.conf"] {
        assert!(keys.contains_key(key), "{key} in {:?}", keys.keys());
    }
    let said = first.said.lock().clone();
    assert!(!said.contains("forbidden"), "the Role suffices: {said}");
    first.kill();

    let second = world.serve("data", "team-a-0").await;
    assert_eq!(world.secret("team-a-certs").await, keys);
    let tenant = world.tenant(&second).await;
    runs(&tenant, "one").await;
    create_pod(&tenant, "two").await;
    runs(&tenant, "two").await;
    let after = world.host_pods().await;
    assert_eq!(after.len(), 2, "{after:?}");
    assert!(before.iter().all(|(name, uid)| after[name] == *uid), "nothing was made twice");

    // What a cluster may do with its Secrets: they come back when somebody removes them.
    for name in ["vc-team-a", "team-a-certs"] {
        world.rest.delete(&SECRETS, NAMESPACE, name, &Default::default()).await.unwrap();
    }
    assert_eq!(world.secret("team-a-certs").await["ca.crt"], keys["ca.crt"]);
    assert_eq!(world.secret("vc-team-a").await["client-certificate"], keys["admin.crt"]);

    let ready = tenant.get_path("/readyz/syncer", "text/plain").await;
    assert!(ready.is_err_and(|error| error.to_string().contains("read the answer")), "an answer that is no JSON: ok");
    second.signal("-TERM");
    let mut second = second;
    let status = eventually("the end", async || second.child.try_wait().unwrap()).await;
    assert!(status.success(), "{status}: {}", second.said.lock());
    world.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_follow_the_service_and_kubeconfigs_the_configuration() {
    let world = World::new(
        "exportKubeConfig:\n  context: ctx\n  server: https://api.example:443\n  additionalSecrets:\n  - {name: robot, server: 'https://robot.example', serviceAccount: {name: robot, namespace: kube-system, clusterRole: view}}\n  - {name: loose, insecure: true}\n",
    )
    .await;
    let served = world.serve("data", "team-a-0").await;
    let plain = world.client(&served, "vc-team-a", Some("api.example")).await;
    eventually("the name of exportKubeConfig", async || plain.get_path("/version", "application/json").await.ok())
        .await;

    // A load balancer appears.
    let balancer = world.client(&served, "vc-team-a", Some("lb.example")).await;
    assert!(balancer.get_path("/version", "application/json").await.is_err(), "nobody is called that yet");
    let patch = json!({"spec": {"type": "LoadBalancer"}});
    world.rest.patch(&SERVICES, "", NAMESPACE, NAME, PatchType::Merge, &patch).await.unwrap();
    let patch = json!({"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}}});
    world.rest.patch(&SERVICES, "status", NAMESPACE, NAME, PatchType::Merge, &patch).await.unwrap();
    eventually("the load balancer's name", async || balancer.get_path("/version", "application/json").await.ok()).await;

    let main = world.secret("vc-team-a").await;
    assert!(main["config"].contains("server: https://api.example:443"), "{}", main["config"]);
    assert!(main["config"].contains("current-context: ctx"), "{}", main["config"]);
    let loose = world.secret("loose").await;
    assert!(loose["config"].contains("insecure-skip-tls-verify: true"), "{}", loose["config"]);
    assert_eq!(loose["certificate-authority"], "");
    let robot = world.secret("robot").await;
    assert!(robot["config"].contains("https://robot.example") && robot["client-key"].is_empty());
    let robot = world.client(&served, "robot", Some("robot.example")).await;
    robot.list_as::<Value>(&CONFIG_MAPS, "default", "", "").await.unwrap();
    let refused = robot.create(&CONFIG_MAPS, "default", &json!({"metadata": {"name": "x"}})).await.unwrap_err();
    assert!(refused.is_forbidden(), "{refused}");

    // A token in a Secret is filled in and good until the Secret goes.
    let tenant = world.client(&served, "vc-team-a", Some("api.example")).await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "old", "annotations": {"kubernetes.io/service-account.name": "robot"}}});
    tenant.create(&SECRETS, "kube-system", &secret).await.unwrap();
    let token = eventually("the token", async || {
        let secret = tenant.get(&SECRETS, "kube-system", "old").await.ok()?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(secret.str_at(&["data", "token"])).ok()?;
        (!bytes.is_empty()).then(|| String::from_utf8(bytes).unwrap())
    })
    .await;
    let reviews = Resource::new("authentication.k8s.io", "v1", "tokenreviews");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let answer = tenant.create(&reviews, "", &review).await.unwrap();
    assert_eq!(answer.str_at(&["status", "user", "username"]), "system:serviceaccount:kube-system:robot", "{answer}");
    tenant.delete(&SECRETS, "kube-system", "old", &Default::default()).await.unwrap();
    let answer = tenant.create(&reviews, "", &review).await.unwrap();
    assert_ne!(answer["status"]["authenticated"], true, "{answer}");
    assert!(answer.str_at(&["status", "error"]).contains("Token has been invalidated"), "{answer}");
    drop(served);
    world.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_away_does_not_stop_the_cluster_and_nothing_is_made_twice() {
    let world = World::new("").await;
    let served = world.serve("data", "team-a-0").await;
    let tenant = world.tenant(&served).await;
    create_pod(&tenant, "before").await;
    runs(&tenant, "before").await;
    world.wire.cut(true);
    for i in 0..5 {
        create_pod(&tenant, &format!("during-{i}")).await;
    }
    tenant.delete(&PODS, "default", "during-4", &Default::default()).await.unwrap();
    let unready = tenant.get_path("/readyz", "text/plain").await.unwrap_err();
    assert!(unready.to_string().contains("read the answer"), "ready all the while: {unready}");
    assert_eq!(world.host_pods().await.len(), 1);
    world.wire.cut(false);
    for i in 0..4 {
        runs(&tenant, &format!("during-{i}")).await;
    }
    let pods = world.host_pods().await;
    assert_eq!(pods.len(), 5, "one host pod for each: {pods:?}");
    drop(served);
    world.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_certificates_are_made_anew_at_start() {
    let world = World::new("").await;
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(500 * 24 * 3600);
    let names = ["localhost".to_string()];
    let wanted = pki::Wanted { serving_names: &names, etcd_names: None, now: long_ago };
    let old = pki::ClusterCertificates::complete_as(BTreeMap::new(), &wanted).unwrap();
    let secret = deploy::secrets::certs_secret(NAME, NAMESPACE, old.files(), None);
    world.rest.create(&SECRETS, NAMESPACE, &Value::from(secret)).await.unwrap();
    let served = world.serve("data", "team-a-0").await;
    let tenant = world.tenant(&served).await;
    create_pod(&tenant, "one").await;
    let new = world.secret("team-a-certs").await;
    assert_eq!(new["ca.crt"], old.files()["ca.crt"], "the same cluster");
    assert_ne!(new["admin.crt"], old.files()["admin.crt"]);
    drop(served);
    world.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9_under_load() {
    let world = World::new("").await;
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let served = world.serve("data", "team-a-0").await;
        let tenant = world.tenant(&served).await;
        for name in &acknowledged {
            let name: &String = name;
            tenant.get(&CONFIG_MAPS, "default", name).await.unwrap_or_else(|error| panic!("{name} is lost: {error}"));
        }
        let done: Arc<Mutex<Vec<String>>> = Arc::default();
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (tenant, done) = (tenant.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    for i in 0.. {
                        let name = format!("c-{round}-{writer}-{i}");
                        let object =
                            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name.as_str()}});
                        if tenant.create(&CONFIG_MAPS, "default", &object).await.is_err() {
                            return;
                        }
                        done.lock().push(name);
                    }
                })
            })
            .collect();
        eventually("writes", async || (done.lock().len() > 60).then_some(())).await;
        served.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        acknowledged.extend(done.lock().drain(..));
    }
    let served = world.serve("data", "team-a-0").await;
    let tenant = world.tenant(&served).await;
    let maps: Vec<Value> = tenant.list_as(&CONFIG_MAPS, "default", "", "").await.unwrap();
    let names: std::collections::BTreeSet<&str> = maps.iter().map(|map| map.str_at(&["metadata", "name"])).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !names.contains(name.as_str())).collect();
    assert!(lost.is_empty(), "{lost:?}");
    drop(served);
    world.host.stop().await;
}

/// A real etcd as the StatefulSet of the release would start it, with the certificates in the cluster's Secret.
struct Etcd(Child);

impl Etcd {
    async fn start(world: &World, values: &str, port: u16) -> Etcd {
        let keys = world.secret("team-a-certs").await;
        let pki = world.home.path().join("pki");
        std::fs::create_dir_all(&pki).unwrap();
        for (name, text) in &keys {
            std::fs::write(pki.join(name), text).unwrap();
        }
        let config = config::Config::from_yaml("vcluster.yaml", values).unwrap();
        let placement = Placement::Dedicated;
        let release = Release { name: NAME, namespace: NAMESPACE, placement, config: &config, version: "0.0.0" };
        let objects = deploy::host_objects(&release).unwrap();
        let set =
            objects.iter().find(|o| o["kind"] == "StatefulSet" && o["metadata"]["name"] == "team-a-etcd").unwrap();
        let command = set["spec"]["template"]["spec"]["containers"][0]["command"].as_array().unwrap();
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (peer, metrics) = (free().to_string(), free().to_string());
        // What differs outside of a pod: where files are, and where to listen.
        let local = |flag: &serde_json::Value| {
            let mut flag = flag.as_str().unwrap().replace("/run/config/pki", pki.to_str().unwrap());
            flag = flag.replace("/var/lib/etcd", world.home.path().join("etcd").to_str().unwrap());
            for host in [
                "0.0.0.0",
                "$(NAME).team-a-etcd-headless.vcluster-team-a",
                "team-a-etcd-0.team-a-etcd-headless.vcluster-team-a",
            ] {
                for (from, to) in [("2379", port.to_string().as_str()), ("2380", &peer), ("2381", &metrics)] {
                    flag = flag.replace(&format!("{host}:{from}"), &format!("127.0.0.1:{to}"));
                }
            }
            flag.replace("$(NAME)", "team-a-etcd-0")
        };
        let mut flags = command.iter().map(local);
        let program = flags.next().unwrap();
        let child = std::process::Command::new(program).args(flags).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Etcd(child.unwrap())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// A skipped test says so.
#[allow(clippy::print_stdout)]
#[tokio::test(flavor = "multi_thread")]
async fn a_deployed_etcd_keeps_the_data_and_takes_nobody_without_its_certificate() {
    let installed = std::process::Command::new("etcd").arg("--version").output().is_ok_and(|out| out.status.success());
    if !installed {
        println!("skipped: etcd is not installed");
        return;
    }
    let values = "controlPlane: {backingStore: {etcd: {deploy: {enabled: true}}}}";
    let world = World::new(values).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("https://127.0.0.1:{port}");
    let more = ["--etcd", url.as_str()];
    // The control plane makes the certificates that etcd waits for, and waits for etcd.
    let (served, _etcd) = tokio::join!(world.serve_with("data", "team-a-0", &more), Etcd::start(&world, values, port));
    let tenant = world.tenant(&served).await;
    create_pod(&tenant, "one").await;
    runs(&tenant, "one").await;
    let before = tenant.get(&PODS, "default", "one").await.unwrap();
    assert!(!world.home.path().join("data/state.db").exists(), "nothing is kept beside etcd");
    served.kill();
    // Another pod, with a disk of its own: the data is etcd's.
    let served = world.serve_with("elsewhere", "team-a-1", &more).await;
    let tenant = world.tenant(&served).await;
    let after = tenant.get(&PODS, "default", "one").await.unwrap();
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    let nobody = store::Endpoint::parse(&url).unwrap();
    let ca_file = Some(world.home.path().join("pki/etcd-ca.crt"));
    let files = store::TlsFiles { ca_file, ..store::TlsFiles::default() };
    assert!(nobody.open(&files, store::Options::default()).await.is_err(), "a client without a certificate");
    drop(served);
    world.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_kubelet_answers_at_the_address_of_its_service() {
    let world = World::new("").await;
    let served = world.serve("data", "team-a-0").await;
    let tenant = world.tenant(&served).await;
    create_pod(&tenant, "one").await;
    runs(&tenant, "one").await;
    let nodes = Resource::new("", "v1", "nodes");
    let address = eventually("an address of the node", async || {
        let nodes: Vec<Value> = tenant.list_as(&nodes, "", "", "").await.ok()?;
        let addresses = nodes.first()?.array_at(&["status", "addresses"]).to_vec();
        addresses.iter().find(|a| a.str_at(&["type"]) == "InternalIP").map(|a| a.str_at(&["address"]).to_string())
    })
    .await;
    // As a client of the kubelet asks; the host leads the address to this port.
    let text = world.secret("vc-team-a").await["config"].clone();
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    config.cluster_url = format!("https://127.0.0.1:{}", served.port).parse().unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let ask = async |host: String, path: &str| {
        let request = http::Request::get(path).header("host", host).body(kube::client::Body::empty()).unwrap();
        client.send(request).await.unwrap().status().as_u16()
    };
    eventually("the kubelet's answer", async || {
        // Nothing else refuses a path of its own in this way; the host's rights do not reach the path itself.
        (ask(format!("{address}:10250"), "/exec/default/one/c").await == 403).then_some(())
    })
    .await;
    assert_eq!(ask("10.255.255.254:10250".into(), "/exec/default/one/c").await, 404, "no node has this address");
    drop(served);
    world.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_that_were_replaced_count_without_a_restart_of_the_process() {
    let world = World::new("").await;
    let served = world.serve("data", "team-a-0").await;
    let old = world.tenant(&served).await;
    create_pod(&old, "one").await;
    runs(&old, "one").await;
    let pods = world.host_pods().await;
    // One authority of one's own in place of the cluster's; what it signs is the control plane's to make.
    let other = pki::ClusterCertificates::complete(BTreeMap::new(), &[]).unwrap();
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let mut patch = json!({"data": {}});
    for name in ["ca", "server-ca", "client-ca"] {
        for kind in ["crt", "key"] {
            let text = encode(other.file(&format!("ca.{kind}")).unwrap());
            patch["data"][format!("{name}.{kind}").as_str()] = text.into();
        }
    }
    world.rest.patch(&SECRETS, "", NAMESPACE, "team-a-certs", PatchType::Merge, &patch).await.unwrap();
    let ca = other.file("ca.crt").unwrap();
    eventually("the new authority in the kubeconfig", async || {
        (world.secret("vc-team-a").await["certificate-authority"] == ca).then_some(())
    })
    .await;
    let new = world.tenant(&served).await;
    eventually("the new authority on the port", async || new.get(&PODS, "default", "one").await.ok()).await;
    assert!(old.get(&PODS, "default", "one").await.is_err(), "what the old authority signed is worth nothing");
    assert_eq!(world.host_pods().await, pods, "no pod notices");
    drop(served);
    world.host.stop().await;
}

#[test]
fn what_serve_cannot_work_with_is_said() {
    let home = tempfile::tempdir().unwrap();
    for (arguments, want) in [
        (&["serve", "--name", "Team"][..], "cannot be the name"),
        (&["serve", "--name", "a", "-n", "x", "--config", "nowhere.yaml"], "cannot read the configuration"),
        (&["serve"], "--name"),
    ] {
        let output = alcove(home.path()).args(arguments).output().unwrap();
        let text = crate::support::transcript(Path::new(home.path()), &output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(want), "{text}");
    }
}
