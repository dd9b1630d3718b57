//! Which node a pod gets, as rows: a cluster in a few words, the pod, and the answer.

use std::sync::Arc;

use scheduler::decide::{preempt, schedule};
use scheduler::snapshot::{Claim, Snapshot};
use scheduler::types::{Node, Pod};
use serde_json::{Value, json};

fn node(name: &str, more: Value) -> Arc<Node> {
    let mut node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": format!("z-{}", &name[1..2])}},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}}});
    merge(&mut node, more);
    Arc::new(serde_json::from_value(node).expect("a node"))
}

fn pod(name: &str, more: Value) -> Pod {
    let mut pod = json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": {"containers": [{"name": "c"}]}});
    merge(&mut pod, more);
    serde_json::from_value(pod).expect("a pod")
}

fn on(node: &str, name: &str, more: Value) -> Arc<Pod> {
    let mut pod = pod(name, more);
    pod.spec.node_name = node.into();
    Arc::new(pod)
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn cpu(amount: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]}})
}

#[track_caller]
fn check(row: &str, nodes: Vec<Arc<Node>>, pods: Vec<Arc<Pod>>, pod: Pod, want: Result<&str, &str>) {
    let snapshot = Snapshot::new(nodes, pods);
    let got = schedule(&pod, &snapshot, 0).map_err(|e| e.message());
    assert_eq!(got.as_ref().map(String::as_str).map_err(String::as_str), want, "row {row}");
}

#[test]
fn a_pod_goes_where_it_fits_best() {
    let two = || vec![node("n1", json!({})), node("n2", json!({}))];
    check("the emptier node", two(), vec![on("n1", "a", cpu("1"))], pod("p", cpu("500m")), Ok("n2"));
    check(
        "no room",
        two(),
        vec![on("n1", "a", cpu("2"))],
        pod("p", cpu("3")),
        Err("0/2 nodes are available: 2 Insufficient cpu."),
    );
    check("no nodes", vec![], vec![], pod("p", json!({})), Err("no nodes available to schedule pods"));
    check(
        "finished pods free their node",
        vec![node("n1", json!({}))],
        vec![on("n1", "a", json!({"status": {"phase": "Succeeded"}, "spec": cpu("2")["spec"]}))],
        pod("p", cpu("2")),
        Ok("n1"),
    );
    let selector = json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n2"}}});
    check("node selector", two(), vec![], pod("p", selector), Ok("n2"));
    let nowhere = json!({"spec": {"nodeSelector": {"disk": "ssd"}}});
    check(
        "node selector that nothing matches",
        two(),
        vec![],
        pod("p", nowhere),
        Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
    );
    let by_field = json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]}}}}});
    check("match fields", two(), vec![], pod("p", by_field), Ok("n2"));
    let full = node("n1", json!({"status": {"allocatable": {"pods": "1"}}}));
    check(
        "pod count",
        vec![full],
        vec![on("n1", "a", json!({}))],
        pod("p", json!({})),
        Err("0/1 nodes are available: 1 Too many pods."),
    );
}

#[test]
fn taints_keep_pods_out_unless_tolerated() {
    let tainted =
        || vec![node("n1", json!({"spec": {"taints": [{"key": "team", "value": "a", "effect": "NoSchedule"}]}}))];
    check(
        "taint",
        tainted(),
        vec![],
        pod("p", json!({})),
        Err("0/1 nodes are available: 1 node(s) had untolerated taint {team: a}."),
    );
    for toleration in [
        json!({"key": "team", "operator": "Exists"}),
        json!({"key": "team", "value": "a", "effect": "NoSchedule"}),
        json!({"operator": "Exists"}),
    ] {
        check("tolerated", tainted(), vec![], pod("p", json!({"spec": {"tolerations": [toleration]}})), Ok("n1"));
    }
    check(
        "cordoned",
        vec![node("n1", json!({"spec": {"unschedulable": true}}))],
        vec![],
        pod("p", json!({})),
        Err("0/1 nodes are available: 1 node(s) were unschedulable."),
    );
}

