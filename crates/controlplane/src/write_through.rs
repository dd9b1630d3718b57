//! Custom resources that go to the host (`sync.toHost.customResources`) are stored only if the host would take them: its
//! webhooks, policies and quotas answer the tenant, not an event some time later.

use std::sync::Arc;

use apimachinery::gvk::GroupVersionResource;
use apimachinery::status::{Status, StatusResult};
use apimachinery::{Map, Value};
use apiserver::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use async_trait::async_trait;
use config::Config;
use informer::ApiError;
use syncer::settings::CustomKind;

use crate::link::Link;

/// The syncer's own user: what it writes came from the host.
const SYNCER: &str = "system:vcluster-syncer";

pub(crate) struct WriteThrough {
    link: Arc<Link>,
    kinds: Vec<CustomKind>,
}

/// What goes to the host of an object.
fn content(object: &Value) -> Map {
    let members = object.as_object().into_iter().flat_map(|m| m.iter());
    let mut content: Map = members
        .filter(|(k, _)| !matches!(k.as_str(), "metadata" | "status"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    for member in ["labels", "annotations"] {
        content.insert(member, object["metadata"][member].clone());
    }
    content
}

/// Puts the question before what counts: a refused object uses up no quota.
pub(crate) fn add(plugins: &mut Vec<Arc<dyn AdmissionPlugin>>, config: &Config, link: &Arc<Link>) {
    let custom = config.sync.to_host.custom_resources.iter().filter(|(_, resource)| resource.enabled);
    let kinds: Vec<CustomKind> = custom.filter_map(|(key, _)| CustomKind::parse(key)).collect();
    if !kinds.is_empty() {
        let at = plugins.iter().position(|p| p.name() == "ResourceQuota").unwrap_or(plugins.len());
        plugins.insert(at, Arc::new(WriteThrough { link: Arc::clone(link), kinds }));
    }
}

#[async_trait]
impl AdmissionPlugin for WriteThrough {
    fn name(&self) -> &'static str {
        "HostWriteThrough"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && subresource.is_empty()
            && self.kinds.iter().any(|kind| kind.group == gvr.group && kind.plural == gvr.resource)
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let Some(object) = &request.object else { return Ok(()) };
        let unchanged = request.old_object.as_ref().is_some_and(|old| content(old) == content(object));
        // On its way out it needs no place on the host.
        let leaves = object.at(&["metadata", "deletionTimestamp"]).is_some_and(|at| !at.is_null());
        if request.user.name == SYNCER || unchanged || leaves {
            return Ok(());
        }
        let Some(syncer) = self.link.syncer() else { return Ok(()) };
        match syncer.check_on_host(&request.gvr.group, &request.gvr.resource, object).await {
            Err(ApiError::Status { code, reason, message, .. }) => {
                let message = format!("refused by the host cluster: {message}");
                Err(Box::new(Status::failure(code, &reason, message)))
            }
            _ => Ok(()),
        }
    }
}
