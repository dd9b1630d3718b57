//! The configuration as a reader of `vcluster.yaml` meets it.

use config::{Config, Source, load};
use serde_json::json;

fn read(text: &str) -> Result<Config, String> {
    load(&[Source::new("vcluster.yaml", text)], &[]).map_err(|error| error.to_string())
}

#[test]
fn nothing_set_gives_the_defaults_of_the_chart() {
    for text in ["", "# only a comment\n", "---\n", "{}\n"] {
        let config = read(text).unwrap();
        assert!(config.sync.to_host.pods.enabled, "{text:?}");
        assert!(!config.sync.to_host.ingresses.enabled);
        assert!(!config.sync.to_host.secrets.all);
        assert_eq!(config.networking.advanced.cluster_domain, "cluster.local");
        assert_eq!(config.control_plane.proxy.port, 8443);
        assert!(config.experimental.sync_settings.set_owner);
        assert_eq!(config.at("policies.resourceQuota.quota").unwrap()["count/pods"], json!(20));
        assert_eq!(config.to_yaml(), "{}\n");
    }
}

#[test]
fn a_mistake_is_named_with_its_place_and_the_way_out() {
    // (file, what the message must contain)
    for (text, want) in [
        (
            "sync:\n  toHost:\n    pod:\n      enabled: true\n",
            "vcluster.yaml:3:5: sync.toHost.pod: unknown key; did you mean \"sync.toHost.pods\"?",
        ),
        ("synk: {}\n", "vcluster.yaml:1:1: synk: unknown key; did you mean \"sync\"?"),
        ("toHost: {}\n", "did you mean \"sync.toHost\"?"),
        (
            "sync:\n  toHost:\n    pods:\n      enabled: \"true\"\n",
            "4:16: sync.toHost.pods.enabled: must be true or false, but is the string \"true\"; remove the quotes",
        ),
        (
            "exportKubeConfig:\n  context: 12\n",
            "exportKubeConfig.context: must be a string, but is the number 12; write \"12\" in quotes",
        ),
        ("controlPlane:\n  service:\n    httpsNodePort: \"3\"\n", "must be a whole number"),
        ("sync: []\n", "sync: must be a map, but is a list"),
        ("- a\n", "the document must be a map, but is a list"),
        ("integrations:\n  istio:\n    enabled: true\n", "integrations.istio.enabled: not supported yet"),
        ("serviceCIDR: 10.0.0.0/8\n", "old key; write networking.serviceCIDR"),
        ("sync:\n  toHost:\n    volumeSnapshots:\n      enabled: true\n", "was removed in vCluster 0.36"),
        ("a: 1\na: 2\n", "duplicate"),
        ("a: [1\n", "vcluster.yaml:"),
        ("policies:\n  limitRange:\n    enabled: maybe\n", "must be one of: auto, true, false"),
        (
            "controlPlane:\n  statefulSet:\n    image:\n      repo: x\n",
            "controlPlane.statefulSet.image.repo: unknown key; did you mean \"repository\"?",
        ),
        (
            "exportKubeConfig:\n  additionalSecrets:\n  - nmae: x\n",
            "exportKubeConfig.additionalSecrets[0].nmae: unknown key",
        ),
    ] {
        let got = read(text).expect_err(text);
        assert!(got.contains(want), "for\n{text}\ngot  {got}\nwant {want}");
    }
}

