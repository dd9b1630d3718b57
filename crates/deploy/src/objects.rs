//! All host objects of one virtual cluster.

use std::collections::BTreeMap;

use base64::Engine;
use config::{Config, Strings};
use serde_json::{Map, Value, json};

use crate::{
    CREATED_ANNOTATION, PLACEMENT_HUB, PLACEMENT_LABEL, STORE_ANNOTATION, etcd, hostpaths, names, network, policies,
    rbac, template, workload,
};

/// Where the control plane of a virtual cluster runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the process of a hub, beside others.
    Hub,
    /// In a pod of its own.
    Dedicated,
}

/// One virtual cluster to be put on a host.
#[derive(Clone, Debug)]
pub struct Release<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub placement: Placement,
    pub config: &'a Config,
    /// Version of Alcove, for the `chart` label and the default image.
    pub version: &'a str,
}

/// Labels of every object of a release.
pub fn labels(name: &str, version: &str) -> Strings {
    BTreeMap::from([
        ("app".to_string(), "vcluster".to_string()),
        ("chart".to_string(), chart_label(version)),
        ("release".to_string(), name.to_string()),
        ("heritage".to_string(), "Helm".to_string()),
        // Helm takes over only what carries this and the two annotations of `ownership`.
        ("app.kubernetes.io/managed-by".to_string(), "Helm".to_string()),
    ])
}

/// Annotations that let `helm upgrade --install` go on with objects that `alcove create` or `kubectl apply` made.
pub fn ownership(name: &str, namespace: &str) -> Strings {
    BTreeMap::from([
        ("meta.helm.sh/release-name".to_string(), name.to_string()),
        ("meta.helm.sh/release-namespace".to_string(), namespace.to_string()),
    ])
}

/// `alcove-VERSION` as a label value.
fn chart_label(version: &str) -> String {
    let text: String = format!("alcove-{version}").replace(['+', '@'], "_").chars().take(63).collect();
    text.trim_end_matches(['-', '_', '.']).to_string()
}

impl Release<'_> {
    /// `metadata` with the release's labels and the global annotations under the given ones. What identifies the release
    /// cannot be overridden.
    pub(crate) fn metadata(&self, name: &str, more_labels: &Strings, annotations: &Strings) -> Value {
        let mut metadata = self.cluster_metadata(name, more_labels, annotations);
        metadata["namespace"] = json!(self.namespace);
        metadata
    }

    /// [`Release::metadata`] of a cluster-scoped object.
    pub(crate) fn cluster_metadata(&self, name: &str, more_labels: &Strings, annotations: &Strings) -> Value {
        let mut all_labels = more_labels.clone();
        all_labels.extend(labels(self.name, self.version));
        let mut all = self.config.control_plane.advanced.global_metadata.annotations.clone();
        all.extend(annotations.clone());
        all.extend(ownership(self.name, self.namespace));
        json!({"name": name, "labels": all_labels, "annotations": all})
    }

    /// The port the control plane listens on in its pod.
    pub(crate) fn port(&self) -> u16 {
        self.config.control_plane.proxy.port
    }

    /// Name of the ServiceAccount of synced pods.
    pub fn workload_service_account(&self) -> String {
        let name = &self.config.control_plane.advanced.workload_service_account.name;
        if name.is_empty() { names::workload_service_account(self.name) } else { name.clone() }
    }

    /// Name of the ServiceAccount of the control plane.
    pub fn service_account(&self) -> String {
        let name = &self.config.control_plane.advanced.service_account.name;
        if name.is_empty() { names::service_account(self.name) } else { name.clone() }
    }
}

/// The Namespace for a virtual cluster, marked so that `delete` may remove it.
pub fn namespace(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": namespace, "annotations": {(CREATED_ANNOTATION): "true"}},
    })
}

