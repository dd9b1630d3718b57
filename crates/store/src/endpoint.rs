//! Addresses of stores, in the notation that vCluster and kine have.
//!
//! - `memory`
//! - `sqlite:///path/to/state.db`, or only a path
//! - `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=...`
//! - `mysql://USER:PASSWORD@tcp(HOST:PORT)/DATABASE?tls=...`
//! - `http://HOST:2379,http://HOST:2379` and `https://...`: etcd
//!
//! Invariant: what is shown of an address holds no password.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::error::OpenError;
use crate::options::Options;
use crate::store::Store;
use crate::tls::TlsFiles;
use crate::types::Snapshot;
use crate::{Backend, Etcd, Memory, Mysql, Postgres, Sqlite, SqliteOptions};

/// Where a store is.
#[derive(Clone, PartialEq, Eq)]
pub enum Endpoint {
    Memory,
    Sqlite(PathBuf),
    Postgres(String),
    Mysql(String),
    /// The members of one etcd cluster.
    Etcd(Vec<String>),
}

/// An address that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("the address of the store is empty")]
    Empty,
    #[error(
        "{shown}: no kind of store has addresses that begin with {scheme}://; there are sqlite, postgres, mysql, http and https (etcd)"
    )]
    UnknownScheme { shown: String, scheme: String },
    #[error("{shown}: {why}")]
    Invalid { shown: String, why: String },
}

