//! The volumes that are shown for bound claims: there while a virtual claim names them.

use apimachinery::json;
use informer::Outcome;

use super::{Engine, SyncError};
use crate::kind;
use crate::metadata::{label, uid_of};
use crate::names::NamespacedName;
use crate::types::volumes::{FAKE_VOLUME_LABEL, fake_volume};

/// Index of virtual claims by the volume they are bound to.
pub const BY_VOLUME: &str = "volume";

impl Engine {
    pub(super) async fn reconcile_volume(&self, volume: &str) -> Result<Outcome, SyncError> {
        let name = NamespacedName::new("", volume);
        let side = &self.virtual_side;
        let claims = side.by_index(&kind::PERSISTENT_VOLUME_CLAIM, BY_VOLUME, volume);
        let existing = side.get(&kind::PERSISTENT_VOLUME, &name);
        match (claims.first(), existing) {
            (Some(claim), None) => {
                let wanted = fake_volume(claim);
                match side.create(&kind::PERSISTENT_VOLUME, &wanted).await {
                    Err(error) if error.is_already_exists() => return Ok(Outcome::Retry),
                    Err(error) => return Err(error.into()),
                    Ok(_) => {}
                }
                side.patch(&kind::PERSISTENT_VOLUME, &name, "status", &json!({"status": {"phase": "Bound"}})).await?;
            }
            (Some(_), Some(existing)) => {
                if label(&existing, FAKE_VOLUME_LABEL) == "true" && existing.str_at(&["status", "phase"]) != "Bound" {
                    let patch = json!({"status": {"phase": "Bound"}});
                    side.patch(&kind::PERSISTENT_VOLUME, &name, "status", &patch).await?;
                }
            }
            (None, Some(existing)) if label(&existing, FAKE_VOLUME_LABEL) == "true" => {
                let held = !existing.array_at(&["metadata", "finalizers"]).is_empty();
                side.delete(&kind::PERSISTENT_VOLUME, &name, uid_of(&existing), None).await?;
                if held {
                    // Nobody else looks after it.
                    let patch = json!({"metadata": {"uid": (uid_of(&existing)), "finalizers": null}});
                    match side.patch(&kind::PERSISTENT_VOLUME, &name, "", &patch).await {
                        Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error.into()),
                        _ => side.forget(&kind::PERSISTENT_VOLUME, &name),
                    }
                }
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }
}
