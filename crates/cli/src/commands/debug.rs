//! `alcove debug collect`: an archive with what helps to find out what is wrong.
//!
//! What cannot be had is noted in the archive under `errors.txt`; the rest is collected all the same. Secrets appear with
//! the names of their keys and without their values.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use apimachinery::resources::{self, Resource};
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, LogParams};
use serde_json::{Value, json};

use crate::args::{DebugCollect, DebugCommand, Global};
use crate::clusters::{self, Cluster};
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::reach;
use crate::ui::Ui;

const HOST_RESOURCES: [&str; 14] = [
    "pods",
    "services",
    "endpoints",
    "configmaps",
    "secrets",
    "persistentvolumeclaims",
    "events",
    "serviceaccounts",
    "resourcequotas",
    "limitranges",
    "statefulsets.apps",
    "deployments.apps",
    "ingresses.networking.k8s.io",
    "networkpolicies.networking.k8s.io",
];
const VIRTUAL_RESOURCES: [&str; 12] = [
    "pods",
    "services",
    "nodes",
    "namespaces",
    "events",
    "persistentvolumeclaims",
    "persistentvolumes",
    "deployments.apps",
    "statefulsets.apps",
    "daemonsets.apps",
    "jobs.batch",
    "customresourcedefinitions.apiextensions.k8s.io",
];
/// How long one question may take.
const QUESTION: Duration = Duration::from_secs(30);
/// Lines of a log that are taken.
const LOG_LINES: i64 = 20_000;

pub async fn run(global: &Global, command: &DebugCommand, ui: &Ui) -> anyhow::Result<ExitCode> {
    match command {
        DebugCommand::Collect(args) => collect(global, args, ui).await,
        DebugCommand::Shell(args) => super::shell::run(global, args, ui).await,
        DebugCommand::Mappings(args) => super::mappings::run(global, args, ui).await,
    }
}

/// The archive as it grows.
#[derive(Default)]
struct Collected {
    files: BTreeMap<String, Vec<u8>>,
    errors: Vec<String>,
}

impl Collected {
    fn add(&mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.files.insert(path.into(), content.into());
    }

    fn add_json(&mut self, path: impl Into<String>, value: &Value) {
        self.add(path, format!("{value:#}\n"));
    }

    fn error(&mut self, what: &str, error: impl std::fmt::Display) {
        self.errors.push(format!("{what}: {error}"));
    }
}

async fn collect(global: &Global, args: &DebugCollect, ui: &Ui) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    let step = ui.step(&format!("Collecting from virtual cluster {}...", args.name));
    let host_kinds = kinds(&args.host_resources, &HOST_RESOURCES)?;
    let virtual_kinds = kinds(&args.virtual_resources, &VIRTUAL_RESOURCES)?;
    let mut collected = Collected::default();
    if args.release {
        collected.add_json("release.json", &crate::commands::list::description(&host, &cluster).await?);
    }
    if args.logs {
        logs(&host, &cluster, &mut collected).await;
    }
    if args.host_info {
        version("host", &host.client, &mut collected).await;
        for kind in &host_kinds {
            objects("host", &host.client, kind, Some(&cluster.namespace), &mut collected).await;
        }
    }
    if cluster.status == hub::PAUSED {
        collected.error("virtual", "the cluster is paused");
    } else if args.virtual_info || args.count_virtual_cluster_objects {
        match reach::kubeconfig(&host, &cluster, QUESTION).await {
            Ok((config, _forward)) => {
                let client = host::client(&config, None).await?;
                inside(args, &client, &virtual_kinds, &mut collected).await;
            }
            Err(error) => collected.error("virtual", format!("{error:#}")),
        }
    }
    if !collected.errors.is_empty() {
        let text = collected.errors.join("\n") + "\n";
        collected.add("errors.txt", text);
    }
    let seconds = clusters::now().seconds;
    let path = args.output_filename.clone();
    let path = path.unwrap_or_else(|| format!("vcluster.{}.debug.{seconds}.tar.gz", args.name).into());
    write(&path, &collected.files, seconds)?;
    step.done(&format!("Wrote {} with {} files", path.display(), collected.files.len()));
    for error in &collected.errors {
        ui.warn(error);
    }
    Ok(ExitCode::SUCCESS)
}

