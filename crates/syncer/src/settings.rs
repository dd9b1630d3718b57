//! What of the configuration the syncer acts on. Made from `vcluster.yaml` at the edge; read by pure code.

use std::collections::BTreeMap;

use apimachinery::Value;

use crate::names::NamespacedName;
use crate::types::address_block::AddressBlock;

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
    /// The image is this program's own: it has `alcove rewrite-hosts`, and no shell.
    pub own: bool,
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

/// A kind that a CustomResourceDefinition of the host defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomKind {
    pub plural: String,
    pub group: String,
    /// The version to use; the host's storage version when none is given.
    pub version: Option<String>,
}

impl CustomKind {
    /// Reads `plural.group[/version]`.
    pub fn parse(key: &str) -> Option<CustomKind> {
        let (name, version) = key.split_once('/').map_or((key, None), |(name, version)| (name, Some(version)));
        let (plural, group) = name.split_once('.')?;
        let filled = !plural.is_empty() && !group.is_empty() && version != Some("");
        filled.then(|| CustomKind { plural: plural.into(), group: group.into(), version: version.map(str::to_owned) })
    }

    /// The definition's name, `plural.group`.
    pub fn definition(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }
}

/// An entry of `sync.fromHost.customResources`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomImport {
    pub kind: CustomKind,
    /// Which objects are shown where; empty for a cluster-scoped kind.
    pub mappings: Vec<ImportMapping>,
}

/// `sync.toHost.gatewayApi`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewaySettings {
    pub gateways: bool,
    pub http_routes: bool,
    pub tls_routes: bool,
    pub grpc_routes: bool,
    pub tcp_routes: bool,
    pub udp_routes: bool,
    pub backend_tls_policies: bool,
    /// Grants of the tenant go to the host, where namespaces are mapped one to one.
    pub reference_grants: bool,
}

impl GatewaySettings {
    pub fn is_on(&self) -> bool {
        self.gateways
            || self.http_routes
            || self.tls_routes
            || self.grpc_routes
            || self.tcp_routes
            || self.udp_routes
            || self.backend_tls_policies
    }
}

/// Which virtual namespaces may attach routes to an imported Gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RoutePolicy {
    /// Those that the Gateway's own listeners name.
    #[default]
    OfGateway,
    /// The namespace the Gateway is shown in.
    Same,
    All,
    None,
    Selector(Value),
}

/// Exceptions for one host Gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteOverride {
    pub gateway: NamespacedName,
    pub policy: Option<RoutePolicy>,
    /// Host names that routes may serve, `*.` allowed in front; empty allows all.
    pub hostnames: Vec<String>,
}

/// `sync.fromHost.gateways`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayImport {
    pub selector: Value,
    pub mappings: Vec<ImportMapping>,
    pub policy: RoutePolicy,
    pub overrides: Vec<RouteOverride>,
    pub expose_addresses: bool,
    pub expose_source: bool,
    pub hide_certificates: bool,
    pub hide_infrastructure: bool,
}

/// A pair of `networking.replicateServices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicatedService {
    pub from: NamespacedName,
    pub to: NamespacedName,
}

