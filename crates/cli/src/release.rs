//! The objects of a release on its host: applying them, taking away what an earlier configuration had, waiting for the pod.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deploy::{Placement, Release};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::host::Host;
use crate::manifests::{self, found, poll};
use crate::ui::Step;

/// Kinds that `deploy` renders, by apiVersion, kind, plural and whether they are in a namespace.
const KINDS: &[(&str, &str, &str, bool)] = &[
    ("apps/v1", "StatefulSet", "statefulsets", true),
    ("apps/v1", "Deployment", "deployments", true),
    ("apps/v1", "DaemonSet", "daemonsets", true),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", true),
    ("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors", true),
    ("networking.k8s.io/v1", "Ingress", "ingresses", true),
    ("gateway.networking.k8s.io/v1", "TLSRoute", "tlsroutes", true),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", true),
    ("v1", "Service", "services", true),
    ("v1", "Secret", "secrets", true),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", true),
    ("rbac.authorization.k8s.io/v1", "Role", "roles", true),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", false),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", false),
    ("v1", "ServiceAccount", "serviceaccounts", true),
    ("v1", "ResourceQuota", "resourcequotas", true),
    ("v1", "LimitRange", "limitranges", true),
];

/// Renders the release or says which part of the configuration cannot be rendered.
pub fn render(release: &Release<'_>) -> anyhow::Result<Vec<Value>> {
    deploy::host_objects(release)
        .map_err(|error| Failure::invalid(format!("the configuration is not valid\n{error}")).into())
}

/// Applies all objects, then removes what only an earlier configuration had.
pub async fn apply(host: &Host, release: &Release<'_>) -> anyhow::Result<()> {
    let objects = render(release)?;
    for object in &objects {
        apply_one(host, release, object).await?;
    }
    prune(host, release, &objects).await
}

/// Applies one object of the release.
pub async fn apply_one(host: &Host, release: &Release<'_>, object: &Value) -> anyhow::Result<()> {
    manifests::apply(&host.client, &owned(object, release), release.namespace).await.map(drop)
}

/// What the user added carries no mark of the release; Helm would refuse to take it over.
fn owned(object: &Value, release: &Release<'_>) -> Value {
    let mut object = object.clone();
    if object["metadata"]["labels"]["app.kubernetes.io/managed-by"].is_null() {
        object["metadata"]["labels"]["app.kubernetes.io/managed-by"] = json!("Helm");
        for (key, value) in deploy::ownership(release.name, release.namespace) {
            object["metadata"]["annotations"][key] = json!(value);
        }
    }
    object
}

