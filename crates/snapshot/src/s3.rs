//! Snapshots in S3-compatible storage: one object, put with one request, signed with Signature Version 4.

use std::path::Path;
use std::time::Duration;

use apimachinery::time::Timestamp;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use rusty_s3::{Bucket, Credentials};

use crate::client::{Body, Http, HttpError, TlsOptions, empty, file_body, save, text};
use crate::{Found, TargetError};

/// How long a signature is valid: as long as a large upload may take.
const VALID: Duration = Duration::from_secs(3600);
/// Pages of a listing that are read.
const PAGES_MAX: usize = 100;

/// One object of a bucket.
#[derive(Clone, Debug)]
pub struct S3Target {
    pub(crate) bucket: Bucket,
    pub(crate) key: String,
    /// Without: requests are not signed.
    pub(crate) credentials: Option<Credentials>,
    pub(crate) tls: TlsOptions,
    /// `x-amz-*` headers of a put, sorted.
    pub(crate) put_headers: Vec<(String, String)>,
}

impl S3Target {
    pub fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket.name(), self.key)
    }

    fn http_failed(&self) -> impl FnOnce(HttpError) -> TargetError + use<> {
        let url = self.url();
        move |source| TargetError::Http { url, source }
    }

    async fn send(
        &self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        headers: &[(String, String)],
        body: Body,
        body_bytes: Option<u64>,
    ) -> Result<Response<Incoming>, TargetError> {
        let url = match key {
            Some(key) => self.bucket.object_url(key),
            None => self.bucket.base_url().clone(),
        };
        let url = match &self.credentials {
            Some(credentials) => rusty_s3::signing::sign(
                &jiff::Timestamp::now(),
                match method {
                    Method::PUT => rusty_s3::Method::Put,
                    Method::DELETE => rusty_s3::Method::Delete,
                    Method::HEAD => rusty_s3::Method::Head,
                    _ => rusty_s3::Method::Get,
                },
                url,
                credentials.key(),
                credentials.secret(),
                credentials.token(),
                self.bucket.region(),
                VALID.as_secs(),
                query.iter().copied(),
                headers.iter().map(|(name, value)| (name.as_str(), value.as_str())),
            ),
            None => {
                let mut url = url;
                if !query.is_empty() {
                    url.query_pairs_mut().extend_pairs(query);
                }
                url
            }
        };
        let mut request = Request::builder().method(method).uri(url.as_str());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(length) = body_bytes {
            request = request.header(http::header::CONTENT_LENGTH, length);
        }
        let request = request.body(body).map_err(HttpError::from).map_err(self.http_failed())?;
        let http = Http::new(&self.tls).map_err(self.http_failed())?;
        http.send(request, body_bytes.unwrap_or(0)).await.map_err(self.http_failed())
    }

    /// The answer when it is a success, else what S3 says is wrong.
    async fn check(&self, answer: Response<Incoming>) -> Result<Response<Incoming>, TargetError> {
        let code = answer.status().as_u16();
        if answer.status().is_success() {
            return Ok(answer);
        }
        let body = text(answer.into_body()).await.unwrap_or_default();
        if code == 404 && between(&body, "Code").is_none_or(|code| code != "NoSuchBucket") {
            return Err(TargetError::NotFound { url: self.url() });
        }
        let message = match (between(&body, "Code"), between(&body, "Message")) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            _ => body.chars().take(200).collect(),
        };
        Err(TargetError::Refused { url: self.url(), code, message })
    }

    pub(crate) async fn put(&self, file: &Path) -> Result<(), TargetError> {
        let (body, length) = file_body(file).await.map_err(self.http_failed())?;
        let answer = self.send(Method::PUT, Some(&self.key), &[], &self.put_headers, body, Some(length)).await?;
        self.check(answer).await.map(drop)
    }

    pub(crate) async fn get(&self, file: &Path) -> Result<(), TargetError> {
        let answer = self.send(Method::GET, Some(&self.key), &[], &[], empty(), None).await?;
        save(self.check(answer).await?.into_body(), file).await.map_err(self.http_failed())
    }

    pub(crate) async fn delete(&self) -> Result<(), TargetError> {
        let answer = self.send(Method::DELETE, Some(&self.key), &[], &[], empty(), None).await?;
        self.check(answer).await.map(drop)
    }

    /// All objects whose key begins with this one's.
    pub(crate) async fn list(&self) -> Result<Vec<Found>, TargetError> {
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut query = Vec::new();
            if let Some(token) = &token {
                query.push(("continuation-token", token.as_str()));
            }
            query.extend([("list-type", "2"), ("prefix", self.key.as_str())]);
            let answer = self.send(Method::GET, None, &query, &[], empty(), None).await?;
            let page = text(self.check(answer).await?.into_body()).await.map_err(self.http_failed())?;
            found.extend(all_between(&page, "Contents").map(|object| Found {
                url: format!("s3://{}/{}", self.bucket.name(), between(object, "Key").unwrap_or_default()),
                size_bytes: between(object, "Size").and_then(|size| size.parse().ok()),
                saved_at: between(object, "LastModified").and_then(|time| Timestamp::parse(&time)),
            }));
            token = between(&page, "NextContinuationToken");
            if token.is_none() {
                break;
            }
        }
        Ok(found)
    }
}

/// The texts of all elements of this name. S3's answers are flat and do not nest an element in one of its own name.
fn all_between<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let from = rest.find(&open)? + open.len();
        let length = rest[from..].find(&close)?;
        let found = &rest[from..from + length];
        rest = &rest[from + length + close.len()..];
        Some(found)
    })
}

/// The text of the first element of this name, without entities.
fn between(xml: &str, name: &str) -> Option<String> {
    let text = all_between(xml, name).next()?;
    let mut plain = text.to_owned();
    for (entity, character) in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")] {
        plain = plain.replace(entity, character);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_read() {
        let page = "<?xml version=\"1.0\"?><ListBucketResult><Name>b</Name><Contents><Key>a&amp;b.tar.gz</Key>\
            <LastModified>2026-11-21T00:00:00.000Z</LastModified><Size>12</Size></Contents><Contents><Key>c</Key>\
            </Contents><NextContinuationToken>t==</NextContinuationToken></ListBucketResult>";
        let keys: Vec<_> = all_between(page, "Contents").map(|object| between(object, "Key").unwrap()).collect();
        assert_eq!(keys, ["a&b.tar.gz", "c"]);
        assert_eq!(between(page, "NextContinuationToken").as_deref(), Some("t=="));
        assert_eq!(between(page, "Missing"), None);
    }
}
