//! Whose token it is and what a user may do, asked of the other server. For requests that are answered here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::{Value, json};
use async_trait::async_trait;
use http::Method;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::Upstream;
use crate::authn::{AuthenticationError, UserInfo};
use crate::authz::{Attributes, Authorization, Authorizer, Decision};
use crate::tokens::{TokenAuthenticator, TokenUser};

/// How long the answer about a token counts, and how many are kept.
const TOKEN_TIME: Duration = Duration::from_secs(5);
const TOKENS_MAX: usize = 512;

const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// By the hash of the token: the token itself is kept nowhere.
type Tokens = HashMap<[u8; 32], (Instant, UserInfo)>;

/// Asks the other server who somebody is (TokenReview) and what they may do (SubjectAccessReview).
pub struct Reviews {
    upstream: Arc<Upstream>,
    tokens: Mutex<Tokens>,
}

impl Reviews {
    pub fn new(upstream: Arc<Upstream>) -> Reviews {
        Reviews { upstream, tokens: Mutex::default() }
    }

    fn known(&self, hash: &[u8; 32]) -> Option<UserInfo> {
        let tokens = self.tokens.lock();
        let (since, user) = tokens.get(hash)?;
        (since.elapsed() < TOKEN_TIME).then(|| user.clone())
    }

    fn keep(&self, hash: [u8; 32], user: UserInfo) {
        let mut tokens = self.tokens.lock();
        if tokens.len() >= TOKENS_MAX {
            tokens.retain(|_, (since, _)| since.elapsed() < TOKEN_TIME);
        }
        if tokens.len() < TOKENS_MAX {
            tokens.insert(hash, (Instant::now(), user));
        }
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn user_of(value: &Value) -> UserInfo {
    let extra = value.get("extra").and_then(Value::as_object);
    UserInfo {
        name: value.str_at(&["username"]).to_owned(),
        uid: value.str_at(&["uid"]).to_owned(),
        groups: strings(&value["groups"]),
        extra: extra.into_iter().flat_map(|map| map.iter()).map(|(k, v)| (k.to_string(), strings(v))).collect(),
    }
}

#[async_trait]
impl TokenAuthenticator for Reviews {
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<TokenUser>, AuthenticationError> {
        let audiences = audiences.to_vec();
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(user) = self.known(&hash) {
            return Ok(Some(TokenUser { user, audiences }));
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token},
        });
        let answer = self.upstream.call(Method::POST, TOKEN_REVIEWS, Some(&review)).await;
        let answer = answer.map_err(|status| AuthenticationError(status.message))?;
        if answer["status"]["authenticated"] != true {
            return Err(AuthenticationError(answer.str_at(&["status", "error"]).to_owned()));
        }
        let user = user_of(&answer["status"]["user"]);
        self.keep(hash, user.clone());
        Ok(Some(TokenUser { user, audiences }))
    }
}

#[async_trait]
impl Authorizer for Reviews {
    async fn authorize(&self, attributes: &Attributes) -> Authorization {
        let review = access_review(attributes);
        match self.upstream.call(Method::POST, ACCESS_REVIEWS, Some(&review)).await {
            Ok(answer) => {
                let status = &answer["status"];
                let decision = match (status["allowed"] == true, status["denied"] == true) {
                    (true, _) => Decision::Allow,
                    (_, true) => Decision::Deny,
                    _ => Decision::NoOpinion,
                };
                Authorization { decision, reason: status.str_at(&["reason"]).to_owned() }
            }
            Err(status) => Authorization { decision: Decision::NoOpinion, reason: status.message },
        }
    }
}

fn access_review(a: &Attributes) -> Value {
    let user = &a.user;
    let extra: Vec<(String, Value)> =
        user.extra.iter().map(|(key, values)| (key.clone(), json!(values.as_slice()))).collect();
    let mut spec = json!({
        "user": (user.name.as_str()), "uid": (user.uid.as_str()), "groups": (user.groups.as_slice()), "extra": {},
    });
    for (key, values) in extra {
        spec["extra"][key.as_str()] = values;
    }
    if a.is_resource {
        spec["resourceAttributes"] = json!({
            "namespace": (a.namespace.as_str()), "verb": (a.verb.as_str()), "group": (a.group.as_str()),
            "version": (a.version.as_str()), "resource": (a.resource.as_str()),
            "subresource": (a.subresource.as_str()), "name": (a.name.as_str()),
        });
    } else {
        spec["nonResourceAttributes"] = json!({"path": (a.path.as_str()), "verb": (a.verb.as_str())});
    }
    json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reviews_carry_the_whole_question() {
        let mut user = UserInfo::new("jane", ["dev"]);
        user.extra.insert("acme.com/project".into(), vec!["p".into()]);
        let resource = Attributes {
            user: user.clone(),
            verb: "create".into(),
            namespace: "a".into(),
            version: "v1".into(),
            resource: "pods".into(),
            subresource: "exec".into(),
            name: "web".into(),
            is_resource: true,
            ..Attributes::default()
        };
        let review = access_review(&resource);
        assert_eq!(review.str_at(&["spec", "resourceAttributes", "subresource"]), "exec");
        assert_eq!(review["spec"]["extra"]["acme.com/project"], json!(["p"]));
        let path = Attributes { user, verb: "get".into(), path: "/metrics/syncer".into(), ..Attributes::default() };
        let review = access_review(&path);
        assert_eq!(review["spec"]["nonResourceAttributes"], json!({"path": "/metrics/syncer", "verb": "get"}));
        assert!(review["spec"].get("resourceAttributes").is_none());
    }

    #[test]
    fn users_are_read_from_reviews() {
        let user = user_of(&json!({"username": "u", "uid": "1", "groups": ["a", "b"], "extra": {"k": ["v"]}}));
        assert_eq!((user.name.as_str(), user.uid.as_str(), user.groups.len()), ("u", "1", 2));
        assert_eq!(user.extra["k"], ["v"]);
    }
}
