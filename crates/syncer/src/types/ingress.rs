//! Ingresses: backends and secrets translated, host names and classes as the tenant wrote them.

use apimachinery::{Map, Value};

use crate::diff::put;
use crate::kind::{self, Kind};
use crate::metadata::{self, MetadataRules, string_map};
use crate::names::NamespacedName;
use crate::plan::{Action, LastSeen};
use crate::types::{Context, Desired, RANCHER_ENDPOINTS, Reference, Refusal, ToHost, check_class, object};

/// Annotations whose value is `[namespace/]secret`.
const SECRET_ANNOTATIONS: [&str; 3] = [
    "nginx.ingress.kubernetes.io/auth-secret",
    "nginx.ingress.kubernetes.io/auth-tls-secret",
    "nginx.ingress.kubernetes.io/proxy-ssl-secret",
];
const ALB_ACTIONS: &str = "alb.ingress.kubernetes.io/actions.";
const ALB_CONDITIONS: &str = "alb.ingress.kubernetes.io/conditions.";

pub struct Ingresses;

/// The host names that an Ingress claims, for its rules or its certificates.
pub fn hostnames(ingress: &Value) -> Vec<&str> {
    let rules = ingress.array_at(&["spec", "rules"]).iter().map(|r| r.str_at(&["host"]));
    let certified = ingress.array_at(&["spec", "tls"]).iter().flat_map(|t| t.array_at(&["hosts"]));
    let mut out: Vec<&str> =
        rules.chain(certified.filter_map(Value::as_str)).filter(|hostname| !hostname.is_empty()).collect();
    out.sort_unstable();
    out.dedup();
    out
}

fn rewritten(key: &str) -> bool {
    SECRET_ANNOTATIONS.contains(&key) || key.starts_with(ALB_ACTIONS) || key.starts_with(ALB_CONDITIONS)
}

/// Virtual Secrets an ingress refers to, as `(namespace, name)`.
pub fn secret_refs(ingress: &Value) -> Vec<(String, String)> {
    let namespace = ingress.str_at(&["metadata", "namespace"]);
    let mut out = Vec::new();
    for tls in ingress.array_at(&["spec", "tls"]) {
        out.push((namespace.to_owned(), tls.str_at(&["secretName"]).to_owned()));
    }
    for (key, value) in string_map(ingress.at(&["metadata", "annotations"])) {
        if SECRET_ANNOTATIONS.contains(&key) {
            match value.split('/').collect::<Vec<_>>()[..] {
                [name] => out.push((namespace.to_owned(), name.to_owned())),
                [of, name] => out.push((of.to_owned(), name.to_owned())),
                _ => {}
            }
        }
    }
    out.retain(|(_, name)| !name.is_empty());
    out
}

fn rewrite_annotations(ingress: &Value, ctx: &Context<'_>) -> Map {
    let namespace = ingress.str_at(&["metadata", "namespace"]);
    let names = ctx.names;
    let mut out = Map::new();
    for (key, value) in string_map(ingress.at(&["metadata", "annotations"])) {
        if SECRET_ANNOTATIONS.contains(&key) {
            let value = match value.split('/').collect::<Vec<_>>()[..] {
                [name] => kind::SECRET.name_on_host(names, name, namespace),
                [of, name] => kind::SECRET.host_name(names, &NamespacedName::new(of, name)).to_string(),
                // Not a reference the controller understands: nothing it could read on the host either.
                _ => continue,
            };
            out.insert(key, value.into());
        } else if let Some(action) = key.strip_prefix(ALB_ACTIONS) {
            let value = rewrite_alb_action(value, namespace, ctx);
            out.insert(format!("{ALB_ACTIONS}{}", kind::SERVICE.name_on_host(names, action, namespace)), value.into());
        } else if let Some(condition) = key.strip_prefix(ALB_CONDITIONS) {
            out.insert(
                format!("{ALB_CONDITIONS}{}", kind::SERVICE.name_on_host(names, condition, namespace)),
                value.into(),
            );
        }
    }
    out
}

fn rewrite_alb_action(text: &str, namespace: &str, ctx: &Context<'_>) -> String {
    let Ok(mut action) = Value::from_slice(text.as_bytes()) else { return text.to_owned() };
    for group in action.at_mut(&["forwardConfig", "targetGroups"]).and_then(Value::as_array_mut).into_iter().flatten() {
        let service = group.str_at(&["serviceName"]);
        if !service.is_empty() {
            let host = kind::SERVICE.name_on_host(ctx.names, service, namespace);
            group["serviceName"] = host.into();
        }
    }
    action.to_string()
}

fn rewrite_backend(backend: Option<&mut Value>, namespace: &str, ctx: &Context<'_>) {
    let Some(backend) = backend else { return };
    if let Some(service) = backend.get_mut("service") {
        let name = kind::SERVICE.name_on_host(ctx.names, service.str_at(&["name"]), namespace);
        super::pod::env::rename(service, "name", name);
    }
    if let Some(resource) = backend.get_mut("resource") {
        let name = ctx.names.host_name(resource.str_at(&["name"]), namespace);
        super::pod::env::rename(resource, "name", name);
    }
}

