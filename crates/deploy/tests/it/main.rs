//! What lands on the host for a configuration.

mod chart;
mod rights;

use config::{Config, Source};
use deploy::{Placement, Release, host_objects, names, secrets};
use serde_json::{Value, json};

fn read(text: &str) -> Config {
    config::load(&[Source::new("test", text)], &[]).unwrap()
}

fn render(placement: Placement, text: &str) -> Vec<Value> {
    let config = read(text);
    host_objects(&Release {
        name: "team-a",
        namespace: "vcluster-team-a",
        placement,
        config: &config,
        version: "0.1.0",
    })
    .unwrap()
}

fn kinds(objects: &[Value]) -> Vec<String> {
    objects
        .iter()
        .map(|o| format!("{} {}", o["kind"].as_str().unwrap(), o["metadata"]["name"].as_str().unwrap()))
        .collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects
        .iter()
        .find(|o| o["kind"] == kind && o["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn a_cluster_in_a_hub_has_no_workload() {
    let objects = render(Placement::Hub, "");
    assert_eq!(
        kinds(&objects),
        [
            "ServiceAccount vc-team-a",
            "ServiceAccount vc-workload-team-a",
            "Role vc-team-a",
            "RoleBinding vc-team-a",
            "Service team-a",
            "Secret vc-config-team-a",
        ]
    );
    let secret = find(&objects, "Secret", "vc-config-team-a");
    assert_eq!(secret["metadata"]["labels"]["alcove.dev/placement"], "hub");
    assert_eq!(secret["metadata"]["labels"]["app"], "vcluster");
    assert_eq!(secret["metadata"]["labels"]["release"], "team-a");
    assert_eq!(secret["metadata"]["annotations"]["vcluster.loft.sh/store"], "embedded-database");
    let service = find(&objects, "Service", "team-a");
    assert!(service["spec"].get("selector").is_none());
    assert_eq!(
        service["spec"]["ports"][0],
        json!({"name": "https", "port": 443, "targetPort": 8443, "protocol": "TCP"})
    );
    assert_eq!(service["spec"]["ports"][1]["port"], 10250);
    assert_eq!(service["metadata"]["labels"]["vcluster.loft.sh/service"], "true");
}

#[test]
fn a_dedicated_cluster_has_a_stateful_set_like_vclusters() {
    let objects = render(Placement::Dedicated, "");
    let set = find(&objects, "StatefulSet", "team-a");
    assert_eq!(set["spec"]["serviceName"], "team-a-headless");
    assert_eq!(set["spec"]["selector"]["matchLabels"], json!({"app": "vcluster", "release": "team-a"}));
    assert_eq!(set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], "data");
    assert_eq!(set["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"], "5Gi");
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "vc-team-a");
    let container = &pod["containers"][0];
    assert_eq!(container["name"], "syncer");
    assert_eq!(container["args"], json!(["serve"]));
    assert_eq!(container["livenessProbe"]["httpGet"], json!({"path": "/healthz", "port": 8443, "scheme": "HTTPS"}));
    assert_eq!(container["startupProbe"]["failureThreshold"], 300);
    assert!(container["startupProbe"].get("enabled").is_none());
    assert_eq!(
        find(&objects, "Service", "team-a")["spec"]["selector"],
        json!({"app": "vcluster", "release": "team-a"})
    );
    assert_eq!(find(&objects, "Service", "team-a-headless")["spec"]["clusterIP"], "None");
    assert!(find(&objects, "Secret", "vc-config-team-a")["metadata"]["labels"].get("alcove.dev/placement").is_none());
}

