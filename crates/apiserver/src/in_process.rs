//! The API server as a tower service, and a `kube::Client` over it: no socket, no TLS, no second process.
//!
//! A request goes through the same chain as one from the network. Only authentication differs: the user is fixed when the
//! client is made and travels as a request extension, which cannot come from the network.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};

use crate::authn::UserInfo;
use crate::body::{Body, request_body};
use crate::server::ApiServer;

/// The user of a request that came in process.
#[derive(Clone, Debug)]
pub struct InProcessUser(pub Arc<UserInfo>);

/// The tower service of one user.
#[derive(Clone)]
pub struct InProcess {
    server: ApiServer,
    user: InProcessUser,
}

impl InProcess {
    pub fn new(server: ApiServer, user: UserInfo) -> InProcess {
        InProcess { server, user: InProcessUser(Arc::new(user)) }
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<crate::body::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.server.clone();
        let user = self.user.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            parts.extensions.insert(user);
            Ok(server.handle(parts, request_body(body)).await)
        })
    }
}
