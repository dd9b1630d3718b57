//! What is off without configuration: namespaces, imports, budgets, patches, end to end.

use apimachinery::json;
use informer::Resource;
use syncer::names::NamespaceRule;
use syncer::patches::{Mode, Patch, Path};
use syncer::script::Script;
use syncer::settings::{Import, ImportMapping};

use crate::cluster::*;

const BUDGETS: Resource = Resource::new("policy", "v1", "poddisruptionbudgets");
const CLASSES: Resource = Resource::new("scheduling.k8s.io", "v1", "priorityclasses");

#[tokio::test(flavor = "multi_thread")]
async fn mapped_namespaces_keep_their_names() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let mut config = tenant.config();
    config.names =
        config.names.with_namespace_rules(vec![NamespaceRule { from: "team-*".into(), to: "${name}-*".into() }]);
    let patch = Patch {
        path: Path::parse("metadata.labels[\"owner\"]").expect("a path"),
        mode: Mode::Expression {
            to_host: Some(Script::parse("context.virtualObject.metadata.name").expect("an expression")),
            to_virtual: None,
        },
    };
    config.settings.patches.insert("namespaces".into(), vec![patch]);
    let syncer = tenant.sync_with(host.client(), config).await;
    tenant.api.create(&NAMESPACES, "", json!({"metadata": {"name": "team-a"}})).await;
    tenant
        .api
        .create(
            &CONFIG_MAPS,
            "team-a",
            json!({"metadata": {"name": "m",
        "annotations": {"vcluster.loft.sh/force-sync": "true"}}, "data": {"a": "1"}}),
        )
        .await;
    let namespace =
        eventually("the host namespace is there", || async { host_api.get(&NAMESPACES, "", "vc-a").await }).await;
    assert_eq!(namespace.str_at(&["metadata", "labels", "vcluster.loft.sh/vcluster-name"]), "vc");
    assert_eq!(namespace.str_at(&["metadata", "labels", "owner"]), "team-a");
    eventually("the object has its own name there", || async { host_api.get(&CONFIG_MAPS, "vc-a", "m").await }).await;
    tenant.api.delete(&CONFIG_MAPS, "team-a", "m").await;
    eventually("it is gone again", || async { host_api.get(&CONFIG_MAPS, "vc-a", "m").await.is_none().then_some(()) })
        .await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_follow_the_host() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let class =
        |name: &str, labels: apimachinery::Value| json!({"metadata": {"name": name, "labels": labels}, "value": 7});
    host_api.create(&CLASSES, "", class("shown", json!({"for": "tenants"}))).await;
    host_api.create(&CLASSES, "", class("hidden", json!({}))).await;
    host_api.create(&CONFIG_MAPS, "default", json!({"metadata": {"name": "shared"}, "data": {"a": "1"}})).await;
    let mut config = tenant.config();
    config.settings.import_priority_classes = Import::On(json!({"matchLabels": {"for": "tenants"}}));
    config.settings.import_config_maps = vec![ImportMapping { from: "default/*".into(), to: "from-host/*".into() }];
    let syncer = tenant.sync_with(host.client(), config).await;
    eventually("the class is shown", || async { tenant.api.get(&CLASSES, "", "shown").await }).await;
    eventually("the config map is shown", || async { tenant.api.get(&CONFIG_MAPS, "from-host", "shared").await }).await;
    assert!(tenant.api.get(&CLASSES, "", "hidden").await.is_none());
    host_api.patch(&CONFIG_MAPS, "default", "shared", json!({"data": {"a": "2"}})).await;
    eventually("the change is shown", || async {
        let map = tenant.api.get(&CONFIG_MAPS, "from-host", "shared").await?;
        (map.str_at(&["data", "a"]) == "2").then_some(())
    })
    .await;
    host_api.delete(&CONFIG_MAPS, "default", "shared").await;
    host_api.delete(&CLASSES, "", "shown").await;
    eventually("both are gone", || async {
        let map = tenant.api.get(&CONFIG_MAPS, "from-host", "shared").await;
        let class = tenant.api.get(&CLASSES, "", "shown").await;
        (map.is_none() && class.is_none()).then_some(())
    })
    .await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_and_patches() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let mut config = tenant.config();
    config.settings.pod_disruption_budgets = true;
    let patch = Patch {
        path: Path::parse("metadata.annotations[\"owner\"]").expect("a path"),
        mode: Mode::Expression {
            to_host: Some(Script::parse("'team-' + value + '-' + context.vcluster.name").expect("an expression")),
            to_virtual: None,
        },
    };
    config.settings.patches.insert("poddisruptionbudgets".into(), vec![patch]);
    let syncer = tenant.sync_with(host.client(), config).await;
    let budget = json!({"metadata": {"name": "b", "annotations": {"owner": "x"}},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    tenant.api.create(&BUDGETS, "default", budget).await;
    let on_host = tenant.on_host("default", "b");
    let annotation = |b: &apimachinery::Value| b.str_at(&["metadata", "annotations", "owner"]).to_owned();
    let made = eventually("the budget is on the host", || async {
        host_api.get(&BUDGETS, &on_host.namespace, &on_host.name).await
    })
    .await;
    assert_eq!(annotation(&made), "team-x-vc");
    tenant.api.patch(&BUDGETS, "default", "b", json!({"metadata": {"annotations": {"owner": "y"}}})).await;
    eventually("the patched change is on the host", || async {
        let budget = host_api.get(&BUDGETS, &on_host.namespace, &on_host.name).await?;
        (annotation(&budget) == "team-y-vc").then_some(())
    })
    .await;
    let shown = tenant.api.get(&BUDGETS, "default", "b").await.expect("the budget");
    assert_eq!(annotation(&shown), "y");
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_nodes_are_shown_and_used() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let mut config = tenant.config();
    config.settings.nodes = syncer::settings::Nodes::Real {
        all: true,
        labels: Default::default(),
        clear_image_status: true,
        sync_back_changes: false,
    };
    let syncer = tenant.sync_with(host.client(), config).await;
    let on_host = host_api.list(&NODES, "").await.len();
    eventually("all nodes are shown", || async { (tenant.api.list(&NODES, "").await.len() == on_host).then_some(()) })
        .await;
    tenant.api.create(&PODS, "default", simple_pod("web")).await;
    let pod = eventually("the virtual pod runs", || async {
        let pod = tenant.api.get(&PODS, "default", "web").await?;
        (pod.str_at(&["status", "phase"]) == "Running").then_some(pod)
    })
    .await;
    let node = tenant.api.get(&NODES, "", pod.str_at(&["spec", "nodeName"])).await.expect("its node");
    assert_eq!(node.str_at(&["metadata", "labels", "vcluster.loft.sh/fake-node"]), "");
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_live_side_by_side() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let (a, b) = (Virtual::start("team-a", &host_api).await, Virtual::start("team-b", &host_api).await);
    let (first, second) = (a.sync(&host).await, b.sync(&host).await);
    for tenant in [&a, &b] {
        tenant.api.create(&PODS, "default", simple_pod("web")).await;
        let web = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        tenant.api.create(&SERVICES, "default", web).await;
    }
    for tenant in [&a, &b] {
        eventually("the pod runs", || async {
            let pod = tenant.api.get(&PODS, "default", "web").await?;
            (pod.str_at(&["status", "phase"]) == "Running").then_some(())
        })
        .await;
        assert_eq!(tenant.api.list(&PODS, "").await.len(), 1, "{} sees its own pod only", tenant.name);
        assert_eq!(host_api.list(&PODS, &tenant.host_namespace).await.len(), 1);
    }
    // What one does is not felt by the other.
    a.api.delete(&PODS, "default", "web").await;
    eventually("the first tenant's pod is gone", || async {
        host_api.list(&PODS, &a.host_namespace).await.is_empty().then_some(())
    })
    .await;
    assert_eq!(host_api.list(&PODS, &b.host_namespace).await.len(), 1);
    first.shutdown().await;
    second.shutdown().await;
}
