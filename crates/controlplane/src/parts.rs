//! What works on the API of a cluster: controllers and syncer. Of several replicas one runs them, the leader.
//!
//! Invariants:
//! - A replica that does not lead changes nothing by itself, but knows the host: requests that need it (logs, exec, addresses
//!   of new Services) are answered by every replica.
//! - A replica that loses its leadership has ended its work before another may begin: it gives up `renew_deadline` after its
//!   last renewal, others wait for `lease_duration`.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use apiserver::health::HealthCheck;
use apiserver::metrics::MetricsSource;
use apiserver::{ApiServer, UserInfo};
use async_trait::async_trait;
use config::Config;
use controllers::{ControllerStats, Manager, ManagerConfig};
use informer::leader::LeaderConfig;
use informer::{Backoff, Clock, Rest};
use parking_lot::RwLock;
use syncer::{Syncer, SyncerConfig};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::StartError;
use crate::certificates::Certificates;
use crate::charts::Charts;
use crate::host::{Host, HostService};
use crate::init_manifests::InitManifests;
use crate::kubeconfigs::Kubeconfigs;
use crate::link::Link;
use crate::operations::Operations;
use crate::snapshots::AutoSnapshots;

/// What runs at the moment.
#[derive(Default)]
pub(crate) struct State {
    manager: RwLock<Option<Arc<Manager>>>,
    syncer: RwLock<Option<Arc<Syncer>>>,
    /// `None` when there is nobody to elect from.
    leads: RwLock<Option<bool>>,
}

/// What the parts are started with, as often as it takes.
pub(crate) struct Parts {
    pub name: String,
    pub config: Arc<Config>,
    pub server: ApiServer,
    pub certificates: Arc<Certificates>,
    pub public_url: String,
    pub host_version: Option<(u32, u32)>,
    pub store: store::Store,
    pub operations: Arc<Operations>,
    pub host: Option<(Host, HostService, Arc<Link>)>,
    pub state: Arc<State>,
    /// kube-controller-manager and kube-scheduler run: ours do not.
    pub upstream: bool,
    /// The `helm` program, and where it reaches the API.
    pub helm: Option<(PathBuf, String)>,
}

/// Parts that work.
pub(crate) struct Working {
    manager: Option<Arc<Manager>>,
    scheduler: Option<scheduler::driver::Scheduler>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

fn user(name: &str) -> UserInfo {
    UserInfo::new(name, [apiserver::authn::SYSTEM_MASTERS])
}

impl Parts {
    /// Makes the syncer that only watches, and lets requests use it.
    pub async fn stand_by(&self) -> Result<(), StartError> {
        let Some((host, _, link)) = &self.host else { return Ok(()) };
        let mut config = SyncerConfig::new(&self.name, &host.namespace);
        config.names = crate::settings::names(&self.name, &host.namespace, &self.config);
        config.settings = crate::settings::settings(&self.name, &self.config, host.own_image.as_deref())?;
        config.settings.host_version = self.host_version;
        self.look_for_claims(host, &mut config.settings).await;
        config.mappings = Some(Arc::new(crate::mappings::InStore(self.store.clone())));
        let client = self.server.kube_client(user("system:vcluster-syncer"));
        let syncer = Arc::new(Syncer::standby(client, host.client.clone(), config)?);
        link.set(&syncer);
        *self.state.syncer.write() = Some(syncer);
        Ok(())
    }

    /// Resource claims need `resource.k8s.io/v1` on both sides. A watch of what is not there would never be complete, and
    /// nothing would be synced.
    async fn look_for_claims(&self, host: &Host, settings: &mut syncer::settings::Settings) {
        const CLAIMS: (&str, &str) = ("resource.k8s.io", "v1");
        let keys = settings.claim_keys();
        if keys.is_empty() && settings.host_version.is_some_and(|version| version >= (1, 34)) {
            return;
        }
        settings.host_lacks_claims = !host.serves(CLAIMS.0, CLAIMS.1).await;
        // Only upstream's API server can be an older one.
        let lacking = if settings.host_lacks_claims {
            "the host"
        } else if self.upstream && !keys.is_empty() {
            let tenants = Rest::new(self.server.kube_client(user("system:vcluster-syncer")), "alcove");
            if crate::host::serves(&tenants, CLAIMS.0, CLAIMS.1).await {
                return;
            }
            "the virtual cluster"
        } else {
            return;
        };
        settings.leave_out_claims();
        if !keys.is_empty() {
            let keys = keys.join(", ");
            tracing::warn!(keys, "{lacking} does not serve resource.k8s.io/v1: these keys have no effect");
        }
    }

