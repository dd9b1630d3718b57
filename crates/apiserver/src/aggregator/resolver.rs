//! How a Service of the cluster is reached by the API server: the [`ServiceResolver`] seam.
//!
//! The API server knows Services and their endpoints; how a connection to one of them is made depends on where the process
//! runs. [`Direct`] connects from here.
//!
//! Follows: `k8s.io/apiserver/pkg/util/proxy.ResolveEndpoint`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use apimachinery::Value;
use apimachinery::meta::ObjectMeta;
use async_trait::async_trait;
use rand::seq::SliceRandom;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, ToSocketAddrs};

use crate::storage::Storage;

/// How many endpoints are tried before giving up, and how long each may take.
const ENDPOINTS_MAX: usize = 4;
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the Service's own address may take, which need not lead anywhere.
const CLUSTER_IP_TIMEOUT: Duration = Duration::from_secs(3);

/// A port of a Service, by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    pub namespace: String,
    pub name: String,
    pub port: u16,
}

/// A connection of any kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection to a place where a Service answers.
pub struct Connected {
    pub stream: Box<dyn Stream>,
    /// The address as it stands in messages, with the port.
    pub address: String,
}

/// Why a Service is not reached.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ConnectError {
    /// The address that was tried; without one there is none.
    pub address: Option<String>,
    pub message: String,
}

impl ConnectError {
    /// There is no place to connect to.
    pub fn unresolved(message: impl Into<String>) -> ConnectError {
        ConnectError { address: None, message: message.into() }
    }

    /// An address that cannot be connected to.
    pub fn failed(address: impl Into<String>, error: &std::io::Error) -> ConnectError {
        let address = address.into();
        let reason = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
            std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
            std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            _ => error.to_string(),
        };
        ConnectError { message: format!("dial tcp {address}: {reason}"), address: Some(address) }
    }
}

/// Connects to Services.
#[async_trait]
pub trait ServiceResolver: Send + Sync {
    /// Opens a connection to one of the places where the port answers. Bounded in time.
    async fn connect(&self, storage: &Storage, service: &ServicePort) -> Result<Connected, ConnectError>;
}

/// One ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The pod of the Service's namespace that the endpoint says it is.
    pub pod: Option<String>,
}

/// Where a Service answers as far as the cluster's objects tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// In the order in which they are tried.
    pub endpoints: Vec<Endpoint>,
    pub cluster_ip: Option<SocketAddr>,
    /// The name of an `ExternalName` Service; then there is nothing else.
    pub external_name: Option<String>,
}

/// Looks up where a port of a Service answers.
pub async fn places(storage: &Storage, service: &ServicePort) -> Result<Places, ConnectError> {
    let unresolved = |status: Box<apimachinery::status::Status>| ConnectError::unresolved(status.message);
    let ServicePort { namespace, name, port } = service;
    let object = storage.find("", "v1", "services", namespace, name).await.map_err(unresolved)?;
    let object = object.ok_or_else(|| ConnectError::unresolved(format!("services {name:?} not found")))?;
    if object.str_at(&["spec", "type"]) == "ExternalName" {
        let external_name = Some(object.str_at(&["spec", "externalName"]).to_owned());
        return Ok(Places { external_name, ..Places::default() });
    }
    let slices = storage.all("discovery.k8s.io", "v1", "endpointslices", namespace).await.map_err(unresolved)?;
    let slices: Vec<&Value> = slices.iter().filter(|slice| belongs_to(slice, name)).collect();
    let mut found = read_places(&object, &slices, *port)
        .ok_or_else(|| ConnectError::unresolved(format!("no service port {port} found for service {name:?}")))?;
    found.endpoints.shuffle(&mut rand::rng());
    // The Service's own family first.
    if let Some(ip) = found.cluster_ip {
        found.endpoints.sort_by_key(|endpoint| endpoint.address.is_ipv4() != ip.is_ipv4());
    }
    Ok(found)
}

/// Is this one of the slices of a Service?
pub(crate) fn belongs_to(slice: &Value, service: &str) -> bool {
    slice.label("kubernetes.io/service-name") == Some(service)
}

