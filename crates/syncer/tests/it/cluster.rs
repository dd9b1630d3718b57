//! A host and virtual clusters on it, and ways to look at them.

#![allow(dead_code)] // Each scenario uses some of it.

use std::time::Duration;

use apimachinery::{Value, json};
use apiserver::{ApiServer, UserInfo};
use devhost::{DevHost, DevHostConfig};
use informer::{ApiError, DeleteOptions, PatchType, Resource, Rest};
use syncer::names::NamespacedName;
use syncer::{Syncer, SyncerConfig};

pub const PODS: Resource = Resource::new("", "v1", "pods");
pub const SERVICES: Resource = Resource::new("", "v1", "services");
pub const CONFIG_MAPS: Resource = Resource::new("", "v1", "configmaps");
pub const SECRETS: Resource = Resource::new("", "v1", "secrets");
pub const NODES: Resource = Resource::new("", "v1", "nodes");
pub const NAMESPACES: Resource = Resource::new("", "v1", "namespaces");
pub const ACCOUNTS: Resource = Resource::new("", "v1", "serviceaccounts");
pub const EVENTS: Resource = Resource::new("", "v1", "events");
pub const CLAIMS: Resource = Resource::new("", "v1", "persistentvolumeclaims");
pub const VOLUMES: Resource = Resource::new("", "v1", "persistentvolumes");
pub const ENDPOINTS: Resource = Resource::new("", "v1", "endpoints");
pub const SLICES: Resource = Resource::new("discovery.k8s.io", "v1", "endpointslices");

/// One side of the border.
#[derive(Clone)]
pub struct Api(pub Rest);

impl Api {
    pub fn new(client: kube::Client) -> Api {
        Api(Rest::new(client, "test"))
    }

    pub async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Value> {
        match self.0.get(resource, namespace, name).await {
            Ok(object) => Some(object),
            Err(error) if error.is_not_found() => None,
            Err(error) => panic!("get {resource} {namespace}/{name}: {error}"),
        }
    }

    pub async fn list(&self, resource: &Resource, namespace: &str) -> Vec<Value> {
        self.0.list_as(resource, namespace, "", "").await.unwrap_or_else(|e| panic!("list {resource}: {e}"))
    }

    pub async fn create(&self, resource: &Resource, namespace: &str, object: Value) -> Value {
        self.try_create(resource, namespace, object)
            .await
            .unwrap_or_else(|e| panic!("create {resource} in {namespace}: {e}"))
    }

    pub async fn try_create(&self, resource: &Resource, namespace: &str, object: Value) -> Result<Value, ApiError> {
        self.0.create(resource, namespace, &object).await
    }

    pub async fn try_patch(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        patch: Value,
    ) -> Result<Value, ApiError> {
        self.0.patch(resource, "", namespace, name, PatchType::Merge, &patch).await
    }

    pub async fn try_delete(&self, resource: &Resource, namespace: &str, name: &str) -> Result<(), ApiError> {
        self.0.delete(resource, namespace, name, &DeleteOptions::default()).await
    }

    pub async fn patch(&self, resource: &Resource, namespace: &str, name: &str, patch: Value) -> Value {
        self.0
            .patch(resource, "", namespace, name, PatchType::Merge, &patch)
            .await
            .unwrap_or_else(|e| panic!("patch {resource} {namespace}/{name}: {e}"))
    }

    pub async fn delete(&self, resource: &Resource, namespace: &str, name: &str) {
        self.0
            .delete(resource, namespace, name, &DeleteOptions::default())
            .await
            .unwrap_or_else(|e| panic!("delete {resource} {namespace}/{name}: {e}"));
    }
}

/// A virtual cluster without a host yet.
pub struct Virtual {
    pub name: &'static str,
    pub host_namespace: String,
    pub api: Api,
    server: ApiServer,
    _controllers: controllers::Manager,
}

/// A development host. `RUST_LOG` shows what all parts do.
pub async fn host() -> DevHost {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    // Another test of this process may have done it.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    DevHost::start(DevHostConfig::default()).await.expect("the host starts")
}

impl Virtual {
    /// A virtual control plane, installed in its namespace on the host.
    pub async fn start(name: &'static str, host: &Api) -> Virtual {
        Virtual::start_with(name, host, apiserver::Config::default()).await
    }

    /// With these controllers of its own.
    pub async fn start_without(name: &'static str, host: &Api, controllers: &[&str]) -> Virtual {
        let controllers = controllers.iter().map(|c| (*c).to_owned()).collect();
        let config = controllers::ManagerConfig { controllers, ..controllers::ManagerConfig::default() };
        Virtual::make(name, host, apiserver::Config::default(), config).await
    }

    pub async fn start_with(name: &'static str, host: &Api, config: apiserver::Config) -> Virtual {
        Virtual::make(name, host, config, controllers::ManagerConfig::default()).await
    }

    async fn make(
        name: &'static str,
        host: &Api,
        config: apiserver::Config,
        manager: controllers::ManagerConfig,
    ) -> Virtual {
        let host_namespace = format!("vcluster-{name}");
        host.create(
            &NAMESPACES,
            "",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": host_namespace}}),
        )
        .await;
        host.create(
            &SERVICES,
            &host_namespace,
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": host_namespace},
                "spec": {"ports": [{"name": "https", "port": 443}]},
            }),
        )
        .await;
        host.create(
            &Resource::new("", "v1", "serviceaccounts"),
            &host_namespace,
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": (format!("vc-workload-{name}"))}}),
        )
        .await;
        let store = store::Store::in_memory(store::Options::default()).await;
        let server = ApiServer::start(config, store).await.expect("the virtual API server starts");
        let client = server.kube_client(UserInfo::admin());
        let controllers = controllers::Manager::start(client.clone(), manager).expect("the virtual controllers start");
        Virtual { name, host_namespace, api: Api::new(client), server, _controllers: controllers }
    }

    pub fn client(&self) -> kube::Client {
        self.server.kube_client(UserInfo::admin())
    }

    pub fn config(&self) -> SyncerConfig {
        let mut config = SyncerConfig::new(self.name, &self.host_namespace);
        // No DNS in these clusters.
        config.settings.dns_service = None;
        config
    }

    pub async fn sync(&self, host: &DevHost) -> Syncer {
        self.sync_with(host.client(), self.config()).await
    }

    pub async fn sync_with(&self, host: kube::Client, config: SyncerConfig) -> Syncer {
        let syncer = Syncer::start(self.client(), host, config).expect("the syncer starts");
        syncer.wait_synced().await;
        syncer
    }

    /// The host name of a virtual object.
    pub fn on_host(&self, namespace: &str, name: &str) -> NamespacedName {
        syncer::names::Names::new(self.name, self.host_namespace.as_str()).host(name, namespace)
    }
}

/// Waits until `look` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn pod(name: &str, containers: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": containers, "terminationGracePeriodSeconds": 1},
    })
}

/// A pod that is on a node already: no scheduler has to place it.
pub fn placed(mut pod: Value, node: &str) -> Value {
    pod["spec"]["nodeName"] = node.into();
    pod
}

pub async fn first_node(host: &Api) -> String {
    let nodes = host.list(&NODES, "").await;
    nodes[0].str_at(&["metadata", "name"]).to_owned()
}

pub fn simple_pod(name: &str) -> Value {
    pod(name, json!([{"name": "app", "image": "nginx"}]))
}
