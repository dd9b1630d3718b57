//! Asks the host whether it takes a tenant's custom resource, before the tenant's API server stores it: what the host's
//! webhooks, policies and quotas refuse, the tenant hears at once and in its own names.
//!
//! Invariant: only a refusal of the host is a refusal. A host that is away, busy or slow stops no tenant's write; the syncer
//! tries then, and tells by events.

use std::time::Duration;

use informer::ApiError;

use apimachinery::Value;

use super::{Engine, TypeState};
use crate::metadata::{name_of, uid_of};
use crate::plan::{Action, plan};
use crate::types::Context;

/// Questions on their way at a time; more wait.
pub const AT_ONCE: usize = 50;
/// How long a write of a tenant waits for the host.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether an answer says that the host will never take this.
fn is_refusal(error: &ApiError) -> bool {
    // A webhook that cannot be asked without consequences is asked when it counts.
    let cannot_try = error.code() == 400 && error.to_string().contains("does not support dry run");
    matches!(error.code(), 400 | 403 | 413 | 422) && !cannot_try
}

impl Engine {
    /// Asks about a custom resource as it would be stored. The error is the host's, with host names removed.
    pub(super) async fn check_on_host(&self, group: &str, plural: &str, object: &Value) -> Result<(), ApiError> {
        let custom = |ty: &TypeState| {
            let kind = ty.ty.kind();
            kind.group == group
                && kind.plural == plural
                && self.settings.custom_resources.iter().any(|c| c.group == group && c.plural == plural)
        };
        let found = self.types.read().iter().find(|ty| custom(ty)).cloned();
        let Some(ty) = found.filter(|_| self.synced.load(std::sync::atomic::Ordering::Acquire)) else { return Ok(()) };
        let asked = async {
            // Closed never: the engine keeps it open.
            let _permit = self.checks.acquire().await.ok();
            self.ask(&ty, object).await
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => {
                tracing::warn!(group, plural, "the host did not say in time whether it takes an object");
                Ok(())
            }
        }
    }

    async fn ask(&self, ty: &TypeState, object: &Value) -> Result<(), ApiError> {
        let kind = ty.ty.kind();
        let key = name_of(object);
        let host_name = kind.known_host_name(&self.names, &key);
        let host = self.host_side.get(kind, &host_name);
        let last = ty.last_seen(&key, uid_of(object));
        let facts = self.facts(kind, Some(object), host.as_ref());
        let owner = self.owner.read().clone();
        let ctx = Context {
            names: &self.names,
            settings: &self.settings,
            owner: owner.as_ref(),
            facts: &facts,
            patches: self.patches(kind),
            now: self.clock.now(),
        };
        let plan = plan(ty.ty.as_ref(), Some(object), host.as_ref(), &last, &ctx);
        for action in plan.actions {
            let asked = match action {
                Action::CreateHost(wanted) => self.host_side.try_create(kind, &wanted).await,
                Action::PatchHost { patch, subresource: "" } => {
                    self.host_side.try_patch(kind, &host_name, &patch).await
                }
                _ => continue,
            };
            match asked {
                Err(error) if is_refusal(&error) => return Err(self.in_tenants_words(error, &host_name, &key)),
                Err(error) => {
                    tracing::debug!(kind = %kind.kind, error = &error as &dyn std::error::Error, "not asked");
                    return Ok(());
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    fn in_tenants_words(
        &self,
        error: ApiError,
        host_name: &crate::names::NamespacedName,
        key: &crate::names::NamespacedName,
    ) -> ApiError {
        match error {
            ApiError::Status { code, reason, message, retry_after, .. } => {
                let message = self.names.to_virtual_text(&message, Some((host_name, key)));
                ApiError::Status { code, reason, message, details: Box::default(), retry_after }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_of_the_host_stops_a_write() {
        let error = |code: u16, message: &str| ApiError::Status {
            code,
            reason: "R".into(),
            message: message.into(),
            details: Box::default(),
            retry_after: None,
        };
        for (code, message, want) in [
            (422, "spec.replicas: Invalid value", true),
            (403, "admission webhook \"x\" denied the request", true),
            (400, "strict decoding error", true),
            (413, "too large", true),
            (400, "admission webhook \"x\" does not support dry run", false),
            (409, "already exists", false),
            (404, "not found", false),
            (429, "busy", false),
            (500, "broken", false),
            (503, "away", false),
        ] {
            assert_eq!(is_refusal(&error(code, message)), want, "{code} {message}");
        }
        assert!(!is_refusal(&ApiError::Timeout(Duration::from_secs(1))));
    }
}
