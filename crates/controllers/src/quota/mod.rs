//! resourcequota: recalculates what namespaces use of their quotas.
//!
//! Admission raises the use when objects come; this brings it down when they go, and corrects it. Resources are watched only
//! once a quota names them.
//!
//! Follows: `pkg/controller/resourcequota`, `pkg/quota/v1`.

mod usage;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::json::Str;
use apimachinery::quantity::Quantity;
use informer::{
    ApiError, Header, Informer, ObjectKey, ObjectMeta, Outcome, Queue, Resource, Source, StrMap, null_default,
};
use parking_lot::Mutex;
use serde::Deserialize;

use self::usage::{
    ScopeRequirement, ServiceForQuota, Usage, claim_usage, in_scope, pod_usage, service_usage, sum_into,
};
use crate::context::{Context, ReconcileError, ReconcileResult, ignore_not_found, key_queue};
use crate::discovery::Discovery;
use crate::resources::{PERSISTENT_VOLUME_CLAIMS, RESOURCE_QUOTAS, SERVICES};
use crate::types::{PersistentVolumeClaim, Pod, cached};

/// Deletions come in swarms: one recalculation for many.
const SETTLE: Duration = Duration::from_millis(200);
/// How long an admitted object may take until it is stored.
const RECHECK: Duration = Duration::from_secs(2);
/// Objects that plain names (`secrets`) count, beside `count/secrets`.
const PLAIN: [&str; 4] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ResourceQuota {
    metadata: ObjectMeta,
    spec: QuotaSpec,
    status: QuotaStatus,
}

