//! `alcove create NAME --upgrade --placement PLACE`: a running cluster goes from a hub to a pod of its own, or back, with its
//! data and everything that it has on the host.
//!
//! Users are turned away, the data is copied, the old control plane ends, the new one is started and waits for the copy. So
//! nothing that was acknowledged is missing, and at no time do two control planes look after the same host objects. Until
//! the new one has the data, the old one has it too and is started again when something fails.

use std::time::{Duration, Instant};

use deploy::{Placement, Release};
use k8s_openapi::api::core::v1::{Endpoints, PersistentVolumeClaim, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::clusters::Cluster;
use crate::commands::{pause, snapshot};
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::manifests::{found, poll};
use crate::operate::Operator;
use crate::release;
use crate::ui::{Step, Ui};

/// How long users may be turned away before the old control plane takes them again by itself.
const HOLD: Duration = Duration::from_secs(300);
/// How long the old control plane may take to answer at first; a sleeping one wakes.
const ANSWER: Duration = Duration::from_secs(60);

/// One move.
struct Move<'a> {
    host: &'a Host,
    cluster: &'a Cluster,
    release: &'a Release<'a>,
    timeout: Duration,
    /// Name of the copy; without one the data is in a store that both control planes use.
    id: Option<String>,
}

/// Moves the cluster to the placement of the release, which may also change its configuration.
pub async fn run(
    host: &Host,
    cluster: &Cluster,
    before: &config::Config,
    release: &Release<'_>,
    timeout: Duration,
    ui: &Ui,
) -> anyhow::Result<()> {
    let target = placement_name(release.placement);
    if pause::is_paused(host, cluster).await? {
        return Err(Failure::failed(format!("virtual cluster {} is paused", cluster.name))
            .hint(format!("run `alcove resume {}` first", cluster.name))
            .into());
    }
    let (old, new) = (before.store_type(), release.config.store_type());
    let copied = old == config::StoreType::EmbeddedDatabase || old != new;
    let id = copied.then(|| uuid::Uuid::new_v4().to_string());
    let step = ui.step(&format!("Move virtual cluster {} from {} to {target}...", cluster.name, cluster.placement));
    let this = Move { host, cluster, release, timeout, id };
    let (_folder, file) = snapshot::temporary(None)?;
    step.update("Copying its data...");
    let held = Instant::now();
    let operator = Operator::of(host, cluster, ANSWER).await?;
    operator.hold(HOLD).await?;
    let copied = this.copy(&operator, &file, held).await;
    let keys = match copied {
        Ok(keys) => keys,
        Err(error) => {
            // Without an answer it opens again by itself.
            let _ = operator.release().await;
            return Err(error);
        }
    };
    drop(operator);
    match this.carry_over(&file, &step).await {
        Ok(()) => {}
        Err(error) => {
            let back = this.back().await;
            let text = format!("{error:#}");
            let failure = Failure::failed(format!("virtual cluster {} was not moved: {text}", cluster.name));
            return Err(match back {
                Ok(()) => failure.hint(format!("it runs in placement {} as before", cluster.placement)),
                Err(back) => failure.hint(format!(
                    "it could not be started where it was either ({back:#}); its data is there, try the same command again"
                )),
            }
            .into());
        }
    }
    step.update("Tidying up where it was...");
    this.finish().await?;
    let carried = keys.map_or_else(String::new, |keys| format!(" ({keys} keys)"));
    step.done(&format!("Successfully moved virtual cluster {} to placement {target}{carried}", cluster.name));
    Ok(())
}

/// Is the cluster between two places, because who moved it has gone?
pub fn was_cut_short(cluster: &Cluster) -> bool {
    matches!(cluster.status.as_str(), hub::STOPPED | hub::AWAITS_DATA)
}

/// Brings a cluster whose move was cut short to where its data is.
pub async fn recover(host: &Host, cluster: &Cluster, timeout: Duration, ui: &Ui) -> anyhow::Result<()> {
    let (name, namespace) = (cluster.name.as_str(), cluster.namespace.as_str());
    ui.info(&format!("an earlier move of virtual cluster {name} was cut short"));
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), namespace);
    let secret = secrets.get_opt(&deploy::names::config_secret(name)).await;
    let secret = secret.map_err(|error| host::unreachable(&host.context, error))?.unwrap_or_default();
    let awaits = secret.metadata.annotations.unwrap_or_default().contains_key(deploy::AWAITS_DATA_ANNOTATION);
    let has_pod = pause::has_control_plane(host, cluster).await?;
    match (cluster.status == hub::STOPPED, has_pod, awaits) {
        // Everything has arrived in the pod.
        (true, true, false) => leave_hub(host, cluster, timeout).await,
        (true, ..) => back_to_hub(host, cluster, timeout).await,
        (false, true, _) => back_to_pod(host, cluster, timeout).await,
        (false, false, _) => Err(Failure::failed(format!("the data of virtual cluster {name} has not arrived"))
            .hint(format!("there is nothing it could come from; see the volume claims in namespace {namespace}"))
            .into()),
    }
}

