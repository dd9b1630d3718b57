//! `alcove etcd`: etcd's API over a store, for kube-apiserver, etcdctl and other clients of etcd.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args as ClapArgs;
use etcdface::{Face, Listener};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use store::{Endpoint, Options, TlsFiles};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::commands::store::address;
use crate::failure::Failure;
use crate::signals;
use crate::ui::Ui;

#[derive(Clone, Debug, ClapArgs)]
pub struct Etcd {
    /// Addresses to listen on: http://, https:// or unix://; port 0 takes a free one
    #[arg(long, value_delimiter = ',', value_name = "URLS", default_value = "http://127.0.0.1:2379")]
    pub listen_client_urls: Vec<String>,
    /// Store to serve [default: state.db below --data-dir, else memory]
    #[arg(long, value_name = "ADDRESS")]
    pub store: Option<String>,
    /// Authorities for TLS towards the store
    #[arg(long, value_name = "FILE")]
    pub store_ca_file: Option<PathBuf>,
    /// Client certificate for the store
    #[arg(long, value_name = "FILE", requires = "store_key_file")]
    pub store_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "store_cert_file")]
    pub store_key_file: Option<PathBuf>,
    /// Serving certificate for https:// addresses
    #[arg(long, value_name = "FILE", requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    /// Authorities of client certificates; with it, clients need one
    #[arg(long, value_name = "FILE")]
    pub trusted_ca_file: Option<PathBuf>,
    /// Write the addresses that are served to this file once they are
    #[arg(long, value_name = "FILE")]
    pub address_out: Option<PathBuf>,
}

pub async fn run(data_dir: Option<PathBuf>, args: &Etcd, ui: &Ui) -> anyhow::Result<ExitCode> {
    let endpoint = match (&args.store, data_dir) {
        (Some(text), _) => address("--store", text)?,
        (None, Some(folder)) => {
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            Endpoint::Sqlite(folder.join("state.db"))
        }
        (None, None) => Endpoint::Memory,
    };
    let mut listeners = Vec::new();
    let mut served = Vec::new();
    for url in &args.listen_client_urls {
        let (listener, url) = listen(url, args).await?;
        listeners.push(listener);
        served.push(url);
    }
    let tls = TlsFiles {
        ca_file: args.store_ca_file.clone(),
        cert_file: args.store_cert_file.clone(),
        key_file: args.store_key_file.clone(),
    };
    let store =
        endpoint.open(&tls, Options::default()).await.with_context(|| format!("cannot open the store {endpoint}"))?;
    let face = Face::new(store.clone(), etcdface::Options { client_urls: served.clone(), ..Default::default() });
    let stop = CancellationToken::new();
    let mut serving = tokio::task::JoinSet::new();
    for listener in listeners {
        let (face, stop) = (face.clone(), stop.clone());
        serving.spawn(async move { face.serve(listener, stop).await });
    }
    if let Some(path) = &args.address_out {
        std::fs::write(path, served.join(",")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    ui.done(&format!("serving etcd's API over {endpoint} on {}", served.join(", ")));
    signals::wait().await;
    ui.info("stopping");
    stop.cancel();
    while let Some(ended) = serving.join_next().await {
        ended.context("serving ended")??;
    }
    store.close().await;
    Ok(ExitCode::SUCCESS)
}

async fn listen(url: &str, args: &Etcd) -> anyhow::Result<(Listener, String)> {
    let wrong = |why: String| anyhow::Error::from(Failure::invalid(format!("--listen-client-urls {url}: {why}")));
    let (scheme, place) = url.split_once("://").ok_or_else(|| wrong("it must begin with http://".to_string()))?;
    if scheme == "unix" {
        let path = PathBuf::from(place);
        // What a process that was killed has left.
        if std::os::unix::net::UnixStream::connect(&path).is_err() && path.exists() {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let listener =
            UnixListener::bind(&path).map_err(|error| Failure::failed(format!("cannot listen on {url}: {error}")))?;
        return Ok((Listener::Unix(listener), url.to_string()));
    }
    if scheme != "http" && scheme != "https" {
        return Err(wrong(format!("{scheme}:// is not known; there are http, https and unix")));
    }
    let listener =
        TcpListener::bind(place).await.map_err(|error| Failure::failed(format!("cannot listen on {url}: {error}")))?;
    let bound = format!("{scheme}://{}", listener.local_addr()?);
    if scheme == "http" {
        return Ok((Listener::Tcp(listener), bound));
    }
    let (Some(certificate), Some(key)) = (&args.cert_file, &args.key_file) else {
        return Err(wrong("it needs --cert-file and --key-file".to_string()));
    };
    let read = |path: &PathBuf| -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        found.map_err(|error| Failure::invalid(format!("cannot read {}: {error}", path.display())).into())
    };
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| Failure::invalid(format!("cannot read {}: {error}", key.display())))?;
    let builder = rustls::ServerConfig::builder();
    let builder = match &args.trusted_ca_file {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in read(path)? {
                roots.add(certificate).with_context(|| format!("cannot use {}", path.display()))?;
            }
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(read(certificate)?, secret).context("cannot use the certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((Listener::Tls(listener, Arc::new(config)), bound))
}
