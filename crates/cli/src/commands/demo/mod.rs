//! `alcove demo`: a development host, two virtual clusters, the same application in both, checks, clean-up, timings.
//!
//! Everything goes the way a user's commands go: objects on the host, kubeconfigs out of Secrets, TLS to the clusters.
//! Nothing outside of a temporary directory is touched.

mod checks;
mod tables;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use apimachinery::Value;
use clap::Args as ClapArgs;
use config::Config;
use deploy::{Placement, Release};
use informer::{Resource, Rest};

use crate::commands::up::{Running, memory_bytes};
use crate::commands::{connect, create};
use crate::failure::Failure;
use crate::home::Home;
use crate::host::{self, Host};
use crate::manifests::{self, poll};
use crate::ui::Ui;
use crate::{kubeconfig, release, signals};

#[derive(Clone, Debug, ClapArgs)]
pub struct Demo {
    /// Leave it running at the end and say how to use kubectl on it
    #[arg(long)]
    pub keep: bool,
    /// Number of simulated nodes
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// How long to wait for each step, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
}

/// The application, as in `examples/shop`.
const SHOP: [(&str, &str); 10] = [
    ("00-namespaces.yaml", include_str!("../../../../../examples/shop/00-namespaces.yaml")),
    ("10-settings.yaml", include_str!("../../../../../examples/shop/10-settings.yaml")),
    ("20-access.yaml", include_str!("../../../../../examples/shop/20-access.yaml")),
    ("30-database.yaml", include_str!("../../../../../examples/shop/30-database.yaml")),
    ("40-cache.yaml", include_str!("../../../../../examples/shop/40-cache.yaml")),
    ("50-catalog.yaml", include_str!("../../../../../examples/shop/50-catalog.yaml")),
    ("60-cart.yaml", include_str!("../../../../../examples/shop/60-cart.yaml")),
    ("70-frontend.yaml", include_str!("../../../../../examples/shop/70-frontend.yaml")),
    ("80-migration.yaml", include_str!("../../../../../examples/shop/80-migration.yaml")),
    ("90-payments.yaml", include_str!("../../../../../examples/shop/90-payments.yaml")),
];

const TENANTS: [&str; 2] = ["team-a", "team-b"];

/// One virtual cluster of the demo.
pub struct Tenant {
    pub name: &'static str,
    pub namespace: String,
    pub rest: Rest,
    pub kubeconfig: PathBuf,
    client: kube::Client,
}

pub async fn run(args: &Demo, ui: &Ui) -> anyhow::Result<ExitCode> {
    let folder =
        tempfile::Builder::new().prefix("alcove-demo-").tempdir().context("cannot make a temporary directory")?;
    let home = Home::new(Some(folder.path()))?;
    let started = Instant::now();
    let step = ui.step("Starting the development host...");
    let running = Running::start(&home, args.nodes, SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0), None).await?;
    let host_kubeconfig = home.host_kubeconfig();
    kubeconfig::write(&host_kubeconfig, &running.kubeconfig(host::DEVELOPMENT_CONTEXT))?;
    let host = Host {
        client: host::client(&kubeconfig::read(&host_kubeconfig)?, None).await?,
        context: host::DEVELOPMENT_CONTEXT.to_string(),
        paths: vec![host_kubeconfig],
    };
    let outcome = show(args, &host, &home, folder.path(), started, step, ui).await;
    if args.keep && outcome.is_ok() {
        signals::wait().await;
        ui.info("stopping; the data of the demo is removed");
    }
    running.stop().await;
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn show(
    args: &Demo,
    host: &Host,
    home: &Home,
    folder: &Path,
    started: Instant,
    step: crate::ui::Step<'_>,
    ui: &Ui,
) -> anyhow::Result<()> {
    let timeout = Duration::from_secs(args.timeout);
    let host_rest = Rest::new(host.client.clone(), "alcove-demo");
    nodes_ready(&host_rest, args.nodes, timeout).await?;
    let mut timings = vec![("host cluster ready", started.elapsed())];
    step.done(&format!("development host with {} nodes", args.nodes));

    let mut tenants = Vec::new();
    for name in TENANTS {
        let step = ui.step(&format!("Creating virtual cluster {name}..."));
        let begin = Instant::now();
        tenants.push(create_tenant(host, folder, name, timeout).await?);
        timings.push((
            if name == TENANTS[0] { "team-a created, API answers" } else { "team-b created, API answers" },
            begin.elapsed(),
        ));
        step.done(&format!("virtual cluster {name} in namespace vcluster-{name}"));
    }

    let step = ui.step("Deploying examples/shop into both...");
    let begin = Instant::now();
    let (first, second) = tokio::join!(deploy_shop(&tenants[0], timeout), deploy_shop(&tenants[1], timeout));
    first?;
    second?;
    timings.push(("application ready in both", begin.elapsed()));
    step.done("the application is ready in both");

    tables::tenants(&tenants).await?;
    tables::host(&host_rest, &tenants).await?;

    println!("\nCHECKS");
    checks::isolation(&host_rest, &tenants).await?;
    if args.keep {
        tables::timings(&timings, memory_bytes());
        instructions(home, &tenants);
        return Ok(());
    }
    let begin = Instant::now();
    checks::deletion(host, &host_rest, &tenants, timeout).await?;
    timings.push(("team-a deleted with everything", begin.elapsed()));
    tables::timings(&timings, memory_bytes());
    Ok(())
}

