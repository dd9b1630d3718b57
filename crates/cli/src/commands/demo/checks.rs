//! What the demo proves: tenants do not see each other, and a deleted tenant leaves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use apimachinery::Value;
use informer::{DeleteOptions, Resource, Rest};

use super::tables::{HOST_KINDS, list};
use super::{Tenant, condition, tenant_of};
use crate::failure::Failure;
use crate::host::Host;
use crate::manifests::poll;

const PODS: Resource = Resource::new("", "v1", "pods");
const SERVICES: Resource = Resource::new("", "v1", "services");
const NAMESPACES: Resource = Resource::new("", "v1", "namespaces");

fn check(holds: bool, what: &str) -> anyhow::Result<()> {
    println!("{}   {what}", if holds { "ok  " } else { "FAIL" });
    if holds { Ok(()) } else { Err(Failure::failed(format!("check failed: {what}")).into()) }
}

fn uids(objects: &[Value]) -> BTreeSet<String> {
    objects.iter().map(|object| object.str_at(&["metadata", "uid"]).to_string()).collect()
}

fn full_name(object: &Value) -> String {
    format!("{}/{}", object.str_at(&["metadata", "namespace"]), object.str_at(&["metadata", "name"]))
}

fn annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    object.at(&["metadata", "annotations"]).and_then(|all| all.get(key)).and_then(Value::as_str).unwrap_or("")
}

/// Neither cluster sees the other, and the host holds each tenant's pods once.
pub async fn isolation(host: &Rest, tenants: &[Tenant]) -> anyhow::Result<()> {
    let mut virtual_pods = Vec::new();
    for tenant in tenants {
        let pods = list(&tenant.rest, &PODS, "").await?;
        let host_pods = list(host, &PODS, &tenant.namespace).await?;
        let sources: BTreeSet<String> = host_pods
            .iter()
            .map(|pod| {
                let of = |key| annotation(pod, key);
                format!("{}/{}", of("vcluster.loft.sh/object-namespace"), of("vcluster.loft.sh/object-name"))
            })
            .collect();
        let names: BTreeSet<String> = pods.iter().map(full_name).collect();
        check(
            names == sources && pods.len() == host_pods.len(),
            &format!("{}: each of its {} pods runs once on the host, and no other", tenant.name, pods.len()),
        )?;
        check(
            host_pods.iter().all(|pod| tenant_of(pod) == tenant.name),
            &format!("{}: every pod in {} is marked as its own", tenant.name, tenant.namespace),
        )?;
        check(
            addresses_agree(host, tenant).await?,
            &format!("{}: its Services have one address on both sides", tenant.name),
        )?;
        virtual_pods.push(pods);
    }
    check(
        uids(&virtual_pods[0]).is_disjoint(&uids(&virtual_pods[1])),
        "the same names in both clusters are different objects",
    )?;
    for (tenant, other) in [(&tenants[0], &tenants[1]), (&tenants[1], &tenants[0])] {
        let namespaces = list(&tenant.rest, &NAMESPACES, "").await?;
        let foreign = [other.namespace.as_str(), tenant.namespace.as_str()];
        check(
            !namespaces.iter().any(|namespace| foreign.contains(&namespace.str_at(&["metadata", "name"]))),
            &format!("{}: neither the host's namespaces nor those of {} are visible", tenant.name, other.name),
        )?;
    }
    // A key of one cluster opens nothing in the other.
    for (tenant, other) in [(&tenants[0], &tenants[1]), (&tenants[1], &tenants[0])] {
        check(
            !opens(tenant, other).await?,
            &format!("the credentials of {} are refused by {}", tenant.name, other.name),
        )?;
    }
    Ok(())
}

async fn addresses_agree(host: &Rest, tenant: &Tenant) -> anyhow::Result<bool> {
    let mut by_source = BTreeMap::new();
    for service in list(host, &SERVICES, &tenant.namespace).await? {
        let of = |key| annotation(&service, key);
        let source = format!("{}/{}", of("vcluster.loft.sh/object-namespace"), of("vcluster.loft.sh/object-name"));
        by_source.insert(source, service.str_at(&["spec", "clusterIP"]).to_string());
    }
    let shop = list(&tenant.rest, &SERVICES, "").await?;
    Ok(shop.iter().filter(|service| service.str_at(&["metadata", "namespace"]).starts_with("shop")).all(|service| {
        by_source.get(&full_name(service)).is_some_and(|ip| ip == service.str_at(&["spec", "clusterIP"]))
    }))
}

