//! What holds for any object: nothing leaks, nothing collides, nothing is done twice.

use apimachinery::{Value, json};
use proptest::prelude::*;
use syncer::kind;
use syncer::metadata::{self, Owner};
use syncer::names::Names;
use syncer::plan::{Action, LastSeen, plan};
use syncer::settings::{Settings, Wanted};
use syncer::types::configs::Configs;
use syncer::types::pod::Pods;
use syncer::types::service::Services;
use syncer::types::{Context, Facts, ToHost};

/// Virtual names that objects are referred to by; recognisable wherever they turn up.
fn reference() -> impl Strategy<Value = String> {
    "ref[a-z0-9]{1,40}"
}

fn label_map() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("app".to_owned()),
        Just("release".to_owned()),
        Just("vcluster.loft.sh/managed-by".to_owned()),
        Just("vcluster.loft.sh/namespace".to_owned()),
        "[a-z]{1,8}/[a-z]{1,8}",
    ];
    prop::collection::btree_map(key, "[a-z0-9]{0,10}", 0..5)
        .prop_map(|m| Value::Object(m.into_iter().map(|(k, v)| (k, Value::from(v))).collect()))
}

fn volume() -> impl Strategy<Value = Value> {
    (reference(), 0..8usize).prop_map(|(name, n)| match n {
        0 => json!({"secret": {"secretName": name}}),
        1 => json!({"configMap": {"name": name}}),
        2 => json!({"persistentVolumeClaim": {"claimName": name}}),
        3 => json!({"projected": {"sources": [{"secret": {"name": name}}, {"serviceAccountToken": {"path": "t"}}]}}),
        4 => json!({"csi": {"driver": "d", "nodePublishSecretRef": {"name": name}}}),
        5 => json!({"rbd": {"image": "i", "secretRef": {"name": name}}}),
        6 => json!({"glusterfs": {"endpoints": name, "path": "p"}}),
        _ => json!({"azureFile": {"secretName": name, "shareName": "s"}}),
    })
}

fn container() -> impl Strategy<Value = Value> {
    (reference(), reference(), 0..5usize).prop_map(|(a, b, n)| {
        let from = match n {
            0 => json!({"secretKeyRef": {"name": a, "key": "k"}}),
            1 => json!({"configMapKeyRef": {"name": a, "key": "k"}}),
            2 => json!({"fieldRef": {"fieldPath": "metadata.namespace"}}),
            3 => json!({"fieldRef": {"fieldPath": "metadata.name"}}),
            _ => json!({"fieldRef": {"fieldPath": "metadata.labels['release']"}}),
        };
        json!({"name": "c", "image": "i", "env": [{"name": "E", "valueFrom": from}],
            "envFrom": [{"secretRef": {"name": b}}]})
    })
}

fn pod() -> impl Strategy<Value = Value> {
    (
        "[a-z]([a-z0-9.-]{0,60}[a-z0-9])?",
        "tenant[a-z0-9]{0,20}",
        label_map(),
        label_map(),
        prop::collection::vec(volume(), 0..4),
        prop::collection::vec(container(), 1..3),
        prop::option::of(label_map()),
        reference(),
    )
        .prop_map(|(name, namespace, labels, annotations, volumes, containers, selector, account)| {
            let volumes: Vec<Value> = volumes
                .into_iter()
                .enumerate()
                .map(|(n, mut v)| {
                    v["name"] = format!("v{n}").into();
                    v
                })
                .collect();
            let mut pod = json!({
                "metadata": {"name": name, "namespace": namespace, "uid": "u-1", "labels": labels, "annotations": annotations},
                "spec": {"containers": containers, "volumes": volumes, "serviceAccountName": account,
                    "imagePullSecrets": [{"name": account}]},
            });
            if let Some(selector) = selector {
                pod["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "h", "labelSelector": {"matchLabels": selector}}]}});
            }
            pod
        })
}

struct World {
    names: Names,
    settings: Settings,
    facts: Facts,
}

impl World {
    fn new(name: &str) -> World {
        let settings = Settings {
            workload_service_account: "vc-workload".into(),
            config_maps: Wanted::All,
            secrets: Wanted::All,
            ..Settings::default()
        };
        let mut facts = Facts { kube_ip: "10.0.0.1".into(), dns_ip: "10.0.0.2".into(), ..Facts::default() };
        // Tokens that are fine for long.
        facts.token_secret = Some(json!({
            "metadata": {"annotations": {"alcove.dev/renew-at": "9999999999"}},
            "data": {"v0": "", "v1": "", "v2": "", "v3": ""},
        }));
        World { names: Names::new(name, "host-ns"), settings, facts }
    }

    fn ctx(&self) -> Context<'_> {
        Context {
            names: &self.names,
            settings: &self.settings,
            owner: None,
            facts: &self.facts,
            patches: &[],
            now: jiff::Timestamp::UNIX_EPOCH,
        }
    }
}

