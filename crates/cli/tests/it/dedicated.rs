//! Placement dedicated on the development host: its nodes run no containers, but its server checks every object.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::World;

/// What of a release can be seen in a namespace, by `kubectl get -o name`.
fn objects(world: &World, namespace: &str, selector: &str) -> Vec<String> {
    let kinds = "statefulset,deployment,pod,service,secret,serviceaccount,role,rolebinding,poddisruptionbudget,\
                 networkpolicy,resourcequota,limitrange,ingress,persistentvolumeclaim,configmap";
    let arguments = ["--context", "alcove", "-n", namespace, "get", kinds, "-l", selector, "-o", "name"];
    let (code, text) = world.kubectl(&arguments, "");
    assert_eq!(code, 0, "{text}");
    text.lines().filter(|line| line.contains('/')).map(str::to_string).collect()
}

fn jsonpath(world: &World, namespace: &str, object: &str, path: &str) -> String {
    let path = format!("jsonpath={path}");
    let (code, text) = world.kubectl(&["--context", "alcove", "-n", namespace, "get", object, "-o", &path], "");
    assert_eq!(code, 0, "{text}");
    text.trim().to_string()
}

#[test]
#[cfg_attr(not(kubectl), ignore = "there is no kubectl in PATH")]
fn a_dedicated_cluster_is_created_changed_and_deleted() {
    let world = World::up();
    let create = ["create", "team-a", "-n", "tenants", "--placement", "dedicated", "--connect=false"];
    let with = |more: &[&str]| [create.as_slice(), more].concat().iter().map(ToString::to_string).collect::<Vec<_>>();
    let run = |more: &[&str]| world.alcove(&with(more).iter().map(String::as_str).collect::<Vec<_>>());
    let manifest = "experimental.deploy.host.manifests=apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine}";
    run(&[
        "--set",
        "controlPlane.advanced.podDisruptionBudget.enabled=true,policies.resourceQuota.enabled=false",
        "--set",
        manifest,
    ]);
    let list: serde_json::Value = serde_json::from_str(&world.alcove(&["list", "-o", "json"])).unwrap();
    assert_eq!((&list[0]["Name"], &list[0]["Status"]), (&"team-a".into(), &"Running".into()), "{list}");
    assert!(world.alcove(&["describe", "team-a"]).contains("dedicated"));
    let own = "release=team-a";
    let found = objects(&world, "tenants", own);
    for name in [
        "statefulset.apps/team-a",
        "pod/team-a-0",
        "service/team-a",
        "service/team-a-headless",
        "secret/vc-config-team-a",
        "serviceaccount/vc-team-a",
        "serviceaccount/vc-workload-team-a",
        "role.rbac.authorization.k8s.io/vc-team-a",
        "rolebinding.rbac.authorization.k8s.io/vc-team-a",
        "poddisruptionbudget.policy/team-a",
        "persistentvolumeclaim/data-team-a-0",
    ] {
        assert!(found.contains(&name.to_string()), "{name} is not in {found:?}");
    }
    let manager = "{.metadata.managedFields[?(@.operation==\"Apply\")].manager}";
    assert_eq!(jsonpath(&world, "tenants", "statefulset/team-a", manager), "alcove");
    assert_eq!(jsonpath(&world, "tenants", "configmap/mine", "{.metadata.name}"), "mine");

    assert!(world.alcove_fails(4, &create).contains("exists already"));
    let other = ["create", "team-b", "-n", "tenants", "--placement", "dedicated"];
    assert!(world.alcove_fails(4, &other).contains("one virtual cluster per namespace"));
    let moved = ["create", "team-a", "-n", "tenants", "--placement", "hub", "--upgrade"];
    // Simulated nodes run no control plane that could hand over its data.
    assert!(world.alcove_fails(3, &moved).contains("has no key ca.key"));

    // A change reaches the pod; what is not asked for any more goes.
    let hash = "{.spec.template.metadata.annotations.vClusterConfigHash}";
    let before = jsonpath(&world, "tenants", "statefulset/team-a", hash);
    run(&["--upgrade", "--set", "controlPlane.statefulSet.pods.labels.tier=one,policies.networkPolicy.enabled=true"]);
    assert_ne!(jsonpath(&world, "tenants", "statefulset/team-a", hash), before);
    assert_eq!(jsonpath(&world, "tenants", "pod/team-a-0", "{.metadata.labels.tier}"), "one");
    let found = objects(&world, "tenants", own);
    assert!(found.contains(&"networkpolicy.networking.k8s.io/vc-cp-team-a".to_string()), "{found:?}");
    assert!(!found.iter().any(|name| name.starts_with("poddisruptionbudget")), "{found:?}");

    world.alcove(&["delete", "team-a", "--auto-delete-namespace=false"]);
    assert_eq!(objects(&world, "tenants", own), Vec::<String>::new());
    let (code, _) = world.kubectl(&["--context", "alcove", "get", "namespace", "tenants"], "");
    assert_eq!(code, 0);
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/alcove")
}

