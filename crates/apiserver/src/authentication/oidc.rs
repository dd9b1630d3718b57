//! Tokens of OpenID Connect issuers: who signed them, for whom, until when, and what their claims make of the user.
//!
//! The issuer's configuration and keys are fetched when the first of its tokens comes, and the keys again when a token is
//! signed by one that is not known: a few times in a row, then now and then, whatever clients send.
//!
//! Follows: `k8s.io/apiserver/plugin/pkg/authenticator/token/oidc`, `github.com/coreos/go-oidc`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use apimachinery::Value;
use apimachinery::field::FieldPath;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use cel::{Budget, Program, Val};
use http::{HeaderMap, Method};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use super::config::{Compiled, JwtAuthenticator};
use super::outgoing::Client;
use crate::aggregator::trust::{self, Trust};
use crate::authn::{ALL_AUTHENTICATED, AuthenticationError, UserInfo};
use crate::tokens::{TokenAuthenticator, TokenUser};

const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How far `nbf` may be ahead of this clock. Source: go-oidc.
const NOT_BEFORE_LEEWAY_SECONDS: f64 = 300.0;
/// How many times keys are fetched in a row, and when another time is allowed.
const FETCHES_MAX: u32 = 5;
const FETCH_PERIOD: Duration = Duration::from_secs(5);
/// What the expressions about one token may spend.
const BUDGET: u64 = 10_000_000;

