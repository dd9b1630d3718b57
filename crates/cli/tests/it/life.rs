//! The life of a cluster after it was made: pause and resume, sleep, snapshots and restores, certificates.

use std::io::Read;
use std::time::{Duration, Instant};

use crate::support::{World, alcove};

/// Asks until the answer is wanted.
#[track_caller]
fn wait_for(world: &World, what: &str, mut ask: impl FnMut() -> Option<()>) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while ask().is_none() {
        assert!(Instant::now() < deadline, "{what} did not come about\n{}", world.log());
        std::thread::yield_now();
    }
}

fn status(world: &World, name: &str) -> String {
    let list: serde_json::Value = serde_json::from_str(&world.alcove(&["list", "-o", "json"])).unwrap();
    let all = list.as_array().unwrap();
    let found = all.iter().find(|cluster| cluster["Name"] == name);
    found.map_or_else(String::new, |cluster| cluster["Status"].as_str().unwrap().to_string())
}

/// Sends a request to the API of a cluster with its administrator's certificate; code and body.
fn request(world: &World, cluster: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let kubeconfig = world.alcove(&["connect", cluster, "--print"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        let client = kube::Client::try_from(config).unwrap();
        let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        let answer = client.send(request.body(body.as_bytes().to_vec().into()).unwrap()).await.unwrap();
        let code = answer.status().as_u16();
        let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        (code, String::from_utf8_lossy(&bytes).into_owned())
    })
}

fn put_config_map(world: &World, cluster: &str, name: &str) {
    let body = format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"k":"v"}}}}"#);
    let (code, text) = request(world, cluster, "POST", "/api/v1/namespaces/default/configmaps", &body);
    assert_eq!(code, 201, "{text}");
}

fn has_config_map(world: &World, cluster: &str, name: &str) -> bool {
    let (code, text) = request(world, cluster, "GET", &format!("/api/v1/namespaces/default/configmaps/{name}"), "");
    assert!(matches!(code, 200 | 404), "{text}");
    code == 200
}

fn put_pod(world: &World, cluster: &str, name: &str) {
    let body = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}"}},"spec":{{"containers":[{{"name":"c","image":"web"}}]}}}}"#
    );
    let (code, text) = request(world, cluster, "POST", "/api/v1/namespaces/default/pods", &body);
    assert_eq!(code, 201, "{text}");
}

/// Names of pods with their phases, in a virtual cluster.
fn phase(world: &World, cluster: &str, name: &str) -> String {
    let (code, text) = request(world, cluster, "GET", &format!("/api/v1/namespaces/default/pods/{name}"), "");
    let pod: serde_json::Value = serde_json::from_str(&text).unwrap();
    if code == 200 { pod["status"]["phase"].as_str().unwrap_or_default().to_string() } else { format!("{code}") }
}

#[test]
fn a_paused_cluster_is_gone_from_the_host_and_comes_back_with_its_pods() {
    let world = World::up();
    world.alcove(&["create", "team-a", "--connect=false"]);
    put_pod(&world, "team-a", "p");
    put_config_map(&world, "team-a", "kept");
    wait_for(&world, "the pod runs", || (phase(&world, "team-a", "p") == "Running").then_some(()));
    world.alcove(&["pause", "team-a"]);
    assert_eq!(status(&world, "team-a"), "Paused");
    world.alcove(&["pause", "team-a"]);
    assert!(
        world
            .alcove_fails(1, &["snapshot", "create", "team-a", "file:///tmp/never.tar.gz"])
            .contains("because it is not running (status: Paused)")
    );
    // A restart of the host leaves it paused.
    world.alcove(&["down"]);
    world.alcove(&["up", "--nodes", "2"]);
    assert_eq!(status(&world, "team-a"), "Paused");
    world.alcove(&["resume", "team-a"]);
    assert_eq!(status(&world, "team-a"), "Running");
    assert!(has_config_map(&world, "team-a", "kept"));
    // Even a pod that no controller would make again.
    wait_for(&world, "the pod runs again", || (phase(&world, "team-a", "p") == "Running").then_some(()));
    world.alcove(&["pause", "team-a"]);
    let connected = world.alcove(&["connect", "team-a", "--print"]);
    assert!(connected.contains("server: https://"), "connecting resumes: {connected}");
    world.alcove(&["delete", "team-a"]);
}

