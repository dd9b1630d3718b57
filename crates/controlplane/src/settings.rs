//! What of `vcluster.yaml` the syncer is told.

use apimachinery::pod_security::Level;
use apimachinery::{Value, json};
use config::{
    Config, EnableAll, EnableMappings, EnableSelector, EnableSwitch, GatewayRoutePolicy, LabelSelector, Switch,
};
use syncer::names::{Names, NamespaceRule, NamespacedName};
use syncer::patches::{Mode, Patch, Path};
use syncer::script::Script;
use syncer::settings::{
    CustomImport, CustomKind, GatewayImport, GatewaySettings, Import, ImportMapping, Isolation, Nodes, PodSettings,
    ReplicatedService, RewriteHosts, RouteOverride, RoutePolicy, Settings, Wanted,
};
use syncer::types::address_block::AddressBlock;

/// A value of the configuration that the syncer cannot act on.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {message}")]
pub struct SettingsError {
    key: String,
    message: String,
}

fn wrong(key: impl Into<String>, message: impl ToString) -> SettingsError {
    SettingsError { key: key.into(), message: message.to_string() }
}

/// The names of a cluster's host objects, with the namespace rules of the configuration.
pub(crate) fn names(name: &str, namespace: &str, config: &Config) -> Names {
    let namespaces = &config.sync.to_host.namespaces;
    let names = Names::new(name, namespace);
    if !namespaces.enabled {
        return names;
    }
    let rules = namespaces.mappings.by_name.iter();
    names.with_namespace_rules(rules.map(|(from, to)| NamespaceRule { from: from.clone(), to: to.clone() }).collect())
}

/// The init container that rewrites `/etc/hosts`. The image that is the default need not be reachable from the host; this
/// program's own was pulled there already, unless that took credentials that the tenant's pods do not have.
fn rewrite_hosts(config: &Config, own_image: Option<&str>) -> Option<RewriteHosts> {
    let rewrite = &config.sync.to_host.pods.rewrite_hosts;
    if !rewrite.enabled {
        return None;
    }
    let advanced = &config.control_plane.advanced;
    let public = advanced.service_account.image_pull_secrets.is_empty();
    let default = config::default_at("sync.toHost.pods.rewriteHosts.initContainer.image");
    let untouched =
        default.and_then(|image| serde_json::from_value(image).ok()).as_ref() == Some(&rewrite.init_container.image);
    let own = own_image.filter(|_| public && untouched);
    Some(RewriteHosts {
        image: own
            .map_or_else(|| rewrite.init_container.image.reference(&advanced.default_image_registry), str::to_owned),
        own: own.is_some(),
        resources: tree(&rewrite.init_container.resources),
    })
}

