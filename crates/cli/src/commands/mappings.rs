//! `alcove debug mappings`: which host object stands for which virtual one, as the cluster's own store has it.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use serde_json::{Value, json};
use syncer::kind::{self, Kind};
use syncer::metadata::{KIND_ANNOTATION, MANAGED_BY_LABEL, NAME_ANNOTATION, NAMESPACE_ANNOTATION};
use syncer::names::{Names, NamespacedName};

use crate::args::{DebugMappings, Global, Output};
use crate::clusters::{self, Cluster};
use crate::host::{self, Host};
use crate::operate::Operator;
use crate::table;
use crate::ui::Ui;

/// How long the cluster may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

struct Pair {
    kind: String,
    virtual_: NamespacedName,
    host: NamespacedName,
}

fn pair(kind: &Kind, object: &DynamicObject) -> Option<Pair> {
    let annotations = object.annotations();
    // A pod's tokens are in a Secret that says whose it is.
    if annotations.get(KIND_ANNOTATION).is_some_and(|of| *of != kind.gvk()) {
        return None;
    }
    let name = annotations.get(NAME_ANNOTATION)?;
    let namespace = annotations.get(NAMESPACE_ANNOTATION).map(String::as_str).unwrap_or_default();
    Some(Pair {
        kind: kind.kind.to_string(),
        virtual_: NamespacedName::new(namespace, name.as_str()),
        host: NamespacedName::new(object.namespace().unwrap_or_default(), object.name_any()),
    })
}

/// A pair as the control plane keeps it.
fn kept(value: &Value) -> Option<Pair> {
    let name = |of: &Value| Some(NamespacedName::new(of["Namespace"].as_str()?, of["Name"].as_str()?));
    Some(Pair {
        kind: value["Kind"].as_str()?.to_string(),
        virtual_: name(&value["VirtualName"])?,
        host: name(&value["HostName"])?,
    })
}

/// What the objects on the host say: for a control plane that does not answer.
async fn on_host(host: &Host, cluster: &Cluster) -> Vec<Pair> {
    let names = Names::new(cluster.name.as_str(), cluster.namespace.as_str());
    let mut pairs = Vec::new();
    let mut seen = BTreeSet::new();
    for kind in kind::ALL.iter().filter(|k| seen.insert((k.group.clone(), k.plural.clone()))) {
        let resource = ApiResource {
            group: kind.group.to_string(),
            version: kind.version.to_string(),
            api_version: kind.api_version(),
            kind: kind.kind.to_string(),
            plural: kind.plural.to_string(),
        };
        let marker = if kind.namespaced { cluster.name.clone() } else { names.cluster_marker() };
        let api: Api<DynamicObject> = Api::all_with(host.client.clone(), &resource);
        let own: Api<DynamicObject> = Api::namespaced_with(host.client.clone(), &cluster.namespace, &resource);
        let params = ListParams::default().labels(&format!("{MANAGED_BY_LABEL}={marker}"));
        // Mapped namespaces are others than the cluster's; whoever may not look there sees the cluster's own.
        let listed = match api.list(&params).await {
            Ok(list) => Ok(list),
            Err(_) if kind.namespaced => own.list(&params).await,
            Err(error) => Err(error),
        };
        // A kind that the host does not have, or that the user may not see, has no pairs to show.
        for object in listed.into_iter().flatten() {
            pairs.extend(pair(kind, &object));
        }
    }
    pairs
}

pub async fn run(global: &Global, args: &DebugMappings, ui: &Ui) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    let asked = async { Operator::of(&host, &cluster, ANSWER).await?.mappings().await };
    let mut pairs: Vec<Pair> = match asked.await {
        Ok(all) => all.iter().filter_map(kept).collect(),
        Err(error) => {
            ui.warn(&format!(
                "these are what the objects on the host say, because the cluster cannot be asked: {error}"
            ));
            on_host(&host, &cluster).await
        }
    };
    if let Some(only) = &args.kind {
        pairs.retain(|p| p.kind.eq_ignore_ascii_case(only));
    }
    pairs.sort_by(|a, b| (&a.kind, &a.virtual_).cmp(&(&b.kind, &b.virtual_)));
    let name = |n: &NamespacedName| json!({"namespace": n.namespace, "name": n.name});
    let values = || -> Vec<Value> {
        let all = pairs.iter();
        all.map(|p| json!({"kind": p.kind, "virtual": name(&p.virtual_), "host": name(&p.host)})).collect()
    };
    match args.output {
        Output::Json => println!("{:#}", json!(values())),
        Output::Yaml => print!("{}", config::yaml::to_string(&values())?),
        Output::Table => {
            let rows: Vec<Vec<String>> =
                pairs.iter().map(|p| vec![p.kind.clone(), p.virtual_.to_string(), p.host.to_string()]).collect();
            print!("{}", table::render(&["KIND", "VIRTUAL", "HOST"], &rows));
        }
    }
    Ok(ExitCode::SUCCESS)
}
