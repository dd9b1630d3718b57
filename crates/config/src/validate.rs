//! Rules between keys. Each row of the tests below names one.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::Problem;
use crate::model::{Config, DnsMode, EnableMappings, GatewayRoutePolicy, Patch, ResolveDns, StoreType, Switch, Typed};
use crate::rules;

/// Applies the defaults that depend on other keys and returns all broken rules.
pub(crate) fn validate(config: &mut Typed, values: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    dependent_defaults(config);
    let mut check = |broken: bool, path: &str, message: &str| {
        if broken {
            problems.push(Problem::at_path(path, message));
        }
    };
    check(
        !matches!(config.policies.pod_security_standard.as_str(), "" | "privileged" | "baseline" | "restricted"),
        "policies.podSecurityStandard",
        "must be one of: privileged, baseline, restricted",
    );
    check(
        config.store_type() == StoreType::EmbeddedDatabase
            && config.control_plane.stateful_set.high_availability.replicas > 1,
        "controlPlane.statefulSet.highAvailability.replicas",
        "must be 1 with the embedded database; choose another controlPlane.backingStore for more replicas",
    );
    let etcd = &config.control_plane.backing_store.etcd;
    check(
        etcd.embedded.enabled
            && etcd.embedded.migrate_from_deployed_etcd
            && config.control_plane.stateful_set.high_availability.replicas > 1,
        "controlPlane.backingStore.etcd.embedded.migrateFromDeployedEtcd",
        "needs one replica until the data has moved",
    );
    check(
        !config.control_plane.service.enabled,
        "controlPlane.service.enabled",
        "must be true: pods reach the API through this Service, and it owns what is synced",
    );
    check(
        config.virtual_scheduler() && !config.sync.from_host.nodes.enabled,
        "sync.fromHost.nodes.enabled",
        "must be true with hybrid scheduling or a virtual scheduler",
    );
    check(
        config.sync.from_host.storage_classes.enabled == Switch::On && config.sync.to_host.storage_classes.enabled,
        "sync.toHost.storageClasses.enabled",
        "must not be true together with sync.fromHost.storageClasses.enabled; choose one direction",
    );
    check(
        config.sync.from_host.priority_classes.enabled && config.sync.to_host.priority_classes.enabled,
        "sync.toHost.priorityClasses.enabled",
        "must not be true together with sync.fromHost.priorityClasses.enabled; choose one direction",
    );
    let k8s = &config.control_plane.distro.k8s;
    check(
        k8s.enabled && !k8s.api_server.enabled,
        "controlPlane.distro.k8s.apiServer.enabled",
        "must be true: without it there is no API",
    );
    for (index, chart) in config.experimental.deploy.vcluster.helm.iter().enumerate() {
        let path = format!("experimental.deploy.vcluster.helm[{index}]");
        check(chart.bundle.is_empty() && chart.chart.name.is_empty(), &path, "must have chart.name or a bundle");
        check(
            chart.release.name.is_empty() && chart.chart.name.is_empty(),
            &format!("{path}.release.name"),
            "must be set for a bundle without chart.name",
        );
        check(
            !chart.timeout.is_empty() && crate::duration(&chart.timeout).is_none(),
            &format!("{path}.timeout"),
            "must be a duration such as 180s",
        );
    }
    let version = &k8s.version;
    let minor = version.trim_start_matches('v').strip_prefix("1.").and_then(|rest| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<u32>().ok()
    });
    check(
        !version.is_empty() && minor.is_none_or(|minor| minor < 30),
        "controlPlane.distro.k8s.version",
        "must be a version of Kubernetes from v1.30 on, such as v1.36.0",
    );
    let central = &config.policies.central_admission;
    check(
        k8s.enabled && !(central.mutating_webhooks.is_empty() && central.validating_webhooks.is_empty()),
        "policies.centralAdmission",
        "is not supported together with controlPlane.distro.k8s: kube-apiserver asks only webhooks that are objects of the cluster",
    );
    check(
        !config.networking.advanced.cluster_domain.split('.').all(is_dns_label),
        "networking.advanced.clusterDomain",
        "must be a DNS domain such as cluster.local",
    );
    check(
        config.control_plane.host_path_mapper.enabled && config.sync.to_host.namespaces.enabled,
        "controlPlane.hostPathMapper.enabled",
        "must not be true together with sync.toHost.namespaces.enabled: the mapper looks into one host namespace",
    );
    check(
        config.control_plane.host_path_mapper.central && !config.control_plane.host_path_mapper.enabled,
        "controlPlane.hostPathMapper.central",
        "needs controlPlane.hostPathMapper.enabled",
    );
    let text = |path: &str| values.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let after = text("/sleep/auto/afterInactivity");
    check(
        !after.is_empty() && crate::duration(after).is_none(),
        "sleep.auto.afterInactivity",
        "must be a duration such as 30m or 1h30m",
    );
    for (pointer, path) in
        [("/sleep/auto/schedule", "sleep.auto.schedule"), ("/sleep/auto/wakeup/schedule", "sleep.auto.wakeup.schedule")]
    {
        let schedule = text(pointer);
        check(
            !schedule.is_empty() && !schedule.starts_with('@') && schedule.split_whitespace().count() != 5,
            path,
            "must be a cron schedule of five fields such as \"0 20 * * 1-5\"",
        );
    }
    let after = text("/deletion/auto/afterInactivity");
    check(
        !after.is_empty() && crate::duration(after).is_none(),
        "deletion.auto.afterInactivity",
        "must be a duration such as 48h or 90m",
    );
    check(
        !after.is_empty() && config.deletion.prevent,
        "deletion.prevent",
        "must not be true together with deletion.auto.afterInactivity",
    );
    let schedule = text("/snapshots/auto/schedule");
    check(
        !schedule.is_empty() && !schedule.starts_with('@') && schedule.split_whitespace().count() != 5,
        "snapshots.auto.schedule",
        "must be a cron schedule of five fields such as \"0 2 * * *\"",
    );
    if !schedule.is_empty() {
        let kind = text("/snapshots/auto/storage/type");
        let needed = match kind {
            "s3" => Some(("/snapshots/auto/storage/s3/url", "snapshots.auto.storage.s3.url")),
            "oci" => Some(("/snapshots/auto/storage/oci/repository", "snapshots.auto.storage.oci.repository")),
            "container" => Some(("/snapshots/auto/storage/container/path", "snapshots.auto.storage.container.path")),
            "azure" => Some(("/snapshots/auto/storage/azure/blobUrl", "snapshots.auto.storage.azure.blobUrl")),
            _ => None,
        };
        check(needed.is_none(), "snapshots.auto.storage.type", "must be one of: s3, oci, container, azure");
        if let Some((pointer, path)) = needed {
            check(text(pointer).is_empty(), path, "must say where snapshots are kept");
        }
    }
    let export = &config.export_kube_config;
    check(
        !(export.additional_secrets.is_empty() || export.secret.name.is_empty() && export.secret.namespace.is_empty()),
        "exportKubeConfig.secret",
        "must not be set together with exportKubeConfig.additionalSecrets",
    );
    check(!is_server(&export.server), "exportKubeConfig.server", "must be a URL that starts with http:// or https://");
    for (index, secret) in export.additional_secrets.iter().enumerate() {
        let path = format!("exportKubeConfig.additionalSecrets[{index}]");
        check(secret.name.is_empty() && secret.namespace.is_empty(), &path, "must have a name or a namespace");
        check(
            !is_server(&secret.server),
            &format!("{path}.server"),
            "must be a URL that starts with http:// or https://",
        );
    }
    let cidrs = config.networking.service_cidr.split(',').filter(|cidr| !cidr.is_empty());
    for cidr in cidrs {
        check(!is_cidr(cidr.trim()), "networking.serviceCIDR", "must be an address range such as 10.96.0.0/12");
    }
    for (index, toleration) in config.sync.to_host.pods.enforce_tolerations.iter().enumerate() {
        check(
            !rules::is_toleration(toleration),
            &format!("sync.toHost.pods.enforceTolerations[{index}]"),
            "must be KEY=VALUE:EFFECT, KEY:EFFECT, KEY or *, with an effect of NoSchedule, PreferNoSchedule or NoExecute",
        );
    }
    for (index, mapping) in config.networking.replicate_services.to_host.iter().enumerate() {
        let path = format!("networking.replicateServices.toHost[{index}]");
        check(mapping.from.matches('/').count() != 1, &format!("{path}.from"), "must be NAMESPACE/NAME");
        check(
            mapping.to.is_empty() || mapping.to.matches('/').count() > 1,
            &format!("{path}.to"),
            "must be the name of a host service, or NAMESPACE/NAME",
        );
    }
    for (index, mapping) in config.networking.replicate_services.from_host.iter().enumerate() {
        let path = format!("networking.replicateServices.fromHost[{index}]");
        check(
            mapping.from.matches('/').count() > 1 || mapping.from.is_empty(),
            &format!("{path}.from"),
            "must be NAMESPACE/NAME",
        );
        check(
            mapping.to.matches('/').count() > 1 || mapping.to.is_empty(),
            &format!("{path}.to"),
            "must be NAMESPACE/NAME",
        );
    }
    for (index, entry) in config.networking.resolve_dns.iter().enumerate() {
        resolve_dns(&format!("networking.resolveDNS[{index}]"), entry, &mut check);
    }
    for (key, resource) in &config.sync.to_host.custom_resources {
        check(
            !matches!(resource.scope.as_str(), "" | "Namespaced"),
            &format!("sync.toHost.customResources.{key}.scope"),
            "must be Namespaced",
        );
    }
    for (key, resource) in &config.sync.from_host.custom_resources {
        let path = format!("sync.fromHost.customResources.{key}");
        check(
            !matches!(resource.scope.as_str(), "" | "Cluster" | "Namespaced"),
            &format!("{path}.scope"),
            "must be Cluster or Namespaced",
        );
        let mapped = !resource.mappings.by_name.is_empty();
        let namespaced = resource.scope == "Namespaced";
        check(mapped && !namespaced, &format!("{path}.mappings"), "needs scope Namespaced");
        check(namespaced && !mapped, &format!("{path}.mappings"), "must not be empty with scope Namespaced");
        if namespaced {
            from_host_mappings(&path, &resource.mappings.by_name, &mut check);
        }
    }
    for (path, kind) in [
        ("sync.fromHost.configMaps", &config.sync.from_host.config_maps),
        ("sync.fromHost.secrets", &config.sync.from_host.secrets),
    ] {
        from_host(path, kind, &mut check);
    }
    namespace_mappings(config, &mut check);
    gateway_mappings(config, &mut check);
    all_patches(values, "", &mut check);
    rules::check(config, &mut check);
    problems
}