/// The syncer's settings for a cluster of this name. On a host `own_image` is the image of this program.
pub(crate) fn settings(name: &str, config: &Config, own_image: Option<&str>) -> Result<Settings, SettingsError> {
    let (to_host, from_host) = (&config.sync.to_host, &config.sync.from_host);
    let pods = &to_host.pods;
    let account = &config.control_plane.advanced.workload_service_account.name;
    let gateway_api = &to_host.gateway_api;
    let gateways = GatewaySettings {
        gateways: gateway_api.enabled || gateway_api.gateways.enabled,
        http_routes: gateway_api.enabled || gateway_api.http_routes.enabled,
        tls_routes: gateway_api.tls_routes.enabled,
        grpc_routes: gateway_api.grpc_routes.enabled,
        tcp_routes: gateway_api.tcp_routes.enabled,
        udp_routes: gateway_api.udp_routes.enabled,
        backend_tls_policies: gateway_api.backend_tls_policies.enabled,
        reference_grants: match gateway_api.reference_grants.enabled {
            Switch::On => true,
            Switch::Off => false,
            Switch::Auto => to_host.namespaces.enabled && gateway_api.enabled,
        },
    };
    let on = |kind: &EnableSwitch| kind.enabled == Switch::On;
    Ok(Settings {
        cluster_domain: config.networking.advanced.cluster_domain.clone(),
        workload_service_account: if account.is_empty() {
            deploy::names::workload_service_account(name)
        } else {
            account.clone()
        },
        set_owner: config.experimental.sync_settings.set_owner,
        dns_service: config.control_plane.coredns.enabled.then(|| NamespacedName::new("kube-system", "kube-dns")),
        pods: PodSettings {
            translate_image: pods.translate_image.clone(),
            enforce_tolerations: pods.enforce_tolerations.iter().map(|text| toleration(text)).collect(),
            runtime_class_name: pods.runtime_class_name.clone(),
            priority_class_name: pods.priority_class_name.clone(),
            rewrite_hosts: rewrite_hosts(config, own_image),
            host_schedulers: pods.hybrid_scheduling.host_schedulers.clone(),
        },
        sync_pods: pods.enabled,
        services: to_host.services.enabled,
        config_maps: wanted(&to_host.config_maps),
        secrets: wanted(&to_host.secrets),
        endpoints: to_host.endpoints.enabled,
        endpoint_slices: to_host.endpoint_slices.enabled,
        persistent_volume_claims: to_host.persistent_volume_claims.enabled,
        persistent_volumes: to_host.persistent_volumes.enabled,
        storage_classes: to_host.storage_classes.enabled,
        ingresses: to_host.ingresses.enabled,
        network_policies: to_host.network_policies.enabled,
        service_accounts: to_host.service_accounts.enabled,
        pod_disruption_budgets: to_host.pod_disruption_budgets.enabled,
        priority_classes: to_host.priority_classes.enabled,
        events: from_host.events.enabled,
        nodes: nodes(config),
        import_ingress_classes: import(&from_host.ingress_classes),
        import_storage_classes: match from_host.storage_classes.enabled {
            Switch::On => Import::On(selector(&from_host.storage_classes.selector)),
            _ => Import::Off,
        },
        import_runtime_classes: import(&from_host.runtime_classes),
        import_priority_classes: import(&from_host.priority_classes),
        import_csi_drivers: on(&from_host.csi_drivers),
        import_csi_nodes: on(&from_host.csi_nodes),
        import_csi_storage_capacities: on(&from_host.csi_storage_capacities),
        import_device_classes: import(&from_host.device_classes),
        import_gateway_classes: match (from_host.gateway_classes.enabled, gateway_api.enabled) {
            (true, _) => import(&from_host.gateway_classes),
            // The umbrella switch shows the classes too.
            (false, true) => Import::On(selector(&from_host.gateway_classes.selector)),
            (false, false) => Import::Off,
        },
        import_gateways: from_host.gateways.enabled.then(|| gateway_import(config)),
        import_custom_resources: from_host
            .custom_resources
            .iter()
            .filter(|(_, resource)| resource.enabled)
            .map(|(key, resource)| {
                let mappings = resource.mappings.by_name.iter();
                let mappings = mappings.map(|(from, to)| ImportMapping { from: from.clone(), to: to.clone() });
                Ok(CustomImport {
                    kind: custom_kind("sync.fromHost.customResources", key)?,
                    mappings: mappings.collect(),
                })
            })
            .collect::<Result<_, SettingsError>>()?,
        import_config_maps: mappings(&from_host.config_maps),
        import_secrets: mappings(&from_host.secrets),
        namespace_labels: to_host.namespaces.extra_labels.clone(),
        mapped_namespaces_only: to_host.namespaces.enabled && to_host.namespaces.mappings_only,
        custom_resources: to_host
            .custom_resources
            .iter()
            .filter(|(_, resource)| resource.enabled)
            .map(|(key, _)| custom_kind("sync.toHost.customResources", key))
            .collect::<Result<_, _>>()?,
        gateway_api: gateways,
        resource_claims: to_host.resource_claims.enabled,
        resource_claim_templates: to_host.resource_claim_templates.enabled,
        patches: to_host_patches(config)?,
        import_patches: from_host_patches(config)?,
        pod_security: match config.policies.pod_security_standard.as_str() {
            "baseline" => Some(Level::Baseline),
            "restricted" => Some(Level::Restricted),
            "privileged" => Some(Level::Privileged),
            _ => None,
        },
        host_path_mapper: config.control_plane.host_path_mapper.enabled,
        isolate_network: isolation(config),
        replicate_to_host: config
            .networking
            .replicate_services
            .to_host
            .iter()
            .map(|mapping| ReplicatedService { from: split(&mapping.from), to: split(&mapping.to) })
            .collect(),
        replicate_from_host: config
            .networking
            .replicate_services
            .from_host
            .iter()
            .map(|mapping| ReplicatedService { from: split(&mapping.from), to: split(&mapping.to) })
            .collect(),
        config: tree(config.values()),
        virtual_scheduler: config.virtual_scheduler(),
        proxy_kubelets_by_hostname: config.networking.advanced.proxy_kubelets.by_hostname,
        proxy_kubelets_by_ip: config.networking.advanced.proxy_kubelets.by_ip,
        ..Settings::default()
    })
}

