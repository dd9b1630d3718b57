//! `metrics.k8s.io` in the virtual cluster, from the host's metrics server: what `kubectl top` and autoscalers read.
//!
//! Which pods and nodes are shown is decided by the virtual cluster's own objects; the host is asked for numbers only. Nothing
//! of other tenants can come along.
//!
//! Follows: vCluster `integrations.metricsServer`; `k8s.io/metrics/pkg/apis/metrics/v1beta1`.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::gvk::GroupResource as Named;
use apimachinery::status::{Status, StatusResult};
use apimachinery::{Value, json};
use apiserver::groups::{ApiGroup, GroupResource};
use apiserver::request_info::RequestInfo;
use apiserver::{ApiServer, UserInfo};
use async_trait::async_trait;
use informer::{ApiError, Resource, Rest};

use crate::host::Host;
use crate::link::Link;

const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";
const POD_METRICS: Resource = Resource::new(GROUP, VERSION, "pods");
const NODE_METRICS: Resource = Resource::new(GROUP, VERSION, "nodes");
const PODS: Resource = Resource::new("", "v1", "pods");
const NODES: Resource = Resource::new("", "v1", "nodes");

/// The group as one cluster serves it.
pub(crate) struct Metrics {
    name: String,
    host: Host,
    link: Arc<Link>,
    resources: Vec<GroupResource>,
}

impl Metrics {
    /// `None` unless the configuration asks for it.
    pub fn new(name: &str, config: &config::Config, host: &Host, link: &Arc<Link>) -> Option<Metrics> {
        let on = |key: &str| {
            let value = config.at(&format!("integrations.metricsServer.{key}"));
            value.and_then(serde_json::Value::as_bool).unwrap_or(false)
        };
        let mut resources = Vec::new();
        if on("nodes") {
            resources.push(GroupResource { name: "nodes", kind: "NodeMetrics", namespaced: false });
        }
        if on("pods") {
            resources.push(GroupResource { name: "pods", kind: "PodMetrics", namespaced: true });
        }
        let metrics = Metrics { name: name.to_string(), host: host.clone(), link: Arc::clone(link), resources };
        on("enabled").then_some(metrics)
    }

    /// What the host has measured, by name.
    async fn measured(
        &self,
        resource: &Resource,
        namespace: &str,
        labels: &str,
    ) -> StatusResult<HashMap<String, Value>> {
        let items: Vec<Value> = self.host.rest.list_as(resource, namespace, labels, "").await.map_err(unavailable)?;
        Ok(items.into_iter().map(|item| (item.str_at(&["metadata", "name"]).to_string(), item)).collect())
    }

    /// The cluster's own objects that are asked for.
    async fn wanted(&self, server: &ApiServer, resource: &Resource, info: &RequestInfo) -> StatusResult<Vec<Value>> {
        let rest = Rest::new(server.kube_client(UserInfo::admin()), "alcove");
        if !info.name.is_empty() {
            return match rest.get(resource, &info.namespace, &info.name).await {
                Ok(object) => Ok(vec![object]),
                Err(error) if error.is_not_found() => Ok(Vec::new()),
                Err(error) => Err(refused(error)),
            };
        }
        let (labels, fields) = (info.query.str("labelSelector"), info.query.str("fieldSelector"));
        rest.list_as(resource, &info.namespace, labels, fields).await.map_err(refused)
    }

    async fn pods(&self, server: &ApiServer, info: &RequestInfo) -> StatusResult<Vec<Value>> {
        let wanted = self.wanted(server, &PODS, info).await?;
        let Some(syncer) = self.link.syncer().filter(|_| !wanted.is_empty()) else { return Ok(Vec::new()) };
        let mut by_namespace: HashMap<String, HashMap<String, Value>> = HashMap::new();
        let labels = format!("{}={}", syncer::metadata::MANAGED_BY_LABEL, self.name);
        let mut out = Vec::new();
        for pod in wanted {
            let Some(host_pod) = syncer.host_pod_for(&pod) else { continue };
            if !by_namespace.contains_key(&host_pod.namespace) {
                let measured = self.measured(&POD_METRICS, &host_pod.namespace, &labels).await?;
                by_namespace.insert(host_pod.namespace.clone(), measured);
            }
            let measured = by_namespace.get(&host_pod.namespace).and_then(|of| of.get(&host_pod.name));
            out.extend(measured.map(|measured| shown("PodMetrics", &pod, measured)));
        }
        Ok(out)
    }

    async fn nodes(&self, server: &ApiServer, info: &RequestInfo) -> StatusResult<Vec<Value>> {
        let wanted = self.wanted(server, &NODES, info).await?;
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let measured = self.measured(&NODE_METRICS, "", "").await?;
        let of = |node: &Value| measured.get(node.str_at(&["metadata", "name"]));
        Ok(wanted.iter().filter_map(|node| Some(shown("NodeMetrics", node, of(node)?))).collect())
    }
}

/// The measured numbers under the object's own name and labels.
fn shown(kind: &str, object: &Value, measured: &Value) -> Value {
    let mut metadata = json!({
        "name": (object.str_at(&["metadata", "name"])),
        "creationTimestamp": (measured["metadata"]["creationTimestamp"].clone()),
    });
    for key in ["namespace", "labels"] {
        if let Some(value) = object.at(&["metadata", key]) {
            metadata[key] = value.clone();
        }
    }
    let mut out = json!({"kind": kind, "apiVersion": (format!("{GROUP}/{VERSION}")), "metadata": metadata});
    for key in ["timestamp", "window", "containers", "usage"] {
        if let Some(value) = measured.at(&[key]) {
            out[key] = value.clone();
        }
    }
    out
}

/// The tenant need not know what exactly the host says.
fn unavailable(error: ApiError) -> Box<Status> {
    tracing::warn!(error = &error as &dyn std::error::Error, "the host's metrics could not be read");
    Box::new(Status::service_unavailable("the server is currently unable to handle the request"))
}

fn refused(error: ApiError) -> Box<Status> {
    match error {
        ApiError::Status { code, reason, message, .. } => Box::new(Status::failure(code, &reason, message)),
        other => Box::new(Status::internal_error(other.to_string())),
    }
}

#[async_trait]
impl ApiGroup for Metrics {
    fn name(&self) -> &str {
        GROUP
    }

    fn version(&self) -> &str {
        VERSION
    }

    fn resources(&self) -> &[GroupResource] {
        &self.resources
    }

    async fn read(&self, server: &ApiServer, info: &RequestInfo) -> StatusResult<Value> {
        let (kind, mut items) = match info.resource.as_str() {
            "pods" => ("PodMetricsList", self.pods(server, info).await?),
            _ => ("NodeMetricsList", self.nodes(server, info).await?),
        };
        if info.name.is_empty() {
            let api_version = format!("{GROUP}/{VERSION}");
            return Ok(
                json!({"kind": kind, "apiVersion": api_version, "metadata": {}, "items": (Value::Array(items))}),
            );
        }
        let missing = || {
            let resource = Named::new(GROUP, info.resource.as_str());
            let name =
                if info.namespace.is_empty() { info.name.clone() } else { format!("{}/{}", info.namespace, info.name) };
            Box::new(Status::not_found(&resource, &name))
        };
        items.pop().ok_or_else(missing)
    }
}