/// Rules that depend on who answers DNS.
pub(crate) fn validate_dns(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mode = config.dns_mode();
    let coredns = &config.control_plane.coredns;
    if !config.networking.resolve_dns.is_empty() && mode != DnsMode::Embedded {
        let message = "needs the embedded DNS server: set controlPlane.coredns.embedded to true";
        problems.push(Problem::at_path("networking.resolveDNS", message));
    }
    if mode == DnsMode::Embedded && !coredns.overwrite_manifests.is_empty() {
        let message = "has no place with the embedded DNS server: set controlPlane.coredns.embedded to false";
        problems.push(Problem::at_path("controlPlane.coredns.overwriteManifests", message));
    }
    problems
}

pub(crate) type Check<'a> = dyn FnMut(bool, &str, &str) + 'a;

fn dependent_defaults(config: &mut Typed) {
    let scheduler = config.virtual_scheduler();
    let to_host_classes = config.sync.to_host.storage_classes.enabled;
    let claims = config.sync.to_host.persistent_volume_claims.enabled;
    let from_host = &mut config.sync.from_host;
    if scheduler && from_host.nodes.selector.labels.is_empty() {
        from_host.nodes.selector.all = true;
    }
    if scheduler && claims {
        let on = |switch: &mut Switch| {
            if *switch == Switch::Auto {
                *switch = Switch::On;
            }
        };
        on(&mut from_host.csi_nodes.enabled);
        on(&mut from_host.csi_drivers.enabled);
        on(&mut from_host.csi_storage_capacities.enabled);
        if !to_host_classes {
            on(&mut from_host.storage_classes.enabled);
        }
    }
    if config.sync.to_host.namespaces.enabled {
        config.sync.to_host.secrets.all = true;
        config.sync.to_host.config_maps.all = true;
    }
}

