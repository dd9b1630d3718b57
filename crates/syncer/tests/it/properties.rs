//! What holds for any object of any type: nothing leaks, nothing collides, nothing is done twice.
//!
//! The types are the engine's own list ([`syncer::types::all`]): one without a generator here fails.

use apimachinery::{Value, json};
use proptest::prelude::*;
use syncer::metadata::{self, Owner};
use syncer::names::{Names, NamespaceRule};
use syncer::patches::Patch;
use syncer::plan::{Action, LastSeen, plan};
use syncer::registry::ENTRIES;
use syncer::settings::{Settings, Wanted};
use syncer::types::configs::Configs;
use syncer::types::pod::Pods;
use syncer::types::{Context, Facts, ToHost};

use crate::configured;

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

/// `metadata` of a tenant's object.
fn meta() -> impl Strategy<Value = Value> {
    ("[a-z]([a-z0-9-]{0,60}[a-z0-9])?", "tenant[a-z0-9]{0,20}", label_map(), label_map()).prop_map(
        |(name, namespace, labels, annotations)| {
            json!({"name": name, "namespace": namespace, "uid": "u-1", "generation": 3,
                "labels": labels, "annotations": annotations})
        },
    )
}

/// An object with members that are made of two names and a number.
fn with(members: fn(String, String, usize, &str) -> Value) -> BoxedStrategy<Value> {
    (meta(), reference(), reference(), 0..16usize)
        .prop_map(move |(metadata, a, b, n)| {
            let namespace = metadata.str_at(&["namespace"]).to_owned();
            let mut object = members(a, b, n, &namespace);
            object["metadata"] = metadata;
            object
        })
        .boxed()
}

fn cluster_scoped(objects: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    objects
        .prop_map(|mut object| {
            object["metadata"].remove_at(&["namespace"]);
            object
        })
        .boxed()
}

/// A route to a Gateway of the tenant; every name of a Service is a reference.
fn route(extra: fn(&str) -> Value) -> BoxedStrategy<Value> {
    (meta(), reference(), reference(), extra_strategy(extra))
        .prop_map(|(metadata, a, b, (extra, n))| {
            let extra: Value = extra(&b);
            let mut rule = json!({"backendRefs": [{"name": a, "port": 80}]});
            for (key, value) in extra.as_object().expect("members").iter() {
                rule[key.as_str()] = value.clone();
            }
            let mut parent = json!({"name": GATEWAY, "namespace": GATEWAY_NAMESPACE});
            if n % 2 == 0 {
                parent["sectionName"] = "all".into();
            }
            json!({"metadata": metadata, "spec": {"parentRefs": [parent], "hostnames": ["a.example"], "rules": [rule]}})
        })
        .boxed()
}

type Extra = fn(&str) -> Value;

fn extra_strategy(extra: Extra) -> impl Strategy<Value = (Extra, usize)> {
    (0..4usize).prop_map(move |n| (extra, n))
}

const GATEWAY: &str = "refgateway";
const GATEWAY_NAMESPACE: &str = "tenantgateways";

/// How a type is tried.
struct Case {
    objects: BoxedStrategy<Value>,
    /// A status of the host that comes back.
    status: Option<Value>,
    /// References that only the configuration knows.
    patches: Vec<Patch>,
    /// Namespaces are mapped one to one, so that names inside stay.
    mapped: bool,
}

impl Case {
    fn new(objects: BoxedStrategy<Value>) -> Case {
        Case { objects, status: None, patches: Vec::new(), mapped: false }
    }

    fn status(self, status: Value) -> Case {
        Case { status: Some(status), ..self }
    }
}

