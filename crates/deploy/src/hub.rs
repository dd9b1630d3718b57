//! The objects of a hub on a real host: what `charts/alcove-hub` renders too.
//!
//! Invariants:
//! - There is one hub process per release: two would run the same clusters on the same data, so that the old pod goes
//!   before the new one comes.
//! - What the hub does for a cluster it does in the name of the cluster's own ServiceAccount; its own rights are to find
//!   config Secrets, to say where clusters are reached, and to clean up after them ([`RULES`]).
//! - The claim with the clusters' data outlives the release.

use std::collections::BTreeMap;

use base64::Engine;
use config::{Image, Source, Strings};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{HUB_APP, names, ownership};

/// What is asked for, as `charts/alcove-hub/values.yaml` describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HubValues {
    image: Image,
    image_pull_policy: String,
    image_pull_secrets: Vec<Value>,
    public_address: String,
    sleep_after: String,
    persistence: Persistence,
    external_database: ExternalDatabase,
    #[serde(default)]
    resources: Map<String, Value>,
    #[serde(default)]
    pod_security_context: Map<String, Value>,
    #[serde(default)]
    container_security_context: Map<String, Value>,
    node_selector: Map<String, Value>,
    affinity: Map<String, Value>,
    tolerations: Vec<Value>,
    priority_class_name: String,
    pod_labels: Strings,
    pod_annotations: Strings,
    env: Vec<Value>,
    extra_args: Vec<String>,
    service_account: Account,
    rbac: Create,
    host_path_mapper: Mapper,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapper {
    enabled: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Persistence {
    enabled: bool,
    existing_claim: String,
    size: String,
    storage_class: String,
    access_modes: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExternalDatabase {
    data_source: String,
    existing_secret: String,
    tls_secret: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Account {
    create: bool,
    name: String,
    annotations: Strings,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    create: bool,
}

/// Why values are not usable.
#[derive(Debug, thiserror::Error)]
pub enum HubValuesError {
    #[error("{name}: {message}")]
    Yaml { name: String, message: String },
    #[error("--set {set}: {message}")]
    Set { set: String, message: String },
    #[error("{0}")]
    Values(#[from] serde_json::Error),
}

impl HubValues {
    /// `sources` in order, then `sets`, over the chart's defaults.
    pub fn load(sources: &[Source], sets: &[String]) -> Result<HubValues, HubValuesError> {
        let defaults = Source::new("values.yaml", include_str!("../../../charts/alcove-hub/values.yaml"));
        let mut values = json!({});
        for source in std::iter::once(&defaults).chain(sources) {
            let over: Value = config::yaml::from_str(&source.text)
                .map_err(|error| HubValuesError::Yaml { name: source.name.clone(), message: error.to_string() })?;
            if !over.is_null() {
                config::merge(&mut values, over);
            }
        }
        for set in sets {
            config::parse_set(set, &mut values).map_err(|message| HubValuesError::Set { set: set.clone(), message })?;
        }
        prune(&mut values);
        Ok(serde_json::from_value(values)?)
    }
}

/// `null` removes a default.
fn prune(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|_, value| !value.is_null());
        map.values_mut().for_each(prune);
    }
}

/// One hub to be put on a host.
#[derive(Clone, Debug)]
pub struct HubRelease<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub values: &'a HubValues,
    pub version: &'a str,
}

/// Group, resources and verbs of the hub's ClusterRole. `docs/rbac.md` says why.
pub const RULES: &[(&[&str], &[&str], &[&str])] = &[
    (&[""], &["secrets"], &["get", "list", "watch", "patch", "delete"]),
    (&[""], &["serviceaccounts"], &["impersonate", "list", "delete"]),
    (&[""], &["services"], &["get", "list", "watch", "delete"]),
    (&["discovery.k8s.io"], &["endpointslices"], &["get", "list", "create", "patch", "update", "delete"]),
    (
        &[""],
        &[
            "pods",
            "endpoints",
            "persistentvolumeclaims",
            "configmaps",
            "resourcequotas",
            "limitranges",
            "persistentvolumes",
        ],
        &["get", "list", "delete"],
    ),
    (&["apps"], &["statefulsets", "deployments", "daemonsets"], &["list", "delete"]),
    (&["networking.k8s.io"], &["ingresses", "networkpolicies"], &["list", "delete"]),
    (&["policy"], &["poddisruptionbudgets"], &["list", "delete"]),
    (&["storage.k8s.io"], &["storageclasses"], &["list", "delete"]),
    (&["scheduling.k8s.io"], &["priorityclasses"], &["list", "delete"]),
    (&["gateway.networking.k8s.io"], &["tlsroutes"], &["list", "delete"]),
    (&["monitoring.coreos.com"], &["servicemonitors"], &["list", "delete"]),
    (
        &["rbac.authorization.k8s.io"],
        &["roles", "rolebindings", "clusterroles", "clusterrolebindings"],
        &["list", "delete"],
    ),
];

impl HubRelease<'_> {
    fn metadata(&self, name: &str, annotations: &Strings) -> Value {
        let mut metadata = self.cluster_metadata(name, annotations);
        metadata["namespace"] = json!(self.namespace);
        metadata
    }

    fn cluster_metadata(&self, name: &str, annotations: &Strings) -> Value {
        let mut labels = crate::labels(self.name, self.version);
        labels.insert("app".into(), HUB_APP.into());
        labels.insert("chart".into(), labels["chart"].replacen("alcove-", "alcove-hub-", 1));
        let mut all = annotations.clone();
        all.extend(ownership(self.name, self.namespace));
        json!({"name": name, "labels": labels, "annotations": all})
    }

    fn account(&self) -> &str {
        let name = &self.values.service_account.name;
        if name.is_empty() { self.name } else { name }
    }

    /// The image as asked for; without a tag, of this version.
    fn image(&self) -> String {
        let mut image = self.values.image.clone();
        if image.tag.is_empty() {
            image.tag = self.version.into();
        }
        image.reference("")
    }

    fn selector(&self) -> Value {
        json!({"app": HUB_APP, "release": self.name})
    }

    /// The Secret with the address of the database; none when data is in files.
    fn database_secret(&self) -> Option<String> {
        let database = &self.values.external_database;
        match (database.existing_secret.as_str(), database.data_source.as_str()) {
            ("", "") => None,
            ("", _) => Some(format!("{}-database", self.name)),
            (existing, _) => Some(existing.to_string()),
        }
    }

    /// The claim to mount; none when data is kept in memory.
    fn claim(&self) -> Option<&str> {
        let persistence = &self.values.persistence;
        match (persistence.enabled, persistence.existing_claim.as_str()) {
            (false, _) => None,
            (true, "") => Some(self.name),
            (true, existing) => Some(existing),
        }
    }
}

