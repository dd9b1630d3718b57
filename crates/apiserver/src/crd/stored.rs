//! CustomResourceDefinitions as kube-apiserver stores them: in version v1beta1, which nobody is served any more.
//!
//! What all versions have in common stands above them there, and some names differ.
//!
//! Follows: `apiextensions-apiserver/pkg/apis/apiextensions/v1/conversion.go`, `v1beta1/types.go`.

use apimachinery::{Value, json};

const V1BETA1: &str = "apiextensions.k8s.io/v1beta1";

/// Makes a stored definition one of version v1; leaves anything else alone.
pub(crate) fn upgrade(object: &mut Value) {
    if object.str_at(&["kind"]) != "CustomResourceDefinition" || object.str_at(&["apiVersion"]) != V1BETA1 {
        return;
    }
    object["apiVersion"] = "apiextensions.k8s.io/v1".into();
    let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    let version = spec.remove_at(&["version"]).unwrap_or_default();
    let named = version.as_str().is_some_and(|name| !name.is_empty());
    if spec.array_at(&["versions"]).is_empty() && named {
        spec["versions"] = json!([{"name": (version.clone()), "served": true, "storage": true}]);
    }
    for (above, within) in [
        ("subresources", "subresources"),
        ("validation", "schema"),
        ("additionalPrinterColumns", "additionalPrinterColumns"),
        ("selectableFields", "selectableFields"),
    ] {
        let Some(common) = spec.remove_at(&[above]).filter(|value| !value.is_null()) else { continue };
        for version in spec.get_mut("versions").and_then(Value::as_array_mut).into_iter().flatten() {
            version[within] = common.clone();
        }
    }
    for version in spec.get_mut("versions").and_then(Value::as_array_mut).into_iter().flatten() {
        let columns = version.get_mut("additionalPrinterColumns").and_then(Value::as_array_mut);
        for column in columns.into_iter().flatten() {
            if let Some(path) = column.remove_at(&["JSONPath"]) {
                column["jsonPath"] = path;
            }
        }
    }
    if let Some(conversion) = spec.get_mut("conversion").filter(|conversion| conversion.is_object()) {
        let client = conversion.remove_at(&["webhookClientConfig"]).filter(|value| !value.is_null());
        let reviews = conversion.remove_at(&["conversionReviewVersions"]).filter(|value| !value.is_null());
        if client.is_some() || reviews.is_some() {
            conversion["webhook"] = json!({});
        }
        if let Some(client) = client {
            conversion["webhook"]["clientConfig"] = client;
        }
        if let Some(reviews) = reviews {
            conversion["webhook"]["conversionReviewVersions"] = reviews;
        }
    }
    if spec["preserveUnknownFields"] == false {
        spec.remove_at(&["preserveUnknownFields"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_definitions_are_read_as_v1() {
        let mut stored = json!({
            "kind": "CustomResourceDefinition", "apiVersion": V1BETA1, "metadata": {"name": "things.x.io"},
            "spec": {
                "group": "x.io", "version": "v1", "scope": "Namespaced",
                "names": {"plural": "things", "kind": "Thing"},
                "validation": {"openAPIV3Schema": {"type": "object"}},
                "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "Age", "type": "date", "JSONPath": ".metadata.creationTimestamp"}],
                "versions": [{"name": "v1", "served": true, "storage": true}, {"name": "v2", "served": true, "storage": false}],
                "conversion": {"strategy": "Webhook", "webhookClientConfig": {"url": "https://x"}, "conversionReviewVersions": ["v1"]},
                "preserveUnknownFields": false,
            },
        });
        upgrade(&mut stored);
        let version = |name: &str, storage: bool| {
            json!({
                "name": name, "served": true, "storage": storage, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object"}},
                "additionalPrinterColumns": [{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
            })
        };
        assert_eq!(
            stored,
            json!({
                "kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
                "metadata": {"name": "things.x.io"},
                "spec": {
                    "group": "x.io", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                    "versions": [(version("v1", true)), (version("v2", false))],
                    "conversion": {"strategy": "Webhook", "webhook": {
                        "clientConfig": {"url": "https://x"}, "conversionReviewVersions": ["v1"],
                    }},
                },
            })
        );
    }

    #[test]
    fn other_objects_stay_as_they_are() {
        for object in [
            json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "spec": {"version": "x"}}),
            json!({"kind": "Thing", "apiVersion": V1BETA1, "spec": {"version": "x"}}),
        ] {
            let mut same = object.clone();
            upgrade(&mut same);
            assert_eq!(same, object);
        }
    }
}
