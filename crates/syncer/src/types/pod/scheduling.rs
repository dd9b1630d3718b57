//! Affinity, spreading and DNS: selectors that stay inside the tenant's cluster, and names that resolve in it.

use apimachinery::{Map, Value, json};

use crate::metadata::{MANAGED_BY_LABEL, NAMESPACE_LABEL, label};
use crate::selectors::{self, bind_selector, host_namespace_selector, host_selector, merge_selectors, require};
use crate::types::Context;

/// Said when a term uses both ways to name namespaces.
pub const BOTH_NAMESPACE_FIELDS: &str = "Inter-pod affinity rule(s) that use both .namespaces and .namespaceSelector fields \
     in the same term are not supported. The .namespaceSelector fields of the unsupported affinity entries will be ignored.";

/// Translates topology spread constraints of `host`, a copy of the virtual pod's spec.
pub fn translate_spread(pod: &Value, host: &mut Value, ctx: &Context<'_>) {
    let namespace = pod.str_at(&["metadata", "namespace"]);
    let constraints = host.at_mut(&["spec", "topologySpreadConstraints"]).and_then(Value::as_array_mut);
    for constraint in constraints.into_iter().flatten() {
        let Some(selector) = constraint.get("labelSelector").filter(|s| !s.is_null()) else { continue };
        let mut selector = host_selector(selector, ctx.names);
        merge_label_keys(constraint, "matchLabelKeys", "In", &mut selector, pod, ctx);
        bind_selector(&mut selector, Some(namespace), ctx.names);
        constraint["labelSelector"] = selector;
    }
}

/// Puts what `matchLabelKeys` means into the selector and removes the field: the virtual API server did the same on create,
/// and the host's would find its keys named twice.
fn merge_label_keys(
    term: &mut Value,
    member: &str,
    operator: &str,
    selector: &mut Value,
    pod: &Value,
    ctx: &Context<'_>,
) {
    let Some(keys) = term.remove_at(&[member]) else { return };
    for key in keys.as_array().into_iter().flatten().filter_map(Value::as_str) {
        let host_key = ctx.names.host_label(key);
        let known = selector
            .array_at(&["matchExpressions"])
            .iter()
            .any(|e| e.str_at(&["key"]) == host_key && e.str_at(&["operator"]) == operator);
        let value = label(pod, key);
        if !known && pod.at(&["metadata", "labels", key]).is_some() {
            require(selector, &host_key, operator, vec![value.into()]);
        }
    }
}

/// Translates pod affinity and anti-affinity of `host`. Gives a warning for what cannot be expressed.
pub fn translate_affinity(pod: &Value, host: &mut Value, ctx: &Context<'_>) -> Option<&'static str> {
    let mut warning = None;
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = host.at_mut(&["spec", "affinity", kind]) else { continue };
        let required = affinity.get_mut("requiredDuringSchedulingIgnoredDuringExecution").and_then(Value::as_array_mut);
        for term in required.into_iter().flatten() {
            *term = affinity_term(pod, term, ctx, &mut warning);
        }
        let preferred =
            affinity.get_mut("preferredDuringSchedulingIgnoredDuringExecution").and_then(Value::as_array_mut);
        for weighted in preferred.into_iter().flatten() {
            let term = affinity_term(pod, &weighted["podAffinityTerm"], ctx, &mut warning);
            weighted["podAffinityTerm"] = term;
        }
    }
    warning
}