fn from_host(path: &str, kind: &EnableMappings, check: &mut Check<'_>) {
    if kind.enabled {
        check(kind.mappings.by_name.is_empty(), &format!("{path}.mappings.byName"), "must not be empty");
        from_host_mappings(path, &kind.mappings.by_name, check);
    }
}

fn from_host_mappings(path: &str, mappings: &BTreeMap<String, String>, check: &mut Check<'_>) {
    for (key, value) in mappings {
        let path = format!("{path}.mappings.byName[{key:?}]");
        let host = key.is_empty() || key.matches('/').count() == 1;
        check(!host, &path, "the key must be NAMESPACE/NAME, NAMESPACE/*, /NAME or \"\"");
        let target = value.matches('/').count() == 1 || key.is_empty() && !value.contains('/');
        check(!target, &path, "the value must be NAMESPACE/NAME or NAMESPACE/* (or NAMESPACE when the key is \"\")");
        check(
            key.ends_with("/*") && !value.ends_with("/*"),
            &path,
            "the value must end in /* because the key stands for all objects of a namespace",
        );
        check(
            key.is_empty() && value.contains('/') && !value.ends_with("/*"),
            &path,
            "the value must be NAMESPACE or NAMESPACE/* because the key stands for the cluster's host namespace",
        );
        let names = |text: &str, empty: bool| {
            let (namespace, name) = text.split_once('/').unwrap_or((text, "*"));
            (empty && namespace.is_empty() || is_dns_label(namespace))
                && (name == "*" || name.split('.').all(is_dns_label))
        };
        check(host && !key.is_empty() && !names(key, true), &path, "the key holds an invalid name");
        check(target && !names(value, false), &path, "the value holds an invalid name");
    }
}

