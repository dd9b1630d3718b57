//! serviceaccount: keeps the `default` ServiceAccount in every namespace.
//!
//! Follows: `pkg/controller/serviceaccount/serviceaccounts_controller.go`.

use apimachinery::json;
use informer::{Header, Informer, ObjectKey, Outcome};

use crate::context::{Context, ReconcileResult, key_queue};
use crate::resources::{NAMESPACES, SERVICE_ACCOUNTS};
use crate::types::Namespace;

const NAME: &str = "default";

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("service-account-controller", "service-account-controller");
    let queue = key_queue();
    let namespaces: Informer<Namespace> = context.factory.informer(NAMESPACES);
    let accounts: Informer<Header> = context.factory.informer(SERVICE_ACCOUNTS);
    let adds = queue.clone();
    namespaces.on_change(move |change| {
        if !change.is_deleted() {
            adds.add(change.object().metadata.key());
        }
    });
    let deletes = queue.clone();
    accounts.on_change(move |change| {
        let account = &change.object().metadata;
        if change.is_deleted() && account.name == NAME {
            deletes.add(ObjectKey::cluster(account.namespace.clone()));
        }
    });
    let synced = vec![namespaces.synced(), accounts.synced()];
    context.clone().run("serviceaccount", 2, &queue, synced, move |key| {
        reconcile(context.clone(), namespaces.clone(), accounts.clone(), key)
    });
}

async fn reconcile(
    context: Context,
    namespaces: Informer<Namespace>,
    accounts: Informer<Header>,
    key: ObjectKey,
) -> ReconcileResult {
    let Some(namespace) = namespaces.get(&key) else { return Ok(Outcome::Done) };
    if namespace.status.phase == "Terminating"
        || namespace.metadata.is_deleting()
        || accounts.get(&ObjectKey::new(key.name.clone(), NAME)).is_some()
    {
        return Ok(Outcome::Done);
    }
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1",
        "metadata": {"name": NAME, "namespace": key.name.as_str()}});
    match context.rest.create(&SERVICE_ACCOUNTS, &key.name, &account).await {
        Ok(_) => Ok(Outcome::Done),
        Err(e) if e.is_already_exists() || e.is_not_found() || e.is_namespace_terminating() => Ok(Outcome::Done),
        Err(error) => Err(error.into()),
    }
}
