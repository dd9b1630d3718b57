//! Bookkeeping around writes that needs the store: addresses, ports, and the like.
//!
//! A hook runs after mutating admission and before validation. What it reserves it gives back when the write does not
//! happen; [`Reservation::finish`] is always called, also after a failed validation, a conflict or a dry run.
//!
//! Follows: `BeginCreate`, `BeginUpdate` and `AfterDelete` of `k8s.io/apiserver/pkg/registry/generic/registry.Store`.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::StatusResult;
use async_trait::async_trait;

use crate::registry::Resource;
use crate::storage::Storage;

/// Something reserved for a write that is on its way.
#[async_trait]
pub trait Reservation: Send {
    /// `committed`: the write happened and the reservation is used; else it is given back.
    async fn finish(self: Box<Self>, committed: bool);
}

/// Bookkeeping for some resources. The default methods do nothing.
#[async_trait]
pub trait WriteHook: Send + Sync {
    fn handles(&self, resource: &Resource, subresource: &str) -> bool;

    /// Once, before the first request.
    async fn start(&self, _storage: &Arc<Storage>) -> StatusResult<()> {
        Ok(())
    }

    /// Before a create is validated; may change the object.
    async fn before_create(
        &self,
        _storage: &Arc<Storage>,
        _resource: &Resource,
        _object: &mut Value,
        _dry_run: bool,
    ) -> StatusResult<Option<Box<dyn Reservation>>> {
        Ok(None)
    }

    /// Before an update is validated; may change the new object.
    async fn before_update(
        &self,
        _storage: &Arc<Storage>,
        _resource: &Resource,
        _new: &mut Value,
        _old: &Value,
        _dry_run: bool,
    ) -> StatusResult<Option<Box<dyn Reservation>>> {
        Ok(None)
    }

    /// After an object is gone from the store.
    async fn after_delete(&self, _storage: &Arc<Storage>, _resource: &Resource, _object: &Value) {}
}

/// The hooks of one server.
#[derive(Clone, Default)]
pub struct WriteHooks(pub Vec<Arc<dyn WriteHook>>);

/// The reservations of one write.
#[derive(Default)]
pub struct Reservations(Vec<Box<dyn Reservation>>);

impl Reservations {
    pub async fn finish(self, committed: bool) {
        // In reverse, as they may build on each other.
        for reservation in self.0.into_iter().rev() {
            reservation.finish(committed).await;
        }
    }
}

impl WriteHooks {
    /// Runs all hooks of a create. After a failure everything reserved so far is given back.
    pub async fn before_create(
        &self,
        storage: &Arc<Storage>,
        resource: &Resource,
        object: &mut Value,
        dry_run: bool,
    ) -> StatusResult<Reservations> {
        let mut reservations = Reservations::default();
        for hook in self.0.iter().filter(|h| h.handles(resource, "")) {
            match hook.before_create(storage, resource, object, dry_run).await {
                Ok(reservation) => reservations.0.extend(reservation),
                Err(status) => {
                    reservations.finish(false).await;
                    return Err(status);
                }
            }
        }
        Ok(reservations)
    }

    /// The same for an update.
    pub async fn before_update(
        &self,
        storage: &Arc<Storage>,
        resource: &Resource,
        subresource: &str,
        new: &mut Value,
        old: &Value,
        dry_run: bool,
    ) -> StatusResult<Reservations> {
        let mut reservations = Reservations::default();
        for hook in self.0.iter().filter(|h| h.handles(resource, subresource)) {
            match hook.before_update(storage, resource, new, old, dry_run).await {
                Ok(reservation) => reservations.0.extend(reservation),
                Err(status) => {
                    reservations.finish(false).await;
                    return Err(status);
                }
            }
        }
        Ok(reservations)
    }

    pub async fn after_delete(&self, storage: &Arc<Storage>, resource: &Resource, object: &Value) {
        for hook in self.0.iter().filter(|h| h.handles(resource, "")) {
            hook.after_delete(storage, resource, object).await;
        }
    }
}
