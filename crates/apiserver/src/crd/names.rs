//! Which names of a definition are accepted (each name belongs to one definition of a group), and its other conditions. Pure.
//!
//! Follows: `apiextensions-apiserver/pkg/controller/status/naming_controller.go`.

use std::collections::BTreeSet;

use apimachinery::{Value, json};

use super::definition;

/// The new status, `None` when the present one is right.
pub fn status(definition: &Value, all: &[Value], now: &str) -> Option<Value> {
    let own = definition.str_at(&["metadata", "name"]);
    let group = definition.str_at(&["spec", "group"]);
    let mut resources: BTreeSet<&str> = BTreeSet::new();
    let mut kinds: BTreeSet<&str> = BTreeSet::new();
    let others = all.iter().filter(|d| d.str_at(&["spec", "group"]) == group && d.str_at(&["metadata", "name"]) != own);
    for other in others {
        let names = &other["status"]["acceptedNames"];
        resources.extend(["plural", "singular"].map(|k| names.str_at(&[k])));
        resources.extend(names.array_at(&["shortNames"]).iter().filter_map(Value::as_str));
        kinds.extend(["kind", "listKind"].map(|k| names.str_at(&[k])));
    }
    resources.remove("");
    kinds.remove("");

    let wanted = &definition["spec"]["names"];
    let present = &definition["status"]["acceptedNames"];
    let mut accepted = present.clone();
    let mut problem: Option<(&str, String)> = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    for (key, reason, taken) in [("plural", "PluralConflict", &resources), ("singular", "SingularConflict", &resources)]
    {
        set(&mut accepted, wanted, present, key, reason, taken, &mut problem);
    }
    let short: Vec<&str> = wanted.array_at(&["shortNames"]).iter().filter_map(Value::as_str).collect();
    match short.iter().filter(|s| resources.contains(*s)).collect::<Vec<_>>() {
        conflicts if conflicts.is_empty() => match short.is_empty() {
            true => {
                accepted.as_object_mut().map(|m| m.remove("shortNames"));
            }
            false => accepted["shortNames"] = wanted["shortNames"].clone(),
        },
        conflicts => {
            let texts: Vec<String> = conflicts.iter().map(|s| in_use(s)).collect();
            let message = if texts.len() == 1 { texts[0].clone() } else { format!("[{}]", texts.join(", ")) };
            problem = Some(("ShortNamesConflict", message));
        }
    }
    for (key, reason, taken) in [("kind", "KindConflict", &kinds), ("listKind", "ListKindConflict", &kinds)] {
        set(&mut accepted, wanted, present, key, reason, taken, &mut problem);
    }
    match wanted.get("categories") {
        Some(categories) if problem.is_none() => accepted["categories"] = categories.clone(),
        Some(_) => {}
        None => {
            accepted.as_object_mut().map(|m| m.remove("categories"));
        }
    }
    for key in ["plural", "kind"] {
        accepted.make_object().get_or_insert_with(key, || "".into());
    }

    let established = definition
        .array_at(&["status", "conditions"])
        .iter()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    let mut status = definition["status"].clone();
    let mut conditions = definition.array_at(&["status", "conditions"]).to_vec();
    let (names_status, reason, message) = match &problem {
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
        Some((reason, message)) => ("False", *reason, message.clone()),
    };
    set_condition(&mut conditions, "NamesAccepted", names_status, reason, &message, now);
    if problem.is_none() {
        if !established && definition::has_broken_bundle(definition) {
            let message = "The conversion webhook CABundle is invalid";
            set_condition(&mut conditions, "Established", "False", "InvalidCABundle", message, now);
        } else if !established {
            let message = "the initial names have been accepted";
            set_condition(&mut conditions, "Established", "True", "InitialNamesAccepted", message, now);
        }
    } else if !established {
        set_condition(&mut conditions, "Established", "False", "NotAccepted", "not all names are accepted", now);
    }
    if let Some((state, reason, message)) = definition::approval_condition(definition) {
        set_condition(&mut conditions, "KubernetesAPIApprovalPolicyConformant", state, reason, &message, now);
    }
    status["conditions"] = Value::Array(conditions);
    status["acceptedNames"] = accepted;
    (status != definition["status"]).then_some(status)
}

