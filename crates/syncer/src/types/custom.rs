//! Objects of kinds that only the configuration knows: custom resources, resource claims.
//!
//! The spec goes down as it is, names follow the usual rule, the status comes back. What refers to other objects inside the
//! spec needs patches, which say where the references are.

use apimachinery::Value;

use crate::kind::Kind;
use crate::metadata::{self, LastSynced, MetadataRules, hash_value, uid_of};
use crate::plan::{Action, LastSeen};
use crate::types::{Context, Desired, Refusal, ToHost, object};

/// A kind whose objects go to the host.
pub struct Custom(pub Kind);

fn is_content(member: &str) -> bool {
    !matches!(member, "apiVersion" | "kind" | "metadata" | "status")
}

fn content(object: &Value) -> Value {
    let members = object.as_object().into_iter().flat_map(|m| m.iter());
    Value::Object(members.filter(|(m, _)| is_content(m)).map(|(m, v)| (m.clone(), v.clone())).collect())
}

fn hash(virtual_: &Value) -> String {
    hash_value(uid_of(virtual_), &content(virtual_))
}

/// Who uses a resource claim: pods, by the names and uids that the tenant knows. Others are not the tenant's business.
fn show_users(status: &mut Value, ctx: &Context<'_>) {
    let Some(users) = status.get_mut("reservedFor").and_then(Value::as_array_mut) else { return };
    users.retain_mut(|user| {
        if user.str_at(&["resource"]) != "pods" {
            return false;
        }
        let known = ctx.facts.users.iter().find(|(uid, ..)| *uid == user.str_at(&["uid"]));
        if let Some((_, name, uid)) = known {
            user["name"] = name.name.as_str().into();
            user["uid"] = uid.as_str().into();
        }
        known.is_some()
    });
}

impl ToHost for Custom {
    fn kind(&self) -> &Kind {
        &self.0
    }

    fn translate(&self, virtual_: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        let mut host = object(&self.0, ctx.metadata(virtual_, &self.0, &[]));
        if let Value::Object(members) = content(virtual_) {
            for (member, value) in members {
                host[member.as_str()] = value;
            }
        }
        let mut synced = LastSynced::of(&host);
        synced.set("content", &hash(virtual_));
        synced.store(&mut host);
        Ok((host, Vec::new()))
    }

    fn reconcile(
        &self,
        virtual_: &Value,
        host: &Value,
        last: &LastSeen,
        ctx: &Context<'_>,
    ) -> Result<Desired, Refusal> {
        let mut new_virtual = virtual_.clone();
        let mut new_host = host.clone();
        let mut synced = LastSynced::of(host);
        // What the host's API server filled in is no difference: only a change of the tenant goes down.
        if !synced.agrees("content", &hash(virtual_)) {
            for member in content(host).as_object().into_iter().flat_map(|m| m.keys()) {
                new_host.remove_at(&[member]);
            }
            if let Value::Object(members) = content(virtual_) {
                for (member, value) in members {
                    new_host[member.as_str()] = value;
                }
            }
            synced.set("content", &hash(virtual_));
            synced.store(&mut new_host);
        }
        let host_only = metadata::sync_metadata(
            &mut new_virtual,
            &mut new_host,
            &self.0,
            ctx.names,
            MetadataRules::default(),
            Some(&last.host_only),
        );
        if let Some(status) = host.get("status").filter(|s| !s.is_null()) {
            let mut status = status.clone();
            let (from, to) = (metadata::name_of(host), metadata::name_of(virtual_));
            super::show_messages(&mut status, &|text| ctx.names.to_virtual_text(text, Some((&from, &to))));
            super::own_generations(&mut status, host, virtual_);
            show_users(&mut status, ctx);
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
