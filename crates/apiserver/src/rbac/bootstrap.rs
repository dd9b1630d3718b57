//! The roles and bindings that every cluster has, from a compact text.
//!
//! Follows: `plugin/pkg/auth/authorizer/rbac/bootstrappolicy`.

use apimachinery::{Value, json};

const TEXT: &str = include_str!("bootstrap.txt");
const GROUP: &str = "rbac.authorization.k8s.io";

/// One object of the bootstrap policy: the plural resource, the namespace (empty for cluster scope) and the object.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    pub resource: &'static str,
    pub namespace: String,
    pub object: Value,
}

/// All objects of the bootstrap policy, roles before bindings.
pub fn objects() -> Vec<Bootstrap> {
    let mut objects: Vec<Bootstrap> = Vec::new();
    for line in TEXT.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
        match line.strip_prefix("  ") {
            Some(text) => {
                let role = objects.last_mut().expect("a rule follows its role");
                role.object.make_object().get_or_insert_with("rules", || Value::Array(Vec::new()));
                role.object["rules"].as_array_mut().expect("made above").push(rule(text));
            }
            None => objects.push(object(line)),
        }
    }
    objects
}

fn strings(text: &str) -> Value {
    text.split(',').map(|s| s.trim_matches('"')).collect::<Vec<_>>().into()
}

fn rule(text: &str) -> Value {
    let mut rule = Value::object();
    if let Some((verbs, paths)) = text.split_once(" @ ") {
        rule["verbs"] = strings(verbs);
        rule["nonResourceURLs"] = strings(paths);
        return rule;
    }
    let mut parts = text.split(" / ");
    for key in ["verbs", "apiGroups", "resources", "resourceNames"] {
        if let Some(part) = parts.next() {
            rule[key] = strings(part);
        }
    }
    rule
}

fn object(line: &str) -> Bootstrap {
    let (head, binding) = match line.split_once(" -> ") {
        Some((head, binding)) => (head, Some(binding)),
        None => (line, None),
    };
    let mut words = head.split(' ');
    let (resource, kind) = match words.next() {
        Some("clusterrole") => ("clusterroles", "ClusterRole"),
        Some("role") => ("roles", "Role"),
        Some("clusterrolebinding") => ("clusterrolebindings", "ClusterRoleBinding"),
        Some("rolebinding") => ("rolebindings", "RoleBinding"),
        other => unreachable!("the text is ours: {other:?}"),
    };
    let name = words.next().unwrap_or_default();
    let (namespace, name) =
        if kind.starts_with("Cluster") { ("", name) } else { name.split_once('/').unwrap_or(("", name)) };
    let mut object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}}});
    if !namespace.is_empty() {
        object.set_at(&["metadata", "namespace"], namespace.into());
    }
    for word in words {
        match word.split_once('=') {
            Some(("aggregates", label)) => {
                let mut selector = Value::object();
                selector.set_at(&["matchLabels", label], "true".into());
                object.set_at(&["aggregationRule", "clusterRoleSelectors"], Value::Array(vec![selector]));
                object["rules"] = Value::Array(Vec::new());
            }
            Some((label, value)) => object.set_at(&["metadata", "labels", label], value.into()),
            None => unreachable!("the text is ours: {word}"),
        }
    }
    if let Some(binding) = binding {
        let mut words = binding.split(' ').filter(|w| !w.is_empty());
        let (role_kind, role) = words.next().and_then(|r| r.split_once('/')).unwrap_or_default();
        object["roleRef"] = json!({"apiGroup": GROUP, "kind": role_kind, "name": role});
        let subjects = words.map(|word| match word.split_once(':').unwrap_or_default() {
            ("ServiceAccount", account) => {
                let (namespace, name) = account.split_once('/').unwrap_or_default();
                json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
            }
            (kind, name) => json!({"apiGroup": GROUP, "kind": kind, "name": name}),
        });
        object["subjects"] = Value::Array(subjects.collect());
    }
    Bootstrap { resource, namespace: namespace.to_owned(), object }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_reads_as_objects() {
        let objects = objects();
        let find = |resource: &str, name: &str| {
            objects
                .iter()
                .find(|o| o.resource == resource && o.object.str_at(&["metadata", "name"]) == name)
                .unwrap_or_else(|| panic!("no {resource} {name}"))
        };
        let count = |resource: &str| objects.iter().filter(|o| o.resource == resource).count();
        assert!(count("clusterroles") > 60 && count("clusterrolebindings") > 40, "{} roles", count("clusterroles"));
        assert_eq!(
            find("clusterroles", "cluster-admin").object["rules"],
            json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["*"], "nonResourceURLs": ["*"]}])
        );
        let view = &find("clusterroles", "view").object;
        assert_eq!(view.str_at(&["metadata", "labels", "rbac.authorization.k8s.io/aggregate-to-edit"]), "true");
        let binding = find("rolebindings", "system::leader-locking-kube-scheduler");
        assert_eq!(binding.namespace, "kube-system");
        assert_eq!(
            binding.object["subjects"][1],
            json!({"kind": "ServiceAccount", "namespace": "kube-system", "name": "kube-scheduler"})
        );
    }
}
