//! `alcove apiserver`: the API server alone, with kube-apiserver's flag names.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apiserver::ApiServer;
use apiserver::aggregator::{self, ClientTrust, ProxyIdentity};
use apiserver::authentication::AuthenticationFlags;
use apiserver::authentication::flags::WITHOUT_EFFECT;
use apiserver::authn::{RequestHeaderOptions, RequestHeaders};
use apiserver::tokens::bootstrap::BootstrapTokens;
use apiserver::tokens::file::TokenFile;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args as ClapArgs, Command, FromArgMatches};
use pki::ClusterCertificates;
use store::{Endpoint, TlsFiles};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::commands::store::address;
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
    /// Authorities of proxies that may name users in headers
    #[arg(long, value_name = "FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of such proxies [default: any]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub requestheader_allowed_names: Vec<String>,
    /// Headers with the user's name
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_value = "X-Remote-User")]
    pub requestheader_username_headers: Vec<String>,
    /// Headers with the user's uid
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub requestheader_uid_headers: Vec<String>,
    /// Headers with the user's groups
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_value = "X-Remote-Group")]
    pub requestheader_group_headers: Vec<String>,
    /// What headers with more about the user begin with
    #[arg(long, value_delimiter = ',', value_name = "PREFIXES", default_value = "X-Remote-Extra-")]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// Certificate with which extension API servers are told who asks [default: our own]
    #[arg(long, value_name = "FILE", requires = "proxy_client_key_file")]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "proxy_client_cert_file")]
    pub proxy_client_key_file: Option<PathBuf>,
    /// Accept the bootstrap tokens in Secrets of kube-system
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub enable_bootstrap_token_auth: bool,
    /// File with static tokens: lines of token,user,uid,"group1,group2"
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// Issuer of service account tokens
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local", value_name = "URL")]
    pub service_account_issuer: String,
    /// The longest life of service account tokens, such as 24h [default: no limit]
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = event_ttl)]
    pub service_account_max_token_expiration: Duration,
    /// Let tokens that kubelets ask for live for a year, so that old clients go on working
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub service_account_extend_token_expiration: bool,
    /// Directives of the Strict-Transport-Security header: max-age=SECONDS, includeSubDomains, preload
    #[arg(long, value_delimiter = ',', value_name = "DIRECTIVES")]
    pub strict_transport_security_directives: Vec<String>,
    /// Accepted when 0: there is no insecure port
    #[arg(long, hide = true, value_parser = ["0"])]
    pub insecure_port: Option<String>,
    #[command(flatten)]
    pub unused: UnusedFlags,
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
    /// How long Events are kept, such as 1h0m0s
    #[arg(long, default_value = "1h0m0s", value_name = "DURATION", value_parser = event_ttl)]
    pub event_ttl: Duration,
    /// Audiences of tokens for this API [default: the issuer]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub api_audiences: Vec<String>,
    /// How requests are authorized: RBAC, Node, AlwaysAllow, AlwaysDeny
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
    /// Serve requests without credentials as system:anonymous [default: true]
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub anonymous_auth: Option<bool>,
    #[command(flatten)]
    pub authentication: AuthenticationArgs,
    /// Members of an etcd cluster; used with --storage-backend=etcd3 only, because the store is our own otherwise
    #[arg(long, value_delimiter = ',', value_name = "URLS")]
    pub etcd_servers: Vec<String>,
    /// etcd3 keeps objects in the etcd of --etcd-servers
    #[arg(long, value_name = "NAME")]
    pub storage_backend: Option<String>,
    /// Prefix of all keys in etcd; nothing else than /registry is supported
    #[arg(long, default_value = "/registry", value_name = "PREFIX")]
    pub etcd_prefix: String,
    /// Authorities for TLS towards etcd, or the database of --store
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Client certificate for etcd, or the database of --store
    #[arg(long, value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// Store to use: sqlite://, postgres://, mysql://, http:// (etcd) [default: state.db below --data-dir, else memory]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "storage_backend")]
    pub store: Option<String>,
    /// Write a kubeconfig of an administrator once the server is ready
    #[arg(long, value_name = "FILE")]
    pub kubeconfig_out: Option<PathBuf>,
}

