//! Role-based access control: who may do what, from Roles, ClusterRoles and their bindings.
//!
//! Invariants:
//! - Rights only add up. A binding whose role is missing gives nothing and takes nothing.
//! - A binding or role counts as soon as its write was acknowledged.
//! - Parsed bindings and roles are kept by the revision they were read at; nothing is scanned twice without a change.
//!
//! Follows: `plugin/pkg/auth/authorizer/rbac`, `pkg/registry/rbac/validation`.

pub mod bootstrap;
pub mod escalation;
pub mod reconcile;
pub mod rules;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use apimachinery::Value;
use apimachinery::meta::ObjectMeta;
use async_trait::async_trait;
use parking_lot::RwLock;
use store::Revision;

use crate::authn::UserInfo;
use crate::authz::{Attributes, Authorization, Authorizer, Decision, RulesReview};
use crate::storage::Storage;

pub use rules::PolicyRule;

pub const GROUP: &str = "rbac.authorization.k8s.io";

/// How many namespaces' bindings and how many roles are kept parsed.
const PARSED_MAX: usize = 4096;

/// The role that a binding gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRef {
    pub kind: String,
    pub name: String,
}

impl RoleRef {
    /// `roleRef` of a binding.
    pub fn of_binding(binding: &Value) -> RoleRef {
        RoleRef {
            kind: binding.str_at(&["roleRef", "kind"]).to_owned(),
            name: binding.str_at(&["roleRef", "name"]).to_owned(),
        }
    }
}

#[derive(Debug)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

impl Subject {
    fn is(&self, user: &UserInfo, binding_namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => user.name == self.name,
            "Group" => user.is_in(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                let account = user.name.strip_prefix("system:serviceaccount:").and_then(|n| n.split_once(':'));
                !namespace.is_empty() && account == Some((namespace, self.name.as_str()))
            }
            _ => false,
        }
    }

    fn describe(&self, binding_namespace: &str) -> String {
        match self.kind.as_str() {
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                format!("{} {:?}", self.kind, format!("{}/{namespace}", self.name))
            }
            kind => format!("{kind} {:?}", self.name),
        }
    }
}

#[derive(Debug)]
struct Binding {
    name: String,
    role: RoleRef,
    subjects: Vec<Subject>,
}

impl Binding {
    fn from_value(value: &Value) -> Binding {
        let subject = |s: &Value| Subject {
            kind: s.str_at(&["kind"]).to_owned(),
            name: s.str_at(&["name"]).to_owned(),
            namespace: s.str_at(&["namespace"]).to_owned(),
        };
        Binding {
            name: value.name().to_owned(),
            role: RoleRef::of_binding(value),
            subjects: value.array_at(&["subjects"]).iter().map(subject).collect(),
        }
    }

    fn describe(&self, subject: &Subject, namespace: &str) -> String {
        let (kind, name) = match namespace {
            "" => ("ClusterRoleBinding", self.name.clone()),
            namespace => ("RoleBinding", format!("{}/{namespace}", self.name)),
        };
        let RoleRef { kind: role_kind, name: role } = &self.role;
        format!("{kind} {name:?} of {role_kind} {role:?} to {}", subject.describe(namespace))
    }
}

type Bindings = (Revision, Arc<Vec<Binding>>);
type Rules = (Revision, Arc<Vec<PolicyRule>>);

/// The authorizer of `--authorization-mode=RBAC`.
#[derive(Default)]
pub struct Rbac {
    storage: OnceLock<Arc<Storage>>,
    /// The bindings of a namespace (`""`: ClusterRoleBindings) with the cache's revision when they were read.
    bindings: RwLock<HashMap<String, Bindings>>,
    /// The rules of a role, by kind, namespace and name, with the role's revision.
    roles: RwLock<HashMap<String, Rules>>,
}

impl Rbac {
    pub fn new() -> Rbac {
        Rbac::default()
    }

    fn resource(&self, name: &str) -> Option<(&Arc<Storage>, crate::registry::ResourceHandle)> {
        let storage = self.storage.get()?;
        Some((storage, storage.registry.get(GROUP, "v1", name)?))
    }

