//! Objects a hostile tenant may write. Every row ends in a refusal, a neutral translation, or a host object that is not
//! touched; none names, selects or reads anything outside the tenant's cluster.

use apimachinery::{Value, json};
use syncer::kind::{self, GATEWAY_GROUP};
use syncer::metadata::{self, Owner};
use syncer::names::{Names, NamespacedName};
use syncer::plan::{Action, LastSeen, plan};
use syncer::settings::{Import, Isolation, Nodes, Settings, Wanted};
use syncer::types::address_block::AddressBlock;
use syncer::types::classes::OwnClasses;
use syncer::types::configs::Configs;
use syncer::types::custom::Custom;
use syncer::types::endpoints::EndpointKinds;
use syncer::types::ingress::Ingresses;
use syncer::types::network_policy::NetworkPolicies;
use syncer::types::pod::Pods;
use syncer::types::policies::{DisruptionBudgets, ServiceAccounts};
use syncer::types::real_volumes::RealVolumes;
use syncer::types::service::Services;
use syncer::types::volumes::Claims;
use syncer::types::{Context, Facts, ToHost};

/// What it is, the type, the object, and what becomes of it.
pub type Row = (&'static str, Box<dyn ToHost>, Value, Want);

pub enum Want {
    /// No host object is made; the tenant is told.
    Refused,
    /// No host object is made.
    Nothing,
    /// A host object is made, and its text does not contain this.
    Without(&'static str),
    /// A host object is made, with this value at this path.
    At(&'static [&'static str], Value),
    /// A host object is made, with nothing at this path.
    Absent(&'static [&'static str]),
}
use Want::*;

fn settings() -> Settings {
    Settings {
        dns_service: None,
        workload_service_account: "vc-workload-vc".into(),
        config_maps: Wanted::All,
        secrets: Wanted::All,
        ingresses: true,
        network_policies: true,
        service_accounts: false,
        pod_disruption_budgets: true,
        priority_classes: true,
        storage_classes: true,
        isolate_network: Some(Isolation {
            public: vec![
                AddressBlock::new(
                    "0.0.0.0/0",
                    &[
                        "10.0.0.0/8",
                        "100.64.0.0/10",
                        "127.0.0.0/8",
                        "169.254.0.0/16",
                        "172.16.0.0/12",
                        "192.168.0.0/16",
                    ],
                ),
                AddressBlock::new("::/0", &["::1/128", "fc00::/7", "fe80::/10"]),
            ],
        }),
        gateway_api: syncer::settings::GatewaySettings { gateways: true, ..Default::default() },
        import_ingress_classes: Import::On(json!({"matchLabels": {"for": "tenants"}})),
        import_runtime_classes: Import::On(json!({"matchLabels": {"for": "tenants"}})),
        nodes: Nodes::Real {
            all: false,
            labels: [("pool".to_owned(), "tenants".to_owned())].into(),
            clear_image_status: false,
            sync_back_changes: false,
        },
        ..Settings::default()
    }
}

fn facts() -> Facts {
    let mut facts = Facts { kube_ip: "10.96.0.9".into(), ..Facts::default() };
    facts.namespace_labels.insert("env", "dev".into());
    facts.service = Some(json!({"metadata": {"name": "ext"}, "spec": {"ports": []}}));
    let kinds = ["HTTPRoute", "GRPCRoute", "TCPRoute", "UDPRoute"].map(|kind| json!({ "kind": kind }));
    let listener = |name: &str, from: &str| json!({"name": name, "port": 1, "protocol": "TCP", "allowedRoutes": {"kinds": kinds, "namespaces": {"from": from}}});
    facts.gateways = vec![
        json!({"metadata": {"name": "own", "namespace": "default"}, "spec": {"listeners": [listener("l", "Same")]}}),
        json!({"metadata": {"name": "closed", "namespace": "other"}, "spec": {"listeners": [listener("l", "Same")]}}),
    ];
    // A grant for another kind, another namespace and another Service.
    facts.grants = vec![json!({"metadata": {"name": "g", "namespace": "other"}, "spec": {
        "from": [{"group": GATEWAY_GROUP, "kind": "TLSRoute", "namespace": "default"},
            {"group": GATEWAY_GROUP, "kind": "HTTPRoute", "namespace": "elsewhere"}],
        "to": [{"group": "", "kind": "Service"}, {"group": "", "kind": "Secret", "name": "shared"}]}})];
    facts.services = vec![json!({"metadata": {"name": "web"}})];
    facts.classes = vec![
        ("GatewayClass", Some(json!({"metadata": {"name": "public"}}))),
        ("IngressClass", Some(json!({"metadata": {"name": "private", "labels": {"for": "admins"}}}))),
        ("RuntimeClass", Some(json!({"metadata": {"name": "private", "labels": {"for": "admins"}}}))),
    ];
    facts
}

