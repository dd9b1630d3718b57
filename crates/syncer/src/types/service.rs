//! Services: one cluster IP on both sides, chosen by the host.
//!
//! The host Service is made first where the API server asks ([`host_first`]); else the virtual one takes the host's address
//! after. An address cannot be changed, so the Service becomes one without address and gets the other one then; deleting it
//! would make the virtual controllers delete what belongs to it, such as Endpoints that the tenant wrote.
//!
//! Invariant: a tenant never chooses an address on the host: cluster IPs and node ports are the host's choice.

use apimachinery::{Value, json};

use crate::diff::{present, put, two_way, two_way_same};
use crate::kind::{self, Kind};
use crate::metadata::{self, LastSynced, MetadataRules, annotation, hash_value, uid_of};
use crate::plan::{Action, LastSeen, READDRESS_ANNOTATION};
use crate::selectors::{host_map_selector, virtual_map_selector};
use crate::types::{Context, Desired, Refusal, ToHost, object};

const EXCLUDED: [&str; 1] = [crate::types::RANCHER_ENDPOINTS];

/// Fields of the spec that either side may change.
const TWO_WAY: [&str; 11] = [
    "type",
    "externalName",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "publishNotReadyAddresses",
    "externalTrafficPolicy",
    "internalTrafficPolicy",
    "sessionAffinity",
    "sessionAffinityConfig",
    "trafficDistribution",
    "allocateLoadBalancerNodePorts",
];

pub struct Services;

/// The API server's own Service, which stands for the control plane's and is not synced like others.
pub fn is_api_server(service: &Value) -> bool {
    service.str_at(&["metadata", "namespace"]) == "default" && service.str_at(&["metadata", "name"]) == "kubernetes"
}

/// The Service as the tenant wants it, while its address is being changed.
fn as_wanted(service: &Value) -> Option<Value> {
    let spec = Value::from_slice(annotation(service, READDRESS_ANNOTATION).as_bytes()).ok()?;
    spec.as_object()?;
    let mut out = service.clone();
    out["spec"] = spec;
    Some(out)
}

/// Fields that only a Service with an address may have: put aside while it has none.
const ADDRESS_FIELDS: [&str; 11] = [
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "internalTrafficPolicy",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "allocateLoadBalancerNodePorts",
];

/// The two patches of [`Action::Readdress`]: to a Service without address, and to one with the new address.
pub fn readdress(service: &Value, spec: &Value) -> [Value; 2] {
    let uid = uid_of(service);
    let mut away = json!({"type": "ExternalName", "externalName": "address-changes.invalid"});
    let mut back = spec.clone();
    for field in ADDRESS_FIELDS {
        away[field] = Value::Null;
    }
    back["externalName"] = Value::Null;
    let note = |value: Value| json!({"uid": uid, "annotations": {READDRESS_ANNOTATION: value}});
    let text = spec.to_string();
    [json!({"metadata": (note(text.into())), "spec": away}), json!({"metadata": (note(Value::Null)), "spec": back})]
}

fn external_ips(ctx: &Context<'_>, service: &Value, actions: &mut Vec<Action>) -> Option<Value> {
    let ips = present(service, &["spec", "externalIPs"])?;
    if ctx.settings.allow_external_ips {
        return Some(ips.clone());
    }
    actions.push(Action::Warn {
        reason: "SyncWarning",
        message: "spec.externalIPs is not synced: it would take traffic meant for others on the host".into(),
    });
    None
}

impl ToHost for Services {
    fn kind(&self) -> &Kind {
        &kind::SERVICE
    }

    fn wanted(&self, service: &Value, ctx: &Context<'_>) -> bool {
        ctx.settings.services && !is_api_server(service)
    }

    fn two_way_fields(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        TWO_WAY.iter().map(|field| (*field, vec!["spec", *field])).collect()
    }

    fn replaces_older(&self) -> bool {
        // The address would be lost, and with it the connections of the tenant's clients.
        false
    }

