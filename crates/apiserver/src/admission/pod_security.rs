//! PodSecurity: the Pod Security Standards, chosen by the labels of a namespace.
//!
//! `enforce` refuses pods, `warn` warns about pods and pod templates. Violations of `audit` have no audit log to go to.
//!
//! Follows: `k8s.io/pod-security-admission/admission`.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::GroupVersionResource;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use async_trait::async_trait;

use super::{AdmissionPlugin, AdmissionRequest, Operation};
use apimachinery::pod_security::{Finding, Level, NEWEST_MINOR, details, evaluate};

const PREFIX: &str = "pod-security.kubernetes.io/";
/// How many pods of a namespace are looked at when its level is raised. Source: `defaultNamespaceMaxPodsToCheck`.
const PODS_MAX: usize = 3000;

/// A level in a version; `None`: the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LevelVersion {
    level: Level,
    minor: Option<u32>,
}

impl LevelVersion {
    fn findings(self, pod: &Value) -> Vec<Finding> {
        evaluate(self.level, self.minor.unwrap_or(NEWEST_MINOR), pod)
    }
}

impl std::fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    enforce: LevelVersion,
    audit: LevelVersion,
    warn: LevelVersion,
}

fn parse_level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

/// `latest` (`Some(None)`) or `v1.x`.
fn parse_version(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let minor = text.strip_prefix("v1.")?;
    let plain = minor == "0" || !minor.starts_with('0');
    (plain && minor.bytes().all(|b| b.is_ascii_digit())).then(|| minor.parse().ok()).flatten().map(Some)
}

impl Policy {
    /// The policy of a namespace, and what is wrong with its labels.
    fn of(namespace: &Value) -> (Policy, Vec<FieldError>) {
        let mut errors = Vec::new();
        let path = FieldPath::new("metadata").child("labels");
        let mut level = |mode: &str, on_error: Level| {
            let label = format!("{PREFIX}{mode}");
            let text = namespace.label(&label)?;
            Some(parse_level(text).ok_or(on_error).inspect_err(|_| {
                let text_error = "must be one of privileged, baseline, restricted";
                errors.push((mode.to_owned(), FieldError::invalid(&path.key(&label), text, text_error)));
            }))
        };
        let enforce = level("enforce", Level::Restricted);
        let audit = level("audit", Level::Privileged);
        let warn = level("warn", Level::Privileged);
        let mut version = |mode: &str| {
            let label = format!("{PREFIX}{mode}-version");
            let text = namespace.label(&label)?;
            Some(parse_version(text).unwrap_or_else(|| {
                let text_error = "must be \"latest\" or \"v1.x\"";
                errors.push((format!("{mode}-version"), FieldError::invalid(&path.key(&label), text, text_error)));
                None
            }))
        };
        let versions = [version("enforce"), version("audit"), version("warn")];
        // In the order in which the labels are read.
        errors.sort_by_key(|(mode, _)| {
            let order = ["enforce", "enforce-version", "audit", "audit-version", "warn", "warn-version"];
            order.iter().position(|o| o == mode)
        });
        let given = |level: Option<Result<Level, Level>>| match level {
            None => Level::Privileged,
            Some(Ok(level) | Err(level)) => level,
        };
        let at = |level, version: Option<Option<u32>>| LevelVersion { level: given(level), minor: version.flatten() };
        let mut policy =
            Policy { enforce: at(enforce, versions[0]), audit: at(audit, versions[1]), warn: at(warn, versions[2]) };
        if warn.is_none() && matches!(enforce, Some(Ok(_))) && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if versions[2].is_none() {
                policy.warn.minor = policy.enforce.minor;
            }
        }
        (policy, errors.into_iter().map(|(_, e)| e).collect())
    }
}

fn reasons(findings: &[Finding]) -> String {
    findings.iter().map(|(reason, _)| reason.as_str()).collect::<Vec<_>>().join(", ")
}

/// Where a kind keeps its pod template.
fn template_path(group: &str, resource: &str) -> Option<&'static [&'static str]> {
    match (group, resource) {
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("", "replicationcontrollers")
        | ("batch", "jobs") => Some(&["spec", "template"]),
        ("batch", "cronjobs") => Some(&["spec", "jobTemplate", "spec", "template"]),
        ("", "podtemplates") => Some(&["template"]),
        _ => None,
    }
}

/// Whether an update changes what the standards look at: containers and their images.
fn is_significant(new: &Value, old: &Value) -> bool {
    let list = |pod: &Value, key: &str| -> Vec<(String, String)> {
        let containers = pod.array_at(&["spec", key]).iter();
        containers.map(|c| (c.str_at(&["name"]).to_owned(), c.str_at(&["image"]).to_owned())).collect()
    };
    let images = |pod: &Value, key: &str| -> Vec<String> { list(pod, key).into_iter().map(|(_, i)| i).collect() };
    if ["containers", "initContainers"].iter().any(|k| images(new, k) != images(old, k)) {
        return true;
    }
    let before = list(old, "ephemeralContainers");
    list(new, "ephemeralContainers").iter().any(|c| !before.contains(c))
}

pub struct PodSecurity;