fn affinity_term(pod: &Value, term: &Value, ctx: &Context<'_>, warning: &mut Option<&'static str>) -> Value {
    let names = ctx.names;
    let namespace = pod.str_at(&["metadata", "namespace"]);
    // Only what is known to stay inside is carried over; namespaces become labels of the one host namespace.
    let mut out = json!({"topologyKey": (term.str_at(&["topologyKey"]))});
    let Some(selector) = term.get("labelSelector").filter(|s| !s.is_null()) else { return out };
    let mut host = host_selector(selector, names);
    let mut keys = term.clone();
    merge_label_keys(&mut keys, "matchLabelKeys", "In", &mut host, pod, ctx);
    merge_label_keys(&mut keys, "mismatchLabelKeys", "NotIn", &mut host, pod, ctx);
    let listed = term.array_at(&["namespaces"]);
    let by_selector = term.get("namespaceSelector").filter(|s| !s.is_null());
    let everywhere = by_selector.is_some_and(selectors::is_empty);
    let mut own_namespace = None;
    if everywhere {
        // Every namespace of the virtual cluster: the marker alone.
    } else if !listed.is_empty() {
        if by_selector.is_some() {
            *warning = Some(BOTH_NAMESPACE_FIELDS);
        }
        require(&mut host, NAMESPACE_LABEL, "In", listed.to_vec());
    } else if let Some(by_selector) = by_selector {
        host = merge_selectors(&host, &host_namespace_selector(by_selector, names));
    } else {
        own_namespace = Some(namespace);
    }
    bind_selector(&mut host, own_namespace, names);
    out["labelSelector"] = host;
    if names.syncs_namespaces() {
        // Pods are spread over host namespaces: name exactly those of the matching virtual ones.
        let mut host_namespaces: Vec<String> = if everywhere || (listed.is_empty() && by_selector.is_some()) {
            ctx.facts
                .namespaces
                .iter()
                .filter(|(_, labels)| by_selector.is_none_or(|s| selectors::matches(s, Some(labels))))
                .map(|(name, _)| names.host_namespace(name))
                .collect()
        } else if listed.is_empty() {
            vec![names.host_namespace(namespace)]
        } else {
            listed.iter().filter_map(Value::as_str).map(|n| names.host_namespace(n)).collect()
        };
        host_namespaces.sort();
        host_namespaces.dedup();
        if host_namespaces.is_empty() {
            host_namespaces.push(names.install_namespace().to_owned());
        }
        out["namespaces"] = host_namespaces.into();
    }
    debug_assert_eq!(out.str_at(&["labelSelector", "matchLabels", MANAGED_BY_LABEL]), names.virtual_cluster());
    out
}

/// True when the pod asks for the cluster's DNS.
pub fn is_cluster_first(pod: &Value) -> bool {
    let policy = match pod.str_at(&["spec", "dnsPolicy"]) {
        "" => "ClusterFirst",
        policy => policy,
    };
    let host_network = pod.at(&["spec", "hostNetwork"]).is_some_and(|v| *v == true);
    match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    }
}

/// Makes names resolve as in the virtual cluster, keeping what the user asked for.
pub fn translate_dns(pod: &Value, host: &mut Value, ctx: &Context<'_>) {
    if !is_cluster_first(pod) {
        return;
    }
    if ctx.facts.dns_ip.is_empty() {
        // Without a DNS of its own the cluster must not answer with the host cluster's names.
        host["spec"]["dnsPolicy"] = "Default".into();
        return;
    }
    let user = pod.at(&["spec", "dnsConfig"]).cloned().unwrap_or_default();
    let namespace = pod.str_at(&["metadata", "namespace"]);
    let domain = &ctx.settings.cluster_domain;
    let mut nameservers = vec![Value::from(ctx.facts.dns_ip.as_str())];
    append_new(&mut nameservers, user.array_at(&["nameservers"]));
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches.push(Value::from(format!("{namespace}.svc.{domain}")));
        searches.push(format!("svc.{domain}").into());
        searches.push(domain.as_str().into());
    }
    append_new(&mut searches, user.array_at(&["searches"]));
    let user_options = user.array_at(&["options"]);
    let mut options = Vec::new();
    if !user_options.iter().any(|o| o.str_at(&["name"]) == "ndots") {
        options.push(json!({"name": "ndots", "value": "5"}));
    }
    options.extend(user_options.iter().cloned());
    let mut config = Map::new();
    config.insert("nameservers", Value::Array(nameservers));
    if !searches.is_empty() {
        config.insert("searches", Value::Array(searches));
    }
    config.insert("options", Value::Array(options));
    host["spec"]["dnsPolicy"] = "None".into();
    host["spec"]["dnsConfig"] = config.into();
}

fn append_new(list: &mut Vec<Value>, more: &[Value]) {
    for value in more {
        if !list.contains(value) {
            list.push(value.clone());
        }
    }
}