    fn bindings(&self, namespace: &str) -> Arc<Vec<Binding>> {
        let plural = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
        let Some((_, resource)) = self.resource(plural) else { return Arc::default() };
        let Some(storage) = &resource.storage else { return Arc::default() };
        // Read before the objects: a change in between is found the next time.
        let revision = storage.cache.revision();
        if let Some((at, known)) = self.bindings.read().get(namespace)
            && *at == revision
        {
            return known.clone();
        }
        let snapshot = storage.cache.snapshot(namespace, 0, |_| true);
        let bindings = snapshot.entries.iter().map(|e| Binding::from_value(&e.to_value())).collect::<Vec<_>>();
        let bindings = Arc::new(bindings);
        let mut all = self.bindings.write();
        if all.len() >= PARSED_MAX {
            all.clear();
        }
        all.insert(namespace.to_owned(), (revision, bindings.clone()));
        bindings
    }

    /// The rules of a role as seen from a binding in `namespace`.
    pub fn role_rules(&self, role: &RoleRef, namespace: &str) -> Result<Arc<Vec<PolicyRule>>, String> {
        let (plural, namespace) = match role.kind.as_str() {
            "ClusterRole" => ("clusterroles", ""),
            "Role" => ("roles", namespace),
            kind => return Err(format!("unsupported role reference kind: {kind:?}")),
        };
        let entry = self.resource(plural).and_then(|(storage, r)| storage.get_cached(&r, namespace, &role.name));
        let key = format!("{plural}/{namespace}/{}", role.name);
        let Some(entry) = entry else {
            self.roles.write().remove(&key);
            let kind = role.kind.to_ascii_lowercase();
            return Err(format!("{kind}.{GROUP} {:?} not found", role.name));
        };
        if let Some((at, known)) = self.roles.read().get(&key)
            && *at == entry.revision
        {
            return Ok(known.clone());
        }
        let rules = Arc::new(PolicyRule::of_role(&entry.to_value()));
        let mut all = self.roles.write();
        if all.len() >= PARSED_MAX {
            all.clear();
        }
        all.insert(key, (entry.revision, rules.clone()));
        Ok(rules)
    }

    /// Calls `visit` for each rule that applies to a user in a namespace until it returns false; returns what went wrong
    /// on the way.
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(&dyn Fn() -> String, &PolicyRule) -> bool,
    ) -> Vec<String> {
        let mut errors = Vec::new();
        let scopes: &[&str] = if namespace.is_empty() { &[""] } else { &["", namespace] };
        for scope in scopes {
            for binding in self.bindings(scope).iter() {
                let Some(subject) = binding.subjects.iter().find(|s| s.is(user, scope)) else { continue };
                let rules = match self.role_rules(&binding.role, scope) {
                    Ok(rules) => rules,
                    Err(error) => {
                        errors.push(error);
                        continue;
                    }
                };
                let source = || binding.describe(subject, scope);
                if rules.iter().any(|rule| !visit(&source, rule)) {
                    return errors;
                }
            }
        }
        errors
    }

    /// All rules that apply to a user in a namespace, and what went wrong while they were looked up.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        let mut rules = Vec::new();
        let errors = self.visit(user, namespace, |_, rule| {
            rules.push(rule.clone());
            true
        });
        (rules, errors)
    }

    async fn wait(&self) {
        if let Some(storage) = self.storage.get() {
            // An older policy is better than no answer.
            let _ = storage.caches.wait_own().await;
        }
    }
}

#[async_trait]
impl Authorizer for Rbac {
    fn attach(&self, storage: &Arc<Storage>) {
        let _ = self.storage.set(storage.clone());
    }

    async fn authorize(&self, attributes: &Attributes) -> Authorization {
        self.wait().await;
        let mut reason = None;
        let errors = self.visit(&attributes.user, &attributes.namespace, |source, rule| {
            if rule.allows(attributes) {
                reason = Some(format!("RBAC: allowed by {}", source()));
            }
            reason.is_none()
        });
        match reason {
            Some(reason) => Authorization { decision: Decision::Allow, reason },
            None if errors.is_empty() => Authorization { decision: Decision::NoOpinion, reason: String::new() },
            None => {
                let reason = format!("RBAC: {}", apimachinery::field::aggregate_texts(errors));
                Authorization { decision: Decision::NoOpinion, reason }
            }
        }
    }

    async fn rules(&self, user: &UserInfo, namespace: &str) -> RulesReview {
        self.wait().await;
        let (rules, errors) = self.rules_for(user, namespace);
        RulesReview { rules, incomplete: false, error: apimachinery::field::aggregate_texts(errors) }
    }
}
