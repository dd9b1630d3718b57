//! Network policies, ingresses, service addresses and ranges.

use super::access::{Fields, semantic_equal};
use super::check::{self, Errors, Report, SelectorOptions, shown, strings};
use super::object_meta::{self, MetaRules};
use crate::field::{BadValue, FieldError, FieldPath};
use crate::json::Value;
use crate::names;

const META: MetaRules = MetaRules::namespaced(names::name_is_dns_subdomain);
const CLUSTER_META: MetaRules = MetaRules::cluster(names::name_is_dns_subdomain);

fn at(names: &[&str]) -> FieldPath {
    FieldPath::new(names[0]).children(&names[1..])
}

/// What a stored network policy already has and today's rules refuse.
#[derive(Clone, Copy)]
struct Tolerated<'a> {
    selectors: SelectorOptions,
    cidrs: &'a [&'a str],
}

fn policy_port(port: &Value, path: &FieldPath, errors: &mut Errors) {
    optional_protocol(port, path, errors);
    let end_path = path.child("endPort");
    let end = port.oi("endPort");
    match port.o("port") {
        Some(Value::String(name)) => {
            if let Some(end) = end {
                errors.invalid(&end_path, end, "may not be specified when `port` is non-numeric");
            }
            errors.messages(&path.child("port"), name, names::is_valid_port_name(name));
        }
        Some(number) => {
            let number = number.as_i64().unwrap_or(0);
            check::port_number(number, &path.child("port"), errors);
            if let Some(end) = end {
                if end < number {
                    errors.invalid(&end_path, number, "must be greater than or equal to `port`");
                }
                check::port_number(end, &end_path, errors);
            }
        }
        None => {
            if let Some(end) = end {
                errors.invalid(&end_path, end, "may not be specified when `port` is not specified");
            }
        }
    }
}

fn optional_protocol(port: &Value, path: &FieldPath, errors: &mut Errors) {
    check::optional_one_of(port, "protocol", &["TCP", "UDP", "SCTP"], path, errors);
}

fn policy_peer(peer: &Value, tolerated: Tolerated<'_>, path: &FieldPath, errors: &mut Errors) {
    let mut kinds = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = peer.o(key) {
            kinds += 1;
            check::label_selector(Some(selector), tolerated.selectors, &path.child(key), errors);
        }
    }
    let block = peer.o("ipBlock");
    if let Some(block) = block {
        kinds += 1;
        ip_block(block, tolerated.cidrs, &path.child("ipBlock"), errors);
    }
    if kinds == 0 {
        errors.required(path, "must specify a peer");
    } else if kinds > 1 && block.is_some() {
        errors.forbidden(path, "may not specify both ipBlock and another peer");
    }
}

fn ip_block(block: &Value, known: &[&str], path: &FieldPath, errors: &mut Errors) {
    let cidr = block.s("cidr");
    if cidr.is_empty() {
        return errors.required(&path.child("cidr"), "");
    }
    check::legacy_cidr(cidr, known, &path.child("cidr"), errors);
    let Some(outer) = check::parse_cidr_sloppy(cidr) else { return };
    for (i, except) in strings(block, "except").into_iter().enumerate() {
        let path = path.child("except").index(i);
        check::legacy_cidr(except, known, &path, errors);
        let Some(inner) = check::parse_cidr_sloppy(except) else { continue };
        if !outer.contains(inner.network()) || outer.prefix >= inner.prefix {
            errors.invalid(&path, except, "must be a strict subset of `cidr`");
        }
    }
}

fn policy_rules(spec: &Value) -> impl Iterator<Item = (&'static str, &'static str, usize, &Value)> {
    [("ingress", "from"), ("egress", "to")]
        .into_iter()
        .flat_map(move |(list, peers)| spec.list(list).iter().enumerate().map(move |(i, rule)| (list, peers, i, rule)))
}

