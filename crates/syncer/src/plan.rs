//! From what is to what to do: the decision, without I/O.
//!
//! Level-triggered: the input is the two objects as they are, never an event. Running it again after its actions were
//! executed gives no actions.
//!
//! Invariants:
//! - A host object that is not ours ([`crate::metadata::owner`]) gets no action but a warning to the tenant.
//! - Every deletion carries the uid that was looked at.

use apimachinery::{Map, Value};

use crate::diff::{merge_patch, split_status};
use crate::metadata::{
    HostOnlyKeys, IMPORTED_ANNOTATION, MANAGED_BY_LABEL, NAMESPACE_LABEL, Owner, annotation, is_deleting, owner, uid_of,
};
use crate::types::{Context, Refusal, ToHost};

/// On a host object: the virtual object that is being created again in place of the deleted one.
pub const RECREATE_ANNOTATION: &str = "alcove.dev/recreate";
/// On a virtual Service whose address is being changed: the spec it had, to be put back with the new address.
pub const READDRESS_ANNOTATION: &str = "alcove.dev/readdress";
/// On a host Service that was made before its virtual one: when, in seconds since 1970.
pub const HOST_FIRST_ANNOTATION: &str = "alcove.dev/host-first";
/// A virtual object that does not appear within this time after its host object was refused or forgotten.
const HOST_FIRST_SECONDS: i64 = 30;

/// What is remembered about an object between two runs, for as long as the process lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastSeen {
    /// Both sides were there for this very virtual object.
    pub on_host: bool,
    pub host_only: HostOnlyKeys,
}

/// One step. Steps of one plan are executed in order; the first failure ends the run.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    CreateHost(Value),
    /// A JSON merge patch; carries the uid.
    PatchHost {
        patch: Value,
        subresource: &'static str,
    },
    DeleteHost {
        uid: String,
        grace_period_seconds: Option<i64>,
        why: &'static str,
    },
    PatchVirtual {
        patch: Value,
        subresource: &'static str,
    },
    DeleteVirtual {
        uid: String,
        grace_period_seconds: Option<i64>,
    },
    /// Finishes what [`Action::RecreateVirtual`] began.
    CreateVirtual(Value),
    /// Deletes the virtual object and creates this one in its place: for fields that cannot be changed.
    RecreateVirtual(Value),
    /// Gives a virtual Service these addresses (the spec it shall have). An address cannot be changed, so the Service is
    /// without one for a moment; it is the same object before and after.
    Readdress {
        spec: Value,
    },
    /// Makes sure the node exists in the virtual cluster and binds the pod to it.
    BindVirtual {
        node: String,
    },
    /// Requests the tokens and writes them to the pod's host Secret.
    WriteTokens(TokenPlan),
    /// A warning on the virtual object.
    Warn {
        reason: &'static str,
        message: String,
    },
    /// The name is taken on the host by somebody else's object.
    Clash {
        host: crate::names::NamespacedName,
    },
    /// Look again later.
    Again {
        seconds: u64,
    },
}

/// The tokens a pod mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPlan {
    pub service_account: String,
    pub tokens: Vec<TokenRequest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// Key in the Secret.
    pub key: String,
    pub audiences: Vec<String>,
    pub expiration_seconds: i64,
}

impl Action {
    pub fn delete_virtual(virtual_: &Value, grace_period_seconds: Option<i64>) -> Action {
        Action::DeleteVirtual { uid: uid_of(virtual_).to_owned(), grace_period_seconds }
    }

    pub fn delete_host(host: &Value, grace_period_seconds: Option<i64>, why: &'static str) -> Action {
        Action::DeleteHost { uid: uid_of(host).to_owned(), grace_period_seconds, why }
    }
}

/// What to do for one object. `seen` is remembered for the next call.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub seen: LastSeen,
}

impl Plan {
    fn only(action: Action) -> Plan {
        Plan { actions: vec![action], seen: LastSeen::default() }
    }
}

fn refused(refusal: Refusal) -> Action {
    match refusal {
        Refusal::Never { reason, message } => Action::Warn { reason, message },
        Refusal::NotYet { retry_seconds, .. } => Action::Again { seconds: retry_seconds },
    }
}

