//! Persistent volume claims, and the volumes that are shown for them.
//!
//! A claim is bound on the host. The virtual cluster shows a volume of the same name that nobody can mount: it says that the
//! claim is bound and nothing about the host's storage.

use apimachinery::{Value, json};

use crate::diff::{present, put};
use crate::kind::{self, Kind};
use crate::metadata::{
    self, MANAGED_BY_LABEL, MetadataRules, SKIP_TRANSLATE_ANNOTATION, annotation, is_deleting, uid_of,
};
use crate::names::NamespacedName;
use crate::plan::{Action, LastSeen};
use crate::selectors::host_selector;
use crate::types::{Context, Desired, Refusal, ToHost, check_class, object};

/// Written by the host's volume controllers, read by the tenant's tools.
const BIND_ANNOTATIONS: [&str; 4] = [
    "pv.kubernetes.io/bind-completed",
    "pv.kubernetes.io/bound-by-controller",
    "volume.beta.kubernetes.io/storage-provisioner",
    "volume.kubernetes.io/storage-provisioner",
];
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const OLD_CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const EXCLUDED: [&str; 5] =
    [BIND_ANNOTATIONS[0], BIND_ANNOTATIONS[1], BIND_ANNOTATIONS[2], BIND_ANNOTATIONS[3], SELECTED_NODE];

/// Annotations of a claim that stay on their side. Which node a virtual scheduler has chosen, the host's provisioners must know.
fn excluded(ctx: &Context<'_>) -> &'static [&'static str] {
    if ctx.settings.virtual_scheduler && ctx.facts.node_exists { &BIND_ANNOTATIONS } else { &EXCLUDED }
}

pub const FAKE_VOLUME_LABEL: &str = "vcluster.loft.sh/fake-pv";

pub struct Claims;

fn class_of(claim: &Value) -> &str {
    match claim.str_at(&["spec", "storageClassName"]) {
        "" => annotation(claim, OLD_CLASS_ANNOTATION),
        class => class,
    }
}

impl ToHost for Claims {
    fn kind(&self) -> &Kind {
        &kind::PERSISTENT_VOLUME_CLAIM
    }

    fn wanted(&self, _claim: &Value, ctx: &Context<'_>) -> bool {
        ctx.settings.persistent_volume_claims
    }

    fn replaces_older(&self) -> bool {
        // The data of a claim outlives a restored or migrated virtual cluster.
        false
    }

    fn host_gone(&self, claim: &Value, last: &LastSeen) -> Option<Vec<Action>> {
        (last.on_host && !is_deleting(claim)).then(|| vec![Action::delete_virtual(claim, Some(0))])
    }

    fn deleting(&self, claim: &Value, host: &Value, _ctx: &Context<'_>) -> Option<Vec<Action>> {
        Some(match (is_deleting(claim), is_deleting(host)) {
            (false, true) => vec![Action::delete_virtual(claim, Some(30))],
            (true, false) => vec![Action::delete_host(host, None, "the virtual claim is being deleted")],
            _ => Vec::new(),
        })
    }

    fn translate(&self, claim: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        let settings = ctx.settings;
        let names = ctx.names;
        let namespace = claim.str_at(&["metadata", "namespace"]);
        let what = format!("persistent volume claim \"{}\"", claim.str_at(&["metadata", "name"]));
        let class = class_of(claim).to_owned();
        let import = &settings.import_storage_classes;
        check_class(ctx, &what, "StorageClass", &class, import, "sync.fromHost.storageClasses.selector")?;

        let mut host = object(self.kind(), ctx.metadata(claim, self.kind(), excluded(ctx)));
        host["spec"] = claim["spec"].clone();
        if settings.storage_classes && !class.is_empty() {
            host["spec"]["storageClassName"] = kind::STORAGE_CLASS.cluster_name_on_host(names, &class).into();
            host.remove_at(&["metadata", "annotations", OLD_CLASS_ANNOTATION]);
        }
        let translate_class = annotation(claim, SKIP_TRANSLATE_ANNOTATION) != "true";
        if settings.persistent_volumes {
            if let Some(selector) = present(claim, &["spec", "selector"]) {
                // Volumes of this cluster only: labels of the host's own are anybody's guess.
                let mut selector = host_selector(selector, names);
                selector["matchLabels"].make_object().insert(MANAGED_BY_LABEL, names.cluster_marker().into());
                host["spec"]["selector"] = selector;
            }
            let volume = claim.str_at(&["spec", "volumeName"]);
            if !volume.is_empty() {
                host["spec"]["volumeName"] = kind::PERSISTENT_VOLUME.cluster_name_on_host(names, volume).into();
            }
            let is_static = present(claim, &["spec", "selector"]).is_some() || !volume.is_empty();
            if is_static && translate_class && !settings.storage_classes && !class.is_empty() {
                host["spec"]["storageClassName"] = kind::STORAGE_CLASS.cluster_name_on_host(names, &class).into();
            }
        } else {
            // A volume name of the tenant's choice would bind a volume of the host that is not the tenant's.
            host.remove_at(&["spec", "volumeName"]);
            host.remove_at(&["spec", "selector"]);
        }
        for member in ["dataSource", "dataSourceRef"] {
            let Some(source) = host.at_mut(&["spec", member]).filter(|s| !s.is_null()) else { continue };
            if source.str_at(&["kind"]) == "PersistentVolumeClaim" {
                let of = match source.str_at(&["namespace"]) {
                    "" => namespace.to_owned(),
                    other => other.to_owned(),
                };
                let target =
                    kind::PERSISTENT_VOLUME_CLAIM.host_name(names, &NamespacedName::new(of, source.str_at(&["name"])));
                source["name"] = target.name.into();
                if source.get("namespace").is_some() {
                    source["namespace"] = target.namespace.into();
                }
            } else if !source.str_at(&["namespace"]).is_empty() {
                return Err(Refusal::error(format!(
                    "spec.{member}.namespace: only persistent volume claims can be referred to in another namespace"
                )));
            }
        }
        Ok((host, Vec::new()))
    }

    fn reconcile(&self, claim: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>) -> Result<Desired, Refusal> {
        let mut new_virtual = claim.clone();
        let mut new_host = host.clone();
        for member in [
            ["spec", "resources", "requests"].as_slice(),
            &["spec", "resources", "limits"],
            &["spec", "volumeAttributesClassName"],
        ] {
            if let Some(value) = present(claim, member) {
                put(&mut new_host, member, Some(value.clone()));
            }
        }
        let rules = MetadataRules { excluded: excluded(ctx), down_only: false };
        let kind = self.kind();
        let host_only =
            metadata::sync_metadata(&mut new_virtual, &mut new_host, kind, ctx.names, rules, Some(&last.host_only));
        for key in BIND_ANNOTATIONS {
            let value = annotation(host, key);
            if !value.is_empty() {
                metadata::put_annotation(&mut new_virtual, key, value);
            }
        }
        if let Some(status) = host.get("status").filter(|s| !s.is_null()) {
            let mut status = status.clone();
            let (from, to) = (metadata::name_of(host), metadata::name_of(claim));
            for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
                let message = ctx.names.to_virtual_text(condition.str_at(&["message"]), Some((&from, &to)));
                if condition.get("message").is_some() {
                    condition["message"] = message.into();
                }
            }
            new_virtual["status"] = status;
        }
        let seen = LastSeen { on_host: true, host_only };
        let host_volume = match &ctx.facts.volume {
            Some(volume) => volume.as_str(),
            None if ctx.settings.persistent_volumes => "",
            None => host.str_at(&["spec", "volumeName"]),
        };
        if !host_volume.is_empty() {
            let shown = claim.str_at(&["spec", "volumeName"]);
            if shown.is_empty() {
                new_virtual["spec"]["volumeName"] = host_volume.into();
            } else if shown != host_volume {
                return Ok(Desired {
                    virtual_: claim.clone(),
                    host: new_host,
                    actions: vec![
                        Action::Warn {
                            reason: "VolumeNameDiffers",
                            message: format!(
                                "recreate persistent volume claim because volumeName differs between physical and \
                                 virtual pvc: {shown} != {host_volume}"
                            ),
                        },
                        Action::RecreateVirtual(recreated(&new_virtual, host_volume)),
                    ],
                    seen,
                });
            }
        }
        Ok(Desired { virtual_: new_virtual, host: new_host, actions: Vec::new(), seen })
    }
}