fn policy_spec(spec: &Value, tolerated: Tolerated<'_>, errors: &mut Errors) {
    let path = FieldPath::new("spec");
    check::label_selector(spec.o("podSelector"), tolerated.selectors, &path.child("podSelector"), errors);
    for (list, peers, i, rule) in policy_rules(spec) {
        let path = path.child(list).index(i);
        for (j, port) in rule.list("ports").iter().enumerate() {
            policy_port(port, &path.child("ports").index(j), errors);
        }
        for (j, peer) in rule.list(peers).iter().enumerate() {
            policy_peer(peer, tolerated, &path.child(peers).index(j), errors);
        }
    }
    let types = strings(spec, "policyTypes");
    let path = path.child("policyTypes");
    if types.len() > 2 {
        return errors.invalid(&path, shown(spec.v("policyTypes")), "may not specify more than two policyTypes");
    }
    for (i, kind) in types.into_iter().enumerate() {
        if !matches!(kind, "Ingress" | "Egress") {
            errors.not_supported(&path.index(i), kind, &["Ingress", "Egress"]);
        }
    }
}

/// The CIDRs in a policy's peers.
pub(crate) fn policy_cidrs(policy: &Value) -> Vec<&str> {
    let mut out = Vec::new();
    for (_, peers, _, rule) in policy_rules(policy.v("spec")) {
        for block in rule.list(peers).iter().filter_map(|peer| peer.o("ipBlock")) {
            out.push(block.s("cidr"));
            out.extend(strings(block, "except"));
        }
    }
    out
}

pub(crate) fn policy(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let mut known = Vec::new();
    let mut selectors = SelectorOptions::default();
    if let Some(old) = old {
        known = policy_cidrs(old);
        let mut found = Errors::new();
        check::label_selector(old.v("spec").o("podSelector"), selectors, &FieldPath::new("x"), &mut found);
        selectors.allow_invalid_label_value = !found.is_empty();
        object_meta::validate_update(new, old, true, errors);
    } else {
        object_meta::validate(new, META, errors);
    }
    policy_spec(new.v("spec"), Tolerated { selectors, cidrs: &known }, errors);
}

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

fn secret_name_is_bad(name: &str) -> bool {
    !name.is_empty() && !names::name_is_dns_subdomain(name, false).is_empty()
}

pub(crate) fn ingress(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
    }
    object_meta::validate(new, META, errors);
    let old_spec = old.map(|o| o.v("spec"));
    let any_secret = old_spec.is_some_and(|s| s.list("tls").iter().any(|t| secret_name_is_bad(t.s("secretName"))));
    let any_wildcard = old_spec.is_some_and(|s| {
        s.list("rules").iter().any(|rule| {
            let mut found = Errors::new();
            ingress_rule(rule, &FieldPath::new("x"), &mut found);
            rule.s("host").contains('*') && !found.is_empty()
        })
    });
    ingress_spec(new.v("spec"), any_secret, any_wildcard, errors);
    if old.is_some() {
        return;
    }
    let annotation = new.v("metadata").v("annotations").os(CLASS_ANNOTATION);
    let class = new.v("spec").os("ingressClassName");
    if let (Some(annotation), Some(class)) = (annotation, class)
        && annotation != class
    {
        errors.invalid(
            &at(&["annotations", CLASS_ANNOTATION]),
            annotation,
            "must match `ingressClassName` when both are specified",
        );
    }
}

fn ingress_spec(spec: &Value, any_secret: bool, any_wildcard: bool, errors: &mut Errors) {
    let path = FieldPath::new("spec");
    let rules = spec.list("rules");
    let default = spec.o("defaultBackend");
    if rules.is_empty() && default.is_none() {
        errors.invalid(&path, shown(spec.v("rules")), "either `defaultBackend` or `rules` must be specified");
    }
    if let Some(backend) = default {
        ingress_backend(backend, &path.child("defaultBackend"), errors);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.child("rules").index(i);
        let host = rule.s("host");
        let wildcard = host.contains('*');
        if !host.is_empty() {
            let at = path.child("host");
            if check::parse_ip_sloppy(host).is_some() {
                errors.invalid(&at, host, "must be a DNS name, not an IP address");
            }
            ingress_host(host, &at, errors);
        }
        if !wildcard || !any_wildcard {
            ingress_rule(rule, &path, errors);
        }
    }
    for (i, tls) in spec.list("tls").iter().enumerate() {
        let path = path.child("tls").index(i);
        for (j, host) in strings(tls, "hosts").into_iter().enumerate() {
            ingress_host(host, &path.child("hosts").index(j), errors);
        }
        let secret = tls.s("secretName");
        if !any_secret && secret_name_is_bad(secret) {
            errors.messages(&path.child("secretName"), secret, names::name_is_dns_subdomain(secret, false));
        }
    }
    if let Some(class) = spec.os("ingressClassName") {
        check::dns_subdomain(class, &path.child("ingressClassName"), errors);
    }
}

