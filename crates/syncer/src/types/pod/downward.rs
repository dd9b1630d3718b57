//! The downward API: what a pod reads about itself is what the tenant knows, not what is on the host.
//!
//! Fields whose value differs on the host are read from annotations that hold the virtual value. Keys under which the host
//! object carries the syncer's own notes are redirected to one that does not exist, which reads as empty.

use apimachinery::Value;

use crate::metadata::string_map;
use crate::names::Names;

pub const NAMESPACE_ANNOTATION: &str = "vcluster.loft.sh/namespace";
pub const NAME_ANNOTATION: &str = "vcluster.loft.sh/name";
pub const UID_ANNOTATION: &str = "vcluster.loft.sh/uid";
pub const LABELS_ANNOTATION: &str = "vcluster.loft.sh/labels";
pub const SERVICE_ACCOUNT_ANNOTATION: &str = "vcluster.loft.sh/service-account-name";
/// All annotations as the tenant sees them, present when the pod reads them.
pub const ANNOTATIONS_ANNOTATION: &str = "alcove.dev/annotations";
const NOTHING: &str = "metadata.annotations['alcove.dev/none']";

/// Translates one `fieldRef`.
pub fn translate_field_ref(field: &mut Value, names: &Names) {
    if let Some(path) = host_field_path(field.str_at(&["fieldPath"]), names) {
        field["fieldPath"] = path.into();
    }
}

fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    path.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")
}

fn host_field_path(path: &str, names: &Names) -> Option<String> {
    let of = |annotation: &str| Some(format!("metadata.annotations['{annotation}']"));
    if let Some(key) = subscript(path, "metadata.labels") {
        let host_key = names.host_label(key);
        // Not a tenant's key: on the host it would show what the syncer wrote.
        if key.starts_with(crate::names::NAMESPACE_LABEL_PREFIX) || names.renamed_label(key).is_some() {
            return Some(NOTHING.into());
        }
        return Some(format!("metadata.labels['{host_key}']"));
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        let own =
            [NAMESPACE_ANNOTATION, NAME_ANNOTATION, UID_ANNOTATION, LABELS_ANNOTATION, SERVICE_ACCOUNT_ANNOTATION];
        if (key.starts_with("vcluster.loft.sh/") && !own.contains(&key)) || key.starts_with("alcove.dev/") {
            return Some(NOTHING.into());
        }
        return None;
    }
    match path {
        "metadata.labels" => of(LABELS_ANNOTATION),
        "metadata.annotations" => of(ANNOTATIONS_ANNOTATION),
        "metadata.name" => of(NAME_ANNOTATION),
        "metadata.namespace" => of(NAMESPACE_ANNOTATION),
        "metadata.uid" => of(UID_ANNOTATION),
        "spec.serviceAccountName" => of(SERVICE_ACCOUNT_ANNOTATION),
        _ => None,
    }
}

/// The file the downward API would write for a map: sorted lines `key="value"`.
pub fn map_file(map: Option<&Value>, skip: impl Fn(&str) -> bool) -> String {
    let lines: Vec<String> = string_map(map)
        .filter(|(key, _)| !skip(key))
        .map(|(key, value)| format!("{key}={}", Value::from(value)))
        .collect();
    lines.join("\n")
}

/// True when some volume of the pod shows all annotations.
pub fn reads_all_annotations(pod: &Value) -> bool {
    pod.array_at(&["spec", "volumes"]).iter().any(|volume| {
        let direct = volume.array_at(&["downwardAPI", "items"]).iter();
        let projected =
            volume.array_at(&["projected", "sources"]).iter().flat_map(|s| s.array_at(&["downwardAPI", "items"]));
        direct.chain(projected).any(|item| item.str_at(&["fieldRef", "fieldPath"]) == "metadata.annotations")
    })
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn fields_read_virtual_values() {
        let names = Names::new("vc", "host");
        for (path, want) in [
            ("metadata.name", "metadata.annotations['vcluster.loft.sh/name']"),
            ("metadata.namespace", "metadata.annotations['vcluster.loft.sh/namespace']"),
            ("metadata.uid", "metadata.annotations['vcluster.loft.sh/uid']"),
            ("metadata.labels", "metadata.annotations['vcluster.loft.sh/labels']"),
            ("metadata.annotations", "metadata.annotations['alcove.dev/annotations']"),
            ("spec.serviceAccountName", "metadata.annotations['vcluster.loft.sh/service-account-name']"),
            ("metadata.labels['app']", "metadata.labels['app']"),
            ("metadata.annotations['mine']", "metadata.annotations['mine']"),
            ("status.podIP", "status.podIP"),
            ("spec.nodeName", "spec.nodeName"),
            // What the host knows and the tenant does not.
            ("metadata.annotations['vcluster.loft.sh/object-host-namespace']", NOTHING),
            ("metadata.annotations['alcove.dev/last-synced']", NOTHING),
            ("metadata.labels['vcluster.loft.sh/ns-label-vc-x-0123456789']", NOTHING),
        ] {
            let mut field = json!({"fieldPath": path});
            translate_field_ref(&mut field, &names);
            assert_eq!(field.str_at(&["fieldPath"]), want, "{path}");
        }
        let mut field = json!({"fieldPath": "metadata.labels['vcluster.loft.sh/managed-by']"});
        translate_field_ref(&mut field, &names);
        assert!(field.str_at(&["fieldPath"]).starts_with("metadata.labels['vcluster.loft.sh/label-vc-x-"));
    }

    #[test]
    fn label_files_look_like_the_kubelets() {
        let labels = json!({"b": "x\"y", "a": "1"});
        assert_eq!(map_file(Some(&labels), |_| false), "a=\"1\"\nb=\"x\\\"y\"");
        assert_eq!(map_file(None, |_| false), "");
    }
}