fn identity(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    (text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// Deletes objects of the release that are not among `wanted`. Synced objects are the syncer's and stay.
async fn prune(host: &Host, release: &Release<'_>, wanted: &[Value]) -> anyhow::Result<()> {
    let wanted: BTreeSet<(String, String)> = wanted.iter().map(identity).collect();
    let params =
        ListParams::default().labels(&format!("{},!vcluster.loft.sh/managed-by", deploy::selector(release.name)));
    for (api_version, kind, plural, namespaced) in KINDS {
        let api = api(host, api_version, kind, plural, namespaced.then_some(release.namespace));
        // A host without the kind, or a user who may not see it, has none of it.
        let Ok(items) = api.list(&params).await else { continue };
        for item in items {
            let name = item.metadata.name.clone().unwrap_or_default();
            let annotations = item.metadata.annotations.clone().unwrap_or_default();
            // Another release of this name, in another namespace.
            let elsewhere = !namespaced
                && annotations.get("meta.helm.sh/release-namespace").is_some_and(|other| other != release.namespace);
            if elsewhere || wanted.contains(&(kind.to_string(), name.clone())) || name.starts_with("sh.helm.release.") {
                continue;
            }
            found(api.delete(&name, &DeleteParams::background()).await)
                .map_err(|error| Failure::failed(format!("cannot delete {kind} {name}: {error}")))?;
        }
    }
    Ok(())
}

fn api(host: &Host, api_version: &str, kind: &str, plural: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = ApiResource {
        group: group.to_string(),
        version: version.to_string(),
        api_version: api_version.to_string(),
        kind: kind.to_string(),
        plural: plural.to_string(),
    };
    match namespace {
        Some(namespace) => Api::namespaced_with(host.client.clone(), namespace, &resource),
        None => Api::all_with(host.client.clone(), &resource),
    }
}

/// Does a hub serve this host? The development host has one; on others it is a Deployment.
pub async fn placement_of(host: &Host) -> Placement {
    if host.context == crate::host::DEVELOPMENT_CONTEXT {
        return Placement::Hub;
    }
    match hubs(host).await {
        Ok(hubs) if !hubs.is_empty() => Placement::Hub,
        _ => Placement::Dedicated,
    }
}

/// Namespace and name of the hubs that are installed.
pub async fn hubs(host: &Host) -> kube::Result<Vec<(String, String)>> {
    let deployments: Api<Deployment> = Api::all(host.client.clone());
    let params = ListParams::default().labels(&format!("app={}", deploy::HUB_APP));
    let list = deployments.list(&params).await?;
    let name = |deployment: Deployment| {
        let metadata = deployment.metadata;
        (metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default())
    };
    Ok(list.items.into_iter().map(name).collect())
}

/// Until all replicas run the newest revision and are ready. What keeps the pods from it is said meanwhile.
pub async fn wait_until_ready(
    host: &Host,
    name: &str,
    namespace: &str,
    timeout: Duration,
    step: &Step<'_>,
) -> anyhow::Result<()> {
    wait_until_deployed(host, name, namespace, "vcluster", timeout, step).await
}

/// [`wait_until_ready`] of pods with another label `app`.
pub async fn wait_until_deployed(
    host: &Host,
    name: &str,
    namespace: &str,
    app: &str,
    timeout: Duration,
    step: &Step<'_>,
) -> anyhow::Result<()> {
    let sets: Api<StatefulSet> = Api::namespaced(host.client.clone(), namespace);
    let deployments: Api<Deployment> = Api::namespaced(host.client.clone(), namespace);
    let ready = poll(timeout, Duration::from_millis(100), async || {
        let workload = match sets.get_opt(name).await.ok()? {
            Some(set) => json!(set),
            None => json!(deployments.get_opt(name).await.ok()??),
        };
        is_ready(&workload).then_some(())
    });
    let ready = tokio::select! {
        ready = ready => ready,
        () = tell_trouble(host, app, name, namespace, step) => None,
    };
    if ready.is_some() {
        return Ok(());
    }
    let failure = Failure::timed_out(format!(
        "{} {name} did not become ready in {} seconds{}",
        if app == "vcluster" { "virtual cluster" } else { "hub" },
        timeout.as_secs(),
        pod_trouble(host, app, name, namespace).await
    ));
    Err(failure.hint(format!("see `kubectl -n {namespace} describe pods -l app={app},release={name}`")).into())
}

fn is_ready(workload: &Value) -> bool {
    let count = |value: &Value| value.as_i64().unwrap_or(0);
    let status = &workload["status"];
    let wanted = workload["spec"]["replicas"].as_i64().unwrap_or(1);
    count(&status["observedGeneration"]) >= count(&workload["metadata"]["generation"])
        && count(&status["updatedReplicas"]) >= wanted
        && count(&status["readyReplicas"]) >= wanted
}

/// Says what does not pass by itself as soon as it is seen, each reason of a pod once; never ends.
async fn tell_trouble(host: &Host, app: &str, name: &str, namespace: &str, step: &Step<'_>) {
    let mut told = BTreeSet::new();
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        for pod in pods(host, app, name, namespace).await.unwrap_or_default() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            if let Some(reported) = trouble(&pod).filter(|reported| !reported.passes_by_itself())
                && told.insert((name.to_string(), reported.reason.clone()))
            {
                step.warn(&format!("pod {name}: {reported}"));
            }
        }
    }
}

async fn pods(host: &Host, app: &str, name: &str, namespace: &str) -> kube::Result<Vec<Value>> {
    let pods: Api<Pod> = Api::namespaced(host.client.clone(), namespace);
    let params = ListParams::default().labels(&format!("app={app},release={name}"));
    Ok(pods.list(&params).await?.items.into_iter().map(|pod| json!(pod)).collect())
}

/// Why the pods are not ready, a line each; empty when they do not say.
async fn pod_trouble(host: &Host, app: &str, name: &str, namespace: &str) -> String {
    let Ok(pods) = pods(host, app, name, namespace).await else { return String::new() };
    if pods.is_empty() {
        return ": it has no pods yet".to_string();
    }
    let said = pods.iter().filter_map(|pod| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        Some((name, trouble(pod)?.to_string()))
    });
    said.collect::<BTreeMap<_, _>>().into_iter().map(|(pod, reason)| format!("\n  pod {pod}: {reason}")).collect()
}

/// What keeps a pod from being ready.
#[derive(Debug)]
struct Trouble {
    reason: String,
    message: String,
}