fn ingress_host(host: &str, path: &FieldPath, errors: &mut Errors) {
    let messages =
        if host.contains('*') { names::is_wildcard_dns1123_subdomain(host) } else { names::is_dns1123_subdomain(host) };
    errors.messages(path, host, messages);
}

fn ingress_rule(rule: &Value, path: &FieldPath, errors: &mut Errors) {
    let Some(http) = rule.o("http") else { return };
    let path = path.child("http").child("paths");
    let paths = http.list("paths");
    if paths.is_empty() {
        errors.required(&path, "");
    }
    for (i, entry) in paths.iter().enumerate() {
        ingress_path(entry, &path.index(i), errors);
    }
}

fn ingress_path(entry: &Value, path: &FieldPath, errors: &mut Errors) {
    let Some(kind) = entry.os("pathType") else {
        return errors.required(&path.child("pathType"), "pathType must be specified");
    };
    let value = entry.s("path");
    let at = path.child("path");
    match kind {
        "Exact" | "Prefix" => {
            if !value.starts_with('/') {
                errors.invalid(&at, value, "must be an absolute path");
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                if value.contains(sequence) {
                    errors.invalid(&at, value, format!("must not contain '{sequence}'"));
                }
            }
            for suffix in ["/..", "/."] {
                if value.ends_with(suffix) {
                    errors.invalid(&at, value, format!("cannot end with '{suffix}'"));
                }
            }
        }
        "ImplementationSpecific" => {
            if !value.is_empty() && !value.starts_with('/') {
                errors.invalid(&at, value, "must be an absolute path");
            }
        }
        other => {
            errors.not_supported(&path.child("pathType"), other, &["Exact", "ImplementationSpecific", "Prefix"]);
        }
    }
    ingress_backend(entry.v("backend"), &path.child("backend"), errors);
}

fn ingress_backend(backend: &Value, path: &FieldPath, errors: &mut Errors) {
    match (backend.o("resource"), backend.o("service")) {
        (Some(_), Some(_)) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (Some(resource), None) => object_reference(resource, &path.child("resource"), errors),
        (None, Some(service)) => {
            let at = path.child("service");
            let name = service.s("name");
            if name.is_empty() {
                errors.required(&at.child("name"), "");
            } else {
                check::dns_label(name, &at.child("name"), errors);
            }
            let port = service.v("port");
            let (name, number) = (port.s("name"), port.i("number"));
            let at = at.child("port");
            match (name.is_empty(), number == 0) {
                (false, false) => errors.invalid(path, "", "cannot set both port name & port number"),
                (false, true) => errors.messages(&at.child("name"), name, names::is_valid_port_name(name)),
                (true, false) => check::port_number(number, &at.child("number"), errors),
                (true, true) => errors.required(path, "port name or number is required"),
            }
        }
        (None, None) => errors.invalid(path, "", "resource or service backend is required"),
    }
}

/// An object in the same namespace, of any type.
fn object_reference(reference: &Value, path: &FieldPath, errors: &mut Errors) {
    if let Some(group) = reference.os("apiGroup") {
        check::dns_subdomain(group, &path.child("apiGroup"), errors);
    }
    check::required_path_segment(reference, "kind", path, errors);
    check::required_path_segment(reference, "name", path, errors);
}

pub(crate) fn ingress_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    let list = |o: &'_ Value| -> Vec<Value> { o.v("status").v("loadBalancer").list("ingress").to_vec() };
    let before = list(old);
    let known: Vec<&str> = before.iter().map(|i| i.s("ip")).filter(|ip| !ip.is_empty()).collect();
    for (i, ingress) in list(new).iter().enumerate() {
        let path = at(&["status", "loadBalancer", "ingress"]).index(i);
        let (ip, host) = (ingress.s("ip"), ingress.s("hostname"));
        if !ip.is_empty() {
            check::legacy_ip(ip, &known, &path.child("ip"), errors);
        }
        if !host.is_empty() {
            let path = path.child("hostname");
            check::dns_subdomain(host, &path, errors);
            if check::parse_ip_sloppy(host).is_some() {
                errors.invalid(&path, host, "must be a DNS name, not an IP address");
            }
        }
    }
}

