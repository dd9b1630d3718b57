//! A client that fails at chosen requests, in a chosen way, so many times.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use kube::client::Body;
use parking_lot::RwLock;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::{BoxError, Service};

/// A place where a request waits until the test lets it go on.
pub struct Gate {
    reached: Semaphore,
    open: Semaphore,
}

impl Gate {
    pub fn new() -> Arc<Gate> {
        Arc::new(Gate { reached: Semaphore::new(0), open: Semaphore::new(0) })
    }

    /// Returns once a request waits here.
    pub async fn reached(&self) {
        let waiting = tokio::time::timeout(std::time::Duration::from_secs(60), self.reached.acquire()).await;
        waiting.expect("a request comes").expect("never closed").forget();
    }

    pub fn open(&self) {
        self.open.add_permits(1_000);
    }

    async fn pass(&self) {
        self.reached.add_permits(1);
        self.open.acquire().await.expect("never closed").forget();
    }
}

pub enum What {
    /// Not carried out, answered with a 500.
    Refuse,
    /// Not carried out, answered with a 403 and this message.
    Forbid(&'static str),
    /// Carried out, but nobody hears of it.
    Lose,
    /// Waits before it is carried out.
    HoldBefore(Arc<Gate>),
    /// Carried out; then nobody hears of it until the gate opens, and then it is an error.
    HoldAndLose(Arc<Gate>),
    /// The history that was asked for is gone.
    Expire,
    /// The server does not know this field of the objects it is sent.
    Drop(&'static [&'static str]),
}

pub struct Rule {
    method: Method,
    path: &'static str,
    left: AtomicUsize,
    what: What,
}

/// The rules of one client.
#[derive(Default)]
pub struct Script {
    rules: RwLock<Vec<Arc<Rule>>>,
    watches: RwLock<CancellationToken>,
    /// Every write that was sent: method, path, content type and body.
    pub writes: RwLock<Vec<(Method, String, String, Bytes)>>,
}

impl Script {
    /// The next `times` requests of this method whose path ends so. `WATCH` is a method here.
    pub fn add(&self, method: &str, path: &'static str, times: usize, what: What) {
        let method = method.parse().expect("a method");
        self.rules.write().push(Arc::new(Rule { method, path, left: AtomicUsize::new(times), what }));
    }

    /// Ends all watches that are open.
    pub fn break_watches(&self) {
        let old = std::mem::take(&mut *self.watches.write());
        old.cancel();
    }

    /// How many times rules can still strike.
    pub fn left(&self) -> usize {
        self.rules.read().iter().map(|r| r.left.load(Ordering::Relaxed)).sum()
    }

    pub fn wrap(self: &Arc<Script>, client: kube::Client) -> kube::Client {
        kube::Client::new(Scripted { inner: client, script: self.clone() }, "default")
    }

    fn strike(&self, method: &Method, path: &str) -> Option<Arc<Rule>> {
        let rules = self.rules.read();
        let mut of = rules.iter().filter(|r| r.method == *method && path.ends_with(r.path));
        let taken = |r: &&Arc<Rule>| {
            r.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        };
        of.find(taken).cloned()
    }
}

#[derive(Clone)]
struct Scripted {
    inner: kube::Client,
    script: Arc<Script>,
}

fn status(code: u16, reason: &str, message: &str) -> Response<Ending> {
    let status = apimachinery::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": (i64::from(code)), "reason": reason, "message": message});
    let body = Ending { inner: Body::from(status.to_vec()), end: None };
    Response::builder().status(code).header("content-type", "application/json").body(body).expect("a response")
}

impl Service<Request<Body>> for Scripted {
    type Response = Response<Ending>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (client, script) = (self.inner.clone(), self.script.clone());
        Box::pin(async move {
            let watch = request.uri().query().is_some_and(|q| q.contains("watch=true"));
            let method = if watch { "WATCH".parse().expect("a method") } else { request.method().clone() };
            let path = request.uri().path().to_owned();
            let mut request = if watch || method == Method::GET {
                request
            } else {
                let (head, body) = request.into_parts();
                let bytes = http_body_util::BodyExt::collect(body).await?.to_bytes();
                let content_type = head.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
                script.writes.write().push((method.clone(), path.clone(), content_type.to_owned(), bytes.clone()));
                Request::from_parts(head, Body::from(bytes.to_vec()))
            };
            // A held watch may meet the next rule when it goes on.
            while let Some(rule) = script.strike(&method, &path) {
                match &rule.what {
                    What::Refuse => return Ok(status(500, "InternalError", "scripted")),
                    What::Forbid(message) => return Ok(status(403, "Forbidden", message)),
                    What::Expire => return Ok(status(410, "Expired", "scripted")),
                    What::Lose => {
                        let _ = client.send(request).await;
                        return Ok(status(504, "Timeout", "scripted"));
                    }
                    What::HoldAndLose(gate) => {
                        let _ = client.send(request).await;
                        gate.pass().await;
                        return Ok(status(504, "Timeout", "scripted"));
                    }
                    What::HoldBefore(gate) => gate.pass().await,
                    What::Drop(path) => {
                        let (head, body) = request.into_parts();
                        let bytes = http_body_util::BodyExt::collect(body).await?.to_bytes();
                        let mut object = apimachinery::Value::from_slice(&bytes)?;
                        let applied =
                            head.headers.get("content-type").is_some_and(|v| v == "application/apply-patch+yaml");
                        if applied && object.at(path).is_some() {
                            // Updates lose the field, an apply is refused as a whole.
                            let message = format!(
                                "failed to create typed patch object (a/b; v1, Kind=C): .{}: field not declared in schema",
                                path.join(".")
                            );
                            return Ok(status(500, "", &message));
                        }
                        object.remove_at(path);
                        request = Request::from_parts(head, Body::from(object.to_vec()));
                        break;
                    }
                }
            }
            let end = watch.then(|| script.watches.read().clone());
            let answer = client.send(request).await?;
            Ok(answer.map(|inner| Ending { inner, end: end.map(|e| Box::pin(e.cancelled_owned())) }))
        })
    }
}

/// A body that ends when the test says so.
pub struct Ending {
    inner: Body,
    end: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.inner).poll_frame(cx).map(|f| f.map(|f| f.map_err(Into::into)))
    }
}