#[test]
#[cfg_attr(not(kubectl), ignore = "there is no kubectl in PATH")]
fn the_host_accepts_every_field_of_what_is_rendered() {
    let world = World::up();
    let mut files: Vec<PathBuf> = std::fs::read_dir(chart().join("ci")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 12, "{}", files.len());
    for (index, file) in files.iter().enumerate() {
        let file = file.to_str().unwrap();
        let namespace = format!("tenants-{index}");
        if file.contains("gateway") {
            // Kinds that somebody has to install first.
            let create = ["create", "team-a", "-n", &namespace, "--placement", "dedicated", "-f", file];
            let said = world.alcove_fails(2, &create);
            assert!(said.contains("the host knows no kind \"TLSRoute\""), "{said}");
            continue;
        }
        let text = world.alcove(&["template", "team-a", "-n", &namespace, "--create-namespace", "-f", file]);
        let apply = ["--context", "alcove", "-n", &namespace, "apply", "--server-side", "--validate=strict", "-f", "-"];
        let (code, said) = world.kubectl(&apply, &text);
        assert_eq!(code, 0, "{file}\n{said}");
        assert!(!said.to_lowercase().contains("warning"), "{file}\n{said}");
    }
}

#[test]
#[cfg_attr(not(all(helm, kubectl)), ignore = "there is no helm or kubectl in PATH")]
fn helm_kubectl_and_the_command_work_on_one_release() {
    let world = World::up();
    let helm = |arguments: &[&str]| {
        let output = Command::new("helm")
            .args(["--kube-context", "alcove", "-n", "tenants"])
            .args(arguments)
            .env("HOME", world.home.path())
            .env_remove("KUBECONFIG")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "helm {}\n{error}", arguments.join(" "));
        String::from_utf8(output.stdout).unwrap()
    };
    let chart = chart();
    let chart = chart.to_str().unwrap();
    let create = ["create", "team-a", "-n", "tenants", "--placement", "dedicated", "--connect=false"];
    world.alcove(&create);
    let state = || jsonpath(&world, "tenants", "statefulset/team-a", "{.metadata.uid} {.metadata.generation}");
    let before = state();
    // Nothing changes when another tool says the same.
    helm(&["upgrade", "--install", "team-a", chart]);
    assert_eq!(state(), before);
    let text = world.alcove(&["template", "team-a", "-n", "tenants"]);
    let apply = ["--context", "alcove", "apply", "--server-side", "--force-conflicts", "-f", "-"];
    let (code, said) = world.kubectl(&apply, &text);
    assert_eq!(code, 0, "{said}");
    assert_eq!(state(), before);
    // Each one's change is seen by the others.
    helm(&["upgrade", "team-a", chart, "--set", "controlPlane.statefulSet.pods.labels.by=helm"]);
    assert!(world.alcove(&["describe", "team-a", "--config-only"]).contains("by: helm"));
    world.alcove(
        &[create.as_slice(), &["--upgrade", "--set", "controlPlane.statefulSet.pods.labels.by=alcove"]].concat(),
    );
    let label = "{.spec.template.metadata.labels.by}";
    assert_eq!(jsonpath(&world, "tenants", "statefulset/team-a", label), "alcove");
    assert!(helm(&["list", "-q"]).contains("team-a"));

    world.alcove(&["delete", "team-a", "--auto-delete-namespace=false"]);
    assert_eq!(objects(&world, "tenants", "release=team-a"), Vec::<String>::new());
    assert_eq!(helm(&["list", "-q", "--all"]).trim(), "");

    // And the other way round.
    helm(&["install", "team-a", chart]);
    world.alcove(&[create.as_slice(), &["--upgrade"]].concat());
    helm(&["uninstall", "team-a"]);
    let left = objects(&world, "tenants", "release=team-a");
    assert_eq!(left, ["persistentvolumeclaim/data-team-a-0"]);
}
