//! Probes and lifecycle handlers of containers.

use crate::field::FieldPath;
use crate::json::Value;
use crate::kinds::access::Fields;
use crate::kinds::check::{Errors, Report, nonnegative_member, port_number, port_or_name};
use crate::kinds::core::pod_spec::SpecView;
use crate::names;

/// The three probes of a container.
pub(crate) fn of_container(container: &Value, view: &SpecView<'_>, path: &FieldPath, errors: &mut Errors) {
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.o(kind) else { continue };
        let path = path.child(kind);
        validate(probe, view, &path, errors);
        if kind == "readinessProbe" {
            if let Some(seconds) = probe.o("terminationGracePeriodSeconds") {
                errors.invalid(
                    &path.child("terminationGracePeriodSeconds"),
                    seconds,
                    "must not be set for readinessProbes",
                );
            }
        } else if probe.i("successThreshold") != 1 {
            errors.invalid(&path.child("successThreshold"), probe.i("successThreshold"), "must be 1");
        }
    }
}

fn validate(probe: &Value, view: &SpecView<'_>, path: &FieldPath, errors: &mut Errors) {
    handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], view, path, errors);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        nonnegative_member(probe, key, path, errors);
    }
    if let Some(seconds) = probe.oi("terminationGracePeriodSeconds")
        && seconds <= 0
    {
        errors.invalid(&path.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

pub(crate) fn lifecycle(lifecycle: &Value, view: &SpecView<'_>, path: &FieldPath, errors: &mut Errors) {
    for key in ["postStart", "preStop"] {
        if let Some(hook) = lifecycle.o(key) {
            handler(hook, &["exec", "httpGet", "tcpSocket", "sleep"], view, &path.child(key), errors);
        }
    }
    if let Some(signal) = lifecycle.os("stopSignal") {
        stop_signal(signal, view.os(), &path.child("stopSignal"), errors);
    }
}

fn stop_signal(signal: &str, os: Option<&str>, path: &FieldPath, errors: &mut Errors) {
    match os {
        None => errors.forbidden(path, "may not be set for containers with empty `spec.os.name`"),
        Some("windows") if !matches!(signal, "SIGKILL" | "SIGTERM") => {
            errors.not_supported(path, signal, &["SIGKILL", "SIGTERM"]);
        }
        Some(_) => {}
    }
}

fn handler(handler: &Value, kinds: &[&str], view: &SpecView<'_>, path: &FieldPath, errors: &mut Errors) {
    let mut count = 0;
    for kind in kinds {
        let Some(action) = handler.o(kind) else { continue };
        let path = path.child(kind);
        if count > 0 {
            errors.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        count += 1;
        match *kind {
            "exec" => {
                if action.list("command").is_empty() {
                    errors.required(&path.child("command"), "");
                }
            }
            "httpGet" => http_get(action, &path, errors),
            "tcpSocket" => port_or_name(action.v("port"), &path.child("port"), errors),
            "grpc" => port_number(action.i("port"), &path.child("port"), errors),
            _ => sleep(action, view, &path, errors),
        }
    }
    if count == 0 {
        errors.required(path, "must specify a handler type");
    }
}

fn sleep(action: &Value, view: &SpecView<'_>, path: &FieldPath, errors: &mut Errors) {
    let seconds = action.i("seconds");
    if let Some(grace) = view.spec.oi("terminationGracePeriodSeconds")
        && (seconds < 0 || seconds > grace)
    {
        errors.invalid(
            path,
            seconds,
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
        );
    }
}

fn http_get(action: &Value, path: &FieldPath, errors: &mut Errors) {
    if action.s("path").is_empty() {
        errors.required(&path.child("path"), "");
    }
    port_or_name(action.v("port"), &path.child("port"), errors);
    if !matches!(action.s("scheme"), "HTTP" | "HTTPS") {
        errors.not_supported(&path.child("scheme"), action.s("scheme"), &["HTTP", "HTTPS"]);
    }
    for header in action.list("httpHeaders") {
        let name = header.s("name");
        errors.messages(&path.child("httpHeaders"), name, names::is_http_header_name(name));
    }
}
