//! The real engine between two real API servers while requests fail or are late, watches break and lag, the syncer restarts
//! and both sides are changed at random. At the end everything must agree. A failure prints the seed; `SIM_SEED` and
//! `SIM_STEPS` choose. `cargo test --release -p syncer -- --ignored a_million_steps` is the long run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use apimachinery::{Value, json};
use parking_lot::Mutex;
use syncer::{SyncerConfig, metadata};

use crate::cluster::*;
use crate::faults::Faults;
use crate::mappings::Kept;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_both_sides_agree_in_the_end() {
    let steps = from_env("SIM_STEPS", 250);
    let seeds = match from_env("SIM_SEED", 0) {
        0 => vec![1, 2],
        seed => vec![seed],
    };
    for seed in seeds {
        println!("SIM_SEED={seed} SIM_STEPS={steps}");
        simulate(seed, steps).await;
    }
}

/// Rounds of 10,000 steps, each between new clusters with a seed of its own.
#[tokio::test(start_paused = true)]
#[ignore = "takes twenty minutes; SIM_STEPS chooses another length"]
async fn a_million_steps_end_in_agreement() {
    let (steps, first) = (from_env("SIM_STEPS", 1_000_000), from_env("SIM_SEED", 1));
    let rounds = steps.div_ceil(10_000);
    for seed in first..first + rounds {
        let steps = steps.min(10_000);
        println!("SIM_SEED={seed} SIM_STEPS={steps}");
        simulate(seed, steps).await;
    }
}