#[test]
fn an_unused_cluster_is_deleted_when_that_is_asked_for() {
    let world = World::up_with(&["--sleep-after", "300ms"]);
    world.alcove(&["create", "team-a", "--connect=false", "--set", "deletion.auto.afterInactivity=2s"]);
    world.alcove(&["create", "team-b", "--connect=false"]);
    wait_for(&world, "it is gone", || status(&world, "team-a").is_empty().then_some(()));
    assert_eq!(status(&world, "team-b"), "Sleeping", "others stay");
    let prevented = ["create", "team-c", "--set", "deletion.auto.afterInactivity=1h,deletion.prevent=true"];
    assert!(world.alcove_fails(2, &prevented).contains("deletion.prevent"));
}

#[test]
fn an_unused_cluster_sleeps_and_wakes_by_its_first_connection() {
    let world = World::up_with(&["--sleep-after", "300ms"]);
    world.alcove(&["create", "team-a", "--connect=false"]);
    put_config_map(&world, "team-a", "kept");
    wait_for(&world, "it sleeps", || (status(&world, "team-a") == "Sleeping").then_some(()));
    assert!(world.alcove(&["status"]).contains("sleeping"));
    // Over a restart of the hub, too.
    world.alcove(&["down"]);
    world.alcove(&["up", "--nodes", "2", "--sleep-after", "300ms"]);
    wait_for(&world, "it still sleeps", || (status(&world, "team-a") == "Sleeping").then_some(()));
    assert!(has_config_map(&world, "team-a", "kept"), "the request wakes it and is answered");

    // A pod keeps it awake; without pods it sleeps again.
    put_pod(&world, "team-a", "p");
    wait_for(&world, "the pod runs", || (phase(&world, "team-a", "p") == "Running").then_some(()));
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!(status(&world, "team-a"), "Running");
    request(&world, "team-a", "DELETE", "/api/v1/namespaces/default/pods/p?gracePeriodSeconds=0", "");
    wait_for(&world, "it sleeps again", || (status(&world, "team-a") == "Sleeping").then_some(()));
    world.alcove(&["delete", "team-a"]);
}

#[test]
fn sleep_auto_takes_the_pods_along() {
    let world = World::up_with(&["--sleep-after", "0"]);
    world.alcove(&["create", "team-a", "--connect=false", "--set", "sleep.auto.afterInactivity=400ms"]);
    put_pod(&world, "team-a", "p");
    wait_for(&world, "it sleeps", || (status(&world, "team-a") == "Sleeping").then_some(()));
    wait_for(&world, "the pod runs again", || (phase(&world, "team-a", "p") == "Running").then_some(()));
    world.alcove(&["delete", "team-a"]);
}

