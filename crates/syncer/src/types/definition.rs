//! CustomResourceDefinitions that virtual clusters take over from their host.

use apimachinery::{Value, json};

use crate::metadata::annotation;
use crate::types::classes::IMPORTED_FROM_ANNOTATION;

/// The version to use: the one asked for, else the first preferred one that is served, else the one that is stored.
pub fn version<'a>(definition: &'a Value, wanted: Option<&str>, preferred: &[&str]) -> Option<&'a Value> {
    let served = || definition.array_at(&["spec", "versions"]).iter().filter(|v| v["served"] == true);
    let named = |name: &str| served().find(|v| v.str_at(&["name"]) == name);
    match wanted {
        Some(wanted) => named(wanted),
        None => preferred
            .iter()
            .find_map(|p| named(p))
            .or_else(|| served().find(|v| v["storage"] == true))
            .or_else(|| served().next()),
    }
}

/// The virtual definition for the host's: one version and nothing that only the host can do, such as conversion.
pub fn virtual_definition(host: &Value, version: &Value) -> Value {
    let mut version = version.clone();
    version["served"] = true.into();
    version["storage"] = true.into();
    let names = host["spec"]["names"].clone();
    let mut metadata = json!({
        "name": (host.str_at(&["metadata", "name"])),
        "annotations": {IMPORTED_FROM_ANNOTATION: "true"},
    });
    // The API groups of Kubernetes itself are protected by it.
    let approved = "api-approved.kubernetes.io";
    if !annotation(host, approved).is_empty() {
        metadata.set_at(&["annotations", approved], annotation(host, approved).into());
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {
            "group": (host.str_at(&["spec", "group"])),
            "names": names,
            "scope": (host.str_at(&["spec", "scope"])),
            "versions": [version],
        },
    })
}

/// Whether the API server serves a definition's kind.
pub fn is_established(definition: &Value) -> bool {
    definition
        .array_at(&["status", "conditions"])
        .iter()
        .any(|c| c.str_at(&["type"]) == "Established" && c.str_at(&["status"]) == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_version_is_taken_over() {
        let host = json!({"metadata": {"name": "as.x.io"}, "spec": {"group": "x.io", "scope": "Namespaced",
            "names": {"plural": "as", "kind": "A"}, "conversion": {"strategy": "Webhook"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": false},
                {"name": "v1", "served": true, "storage": true}, {"name": "v0", "served": false, "storage": false}]}});
        for (wanted, preferred, want) in [
            (None, vec![], Some("v1")),
            (None, vec!["v2", "v1alpha1"], Some("v1alpha1")),
            (Some("v1alpha1"), vec![], Some("v1alpha1")),
            (Some("v0"), vec![], None),
            (Some("v9"), vec!["v1"], None),
        ] {
            let got = version(&host, wanted, &preferred).map(|v| v.str_at(&["name"]));
            assert_eq!(got, want, "{wanted:?} {preferred:?}");
        }
        let made = virtual_definition(&host, version(&host, Some("v1alpha1"), &[]).expect("a version"));
        assert_eq!(made["spec"]["versions"], json!([{"name": "v1alpha1", "served": true, "storage": true}]));
        assert!(made["spec"].get("conversion").is_none());
        assert!(!is_established(&made));
    }
}
