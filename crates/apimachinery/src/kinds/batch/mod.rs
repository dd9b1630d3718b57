//! Jobs and CronJobs.

mod cron;
mod status;

pub(crate) use status::update_status as job_status;

use super::access::{Fields, object_at, semantic_equal};
use super::check::{
    self, Errors, Report, SelectorOptions, immutable, label_selector, nonnegative, nonnegative_member, qualified_name,
    selector_matches, shown,
};
use super::core::pod_spec::{self, PodOptions};
use super::object_meta::{self, MetaRules};
use crate::field::{BadValue, FieldError, FieldPath};
use crate::json::Value;
use crate::names;

const META: MetaRules = MetaRules::namespaced(names::name_is_dns_subdomain);
const UID: &str = "batch.kubernetes.io/controller-uid";
const NAME: &str = "batch.kubernetes.io/job-name";

/// Whether the time zone database knows a name.
fn is_time_zone(name: &str) -> bool {
    name == "UTC" || jiff::tz::TimeZoneDatabase::bundled().get(name).is_ok_and(|zone| zone.iana_name() == Some(name))
}

pub(crate) fn job(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = new.v("spec");
    let mut prefixed = true;
    let mut selector = SelectorOptions::default();
    if let Some(old) = old {
        let labels = old.v("spec").v("template").v("metadata").members("labels");
        prefixed = labels.contains_key(NAME) && labels.contains_key(UID);
        selector.allow_invalid_label_value = check::selector_has_invalid_value(old.v("spec").v("selector"));
    }
    let options = pod_spec::template_options(old.map(|o| o.v("spec").v("template")));
    let path = FieldPath::new("spec");
    object_meta::validate(new, META, errors);
    generated_selector(new, prefixed, errors);
    full_spec(spec, selector, options, &path, errors);
    if spec.s("completionMode") == "Indexed"
        && let Some(completions) = spec.oi("completions").filter(|c| *c > 0)
    {
        let name = new.v("metadata").s("name");
        let host = format!("{name}-{}", completions - 1);
        if !names::is_dns1123_label(&host).is_empty() {
            errors.invalid(
                &FieldPath::new("metadata").child("name"),
                name,
                format!("will not able to create pod with invalid DNS label: {host}"),
            );
        }
    }
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
        full_spec(spec, selector, options, &path, errors);
        spec_update(new, old, &path, errors);
    }
}

/// A success policy as the server's own structure prints it.
fn printed_success_policy(policy: &Value) -> BadValue {
    let rule = |rule: &Value| {
        let (indexes, count) = (rule.v("succeededIndexes"), rule.v("succeededCount"));
        format!("{{\"SucceededIndexes\":{indexes},\"SucceededCount\":{count}}}")
    };
    let rules: Vec<String> = policy.list("rules").iter().map(rule).collect();
    BadValue::Printed(match policy.has("rules") {
        true => format!("{{\"Rules\":[{}]}}", rules.join(",")),
        false => "{\"Rules\":null}".to_owned(),
    })
}

fn full_spec(spec: &Value, selector: SelectorOptions, options: PodOptions, path: &FieldPath, errors: &mut Errors) {
    job_spec(spec, options, path, errors);
    let wanted = spec.o("selector");
    if wanted.is_none() {
        errors.required(&path.child("selector"), "");
    }
    label_selector(wanted, selector, &path.child("selector"), errors);
    let labels = spec.v("template").v("metadata");
    if wanted.is_none_or(check::selector_is_valid)
        && !wanted.is_some_and(|s| selector_matches(s, labels.members("labels")))
    {
        errors.invalid(
            &path.children(&["template", "metadata", "labels"]),
            shown(labels.v("labels")),
            "`selector` does not match template `labels`",
        );
    }
}

