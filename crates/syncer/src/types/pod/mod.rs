//! Pods: run on the host, look as if they ran in the virtual cluster.
//!
//! Down: the spec, field by field. Up: status, deletion, the node. Follows: vCluster `resources/pods`.

pub mod downward;
pub mod env;
pub mod host_paths;
pub mod scheduling;
pub mod update;
pub mod volumes;

use apimachinery::{Map, Value, json, pod_security};

use crate::kind::{self, Kind};
use crate::metadata::{self, controller_of, is_deleting, name_of, uid_of};
use crate::plan::{Action, LastSeen};
use crate::types::{Context, Desired, Reference, Refusal, ToHost, check_class, object};
use env::rename;

pub const OWNER_REFERENCES_ANNOTATION: &str = "vcluster.loft.sh/owner-references";
pub const OWNER_SET_KIND_ANNOTATION: &str = "vcluster.loft.sh/owner-set-kind";
const SAFE_TO_EVICT_ANNOTATION: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
const DAEMON_SET_POD_ANNOTATION: &str = "cluster-autoscaler.kubernetes.io/daemonset-pod";
const HOSTS_REWRITTEN_ANNOTATION: &str = "vcluster.loft.sh/hosts-rewritten";
const DISABLE_REWRITE_ANNOTATION: &str = "vcluster.loft.sh/disable-subdomain-rewrite";
pub const REWRITE_HOSTS: &str = "vcluster-rewrite-hosts";

/// Annotations that the translation writes itself; neither side's value is copied to the other.
pub const COMPUTED_ANNOTATIONS: [&str; 9] = [
    SAFE_TO_EVICT_ANNOTATION,
    OWNER_REFERENCES_ANNOTATION,
    OWNER_SET_KIND_ANNOTATION,
    downward::NAMESPACE_ANNOTATION,
    downward::NAME_ANNOTATION,
    downward::UID_ANNOTATION,
    downward::SERVICE_ACCOUNT_ANNOTATION,
    downward::LABELS_ANNOTATION,
    HOSTS_REWRITTEN_ANNOTATION,
];

const GRACE_SECONDS_DEFAULT: i64 = 30;
const PRIORITY_MAX: i64 = 1_000_000_000;

/// All containers of a pod: init, regular, ephemeral.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|m| pod.array_at(&["spec", m]))
}

/// True when a DaemonSet made the virtual pod.
pub fn is_daemon_set_pod(pod: &Value) -> bool {
    pod.array_at(&["metadata", "ownerReferences"])
        .iter()
        .any(|o| o.str_at(&["apiVersion"]) == "apps/v1" && o.str_at(&["kind"]) == "DaemonSet")
}

pub struct Pods;

impl ToHost for Pods {
    fn kind(&self) -> &Kind {
        &kind::POD
    }

    fn wanted(&self, pod: &Value, ctx: &Context<'_>) -> bool {
        // A pod that is placed inside the virtual cluster is of no use to the host before it has a node.
        !(ctx.settings.scheduled_in_virtual_cluster(scheduler(pod)) && pod.str_at(&["spec", "nodeName"]).is_empty())
    }

    fn refers(&self) -> bool {
        true
    }

