//! API aggregation: groups that another API server in the cluster has, named by an APIService with a service.
//!
//! One task per server follows the APIServices. Each one with a service gets a [`Remote`] with a task of its own, which looks
//! whether the extension server is there, says so in the object's status, and keeps what it tells about itself for discovery
//! and OpenAPI. Requests for its group and version are passed on after they were authenticated and authorized here.
//!
//! Invariants:
//! - A group that the embedding program answers ([`crate::groups`]) is never passed on; nor is the core group.
//! - Without APIServices that have a service nothing is watched but the APIServices, definitions and one ConfigMap.
//!
//! Follows: `k8s.io/kube-aggregator/pkg/apiserver`.

pub(crate) mod authentication;
mod availability;
pub(crate) mod documents;
pub(crate) mod order;
pub(crate) mod proxy;
pub(crate) mod registration;
mod remote;
pub mod resolver;
pub(crate) mod trust;

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::Value;
use apimachinery::meta::ObjectMeta;
use parking_lot::RwLock;
use tokio::sync::watch;

use self::availability::Finding;
use self::documents::Documents;
use self::remote::{Means, Spec};
use self::resolver::{Direct, ServiceResolver};
use crate::cache::{Entry, ResourceCache};
use crate::request_info::RequestInfo;
use crate::server::ApiServer;
use crate::storage::Storage;

pub use authentication::ClientTrust;
pub(crate) use remote::Remote;
pub use trust::{ProxyIdentity, TrustError};

pub(crate) const API_SERVICES: (&str, &str, &str) = ("apiregistration.k8s.io", "v1", "apiservices");

/// How often an extension server is looked at although nothing has changed.
const CHECK_PERIOD: Duration = Duration::from_secs(30);
/// How often it is asked what it has.
const REFRESH_PERIOD: Duration = Duration::from_secs(60);
/// When to look again at one that did not answer: doubles up to the period.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// When to try again to write an object of this module.
const WRITE_RETRY: Duration = Duration::from_secs(1);

/// How a server aggregates others.
#[derive(Clone)]
pub struct Options {
    /// Connects to Services.
    pub resolver: Arc<dyn ServiceResolver>,
    /// As whom this server comes; without it extension servers cannot know that it may name users.
    pub identity: Option<Arc<ProxyIdentity>>,
    /// What extension servers are told about clients and about this server.
    pub trust: Option<Arc<ClientTrust>>,
}

impl Default for Options {
    fn default() -> Self {
        Options { resolver: Arc::new(Direct), identity: None, trust: None }
    }
}

/// What is known of APIServices at one moment.
#[derive(Default)]
pub(crate) struct Table {
    remotes: BTreeMap<(String, String), Arc<Remote>>,
    /// Priorities of the group and of the version that local APIServices ask for.
    pub priorities: BTreeMap<(String, String), (i64, i64)>,
}

/// The aggregation of one server.
#[derive(Default)]
pub(crate) struct Aggregator {
    table: RwLock<Arc<Table>>,
}

impl Aggregator {
    pub fn table(&self) -> Arc<Table> {
        self.table.read().clone()
    }

    /// The extension server of a group and version.
    pub fn remote(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let table = self.table.read();
        if table.remotes.is_empty() {
            return None;
        }
        table.remotes.get(&(group.to_owned(), version.to_owned())).cloned()
    }

    /// The extension server that a request is for.
    pub fn remote_of(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        if self.table.read().remotes.is_empty() {
            return None;
        }
        if info.is_resource {
            return self.remote(&info.group, &info.version);
        }
        let mut parts = info.path.trim_matches('/').split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("apis"), Some(group), Some(version)) => self.remote(group, version),
            // A document of OpenAPI is asked of the server that has it.
            (Some("openapi"), Some("v3"), Some(_)) => {
                let name = info.path.trim_matches('/').strip_prefix("openapi/v3/")?;
                let table = self.table();
                table.remotes.values().find(|remote| remote.documents.read().v3.contains_key(name)).cloned()
            }
            _ => None,
        }
    }
}

impl Table {
    pub fn remotes(&self) -> impl Iterator<Item = &Arc<Remote>> {
        self.remotes.values()
    }
}

fn cache(storage: &Storage, group: &str, version: &str, plural: &str) -> Option<Arc<ResourceCache>> {
    storage.registry.get(group, version, plural)?.storage.as_ref().map(|storage| storage.cache.clone())
}

/// The caches that this module follows.
struct Followed {
    api_services: Arc<ResourceCache>,
    definitions: Arc<ResourceCache>,
    config_maps: Arc<ResourceCache>,
    services: Arc<ResourceCache>,
    slices: Arc<ResourceCache>,
}