pub fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": "default", "uid": "u-1"})
}

fn pod(spec: Value) -> Value {
    let mut out = json!({"metadata": meta("web"), "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().expect("a spec").iter() {
        out["spec"][key.as_str()] = value.clone();
    }
    out
}

fn with_meta(mut object: Value, member: &str, map: Value) -> Value {
    object["metadata"][member] = map;
    object
}

fn volume(source: Value) -> Value {
    let mut v = json!({"name": "v"});
    for (key, value) in source.as_object().expect("a source").iter() {
        v[key.as_str()] = value.clone();
    }
    pod(json!({"volumes": [v]}))
}

fn env(from: Value) -> Value {
    json!({"metadata": meta("web"), "spec": {"containers": [
        {"name": "c", "image": "i", "env": [{"name": "X", "valueFrom": from}]}]}})
}

fn affinity(term: Value) -> Value {
    pod(json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}))
}

const MANAGED: &str = metadata::MANAGED_BY_LABEL;
const NAMESPACE: &str = metadata::NAMESPACE_LABEL;

fn pods() -> Vec<(&'static str, Value, Want)> {
    let field = |path: &str| env(json!({"fieldRef": {"fieldPath": path}}));
    let term = |more: Value| {
        let mut t = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "x"}}});
        for (key, value) in more.as_object().expect("a term").iter() {
            t[key.as_str()] = value.clone();
        }
        affinity(t)
    };
    const SELECTOR: &[&str] = &["labelSelector", "matchLabels", MANAGED];
    let _ = SELECTOR;
    vec![
        (
            "service account of the host",
            pod(json!({"serviceAccountName": "admin"})),
            At(&["spec", "serviceAccountName"], "vc-workload-vc".into()),
        ),
        (
            "deprecated service account field",
            pod(json!({"serviceAccount": "admin"})),
            Absent(&["spec", "serviceAccount"]),
        ),
        (
            "host token mounted by the kubelet",
            pod(json!({"automountServiceAccountToken": true})),
            At(&["spec", "automountServiceAccountToken"], false.into()),
        ),
        (
            "host services in the environment",
            pod(json!({"enableServiceLinks": true})),
            At(&["spec", "enableServiceLinks"], false.into()),
        ),
        (
            "marker of another tenant",
            with_meta(pod(json!({})), "labels", json!({MANAGED: "victim"})),
            At(&["metadata", "labels", MANAGED], "vc".into()),
        ),
        (
            "namespace of another virtual namespace",
            with_meta(pod(json!({})), "labels", json!({NAMESPACE: "victim"})),
            At(&["metadata", "labels", NAMESPACE], "default".into()),
        ),
        (
            "forged namespace label",
            with_meta(
                pod(json!({})),
                "labels",
                json!({(Names::new("vc", "host-ns").namespace_label("env")): "victim"}),
            ),
            Without(":\"victim\""),
        ),
        (
            "forged renamed label",
            with_meta(pod(json!({})), "labels", json!({(Names::new("vc", "host-ns").host_label("release")): "victim"})),
            Without(":\"victim\""),
        ),
        (
            "label of the control plane's pods",
            with_meta(pod(json!({})), "labels", json!({"release": "vc"})),
            Absent(&["metadata", "labels", "release"]),
        ),
        (
            "label of node services",
            with_meta(pod(json!({})), "labels", json!({"vcluster.loft.sh/belongs-to": "victim"})),
            Without(":\"victim\""),
        ),
        (
            "controlled-by label",
            with_meta(pod(json!({})), "labels", json!({"vcluster.loft.sh/controlled-by": "vcluster"})),
            Absent(&["metadata", "labels", "vcluster.loft.sh/controlled-by"]),
        ),
        (
            "forged source name",
            with_meta(pod(json!({})), "annotations", json!({metadata::NAME_ANNOTATION: "victim"})),
            At(&["metadata", "annotations", metadata::NAME_ANNOTATION], "web".into()),
        ),
        (
            "forged source uid",
            with_meta(pod(json!({})), "annotations", json!({metadata::UID_ANNOTATION: "victim"})),
            At(&["metadata", "annotations", metadata::UID_ANNOTATION], "u-1".into()),
        ),
        (
            "forged kind",
            with_meta(pod(json!({})), "annotations", json!({metadata::KIND_ANNOTATION: "victim"})),
            Without("victim"),
        ),
        (
            "forged host namespace",
            with_meta(pod(json!({})), "annotations", json!({metadata::HOST_NAMESPACE_ANNOTATION: "victim"})),
            Without("victim"),
        ),
        (
            "forged memory of the syncer",
            with_meta(pod(json!({})), "annotations", json!({metadata::LAST_SYNCED_ANNOTATION: "victim"})),
            Without("victim"),
        ),
        (
            "forged list of managed keys",
            with_meta(pod(json!({})), "annotations", json!({metadata::MANAGED_LABELS_ANNOTATION: "victim"})),
            Without("victim"),
        ),
        (
            "marked as imported",
            with_meta(pod(json!({})), "annotations", json!({metadata::IMPORTED_ANNOTATION: "true"})),
            Absent(&["metadata", "annotations", metadata::IMPORTED_ANNOTATION]),
        ),
        (
            "secrets in the last applied configuration",
            with_meta(
                pod(json!({})),
                "annotations",
                json!({"kubectl.kubernetes.io/last-applied-configuration": "victim"}),
            ),
            Without("victim"),
        ),
        (
            "owner reference to a host object",
            with_meta(
                pod(json!({})),
                "ownerReferences",
                json!([{"apiVersion": "v1", "kind": "Secret", "name": "s", "uid": "x"}]),
            ),
            Absent(&["metadata", "ownerReferences"]),
        ),
        (
            "finalizer that nobody removes",
            with_meta(pod(json!({})), "finalizers", json!(["evil/finalizer"])),
            Without("evil/finalizer"),
        ),
        ("generated name", with_meta(pod(json!({})), "generateName", "victim-".into()), Without("victim-")),
        (
            "secret of the host in a volume",
            volume(json!({"secret": {"secretName": "victim"}})),
            At(&["spec", "volumes"], json!([{"name": "v", "secret": {"secretName": "victim-x-default-x-vc"}}])),
        ),
        (
            "config map of the host in a volume",
            volume(json!({"configMap": {"name": "kube-root-ca.crt"}})),
            At(&["spec", "volumes"], json!([{"name": "v", "configMap": {"name": "kube-root-ca.crt-x-default-x-vc"}}])),
        ),
        (
            "claim of the host",
            volume(json!({"persistentVolumeClaim": {"claimName": "victim"}})),
            At(
                &["spec", "volumes"],
                json!([{"name": "v", "persistentVolumeClaim": {"claimName": "victim-x-default-x-vc"}}]),
            ),
        ),
        (
            "host's trust bundles",
            volume(json!({"projected": {"sources": [{"clusterTrustBundle": {"name": "victim", "path": "x"}}]}})),
            Refused,
        ),
        (
            "certificate of the host's signers",
            volume(json!({"projected": {"sources": [
            {"podCertificate": {"signerName": "victim", "keyType": "RSA3072"}}]}})),
            Refused,
        ),
        (
            "projected host token",
            volume(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}})),
            Without("serviceAccountToken"),
        ),
        (
            "projected secret of the host",
            volume(json!({"projected": {"sources": [{"secret": {"name": "victim"}}]}})),
            Without("\"victim\""),
        ),
        (
            "projected config map of the host",
            volume(json!({"projected": {"sources": [{"configMap": {"name": "victim"}}]}})),
            Without("\"victim\""),
        ),
        (
            "csi secret of the host",
            volume(json!({"csi": {"driver": "d", "nodePublishSecretRef": {"name": "victim"}}})),
            Without("\"victim\""),
        ),
        (
            "azure file secret",
            volume(json!({"azureFile": {"secretName": "victim", "shareName": "s"}})),
            Without("\"victim\""),
        ),
        (
            "rbd secret",
            volume(json!({"rbd": {"monitors": ["m"], "image": "i", "secretRef": {"name": "victim"}}})),
            Without("\"victim\""),
        ),
        (
            "cephfs secret",
            volume(json!({"cephfs": {"monitors": ["m"], "secretRef": {"name": "victim"}}})),
            Without("\"victim\""),
        ),
        (
            "flex volume secret",
            volume(json!({"flexVolume": {"driver": "d", "secretRef": {"name": "victim"}}})),
            Without("\"victim\""),
        ),
        (
            "endpoints of the host for glusterfs",
            volume(json!({"glusterfs": {"endpoints": "victim", "path": "p"}})),
            Without("\"victim\""),
        ),
        (
            "ephemeral volume makes claims on the host",
            volume(json!({"ephemeral": {"volumeClaimTemplate": {"spec": {
            "volumeName": "victim"}}}})),
            Without("victim"),
        ),
        (
            "secret of the host in the environment",
            env(json!({"secretKeyRef": {"name": "victim", "key": "k"}})),
            Without("\"victim\""),
        ),
        (
            "config map of the host in the environment",
            env(json!({"configMapKeyRef": {"name": "victim", "key": "k"}})),
            Without("\"victim\""),
        ),
        ("pull secret of the host", pod(json!({"imagePullSecrets": [{"name": "victim"}]})), Without("\"victim\"")),
        ("reads its host namespace", field("metadata.namespace"), Without("\"metadata.namespace\"")),
        ("reads its host name", field("metadata.name"), Without("\"metadata.name\"")),
        ("reads the host's uid", field("metadata.uid"), Without("\"metadata.uid\"")),
        (
            "reads the host namespace from an annotation",
            field("metadata.annotations['vcluster.loft.sh/object-host-namespace']"),
            Without("['vcluster.loft.sh/object-host-namespace']"),
        ),
        (
            "reads the marker label",
            field("metadata.labels['vcluster.loft.sh/managed-by']"),
            Without("metadata.labels['vcluster.loft.sh/managed-by']"),
        ),
        (
            "reads all annotations",
            volume(json!({"downwardAPI": {"items": [
            {"path": "a", "fieldRef": {"fieldPath": "metadata.annotations"}}]}})),
            Without("\"metadata.annotations\""),
        ),
        (
            "reads all labels",
            volume(json!({"downwardAPI": {"items": [
            {"path": "a", "fieldRef": {"fieldPath": "metadata.labels"}}]}})),
            Without("\"metadata.labels\""),
        ),
        (
            "affinity to pods of a host namespace",
            term(json!({"namespaces": ["kube-system"]})),
            Without("\"namespaces\":["),
        ),
        (
            "affinity by labels of host namespaces",
            term(json!({"namespaceSelector": {"matchLabels": {"team": "victim"}}})),
            Without("namespaceSelector"),
        ),
        ("affinity to every namespace", term(json!({"namespaceSelector": {}})), Without("namespaceSelector")),
        (
            "affinity to another tenant's pods",
            affinity(json!({"topologyKey": "t", "labelSelector": {"matchLabels": {MANAGED: "victim"}}})),
            Without("\"vcluster.loft.sh/managed-by\":\"victim\""),
        ),
        (
            "spread over another tenant's pods",
            pod(json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "t",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {NAMESPACE: "victim"}}}]})),
            Without("\"vcluster.loft.sh/namespace\":\"victim\""),
        ),
        (
            "escapes the node pool",
            pod(json!({"nodeSelector": {"pool": "victim"}})),
            At(&["spec", "nodeSelector", "pool"], "tenants".into()),
        ),
        ("names a node outside the pool", pod(json!({"nodeName": "victim"})), Refused),
        (
            "priority above everyone",
            pod(json!({"priorityClassName": "top", "priority": 2_000_000_000})),
            At(&["spec", "priority"], 1_000_000_000.into()),
        ),
        (
            "priority class of the host",
            pod(json!({"priorityClassName": "victim"})),
            At(&["spec", "priorityClassName"], "vcluster-victim-x-host-ns-x-vc".into()),
        ),
        ("runtime class that is not for tenants", pod(json!({"runtimeClassName": "private"})), Refused),
        ("overhead that pays for nothing", pod(json!({"overhead": {"cpu": "-1"}})), Absent(&["spec", "overhead"])),
        (
            "claim to a device of the host",
            pod(json!({"resourceClaims": [{"name": "d", "resourceClaimName": "victim"}]})),
            Without("\"victim\""),
        ),
        (
            "status of its own making",
            {
                let mut p = pod(json!({}));
                p["status"] = json!({"phase": "Running", "podIP": "1.2.3.4"});
                p
            },
            Absent(&["status"]),
        ),
        (
            "name that collides with another namespace's",
            {
                let mut p = pod(json!({}));
                p["metadata"]["name"] = "a-x-b".into();
                p["metadata"]["namespace"] = "c".into();
                p
            },
            At(&["metadata", "annotations", metadata::NAMESPACE_ANNOTATION], "c".into()),
        ),
    ]
}