    /// Starts to work. [`Parts::stand_by`] has been called.
    pub fn work(&self) -> Result<Working, StartError> {
        let manager = if self.upstream {
            None
        } else {
            let client = self.server.kube_client(user("system:kube-controller-manager"));
            Some(Arc::new(Manager::start(client, self.manager_config())?))
        };
        self.state.manager.write().clone_from(&manager);
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        if let Some(syncer) = &*self.state.syncer.read() {
            syncer.activate();
        }
        self.hand_out(&tasks, cancel.clone());
        let snapshots = AutoSnapshots {
            name: self.name.clone(),
            config: Arc::clone(&self.config),
            operations: Arc::clone(&self.operations),
            host: self.host.as_ref().map(|(host, ..)| host.clone()),
        };
        tasks.spawn(snapshots.run(cancel.clone()));
        let manifests = InitManifests {
            name: self.name.clone(),
            host_namespace: self.host.as_ref().map(|(host, ..)| host.namespace.clone()).unwrap_or_default(),
            config: Arc::clone(&self.config),
            server: self.server.clone(),
            charts: self.helm.as_ref().map(|(program, server)| Charts {
                program: program.clone(),
                server: server.clone(),
                certificates: Arc::clone(&self.certificates),
            }),
        };
        tasks.spawn(manifests.run(cancel.clone()));
        Ok(Working { manager, scheduler: self.scheduler(), cancel, tasks })
    }

    /// Keeps the kubeconfigs on the host right.
    pub fn hand_out(&self, tasks: &TaskTracker, cancel: CancellationToken) {
        let Some((host, service, _)) = &self.host else { return };
        let kubeconfigs = Kubeconfigs {
            name: self.name.clone(),
            config: Arc::clone(&self.config),
            certificates: Arc::clone(&self.certificates),
            public_url: self.public_url.clone(),
            host: host.clone(),
            owner: service.uid.clone(),
            server: self.server.clone(),
        };
        tasks.spawn(kubeconfigs.run(cancel));
    }

    /// The scheduler for pods that are placed inside the virtual cluster.
    fn scheduler(&self) -> Option<scheduler::driver::Scheduler> {
        let config = scheduler::driver::Config::default();
        let of_host = &self.config.sync.to_host.pods.hybrid_scheduling.host_schedulers;
        if self.upstream || !self.config.virtual_scheduler() || of_host.contains(&config.scheduler_name) {
            return None;
        }
        let client = self.server.kube_client(user("system:kube-scheduler"));
        Some(scheduler::driver::Scheduler::start(client, config, Clock::system()))
    }

    /// Ends the work in the order in which it could do harm: what writes to the host first.
    pub async fn rest(&self, working: Option<Working>) {
        let syncer = self.state.syncer.write().take();
        if let Some(working) = &working {
            working.cancel.cancel();
        }
        if let Some(syncer) = syncer {
            syncer.shutdown().await;
        }
        if let Some(working) = working {
            *self.state.manager.write() = None;
            if let Some(scheduler) = &working.scheduler {
                scheduler.shutdown().await;
            }
            if let Some(manager) = &working.manager {
                manager.factory().shutdown().await;
            }
            working.tasks.close();
            working.tasks.wait().await;
        }
    }

    fn manager_config(&self) -> ManagerConfig {
        let file = |name: &str| self.certificates.file(name);
        ManagerConfig {
            root_ca: Some(file("server-ca.crt")),
            cluster_signing_ca: Some(controllers::SigningCa {
                certificate_pem: file("client-ca.crt"),
                key_pem: file("client-ca.key"),
            }),
            token_signer: token_signer(&self.server),
            policy_checker: Some(policy_checker(&self.server)),
            controllers: controller_list(&self.config, self.host.is_some()),
            // The syncer tells of a host's nodes only what changes: they renew no lease here.
            node_monitor_grace_period: match self.host {
                Some(_) => HOST_NODE_GRACE,
                None => ManagerConfig::default().node_monitor_grace_period,
            },
            ..Default::default()
        }
    }

