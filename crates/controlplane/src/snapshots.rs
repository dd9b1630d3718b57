//! `snapshots.auto`: snapshots by the clock, and the removal of old ones.
//!
//! The leader takes them. Only snapshots with the cluster's name and a time in theirs are ever removed. A time that passes
//! while the control plane does not run (a cluster that sleeps has not changed either) is not made up for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use base64::Engine;
use config::Config;
use controllers::Schedule;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use snapshot::{Environment, Target, TargetError, UrlError};
use tokio_util::sync::CancellationToken;

use crate::host::{Host, HostError, SECRETS, failed};
use crate::operations::Operations;

/// The wall clock is looked at this often: it may be set.
const LOOK_PERIOD: Duration = Duration::from_secs(30);
/// Time in names: sorts as it passes.
const NAME_TIME: &str = "%Y%m%d-%H%M%S";
/// On Service `NAME`: the last snapshot, or why there is none.
const LAST_ANNOTATION: &str = "alcove.dev/last-snapshot";

/// Why a snapshot was not taken, or an old one not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AutoError {
    #[error("snapshots.auto.{path}: {reason}")]
    Config { path: &'static str, reason: String },
    #[error("snapshots.auto.storage")]
    Url(#[from] UrlError),
    #[error("the snapshot cannot be written")]
    Pack(#[from] std::io::Error),
    #[error("the storage")]
    Target(#[from] TargetError),
    #[error("the credentials")]
    Host(#[from] HostError),
}

/// What `snapshots.auto` says.
pub(crate) struct AutoSnapshots {
    pub name: String,
    pub config: Arc<Config>,
    pub operations: Arc<Operations>,
    /// Where Secrets with credentials are.
    pub host: Option<Host>,
}

impl AutoSnapshots {
    fn text(&self, path: &str) -> &str {
        self.config.at(&format!("snapshots.auto.{path}")).and_then(serde_json::Value::as_str).unwrap_or_default()
    }

    fn number(&self, path: &str) -> i64 {
        self.config.at(&format!("snapshots.auto.{path}")).and_then(serde_json::Value::as_i64).unwrap_or(0)
    }

    /// When snapshots are taken; nothing when none are.
    fn schedule(&self) -> Result<Option<(Schedule, TimeZone)>, AutoError> {
        if self.text("schedule").is_empty() {
            return Ok(None);
        }
        let wrong = |path, reason: String| AutoError::Config { path, reason };
        let schedule = Schedule::parse(self.text("schedule")).map_err(|error| wrong("schedule", error.to_string()))?;
        let zone = match self.text("timezone") {
            "" => TimeZone::UTC,
            name => TimeZone::get(name).map_err(|error| wrong("timezone", error.to_string()))?,
        };
        Ok(Some((schedule, zone)))
    }

    /// Takes snapshots until `cancel`.
    pub async fn run(self, cancel: CancellationToken) {
        let (schedule, zone) = match self.schedule() {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(cluster = self.name, error = %error, "no snapshots are taken");
                return;
            }
        };
        let mut since = Timestamp::now();
        while let Some(next) = schedule.next(since, &zone) {
            loop {
                let left = next.duration_since(Timestamp::now());
                let Ok(left) = Duration::try_from(left) else { break };
                tokio::select! {
                    // Cancel-safe: both only wait.
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(left.min(LOOK_PERIOD)) => {}
                }
                if left <= LOOK_PERIOD {
                    break;
                }
            }
            since = next.max(Timestamp::now());
            let taken = tokio::select! {
                () = cancel.cancelled() => return,
                taken = self.take(next) => taken,
            };
            let said = match taken {
                Ok(url) => {
                    tracing::info!(cluster = self.name, url, "a snapshot was taken");
                    url
                }
                Err(error) => {
                    let text = chain(&error);
                    tracing::error!(cluster = self.name, error = text, "a snapshot was not taken");
                    format!("Failed: {text}")
                }
            };
            if let Some(host) = &self.host
                && let Err(error) = host.annotate_service(&self.name, LAST_ANNOTATION, &format!("{next} {said}")).await
            {
                tracing::warn!(cluster = self.name, error = %error, "the last snapshot is not noted on the host");
            }
        }
    }

    /// Takes one snapshot and removes those that are too many or too old. Gives its URL, without secrets.
    pub async fn take(&self, now: Timestamp) -> Result<String, AutoError> {
        let secret = self.credentials().await?;
        let label = format!("{}-{}", self.name, now.strftime(NAME_TIME));
        let target = self.target(Some(&label), &secret)?;
        let file = tempfile::NamedTempFile::new()?;
        let (operations, path, url) = (Arc::clone(&self.operations), file.path().to_owned(), target.url());
        let packed = tokio::task::spawn_blocking(move || operations.write_snapshot(&path, &url)).await;
        packed.unwrap_or_else(|error| Err(std::io::Error::other(error)))?;
        target.put(file.path()).await?;
        self.tidy(now, &secret).await?;
        Ok(target.url())
    }

    async fn tidy(&self, now: Timestamp, secret: &BTreeMap<String, String>) -> Result<(), AutoError> {
        let (days, most) = (self.number("retention.period"), self.number("retention.maxSnapshots"));
        if days <= 0 && most <= 0 {
            return Ok(());
        }
        let mut labels: Vec<(Timestamp, String)> = self
            .target(None, secret)?
            .list()
            .await?
            .iter()
            .filter_map(|found| label_of(&self.name, &found.url))
            .collect();
        labels.sort();
        labels.reverse();
        for (index, (taken, label)) in labels.iter().enumerate() {
            let many = most > 0 && index as i64 >= most;
            let old = days > 0 && now.duration_since(*taken) > SignedDuration::from_hours(24 * days);
            if many || old {
                self.target(Some(label), secret)?.delete().await?;
                tracing::info!(cluster = self.name, label, "an old snapshot was removed");
            }
        }
        Ok(())
    }

    /// The place of one snapshot, or of all of them.
    fn target(&self, label: Option<&str>, secret: &BTreeMap<String, String>) -> Result<Target, AutoError> {
        let missing = |path| AutoError::Config { path, reason: "is missing".into() };
        let kind = self.text("storage.type");
        let path = match kind {
            "s3" => "storage.s3.url",
            "oci" => "storage.oci.repository",
            "container" => "storage.container.path",
            "azure" => "storage.azure.blobUrl",
            other => {
                let reason = format!("must be one of: s3, oci, container, azure; not {other:?}");
                return Err(AutoError::Config { path: "storage.type", reason });
            }
        };
        let place = self.text(path);
        if place.is_empty() {
            return Err(missing(path));
        }
        let (base, query) = match place.split_once('?') {
            Some((base, query)) => (base, format!("?{query}")),
            None => (place, String::new()),
        };
        let base = base.trim_end_matches('/');
        let file = label.map_or_else(String::new, |label| format!("/{label}.tar.gz"));
        let url = match kind {
            "s3" if base.starts_with("s3://") => format!("{base}{file}{query}"),
            "s3" => format!("s3://{base}{file}{query}"),
            "oci" => {
                let base = base.trim_start_matches("oci://");
                let tag = label.map_or_else(String::new, |label| format!(":{label}"));
                format!("oci://{base}{tag}{}", self.oci_query(&query, secret))
            }
            "container" => {
                let base = base.trim_start_matches("container://");
                let inside = self.operations.container_file(&format!("{base}{file}"));
                let inside = inside.map_err(|reason| AutoError::Config { path: "storage.container.path", reason })?;
                format!("file://{}", inside.display())
            }
            _ => format!("{base}{file}{query}"),
        };
        let variable = |name: &str| {
            if name == "HOME" {
                return Some("/".to_string());
            }
            names_of(name).iter().find_map(|key| secret.get(*key).cloned())
        };
        let docker =
            |path: &str| path.ends_with("/.docker/config.json").then(|| secret.get(".dockerconfigjson").cloned())?;
        Ok(Target::parse(&url, &Environment { variable: &variable, file: &docker })?)
    }

    /// User and password of a registry as parameters of its URL.
    fn oci_query(&self, query: &str, secret: &BTreeMap<String, String>) -> String {
        let of = |key: &str| match self.text(&format!("storage.oci.{key}")) {
            "" => secret.get(key).cloned().unwrap_or_default(),
            text => text.to_string(),
        };
        let (user, password) = (of("username"), of("password"));
        if user.is_empty() || query.contains("username=") {
            return query.to_string();
        }
        let encode =
            |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let password = encode(&base64::engine::general_purpose::STANDARD.encode(password));
        let begin = if query.is_empty() { "?".to_string() } else { format!("{query}&") };
        format!("{begin}username={}&password={password}", encode(&user))
    }

    /// The Secret with the storage's credentials.
    async fn credentials(&self) -> Result<BTreeMap<String, String>, AutoError> {
        let kind = self.text("storage.type");
        let name = self.text(&format!("storage.{kind}.credential.secretName"));
        let (Some(host), false) = (&self.host, name.is_empty()) else { return Ok(BTreeMap::new()) };
        let namespace = match self.text(&format!("storage.{kind}.credential.secretNamespace")) {
            "" => host.namespace.as_str(),
            namespace => namespace,
        };
        let secret = host.rest.get(&SECRETS, namespace, name).await;
        let secret = secret.map_err(failed("read", format!("Secret {namespace}/{name}")))?;
        let data = secret.at(&["data"]).and_then(Value::as_object).into_iter().flat_map(|data| data.iter());
        let decoded = data.filter_map(|(key, value)| {
            let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok()?;
            Some((key.to_string(), String::from_utf8(bytes).ok()?.trim().to_string()))
        });
        Ok(decoded.collect())
    }
}

/// The keys of a Secret that stand for a variable of the environment.
fn names_of(variable: &str) -> &'static [&'static str] {
    match variable {
        "AWS_ACCESS_KEY_ID" => &["AWS_ACCESS_KEY_ID", "access-key-id", "accessKeyID", "accessKey"],
        "AWS_SECRET_ACCESS_KEY" => &["AWS_SECRET_ACCESS_KEY", "secret-access-key", "secretAccessKey", "secretKey"],
        "AWS_SESSION_TOKEN" => &["AWS_SESSION_TOKEN", "session-token", "sessionToken"],
        "AWS_REGION" => &["AWS_REGION", "region"],
        _ => &[],
    }
}

/// Time and label of one of the cluster's snapshots by its URL.
fn label_of(name: &str, url: &str) -> Option<(Timestamp, String)> {
    let last = url.rsplit('/').next()?;
    let last = last.rsplit_once(':').map_or(last, |(_, tag)| tag);
    let label = last.strip_suffix(".tar.gz").unwrap_or(last);
    let time = label.strip_prefix(name)?.strip_prefix('-')?;
    let taken = jiff::civil::DateTime::strptime(NAME_TIME, time).ok()?.to_zoned(TimeZone::UTC).ok()?;
    Some((taken.timestamp(), label.to_string()))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use snapshot::archive::{self, ArchiveError, Release};
    use store::{Expect, Op, Store};

    use super::*;

    async fn auto(folder: &Path, yaml: &str) -> AutoSnapshots {
        let operations = Operations::new("key", Release::default(), Some(folder));
        operations.set_files(folder.into());
        let store = Store::in_memory(store::Options::default()).await;
        let put = Op::Put { value: Bytes::from_static(b"v"), lease: 0 };
        store.txn(Bytes::from_static(b"/registry/configmaps/d/a"), Expect::Any, put).await.unwrap();
        operations.set_store(&store);
        let config = Arc::new(Config::from_yaml("vcluster.yaml", yaml).unwrap());
        AutoSnapshots { name: "team-a".into(), config, operations, host: None }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn old_snapshots_go_by_number_and_by_age_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let yaml = "snapshots: {auto: {schedule: '0 2 * * *', retention: {period: 30, maxSnapshots: 2}, storage: {type: container, container: {path: /backup}}}}";
        let auto = auto(folder.path(), yaml).await;
        let backup = folder.path().join("backup");
        std::fs::create_dir_all(&backup).unwrap();
        for foreign in ["team-b-20200101-000000.tar.gz", "team-a-friday.tar.gz", "notes.txt"] {
            std::fs::write(backup.join(foreign), "").unwrap();
        }
        let names = || {
            let entries = std::fs::read_dir(&backup).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
            names.retain(|name| name.starts_with("team-a-2"));
            names.sort();
            names
        };
        for (day, want) in [
            ("2026-01-01T02:00:00Z", &["team-a-20260101-020000.tar.gz"][..]),
            ("2026-01-02T02:00:00Z", &["team-a-20260101-020000.tar.gz", "team-a-20260102-020000.tar.gz"]),
            ("2026-01-03T02:00:00Z", &["team-a-20260102-020000.tar.gz", "team-a-20260103-020000.tar.gz"]),
            ("2026-03-01T02:00:00Z", &["team-a-20260301-020000.tar.gz"]),
        ] {
            auto.take(at(day)).await.unwrap();
            assert_eq!(names(), want, "{day}");
        }
        assert_eq!(std::fs::read_dir(&backup).unwrap().count(), 4, "what others have made stays");
        let file = std::fs::File::open(backup.join("team-a-20260301-020000.tar.gz")).unwrap();
        let mut keys = Vec::new();
        archive::read::<ArchiveError>(file, |key, _| {
            keys.push(String::from_utf8(key).unwrap());
            Ok(())
        })
        .unwrap();
        assert_eq!(keys, ["/registry/configmaps/d/a"]);
    }

    #[tokio::test]
    async fn storages_are_read_as_snapshot_urls_are() {
        let folder = tempfile::tempdir().unwrap();
        let secret = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<BTreeMap<_, _>>()
        };
        let keys = secret(&[("access-key-id", "id"), ("secretAccessKey", "s"), ("region", "r")]);
        let user = secret(&[("username", "me"), ("password", "p/w")]);
        for (storage, secret, want) in [
            ("type: s3, s3: {url: 's3://bucket/path/'}", &keys, Ok("s3://bucket/path/L.tar.gz")),
            ("type: oci, oci: {repository: 'ghcr.io/me/team'}", &user, Ok("oci://ghcr.io/me/team:L")),
            (
                "type: azure, azure: {blobUrl: 'https://acc.blob.core.windows.net/c/f?sv=1&sig=x'}",
                &user,
                Ok("https://acc.blob.core.windows.net/c/f/L.tar.gz"),
            ),
            ("type: container, container: {path: ''}", &user, Err("storage.container.path: is missing")),
            ("type: container, container: {path: '/../x'}", &user, Err("is not a path in the container")),
        ] {
            let yaml = format!("snapshots: {{auto: {{schedule: '0 2 * * *', storage: {{{storage}}}}}}}");
            let Ok(config) = Config::from_yaml("vcluster.yaml", &yaml) else {
                assert!(want.is_err(), "{storage}");
                continue;
            };
            let mut auto = auto(folder.path(), "").await;
            auto.config = Arc::new(config);
            let got = auto.target(Some("L"), secret).map(|target| target.url()).map_err(|error| chain(&error));
            match want {
                Ok(want) => assert_eq!(got.as_deref(), Ok(want), "{storage}"),
                Err(want) => assert!(got.as_ref().unwrap_err().contains(want), "{storage}: {got:?}"),
            }
        }
    }

    #[test]
    fn only_the_clusters_own_snapshots_are_known() {
        for (url, want) in [
            ("s3://b/k/team-a-20260101-020000.tar.gz", true),
            ("oci://ghcr.io/x/y:team-a-20260101-020000", true),
            ("file:///x/team-a-20260101-020000.tar.gz", true),
            ("s3://b/k/team-a-2026.tar.gz", false),
            ("s3://b/k/team-a-b-20260101-020000.tar.gz", false),
            ("s3://b/k/team-20260101-020000.tar.gz", false),
        ] {
            assert_eq!(label_of("team-a", url).is_some(), want, "{url}");
        }
    }
}
