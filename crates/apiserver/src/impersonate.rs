//! Acting as somebody else: the `Impersonate-*` headers.
//!
//! Constrained impersonation is tried first (`impersonate-on:<mode>:<verb>` on what is asked, then `impersonate:<mode>` on
//! whom), then the older unconstrained verb `impersonate`. The first refusal is the one that is answered.
//!
//! Follows: `k8s.io/apiserver/pkg/endpoints/filters/impersonation`.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::field::FieldPath;
use apimachinery::gvk::GroupResource;
use apimachinery::names;
use apimachinery::status::{Status, StatusResult};
use http::HeaderMap;
use percent_encoding::percent_decode_str;

use crate::authn::{ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, ANONYMOUS, SYSTEM_MASTERS, UserInfo};
use crate::authz::{Attributes, Authorizer, Decision, forbidden_message, is_privileged};
use crate::request_info::RequestInfo;

const EXTRA_PREFIX: &str = "impersonate-extra-";
const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
const NODES_GROUP: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
/// From this many values on, one wildcard check is tried before one check for each.
const MANY_CHECKS: usize = 4;

/// Whom the headers ask for; `None` without such headers, 400 when they name no user.
fn wanted(headers: &HeaderMap) -> StatusResult<Option<UserInfo>> {
    let text =
        |name: &str| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default();
    let mut user = UserInfo { name: text("impersonate-user"), uid: text("impersonate-uid"), ..UserInfo::default() };
    for group in headers.get_all("impersonate-group") {
        user.groups.push(String::from_utf8_lossy(group.as_bytes()).into_owned());
    }
    for name in headers.keys() {
        let Some(key) = name.as_str().strip_prefix(EXTRA_PREFIX) else { continue };
        let key = percent_decode_str(key).decode_utf8().map_or_else(|_| key.to_owned(), |k| k.into_owned());
        let values = headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        user.extra.entry(key).or_default().extend(values);
    }
    if !user.name.is_empty() {
        return Ok(Some(user));
    }
    if user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty() {
        return Ok(None);
    }
    let message = format!("requested {} without impersonating a user name", go_user(&user));
    Err(Box::new(Status::bad_request(message)))
}

/// The user as Go prints it.
fn go_user(user: &UserInfo) -> String {
    let list = |values: &[String]| {
        let quoted: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
        format!("[]string{{{}}}", quoted.join(", "))
    };
    let groups = if user.groups.is_empty() { "[]string(nil)".to_owned() } else { list(&user.groups) };
    let extra = match user.extra.is_empty() {
        true => "map[string][]string(nil)".to_owned(),
        false => {
            let pairs: Vec<String> = user.extra.iter().map(|(k, v)| format!("{k:?}:{}", list(v))).collect();
            format!("map[string][]string{{{}}}", pairs.join(", "))
        }
    };
    format!("&user.DefaultInfo{{Name:{:?}, UID:{:?}, Groups:{groups}, Extra:{extra}}}", user.name, user.uid)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    /// Unconstrained, as it was before Kubernetes 1.35.
    Legacy,
}

impl Mode {
    const ALL: [Mode; 5] =
        [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "",
        }
    }

    /// Whether the mode can act as this user at all.
    fn fits(self, wanted: &UserInfo, requestor: &UserInfo) -> bool {
        let only_name = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let node = node_name(&wanted.name);
        match self {
            Mode::AssociatedNode => {
                let own = requestor.extra.get("authentication.kubernetes.io/node-name");
                let own = own.filter(|n| n.len() == 1).map(|n| n[0].as_str());
                only_name && node.is_some() && node == own && service_account(&requestor.name).is_some()
            }
            Mode::ArbitraryNode => only_name && node.is_some(),
            Mode::ServiceAccount => only_name && service_account(&wanted.name).is_some(),
            Mode::UserInfo => node.is_none() && service_account(&wanted.name).is_none(),
            Mode::Legacy => true,
        }
    }
}

