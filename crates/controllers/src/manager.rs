//! Starts the controllers that are asked for, on shared caches, and stops them together.
//!
//! Follows: `cmd/kube-controller-manager/app/controllermanager.go` (names, `--controllers` syntax).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use informer::events::Recorder;
use informer::{Clock, Factory, Rest};

use crate::context::{Context, QueueStats};
use crate::csr::SigningCa;
use crate::policy_status::PolicyChecker;
use crate::tokens::TokenSigner;
use crate::volume::VolumeProvisioner;
use crate::{
    autoscaler, cluster_role, cronjob, csr, daemonset, deployment, disruption, endpoints, gc, job, namespace, node,
    pod_gc, policy_status, quota, replicaset, resource_claim, root_ca, service_cidr, serviceaccount, statefulset,
    tokens, volume,
};

/// How a set of controllers runs.
#[derive(Clone, Debug)]
pub struct ManagerConfig {
    /// As `--controllers`: a name switches one on, `-name` one off, `*` all that are on by default. The first item that
    /// names a controller counts.
    pub controllers: Vec<String>,
    /// The CA bundle (PEM) that pods verify the API server with; without it no ConfigMap is published.
    pub root_ca: Option<String>,
    /// Signs the tokens of token Secrets; without it they stay empty.
    pub token_signer: Option<TokenSigner>,
    /// Makes volumes for claims of its StorageClasses; other classes wait for an external provisioner.
    pub volume_provisioner: Option<VolumeProvisioner>,
    /// Signs approved certificate requests; without it none is signed.
    pub cluster_signing_ca: Option<SigningCa>,
    /// Checks the expressions of admission policies.
    pub policy_checker: Option<PolicyChecker>,
    /// How many terminated pods may exist before the oldest are removed; 0 keeps all.
    pub terminated_pod_threshold: usize,
    /// How long a node may be silent before it is unreachable, as `--node-monitor-grace-period`.
    pub node_monitor_grace_period: Duration,
    pub clock: Clock,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        ManagerConfig {
            controllers: vec!["*".into()],
            root_ca: None,
            token_signer: None,
            volume_provisioner: None,
            cluster_signing_ca: None,
            policy_checker: None,
            terminated_pod_threshold: 12500,
            node_monitor_grace_period: Duration::from_secs(50),
            clock: Clock::system(),
        }
    }
}

type Start = fn(&Context);

/// Every controller: its upstream name, whether `*` includes it, and how it starts.
const CONTROLLERS: &[(&str, bool, Start)] = &[
    ("serviceaccount-controller", true, serviceaccount::start),
    ("root-ca-certificate-publisher-controller", true, root_ca::start),
    ("namespace-controller", true, namespace::start),
    ("replicaset-controller", true, replicaset::start_replica_sets),
    ("replicationcontroller-controller", true, replicaset::start_replication_controllers),
    ("deployment-controller", true, deployment::start),
    ("endpointslice-controller", true, endpoints::slices::start),
    ("endpoints-controller", true, endpoints::legacy::start),
    ("daemonset-controller", true, daemonset::start),
    ("statefulset-controller", true, statefulset::start),
    ("job-controller", true, job::start),
    ("cronjob-controller", true, cronjob::start),
    ("disruption-controller", true, disruption::start),
    ("clusterrole-aggregation-controller", true, cluster_role::start),
    ("serviceaccount-token-controller", true, tokens::start),
    ("resourcequota-controller", true, quota::start),
    ("endpointslice-mirroring-controller", true, endpoints::mirroring::start),
    ("service-cidr-controller", true, service_cidr::start),
    ("certificatesigningrequest-approving-controller", true, csr::start_approving),
    ("certificatesigningrequest-signing-controller", true, csr::start_signing),
    ("certificatesigningrequest-cleaner-controller", true, csr::start_cleaner),
    ("validatingadmissionpolicy-status-controller", true, policy_status::start),
    ("resourceclaim-controller", true, resource_claim::start),
    ("horizontal-pod-autoscaler-controller", true, autoscaler::start),
    ("persistentvolume-binder-controller", true, volume::binder::start),
    ("persistentvolumeclaim-protection-controller", true, volume::protection::start_claims),
    ("persistentvolume-protection-controller", true, volume::protection::start_volumes),
    ("volumeattributesclass-protection-controller", true, volume::protection::start_attributes_classes),
    ("ephemeral-volume-controller", true, volume::ephemeral::start),
    ("node-lifecycle-controller", true, node::lifecycle::start),
    ("taint-eviction-controller", true, node::taint_eviction::start),
    ("ttl-after-finished-controller", true, job::ttl::start),
    ("pod-garbage-collector-controller", true, pod_gc::start),
    // Last: it shares the caches that the others have started.
    ("garbage-collector-controller", true, gc::start),
];

/// Why controllers did not start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManagerError {
    #[error("{name:?} is not in the list of known controllers")]
    UnknownController { name: String },
    #[error("controller {name:?} is not supported yet")]
    NotSupported { name: String },
}

/// The names of all controllers, for help texts.
pub fn controller_names() -> impl Iterator<Item = &'static str> {
    CONTROLLERS.iter().map(|(name, ..)| *name)
}

fn enabled(name: &str, on_by_default: bool, spec: &[String]) -> bool {
    let mut star = false;
    for item in spec {
        if item == name {
            return true;
        }
        if item.strip_prefix('-') == Some(name) {
            return false;
        }
        star |= item == "*";
    }
    star && on_by_default
}

