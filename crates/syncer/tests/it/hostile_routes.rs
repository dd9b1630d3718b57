//! Rows of the table in `hostile`: Gateways, routes, policies and grants.

use apimachinery::{Value, json};
use syncer::kind::GATEWAY_GROUP;
use syncer::types::ToHost;
use syncer::types::gateway::{GatewayKind, GatewayType};

use crate::hostile::Want::*;
use crate::hostile::{Row, meta};

fn gateway_kind(what: GatewayType) -> Box<dyn ToHost> {
    Box::new(GatewayKind { what, kind: what.kind() })
}

fn route(parents: Value, rules: Value) -> Value {
    json!({"metadata": meta("route"), "spec": {"parentRefs": parents, "rules": rules}})
}

pub fn rows() -> Vec<Row> {
    vec![
        (
            "route to another tenant's gateway",
            gateway_kind(GatewayType::HttpRoute),
            route(json!([{"name": "victim", "namespace": "other"}]), json!([])),
            Nothing,
        ),
        (
            "route to a service without a grant",
            gateway_kind(GatewayType::HttpRoute),
            route(
                json!([{"name": "own"}]),
                json!([{"backendRefs": [{"name": "db", "namespace": "other", "port": 1}]}]),
            ),
            Refused,
        ),
        (
            "route to something that is not a service",
            gateway_kind(GatewayType::HttpRoute),
            route(json!([{"name": "own"}]), json!([{"backendRefs": [{"name": "x", "group": "x.io", "kind": "X"}]}])),
            Refused,
        ),
        (
            "route with an extension of the host",
            gateway_kind(GatewayType::HttpRoute),
            route(
                json!([{"name": "own"}]),
                json!([{"filters": [{"type": "ExtensionRef", "extensionRef": {"name": "victim"}}]}]),
            ),
            Refused,
        ),
        (
            "gateway of a class that is not shown",
            gateway_kind(GatewayType::Gateway),
            json!({"metadata": meta("gw"), "spec": {"gatewayClassName": "private", "listeners": []}}),
            Refused,
        ),
        (
            "gateway that takes routes of all the host",
            gateway_kind(GatewayType::Gateway),
            json!({"metadata": meta("gw"), "spec": {"gatewayClassName": "public", "listeners": [
                {"name": "l", "allowedRoutes": {"namespaces": {"from": "All"}}}]}}),
            Without("\"All\""),
        ),
        (
            "gateway with another namespace's certificate",
            gateway_kind(GatewayType::Gateway),
            json!({"metadata": meta("gw"), "spec": {"gatewayClassName": "public", "listeners": [
                {"name": "l", "tls": {"certificateRefs": [{"name": "victim", "namespace": "other"}]}}]}}),
            Refused,
        ),
        (
            "gateway with a certificate of the host",
            gateway_kind(GatewayType::Gateway),
            json!({"metadata": meta("gw"), "spec": {"gatewayClassName": "public", "listeners": [
                {"name": "l", "tls": {"certificateRefs": [{"name": "victim"}]}}]}}),
            Without("\"victim\""),
        ),
        (
            "gateway with parameters of the host",
            gateway_kind(GatewayType::Gateway),
            json!({"metadata": meta("gw"), "spec": {"gatewayClassName": "public", "listeners": [],
                "infrastructure": {"parametersRef": {"group": "x.io", "kind": "X", "name": "victim"}}}}),
            Refused,
        ),
        (
            "gateway that lets others add listeners",
            gateway_kind(GatewayType::Gateway),
            json!({"metadata": meta("gw"), "spec": {"gatewayClassName": "public", "listeners": [],
                "allowedListeners": {"namespaces": {"from": "All"}}}}),
            At(&["spec", "allowedListeners", "namespaces", "from"], "None".into()),
        ),
        (
            "gRPC route to a Gateway that is closed to its namespace",
            gateway_kind(GatewayType::GrpcRoute),
            route(json!([{"name": "closed", "namespace": "other"}]), json!([])),
            Refused,
        ),
        (
            "gRPC route that mirrors into another namespace",
            gateway_kind(GatewayType::GrpcRoute),
            route(
                json!([{"name": "own"}]),
                json!([{"filters": [{"requestMirror": {"backendRef": {"name": "db", "namespace": "other", "port": 1}}}]}]),
            ),
            Refused,
        ),
        (
            "gRPC route of one kind with the grant of another",
            gateway_kind(GatewayType::GrpcRoute),
            route(
                json!([{"name": "own"}]),
                json!([{"backendRefs": [{"name": "db", "namespace": "other", "port": 1}]}]),
            ),
            Refused,
        ),
        (
            "TCP route to a Secret",
            gateway_kind(GatewayType::TcpRoute),
            route(json!([{"name": "own"}]), json!([{"backendRefs": [{"kind": "Pod", "name": "victim", "port": 1}]}])),
            Refused,
        ),
        (
            "TCP route to a listener that is not there",
            gateway_kind(GatewayType::TcpRoute),
            route(json!([{"name": "own", "sectionName": "admin"}]), json!([])),
            Refused,
        ),
        (
            "TCP route to a port that is not the listener's",
            gateway_kind(GatewayType::TcpRoute),
            route(json!([{"name": "own", "port": 22}]), json!([])),
            Refused,
        ),
        (
            "UDP route to the host's DNS",
            gateway_kind(GatewayType::UdpRoute),
            route(
                json!([{"name": "own"}]),
                json!([{"backendRefs": [{"name": "kube-dns", "namespace": "kube-system", "port": 53}]}]),
            ),
            Refused,
        ),
        (
            "UDP route to a Service of the host's namespace",
            gateway_kind(GatewayType::UdpRoute),
            route(json!([{"name": "own"}]), json!([{"backendRefs": [{"name": "victim", "port": 53}]}])),
            Without("\"victim\""),
        ),
        (
            "TLS route at a listener that does not take its kind",
            gateway_kind(GatewayType::TlsRoute),
            route(json!([{"name": "own"}]), json!([])),
            Refused,
        ),
        (
            "route to a kind of parent that is not known",
            gateway_kind(GatewayType::HttpRoute),
            route(json!([{"group": "mesh.io", "kind": "Mesh", "name": "host"}]), json!([])),
            Refused,
        ),
        (
            "policy for a Service of the host",
            gateway_kind(GatewayType::BackendTlsPolicy),
            json!({"metadata": meta("p"), "spec": {"targetRefs": [{"kind": "Service", "group": "", "name": "victim"}]}}),
            Refused,
        ),
        (
            "policy with the host's authorities",
            gateway_kind(GatewayType::BackendTlsPolicy),
            json!({"metadata": meta("p"), "spec": {"targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
                "validation": {"caCertificateRefs": [{"kind": "ConfigMap", "group": "", "name": "victim"}]}}}),
            Without("\"victim\""),
        ),
        (
            "grant that opens the host's namespace",
            gateway_kind(GatewayType::ReferenceGrant),
            json!({"metadata": meta("g"), "spec": {"from": [{"group": GATEWAY_GROUP, "kind": "HTTPRoute", "namespace": "kube-system"}],
                "to": [{"group": "", "kind": "Secret"}]}}),
            Nothing,
        ),
    ]
}
