//! What of `vcluster.yaml` the syncer is told.

use apimachinery::{Value, json};
use config::{Config, EnableAll, EnableMappings, EnableSelector, LabelSelector, Switch};
use syncer::names::NamespacedName;
use syncer::settings::{Import, ImportMapping, Nodes, PodSettings, ReplicatedService, Settings, Wanted};

/// The syncer's settings for a cluster of this name.
pub(crate) fn settings(name: &str, config: &Config) -> Settings {
    let (to_host, from_host) = (&config.sync.to_host, &config.sync.from_host);
    let pods = &to_host.pods;
    let account = &config.control_plane.advanced.workload_service_account.name;
    let csi = [from_host.csi_nodes.enabled, from_host.csi_drivers.enabled, from_host.csi_storage_capacities.enabled];
    Settings {
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
            rewrite_hosts: None,
            host_schedulers: pods.hybrid_scheduling.host_schedulers.clone(),
        },
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
        import_csi: csi.contains(&Switch::On),
        import_config_maps: mappings(&from_host.config_maps),
        import_secrets: mappings(&from_host.secrets),
        replicate_to_host: config
            .networking
            .replicate_services
            .to_host
            .iter()
            .map(|mapping| ReplicatedService {
                from: split(&mapping.from),
                to: NamespacedName::new("", mapping.to.as_str()),
            })
            .collect(),
        replicate_from_host: config
            .networking
            .replicate_services
            .from_host
            .iter()
            .map(|mapping| ReplicatedService { from: split(&mapping.from), to: split(&mapping.to) })
            .collect(),
        virtual_scheduler: config.virtual_scheduler(),
        proxy_kubelets_by_hostname: config.networking.advanced.proxy_kubelets.by_hostname,
        proxy_kubelets_by_ip: config.networking.advanced.proxy_kubelets.by_ip,
        ..Settings::default()
    }
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
        let default = settings("a", &read(""));
        assert_eq!(default.config_maps, Wanted::Used);
        assert_eq!(default.workload_service_account, "vc-workload-a");
        assert_eq!(default.nodes, Nodes::Fake);
        assert_eq!(default.dns_service, Some(NamespacedName::new("kube-system", "kube-dns")));
        let changed = settings(
            "a",
            &read(
                "sync: {toHost: {secrets: {all: true}, configMaps: {enabled: false}, pods: {translateImage: {x: other}}}}\ncontrolPlane: {coredns: {enabled: false}}",
            ),
        );
        assert_eq!(changed.secrets, Wanted::All);
        assert_eq!(changed.config_maps, Wanted::Off);
        assert_eq!(changed.pods.translate_image["x"], "other");
        assert_eq!(changed.dns_service, None);
    }
}