impl Followed {
    fn of(storage: &Storage) -> Option<Followed> {
        let (group, version, plural) = API_SERVICES;
        Some(Followed {
            api_services: cache(storage, group, version, plural)?,
            definitions: cache(storage, crate::crd::GROUP, "v1", crate::crd::RESOURCE)?,
            config_maps: cache(storage, "", "v1", "configmaps")?,
            services: cache(storage, "", "v1", "services")?,
            slices: cache(storage, "discovery.k8s.io", "v1", "endpointslices")?,
        })
    }

    /// What an answer of an extension server depends on, as a number.
    fn state_of(&self, remote: &Remote, object: Option<u64>) -> u64 {
        let service = &remote.spec.service;
        let mut hasher = DefaultHasher::new();
        object.hash(&mut hasher);
        self.services.get(&self.services.key(&service.namespace, &service.name)).map(|e| e.revision).hash(&mut hasher);
        let own = |entry: &Entry| entry.label("kubernetes.io/service-name") == Some(service.name.as_str());
        for slice in self.slices.snapshot(&service.namespace, 0, own).entries {
            (slice.name(), slice.revision).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// Serves what is stored already. Called before the server is ready.
pub(crate) fn load(server: &ApiServer) {
    if let Some(followed) = Followed::of(server.storage()) {
        rebuild(server, &followed);
    }
}

/// Follows APIServices, definitions and the ConfigMap until the server stops.
pub(crate) async fn run(server: ApiServer) {
    let Some(followed) = Followed::of(server.storage()) else { return };
    let options = server.inner().config.aggregation.clone();
    let mut api_services = followed.api_services.subscribe();
    let mut definitions = followed.definitions.subscribe();
    let mut config_maps = followed.config_maps.subscribe();
    let mut services = followed.services.subscribe();
    let mut slices = followed.slices.subscribe();
    let mut identities = options.identity.as_ref().map(|identity| identity.replacements());
    let mut served = registration::Served::default();
    // Those that were loaded.
    for remote in server.inner().aggregator.table().remotes() {
        server.spawn(look_after(server.clone(), remote.clone()));
    }
    loop {
        api_services.borrow_and_update();
        definitions.borrow_and_update();
        config_maps.borrow_and_update();
        services.borrow_and_update();
        slices.borrow_and_update();
        for remote in rebuild(&server, &followed) {
            server.spawn(look_after(server.clone(), remote));
        }
        wake(&server, &followed);
        let mut retry = false;
        let mut note = |result: Result<(), String>| {
            if let Err(error) = result {
                tracing::warn!(error, "an object of API aggregation could not be written, will try again");
                retry = true;
            }
        };
        note(registration::sync(&server, &mut served, &followed.definitions, &followed.api_services).await);
        note(mark_local(&server, &followed).await);
        if let Some(trust) = &options.trust {
            note(authentication::sync(server.storage(), trust).await);
        }
        let has_remotes = !server.inner().aggregator.table().remotes.is_empty();
        let own_config_map = followed.config_maps.key(authentication::NAMESPACE, authentication::NAME);
        let config_map = followed.config_maps.get(&own_config_map).map(|entry| entry.revision);
        loop {
            tokio::select! {
                // Cancel-safe: all of them only wait.
                result = api_services.changed() => if result.is_err() { return } else { break },
                result = definitions.changed() => if result.is_err() { return } else { break },
                result = config_maps.changed() => {
                    if result.is_err() {
                        return;
                    }
                    if followed.config_maps.get(&own_config_map).map(|entry| entry.revision) != config_map {
                        break;
                    }
                }
                result = services.changed(), if has_remotes => {
                    if result.is_err() {
                        return;
                    }
                    wake(&server, &followed);
                }
                result = slices.changed(), if has_remotes => {
                    if result.is_err() {
                        return;
                    }
                    wake(&server, &followed);
                }
                () = replaced(identities.as_mut()) => {
                    for remote in server.inner().aggregator.table().remotes() {
                        remote.reconnect();
                        remote.kick.notify_one();
                    }
                }
                () = tokio::time::sleep(WRITE_RETRY), if retry => break,
            }
        }
    }
}

async fn replaced(identities: Option<&mut watch::Receiver<()>>) {
    if let Some(receiver) = identities
        && receiver.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Reads the APIServices anew; returns the remotes that nobody looks after yet.
fn rebuild(server: &ApiServer, followed: &Followed) -> Vec<Arc<Remote>> {
    let inner = server.inner();
    let config = &inner.config;
    let old = inner.aggregator.table();
    let means = Arc::new(Means {
        storage: server.storage().clone(),
        resolver: config.aggregation.resolver.clone(),
        identity: config.aggregation.identity.clone(),
    });
    let mut table = Table::default();
    let mut new = Vec::new();
    for entry in followed.api_services.snapshot("", 0, |_| true).entries {
        let object = entry.to_value();
        let Some(spec) = Spec::read(&object) else {
            let text = |key: &str| object.str_at(&["spec", key]).to_owned();
            let number = |key: &str| object["spec"][key].as_i64().unwrap_or_default();
            let priorities = (number("groupPriorityMinimum"), number("versionPriority"));
            table.priorities.insert((text("group"), text("version")), priorities);
            continue;
        };
        if config.groups.iter().any(|group| group.name() == spec.group && group.version() == spec.version) {
            continue;
        }
        let key = (spec.group.clone(), spec.version.clone());
        let known = old.remotes.get(&key);
        let remote = match known.filter(|known| known.spec == spec) {
            Some(known) => Arc::clone(known),
            None => {
                let documents = known.filter(|known| known.spec.service == spec.service);
                let documents = documents.map(|known| known.documents.read().clone()).unwrap_or_default();
                let remote = Arc::new(Remote::new(spec, &means, documents));
                new.push(Arc::clone(&remote));
                remote
            }
        };
        remote.set_available(availability::is_available(&object));
        table.remotes.insert(key, remote);
    }
    for (key, remote) in &old.remotes {
        if !table.remotes.get(key).is_some_and(|current| Arc::ptr_eq(current, remote)) {
            remote.stop.cancel();
        }
    }
    let published = old.remotes.len() != table.remotes.len() || !new.is_empty();
    *inner.aggregator.table.write() = Arc::new(table);
    if published {
        publish(server);
    }
    new
}

/// Puts what extension servers say about their objects into the OpenAPI documents of this one.
fn publish(server: &ApiServer) {
    let inner = server.inner();
    let table = inner.aggregator.table();
    let mut v3 = BTreeMap::new();
    let mut v2 = Vec::new();
    for remote in table.remotes() {
        let documents = remote.documents.read().clone();
        v3.extend(documents.v3.clone());
        v2.push(documents.v2.clone());
    }
    v2.retain(|fragment| !fragment.paths.is_empty());
    inner.openapi.set_remote(v3, v2);
}

/// Wakes those whose objects have changed since they were last looked at.
fn wake(server: &ApiServer, followed: &Followed) {
    for remote in server.inner().aggregator.table().remotes() {
        let object = followed.api_services.get(&followed.api_services.key("", &remote.spec.name));
        let state = followed.state_of(remote, object.map(|entry| entry.revision));
        if std::mem::replace(&mut *remote.seen.lock(), state) != state {
            remote.kick.notify_one();
        }
    }
}

/// Local APIServices are there, whatever was said about them while they were not local.
async fn mark_local(server: &ApiServer, followed: &Followed) -> Result<(), String> {
    let finding = Finding::local();
    let is_local = |object: &Value| object.at(&["spec", "service"]).is_none_or(Value::is_null);
    for entry in followed.api_services.snapshot("", 0, |_| true).entries {
        let object = entry.to_value();
        if is_local(&object) && availability::with_condition(&object, &finding).is_some() {
            availability::report(server, object.name(), None, &finding).await?;
        }
    }
    Ok(())
}

/// Looks after one extension server until it is replaced.
async fn look_after(server: ApiServer, remote: Arc<Remote>) {
    let stop = remote.stop.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = watch_over(&server, &remote) => {}
    }
}

async fn watch_over(server: &ApiServer, remote: &Remote) {
    let mut retry = RETRY_MIN;
    let mut described: Option<Instant> = None;
    let mut kicked = true;
    loop {
        if kicked {
            // Connections that are kept may lead to endpoints that are gone.
            remote.reconnect();
        }
        let finding = availability::check(server.storage(), remote).await;
        let due = described.is_none_or(|at| at.elapsed() >= REFRESH_PERIOD);
        let known = remote.documents.read().clone();
        let mut stale = !finding.is_passed();
        if finding.is_passed() && (kicked || due || known.resources.is_none()) {
            // Before the condition is true, so that whoever waits for it finds the resources.
            match documents::discover(remote, &known).await {
                Ok(found) => *remote.documents.write() = Arc::new(found),
                Err(error) => {
                    tracing::debug!(
                        error,
                        name = remote.spec.name,
                        "the resources of an extension server are not known"
                    );
                    stale = true;
                }
            }
        }
        if stale {
            let mut without = Documents::clone(&known);
            without.resources = None;
            *remote.documents.write() = Arc::new(without);
        }
        let spec = &remote.spec;
        let written = availability::report(server, &spec.name, Some(spec), &finding).await;
        if let Err(error) = &written {
            tracing::warn!(error, name = spec.name, "the status of an APIService could not be written, will try again");
        }
        if finding.is_passed() && due {
            let known = remote.documents.read().clone();
            let found = documents::describe(remote, &known).await;
            *remote.documents.write() = Arc::new(found);
            described = Some(Instant::now());
            publish(server);
        }
        let again = finding.may_pass() || written.is_err() || (finding.is_passed() && stale);
        let wait = if again { retry } else { CHECK_PERIOD };
        retry = if again { (retry * 2).min(CHECK_PERIOD) } else { RETRY_MIN };
        kicked = tokio::time::timeout(wait, remote.kick.notified()).await.is_ok();
    }
}
