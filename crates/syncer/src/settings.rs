//! What of the configuration the syncer acts on. Made from `vcluster.yaml` at the edge; read by pure code.

use std::collections::BTreeMap;

use apimachinery::Value;

use crate::names::NamespacedName;

/// Which objects of a kind go to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    Off,
    /// Those that a synced object refers to, or that ask for it.
    #[default]
    Used,
    All,
}

/// An imported class kind: off, or on with a label selector (`{}` takes all).
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Import {
    #[default]
    Off,
    On(Value),
}

impl Import {
    pub fn is_on(&self) -> bool {
        matches!(self, Import::On(_))
    }

    /// The selector, when there is one that excludes something.
    pub fn selector(&self) -> Option<&Value> {
        match self {
            Import::On(selector) if !crate::selectors::is_empty(selector) => Some(selector),
            _ => None,
        }
    }
}

/// `sync.toHost.pods`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodSettings {
    /// Exact image → replacement.
    pub translate_image: BTreeMap<String, String>,
    /// Tolerations added to every host pod, as API objects.
    pub enforce_tolerations: Vec<Value>,
    /// Forced on every host pod when not empty.
    pub runtime_class_name: String,
    /// Given to host pods that have none.
    pub priority_class_name: String,
    /// The init container that gives pods with a subdomain their full host name.
    pub rewrite_hosts: Option<RewriteHosts>,
    /// With a virtual scheduler: schedulers that are the host's. Empty and no virtual scheduler: all are.
    pub host_schedulers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RewriteHosts {
    pub image: String,
    /// A ResourceRequirements object.
    pub resources: Value,
}

/// `sync.fromHost.nodes`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Nodes {
    /// Invented nodes, one per host node that runs a pod of this cluster.
    #[default]
    Fake,
    Real {
        all: bool,
        /// Only these nodes; also forced on pods as node selector.
        labels: BTreeMap<String, String>,
        clear_image_status: bool,
        sync_back_changes: bool,
    },
}

/// A pair of `sync.fromHost.{configMaps,secrets}.mappings.byName`: `ns/name`, `ns/*`, `/name` or empty, host to virtual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportMapping {
    pub from: String,
    pub to: String,
}

/// A pair of `networking.replicateServices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicatedService {
    pub from: NamespacedName,
    pub to: NamespacedName,
}

/// Everything the syncer is told. Defaults are vCluster's.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub cluster_domain: String,
    /// Service account of host pods.
    pub workload_service_account: String,
    /// Host objects get an owner reference to the control plane's Service.
    pub set_owner: bool,
    /// Virtual Service whose cluster IP is the pods' name server; `None` leaves pods with the node's resolver.
    pub dns_service: Option<NamespacedName>,

    pub pods: PodSettings,
    pub services: bool,
    pub config_maps: Wanted,
    pub secrets: Wanted,
    pub endpoints: bool,
    pub endpoint_slices: bool,
    pub persistent_volume_claims: bool,
    pub persistent_volumes: bool,
    pub storage_classes: bool,
    pub ingresses: bool,
    pub network_policies: bool,
    pub service_accounts: bool,
    pub pod_disruption_budgets: bool,
    pub priority_classes: bool,

    pub events: bool,
    pub nodes: Nodes,
    pub import_ingress_classes: Import,
    pub import_storage_classes: Import,
    pub import_runtime_classes: Import,
    pub import_priority_classes: Import,
    pub import_csi: bool,
    pub import_config_maps: Vec<ImportMapping>,
    pub import_secrets: Vec<ImportMapping>,

    /// Labels of host namespaces that are made for virtual ones.
    pub namespace_labels: BTreeMap<String, String>,
    /// Kinds of custom resources that go to the host; the host must serve them.
    pub custom_resources: Vec<crate::kind::Kind>,
    pub resource_claims: bool,
    pub resource_claim_templates: bool,
    /// Patches by resource name, such as `pods` or `certificates`.
    pub patches: BTreeMap<String, Vec<crate::patches::Patch>>,

    pub replicate_to_host: Vec<ReplicatedService>,
    pub replicate_from_host: Vec<ReplicatedService>,

    /// Pods are placed by a scheduler inside the virtual cluster.
    pub virtual_scheduler: bool,
    pub proxy_kubelets_by_hostname: bool,
    pub proxy_kubelets_by_ip: bool,
    /// Tenants may set `spec.externalIPs` on Services: with it a tenant can take traffic meant for others.
    pub allow_external_ips: bool,
    /// The host closes the tenant's pods to others by default (`policies.networkPolicy`): no rule of the tenant opens them.
    pub isolate_network: bool,
    /// Kubernetes versions as `(major, minor)`, when known.
    pub host_version: Option<(u32, u32)>,
    pub virtual_version: Option<(u32, u32)>,
    /// Version that fake nodes report, such as `v1.36.0`.
    pub kubelet_version: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            cluster_domain: "cluster.local".into(),
            workload_service_account: String::new(),
            set_owner: true,
            dns_service: Some(NamespacedName::new("kube-system", "kube-dns")),
            pods: PodSettings::default(),
            services: true,
            config_maps: Wanted::Used,
            secrets: Wanted::Used,
            endpoints: true,
            endpoint_slices: true,
            persistent_volume_claims: true,
            persistent_volumes: false,
            storage_classes: false,
            ingresses: false,
            network_policies: false,
            service_accounts: false,
            pod_disruption_budgets: false,
            priority_classes: false,
            events: true,
            nodes: Nodes::Fake,
            import_ingress_classes: Import::Off,
            import_storage_classes: Import::Off,
            import_runtime_classes: Import::Off,
            import_priority_classes: Import::Off,
            import_csi: false,
            import_config_maps: Vec::new(),
            import_secrets: Vec::new(),
            namespace_labels: BTreeMap::new(),
            custom_resources: Vec::new(),
            resource_claims: false,
            resource_claim_templates: false,
            patches: BTreeMap::new(),
            replicate_to_host: Vec::new(),
            replicate_from_host: Vec::new(),
            virtual_scheduler: false,
            proxy_kubelets_by_hostname: true,
            proxy_kubelets_by_ip: true,
            allow_external_ips: false,
            isolate_network: false,
            host_version: None,
            virtual_version: None,
            kubelet_version: "v1.36.0".into(),
        }
    }
}

impl Settings {
    /// True when a pod with this scheduler name is placed inside the virtual cluster.
    pub fn scheduled_in_virtual_cluster(&self, scheduler: &str) -> bool {
        self.virtual_scheduler && !self.pods.host_schedulers.iter().any(|s| s == scheduler)
    }

    pub fn host_older_than(&self, minor: u32) -> bool {
        self.host_version.is_some_and(|v| v < (1, minor))
    }
}
