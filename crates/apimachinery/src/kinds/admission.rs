//! Webhook configurations, admission policies and their bindings.

use super::access::{Fields, semantic_equal};
use super::check::{self, Errors, Report, SelectorOptions, shown, strings};
use super::expressions::{Expression, ExpressionCheck, ExpressionUse, expression};
use super::object_meta::{self, MetaRules};
use crate::field::{FieldError, FieldPath};
use crate::json::Value;
use crate::names;

const META: MetaRules = MetaRules {
    namespaced: false,
    name: names::name_is_dns_subdomain,
    kube_finalizers: false,
    skip_generate_name: false,
};

fn resources(list: &Value, path: &FieldPath, errors: &mut Errors) {
    let entries = strings(list, "resources");
    if entries.is_empty() {
        errors.required(path, "");
    }
    let (mut whole, mut subs): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut plain = false;
    for (i, entry) in entries.iter().enumerate() {
        if entry.is_empty() {
            errors.required(&path.index(i), "");
            continue;
        }
        let Some((resource, sub)) = entry.split_once('/') else {
            plain = *entry != "*";
            continue;
        };
        if whole.contains(&resource) {
            let detail = format!("if '{resource}/*' is present, must not specify {entry}");
            errors.invalid(&path.index(i), *entry, detail);
        }
        if subs.contains(&sub) {
            errors.invalid(&path.index(i), *entry, format!("if '*/{sub}' is present, must not specify {entry}"));
        }
        if sub == "*" {
            whole.push(resource);
        }
        if resource == "*" {
            subs.push(sub);
        }
    }
    if entries.len() > 1 && entries.contains(&"*/*") {
        let detail = "if '*/*' is present, must not specify other resources";
        errors.invalid(path, shown(list.v("resources")), detail);
    }
    if entries.contains(&"*") && plain {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(path, shown(list.v("resources")), detail);
    }
}

const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

fn rule(rule: &Value, path: &FieldPath, errors: &mut Errors) {
    let wildcard = |key: &str, what: &str, errors: &mut Errors| {
        let list = strings(rule, key);
        if list.is_empty() {
            errors.required(&path.child(key), "");
        }
        if list.len() > 1 && list.contains(&"*") {
            let detail = format!("if '*' is present, must not specify other {what}");
            errors.invalid(&path.child(key), shown(rule.v(key)), detail);
        }
    };
    wildcard("operations", "operations", errors);
    for (i, operation) in strings(rule, "operations").into_iter().enumerate() {
        if !OPERATIONS.contains(&operation) {
            errors.not_supported(&path.child("operations").index(i), operation, OPERATIONS);
        }
    }
    wildcard("apiGroups", "API groups", errors);
    wildcard("apiVersions", "API versions", errors);
    for (i, version) in strings(rule, "apiVersions").into_iter().enumerate() {
        if version.is_empty() {
            errors.required(&path.child("apiVersions").index(i), "");
        }
    }
    resources(rule, &path.child("resources"), errors);
    check::optional_one_of(rule, "scope", &["*", "Cluster", "Namespaced"], path, errors);
}

const REVIEW_VERSIONS: &[&str] = &["v1", "v1beta1"];

fn has_known_version(hook: &Value) -> bool {
    strings(hook, "admissionReviewVersions").iter().any(|v| REVIEW_VERSIONS.contains(v))
}

fn review_versions(hook: &Value, require_known: bool, path: &FieldPath, errors: &mut Errors) {
    let versions = strings(hook, "admissionReviewVersions");
    if versions.is_empty() {
        return errors.required(path, "must specify one of v1, v1beta1");
    }
    for (i, version) in versions.iter().enumerate() {
        if versions[..i].contains(version) {
            errors.invalid(&path.index(i), *version, "duplicate version");
        } else {
            errors.messages(&path.index(i), version, names::is_dns1035_label(version));
        }
    }
    if require_known && !has_known_version(hook) {
        let detail = "must include at least one of v1, v1beta1";
        errors.invalid(path, shown(hook.v("admissionReviewVersions")), detail);
    }
}