#[test]
fn the_configuration_shapes_the_objects() {
    // (configuration, kind, name, pointer, value)
    for (text, kind, name, pointer, want) in [
        (
            "controlPlane: {service: {spec: {type: LoadBalancer}}}",
            "Service",
            "team-a",
            "/spec/type",
            json!("LoadBalancer"),
        ),
        ("controlPlane: {service: {spec: {type: LoadBalancer}}}", "Service", "team-a", "/spec/ports/1", Value::Null),
        (
            "controlPlane: {service: {httpsNodePort: 30443}}",
            "Service",
            "team-a",
            "/spec/ports/0/nodePort",
            json!(30443),
        ),
        ("controlPlane: {service: {annotations: {a: b}}}", "Service", "team-a", "/metadata/annotations/a", json!("b")),
        (
            "controlPlane: {advanced: {globalMetadata: {annotations: {g: x}}}}",
            "Role",
            "vc-team-a",
            "/metadata/annotations/g",
            json!("x"),
        ),
        (
            "controlPlane: {advanced: {workloadServiceAccount: {name: w}}}",
            "ServiceAccount",
            "w",
            "/metadata/name",
            json!("w"),
        ),
        (
            "policies: {resourceQuota: {enabled: true}}",
            "ResourceQuota",
            "vc-team-a",
            "/spec/hard/requests.cpu",
            json!("10"),
        ),
        (
            "policies: {resourceQuota: {enabled: true}}",
            "LimitRange",
            "vc-team-a",
            "/spec/limits/0/default/cpu",
            json!("1"),
        ),
        (
            "policies: {limitRange: {enabled: true}, resourceQuota: {quota: {count/pods: 5}}}",
            "ResourceQuota",
            "vc-team-a",
            "/spec/hard/count~1pods",
            json!("5"),
        ),
        (
            "controlPlane: {statefulSet: {persistence: {volumeClaim: {enabled: false}}}}",
            "Deployment",
            "team-a",
            "/spec/strategy/rollingUpdate/maxSurge",
            json!(1),
        ),
        (
            "controlPlane: {statefulSet: {image: \"reg.example/alcove:1\"}}",
            "StatefulSet",
            "team-a",
            "/spec/template/spec/containers/0/image",
            json!("reg.example/alcove:1"),
        ),
        (
            "controlPlane: {statefulSet: {scheduling: {nodeSelector: {a: b}}}}",
            "StatefulSet",
            "team-a",
            "/spec/template/spec/nodeSelector/a",
            json!("b"),
        ),
        (
            "rbac: {role: {extraRules: [{apiGroups: [x], resources: [y], verbs: [get]}]}}",
            "Role",
            "vc-team-a",
            "/rules/6/apiGroups/0",
            json!("x"),
        ),
        (
            "rbac: {clusterRole: {extraRules: [{apiGroups: [x], resources: [y], verbs: [get]}]}}",
            "ClusterRole",
            "vc-team-a-v-vcluster-team-a",
            "/rules/0/verbs/0",
            json!("get"),
        ),
    ] {
        let objects = render(Placement::Dedicated, text);
        let got = find(&objects, kind, name).pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(got, want, "{text} {pointer}");
    }
    for (text, kind) in [
        ("policies: {resourceQuota: {enabled: true}, limitRange: {enabled: false}}", "LimitRange"),
        ("", "ResourceQuota"),
        ("", "ClusterRole"),
        ("rbac: {role: {enabled: false}}", "Role"),
    ] {
        assert!(!render(Placement::Hub, text).iter().any(|o| o["kind"] == kind), "{text} {kind}");
    }
}

#[test]
fn a_config_change_changes_the_pod_template() {
    let hash = |text: &str| {
        let objects = render(Placement::Dedicated, text);
        find(&objects, "StatefulSet", "team-a")["spec"]["template"]["metadata"]["annotations"]["vClusterConfigHash"]
            .clone()
    };
    assert_eq!(hash(""), hash("{}"));
    assert_ne!(hash(""), hash("exportKubeConfig: {context: x}"));
}

#[test]
fn the_kubeconfig_secret_has_the_keys_tools_read() {
    let access = secrets::AdminAccess {
        server: "https://localhost:8443".into(),
        insecure: false,
        certificate_authority: "CA".into(),
        client_certificate: "CERT".into(),
        client_key: "KEY".into(),
        token: String::new(),
    };
    let secret = secrets::kubeconfig_secret("team-a", "vc-team-a", "ns", "", &access, Some("uid"));
    assert_eq!(secret["metadata"]["labels"], json!({"app": "vcluster", "vcluster-name": "team-a"}));
    assert_eq!(secret["metadata"]["ownerReferences"][0]["kind"], "Service");
    let keys: Vec<_> = secret["data"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["certificate-authority", "client-certificate", "client-key", "config", "token"]);
    assert_eq!(secret["data"]["certificate-authority"], "Q0E=");
    let text = secrets::kubeconfig_yaml("ctx", &access);
    let value: Value = config::yaml::from_str(&text).unwrap();
    assert_eq!(value, secrets::kubeconfig("ctx", &access));
    assert_eq!(value["clusters"][0]["cluster"]["certificate-authority-data"], "Q0E=");
}

#[test]
fn names_that_cannot_become_objects_are_refused() {
    for (name, good) in [
        ("team-a", true),
        ("a", true),
        (&"a".repeat(52), true),
        (&"a".repeat(53), false),
        ("", false),
        ("Team", false),
        ("1team", false),
        ("-a", false),
        ("a-", false),
        ("a.b", false),
        ("a_b", false),
    ] {
        assert_eq!(names::check_name(name).is_ok(), good, "{name:?}");
    }
    assert_eq!(names::cluster_role("a", "b"), "vc-a-v-b");
    assert!(names::cluster_role(&"a".repeat(52), &"b".repeat(52)).len() <= 63);
}