/// All objects of the hub in the order in which they should be applied.
pub fn hub_objects(release: &HubRelease<'_>) -> Vec<Value> {
    let values = release.values;
    let none = Strings::new();
    let mut objects = Vec::new();
    if values.service_account.create {
        let mut account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": release.metadata(release.account(), &values.service_account.annotations),
        });
        if !values.image_pull_secrets.is_empty() {
            account["imagePullSecrets"] = json!(values.image_pull_secrets);
        }
        objects.push(account);
    }
    if values.rbac.create {
        let name = names::cluster_role(release.name, release.namespace);
        let rule = |(groups, resources, verbs): &(&[&str], &[&str], &[&str])| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": release.cluster_metadata(&name, &none),
            "rules": RULES.iter().map(rule).collect::<Vec<_>>(),
        }));
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": release.cluster_metadata(&name, &none),
            "subjects": [{"kind": "ServiceAccount", "name": release.account(), "namespace": release.namespace}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        }));
    }
    if release.claim() == Some(release.name) && values.persistence.existing_claim.is_empty() {
        let keep = BTreeMap::from([("helm.sh/resource-policy".to_string(), "keep".to_string())]);
        let mut spec = json!({
            "accessModes": values.persistence.access_modes,
            "resources": {"requests": {"storage": values.persistence.size}},
        });
        if !values.persistence.storage_class.is_empty() {
            spec["storageClassName"] = json!(values.persistence.storage_class);
        }
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": release.metadata(release.name, &keep),
            "spec": spec,
        }));
    }
    let database = &values.external_database;
    if let Some(secret) = release.database_secret().filter(|_| database.existing_secret.is_empty()) {
        let source = base64::engine::general_purpose::STANDARD.encode(&database.data_source);
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": release.metadata(&secret, &none),
            "type": "Opaque",
            "data": {"dataSource": source},
        }));
    }
    objects.push(deployment(release));
    if values.host_path_mapper.enabled {
        objects.extend(host_path_mapper(release));
    }
    objects
}