fn node_name(user: &str) -> Option<&str> {
    user.strip_prefix(NODE_PREFIX).filter(|n| !n.is_empty())
}

/// Namespace and name of a service account's user.
pub fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let valid = names::is_dns1123_label(namespace).is_empty() && names::is_dns1123_subdomain(name).is_empty();
    valid.then_some((namespace, name))
}

struct Check<'a> {
    authorizer: &'a dyn Authorizer,
    requestor: &'a UserInfo,
    mode: Mode,
}

impl Check<'_> {
    fn attributes(&self, group: &str, resource: &str, name: &str) -> Attributes {
        let verb = match self.mode {
            Mode::Legacy => "impersonate".to_owned(),
            mode => format!("impersonate:{}", mode.name()),
        };
        Attributes {
            user: self.requestor.clone(),
            verb,
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            is_resource: true,
            ..Attributes::default()
        }
    }

    async fn authorize(&self, attributes: &Attributes) -> StatusResult<()> {
        if is_privileged(&attributes.user) {
            return Ok(());
        }
        let answer = self.authorizer.authorize(attributes).await;
        if answer.decision == Decision::Allow { Ok(()) } else { Err(forbidden(attributes, &answer.reason)) }
    }

    /// The impersonated user, complete with the groups it has by nature.
    async fn user(&self, wanted: &UserInfo) -> StatusResult<UserInfo> {
        let constrained = self.mode != Mode::Legacy;
        let name_group = if constrained { AUTHENTICATION_GROUP } else { "" };
        let mut actual = wanted.clone();
        let mut attributes = self.attributes(name_group, "users", &wanted.name);
        if let Some(node) = node_name(&wanted.name).filter(|_| constrained) {
            attributes.resource = "nodes".to_owned();
            // Any node: the answer must hold wherever the service account runs.
            attributes.name = if self.mode == Mode::AssociatedNode { "*".to_owned() } else { node.to_owned() };
            actual.groups = vec![NODES_GROUP.to_owned()];
        }
        if let Some((namespace, name)) = service_account(&wanted.name) {
            attributes.resource = "serviceaccounts".to_owned();
            attributes.namespace = namespace.to_owned();
            attributes.name = name.to_owned();
            if wanted.groups.is_empty() {
                actual.groups =
                    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
            }
        }
        self.authorize(&attributes).await?;
        if !wanted.uid.is_empty() {
            self.authorize(&self.attributes(AUTHENTICATION_GROUP, "uids", &wanted.uid)).await?;
        }
        self.groups(name_group, &wanted.groups).await?;
        self.extra(&wanted.extra).await?;
        if actual.name == ANONYMOUS {
            ensure_group(&mut actual, ALL_UNAUTHENTICATED);
        } else if !actual.is_in(ALL_UNAUTHENTICATED) {
            ensure_group(&mut actual, ALL_AUTHENTICATED);
        }
        Ok(actual)
    }

    async fn groups(&self, api_group: &str, groups: &[String]) -> StatusResult<()> {
        if self.mode != Mode::Legacy {
            let refuse = |name: &str, reason: &str| Err(forbidden(&self.attributes(api_group, "groups", name), reason));
            if groups.iter().any(String::is_empty) {
                return refuse("", "impersonating the empty string group is not allowed");
            }
            if groups.iter().any(|g| g == SYSTEM_MASTERS) {
                return refuse(SYSTEM_MASTERS, "impersonating the system:masters group is not allowed");
            }
            if groups.len() >= MANY_CHECKS && self.authorize(&self.attributes(api_group, "groups", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for group in groups {
            self.authorize(&self.attributes(api_group, "groups", group)).await?;
        }
        Ok(())
    }

    async fn extra(&self, extra: &BTreeMap<String, Vec<String>>) -> StatusResult<()> {
        let attributes = |key: &str, value: &str| {
            let mut attributes = self.attributes(AUTHENTICATION_GROUP, "userextras", value);
            attributes.subresource = key.to_owned();
            attributes
        };
        if self.mode != Mode::Legacy && !extra.is_empty() {
            if let Err(reason) = check_extra(extra) {
                return Err(forbidden(&attributes("", ""), &reason));
            }
            let large = extra.len() >= MANY_CHECKS || extra.values().map(Vec::len).sum::<usize>() >= MANY_CHECKS;
            if large && self.authorize(&attributes("*", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for (key, values) in extra {
            for value in values {
                self.authorize(&attributes(key, value)).await?;
            }
        }
        Ok(())
    }
}

fn check_extra(extra: &BTreeMap<String, Vec<String>>) -> Result<(), String> {
    let path = FieldPath::new("extra").child("key");
    for (key, values) in extra {
        if key.is_empty() {
            return Err("impersonating the empty string key in extra is not allowed".to_owned());
        }
        let errors = names::is_domain_prefixed_path(&path, key);
        if !errors.is_empty() {
            let reason = apimachinery::field::aggregate(&errors);
            return Err(format!("impersonating an invalid key in extra is not allowed: {reason}"));
        }
        if *key != key.to_lowercase() {
            return Err(format!("impersonating a non-lowercase key in extra is not allowed: {key:?}"));
        }
        if values.is_empty() {
            return Err("impersonating empty values in extra is not allowed".to_owned());
        }
        if values.iter().any(String::is_empty) {
            return Err("impersonating the empty string value in extra is not allowed".to_owned());
        }
    }
    Ok(())
}

fn ensure_group(user: &mut UserInfo, group: &str) {
    if !user.is_in(group) {
        user.groups.push(group.to_owned());
    }
}

fn forbidden(attributes: &Attributes, reason: &str) -> Box<Status> {
    let resource = GroupResource::new(attributes.group.as_str(), attributes.resource.as_str());
    Box::new(Status::forbidden(&resource, &attributes.name, forbidden_message(attributes, reason)))
}

/// The user that a request acts as: the one its headers ask for, when `requestor` may, else `requestor`.
pub async fn effective_user(
    authorizer: &dyn Authorizer,
    requestor: Arc<UserInfo>,
    info: &RequestInfo,
    headers: &HeaderMap,
) -> StatusResult<Arc<UserInfo>> {
    let Some(wanted) = wanted(headers)? else { return Ok(requestor) };
    let mut first_error = None;
    for mode in Mode::ALL {
        if !mode.fits(&wanted, &requestor) {
            continue;
        }
        let check = Check { authorizer, requestor: &requestor, mode };
        let result = async {
            if mode != Mode::Legacy {
                let mut attributes = Attributes::new(&requestor, info);
                attributes.verb = format!("impersonate-on:{}:{}", mode.name(), attributes.verb);
                check.authorize(&attributes).await?;
            }
            check.user(&wanted).await
        };
        match result.await {
            Ok(user) => return Ok(Arc::new(user)),
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error.unwrap_or_else(|| Box::new(Status::internal_error("all impersonation modes failed"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_name_the_wanted_user() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (k, v) in pairs {
                map.append(*k, v.parse().unwrap());
            }
            map
        };
        assert_eq!(wanted(&headers(&[("accept", "x")])).unwrap(), None);
        let user = wanted(&headers(&[
            ("impersonate-user", "jane"),
            ("impersonate-group", "a"),
            ("impersonate-group", "b"),
            ("impersonate-extra-acme.com%2fproject", "p"),
        ]))
        .unwrap()
        .unwrap();
        assert_eq!((user.name.as_str(), user.groups.len()), ("jane", 2));
        assert_eq!(user.extra["acme.com/project"], ["p"]);
        let error = wanted(&headers(&[("impersonate-extra-x", "g")])).unwrap_err();
        assert_eq!(
            error.message,
            "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string(nil), Extra:map[string][]string{\"x\":[]string{\"g\"}}} without impersonating a user name"
        );
    }
}
