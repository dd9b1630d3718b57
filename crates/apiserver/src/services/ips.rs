//! Cluster IPs: ServiceCIDR objects say from where, IPAddress objects say which are taken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use apimachinery::gvk::GroupVersionKind;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use apimachinery::{Value, json};
use rand::Rng;

use super::held_ips;
use crate::bootstrap::ensure;
use crate::managed_fields;
use crate::registry::ResourceHandle;
use crate::storage::{ListRequest, Storage, WriteFailure};

const GROUP: &str = "networking.k8s.io";
const FAMILY_LABEL: &str = "ipaddress.kubernetes.io/ip-family";
const MANAGED_BY_LABEL: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGED_BY: &str = "ipallocator.k8s.io";

/// Why no address was given.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    #[error("range is full")]
    Full,
    #[error("provided IP is already allocated")]
    Allocated,
    #[error("the provided network does not match the current range")]
    MismatchedNetwork,
    #[error("the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}")]
    NotInRange { ip: IpAddr, range: String },
    #[error("{}", .0.message)]
    Status(Box<Status>),
}

/// A range of addresses as numbers; IPv6 ranges are at most 64 bits wide.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    v6: bool,
    network: u128,
    prefix: u8,
    text: String,
}

impl Range {
    fn parse(text: &str) -> Option<Range> {
        let (address, prefix) = text.trim().split_once('/')?;
        let prefix: u8 = prefix.parse().ok()?;
        let (v6, bits, number) = match address.parse().ok()? {
            IpAddr::V4(ip) => (false, 32, u128::from(u32::from(ip))),
            IpAddr::V6(ip) => (true, 128, u128::from(ip)),
        };
        if prefix > bits || bits - prefix > 64 {
            return None;
        }
        let mask = (1_u128 << (bits - prefix)) - 1;
        Some(Range { v6, network: number & !mask, prefix, text: text.trim().to_owned() })
    }

    fn host_bits(&self) -> u8 {
        if self.v6 { 128 - self.prefix } else { 32 - self.prefix }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        let (v6, number) = number(ip);
        v6 == self.v6 && number >> self.host_bits() == self.network >> self.host_bits()
    }

    /// The first and the last address that can be given: not the network's own, nor the broadcast address.
    fn usable(&self) -> Option<(u128, u128)> {
        let last = self.network + ((1_u128 << self.host_bits()) - 1);
        let last = if self.v6 { last } else { last.checked_sub(1)? };
        let first = self.network + 1;
        (first <= last).then_some((first, last))
    }

    fn ip(&self, number: u128) -> IpAddr {
        if self.v6 { Ipv6Addr::from(number).into() } else { Ipv4Addr::from(number as u32).into() }
    }
}

fn number(ip: IpAddr) -> (bool, u128) {
    match ip {
        IpAddr::V4(ip) => (false, u128::from(u32::from(ip))),
        IpAddr::V6(ip) => (true, u128::from(ip)),
    }
}

/// Gives cluster IPs.
pub struct ServiceIps {
    families: Vec<String>,
}

impl ServiceIps {
    /// `ranges` is `--service-cluster-ip-range`: one or two, the primary one first.
    pub fn new(ranges: &str) -> ServiceIps {
        let families = ranges.split(',').filter_map(Range::parse);
        ServiceIps { families: families.map(|r| if r.v6 { "IPv6" } else { "IPv4" }.to_owned()).collect() }
    }

    /// The configured families, the default one first.
    pub fn families(&self) -> &[String] {
        &self.families
    }

    /// Reserves this address.
    pub async fn allocate(
        &self,
        storage: &Arc<Storage>,
        service: &Value,
        ip: IpAddr,
        dry_run: bool,
    ) -> Result<(), AllocateError> {
        let ranges = ranges(storage).await.map_err(AllocateError::Status)?;
        let range = ranges.iter().find(|r| r.contains(ip)).ok_or(AllocateError::MismatchedNetwork)?;
        if range.usable().is_none_or(|(first, last)| !(first..=last).contains(&number(ip).1)) {
            return Err(AllocateError::NotInRange { ip, range: range.text.clone() });
        }
        // A dry run does not look whether the address is free: that could change before it is asked for.
        if dry_run {
            return Ok(());
        }
        create(storage, service, ip).await
    }

