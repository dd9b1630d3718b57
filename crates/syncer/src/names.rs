//! Host names: which host object, label key or namespace stands for which virtual one.
//!
//! The rules are pure functions of the virtual cluster's name, its host namespace and the namespace rules. The results are
//! part of the compatibility contract: tools and people find host objects by these names, so they are byte-equal to
//! vCluster's. Where a syncer runs, [`crate::decisions`] has the last word: `Kind::host_name` asks it.
//!
//! Invariants:
//! - The rules always give the same host name for the same virtual name.
//! - A name is never longer than 63 bytes once it had to be hashed; shorter ones are kept readable.
//! - Two different virtual names may give one host name (`a-x-b` in `c`, `a` in `b-x-c`). The second one to be decided gets
//!   [`Names::alternative`]. Who owns a host object is decided by its annotations ([`crate::metadata::Owner`]) too.
//!
//! Follows: vCluster `pkg/util/translate` (single namespace translator).

use std::fmt::Write;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::decisions::Decisions;

/// Longest name that is kept as it is.
const NAME_BYTES_MAX: usize = 63;

/// Label keys that mean something on the host and are therefore renamed when a tenant uses them.
pub const RENAMED_LABELS: [&str; 4] = [
    "release",
    crate::metadata::NAMESPACE_LABEL,
    crate::metadata::MANAGED_BY_LABEL,
    crate::metadata::CONTROLLED_BY_LABEL,
];

const LABEL_PREFIX: &str = "vcluster.loft.sh/label";
/// Prefix of host pod labels that carry the labels of the virtual namespace.
pub const NAMESPACE_LABEL_PREFIX: &str = "vcluster.loft.sh/ns-label";

/// The configmap every namespace has; the host's own must never be taken for a tenant's.
pub const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";

/// A namespaced object's address in one of the two clusters. `namespace` is empty for cluster-scoped objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    pub namespace: String,
    pub name: String,
}

impl NamespacedName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        NamespacedName { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Joins parts with `-`; a result longer than 63 bytes keeps its first 52 and gets a hash of the whole.
pub fn safe_concat(parts: &[&str]) -> String {
    let full = parts.join("-");
    if full.len() <= NAME_BYTES_MAX {
        return full;
    }
    let mut cut = 52;
    // Kubernetes names are ASCII; anything else must not panic.
    while !full.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}-{}", &full[..cut], hex_prefix(&full, 10)).replace(".-", "-")
}

/// The first `digits` hexadecimal digits of a string's SHA-256.
pub fn hex_prefix(s: &str, digits: usize) -> String {
    let digest = Sha256::digest(s.as_bytes());
    let mut out = String::with_capacity(digits + 1);
    for byte in digest.iter().take(digits.div_ceil(2)) {
        write!(out, "{byte:02x}").expect("writing to a string cannot fail");
    }
    out.truncate(digits);
    out
}

/// Base 36 of a big-endian number, as `math/big` prints it.
fn base36(bytes: &[u8]) -> String {
    let mut number = bytes.to_vec();
    let mut digits = Vec::new();
    while number.iter().any(|b| *b != 0) {
        let mut remainder = 0u32;
        for byte in number.iter_mut() {
            let value = remainder * 256 + u32::from(*byte);
            *byte = (value / 36) as u8;
            remainder = value % 36;
        }
        digits.push(b"0123456789abcdefghijklmnopqrstuvwxyz"[remainder as usize]);
    }
    digits.extend(bytes.iter().take_while(|b| **b == 0).map(|_| b'0'));
    digits.reverse();
    String::from_utf8(digits).expect("the alphabet is ASCII")
}

/// One rule of `sync.toHost.namespaces.mappings.byName`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRule {
    /// Virtual namespace, or a prefix ending in `*`.
    pub from: String,
    /// Host namespace; `*` stands for what `from`'s matched, `${name}` for the virtual cluster's name.
    pub to: String,
}