    /// Works whenever this replica leads, until `cancel`.
    pub async fn run_elected(self: Arc<Self>, election: LeaderConfig, cancel: CancellationToken) {
        let Some((host, ..)) = &self.host else { return };
        *self.state.leads.write() = Some(false);
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10), Duration::from_secs(60));
        while !cancel.is_cancelled() {
            let parts = Arc::clone(&self);
            let lead = move |leading: CancellationToken| async move {
                *parts.state.leads.write() = Some(true);
                match parts.work() {
                    Ok(working) => {
                        leading.cancelled().await;
                        parts.rest(Some(working)).await;
                    }
                    Err(error) => {
                        tracing::error!(error = &error as &dyn std::error::Error, "the leader cannot work");
                        parts.rest(None).await;
                    }
                }
                *parts.state.leads.write() = Some(false);
            };
            informer::leader::run(host.rest.clone(), Clock::system(), election.clone(), cancel.clone(), lead).await;
            if cancel.is_cancelled() {
                break;
            }
            if let Err(error) = self.stand_by().await {
                tracing::error!(error = &error as &dyn std::error::Error, "the syncer did not start");
            }
            tokio::select! {
                // Cancel-safe: both only wait.
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
        self.rest(None).await;
    }
}

/// How long a node of the host may be silent here. Whether it is well, the host says.
const HOST_NODE_GRACE: Duration = Duration::from_secs(3600);

/// Tells of policies what the server finds odd about their types.
fn policy_checker(server: &ApiServer) -> controllers::PolicyChecker {
    let server = server.clone();
    controllers::PolicyChecker::new(move |policy| {
        let remarks = server.policy_remarks(policy).into_iter();
        remarks.map(|r| controllers::ExpressionWarning { field_ref: r.field, warning: r.text }).collect()
    })
}

/// Signs the tokens of Secrets with the server's own key.
fn token_signer(server: &ApiServer) -> Option<controllers::TokenSigner> {
    let authority = server.inner().config.tokens.clone()?;
    Some(controllers::TokenSigner::new(move |subject| {
        authority
            .issue_legacy(&subject.namespace, &subject.service_account, &subject.service_account_uid, &subject.secret)
            .inspect_err(|error| tracing::warn!(error, "a token could not be signed"))
            .ok()
    }))
}

/// Which controllers run: what looks after nodes and binds volumes is the host's, unless pods are scheduled here.
fn controller_list(config: &Config, has_host: bool) -> Vec<String> {
    let mut list = vec!["*"];
    if has_host && !config.virtual_scheduler() {
        list.extend(["-node-lifecycle-controller", "-persistentvolume-binder-controller"]);
    }
    // With templates alone the host makes the claims.
    let to_host = &config.sync.to_host;
    if has_host && to_host.resource_claim_templates.enabled && !to_host.resource_claims.enabled {
        list.push("-resourceclaim-controller");
    }
    list.into_iter().map(str::to_string).collect()
}

/// The election among the replicas of a cluster; the timings are ours unless the configuration has others.
pub(crate) fn election(name: &str, namespace: &str, identity: &str, config: &Config) -> LeaderConfig {
    let lease = syncer::names::safe_concat(&["vcluster", name, "controller"]);
    let mut election = LeaderConfig::new(namespace, &lease, &format!("{identity}-external-vcluster-controller"));
    // A lost leader is replaced within 15 s: the lease, a retry, and the start of the parts.
    (election.lease_duration, election.renew_deadline, election.retry_period) =
        (Duration::from_secs(10), Duration::from_secs(7), Duration::from_secs(2));
    let configured = &config.control_plane.stateful_set.high_availability;
    for (key, seconds, duration) in [
        ("leaseDuration", configured.lease_duration, &mut election.lease_duration),
        ("renewDeadline", configured.renew_deadline, &mut election.renew_deadline),
        ("retryPeriod", configured.retry_period, &mut election.retry_period),
    ] {
        let is_set = config.overrides().pointer(&format!("/controlPlane/statefulSet/highAvailability/{key}")).is_some();
        if is_set && seconds > 0 {
            *duration = Duration::from_secs(seconds);
        }
    }
    // As client-go demands: whoever could not renew stops before others begin.
    election.renew_deadline = election.renew_deadline.min(election.lease_duration.mul_f64(0.9));
    election.retry_period = election.retry_period.min(election.renew_deadline.mul_f64(0.5));
    election
}

/// `/readyz`: has the syncer seen both sides? A host that is away later does not make the cluster unready.
pub(crate) struct SyncerCheck(pub Arc<State>);

#[async_trait]
impl HealthCheck for SyncerCheck {
    fn name(&self) -> &str {
        "syncer"
    }

