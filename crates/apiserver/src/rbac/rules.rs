//! What a PolicyRule allows. Pure.
//!
//! Follows: `pkg/apis/rbac/v1/evaluation_helpers.go`, `pkg/registry/rbac/validation`.

use apimachinery::Value;

use crate::authz::Attributes;

/// `rbac.authorization.k8s.io/v1.PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    pub non_resource_urls: Vec<String>,
}

fn holds(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl PolicyRule {
    pub fn from_value(value: &Value) -> PolicyRule {
        let strings = |key: &str| -> Vec<String> {
            value.array_at(&[key]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        PolicyRule {
            verbs: strings("verbs"),
            api_groups: strings("apiGroups"),
            resources: strings("resources"),
            resource_names: strings("resourceNames"),
            non_resource_urls: strings("nonResourceURLs"),
        }
    }

    /// The rules of a Role or ClusterRole.
    pub fn of_role(role: &Value) -> Vec<PolicyRule> {
        role.array_at(&["rules"]).iter().map(PolicyRule::from_value).collect()
    }

    pub fn to_value(&self) -> Value {
        let mut value = Value::object();
        for (key, list) in [
            ("verbs", &self.verbs),
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ] {
            if !list.is_empty() {
                value[key] = list.iter().map(String::as_str).collect::<Vec<_>>().into();
            }
        }
        value
    }

    /// The rule as messages show it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
    pub fn describe(&self) -> String {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("{name}:{}", quoted_list(list)))
            .collect();
        format!("{{{}}}", parts.join(", "))
    }

    /// Whether this rule allows the request.
    pub fn allows(&self, a: &Attributes) -> bool {
        if !a.is_resource {
            return holds(&self.verbs, &a.verb) && self.allows_path(&a.path);
        }
        holds(&self.verbs, &a.verb)
            && holds(&self.api_groups, &a.group)
            && self.allows_resource(&a.resource, &a.subresource)
            && (self.resource_names.is_empty() || self.resource_names.contains(&a.name))
    }

    /// Who reviews access may name a subresource as a part of the resource, such as `pods/exec`: what counts is the whole
    /// name. Source: `pkg/apis/rbac/v1/evaluation_helpers.go`.
    fn allows_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|rule| {
            let rest = |main: &str| rule.strip_prefix(main).and_then(|rest| rest.strip_prefix('/'));
            match subresource {
                _ if rule == "*" => true,
                "" => rule == resource,
                sub => rest(resource) == Some(sub) || rest("*") == Some(sub),
            }
        })
    }

    fn allows_path(&self, path: &str) -> bool {
        self.non_resource_urls.iter().any(|rule| {
            rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
        })
    }

    /// Splits into rules of one verb, group, resource and name each, which can be compared one by one.
    pub fn break_down(&self) -> Vec<PolicyRule> {
        let one = |s: &String| vec![s.clone()];
        let mut rules = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    let base = PolicyRule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..PolicyRule::default()
                    };
                    if self.resource_names.is_empty() {
                        rules.push(base.clone());
                    }
                    for name in &self.resource_names {
                        rules.push(PolicyRule { resource_names: one(name), ..base.clone() });
                    }
                }
            }
            for url in &self.non_resource_urls {
                rules.push(PolicyRule { verbs: one(verb), non_resource_urls: one(url), ..PolicyRule::default() });
            }
        }
        rules
    }

    /// Whether this rule allows everything that `other`, a broken-down rule, allows.
    fn covers_one(&self, other: &PolicyRule) -> bool {
        let all = |mine: &[String], theirs: &[String]| theirs.iter().all(|t| holds(mine, t));
        let resources = |theirs: &[String]| {
            theirs.iter().all(|t| {
                holds(&self.resources, t)
                    || t.split_once('/').is_some_and(|(_, sub)| self.resources.iter().any(|m| *m == format!("*/{sub}")))
            })
        };
        let names = self.resource_names.is_empty()
            || (!other.resource_names.is_empty()
                && other.resource_names.iter().all(|n| self.resource_names.contains(n)));
        let urls = other.non_resource_urls.iter().all(|url| {
            self.non_resource_urls.iter().any(|mine| {
                mine == "*" || mine == url || mine.strip_suffix('*').is_some_and(|prefix| url.starts_with(prefix))
            })
        });
        all(&self.verbs, &other.verbs)
            && all(&self.api_groups, &other.api_groups)
            && resources(&other.resources)
            && names
            && urls
    }
}

