//! The kinds the syncer knows, with the rule that gives each its host name.
//!
//! Custom resources are not here: their [`Kind`]s are made when the configuration names them.

use std::borrow::Cow;

use crate::names::{Names, NamespacedName};

/// Which of the naming rules a kind follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `NAME-x-NAMESPACE-x-VC` in the host namespace.
    Namespaced,
    ConfigMap,
    Service,
    /// Resource claims: names are parts of other names there and have to be short.
    Short,
    /// `vcluster-NAME-x-HOSTNAMESPACE-x-VC`.
    Cluster,
    /// The same name on both sides: objects that come from the host.
    Mirror,
}

/// A kind on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    pub kind: Cow<'static, str>,
    pub plural: Cow<'static, str>,
    pub namespaced: bool,
    pub naming: Naming,
}

impl Kind {
    const fn new(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        namespaced: bool,
        naming: Naming,
    ) -> Kind {
        Kind {
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            kind: Cow::Borrowed(kind),
            plural: Cow::Borrowed(plural),
            namespaced,
            naming,
        }
    }

    /// `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The form written in the object-kind annotation: `apps/v1, Kind=Deployment`, `/v1, Kind=Pod`.
    pub fn gvk(&self) -> String {
        format!("{}/{}, Kind={}", self.group, self.version, self.kind)
    }

    /// The host object for a virtual one. Asking decides: no other object gets that name.
    pub fn host_name(&self, names: &Names, virtual_: &NamespacedName) -> NamespacedName {
        let rule = self.rule(names, virtual_);
        match names.decisions().filter(|_| self.is_decided(virtual_)) {
            Some(decisions) => {
                let usual = rule.clone();
                decisions.decide(self, virtual_, rule, |nth| names.alternative(virtual_, &usual, nth))
            }
            None => rule,
        }
    }

    /// The name part of [`Kind::host_name`].
    pub fn name_on_host(&self, names: &Names, name: &str, namespace: &str) -> String {
        self.host_name(names, &NamespacedName::new(namespace, name)).name
    }

    /// The same for a cluster-scoped kind.
    pub fn cluster_name_on_host(&self, names: &Names, name: &str) -> String {
        self.name_on_host(names, name, "")
    }

    /// The host object for a virtual one, without deciding anything.
    pub fn known_host_name(&self, names: &Names, virtual_: &NamespacedName) -> NamespacedName {
        let decided = names.decisions().filter(|_| self.is_decided(virtual_));
        decided.and_then(|d| d.known(self, virtual_)).unwrap_or_else(|| self.rule(names, virtual_))
    }

    /// Whether the virtual object has this host name.
    pub fn is_host_name(&self, names: &Names, virtual_: &NamespacedName, host: &NamespacedName) -> bool {
        let others = |d: &crate::decisions::Decisions| d.virtual_of(self, host).is_some_and(|other| other != *virtual_);
        self.known_host_name(names, virtual_) == *host && !names.decisions().is_some_and(others)
    }

    /// The same name on both sides, or one that everybody knows.
    fn is_decided(&self, virtual_: &NamespacedName) -> bool {
        let api_server =
            self.naming == Naming::Service && virtual_.namespace == "default" && virtual_.name == "kubernetes";
        self.naming != Naming::Mirror && !virtual_.name.is_empty() && !api_server
    }

    /// The host object as the rules have it.
    pub fn rule(&self, names: &Names, virtual_: &NamespacedName) -> NamespacedName {
        match self.naming {
            Naming::Namespaced => names.host(&virtual_.name, &virtual_.namespace),
            Naming::ConfigMap => names.host_config_map(&virtual_.name, &virtual_.namespace),
            Naming::Service => names.host_service(&virtual_.name, &virtual_.namespace),
            Naming::Short => NamespacedName {
                namespace: names.host_namespace(&virtual_.namespace),
                name: names.host_name_short(&virtual_.name, &virtual_.namespace),
            },
            Naming::Cluster => NamespacedName::new("", names.host_name_cluster(&virtual_.name)),
            Naming::Mirror => virtual_.clone(),
        }
    }
}

/// The API group of Gateways and routes.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

macro_rules! kinds {
    ($($name:ident = ($group:literal, $version:literal, $kind:literal, $plural:literal, $namespaced:literal, $naming:ident);)*) => {
        $(pub static $name: Kind = Kind::new($group, $version, $kind, $plural, $namespaced, Naming::$naming);)*
        /// Every built-in kind the syncer knows.
        pub static ALL: &[&Kind] = &[$(&$name),*];
    };
}

kinds! {
    POD = ("", "v1", "Pod", "pods", true, Namespaced);
    SERVICE = ("", "v1", "Service", "services", true, Service);
    CONFIG_MAP = ("", "v1", "ConfigMap", "configmaps", true, ConfigMap);
    SECRET = ("", "v1", "Secret", "secrets", true, Namespaced);
    ENDPOINTS = ("", "v1", "Endpoints", "endpoints", true, Namespaced);
    ENDPOINT_SLICE = ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true, Namespaced);
    PERSISTENT_VOLUME_CLAIM = ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", true, Namespaced);
    PERSISTENT_VOLUME = ("", "v1", "PersistentVolume", "persistentvolumes", false, Cluster);
    EVENT = ("", "v1", "Event", "events", true, Namespaced);
    NODE = ("", "v1", "Node", "nodes", false, Mirror);
    NAMESPACE = ("", "v1", "Namespace", "namespaces", false, Mirror);
    SERVICE_ACCOUNT = ("", "v1", "ServiceAccount", "serviceaccounts", true, Namespaced);
    INGRESS = ("networking.k8s.io", "v1", "Ingress", "ingresses", true, Namespaced);
    INGRESS_CLASS = ("networking.k8s.io", "v1", "IngressClass", "ingressclasses", false, Mirror);
    NETWORK_POLICY = ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true, Namespaced);
    POD_DISRUPTION_BUDGET = ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", true, Namespaced);
    STORAGE_CLASS = ("storage.k8s.io", "v1", "StorageClass", "storageclasses", false, Cluster);
    HOST_STORAGE_CLASS = ("storage.k8s.io", "v1", "StorageClass", "storageclasses", false, Mirror);
    CSI_NODE = ("storage.k8s.io", "v1", "CSINode", "csinodes", false, Mirror);
    CSI_DRIVER = ("storage.k8s.io", "v1", "CSIDriver", "csidrivers", false, Mirror);
    CSI_STORAGE_CAPACITY = ("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities", true, Mirror);
    PRIORITY_CLASS = ("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", false, Cluster);
    HOST_PRIORITY_CLASS = ("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", false, Mirror);
    RUNTIME_CLASS = ("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", false, Mirror);
    RESOURCE_CLAIM = ("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims", true, Short);
    RESOURCE_CLAIM_TEMPLATE = ("resource.k8s.io", "v1", "ResourceClaimTemplate", "resourceclaimtemplates", true, Short);
    CUSTOM_RESOURCE_DEFINITION = ("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", false, Mirror);
    DEVICE_CLASS = ("resource.k8s.io", "v1", "DeviceClass", "deviceclasses", false, Mirror);
}
