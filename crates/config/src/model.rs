//! Typed access to the part of the configuration that something here reads. Names follow the file, in snake case.
//!
//! A [`Config`] also carries the merged values as JSON ([`Config::values`]), so that a reader of a rarely used key needs no
//! new field here.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::check::{Built, built};
use crate::error::{ConfigError, Problem};
use crate::merge::{merge, prune_nulls};
use crate::table::{Kind, defaults_of, known_keys};
use crate::{Source, stored, validate, yaml};

/// A validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    overrides: Value,
    values: Value,
    typed: Typed,
}

impl std::ops::Deref for Config {
    type Target = Typed;
    fn deref(&self) -> &Typed {
        &self.typed
    }
}

impl Config {
    pub(crate) fn from_overrides(mut overrides: Value) -> Result<Config, ConfigError> {
        let mut values = defaults_of(known_keys());
        merge(&mut values, overrides.clone());
        prune_nulls(&mut values);
        // A removed default must stay removed when the stored file is read again, so nulls stay in the overrides.
        if !overrides.is_object() {
            overrides = Value::Object(Map::new());
        }
        let mut typed: Typed = serde_json::from_value(values.clone()).map_err(|error| ConfigError {
            problems: vec![Problem::at_path("", format!("could not be read: {error}"))],
        })?;
        let mut problems = validate::validate(&mut typed, &values);
        let config = Config { overrides, values, typed };
        problems.extend(validate::validate_dns(&config));
        if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
    }

    /// Reads one stored `config.yaml`.
    pub fn from_yaml(name: &str, text: &str) -> Result<Config, ConfigError> {
        crate::load(&[Source::new(name, text)], &[])
    }

    /// All values, defaults included.
    pub fn values(&self) -> &Value {
        &self.values
    }

    /// What was set over the defaults.
    pub fn overrides(&self) -> &Value {
        &self.overrides
    }

    /// The value at a dotted path, defaults included.
    pub fn at(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.values, |value, name| value.get(name))
    }

    /// The file to store: what was set. Loading it gives the same configuration.
    pub fn to_yaml(&self) -> String {
        if self.overrides.as_object().is_none_or(Map::is_empty) {
            return "{}\n".to_string();
        }
        yaml::to_string(&self.overrides).unwrap_or_else(|_| self.overrides.to_string())
    }

    /// What differs from the defaults. Loading it gives the same values.
    pub fn changes(&self) -> Value {
        stored::difference(&self.values, &defaults_of(known_keys()))
    }

    /// The text kept on a host (`config.yaml` of Secret `vc-config-NAME`): [`Config::changes`], always in the same bytes.
    pub fn to_stored(&self) -> String {
        stored::pretty(&self.changes())
    }

    /// SHA-256 input that changes with the configuration and with nothing else.
    pub fn canonical(&self) -> String {
        let mut changes = self.changes();
        // Node pools come and go without a restart of the control plane.
        if let Some(private_nodes) = changes.get_mut("privateNodes").and_then(Value::as_object_mut) {
            private_nodes.remove("autoNodes");
        }
        stored::canonical(&changes)
    }

    /// Is the switch at a dotted path `true`?
    pub fn is_on(&self, path: &str) -> bool {
        matches!(self.at(path), Some(Value::Bool(true))) || self.at(path).and_then(Value::as_str) == Some("true")
    }

    /// Who answers DNS in the cluster.
    ///
    /// vCluster's default is a Deployment because its embedded server needs a licence; here it is embedded unless
    /// `controlPlane.coredns.embedded` says `false`.
    pub fn dns_mode(&self) -> DnsMode {
        match &self.control_plane.coredns {
            coredns if !coredns.enabled => DnsMode::Off,
            coredns if coredns.embedded == Some(false) => DnsMode::Deployed,
            _ => DnsMode::Embedded,
        }
    }

    /// Set keys that are accepted but change nothing, with the reason. `hub` tells the placement.
    pub fn without_effect(&self, hub: bool) -> Vec<(String, String)> {
        let mut found = Vec::new();
        without_effect(&self.overrides, "", hub, &mut found);
        if self.dns_mode() == DnsMode::Embedded {
            for key in ["deployment", "priorityClassName", "security"] {
                let path = format!("controlPlane.coredns.{key}");
                let set = self.overrides.pointer(&format!("/controlPlane/coredns/{key}"));
                if set.is_some() && self.at(&path) != default_at(&path).as_ref() {
                    found.push((path, "DNS is embedded in the control plane and has no pods".to_string()));
                }
            }
        }
        if !self.control_plane.distro.k8s.enabled {
            let note =
                "the control plane is not made of upstream's programs; set controlPlane.distro.k8s.enabled for that";
            for key in ["version", "image", "imagePullPolicy", "env", "resources", "securityContext"] {
                let path = format!("controlPlane.distro.k8s.{key}");
                let set = self.overrides.pointer(&format!("/controlPlane/distro/k8s/{key}"));
                let known = found.iter().any(|(other, _)| path.starts_with(other.as_str()));
                if set.is_some() && !known && self.at(&path) != default_at(&path).as_ref() {
                    found.push((path, note.to_string()));
                }
            }
        }
        found
    }
}

