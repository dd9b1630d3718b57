//! Tables of what each type becomes on the host, and what comes back.

use apimachinery::{Value, json};
use syncer::metadata;
use syncer::names::Names;
use syncer::plan::{Action, LastSeen, Plan, plan};
use syncer::settings::{ImportMapping, Nodes, PodSettings, RewriteHosts, Settings, Wanted};
use syncer::types::classes::import_target;
use syncer::types::configs::Configs;
use syncer::types::endpoints::EndpointKinds;
use syncer::types::event;
use syncer::types::ingress::Ingresses;
use syncer::types::node;
use syncer::types::pod::Pods;
use syncer::types::policies::DisruptionBudgets;
use syncer::types::service::{Services, adopt, readdress};
use syncer::types::volumes::{Claims, fake_volume};
use syncer::types::{Context, Facts, ToHost};

fn settings() -> Settings {
    Settings { workload_service_account: "vc-workload-vc".into(), ingresses: true, ..Settings::default() }
}

fn facts() -> Facts {
    let mut facts = Facts { kube_ip: "10.96.0.9".into(), dns_ip: "10.96.0.53".into(), ..Facts::default() };
    facts.namespace_labels.insert("env", "dev".into());
    facts.referred = true;
    facts
}

pub struct World {
    names: Names,
    settings: Settings,
    facts: Facts,
}

impl World {
    pub fn new() -> World {
        World { names: Names::new("vc", "host-ns"), settings: settings(), facts: facts() }
    }

    pub fn ctx(&self) -> Context<'_> {
        Context {
            names: &self.names,
            settings: &self.settings,
            owner: None,
            facts: &self.facts,
            patches: &[],
            now: jiff::Timestamp::from_second(1_000_000).expect("a time"),
        }
    }

    fn host(&self, ty: &dyn ToHost, object: &Value) -> Value {
        ty.translate(object, &self.ctx()).unwrap_or_else(|e| panic!("{e:?}")).0
    }

    /// The host object as the server would store it.
    fn stored(&self, ty: &dyn ToHost, object: &Value) -> Value {
        let mut host = self.host(ty, object);
        host["metadata"]["uid"] = "host-uid".into();
        host
    }

    fn plan(&self, ty: &dyn ToHost, virtual_: Option<&Value>, host: Option<&Value>, last: &LastSeen) -> Plan {
        plan(ty, virtual_, host, last, &self.ctx())
    }

    fn patches(&self, ty: &dyn ToHost, virtual_: &Value, host: &Value) -> Vec<Action> {
        self.plan(ty, Some(virtual_), Some(host), &LastSeen::default()).actions
    }
}

fn pod(spec: Value) -> Value {
    let mut out = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u-1", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    });
    for (key, value) in spec.as_object().expect("a spec").iter() {
        out["spec"][key.as_str()] = value.clone();
    }
    out
}

