//! Services that are created: the host chooses their addresses before the other server stores them.
//!
//! The other server is asked first what it would store (`dryRun=All`), so that nothing is made on the host for a request
//! that is refused. Whatever does not fit into these steps is passed on as it came; the syncer then gives the Service the
//! host's address.

use apimachinery::Value;
use apimachinery::gvk::GroupVersionKind;
use apimachinery::status::StatusResult;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response, Uri, header};
use http_body_util::{BodyExt, Limited};

use super::own::send_bytes;
use super::{ANSWER_BYTES_MAX, Caller, Upstream, away, bad, pass};
use crate::body::{Body, RequestBody};
use crate::handlers::body_bytes;
use crate::negotiate;
use crate::request_info::RequestInfo;
use crate::server::ApiServer;
use crate::services::{Assigned, ServiceAddressing};
use crate::strategy::FieldValidation;

pub(super) fn is_create(info: &RequestInfo) -> bool {
    info.is_resource
        && info.group.is_empty()
        && info.resource == "services"
        && info.subresource.is_empty()
        && info.verb == "create"
        && info.query.all("dryRun").next().is_none()
}

pub(super) async fn create(
    server: &ApiServer,
    upstream: &Upstream,
    addressing: &dyn ServiceAddressing,
    parts: Parts,
    body: RequestBody,
    caller: &Caller,
) -> StatusResult<Response<Body>> {
    let bytes = body_bytes(body).await?;
    let as_it_came = || async {
        let answer = send_bytes(upstream, parts.clone(), bytes.clone(), caller).await?;
        Ok(pass::response(answer, ()))
    };
    let Some(asked) = decode(server, &parts, &bytes) else { return as_it_came().await };
    let Some(admitted) = would_store(upstream, &parts, &bytes, caller).await? else { return as_it_came().await };
    if !needs_address(&admitted) {
        return as_it_came().await;
    }
    let wanted = without_choices(&admitted, &asked);
    let Some(assigned) = addressing.assign(&wanted, None, false).await? else { return as_it_came().await };
    let name = admitted.str_at(&["metadata", "name"]);
    let addressed = with_assigned(asked, name, &assigned);
    let mut own = parts.clone();
    own.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    own.headers.remove(header::CONTENT_LENGTH);
    own.headers.remove(header::CONTENT_ENCODING);
    let answer = send_bytes(upstream, own, addressed.to_vec().into(), caller).await?;
    if answer.status() == 422 {
        // The host's address is not one of this cluster's, or another Service has it for now.
        return as_it_came().await;
    }
    if answer.status().as_u16() >= 400 {
        addressing.release(&wanted).await;
    }
    Ok(pass::response(answer, ()))
}

fn decode(server: &ApiServer, parts: &Parts, bytes: &Bytes) -> Option<Value> {
    let services = server.storage().registry.get("", "v1", "services")?;
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let encoding = negotiate::negotiate_input(content_type)?;
    let kind = GroupVersionKind::new("", "v1", "Service");
    let decoded = services.strategy.decode(&kind, bytes, encoding, FieldValidation::Ignore).ok()?;
    Some(decoded.object)
}

/// The object as it would be stored; nothing when the other server does not say.
async fn would_store(
    upstream: &Upstream,
    parts: &Parts,
    bytes: &Bytes,
    caller: &Caller,
) -> StatusResult<Option<Value>> {
    let mut dry = parts.clone();
    let joined = match dry.uri.query() {
        Some(query) => format!("{}?{query}&dryRun=All", dry.uri.path()),
        None => format!("{}?dryRun=All", dry.uri.path()),
    };
    dry.uri = joined.parse::<Uri>().map_err(bad)?;
    dry.headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    dry.headers.remove(header::ACCEPT_ENCODING);
    let answer = send_bytes(upstream, dry, bytes.clone(), caller).await?;
    if answer.status() != 201 {
        return Ok(None);
    }
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(away)?.to_bytes();
    Ok(Value::from_slice(&body).ok())
}

fn needs_address(service: &Value) -> bool {
    service.str_at(&["spec", "type"]) != "ExternalName" && service.str_at(&["spec", "clusterIP"]) != "None"
}