/// Decides what to do about one virtual object and its host object.
pub fn plan(
    ty: &dyn ToHost,
    virtual_: Option<&Value>,
    host: Option<&Value>,
    last: &LastSeen,
    ctx: &Context<'_>,
) -> Plan {
    match (virtual_, host) {
        (None, None) => Plan::default(),
        (None, Some(host)) => match owner(host, ty.kind(), ctx.names) {
            Owner::Ours { .. } if !is_deleting(host) => plan_host_only(host, ctx),
            Owner::Ours { .. } | Owner::Foreign => Plan::default(),
        },
        (Some(virtual_), None) => plan_virtual_only(ty, virtual_, last, ctx),
        (Some(virtual_), Some(host)) => plan_both(ty, virtual_, host, last, ctx),
    }
}

/// Made on the host by somebody else and shown to the tenant: never deleted here.
fn is_imported(host: &Value) -> bool {
    annotation(host, IMPORTED_ANNOTATION) == "true"
}

/// Takes the markers off an imported host object: it is nobody's again.
fn release(host: &Value) -> Action {
    let mut annotations = Map::new();
    for (key, _) in crate::metadata::string_map(host.at(&["metadata", "annotations"])) {
        if crate::metadata::is_marker_annotation(key) {
            annotations.insert(key, Value::Null);
        }
    }
    let labels = apimachinery::json!({(MANAGED_BY_LABEL): null, (NAMESPACE_LABEL): null});
    let metadata = apimachinery::json!({"uid": (uid_of(host)), "labels": labels, "annotations": annotations});
    Action::PatchHost { patch: apimachinery::json!({ "metadata": metadata }), subresource: "" }
}

fn plan_host_only(host: &Value, ctx: &Context<'_>) -> Plan {
    if is_imported(host) {
        return Plan::only(release(host));
    }
    if let Ok(object @ Value::Object(_)) = Value::from_slice(annotation(host, RECREATE_ANNOTATION).as_bytes()) {
        return Plan::only(Action::CreateVirtual(object));
    }
    let made: i64 = annotation(host, HOST_FIRST_ANNOTATION).parse().unwrap_or(0);
    let age = ctx.now.as_second() - made;
    if made > 0 && age < HOST_FIRST_SECONDS {
        return Plan::only(Action::Again { seconds: (HOST_FIRST_SECONDS - age).max(1) as u64 });
    }
    Plan::only(Action::delete_host(host, None, "the virtual object was deleted"))
}

fn plan_virtual_only(ty: &dyn ToHost, virtual_: &Value, last: &LastSeen, ctx: &Context<'_>) -> Plan {
    if let Some(actions) = ty.host_gone(virtual_, last) {
        return Plan { actions, seen: last.clone() };
    }
    if is_deleting(virtual_) || !ty.wanted(virtual_, ctx) {
        return Plan::default();
    }
    let namespace = virtual_.str_at(&["metadata", "namespace"]);
    if ctx.settings.mapped_namespaces_only && !namespace.is_empty() && ctx.names.mapped_namespace(namespace).is_none() {
        // Every namespace has some of these: saying so each time helps nobody.
        let silent = matches!(ty.kind().kind.as_ref(), "ConfigMap" | "Secret" | "ServiceAccount" | "Endpoints");
        let message = format!("did not sync to host because no mapping covers namespace {namespace:?}");
        let warning = Action::Warn { reason: "SyncWarning", message };
        return Plan { actions: if silent { Vec::new() } else { vec![warning] }, seen: last.clone() };
    }
    match translated(ty, virtual_, ctx) {
        Ok((host, more)) => {
            let mut actions = vec![Action::CreateHost(host)];
            actions.extend(more);
            Plan { actions, seen: last.clone() }
        }
        Err(refusal) => Plan { actions: vec![refused(refusal)], seen: last.clone() },
    }
}

/// The type's translation with the configuration's patches.
fn translated(ty: &dyn ToHost, virtual_: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
    let (mut host, more) = ty.translate(virtual_, ctx)?;
    crate::patches::apply_to_host(ctx.patches, virtual_, &mut host, ctx)?;
    Ok((host, more))
}

fn reconciled(
    ty: &dyn ToHost,
    virtual_: &Value,
    host: &Value,
    last: &LastSeen,
    ctx: &Context<'_>,
) -> Result<crate::types::Desired, Refusal> {
    if ctx.patches.is_empty() {
        return ty.reconcile(virtual_, host, last, ctx);
    }
    let (plain, _) = ty.translate(virtual_, ctx)?;
    let mut patched = plain.clone();
    crate::patches::apply_to_host(ctx.patches, virtual_, &mut patched, ctx)?;
    let translations = crate::patches::Translations { plain: &plain, patched: &patched };
    let seen = crate::patches::without_patches(ctx.patches, &translations, virtual_, host, ctx)?;
    let mut desired = ty.reconcile(virtual_, &seen, last, ctx)?;
    crate::patches::put_patches(ctx.patches, &translations, virtual_, host, &mut desired, ctx)?;
    Ok(desired)
}