pub(crate) fn ingress_class(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
        check::immutable(spec.v("controller"), old.v("spec").v("controller"), &path.child("controller"), errors);
    }
    object_meta::validate(new, CLUSTER_META, errors);
    let controller = spec.s("controller");
    if controller.len() > 250 {
        errors.push(FieldError::too_long(&path.child("controller"), 250));
    }
    errors.append(&mut names::is_domain_prefixed_path(&path.child("controller"), controller));
    let Some(parameters) = spec.o("parameters") else { return };
    let path = path.child("parameters");
    object_reference(parameters, &path, errors);
    let namespace = parameters.os("namespace");
    let at = path.child("namespace");
    match parameters.os("scope") {
        None => errors.required(&path.child("scope"), ""),
        Some("Namespace") => match namespace {
            None => errors.required(&at, "`parameters.scope` is set to 'Namespace'"),
            Some(namespace) => check::dns_label(namespace, &at, errors),
        },
        Some("Cluster") => {
            if namespace.is_some() {
                errors.forbidden(&at, "`parameters.scope` is set to 'Cluster'");
            }
        }
        Some(other) => errors.not_supported(&path.child("scope"), other, &["Cluster", "Namespace"]),
    }
}

fn ip_address_name(name: &str, _: bool) -> Vec<String> {
    let mut errors = Errors::new();
    check::canonical_ip(name, &FieldPath::new(""), &mut errors);
    errors.into_iter().map(|e| e.detail).collect()
}

pub(crate) fn ip_address(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let path = at(&["spec", "parentRef"]);
    let parent = new.v("spec").v("parentRef");
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
        if parent.is_null() {
            errors.required(&path, "");
        }
        return check::immutable(parent, old.v("spec").v("parentRef"), &path, errors);
    }
    object_meta::validate(new, MetaRules::cluster(ip_address_name), errors);
    if parent.is_null() {
        return errors.required(&path, "");
    }
    let group = parent.s("group");
    if !group.is_empty() {
        check::dns_subdomain(group, &path.child("group"), errors);
    }
    check::required_path_segment(parent, "resource", &path, errors);
    check::required_path_segment(parent, "name", &path, errors);
    let namespace = parent.s("namespace");
    if !namespace.is_empty() {
        errors.messages(&path.child("namespace"), namespace, names::is_path_segment_name(namespace));
    }
}

fn service_cidrs(spec: &Value, errors: &mut Errors) {
    let path = at(&["spec", "cidrs"]);
    let cidrs = strings(spec, "cidrs");
    if cidrs.is_empty() {
        return errors.required(&path, "at least one CIDR required");
    }
    if cidrs.len() > 2 {
        let printed = Value::from(cidrs.iter().map(|cidr| (*cidr).to_owned()).collect::<Vec<_>>());
        let printed = BadValue::Printed(format!("{{\"CIDRs\":{printed}}}"));
        return errors.invalid(&path, printed, "may only hold up to 2 values");
    }
    for (i, cidr) in cidrs.iter().enumerate() {
        check::canonical_cidr(cidr, &path.index(i), errors);
    }
    let families: Vec<bool> =
        cidrs.iter().filter_map(|c| check::parse_cidr_sloppy(c)).map(|c| check::unmapped(c.ip).is_ipv6()).collect();
    if let [a, b] = families[..]
        && a == b
    {
        errors.invalid(
            &path,
            shown(spec.v("cidrs")),
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        );
    }
}

pub(crate) fn service_cidr(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = new.v("spec");
    let Some(old) = old else {
        object_meta::validate(new, CLUSTER_META, errors);
        return service_cidrs(spec, errors);
    };
    object_meta::validate_update(new, old, true, errors);
    let path = at(&["spec", "cidrs"]);
    let (after, before) = (strings(spec, "cidrs"), strings(old.v("spec"), "cidrs"));
    match (before.len(), after.len()) {
        (a, b) if a == b => {
            for (i, (after, before)) in after.iter().zip(&before).enumerate() {
                if after != before {
                    errors.invalid(&path.index(i), *after, check::IMMUTABLE);
                }
            }
        }
        (1, 2) => {
            if after[0] != before[0] {
                errors.invalid(&path.index(0), after[0], check::IMMUTABLE);
            }
            service_cidrs(spec, errors);
        }
        _ => errors.invalid(&path, shown(spec.v("cidrs")), check::IMMUTABLE),
    }
}