fn conditions() -> Value {
    json!({"conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "m", "observedGeneration": 7,
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
}

/// What every type is tried with.
fn case(name: &str) -> Option<Case> {
    let mirror: Extra =
        |b| json!({"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": b, "port": 1}}}]});
    let none: Extra = |_| json!({});
    Some(match name {
        "pods" => Case::new(pod().boxed()).status(json!({"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"name": "c", "ready": true}]})),
        "services" => Case::new(with(|a, _, n, _| {
            let mut spec = json!({"selector": {"app": a, "release": "r"}, "ports": [{"port": 1, "protocol": "TCP"}]});
            match n % 4 {
                0 => spec = json!({"type": "ExternalName", "externalName": "a.example"}),
                1 => drop(spec.remove_at(&["selector"])),
                2 => spec["clusterIP"] = "None".into(),
                _ => spec["type"] = "LoadBalancer".into(),
            }
            json!({ "spec": spec })
        }))
        .status(json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}})),
        "configmaps" => Case::new(with(|_, _, n, _| json!({"data": {"a": (n.to_string())}}))),
        "secrets" => Case::new(with(|_, _, n, _| json!({"data": {"a": "YQ=="},
            "type": (["Opaque", "kubernetes.io/service-account-token", "kubernetes.io/tls"][n % 3])}))),
        "endpoints" => Case::new(with(|a, b, n, namespace| {
            let kind = ["Pod", "Secret"][n % 2];
            json!({"subsets": [{"addresses": [{"ip": "1.2.3.4", "targetRef": {"kind": kind, "name": a, "namespace": namespace}}],
                "notReadyAddresses": [{"ip": "1.2.3.5", "targetRef": {"kind": "Pod", "name": b}}]}]})
        })),
        "endpointslices" => Case::new(
            with(|a, b, _, namespace| {
                json!({"addressType": "IPv4", "service": b, "endpoints": [{"addresses": ["1.2.3.4"],
                    "targetRef": {"kind": "Pod", "name": a, "namespace": namespace}}]})
            })
            .prop_map(|mut slice| {
                let service = slice.remove_at(&["service"]).unwrap_or_default();
                slice.set_at(&["metadata", "labels", "kubernetes.io/service-name"], service);
                slice
            })
            .boxed(),
        ),
        "persistentvolumeclaims" => Case::new(with(|a, b, n, namespace| {
            let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
                "dataSource": {"kind": "PersistentVolumeClaim", "name": a}});
            if n % 2 == 0 {
                spec["volumeName"] = b.into();
            } else {
                spec["selector"] = json!({"matchLabels": {"of": "x"}});
                spec["dataSourceRef"] = json!({"kind": "PersistentVolumeClaim", "name": b, "namespace": namespace});
            }
            if n % 3 == 0 {
                spec["storageClassName"] = "refclass".into();
            }
            json!({ "spec": spec })
        }))
        .status(json!({"phase": "Bound", "capacity": {"storage": "1Gi"}})),
        "persistentvolumes" => Case::new(cluster_scoped(with(|a, b, n, namespace| {
            let reference = json!({"name": a, "namespace": namespace});
            let mut spec = match n % 3 {
                0 => json!({"csi": {"driver": "d", "volumeHandle": "h", "nodeStageSecretRef": reference}}),
                1 => json!({"azureFile": {"secretName": a, "secretNamespace": namespace, "shareName": "s"}}),
                _ => json!({"rbd": {"image": "i", "secretRef": reference}}),
            };
            spec["capacity"] = json!({"storage": "1Gi"});
            spec["storageClassName"] = "refclass".into();
            spec["claimRef"] = json!({"name": b, "namespace": namespace});
            json!({ "spec": spec })
        })))
        .status(json!({"phase": "Bound"})),
        "ingresses" => Case::new(
            with(|a, b, n, namespace| {
                let backend = json!({"service": {"name": a, "port": {"number": 80}}});
                let secret = if n % 2 == 0 { b.clone() } else { format!("{namespace}/{b}") };
                json!({"secret": secret, "spec": {"ingressClassName": "nginx", "defaultBackend": backend, "tls": [{"secretName": b}],
                    "rules": [{"host": "a.example", "http": {"paths": [{"path": "/", "backend": backend},
                        {"path": "/r", "backend": {"resource": {"kind": "X", "name": b}}}]}}]}})
            })
            .prop_map(|mut ingress| {
                let secret = ingress.remove_at(&["secret"]).unwrap_or_default();
                ingress.set_at(&["metadata", "annotations", "nginx.ingress.kubernetes.io/auth-secret"], secret);
                ingress
            })
            .boxed(),
        )
        .status(json!({"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}})),
        "networkpolicies" => Case::new(with(|a, b, n, _| {
            let peer = match n % 3 {
                0 => json!({"podSelector": {"matchLabels": {"app": a}}}),
                1 => json!({"namespaceSelector": {"matchLabels": {"team": b}}}),
                _ => json!({"podSelector": {}, "namespaceSelector": {"matchExpressions": [{"key": "k", "operator": "Exists"}]}}),
            };
            json!({"spec": {"podSelector": {"matchLabels": {"release": "r"}}, "ingress": [{"from": [peer]}]}})
        })),
        "poddisruptionbudgets" => Case::new(with(|a, _, n, _| {
            json!({"spec": {"maxUnavailable": (n as i64), "selector": {"matchLabels": {"app": a}}}})
        }))
        .status(json!({"currentHealthy": 2, "desiredHealthy": 1, "disruptionsAllowed": 1, "expectedPods": 2})),
        "serviceaccounts" => Case::new(with(|a, b, _, _| json!({"secrets": [{"name": a}], "imagePullSecrets": [{"name": b}]}))),
        "priorityclasses" => {
            Case::new(cluster_scoped(with(|_, _, n, _| json!({"value": ((n as i64) << 28), "globalDefault": (n % 2 == 0)}))))
        }
        "storageclasses" => Case::new(cluster_scoped(with(|_, _, n, _| {
            json!({"provisioner": "p", "parameters": {"type": (format!("t{n}"))}})
        }))),
        "resourceclaims" => Case::new(with(|_, _, n, _| {
            json!({"spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.example", "count": (n as i64)}}]}}})
        }))
        .status(json!({"allocation": {"devices": {"results": [{"request": "gpu", "driver": "d", "pool": "p", "device": "0"}]}}})),
        "resourceclaimtemplates" => Case::new(with(|_, _, _, _| {
            json!({"spec": {"spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.example"}}]}}}})
        })),
        "gateways" => Case::new(with(|a, b, n, _| {
            json!({"spec": {"gatewayClassName": "public", "listeners": [{"name": "l", "port": 443, "protocol": "HTTPS",
                "allowedRoutes": {"namespaces": {"from": (["All", "Same", "Selector"][n % 3])}},
                "tls": {"certificateRefs": [{"name": a}],
                    "frontendValidation": {"caCertificateRefs": [{"kind": "ConfigMap", "name": b}]}}}]}})
        }))
        .status(conditions()),
        "httproutes" => Case::new(route(mirror)).status(json!({})),
        "grpcroutes" => Case::new(route(mirror)).status(json!({})),
        "tlsroutes" | "tcproutes" | "udproutes" => Case::new(route(none)).status(json!({})),
        "backendtlspolicies" => Case::new(with(|_, b, _, _| {
            json!({"spec": {"targetRefs": [{"kind": "Service", "group": "", "name": "refservice"}],
                "validation": {"hostname": "h.example", "caCertificateRefs": [{"kind": "ConfigMap", "group": "", "name": b}]}}})
        }))
        .status(json!({"ancestors": []})),
        "referencegrants" => Case {
            mapped: true,
            ..Case::new(with(|a, _, n, namespace| {
                let mut to = json!({"group": "", "kind": "Service"});
                if n % 2 == 0 {
                    to["name"] = a.into();
                }
                json!({"spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": namespace}],
                    "to": [to]}})
            }))
        },
        "custom resources" => Case {
            patches: vec![
                configured::reference("spec.secretName", "Secret"),
                configured::reference("spec.items[*].configMap", "ConfigMap"),
            ],
            ..Case::new(with(|a, b, n, _| {
                json!({"spec": {"secretName": a, "items": [{"configMap": b}], "replicas": (n as i64), "dnsNames": ["a.example"]}})
            }))
            .status(conditions())
        },
        _ => return None,
    })
}