/// The hub has to forget the cluster: its label and our finalizer are gone then.
async fn leave_hub(host: &Host, cluster: &Cluster, timeout: Duration) -> anyhow::Result<()> {
    pause::annotate(host, cluster, &[(deploy::MOVING_ANNOTATION, json!(deploy::MOVING_GONE))]).await?;
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let name = deploy::names::config_secret(&cluster.name);
    let left = poll(timeout, Duration::from_millis(50), async || {
        let secret = secrets.get_opt(&name).await.ok()??;
        let labelled = secret.metadata.labels.unwrap_or_default().contains_key(deploy::PLACEMENT_LABEL);
        (!labelled).then_some(())
    });
    left.await.ok_or_else(|| {
        Failure::timed_out(format!("the hub has not let go of virtual cluster {}", cluster.name))
            .hint("is the hub that ran it running? try the same command again")
            .into()
    })
}

/// The hub goes on with the data that it has.
async fn back_to_hub(host: &Host, cluster: &Cluster, timeout: Duration) -> anyhow::Result<()> {
    release::stop(host, &cluster.name, &cluster.namespace, timeout).await?;
    let marks = [(deploy::MOVING_ANNOTATION, Value::Null), (deploy::AWAITS_DATA_ANNOTATION, Value::Null)];
    pause::annotate(host, cluster, &marks).await?;
    let runs = |status: &str| matches!(status, "Running" | hub::SLEEPING);
    pause::wait_for_status(host, cluster, timeout, runs).await
}

/// The pod goes on with the data on its disk.
async fn back_to_pod(host: &Host, cluster: &Cluster, timeout: Duration) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let secret = secrets.get_opt(&deploy::names::config_secret(&cluster.name)).await;
    let secret = secret.map_err(|error| host::unreachable(&host.context, error))?;
    let labels = secret.and_then(|secret| secret.metadata.labels).unwrap_or_default();
    if labels.contains_key(deploy::PLACEMENT_LABEL) {
        pause::annotate(host, cluster, &[(deploy::AWAITS_DATA_ANNOTATION, Value::Null)]).await?;
        leave_hub(host, cluster, timeout).await?;
    }
    let services: Api<Service> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let selector = json!({"app": "vcluster", "release": cluster.name});
    let patch = Patch::Merge(json!({"spec": {"selector": selector}}));
    services.patch(&cluster.name, &PatchParams::default(), &patch).await?;
    let cluster = Cluster { placement: "dedicated", ..cluster.clone() };
    pause::start_again(host, &cluster, timeout).await
}

fn placement_name(placement: Placement) -> &'static str {
    match placement {
        Placement::Hub => "hub",
        Placement::Dedicated => "dedicated",
    }
}