const ADDRESS_TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];

pub(crate) fn endpoint_slice(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    object_meta::validate(new, META, errors);
    let path = FieldPath::new("addressType");
    let kind = new.s("addressType");
    check::one_of(new, "addressType", ADDRESS_TYPES, &FieldPath::default(), errors);
    slice_ports(new.list("ports"), &FieldPath::new("ports"), errors);
    if !old.is_some_and(|old| semantic_equal(old.v("endpoints"), new.v("endpoints"))) {
        slice_endpoints(new.list("endpoints"), kind, &FieldPath::new("endpoints"), errors);
    }
    if let Some(old) = old {
        check::immutable(new.v("addressType"), old.v("addressType"), &path, errors);
    }
}

fn slice_ports(ports: &[Value], path: &FieldPath, errors: &mut Errors) {
    if ports.len() > 20_000 {
        return errors.push(FieldError::too_many(path, ports.len() as i64, 20_000));
    }
    let mut seen = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = port.s("name");
        if !name.is_empty() {
            check::dns_label(name, &path.child("name"), errors);
        }
        if seen.contains(&name) {
            errors.duplicate(&path.child("name"), name);
        } else {
            seen.push(name);
        }
        match port.os("protocol") {
            None => errors.required(&path.child("protocol"), ""),
            Some("TCP" | "UDP" | "SCTP") => {}
            Some(other) => errors.not_supported(&path.child("protocol"), other, &["SCTP", "TCP", "UDP"]),
        }
        if let Some(app) = port.os("appProtocol") {
            check::qualified_name(app, &path.child("appProtocol"), errors);
        }
    }
}

fn slice_endpoints(endpoints: &[Value], kind: &str, path: &FieldPath, errors: &mut Errors) {
    if endpoints.len() > 1000 {
        return errors.push(FieldError::too_many(path, endpoints.len() as i64, 1000));
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let path = path.index(i);
        let addresses = strings(endpoint, "addresses");
        let at = path.child("addresses");
        if addresses.is_empty() {
            errors.required(&at, "must contain at least 1 address");
        } else if addresses.len() > 100 {
            errors.push(FieldError::too_many(&at, addresses.len() as i64, 100));
        }
        for (j, address) in addresses.into_iter().enumerate() {
            slice_address(address, kind, &at, &at.index(j), errors);
        }
        if let Some(node) = endpoint.os("nodeName") {
            check::dns_subdomain(node, &path.child("nodeName"), errors);
        }
        if let Some(host) = endpoint.os("hostname") {
            check::dns_label(host, &path.child("hostname"), errors);
        }
        if let Some(hints) = endpoint.o("hints") {
            slice_hints(hints, &path.child("hints"), errors);
        }
    }
}

fn slice_address(address: &str, kind: &str, list: &FieldPath, path: &FieldPath, errors: &mut Errors) {
    let before = errors.len();
    let wants_ipv6 = match kind {
        "IPv4" => {
            check::legacy_ip(address, &[], path, errors);
            false
        }
        "IPv6" => {
            check::canonical_ip(address, path, errors);
            true
        }
        "FQDN" => return errors.append(&mut names::is_fully_qualified_domain_name(path, address)),
        _ => return,
    };
    if errors.len() > before {
        return;
    }
    if check::parse_ip_sloppy(address).is_some_and(|ip| check::unmapped(ip).is_ipv6() != wants_ipv6) {
        errors.invalid(list, address, format!("must be an {kind} address"));
    }
    super::core::service::endpoint_ip(address, path, errors);
}

fn slice_hints(hints: &Value, path: &FieldPath, errors: &mut Errors) {
    for key in ["forZones", "forNodes"] {
        let list = hints.list(key);
        let path = path.child(key);
        if list.len() > 8 {
            return errors.push(FieldError::too_many(&path, list.len() as i64, 8));
        }
        let mut seen = Vec::new();
        for (i, hint) in list.iter().enumerate() {
            let path = path.index(i).child("name");
            let name = hint.s("name");
            if seen.contains(&name) {
                errors.duplicate(&path, name);
            } else {
                seen.push(name);
            }
            let messages =
                if key == "forZones" { names::is_label_value(name) } else { names::name_is_dns_subdomain(name, false) };
            errors.messages(&path, name, messages);
        }
    }
}
