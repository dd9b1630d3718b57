//! The rights of a control plane are those that `docs/rbac.md` says, and no more.

use std::path::Path;

use deploy::{Placement, Release, host_objects};
use serde_json::{Value, json};

/// The rules of all objects of a kind; nothing when the configuration is not supported yet.
fn rules(sets: &[String], kind: &str) -> Option<Vec<Value>> {
    let config = match config::load(&[], sets) {
        Ok(config) => config,
        Err(error) if error.to_string().contains("not supported yet") => return None,
        Err(error) => panic!("{sets:?}: {error}"),
    };
    let release = Release {
        name: "team-a",
        namespace: "tenants",
        placement: Placement::Dedicated,
        config: &config,
        version: "0.1.0",
    };
    let objects = host_objects(&release).unwrap();
    let of_kind = objects.iter().filter(|object| object["kind"] == kind);
    Some(of_kind.flat_map(|object| object["rules"].as_array().unwrap().clone()).collect())
}

fn document() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/rbac.md")).unwrap()
}

#[test]
fn the_default_role_has_the_documented_rules_and_no_more() {
    let text = document();
    let block = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let documented: Value = config::yaml::from_str(block).unwrap();
    assert_eq!(Value::Array(rules(&[], "Role").unwrap()), documented);
    assert_eq!(rules(&[], "ClusterRole").unwrap(), Vec::<Value>::new());
}

/// One right: group, resource, verb, and the names it is limited to.
fn rights(rules: &[Value]) -> std::collections::BTreeSet<(String, String, String, String)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let mut all = std::collections::BTreeSet::new();
    for rule in rules {
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                for verb in list(&rule["verbs"]) {
                    let names = list(&rule["resourceNames"]).iter().map(text).collect::<Vec<_>>().join(",");
                    all.insert((text(&group), text(&resource), text(&verb), names));
                }
            }
        }
    }
    all
}

#[test]
fn every_feature_adds_the_documented_rights_and_no_more() {
    let text = document();
    let mut checked = 0;
    // | `what is set` | kind | group | resources | verbs |
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect();
        let [set, kind, ..] = cells.as_slice() else { panic!("{line}") };
        let sets: Vec<String> = set.split("` `").map(str::to_string).collect();
        let Some(with) = rules(&sets, kind) else { continue };
        let without = rules(&[], kind).unwrap();
        // All rows of one feature and kind together are what it adds; a feature adds to no kind without a row.
        for other in ["Role", "ClusterRole"] {
            let documented = text.contains(&format!("| `{set}` | {other} |"));
            assert!(documented || rules(&sets, other) == rules(&[], other), "{set}: {other}");
        }
        let rows = text.lines().filter(|other| other.starts_with(&format!("| `{set}` | {kind} |")));
        let mut documented = Vec::new();
        for row in rows {
            let cells: Vec<&str> =
                row.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect();
            let [_, _, group, resources, verbs] = cells.as_slice() else { panic!("{row}") };
            let verbs: Vec<&str> = match *verbs {
                "all" => vec!["create", "delete", "patch", "update", "get", "list", "watch"],
                "read" => vec!["get", "list", "watch"],
                verbs => verbs.split(", ").collect(),
            };
            let group = if *group == "core" { "" } else { group };
            for resource in resources.split(", ") {
                let (resource, names) = resource.split_once(" named ").unwrap_or((resource, ""));
                let mut rule = json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
                if !names.is_empty() {
                    rule["resourceNames"] = json!(names.split(" and ").collect::<Vec<_>>());
                }
                documented.push(rule);
            }
        }
        let added: std::collections::BTreeSet<_> = rights(&with).difference(&rights(&without)).cloned().collect();
        assert_eq!(added, rights(&documented), "{set} ({kind})");
        checked += 1;
    }
    assert!(checked >= 15, "{checked}");
}

#[test]
fn the_host_path_mapper_may_look_at_pods_and_nothing_else() {
    let config = config::load(&[], &["controlPlane.hostPathMapper.enabled=true".to_string()]).unwrap();
    for placement in [Placement::Dedicated, Placement::Hub] {
        let release = Release { name: "team-a", namespace: "tenants", placement, config: &config, version: "0.1.0" };
        let objects = host_objects(&release).unwrap();
        let of = |kind: &str| {
            let mut of_kind = objects.iter().filter(|o| o["kind"] == kind);
            of_kind.find(|o| o["metadata"]["name"] == "team-a-hostpath-mapper").cloned().unwrap()
        };
        assert_eq!(
            of("Role")["rules"],
            json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}])
        );
        let pod = &of("DaemonSet")["spec"]["template"];
        assert_eq!(pod["spec"]["serviceAccountName"], "team-a-hostpath-mapper");
        // Not one of the pods that the API's Service leads to.
        assert_ne!(pod["metadata"]["labels"]["app"], "vcluster");
        let writable = pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap().iter();
        let writable: Vec<&Value> = writable.filter(|m| m["readOnly"] != true).map(|m| &m["mountPath"]).collect();
        assert_eq!(writable, ["/tmp/vcluster/tenants/team-a"]);
    }
    let sets =
        ["controlPlane.hostPathMapper.enabled=true", "controlPlane.hostPathMapper.central=true"].map(str::to_string);
    let config = config::load(&[], &sets).unwrap();
    let placement = Placement::Dedicated;
    let release = Release { name: "team-a", namespace: "tenants", placement, config: &config, version: "0.1.0" };
    assert!(host_objects(&release).unwrap().iter().all(|o| o["kind"] != "DaemonSet"), "the central one is the hub's");
}