/// All objects of the release in the order in which they should be applied. The config Secret comes after what the control
/// plane needs, because a hub starts when it sees it; the namespace is not among them (see [`namespace`]).
pub fn host_objects(release: &Release<'_>) -> Result<Vec<Value>, RenderError> {
    if let Some(problem) = release.config.maps_into_own_namespace(release.name, release.namespace) {
        return Err(RenderError::OwnNamespace(problem));
    }
    let mut objects = policies::objects(release);
    objects.extend(service_accounts(release));
    objects.extend(rbac::objects(release));
    objects.push(network::service(release));
    objects.extend(network::routes(release)?);
    objects.extend(etcd::objects(release));
    objects.push(config_secret(release));
    if release.placement == Placement::Dedicated {
        objects.extend(workload::objects(release)?);
    }
    objects.extend(hostpaths::objects(release));
    objects.extend(manifests(release)?);
    Ok(objects)
}

/// Why a release cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    #[error("{0}")]
    OwnNamespace(config::Problem),
    #[error("{path}: {message}")]
    Manifests { path: &'static str, message: String },
    #[error("{path}: {source}")]
    Template { path: &'static str, source: crate::template::TemplateError },
}

/// What the user adds in `experimental.deploy.host`, as it is.
fn manifests(release: &Release<'_>) -> Result<Vec<Value>, RenderError> {
    let deploy = &release.config.experimental.deploy.host;
    let mut objects = Vec::new();
    let plain = ("experimental.deploy.host.manifests", deploy.manifests.clone());
    let path = "experimental.deploy.host.manifestsTemplate";
    let rendered = template::render(&deploy.manifests_template, &template::context(release))
        .map_err(|source| RenderError::Template { path, source })?;
    for (path, text) in [plain, (path, rendered)] {
        let failed = |message: String| RenderError::Manifests { path, message };
        for document in config::yaml::documents(&text).map_err(|error| failed(error.to_string()))? {
            if document.is_null() {
                continue;
            }
            if document["kind"].as_str().is_none() || document["apiVersion"].as_str().is_none() {
                return Err(failed("every document must have apiVersion and kind".into()));
            }
            objects.push(document);
        }
    }
    Ok(objects)
}

/// Values that the chart passes through templates: strings in them may hold `{{ .Release.Name }}` and the like.
pub(crate) fn templated(release: &Release<'_>, path: &'static str, value: &Value) -> Result<Value, RenderError> {
    let failed = |source| RenderError::Template { path, source };
    Ok(match value {
        Value::String(text) if text.contains("{{") => {
            Value::String(template::render(text, &template::context(release)).map_err(failed)?)
        }
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| templated(release, path, item)).collect::<Result<_, _>>()?)
        }
        Value::Object(map) => {
            let mut rendered = Map::new();
            for (key, value) in map {
                rendered.insert(key.clone(), templated(release, path, value)?);
            }
            Value::Object(rendered)
        }
        other => other.clone(),
    })
}

/// Secret `vc-config-NAME`.
pub fn config_secret(release: &Release<'_>) -> Value {
    let mut labels = Strings::new();
    if release.placement == Placement::Hub {
        labels.insert(PLACEMENT_LABEL.to_string(), PLACEMENT_HUB.to_string());
    }
    let annotations = Strings::from([(STORE_ANNOTATION.to_string(), release.config.store_type().as_str().to_string())]);
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": release.metadata(&names::config_secret(release.name), &labels, &annotations),
        "type": "Opaque",
        "data": {"config.yaml": base64::engine::general_purpose::STANDARD.encode(release.config.to_stored())},
    })
}

fn service_accounts(release: &Release<'_>) -> Vec<Value> {
    let advanced = &release.config.control_plane.advanced;
    let mut objects = Vec::new();
    let control_plane = &advanced.service_account;
    if control_plane.enabled {
        objects.push(with_pull_secrets(
            json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": release.metadata(&release.service_account(), &control_plane.labels, &control_plane.annotations),
            }),
            &control_plane.image_pull_secrets,
        ));
    }
    let workload = &advanced.workload_service_account;
    if workload.enabled {
        let secrets = [control_plane.image_pull_secrets.as_slice(), workload.image_pull_secrets.as_slice()].concat();
        objects.push(with_pull_secrets(
            json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": release.metadata(&release.workload_service_account(), &workload.labels, &workload.annotations),
            }),
            &secrets,
        ));
    }
    objects
}

fn with_pull_secrets(mut account: Value, secrets: &[Value]) -> Value {
    if !secrets.is_empty() {
        account["imagePullSecrets"] = json!(secrets);
    }
    account
}
