//! The patches that vCluster's documentation publishes, as they are written there.

use apimachinery::{Value, json};
use syncer::names::Names;
use syncer::patches::{Mode, Patch, Path};
use syncer::plan::{Action, LastSeen, plan};
use syncer::script::Script;
use syncer::settings::{Settings, Wanted};
use syncer::types::configs::Configs;
use syncer::types::pod::Pods;
use syncer::types::service::Services;
use syncer::types::{Context, Facts, ToHost};

fn expression(path: &str, to_host: Option<&str>, to_virtual: Option<&str>) -> Patch {
    let script = |text: &str| Script::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    Patch {
        path: Path::parse(path).expect("a path"),
        mode: Mode::Expression { to_host: to_host.map(script), to_virtual: to_virtual.map(script) },
    }
}

fn with<T>(patches: &[Patch], test: impl FnOnce(&Context<'_>) -> T) -> T {
    let names = Names::new("vcluster", "vcluster-ns");
    let settings = Settings {
        workload_service_account: "w".into(),
        dns_service: None,
        config_maps: Wanted::All,
        config: json!({"sync": {"toHost": {"pods": {"enabled": true}}}}),
        ..Settings::default()
    };
    let facts = Facts { kube_ip: "10.96.0.9".into(), ..Facts::default() };
    let now = jiff::Timestamp::UNIX_EPOCH;
    test(&Context { names: &names, settings: &settings, owner: None, facts: &facts, patches, now })
}

fn made(ty: &dyn ToHost, object: &Value, ctx: &Context<'_>) -> Value {
    let plan = plan(ty, Some(object), None, &LastSeen::default(), ctx);
    let mut host =
        plan.actions.iter().find_map(|a| if let Action::CreateHost(host) = a { Some(host.clone()) } else { None });
    let host = host.as_mut().unwrap_or_else(|| panic!("{:?}", plan.actions));
    host["metadata"]["uid"] = "h".into();
    host.clone()
}

fn config_map(annotations: Value) -> Value {
    json!({"metadata": {"name": "m", "namespace": "default", "uid": "u", "annotations": annotations}, "data": {"a": "1"}})
}

#[test]
fn expressions_on_their_way_to_the_host() {
    const KEY: &str = "metadata.annotations[\"k\"]";
    for (path, text, value, want) in [
        (KEY, "\"my-prefix-\"+value", "a", "my-prefix-a"),
        (KEY, "\"my-value\"", "a", "my-value"),
        (KEY, "btoa(value)", "my-value", "bXktdmFsdWU="),
        (KEY, "atob(value)", "bXktdmFsdWU=", "my-value"),
        (
            KEY,
            "virtualToHostDNS(value)",
            "nginx.default.svc.cluster.local",
            "nginx-x-default-x-vcluster.vcluster-ns.svc.cluster.local",
        ),
        (KEY, "virtualToHostDNS(value)", "nginx.default.svc", "nginx-x-default-x-vcluster.vcluster-ns.svc"),
        (KEY, "value.startsWith('prod-') ? value : `prod-${value}`", "a", "prod-a"),
        (KEY, "value.startsWith('www.') ? value.slice(4) : value", "www.a", "a"),
        (KEY, "\"patched-\" + value", "a", "patched-a"),
        (KEY, "value.replace(/^tenant-/, \"\")", "tenant-a", "a"),
        (KEY, "context.virtualObject.metadata.name + '/' + context.vcluster.namespace", "a", "m/vcluster-ns"),
        (KEY, "context.vcluster.config.sync.toHost.pods.enabled ? context.path : 'no'", "a", "metadata.annotations.k"),
        (KEY, "valueExists ? value : 'none'", "a", "a"),
        ("metadata.annotations[*]", "value.toUpperCase()", "a", "A"),
        ("metadata.annotations", "value[\"demos.loft.sh/project\"]=\"p\";value.k = 'x';value", "a", "x"),
    ] {
        let patches = [expression(path, Some(text), None)];
        with(&patches, |ctx| {
            let mut object = config_map(json!({"k": value}));
            let mut host = made(&Configs::ConfigMaps, &object, ctx);
            assert_eq!(host.str_at(&["metadata", "annotations", "k"]), want, "{text}");
            // The object is ours, and nothing is left to do.
            let owner = syncer::metadata::owner(&host, &syncer::kind::CONFIG_MAP, ctx.names);
            assert_eq!(
                owner,
                syncer::metadata::Owner::Ours {
                    name: syncer::names::NamespacedName::new("default", "m"),
                    uid: "u".into()
                }
            );
            let again = |object: &Value, host: &Value| {
                plan(&Configs::ConfigMaps, Some(object), Some(host), &LastSeen::default(), ctx).actions
            };
            assert_eq!(again(&object, &host), [], "{text}");
            // Nothing of it comes back when something else changes, and the data goes on both ways.
            host["data"]["a"] = "2".into();
            let actions = again(&object, &host);
            let up = actions
                .iter()
                .find_map(|a| if let Action::PatchVirtual { patch, .. } = a { Some(patch) } else { None });
            let up = up.unwrap_or_else(|| panic!("{text}: {actions:?}"));
            assert_eq!((up.str_at(&["data", "a"]), up["metadata"].get("annotations")), ("2", None), "{text}");
            object["data"]["a"] = "3".into();
            let actions = again(&object, &host);
            let down =
                actions.iter().find_map(|a| if let Action::PatchHost { patch, .. } = a { Some(patch) } else { None });
            assert_eq!(down.map(|patch| patch.str_at(&["data", "a"])), Some("3"), "{text}: {actions:?}");
        });
    }
    // What is not there can be made, and `null` takes away.
    let patches = [
        expression("metadata.annotations[\"new\"]", Some("valueExists ? value : 'made'"), None),
        expression("metadata.annotations[\"k\"]", Some("null"), None),
    ];
    let host = with(&patches, |ctx| made(&Configs::ConfigMaps, &config_map(json!({"k": "v"})), ctx));
    assert_eq!(host.str_at(&["metadata", "annotations", "new"]), "made");
    assert!(host.at(&["metadata", "annotations", "k"]).is_none_or(Value::is_null), "{host}");
}

#[test]
fn images_and_variables_of_all_containers() {
    let patches = [
        expression("spec.containers[*].image", Some("value.replace(\"docker.io/\", \"registry.internal/\")"), None),
        expression(
            "spec.containers[*].env[*].value",
            Some("value.replace(\"internal.svc\", \"internal.svc.cluster.local\")"),
            None,
        ),
    ];
    let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": {"containers": [
        {"name": "a", "image": "docker.io/nginx:latest", "env": [{"name": "U", "value": "http://x.internal.svc"}]},
        {"name": "b", "image": "quay.io/b"}]}});
    with(&patches, |ctx| {
        let host = made(&Pods, &pod, ctx);
        let containers = host.array_at(&["spec", "containers"]);
        assert_eq!(containers[0].str_at(&["image"]), "registry.internal/nginx:latest");
        assert_eq!(containers[1].str_at(&["image"]), "quay.io/b");
        let mut values = containers[0].array_at(&["env"]).iter();
        assert_eq!(
            values.find(|e| e.str_at(&["name"]) == "U").map(|e| e.str_at(&["value"])),
            Some("http://x.internal.svc.cluster.local")
        );
        // And again, nothing.
        let again = plan(&Pods, Some(&pod), Some(&host), &LastSeen::default(), ctx).actions;
        assert!(again.iter().all(|a| matches!(a, Action::Again { .. })), "{again:?}");
    });
}

