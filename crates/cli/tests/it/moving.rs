//! Clusters with a pod of their own: how they move into a hub and back with their data, and how they are reached. In place of
//! a kubelet the test starts and ends the process that the StatefulSet asks for.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, Secret, Service};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::{World, alcove};

const NAME: &str = "team-a";
const NAMESPACE: &str = "vcluster-team-a";

async fn client(kubeconfig: &str) -> kube::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let kubeconfig = kube::config::Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

/// Runs `alcove serve` while the StatefulSet wants a pod.
struct Kubelet {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Kubelet {
    fn start(home: &Path, kubeconfig: PathBuf) -> Kubelet {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Kubelet::start_at(home, kubeconfig, port, format!("https://127.0.0.1:{port}"))
    }

    /// `server`: what the control plane says of itself in kubeconfigs.
    fn start_at(home: &Path, kubeconfig: PathBuf, port: u16, server: String) -> Kubelet {
        let stop = Arc::new(AtomicBool::new(false));
        let (home, ended) = (home.to_path_buf(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(look_after(&home, &kubeconfig, &port.to_string(), &server, &ended));
        });
        Kubelet { stop, thread: Some(thread) }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.thread.take().unwrap().join();
    }
}

async fn look_after(home: &Path, kubeconfig: &Path, port: &str, server: &str, ended: &AtomicBool) {
    let host = client(&std::fs::read_to_string(kubeconfig).unwrap()).await;
    let sets: Api<StatefulSet> = Api::namespaced(host.clone(), NAMESPACE);
    let secrets: Api<Secret> = Api::namespaced(host, NAMESPACE);
    let mut process: Option<Child> = None;
    while !ended.load(Ordering::Acquire) {
        let set = sets.get_opt(NAME).await.ok().flatten();
        let wanted = set.and_then(|set| set.spec?.replicas).unwrap_or(0) > 0;
        match (&mut process, wanted) {
            (None, true) => {
                let secret = secrets.get(&deploy::names::config_secret(NAME)).await.unwrap();
                std::fs::write(home.join("pod.yaml"), &secret.data.unwrap()["config.yaml"].0).unwrap();
                let mut command = alcove(home);
                command
                    .args(["serve", "--name", NAME, "--namespace", NAMESPACE, "--config", "pod.yaml"])
                    .args(["--bind-address", "127.0.0.1", "--port", port, "--server", server])
                    .args(["--data-dir", "disk", "--pod-name", "team-a-0", "--kubeconfig"])
                    .arg(kubeconfig);
                let log = std::fs::File::options().create(true).append(true).open(home.join("pod.log")).unwrap();
                process = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
            }
            (Some(child), false) => {
                end(child);
                process = None;
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    process.iter_mut().for_each(end);
}

fn end(child: &mut Child) {
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::yield_now();
    }
}

/// A development host and what is on it.
struct Place {
    world: World,
    host: kube::Client,
    kubeconfig: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Place {
        let world = World::up();
        let kubeconfig = world.home.path().join("host.kubeconfig");
        std::fs::copy(world.home.path().join(".kube/config"), &kubeconfig).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let host = runtime.block_on(client(&std::fs::read_to_string(&kubeconfig).unwrap()));
        Place { world, host, kubeconfig, runtime }
    }

    fn tenant<T>(&self, ask: impl AsyncFnOnce(kube::Client) -> T) -> T {
        let kubeconfig = self.world.alcove(&["connect", NAME, "--print"]);
        self.runtime.block_on(async { ask(client(&kubeconfig).await).await })
    }

    fn get(&self, path: &str) -> Value {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        self.tenant(async |client| client.request::<Value>(request).await.unwrap())
    }

    fn create(&self, path: &str, object: &Value) -> Value {
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(object).unwrap()).unwrap();
        self.tenant(async |client| client.request::<Value>(request).await.unwrap())
    }

    fn config_map(&self, name: &str) -> Value {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        self.create("/api/v1/namespaces/default/configmaps", &object)
    }

    /// Names and UIDs of the cluster's pods on the host.
    fn host_pods(&self) -> Vec<(String, String)> {
        let pods: Api<Pod> = Api::namespaced(self.host.clone(), NAMESPACE);
        let params = ListParams::default().labels("vcluster.loft.sh/managed-by=team-a");
        let pods = self.runtime.block_on(pods.list(&params)).unwrap();
        pods.items.into_iter().map(|pod| (pod.metadata.name.unwrap(), pod.metadata.uid.unwrap())).collect()
    }

    fn pod_runs(&self) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let pod = self.get("/api/v1/namespaces/default/pods/p");
            if pod["status"]["phase"] == "Running" {
                return pod;
            }
            assert!(Instant::now() < deadline, "{pod}\n{}", self.log());
        }
    }

