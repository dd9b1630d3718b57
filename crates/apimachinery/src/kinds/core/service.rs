//! Services, and Endpoints.

use std::net::IpAddr;

use crate::field::{BadValue, FieldError, FieldPath};
use crate::json::Value;
use crate::kinds::access::{Fields, semantic_equal};
use crate::kinds::check::{
    self, Errors, Report, dns_label, dns_subdomain, is_dual_stack, legacy_cidr, legacy_ip, one_of, optional_one_of,
    parse_ip_sloppy, port_number, port_or_name, qualified_name, shown, strings, unmapped,
};
use crate::kinds::object_meta::{self, MetaRules};
use crate::names;

const META: MetaRules = MetaRules::namespaced(names::name_is_dns_label);
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

fn is_headless(service: &Value) -> bool {
    strings(service.v("spec"), "clusterIPs") == ["None"]
}

/// What is wrong with the cluster IPs and IP families of a Service; asked before addresses are allocated.
pub fn service_address_errors(service: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if service.v("spec").s("type") != "ExternalName" {
        cluster_ips(service, old, &FieldPath::new("spec"), &mut errors);
    }
    errors
}

fn externally_accessible(spec: &Value) -> bool {
    matches!(spec.s("type"), "LoadBalancer" | "NodePort")
        || (spec.s("type") == "ClusterIP" && !spec.list("externalIPs").is_empty())
}

fn needs_health_check(spec: &Value) -> bool {
    spec.s("type") == "LoadBalancer" && spec.s("externalTrafficPolicy") == "Local"
}

pub(crate) fn create(service: &Value, errors: &mut Errors) {
    object_meta::validate(service, META, errors);
    validate(service, None, errors);
}

pub(crate) fn update(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    let (spec, before, path) = (new.v("spec"), old.v("spec"), FieldPath::new("spec"));
    if spec.s("type") != "ExternalName" && before.s("type") != "ExternalName" {
        cluster_ips_change(new, old, &path, errors);
        families_change(new, old, &path, errors);
    }
    load_balancer_class(new, Some(old), errors);
    if needs_health_check(spec)
        && needs_health_check(before)
        && spec.i("healthCheckNodePort") != before.i("healthCheckNodePort")
    {
        errors.forbidden(&path.child("healthCheckNodePort"), "field is immutable");
    }
    validate(new, Some(old), errors);
}

pub(crate) fn update_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    load_balancer_status(
        new.v("status").v("loadBalancer"),
        old.v("status").v("loadBalancer"),
        new.v("spec").s("type") == "LoadBalancer",
        true,
        &FieldPath::new("status").child("loadBalancer"),
        errors,
    );
}

/// `status.loadBalancer` of a Service (with `ip_mode`) or an Ingress.
pub(crate) fn load_balancer_status(
    status: &Value,
    old: &Value,
    allowed: bool,
    ip_mode: bool,
    path: &FieldPath,
    errors: &mut Errors,
) {
    let path = path.child("ingress");
    if !allowed && !status.list("ingress").is_empty() {
        errors.forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'");
        return;
    }
    let before: Vec<&str> = old.list("ingress").iter().map(|i| i.s("ip")).filter(|ip| !ip.is_empty()).collect();
    for (i, ingress) in status.list("ingress").iter().enumerate() {
        let path = path.index(i);
        let (ip, host) = (ingress.s("ip"), ingress.s("hostname"));
        if !ip.is_empty() {
            legacy_ip(ip, &before, &path.child("ip"), errors);
        }
        if ip_mode {
            let at = path.child("ipMode");
            match ingress.os("ipMode") {
                None if !ip.is_empty() => errors.required(&at, "must be specified when `ip` is set"),
                None => {}
                Some(_) if ip.is_empty() => errors.forbidden(&at, "may not be specified when `ip` is not set"),
                Some("VIP" | "Proxy") => {}
                Some(mode) => errors.not_supported(&at, mode, &["Proxy", "VIP"]),
            }
        }
        if !host.is_empty() {
            let at = path.child("hostname");
            dns_subdomain(host, &at, errors);
            if parse_ip_sloppy(host).is_some() {
                errors.invalid(&at, host, "must be a DNS name, not an IP address");
            }
        }
    }
}

