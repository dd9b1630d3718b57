//! `controlPlane.distro.k8s`: programs with upstream's names on the cluster's store, supervised by `alcove serve`.
//!
//! A link of this binary stands for kube-apiserver, behind the etcd face like the real one; there is no stand-in for
//! kube-controller-manager, so the tests make by hand what it would make. With `ALCOVE_TEST_BINARIES` set to a directory
//! with upstream's programs the ignored test runs them all.

use std::path::Path;
use std::time::Duration;

use apimachinery::{Value, json};
use http::Request;
use informer::{PatchType, Resource, Rest};
use kube::client::Body;

use crate::serve::{
    CONFIG_MAPS, NAMESPACE, PODS, SERVICE_ACCOUNTS, SERVICES, Served, World, create_pod, eventually, runs,
};

const DEFINITIONS: Resource = Resource::new("apiextensions.k8s.io", "v1", "customresourcedefinitions");
const THINGS: Resource = Resource::new("x.io", "v1", "things");
const DEPLOYMENTS: Resource = Resource::new("apps", "v1", "deployments");

/// A directory with a link of this binary.
fn links(home: &Path) -> String {
    let folder = home.join("bin");
    std::fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_alcove"), folder.join("kube-apiserver")).unwrap();
    folder.display().to_string()
}

fn use_config(world: &World, text: &str) {
    std::fs::write(world.home.path().join("vcluster.yaml"), text).unwrap();
}

/// What the supervisor says about a program: its process id.
fn program(world: &World, name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(world.home.path().join("data/k8s").join(format!("{name}.pid"))).ok()?;
    text.trim().parse().ok()
}

fn is_running(pid: u32) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

async fn end(mut served: Served) {
    served.signal("-TERM");
    let status = eventually("the end", async || served.child.try_wait().unwrap()).await;
    assert!(status.success(), "{status}");
}

async fn raw(client: &Rest, path: &str, headers: &[(&str, &str)]) -> Result<String, u16> {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = client.send(request.body(Body::empty()).unwrap()).await;
    answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(|error| error.code())
}

/// A client without credentials.
fn nobody(served: &Served) -> Rest {
    let mut config = kube::Config::new(format!("https://127.0.0.1:{}", served.port).parse().unwrap());
    config.accept_invalid_certs = true;
    Rest::new(kube::Client::try_from(config).unwrap(), "test").with_timeout(Duration::from_secs(10))
}

/// Name and version of what must not change.
async fn versions(tenant: &Rest, resources: &[&Resource]) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for resource in resources {
        let objects: Vec<Value> = tenant.list_as(resource, "", "", "").await.unwrap();
        let text = |object: &Value, member: &str| object.str_at(&["metadata", member]).to_owned();
        all.extend(objects.iter().map(|o| (text(o, "name"), text(o, "uid"), text(o, "resourceVersion"))));
    }
    all
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

/// Who is known how: certificates and tokens count, headers of clients do not.
async fn check_users(served: &Served, tenant: &Rest) {
    let names_admin = [("x-remote-user", "kubernetes-admin"), ("x-remote-group", "system:masters")];
    let nobody = nobody(served);
    let (secrets, log) = ("/api/v1/namespaces/default/secrets", "/api/v1/namespaces/default/pods/one/log");
    assert_eq!(raw(&nobody, secrets, &names_admin).await, Err(403));
    assert!(raw(&nobody, "/version", &[]).await.is_ok(), "anybody may read that");
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let made = tenant.create_subresource(&SERVICE_ACCOUNTS, "default", "default", "token", &request).await.unwrap();
    let token = format!("Bearer {}", made.str_at(&["status", "token"]));
    let [user, group] = names_admin;
    assert_eq!(raw(&nobody, secrets, &[("authorization", token.as_str()), user, group]).await, Err(403));
    // What is answered here asks the same questions as what is passed on.
    for path in [secrets, log, "/metrics/syncer"] {
        assert_eq!(raw(&nobody, path, &[("authorization", token.as_str())]).await, Err(403), "{path}");
        assert_eq!(raw(&nobody, path, &[("authorization", "Bearer no.such.token")]).await, Err(401), "{path}");
        assert!(raw(tenant, path, &[]).await.is_ok(), "{path}");
        assert_eq!(raw(tenant, path, &[("impersonate-user", "jane")]).await, Err(403), "{path} as somebody else");
    }
}