#[test]
fn a_snapshot_brings_back_what_was_there_also_under_another_name() {
    let world = World::up();
    let home = world.home.path().to_path_buf();
    let url = format!("file://{}/snap/team-a.tar.gz", home.display());
    world.alcove(&["create", "team-a", "--connect=false", "--set", "sync.toHost.secrets.all=true"]);
    put_config_map(&world, "team-a", "before");
    put_pod(&world, "team-a", "p");
    wait_for(&world, "the pod runs", || (phase(&world, "team-a", "p") == "Running").then_some(()));
    assert!(world.alcove_fails(3, &["snapshot", "get", "team-a", &url]).contains("there is no snapshot"));
    world.alcove(&["snapshot", "create", "team-a", &url]);
    assert!(world.alcove(&["snapshot", "get", "team-a", &url]).contains("Completed"));
    let folder = format!("file://{}/snap", home.display());
    let listed: serde_json::Value =
        serde_json::from_str(&world.alcove(&["snapshot", "list", "team-a", &folder, "-o", "json"])).unwrap();
    assert_eq!(listed[0]["Snapshot"], url);

    // The file is vCluster's: a gzipped tar of keys.
    let file = std::fs::File::open(home.join("snap/team-a.tar.gz")).unwrap();
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut text).unwrap();
    assert!(text.starts_with(b"/vcluster/snapshot/release\0"), "{:?}", String::from_utf8_lossy(&text[..64]));
    let key = b"/registry/configmaps/default/before\0";
    assert!(text.windows(key.len()).any(|window| window == key));

    put_config_map(&world, "team-a", "after");
    let (_, list) = request(&world, "team-a", "GET", "/api/v1/namespaces/default/configmaps?limit=1", "");
    let revision = |list: &str| -> u64 {
        let list: serde_json::Value = serde_json::from_str(list).unwrap();
        list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    };
    let before = revision(&list);
    world.alcove(&["restore", "team-a", &url]);
    assert!(has_config_map(&world, "team-a", "before"));
    assert!(!has_config_map(&world, "team-a", "after"));
    let (_, list) = request(&world, "team-a", "GET", "/api/v1/namespaces/default/configmaps?limit=1", "");
    assert!(revision(&list) >= before + 1000);
    wait_for(&world, "the pod runs again", || (phase(&world, "team-a", "p") == "Running").then_some(()));

    // Under another name, in one command, with the configuration of the snapshot.
    world.alcove(&["create", "team-b", "--connect=false", "--restore", &url]);
    assert!(has_config_map(&world, "team-b", "before"));
    assert!(world.alcove(&["describe", "team-b", "--config-only"]).contains("all: true"));
    wait_for(&world, "the pod runs in b", || (phase(&world, "team-b", "p") == "Running").then_some(()));
    let (_, root) = request(&world, "team-b", "GET", "/api/v1/namespaces/default/configmaps/kube-root-ca.crt", "");
    let (_, other) = request(&world, "team-a", "GET", "/api/v1/namespaces/default/configmaps/kube-root-ca.crt", "");
    let authority = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["data"]["ca.crt"].clone();
    assert_ne!(authority(&root), authority(&other), "each has its own authority");

    // Beside the control plane's data.
    world.alcove(&["snapshot", "create", "team-a", "container:///data/here.tar.gz"]);
    assert!(
        world.alcove(&["snapshot", "list", "team-a", "container:///data"]).contains("container:///data/here.tar.gz")
    );
    put_config_map(&world, "team-a", "later");
    world.alcove(&["restore", "team-a", "container:///data/here.tar.gz"]);
    assert!(!has_config_map(&world, "team-a", "later"));

    std::fs::write(home.join("broken.tar.gz"), "nonsense").unwrap();
    let broken = format!("file://{}/broken.tar.gz", home.display());
    assert!(world.alcove_fails(2, &["restore", "team-a", &broken]).contains("not a readable snapshot"));
    assert!(has_config_map(&world, "team-a", "before"), "a broken snapshot changes nothing");
    world.alcove(&["snapshot", "delete", "team-a", &url]);
    world.alcove_fails(3, &["restore", "team-a", &url]);
    world.alcove(&["delete", "team-a"]);
    world.alcove(&["delete", "team-b"]);
}

#[test]
fn operations_of_the_host_are_not_the_tenants() {
    let world = World::up();
    world.alcove(&["create", "team-a", "--connect=false"]);
    for (method, path) in [
        ("GET", "/alcove/v1/snapshot"),
        ("PUT", "/alcove/v1/restore"),
        ("GET", "/alcove/v1/snapshots?path=/"),
        ("GET", "/alcove/v1/x"),
    ] {
        let (code, text) = request(&world, "team-a", method, path, "");
        assert_eq!(code, 401, "{method} {path}: {text}");
    }
    world.alcove(&["delete", "team-a"]);
}

#[test]
fn certificates_are_looked_at_and_rotated() {
    let world = World::up();
    world.alcove(&["create", "team-a"]);
    let table = world.alcove(&["certs", "check", "team-a"]);
    assert!(table.starts_with("FILENAME"), "{table}");
    let read = || -> Vec<serde_json::Value> {
        serde_json::from_str(&world.alcove(&["certs", "check", "team-a", "-o", "json"])).unwrap()
    };
    assert!(read().iter().all(|certificate| certificate["status"] == "OK"));
    assert!(read().iter().any(|certificate| certificate["filename"] == "apiserver.crt"));
    let authority = |world: &World| {
        let config = world.alcove(&["connect", "team-a", "--print"]);
        let config = kube::config::Kubeconfig::from_yaml(&config).unwrap();
        let cluster = config.clusters[0].cluster.clone().unwrap();
        let user = config.auth_infos[0].auth_info.clone().unwrap();
        (cluster.certificate_authority_data.unwrap(), user.client_certificate_data.unwrap())
    };
    let first = authority(&world);
    world.alcove(&["certs", "rotate", "team-a"]);
    let second = authority(&world);
    assert_eq!(first.0, second.0, "the authority stays");
    assert_ne!(first.1, second.1, "the client certificate is new");
    world.alcove(&["certs", "rotate-ca", "team-a"]);
    let third = authority(&world);
    assert_ne!(second.0, third.0, "the authority is new");
    put_config_map(&world, "team-a", "works");
    world.alcove(&["delete", "team-a"]);
}

