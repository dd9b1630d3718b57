//! The config Secret as the hub reads it, and the patches it writes to it.

use std::collections::BTreeMap;

use apimachinery::{Value, json};
use base64::Engine;
use informer::{Cached, ObjectKey, ObjectMeta, Resource};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::FINALIZER;

pub(crate) const SECRETS: Resource = Resource::new("", "v1", "secrets");

/// A Secret `vc-config-NAME`.
#[derive(Debug, Deserialize)]
pub struct ConfigSecret {
    pub metadata: ObjectMeta,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
}

impl Cached for ConfigSecret {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl ConfigSecret {
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.metadata.namespace.clone(), self.metadata.name.clone())
    }

    /// The cluster the Secret is about: its label and its name must agree.
    pub fn cluster_name(&self) -> Option<String> {
        let name = self.metadata.labels.get("release")?;
        (self.metadata.name.as_str() == deploy::names::config_secret(name)).then(|| name.to_string())
    }

    /// The text of `config.yaml`; nothing when it is not readable.
    pub fn config_text(&self) -> Option<String> {
        let encoded = self.data.as_ref()?.get("config.yaml")?;
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded).ok()?).ok()
    }

    /// Changes when the cluster must be started anew.
    pub fn content_hash(&self) -> String {
        let text = self.data.as_ref().and_then(|data| data.get("config.yaml")).map(String::as_str).unwrap_or_default();
        let restarted = self.annotation(deploy::RESTART_ANNOTATION);
        Sha256::digest(format!("{text}\n{restarted}").as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn annotation(&self, name: &str) -> &str {
        self.metadata.annotations.get(name).unwrap_or_default()
    }

    /// Shall the cluster not run?
    pub fn is_paused(&self) -> bool {
        self.annotation(deploy::PAUSED_ANNOTATION) == "true"
    }

    /// Does the cluster leave this hub?
    pub fn moving(&self) -> &str {
        self.annotation(deploy::MOVING_ANNOTATION)
    }

    /// The status that a hub has written.
    pub fn status(&self) -> &str {
        self.annotation(deploy::STATUS_ANNOTATION)
    }

    /// Has somebody marked the cluster as not to be deleted?
    pub fn is_protected(&self) -> bool {
        self.annotation("loft.sh/non-deletable") == "true"
    }

    /// Since when the cluster sleeps, in seconds since 1970.
    pub fn sleeping_since(&self) -> Option<u64> {
        self.annotation(deploy::SLEEPING_SINCE_ANNOTATION).parse().ok()
    }

    /// The port the cluster had before.
    pub fn port(&self) -> Option<u16> {
        self.metadata.annotations.get(deploy::PORT_ANNOTATION)?.parse().ok().filter(|port| *port != 0)
    }

    pub fn has_finalizer(&self) -> bool {
        self.metadata.finalizers.iter().any(|finalizer| finalizer.as_str() == FINALIZER)
    }
}

/// The version makes sure that nobody's finalizer is lost.
fn finalizers(secret: &ConfigSecret, finalizers: Vec<Value>) -> Value {
    json!({"metadata": {
        "finalizers": (Value::Array(finalizers)),
        "resourceVersion": (secret.metadata.resource_version.as_str()),
    }})
}

pub(crate) fn add_finalizer(secret: &ConfigSecret) -> Value {
    let mut all: Vec<Value> = secret.metadata.finalizers.iter().map(|f| Value::from(f.as_str())).collect();
    all.push(FINALIZER.into());
    finalizers(secret, all)
}

pub(crate) fn remove_finalizer(secret: &ConfigSecret) -> Value {
    let others = secret.metadata.finalizers.iter().filter(|f| f.as_str() != FINALIZER);
    finalizers(secret, others.map(|f| Value::from(f.as_str())).collect())
}

/// The Secret is nobody's in this hub any more.
pub(crate) fn leave(secret: &ConfigSecret) -> Value {
    let mut patch = remove_finalizer(secret);
    for name in [
        deploy::MOVING_ANNOTATION,
        deploy::STATUS_ANNOTATION,
        deploy::PORT_ANNOTATION,
        deploy::SLEEPING_SINCE_ANNOTATION,
        deploy::RESTART_ANNOTATION,
    ] {
        patch["metadata"]["annotations"][name] = Value::Null;
    }
    patch["metadata"]["labels"][deploy::PLACEMENT_LABEL] = Value::Null;
    patch
}

pub(crate) fn set_status(status: &str, port: Option<u16>) -> Value {
    let mut patch = json!({"metadata": {"annotations": {}}});
    patch["metadata"]["annotations"][deploy::STATUS_ANNOTATION] = status.into();
    if let Some(port) = port {
        patch["metadata"]["annotations"][deploy::PORT_ANNOTATION] = port.to_string().into();
    }
    patch
}

fn set_annotations(annotations: &[(&str, Value)]) -> Value {
    let mut patch = json!({"metadata": {"annotations": {}}});
    for (name, value) in annotations {
        patch["metadata"]["annotations"][*name] = value.clone();
    }
    patch
}

pub(crate) fn set_pods_removed() -> Value {
    set_annotations(&[(deploy::PODS_REMOVED_ANNOTATION, "true".into())])
}

pub(crate) fn set_sleeping(since_seconds: u64) -> Value {
    set_annotations(&[
        (deploy::STATUS_ANNOTATION, crate::SLEEPING.into()),
        (deploy::SLEEPING_SINCE_ANNOTATION, since_seconds.to_string().into()),
    ])
}

pub(crate) fn set_awake() -> Value {
    set_annotations(&[(deploy::STATUS_ANNOTATION, "Running".into()), (deploy::SLEEPING_SINCE_ANNOTATION, Value::Null)])
}
