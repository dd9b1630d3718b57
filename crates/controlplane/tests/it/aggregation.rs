//! An extension server of a tenant: an API server of its own outside of the virtual cluster, found by an Endpoints object.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use apimachinery::{Value, json};
use apiserver::authn::{RequestHeaderOptions, RequestHeaders};
use apiserver::{ApiServer, SecureOptions, UserInfo};
use base64::Engine;
use informer::{Resource, Rest};
use pki::ClusterCertificates;
use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::replicas::{CONFIG_MAPS, CRDS, World, admin, eventually};

const FLUNDERS: Resource = Resource::new("wardle.example.com", "v1", "flunders");
const API_SERVICES: Resource = Resource::new("apiregistration.k8s.io", "v1", "apiservices");

/// An address of this machine that is not the loopback, which no Endpoints object may name.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: this only chooses the way.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "flunders.wardle.example.com"},
        "spec": {
            "group": "wardle.example.com", "scope": "Namespaced",
            "names": {"plural": "flunders", "singular": "flunder", "kind": "Flunder", "listKind": "FlunderList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
}

/// Starts an API server that takes users from the front proxy that the cluster's ConfigMap tells of.
async fn extension(tenant: &Rest, certificates: &ClusterCertificates, listener: TcpListener) -> ApiServer {
    let trust = eventually("the ConfigMap for extension servers", async || {
        tenant.get(&CONFIG_MAPS, "kube-system", "extension-apiserver-authentication").await.ok()
    })
    .await;
    let names = |key: &str| serde_json::from_str::<Vec<String>>(trust.str_at(&["data", key])).unwrap();
    let authority = trust.str_at(&["data", "requestheader-client-ca-file"]).to_owned();
    let proxies = RequestHeaders::new(&RequestHeaderOptions {
        client_ca: authority.clone(),
        allowed_names: names("requestheader-allowed-names"),
        users: names("requestheader-username-headers"),
        groups: names("requestheader-group-headers"),
        uids: Vec::new(),
        extra_prefixes: names("requestheader-extra-headers-prefix"),
    });
    let mut config = apiserver::secure_config(&SecureOptions::default()).unwrap();
    config.authenticators = vec![Arc::new(proxies.unwrap())];
    config.anonymous = false;
    let store = Store::in_memory(store::Options::default()).await;
    let server = ApiServer::start(config, store).await.unwrap();
    let file = |name: &str| certificates.file(name).unwrap().as_bytes();
    let tls = apiserver::tls::server_config(file("apiserver.crt"), file("apiserver.key"), Some(authority.as_bytes()));
    let (serve, tls) = (server.clone(), tls.unwrap());
    tokio::spawn(async move { serve.serve(listener, tls, CancellationToken::new()).await });
    let own = Rest::new(server.kube_client(UserInfo::admin()), "test");
    own.create(&CRDS, "", &definition()).await.unwrap();
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_extension_server_is_asked_in_the_name_of_the_tenants_user() {
    // Without a network there is no address that an endpoint may have.
    let Some(address) = own_address() else { return };
    let world = World::new("").await;
    let store = Store::in_memory(store::Options::default()).await;
    let (control_plane, _wire) = world.start(&store, "team-a-0", false).await;
    let rest = admin(&control_plane);
    let listener = TcpListener::bind(SocketAddr::new(address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let certificates = ClusterCertificates::complete(Default::default(), &["wardle.default.svc".to_owned()]).unwrap();
    let server = extension(&rest, &certificates, listener).await;

    let services = Resource::new("", "v1", "services");
    let endpoints = Resource::new("", "v1", "endpoints");
    eventually("the Service", async || {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wardle"},
            "spec": {"ports": [{"name": "https", "port": 443}]}});
        rest.create(&services, "default", &service).await.ok()
    })
    .await;
    let object = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "wardle"},
        "subsets": [{"addresses": [{"ip": (address.to_string())}], "ports": [{"name": "https", "port": port}]}]});
    rest.create(&endpoints, "default", &object).await.unwrap();
    let bundle = base64::engine::general_purpose::STANDARD.encode(certificates.file("server-ca.crt").unwrap());
    let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1.wardle.example.com"},
        "spec": {"group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "caBundle": bundle, "service": {"namespace": "default", "name": "wardle", "port": 443}}});
    rest.create(&API_SERVICES, "", &object).await.unwrap();
    let mut said = String::new();
    eventually("the extension server", async || {
        let object = rest.get(&API_SERVICES, "", "v1.wardle.example.com").await.ok()?;
        let condition = object.array_at(&["status", "conditions"]).first().cloned().unwrap_or_default();
        said = condition.to_string();
        (condition["reason"] == "Passed").then_some(())
    })
    .await;
    assert!(said.contains("all checks passed"), "{said}");

    // The administrator may there what he may here; somebody else is known there too, and refused.
    let flunder =
        json!({"apiVersion": "wardle.example.com/v1", "kind": "Flunder", "metadata": {"name": "a"}, "spec": {"x": 1}});
    let created = rest.create(&FLUNDERS, "default", &flunder).await.unwrap();
    assert!(!created.str_at(&["metadata", "uid"]).is_empty());
    let own = Rest::new(server.kube_client(UserInfo::admin()), "test");
    assert_eq!(own.get(&FLUNDERS, "default", "a").await.unwrap()["spec"]["x"], 1);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "flunders"},
        "rules": [{"apiGroups": ["wardle.example.com"], "resources": ["*"], "verbs": ["*"]}]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "flunders"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flunders"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    let rbac = |plural: &'static str| Resource::new("rbac.authorization.k8s.io", "v1", plural);
    rest.create(&rbac("clusterroles"), "", &role).await.unwrap();
    rest.create(&rbac("clusterrolebindings"), "", &binding).await.unwrap();
    let jane = UserInfo::new("jane", ["system:authenticated"]);
    let jane = Rest::new(control_plane.kube_client(jane), "test");
    let refused = jane.get(&FLUNDERS, "default", "a").await.unwrap_err();
    assert!(refused.to_string().contains("User \"jane\" cannot get resource \"flunders\""), "{refused}");

    // Namespaces and the garbage collector find objects of extension servers by discovery.
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}});
    let namespaces = Resource::new("", "v1", "namespaces");
    rest.create(&namespaces, "", &object).await.unwrap();
    own.create(&namespaces, "", &object).await.unwrap();
    rest.create(&FLUNDERS, "b", &flunder).await.unwrap();
    rest.delete(&namespaces, "", "b", &Default::default()).await.unwrap();
    eventually("the end of the namespace", async || {
        let gone = rest.get(&namespaces, "", "b").await;
        gone.is_err_and(|error| error.is_not_found()).then_some(())
    })
    .await;
    let left = own.get(&FLUNDERS, "b", "a").await;
    assert!(left.is_err_and(|error| error.is_not_found()), "the flunder went with its namespace");
    control_plane.stop().await;
    server.shutdown().await;
    world.host.stop().await;
}