/// Native, then upstream's programs, then native again on one data directory. `always` is configured for all of them.
async fn in_turn(config: &str, always: &str, binaries: &str, controllers: bool) {
    let world = World::new(always).await;
    let native = world.serve("data", "team-a-0").await;
    let tenant = world.tenant(&native).await;
    create_pod(&tenant, "one").await;
    runs(&tenant, "one").await;
    tenant.create(&CONFIG_MAPS, "default", &config_map("native")).await.unwrap();
    let kept = [&CONFIG_MAPS, &SERVICE_ACCOUNTS, &PODS];
    end(native).await;
    let before = {
        let native = world.serve("data", "team-a-0").await;
        let before = versions(&world.tenant(&native).await, &kept).await;
        end(native).await;
        before
    };

    use_config(&world, &format!("{config}\n{always}"));
    let served = world.serve_with("data", "team-a-0", &["--binaries", binaries]).await;
    let tenant = world.tenant(&served).await;
    let after = versions(&tenant, &kept).await;
    let pods: Vec<String> = versions(&tenant, &[&PODS]).await.into_iter().map(|(_, uid, _)| uid).collect();
    // Each API server writes down whom it trusts in front of it.
    for object in before.iter().filter(|(name, ..)| name != "extension-apiserver-authentication") {
        // An older version knows less of a pod's status than the host tells: what it drops is written once.
        let same = |o: &&(String, String, String)| o.0 == object.0 && o.1 == object.1;
        let found = after.iter().find(same);
        assert!(found.is_some_and(|o| o == object || pods.contains(&o.1)), "{object:?} in {after:?}");
    }
    check_users(&served, &tenant).await;
    create_pod(&tenant, "two").await;
    runs(&tenant, "two").await;
    assert_eq!(raw(&tenant, "/readyz", &[]).await.as_deref(), Ok("ok"));
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"generateName": "web-"},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "web"}}});
    let made = tenant.create(&SERVICES, "default", &service).await.unwrap();
    let name = format!("{}-x-default-x-team-a", made.str_at(&["metadata", "name"]));
    let host_service = world.rest.get(&SERVICES, NAMESPACE, &name).await.unwrap();
    assert_eq!(made["spec"]["clusterIP"], host_service["spec"]["clusterIP"], "one address on both sides");
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.x.io"},
        "spec": {"group": "x.io", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"}, "versions": [{
            "name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}}}},
            "additionalPrinterColumns": [{"name": "N", "type": "integer", "jsonPath": ".spec.n"}],
        }]},
    });
    tenant.create(&DEFINITIONS, "", &definition).await.unwrap();
    let thing = json!({"apiVersion": "x.io/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"n": 3}});
    eventually("the custom resource is served", async || tenant.create(&THINGS, "default", &thing).await.ok()).await;
    if controllers {
        let pod =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "web"}]}});
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": pod}});
        tenant.create(&DEPLOYMENTS, "default", &deployment).await.unwrap();
        eventually("the Deployment is available", async || {
            let found = tenant.get(&DEPLOYMENTS, "default", "web").await.ok()?;
            (found["status"]["availableReplicas"].as_i64() == Some(2)).then_some(())
        })
        .await;
    }

    // The API comes back after its program was killed, and everything goes on.
    let first = program(&world, "kube-apiserver").unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &first.to_string()]).status().unwrap().success());
    let second = eventually("another process", async || {
        program(&world, "kube-apiserver").filter(|pid| *pid != first && is_running(*pid))
    })
    .await;
    eventually("the API", async || tenant.get(&CONFIG_MAPS, "default", "native").await.ok()).await;
    create_pod(&tenant, "three").await;
    runs(&tenant, "three").await;
    let metrics = raw(&tenant, "/metrics/distro", &[]).await.unwrap();
    assert!(metrics.contains("alcove_program_starts_total{program=\"kube-apiserver\"} 2"), "{metrics}");
    let patch = json!({"data": {"a": "c"}});
    tenant.patch(&CONFIG_MAPS, "", "default", "native", PatchType::Merge, &patch).await.unwrap();
    end(served).await;
    assert!(!is_running(second) && program(&world, "kube-apiserver").is_none(), "a program was left behind");

    use_config(&world, always);
    let native = world.serve("data", "team-a-0").await;
    let tenant = world.tenant(&native).await;
    let found = tenant.get(&CONFIG_MAPS, "default", "native").await.unwrap();
    assert_eq!(found.str_at(&["data", "a"]), "c");
    let read = eventually("the custom resource", async || tenant.get(&THINGS, "default", "t").await.ok()).await;
    assert_eq!(read["spec"]["n"].as_i64(), Some(3));
    let definition = tenant.get(&DEFINITIONS, "", "things.x.io").await.unwrap();
    let columns = definition["spec"]["versions"][0].array_at(&["additionalPrinterColumns"]);
    assert_eq!(columns[0].str_at(&["jsonPath"]), ".spec.n", "{definition}");
    assert_eq!(definition.str_at(&["apiVersion"]), "apiextensions.k8s.io/v1");
    for pod in ["one", "two", "three"] {
        runs(&tenant, pod).await;
    }
    create_pod(&tenant, "four").await;
    runs(&tenant, "four").await;
    end(native).await;
    world.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_data_directory_is_served_by_native_and_by_a_supervised_api_server_in_turn() {
    let home = tempfile::tempdir().unwrap();
    let config = "controlPlane: {distro: {k8s: {enabled: true, controllerManager: {enabled: false}}}}";
    in_turn(config, "", &links(home.path()), false).await;
}