    fn translate(&self, service: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        let wanted = as_wanted(service);
        let service = wanted.as_ref().unwrap_or(service);
        let mut actions = Vec::new();
        let mut host = object(&kind::SERVICE, ctx.metadata(service, &kind::SERVICE, &EXCLUDED));
        let mut spec = service["spec"].clone();
        let namespace = service.str_at(&["metadata", "namespace"]);
        put(&mut spec, &["selector"], host_map_selector(service.at(&["spec", "selector"]), namespace, ctx.names));
        for member in ["clusterIPs", "ipFamilies", "healthCheckNodePort", "externalIPs"] {
            spec.remove_at(&[member]);
        }
        if spec.str_at(&["clusterIP"]) != "None" {
            spec.remove_at(&["clusterIP"]);
        }
        if spec.str_at(&["ipFamilyPolicy"]) != "PreferDualStack" {
            // Any other policy may be impossible on the host, which knows what it has.
            spec.remove_at(&["ipFamilyPolicy"]);
        }
        if let Some(ips) = external_ips(ctx, service, &mut actions) {
            spec["externalIPs"] = ips;
        }
        if let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) {
            for port in ports {
                port.remove_at(&["nodePort"]);
            }
        }
        host["spec"] = spec;
        let mut synced = LastSynced::of(&host);
        let salt = uid_of(service);
        for field in TWO_WAY.iter().chain(&["ports", "selector"]) {
            let value = present(service, &["spec", field]).unwrap_or(&Value::Null);
            synced.set(field, &hash_value(salt, value));
        }
        synced.store(&mut host);
        Ok((host, actions))
    }

    fn reconcile(&self, given: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>) -> Result<Desired, Refusal> {
        let wanted = as_wanted(given);
        let service = wanted.as_ref().unwrap_or(given);
        let mut new_virtual = service.clone();
        let mut new_host = host.clone();
        let mut actions = Vec::new();
        let names = ctx.names;
        let salt = uid_of(service).to_owned();
        let namespace = service.str_at(&["metadata", "namespace"]).to_owned();
        let mut synced = LastSynced::of_imported(host, service, &["spec"], &TWO_WAY);
        if annotation(host, metadata::UID_ANNOTATION) != salt {
            // Made again on the virtual side: what it says now is what is wanted, but for the ports that each side allocates.
            synced = LastSynced::default();
            if without_node_ports(service) == without_node_ports(host) {
                let ports = present(service, &["spec", "ports"]).unwrap_or(&Value::Null);
                synced.set("ports", &hash_value(&salt, ports));
            }
        }

        for field in TWO_WAY {
            two_way_same(field, &salt, &["spec", field], &mut new_virtual, &mut new_host, &mut synced);
        }
        let host_ports = host.array_at(&["spec", "ports"]).to_vec();
        two_way(
            "ports",
            &salt,
            &["spec", "ports"],
            &mut new_virtual,
            &mut new_host,
            &mut synced,
            |ports| ports.map(|p| host_side_ports(p, &host_ports)),
            |ports| ports.cloned(),
        );
        two_way(
            "selector",
            &salt,
            &["spec", "selector"],
            &mut new_virtual,
            &mut new_host,
            &mut synced,
            |s| host_map_selector(s, &namespace, names),
            |s| virtual_map_selector(s, names),
        );
        put(&mut new_host, &["spec", "externalIPs"], external_ips(ctx, service, &mut actions));
        synced.store(&mut new_host);

        let kind_now = new_host.str_at(&["spec", "type"]).to_owned();
        if kind_now == "ExternalName" {
            for object in [&mut new_host, &mut new_virtual] {
                for member in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
                    object.remove_at(&["spec", member]);
                }
            }
        }

        let rules = MetadataRules { excluded: &EXCLUDED, down_only: false };
        let host_only = metadata::sync_metadata(
            &mut new_virtual,
            &mut new_host,
            &kind::SERVICE,
            names,
            rules,
            Some(&last.host_only),
        );
        new_host.remove_at(&["metadata", "annotations", "vcluster.loft.sh/block-deletion"]);

        let mut status = host["status"].clone();
        if kind_now != "LoadBalancer" {
            status = json!({"loadBalancer": {}});
        }
        if new_virtual.get("status").is_some_and(|s| !s.is_null()) || status != json!({"loadBalancer": {}}) {
            new_virtual["status"] = status;
        }

        let seen = LastSeen { on_host: true, host_only };
        let host_ip = host.str_at(&["spec", "clusterIP"]);
        let virtual_ip = service.str_at(&["spec", "clusterIP"]);
        let settled = service.str_at(&["spec", "type"]) == host.str_at(&["spec", "type"]);
        if settled && kind_now != "ExternalName" && !host_ip.is_empty() && (host_ip != virtual_ip || wanted.is_some()) {
            let mut spec = new_virtual["spec"].clone();
            for member in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                put(&mut spec, &[member], host.at(&["spec", member]).cloned());
            }
            // The host's node ports come with the next look; the virtual cluster may not have them free right now.
            spec.remove_at(&["healthCheckNodePort"]);
            if let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) {
                ports.iter_mut().for_each(|p| drop(p.remove_at(&["nodePort"])));
            }
            actions.push(Action::Readdress { spec });
            return Ok(Desired { virtual_: given.clone(), host: host.clone(), actions, seen });
        }
        Ok(Desired { virtual_: new_virtual, host: new_host, actions, seen })
    }
}

fn without_node_ports(service: &Value) -> Vec<Value> {
    let mut ports = service.array_at(&["spec", "ports"]).to_vec();
    ports.iter_mut().for_each(|p| drop(p.remove_at(&["nodePort"])));
    ports
}

/// Virtual ports for the host: node ports that the virtual side allocated are not asked for, those both sides know are kept.
fn host_side_ports(ports: &Value, host_ports: &[Value]) -> Value {
    let out: Vec<Value> = ports
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let mut port = port.clone();
            let existing = host_ports
                .iter()
                .find(|h| h["port"] == port["port"] && h.str_at(&["protocol"]) == port.str_at(&["protocol"]));
            match existing {
                Some(existing) if port.get("nodePort").is_none() => {
                    if let Some(node_port) = existing.get("nodePort") {
                        port["nodePort"] = node_port.clone();
                    }
                }
                Some(_) => {}
                None => {
                    port.remove_at(&["nodePort"]);
                }
            }
            port
        })
        .collect();
    Value::Array(out)
}

/// The host Service for a virtual Service that is about to be created: for API servers that ask the host first.
pub fn host_first(service: &Value, ctx: &Context<'_>) -> Result<Value, Refusal> {
    Services.translate(service, ctx).map(|(host, _)| host)
}

/// Copies what the host chose into a virtual Service that is about to be created.
pub fn adopt(service: &mut Value, host: &Value) {
    for member in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort"] {
        put(service, &["spec", member], host.at(&["spec", member]).cloned());
    }
    let host_ports = host.array_at(&["spec", "ports"]);
    if let Some(ports) = service.at_mut(&["spec", "ports"]).and_then(Value::as_array_mut) {
        for port in ports {
            let same = host_ports
                .iter()
                .find(|h| h["port"] == port["port"] && h.str_at(&["protocol"]) == port.str_at(&["protocol"]));
            if let Some(node_port) = same.and_then(|p| p.get("nodePort")) {
                port["nodePort"] = node_port.clone();
            }
        }
    }
}
