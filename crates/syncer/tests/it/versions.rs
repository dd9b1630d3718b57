//! The two clusters need not have one version: what one of them does not know is left alone by the other.

use std::sync::Arc;

use apimachinery::json;

use crate::cluster::*;
use crate::scripted::{Script, What};

/// A Service field that an older host drops.
#[tokio::test(start_paused = true)]
async fn a_field_that_the_host_does_not_know_stays_the_tenants() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let at = tenant.on_host("default", "web");
    let script = Arc::new(Script::default());
    script.add("POST", "/services", usize::MAX, What::Drop(&["spec", "trafficDistribution"]));
    script.add("PATCH", "/services/web-x-default-x-vc", usize::MAX, What::Drop(&["spec", "trafficDistribution"]));
    let syncer = tenant.sync_with(script.wrap(host.client()), tenant.config()).await;
    let service = json!({"metadata": {"name": "web"},
        "spec": {"ports": [{"port": 80}], "trafficDistribution": "PreferClose"}});
    tenant.api.create(&SERVICES, "default", service).await;
    eventually("the tenant is told", || async {
        let events = tenant.api.list(&EVENTS, "default").await;
        let told = |e: &apimachinery::Value| e.str_at(&["message"]).contains("spec.trafficDistribution");
        events.iter().any(told).then_some(())
    })
    .await;
    // Other changes go on in both directions, also after a restart.
    let changed = |label: &'static str| {
        let (host_api, at) = (host_api.clone(), at.clone());
        async move {
            eventually("the change is on the host", || async {
                let object = host_api.get(&SERVICES, &at.namespace, &at.name).await?;
                (object["metadata"]["labels"]["n"] == label).then_some(())
            })
            .await;
        }
    };
    let label = |n: &str| json!({"metadata": {"labels": {"n": n}}});
    tenant.api.patch(&SERVICES, "default", "web", label("1")).await;
    changed("1").await;
    syncer.shutdown().await;
    let syncer = tenant.sync_with(script.wrap(host.client()), tenant.config()).await;
    tenant.api.patch(&SERVICES, "default", "web", label("2")).await;
    changed("2").await;
    let edit = json!({"spec": {"sessionAffinity": "ClientIP"}});
    host_api.patch(&SERVICES, &at.namespace, &at.name, edit).await;
    eventually("the host's edit is shown", || async {
        let service = tenant.api.get(&SERVICES, "default", "web").await?;
        (service["spec"]["sessionAffinity"] == "ClientIP").then_some(())
    })
    .await;
    let service = tenant.api.get(&SERVICES, "default", "web").await.expect("it is there");
    assert_eq!(service["spec"]["trafficDistribution"], "PreferClose");
    let on_host = host_api.get(&SERVICES, &at.namespace, &at.name).await.expect("it is there");
    assert!(on_host["spec"].get("trafficDistribution").is_none());
    syncer.shutdown().await;
}

/// What an older host leaves out of a new pod is said, and the pod goes on without it.
#[tokio::test(start_paused = true)]
async fn fields_that_an_older_host_drops_are_named() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let script = Arc::new(Script::default());
    script.add("POST", "/pods", usize::MAX, What::Drop(&["spec", "hostnameOverride"]));
    let mut config = tenant.config();
    config.settings.host_version = Some((1, 32));
    let syncer = tenant.sync_with(script.wrap(host.client()), config).await;
    let mut pod = simple_pod("web");
    pod["spec"]["hostnameOverride"] = "db.example".into();
    tenant.api.create(&PODS, "default", pod).await;
    let at = tenant.on_host("default", "web");
    eventually("it is on the host", || async { host_api.get(&PODS, &at.namespace, &at.name).await }).await;
    eventually("the tenant is told", || async {
        let events = tenant.api.list(&EVENTS, "default").await;
        let message = "the host does not know spec.hostnameOverride: not synced";
        events.iter().any(|e| e.str_at(&["message"]) == message).then_some(())
    })
    .await;
    syncer.shutdown().await;
}

#[test]
fn what_is_sent_and_not_kept_is_dropped() {
    let sent = json!({"spec": {"a": 1, "b": {"c": "x", "none": [], "no": false}, "list": [{"n": "a", "rules": [1]}],
        "longer": [{"q": 1}]}});
    let table = [
        (sent.clone(), vec![]),
        (
            json!({"spec": {"a": 2, "b": {"c": "y"}, "list": [{"n": "a"}], "longer": [{}, {}]}}),
            vec!["spec.list[0].rules"],
        ),
        (
            json!({"spec": {"b": {}, "list": [{"n": "a", "rules": [1]}], "longer": [{"q": 1}]}}),
            vec!["spec.a", "spec.b.c"],
        ),
    ];
    for (made, want) in table {
        assert_eq!(syncer::diff::dropped(&sent, &made, "spec"), want, "{made}");
    }
}

