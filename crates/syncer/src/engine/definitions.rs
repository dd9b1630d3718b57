//! Kinds that a CustomResourceDefinition of the host makes known: the definition is taken over into the virtual cluster,
//! and when its API server serves it, syncing of the kind starts.
//!
//! Invariant: a definition that the tenant made is not changed. It is used when it serves the version that is needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use apimachinery::Value;
use informer::{Informer, ObjectKey, Outcome, RawObject, Source};

use super::imports::ImportedKind;
use super::side::resource;
use super::{Engine, SyncError, TypeState, start};
use crate::diff::merge_patch;
use crate::kind::{self, GATEWAY_GROUP, Kind, Naming};
use crate::metadata::annotation;
use crate::names::NamespacedName;
use crate::settings::{CustomKind, Import, ImportMapping, Settings};
use crate::types::classes::IMPORTED_FROM_ANNOTATION;
use crate::types::custom::Custom;
use crate::types::definition::{is_established, version, virtual_definition};
use crate::types::gateway::{GatewayKind, GatewayType};

/// What a kind is needed for.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// Objects go to the host.
    Custom,
    Gateway(GatewayType),
    /// The kind has to exist in the virtual cluster, for what others refer to.
    Known,
    /// Objects of the host are shown.
    Import {
        import: Import,
        mappings: Vec<ImportMapping>,
    },
    /// Gateways of the host are shown.
    ImportGateways,
}

pub struct Needed {
    pub kind: CustomKind,
    preferred: &'static [&'static str],
    pub purpose: Purpose,
}

/// A needed kind with the definitions of both sides.
pub struct Definition {
    pub needed: Needed,
    host: Informer<RawObject>,
    virtual_: Informer<RawObject>,
    started: AtomicBool,
    /// Looked at, and not to be had as things are.
    unavailable: AtomicBool,
}

fn gateway_kind(plural: &str, preferred: &'static [&'static str], purpose: Purpose) -> Needed {
    let kind = CustomKind { plural: plural.into(), group: GATEWAY_GROUP.into(), version: None };
    Needed { kind, preferred, purpose }
}

fn gateway_type(what: GatewayType) -> Needed {
    gateway_kind(what.plural(), what.versions(), Purpose::Gateway(what))
}

/// Everything the settings need that is not built into API servers.
pub fn needed(settings: &Settings) -> Vec<Needed> {
    let mut out = Vec::new();
    for kind in &settings.custom_resources {
        out.push(Needed { kind: kind.clone(), preferred: &[], purpose: Purpose::Custom });
    }
    for import in &settings.import_custom_resources {
        let purpose =
            Purpose::Import { import: Import::On(apimachinery::json!({})), mappings: import.mappings.clone() };
        out.push(Needed { kind: import.kind.clone(), preferred: &[], purpose });
    }
    let gateway = &settings.gateway_api;
    let imports_gateways = settings.import_gateways.is_some();
    if settings.import_gateway_classes.is_on() {
        let import = settings.import_gateway_classes.clone();
        out.push(gateway_kind("gatewayclasses", &["v1"], Purpose::Import { import, mappings: Vec::new() }));
    } else if gateway.gateways {
        out.push(gateway_kind("gatewayclasses", &["v1"], Purpose::Known));
    }
    if gateway.gateways {
        out.push(gateway_type(GatewayType::Gateway));
    } else if gateway.is_on() && !imports_gateways {
        out.push(gateway_kind("gateways", &["v1"], Purpose::Known));
    }
    if imports_gateways {
        out.push(gateway_kind("gateways", &["v1"], Purpose::ImportGateways));
    }
    for (on, what) in [
        (gateway.http_routes, GatewayType::HttpRoute),
        (gateway.tls_routes, GatewayType::TlsRoute),
        (gateway.grpc_routes, GatewayType::GrpcRoute),
        (gateway.tcp_routes, GatewayType::TcpRoute),
        (gateway.udp_routes, GatewayType::UdpRoute),
        (gateway.backend_tls_policies, GatewayType::BackendTlsPolicy),
    ] {
        if on {
            out.push(gateway_type(what));
        }
    }
    if gateway.reference_grants {
        out.push(gateway_type(GatewayType::ReferenceGrant));
    } else if gateway.is_on() {
        let what = GatewayType::ReferenceGrant;
        out.push(gateway_kind(what.plural(), what.versions(), Purpose::Known));
    }
    out
}

fn cached(cache: &Informer<RawObject>, name: &str) -> Option<Value> {
    cache.get(&ObjectKey::cluster(name)).and_then(|o| o.to_tree().ok())
}

impl Engine {
    /// Watches the definitions of both sides, one by one: a tenant's host rights name them.
    pub(super) fn watch_definitions(&self) -> Vec<Definition> {
        let mut out = Vec::new();
        for (n, needed) in needed(&self.settings).into_iter().enumerate() {
            let watch = |side: &super::side::Side| {
                let source = Source::all(resource(&kind::CUSTOM_RESOURCE_DEFINITION));
                let source = source.fields(format!("metadata.name={}", needed.kind.definition()));
                let cache = side.factory.informer::<RawObject>(source);
                let queue = self.definition_queue.clone();
                cache.on_change(move |_| queue.add(n));
                cache
            };
            let (host, virtual_) = (watch(&self.host_side), watch(&self.virtual_side));
            out.push(Definition { needed, host, virtual_, started: false.into(), unavailable: false.into() });
        }
        out
    }

    /// Looks at every definition that is needed, whether or not the host has it.
    pub(super) fn enqueue_definitions(&self) {
        (0..self.definitions.get().map_or(0, Vec::len)).for_each(|n| self.definition_queue.add(n));
    }

