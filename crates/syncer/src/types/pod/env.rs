//! Environment variables: references translated, and the Services of the virtual namespace as links.
//!
//! Follows: kubelet `envvars` (Docker-compatible link variables).

use std::collections::BTreeMap;

use apimachinery::{Map, Value, json};

use super::downward;
use crate::kind;
use crate::types::Context;

/// The variables that every container of a pod gets besides its own.
pub fn service_env(pod: &Value, ctx: &Context<'_>) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    // The API server's default is true; a missing value was written by an old client.
    if pod.at(&["spec", "enableServiceLinks"]).is_some_and(|v| *v == true) {
        for service in &ctx.facts.services {
            link_variables(service, &mut out);
        }
    }
    let ip = &ctx.facts.kube_ip;
    if !ip.is_empty() {
        let host_port = join_host_port(ip, 443);
        for (key, value) in [
            ("KUBERNETES_PORT", format!("tcp://{host_port}")),
            ("KUBERNETES_PORT_443_TCP", format!("tcp://{host_port}")),
            ("KUBERNETES_PORT_443_TCP_ADDR", ip.clone()),
            ("KUBERNETES_PORT_443_TCP_PORT", "443".into()),
            ("KUBERNETES_PORT_443_TCP_PROTO", "tcp".into()),
            ("KUBERNETES_SERVICE_HOST", ip.clone()),
            ("KUBERNETES_SERVICE_PORT", "443".into()),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443".into()),
        ] {
            out.insert(key.into(), value);
        }
    }
    out
}

fn join_host_port(host: &str, port: i64) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn env_name(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

fn link_variables(service: &Value, out: &mut BTreeMap<String, String>) {
    let ip = service.str_at(&["spec", "clusterIP"]);
    if ip.is_empty() || ip == "None" {
        return;
    }
    let prefix = env_name(service.str_at(&["metadata", "name"]));
    let ports = service.array_at(&["spec", "ports"]);
    out.insert(format!("{prefix}_SERVICE_HOST"), ip.into());
    for (i, port) in ports.iter().enumerate() {
        let number = port["port"].as_i64().unwrap_or(0);
        let protocol = match port.str_at(&["protocol"]) {
            "" => "TCP",
            protocol => protocol,
        };
        let url = format!("{}://{}", protocol.to_ascii_lowercase(), join_host_port(ip, number));
        if i == 0 {
            out.insert(format!("{prefix}_SERVICE_PORT"), number.to_string());
            out.insert(format!("{prefix}_PORT"), url.clone());
        }
        let name = port.str_at(&["name"]);
        if !name.is_empty() {
            out.insert(format!("{prefix}_SERVICE_PORT_{}", env_name(name)), number.to_string());
        }
        let port_prefix = format!("{prefix}_PORT_{number}_{}", protocol.to_ascii_uppercase());
        out.insert(format!("{port_prefix}_PROTO"), protocol.to_ascii_lowercase());
        out.insert(format!("{port_prefix}_PORT"), number.to_string());
        out.insert(format!("{port_prefix}_ADDR"), ip.into());
        out.insert(port_prefix, url);
    }
}

/// Translates a container's `env` and `envFrom` and puts the service variables first, so that its own can refer to them.
pub fn translate(container: &mut Value, namespace: &str, services: &BTreeMap<String, String>, ctx: &Context<'_>) {
    let mut own = container.at(&["env"]).and_then(Value::as_array).cloned().unwrap_or_default();
    for variable in &mut own {
        let Some(from) = variable.get_mut("valueFrom") else { continue };
        if let Some(field) = from.get_mut("fieldRef") {
            downward::translate_field_ref(field, ctx.names);
        }
        if let Some(reference) = from.get_mut("configMapKeyRef") {
            let name = kind::CONFIG_MAP.name_on_host(ctx.names, reference.str_at(&["name"]), namespace);
            rename(reference, "name", name);
        }
        if let Some(reference) = from.get_mut("secretKeyRef") {
            let name = kind::SECRET.name_on_host(ctx.names, reference.str_at(&["name"]), namespace);
            rename(reference, "name", name);
        }
    }
    let mut env: Vec<Value> = services
        .iter()
        .filter(|(key, _)| !own.iter().any(|v| v.str_at(&["name"]) == key.as_str()))
        .map(|(key, value)| json!({"name": (key.as_str()), "value": (value.as_str())}))
        .collect();
    env.extend(own);
    if !env.is_empty() {
        container["env"] = Value::Array(env);
    }
    if let Some(sources) = container.get_mut("envFrom").and_then(Value::as_array_mut) {
        for source in sources {
            if let Some(reference) = source.get_mut("configMapRef") {
                let name = kind::CONFIG_MAP.name_on_host(ctx.names, reference.str_at(&["name"]), namespace);
                rename(reference, "name", name);
            }
            if let Some(reference) = source.get_mut("secretRef") {
                let name = kind::SECRET.name_on_host(ctx.names, reference.str_at(&["name"]), namespace);
                rename(reference, "name", name);
            }
        }
    }
}

/// Sets a name, unless nothing was referred to.
pub fn rename(reference: &mut Value, member: &str, name: String) {
    if !name.is_empty() {
        let map: &mut Map = reference.make_object();
        map.insert(member, name.into());
    }
}
