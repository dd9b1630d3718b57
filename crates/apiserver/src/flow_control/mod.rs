//! API priority and fairness: which FlowSchema and priority level a request belongs to, told in the headers of the answer.
//!
//! Requests are classified and not queued: a server is one process among many on its machine and has no seats to share
//! out. The objects are kept as a real server keeps them: the built-in ones exist ([`bootstrap`]), and the status of each
//! FlowSchema says whether its priority level exists.
//!
//! Follows: `k8s.io/apiserver/pkg/util/flowcontrol/{apf_controller,rule}.go`,
//! `k8s.io/apiserver/pkg/server/filters/priority-and-fairness.go`.

mod bootstrap;
mod classify;

use std::sync::Arc;

use apimachinery::meta::ObjectMeta;
use apimachinery::{Value, json};
use http::Request;
use http_body_util::Full;
use tower::ServiceExt;

use crate::authn::UserInfo;
use crate::in_process::InProcess;
use crate::registry::ResourceHandle;
use crate::storage::Storage;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";

pub use bootstrap::ensure;
pub use classify::{Class, FlowControl};

/// Keeps the classification and the status of FlowSchemas current. Runs until it is dropped.
pub async fn run(storage: Arc<Storage>, flow: Arc<FlowControl>, service: InProcess) {
    let handle = |resource: &str| storage.registry.get(GROUP, "v1", resource);
    let (Some(schemas), Some(levels)) = (handle("flowschemas"), handle("prioritylevelconfigurations")) else { return };
    let caches = [&schemas, &levels].map(|r| r.storage.as_ref().map(|s| s.cache.subscribe()));
    let [Some(mut schemas_changed), Some(mut levels_changed)] = caches else { return };
    loop {
        schemas_changed.mark_unchanged();
        levels_changed.mark_unchanged();
        flow.refresh(&schemas, &levels);
        for (name, condition) in due(&schemas, &levels, &storage) {
            set(&service, &name, condition).await;
        }
        let changed = tokio::select! {
            changed = schemas_changed.changed() => changed,
            changed = levels_changed.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The conditions that are not as they should be.
fn due(schemas: &ResourceHandle, levels: &ResourceHandle, storage: &Storage) -> Vec<(String, Value)> {
    let Some(cache) = schemas.storage.as_ref().map(|s| &s.cache) else { return Vec::new() };
    let snapshot = cache.snapshot("", 0, |_| true);
    let due = snapshot.entries.iter().filter_map(|entry| {
        let schema = entry.to_value();
        let level = schema.str_at(&["spec", "priorityLevelConfiguration", "name"]);
        let exists = storage.get_cached(levels, "", level).is_some();
        let wanted = if exists { "False" } else { "True" };
        let condition = schema.array_at(&["status", "conditions"]).iter().find(|c| c.str_at(&["type"]) == "Dangling");
        if condition.is_some_and(|c| c.str_at(&["status"]) == wanted) {
            return None;
        }
        let (reason, text) =
            if exists { ("Found", "and it exists") } else { ("NotFound", "but there is no such object") };
        let level = Value::from(level);
        let condition = json!({
            "type": "Dangling", "status": wanted, "reason": reason, "lastTransitionTime": crate::handlers::write::now(),
            "message": format!("This FlowSchema references the PriorityLevelConfiguration object named {level} {text}"),
        });
        Some((schema.name().to_owned(), condition))
    });
    due.collect()
}

async fn set(service: &InProcess, name: &str, condition: Value) {
    let mut body = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "FlowSchema", "metadata": {"name": name}, "status": {},
    });
    body["status"]["conditions"] = Value::Array(vec![condition]);
    let request =
        Request::patch(format!("/apis/{GROUP}/v1/flowschemas/{name}/status?fieldManager={MANAGER}&force=true"))
            .header(http::header::CONTENT_TYPE, "application/apply-patch+yaml")
            .body(Full::new(bytes::Bytes::from(body.to_vec())));
    let Ok(request) = request else { return };
    match service.clone().oneshot(request).await {
        // A schema that is gone by now, or was changed meanwhile, comes up again.
        Ok(response) if !response.status().is_success() => {
            tracing::debug!(%name, status = %response.status(), "the status of a FlowSchema was not set");
        }
        _ => {}
    }
}

/// The user of this controller.
pub fn user() -> UserInfo {
    UserInfo::new("system:apiserver", ["system:masters", "system:authenticated"])
}
