//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::commands::{
    apiserver, demo, etcd, etcd_placeholder, hostpath_mapper, hub, rewrite_hosts, serve, store, template, up,
};

/// Virtual Kubernetes clusters inside one host cluster.
#[derive(Debug, Parser)]
#[command(
    name = "alcove",
    version,
    propagate_version = true,
    max_term_width = 120,
    after_help = "Start here:\n  alcove demo               everything once, in a temporary directory\n  alcove up                 a development host cluster on this machine\n  alcove create team-a      a virtual cluster in it; kubectl then talks to it\n\nExit codes: 0 done, 1 failed, 2 wrong command line or file, 3 not found, 4 exists already, 5 waited too long."
)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

impl Args {
    /// Does the command serve until it is stopped?
    pub fn serves(&self) -> bool {
        match &self.command {
            Command::Up(up) => up.foreground,
            Command::Hub(hub) => hub.command.is_none(),
            Command::Apiserver(_)
            | Command::Etcd(_)
            | Command::EtcdPlaceholder(_)
            | Command::Serve(_)
            | Command::HostpathMapper(_)
            | Command::Forward(_) => true,
            _ => false,
        }
    }
}

#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Options of all commands")]
pub struct Global {
    /// kubeconfig file to use [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the host cluster [default: the current context; inside a virtual cluster, its host's]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace on the host cluster [default: vcluster-NAME, or all when searching]
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Directory with the data of `alcove up` [default: ~/.alcove]
    #[arg(long, global = true, env = "ALCOVE_HOME", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Say nothing but results, warnings and errors
    #[arg(short, long, global = true)]
    pub silent: bool,
    /// Log what happens inside
    #[arg(long, global = true)]
    pub debug: bool,
    /// How messages are written: plain lines, or JSON objects
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t = LogOutput::Plain)]
    pub log_output: LogOutput,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogOutput {
    Plain,
    #[value(hide = true)]
    Raw,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show everything once: a host, two virtual clusters, the same application in both
    #[command(
        after_help = "Examples:\n  alcove demo\n  alcove demo --keep     leaves it running and says how to use kubectl on it"
    )]
    Demo(demo::Demo),
    /// Start a development host cluster with a hub on this machine
    #[command(
        after_help = "Examples:\n  alcove up\n  alcove up --nodes 5 --port 6443\n  alcove up --foreground --debug"
    )]
    Up(up::Up),
    /// Stop the development host; its data stays
    #[command(after_help = "Example:\n  alcove down && rm -r ~/.alcove    stop, and forget everything")]
    Down,
    /// Show the development host
    #[command(after_help = "Examples:\n  alcove status\n  alcove status -o json")]
    Status(up::Status),
    /// Create a virtual cluster and connect to it
    #[command(
        after_help = "Examples:\n  alcove create team-a\n  alcove create team-a -f vcluster.yaml --set sync.toHost.secrets.all=true\n  alcove create team-a -n tenants --connect=false\n  alcove create team-a --print > team-a.kubeconfig"
    )]
    Create(Create),
    /// Print the objects that a virtual cluster needs on its host, as YAML
    #[command(
        after_help = "Examples:\n  alcove template team-a -f vcluster.yaml > team-a.yaml\n  alcove template team-a -n tenants --create-namespace | kubectl apply -f -"
    )]
    Template(template::Template),
    /// Point kubectl at a virtual cluster, or run one command in it
    #[command(
        after_help = "Examples:\n  alcove connect team-a\n  alcove connect team-a -- kubectl get namespaces\n  alcove connect team-a --print > team-a.kubeconfig"
    )]
    Connect(Connect),
    /// Point kubectl back at the host cluster
    #[command(after_help = "Example:\n  alcove disconnect")]
    Disconnect,
    /// List virtual clusters
    #[command(visible_alias = "ls", after_help = "Examples:\n  alcove list\n  alcove list -o json")]
    List(List),
    /// Show one virtual cluster
    #[command(
        after_help = "Examples:\n  alcove describe team-a\n  alcove describe team-a --config-only > vcluster.yaml"
    )]
    Describe(Describe),
    /// Delete a virtual cluster with everything it has on the host
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  alcove delete team-a\n  alcove delete team-a --ignore-not-found"
    )]
    Delete(Delete),
    /// Stop a virtual cluster and its pods; its data stays
    #[command(visible_alias = "sleep", after_help = "Example:\n  alcove pause team-a && alcove resume team-a")]
    Pause(Pause),
    /// Start a paused virtual cluster again
    #[command(visible_alias = "wakeup", after_help = "Example:\n  alcove resume team-a")]
    Resume(Resume),
    /// Take snapshots of virtual clusters, and look at them
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Replace everything in a virtual cluster by a snapshot
    #[command(
        after_help = "Examples:\n  alcove restore team-a file:///backup/team-a.tar.gz\n  alcove restore team-b oci://ghcr.io/me/team-a:friday"
    )]
    Restore(Restore),
    /// Look at and renew the certificates of a virtual cluster
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Gather what helps to find out what is wrong
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Forward a port to a control plane; started by connect
    #[command(hide = true)]
    Forward(ForwardArgs),
    /// Run the virtual clusters of a host that ask for placement hub
    #[command(
        after_help = "Examples:\n  alcove hub install     a Deployment on the host\n  alcove hub --context kind-kind --bind-address 0.0.0.0 --public-address hub.example.com"
    )]
    Hub(hub::HubArgs),
    /// Run one virtual cluster, in its own pod on the host
    #[command(
        after_help = "Examples:\n  alcove serve                                        in a pod made by `alcove create` or the chart\n  alcove serve --name team-a -n team-a --kubeconfig host.kubeconfig --config vcluster.yaml --data-dir ./data --port 0"
    )]
    Serve(serve::ServeArgs),
    /// Keep links from tenants' names to a node's files, in a DaemonSet on the host
    #[command(
        after_help = "Examples:\n  alcove hostpath-mapper                         in a pod made by the chart (controlPlane.hostPathMapper)\n  alcove hostpath-mapper --name team-a -n team-a --node worker-1 --root /host"
    )]
    HostpathMapper(hostpath_mapper::HostpathMapper),
    /// Run the API server alone, as kube-apiserver with a store of its own
    #[command(
        args_override_self = true,
        after_help = "Examples:\n  alcove apiserver --secure-port 6443 --kubeconfig-out admin.kubeconfig\n  alcove apiserver --data-dir ./data --secure-port 0 --kubeconfig-out admin.kubeconfig"
    )]
    Apiserver(apiserver::ApiServerArgs),
    /// Answer etcd's health check for programmes that start kube-apiserver with etcd; stores nothing
    #[command(
        args_override_self = true,
        after_help = "Example:\n  ln -s $(which alcove) bin/etcd; ln -s $(which alcove) bin/kube-apiserver    see docs/envtest.md"
    )]
    EtcdPlaceholder(etcd_placeholder::EtcdPlaceholder),
    /// Serve etcd's API over a store, for kube-apiserver, etcdctl and other clients of etcd
    #[command(
        after_help = "Examples:\n  alcove etcd --data-dir ./data\n  alcove etcd --store 'postgres://alcove:secret@db/team_a' --listen-client-urls http://127.0.0.1:2379"
    )]
    Etcd(etcd::Etcd),
    /// Write a hosts file in which a host name has its full name too: the init container of pods with a subdomain
    #[command(hide = true)]
    RewriteHosts(rewrite_hosts::RewriteHosts),
    /// Look into stores, and move data from one to another
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Work with vcluster.yaml
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script
    #[command(after_help = "Example:\n  alcove completion bash > ~/.local/share/bash-completion/completions/alcove")]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version {
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Values {
    /// vcluster.yaml, or its URL; may be given several times, later files win; `-` is standard input
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Set single values, as in Helm: a.b=c,d[0]=e
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlacementArg {
    /// In the process of a hub
    Hub,
    /// In a pod of its own
    Dedicated,
}

impl From<PlacementArg> for deploy::Placement {
    fn from(placement: PlacementArg) -> Self {
        match placement {
            PlacementArg::Hub => deploy::Placement::Hub,
            PlacementArg::Dedicated => deploy::Placement::Dedicated,
        }
    }
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Create {
    /// Name of the virtual cluster
    pub name: String,
    #[command(flatten)]
    pub values: Values,
    /// Where the control plane runs [default: in the host's hub when it has one, else in a pod of its own]
    #[arg(long, value_enum)]
    pub placement: Option<PlacementArg>,
    /// Create the namespace when it does not exist
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub create_namespace: bool,
    /// Connect afterwards
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub connect: bool,
    /// Change the cluster when it exists already
    #[arg(long)]
    pub upgrade: bool,
    /// Print the kubeconfig instead of writing it
    #[arg(long)]
    pub print: bool,
    /// Name of the context
    #[arg(long, value_name = "NAME")]
    pub kube_config_context_name: Option<String>,
    /// Forward a port, where one is needed, in a process of its own that ends with disconnect; else this command stays
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub background_proxy: bool,
    /// Make the Service of the API a LoadBalancer
    #[arg(long)]
    pub expose: bool,
    /// Fill the new cluster with a snapshot
    #[arg(long, value_name = "URL")]
    pub restore: Option<String>,
    /// Where a snapshot is kept on its way [default: the system's temporary directory]
    #[arg(long, value_name = "DIR", requires = "restore")]
    pub snapshot_temp_dir: Option<PathBuf>,
    /// How long to wait for the API, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Pause {
    /// Name of the virtual cluster
    pub name: String,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Resume {
    /// Name of the virtual cluster
    pub name: String,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot
    #[command(
        after_help = "Examples:\n  alcove snapshot create team-a file:///backup/team-a.tar.gz\n  alcove snapshot create team-a s3://bucket/team-a.tar.gz?region=eu-west-1\n  alcove snapshot create team-a oci://ghcr.io/me/team-a:friday\n  alcove snapshot create team-a container:///data/team-a.tar.gz"
    )]
    Create(SnapshotCreate),
    /// Show one snapshot
    #[command(after_help = "Example:\n  alcove snapshot get team-a oci://ghcr.io/me/team-a:friday")]
    Get(SnapshotShow),
    /// List the snapshots in a folder, under a key or in a repository
    #[command(visible_alias = "ls", after_help = "Example:\n  alcove snapshot list team-a file:///backup")]
    List(SnapshotShow),
    /// Remove a snapshot
    #[command(after_help = "Example:\n  alcove snapshot delete team-a file:///backup/team-a.tar.gz")]
    Delete(SnapshotShow),
}

#[derive(Clone, Debug, ClapArgs)]
pub struct SnapshotCreate {
    /// Name of the virtual cluster
    pub name: String,
    /// file:///PATH, container:///PATH, s3://BUCKET/KEY, oci://REGISTRY/REPOSITORY:TAG or the URL of an Azure blob
    pub url: String,
    /// Where the snapshot is kept on its way [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub snapshot_temp_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct SnapshotShow {
    /// Name of the virtual cluster
    pub name: String,
    /// Where the snapshots are
    pub url: String,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Restore {
    /// Name of the virtual cluster
    pub name: String,
    /// The snapshot
    pub url: String,
    /// Where the snapshot is kept on its way [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub snapshot_temp_dir: Option<PathBuf>,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Clone, Debug, Subcommand)]
pub enum CertsCommand {
    /// Show when the certificates end
    #[command(after_help = "Examples:\n  alcove certs check team-a\n  alcove certs check team-a -o json")]
    Check(CertsCheck),
    /// Make new certificates, signed by the authority there is
    #[command(after_help = "Example:\n  alcove certs rotate team-a")]
    Rotate(CertsRotate),
    /// Make a new authority and new certificates; kubeconfigs that were given out stop working
    #[command(after_help = "Example:\n  alcove certs rotate-ca team-a && alcove connect team-a")]
    RotateCa(CertsRotate),
}

#[derive(Clone, Debug, ClapArgs)]
pub struct CertsCheck {
    /// Name of the virtual cluster
    pub name: String,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct CertsRotate {
    /// Name of the virtual cluster
    pub name: String,
    /// How long to wait until the new certificates are served, in seconds
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Clone, Debug, Subcommand)]
pub enum DebugCommand {
    /// Write an archive with logs, objects and versions of a virtual cluster
    #[command(
        after_help = "Examples:\n  alcove debug collect team-a\n  alcove debug collect team-a --output-filename team-a.tar.gz --virtual-resources pods,deployments.apps"
    )]
    Collect(DebugCollect),
    /// Show which host object stands for which virtual one
    #[command(
        after_help = "Examples:\n  alcove debug mappings team-a\n  alcove debug mappings team-a --kind Pod -o json"
    )]
    Mappings(DebugMappings),
    /// Open a shell in an ephemeral container of the control plane's pod (placement dedicated)
    #[command(
        after_help = "Examples:\n  alcove debug shell team-a\n  alcove debug shell team-a --image nicolaka/netshoot -- ss -tlnp"
    )]
    Shell(DebugShell),
}

