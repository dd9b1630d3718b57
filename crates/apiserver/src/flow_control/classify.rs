//! Which FlowSchema a request belongs to.
//!
//! Invariant: requests read one immutable list, which is replaced as a whole when the objects change.
//!
//! Follows: `k8s.io/apiserver/pkg/util/flowcontrol/rule.go`.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::ObjectMeta;
use http::HeaderValue;
use parking_lot::RwLock;

use crate::authn::UserInfo;
use crate::registry::ResourceHandle;
use crate::request_info::RequestInfo;

/// What the headers of an answer say: the uids of the FlowSchema and of its priority level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    pub schema: HeaderValue,
    pub level: HeaderValue,
}

/// The FlowSchemas whose priority level exists, in the order in which they are asked.
#[derive(Default)]
pub struct FlowControl(RwLock<Arc<Vec<(Class, Vec<Rule>)>>>);

impl FlowControl {
    /// Reads the objects anew.
    pub fn refresh(&self, schemas: &ResourceHandle, levels: &ResourceHandle) {
        let all = |handle: &ResourceHandle| {
            let cache = handle.storage.as_ref().map(|s| &s.cache);
            cache.map_or(Vec::new(), |cache| cache.snapshot("", 0, |_| true).entries)
        };
        let levels: Vec<Value> = all(levels).iter().map(|e| e.to_value()).collect();
        let schemas: Vec<Value> = all(schemas).iter().map(|e| e.to_value()).collect();
        *self.0.write() = Arc::new(order(&schemas, &levels));
    }

    /// The class of a request; none only while a server starts.
    pub fn classify(&self, user: &UserInfo, info: &RequestInfo) -> Option<Class> {
        let list = self.0.read().clone();
        list.iter().find(|(_, rules)| rules.iter().any(|r| r.matches(user, info))).map(|(class, _)| class.clone())
    }
}

fn order(schemas: &[Value], levels: &[Value]) -> Vec<(Class, Vec<Rule>)> {
    let uid = |object: &Value| HeaderValue::from_str(object.uid()).ok();
    let mut found: Vec<(i64, &str, Class, Vec<Rule>)> = schemas
        .iter()
        .filter_map(|schema| {
            let wanted = schema.str_at(&["spec", "priorityLevelConfiguration", "name"]);
            let level = levels.iter().find(|level| level.name() == wanted)?;
            let precedence = schema.at(&["spec", "matchingPrecedence"]).and_then(Value::as_i64).unwrap_or(0);
            let rules = schema.array_at(&["spec", "rules"]).iter().map(Rule::new).collect();
            Some((precedence, schema.name(), Class { schema: uid(schema)?, level: uid(level)? }, rules))
        })
        .collect();
    found.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    found.into_iter().map(|(_, _, class, rules)| (class, rules)).collect()
}

/// Subjects and what they ask for.
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

struct ResourceRule {
    verbs: Names,
    groups: Names,
    resources: Names,
    namespaces: Names,
    cluster_scope: bool,
}

struct PathRule {
    verbs: Names,
    paths: Vec<String>,
}

/// Names, or all of them.
enum Names {
    All,
    These(Vec<String>),
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    value.array_at(&[key]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Names {
    fn read(value: &Value, key: &str) -> Names {
        let names = strings(value, key);
        if names == ["*"] { Names::All } else { Names::These(names) }
    }

    fn have(&self, name: &str) -> bool {
        match self {
            Names::All => true,
            Names::These(names) => names.iter().any(|n| n == name),
        }
    }
}

impl Subject {
    fn read(subject: &Value) -> Option<Subject> {
        let name = |key: &str| subject.str_at(&[key, "name"]).to_owned();
        match subject.str_at(&["kind"]) {
            "User" => Some(Subject::User(name("user"))),
            "Group" => Some(Subject::Group(name("group"))),
            "ServiceAccount" => Some(Subject::ServiceAccount {
                namespace: subject.str_at(&["serviceAccount", "namespace"]).to_owned(),
                name: name("serviceAccount"),
            }),
            _ => None,
        }
    }

    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.name,
            Subject::Group(name) => name == "*" || user.is_in(name),
            Subject::ServiceAccount { namespace, name } => {
                let account = user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
                account.is_some_and(|(ns, account)| ns == namespace && (name == "*" || name == account))
            }
        }
    }
}