fn spec(ingress: &Value, ctx: &Context<'_>) -> Value {
    let namespace = ingress.str_at(&["metadata", "namespace"]);
    let mut spec = ingress["spec"].clone();
    rewrite_backend(spec.get_mut("defaultBackend"), namespace, ctx);
    for rule in spec.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
        for path in rule.at_mut(&["http", "paths"]).and_then(Value::as_array_mut).into_iter().flatten() {
            rewrite_backend(path.get_mut("backend"), namespace, ctx);
        }
    }
    for tls in spec.get_mut("tls").and_then(Value::as_array_mut).into_iter().flatten() {
        let name = kind::SECRET.name_on_host(ctx.names, tls.str_at(&["secretName"]), namespace);
        super::pod::env::rename(tls, "secretName", name);
    }
    spec
}

/// Why a host name cannot be this Ingress's.
fn hostname_taken(ingress: &Value, ctx: &Context<'_>) -> Option<String> {
    ctx.facts.hostnames_taken.first().map(|hostname| {
        format!(
            "did not sync ingress {:?} to host because another ingress of the host has the host name {hostname:?}",
            ingress.str_at(&["metadata", "name"])
        )
    })
}

fn check(ingress: &Value, ctx: &Context<'_>) -> Result<(), Refusal> {
    if let Some(message) = hostname_taken(ingress, ctx) {
        return Err(Refusal::warning(message));
    }
    let what = format!("ingress \"{}\"", ingress.str_at(&["metadata", "name"]));
    let class = match ingress.str_at(&["spec", "ingressClassName"]) {
        "" => metadata::annotation(ingress, "kubernetes.io/ingress.class"),
        class => class,
    };
    let import = &ctx.settings.import_ingress_classes;
    check_class(ctx, &what, "IngressClass", class, import, "sync.fromHost.ingressClasses.selector")
}

impl ToHost for Ingresses {
    fn kind(&self) -> &Kind {
        &kind::INGRESS
    }

    fn wanted(&self, _ingress: &Value, ctx: &Context<'_>) -> bool {
        ctx.settings.ingresses
    }

    fn refers(&self) -> bool {
        true
    }

    fn references(&self, ingress: &Value) -> Vec<Reference> {
        let refs = secret_refs(ingress).into_iter();
        refs.map(|(namespace, name)| Reference::new("Secret", &namespace, &name)).collect()
    }

    fn translate(&self, ingress: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        check(ingress, ctx)?;
        let annotations = string_map(ingress.at(&["metadata", "annotations"])).map(|(k, _)| k);
        let keys: Vec<&str> = annotations.filter(|k| rewritten(k)).chain([RANCHER_ENDPOINTS]).collect();
        let mut host = object(&kind::INGRESS, ctx.metadata(ingress, &kind::INGRESS, &keys));
        for (key, value) in rewrite_annotations(ingress, ctx) {
            host.set_at(&["metadata", "annotations", &key], value);
        }
        host["spec"] = spec(ingress, ctx);
        Ok((host, Vec::new()))
    }

    fn reconcile(&self, ingress: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>) -> Result<Desired, Refusal> {
        let claimed = hostnames(host);
        let lost = ctx.facts.hostnames_taken.iter().any(|taken| claimed.contains(&taken.as_str()));
        if let Some(message) = hostname_taken(ingress, ctx).filter(|_| lost) {
            // Two were made at once: the later one gives way. A name that is only asked for leaves the others as they are.
            let warning = Action::Warn { reason: "SyncWarning", message };
            let away = Action::delete_host(host, None, "another ingress has its host name");
            let (virtual_, host) = (ingress.clone(), host.clone());
            return Ok(Desired { virtual_, host, actions: vec![warning, away], seen: LastSeen::default() });
        }
        check(ingress, ctx)?;
        let mut new_virtual = ingress.clone();
        let mut new_host = host.clone();
        let of = |object: &Value| -> Vec<String> {
            string_map(object.at(&["metadata", "annotations"]))
                .map(|(k, _)| k.to_owned())
                .filter(|k| rewritten(k))
                .collect()
        };
        let mut keys = of(ingress);
        keys.extend(of(host));
        let excluded: Vec<&str> = keys.iter().map(String::as_str).chain([RANCHER_ENDPOINTS]).collect();
        let rules = MetadataRules { excluded: &excluded, down_only: false };
        let host_only = metadata::sync_metadata(
            &mut new_virtual,
            &mut new_host,
            &kind::INGRESS,
            ctx.names,
            rules,
            Some(&last.host_only),
        );
        let wanted = rewrite_annotations(ingress, ctx);
        for key in of(host) {
            if !wanted.contains_key(&key) {
                new_host.remove_at(&["metadata", "annotations", &key]);
            }
        }
        for (key, value) in wanted {
            new_host.set_at(&["metadata", "annotations", &key], value);
        }
        new_host["spec"] = spec(ingress, ctx);
        // The host's default class may have been filled in there.
        if ingress.at(&["spec", "ingressClassName"]).is_none() {
            put(&mut new_host, &["spec", "ingressClassName"], host.at(&["spec", "ingressClassName"]).cloned());
        }
        if let Some(status) = host.get("status").filter(|s| !s.is_null()) {
            new_virtual["status"] = status.clone();
        }
        Ok(Desired {
            virtual_: new_virtual,
            host: new_host,
            actions: Vec::new(),
            seen: LastSeen { on_host: true, host_only },
        })
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn an_ingress_claims_the_names_of_its_rules_and_certificates() {
        let ingress = json!({"spec": {"rules": [{"host": "b.example"}, {"http": {}}, {"host": "a.example"}],
            "tls": [{"hosts": ["a.example", "c.example"], "secretName": "s"}, {"secretName": "t"}]}});
        assert_eq!(hostnames(&ingress), ["a.example", "b.example", "c.example"]);
    }
}