#[derive(Clone, Debug, ClapArgs)]
pub struct DebugShell {
    /// Name of the virtual cluster
    pub name: String,
    /// Container whose processes, environment and volumes the shell sees
    #[arg(long, default_value = "syncer", value_name = "CONTAINER")]
    pub target: String,
    /// Pod to look into [default: the newest one that runs]
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,
    /// Image with a shell
    #[arg(long, default_value = "mirror.gcr.io/library/busybox:1.37", value_name = "IMAGE")]
    pub image: String,
    /// How long to wait for the container, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
    /// Command to run instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct DebugMappings {
    /// Name of the virtual cluster
    pub name: String,
    /// Objects of this kind only
    #[arg(long)]
    pub kind: Option<String>,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct DebugCollect {
    /// Name of the virtual cluster
    pub name: String,
    /// The release: name, namespace, status, configuration
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub release: bool,
    /// Logs of the control plane's pods
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub logs: bool,
    /// Version and objects of the host
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub host_info: bool,
    /// Version and objects of the virtual cluster
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub virtual_info: bool,
    /// How many objects of each kind the virtual cluster has
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub count_virtual_cluster_objects: bool,
    /// Kinds of objects to take from the cluster's namespace on the host
    #[arg(long, value_name = "RESOURCES", value_delimiter = ',')]
    pub host_resources: Vec<String>,
    /// Kinds of objects to take from the virtual cluster
    #[arg(long, value_name = "RESOURCES", value_delimiter = ',')]
    pub virtual_resources: Vec<String>,
    /// The archive [default: vcluster.NAME.debug.UNIXTIME.tar.gz]
    #[arg(long, value_name = "FILE")]
    pub output_filename: Option<PathBuf>,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct ForwardArgs {
    /// Name of the virtual cluster
    pub name: String,
    /// Socket to be controlled by
    #[arg(long)]
    pub socket: PathBuf,
    #[arg(long, default_value = "127.0.0.1")]
    pub address: IpAddr,
    #[arg(long, default_value_t = 0)]
    pub port: u16,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Connect {
    /// Name of the virtual cluster
    pub name: String,
    /// Print the kubeconfig instead of writing it
    #[arg(long)]
    pub print: bool,
    /// Address of the API, instead of the one the cluster was created with
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// Do not check the certificate of the API
    #[arg(long)]
    pub insecure: bool,
    /// Name of the context
    #[arg(long, value_name = "NAME")]
    pub kube_config_context_name: Option<String>,
    /// Be this service account of the virtual cluster, not its administrator
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub service_account: Option<String>,
    /// Make the service account if needed and give it this ClusterRole
    #[arg(long, value_name = "NAME", requires = "service_account")]
    pub cluster_role: Option<String>,
    /// How long the service account's token is valid, in seconds; 0 is as long as possible
    #[arg(long, default_value_t = 0, value_name = "SECONDS", requires = "service_account")]
    pub token_expiration: i64,
    /// Local port, where one is forwarded; 0 takes a free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub local_port: u16,
    /// Local address, where a port is forwarded
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub address: IpAddr,
    /// Forward a port, where one is needed, in a process of its own that ends with disconnect; else this command stays
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub background_proxy: bool,
    /// How long to wait for the API, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
    /// Command to run with KUBECONFIG set, instead of changing the kubeconfig
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl Connect {
    /// As after `create`: everything at its default.
    pub fn after_create(name: &str, print: bool, timeout: u64) -> Connect {
        Connect {
            name: name.to_string(),
            print,
            server: None,
            insecure: false,
            kube_config_context_name: None,
            service_account: None,
            cluster_role: None,
            token_expiration: 0,
            local_port: 0,
            address: IpAddr::from([127, 0, 0, 1]),
            background_proxy: true,
            timeout,
            command: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
    Yaml,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct List {
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Describe {
    /// Name of the virtual cluster
    pub name: String,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Print its vcluster.yaml only
    #[arg(long)]
    pub config_only: bool,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Delete {
    /// Name of the virtual cluster
    pub name: String,
    /// Wait until everything is gone
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub wait: bool,
    /// Delete the namespace, whoever made it
    #[arg(long)]
    pub delete_namespace: bool,
    /// Delete the namespace when it was made for this cluster
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub auto_delete_namespace: bool,
    /// Keep the volume claims with the cluster's data (placement dedicated)
    #[arg(long)]
    pub keep_pvc: bool,
    /// Remove the cluster's context from the kubeconfig
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub delete_context: bool,
    /// It is no error when the cluster does not exist
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Delete ConfigMap configmap-NAME, which some installations have
    #[arg(long)]
    pub delete_configmap: bool,
    /// Clean up here when no hub does it
    #[arg(long)]
    pub force: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the JSON schema of vcluster.yaml
    #[command(after_help = "Example:\n  alcove config schema > vcluster.schema.json")]
    Schema,
    /// Check vcluster.yaml and say what is wrong with it
    #[command(
        after_help = "Examples:\n  alcove config validate -f vcluster.yaml\n  alcove config validate -f base.yaml -f team-a.yaml --set controlPlane.coredns.enabled=false"
    )]
    Validate {
        #[command(flatten)]
        values: Values,
        /// Placement the file is for
        #[arg(long, value_enum, default_value_t = PlacementArg::Hub)]
        placement: PlacementArg,
        /// Print the values with all defaults
        #[arg(long)]
        print: bool,
    },
}