impl Move<'_> {
    /// Takes the copy and reads it to its end.
    async fn copy(&self, operator: &Operator, file: &std::path::Path, held: Instant) -> anyhow::Result<Option<u64>> {
        let keys = match &self.id {
            Some(_) => {
                operator.snapshot_to(file, "").await?;
                Some(snapshot::check(file)?.1)
            }
            None => None,
        };
        if held.elapsed() > HOLD / 2 {
            return Err(
                Failure::timed_out("copying the data takes too long; users were not turned away for so long").into()
            );
        }
        Ok(keys)
    }

    /// Ends the old control plane and brings up the new one with the data.
    async fn carry_over(&self, file: &std::path::Path, step: &Step<'_>) -> anyhow::Result<()> {
        let (host, cluster) = (self.host, self.cluster);
        step.update("Stopping it where it is...");
        match self.release.placement {
            Placement::Dedicated => {
                let stop = [(deploy::MOVING_ANNOTATION, json!(deploy::MOVING_STOP))];
                pause::annotate(host, cluster, &stop).await?;
                pause::wait_for_status(host, cluster, self.timeout, |status| status == hub::STOPPED).await?;
            }
            Placement::Hub => {
                pause::scale_down_control_plane(host, cluster).await?;
                pause::wait_until_scaled_down(host, cluster, self.timeout).await?;
                self.remove_old_endpoints().await?;
            }
        }
        step.update("Starting it where it goes...");
        for mut object in release::render(self.release)? {
            if object["metadata"]["name"] == deploy::names::config_secret(self.release.name).as_str() {
                if let Some(id) = &self.id {
                    object["metadata"]["annotations"][deploy::AWAITS_DATA_ANNOTATION] = json!(id);
                }
                // The hub keeps what it has until the data has arrived.
                if self.release.placement == Placement::Dedicated {
                    object["metadata"]["labels"][deploy::PLACEMENT_LABEL] = json!(deploy::PLACEMENT_HUB);
                }
            }
            release::apply_one(host, self.release, &object).await?;
        }
        let (name, namespace) = (self.release.name, self.release.namespace);
        let there =
            Cluster { placement: placement_name(self.release.placement), status: "Running".into(), ..cluster.clone() };
        let Some(id) = &self.id else {
            return match self.release.placement {
                Placement::Hub => {
                    crate::commands::create::wait_until_running(host, name, namespace, self.timeout).await
                }
                Placement::Dedicated => release::wait_until_ready(host, name, namespace, self.timeout, step).await,
            };
        };
        match self.release.placement {
            Placement::Hub => {
                pause::wait_for_status(host, &there, self.timeout, |status| status == hub::AWAITS_DATA).await?;
            }
            Placement::Dedicated => release::wait_until_ready(host, name, namespace, self.timeout, step).await?,
        }
        step.update("Handing over the data...");
        let operator = poll(self.timeout, Duration::from_millis(100), async || {
            // The kubeconfig on the host may still be the old control plane's.
            let operator = Operator::of(host, &there, ANSWER).await.ok()?;
            let awaited = tokio::time::timeout(Duration::from_secs(5), operator.awaited()).await.ok()?.ok()?;
            (awaited == *id).then_some(operator)
        });
        let operator = operator.await.ok_or_else(|| {
            Failure::timed_out(format!("the new control plane does not answer in {} seconds", self.timeout.as_secs()))
        })?;
        operator.move_in(file, id, self.timeout).await?;
        Ok(())
    }

    /// A Service that has lost its selector keeps what its controllers wrote.
    async fn remove_old_endpoints(&self) -> anyhow::Result<()> {
        let (host, namespace) = (self.host, self.cluster.namespace.as_str());
        let failed = |error: kube::Error| Failure::failed(format!("cannot remove the old endpoints: {error}"));
        // The selector goes first, or they come back.
        let services: Api<Service> = Api::namespaced(host.client.clone(), namespace);
        let patch = Patch::Merge(json!({"spec": {"selector": null}}));
        found(services.patch(&self.cluster.name, &PatchParams::default(), &patch).await).map_err(failed)?;
        let endpoints: Api<Endpoints> = Api::namespaced(host.client.clone(), namespace);
        found(endpoints.delete(&self.cluster.name, &DeleteParams::default()).await).map_err(failed)?;
        let slices: Api<EndpointSlice> = Api::namespaced(host.client.clone(), namespace);
        let selector = format!(
            "kubernetes.io/service-name={},endpointslice.kubernetes.io/managed-by!=alcove-hub",
            self.cluster.name
        );
        for slice in slices.list(&ListParams::default().labels(&selector)).await.map_err(failed)? {
            let name = slice.metadata.name.unwrap_or_default();
            found(slices.delete(&name, &DeleteParams::default()).await).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes what only the old placement had.
    async fn finish(&self) -> anyhow::Result<()> {
        if self.release.placement == Placement::Dedicated {
            leave_hub(self.host, self.cluster, self.timeout).await?;
            return release::apply(self.host, self.release).await;
        }
        release::apply(self.host, self.release).await?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.host.client.clone(), &self.cluster.namespace);
        let own = ListParams::default()
            .labels(&format!("app=vcluster,release={},!vcluster.loft.sh/managed-by", self.cluster.name));
        let failed = |error: kube::Error| Failure::failed(format!("cannot remove the old claim: {error}"));
        for claim in claims.list(&own).await.map_err(failed)? {
            let name = claim.metadata.name.unwrap_or_default();
            found(claims.delete(&name, &DeleteParams::background()).await).map_err(failed)?;
        }
        Ok(())
    }

    /// Starts the old control plane again.
    async fn back(&self) -> anyhow::Result<()> {
        match self.release.placement {
            Placement::Dedicated => back_to_hub(self.host, self.cluster, self.timeout).await,
            Placement::Hub => back_to_pod(self.host, self.cluster, self.timeout).await,
        }
    }
}