/// Names of algorithms that tokens may be signed with.
pub const ALGORITHMS: [&str; 8] = ["ES256", "ES384", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"];

fn algorithm(name: &str) -> Option<Algorithm> {
    ALGORITHMS.contains(&name).then(|| name.parse().ok()).flatten()
}

/// Why an issuer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    #[error("{0}")]
    Config(String),
    #[error("oidc: unsupported signing alg: {0:?}")]
    Algorithm(String),
    #[error(transparent)]
    Tls(#[from] crate::aggregator::TrustError),
}

/// A key of the issuer.
struct Key {
    id: String,
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

/// How often something may still be done.
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let periods = now.duration_since(self.since).as_secs() / FETCH_PERIOD.as_secs();
        if periods > 0 {
            self.left = self.left.saturating_add(u32::try_from(periods).unwrap_or(u32::MAX)).min(FETCHES_MAX);
            self.since = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

/// Recognises the tokens of one issuer.
pub struct OidcAuthenticator {
    config: JwtAuthenticator,
    compiled: Compiled,
    algorithms: Vec<String>,
    client: Client,
    /// `--api-audiences`: what a token that this server takes is for.
    api_audiences: Vec<String>,
    keys: RwLock<Arc<Vec<Key>>>,
    /// One fetch at a time.
    fetching: Semaphore,
    allowance: Mutex<Allowance>,
}

impl OidcAuthenticator {
    /// Prepares everything that needs no network. `algorithms`: names such as `RS256`.
    pub fn new(
        config: JwtAuthenticator,
        algorithms: &[String],
        api_audiences: &[String],
        disallowed: &[String],
    ) -> Result<OidcAuthenticator, OidcError> {
        let compiled = Compiled::new(&config, disallowed, &FieldPath::new("jwt"));
        let compiled = compiled.map_err(|errors| OidcError::Config(apimachinery::field::aggregate(&errors)))?;
        if let Some(other) = algorithms.iter().find(|name| algorithm(name).is_none()) {
            return Err(OidcError::Algorithm(other.clone()));
        }
        let trust = match config.issuer.certificate_authority.as_str() {
            "" => Trust::System,
            pem => Trust::Bundle(trust::pem_bundle(pem)?),
        };
        let client = Client::new(trust::client_config(trust, None)?, None, FETCH_TIMEOUT);
        Ok(OidcAuthenticator {
            config,
            compiled,
            algorithms: algorithms.to_vec(),
            client,
            api_audiences: api_audiences.to_vec(),
            keys: RwLock::default(),
            fetching: Semaphore::new(1),
            allowance: Mutex::new(Allowance { left: FETCHES_MAX, since: Instant::now() }),
        })
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let (code, _, bytes) = self.client.exchange(Method::GET, url, HeaderMap::new(), Bytes::new()).await?;
        if code != 200 {
            return Err(format!("Get {url:?}: answered with {code}"));
        }
        Value::from_slice(&bytes).map_err(|error| format!("Get {url:?}: {error}"))
    }

    /// Fetches the keys, unless somebody else has done so since `known`.
    async fn fetch(&self, known: &Arc<Vec<Key>>) -> Result<Arc<Vec<Key>>, String> {
        let _one = self.fetching.acquire().await.map_err(|error| error.to_string())?;
        let current = self.keys.read().clone();
        if !Arc::ptr_eq(&current, known) {
            return Ok(current);
        }
        if !self.allowance.lock().take(Instant::now()) {
            return Err("the keys of the issuer were fetched too often".to_owned());
        }
        let issuer = &self.config.issuer;
        let discovery = match issuer.discovery_url.as_str() {
            "" => format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/')),
            url => url.to_owned(),
        };
        let provider = self.get(&discovery).await?;
        let said = provider.str_at(&["issuer"]);
        if said != issuer.url {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {said:?}",
                issuer.url
            ));
        }
        let url = provider.str_at(&["jwks_uri"]);
        if !url.starts_with("https://") {
            return Err(format!("the issuer's jwks_uri {url:?} does not begin with https://"));
        }
        let set = self.get(url).await?;
        let keys: Vec<Key> = set.array_at(&["keys"]).iter().filter_map(read_key).collect();
        let keys = Arc::new(keys);
        *self.keys.write() = Arc::clone(&keys);
        Ok(keys)
    }

    /// The claims of a token that is good.
    async fn verify(&self, token: &str, claims: Value) -> Result<Value, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        check_claims(&self.config.issuer.audiences, &claims, now.as_secs_f64())?;
        let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let header = header.and_then(|bytes| Value::from_slice(&bytes).ok()).ok_or("oidc: malformed jwt")?;
        let name = header.str_at(&["alg"]);
        let expected = || crate::rbac::rules::quoted_list(&self.algorithms);
        let found = algorithm(name).filter(|_| self.algorithms.iter().any(|known| known == name));
        let Some(found) = found else {
            return Err(format!(
                "oidc: malformed jwt: unexpected signature algorithm {name:?}; expected {}",
                expected()
            ));
        };
        let id = header.str_at(&["kid"]);
        let known = self.keys.read().clone();
        if is_signed(token, found, id, &known) {
            return Ok(claims);
        }
        let failed = "failed to verify signature";
        let fetched = self.fetch(&known).await.map_err(|error| format!("{failed}: fetching keys {error}"))?;
        match is_signed(token, found, id, &fetched) {
            true => Ok(claims),
            false => Err(format!("{failed}: failed to verify id token signature")),
        }
    }

    fn user(&self, claims: &Value) -> Result<UserInfo, String> {
        let mappings = &self.config.claim_mappings;
        let mut budget = Budget::new(BUDGET);
        let uses = !self.compiled.claim_rules.is_empty()
            || !self.compiled.extra.is_empty()
            || [&self.compiled.username, &self.compiled.groups, &self.compiled.uid].into_iter().any(Option::is_some);
        let value = if uses { Val::from_json(claims, None) } else { Val::Null };
        let variables = BTreeMap::from([("claims", value)]);
        let mut user = UserInfo { name: self.username(claims, &variables, &mut budget)?, ..UserInfo::default() };
        user.groups = self.groups(claims, &variables, &mut budget)?;
        let uid_claim = mappings.uid.claim.as_str();
        if !uid_claim.is_empty() {
            user.uid =
                text_claim(claims, uid_claim).map_err(|e| format!("oidc: parse uid claim {uid_claim:?}: {e}"))?;
        } else if let Some(program) = &self.compiled.uid {
            user.uid = text_of(program, &variables, &mut budget, "uid")?;
        }
        if let Some(id) = claims["jti"].as_str().filter(|id| !id.is_empty()) {
            user.extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={id}")]);
        }
        for (key, program) in &self.compiled.extra {
            let wrong = |error: String| format!("oidc: error evaluating extra claim expression: {error}");
            let found = evaluate(program, &variables, &mut budget).and_then(|val| strings(&val)).map_err(wrong)?;
            if !found.is_empty() {
                user.extra.insert(key.clone(), found);
            }
        }
        self.check_rules(claims, &variables, &mut budget)?;
        self.check_user(&user, &mut budget)?;
        if !user.is_in(ALL_AUTHENTICATED) {
            user.groups.push(ALL_AUTHENTICATED.to_owned());
        }
        Ok(user)
    }

    fn username(&self, claims: &Value, variables: &BTreeMap<&str, Val>, budget: &mut Budget) -> Result<String, String> {
        if let Some(program) = &self.compiled.username {
            let name = text_of(program, variables, budget, "username")?;
            if name.is_empty() {
                return Err("oidc: empty username via CEL expression is not allowed".to_owned());
            }
            return Ok(name);
        }
        let mapping = &self.config.claim_mappings.username;
        let claim = mapping.claim.as_str();
        let name = text_claim(claims, claim).map_err(|e| format!("oidc: parse username claims {claim:?}: {e}"))?;
        if claim == "email"
            && let Some(verified) = claims.get("email_verified")
        {
            match verified.as_bool() {
                None => return Err("oidc: parse 'email_verified' claim: it is no boolean".to_owned()),
                Some(false) => return Err("oidc: email not verified".to_owned()),
                Some(true) => {}
            }
        }
        Ok(format!("{}{name}", mapping.prefix.as_deref().unwrap_or_default()))
    }

    fn groups(
        &self,
        claims: &Value,
        variables: &BTreeMap<&str, Val>,
        budget: &mut Budget,
    ) -> Result<Vec<String>, String> {
        let mapping = &self.config.claim_mappings.groups;
        if let Some(program) = &self.compiled.groups {
            let wrong = |error: String| format!("oidc: error evaluating group claim expression: {error}");
            return evaluate(program, variables, budget).and_then(|val| strings(&val)).map_err(wrong);
        }
        if mapping.claim.is_empty() {
            return Ok(Vec::new());
        }
        let claim = mapping.claim.as_str();
        let found: Vec<String> = match claims.get(claim) {
            None if claims.at(&["_claim_names", claim]).is_some() => {
                return Err("oidc: could not expand distributed claims: they are not supported".to_owned());
            }
            None => return Ok(Vec::new()),
            Some(Value::String(one)) => vec![one.to_string()],
            Some(Value::Array(many)) => {
                let text = |value: &Value| value.as_str().map(str::to_owned);
                let all: Option<Vec<String>> = many.iter().map(text).collect();
                all.ok_or_else(|| format!("oidc: parse groups claim {claim:?}: it holds other things than strings"))?
            }
            Some(_) => return Err(format!("oidc: parse groups claim {claim:?}: it is no string and no list")),
        };
        let prefix = mapping.prefix.as_deref().unwrap_or_default();
        Ok(found.into_iter().map(|group| format!("{prefix}{group}")).collect())
    }

    fn check_rules(&self, claims: &Value, variables: &BTreeMap<&str, Val>, budget: &mut Budget) -> Result<(), String> {
        for rule in self.config.claim_validation_rules.iter().filter(|rule| !rule.claim.is_empty()) {
            let (claim, wanted) = (rule.claim.as_str(), rule.required_value.as_str());
            let Some(value) = claims.get(claim) else {
                return Err(format!("oidc: required claim {claim} not present in ID token"));
            };
            let got = value.as_str().ok_or_else(|| format!("oidc: parse claim {claim}: it is no string"))?;
            if got != wanted {
                return Err(format!("oidc: required claim {claim} value does not match. Got = {got}, want = {wanted}"));
            }
        }
        for (program, message) in &self.compiled.claim_rules {
            holds(program, message, variables, budget)
                .map_err(|error| format!("oidc: error evaluating claim validation expression: {error}"))?;
        }
        Ok(())
    }

    fn check_user(&self, user: &UserInfo, budget: &mut Budget) -> Result<(), String> {
        if self.compiled.user_rules.is_empty() {
            return Ok(());
        }
        let list = |values: &[String]| Value::Array(values.iter().map(|value| value.as_str().into()).collect());
        let mut shown = Value::object();
        shown["username"] = user.name.as_str().into();
        shown["uid"] = user.uid.as_str().into();
        shown["groups"] = list(&user.groups);
        shown["extra"] = Value::object();
        for (key, values) in &user.extra {
            shown["extra"][key.as_str()] = list(values);
        }
        let variables = BTreeMap::from([("user", Val::from_json(&shown, None))]);
        for (program, message) in &self.compiled.user_rules {
            holds(program, message, &variables, budget)
                .map_err(|error| format!("oidc: error evaluating user info validation rule: {error}"))?;
        }
        Ok(())
    }
}