fn recreated(claim: &Value, volume: &str) -> Value {
    let mut new = claim.clone();
    let metadata = new["metadata"].make_object();
    for member in ["uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "finalizers"] {
        metadata.remove(member);
    }
    new["spec"]["volumeName"] = volume.into();
    new.remove_at(&["status"]);
    new
}

/// The volume that is shown for a bound virtual claim.
pub fn fake_volume(claim: &Value) -> Value {
    let mut volume = object(
        &kind::PERSISTENT_VOLUME,
        json!({
            "name": (claim.str_at(&["spec", "volumeName"])),
            "labels": {FAKE_VOLUME_LABEL: "true"},
            "annotations": {
                "kubernetes.io/createdby": "fake-pv-provisioner",
                "pv.kubernetes.io/bound-by-controller": "true",
                "pv.kubernetes.io/provisioned-by": "fake-pv-provisioner",
            },
        }),
    );
    volume["spec"] = json!({
        "flexVolume": {"driver": "fake"},
        "capacity": (present(claim, &["status", "capacity"])
            .or(present(claim, &["spec", "resources", "requests"])).cloned().unwrap_or_default()),
        "accessModes": (claim["spec"]["accessModes"].clone()),
        "claimRef": {
            "kind": "PersistentVolumeClaim",
            "apiVersion": "v1",
            "namespace": (claim.str_at(&["metadata", "namespace"])),
            "name": (claim.str_at(&["metadata", "name"])),
            "uid": (uid_of(claim)),
            "resourceVersion": (claim.str_at(&["metadata", "resourceVersion"])),
        },
        "persistentVolumeReclaimPolicy": "Delete",
    });
    for member in ["storageClassName", "volumeMode"] {
        if let Some(value) = claim.at(&["spec", member]).filter(|v| !v.is_null()) {
            volume["spec"][member] = value.clone();
        }
    }
    volume
}