#[test]
fn pod_fields() {
    let world = World::new();
    let kube_env = json!([
        {"name": "KUBERNETES_PORT", "value": "tcp://10.96.0.9:443"},
        {"name": "KUBERNETES_PORT_443_TCP", "value": "tcp://10.96.0.9:443"},
        {"name": "KUBERNETES_PORT_443_TCP_ADDR", "value": "10.96.0.9"},
        {"name": "KUBERNETES_PORT_443_TCP_PORT", "value": "443"},
        {"name": "KUBERNETES_PORT_443_TCP_PROTO", "value": "tcp"},
        {"name": "KUBERNETES_SERVICE_HOST", "value": "10.96.0.9"},
        {"name": "KUBERNETES_SERVICE_PORT", "value": "443"},
        {"name": "KUBERNETES_SERVICE_PORT_HTTPS", "value": "443"},
    ]);
    let aliases = json!([{"ip": "10.96.0.9", "hostnames": ["kubernetes.default.svc.cluster.local", "kubernetes",
        "kubernetes.default", "kubernetes.default.svc"]}]);
    let dns = json!({"nameservers": ["10.96.0.53"], "options": [{"name": "ndots", "value": "5"}],
        "searches": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"]});
    // (what of the virtual spec, path in the host pod, value)
    let rows: Vec<(Value, &[&str], Value)> = vec![
        (json!({}), &["spec", "serviceAccountName"], "vc-workload-vc".into()),
        (json!({}), &["spec", "automountServiceAccountToken"], false.into()),
        (json!({}), &["spec", "enableServiceLinks"], false.into()),
        (json!({}), &["spec", "hostname"], "web".into()),
        (json!({}), &["spec", "hostAliases"], aliases),
        (json!({}), &["spec", "dnsPolicy"], "None".into()),
        (json!({}), &["spec", "dnsConfig"], dns),
        (json!({}), &["spec", "containers"], json!([{"name": "c", "image": "nginx", "env": kube_env}])),
        (json!({}), &["metadata", "annotations", "vcluster.loft.sh/labels"], "app=\"web\"".into()),
        (json!({}), &["metadata", "annotations", "vcluster.loft.sh/uid"], "u-1".into()),
        (json!({}), &["metadata", "annotations", "cluster-autoscaler.kubernetes.io/safe-to-evict"], "false".into()),
        (json!({"dnsPolicy": "Default"}), &["spec", "dnsPolicy"], "Default".into()),
        (json!({"hostNetwork": true}), &["spec", "dnsConfig"], Value::Null),
        (json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), &["spec", "dnsPolicy"], "None".into()),
        // What the user asked for survives.
        (
            json!({"dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["corp"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            &["spec", "dnsConfig"],
            json!({"nameservers": ["10.96.0.53", "1.1.1.1"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
                "searches": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp"]}),
        ),
        (
            json!({"priorityClassName": "x", "priority": 5, "preemptionPolicy": "Never"}),
            &["spec", "preemptionPolicy"],
            Value::Null,
        ),
        (json!({"priorityClassName": "x", "priority": 5}), &["spec", "priorityClassName"], Value::Null),
        (
            json!({"imagePullSecrets": [{"name": "r"}]}),
            &["spec", "imagePullSecrets"],
            json!([{"name": "r-x-default-x-vc"}]),
        ),
        (json!({"subdomain": "s"}), &["spec", "subdomain"], Value::Null),
        (json!({"nodeSelector": {"disk": "ssd"}}), &["spec", "nodeSelector"], json!({"disk": "ssd"})),
        (json!({"schedulerName": "mine"}), &["spec", "schedulerName"], "mine".into()),
        (json!({"hostname": "h"}), &["spec", "hostname"], "h".into()),
        (json!({"tolerations": [{"operator": "Exists"}]}), &["spec", "tolerations"], json!([{"operator": "Exists"}])),
        (
            json!({"topologySpreadConstraints": [{"topologyKey": "z", "labelSelector": {"matchLabels": {"release": "a"}},
                "matchLabelKeys": ["app"]}]}),
            &["spec", "topologySpreadConstraints"],
            json!([{"topologyKey": "z", "labelSelector": {
                "matchLabels": {(world.names.host_label("release")): "a", "vcluster.loft.sh/managed-by": "vc",
                    "vcluster.loft.sh/namespace": "default"},
                "matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}}]),
        ),
        (
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "h", "labelSelector": {}, "namespaces": ["a", "b"]}]}}}),
            &["spec", "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"],
            json!([{"topologyKey": "h", "labelSelector": {"matchLabels": {"vcluster.loft.sh/managed-by": "vc"},
                "matchExpressions": [{"key": "vcluster.loft.sh/namespace", "operator": "In", "values": ["a", "b"]}]}}]),
        ),
        (
            json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "h", "labelSelector": {}, "namespaceSelector": {"matchLabels": {"env": "dev"}}}]}}}),
            &["spec", "affinity", "podAffinity", "requiredDuringSchedulingIgnoredDuringExecution"],
            json!([{"topologyKey": "h", "labelSelector": {"matchLabels": {"vcluster.loft.sh/managed-by": "vc",
                (world.names.namespace_label("env")): "dev"}}}]),
        ),
        (
            json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "h", "labelSelector": {"matchLabels": {"a": "b"}}}]}}}),
            &["spec", "affinity", "podAffinity", "requiredDuringSchedulingIgnoredDuringExecution"],
            json!([{"topologyKey": "h", "labelSelector": {"matchLabels": {"a": "b", "vcluster.loft.sh/managed-by": "vc",
                "vcluster.loft.sh/namespace": "default"}}}]),
        ),
        (
            json!({"volumes": [{"name": "t", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"configMap": {"name": "kube-root-ca.crt"}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}]}),
            &["spec", "volumes"],
            json!([{"name": "t", "projected": {"sources": [
                {"secret": {"name": "web-sa-token-x-default-x-vc", "items": [{"key": "t", "path": "token", "mode": 420}]}},
                {"configMap": {"name": "kube-root-ca.crt-x-default-x-vc"}},
                {"downwardAPI": {"items": [{"path": "namespace",
                    "fieldRef": {"fieldPath": "metadata.annotations['vcluster.loft.sh/namespace']"}}]}}]}}]),
        ),
        (
            json!({"volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]}),
            &["spec", "volumes"],
            json!([{"name": "scratch", "persistentVolumeClaim": {"claimName": "web-scratch-x-default-x-vc"}}]),
        ),
        (
            json!({"volumes": [{"name": "l", "hostPath": {"path": "/var/log"}}]}),
            &["spec", "volumes"],
            json!([{"name": "l", "hostPath": {"path": "/var/log"}}]),
        ),
    ];
    for (spec, path, want) in rows {
        let host = world.host(&Pods, &pod(spec.clone()));
        assert_eq!(host.at(path).unwrap_or(&Value::Null), &want, "{spec} at {path:?}");
    }
}

#[test]
fn pod_settings() {
    let mut world = World::new();
    world.settings.pods = PodSettings {
        translate_image: [("nginx".to_owned(), "mirror/nginx".to_owned())].into(),
        enforce_tolerations: vec![json!({"key": "tenants", "operator": "Exists"})],
        runtime_class_name: "gvisor".into(),
        priority_class_name: "low".into(),
        rewrite_hosts: Some(RewriteHosts { image: "alpine".into(), own: false, resources: json!({}) }),
        host_schedulers: vec![],
    };
    let host = world.host(&Pods, &pod(json!({"subdomain": "peers"})));
    assert_eq!(host.array_at(&["spec", "containers"])[0].str_at(&["image"]), "mirror/nginx");
    assert_eq!(host["spec"]["tolerations"], json!([{"key": "tenants", "operator": "Exists"}]));
    assert_eq!(host.str_at(&["spec", "runtimeClassName"]), "gvisor");
    assert_eq!(host.str_at(&["spec", "priorityClassName"]), "low");
    let init = &host.array_at(&["spec", "initContainers"])[0];
    assert!(init["args"][1].as_str().expect("a script").contains("web.peers.default.svc.cluster.local"), "{init}");
    world.settings.pods.rewrite_hosts = Some(RewriteHosts { image: "alcove".into(), own: true, resources: json!({}) });
    let own = &world.host(&Pods, &pod(json!({"subdomain": "peers"})))["spec"]["initContainers"][0];
    let args = [
        "rewrite-hosts",
        "--hostname",
        "web",
        "--fqdn",
        "web.peers.default.svc.cluster.local",
        "--output",
        "/hosts/hosts",
    ];
    assert_eq!((&own["image"], &own["args"], &own["command"]), (&json!("alcove"), &json!(args), &Value::Null));
    let mut quiet = pod(json!({"subdomain": "peers"}));
    quiet.set_at(&["metadata", "annotations", "vcluster.loft.sh/disable-subdomain-rewrite"], "true".into());
    assert_eq!(world.host(&Pods, &quiet).array_at(&["spec", "initContainers"]).len(), 0);

    // Placed inside the virtual cluster: nothing for the host before it has a node, and no rules after.
    world.settings.virtual_scheduler = true;
    let waiting = pod(json!({}));
    assert_eq!(world.plan(&Pods, Some(&waiting), None, &LastSeen::default()).actions, vec![]);
    let placed = pod(json!({"nodeName": "n", "nodeSelector": {"a": "b"}, "affinity": {"nodeAffinity": {}}}));
    let host = world.host(&Pods, &placed);
    assert_eq!((&host["spec"]["nodeSelector"], &host["spec"]["affinity"]), (&Value::Null, &Value::Null));
    assert_eq!(host.str_at(&["spec", "nodeName"]), "n");
}