/// The labels by which a Job finds its pods, unless the client manages them.
fn generated_selector(job: &Value, prefixed: bool, errors: &mut Errors) {
    let spec = job.v("spec");
    let Some(selector) = spec.o("selector").filter(|_| !spec.b("manualSelector")) else { return };
    let (uid, name) = (job.v("metadata").s("uid"), job.v("metadata").s("name"));
    if uid.is_empty() {
        errors.required(&FieldPath::new("metadata").child("uid"), "");
    }
    let labels = spec.v("template").v("metadata").v("labels");
    let path = FieldPath::new("spec").children(&["template", "metadata", "labels"]);
    let mut expected = vec![("controller-uid", uid), ("job-name", name)];
    if prefixed {
        expected.extend([(UID, uid), (NAME, name)]);
    }
    for (key, value) in &expected {
        match labels.os(key) {
            None => errors.required(&path.key(key), format!("must be '{value}'")),
            Some(l) if l != *value => errors.invalid(&path.key(key), shown(labels), format!("must be '{value}'")),
            Some(_) => {}
        }
    }
    let expected: crate::json::Map = expected.into_iter().map(|(k, v)| (k, v.into())).collect();
    if check::selector_is_valid(selector) && !selector_matches(selector, &expected) {
        errors.invalid(&FieldPath::new("spec").child("selector"), selector, "`selector` not auto-generated");
    }
}

/// The rules of a Job's spec, also inside a CronJob.
fn job_spec(spec: &Value, options: PodOptions, path: &FieldPath, errors: &mut Errors) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        nonnegative_member(spec, key, path, errors);
    }
    let per_index = path.child("backoffLimitPerIndex");
    if spec.has("maxFailedIndexes") && !spec.has("backoffLimitPerIndex") {
        errors.required(&per_index, "when maxFailedIndexes is specified");
    }
    if let Some(manager) = spec.os("managedBy") {
        let at = path.child("managedBy");
        errors.append(&mut names::is_domain_prefixed_path(&at, manager));
        if manager.len() > 63 {
            errors.push(FieldError::too_long(&at, 63));
        }
    }
    let mode = spec.os("completionMode").unwrap_or("NonIndexed");
    match mode {
        "NonIndexed" => {
            for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                if let Some(value) = spec.oi(key) {
                    errors.invalid(&path.child(key), value, "requires indexed completion mode");
                }
            }
        }
        "Indexed" => indexed(spec, path, errors),
        other => errors.not_supported(&path.child("completionMode"), other, &["NonIndexed", "Indexed"]),
    }
    if let Some(policy) = spec.o("podFailurePolicy") {
        failure_policy(spec, policy, &path.child("podFailurePolicy").child("rules"), errors);
    }
    if let Some(policy) = spec.o("successPolicy") {
        let at = path.child("successPolicy");
        if mode == "Indexed" {
            success_policy(spec, policy, &at.child("rules"), errors);
        } else {
            errors.invalid(&at, printed_success_policy(policy), "requires indexed completion mode");
        }
    }
    if let Some(policy) = spec.os("podReplacementPolicy") {
        let supported: &[&str] =
            if spec.has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        if !supported.contains(&policy) {
            errors.not_supported(&path.child("podReplacementPolicy"), policy, supported);
        }
    }
    pod_spec::template(spec.v("template"), &path.child("template"), options, errors);
    let at = path.children(&["template", "spec", "restartPolicy"]);
    match spec.v("template").v("spec").s("restartPolicy") {
        "" | "Always" => errors.required(&at, "valid values: \"OnFailure\", \"Never\""),
        "Never" => {}
        "OnFailure" => {
            if spec.has("podFailurePolicy") {
                errors.invalid(&at, "OnFailure", "only \"Never\" is supported when podFailurePolicy is specified");
            }
        }
        other => errors.not_supported(&at, other, &["OnFailure", "Never"]),
    }
}