impl PodSecurity {
    async fn namespace(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let Some(new) = &request.object else { return Ok(()) };
        let (policy, errors) = Policy::of(new);
        let invalid =
            |errors: &[FieldError]| Err(Box::new(Status::invalid(&request.gvk.group_kind(), &request.name, errors)));
        let Some(old) = &request.old_object else {
            return if errors.is_empty() { Ok(()) } else { invalid(&errors) };
        };
        let (before, old_errors) = Policy::of(old);
        if !errors.is_empty() && errors != old_errors {
            return invalid(&errors);
        }
        let (new_level, old_level) = (policy.enforce, before.enforce);
        let relaxed = new_level.minor == old_level.minor && new_level.level <= old_level.level;
        if new_level == old_level || new_level.level == Level::Privileged || relaxed {
            return Ok(());
        }
        let name = new.name().to_owned();
        let pods = request.list("", "v1", "pods", &name).await?;
        let warnings = violations(&name, new_level, pods);
        request.warnings.extend(warnings);
        Ok(())
    }
}

/// What to say about the pods that a raised level does not fit. One pod for each controller is looked at first.
fn violations(namespace: &str, level: LevelVersion, pods: Vec<Value>) -> Vec<String> {
    let total = pods.len();
    let mut seen = BTreeSet::new();
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for pod in pods {
        match pod.controller_of() {
            Some(owner) if !seen.insert(owner.uid.clone()) => rest.push(pod),
            _ => first.push(pod),
        }
    }
    first.append(&mut rest);
    first.truncate(PODS_MAX);
    let mut warnings = Vec::new();
    if first.len() < total {
        let checked = first.len();
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
        ));
    }
    let mut by_reason: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for pod in &first {
        let findings = level.findings(pod);
        if findings.is_empty() {
            continue;
        }
        let entry = by_reason.entry(reasons(&findings)).or_insert_with(|| (pod.name().to_owned(), 0));
        entry.1 += 1;
        if pod.name() < entry.0.as_str() {
            entry.0 = pod.name().to_owned();
        }
    }
    if !by_reason.is_empty() {
        let level = level.to_string();
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {level:?}"
        ));
    }
    let mut texts: Vec<String> = by_reason
        .into_iter()
        .map(|(reason, (pod, count))| match count {
            1 => format!("{pod}: {reason}"),
            2 => format!("{pod} (and 1 other pod): {reason}"),
            n => format!("{pod} (and {} other pods): {reason}", n - 1),
        })
        .collect();
    texts.sort();
    warnings.extend(texts);
    warnings
}

#[async_trait]
impl AdmissionPlugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        if !matches!(operation, Operation::Create | Operation::Update) {
            return false;
        }
        match (gvr.group.as_str(), gvr.resource.as_str()) {
            ("", "namespaces") => subresource.is_empty(),
            ("", "pods") => !matches!(
                subresource,
                "exec" | "attach" | "binding" | "eviction" | "log" | "portforward" | "proxy" | "status"
            ),
            (group, resource) => subresource.is_empty() && template_path(group, resource).is_some(),
        }
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        if request.gvr.resource == "namespaces" {
            return self.namespace(request).await;
        }
        let namespace = request.find("", "v1", "namespaces", "", &request.namespace).await?;
        let Some(namespace) = namespace else {
            let message = format!("failed to lookup namespace {:?}", request.namespace);
            return Err(Box::new(Status::internal_error(message)));
        };
        let (policy, _) = Policy::of(&namespace);
        let is_pod = request.gvr.resource == "pods";
        if policy.warn.level == Level::Privileged && (!is_pod || policy.enforce.level == Level::Privileged) {
            return Ok(());
        }
        let Some(object) = &request.object else { return Ok(()) };
        let pod = match template_path(&request.gvr.group, &request.gvr.resource) {
            Some(path) => match object.at(path) {
                Some(template) => template,
                None => return Ok(()),
            },
            None => object,
        };
        if is_pod {
            if request.old_object.as_ref().is_some_and(|old| !is_significant(object, old)) {
                return Ok(());
            }
            let findings = policy.enforce.findings(pod);
            if !findings.is_empty() {
                let level = policy.enforce.to_string();
                return Err(request.forbidden(format!("violates PodSecurity {level:?}: {}", details(&findings))));
            }
        }
        let findings = policy.warn.findings(pod);
        if !findings.is_empty() {
            let level = policy.warn.to_string();
            request.warnings.push(format!("would violate PodSecurity {level:?}: {}", details(&findings)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn labels_choose_the_policy() {
        let policy = |labels: Value| {
            let (p, errors) = Policy::of(&json!({"metadata": {"name": "n", "labels": labels}}));
            (format!("{} {} {}", p.enforce, p.audit, p.warn), errors.len())
        };
        let plain = "privileged:latest privileged:latest privileged:latest";
        assert_eq!(policy(json!({})), (plain.to_owned(), 0));
        for (labels, want, errors) in [
            (json!({"enforce": "baseline"}), "baseline:latest privileged:latest baseline:latest", 0),
            (
                json!({"enforce": "restricted", "enforce-version": "v1.20", "warn": "baseline"}),
                "restricted:v1.20 privileged:latest baseline:latest",
                0,
            ),
            (json!({"enforce": "x"}), "restricted:latest privileged:latest privileged:latest", 1),
            (json!({"warn": "x", "warn-version": "1.2"}), plain, 2),
        ] {
            let mut full = Value::object();
            for (key, value) in labels.as_object().into_iter().flat_map(|m| m.iter()) {
                full[format!("{PREFIX}{key}").as_str()] = value.clone();
            }
            assert_eq!(policy(full), (want.to_owned(), errors));
        }
    }
}
