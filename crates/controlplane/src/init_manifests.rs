//! `experimental.deploy.vcluster`: objects that a cluster gets when it starts.
//!
//! What was applied is remembered in ConfigMap `kube-system/vcluster-deploy` (compressed, in an annotation), so that objects
//! which are no longer among the manifests are removed, and so that what a tenant changes stays changed until the manifests
//! change. The same ConfigMap says how it went.
//!
//! Charts come after them: [`crate::charts`].
//!
//! Follows: vCluster `pkg/controllers/deploy`.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::{Value, json};
use apiserver::{ApiServer, UserInfo};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use config::Config;
use informer::{ApiError, Backoff, DeleteOptions, PatchType, Resource, Rest};
use tokio_util::sync::CancellationToken;

use crate::charts::{ChartError, Charts};

const CONFIG_MAPS: Resource = Resource::new("", "v1", "configmaps");
const NAMESPACE: &str = "kube-system";
const NAME: &str = "vcluster-deploy";
const STATUS_ANNOTATION: &str = "vcluster.loft.sh/status";
/// Manifests that unpack to more than this were not written by us.
const MANIFEST_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why manifests were not applied.
#[derive(Debug, thiserror::Error)]
enum DeployError {
    #[error("exec manifests template: {0}")]
    Template(#[from] deploy::template::TemplateError),
    #[error("parse objects: {0}")]
    Parse(String),
    #[error("apply {object}: {source}")]
    Apply { object: String, source: ApiError },
    #[error("delete old object {object}: {source}")]
    Delete { object: String, source: ApiError },
    #[error("cannot keep the status: {0}")]
    Status(ApiError),
    #[error(transparent)]
    Chart(#[from] ChartError),
}

/// Applies the manifests of one cluster.
pub(crate) struct InitManifests {
    pub name: String,
    pub host_namespace: String,
    pub config: Arc<Config>,
    pub server: ApiServer,
    /// Who deploys charts; nobody in a hub.
    pub charts: Option<Charts>,
}

/// What tells an object from others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
}

impl Identity {
    fn of(object: &Value) -> Identity {
        let text = |path: &[&str]| object.str_at(path).to_string();
        Identity {
            api_version: text(&["apiVersion"]),
            kind: text(&["kind"]),
            namespace: text(&["metadata", "namespace"]),
            name: text(&["metadata", "name"]),
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

impl InitManifests {
    /// Tries until everything is applied.
    pub async fn run(self, cancel: CancellationToken) {
        let rest = Rest::new(self.server.kube_client(UserInfo::admin()), "alcove");
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30), Duration::from_secs(300));
        loop {
            let error = match self.deploy(&rest).await {
                Ok(()) => return,
                Err(error) => error,
            };
            tracing::warn!(cluster = self.name, %error, "init manifests are not applied yet");
            tokio::select! {
                // Cancel-safe: both only wait.
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    fn manifests(&self) -> Result<String, DeployError> {
        let deploy = &self.config.experimental.deploy.vcluster;
        let mut text = deploy.manifests.clone();
        if !deploy.manifests_template.is_empty() {
            let version = env!("CARGO_PKG_VERSION");
            let data =
                deploy::template::values_context(&self.name, &self.host_namespace, version, self.config.values());
            text.push_str("\n---\n");
            text.push_str(&deploy::template::render(&deploy.manifests_template, &data)?);
        }
        Ok(text)
    }

    async fn deploy(&self, rest: &Rest) -> Result<(), DeployError> {
        let deploy = &self.config.experimental.deploy.vcluster;
        let map = match rest.get(&CONFIG_MAPS, NAMESPACE, NAME).await {
            Ok(map) => map,
            Err(error) if error.is_not_found() => {
                let charts = self.charts.is_some() && !deploy.helm.is_empty();
                if deploy.manifests.is_empty() && deploy.manifests_template.is_empty() && !charts {
                    return Ok(());
                }
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE}});
                rest.create(&CONFIG_MAPS, NAMESPACE, &map).await.map_err(DeployError::Status)?
            }
            Err(error) => return Err(DeployError::Status(error)),
        };
        let before = map.str_at(&["metadata", "annotations", STATUS_ANNOTATION]);
        let before = Value::from_slice(before.as_bytes()).unwrap_or_default();
        let applied = uncompress(before.str_at(&["manifests", "lastAppliedManifests"])).unwrap_or_default();
        let result = async {
            let wanted = self.manifests()?;
            if wanted != applied {
                apply(rest, &wanted, &applied).await?;
            }
            Ok(wanted)
        };
        let result: Result<String, DeployError> = result.await;
        let kept = result.as_ref().map_or(applied.as_str(), String::as_str);
        let earlier = before.array_at(&["charts"]);
        let (charts, chart_error) = match (&self.charts, &result) {
            (Some(charts), Ok(_)) => charts.deploy(rest, &deploy.helm, earlier).await,
            _ => (earlier.to_vec(), None),
        };
        self.tell(rest, &before, kept, result.as_ref().err(), charts).await?;
        match chart_error {
            Some(error) => Err(error.into()),
            None => result.map(drop),
        }
    }

    async fn tell(
        &self,
        rest: &Rest,
        before: &Value,
        applied: &str,
        error: Option<&DeployError>,
        charts: Vec<Value>,
    ) -> Result<(), DeployError> {
        let mut manifests = match error {
            None => json!({"phase": "Success"}),
            Some(error) => json!({"phase": "Failed", "reason": "InstallFailed", "message": (error.to_string())}),
        };
        let failed = charts.iter().find(|chart| chart.str_at(&["phase"]) != "Success");
        let mut status = match failed.filter(|_| error.is_none()) {
            Some(chart) => {
                json!({"phase": "Failed", "reason": (chart["reason"].clone()), "message": (chart["message"].clone())})
            }
            None => manifests.clone(),
        };
        if !charts.is_empty() {
            status["charts"] = Value::Array(charts);
        }
        if !applied.is_empty() {
            manifests["lastAppliedManifests"] = compress(applied).into();
        }
        status["manifests"] = manifests;
        if status == *before {
            return Ok(());
        }
        let mut patch = json!({"metadata": {"annotations": {}}});
        patch["metadata"]["annotations"][STATUS_ANNOTATION] = status.to_string().into();
        let written = rest.patch(&CONFIG_MAPS, "", NAMESPACE, NAME, PatchType::Merge, &patch).await;
        written.map(drop).map_err(DeployError::Status)
    }
}

fn compress(text: &str) -> String {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    // Writing to memory does not fail.
    let _ = encoder.write_all(text.as_bytes());
    STANDARD.encode(encoder.finish().unwrap_or_default())
}

fn uncompress(text: &str) -> Option<String> {
    let bytes = STANDARD.decode(text).ok()?;
    let mut out = String::new();
    flate2::read::GzDecoder::new(bytes.as_slice()).take(MANIFEST_BYTES_MAX).read_to_string(&mut out).ok()?;
    Some(out)
}

/// The objects of YAML documents; lists are taken apart.
fn objects(text: &str) -> Result<Vec<Value>, DeployError> {
    let documents = config::yaml::documents(text).map_err(|error| DeployError::Parse(error.to_string()))?;
    let mut out = Vec::new();
    for document in documents {
        let object = Value::from(document);
        if object.is_null() {
            continue;
        }
        if object.str_at(&["kind"]).ends_with("List") && object.at(&["items"]).is_some() {
            out.extend(object.array_at(&["items"]).iter().cloned());
        } else {
            out.push(object);
        }
    }
    for object in &out {
        for path in [&["apiVersion"][..], &["kind"], &["metadata", "name"]] {
            if object.str_at(path).is_empty() {
                return Err(DeployError::Parse(format!("{} is missing in {object}", path.join("."))));
            }
        }
    }
    Ok(out)
}

/// Kinds by what the server says about them.
#[derive(Default)]
struct Kinds(HashMap<String, Value>);

impl Kinds {
    /// The resource of a kind, and whether it has namespaces.
    async fn find(&mut self, rest: &Rest, object: &Value) -> Result<Option<(Resource, bool)>, ApiError> {
        let api_version = object.str_at(&["apiVersion"]);
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        if !self.0.contains_key(api_version) {
            let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
            let known = match rest.get_path(&path, "application/json").await {
                Err(error) if error.is_not_found() => return Ok(None),
                result => result?,
            };
            self.0.insert(api_version.to_string(), known);
        }
        let Some(known) = self.0.get(api_version) else { return Ok(None) };
        let kind = object.str_at(&["kind"]);
        let found = known
            .array_at(&["resources"])
            .iter()
            .find(|resource| resource.str_at(&["kind"]) == kind && !resource.str_at(&["name"]).contains('/'));
        Ok(found.map(|resource| {
            let name = resource.str_at(&["name"]);
            let resource_ = Resource { group: group.into(), version: version.into(), resource: name.into() };
            (resource_, resource["namespaced"] == true)
        }))
    }
}

async fn apply(rest: &Rest, wanted: &str, applied: &str) -> Result<(), DeployError> {
    let wanted = objects(wanted)?;
    // What cannot be read any more cannot be removed either.
    let before = objects(applied).unwrap_or_default();
    let mut kinds = Kinds::default();
    let mut now = BTreeSet::new();
    for mut object in wanted {
        let identity = Identity::of(&object);
        let failed = |source| DeployError::Apply { object: identity.to_string(), source };
        let found = kinds.find(rest, &object).await.map_err(failed)?;
        let Some((resource, namespaced)) = found else {
            let text = format!("no matches for kind {:?} in version {:?}", identity.kind, identity.api_version);
            return Err(DeployError::Parse(text));
        };
        let namespace = match (namespaced, identity.namespace.as_str()) {
            (true, "") => "default",
            (true, namespace) => namespace,
            (false, _) => "",
        };
        if namespaced {
            object.set_at(&["metadata", "namespace"], namespace.into());
        }
        rest.patch(&resource, "", namespace, &identity.name, PatchType::Apply, &object).await.map_err(failed)?;
        now.insert(identity);
    }
    for object in before {
        let identity = Identity::of(&object);
        if now.contains(&identity) {
            continue;
        }
        let failed = |source| DeployError::Delete { object: identity.to_string(), source };
        // A kind that is gone took its objects along.
        let Some((resource, namespaced)) = kinds.find(rest, &object).await.map_err(failed)? else { continue };
        let namespace = match (namespaced, identity.namespace.as_str()) {
            (true, "") => "default",
            (true, namespace) => namespace,
            (false, _) => "",
        };
        match rest.delete(&resource, namespace, &identity.name, &DeleteOptions::background()).await {
            Err(error) if !error.is_not_found() => return Err(failed(error)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn server() -> ApiServer {
        let config = apiserver::secure_config(&apiserver::SecureOptions::default()).unwrap();
        ApiServer::start(config, store::Store::in_memory(store::Options::default()).await).await.unwrap()
    }

    fn manifests(server: &ApiServer, values: &str) -> (InitManifests, Rest) {
        let config = Arc::new(Config::from_yaml("t", values).unwrap());
        let rest = Rest::new(server.kube_client(UserInfo::admin()), "alcove");
        let server = server.clone();
        (InitManifests { name: "team-a".into(), host_namespace: "host".into(), config, server, charts: None }, rest)
    }

    async fn status(rest: &Rest) -> Value {
        let map = rest.get(&CONFIG_MAPS, NAMESPACE, NAME).await.unwrap();
        Value::from_slice(map.str_at(&["metadata", "annotations", STATUS_ANNOTATION]).as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn manifests_are_applied_pruned_and_left_to_the_tenant_until_they_change() {
        let server = server().await;
        let (none, rest) = manifests(&server, "");
        none.deploy(&rest).await.unwrap();
        assert!(rest.get(&CONFIG_MAPS, NAMESPACE, NAME).await.unwrap_err().is_not_found(), "nothing was asked for");

        let first = "experimental: {deploy: {vcluster: {manifests: \"apiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: a}\\n---\\napiVersion: v1\\nkind: Namespace\\nmetadata: {name: made}\\n\", manifestsTemplate: \"apiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: t, namespace: default}\\ndata: {who: {{ .Release.Name }}, where: {{ .Release.Namespace }}, domain: {{ .Values.networking.advanced.clusterDomain }}}\\n\"}}}\n";
        let (deploy, rest) = manifests(&server, first);
        deploy.deploy(&rest).await.unwrap();
        let data = rest.get(&CONFIG_MAPS, "default", "t").await.unwrap()["data"].clone();
        assert_eq!(data, json!({"who": "team-a", "where": "host", "domain": "cluster.local"}));
        rest.get(&CONFIG_MAPS, "default", "a").await.unwrap();
        assert_eq!(status(&rest).await.str_at(&["phase"]), "Success");

        // The tenant's change stays when the same is deployed again.
        rest.delete(&CONFIG_MAPS, "default", "a", &DeleteOptions::default()).await.unwrap();
        deploy.deploy(&rest).await.unwrap();
        assert!(rest.get(&CONFIG_MAPS, "default", "a").await.unwrap_err().is_not_found());

        // What is no longer wanted goes; what cannot be applied is told.
        let (deploy, rest) = manifests(
            &server,
            "experimental: {deploy: {vcluster: {manifests: \"apiVersion: nosuch/v1\\nkind: Thing\\nmetadata: {name: a}\"}}}",
        );
        deploy.deploy(&rest).await.unwrap_err();
        let told = status(&rest).await;
        assert_eq!(told.str_at(&["manifests", "reason"]), "InstallFailed", "{told}");
        assert!(told.str_at(&["message"]).contains("no matches for kind \"Thing\""), "{told}");
        let (deploy, rest) = manifests(&server, "");
        deploy.deploy(&rest).await.unwrap();
        assert!(rest.get(&CONFIG_MAPS, "default", "t").await.unwrap_err().is_not_found());
        assert_eq!(status(&rest).await.str_at(&["phase"]), "Success");
        server.shutdown().await;
    }
}
