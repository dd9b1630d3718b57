//! Rules about what lists and maps hold: selectors, webhooks, refused requests, custom resources, namespaces.
//!
//! Like `validate`, but each rule looks into entries whose number is up to the user.

use std::collections::BTreeMap;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet};
use serde_json::Value;

use crate::error::Problem;
use crate::model::{Config, DenyRule, LabelSelector, Typed};
use crate::validate::{Check, is_dns_label};

/// Verbs and operations of admission that a refused request may be told by.
const OPERATIONS: [&str; 9] =
    ["create", "get", "list", "watch", "update", "patch", "delete", "deletecollection", "connect"];

pub(crate) fn check(config: &Typed, check: &mut Check<'_>) {
    stores(config, check);
    let from_host = &config.sync.from_host;
    for (name, selector) in [
        ("ingressClasses", &from_host.ingress_classes.selector),
        ("gatewayClasses", &from_host.gateway_classes.selector),
        ("priorityClasses", &from_host.priority_classes.selector),
        ("runtimeClasses", &from_host.runtime_classes.selector),
        ("storageClasses", &from_host.storage_classes.selector),
    ] {
        label_selector(&format!("sync.fromHost.{name}.selector"), selector, check);
    }
    for (index, rule) in config.experimental.deny_proxy_requests.iter().enumerate() {
        deny_rule(&format!("experimental.denyProxyRequests[{index}]"), rule, check);
    }
    let central = &config.policies.central_admission;
    for (list, webhooks) in
        [("validatingWebhooks", &central.validating_webhooks), ("mutatingWebhooks", &central.mutating_webhooks)]
    {
        for (index, configuration) in webhooks.iter().enumerate() {
            webhook_configuration(&format!("policies.centralAdmission.{list}[{index}]"), configuration, check);
        }
    }
    for (key, resource) in &config.sync.to_host.custom_resources {
        let other = config.sync.from_host.custom_resources.get(key);
        check(
            resource.enabled && other.is_some_and(|other| other.enabled),
            &format!("sync.fromHost.customResources.{key}"),
            "must not be enabled in sync.toHost.customResources too; choose one direction",
        );
    }
    let budget = &config.control_plane.advanced.pod_disruption_budget;
    let set = |key: &str| budget.get(key).is_some_and(|value| !value.is_null());
    check(
        budget.get("enabled") == Some(&Value::Bool(true)) && set("minAvailable") && set("maxUnavailable"),
        "controlPlane.advanced.podDisruptionBudget",
        "must not have both minAvailable and maxUnavailable",
    );
    namespace_placeholders(config, check);
}

fn stores(config: &Typed, check: &mut Check<'_>) {
    let store = &config.control_plane.backing_store;
    // A deployed etcd runs on beside the embedded one until its data has moved.
    let moving = store.etcd.embedded.enabled && store.etcd.embedded.migrate_from_deployed_etcd;
    let enabled = [
        store.etcd.embedded.enabled,
        store.etcd.external.enabled,
        store.etcd.deploy.enabled && !moving,
        store.database.embedded.enabled,
        store.database.external.enabled,
    ];
    check(
        enabled.iter().filter(|enabled| **enabled).count() > 1,
        "controlPlane.backingStore",
        "must have only one store that is enabled",
    );
}

/// The rules of Kubernetes for a label selector.
fn label_selector(path: &str, selector: &LabelSelector, check: &mut Check<'_>) {
    for (key, value) in &selector.match_labels {
        check(!is_label_key(key), &format!("{path}.matchLabels.{key}"), "is not a label key");
        check(!is_label_value(value), &format!("{path}.matchLabels.{key}"), "must be a label value");
    }
    for (index, one) in selector.match_expressions.iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        check(!is_label_key(&one.key), &format!("{path}.key"), "must be a label key");
        let needs = match one.operator.as_str() {
            "In" | "NotIn" => Some(true),
            "Exists" | "DoesNotExist" => Some(false),
            _ => None,
        };
        check(needs.is_none(), &format!("{path}.operator"), "must be one of: In, NotIn, Exists, DoesNotExist");
        check(
            needs == Some(true) && one.values.is_empty(),
            &format!("{path}.values"),
            "must not be empty with operator In or NotIn",
        );
        check(
            needs == Some(false) && !one.values.is_empty(),
            &format!("{path}.values"),
            "must be empty with operator Exists or DoesNotExist",
        );
        for (value, text) in one.values.iter().enumerate() {
            check(!is_label_value(text), &format!("{path}.values[{value}]"), "must be a label value");
        }
    }
}

