//! Snapshots as Azure blobs: `https://ACCOUNT.blob.core.windows.net/CONTAINER/BLOB?SAS`. The URL carries the right to write.

use std::path::Path;

use http::{Method, Request, Response};
use hyper::body::Incoming;

use crate::client::{Body, Http, HttpError, TlsOptions, empty, file_body, save, text};
use crate::{Found, TargetError};

/// One blob.
#[derive(Clone, Debug)]
pub struct AzureTarget {
    /// With the SAS token.
    pub(crate) blob_url: ::url::Url,
}

impl AzureTarget {
    pub fn url(&self) -> String {
        let mut url = self.blob_url.clone();
        url.set_query(None);
        url.to_string()
    }

    fn http_failed(&self) -> impl FnOnce(HttpError) -> TargetError + use<> {
        let url = self.url();
        move |source| TargetError::Http { url, source }
    }

    async fn send(&self, method: Method, body: Body, length: Option<u64>) -> Result<Response<Incoming>, TargetError> {
        let mut request =
            Request::builder().method(method).uri(self.blob_url.as_str()).header("x-ms-version", "2021-08-06");
        if let Some(length) = length {
            request = request.header("x-ms-blob-type", "BlockBlob").header(http::header::CONTENT_LENGTH, length);
        }
        let request = request.body(body).map_err(HttpError::from).map_err(self.http_failed())?;
        let http = Http::new(&TlsOptions::default()).map_err(self.http_failed())?;
        let answer = http.send(request, length.unwrap_or(0)).await.map_err(self.http_failed())?;
        let code = answer.status().as_u16();
        match code {
            200..300 => Ok(answer),
            404 => Err(TargetError::NotFound { url: self.url() }),
            _ => {
                let message = text(answer.into_body()).await.unwrap_or_default().chars().take(200).collect();
                Err(TargetError::Refused { url: self.url(), code, message })
            }
        }
    }

    pub(crate) async fn put(&self, file: &Path) -> Result<(), TargetError> {
        let (body, length) = file_body(file).await.map_err(self.http_failed())?;
        self.send(Method::PUT, body, Some(length)).await.map(drop)
    }

    pub(crate) async fn get(&self, file: &Path) -> Result<(), TargetError> {
        let answer = self.send(Method::GET, empty(), None).await?;
        save(answer.into_body(), file).await.map_err(self.http_failed())
    }

    pub(crate) async fn delete(&self) -> Result<(), TargetError> {
        self.send(Method::DELETE, empty(), None).await.map(drop)
    }

    /// The blob itself: a SAS token of one blob does not list its container.
    pub(crate) async fn list(&self) -> Result<Vec<Found>, TargetError> {
        let answer = self.send(Method::HEAD, empty(), None).await?;
        let size = answer.headers().get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
        Ok(vec![Found { url: self.url(), size_bytes: size.and_then(|size| size.parse().ok()), saved_at: None }])
    }
}
