//! `controlPlane.backingStore`: which store a cluster's data is in, when it is not the file in its data directory.

use std::path::{Path, PathBuf};

use config::{Config, StoreType};
use store::{Endpoint, EndpointError, Store, TlsFiles};

use crate::StartError;
use crate::certificates::Certificates;
use crate::embedded_etcd::EmbeddedEtcd;

/// What is wrong with the configured store.
#[derive(Debug, thiserror::Error)]
pub enum BackingStoreError {
    #[error("{path}")]
    Address { path: &'static str, source: EndpointError },
    #[error("{path}: {endpoint} is not a database server")]
    NotExternal { path: &'static str, endpoint: String },
    #[error("the certificate for etcd cannot be kept for a moment")]
    Certificate(#[source] std::io::Error),
    #[error("{path} is missing")]
    Missing { path: &'static str },
    #[error(
        "{path} needs a pod of the cluster's own, which a hub has not; use controlPlane.backingStore.etcd.deploy, etcd.external or a database"
    )]
    NoPod { path: &'static str },
}

/// Which cluster a store belongs to.
pub(crate) struct Owner<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    /// The store of a configuration that names none.
    pub default: Option<&'a (Endpoint, TlsFiles)>,
    /// Where an etcd of its own is reached, when not by its Service.
    pub etcd: Option<&'a str>,
    /// The etcd member of this pod.
    pub embedded: Option<&'a EmbeddedEtcd>,
    pub data_dir: Option<&'a Path>,
    pub certificates: &'a Certificates,
}

impl Owner<'_> {
    /// The address of an etcd that was deployed beside the cluster.
    fn etcd_address(&self, config: &Config) -> String {
        if let Some(address) = self.etcd {
            return address.to_string();
        }
        let names = if config.control_plane.backing_store.etcd.deploy.service.enabled {
            deploy::names::etcd(self.name)
        } else {
            deploy::names::etcd_headless(self.name)
        };
        format!("https://{names}.{}:2379", self.namespace)
    }
}

/// Opens the store of a configuration; none for the embedded one.
pub(crate) async fn open(config: &Config, owner: &Owner<'_>) -> Result<Option<(Store, String)>, StartError> {
    let address = owner.etcd_address(config);
    if let Some(embedded) = owner.embedded {
        let store = embedded.open(config, owner.data_dir, &address).await?;
        return Ok(Some((store, "the embedded etcd".to_string())));
    }
    let named = endpoint(config, &address)?;
    let Some((endpoint, mut tls)) = named.or_else(|| owner.default.cloned()) else { return Ok(None) };
    // Keys are read when the store is opened, and kept nowhere after that.
    let mut folder = None;
    if config.store_type() == StoreType::DeployedEtcd {
        let made = tempfile::Builder::new().prefix("alcove-etcd-").tempdir().map_err(BackingStoreError::Certificate)?;
        tls = client_files(made.path(), owner.certificates).map_err(BackingStoreError::Certificate)?;
        folder = Some(made);
    }
    let opened = endpoint.open(&tls, store::Options::default()).await;
    drop(folder);
    let opened = opened.map_err(StartError::StoreAway)?;
    Ok(Some((opened, endpoint.to_string())))
}

/// What a client of the cluster's own etcd shows and trusts, as files.
fn client_files(folder: &Path, certificates: &Certificates) -> std::io::Result<TlsFiles> {
    let keep = |name: &str| {
        let path = folder.join(name);
        std::fs::write(&path, certificates.file(name)).map(|()| Some(path))
    };
    Ok(TlsFiles {
        ca_file: keep("etcd-ca.crt")?,
        cert_file: keep("apiserver-etcd-client.crt")?,
        key_file: keep("apiserver-etcd-client.key")?,
    })
}

/// The store of a configuration; none for the embedded one. `etcd` is the address of a deployed one.
fn endpoint(config: &Config, etcd: &str) -> Result<Option<(Endpoint, TlsFiles)>, BackingStoreError> {
    let backing = &config.control_plane.backing_store;
    let (path, address, files) = match config.store_type() {
        StoreType::EmbeddedDatabase => return Ok(None),
        StoreType::ExternalDatabase => {
            let database = &backing.database.external;
            let files = [&database.ca_file, &database.cert_file, &database.key_file];
            ("controlPlane.backingStore.database.external.dataSource", &database.data_source, files)
        }
        StoreType::ExternalEtcd => {
            let etcd = &backing.etcd.external;
            let files = [&etcd.tls.ca_file, &etcd.tls.cert_file, &etcd.tls.key_file];
            ("controlPlane.backingStore.etcd.external.endpoint", &etcd.endpoint, files)
        }
        StoreType::EmbeddedEtcd => {
            return Err(BackingStoreError::NoPod { path: "controlPlane.backingStore.etcd.embedded" });
        }
        StoreType::DeployedEtcd => {
            let path = "controlPlane.backingStore.etcd.deploy";
            let endpoint = Endpoint::parse(etcd).map_err(|source| BackingStoreError::Address { path, source })?;
            return Ok(Some((endpoint, TlsFiles::default())));
        }
    };
    if address.is_empty() {
        return Err(BackingStoreError::Missing { path });
    }
    let mut address = address.clone();
    if config.store_type() == StoreType::ExternalEtcd && !address.contains("://") {
        // As vCluster has it: host and port are enough.
        address = format!("https://{address}");
    }
    let endpoint = Endpoint::parse(&address).map_err(|source| BackingStoreError::Address { path, source })?;
    if !endpoint.is_shared() {
        return Err(BackingStoreError::NotExternal { path, endpoint: endpoint.to_string() });
    }
    let [ca_file, cert_file, key_file] = files.map(|file| (!file.is_empty()).then(|| PathBuf::from(file)));
    Ok(Some((endpoint, TlsFiles { ca_file, cert_file, key_file })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_found_in_the_configuration() {
        let table = [
            ("{}", Ok(None)),
            (
                "controlPlane: {backingStore: {database: {external: {enabled: true, dataSource: 'postgres://me:pw@db/kube', caFile: /ca}}}}",
                Ok(Some(("postgres://me@db/kube", Some("/ca")))),
            ),
            (
                "controlPlane: {backingStore: {database: {external: {enabled: true, dataSource: 'mysql://me:pw@tcp(db:3306)/kube'}}}}",
                Ok(Some(("mysql://me@tcp(db:3306)/kube", None))),
            ),
            (
                "controlPlane: {backingStore: {etcd: {external: {enabled: true, endpoint: 'etcd:2379', tls: {caFile: /ca}}}}}",
                Ok(Some(("https://etcd:2379", Some("/ca")))),
            ),
            (
                "controlPlane: {backingStore: {etcd: {deploy: {enabled: true}}}}",
                Ok(Some(("https://a-etcd.ns:2379", None))),
            ),
            (
                "controlPlane: {backingStore: {database: {external: {enabled: true, dataSource: /data/state.db}}}}",
                Err(
                    "controlPlane.backingStore.database.external.dataSource: sqlite:///data/state.db is not a database server",
                ),
            ),
        ];
        for (text, expected) in table {
            let config = Config::from_yaml("vcluster.yaml", text).expect("a configuration");
            let found = endpoint(&config, "https://a-etcd.ns:2379").map_err(|error| error.to_string());
            let found = found.as_ref().map_err(String::as_str).map(|found| {
                let found = found.as_ref();
                found.map(|(endpoint, tls)| (endpoint.to_string(), tls.ca_file.clone()))
            });
            let expected = expected.map(|found| {
                found.map(|(endpoint, ca): (&str, Option<&str>)| (endpoint.to_string(), ca.map(PathBuf::from)))
            });
            assert_eq!(found, expected, "{text}");
        }
    }
}
