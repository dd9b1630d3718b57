//! Which host names other Ingresses of the host have: the first one keeps it.
//!
//! Only where the control plane may look at all Ingresses of the host; without that right nothing is checked.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::json::Str;
use informer::{RawObject, Source};

use super::Engine;
use super::side::resource;
use crate::kind;
use crate::metadata::MANAGED_BY_LABEL;

const BY_HOSTNAME: &str = "hostname";

/// The host names that an Ingress claims.
fn hostnames(ingress: &Value) -> Vec<&str> {
    let rules = ingress.array_at(&["spec", "rules"]).iter().map(|r| r.str_at(&["host"]));
    let mut out: Vec<&str> = rules.filter(|h| !h.is_empty()).collect();
    out.sort_unstable();
    out.dedup();
    out
}

impl Engine {
    /// Looks once whether the host lets us see all Ingresses, and watches them if so.
    pub(super) async fn watch_hostnames(self: Arc<Engine>) {
        let path = resource(&kind::INGRESS).path("", "", "");
        if let Err(error) = self.host_side.rest.get_path(&format!("{path}?limit=1"), "application/json").await {
            tracing::info!(%error, "host names of Ingresses are not compared with other tenants'");
            return;
        }
        let all = self.host_wide.informer::<RawObject>(Source::all(resource(&kind::INGRESS)));
        all.add_index(BY_HOSTNAME, |ingress: &RawObject, out: &mut Vec<Str>| {
            if let Ok(tree) = ingress.to_tree() {
                out.extend(hostnames(&tree).into_iter().map(Str::from));
            }
        });
        let (of, own) = (Arc::downgrade(&self), self.names.virtual_cluster().to_owned());
        all.on_change(move |change| {
            let foreign = change.object().metadata.labels.get(MANAGED_BY_LABEL) != Some(own.as_str());
            if let Some(engine) = of.upgrade().filter(|_| foreign) {
                engine.enqueue_all(&kind::INGRESS);
            }
        });
        // Once per engine.
        let _ = self.host_ingresses.set(all);
    }

    /// Host names of a virtual Ingress that another one on the host had before.
    pub(super) fn hostnames_taken(&self, ingress: &Value, host: Option<&Value>) -> Vec<String> {
        let Some(all) = self.host_ingresses.get() else { return Vec::new() };
        let since = host.map(|h| h.str_at(&["metadata", "creationTimestamp"])).unwrap_or_default();
        let own = self.names.virtual_cluster();
        let taken = |hostname: &&str| {
            all.by_index(BY_HOSTNAME, hostname).iter().any(|other| {
                let ours = other.metadata.labels.get(MANAGED_BY_LABEL) == Some(own)
                    && self.names.is_target_namespace(&other.metadata.namespace);
                let created = other.to_tree().map(|o| o.str_at(&["metadata", "creationTimestamp"]).to_owned());
                !ours && (since.is_empty() || created.is_ok_and(|c| c.as_str() < since))
            })
        };
        hostnames(ingress).into_iter().filter(taken).map(str::to_owned).collect()
    }
}