fn others() -> Vec<Row> {
    let service = |spec: Value| json!({"metadata": meta("svc"), "spec": spec});
    let claim = |spec: Value| json!({"metadata": meta("data"), "spec": spec});
    let policy = |spec: Value| json!({"metadata": meta("p"), "spec": spec});
    let ingress = |spec: Value| json!({"metadata": meta("i"), "spec": spec});
    let class = |more: Value| {
        let mut c = json!({"metadata": {"name": "c", "uid": "u-1"}, "provisioner": "p"});
        for (key, value) in more.as_object().expect("members").iter() {
            c[key.as_str()] = value.clone();
        }
        c
    };
    vec![
        (
            "service takes an address of the host",
            Box::new(Services) as Box<dyn ToHost>,
            service(json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": []})),
            Without("10.96.0.10"),
        ),
        (
            "service takes traffic of others",
            Box::new(Services),
            service(json!({"externalIPs": ["8.8.8.8"], "ports": []})),
            Without("8.8.8.8"),
        ),
        (
            "service takes a node port",
            Box::new(Services),
            service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30443}]})),
            Without("30443"),
        ),
        (
            "service takes a health check port",
            Box::new(Services),
            service(json!({"type": "LoadBalancer", "healthCheckNodePort": 30444, "ports": []})),
            Without("30444"),
        ),
        (
            "service selects another tenant's pods",
            Box::new(Services),
            service(json!({"selector": {MANAGED: "victim"}, "ports": []})),
            At(&["spec", "selector", MANAGED], "vc".into()),
        ),
        (
            "service selects another namespace's pods",
            Box::new(Services),
            service(json!({"selector": {NAMESPACE: "victim"}, "ports": []})),
            At(&["spec", "selector", NAMESPACE], "default".into()),
        ),
        (
            "service selects the control plane",
            Box::new(Services),
            service(json!({"selector": {"release": "vc"}, "ports": []})),
            Absent(&["spec", "selector", "release"]),
        ),
        (
            "service stands for the API server",
            Box::new(Services),
            json!({"metadata": {"name": "kubernetes", "namespace": "default", "uid": "u"}, "spec": {"ports": []}}),
            Nothing,
        ),
        (
            "endpoints name a host pod",
            Box::new(EndpointKinds::Endpoints),
            json!({"metadata": meta("ext"), "subsets": [{"addresses": [{"ip": "1.2.3.4", "targetRef":
                {"kind": "Secret", "name": "victim", "namespace": "kube-system"}}]}]}),
            Without("victim"),
        ),
        (
            "endpoints name a pod of a host namespace",
            Box::new(EndpointKinds::Endpoints),
            json!({"metadata": meta("ext"), "subsets": [{"addresses": [{"ip": "1.2.3.4", "targetRef":
                {"kind": "Pod", "name": "p", "namespace": "kube-system"}}]}]}),
            Without("\"kube-system\""),
        ),
        (
            "slice joins another tenant's service",
            Box::new(EndpointKinds::EndpointSlices),
            json!({"metadata": {"name": "s", "namespace": "default", "uid": "u",
                "labels": {"kubernetes.io/service-name": "victim"}}, "addressType": "IPv4", "endpoints": []}),
            At(&["metadata", "labels", "kubernetes.io/service-name"], "victim-x-default-x-vc".into()),
        ),
        (
            "claim binds a volume of the host",
            Box::new(Claims),
            claim(json!({"volumeName": "victim"})),
            Without("\"victim\""),
        ),
        (
            "claim selects volumes of the host",
            Box::new(Claims),
            claim(json!({"selector": {"matchLabels": {"of": "victim"}}})),
            Absent(&["spec", "selector"]),
        ),
        (
            "claim copies another namespace's claim",
            Box::new(Claims),
            claim(
                json!({"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "victim", "namespace": "kube-system"}}),
            ),
            Without("\"kube-system\""),
        ),
        (
            "claim is filled from another namespace",
            Box::new(Claims),
            claim(
                json!({"dataSourceRef": {"kind": "VolumeSnapshot", "apiGroup": "s", "name": "n", "namespace": "kube-system"}}),
            ),
            Refused,
        ),
        (
            "claim says that it is bound",
            Box::new(Claims),
            with_meta(claim(json!({})), "annotations", json!({"pv.kubernetes.io/bind-completed": "yes"})),
            Without("bind-completed\":"),
        ),
        (
            "claim chooses a node",
            Box::new(Claims),
            with_meta(claim(json!({})), "annotations", json!({"volume.kubernetes.io/selected-node": "victim"})),
            Without("victim"),
        ),
        (
            "secret that the host fills with its own token",
            Box::new(Configs::Secrets),
            json!({"metadata": with_meta(json!({"metadata": meta("s")}), "annotations",
                json!({"kubernetes.io/service-account.name": "admin"}))["metadata"],
                "type": "kubernetes.io/service-account-token"}),
            At(&["type"], "Opaque".into()),
        ),
        (
            "config map that is the host's root CA",
            Box::new(Configs::ConfigMaps),
            json!({"metadata": meta("kube-root-ca.crt"), "data": {"ca.crt": "mine"}}),
            At(&["metadata", "name"], "kube-root-ca.crt-x-default-x-vc".into()),
        ),
        (
            "policy for another tenant's pods",
            Box::new(NetworkPolicies),
            policy(json!({"podSelector": {"matchLabels": {MANAGED: "victim"}}})),
            Without("\"vcluster.loft.sh/managed-by\":\"victim\""),
        ),
        (
            "policy for every pod of the host namespace",
            Box::new(NetworkPolicies),
            policy(json!({"podSelector": {}})),
            At(&["spec", "podSelector", "matchLabels", MANAGED], "vc".into()),
        ),
        (
            "policy opens to host namespaces",
            Box::new(NetworkPolicies),
            policy(json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]})),
            Without("namespaceSelector"),
        ),
        (
            "policy opens to everyone",
            Box::new(NetworkPolicies),
            policy(json!({"podSelector": {}, "egress": [{}]})),
            Without("\"egress\":[{}]"),
        ),
        (
            "policy opens to the cloud's metadata",
            Box::new(NetworkPolicies),
            policy(json!({"podSelector": {}, "egress": [{"ports": [{"port": 80}]}]})),
            At(
                &["spec", "egress"],
                json!([{"ports": [{"port": 80}], "to": [
                {"podSelector": {"matchLabels": {MANAGED: "vc"}}},
                {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
                    "172.16.0.0/12", "192.168.0.0/16"]}},
                {"ipBlock": {"cidr": "::/0", "except": ["::1/128", "fc00::/7", "fe80::/10"]}}]}]),
            ),
        ),
        (
            "policy opens to the cloud's metadata by its address",
            Box::new(NetworkPolicies),
            policy(json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}]}]})),
            At(&["spec", "egress"], json!([])),
        ),
        (
            "policy opens to the pods of others by their addresses",
            Box::new(NetworkPolicies),
            policy(
                json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"podSelector": {}}]}]}),
            ),
            Without("10.0.0.0"),
        ),
        (
            "policy opens to all addresses",
            Box::new(NetworkPolicies),
            policy(
                json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["8.8.8.8/32"]}}]}]}),
            ),
            At(
                &["spec", "egress"],
                json!([{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8",
                    "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "8.8.8.8/32"]}}]}]),
            ),
        ),
        (
            "ingress leads to a host service",
            Box::new(Ingresses),
            ingress(json!({"defaultBackend": {"service": {"name": "victim", "port": {"number": 80}}}})),
            Without("\"victim\""),
        ),
        (
            "ingress uses a host certificate",
            Box::new(Ingresses),
            ingress(json!({"tls": [{"secretName": "victim"}]})),
            Without("\"victim\""),
        ),
        (
            "ingress annotation names a host secret",
            Box::new(Ingresses),
            with_meta(
                ingress(json!({})),
                "annotations",
                json!({"nginx.ingress.kubernetes.io/auth-secret": "kube-system/victim"}),
            ),
            Without("kube-system/victim"),
        ),
        (
            "ingress annotation with a path trick",
            Box::new(Ingresses),
            with_meta(
                ingress(json!({})),
                "annotations",
                json!({"nginx.ingress.kubernetes.io/auth-tls-secret": "a/../victim"}),
            ),
            Without("victim"),
        ),
        (
            "ingress class that is not for tenants",
            Box::new(Ingresses),
            ingress(json!({"ingressClassName": "private"})),
            Refused,
        ),
        (
            "budget blocks the eviction of others",
            Box::new(DisruptionBudgets),
            json!({"metadata": meta("b"), "spec": {"maxUnavailable": 0, "selector": {}}}),
            At(&["spec", "selector", "matchLabels", MANAGED], "vc".into()),
        ),
        (
            "service account with a host secret",
            Box::new(ServiceAccounts),
            json!({"metadata": meta("sa"), "imagePullSecrets": [{"name": "victim"}]}),
            Nothing,
        ),
        (
            "priority class that is the default for all",
            Box::new(OwnClasses::Priority),
            class(json!({"value": 10, "globalDefault": true})),
            At(&["globalDefault"], false.into()),
        ),
        (
            "priority class above the system's",
            Box::new(OwnClasses::Priority),
            class(json!({"value": 2_000_000_000})),
            At(&["value"], 1_000_000_000.into()),
        ),
        (
            "priority class of the system",
            Box::new(OwnClasses::Priority),
            json!({"metadata": {"name": "system-node-critical", "uid": "u"}, "value": 1}),
            Nothing,
        ),
        (
            "storage class that is the default for all",
            Box::new(OwnClasses::Storage),
            with_meta(class(json!({})), "annotations", json!({"storageclass.kubernetes.io/is-default-class": "true"})),
            Without("is-default-class\":"),
        ),
        (
            "storage class that reads a host secret",
            Box::new(OwnClasses::Storage),
            class(json!({"parameters": {"csi.storage.k8s.io/provisioner-secret-namespace": "kube-system"}})),
            Refused,
        ),
        (
            "volume of the tenant that reads a host secret",
            Box::new(RealVolumes),
            volume_of(json!({"csi": {"driver": "d", "volumeHandle": "h",
                "nodeStageSecretRef": {"name": "victim", "namespace": "kube-system"}}})),
            At(&["spec", "csi", "nodeStageSecretRef", "namespace"], "host-ns".into()),
        ),
        (
            "volume with a secret of no namespace",
            Box::new(RealVolumes),
            volume_of(json!({"csi": {"driver": "d", "volumeHandle": "h", "nodeStageSecretRef": {"name": "victim"}}})),
            Refused,
        ),
        (
            "azure volume with a host secret",
            Box::new(RealVolumes),
            volume_of(
                json!({"azureFile": {"secretName": "victim", "secretNamespace": "kube-system", "shareName": "s"}}),
            ),
            At(&["spec", "azureFile", "secretNamespace"], "host-ns".into()),
        ),
        (
            "volume that takes another claim",
            Box::new(RealVolumes),
            volume_of(json!({"claimRef": {"name": "victim", "namespace": "kube-system", "uid": "u"},
                "csi": {"driver": "d", "volumeHandle": "h"}})),
            At(
                &["spec", "claimRef"],
                json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "victim-x-kube-system-x-vc",
                    "namespace": "host-ns"}),
            ),
        ),
        (
            "volume that says it is one of the host's",
            Box::new(RealVolumes),
            json!({"metadata": {"name": "v", "uid": "u", "annotations": {"vcluster.loft.sh/host-pv": "victim"}},
                "spec": {}}),
            Nothing,
        ),
        (
            "custom resource that says it is another's",
            Box::new(Custom(kind::RESOURCE_CLAIM.clone())),
            with_meta(json!({"metadata": meta("c"), "spec": {}}), "labels", json!({MANAGED: "victim"})),
            At(&["metadata", "labels", MANAGED], "vc".into()),
        ),
        (
            "custom resource that is owned by something of the host",
            Box::new(Custom(kind::RESOURCE_CLAIM.clone())),
            with_meta(
                json!({"metadata": meta("c"), "spec": {}}),
                "ownerReferences",
                json!([{"apiVersion": "v1", "kind": "Node", "name": "victim", "uid": "n"}]),
            ),
            Without("victim"),
        ),
        (
            "custom resource with a status of its own",
            Box::new(Custom(kind::RESOURCE_CLAIM.clone())),
            json!({"metadata": meta("c"), "spec": {}, "status": {"reservedFor": [{"resource": "pods", "name": "victim", "uid": "v"}]}}),
            Without("victim"),
        ),
        (
            "ingress with a host name that another tenant has",
            Box::new(Ingresses),
            ingress(json!({"rules": [{"host": "taken.example"}]})),
            Refused,
        ),
        (
            "ingress with a certificate for another tenant's name",
            Box::new(Ingresses),
            ingress(json!({"tls": [{"hosts": ["taken.example"], "secretName": "mine"}]})),
            Refused,
        ),
    ]
}

