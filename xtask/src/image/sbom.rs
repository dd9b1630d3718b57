//! The bill of materials: which crates are in the binary, as SPDX 2.3.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::archive::timestamp;

pub fn write(root: &Path, triple: &str, version: &str, time: u64) -> anyhow::Result<String> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", triple])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    bill(&serde_json::from_slice(&output.stdout)?, version, time)
}

/// The document for what `cargo metadata` says.
fn bill(metadata: &Value, version: &str, time: u64) -> anyhow::Result<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (text(&node["id"]), node)).collect();
    let root = packages.iter().find(|(_, package)| package["name"] == "cli").context("no package cli")?.0.clone();

    // What is linked: normal dependencies, from the binary on.
    let mut linked = BTreeSet::new();
    let mut edges = BTreeSet::new();
    let mut todo = vec![root.clone()];
    while let Some(id) = todo.pop() {
        if !linked.insert(id.clone()) {
            continue;
        }
        for dependency in nodes.get(&id).map(|node| list(&node["deps"])).unwrap_or_default() {
            let normal = list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            if normal {
                edges.insert((id.clone(), text(&dependency["pkg"])));
                todo.push(text(&dependency["pkg"]));
            }
        }
    }

    let reference = |id: &str| -> String {
        let package = &packages[id];
        let name = format!("SPDXRef-{}-{}", text(&package["name"]), text(&package["version"]));
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
    };
    let described: Vec<Value> = linked
        .iter()
        .map(|id| {
            let package = &packages[id];
            let (name, version) = (text(&package["name"]), text(&package["version"]));
            let name = if *id == root { "alcove".to_string() } else { name };
            let ours = package["source"].is_null();
            // Cargo's old way of writing a choice.
            let licence = text(&package["license"]).replace('/', " OR ");
            let download = format!("https://crates.io/api/v1/crates/{name}/{version}/download");
            let mut described = json!({
                "SPDXID": reference(id),
                "name": name,
                "versionInfo": version,
                "downloadLocation": if ours { "NOASSERTION".to_string() } else { download },
                "licenseConcluded": "NOASSERTION",
                "licenseDeclared": if licence.is_empty() { "NOASSERTION".to_string() } else { licence },
                "copyrightText": "NOASSERTION",
                "filesAnalyzed": false,
            });
            if !ours {
                described["externalRefs"] = json!([{
                    "referenceCategory": "PACKAGE-MANAGER",
                    "referenceType": "purl",
                    "referenceLocator": format!("pkg:cargo/{name}@{version}"),
                }]);
            }
            described
        })
        .collect();
    let mut relationships = vec![json!({
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": reference(&root),
    })];
    relationships.extend(edges.iter().map(|(from, to)| {
        json!({"spdxElementId": reference(from), "relationshipType": "DEPENDS_ON", "relatedSpdxElement": reference(to)})
    }));
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("alcove-{version}"),
        "documentNamespace": format!("https://alcove.dev/spdx/alcove-{version}-{time}"),
        "creationInfo": {"created": timestamp(time), "creators": ["Tool: cargo-xtask-image"]},
        "packages": described,
        "relationships": relationships,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_listed_and_nothing_else() {
        let package = |id: &str, name: &str, source: Value| json!({"id": id, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0", "source": source});
        let metadata = json!({
            "packages": [
                package("a", "cli", Value::Null),
                package("b", "linked", json!("registry")),
                package("c", "build-only", json!("registry")),
                package("d", "test-only", json!("registry")),
            ],
            "resolve": {"nodes": [
                {"id": "a", "deps": [
                    {"pkg": "b", "dep_kinds": [{"kind": null}]},
                    {"pkg": "c", "dep_kinds": [{"kind": "build"}]},
                    {"pkg": "d", "dep_kinds": [{"kind": "dev"}]},
                ]},
                {"id": "b", "deps": []},
            ]},
        });
        let document: Value = serde_json::from_str(&bill(&metadata, "1.2.3", 0).unwrap()).unwrap();
        let names: Vec<&str> =
            document["packages"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["alcove", "linked"]);
        assert_eq!(document["packages"][1]["externalRefs"][0]["referenceLocator"], "pkg:cargo/linked@1.0.0");
        assert_eq!(document["packages"][1]["licenseDeclared"], "MIT OR Apache-2.0");
        assert_eq!(document["relationships"][1]["relatedSpdxElement"], "SPDXRef-linked-1.0.0");
    }
}