#[test]
fn a_service_account_gets_a_kubeconfig_of_its_own() {
    let world = World::up();
    world.alcove(&["create", "team-a", "--connect=false"]);
    assert!(
        world
            .alcove_fails(3, &["connect", "team-a", "--print", "--service-account", "kube-system/robot"])
            .contains("does not exist")
    );
    let arguments = [
        "connect",
        "team-a",
        "--print",
        "--service-account",
        "kube-system/robot",
        "--cluster-role",
        "view",
        "--token-expiration",
        "3600",
    ];
    let config = world.alcove(&arguments);
    assert!(!config.contains("client-key-data"), "{config}");
    assert!(config.contains("eyJ"), "{config}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (who, may_create) = runtime.block_on(async {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&config).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        let client = kube::Client::try_from(config).unwrap();
        let post = |path: &str, body: &str| {
            http::Request::builder()
                .method("POST")
                .uri(path)
                .header("content-type", "application/json")
                .body(body.as_bytes().to_vec())
                .unwrap()
        };
        let review = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
        let who = client.request_text(post("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)).await.unwrap();
        let map = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}"#;
        (who, client.request_text(post("/api/v1/namespaces/default/configmaps", map)).await.is_ok())
    });
    assert!(who.contains("system:serviceaccount:kube-system:robot"), "{who}");
    assert!(!may_create, "a viewer only looks");
    world.alcove(&["delete", "team-a"]);
}

#[test]
fn what_helps_to_find_a_mistake_is_collected_without_secrets() {
    let world = World::up();
    world.alcove(&["create", "team-a", "--connect=false"]);
    put_config_map(&world, "team-a", "mine");
    let path = world.home.path().join("debug.tar.gz");
    world.alcove(&[
        "debug",
        "collect",
        "team-a",
        "--output-filename",
        &path.to_string_lossy(),
        "--virtual-resources",
        "configmaps,pods",
    ]);
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap()));
    let mut files = std::collections::BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(name, text);
    }
    for name in [
        "release.json",
        "host/version.json",
        "host/resources/secrets/vc-team-a",
        "host/resources/services/team-a",
        "virtual/version.json",
        "virtual/resources/configmaps/default/mine",
        "virtual/virtual-resource-count.json",
    ] {
        assert!(files.contains_key(name), "{name} is missing in {:?}", files.keys());
    }
    assert!(files["host/resources/secrets/vc-team-a"].contains("characters>"));
    assert!(!files["host/resources/secrets/vc-team-a"].contains("LS0t"), "no PEM in base64");
    assert!(files["virtual/virtual-resource-count.json"].contains("configmaps"));
    // The syncer's names, as the cluster's own store has them.
    put_pod(&world, "team-a", "web");
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let pairs = loop {
        let text = world.alcove(&["debug", "mappings", "team-a", "--kind", "Pod", "-o", "json"]);
        let pairs: serde_json::Value = serde_json::from_str(&text).unwrap();
        if pairs.as_array().is_some_and(|pairs| !pairs.is_empty()) {
            break pairs;
        }
        assert!(std::time::Instant::now() < deadline, "the pod's name is not kept");
    };
    assert_eq!(pairs[0]["virtual"], serde_json::json!({"namespace": "default", "name": "web"}));
    assert_eq!(pairs[0]["host"]["name"], "web-x-default-x-team-a");
    world.alcove(&["delete", "team-a"]);
    let _ = alcove(world.home.path());
}

/// Rounds of the test below; each kills the process once.
const KILLS: usize = 4;

