//! Cells of the built-in kinds, in the order of their columns.

use crate::gvk::GroupVersionKind;
use crate::json::{Map, Value};
use crate::kinds::access::Fields;
use crate::kinds::core::resources::canonical;
use crate::kinds::hpa_to_v2;
use crate::labels::{Selector, format_label_selector};
use crate::time::{Timestamp, human_duration};

const NONE: &str = "<none>";
const UNSET: &str = "<unset>";
const UNKNOWN: &str = "<unknown>";

/// How long ago a time was.
pub(super) fn age(time: &Value, now: Timestamp) -> String {
    match time.as_str().and_then(Timestamp::parse) {
        Some(time) => human_duration(now.since(time)),
        None => UNKNOWN.to_owned(),
    }
}

fn created(object: &Value, now: Timestamp) -> Value {
    age(object.v("metadata").v("creationTimestamp"), now).into()
}

/// A text, or what stands for an empty one.
pub(super) fn or(text: &str, empty: &str) -> Value {
    if text.is_empty() { empty } else { text }.into()
}

fn count(list: &[Value]) -> Value {
    list.len().into()
}

fn containers(template: &Value) -> [Value; 2] {
    let list = template.v("spec").list("containers");
    ["name", "image"].map(|key| list.iter().map(|c| c.s(key)).collect::<Vec<_>>().join(",").into())
}

fn format_labels(labels: &Map) -> Value {
    let all: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect();
    or(&all.join(","), NONE)
}

fn selector_text(selector: &Value) -> Value {
    // An absent selector is not an error here.
    if selector.is_null() { NONE.into() } else { format_label_selector(selector).into() }
}

fn list_with_more(list: Vec<String>, max: usize, empty: &str) -> Value {
    if list.len() > max {
        return format!("{} + {} more...", list[..max].join(","), list.len() - max).into();
    }
    or(&list.join(","), empty)
}

fn is_default(object: &Value, annotation: &str) -> Value {
    let meta = object.v("metadata");
    let name = meta.s("name");
    if meta.v("annotations").s(annotation) == "true" { format!("{name} (default)").into() } else { name.into() }
}

