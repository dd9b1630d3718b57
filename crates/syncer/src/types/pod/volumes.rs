//! Volumes: names translated, tokens taken from a Secret the syncer keeps, host objects never named by the tenant.

use apimachinery::{Value, json};

use super::downward;
use super::env::rename;
use crate::kind;
use crate::plan::{TokenPlan, TokenRequest};
use crate::types::{Context, Refusal};

/// In-tree volume sources with a reference to a Secret: source, then the member that holds the reference.
const SECRET_REFS: [(&str, &str); 8] = [
    ("iscsi", "secretRef"),
    ("rbd", "secretRef"),
    ("flexVolume", "secretRef"),
    ("cinder", "secretRef"),
    ("cephfs", "secretRef"),
    ("scaleIO", "secretRef"),
    ("storageos", "secretRef"),
    ("csi", "nodePublishSecretRef"),
];

const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// The service account a pod runs as in the virtual cluster.
pub fn service_account(pod: &Value) -> &str {
    match (pod.str_at(&["spec", "serviceAccountName"]), pod.str_at(&["spec", "serviceAccount"])) {
        ("", "") => "default",
        ("", deprecated) => deprecated,
        (name, _) => name,
    }
}

/// The tokens a virtual pod mounts, with the keys they have in the host Secret. `None` when it mounts none.
pub fn token_plan(pod: &Value, ctx: &Context<'_>) -> Option<TokenPlan> {
    let mut tokens = Vec::new();
    for volume in pod.array_at(&["spec", "volumes"]) {
        let name = volume.str_at(&["name"]);
        let sources = volume.array_at(&["projected", "sources"]);
        for (n, token) in sources.iter().filter_map(|s| s.get("serviceAccountToken")).enumerate() {
            let audiences = match token.str_at(&["audience"]) {
                "" => {
                    let domain = &ctx.settings.cluster_domain;
                    vec![
                        format!("https://kubernetes.default.svc.{domain}"),
                        "https://kubernetes.default.svc".into(),
                        "https://kubernetes.default".into(),
                    ]
                }
                audience => vec![audience.into()],
            };
            tokens.push(TokenRequest {
                key: token_key(name, n),
                audiences,
                expiration_seconds: token["expirationSeconds"].as_i64().unwrap_or(TOKEN_SECONDS_DEFAULT),
            });
        }
    }
    (!tokens.is_empty()).then(|| TokenPlan { service_account: service_account(pod).to_owned(), tokens })
}

/// The first token of a volume has the volume's name as key; further ones are numbered.
fn token_key(volume: &str, n: usize) -> String {
    if n == 0 { volume.to_owned() } else { format!("{volume}.{n}") }
}

/// Translates `spec.volumes` of `host` (a copy of the virtual pod's spec).
pub fn translate(pod: &Value, host: &mut Value, ctx: &Context<'_>) -> Result<(), Refusal> {
    let namespace = pod.str_at(&["metadata", "namespace"]);
    let pod_name = pod.str_at(&["metadata", "name"]);
    let names = ctx.names;
    let Some(volumes) = host.at_mut(&["spec", "volumes"]).and_then(Value::as_array_mut) else { return Ok(()) };
    for volume in volumes {
        let volume_name = volume.str_at(&["name"]).to_owned();
        if let Some(source) = volume.get_mut("configMap") {
            let name = kind::CONFIG_MAP.name_on_host(names, source.str_at(&["name"]), namespace);
            rename(source, "name", name);
        }
        if let Some(source) = volume.get_mut("secret") {
            let name = kind::SECRET.name_on_host(names, source.str_at(&["secretName"]), namespace);
            rename(source, "secretName", name);
        }
        if let Some(source) = volume.get_mut("persistentVolumeClaim") {
            let name = kind::PERSISTENT_VOLUME_CLAIM.name_on_host(names, source.str_at(&["claimName"]), namespace);
            rename(source, "claimName", name);
        }
        if volume.get("ephemeral").is_some() {
            // The virtual cluster's own controller makes the claim and its pod owns it.
            volume.remove_at(&["ephemeral"]);
            let claim =
                kind::PERSISTENT_VOLUME_CLAIM.name_on_host(names, &format!("{pod_name}-{volume_name}"), namespace);
            volume["persistentVolumeClaim"] = json!({ "claimName": claim });
        }
        if let Some(items) = volume.at_mut(&["downwardAPI", "items"]).and_then(Value::as_array_mut) {
            translate_items(items, ctx);
        }
        for (source, reference) in SECRET_REFS {
            if let Some(reference) = volume.at_mut(&[source, reference]) {
                let name = kind::SECRET.name_on_host(names, reference.str_at(&["name"]), namespace);
                rename(reference, "name", name);
            }
        }
        if let Some(source) = volume.get_mut("azureFile") {
            let name = kind::SECRET.name_on_host(names, source.str_at(&["secretName"]), namespace);
            rename(source, "secretName", name);
        }
        if let Some(source) = volume.get_mut("glusterfs") {
            let name = kind::ENDPOINTS.name_on_host(names, source.str_at(&["endpoints"]), namespace);
            rename(source, "endpoints", name);
        }
        if let Some(source) = volume.get_mut("image")
            && let Some(image) = ctx.settings.pods.translate_image.get(source.str_at(&["reference"]))
        {
            source["reference"] = image.as_str().into();
        }
        if let Some(sources) = volume.at_mut(&["projected", "sources"]).and_then(Value::as_array_mut) {
            translate_projected(sources, &volume_name, pod_name, namespace, ctx)?;
        }
    }
    Ok(())
}