async fn nodes_ready(rest: &Rest, count: usize, timeout: Duration) -> anyhow::Result<()> {
    let nodes = Resource::new("", "v1", "nodes");
    let ready = poll(timeout, Duration::from_millis(10), async || {
        let nodes = rest.list_as::<Value>(&nodes, "", "", "").await.ok()?;
        let ready = nodes.iter().filter(|node| condition(node, "Ready")).count();
        (ready >= count).then_some(())
    });
    ready.await.ok_or_else(|| Failure::timed_out("the simulated nodes did not become ready").into())
}

/// Is the condition of this type `True`?
pub fn condition(object: &Value, kind: &str) -> bool {
    let conditions = object.array_at(&["status", "conditions"]);
    conditions.iter().any(|c| c.str_at(&["type"]) == kind && c.str_at(&["status"]) == "True")
}

async fn create_tenant(host: &Host, folder: &Path, name: &'static str, timeout: Duration) -> anyhow::Result<Tenant> {
    let namespace = deploy::names::default_namespace(name);
    let config: Config = config::defaults();
    let release = Release {
        name,
        namespace: &namespace,
        placement: Placement::Hub,
        config: &config,
        version: env!("CARGO_PKG_VERSION"),
    };
    manifests::apply(&host.client, &deploy::namespace(&namespace), "").await?;
    release::apply(host, &release).await?;
    create::wait_until_running(host, name, &namespace, timeout).await?;
    let context = kubeconfig::context_name(name, &namespace, &host.context);
    let config = connect::read_kubeconfig(host, &namespace, name, timeout).await?;
    let config = kubeconfig::renamed(&config, &context, None, false)?;
    let path = folder.join(format!("{name}.kubeconfig"));
    kubeconfig::write(&path, &config)?;
    let client = host::client(&config, None).await?;
    let rest = Rest::new(client.clone(), "alcove-demo");
    let accounts = Resource::new("", "v1", "serviceaccounts");
    let answers =
        poll(timeout, Duration::from_millis(5), async || rest.get(&accounts, "default", "default").await.ok());
    answers.await.ok_or_else(|| Failure::timed_out(format!("virtual cluster {name} does not answer")))?;
    Ok(Tenant { name, namespace, rest, kubeconfig: path, client })
}

async fn deploy_shop(tenant: &Tenant, timeout: Duration) -> anyhow::Result<()> {
    for (file, text) in SHOP {
        let documents =
            config::yaml::documents(text).map_err(|error| Failure::failed(format!("examples/shop/{file}: {error}")))?;
        for object in documents {
            let applied = poll(timeout, Duration::from_millis(50), async || {
                match manifests::apply(&tenant.client, &object, "default").await {
                    Ok(_) => Some(Ok(())),
                    // A namespace needs a moment until its service account is there.
                    Err(error) if error.to_string().contains("error looking up service account") => None,
                    Err(error) => Some(Err(error)),
                }
            });
            applied
                .await
                .ok_or_else(|| Failure::timed_out("a namespace did not get its default service account"))?
                .with_context(|| format!("{}: examples/shop/{file}", tenant.name))?;
        }
    }
    let mut missing = Vec::new();
    let ready = poll(timeout, Duration::from_millis(20), async || {
        missing = not_ready(&tenant.rest).await;
        missing.is_empty().then_some(())
    });
    if ready.await.is_some() {
        return Ok(());
    }
    Err(Failure::timed_out(format!("{}: not ready: {}", tenant.name, missing.join(", "))).into())
}

/// What of the application is not as wanted yet.
async fn not_ready(rest: &Rest) -> Vec<String> {
    let mut missing = Vec::new();
    let all = async |group: &'static str, version: &'static str, resource: &'static str| {
        rest.list_as::<Value>(&Resource::new(group, version, resource), "", "", "").await.unwrap_or_default()
    };
    let deployments = all("apps", "v1", "deployments").await;
    if deployments.is_empty() {
        missing.push("deployments".to_string());
    }
    for deployment in deployments {
        let wanted = deployment.at(&["spec", "replicas"]).and_then(Value::as_i64).unwrap_or(1);
        let number = |field: &str| deployment.at(&["status", field]).and_then(Value::as_i64).unwrap_or(0);
        if number("availableReplicas") < wanted || number("updatedReplicas") < wanted {
            missing.push(format!(
                "deployment {} {}/{wanted}",
                deployment.str_at(&["metadata", "name"]),
                number("availableReplicas")
            ));
        }
    }
    for job in all("batch", "v1", "jobs").await {
        if !condition(&job, "Complete") {
            missing.push(format!("job {}", job.str_at(&["metadata", "name"])));
        }
    }
    for claim in all("", "v1", "persistentvolumeclaims").await {
        if claim.str_at(&["status", "phase"]) != "Bound" {
            missing.push(format!("claim {}", claim.str_at(&["metadata", "name"])));
        }
    }
    missing
}

fn instructions(home: &Home, tenants: &[Tenant]) {
    println!("\nIT KEEPS RUNNING. Use it with kubectl from another terminal:");
    println!("  kubectl --kubeconfig {} get pods -A -o wide     # the host", home.host_kubeconfig().display());
    for tenant in tenants {
        println!("  kubectl --kubeconfig {} get all -A     # {}", tenant.kubeconfig.display(), tenant.name);
    }
    println!("Ctrl-C stops it and removes its data.");
}

/// Labels that mark an object of a tenant on the host.
pub fn tenant_of(object: &Value) -> &str {
    let labels = &["metadata", "labels"];
    let label =
        |name: &str| object.at(labels).and_then(|labels| labels.get(name)).and_then(Value::as_str).unwrap_or("");
    ["vcluster.loft.sh/managed-by", "vcluster-name", "release"]
        .into_iter()
        .map(label)
        .find(|value| !value.is_empty())
        .unwrap_or("")
}
