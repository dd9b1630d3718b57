//! controller-runtime's envtest: two links to the binary stand in for kube-apiserver and etcd.
//!
//! Flags, files, environment and order are those of `pkg/internal/testing/controlplane` and `process`: look at
//! `--help`, write certificates, start etcd, poll `/health`, start kube-apiserver, poll `/healthz`, use the API with client
//! certificates, end both with SIGTERM.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams, WatchEvent,
};
use kube::core::params::WatchParams;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long envtest waits for a process, either way.
const TIMEOUT: Duration = Duration::from_secs(20);

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(path: &Path, arguments: &[String]) -> Process {
        // As envtest does it: the environment is inherited, outputs go nowhere.
        let child = Command::new(path).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Process(child)
    }

    /// SIGTERM; returns how long the process took to end, which must be with success.
    fn stop(mut self) -> Duration {
        let asked = Instant::now();
        let status = Command::new("kill").arg(self.0.id().to_string()).status().unwrap();
        assert!(status.success());
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return asked.elapsed();
            }
            assert!(asked.elapsed() < TIMEOUT, "the process does not end");
            std::thread::yield_now();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The binaries' directory: links, found by name.
fn assets(folder: &Path) -> PathBuf {
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    for name in ["kube-apiserver", "etcd"] {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_alcove"), bin.join(name)).unwrap();
    }
    bin
}

/// Is the flag in the output of `--help`, at the start of a line?
fn has_flag(binary: &Path, flag: &str) -> bool {
    let output = Command::new(binary).arg("--help").output().unwrap();
    assert!(output.status.success(), "--help fails");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().any(|line| {
        let rest = line.trim_start().strip_prefix(&format!("--{flag}"));
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
    })
}

async fn http_get(address: &str, path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// Asks until there is an answer, as envtest does.
async fn poll<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begin.elapsed() < TIMEOUT, "waited too long for {what}");
        tokio::task::yield_now().await;
    }
}

struct Environment {
    etcd: Process,
    apiserver: Process,
    url: String,
    server_ca: String,
    client_ca: pki::Pair,
}