fn read_key(jwk: &Value) -> Option<Key> {
    // Keys for encryption do not sign.
    if !["", "sig"].contains(&jwk.str_at(&["use"])) {
        return None;
    }
    let jwk_parsed: Jwk = jwk.to().ok()?;
    Some(Key {
        id: jwk.str_at(&["kid"]).to_owned(),
        algorithm: algorithm(jwk.str_at(&["alg"])),
        key: DecodingKey::from_jwk(&jwk_parsed).ok()?,
    })
}

fn is_signed(token: &str, algorithm: Algorithm, id: &str, keys: &[Key]) -> bool {
    let fits = |key: &&Key| (id.is_empty() || key.id == id) && key.algorithm.is_none_or(|known| known == algorithm);
    keys.iter().filter(fits).any(|key| {
        let mut validation = jsonwebtoken::Validation::new(algorithm);
        // Claims were looked at before.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        jsonwebtoken::decode::<serde::de::IgnoredAny>(token, &key.key, &validation).is_ok()
    })
}

/// The claims of a token that says it is of this issuer; nothing of them is proven.
fn unverified(token: &str, issuer: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let claims = Value::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    let said = match claims.str_at(&["iss"]) {
        "accounts.google.com" => "https://accounts.google.com",
        said => said,
    };
    (said == issuer).then_some(claims)
}

