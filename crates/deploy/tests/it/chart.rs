//! `charts/alcove` renders what `deploy` renders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use deploy::hub::{HubRelease, HubValues, RULES, hub_objects};
use deploy::{Placement, Release, host_objects};
use serde_json::{Value, json};

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/alcove")
}

/// The value files that both render: `ci` in the chart.
fn value_files(chart: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(chart.join("ci")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// `UPDATE_CHART=1 cargo test -p deploy` writes them.
#[test]
fn the_generated_files_of_the_chart_are_those_of_the_configuration() {
    let defaults = config::defaults();
    let pretty = |value: &Value| format!("{}\n", config::stored::pretty(value));
    let header =
        "# Every key of vcluster.yaml with its default. This file is generated: UPDATE_CHART=1 cargo test -p deploy\n";
    let wanted = [
        ("values.yaml", format!("{header}{}", config::yaml::to_string(defaults.values()).unwrap())),
        ("values.schema.json", pretty(&config::json_schema())),
        ("files/defaults.json", pretty(defaults.values())),
        ("../alcove-hub/files/rules.json", pretty(&json!({"rules": hub_rules()}))),
    ];
    let update = std::env::var_os("UPDATE_CHART").is_some();
    for (name, text) in wanted {
        let path = chart().join(name);
        if update {
            fs::write(&path, &text).unwrap();
        }
        assert!(
            fs::read_to_string(&path).unwrap_or_default() == text,
            "charts/alcove/{name} is not up to date: UPDATE_CHART=1 cargo test -p deploy"
        );
    }
    for name in ["alcove", "alcove-hub"] {
        let text = fs::read_to_string(chart().parent().unwrap().join(name).join("Chart.yaml")).unwrap();
        let described: Value = config::yaml::from_str(&text).unwrap();
        assert_eq!(described["version"], version(), "charts/{name}");
        assert_eq!(described["appVersion"], version(), "charts/{name}");
    }
}

fn hub_rules() -> Vec<Value> {
    let rule = |(groups, resources, verbs): &(&[&str], &[&str], &[&str])| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    RULES.iter().map(rule).collect()
}

fn helm(arguments: &[&str]) -> Result<String, String> {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new("helm").args(arguments).env("HOME", home.path()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(error) }
}

/// By kind, namespace and name; no object may come twice.
fn keyed(objects: Vec<Value>) -> BTreeMap<(String, String, String), Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let mut all = BTreeMap::new();
    for object in objects {
        let metadata = &object["metadata"];
        let key = (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
        assert!(all.insert(key.clone(), object).is_none(), "{key:?} is rendered twice");
    }
    all
}

/// Where two trees differ, as `path: left | right`.
fn differences(path: &str, left: &Value, right: &Value, found: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let missing = Value::String("(missing)".into());
                let path = format!("{path}.{key}");
                differences(&path, a.get(key).unwrap_or(&missing), b.get(key).unwrap_or(&missing), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{index}]"), a, b, found);
            }
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{path}:\n    chart  {a}\n    deploy {b}")),
    }
}

/// Renders every value file of a chart both ways and says where they differ.
fn compare(chart: &Path, release: &str, namespaces: [&str; 2], ours: impl Fn(config::Source, &str) -> Vec<Value>) {
    let mut wrong = Vec::new();
    for (file, namespace) in value_files(chart).iter().zip(namespaces.into_iter().cycle()) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let arguments = ["template", release, chart.to_str().unwrap(), "-n", namespace, "-f", file.to_str().unwrap()];
        let text = helm(&arguments).unwrap_or_else(|error| panic!("helm template -f {name}:\n{error}"));
        let from_chart = keyed(config::yaml::documents(&text).unwrap());
        let source = config::Source::new(&name, fs::read_to_string(file).unwrap());
        let from_deploy = keyed(ours(source, namespace));
        let mut keys: Vec<_> = from_chart.keys().chain(from_deploy.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let missing = Value::String("(missing)".into());
            let (left, right) = (from_chart.get(key).unwrap_or(&missing), from_deploy.get(key).unwrap_or(&missing));
            let mut found = Vec::new();
            differences("", left, right, &mut found);
            if !found.is_empty() {
                wrong.push(format!("{name}: {key:?}\n  {}", found.join("\n  ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A namespace so long that the names of cluster-scoped objects are shortened.
const LONG: &str = "a-namespace-with-a-name-of-nearly-the-greatest-length-63-chars";

#[test]
#[cfg_attr(not(helm), ignore = "there is no helm in PATH")]
fn the_chart_and_the_command_render_the_same_objects() {
    assert!(value_files(&chart()).len() >= 12);
    compare(&chart(), "team-a", ["tenants", LONG], |source, namespace| {
        let config = config::load(&[source], &[]).unwrap();
        let placement = Placement::Dedicated;
        host_objects(&Release { name: "team-a", namespace, placement, config: &config, version: version() }).unwrap()
    });
}

#[test]
#[cfg_attr(not(helm), ignore = "there is no helm in PATH")]
fn the_chart_of_the_hub_and_the_command_render_the_same_objects() {
    compare(&chart().join("../alcove-hub"), "alcove-hub", ["alcove-system", LONG], |source, namespace| {
        let values = HubValues::load(&[source], &[]).unwrap();
        hub_objects(&HubRelease { name: "alcove-hub", namespace, values: &values, version: version() })
    });
}

#[test]
fn values_of_the_hub_that_nobody_knows_are_refused() {
    for (set, want) in [
        ("imag.tag=x", "unknown field `imag`"),
        ("persistence.sise=1Gi", "unknown field `sise`"),
        ("tolerations=x", "expected a sequence"),
        ("image", "--set image"),
    ] {
        let error = HubValues::load(&[], &[set.to_string()]).unwrap_err().to_string();
        assert!(error.contains(want), "{set}: {error}");
    }
}

#[test]
#[cfg_attr(not(helm), ignore = "there is no helm in PATH")]
fn the_chart_refuses_what_the_command_refuses() {
    let chart = chart();
    for (release, set, want) in [
        ("team-a", "sync.toHost.pod.enabled=true", "pod"),
        ("team-a", "controlPlane.service.httpsNodePort=text", "httpsNodePort"),
        ("team-a", "controlPlane.statefulSet.highAvailability.replicas=2", "must be 1 with the embedded database"),
        ("team-a", "controlPlane.service.enabled=false", "must be true"),
        ("1team", "", "cannot be the name of a virtual cluster"),
        (&"a".repeat(53), "", "cannot be the name of a virtual cluster"),
    ] {
        let error = helm(&["template", release, chart.to_str().unwrap(), "--set", set]).expect_err(set);
        assert!(error.contains(want), "{release} {set}: {error}");
    }
    helm(&["lint", chart.to_str().unwrap()]).unwrap();
}
