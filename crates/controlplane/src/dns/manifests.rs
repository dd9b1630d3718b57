//! The objects of a deployed CoreDNS, as vCluster deploys it. Pure.

use apimachinery::{Value, json};
use config::Config;

use super::{LABEL, NAMESPACE, RESOLV_CONF};

const IMAGE_REGISTRY: &str = "docker.io";
/// CoreDNS of each Kubernetes version; the first is for all others.
const IMAGES: [(&str, &str); 7] = [
    ("1.36", "coredns/coredns:1.14.2"),
    ("1.35", "coredns/coredns:1.14.1"),
    ("1.34", "coredns/coredns:1.12.1"),
    ("1.33", "coredns/coredns:1.12.0"),
    ("1.32", "coredns/coredns:1.11.3"),
    ("1.31", "coredns/coredns:1.11.3"),
    ("1.30", "coredns/coredns:1.11.3"),
];
/// The user of the container: nobody's, and not root's.
const USER: i64 = 1001;

/// The labels of CoreDNS's pods.
pub(super) fn labels() -> Value {
    let mut labels = json!({});
    labels[LABEL.0] = LABEL.1.into();
    labels
}

/// All objects in the order in which they are applied.
pub(super) fn objects(config: &Config) -> Result<Vec<Value>, String> {
    let coredns = &config.control_plane.coredns;
    if !coredns.overwrite_manifests.is_empty() {
        return given(&coredns.overwrite_manifests);
    }
    Ok(vec![
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "coredns", "namespace": NAMESPACE},
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "system:coredns", "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
            "rules": [
                {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"],
                    "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {
                "name": "system:coredns",
                "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
                "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            },
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": NAMESPACE}],
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "coredns", "namespace": NAMESPACE},
            // `NodeHosts` has another writer.
            "data": {"Corefile": (corefile(config))},
        }),
        deployment(config),
        super::service(config, true),
    ])
}

/// The objects of `overwriteManifests`.
fn given(text: &str) -> Result<Vec<Value>, String> {
    let mut objects = Vec::new();
    for document in config::yaml::documents(text).map_err(|error| error.to_string())? {
        let object = Value::from(document);
        if object.is_null() {
            continue;
        }
        for path in [&["apiVersion"][..], &["kind"], &["metadata", "name"]] {
            if object.str_at(path).is_empty() {
                return Err(format!("{} is missing in {object}", path.join(".")));
            }
        }
        objects.push(object);
    }
    Ok(objects)
}

/// What CoreDNS is told.
pub(super) fn corefile(config: &Config) -> String {
    let coredns = &config.control_plane.coredns;
    if !coredns.overwrite_config.is_empty() {
        return coredns.overwrite_config.clone();
    }
    let networking = &config.networking.advanced;
    let domain = networking.cluster_domain.as_str();
    let mut lines = vec![".:1053 {".to_string()];
    let mut add = |depth: usize, text: &str| lines.push(format!("{}{text}", "    ".repeat(depth)));
    for directive in ["errors", "health", "ready"] {
        add(1, directive);
    }
    if networking.proxy_kubelets.by_hostname {
        // vCluster writes cluster.local here whatever the domain is.
        add(1, &format!("rewrite name regex .*\\.nodes\\.vcluster\\.com kubernetes.default.svc.{domain}"));
    }
    let zones = if domain == "cluster.local" { String::new() } else { format!("{domain} ") };
    add(1, &format!("kubernetes {zones}cluster.local in-addr.arpa ip6.arpa {{"));
    add(2, "pods insecure");
    let fallthrough = if networking.fallback_host_cluster { "cluster.local " } else { "" };
    add(2, &format!("fallthrough {fallthrough}in-addr.arpa ip6.arpa"));
    add(1, "}");
    add(1, "hosts /etc/coredns/NodeHosts {");
    for option in ["ttl 60", "reload 15s", "fallthrough"] {
        add(2, option);
    }
    add(1, "}");
    add(1, "prometheus :9153");
    if networking.fallback_host_cluster {
        let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let server = dns::ResolvConf::parse(&text).servers.first().map(|server| server.ip().to_string());
        add(1, &format!("forward . {}", server.as_deref().unwrap_or(RESOLV_CONF)));
    } else if config.policies.network_policy.enabled {
        add(1, &format!("forward . {RESOLV_CONF} {} {{", config.policies.network_policy.fallback_dns));
        add(2, "policy sequential");
        add(1, "}");
    } else {
        add(1, &format!("forward . {RESOLV_CONF}"));
    }
    for directive in ["cache 30", "loop", "reload", "loadbalance"] {
        add(1, directive);
    }
    lines.extend(["}", "", "import /etc/coredns/custom/*.server"].map(str::to_string));
    lines.join("\n")
}

