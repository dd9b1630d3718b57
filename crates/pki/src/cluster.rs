//! All keys and certificates of one control plane, by file name, in kubeadm's layout.
//!
//! `ca` signs serving and client certificates; `server-ca` and `client-ca` are copies of it, as in a new vCluster, and stay
//! apart when a restored set brings different ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::{Pair, PkiError, Request, Usage, authority_at, is_due, issue_at, names_of, service_account_key};

/// Name of the administrator's user in certificates and kubeconfigs.
pub const ADMIN: &str = "kubernetes-admin";

/// User of the controllers in `controller-manager.conf`.
pub const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
/// User of the scheduler in `scheduler.conf`.
pub const SCHEDULER: &str = "system:kube-scheduler";

/// What a set of certificates is for.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// DNS names and IP addresses under which the API is reached.
    pub serving_names: &'a [String],
    /// The same of an etcd that belongs to the cluster; without them there are no certificates for one.
    pub etcd_names: Option<&'a [String]>,
    pub now: SystemTime,
}

/// File name (`ca.crt`, `apiserver.key`, `sa.pub`) to PEM text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterCertificates {
    files: BTreeMap<String, String>,
}

impl ClusterCertificates {
    /// Completes `files` for an API server: what is missing or due is made, what is there is kept. `serving_names` are the
    /// DNS names and IP addresses under which the API is reached; a serving certificate that lacks one is made anew.
    pub fn complete(
        files: BTreeMap<String, String>,
        serving_names: &[String],
    ) -> Result<ClusterCertificates, PkiError> {
        ClusterCertificates::complete_as(files, &Wanted { serving_names, etcd_names: None, now: SystemTime::now() })
    }

    /// Completes `files`: what is missing or due is made, what is there is kept.
    pub fn complete_as(files: BTreeMap<String, String>, wanted: &Wanted<'_>) -> Result<ClusterCertificates, PkiError> {
        let mut certificates = ClusterCertificates { files };
        let now = wanted.now;
        if !certificates.has_authority("ca")? {
            certificates.put("ca", authority_at("kubernetes", now)?);
        }
        for copy in ["server-ca", "client-ca"] {
            if !certificates.has_authority(copy)? {
                let ca = certificates.required("ca")?;
                certificates.put(copy, ca);
            }
        }
        for ca in ["front-proxy-ca", "etcd-ca"] {
            if !certificates.has_authority(ca)? && (ca != "etcd-ca" || wanted.etcd_names.is_some()) {
                certificates.put(ca, authority_at(ca, now)?);
            }
        }
        if certificates.file("sa.key").is_none() || certificates.file("sa.pub").is_none() {
            let pair = service_account_key()?;
            certificates.files.insert("sa.key".into(), pair.key);
            certificates.files.insert("sa.pub".into(), pair.certificate);
        }
        let mut leaves = vec![
            ("apiserver", "server-ca", "kube-apiserver", None, Usage::Server(wanted.serving_names.to_vec())),
            (
                "apiserver-kubelet-client",
                "client-ca",
                "kube-apiserver-kubelet-client",
                Some("system:masters"),
                Usage::Client,
            ),
            ("front-proxy-client", "front-proxy-ca", "front-proxy-client", None, Usage::Client),
            ("admin", "client-ca", ADMIN, Some("system:masters"), Usage::Client),
        ];
        if let Some(names) = wanted.etcd_names {
            let (names, masters) = (names.to_vec(), Some("system:masters"));
            leaves.extend([
                ("controller-manager", "client-ca", CONTROLLER_MANAGER, None, Usage::Client),
                ("scheduler", "client-ca", SCHEDULER, None, Usage::Client),
                ("apiserver-etcd-client", "etcd-ca", "kube-apiserver-etcd-client", masters, Usage::Client),
                ("etcd-healthcheck-client", "etcd-ca", "kube-etcd-healthcheck-client", masters, Usage::Client),
                ("etcd-server", "etcd-ca", "etcd-server", None, Usage::Peer(names.clone())),
                ("etcd-peer", "etcd-ca", "etcd-peer", None, Usage::Peer(names)),
            ]);
        }
        for (file, ca, common_name, organization, usage) in leaves {
            let named = match &usage {
                Usage::Client => true,
                Usage::Server(names) | Usage::Peer(names) => certificates.names_are_in(file, names),
            };
            let issued = certificates.is_issued(file, ca);
            if certificates.is_due(file, now) || !named || !issued {
                let organizations: Vec<&str> = organization.into_iter().collect();
                let request = Request { common_name, organizations: &organizations, usage };
                certificates.put(file, issue_at(&certificates.required(ca)?, &request, now)?);
            }
        }
        Ok(certificates)
    }

