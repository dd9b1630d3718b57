//! The command lines of upstream's programs, as vCluster starts them.
//!
//! Differs from vCluster in a few flags: objects are stored as JSON, which both distros read; ports are free ones; only
//! several replicas elect a leader, so that one that was killed works again at once.

use std::path::Path;

use config::Config;

/// What the command lines need to know.
pub(super) struct Places<'a> {
    /// Where the programs are.
    pub binaries: &'a Path,
    /// Where the files of [`super::files`] are.
    pub folder: &'a Path,
    pub api_port: u16,
    pub controller_manager_port: u16,
    pub scheduler_port: u16,
    /// Where the store answers as etcd.
    pub etcd: &'a str,
    pub service_range: &'a str,
    /// Serving and client certificates have authorities of their own.
    pub split_authorities: bool,
}

/// A program and its arguments; the program comes first.
pub(super) type CommandLine = Vec<String>;

impl Places<'_> {
    fn program(&self, name: &str) -> String {
        self.binaries.join(name).display().to_string()
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

pub(super) fn api_server(config: &Config, at: &Places<'_>) -> CommandLine {
    let component = &config.control_plane.distro.k8s.api_server;
    let issuer = format!("https://kubernetes.default.svc.{}", config.networking.advanced.cluster_domain);
    let usual = || {
        [
            at.program("kube-apiserver"),
            format!("--service-cluster-ip-range={}", at.service_range),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={}", at.api_port),
            "--allow-privileged=true".into(),
            "--authorization-mode=Node,RBAC".into(),
            format!("--client-ca-file={}", at.file("client-ca.crt")),
            "--enable-bootstrap-token-auth=true".into(),
            "--storage-backend=etcd3".into(),
            "--storage-media-type=application/json".into(),
            format!("--etcd-servers={}", at.etcd),
            format!("--etcd-cafile={}", at.file("etcd-ca.crt")),
            format!("--etcd-certfile={}", at.file("apiserver-etcd-client.crt")),
            format!("--etcd-keyfile={}", at.file("apiserver-etcd-client.key")),
            format!("--proxy-client-cert-file={}", at.file("front-proxy-client.crt")),
            format!("--proxy-client-key-file={}", at.file("front-proxy-client.key")),
            "--requestheader-allowed-names=front-proxy-client".into(),
            format!("--requestheader-client-ca-file={}", at.file("front-proxy-ca.crt")),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
            "--requestheader-group-headers=X-Remote-Group".into(),
            "--requestheader-username-headers=X-Remote-User".into(),
            format!("--service-account-issuer={issuer}"),
            format!("--service-account-key-file={}", at.file("sa.pub")),
            format!("--service-account-signing-key-file={}", at.file("sa.key")),
            format!("--tls-cert-file={}", at.file("apiserver.crt")),
            format!("--tls-private-key-file={}", at.file("apiserver.key")),
            "--profiling=false".into(),
            // The syncer keeps the endpoints of the API: they are the proxy's.
            "--advertise-address=127.0.0.1".into(),
            "--endpoint-reconciler-type=none".into(),
        ]
    };
    whole(&component.command, usual, &component.extra_args)
}

pub(super) fn controller_manager(config: &Config, at: &Places<'_>) -> CommandLine {
    let component = &config.control_plane.distro.k8s.controller_manager;
    let usual = || {
        let kubeconfig = at.file("controller-manager.conf");
        let mut args = vec![
            at.program("kube-controller-manager"),
            format!("--service-cluster-ip-range={}", at.service_range),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={}", at.controller_manager_port),
            format!("--client-ca-file={}", at.file("client-ca.crt")),
            "--cluster-name=kubernetes".into(),
            format!("--kubeconfig={kubeconfig}"),
            format!("--requestheader-client-ca-file={}", at.file("front-proxy-ca.crt")),
            format!("--root-ca-file={}", at.file("server-ca.crt")),
            format!("--service-account-private-key-file={}", at.file("sa.key")),
            "--use-service-account-credentials=true".into(),
            leader_elect(config),
        ];
        if !component.extra_args.iter().any(|arg| arg.starts_with("--cluster-signing-") && names_file(arg)) {
            args.extend(signing(at));
        }
        args.extend(controllers(config));
        args
    };
    whole(&component.command, usual, &component.extra_args)
}

pub(super) fn scheduler(config: &Config, at: &Places<'_>) -> CommandLine {
    let component = &config.control_plane.distro.k8s.scheduler;
    let usual = || {
        let kubeconfig = at.file("scheduler.conf");
        [
            at.program("kube-scheduler"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={}", at.scheduler_port),
            format!("--kubeconfig={kubeconfig}"),
            leader_elect(config),
        ]
    };
    whole(&component.command, usual, &component.extra_args)
}

fn leader_elect(config: &Config) -> String {
    format!("--leader-elect={}", config.control_plane.stateful_set.high_availability.replicas > 1)
}

fn names_file(arg: &str) -> bool {
    let flag = arg.split('=').next().unwrap_or_default();
    flag.ends_with("-cert-file") || flag.ends_with("-key-file")
}

fn signing(at: &Places<'_>) -> Vec<String> {
    if !at.split_authorities {
        return vec![
            format!("--cluster-signing-cert-file={}", at.file("server-ca.crt")),
            format!("--cluster-signing-key-file={}", at.file("server-ca.key")),
        ];
    }
    let pairs = [
        ("kube-apiserver-client", "client-ca"),
        ("kubelet-client", "client-ca"),
        ("kubelet-serving", "server-ca"),
        ("legacy-unknown", "server-ca"),
    ];
    let both = |(signer, ca): (&str, &str)| {
        ["cert", "key"].map(|half| {
            let file = at.file(&format!("{ca}.{}", if half == "cert" { "crt" } else { "key" }));
            format!("--cluster-signing-{signer}-{half}-file={file}")
        })
    };
    pairs.into_iter().flat_map(both).collect()
}

/// What looks after nodes and volumes is the host's; the syncer is in its place.
fn controllers(config: &Config) -> Vec<String> {
    let own_scheduler = config.virtual_scheduler();
    let mut list = vec!["*", "-nodeipam"];
    if !own_scheduler {
        list.push("-nodelifecycle");
    }
    list.extend([
        "-persistentvolume-binder",
        "-attachdetach",
        "-persistentvolume-expander",
        "-cloud-node-lifecycle",
        "-ttl",
    ]);
    if config.sync.to_host.resource_claim_templates.enabled {
        list.push("-resourceclaim-controller");
    }
    let (grace, period) = if own_scheduler { ("1h", "1h") } else { ("180s", "30s") };
    vec![
        format!("--controllers={}", list.join(",")),
        format!("--node-monitor-grace-period={grace}"),
        format!("--node-monitor-period={period}"),
        "--pvclaimbinder-sync-period=60s".into(),
        "--horizontal-pod-autoscaler-sync-period=60s".into(),
    ]
}

/// The configured command line, or the usual one; flags of `extra` take the place of the same flags.
fn whole<I>(command: &[String], usual: impl FnOnce() -> I, extra: &[String]) -> CommandLine
where
    I: IntoIterator<Item = String>,
{
    let flag = |arg: &str| arg.starts_with("--").then(|| arg.split('=').next().unwrap_or_default().to_string());
    let given: Vec<String> = extra.iter().filter_map(|arg| flag(arg)).collect();
    let base: Vec<String> = if command.is_empty() { usual().into_iter().collect() } else { command.to_vec() };
    let kept = base.into_iter().filter(|arg| flag(arg).is_none_or(|flag| !given.contains(&flag)));
    kept.chain(extra.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places<'static> {
        Places {
            binaries: Path::new("/binaries"),
            folder: Path::new("/run/d"),
            api_port: 6443,
            controller_manager_port: 10257,
            scheduler_port: 10259,
            etcd: "https://127.0.0.1:2379",
            service_range: "10.96.0.0/12",
            split_authorities: false,
        }
    }

    fn config(text: &str) -> Config {
        Config::from_yaml("t", text).unwrap()
    }

    #[test]
    fn flags_of_the_configuration_replace_the_usual_ones() {
        let k8s = |text: &str| config(&format!("controlPlane: {{distro: {{k8s: {{enabled: true, {text}}}}}}}"));
        let table = [
            (
                "",
                "/binaries/kube-apiserver",
                vec!["--profiling=false", "--storage-media-type=application/json"],
                vec![],
            ),
            (
                "apiServer: {extraArgs: [--profiling=true, --audit-log-path=/x]}",
                "/binaries/kube-apiserver",
                vec!["--profiling=true", "--audit-log-path=/x"],
                vec!["--profiling=false"],
            ),
            (
                "apiServer: {command: [/my/server, --a=1, --b], extraArgs: [--a=2]}",
                "/my/server",
                vec!["--a=2", "--b"],
                vec!["--a=1", "--profiling=false"],
            ),
        ];
        for (text, program, has, lacks) in table {
            let line = api_server(&k8s(text), &places());
            assert_eq!(line[0], program, "{text}");
            assert!(has.iter().all(|flag| line.iter().any(|arg| arg == flag)), "{text}: {line:?}");
            assert!(!lacks.iter().any(|flag| line.iter().any(|arg| arg == flag)), "{text}: {line:?}");
        }
    }

    #[test]
    fn controllers_depend_on_who_schedules_and_signs() {
        let default = controller_manager(&config(""), &places());
        assert!(default.iter().any(|arg| arg.starts_with("--controllers=*,-nodeipam,-nodelifecycle,")), "{default:?}");
        assert!(default.contains(&"--leader-elect=false".to_string()));
        assert!(default.contains(&"--cluster-signing-cert-file=/run/d/server-ca.crt".to_string()));
        let own = config(
            "controlPlane: {advanced: {virtualScheduler: {enabled: true}}}\nsync: {fromHost: {nodes: {enabled: true}}, toHost: {resourceClaimTemplates: {enabled: true}}}",
        );
        let line = controller_manager(&own, &places());
        let list = line.iter().find(|arg| arg.starts_with("--controllers=")).unwrap();
        assert!(!list.contains("nodelifecycle") || list.contains("cloud-node-lifecycle"), "{list}");
        assert!(!list.contains("-nodelifecycle") && list.ends_with(",-resourceclaim-controller"), "{list}");
        assert!(line.contains(&"--node-monitor-grace-period=1h".to_string()));
        let split = controller_manager(&config(""), &Places { split_authorities: true, ..places() });
        assert!(
            split.contains(&"--cluster-signing-kubelet-client-key-file=/run/d/client-ca.key".to_string()),
            "{split:?}"
        );
        let given = config(
            "controlPlane: {distro: {k8s: {enabled: true, controllerManager: {extraArgs: [--cluster-signing-cert-file=/x]}}}}",
        );
        let line = controller_manager(&given, &places());
        assert!(!line.iter().any(|arg| arg.starts_with("--cluster-signing-key-file")), "{line:?}");
        let several = config(
            "controlPlane: {statefulSet: {highAvailability: {replicas: 2}}, backingStore: {etcd: {deploy: {enabled: true}}}}",
        );
        assert!(scheduler(&several, &places()).contains(&"--leader-elect=true".to_string()));
    }
}