/// Addresses that the cloud hands credentials out on are never public.
const LINK_LOCAL: &str = "169.254.0.0/16";

fn isolation(config: &Config) -> Option<Isolation> {
    let policy = &config.policies.network_policy;
    let public = &policy.workload.public_egress;
    policy.enabled.then(|| {
        let mut blocks = Vec::new();
        if public.enabled {
            let mut block = AddressBlock { cidr: public.cidr.clone(), except: public.except.clone() };
            let everything = public.cidr == "0.0.0.0/0";
            if everything && !block.except.iter().any(|range| range == LINK_LOCAL) {
                block.except.push(LINK_LOCAL.into());
            }
            blocks.push(block);
            if everything {
                blocks.push(AddressBlock::new("::/0", &["::1/128", "fc00::/7", "fe80::/10"]));
            }
        }
        Isolation { public: blocks }
    })
}

fn tree(value: &serde_json::Value) -> Value {
    Value::from(value.clone())
}

fn custom_kind(section: &str, key: &str) -> Result<CustomKind, SettingsError> {
    CustomKind::parse(key)
        .ok_or_else(|| wrong(format!("{section}.{key}"), "must be PLURAL.GROUP or PLURAL.GROUP/VERSION"))
}

fn route_policy(policy: &GatewayRoutePolicy) -> RoutePolicy {
    match policy.from.as_str() {
        "All" => RoutePolicy::All,
        "None" => RoutePolicy::None,
        "Selector" => RoutePolicy::Selector(selector(&policy.selector)),
        "Same" => RoutePolicy::Same,
        _ => RoutePolicy::OfGateway,
    }
}

fn gateway_import(config: &Config) -> GatewayImport {
    let gateways = &config.sync.from_host.gateways;
    let overrides = gateways.allowed_routes.overrides.iter().map(|o| RouteOverride {
        gateway: NamespacedName::new(o.host_namespace.as_str(), o.name.as_str()),
        policy: (!o.virtual_namespace_policy.from.is_empty()).then(|| route_policy(&o.virtual_namespace_policy)),
        hostnames: o.allowed_hostnames.clone(),
    });
    let mappings = gateways.mappings.by_name.iter();
    GatewayImport {
        selector: selector(&gateways.selector),
        mappings: mappings.map(|(from, to)| ImportMapping { from: from.clone(), to: to.clone() }).collect(),
        policy: route_policy(&gateways.allowed_routes.default_virtual_namespace_policy),
        overrides: overrides.collect(),
        expose_addresses: gateways.status.expose_addresses,
        expose_source: gateways.metadata.expose_source_gateway,
        hide_certificates: gateways.sanitize.certificate_refs,
        hide_infrastructure: gateways.sanitize.infrastructure,
    }
}

type Patches = std::collections::BTreeMap<String, Vec<Patch>>;

fn add_patches(all: &mut Patches, resource: &str, key: &str, list: &[config::Patch]) -> Result<(), SettingsError> {
    for (n, patch) in list.iter().enumerate() {
        let here = format!("{key}.patches[{n}]");
        let made = self::patch(&here, patch)?;
        all.entry(resource.to_owned()).or_default().push(made);
    }
    Ok(())
}