/// Audience and time.
fn check_claims(audiences: &[String], claims: &Value, now: f64) -> Result<(), String> {
    let named: Vec<String> = match &claims["aud"] {
        Value::String(one) => vec![one.to_string()],
        Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    if !named.iter().any(|name| audiences.contains(name)) {
        let got = crate::rbac::rules::quoted_list(&named);
        return Err(match audiences {
            [one] => format!("oidc: expected audience {one:?} got {got}"),
            many => format!("oidc: expected audience in {} got {got}", crate::rbac::rules::quoted_list(many)),
        });
    }
    let expiry = claims["exp"].as_f64().unwrap_or_default();
    if expiry < now {
        #[allow(clippy::cast_possible_truncation)]
        let shown = jiff::Timestamp::from_second(expiry as i64).map(|t| t.to_string()).unwrap_or_default();
        return Err(format!("oidc: token is expired (Token Expiry: {shown})"));
    }
    if let Some(from) = claims["nbf"].as_f64()
        && from > now + NOT_BEFORE_LEEWAY_SECONDS
    {
        return Err("oidc: the current time is before the nbf (not before) time".to_owned());
    }
    Ok(())
}

fn text_claim(claims: &Value, name: &str) -> Result<String, String> {
    let claim = claims.get(name).ok_or("claim not present")?;
    Ok(claim.as_str().ok_or("it is no string")?.to_owned())
}

fn evaluate(program: &Program, variables: &BTreeMap<&str, Val>, budget: &mut Budget) -> Result<Val, String> {
    let result = program.evaluate(variables, budget);
    result.map_err(|error| format!("expression '{}' resulted in error: {error}", program.source()))
}

fn text_of(
    program: &Program,
    variables: &BTreeMap<&str, Val>,
    budget: &mut Budget,
    what: &str,
) -> Result<String, String> {
    let wrong = |error: String| format!("oidc: error evaluating {what} claim expression: {error}");
    match evaluate(program, variables, budget).map_err(wrong)? {
        Val::String(text) => Ok(text.to_string()),
        _ => Err(wrong(format!("{what} claim expression must return a string"))),
    }
}

/// A string or a list of strings, without empty ones.
fn strings(val: &Val) -> Result<Vec<String>, String> {
    let wrong = || "expression must return a string or a list of strings".to_owned();
    let text = |val: &Val| match val {
        Val::String(text) => Ok(text.to_string()),
        _ => Err(wrong()),
    };
    let mut found = match val {
        Val::Null => Vec::new(),
        Val::List(list) => list.iter().map(text).collect::<Result<_, _>>()?,
        one => vec![text(one)?],
    };
    found.retain(|text| !text.is_empty());
    Ok(found)
}

fn holds(program: &Program, message: &str, variables: &BTreeMap<&str, Val>, budget: &mut Budget) -> Result<(), String> {
    match evaluate(program, variables, budget)? {
        Val::Bool(true) => Ok(()),
        Val::Bool(false) if !message.is_empty() => {
            Err(format!("validation expression '{}' failed: {message}", program.source()))
        }
        Val::Bool(false) => Err(format!("validation expression '{}' failed", program.source())),
        _ => Err("validation expression must return true".to_owned()),
    }
}

#[async_trait]
impl TokenAuthenticator for OidcAuthenticator {
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<TokenUser>, AuthenticationError> {
        // A token of an issuer is for this server, whatever it says: others have nothing to do with it.
        let common: Vec<String> = self.api_audiences.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if common.is_empty() {
            return Ok(None);
        }
        let Some(claims) = unverified(token, &self.config.issuer.url) else { return Ok(None) };
        let claims = self.verify(token, claims).await;
        let claims = claims.map_err(|error| AuthenticationError(format!("oidc: verify token: {error}")))?;
        let user = self.user(&claims).map_err(AuthenticationError)?;
        Ok(Some(TokenUser { user, audiences: common }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetches_are_allowed_a_few_times_and_then_now_and_then() {
        let start = Instant::now();
        let mut allowance = Allowance { left: FETCHES_MAX, since: start };
        let taken = (0..10).filter(|_| allowance.take(start)).count();
        assert_eq!(taken, 5);
        assert!(!allowance.take(start + Duration::from_secs(4)));
        assert!(allowance.take(start + Duration::from_secs(6)));
        assert!(!allowance.take(start + Duration::from_secs(7)));
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..10).filter(|_| allowance.take(later)).count(), 5, "not more than at first");
    }

    #[test]
    fn audiences_and_times_are_looked_at_before_any_signature() {
        let claims = |text: &str| Value::from_slice(text.as_bytes()).unwrap();
        let (one, two) = (["a".to_owned()], ["a".to_owned(), "b".to_owned()]);
        for (audiences, text, want) in [
            (&one[..], r#"{"aud": "a", "exp": 200}"#, ""),
            (&two[..], r#"{"aud": ["x", "b"], "exp": 200.5, "nbf": 300}"#, ""),
            (&one[..], r#"{"aud": ["b"], "exp": 200}"#, "oidc: expected audience \"a\" got [\"b\"]"),
            (&two[..], r#"{"exp": 200}"#, "oidc: expected audience in [\"a\" \"b\"] got []"),
            (&one[..], r#"{"aud": "a"}"#, "oidc: token is expired (Token Expiry: 1970-01-01T00:00:00Z)"),
            (&one[..], r#"{"aud": "a", "exp": 50}"#, "oidc: token is expired (Token Expiry: 1970-01-01T00:00:50Z)"),
            (
                &one[..],
                r#"{"aud": "a", "exp": 2000, "nbf": 1000}"#,
                "oidc: the current time is before the nbf (not before) time",
            ),
        ] {
            assert_eq!(check_claims(audiences, &claims(text), 100.0).err().unwrap_or_default(), want, "{text}");
        }
    }

    #[test]
    fn strings_come_alone_or_in_lists() {
        let list = |values: Vec<Val>| Val::List(Arc::new(values));
        assert_eq!(strings(&Val::from("a")).unwrap(), ["a"]);
        assert_eq!(strings(&Val::from("")).unwrap(), Vec::<String>::new());
        assert_eq!(strings(&list(vec![Val::from("a"), Val::from(""), Val::from("b")])).unwrap(), ["a", "b"]);
        assert!(strings(&list(vec![Val::from(1)])).is_err());
        assert!(strings(&Val::from(true)).is_err());
    }
}