fn deny_rule(path: &str, rule: &DenyRule, check: &mut Check<'_>) {
    for (index, namespace) in rule.namespaces.iter().enumerate() {
        check(
            namespace != "*" && !is_dns_label(namespace),
            &format!("{path}.namespaces[{index}]"),
            "must be the name of a namespace",
        );
    }
    for (index, one) in rule.rules.iter().enumerate() {
        let path = format!("{path}.rules[{index}]");
        for (name, list) in
            [("operations", &one.operations), ("apiGroups", &one.api_groups), ("apiVersions", &one.api_versions)]
        {
            check(
                list.len() > 1 && list.iter().any(|entry| entry == "*"),
                &format!("{path}.{name}"),
                "must have * as its only entry, or not at all",
            );
        }
        for (entry, text) in one.operations.iter().enumerate() {
            let known = text == "*" || OPERATIONS.iter().any(|operation| text.eq_ignore_ascii_case(operation));
            check(
                !known,
                &format!("{path}.operations[{entry}]"),
                &format!("must be * or one of: {}", OPERATIONS.join(", ")),
            );
        }
        check(
            !matches!(one.scope.as_str(), "" | "*" | "Cluster" | "Namespaced"),
            &format!("{path}.scope"),
            "must be one of: Cluster, Namespaced, *",
        );
    }
}

/// What can be said of a webhook before it is asked: where it is, and by which authority it is known.
fn webhook_configuration(path: &str, configuration: &Value, check: &mut Check<'_>) {
    let webhooks = configuration.get("webhooks").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (index, webhook) in webhooks.iter().enumerate() {
        let path = format!("{path}.webhooks[{index}].clientConfig");
        let client = webhook.get("clientConfig").unwrap_or(&Value::Null);
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_string();
        let (service, url) = (client.get("service").filter(|s| !s.is_null()), text(client.get("url")));
        check(service.is_none() && url.is_empty(), &path, "must have a service or a url");
        if let Some(service) = service {
            check(
                text(service.get("name")).is_empty() || text(service.get("namespace")).is_empty(),
                &format!("{path}.service"),
                "must have a name and a namespace",
            );
        }
        let bundle = text(client.get("caBundle"));
        check(
            !bundle.is_empty() && !holds_certificate(&bundle),
            &format!("{path}.caBundle"),
            "must be certificates in PEM, encoded in base64",
        );
    }
}

/// Is this base64 of a text with a certificate in PEM?
fn holds_certificate(base64: &str) -> bool {
    decoded(base64).is_some_and(|bytes| {
        let text = String::from_utf8_lossy(&bytes);
        let inside = text
            .split_once("-----BEGIN CERTIFICATE-----")
            .and_then(|(_, rest)| rest.split_once("-----END CERTIFICATE-----"));
        // DER of a certificate begins with a sequence.
        inside.and_then(|(body, _)| decoded(body)).is_some_and(|der| der.first() == Some(&0x30))
    })
}

/// Also where padding is left out or lines are broken.
fn decoded(base64: &str) -> Option<Vec<u8>> {
    let text: String = base64.chars().filter(|c| !c.is_ascii_whitespace() && *c != '=').collect();
    let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    let lenient =
        GeneralPurpose::new(&alphabet::STANDARD, config.with_decode_padding_mode(DecodePaddingMode::Indifferent));
    lenient.decode(text).ok()
}

fn namespace_placeholders(config: &Typed, check: &mut Check<'_>) {
    let namespaces = &config.sync.to_host.namespaces;
    if !namespaces.enabled {
        return;
    }
    let mut targets = BTreeMap::new();
    for (from, to) in &namespaces.mappings.by_name {
        let path = format!("sync.toHost.namespaces.mappings.byName[{from:?}]");
        for text in [from, to] {
            check(text.matches("${name}").count() > 1, &path, "must have ${name} only once");
            check(text.replace("${name}", "").contains("${"), &path, "has a placeholder other than ${name}");
        }
        if let Some(other) = targets.insert(to, from) {
            check(true, &path, &format!("has the same host namespace as {other:?}: {to}"));
        }
    }
}

impl Config {
    /// Does a mapping of namespaces lead into `namespace`, where the control plane of `name` is? Tenants would meet its
    /// own objects there.
    pub fn maps_into_own_namespace(&self, name: &str, namespace: &str) -> Option<Problem> {
        let namespaces = &self.sync.to_host.namespaces;
        let mut targets = namespaces.mappings.by_name.iter().filter(|_| namespaces.enabled);
        targets
            .find(|(_, to)| {
                let to = to.replace("${name}", name);
                match to.strip_suffix('*') {
                    Some(prefix) => namespace.starts_with(prefix),
                    None => to == namespace,
                }
            })
            .map(|(from, to)| {
                let path = format!("sync.toHost.namespaces.mappings.byName[{from:?}]");
                Problem::at_path(path, format!("{to} stands for the cluster's own namespace on the host, {namespace}"))
            })
    }
}

fn is_label_value(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_none_or(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && ends(text.bytes().next())
        && ends(text.bytes().last())
}

fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    !name.is_empty()
        && is_label_value(name)
        && prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_dns_label))
}

/// Is this the value of a toleration as users write it, `KEY=VALUE:EFFECT`?
pub(crate) fn is_toleration(text: &str) -> bool {
    let (pair, effect) = text.split_once(':').map_or((text, None), |(pair, effect)| (pair, Some(effect)));
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    text == "*"
        || is_label_key(key)
            && is_label_value(value)
            && effect.is_none_or(|effect| matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute"))
}
