//! Hosts that do not serve everything that the configuration asks for.

use std::pin::Pin;
use std::task::{Context, Poll};

use apimachinery::{Value, json};
use http::{Request, Response};
use http_body_util::Either;
use informer::Resource;
use kube::client::Body;
use store::Store;
use tower::{BoxError, Service};

use crate::replicas::{PODS, World, admin, eventually, runs};

const EVENTS: Resource = Resource::new("", "v1", "events");

/// A host without an API group.
#[derive(Clone)]
struct Without {
    client: kube::Client,
    group: &'static str,
}

impl Service<Request<Body>> for Without {
    type Response = Response<Either<Body, String>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.client.clone();
        let missing = request.uri().path().starts_with(&format!("/apis/{}/", self.group));
        Box::pin(async move {
            if missing {
                let body = Either::Right("404 page not found\n".to_string());
                return Ok(Response::builder().status(404).body(body)?);
            }
            Ok(client.send(request).await?.map(Either::Left))
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_does_not_serve_holds_up_nothing_else() {
    let world = World::new(
        "sync: {toHost: {resourceClaims: {enabled: true}, resourceClaimTemplates: {enabled: true}}, fromHost: {deviceClasses: {enabled: true}}}",
    )
    .await;
    let (client, _wire) = world.client().await;
    let without = kube::Client::new(Without { client, group: "resource.k8s.io" }, "default");
    let store = Store::in_memory(store::Options::default()).await;
    let control_plane = world.start_on(without, &store, "team-a-0", false, None).await;
    let tenant = admin(&control_plane);
    runs(&tenant, "plain").await;
    // The host would run it without its device.
    let claimer = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "claimer"}, "spec": {
        "containers": [{"name": "c", "image": "web"}],
        "resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}]}});
    tenant.create(&PODS, "default", &claimer).await.unwrap();
    eventually("the tenant is told", async || {
        let events: Vec<Value> = tenant.list_as(&EVENTS, "default", "", "").await.ok()?;
        let told = |event: &Value| event.str_at(&["message"]).contains("does not serve resource.k8s.io/v1");
        events.iter().any(told).then_some(())
    })
    .await;
    control_plane.stop().await;
    world.host.stop().await;
}
