//! Whether a user may do what a request asks: the [`Authorizer`] seam.
//!
//! Follows: `k8s.io/apiserver/pkg/authorization/authorizer`.

use std::sync::Arc;

use async_trait::async_trait;

use crate::authn::{SYSTEM_MASTERS, UserInfo};
use crate::rbac::PolicyRule;
use crate::request_info::RequestInfo;
use crate::storage::Storage;

/// What is to be decided.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    pub user: UserInfo,
    pub verb: String,
    pub namespace: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// False for paths such as `/healthz`; then only `verb` and `path` count.
    pub is_resource: bool,
    pub path: String,
    pub field_selector: String,
    pub label_selector: String,
}

impl Attributes {
    pub fn new(user: &UserInfo, info: &RequestInfo) -> Attributes {
        let selector = |name: &str| match info.verb.as_str() {
            "list" | "watch" | "deletecollection" => info.query.str(name).to_owned(),
            _ => String::new(),
        };
        Attributes {
            user: user.clone(),
            verb: info.verb.clone(),
            namespace: info.namespace.clone(),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            name: info.name.clone(),
            is_resource: info.is_resource,
            path: info.path.clone(),
            field_selector: selector("fieldSelector"),
            label_selector: selector("labelSelector"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// Refused for good: later authorizers are not asked.
    Deny,
    NoOpinion,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    pub decision: Decision,
    /// Why; part of the message of a refusal, and of the audit log.
    pub reason: String,
}

/// What a user may do in a namespace, as far as it can be listed.
#[derive(Clone, Debug, Default)]
pub struct RulesReview {
    pub rules: Vec<PolicyRule>,
    /// There may be more than `rules`.
    pub incomplete: bool,
    /// What went wrong while the rules were looked up.
    pub error: String,
}

/// Decides on requests.
#[async_trait]
pub trait Authorizer: Send + Sync {
    /// Gives the authorizer read access to the server's objects; called once, before the first request.
    fn attach(&self, _storage: &Arc<Storage>) {}

    async fn authorize(&self, attributes: &Attributes) -> Authorization;

    /// Whether [`Authorizer::veto`] can give anything: most servers have no such rules, and every request would pay.
    fn has_vetoes(&self) -> bool {
        false
    }

    /// Why nobody may do this, members of `system:masters` included; asked before anything else.
    fn veto(&self, _attributes: &Attributes) -> Option<String> {
        None
    }

    /// What a user may do in a namespace.
    async fn rules(&self, _user: &UserInfo, _namespace: &str) -> RulesReview {
        RulesReview { incomplete: true, ..RulesReview::default() }
    }
}

/// Allows everything (`--authorization-mode=AlwaysAllow`).
#[derive(Debug, Default)]
pub struct AlwaysAllow;

#[async_trait]
impl Authorizer for AlwaysAllow {
    async fn authorize(&self, _: &Attributes) -> Authorization {
        Authorization { decision: Decision::Allow, reason: String::new() }
    }

    async fn rules(&self, _: &UserInfo, _: &str) -> RulesReview {
        let star = || vec!["*".to_owned()];
        let rules = vec![
            PolicyRule { verbs: star(), api_groups: star(), resources: star(), ..PolicyRule::default() },
            PolicyRule { verbs: star(), non_resource_urls: star(), ..PolicyRule::default() },
        ];
        RulesReview { rules, ..RulesReview::default() }
    }
}

/// Allows nothing (`--authorization-mode=AlwaysDeny`).
#[derive(Debug, Default)]
pub struct AlwaysDeny;

#[async_trait]
impl Authorizer for AlwaysDeny {
    async fn authorize(&self, _: &Attributes) -> Authorization {
        Authorization { decision: Decision::NoOpinion, reason: "Everything is forbidden.".to_owned() }
    }

    async fn rules(&self, _: &UserInfo, _: &str) -> RulesReview {
        RulesReview::default()
    }
}

/// Members of `system:masters` may do everything; this is asked before any other authorizer.
pub fn is_privileged(user: &UserInfo) -> bool {
    user.is_in(SYSTEM_MASTERS)
}

/// The message of a refusal: `User "x" cannot list resource "pods" in API group "" in the namespace "a"`, and the reason.
pub fn forbidden_message(a: &Attributes, reason: &str) -> String {
    let mut message = format!("User {:?} cannot {} ", a.user.name, a.verb);
    if a.is_resource {
        let resource = match a.subresource.as_str() {
            "" => a.resource.clone(),
            subresource => format!("{}/{subresource}", a.resource),
        };
        message += &format!("resource {resource:?} in API group {:?} ", a.group);
        message += &match a.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
    } else {
        message += &format!("path {:?}", a.path);
    }
    if !reason.is_empty() {
        message += &format!(": {reason}");
    }
    message
}