    fn references(&self, pod: &Value) -> Vec<Reference> {
        let namespace = pod.str_at(&["metadata", "namespace"]);
        let of = |kind: &'static str, names: Vec<&str>| -> Vec<Reference> {
            names.into_iter().map(|name| Reference::new(kind, namespace, name)).collect()
        };
        let mut out = of("ConfigMap", volumes::config_map_refs(pod));
        out.extend(of("Secret", volumes::secret_refs(pod)));
        out
    }

    fn translate(&self, pod: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        let mut actions = Vec::new();
        let host = translate(pod, ctx, &mut actions)?;
        if let Some(tokens) = volumes::token_plan(pod, ctx) {
            actions.push(Action::WriteTokens(tokens));
        }
        Ok((host, actions))
    }

    fn reconcile(&self, pod: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>) -> Result<Desired, Refusal> {
        update::reconcile(pod, host, last, ctx)
    }

    fn deleting(&self, pod: &Value, host: &Value, ctx: &Context<'_>) -> Option<Vec<Action>> {
        let grace = |p: &Value| p.at(&["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
        let mut actions = Vec::new();
        match (is_deleting(pod), is_deleting(host)) {
            (false, true) => {
                let seconds = pod.at(&["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64);
                actions.push(Action::delete_virtual(pod, Some(seconds.unwrap_or(GRACE_SECONDS_DEFAULT))));
            }
            (true, false) => actions.push(Action::delete_host(host, grace(pod), "the virtual pod is being deleted")),
            // A grace period can only become shorter.
            (true, true) => match (grace(pod), grace(host)) {
                (Some(v), Some(h)) if h < v && h > 0 => actions.push(Action::delete_virtual(pod, Some(h))),
                (Some(v), Some(h)) if v < h => {
                    actions.push(Action::delete_host(host, Some(v), "the virtual pod's grace period became shorter"));
                }
                _ => {}
            },
            (false, false) => {}
        }
        // The status flows until the end: controllers wait for a terminating pod to succeed or fail.
        let mut shown = pod.clone();
        update::reflect_status(&mut shown, host, true, ctx);
        crate::plan::push_patches(&mut actions, pod, &shown, |patch, subresource| Action::PatchVirtual {
            patch,
            subresource,
        });
        Some(actions)
    }

    fn host_gone(&self, pod: &Value, last: &LastSeen) -> Option<Vec<Action>> {
        let started = pod.at(&["status", "startTime"]).is_some_and(|t| !t.is_null());
        if !(last.on_host || started || is_deleting(pod)) {
            return None;
        }
        // Already told to go at once: only finalizers hold it. Whoever set them waits for the end of the pod.
        if is_deleting(pod) && pod.at(&["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64) == Some(0) {
            let (mut actions, mut shown) = (Vec::new(), pod.clone());
            if !pod.array_at(&["metadata", "finalizers"]).is_empty() {
                update::end(&mut shown);
            }
            crate::plan::push_patches(&mut actions, pod, &shown, |patch, subresource| Action::PatchVirtual {
                patch,
                subresource,
            });
            return Some(actions);
        }
        Some(vec![Action::delete_virtual(pod, Some(0))])
    }
}

pub fn scheduler(pod: &Value) -> &str {
    match pod.str_at(&["spec", "schedulerName"]) {
        "" => "default-scheduler",
        name => name,
    }
}

/// Annotations that are computed from the virtual pod. `None`: remove the key.
pub fn computed_annotations(pod: &Value) -> Vec<(&'static str, Option<String>)> {
    let own = |key: &str| Some(metadata::annotation(pod, key)).filter(|v| !v.is_empty()).map(str::to_owned);
    let controller = controller_of(pod);
    let owners = pod.array_at(&["metadata", "ownerReferences"]);
    let set_kind = owners
        .iter()
        .filter(|o| o.str_at(&["apiVersion"]) == "apps/v1" || o.str_at(&["kind"]) == "Job")
        .map(|o| o.str_at(&["kind"]))
        .find(|k| matches!(*k, "DaemonSet" | "Job" | "ReplicaSet" | "StatefulSet"));
    vec![
        // A pod that a virtual cluster inside this one made carries its own values already: they are the ones to show.
        (downward::NAMESPACE_ANNOTATION, own(downward::NAMESPACE_ANNOTATION).or(Some(name_of(pod).namespace))),
        (downward::NAME_ANNOTATION, own(downward::NAME_ANNOTATION).or(Some(name_of(pod).name))),
        (downward::UID_ANNOTATION, own(downward::UID_ANNOTATION).or(Some(uid_of(pod).to_owned()))),
        (
            downward::SERVICE_ACCOUNT_ANNOTATION,
            own(downward::SERVICE_ACCOUNT_ANNOTATION).or(Some(pod.str_at(&["spec", "serviceAccountName"]).to_owned())),
        ),
        (
            downward::LABELS_ANNOTATION,
            own(downward::LABELS_ANNOTATION).or(Some(downward::map_file(pod.at(&["metadata", "labels"]), |_| false))),
        ),
        (SAFE_TO_EVICT_ANNOTATION, own(SAFE_TO_EVICT_ANNOTATION).or(Some(controller.is_some().to_string()))),
        (
            OWNER_REFERENCES_ANNOTATION,
            own(OWNER_REFERENCES_ANNOTATION)
                .or((!owners.is_empty()).then(|| Value::Array(owners.to_vec()).to_string())),
        ),
        (OWNER_SET_KIND_ANNOTATION, own(OWNER_SET_KIND_ANNOTATION).or(set_kind.map(str::to_owned))),
        (
            DAEMON_SET_POD_ANNOTATION,
            own(DAEMON_SET_POD_ANNOTATION)
                .or(controller.filter(|c| c.str_at(&["kind"]) == "DaemonSet").map(|_| "true".to_owned())),
        ),
        (
            downward::ANNOTATIONS_ANNOTATION,
            downward::reads_all_annotations(pod).then(|| {
                downward::map_file(pod.at(&["metadata", "annotations"]), |key| {
                    key == "kubectl.kubernetes.io/last-applied-configuration"
                })
            }),
        ),
    ]
}

fn check_classes(pod: &Value, ctx: &Context<'_>) -> Result<(), Refusal> {
    let what = format!("pod \"{}\"", pod.str_at(&["metadata", "name"]));
    let priority_class = pod.str_at(&["spec", "priorityClassName"]);
    if !matches!(priority_class, "system-node-critical" | "system-cluster-critical") {
        let import = &ctx.settings.import_priority_classes;
        check_class(ctx, &what, "PriorityClass", priority_class, import, "sync.fromHost.priorityClasses.selector")?;
    }
    let runtime_class = pod.str_at(&["spec", "runtimeClassName"]);
    let import = &ctx.settings.import_runtime_classes;
    check_class(ctx, &what, "RuntimeClass", runtime_class, import, "sync.fromHost.runtimeClasses.selector")
}

fn translate(pod: &Value, ctx: &Context<'_>, actions: &mut Vec<Action>) -> Result<Value, Refusal> {
    check_classes(pod, ctx)?;
    let settings = ctx.settings;
    let namespace = pod.str_at(&["metadata", "namespace"]);
    if ctx.facts.kube_ip.is_empty() {
        return Err(Refusal::not_yet("the control plane's Service has no cluster IP yet", 1));
    }

    if let Some(level) = settings.pod_security {
        let findings = pod_security::evaluate(level, pod_security::NEWEST_MINOR, pod);
        if !findings.is_empty() {
            let name = format!("{level:?}").to_lowercase();
            let details = pod_security::details(&findings);
            return Err(Refusal::error(format!(
                "Pod {:?} is forbidden: violates PodSecurity \"{name}:latest\": {details}",
                pod.str_at(&["metadata", "name"])
            )));
        }
    }

    if ctx.facts.dns_pending && scheduling::is_cluster_first(pod) {
        return Err(Refusal::not_yet("the DNS Service has no cluster IP yet", 1));
    }

    let mut host = object(&kind::POD, ctx.metadata(pod, &kind::POD, &COMPUTED_ANNOTATIONS));
    for (key, value) in computed_annotations(pod) {
        if let Some(value) = value {
            host.set_at(&["metadata", "annotations", key], value.into());
        }
    }
    for (key, value) in ctx.facts.namespace_labels.iter() {
        let key = ctx.names.namespace_label(key);
        host.set_at(&["metadata", "labels", &key], value.clone());
    }
    host["spec"] = pod["spec"].clone();

    translate_identity(pod, &mut host, ctx);
    translate_priority(pod, &mut host, ctx);

    // The pod's way to its own API server, whatever name it uses.
    let mut aliases = pod.array_at(&["spec", "hostAliases"]).to_vec();
    let mut hostnames: Vec<String> = Vec::new();
    if !settings.cluster_domain.is_empty() {
        hostnames.push(format!("kubernetes.default.svc.{}", settings.cluster_domain));
    }
    hostnames.extend(["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(String::from));
    aliases.push(json!({"ip": (ctx.facts.kube_ip.as_str()), "hostnames": hostnames}));
    host["spec"]["hostAliases"] = Value::Array(aliases);

    scheduling::translate_dns(pod, &mut host, ctx);

    let services = env::service_env(pod, ctx);
    for member in ["initContainers", "containers"] {
        let Some(list) = host.at_mut(&["spec", member]).and_then(Value::as_array_mut) else { continue };
        for container in list {
            translate_container(container, namespace, &services, ctx);
        }
    }
    // They cannot be there when a pod is created; they are added through their subresource.
    host.remove_at(&["spec", "ephemeralContainers"]);

    if let Some(list) = host.at_mut(&["spec", "imagePullSecrets"]).and_then(Value::as_array_mut) {
        for reference in list {
            let name = kind::SECRET.name_on_host(ctx.names, reference.str_at(&["name"]), namespace);
            rename(reference, "name", name);
        }
    }
    volumes::translate(pod, &mut host, ctx)?;
    if settings.host_path_mapper {
        host_paths::translate(&mut host, ctx);
    }
    translate_hostname(pod, &mut host, ctx);

    translate_claims(pod, &mut host, ctx)?;
    if settings.host_older_than(34) {
        host.remove_at(&["spec", "resources"]);
    }
    if !settings.pods.runtime_class_name.is_empty() {
        host["spec"]["runtimeClassName"] = settings.pods.runtime_class_name.as_str().into();
    }
    // The host's admission computes it from its own runtime class and refuses another value.
    host.remove_at(&["spec", "overhead"]);

    if settings.scheduled_in_virtual_cluster(scheduler(pod)) {
        for member in ["topologySpreadConstraints", "affinity", "nodeSelector"] {
            host.remove_at(&["spec", member]);
        }
    } else {
        scheduling::translate_spread(pod, &mut host, ctx);
        if let Some(message) = scheduling::translate_affinity(pod, &mut host, ctx) {
            actions.push(Action::Warn { reason: "SyncWarning", message: message.into() });
        }
    }
    restrict_nodes(pod, &mut host, ctx)?;
    add_tolerations(&mut host, &settings.pods.enforce_tolerations);
    Ok(host)
}

fn translate_identity(pod: &Value, host: &mut Value, ctx: &Context<'_>) {
    let namespace = pod.str_at(&["metadata", "namespace"]);
    let account = if ctx.settings.service_accounts {
        kind::SERVICE_ACCOUNT.name_on_host(ctx.names, volumes::service_account(pod), namespace)
    } else {
        ctx.settings.workload_service_account.clone()
    };
    host.remove_at(&["spec", "serviceAccount"]);
    host.remove_at(&["spec", "serviceAccountName"]);
    if !account.is_empty() {
        host["spec"]["serviceAccountName"] = account.into();
    }
    // The host's token would open the host's API server.
    host["spec"]["automountServiceAccountToken"] = false.into();
    host["spec"]["enableServiceLinks"] = false.into();
}

fn translate_priority(pod: &Value, host: &mut Value, ctx: &Context<'_>) {
    let settings = ctx.settings;
    let class = pod.str_at(&["spec", "priorityClassName"]);
    if settings.priority_classes && !class.is_empty() {
        host["spec"]["priorityClassName"] = kind::PRIORITY_CLASS.cluster_name_on_host(ctx.names, class).into();
        if pod.at(&["spec", "priority"]).and_then(Value::as_i64).is_some_and(|p| p > PRIORITY_MAX) {
            host["spec"]["priority"] = PRIORITY_MAX.into();
        }
    } else if !settings.priority_classes && !settings.import_priority_classes.is_on() {
        for member in ["priorityClassName", "priority", "preemptionPolicy"] {
            host.remove_at(&["spec", member]);
        }
    }
    if !settings.pods.priority_class_name.is_empty() && host.str_at(&["spec", "priorityClassName"]).is_empty() {
        host["spec"]["priorityClassName"] = settings.pods.priority_class_name.as_str().into();
        host.remove_at(&["spec", "priority"]);
        host.remove_at(&["spec", "preemptionPolicy"]);
    }
}

/// Names of resource claims. Where claims go to the host, those that were made here from templates do too, and the host's pod
/// names them; else the host makes its own from the template.
fn translate_claims(pod: &Value, host: &mut Value, ctx: &Context<'_>) -> Result<(), Refusal> {
    let namespace = pod.str_at(&["metadata", "namespace"]);
    let Some(claims) = host.at_mut(&["spec", "resourceClaims"]).and_then(Value::as_array_mut) else { return Ok(()) };
    if ctx.settings.host_lacks_claims && !claims.is_empty() {
        // The host would drop them and run the pod without its devices.
        return Err(Refusal::error("spec.resourceClaims: the host does not serve resource.k8s.io/v1"));
    }
    for claim in claims {
        if ctx.settings.resource_claims && !claim.str_at(&["resourceClaimTemplateName"]).is_empty() {
            let mut statuses = pod.array_at(&["status", "resourceClaimStatuses"]).iter();
            let made = statuses.find(|s| s["name"] == claim["name"]);
            let Some(made) = made.map(|s| s.str_at(&["resourceClaimName"])).filter(|name| !name.is_empty()) else {
                return Err(Refusal::not_yet("the claim of a template is not made yet", 1));
            };
            claim.remove_at(&["resourceClaimTemplateName"]);
            claim["resourceClaimName"] = made.into();
        }
        for (member, of) in [
            ("resourceClaimName", &kind::RESOURCE_CLAIM),
            ("resourceClaimTemplateName", &kind::RESOURCE_CLAIM_TEMPLATE),
        ] {
            let name = of.name_on_host(ctx.names, claim.str_at(&[member]), namespace);
            rename(claim, member, name);
        }
    }
    Ok(())
}

pub fn translate_image(container: &mut Value, ctx: &Context<'_>) {
    if let Some(image) = ctx.settings.pods.translate_image.get(container.str_at(&["image"])) {
        container["image"] = image.as_str().into();
    }
}

pub fn translate_container(
    container: &mut Value,
    namespace: &str,
    services: &std::collections::BTreeMap<String, String>,
    ctx: &Context<'_>,
) {
    env::translate(container, namespace, services, ctx);
    translate_image(container, ctx);
}

fn translate_hostname(pod: &Value, host: &mut Value, ctx: &Context<'_>) {
    if pod.str_at(&["spec", "hostname"]).is_empty() {
        let name = pod.str_at(&["metadata", "name"]);
        let mut cut = name.len().min(63);
        while !name.is_char_boundary(cut) {
            cut -= 1;
        }
        host["spec"]["hostname"] = name[..cut].replace('.', "-").trim_end_matches('-').into();
    }
    let subdomain = pod.str_at(&["spec", "subdomain"]).to_owned();
    if subdomain.is_empty() {
        return;
    }
    host.remove_at(&["spec", "subdomain"]);
    // A host that can give any name to a pod needs no container for it.
    if pod.at(&["spec", "setHostnameAsFQDN"]).is_some_and(|v| *v == true) {
        host.remove_at(&["spec", "setHostnameAsFQDN"]);
        let namespace = pod.str_at(&["metadata", "namespace"]);
        let hostname = host.str_at(&["spec", "hostname"]);
        let fqdn = format!("{hostname}.{subdomain}.{namespace}.svc.{}", ctx.settings.cluster_domain);
        // The kernel takes no longer ones.
        if !ctx.settings.host_older_than(35) && ctx.settings.host_version.is_some() && fqdn.len() <= 64 {
            host["spec"]["hostnameOverride"] = fqdn.into();
            return;
        }
    }
    let Some(rewrite) = &ctx.settings.pods.rewrite_hosts else { return };
    if metadata::annotation(pod, DISABLE_REWRITE_ANNOTATION) == "true" {
        return;
    }
    let hostname = host.str_at(&["spec", "hostname"]).to_owned();
    let namespace = pod.str_at(&["metadata", "namespace"]);
    let fqdn = format!("{hostname}.{subdomain}.{namespace}.svc.{}", ctx.settings.cluster_domain);
    let mut init = json!({
        "name": REWRITE_HOSTS,
        "image": (rewrite.image.as_str()),
        "resources": (&rewrite.resources),
        "securityContext": {
            "runAsUser": 1001, "runAsGroup": 1001, "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"]},
            "allowPrivilegeEscalation": false,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"mountPath": "/hosts", "name": REWRITE_HOSTS}],
    });
    if rewrite.own {
        init["args"] = json!(["rewrite-hosts", "--hostname", hostname, "--fqdn", fqdn, "--output", "/hosts/hosts"]);
    } else {
        // Only POSIX classes, and IPv6 addresses too: any sed does.
        let script = format!(
            "sed -E 's/^([0-9a-fA-F.:]+[[:space:]]+){hostname}$/\\1{fqdn} {hostname}/' /etc/hosts > /hosts/hosts"
        );
        init["command"] = json!(["sh"]);
        init["args"] = json!(["-c", script]);
    }
    let mount = json!({"mountPath": "/etc/hosts", "name": REWRITE_HOSTS, "subPath": "hosts"});
    for member in ["initContainers", "containers"] {
        let Some(list) = host.at_mut(&["spec", member]).and_then(Value::as_array_mut) else { continue };
        for container in list {
            let mounts = container.make_object().get_or_insert_with("volumeMounts", || Value::Array(Vec::new()));
            if let Some(mounts) = mounts.as_array_mut() {
                mounts.push(mount.clone());
            }
        }
    }
    let spec = host["spec"].make_object();
    let list = |spec: &mut Map, member: &str, front: bool, value: Value| {
        let values = spec.get_or_insert_with(member, || Value::Array(Vec::new()));
        if let Some(values) = values.as_array_mut() {
            values.insert(if front { 0 } else { values.len() }, value);
        }
    };
    list(spec, "initContainers", true, init);
    list(spec, "volumes", false, json!({"name": REWRITE_HOSTS, "emptyDir": {}}));
    host.set_at(&["metadata", "annotations", HOSTS_REWRITTEN_ANNOTATION], "true".into());
}

/// With a selection of nodes the tenant's pods go to those only.
fn restrict_nodes(pod: &Value, host: &mut Value, ctx: &Context<'_>) -> Result<(), Refusal> {
    let crate::settings::Nodes::Real { labels, .. } = &ctx.settings.nodes else { return Ok(()) };
    if labels.is_empty() {
        return Ok(());
    }
    let node = pod.str_at(&["spec", "nodeName"]);
    if node.is_empty() {
        for (key, value) in labels {
            host.set_at(&["spec", "nodeSelector", key], value.as_str().into());
        }
    } else if !ctx.facts.node_exists {
        return Err(Refusal::warning(format!("Given nodeName {node} does not exist in virtual cluster")));
    }
    Ok(())
}

/// Adds those that are not there yet.
pub fn add_tolerations(host: &mut Value, more: &[Value]) {
    if more.is_empty() {
        return;
    }
    let list = host["spec"].make_object().get_or_insert_with("tolerations", || Value::Array(Vec::new()));
    if let Some(list) = list.as_array_mut() {
        for toleration in more {
            if !list.contains(toleration) {
                list.push(toleration.clone());
            }
        }
    }
}
