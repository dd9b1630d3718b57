//! Connections: address, TLS, time limits, the database made when it is not there.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{ClientIdentity, Conn, Error, Opts, OptsBuilder, Params, Row, SslOpts};

use crate::error::BackendError;
use crate::tls::TlsFiles;

/// Longest time for a connection to be there, and for an answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);

const DATABASE: &str = "kubernetes";
const UNKNOWN_DATABASE: u16 = 1049;

/// Where the database is and how to reach it.
#[derive(Clone)]
pub(super) struct Address {
    opts: OptsBuilder,
    database: String,
    /// Without password.
    pub shown: String,
}

impl Address {
    /// Reads `mysql://USER:PASSWORD@tcp(HOST:PORT)/DATABASE?tls=...` (as Go programs write it), also `unix(PATH)`, and
    /// `mysql://USER:PASSWORD@HOST:PORT/DATABASE`.
    pub fn parse(url: &str, files: &TlsFiles) -> Result<Address, BackendError> {
        let shown = crate::endpoint::without_password(url);
        let wrong = |why: &str| BackendError::new(format!("use the address {shown}"), why);
        let rest = url.strip_prefix("mysql://").unwrap_or(url);
        let (rest, query) = match rest.rsplit_once('?') {
            // A question mark in a password comes before the host.
            Some((rest, query)) if !query.contains('@') => (rest, query),
            _ => (rest, ""),
        };
        // Passwords may hold any character here: the last @ and the last slash count.
        let (user, place) = rest.rsplit_once('@').unwrap_or(("root", rest));
        let (user, password) = user.split_once(':').map_or((user, None), |(user, password)| (user, Some(password)));
        let (target, database) = match place.rfind(')') {
            Some(end) => (&place[..=end], place[end + 1..].strip_prefix('/').unwrap_or_default()),
            None => place.split_once('/').unwrap_or((place, "")),
        };
        let database = if database.is_empty() { DATABASE } else { database }.to_string();
        let mut opts = OptsBuilder::default().user(Some(user)).pass(password).db_name(Some(&database));
        opts = opts
            .prefer_socket(false)
            .tcp_keepalive(Some(Duration::from_secs(10)))
            .tcp_nodelay(true)
            .stmt_cache_size(Some(128));
        let inside = |scheme: &str| {
            target.strip_prefix(scheme).and_then(|rest| rest.strip_prefix('(')).and_then(|rest| rest.strip_suffix(')'))
        };
        if let Some(path) = inside("unix") {
            opts = opts.socket(Some(path));
        } else {
            let target = inside("tcp").unwrap_or(target);
            let (host, port) = match target.rsplit_once(':') {
                Some((host, port)) if !host.ends_with(':') && !port.contains(']') => {
                    (host, port.parse().map_err(|_| wrong("the port is not a number"))?)
                }
                _ => (target, 3306),
            };
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let host = if host.is_empty() { "127.0.0.1" } else { host };
            opts = opts.ip_or_hostname(host).tcp_port(port);
        }
        let mut tls = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            if let Some(mode) = pair.strip_prefix("tls=") {
                tls = Some(mode.to_string());
            }
        }
        // Given files are meant to be used.
        let tls = tls.unwrap_or_else(|| if files.is_empty() { "false" } else { "true" }.to_string());
        let mut ssl = SslOpts::default();
        if let Some(path) = &files.ca_file {
            // These alone: a public authority has no say about one's own server.
            ssl = ssl.with_root_certs(vec![path.clone().into()]).with_disable_built_in_roots(true);
        }
        if let Some((certificate, key)) = files.identity()? {
            let identity = ClientIdentity::new(certificate.clone().into(), key.clone().into());
            ssl = ssl.with_client_identity(Some(identity));
        }
        opts = match tls.as_str() {
            "false" => opts,
            // "preferred" of Go's driver falls back to no TLS; this does not.
            "skip-verify" | "preferred" => {
                opts.ssl_opts(Some(ssl.with_danger_accept_invalid_certs(true).with_danger_skip_domain_validation(true)))
            }
            "true" | "custom" => opts.ssl_opts(Some(ssl)),
            _ => return Err(wrong("tls must be true, custom, false, skip-verify or preferred")),
        };
        Ok(Address { opts, database, shown })
    }

    /// Connects for statements of this kind.
    pub async fn connect(&self, isolation: &str) -> Result<Conn, BackendError> {
        let mut connection =
            self.connect_to(self.opts.clone()).await?.map_err(|error| self.failure("connect to", error))?;
        let settings = format!(
            "SET SESSION TRANSACTION ISOLATION LEVEL {isolation}, SESSION innodb_lock_wait_timeout = 8, \
             SESSION wait_timeout = 600, SESSION sql_mode = 'STRICT_ALL_TABLES'"
        );
        // The first is a statement of its own in older servers.
        let (first, rest) = settings.split_once(", ").unwrap_or((&settings, ""));
        self.within(async {
            connection.query_drop(first).await?;
            connection.query_drop(format!("SET {rest}")).await
        })
        .await?;
        Ok(connection)
    }

    async fn connect_to(&self, opts: OptsBuilder) -> Result<Result<Conn, Error>, BackendError> {
        let connect = Conn::new(Opts::from(opts));
        tokio::time::timeout(CONNECT, connect)
            .await
            .map_err(|_| BackendError::new(format!("connect to {}", self.shown), "there was no answer in time"))
    }

    /// Makes the database if it is not there and this user may make it.
    pub async fn ensure_database(&self) -> Result<(), BackendError> {
        match self.connect_to(self.opts.clone()).await? {
            Ok(connection) => {
                drop(connection);
                return Ok(());
            }
            Err(Error::Server(error)) if error.code == UNKNOWN_DATABASE => {}
            Err(error) => return Err(self.failure("connect to", error)),
        }
        let opts = self.opts.clone().db_name(None::<String>);
        let mut connection = self.connect_to(opts).await?.map_err(|error| self.failure("connect to", error))?;
        let statement = format!("CREATE DATABASE IF NOT EXISTS `{}`", self.database.replace('`', "``"));
        self.within(connection.query_drop(statement)).await
    }

    /// Removes the database with everything in it.
    pub async fn drop_database(&self) -> Result<(), BackendError> {
        let opts = self.opts.clone().db_name(None::<String>);
        let mut connection = self.connect_to(opts).await?.map_err(|error| self.failure("connect to", error))?;
        let statement = format!("DROP DATABASE IF EXISTS `{}`", self.database.replace('`', "``"));
        self.within(connection.query_drop(statement)).await
    }

    /// An answer within the time limit.
    pub async fn within<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, BackendError> {
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(answer) => answer.map_err(|error| self.failure("ask", error)),
            Err(_) => Err(BackendError::new(format!("ask {}", self.shown), "there was no answer in time")),
        }
    }

    pub fn failure(&self, doing: &str, error: Error) -> BackendError {
        BackendError::new(format!("{doing} {}", self.shown), error)
    }
}

/// The rows of a statement.
pub(super) async fn rows(
    connection: &mut Conn,
    statement: &str,
    parameters: impl Into<Params> + Send,
) -> Result<Vec<Row>, Error> {
    connection.exec(statement, parameters).await
}