/// The cells of any kind but Pod.
pub(super) fn cells(gvk: &GroupVersionKind, object: &Value, now: Timestamp) -> Vec<Value> {
    let name = object.v("metadata").v("name").clone();
    let (spec, status) = (object.v("spec"), object.v("status"));
    let created = || created(object, now);
    let text = |v: &Value, key: &str| Value::from(v.s(key));
    let number = |v: &Value, key: &str| Value::from(v.i(key));
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "PodTemplate") => {
            let template = object.v("template");
            let [names, images] = containers(template);
            vec![name, names, images, format_labels(template.v("metadata").members("labels"))]
        }
        ("", "ReplicationController") => {
            let [names, images] = containers(spec.v("template"));
            let selector = format_labels(spec.members("selector"));
            vec![
                name,
                number(spec, "replicas"),
                number(status, "replicas"),
                number(status, "readyReplicas"),
                created(),
                names,
                images,
                selector,
            ]
        }
        ("apps", "ReplicaSet") => {
            let [names, images] = containers(spec.v("template"));
            vec![
                name,
                number(spec, "replicas"),
                number(status, "replicas"),
                number(status, "readyReplicas"),
                created(),
                names,
                images,
                selector_text(spec.v("selector")),
            ]
        }
        ("apps", "Deployment") => {
            let [names, images] = containers(spec.v("template"));
            let selector = Selector::from_label_selector(spec.v("selector"))
                .map_or_else(|_| "<invalid>".to_owned(), |s| s.to_string());
            vec![
                name,
                format!("{}/{}", status.i("readyReplicas"), spec.i("replicas")).into(),
                number(status, "updatedReplicas"),
                number(status, "availableReplicas"),
                created(),
                names,
                images,
                selector.into(),
            ]
        }
        ("apps", "StatefulSet") => {
            let [names, images] = containers(spec.v("template"));
            let ready = format!("{}/{}", status.i("readyReplicas"), spec.i("replicas"));
            vec![name, ready.into(), created(), names, images]
        }
        ("apps", "DaemonSet") => {
            let template = spec.v("template");
            let [names, images] = containers(template);
            vec![
                name,
                number(status, "desiredNumberScheduled"),
                number(status, "currentNumberScheduled"),
                number(status, "numberReady"),
                number(status, "updatedNumberScheduled"),
                number(status, "numberAvailable"),
                format_labels(template.v("spec").members("nodeSelector")),
                created(),
                names,
                images,
                selector_text(spec.v("selector")),
            ]
        }
        ("apps", "ControllerRevision") => {
            let owner = object.v("metadata").list("ownerReferences").iter().find(|o| o.b("controller"));
            let owner = owner.map(|o| {
                let kind = o.s("kind").to_lowercase();
                match o.s("apiVersion").rsplit_once('/') {
                    Some((group, _)) => format!("{kind}.{}/{}", group.to_lowercase(), o.s("name")),
                    None => format!("{kind}/{}", o.s("name")),
                }
            });
            vec![name, owner.unwrap_or_else(|| NONE.to_owned()).into(), number(object, "revision"), created()]
        }
        ("batch", "Job") => job(object, now),
        ("batch", "CronJob") => {
            let template = spec.v("jobTemplate").v("spec");
            let [names, images] = containers(template.v("template"));
            let suspend = spec.ob("suspend").map_or(UNSET, |s| if s { "True" } else { "False" });
            let last = status.o("lastScheduleTime").map_or_else(|| NONE.to_owned(), |t| age(t, now));
            vec![
                name,
                text(spec, "schedule"),
                spec.os("timeZone").unwrap_or(NONE).into(),
                suspend.into(),
                count(status.list("active")),
                last.into(),
                created(),
                names,
                images,
                selector_text(template.v("selector")),
            ]
        }
        ("policy", "PodDisruptionBudget") => {
            let bound = |key: &str| match spec.o(key) {
                Some(Value::String(s)) => s.as_str().into(),
                Some(n) => n.to_string().into(),
                None => Value::from("N/A"),
            };
            vec![name, bound("minAvailable"), bound("maxUnavailable"), number(status, "disruptionsAllowed"), created()]
        }
        ("", "Service") => service(object, now),
        ("networking.k8s.io", "Ingress") => {
            let ports = if spec.list("tls").is_empty() { "80" } else { "80, 443" };
            vec![
                name,
                spec.os("ingressClassName").unwrap_or(NONE).into(),
                hosts(spec.list("rules")),
                balancer(status).into(),
                ports.into(),
                created(),
            ]
        }
        ("networking.k8s.io", "IngressClass") => {
            let parameters = spec.o("parameters").map_or_else(
                || NONE.to_owned(),
                |p| match p.os("apiGroup") {
                    Some(group) => format!("{}.{group}/{}", p.s("kind"), p.s("name")),
                    None => format!("{}/{}", p.s("kind"), p.s("name")),
                },
            );
            let name = is_default(object, "ingressclass.kubernetes.io/is-default-class");
            vec![name, text(spec, "controller"), parameters.into(), created()]
        }
        ("networking.k8s.io", "NetworkPolicy") => {
            // An empty pod selector selects all pods, which is shown as none.
            let selector = spec.o("podSelector").map_or_else(|| NONE.to_owned(), format_label_selector);
            vec![name, selector.into(), created()]
        }
        ("networking.k8s.io", "ServiceCIDR") => {
            let cidrs: Vec<&str> = spec.list("cidrs").iter().filter_map(Value::as_str).collect();
            vec![name, cidrs.join(",").into(), created()]
        }
        ("networking.k8s.io", "IPAddress") => {
            let parent = spec.o("parentRef").map_or_else(
                || NONE.to_owned(),
                |p| {
                    let resource = match p.s("group") {
                        "" => p.s("resource").to_lowercase(),
                        group => format!("{}.{group}", p.s("resource")).to_lowercase(),
                    };
                    let namespace = p.s("namespace");
                    let namespace = if namespace.is_empty() { String::new() } else { format!("/{namespace}") };
                    format!("{resource}{namespace}/{}", p.s("name"))
                },
            );
            // One more cell than there are columns, as upstream.
            vec![name, parent.into(), created()]
        }
        ("", "Endpoints") => vec![name, endpoints(object.list("subsets")), created()],
        ("discovery.k8s.io", "EndpointSlice") => {
            let ports = object.list("ports").iter().map(|p| match (p.oi("port"), p.os("name")) {
                (Some(port), _) => port.to_string(),
                (None, Some(name)) => name.to_owned(),
                (None, None) => "*".to_owned(),
            });
            let addresses = object
                .list("endpoints")
                .iter()
                .flat_map(|e| e.list("addresses"))
                .map(|a| a.as_str().unwrap_or("").to_owned());
            vec![
                name,
                text(object, "addressType"),
                list_with_more(ports.collect(), 3, UNSET),
                list_with_more(addresses.collect(), 3, UNSET),
                created(),
            ]
        }
        ("", "Node") => node(object, now),
        ("" | "events.k8s.io", "Event") => event(object, now),
        ("", "Namespace") => vec![name, text(status, "phase"), created()],
        ("", "Secret") => vec![name, text(object, "type"), object.members("data").len().into(), created()],
        ("", "ConfigMap") => {
            let keys = object.members("data").len() + object.members("binaryData").len();
            vec![name, keys.into(), created()]
        }
        ("", "ServiceAccount") => vec![name, created()],
        ("", "PersistentVolume") => volume(object, now),
        ("", "PersistentVolumeClaim") => claim(object, now),
        ("", "ComponentStatus") => {
            let healthy = object.list("conditions").iter().find(|c| c.s("type") == "Healthy");
            let state = healthy.map_or("Unknown", |c| if c.s("status") == "True" { "Healthy" } else { "Unhealthy" });
            let part = |key: &str| Value::from(healthy.map_or("", |c| c.s(key)));
            vec![name, state.into(), part("message"), part("error")]
        }
        ("", "ResourceQuota") => {
            let (mut requests, mut limits) = (Vec::new(), Vec::new());
            for (resource, hard) in status.members("hard").iter() {
                let used = status.members("used").get(resource).map_or_else(|| "0".to_owned(), canonical);
                let line = format!("{resource}: {used}/{}", canonical(hard));
                if resource.starts_with("limits.") { limits.push(line) } else { requests.push(line) }
            }
            vec![name, requests.join(", ").into(), limits.join(", ").into(), created()]
        }
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler(gvk, object, now),
        ("autoscaling", "Scale") => vec![name, number(spec, "replicas"), number(status, "replicas"), created()],
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            let role = object.v("roleRef");
            let of = |kind: &str| -> Value {
                let named = object.list("subjects").iter().filter(|s| s.s("kind") == kind).map(|s| {
                    if kind == "ServiceAccount" {
                        format!("{}/{}", s.s("namespace"), s.s("name"))
                    } else {
                        s.s("name").to_owned()
                    }
                });
                named.collect::<Vec<_>>().join(", ").into()
            };
            vec![
                name,
                format!("{}/{}", role.s("kind"), role.s("name")).into(),
                created(),
                of("User"),
                of("Group"),
                of("ServiceAccount"),
            ]
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            let has = |kind: &str| status.list("conditions").iter().any(|c| c.s("type") == kind);
            let mut state = if has("Denied") {
                "Denied"
            } else if has("Approved") {
                "Approved"
            } else {
                "Pending"
            }
            .to_owned();
            if has("Failed") {
                state.push_str(",Failed");
            }
            if !status.s("certificate").is_empty() {
                state.push_str(",Issued");
            }
            let duration = spec
                .oi("expirationSeconds")
                .map_or_else(|| NONE.to_owned(), |s| human_duration(std::time::Duration::from_secs(s.max(0) as u64)));
            vec![name, created(), or(spec.s("signerName"), NONE), text(spec, "username"), duration.into(), state.into()]
        }
        ("coordination.k8s.io", "Lease") => vec![name, text(spec, "holderIdentity"), created()],
        ("storage.k8s.io", "StorageClass") => vec![
            is_default(object, "storageclass.kubernetes.io/is-default-class"),
            text(object, "provisioner"),
            object.os("reclaimPolicy").unwrap_or("Delete").into(),
            object.os("volumeBindingMode").unwrap_or("Immediate").into(),
            object.b("allowVolumeExpansion").into(),
            created(),
        ],
        ("storage.k8s.io", "VolumeAttributesClass") => vec![name, text(object, "driverName"), created()],
        ("storage.k8s.io", "VolumeAttachment") => vec![
            name,
            text(spec, "attacher"),
            text(spec.v("source"), "persistentVolumeName"),
            text(spec, "nodeName"),
            status.b("attached").into(),
            created(),
        ],
        ("storage.k8s.io", "CSINode") => vec![name, count(spec.list("drivers")), created()],
        ("storage.k8s.io", "CSIDriver") => {
            let modes: Vec<&str> = spec.list("volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
            let audiences = spec.o("tokenRequests").map_or_else(
                || UNSET.to_owned(),
                |_| spec.list("tokenRequests").iter().map(|t| t.s("audience")).collect::<Vec<_>>().join(","),
            );
            vec![
                name,
                spec.ob("attachRequired").unwrap_or(true).into(),
                spec.b("podInfoOnMount").into(),
                spec.b("storageCapacity").into(),
                audiences.into(),
                spec.b("requiresRepublish").into(),
                or(&modes.join(","), NONE),
                created(),
            ]
        }
        ("scheduling.k8s.io", "PriorityClass") => vec![
            name,
            number(object, "value"),
            object.b("globalDefault").into(),
            created(),
            text(object, "preemptionPolicy"),
        ],
        ("node.k8s.io", "RuntimeClass") => vec![name, text(object, "handler"), created()],
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            vec![name, count(object.list("webhooks")), created()]
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy") => {
            let rules = if gvk.kind == "MutatingAdmissionPolicy" { "mutations" } else { "validations" };
            let kind = spec
                .o("paramKind")
                .map_or_else(|| UNSET.to_owned(), |p| format!("{}/{}", p.s("apiVersion"), p.s("kind")));
            vec![name, count(spec.list(rules)), kind.into(), created()]
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding") => {
            let param = spec.o("paramRef").map_or_else(
                || UNSET.to_owned(),
                |p| match (p.s("name"), p.s("namespace"), p.o("selector")) {
                    ("", _, Some(selector)) => selector.to_string(),
                    ("", _, None) => UNSET.to_owned(),
                    (name, "", _) => format!("*/{name}"),
                    (name, namespace, _) => format!("{namespace}/{name}"),
                },
            );
            vec![name, text(spec, "policyName"), param.into(), created()]
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => {
            let dangling = status.list("conditions").iter().find(|c| c.s("type") == "Dangling");
            vec![
                name,
                text(spec.v("priorityLevelConfiguration"), "name"),
                number(spec, "matchingPrecedence"),
                spec.o("distinguisherMethod").map_or(NONE, |d| d.s("type")).into(),
                created(),
                dangling.map_or("?", |c| c.s("status")).into(),
            ]
        }
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => {
            let limited = spec.o("limited");
            let queuing = limited.and_then(|l| l.v("limitResponse").o("queuing"));
            let shares = limited.map_or(NONE.into(), |l| number(l, "nominalConcurrencyShares"));
            let queue = |key: &str| queuing.map_or(NONE.into(), |q| number(q, key));
            vec![
                name,
                text(spec, "type"),
                shares,
                queue("queues"),
                queue("handSize"),
                queue("queueLengthLimit"),
                created(),
            ]
        }
        ("resource.k8s.io", "DeviceClass" | "ResourceClaimTemplate") => vec![name, created()],
        ("resource.k8s.io", "ResourceClaim") => {
            let deleted = object.v("metadata").has("deletionTimestamp");
            let mut states = Vec::new();
            if deleted {
                states.push("deleted");
            }
            if status.has("allocation") {
                states.push("allocated");
                if !status.list("reservedFor").is_empty() {
                    states.push("reserved");
                }
            } else if !deleted {
                states.push("pending");
            }
            vec![name, states.join(",").into(), created()]
        }
        ("resource.k8s.io", "ResourceSlice") => {
            vec![name, text(spec, "nodeName"), text(spec, "driver"), text(spec.v("pool"), "name"), created()]
        }
        ("apiregistration.k8s.io", "APIService") => {
            let service = spec
                .o("service")
                .map_or_else(|| "Local".to_owned(), |s| format!("{}/{}", s.s("namespace"), s.s("name")));
            let available = status.list("conditions").iter().find(|c| c.s("type") == "Available");
            let available = available.map_or_else(
                || "Unknown".to_owned(),
                |c| match c.s("status") {
                    "True" => "True".to_owned(),
                    other => format!("{other} ({})", c.s("reason")),
                },
            );
            vec![name, service.into(), available.into(), created()]
        }
        _ => vec![name, object.v("metadata").v("creationTimestamp").clone()],
    }
}

fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (meta, spec, status) = (object.v("metadata"), object.v("spec"), object.v("status"));
    let succeeded = status.i("succeeded");
    let completions = match (spec.oi("completions"), spec.i("parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let time = |key: &str| Timestamp::parse(status.s(key));
    let duration =
        time("startTime").map_or_else(String::new, |s| human_duration(time("completionTime").unwrap_or(now).since(s)));
    let holds = |kind: &str| {
        status.list("conditions").iter().find(|c| c.s("type") == kind).is_some_and(|c| c.s("status") == "True")
    };
    let state = if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if meta.has("deletionTimestamp") {
        "Terminating"
    } else {
        ["Suspended", "FailureTarget", "SuccessCriteriaMet"].into_iter().find(|k| holds(k)).unwrap_or("Running")
    };
    let [names, images] = containers(spec.v("template"));
    vec![
        meta.v("name").clone(),
        state.into(),
        completions.into(),
        duration.into(),
        created(object, now),
        names,
        images,
        selector_text(spec.v("selector")),
    ]
}

/// The addresses of a load balancer.
fn balancer(status: &Value) -> String {
    let mut all: Vec<&str> = status
        .v("loadBalancer")
        .list("ingress")
        .iter()
        .map(|i| if i.s("ip").is_empty() { i.s("hostname") } else { i.s("ip") })
        .filter(|a| !a.is_empty())
        .collect();
    all.sort_unstable();
    all.dedup();
    all.join(",")
}

fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.v("spec");
    let external: Vec<&str> = spec.list("externalIPs").iter().filter_map(Value::as_str).collect();
    let address = match spec.s("type") {
        "ClusterIP" | "NodePort" => or(&external.join(","), NONE),
        "LoadBalancer" => {
            let mut all = balancer(object.v("status"));
            for ip in external {
                if !all.is_empty() {
                    all.push(',');
                }
                all.push_str(ip);
            }
            or(&all, "<pending>")
        }
        "ExternalName" => spec.s("externalName").into(),
        _ => UNKNOWN.into(),
    };
    let ports: Vec<String> = spec
        .list("ports")
        .iter()
        .map(|p| match p.i("nodePort") {
            0 => format!("{}/{}", p.i("port"), p.s("protocol")),
            node => format!("{}:{node}/{}", p.i("port"), p.s("protocol")),
        })
        .collect();
    let ip = spec.list("clusterIPs").first().and_then(Value::as_str).unwrap_or(NONE);
    vec![
        object.v("metadata").v("name").clone(),
        spec.s("type").into(),
        ip.into(),
        address,
        or(&ports.join(","), NONE),
        created(object, now),
        format_labels(spec.members("selector")),
    ]
}