/// How strict the rules for webhooks are, depending on what is stored.
struct HookOptions<'a> {
    skip_conditions: bool,
    no_side_effects: bool,
    known_version: bool,
    unique_names: bool,
    selectors: SelectorOptions,
    known: Vec<&'a str>,
}

fn no_side_effects(hook: &Value) -> bool {
    matches!(hook.s("sideEffects"), "None" | "NoneOnDryRun")
}

impl<'a> HookOptions<'a> {
    fn new(new: &Value, old: Option<&'a Value>) -> Self {
        let hooks = old.map_or(&[][..], |old| old.list("webhooks"));
        let same = |(a, b): (&Value, &Value)| semantic_equal(a.v("matchConditions"), b.v("matchConditions"));
        let all = new.list("webhooks");
        let mut selectors = SelectorOptions::default();
        let bad = |hook: &Value| {
            ["namespaceSelector", "objectSelector"].iter().any(|key| {
                let mut found = Errors::new();
                check::label_selector(hook.o(key), SelectorOptions::default(), &FieldPath::nil(), &mut found);
                !found.is_empty()
            })
        };
        selectors.allow_invalid_label_value = hooks.iter().any(bad);
        HookOptions {
            skip_conditions: old.is_some() && hooks.len() == all.len() && all.iter().zip(hooks).all(same),
            no_side_effects: hooks.iter().all(no_side_effects),
            known_version: hooks.iter().all(|h| h.list("admissionReviewVersions").is_empty() || has_known_version(h)),
            unique_names: (1..hooks.len()).all(|i| hooks[..i].iter().all(|h| h.s("name") != hooks[i].s("name"))),
            selectors,
            known: hooks.iter().flat_map(condition_sources).collect(),
        }
    }
}

fn condition_sources(holder: &Value) -> Vec<&str> {
    holder.list("matchConditions").iter().map(|c| c.s("expression")).collect()
}

/// A configuration of validating, or else of mutating, webhooks.
pub(crate) fn webhooks(
    new: &Value,
    old: Option<&Value>,
    mutating: bool,
    compile: ExpressionCheck<'_>,
    errors: &mut Errors,
) {
    object_meta::validate(new, META, errors);
    let options = HookOptions::new(new, old);
    let mut seen = Vec::new();
    for (i, hook) in new.list("webhooks").iter().enumerate() {
        let path = FieldPath::new("webhooks").index(i);
        webhook(hook, mutating, &options, compile, &path, errors);
        review_versions(hook, options.known_version, &path.child("admissionReviewVersions"), errors);
        let name = hook.s("name");
        if options.unique_names && !name.is_empty() {
            if seen.contains(&name) {
                errors.duplicate(&path.child("name"), name);
            } else {
                seen.push(name);
            }
        }
    }
}

fn webhook(
    hook: &Value,
    mutating: bool,
    options: &HookOptions<'_>,
    compile: ExpressionCheck<'_>,
    path: &FieldPath,
    errors: &mut Errors,
) {
    errors.append(&mut names::is_fully_qualified_name(&path.child("name"), hook.s("name")));
    for (i, one) in hook.list("rules").iter().enumerate() {
        rule(one, &path.child("rules").index(i), errors);
    }
    check::optional_one_of(hook, "failurePolicy", &["Fail", "Ignore"], path, errors);
    check::optional_one_of(hook, "matchPolicy", &["Equivalent", "Exact"], path, errors);
    let classes: &[&str] =
        if options.no_side_effects { &["None", "NoneOnDryRun"] } else { &["None", "NoneOnDryRun", "Some", "Unknown"] };
    let at = path.child("sideEffects");
    match hook.os("sideEffects") {
        None => errors.required(&at, format!("must specify one of {}", classes.join(", "))),
        Some(class) if !classes.contains(&class) => errors.not_supported(&at, class, classes),
        Some(_) => {}
    }
    if let Some(seconds) = hook.oi("timeoutSeconds")
        && !(1..=30).contains(&seconds)
    {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(&path.child("timeoutSeconds"), seconds, detail);
    }
    for key in ["namespaceSelector", "objectSelector"] {
        check::label_selector(hook.o(key), options.selectors, &path.child(key), errors);
    }
    if mutating {
        check::optional_one_of(hook, "reinvocationPolicy", &["IfNeeded", "Never"], path, errors);
    }
    client_config(hook.v("clientConfig"), &path.child("clientConfig"), errors);
    if !options.skip_conditions {
        let scope = Scope { compile, has_params: false, known: &options.known };
        match_conditions(hook.list("matchConditions"), &scope, &path.child("matchConditions"), errors);
    }
}