#[test]
fn port_names_have_a_prefix_on_the_host_and_none_in_the_virtual_cluster() {
    let patches =
        [expression("spec.ports[*].name", Some("\"tenant-\" + value"), Some("value.replace(/^tenant-/, \"\")"))];
    let service = json!({"metadata": {"name": "s", "namespace": "default", "uid": "u"},
        "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}});
    with(&patches, |ctx| {
        let mut host = made(&Services, &service, ctx);
        assert_eq!(host["spec"]["ports"][0].str_at(&["name"]), "tenant-http");
        assert_eq!(plan(&Services, Some(&service), Some(&host), &LastSeen::default(), ctx).actions, []);
        // A change of the host comes back without the prefix.
        host["spec"]["ports"] = json!([{"name": "tenant-web", "port": 80, "protocol": "TCP"}]);
        let actions = plan(&Services, Some(&service), Some(&host), &LastSeen::default(), ctx).actions;
        let shown = actions.iter().find_map(|a| match a {
            Action::PatchVirtual { patch, .. } => Some(patch["spec"]["ports"][0].str_at(&["name"]).to_owned()),
            _ => None,
        });
        assert_eq!(shown.as_deref(), Some("web"), "{actions:?}");
    });
}

#[test]
fn an_empty_path_is_the_whole_change() {
    let text = "(value => {\n  value.metadata ??= {};\n  value.metadata.annotations ??= {};\n  \
        value.metadata.annotations[\"patched-by\"] = \"vcluster-\" + (value.data?.a ?? '');\n  return value;\n})(value)\n";
    let patches = [expression("", Some(text), None)];
    with(&patches, |ctx| {
        let mut object = config_map(json!({}));
        let host = made(&Configs::ConfigMaps, &object, ctx);
        assert_eq!(host.str_at(&["metadata", "annotations", "patched-by"]), "vcluster-1");
        assert_eq!(plan(&Configs::ConfigMaps, Some(&object), Some(&host), &LastSeen::default(), ctx).actions, []);
        // Changes of the tenant go through it as well.
        object["data"]["a"] = "2".into();
        let actions = plan(&Configs::ConfigMaps, Some(&object), Some(&host), &LastSeen::default(), ctx).actions;
        let [Action::PatchHost { patch, .. }] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(patch.str_at(&["metadata", "annotations", "patched-by"]), "vcluster-2");
        assert_eq!(patch.str_at(&["data", "a"]), "2");
    });
}
