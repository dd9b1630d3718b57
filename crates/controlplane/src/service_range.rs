//! Which addresses Services of the host have. Virtual Services carry addresses of the host, so the virtual API server must
//! have the host's range.
//!
//! In this order: ServiceCIDR objects (hosts since 1.33, when they may be read), what was found before (an annotation of
//! Service `NAME`), and trying: Services that are never stored (`dryRun=All`) with addresses of which the host says whether
//! they are in its range.
//!
//! Follows: vCluster's detection, without its leftovers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use apimachinery::{Value, json};
use informer::{ApiError, Resource};
use kube::client::Body;

use crate::host::{Host, HostError, HostService, failed};

/// Annotation of Service `NAME`: the range that was found.
pub(crate) const ANNOTATION: &str = "vcluster.loft.sh/service-cidr";
const SERVICE_CIDRS: Resource = Resource::new("networking.k8s.io", "v1", "servicecidrs");
/// Addresses of documentation networks: no cluster has them for its Services.
const NEVER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const NEVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Finds the range, one per address family, separated by a comma. `None` when the host does not let it be found out.
pub(crate) async fn find(host: &Host, name: &str, service: &HostService) -> Option<String> {
    if let Some(range) = from_objects(host).await {
        return Some(range);
    }
    let known = service.object.str_at(&["metadata", "annotations", ANNOTATION]);
    if !known.is_empty() && known.split(',').all(|range| Range::parse(range).is_some()) {
        return Some(known.to_string());
    }
    match probe(host).await {
        Ok(Some(range)) => {
            if let Err(error) = host.annotate_service(name, ANNOTATION, &range).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the service range could not be remembered");
            }
            Some(range)
        }
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the host's service range could not be found out");
            None
        }
    }
}

async fn from_objects(host: &Host) -> Option<String> {
    let object = host.rest.get(&SERVICE_CIDRS, "", "kubernetes").await.ok()?;
    let ranges: Vec<&str> = object.array_at(&["spec", "cidrs"]).iter().filter_map(Value::as_str).collect();
    (!ranges.is_empty()).then(|| ranges.join(","))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    address: IpAddr,
    prefix: u8,
}

impl Range {
    fn parse(text: &str) -> Option<Range> {
        let (address, prefix) = text.trim().split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        (prefix <= bits(address)).then(|| Range::around(address, prefix))
    }

    /// The range of this size that holds the address.
    fn around(address: IpAddr, prefix: u8) -> Range {
        let shift = bits(address) - prefix;
        let number = number(address).checked_shr(shift.into()).and_then(|n| n.checked_shl(shift.into())).unwrap_or(0);
        Range { address: with_number(address, number), prefix }
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Range::around(address, self.prefix) == *self
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// An address of the same family.
fn with_number(family: IpAddr, number: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// What the host says about an address for a Service.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Inside,
    Outside,
    /// It even told the range.
    Range(Range),
}

/// Reads the refusal of a Service with a chosen address. `None`: it is about something else.
fn verdict(message: &str) -> Option<Verdict> {
    if let Some((_, rest)) = message.split_once("The range of valid IPs is ") {
        let text: String = rest.chars().take_while(|c| c.is_ascii_hexdigit() || ".:/".contains(*c)).collect();
        if let Some(range) = Range::parse(text.trim_end_matches(['.', ':'])) {
            return Some(Verdict::Range(range));
        }
    }
    if message.contains("is already allocated") {
        return Some(Verdict::Inside);
    }
    ["not in the valid range", "network does not match", "no IPAllocator", "not contained", "does not belong"]
        .iter()
        .any(|text| message.contains(text))
        .then_some(Verdict::Outside)
}

async fn try_service(host: &Host, spec: Value) -> Result<Value, ApiError> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"generateName": "test-service-delete-me-", "namespace": (host.namespace.as_str())},
        "spec": spec,
    });
    let uri = format!("/api/v1/namespaces/{}/services?dryRun=All", host.namespace);
    let request = http::Request::post(uri).header(http::header::CONTENT_TYPE, "application/json");
    let body = host.rest.send(request.body(Body::from(service.to_vec()))?).await?;
    Ok(Value::from_slice(&body)?)
}