#[test]
fn service_links_are_those_of_the_virtual_namespace() {
    let mut world = World::new();
    world.facts.services = vec![json!({"metadata": {"name": "my-db"}, "spec": {"clusterIP": "10.96.1.2",
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]}})];
    let env = |pod: &Value| {
        let host = world.host(&Pods, pod);
        let list = host.array_at(&["spec", "containers"])[0].array_at(&["env"]).to_vec();
        list.iter().map(|e| format!("{}={}", e.str_at(&["name"]), e.str_at(&["value"]))).collect::<Vec<_>>()
    };
    let all = env(&pod(json!({"enableServiceLinks": true})));
    for want in [
        "MY_DB_SERVICE_HOST=10.96.1.2",
        "MY_DB_SERVICE_PORT=5432",
        "MY_DB_SERVICE_PORT_SQL=5432",
        "MY_DB_PORT=tcp://10.96.1.2:5432",
        "MY_DB_PORT_5432_TCP=tcp://10.96.1.2:5432",
        "MY_DB_PORT_5432_TCP_PROTO=tcp",
        "MY_DB_PORT_5432_TCP_PORT=5432",
        "MY_DB_PORT_5432_TCP_ADDR=10.96.1.2",
    ] {
        assert!(all.iter().any(|e| e == want), "{want} in {all:?}");
    }
    assert_eq!(env(&pod(json!({"enableServiceLinks": false}))).len(), 8);
    // The container's own values win, and come last.
    let own = pod(
        json!({"containers": [{"name": "c", "image": "i", "env": [{"name": "KUBERNETES_PORT", "value": "mine"}]}]}),
    );
    let all = env(&own);
    assert_eq!(all.last().map(String::as_str), Some("KUBERNETES_PORT=mine"));
    assert_eq!(all.len(), 8);
}

#[test]
fn a_synced_pod_needs_nothing_more() {
    let world = World::new();
    let pod = pod(json!({}));
    let host = world.stored(&Pods, &pod);
    assert_eq!(world.patches(&Pods, &pod, &host), vec![]);
}

#[test]
fn a_pods_status_comes_back() {
    let world = World::new();
    let mut virtual_ = pod(json!({"nodeName": "node-1"}));
    virtual_["status"] = json!({"qosClass": "BestEffort", "phase": "Pending",
        "conditions": [{"type": "mine/gate", "status": "True"}, {"type": "Ready", "status": "True"},
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]});
    let mut host = world.stored(&Pods, &virtual_);
    host["status"] = json!({
        "phase": "Running", "podIP": "10.1.1.1", "qosClass": "Burstable", "observedGeneration": 4,
        "conditions": [{"type": "PodScheduled", "status": "True", "observedGeneration": 4}],
        "containerStatuses": [
            {"name": "c", "ready": false, "state": {"waiting": {"reason": "CrashLoopBackOff",
                "message": "back-off restarting failed container=c pod=web-x-default-x-vc_host-ns(host-uid)"}}},
            {"name": "injected", "ready": true}],
    });
    let actions = world.patches(&Pods, &virtual_, &host);
    let [Action::PatchVirtual { patch, subresource: "status" }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(
        patch["status"],
        json!({
            "phase": "Running", "podIP": "10.1.1.1",
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "mine/gate", "status": "True"},
                {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}],
            "containerStatuses": [{"name": "c", "ready": false, "state": {"waiting": {"reason": "CrashLoopBackOff",
                "message": "back-off restarting failed container=c pod=web_default(u-1)"}}}],
        })
    );
    assert_eq!(patch.str_at(&["metadata", "uid"]), "u-1");
}

