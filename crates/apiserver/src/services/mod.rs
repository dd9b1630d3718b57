//! The addresses and ports of Services: cluster IPs, node ports, health check ports.
//!
//! Every cluster IP has an IPAddress object, whose creation is what reserves the address; node ports are counted in
//! memory and read from the Services at start, when addresses that were lost or left behind are repaired too.
//!
//! Invariants:
//! - An address or port is given to one Service at most: it is taken before the Service is written and given back when the
//!   write does not happen, when the Service no longer needs it, and when the Service is gone.
//! - With a [`ServiceAddressing`] nothing is chosen here: somebody else's addresses are adopted.
//!
//! Follows: `pkg/registry/core/service/storage/{alloc.go,storage.go}`, `pkg/registry/core/service/{ipallocator,portallocator}`.

mod families;
mod ips;
mod ports;

use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::GroupKind;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use async_trait::async_trait;

use crate::config::Config;
use crate::hooks::{Reservation, WriteHook};
use crate::registry::Resource;
use crate::storage::{ListRequest, Storage};
use ips::{AllocateError, ServiceIps};
use ports::{NodePorts, PortError};

pub use ips::ensure_default_cidr;

/// What somebody else chose for a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The cluster IPs, one for each family, the primary one first.
    pub cluster_ips: Vec<String>,
    /// The node port of each of the Service's ports, in their order; 0: none.
    pub node_ports: Vec<u16>,
    /// 0: none.
    pub health_check_node_port: u16,
}

/// Chooses addresses and ports in place of the server: in a virtual cluster those of the Service on the host.
#[async_trait]
pub trait ServiceAddressing: Send + Sync {
    /// Called for a Service that needs addresses and is about to be created (`old`: `None`) or changed. Headless and
    /// ExternalName Services do not come here. `None`: the server chooses by itself. Must not keep anything on a dry run.
    async fn assign(&self, service: &Value, old: Option<&Value>, dry_run: bool) -> StatusResult<Option<Assigned>>;

    /// The Service was not written, or it is gone.
    async fn release(&self, service: &Value);
}

/// The bookkeeping of Services.
pub struct ServiceAddresses {
    ips: ServiceIps,
    ports: Arc<NodePorts>,
    addressing: Option<Arc<dyn ServiceAddressing>>,
}

fn is_external_name(service: &Value) -> bool {
    service.str_at(&["spec", "type"]) == "ExternalName"
}

fn has_node_ports(service: &Value) -> bool {
    matches!(service.str_at(&["spec", "type"]), "NodePort" | "LoadBalancer")
}

fn wants_node_ports(service: &Value) -> bool {
    match service.str_at(&["spec", "type"]) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true),
        _ => false,
    }
}

