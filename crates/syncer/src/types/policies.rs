//! PodDisruptionBudgets, ServiceAccounts: small types that only go down, budgets with their status back.

use apimachinery::Value;

use crate::kind::{self, Kind};
use crate::metadata::{self, MetadataRules};
use crate::plan::{Action, LastSeen};
use crate::selectors::{bind_selector, host_selector};
use crate::types::{Context, Desired, Refusal, ToHost, object};

pub struct DisruptionBudgets;

fn budget_spec(budget: &Value, ctx: &Context<'_>) -> Value {
    let mut spec = budget["spec"].clone();
    if let Some(selector) = budget.at(&["spec", "selector"]).filter(|s| !s.is_null()) {
        let mut selector = host_selector(selector, ctx.names);
        bind_selector(&mut selector, Some(budget.str_at(&["metadata", "namespace"])), ctx.names);
        spec["selector"] = selector;
    }
    spec
}

impl ToHost for DisruptionBudgets {
    fn kind(&self) -> &Kind {
        &kind::POD_DISRUPTION_BUDGET
    }

    fn wanted(&self, _budget: &Value, ctx: &Context<'_>) -> bool {
        ctx.settings.pod_disruption_budgets
    }

    fn translate(&self, budget: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        let mut host = object(self.kind(), ctx.metadata(budget, self.kind(), &[]));
        host["spec"] = budget_spec(budget, ctx);
        Ok((host, Vec::new()))
    }

    fn reconcile(&self, budget: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>) -> Result<Desired, Refusal> {
        let mut new_virtual = budget.clone();
        let mut new_host = host.clone();
        let host_only = sync_metadata(self.kind(), &mut new_virtual, &mut new_host, last, ctx);
        new_host["spec"] = budget_spec(budget, ctx);
        if let Some(status) = host.get("status").filter(|s| !s.is_null()) {
            let mut status = status.clone();
            // Pods that are being disrupted are named there, by their host names.
            let namespace = budget.str_at(&["metadata", "namespace"]);
            let suffix = format!("-x-{namespace}-x-{}", ctx.names.virtual_cluster());
            if let Some(pods) = status.get_mut("disruptedPods").and_then(Value::as_object_mut) {
                let shown: apimachinery::Map = std::mem::take(pods)
                    .into_iter()
                    .filter_map(|(name, at)| name.strip_suffix(&suffix).map(|n| (n.to_owned(), at)))
                    .collect();
                *pods = shown;
            }
            match budget.at(&["metadata", "generation"]) {
                Some(generation)
                    if host.at(&["status", "observedGeneration"]) == host.at(&["metadata", "generation"]) =>
                {
                    status["observedGeneration"] = generation.clone();
                }
                _ => {
                    status.remove_at(&["observedGeneration"]);
                }
            }
            new_virtual["status"] = status;
        }
        Ok(Desired {
            virtual_: new_virtual,
            host: new_host,
            actions: Vec::new(),
            seen: LastSeen { on_host: true, host_only },
        })
    }
}

fn sync_metadata(
    kind: &Kind,
    virtual_: &mut Value,
    host: &mut Value,
    last: &LastSeen,
    ctx: &Context<'_>,
) -> metadata::HostOnlyKeys {
    metadata::sync_metadata(virtual_, host, kind, ctx.names, MetadataRules::default(), Some(&last.host_only))
}

/// Metadata only: cloud identities hang on it.
pub struct ServiceAccounts;

impl ToHost for ServiceAccounts {
    fn kind(&self) -> &Kind {
        &kind::SERVICE_ACCOUNT
    }

    fn wanted(&self, _account: &Value, ctx: &Context<'_>) -> bool {
        ctx.settings.service_accounts
    }

    fn translate(&self, account: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        let mut host = object(self.kind(), ctx.metadata(account, self.kind(), &[]));
        host["automountServiceAccountToken"] = false.into();
        Ok((host, Vec::new()))
    }

    fn reconcile(&self, account: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>) -> Result<Desired, Refusal> {
        let mut new_virtual = account.clone();
        let mut new_host = host.clone();
        let host_only = sync_metadata(self.kind(), &mut new_virtual, &mut new_host, last, ctx);
        new_host["automountServiceAccountToken"] = false.into();
        Ok(Desired {
            virtual_: new_virtual,
            host: new_host,
            actions: Vec::new(),
            seen: LastSeen { on_host: true, host_only },
        })
    }
}