/// The decisions of the syncer that these names belong to; none for the bare rules.
#[derive(Clone, Default)]
struct Decided(Option<Arc<Decisions>>);

impl std::fmt::Debug for Decided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "decided" } else { "rules" })
    }
}

/// Everything that names depend on.
#[derive(Clone, Debug)]
pub struct Names {
    decided: Decided,
    virtual_cluster: String,
    host_namespace: String,
    namespace_rules: Vec<NamespaceRule>,
}

impl Names {
    /// Names of the virtual cluster `virtual_cluster` that is installed in `host_namespace`.
    pub fn new(virtual_cluster: impl Into<String>, host_namespace: impl Into<String>) -> Names {
        Names {
            virtual_cluster: virtual_cluster.into(),
            host_namespace: host_namespace.into(),
            namespace_rules: Vec::new(),
            decided: Decided::default(),
        }
    }

    /// The same with decisions, which go before the rules.
    pub fn with_decisions(mut self, decisions: Arc<Decisions>) -> Names {
        self.decided = Decided(Some(decisions));
        self
    }

    pub(crate) fn decisions(&self) -> Option<&Decisions> {
        self.decided.0.as_deref()
    }

    /// The same with namespace sync: virtual namespaces that match a rule have a host namespace of their own.
    pub fn with_namespace_rules(mut self, rules: Vec<NamespaceRule>) -> Names {
        // Exact rules win over patterns, longer patterns over shorter ones, whatever order they were written in.
        self.namespace_rules = rules;
        self.namespace_rules.sort_by_key(|r| (r.from.ends_with('*'), std::cmp::Reverse(r.from.len()), r.from.clone()));
        self
    }

    pub fn virtual_cluster(&self) -> &str {
        &self.virtual_cluster
    }

    /// The namespace this virtual cluster is installed in.
    pub fn install_namespace(&self) -> &str {
        &self.host_namespace
    }

    pub fn syncs_namespaces(&self) -> bool {
        !self.namespace_rules.is_empty()
    }

    /// The host namespace a rule gives to a virtual namespace.
    pub fn mapped_namespace(&self, virtual_namespace: &str) -> Option<String> {
        self.namespace_rules.iter().find_map(|rule| {
            let to = rule.to.replace("${name}", &self.virtual_cluster);
            match rule.from.replace("${name}", &self.virtual_cluster).strip_suffix('*') {
                Some(prefix) => {
                    let rest = virtual_namespace.strip_prefix(prefix)?;
                    Some(match to.strip_suffix('*') {
                        Some(to_prefix) => safe_concat(&[&format!("{to_prefix}{rest}")]),
                        None => to,
                    })
                }
                None => (rule.from.replace("${name}", &self.virtual_cluster) == virtual_namespace).then_some(to),
            }
        })
    }

    /// The host namespace that objects of a virtual namespace live in. Empty for cluster-scoped objects.
    pub fn host_namespace(&self, virtual_namespace: &str) -> String {
        if virtual_namespace.is_empty() {
            return String::new();
        }
        self.mapped_namespace(virtual_namespace).unwrap_or_else(|| self.host_namespace.clone())
    }

    /// True for host namespaces that may hold objects of this virtual cluster.
    pub fn is_target_namespace(&self, host_namespace: &str) -> bool {
        if host_namespace == self.host_namespace {
            return true;
        }
        self.namespace_rules.iter().any(|rule| {
            let to = rule.to.replace("${name}", &self.virtual_cluster);
            match to.strip_suffix('*') {
                Some(prefix) => host_namespace.starts_with(prefix),
                None => to == host_namespace,
            }
        })
    }

    /// The host object for a namespaced virtual object. An empty name stays empty: nothing is referred to.
    pub fn host(&self, name: &str, virtual_namespace: &str) -> NamespacedName {
        if name.is_empty() {
            return NamespacedName::default();
        }
        let namespace = self.host_namespace(virtual_namespace);
        if self.mapped_namespace(virtual_namespace).is_some() {
            return NamespacedName { namespace, name: name.to_owned() };
        }
        NamespacedName { namespace, name: safe_concat(&[name, "x", virtual_namespace, "x", &self.virtual_cluster]) }
    }