    /// Reserves any address of a family, by preference not from the lower part of a range, which is left to addresses that
    /// are chosen by hand.
    pub async fn allocate_next(
        &self,
        storage: &Arc<Storage>,
        service: &Value,
        v6: bool,
        dry_run: bool,
    ) -> Result<IpAddr, AllocateError> {
        let ranges = ranges(storage).await.map_err(AllocateError::Status)?;
        for range in ranges.iter().filter(|r| r.v6 == v6) {
            let Some((first, last)) = range.usable() else { continue };
            if dry_run {
                return Ok(range.ip(first));
            }
            let size = last - first + 1;
            let band = if size < 16 { 0 } else { (size / 16).clamp(16, 256).min(size) };
            for (start, end) in [(first + band, last), (first, (first + band).min(last))] {
                if start > end {
                    continue;
                }
                if let Some(ip) = Self::search(storage, service, range, start, end).await? {
                    return Ok(ip);
                }
            }
        }
        Err(AllocateError::Full)
    }

    async fn search(
        storage: &Arc<Storage>,
        service: &Value,
        range: &Range,
        start: u128,
        end: u128,
    ) -> Result<Option<IpAddr>, AllocateError> {
        let Some(resource) = addresses(storage) else { return Ok(None) };
        let count = end - start + 1;
        let offset = rand::rng().random_range(0..count);
        for i in 0..count {
            let ip = range.ip(start + (offset + i) % count);
            if storage.get_cached(&resource, "", &ip.to_string()).is_some() {
                continue;
            }
            match create(storage, service, ip).await {
                Ok(()) => return Ok(Some(ip)),
                // Somebody else was faster.
                Err(AllocateError::Allocated) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

fn addresses(storage: &Arc<Storage>) -> Option<ResourceHandle> {
    storage.registry.get(GROUP, "v1", "ipaddresses")
}

/// The ranges of all ServiceCIDRs that are ready, the default ones first.
async fn ranges(storage: &Arc<Storage>) -> StatusResult<Vec<Range>> {
    let Some(resource) = storage.registry.get(GROUP, "v1", "servicecidrs") else { return Ok(Vec::new()) };
    let page = storage.list(&resource, "", &ListRequest::default(), |_| true).await?;
    let mut cidrs: Vec<Value> = page.entries.iter().map(|e| e.to_value()).collect();
    cidrs.sort_by_key(|c| (c.name() != "kubernetes", c.name().to_owned()));
    let ready = |c: &&Value| {
        let conditions = c.array_at(&["status", "conditions"]);
        !c.is_terminating()
            && conditions.iter().any(|s| s.str_at(&["type"]) == "Ready" && s.str_at(&["status"]) == "True")
    };
    let texts = cidrs.iter().filter(ready).flat_map(|c| c.array_at(&["spec", "cidrs"]));
    Ok(texts.filter_map(|t| Range::parse(t.as_str()?)).collect())
}

/// Creates the IPAddress object that reserves an address.
async fn create(storage: &Arc<Storage>, service: &Value, ip: IpAddr) -> Result<(), AllocateError> {
    let Some(resource) = addresses(storage) else { return Ok(()) };
    let name = ip.to_string();
    let mut object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": name.as_str(), "labels": {
            FAMILY_LABEL: if ip.is_ipv6() { "IPv6" } else { "IPv4" }, MANAGED_BY_LABEL: MANAGED_BY}},
        "spec": {"parentRef": {"resource": "services", "namespace": service.namespace(), "name": service.name()}},
    });
    managed_fields::track_system(&GroupVersionKind::new(GROUP, "v1", "IPAddress"), "IPAddress", &mut object);
    let metadata = object.metadata_mut();
    metadata.insert("uid", uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp", crate::handlers::write::now().into());
    match storage.insert(&resource, "", &name, &object).await {
        Ok(_) => Ok(()),
        Err(WriteFailure::Conflict(_)) => Err(AllocateError::Allocated),
        Err(WriteFailure::Status(status)) => Err(AllocateError::Status(status)),
    }
}

/// Gives addresses back. What goes wrong is repaired at the next start.
pub async fn release(storage: &Arc<Storage>, ips: &[String]) {
    let Some(resource) = addresses(storage) else { return };
    for ip in ips {
        let Ok(Some(entry)) = storage.get(&resource, "", ip).await else { continue };
        if let Err(WriteFailure::Status(status)) = storage.remove(&resource, "", ip, entry.revision).await {
            tracing::warn!(ip, reason = status.message, "an address could not be given back");
        }
    }
}

/// Creates the ServiceCIDR `kubernetes`.
pub async fn ensure_default_cidr(storage: &Arc<Storage>, ranges: &str) -> StatusResult<()> {
    let cidrs: Vec<&str> = ranges.split(',').map(str::trim).filter(|r| Range::parse(r).is_some()).collect();
    if cidrs.is_empty() {
        return Ok(());
    }
    let cidr = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": cidrs},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "lastTransitionTime":
            crate::handlers::write::now(), "message": "Kubernetes default Service CIDR is ready"}]},
    });
    ensure(storage, GROUP, "v1", "servicecidrs", cidr).await
}

