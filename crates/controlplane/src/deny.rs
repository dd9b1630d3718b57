//! `experimental.denyProxyRequests`: requests that the administrator refuses whatever the tenant's roles allow.

use std::sync::Arc;

use apiserver::UserInfo;
use apiserver::authz::{Attributes, Authorization, Authorizer, Decision, RulesReview};
use apiserver::storage::Storage;
use async_trait::async_trait;
use config::{DenyRule, DenyRuleMatch};

/// Refuses what a rule matches and leaves everything else to the authorizer behind.
pub(crate) struct DenyRequests {
    rules: Vec<DenyRule>,
    inner: Arc<dyn Authorizer>,
}

impl DenyRequests {
    pub fn new(rules: &[DenyRule], inner: Arc<dyn Authorizer>) -> DenyRequests {
        DenyRequests { rules: rules.to_vec(), inner }
    }
}

fn listed(list: &[String], value: &str) -> bool {
    list.is_empty() || list.iter().any(|entry| entry == "*" || entry == value)
}

/// Verbs as rules name them: operations of admission, or verbs.
fn operation(verb: &str) -> &str {
    match verb {
        "create" => "CREATE",
        "update" | "patch" => "UPDATE",
        "delete" | "deletecollection" => "DELETE",
        "connect" => "CONNECT",
        verb => verb,
    }
}

fn matches(rule: &DenyRuleMatch, attributes: &Attributes) -> bool {
    let resource = match attributes.subresource.as_str() {
        "" => attributes.resource.clone(),
        subresource => format!("{}/{subresource}", attributes.resource),
    };
    let resources = rule.resources.is_empty()
        || rule.resources.iter().any(|entry| {
            *entry == resource
                || (entry == "*" && attributes.subresource.is_empty())
                || entry == "*/*"
                || entry.strip_suffix("/*").is_some_and(|r| r == attributes.resource)
                || entry.strip_prefix("*/").is_some_and(|s| !s.is_empty() && s == attributes.subresource)
        });
    let scope = match rule.scope.as_str() {
        "Cluster" => attributes.namespace.is_empty(),
        "Namespaced" => !attributes.namespace.is_empty(),
        _ => true,
    };
    let verb = attributes.verb.as_str();
    // Connecting to a pod is a create of its subresource.
    let connects = matches!(attributes.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy");
    let operations = rule.operations.is_empty()
        || rule.operations.iter().any(|entry| {
            entry == "*"
                || entry.eq_ignore_ascii_case(verb)
                || entry == operation(verb)
                || (connects && entry.eq_ignore_ascii_case("CONNECT"))
        });
    listed(&rule.api_groups, &attributes.group)
        && listed(&rule.api_versions, &attributes.version)
        && resources
        && scope
        && operations
}

fn denied<'a>(rules: &'a [DenyRule], attributes: &Attributes) -> Option<&'a DenyRule> {
    if !attributes.is_resource {
        return None;
    }
    rules.iter().find(|rule| {
        let namespace =
            rule.namespaces.is_empty() || rule.namespaces.iter().any(|n| n == "*" || *n == attributes.namespace);
        namespace
            && !rule.excluded_users.contains(&attributes.user.name)
            && rule.rules.iter().any(|r| matches(r, attributes))
    })
}

#[async_trait]
impl Authorizer for DenyRequests {
    fn attach(&self, storage: &Arc<Storage>) {
        self.inner.attach(storage);
    }

    async fn authorize(&self, attributes: &Attributes) -> Authorization {
        match self.veto(attributes) {
            Some(reason) => Authorization { decision: Decision::Deny, reason },
            None => self.inner.authorize(attributes).await,
        }
    }

    fn has_vetoes(&self) -> bool {
        true
    }

    fn veto(&self, attributes: &Attributes) -> Option<String> {
        // The control plane's own parts are not the tenant.
        let rule = denied(&self.rules, attributes).filter(|_| !is_own(&attributes.user))?;
        Some(format!("denied by rule {:?} of experimental.denyProxyRequests", rule.name))
    }

    async fn rules(&self, user: &UserInfo, namespace: &str) -> RulesReview {
        self.inner.rules(user, namespace).await
    }
}

fn is_own(user: &UserInfo) -> bool {
    matches!(user.name.as_str(), "system:kube-controller-manager" | "system:kube-scheduler" | "system:vcluster-syncer")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_string()).collect()
    }

    #[test]
    fn rules_match_requests() {
        let rule = DenyRule {
            name: "no exec".into(),
            namespaces: strings(&["prod"]),
            rules: vec![DenyRuleMatch {
                api_groups: strings(&[""]),
                resources: strings(&["pods/exec", "secrets"]),
                operations: strings(&["CONNECT", "get"]),
                ..Default::default()
            }],
            excluded_users: strings(&["root"]),
        };
        let base = Attributes {
            user: UserInfo::new("jane", Vec::<String>::new()),
            verb: "create".into(),
            namespace: "prod".into(),
            group: String::new(),
            version: "v1".into(),
            resource: "pods".into(),
            subresource: "exec".into(),
            name: "web".into(),
            is_resource: true,
            path: String::new(),
            field_selector: String::new(),
            label_selector: String::new(),
        };
        type Change = fn(&mut Attributes);
        let cases: [(Change, bool); 7] = [
            (|_| {}, true),
            (|a| a.namespace = "dev".into(), false),
            (|a| a.user.name = "root".into(), false),
            (|a| a.subresource = "log".into(), false),
            (|a| (a.resource, a.subresource, a.verb) = ("secrets".into(), String::new(), "get".into()), true),
            (|a| (a.resource, a.subresource, a.verb) = ("secrets".into(), String::new(), "list".into()), false),
            (|a| a.group = "apps".into(), false),
        ];
        for (n, (change, want)) in cases.into_iter().enumerate() {
            let mut attributes = base.clone();
            change(&mut attributes);
            assert_eq!(denied(std::slice::from_ref(&rule), &attributes).is_some(), want, "case {n}");
        }
    }
}