fn volume_of(spec: Value) -> Value {
    json!({"metadata": {"name": "v", "uid": "u-1"}, "spec": spec})
}

#[track_caller]
fn check(what: &str, ty: &dyn ToHost, object: &Value, want: &Want) {
    let names = Names::new("vc", "host-ns");
    let (mut settings, facts) = (settings(), facts());
    settings.persistent_volumes = *ty.kind() == kind::PERSISTENT_VOLUME;
    let mut facts = facts;
    // As the engine finds them.
    let claimed = syncer::types::ingress::hostnames(object);
    facts.hostnames_taken = claimed.into_iter().filter(|name| *name == "taken.example").map(str::to_owned).collect();
    let ctx = Context {
        names: &names,
        settings: &settings,
        owner: None,
        facts: &facts,
        patches: &[],
        now: jiff::Timestamp::UNIX_EPOCH,
    };
    let plan = plan(ty, Some(object), None, &LastSeen::default(), &ctx);
    let host = plan.actions.iter().find_map(|a| if let Action::CreateHost(host) = a { Some(host) } else { None });
    let host = match (want, host) {
        (Refused, None) => {
            assert!(plan.actions.iter().any(|a| matches!(a, Action::Warn { .. })), "{what}: the tenant is told");
            return;
        }
        (Nothing, None) => return,
        (Refused | Nothing, Some(host)) => panic!("{what}: made {host}"),
        (_, None) => panic!("{what}: {:?}", plan.actions),
        (_, Some(host)) => host,
    };
    match want {
        Without(text) => assert!(!host.to_string().contains(text), "{what}: {text} in {host}"),
        At(path, value) => assert_eq!(host.at(path), Some(value), "{what}: {host}"),
        Absent(path) => assert_eq!(host.at(path), None, "{what}: {host}"),
        Refused | Nothing => {}
    }
    // Whatever was asked: in our namespace, under our name, recognisable as ours.
    let source = metadata::name_of(object);
    assert_eq!(
        metadata::owner(host, ty.kind(), &names),
        Owner::Ours { name: source.clone(), uid: metadata::uid_of(object).into() },
        "{what}: {host}"
    );
    let namespace = if source.namespace.is_empty() { "" } else { "host-ns" };
    assert_eq!(metadata::name_of(host).namespace, namespace, "{what}");
}

