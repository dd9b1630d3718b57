//! Every type the syncer knows, in one table: what `docs/sync.md` shows.

use std::fmt::Write;

/// Which way a type goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToHost,
    /// Down, with the status coming back.
    ToHostWithStatus,
    Both,
    FromHost,
}

impl Direction {
    fn text(self) -> &'static str {
        match self {
            Direction::ToHost => "to host",
            Direction::ToHostWithStatus => "to host, status back",
            Direction::Both => "both",
            Direction::FromHost => "from host",
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Resource name, as in metrics.
    pub name: &'static str,
    /// Key in `vcluster.yaml`.
    pub config: &'static str,
    pub direction: Direction,
    /// What happens without configuration.
    pub default: &'static str,
    pub translated: &'static str,
    pub comes_back: &'static str,
    /// Tests that specify it.
    pub tests: &'static str,
}

macro_rules! entries {
    ($($name:literal, $config:literal, $direction:ident, $default:literal, $translated:literal, $back:literal, $tests:literal;)*) => {
        /// All rows, in the order of the page.
        pub static ENTRIES: &[Entry] = &[$(Entry {
            name: $name, config: $config, direction: Direction::$direction, default: $default,
            translated: $translated, comes_back: $back, tests: $tests,
        }),*];
    };
}

entries! {
    "pods", "sync.toHost.pods", ToHostWithStatus, "on",
        "names of all references, service account, tokens, environment, DNS, host aliases, host name, selectors of affinity and spreading, tolerations, priority, images, downward API, labels and annotations; while running: images, deadline, tolerations, scheduling gates, ephemeral containers, resources",
        "status, node, deletion, labels and annotations of host controllers",
        "pod_fields, pod_settings, what_can_change_on_a_running_pod, a_pods_status_comes_back, deletion_goes_both_ways_with_its_grace, tokens_are_asked_for_and_renewed_in_time";
    "services", "sync.toHost.services", Both, "on", "selector", "cluster IP, node ports, status; spec fields that the host changed",
        "services_take_the_hosts_choices, services_change_in_both_directions";
    "configmaps", "sync.toHost.configMaps", Both, "used ones", "-", "data", "config_maps_are_synced_while_something_needs_them";
    "secrets", "sync.toHost.secrets", Both, "used ones", "type of service account tokens", "data", "config_maps_are_synced_while_something_needs_them";
    "endpoints", "sync.toHost.endpoints", ToHost, "of Services without selector", "pods that addresses refer to", "-", "endpoints_follow_services_without_selector";
    "endpointslices", "sync.toHost.endpointSlices", ToHost, "of Services without selector", "Service name, pods that endpoints refer to", "-", "endpoints_follow_services_without_selector";
    "persistentvolumeclaims", "sync.toHost.persistentVolumeClaims", ToHostWithStatus, "on", "data sources; volume, selector and class when those are synced",
        "status, volume name, bind annotations", "claims_are_bound_by_the_host";
    "persistentvolumes (fake)", "-", FromHost, "shown for bound claims", "-", "name, capacity", "claims_are_bound_by_the_host";
    "persistentvolumes", "sync.toHost.persistentVolumes", Both, "off", "name, class, claim, Secrets; no paths of the node with a pod security standard",
        "status, claim; the host's volumes of bound claims, without Secrets", "real_volumes_go_both_ways, hostile_objects_do_no_harm";
    "nodes", "sync.fromHost.nodes", FromHost, "invented ones, while a pod runs there", "-", "name; with real nodes labels, taints, status without other tenants' data; with a virtual scheduler less what others use", "nodes_invented_and_real, real_nodes_are_shown_and_used";
    "nodes (back)", "sync.fromHost.nodes.syncBackChanges", ToHost, "off", "labels, taints, cordoning; not the keys that Kubernetes itself uses", "-", "cordoning_reaches_the_host";
    "events", "sync.fromHost.events", FromHost, "on", "-", "all, in the tenant's names", "events_are_told_in_the_tenants_words";
    "ingresses", "sync.toHost.ingresses", ToHostWithStatus, "off", "backends, TLS secrets, annotations of nginx and ALB; a host name that another tenant has is refused", "status", "ingress_annotations_are_rewritten, the_first_ingress_keeps_its_host_name";
    "networkpolicies", "sync.toHost.networkPolicies", ToHost, "off", "pod and namespace selectors; rules without peers where tenants are isolated", "-", "hostile_objects_do_no_harm";
    "poddisruptionbudgets", "sync.toHost.podDisruptionBudgets", ToHostWithStatus, "off", "selector", "status", "budgets_show_their_status";
    "serviceaccounts", "sync.toHost.serviceAccounts", ToHost, "off", "secrets are dropped", "-", "hostile_objects_do_no_harm";
    "priorityclasses", "sync.toHost.priorityClasses", ToHost, "off", "name; value at most 1000000000; never the default", "-", "hostile_objects_do_no_harm";
    "storageclasses", "sync.toHost.storageClasses", ToHost, "off", "name; never the default; no Secrets of the host", "-", "hostile_objects_do_no_harm";
    "resourceclaims, resourceclaimtemplates", "sync.toHost.resourceClaims, resourceClaimTemplates", ToHostWithStatus, "off", "name (short form)", "status", "pods_run_with_the_devices_they_claim";
    "custom resources", "sync.toHost.customResources", ToHostWithStatus, "off", "name; fields that patches name", "status", "custom_resources_go_to_the_host_and_bring_back_what_is_made_for_them, budgets_and_patches";
    "gateways", "sync.toHost.gatewayApi.gateways", ToHostWithStatus, "off", "certificates, parameters; listeners take this cluster's routes only", "status", "routes_attach_where_they_may";
    "httproutes, tlsroutes, grpcroutes, tcproutes, udproutes", "sync.toHost.gatewayApi.httpRoutes, tlsRoutes, grpcRoutes, tcpRoutes, udpRoutes", ToHostWithStatus, "off", "parents, backends, mirrors; each checked against listeners and reference grants", "status with the tenant's parents", "routes_attach_where_they_may, each_kind_of_route_attaches_to_listeners_of_its_protocol";
    "backendtlspolicies", "sync.toHost.gatewayApi.backendTLSPolicies", ToHostWithStatus, "off", "targets, authorities", "status", "policies_wait_for_the_service_they_are_about";
    "referencegrants", "sync.toHost.gatewayApi.referenceGrants", ToHost, "with mapped namespaces", "namespaces", "-", "routes_attach_where_they_may";
    "what host controllers make", "sync.toHost.customResources", FromHost, "with custom resources", "-", "Secrets, ConfigMaps, Services and claims that a synced object names or owns", "custom_resources_go_to_the_host_and_bring_back_what_is_made_for_them";
    "namespaces", "sync.toHost.namespaces", ToHost, "off", "name by rule; objects inside keep theirs", "-", "mapped_namespaces_keep_their_names";
    "replicated services", "networking.replicateServices", Both, "off", "name by mapping, selector", "address", "single_services_are_replicated_both_ways";
    "ingressclasses", "sync.fromHost.ingressClasses", FromHost, "off", "-", "all that the selector takes", "import_mappings_have_a_precedence";
    "storageclasses (host)", "sync.fromHost.storageClasses", FromHost, "off", "-", "all that the selector takes", "import_mappings_have_a_precedence";
    "runtimeclasses", "sync.fromHost.runtimeClasses", FromHost, "off", "-", "all that the selector takes", "import_mappings_have_a_precedence";
    "priorityclasses (host)", "sync.fromHost.priorityClasses", FromHost, "off", "-", "all that the selector takes; never the default", "import_mappings_have_a_precedence";
    "csidrivers, csinodes, csistoragecapacities", "sync.fromHost.csiDrivers, csiNodes, csiStorageCapacities", FromHost, "with a virtual scheduler", "-", "all; nodes only those that are shown", "import_mappings_have_a_precedence";
    "deviceclasses", "sync.fromHost.deviceClasses", FromHost, "off", "-", "all that the selector takes", "import_mappings_have_a_precedence";
    "gatewayclasses", "sync.fromHost.gatewayClasses", FromHost, "off", "-", "all that the selector takes", "routes_attach_where_they_may";
    "gateways (host)", "sync.fromHost.gateways", FromHost, "off", "-", "those that a mapping names, without certificates, infrastructure and addresses", "routes_attach_where_they_may";
    "custom resources (host)", "sync.fromHost.customResources", FromHost, "off", "-", "all of a cluster-scoped kind, or those that a mapping names; patched", "custom_resources_of_the_host_are_shown";
    "configmaps (host)", "sync.fromHost.configMaps", FromHost, "off", "-", "those that a mapping names", "import_mappings_have_a_precedence, imports_follow_the_host";
    "secrets (host)", "sync.fromHost.secrets", FromHost, "off", "-", "those that a mapping names", "import_mappings_have_a_precedence";
}

/// The page `docs/sync.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# What is synced, and how\n\n\
         Generated from the table in `crates/syncer/src/registry.rs`; a test compares. Write it again with\n\
         `UPDATE_DOCS=1 cargo test -p syncer`.\n\n\
         *To host* is from the virtual cluster to the host cluster. A change on one side is never lost to the other: what both\n\
         sides last agreed on is written on the host object, so that after a restart the side that changed still wins, and the\n\
         virtual side when both did. Names and labels of host objects follow the rules of vCluster.\n\n\
         | Type | Key | Direction | Without configuration | Translated | Comes back | Tests |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for e in ENTRIES {
        let _ = writeln!(
            out,
            "| {} | `{}` | {} | {} | {} | {} | {} |",
            e.name,
            e.config,
            e.direction.text(),
            e.default,
            e.translated,
            e.comes_back,
            e.tests
        );
    }
    out
}
