//! `alcove apiserver`: the API server alone, with kube-apiserver's flag names.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use apiserver::ApiServer;
use clap::Args as ClapArgs;
use pki::ClusterCertificates;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::kubeconfig;
use crate::signals;
use crate::ui::Ui;

#[derive(Clone, Debug, ClapArgs)]
pub struct ApiServerArgs {
    /// Port of the API; 0 takes a free one
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Address that the `kubernetes` Service points to
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// Directory for certificates that are made when none are given [default: below --data-dir, else in memory]
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Serving certificate
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Key of the serving certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Authorities of client certificates, besides our own
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// Issuer of service account tokens
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local", value_name = "URL")]
    pub service_account_issuer: String,
    /// Public keys that service account tokens are checked with
    #[arg(long, value_name = "FILE")]
    pub service_account_key_file: Vec<PathBuf>,
    /// Private key that service account tokens are signed with
    #[arg(long, value_name = "FILE")]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Range of Service addresses
    #[arg(long, default_value = "10.96.0.0/16", value_name = "CIDR")]
    pub service_cluster_ip_range: String,
    /// Range of node ports
    #[arg(long, default_value = "30000-32767", value_name = "FIRST-LAST")]
    pub service_node_port_range: String,
    /// Audiences of tokens for this API [default: the issuer]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub api_audiences: Vec<String>,
    /// How requests are authorized: RBAC, Node, AlwaysAllow
    #[arg(long, value_delimiter = ',', value_name = "MODES", default_value = "Node,RBAC")]
    pub authorization_mode: Vec<String>,
    /// Admission plugins to switch on
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub enable_admission_plugins: Vec<String>,
    /// Admission plugins to switch off
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub disable_admission_plugins: Vec<String>,
    /// Allow privileged containers
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub allow_privileged: bool,
    /// Serve requests without credentials as system:anonymous
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub anonymous_auth: bool,
    /// Accepted for programs that start kube-apiserver; the store is our own
    #[arg(long, value_delimiter = ',', value_name = "URLS")]
    pub etcd_servers: Vec<String>,
    /// Write a kubeconfig of an administrator once the server is ready
    #[arg(long, value_name = "FILE")]
    pub kubeconfig_out: Option<PathBuf>,
}

const AUTHORIZATION_MODES: [&str; 5] = ["AlwaysAllow", "AlwaysDeny", "RBAC", "Node", "Webhook"];