/// Upstream's older names.
const ALIASES: &[(&str, &str)] = &[
    ("csrapproving", "certificatesigningrequest-approving-controller"),
    ("csrcleaner", "certificatesigningrequest-cleaner-controller"),
    ("csrsigning", "certificatesigningrequest-signing-controller"),
    ("endpoint", "endpoints-controller"),
    ("endpointslicemirroring", "endpointslice-mirroring-controller"),
    ("garbagecollector", "garbage-collector-controller"),
    ("horizontalpodautoscaling", "horizontal-pod-autoscaler-controller"),
    ("nodelifecycle", "node-lifecycle-controller"),
    ("podgc", "pod-garbage-collector-controller"),
    ("pv-protection", "persistentvolume-protection-controller"),
    ("vac-protection", "volumeattributesclass-protection-controller"),
    ("pvc-protection", "persistentvolumeclaim-protection-controller"),
    ("replicationcontroller", "replicationcontroller-controller"),
    ("root-ca-cert-publisher", "root-ca-certificate-publisher-controller"),
];

/// Upstream's controllers that do not exist here: they may be switched off, not on.
const NOT_BUILT: &[&str] = &[
    "attachdetach",
    "bootstrapsigner",
    "bootstrap-signer",
    "cloud-node-lifecycle",
    "device-taint-eviction",
    "legacy-serviceaccount-token-cleaner",
    "node-ipam",
    "node-route",
    "nodeipam",
    "persistentvolume-attach-detach",
    "persistentvolume-expander",
    "route",
    "selinux-warning",
    "service",
    "service-lb",
    "storageversion-garbage-collector",
    "storage-version-migrator",
    "token-cleaner",
    "tokencleaner",
    "ttl",
];

/// Names with and without `-controller`, and upstream's older names, mean the same. `None` for one that is switched off
/// and does not exist here.
fn canonical(item: &str) -> Result<Option<String>, ManagerError> {
    if item == "*" {
        return Ok(Some(item.to_owned()));
    }
    let (sign, name) = item.strip_prefix('-').map_or(("", item), |name| ("-", name));
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
    let short = name.strip_suffix("-controller").unwrap_or(name);
    let known = controller_names().find(|known| *known == name || known.strip_suffix("-controller") == Some(name));
    match known {
        Some(known) => Ok(Some(format!("{sign}{known}"))),
        None if NOT_BUILT.contains(&short) && sign == "-" => Ok(None),
        None if NOT_BUILT.contains(&short) => Err(ManagerError::NotSupported { name: name.to_owned() }),
        None => Err(ManagerError::UnknownController { name: name.to_owned() }),
    }
}

/// What a controller has done since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerStats {
    pub name: &'static str,
    pub reconciles: u64,
    pub failures: u64,
    pub queue: QueueStats,
}

/// Running controllers.
pub struct Manager {
    context: Context,
}

impl Manager {
    /// Starts the controllers that `config` asks for. They wait for their caches by themselves.
    pub fn start(client: kube::Client, config: ManagerConfig) -> Result<Manager, ManagerError> {
        let rest = Rest::new(client, "kube-controller-manager");
        Manager::start_on(Factory::new(rest), config)
    }

    /// The same on a factory that others share; [`Manager::shutdown`] ends that too.
    pub fn start_on(factory: Factory, config: ManagerConfig) -> Result<Manager, ManagerError> {
        let spec =
            config.controllers.iter().filter_map(|item| canonical(item).transpose()).collect::<Result<Vec<_>, _>>()?;
        let recorder = Recorder::start(&factory, config.clock.clone(), "kube-controller-manager");
        let context = Context {
            rest: factory.rest().clone(),
            factory,
            clock: config.clock.clone(),
            recorder,
            config: Arc::new(config),
            stats: Arc::default(),
        };
        for (name, on_by_default, start) in CONTROLLERS {
            if enabled(name, *on_by_default, &spec) {
                start(&context);
            }
        }
        Ok(Manager { context })
    }

    pub fn factory(&self) -> &Factory {
        &self.context.factory
    }

    pub fn stats(&self) -> Vec<ControllerStats> {
        let all = self.context.stats.lock();
        all.iter()
            .map(|running| ControllerStats {
                name: running.name,
                reconciles: running.workers.reconciles.load(Ordering::Relaxed),
                failures: running.workers.failures.load(Ordering::Relaxed),
                queue: (running.queue)(),
            })
            .collect()
    }

    /// Ends all controllers and waits for the work that is under way.
    pub async fn shutdown(self) {
        self.context.factory.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_switched_as_upstream_does() {
        for (spec, on_by_default, want) in [
            (&["*"][..], true, true),
            (&["*"], false, false),
            (&["*", "-a"], true, false),
            (&["-a", "a"], true, false),
            (&["a"], false, true),
            (&["b"], true, false),
            (&[], true, false),
        ] {
            let spec: Vec<String> = spec.iter().map(|s| (*s).to_owned()).collect();
            assert_eq!(enabled("a", on_by_default, &spec), want, "{spec:?}");
        }
    }

    #[test]
    fn unknown_controllers_are_refused_by_name() {
        assert_eq!(canonical("-namespace"), Ok(Some("-namespace-controller".to_owned())));
        assert_eq!(canonical("nodelifecycle"), Ok(Some("node-lifecycle-controller".to_owned())));
        assert_eq!(canonical("-nodeipam"), Ok(None));
        assert_eq!(canonical("nodeipam"), Err(ManagerError::NotSupported { name: "nodeipam".into() }));
        assert_eq!(canonical("nmespace"), Err(ManagerError::UnknownController { name: "nmespace".into() }));
    }
}
