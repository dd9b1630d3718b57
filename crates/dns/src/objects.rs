//! The parts of objects that names are made of.

use apimachinery::json::Str;
use informer::{Cached, ObjectMeta, Resource, StrMap, null_default};
use serde::Deserialize;

pub(crate) const SERVICES: Resource = Resource::new("", "v1", "services");
pub(crate) const ENDPOINT_SLICES: Resource = Resource::new("discovery.k8s.io", "v1", "endpointslices");
pub(crate) const NAMESPACES: Resource = Resource::new("", "v1", "namespaces");
pub(crate) const NODES: Resource = Resource::new("", "v1", "nodes");
pub(crate) const CONFIG_MAPS: Resource = Resource::new("", "v1", "configmaps");

/// The label of an EndpointSlice that names its Service.
pub(crate) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

macro_rules! cached {
    ($($kind:ident),*) => {$(
        impl Cached for $kind {
            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
        }
    )*};
}

cached!(Service, EndpointSlice, Node, ConfigMap);

/// A Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    pub metadata: ObjectMeta,
    pub spec: ServiceSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type", deserialize_with = "null_default")]
    pub type_: Str,
    #[serde(rename = "clusterIP", deserialize_with = "null_default")]
    pub cluster_ip: Str,
    #[serde(rename = "clusterIPs", deserialize_with = "null_default")]
    pub cluster_ips: Vec<Str>,
    #[serde(deserialize_with = "null_default")]
    pub external_name: Str,
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServicePort {
    #[serde(deserialize_with = "null_default")]
    pub name: Str,
    #[serde(deserialize_with = "null_default")]
    pub protocol: Str,
    pub port: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_default")]
    pub address_type: Str,
    #[serde(deserialize_with = "null_default")]
    pub endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<EndpointPort>,
}

impl EndpointSlice {
    /// The Service it belongs to, empty for none.
    pub fn service(&self) -> &str {
        self.metadata.labels.get(SERVICE_NAME_LABEL).unwrap_or_default()
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    #[serde(deserialize_with = "null_default")]
    pub addresses: Vec<Str>,
    #[serde(deserialize_with = "null_default")]
    pub conditions: Conditions,
    #[serde(deserialize_with = "null_default")]
    pub hostname: Str,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Unknown counts as ready. Services that publish addresses that are not ready have slices that call them ready.
    pub ready: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    #[serde(deserialize_with = "null_default")]
    pub name: Str,
    #[serde(deserialize_with = "null_default")]
    pub protocol: Str,
    pub port: Option<u16>,
}

/// A Node's addresses.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_default")]
    pub status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    #[serde(deserialize_with = "null_default")]
    pub addresses: Vec<NodeAddress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub type_: Str,
    pub address: Str,
}

impl Node {
    /// The line of a hosts file for this node: its internal address and its host name.
    pub fn host(&self) -> Option<(std::net::IpAddr, &str)> {
        let find = |kind: &str| self.status.addresses.iter().rfind(|a| a.type_ == kind).map(|a| a.address.as_str());
        let address = find("InternalIP")?.parse().ok()?;
        Some((address, find("Hostname").unwrap_or(&self.metadata.name)))
    }
}

/// A ConfigMap.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_default")]
    pub data: StrMap,
}