/// Do the credentials of `tenant` read anything at the address of `other`?
async fn opens(tenant: &Tenant, other: &Tenant) -> anyhow::Result<bool> {
    let mut config = crate::kubeconfig::read(&tenant.kubeconfig)?;
    let other_config = crate::kubeconfig::read(&other.kubeconfig)?;
    config["clusters"][0]["cluster"] = other_config["clusters"][0]["cluster"].clone();
    let client = crate::host::client(&config, None).await?;
    let rest = Rest::new(client, "alcove-demo").with_timeout(Duration::from_secs(5));
    Ok(rest.list_as::<Value>(&Resource::new("", "v1", "secrets"), "", "", "").await.is_ok())
}

/// Deletes the first tenant; nothing of it is left and the second has not noticed.
pub async fn deletion(host: &Host, rest: &Rest, tenants: &[Tenant], timeout: Duration) -> anyhow::Result<()> {
    let (gone, stays) = (&tenants[0], &tenants[1]);
    let before = uids(&list(rest, &PODS, &stays.namespace).await?);
    let virtual_before = uids(&list(&stays.rest, &PODS, "").await?);
    let secrets = Resource::new("", "v1", "secrets");
    let secret_name = deploy::names::config_secret(gone.name);
    let failed = |error: informer::ApiError| Failure::failed(format!("cannot delete {}: {error}", gone.name));
    rest.delete(&secrets, &gone.namespace, &secret_name, &DeleteOptions::default()).await.map_err(failed)?;
    let removed = poll(timeout, Duration::from_millis(5), async || {
        rest.get(&secrets, &gone.namespace, &secret_name).await.is_err_and(|error| error.is_not_found()).then_some(())
    });
    removed.await.ok_or_else(|| Failure::timed_out(format!("{} is still being deleted", gone.name)))?;

    let mut left = Vec::new();
    for (kind, resource) in &HOST_KINDS {
        for object in list(rest, resource, "").await? {
            if tenant_of(&object) == gone.name
                || object.str_at(&["metadata", "namespace"]) == gone.namespace && !is_default(&object)
            {
                left.push(format!("{kind} {}", full_name(&object)));
            }
        }
    }
    check(left.is_empty(), &format!("{} is deleted and left nothing on the host{}", gone.name, show(&left)))?;
    rest.delete(&NAMESPACES, "", &gone.namespace, &DeleteOptions::default()).await.map_err(failed)?;
    let removed = poll(timeout, Duration::from_millis(5), async || {
        rest.get(&NAMESPACES, "", &gone.namespace).await.is_err_and(|error| error.is_not_found()).then_some(())
    });
    check(removed.await.is_some(), &format!("namespace {} is gone", gone.namespace))?;

    let pods = list(rest, &PODS, &stays.namespace).await?;
    let virtual_pods = list(&stays.rest, &PODS, "").await?;
    check(
        uids(&pods) == before && uids(&virtual_pods) == virtual_before,
        &format!("{} still has the same {} pods", stays.name, pods.len()),
    )?;
    let fine = pods.iter().all(|pod| condition(pod, "Ready") || pod.str_at(&["status", "phase"]) == "Succeeded");
    check(fine, &format!("{} is untouched: its pods are ready or have completed", stays.name))?;
    let clusters = crate::clusters::list(host, None).await?;
    check(clusters.len() == 1 && clusters[0].name == stays.name, &format!("`alcove list` shows {} alone", stays.name))
}

/// What every namespace of a host has, whoever lives in it.
fn is_default(object: &Value) -> bool {
    matches!(object.str_at(&["metadata", "name"]), "kube-root-ca.crt" | "default")
}

fn show(left: &[String]) -> String {
    if left.is_empty() { String::new() } else { format!(" (still there: {})", left.join(", ")) }
}