async fn ask(host: &Host, address: IpAddr) -> Result<Verdict, ApiError> {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let spec = json!({
        "ports": [{"port": 80}],
        "clusterIP": (address.to_string()),
        "ipFamilies": [family],
        "ipFamilyPolicy": "SingleStack",
    });
    match try_service(host, spec).await {
        Ok(_) => Ok(Verdict::Inside),
        Err(ApiError::Status { message, code, reason, details, retry_after }) => {
            verdict(&message).ok_or(ApiError::Status { message, code, reason, details, retry_after })
        }
        Err(error) => Err(error),
    }
}

async fn probe(host: &Host) -> Result<Option<String>, HostError> {
    let fail = || failed("try", format!("Services in {}", host.namespace));
    let spec = json!({"ports": [{"port": 80}], "ipFamilyPolicy": "PreferDualStack"});
    let made = try_service(host, spec).await.map_err(fail())?;
    let mut ranges = Vec::new();
    for text in made.array_at(&["spec", "clusterIPs"]).iter().filter_map(Value::as_str) {
        let Ok(address) = text.parse::<IpAddr>() else { continue };
        ranges.push(range_around(host, address).await.map_err(fail())?.to_string());
    }
    Ok((!ranges.is_empty()).then(|| ranges.join(",")))
}

/// The range of Service addresses that holds `address`.
async fn range_around(host: &Host, address: IpAddr) -> Result<Range, ApiError> {
    let never = if address.is_ipv4() { NEVER_V4.into() } else { NEVER_V6.into() };
    if let Verdict::Range(range) = ask(host, never).await?
        && range.contains(address)
    {
        return Ok(range);
    }
    // A range of prefix p holds the address with bit p turned over only when it is larger than that.
    let (mut low, mut high) = (if address.is_ipv4() { 8 } else { 64 }, bits(address));
    while low < high {
        let middle = low + (high - low) / 2;
        let neighbour = with_number(address, number(address) ^ (1 << (bits(address) - 1 - middle)));
        match ask(host, neighbour).await? {
            Verdict::Range(range) if range.contains(address) => return Ok(range),
            Verdict::Inside => high = middle,
            Verdict::Outside | Verdict::Range(_) => low = middle + 1,
        }
    }
    Ok(Range::around(address, low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_understood() {
        for (message, want) in [
            (
                "Service \"a\" is invalid: spec.clusterIPs: Invalid value: [\"1.1.1.1\"]: failed to allocate IP 1.1.1.1: the provided IP (1.1.1.1) is not in the valid range. The range of valid IPs is 10.96.0.0/12",
                Some(Verdict::Range(Range { address: "10.96.0.0".parse().unwrap(), prefix: 12 })),
            ),
            (
                "failed to allocate IP fd00::1: the provided IP (fd00::1) is not in the valid range. The range of valid IPs is fd00:10:96::/112.",
                Some(Verdict::Range(Range { address: "fd00:10:96::".parse().unwrap(), prefix: 112 })),
            ),
            ("failed to allocate IP 10.96.0.1: provided IP is already allocated", Some(Verdict::Inside)),
            (
                "failed to allocate IP 9.9.9.9: the provided network does not match the current range",
                Some(Verdict::Outside),
            ),
            ("exceeded quota: q", None),
        ] {
            assert_eq!(verdict(message), want, "{message}");
        }
    }

    #[test]
    fn ranges_hold_their_addresses() {
        for (address, prefix, want) in [
            ("10.96.7.9", 12, "10.96.0.0/12"),
            ("10.0.0.1", 32, "10.0.0.1/32"),
            ("fd00:1::9", 112, "fd00:1::/112"),
            ("1.2.3.4", 0, "0.0.0.0/0"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            let range = Range::around(address, prefix);
            assert_eq!(range.to_string(), want);
            assert!(range.contains(address));
            assert_eq!(Range::parse(want), Some(range));
        }
        assert_eq!(Range::parse("10.0.0.0/33"), None);
    }
}