    /// The name part of [`Names::host`].
    pub fn host_name(&self, name: &str, virtual_namespace: &str) -> String {
        self.host(name, virtual_namespace).name
    }

    /// Like [`Names::host`] for ConfigMaps: a namespace of its own already has the host's root CA under that name.
    pub fn host_config_map(&self, name: &str, virtual_namespace: &str) -> NamespacedName {
        let host = self.host(name, virtual_namespace);
        if host.name == ROOT_CA_CONFIG_MAP {
            let name = safe_concat(&["vcluster", ROOT_CA_CONFIG_MAP, "x", &self.virtual_cluster]);
            return NamespacedName { namespace: host.namespace, name };
        }
        host
    }

    /// Like [`Names::host`] for Services: the API server's own Service is the one the control plane is installed with.
    pub fn host_service(&self, name: &str, virtual_namespace: &str) -> NamespacedName {
        if virtual_namespace == "default" && name == "kubernetes" {
            return NamespacedName::new(self.host_namespace.clone(), self.virtual_cluster.clone());
        }
        self.host(name, virtual_namespace)
    }

    /// The short host name that resource claims have.
    pub fn host_name_short(&self, name: &str, virtual_namespace: &str) -> String {
        if name.is_empty() {
            return String::new();
        }
        if self.mapped_namespace(virtual_namespace).is_some() {
            return name.to_owned();
        }
        let full = format!("{name}-x-{virtual_namespace}-x-{}", self.virtual_cluster);
        let digest = base36(&Sha256::digest(full.as_bytes()));
        format!("v{}", &digest[..digest.len().min(13)])
    }

    /// The host object for a cluster-scoped virtual object.
    pub fn host_name_cluster(&self, name: &str) -> String {
        if name.is_empty() {
            return String::new();
        }
        safe_concat(&["vcluster", name, "x", &self.host_namespace, "x", &self.virtual_cluster])
    }

    /// A name for an object whose usual one another object has: its readable beginning and a hash of what it is.
    pub fn alternative(&self, virtual_: &NamespacedName, rule: &NamespacedName, nth: u32) -> NamespacedName {
        let mut cut = rule.name.len().min(52);
        while !rule.name.is_char_boundary(cut) {
            cut -= 1;
        }
        let hash = hex_prefix(&format!("{}/{}/{}#{nth}", self.virtual_cluster, virtual_.namespace, virtual_.name), 10);
        let name = format!("{}-{hash}", &rule.name[..cut]).replace(".-", "-");
        NamespacedName { namespace: rule.namespace.clone(), name }
    }

    /// The value of the managed-by label on cluster-scoped host objects.
    pub fn cluster_marker(&self) -> String {
        safe_concat(&[&self.host_namespace, "x", &self.virtual_cluster])
    }

    /// The host Service that stands for a node's kubelet.
    pub fn node_service(&self, node: &str) -> String {
        safe_concat(&[&self.virtual_cluster, "node", &node.replace('.', "-")])
    }

    /// The host Secret that holds a pod's service account tokens.
    pub fn token_secret(&self, pod: &str, virtual_namespace: &str) -> NamespacedName {
        self.host(&format!("{pod}-sa-token"), virtual_namespace)
    }

    fn prefixed_label(&self, prefix: &str, key: &str) -> String {
        safe_concat(&[prefix, &self.virtual_cluster, "x", &hex_prefix(key, 10)])
    }

    /// The key a virtual label has on the host.
    pub fn host_label(&self, key: &str) -> String {
        if RENAMED_LABELS.contains(&key) { self.prefixed_label(LABEL_PREFIX, key) } else { key.to_owned() }
    }