async fn simulate(seed: u64, steps: u64) {
    let began = tokio::time::Instant::now();
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let node = first_node(&host_api).await;
    let host_faults = Faults::new(seed, 60);
    let virtual_faults = Faults::new(seed + 1000, 30);
    let dice = Faults::new(seed + 2000, 0);
    // The syncer's names survive it in a store that fails as well.
    let kept = Arc::new(Kept(Mutex::default(), Some(Faults::new(seed + 3000, 50))));
    let store_faults = kept.1.clone().expect("just given");
    let start = || {
        let config = SyncerConfig { mappings: Some(kept.clone()), ..tenant.config() };
        syncer::Syncer::start(virtual_faults.wrap(tenant.client()), host_faults.wrap(host.client()), config)
            .expect("the syncer starts")
    };
    let mut running = Some(start());

    // Somebody else's object under a name that a virtual one will want.
    let foreign = tenant.on_host("default", "map-0");
    host_api
        .create(
            &CONFIG_MAPS,
            &foreign.namespace,
            json!({"metadata": {"name": (foreign.name.as_str())}, "data": {"mine": "1"}}),
        )
        .await;

    for step in 0..steps {
        // Time stands still but for this: what is held back comes on time, and everything in the order that the seed gives.
        tokio::time::sleep(std::time::Duration::from_micros(dice.next() % 4_000)).await;
        let n = dice.next() % 12;
        let (pod, map) = (format!("pod-{n}"), format!("map-{n}"));
        // Random edits race with the syncer and with each other: that one fails is part of the game.
        match dice.next() % 16 {
            0..=3 => {
                let from = json!([{"configMapRef": {"name": map, "optional": true}}]);
                let p = crate::cluster::pod(&pod, json!([{"name": "app", "image": "nginx", "envFrom": from}]));
                let _ = tenant.api.try_create(&PODS, "default", placed(p, &node)).await;
            }
            4 | 5 => {
                let data = json!({"metadata": {"name": map}, "data": {"step": (step.to_string())}});
                let _ = tenant.api.try_create(&CONFIG_MAPS, "default", data).await;
            }
            6 => {
                let patch = json!({"data": {"step": (step.to_string())}});
                let _ = tenant.api.try_patch(&CONFIG_MAPS, "default", &map, patch).await;
            }
            7 => {
                let patch = json!({"metadata": {"labels": {"step": (step.to_string())}}});
                let _ = tenant.api.try_patch(&PODS, "default", &pod, patch).await;
            }
            8 => {
                let _ = tenant.api.try_delete(&PODS, "default", &pod).await;
            }
            9 => {
                let _ = tenant.api.try_delete(&CONFIG_MAPS, "default", &map).await;
            }
            12 => {
                let service = json!({"metadata": {"name": (format!("svc-{n}"))},
                    "spec": {"selector": {"app": pod}, "ports": [{"port": 80}]}});
                let _ = tenant.api.try_create(&SERVICES, "default", service).await;
            }
            13 => {
                let kind = if dice.next().is_multiple_of(2) { "NodePort" } else { "ClusterIP" };
                let patch = json!({"spec": {"type": kind, "selector": {"step": (step.to_string())}}});
                let _ = tenant.api.try_patch(&SERVICES, "default", &format!("svc-{n}"), patch).await;
            }
            14 => {
                let _ = tenant.api.try_delete(&SERVICES, "default", &format!("svc-{n}")).await;
            }
            // The foreign object stays as its owner made it.
            15 if n == 0 => {}
            15 => {
                // The host's administrator changes what a tenant made.
                let on_host = tenant.on_host("default", &map);
                let patch = json!({"data": {"host": (step.to_string())}});
                let _ = host_api.try_patch(&CONFIG_MAPS, &on_host.namespace, &on_host.name, patch).await;
            }
            10 => {
                let on_host = tenant.on_host("default", &pod);
                let _ = host_api.try_delete(&PODS, &on_host.namespace, &on_host.name).await;
            }
            _ => {
                if dice.next().is_multiple_of(4)
                    && let Some(old) = running.take()
                {
                    // Killed, or stopped in order.
                    if dice.next().is_multiple_of(2) {
                        old.shutdown().await;
                    }
                    drop(old);
                    running = Some(start());
                }
            }
        }
    }

    host_faults.per_mille.store(0, Ordering::Relaxed);
    virtual_faults.per_mille.store(0, Ordering::Relaxed);
    store_faults.per_mille.store(0, Ordering::Relaxed);
    let disagreement = std::sync::Mutex::new(String::new());
    let agreed = tokio::time::timeout(std::time::Duration::from_secs(240), async {
        loop {
            match disagreements(&tenant, &host_api, &kept).await {
                None => return,
                Some(what) => *disagreement.lock().expect("not poisoned") = what,
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    })
    .await;
    let injected = host_faults.injected.load(Ordering::Relaxed) + virtual_faults.injected.load(Ordering::Relaxed);
    assert!(
        agreed.is_ok(),
        "seed {seed}, {steps} steps, {injected} faults: {}",
        disagreement.lock().expect("not poisoned")
    );
    assert!(injected > 0, "nothing failed");
    if let Some(running) = &running {
        // Its caches may be a moment behind.
        eventually(&format!("no strays (seed {seed})"), || async { running.strays().is_empty().then_some(()) }).await;
    }
    println!("seed {seed}: {injected} faults, {} ms of the clusters' time", began.elapsed().as_millis());
    let still =
        host_api.get(&CONFIG_MAPS, &foreign.namespace, &foreign.name).await.expect("the foreign object is there");
    assert_eq!(still["data"], json!({"mine": "1"}), "seed {seed}");
    if let Some(running) = running {
        running.shutdown().await;
    }
}

fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    objects.into_iter().map(|o| (o.str_at(&["metadata", "name"]).to_owned(), o)).collect()
}

/// What is not as it should be.
async fn disagreements(tenant: &Virtual, host: &Api, kept: &Kept) -> Option<String> {
    let pods = by_name(tenant.api.list(&PODS, "default").await);
    let host_pods = by_name(host.list(&PODS, &tenant.host_namespace).await);
    for (name, pod) in &pods {
        let on_host = tenant.on_host("default", name);
        let Some(host_pod) = host_pods.get(&on_host.name) else {
            return Some(format!("pod {name} is not on the host"));
        };
        if metadata::annotation(host_pod, metadata::UID_ANNOTATION) != metadata::uid_of(pod) {
            return Some(format!("the host pod of {name} is an older pod's"));
        }
        if pod.str_at(&["status", "phase"]) != host_pod.str_at(&["status", "phase"]) {
            return Some(format!("pod {name} shows another phase than the host's"));
        }
        if metadata::label(pod, "step") != metadata::label(host_pod, "step") {
            return Some(format!("pod {name} has another label on the host"));
        }
    }
    if host_pods.len() != pods.len() {
        return Some(format!("{} pods, {} on the host", pods.len(), host_pods.len()));
    }
    let services = by_name(tenant.api.list(&SERVICES, "default").await);
    let host_services = by_name(host.list(&SERVICES, &tenant.host_namespace).await);
    for (name, service) in services.iter().filter(|(name, _)| *name != "kubernetes") {
        let Some(on_host) = host_services.get(&tenant.on_host("default", name).name) else {
            return Some(format!("service {name} is not on the host"));
        };
        for field in ["clusterIP", "type"] {
            if service["spec"][field] != on_host["spec"][field] {
                return Some(format!("service {name} has another {field} on the host"));
            }
        }
        let marker = on_host.str_at(&["spec", "selector", metadata::MANAGED_BY_LABEL]);
        if marker != tenant.name {
            return Some(format!("service {name} selects others' pods on the host"));
        }
        let app = |s: &Value| s.at(&["spec", "selector", "step"]).cloned();
        if app(service) != app(on_host) {
            return Some(format!("service {name} has another selector on the host"));
        }
    }
    let own = host_services.get(tenant.name);
    match (services.get("kubernetes"), own) {
        (Some(service), Some(own)) if service["spec"]["clusterIP"] == own["spec"]["clusterIP"] => {}
        (service, _) => return Some(format!("the API's own service has not the host's address: {service:?}")),
    }
    // The control plane's own and those of the tenant.
    if host_services.len() != services.len() {
        let known: BTreeSet<String> = services.keys().map(|n| tenant.on_host("default", n).name).collect();
        let extra: Vec<&Value> = host_services.iter().filter(|(n, _)| !known.contains(*n)).map(|(_, s)| s).collect();
        return Some(format!("{} services, {} on the host: {extra:?}", services.len(), host_services.len()));
    }
    let maps = by_name(tenant.api.list(&CONFIG_MAPS, "default").await);
    let wanted: BTreeSet<&str> = pods
        .values()
        .map(|p| p.array_at(&["spec", "containers"])[0]["envFrom"][0].str_at(&["configMapRef", "name"]))
        .filter(|n| maps.contains_key(*n))
        .collect();
    let host_maps = by_name(host.list(&CONFIG_MAPS, &tenant.host_namespace).await);
    let ours: BTreeMap<&str, &Value> = host_maps
        .values()
        .filter(|m| metadata::label(m, metadata::MANAGED_BY_LABEL) == tenant.name)
        .map(|m| (metadata::annotation(m, metadata::NAME_ANNOTATION), m))
        .collect();
    for name in &wanted {
        // The name that somebody else has.
        if *name == "map-0" {
            continue;
        }
        match ours.get(name) {
            None => return Some(format!("config map {name} is used and not on the host")),
            Some(on_host) if on_host["data"] != maps[*name]["data"] => {
                return Some(format!("config map {name} differs"));
            }
            Some(_) => {}
        }
    }
    // Every pair on the host is kept, and nothing else.
    let keys: BTreeSet<String> = kept.0.lock().keys().cloned().collect();
    let of = |kind: &str, name: &str| format!("/vcluster/mappings/v1/{kind}/default/{name}");
    let mut wanted_keys: BTreeSet<String> = pods.keys().map(|n| of("pod", n)).collect();
    wanted_keys.extend(services.keys().filter(|n| *n != "kubernetes").map(|n| of("service", n)));
    wanted_keys.extend(ours.keys().map(|n| of("configmap", n)));
    if let Some(missing) = wanted_keys.iter().find(|k| !keys.contains(*k)) {
        return Some(format!("{missing} is not kept"));
    }
    // A name that something refers to stays.
    let unneeded = |k: &&String| !wanted_keys.contains(*k) && !k.contains("/configmap/");
    if let Some(extra) = keys.iter().find(unneeded) {
        return Some(format!("{extra} is kept for nothing"));
    }
    ours.keys()
        .find(|name| !wanted.contains(*name))
        .map(|name| format!("config map {name} is on the host and not used"))
}
