//! A control plane in this process: API server, controllers, and a kubelet that says what it is told.

use std::time::Duration;

use apimachinery::{Value, json};
use apiserver::{ApiServer, Config, UserInfo};
use controllers::{Manager, ManagerConfig, TokenSigner, VolumeProvisioner};
use informer::{ApiError, Header, Informer, PatchType, Resource, Rest, TreeObject};

pub const CERTIFICATE_SIGNING_REQUESTS: Resource =
    Resource::new("certificates.k8s.io", "v1", "certificatesigningrequests");
pub const CRON_JOBS: Resource = Resource::new("batch", "v1", "cronjobs");
pub const CUSTOM_RESOURCE_DEFINITIONS: Resource =
    Resource::new("apiextensions.k8s.io", "v1", "customresourcedefinitions");
pub const EVENTS: Resource = Resource::new("", "v1", "events");
pub const IP_ADDRESSES: Resource = Resource::new("networking.k8s.io", "v1", "ipaddresses");
pub const REPLICATION_CONTROLLERS: Resource = Resource::new("", "v1", "replicationcontrollers");
pub const RESOURCE_CLAIM_TEMPLATES: Resource = Resource::new("resource.k8s.io", "v1", "resourceclaimtemplates");
pub const RESOURCE_CLAIMS: Resource = Resource::new("resource.k8s.io", "v1", "resourceclaims");
pub const SERVICE_CIDRS: Resource = Resource::new("networking.k8s.io", "v1", "servicecidrs");
pub const VALIDATING_ADMISSION_POLICIES: Resource =
    Resource::new("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies");
pub const CONFIG_MAPS: Resource = Resource::new("", "v1", "configmaps");
pub const CONTROLLER_REVISIONS: Resource = Resource::new("apps", "v1", "controllerrevisions");
pub const DAEMON_SETS: Resource = Resource::new("apps", "v1", "daemonsets");
pub const CLUSTER_ROLES: Resource = Resource::new("rbac.authorization.k8s.io", "v1", "clusterroles");
pub const HORIZONTAL_POD_AUTOSCALERS: Resource = Resource::new("autoscaling", "v2", "horizontalpodautoscalers");
pub const PERSISTENT_VOLUMES: Resource = Resource::new("", "v1", "persistentvolumes");
pub const POD_DISRUPTION_BUDGETS: Resource = Resource::new("policy", "v1", "poddisruptionbudgets");
pub const RESOURCE_QUOTAS: Resource = Resource::new("", "v1", "resourcequotas");
pub const SECRETS: Resource = Resource::new("", "v1", "secrets");
pub const STORAGE_CLASSES: Resource = Resource::new("storage.k8s.io", "v1", "storageclasses");
pub const NODES: Resource = Resource::new("", "v1", "nodes");
pub const PERSISTENT_VOLUME_CLAIMS: Resource = Resource::new("", "v1", "persistentvolumeclaims");
pub const STATEFUL_SETS: Resource = Resource::new("apps", "v1", "statefulsets");
pub const DEPLOYMENTS: Resource = Resource::new("apps", "v1", "deployments");
pub const ENDPOINTS: Resource = Resource::new("", "v1", "endpoints");
pub const ENDPOINT_SLICES: Resource = Resource::new("discovery.k8s.io", "v1", "endpointslices");
pub const JOBS: Resource = Resource::new("batch", "v1", "jobs");
pub const NAMESPACES: Resource = Resource::new("", "v1", "namespaces");
pub const PODS: Resource = Resource::new("", "v1", "pods");
pub const REPLICA_SETS: Resource = Resource::new("apps", "v1", "replicasets");
pub const SERVICES: Resource = Resource::new("", "v1", "services");
pub const SERVICE_ACCOUNTS: Resource = Resource::new("", "v1", "serviceaccounts");

const DEADLINE: Duration = Duration::from_secs(30);

pub struct Cluster {
    pub server: ApiServer,
    pub rest: Rest,
    manager: Manager,
    kubelet: informer::Factory,
}

impl Cluster {
    pub async fn start() -> Cluster {
        Cluster::start_with(|config| config).await
    }