/// Who answers DNS in a virtual cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsMode {
    /// Nobody of ours.
    Off,
    /// The control plane itself.
    Embedded,
    /// CoreDNS in pods of the virtual cluster.
    Deployed,
}

/// The default of the key at a dotted path; `None` when there is no such key, or its default is to be absent.
pub fn default_at(path: &str) -> Option<Value> {
    let key = path.split('.').try_fold(known_keys(), |key, name| key.child(name))?;
    match key.kind {
        Kind::Object => Some(defaults_of(key)).filter(|value| value.as_object().is_some_and(|map| !map.is_empty())),
        _ => key.default.clone(),
    }
}

fn without_effect(value: &Value, path: &str, hub: bool, found: &mut Vec<(String, String)>) {
    if !path.is_empty() {
        match built(path) {
            Built::NothingToDo(note) => return found.push((path.to_string(), note.to_string())),
            Built::Dedicated if hub => {
                return found.push((path.to_string(), "a cluster in a hub has no pod of its own".to_string()));
            }
            Built::Hub if !hub => {
                return found.push((path.to_string(), "only a hub does this; see --placement hub".to_string()));
            }
            _ => {}
        }
    }
    if let Value::Object(map) = value {
        for (name, value) in map {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            without_effect(value, &path, hub, found);
        }
    }
}

/// `true`, `false` or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    #[default]
    Auto,
    On,
    Off,
}

impl Switch {
    /// `auto` decided by the caller.
    pub fn enabled(self, auto: bool) -> bool {
        match self {
            Switch::Auto => auto,
            Switch::On => true,
            Switch::Off => false,
        }
    }
}

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Value::deserialize(deserializer)? {
            Value::Bool(true) => Switch::On,
            Value::Bool(false) => Switch::Off,
            Value::String(word) if word == "true" => Switch::On,
            Value::String(word) if word == "false" => Switch::Off,
            _ => Switch::Auto,
        })
    }
}

/// An image, written as a string or in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub registry: String,
    pub repository: String,
    pub tag: String,
}

impl Image {
    /// `registry/repository:tag`, leaving out what is empty; `registry_override` replaces the registry when not empty.
    pub fn reference(&self, registry_override: &str) -> String {
        let registry = if registry_override.is_empty() { &self.registry } else { registry_override };
        let mut text = String::new();
        if !registry.is_empty() {
            text.push_str(registry.trim_end_matches('/'));
            text.push('/');
        }
        text.push_str(&self.repository);
        if !self.tag.is_empty() {
            text.push(if self.tag.starts_with("sha256:") { '@' } else { ':' });
            text.push_str(&self.tag);
        }
        text
    }