fn indexed(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    const MANY: i64 = 100_000;
    const FEWER: i64 = 10_000;
    let (completions, parallelism) = (spec.oi("completions"), spec.oi("parallelism"));
    let failed = spec.oi("maxFailedIndexes");
    if completions.is_none() {
        errors.required(&path.child("completions"), "when completion mode is Indexed");
    }
    if let Some(p) = parallelism.filter(|p| *p > MANY) {
        errors.invalid(
            &path.child("parallelism"),
            p,
            format!("must be less than or equal to {MANY} when completion mode is Indexed"),
        );
    }
    let at = path.child("maxFailedIndexes");
    if let (Some(completions), Some(failed)) = (completions, failed)
        && failed > completions
    {
        errors.invalid(&at, failed, "must be less than or equal to completions");
    }
    if let Some(failed) = failed.filter(|f| *f > MANY) {
        errors.invalid(&at, failed, format!("must be less than or equal to {MANY}"));
    }
    if completions.is_some_and(|c| c > MANY) && spec.has("backoffLimitPerIndex") {
        let text = format!(
            "must be less than or equal to {FEWER} when completions are above {MANY} and used with backoff limit per index"
        );
        if failed.is_none() {
            errors.required(&at, format!("must be specified when completions is above {MANY}"));
        }
        if let Some(p) = parallelism.filter(|p| *p > FEWER) {
            errors.invalid(&path.child("parallelism"), p, text.clone());
        }
        if let Some(failed) = failed.filter(|f| *f > FEWER) {
            errors.invalid(&at, failed, text);
        }
    }
}

fn failure_policy(spec: &Value, policy: &Value, path: &FieldPath, errors: &mut Errors) {
    let rules = policy.list("rules");
    if rules.len() > 20 {
        errors.push(FieldError::too_many(path, rules.len() as i64, 20));
    }
    let pod = spec.v("template").v("spec");
    let containers: Vec<&str> =
        ["containers", "initContainers"].iter().flat_map(|l| pod.list(l)).map(|c| c.s("name")).collect();
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let at = path.child("action");
        match rule.s("action") {
            "" => errors.required(&at, "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"),
            "FailIndex" => {
                if !spec.has("backoffLimitPerIndex") {
                    errors.invalid(&at, "FailIndex", "requires the backoffLimitPerIndex to be set");
                }
            }
            "Count" | "FailJob" | "Ignore" => {}
            other => errors.not_supported(&at, other, &["Count", "FailIndex", "FailJob", "Ignore"]),
        }
        let codes = rule.o("onExitCodes");
        let conditions = rule.list("onPodConditions");
        if let Some(codes) = codes {
            exit_codes(codes, &containers, &path.child("onExitCodes"), errors);
        }
        pod_conditions(conditions, &path.child("onPodConditions"), errors);
        if codes.is_some() && !conditions.is_empty() {
            errors.invalid(
                &path,
                BadValue::Omitted,
                "specifying both OnExitCodes and OnPodConditions is not supported",
            );
        }
        if codes.is_none() && conditions.is_empty() {
            errors.invalid(&path, BadValue::Omitted, "specifying one of OnExitCodes and OnPodConditions is required");
        }
    }
}

fn exit_codes(codes: &Value, containers: &[&str], path: &FieldPath, errors: &mut Errors) {
    let at = path.child("operator");
    match codes.s("operator") {
        "" => errors.required(&at, "valid values: [\"In\" \"NotIn\"]"),
        "In" | "NotIn" => {}
        other => errors.not_supported(&at, other, &["In", "NotIn"]),
    }
    if let Some(name) = codes.os("containerName")
        && !containers.contains(&name)
    {
        errors.invalid(
            &path.child("containerName"),
            name,
            "must be one of the container or initContainer names in the pod template",
        );
    }
    let at = path.child("values");
    let values: Vec<i64> = codes.list("values").iter().map(|v| v.as_i64().unwrap_or(0)).collect();
    if values.is_empty() {
        errors.invalid(&at, shown(codes.v("values")), "at least one value is required");
    } else if values.len() > 255 {
        errors.push(FieldError::too_many(&at, values.len() as i64, 255));
    }
    for (i, value) in values.iter().enumerate() {
        if codes.s("operator") == "In" && *value == 0 {
            errors.invalid(&at.index(i), 0, "must not be 0 for the In operator");
        }
        if values[..i].contains(value) {
            errors.duplicate(&at.index(i), *value);
        }
    }
    if !values.is_sorted() {
        errors.invalid(&at, shown(codes.v("values")), "must be ordered");
    }
}

