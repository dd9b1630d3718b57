//! Applying and deleting objects given as JSON trees, with paths from the table of built-in resources.

use std::time::Duration;

use apimachinery::resources;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::Scope;
use serde_json::Value;

use crate::failure::Failure;

/// The API of the kind of `object`, in its own namespace or `default_namespace`.
pub fn api_for(client: &kube::Client, object: &Value, default_namespace: &str) -> anyhow::Result<Api<DynamicObject>> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let kind = object["kind"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let Some(resource) = resources::by_kind(group, version, kind) else {
        return Err(Failure::invalid(format!("there is no kind {kind:?} in {api_version:?}")).into());
    };
    let api_resource = ApiResource {
        group: group.to_string(),
        version: version.to_string(),
        api_version: api_version.to_string(),
        kind: kind.to_string(),
        plural: resource.name.to_string(),
    };
    let scope = if resource.namespaced { Scope::Namespaced } else { Scope::Cluster };
    Ok(match scope {
        Scope::Namespaced => {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or(default_namespace);
            Api::namespaced_with(client.clone(), namespace, &api_resource)
        }
        Scope::Cluster => Api::all_with(client.clone(), &api_resource),
    })
}

/// Creates the object, or merges it into the one that exists.
pub async fn apply(client: &kube::Client, object: &Value, default_namespace: &str) -> anyhow::Result<DynamicObject> {
    let api = api_for(client, object, default_namespace)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_string();
    let what = format!("{} {name}", object["kind"].as_str().unwrap_or_default());
    let typed: DynamicObject = serde_json::from_value(object.clone())
        .map_err(|error| Failure::invalid(format!("{what} is not an object: {error}")))?;
    let params = PostParams { field_manager: Some("alcove".into()), ..Default::default() };
    let result = match api.create(&params, &typed).await {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
            let params = PatchParams { field_manager: Some("alcove".into()), ..Default::default() };
            api.patch(&name, &params, &Patch::Merge(object)).await
        }
        result => result,
    };
    result.map_err(|error| match error {
        kube::Error::Api(status) => Failure::failed(format!("cannot apply {what}: {}", status.message)).into(),
        error => anyhow::Error::from(error).context(format!("cannot apply {what}")),
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