    /// Splits `[registry/]repository[:tag|@digest]`; the first part is a registry when it has a dot, a port or is `localhost`.
    pub fn parse(text: &str) -> Image {
        let (name, tag) = match text.split_once('@') {
            Some((name, digest)) => (name, digest),
            None => match text.rsplit_once(':') {
                Some((name, tag)) if !tag.contains('/') => (name, tag),
                _ => (text, ""),
            },
        };
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => ("", name),
        };
        Image { registry: registry.into(), repository: repository.into(), tag: tag.into() }
    }
}

impl<'de> Deserialize<'de> for Image {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let part = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
        Ok(match &value {
            Value::String(text) => Image::parse(text),
            _ => Image { registry: part("registry"), repository: part("repository"), tag: part("tag") },
        })
    }
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident : $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name { $($(#[$attr])* pub $field: $type,)* }
    };
}

pub type Strings = BTreeMap<String, String>;

section! {
    /// The root.
    Typed {
        export_kube_config: ExportKubeConfig,
        sync: Sync,
        control_plane: ControlPlane,
        networking: Networking,
        policies: Policies,
        rbac: Rbac,
        experimental: Experimental,
        deletion: Deletion,
    }
}

section! { ExportKubeConfig {
    context: String,
    server: String,
    insecure: bool,
    service_account: KubeConfigServiceAccount,
    secret: SecretReference,
    additional_secrets: Vec<AdditionalSecret>,
} }
section! { KubeConfigServiceAccount { name: String, namespace: String, cluster_role: String, } }
section! { SecretReference { name: String, namespace: String, } }
section! { AdditionalSecret {
    name: String,
    namespace: String,
    context: String,
    server: String,
    insecure: bool,
    service_account: KubeConfigServiceAccount,
} }

section! { Sync { to_host: SyncToHost, from_host: SyncFromHost, } }
section! {
    /// A kind that is copied as it is.
    Enable { enabled: bool, patches: Vec<Patch>, }
}
section! {
    /// A kind that is copied when used, or altogether.
    EnableAll { enabled: bool, all: bool, patches: Vec<Patch>, }
}
section! { EnableSwitch { enabled: Switch, selector: LabelSelector, patches: Vec<Patch>, } }
section! { EnableSelector { enabled: bool, selector: LabelSelector, patches: Vec<Patch>, } }
section! { EnableMappings { enabled: bool, mappings: Mappings, patches: Vec<Patch>, } }
section! { Mappings { by_name: Strings, } }
section! { LabelSelector { match_labels: Strings, match_expressions: Vec<LabelSelectorRequirement>, } }
section! { LabelSelectorRequirement { key: String, operator: String, values: Vec<String>, } }
section! {
    /// A rewrite rule of one field.
    Patch {
        path: String,
        expression: Option<String>,
        reverse_expression: Option<String>,
        reference: Option<PatchReference>,
        labels: Option<Value>,
    }
}
section! { PatchReference {
    api_version: String,
    kind: String,
    api_version_path: String,
    kind_path: String,
    name_path: String,
    namespace_path: String,
} }

section! { SyncToHost {
    pods: SyncPods,
    secrets: EnableAll,
    config_maps: EnableAll,
    services: Enable,
    endpoints: Enable,
    endpoint_slices: Enable,
    persistent_volume_claims: Enable,
    ingresses: Enable,
    network_policies: Enable,
    persistent_volumes: Enable,
    storage_classes: Enable,
    gateway_api: GatewayApi,
    service_accounts: Enable,
    pod_disruption_budgets: Enable,
    priority_classes: Enable,
    namespaces: SyncNamespaces,
    resource_claims: Enable,
    resource_claim_templates: Enable,
    custom_resources: BTreeMap<String, SyncCustomResource>,
} }
section! { GatewayApi {
    enabled: bool,
    http_routes: Enable,
    gateways: Enable,
    tls_routes: Enable,
    grpc_routes: Enable,
    tcp_routes: Enable,
    udp_routes: Enable,
    #[serde(rename = "backendTLSPolicies")]
    backend_tls_policies: Enable,
    reference_grants: EnableSwitch,
    patches: Vec<Patch>,
} }
section! { SyncPods {
    enabled: bool,
    translate_image: Strings,
    enforce_tolerations: Vec<String>,
    use_secrets_for_s_a_tokens: bool,
    runtime_class_name: String,
    priority_class_name: String,
    rewrite_hosts: RewriteHosts,
    hybrid_scheduling: HybridScheduling,
    patches: Vec<Patch>,
} }
section! { RewriteHosts { enabled: bool, init_container: RewriteHostsContainer, } }
section! { RewriteHostsContainer { image: Image, resources: Value, } }
section! { HybridScheduling { enabled: bool, host_schedulers: Vec<String>, } }
section! { SyncNamespaces {
    enabled: bool,
    mappings: Mappings,
    mappings_only: bool,
    extra_labels: Strings,
    patches: Vec<Patch>,
} }
section! { SyncCustomResource { enabled: bool, scope: String, mappings: Mappings, patches: Vec<Patch>, } }

section! { SyncFromHost {
    nodes: SyncNodes,
    events: Enable,
    ingress_classes: EnableSelector,
    storage_classes: EnableSwitch,
    runtime_classes: EnableSelector,
    priority_classes: EnableSelector,
    csi_nodes: EnableSwitch,
    csi_drivers: EnableSwitch,
    csi_storage_capacities: EnableSwitch,
    config_maps: EnableMappings,
    secrets: EnableMappings,
    gateway_classes: EnableSelector,
    gateways: SyncGateways,
    device_classes: EnableSelector,
    custom_resources: BTreeMap<String, SyncCustomResource>,
} }
section! {
    /// Gateways of the host that tenants may attach routes to.
    SyncGateways {
        enabled: bool,
        selector: LabelSelector,
        mappings: Mappings,
        allowed_routes: GatewayAllowedRoutes,
        status: GatewayStatus,
        metadata: GatewayMetadata,
        sanitize: GatewaySanitize,
        patches: Vec<Patch>,
    }
}
section! { GatewayAllowedRoutes {
    default_virtual_namespace_policy: GatewayRoutePolicy,
    overrides: Vec<GatewayRouteOverride>,
} }
section! { GatewayRoutePolicy { from: String, selector: LabelSelector, } }
section! { GatewayRouteOverride {
    host_namespace: String,
    name: String,
    virtual_namespace_policy: GatewayRoutePolicy,
    allowed_hostnames: Vec<String>,
} }
section! { GatewayStatus { expose_addresses: bool, } }
section! { GatewayMetadata { expose_source_gateway: bool, } }
section! { GatewaySanitize { certificate_refs: bool, infrastructure: bool, } }
section! { SyncNodes {
    enabled: bool,
    sync_back_changes: bool,
    clear_image_status: bool,
    selector: NodeSelector,
    patches: Vec<Patch>,
} }
section! { NodeSelector { all: bool, labels: Strings, } }

section! { ControlPlane {
    host_path_mapper: HostPathMapper,
    endpoint: String,
    distro: Distro,
    backing_store: BackingStore,
    coredns: CoreDns,
    proxy: Proxy,
    ingress: IngressConfig,
    tls_route: TlsRouteConfig,
    service: ServiceConfig,
    stateful_set: StatefulSetConfig,
    service_monitor: ServiceMonitorConfig,
    advanced: Advanced,
} }
section! { Distro { k8s: DistroK8s, } }
section! { DistroK8s {
    enabled: bool,
    version: String,
    api_server: DistroProgram,
    controller_manager: DistroProgram,
    scheduler: DistroProgram,
} }
section! {
    /// One of upstream's programs.
    DistroProgram { enabled: bool, command: Vec<String>, extra_args: Vec<String>, }
}
section! { EnableOnly { enabled: bool, } }
section! { BackingStore { database: Databases, etcd: Etcds, } }
section! { Databases { embedded: Database, external: Database, } }
section! { Database {
    enabled: bool,
    data_source: String,
    identity_provider: String,
    key_file: String,
    cert_file: String,
    ca_file: String,
} }
section! { Etcds { embedded: EmbeddedEtcd, deploy: DeployedEtcd, external: ExternalEtcd, } }
section! {
    /// An etcd member in each pod of the control plane.
    EmbeddedEtcd {
        enabled: bool,
        migrate_from_deployed_etcd: bool,
        snapshot_count: u64,
        extra_args: Vec<String>,
    }
}
section! {
    /// An etcd of the cluster's own, in pods beside it.
    DeployedEtcd {
        enabled: bool,
        stateful_set: DeployedEtcdSet,
        service: DeployedEtcdService,
        headless_service: DeployedEtcdHeadless,
    }
}
section! { DeployedEtcdSet {
    enabled: bool,
    enable_service_links: bool,
    image: Image,
    image_pull_policy: String,
    env: Vec<Value>,
    extra_args: Vec<String>,
    resources: Value,
    pods: StandardMetadata,
    high_availability: DeployedEtcdReplicas,
    scheduling: Scheduling,
    security: Security,
    persistence: Persistence,
    annotations: Strings,
    labels: Strings,
} }
section! { DeployedEtcdReplicas { replicas: u32, } }
section! { DeployedEtcdHeadless { annotations: Strings, } }
section! { DeployedEtcdService { enabled: bool, annotations: Strings, } }
section! { ExternalEtcd { enabled: bool, endpoint: String, tls: EtcdTls, } }
section! { EtcdTls { ca_file: String, cert_file: String, key_file: String, } }
section! { CoreDns {
    enabled: bool,
    /// Without a default: what is not said means embedded, and is told from `false`.
    embedded: Option<bool>,
    overwrite_config: String,
    overwrite_manifests: String,
    priority_class_name: String,
    service: CoreDnsService,
    deployment: CoreDnsDeployment,
    security: Security,
} }
section! { CoreDnsService { spec: Value, annotations: Strings, labels: Strings, } }
section! { CoreDnsDeployment {
    image: String,
    replicas: u32,
    node_selector: Strings,
    affinity: Value,
    tolerations: Vec<Value>,
    resources: Value,
    pods: StandardMetadata,
    annotations: Strings,
    labels: Strings,
    topology_spread_constraints: Vec<Value>,
} }
section! { Proxy { bind_address: String, port: u16, #[serde(rename = "extraSANs")] extra_sans: Vec<String>, } }
section! { ServiceConfig {
    enabled: bool,
    spec: Value,
    kubelet_node_port: u16,
    https_node_port: u16,
    annotations: Strings,
    labels: Strings,
} }
section! { IngressConfig {
    enabled: bool,
    host: String,
    path_type: String,
    spec: Value,
    annotations: Strings,
    labels: Strings,
} }
section! { TlsRouteConfig {
    enabled: bool,
    api_version: String,
    host: String,
    parent_refs: Vec<Value>,
    spec: Value,
    annotations: Strings,
    labels: Strings,
} }
section! { ServiceMonitorConfig { enabled: bool, annotations: Strings, labels: Strings, } }
section! { StatefulSetConfig {
    high_availability: HighAvailability,
    resources: Value,
    scheduling: Scheduling,
    security: Security,
    probes: Value,
    persistence: Persistence,
    enable_service_links: bool,
    annotations: Strings,
    labels: Strings,
    pods: StandardMetadata,
    image: Image,
    image_pull_policy: String,
    working_dir: String,
    command: Vec<String>,
    args: Vec<String>,
    env: Vec<Value>,
    dns_policy: String,
    dns_config: Option<Value>,
    init_containers: Vec<Value>,
    sidecar_containers: Vec<Value>,
    host_aliases: Vec<Value>,
    runtime_class_name: String,
} }
section! { HighAvailability { replicas: u32, lease_duration: u64, renew_deadline: u64, retry_period: u64, } }
section! { Scheduling {
    node_selector: Value,
    affinity: Value,
    tolerations: Vec<Value>,
    priority_class_name: String,
    pod_management_policy: String,
    topology_spread_constraints: Vec<Value>,
} }
section! { Security { pod_security_context: Value, container_security_context: Value, } }
section! { Persistence {
    volume_claim: VolumeClaim,
    volume_claim_templates: Vec<Value>,
    data_volume: Vec<Value>,
    binaries_volume: Vec<Value>,
    add_volumes: Vec<Value>,
    add_volume_mounts: Vec<Value>,
} }
section! { VolumeClaim {
    enabled: Switch,
    access_modes: Vec<String>,
    retention_policy: String,
    size: String,
    storage_class: String,
} }
section! { StandardMetadata { annotations: Strings, labels: Strings, } }
section! { Advanced {
    default_image_registry: String,
    virtual_scheduler: EnableOnly,
    service_account: ServiceAccountConfig,
    workload_service_account: ServiceAccountConfig,
    headless_service: StandardMetadata,
    global_metadata: StandardMetadata,
    pod_disruption_budget: Value,
} }
section! { ServiceAccountConfig {
    enabled: bool,
    name: String,
    image_pull_secrets: Vec<Value>,
    annotations: Strings,
    labels: Strings,
} }

section! { Networking {
    #[serde(rename = "serviceCIDR")]
    service_cidr: String,
    replicate_services: ReplicateServices,
    #[serde(rename = "resolveDNS")]
    resolve_dns: Vec<ResolveDns>,
    advanced: NetworkingAdvanced,
} }
section! { ReplicateServices { to_host: Vec<ServiceMapping>, from_host: Vec<ServiceMapping>, } }
section! { ServiceMapping { from: String, to: String, } }
section! { ResolveDns { hostname: String, service: String, namespace: String, target: ResolveDnsTarget, } }
section! { ResolveDnsTarget {
    hostname: String,
    ip: String,
    host_service: String,
    host_namespace: String,
    #[serde(rename = "vClusterService")]
    virtual_cluster_service: String,
} }
section! { NetworkingAdvanced { cluster_domain: String, fallback_host_cluster: bool, proxy_kubelets: ProxyKubelets, } }
section! { ProxyKubelets { by_hostname: bool, #[serde(rename = "byIP")] by_ip: bool, } }

section! { Policies {
    pod_security_standard: String,
    resource_quota: ResourceQuota,
    limit_range: LimitRange,
    network_policy: NetworkPolicyConfig,
    central_admission: CentralAdmission,
} }
section! { NetworkPolicyConfig {
    enabled: bool,
    fallback_dns: String,
    annotations: Strings,
    labels: Strings,
    control_plane: NetworkPolicyRules,
    workload: NetworkPolicyWorkload,
} }
section! { NetworkPolicyRules { ingress: Vec<Value>, egress: Vec<Value>, } }
section! { NetworkPolicyWorkload { public_egress: PublicEgress, ingress: Vec<Value>, egress: Vec<Value>, } }
section! { PublicEgress { enabled: bool, cidr: String, except: Vec<String>, } }
section! {
    /// Webhook configurations as YAML says them, put in front of the tenant's API.
    CentralAdmission { validating_webhooks: Vec<Value>, mutating_webhooks: Vec<Value>, }
}
section! { ResourceQuota {
    enabled: Switch,
    quota: Value,
    scopes: Vec<String>,
    scope_selector: Value,
    annotations: Strings,
    labels: Strings,
} }
section! { LimitRange {
    enabled: Switch,
    default: Value,
    default_request: Value,
    max: Value,
    min: Value,
    annotations: Strings,
    labels: Strings,
} }
section! { Rbac { role: RbacRole, cluster_role: RbacClusterRole, } }
section! { RbacRole { enabled: bool, extra_rules: Vec<Value>, overwrite_rules: Vec<Value>, } }
section! { RbacClusterRole { enabled: Switch, extra_rules: Vec<Value>, overwrite_rules: Vec<Value>, } }
section! { DenyRule {
    name: String,
    namespaces: Vec<String>,
    rules: Vec<DenyRuleMatch>,
    excluded_users: Vec<String>,
} }
section! { DenyRuleMatch {
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
    operations: Vec<String>,
} }
section! { HostPathMapper { enabled: bool, central: bool, } }
section! { Experimental { deny_proxy_requests: Vec<DenyRule>, sync_settings: SyncSettings, deploy: ExperimentalDeploy, } }
section! { SyncSettings { set_owner: bool, } }
section! { ExperimentalDeploy { host: InitManifests, vcluster: InitManifests, } }
section! { InitManifests { manifests: String, manifests_template: String, helm: Vec<HelmChart>, } }
section! {
    /// A chart to be deployed into the virtual cluster.
    #[derive(serde::Serialize)]
    HelmChart { chart: HelmSource, release: HelmRelease, values: String, timeout: String, bundle: String, }
}
section! {
    /// Where a chart is.
    #[derive(serde::Serialize)]
    HelmSource {
        name: String,
        repo: String,
        insecure: bool,
        version: String,
        username: String,
        password: String,
    }
}
section! {
    /// What a chart is installed as.
    #[derive(serde::Serialize)]
    HelmRelease { name: String, namespace: String, }
}
section! { Deletion { prevent: bool, } }

/// Where the virtual cluster's data is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreType {
    EmbeddedDatabase,
    ExternalDatabase,
    EmbeddedEtcd,
    DeployedEtcd,
    ExternalEtcd,
}

impl StoreType {
    /// The word in annotation `vcluster.loft.sh/store`.
    pub fn as_str(self) -> &'static str {
        match self {
            StoreType::EmbeddedDatabase => "embedded-database",
            StoreType::ExternalDatabase => "external-database",
            StoreType::EmbeddedEtcd => "embedded-etcd",
            StoreType::DeployedEtcd => "deployed-etcd",
            StoreType::ExternalEtcd => "external-etcd",
        }
    }
}

impl Typed {
    pub fn store_type(&self) -> StoreType {
        let store = &self.control_plane.backing_store;
        if store.etcd.embedded.enabled {
            StoreType::EmbeddedEtcd
        } else if store.etcd.external.enabled {
            StoreType::ExternalEtcd
        } else if store.etcd.deploy.enabled {
            StoreType::DeployedEtcd
        } else if store.database.external.enabled {
            StoreType::ExternalDatabase
        } else {
            StoreType::EmbeddedDatabase
        }
    }

    /// Has the cluster an etcd of its own on the host? Also one whose data is about to move into the embedded etcd.
    pub fn has_deployed_etcd(&self) -> bool {
        let embedded = &self.control_plane.backing_store.etcd.embedded;
        self.store_type() == StoreType::DeployedEtcd || embedded.enabled && embedded.migrate_from_deployed_etcd
    }

    /// May a cluster that was created with the store `before` (the word of [`StoreType::as_str`]) have this configuration?
    /// Only where its data comes along: with any other store it would seem to have lost everything.
    pub fn store_may_follow(&self, before: &str) -> bool {
        let embedded = &self.control_plane.backing_store.etcd.embedded;
        let now = self.store_type();
        before == now.as_str()
            || now == StoreType::EmbeddedEtcd
                && (before == StoreType::EmbeddedDatabase.as_str()
                    || before == StoreType::DeployedEtcd.as_str() && embedded.migrate_from_deployed_etcd)
    }

    /// Does the virtual cluster schedule its own pods?
    pub fn virtual_scheduler(&self) -> bool {
        self.control_plane.distro.k8s.scheduler.enabled
            || self.control_plane.advanced.virtual_scheduler.enabled
            || self.sync.to_host.pods.hybrid_scheduling.enabled
    }
}
