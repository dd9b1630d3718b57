//! The certificates of a cluster: kept in Secret `NAME-certs` on the host, else in `pki/` of the data directory.
//!
//! Invariants:
//! - Authorities and the key of service account tokens are never replaced; what they sign is made anew before it ends,
//!   without a restart. Authorities that somebody else replaced count after a restart ([`Renewed::Rotated`]).
//! - The certificate that is served belongs to this process and is kept nowhere: replicas with different addresses do not
//!   overwrite each other's. It has exactly the names the cluster has now.
//! - Two replicas that complete the set at the same time end with one set: a write that finds another version reads again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use apiserver::tls::{ServingCertificate, TlsError};
use base64::Engine;
use config::Config;
use deploy::secrets::AdminAccess;
use informer::Clock;
use parking_lot::RwLock;
use pki::{ClusterCertificates, Wanted};
use tokio::sync::watch;

use crate::host::{Host, HostError, HostService};

/// How often a write of the Secret is tried again when somebody else wrote meanwhile.
const CONFLICTS_MAX: usize = 5;

/// What a running control plane cannot exchange.
const AUTHORITIES: [&str; 3] = ["server-ca.crt", "client-ca.crt", "etcd-ca.crt"];

/// Why certificates could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("could not be made")]
    Make(#[from] pki::PkiError),
    #[error("could not be kept on the host")]
    Host(#[from] HostError),
    #[error("cannot be served")]
    Serve(#[from] TlsError),
}

/// The names under which the API is reached whatever the host says.
pub(crate) fn fixed_names(name: &str, config: &Config, host: Option<&Host>, public_url: &str) -> BTreeSet<String> {
    let domain = &config.networking.advanced.cluster_domain;
    let mut names: BTreeSet<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
        "127.0.0.1",
        "*.nodes.vcluster.com",
        name,
    ]
    .map(str::to_string)
    .into();
    names.insert(format!("kubernetes.default.svc.{domain}"));
    if let Some(host) = host {
        names.insert(format!("{name}.{}", host.namespace));
        names.insert(format!("{name}.{}.svc", host.namespace));
        names.insert(format!("*.{name}.{}.nodes.vcluster.com", host.namespace));
    }
    let urls = [public_url, &config.export_kube_config.server, &config.control_plane.endpoint];
    names.extend(urls.iter().filter_map(|url| host_of(url)));
    names.extend(config.export_kube_config.additional_secrets.iter().filter_map(|secret| host_of(&secret.server)));
    if config.at("controlPlane.ingress.enabled").and_then(serde_json::Value::as_bool) == Some(true) {
        names.extend(config.at("controlPlane.ingress.host").and_then(|host| host.as_str()).map(str::to_string));
    }
    if config.at("controlPlane.tlsRoute.enabled").and_then(serde_json::Value::as_bool) == Some(true) {
        names.extend(config.at("controlPlane.tlsRoute.host").and_then(|host| host.as_str()).map(str::to_string));
    }
    names.extend(config.control_plane.proxy.extra_sans.iter().cloned());
    names.retain(|name| !name.is_empty());
    names
}

/// The names of an etcd of the cluster's own, beside it or inside.
fn etcd_names(name: &str, host: Option<&Host>) -> Vec<String> {
    let (service, headless) = (format!("{name}-etcd"), format!("{name}-etcd-headless"));
    let embedded = deploy::names::headless_service(name);
    let mut names = vec!["localhost".to_string(), "127.0.0.1".to_string(), service.clone(), format!("*.{headless}")];
    if let Some(host) = host {
        let namespace = &host.namespace;
        names.extend([
            format!("{service}.{namespace}"),
            format!("{service}.{namespace}.svc"),
            format!("*.{headless}.{namespace}"),
            format!("*.{headless}.{namespace}.svc"),
            // Members in the pods of the control plane.
            format!("*.{embedded}.{namespace}"),
            format!("*.{embedded}.{namespace}.svc"),
        ]);
    }
    names
}

/// The host of `https://host:port/path` or `host:port`.
fn host_of(url: &str) -> Option<String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    (!host.is_empty()).then(|| host.to_string())
}