#[test]
fn hostile_objects_do_no_harm() {
    let mut rows = 0;
    for (what, object, want) in pods() {
        check(what, &Pods, &object, &want);
        rows += 1;
    }
    for (what, ty, object, want) in others().into_iter().chain(crate::hostile_routes::rows()) {
        check(what, ty.as_ref(), &object, &want);
        rows += 1;
    }
    assert!(rows >= 100, "{rows} rows");
}

#[test]
fn host_objects_that_only_look_like_ours_are_not_touched() {
    let names = Names::new("vc", "host-ns");
    let (settings, facts) = (settings(), facts());
    let ctx = Context {
        names: &names,
        settings: &settings,
        owner: None,
        facts: &facts,
        patches: &[],
        now: jiff::Timestamp::UNIX_EPOCH,
    };
    let object = json!({"metadata": meta("cm"), "data": {"a": "1"}});
    let ty = Configs::ConfigMaps;
    let (mut good, _) = ty.translate(&object, &ctx).expect("a host object");
    good["metadata"]["uid"] = "h-1".into();
    // (what the host administrator or another controller changed)
    for (what, path, value) in [
        ("no marker", ["metadata", "labels", MANAGED].as_slice(), ""),
        ("another tenant's marker", &["metadata", "labels", MANAGED], "victim"),
        ("another source name", &["metadata", "annotations", metadata::NAME_ANNOTATION], "other"),
        ("another kind", &["metadata", "annotations", metadata::KIND_ANNOTATION], "/v1, Kind=Secret"),
        ("a copy under another name", &["metadata", "name"], "copy"),
        ("another host name", &["metadata", "annotations", metadata::HOST_NAME_ANNOTATION], "other"),
    ] {
        let mut host = good.clone();
        host.set_at(path, value.into());
        for virtual_ in [Some(&object), None] {
            let plan = plan(&ty, virtual_, Some(&host), &LastSeen::default(), &ctx);
            for action in &plan.actions {
                assert!(matches!(action, Action::Clash { .. }), "{what}: {action:?}");
            }
            assert_eq!(plan.actions.len(), usize::from(virtual_.is_some()), "{what}");
        }
    }
}

#[test]
fn two_virtual_objects_with_one_host_name_do_not_overwrite_each_other() {
    let names = Names::new("vc", "host-ns");
    let (settings, facts) = (settings(), facts());
    let ctx = Context {
        names: &names,
        settings: &settings,
        owner: None,
        facts: &facts,
        patches: &[],
        now: jiff::Timestamp::UNIX_EPOCH,
    };
    let first = json!({"metadata": {"name": "a-x-b", "namespace": "c", "uid": "u-1"}, "data": {"a": "1"}});
    let second = json!({"metadata": {"name": "a", "namespace": "b-x-c", "uid": "u-2"}, "data": {"a": "2"}});
    assert_eq!(names.host("a-x-b", "c"), names.host("a", "b-x-c"));
    let ty = Configs::ConfigMaps;
    let (host, _) = ty.translate(&first, &ctx).expect("a host object");
    let plan = plan(&ty, Some(&second), Some(&host), &LastSeen::default(), &ctx);
    let at = NamespacedName::new("host-ns", names.host_name("a", "b-x-c"));
    assert_eq!(plan.actions, vec![Action::Clash { host: at }]);
    let _ = kind::CONFIG_MAP.gvk();
}
