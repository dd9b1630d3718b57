//! The resources that controllers read and write.

use informer::Resource;

macro_rules! resources {
    ($($name:ident = $group:literal / $version:literal / $resource:literal;)*) => {
        $(pub const $name: Resource = Resource::new($group, $version, $resource);)*
    };
}

resources! {
    CONFIG_MAPS = "" / "v1" / "configmaps";
    ENDPOINTS = "" / "v1" / "endpoints";
    NAMESPACES = "" / "v1" / "namespaces";
    NODES = "" / "v1" / "nodes";
    PERSISTENT_VOLUMES = "" / "v1" / "persistentvolumes";
    PERSISTENT_VOLUME_CLAIMS = "" / "v1" / "persistentvolumeclaims";
    PODS = "" / "v1" / "pods";
    REPLICATION_CONTROLLERS = "" / "v1" / "replicationcontrollers";
    RESOURCE_QUOTAS = "" / "v1" / "resourcequotas";
    SECRETS = "" / "v1" / "secrets";
    SERVICES = "" / "v1" / "services";
    SERVICE_ACCOUNTS = "" / "v1" / "serviceaccounts";
    CONTROLLER_REVISIONS = "apps" / "v1" / "controllerrevisions";
    DAEMON_SETS = "apps" / "v1" / "daemonsets";
    DEPLOYMENTS = "apps" / "v1" / "deployments";
    REPLICA_SETS = "apps" / "v1" / "replicasets";
    STATEFUL_SETS = "apps" / "v1" / "statefulsets";
    HORIZONTAL_POD_AUTOSCALERS = "autoscaling" / "v2" / "horizontalpodautoscalers";
    CRON_JOBS = "batch" / "v1" / "cronjobs";
    JOBS = "batch" / "v1" / "jobs";
    CERTIFICATE_SIGNING_REQUESTS = "certificates.k8s.io" / "v1" / "certificatesigningrequests";
    LEASES = "coordination.k8s.io" / "v1" / "leases";
    ENDPOINT_SLICES = "discovery.k8s.io" / "v1" / "endpointslices";
    IP_ADDRESSES = "networking.k8s.io" / "v1" / "ipaddresses";
    SERVICE_CIDRS = "networking.k8s.io" / "v1" / "servicecidrs";
    POD_DISRUPTION_BUDGETS = "policy" / "v1" / "poddisruptionbudgets";
    CLUSTER_ROLES = "rbac.authorization.k8s.io" / "v1" / "clusterroles";
    RESOURCE_CLAIMS = "resource.k8s.io" / "v1" / "resourceclaims";
    RESOURCE_CLAIM_TEMPLATES = "resource.k8s.io" / "v1" / "resourceclaimtemplates";
    STORAGE_CLASSES = "storage.k8s.io" / "v1" / "storageclasses";
    VOLUME_ATTRIBUTES_CLASSES = "storage.k8s.io" / "v1" / "volumeattributesclasses";
    CUSTOM_RESOURCE_DEFINITIONS = "apiextensions.k8s.io" / "v1" / "customresourcedefinitions";
    VALIDATING_ADMISSION_POLICIES = "admissionregistration.k8s.io" / "v1" / "validatingadmissionpolicies";
}