/// A status field that an older virtual API server drops is not sent again and again.
#[tokio::test(start_paused = true)]
async fn a_field_that_the_virtual_cluster_does_not_know_is_sent_once() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let node = first_node(&host_api).await;
    let script = Arc::new(Script::default());
    script.add("PATCH", "/pods/web/status", usize::MAX, What::Drop(&["status", "hostIPs"]));
    let syncer =
        syncer::Syncer::start(script.wrap(tenant.client()), host.client(), tenant.config()).expect("it starts");
    syncer.wait_synced().await;
    tenant.api.create(&PODS, "default", placed(simple_pod("web"), &node)).await;
    eventually("it runs", || async {
        let pod = tenant.api.get(&PODS, "default", "web").await?;
        (pod.str_at(&["status", "phase"]) == "Running").then_some(())
    })
    .await;
    let at = tenant.on_host("default", "web");
    let sent = || script.writes.read().iter().filter(|(_, path, _, _)| path.ends_with("/pods/web/status")).count();
    let before = sent();
    // Each of these makes the syncer look at the pod.
    for n in 0..5 {
        let n = n.to_string();
        let patch = json!({"metadata": {"annotations": {"example.com/n": (n.as_str())}}});
        host_api.patch(&PODS, &at.namespace, &at.name, patch).await;
        eventually("the annotation is shown", || async {
            let pod = tenant.api.get(&PODS, "default", "web").await?;
            (pod["metadata"]["annotations"]["example.com/n"] == n.as_str()).then_some(())
        })
        .await;
    }
    assert!(sent() <= before + 1, "{} of 5", sent() - before);
    let pod = tenant.api.get(&PODS, "default", "web").await.expect("it is there");
    assert!(pod["status"].get("hostIPs").is_none(), "the field was dropped");
    syncer.shutdown().await;
}

/// Every type has its queue's depth, its errors and a histogram that adds up.
#[tokio::test(start_paused = true)]
async fn metrics_tell_each_type_apart() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let script = Arc::new(Script::default());
    script.add("POST", "/services", 2, What::Refuse);
    let syncer = tenant.sync_with(script.wrap(host.client()), tenant.config()).await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
    tenant.api.create(&SERVICES, "default", service).await;
    let at = tenant.on_host("default", "web");
    eventually("it is on the host", || async { host_api.get(&SERVICES, &at.namespace, &at.name).await }).await;
    eventually("all is settled", || async { syncer.has_synced().then_some(()) }).await;
    let text = syncer.metrics();
    let value = |line: &str| -> f64 {
        let found = text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("{line} in\n{text}"));
        found.trim().parse().expect("a number")
    };
    assert_eq!(value("alcove_syncer_errors_total{type=\"services\"}"), 2.0);
    assert_eq!(value("alcove_syncer_errors_total{type=\"pods\"}"), 0.0);
    assert_eq!(value("alcove_syncer_host_creates_total{type=\"services\"}"), 3.0);
    assert_eq!(value("alcove_syncer_queue_depth{type=\"services\"}"), 0.0);
    assert_eq!(value("alcove_syncer_strays_total{type=\"services\"}"), 0.0);
    for ty in ["pods", "services", "configmaps", "secrets", "nodes", "events", "imports", "apiservice"] {
        let metric = |part: &str| value(&format!("alcove_syncer_reconcile_seconds{part}"));
        let count = metric(&format!("_count{{type=\"{ty}\"}}"));
        assert_eq!(metric(&format!("_bucket{{type=\"{ty}\",le=\"+Inf\"}}")), count, "{ty}");
        assert_eq!(value(&format!("alcove_syncer_reconciles_total{{type=\"{ty}\"}}")), count, "{ty}");
        let mut last = 0.0;
        for le in ["0.001", "0.002", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "1", "5"] {
            let bucket = metric(&format!("_bucket{{type=\"{ty}\",le=\"{le}\"}}"));
            assert!(last <= bucket && bucket <= count, "{ty} {le}: {last} {bucket} {count}");
            last = bucket;
        }
    }
    // One description for each metric, and no label of a tenant's choice.
    for name in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).filter_map(|l| l.split(' ').next()) {
        assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1, "{name}");
    }
    assert!(!text.contains("web") && !text.contains("default"), "{text}");
    syncer.shutdown().await;
}
