//! Holds the dependency arrows between the crates of this workspace against `edges.txt`.
//!
//! A new edge is a line in that file's diff, and so a decision. Test-only dependencies do not count.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

#[test]
fn crates_depend_on_each_other_only_as_edges_txt_allows() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(here)
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let names: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();

    let mut actual = BTreeSet::new();
    for package in packages {
        let from = package["name"].as_str().expect("a name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let to = dependency["name"].as_str().expect("a name");
            if dependency["kind"] != "dev" && names.contains(to) {
                actual.insert(format!("{from} -> {to}"));
            }
        }
    }

    let allowed: BTreeSet<String> = include_str!("edges.txt")
        .lines()
        .map(|line| line.split('#').next().unwrap_or("").trim())
        .filter(|line| !line.is_empty())
        .flat_map(|line| {
            let (from, to) = line.split_once("->").unwrap_or_else(|| panic!("not an edge: {line}"));
            let from = from.trim().to_owned();
            to.split_whitespace().map(move |to| format!("{from} -> {to}")).collect::<Vec<_>>()
        })
        .collect();

    let unexpected: Vec<_> = actual.difference(&allowed).collect();
    assert!(unexpected.is_empty(), "edges that edges.txt does not allow: {unexpected:#?}");
}
