//! Routes and policies of the Gateway API, end to end.

use apimachinery::{Value, json};
use informer::Resource;
use syncer::Syncer;
use syncer::names::NamespacedName;
use syncer::settings::{GatewayImport, Import, ImportMapping, RouteOverride, RoutePolicy};

use crate::cluster::*;
use crate::configured::definition;

const GROUP: &str = "gateway.networking.k8s.io";
const DEFINITIONS: Resource = Resource::new("apiextensions.k8s.io", "v1", "customresourcedefinitions");
const CLASSES: Resource = Resource::new(GROUP, "v1", "gatewayclasses");
const GATEWAYS: Resource = Resource::new(GROUP, "v1", "gateways");
const HTTP_ROUTES: Resource = Resource::new(GROUP, "v1", "httproutes");
const POLICIES: Resource = Resource::new(GROUP, "v1", "backendtlspolicies");
const GRANTS: Resource = Resource::new(GROUP, "v1beta1", "referencegrants");

/// Plural, kind, version, and the listener that is for it.
const ROUTES: [(&str, &str, &str, &str); 5] = [
    ("httproutes", "HTTPRoute", "v1", "https"),
    ("grpcroutes", "GRPCRoute", "v1", "https"),
    ("tlsroutes", "TLSRoute", "v1alpha2", "tls"),
    ("tcproutes", "TCPRoute", "v1alpha2", "tcp"),
    ("udproutes", "UDPRoute", "v1alpha2", "udp"),
];

