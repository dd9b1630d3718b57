//! From `up` to `down` without kubectl.

use crate::support::{World, alcove, transcript};

#[test]
fn a_virtual_cluster_is_created_used_and_deleted() {
    let world = World::up();
    let home = world.home.path().to_path_buf();
    assert!(world.alcove(&["list"]).starts_with("NAME"));
    world.alcove(&["create", "team-a"]);
    let config = std::fs::read_to_string(home.join(".kube/config")).unwrap();
    assert!(config.contains("current-context: vcluster_team-a_vcluster-team-a_alcove"), "{config}");
    let list: serde_json::Value = serde_json::from_str(&world.alcove(&["list", "-o", "json"])).unwrap();
    assert_eq!(list[0]["Name"], "team-a");
    assert_eq!(list[0]["Namespace"], "vcluster-team-a");
    assert_eq!(list[0]["Status"], "Running");
    assert_eq!(list[0]["Connected"], true);

    assert!(world.alcove_fails(4, &["create", "team-a"]).contains("exists already"));
    assert!(
        world
            .alcove_fails(4, &["create", "team-b", "-n", "vcluster-team-a"])
            .contains("one virtual cluster per namespace")
    );
    assert!(world.alcove_fails(3, &["connect", "team-x"]).contains("does not exist"));
    world.alcove(&["create", "team-a", "--upgrade", "--set", "controlPlane.proxy.extraSANs={a.example}"]);
    assert!(world.alcove(&["describe", "team-a", "--config-only"]).contains("a.example"));

    world.alcove(&["disconnect"]);
    assert!(std::fs::read_to_string(home.join(".kube/config")).unwrap().contains("current-context: alcove"));
    let printed = world.alcove(&["connect", "team-a", "--print"]);
    assert!(printed.contains("server: https://127.0.0.1:"), "{printed}");
    let shell = world.alcove(&["connect", "team-a", "--", "sh", "-c", "grep -c server: $KUBECONFIG"]);
    assert_eq!(shell.trim(), "1");
    world.alcove_fails(7, &["connect", "team-a", "--", "sh", "-c", "exit 7"]);

    world.alcove(&["delete", "team-a"]);
    assert!(world.alcove_fails(3, &["delete", "team-a"]).contains("does not exist"));
    world.alcove(&["delete", "team-a", "--ignore-not-found"]);
    assert!(!std::fs::read_to_string(home.join(".kube/config")).unwrap().contains("vcluster_team-a"));
    assert!(world.alcove(&["status"]).contains("Clusters:   0"));
    world.alcove(&["down"]);
    world.alcove_fails(3, &["status"]);
}

#[test]
fn clusters_come_back_with_their_data_after_a_restart() {
    let world = World::up();
    world.alcove(&["create", "team-a", "--connect=false"]);
    let before = world.alcove(&["connect", "team-a", "--print"]);
    world.alcove(&["down"]);
    world.alcove(&["up"]);
    assert_eq!(world.alcove(&["connect", "team-a", "--print"]), before);
    world.alcove(&["delete", "team-a"]);
}

/// `alcove apiserver` as a host without controllers and without a hub; killed at the end.
struct ApiServer(std::process::Child);

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_host_without_a_hub_is_told_and_is_cleaned_up_by_force() {
    let home = tempfile::tempdir().unwrap();
    let kubeconfig = home.path().join("host.kubeconfig");
    let mut command = alcove(home.path());
    command
        .args(["apiserver", "--secure-port", "0", "--bind-address", "127.0.0.1", "--kubeconfig-out"])
        .arg(&kubeconfig);
    let _server = ApiServer(command.spawn().unwrap());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !kubeconfig.exists() {
        assert!(std::time::Instant::now() < deadline, "the API server did not write its kubeconfig");
        std::thread::yield_now();
    }
    let run = |code: i32, arguments: &[&str]| {
        let output = alcove(home.path()).arg("--kubeconfig").arg(&kubeconfig).args(arguments).output().unwrap();
        let text = transcript(home.path(), &output);
        assert_eq!(output.status.code(), Some(code), "alcove {}\n{text}", arguments.join(" "));
        text
    };
    assert!(run(5, &["create", "team-a", "--placement", "hub", "--timeout", "1"]).contains("no hub on host"));
    assert!(run(0, &["list"]).contains("Pending"));
    run(0, &["delete", "team-a", "--force", "--auto-delete-namespace=false", "--timeout", "10"]);
    assert!(!run(0, &["list"]).contains("team-a"));
}
