//! Nobody grants more than they have: checks on writes of roles and bindings.
//!
//! The verb `escalate` on a role and the verb `bind` on the role of a binding lift the check. It runs after all mutating
//! plugins, on what will be stored.
//!
//! Follows: `pkg/registry/rbac/{role,clusterrole,rolebinding,clusterrolebinding}/policybased`,
//! `pkg/registry/rbac/escalation_check.go`.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::GroupVersionResource;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use async_trait::async_trait;

use super::rules::{PolicyRule, compact, quoted_list, uncovered};
use super::{GROUP, Rbac, RoleRef};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authn::UserInfo;
use crate::authz::{Attributes, Authorizer, Decision, is_privileged};

/// The check as the last of the mutating plugins.
pub struct Escalation {
    rbac: Arc<Rbac>,
}

impl Escalation {
    pub fn new(rbac: Arc<Rbac>) -> Escalation {
        Escalation { rbac }
    }

    async fn may(&self, user: &UserInfo, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let attributes = Attributes {
            user: user.clone(),
            verb: verb.to_owned(),
            namespace: namespace.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            is_resource: true,
            ..Attributes::default()
        };
        self.rbac.authorize(&attributes).await.decision == Decision::Allow
    }

    /// What the user lacks of these rules, as a message.
    fn confirm(&self, user: &UserInfo, namespace: &str, wanted: &[PolicyRule]) -> Result<(), String> {
        let (owned, errors) = self.rbac.rules_for(user, namespace);
        let missing = uncovered(&owned, wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let mut missing: Vec<String> = compact(missing).iter().map(PolicyRule::describe).collect();
        missing.sort();
        missing.dedup();
        let mut message = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            quoted_list(&user.groups),
            missing.join("\n")
        );
        if !errors.is_empty() {
            message += &format!("; resolution errors: [{}]", apimachinery::field::aggregate_texts(errors));
        }
        Err(message)
    }

    async fn check(&self, request: &AdmissionRequest<'_>, object: &Value) -> StatusResult<()> {
        let (user, namespace) = (&request.user, request.namespace.as_str());
        let resource = request.gvr.resource.as_str();
        let refuse = |m: String| Err(Box::new(Status::forbidden(&request.gvr.group_resource(), object.name(), m)));
        if resource == "roles" || resource == "clusterroles" {
            // A create has no name in its path.
            let name = if request.operation == Operation::Create { "" } else { request.name.as_str() };
            if self.may(user, "escalate", resource, namespace, name).await {
                return Ok(());
            }
            if let Err(message) = self.confirm(user, namespace, &PolicyRule::of_role(object)) {
                return refuse(message);
            }
            let aggregates = |o: &Value| !o.array_at(&["aggregationRule", "clusterRoleSelectors"]).is_empty();
            if aggregates(object) || request.old_object.as_ref().is_some_and(aggregates) {
                let star = || vec!["*".to_owned()];
                let everything = [
                    PolicyRule { verbs: star(), api_groups: star(), resources: star(), ..PolicyRule::default() },
                    PolicyRule { verbs: star(), non_resource_urls: star(), ..PolicyRule::default() },
                ];
                if self.confirm(user, namespace, &everything).is_err() {
                    return refuse("must have cluster-admin privileges to use the aggregationRule".to_owned());
                }
            }
            return Ok(());
        }
        let role = RoleRef::of_binding(object);
        let plural = match role.kind.as_str() {
            "ClusterRole" => "clusterroles",
            "Role" => "roles",
            // Validation says what is wrong with it.
            _ => return Ok(()),
        };
        if self.may(user, "bind", plural, namespace, &role.name).await {
            return Ok(());
        }
        let rules = self.rbac.role_rules(&role, namespace).map_err(|_| {
            let resource = apimachinery::gvk::GroupResource::new(GROUP, role.kind.to_ascii_lowercase());
            Box::new(Status::not_found(&resource, &role.name))
        })?;
        match self.confirm(user, namespace, &rules) {
            Ok(()) => Ok(()),
            Err(message) => refuse(message),
        }
    }
}

/// Whether an update touches only what garbage collection needs to delete the object.
fn only_gc_fields(new: &Value, old: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        let metadata = object.metadata_mut();
        for key in ["ownerReferences", "finalizers", "selfLink", "managedFields", "resourceVersion"] {
            metadata.remove(key);
        }
        object
    };
    strip(new) == strip(old)
}

#[async_trait]
impl AdmissionPlugin for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && gvr.group == GROUP
            && subresource.is_empty()
            && matches!(gvr.resource.as_str(), "roles" | "clusterroles" | "rolebindings" | "clusterrolebindings")
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        if is_privileged(&request.user) {
            return Ok(());
        }
        let Some(object) = &request.object else { return Ok(()) };
        if request.old_object.as_ref().is_some_and(|old| only_gc_fields(object, old)) {
            return Ok(());
        }
        self.check(request, object).await
    }
}
