//! clusterrole-aggregation: fills ClusterRoles that are made of others.
//!
//! Follows: `pkg/controller/clusterroleaggregation`.

use std::sync::Arc;

use apimachinery::{Value, json};
use informer::{Informer, ObjectKey, ObjectMeta, Outcome, PatchType, Rest, null_default};
use serde::Deserialize;

use crate::context::{Context, ReconcileResult, ignore_not_found, key_queue};
use crate::resources::CLUSTER_ROLES;
use crate::selector::LabelSelector;
use crate::types::{Raw, cached, raw_value};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClusterRole {
    metadata: ObjectMeta,
    rules: Option<Raw>,
    aggregation_rule: Option<AggregationRule>,
}

cached!(ClusterRole);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AggregationRule {
    #[serde(deserialize_with = "null_default")]
    cluster_role_selectors: Vec<LabelSelector>,
}

/// The rules of all roles that are selected, each rule once; `None` when `role` is not made of others.
fn aggregate(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<Value>> {
    let aggregation = role.aggregation_rule.as_ref()?;
    let mut rules: Vec<Value> = Vec::new();
    for selector in &aggregation.cluster_role_selectors {
        for other in all.iter().filter(|o| o.metadata.name != role.metadata.name) {
            if !selector.matches(&other.metadata.labels) {
                continue;
            }
            for rule in raw_value(&other.rules).as_array().into_iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(rules)
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("clusterrole-aggregation-controller", "clusterrole-aggregation-controller");
    let queue = key_queue();
    let roles: Informer<ClusterRole> = context.factory.informer(CLUSTER_ROLES);
    let (adds, all) = (queue.clone(), roles.clone());
    roles.on_change(move |_| {
        for role in all.list().iter().filter(|r| r.aggregation_rule.is_some()) {
            adds.add(role.metadata.key());
        }
    });
    let synced = vec![roles.synced()];
    // Applied under its own name, so that the rules have one owner.
    let rest = Rest::new(context.rest.client().clone(), "clusterrole-aggregation-controller");
    context.run("clusterrole-aggregation", 1, &queue, synced, move |key| reconcile(rest.clone(), roles.clone(), key));
}

async fn reconcile(rest: Rest, roles: Informer<ClusterRole>, key: ObjectKey) -> ReconcileResult {
    let Some(role) = roles.get(&key) else { return Ok(Outcome::Done) };
    let Some(rules) = aggregate(&role, &roles.list()) else { return Ok(Outcome::Done) };
    let known = raw_value(&role.rules);
    if known.as_array().map_or(&[][..], Vec::as_slice) == rules.as_slice() {
        return Ok(Outcome::Done);
    }
    let mut apply = json!({"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1",
        "metadata": {"name": key.name.as_str()}});
    apply["rules"] = Value::Array(rules);
    ignore_not_found(rest.patch(&CLUSTER_ROLES, "", "", &key.name, PatchType::Apply, &apply).await)?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_selected_roles_are_joined() {
        let role = |name: &str, labels: Value, rules: Value| -> Arc<ClusterRole> {
            let mut object = json!({"metadata": {"name": name}});
            object["metadata"]["labels"] = labels;
            object["rules"] = rules;
            Arc::new(object.to().unwrap())
        };
        let mut admin: ClusterRole = (*role("admin", json!({}), json!([]))).clone();
        admin.aggregation_rule = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "admin"}}]}).to().ok();
        let all = [
            role("a", json!({"to": "admin"}), json!([{"verbs": ["get"]}])),
            role("b", json!({"to": "admin"}), json!([{"verbs": ["get"]}, {"verbs": ["list"]}])),
            role("c", json!({}), json!([{"verbs": ["*"]}])),
        ];
        assert_eq!(aggregate(&admin, &all), Some(vec![json!({"verbs": ["get"]}), json!({"verbs": ["list"]})]));
        assert_eq!(aggregate(&all[0], &all), None);
    }
}
