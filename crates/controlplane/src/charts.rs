//! `experimental.deploy.vcluster.helm`: Helm charts that a cluster gets when it starts, by the `helm` program beside
//! upstream's (`/binaries/helm`).
//!
//! A release is installed when it is missing and upgraded when its entry of the configuration has changed; one that has left
//! the configuration is uninstalled. What was done is kept in the status of the init manifests.
//!
//! Follows: vCluster `pkg/controllers/deploy`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::{Value, json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use config::HelmChart;
use deploy::secrets::AdminAccess;
use informer::{ApiError, Resource, Rest};
use tokio::process::Command;

use crate::certificates::Certificates;

const SECRETS: Resource = Resource::new("", "v1", "secrets");
/// How long an install or upgrade may take unless the chart says otherwise. Source: vCluster's `defaultTimeout`.
const TIMEOUT: Duration = Duration::from_secs(180);
/// How much longer the program may take than it was told.
const EXTRA: Duration = Duration::from_secs(15);
/// The end of what helm said, as it stands in the status.
const SAID_MAX: usize = 1000;

/// What a cluster's charts are deployed with.
pub(crate) struct Charts {
    pub program: PathBuf,
    /// Where this process serves the cluster's API.
    pub server: String,
    pub certificates: Arc<Certificates>,
}