fn patch(key: &str, patch: &config::Patch) -> Result<Patch, SettingsError> {
    let path = Path::parse(&patch.path).map_err(|e| wrong(format!("{key}.path"), e.message))?;
    let script = |member: &str, text: &Option<String>| match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => Script::parse(text).map(Some).map_err(|e| wrong(format!("{key}.{member}"), e)),
    };
    let at = |member: &str, text: &str| match text {
        "" => Ok(None),
        text => Path::parse(text).map(Some).map_err(|e| wrong(format!("{key}.reference.{member}"), e.message)),
    };
    let mode = match (&patch.reference, &patch.labels) {
        (Some(reference), _) => Mode::Reference {
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
            api_version_path: at("apiVersionPath", &reference.api_version_path)?,
            kind_path: at("kindPath", &reference.kind_path)?,
            name_path: at("namePath", &reference.name_path)?,
            namespace_path: at("namespacePath", &reference.namespace_path)?,
        },
        (None, Some(_)) => Mode::Labels,
        (None, None) => Mode::Expression {
            to_host: script("expression", &patch.expression)?,
            to_virtual: script("reverseExpression", &patch.reverse_expression)?,
        },
    };
    Ok(Patch { path, mode })
}

fn to_host_patches(config: &Config) -> Result<Patches, SettingsError> {
    let mut all = Patches::new();
    let to = &config.sync.to_host;
    let gateway = &to.gateway_api;
    for (resource, key, list) in [
        ("pods", "pods", &to.pods.patches),
        ("services", "services", &to.services.patches),
        ("endpoints", "endpoints", &to.endpoints.patches),
        ("endpointslices", "endpointSlices", &to.endpoint_slices.patches),
        ("configmaps", "configMaps", &to.config_maps.patches),
        ("secrets", "secrets", &to.secrets.patches),
        ("persistentvolumeclaims", "persistentVolumeClaims", &to.persistent_volume_claims.patches),
        ("persistentvolumes", "persistentVolumes", &to.persistent_volumes.patches),
        ("ingresses", "ingresses", &to.ingresses.patches),
        ("networkpolicies", "networkPolicies", &to.network_policies.patches),
        ("storageclasses", "storageClasses", &to.storage_classes.patches),
        ("serviceaccounts", "serviceAccounts", &to.service_accounts.patches),
        ("poddisruptionbudgets", "podDisruptionBudgets", &to.pod_disruption_budgets.patches),
        ("priorityclasses", "priorityClasses", &to.priority_classes.patches),
        ("namespaces", "namespaces", &to.namespaces.patches),
        ("resourceclaims", "resourceClaims", &to.resource_claims.patches),
        ("resourceclaimtemplates", "resourceClaimTemplates", &to.resource_claim_templates.patches),
        ("gateways.gateway.networking.k8s.io", "gatewayApi.gateways", &gateway.gateways.patches),
        ("httproutes.gateway.networking.k8s.io", "gatewayApi.httpRoutes", &gateway.http_routes.patches),
        ("tlsroutes.gateway.networking.k8s.io", "gatewayApi.tlsRoutes", &gateway.tls_routes.patches),
        ("grpcroutes.gateway.networking.k8s.io", "gatewayApi.grpcRoutes", &gateway.grpc_routes.patches),
        ("tcproutes.gateway.networking.k8s.io", "gatewayApi.tcpRoutes", &gateway.tcp_routes.patches),
        ("udproutes.gateway.networking.k8s.io", "gatewayApi.udpRoutes", &gateway.udp_routes.patches),
        (
            "backendtlspolicies.gateway.networking.k8s.io",
            "gatewayApi.backendTLSPolicies",
            &gateway.backend_tls_policies.patches,
        ),
        ("referencegrants.gateway.networking.k8s.io", "gatewayApi.referenceGrants", &gateway.reference_grants.patches),
    ] {
        add_patches(&mut all, resource, &format!("sync.toHost.{key}"), list)?;
    }
    for resource in
        ["gateways", "httproutes", "tlsroutes", "grpcroutes", "tcproutes", "udproutes", "backendtlspolicies"]
    {
        add_patches(
            &mut all,
            &format!("{resource}.gateway.networking.k8s.io"),
            "sync.toHost.gatewayApi",
            &gateway.patches,
        )?;
    }
    for (key, resource) in &to.custom_resources {
        let here = format!("sync.toHost.customResources.{key}");
        add_patches(
            &mut all,
            &custom_kind("sync.toHost.customResources", key)?.definition(),
            &here,
            &resource.patches,
        )?;
    }
    Ok(all)
}

