//! Which host names other Ingresses of the host have: the first one keeps it, and of two made in one second the one whose
//! namespace and name come first.
//!
//! Only where the control plane may look at all Ingresses of the host; without that right nothing is checked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::json::Str;
use informer::{RawObject, Source};

use super::Engine;
use super::side::resource;
use crate::kind;
use crate::metadata::MANAGED_BY_LABEL;
use crate::types::ingress::hostnames;

const BY_HOSTNAME: &str = "hostname";
/// How long to wait before a host that did not answer is asked again.
const RETRY: Duration = Duration::from_secs(2);

/// What decides between two Ingresses that both have a host name on the host.
fn age(ingress: &Value) -> [&str; 3] {
    ["creationTimestamp", "namespace", "name"].map(|member| ingress.str_at(&["metadata", member]))
}

impl Engine {
    /// Looks whether the host lets us see all Ingresses, and watches them if so. No Ingress goes to the host before that.
    pub(super) async fn watch_hostnames(self: Arc<Engine>) {
        let path = format!("{}?limit=1", resource(&kind::INGRESS).path("", "", ""));
        loop {
            match self.host_side.rest.get_path(&path, "application/json").await {
                Ok(_) => break,
                Err(error) if error.code() == 403 => {
                    tracing::info!(%error, "host names of Ingresses are not compared with other tenants'");
                    self.hostnames_known.store(true, Ordering::Release);
                    return;
                }
                Err(error) => tracing::warn!(%error, "could not look at the Ingresses of the host"),
            }
            tokio::select! {
                // Cancel-safe: nothing was started yet.
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
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
        let _ = self.host_ingresses.set(all.clone());
        tokio::select! {
            // Cancel-safe: only a flag is set after it.
            () = self.cancel.cancelled() => {}
            () = all.wait_synced() => self.hostnames_known.store(true, Ordering::Release),
        }
    }

    /// Host names of a virtual Ingress that another one on the host had before. A name that the host object does not have yet
    /// is a new claim: then anybody who has it was first.
    pub(super) fn hostnames_taken(&self, ingress: &Value, host: Option<&Value>) -> Vec<String> {
        let Some(all) = self.host_ingresses.get() else { return Vec::new() };
        let own = self.names.virtual_cluster();
        let taken = |hostname: &&str| {
            let since = host.filter(|h| hostnames(h).contains(hostname)).map(age);
            all.by_index(BY_HOSTNAME, hostname).iter().any(|other| {
                let ours = other.metadata.labels.get(MANAGED_BY_LABEL) == Some(own)
                    && self.names.is_target_namespace(&other.metadata.namespace);
                let earlier = |since| other.to_tree().is_ok_and(|other| age(&other) < since);
                !ours && since.is_none_or(earlier)
            })
        };
        hostnames(ingress).into_iter().filter(taken).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn the_first_claim_counts() {
        let at = |time: &str, namespace: &str| json!({"metadata": {"creationTimestamp": time, "namespace": namespace, "name": "i"}});
        let (early, late) = (at("2026-01-01T00:00:00Z", "z"), at("2026-01-01T00:00:01Z", "a"));
        assert!(age(&early) < age(&late));
        assert!(age(&at("2026-01-01T00:00:00Z", "a")) < age(&early), "made in one second");
    }
}