/// The image of CoreDNS for the Kubernetes version `1.N`.
fn image(config: &Config) -> String {
    let registry = config.control_plane.advanced.default_image_registry.trim_end_matches('/');
    let own = &config.control_plane.coredns.deployment.image;
    if !own.is_empty() {
        return if registry.is_empty() { own.clone() } else { format!("{registry}/{own}") };
    }
    let version = config.control_plane.distro.k8s.version.trim_start_matches('v');
    let known = IMAGES
        .iter()
        .find(|(minor, _)| version.strip_prefix(minor).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')));
    let image = known.unwrap_or(&IMAGES[0]).1;
    format!("{}/{image}", if registry.is_empty() { IMAGE_REGISTRY } else { registry })
}

fn is_empty(value: &serde_json::Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn deployment(config: &Config) -> Value {
    let coredns = &config.control_plane.coredns;
    let wanted = &coredns.deployment;
    let with = |mut base: Value, more: &config::Strings| {
        for (key, value) in more {
            base[key.as_str()] = value.as_str().into();
        }
        base
    };
    let mut security = json!({
        "runAsNonRoot": true,
        "runAsUser": USER,
        "runAsGroup": USER,
        "allowPrivilegeEscalation": false,
        "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
    });
    if !is_empty(&coredns.security.container_security_context) {
        security = Value::from(coredns.security.container_security_context.clone());
    }
    let mut container = json!({
        "name": "coredns",
        "image": (image(config)),
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [
            {"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": true},
            {"name": "custom-config-volume", "mountPath": "/etc/coredns/custom", "readOnly": true},
        ],
        "securityContext": (security),
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": 8080, "scheme": "HTTP"},
            "initialDelaySeconds": 60, "periodSeconds": 10, "timeoutSeconds": 1, "successThreshold": 1,
            "failureThreshold": 3,
        },
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": 8181, "scheme": "HTTP"},
            "initialDelaySeconds": 0, "periodSeconds": 2, "timeoutSeconds": 1, "successThreshold": 1,
            "failureThreshold": 3,
        },
    });
    if !is_empty(&wanted.resources) {
        container["resources"] = Value::from(wanted.resources.clone());
    }
    let mut pod = json!({
        "serviceAccountName": "coredns",
        "nodeSelector": (with(json!({"kubernetes.io/os": "linux"}), &wanted.node_selector)),
        "containers": [(container)],
        "dnsPolicy": "Default",
        "volumes": [
            {"name": "config-volume", "configMap": {"name": "coredns", "items": [
                {"key": "Corefile", "path": "Corefile"}, {"key": "NodeHosts", "path": "NodeHosts"}]}},
            {"name": "custom-config-volume", "configMap": {"name": "coredns-custom", "optional": true}},
        ],
    });
    if !coredns.priority_class_name.is_empty() {
        pod["priorityClassName"] = coredns.priority_class_name.as_str().into();
    }
    if !is_empty(&wanted.affinity) {
        pod["affinity"] = Value::from(wanted.affinity.clone());
    }
    for (key, list) in
        [("tolerations", &wanted.tolerations), ("topologySpreadConstraints", &wanted.topology_spread_constraints)]
    {
        if !list.is_empty() {
            pod[key] = Value::Array(list.iter().cloned().map(Value::from).collect());
        }
    }
    if !is_empty(&coredns.security.pod_security_context) {
        pod["securityContext"] = Value::from(coredns.security.pod_security_context.clone());
    } else if !config.policies.pod_security_standard.is_empty() {
        pod["securityContext"] = json!({"seccompProfile": {"type": "RuntimeDefault"}});
    }
    let mut metadata = json!({"labels": (with(labels(), &wanted.pods.labels))});
    if !wanted.pods.annotations.is_empty() {
        metadata["annotations"] = with(json!({}), &wanted.pods.annotations);
    }
    let mut own = json!({
        "name": "coredns", "namespace": NAMESPACE,
        "labels": (with(with(labels(), &[("kubernetes.io/name".to_string(), "CoreDNS".to_string())].into()), &wanted.labels)),
    });
    if !wanted.annotations.is_empty() {
        own["annotations"] = with(json!({}), &wanted.annotations);
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": (own),
        "spec": {
            "replicas": (wanted.replicas),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "selector": {"matchLabels": (labels())},
            "template": {"metadata": (metadata), "spec": (pod)},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_yaml("t", text).unwrap()
    }

    #[test]
    fn the_corefile_follows_the_configuration() {
        let text = corefile(&config("controlPlane: {coredns: {embedded: false}}"));
        assert_eq!(
            text,
            ".:1053 {\n    errors\n    health\n    ready\n    \
             rewrite name regex .*\\.nodes\\.vcluster\\.com kubernetes.default.svc.cluster.local\n    \
             kubernetes cluster.local in-addr.arpa ip6.arpa {\n        pods insecure\n        \
             fallthrough in-addr.arpa ip6.arpa\n    }\n    hosts /etc/coredns/NodeHosts {\n        ttl 60\n        \
             reload 15s\n        fallthrough\n    }\n    prometheus :9153\n    forward . /etc/resolv.conf\n    \
             cache 30\n    loop\n    reload\n    loadbalance\n}\n\nimport /etc/coredns/custom/*.server"
        );
        let text =
            corefile(&config("networking: {advanced: {clusterDomain: corp.internal, fallbackHostCluster: true}}"));
        assert!(text.contains("    kubernetes corp.internal cluster.local in-addr.arpa ip6.arpa {\n"), "{text}");
        assert!(text.contains("fallthrough cluster.local in-addr.arpa ip6.arpa\n"), "{text}");
        assert!(text.contains("kubernetes.default.svc.corp.internal\n"), "{text}");
        assert_eq!(corefile(&config("controlPlane: {coredns: {embedded: false, overwriteConfig: mine}}")), "mine");
    }

    #[test]
    fn the_deployment_has_what_is_configured() {
        let find = |objects: &[Value], kind: &str| {
            objects.iter().find(|object| object.str_at(&["kind"]) == kind).expect("the kind is there").clone()
        };
        let defaults = objects(&config("controlPlane: {coredns: {embedded: false}}")).unwrap();
        let kinds: Vec<&str> = defaults.iter().map(|object| object.str_at(&["kind"])).collect();
        assert_eq!(
            kinds,
            ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "Deployment", "Service"]
        );
        let deployment = find(&defaults, "Deployment");
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "docker.io/coredns/coredns:1.14.2");
        assert_eq!(container["resources"]["requests"]["cpu"], "20m");
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(deployment["spec"]["replicas"], 1);
        let constraints = deployment["spec"]["template"]["spec"].array_at(&["topologySpreadConstraints"]);
        assert_eq!(constraints.len(), 1);
        let service = find(&defaults, "Service");
        assert_eq!(service["spec"]["selector"]["k8s-app"], "vcluster-kube-dns");
        assert_eq!(service["spec"]["ports"][0]["targetPort"], 1053);

        let changed = objects(&config(
            "controlPlane:\n  advanced: {defaultImageRegistry: reg.example/}\n  coredns:\n    embedded: false\n    priorityClassName: high\n    \
             service: {labels: {a: b}, spec: {type: NodePort}}\n    \
             security: {podSecurityContext: {runAsUser: 5}, containerSecurityContext: {privileged: false}}\n    \
             deployment: {image: me/dns:1, replicas: 3, nodeSelector: {disk: ssd}, tolerations: [{operator: Exists}], pods: {labels: {tier: dns}, annotations: {note: ours}}}\n",
        ))
        .unwrap();
        let deployment = find(&changed, "Deployment");
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["image"], "reg.example/me/dns:1");
        assert_eq!(pod["containers"][0]["securityContext"], json!({"privileged": false}));
        assert_eq!(pod["securityContext"]["runAsUser"], 5);
        assert_eq!(
            (pod["priorityClassName"].as_str(), deployment["spec"]["replicas"].as_i64()),
            (Some("high"), Some(3))
        );
        assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux", "disk": "ssd"}));
        assert_eq!(deployment["spec"]["template"]["metadata"]["labels"]["tier"], "dns");
        let service = find(&changed, "Service");
        assert_eq!(
            (service["metadata"]["labels"]["a"].as_str(), service["spec"]["type"].as_str()),
            (Some("b"), Some("NodePort"))
        );

        let own = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: kube-dns, namespace: kube-system}\n";
        let text = format!(
            "controlPlane:\n  coredns:\n    embedded: false\n    overwriteManifests: |\n      {}\n",
            own.replace('\n', "\n      ")
        );
        assert_eq!(objects(&config(&text)).unwrap().len(), 2);
    }
}
