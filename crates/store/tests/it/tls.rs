//! TLS towards real servers: who is trusted, and what is said when nobody is. Where a server is not installed its test says that
//! it is skipped.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use pki::{Pair, Request, Usage};
use store::servers::{Kind, Server, ServerTls, StartError};
use store::{Endpoint, Expect, Op, Options, TlsFiles};

/// Authorities and certificates of one test.
struct Certificates {
    folder: tempfile::TempDir,
    authority: Pair,
}

fn issue(authority: &Pair, usage: Usage, now: SystemTime) -> Pair {
    let request = Request { common_name: "alcove", organizations: &[], usage };
    pki::issue_at(authority, &request, now).expect("a certificate")
}

impl Certificates {
    fn new() -> Certificates {
        let folder = tempfile::tempdir().expect("a temporary directory");
        Certificates { folder, authority: pki::authority("stores").expect("an authority") }
    }

    fn server(&self, names: &[&str], now: SystemTime, clients: bool) -> ServerTls {
        let names = names.iter().map(|name| (*name).to_string()).collect();
        let pair = issue(&self.authority, Usage::Server(names), now);
        let client_authorities = clients.then(|| self.authority.certificate.clone());
        ServerTls { client_authorities, certificate: pair.certificate, key: pair.key }
    }

    fn file(&self, name: &str, text: &str) -> Option<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        Some(path)
    }

    /// Trusting this authority.
    fn trusting(&self) -> TlsFiles {
        TlsFiles { ca_file: self.file("ca.crt", &self.authority.certificate), ..TlsFiles::default() }
    }

    /// Trusting this authority, with a certificate of it.
    fn with_client(&self) -> TlsFiles {
        let pair = issue(&self.authority, Usage::Client, SystemTime::now());
        TlsFiles {
            cert_file: self.file("client.crt", &pair.certificate),
            key_file: self.file("client.key", &pair.key),
            ..self.trusting()
        }
    }

    /// Trusting somebody else.
    fn stranger(&self) -> TlsFiles {
        let other = pki::authority("stores").expect("an authority");
        TlsFiles { ca_file: self.file("other.crt", &other.certificate), ..TlsFiles::default() }
    }
}

fn server(kind: Kind, folder: &Path, tls: ServerTls) -> Option<Server> {
    match Server::start_with(kind, folder, Some(tls)) {
        Ok(server) => Some(server),
        Err(StartError::NotInstalled(what)) => {
            println!("skipped: {what} is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Writes through one store and reads through another.
async fn works(url: &str, tls: &TlsFiles) -> Result<(), String> {
    let endpoint = Endpoint::parse(url).expect("an address");
    let text = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            text += &format!(": {cause}");
            next = cause.source();
        }
        text
    };
    let began = Instant::now();
    let store = endpoint.open(tls, Options::default()).await.map_err(|error| text(&error));
    assert!(began.elapsed() < Duration::from_secs(15), "an answer took {:?}", began.elapsed());
    let store = store?;
    let op = Op::Put { value: Bytes::from_static(b"1"), lease: 0 };
    store.txn(Bytes::from_static(b"/a"), Expect::Any, op).await.map_err(|error| text(&error))?;
    let other = endpoint.open(tls, Options::default()).await.map_err(|error| text(&error))?;
    assert_eq!(other.get(b"/a", 0).await.expect("readable").expect("there").value, "1");
    store.close().await;
    other.close().await;
    Ok(())
}

/// (parameter of the address, files, part of the complaint or nothing when it works)
type Row<'a> = (&'a str, TlsFiles, Option<&'a [&'a str]>);