cached!(ResourceQuota);

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct QuotaSpec {
    #[serde(deserialize_with = "null_default")]
    hard: StrMap,
    #[serde(deserialize_with = "null_default")]
    scopes: Vec<Str>,
    scope_selector: Option<ScopeSelector>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ScopeSelector {
    #[serde(deserialize_with = "null_default")]
    match_expressions: Vec<ScopeRequirement>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct QuotaStatus {
    #[serde(deserialize_with = "null_default")]
    hard: StrMap,
    #[serde(deserialize_with = "null_default")]
    used: StrMap,
}

impl QuotaSpec {
    fn requirements(&self) -> Vec<ScopeRequirement> {
        let plain = self.scopes.iter().map(|scope| ScopeRequirement {
            scope_name: scope.clone(),
            operator: "Exists".into(),
            values: Vec::new(),
        });
        plain.chain(self.scope_selector.iter().flat_map(|s| s.match_expressions.clone())).collect()
    }
}

/// The resource that a quota name counts: (resource, group).
fn counted(name: &str) -> Option<(&str, &str)> {
    match name.strip_prefix("count/") {
        Some(counted) => Some(counted.split_once('.').unwrap_or((counted, ""))),
        None if PLAIN.contains(&name) => Some((name, "")),
        None => None,
    }
}

/// The use of each resource that the quota names.
fn used(hard: &StrMap, usage: &Usage) -> StrMap {
    let zero = usage::count(0);
    hard.iter().map(|(name, _)| (name, usage.get(name).unwrap_or(&zero).to_string())).collect()
}

struct Controller {
    context: Context,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    queue: Queue<ObjectKey>,
    /// Resources whose deletions are watched for some quota.
    watched: Mutex<HashMap<(String, String), Resource>>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("resourcequota-controller", "resourcequota-controller");
    let queue = key_queue();
    let quotas: Informer<ResourceQuota> = context.factory.informer(RESOURCE_QUOTAS);
    let pods = context.pods();
    let adds = queue.clone();
    quotas.on_change(move |change| {
        // Admission counts an object in the status before the object is stored: to calculate then would take it back.
        let due = match &change {
            informer::Change::Added(_) => true,
            informer::Change::Updated { old, new } => old.spec != new.spec || !equal(&new.spec.hard, &new.status.hard),
            informer::Change::Deleted(_) => false,
        };
        if due {
            adds.add(change.object().metadata.key());
        }
    });
    let (adds, all) = (queue.clone(), quotas.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        let delay = match &change {
            informer::Change::Updated { old, new } => {
                (crate::pod::is_terminal(old) != crate::pod::is_terminal(new)).then_some(SETTLE)
            }
            // Admission has counted it, and a calculation that did not know of it yet may have taken it back.
            informer::Change::Added(_) => Some(RECHECK),
            informer::Change::Deleted(_) => Some(SETTLE),
        };
        if let Some(delay) = delay {
            for quota in all.list_namespace(&pod.metadata.namespace) {
                adds.add_after(quota.metadata.key(), delay);
            }
        }
    });
    let synced = vec![quotas.synced(), pods.synced()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        quotas,
        pods,
        queue: queue.clone(),
        watched: Mutex::default(),
    });
    context.run("resourcequota", 2, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> ReconcileResult {
        let Some(quota) = self.quotas.get(&key) else { return Ok(Outcome::Done) };
        let usage = self.usage(&quota, &key.namespace).await?;
        let status = QuotaStatus { hard: quota.spec.hard.clone(), used: used(&quota.spec.hard, &usage) };
        if !equal(&status.hard, &quota.status.hard) || !equal(&status.used, &quota.status.used) {
            let mut patch = Value::object();
            for (field, new, old) in
                [("hard", &status.hard, &quota.status.hard), ("used", &status.used, &quota.status.used)]
            {
                let mut value = new.to_value();
                for (gone, _) in old.iter().filter(|(name, _)| !new.contains_key(name)) {
                    value[gone] = Value::Null;
                }
                patch[field] = value;
            }
            ignore_not_found(self.context.patch_status(&RESOURCE_QUOTAS, &quota.metadata, patch).await)?;
            // An object that was on its way while this was calculated is counted a moment later.
            return Ok(Outcome::After(RECHECK));
        }
        Ok(Outcome::Done)
    }

    async fn usage(self: &Arc<Self>, quota: &ResourceQuota, namespace: &str) -> Result<Usage, ReconcileError> {
        let hard = &quota.spec.hard;
        let requirements = quota.spec.requirements();
        let now = self.context.now();
        let mut total = Usage::new();
        for pod in self.pods.list_namespace(namespace) {
            if requirements.iter().all(|r| in_scope(r, &pod)) {
                sum_into(&mut total, &pod_usage(&pod, now));
            }
        }
        if !requirements.is_empty() {
            // Scopes choose pods: nothing else is in any of them.
            return Ok(total);
        }
        let names = |wanted: &dyn Fn(&str) -> bool| hard.iter().any(|(name, _)| wanted(name));
        if names(&|n| n.starts_with("services") || n == "count/services") {
            self.watch("services", "", SERVICES);
            let all: Vec<ServiceForQuota> = self.list(&SERVICES, namespace).await?;
            all.iter().for_each(|service| sum_into(&mut total, &service_usage(service)));
        }
        if names(&|n| n.contains("persistentvolumeclaims") || n.contains("requests.storage")) {
            self.watch("persistentvolumeclaims", "", PERSISTENT_VOLUME_CLAIMS);
            let all: Vec<PersistentVolumeClaim> = self.list(&PERSISTENT_VOLUME_CLAIMS, namespace).await?;
            all.iter().for_each(|claim| sum_into(&mut total, &claim_usage(claim)));
        }
        let special = [("pods", ""), ("services", ""), ("persistentvolumeclaims", "")];
        let counted: BTreeSet<(&str, &str)> =
            hard.iter().filter_map(|(name, _)| counted(name)).filter(|c| !special.contains(c)).collect();
        for (resource, group) in counted {
            let Some(target) = self.find(resource, group).await? else { continue };
            let number = usage::count(self.list::<Header>(&target, namespace).await?.len());
            let name = if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") };
            total.insert(name, number.clone());
            if group.is_empty() {
                total.insert(resource.to_owned(), number);
            }
            self.watch(resource, group, target);
        }
        Ok(total)
    }

    async fn list<T: serde::de::DeserializeOwned>(
        &self,
        resource: &Resource,
        namespace: &str,
    ) -> Result<Vec<T>, ApiError> {
        self.context.rest.list_as(resource, namespace, "", "").await
    }

    /// The served version of a resource, custom ones too.
    async fn find(&self, resource: &str, group: &str) -> Result<Option<Resource>, ApiError> {
        if let Some(known) = self.watched.lock().get(&(resource.to_owned(), group.to_owned())) {
            return Ok(Some(known.clone()));
        }
        let discovery = Discovery::read(&self.context.rest).await?;
        let mut all = discovery.preferred().filter(|r| r.namespaced && r.can(&["list"]));
        Ok(all.find(|r| r.resource.resource == resource && r.resource.group == group).map(|r| r.resource.clone()))
    }

    /// Recalculates quotas when objects of this resource go.
    fn watch(self: &Arc<Self>, resource: &str, group: &str, target: Resource) {
        let source = Source::all(target.clone());
        let known = self.watched.lock().insert((resource.to_owned(), group.to_owned()), target).is_some();
        // A custom resource may have gone, its informer with it, and come back.
        if known && self.context.factory.watches(&source) {
            return;
        }
        let (quotas, queue) = (self.quotas.clone(), self.queue.clone());
        let names = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
        self.context.factory.headers(source, move |change| {
            if !change.deleted {
                return;
            }
            for quota in quotas.list_namespace(&change.object.namespace) {
                if quota.spec.hard.iter().any(|(name, _)| name.contains(names.as_str()) || name.contains("storage")) {
                    queue.add_after(quota.metadata.key(), SETTLE);
                }
            }
        });
    }
}

/// Whether two lists hold the same quantities, however they are written.
fn equal(a: &StrMap, b: &StrMap) -> bool {
    a.len() == b.len()
        && a.iter().all(|(name, amount)| {
            b.get(name)
                .is_some_and(|other| other == amount || Quantity::parse(other).ok() == Quantity::parse(amount).ok())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn only_what_the_quota_names_is_told() {
        let hard: StrMap = json!({"pods": "10", "requests.cpu": "1", "count/deployments.apps": "3"}).to().unwrap();
        let usage = Usage::from([("pods".to_owned(), usage::count(2)), ("count/pods".to_owned(), usage::count(3))]);
        let used = used(&hard, &usage);
        assert_eq!(
            used.iter().collect::<Vec<_>>(),
            [("count/deployments.apps", "0"), ("pods", "2"), ("requests.cpu", "0")]
        );
        assert!(equal(&json!({"a": "1"}).to().unwrap(), &json!({"a": "1000m"}).to().unwrap()));
        for (name, want) in [
            ("count/deployments.apps", Some(("deployments", "apps"))),
            ("count/secrets", Some(("secrets", ""))),
            ("secrets", Some(("secrets", ""))),
            ("requests.cpu", None),
        ] {
            assert_eq!(counted(name), want);
        }
    }
}
