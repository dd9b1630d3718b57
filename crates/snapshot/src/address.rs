//! Snapshot URLs: scheme, place, parameters; and the credentials that stand elsewhere.
//!
//! `s3://BUCKET/KEY`, `oci://REGISTRY/REPOSITORY:TAG`, `container:///PATH`, `file:///PATH`,
//! `https://ACCOUNT.blob.core.windows.net/CONTAINER/BLOB?SAS`. An unknown parameter is an error.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine;
use rusty_s3::{Bucket, Credentials, UrlStyle};
use serde_json::Value;

use crate::Target;
use crate::azure::AzureTarget;
use crate::client::TlsOptions;
use crate::file::FileTarget;
use crate::oci::OciTarget;
use crate::s3::S3Target;

/// Where credentials are looked for that a URL lacks.
pub struct Environment<'a> {
    /// A variable of the environment; an empty one is none.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The text of a file, when it can be read.
    pub file: &'a dyn Fn(&str) -> Option<String>,
}

impl Environment<'static> {
    /// Knows nothing: all that counts is in the URL.
    pub const EMPTY: Environment<'static> = Environment { variable: &|_| None, file: &|_| None };
}

impl Environment<'_> {
    fn var(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    /// A file named by a variable, else one in the home directory.
    fn home_file(&self, variable: &str, path: &str) -> Option<String> {
        match self.var(variable) {
            Some(path) => (self.file)(&path),
            None => (self.file)(&format!("{}/{path}", self.var("HOME")?)),
        }
    }
}

/// Why a URL names no place for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("the snapshot URL is not readable: {0}")]
    Unreadable(String),
    #[error("the scheme of a snapshot URL is one of file, container, s3, oci, https; not {0:?}")]
    Scheme(String),
    #[error("{0}")]
    Shape(String),
    #[error("unknown parameter in the snapshot URL: {0}")]
    Parameter(String),
    #[error("parameter {name} of the snapshot URL is not {expected}")]
    Value { name: String, expected: &'static str },
    #[error("parameter {0} of the snapshot URL is not supported")]
    NotBuilt(String),
}

/// The parameters of a URL, of which each is taken once.
struct Parameters(BTreeMap<String, String>);

impl Parameters {
    fn of(url: &::url::Url) -> Parameters {
        Parameters(url.query_pairs().map(|(name, value)| (name.into_owned(), value.trim().to_owned())).collect())
    }

    fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    /// A base64 value. A plus sign of it may have become a blank on the way.
    fn base64(&mut self, name: &str) -> Result<Option<String>, UrlError> {
        let Some(value) = self.text(name) else { return Ok(None) };
        let wrong = || UrlError::Value { name: name.to_owned(), expected: "base64" };
        let engine = base64::engine::general_purpose::STANDARD;
        let bytes = engine.decode(value.replace(' ', "+")).map_err(|_| wrong())?;
        Ok(Some(String::from_utf8(bytes).map_err(|_| wrong())?.trim().to_owned()).filter(|value| !value.is_empty()))
    }

    fn bool(&mut self, name: &str) -> Result<bool, UrlError> {
        match self.text(name).as_deref() {
            None | Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
            Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
            Some(_) => Err(UrlError::Value { name: name.to_owned(), expected: "true or false" }),
        }
    }

    fn refuse(&mut self, names: &[&str]) -> Result<(), UrlError> {
        match names.iter().find(|name| self.text(name).is_some()) {
            Some(name) => Err(UrlError::NotBuilt((*name).to_owned())),
            None => Ok(()),
        }
    }

    fn end(self) -> Result<(), UrlError> {
        match self.0.into_keys().next() {
            Some(name) => Err(UrlError::Parameter(name)),
            None => Ok(()),
        }
    }
}

pub(crate) fn parse(text: &str, environment: &Environment<'_>) -> Result<Target, UrlError> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(UrlError::Unreadable(format!("{text:?} has no scheme such as file://")));
    };
    let url = ::url::Url::parse(text).map_err(|error| UrlError::Unreadable(error.to_string()));
    match scheme {
        // A path as it is: blanks, percent signs and question marks are a part of it.
        "file" => {
            if rest.is_empty() {
                return Err(UrlError::Shape("a path is missing, expected file:///PATH".to_owned()));
            }
            Ok(Target::File(FileTarget { path: PathBuf::from(rest) }))
        }
        "container" => {
            if !rest.starts_with('/') {
                let message = "relative paths are not supported for container snapshots, expected container:///PATH";
                return Err(UrlError::Shape(message.to_owned()));
            }
            let leaves = rest.split('/').any(|part| part == "..");
            if leaves || rest.len() < 2 || rest.ends_with('/') || rest.contains('\0') {
                return Err(UrlError::Shape(format!("{rest:?} is not the path of a file")));
            }
            Ok(Target::Container(rest.to_owned()))
        }
        "s3" => s3(&url?, environment).map(|target| Target::S3(Box::new(target))),
        "oci" => oci(&url?, rest, environment).map(Target::Oci),
        "https" => {
            let url = url?;
            if url.path_segments().is_none_or(|segments| segments.filter(|part| !part.is_empty()).count() < 2) {
                let message = "the blob is missing, expected https://ACCOUNT.blob.core.windows.net/CONTAINER/BLOB?SAS";
                return Err(UrlError::Shape(message.to_owned()));
            }
            Ok(Target::Azure(AzureTarget { blob_url: url }))
        }
        other => Err(UrlError::Scheme(other.to_owned())),
    }
}

