//! A client that fails: some requests are refused, some are answered with an error after they were carried out, some are
//! answered late, watches break off or lag behind each other. What fails follows from a seed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use kube::client::Body;
use tower::{BoxError, Service};

/// How often things fail, in thousandths; shared by all requests of a client.
pub struct Faults {
    pub per_mille: AtomicU64,
    state: AtomicU64,
    pub injected: AtomicU64,
}

impl Faults {
    pub fn new(seed: u64, per_mille: u64) -> Arc<Faults> {
        Arc::new(Faults {
            per_mille: AtomicU64::new(per_mille),
            state: AtomicU64::new(seed.wrapping_mul(2) + 1),
            injected: AtomicU64::new(0),
        })
    }

    /// The next number of the sequence (splitmix64).
    pub fn next(&self) -> u64 {
        let mut z = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn strikes(&self) -> bool {
        let strikes = self.next() % 1000 < self.per_mille.load(Ordering::Relaxed);
        if strikes {
            self.injected.fetch_add(1, Ordering::Relaxed);
        }
        strikes
    }

    /// The same client with these faults.
    pub fn wrap(self: &Arc<Faults>, client: kube::Client) -> kube::Client {
        kube::Client::new(Faulty { inner: client, faults: self.clone() }, "default")
    }
}

#[derive(Clone)]
struct Faulty {
    inner: kube::Client,
    faults: Arc<Faults>,
}

fn status(code: u16, reason: &str) -> Response<Breaking> {
    let text = format!(
        r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","code":{code},"reason":"{reason}","message":"injected"}}"#
    );
    let body = Breaking { inner: Body::from(text.into_bytes()), faults: None, held: None };
    Response::builder().status(code).header("content-type", "application/json").body(body).expect("a response")
}

impl Service<Request<Body>> for Faulty {
    type Response = Response<Breaking>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (client, faults) = (self.inner.clone(), self.faults.clone());
        Box::pin(async move {
            let watch = request.uri().query().is_some_and(|q| q.contains("watch=true"));
            let writes = request.method() != Method::GET;
            if faults.strikes() {
                match faults.next() % 7 {
                    0 => return Ok(status(429, "TooManyRequests")),
                    1 => return Ok(status(500, "InternalError")),
                    2 if writes => return Ok(status(409, "Conflict")),
                    3 if writes => {
                        // Carried out, but nobody hears of it.
                        let _ = client.send(request).await;
                        return Ok(status(504, "Timeout"));
                    }
                    4 => return Err("injected: connection refused".into()),
                    5 => {
                        // Never answered, as far as the caller knows.
                        tokio::time::sleep(Duration::from_millis(faults.next() % 40)).await;
                        return Err("injected: timed out".into());
                    }
                    // Late: what was asked after it is answered before it.
                    _ => tokio::time::sleep(Duration::from_millis(faults.next() % 40)).await,
                }
            }
            let answer = client.send(request).await?;
            Ok(answer.map(|inner| Breaking { inner, faults: watch.then_some(faults), held: None }))
        })
    }
}

/// A body that may end early, or hold its events back for a while so that others come first.
struct Breaking {
    inner: Body,
    faults: Option<Arc<Faults>>,
    held: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl http_body::Body for Breaking {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(held) = &mut self.held {
            match held.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => self.held = None,
            }
        }
        if let Some(faults) = self.faults.clone()
            && faults.strikes()
        {
            let pause = Duration::from_millis(faults.next() % 30);
            let mut held = Box::pin(tokio::time::sleep(pause));
            if held.as_mut().poll(cx).is_pending() {
                self.held = Some(held);
                return Poll::Pending;
            }
        }
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let (Poll::Ready(Some(_)), Some(faults)) = (&frame, &self.faults)
            && faults.strikes()
        {
            return Poll::Ready(None);
        }
        frame.map(|f| f.map(|f| f.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        http_body::Body::is_end_stream(&self.inner)
    }
}
