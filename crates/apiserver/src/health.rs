//! /healthz, /livez and /readyz with their named checks.
//!
//! Follows: `k8s.io/apiserver/pkg/server/healthz`.

use http::Response;

use crate::body::Body;
use crate::output::raw_response;
use crate::request_info::Query;
use crate::server::Inner;

const TEXT: &str = "text/plain; charset=utf-8";

/// The checks of all three paths; readyz has `shutdown` beside them.
const CHECKS: &[&str] = &[
    "ping",
    "log",
    "etcd",
    "poststarthook/start-apiserver-admission-initializer",
    "poststarthook/generic-apiserver-start-informers",
    "poststarthook/crd-informer-synced",
    "poststarthook/start-apiextensions-controllers",
    "poststarthook/bootstrap-controller",
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/start-kube-apiserver-admission-initializer",
    "poststarthook/apiservice-openapi-controller",
];

fn check(server: &Inner, name: &str) -> Result<(), &'static str> {
    match name {
        // The store is in this process: it is there, or nothing is.
        "shutdown" if server.stop.is_cancelled() => Err("process is shutting down"),
        _ => Ok(()),
    }
}

/// Answers one of the health paths; `None` when there is no such check.
pub fn answer(server: &Inner, path: &str, query: &Query) -> Option<Response<Body>> {
    let mut parts = path.trim_matches('/').splitn(2, '/');
    let endpoint = parts.next()?;
    let mut names: Vec<&str> = CHECKS.to_vec();
    if endpoint == "readyz" {
        names.push("shutdown");
    }
    if let Some(name) = parts.next() {
        if !names.contains(&name) {
            return None;
        }
        return Some(match check(server, name) {
            Ok(()) => raw_response(200, TEXT, "ok"),
            Err(reason) => raw_response(500, TEXT, format!("internal server error: {reason}\n")),
        });
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut report = String::new();
    let mut failed = false;
    for name in names {
        if excluded.contains(&name) {
            report += &format!("[+]{name} excluded: ok\n");
            continue;
        }
        match check(server, name) {
            Ok(()) => report += &format!("[+]{name} ok\n"),
            Err(_) => {
                failed = true;
                report += &format!("[-]{name} failed: reason withheld\n");
            }
        }
    }
    Some(if failed {
        raw_response(500, TEXT, format!("{report}{endpoint} check failed\n"))
    } else if query.get("verbose").is_some() {
        raw_response(200, TEXT, format!("{report}{endpoint} check passed\n"))
    } else {
        raw_response(200, TEXT, "ok")
    })
}