fn namespace_mappings(config: &Typed, check: &mut Check<'_>) {
    let namespaces = &config.sync.to_host.namespaces;
    if !namespaces.enabled {
        return;
    }
    let mappings = &namespaces.mappings.by_name;
    check(mappings.is_empty(), "sync.toHost.namespaces.mappings.byName", "must not be empty");
    let literal = |text: &str| text.replace("${name}", "").trim_end_matches('*').to_string();
    let is_name = |text: &str| {
        let plain = text.replace("${name}", "x").replace('*', "x");
        is_dns_label(&plain)
    };
    for (from, to) in mappings {
        let path = format!("sync.toHost.namespaces.mappings.byName[{from:?}]");
        let pattern = |text: &str| text.matches('*').count() == 1 && text.ends_with('*');
        let fits = match (from.contains('*'), to.contains('*')) {
            (false, false) => true,
            (true, true) => pattern(from) && pattern(to),
            _ => false,
        };
        check(!fits, &path, "must map a name to a name, or a pattern that ends in * to one that ends in *");
        check(to == "*", &path, "the host side must not be * alone");
        check(
            literal(from).len() > 32 || literal(to).len() > 32,
            &path,
            "must not have more than 32 characters beside * and ${name}",
        );
        check(!is_name(from) || !is_name(to), &path, "holds an invalid name");
    }
}