    fn log(&self) -> String {
        let pod = std::fs::read_to_string(self.world.home.path().join("pod.log")).unwrap_or_default();
        format!("{}\n--- pod\n{pod}", self.world.log())
    }

    /// Runs `alcove create --upgrade --placement PLACEMENT`.
    #[track_caller]
    fn moves_to(&self, placement: &str) {
        let arguments = ["create", NAME, "--upgrade", "--connect=false", "--timeout", "15", "--placement", placement];
        let output = alcove(self.world.home.path()).args(arguments).output().unwrap();
        let said = crate::support::transcript(self.world.home.path(), &output);
        assert!(output.status.success(), "{said}\n{}", self.log());
    }

    fn placement(&self) -> String {
        let set = self.runtime.block_on(Api::<StatefulSet>::namespaced(self.host.clone(), NAMESPACE).get_opt(NAME));
        let secrets: Api<Secret> = Api::namespaced(self.host.clone(), NAMESPACE);
        let secret = self.runtime.block_on(secrets.get(&deploy::names::config_secret(NAME))).unwrap();
        let in_hub = secret.metadata.labels.unwrap().contains_key(deploy::PLACEMENT_LABEL);
        let finalizers = secret.metadata.finalizers.unwrap_or_default().len();
        let marks: Vec<String> =
            secret.metadata.annotations.unwrap().into_keys().filter(|name| name.starts_with("alcove.dev/")).collect();
        format!("pod {} hub {in_hub} finalizers {finalizers} marks {}", set.unwrap().is_some(), marks.join(" "))
    }
}

fn number(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_cluster_moves_to_a_pod_of_its_own_and_back_and_its_pods_do_not_notice() {
    let place = Place::new();
    let world = &place.world;
    world.alcove(&["create", NAME, "--connect=false", "--set", "controlPlane.proxy.extraSANs={a.example}"]);
    let first = place.config_map("first");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "web"}]}});
    place.create("/api/v1/namespaces/default/pods", &pod);
    let pod = place.pod_runs();
    let pods = place.host_pods();
    assert_eq!(pods.len(), 1, "{pods:?}");
    let authority = |world: &World| {
        let config: Value = ::config::yaml::from_str(&world.alcove(&["connect", NAME, "--print"])).unwrap();
        config["clusters"][0]["cluster"]["certificate-authority-data"].clone()
    };
    let trusted = authority(world);

    let kubelet = Kubelet::start(world.home.path(), place.kubeconfig.clone());
    place.moves_to("dedicated");
    assert_eq!(place.placement(), "pod true hub false finalizers 0 marks ", "{}", place.log());
    assert!(world.alcove(&["status"]).contains("Clusters:   0"));
    assert!(world.alcove(&["describe", NAME, "--config-only"]).contains("a.example"), "the configuration goes along");
    assert_eq!(authority(world), trusted);
    let same = |before: &Value, after: &Value| {
        assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
        assert!(number(after) >= number(before), "{after} is older than {before}");
    };
    same(&first, &place.get("/api/v1/namespaces/default/configmaps/first"));
    same(&pod, &place.pod_runs());
    let second = place.config_map("second");
    assert!(number(&second) > number(&pod));
    assert_eq!(place.host_pods(), pods, "no pod was made again");

    place.moves_to("hub");
    drop(kubelet);
    assert!(place.placement().starts_with("pod false hub true finalizers 1 "), "{}", place.placement());
    same(&first, &place.get("/api/v1/namespaces/default/configmaps/first"));
    same(&second, &place.get("/api/v1/namespaces/default/configmaps/second"));
    same(&pod, &place.pod_runs());
    assert!(number(&place.config_map("third")) > number(&second));
    assert_eq!(place.host_pods(), pods, "no pod was made again");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(place.host.clone(), NAMESPACE);
    let claims = place.runtime.block_on(claims.list(&ListParams::default())).unwrap().items;
    assert!(claims.is_empty(), "{claims:?}");
    world.alcove(&["delete", NAME]);
}