impl Environment {
    async fn start(bin: &Path, folder: &Path) -> Environment {
        std::fs::create_dir(folder).unwrap();
        let etcd_address = format!("127.0.0.1:{}", free_port());
        let mut flags = vec![
            format!("--advertise-client-urls=http://{etcd_address}"),
            format!("--data-dir={}", folder.join("etcd").display()),
            format!("--listen-client-urls=http://{etcd_address}"),
            format!("--listen-peer-urls=http://127.0.0.1:{}", free_port()),
        ];
        if has_flag(&bin.join("etcd"), "unsafe-no-fsync") {
            flags.push("--unsafe-no-fsync=true".to_owned());
        }
        let etcd = Process::start(&bin.join("etcd"), &flags);
        let health = poll("etcd", || http_get(&etcd_address, "/health")).await;
        assert!(health.starts_with("HTTP/1.1 200"), "{health}");
        assert!(health.ends_with(r#"{"health":"true"}"#), "{health}");
        let other = http_get(&etcd_address, "/v3/kv/range").await.unwrap();
        assert!(other.starts_with("HTTP/1.1 501"), "a placeholder does not claim to be more: {other}");

        let certificates = folder.join("certs");
        std::fs::create_dir(&certificates).unwrap();
        let write = |name: &str, text: &str| std::fs::write(certificates.join(name), text).unwrap();
        let server_ca = pki::authority("envtest-environment").unwrap();
        let serving = pki::Request {
            common_name: "localhost",
            organizations: &["envtest"],
            usage: pki::Usage::Server(vec!["localhost".into(), "127.0.0.1".into()]),
        };
        let serving = pki::issue(&server_ca, &serving).unwrap();
        write("apiserver.crt", &serving.certificate);
        write("apiserver.key", &serving.key);
        // The key that verifies tokens comes as a certificate.
        let signer = pki::authority("envtest-environment").unwrap();
        write("sa-signer.crt", &signer.certificate);
        write("sa-signer.key", &signer.key);
        let client_ca = pki::authority("envtest-environment").unwrap();
        write("client-cert-auth-ca.crt", &client_ca.certificate);

        let path = bin.join("kube-apiserver");
        let mut flags: BTreeMap<&str, String> = [
            ("allow-privileged", "true".to_owned()),
            ("authorization-mode", "RBAC".to_owned()),
            ("bind-address", "127.0.0.1".to_owned()),
            ("cert-dir", certificates.display().to_string()),
            ("client-ca-file", certificates.join("client-cert-auth-ca.crt").display().to_string()),
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
            ("etcd-servers", format!("http://{etcd_address}")),
            ("service-account-key-file", certificates.join("sa-signer.crt").display().to_string()),
            ("service-account-signing-key-file", certificates.join("sa-signer.key").display().to_string()),
            ("service-cluster-ip-range", "10.0.0.0/24".to_owned()),
        ]
        .into();
        if has_flag(&path, "insecure-port") {
            flags.insert("insecure-port", "0".to_owned());
        }
        let port = free_port();
        let url = format!("https://127.0.0.1:{port}");
        flags.insert("secure-port", port.to_string());
        flags.insert("service-account-issuer", format!("{url}/"));
        let flags: Vec<String> = flags.iter().map(|(name, value)| format!("--{name}={value}")).collect();
        let apiserver = Process::start(&path, &flags);
        let environment = Environment { etcd, apiserver, url, server_ca: server_ca.certificate, client_ca };
        // Without a client certificate, as the health check is made.
        let anonymous = environment.client(None);
        poll("/healthz", || async {
            let request = http::Request::get("/healthz").body(Vec::new()).unwrap();
            anonymous.request_text(request).await.ok().filter(|text| text == "ok")
        })
        .await;
        for (name, text) in [("apiserver.crt", &serving.certificate), ("apiserver.key", &serving.key)] {
            assert_eq!(std::fs::read_to_string(certificates.join(name)).unwrap(), *text, "{name} was changed");
        }
        environment
    }

    /// A client that trusts the serving authority and shows a certificate of a provisioned user.
    fn client(&self, user: Option<(&str, &[&str])>) -> kube::Client {
        use base64::Engine;
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let mut config = kube::Config::new(self.url.parse().unwrap());
        let ca = rustls_pem(&self.server_ca);
        config.root_cert = Some(vec![ca]);
        if let Some((common_name, organizations)) = user {
            let request = pki::Request { common_name, organizations, usage: pki::Usage::Client };
            let pair = pki::issue(&self.client_ca, &request).unwrap();
            config.auth_info.client_certificate_data = Some(encode(&pair.certificate));
            config.auth_info.client_key_data = Some(encode(&pair.key).into());
        }
        kube::Client::try_from(config).unwrap()
    }
}

fn rustls_pem(text: &str) -> Vec<u8> {
    use base64::Engine;
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

fn definition() -> DynamicObject {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.envtest.example"},
        "spec": {
            "group": "envtest.example", "scope": "Namespaced",
            "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {
                "openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"size": {"type": "integer", "default": 3}}},
                    "status": {"type": "object", "properties": {"ready": {"type": "integer"}}}}}}}]
        }
    }))
    .unwrap()
}

