//! Applying and deleting objects given as JSON trees, with paths from the table of built-in resources.

use std::time::Duration;

use apimachinery::resources;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, ValidationDirective};
use kube::discovery::Scope;
use serde_json::Value;

use crate::failure::Failure;

/// Who sets the fields of what is applied.
pub const FIELD_MANAGER: &str = "alcove";

/// The API of the kind of `object`, in its own namespace or `default_namespace`. Kinds that are not built in are looked up
/// on the server.
pub async fn api_for(
    client: &kube::Client,
    object: &Value,
    default_namespace: &str,
) -> anyhow::Result<Api<DynamicObject>> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let kind = object["kind"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let (resource, scope) = match resources::by_kind(group, version, kind) {
        Some(resource) => (
            ApiResource {
                group: group.to_string(),
                version: version.to_string(),
                api_version: api_version.to_string(),
                kind: kind.to_string(),
                plural: resource.name.to_string(),
            },
            if resource.namespaced { Scope::Namespaced } else { Scope::Cluster },
        ),
        None => {
            let gvk = GroupVersionKind::gvk(group, version, kind);
            let found = kube::discovery::oneshot::pinned_kind(client, &gvk).await;
            let (resource, capabilities) = found.map_err(|error| {
                Failure::invalid(format!("the host knows no kind {kind:?} in {api_version:?}: {error}"))
                    .hint("install what brings the kind, or leave out the configuration that asks for it")
            })?;
            (resource, capabilities.scope)
        }
    };
    Ok(match scope {
        Scope::Namespaced => {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or(default_namespace);
            Api::namespaced_with(client.clone(), namespace, &resource)
        }
        Scope::Cluster => Api::all_with(client.clone(), &resource),
    })
}

/// `Kind NAME`, for messages.
pub fn title(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// Server-side apply: creates the object, or makes the fields that it has what it says. Fields of others stay.
pub async fn apply(client: &kube::Client, object: &Value, default_namespace: &str) -> anyhow::Result<DynamicObject> {
    let api = api_for(client, object, default_namespace).await?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let mut params = PatchParams::apply(FIELD_MANAGER).force();
    // What the server would drop is a mistake in the configuration.
    params.field_validation = Some(ValidationDirective::Strict);
    let result = api.patch(name, &params, &Patch::Apply(object)).await;
    result.map_err(|error| match error {
        kube::Error::Api(status) => {
            Failure::failed(format!("cannot apply {}: {}", title(object), status.message)).into()
        }
        error => anyhow::Error::from(error).context(format!("cannot apply {}", title(object))),
    })
}

/// `Some` unless the server says that it is not there.
pub fn found<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks every `period` until there is an answer or `timeout` is over.
pub async fn poll<T>(timeout: Duration, period: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let wait = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(period).await;
        }
    };
    tokio::time::timeout(timeout, wait).await.ok()
}