#[test]
fn a_cluster_that_cannot_be_moved_goes_on_where_it_is() {
    let place = Place::new();
    let world = &place.world;
    world.alcove(&["create", NAME, "--connect=false"]);
    let kept = place.config_map("kept");
    // Simulated nodes say that the pod runs, but nobody answers there.
    let said = world.alcove_fails(
        1,
        &["create", NAME, "--upgrade", "--connect=false", "--timeout", "3", "--placement", "dedicated"],
    );
    assert!(said.contains("was not moved") && said.contains("it runs in placement hub as before"), "{said}");
    assert!(place.placement().starts_with("pod false hub true finalizers 1 "), "{}", place.placement());
    assert_eq!(place.get("/api/v1/namespaces/default/configmaps/kept")["metadata"]["uid"], kept["metadata"]["uid"]);

    // The same when the one who moves it is gone in the middle: the next command settles it.
    let secrets: Api<Secret> = Api::namespaced(place.host.clone(), NAMESPACE);
    let mut patch = json!({"metadata": {"annotations": {}}});
    patch["metadata"]["annotations"][deploy::MOVING_ANNOTATION] = json!(deploy::MOVING_STOP);
    patch["metadata"]["annotations"][deploy::AWAITS_DATA_ANNOTATION] = json!("some");
    let patch = kube::api::Patch::Merge(patch);
    let name = deploy::names::config_secret(NAME);
    place.runtime.block_on(secrets.patch(&name, &Default::default(), &patch)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !world.alcove(&["list", "-o", "json"]).contains("Stopped") {
        assert!(Instant::now() < deadline, "{}", world.log());
    }
    world.alcove(&["create", NAME, "--upgrade", "--connect=false"]);
    assert_eq!(place.get("/api/v1/namespaces/default/configmaps/kept")["metadata"]["uid"], kept["metadata"]["uid"]);
    world.alcove(&["delete", NAME]);
}

#[test]
fn a_cluster_is_reached_at_a_nodes_port_and_at_its_load_balancer() {
    let place = Place::new();
    let world = &place.world;
    // A port that is free on this machine and that a host gives to Services.
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let seed = u16::try_from(std::process::id() % 2000).unwrap();
    let port = (30_000 + seed..32_700).find(free).unwrap();
    // What a pod says of itself leads nowhere from outside.
    let kubelet = Kubelet::start_at(world.home.path(), place.kubeconfig.clone(), port, "https://localhost:8443".into());
    let create = [
        "create",
        NAME,
        "--connect=false",
        "--placement",
        "dedicated",
        "--set",
        "controlPlane.service.spec.type=NodePort",
    ];
    world.alcove(&create);
    let services: Api<Service> = Api::namespaced(place.host.clone(), NAMESPACE);
    let nodes: Api<Node> = Api::all(place.host.clone());
    let merge = |patch: Value| Patch::Merge(patch);
    place.runtime.block_on(async {
        let https = |port: u16, node_port: u16| {
            json!({"name": "https", "port": port, "targetPort": 8443, "nodePort": node_port, "protocol": "TCP"})
        };
        services.patch(NAME, &PatchParams::default(), &merge(json!({"spec": {"ports": [https(443, port)]}}))).await.unwrap();
        let node = nodes.list(&ListParams::default()).await.unwrap().items.remove(0).metadata.name.unwrap();
        let addresses = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}});
        nodes.patch_status(&node, &PatchParams::default(), &merge(addresses)).await.unwrap();
    });
    let server = || {
        let config: Value = ::config::yaml::from_str(&world.alcove(&["connect", NAME, "--print"])).unwrap();
        config["clusters"][0]["cluster"]["server"].as_str().unwrap().to_string()
    };
    assert_eq!(server(), format!("https://127.0.0.1:{port}"), "{}", place.log());
    place.config_map("through-the-node");

    place.runtime.block_on(async {
        let spec = json!({"spec": {"type": "LoadBalancer", "ports": [
            {"name": "https", "port": port, "targetPort": 8443, "protocol": "TCP"}]}});
        services.patch(NAME, &PatchParams::default(), &merge(spec)).await.unwrap();
        // A host name is preferred to an address.
        let status = json!({"status": {"loadBalancer": {"ingress": [{"hostname": "localhost", "ip": "10.9.9.9"}]}}});
        services.patch_status(NAME, &PatchParams::default(), &merge(status)).await.unwrap();
    });
    assert_eq!(server(), format!("https://localhost:{port}"), "{}", place.log());
    place.config_map("through-the-balancer");
    drop(kubelet);
    world.alcove(&["delete", NAME]);
}