fn needs_health_check(service: &Value) -> bool {
    service.str_at(&["spec", "type"]) == "LoadBalancer" && service.str_at(&["spec", "externalTrafficPolicy"]) == "Local"
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    value.array_at(&["spec", key]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn is_headless(service: &Value) -> bool {
    service.array_at(&["spec", "clusterIPs"]).first().is_some_and(|ip| ip == "None")
}

/// The cluster IPs that a stored Service holds.
fn held_ips(service: &Value) -> Vec<String> {
    if is_external_name(service) || is_headless(service) {
        return Vec::new();
    }
    strings(service, "clusterIPs").into_iter().filter(|ip| !ip.is_empty()).collect()
}

/// The node ports that a stored Service holds.
fn held_ports(service: &Value) -> Vec<u16> {
    let mut ports: Vec<u16> = node_ports(service).into_iter().filter(|p| *p != 0).collect();
    if needs_health_check(service) {
        ports.extend(port_number(&service["spec"]["healthCheckNodePort"]).filter(|p| *p != 0));
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn port_number(value: &Value) -> Option<u16> {
    value.as_i64().and_then(|p| u16::try_from(p).ok())
}

/// The node ports of a Service's ports, in their order.
fn node_ports(service: &Value) -> Vec<u16> {
    service.array_at(&["spec", "ports"]).iter().map(|p| port_number(&p["nodePort"]).unwrap_or(0)).collect()
}

fn invalid(service: &Value, errors: &[FieldError]) -> Box<Status> {
    Box::new(Status::invalid(&GroupKind::new("", "Service"), service.name(), errors))
}

/// What was taken for a write, and what the write makes free.
struct Taken {
    storage: Arc<Storage>,
    ports: Arc<NodePorts>,
    taken_ips: Vec<String>,
    taken_ports: Vec<u16>,
    /// Ports that a dry run asked for.
    tried_ports: Vec<u16>,
    free_ips: Vec<String>,
    free_ports: Vec<u16>,
    /// Tell the one who assigned that the write did not happen.
    addressing: Option<(Arc<dyn ServiceAddressing>, Value)>,
}

#[async_trait]
impl Reservation for Taken {
    async fn finish(self: Box<Self>, committed: bool) {
        let (ips, ports) =
            if committed { (&self.free_ips, &self.free_ports) } else { (&self.taken_ips, &self.taken_ports) };
        self.ports.release(ports);
        ips::release(&self.storage, ips).await;
        if let (Some((addressing, service)), false) = (&self.addressing, committed) {
            addressing.release(service).await;
        }
    }
}

impl ServiceAddresses {
    pub fn new(config: &Config) -> ServiceAddresses {
        ServiceAddresses {
            ips: ServiceIps::new(&config.service_cluster_ip_range),
            ports: Arc::new(NodePorts::new(config.node_port_range)),
            addressing: config.service_addressing.clone(),
        }
    }

    fn taken(&self, storage: &Arc<Storage>) -> Taken {
        Taken {
            storage: storage.clone(),
            ports: self.ports.clone(),
            taken_ips: Vec::new(),
            taken_ports: Vec::new(),
            tried_ports: Vec::new(),
            free_ips: Vec::new(),
            free_ports: Vec::new(),
            addressing: None,
        }
    }

    async fn create(
        &self,
        storage: &Arc<Storage>,
        service: &mut Value,
        dry_run: bool,
        taken: &mut Taken,
    ) -> StatusResult<()> {
        if !service.str_at(&["spec", "clusterIP"]).is_empty() && service.array_at(&["spec", "clusterIPs"]).is_empty() {
            let ip = service["spec"]["clusterIP"].clone();
            service["spec"]["clusterIPs"] = Value::Array(vec![ip]);
        }
        families::initialise(self.ips.families(), service, None)?;
        if self.adopt(service, None, dry_run, taken).await? {
            return Ok(());
        }
        self.allocate_ips(storage, service, dry_run, taken).await?;
        if has_node_ports(service) {
            self.first_node_ports(service, dry_run, taken)?;
        }
        if needs_health_check(service) {
            self.health_check_port(service, dry_run, taken)?;
        }
        Ok(())
    }

    /// Takes over what the [`ServiceAddressing`] chose; false: there is none, or it leaves the choice to the server.
    async fn adopt(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
        taken: &mut Taken,
    ) -> StatusResult<bool> {
        let Some(addressing) = &self.addressing else { return Ok(false) };
        if is_external_name(service) || is_headless(service) {
            return Ok(false);
        }
        let Some(assigned) = addressing.assign(service, old, dry_run).await? else { return Ok(false) };
        if old.is_none() && !dry_run {
            taken.addressing = Some((addressing.clone(), service.clone()));
        }
        if let Some(first) = assigned.cluster_ips.first() {
            service["spec"]["clusterIP"] = first.as_str().into();
            let ips: Vec<&str> = assigned.cluster_ips.iter().map(String::as_str).collect();
            service["spec"]["clusterIPs"] = ips.into();
            let family = |ip: &String| if ip.contains(':') { "IPv6" } else { "IPv4" };
            let families: Vec<&str> = assigned.cluster_ips.iter().map(family).collect();
            service["spec"]["ipFamilies"] = families.into();
        }
        if let Some(ports) = service.at_mut(&["spec", "ports"]).and_then(Value::as_array_mut) {
            for (port, node_port) in ports.iter_mut().zip(&assigned.node_ports).filter(|(_, n)| **n != 0) {
                port["nodePort"] = i64::from(*node_port).into();
            }
        }
        if assigned.health_check_node_port != 0 {
            service["spec"]["healthCheckNodePort"] = i64::from(assigned.health_check_node_port).into();
        }
        Ok(true)
    }

    /// Allocates the cluster IPs that are still missing, and reserves those that were asked for.
    async fn allocate_ips(
        &self,
        storage: &Arc<Storage>,
        service: &mut Value,
        dry_run: bool,
        taken: &mut Taken,
    ) -> StatusResult<()> {
        if is_external_name(service) || is_headless(service) {
            return Ok(());
        }
        let mut ips = strings(service, "clusterIPs");
        let families = strings(service, "ipFamilies");
        for (i, family) in families.iter().enumerate() {
            if ips.get(i).is_none() {
                ips.push(String::new());
            }
            if let Some(ip) = self.allocate_ip(storage, service, family, &ips[i], dry_run).await? {
                if !dry_run {
                    taken.taken_ips.push(ip.clone());
                }
                ips[i] = ip;
            }
        }
        if let Some(first) = ips.first() {
            service["spec"]["clusterIP"] = first.as_str().into();
            service["spec"]["clusterIPs"] = ips.iter().map(String::as_str).collect::<Vec<_>>().into();
        }
        Ok(())
    }

    /// One address; an empty `wanted` lets the allocator choose.
    async fn allocate_ip(
        &self,
        storage: &Arc<Storage>,
        service: &Value,
        family: &str,
        wanted: &str,
        dry_run: bool,
    ) -> StatusResult<Option<String>> {
        let path = FieldPath::new("spec").child("clusterIPs");
        let shown = service["spec"]["clusterIPs"].clone();
        if wanted.is_empty() {
            return match self.ips.allocate_next(storage, service, family == "IPv6", dry_run).await {
                Ok(ip) => Ok(Some(ip.to_string())),
                Err(AllocateError::Status(status)) => Err(status),
                Err(AllocateError::Full) => Err(Box::new(Status::internal_error(format!(
                    "failed to allocate a serviceIP for Service {:?}: range is full",
                    service.name()
                )))),
                Err(error) => {
                    let error = FieldError::invalid(&path, shown, format!("failed to allocate IP: {error}"));
                    Err(invalid(service, &[error]))
                }
            };
        }
        let ip: IpAddr = wanted
            .parse()
            .map_err(|_| Box::new(Status::internal_error(format!("failed to parse service IP {wanted:?}"))))?;
        match self.ips.allocate(storage, service, ip, dry_run).await {
            Ok(()) => Ok(Some(wanted.to_owned())),
            Err(AllocateError::Status(status)) => Err(status),
            Err(error) => {
                let error = FieldError::invalid(&path, shown, format!("failed to allocate IP {wanted}: {error}"));
                Err(invalid(service, &[error]))
            }
        }
    }

    fn take_port(&self, port: u16, dry_run: bool, taken: &mut Taken) -> Result<(), PortError> {
        if dry_run {
            self.ports.check_free(port)?;
            if taken.tried_ports.contains(&port) {
                return Err(PortError::Allocated);
            }
            taken.tried_ports.push(port);
            return Ok(());
        }
        self.ports.take(port)?;
        taken.taken_ports.push(port);
        Ok(())
    }

    fn next_port(&self, dry_run: bool, taken: &mut Taken) -> StatusResult<u16> {
        let failed = |e: PortError| Box::new(Status::internal_error(format!("failed to allocate a nodePort: {e}")));
        let port = self.ports.take_next(dry_run).map_err(failed)?;
        if !dry_run {
            taken.taken_ports.push(port);
        }
        Ok(port)
    }

    fn port_refused(service: &Value, index: usize, port: u16, error: &PortError) -> Box<Status> {
        let path = FieldPath::new("spec").child("ports").index(index).child("nodePort");
        invalid(service, &[FieldError::invalid(&path, i64::from(port), error.to_string())])
    }

    /// The node ports of a new Service. Ports with the same number (of several protocols) share one.
    fn first_node_ports(&self, service: &mut Value, dry_run: bool, taken: &mut Taken) -> StatusResult<()> {
        let wants = wants_node_ports(service);
        let numbers: Vec<i64> =
            service.array_at(&["spec", "ports"]).iter().map(|p| p["port"].as_i64().unwrap_or(0)).collect();
        let mut chosen = node_ports(service);
        let mut by_port: std::collections::HashMap<i64, u16> = std::collections::HashMap::new();
        for i in 0..numbers.len() {
            if chosen[i] == 0 && !wants {
                continue;
            }
            match by_port.get(&numbers[i]).copied() {
                None => {
                    let asked = (0..numbers.len()).find(|j| numbers[*j] == numbers[i] && chosen[*j] != 0);
                    let port = match asked {
                        Some(j) => {
                            let port = chosen[j];
                            let refused = |e| Self::port_refused(service, i, port, &e);
                            self.take_port(port, dry_run, taken).map_err(refused)?;
                            port
                        }
                        None => self.next_port(dry_run, taken)?,
                    };
                    chosen[i] = port;
                    by_port.insert(numbers[i], port);
                }
                Some(port) if chosen[i] == 0 => chosen[i] = port,
                Some(port) if chosen[i] != port => {
                    let own = chosen[i];
                    self.take_port(own, dry_run, taken).map_err(|e| Self::port_refused(service, i, own, &e))?;
                }
                Some(_) => {}
            }
        }
        set_node_ports(service, &chosen);
        Ok(())
    }

    fn health_check_port(&self, service: &mut Value, dry_run: bool, taken: &mut Taken) -> StatusResult<()> {
        let given = service["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0);
        let Ok(asked) = u16::try_from(given) else {
            if dry_run {
                return Ok(());
            }
            let error = self.ports.not_in_range();
            let message = format!("failed to allocate requested HealthCheck NodePort {given}: {error}");
            return Err(Box::new(Status::internal_error(message)));
        };
        if asked != 0 {
            return self.take_port(asked, dry_run, taken).map_err(|e| {
                let message = format!("failed to allocate requested HealthCheck NodePort {asked}: {e}");
                Box::new(Status::internal_error(message))
            });
        }
        let port = self.ports.take_next(dry_run).map_err(|e| {
            Box::new(Status::internal_error(format!("failed to allocate a HealthCheck NodePort 0: {e}")))
        })?;
        if !dry_run {
            taken.taken_ports.push(port);
        }
        service["spec"]["healthCheckNodePort"] = i64::from(port).into();
        Ok(())
    }

    async fn update(
        &self,
        storage: &Arc<Storage>,
        new: &mut Value,
        old: &Value,
        dry_run: bool,
        taken: &mut Taken,
    ) -> StatusResult<()> {
        keep_allocated(new, old);
        families::normalise_ips(new, old);
        families::initialise(self.ips.families(), new, Some(old))?;
        if self.adopt(new, Some(old), dry_run, taken).await? {
            return Ok(());
        }
        if !families::unchanged_prefer_dual_stack(new, old) {
            self.update_ips(storage, new, old, dry_run, taken).await?;
        }
        if has_node_ports(old) && !has_node_ports(new) {
            taken.free_ports.extend(node_ports(old).into_iter().filter(|p| *p != 0));
        }
        if has_node_ports(new) {
            self.update_node_ports(new, old, dry_run, taken)?;
        }
        match (needs_health_check(old), needs_health_check(new)) {
            (false, true) => self.health_check_port(new, dry_run, taken)?,
            (true, false) => taken.free_ports.extend(port_number(&old["spec"]["healthCheckNodePort"])),
            _ => {}
        }
        Ok(())
    }

    async fn update_ips(
        &self,
        storage: &Arc<Storage>,
        new: &mut Value,
        old: &Value,
        dry_run: bool,
        taken: &mut Taken,
    ) -> StatusResult<()> {
        if is_external_name(old) && !is_external_name(new) {
            return self.allocate_ips(storage, new, dry_run, taken).await;
        }
        if is_headless(old) || is_external_name(old) {
            return Ok(());
        }
        if is_external_name(new) {
            taken.free_ips = held_ips(old);
            return Ok(());
        }
        let (before, after) = (strings(old, "ipFamilies").len(), strings(new, "ipFamilies"));
        if before == 1 && after.len() == 2 {
            let mut ips = strings(new, "clusterIPs");
            ips.resize(2, String::new());
            if let Some(ip) = self.allocate_ip(storage, new, &after[1], &ips[1], dry_run).await? {
                if !dry_run {
                    taken.taken_ips.push(ip.clone());
                }
                ips[1] = ip;
            }
            new["spec"]["clusterIPs"] = ips.iter().map(String::as_str).collect::<Vec<_>>().into();
        } else if before == 2 && after.len() == 1 {
            taken.free_ips.extend(held_ips(old).into_iter().skip(1));
        }
        Ok(())
    }

    fn update_node_ports(&self, new: &mut Value, old: &Value, dry_run: bool, taken: &mut Taken) -> StatusResult<()> {
        let before: Vec<u16> = node_ports(old).into_iter().filter(|p| *p != 0).collect();
        let wants = wants_node_ports(new);
        let mut chosen = node_ports(new);
        let mut fresh = Vec::new();
        for i in 0..chosen.len() {
            match chosen[i] {
                0 if !wants => {}
                0 => chosen[i] = self.next_port(dry_run, taken)?,
                port if before.contains(&port) || fresh.contains(&port) => {}
                port => {
                    self.take_port(port, dry_run, taken).map_err(|e| Self::port_refused(new, i, port, &e))?;
                    fresh.push(port);
                }
            }
        }
        set_node_ports(new, &chosen);
        taken.free_ports.extend(before.into_iter().filter(|p| !chosen.contains(p)));
        Ok(())
    }
}

/// The Endpoints of a Service go with it, so that a new Service of that name does not begin with old addresses.
async fn delete_endpoints(storage: &Arc<Storage>, service: &Value) {
    let Some(endpoints) = storage.registry.get("", "v1", "endpoints") else { return };
    let (namespace, name) = (service.namespace(), service.name());
    let Ok(Some(entry)) = storage.get(&endpoints, namespace, name).await else { return };
    // Whoever changes them at this moment owns them.
    let _ = storage.remove(&endpoints, namespace, name, entry.revision).await;
}

fn set_node_ports(service: &mut Value, chosen: &[u16]) {
    let Some(ports) = service.at_mut(&["spec", "ports"]).and_then(Value::as_array_mut) else { return };
    for (port, node_port) in ports.iter_mut().zip(chosen).filter(|(_, n)| **n != 0) {
        port["nodePort"] = i64::from(*node_port).into();
    }
}

/// What was allocated and the client left out stays, so that the same manifest can be sent again.
fn keep_allocated(new: &mut Value, old: &Value) {
    if !is_external_name(old) && !is_external_name(new) {
        for (key, unset) in [
            ("clusterIP", new.str_at(&["spec", "clusterIP"]).is_empty()),
            ("clusterIPs", new.array_at(&["spec", "clusterIPs"]).is_empty()),
        ] {
            if let (true, Some(value)) = (unset, old.at(&["spec", key])) {
                new.set_at(&["spec", key], value.clone());
            }
        }
    }
    if wants_node_ports(old) && wants_node_ports(new) {
        let after = node_ports(new);
        let used: Vec<u16> = node_ports(old).into_iter().filter(|p| *p != 0 && after.contains(p)).collect();
        let by_name = |name: &str| {
            let ports = old.array_at(&["spec", "ports"]);
            ports.iter().rev().find(|p| p.str_at(&["name"]) == name).and_then(|p| port_number(&p["nodePort"]))
        };
        let names: Vec<String> =
            new.array_at(&["spec", "ports"]).iter().map(|p| p.str_at(&["name"]).to_owned()).collect();
        let kept: Vec<u16> = after
            .iter()
            .zip(&names)
            .map(|(port, name)| match (port, by_name(name)) {
                (0, Some(before)) if !used.contains(&before) => before,
                (port, _) => *port,
            })
            .collect();
        set_node_ports(new, &kept);
    }
    if needs_health_check(old)
        && needs_health_check(new)
        && port_number(&new["spec"]["healthCheckNodePort"]).unwrap_or(0) == 0
    {
        new["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
}

#[async_trait]
impl WriteHook for ServiceAddresses {
    fn handles(&self, resource: &Resource, subresource: &str) -> bool {
        subresource.is_empty() && resource.gvr.group.is_empty() && resource.gvr.resource == "services"
    }

    /// Counts the ports in use and repairs the addresses.
    async fn start(&self, storage: &Arc<Storage>) -> StatusResult<()> {
        let Some(resource) = storage.registry.get("", "v1", "services") else { return Ok(()) };
        let page = storage.list(&resource, "", &ListRequest::default(), |_| true).await?;
        let services: Vec<Value> = page.entries.iter().map(|e| e.to_value()).collect();
        for port in services.iter().flat_map(held_ports) {
            // Two Services with one port: both keep it, as upstream's repair leaves them.
            let _ = self.ports.take(port);
        }
        if self.addressing.is_some() {
            return Ok(());
        }
        ips::repair(storage, &services).await
    }

    async fn before_create(
        &self,
        storage: &Arc<Storage>,
        _resource: &Resource,
        object: &mut Value,
        dry_run: bool,
    ) -> StatusResult<Option<Box<dyn Reservation>>> {
        let mut taken = self.taken(storage);
        match self.create(storage, object, dry_run, &mut taken).await {
            Ok(()) => Ok(Some(Box::new(taken))),
            Err(status) => {
                Box::new(taken).finish(false).await;
                Err(status)
            }
        }
    }

    async fn before_update(
        &self,
        storage: &Arc<Storage>,
        _resource: &Resource,
        new: &mut Value,
        old: &Value,
        dry_run: bool,
    ) -> StatusResult<Option<Box<dyn Reservation>>> {
        let mut taken = self.taken(storage);
        let updated = self.update(storage, new, old, dry_run, &mut taken).await;
        if is_external_name(new) {
            // Upstream leaves it in the store and hides it from readers.
            new["spec"].remove_at(&["internalTrafficPolicy"]);
        }
        match updated {
            Ok(()) => Ok(Some(Box::new(taken))),
            Err(status) => {
                Box::new(taken).finish(false).await;
                Err(status)
            }
        }
    }

    async fn after_delete(&self, storage: &Arc<Storage>, _resource: &Resource, object: &Value) {
        delete_endpoints(storage, object).await;
        self.ports.release(&held_ports(object));
        match &self.addressing {
            Some(addressing) => addressing.release(object).await,
            None => ips::release(storage, &held_ips(object)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn allocated_values_that_a_client_left_out_stay() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "ports": [{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}]}});
        let mut new = json!({"spec": {"type": "NodePort",
            "ports": [{"name": "b", "port": 81}, {"name": "c", "port": 82, "nodePort": 30001}]}});
        keep_allocated(&mut new, &old);
        assert_eq!(new.str_at(&["spec", "clusterIP"]), "10.0.0.1");
        assert_eq!(node_ports(&new), [30002, 30001]);
    }
}
