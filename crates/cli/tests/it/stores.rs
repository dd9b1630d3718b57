//! `alcove store`: the data of a cluster moves between stores.

use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use kube::api::{Api, DynamicObject, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};

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
    let kubeconfig = home.join(format!("{data}.kubeconfig"));
    let mut command = alcove(home);
    command
        .args(["apiserver", "--bind-address=127.0.0.1", "--secure-port=0", "--cert-dir=certs"])
        .arg(format!("--data-dir={data}"))
        .arg(format!("--kubeconfig-out={}", kubeconfig.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
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
