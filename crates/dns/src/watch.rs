//! Keeps the names as the cluster's objects are.
//!
//! Handlers only note what changed; one task turns what has gathered into the next snapshot, so that a burst of changes
//! costs one publication.

use std::collections::HashSet;
use std::sync::Arc;

use apimachinery::json::Str;
use informer::clock::Clock;
use informer::events::{ObjectReference, Recorder};
use informer::{Cached, Change, Factory, Header, Informer, ObjectKey, Source};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::block::{self, Context};
use crate::objects::{
    CONFIG_MAPS, ConfigMap, ENDPOINT_SLICES, EndpointSlice, NAMESPACES, NODES, Node, SERVICES, Service,
};
use crate::resolv_conf::ResolvConf;
use crate::resolver::Resolver;
use crate::snapshot::{Records, Snapshot};

const BY_SERVICE: &str = "service";
const CUSTOM_NAMESPACE: &str = "kube-system";
const CUSTOM_NAME: &str = "coredns-custom";

#[derive(Default)]
struct Dirty {
    services: HashSet<ObjectKey>,
    namespaces: HashSet<Str>,
    nodes: bool,
    custom: bool,
}

struct Noted {
    dirty: Mutex<Dirty>,
    wake: Notify,
}

impl Noted {
    fn note(&self, change: impl FnOnce(&mut Dirty)) {
        change(&mut self.dirty.lock());
        self.wake.notify_one();
    }
}

struct Watch {
    resolver: Arc<Resolver>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    namespaces: Informer<Header>,
    nodes: Informer<Node>,
    custom: Informer<ConfigMap>,
    recorder: Recorder,
    cluster_zones: Vec<String>,
    resolv_conf: ResolvConf,
}

/// Watches until the factory is shut down.
pub(crate) fn start(factory: &Factory, resolver: Arc<Resolver>, cluster_zones: Vec<String>, resolv_conf: ResolvConf) {
    let noted = Arc::new(Noted { dirty: Mutex::default(), wake: Notify::new() });
    let custom = Source::namespaced(CONFIG_MAPS, CUSTOM_NAMESPACE).fields(format!("metadata.name={CUSTOM_NAME}"));
    let watch = Watch {
        resolver,
        services: factory.informer(SERVICES),
        slices: factory.informer(ENDPOINT_SLICES),
        namespaces: factory.informer(Source::all(NAMESPACES).metadata_only()),
        nodes: factory.informer(NODES),
        custom: factory.informer(custom),
        recorder: Recorder::start(factory, Clock::system(), "coredns"),
        cluster_zones,
        resolv_conf,
    };
    watch.slices.add_index(BY_SERVICE, |slice, values| {
        if !slice.service().is_empty() {
            values.push(Str::from(format!("{}/{}", slice.metadata.namespace, slice.service())));
        }
    });
    let to = Arc::clone(&noted);
    watch.services.on_change(move |change| {
        to.note(|dirty| {
            dirty.services.insert(change.object().metadata.key());
        });
    });
    let to = Arc::clone(&noted);
    watch.slices.on_change(move |change| {
        let old = if let Change::Updated { old, .. } = &change { Some(*old) } else { None };
        to.note(|dirty| {
            for slice in old.into_iter().chain([change.object()]) {
                dirty.services.insert(ObjectKey::new(slice.metadata.namespace.clone(), slice.service()));
            }
        });
    });
    let to = Arc::clone(&noted);
    watch.namespaces.on_change(move |change| {
        to.note(|dirty| {
            dirty.namespaces.insert(change.object().metadata.name.clone());
        });
    });
    let to = Arc::clone(&noted);
    watch.nodes.on_change(move |_| to.note(|dirty| dirty.nodes = true));
    let to = Arc::clone(&noted);
    watch.custom.on_change(move |_| to.note(|dirty| dirty.custom = true));

    let waiting = factory.clone();
    let cancel = factory.cancellation().clone();
    factory.spawn(async move {
        let mut snapshot = Snapshot::default();
        waiting.wait_synced().await;
        loop {
            let dirty = std::mem::take(&mut *noted.dirty.lock());
            watch.update(&mut snapshot, dirty);
            watch.resolver.set_synced();
            tokio::select! {
                () = noted.wake.notified() => {}
                () = cancel.cancelled() => return,
            }
        }
    });
}

impl Watch {
    fn update(&self, snapshot: &mut Snapshot, dirty: Dirty) {
        for key in &dirty.services {
            let records = self.services.get(key).map(|service| {
                let slices = self.slices.by_index(BY_SERVICE, &format!("{}/{}", key.namespace, key.name));
                Records::build(&service, slices.iter().map(|slice| &**slice))
            });
            snapshot.set_service(key, records);
        }
        for name in &dirty.namespaces {
            snapshot.set_namespace(name, self.namespaces.get(&ObjectKey::cluster(name.clone())).is_some());
        }
        if dirty.nodes {
            let nodes = self.nodes.list();
            let hosts = nodes.iter().filter_map(|node| node.host()).map(|(ip, name)| (ip, Str::from(name)));
            snapshot.set_hosts(hosts.collect());
        }
        if dirty.custom {
            self.compile();
        }
        let serial = u32::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
        self.resolver.publish(snapshot.clone(), serial);
    }

    /// Takes what of the tenant's ConfigMap can be done; says by an event what cannot.
    fn compile(&self) {
        let mut blocks = Vec::new();
        if let Some(map) = self.custom.get(&ObjectKey::new(CUSTOM_NAMESPACE, CUSTOM_NAME)) {
            let object = ObjectReference::new("v1", "ConfigMap", map.metadata());
            let context = Context { cluster_zones: &self.cluster_zones, resolv_conf: &self.resolv_conf, root: false };
            for (key, text) in map.data.iter() {
                if !key.ends_with(".server") {
                    let message = format!("{key} is ignored: only keys that end in .server are read");
                    self.recorder.warning(&object, "DNSConfigIgnored", message);
                    continue;
                }
                match block::compile(text, &context) {
                    Ok(compiled) => blocks.extend(compiled),
                    Err(error) => {
                        tracing::warn!(key, %error, "a DNS snippet is refused");
                        self.recorder.warning(&object, "DNSConfigRefused", format!("{key}: {error}"));
                    }
                }
            }
        }
        self.resolver.set_custom(blocks);
    }
}