fn route_status(parent: &Value) -> Value {
    json!({"parents": [{"parentRef": (parent.clone()), "controllerName": "example.com/c", "conditions": [
        {"type": "Accepted", "status": "True", "observedGeneration": 7}]}]})
}

struct World {
    names: Names,
    settings: Settings,
    facts: Facts,
    patches: Vec<Patch>,
}

impl World {
    fn new(name: &str) -> World {
        let settings = Settings {
            workload_service_account: "vc-workload".into(),
            config_maps: Wanted::All,
            secrets: Wanted::All,
            persistent_volumes: true,
            storage_classes: true,
            ingresses: true,
            network_policies: true,
            service_accounts: true,
            pod_disruption_budgets: true,
            priority_classes: true,
            resource_claims: true,
            resource_claim_templates: true,
            gateway_api: syncer::settings::GatewaySettings { gateways: true, ..Default::default() },
            ..Settings::default()
        };
        let mut facts = Facts { kube_ip: "10.0.0.1".into(), dns_ip: "10.0.0.2".into(), ..Facts::default() };
        // Tokens that are fine for long.
        facts.token_secret = Some(json!({
            "metadata": {"annotations": {"alcove.dev/renew-at": "9999999999"}},
            "data": {"v0": "", "v1": "", "v2": "", "v3": ""},
        }));
        facts.service = Some(json!({"metadata": {"name": "svc"}, "spec": {"ports": []}}));
        facts.services = vec![json!({"metadata": {"name": "refservice"}})];
        facts.classes = vec![("GatewayClass", Some(json!({"metadata": {"name": "public"}})))];
        let kinds = ["HTTPRoute", "TLSRoute", "GRPCRoute", "TCPRoute", "UDPRoute"].map(|kind| json!({ "kind": kind }));
        facts.gateways = vec![
            json!({"metadata": {"name": GATEWAY, "namespace": GATEWAY_NAMESPACE}, "spec": {"listeners": [
            {"name": "all", "port": 1, "protocol": "X", "allowedRoutes": {"namespaces": {"from": "All"}, "kinds": kinds}}]}}),
        ];
        World { names: Names::new(name, "host-ns"), settings, facts, patches: Vec::new() }
    }