/// Where a webhook is called.
/// Checks where a webhook is, for objects that are not of the built-in kinds.
pub fn validate_webhook_client_config(config: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Errors::default();
    client_config(config, path, &mut errors);
    errors
}

pub(crate) fn client_config(config: &Value, path: &FieldPath, errors: &mut Errors) {
    match (config.os("url"), config.o("service")) {
        (Some(url), None) => webhook_url(url, &path.child("url"), errors),
        (None, Some(service)) => webhook_service(service, &path.child("service"), errors),
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

fn webhook_url(url: &str, path: &FieldPath, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    if let Some(bad) = url.bytes().find(|b| *b < 0x20 || *b == 0x7f) {
        let _ = bad;
        let detail = format!("url must be a valid URL: parse {url:?}: net/url: invalid control character in URL{FORM}");
        return errors.required(path, detail);
    }
    let (url, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (scheme, rest) = match url.split_once(':') {
        Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) => {
            (scheme.to_ascii_lowercase(), rest)
        }
        _ => (String::new(), url),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.strip_prefix("//").map_or("", |rest| rest.split('/').next().unwrap_or(""));
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if scheme != "https" {
        errors.invalid(path, scheme.as_str(), format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if host.is_empty() {
        errors.invalid(path, host, format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        errors.invalid(path, user, "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        errors.invalid(path, fragment, "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        errors.invalid(path, query, "query parameters are not permitted in the URL");
    }
}

/// A service as a webhook's address. Upstream takes name for namespace and the other way round; both are required.
fn webhook_service(service: &Value, path: &FieldPath, errors: &mut Errors) {
    for (key, shown) in [("namespace", "name"), ("name", "namespace")] {
        if service.s(key).is_empty() {
            errors.required(&path.child(shown), "");
        }
    }
    let port = service.i("port");
    let messages = names::is_valid_port_num(port);
    if !messages.is_empty() {
        errors.invalid(&path.child("port"), port, format!("port is not valid: {}", messages.join(", ")));
    }
    let url_path = service.s("path");
    let at = path.child("path");
    if matches!(url_path, "" | "/") {
        return;
    }
    if url_path == "//" {
        return errors.invalid(&at, url_path, "segment[0] may not be empty");
    }
    if !url_path.starts_with('/') {
        errors.invalid(&at, url_path, "must start with a '/'");
    }
    let mut rest = url_path.chars();
    rest.next();
    let rest = rest.as_str();
    for (i, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(&at, url_path, format!("segment[{i}] may not be empty"));
            continue;
        }
        for message in names::is_dns1123_subdomain(step) {
            errors.invalid(&at, url_path, format!("segment[{i}]: {message}"));
        }
    }
}

/// What match conditions compile against.
struct Scope<'a> {
    compile: ExpressionCheck<'a>,
    has_params: bool,
    /// Expressions that are stored already.
    known: &'a [&'a str],
}

fn match_conditions(conditions: &[Value], scope: &Scope<'_>, path: &FieldPath, errors: &mut Errors) {
    if conditions.len() > 64 {
        errors.push(FieldError::too_many(path, conditions.len() as i64, 64));
    }
    let mut seen = Vec::new();
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        let source = condition.s("expression").trim();
        if source.is_empty() {
            errors.required(&path.child("expression"), "");
        } else {
            let all = Expression {
                source,
                usage: ExpressionUse::MatchCondition,
                has_params: scope.has_params,
                has_authorizer: true,
                variables: &[],
                stored: scope.known.contains(&source),
            };
            expression(scope.compile, all, &path.child("expression"), errors);
        }
        let name = condition.s("name");
        if name.is_empty() {
            errors.required(&path.child("name"), "");
            continue;
        }
        check::qualified_name(name, &path.child("name"), errors);
        if seen.contains(&name) {
            errors.duplicate(&path.child("name"), name);
        } else {
            seen.push(name);
        }
    }
}

fn param_kind(kind: &Value, path: &FieldPath, errors: &mut Errors) {
    let version = kind.s("apiVersion");
    let at = path.child("apiVersion");
    let parts: Vec<&str> = version.split('/').collect();
    match (version, parts.as_slice()) {
        ("", _) => errors.required(&at, ""),
        (_, [_, _, _, ..]) => {
            errors.invalid(&at, version, format!("unexpected GroupVersion string: {version}"));
        }
        (_, parts) => {
            let (group, short) = if let [group, short] = parts { (*group, *short) } else { ("", version) };
            let messages = if group.is_empty() { Vec::new() } else { names::is_dns1123_subdomain(group) };
            if !messages.is_empty() {
                errors.invalid(&at, group, messages.join(","));
            }
            let messages = names::is_dns1035_label(short);
            if short.is_empty() {
                errors.invalid(&at, version, "version must be specified");
            } else if !messages.is_empty() {
                errors.invalid(&at, short, messages.join(","));
            }
        }
    }
    let name = kind.s("kind");
    let messages = names::is_dns1035_label(&name.to_lowercase());
    if name.is_empty() {
        errors.required(&path.child("kind"), "");
    } else if !messages.is_empty() {
        let detail = format!("may have mixed case, but should otherwise match: {}", messages.join(","));
        errors.invalid(&path.child("kind"), name, detail);
    }
}

fn match_resources(resources: &Value, path: &FieldPath, errors: &mut Errors) {
    check::one_of_present(resources, "matchPolicy", &["Equivalent", "Exact"], path, errors);
    for key in ["namespaceSelector", "objectSelector"] {
        match resources.o(key) {
            None => errors.required(&path.child(key), ""),
            some => check::label_selector(some, SelectorOptions::default(), &path.child(key), errors),
        }
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        for (i, one) in resources.list(key).iter().enumerate() {
            let path = path.child(key).index(i);
            let names = strings(one, "resourceNames");
            for (j, name) in names.iter().enumerate() {
                let at = path.child("resourceNames").index(j);
                errors.messages(&at, name, names::is_path_segment_name(name));
                if names[..j].contains(name) {
                    errors.duplicate(&at, *name);
                }
            }
            rule(one, &path, errors);
        }
    }
}

fn mutable_operations(resources: &Value, path: &FieldPath, errors: &mut Errors) {
    for one in resources.list("resourceRules") {
        for operation in strings(one, "operations") {
            if !matches!(operation, "*" | "CONNECT" | "CREATE" | "UPDATE") {
                let at = path.child("resourceRules").child("operations");
                errors.not_supported(&at, operation, &["*", "CONNECT", "CREATE", "UPDATE"]);
            }
        }
    }
}

fn is_identifier(name: &str) -> bool {
    const RESERVED: &[&str] = &[
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    let word = |b: u8| b == b'_' || b.is_ascii_alphanumeric();
    name.bytes().all(word) && !name.as_bytes().first().is_none_or(u8::is_ascii_digit) && !RESERVED.contains(&name)
}

/// A ValidatingAdmissionPolicy, or else a MutatingAdmissionPolicy.
pub(crate) fn policy(
    new: &Value,
    old: Option<&Value>,
    mutating: bool,
    compile: ExpressionCheck<'_>,
    errors: &mut Errors,
) {
    object_meta::validate(new, META, errors);
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    let old_spec = old.map(|old| old.v("spec"));
    check::one_of_present(spec, "failurePolicy", &["Fail", "Ignore"], &path, errors);
    if let Some(kind) = spec.o("paramKind") {
        param_kind(kind, &path.child("paramKind"), errors);
    }
    let at = path.child("matchConstraints");
    match spec.o("matchConstraints") {
        None => errors.required(&at, ""),
        Some(resources) => {
            match_resources(resources, &at, errors);
            if resources.list("resourceRules").is_empty() {
                errors.required(&at.child("resourceRules"), "");
            }
            if mutating {
                mutable_operations(resources, &at, errors);
            }
        }
    }
    let same_conditions = old_spec
        .is_some_and(|old| ["paramKind", "matchConditions"].iter().all(|key| semantic_equal(spec.v(key), old.v(key))));
    let has_params = spec.has("paramKind");
    if !same_conditions {
        let known = old_spec.map(condition_sources).unwrap_or_default();
        let scope = Scope { compile, has_params, known: &known };
        match_conditions(spec.list("matchConditions"), &scope, &path.child("matchConditions"), errors);
    }
    let policy = Policy { compile, spec, old: old_spec.unwrap_or(&Value::Null), has_params };
    policy.variables(&path.child("variables"), errors);
    if mutating {
        policy.mutations(&path, errors);
    } else {
        policy.validations(new.v("metadata").s("name"), &path, errors);
    }
}

/// The expressions of one policy.
struct Policy<'a> {
    compile: ExpressionCheck<'a>,
    spec: &'a Value,
    old: &'a Value,
    has_params: bool,
}

impl Policy<'_> {
    fn compiled(&self, source: &str, usage: ExpressionUse, stored: bool, path: &FieldPath, errors: &mut Errors) {
        let message = usage == ExpressionUse::Message;
        let all = Expression {
            source,
            usage,
            has_params: self.has_params,
            has_authorizer: !message,
            variables: self.spec.list("variables"),
            stored,
        };
        expression(self.compile, all, path, errors);
    }

    fn is_stored(&self, list: &str, key: &str, source: &str) -> bool {
        self.old.list(list).iter().any(|one| one.s(key) == source)
    }

    fn variables(&self, path: &FieldPath, errors: &mut Errors) {
        let variables = self.spec.list("variables");
        for (i, variable) in variables.iter().enumerate() {
            let path = path.index(i);
            let (name, source) = (variable.s("name"), variable.s("expression"));
            if name.trim().is_empty() {
                errors.required(&path.child("name"), "name is not specified");
            } else if !is_identifier(name) {
                errors.invalid(&path.child("name"), name, "must be a valid CEL identifier");
            }
            if source.trim().is_empty() {
                errors.required(&path.child("expression"), "expression is not specified");
                continue;
            }
            let all = Expression {
                source,
                usage: ExpressionUse::Variable,
                has_params: self.has_params,
                has_authorizer: true,
                variables: &variables[..i],
                stored: self.is_stored("validations", "expression", source),
            };
            expression(self.compile, all, &path.child("expression"), errors);
        }
    }

    fn validations(&self, name: &str, path: &FieldPath, errors: &mut Errors) {
        const NEITHER: &str = "validations or auditAnnotations must contain at least one item";
        let (validations, annotations) = (self.spec.list("validations"), self.spec.list("auditAnnotations"));
        if validations.is_empty() && annotations.is_empty() {
            errors.required(&path.child("validations"), NEITHER);
            return errors.required(&path.child("auditAnnotations"), NEITHER);
        }
        for (i, one) in validations.iter().enumerate() {
            self.validation(one, &path.child("validations").index(i), errors);
        }
        let path = path.child("auditAnnotations");
        if annotations.len() > 20 {
            let detail = "must not have more than 20 auditAnnotations";
            errors.invalid(&path, shown(self.spec.v("auditAnnotations")), detail);
        }
        for (i, one) in annotations.iter().enumerate() {
            let path = path.index(i);
            let key = one.s("key");
            if name.is_empty() {
                errors.invalid(&path.child("key"), key, "requires metadata.name be non-empty");
            } else {
                check::qualified_name(&format!("{name}/{key}"), &path.child("key"), errors);
            }
            let source = one.s("valueExpression");
            let at = path.child("valueExpression");
            if source.trim().is_empty() {
                errors.required(&at, "valueExpression is not specified");
            } else if source.trim().len() > 5 * 1024 {
                errors.required(&at, "must not exceed 5120 bytes in length");
            } else {
                let stored = self.is_stored("auditAnnotations", "valueExpression", source);
                self.compiled(source.trim(), ExpressionUse::AuditAnnotation, stored, &at, errors);
            }
            if annotations[..i].iter().any(|other| other.s("key") == key) {
                errors.duplicate(&path.child("key"), key);
            }
        }
    }

    fn validation(&self, one: &Value, path: &FieldPath, errors: &mut Errors) {
        let source = one.s("expression");
        let at = path.child("expression");
        if source.trim().is_empty() {
            errors.required(&at, "expression is not specified");
        } else {
            let stored = self.is_stored("validations", "expression", source);
            self.compiled(source, ExpressionUse::Validation, stored, &at, errors);
        }
        let message = one.s("messageExpression");
        let at = path.child("messageExpression");
        if !message.is_empty() && message.trim().is_empty() {
            errors.invalid(&at, message, "must be non-empty if specified");
        } else if !message.is_empty() {
            let stored = self.is_stored("validations", "messageExpression", message);
            self.compiled(message, ExpressionUse::Message, stored, &at, errors);
        }
        let message = one.s("message");
        let at = path.child("message");
        if !message.is_empty() && message.trim().is_empty() {
            errors.invalid(&at, message, "must be non-empty if specified");
        } else if message.trim().contains(['\n', '\r']) {
            errors.invalid(&at, message, "must not contain line breaks");
        }
        check::optional_one_of(one, "reason", &["Forbidden", "Invalid", "RequestEntityTooLarge"], path, errors);
    }

    fn mutations(&self, path: &FieldPath, errors: &mut Errors) {
        let mutations = self.spec.list("mutations");
        if mutations.is_empty() {
            errors.required(&path.child("mutations"), "mutations must contain at least one item");
        }
        for (i, one) in mutations.iter().enumerate() {
            self.mutation(one, &path.child("mutations").index(i), errors);
        }
        check::one_of(self.spec, "reinvocationPolicy", &["IfNeeded", "Never"], path, errors);
    }

    fn mutation(&self, one: &Value, path: &FieldPath, errors: &mut Errors) {
        let kind = one.s("patchType");
        let (key, other, usage) = match kind {
            "JSONPatch" => ("jsonPatch", "applyConfiguration", ExpressionUse::JsonPatch),
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch", ExpressionUse::ApplyConfiguration),
            _ => return check::one_of(one, "patchType", &["ApplyConfiguration", "JSONPatch"], path, errors),
        };
        let at = path.child(key);
        match one.o(key) {
            None => errors.required(&at, format!("must be specified when patchType is {kind}")),
            Some(body) => {
                let source = body.s("expression").trim();
                if source.is_empty() {
                    errors.required(&at.child("expression"), "");
                } else {
                    let stored = self
                        .old
                        .list("mutations")
                        .iter()
                        .any(|m| m.v("applyConfiguration").s("expression") == body.s("expression"));
                    self.compiled(source, usage, stored, &at.child("expression"), errors);
                }
            }
        }
        if one.has(other) {
            let value = format!("{{{other}}}");
            errors.invalid(
                &path.child(other),
                value.as_str(),
                format!("must not be specified when patchType is {kind}"),
            );
        }
    }
}

/// A binding of a validating, or else of a mutating, policy.
pub(crate) fn policy_binding(new: &Value, mutating: bool, errors: &mut Errors) {
    object_meta::validate(new, META, errors);
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    let policy = spec.s("policyName");
    if policy.is_empty() {
        errors.required(&path.child("policyName"), "");
    } else {
        check::dns_subdomain(policy, &path.child("policyName"), errors);
    }
    if let Some(reference) = spec.o("paramRef") {
        param_ref(reference, &path.child("paramRef"), errors);
    }
    let at = path.child("matchResources");
    if let Some(resources) = spec.o("matchResources") {
        match_resources(resources, &at, errors);
        if mutating {
            mutable_operations(resources, &at, errors);
        }
    }
    if mutating {
        return;
    }
    let at = path.child("validationActions");
    let actions = strings(spec, "validationActions");
    for (i, action) in actions.iter().enumerate() {
        if !matches!(*action, "Audit" | "Deny" | "Warn") {
            errors.not_supported(&at.index(i), *action, &["Audit", "Deny", "Warn"]);
        }
        if actions[..i].contains(action) {
            errors.duplicate(&at.index(i), *action);
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.invalid(&at, shown(spec.v("validationActions")), detail);
    }
    if actions.is_empty() {
        errors.required(&at, "at least one validation action is required");
    }
}

fn param_ref(reference: &Value, path: &FieldPath, errors: &mut Errors) {
    const BOTH: &str = "name and selector are mutually exclusive";
    let (name, selector) = (reference.s("name"), reference.o("selector"));
    if !name.is_empty() {
        errors.messages(&path.child("name"), name, names::is_path_segment_name(name));
        if selector.is_some() {
            errors.forbidden(&path.child("name"), BOTH);
        }
    }
    if selector.is_some() {
        check::label_selector(selector, SelectorOptions::default(), &path.child("selector"), errors);
        if !name.is_empty() {
            errors.forbidden(&path.child("selector"), BOTH);
        }
    } else if name.is_empty() {
        errors.required(path, "one of name or selector must be specified");
    }
    check::one_of(reference, "parameterNotFoundAction", &["Deny", "Allow"], path, errors);
}

pub(crate) fn policy_status(new: &Value, errors: &mut Errors) {
    let (status, path) = (new.v("status"), FieldPath::new("status"));
    let at = path.child("typeChecking").child("expressionWarnings");
    for (i, warning) in status.v("typeChecking").list("expressionWarnings").iter().enumerate() {
        let at = at.index(i);
        check::required_string(warning, "warning", &at, errors);
        if warning.s("fieldRef").trim().is_empty() {
            errors.required(&at.child("fieldRef"), "");
        }
    }
    check::conditions(status.list("conditions"), &path.child("conditions"), errors);
}

pub(crate) fn api_service(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        object_meta::validate_update(new, old, false, errors);
    }
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    let (group, version) = (spec.s("group"), spec.s("version"));
    let mut rest = Errors::new();
    // The required name depends on the spec, so it is not for the rules of metadata.
    object_meta::validate(new, MetaRules { name: any_segment, ..META }, &mut rest);
    let name = new.v("metadata").s("name");
    let required = format!("{version}.{group}");
    if !name.is_empty() && any_segment(name, false).is_empty() && name != required {
        errors.invalid(
            &FieldPath::new("metadata").child("name"),
            name,
            format!("must be `spec.version+\".\"+spec.group`: {required:?}"),
        );
    }
    errors.append(&mut rest);
    if group.is_empty() && version != "v1" {
        errors.required(&path.child("group"), "only v1 may have an empty group and it better be legacy kube");
    }
    if !group.is_empty() {
        check::dns_subdomain(group, &path.child("group"), errors);
    }
    errors.messages(&path.child("version"), version, names::is_dns1035_label(version));
    for (key, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let value = spec.i(key);
        if !(1..=max).contains(&value) {
            errors.invalid(&path.child(key), value, format!("must be positive and less than {max}"));
        }
    }
    let bundle = spec.s("caBundle");
    let skip = spec.b("insecureSkipTLSVerify");
    let skip_path = path.child("insecureSkipTLSVerify");
    let Some(service) = spec.o("service") else {
        if !bundle.is_empty() {
            let bytes = super::certificates::decoded(bundle).map_or(0, |b| b.len());
            let shown = format!("{bytes} bytes");
            errors.invalid(&path.child("caBundle"), shown.as_str(), "local APIServices may not have a caBundle");
        }
        if skip {
            errors.invalid(&skip_path, skip, "local APIServices may not have insecureSkipTLSVerify");
        }
        return;
    };
    let at = path.child("service");
    check::required_string(service, "namespace", &at, errors);
    check::required_string(service, "name", &at, errors);
    let port = service.i("port");
    let messages = names::is_valid_port_num(port);
    if !messages.is_empty() {
        errors.invalid(&at.child("port"), port, format!("port is not valid: {}", messages.join(", ")));
    }
    if skip && !bundle.is_empty() {
        errors.invalid(&skip_path, skip, "may not be true if caBundle is present");
    }
}

fn any_segment(name: &str, _: bool) -> Vec<String> {
    names::is_path_segment_name(name)
}

pub(crate) fn api_service_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, false, errors);
    for (i, condition) in new.v("status").list("conditions").iter().enumerate() {
        let status = condition.s("status");
        if !matches!(status, "True" | "False" | "Unknown") {
            let path = FieldPath::new("status").child("conditions").index(i).child("status");
            errors.not_supported(&path, status, &["True", "False", "Unknown"]);
        }
    }
}