/// With upstream's kube-apiserver and kube-controller-manager.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs upstream's programs: ALCOVE_TEST_BINARIES"]
async fn one_data_directory_is_served_by_native_and_upstream_in_turn() {
    let binaries = std::env::var("ALCOVE_TEST_BINARIES").unwrap();
    // Versions before 1.34 do not serve claims, which must hold up nothing else.
    let claims = "sync: {toHost: {resourceClaims: {enabled: true}}, fromHost: {deviceClasses: {enabled: true}}}";
    in_turn("controlPlane: {distro: {k8s: {enabled: true}}}", claims, &binaries, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_are_missing_or_end_at_once_are_named() {
    let world = World::new("").await;
    let folder = world.home.path().join("bin");
    std::fs::create_dir(&folder).unwrap();
    use_config(&world, "controlPlane: {distro: {k8s: {enabled: true, controllerManager: {enabled: false}}}}");
    let refused = |world: &World| world.refused(&["--binaries", "bin"]);
    let said = refused(&world);
    assert!(said.contains("controlPlane.distro.k8s: there is no") && said.contains("bin/kube-apiserver"), "{said}");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_alcove"), folder.join("kube-apiserver")).unwrap();
    use_config(
        &world,
        "controlPlane: {distro: {k8s: {enabled: true, controllerManager: {enabled: false}, apiServer: {extraArgs: [--no-such-flag=1]}}}}",
    );
    let said = refused(&world);
    assert!(said.contains("kube-apiserver ended") && said.contains("exit status: 2"), "{said}");
    world.host.stop().await;
}

// A skipped test says so.
#[allow(clippy::print_stdout)]
#[tokio::test(flavor = "multi_thread")]
async fn data_moves_from_the_file_into_an_embedded_etcd_and_survives_kill_9() {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let Some(binaries) = std::env::split_paths(&paths).find(|folder| folder.join("etcd").is_file()) else {
        println!("skipped: etcd is not installed");
        return;
    };
    let binaries = binaries.display().to_string();
    let more = ["--binaries", binaries.as_str()];
    let world = World::new("").await;
    let served = world.serve("data", "team-a-0").await;
    let tenant = world.tenant(&served).await;
    create_pod(&tenant, "one").await;
    runs(&tenant, "one").await;
    let before = tenant.get(&PODS, "default", "one").await.unwrap();
    end(served).await;

    use_config(&world, "controlPlane: {backingStore: {etcd: {embedded: {enabled: true}}}}");
    let served = world.serve_with("data", "team-a-0", &more).await;
    let tenant = world.tenant(&served).await;
    let moved = tenant.get(&PODS, "default", "one").await.unwrap();
    assert_eq!(moved["metadata"]["uid"], before["metadata"]["uid"]);
    let data = world.home.path().join("data");
    assert!(data.join("state.db.moved").exists() && !data.join("state.db").exists());
    tenant.create(&CONFIG_MAPS, "default", &config_map("kept")).await.unwrap();
    let text = std::fs::read_to_string(data.join("etcd.pid")).unwrap();
    let member: u32 = text.trim().parse().unwrap();
    assert!(is_running(member));
    served.kill();

    // The member that was left behind gives way to the new one, or has ended by itself: a line that nobody reads ends it.
    let served = world.serve_with("data", "team-a-0", &more).await;
    assert!(!is_running(member));
    let tenant = world.tenant(&served).await;
    tenant.get(&CONFIG_MAPS, "default", "kept").await.unwrap();
    runs(&tenant, "one").await;
    end(served).await;
    assert!(!data.join("etcd.pid").exists(), "a member was left behind");

    // An etcd is not given up for a file.
    use_config(&world, "");
    let said = world.refused(&[]);
    assert!(said.contains("embedded-etcd") && said.contains("cannot be changed"), "{said}");
    world.host.stop().await;
}

/// A chart with one ConfigMap, packed as helm wants it, in base64.
fn chart(home: &Path) -> String {
    use base64::Engine;
    let folder = home.join("greeting");
    std::fs::create_dir_all(folder.join("templates")).unwrap();
    std::fs::write(folder.join("Chart.yaml"), "apiVersion: v2\nname: greeting\nversion: 0.1.0\n").unwrap();
    std::fs::write(folder.join("values.yaml"), "word: hello\n").unwrap();
    let template =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {word: {{ .Values.word }}}\n";
    std::fs::write(folder.join("templates/map.yaml"), template).unwrap();
    let packed = std::process::Command::new("tar").args(["-czf", "chart.tgz", "greeting"]).current_dir(home).status();
    assert!(packed.unwrap().success());
    base64::engine::general_purpose::STANDARD.encode(std::fs::read(home.join("chart.tgz")).unwrap())
}

// A skipped test says so.
#[allow(clippy::print_stdout)]
#[tokio::test(flavor = "multi_thread")]
async fn charts_of_the_configuration_are_installed_upgraded_and_uninstalled() {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let Some(binaries) = std::env::split_paths(&paths).find(|folder| folder.join("helm").is_file()) else {
        println!("skipped: there is no helm");
        return;
    };
    let binaries = binaries.display().to_string();
    let more = ["--binaries", binaries.as_str()];
    let world = World::new("").await;
    let bundle = chart(world.home.path());
    let with = |values: &str| {
        format!(
            "experimental: {{deploy: {{vcluster: {{helm: [{{release: {{name: hi, namespace: greetings}}, values: '{values}', bundle: {bundle}}}]}}}}}}"
        )
    };
    let mut word = None;
    for (config, want) in [(with(""), Some("hello")), (with("word: servus"), Some("servus")), ("{}".to_string(), None)]
    {
        use_config(&world, &config);
        let served = world.serve_with("data", "team-a-0", &more).await;
        let tenant = world.tenant(&served).await;
        eventually("what the configuration says", async || {
            let found = tenant.get(&CONFIG_MAPS, "greetings", "hi").await;
            word = found.ok().map(|map| map.str_at(&["data", "word"]).to_string());
            (word.as_deref() == want).then_some(())
        })
        .await;
        eventually("the status", async || {
            let map = tenant.get(&CONFIG_MAPS, "kube-system", "vcluster-deploy").await.ok()?;
            let text = map.str_at(&["metadata", "annotations", "vcluster.loft.sh/status"]);
            let status = Value::from_slice(text.as_bytes()).ok()?;
            let charts = status.array_at(&["charts"]).len();
            (status.str_at(&["phase"]) == "Success" && charts == usize::from(want.is_some())).then_some(())
        })
        .await;
        end(served).await;
    }
    world.host.stop().await;
}
