//! What commands print, as files. `UPDATE_SNAPSHOTS=1 cargo test -p cli` writes them; the diff is reviewed.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use crate::support::{alcove, transcript};

#[test]
fn commands_print_what_the_snapshots_say() {
    // (name, arguments, standard input, kubeconfig)
    let kubeconfig = "clusters:\n- {name: a, cluster: {server: \"https://127.0.0.1:1\"}}\nusers:\n- {name: a, user: {}}\ncontexts:\n- {name: a, context: {cluster: a, user: a}}\ncurrent-context: a\n";
    let in_cluster = kubeconfig
        .replace("name: a", "name: vcluster_x_y_gone")
        .replace("current-context: a", "current-context: vcluster_x_y_gone");
    let cases: &[(&str, &[&str], &str, &str)] = &[
        ("help", &["--help"], "", ""),
        ("help-create", &["create", "--help"], "", ""),
        ("help-connect", &["connect", "--help"], "", ""),
        ("help-delete", &["delete", "--help"], "", ""),
        ("help-config-validate", &["config", "validate", "--help"], "", ""),
        ("version", &["version"], "", ""),
        ("unknown-command", &["creat", "x"], "", ""),
        ("unknown-flag", &["create", "x", "--upgrad"], "", ""),
        ("create-bad-name", &["create", "Team_A"], "", ""),
        ("create-no-host", &["create", "team-a"], "", ""),
        ("create-unknown-key", &["create", "team-a", "-f", "-"], "sync:\n  toHost:\n    pod: {}\n", ""),
        ("create-dedicated", &["create", "team-a", "--placement", "dedicated"], "", kubeconfig),
        ("help-template", &["template", "--help"], "", ""),
        ("template-hub", &["template", "team-a", "--placement", "hub", "-n", "tenants"], "", ""),
        ("template-dedicated", &["template", "team-a", "--create-namespace"], "", ""),
        (
            "template-bad-manifest",
            &["template", "team-a", "-f", "-"],
            "experimental:\n  deploy:\n    host:\n      manifestsTemplate: |\n        kind: {{ .Values.none.such }}\n",
            "",
        ),
        ("host-unreachable", &["list"], "", kubeconfig),
        ("unknown-context", &["list", "--context", "b"], "", kubeconfig),
        ("broken-kubeconfig", &["list"], "", "clusters: {\n"),
        ("disconnect-nothing", &["disconnect"], "", kubeconfig),
        ("disconnect-gone", &["disconnect"], "", &in_cluster),
        ("validate-good", &["config", "validate", "-f", "-"], "sync:\n  toHost:\n    secrets:\n      all: true\n", ""),
        (
            "validate-no-effect",
            &["config", "validate", "-f", "-"],
            "telemetry:\n  enabled: false\ncontrolPlane:\n  statefulSet:\n    resources:\n      limits:\n        memory: 1Gi\n",
            "",
        ),
        (
            "validate-many-mistakes",
            &["config", "validate", "-f", "-", "--set", "sync.x=1"],
            "a: 1\nsync:\n  toHost:\n    pods: true\nsleep:\n  auto:\n    afterInactivity: 1h\n",
            "",
        ),
        ("validate-not-yaml", &["config", "validate", "-f", "-"], "a: [\n", ""),
        ("validate-missing-file", &["config", "validate", "-f", "nothing.yaml"], "", ""),
    ];
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/snapshots");
    let update = std::env::var_os("UPDATE_SNAPSHOTS").is_some();
    let mut wrong = Vec::new();
    for (name, arguments, input, kubeconfig) in cases {
        let home = tempfile::tempdir().unwrap();
        if !kubeconfig.is_empty() {
            fs::create_dir(home.path().join(".kube")).unwrap();
            fs::write(home.path().join(".kube/config"), kubeconfig).unwrap();
        }
        let mut child = alcove(home.path())
            .args(*arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read its input may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let got = format!("$ alcove {}\n{}", arguments.join(" "), transcript(home.path(), &output));
        let path = folder.join(format!("{name}.txt"));
        if update {
            fs::write(&path, &got).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != got {
            wrong.push(format!("{name}:\n{got}"));
        }
    }
    assert!(wrong.is_empty(), "these differ (UPDATE_SNAPSHOTS=1 writes them):\n{}", wrong.join("\n"));
}