fn set(
    accepted: &mut Value,
    wanted: &Value,
    present: &Value,
    key: &str,
    reason: &'static str,
    taken: &BTreeSet<&str>,
    problem: &mut Option<(&str, String)>,
) {
    let name = wanted.str_at(&[key]);
    if name == present.str_at(&[key]) {
        return;
    }
    if taken.contains(name) {
        *problem = Some((reason, format!("{name:?} is already in use")));
        return;
    }
    match name {
        "" => {
            accepted.as_object_mut().map(|m| m.remove(key));
        }
        name => accepted[key] = name.into(),
    }
}

/// Sets a condition; its time moves only with its status.
pub fn set_condition(conditions: &mut Vec<Value>, kind: &str, status: &str, reason: &str, message: &str, now: &str) {
    let condition =
        json!({"type": kind, "status": status, "lastTransitionTime": now, "reason": reason, "message": message});
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        None => conditions.push(condition),
        Some(present) => {
            let since = (present["status"] == status).then(|| present["lastTransitionTime"].clone());
            *present = condition;
            if let Some(since) = since {
                present["lastTransitionTime"] = since;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(plural: &str, kind: &str, accepted: bool) -> Value {
        let names =
            json!({"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")});
        let mut d = json!({"metadata": {"name": format!("{plural}.example.com")}, "spec": {"group": "example.com"},
            "status": {"acceptedNames": {"plural": "", "kind": ""}, "conditions": null}});
        d["spec"]["names"] = names.clone();
        if accepted {
            d.set_at(&["status", "acceptedNames"], names);
        }
        d
    }

    #[test]
    fn a_name_belongs_to_one_definition() {
        let things = named("things", "Thing", true);
        for (other, reason, message) in [
            (named("others", "Other", false), "NoConflicts", "no conflicts found"),
            (named("others", "Thing", false), "ListKindConflict", "\"ThingList\" is already in use"),
        ] {
            let status = status(&other, &[things.clone(), other.clone()], "now").expect("news");
            assert_eq!(status["conditions"][0].str_at(&["reason"]), reason);
            assert_eq!(status["conditions"][0].str_at(&["message"]), message);
            assert_eq!(status["conditions"][1]["status"] == "True", reason == "NoConflicts");
        }
    }

    #[test]
    fn groups_of_the_community_say_whether_they_are_approved() {
        for (group, annotation, want) in [
            (
                "gateway.networking.k8s.io",
                "https://github.com/x/pull/1",
                Some(("True", "approved in https://github.com/x/pull/1")),
            ),
            ("k8s.io", "unapproved, an experiment", Some(("False", "not approved: \"unapproved, an experiment\""))),
            ("x.kubernetes.io", "", Some(("False", "protected groups must have approval annotation"))),
            ("notk8s.io", "https://github.com/x", None),
        ] {
            let mut things = named("things", "Thing", false);
            things.set_at(&["spec", "group"], group.into());
            things.set_at(&["metadata", "annotations", "api-approved.kubernetes.io"], annotation.into());
            let status = status(&things, &[], "now").expect("news");
            let mut found = status["conditions"].as_array().into_iter().flatten();
            let found = found.rfind(|c| c["type"] == "KubernetesAPIApprovalPolicyConformant");
            assert_eq!(found.is_some(), want.is_some(), "{group}");
            if let (Some(found), Some((state, message))) = (found, want) {
                assert_eq!(found.str_at(&["status"]), state);
                assert!(found.str_at(&["message"]).starts_with(message), "{found}");
            }
        }
    }

    #[test]
    fn a_definition_with_a_broken_bundle_is_not_established() {
        let authority = rcgen::generate_simple_self_signed(["example.com".to_owned()]).unwrap().cert.pem();
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (bundle, want) in
            [("", "True"), (authority.as_str(), "True"), ("\n", "False"), (key, "False"), (broken, "False")]
        {
            let mut things = named("things", "Thing", false);
            let bundle = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bundle);
            things.set_at(&["spec", "conversion"], json!({"webhook": {"clientConfig": {"caBundle": bundle}}}));
            let status = status(&things, &[], "now").expect("news");
            assert_eq!(status["conditions"][1].str_at(&["status"]), want, "{bundle}");
        }
    }
}