    /// The virtual label a host label stands for: `None` for keys that are the syncer's own.
    pub fn virtual_label(&self, key: &str) -> Option<String> {
        if RENAMED_LABELS.contains(&key) || key.starts_with(NAMESPACE_LABEL_PREFIX) {
            return None;
        }
        if let Some(original) = self.renamed_label(key) {
            return Some(original.to_owned());
        }
        Some(key.to_owned())
    }

    /// The label that was renamed to this key.
    pub fn renamed_label(&self, key: &str) -> Option<&'static str> {
        if !key.starts_with(LABEL_PREFIX) {
            return None;
        }
        RENAMED_LABELS.into_iter().find(|original| self.prefixed_label(LABEL_PREFIX, original) == key)
    }

    /// The host pod label that carries a label of the pod's virtual namespace.
    pub fn namespace_label(&self, key: &str) -> String {
        self.prefixed_label(NAMESPACE_LABEL_PREFIX, key)
    }

    /// Replaces host names in a text by the names the tenant knows.
    ///
    /// `known` is the object the text is about, when there is one; other names are recognised by their shape.
    pub fn to_virtual_text(&self, text: &str, known: Option<(&NamespacedName, &NamespacedName)>) -> String {
        let mut text = text.to_owned();
        if let Some((host, virtual_)) = known {
            if !host.namespace.is_empty() {
                text = text.replace(&host.to_string(), &virtual_.to_string());
                // The kubelet's form: pod=NAME_NAMESPACE(UID).
                let kubelet = |n: &NamespacedName| format!("{}_{}", n.name, n.namespace);
                text = text.replace(&kubelet(host), &kubelet(virtual_));
            }
            if !host.name.is_empty() {
                text = text.replace(&host.name, &virtual_.name);
            }
        }
        let suffix = format!("-x-{}", self.virtual_cluster);
        let host_prefix = format!("{}/", self.host_namespace);
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '/' | '_');
        while !rest.is_empty() {
            let word_end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
            let (word, tail) = rest.split_at(word_end);
            out.push_str(&self.virtual_word(word, &suffix, &host_prefix));
            let gap_end = tail.find(is_word).unwrap_or(tail.len());
            out.push_str(&tail[..gap_end]);
            rest = &tail[gap_end..];
        }
        out
    }

    fn virtual_word(&self, word: &str, suffix: &str, host_prefix: &str) -> String {
        // A sentence may end right after a name.
        let bare = word.trim_end_matches('.');
        let dots = &word[bare.len()..];
        let (prefix, name) = match bare.strip_prefix(host_prefix) {
            Some(name) => (true, name),
            None => (false, bare),
        };
        let translated = name.strip_suffix(suffix).and_then(|n| n.rsplit_once("-x-"));
        match translated {
            Some((name, namespace)) if prefix => format!("{namespace}/{name}{dots}"),
            Some((name, _)) => format!("{name}{dots}"),
            None if prefix => format!("{name}{dots}"),
            None if bare == self.host_namespace && bare != "default" => format!("the host namespace{dots}"),
            None => word.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_equal_the_reference_vectors() {
        // Columns: form, name, virtual namespace, virtual cluster, host namespace, expected.
        // Source: computed independently from the rules of vCluster's translator.
        let table = include_str!("../tests/data/names.tsv");
        let mut rows = 0;
        for line in table.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
            let [form, name, namespace, cluster, host_namespace, want] =
                line.split('\t').collect::<Vec<_>>().try_into().unwrap_or_else(|c| panic!("bad row {c:?}"));
            let names = Names::new(cluster, host_namespace);
            let got = match form {
                "namespaced" => names.host_name(name, namespace),
                "cluster" => names.host_name_cluster(name),
                "short" => names.host_name_short(name, namespace),
                "label" => names.host_label(name),
                "ns-label" => names.namespace_label(name),
                "marker" => names.cluster_marker(),
                "node" => names.node_service(name),
                "token" => names.token_secret(name, namespace).name,
                other => panic!("unknown form {other}"),
            };
            assert_eq!(got, want, "row {line}");
            if form == "namespaced" {
                assert!(got.len() <= 63 || got.len() == want.len());
            }
            rows += 1;
        }
        assert!(rows >= 200, "{rows} rows");
    }

    #[test]
    fn empty_names_refer_to_nothing() {
        let names = Names::new("vc", "host");
        assert_eq!(names.host("", "default"), NamespacedName::default());
        assert_eq!(names.host_name_cluster(""), "");
        assert_eq!(names.host_name_short("", "default"), "");
    }

    #[test]
    fn special_objects_have_special_names() {
        let names = Names::new("vc", "host");
        assert_eq!(names.host_service("kubernetes", "default").to_string(), "host/vc");
        assert_eq!(names.host_service("kubernetes", "other").to_string(), "host/kubernetes-x-other-x-vc");
        assert_eq!(names.host_config_map("kube-root-ca.crt", "default").name, "kube-root-ca.crt-x-default-x-vc");
        let mapped = names.with_namespace_rules(vec![NamespaceRule { from: "team-*".into(), to: "${name}-*".into() }]);
        assert_eq!(
            mapped.host_config_map("kube-root-ca.crt", "team-a").to_string(),
            "vc-a/vcluster-kube-root-ca.crt-x-vc"
        );
    }

    #[test]
    fn namespace_rules_prefer_the_most_exact_one() {
        let names = Names::new("vc", "host").with_namespace_rules(vec![
            NamespaceRule { from: "*".into(), to: "all-*".into() },
            NamespaceRule { from: "team-*".into(), to: "${name}-*".into() },
            NamespaceRule { from: "team-x".into(), to: "special".into() },
        ]);
        for (namespace, want) in
            [("team-x", "special"), ("team-y", "vc-y"), ("default", "all-default"), ("team", "all-team")]
        {
            assert_eq!(names.host("obj", namespace).to_string(), format!("{want}/obj"), "namespace {namespace}");
            assert!(names.is_target_namespace(want));
        }
        assert!(!names.is_target_namespace("kube-system"));
        assert!(names.is_target_namespace("host"));
    }

    #[test]
    fn labels_with_a_meaning_on_the_host_are_renamed_and_found_again() {
        let names = Names::new("vc", "host");
        for key in RENAMED_LABELS {
            let host = names.host_label(key);
            assert_ne!(host, key);
            assert_eq!(names.virtual_label(&host).as_deref(), Some(key));
            assert_eq!(names.virtual_label(key), None, "the syncer's own {key} is not the tenant's");
        }
        assert_eq!(names.host_label("app"), "app");
        assert_eq!(names.virtual_label("app").as_deref(), Some("app"));
        assert_eq!(names.virtual_label(&names.namespace_label("env")), None);
    }

    #[test]
    fn texts_from_the_host_show_virtual_names() {
        let names = Names::new("vc", "host-ns");
        let host = NamespacedName::new("host-ns", "web-x-default-x-vc");
        let virtual_ = NamespacedName::new("default", "web");
        for (text, want) in [
            (
                "Successfully assigned host-ns/web-x-default-x-vc to node-1",
                "Successfully assigned default/web to node-1",
            ),
            (r#"configmap "app-x-default-x-vc" not found"#, r#"configmap "app" not found"#),
            ("Created pod web-x-default-x-vc.", "Created pod web."),
            ("secret host-ns/tls-x-prod-x-vc is missing", "secret prod/tls is missing"),
            ("exceeded quota in namespace host-ns", "exceeded quota in namespace the host namespace"),
            ("nothing to see", "nothing to see"),
            ("", ""),
        ] {
            assert_eq!(names.to_virtual_text(text, Some((&host, &virtual_))), want, "text {text}");
        }
    }

    #[test]
    fn names_that_are_not_ascii_do_not_panic() {
        assert!(safe_concat(&["é".repeat(60).as_str(), "x"]).len() <= 70);
    }
}