fn from_host_patches(config: &Config) -> Result<Patches, SettingsError> {
    let mut all = Patches::new();
    let from = &config.sync.from_host;
    for (resource, key, list) in [
        ("nodes", "nodes", &from.nodes.patches),
        ("events", "events", &from.events.patches),
        ("ingressclasses", "ingressClasses", &from.ingress_classes.patches),
        ("storageclasses", "storageClasses", &from.storage_classes.patches),
        ("runtimeclasses", "runtimeClasses", &from.runtime_classes.patches),
        ("priorityclasses", "priorityClasses", &from.priority_classes.patches),
        ("csinodes", "csiNodes", &from.csi_nodes.patches),
        ("csidrivers", "csiDrivers", &from.csi_drivers.patches),
        ("csistoragecapacities", "csiStorageCapacities", &from.csi_storage_capacities.patches),
        ("configmaps", "configMaps", &from.config_maps.patches),
        ("secrets", "secrets", &from.secrets.patches),
        ("deviceclasses", "deviceClasses", &from.device_classes.patches),
        ("gatewayclasses.gateway.networking.k8s.io", "gatewayClasses", &from.gateway_classes.patches),
        ("gateways.gateway.networking.k8s.io", "gateways", &from.gateways.patches),
    ] {
        add_patches(&mut all, resource, &format!("sync.fromHost.{key}"), list)?;
    }
    for (key, resource) in &from.custom_resources {
        let here = format!("sync.fromHost.customResources.{key}");
        let kind = custom_kind("sync.fromHost.customResources", key)?;
        add_patches(&mut all, &kind.definition(), &here, &resource.patches)?;
    }
    Ok(all)
}

fn wanted(kind: &EnableAll) -> Wanted {
    match (kind.enabled, kind.all) {
        (false, _) => Wanted::Off,
        (true, false) => Wanted::Used,
        (true, true) => Wanted::All,
    }
}

fn nodes(config: &Config) -> Nodes {
    let nodes = &config.sync.from_host.nodes;
    if !nodes.enabled {
        return Nodes::Fake;
    }
    Nodes::Real {
        all: nodes.selector.all,
        labels: nodes.selector.labels.clone(),
        clear_image_status: nodes.clear_image_status,
        sync_back_changes: nodes.sync_back_changes,
    }
}

fn import(kind: &EnableSelector) -> Import {
    if kind.enabled { Import::On(selector(&kind.selector)) } else { Import::Off }
}

/// A LabelSelector object; `{}` takes all.
fn selector(selector: &LabelSelector) -> Value {
    let mut object = json!({});
    if !selector.match_labels.is_empty() {
        object["matchLabels"] = json!(selector.match_labels);
    }
    if !selector.match_expressions.is_empty() {
        let expressions = selector.match_expressions.iter();
        let expressions = expressions.map(|e| json!({"key": e.key, "operator": e.operator, "values": e.values}));
        object["matchExpressions"] = Value::Array(expressions.collect());
    }
    object
}

fn mappings(kind: &EnableMappings) -> Vec<ImportMapping> {
    if !kind.enabled {
        return Vec::new();
    }
    kind.mappings.by_name.iter().map(|(from, to)| ImportMapping { from: from.clone(), to: to.clone() }).collect()
}

fn split(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap_or(("", text));
    NamespacedName::new(namespace, name)
}