fn translate_items(items: &mut [Value], ctx: &Context<'_>) {
    for item in items {
        if let Some(field) = item.get_mut("fieldRef") {
            downward::translate_field_ref(field, ctx.names);
        }
    }
}

fn translate_projected(
    sources: &mut [Value],
    volume: &str,
    pod: &str,
    namespace: &str,
    ctx: &Context<'_>,
) -> Result<(), Refusal> {
    let mut tokens = 0;
    for source in sources {
        for member in ["clusterTrustBundle", "podCertificate"] {
            if source.get(member).is_some_and(|v| !v.is_null()) {
                return Err(Refusal::error(format!(
                    "volume {volume}: projected source {member} names objects of the host and is not supported"
                )));
            }
        }
        if let Some(reference) = source.get_mut("secret") {
            let name = kind::SECRET.name_on_host(ctx.names, reference.str_at(&["name"]), namespace);
            rename(reference, "name", name);
        }
        if let Some(reference) = source.get_mut("configMap") {
            let name = kind::CONFIG_MAP.name_on_host(ctx.names, reference.str_at(&["name"]), namespace);
            rename(reference, "name", name);
        }
        if let Some(items) = source.at_mut(&["downwardAPI", "items"]).and_then(Value::as_array_mut) {
            translate_items(items, ctx);
        }
        if let Some(token) = source.remove_at(&["serviceAccountToken"]) {
            let path = token.str_at(&["path"]);
            *source = json!({"secret": {
                "name": (ctx.names.token_secret(pod, namespace).name),
                "items": [{"key": (token_key(volume, tokens)), "path": path, "mode": 0o644}],
            }});
            tokens += 1;
        }
    }
    Ok(())
}

/// Names of the virtual ConfigMaps a pod refers to, in its own namespace.
pub fn config_map_refs(pod: &Value) -> Vec<&str> {
    let mut out = Vec::new();
    for container in super::containers(pod) {
        for variable in container.array_at(&["env"]) {
            out.push(variable.str_at(&["valueFrom", "configMapKeyRef", "name"]));
        }
        for source in container.array_at(&["envFrom"]) {
            out.push(source.str_at(&["configMapRef", "name"]));
        }
    }
    for volume in pod.array_at(&["spec", "volumes"]) {
        out.push(volume.str_at(&["configMap", "name"]));
        for source in volume.array_at(&["projected", "sources"]) {
            out.push(source.str_at(&["configMap", "name"]));
        }
    }
    distinct(out)
}

/// Names of the virtual Secrets a pod refers to, in its own namespace.
pub fn secret_refs(pod: &Value) -> Vec<&str> {
    let mut out = Vec::new();
    for container in super::containers(pod) {
        for variable in container.array_at(&["env"]) {
            out.push(variable.str_at(&["valueFrom", "secretKeyRef", "name"]));
        }
        for source in container.array_at(&["envFrom"]) {
            out.push(source.str_at(&["secretRef", "name"]));
        }
    }
    for reference in pod.array_at(&["spec", "imagePullSecrets"]) {
        out.push(reference.str_at(&["name"]));
    }
    for volume in pod.array_at(&["spec", "volumes"]) {
        out.push(volume.str_at(&["secret", "secretName"]));
        out.push(volume.str_at(&["azureFile", "secretName"]));
        for (source, reference) in SECRET_REFS {
            out.push(volume.str_at(&[source, reference, "name"]));
        }
        for source in volume.array_at(&["projected", "sources"]) {
            out.push(source.str_at(&["secret", "name"]));
        }
    }
    distinct(out)
}

fn distinct(mut names: Vec<&str>) -> Vec<&str> {
    names.retain(|n| !n.is_empty());
    names.sort_unstable();
    names.dedup();
    names
}
