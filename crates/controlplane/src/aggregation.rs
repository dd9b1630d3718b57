//! Extension servers of tenants: their pods run on the host.
//!
//! The objects of the virtual cluster say which pods answer for a Service; where such a pod is, is asked of the syncer, not
//! of objects that the tenant writes. A process outside of the host's pod network reaches the pod through the host's API.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apiserver::aggregator::resolver::{
    ConnectError, Connected, Endpoint, ServicePort, ServiceResolver, dial, no_endpoints, places,
};
use apiserver::aggregator::{ClientTrust, Options, ProxyIdentity, TrustError};
use apiserver::proxy::is_proxyable;
use apiserver::storage::Storage;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio_util::sync::CancellationToken;

use crate::certificates::Certificates;
use crate::link::Link;

/// How many endpoints are tried before giving up.
const ENDPOINTS_MAX: usize = 4;
/// How long a direct connection may take; where there is no way to pods it often just hangs.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// The same through the host's API.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);

/// The Services of a virtual cluster with a host.
pub(crate) struct TenantServices {
    pub link: Arc<Link>,
    /// Nothing but pods is reached: the tenant's workloads are isolated.
    pub pods_only: bool,
}

impl TenantServices {
    /// The tenant's pod that an endpoint says it is.
    async fn pod(&self, storage: &Storage, service: &ServicePort, endpoint: &Endpoint) -> Option<Value> {
        let name = endpoint.pod.as_deref()?;
        let pod = storage.find("", "v1", "pods", &service.namespace, name).await.ok().flatten()?;
        let ips = pod.array_at(&["status", "podIPs"]).iter().map(|ip| ip.str_at(&["ip"]));
        let ip = endpoint.address.ip().to_string();
        let known = ips.chain([pod.str_at(&["status", "podIP"])]).any(|known| known == ip);
        known.then_some(pod)
    }

    /// Connects to a pod on the host: from here, else through the host's API.
    async fn connect_pod(&self, host_pod: &Value, port: u16) -> Result<Connected, ConnectError> {
        let address = host_pod.str_at(&["status", "podIP"]).parse::<std::net::IpAddr>();
        let address = address.map_err(|_| ConnectError::unresolved("the pod has no address on the host yet"))?;
        if !is_proxyable(address) {
            return Err(ConnectError::unresolved("address not allowed"));
        }
        let failure = match dial((address, port).into(), DIAL_TIMEOUT).await {
            Ok(connected) => return Ok(connected),
            Err(error) => error,
        };
        let name = syncer::metadata::name_of(host_pod);
        let pods = Api::<Pod>::namespaced(self.link.host_client(), &name.namespace);
        let ports = [port];
        let forward = pods.portforward(&name.name, &ports);
        match tokio::time::timeout(FORWARD_TIMEOUT, forward).await {
            Ok(Ok(mut forwarder)) => match forwarder.take_stream(port) {
                Some(stream) => {
                    let address = std::net::SocketAddr::new(address, port).to_string();
                    Ok(Connected { stream: Box::new(stream), address })
                }
                None => Err(failure),
            },
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the host does not forward the port either");
                Err(failure)
            }
            Err(_) => Err(failure),
        }
    }

    async fn connect_endpoint(
        &self,
        storage: &Storage,
        service: &ServicePort,
        endpoint: &Endpoint,
    ) -> Result<Connected, ConnectError> {
        let port = endpoint.address.port();
        let syncer = self.link.syncer();
        if let Some(pod) = self.pod(storage, service, endpoint).await
            && let Some(host_pod) = syncer.and_then(|syncer| syncer.host_pod_object(&pod))
        {
            return self.connect_pod(&host_pod, port).await;
        }
        if self.pods_only || !is_proxyable(endpoint.address.ip()) {
            return Err(no_endpoints(service));
        }
        dial(endpoint.address, DIAL_TIMEOUT).await
    }
}

#[async_trait]
impl ServiceResolver for TenantServices {
    async fn connect(&self, storage: &Storage, service: &ServicePort) -> Result<Connected, ConnectError> {
        let places = places(storage, service).await?;
        if places.external_name.is_some() {
            return Err(ConnectError::unresolved("unsupported service type \"ExternalName\""));
        }
        let mut failure = None;
        for endpoint in places.endpoints.iter().take(ENDPOINTS_MAX) {
            match self.connect_endpoint(storage, service, endpoint).await {
                Ok(connected) => return Ok(connected),
                Err(error) => failure = Some(error),
            }
        }
        let failure = failure.ok_or_else(|| no_endpoints(service))?;
        // The host's Service has the same address.
        match places.cluster_ip.filter(|address| !self.pods_only && is_proxyable(address.ip())) {
            Some(address) => dial(address, DIAL_TIMEOUT).await.map_err(|_| failure),
            None => Err(failure),
        }
    }
}

/// How a cluster with these certificates aggregates extension servers.
pub(crate) fn options(
    certificates: &Certificates,
    link: Option<&Arc<Link>>,
    config: &config::Config,
) -> Result<Options, TrustError> {
    let identity =
        ProxyIdentity::new(&certificates.file("front-proxy-client.crt"), &certificates.file("front-proxy-client.key"))?;
    let trust =
        ClientTrust::with_front_proxy(certificates.file("client-ca.crt"), certificates.file("front-proxy-ca.crt"));
    let mut options = Options { identity: Some(identity), trust: Some(Arc::new(trust)), ..Options::default() };
    if let Some(link) = link {
        let pods_only = config.policies.network_policy.enabled;
        options.resolver = Arc::new(TenantServices { link: Arc::clone(link), pods_only });
    }
    Ok(options)
}

/// Shows renewed certificates to extension servers.
pub(crate) async fn follow(identity: Arc<ProxyIdentity>, certificates: Arc<Certificates>, cancel: CancellationToken) {
    let mut changes = certificates.changes();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        let (certificate, key) =
            (certificates.file("front-proxy-client.crt"), certificates.file("front-proxy-client.key"));
        if let Err(error) = identity.replace(&certificate, &key) {
            tracing::error!(error = &error as &dyn std::error::Error, "a renewed certificate cannot be used");
        }
    }
}