async fn check(what: &str, url: &str, table: &[Row<'_>]) {
    for (parameter, files, complaint) in table {
        let address = if parameter.is_empty() { url.to_string() } else { format!("{url}?{parameter}") };
        let found = works(&address, files).await;
        match (&found, complaint) {
            (Ok(()), None) => {}
            (Err(said), Some(any)) if any.iter().any(|part| said.contains(part)) => {}
            _ => panic!("{what}, {parameter:?} with {files:?}: {found:?}, expected {complaint:?}"),
        }
    }
}

const UNKNOWN: Option<&[&str]> = Some(&["UnknownIssuer", "invalid peer certificate"]);
const OTHER_NAME: Option<&[&str]> = Some(&["not valid for name", "NotValidForName"]);
const EXPIRED: Option<&[&str]> = Some(&["Expired", "expired"]);

/// A client's certificate is asked for: with none, or one of somebody else, there is no connection.
async fn clients_need_a_certificate(kind: Kind, parameter: &str, complaint: Option<&[&str]>) {
    let (certificates, stranger) = (Certificates::new(), Certificates::new());
    let tls = certificates.server(&["127.0.0.1"], SystemTime::now(), true);
    let Some(server) = server(kind, certificates.folder.path(), tls) else { return };
    let foreign = TlsFiles { ca_file: certificates.trusting().ca_file, ..stranger.with_client() };
    let half = TlsFiles { key_file: None, ..certificates.with_client() };
    let table = [
        (parameter, certificates.with_client(), None),
        (parameter, certificates.trusting(), complaint),
        (parameter, foreign, complaint),
        (parameter, half, Some(&["given together"][..])),
    ];
    check("with client certificates", &server.url("tls"), &table).await;
}

/// What counts at the server's certificate: its authority, its name, its time.
async fn servers_are_checked(kind: Kind, parameter: &str) {
    let long_ago = SystemTime::now() - Duration::from_secs(500 * 24 * 3600);
    let certificates = Certificates::new();
    let folder = certificates.folder.path();
    let tls = certificates.server(&["127.0.0.1"], SystemTime::now(), false);
    let Some(good) = server(kind, folder, tls) else { return };
    let table = [(parameter, certificates.trusting(), None), (parameter, certificates.stranger(), UNKNOWN)];
    check("a good server", &good.url("tls"), &table).await;
    let absent = TlsFiles { ca_file: Some(folder.join("absent.crt")), ..TlsFiles::default() };
    check("no file", &good.url("tls"), &[(parameter, absent, Some(&["absent.crt", "No such file"]))]).await;
    drop(good);
    let tls = certificates.server(&["store.example"], SystemTime::now(), false);
    let named = server(kind, folder, tls).expect("installed");
    check("a server with another name", &named.url("tls"), &[(parameter, certificates.trusting(), OTHER_NAME)]).await;
    drop(named);
    let expired = server(kind, folder, certificates.server(&["127.0.0.1"], long_ago, false)).expect("installed");
    check("an expired server", &expired.url("tls"), &[(parameter, certificates.trusting(), EXPIRED)]).await;
}

/// A server of TLS 1.3 refuses a client after the client's part of the handshake: the client hears of it by the alert when it
/// reads first, and by the closed connection when it was just writing.
const HANG_UP: [&str; 6] =
    ["CertificateRequired", "BadCertificate", "UnknownCA", "closed", "Connection reset", "roken pipe"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_checks_clients_and_is_checked() {
    let refused = [&["certificate"][..], &HANG_UP].concat();
    clients_need_a_certificate(Kind::Postgres, "sslmode=verify-full", Some(&refused)).await;
    servers_are_checked(Kind::Postgres, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_checks_clients_and_is_checked() {
    let refused = [&["Access denied"][..], &HANG_UP].concat();
    clients_need_a_certificate(Kind::Mysql, "tls=true", Some(&refused)).await;
    servers_are_checked(Kind::Mysql, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_checks_clients_and_is_checked() {
    clients_need_a_certificate(Kind::Etcd, "", Some(&HANG_UP)).await;
    servers_are_checked(Kind::Etcd, "").await;
}

/// How far a server is trusted is said in the address, in the words of PostgreSQL and of Go's driver for MySQL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_a_server_is_trusted_is_said_in_the_address() {
    let certificates = Certificates::new();
    let tls = |names: &[&str]| certificates.server(names, SystemTime::now(), false);
    let none = TlsFiles::default;
    let folder = certificates.folder.path();
    if let Some(server) = server(Kind::Postgres, folder, tls(&["store.example"])) {
        let authority = certificates.trusting().ca_file.expect("a file");
        let named = format!("sslmode=verify-ca&sslrootcert={}", authority.display());
        let table = [
            ("sslmode=disable", none(), Some(&["no encryption", "pg_hba.conf"][..])),
            ("sslmode=prefer", none(), None),
            ("sslmode=require", none(), None),
            ("sslmode=require", certificates.trusting(), None),
            ("sslmode=require", certificates.stranger(), UNKNOWN),
            ("sslmode=verify-ca", certificates.trusting(), None),
            ("sslmode=verify-ca", certificates.stranger(), UNKNOWN),
            ("sslmode=verify-full", certificates.trusting(), OTHER_NAME),
            (named.as_str(), none(), None),
            ("sslmode=sometimes", none(), Some(&["sslmode \"sometimes\" is unknown"])),
        ];
        check("postgres", &server.url("tls"), &table).await;
    }
    if let Some(server) = server(Kind::Mysql, folder, tls(&["store.example"])) {
        let table = [
            ("tls=false", none(), Some(&["Access denied"][..])),
            ("tls=skip-verify", none(), None),
            ("tls=preferred", none(), None),
            ("tls=true", certificates.trusting(), OTHER_NAME),
            ("tls=true", certificates.stranger(), UNKNOWN),
            ("tls=sometimes", none(), Some(&["tls must be"])),
        ];
        check("mariadb", &server.url("tls"), &table).await;
    }
}