fn object(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": (format!("{GROUP}/{version}")), "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// Defines kinds on the host: version, plural, kind.
/// What shown Gateways and the routes to them need on the host.
const GATEWAYS_AND_ROUTES: [(&str, &str, &str); 4] = [
    ("v1", "gatewayclasses", "GatewayClass"),
    ("v1", "gateways", "Gateway"),
    ("v1", "httproutes", "HTTPRoute"),
    ("v1beta1", "referencegrants", "ReferenceGrant"),
];

async fn define(host: &Api, kinds: &[(&str, &str, &str)]) {
    for (version, plural, kind) in kinds {
        let scope = if *kind == "GatewayClass" { "Cluster" } else { "Namespaced" };
        host.create(&DEFINITIONS, "", definition(GROUP, version, plural, kind, scope)).await;
    }
}

/// Creates an object once its kind is served.
async fn create_served(api: &Api, resource: &Resource, namespace: &str, object: Value) {
    eventually("the kind is served", || async { api.try_create(resource, namespace, object.clone()).await.ok() }).await;
}

async fn event(api: &Api, namespace: &str, reason: &str, of: &str) {
    eventually(&format!("{reason} about {of}"), || async {
        let events = api.list(&EVENTS, namespace).await;
        events.into_iter().find(|e| e.str_at(&["reason"]) == reason && e.str_at(&["involvedObject", "name"]) == of)
    })
    .await;
}

/// Waits until the object's host object is there, or is not.
async fn on_host(host: &Api, resource: &Resource, at: &NamespacedName, wanted: bool) -> Option<Value> {
    let what = format!("{resource} {} is {} the host", at.name, if wanted { "on" } else { "gone from" });
    eventually(&what, || async {
        let found = host.get(resource, &at.namespace, &at.name).await;
        (found.is_some() == wanted).then_some(found)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_route_attaches_to_listeners_of_its_protocol() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    define(
        &host_api,
        &[
            ("v1", "gatewayclasses", "GatewayClass"),
            ("v1", "gateways", "Gateway"),
            ("v1beta1", "referencegrants", "ReferenceGrant"),
        ],
    )
    .await;
    define(&host_api, &ROUTES.map(|(plural, kind, version, _)| (version, plural, kind))).await;
    let mut config = tenant.config();
    let kinds = &mut config.settings.gateway_api;
    (kinds.gateways, kinds.http_routes, kinds.grpc_routes) = (true, true, true);
    (kinds.tls_routes, kinds.tcp_routes, kinds.udp_routes) = (true, true, true);
    let syncer = tenant.sync_with(host.client(), config).await;

    // Without a Gateway nothing is permitted; every kind is served by then.
    let backend = |namespace: &str| match namespace {
        "" => json!({"name": "web", "port": 80}),
        namespace => json!({"name": "web", "namespace": namespace, "port": 80}),
    };
    for (plural, kind, version, listener) in ROUTES {
        let resource = Resource { group: GROUP.into(), version: version.into(), resource: plural.into() };
        let parents = json!([{"name": "edge", "sectionName": listener}]);
        let route =
            object(version, kind, "web", json!({"parentRefs": parents, "rules": [{"backendRefs": [(backend(""))]}]}));
        create_served(&tenant.api, &resource, "default", route).await;
        let other = if listener == "udp" { "tcp" } else { "udp" };
        let wrong = json!({"parentRefs": [{"name": "edge", "sectionName": other}], "rules": []});
        let wrong = object(version, kind, "wrong", wrong);
        create_served(&tenant.api, &resource, "default", wrong).await;
    }
    event(&tenant.api, "default", "RefNotPermitted", "web").await;
    tenant
        .api
        .create(&CLASSES, "", object("v1", "GatewayClass", "public", json!({"controllerName": "example.com/c"})))
        .await;
    let listeners = json!([{"name": "https", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "cert"}]}},
        {"name": "tls", "port": 8443, "protocol": "TLS", "tls": {"mode": "Passthrough"}},
        {"name": "tcp", "port": 9000, "protocol": "TCP"}, {"name": "udp", "port": 5353, "protocol": "UDP"}]);
    let gateway = object("v1", "Gateway", "edge", json!({"gatewayClassName": "public", "listeners": listeners}));
    tenant.api.create(&GATEWAYS, "default", gateway).await;
    let gateway_on_host = tenant.on_host("default", "edge");
    let made = on_host(&host_api, &GATEWAYS, &gateway_on_host, true).await.unwrap_or_default();
    let certificate = &made["spec"]["listeners"][0]["tls"]["certificateRefs"][0];
    assert_eq!(certificate.str_at(&["name"]), tenant.on_host("default", "cert").name);

    tenant.api.create(&NAMESPACES, "", json!({"metadata": {"name": "data"}})).await;
    let (web, wrong) = (tenant.on_host("default", "web"), tenant.on_host("default", "wrong"));
    for (plural, kind, version, listener) in ROUTES {
        let resource = Resource { group: GROUP.into(), version: version.into(), resource: plural.into() };
        let made = on_host(&host_api, &resource, &web, true).await.unwrap_or_default();
        let parent = json!([{"name": (gateway_on_host.name.as_str()), "sectionName": listener}]);
        assert_eq!(made["spec"]["parentRefs"], parent, "{kind}");
        assert_eq!(
            made["spec"]["rules"][0]["backendRefs"],
            json!([{"name": (web.name.as_str()), "port": 80}]),
            "{kind}"
        );
        assert!(host_api.get(&resource, &wrong.namespace, &wrong.name).await.is_none(), "{kind}");

        // Into another namespace only with a grant for this kind, and no longer than that.
        let elsewhere = json!({"spec": {"rules": [{"backendRefs": [(backend("data"))]}]}});
        tenant.api.patch(&resource, "default", "web", elsewhere).await;
        on_host(&host_api, &resource, &web, false).await;
        let grant = object(
            "v1beta1",
            "ReferenceGrant",
            "grant",
            json!({"to": [{"group": "", "kind": "Service"}],
            "from": [{"group": GROUP, "kind": kind, "namespace": "default"}]}),
        );
        tenant.api.create(&GRANTS, "data", grant).await;
        let made = on_host(&host_api, &resource, &web, true).await.unwrap_or_default();
        let translated = tenant.on_host("data", "web").name;
        assert_eq!(made["spec"]["rules"][0]["backendRefs"][0].str_at(&["name"]), translated, "{kind}");
        tenant.api.delete(&GRANTS, "data", "grant").await;
        on_host(&host_api, &resource, &web, false).await;
        tenant
            .api
            .patch(&resource, "default", "web", json!({"spec": {"rules": [{"backendRefs": [(backend(""))]}]}}))
            .await;
        on_host(&host_api, &resource, &web, true).await;
        tenant.api.delete(&resource, "default", "web").await;
        on_host(&host_api, &resource, &web, false).await;
    }
    event(&tenant.api, "default", "RefNotPermitted", "wrong").await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_take_routes_away() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    define(&host_api, &GATEWAYS_AND_ROUTES).await;
    let config = || {
        let mut config = tenant.config();
        (config.settings.gateway_api.gateways, config.settings.gateway_api.http_routes) = (true, true);
        config
    };
    let syncer = tenant.sync_with(host.client(), config()).await;
    create_served(
        &tenant.api,
        &CLASSES,
        "",
        object("v1", "GatewayClass", "public", json!({"controllerName": "example.com/c"})),
    )
    .await;
    let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
    create_served(
        &tenant.api,
        &GATEWAYS,
        "default",
        object("v1", "Gateway", "edge", json!({"gatewayClassName": "public", "listeners": listeners})),
    )
    .await;
    let route = json!({"parentRefs": [{"name": "edge"}], "rules": [{"backendRefs": [{"name": "db", "namespace": "data", "port": 80}]}]});
    create_served(&tenant.api, &HTTP_ROUTES, "default", object("v1", "HTTPRoute", "web", route)).await;
    tenant.api.create(&NAMESPACES, "", json!({"metadata": {"name": "data"}})).await;
    let grant = object(
        "v1beta1",
        "ReferenceGrant",
        "grant",
        json!({"to": [{"group": "", "kind": "Service"}],
        "from": [{"group": GROUP, "kind": "HTTPRoute", "namespace": "default"}]}),
    );
    create_served(&tenant.api, &GRANTS, "data", grant).await;
    let at = tenant.on_host("default", "web");
    let uid = |route: Option<Value>| route.map(|r| r.str_at(&["metadata", "uid"]).to_owned());
    let before = uid(on_host(&host_api, &HTTP_ROUTES, &at, true).await);
    for _ in 0..3 {
        syncer.shutdown().await;
        let again = tenant.sync_with(host.client(), config()).await;
        // Something that is changed now comes after everything that a start does.
        let label = json!({"metadata": {"labels": {"round": (format!("{:p}", &again))}}});
        tenant.api.patch(&HTTP_ROUTES, "default", "web", label.clone()).await;
        eventually("the change is on the host", || async {
            let route = host_api.get(&HTTP_ROUTES, &at.namespace, &at.name).await?;
            (route["metadata"]["labels"]["round"] == label["metadata"]["labels"]["round"]).then_some(())
        })
        .await;
        assert_eq!(uid(host_api.get(&HTTP_ROUTES, &at.namespace, &at.name).await), before, "the same object");
        again.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_wait_for_the_service_they_are_about() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    define(&host_api, &[("v1", "backendtlspolicies", "BackendTLSPolicy"), ("v1", "gateways", "Gateway")]).await;
    let mut config = tenant.config();
    config.settings.gateway_api.backend_tls_policies = true;
    let syncer: Syncer = tenant.sync_with(host.client(), config).await;
    let spec = json!({"targetRefs": [{"group": "", "kind": "Service", "name": "db"}],
        "validation": {"hostname": "db.example", "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}]}});
    create_served(&tenant.api, &POLICIES, "default", object("v1", "BackendTLSPolicy", "db", spec)).await;
    event(&tenant.api, "default", "SyncError", "db").await;
    let at = tenant.on_host("default", "db");
    assert!(host_api.get(&POLICIES, &at.namespace, &at.name).await.is_none());
    tenant.api.create(&CONFIG_MAPS, "default", json!({"metadata": {"name": "ca"}, "data": {"ca.crt": "x"}})).await;
    let service = json!({"metadata": {"name": "db"}, "spec": {"selector": {"app": "db"}, "ports": [{"port": 443}]}});
    tenant.api.create(&SERVICES, "default", service).await;
    let made = on_host(&host_api, &POLICIES, &at, true).await.unwrap_or_default();
    assert_eq!(made["spec"]["targetRefs"][0].str_at(&["name"]), at.name);
    let authority = tenant.on_host("default", "ca");
    assert_eq!(made["spec"]["validation"]["caCertificateRefs"][0].str_at(&["name"]), authority.name);
    on_host(&host_api, &CONFIG_MAPS, &authority, true).await;
    tenant.api.patch(&POLICIES, "default", "db", json!({"spec": {"validation": {"hostname": "other.example"}}})).await;
    eventually("the host name follows", || async {
        let policy = host_api.get(&POLICIES, &at.namespace, &at.name).await?;
        assert!(policy["spec"].get("rules").is_none(), "a real host's schema has none: {policy}");
        (policy.str_at(&["spec", "validation", "hostname"]) == "other.example").then_some(())
    })
    .await;
    tenant.api.delete(&POLICIES, "default", "db").await;
    on_host(&host_api, &POLICIES, &at, false).await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shown_gateways_take_the_routes_that_the_configuration_allows() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    define(&host_api, &GATEWAYS_AND_ROUTES).await;
    let class = json!({"controllerName": "example.com/c", "parametersRef": {"group": "x", "kind": "X", "name": "secret-of-the-host"}});
    create_served(&host_api, &CLASSES, "", object("v1", "GatewayClass", "public", class)).await;
    let listener = |name: &str, namespaces: Value| {
        json!({"name": name, "port": 443, "protocol": "HTTPS", "allowedRoutes": {"namespaces": namespaces},
            "tls": {"mode": "Terminate", "certificateRefs": [{"name": "secret-of-the-host"}]}})
    };
    let teams = json!({"from": "Selector", "selector": {"matchLabels": {"team": "apps"}}});
    let gateway = |name: &str, listener: Value| {
        let spec = json!({"gatewayClassName": "public", "listeners": [listener], "addresses": [{"value": "10.1.2.3"}]});
        object("v1", "Gateway", name, spec)
    };
    create_served(&host_api, &GATEWAYS, "default", gateway("edge", listener("l", teams))).await;
    create_served(&host_api, &GATEWAYS, "default", gateway("names", listener("l", json!({"from": "Same"})))).await;
    let mut config = tenant.config();
    config.settings.gateway_api.http_routes = true;
    config.settings.import_gateway_classes = Import::On(json!({}));
    config.settings.import_gateways = Some(GatewayImport {
        mappings: vec![
            ImportMapping { from: "default/edge".into(), to: "infra/edge".into() },
            ImportMapping { from: "default/names".into(), to: "infra/renamed".into() },
        ],
        // Only Gateways that are not named one by one have to match.
        selector: json!({"matchLabels": {"nobody": "has"}}),
        overrides: vec![RouteOverride {
            gateway: NamespacedName::new("default", "names"),
            policy: Some(RoutePolicy::All),
            hostnames: vec!["*.team-a.example".into()],
        }],
        hide_certificates: true,
        hide_infrastructure: true,
        ..GatewayImport::default()
    });
    let syncer = tenant.sync_with(host.client(), config).await;
    let shown =
        eventually("the Gateway is shown", || async { tenant.api.0.get(&GATEWAYS, "infra", "edge").await.ok() }).await;
    assert!(!shown.to_string().contains("secret-of-the-host") && !shown.to_string().contains("10.1.2.3"), "{shown}");
    assert_eq!(
        shown.at(&["spec", "listeners"]).map(|l| l[0]["tls"].clone()),
        Some(json!({"mode": "Terminate", "options": {"vcluster.loft.sh/certificate-refs-sanitized": "true"}}))
    );
    let renamed =
        eventually("the other one too", || async { tenant.api.0.get(&GATEWAYS, "infra", "renamed").await.ok() }).await;
    assert_eq!(renamed["spec"]["listeners"][0]["allowedRoutes"]["namespaces"], json!({"from": "All"}));
    let class =
        eventually("the class is shown", || async { tenant.api.0.get(&CLASSES, "", "public").await.ok() }).await;
    assert_eq!(class["spec"], json!({"controllerName": "example.com/c"}));

    let route = |name: &str, gateway: &str, hostname: &str| {
        let parents = json!([{"name": gateway, "namespace": "infra"}]);
        object("v1", "HTTPRoute", name, json!({"parentRefs": parents, "hostnames": [hostname], "rules": []}))
    };
    // The Gateway's own listener asks for a label of the tenant's namespace.
    create_served(&tenant.api, &HTTP_ROUTES, "default", route("web", "edge", "a.example")).await;
    event(&tenant.api, "default", "RefNotPermitted", "web").await;
    let web = tenant.on_host("default", "web");
    assert!(host_api.get(&HTTP_ROUTES, &web.namespace, &web.name).await.is_none());
    tenant.api.patch(&NAMESPACES, "", "default", json!({"metadata": {"labels": {"team": "apps"}}})).await;
    let made = on_host(&host_api, &HTTP_ROUTES, &web, true).await.unwrap_or_default();
    assert_eq!(made["spec"]["parentRefs"], json!([{"name": "edge", "namespace": "default"}]));
    tenant.api.patch(&NAMESPACES, "", "default", json!({"metadata": {"labels": {"team": null}}})).await;
    on_host(&host_api, &HTTP_ROUTES, &web, false).await;
    // Host names that are not the tenant's.
    create_served(&tenant.api, &HTTP_ROUTES, "default", route("theirs", "renamed", "a.team-b.example")).await;
    event(&tenant.api, "default", "RefNotPermitted", "theirs").await;
    create_served(&tenant.api, &HTTP_ROUTES, "default", route("ours", "renamed", "a.team-a.example")).await;
    let made = on_host(&host_api, &HTTP_ROUTES, &tenant.on_host("default", "ours"), true).await.unwrap_or_default();
    assert_eq!(made["spec"]["parentRefs"], json!([{"name": "names", "namespace": "default"}]));
    let theirs = tenant.on_host("default", "theirs");
    assert!(host_api.get(&HTTP_ROUTES, &theirs.namespace, &theirs.name).await.is_none());
    // A Gateway of the tenant's own does not go to the host here, and neither do routes to it.
    let own = object(
        "v1",
        "Gateway",
        "own",
        json!({"gatewayClassName": "public", "listeners": [{"name": "l", "port": 80, "protocol": "HTTP"}]}),
    );
    tenant.api.create(&GATEWAYS, "infra", own).await;
    create_served(&tenant.api, &HTTP_ROUTES, "infra", route("local", "own", "a.example")).await;
    event(&tenant.api, "infra", "RefNotPermitted", "local").await;
    // What the tenant does to a shown Gateway is undone.
    tenant.api.patch(&GATEWAYS, "infra", "edge", json!({"spec": {"gatewayClassName": "mine"}})).await;
    eventually("the change is undone", || async {
        let gateway = tenant.api.get(&GATEWAYS, "infra", "edge").await?;
        (gateway.str_at(&["spec", "gatewayClassName"]) == "public").then_some(())
    })
    .await;
    syncer.shutdown().await;
}
