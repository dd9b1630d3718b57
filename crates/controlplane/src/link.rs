//! Where the API server of a virtual cluster asks the host: new Services, and what only a pod's node knows.
//!
//! The API server is started before the syncer that answers for it. Until then Services are stored as they come (the syncer
//! gives them their address later) and pods cannot be looked into.

use std::sync::{Arc, OnceLock, Weak};

use apimachinery::Value;
use apimachinery::status::{Status, StatusResult};
use apiserver::body::{Body, RequestBody};
use apiserver::hooks::{Reservation, WriteHook};
use apiserver::pods::PodBackend;
use apiserver::registry::Resource;
use apiserver::storage::Storage;
use async_trait::async_trait;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use informer::ApiError;
use syncer::Syncer;

/// The host behind a virtual cluster.
pub(crate) struct Link {
    host_client: kube::Client,
    /// Weak: the syncer holds a client of the server that holds this.
    syncer: OnceLock<Weak<Syncer>>,
}

impl Link {
    pub fn new(host_client: kube::Client) -> Arc<Link> {
        Arc::new(Link { host_client, syncer: OnceLock::new() })
    }

    pub fn set(&self, syncer: &Arc<Syncer>) {
        // Set once, right after both exist.
        let _ = self.syncer.set(Arc::downgrade(syncer));
    }

    fn syncer(&self) -> Option<Arc<Syncer>> {
        self.syncer.get()?.upgrade()
    }

    fn host_path(&self, pod: &Value, subresource: &str) -> StatusResult<String> {
        let host_pod = self.syncer().and_then(|syncer| syncer.host_pod_for(pod)).ok_or_else(|| {
            let name = pod.str_at(&["metadata", "name"]);
            Box::new(Status::bad_request(format!("pod {name} does not run on the host yet")))
        })?;
        Ok(format!("/api/v1/namespaces/{}/pods/{}/{subresource}", host_pod.namespace, host_pod.name))
    }
}

/// Creates the host Service before the virtual one is stored, so that both have one address and the host's refusal reaches
/// the tenant at once.
pub(crate) struct HostFirst(pub Arc<Link>);

#[async_trait]
impl WriteHook for HostFirst {
    fn handles(&self, resource: &Resource, subresource: &str) -> bool {
        subresource.is_empty() && resource.gvk.kind == "Service" && resource.gvk.group.is_empty()
    }

    async fn before_create(
        &self,
        _storage: &Arc<Storage>,
        _resource: &Resource,
        object: &mut Value,
        dry_run: bool,
    ) -> StatusResult<Option<Box<dyn Reservation>>> {
        let Some(syncer) = self.0.syncer().filter(|_| !dry_run) else { return Ok(None) };
        match syncer.create_service_on_host(object).await {
            // What is not stored after all is removed by the syncer, which finds a host object without a virtual one.
            Ok(()) => Ok(None),
            Err(ApiError::Status { code, reason, message, .. }) => {
                Err(Box::new(Status::failure(code, &reason, message)))
            }
            Err(error) => {
                let mut text = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(error) = cause {
                    text = format!("{text}: {error}");
                    cause = error.source();
                }
                Err(Box::new(Status::internal_error(format!("the host cluster did not create the Service: {text}"))))
            }
        }
    }
}

/// Logs and connections of pods, from the host.
pub(crate) struct HostPods(pub Arc<Link>);

#[async_trait]
impl PodBackend for HostPods {
    async fn log(&self, pod: &Value, container: &str, request: Request<RequestBody>) -> StatusResult<Response<Body>> {
        let mut path = self.0.host_path(pod, "log")?;
        let query = request.uri().query().unwrap_or_default();
        let mut separator = '?';
        let named = query.split('&').any(|pair| pair.starts_with("container="));
        if !query.is_empty() {
            path.push(separator);
            path.push_str(query);
            separator = '&';
        }
        if !named && !container.is_empty() {
            path.push(separator);
            path.push_str("container=");
            path.push_str(container);
        }
        let failed =
            |text: String| Box::new(Status::internal_error(format!("the host cluster did not answer: {text}")));
        let to_host =
            Request::get(path).body(kube::client::Body::empty()).map_err(|error| failed(error.to_string()))?;
        let answer = self.0.host_client.send(to_host).await.map_err(|error| failed(error.to_string()))?;
        let (parts, body) = answer.into_parts();
        let chunks = body.into_data_stream().take_while(|chunk| std::future::ready(chunk.is_ok()));
        let stream = chunks.filter_map(|chunk| std::future::ready(chunk.ok()));
        let mut response = Response::builder().status(parts.status);
        if let Some(kind) = parts.headers.get(http::header::CONTENT_TYPE) {
            response = response.header(http::header::CONTENT_TYPE, kind);
        }
        response.body(Body::Stream(stream.boxed())).map_err(|error| failed(error.to_string()))
    }

    async fn connect(
        &self,
        _pod: &Value,
        subresource: &str,
        _container: &str,
        _path: &str,
        _request: Request<RequestBody>,
    ) -> StatusResult<Response<Body>> {
        let message = format!("{subresource} into a pod on the host is not supported yet");
        Err(Box::new(Status::failure(501, "NotImplemented", message)))
    }
}