    /// Starts controllers that are configured in another way.
    pub async fn start_with(change: impl FnOnce(ManagerConfig) -> ManagerConfig) -> Cluster {
        let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).try_init();
        let store = store::Store::in_memory(store::Options::default()).await;
        let server = ApiServer::start(Config::default(), store).await.expect("a server over an empty store starts");
        let config = ManagerConfig {
            root_ca: Some("ca".into()),
            token_signer: Some(TokenSigner::new(|_| Some("token".into()))),
            volume_provisioner: Some(VolumeProvisioner::new("test/local", |request| {
                Some(json!({"hostPath": {"path": format!("/data/{}", request.volume_name)}}))
            })),
            ..ManagerConfig::default()
        };
        let manager = Manager::start(server.kube_client(UserInfo::admin()), change(config)).expect("known controllers");
        let rest = Rest::new(server.kube_client(UserInfo::admin()), "test");
        let kubelet = informer::Factory::new(rest.clone());
        Cluster { server, rest, manager, kubelet }
    }

    /// Starts a kubelet that runs every pod: ready with an address, or with the phase that the annotation `phase` names;
    /// pods that are deleted go at once.
    pub fn run_pods(&self) {
        let pods: Informer<TreeObject> = self.kubelet.informer(PODS);
        let rest = self.rest.clone();
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        pods.on_change(move |change| {
            if !change.is_deleted() {
                let _ = sender.send(change.object().clone());
            }
        });
        let ended = self.kubelet.cancellation().clone();
        self.kubelet.spawn(async move {
            let mut number = 0u32;
            while let Some(Some(pod)) = ended.run_until_cancelled(receiver.recv()).await {
                number += 1;
                let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
                if pod.metadata.is_deleting() {
                    let now = informer::DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
                    let _ = rest.delete(&PODS, namespace, name, &now).await;
                    continue;
                }
                if !matches!(pod.value.str_at(&["status", "phase"]), "" | "Pending") {
                    continue;
                }
                let phase = pod.metadata.annotations.get("phase").unwrap_or("Running");
                let ip = format!("10.0.{}.{}", number / 250, number % 250 + 1);
                let running = phase == "Running";
                let exit = if phase == "Failed" { 1 } else { 0 };
                let mut status = json!({"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [{"type": "Ready", "status": if running { "True" } else { "False" },
                        "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
                if !running {
                    status["containerStatuses"] = json!([{"name": "c", "image": "i", "imageID": "i", "restartCount": 0,
                        "ready": false, "state": {"terminated": {"exitCode": exit}}}]);
                }
                let _ =
                    rest.patch(&PODS, "status", namespace, name, PatchType::Merge, &json!({"status": status})).await;
            }
        });
    }

    pub async fn create(&self, resource: &Resource, namespace: &str, object: Value) -> Value {
        self.rest.create(resource, namespace, &object).await.unwrap_or_else(|e| panic!("create {resource}: {e}"))
    }

    /// Waits until the controllers do not look at a resource any more.
    pub async fn until_unwatched(&self, resource: &Resource) {
        let source = informer::Source::all(resource.clone());
        self.eventually("nobody watches a resource that is gone", async || {
            if self.manager.factory().watches(&source) { Err(resource.to_string()) } else { Ok(()) }
        })
        .await;
    }

    /// Creates an object of a kind that was defined a moment ago.
    pub async fn create_when_served(&self, resource: &Resource, namespace: &str, object: Value) -> Value {
        self.eventually("a kind that is served", async || {
            self.rest.create(resource, namespace, &object).await.map_err(|error| error.to_string())
        })
        .await
    }

    pub async fn list(&self, resource: &Resource, namespace: &str) -> Vec<Value> {
        self.rest.list_as(resource, namespace, "", "").await.unwrap_or_else(|e| panic!("list {resource}: {e}"))
    }

    pub async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Value> {
        match self.rest.get(resource, namespace, name).await {
            Ok(object) => Some(object),
            Err(error) if error.is_not_found() => None,
            Err(error) => panic!("get {resource} {name}: {error}"),
        }
    }

    pub async fn patch(&self, resource: &Resource, namespace: &str, name: &str, patch: Value) -> Value {
        let patched = self.rest.patch(resource, "", namespace, name, PatchType::Merge, &patch).await;
        patched.unwrap_or_else(|e| panic!("patch {resource} {name}: {e}"))
    }

    /// Waits until `condition` holds for an object.
    pub async fn until(
        &self,
        what: &str,
        resource: &Resource,
        namespace: &str,
        name: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Value {
        self.eventually(what, async || {
            let object = self.get(resource, namespace, name).await.unwrap_or_default();
            if condition(&object) { Ok(object) } else { Err(object.to_string()) }
        })
        .await
    }

    /// Waits until the objects of a resource in a namespace are as they should be.
    pub async fn until_list(
        &self,
        what: &str,
        resource: &Resource,
        namespace: &str,
        condition: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        self.eventually(what, async || {
            let all = self.list(resource, namespace).await;
            if condition(&all) { Ok(all) } else { Err(all.iter().map(|o| format!("{o}\n")).collect()) }
        })
        .await
    }

    pub async fn until_gone(&self, resource: &Resource, namespace: &str, name: &str) {
        self.until(&format!("{resource} {name} is gone"), resource, namespace, name, Value::is_null).await;
    }

    async fn eventually<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
        let began = tokio::time::Instant::now();
        loop {
            match look().await {
                Ok(found) => return found,
                Err(last) if began.elapsed() > DEADLINE => panic!("never happened: {what}; last seen:\n{last}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    pub async fn delete(&self, resource: &Resource, namespace: &str, name: &str, policy: &'static str) {
        let options = informer::DeleteOptions { propagation_policy: policy, ..Default::default() };
        let deleted: Result<(), ApiError> = self.rest.delete(resource, namespace, name, &options).await;
        deleted.unwrap_or_else(|e| panic!("delete {resource} {name}: {e}"));
    }

    pub async fn stop(self) {
        self.kubelet.shutdown().await;
        self.manager.shutdown().await;
        self.server.shutdown().await;
    }
}

/// Whether an object has an owner of that name.
pub fn owned_by(object: &Value, name: &str) -> bool {
    let header: Header = object.to().unwrap_or_default();
    header.metadata.owner_references.iter().any(|o| o.name == name)
}