fn plan_both(ty: &dyn ToHost, virtual_: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>) -> Plan {
    let source_uid = match owner(host, ty.kind(), ctx.names) {
        // Not synced, so nothing is in the way: the host makes Endpoints for a synced Service under the same name.
        Owner::Foreign if !ty.wanted(virtual_, ctx) => return Plan { actions: Vec::new(), seen: last.clone() },
        Owner::Foreign => return Plan::only(Action::Clash { host: crate::metadata::name_of(host) }),
        // Two virtual names can have one host name: then the object belongs to the other one.
        Owner::Ours { name, .. } if name != crate::metadata::name_of(virtual_) => {
            return Plan::only(Action::Clash { host: crate::metadata::name_of(host) });
        }
        Owner::Ours { uid, .. } => uid,
    };
    if ty.replaces_older() && !source_uid.is_empty() && source_uid != uid_of(virtual_) {
        let actions = if is_deleting(host) {
            Vec::new()
        } else {
            vec![Action::delete_host(host, None, "the virtual object was deleted and created again")]
        };
        return Plan { actions, seen: LastSeen::default() };
    }
    let seen = LastSeen { on_host: true, host_only: last.host_only.clone() };
    if is_deleting(virtual_) || is_deleting(host) {
        let actions = ty.deleting(virtual_, host, ctx).unwrap_or_else(|| {
            if is_deleting(virtual_) && !is_deleting(host) && is_imported(host) {
                vec![release(host)]
            } else if is_deleting(virtual_) && !is_deleting(host) {
                vec![Action::delete_host(host, None, "the virtual object is being deleted")]
            } else {
                Vec::new()
            }
        });
        return Plan { actions, seen };
    }
    if !ty.wanted(virtual_, ctx) && !is_imported(host) {
        return Plan {
            actions: vec![Action::delete_host(host, None, "the object is not used any more")],
            seen: LastSeen::default(),
        };
    }
    match reconciled(ty, virtual_, host, last, ctx) {
        Ok(mut desired) => {
            let mut actions = Vec::new();
            if !desired.actions.iter().any(|a| matches!(a, Action::RecreateVirtual(_))) {
                for note in [RECREATE_ANNOTATION, HOST_FIRST_ANNOTATION] {
                    desired.host.remove_at(&["metadata", "annotations", note]);
                }
            }
            // A pod has its node before it has a status from there.
            let (first, rest): (Vec<Action>, Vec<Action>) =
                desired.actions.drain(..).partition(|a| matches!(a, Action::BindVirtual { .. }));
            actions.extend(first);
            push_patches(&mut actions, host, &desired.host, |patch, subresource| Action::PatchHost {
                patch,
                subresource,
            });
            push_patches(&mut actions, virtual_, &desired.virtual_, |patch, subresource| Action::PatchVirtual {
                patch,
                subresource,
            });
            actions.extend(rest);
            // What is taken away here was not taken away by the host.
            let on_host = !actions.iter().any(|a| matches!(a, Action::DeleteHost { .. }));
            Plan { actions, seen: LastSeen { on_host, ..desired.seen } }
        }
        Err(refusal) => Plan { actions: vec![refused(refusal)], seen },
    }
}

fn has_list(patch: &Value) -> bool {
    match patch {
        Value::Array(_) => true,
        Value::Object(map) => map.values().any(has_list),
        _ => false,
    }
}

/// The patches that make `from` into `to`, each with the uid of the object that was looked at.
pub fn push_patches(
    actions: &mut Vec<Action>,
    from: &Value,
    to: &Value,
    action: impl Fn(Value, &'static str) -> Action,
) {
    let Some(patch) = merge_patch(from, to) else { return };
    let (main, status) = split_status(patch);
    for (patch, subresource) in [(main, ""), (status, "status")] {
        let Some(mut patch) = patch else { continue };
        let lists = has_list(&patch);
        let metadata = patch.make_object().get_or_insert_with("metadata", || Value::Object(Map::new()));
        // A patch for an object that was replaced meanwhile must fail.
        metadata.make_object().insert("uid", uid_of(from).into());
        // A list is replaced as a whole: what somebody else put into it meanwhile must not get lost.
        let version = from.str_at(&["metadata", "resourceVersion"]);
        if lists && !version.is_empty() {
            metadata.make_object().insert("resourceVersion", version.into());
        }
        actions.push(action(patch, subresource));
    }
}