async fn inside(args: &DebugCollect, client: &kube::Client, kinds: &[Kind], collected: &mut Collected) {
    if args.virtual_info {
        version("virtual", client, collected).await;
        for kind in kinds {
            objects("virtual", client, kind, None, collected).await;
        }
    }
    if args.count_virtual_cluster_objects {
        let mut counts = BTreeMap::new();
        for resource in preferred().filter(|resource| resource.has_verb("list")) {
            let kind = Kind::of(resource);
            if let Ok(count) = count(client, &kind).await {
                counts.insert(kind.name(), count);
            }
        }
        collected.add_json("virtual/virtual-resource-count.json", &json!(counts));
    }
}

/// A kind of objects to collect.
struct Kind {
    resource: ApiResource,
    namespaced: bool,
}

impl Kind {
    fn of(resource: &Resource) -> Kind {
        Kind {
            resource: ApiResource {
                group: resource.group.to_string(),
                version: resource.version.to_string(),
                api_version: resource.api_version(),
                kind: resource.kind.to_string(),
                plural: resource.name.to_string(),
            },
            namespaced: resource.namespaced,
        }
    }

    /// `pods`, `deployments.apps`.
    fn name(&self) -> String {
        match self.resource.group.as_str() {
            "" => self.resource.plural.clone(),
            group => format!("{}.{group}", self.resource.plural),
        }
    }

    fn api(&self, client: &kube::Client, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.resource),
            None => Api::all_with(client.clone(), &self.resource),
        }
    }
}

/// Every built-in kind once, in the version that clients prefer.
fn preferred() -> impl Iterator<Item = &'static Resource> {
    let all = resources::RESOURCES.iter();
    all.filter(|resource| {
        resources::preferred(resource.group, resource.name).is_some_and(|best| std::ptr::eq(best, *resource))
    })
}

fn kinds(asked: &[String], default: &[&str]) -> anyhow::Result<Vec<Kind>> {
    let names: Vec<String> = match asked {
        [] => default.iter().map(ToString::to_string).collect(),
        asked => asked.to_vec(),
    };
    let mut kinds = Vec::new();
    for name in names {
        let (plural, group) = name.split_once('.').unwrap_or((&name, ""));
        let found =
            preferred().find(|resource| resource.name == plural && (resource.group == group || group.is_empty()));
        match found {
            Some(resource) => kinds.push(Kind::of(resource)),
            None => {
                return Err(Failure::invalid(format!("there is no kind {name:?}"))
                    .hint("name kinds as kubectl api-resources does: pods, deployments.apps")
                    .into());
            }
        }
    }
    Ok(kinds)
}

async fn version(side: &str, client: &kube::Client, collected: &mut Collected) {
    match tokio::time::timeout(QUESTION, client.apiserver_version()).await {
        Ok(Ok(version)) => collected.add_json(format!("{side}/version.json"), &json!(version)),
        Ok(Err(error)) => collected.error(&format!("{side}/version.json"), error),
        Err(_) => collected.error(&format!("{side}/version.json"), "no answer in time"),
    }
}

/// Takes the values out of a Secret, and what an apply has left of them.
fn redact(object: &mut Value) {
    for key in ["data", "stringData"] {
        for value in object.get_mut(key).and_then(Value::as_object_mut).into_iter().flat_map(|data| data.values_mut()) {
            let length = value.as_str().map_or(0, str::len);
            *value = json!(format!("<{length} characters>"));
        }
    }
    let annotations = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    annotations.map(|all| all.remove("kubectl.kubernetes.io/last-applied-configuration"));
}