fn validate(service: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (service.v("spec"), FieldPath::new("spec"));
    let notes = service.v("metadata").v("annotations");
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    const MODE: &str = "service.kubernetes.io/topology-mode";
    if let (Some(hints), Some(mode)) = (notes.os(HINTS), notes.os(MODE))
        && hints != mode
    {
        errors.invalid(
            &FieldPath::new("metadata").child("annotations").key(MODE),
            mode,
            format!("must match annotations[{HINTS}] when both are specified"),
        );
    }
    let kind = spec.s("type");
    let headless = is_headless(service);
    let ports = spec.list("ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => errors.invalid(
            &path.child("clusterIPs").index(0),
            "None",
            format!("may not be set to 'None' for {kind} services"),
        ),
        "ExternalName" => external_name(spec, &path, errors),
        _ => {}
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        service_port(port, ports.len() > 1, &mut names, &path.child("ports").index(i), errors);
    }
    check::labels(spec.members("selector"), &path.child("selector"), errors);
    one_of(spec, "sessionAffinity", &["ClientIP", "None"], &path, errors);
    session_affinity(spec, &path.child("sessionAffinityConfig"), errors);
    if kind != "ExternalName" {
        cluster_ips(service, old, &path, errors);
    }
    let before = old.map_or(Vec::new(), |o| strings(o.v("spec"), "externalIPs"));
    for (i, ip) in strings(spec, "externalIPs").into_iter().enumerate() {
        let at = path.child("externalIPs").index(i);
        if legacy_ip(ip, &before, &at, errors) {
            endpoint_ip(ip, &at, errors);
        }
    }
    one_of(spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &path, errors);
    port_uniqueness(spec, &path.child("ports"), errors);
    source_ranges(service, old, &path, errors);
    let allocate = path.child("allocateLoadBalancerNodePorts");
    if spec.has("allocateLoadBalancerNodePorts") {
        if kind != "LoadBalancer" {
            errors.forbidden(&allocate, "may only be used when `type` is 'LoadBalancer'");
        }
    } else if kind == "LoadBalancer" {
        errors.required(&FieldPath::new("allocateLoadBalancerNodePorts"), "");
    }
    load_balancer_class(service, None, errors);
    external_traffic(spec, &path, errors);
    let at = path.child("internalTrafficPolicy");
    if !spec.has("internalTrafficPolicy") && matches!(kind, "NodePort" | "LoadBalancer" | "ClusterIP") {
        errors.required(&at, "");
    }
    optional_one_of(spec, "internalTrafficPolicy", &["Cluster", "Local"], &path, errors);
    optional_one_of(spec, "trafficDistribution", &["PreferClose", "PreferSameZone", "PreferSameNode"], &path, errors);
}

fn external_name(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    for (key, set) in [
        ("clusterIPs", !spec.list("clusterIPs").is_empty()),
        ("ipFamilies", !spec.list("ipFamilies").is_empty()),
        ("ipFamilyPolicy", spec.has("ipFamilyPolicy")),
    ] {
        if set {
            errors.forbidden(&path.child(key), "may not be set for ExternalName services");
        }
    }
    let name = spec.s("externalName");
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        errors.required(&path.child("externalName"), "");
    } else {
        dns_subdomain(name, &path.child("externalName"), errors);
    }
}

fn service_port<'a>(port: &'a Value, need_name: bool, names: &mut Vec<&'a str>, path: &FieldPath, errors: &mut Errors) {
    let name = port.s("name");
    if need_name && name.is_empty() {
        errors.required(&path.child("name"), "");
    } else if !name.is_empty() {
        dns_label(name, &path.child("name"), errors);
        if names.contains(&name) {
            errors.duplicate(&path.child("name"), name);
        } else {
            names.push(name);
        }
    }
    port_number(port.i("port"), &path.child("port"), errors);
    one_of(port, "protocol", PROTOCOLS, path, errors);
    port_or_name(port.v("targetPort"), &path.child("targetPort"), errors);
    if let Some(protocol) = port.os("appProtocol") {
        qualified_name(protocol, &path.child("appProtocol"), errors);
    }
}

