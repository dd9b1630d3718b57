//! The host side of a control plane: its Service, what it keeps in Secrets there, and what it may do there.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use apimachinery::{Value, json};
use base64::Engine;
use deploy::names;
use deploy::secrets::certs_secret;
use http::HeaderValue;
use informer::{ApiError, DeleteOptions, PatchType, Resource, Rest};
use kube::client::Body;

pub(crate) const SECRETS: Resource = Resource::new("", "v1", "secrets");
pub(crate) const SERVICES: Resource = Resource::new("", "v1", "services");
const PODS: Resource = Resource::new("", "v1", "pods");
const ACCESS_REVIEWS: Resource = Resource::new("authorization.k8s.io", "v1", "selfsubjectaccessreviews");

/// How long removed pods may take to be gone, beyond their grace period.
const PODS_GONE_TIMEOUT: Duration = Duration::from_secs(120);

/// Removes the host pods of a cluster whose control plane does not run, and waits until they are gone.
/// `grace_seconds` replaces each pod's own grace period.
pub async fn remove_pods(client: kube::Client, namespace: &str, name: &str) -> Result<(), HostError> {
    remove_synced_pods(&Rest::new(client, "alcove"), namespace, name, None).await
}

async fn remove_synced_pods(
    rest: &Rest,
    namespace: &str,
    name: &str,
    grace_seconds: Option<i64>,
) -> Result<(), HostError> {
    let labels = format!("vcluster.loft.sh/managed-by={name}");
    let object = || format!("the synced pods in namespace {namespace}");
    let begin = tokio::time::Instant::now();
    loop {
        let pods: Vec<Value> = rest.list_as(&PODS, namespace, &labels, "").await.map_err(failed("list", object()))?;
        if pods.is_empty() {
            return Ok(());
        }
        for pod in pods.iter().filter(|pod| pod.at(&["metadata", "deletionTimestamp"]).is_none()) {
            let mut options = DeleteOptions::uid(pod.str_at(&["metadata", "uid"]));
            options.grace_period_seconds = grace_seconds;
            match rest.delete(&PODS, namespace, pod.str_at(&["metadata", "name"]), &options).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => {
                    return Err(failed("delete", object())(error));
                }
                _ => {}
            }
        }
        if begin.elapsed() > PODS_GONE_TIMEOUT {
            let error = ApiError::Timeout(PODS_GONE_TIMEOUT);
            return Err(failed("wait for the end of", object())(error));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The host cluster and the namespace of the virtual cluster in it.
#[derive(Clone)]
pub struct Host {
    pub client: kube::Client,
    pub namespace: String,
    pub(crate) rest: Rest,
    pub(crate) own_image: Option<String>,
}

/// Service `NAME` on the host as it was at start.
#[derive(Clone, Debug)]
pub(crate) struct HostService {
    pub uid: String,
    pub object: Value,
}

/// A request to the host that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {object}")]
pub struct HostError {
    action: &'static str,
    object: String,
    source: ApiError,
}

impl HostError {
    /// Somebody else wrote meanwhile.
    pub(crate) fn is_conflict(&self) -> bool {
        self.source.is_conflict() || self.source.is_already_exists()
    }

    /// The host has said that it will not, which does not end by waiting.
    pub fn is_forbidden(&self) -> bool {
        self.source.is_forbidden()
    }
}

/// Does a server serve this version of an API group? Only its own word counts as no.
pub(crate) async fn serves(rest: &Rest, group: &str, version: &str) -> bool {
    let answer = rest.get_path(&format!("/apis/{group}/{version}"), "application/json").await;
    !answer.is_err_and(|error| error.is_not_found())
}

pub(crate) fn failed(action: &'static str, object: impl Into<String>) -> impl FnOnce(ApiError) -> HostError {
    let object = object.into();
    move |source| HostError { action, object, source }
}

/// A client that acts as another user, by the `Impersonate-User` header: with that user's rights and no others. The
/// client's own user must be allowed to `impersonate` that user.
pub fn acting_as(client: &kube::Client, user: &str) -> kube::Client {
    let namespace = client.default_namespace().to_string();
    // Names of service accounts are lower case letters, digits, `-`, `.` and `:`.
    let user = HeaderValue::from_str(user).unwrap_or(HeaderValue::from_static("system:anonymous"));
    kube::Client::new(ActingAs { client: client.clone(), user }, namespace)
}

#[derive(Clone)]
struct ActingAs {
    client: kube::Client,
    user: HeaderValue,
}

impl tower::Service<http::Request<Body>> for ActingAs {
    type Response = http::Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let client = self.client.clone();
        request.headers_mut().insert("impersonate-user", self.user.clone());
        Box::pin(async move { client.send(request).await })
    }
}

/// The user name of a service account.
pub fn service_account_user(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

impl Host {
    pub fn new(client: kube::Client, namespace: impl Into<String>) -> Host {
        let rest = Rest::new(client.clone(), "alcove");
        Host { client, namespace: namespace.into(), rest, own_image: None }
    }

    /// `image` holds this program, and the host's nodes can pull it.
    pub fn with_own_image(mut self, image: Option<String>) -> Host {
        self.own_image = image.filter(|image| !image.is_empty());
        self
    }

    /// Service `NAME`, which must exist: it owns what is synced.
    pub(crate) async fn service(&self, name: &str) -> Result<HostService, HostError> {
        let object = self
            .rest
            .get(&SERVICES, &self.namespace, name)
            .await
            .map_err(failed("read", format!("Service {}/{name}", self.namespace)))?;
        Ok(HostService { uid: object.str_at(&["metadata", "uid"]).to_string(), object })
    }

    /// Removes the pods that were synced for the cluster and waits until they are gone: what comes up under their names
    /// must not be taken for them.
    pub(crate) async fn remove_synced_pods(&self, name: &str) -> Result<(), HostError> {
        remove_synced_pods(&self.rest, &self.namespace, name, Some(1)).await
    }

    /// Were the host pods removed while the control plane did not run? The mark is taken off.
    pub(crate) async fn take_pods_removed(&self, name: &str) -> Result<bool, HostError> {
        let secret_name = names::config_secret(name);
        let object = || format!("Secret {}/{secret_name}", self.namespace);
        let secret = match self.rest.get(&SECRETS, &self.namespace, &secret_name).await {
            // Whoever may not read it has not paused the cluster through it either.
            Err(error) if error.is_not_found() || error.is_forbidden() => return Ok(false),
            result => result.map_err(failed("read", object()))?,
        };
        if secret.str_at(&["metadata", "annotations", deploy::PODS_REMOVED_ANNOTATION]) != "true" {
            return Ok(false);
        }
        let mut patch = json!({"metadata": {"annotations": {}}});
        patch["metadata"]["annotations"][deploy::PODS_REMOVED_ANNOTATION] = Value::Null;
        let patched = self.rest.patch(&SECRETS, "", &self.namespace, &secret_name, PatchType::Merge, &patch).await;
        patched.map_err(failed("write", object()))?;
        Ok(true)
    }

    /// The name of the data that the cluster waits for before it serves anybody.
    pub(crate) async fn awaited_data(&self, name: &str) -> Result<Option<String>, HostError> {
        let secret_name = names::config_secret(name);
        let secret = match self.rest.get(&SECRETS, &self.namespace, &secret_name).await {
            // Whoever may not read it was not moved by it either.
            Err(error) if error.is_not_found() || error.is_forbidden() => return Ok(None),
            result => result.map_err(failed("read", format!("Secret {}/{secret_name}", self.namespace)))?,
        };
        let id = secret.str_at(&["metadata", "annotations", deploy::AWAITS_DATA_ANNOTATION]);
        Ok((!id.is_empty()).then(|| id.to_string()))
    }

    /// The data has arrived.
    pub(crate) async fn end_waiting(&self, name: &str) -> Result<(), HostError> {
        let secret_name = names::config_secret(name);
        let mut patch = json!({"metadata": {"annotations": {}}});
        patch["metadata"]["annotations"][deploy::AWAITS_DATA_ANNOTATION] = Value::Null;
        let patched = self.rest.patch(&SECRETS, "", &self.namespace, &secret_name, PatchType::Merge, &patch).await;
        patched.map(drop).map_err(failed("write", format!("Secret {}/{secret_name}", self.namespace)))
    }

    /// May the control plane do this on the host? No answer counts as no.
    pub(crate) async fn may(&self, verb: &str, resource: &Resource, namespace: &str) -> bool {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {
                "verb": verb,
                "group": (resource.group.as_str()),
                "resource": (resource.resource.as_str()),
                "namespace": namespace,
            }},
        });
        match self.rest.create(&ACCESS_REVIEWS, "", &review).await {
            Ok(answer) => answer["status"]["allowed"] == true,
            Err(_) => false,
        }
    }

    /// The host's Kubernetes version; unknown when it does not tell.
    pub(crate) async fn version(&self) -> Option<(u32, u32)> {
        let answer = self.rest.get_path("/version", "application/json").await.ok()?;
        // Some providers write "36+".
        let number = |member: &str| answer.str_at(&[member]).trim_end_matches('+').parse().ok();
        Some((number("major")?, number("minor")?))
    }

    /// Does the host serve this version of an API group?
    pub(crate) async fn serves(&self, group: &str, version: &str) -> bool {
        serves(&self.rest, group, version).await
    }

    /// May the control plane read and watch these objects?
    pub(crate) async fn may_watch(&self, resource: &Resource, namespace: &str) -> bool {
        self.may("list", resource, namespace).await && self.may("watch", resource, namespace).await
    }

    /// The files in Secret `NAME-certs` and its version; none when it does not exist.
    pub(crate) async fn read_certificates(
        &self,
        name: &str,
    ) -> Result<Option<(BTreeMap<String, String>, String)>, HostError> {
        let secret_name = names::certs_secret(name);
        let secret = match self.rest.get(&SECRETS, &self.namespace, &secret_name).await {
            Err(error) if error.is_not_found() => return Ok(None),
            result => result.map_err(failed("read", format!("Secret {}/{secret_name}", self.namespace)))?,
        };
        let mut files = BTreeMap::new();
        for (file, encoded) in secret.at(&["data"]).and_then(Value::as_object).into_iter().flat_map(|data| data.iter())
        {
            let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.as_str().unwrap_or_default());
            if let Some(text) = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()) {
                files.insert(file.to_string(), text);
            }
        }
        Ok(Some((files, secret.str_at(&["metadata", "resourceVersion"]).to_string())))
    }

    /// Writes Secret `NAME-certs`: creates it when `version` is `None`, else changes exactly that version.
    pub(crate) async fn write_certificates(
        &self,
        name: &str,
        files: &BTreeMap<String, String>,
        service: Option<&HostService>,
        version: Option<&str>,
    ) -> Result<(), HostError> {
        let uid = service.map(|service| service.uid.as_str());
        let secret = Value::from(certs_secret(name, &self.namespace, files, uid));
        let secret_name = names::certs_secret(name);
        let object = format!("Secret {}/{secret_name}", self.namespace);
        let written = match version {
            None => self.rest.create(&SECRETS, &self.namespace, &secret).await,
            Some(version) => {
                let mut patch = self.merge_of(&secret);
                patch.set_at(&["metadata", "resourceVersion"], version.into());
                self.rest.patch(&SECRETS, "", &self.namespace, &secret_name, PatchType::Merge, &patch).await
            }
        };
        written.map(drop).map_err(failed("write", object))
    }

    fn merge_of(&self, secret: &Value) -> Value {
        let part = |path: &[&str]| secret.at(path).cloned().unwrap_or_default();
        json!({
            "metadata": {
                "labels": (part(&["metadata", "labels"])),
                "ownerReferences": (part(&["metadata", "ownerReferences"])),
            },
            "data": (part(&["data"])),
        })
    }

    /// Creates the Secret, or merges it into the one that exists.
    pub(crate) async fn put(&self, secret: &Value) -> Result<(), HostError> {
        let namespace = secret.str_at(&["metadata", "namespace"]);
        let name = secret.str_at(&["metadata", "name"]);
        let object = format!("Secret {namespace}/{name}");
        match self.rest.create(&SECRETS, namespace, secret).await {
            Err(error) if error.is_already_exists() => {
                let patch = self.merge_of(secret);
                let written = self.rest.patch(&SECRETS, "", namespace, name, PatchType::Merge, &patch).await;
                written.map(drop).map_err(failed("write", object))
            }
            result => result.map(drop).map_err(failed("write", object)),
        }
    }

    /// Remembers something about the cluster at its Service.
    pub(crate) async fn annotate_service(&self, name: &str, annotation: &str, value: &str) -> Result<(), HostError> {
        let mut patch = json!({"metadata": {"annotations": {}}});
        patch["metadata"]["annotations"][annotation] = value.into();
        let written = self.rest.patch(&SERVICES, "", &self.namespace, name, PatchType::Merge, &patch).await;
        written.map(drop).map_err(failed("annotate", format!("Service {}/{name}", self.namespace)))
    }
}