fn s3(url: &::url::Url, environment: &Environment<'_>) -> Result<S3Target, UrlError> {
    let shape = |what: &str| UrlError::Shape(format!("the {what} is missing, expected s3://BUCKET/KEY"));
    let name = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| shape("bucket"))?.to_owned();
    let key = percent_encoding::percent_decode_str(url.path().trim_start_matches('/')).decode_utf8_lossy().into_owned();
    if key.is_empty() {
        return Err(shape("key"));
    }
    if key.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(UrlError::Shape(format!("{key:?} cannot be the key of an object")));
    }
    let mut query = Parameters::of(url);
    query.refuse(&["custom-key-encryption-file", "checksum-algorithm"])?;
    let skip = query.bool("skip-client-credentials")?;
    let profile = query.text("profile");
    let own_file = query.base64("credentials-file")?;
    let given = (query.base64("access-key-id")?, query.base64("secret-access-key")?, query.base64("session-token")?);
    let files = Files::read(environment, profile, own_file.as_deref(), skip);
    let credentials = match given {
        (Some(key), Some(secret), Some(token)) => Some(Credentials::new_with_token(key, secret, token)),
        (Some(key), Some(secret), None) => Some(Credentials::new(key, secret)),
        (None, None, None) => files.credentials(environment, skip),
        _ => {
            let message = "access-key-id and secret-access-key of the snapshot URL belong together";
            return Err(UrlError::Shape(message.to_owned()));
        }
    };
    let ambient = |name: &str| if skip { None } else { environment.var(name) };
    let region = query
        .text("region")
        .or_else(|| ambient("AWS_REGION"))
        .or_else(|| ambient("AWS_DEFAULT_REGION"))
        .or_else(|| files.get("region"))
        .unwrap_or_else(|| "us-east-1".to_owned());
    let custom =
        query.base64("url")?.or_else(|| ambient("AWS_ENDPOINT_URL_S3")).or_else(|| ambient("AWS_ENDPOINT_URL"));
    // Where downloads for others would go; nothing here hands out links.
    query.base64("public-url")?;
    let path_style = query.bool("force-path-style")?;
    let tls = TlsOptions { ca: query.base64("ca-cert")?, insecure: query.bool("insecure-skip-tls-verify")? };
    let mut put_headers = Vec::new();
    let mut header = |name: &str, value: Option<String>| {
        put_headers.extend(value.map(|value| (name.to_owned(), value)));
    };
    let kms = query.base64("kms-key-id")?;
    let encryption = query.base64("server-side-encryption")?.or_else(|| kms.as_ref().map(|_| "aws:kms".to_owned()));
    header("x-amz-server-side-encryption", encryption);
    header("x-amz-server-side-encryption-aws-kms-key-id", kms);
    header("x-amz-tagging", query.base64("tagging")?);
    query.end()?;

    let endpoint = custom.clone().unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    let endpoint = if endpoint.contains("://") { endpoint } else { format!("https://{endpoint}") };
    let endpoint = ::url::Url::parse(&endpoint).map_err(|error| UrlError::Unreadable(error.to_string()))?;
    // A bucket's name cannot be put before an address, nor, with dots in it, before a name that a certificate covers.
    let address = !matches!(endpoint.host(), Some(::url::Host::Domain(domain)) if domain != "localhost");
    let style = if path_style || address || name.contains('.') { UrlStyle::Path } else { UrlStyle::VirtualHost };
    let bucket = Bucket::new(endpoint, style, name, region).map_err(|error| UrlError::Unreadable(error.to_string()))?;
    Ok(S3Target { bucket, key, credentials, tls, put_headers })
}

/// What a profile says in `~/.aws/credentials` and `~/.aws/config`.
struct Files(BTreeMap<String, String>);

