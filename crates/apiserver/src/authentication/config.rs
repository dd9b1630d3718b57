//! Who may say who somebody is: `AuthenticationConfiguration`, and what the `--oidc-*` flags mean in its terms.
//!
//! Follows: `k8s.io/apiserver/pkg/apis/apiserver`, its `validation`, `pkg/kubeapiserver/options/authentication.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use apimachinery::field::{FieldError, FieldPath};
use cel::{Decl, Environment, Program, Type};
use serde::Deserialize;

/// `AuthenticationConfiguration` of `apiserver.config.k8s.io`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationConfiguration {
    api_version: String,
    kind: String,
    #[serde(default)]
    pub jwt: Vec<JwtAuthenticator>,
    #[serde(default)]
    pub anonymous: Option<Anonymous>,
}

/// Requests without a credential.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anonymous {
    pub enabled: bool,
    #[serde(default)]
    pub conditions: Vec<AnonymousCondition>,
}

/// A path that may be asked for without a credential.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnonymousCondition {
    pub path: String,
}

/// One issuer of tokens and what its claims mean.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtAuthenticator {
    pub issuer: Issuer,
    #[serde(default)]
    pub claim_validation_rules: Vec<ClaimValidationRule>,
    #[serde(default)]
    pub claim_mappings: ClaimMappings,
    #[serde(default)]
    pub user_validation_rules: Vec<UserValidationRule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuer {
    #[serde(default)]
    pub url: String,
    #[serde(default, rename = "discoveryURL")]
    pub discovery_url: String,
    /// PEM; empty: the system's authorities.
    #[serde(default)]
    pub certificate_authority: String,
    #[serde(default)]
    pub audiences: Vec<String>,
    #[serde(default)]
    pub audience_match_policy: String,
    #[serde(default)]
    pub egress_selector_type: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimValidationRule {
    #[serde(default)]
    pub claim: String,
    #[serde(default)]
    pub required_value: String,
    #[serde(default)]
    pub expression: String,
    #[serde(default)]
    pub message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimMappings {
    #[serde(default)]
    pub username: Mapping,
    #[serde(default)]
    pub groups: Mapping,
    #[serde(default)]
    pub uid: ClaimOrExpression,
    #[serde(default)]
    pub extra: Vec<ExtraMapping>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mapping {
    #[serde(default)]
    pub claim: String,
    #[serde(default)]
    pub prefix: Option<String>,
    #[serde(default)]
    pub expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimOrExpression {
    #[serde(default)]
    pub claim: String,
    #[serde(default)]
    pub expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtraMapping {
    #[serde(default)]
    pub key: String,
    #[serde(default)]
    pub value_expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UserValidationRule {
    #[serde(default)]
    pub expression: String,
    #[serde(default)]
    pub message: String,
}

impl AuthenticationConfiguration {
    /// Reads a file; unknown fields are errors. Nothing is validated yet.
    pub fn parse(text: &str) -> Result<AuthenticationConfiguration, String> {
        let config: AuthenticationConfiguration = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let versions = ["v1", "v1beta1", "v1alpha1"].map(|version| format!("apiserver.config.k8s.io/{version}"));
        if !versions.contains(&config.api_version) || config.kind != "AuthenticationConfiguration" {
            return Err(format!("no kind {:?} is registered for version {:?}", config.kind, config.api_version));
        }
        Ok(config)
    }

    /// What is wrong with it. `disallowed`: issuers of this server's own tokens.
    pub fn validate(&self, disallowed: &[String]) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let root = FieldPath::new("jwt");
        let (mut issuers, mut discoveries) = (BTreeSet::new(), BTreeSet::new());
        for (index, jwt) in self.jwt.iter().enumerate() {
            let path = root.index(index);
            if let Err(mut wrong) = Compiled::new(jwt, disallowed, &path) {
                errors.append(&mut wrong);
            }
            if !issuers.insert(jwt.issuer.url.as_str()) {
                errors.push(FieldError::duplicate(&path.children(&["issuer", "url"]), jwt.issuer.url.as_str()));
            }
            let discovery = jwt.issuer.discovery_url.as_str();
            if !discovery.is_empty() && !discoveries.insert(discovery) {
                errors.push(FieldError::duplicate(&path.children(&["issuer", "discoveryURL"]), discovery));
            }
        }
        if self.jwt.len() > 64 {
            errors.push(FieldError::too_many(&root, i64::try_from(self.jwt.len()).unwrap_or(i64::MAX), 64));
        }
        if self.anonymous.as_ref().is_some_and(|a| !a.enabled && !a.conditions.is_empty()) {
            let path = FieldPath::new("anonymous").child("conditions");
            let text = "enabled should be set to true when conditions are defined";
            errors.push(FieldError::invalid(&path, "", text));
        }
        errors
    }
}

/// The expressions of an issuer, compiled.
pub(crate) struct Compiled {
    pub username: Option<Program>,
    pub groups: Option<Program>,
    pub uid: Option<Program>,
    pub extra: Vec<(String, Program)>,
    pub claim_rules: Vec<(Program, String)>,
    pub user_rules: Vec<(Program, String)>,
}

fn claims_environment() -> Environment {
    let claims = Decl::map(Decl::new(Type::String).into(), Decl::new(Type::Dyn).into(), None);
    Environment::new().with("claims", claims)
}

fn user_environment() -> Environment {
    let text = || Decl::new(Type::String);
    let list = || Decl::list(text().into(), None);
    let fields = [
        ("username", text()),
        ("uid", text()),
        ("groups", list()),
        ("extra", Decl::map(text().into(), list().into(), None)),
    ];
    let fields: BTreeMap<_, _> = fields.map(|(name, decl)| (name.to_owned(), decl.into())).into();
    Environment::new().with("user", Decl::object("kubernetes.UserInfo", fields))
}

/// Expressions whose result has to be true or false.
fn compile(
    source: &str,
    environment: &Environment,
    must_be_bool: bool,
    path: &FieldPath,
    errors: &mut Vec<FieldError>,
) -> Option<Program> {
    match Program::compile(source, environment) {
        Ok(program) if must_be_bool && program.output().to_string() != "bool" => {
            errors.push(FieldError::invalid(path, source, "must evaluate to bool"));
            None
        }
        Ok(program) => Some(program),
        Err(error) => {
            errors.push(FieldError::invalid(path, source, error.detail()));
            None
        }
    }
}

static EMAIL: LazyLock<regex::Regex> = LazyLock::new(|| claim_pattern("email"));
static EMAIL_VERIFIED: LazyLock<regex::Regex> = LazyLock::new(|| claim_pattern("email_verified"));

fn claim_pattern(claim: &str) -> regex::Regex {
    let pattern = format!(r#"\bclaims\s*(\.\s*\??\s*{claim}\b|\[\s*\??\s*["']{claim}["']\s*\])"#);
    regex::Regex::new(&pattern).expect("the pattern is a constant")
}

impl Compiled {
    /// Compiles and checks everything about an issuer.
    pub fn new(jwt: &JwtAuthenticator, disallowed: &[String], path: &FieldPath) -> Result<Compiled, Vec<FieldError>> {
        let mut errors = Vec::new();
        check_issuer(&jwt.issuer, disallowed, &path.child("issuer"), &mut errors);
        let claims = claims_environment();
        let claim_rules = claim_rules(jwt, &claims, &path.child("claimValidationRules"), &mut errors);
        let mappings = &jwt.claim_mappings;
        let here = path.child("claimMappings");
        let username = mapping(&mappings.username, true, &claims, &here.child("username"), &mut errors);
        let groups = mapping(&mappings.groups, false, &claims, &here.child("groups"), &mut errors);
        let uid = match (mappings.uid.claim.as_str(), mappings.uid.expression.as_str()) {
            (_, "") => None,
            ("", source) => compile(source, &claims, false, &here.children(&["uid", "expression"]), &mut errors),
            _ => {
                errors.push(FieldError::invalid(&here.child("uid"), "", "claim and expression can't both be set"));
                None
            }
        };
        let extra = extra(mappings, &claims, &here.child("extra"), &mut errors);
        let all = username.iter().chain(extra.iter().map(|(_, program)| program));
        let mut all = all.chain(claim_rules.iter().map(|(program, _)| program));
        let is_verified = all.any(|program| EMAIL_VERIFIED.is_match(program.source()));
        if username.as_ref().is_some_and(|program| EMAIL.is_match(program.source())) && !is_verified {
            let text = "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression";
            let path = here.children(&["username", "expression"]);
            errors.push(FieldError::invalid(&path, mappings.username.expression.as_str(), text));
        }
        let user_rules = user_rules(jwt, &path.child("userValidationRules"), &mut errors);
        match errors.is_empty() {
            true => Ok(Compiled { username, groups, uid, extra, claim_rules, user_rules }),
            false => Err(errors),
        }
    }
}

fn check_url(url: &str, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let mut wrong = |text: &str| errors.push(FieldError::invalid(path, url, text));
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        wrong("URL scheme must be https");
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        wrong("URL must not contain a username or password");
    }
    if rest.split('#').next().is_some_and(|rest| rest.contains('?')) {
        wrong("URL must not contain a query");
    }
    if rest.contains('#') {
        wrong("URL must not contain a fragment");
    }
}

fn check_issuer(issuer: &Issuer, disallowed: &[String], path: &FieldPath, errors: &mut Vec<FieldError>) {
    let here = path.child("url");
    if issuer.url.is_empty() {
        errors.push(FieldError::required(&here, ""));
    } else {
        if disallowed.contains(&issuer.url) {
            let text = format!("URL must not overlap with disallowed issuers: [{}]", disallowed.join(" "));
            errors.push(FieldError::invalid(&here, issuer.url.as_str(), text));
        }
        check_url(&issuer.url, &here, errors);
    }
    if !issuer.discovery_url.is_empty() {
        let here = path.child("discoveryURL");
        if issuer.url.trim_end_matches('/') == issuer.discovery_url.trim_end_matches('/') {
            let text = "discoveryURL must be different from URL";
            errors.push(FieldError::invalid(&here, issuer.discovery_url.as_str(), text));
        }
        check_url(&issuer.discovery_url, &here, errors);
    }
    let here = path.child("audiences");
    if issuer.audiences.is_empty() {
        errors.push(FieldError::required(&here, format!("at least one {} is required", here)));
    }
    let mut seen = BTreeSet::new();
    for (index, audience) in issuer.audiences.iter().enumerate() {
        if audience.is_empty() {
            errors.push(FieldError::required(&here.index(index), ""));
        }
        if !seen.insert(audience) {
            errors.push(FieldError::duplicate(&here.index(index), audience.as_str()));
        }
    }
    let policy = issuer.audience_match_policy.as_str();
    let here = path.child("audienceMatchPolicy");
    if issuer.audiences.len() > 1 && policy != "MatchAny" {
        let text = "audienceMatchPolicy must be MatchAny for multiple audiences";
        errors.push(FieldError::invalid(&here, policy, text));
    }
    if issuer.audiences.len() == 1 && !["", "MatchAny"].contains(&policy) {
        let text = "audienceMatchPolicy must be empty or MatchAny for single audience";
        errors.push(FieldError::invalid(&here, policy, text));
    }
    if !issuer.certificate_authority.is_empty()
        && let Err(error) = crate::aggregator::trust::pem_bundle(&issuer.certificate_authority)
    {
        errors.push(FieldError::invalid(&path.child("certificateAuthority"), "<omitted>", error.to_string()));
    }
    if !issuer.egress_selector_type.is_empty() {
        let here = path.child("egressSelectorType");
        errors.push(FieldError::invalid(&here, issuer.egress_selector_type.as_str(), "egress selectors are not built"));
    }
}

fn claim_rules(
    jwt: &JwtAuthenticator,
    environment: &Environment,
    path: &FieldPath,
    errors: &mut Vec<FieldError>,
) -> Vec<(Program, String)> {
    let mut compiled = Vec::new();
    let (mut claims, mut expressions) = (BTreeSet::new(), BTreeSet::new());
    for (index, rule) in jwt.claim_validation_rules.iter().enumerate() {
        let path = path.index(index);
        match (rule.claim.is_empty(), rule.expression.is_empty()) {
            (false, false) => {
                let text = "claim and expression can't both be set";
                errors.push(FieldError::invalid(&path, rule.claim.as_str(), text));
            }
            (true, true) => errors.push(FieldError::required(&path, "claim or expression is required")),
            (false, true) => {
                if !rule.message.is_empty() {
                    let text = "may not be specified when claim is set";
                    errors.push(FieldError::invalid(&path.child("message"), rule.message.as_str(), text));
                }
                if !claims.insert(rule.claim.as_str()) {
                    errors.push(FieldError::duplicate(&path.child("claim"), rule.claim.as_str()));
                }
            }
            (true, false) => {
                if !rule.required_value.is_empty() {
                    let text = "may not be specified when expression is set";
                    let path = path.child("requiredValue");
                    errors.push(FieldError::invalid(&path, rule.required_value.as_str(), text));
                }
                let path = path.child("expression");
                if !expressions.insert(rule.expression.as_str()) {
                    errors.push(FieldError::duplicate(&path, rule.expression.as_str()));
                    continue;
                }
                let program = compile(&rule.expression, environment, true, &path, errors);
                compiled.extend(program.map(|program| (program, rule.message.clone())));
            }
        }
    }
    compiled
}

fn mapping(
    mapping: &Mapping,
    required: bool,
    environment: &Environment,
    path: &FieldPath,
    errors: &mut Vec<FieldError>,
) -> Option<Program> {
    match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
        (false, false) => {
            errors.push(FieldError::invalid(path, "", "claim and expression can't both be set"));
            None
        }
        (true, true) => {
            if required {
                errors.push(FieldError::required(path, "claim or expression is required"));
            }
            None
        }
        (true, false) => {
            if let Some(prefix) = &mapping.prefix {
                let text = "may not be specified when expression is set";
                errors.push(FieldError::invalid(&path.child("prefix"), prefix.as_str(), text));
            }
            compile(&mapping.expression, environment, false, &path.child("expression"), errors)
        }
        (false, true) => {
            if mapping.prefix.is_none() {
                let text =
                    "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                errors.push(FieldError::required(&path.child("prefix"), text));
            }
            None
        }
    }
}

fn extra(
    mappings: &ClaimMappings,
    environment: &Environment,
    path: &FieldPath,
    errors: &mut Vec<FieldError>,
) -> Vec<(String, Program)> {
    let mut compiled = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, mapping) in mappings.extra.iter().enumerate() {
        let path = path.index(index);
        let (key, here) = (mapping.key.as_str(), path.child("key"));
        let domain = key.split_once('/').map(|(domain, _)| domain);
        match domain {
            _ if key.is_empty() => errors.push(FieldError::required(&here, "")),
            None | Some("") => {
                let text = "must be a domain-prefixed path (such as \"acme.io/foo\")";
                errors.push(FieldError::invalid(&here, key, text));
            }
            Some(domain) => {
                let reserved = ["k8s.io", "kubernetes.io"];
                let is = |name: &&str| domain == *name || domain.ends_with(&format!(".{name}"));
                if reserved.iter().any(is) {
                    let text = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
                    errors.push(FieldError::invalid(&here, key, text));
                }
            }
        }
        if key.to_lowercase() != key {
            errors.push(FieldError::invalid(&here, key, "must be lowercase"));
        }
        if !seen.insert(key) {
            errors.push(FieldError::duplicate(&here, key));
            continue;
        }
        let here = path.child("valueExpression");
        if mapping.value_expression.is_empty() {
            errors.push(FieldError::required(&here, ""));
            continue;
        }
        let program = compile(&mapping.value_expression, environment, false, &here, errors);
        compiled.extend(program.map(|program| (key.to_owned(), program)));
    }
    compiled
}

fn user_rules(jwt: &JwtAuthenticator, path: &FieldPath, errors: &mut Vec<FieldError>) -> Vec<(Program, String)> {
    let environment = user_environment();
    let mut compiled = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, rule) in jwt.user_validation_rules.iter().enumerate() {
        let path = path.index(index).child("expression");
        if rule.expression.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else if !seen.insert(rule.expression.as_str()) {
            errors.push(FieldError::duplicate(&path, rule.expression.as_str()));
        } else {
            let program = compile(&rule.expression, &environment, true, &path, errors);
            compiled.extend(program.map(|program| (program, rule.message.clone())));
        }
    }
    compiled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(jwt: &str) -> Vec<String> {
        let text =
            format!("{{apiVersion: apiserver.config.k8s.io/v1, kind: AuthenticationConfiguration, jwt: [{jwt}]}}");
        let config = AuthenticationConfiguration::parse(&text).unwrap();
        let disallowed = ["https://own.example".to_owned()];
        config.validate(&disallowed).iter().map(ToString::to_string).collect()
    }

    const GOOD: &str = "issuer: {url: 'https://i.example', audiences: [a]}";
    const NAME: &str = "claimMappings: {username: {claim: sub, prefix: ''}}";

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        assert_eq!(wrong(&format!("{{{GOOD}, {NAME}}}")), Vec::<String>::new());
        for (jwt, want) in [
            (format!("{{issuer: {{audiences: [a]}}, {NAME}}}"), "jwt[0].issuer.url: Required value"),
            (
                format!("{{issuer: {{url: 'http://i.example', audiences: [a]}}, {NAME}}}"),
                "jwt[0].issuer.url: Invalid value: \"http://i.example\": URL scheme must be https",
            ),
            (
                format!("{{issuer: {{url: 'https://own.example', audiences: [a]}}, {NAME}}}"),
                "jwt[0].issuer.url: Invalid value: \"https://own.example\": URL must not overlap with disallowed issuers: [https://own.example]",
            ),
            (
                format!("{{issuer: {{url: 'https://i.example', audiences: [a, b]}}, {NAME}}}"),
                "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny for multiple audiences",
            ),
            (format!("{{{GOOD}}}"), "jwt[0].claimMappings.username: Required value: claim or expression is required"),
            (
                format!("{{{GOOD}, claimMappings: {{username: {{claim: sub}}}}}}"),
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            ),
            (
                format!("{{{GOOD}, {NAME}, claimValidationRules: [{{expression: 'claims.x'}}]}}"),
                "jwt[0].claimValidationRules[0].expression: Invalid value: \"claims.x\": must evaluate to bool",
            ),
            (
                format!("{{{GOOD}, claimMappings: {{username: {{expression: claims.email}}}}}}"),
                "jwt[0].claimMappings.username.expression: Invalid value: \"claims.email\": claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
            ),
            (
                format!(
                    "{{{GOOD}, claimMappings: {{username: {{claim: sub, prefix: ''}}, extra: [{{key: a.k8s.io/x, valueExpression: '1'}}]}}}}"
                ),
                "jwt[0].claimMappings.extra[0].key: Invalid value: \"a.k8s.io/x\": k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use",
            ),
        ] {
            assert_eq!(wrong(&jwt), [want], "{jwt}");
        }
        let verified = format!(
            "{{{GOOD}, claimMappings: {{username: {{expression: 'claims.email_verified ? claims.email : \"\"'}}}}}}"
        );
        assert_eq!(wrong(&verified), Vec::<String>::new());
        let unknown = "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthenticationConfiguration, jwks: []}";
        assert!(AuthenticationConfiguration::parse(unknown).unwrap_err().contains("jwks"));
        assert!(AuthenticationConfiguration::parse("{apiVersion: v1, kind: Pod}").is_err());
    }
}