/// The places of a port in its Service and the slices of that; `None` when the Service has no such port.
fn read_places(service: &Value, slices: &[&Value], port: u16) -> Option<Places> {
    let ports = service.array_at(&["spec", "ports"]);
    let spec = ports.iter().find(|p| p["port"].as_i64() == Some(i64::from(port)))?;
    let namespace = service.namespace();
    let mut endpoints = Vec::new();
    for slice in slices {
        let target = slice.array_at(&["ports"]).iter().find(|p| p.str_at(&["name"]) == spec.str_at(&["name"]));
        let target = target.and_then(|p| u16::try_from(p["port"].as_i64()?).ok());
        let Some(target) = target else { continue };
        for endpoint in slice.array_at(&["endpoints"]) {
            if endpoint.at(&["conditions", "ready"]).is_some_and(|ready| *ready == false) {
                continue;
            }
            let reference = &endpoint["targetRef"];
            let own = ["", namespace].contains(&reference.str_at(&["namespace"]));
            let pod = (reference.str_at(&["kind"]) == "Pod" && own).then(|| reference.str_at(&["name"]).to_owned());
            // One address counts, as upstream has it.
            let address = endpoint.array_at(&["addresses"]).first().and_then(Value::as_str);
            if let Some(ip) = address.and_then(|ip| ip.parse::<IpAddr>().ok()) {
                endpoints.push(Endpoint { address: SocketAddr::new(ip, target), pod });
            }
        }
    }
    let cluster_ip = service.str_at(&["spec", "clusterIP"]).parse().ok();
    Some(Places { endpoints, cluster_ip: cluster_ip.map(|ip| SocketAddr::new(ip, port)), external_name: None })
}

/// Opens a TCP connection in time.
pub async fn dial(address: SocketAddr, timeout: Duration) -> Result<Connected, ConnectError> {
    dial_named(address, address.to_string(), timeout).await
}

/// The same, to what `name` says in messages.
async fn dial_named(target: impl ToSocketAddrs, name: String, timeout: Duration) -> Result<Connected, ConnectError> {
    match tokio::time::timeout(timeout, TcpStream::connect(target)).await {
        Ok(Ok(stream)) => {
            // Only a matter of speed.
            let _ = stream.set_nodelay(true);
            Ok(Connected { stream: Box::new(stream), address: name })
        }
        Ok(Err(error)) => Err(ConnectError::failed(name, &error)),
        Err(_) => Err(ConnectError::failed(name, &std::io::ErrorKind::TimedOut.into())),
    }
}

/// The error of a Service that nobody answers for.
pub fn no_endpoints(service: &ServicePort) -> ConnectError {
    ConnectError::unresolved(format!("no endpoints available for service {:?}", service.name))
}

/// Connects from this process: to the endpoints of the Service, and to its own address when none of them is reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

#[async_trait]
impl ServiceResolver for Direct {
    async fn connect(&self, storage: &Storage, service: &ServicePort) -> Result<Connected, ConnectError> {
        let places = places(storage, service).await?;
        if let Some(host) = places.external_name {
            let name = format!("{host}:{}", service.port);
            return dial_named((host.as_str(), service.port), name, ENDPOINT_TIMEOUT).await;
        }
        let mut failure = None;
        for endpoint in places.endpoints.iter().take(ENDPOINTS_MAX) {
            match dial(endpoint.address, ENDPOINT_TIMEOUT).await {
                Ok(connected) => return Ok(connected),
                Err(error) => failure = Some(error),
            }
        }
        let failure = failure.ok_or_else(|| no_endpoints(service))?;
        match places.cluster_ip {
            Some(address) => dial(address, CLUSTER_IP_TIMEOUT).await.map_err(|_| failure),
            None => Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn ready_endpoints_of_the_named_port_count() {
        let service = json!({"metadata": {"namespace": "a", "name": "s"}, "spec": {
            "clusterIP": "10.96.0.9", "ports": [{"name": "api", "port": 443}, {"name": "other", "port": 80}],
        }});
        let slice = json!({
            "ports": [{"name": "other", "port": 8080}, {"name": "api", "port": 8443}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "p", "namespace": "a"}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3", "10.0.0.4"], "conditions": {"ready": true},
                    "targetRef": {"kind": "Pod", "name": "q", "namespace": "b"}},
            ],
        });
        let unnamed = json!({"ports": [{"port": 1}], "endpoints": [{"addresses": ["10.0.0.5"]}]});
        let found = read_places(&service, &[&slice, &unnamed], 443).unwrap();
        assert_eq!(found.cluster_ip, Some("10.96.0.9:443".parse().unwrap()));
        let want = [("10.0.0.1:8443", Some("p")), ("10.0.0.3:8443", None)];
        let got: Vec<_> = found.endpoints.iter().map(|e| (e.address.to_string(), e.pod.as_deref())).collect();
        assert_eq!(got.iter().map(|(a, p)| (a.as_str(), *p)).collect::<Vec<_>>(), want);
        assert_eq!(read_places(&service, &[&slice], 444), None);
    }
}