    /// Files without what was signed by the authorities: [`ClusterCertificates::complete`] makes it anew. With
    /// `authorities` these go too, and every certificate that was given out stops being valid. The key that signs service
    /// account tokens stays: tokens are checked against it, not against an authority.
    pub fn without_leaves(files: &BTreeMap<String, String>, authorities: bool) -> BTreeMap<String, String> {
        let is_authority = |name: &str| ["ca", "server-ca", "client-ca", "front-proxy-ca", "etcd-ca"].contains(&name);
        let stays = |file: &str| match file.rsplit_once('.') {
            Some(("sa", _)) => true,
            Some((name, "crt" | "key")) => is_authority(name) && !authorities,
            // Files of other layouts are somebody else's.
            _ => !file.ends_with(".conf"),
        };
        files.iter().filter(|(file, _)| stays(file)).map(|(file, text)| (file.clone(), text.clone())).collect()
    }

    /// A serving certificate of this cluster that is kept nowhere.
    pub fn serving(&self, names: &[String], now: SystemTime) -> Result<Pair, PkiError> {
        let request =
            Request { common_name: "kube-apiserver", organizations: &[], usage: Usage::Server(names.to_vec()) };
        issue_at(&self.required("server-ca")?, &request, now)
    }

    pub fn files(&self) -> &BTreeMap<String, String> {
        &self.files
    }