/// Who else may say who somebody is.
#[derive(Clone, Debug, ClapArgs)]
pub struct AuthenticationArgs {
    /// Issuer of OpenID Connect tokens, https
    #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
    pub oidc_issuer_url: String,
    /// Whom its tokens must be for
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub oidc_client_id: String,
    /// Claim with the user's name [default: sub]
    #[arg(long, value_name = "CLAIM", default_value = "", hide_default_value = true)]
    pub oidc_username_claim: String,
    /// What is put before such names; - for nothing [default: the issuer and #]
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub oidc_username_prefix: String,
    /// Claim with the user's groups
    #[arg(long, value_name = "CLAIM", default_value = "", hide_default_value = true)]
    pub oidc_groups_claim: String,
    /// What is put before such groups
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub oidc_groups_prefix: String,
    /// Claims that tokens must have
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub oidc_required_claim: Vec<String>,
    /// Authorities of the issuer's certificate [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,
    /// Algorithms that tokens may be signed with [default: RS256]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub oidc_signing_algs: Vec<String>,
    /// AuthenticationConfiguration: issuers with claims and rules, and who may come without a credential
    #[arg(long, value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,
    /// Kubeconfig of a server that judges tokens
    #[arg(long, value_name = "FILE")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// Version of the TokenReview that it gets: v1 or v1beta1
    #[arg(long, value_name = "VERSION", default_value = "v1beta1")]
    pub authentication_token_webhook_version: String,
    /// How long its answers are kept
    #[arg(long, value_name = "DURATION", default_value = "2m0s", value_parser = event_ttl)]
    pub authentication_token_webhook_cache_ttl: Duration,
}

impl AuthenticationArgs {
    fn flags(&self, anonymous_auth: Option<bool>) -> AuthenticationFlags {
        AuthenticationFlags {
            oidc_issuer_url: self.oidc_issuer_url.clone(),
            oidc_client_id: self.oidc_client_id.clone(),
            oidc_username_claim: self.oidc_username_claim.clone(),
            oidc_username_prefix: self.oidc_username_prefix.clone(),
            oidc_groups_claim: self.oidc_groups_claim.clone(),
            oidc_groups_prefix: self.oidc_groups_prefix.clone(),
            oidc_required_claim: self.oidc_required_claim.clone(),
            oidc_ca_file: self.oidc_ca_file.clone(),
            oidc_signing_algs: self.oidc_signing_algs.clone(),
            authentication_config: self.authentication_config.clone(),
            webhook_config_file: self.authentication_token_webhook_config_file.clone(),
            webhook_version: self.authentication_token_webhook_version.clone(),
            webhook_cache_ttl: Some(self.authentication_token_webhook_cache_ttl),
            anonymous_auth,
        }
    }
}