/// What the administrator leaves open to a tenant whose pods are closed to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// Addresses beyond the virtual cluster (`policies.networkPolicy.workload.publicEgress`).
    pub public: Vec<AddressBlock>,
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
    /// Pods go to the host (`sync.toHost.pods.enabled`).
    pub sync_pods: bool,
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
    pub import_csi_drivers: bool,
    pub import_csi_nodes: bool,
    pub import_csi_storage_capacities: bool,
    pub import_device_classes: Import,
    pub import_gateway_classes: Import,
    pub import_gateways: Option<GatewayImport>,
    pub import_custom_resources: Vec<CustomImport>,
    pub import_config_maps: Vec<ImportMapping>,
    pub import_secrets: Vec<ImportMapping>,

    /// Labels of host namespaces that are made for virtual ones.
    pub namespace_labels: BTreeMap<String, String>,
    /// Objects in namespaces that no rule maps do not go to the host.
    pub mapped_namespaces_only: bool,
    /// Kinds of custom resources that go to the host, which has their definitions.
    pub custom_resources: Vec<CustomKind>,
    pub gateway_api: GatewaySettings,
    pub resource_claims: bool,
    pub resource_claim_templates: bool,
    /// The host does not serve `resource.k8s.io/v1` (before 1.34, or switched off): pods with claims are refused, by name.
    pub host_lacks_claims: bool,
    /// Patches by resource name, such as `pods`, or `certificates.cert-manager.io` for custom resources.
    pub patches: BTreeMap<String, Vec<crate::patches::Patch>>,
    /// Patches of what comes from the host, by resource name.
    pub import_patches: BTreeMap<String, Vec<crate::patches::Patch>>,

    pub replicate_to_host: Vec<ReplicatedService>,
    pub replicate_from_host: Vec<ReplicatedService>,

    /// The whole configuration, as expressions of patches see it.
    pub config: Value,

    /// Pods are placed by a scheduler inside the virtual cluster.
    pub virtual_scheduler: bool,
    pub proxy_kubelets_by_hostname: bool,
    pub proxy_kubelets_by_ip: bool,
    /// Tenants may set `spec.externalIPs` on Services: with it a tenant can take traffic meant for others.
    pub allow_external_ips: bool,
    /// `policies.podSecurityStandard`: pods that violate it do not reach the host.
    pub pod_security: Option<apimachinery::pod_security::Level>,
    /// Paths of the host that show other tenants' data are replaced by this cluster's own (`controlPlane.hostPathMapper`).
    pub host_path_mapper: bool,
    /// The host closes the tenant's pods to others by default (`policies.networkPolicy`): no rule of the tenant opens them.
    pub isolate_network: Option<Isolation>,
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
            sync_pods: true,
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
            import_csi_drivers: false,
            import_csi_nodes: false,
            import_csi_storage_capacities: false,
            import_device_classes: Import::Off,
            import_gateway_classes: Import::Off,
            import_gateways: None,
            import_custom_resources: Vec::new(),
            import_config_maps: Vec::new(),
            import_secrets: Vec::new(),
            namespace_labels: BTreeMap::new(),
            mapped_namespaces_only: false,
            custom_resources: Vec::new(),
            gateway_api: GatewaySettings::default(),
            resource_claims: false,
            resource_claim_templates: false,
            host_lacks_claims: false,
            patches: BTreeMap::new(),
            import_patches: BTreeMap::new(),
            replicate_to_host: Vec::new(),
            replicate_from_host: Vec::new(),
            config: apimachinery::json!({}),
            virtual_scheduler: false,
            proxy_kubelets_by_hostname: true,
            proxy_kubelets_by_ip: true,
            allow_external_ips: false,
            pod_security: None,
            host_path_mapper: false,
            isolate_network: None,
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

    /// The keys of the configuration that ask for what needs `resource.k8s.io/v1`.
    pub fn claim_keys(&self) -> Vec<&'static str> {
        let keys = [
            (self.resource_claims, "sync.toHost.resourceClaims"),
            (self.resource_claim_templates, "sync.toHost.resourceClaimTemplates"),
            (self.import_device_classes.is_on(), "sync.fromHost.deviceClasses"),
        ];
        keys.into_iter().filter(|(asked, _)| *asked).map(|(_, key)| key).collect()
    }

    /// Leaves out what needs `resource.k8s.io/v1`: one of the two clusters does not serve it. Returns the keys of the
    /// configuration that have no effect for that.
    pub fn leave_out_claims(&mut self) -> Vec<&'static str> {
        let keys = self.claim_keys();
        (self.resource_claims, self.resource_claim_templates) = (false, false);
        self.import_device_classes = Default::default();
        keys
    }

    pub fn host_older_than(&self, minor: u32) -> bool {
        self.host_version.is_some_and(|v| v < (1, minor))
    }
}