impl Files {
    fn read(environment: &Environment<'_>, profile: Option<String>, own: Option<&str>, skip: bool) -> Files {
        let mut values = BTreeMap::new();
        if skip && own.is_none() {
            return Files(values);
        }
        let profile = profile.or_else(|| environment.var("AWS_PROFILE")).unwrap_or_else(|| "default".to_owned());
        let config = environment.home_file("AWS_CONFIG_FILE", ".aws/config").unwrap_or_default();
        let section = if profile == "default" { profile.clone() } else { format!("profile {profile}") };
        values.extend(ini_section(&config, &section));
        let credentials = match own {
            Some(path) => (environment.file)(path),
            None => environment.home_file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        };
        values.extend(ini_section(&credentials.unwrap_or_default(), &profile));
        Files(values)
    }

    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn credentials(&self, environment: &Environment<'_>, skip: bool) -> Option<Credentials> {
        let pair = |key: Option<String>, secret: Option<String>, token: Option<String>| match (key?, secret?, token) {
            (key, secret, Some(token)) => Some(Credentials::new_with_token(key, secret, token)),
            (key, secret, None) => Some(Credentials::new(key, secret)),
        };
        let ambient = |name: &str| if skip { None } else { environment.var(name) };
        pair(ambient("AWS_ACCESS_KEY_ID"), ambient("AWS_SECRET_ACCESS_KEY"), ambient("AWS_SESSION_TOKEN")).or_else(
            || pair(self.get("aws_access_key_id"), self.get("aws_secret_access_key"), self.get("aws_session_token")),
        )
    }
}

fn ini_section(text: &str, section: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut inside = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.trim() == section;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| inside) {
            values.insert(name.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    values
}

fn oci(url: &::url::Url, rest: &str, environment: &Environment<'_>) -> Result<OciTarget, UrlError> {
    let shape = || UrlError::Shape("unexpected format, expected oci://REGISTRY/REPOSITORY:TAG".to_owned());
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(shape)?;
    let registry = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once('/').map_or("", |(_, path)| path).trim_matches('/');
    if path.contains('@') {
        return Err(UrlError::Shape(format!("{path:?} is a digest; a snapshot has a tag")));
    }
    let (repository, tag) = match path.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (path, "latest"),
    };
    let good = |part: &str, more: &[char]| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') || more.contains(&c))
    };
    if !good(repository, &['/']) || repository.split('/').any(|part| part.is_empty() || part == ".." || part == ".") {
        return Err(shape());
    }
    if !good(tag, &[]) || tag.len() > 128 {
        return Err(UrlError::Shape(format!("{tag:?} cannot be a tag")));
    }
    let mut query = Parameters::of(url);
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let user = query.text("username").or_else(|| Some(decoded(url.username())).filter(|user| !user.is_empty()));
    let password = query.base64("password")?.or_else(|| url.password().map(decoded));
    let skip = query.bool("skip-client-credentials")?;
    query.end()?;
    let credentials = match (user, password) {
        (Some(user), password) => Some((user, password.unwrap_or_default())),
        (None, Some(_)) => return Err(UrlError::Shape("a password without a username".to_owned())),
        (None, None) if skip => None,
        (None, None) => docker_credentials(&registry, environment),
    };
    Ok(OciTarget { registry, repository: repository.to_owned(), tag: tag.to_owned(), credentials })
}

