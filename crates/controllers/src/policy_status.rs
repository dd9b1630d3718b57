//! validatingadmissionpolicy-status: tells in a policy's status what is wrong with its expressions.
//!
//! Type checking needs the expression language and schemas, which this crate does not have: it is done by the hook in
//! [`ManagerConfig::policy_checker`](crate::ManagerConfig). Without it the status says that the policy was seen, without
//! warnings.
//!
//! Follows: `pkg/controller/validatingadmissionpolicystatus`.

use std::sync::Arc;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use informer::{Informer, ObjectKey, ObjectMeta, Outcome, PatchType, Rest};
use serde::Deserialize;

use crate::context::{Context, ReconcileResult, ignore_not_found, key_queue};
use crate::resources::VALIDATING_ADMISSION_POLICIES;
use crate::types::cached;

/// A warning about one expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpressionWarning {
    /// Such as `spec.validations[0].expression`.
    pub field_ref: String,
    pub warning: String,
}

/// Checks the types of a policy's expressions.
#[derive(Clone)]
pub struct PolicyChecker(Arc<dyn Fn(&Value) -> Vec<ExpressionWarning> + Send + Sync>);

impl PolicyChecker {
    pub fn new(check: impl Fn(&Value) -> Vec<ExpressionWarning> + Send + Sync + 'static) -> Self {
        PolicyChecker(Arc::new(check))
    }
}

impl std::fmt::Debug for PolicyChecker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PolicyChecker")
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Policy {
    metadata: ObjectMeta,
    status: Status,
}

cached!(Policy);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    observed_generation: i64,
}

fn status(name: &str, generation: i64, warnings: &[ExpressionWarning]) -> Value {
    let mut policy = json!({"kind": "ValidatingAdmissionPolicy", "apiVersion": "admissionregistration.k8s.io/v1",
        "metadata": {"name": name}, "status": {"observedGeneration": generation, "typeChecking": {}}});
    if !warnings.is_empty() {
        let list: Vec<Value> =
            warnings.iter().map(|w| json!({"fieldRef": w.field_ref.as_str(), "warning": w.warning.as_str()})).collect();
        policy.set_at(&["status", "typeChecking", "expressionWarnings"], Value::Array(list));
    }
    policy
}

pub(crate) fn start(context: &Context) {
    let queue = key_queue();
    let policies: Informer<Policy> = context.factory.informer(VALIDATING_ADMISSION_POLICIES);
    let adds = queue.clone();
    policies.on_change(move |change| {
        let policy = change.object();
        if !change.is_deleted() && policy.metadata.generation > policy.status.observed_generation {
            adds.add(policy.metadata.key());
        }
    });
    let synced = vec![policies.synced()];
    let rest = Rest::new(context.rest.client().clone(), "validatingadmissionpolicy-status");
    let checker = context.config.policy_checker.clone();
    context.run("validatingadmissionpolicy-status", 1, &queue, synced, move |key| {
        reconcile(rest.clone(), policies.clone(), checker.clone(), key)
    });
}

async fn reconcile(
    rest: Rest,
    policies: Informer<Policy>,
    checker: Option<PolicyChecker>,
    key: ObjectKey,
) -> ReconcileResult {
    let Some(cached) = policies.get(&key) else { return Ok(Outcome::Done) };
    if cached.metadata.generation <= cached.status.observed_generation {
        return Ok(Outcome::Done);
    }
    let live = match rest.get(&VALIDATING_ADMISSION_POLICIES, "", &key.name).await {
        Ok(live) => live,
        Err(error) if error.is_not_found() => return Ok(Outcome::Done),
        Err(error) => return Err(error.into()),
    };
    let warnings = checker.map(|checker| (checker.0)(&live)).unwrap_or_default();
    let generation = live.at(&["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0);
    let name: &Str = &key.name;
    let applied = status(name, generation, &warnings);
    ignore_not_found(rest.patch(&VALIDATING_ADMISSION_POLICIES, "status", "", name, PatchType::Apply, &applied).await)?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_told_with_the_generation() {
        let warning = ExpressionWarning { field_ref: "spec.validations[0].expression".into(), warning: "w".into() };
        let policy = status("p", 3, &[warning]);
        assert_eq!(policy["status"]["observedGeneration"], 3);
        assert_eq!(policy["status"]["typeChecking"]["expressionWarnings"][0]["warning"], "w");
        assert!(status("p", 1, &[])["status"]["typeChecking"].as_object().unwrap().is_empty());
    }
}