impl Endpoint {
    /// Reads an address.
    pub fn parse(text: &str) -> Result<Endpoint, EndpointError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        if text == "memory" {
            return Ok(Endpoint::Memory);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            // kine takes `user:pass@tcp(host)/db` for MySQL only with its scheme; anything without one is a path.
            return Ok(Endpoint::Sqlite(PathBuf::from(text)));
        };
        let invalid = |why: &str| EndpointError::Invalid { shown: without_password(text), why: why.to_string() };
        match scheme {
            "sqlite" | "sqlite3" => {
                let path = rest.split_once('?').map_or(rest, |(path, _)| path);
                if path.is_empty() {
                    return Err(invalid("a path is missing"));
                }
                Ok(Endpoint::Sqlite(PathBuf::from(path)))
            }
            "postgres" | "postgresql" => Ok(Endpoint::Postgres(text.to_string())),
            "mysql" => Ok(Endpoint::Mysql(text.to_string())),
            "etcd" | "http" | "https" => {
                let members: Vec<String> = text
                    .split(',')
                    .map(str::trim)
                    .filter(|member| !member.is_empty())
                    .map(|member| {
                        member.strip_prefix("etcd://").map_or(member.to_string(), |rest| format!("http://{rest}"))
                    })
                    .collect();
                match members.iter().find(|member| !member.starts_with("http://") && !member.starts_with("https://")) {
                    Some(member) => Err(invalid(&format!("{member} does not begin with http:// or https://"))),
                    None => Ok(Endpoint::Etcd(members)),
                }
            }
            other => Err(EndpointError::UnknownScheme { shown: without_password(text), scheme: other.to_string() }),
        }
    }

    /// The backend at this address; a database or file is made if it is not there.
    // Boxed: the clients of three servers are compiled here alone, not in each crate that opens a store.
    pub fn backend<'a>(&'a self, tls: &'a TlsFiles) -> BoxFuture<'a, Result<Arc<dyn Backend>, OpenError>> {
        Box::pin(self.open_backend(tls))
    }

    async fn open_backend(&self, tls: &TlsFiles) -> Result<Arc<dyn Backend>, OpenError> {
        Ok(match self {
            Endpoint::Memory => Arc::new(Memory::new()),
            Endpoint::Sqlite(path) => Arc::new(Sqlite::open(path, SqliteOptions::default()).await?),
            Endpoint::Postgres(url) => Arc::new(Postgres::open(url, tls).await?),
            Endpoint::Mysql(url) => Arc::new(Mysql::open(url, tls).await?),
            Endpoint::Etcd(members) => Arc::new(Etcd::open(members, tls).await?),
        })
    }

    /// The store at this address.
    pub async fn open(&self, tls: &TlsFiles, options: Options) -> Result<Store, OpenError> {
        Store::open(self.backend(tls).await?, options).await
    }

    /// The empty store at this address, filled with a snapshot.
    pub async fn open_from(&self, snapshot: &Snapshot, tls: &TlsFiles, options: Options) -> Result<Store, OpenError> {
        Store::open_from(snapshot, self.backend(tls).await?, options).await
    }

    /// The address of another database on the same server: the name of this one, `_` and `suffix`. None when there are no
    /// databases.
    pub fn sibling(&self, suffix: &str) -> Option<Endpoint> {
        let of = |url: &str| {
            let (address, parameters) = match url.rsplit_once('?') {
                // A question mark in a password comes before the host.
                Some((address, parameters)) if !parameters.contains('@') => (address, format!("?{parameters}")),
                _ => (url, String::new()),
            };
            // The host begins behind the last @; the path of a Unix socket is in parentheses.
            let host = address.rfind('@').or(address.find("://").map(|at| at + 2)).map_or(0, |at| at + 1);
            let end = address[host..].rfind(')').map_or(host, |at| host + at);
            let (place, database) = match address[end..].find('/') {
                Some(at) => (&address[..end + at], &address[end + at + 1..]),
                None => (address, ""),
            };
            let database = if database.is_empty() { "kubernetes" } else { database };
            format!("{place}/{database}_{suffix}{parameters}")
        };
        match self {
            Endpoint::Postgres(url) => Some(Endpoint::Postgres(of(url))),
            Endpoint::Mysql(url) => Some(Endpoint::Mysql(of(url))),
            Endpoint::Memory | Endpoint::Sqlite(_) | Endpoint::Etcd(_) => None,
        }
    }

    /// Removes the database at this address with everything in it. Who still uses it finds it gone.
    pub async fn remove_database(&self, tls: &TlsFiles) -> Result<(), OpenError> {
        let remove = async {
            match self {
                Endpoint::Postgres(url) => Postgres::remove(url, tls).await,
                Endpoint::Mysql(url) => Mysql::remove(url, tls).await,
                Endpoint::Memory | Endpoint::Sqlite(_) | Endpoint::Etcd(_) => {
                    Err(crate::BackendError::new(format!("remove the database at {self}"), "there are no databases"))
                }
            }
        };
        Ok(Box::pin(remove).await?)
    }

    /// Whether several processes may have this store open at once.
    pub fn is_shared(&self) -> bool {
        matches!(self, Endpoint::Postgres(_) | Endpoint::Mysql(_) | Endpoint::Etcd(_))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Memory => f.write_str("memory"),
            Endpoint::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Endpoint::Postgres(url) | Endpoint::Mysql(url) => f.write_str(&without_password(url)),
            Endpoint::Etcd(members) => f.write_str(&without_password(&members.join(","))),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address without its password and without its parameters, which may hold secrets too.
pub(crate) fn without_password(url: &str) -> String {
    let base = url.split_once('?').map_or(url, |(base, _)| base);
    let Some((scheme, rest)) = base.split_once("://") else { return base.to_string() };
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split_once(':').map_or(user, |(user, _)| user);
            format!("{scheme}://{user}@{host}")
        }
        None => base.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kine_reads_them_and_show_no_password() {
        let table = [
            ("memory", Ok("memory")),
            ("/data/state.db", Ok("sqlite:///data/state.db")),
            ("sqlite:///data/state.db?_journal=WAL", Ok("sqlite:///data/state.db")),
            ("postgres://me:p%40ss@db:5432/kube?sslmode=disable", Ok("postgres://me@db:5432/kube")),
            ("postgresql://db/kube", Ok("postgresql://db/kube")),
            ("mysql://root:a@b@tcp(10.0.0.1:3306)/kube", Ok("mysql://root@tcp(10.0.0.1:3306)/kube")),
            ("http://a:2379, http://b:2379", Ok("http://a:2379,http://b:2379")),
            ("https://a:2379", Ok("https://a:2379")),
            ("", Err("the address of the store is empty")),
            ("sqlite://", Err("sqlite://: a path is missing")),
            ("http://a:1,b:2", Err("http://a:1,b:2: b:2 does not begin with http:// or https://")),
            (
                "nats://u:secret@x",
                Err(
                    "nats://u@x: no kind of store has addresses that begin with nats://; there are sqlite, postgres, mysql, http and https (etcd)",
                ),
            ),
        ];
        for (text, expected) in table {
            let found = Endpoint::parse(text).map(|endpoint| endpoint.to_string()).map_err(|error| error.to_string());
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{text}");
        }
    }

    #[test]
    fn another_database_of_the_same_server_has_the_name_of_the_first_and_a_suffix() {
        for (address, want) in [
            ("postgres://me:pw@db:5432/kube?sslmode=disable", Some("postgres://me:pw@db:5432/kube_a?sslmode=disable")),
            ("postgres://db", Some("postgres://db/kubernetes_a")),
            ("postgres://me@db/?x=1", Some("postgres://me@db/kubernetes_a?x=1")),
            ("mysql://root:a/b@c@tcp(10.0.0.1:3306)/kube", Some("mysql://root:a/b@c@tcp(10.0.0.1:3306)/kube_a")),
            ("mysql://root:why?@unix(/run/my.sock)/", Some("mysql://root:why?@unix(/run/my.sock)/kubernetes_a")),
            ("http://etcd:2379", None),
            ("/data/state.db", None),
        ] {
            let sibling = Endpoint::parse(address).unwrap().sibling("a");
            let got = sibling.map(|endpoint| match endpoint {
                Endpoint::Postgres(url) | Endpoint::Mysql(url) => url,
                other => panic!("{other}"),
            });
            assert_eq!(got.as_deref(), want, "{address}");
        }
    }
}
