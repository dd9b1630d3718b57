//! Where the API server of a virtual cluster asks the host: addresses of Services, and what only a pod's node knows.
//!
//! The API server is started before the syncer that answers for it. Until then Services get addresses of the virtual
//! cluster's own (the syncer replaces them) and pods cannot be looked into.

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use apimachinery::Value;
use apimachinery::status::{Status, StatusResult};
use apiserver::body::{Body, RequestBody};
use apiserver::pods::PodBackend;
use apiserver::services::{Assigned, ServiceAddressing};
use async_trait::async_trait;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use informer::ApiError;
use parking_lot::RwLock;
use syncer::Syncer;
use syncer::backend::{TunnelRequest, tunnel};

/// The largest body that is passed on to a pod through `proxy`.
const PROXIED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The host behind a virtual cluster.
pub(crate) struct Link {
    host_client: kube::Client,
    /// Weak: the syncer holds a client of the server that holds this. Another one after a replica has lost its leadership.
    syncer: RwLock<Weak<Syncer>>,
}

impl Link {
    pub fn new(host_client: kube::Client) -> Arc<Link> {
        Arc::new(Link { host_client, syncer: RwLock::default() })
    }

    pub fn host_client(&self) -> kube::Client {
        self.host_client.clone()
    }

    pub fn set(&self, syncer: &Arc<Syncer>) {
        *self.syncer.write() = Arc::downgrade(syncer);
    }

    pub fn syncer(&self) -> Option<Arc<Syncer>> {
        self.syncer.read().upgrade()
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Creates the host Service before the virtual one is stored, so that both have one address and the host's refusal reaches
/// the tenant at once.
pub(crate) struct HostFirst(pub Arc<Link>);

#[async_trait]
impl ServiceAddressing for HostFirst {
    async fn assign(&self, service: &Value, old: Option<&Value>, dry_run: bool) -> StatusResult<Option<Assigned>> {
        if let Some(old) = old {
            // What the host changes on its Service comes back with the syncer.
            let cluster_ips = strings(old, "clusterIPs");
            return Ok(Some(Assigned { cluster_ips, ..Assigned::default() }));
        }
        let Some(syncer) = self.0.syncer().filter(|_| !dry_run) else { return Ok(None) };
        let mut made = service.clone();
        match syncer.create_service_on_host(&mut made).await {
            Ok(()) => {}
            Err(ApiError::Status { code, reason, message, .. }) => {
                return Err(Box::new(Status::failure(code, &reason, message)));
            }
            Err(error) => {
                let text = format!("the host cluster did not create the Service: {}", chain(&error));
                return Err(Box::new(Status::internal_error(text)));
            }
        }
        let cluster_ips = strings(&made, "clusterIPs");
        if cluster_ips.is_empty() {
            return Ok(None);
        }
        let number = |value: &Value| value.as_i64().and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
        Ok(Some(Assigned {
            cluster_ips,
            node_ports: made.array_at(&["spec", "ports"]).iter().map(|port| number(&port["nodePort"])).collect(),
            health_check_node_port: number(&made["spec"]["healthCheckNodePort"]),
        }))
    }

    /// The syncer finds a host Service without a virtual one and removes it.
    async fn release(&self, _service: &Value) {}
}

fn strings(service: &Value, key: &str) -> Vec<String> {
    service.array_at(&["spec", key]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

async fn read(mut body: RequestBody) -> StatusResult<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Box::new(Status::bad_request(format!("the request broke off: {error}"))))?;
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(data);
        }
        if bytes.len() > PROXIED_BYTES_MAX {
            let message = format!("the request is larger than {PROXIED_BYTES_MAX} bytes");
            return Err(Box::new(Status::failure(413, "RequestEntityTooLarge", message)));
        }
    }
    Ok(bytes)
}

/// What is read of the host's reason not to connect.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// Logs and connections of pods, from the host.
pub(crate) struct HostPods(pub Arc<Link>);

impl HostPods {
    async fn pass(
        &self,
        pod: &Value,
        subresource: &str,
        container: &str,
        request: Request<RequestBody>,
    ) -> StatusResult<Response<Body>> {
        let syncer = self.0.syncer();
        let host_pod = syncer.as_ref().and_then(|syncer| syncer.host_pod_for(pod)).ok_or_else(|| {
            let name = pod.str_at(&["metadata", "name"]);
            Box::new(Status::bad_request(format!("pod {name} does not run on the host yet")))
        })?;
        let (mut parts, body) = request.into_parts();
        let mut query = parts.uri.query().unwrap_or_default().to_owned();
        // The container was chosen here when the tenant left it out.
        if !container.is_empty() && !query.split('&').any(|p| p.starts_with("container=")) {
            if !query.is_empty() {
                query.push('&');
            }
            query.push_str("container=");
            query.push_str(container);
        }
        let body = read(body).await?;
        let to_host = TunnelRequest {
            method: parts.method.clone(),
            subresource,
            path: "",
            query: &query,
            headers: &parts.headers,
            body: body.into(),
            upgrade: parts.extensions.remove::<OnUpgrade>(),
            keep: parts
                .extensions
                .remove::<apiserver::activity::InFlight>()
                .map(|in_flight| Box::new(in_flight) as Box<dyn std::any::Any + Send>),
        };
        let answer = tunnel(&self.0.host_client, &host_pod, to_host)
            .await
            .map_err(|error| Box::new(Status::internal_error(chain(&error))))?;
        let (mut parts, body) = answer.into_parts();
        if (parts.status.is_client_error() || parts.status.is_server_error())
            && let Some(syncer) = syncer
        {
            // The host and its kubelet speak of the host pod.
            let text = http_body_util::Limited::new(body, REFUSAL_BYTES_MAX).collect().await;
            let text = text.map_err(|error| Box::new(Status::internal_error(error.to_string())))?.to_bytes();
            let text = String::from_utf8_lossy(&text);
            let text = syncer.names().to_virtual_text(&text, Some((&host_pod, &syncer::metadata::name_of(pod))));
            parts.headers.remove(http::header::CONTENT_LENGTH);
            return Ok(Response::from_parts(parts, Body::Full(Some(text.into()))));
        }
        // A broken connection ends the answer; its head has been sent by then.
        let chunks = body.into_data_stream().take_while(|chunk| std::future::ready(chunk.is_ok()));
        let stream = chunks.filter_map(|chunk| std::future::ready(chunk.ok()));
        Ok(Response::from_parts(parts, Body::Stream(stream.boxed())))
    }
}

#[async_trait]
impl PodBackend for HostPods {
    async fn log(&self, pod: &Value, container: &str, request: Request<RequestBody>) -> StatusResult<Response<Body>> {
        self.pass(pod, "log", container, request).await
    }

    async fn connect(
        &self,
        pod: &Value,
        subresource: &str,
        container: &str,
        request: Request<RequestBody>,
    ) -> StatusResult<Response<Body>> {
        self.pass(pod, subresource, container, request).await
    }

    /// The host pod's: a tenant may write any address into the status of a virtual pod.
    async fn address(&self, pod: &Value) -> StatusResult<IpAddr> {
        let host_pod = self.0.syncer().and_then(|syncer| syncer.host_pod_object(pod));
        let address = host_pod.and_then(|pod| pod.str_at(&["status", "podIP"]).parse().ok());
        address.ok_or_else(|| {
            let name = pod.str_at(&["metadata", "name"]);
            Box::new(Status::service_unavailable(format!("pod {name} has no address on the host yet")))
        })
    }
}