/// All strings that are values in a tree.
fn strings<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::String(s) => out.push(s),
        Value::Array(a) => a.iter().for_each(|v| strings(v, out)),
        Value::Object(m) => m.values().for_each(|v| strings(v, out)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_virtual_name_is_referred_to_on_the_host(pod in pod()) {
        let world = World::new("vc");
        let (host, _) = Pods.translate(&pod, &world.ctx()).expect("a host pod");
        let namespace = pod.str_at(&["metadata", "namespace"]);
        let mut all = Vec::new();
        let mut spec = host["spec"].clone();
        let affinity = spec.remove_at(&["affinity"]);
        strings(&spec, &mut all);
        for text in all {
            let hashed = text.len() == 63;
            prop_assert!(!text.starts_with("ref") || text.ends_with("-x-vc") || hashed, "{text} in {host}");
            // The namespace is part of names and of the DNS search list, and nothing by itself.
            prop_assert!(text != namespace, "{text} in {host}");
        }
        prop_assert_eq!(host.str_at(&["metadata", "namespace"]), "host-ns");
        let affinity = affinity.unwrap_or_default();
        let bound = &affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"]["matchLabels"];
        if !bound.is_null() {
            prop_assert_eq!(bound.str_at(&[metadata::MANAGED_BY_LABEL]), "vc");
            prop_assert_eq!(bound.str_at(&[metadata::NAMESPACE_LABEL]), namespace);
        }
    }

    #[test]
    fn what_was_synced_needs_no_second_run(pod in pod(), labels in label_map()) {
        let world = World::new("vc");
        let config = json!({"metadata": {"name": "m", "namespace": "n", "uid": "u", "labels": labels}, "data": {"a": "b"}});
        let service = json!({"metadata": {"name": "m", "namespace": "n", "uid": "u", "labels": labels},
            "spec": {"selector": labels, "clusterIP": "None", "ports": [{"port": 1, "protocol": "TCP"}]}});
        let types: [(&dyn ToHost, &Value); 3] = [(&Pods, &pod), (&Configs::ConfigMaps, &config), (&Services, &service)];
        for (ty, object) in types {
            let (mut host, _) = ty.translate(object, &world.ctx()).expect("a host object");
            host["metadata"]["uid"] = "h".into();
            let plan = plan(ty, Some(object), Some(&host), &LastSeen::default(), &world.ctx());
            let work: Vec<&Action> = plan.actions.iter().filter(|a| !matches!(a, Action::Again { .. })).collect();
            prop_assert!(work.is_empty(), "{work:?} for {object} and {host}");
        }
    }

    #[test]
    fn a_status_is_shown_once(pod in pod(), ready in any::<bool>()) {
        let world = World::new("vc");
        let (mut host, _) = Pods.translate(&pod, &world.ctx()).expect("a host pod");
        host["metadata"]["uid"] = "h".into();
        host["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": (ready.to_string())}],
            "containerStatuses": [{"name": "c", "ready": ready}]});
        let mut shown = pod.clone();
        for round in 0..2 {
            let plan = plan(&Pods, Some(&shown), Some(&host), &LastSeen::default(), &world.ctx());
            let patches: Vec<&Action> = plan.actions.iter().filter(|a| !matches!(a, Action::Again { .. })).collect();
            prop_assert_eq!(patches.len(), usize::from(round == 0), "{:?}", patches);
            if let Some(Action::PatchVirtual { patch, .. }) = patches.first() {
                shown["status"] = patch["status"].clone();
            }
        }
    }

    #[test]
    fn tenants_never_take_each_other_for_themselves(
        a in ("[a-z]([a-z0-9-]{0,30}[a-z0-9])?", "[a-z]([a-z0-9-]{0,30}[a-z0-9])?", "[a-z][a-z0-9-]{0,8}[a-z0-9]"),
        b in ("[a-z]([a-z0-9-]{0,30}[a-z0-9])?", "[a-z]([a-z0-9-]{0,30}[a-z0-9])?", "[a-z][a-z0-9-]{0,8}[a-z0-9]"),
    ) {
        prop_assume!(a.2 != b.2);
        let (first, second) = (World::new(&a.2), World::new(&b.2));
        let object = json!({"metadata": {"name": (a.0), "namespace": (a.1), "uid": "u"}, "data": {}});
        let (host, _) = Configs::Secrets.translate(&object, &first.ctx()).expect("a host object");
        prop_assert_ne!(metadata::owner(&host, &kind::SECRET, &first.names), Owner::Foreign);
        prop_assert_eq!(metadata::owner(&host, &kind::SECRET, &second.names), Owner::Foreign);
    }

    #[test]
    fn labels_survive_the_way_there_and_back(labels in label_map()) {
        let world = World::new("vc");
        let object = json!({"metadata": {"name": "m", "namespace": "n", "uid": "u", "labels": labels}, "data": {}});
        let (host, _) = Configs::ConfigMaps.translate(&object, &world.ctx()).expect("a host object");
        let back: apimachinery::Map = metadata::string_map(host.at(&["metadata", "labels"]))
            .filter_map(|(k, v)| world.names.virtual_label(k).map(|k| (k, Value::from(v))))
            .collect();
        prop_assert_eq!(Value::Object(back), labels);
    }
}