    /// Whether a kind of the Gateway API is still on its way into the caches. What its objects allow is not known before, and
    /// routes that are on the host must not be taken away for that.
    pub(super) fn gateway_kinds_pending(&self) -> bool {
        let known = |definition: &Definition| {
            definition.started.load(Ordering::Acquire)
                && self
                    .virtual_side
                    .cache_named(&definition.needed.kind.definition())
                    .is_some_and(|cache| cache.has_synced())
                && (!matches!(definition.needed.purpose, Purpose::ImportGateways) || self.host_gateways_known())
        };
        let needed = self.definitions.get().into_iter().flatten();
        let mut gateway = needed.filter(|d| d.needed.kind.group == GATEWAY_GROUP);
        gateway.any(|d| !d.unavailable.load(Ordering::Acquire) && !known(d))
    }

    pub(super) async fn reconcile_definition(self: &Arc<Engine>, n: usize) -> Result<Outcome, SyncError> {
        let Some(definition) = self.definitions.get().and_then(|d| d.get(n)) else { return Ok(Outcome::Done) };
        let name = definition.needed.kind.definition();
        let Some(host) = cached(&definition.host, &name) else {
            tracing::warn!(
                definition = name,
                "the host has no such definition: its objects are not synced until it has"
            );
            definition.unavailable.store(true, Ordering::Release);
            return Ok(Outcome::Done);
        };
        let wanted = definition.needed.kind.version.as_deref();
        let Some(version) = version(&host, wanted, definition.needed.preferred) else {
            tracing::warn!(definition = name, version = wanted, "the host does not serve this version");
            definition.unavailable.store(true, Ordering::Release);
            return Ok(Outcome::Done);
        };
        let version_name = version.str_at(&["name"]).to_owned();
        let key = NamespacedName::new("", name.as_str());
        let made = virtual_definition(&host, version);
        let existing = cached(&definition.virtual_, &name);
        match &existing {
            None => match self.virtual_side.create(&kind::CUSTOM_RESOURCE_DEFINITION, &made).await {
                Err(error) if !error.is_already_exists() => return Err(error.into()),
                _ => return Ok(Outcome::After(Duration::from_millis(50))),
            },
            Some(existing) if annotation(existing, IMPORTED_FROM_ANNOTATION) == "true" => {
                let mut merged = existing.clone();
                merged["spec"]["versions"] = made["spec"]["versions"].clone();
                if let Some(patch) = merge_patch(existing, &merged)
                    && versions_differ(existing, &made)
                {
                    self.virtual_side.patch(&kind::CUSTOM_RESOURCE_DEFINITION, &key, "", &patch).await?;
                }
            }
            Some(existing) => {
                let serves = existing.array_at(&["spec", "versions"]).iter();
                if !serves.into_iter().any(|v| v.str_at(&["name"]) == version_name && v["served"] == true) {
                    tracing::warn!(definition = name, "the tenant's own definition does not serve {version_name}");
                    definition.unavailable.store(true, Ordering::Release);
                    return Ok(Outcome::Done);
                }
            }
        }
        if !existing.as_ref().is_some_and(is_established) {
            return Ok(Outcome::After(Duration::from_millis(200)));
        }
        if definition.started.swap(true, Ordering::AcqRel) {
            return Ok(Outcome::Done);
        }
        let naming = match &definition.needed.purpose {
            Purpose::Custom | Purpose::Gateway(_) => Naming::Namespaced,
            Purpose::Known | Purpose::Import { .. } | Purpose::ImportGateways => Naming::Mirror,
        };
        let kind = Kind {
            group: host.str_at(&["spec", "group"]).to_owned().into(),
            version: version_name.into(),
            kind: host.str_at(&["spec", "names", "kind"]).to_owned().into(),
            plural: host.str_at(&["spec", "names", "plural"]).to_owned().into(),
            namespaced: host.str_at(&["spec", "scope"]) == "Namespaced",
            naming,
        };
        tracing::info!(definition = name, version = %kind.version, "syncing");
        self.start_kind(kind, &definition.needed.purpose);
        Ok(Outcome::Done)
    }

    fn start_kind(self: &Arc<Engine>, kind: Kind, purpose: &Purpose) {
        match purpose {
            Purpose::Known => start::watch_known(self, &kind),
            Purpose::Custom if !kind.namespaced => {
                tracing::warn!(kind = %kind.kind, "only namespaced custom resources can go to the host");
            }
            Purpose::Custom => {
                let name = format!("{}.{}", kind.plural, kind.group);
                start::start_type(self, TypeState::new(name, Box::new(Custom(kind))));
            }
            Purpose::Gateway(what) => {
                let name = kind.plural.to_string();
                start::start_type(self, TypeState::new(name, Box::new(GatewayKind { what: *what, kind })));
            }
            Purpose::Import { import, mappings } => {
                start::start_import(self, ImportedKind::new(kind, import.clone(), mappings.clone()));
            }
            Purpose::ImportGateways => {
                let mappings = self.settings.import_gateways.as_ref().map(|g| g.mappings.clone()).unwrap_or_default();
                // The selector is for Gateways that are not named one by one.
                start::start_import(self, ImportedKind::new(kind, Import::On(apimachinery::json!({})), mappings));
            }
        }
    }
}

/// Defaults that the server fills in are no difference.
fn versions_differ(existing: &Value, made: &Value) -> bool {
    let part = |v: &Value, member: &str| v.array_at(&["spec", "versions"]).first().map(|v| v[member].clone());
    ["name", "schema", "subresources"].iter().any(|m| {
        let (old, new) = (part(existing, m), part(made, m));
        old != new
    })
}
