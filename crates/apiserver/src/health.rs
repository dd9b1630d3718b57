//! /healthz, /livez and /readyz with their named checks.
//!
//! Follows: `k8s.io/apiserver/pkg/server/healthz`.

use std::time::Duration;

use async_trait::async_trait;
use http::Response;

use crate::body::Body;
use crate::output::raw_response;
use crate::request_info::Query;
use crate::server::Inner;

const TEXT: &str = "text/plain; charset=utf-8";

/// How long the store may take to answer a health check. Source: `--etcd-readycheck-timeout`.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

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

/// A check beside the server's own, from the embedding program. Checks of `/readyz` only say whether requests should come
/// here; what fails `/livez` gets the process restarted.
#[async_trait]
pub trait HealthCheck: Send + Sync {
    fn name(&self) -> &str;

    /// Is the check one of `/livez` and `/healthz` too?
    fn is_liveness(&self) -> bool {
        false
    }

    /// The reason is logged, not shown.
    async fn check(&self) -> Result<(), String>;
}

async fn check(server: &Inner, endpoint: &str, name: &str) -> Result<(), String> {
    let own = server.config.health_checks.iter().find(|check| check.name() == name);
    match name {
        "shutdown" if server.stop.is_cancelled() || server.is_shutting_down() => {
            Err("process is shutting down".to_owned())
        }
        // A process that is started again does not reach a store any sooner: it is ready that suffers, not alive.
        "etcd" if endpoint == "readyz" => {
            match tokio::time::timeout(STORE_TIMEOUT, server.storage.store.synchronize()).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the store does not answer".to_owned()),
            }
        }
        _ => match own {
            Some(check) => check.check().await,
            None => Ok(()),
        },
    }
}

/// Is the check one of the embedding program's?
pub(crate) fn is_own(server: &Inner, endpoint: &str, name: &str) -> bool {
    let own = server.config.health_checks.iter();
    own.filter(|check| endpoint == "readyz" || check.is_liveness()).any(|check| check.name() == name)
}

/// The answer when a check of this process fails that a server behind it knows nothing of.
pub(crate) async fn own_failure(server: &Inner, endpoint: &str, query: &Query) -> Option<Response<Body>> {
    let own = server.config.health_checks.iter().filter(|check| endpoint == "readyz" || check.is_liveness());
    let mut names: Vec<&str> = own.map(|check| check.name()).collect();
    if endpoint == "readyz" {
        names.push("shutdown");
    }
    let mut report = String::new();
    let mut failed = false;
    for name in names {
        let outcome = if query.all("exclude").any(|excluded| excluded == name) {
            Ok(())
        } else {
            check(server, endpoint, name).await
        };
        if let Err(reason) = &outcome {
            tracing::warn!(endpoint, check = name, reason, "a health check failed");
            failed = true;
        }
        let (mark, word) = if outcome.is_ok() { ("[+]", "ok") } else { ("[-]", "failed: reason withheld") };
        report += &format!("{mark}{name} {word}\n");
    }
    failed.then(|| raw_response(500, TEXT, format!("{report}{endpoint} check failed\n")))
}

/// Answers one of the health paths; `None` when there is no such check.
pub async fn answer(server: &Inner, path: &str, query: &Query) -> Option<Response<Body>> {
    let mut parts = path.trim_matches('/').splitn(2, '/');
    let endpoint = parts.next()?;
    let mut names: Vec<&str> = CHECKS.to_vec();
    let own = server.config.health_checks.iter();
    names.extend(own.filter(|check| endpoint == "readyz" || check.is_liveness()).map(|check| check.name()));
    if endpoint == "readyz" {
        names.push("shutdown");
    }
    if let Some(name) = parts.next() {
        if !names.contains(&name) {
            return None;
        }
        return Some(match check(server, endpoint, name).await {
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
        match check(server, endpoint, name).await {
            Ok(()) => report += &format!("[+]{name} ok\n"),
            Err(reason) => {
                tracing::warn!(endpoint, check = name, reason, "a health check failed");
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
