//! `alcove certs check|rotate|rotate-ca`: the certificates in Secret `NAME-certs`.
//!
//! Rotation writes the new files to the Secret and starts the control plane anew, which serves and hands them out.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use apimachinery::time::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use pki::ClusterCertificates;
use serde_json::{Value, json};

use crate::args::{CertsCheck, CertsCommand, CertsRotate, Global, Output};
use crate::clusters::{self, Cluster};
use crate::commands::pause;
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::manifests::{found, poll};
use crate::ui::Ui;
use crate::{reach, table};

pub async fn run(global: &Global, command: &CertsCommand, ui: &Ui) -> anyhow::Result<ExitCode> {
    match command {
        CertsCommand::Check(args) => check(global, args).await,
        CertsCommand::Rotate(args) => rotate(global, args, false, ui).await,
        CertsCommand::RotateCa(args) => rotate(global, args, true, ui).await,
    }
}

fn secrets(host: &Host, cluster: &Cluster) -> Api<Secret> {
    Api::namespaced(host.client.clone(), &cluster.namespace)
}

/// The files in Secret `NAME-certs`.
async fn read(host: &Host, cluster: &Cluster) -> anyhow::Result<BTreeMap<String, String>> {
    let name = deploy::names::certs_secret(&cluster.name);
    let secret =
        secrets(host, cluster).get_opt(&name).await.map_err(|error| host::unreachable(&host.context, error))?;
    let data = secret.and_then(|secret| secret.data).ok_or_else(|| {
        Failure::not_found(format!("Secret {name} does not exist in namespace {}", cluster.namespace))
            .hint("the control plane makes it when it starts for the first time")
    })?;
    Ok(data.into_iter().map(|(file, ByteString(bytes))| (file, String::from_utf8_lossy(&bytes).into_owned())).collect())
}

async fn check(global: &Global, args: &CertsCheck) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    let files = read(&host, &cluster).await?;
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for (file, text) in files.iter().filter(|(file, _)| file.ends_with(".crt")) {
        let info = pki::describe(text).map_err(|error| Failure::failed(format!("{file}: {error}")))?;
        let since = info.not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = Timestamp::from_seconds(since.as_secs() as i64).to_rfc3339();
        let status = if info.not_after < SystemTime::now() { "EXPIRED" } else { "OK" };
        values.push(json!({
            "filename": file, "subject": info.subject, "issuer": info.issuer, "expiryTime": until, "status": status,
        }));
        rows.push(vec![file.clone(), info.subject, info.issuer, until, status.to_string()]);
    }
    match args.output {
        Output::Table => print!("{}", table::render(&["FILENAME", "SUBJECT", "ISSUER", "EXPIRES ON", "STATUS"], &rows)),
        Output::Json => println!("{:#}", json!(values)),
        Output::Yaml => print!("{}", config::yaml::to_string(&values)?),
    }
    Ok(ExitCode::SUCCESS)
}

async fn rotate(global: &Global, args: &CertsRotate, authorities: bool, ui: &Ui) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    let files = read(&host, &cluster).await?;
    let what = if authorities { "authority and certificates" } else { "certificates" };
    let step = ui.step(&format!("Rotate the {what} of virtual cluster {}...", args.name));
    // The control plane adds the names it knows of when it starts.
    let serving = files.get("apiserver.crt").and_then(|text| pki::names_of(text).ok()).unwrap_or_default();
    let kept = ClusterCertificates::without_leaves(&files, authorities);
    let fresh = ClusterCertificates::complete(kept, &serving).map_err(|error| {
        Failure::failed(format!("the certificates cannot be made: {}", crate::commands::up::chain(&error)))
            .hint("is the key of the authority in the Secret? `alcove certs rotate-ca` makes a new authority")
    })?;
    let mut data: BTreeMap<String, Option<ByteString>> = files.keys().map(|file| (file.clone(), None)).collect();
    data.extend(fresh.files().iter().map(|(file, text)| (file.clone(), Some(ByteString(text.clone().into_bytes())))));
    // Made again from the new certificates.
    data.remove("admin.conf");
    let patch = json!({"data": data});
    let name = deploy::names::certs_secret(&args.name);
    let patched = secrets(&host, &cluster).patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    patched.map_err(|error| host::unreachable(&host.context, error))?;

    if pause::is_paused(&host, &cluster).await? {
        step.done(&format!("Successfully rotated the {what}; they are served when {} is resumed", args.name));
        return Ok(ExitCode::SUCCESS);
    }
    restart(&host, &cluster).await?;
    wait_until_served(&host, &cluster, fresh.file("admin.crt").unwrap_or_default(), args.timeout).await?;
    step.done(&format!("Successfully rotated the {what} of virtual cluster {}", args.name));
    if authorities || reach::has_context(&host, &context(&host, &cluster)) {
        ui.info(&format!("Use `alcove connect {}` to get the new kubeconfig", args.name));
    }
    Ok(ExitCode::SUCCESS)
}

fn context(host: &Host, cluster: &Cluster) -> String {
    crate::kubeconfig::context_name(&cluster.name, &cluster.namespace, &host.context)
}

/// Starts the control plane anew.
async fn restart(host: &Host, cluster: &Cluster) -> anyhow::Result<()> {
    let now = clusters::now().to_rfc3339();
    let template = json!({"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": now}}});
    let patch = Patch::Merge(json!({"spec": {"template": template}}));
    let (namespace, params) = (cluster.namespace.as_str(), PatchParams::default());
    let unreachable = |error| host::unreachable(&host.context, error);
    let sets: Api<StatefulSet> = Api::namespaced(host.client.clone(), namespace);
    // An etcd of its own reads its authority when it starts.
    found(sets.patch(&deploy::names::etcd(&cluster.name), &params, &patch).await).map_err(unreachable)?;
    if cluster.placement == "hub" {
        // Two in one second are two all the same.
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        let mark = json!(format!("{now}.{nanos}"));
        return pause::annotate(host, cluster, &[(deploy::RESTART_ANNOTATION, mark)]).await;
    }
    if found(sets.patch(&cluster.name, &params, &patch).await).map_err(unreachable)?.is_some() {
        return Ok(());
    }
    let deployments: Api<Deployment> = Api::namespaced(host.client.clone(), namespace);
    found(deployments.patch(&cluster.name, &params, &patch).await).map_err(unreachable)?;
    Ok(())
}

/// Until the kubeconfig on the host carries the new client certificate and the API takes it.
async fn wait_until_served(
    host: &Host,
    cluster: &Cluster,
    client_certificate: &str,
    timeout: u64,
) -> anyhow::Result<()> {
    let timeout = Duration::from_secs(timeout);
    let served = poll(timeout, Duration::from_millis(100), async || {
        // Asking wakes a cluster that sleeps; the old kubeconfig may be refused by then, which does not matter.
        let (config, _forward) = reach::kubeconfig(host, cluster, Duration::from_secs(10)).await.ok()?;
        let client = host::client(&config, None).await.ok()?;
        let answers = tokio::time::timeout(Duration::from_secs(5), client.apiserver_version()).await;
        let encoded = config.pointer("/users/0/user/client-certificate-data").and_then(Value::as_str)?;
        let new = crate::operate::decode(encoded).is_some_and(|text| text.trim() == client_certificate.trim());
        (new && matches!(answers, Ok(Ok(_)))).then_some(())
    });
    served.await.ok_or_else(|| {
        Failure::timed_out(format!("the new certificates are not served after {} seconds", timeout.as_secs()))
            .hint("the Secret holds them; see `alcove describe` for why the control plane did not start anew")
    })?;
    Ok(())
}
