//! Where a cluster's certificates come from: Secret `NAME-certs` on the host, else `pki/` in the data directory.

use std::collections::BTreeMap;
use std::path::Path;

use config::Config;
use deploy::secrets::AdminAccess;
use pki::ClusterCertificates;

use crate::host::{Host, HostError, HostService};

/// Why certificates could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("could not be made")]
    Make(#[from] pki::PkiError),
    #[error("could not be kept on the host")]
    Host(#[from] HostError),
}

/// Names and addresses under which the API is reached.
pub(crate) fn serving_names(
    name: &str,
    config: &Config,
    host: Option<&Host>,
    service: Option<&HostService>,
    public_url: &str,
) -> Vec<String> {
    let domain = &config.networking.advanced.cluster_domain;
    let mut names = vec![
        "kubernetes".to_string(),
        "kubernetes.default".to_string(),
        "kubernetes.default.svc".to_string(),
        format!("kubernetes.default.svc.{domain}"),
        "localhost".to_string(),
        "127.0.0.1".to_string(),
        name.to_string(),
        "*.nodes.vcluster.com".to_string(),
    ];
    if let Some(host) = host {
        names.push(format!("{name}.{}", host.namespace));
        names.push(format!("{name}.{}.svc", host.namespace));
        names.push(format!("*.{name}.{}.nodes.vcluster.com", host.namespace));
    }
    names.extend(service.into_iter().flat_map(|service| service.addresses.iter().cloned()));
    names.extend(
        [public_url, &config.export_kube_config.server, &config.control_plane.endpoint]
            .iter()
            .filter_map(|url| host_of(url)),
    );
    names.extend(config.control_plane.proxy.extra_sans.iter().cloned());
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
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

/// Reads, completes and keeps the certificates.
pub(crate) async fn load(
    name: &str,
    serving_names: &[String],
    data_dir: Option<&Path>,
    host: Option<&Host>,
    service: Option<&HostService>,
) -> Result<ClusterCertificates, CertificateError> {
    let kept = match (host, data_dir) {
        (Some(host), _) => host.read_certificates(name).await?,
        (None, Some(folder)) => pki::files::read(&folder.join("pki"))?,
        (None, None) => BTreeMap::new(),
    };
    let certificates = ClusterCertificates::complete(kept.clone(), serving_names)?;
    let mut files = certificates.files().clone();
    let text = |file: &str| certificates.file(file).unwrap_or_default().to_string();
    let access = AdminAccess {
        server: "https://localhost:8443".into(),
        insecure: false,
        certificate_authority: text("server-ca.crt"),
        client_certificate: text("admin.crt"),
        client_key: text("admin.key"),
    };
    files.insert("admin.conf".to_string(), deploy::secrets::kubeconfig_yaml("my-vcluster", &access));
    if files != kept {
        match (host, data_dir) {
            (Some(host), _) => host.write_certificates(name, &files, service).await?,
            (None, Some(folder)) => pki::files::write(&folder.join("pki"), &files)?,
            (None, None) => {}
        }
    }
    Ok(certificates)
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
    fn certificates_in_files_are_private_and_stay_the_same() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let names = ["localhost".to_string()];
        let first = runtime.block_on(load("a", &names, Some(folder.path()), None, None)).unwrap();
        let second = runtime.block_on(load("a", &names, Some(folder.path()), None, None)).unwrap();
        assert_eq!(first.file("ca.crt"), second.file("ca.crt"));
        assert_eq!(first.file("admin.crt"), second.file("admin.crt"));
        let mode = std::fs::metadata(folder.path().join("pki/ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