fn hosts(rules: &[Value]) -> Value {
    let (mut list, mut more) = (Vec::new(), false);
    for rule in rules {
        more |= list.len() == 3;
        if !more && !rule.s("host").is_empty() {
            list.push(rule.s("host"));
        }
    }
    if list.is_empty() {
        return "*".into();
    }
    let text = list.join(",");
    if more { format!("{text} + {} more...", rules.len() - 3).into() } else { text.into() }
}

fn endpoints(subsets: &[Value]) -> Value {
    if subsets.is_empty() {
        return NONE.into();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let addresses = || subset.list("addresses").iter().map(|a| a.s("ip"));
        if subset.list("ports").is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in subset.list("ports") {
            let port = port.i("port");
            all.extend(
                addresses().map(|ip| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }),
            );
        }
    }
    list_with_more(all, 3, "")
}

fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let (meta, status) = (object.v("metadata"), object.v("status"));
    let ready = status.list("conditions").iter().rfind(|c| c.s("type") == "Ready");
    let mut state = ready.map_or("Unknown", |c| if c.s("status") == "True" { "Ready" } else { "NotReady" }).to_owned();
    if object.v("spec").b("unschedulable") {
        state.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = meta
        .members("labels")
        .iter()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|r| !r.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let info = status.v("nodeInfo");
    let mut kernel = or(info.s("kernelVersion"), UNKNOWN);
    if !info.s("architecture").is_empty() {
        kernel = format!("{} ({})", kernel.as_str().unwrap_or(""), info.s("architecture")).into();
    }
    let address = |kind: &str| -> Value {
        status.list("addresses").iter().find(|a| a.s("type") == kind).map_or(NONE, |a| a.s("address")).into()
    };
    vec![
        meta.v("name").clone(),
        state.into(),
        or(&roles.join(","), NONE),
        created(object, now),
        info.s("kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        or(info.s("osImage"), UNKNOWN),
        kernel,
        or(info.s("containerRuntimeVersion"), UNKNOWN),
    ]
}

/// Events, in either of their versions.
fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let first_of = |keys: [&'static str; 2]| keys.into_iter().find_map(|k| object.o(k)).unwrap_or(&Value::Null);
    let involved = first_of(["involvedObject", "regarding"]);
    let first = match first_of(["firstTimestamp", "deprecatedFirstTimestamp"]) {
        Value::Null => age(object.v("eventTime"), now),
        time => age(time, now),
    };
    let mut last = match first_of(["lastTimestamp", "deprecatedLastTimestamp"]) {
        Value::Null => first.clone(),
        time => age(time, now),
    };
    let mut count = first_of(["count", "deprecatedCount"]).as_i64().unwrap_or(0).max(1);
    if let Some(series) = object.o("series") {
        last = age(series.v("lastObservedTime"), now);
        count = series.i("count");
    }
    let kind = involved.s("kind").to_lowercase();
    let target = match involved.s("name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = first_of(["source", "deprecatedSource"]);
    let either = |a: &str, keys: [&'static str; 2]| {
        if a.is_empty() { first_of(keys).as_str().unwrap_or("").to_owned() } else { a.to_owned() }
    };
    let component = either(source.s("component"), ["reportingComponent", "reportingController"]);
    let instance = either(source.s("host"), ["reportingInstance", "reportingInstance"]);
    let source = if instance.is_empty() { component } else { format!("{component}, {instance}") };
    vec![
        last.into(),
        object.s("type").into(),
        object.s("reason").into(),
        target.into(),
        involved.s("fieldPath").into(),
        source.into(),
        first_of(["message", "note"]).as_str().unwrap_or("").trim().into(),
        first.into(),
        count.into(),
        object.v("metadata").v("name").clone(),
    ]
}

fn access_modes(modes: &[Value]) -> String {
    [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")]
        .iter()
        .filter(|(mode, _)| modes.iter().any(|m| m == mode))
        .map(|(_, short)| *short)
        .collect::<Vec<_>>()
        .join(",")
}

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

fn storage_class(object: &Value) -> Value {
    let notes = object.v("metadata").v("annotations");
    notes.os(CLASS_ANNOTATION).unwrap_or_else(|| object.v("spec").s("storageClassName")).into()
}

fn phase(object: &Value) -> Value {
    if object.v("metadata").has("deletionTimestamp") {
        "Terminating".into()
    } else {
        object.v("status").s("phase").into()
    }
}

/// The canonical text of `storage` in a resource list, `0` when absent.
fn storage(list: &Map) -> String {
    list.get("storage").map_or_else(|| "0".to_owned(), canonical)
}

fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.v("spec");
    let claim = spec.o("claimRef").map_or_else(String::new, |c| format!("{}/{}", c.s("namespace"), c.s("name")));
    vec![
        object.v("metadata").v("name").clone(),
        storage(spec.members("capacity")).into(),
        access_modes(spec.list("accessModes")).into(),
        spec.s("persistentVolumeReclaimPolicy").into(),
        phase(object),
        claim.into(),
        storage_class(object),
        spec.os("volumeAttributesClassName").unwrap_or(UNSET).into(),
        object.v("status").s("reason").into(),
        created(object, now),
        spec.os("volumeMode").unwrap_or(UNSET).into(),
    ]
}

fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.v("spec"), object.v("status"));
    let (capacity, modes) = match spec.s("volumeName") {
        "" => (String::new(), String::new()),
        _ => (storage(status.members("capacity")), access_modes(status.list("accessModes"))),
    };
    vec![
        object.v("metadata").v("name").clone(),
        phase(object),
        spec.s("volumeName").into(),
        capacity.into(),
        modes.into(),
        storage_class(object),
        spec.os("volumeAttributesClassName").unwrap_or(UNSET).into(),
        created(object, now),
        spec.os("volumeMode").unwrap_or(UNSET).into(),
    ]
}

