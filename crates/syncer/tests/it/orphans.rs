//! No interleaving leaves a host object behind, or a virtual one alone.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::{Value, json};
use syncer::metadata::{UID_ANNOTATION, annotation, uid_of};
use syncer::names::{NamespaceRule, NamespacedName};

use crate::cluster::*;
use crate::scripted::{Gate, Script, What};

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": [{"port": 80}]}})
}

/// Until the host Service is there and is this very virtual one's, or until neither is there.
async fn agree(what: &str, tenant: &Virtual, host: &Api, at: &NamespacedName, there: bool) {
    eventually(what, || async {
        let on_host = host.get(&SERVICES, &at.namespace, &at.name).await;
        let virtual_ = tenant.api.get(&SERVICES, "default", "web").await;
        match (virtual_, on_host) {
            (Some(virtual_), Some(on_host)) => {
                (there && annotation(&on_host, UID_ANNOTATION) == uid_of(&virtual_)).then_some(())
            }
            (None, None) => (!there).then_some(()),
            _ => None,
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_apis_own_service_is_there_whatever_fails_while_it_moves() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let own = |tenant: &Virtual| {
        let (api, host_api, namespace) = (tenant.api.clone(), host_api.clone(), tenant.host_namespace.clone());
        let name = tenant.name;
        async move {
            let on_host = host_api.get(&SERVICES, &namespace, name).await?;
            let service = api.get(&SERVICES, "default", "kubernetes").await?;
            let endpoints = api.get(&ENDPOINTS, "default", "kubernetes").await?;
            let slice = api.get(&SLICES, "default", "kubernetes").await?;
            let moved = service["spec"]["clusterIP"] == on_host["spec"]["clusterIP"];
            let led = |o: &Value| o.to_string().contains("192.0.2.1");
            let settled = annotation(&service, "alcove.dev/readdress").is_empty();
            (moved && settled && led(&endpoints) && led(&slice)).then_some(())
        }
    };
    const PATH: &str = "/services/kubernetes";
    for (name, rules) in [
        ("lost", vec![("PATCH", PATH, 1, What::Lose)]),
        ("refused", vec![("PATCH", PATH, 3, What::Refuse)]),
        ("both", vec![("PATCH", PATH, 1, What::Lose), ("PATCH", PATH, 1, What::Refuse)]),
    ] {
        let tenant = Virtual::start(name, &host_api).await;
        let endpoints = json!({"metadata": {"name": name},
            "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"name": "https", "port": 8443}]}]});
        host_api.create(&ENDPOINTS, &tenant.host_namespace, endpoints).await;
        let script = Arc::new(Script::default());
        for (method, path, times, what) in rules {
            script.add(method, path, times, what);
        }
        let syncer = syncer::Syncer::start(script.wrap(tenant.client()), host.client(), tenant.config())
            .expect("the syncer starts");
        eventually(&format!("the API's Service has the host's address ({name})"), || own(&tenant)).await;
        assert_eq!(script.left(), 0, "{name}: all failures happened");
        // A tenant may delete it: it comes back.
        script.add("POST", "/namespaces/default/services", 1, What::Refuse);
        script.add("POST", "/namespaces/default/services", 1, What::Lose);
        tenant.api.delete(&SERVICES, "default", "kubernetes").await;
        eventually(&format!("the API's Service is back ({name})"), || own(&tenant)).await;
        syncer.shutdown().await;
    }
}

/// The tenant deletes a Service while its host Service is being made: before it is there, or when it is and nobody knows.
#[tokio::test(start_paused = true)]
async fn a_service_that_is_deleted_while_it_is_being_made_leaves_nothing() {
    let host = host().await;
    let host_api = Api::new(host.client());
    for (name, hold) in [("before", What::HoldBefore as fn(Arc<Gate>) -> What), ("after", What::HoldAndLose)] {
        let tenant = Virtual::start(name, &host_api).await;
        let at = tenant.on_host("default", "web");
        let script = Arc::new(Script::default());
        let syncer = tenant.sync_with(script.wrap(host.client()), tenant.config()).await;
        let gate = Gate::new();
        script.add("POST", "/services", 1, hold(gate.clone()));
        tenant.api.create(&SERVICES, "default", service("web")).await;
        gate.reached().await;
        tenant.api.delete(&SERVICES, "default", "web").await;
        gate.open();
        agree(&format!("nothing is left ({name})"), &tenant, &host_api, &at, false).await;
        eventually("no strays", || async { syncer.strays().is_empty().then_some(()) }).await;
        syncer.shutdown().await;
        assert!(host_api.get(&SERVICES, &at.namespace, &at.name).await.is_none(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_made_again_while_the_old_one_goes_has_one_host_service() {
    let host = host().await;
    let host_api = Api::new(host.client());
    for (name, hold) in [("before", What::HoldBefore as fn(Arc<Gate>) -> What), ("after", What::HoldAndLose)] {
        let tenant = Virtual::start(name, &host_api).await;
        let at = tenant.on_host("default", "web");
        let script = Arc::new(Script::default());
        let syncer = tenant.sync_with(script.wrap(host.client()), tenant.config()).await;
        tenant.api.create(&SERVICES, "default", service("web")).await;
        agree("it is on the host", &tenant, &host_api, &at, true).await;
        let gate = Gate::new();
        script.add("DELETE", "-x-default-x-before", 1, hold(gate.clone()));
        script.add("DELETE", "-x-default-x-after", 1, hold(gate.clone()));
        tenant.api.delete(&SERVICES, "default", "web").await;
        gate.reached().await;
        tenant.api.create(&SERVICES, "default", service("web")).await;
        gate.open();
        agree(&format!("the new one is on the host ({name})"), &tenant, &host_api, &at, true).await;
        tenant.api.delete(&SERVICES, "default", "web").await;
        agree(&format!("nothing is left ({name})"), &tenant, &host_api, &at, false).await;
        syncer.shutdown().await;
    }
}

/// The history that would tell of a change is gone when the watch comes back: only the listing itself shows it.
#[tokio::test(start_paused = true)]
async fn what_comes_and_goes_while_a_watch_is_broken_is_noticed_by_the_next_listing() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let at = tenant.on_host("default", "web");
    let script = Arc::new(Script::default());
    let syncer = tenant.sync_with(script.wrap(host.client()), tenant.config()).await;
    let gate = Gate::new();
    script.add("WATCH", "/namespaces/vcluster-vc/services", 1, What::HoldBefore(gate.clone()));
    script.add("WATCH", "/namespaces/vcluster-vc/services", 1, What::Expire);
    script.break_watches();
    gate.reached().await;
    tenant.api.create(&SERVICES, "default", service("web")).await;
    agree("it is on the host", &tenant, &host_api, &at, true).await;
    // The syncer knows of it from its own request alone.
    host_api.delete(&SERVICES, &at.namespace, &at.name).await;
    let began = tokio::time::Instant::now();
    gate.open();
    agree("it is on the host again, or both are gone", &tenant, &host_api, &at, true).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}: found by the listing, not by a timer");
    syncer.shutdown().await;
}

/// The same on the virtual side: the virtual Service is deleted unseen.
#[tokio::test(start_paused = true)]
async fn a_virtual_object_that_goes_while_its_watch_is_broken_takes_its_host_object_along() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let at = tenant.on_host("default", "web");
    let script = Arc::new(Script::default());
    let syncer =
        syncer::Syncer::start(script.wrap(tenant.client()), host.client(), tenant.config()).expect("it starts");
    syncer.wait_synced().await;
    tenant.api.create(&SERVICES, "default", service("web")).await;
    agree("it is on the host", &tenant, &host_api, &at, true).await;
    let gate = Gate::new();
    script.add("WATCH", "/api/v1/services", 1, What::HoldBefore(gate.clone()));
    script.add("WATCH", "/api/v1/services", 1, What::Expire);
    script.break_watches();
    gate.reached().await;
    tenant.api.delete(&SERVICES, "default", "web").await;
    gate.open();
    agree("nothing is left", &tenant, &host_api, &at, false).await;
    syncer.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_lost_its_virtual_object_while_nobody_looked_is_known_and_goes() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let at = tenant.on_host("default", "web");
    let first = tenant.sync(&host).await;
    tenant.api.create(&SERVICES, "default", service("web")).await;
    agree("it is on the host", &tenant, &host_api, &at, true).await;
    first.shutdown().await;
    tenant.api.delete(&SERVICES, "default", "web").await;
    let second = syncer::Syncer::standby(tenant.client(), host.client(), tenant.config()).expect("it starts");
    second.wait_synced().await;
    assert_eq!(second.strays(), [("services".to_owned(), NamespacedName::new("default", "web"))]);
    second.activate();
    agree("nothing is left", &tenant, &host_api, &at, false).await;
    eventually("no strays", || async { second.strays().is_empty().then_some(()) }).await;
    second.shutdown().await;
}

/// An API server asked the host first, and then never stored the Service.
#[tokio::test(start_paused = true)]
async fn a_host_service_that_no_virtual_one_follows_goes_after_a_while() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let at = tenant.on_host("default", "web");
    let mut config = tenant.config();
    config.clock = informer::Clock::from_tokio(jiff::Timestamp::now());
    let syncer = tenant.sync_with(host.client(), config).await;
    let mut asked = service("web");
    asked.set_at(&["metadata", "namespace"], "default".into());
    syncer.create_service_on_host(&mut asked).await.expect("the host makes it");
    assert!(host_api.get(&SERVICES, &at.namespace, &at.name).await.is_some());
    assert!(!asked.str_at(&["spec", "clusterIP"]).is_empty(), "the tenant's Service gets the host's address");
    agree("nothing is left", &tenant, &host_api, &at, false).await;
    syncer.shutdown().await;
}

/// Namespaces of the host that were made for virtual ones, while the syncer was away.
#[tokio::test(start_paused = true)]
async fn a_mapped_namespace_goes_with_its_virtual_one_and_not_with_its_rule() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let namespace = |name: &str| json!({"metadata": {"name": name}});
    let config = |to: &str| {
        let rule = NamespaceRule { from: "team-*".into(), to: to.into() };
        let mut config = tenant.config();
        config.names = config.names.with_namespace_rules(vec![rule]);
        config
    };
    // One was there before.
    host_api.create(&NAMESPACES, "", namespace("one-old")).await;
    let first = tenant.sync_with(host.client(), config("one-*")).await;
    for name in ["team-a", "team-b", "team-old"] {
        tenant.api.create(&NAMESPACES, "", namespace(name)).await;
    }
    let there = |name: &'static str, want: bool| {
        let api = host_api.clone();
        async move {
            let found = api.get(&NAMESPACES, "", name).await;
            let ours = found.as_ref().is_some_and(|n| !annotation(n, "vcluster.loft.sh/object-name").is_empty());
            (ours == want).then_some(())
        }
    };
    for name in ["one-a", "one-b", "one-old"] {
        eventually(name, || there(name, true)).await;
    }
    first.shutdown().await;
    for name in ["team-a", "team-old"] {
        tenant.api.delete(&NAMESPACES, "", name).await;
        eventually("it is gone", || async { tenant.api.get(&NAMESPACES, "", name).await.is_none().then_some(()) })
            .await;
    }
    // With other rules.
    let second = tenant.sync_with(host.client(), config("two-*")).await;
    eventually("its namespace is gone", || there("one-a", false)).await;
    eventually("the new rule is followed", || there("two-b", true)).await;
    assert!(there("one-b", true).await.is_some(), "what is in it is still the tenant's");
    assert!(there("one-old", true).await.is_some(), "it was there before");
    second.shutdown().await;
}