async fn objects(side: &str, client: &kube::Client, kind: &Kind, namespace: Option<&str>, collected: &mut Collected) {
    let api = kind.api(client, namespace);
    let list = match tokio::time::timeout(QUESTION, api.list(&ListParams::default())).await {
        Ok(Ok(list)) => list,
        Ok(Err(error)) => return collected.error(&format!("{side}/resources/{}", kind.name()), error),
        Err(_) => return collected.error(&format!("{side}/resources/{}", kind.name()), "no answer in time"),
    };
    for object in list {
        let mut value = json!(object);
        value["apiVersion"] = json!(kind.resource.api_version);
        value["kind"] = json!(kind.resource.kind);
        if kind.resource.kind == "Secret" {
            redact(&mut value);
        }
        if let Some(metadata) = value["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        let name = object.metadata.name.unwrap_or_default();
        let path = match (side, object.metadata.namespace) {
            ("virtual", Some(namespace)) => format!("virtual/resources/{}/{namespace}/{name}", kind.name()),
            _ => format!("{side}/resources/{}/{name}", kind.name()),
        };
        collected.add(path, config::yaml::to_string(&value).unwrap_or_else(|_| value.to_string()));
    }
}

async fn count(client: &kube::Client, kind: &Kind) -> anyhow::Result<u64> {
    let list = tokio::time::timeout(QUESTION, kind.api(client, None).list(&ListParams::default().limit(500))).await??;
    let more = list.metadata.remaining_item_count.unwrap_or(0);
    Ok(list.items.len() as u64 + u64::try_from(more).unwrap_or(0))
}

/// Logs of the control plane's pods: those there are, and those before the last restart. A hub's log is the hub's.
async fn logs(host: &Host, cluster: &Cluster, collected: &mut Collected) {
    let pods: Api<Pod> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let params = ListParams::default().labels(&deploy::selector(&cluster.name));
    let list = match pods.list(&params).await {
        Ok(list) => list,
        Err(error) => return collected.error("logs", error),
    };
    for pod in list {
        let name = pod.metadata.name.unwrap_or_default();
        let containers = pod.spec.map(|spec| spec.containers).unwrap_or_default();
        for previous in [false, true] {
            let suffix = if previous { ".previous" } else { "" };
            let mut text = String::new();
            for container in &containers {
                let params = LogParams {
                    container: Some(container.name.clone()),
                    previous,
                    tail_lines: Some(LOG_LINES),
                    ..LogParams::default()
                };
                match tokio::time::timeout(QUESTION, pods.logs(&name, &params)).await {
                    Ok(Ok(log)) => text.push_str(&log),
                    // Most containers were never restarted.
                    Ok(Err(_)) if previous => {}
                    Ok(Err(error)) => collected.error(&format!("logs/{name}.log"), error),
                    Err(_) => collected.error(&format!("logs/{name}.log"), "no answer in time"),
                }
            }
            if !(previous && text.is_empty()) {
                collected.add(format!("logs/{name}{suffix}.log"), text);
            }
        }
    }
}

/// Readable by the owner only: it tells much about a cluster.
fn write(path: &Path, files: &BTreeMap<String, Vec<u8>>, seconds: i64) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".debug-").tempfile_in(folder);
    let file = file.with_context(|| format!("cannot write in {}", folder.display()))?;
    let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        tar.append_data(&mut header, name, &content[..])?;
    }
    let file = tar.into_inner()?.finish()?;
    file.persist(path).map_err(|error| error.error).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_lose_their_values() {
        let mut secret = json!({
            "metadata": {"name": "s", "annotations": {"a": "b", "kubectl.kubernetes.io/last-applied-configuration": "c2VjcmV0"}},
            "data": {"password": "c2VjcmV0"},
            "stringData": {"x": "secret"},
        });
        redact(&mut secret);
        let text = secret.to_string();
        assert!(!text.contains("c2VjcmV0") && !text.contains("secret"), "{text}");
        assert_eq!(secret["data"]["password"], "<8 characters>");
        assert_eq!(secret["metadata"]["annotations"]["a"], "b");
    }

    #[test]
    fn kinds_are_named_as_kubectl_names_them() {
        let names = |asked: &[&str]| -> Vec<String> {
            let asked: Vec<String> = asked.iter().map(ToString::to_string).collect();
            kinds(&asked, &HOST_RESOURCES).unwrap().iter().map(Kind::name).collect()
        };
        assert_eq!(names(&["pods", "deployments.apps", "jobs"]), ["pods", "deployments.apps", "jobs.batch"]);
        assert_eq!(names(&[]).len(), HOST_RESOURCES.len());
        assert_eq!(kinds(&[], &VIRTUAL_RESOURCES).unwrap().len(), VIRTUAL_RESOURCES.len());
        assert!(kinds(&["nonsense".to_string()], &[]).is_err());
    }
}