/// Strings as Go prints them with `%q`: `["a" "b"]`.
pub fn quoted_list(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|s| format!("{s:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

/// Joins rules about one resource (and at most one name) that differ in their verbs alone.
pub fn compact(rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut compacted: Vec<PolicyRule> = Vec::new();
    for rule in rules {
        let simple = |r: &PolicyRule| {
            r.non_resource_urls.is_empty()
                && r.resource_names.len() <= 1
                && r.api_groups.len() == 1
                && r.resources.len() == 1
        };
        let same = |r: &PolicyRule| {
            simple(r)
                && r.api_groups == rule.api_groups
                && r.resources == rule.resources
                && r.resource_names == rule.resource_names
        };
        match compacted.iter_mut().find(|r| simple(&rule) && same(r)) {
            Some(known) => known.verbs.extend(rule.verbs),
            None => compacted.push(rule),
        }
    }
    compacted
}

/// The broken-down parts of `wanted` that `owned` do not cover: what a user would gain.
pub fn uncovered(owned: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let mut missing: Vec<PolicyRule> = wanted
        .iter()
        .flat_map(PolicyRule::break_down)
        .filter(|part| !owned.iter().any(|rule| rule.covers_one(part)))
        .collect();
    missing.sort();
    missing.dedup();
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> PolicyRule {
        let strings = |s: &str| s.split(',').map(|s| s.trim_matches('"').to_owned()).collect();
        if let Some((verbs, urls)) = text.split_once(" @ ") {
            return PolicyRule { verbs: strings(verbs), non_resource_urls: strings(urls), ..PolicyRule::default() };
        }
        let mut parts = text.split(" / ").map(strings);
        PolicyRule {
            verbs: parts.next().unwrap_or_default(),
            api_groups: parts.next().unwrap_or_default(),
            resources: parts.next().unwrap_or_default(),
            resource_names: parts.next().unwrap_or_default(),
            non_resource_urls: Vec::new(),
        }
    }

    #[test]
    fn rules_allow_requests() {
        // (rule, verb, group, resource/subresource, name, allowed). Source: kubernetes.io "Using RBAC Authorization".
        for (text, verb, group, resource, name, want) in [
            ("get / \"\" / pods", "get", "", "pods", "a", true),
            ("get / \"\" / pods", "get", "", "pods/log", "a", false),
            ("get / \"\" / pods/log", "get", "", "pods/log", "a", true),
            ("get / \"\" / */log", "get", "", "pods/log", "a", true),
            ("get / \"\" / pods/*", "get", "", "pods/log", "a", false),
            ("* / * / *", "delete", "apps", "deployments/scale", "a", true),
            ("get / \"\" / pods / a,b", "get", "", "pods", "b", true),
            ("get / \"\" / pods / a", "get", "", "pods", "c", false),
            ("list / \"\" / pods / a", "list", "", "pods", "", false),
            ("get / apps / pods", "get", "", "pods", "a", false),
        ] {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let attributes = Attributes {
                verb: verb.into(),
                group: group.into(),
                resource: resource.into(),
                subresource: subresource.into(),
                name: name.into(),
                is_resource: true,
                ..Attributes::default()
            };
            assert_eq!(
                rule(text).allows(&attributes),
                want,
                "{text} for {verb} {group} {resource}/{subresource} {name}"
            );
        }
        let whole = Attributes {
            verb: "create".into(),
            resource: "pods/exec".into(),
            is_resource: true,
            ..Attributes::default()
        };
        assert!(rule("create / \"\" / pods/exec").allows(&whole), "a review that names both in one");
        assert!(!rule("create / \"\" / pods").allows(&whole));
        assert!(!rule("create / \"\" / */exec").allows(&whole));
        for (text, path, want) in [
            ("get @ /healthz", "/healthz", true),
            ("get @ /healthz/*", "/healthz/etcd", true),
            ("get @ /healthz", "/healthz/etcd", false),
            ("get @ *", "/x", true),
        ] {
            let attributes = Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
            assert_eq!(rule(text).allows(&attributes), want, "{text} for {path}");
        }
    }

    #[test]
    fn nobody_can_grant_more_than_they_have() {
        for (owned, wanted, missing) in [
            (vec!["get,list / \"\" / pods,services"], "get / \"\" / pods", 0),
            (vec!["get / \"\" / pods", "list / \"\" / pods"], "get,list / \"\" / pods", 0),
            (vec!["get / \"\" / pods"], "get,list / \"\" / pods,secrets", 3),
            (vec!["get / \"\" / pods / a"], "get / \"\" / pods", 1),
            (vec!["get / \"\" / pods"], "get / \"\" / pods / a", 0),
            (vec!["* / * / *"], "escalate / rbac.authorization.k8s.io / roles", 0),
            (vec!["get / \"\" / pods"], "* / \"\" / pods", 1),
            (vec!["get @ /healthz/*"], "get @ /healthz/etcd", 0),
            (vec!["get / \"\" / */scale"], "get / \"\" / foos/scale", 0),
        ] {
            let owned: Vec<_> = owned.into_iter().map(rule).collect();
            assert_eq!(uncovered(&owned, &[rule(wanted)]).len(), missing, "{wanted}");
        }
    }
}
