//! Dynamic resource allocation: classes of the host, claims and templates of the tenant, and who uses them.

use apimachinery::{Value, json};
use informer::{PatchType, Resource};
use syncer::names::Names;
use syncer::settings::Import;

use crate::cluster::*;

const CLASSES: Resource = Resource::new("resource.k8s.io", "v1", "deviceclasses");
const RESOURCE_CLAIMS: Resource = Resource::new("resource.k8s.io", "v1", "resourceclaims");
const TEMPLATES: Resource = Resource::new("resource.k8s.io", "v1", "resourceclaimtemplates");

fn devices() -> Value {
    json!({"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.example"}}]}})
}

/// A pod with one claim of its own and one from a template.
fn pod_with_claims() -> Value {
    let mut pod = simple_pod("train");
    pod["spec"]["resourceClaims"] =
        json!([{"name": "shared", "resourceClaimName": "gpus"}, {"name": "own", "resourceClaimTemplateName": "gpu"}]);
    pod["spec"]["containers"] =
        json!([{"name": "app", "image": "i", "resources": {"claims": [{"name": "shared"}, {"name": "own"}]}}]);
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_with_the_devices_they_claim() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let class = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {}});
    host_api.create(&CLASSES, "", class("gpu.example", json!({"for": "tenants"}))).await;
    host_api.create(&CLASSES, "", class("other.example", json!({}))).await;
    let mut config = tenant.config();
    config.settings.resource_claims = true;
    config.settings.resource_claim_templates = true;
    config.settings.import_device_classes = Import::On(json!({"matchLabels": {"for": "tenants"}}));
    let syncer = tenant.sync_with(host.client(), config).await;
    eventually("the class is shown", || async { tenant.api.get(&CLASSES, "", "gpu.example").await }).await;
    assert!(tenant.api.get(&CLASSES, "", "other.example").await.is_none());

    let claim = json!({"metadata": {"name": "gpus"}, "spec": (devices())});
    tenant.api.create(&RESOURCE_CLAIMS, "default", claim).await;
    let template = json!({"metadata": {"name": "gpu"}, "spec": {"spec": (devices())}});
    tenant.api.create(&TEMPLATES, "default", template).await;
    let virtual_pod = tenant.api.create(&PODS, "default", pod_with_claims()).await;
    // The claim of the template is one of the tenant's, made by the tenant's controller.
    let made = eventually("the template's claim is made", || async {
        let pod = tenant.api.get(&PODS, "default", "train").await?;
        let status = pod.array_at(&["status", "resourceClaimStatuses"]).first()?.clone();
        Some(status.str_at(&["resourceClaimName"]).to_owned()).filter(|name| !name.is_empty())
    })
    .await;
    let names = Names::new("vc", tenant.host_namespace.as_str());
    let short = |name: &str| names.host_name_short(name, "default");
    let pod_at = tenant.on_host("default", "train");
    let host_pod =
        eventually("the pod is on the host", || async { host_api.get(&PODS, &pod_at.namespace, &pod_at.name).await })
            .await;
    assert_eq!(
        host_pod["spec"]["resourceClaims"],
        json!([{"name": "shared", "resourceClaimName": (short("gpus"))}, {"name": "own", "resourceClaimName": (short(&made))}])
    );
    for name in ["gpus", made.as_str()] {
        let claim = eventually("the claim is on the host", || async {
            host_api.get(&RESOURCE_CLAIMS, &tenant.host_namespace, &short(name)).await
        })
        .await;
        assert_eq!(claim["spec"]["devices"]["requests"][0].str_at(&["exactly", "deviceClassName"]), "gpu.example");
    }
    let template = eventually("the template is on the host", || async {
        host_api.get(&TEMPLATES, &tenant.host_namespace, &short("gpu")).await
    })
    .await;
    assert_eq!(
        template["spec"]["spec"],
        host_api.get(&RESOURCE_CLAIMS, &tenant.host_namespace, &short("gpus")).await.unwrap_or_default()["spec"]
    );

    // The host's scheduler allocates; the tenant sees its own pod as the user.
    let status = json!({"status": {
        "allocation": {"devices": {"results": [{"request": "gpu", "driver": "d.example", "pool": "p", "device": "gpu-0"}]}},
        "reservedFor": [{"resource": "pods", "name": (pod_at.name.as_str()), "uid": (syncer::metadata::uid_of(&host_pod))}]}});
    let claim = short("gpus");
    host_api
        .0
        .patch(&RESOURCE_CLAIMS, "status", &tenant.host_namespace, &claim, PatchType::Merge, &status)
        .await
        .expect("a status");
    let shown = eventually("the tenant sees the allocation", || async {
        let claim = tenant.api.get(&RESOURCE_CLAIMS, "default", "gpus").await?;
        claim.at(&["status", "allocation"]).is_some_and(|a| !a.is_null()).then_some(claim)
    })
    .await;
    let user = &shown["status"]["reservedFor"][0];
    assert_eq!((user.str_at(&["name"]), user.str_at(&["uid"])), ("train", syncer::metadata::uid_of(&virtual_pod)));
    assert_eq!(shown["status"]["allocation"]["devices"]["results"][0].str_at(&["device"]), "gpu-0");

    // Nothing is left on the host.
    tenant.api.delete(&PODS, "default", "train").await;
    tenant.api.delete(&RESOURCE_CLAIMS, "default", "gpus").await;
    tenant.api.delete(&TEMPLATES, "default", "gpu").await;
    eventually("claims and templates are gone", || async {
        // A driver of the host would take the allocation back.
        let free = json!({"status": {"allocation": null, "reservedFor": null}});
        let claim = short("gpus");
        let _ =
            host_api.0.patch(&RESOURCE_CLAIMS, "status", &tenant.host_namespace, &claim, PatchType::Merge, &free).await;
        let claims = host_api.list(&RESOURCE_CLAIMS, &tenant.host_namespace).await;
        let templates = host_api.list(&TEMPLATES, &tenant.host_namespace).await;
        (claims.is_empty() && templates.is_empty()).then_some(())
    })
    .await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_templates_alone_the_host_makes_the_claims() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start_without("vc", &host_api, &["*", "-resourceclaim-controller"]).await;
    let mut config = tenant.config();
    config.settings.resource_claim_templates = true;
    let syncer = tenant.sync_with(host.client(), config).await;
    let template = json!({"metadata": {"name": "gpu"}, "spec": {"spec": (devices())}});
    tenant.api.create(&TEMPLATES, "default", template).await;
    let mut pod = simple_pod("train");
    pod["spec"]["resourceClaims"] = json!([{"name": "own", "resourceClaimTemplateName": "gpu"}]);
    pod["spec"]["containers"] = json!([{"name": "app", "image": "i", "resources": {"claims": [{"name": "own"}]}}]);
    tenant.api.create(&PODS, "default", pod).await;
    let pod_at = tenant.on_host("default", "train");
    let claim = eventually("the host's controller makes the claim", || async {
        let pod = host_api.get(&PODS, &pod_at.namespace, &pod_at.name).await?;
        let status = pod.array_at(&["status", "resourceClaimStatuses"]).first()?.clone();
        Some(status.str_at(&["resourceClaimName"]).to_owned()).filter(|name| !name.is_empty())
    })
    .await;
    assert!(host_api.get(&RESOURCE_CLAIMS, &pod_at.namespace, &claim).await.is_some());
    eventually("the tenant's pod runs and does not name what is the host's", || async {
        let pod = tenant.api.get(&PODS, "default", "train").await?;
        (pod.str_at(&["status", "phase"]) == "Running" && !pod.to_string().contains(&claim)).then_some(())
    })
    .await;
    syncer.shutdown().await;
}