impl Rule {
    fn new(rule: &Value) -> Rule {
        Rule {
            subjects: rule.array_at(&["subjects"]).iter().filter_map(Subject::read).collect(),
            resources: rule
                .array_at(&["resourceRules"])
                .iter()
                .map(|r| ResourceRule {
                    verbs: Names::read(r, "verbs"),
                    groups: Names::read(r, "apiGroups"),
                    resources: Names::read(r, "resources"),
                    namespaces: Names::read(r, "namespaces"),
                    cluster_scope: r["clusterScope"].as_bool().unwrap_or(false),
                })
                .collect(),
            paths: rule
                .array_at(&["nonResourceRules"])
                .iter()
                .map(|r| PathRule { verbs: Names::read(r, "verbs"), paths: strings(r, "nonResourceURLs") })
                .collect(),
        }
    }

    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        if !self.subjects.iter().any(|s| s.is(user)) {
            return false;
        }
        if !info.is_resource {
            return self.paths.iter().any(|r| r.matches(info));
        }
        self.resources.iter().any(|r| r.matches(info))
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let named = match info.subresource.as_str() {
            "" => self.resources.have(&info.resource),
            subresource => match &self.resources {
                Names::All => true,
                Names::These(names) => {
                    names.iter().any(|n| n.split_once('/') == Some((info.resource.as_str(), subresource)))
                }
            },
        };
        named
            && self.verbs.have(&info.verb)
            && self.groups.have(&info.group)
            && match info.namespace.as_str() {
                "" => self.cluster_scope,
                namespace => self.namespaces.have(namespace),
            }
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let path = info.path.as_str();
        self.verbs.have(&info.verb)
            && self.paths.iter().any(|rule| {
                if rule == "*" || rule == path {
                    return true;
                }
                // `/a` and `/a/*` are both about what is below `/a`.
                let prefix = rule.strip_suffix('*').unwrap_or(rule);
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::super::bootstrap::{levels, schemas};
    use super::*;

    fn with_uids(mut objects: Vec<Value>) -> Vec<Value> {
        for object in &mut objects {
            let name = object.name().to_owned();
            object.metadata_mut().insert("uid", name.into());
        }
        objects
    }

    fn flow_control(schemas: Vec<Value>, levels: Vec<Value>) -> FlowControl {
        FlowControl(RwLock::new(Arc::new(order(&with_uids(schemas), &with_uids(levels)))))
    }

    #[test]
    fn requests_of_a_fresh_server_belong_to_the_schemas_that_a_real_one_names() {
        let flow = flow_control(schemas(), levels());
        let account = |ns: &str| format!("system:serviceaccount:{ns}:x");
        // (user, groups, request, "schema level"). Source: the table in kubernetes.io "API Priority and Fairness".
        for (user, groups, target, want) in [
            ("admin", &["system:masters", "system:authenticated"][..], "GET /api/v1/pods", "exempt exempt"),
            ("jane", &["system:authenticated"], "GET /healthz", "probes exempt"),
            ("jane", &["system:authenticated"], "POST /healthz", "global-default global-default"),
            ("jane", &["system:authenticated"], "GET /readyz/ping", "probes exempt"),
            ("jane", &["system:authenticated"], "GET /api/v1/pods", "global-default global-default"),
            ("jane", &["other"], "GET /api/v1/pods", "-"),
            ("system:anonymous", &["system:unauthenticated"], "GET /version", "global-default global-default"),
            ("system:node:a", &["system:nodes"], "GET /api/v1/nodes/a", "system-node-high node-high"),
            ("system:node:a", &["system:nodes"], "PATCH /api/v1/nodes/a/status", "system-node-high node-high"),
            ("system:node:a", &["system:nodes"], "GET /api/v1/pods", "system-nodes system"),
            ("system:kube-scheduler", &[], "GET /api/v1/pods", "kube-scheduler workload-high"),
            (
                "system:kube-scheduler",
                &[],
                "PUT /apis/coordination.k8s.io/v1/namespaces/kube-system/leases/a",
                "system-leader-election leader-election",
            ),
            (
                &account("kube-system"),
                &["system:serviceaccounts"],
                "GET /api/v1/pods",
                "kube-system-service-accounts workload-high",
            ),
            (&account("kube"), &["system:serviceaccounts"], "GET /api/v1/pods", "service-accounts workload-low"),
        ] {
            let (method, path) = target.split_once(' ').unwrap();
            let info = RequestInfo::new(&method.parse().unwrap(), path, None);
            let got = flow.classify(&UserInfo::new(user, groups.iter().copied()), &info);
            let shown = got.map_or("-".to_owned(), |class| {
                format!("{} {}", class.schema.to_str().unwrap(), class.level.to_str().unwrap())
            });
            assert_eq!(shown, want, "{user} {groups:?} {target}");
        }
    }

    #[test]
    fn schemas_without_their_level_are_passed_over_and_precedence_then_name_decides() {
        let schema = |name: &str, level: &str, precedence: i64| {
            apimachinery::json!({"metadata": {"name": name}, "spec": {
                "matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": level},
                "rules": [{"subjects": [{"kind": "Group", "group": {"name": "*"}}],
                    "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}})
        };
        let first = |schemas: Vec<Value>| {
            let info = RequestInfo::new(&http::Method::GET, "/x", None);
            let flow = flow_control(schemas, levels());
            flow.classify(&UserInfo::new("a", ["b"]), &info).map(|c| c.schema.to_str().unwrap().to_owned())
        };
        let (b, a) = (schema("b", "system", 5), schema("a", "system", 5));
        assert_eq!(first(vec![b.clone(), a]).as_deref(), Some("a"));
        assert_eq!(first(vec![schema("c", "system", 6), b.clone()]).as_deref(), Some("b"));
        assert_eq!(first(vec![schema("d", "nowhere", 1), b]).as_deref(), Some("b"));
        assert_eq!(first(vec![schema("d", "nowhere", 1)]), None);
    }
}