/// The host path mapper of all clusters that ask for the central one.
fn host_path_mapper(release: &HubRelease<'_>) -> [Value; 4] {
    let values = release.values;
    let none = Strings::new();
    let name = names::hostpath_mapper(release.name);
    let role = names::cluster_role(&name, release.namespace);
    let mut account = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": release.metadata(&name, &none),
    });
    crate::workload::set_if_any(&mut account, "imagePullSecrets", json!(values.image_pull_secrets));
    let labels = json!({"app": crate::hostpaths::APP, "release": release.name});
    let mut pod = crate::hostpaths::pod_spec(&release.image(), &name, "/tmp/vcluster", &["--all".to_string()]);
    crate::workload::set_if_any(&mut pod["containers"][0], "imagePullPolicy", json!(values.image_pull_policy));
    [
        account,
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": release.cluster_metadata(&role, &none),
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": release.cluster_metadata(&role, &none),
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": release.namespace}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": release.metadata(&name, &none),
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }),
    ]
}

fn deployment(release: &HubRelease<'_>) -> Value {
    let values = release.values;
    let mut args = vec![
        "hub".to_string(),
        "--bind-address=0.0.0.0".to_string(),
        "--health-address=0.0.0.0:8080".to_string(),
        "--data-dir=/data/hub".to_string(),
        format!("--sleep-after={}", values.sleep_after),
    ];
    if !values.public_address.is_empty() {
        args.push(format!("--public-address={}", values.public_address));
    }
    let database = release.database_secret();
    let trusted = Some(&values.external_database.tls_secret).filter(|name| database.is_some() && !name.is_empty());
    if trusted.is_some() {
        args.push("--store-cafile=/database/ca.crt".to_string());
    }
    args.extend(values.extra_args.iter().cloned());
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
        field("NODE_NAME", "spec.nodeName"),
        json!({"name": "ALCOVE_IMAGE", "value": release.image()}),
    ];
    if let Some(secret) = &database {
        let key = json!({"name": secret, "key": "dataSource"});
        env.push(json!({"name": "ALCOVE_HUB_STORE", "valueFrom": {"secretKeyRef": key}}));
    }
    env.extend(values.env.iter().cloned());
    let probe = |path: &str, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": 8080},
            "periodSeconds": 5,
            "timeoutSeconds": 3,
            "failureThreshold": failures,
        })
    };
    let mut container = json!({
        "name": "hub",
        "image": release.image(),
        "args": args,
        "env": env,
        "ports": [{"name": "health", "containerPort": 8080, "protocol": "TCP"}],
        "livenessProbe": probe("/healthz", 12),
        "readinessProbe": probe("/readyz", 3),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    let mut mounts = vec![json!({"name": "data", "mountPath": "/data"}), json!({"name": "tmp", "mountPath": "/tmp"})];
    let data = match release.claim() {
        Some(claim) => json!({"name": "data", "persistentVolumeClaim": {"claimName": claim}}),
        None => json!({"name": "data", "emptyDir": {}}),
    };
    let mut volumes = vec![data, json!({"name": "tmp", "emptyDir": {}})];
    if let Some(secret) = trusted {
        mounts.push(json!({"name": "database", "mountPath": "/database", "readOnly": true}));
        volumes.push(json!({"name": "database", "secret": {"secretName": secret}}));
    }
    container["volumeMounts"] = json!(mounts);
    let mut pod = json!({
        "serviceAccountName": release.account(),
        "terminationGracePeriodSeconds": 60,
        "volumes": volumes,
    });
    let text = |text: &String| if text.is_empty() { Value::Null } else { json!(text) };
    let list = |list: &Vec<Value>| if list.is_empty() { Value::Null } else { json!(list) };
    let map = |map: &Map<String, Value>| if map.is_empty() { Value::Null } else { json!(map) };
    for (key, value) in [
        ("imagePullPolicy", text(&values.image_pull_policy)),
        ("resources", map(&values.resources)),
        ("securityContext", map(&values.container_security_context)),
    ] {
        if !value.is_null() {
            container[key] = value;
        }
    }
    pod["containers"] = json!([container]);
    for (key, value) in [
        ("securityContext", map(&values.pod_security_context)),
        ("imagePullSecrets", list(&values.image_pull_secrets)),
        ("nodeSelector", map(&values.node_selector)),
        ("affinity", map(&values.affinity)),
        ("tolerations", list(&values.tolerations)),
        ("priorityClassName", text(&values.priority_class_name)),
    ] {
        if !value.is_null() {
            pod[key] = value;
        }
    }
    let mut labels = values.pod_labels.clone();
    labels.insert("app".into(), HUB_APP.into());
    labels.insert("release".into(), release.name.into());
    let mut metadata = json!({"labels": labels});
    if !values.pod_annotations.is_empty() {
        metadata["annotations"] = json!(values.pod_annotations);
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": release.metadata(release.name, &Strings::new()),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": release.selector()},
            "template": {"metadata": metadata, "spec": pod},
        },
    })
}