#[test]
fn what_is_off_or_at_its_default_needs_no_support() {
    for text in [
        "sync:\n  toHost:\n    namespaces:\n      enabled: false\n",
        "sync:\n  toHost:\n    pods:\n      patches: []\n",
        "privateNodes:\n  enabled: false\n",
        "deploy:\n  kubeProxy:\n    enabled: false\n",
        "networking:\n  podCIDR: 10.244.0.0/16\n",
        "telemetry:\n  enabled: false\n",
        "sync:\n  toHost:\n    pods: null\n",
    ] {
        read(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    }
}

#[test]
fn a_namespace_is_never_mapped_into_that_of_the_control_plane() {
    let mapped = |target: &str| {
        read(&format!("sync: {{toHost: {{namespaces: {{enabled: true, mappings: {{byName: {{{target}}}}}}}}}}}"))
            .unwrap()
    };
    // (mapping, is it refused for cluster `t` in namespace `vcluster-t`?)
    for (text, refused) in [
        ("a: vcluster-t", true),
        ("a: 'vcluster-${name}'", true),
        ("'a-*': 'vcluster-*'", true),
        ("'a-*': 'v*'", true),
        ("a: vcluster-u", false),
        ("'a-*': 'vcluster-u-*'", false),
        ("vcluster-t: b", false),
    ] {
        let problem = mapped(text).maps_into_own_namespace("t", "vcluster-t");
        assert_eq!(problem.is_some(), refused, "{text}: {problem:?}");
    }
    assert!(read("").unwrap().maps_into_own_namespace("t", "t").is_none());
}

#[test]
fn what_looks_like_a_broken_rule_is_allowed() {
    let certificate = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1BQT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=";
    let webhook = format!(
        "policies: {{centralAdmission: {{validatingWebhooks: [{{webhooks: [{{clientConfig: {{caBundle: {certificate}, service: {{name: a, namespace: b}}}}}}]}}]}}}}"
    );
    for text in [
        webhook.as_str(),
        "sync: {toHost: {pods: {enforceTolerations: ['*', a, a=b, 'a=b:NoSchedule', 'example.com/a:NoExecute']}}}",
        "controlPlane: {backingStore: {etcd: {embedded: {enabled: true, migrateFromDeployedEtcd: true}}}}",
        "controlPlane: {backingStore: {etcd: {embedded: {enabled: true, migrateFromDeployedEtcd: true}, deploy: {enabled: true}}}}",
        "experimental: {denyProxyRequests: [{name: a, namespaces: ['*', b], rules: [{operations: [CREATE, patch], scope: '*', apiGroups: ['', apps]}]}]}",
        "sync: {fromHost: {ingressClasses: {selector: {matchExpressions: [{key: example.com/a, operator: NotIn, values: ['', b]}]}}}}",
        "sync: {toHost: {customResources: {a.b.c: {enabled: true}}}, fromHost: {customResources: {a.b.c: {enabled: false}}}}",
    ] {
        read(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    }
}

#[test]
fn rules_between_keys_hold() {
    for (text, want) in [
        ("policies:\n  podSecurityStandard: strict\n", "must be one of: privileged, baseline, restricted"),
        ("sync:\n  toHost:\n    namespaces:\n      enabled: true\n", "mappings.byName: must not be empty"),
        (
            "sync:\n  toHost:\n    namespaces:\n      enabled: true\n      mappings:\n        byName: {\"a-*\": b}\n",
            "must map a name to a name",
        ),
        (
            "sync:\n  toHost:\n    namespaces:\n      enabled: true\n      mappings:\n        byName: {\"*\": \"*\"}\n",
            "the host side must not be * alone",
        ),
        (
            "sync:\n  fromHost:\n    gateways:\n      enabled: true\n      mappings:\n        byName: {a/b: kube-system/b}\n",
            "the namespace is reserved",
        ),
        (
            "sync:\n  fromHost:\n    gateways:\n      enabled: true\n      mappings:\n        byName: {a/b: x/y, a/c: x/y}\n",
            "has the same target",
        ),
        ("exportKubeConfig:\n  server: example.com\n", "exportKubeConfig.server: must be a URL"),
        ("exportKubeConfig:\n  secret:\n    name: a\n  additionalSecrets:\n  - name: b\n", "must not be set together"),
        ("exportKubeConfig:\n  additionalSecrets:\n  - context: b\n", "must have a name or a namespace"),
        (
            "sync:\n  toHost:\n    priorityClasses:\n      enabled: true\n  fromHost:\n    priorityClasses:\n      enabled: true\n",
            "choose one direction",
        ),
        (
            "sync:\n  toHost:\n    storageClasses:\n      enabled: true\n  fromHost:\n    storageClasses:\n      enabled: \"true\"\n",
            "choose one direction",
        ),
        (
            "sync:\n  fromHost:\n    configMaps:\n      enabled: true\n",
            "sync.fromHost.configMaps.mappings.byName: must not be empty",
        ),
        (
            "sync:\n  fromHost:\n    secrets:\n      enabled: true\n      mappings:\n        byName:\n          a/b: c\n",
            "the value must be NAMESPACE/NAME",
        ),
        (
            "sync:\n  fromHost:\n    secrets:\n      enabled: true\n      mappings:\n        byName:\n          a/*: c/d\n",
            "must end in /*",
        ),
        ("controlPlane:\n  service:\n    enabled: false\n", "controlPlane.service.enabled: must be true"),
        ("networking:\n  serviceCIDR: ten\n", "networking.serviceCIDR: must be an address range"),
        ("networking:\n  advanced:\n    clusterDomain: Not_A_Domain\n", "must be a DNS domain"),
        ("sync:\n  toHost:\n    pods:\n      enforceTolerations: [\"a=b:Never\"]\n", "enforceTolerations[0]: must be"),
        ("sync: {toHost: {pods: {enforceTolerations: ['a=b,c:NoSchedule']}}}", "enforceTolerations[0]: must be"),
        ("sync: {toHost: {pods: {enforceTolerations: ['a=b=c']}}}", "enforceTolerations[0]: must be"),
        ("sync: {toHost: {pods: {enforceTolerations: ['a=b:Exists:NoSchedule']}}}", "enforceTolerations[0]: must be"),
        (
            "controlPlane: {backingStore: {etcd: {embedded: {enabled: true}, deploy: {enabled: true}}}}",
            "controlPlane.backingStore: must have only one store",
        ),
        (
            "controlPlane: {backingStore: {database: {embedded: {enabled: true}, external: {enabled: true, dataSource: a}}}}",
            "controlPlane.backingStore: must have only one store",
        ),
        (
            "sync: {fromHost: {ingressClasses: {selector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}}}",
            "sync.fromHost.ingressClasses.selector.matchExpressions[0].operator: must be one of",
        ),
        (
            "sync: {fromHost: {storageClasses: {selector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}}}",
            "values: must be empty",
        ),
        (
            "sync: {fromHost: {runtimeClasses: {selector: {matchExpressions: [{key: a, operator: In}]}}}}",
            "values: must not be empty",
        ),
        ("sync: {fromHost: {priorityClasses: {selector: {matchLabels: {a: b c}}}}}", "must be a label value"),
        ("sync: {fromHost: {gatewayClasses: {selector: {matchLabels: {'a/b/c': b}}}}}", "is not a label key"),
        (
            "experimental: {denyProxyRequests: [{name: a, rules: [{operations: [make]}]}]}",
            "denyProxyRequests[0].rules[0].operations[0]: must be * or one of: create",
        ),
        (
            "experimental: {denyProxyRequests: [{name: a, rules: [{apiGroups: ['*', apps]}]}]}",
            "rules[0].apiGroups: must have * as its only entry",
        ),
        ("experimental: {denyProxyRequests: [{name: a, rules: [{scope: World}]}]}", "rules[0].scope: must be one of"),
        ("experimental: {denyProxyRequests: [{name: a, namespaces: [No_Name]}]}", "must be the name of a namespace"),
        (
            "policies: {centralAdmission: {validatingWebhooks: [{webhooks: [{name: a.b.c}]}]}}",
            "validatingWebhooks[0].webhooks[0].clientConfig: must have a service or a url",
        ),
        (
            "policies: {centralAdmission: {mutatingWebhooks: [{webhooks: [{clientConfig: {service: {name: a}}}]}]}}",
            "mutatingWebhooks[0].webhooks[0].clientConfig.service: must have a name and a namespace",
        ),
        (
            "policies: {centralAdmission: {mutatingWebhooks: [{webhooks: [{clientConfig: {url: 'https://a', caBundle: aGVsbG8=}}]}]}}",
            "clientConfig.caBundle: must be certificates in PEM",
        ),
        (
            "sync: {toHost: {customResources: {a.b.c: {enabled: true}}}, fromHost: {customResources: {a.b.c: {enabled: true}}}}",
            "choose one direction",
        ),
        (
            "controlPlane: {advanced: {podDisruptionBudget: {enabled: true, minAvailable: 1, maxUnavailable: 1}}}",
            "must not have both minAvailable and maxUnavailable",
        ),
        (
            "sync: {toHost: {namespaces: {enabled: true, mappings: {byName: {a: 'x-${name}-${name}'}}}}}",
            "must have ${name} only once",
        ),
        (
            "sync: {toHost: {namespaces: {enabled: true, mappings: {byName: {a: 'x-${namespace}'}}}}}",
            "has a placeholder other than ${name}",
        ),
        (
            "sync: {toHost: {namespaces: {enabled: true, mappings: {byName: {a: x, b: x}}}}}",
            "has the same host namespace as \"a\"",
        ),
    ] {
        let got = read(text).expect_err(text);
        assert!(got.contains(want), "for\n{text}\ngot  {got}\nwant {want}");
    }
}

#[test]
fn files_and_sets_merge_in_order() {
    let config = load(
        &[
            Source::new("a", "exportKubeConfig:\n  context: a\n  server: https://a\ncontrolPlane:\n  proxy:\n    extraSANs: [one, two]\n"),
            Source::new("b", "exportKubeConfig:\n  context: b\ncontrolPlane:\n  proxy:\n    extraSANs: [three]\n"),
        ],
        &["exportKubeConfig.insecure=true,sync.toHost.secrets.all=true".into()],
    )
    .unwrap();
    assert_eq!(config.export_kube_config.context, "b");
    assert_eq!(config.export_kube_config.server, "https://a");
    assert!(config.export_kube_config.insecure);
    assert!(config.sync.to_host.secrets.all);
    assert_eq!(config.control_plane.proxy.extra_sans, ["three"]);
    // What is stored reads back as the same configuration.
    let again = Config::from_yaml("stored", &config.to_yaml()).unwrap();
    assert_eq!(again.values(), config.values());
    let error = load(&[], &["sync.toHost.pod.enabled=true".into()]).unwrap_err().to_string();
    assert!(error.contains("did you mean \"sync.toHost.pods\"?"), "{error}");
}

#[test]
fn images_are_strings_or_parts() {
    for (text, registry, want) in [
        ("controlPlane:\n  statefulSet:\n    image: ghcr.io/a/b:1\n", "", "ghcr.io/a/b:1"),
        ("controlPlane:\n  statefulSet:\n    image: a/b\n", "", "a/b"),
        ("controlPlane:\n  statefulSet:\n    image: localhost:5000/b@sha256:00\n", "", "localhost:5000/b@sha256:00"),
        ("controlPlane:\n  statefulSet:\n    image: {repository: x/y, tag: \"2\"}\n", "", "ghcr.io/x/y:2"),
        ("controlPlane:\n  statefulSet:\n    image: ghcr.io/a/b:1\n", "my.registry/mirror", "my.registry/mirror/a/b:1"),
    ] {
        let config = read(text).unwrap();
        assert_eq!(config.control_plane.stateful_set.image.reference(registry), want, "{text}");
    }
}

#[test]
fn keys_of_another_placement_are_reported() {
    let config = read("controlPlane:\n  statefulSet:\n    resources:\n      limits:\n        memory: 1Gi\ntelemetry:\n  enabled: false\n").unwrap();
    let paths = |hub| config.without_effect(hub).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    assert_eq!(paths(true), ["controlPlane.statefulSet.resources", "telemetry"]);
    assert_eq!(paths(false), ["telemetry"]);
    let config =
        read("sleep: {auto: {afterInactivity: 1h}}\ndeletion: {auto: {afterInactivity: 48h}, prevent: false}\n")
            .unwrap();
    let paths = |hub| config.without_effect(hub).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    assert_eq!(paths(true), [""; 0]);
    assert_eq!(paths(false), ["deletion.auto", "sleep.auto"]);
    // Keys of upstream's programs, which are not asked for.
    let version = |enabled: &str| format!("controlPlane: {{distro: {{k8s: {{{enabled}version: v1.33.5}}}}}}");
    for (text, hub, want) in [
        (version(""), false, "controlPlane.distro.k8s.version"),
        (version(""), true, "controlPlane.distro.k8s"),
        (version("enabled: true, "), false, ""),
    ] {
        let found = read(&text).unwrap().without_effect(hub);
        assert_eq!(found.iter().map(|(path, _)| path.as_str()).collect::<String>(), want, "{text}");
    }
}

#[test]
fn the_schema_accepts_what_the_table_knows() {
    let schema = config::json_schema();
    let pods = &schema["properties"]["sync"]["properties"]["toHost"]["properties"]["pods"];
    assert_eq!(pods["properties"]["enabled"], json!({"type": "boolean", "default": true}));
    assert_eq!(pods["additionalProperties"], json!(false));
    let istio = &schema["properties"]["integrations"]["properties"]["istio"]["properties"]["enabled"];
    assert_eq!(istio["description"], json!("Not supported yet."));
}

#[test]
fn yaml_reads_numbers_and_words_as_kubernetes_does() {
    for (text, want) in [
        ("a: 0644", json!({"a": 420})),
        ("a: 0o644", json!({"a": 420})),
        ("a: 12:30", json!({"a": "12:30"})),
        ("a: 1.5", json!({"a": 1.5})),
        ("a: \"0644\"", json!({"a": "0644"})),
        ("a: yes", json!({"a": true})),
        ("a: ~", json!({"a": null})),
    ] {
        assert_eq!(config::yaml::documents(text).unwrap(), [want], "{text}");
    }
    assert_eq!(config::yaml::documents("a: 1\n---\n# nothing\n---\nb: 2\n").unwrap().len(), 2);
}

#[test]
fn dns_is_embedded_unless_a_deployment_is_asked_for() {
    use config::DnsMode::{Deployed, Embedded, Off};
    for (text, want) in [
        ("", Embedded),
        ("controlPlane: {coredns: {enabled: false}}", Off),
        ("controlPlane: {coredns: {embedded: true}}", Embedded),
        ("controlPlane: {coredns: {embedded: false}}", Deployed),
        ("controlPlane: {coredns: {enabled: false, embedded: true}}", Off),
        ("controlPlane: {coredns: {deployment: {replicas: 2}}}", Embedded),
        ("controlPlane: {coredns: {embedded: null}}", Embedded),
        ("controlPlane: {coredns: {embedded: false, deployment: {replicas: 2}}}", Deployed),
        ("controlPlane: {coredns: {embedded: true, deployment: {replicas: 2}}}", Embedded),
        ("controlPlane: {coredns: {embedded: false, overwriteManifests: 'a: b'}}", Deployed),
        ("controlPlane: {coredns: {service: {labels: {a: b}}, overwriteConfig: x}}", Embedded),
    ] {
        let config = config::Config::from_yaml("t", text).unwrap();
        assert_eq!(config.dns_mode(), want, "{text}");
        // What is kept on the host says the same.
        assert_eq!(config::Config::from_yaml("t", &config.to_stored()).unwrap().dns_mode(), want, "{text}");
    }
    let both = "controlPlane: {coredns: {embedded: true, deployment: {replicas: 2}}}";
    let ignored = config::Config::from_yaml("t", both).unwrap().without_effect(false);
    assert_eq!(ignored[0].0, "controlPlane.coredns.deployment");
    for (text, want) in [
        (
            "controlPlane: {coredns: {embedded: false}}\nnetworking: {resolveDNS: [{hostname: a, target: {ip: 1.2.3.4}}]}",
            "networking.resolveDNS: needs the embedded DNS server",
        ),
        (
            "controlPlane: {coredns: {embedded: true, overwriteManifests: 'a: b'}}",
            "controlPlane.coredns.overwriteManifests: has no place with the embedded DNS server",
        ),
        (
            "networking: {resolveDNS: [{hostname: a, target: {hostname: '*.b'}}]}",
            "must not have a wildcard because the hostname has none",
        ),
    ] {
        let error = config::Config::from_yaml("t", text).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn a_cluster_changes_its_store_only_where_its_data_comes_along() {
    let etcd = |kind: &str| format!("controlPlane: {{backingStore: {{etcd: {{{kind}}}}}}}");
    let embedded = etcd("embedded: {enabled: true}");
    let taking = etcd("embedded: {enabled: true, migrateFromDeployedEtcd: true}, deploy: {enabled: true}");
    let deployed = etcd("deploy: {enabled: true}");
    let external =
        "controlPlane: {backingStore: {database: {external: {enabled: true, dataSource: 'postgres://u@h/d'}}}}";
    // (the new configuration, the store before, may it)
    for (text, before, want) in [
        ("", "embedded-database", true),
        ("", "deployed-etcd", false),
        (embedded.as_str(), "embedded-database", true),
        (embedded.as_str(), "deployed-etcd", false),
        (taking.as_str(), "deployed-etcd", true),
        (embedded.as_str(), "external-etcd", false),
        (deployed.as_str(), "embedded-database", false),
        (deployed.as_str(), "deployed-etcd", true),
        (external, "embedded-database", false),
        (external, "external-database", true),
    ] {
        assert_eq!(read(text).unwrap().store_may_follow(before), want, "{before} to {text}");
    }
}