/// The certificates of one running control plane.
pub(crate) struct Certificates {
    name: String,
    host: Option<Host>,
    owner: Option<HostService>,
    data_dir: Option<PathBuf>,
    /// The names of the certificate in the kept set.
    kept_names: Vec<String>,
    clock: Clock,
    current: RwLock<ClusterCertificates>,
    serving: Arc<ServingCertificate>,
    served: RwLock<Served>,
    changed: watch::Sender<()>,
}

struct Served {
    names: Vec<String>,
    certificate: String,
}

impl Certificates {
    /// Reads, completes and keeps the set, and makes the certificate that is served.
    pub async fn load(
        name: &str,
        names: &BTreeSet<String>,
        data_dir: Option<PathBuf>,
        host: Option<&Host>,
        owner: Option<&HostService>,
        clock: Clock,
    ) -> Result<Arc<Certificates>, CertificateError> {
        let kept_names: Vec<String> = names.iter().cloned().collect();
        let store = Store { name, host, owner, data_dir: data_dir.as_ref(), kept_names: &kept_names };
        let now = system_time(&clock);
        let current = store.complete(now).await?;
        let pair = current.serving(&kept_names, now)?;
        let serving = ServingCertificate::new(pair.certificate.as_bytes(), pair.key.as_bytes())?;
        Ok(Arc::new(Certificates {
            name: name.to_string(),
            host: host.cloned(),
            owner: owner.cloned(),
            data_dir,
            served: RwLock::new(Served { names: kept_names.clone(), certificate: pair.certificate }),
            kept_names,
            clock,
            current: RwLock::new(current),
            serving,
            changed: watch::Sender::new(()),
        }))
    }

    pub fn file(&self, name: &str) -> String {
        self.current.read().file(name).unwrap_or_default().to_string()
    }

    /// What the server shows to clients; changes by itself.
    pub fn serving(&self) -> Arc<ServingCertificate> {
        Arc::clone(&self.serving)
    }

    /// Told whenever the kept set has changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// How an administrator with the client certificate reaches `server`.
    pub fn access(&self, server: &str, insecure: bool) -> AdminAccess {
        AdminAccess {
            server: server.to_string(),
            insecure,
            certificate_authority: self.file("server-ca.crt"),
            client_certificate: self.file("admin.crt"),
            client_key: self.file("admin.key"),
            token: String::new(),
        }
    }

    /// Serves exactly these names, with a certificate that is not due. Tells whether a new one was made.
    pub fn serve(&self, names: &BTreeSet<String>) -> Result<bool, CertificateError> {
        let now = system_time(&self.clock);
        let names: Vec<String> = names.iter().cloned().collect();
        {
            let served = self.served.read();
            if served.names == names && !pki::is_due(&served.certificate, now) {
                return Ok(false);
            }
        }
        let pair = self.current.read().serving(&names, now)?;
        self.serving.replace(pair.certificate.as_bytes(), pair.key.as_bytes())?;
        *self.served.write() = Served { names, certificate: pair.certificate };
        Ok(true)
    }

    /// Makes anew what ends soon, and writes the set again when it is gone from where it is kept.
    pub async fn renew(&self) -> Result<Renewed, CertificateError> {
        let store = Store {
            name: &self.name,
            host: self.host.as_ref(),
            owner: self.owner.as_ref(),
            data_dir: self.data_dir.as_ref(),
            kept_names: &self.kept_names,
        };
        let before = self.current.read().clone();
        let Some(after) = store.complete_from(Some(&before), system_time(&self.clock)).await? else {
            return Ok(Renewed::Rotated);
        };
        if after == before {
            return Ok(Renewed::Nothing);
        }
        *self.current.write() = after;
        self.changed.send_replace(());
        Ok(Renewed::Leaves)
    }
}

/// What [`Certificates::renew`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// Everything is as it was.
    Nothing,
    /// Certificates were made anew under the same authorities.
    Leaves,
    /// Somebody has put other authorities in place: what runs must start anew to work with them.
    Rotated,
}

fn system_time(clock: &Clock) -> SystemTime {
    let since = clock.now().duration_since(jiff::Timestamp::UNIX_EPOCH);
    SystemTime::UNIX_EPOCH + Duration::try_from(since).unwrap_or_default()
}

/// Where a set is kept.
struct Store<'a> {
    name: &'a str,
    host: Option<&'a Host>,
    owner: Option<&'a HostService>,
    data_dir: Option<&'a PathBuf>,
    kept_names: &'a [String],
}

