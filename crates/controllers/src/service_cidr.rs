//! service-cidr: says when a ServiceCIDR is ready, and keeps one until no address of it would be orphaned.
//!
//! Follows: `pkg/controller/servicecidrs`; KEP-1880.

use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::json::Str;
use informer::{Header, Informer, ObjectKey, ObjectMeta, Outcome, null_default};
use jiff::SignedDuration;
use serde::Deserialize;

use crate::context::{Context, ReconcileError, ReconcileResult, ignore_not_found, key_queue, wait};
use crate::resources::{IP_ADDRESSES, SERVICE_CIDRS};
use crate::types::{Condition, cached, conditions_value, find_condition};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Allocators hear of a deletion within this time and give out no more addresses.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceCidr {
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
}

cached!(ServiceCidr);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(deserialize_with = "null_default")]
    cidrs: Vec<Str>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(deserialize_with = "null_default")]
    conditions: Vec<Condition>,
}

/// An address range: its first address as a number, its length, and whether it is IPv6.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    base: u128,
    length: u32,
    v6: bool,
}

fn bits(address: IpAddr) -> (u128, bool) {
    match address {
        // Aligned left, so that prefixes compare alike.
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, false),
        IpAddr::V6(v6) => (u128::from(v6), true),
    }
}

impl Range {
    fn parse(text: &str) -> Option<Range> {
        let (address, length) = text.split_once('/')?;
        let (base, v6) = bits(address.parse().ok()?);
        Some(Range { base, length: length.parse().ok()?, v6 })
    }

    fn contains(&self, (address, v6): (u128, bool)) -> bool {
        let mask = if self.length == 0 { 0 } else { u128::MAX << (128 - self.length) };
        self.v6 == v6 && (self.base ^ address) & mask == 0
    }

    fn covers(&self, other: &Range) -> bool {
        self.length <= other.length && self.contains((other.base, other.v6))
    }
}

fn ranges(cidr: &ServiceCidr) -> Vec<Range> {
    cidr.spec.cidrs.iter().filter_map(|c| Range::parse(c)).collect()
}

/// Whether a range can go: others cover it, or no address would be left without one.
fn may_delete(cidr: &ServiceCidr, others: &[Arc<ServiceCidr>], addresses: &[IpAddr]) -> bool {
    let others: Vec<Range> = others
        .iter()
        .filter(|o| o.metadata.name != cidr.metadata.name && !o.metadata.is_deleting())
        .flat_map(|o| ranges(o))
        .collect();
    let own = ranges(cidr);
    if own.iter().all(|range| others.iter().any(|o| o.covers(range))) {
        return true;
    }
    let addresses = addresses.iter().map(|a| bits(*a));
    !addresses.into_iter().any(|a| own.iter().any(|r| r.contains(a)) && !others.iter().any(|o| o.contains(a)))
}

struct Controller {
    context: Context,
    cidrs: Informer<ServiceCidr>,
    addresses: Informer<Header>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("service-cidrs-controller", "service-cidr-controller");
    let queue = key_queue();
    let cidrs: Informer<ServiceCidr> = context.factory.informer(SERVICE_CIDRS);
    let addresses: Informer<Header> = context.factory.informer(IP_ADDRESSES);
    let (adds, all) = (queue.clone(), cidrs.clone());
    cidrs.on_change(move |change| {
        adds.add(change.object().metadata.key());
        for other in all.list().iter().filter(|c| c.metadata.is_deleting()) {
            adds.add(other.metadata.key());
        }
    });
    let (adds, all) = (queue.clone(), cidrs.clone());
    addresses.on_change(move |change| {
        if change.is_deleted() {
            for cidr in all.list().iter().filter(|c| c.metadata.is_deleting()) {
                adds.add(cidr.metadata.key());
            }
        }
    });
    let synced = vec![cidrs.synced(), addresses.synced()];
    let controller = Arc::new(Controller { context: context.clone(), cidrs, addresses });
    context.run("service-cidr", 1, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(cidr) = self.cidrs.get(&key) else { return Ok(Outcome::Done) };
        let now = self.context.now();
        if let Some(deleted) = cidr.metadata.deletion_timestamp {
            let addresses: Vec<IpAddr> =
                self.addresses.list().iter().filter_map(|a| a.metadata.name.parse().ok()).collect();
            if !may_delete(&cidr, &self.cidrs.list(), &addresses) {
                let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
                let condition = Condition::new("Ready", false, "Terminating", message, now);
                self.set_condition(&cidr, condition).await?;
                return Ok(Outcome::Done);
            }
            let left = GRACE - now.duration_since(deleted);
            if left.is_positive() {
                return Ok(Outcome::After(wait(left)));
            }
            if cidr.metadata.has_finalizer(FINALIZER) {
                let keep = cidr.metadata.finalizers.iter().map(|f| f.as_str()).filter(|f| *f != FINALIZER).collect();
                ignore_not_found(self.context.set_finalizers(&SERVICE_CIDRS, &cidr.metadata, keep).await)?;
            }
            return Ok(Outcome::Done);
        }
        if !cidr.metadata.has_finalizer(FINALIZER) {
            let all = cidr.metadata.finalizers.iter().map(|f| f.as_str()).chain([FINALIZER]).collect();
            ignore_not_found(self.context.set_finalizers(&SERVICE_CIDRS, &cidr.metadata, all).await)?;
            return Ok(Outcome::Done);
        }
        let condition = Condition::new("Ready", true, "", "Kubernetes Service CIDR is ready", now);
        self.set_condition(&cidr, condition).await?;
        Ok(Outcome::Done)
    }

    async fn set_condition(&self, cidr: &ServiceCidr, condition: Condition) -> Result<(), ReconcileError> {
        let known = find_condition(&cidr.status.conditions, "Ready");
        let same = |k: &Condition| {
            k.status == condition.status && k.reason == condition.reason && k.message == condition.message
        };
        if known.is_some_and(same) {
            return Ok(());
        }
        let mut conditions = cidr.status.conditions.clone();
        conditions.retain(|c| c.kind != "Ready");
        conditions.push(condition);
        let mut patch = Value::object();
        patch["conditions"] = conditions_value(&conditions, "reason");
        ignore_not_found(self.context.patch_status(&SERVICE_CIDRS, &cidr.metadata, patch).await)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn a_range_goes_when_no_address_is_orphaned() {
        let cidr = |name: &str, cidrs: Value| -> Arc<ServiceCidr> {
            let mut object = json!({"metadata": {"name": name}});
            object["spec"]["cidrs"] = cidrs;
            Arc::new(object.to().unwrap())
        };
        let own = cidr("own", json!(["10.0.1.0/24"]));
        let wide = cidr("wide", json!(["10.0.0.0/16"]));
        let half = cidr("half", json!(["10.0.1.0/25"]));
        let at = |ip: &str| vec![ip.parse::<IpAddr>().unwrap()];
        for (others, addresses, want) in [
            (vec![own.clone()], vec![], true),
            (vec![own.clone()], at("10.0.1.5"), false),
            (vec![own.clone()], at("10.0.2.5"), true),
            (vec![own.clone(), wide], at("10.0.1.5"), true),
            (vec![own.clone(), half.clone()], at("10.0.1.5"), true),
            (vec![own.clone(), half], at("10.0.1.200"), false),
            (vec![own.clone()], at("fd00::1"), true),
        ] {
            assert_eq!(may_delete(&own, &others, &addresses), want, "{addresses:?}");
        }
    }
}