#[test]
fn an_observed_generation_is_the_virtual_pods() {
    let world = World::new();
    let mut virtual_ = pod(json!({"nodeName": "node-1"}));
    virtual_["metadata"]["generation"] = json!(2);
    let mut host = world.stored(&Pods, &virtual_);
    host["metadata"]["generation"] = json!(5);
    let mut changed = virtual_.clone();
    merge(&mut changed, &json!({"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}}));
    changed["metadata"]["generation"] = json!(3);
    // (the virtual pod, what the host's kubelet has seen, what the tenant is told)
    for (virtual_, seen, want) in
        [(&virtual_, json!(5), json!(2)), (&virtual_, json!(4), Value::Null), (&changed, json!(5), Value::Null)]
    {
        host["status"] = json!({"phase": "Running", "observedGeneration": seen,
            "conditions": [{"type": "Ready", "status": "True", "observedGeneration": seen}]});
        let actions = world.patches(&Pods, virtual_, &host);
        let status = actions.iter().find_map(|action| match action {
            Action::PatchVirtual { patch, subresource: "status" } => Some(patch["status"].clone()),
            _ => None,
        });
        let status = status.expect("the status goes up");
        assert_eq!(status["observedGeneration"], want, "{seen}");
        assert_eq!(status["conditions"][0]["observedGeneration"], want, "{seen}");
    }
}

#[test]
fn a_pod_that_finalizers_hold_has_ended_when_the_hosts_is_gone() {
    let world = World::new();
    let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
    let ended = json!({"terminated": {"exitCode": 0}});
    // (phase, state of the container, phase afterwards)
    for (phase, state, want) in [
        ("Running", running.clone(), Some("Failed")),
        ("Running", ended.clone(), Some("Succeeded")),
        ("Pending", json!({"waiting": {"reason": "ContainerCreating"}}), Some("Failed")),
        ("Succeeded", ended, None),
        ("Failed", running, None),
    ] {
        let mut held = pod(json!({"nodeName": "node-1"}));
        let metadata = json!({"metadata": {"finalizers": ["a.b/c"], "deletionTimestamp": "2026-01-01T00:00:00Z",
            "deletionGracePeriodSeconds": 0}, "status": {"phase": phase, "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "c", "ready": true, "state": state}]}});
        merge(&mut held, &metadata);
        let last = LastSeen { on_host: true, ..LastSeen::default() };
        let actions = world.plan(&Pods, Some(&held), None, &last).actions;
        let status = actions.iter().find_map(|action| match action {
            Action::PatchVirtual { patch, subresource: "status" } => Some(patch["status"].clone()),
            _ => None,
        });
        assert_eq!(status.as_ref().map(|status| status.str_at(&["phase"])), want, "{phase} {state}");
        if let Some(status) = status {
            assert_eq!(status["conditions"][0]["status"], "False", "{status}");
            assert_eq!(status["conditions"][1]["status"], "True", "{status}");
            let unknown = status["containerStatuses"][0].at(&["state", "terminated"]);
            assert_eq!(unknown.is_some(), want == Some("Failed"), "{status}");
        }
    }
}

#[test]
fn what_can_change_on_a_running_pod() {
    let world = World::new();
    let before = pod(json!({"nodeName": "n", "schedulingGates": [{"name": "g"}]}));
    let host = world.stored(&Pods, &before);
    // (the tenant's change, the patch of the host's spec)
    for (change, want) in [
        (json!({"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}}), "nginx:2"),
        (json!({"spec": {"activeDeadlineSeconds": 7}}), "\"activeDeadlineSeconds\":7"),
        (json!({"spec": {"schedulingGates": null}}), "\"schedulingGates\":null"),
        (json!({"spec": {"tolerations": [{"key": "t"}]}}), "\"key\":\"t\""),
        (json!({"metadata": {"labels": {"app": "other"}}}), "app=\\\"other\\\""),
        (json!({"metadata": {"annotations": {"new": "one"}}}), "\"new\":\"one\""),
    ] {
        let mut after = before.clone();
        merge(&mut after, &change);
        let actions = world.patches(&Pods, &after, &host);
        let [Action::PatchHost { patch, subresource: "" }] = &actions[..] else { panic!("{change}: {actions:?}") };
        assert!(patch.to_string().contains(want), "{change}: {patch}");
        assert_eq!(patch.str_at(&["metadata", "uid"]), "host-uid");
    }
    let mut debugged = before.clone();
    debugged["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "busybox"}]);
    let actions = world.patches(&Pods, &debugged, &host);
    assert!(matches!(&actions[..], [Action::PatchHost { subresource: "ephemeralcontainers", .. }]), "{actions:?}");

    let mut modern = World::new();
    modern.settings.host_version = Some((1, 35));
    let mut resized = before.clone();
    resized["spec"]["containers"] = json!([{"name": "c", "image": "nginx", "resources": {"limits": {"cpu": "2"}}}]);
    let actions = modern.patches(&Pods, &resized, &host);
    assert!(matches!(&actions[..], [Action::PatchHost { subresource: "resize", .. }]), "{actions:?}");
    assert_eq!(world.patches(&Pods, &resized, &host), vec![], "an older host cannot");
}

fn merge(into: &mut Value, patch: &Value) {
    match patch {
        Value::Object(map) => {
            for (key, value) in map.iter() {
                if value.is_null() {
                    into.remove_at(&[key]);
                } else {
                    merge(&mut into[key.as_str()], value);
                }
            }
        }
        other => *into = other.clone(),
    }
}

#[test]
fn readiness_gates_reach_the_kubelet() {
    let world = World::new();
    let mut virtual_ = pod(json!({"nodeName": "n", "readinessGates": [{"conditionType": "lb"}]}));
    let mut host = world.stored(&Pods, &virtual_);
    host["status"] = json!({"conditions": [{"type": "Ready", "status": "False"}]});
    virtual_["status"] =
        json!({"conditions": [{"type": "Ready", "status": "False"}, {"type": "lb", "status": "True"}]});
    let actions = world.patches(&Pods, &virtual_, &host);
    let status = actions.iter().find_map(|a| match a {
        Action::PatchHost { patch, subresource: "status" } => Some(patch),
        _ => None,
    });
    assert_eq!(
        status.map(|p| p["status"].clone()),
        Some(json!({"conditions": [{"type": "Ready", "status": "False"}, {"type": "lb", "status": "True"}]}))
    );
}

#[test]
fn deletion_goes_both_ways_with_its_grace() {
    let world = World::new();
    let at = |object: &Value, grace: Option<i64>| {
        let mut object = object.clone();
        if let Some(grace) = grace {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        }
        object
    };
    let virtual_ = pod(json!({"nodeName": "n", "terminationGracePeriodSeconds": 7}));
    let host = world.stored(&Pods, &virtual_);
    let delete_host =
        |grace, why| vec![Action::DeleteHost { uid: "host-uid".into(), grace_period_seconds: grace, why }];
    let delete_virtual = |grace| vec![Action::DeleteVirtual { uid: "u-1".into(), grace_period_seconds: grace }];
    // (virtual grace, host grace, actions)
    for (v, h, want) in [
        (Some(30), None, delete_host(Some(30), "the virtual pod is being deleted")),
        (None, Some(30), delete_virtual(Some(7))),
        (Some(30), Some(30), vec![]),
        (Some(30), Some(5), delete_virtual(Some(5))),
        (Some(1), Some(30), delete_host(Some(1), "the virtual pod's grace period became shorter")),
    ] {
        assert_eq!(world.patches(&Pods, &at(&virtual_, v), &at(&host, h)), want, "{v:?} {h:?}");
    }
    let none = LastSeen::default();
    let known = LastSeen { on_host: true, ..LastSeen::default() };
    let mut started = virtual_.clone();
    started["status"] = json!({"startTime": "2026-01-01T00:00:00Z"});
    // (virtual pod without a host pod, memory, actions)
    for (virtual_, last, want) in [
        (&at(&virtual_, Some(30)), &none, delete_virtual(Some(0))),
        (&at(&virtual_, Some(0)), &none, vec![]), // only a finalizer holds it
        (&virtual_, &known, delete_virtual(Some(0))),
        (&started, &none, delete_virtual(Some(0))),
    ] {
        assert_eq!(world.plan(&Pods, Some(virtual_), None, last).actions, want);
    }
    assert_eq!(
        world.plan(&Pods, None, Some(&host), &none).actions,
        delete_host(None, "the virtual object was deleted")
    );
    let mut recreated = virtual_.clone();
    recreated["metadata"]["uid"] = "u-2".into();
    assert_eq!(
        world.patches(&Pods, &recreated, &host),
        delete_host(None, "the virtual object was deleted and created again")
    );
}

#[test]
fn tokens_are_asked_for_and_renewed_in_time() {
    let mut world = World::new();
    let virtual_ = pod(
        json!({"nodeName": "n", "serviceAccountName": "builder", "volumes": [{"name": "t", "projected": {"sources": [
        {"serviceAccountToken": {"path": "a", "audience": "vault", "expirationSeconds": 600}},
        {"serviceAccountToken": {"path": "b"}}]}}]}),
    );
    let plan = world.plan(&Pods, Some(&virtual_), None, &LastSeen::default());
    let Some(Action::WriteTokens(tokens)) = plan.actions.get(1) else { panic!("{:?}", plan.actions) };
    assert_eq!(tokens.service_account, "builder");
    assert_eq!(
        tokens.tokens.iter().map(|t| (t.key.as_str(), t.audiences.len(), t.expiration_seconds)).collect::<Vec<_>>(),
        [("t", 1, 600), ("t.1", 3, 3600)]
    );
    let host = world.stored(&Pods, &virtual_);
    let secret = |renew_at: i64, key: &str| json!({"metadata": {"annotations": {"alcove.dev/renew-at": (renew_at.to_string())}}, "data": {"t": "x", key: "x"}});
    for (secret, renews) in [
        (None, true),
        (Some(secret(1_000_100, "t.1")), false),
        (Some(secret(999_999, "t.1")), true),
        (Some(secret(1_000_100, "other")), true),
    ] {
        world.facts.token_secret = secret;
        let actions = world.patches(&Pods, &virtual_, &host);
        assert_eq!(actions.iter().any(|a| matches!(a, Action::WriteTokens(_))), renews, "{actions:?}");
        if !renews {
            assert_eq!(actions, vec![Action::Again { seconds: 100 }]);
        }
    }
}

fn service(spec: Value) -> Value {
    json!({"metadata": {"name": "web", "namespace": "default", "uid": "u-1"}, "spec": spec})
}

#[test]
fn services_take_the_hosts_choices() {
    let world = World::new();
    let virtual_ = service(json!({"type": "NodePort", "clusterIP": "10.96.5.5", "clusterIPs": ["10.96.5.5"],
        "selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}));
    let mut host = world.stored(&Services, &virtual_);
    assert_eq!(host["spec"]["ports"], json!([{"port": 80, "protocol": "TCP"}]));
    assert_eq!(
        host["spec"]["selector"],
        json!({"app": "web", "vcluster.loft.sh/managed-by": "vc", "vcluster.loft.sh/namespace": "default"})
    );
    host["spec"]["clusterIP"] = "10.96.7.7".into();
    host["spec"]["ports"] = json!([{"port": 80, "protocol": "TCP", "nodePort": 32222}]);
    let actions = world.patches(&Services, &virtual_, &host);
    let [Action::Readdress { spec }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(spec.str_at(&["clusterIP"]), "10.96.7.7");
    assert_eq!(spec["selector"], json!({"app": "web"}));
    // Stopped in between: the same again, and nothing of the intermediate state reaches the host.
    let [away, back] = readdress(&virtual_, spec);
    assert_eq!((away["spec"].str_at(&["type"]), &away["spec"]["clusterIP"]), ("ExternalName", &Value::Null));
    assert_eq!(back["spec"].str_at(&["type"]), "NodePort");
    let mut between = virtual_.clone();
    between["spec"] = json!({"type": "ExternalName", "externalName": "address-changes.invalid",
        "selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}]});
    between.set_at(&["metadata", "annotations"], away["metadata"]["annotations"].clone());
    let again = world.patches(&Services, &between, &host);
    assert!(matches!(&again[..], [Action::Readdress { spec: s }] if s == spec), "{again:?}");
    assert_eq!(Services.translate(&between, &world.ctx()).expect("a Service").0["spec"]["type"], "NodePort");

    // The same address: only the node port comes up.
    let mut same = virtual_.clone();
    same["spec"]["clusterIP"] = "10.96.7.7".into();
    let actions = world.patches(&Services, &same, &host);
    let patch = actions.iter().find_map(|a| match a {
        Action::PatchVirtual { patch, subresource: "" } => Some(patch),
        _ => None,
    });
    assert_eq!(
        patch.map(|p| p["spec"].clone()),
        Some(json!({"ports": [{"port": 80, "protocol": "TCP", "nodePort": 32222}]}))
    );

    let mut fresh = service(json!({"ports": [{"port": 80, "protocol": "TCP"}]}));
    adopt(&mut fresh, &host);
    assert_eq!(
        fresh["spec"],
        json!({"clusterIP": "10.96.7.7", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 32222}]})
    );
}

#[test]
fn services_change_in_both_directions() {
    let world = World::new();
    let virtual_ = service(json!({"type": "ClusterIP", "clusterIP": "10.96.7.7", "selector": {"app": "web"},
        "ports": [{"port": 80, "protocol": "TCP"}]}));
    let mut host = world.stored(&Services, &virtual_);
    host["spec"]["clusterIP"] = "10.96.7.7".into();
    assert_eq!(world.patches(&Services, &virtual_, &host), vec![]);
    // (the tenant's change, what the host is told)
    for (change, want) in [
        (json!({"type": "LoadBalancer"}), json!({"type": "LoadBalancer"})),
        (json!({"type": "NodePort"}), json!({"type": "NodePort"})),
        (json!({"sessionAffinity": "ClientIP"}), json!({"sessionAffinity": "ClientIP"})),
        (json!({"internalTrafficPolicy": "Local"}), json!({"internalTrafficPolicy": "Local"})),
        (json!({"trafficDistribution": "PreferClose"}), json!({"trafficDistribution": "PreferClose"})),
        (json!({"publishNotReadyAddresses": true}), json!({"publishNotReadyAddresses": true})),
        (json!({"loadBalancerSourceRanges": ["1.0.0.0/8"]}), json!({"loadBalancerSourceRanges": ["1.0.0.0/8"]})),
        (
            json!({"ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP", "nodePort": 30005}]}),
            json!({"ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}),
        ),
        (
            json!({"type": "ExternalName", "externalName": "x.example", "clusterIP": null}),
            json!({"type": "ExternalName", "externalName": "x.example", "clusterIP": null}),
        ),
    ] {
        let mut after = virtual_.clone();
        merge(&mut after, &json!({ "spec": change }));
        let actions = world.patches(&Services, &after, &host);
        let patch = actions.iter().find_map(|a| match a {
            Action::PatchHost { patch, subresource: "" } => Some(patch["spec"].clone()),
            _ => None,
        });
        assert_eq!(patch, Some(want), "{actions:?}");
    }
    let mut load_balancer = virtual_.clone();
    load_balancer["spec"]["type"] = "LoadBalancer".into();
    let mut host = world.stored(&Services, &load_balancer);
    host["spec"]["clusterIP"] = "10.96.7.7".into();
    host["status"] = json!({"loadBalancer": {"ingress": [{"ip": "5.5.5.5"}]}});
    let actions = world.patches(&Services, &load_balancer, &host);
    assert!(
        matches!(&actions[..], [Action::PatchVirtual { patch, subresource: "status" }]
            if patch["status"]["loadBalancer"]["ingress"][0]["ip"] == *"5.5.5.5"),
        "{actions:?}"
    );
}

#[test]
fn config_maps_are_synced_while_something_needs_them() {
    let mut world = World::new();
    let map = json!({"metadata": {"name": "m", "namespace": "default", "uid": "u-1"}, "data": {"a": "1"}});
    let mut forced = map.clone();
    forced.set_at(&["metadata", "annotations", "vcluster.loft.sh/force-sync"], "true".into());
    // (which are wanted, something refers to it, the object, made)
    for (wanted, referred, object, made) in [
        (Wanted::Used, true, &map, true),
        (Wanted::Used, false, &map, false),
        (Wanted::Used, false, &forced, true),
        (Wanted::All, false, &map, true),
        (Wanted::Off, true, &map, false),
    ] {
        world.settings.config_maps = wanted;
        world.facts.referred = referred;
        let plan = world.plan(&Configs::ConfigMaps, Some(object), None, &LastSeen::default());
        assert_eq!(!plan.actions.is_empty(), made, "{wanted:?} {referred}");
    }
    world.settings.config_maps = Wanted::Used;
    let host = world.stored(&Configs::ConfigMaps, &map);
    world.facts.referred = false;
    let actions = world.patches(&Configs::ConfigMaps, &map, &host);
    assert!(matches!(&actions[..], [Action::DeleteHost { .. }]), "no longer used: {actions:?}");
    // A copy that was lost is made again; the tenant's data is the original.
    world.facts.referred = true;
    let known = LastSeen { on_host: true, ..LastSeen::default() };
    let plan = world.plan(&Configs::ConfigMaps, Some(&map), None, &known);
    assert!(matches!(&plan.actions[..], [Action::CreateHost(_)]), "{:?}", plan.actions);
}

#[test]
fn endpoints_follow_services_without_selector() {
    let mut world = World::new();
    let endpoints = json!({"metadata": {"name": "ext", "namespace": "default", "uid": "u-1"},
        "subsets": [{"addresses": [{"ip": "1.2.3.4", "targetRef": {"kind": "Pod", "name": "p"}}], "ports": [{"port": 80}]}]});
    for (service, made) in [
        (None, false),
        (Some(json!({"metadata": {"name": "ext"}, "spec": {"selector": {"a": "b"}}})), false),
        (Some(json!({"metadata": {"name": "ext"}, "spec": {"type": "ExternalName"}})), false),
        (Some(json!({"metadata": {"name": "ext"}, "spec": {}})), true),
    ] {
        world.facts.service = service.clone();
        let plan = world.plan(&EndpointKinds::Endpoints, Some(&endpoints), None, &LastSeen::default());
        assert_eq!(!plan.actions.is_empty(), made, "{service:?}");
    }
    let host = world.host(&EndpointKinds::Endpoints, &endpoints);
    assert_eq!(
        host["subsets"],
        json!([{"addresses": [{"ip": "1.2.3.4", "targetRef":
            {"kind": "Pod", "name": "p-x-default-x-vc", "namespace": "host-ns"}}], "ports": [{"port": 80}]}])
    );
    // A long service name is hashed as the Service's own host name is.
    let long = "s".repeat(60);
    let slice = json!({"metadata": {"name": "e", "namespace": "default", "uid": "u", "labels": {"kubernetes.io/service-name": long}},
        "addressType": "IPv4", "endpoints": []});
    let host = world.host(&EndpointKinds::EndpointSlices, &slice);
    assert_eq!(metadata::label(&host, "kubernetes.io/service-name"), world.names.host_name(&long, "default"));
}

#[test]
fn the_choice_of_a_virtual_scheduler_reaches_the_hosts_provisioners() {
    const SELECTED: &str = "volume.kubernetes.io/selected-node";
    let claim = json!({"metadata": {"name": "data", "namespace": "default", "uid": "u-1", "annotations": {SELECTED: "n"}},
        "spec": {"resources": {"requests": {"storage": "1Gi"}}}});
    for (virtual_scheduler, node_exists, want) in [(true, true, "n"), (true, false, ""), (false, true, "")] {
        let mut world = World::new();
        world.settings.virtual_scheduler = virtual_scheduler;
        world.facts.node_exists = node_exists;
        let host = world.stored(&Claims, &claim);
        assert_eq!(metadata::annotation(&host, SELECTED), want, "{virtual_scheduler} {node_exists}");
    }
}

#[test]
fn claims_are_bound_by_the_host() {
    let world = World::new();
    let claim = json!({"metadata": {"name": "data", "namespace": "default", "uid": "u-1"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}});
    let mut host = world.stored(&Claims, &claim);
    assert_eq!(host["spec"], claim["spec"]);
    host["spec"]["volumeName"] = "pvc-1".into();
    host["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
    host.set_at(&["metadata", "annotations", "pv.kubernetes.io/bind-completed"], "yes".into());
    let actions = world.patches(&Claims, &claim, &host);
    let mut bound = claim.clone();
    for action in &actions {
        let Action::PatchVirtual { patch, .. } = action else { panic!("{action:?}") };
        merge(&mut bound, patch);
    }
    assert_eq!(bound.str_at(&["spec", "volumeName"]), "pvc-1");
    assert_eq!(bound.str_at(&["status", "phase"]), "Bound");
    assert_eq!(metadata::annotation(&bound, "pv.kubernetes.io/bind-completed"), "yes");
    assert_eq!(world.patches(&Claims, &bound, &host), vec![]);
    let volume = fake_volume(&bound);
    assert_eq!(volume.str_at(&["metadata", "name"]), "pvc-1");
    assert_eq!(volume.str_at(&["spec", "claimRef", "name"]), "data");
    assert_eq!(volume["spec"]["flexVolume"], json!({"driver": "fake"}));
    // It can grow.
    bound["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
    let actions = world.patches(&Claims, &bound, &host);
    assert!(
        matches!(&actions[..], [Action::PatchHost { patch, .. }]
            if patch["spec"] == json!({"resources": {"requests": {"storage": "2Gi"}}})),
        "{actions:?}"
    );
}

#[test]
fn events_are_told_in_the_tenants_words() {
    let world = World::new();
    let involved = json!({"metadata": {"name": "web", "namespace": "default", "uid": "u-1", "resourceVersion": "7"}});
    let event = json!({
        "metadata": {"name": "web-x-default-x-vc.17a", "namespace": "host-ns", "uid": "e", "resourceVersion": "1"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "web-x-default-x-vc", "namespace": "host-ns", "uid": "h"},
        "reason": "Scheduled", "type": "Normal", "count": 2,
        "message": "Successfully assigned host-ns/web-x-default-x-vc to node-1",
        "related": {"kind": "Secret", "name": "s-x-default-x-vc", "namespace": "host-ns"},
    });
    assert_eq!(
        event::translate(&event, &involved, &world.names),
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": "web.17a", "namespace": "default"},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "web", "namespace": "default", "uid": "u-1",
                "resourceVersion": "7"},
            "reason": "Scheduled", "type": "Normal", "count": 2,
            "message": "Successfully assigned default/web to node-1",
        })
    );
}

#[test]
fn nodes_invented_and_real() {
    let mut settings = settings();
    let fake = node::fake_node("ip-10.eu", Some("10.96.0.77"), &settings, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(metadata::label(&fake, "kubernetes.io/hostname"), "fake-ip-10.eu");
    assert_eq!(
        fake["status"]["addresses"],
        json!([{"type": "Hostname", "address": "ip-10-eu.nodes.vcluster.com"}, {"type": "InternalIP", "address": "10.96.0.77"}])
    );
    assert_eq!(fake, node::fake_node("ip-10.eu", Some("10.96.0.77"), &settings, jiff::Timestamp::UNIX_EPOCH));
    settings.nodes = Nodes::Real { all: true, labels: [].into(), clear_image_status: true, sync_back_changes: false };
    settings.pods.enforce_tolerations = vec![json!({"key": "tenants", "operator": "Exists"})];
    let host = json!({"metadata": {"name": "n", "labels": {"zone": "a"},
            "annotations": {"management.cattle.io/pod-requests": "{}", "a": "b"}},
        "spec": {"taints": [{"key": "tenants", "effect": "NoSchedule"}, {"key": "gpu", "effect": "NoSchedule"}]},
        "status": {"images": [{}], "capacity": {"cpu": "4"}, "volumesInUse": ["x"]}});
    let shown = node::real_node(&host, None, None, &settings);
    assert_eq!(shown["spec"]["taints"], json!([{"key": "gpu", "effect": "NoSchedule"}]));
    assert_eq!(metadata::annotation(&shown, "a"), "b");
    assert_eq!(metadata::annotation(&shown, "management.cattle.io/pod-requests"), "", "the host's count of all pods");
    assert_eq!((&shown["status"]["images"], &shown["status"]["volumesInUse"]), (&Value::Null, &Value::Null));
    // What the tenant adds stays, what the host removes goes.
    let mut edited = shown.clone();
    edited["metadata"]["labels"]["mine"] = "1".into();
    edited["spec"]["taints"] = json!([{"key": "gpu", "effect": "NoSchedule"}, {"key": "mine", "effect": "NoExecute"}]);
    let mut later = host.clone();
    later["metadata"]["labels"] = json!({});
    later["spec"]["taints"] = json!([]);
    let shown = node::real_node(&later, Some(&edited), None, &settings);
    assert_eq!(shown["metadata"]["labels"], json!({"mine": "1"}));
    assert_eq!(shown["spec"]["taints"], json!([{"key": "mine", "effect": "NoExecute"}]));
}

#[test]
fn ingress_annotations_are_rewritten() {
    let world = World::new();
    let ingress = json!({"metadata": {"name": "i", "namespace": "default", "uid": "u-1", "annotations": {
            "nginx.ingress.kubernetes.io/auth-secret": "basic",
            "nginx.ingress.kubernetes.io/auth-tls-secret": "other/tls",
            "alb.ingress.kubernetes.io/actions.weighted": "{\"type\":\"forward\",\"forwardConfig\":{\"targetGroups\":[{\"serviceName\":\"web\",\"servicePort\":80}]}}",
            "field.cattle.io/publicEndpoints": "[]", "plain": "kept"}},
        "spec": {"rules": [{"host": "a.example", "http": {"paths": [{"path": "/", "pathType": "Prefix",
            "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}], "tls": [{"secretName": "cert"}]}});
    let host = world.host(&Ingresses, &ingress);
    for (key, want) in [
        ("nginx.ingress.kubernetes.io/auth-secret", "basic-x-default-x-vc"),
        ("nginx.ingress.kubernetes.io/auth-tls-secret", "host-ns/tls-x-other-x-vc"),
        ("plain", "kept"),
    ] {
        assert_eq!(metadata::annotation(&host, key), want);
    }
    assert!(
        metadata::annotation(&host, "alb.ingress.kubernetes.io/actions.weighted-x-default-x-vc")
            .contains("web-x-default-x-vc")
    );
    let text = host["spec"].to_string();
    assert!(
        text.contains("web-x-default-x-vc") && text.contains("cert-x-default-x-vc") && text.contains("a.example"),
        "{text}"
    );
    let mut stored = host.clone();
    stored["metadata"]["uid"] = "h".into();
    assert_eq!(world.patches(&Ingresses, &ingress, &stored), vec![]);
    // Each side's Rancher counts for itself.
    assert_eq!(metadata::annotation(&host, "field.cattle.io/publicEndpoints"), "");
    stored.set_at(&["metadata", "annotations", "field.cattle.io/publicEndpoints"], "[{}]".into());
    assert_eq!(world.patches(&Ingresses, &ingress, &stored), vec![]);
}

#[test]
fn budgets_show_their_status() {
    let mut world = World::new();
    world.settings.pod_disruption_budgets = true;
    let budget = json!({"metadata": {"name": "b", "namespace": "default", "uid": "u-1", "generation": 3},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    let mut host = world.stored(&DisruptionBudgets, &budget);
    host["metadata"]["generation"] = 1.into();
    host["status"] = json!({"currentHealthy": 2, "observedGeneration": 1,
        "disruptedPods": {"web-x-default-x-vc": "2026-01-01T00:00:00Z", "other": "2026-01-01T00:00:00Z"}});
    let actions = world.patches(&DisruptionBudgets, &budget, &host);
    let [Action::PatchVirtual { patch, subresource: "status" }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(
        patch["status"],
        json!({"currentHealthy": 2, "observedGeneration": 3, "disruptedPods": {"web": "2026-01-01T00:00:00Z"}})
    );
}

#[test]
fn import_mappings_have_a_precedence() {
    let mappings: Vec<ImportMapping> = [("shared/one", "a/renamed"), ("shared/*", "b/*"), ("/two", "c/two"), ("", "d")]
        .map(|(from, to)| ImportMapping { from: from.into(), to: to.into() })
        .to_vec();
    for (namespace, name, want) in [
        ("shared", "one", Some("a/renamed")),
        ("shared", "other", Some("b/other")),
        ("host-ns", "two", Some("c/two")),
        ("host-ns", "three", Some("d/three")),
        ("elsewhere", "one", None),
    ] {
        let got = import_target(&mappings, namespace, name, "host-ns").map(|(ns, n)| format!("{ns}/{n}"));
        assert_eq!(got.as_deref(), want, "{namespace}/{name}");
    }
}

#[test]
fn what_was_imported_follows_the_host_until_both_agreed_once() {
    let world = World::new();
    let virtual_ = json!({"metadata": {"name": "tls", "namespace": "default", "uid": "u"}, "data": {"crt": "old"}});
    for (imported, want) in [(true, "new"), (false, "old")] {
        let mut host = world.stored(&Configs::Secrets, &virtual_);
        host["data"]["crt"] = "new".into();
        host.remove_at(&["metadata", "annotations", metadata::LAST_SYNCED_ANNOTATION]);
        if imported {
            host.set_at(&["metadata", "annotations", metadata::IMPORTED_ANNOTATION], "true".into());
        }
        let desired = Configs::Secrets.reconcile(&virtual_, &host, &LastSeen::default(), &world.ctx());
        let desired = desired.expect("it is synced");
        assert_eq!(desired.virtual_.str_at(&["data", "crt"]), want, "imported: {imported}");
        assert_eq!(desired.host.str_at(&["data", "crt"]), want, "imported: {imported}");
    }
}

#[test]
fn what_needs_resource_claims_is_left_out_where_they_are_not_served() {
    let on = syncer::settings::Import::On(json!({}));
    let mut some = Settings { resource_claims: true, import_device_classes: on, ..settings() };
    assert_eq!(some.leave_out_claims(), ["sync.toHost.resourceClaims", "sync.fromHost.deviceClasses"]);
    assert!(!some.resource_claims && !some.import_device_classes.is_on());
    assert!(some.leave_out_claims().is_empty());
    let mut world = World::new();
    let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": {
        "containers": [{"name": "c", "image": "i"}], "resourceClaims": [{"name": "d", "resourceClaimName": "d"}]}});
    assert!(Pods.translate(&pod, &world.ctx()).is_ok());
    world.settings.host_lacks_claims = true;
    let refused = Pods.translate(&pod, &world.ctx()).unwrap_err();
    assert!(format!("{refused:?}").contains("spec.resourceClaims: the host does not serve"), "{refused:?}");
}
