//! Invariants of a Job's status, checked when the part they are about changes.

use crate::field::{BadValue, FieldPath};
use crate::json::Value;
use crate::kinds::access::{Fields, semantic_equal};
use crate::kinds::check::{Errors, Report, nonnegative_member};
use crate::kinds::object_meta;
use crate::time::Timestamp;

/// A condition that holds.
pub(crate) fn is_true(status: &Value, kind: &str) -> bool {
    status.list("conditions").iter().any(|c| c.s("type") == kind && c.s("status") == "True")
}

/// Reads `1,3-5`: intervals that grow, below `completions`.
pub(crate) fn parse_indexes(text: &str, completions: i64) -> Result<Vec<(i64, i64)>, String> {
    let mut out: Vec<(i64, i64)> = Vec::new();
    if text.is_empty() {
        return Ok(out);
    }
    let number = |t: &str| -> Result<i64, String> {
        let n: i64 = t.parse().map_err(|_| format!("cannot convert string to integer for index: {t:?}"))?;
        if n >= completions { Err(format!("too large index: {t:?}")) } else { Ok(n) }
    };
    for interval in text.split(',') {
        let ends: Vec<&str> = interval.split('-').collect();
        let (first, last) = match ends.as_slice() {
            [one] => {
                let n = number(one)?;
                (n, n)
            }
            [a, b] => {
                let (a, b) = (number(a)?, number(b)?);
                if a >= b {
                    return Err(format!("non-increasing order, previous: {a}, current: {b}"));
                }
                (a, b)
            }
            _ => {
                return Err(format!(
                    "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if let Some((_, previous)) = out.last()
            && *previous >= first
        {
            return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
        }
        out.push((first, last));
    }
    Ok(out)
}

pub(crate) fn update_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    let (status, before, spec) = (new.v("status"), old.v("status"), new.v("spec"));
    let path = FieldPath::new("status");
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        nonnegative_member(status, key, &path, errors);
    }
    uncounted(status, &path.child("uncountedTerminatedPods"), errors);
    invariants(status, before, spec, &path, errors);
    transitions(status, before, spec, &path, errors);
}

fn uncounted(status: &Value, path: &FieldPath, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for key in ["succeeded", "failed"] {
        for (i, uid) in status.v("uncountedTerminatedPods").list(key).iter().enumerate() {
            let (uid, at) = (uid.as_str().unwrap_or(""), path.child(key).index(i));
            if uid.is_empty() {
                errors.invalid(&at, "", "must not be empty");
            } else if seen.contains(&uid) {
                errors.duplicate(&at, uid);
            } else {
                seen.push(uid);
            }
        }
    }
}

fn invariants(status: &Value, before: &Value, spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let now = |kind: &str| is_true(status, kind);
    let was = |kind: &str| is_true(before, kind);
    let changed = |key: &str| !semantic_equal(status.v(key), before.v(key)) || status.i(key) != before.i(key);
    let (complete, failed) = (now("Complete"), now("Failed"));
    let (finished, was_finished) = (complete || failed, was("Complete") || was("Failed"));
    let finished_changed = finished != was_finished;
    let complete_changed = complete != was("Complete");
    let failed_changed = failed != was("Failed");
    let target_changed = now("FailureTarget") != was("FailureTarget");
    let criteria_changed = now("SuccessCriteriaMet") != was("SuccessCriteriaMet");
    let (completed_changed, failed_indexes_changed) = (changed("completedIndexes"), changed("failedIndexes"));
    let (start_changed, completion_changed) = (changed("startTime"), changed("completionTime"));
    let conditions = path.child("conditions");
    let condition = |text: &str, errors: &mut Errors| errors.invalid(&conditions, BadValue::Omitted, text);
    if (complete_changed || failed_changed) && complete && failed {
        condition("cannot set Complete=True and Failed=true conditions", errors);
    }
    if (complete_changed || target_changed) && complete && now("FailureTarget") {
        condition("cannot set Complete=True and FailureTarget=true conditions", errors);
    }
    let at = path.child("completionTime");
    if complete_changed || completion_changed {
        if status.has("completionTime") && !complete {
            errors.invalid(
                &at,
                status.v("completionTime"),
                "cannot set completionTime when there is no Complete=True condition",
            );
        }
        if !status.has("completionTime") && complete {
            errors.required(&at, "completionTime is required for Complete jobs");
        }
    }
    if start_changed || completion_changed {
        let time = |key: &str| Timestamp::parse(status.s(key));
        if let (Some(start), Some(end)) = (time("startTime"), time("completionTime"))
            && end < start
        {
            errors.invalid(&at, status.v("completionTime"), "must be equal to or after `startTime`");
        }
    }
    if (failed_changed || failed_indexes_changed) && failed && !now("FailureTarget") {
        condition("cannot set Failed=True condition without the FailureTarget=true condition", errors);
    }
    if (complete_changed || criteria_changed) && complete && !now("SuccessCriteriaMet") {
        condition("cannot set Complete=True condition without the SuccessCriteriaMet=true condition", errors);
    }
    if (finished_changed || changed("active")) && finished && status.i("active") > 0 {
        errors.invalid(&path.child("active"), status.i("active"), "active>0 is invalid for finished job");
    }
    let nothing_to_do = spec.b("suspend") && spec.oi("completions") == Some(0);
    if (finished_changed || start_changed) && !nothing_to_do && finished && !status.has("startTime") {
        errors.required(&path.child("startTime"), "startTime is required for finished job");
    }
    let left = status.v("uncountedTerminatedPods");
    if (finished_changed || changed("uncountedTerminatedPods"))
        && finished
        && (!left.list("failed").is_empty() || !left.list("succeeded").is_empty())
    {
        errors.invalid(&path.child("uncountedTerminatedPods"), left, "must be empty for finished job");
    }
    indexes(status, spec, (completed_changed, failed_indexes_changed), path, errors);
    if (finished_changed || changed("terminating")) && finished && status.i("terminating") > 0 {
        errors.invalid(
            &path.child("terminating"),
            status.i("terminating"),
            "terminating>0 is invalid for finished job",
        );
    }
    if (changed("ready") || changed("active")) && status.i("ready") > status.i("active") {
        errors.invalid(&path.child("ready"), status.i("ready"), "cannot set more ready pods than active");
    }
    if now("SuccessCriteriaMet") && failed {
        condition("cannot set SuccessCriteriaMet=True and Failed=true conditions", errors);
    }
    if now("SuccessCriteriaMet") && now("FailureTarget") {
        condition("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions", errors);
    }
    if spec.has("successPolicy") && !now("SuccessCriteriaMet") && complete {
        condition("cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True", errors);
    }
}

fn indexes(status: &Value, spec: &Value, changed: (bool, bool), path: &FieldPath, errors: &mut Errors) {
    let (completed_changed, failed_changed) = changed;
    let (completed, failed) = (status.s("completedIndexes"), status.os("failedIndexes"));
    let (at_completed, at_failed) = (path.child("completedIndexes"), path.child("failedIndexes"));
    let completions = spec.oi("completions");
    let per_index = spec.has("backoffLimitPerIndex");
    if completed_changed
        && let Some(completions) = completions
        && let Err(e) = parse_indexes(completed, completions)
    {
        errors.invalid(&at_completed, completed, format!("error parsing completedIndexes: {e}"));
    }
    if failed_changed
        && per_index
        && let (Some(completions), Some(failed)) = (completions, failed)
        && let Err(e) = parse_indexes(failed, completions)
    {
        errors.invalid(&at_failed, failed, format!("error parsing failedIndexes: {e}"));
    }
    if completed_changed && !completed.is_empty() && spec.s("completionMode") != "Indexed" {
        errors.invalid(
            &at_completed,
            completed,
            "cannot set non-empty completedIndexes when non-indexed completion mode",
        );
    }
    let Some(failed) = failed else { return };
    if failed_changed && !per_index {
        errors.invalid(&at_failed, failed, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
    if (failed_changed || completed_changed)
        && let Some(completions) = completions
        && let (Ok(done), Ok(lost)) = (parse_indexes(completed, completions), parse_indexes(failed, completions))
    {
        let overlap =
            done.iter().find_map(|(a, b)| lost.iter().find(|(x, y)| a <= y && x <= b).map(|(x, _)| *a.max(x)));
        if let Some(index) = overlap {
            errors.invalid(&at_failed, failed, format!("failedIndexes and completedIndexes overlap at index: {index}"));
        }
    }
}

fn transitions(status: &Value, before: &Value, spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let conditions = path.child("conditions");
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if is_true(before, kind) && !is_true(status, kind) {
            errors.invalid(
                &conditions,
                BadValue::Omitted,
                format!("cannot disable the terminal {kind}=True condition"),
            );
        }
    }
    if status.i("failed") < before.i("failed") {
        errors.invalid(&path.child("failed"), status.i("failed"), "cannot decrease the failed counter");
    }
    let elastic = spec.s("completionMode") == "Indexed" && spec.oi("completions") == spec.oi("parallelism");
    if !elastic && status.i("succeeded") < before.i("succeeded") {
        errors.invalid(&path.child("succeeded"), status.i("succeeded"), "cannot decrease the succeeded counter");
    }
    if let (Some(now), Some(was)) = (status.o("completionTime"), before.o("completionTime"))
        && now != was
    {
        errors.invalid(&path.child("completionTime"), now, "field is immutable");
    }
    let resuming = is_true(before, "Suspended")
        && status.list("conditions").iter().any(|c| c.s("type") == "Suspended" && c.s("status") == "False");
    if before.has("startTime") && before.v("startTime") != status.v("startTime") && !resuming && !spec.b("suspend") {
        errors.invalid(
            &path.child("startTime"),
            BadValue::Value(status.v("startTime").clone()),
            "field is immutable for unsuspended job once set",
        );
    }
    let (met, was_met) = (is_true(status, "SuccessCriteriaMet"), is_true(before, "SuccessCriteriaMet"));
    if was_met && !met {
        errors.invalid(&conditions, BadValue::Omitted, "cannot disable the SuccessCriteriaMet=True condition");
    }
    if is_true(before, "Complete") && !was_met && met {
        errors.invalid(
            &conditions,
            BadValue::Omitted,
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
        );
    }
}