impl Trouble {
    /// True of what every pod goes through when it starts.
    fn passes_by_itself(&self) -> bool {
        const USUAL: [&str; 6] = [
            "ContainerCreating",
            "PodInitializing",
            "ContainersNotReady",
            "ContainersNotInitialized",
            "Ready",
            "Initialized",
        ];
        USUAL.contains(&self.reason.as_str())
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

fn trouble(pod: &Value) -> Option<Trouble> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let status = &pod["status"];
    let containers = [list(&status["initContainerStatuses"]), list(&status["containerStatuses"])].concat();
    let waiting = containers.iter().find(|container| !container["state"]["waiting"].is_null());
    let reported = match waiting {
        // What a container that crashes said last tells more than that it will be started again.
        Some(container) => {
            let mut waiting = container["state"]["waiting"].clone();
            let last = container["lastState"]["terminated"]["message"].as_str().map(str::trim);
            if let Some(last) = last.filter(|last| !last.is_empty()) {
                waiting["message"] = json!(last);
            }
            waiting
        }
        None => list(&status["conditions"]).into_iter().find(|condition| condition["status"] == "False")?,
    };
    let text = |key: &str| reported[key].as_str().filter(|text| !text.is_empty()).map(str::to_string);
    let reason = text("reason").or_else(|| text("type"))?;
    Some(Trouble { reason, message: text("message").unwrap_or_default() })
}

/// Deletes the workload of a dedicated cluster, and waits until its pods are gone: nothing syncs any more.
pub async fn stop(host: &Host, name: &str, namespace: &str, timeout: Duration) -> anyhow::Result<()> {
    let selector = ListParams::default().labels(&format!("app=vcluster,release={name}"));
    let sets: Api<StatefulSet> = Api::namespaced(host.client.clone(), namespace);
    let deployments: Api<Deployment> = Api::namespaced(host.client.clone(), namespace);
    let failed =
        |error: kube::Error| Failure::failed(format!("cannot delete the pods of virtual cluster {name}: {error}"));
    found(sets.delete(name, &DeleteParams::background()).await).map_err(failed)?;
    found(deployments.delete(name, &DeleteParams::background()).await).map_err(failed)?;
    let pods: Api<Pod> = Api::namespaced(host.client.clone(), namespace);
    let gone = poll(timeout, Duration::from_millis(100), async || {
        let left = pods.list(&selector).await.ok()?;
        left.items.is_empty().then_some(())
    });
    gone.await.ok_or_else(|| {
        Failure::timed_out(format!("the pods of virtual cluster {name} are still there"))
            .hint(format!("see `kubectl -n {namespace} get pods -l app=vcluster,release={name}`"))
            .into()
    })
}

/// What `experimental.deploy.host` brought, claims of the pod's disk, and what Helm knows of the release.
pub async fn remove_extras(host: &Host, release: &Release<'_>, keep_claims: bool) -> anyhow::Result<()> {
    for object in render(release)? {
        let marked = object["metadata"]["labels"]["release"] == json!(release.name);
        if !marked && let Ok(api) = manifests::api_for(&host.client, &object, release.namespace).await {
            let (kind, name) = identity(&object);
            found(api.delete(&name, &DeleteParams::background()).await)
                .map_err(|error| Failure::failed(format!("cannot delete {kind} {name}: {error}")))?;
        }
    }
    let own = format!("{},!vcluster.loft.sh/managed-by", deploy::selector(release.name));
    let helm = format!("owner=helm,name={}", release.name);
    for (skip, kind, plural, selector) in
        [(keep_claims, "PersistentVolumeClaim", "persistentvolumeclaims", &own), (false, "Secret", "secrets", &helm)]
    {
        let api = api(host, "v1", kind, plural, Some(release.namespace));
        let Ok(items) = api.list(&ListParams::default().labels(selector)).await else { continue };
        for item in items.items.iter().filter(|_| !skip) {
            let name = item.metadata.name.as_deref().unwrap_or_default();
            found(api.delete(name, &DeleteParams::background()).await)
                .map_err(|error| Failure::failed(format!("cannot delete {kind} {name}: {error}")))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_ready_when_the_newest_revision_is() {
        let workload = |generation, observed, updated, ready| {
            json!({"metadata": {"generation": generation}, "spec": {"replicas": 2},
                "status": {"observedGeneration": observed, "updatedReplicas": updated, "readyReplicas": ready}})
        };
        for (value, want) in [
            (workload(1, 1, 2, 2), true),
            (workload(2, 1, 2, 2), false),
            (workload(1, 1, 1, 2), false),
            (workload(1, 1, 2, 1), false),
            (json!({"metadata": {"generation": 1}, "spec": {}}), false),
        ] {
            assert_eq!(is_ready(&value), want, "{value}");
        }
    }

    #[test]
    fn a_pod_says_why_it_is_not_ready() {
        for (pod, want) in [
            (
                json!({"status": {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}]}}),
                Some(("ImagePullBackOff: no", false)),
            ),
            (
                json!({"status": {"containerStatuses": [{
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                    "lastState": {"terminated": {"message": "error no room\n"}},
                }]}}),
                Some(("CrashLoopBackOff: error no room", false)),
            ),
            (
                json!({"status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]}}),
                Some(("Unschedulable: 0/1", false)),
            ),
            (json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}), Some(("Ready", true))),
            (
                json!({"status": {"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}}),
                Some(("ContainerCreating", true)),
            ),
            (json!({"status": {}}), None),
        ] {
            let said = trouble(&pod).map(|said| (said.to_string(), said.passes_by_itself()));
            assert_eq!(said.as_ref().map(|(text, passes)| (text.as_str(), *passes)), want, "{pod}");
        }
    }
}