fn gateway_mappings(config: &Typed, check: &mut Check<'_>) {
    let gateways = &config.sync.from_host.gateways;
    if !gateways.enabled {
        return;
    }
    let mappings = &gateways.mappings.by_name;
    let path = "sync.fromHost.gateways";
    check(mappings.is_empty(), &format!("{path}.mappings.byName"), "must not be empty");
    let mut targets = BTreeMap::new();
    for (from, to) in mappings {
        let here = format!("{path}.mappings.byName[{from:?}]");
        for (text, side) in [(from, "key"), (to, "value")] {
            let (namespace, name) = text.split_once('/').unwrap_or_default();
            let fits = is_dns_label(namespace) && (name == "*" || name.split('.').all(is_dns_label));
            check(!fits, &here, &format!("the {side} must be NAMESPACE/NAME or NAMESPACE/*"));
        }
        let wildcard = (from.ends_with("/*"), to.ends_with("/*"));
        check(wildcard == (true, false), &here, "the value must be a wildcard NAMESPACE/* because the key is one");
        check(wildcard == (false, true), &here, "the value must not be a wildcard because the key is none");
        let namespace = |text: &'_ str| text.split('/').next().unwrap_or_default().to_owned();
        check(namespace(to).starts_with("kube-"), &here, "the namespace is reserved");
        if let Some(other) = targets.insert(to, from) {
            check(true, &here, &format!("has the same target as {other:?}: {to}"));
        }
        let mut others = mappings.iter().filter(|(other, _)| *other != from);
        let overlaps = others.any(|(other, target)| {
            let wild = other.ends_with("/*");
            wild && (namespace(other) == namespace(from) || namespace(target) == namespace(to))
        });
        check(overlaps && !wildcard.0, &here, "overlaps with a wildcard mapping of the same namespace");
    }
    let policies = &gateways.allowed_routes;
    let default = format!("{path}.allowedRoutes.defaultVirtualNamespacePolicy");
    route_policy(&default, &policies.default_virtual_namespace_policy, check);
    for (n, o) in policies.overrides.iter().enumerate() {
        let here = format!("{path}.allowedRoutes.overrides[{n}]");
        check(o.host_namespace.is_empty() || o.name.is_empty(), &here, "must have hostNamespace and name");
        let covered = mappings.contains_key(&format!("{}/{}", o.host_namespace, o.name))
            || mappings.contains_key(&format!("{}/*", o.host_namespace));
        check(!covered, &here, &format!("no entry of {path}.mappings.byName shows this Gateway"));
        route_policy(&format!("{here}.virtualNamespacePolicy"), &o.virtual_namespace_policy, check);
        for (h, hostname) in o.allowed_hostnames.iter().enumerate() {
            let fits = hostname.strip_prefix("*.").unwrap_or(hostname).split('.').all(is_dns_label);
            let here = format!("{here}.allowedHostnames[{h}]");
            check(!fits, &here, "must be a host name, or one that begins with *.");
        }
    }
}

fn route_policy(path: &str, policy: &GatewayRoutePolicy, check: &mut Check<'_>) {
    let word = matches!(policy.from.as_str(), "" | "Same" | "All" | "None" | "Selector");
    check(!word, &format!("{path}.from"), "must be one of: Same, All, None, Selector");
    let selector = &policy.selector;
    let empty = selector.match_labels.is_empty() && selector.match_expressions.is_empty();
    check(policy.from == "Selector" && empty, &format!("{path}.selector"), "must not be empty when from is Selector");
}