/// Reserves addresses of Services that lost their objects, and frees those whose Service is gone.
pub async fn repair(storage: &Arc<Storage>, services: &[Value]) -> StatusResult<()> {
    let Some(resource) = addresses(storage) else { return Ok(()) };
    let mut owners: BTreeMap<String, &Value> = BTreeMap::new();
    for service in services {
        for ip in held_ips(service) {
            if let Ok(ip) = ip.parse::<IpAddr>() {
                owners.entry(ip.to_string()).or_insert(service);
            }
        }
    }
    let page = storage.list(&resource, "", &ListRequest::default(), |_| true).await?;
    let known: BTreeSet<&str> = page.entries.iter().map(|e| e.name()).collect();
    for (ip, service) in &owners {
        if known.contains(ip.as_str()) {
            continue;
        }
        let Ok(ip) = ip.parse() else { continue };
        match create(storage, service, ip).await {
            Ok(()) | Err(AllocateError::Allocated) => {}
            Err(AllocateError::Status(status)) => return Err(status),
            Err(error) => tracing::warn!(%ip, %error, "the address of a Service could not be reserved"),
        }
    }
    let lost: Vec<String> = page
        .entries
        .iter()
        .filter(|e| e.label(MANAGED_BY_LABEL) == Some(MANAGED_BY) && !owners.contains_key(e.name()))
        .map(|e| e.name().to_owned())
        .collect();
    release(storage, &lost).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_know_their_usable_addresses() {
        let range = Range::parse("10.96.0.0/16").unwrap();
        let (first, last) = range.usable().unwrap();
        assert_eq!(
            (range.ip(first).to_string(), range.ip(last).to_string()),
            ("10.96.0.1".into(), "10.96.255.254".into())
        );
        assert!(range.contains("10.96.3.4".parse().unwrap()) && !range.contains("10.97.0.1".parse().unwrap()));
        let range = Range::parse("fd00::/112").unwrap();
        let (first, last) = range.usable().unwrap();
        assert_eq!((range.ip(first).to_string(), range.ip(last).to_string()), ("fd00::1".into(), "fd00::ffff".into()));
        assert_eq!(Range::parse("10.0.0.0/31").and_then(|r| r.usable()), None);
        assert_eq!(Range::parse("fd00::/32"), None, "too wide");
        assert_eq!(ServiceIps::new("10.0.0.0/16,fd00::/112").families(), ["IPv4", "IPv6"]);
    }
}