/// What the other server chose for the dry run is not what was asked for.
fn without_choices(admitted: &Value, asked: &Value) -> Value {
    let mut service = admitted.clone();
    for member in ["clusterIP", "clusterIPs", "healthCheckNodePort"] {
        match asked.at(&["spec", member]) {
            Some(value) => service.set_at(&["spec", member], value.clone()),
            None => drop(service.remove_at(&["spec", member])),
        }
    }
    let asked_ports = asked.array_at(&["spec", "ports"]);
    if let Some(ports) = service.at_mut(&["spec", "ports"]).and_then(Value::as_array_mut) {
        for (n, port) in ports.iter_mut().enumerate() {
            match asked_ports.get(n).and_then(|asked| asked.get("nodePort")) {
                Some(node_port) => port["nodePort"] = node_port.clone(),
                None => drop(port.remove_at(&["nodePort"])),
            }
        }
    }
    service.remove_at(&["status"]);
    service
}

fn with_assigned(mut service: Value, name: &str, assigned: &Assigned) -> Value {
    // A generated name is the one that the host's Service was made for.
    service.set_at(&["metadata", "name"], name.into());
    if let Some(first) = assigned.cluster_ips.first() {
        service.set_at(&["spec", "clusterIP"], first.as_str().into());
        let all: Vec<Value> = assigned.cluster_ips.iter().map(|ip| ip.as_str().into()).collect();
        service.set_at(&["spec", "clusterIPs"], Value::Array(all));
    }
    if assigned.health_check_node_port != 0 {
        service.set_at(&["spec", "healthCheckNodePort"], i64::from(assigned.health_check_node_port).into());
    }
    if let Some(ports) = service.at_mut(&["spec", "ports"]).and_then(Value::as_array_mut) {
        for (port, number) in ports.iter_mut().zip(&assigned.node_ports).filter(|(_, number)| **number != 0) {
            port["nodePort"] = i64::from(*number).into();
        }
    }
    service
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn what_the_dry_run_chose_is_not_asked_of_the_host() {
        let asked = json!({"metadata": {"generateName": "web-"}, "spec": {"ports": [{"port": 80}, {"port": 81, "nodePort": 30001}]}});
        let admitted = json!({"metadata": {"name": "web-abcde", "generateName": "web-"}, "status": {}, "spec": {
            "type": "NodePort", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9"],
            "ports": [{"port": 80, "nodePort": 31999}, {"port": 81, "nodePort": 30001}]}});
        let wanted = without_choices(&admitted, &asked);
        assert_eq!(
            wanted["spec"],
            json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81, "nodePort": 30001}]})
        );
        let assigned = Assigned {
            cluster_ips: vec!["10.1.0.4".into()],
            node_ports: vec![30555, 30001],
            health_check_node_port: 0,
        };
        let sent = with_assigned(asked, "web-abcde", &assigned);
        assert_eq!(sent.str_at(&["metadata", "name"]), "web-abcde");
        assert_eq!(sent["spec"]["clusterIPs"], json!(["10.1.0.4"]));
        assert_eq!(sent["spec"]["ports"], json!([{"port": 80, "nodePort": 30555}, {"port": 81, "nodePort": 30001}]));
    }

    #[test]
    fn services_without_an_address_are_passed_on() {
        for (spec, want) in [
            (json!({"type": "ClusterIP"}), true),
            (json!({"type": "ClusterIP", "clusterIP": "None"}), false),
            (json!({"type": "ExternalName", "externalName": "x.example"}), false),
        ] {
            assert_eq!(needs_address(&json!({"spec": (spec.clone())})), want, "{spec}");
        }
        for (method, uri, want) in [
            (http::Method::POST, "/api/v1/namespaces/a/services", true),
            (http::Method::POST, "/api/v1/namespaces/a/services?dryRun=All", false),
            (http::Method::POST, "/api/v1/namespaces/a/services/x/proxy", false),
            (http::Method::GET, "/api/v1/namespaces/a/services", false),
            (http::Method::POST, "/apis/x.io/v1/namespaces/a/services", false),
        ] {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(is_create(&RequestInfo::new(&method, uri.path(), uri.query())), want, "{method} {uri}");
        }
    }
}