    fn of(name: &str, case: &Case) -> World {
        let mut world = World::new(name);
        world.patches.clone_from(&case.patches);
        if case.mapped {
            let rule = NamespaceRule { from: "tenant*".into(), to: "${name}-mapped-*".into() };
            world.names = world.names.with_namespace_rules(vec![rule]);
        }
        world
    }

    fn ctx(&self) -> Context<'_> {
        Context {
            names: &self.names,
            settings: &self.settings,
            owner: None,
            facts: &self.facts,
            patches: &self.patches,
            now: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    /// The host object that the plan makes.
    fn made(&self, ty: &dyn ToHost, object: &Value) -> Value {
        let plan = plan(ty, Some(object), None, &LastSeen::default(), &self.ctx());
        let made =
            plan.actions.iter().find_map(|a| if let Action::CreateHost(host) = a { Some(host.clone()) } else { None });
        let mut host = made.unwrap_or_else(|| panic!("{:?} for {object}", plan.actions));
        host["metadata"]["uid"] = "h".into();
        host["metadata"]["generation"] = 7.into();
        host
    }

    /// What the plan does, besides looking again.
    fn work(&self, ty: &dyn ToHost, object: &Value, host: &Value) -> Vec<Action> {
        let plan = plan(ty, Some(object), Some(host), &LastSeen::default(), &self.ctx());
        plan.actions.into_iter().filter(|a| !matches!(a, Action::Again { .. })).collect()
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

const CASES: u32 = 48;

fn run<S: Strategy>(objects: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner.run(objects, test).unwrap_or_else(|e| panic!("{e}"));
}

/// Runs a test for every type the engine has.
fn for_all_types(test: impl Fn(&str, &dyn ToHost, &Case, Value) -> Result<(), TestCaseError>) {
    for (name, ty) in syncer::types::all() {
        let case = case(name).unwrap_or_else(|| panic!("no generator for {name}: add one to `case`"));
        run(&case.objects, |object| test(name, ty.as_ref(), &case, object));
    }
}

#[test]
fn every_type_has_a_generator_and_a_row_on_the_page() {
    let rows: Vec<&str> = ENTRIES.iter().flat_map(|e| e.name.split(", ")).collect();
    let mut names = std::collections::BTreeSet::new();
    for (name, ty) in syncer::types::all() {
        assert!(case(name).is_some(), "no generator for {name}");
        assert!(rows.contains(&name), "no row for {name} in the registry");
        assert!(names.insert(name), "{name} twice");
        // A status that the page promises is tried.
        let row = ENTRIES.iter().find(|e| e.name.split(", ").any(|n| n == name)).expect("a row");
        let promised =
            row.direction == syncer::registry::Direction::ToHostWithStatus && name != "resourceclaimtemplates";
        assert!(!promised || case(name).is_some_and(|c| c.status.is_some()), "no status for {name}");
        let _ = ty.kind();
    }
    assert!(names.len() >= 25, "{names:?}");
}

#[test]
fn no_type_leaks_a_namespace_or_a_name() {
    for_all_types(|name, ty, case, object| {
        let world = World::of("vc", case);
        let host = world.made(ty, &object);
        let namespace = object.str_at(&["metadata", "namespace"]);
        let mut content = host.clone();
        for marked in [["metadata", "annotations"], ["metadata", "name"], ["metadata", "namespace"]] {
            content.remove_at(&marked);
        }
        // Where the virtual names belong: the marker, the tenant's own labels and what selects by them.
        content.remove_at(&["metadata", "labels"]);
        fn without_selectors(value: &mut Value) {
            if let Value::Object(map) = value {
                for key in ["selector", "podSelector", "labelSelector", "matchLabels"] {
                    map.remove(key);
                }
                map.iter_mut().for_each(|(_, v)| without_selectors(v));
            } else if let Value::Array(list) = value {
                list.iter_mut().for_each(without_selectors);
            }
        }
        without_selectors(&mut content);
        let mut all = Vec::new();
        strings(&content, &mut all);
        for text in all {
            let translated = text.ends_with("-x-vc") || text.len() == 63 || case.mapped;
            prop_assert!(!text.starts_with("ref") || translated, "{name}: {text} in {host}");
            prop_assert!(namespace.is_empty() || text != namespace, "{name}: {text} in {host}");
        }
        let want = match (namespace.is_empty(), case.mapped) {
            (true, _) => String::new(),
            (false, false) => "host-ns".to_owned(),
            (false, true) => world.names.host_namespace(namespace),
        };
        prop_assert_eq!(host.str_at(&["metadata", "namespace"]), want);
        let source = metadata::name_of(&object);
        prop_assert_eq!(
            metadata::owner(&host, ty.kind(), &world.names),
            Owner::Ours { name: source, uid: "u-1".into() }
        );
        Ok(())
    });
}

#[test]
fn no_selector_reaches_another_tenant() {
    run(&pod(), |pod| {
        let world = World::new("vc");
        let host = world.made(&Pods, &pod);
        let terms =
            host.array_at(&["spec", "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"]);
        for bound in terms.iter().map(|t| &t["labelSelector"]["matchLabels"]) {
            prop_assert_eq!(bound.str_at(&[metadata::MANAGED_BY_LABEL]), "vc");
            prop_assert_eq!(bound.str_at(&[metadata::NAMESPACE_LABEL]), pod.str_at(&["metadata", "namespace"]));
        }
        Ok(())
    });
    for (name, path) in [
        ("services", ["spec", "selector"].as_slice()),
        ("poddisruptionbudgets", &["spec", "selector", "matchLabels"]),
        ("networkpolicies", &["spec", "podSelector", "matchLabels"]),
    ] {
        let (_, ty) = syncer::types::all().into_iter().find(|(n, _)| *n == name).expect("a type");
        let case = case(name).expect("a generator");
        run(&case.objects, |object| {
            let host = World::of("vc", &case).made(ty.as_ref(), &object);
            if let Some(selector) = host.at(path).filter(|s| !s.is_null()) {
                prop_assert_eq!(selector.str_at(&[metadata::MANAGED_BY_LABEL]), "vc", "{}: {}", name, host);
                let namespace = object.str_at(&["metadata", "namespace"]);
                prop_assert_eq!(selector.str_at(&[metadata::NAMESPACE_LABEL]), namespace, "{}", host);
            }
            Ok(())
        });
    }
}

#[test]
fn what_was_synced_needs_no_second_run() {
    for_all_types(|name, ty, case, object| {
        let world = World::of("vc", case);
        let host = world.made(ty, &object);
        let work = world.work(ty, &object, &host);
        prop_assert!(work.is_empty(), "{name}: {work:?} for {object} and {host}");
        Ok(())
    });
}

#[test]
fn a_status_is_shown_once_and_as_it_is() {
    for_all_types(|name, ty, case, object| {
        let Some(status) = &case.status else { return Ok(()) };
        // Others of its kind have none.
        prop_assume!(name != "services" || object.str_at(&["spec", "type"]) == "LoadBalancer");
        let world = World::of("vc", case);
        let mut host = world.made(ty, &object);
        host["status"] = status.clone();
        if !object.array_at(&["spec", "parentRefs"]).is_empty() {
            host["status"] = route_status(&host["spec"]["parentRefs"][0]);
        }
        let mut shown = object.clone();
        for round in 0..2 {
            let work = world.work(ty, &shown, &host);
            prop_assert_eq!(work.len(), usize::from(round == 0), "{}: {:?}", name, work);
            if let Some(Action::PatchVirtual { patch, subresource }) = work.first() {
                prop_assert_eq!(*subresource, "status", "{}: {:?}", name, work);
                shown["status"] = patch["status"].clone();
            }
        }
        // The tenant's own generation and names in the place of the host's, all else the same.
        let mut want = status.clone();
        fn generations(value: &mut Value) {
            match value {
                Value::Object(map) => map.iter_mut().for_each(|(key, v)| {
                    if key.as_str() == "observedGeneration" {
                        *v = 3.into();
                    } else {
                        generations(v);
                    }
                }),
                Value::Array(list) => list.iter_mut().for_each(generations),
                _ => {}
            }
        }
        generations(&mut want);
        // Parents as the tenant wrote them.
        if let Some(parent) = object.array_at(&["spec", "parentRefs"]).first() {
            want = route_status(parent);
            generations(&mut want);
        }
        if name != "pods" {
            prop_assert_eq!(&shown["status"], &want, "{}", name);
        }
        Ok(())
    });
}

#[test]
fn tenants_never_take_each_other_for_themselves() {
    let names = ("[a-z][a-z0-9-]{0,8}[a-z0-9]", "[a-z][a-z0-9-]{0,8}[a-z0-9]");
    for (name, ty) in syncer::types::all() {
        let case = case(name).expect("a generator");
        run(&(&case.objects, names), |(object, (a, b))| {
            prop_assume!(a != b);
            let (first, second) = (World::of(&a, &case), World::of(&b, &case));
            let host = first.made(ty.as_ref(), &object);
            prop_assert_ne!(metadata::owner(&host, ty.kind(), &first.names), Owner::Foreign);
            prop_assert_eq!(metadata::owner(&host, ty.kind(), &second.names), Owner::Foreign);
            let other = second.made(ty.as_ref(), &object);
            prop_assert_ne!(metadata::name_of(&host), metadata::name_of(&other), "{}", name);
            // Whatever the other tenant's syncer is shown, it writes nothing.
            for virtual_ in [Some(&object), None] {
                let plan = plan(ty.as_ref(), virtual_, Some(&host), &LastSeen::default(), &second.ctx());
                let only_told = plan.actions.iter().all(|a| matches!(a, Action::Clash { .. }));
                prop_assert!(only_told, "{name}: {:?}", plan.actions);
            }
            Ok(())
        });
    }
}

#[test]
fn labels_survive_the_way_there_and_back() {
    run(&label_map(), |labels| {
        let world = World::new("vc");
        let object = json!({"metadata": {"name": "m", "namespace": "n", "uid": "u", "labels": labels}, "data": {}});
        let (host, _) = Configs::ConfigMaps.translate(&object, &world.ctx()).expect("a host object");
        let back: apimachinery::Map = metadata::string_map(host.at(&["metadata", "labels"]))
            .filter_map(|(k, v)| world.names.virtual_label(k).map(|k| (k, Value::from(v))))
            .collect();
        prop_assert_eq!(Value::Object(back), labels);
        Ok(())
    });
}