/// `KEY=VALUE:EFFECT`, `KEY:EFFECT`, `KEY` or `*` as an API object; the parts were checked with the configuration.
fn toleration(text: &str) -> Value {
    let (key, effect) = text.rsplit_once(':').unwrap_or((text, ""));
    let (key, value) = key.split_once('=').map_or((key, None), |(key, value)| (key, Some(value)));
    let mut object = json!({"operator": (if value.is_some() { "Equal" } else { "Exists" })});
    if key != "*" {
        object["key"] = key.into();
    }
    if let Some(value) = value {
        object["value"] = value.into();
    }
    if !effect.is_empty() {
        object["effect"] = effect.into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_read_as_kubectl_writes_taints() {
        for (text, want) in [
            ("*", json!({"operator": "Exists"})),
            ("a", json!({"operator": "Exists", "key": "a"})),
            ("a:NoSchedule", json!({"operator": "Exists", "key": "a", "effect": "NoSchedule"})),
            ("*:NoExecute", json!({"operator": "Exists", "effect": "NoExecute"})),
            ("a=b:NoSchedule", json!({"operator": "Equal", "key": "a", "value": "b", "effect": "NoSchedule"})),
            ("a=b", json!({"operator": "Equal", "key": "a", "value": "b"})),
        ] {
            assert_eq!(toleration(text), want, "{text}");
        }
    }

    #[test]
    fn the_configuration_reaches_the_syncer() {
        let read = |text: &str| config::load(&[config::Source::new("t", text)], &[]).unwrap();
        let default = settings("a", &read(""), None).unwrap();
        assert_eq!(default.config_maps, Wanted::Used);
        assert_eq!(default.workload_service_account, "vc-workload-a");
        assert_eq!(default.nodes, Nodes::Fake);
        assert_eq!(default.dns_service, Some(NamespacedName::new("kube-system", "kube-dns")));
        // A pod with a subdomain needs no other image than this program's, unless somebody chose one or it is private.
        let rewrite = |text: &str, image| settings("a", &read(text), image).unwrap().pods.rewrite_hosts.unwrap();
        let chosen = "sync: {toHost: {pods: {rewriteHosts: {initContainer: {image: a/b:1}}}}}";
        let private = "controlPlane: {advanced: {serviceAccount: {imagePullSecrets: [{name: s}]}}}";
        for (text, image, want, own) in [
            ("", None, "mirror.gcr.io/library/alpine:3.20", false),
            ("", Some("r/alcove:1"), "r/alcove:1", true),
            (chosen, Some("r/alcove:1"), "a/b:1", false),
            (private, Some("r/alcove:1"), "mirror.gcr.io/library/alpine:3.20", false),
        ] {
            let found = rewrite(text, image);
            assert_eq!((found.image.as_str(), found.own), (want, own), "{text} {image:?}");
        }
        let changed = settings(
            "a",
            &read(
                "sync: {toHost: {secrets: {all: true}, configMaps: {enabled: false}, pods: {translateImage: {x: other}}}}\ncontrolPlane: {coredns: {enabled: false}}",
            ), None,
        )
        .unwrap();
        let all = settings(
            "a",
            &read(
                r#"
networking:
  replicateServices:
    toHost: [{from: default/web, to: edge/web}]
    fromHost: [{from: shared/db, to: tools/db}]
policies: {podSecurityStandard: restricted, networkPolicy: {enabled: true}}
sync:
  toHost:
    pods:
      rewriteHosts: {initContainer: {image: busybox}}
      hybridScheduling: {enabled: true, hostSchedulers: [gpu]}
      patches:
      - path: metadata.annotations["a.b/c"]
        expression: "value + '-' + context.vcluster.name"
        reverseExpression: value
    persistentVolumes: {enabled: true}
    resourceClaims: {enabled: true}
    gatewayApi: {enabled: true, tlsRoutes: {enabled: true}}
    namespaces: {enabled: true, mappingsOnly: true, extraLabels: {a: b}, mappings: {byName: {"team-*": "${name}-*"}}}
    customResources:
      certificates.cert-manager.io/v1:
        enabled: true
        patches:
        - {path: spec.secretName, reference: {apiVersion: v1, kind: Secret}}
        - {path: spec.selector, labels: {}}
      off.x.io: {enabled: false}
  fromHost:
    nodes: {enabled: true, syncBackChanges: true}
    deviceClasses: {enabled: true, selector: {matchLabels: {x: z}}}
    gateways:
      enabled: true
      mappings: {byName: {infra/edge: shared/edge}}
      allowedRoutes:
        defaultVirtualNamespacePolicy: {from: None}
        overrides:
        - {hostNamespace: infra, name: edge, virtualNamespacePolicy: {from: All}, allowedHostnames: ["*.a.example"]}
    customResources:
      issuers.cert-manager.io: {enabled: true, scope: Cluster}
      certs.x.io: {enabled: true, scope: Namespaced, mappings: {byName: {"x/*": "y/*"}}}
"#,
            ),
            None,
        )
        .unwrap();
        assert_eq!(all.replicate_to_host[0].to, NamespacedName::new("edge", "web"));
        assert_eq!(all.replicate_from_host[0].from, NamespacedName::new("shared", "db"));
        assert_eq!(all.pod_security, Some(Level::Restricted));
        let public = all.isolate_network.as_ref().map(|isolation| isolation.public.clone()).unwrap_or_default();
        assert!(public[0].except.contains(&"169.254.0.0/16".to_owned()) && public.len() == 2, "{public:?}");
        assert!(all.persistent_volumes && all.resource_claims && all.virtual_scheduler);
        assert!(all.pods.rewrite_hosts.as_ref().is_some_and(|r| r.image.ends_with("busybox")), "{:?}", all.pods);
        assert_eq!(all.pods.host_schedulers, ["gpu"]);
        assert_eq!(all.patches["pods"].len(), 1);
        assert_eq!(all.patches["certificates.cert-manager.io"].len(), 2);
        assert_eq!(all.custom_resources.len(), 1);
        assert_eq!(all.custom_resources[0].version.as_deref(), Some("v1"));
        assert!(all.mapped_namespaces_only);
        assert_eq!(all.namespace_labels["a"], "b");
        let gateway = &all.gateway_api;
        assert!(gateway.gateways && gateway.http_routes && gateway.tls_routes && !gateway.backend_tls_policies);
        assert!(gateway.reference_grants && all.import_gateway_classes.is_on());
        assert!(matches!(all.nodes, Nodes::Real { sync_back_changes: true, all: true, .. }), "{:?}", all.nodes);
        assert!(all.import_csi_nodes && all.import_csi_drivers && all.import_csi_storage_capacities);
        assert!(all.import_storage_classes.is_on() && all.import_device_classes.selector().is_some());
        let gateways = all.import_gateways.unwrap();
        assert_eq!((gateways.policy, gateways.hide_certificates), (RoutePolicy::None, true));
        assert_eq!(gateways.overrides[0].policy, Some(RoutePolicy::All));
        assert_eq!(all.import_custom_resources.len(), 2);
        let mapper = read("controlPlane: {hostPathMapper: {enabled: true}}");
        assert!(settings("a", &mapper, None).unwrap().host_path_mapper);
        let config =
            read("sync: {toHost: {namespaces: {enabled: true, mappings: {byName: {\"team-*\": \"${name}-*\"}}}}}");
        assert_eq!(names("a", "h", &config).host_namespace("team-x"), "a-x");
        let broken = read("sync: {toHost: {pods: {patches: [{path: spec.x, expression: \"value +\"}]}}}");
        let error = settings("a", &broken, None).unwrap_err().to_string();
        assert!(error.starts_with("sync.toHost.pods.patches[0].expression: "), "{error}");
        assert_eq!(changed.secrets, Wanted::All);
        assert_eq!(changed.config_maps, Wanted::Off);
        assert_eq!(changed.pods.translate_image["x"], "other");
        assert_eq!(changed.dns_service, None);
    }
}