/// Why a chart is not deployed; the word is that of the status.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChartError {
    #[error("there is no {program}: the init container copies it from controlPlane.distro.k8s.image")]
    Missing { program: PathBuf },
    #[error("the bundle is not base64: {0}")]
    Bundle(#[from] base64::DecodeError),
    #[error("cannot keep the chart for a moment: {0}")]
    Files(#[from] std::io::Error),
    #[error("cannot look for the release: {0}")]
    Release(#[from] ApiError),
    #[error("helm {verb}: {said}")]
    Helm { verb: &'static str, said: String },
}

impl ChartError {
    /// Source: vCluster's `ChartPullError`, `InstallError`, `UpgradeError`, `UninstallError`.
    fn reason(&self) -> &'static str {
        match self {
            ChartError::Bundle(_) => "ChartPullFailed",
            ChartError::Helm { verb: "upgrade", .. } => "UpgradeFailed",
            ChartError::Helm { verb: "uninstall", .. } => "UninstallFailed",
            _ => "InstallFailed",
        }
    }
}

/// Name and namespace of a chart's release.
fn release(chart: &HelmChart) -> (&str, &str) {
    let name = if chart.release.name.is_empty() { &chart.chart.name } else { &chart.release.name };
    let namespace = if chart.release.namespace.is_empty() { "default" } else { &chart.release.namespace };
    (name, namespace)
}

fn hash(chart: &HelmChart) -> String {
    let text = serde_json::to_vec(chart).unwrap_or_default();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_of(status: &Value, name: &str, namespace: &str) -> bool {
    status.str_at(&["name"]) == name && status.str_at(&["namespace"]) == namespace
}

impl Charts {
    /// Brings all charts to what the configuration says; `before` is the status of the last time. Returns the status of
    /// now, and the first error.
    pub async fn deploy(
        &self,
        rest: &Rest,
        charts: &[HelmChart],
        before: &[Value],
    ) -> (Vec<Value>, Option<ChartError>) {
        let mut now = Vec::new();
        let mut failed = None;
        for chart in charts {
            let (name, namespace) = release(chart);
            let known = before.iter().find(|status| is_of(status, name, namespace));
            let mut status = json!({"name": name, "namespace": namespace, "phase": "Success"});
            match self.one(rest, chart, known).await {
                Ok(()) => status["lastAppliedChartConfigHash"] = hash(chart).into(),
                Err(error) => {
                    status["phase"] = "Failed".into();
                    status["reason"] = error.reason().into();
                    status["message"] = error.to_string().into();
                    if let Some(applied) = known.and_then(|known| known.get("lastAppliedChartConfigHash")) {
                        status["lastAppliedChartConfigHash"] = applied.clone();
                    }
                    failed.get_or_insert(error);
                }
            }
            now.push(status);
        }
        for status in before {
            let (name, namespace) = (status.str_at(&["name"]), status.str_at(&["namespace"]));
            if charts.iter().any(|chart| release(chart) == (name, namespace)) {
                continue;
            }
            if let Err(error) = self.remove(rest, name, namespace).await {
                let mut status = status.clone();
                status["phase"] = "Failed".into();
                status["reason"] = error.reason().into();
                status["message"] = error.to_string().into();
                now.push(status);
                failed.get_or_insert(error);
            }
        }
        (now, failed)
    }

    async fn one(&self, rest: &Rest, chart: &HelmChart, known: Option<&Value>) -> Result<(), ChartError> {
        let (name, namespace) = release(chart);
        let exists = exists(rest, name, namespace).await?;
        let same = known.is_some_and(|known| known.str_at(&["lastAppliedChartConfigHash"]) == hash(chart));
        if exists && same {
            return Ok(());
        }
        let folder = self.folder()?;
        let verb = if exists { "upgrade" } else { "install" };
        let timeout = config::duration(&chart.timeout).unwrap_or(TIMEOUT);
        let mut arguments: Vec<String> = vec![verb.into(), name.into()];
        arguments.extend(source(chart, folder.path())?);
        arguments.extend(["--namespace".into(), namespace.into(), format!("--timeout={}s", timeout.as_secs())]);
        if !exists {
            arguments.push("--create-namespace".into());
        }
        if !chart.values.is_empty() {
            let values = folder.path().join("values.yaml");
            std::fs::write(&values, &chart.values)?;
            arguments.push(format!("--values={}", values.display()));
        }
        let done = self.helm(verb, &folder, &arguments, timeout + EXTRA).await;
        if done.is_err() {
            // As it was before: the last revision that worked, or nothing. An install that was cut short leaves a release
            // that helm does not upgrade.
            let applied = known.is_none_or(|known| known.get("lastAppliedChartConfigHash").is_some());
            let back = if exists && applied { "rollback" } else { "uninstall" };
            let arguments = [back, name, "--namespace", namespace].map(String::from);
            if let Err(error) = self.helm("rollback", &folder, &arguments, TIMEOUT).await {
                tracing::debug!(release = name, %error, "a chart that failed could not be taken back");
            }
        }
        done
    }

    async fn remove(&self, rest: &Rest, name: &str, namespace: &str) -> Result<(), ChartError> {
        if !exists(rest, name, namespace).await? {
            return Ok(());
        }
        let arguments = ["uninstall", name, "--namespace", namespace].map(String::from);
        self.helm("uninstall", &self.folder()?, &arguments, TIMEOUT).await
    }

    /// A private directory with a kubeconfig, gone after the call.
    fn folder(&self) -> Result<tempfile::TempDir, ChartError> {
        if !self.program.is_file() {
            return Err(ChartError::Missing { program: self.program.clone() });
        }
        let folder = tempfile::Builder::new().prefix("alcove-helm-").tempdir()?;
        let access: AdminAccess = self.certificates.access(&self.server, false);
        std::fs::write(folder.path().join("kubeconfig"), deploy::secrets::kubeconfig_yaml("alcove", &access))?;
        Ok(folder)
    }

    async fn helm(
        &self,
        verb: &'static str,
        folder: &tempfile::TempDir,
        arguments: &[String],
        timeout: Duration,
    ) -> Result<(), ChartError> {
        let home = |name: &str| folder.path().join(name);
        let output = Command::new(&self.program)
            .args(arguments)
            .env("KUBECONFIG", home("kubeconfig"))
            .env("HELM_CACHE_HOME", home("cache"))
            .env("HELM_CONFIG_HOME", home("config"))
            .env("HELM_DATA_HOME", home("data"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let failed = |said: String| ChartError::Helm { verb, said };
        let output = match tokio::time::timeout(timeout, output).await {
            Ok(output) => output?,
            Err(_) => return Err(failed(format!("did not end within {} s", timeout.as_secs()))),
        };
        if output.status.success() {
            tracing::info!(verb, "helm is done");
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
        let skipped = text.chars().count().saturating_sub(SAID_MAX);
        Err(failed(text.chars().skip(skipped).collect()))
    }
}

/// Where helm finds the chart.
fn source(chart: &HelmChart, folder: &Path) -> Result<Vec<String>, ChartError> {
    if !chart.bundle.is_empty() {
        let path = folder.join("chart.tgz");
        let text: String = chart.bundle.split_whitespace().collect();
        std::fs::write(&path, STANDARD.decode(text)?)?;
        return Ok(vec![path.display().to_string()]);
    }
    let of = &chart.chart;
    let mut arguments = Vec::new();
    if of.repo.starts_with("oci://") {
        arguments.push(format!("{}/{}", of.repo.trim_end_matches('/'), of.name));
    } else {
        arguments.push(of.name.clone());
        if !of.repo.is_empty() {
            arguments.push(format!("--repo={}", of.repo));
        }
    }
    for (flag, value) in [("version", &of.version), ("username", &of.username), ("password", &of.password)] {
        if !value.is_empty() {
            arguments.push(format!("--{flag}={value}"));
        }
    }
    if of.insecure {
        arguments.push("--insecure-skip-tls-verify".into());
    }
    Ok(arguments)
}

/// Does helm know of the release?
async fn exists(rest: &Rest, name: &str, namespace: &str) -> Result<bool, ApiError> {
    let labels = format!("owner=helm,name={name}");
    let found: Vec<Value> = rest.list_as(&SECRETS, namespace, &labels, "").await?;
    Ok(!found.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(text: &str) -> HelmChart {
        let config =
            config::Config::from_yaml("t", &format!("experimental: {{deploy: {{vcluster: {{helm: [{text}]}}}}}}"));
        config.unwrap().experimental.deploy.vcluster.helm[0].clone()
    }

    #[test]
    fn charts_are_found_where_the_configuration_says() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("chart.tgz").display().to_string();
        for (text, want, named) in [
            (
                "{chart: {name: web, repo: 'https://charts.example', version: 1.2.3}}",
                vec!["web", "--repo=https://charts.example", "--version=1.2.3"],
                ("web", "default"),
            ),
            (
                "{chart: {name: web, repo: 'oci://r.example/charts/', username: u, password: p, insecure: true}, release: {name: x, namespace: apps}}",
                vec!["oci://r.example/charts/web", "--username=u", "--password=p", "--insecure-skip-tls-verify"],
                ("x", "apps"),
            ),
            ("{release: {name: x}, bundle: 'YWJj'}", vec![bundle.as_str()], ("x", "default")),
        ] {
            let chart = chart(text);
            assert_eq!(source(&chart, folder.path()).unwrap(), want, "{text}");
            assert_eq!(release(&chart), named);
        }
        assert_eq!(std::fs::read(&bundle).unwrap(), b"abc");
        let broken = source(&chart("{release: {name: x}, bundle: '%'}"), folder.path()).unwrap_err();
        assert_eq!(broken.reason(), "ChartPullFailed");
        assert_ne!(
            hash(&chart("{chart: {name: a}, values: 'a: 1'}")),
            hash(&chart("{chart: {name: a}, values: 'a: 2'}"))
        );
    }
}