fn pod_conditions(conditions: &[Value], path: &FieldPath, errors: &mut Errors) {
    if conditions.len() > 20 {
        errors.push(FieldError::too_many(path, conditions.len() as i64, 20));
    }
    for (i, pattern) in conditions.iter().enumerate() {
        let path = path.index(i);
        qualified_name(pattern.s("type"), &path.child("type"), errors);
        match pattern.s("status") {
            "" => errors.required(&path.child("status"), "valid values: [\"False\" \"True\" \"Unknown\"]"),
            "True" | "False" | "Unknown" => {}
            other => errors.not_supported(&path.child("status"), other, &["False", "True", "Unknown"]),
        }
    }
}

fn success_policy(spec: &Value, policy: &Value, path: &FieldPath, errors: &mut Errors) {
    let rules = policy.list("rules");
    if rules.is_empty() {
        errors.required(path, "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > 20 {
        errors.push(FieldError::too_many(path, rules.len() as i64, 20));
    }
    let completions = spec.i("completions");
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let (count, indexes) = (rule.oi("succeededCount"), rule.os("succeededIndexes"));
        if count.is_none() && indexes.is_none() {
            errors.required(&path, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = 0;
        if let Some(indexes) = indexes {
            let at = path.child("succeededIndexes");
            if indexes.len() > 64 * 1024 {
                errors.push(FieldError::too_long(&at, 64 * 1024));
            }
            match status::parse_indexes(indexes, completions) {
                Ok(intervals) => total = intervals.iter().map(|(a, b)| b - a + 1).sum(),
                Err(e) => errors.invalid(&at, indexes, format!("error parsing succeededIndexes: {e}")),
            }
        }
        if let Some(count) = count {
            let at = path.child("succeededCount");
            nonnegative(count, &at, errors);
            if count > completions {
                errors.invalid(
                    &at,
                    count,
                    format!("must be less than or equal to {completions} (the number of specified completions)"),
                );
            }
            if indexes.is_some() && count > total {
                errors.invalid(
                    &at,
                    count,
                    format!("must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"),
                );
            }
        }
    }
}

fn spec_update(new: &Value, old: &Value, path: &FieldPath, errors: &mut Errors) {
    let (spec, before) = (new.v("spec"), old.v("spec"));
    let at = path.child("completions");
    if spec.s("completionMode") != "Indexed" {
        immutable(spec.v("completions"), before.v("completions"), &at, errors);
    } else if let Some(completions) = spec.oi("completions")
        && before.oi("completions") != Some(completions)
        && spec.oi("parallelism") != Some(completions)
    {
        errors.invalid(&at, completions, "can only be modified in tandem with spec.parallelism");
    }
    immutable(spec.v("selector"), before.v("selector"), &path.child("selector"), errors);
    template_update(new, old, path, errors);
    for key in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        immutable(spec.v(key), before.v(key), &path.child(key), errors);
    }
}

/// The template of a Job is fixed, except for scheduling and resources while it is suspended and nothing runs.
fn template_update(new: &Value, old: &Value, path: &FieldPath, errors: &mut Errors) {
    let before = old.v("spec");
    let template = new.v("spec").v("template");
    let mut was = before.v("template").clone();
    let suspended = before.b("suspend");
    let status = old.v("status");
    let mutable =
        suspended && (!status.has("startTime") || status::is_true(status, "Suspended")) && status.i("active") == 0;
    if mutable {
        let spec = object_at(&mut was, "spec");
        let node_affinity = template.v("spec").v("affinity").v("nodeAffinity");
        if node_affinity.is_null() {
            spec.remove_at(&["affinity", "nodeAffinity"]);
        } else {
            spec.set_at(&["affinity", "nodeAffinity"], node_affinity.clone());
        }
        for key in ["nodeSelector", "tolerations", "schedulingGates"] {
            copy(spec, template.v("spec"), key);
        }
        let meta = object_at(&mut was, "metadata");
        for key in ["annotations", "labels"] {
            copy(meta, template.v("metadata"), key);
        }
    }
    if !mutable {
        return immutable(template, &was, &path.child("template"), errors);
    }
    let spec = object_at(&mut was, "spec");
    for list in ["containers", "initContainers"] {
        let after = template.v("spec").list(list);
        if after.len() != spec.list(list).len() {
            continue;
        }
        for (container, now) in super::access::each(spec, list).zip(after) {
            if container.s("name") == now.s("name") {
                copy(container, now, "resources");
            }
        }
    }
    if !semantic_equal(template.v("spec"), spec) {
        errors.invalid(&path.child("template.spec"), template.v("spec"), check::IMMUTABLE);
    }
}

fn copy(to: &mut Value, from: &Value, key: &str) {
    let to = to.make_object();
    match from.o(key) {
        Some(v) => to.insert(key, v.clone()),
        None => to.remove(key),
    };
}

pub(crate) fn cron_job(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    match old {
        None => object_meta::validate(new, META, errors),
        Some(old) => object_meta::validate_update(new, old, true, errors),
    }
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    let (schedule, at) = (spec.s("schedule"), path.child("schedule"));
    if schedule.is_empty() {
        errors.required(&at, "");
    } else {
        if let Some(message) = cron::error(schedule) {
            errors.invalid(&at, schedule, message);
        }
        let zone_in_schedule = schedule.contains("TZ");
        let allowed = old.is_some_and(|o| o.v("spec").s("schedule").contains("TZ"));
        if zone_in_schedule && !allowed {
            errors.invalid(&at, schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
        } else if zone_in_schedule && spec.has("timeZone") {
            errors.invalid(&at, schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
        }
    }
    nonnegative_member(spec, "startingDeadlineSeconds", &path, errors);
    if old.is_none_or(|o| o.v("spec").os("timeZone") != spec.os("timeZone")) {
        time_zone(spec.os("timeZone"), &path.child("timeZone"), errors);
    }
    check::one_of(spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &path, errors);
    let template = spec.v("jobTemplate").v("spec");
    let at = path.child("jobTemplate").child("spec");
    let options = pod_spec::template_options(old.map(|o| o.v("spec").v("jobTemplate").v("spec").v("template")));
    job_spec(template, options, &at, errors);
    if let Some(selector) = template.o("selector") {
        errors.invalid(&at.child("selector"), selector, "`selector` will be auto-generated");
    }
    if template.b("manualSelector") {
        errors.not_supported(&at.child("manualSelector"), true, &["nil", "false"]);
    }
    for key in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        nonnegative_member(spec, key, &path, errors);
    }
    let name = new.v("metadata").s("name");
    // The controller appends eleven characters to make a Job's name.
    if old.is_none() && name.len() > names::DNS1035_LABEL_MAX - 11 {
        errors.invalid(&FieldPath::new("metadata").child("name"), name, "must be no more than 52 characters");
    }
}

fn time_zone(zone: Option<&str>, path: &FieldPath, errors: &mut Errors) {
    let Some(zone) = zone else { return };
    if zone.is_empty() {
        return errors.invalid(path, zone, "timeZone must be nil or non-empty string");
    }
    let part_is_valid = |part: &str| {
        !matches!(part, "." | "..")
            && !part.starts_with('-')
            && (1..=14).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_+".contains(&b))
    };
    if !zone.split('/').all(part_is_valid) {
        return errors.invalid(path, zone, format!("unknown time zone {zone}"));
    }
    if zone.eq_ignore_ascii_case("Local") {
        errors.invalid(
            path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        );
    }
    if zone != "Local" && !is_time_zone(zone) {
        errors.invalid(path, zone, format!("unknown time zone {zone}"));
    }
}

pub(crate) fn cron_job_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
}