#[test]
fn pods_keep_near_or_away_from_each_other() {
    let two = || vec![node("n1", json!({})), node("n2", json!({}))];
    let web = json!({"metadata": {"labels": {"app": "web"}}});
    let term = json!([{"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]);
    let with =
        |kind: &str| json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term}}}});
    check("near", two(), vec![on("n2", "a", web.clone())], pod("p", with("podAffinity")), Ok("n2"));
    check("away", two(), vec![on("n1", "a", web.clone())], pod("p", with("podAntiAffinity")), Ok("n2"));
    check(
        "near nothing",
        two(),
        vec![],
        pod("p", with("podAffinity")),
        Err("0/2 nodes are available: 2 node(s) didn't match pod affinity rules."),
    );
    let mut first = with("podAffinity");
    first["metadata"] = web["metadata"].clone();
    check("the first of a group", two(), vec![], pod("p", first), Ok("n1"));
    let guarded = on("n1", "a", with("podAntiAffinity"));
    check("a running pod keeps others away", two(), vec![guarded], pod("p", web.clone()), Ok("n2"));
    let mut spread = web.clone();
    spread["spec"] = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
    check("spread", two(), vec![on("n1", "a", web.clone())], pod("p", spread), Ok("n2"));
}

#[test]
fn host_ports_are_exclusive_per_address() {
    let port = |ip: &str| json!({"spec": {"containers": [{"name": "c", "ports": [{"hostPort": 80, "hostIP": ip}]}]}});
    let one = || vec![node("n1", json!({}))];
    let taken = Err("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.");
    check("same port", one(), vec![on("n1", "a", port(""))], pod("p", port("10.0.0.1")), taken);
    check("another address", one(), vec![on("n1", "a", port("10.0.0.2"))], pod("p", port("10.0.0.1")), Ok("n1"));
}

#[test]
fn claims_are_bound_first() {
    let with_claim = json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
    let only_n2 =
        json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z-2"]}]}]});
    let only_n2 = serde_json::from_value(only_n2).expect("a selector");
    for (claim, want) in [
        (None, Err("0/2 nodes are available: 2 persistentvolumeclaim \"data\" not found.")),
        (
            Some(Claim::UnboundImmediate),
            Err("0/2 nodes are available: 2 pod has unbound immediate PersistentVolumeClaims."),
        ),
        (Some(Claim::UnboundWaiting), Ok("n1")),
        (Some(Claim::Bound(Some(only_n2))), Ok("n2")),
    ] {
        let mut snapshot = Snapshot::new([node("n1", json!({})), node("n2", json!({}))], []);
        snapshot.claims.extend(claim.clone().map(|c| (("default".to_owned(), "data".to_owned()), c)));
        let got = schedule(&pod("p", with_claim.clone()), &snapshot, 0).map_err(|e| e.message());
        assert_eq!(got.as_ref().map(String::as_str).map_err(String::as_str), want, "claim {claim:?}");
    }
}

#[test]
fn preemption_evicts_as_few_and_as_unimportant_pods_as_it_can() {
    let with_priority = |amount: &str, priority: i32| {
        let mut p = cpu(amount);
        p["spec"]["priority"] = priority.into();
        p
    };
    let snapshot = Snapshot::new(
        [node("n1", json!({})), node("n2", json!({}))],
        [
            on("n1", "low-a", with_priority("1", 1)),
            on("n1", "low-b", with_priority("1", 2)),
            on("n2", "high", with_priority("2", 50)),
        ],
    );
    let names = |p: &Pod| {
        preempt(p, &snapshot).map(|(n, v)| (n, v.iter().map(|p| p.metadata.name.to_string()).collect::<Vec<_>>()))
    };
    assert_eq!(names(&pod("p", with_priority("1", 10))), Some(("n1".into(), vec!["low-a".into()])));
    assert_eq!(names(&pod("p", with_priority("1", 1))), None, "equal priority is never preempted");
    assert_eq!(names(&pod("p", with_priority("3", 100))), None, "an empty node would not do either");
}
