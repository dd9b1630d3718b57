//! ConfigMaps and Secrets: those that something refers to, with changes in both directions.

use apimachinery::Value;

use crate::diff::{present, two_way_same};
use crate::kind::{self, Kind};
use crate::metadata::{self, FORCE_SYNC_ANNOTATION, LastSynced, MetadataRules, annotation, hash_value, uid_of};
use crate::plan::{Action, LastSeen};
use crate::settings::Wanted;
use crate::types::{Context, Desired, Refusal, ToHost, copy_members, object};

const SERVICE_ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";

/// ConfigMaps or Secrets.
pub enum Configs {
    ConfigMaps,
    Secrets,
}

impl Configs {
    fn members(&self) -> &'static [&'static str] {
        match self {
            Configs::ConfigMaps => &["data", "binaryData"],
            Configs::Secrets => &["data"],
        }
    }
}

impl ToHost for Configs {
    fn kind(&self) -> &Kind {
        match self {
            Configs::ConfigMaps => &kind::CONFIG_MAP,
            Configs::Secrets => &kind::SECRET,
        }
    }

    fn wanted(&self, object: &Value, ctx: &Context<'_>) -> bool {
        let wanted = match self {
            Configs::ConfigMaps => ctx.settings.config_maps,
            Configs::Secrets => ctx.settings.secrets,
        };
        match wanted {
            Wanted::Off => false,
            Wanted::All => true,
            Wanted::Used => ctx.facts.referred || annotation(object, FORCE_SYNC_ANNOTATION) == "true",
        }
    }

    fn two_way_fields(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        self.members().iter().map(|member| (*member, vec![*member])).collect()
    }

    fn host_gone(&self, _virtual: &Value, _last: &LastSeen) -> Option<Vec<Action>> {
        // The virtual one is the original: losing the copy must not lose the data.
        None
    }

    fn translate(&self, virtual_: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        let mut host = object(self.kind(), ctx.metadata(virtual_, self.kind(), &[]));
        copy_members(virtual_, &mut host, self.members());
        copy_members(virtual_, &mut host, &["immutable", "type"]);
        if host.str_at(&["type"]) == SERVICE_ACCOUNT_TOKEN {
            // The host would fill it with a token of its own.
            host["type"] = "Opaque".into();
        }
        let mut synced = LastSynced::of(&host);
        for member in self.members() {
            synced.set(member, &hash_value(uid_of(virtual_), present(virtual_, &[member]).unwrap_or(&Value::Null)));
        }
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
        let mut synced = LastSynced::of_imported(host, virtual_, &[], self.members());
        for member in self.members() {
            let salt = uid_of(virtual_);
            two_way_same(member, salt, &[member], &mut new_virtual, &mut new_host, &mut synced);
        }
        synced.store(&mut new_host);
        if virtual_["immutable"] == true {
            new_host["immutable"] = true.into();
        }
        let host_only = metadata::sync_metadata(
            &mut new_virtual,
            &mut new_host,
            self.kind(),
            ctx.names,
            MetadataRules::default(),
            Some(&last.host_only),
        );
        Ok(Desired {
            virtual_: new_virtual,
            host: new_host,
            actions: Vec::new(),
            seen: LastSeen { on_host: true, host_only },
        })
    }
}
