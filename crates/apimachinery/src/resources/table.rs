//! The table behind [`super`]: one line per resource, in discovery order.

use super::{Group, GroupVersion, Kind, Resource, Storage, Subresource};

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const GET_LIST: &[&str] = &["get", "list"];
const GET: &[&str] = &["get"];
const CREATE: &[&str] = &["create"];
const UPDATE: &[&str] = &["update"];
const READ_WRITE: &[&str] = &["get", "patch", "update"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const CONNECT: &[&str] = &["create", "get"];

const NAMESPACED: bool = true;
const CLUSTER: bool = false;
const OWN: Option<Kind> = None;

const fn resource(
    group: &'static str,
    version: &'static str,
    name: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    verbs: &'static [&'static str],
    storage: Option<Storage>,
    subresources: &'static [Subresource],
) -> Resource {
    Resource { group, version, name, singular, kind, namespaced, short_names, categories, verbs, storage, subresources }
}

const fn stored(
    prefix: &'static str,
    group: &'static str,
    version: &'static str,
    version_hash: &'static str,
) -> Option<Storage> {
    Some(Storage { prefix, group, version, version_hash })
}

const fn sub(name: &'static str, verbs: &'static [&'static str], kind: Option<Kind>) -> Subresource {
    Subresource { name, verbs, kind }
}

const fn gvk(group: &'static str, version: &'static str, kind: &'static str) -> Option<Kind> {
    Some(Kind { group, version, kind })
}

const fn group(name: &'static str, priority: i32, versions: &'static [GroupVersion]) -> Group {
    Group { name, priority, versions }
}

const fn version(version: &'static str, priority: i32) -> GroupVersion {
    GroupVersion { version, priority }
}

/// Groups in the order of `/apis`, the core group in front.
pub static GROUPS: &[Group] = &[
    group("", 18000, &[version("v1", 1)]),
    group("apiregistration.k8s.io", 18000, &[version("v1", 18)]),
    group("apps", 17800, &[version("v1", 15)]),
    group("events.k8s.io", 17750, &[version("v1", 15)]),
    group("authentication.k8s.io", 17700, &[version("v1", 15)]),
    group("authorization.k8s.io", 17600, &[version("v1", 15)]),
    group("autoscaling", 17500, &[version("v2", 30), version("v1", 15)]),
    group("batch", 17400, &[version("v1", 15)]),
    group("certificates.k8s.io", 17300, &[version("v1", 15)]),
    group("networking.k8s.io", 17200, &[version("v1", 15)]),
    group("policy", 17100, &[version("v1", 15)]),
    group("rbac.authorization.k8s.io", 17000, &[version("v1", 15)]),
    group("storage.k8s.io", 16800, &[version("v1", 15)]),
    group("admissionregistration.k8s.io", 16700, &[version("v1", 15)]),
    group("apiextensions.k8s.io", 16700, &[version("v1", 15)]),
    group("scheduling.k8s.io", 16600, &[version("v1", 15)]),
    group("coordination.k8s.io", 16500, &[version("v1", 15)]),
    group("node.k8s.io", 16300, &[version("v1", 15)]),
    group("discovery.k8s.io", 16200, &[version("v1", 15)]),
    group("resource.k8s.io", 16200, &[version("v1", 21)]),
    group("flowcontrol.apiserver.k8s.io", 16100, &[version("v1", 21)]),
];

/// Every served resource: by group as in [`GROUPS`], then by version (the preferred one first), then by name.
#[rustfmt::skip]
pub static RESOURCES: &[Resource] = &[
    resource("", "v1", "bindings", "binding", "Binding", NAMESPACED, &[], &[], CREATE, None, &[]),
    resource("", "v1", "componentstatuses", "componentstatus", "ComponentStatus", CLUSTER, &["cs"], &[], GET_LIST, None, &[]),
    resource("", "v1", "configmaps", "configmap", "ConfigMap", NAMESPACED, &["cm"], &[], ALL, stored("configmaps", "", "v1", "qFsyl6wFWjQ="), &[]),
    resource("", "v1", "endpoints", "endpoints", "Endpoints", NAMESPACED, &["ep"], &[], ALL, stored("services/endpoints", "", "v1", "fWeeMqaN/OA="), &[]),
    resource("", "v1", "events", "event", "Event", NAMESPACED, &["ev"], &[], ALL, stored("events", "", "v1", "r2yiGXH7wu8="), &[]),
    resource("", "v1", "limitranges", "limitrange", "LimitRange", NAMESPACED, &["limits"], &[], ALL, stored("limitranges", "", "v1", "EBKMFVe6cwo="), &[]),
    resource("", "v1", "namespaces", "namespace", "Namespace", CLUSTER, &["ns"], &[], NO_COLLECTION, stored("namespaces", "", "v1", "Q3oi5N2YM8M="), &[sub("finalize", UPDATE, OWN), sub("status", READ_WRITE, OWN)]),
    resource("", "v1", "nodes", "node", "Node", CLUSTER, &["no"], &[], ALL, stored("minions", "", "v1", "XwShjMxG9Fs="), &[sub("proxy", PROXY, gvk("", "v1", "NodeProxyOptions")), sub("status", READ_WRITE, OWN)]),
    resource("", "v1", "persistentvolumeclaims", "persistentvolumeclaim", "PersistentVolumeClaim", NAMESPACED, &["pvc"], &[], ALL, stored("persistentvolumeclaims", "", "v1", "QWTyNDq0dC4="), &[sub("status", READ_WRITE, OWN)]),
    resource("", "v1", "persistentvolumes", "persistentvolume", "PersistentVolume", CLUSTER, &["pv"], &[], ALL, stored("persistentvolumes", "", "v1", "HN/zwEC+JgM="), &[sub("status", READ_WRITE, OWN)]),
    resource("", "v1", "pods", "pod", "Pod", NAMESPACED, &["po"], &["all"], ALL, stored("pods", "", "v1", "xPOwRZ+Yhw8="), &[sub("attach", CONNECT, gvk("", "v1", "PodAttachOptions")), sub("binding", CREATE, gvk("", "v1", "Binding")), sub("ephemeralcontainers", READ_WRITE, OWN), sub("eviction", CREATE, gvk("policy", "v1", "Eviction")), sub("exec", CONNECT, gvk("", "v1", "PodExecOptions")), sub("log", GET, OWN), sub("portforward", CONNECT, gvk("", "v1", "PodPortForwardOptions")), sub("proxy", PROXY, gvk("", "v1", "PodProxyOptions")), sub("resize", READ_WRITE, OWN), sub("status", READ_WRITE, OWN)]),
    resource("", "v1", "podtemplates", "podtemplate", "PodTemplate", NAMESPACED, &[], &[], ALL, stored("podtemplates", "", "v1", "LIXB2x4IFpk="), &[]),
    resource("", "v1", "replicationcontrollers", "replicationcontroller", "ReplicationController", NAMESPACED, &["rc"], &["all"], ALL, stored("controllers", "", "v1", "Jond2If31h0="), &[sub("scale", READ_WRITE, gvk("autoscaling", "v1", "Scale")), sub("status", READ_WRITE, OWN)]),
    resource("", "v1", "resourcequotas", "resourcequota", "ResourceQuota", NAMESPACED, &["quota"], &[], ALL, stored("resourcequotas", "", "v1", "8uhSgffRX6w="), &[sub("status", READ_WRITE, OWN)]),
    resource("", "v1", "secrets", "secret", "Secret", NAMESPACED, &[], &[], ALL, stored("secrets", "", "v1", "S6u1pOWzb84="), &[]),
    resource("", "v1", "serviceaccounts", "serviceaccount", "ServiceAccount", NAMESPACED, &["sa"], &[], ALL, stored("serviceaccounts", "", "v1", "pbx9ZvyFpBE="), &[sub("token", CREATE, gvk("authentication.k8s.io", "v1", "TokenRequest"))]),
    resource("", "v1", "services", "service", "Service", NAMESPACED, &["svc"], &["all"], ALL, stored("services/specs", "", "v1", "0/CO1lhkEBI="), &[sub("proxy", PROXY, gvk("", "v1", "ServiceProxyOptions")), sub("status", READ_WRITE, OWN)]),
    resource("apiregistration.k8s.io", "v1", "apiservices", "apiservice", "APIService", CLUSTER, &[], &["api-extensions"], ALL, stored("apiregistration.k8s.io/apiservices", "apiregistration.k8s.io", "v1", "InPBPD7+PqM="), &[sub("status", READ_WRITE, OWN)]),
    resource("apps", "v1", "controllerrevisions", "controllerrevision", "ControllerRevision", NAMESPACED, &[], &[], ALL, stored("controllerrevisions", "apps", "v1", "85nkx63pcBU="), &[]),
    resource("apps", "v1", "daemonsets", "daemonset", "DaemonSet", NAMESPACED, &["ds"], &["all"], ALL, stored("daemonsets", "apps", "v1", "dd7pWHUlMKQ="), &[sub("status", READ_WRITE, OWN)]),
    resource("apps", "v1", "deployments", "deployment", "Deployment", NAMESPACED, &["deploy"], &["all"], ALL, stored("deployments", "apps", "v1", "8aSe+NMegvE="), &[sub("scale", READ_WRITE, gvk("autoscaling", "v1", "Scale")), sub("status", READ_WRITE, OWN)]),
    resource("apps", "v1", "replicasets", "replicaset", "ReplicaSet", NAMESPACED, &["rs"], &["all"], ALL, stored("replicasets", "apps", "v1", "P1RzHs8/mWQ="), &[sub("scale", READ_WRITE, gvk("autoscaling", "v1", "Scale")), sub("status", READ_WRITE, OWN)]),
    resource("apps", "v1", "statefulsets", "statefulset", "StatefulSet", NAMESPACED, &["sts"], &["all"], ALL, stored("statefulsets", "apps", "v1", "H+vl74LkKdo="), &[sub("scale", READ_WRITE, gvk("autoscaling", "v1", "Scale")), sub("status", READ_WRITE, OWN)]),
    resource("events.k8s.io", "v1", "events", "event", "Event", NAMESPACED, &["ev"], &[], ALL, stored("events", "", "v1", "r2yiGXH7wu8="), &[]),
    resource("authentication.k8s.io", "v1", "selfsubjectreviews", "selfsubjectreview", "SelfSubjectReview", CLUSTER, &[], &[], CREATE, None, &[]),
    resource("authentication.k8s.io", "v1", "tokenreviews", "tokenreview", "TokenReview", CLUSTER, &[], &[], CREATE, None, &[]),
    resource("authorization.k8s.io", "v1", "localsubjectaccessreviews", "localsubjectaccessreview", "LocalSubjectAccessReview", NAMESPACED, &[], &[], CREATE, None, &[]),
    resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "selfsubjectaccessreview", "SelfSubjectAccessReview", CLUSTER, &[], &[], CREATE, None, &[]),
    resource("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "selfsubjectrulesreview", "SelfSubjectRulesReview", CLUSTER, &[], &[], CREATE, None, &[]),
    resource("authorization.k8s.io", "v1", "subjectaccessreviews", "subjectaccessreview", "SubjectAccessReview", CLUSTER, &[], &[], CREATE, None, &[]),
    resource("autoscaling", "v2", "horizontalpodautoscalers", "horizontalpodautoscaler", "HorizontalPodAutoscaler", NAMESPACED, &["hpa"], &["all"], ALL, stored("horizontalpodautoscalers", "autoscaling", "v2", "qwQve8ut294="), &[sub("status", READ_WRITE, OWN)]),
    resource("autoscaling", "v1", "horizontalpodautoscalers", "horizontalpodautoscaler", "HorizontalPodAutoscaler", NAMESPACED, &["hpa"], &["all"], ALL, stored("horizontalpodautoscalers", "autoscaling", "v2", "qwQve8ut294="), &[sub("status", READ_WRITE, OWN)]),
    resource("batch", "v1", "cronjobs", "cronjob", "CronJob", NAMESPACED, &["cj"], &["all"], ALL, stored("cronjobs", "batch", "v1", "sd5LIXh4Fjs="), &[sub("status", READ_WRITE, OWN)]),
    resource("batch", "v1", "jobs", "job", "Job", NAMESPACED, &[], &["all"], ALL, stored("jobs", "batch", "v1", "mudhfqk/qZY="), &[sub("status", READ_WRITE, OWN)]),
    resource("certificates.k8s.io", "v1", "certificatesigningrequests", "certificatesigningrequest", "CertificateSigningRequest", CLUSTER, &["csr"], &[], ALL, stored("certificatesigningrequests", "certificates.k8s.io", "v1", "95fRKMXA+00="), &[sub("approval", READ_WRITE, OWN), sub("status", READ_WRITE, OWN)]),
    resource("networking.k8s.io", "v1", "ingressclasses", "ingressclass", "IngressClass", CLUSTER, &[], &[], ALL, stored("ingressclasses", "networking.k8s.io", "v1", "l/iqIbDgFyQ="), &[]),
    resource("networking.k8s.io", "v1", "ingresses", "ingress", "Ingress", NAMESPACED, &["ing"], &[], ALL, stored("ingress", "networking.k8s.io", "v1", "39NQlfNR+bo="), &[sub("status", READ_WRITE, OWN)]),
    resource("networking.k8s.io", "v1", "ipaddresses", "ipaddress", "IPAddress", CLUSTER, &["ip"], &[], ALL, stored("ipaddresses", "networking.k8s.io", "v1", "3f/plJFChNE="), &[]),
    resource("networking.k8s.io", "v1", "networkpolicies", "networkpolicy", "NetworkPolicy", NAMESPACED, &["netpol"], &[], ALL, stored("networkpolicies", "networking.k8s.io", "v1", "YpfwF18m1G8="), &[]),
    resource("networking.k8s.io", "v1", "servicecidrs", "servicecidr", "ServiceCIDR", CLUSTER, &[], &[], ALL, stored("servicecidrs", "networking.k8s.io", "v1", "gNLvruQhW2g="), &[sub("status", READ_WRITE, OWN)]),
    resource("policy", "v1", "poddisruptionbudgets", "poddisruptionbudget", "PodDisruptionBudget", NAMESPACED, &["pdb"], &[], ALL, stored("poddisruptionbudgets", "policy", "v1", "EVWiDmWqyJw="), &[sub("status", READ_WRITE, OWN)]),
    resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "clusterrolebinding", "ClusterRoleBinding", CLUSTER, &[], &[], ALL, stored("clusterrolebindings", "rbac.authorization.k8s.io", "v1", "48tpQ8gZHFc="), &[]),
    resource("rbac.authorization.k8s.io", "v1", "clusterroles", "clusterrole", "ClusterRole", CLUSTER, &[], &[], ALL, stored("clusterroles", "rbac.authorization.k8s.io", "v1", "bYE5ZWDrJ44="), &[]),
    resource("rbac.authorization.k8s.io", "v1", "rolebindings", "rolebinding", "RoleBinding", NAMESPACED, &[], &[], ALL, stored("rolebindings", "rbac.authorization.k8s.io", "v1", "eGsCzGH6b1g="), &[]),
    resource("rbac.authorization.k8s.io", "v1", "roles", "role", "Role", NAMESPACED, &[], &[], ALL, stored("roles", "rbac.authorization.k8s.io", "v1", "7FuwZcIIItM="), &[]),
    resource("storage.k8s.io", "v1", "csidrivers", "csidriver", "CSIDriver", CLUSTER, &[], &[], ALL, stored("csidrivers", "storage.k8s.io", "v1", "hL6j/rwBV5w="), &[]),
    resource("storage.k8s.io", "v1", "csinodes", "csinode", "CSINode", CLUSTER, &[], &[], ALL, stored("csinodes", "storage.k8s.io", "v1", "Pe62DkZtjuo="), &[]),
    resource("storage.k8s.io", "v1", "csistoragecapacities", "csistoragecapacity", "CSIStorageCapacity", NAMESPACED, &[], &[], ALL, stored("csistoragecapacities", "storage.k8s.io", "v1", "xeVl+2Ly1kE="), &[]),
    resource("storage.k8s.io", "v1", "storageclasses", "storageclass", "StorageClass", CLUSTER, &["sc"], &[], ALL, stored("storageclasses", "storage.k8s.io", "v1", "K+m6uJwbjGY="), &[]),
    resource("storage.k8s.io", "v1", "volumeattachments", "volumeattachment", "VolumeAttachment", CLUSTER, &[], &[], ALL, stored("volumeattachments", "storage.k8s.io", "v1", "tJx/ezt6UDU="), &[sub("status", READ_WRITE, OWN)]),
    resource("storage.k8s.io", "v1", "volumeattributesclasses", "volumeattributesclass", "VolumeAttributesClass", CLUSTER, &["vac"], &[], ALL, stored("volumeattributesclasses", "storage.k8s.io", "v1", "tIjydgKBC5w="), &[]),
    resource("admissionregistration.k8s.io", "v1", "mutatingadmissionpolicies", "mutatingadmissionpolicy", "MutatingAdmissionPolicy", CLUSTER, &[], &["api-extensions"], ALL, stored("mutatingadmissionpolicies", "admissionregistration.k8s.io", "v1", "LYmCf+UMVdg="), &[]),
    resource("admissionregistration.k8s.io", "v1", "mutatingadmissionpolicybindings", "mutatingadmissionpolicybinding", "MutatingAdmissionPolicyBinding", CLUSTER, &[], &["api-extensions"], ALL, stored("mutatingadmissionpolicybindings", "admissionregistration.k8s.io", "v1", "90V5FRZZ3Zg="), &[]),
    resource("admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", "mutatingwebhookconfiguration", "MutatingWebhookConfiguration", CLUSTER, &[], &["api-extensions"], ALL, stored("mutatingwebhookconfigurations", "admissionregistration.k8s.io", "v1", "Sqi0GUgDaX0="), &[]),
    resource("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "validatingadmissionpolicy", "ValidatingAdmissionPolicy", CLUSTER, &[], &["api-extensions"], ALL, stored("validatingadmissionpolicies", "admissionregistration.k8s.io", "v1", "6OxvlMmQ6is="), &[sub("status", READ_WRITE, OWN)]),
    resource("admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", "validatingadmissionpolicybinding", "ValidatingAdmissionPolicyBinding", CLUSTER, &[], &["api-extensions"], ALL, stored("validatingadmissionpolicybindings", "admissionregistration.k8s.io", "v1", "v9715VZqakg="), &[]),
    resource("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "validatingwebhookconfiguration", "ValidatingWebhookConfiguration", CLUSTER, &[], &["api-extensions"], ALL, stored("validatingwebhookconfigurations", "admissionregistration.k8s.io", "v1", "B0wHjQmsGNk="), &[]),
    resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "customresourcedefinition", "CustomResourceDefinition", CLUSTER, &["crd", "crds"], &["api-extensions"], ALL, stored("apiextensions.k8s.io/customresourcedefinitions", "apiextensions.k8s.io", "v1", "jfWCUB31mvA="), &[sub("status", READ_WRITE, OWN)]),
    resource("scheduling.k8s.io", "v1", "priorityclasses", "priorityclass", "PriorityClass", CLUSTER, &["pc"], &[], ALL, stored("priorityclasses", "scheduling.k8s.io", "v1", "1QwjyaZjj3Y="), &[]),
    resource("coordination.k8s.io", "v1", "leases", "lease", "Lease", NAMESPACED, &[], &[], ALL, stored("leases", "coordination.k8s.io", "v1", "gqkMMb/YqFM="), &[]),
    resource("node.k8s.io", "v1", "runtimeclasses", "runtimeclass", "RuntimeClass", CLUSTER, &[], &[], ALL, stored("runtimeclasses", "node.k8s.io", "v1", "WQTu1GL3T2Q="), &[]),
    resource("discovery.k8s.io", "v1", "endpointslices", "endpointslice", "EndpointSlice", NAMESPACED, &[], &[], ALL, stored("endpointslices", "discovery.k8s.io", "v1", "qgS0xkrxYAI="), &[]),
    resource("resource.k8s.io", "v1", "deviceclasses", "deviceclass", "DeviceClass", CLUSTER, &[], &[], ALL, stored("deviceclasses", "resource.k8s.io", "v1", "Yk2PTc1Ybxk="), &[]),
    resource("resource.k8s.io", "v1", "resourceclaims", "resourceclaim", "ResourceClaim", NAMESPACED, &[], &[], ALL, stored("resourceclaims", "resource.k8s.io", "v1", "wgAZaHcZxUg="), &[sub("status", READ_WRITE, OWN)]),
    resource("resource.k8s.io", "v1", "resourceclaimtemplates", "resourceclaimtemplate", "ResourceClaimTemplate", NAMESPACED, &[], &[], ALL, stored("resourceclaimtemplates", "resource.k8s.io", "v1", "TuzjC49aUfM="), &[]),
    resource("resource.k8s.io", "v1", "resourceslices", "resourceslice", "ResourceSlice", CLUSTER, &[], &[], ALL, stored("resourceslices", "resource.k8s.io", "v1", "KsC072WgaEY="), &[]),
    resource("flowcontrol.apiserver.k8s.io", "v1", "flowschemas", "flowschema", "FlowSchema", CLUSTER, &[], &[], ALL, stored("flowschemas", "flowcontrol.apiserver.k8s.io", "v1", "GJVAJZSZBIw="), &[sub("status", READ_WRITE, OWN)]),
    resource("flowcontrol.apiserver.k8s.io", "v1", "prioritylevelconfigurations", "prioritylevelconfiguration", "PriorityLevelConfiguration", CLUSTER, &[], &[], ALL, stored("prioritylevelconfigurations", "flowcontrol.apiserver.k8s.io", "v1", "Kir5PVfvNeI="), &[sub("status", READ_WRITE, OWN)]),
];