#[test]
fn a_killed_host_loses_nothing_that_was_answered() {
    let rounds = std::env::var("ALCOVE_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let world = World::up();
    world.alcove(&["create", "team-a", "--connect=false"]);
    let kubeconfig = world.alcove(&["connect", "team-a", "--print"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = || async {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        kube::Client::try_from(config).unwrap()
    };
    let mut answered: Vec<String> = Vec::new();
    for round in 0..rounds {
        let status: serde_json::Value = serde_json::from_str(&world.alcove(&["status", "-o", "json"])).unwrap();
        let pid = status["pid"].as_u64().unwrap().to_string();
        let writer = runtime.spawn({
            let client = runtime.block_on(client());
            async move {
                let mut names = Vec::new();
                for number in 0.. {
                    let name = format!("r{round}-{number}");
                    let body = format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}}}}"#);
                    let request = http::Request::builder().method("POST").uri("/api/v1/namespaces/default/configmaps");
                    let request = request.header("content-type", "application/json").body(body.into_bytes()).unwrap();
                    match client.request_text(request).await {
                        Ok(_) => names.push(name),
                        // The server is gone; what was under way may or may not have been written.
                        Err(_) => break,
                    }
                }
                names
            }
        });
        std::thread::sleep(Duration::from_millis(150 + 100 * (round as u64 % 3)));
        assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        let names = runtime.block_on(writer).unwrap();
        assert!(!names.is_empty(), "round {round} wrote nothing");
        answered.extend(names);
        world.alcove(&["up", "--nodes", "2"]);
        wait_for(&world, "it runs again", || (status_of(&world, "team-a") == "Running").then_some(()));
        let (code, text) = request(&world, "team-a", "GET", "/api/v1/namespaces/default/configmaps", "");
        assert_eq!(code, 200, "{text}");
        let lost: Vec<&String> =
            answered.iter().filter(|name| !text.contains(&format!("\"name\":\"{name}\""))).collect();
        assert!(lost.is_empty(), "round {round} lost {lost:?} of {}", answered.len());
    }
}

/// The status, from a host that may just be starting.
fn status_of(world: &World, name: &str) -> String {
    let answered = alcove(world.home.path()).args(["list", "-o", "json"]).output().unwrap();
    let list: serde_json::Value = serde_json::from_slice(&answered.stdout).unwrap_or_default();
    let found = list.as_array().into_iter().flatten().find(|cluster| cluster["Name"] == name);
    found.and_then(|cluster| cluster["Status"].as_str()).unwrap_or_default().to_string()
}

#[test]
fn a_protected_cluster_is_not_deleted_and_a_foreign_finalizer_is_named() {
    let world = World::up();
    world.alcove(&["create", "team-a", "--connect=false", "--set", "deletion.prevent=true"]);
    assert!(world.alcove_fails(1, &["delete", "team-a"]).contains("protected against deletion"));
    world.alcove(&["create", "team-a", "--connect=false", "--upgrade", "--set", "deletion.prevent=false"]);
    put_pod(&world, "team-a", "p");
    wait_for(&world, "the pod runs", || (phase(&world, "team-a", "p") == "Running").then_some(()));
    let patch = r#"{"metadata":{"finalizers":["example.com/hold"]}}"#;
    let host = |body: &str| host_patch(&world, "/api/v1/namespaces/vcluster-team-a/pods/p-x-default-x-team-a", body);
    assert_eq!(host(patch), 200);
    let said = world.alcove_fails(5, &["delete", "team-a", "--timeout", "2"]);
    assert!(said.contains("pods/p-x-default-x-team-a (waits for example.com/hold)"), "{said}");
    assert_eq!(host(r#"{"metadata":{"finalizers":null}}"#), 200);
    wait_for(&world, "the hub finishes", || status_of(&world, "team-a").is_empty().then_some(()));
}

/// A merge patch of a host object; the answer's code.
fn host_patch(world: &World, path: &str, body: &str) -> u16 {
    let kubeconfig = std::fs::read_to_string(world.home.path().join(".alcove/host.kubeconfig")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        let client = kube::Client::try_from(config).unwrap();
        let request =
            http::Request::builder().method("PATCH").uri(path).header("content-type", "application/merge-patch+json");
        client.send(request.body(body.as_bytes().to_vec().into()).unwrap()).await.unwrap().status().as_u16()
    })
}