    async fn check(&self) -> Result<(), String> {
        let leads = *self.0.leads.read();
        match (&*self.0.syncer.read(), leads) {
            (Some(syncer), _) if syncer.has_started() => Ok(()),
            (Some(_), _) => Err("the syncer has not seen both clusters yet".into()),
            // Between two syncers, for a moment.
            (None, Some(_)) => Ok(()),
            (None, None) => Err("the syncer has not started".into()),
        }
    }
}

/// `/metrics/syncer`.
pub(crate) struct SyncerMetrics(pub Arc<State>);

impl MetricsSource for SyncerMetrics {
    fn name(&self) -> &str {
        "syncer"
    }

    fn render(&self, out: &mut String) {
        if let Some(syncer) = &*self.0.syncer.read() {
            out.push_str(&syncer.metrics());
            let (host, own) = syncer.requests();
            let _ = writeln!(out, "alcove_syncer_requests_total{{side=\"host\"}} {host}");
            let _ = writeln!(out, "alcove_syncer_requests_total{{side=\"virtual\"}} {own}");
        }
        if let Some(leads) = *self.0.leads.read() {
            let _ = writeln!(out, "leader_election_master_status{{name=\"controller\"}} {}", u8::from(leads));
        }
    }
}

/// `/metrics/controller-manager`.
pub(crate) struct ControllerMetrics(pub Arc<State>);

impl MetricsSource for ControllerMetrics {
    fn name(&self) -> &str {
        "controller-manager"
    }

    fn render(&self, out: &mut String) {
        let Some(manager) = self.0.manager.read().clone() else { return };
        let stats = manager.stats();
        let metrics: [(&str, &str, &str, fn(&ControllerStats) -> u64); 5] = [
            ("alcove_controller_reconciles_total", "counter", "Objects that controllers have worked on.", |s| {
                s.reconciles
            }),
            ("alcove_controller_failures_total", "counter", "Work that failed and was tried again.", |s| s.failures),
            ("workqueue_depth", "gauge", "[STABLE] Current depth of workqueue", |s| s.queue.depth as u64),
            ("workqueue_adds_total", "counter", "[STABLE] Total number of adds handled by workqueue", |s| s.queue.adds),
            ("workqueue_retries_total", "counter", "[STABLE] Total number of retries handled by workqueue", |s| {
                s.queue.retries
            }),
        ];
        for (metric, kind, help, value) in metrics {
            let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} {kind}");
            for controller in &stats {
                let _ = writeln!(out, "{metric}{{name=\"{}\"}} {}", controller.name, value(controller));
            }
        }
    }
}

/// `/metrics/process`: this process, as Prometheus's client libraries tell it.
pub(crate) struct ProcessMetrics;

impl MetricsSource for ProcessMetrics {
    fn name(&self) -> &str {
        "process"
    }

    fn render(&self, out: &mut String) {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        for (metric, key) in [("process_resident_memory_bytes", "VmRSS:"), ("process_virtual_memory_bytes", "VmSize:")]
        {
            if let Some(kib) = kib(key) {
                let _ = writeln!(out, "# TYPE {metric} gauge\n{metric} {}", kib * 1024);
            }
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            let _ = writeln!(out, "# TYPE process_open_fds gauge\nprocess_open_fds {}", files.count());
        }
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // Fields 14 and 15, after the name in parentheses; a tick is 10 ms on Linux.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        if let (Some(Ok(own)), Some(Ok(system))) =
            (fields.get(11).map(|f| f.parse::<u64>()), fields.get(12).map(|f| f.parse::<u64>()))
        {
            let seconds = (own + system) as f64 / 100.0;
            let _ = writeln!(out, "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {seconds}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elections_have_our_timings_unless_others_are_configured() {
        for (text, want) in [
            ("", (10, 7, 2)),
            (
                "controlPlane: {statefulSet: {highAvailability: {leaseDuration: 60, renewDeadline: 40, retryPeriod: 15}}}",
                (60, 40, 15),
            ),
            ("controlPlane: {statefulSet: {highAvailability: {leaseDuration: 20}}}", (20, 7, 2)),
        ] {
            let config = Config::from_yaml("t", text).unwrap();
            let election = election("team-a", "host", "team-a-0", &config);
            let seconds = |duration: Duration| duration.as_secs();
            let got =
                (seconds(election.lease_duration), seconds(election.renew_deadline), seconds(election.retry_period));
            assert_eq!(got, want, "{text}");
            assert_eq!(election.name, "vcluster-team-a-controller");
            assert_eq!(election.identity, "team-a-0-external-vcluster-controller");
        }
    }
}