fn resolve_dns(path: &str, entry: &ResolveDns, check: &mut Check<'_>) {
    let target = &entry.target;
    let set = |fields: &[&str]| fields.iter().filter(|field| !field.is_empty()).count();
    let sources = set(&[&entry.hostname, &entry.service, &entry.namespace]);
    check(sources != 1, path, "must have exactly one of: hostname, service, namespace");
    let targets = set(&[
        &target.hostname,
        &target.ip,
        &target.host_service,
        &target.host_namespace,
        &target.virtual_cluster_service,
    ]);
    check(
        targets != 1,
        &format!("{path}.target"),
        "must have exactly one of: hostname, ip, hostService, hostNamespace, vClusterService",
    );
    let service = &entry.service;
    check(
        !service.is_empty() && service.matches('/').count() != 1,
        &format!("{path}.service"),
        "must be NAMESPACE/NAME",
    );
    let wildcard = entry.hostname.matches('*').count();
    check(wildcard > 1, &format!("{path}.hostname"), "must have at most one wildcard");
    check(
        wildcard == 1 && !entry.hostname.starts_with('*') && !entry.hostname.ends_with('*'),
        &format!("{path}.hostname"),
        "must have its wildcard at the beginning or the end",
    );
    check(
        wildcard == 1 && target.hostname.matches('*').count() != 1,
        &format!("{path}.target.hostname"),
        "must have one wildcard because the hostname has one",
    );
    let star = target.hostname.matches('*').count();
    check(
        star > 1 || star == 1 && !target.hostname.starts_with('*') && !target.hostname.ends_with('*'),
        &format!("{path}.target.hostname"),
        "must have at most one wildcard, at the beginning or the end",
    );
    check(
        star == 1 && wildcard == 0,
        &format!("{path}.target.hostname"),
        "must not have a wildcard because the hostname has none",
    );
    check(
        entry.namespace.is_empty() != target.host_namespace.is_empty(),
        path,
        "namespace and target.hostNamespace go together",
    );
    let ip = &target.ip;
    check(
        !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err(),
        &format!("{path}.target.ip"),
        "must be an IP address",
    );
    let host_service = &target.host_service;
    check(
        !host_service.is_empty() && host_service.matches('/').count() != 1,
        &format!("{path}.target.hostService"),
        "must be NAMESPACE/NAME",
    );
    let other = &target.virtual_cluster_service;
    check(
        !other.is_empty() && other.matches('/').count() != 3,
        &format!("{path}.target.vClusterService"),
        "must be HOST_NAMESPACE/VIRTUAL_CLUSTER/NAMESPACE/SERVICE",
    );
}

/// Finds every `patches` list below `sync`, wherever it stands.
fn all_patches(value: &Value, path: &str, check: &mut Check<'_>) {
    let Value::Object(map) = value else { return };
    for (name, value) in map {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if !path.starts_with("sync") {
            continue;
        }
        if name == "patches" {
            if let Ok(patches) = serde_json::from_value::<Vec<Patch>>(value.clone()) {
                patch_list(&path, &patches, check);
            }
        } else {
            all_patches(value, &path, check);
        }
    }
}

fn patch_list(path: &str, patches: &[Patch], check: &mut Check<'_>) {
    let mut seen = BTreeMap::new();
    for (index, patch) in patches.iter().enumerate() {
        let here = format!("{path}[{index}]");
        let modes = [
            patch.expression.as_ref().is_some_and(|e| !e.is_empty())
                || patch.reverse_expression.as_ref().is_some_and(|e| !e.is_empty()),
            patch.reference.is_some(),
            patch.labels.is_some(),
        ];
        check(
            modes.iter().filter(|mode| **mode).count() != 1,
            &here,
            "must have exactly one of: expression (or reverseExpression), reference, labels",
        );
        if let Some(reference) = &patch.reference {
            let paths = [&reference.namespace_path, &reference.kind_path, &reference.api_version_path];
            let needs = paths.iter().any(|path| !path.is_empty()) && reference.name_path.is_empty();
            check(
                needs,
                &format!("{here}.reference.namePath"),
                "must say where the name is, because other parts have a path",
            );
            let kind = reference.kind.is_empty() && reference.kind_path.is_empty();
            check(
                kind,
                &format!("{here}.reference.kind"),
                "must say what is referred to, or kindPath where it is said",
            );
        }
        if let Some(other) = seen.insert(&patch.path, index) {
            check(true, &here, &format!("has the same path as entry {other}: {}", patch.path));
        }
        check(
            matches!(patch.path.trim_start_matches('.'), "metadata.name" | "metadata.namespace"),
            &format!("{here}.path"),
            "must not be the name or the namespace of the object",
        );
    }
}

pub(crate) fn is_dns_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_server(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    text.is_empty() || host.is_some_and(|host| !host.is_empty() && !host.contains(char::is_whitespace))
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    match (address.parse::<std::net::IpAddr>(), bits.parse::<u8>()) {
        (Ok(std::net::IpAddr::V4(_)), Ok(bits)) => bits <= 32,
        (Ok(std::net::IpAddr::V6(_)), Ok(bits)) => bits <= 128,
        _ => false,
    }
}
