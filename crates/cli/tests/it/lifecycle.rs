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
    until_written(&kubeconfig);
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

#[test]
fn what_serves_may_open_as_many_files_as_the_system_allows() {
    let home = tempfile::tempdir().unwrap();
    let kubeconfig = home.path().join("kubeconfig");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", r#"ulimit -Sn 128; exec "$0" "$@""#, env!("CARGO_BIN_EXE_alcove")]);
    command.args(["apiserver", "--secure-port", "0", "--bind-address", "127.0.0.1", "--kubeconfig-out"]);
    let server = ApiServer(command.arg(&kubeconfig).current_dir(home.path()).spawn().unwrap());
    until_written(&kubeconfig);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.0.id())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let [soft, hard] = files.split_whitespace().take(2).collect::<Vec<_>>()[..] else { panic!("{files}") };
    assert_eq!(soft, hard);
    assert_ne!(soft, "128");
}

/// Waits for a file that appears whole.
fn until_written(path: &std::path::Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !path.exists() {
        assert!(std::time::Instant::now() < deadline, "{} was not written", path.display());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Answers each request over HTTP with what is said for its path.
fn web(answers: &'static [(&'static str, &'static str, &'static str)]) -> std::net::SocketAddr {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            let _ = lines.take_while(|line| !line.is_empty()).count();
            let path = first.split(' ').nth(1).unwrap_or_default();
            let found = answers.iter().find(|(known, ..)| *known == path);
            let (head, body) = found.map_or(("404 Not Found", ""), |(_, head, body)| (*head, *body));
            let length = body.len();
            let _ = write!(stream, "HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        }
    });
    address
}

#[test]
fn values_come_from_urls_too() {
    let home = tempfile::tempdir().unwrap();
    let address = web(&[
        ("/team.yaml", "200 OK", "controlPlane: {proxy: {extraSANs: [from.example]}}"),
        ("/moved.yaml", "302 Found\r\nlocation: /team.yaml", ""),
        ("/loop.yaml", "302 Found\r\nlocation: /loop.yaml", ""),
        ("/wrong.yaml", "200 OK", "controlPlain: {}"),
    ]);
    for (path, code, want) in [
        ("team.yaml", 0, "from.example"),
        ("moved.yaml", 0, "from.example"),
        ("loop.yaml", 2, "too many redirects"),
        ("missing.yaml", 2, "the server answers 404 Not Found"),
        ("wrong.yaml", 2, "controlPlain"),
    ] {
        let url = format!("http://{address}/{path}");
        let output = alcove(home.path()).args(["config", "validate", "--print", "-f", &url]).output().unwrap();
        let text = transcript(home.path(), &output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(want), "{path}: {text}");
    }
}

#[test]
fn what_is_said_can_be_json() {
    let home = tempfile::tempdir().unwrap();
    let output = alcove(home.path()).args(["--log-output", "json", "platform", "start"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let arguments = ["--log-output=json", "config", "validate", "--set", "a=b"];
    let output = alcove(home.path()).args(arguments).output().unwrap();
    let line: serde_json::Value = serde_json::from_slice(output.stderr.split(|b| *b == b'\n').next().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["message"].as_str().unwrap().contains("the configuration is not valid"), "{line}");
    assert_eq!(output.status.code(), Some(2));
}