pub async fn run(data_dir: Option<PathBuf>, args: &ApiServerArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    let node_port_range = parse_ports(&args.service_node_port_range)?;
    check_modes(&args.authorization_mode)?;
    if !args.etcd_servers.is_empty() {
        ui.warn("--etcd-servers has no effect: the store is our own (see --data-dir)");
    }
    let listen = SocketAddr::new(args.bind_address, args.secure_port);
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Failure::failed(format!("cannot listen on {listen}: {error}")).hint("choose another port with --secure-port")
    })?;
    let address = listener.local_addr()?;
    let advertise = args.advertise_address.unwrap_or_else(|| {
        if args.bind_address.is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { args.bind_address }
    });
    let certificates = certificates(data_dir.as_ref(), args, advertise)?;
    let file = |name: &str| certificates.file(name).unwrap_or_default().to_string();
    let (certificate, key) = match (&args.tls_cert_file, &args.tls_private_key_file) {
        (Some(certificate), Some(key)) => (read(certificate)?, read(key)?),
        _ => (file("apiserver.crt"), file("apiserver.key")),
    };
    let mut client_ca = file("client-ca.crt");
    if let Some(path) = &args.client_ca_file {
        client_ca.push('\n');
        client_ca.push_str(&read(path)?);
    }
    let tls = apiserver::tls::server_config(certificate.as_bytes(), key.as_bytes(), Some(client_ca.as_bytes()))
        .context("cannot use the certificates")?;
    let store = match &data_dir {
        None => store::Store::in_memory(store::Options::default()).await,
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            store::Store::open_sqlite(folder.join("state.db"), store::Options::default())
                .await
                .with_context(|| format!("cannot open the store in {}", folder.display()))?
        }
    };
    let secure = apiserver::SecureOptions {
        service_account_signing_key: file("sa.key"),
        service_account_keys: service_account_keys(args, &file("sa.pub"))?,
        service_account_issuer: args.service_account_issuer.clone(),
        api_audiences: args.api_audiences.clone(),
        enable_admission_plugins: args.enable_admission_plugins.clone(),
        disable_admission_plugins: args.disable_admission_plugins.clone(),
        // As in kube-apiserver: without RBAC in the list nobody is refused.
        always_allow: !args.authorization_mode.is_empty() && args.authorization_mode.iter().all(|m| m == "AlwaysAllow"),
    };
    let mut config = apiserver::secure_config(&secure)?;
    config.anonymous = args.anonymous_auth;
    config.service_cluster_ip_range = args.service_cluster_ip_range.clone();
    config.node_port_range = node_port_range;
    config.allow_privileged = args.allow_privileged;
    config.advertise_address = advertise;
    config.secure_port = address.port();
    let server = ApiServer::start(config, store.clone()).await.context("the API server did not start")?;
    if let Some(path) = &args.kubeconfig_out {
        let reach = if args.bind_address.is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { args.bind_address };
        let access = deploy::secrets::AdminAccess {
            server: format!("https://{}", SocketAddr::new(reach, address.port())),
            insecure: false,
            certificate_authority: if args.tls_cert_file.is_some() {
                certificate.clone()
            } else {
                file("server-ca.crt")
            },
            client_certificate: file("admin.crt"),
            client_key: file("admin.key"),
        };
        kubeconfig::write(path, &deploy::secrets::kubeconfig("alcove-apiserver", &access))?;
    }
    ui.done(&format!("serving the Kubernetes API on https://{address}"));
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let (server, stop) = (server.clone(), stop.clone());
        async move { server.serve(listener, tls, stop).await }
    });
    signals::wait().await;
    ui.info("stopping");
    stop.cancel();
    server.shutdown().await;
    let _ = serving.await;
    store.close().await;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &PathBuf) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::invalid(format!("cannot read {}: {error}", path.display())).into())
}

fn service_account_keys(args: &ApiServerArgs, own: &str) -> anyhow::Result<Vec<String>> {
    let mut keys = vec![own.to_string()];
    for path in &args.service_account_key_file {
        keys.push(read(path)?);
    }
    Ok(keys)
}

fn certificates(
    data_dir: Option<&PathBuf>,
    args: &ApiServerArgs,
    advertise: IpAddr,
) -> anyhow::Result<ClusterCertificates> {
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
    ]
    .map(str::to_string)
    .to_vec();
    names.push(advertise.to_string());
    if !args.bind_address.is_unspecified() {
        names.push(args.bind_address.to_string());
    }
    let folder = args.cert_dir.clone().or_else(|| data_dir.map(|folder| folder.join("pki")));
    let mut kept = match &folder {
        Some(folder) => pki::files::read(folder)?,
        None => Default::default(),
    };
    let stored = kept.clone();
    if let Some(path) = &args.service_account_signing_key_file {
        kept.insert("sa.key".into(), read(path)?);
    }
    if args.service_account_signing_key_file.is_some() {
        kept.insert("sa.pub".into(), kept["sa.key"].clone());
    }
    let certificates = ClusterCertificates::complete(kept, &names)?;
    if let Some(folder) = folder
        && *certificates.files() != stored
    {
        pki::files::write(&folder, certificates.files())?;
    }
    Ok(certificates)
}

fn parse_ports(text: &str) -> anyhow::Result<(u16, u16)> {
    let range = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    range.filter(|(first, last)| first <= last && *first > 0).ok_or_else(|| {
        Failure::invalid(format!("--service-node-port-range {text}: must be FIRST-LAST, such as 30000-32767")).into()
    })
}

fn check_modes(modes: &[String]) -> anyhow::Result<()> {
    for mode in modes {
        if !AUTHORIZATION_MODES.contains(&mode.as_str()) {
            return Err(Failure::invalid(format!("--authorization-mode {mode}: unknown mode"))
                .hint(format!("known modes: {}", AUTHORIZATION_MODES.join(", ")))
                .into());
        }
        if mode == "Webhook" || mode == "AlwaysDeny" {
            return Err(Failure::invalid(format!("--authorization-mode {mode} is not supported yet")).into());
        }
    }
    Ok(())
}