/// Flags of kube-apiserver about matters that this server does not have or decides by itself; given ones are named in
/// the log. Flags that would change answers and are not built are unknown, and so refused by name.
#[derive(Clone, Debug, Default)]
pub struct UnusedFlags(pub Vec<&'static str>);

/// Zero is none: Events are kept.
fn event_ttl(text: &str) -> Result<Duration, String> {
    if matches!(text, "0" | "0s") {
        return Ok(Duration::ZERO);
    }
    ::config::duration(text).ok_or_else(|| format!("{text:?} is no duration such as 1h30m"))
}

impl ClapArgs for UnusedFlags {
    fn augment_args(command: Command) -> Command {
        command.args(WITHOUT_EFFECT.iter().map(|name| {
            let arg = Arg::new(*name).long(*name).hide(true).num_args(0..=1).default_missing_value("true");
            // The one with a short form.
            if *name == "v" { arg.short('v') } else { arg }
        }))
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for UnusedFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<UnusedFlags, clap::Error> {
        let given = |name: &&&str| matches.value_source(name) == Some(ValueSource::CommandLine);
        Ok(UnusedFlags(WITHOUT_EFFECT.iter().filter(given).copied().collect()))
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = UnusedFlags::from_arg_matches(matches)?;
        Ok(())
    }
}

/// How long requests that are being answered have when the process is asked to end. Idle connections and watches end at
/// once.
const STOP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Where objects are kept.
fn store_endpoint(data_dir: Option<&std::path::Path>, args: &ApiServerArgs) -> anyhow::Result<Endpoint> {
    if args.etcd_prefix.trim_matches('/') != "registry" {
        let message = format!("--etcd-prefix {}: only /registry is supported", args.etcd_prefix);
        return Err(Failure::invalid(message).into());
    }
    if let Some(text) = &args.store {
        return address("--store", text);
    }
    match args.storage_backend.as_deref() {
        None | Some("") => Ok(match data_dir {
            Some(folder) => Endpoint::Sqlite(folder.join("state.db")),
            None => Endpoint::Memory,
        }),
        Some("etcd3") if args.etcd_servers.is_empty() => {
            Err(Failure::invalid("--storage-backend etcd3: --etcd-servers is missing").into())
        }
        Some("etcd3") => address("--etcd-servers", &args.etcd_servers.join(",")),
        Some(other) => Err(Failure::invalid(format!("--storage-backend {other}: there is only etcd3")).into()),
    }
}

const AUTHORIZATION_MODES: [&str; 5] = ["AlwaysAllow", "AlwaysDeny", "RBAC", "Node", "Webhook"];

pub async fn run(data_dir: Option<PathBuf>, args: &ApiServerArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    for flag in &args.unused.0 {
        ui.info(&format!("--{flag} has no effect here"));
    }
    let node_port_range = parse_ports(&args.service_node_port_range)?;
    check_modes(&args.authorization_mode)?;
    let endpoint = store_endpoint(data_dir.as_deref(), args)?;
    if !args.etcd_servers.is_empty() && !matches!(endpoint, Endpoint::Etcd(_)) {
        ui.info("--etcd-servers has no effect without --storage-backend=etcd3: the store is our own (see --data-dir)");
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
    let given = serving_files(args);
    let (certificate, key) = match &given {
        Some((certificate, key)) => (read(certificate)?, read(key)?),
        None => (file("apiserver.crt"), file("apiserver.key")),
    };
    let mut client_ca = file("client-ca.crt");
    if let Some(path) = &args.client_ca_file {
        client_ca.push('\n');
        client_ca.push_str(&read(path)?);
    }
    let proxies = request_headers(args)?;
    let mut shown_ca = client_ca.clone();
    if let Some((_, options)) = &proxies {
        shown_ca.push('\n');
        shown_ca.push_str(&options.client_ca);
    }
    let tls = apiserver::tls::server_config(certificate.as_bytes(), key.as_bytes(), Some(shown_ca.as_bytes()))
        .context("cannot use the certificates")?;
    if let Endpoint::Sqlite(path) = &endpoint
        && let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
    {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let store_tls = TlsFiles {
        ca_file: args.etcd_cafile.clone(),
        cert_file: args.etcd_certfile.clone(),
        key_file: args.etcd_keyfile.clone(),
    };
    let store = endpoint
        .open(&store_tls, store::Options::default())
        .await
        .with_context(|| format!("cannot open the store {endpoint}"))?;
    let secure = apiserver::SecureOptions {
        service_account_signing_key: file("sa.key"),
        service_account_keys: service_account_keys(args, &file("sa.pub"))?,
        service_account_issuer: args.service_account_issuer.clone(),
        api_audiences: args.api_audiences.clone(),
        enable_admission_plugins: args.enable_admission_plugins.clone(),
        disable_admission_plugins: args.disable_admission_plugins.clone(),
        // As in kube-apiserver: the modes are asked one after the other, and this one never says no.
        always_allow: args.authorization_mode.iter().any(|mode| mode == "AlwaysAllow"),
        always_deny: !args.authorization_mode.is_empty() && args.authorization_mode.iter().all(|m| m == "AlwaysDeny"),
        max_token_expiration_seconds: max_token_expiration(args.service_account_max_token_expiration)?,
        exact_token_expiration: !args.service_account_extend_token_expiration,
    };
    let mut config = apiserver::secure_config(&secure)?;
    if let Some((proxies, _)) = proxies {
        config.authenticators.insert(0, Arc::new(proxies));
    }
    if let Some(path) = &args.token_auth_file {
        let tokens = TokenFile::parse(&read(path)?)
            .map_err(|error| Failure::invalid(format!("--token-auth-file {}: {error}", path.display())))?;
        config.token_authenticators.push(Arc::new(tokens));
    }
    if args.enable_bootstrap_token_auth {
        config.token_authenticators.push(Arc::new(BootstrapTokens::default()));
    }
    config.aggregation = aggregation(args, &certificates, &client_ca)?;
    args.authentication
        .flags(args.anonymous_auth)
        .apply(&mut config)
        .map_err(|error| Failure::invalid(super::up::chain(&error)))?;
    config.strict_transport_security = strict_transport_security(&args.strict_transport_security_directives)?;
    config.service_cluster_ip_range = args.service_cluster_ip_range.clone();
    config.node_port_range = node_port_range;
    config.allow_privileged = args.allow_privileged;
    config.event_ttl = args.event_ttl;
    config.advertise_address = advertise;
    config.secure_port = address.port();
    let server = ApiServer::start(config, store.clone()).await.context("the API server did not start")?;
    if let Some(path) = &args.kubeconfig_out {
        let reach = if args.bind_address.is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { args.bind_address };
        let access = deploy::secrets::AdminAccess {
            server: format!("https://{}", SocketAddr::new(reach, address.port())),
            insecure: false,
            certificate_authority: if given.is_some() { certificate.clone() } else { file("server-ca.crt") },
            client_certificate: file("admin.crt"),
            client_key: file("admin.key"),
            token: String::new(),
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
    if tokio::time::timeout(STOP_TIMEOUT, serving).await.is_err() {
        ui.warn("some requests were not answered in time");
    }
    store.close().await;
    Ok(ExitCode::SUCCESS)
}

/// As whom extension API servers are asked, and what they are told: what the flags say, else our own front proxy.
fn aggregation(
    args: &ApiServerArgs,
    certificates: &ClusterCertificates,
    client_ca: &str,
) -> anyhow::Result<aggregator::Options> {
    let file = |name: &str| certificates.file(name).unwrap_or_default().to_string();
    let (certificate, key, own) = match (&args.proxy_client_cert_file, &args.proxy_client_key_file) {
        (Some(certificate), Some(key)) => (read(certificate)?, read(key)?, false),
        _ => (file("front-proxy-client.crt"), file("front-proxy-client.key"), true),
    };
    let identity = ProxyIdentity::new(&certificate, &key)
        .map_err(|error| Failure::invalid(format!("--proxy-client-cert-file: {error}")))?;
    let trust = match request_headers(args)? {
        Some((_, mut options)) => {
            if own {
                options.client_ca.push('\n');
                options.client_ca.push_str(&file("front-proxy-ca.crt"));
                if !options.allowed_names.is_empty() {
                    options.allowed_names.push("front-proxy-client".into());
                }
            }
            ClientTrust { client_ca: client_ca.to_owned(), request_headers: Some(options) }
        }
        None if own => ClientTrust::with_front_proxy(client_ca.to_owned(), file("front-proxy-ca.crt")),
        None => ClientTrust { client_ca: client_ca.to_owned(), request_headers: None },
    };
    Ok(aggregator::Options { identity: Some(identity), trust: Some(Arc::new(trust)), ..Default::default() })
}

/// Who may name users in headers, and what that was made of.
fn request_headers(args: &ApiServerArgs) -> anyhow::Result<Option<(RequestHeaders, RequestHeaderOptions)>> {
    let Some(path) = &args.requestheader_client_ca_file else { return Ok(None) };
    let options = RequestHeaderOptions {
        client_ca: read(path)?,
        allowed_names: args.requestheader_allowed_names.clone(),
        users: args.requestheader_username_headers.clone(),
        groups: args.requestheader_group_headers.clone(),
        uids: args.requestheader_uid_headers.clone(),
        extra_prefixes: args.requestheader_extra_headers_prefix.clone(),
    };
    let headers = RequestHeaders::new(&options)
        .map_err(|error| Failure::invalid(format!("--requestheader-client-ca-file {}: {error}", path.display())))?;
    Ok(Some((headers, options)))
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

/// The serving certificate somebody else made: named by flags, or in `--cert-dir` under kube-apiserver's names without
/// an authority of ours beside it.
fn serving_files(args: &ApiServerArgs) -> Option<(PathBuf, PathBuf)> {
    if let (Some(certificate), Some(key)) = (&args.tls_cert_file, &args.tls_private_key_file) {
        return Some((certificate.clone(), key.clone()));
    }
    let folder = args.cert_dir.as_ref()?;
    let pair = (folder.join("apiserver.crt"), folder.join("apiserver.key"));
    (pair.0.is_file() && pair.1.is_file() && !folder.join("server-ca.crt").exists()).then_some(pair)
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
    // A directory with somebody else's serving certificate is left as it is.
    let own = args.cert_dir.clone().filter(|_| serving_files(args).is_none());
    let folder = own.or_else(|| data_dir.map(|folder| folder.join("pki")));
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

/// In seconds; 0 is no limit. Source: `pkg/controlplane/apiserver/options.completeServiceAccountOptions`.
fn max_token_expiration(limit: Duration) -> anyhow::Result<i64> {
    let seconds = limit.as_secs();
    if seconds != 0 && !(3600..=1 << 32).contains(&seconds) {
        let message = "the service-account-max-token-expiration must be between 1 hour and 2^32 seconds";
        return Err(Failure::invalid(message).into());
    }
    Ok(i64::try_from(seconds).unwrap_or_default())
}

fn strict_transport_security(directives: &[String]) -> anyhow::Result<Option<http::HeaderValue>> {
    let age = |text: &str| text.strip_prefix("max-age=").is_some_and(|age| !age.contains('='));
    let known = |text: &&String| matches!(text.as_str(), "includeSubDomains" | "preload") || age(text);
    if let Some(other) = directives.iter().find(|directive| !known(directive)) {
        let message = format!(
            "--strict-transport-security-directives {other}: there are max-age=SECONDS, includeSubDomains and preload"
        );
        return Err(Failure::invalid(message).into());
    }
    if directives.is_empty() {
        return Ok(None);
    }
    let value = http::HeaderValue::from_str(&directives.join("; "));
    value.map(Some).context("--strict-transport-security-directives cannot be sent")
}

fn check_modes(modes: &[String]) -> anyhow::Result<()> {
    for mode in modes {
        if !AUTHORIZATION_MODES.contains(&mode.as_str()) {
            return Err(Failure::invalid(format!("--authorization-mode {mode}: unknown mode"))
                .hint(format!("known modes: {}", AUTHORIZATION_MODES.join(", ")))
                .into());
        }
        if mode == "Webhook" {
            return Err(Failure::invalid(format!("--authorization-mode {mode} is not supported yet")).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_of_transport_security_are_checked_and_joined() {
        for (given, want) in [
            (&[][..], Ok(None)),
            (
                &["max-age=31536000", "includeSubDomains", "preload"],
                Ok(Some("max-age=31536000; includeSubDomains; preload")),
            ),
            (&["max-age"], Err(())),
            (&["max-age=1=2"], Err(())),
            (&["preload", ""], Err(())),
        ] {
            let given: Vec<String> = given.iter().map(|text| (*text).to_owned()).collect();
            let got = strict_transport_security(&given).map_err(|_| ());
            let want = want.map(|text| text.map(http::HeaderValue::from_static));
            assert_eq!(got, want, "{given:?}");
        }
    }

    #[test]
    fn tokens_may_be_limited_to_an_hour_and_more() {
        for (seconds, want) in
            [(0, Some(0)), (3599, None), (3600, Some(3600)), (1 << 32, Some(1 << 32)), ((1 << 32) + 1, None)]
        {
            assert_eq!(max_token_expiration(Duration::from_secs(seconds)).ok(), want, "{seconds}");
        }
    }
}
