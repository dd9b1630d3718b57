//! NetworkPolicies: the tenant's rules about the tenant's pods, on the one network all pods share.
//!
//! Invariant: where the host keeps tenants apart, no rule of a tenant opens its pods to others. A rule without peers means
//! "everyone" in a cluster of one's own; there it means everyone in the virtual cluster and what the administrator calls public,
//! and blocks of addresses are cut down to that.

use apimachinery::{Value, json};

use crate::kind::{self, Kind};
use crate::metadata::{self, MetadataRules};
use crate::plan::{Action, LastSeen};
use crate::selectors::{bind_selector, host_namespace_selector, host_selector, is_empty, merge_selectors};
use crate::types::address_block::AddressBlock;
use crate::types::{Context, Desired, Refusal, ToHost, object};

pub struct NetworkPolicies;

fn peers(peers: &[Value], namespace: &str, ctx: &Context<'_>) -> Vec<Value> {
    peers
        .iter()
        .flat_map(|peer| {
            if let Some(block) = peer.get("ipBlock").filter(|b| !b.is_null()) {
                return match &ctx.settings.isolate_network {
                    None => vec![json!({ "ipBlock": block })],
                    // Pods of others and the cloud's metadata have addresses too.
                    Some(isolation) => {
                        isolation.public.iter().filter_map(|public| Some(public.common(block)?.peer())).collect()
                    }
                };
            }
            let mut selector = match peer.get("podSelector").filter(|s| !s.is_null()) {
                Some(selector) => host_selector(selector, ctx.names),
                None => Value::object(),
            };
            let mut bound_to = Some(namespace);
            if let Some(namespaces) = peer.get("namespaceSelector").filter(|s| !s.is_null()) {
                if !is_empty(namespaces) {
                    selector = merge_selectors(&selector, &host_namespace_selector(namespaces, ctx.names));
                }
                bound_to = None;
            }
            bind_selector(&mut selector, bound_to, ctx.names);
            if ctx.names.syncs_namespaces() {
                // Pods of other virtual namespaces are in other host namespaces; the marker keeps it to this cluster.
                return vec![json!({"podSelector": selector, "namespaceSelector": {}})];
            }
            vec![json!({ "podSelector": selector })]
        })
        .collect()
}

fn spec(policy: &Value, ctx: &Context<'_>) -> Value {
    let namespace = policy.str_at(&["metadata", "namespace"]);
    let mut selector = host_selector(&policy["spec"]["podSelector"], ctx.names);
    bind_selector(&mut selector, Some(namespace), ctx.names);
    let mut out = json!({ "podSelector": selector });
    for (rules, side) in [("ingress", "from"), ("egress", "to")] {
        let Some(list) = policy.at(&["spec", rules]).and_then(Value::as_array) else { continue };
        let list: Vec<Value> = list
            .iter()
            .filter_map(|rule| {
                let mut host_rule = Value::object();
                if let Some(ports) = rule.get("ports").filter(|p| !p.is_null()) {
                    host_rule["ports"] = ports.clone();
                }
                let listed = rule.array_at(&[side]);
                let translated = match (&ctx.settings.isolate_network, listed.is_empty()) {
                    // Everyone, as it is without any policy.
                    (None, true) => return Some(host_rule),
                    (Some(isolation), true) => {
                        let mut everyone = Value::object();
                        bind_selector(&mut everyone, None, ctx.names);
                        let own = json!({ "podSelector": everyone });
                        std::iter::once(own).chain(isolation.public.iter().map(AddressBlock::peer)).collect()
                    }
                    (_, false) => peers(listed, namespace, ctx),
                };
                // A rule whose peers are all out of reach opens nothing; without peers it would open everything.
                (!translated.is_empty()).then(|| {
                    host_rule[side] = Value::Array(translated);
                    host_rule
                })
            })
            .collect();
        out[rules] = Value::Array(list);
    }
    if let Some(types) = policy.at(&["spec", "policyTypes"]) {
        out["policyTypes"] = types.clone();
    }
    out
}

impl ToHost for NetworkPolicies {
    fn kind(&self) -> &Kind {
        &kind::NETWORK_POLICY
    }

    fn wanted(&self, _policy: &Value, ctx: &Context<'_>) -> bool {
        ctx.settings.network_policies
    }

    fn host_gone(&self, _virtual: &Value, _last: &LastSeen) -> Option<Vec<Action>> {
        // Losing it would open the tenant's pods.
        None
    }

    fn translate(&self, policy: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        let mut host = object(&kind::NETWORK_POLICY, ctx.metadata(policy, &kind::NETWORK_POLICY, &[]));
        host["spec"] = spec(policy, ctx);
        Ok((host, Vec::new()))
    }

    fn reconcile(&self, policy: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>) -> Result<Desired, Refusal> {
        let mut new_virtual = policy.clone();
        let mut new_host = host.clone();
        let host_only = metadata::sync_metadata(
            &mut new_virtual,
            &mut new_host,
            &kind::NETWORK_POLICY,
            ctx.names,
            MetadataRules::default(),
            Some(&last.host_only),
        );
        new_host["spec"] = spec(policy, ctx);
        Ok(Desired {
            virtual_: new_virtual,
            host: new_host,
            actions: Vec::new(),
            seen: LastSeen { on_host: true, host_only },
        })
    }
}