impl Store<'_> {
    async fn complete(&self, now: SystemTime) -> Result<ClusterCertificates, CertificateError> {
        Ok(self.complete_from(None, now).await?.unwrap_or_default())
    }

    /// Completes what is kept; `known` is what this process has, and stands in for a Secret that was deleted. Nothing when
    /// other authorities are kept than the known ones, and can be used.
    async fn complete_from(
        &self,
        known: Option<&ClusterCertificates>,
        now: SystemTime,
    ) -> Result<Option<ClusterCertificates>, CertificateError> {
        let etcd_names = etcd_names(self.name, self.host);
        let wanted = Wanted { serving_names: self.kept_names, etcd_names: Some(&etcd_names), now };
        let mut tries = 0;
        loop {
            let (kept, version) = self.read().await?;
            let mut files = kept.clone();
            if let Some(known) = known {
                if kept.is_empty() {
                    // Somebody removed it; this is still the same cluster.
                    files.clone_from(known.files());
                } else if AUTHORITIES.iter().any(|ca| known.file(ca) != kept.get(*ca).map(String::as_str)) {
                    ClusterCertificates::complete_as(kept, &wanted)?;
                    return Ok(None);
                }
            }
            let certificates = ClusterCertificates::complete_as(files, &wanted)?;
            let files = with_kubeconfigs(&certificates);
            let certificates = ClusterCertificates::complete_as(files.clone(), &wanted)?;
            if files == kept {
                return Ok(Some(certificates));
            }
            match self.write(&files, version.as_deref()).await {
                Err(CertificateError::Host(error)) if error.is_conflict() && tries < CONFLICTS_MAX => tries += 1,
                result => return result.map(|()| Some(certificates)),
            }
        }
    }

    async fn read(&self) -> Result<(BTreeMap<String, String>, Option<String>), CertificateError> {
        Ok(match (self.host, self.data_dir) {
            (Some(host), _) => match host.read_certificates(self.name).await? {
                Some((files, version)) => (files, Some(version)),
                None => (BTreeMap::new(), None),
            },
            (None, Some(folder)) => (pki::files::read(&folder.join("pki"))?, None),
            (None, None) => (BTreeMap::new(), None),
        })
    }

    async fn write(&self, files: &BTreeMap<String, String>, version: Option<&str>) -> Result<(), CertificateError> {
        match (self.host, self.data_dir) {
            (Some(host), _) => host.write_certificates(self.name, files, self.owner, version).await?,
            (None, Some(folder)) => pki::files::write(&folder.join("pki"), files)?,
            (None, None) => {}
        }
        Ok(())
    }
}