    pub fn file(&self, name: &str) -> Option<&str> {
        self.files.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// `NAME.crt` and `NAME.key`.
    pub fn pair(&self, name: &str) -> Option<Pair> {
        Some(Pair {
            certificate: self.file(&format!("{name}.crt"))?.to_string(),
            key: self.file(&format!("{name}.key"))?.to_string(),
        })
    }

    /// Whether an authority is there. Half of one is an error: another in its place would not be what somebody has put there.
    fn has_authority(&self, name: &str) -> Result<bool, PkiError> {
        let half = |kind: &str| self.file(&format!("{name}.{kind}")).is_some();
        match (half("crt"), half("key")) {
            (true, true) => Ok(true),
            (false, false) => Ok(false),
            (has_certificate, _) => {
                let missing = if has_certificate { "key" } else { "crt" };
                Err(PkiError::Read { what: format!("{name}.{missing}"), reason: "it is missing".into() })
            }
        }
    }

    fn required(&self, name: &str) -> Result<Pair, PkiError> {
        self.pair(name).ok_or_else(|| PkiError::Read { what: format!("{name}.crt"), reason: "it is missing".into() })
    }

    fn put(&mut self, name: &str, pair: Pair) {
        self.files.insert(format!("{name}.crt"), pair.certificate);
        self.files.insert(format!("{name}.key"), pair.key);
    }

    fn is_due(&self, name: &str, now: SystemTime) -> bool {
        self.pair(name).is_none_or(|pair| is_due(&pair.certificate, now))
    }

    /// Somebody may have put another authority in the place of the one that signed.
    fn is_issued(&self, file: &str, ca: &str) -> bool {
        let (Some(leaf), Some(ca)) = (self.pair(file), self.pair(ca)) else { return false };
        crate::is_issued_by(&leaf.certificate, &ca.certificate)
    }

    fn names_are_in(&self, file: &str, names: &[String]) -> bool {
        let Some(pair) = self.pair(file) else { return false };
        let has: BTreeSet<String> = names_of(&pair.certificate).unwrap_or_default().into_iter().collect();
        names.iter().all(|name| has.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(files: BTreeMap<String, String>, names: &[&str]) -> ClusterCertificates {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        ClusterCertificates::complete(files, &names).unwrap()
    }

    #[test]
    fn what_is_there_is_kept_and_what_is_missing_is_made() {
        let first = complete(BTreeMap::new(), &["localhost", "127.0.0.1", "*.nodes.example"]);
        for name in ["ca", "server-ca", "client-ca", "front-proxy-ca", "front-proxy-client", "apiserver", "admin"] {
            assert!(first.pair(name).is_some(), "{name}");
        }
        assert_eq!(
            names_of(first.file("apiserver.crt").unwrap()).unwrap(),
            ["*.nodes.example", "127.0.0.1", "localhost"]
        );
        // Nothing changes when nothing is missing.
        assert_eq!(complete(first.files().clone(), &["localhost"]), first);
        // A new name changes the serving certificate only.
        let second = complete(first.files().clone(), &["localhost", "10.0.0.1"]);
        for (name, text) in first.files() {
            assert_eq!(second.files()[name] == *text, !name.starts_with("apiserver."), "{name}");
        }
        // Under another authority what the old one signed is made anew, and nothing else.
        let mut files = first.files().clone();
        let other = complete(BTreeMap::new(), &["localhost"]);
        for file in ["client-ca.crt", "client-ca.key"] {
            files.insert(file.into(), other.files()[file].clone());
        }
        let third = complete(files, &["localhost", "127.0.0.1", "*.nodes.example"]);
        for (name, text) in first.files() {
            let signed = ["admin", "client-ca", "apiserver-kubelet-client"].contains(&name.split('.').next().unwrap());
            assert_eq!(third.files()[name] == *text, !signed, "{name}");
        }
        assert!(crate::is_issued_by(third.file("admin.crt").unwrap(), third.file("client-ca.crt").unwrap()));
        assert!(!crate::is_issued_by(third.file("admin.crt").unwrap(), third.file("server-ca.crt").unwrap()));
        // A lost leaf comes back under the same authority.
        let mut files = first.files().clone();
        files.remove("admin.key");
        let third = complete(files, &["localhost"]);
        assert_eq!(third.file("ca.crt"), first.file("ca.crt"));
        assert_ne!(third.file("admin.crt"), first.file("admin.crt"));
    }

    #[test]
    fn a_certificate_is_due_90_days_before_its_end() {
        let certificates = complete(BTreeMap::new(), &["localhost"]);
        let now = SystemTime::now();
        let day = std::time::Duration::from_secs(24 * 3600);
        for (name, days, want) in [
            ("apiserver", 1, false),
            ("apiserver", 274, false),
            ("apiserver", 276, true),
            ("ca", 3000, false),
            ("ca", 3600, true),
        ] {
            assert_eq!(certificates.is_due(name, now + day * days), want, "{name} after {days} days");
        }
        assert!(is_due("no certificate", now));
    }

    #[test]
    fn rotation_makes_leaves_anew_and_authorities_only_when_asked() {
        let first = complete(BTreeMap::new(), &["localhost"]);
        for (authorities, want_same_ca) in [(false, true), (true, false)] {
            let rotated = complete(ClusterCertificates::without_leaves(first.files(), authorities), &["localhost"]);
            for name in ["apiserver.crt", "admin.crt", "front-proxy-client.crt"] {
                assert_ne!(rotated.file(name), first.file(name), "{name}");
            }
            for name in ["ca.crt", "server-ca.crt", "client-ca.crt", "front-proxy-ca.crt"] {
                assert_eq!(rotated.file(name) == first.file(name), want_same_ca, "{name}");
            }
            assert_eq!(rotated.file("sa.key"), first.file("sa.key"));
        }
        let info = crate::describe(first.file("admin.crt").unwrap()).unwrap();
        assert!(info.subject.contains(ADMIN), "{info:?}");
        assert!(info.issuer.contains("kubernetes"), "{info:?}");
        assert!(info.not_after > SystemTime::now());
    }

    #[test]
    fn a_cluster_with_etcd_has_kubeadms_etcd_certificates_and_renews_what_is_due() {
        let names = ["localhost".to_string()];
        let etcd = ["a-etcd".to_string()];
        let now = SystemTime::now();
        let wanted = |now| Wanted { serving_names: &names, etcd_names: Some(&etcd), now };
        let first = ClusterCertificates::complete_as(BTreeMap::new(), &wanted(now)).unwrap();
        for name in ["etcd-ca", "etcd-server", "etcd-peer", "etcd-healthcheck-client", "apiserver-etcd-client"] {
            assert!(first.pair(name).is_some(), "{name}");
        }
        assert_eq!(names_of(first.file("etcd-peer.crt").unwrap()).unwrap(), etcd);
        // 300 days later all leaves are new, and good for a year from then; authorities and keys of tokens are the same.
        let later = now + std::time::Duration::from_secs(300 * 24 * 3600);
        let second = ClusterCertificates::complete_as(first.files().clone(), &wanted(later)).unwrap();
        for (name, text) in first.files() {
            let lasting = name.contains("ca.") || name.starts_with("sa.");
            assert_eq!(second.files()[name] == *text, lasting, "{name}");
        }
        let end = crate::expiry(second.file("admin.crt").unwrap()).unwrap();
        assert!(end > later + std::time::Duration::from_secs(364 * 24 * 3600));
    }

    #[test]
    fn a_broken_authority_is_an_error() {
        let mut files = complete(BTreeMap::new(), &["localhost"]).files().clone();
        files.insert("client-ca.key".into(), "nonsense".into());
        files.remove("admin.crt");
        let error = ClusterCertificates::complete(files, &[]).unwrap_err();
        assert!(error.to_string().contains("the authority is not readable"), "{error}");
    }
}