/// What `docker login` has written down. Helper programs are not asked.
fn docker_credentials(registry: &str, environment: &Environment<'_>) -> Option<(String, String)> {
    let text = match environment.var("DOCKER_CONFIG") {
        Some(folder) => (environment.file)(&format!("{folder}/config.json")),
        None => (environment.file)(&format!("{}/.docker/config.json", environment.var("HOME")?)),
    };
    let config: Value = serde_json::from_str(&text?).ok()?;
    let names = [registry.to_owned(), format!("https://{registry}"), format!("https://{registry}/v1/")];
    let docker_hub = (registry == "docker.io").then(|| "https://index.docker.io/v1/".to_owned());
    let entry = names.iter().chain(docker_hub.iter()).find_map(|name| config["auths"].get(name))?;
    if let Some(encoded) = entry["auth"].as_str() {
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (user, password) = text.split_once(':')?;
        let token = entry["identitytoken"].as_str().filter(|token| !token.is_empty());
        return Some((user.to_owned(), token.unwrap_or(password).to_owned()));
    }
    Some((entry["username"].as_str()?.to_owned(), entry["password"].as_str()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Target, UrlError> {
        Target::parse(url, &Environment::EMPTY)
    }

    fn s3_of(target: Target) -> S3Target {
        match target {
            Target::S3(target) => *target,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn urls_name_their_places() {
        for (url, want) in [
            ("file:///tmp/a b.tar.gz", "file:///tmp/a b.tar.gz"),
            ("container:///data/my.tar.gz", "container:///data/my.tar.gz"),
            ("s3://bucket/folder/key", "s3://bucket/folder/key"),
            ("oci://ghcr.io/me/snap:v1", "oci://ghcr.io/me/snap:v1"),
            ("oci://localhost:5000/me/snap", "oci://localhost:5000/me/snap:latest"),
            ("oci://user:secret@localhost:5000/snap:1", "oci://localhost:5000/snap:1"),
            ("https://a.blob.core.windows.net/c/b?sig=secret", "https://a.blob.core.windows.net/c/b"),
        ] {
            assert_eq!(read(url).unwrap().url(), want, "{url}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        for (url, want) in [
            ("/tmp/x", "has no scheme"),
            ("ftp://a/b", "one of file, container, s3, oci, https"),
            ("file://", "expected file:///PATH"),
            ("container://data/x", "relative paths"),
            ("container:///data/../x", "not the path"),
            ("s3://bucket", "the key is missing"),
            ("s3:///key", "missing"),
            ("s3://bucket/key?colour=red", "unknown parameter in the snapshot URL: colour"),
            ("s3://bucket/key?url=%25", "parameter url of the snapshot URL is not base64"),
            ("s3://bucket/key?force-path-style=maybe", "not true or false"),
            ("s3://bucket/key?access-key-id=YQ==", "belong together"),
            ("s3://bucket/key?checksum-algorithm=CRC32", "checksum-algorithm of the snapshot URL is not supported"),
            ("oci://ghcr.io", "expected oci://"),
            ("oci://ghcr.io/a@sha256:1", "digest"),
            ("oci://ghcr.io/a:b c", "cannot be a tag"),
            ("oci://ghcr.io/a:b?x=y", "unknown parameter in the snapshot URL: x"),
            ("https://a.blob.core.windows.net/c", "the blob is missing"),
        ] {
            let error = read(url).unwrap_err().to_string();
            assert!(error.contains(want), "{url}: {error}");
        }
    }

    #[test]
    fn parameters_of_s3_decide_where_and_how() {
        let target = s3_of(
            read(
                "s3://b/k?url=aHR0cDovLzEyNy4wLjAuMTo5MDAw&region=eu-west-1&access-key-id=QUs=&secret-access-key=U0s=\
                 &kms-key-id=a2V5&force-path-style=true",
            )
            .unwrap(),
        );
        assert_eq!(target.bucket.object_url(&target.key).as_str(), "http://127.0.0.1:9000/b/k");
        assert_eq!(target.bucket.region(), "eu-west-1");
        let credentials = target.credentials.unwrap();
        assert_eq!((credentials.key(), credentials.secret()), ("AK", "SK"));
        assert_eq!(
            target.put_headers,
            [
                ("x-amz-server-side-encryption".to_owned(), "aws:kms".to_owned()),
                ("x-amz-server-side-encryption-aws-kms-key-id".to_owned(), "key".to_owned())
            ]
        );
        let plain = s3_of(read("s3://b/k?region=eu-west-1").unwrap());
        assert_eq!(plain.bucket.object_url("k").as_str(), "https://b.s3.eu-west-1.amazonaws.com/k");
        assert!(plain.credentials.is_none());
    }

    #[test]
    fn credentials_come_from_the_environment_and_from_files_unless_skipped() {
        let none = |_: &str| None;
        let variable = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some("AK".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("SK".to_owned()),
            "AWS_REGION" => Some("eu-north-1".to_owned()),
            _ => None,
        };
        let environment = Environment { variable: &variable, file: &none };
        let target = s3_of(Target::parse("s3://b/k", &environment).unwrap());
        assert_eq!(target.credentials.unwrap().key(), "AK");
        assert_eq!(target.bucket.region(), "eu-north-1");
        let skipped = s3_of(Target::parse("s3://b/k?skip-client-credentials=true", &environment).unwrap());
        assert!(skipped.credentials.is_none());

        let home = |name: &str| (name == "HOME").then(|| "/h".to_owned());
        let files = |path: &str| {
            match path {
            "/h/.aws/credentials" => Some(
                "[default]\naws_access_key_id = D\naws_secret_access_key = S\n[p]\naws_access_key_id=P\naws_secret_access_key=S\n"
                    .to_owned(),
            ),
            "/h/.aws/config" => Some("[default]\nregion = r1\n[profile p]\nregion=r2\n".to_owned()),
            "/h/.docker/config.json" => Some(r#"{"auths": {"ghcr.io": {"auth": "bWU6cHc="}}}"#.to_owned()),
            _ => None,
        }
        };
        let environment = Environment { variable: &home, file: &files };
        for (url, key, region) in [("s3://b/k", "D", "r1"), ("s3://b/k?profile=p", "P", "r2")] {
            let target = s3_of(Target::parse(url, &environment).unwrap());
            assert_eq!(target.credentials.unwrap().key(), key, "{url}");
            assert_eq!(target.bucket.region(), region, "{url}");
        }
        let Target::Oci(target) = Target::parse("oci://ghcr.io/a/b:c", &environment).unwrap() else { panic!() };
        assert_eq!(target.credentials, Some(("me".to_owned(), "pw".to_owned())));
    }
}