/// Adds `admin.conf` and its like, whose certificates are those of the set.
fn with_kubeconfigs(certificates: &ClusterCertificates) -> BTreeMap<String, String> {
    let text = |file: &str| certificates.file(file).unwrap_or_default().to_string();
    let mut files = certificates.files().clone();
    for user in ["admin", "controller-manager", "scheduler"] {
        let access = AdminAccess {
            server: "https://localhost:8443".into(),
            certificate_authority: text("server-ca.crt"),
            client_certificate: text(&format!("{user}.crt")),
            client_key: text(&format!("{user}.key")),
            ..AdminAccess::default()
        };
        // A file that was brought along stays as long as it speaks of the same certificate.
        let certificate = base64::engine::general_purpose::STANDARD.encode(&access.client_certificate);
        let file = format!("{user}.conf");
        if !files.get(&file).is_some_and(|known| known.contains(&certificate)) {
            files.insert(file, deploy::secrets::kubeconfig_yaml("my-vcluster", &access));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_taken_out_of_urls() {
        for (url, want) in [
            ("https://a.example:8443/x", Some("a.example")),
            ("https://127.0.0.1:1", Some("127.0.0.1")),
            ("https://[::1]:1", Some("::1")),
            ("a.example:6443", Some("a.example")),
            ("", None),
        ] {
            assert_eq!(host_of(url).as_deref(), want, "{url}");
        }
    }

    #[test]
    fn names_come_from_the_configuration() {
        let config = Config::from_yaml(
            "t",
            "exportKubeConfig: {server: 'https://pub.example:9'}\ncontrolPlane: {proxy: {extraSANs: [x.example, 10.0.0.9]}}\nnetworking: {advanced: {clusterDomain: corp.local}}\n",
        )
        .unwrap();
        let names = fixed_names("team-a", &config, None, "https://localhost:8443");
        for name in ["pub.example", "x.example", "10.0.0.9", "kubernetes.default.svc.corp.local", "team-a", "localhost"]
        {
            assert!(names.contains(name), "{name} in {names:?}");
        }
    }

    async fn load(folder: &std::path::Path, clock: Clock) -> Arc<Certificates> {
        let names = BTreeSet::from(["localhost".to_string()]);
        Certificates::load("a", &names, Some(folder.to_owned()), None, None, clock).await.unwrap()
    }

    #[tokio::test]
    async fn certificates_in_files_are_private_and_stay_the_same() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let first = load(folder.path(), Clock::system()).await;
        let second = load(folder.path(), Clock::system()).await;
        for file in ["ca.crt", "admin.crt", "admin.conf", "scheduler.conf", "etcd-peer.key"] {
            assert!(!first.file(file).is_empty(), "{file}");
            assert_eq!(first.file(file), second.file(file), "{file}");
        }
        let mode = std::fs::metadata(folder.path().join("pki/ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_ends_soon_is_made_anew_while_running_and_under_the_same_authority() {
        let folder = tempfile::tempdir().unwrap();
        let start = jiff::Timestamp::now();
        let days = Arc::new(std::sync::atomic::AtomicI64::new(0));
        let clock = {
            let days = Arc::clone(&days);
            Clock::from_fn(move || {
                start + jiff::SignedDuration::from_hours(24 * days.load(std::sync::atomic::Ordering::Relaxed))
            })
        };
        let certificates = load(folder.path(), clock).await;
        let (ca, admin, conf) =
            (certificates.file("ca.crt"), certificates.file("admin.crt"), certificates.file("admin.conf"));
        let served = || certificates.served.read().certificate.clone();
        let first = served();
        let names = BTreeSet::from(["localhost".to_string()]);
        assert_eq!(certificates.renew().await.unwrap(), Renewed::Nothing, "nothing is due");
        assert!(!certificates.serve(&names).unwrap());
        days.store(280, std::sync::atomic::Ordering::Relaxed);
        let mut changes = certificates.changes();
        changes.mark_unchanged();
        assert_eq!(certificates.renew().await.unwrap(), Renewed::Leaves);
        assert!(changes.has_changed().unwrap(), "those who hand out certificates are told");
        assert!(certificates.serve(&names).unwrap());
        assert_eq!(certificates.file("ca.crt"), ca);
        assert_ne!(certificates.file("admin.crt"), admin);
        assert_ne!(certificates.file("admin.conf"), conf);
        assert_ne!(served(), first);
        // A new name is served at once, one that is gone no longer.
        let more = BTreeSet::from(["10.0.0.7".to_string()]);
        assert!(certificates.serve(&more).unwrap());
        assert_eq!(pki::names_of(&served()).unwrap(), ["10.0.0.7"]);
        // A start long after everything ended gives the same cluster.
        days.store(900, std::sync::atomic::Ordering::Relaxed);
        let again = load(folder.path(), certificates.clock.clone()).await;
        assert_eq!(again.file("ca.crt"), ca);
        let end = pki::expiry(&again.file("admin.crt")).unwrap();
        assert!(end > system_time(&certificates.clock));
        // Another authority is noticed when it can be used.
        let pki = folder.path().join("pki");
        let kept = std::fs::read(pki.join("server-ca.key")).unwrap();
        let other = ClusterCertificates::complete(BTreeMap::new(), &[]).unwrap();
        std::fs::write(pki.join("server-ca.crt"), other.file("server-ca.crt").unwrap()).unwrap();
        std::fs::write(pki.join("server-ca.key"), "").unwrap();
        assert!(again.renew().await.is_err(), "an authority without its key");
        std::fs::write(pki.join("server-ca.key"), kept).unwrap();
        std::fs::write(pki.join("server-ca.key"), other.file("server-ca.key").unwrap()).unwrap();
        assert_eq!(again.renew().await.unwrap(), Renewed::Rotated);
    }
}
