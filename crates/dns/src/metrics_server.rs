//! `/metrics`, `/health` and `/ready` of one DNS server over plain HTTP.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::resolver::Resolver;

const CONNECTIONS_MAX: usize = 32;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    resolver: Arc<Resolver>,
    cancel: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = cancel.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "could not accept a connection for metrics");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let (metrics, resolver, cancel) = (Arc::clone(&metrics), Arc::clone(&resolver), cancel.clone());
        tasks.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(request.uri().path(), &metrics, &resolver);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                result = connection => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "a connection for metrics broke off");
                    }
                }
                () = cancel.cancelled() => {}
            }
            drop(place);
        });
    }
    tasks.close();
    tasks.wait().await;
}

fn answer(path: &str, metrics: &Metrics, resolver: &Resolver) -> Response<Full<Bytes>> {
    let (code, text) = match path {
        "/metrics" => {
            let text = metrics.text(resolver.forwarder().cache_len(), resolver.snapshot().services_len());
            (StatusCode::OK, text)
        }
        "/health" => (StatusCode::OK, "OK".to_string()),
        "/ready" if resolver.is_synced() => (StatusCode::OK, "OK".to_string()),
        "/ready" => (StatusCode::SERVICE_UNAVAILABLE, "kubernetes".to_string()),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_string()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