/// What a test suite does: wait for the default namespace, install a definition and wait for discovery, create objects as
/// an administrator, be refused as somebody else, watch.
async fn use_it(environment: &Environment, index: usize) {
    use futures::TryStreamExt;
    let admin = environment.client(Some(("admin", &["system:masters"])));
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(admin.clone());
    poll("the default namespace", || async { namespaces.get("default").await.ok() }).await;
    let crd = ApiResource::from_gvk(&GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"));
    Api::<DynamicObject>::all_with(admin.clone(), &crd).create(&PostParams::default(), &definition()).await.unwrap();
    poll("discovery", || async {
        let list = admin.list_api_group_resources("envtest.example/v1").await.ok()?;
        list.resources.iter().any(|resource| resource.name == "foos").then_some(())
    })
    .await;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("envtest.example", "v1", "Foo"));
    let foos: Api<DynamicObject> = Api::namespaced_with(admin.clone(), "default", &resource);
    let before = foos.list(&ListParams::default()).await.unwrap();
    assert!(before.items.is_empty(), "environments share nothing");
    let events = foos.watch(&WatchParams::default(), &before.metadata.resource_version.unwrap()).await.unwrap();
    let mut events = std::pin::pin!(events);
    let name = format!("foo-{index}");
    let applied =
        serde_json::json!({"apiVersion": "envtest.example/v1", "kind": "Foo", "metadata": {"name": name}, "spec": {}});
    let made = foos.patch(&name, &PatchParams::apply("suite"), &Patch::Apply(applied)).await.unwrap();
    assert_eq!(made.data["spec"]["size"], 3);
    match events.try_next().await.unwrap().unwrap() {
        WatchEvent::Added(seen) => assert_eq!(seen.metadata.name.as_deref(), Some(name.as_str())),
        other => panic!("{other:?}"),
    }
    let status = serde_json::json!({"status": {"ready": 1}});
    foos.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();

    let nobody = environment.client(Some(("jane", &["developers"])));
    let refused = Api::<DynamicObject>::namespaced_with(nobody, "default", &resource).get(&name).await.unwrap_err();
    match refused {
        kube::Error::Api(status) => assert!(status.is_forbidden(), "{status:?}"),
        other => panic!("{other}"),
    }
    // The plugin ServiceAccount is off: pods need no account.
    let pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}
    }));
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(admin, "default");
    pods.create(&PostParams::default(), &pod.unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_start_beside_each_other_are_used_and_stop() {
    let folder = tempfile::Builder::new().prefix("alcove-envtest-").tempdir().unwrap();
    let bin = assets(folder.path());
    assert!(!has_flag(&bin.join("kube-apiserver"), "insecure-port"), "as in every version since 1.24");
    assert!(has_flag(&bin.join("kube-apiserver"), "secure-port"));
    let starts = (0..3).map(|index| {
        let (bin, folder) = (bin.clone(), folder.path().join(format!("k8s_test_framework_{index}")));
        tokio::spawn(async move {
            let environment = Environment::start(&bin, &folder).await;
            use_it(&environment, index).await;
            environment
        })
    });
    let environments = futures::future::join_all(starts.collect::<Vec<_>>()).await;
    for environment in environments {
        let environment = environment.unwrap();
        // A watch and an idle connection are open while the server is asked to end.
        let admin = environment.client(Some(("admin", &["system:masters"])));
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(admin);
        let watch = namespaces.watch(&WatchParams::default(), "0").await.unwrap();
        let idle = tokio::net::TcpStream::connect(environment.url.trim_start_matches("https://")).await.unwrap();
        for process in [environment.apiserver, environment.etcd] {
            let took = tokio::task::spawn_blocking(|| process.stop()).await.unwrap();
            assert!(took < Duration::from_secs(4), "{took:?}");
        }
        drop((watch, idle));
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let folder = tempfile::Builder::new().prefix("alcove-envtest-").tempdir().unwrap();
    let bin = assets(folder.path());
    for (name, flags, want) in [
        ("kube-apiserver", &["--oidc-issuer-url=https://a"][..], "--oidc-issuer-url"),
        ("kube-apiserver", &["--authorization-mode=Webhook"], "Webhook"),
        ("kube-apiserver", &["--insecure-port=8080"], "--insecure-port"),
        ("kube-apiserver", &["--enable-admission-plugins=ImagePolicyWebhook"], "ImagePolicyWebhook"),
        ("etcd", &["--client-cert-auth=true"], "--client-cert-auth"),
        ("etcd", &["--listen-client-urls=https://127.0.0.1:0"], "https is not supported"),
    ] {
        let mut command = Command::new(bin.join(name));
        if name == "kube-apiserver" {
            command.arg("--secure-port=0");
        }
        let output = command.args(flags).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(want), "{name} {flags:?}: {text}");
    }
}
