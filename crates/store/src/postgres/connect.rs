//! Connections: address, TLS, time limits, the database made when it is not there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio::sync::mpsc;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::BackendError;
use crate::tls::{TlsFiles, Trust, client_config};

/// Longest time for a connection to be there, and for an answer.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// Notifications that wait; more of them say nothing new.
const NOTIFICATIONS_MAX: usize = 64;

/// Where the database is and how to reach it.
#[derive(Clone)]
pub(super) struct Address {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// Without password.
    pub shown: String,
}

/// A connection. Dropping it ends it.
pub(super) struct Link {
    pub client: Arc<Client>,
    pub notifications: mpsc::Receiver<String>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Address {
    /// Reads `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=...`, with libpq's names for TLS files. The files given
    /// beside the address count where the address names none.
    pub fn parse(url: &str, files: &TlsFiles) -> Result<Address, BackendError> {
        let shown = crate::endpoint::without_password(url);
        let wrong = |why: String| BackendError::new(format!("use the address {shown}"), why);
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let mut files = files.clone();
        let mut mode = None;
        let mut rest: Vec<&str> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = percent_decode_str(value).decode_utf8().map_err(|error| wrong(error.to_string()))?.into_owned();
            match name {
                "sslmode" => mode = Some(text),
                "sslrootcert" => files.ca_file = Some(PathBuf::from(text)),
                "sslcert" => files.cert_file = Some(PathBuf::from(text)),
                "sslkey" => files.key_file = Some(PathBuf::from(text)),
                _ => rest.push(pair),
            }
        }
        let mut bare = base.to_string();
        if !rest.is_empty() {
            bare = format!("{base}?{}", rest.join("&"));
        }
        let mut config: Config = bare.parse().map_err(|error: tokio_postgres::Error| wrong(error.to_string()))?;
        if config.get_hosts().is_empty() {
            config.host("localhost");
        }
        if config.get_dbname().is_none() {
            config.dbname("kubernetes");
        }
        if config.get_user().is_none() {
            config.user("postgres");
        }
        if config.get_application_name().is_none() {
            config.application_name("alcove");
        }
        config.connect_timeout(CONNECT).keepalives(true).keepalives_idle(Duration::from_secs(10));
        config.tcp_user_timeout(ANSWER);
        // Given files are meant to be used.
        let mode = mode.unwrap_or_else(|| if files.is_empty() { "prefer" } else { "verify-full" }.to_string());
        let (ssl, trust) = match mode.as_str() {
            "disable" => (SslMode::Disable, None),
            "allow" | "prefer" => (SslMode::Prefer, Some(Trust::Anyone)),
            // libpq: with authorities given, `require` checks them.
            "require" if files.ca_file.is_some() => (SslMode::Require, Some(Trust::Authority)),
            "require" => (SslMode::Require, Some(Trust::Anyone)),
            "verify-ca" => (SslMode::Require, Some(Trust::Authority)),
            "verify-full" => (SslMode::Require, Some(Trust::Name)),
            other => return Err(wrong(format!("sslmode {other:?} is unknown"))),
        };
        config.ssl_mode(ssl);
        let tls = trust.map(|trust| client_config(&files, trust).map(MakeRustlsConnect::new)).transpose()?;
        Ok(Address { config, tls, shown })
    }

    /// Connects. The sessions of several replicas wait for each other; none of them may keep the others waiting for long.
    pub async fn connect(&self) -> Result<Link, BackendError> {
        let link = self.connect_to(&self.config).await.map_err(|error| self.failure("connect to", error))?;
        let settings = "SET idle_in_transaction_session_timeout = '8s'; SET statement_timeout = '30s'; \
                        SET synchronous_commit = on; SET client_min_messages = warning";
        self.within(link.client.batch_execute(settings)).await?;
        Ok(link)
    }

    /// Makes the database if it is not there and this user may make it.
    pub async fn ensure_database(&self) -> Result<(), BackendError> {
        match self.connect_to(&self.config).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() != Some(&SqlState::INVALID_CATALOG_NAME) => {
                return Err(self.failure("connect to", error));
            }
            Err(_) => {}
        }
        let name = self.config.get_dbname().unwrap_or_default().to_string();
        let mut config = self.config.clone();
        config.dbname("postgres");
        let link = self.connect_to(&config).await.map_err(|error| self.failure("connect to", error))?;
        let statement = format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""));
        match link.client.batch_execute(&statement).await {
            Err(error) if error.code() == Some(&SqlState::DUPLICATE_DATABASE) => Ok(()),
            // Another replica makes it right now.
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => Ok(()),
            Err(error) => Err(self.failure("make the database of", error)),
            Ok(()) => Ok(()),
        }
    }

    /// Removes the database with everything in it, and ends who still uses it.
    pub async fn drop_database(&self) -> Result<(), BackendError> {
        let name = self.config.get_dbname().unwrap_or_default().to_string();
        let mut config = self.config.clone();
        config.dbname("postgres");
        let link = self.connect_to(&config).await.map_err(|error| self.failure("connect to", error))?;
        let statement = format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", name.replace('"', "\"\""));
        self.within(link.client.batch_execute(&statement)).await
    }

    async fn connect_to(&self, config: &Config) -> Result<Link, tokio_postgres::Error> {
        match &self.tls {
            Some(tls) => Ok(start(config.connect(tls.clone()).await?)),
            None => Ok(start(config.connect(tokio_postgres::NoTls).await?)),
        }
    }

    /// An answer within the time limit.
    pub async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, BackendError> {
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(answer) => answer.map_err(|error| self.failure("ask", error)),
            Err(_) => Err(BackendError::new(format!("ask {}", self.shown), "there was no answer in time")),
        }
    }

    pub fn failure(&self, doing: &str, error: tokio_postgres::Error) -> BackendError {
        BackendError::new(format!("{doing} {}", self.shown), error)
    }
}

fn start<S, T>((client, mut connection): (Client, tokio_postgres::Connection<S, T>)) -> Link
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, notifications) = mpsc::channel(NOTIFICATIONS_MAX);
    let task = tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(told))) => drop(sender.try_send(told.payload().to_string())),
                Some(Ok(AsyncMessage::Notice(notice))) => tracing::debug!(%notice, "the database says"),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a database connection ended");
                    return;
                }
                None => return,
            }
        }
    });
    Link { client: Arc::new(client), notifications, task }
}