fn session_affinity(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    const WHEN: &str = "when session affinity type is ClientIP";
    let config = spec.o("sessionAffinityConfig");
    match spec.s("sessionAffinity") {
        "ClientIP" => {
            let Some(config) = config else { return errors.required(path, WHEN) };
            let path = path.child("clientIP");
            let Some(client) = config.o("clientIP") else { return errors.required(&path, WHEN) };
            let path = path.child("timeoutSeconds");
            match client.oi("timeoutSeconds") {
                None => errors.required(&path, WHEN),
                Some(seconds) if !(1..=86400).contains(&seconds) => {
                    errors.invalid(&path, seconds, "must be greater than 0 and less than 86400");
                }
                Some(_) => {}
            }
        }
        "None" if config.is_some() => {
            errors.forbidden(path, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn cluster_ips(service: &Value, old: Option<&Value>, path: &FieldPath, errors: &mut Errors) {
    let spec = service.v("spec");
    let at = path.child("clusterIPs");
    let (first, ips) = (spec.s("clusterIP"), strings(spec, "clusterIPs"));
    let all = || shown(spec.v("clusterIPs"));
    if first.is_empty() {
        if !ips.is_empty() {
            errors.invalid(&at, all(), "must be empty when `clusterIP` is not specified");
        }
    } else if ips.is_empty() {
        errors.required(&at, "");
    } else if ips[0] != first {
        errors.invalid(&at, all(), "first value must match `clusterIP`");
    }
    let families = strings(spec, "ipFamilies");
    for (i, family) in families.iter().enumerate() {
        let at = path.child("ipFamilies").index(i);
        if !matches!(*family, "IPv4" | "IPv6") {
            errors.not_supported(&at, *family, &["IPv4", "IPv6"]);
        }
        if families[..i].contains(family) {
            errors.duplicate(&at, *family);
        }
    }
    optional_one_of(spec, "ipFamilyPolicy", &["PreferDualStack", "RequireDualStack", "SingleStack"], path, errors);
    let before = old.map_or(Vec::new(), |o| strings(o.v("spec"), "clusterIPs"));
    let mut invalid = false;
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && *ip == "None" {
            if ips.len() > 1 {
                invalid = true;
                errors.invalid(&at, all(), "'None' must be the first and only value");
            }
            continue;
        }
        invalid |= !legacy_ip(ip, &before, &at.index(i), errors);
    }
    if ips.len() > 2 {
        errors.invalid(&at, all(), "may only hold up to 2 values");
    }
    if invalid {
        return;
    }
    if ips.len() > 1 && !is_dual_stack(&ips) {
        errors.invalid(&at, all(), "may specify no more than one IP for each IP family");
    }
    if is_headless(service) {
        return;
    }
    for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
        let v6 = parse_ip_sloppy(ip).is_some_and(|ip| unmapped(ip).is_ipv6());
        if (*family == "IPv4" && v6) || (*family == "IPv6" && !v6) {
            errors.invalid(&at.index(i), *ip, format!("expected an {family} value as indicated by `ipFamilies[{i}]`"));
        }
    }
}

fn cluster_ips_change(new: &Value, old: &Value, path: &FieldPath, errors: &mut Errors) {
    if is_headless(old) && is_headless(new) {
        return;
    }
    let spec = new.v("spec");
    let (after, before) = (strings(spec, "clusterIPs"), strings(old.v("spec"), "clusterIPs"));
    let at = path.child("clusterIPs");
    let all = || shown(spec.v("clusterIPs"));
    const FIXED: &str = "may not change once set";
    if after.len() == before.len() {
        for (i, ip) in before.iter().enumerate() {
            if after[i] != *ip {
                errors.invalid(&at.index(i), all(), FIXED);
            }
        }
    } else if before.len() > after.len() {
        if after.is_empty() {
            errors.invalid(&at.index(0), all(), "primary clusterIP can not be unset");
        } else if after[0] != before[0] {
            errors.invalid(&at.index(0), all(), FIXED);
        }
        if after.len() == 1 {
            single_stack(spec, "secondary clusterIP", path, errors);
        }
    } else if !before.is_empty() && after[0] != before[0] {
        errors.invalid(&at.index(0), all(), FIXED);
    }
}

fn single_stack(spec: &Value, what: &str, path: &FieldPath, errors: &mut Errors) {
    if spec.s("ipFamilyPolicy") != "SingleStack" {
        errors.invalid(
            &path.child("ipFamilyPolicy"),
            shown(spec.v("ipFamilyPolicy")),
            format!("must be set to 'SingleStack' when releasing the {what}"),
        );
    }
}

fn families_change(new: &Value, old: &Value, path: &FieldPath, errors: &mut Errors) {
    if is_headless(new) || is_headless(old) {
        return;
    }
    let spec = new.v("spec");
    let (after, before) = (strings(spec, "ipFamilies"), strings(old.v("spec"), "ipFamilies"));
    let at = path.child("ipFamilies").index(0);
    const FIXED: &str = "may not change once set";
    let ips = || shown(spec.v("clusterIPs"));
    if after.len() == before.len() {
        for _ in before.iter().zip(&after).filter(|(b, a)| a != b) {
            errors.invalid(&at, shown(spec.v("ipFamilies")), FIXED);
        }
    } else if before.len() > after.len() {
        if spec.list("clusterIPs").is_empty() {
            errors.invalid(&at, shown(spec.v("ipFamilies")), "primary ipFamily can not be unset");
        }
        if !after.is_empty() && after[0] != before[0] {
            errors.invalid(&at, ips(), FIXED);
        }
        if after.len() == 1 {
            single_stack(spec, "secondary ipFamily", path, errors);
        }
    } else if !before.is_empty() && !after.is_empty() && after[0] != before[0] {
        errors.invalid(&at, ips(), FIXED);
    }
}

fn port_uniqueness(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let ports = spec.list("ports");
    if spec.s("type") == "ClusterIP" {
        for (i, _) in ports.iter().enumerate().filter(|(_, p)| p.i("nodePort") != 0) {
            errors.forbidden(&path.index(i).child("nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
    let same = |a: &Value, b: &Value, key: &str| a.s("protocol") == b.s("protocol") && a.i(key) == b.i(key);
    for (i, port) in ports.iter().enumerate().filter(|(_, p)| p.i("nodePort") != 0) {
        if ports[..i].iter().any(|p| same(p, port, "nodePort")) {
            errors.duplicate(&path.index(i).child("nodePort"), port.i("nodePort"));
        }
    }
    for (i, port) in ports.iter().enumerate() {
        if ports[..i].iter().any(|p| same(p, port, "port")) {
            // The key as the server's own structure prints it.
            let printed = format!(
                "{{\"Name\":\"\",\"Protocol\":{},\"AppProtocol\":null,\"Port\":{},\"TargetPort\":0,\"NodePort\":0}}",
                Value::from(port.s("protocol")),
                port.i("port")
            );
            errors.duplicate(&path.index(i), BadValue::Printed(printed));
        }
    }
}

fn source_ranges(service: &Value, old: Option<&Value>, path: &FieldPath, errors: &mut Errors) {
    const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let spec = service.v("spec");
    let balancer = spec.s("type") == "LoadBalancer";
    let ranges = strings(spec, "loadBalancerSourceRanges");
    if !ranges.is_empty() {
        let at = path.child("LoadBalancerSourceRanges");
        if !balancer {
            errors.forbidden(&at, ONLY);
        }
        let before: Vec<&str> = old
            .map_or(Vec::new(), |o| strings(o.v("spec"), "loadBalancerSourceRanges"))
            .into_iter()
            .map(str::trim)
            .collect();
        for (i, range) in ranges.into_iter().enumerate() {
            legacy_cidr(range.trim(), &before, &at.index(i), errors);
        }
        return;
    }
    let Some(value) = service.v("metadata").v("annotations").os(ANNOTATION) else { return };
    let at = FieldPath::new("metadata").child("annotations").key(ANNOTATION);
    if !balancer {
        errors.forbidden(&at, ONLY);
    }
    let unchanged = old.is_some_and(|o| o.v("metadata").v("annotations").os(ANNOTATION) == Some(value));
    if !unchanged && !value.trim().is_empty() {
        for range in value.trim().split(',') {
            legacy_cidr(range.trim(), &[], &at, errors);
        }
    }
}

fn load_balancer_class(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, at) = (new.v("spec"), FieldPath::new("spec").child("loadBalancerClass"));
    let balancer = spec.s("type") == "LoadBalancer";
    if let Some(old) = old
        && balancer
        && old.v("spec").s("type") == "LoadBalancer"
        && !semantic_equal(spec.v("loadBalancerClass"), old.v("spec").v("loadBalancerClass"))
    {
        errors.invalid(&at, shown(spec.v("loadBalancerClass")), "may not change once set");
    }
    match spec.os("loadBalancerClass") {
        Some(class) if balancer => qualified_name(class, &at, errors),
        Some(_) => errors.forbidden(&at, "may only be used when `type` is 'LoadBalancer'"),
        None => {}
    }
}

fn external_traffic(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let (policy, at) = (spec.s("externalTrafficPolicy"), path.child("externalTrafficPolicy"));
    if externally_accessible(spec) {
        one_of(spec, "externalTrafficPolicy", &["Cluster", "Local"], path, errors);
    } else if !policy.is_empty() {
        errors.invalid(&at, policy, "may only be set for externally-accessible services");
    }
    let (port, at) = (spec.i("healthCheckNodePort"), path.child("healthCheckNodePort"));
    if needs_health_check(spec) {
        if port == 0 {
            errors.required(&at, "");
        } else {
            port_number(port, &at, errors);
        }
    } else if port != 0 {
        errors.invalid(
            &at,
            port,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
}

/// An address that may receive traffic: not one that means "here" or "this link".
pub(crate) fn endpoint_ip(value: &str, path: &FieldPath, errors: &mut Errors) {
    let Some(ip) = parse_ip_sloppy(value).map(unmapped) else {
        return errors.invalid(path, value, "must be a valid IP address");
    };
    if ip.is_unspecified() {
        errors.invalid(path, value, format!("may not be unspecified ({value})"));
    }
    if ip.is_loopback() {
        errors.invalid(path, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (link_local, link_multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            (first & 0xffc0 == 0xfe80, first & 0xff0f == 0xff02)
        }
    };
    if link_local {
        errors.invalid(path, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_multicast {
        errors.invalid(path, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// Endpoints; subsets that did not change are not looked at again.
pub(crate) fn endpoints(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
    }
    object_meta::validate(new, MetaRules::namespaced(names::name_is_dns_subdomain), errors);
    if old.is_some_and(|o| semantic_equal(o.v("subsets"), new.v("subsets"))) {
        return;
    }
    for (i, subset) in new.list("subsets").iter().enumerate() {
        let path = FieldPath::new("subsets").index(i);
        if subset.list("addresses").is_empty() && subset.list("notReadyAddresses").is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for key in ["addresses", "notReadyAddresses"] {
            for (j, address) in subset.list(key).iter().enumerate() {
                let path = path.child(key).index(j);
                let ip = address.s("ip");
                legacy_ip(ip, &[], &path.child("ip"), errors);
                if !address.s("hostname").is_empty() {
                    dns_label(address.s("hostname"), &path.child("hostname"), errors);
                }
                if let Some(node) = address.os("nodeName") {
                    errors.messages(&path.child("nodeName"), node, names::name_is_dns_subdomain(node, false));
                }
                endpoint_ip(ip, &path.child("ip"), errors);
            }
        }
        let ports = subset.list("ports");
        for (j, port) in ports.iter().enumerate() {
            let path = path.child("ports").index(j);
            let name = port.s("name");
            if ports.len() > 1 && name.is_empty() {
                errors.required(&path.child("name"), "");
            } else if !name.is_empty() {
                dns_label(name, &path.child("name"), errors);
            }
            port_number(port.i("port"), &path.child("port"), errors);
            one_of(port, "protocol", PROTOCOLS, &path, errors);
            if let Some(protocol) = port.os("appProtocol") {
                qualified_name(protocol, &path.child("appProtocol"), errors);
            }
        }
    }
}