fn autoscaler(gvk: &GroupVersionKind, object: &Value, now: Timestamp) -> Vec<Value> {
    let converted;
    let object = if gvk.version == "v1" {
        converted = hpa_to_v2(object);
        &converted
    } else {
        object
    };
    let (spec, status) = (object.v("spec"), object.v("status"));
    let target = spec.v("scaleTargetRef");
    vec![
        object.v("metadata").v("name").clone(),
        format!("{}/{}", target.s("kind"), target.s("name")).into(),
        metrics(spec.list("metrics"), status.list("currentMetrics")),
        spec.oi("minReplicas").map_or_else(|| UNSET.to_owned(), |n| n.to_string()).into(),
        spec.i("maxReplicas").into(),
        status.i("currentReplicas").into(),
        created(object, now),
    ]
}

fn metrics(specs: &[Value], statuses: &[Value]) -> Value {
    if specs.is_empty() {
        return NONE.into();
    }
    let mut list = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let member = match spec.s("type") {
            "External" => "external",
            "Pods" => "pods",
            "Object" => "object",
            "Resource" => "resource",
            "ContainerResource" => "containerResource",
            _ => {
                list.push("<unknown type>".to_owned());
                continue;
            }
        };
        let (source, target) = (spec.v(member), spec.v(member).v("target"));
        let current = statuses.get(i).and_then(|s| s.o(member)).map(|s| s.v("current"));
        let value = |key: &str| current.and_then(|c| c.o(key)).map_or_else(|| UNKNOWN.to_owned(), canonical);
        let averaged = target.has("averageValue");
        list.push(match member {
            "external" | "object" if averaged => {
                format!("{}/{} (avg)", value("averageValue"), canonical(target.v("averageValue")))
            }
            "external" | "object" => format!("{}/{}", value("value"), canonical(target.v("value"))),
            "pods" => format!("{}/{}", value("averageValue"), canonical(target.v("averageValue"))),
            _ if averaged => {
                format!("{}: {}/{}", source.s("name"), value("averageValue"), canonical(target.v("averageValue")))
            }
            _ => {
                let percent = |v: Option<i64>, absent: &str| v.map_or_else(|| absent.to_owned(), |p| format!("{p}%"));
                let used = percent(current.and_then(|c| c.oi("averageUtilization")), UNKNOWN);
                format!("{}: {used}/{}", source.s("name"), percent(target.oi("averageUtilization"), "<auto>"))
            }
        });
    }
    if list.len() > 2 {
        return format!("{} + {} more...", list[..2].join(", "), list.len() - 2).into();
    }
    list.join(", ").into()
}
