//! The steps of a plan, one after the other.

use std::sync::atomic::Ordering;
use std::time::Duration;

use apimachinery::patch::merge;
use apimachinery::{Value, json};
use informer::{ApiError, Outcome};

use super::{Engine, SyncError, TypeState, tokens};
use crate::diff::present;
use crate::kind;
use crate::metadata::{LAST_SYNCED_ANNOTATION, LastSynced, Owner, owner, uid_of};
use crate::names::NamespacedName;
use crate::plan::{Action, RECREATE_ANNOTATION};
use crate::types::Context;

/// The minor version of Kubernetes whose fields the virtual clusters have: such hosts drop none.
const NEWEST_HOST: u32 = 36;
/// So many dropped fields are named.
const DROPPED_MAX: usize = 8;

impl Engine {
    pub(super) async fn execute(
        &self,
        ty: &TypeState,
        key: &NamespacedName,
        host_name: &NamespacedName,
        virtual_: Option<&Value>,
        host: Option<&Value>,
        actions: Vec<Action>,
    ) -> Result<Outcome, SyncError> {
        let kind = ty.ty.kind();
        let metrics = &ty.metrics;
        let count = |counter: &std::sync::atomic::AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let mut host_now = host.cloned();
        let mut again: Option<Duration> = None;
        for action in actions {
            match action {
                Action::CreateHost(object) => {
                    count(&metrics.host_creates);
                    match self.host_side.create(kind, &object).await {
                        Ok(made) => {
                            if let Some(virtual_) = virtual_ {
                                self.note_unknown(ty, host_name, virtual_, &object, &made).await?;
                                self.tell_dropped(ty, virtual_, &object, &made);
                            }
                            host_now = Some(made);
                        }
                        Err(error) if error.is_already_exists() => {
                            return self.name_taken(ty, key, host_name, virtual_).await;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Action::PatchHost { patch, subresource } => {
                    if self.host_side.is_futile(kind, host_name, subresource, &patch) {
                        continue;
                    }
                    count(&metrics.host_patches);
                    let made = match &host_now {
                        Some(host) if subresource.is_empty() => {
                            self.host_side.change(kind, host_name, host, &patch).await?
                        }
                        _ => self.host_side.patch(kind, host_name, subresource, &patch).await?,
                    };
                    if made.str_at(&["kind"]) == kind.kind {
                        self.host_side.note_outcome(kind, host_name, subresource, &patch, &made);
                        let sent = host_now.as_ref().map(|h| merge::apply(h, &patch));
                        if let (Some(sent), Some(virtual_)) = (sent, virtual_) {
                            self.note_unknown(ty, host_name, virtual_, &sent, &made).await?;
                        }
                        host_now = Some(made);
                    }
                }
                Action::DeleteHost { uid, grace_period_seconds, why } => {
                    count(&metrics.host_deletes);
                    tracing::debug!(kind = %kind.kind, host = %host_name, why, "deleting host object");
                    self.host_side.delete(kind, host_name, &uid, grace_period_seconds).await?;
                }
                Action::PatchVirtual { patch, subresource } => {
                    if self.virtual_side.is_futile(kind, key, subresource, &patch) {
                        continue;
                    }
                    count(&metrics.virtual_writes);
                    let made = self.virtual_side.patch(kind, key, subresource, &patch).await?;
                    self.virtual_side.note_outcome(kind, key, subresource, &patch, &made);
                }
                Action::DeleteVirtual { uid, grace_period_seconds } => {
                    count(&metrics.virtual_writes);
                    self.virtual_side.delete(kind, key, &uid, grace_period_seconds).await?;
                }
                Action::CreateVirtual(object) => {
                    count(&metrics.virtual_writes);
                    match self.virtual_side.create(kind, &object).await {
                        Err(error) if !error.is_already_exists() => return Err(error.into()),
                        _ => {}
                    }
                }
                Action::RecreateVirtual(object) => {
                    let Some(virtual_) = virtual_ else { continue };
                    self.recreate(ty, key, host_name, virtual_, host_now.as_ref(), object).await?;
                }
                Action::Readdress { spec } => {
                    let Some(virtual_) = virtual_ else { continue };
                    self.readdress(ty, key, virtual_, &spec).await?;
                }
                Action::BindVirtual { node } => {
                    if !self.ensure_node(&node).await? {
                        again = Some(Engine::NODE_WAIT);
                        continue;
                    }
                    count(&metrics.virtual_writes);
                    let binding = json!({
                        "apiVersion": "v1", "kind": "Binding",
                        "metadata": {
                            "name": (key.name.as_str()), "namespace": (key.namespace.as_str()),
                            "uid": (virtual_.map_or("", uid_of)),
                        },
                        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
                    });
                    self.virtual_side.subresource(kind, key, "binding", &binding).await?;
                    self.virtual_side.forget(kind, key);
                }
                Action::WriteTokens(plan) => {
                    let (Some(pod), Some(host_pod)) = (virtual_, host_now.as_ref()) else { continue };
                    let now = self.clock.now();
                    tokens::write(&self.virtual_side, &self.host_side, &self.names, pod, host_pod, &plan, now).await?;
                }
                Action::Warn { reason, message } => {
                    if let Some(virtual_) = virtual_ {
                        self.warn(kind, virtual_, reason, &message);
                    }
                }
                Action::Clash { host } => {
                    self.report_clash(ty, virtual_, &host);
                    again = Some(Duration::from_secs(60));
                }
                Action::Again { seconds } => {
                    let wait = Duration::from_secs(seconds);
                    again = Some(again.map_or(wait, |known| known.min(wait)));
                }
            }
        }
        Ok(again.map_or(Outcome::Done, Outcome::After))
    }

    /// Fields that the host does not know: it drops them, which must not look like an edit of the host that removes them.
    /// The host object says which ones, and the tenant is told.
    async fn note_unknown(
        &self,
        ty: &TypeState,
        host_name: &NamespacedName,
        virtual_: &Value,
        sent: &Value,
        made: &Value,
    ) -> Result<(), SyncError> {
        let dropped: Vec<_> = ty
            .ty
            .two_way_fields()
            .into_iter()
            .filter(|(_, path)| {
                // What the virtual API server dropped too belongs to another type of object.
                let there = |object| present(object, path).is_some();
                there(virtual_) && there(sent) && !there(made)
            })
            .collect();
        if dropped.is_empty() {
            return Ok(());
        }
        let mut synced = LastSynced::of(made);
        for (field, _) in &dropped {
            synced.set_unknown(field);
        }
        let note = json!({"metadata": {"annotations": {LAST_SYNCED_ANNOTATION: (synced.encode())}}});
        self.host_side.change(ty.ty.kind(), host_name, made, &note).await?;
        let names: Vec<String> = dropped.iter().map(|(_, path)| path.join(".")).collect();
        let message = format!("the host does not know {}: not synced", names.join(", "));
        self.warn(ty.ty.kind(), virtual_, "SyncWarning", &message);
        Ok(())
    }

    /// Tells what an older host left out of a new object, beyond the fields of [`Engine::note_unknown`].
    fn tell_dropped(&self, ty: &TypeState, virtual_: &Value, sent: &Value, made: &Value) {
        if !self.settings.host_older_than(NEWEST_HOST) {
            return;
        }
        let told: Vec<String> = ty.ty.two_way_fields().into_iter().map(|(_, path)| path.join(".")).collect();
        let mut dropped = crate::diff::dropped(sent, made, "spec");
        dropped.retain(|path| !told.contains(path));
        if dropped.is_empty() {
            return;
        }
        let more = if dropped.len() > DROPPED_MAX { " and others" } else { "" };
        dropped.truncate(DROPPED_MAX);
        let message = format!("the host does not know {}{more}: not synced", dropped.join(", "));
        self.warn(ty.ty.kind(), virtual_, "SyncWarning", &message);
    }

    /// The name is in use on the host: by our own object that the cache does not have yet, or by somebody else's.
    async fn name_taken(
        &self,
        ty: &TypeState,
        key: &NamespacedName,
        host_name: &NamespacedName,
        virtual_: Option<&Value>,
    ) -> Result<Outcome, SyncError> {
        let kind = ty.ty.kind();
        let existing = self.host_side.read(kind, host_name).await?;
        match owner(&existing, kind, &self.names) {
            Owner::Ours { name, .. } if name == *key => {
                self.host_side.remember(kind, host_name, &existing);
                Ok(Outcome::After(Duration::from_millis(10)))
            }
            _ => {
                self.report_clash(ty, virtual_, host_name);
                Ok(Outcome::After(Duration::from_secs(60)))
            }
        }
    }

    fn report_clash(&self, ty: &TypeState, virtual_: Option<&Value>, host: &NamespacedName) {
        ty.metrics.clashes.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(kind = %ty.ty.kind().kind, host = %host, "host name is taken by an object that is not ours");
        if let Some(virtual_) = virtual_ {
            let message = "Error syncing: the name this object would have on the host is taken by another object";
            self.warn(ty.ty.kind(), virtual_, "SyncError", message);
        }
    }

    /// Deletes and creates a virtual object. What it will be is written on the host object first, so that a crash in
    /// between loses nothing.
    async fn recreate(
        &self,
        ty: &TypeState,
        key: &NamespacedName,
        host_name: &NamespacedName,
        virtual_: &Value,
        host: Option<&Value>,
        mut object: Value,
    ) -> Result<(), SyncError> {
        let kind = ty.ty.kind();
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.kind.to_string().into();
        let note = json!({"metadata": {"annotations": {RECREATE_ANNOTATION: (object.to_string())}}});
        match host {
            Some(host) => self.host_side.change(kind, host_name, host, &note).await?,
            None => self.host_side.patch(kind, host_name, "", &note).await?,
        };
        if !virtual_.array_at(&["metadata", "finalizers"]).is_empty() {
            let patch = json!({"metadata": {"uid": (uid_of(virtual_)), "finalizers": null}});
            self.virtual_side.patch(kind, key, "", &patch).await?;
        }
        ty.metrics.virtual_writes.fetch_add(2, Ordering::Relaxed);
        self.virtual_side.delete(kind, key, uid_of(virtual_), Some(0)).await?;
        self.virtual_side.create(kind, &object).await?;
        Ok(())
    }

    /// See [`Action::Readdress`]. What the Service shall be is noted on it with the first step, so that a crash in between
    /// loses nothing.
    async fn readdress(
        &self,
        ty: &TypeState,
        key: &NamespacedName,
        virtual_: &Value,
        spec: &Value,
    ) -> Result<(), SyncError> {
        let kind = ty.ty.kind();
        let [away, back] = crate::types::service::readdress(virtual_, spec);
        ty.metrics.virtual_writes.fetch_add(2, Ordering::Relaxed);
        self.virtual_side.patch(kind, key, "", &away).await?;
        match self.virtual_side.patch(kind, key, "", &back).await {
            // Another virtual Service has the address, for now: any other one, so that both can come to theirs.
            Err(error) if error.is_invalid() => {
                let mut any = back.clone();
                for member in ["clusterIP", "clusterIPs"] {
                    any["spec"][member] = Value::Null;
                }
                self.virtual_side.patch(kind, key, "", &any).await?;
                Err(error.into())
            }
            other => other.map(drop).map_err(SyncError::from),
        }
    }

    pub(super) async fn create_service_on_host(&self, service: &mut Value) -> Result<(), ApiError> {
        let facts = crate::types::Facts::default();
        let owner_reference = self.owner.read().clone();
        let ctx = Context {
            names: &self.names,
            settings: &self.settings,
            owner: owner_reference.as_ref(),
            facts: &facts,
            patches: self.patches(&kind::SERVICE),
            now: self.clock.now(),
        };
        let name = crate::metadata::name_of(service);
        if !self.settings.services || crate::types::service::is_api_server(service) {
            return Ok(());
        }
        let Ok(mut wanted) = crate::types::service::host_first(service, &ctx) else { return Ok(()) };
        let made_at = self.clock.now().as_second().to_string();
        wanted.set_at(&["metadata", "annotations", crate::plan::HOST_FIRST_ANNOTATION], made_at.into());
        let host_name = kind::SERVICE.host_name(&self.names, &name);
        let made = match self.host_side.create(&kind::SERVICE, &wanted).await {
            Ok(made) => made,
            Err(error) if error.is_already_exists() => {
                let existing = self.host_side.read(&kind::SERVICE, &host_name).await?;
                match owner(&existing, &kind::SERVICE, &self.names) {
                    Owner::Ours { name: of, .. } if of == name => existing,
                    // The engine reports it on the object once that exists.
                    _ => return Ok(()),
                }
            }
            Err(ApiError::Status { code, reason, message, details, retry_after }) => {
                let message = self.names.to_virtual_text(&message, Some((&host_name, &name)));
                return Err(ApiError::Status { code, reason, message, details, retry_after });
            }
            Err(error) => return Err(error),
        };
        crate::types::service::adopt(service, &made);
        Ok(())
    }
}
