//! APIService objects of what this server answers itself: those of custom resources come and go with their definitions.
//!
//! Follows: `k8s.io/kube-aggregator/pkg/controllers/autoregister`, `pkg/controlplane/controller/crdregistration`.

use std::collections::BTreeMap;

use apimachinery::meta::ObjectMeta;
use apimachinery::{Value, json};
use http::Method;

use super::API_SERVICES;
use crate::cache::ResourceCache;
use crate::server::ApiServer;

pub(crate) const MANAGED_LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
/// The priorities of custom resources.
pub(crate) const GROUP_PRIORITY: i64 = 1000;
pub(crate) const VERSION_PRIORITY: i64 = 100;

/// What has to be done about one object.
#[derive(Debug, PartialEq)]
enum Step {
    Create(Value),
    Update(Value),
    Delete { name: String, uid: String },
}

/// Compares what should be with what is; objects that are not kept by this are left alone.
fn steps(wanted: &BTreeMap<String, Value>, present: &[Value]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (name, object) in wanted {
        match present.iter().find(|known| known.name() == name) {
            None => steps.push(Step::Create(object.clone())),
            Some(known) if known.label(MANAGED_LABEL) == Some("true") && known["spec"] != object["spec"] => {
                let mut update = known.clone();
                update["spec"] = object["spec"].clone();
                steps.push(Step::Update(update));
            }
            Some(_) => {}
        }
    }
    for known in present {
        if known.label(MANAGED_LABEL) == Some("true") && !wanted.contains_key(known.name()) {
            steps.push(Step::Delete { name: known.name().to_owned(), uid: known.uid().to_owned() });
        }
    }
    steps
}

fn object(group: &str, version: &str) -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": (format!("{version}.{group}")), "labels": {MANAGED_LABEL: "true"}},
        "spec": {
            "group": group, "version": version, "groupPriorityMinimum": GROUP_PRIORITY,
            "versionPriority": VERSION_PRIORITY,
        },
    })
}

/// Groups and versions that definitions serve. Definitions are large: each is read once for every change of it.
#[derive(Default)]
pub(crate) struct Served {
    by_definition: BTreeMap<String, (u64, Vec<(String, String)>)>,
}

impl Served {
    fn update(&mut self, definitions: &ResourceCache) {
        let entries = definitions.snapshot("", 0, |_| true).entries;
        self.by_definition.retain(|name, _| definitions.get(name).is_some());
        for entry in entries {
            if self.by_definition.get(entry.name()).is_some_and(|(revision, _)| *revision == entry.revision) {
                continue;
            }
            let definition = entry.to_value();
            let group = definition.str_at(&["spec", "group"]);
            let versions = definition.array_at(&["spec", "versions"]).iter();
            let served = versions.filter(|version| version["served"] == true);
            let served = served.map(|version| (group.to_owned(), version.str_at(&["name"]).to_owned())).collect();
            self.by_definition.insert(entry.name().to_owned(), (entry.revision, served));
        }
    }
}

/// The objects of these definitions and of groups of the embedding program.
fn wanted(server: &ApiServer, served: &Served) -> BTreeMap<String, Value> {
    let mut wanted = BTreeMap::new();
    let mut add = |group: &str, version: &str| {
        let object = object(group, version);
        wanted.insert(object.name().to_owned(), object);
    };
    for (group, version) in served.by_definition.values().flat_map(|(_, served)| served) {
        add(group, version);
    }
    for group in &server.inner().config.groups {
        add(group.name(), group.version());
    }
    wanted
}

/// Brings the objects in line; an error means that it should be tried again.
pub(crate) async fn sync(
    server: &ApiServer,
    served: &mut Served,
    definitions: &ResourceCache,
    api_services: &ResourceCache,
) -> Result<(), String> {
    served.update(definitions);
    let wanted = wanted(server, served);
    let present: Vec<Value> = api_services
        .snapshot("", 0, |entry| entry.label(MANAGED_LABEL) == Some("true") || wanted.contains_key(entry.name()))
        .entries
        .iter()
        .map(|entry| entry.to_value())
        .collect();
    let (group, version, plural) = API_SERVICES;
    let path = format!("/apis/{group}/{version}/{plural}");
    for step in steps(&wanted, &present) {
        let code = match &step {
            Step::Create(object) => crate::crd::send(server, Method::POST, &path, Some(object)).await?,
            Step::Update(object) => {
                let path = format!("{path}/{}", object.name());
                crate::crd::send(server, Method::PUT, &path, Some(object)).await?
            }
            Step::Delete { name, uid } => {
                let options = json!({"preconditions": {"uid": uid.as_str()}});
                crate::crd::send(server, Method::DELETE, &format!("{path}/{name}"), Some(&options)).await?
            }
        };
        // Changed in between: that change brings it here again.
        if code >= 400 && code != 404 && code != 409 {
            return Err(format!("an APIService was refused with code {code}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_with_the_label_are_kept_in_line() {
        let wanted: BTreeMap<String, Value> =
            [("v1.a.example", object("a.example", "v1"))].map(|(k, v)| (k.to_owned(), v)).into();
        let with = |name: &str, label: &str, priority: i64| {
            let (version, group) = name.split_once('.').unwrap();
            let mut object = object(group, version);
            object.set_at(&["metadata", "labels", MANAGED_LABEL], label.into());
            object.set_at(&["metadata", "uid"], "u".into());
            object.set_at(&["spec", "versionPriority"], priority.into());
            object
        };
        let kind = |steps: Vec<Step>| -> Vec<String> {
            let shown = |step: Step| match step {
                Step::Create(object) => format!("create {}", object.name()),
                Step::Update(object) => format!("update {} {}", object.name(), object["spec"]["versionPriority"]),
                Step::Delete { name, uid } => format!("delete {name} {uid}"),
            };
            steps.into_iter().map(shown).collect()
        };
        for (present, want) in [
            (vec![], vec!["create v1.a.example"]),
            (vec![with("v1.a.example", "true", 100)], vec![]),
            (vec![with("v1.a.example", "true", 7)], vec!["update v1.a.example 100"]),
            (vec![with("v1.a.example", "onstart", 7)], vec![]),
            (vec![with("v1.a.example", "", 7)], vec![]),
            (
                vec![with("v1.a.example", "true", 100), with("v1.b.example", "true", 100), with("v1.c", "onstart", 1)],
                vec!["delete v1.b.example u"],
            ),
        ] {
            assert_eq!(kind(steps(&wanted, &present)), want);
        }
    }
}
