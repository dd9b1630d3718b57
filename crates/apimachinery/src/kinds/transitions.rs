//! What may change after creation, kind by kind: an object, a change of it (a merge patch), and what the server says.
//!
//! Rows follow `Validate*Update` of `pkg/apis/*/validation` and the strategies of `pkg/registry`. An expected error is
//! path, reason and the first line of its detail.

use super::access::Fields;
use super::*;
use crate::gvk::{GroupVersion, GroupVersionKind};
use crate::json::Value;
use crate::patch::merge;

struct Row {
    object: &'static str,
    /// `""` is the main resource.
    through: &'static str,
    change: &'static str,
    want: &'static [&'static str],
}

const fn row(object: &'static str, through: &'static str, change: &'static str, want: &'static [&'static str]) -> Row {
    Row { object, through, change, want }
}

fn gvk_of(object: &Value) -> GroupVersionKind {
    let version = GroupVersion::parse(object.s("apiVersion")).unwrap();
    GroupVersionKind { group: version.group, version: version.version, kind: object.s("kind").into() }
}

/// The object as the server has stored it: through a create, and with the status of the row.
fn stored(text: &str) -> Value {
    let mut object = Value::from_slice(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
    let gvk = gvk_of(&object);
    let status = object.get("status").cloned();
    for (key, value) in [("uid", "u"), ("creationTimestamp", "2026-01-01T00:00:00Z"), ("resourceVersion", "7")] {
        object.set_at(&["metadata", key], value.into());
    }
    if object.str_at(&["metadata", "name"]).is_empty() {
        object.set_at(&["metadata", "name"], "a".into());
    }
    default_object(&gvk, &mut object);
    prepare_create(&gvk, &mut object);
    let errors = validate_create(&gvk, &object);
    assert!(errors.is_empty(), "the row's object is refused: {text}\n{errors:?}");
    if let Some(status) = status {
        object.set_at(&["status"], status);
    }
    object
}

fn said(row: &Row) -> (Value, Vec<String>) {
    let old = stored(row.object);
    let gvk = gvk_of(&old);
    let patch = Value::from_slice(row.change.as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", row.change));
    let mut new = merge::apply(&old, &patch);
    default_object(&gvk, &mut new);
    prepare_update(&gvk, row.through, &mut new, &old, "2026-01-01T00:00:01Z");
    let mut errors = validate_common_update(&new, &old, !old.str_at(&["metadata", "namespace"]).is_empty());
    errors.extend(validate_update(&gvk, row.through, &new, &old));
    let texts = errors.iter().map(|e| {
        let detail = e.detail.lines().next().unwrap_or("");
        format!("{} {} {detail}", e.field, e.kind.reason()).trim_end().to_owned()
    });
    (new, texts.collect())
}

#[track_caller]
fn check(rows: &[Row]) {
    let mut failed = Vec::new();
    for row in rows {
        let (_, got) = said(row);
        if got != row.want {
            failed.push(format!(
                "{}\n  through {:?}: {}\n  got  {got:#?}\n  want {:#?}",
                row.object, row.through, row.change, row.want
            ));
        }
    }
    assert!(failed.is_empty(), "{} of {}\n{}", failed.len(), rows.len(), failed.join("\n"));
}

const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"d"},"spec":{"containers":[{"name":"c","image":"i",
    "resources":{"requests":{"cpu":"1","memory":"1Gi"}}}]}}"#;
const GATED: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"d"},"spec":{"schedulingGates":[{"name":"g"}],
    "nodeSelector":{"a":"b"},"containers":[{"name":"c","image":"i"}]}}"#;
const NOT_UPDATABLE: &str = "spec FieldValueForbidden pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

#[test]
fn pods_change_only_where_a_running_pod_can() {
    check(&[
        row(
            POD,
            "",
            r#"{"spec":{"containers":[{"name":"c","image":"j","resources":{"requests":{"cpu":"1","memory":"1Gi"}}}]}}"#,
            &[],
        ),
        row(POD, "", r#"{"spec":{"activeDeadlineSeconds":5}}"#, &[]),
        row(POD, "", r#"{"spec":{"tolerations":[{"key":"k","operator":"Exists"}]}}"#, &[]),
        row(POD, "", r#"{"metadata":{"labels":{"a":"b"},"annotations":{"c":"d"}}}"#, &[]),
        row(POD, "", r#"{"spec":{"hostname":"h"}}"#, &[NOT_UPDATABLE]),
        row(POD, "", r#"{"spec":{"nodeName":"n"}}"#, &[NOT_UPDATABLE]),
        row(
            POD,
            "",
            r#"{"spec":{"containers":[{"name":"c","image":"j","resources":{"requests":{"cpu":"2","memory":"1Gi"}}}]}}"#,
            &[NOT_UPDATABLE],
        ),
        row(
            POD,
            "",
            r#"{"spec":{"containers":[{"name":"c","image":"i"},{"name":"d","image":"i"}]}}"#,
            &["spec.containers FieldValueForbidden pod updates may not add or remove containers"],
        ),
        row(
            POD,
            "",
            r#"{"spec":{"schedulingGates":[{"name":"g"}]}}"#,
            &[
                "spec.schedulingGates[0].name FieldValueForbidden only deletion is allowed, but found new scheduling gate 'g'",
            ],
        ),
        row(GATED, "", r#"{"spec":{"schedulingGates":null}}"#, &[]),
        row(GATED, "", r#"{"spec":{"nodeSelector":{"a":"b","c":"d"}}}"#, &[]),
        row(
            GATED,
            "",
            r#"{"spec":{"nodeSelector":{"a":"z"}}}"#,
            &[
                "spec.nodeSelector FieldValueInvalid only additions to spec.nodeSelector are allowed (no mutations or deletions)",
            ],
        ),
        row(
            POD,
            "",
            r#"{"metadata":{"annotations":{"kubernetes.io/config.mirror":"x"}}}"#,
            &[
                "metadata.annotations[kubernetes.io/config.mirror] FieldValueInvalid must set spec.nodeName if mirror pod annotation is set",
                "metadata.annotations[kubernetes.io/config.mirror] FieldValueForbidden may not add mirror pod annotation",
                "metadata.annotations[kubernetes.io/config.mirror] FieldValueInvalid must set spec.nodeName if mirror pod annotation is set",
            ],
        ),
        row(POD, "status", r#"{"status":{"phase":"Running"}}"#, &[]),
        row(
            POD,
            "status",
            r#"{"status":{"qosClass":"BestEffort"}}"#,
            &["status.qosClass FieldValueInvalid field is immutable"],
        ),
        row(
            POD,
            "status",
            r#"{"status":{"nominatedNodeName":"A"}}"#,
            &[
                "status.nominatedNodeName FieldValueInvalid a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            ],
        ),
        row(POD, "ephemeralcontainers", r#"{"spec":{"ephemeralContainers":[{"name":"e","image":"i"}]}}"#, &[]),
        row(
            POD,
            "resize",
            r#"{"spec":{"containers":[{"name":"c","image":"i","resources":{"requests":{"cpu":"2","memory":"2Gi"}}}]}}"#,
            &[],
        ),
        row(
            POD,
            "resize",
            r#"{"spec":{"containers":[{"name":"c","image":"i","resources":{"requests":{"memory":"1Gi"}}}]}}"#,
            &["spec.containers[0].resources.requests FieldValueForbidden resource requests cannot be removed"],
        ),
        row(
            POD,
            "resize",
            r#"{"spec":{"containers":[{"name":"c","image":"i","resources":{"requests":{"cpu":"1","memory":"1Gi"},"limits":{"cpu":"1","memory":"1Gi"}}}]}}"#,
            &["spec FieldValueInvalid Pod QOS Class may not change as a result of resizing"],
        ),
        row(
            POD,
            "resize",
            r#"{"spec":{"containers":[{"name":"c","image":"i","resources":{"requests":{"cpu":"1","memory":"1Gi","ephemeral-storage":"1Gi"}}}]}}"#,
            &["spec FieldValueForbidden only cpu and memory resources are mutable"],
        ),
    ]);
}

const DEPLOYMENT: &str = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"namespace":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},
    "template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
const REPLICA_SET: &str = r#"{"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"namespace":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},
    "template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
const DAEMON_SET: &str = r#"{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"namespace":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},
    "template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
const STATEFUL_SET: &str = r#"{"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"namespace":"d"},"spec":{"serviceName":"s",
    "selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
const CONTROLLER: &str = r#"{"apiVersion":"v1","kind":"ReplicationController","metadata":{"namespace":"d"},"spec":{"selector":{"a":"b"},
    "template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
const OTHER_LABELS: &str =
    r#"{"spec":{"selector":{"matchLabels":{"a":null,"x":"y"}},"template":{"metadata":{"labels":{"a":null,"x":"y"}}}}}"#;

#[test]
fn selectors_of_workloads_stay_and_templates_move() {
    const IMMUTABLE_SELECTOR: &[&str] = &["spec.selector FieldValueInvalid field is immutable"];
    const SCALED: &str = r#"{"spec":{"replicas":3,"template":{"spec":{"containers":[{"name":"c","image":"j"}]}}}}"#;
    check(&[
        row(DEPLOYMENT, "", OTHER_LABELS, IMMUTABLE_SELECTOR),
        row(REPLICA_SET, "", OTHER_LABELS, IMMUTABLE_SELECTOR),
        row(DAEMON_SET, "", OTHER_LABELS, IMMUTABLE_SELECTOR),
        row(DEPLOYMENT, "", SCALED, &[]),
        row(REPLICA_SET, "", SCALED, &[]),
        row(STATEFUL_SET, "", SCALED, &[]),
        row(
            CONTROLLER,
            "",
            r#"{"spec":{"selector":{"a":null,"x":"y"},"template":{"metadata":{"labels":{"a":null,"x":"y"}}}}}"#,
            &[],
        ),
        row(
            DEPLOYMENT,
            "",
            r#"{"spec":{"replicas":-1}}"#,
            &["spec.replicas FieldValueInvalid must be greater than or equal to 0"],
        ),
        row(
            DEPLOYMENT,
            "status",
            r#"{"status":{"replicas":1,"readyReplicas":2}}"#,
            &["status.readyReplicas FieldValueInvalid cannot be greater than status.replicas"],
        ),
        row(
            REPLICA_SET,
            "status",
            r#"{"status":{"replicas":1,"availableReplicas":1}}"#,
            &["status.availableReplicas FieldValueInvalid cannot be greater than readyReplicas"],
        ),
        row(
            CONTROLLER,
            "status",
            r#"{"status":{"replicas":1,"observedGeneration":-1}}"#,
            &["status.observedGeneration FieldValueInvalid must be greater than or equal to 0"],
        ),
        row(
            DAEMON_SET,
            "status",
            r#"{"status":{"numberReady":-1}}"#,
            &["status.numberReady FieldValueInvalid must be greater than or equal to 0"],
        ),
        row(
            STATEFUL_SET,
            "status",
            r#"{"status":{"replicas":1,"currentReplicas":2}}"#,
            &["status.currentReplicas FieldValueInvalid cannot be greater than status.replicas"],
        ),
        row(
            STATEFUL_SET,
            "",
            r#"{"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null},"minReadySeconds":3,"revisionHistoryLimit":2}}"#,
            &[],
        ),
        row(
            STATEFUL_SET,
            "",
            r#"{"spec":{"serviceName":"t"}}"#,
            &[
                "spec FieldValueForbidden updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            ],
        ),
        row(
            STATEFUL_SET,
            "",
            r#"{"spec":{"podManagementPolicy":"Parallel"}}"#,
            &[
                "spec FieldValueForbidden updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            ],
        ),
        row(
            r#"{"apiVersion":"apps/v1","kind":"ControllerRevision","metadata":{"namespace":"d"},"revision":1,"data":{"a":1}}"#,
            "",
            r#"{"revision":2}"#,
            &[],
        ),
        row(
            r#"{"apiVersion":"apps/v1","kind":"ControllerRevision","metadata":{"namespace":"d"},"revision":1,"data":{"a":1}}"#,
            "",
            r#"{"data":{"a":2}}"#,
            &["data FieldValueInvalid field is immutable"],
        ),
    ]);
}

const JOB: &str = r#"{"apiVersion":"batch/v1","kind":"Job","metadata":{"namespace":"d"},"spec":{"completions":2,"template":{"spec":{
    "restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}"#;
const INDEXED_JOB: &str = r#"{"apiVersion":"batch/v1","kind":"Job","metadata":{"namespace":"d"},"spec":{"completions":2,"parallelism":2,
    "completionMode":"Indexed","template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}"#;
const SUSPENDED_JOB: &str = r#"{"apiVersion":"batch/v1","kind":"Job","metadata":{"namespace":"d"},"spec":{"suspend":true,"template":{"spec":{
    "restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}"#;
const CRON_JOB: &str = r#"{"apiVersion":"batch/v1","kind":"CronJob","metadata":{"namespace":"d"},"spec":{"schedule":"* * * * *","jobTemplate":{
    "spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}}}"#;

#[test]
fn jobs_change_how_many_and_not_what() {
    check(&[
        row(
            JOB,
            "",
            r#"{"spec":{"parallelism":5,"backoffLimit":1,"suspend":true,"activeDeadlineSeconds":9,"ttlSecondsAfterFinished":1}}"#,
            &[],
        ),
        row(JOB, "", r#"{"spec":{"completions":3}}"#, &["spec.completions FieldValueInvalid field is immutable"]),
        row(INDEXED_JOB, "", r#"{"spec":{"completions":3,"parallelism":3}}"#, &[]),
        row(
            INDEXED_JOB,
            "",
            r#"{"spec":{"completions":3}}"#,
            &["spec.completions FieldValueInvalid can only be modified in tandem with spec.parallelism"],
        ),
        row(
            JOB,
            "",
            r#"{"spec":{"completionMode":"Indexed"}}"#,
            &["spec.completionMode FieldValueInvalid field is immutable"],
        ),
        row(JOB, "", r#"{"spec":{"podReplacementPolicy":"Failed"}}"#, &[]),
        row(
            JOB,
            "",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"j"}]}}}}"#,
            &["spec.template FieldValueInvalid field is immutable"],
        ),
        row(
            JOB,
            "",
            r#"{"spec":{"template":{"spec":{"nodeSelector":{"a":"b"}}}}}"#,
            &["spec.template FieldValueInvalid field is immutable"],
        ),
        row(SUSPENDED_JOB, "", r#"{"spec":{"template":{"spec":{"nodeSelector":{"a":"b"}}}}}"#, &[]),
        row(SUSPENDED_JOB, "", r#"{"spec":{"template":{"metadata":{"annotations":{"a":"b"}}}}}"#, &[]),
        row(
            SUSPENDED_JOB,
            "",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"i","resources":{"requests":{"cpu":"1"}}}]}}}}"#,
            &[],
        ),
        row(
            CRON_JOB,
            "",
            r#"{"spec":{"schedule":"1 * * * *","suspend":true,"jobTemplate":{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"j"}]}}}}}}"#,
            &[],
        ),
        row(
            CRON_JOB,
            "",
            r#"{"spec":{"schedule":"TZ=UTC * * * * *"}}"#,
            &["spec.schedule FieldValueInvalid cannot use TZ or CRON_TZ in schedule, use timeZone field instead"],
        ),
    ]);
}

const CONFIG_MAP: &str =
    r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"namespace":"d"},"data":{"a":"1"},"immutable":true}"#;
const SECRET: &str =
    r#"{"apiVersion":"v1","kind":"Secret","metadata":{"namespace":"d"},"data":{"a":"MQ=="},"immutable":true}"#;
const CLAIM: &str = r#"{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"namespace":"d"},"spec":{"accessModes":["ReadWriteOnce"],
    "storageClassName":"s","resources":{"requests":{"storage":"2Gi"}}}}"#;
const BOUND_CLAIM: &str = r#"{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"namespace":"d"},"spec":{"accessModes":["ReadWriteOnce"],
    "storageClassName":"s","volumeName":"v","resources":{"requests":{"storage":"2Gi"}}},
    "status":{"phase":"Bound","capacity":{"storage":"2Gi"},"currentVolumeAttributesClassName":"gold"}}"#;
const CLAIM_FIXED: &str = "spec FieldValueForbidden spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
const VOLUME: &str = r#"{"apiVersion":"v1","kind":"PersistentVolume","spec":{"accessModes":["ReadWriteOnce"],"capacity":{"storage":"1Gi"},
    "hostPath":{"path":"/a"},"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"k","operator":"Exists"}]}]}}}}"#;
const CLASS: &str =
    r#"{"apiVersion":"storage.k8s.io/v1","kind":"StorageClass","provisioner":"p","parameters":{"a":"b"}}"#;

#[test]
fn data_and_volumes_keep_what_others_rely_on() {
    check(&[
        row(CONFIG_MAP, "", r#"{"metadata":{"labels":{"a":"b"}}}"#, &[]),
        row(
            CONFIG_MAP,
            "",
            r#"{"data":{"a":"2"}}"#,
            &["data FieldValueForbidden field is immutable when `immutable` is set"],
        ),
        row(
            CONFIG_MAP,
            "",
            r#"{"immutable":false}"#,
            &["immutable FieldValueForbidden field is immutable when `immutable` is set"],
        ),
        row(
            CONFIG_MAP,
            "",
            r#"{"binaryData":{"b":"MQ=="}}"#,
            &["binaryData FieldValueForbidden field is immutable when `immutable` is set"],
        ),
        row(
            SECRET,
            "",
            r#"{"data":{"a":"Mg=="}}"#,
            &["data FieldValueForbidden field is immutable when `immutable` is set"],
        ),
        row(SECRET, "", r#"{"type":"x"}"#, &["type FieldValueInvalid field is immutable"]),
        row(CLAIM, "", r#"{"spec":{"volumeName":"v"}}"#, &[]),
        row(CLAIM, "", r#"{"spec":{"accessModes":["ReadWriteMany"]}}"#, &[CLAIM_FIXED]),
        row(CLAIM, "", r#"{"spec":{"resources":{"requests":{"storage":"3Gi"}}}}"#, &[CLAIM_FIXED]),
        row(CLAIM, "", r#"{"spec":{"storageClassName":"t"}}"#, &[CLAIM_FIXED]),
        row(
            BOUND_CLAIM,
            "",
            r#"{"spec":{"resources":{"requests":{"storage":"3Gi"}},"volumeAttributesClassName":"silver"}}"#,
            &[],
        ),
        row(
            BOUND_CLAIM,
            "",
            r#"{"spec":{"resources":{"requests":{"storage":"1Gi"}},"volumeAttributesClassName":"gold"}}"#,
            &["spec.resources.requests.storage FieldValueForbidden field can not be less than status.capacity"],
        ),
        row(BOUND_CLAIM, "", r#"{"spec":{"volumeName":"w"}}"#, &[CLAIM_FIXED]),
        row(
            BOUND_CLAIM,
            "",
            r#"{"spec":{"volumeMode":"Block"}}"#,
            &[CLAIM_FIXED, "volumeMode FieldValueInvalid field is immutable"],
        ),
        row(
            VOLUME,
            "",
            r#"{"spec":{"capacity":{"storage":"2Gi"},"persistentVolumeReclaimPolicy":"Delete","claimRef":{"name":"c","namespace":"d"}}}"#,
            &[],
        ),
        row(
            VOLUME,
            "",
            r#"{"spec":{"hostPath":{"path":"/b"}}}"#,
            &[
                "spec.persistentvolumesource FieldValueForbidden spec.persistentvolumesource is immutable after creation",
            ],
        ),
        row(VOLUME, "", r#"{"spec":{"volumeMode":"Block"}}"#, &["volumeMode FieldValueInvalid field is immutable"]),
        row(
            VOLUME,
            "",
            r#"{"spec":{"nodeAffinity":null}}"#,
            &["nodeAffinity FieldValueInvalid field is immutable, except for updating from beta label to GA"],
        ),
        row(CLASS, "", r#"{"allowVolumeExpansion":true,"mountOptions":["x"]}"#, &[]),
        row(CLASS, "", r#"{"provisioner":"q"}"#, &["provisioner FieldValueInvalid field is immutable"]),
        row(CLASS, "", r#"{"parameters":{"a":"c"}}"#, &["parameters FieldValueInvalid field is immutable"]),
        row(CLASS, "", r#"{"reclaimPolicy":"Retain"}"#, &["reclaimPolicy FieldValueInvalid field is immutable"]),
        row(
            CLASS,
            "",
            r#"{"volumeBindingMode":"WaitForFirstConsumer"}"#,
            &["volumeBindingMode FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"storage.k8s.io/v1","kind":"VolumeAttributesClass","driverName":"p","parameters":{"a":"b"}}"#,
            "",
            r#"{"driverName":"q"}"#,
            &["driverName FieldValueForbidden updates to driverName are forbidden."],
        ),
        row(
            r#"{"apiVersion":"storage.k8s.io/v1","kind":"CSIDriver","spec":{}}"#,
            "",
            r#"{"spec":{"attachRequired":false}}"#,
            &["spec.attachedRequired FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"storage.k8s.io/v1","kind":"CSIDriver","spec":{}}"#,
            "",
            r#"{"spec":{"requiresRepublish":true,"podInfoOnMount":true}}"#,
            &[],
        ),
        row(
            r#"{"apiVersion":"storage.k8s.io/v1","kind":"CSIStorageCapacity","metadata":{"namespace":"d"},"storageClassName":"s","capacity":"1Gi"}"#,
            "",
            r#"{"capacity":"2Gi","storageClassName":"t"}"#,
            &["storageClassName FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"storage.k8s.io/v1","kind":"VolumeAttachment","spec":{"attacher":"a","nodeName":"n","source":{"persistentVolumeName":"v"}}}"#,
            "",
            r#"{"spec":{"nodeName":"m"}}"#,
            &["spec FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"storage.k8s.io/v1","kind":"CSINode","spec":{"drivers":[{"name":"d","nodeID":"1","topologyKeys":[]}]}}"#,
            "",
            r#"{"spec":{"drivers":[{"name":"d","nodeID":"2","topologyKeys":[]}]}}"#,
            &["spec.drivers FieldValueInvalid field is immutable"],
        ),
    ]);
}

#[test]
fn access_and_policy_objects_keep_their_identity() {
    check(&[
        row(
            r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"namespace":"d"},"roleRef":{"kind":"Role","name":"r"},"subjects":[]}"#,
            "",
            r#"{"roleRef":{"name":"s"}}"#,
            &["roleRef FieldValueInvalid cannot change roleRef"],
        ),
        row(
            r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","roleRef":{"kind":"ClusterRole","name":"r"}}"#,
            "",
            r#"{"subjects":[{"kind":"User","name":"u"}]}"#,
            &[],
        ),
        row(
            r#"{"apiVersion":"scheduling.k8s.io/v1","kind":"PriorityClass","value":1}"#,
            "",
            r#"{"value":2}"#,
            &["value FieldValueForbidden may not be changed in an update."],
        ),
        row(
            r#"{"apiVersion":"scheduling.k8s.io/v1","kind":"PriorityClass","value":1}"#,
            "",
            r#"{"preemptionPolicy":"Never"}"#,
            &["preemptionPolicy FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"scheduling.k8s.io/v1","kind":"PriorityClass","value":1}"#,
            "",
            r#"{"description":"x","globalDefault":true}"#,
            &[],
        ),
        row(
            r#"{"apiVersion":"node.k8s.io/v1","kind":"RuntimeClass","handler":"h"}"#,
            "",
            r#"{"handler":"i"}"#,
            &["handler FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"v1","kind":"ResourceQuota","metadata":{"namespace":"d"},"spec":{"hard":{"pods":"1"},"scopes":["BestEffort"]}}"#,
            "",
            r#"{"spec":{"hard":{"pods":"2"},"scopes":["NotBestEffort"]}}"#,
            &["spec.scopes FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"policy/v1","kind":"PodDisruptionBudget","metadata":{"namespace":"d"},"spec":{"minAvailable":1,"selector":{"matchLabels":{"a":"b"}}}}"#,
            "",
            r#"{"spec":{"minAvailable":2,"selector":{"matchLabels":{"a":"c"}}}}"#,
            &[],
        ),
        row(
            r#"{"apiVersion":"policy/v1","kind":"PodDisruptionBudget","metadata":{"namespace":"d"},"spec":{"minAvailable":1}}"#,
            "status",
            r#"{"status":{"disruptionsAllowed":-1}}"#,
            &["status.disruptionsAllowed FieldValueInvalid must be greater than or equal to 0"],
        ),
        row(
            r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"namespace":"d"},"spec":{"leaseDurationSeconds":1}}"#,
            "",
            r#"{"spec":{"leaseDurationSeconds":0}}"#,
            &["spec.leaseDurationSeconds FieldValueInvalid must be greater than 0"],
        ),
        row(
            r#"{"apiVersion":"v1","kind":"Namespace"}"#,
            "status",
            r#"{"status":{"phase":"Terminating"}}"#,
            &["status.Phase FieldValueInvalid may only be 'Active' if `deletionTimestamp` is empty"],
        ),
        row(
            r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"namespace":"d"}}"#,
            "",
            r#"{"secrets":[{"name":"s","namespace":"x"}],"automountServiceAccountToken":false}"#,
            &[],
        ),
        row(
            r#"{"apiVersion":"flowcontrol.apiserver.k8s.io/v1","kind":"PriorityLevelConfiguration","metadata":{"name":"catch-all"},"spec":{"type":"Limited",
            "limited":{"nominalConcurrencyShares":5,"lendablePercent":0,"limitResponse":{"type":"Reject"}}}}"#,
            "",
            r#"{"spec":{"limited":{"nominalConcurrencyShares":6}}}"#,
            &["spec FieldValueInvalid spec of 'catch-all' must equal the fixed value"],
        ),
        row(
            r#"{"apiVersion":"flowcontrol.apiserver.k8s.io/v1","kind":"PriorityLevelConfiguration","metadata":{"name":"exempt"},"spec":{"type":"Exempt"}}"#,
            "",
            r#"{"spec":{"exempt":{"lendablePercent":50}}}"#,
            &[],
        ),
    ]);
}

const SERVICE: &str = r#"{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"d"},"spec":{"clusterIP":"10.0.0.1","clusterIPs":["10.0.0.1"],
    "ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","ports":[{"port":80}]}}"#;
const BALANCED: &str = r#"{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"d"},"spec":{"type":"LoadBalancer","loadBalancerClass":"x/y","clusterIP":"10.0.0.1",
    "clusterIPs":["10.0.0.1"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","ports":[{"port":80,"nodePort":30080}]}}"#;
const SLICE: &str = r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"namespace":"d"},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"]}],"ports":[]}"#;

#[test]
fn network_objects_keep_addresses_and_families() {
    check(&[
        row(SERVICE, "", r#"{"spec":{"ports":[{"port":81}],"selector":{"a":"b"},"sessionAffinity":"ClientIP"}}"#, &[]),
        row(
            SERVICE,
            "",
            r#"{"spec":{"clusterIP":"10.0.0.2","clusterIPs":["10.0.0.2"]}}"#,
            &["spec.clusterIPs[0] FieldValueInvalid may not change once set"],
        ),
        row(
            SERVICE,
            "",
            r#"{"spec":{"type":"ExternalName","externalName":"a.b","clusterIP":null,"clusterIPs":null,"ports":null}}"#,
            &[],
        ),
        row(
            BALANCED,
            "",
            r#"{"spec":{"loadBalancerClass":"x/z"}}"#,
            &["spec.loadBalancerClass FieldValueInvalid may not change once set"],
        ),
        row(BALANCED, "", r#"{"spec":{"type":"ClusterIP"}}"#, &[]),
        row(
            SERVICE,
            "status",
            r#"{"status":{"loadBalancer":{"ingress":[{"ip":"1.2.3.4"}]}}}"#,
            &["status.loadBalancer.ingress FieldValueForbidden may only be used when `spec.type` is 'LoadBalancer'"],
        ),
        row(BALANCED, "status", r#"{"status":{"loadBalancer":{"ingress":[{"ip":"1.2.3.4","ipMode":"VIP"}]}}}"#, &[]),
        row(SLICE, "", r#"{"endpoints":[{"addresses":["10.0.0.2"]}]}"#, &[]),
        row(
            SLICE,
            "",
            r#"{"addressType":"IPv6","endpoints":[{"addresses":["fd00::1"]}]}"#,
            &["addressType FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"networking.k8s.io/v1","kind":"IngressClass","spec":{"controller":"a/b"}}"#,
            "",
            r#"{"spec":{"controller":"a/c"}}"#,
            &["spec.controller FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"networking.k8s.io/v1","kind":"ServiceCIDR","spec":{"cidrs":["10.0.0.0/24"]}}"#,
            "",
            r#"{"spec":{"cidrs":["10.0.1.0/24"]}}"#,
            &["spec.cidrs[0] FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"networking.k8s.io/v1","kind":"ServiceCIDR","spec":{"cidrs":["10.0.0.0/24"]}}"#,
            "",
            r#"{"spec":{"cidrs":["10.0.0.0/24","fd00::/112"]}}"#,
            &[],
        ),
        row(
            r#"{"apiVersion":"networking.k8s.io/v1","kind":"IPAddress","metadata":{"name":"10.0.0.1"},"spec":{"parentRef":{"resource":"services","namespace":"d","name":"s"}}}"#,
            "",
            r#"{"spec":{"parentRef":{"name":"t"}}}"#,
            &["spec.parentRef FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"networking.k8s.io/v1","kind":"Ingress","metadata":{"namespace":"d"},"spec":{"defaultBackend":{"service":{"name":"s","port":{"number":80}}}}}"#,
            "",
            r#"{"spec":{"ingressClassName":"x"}}"#,
            &[],
        ),
    ]);
}

const CSR: &str = r#"{"apiVersion":"certificates.k8s.io/v1","kind":"CertificateSigningRequest","spec":{"signerName":"a.b/c","usages":["client auth"],
    "request":"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUFJd0FBPT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUgUkVRVUVTVC0tLS0tCg=="},
    "status":{"conditions":[{"type":"Approved","status":"True","lastUpdateTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}"#;
const RESOURCE_CLAIM: &str = r#"{"apiVersion":"resource.k8s.io/v1","kind":"ResourceClaim","metadata":{"namespace":"d"},"spec":{"devices":{"requests":[
    {"name":"r","exactly":{"deviceClassName":"c"}}]}}}"#;

#[test]
fn requests_and_claims_cannot_be_rewritten() {
    check(&[
        row(CSR, "", r#"{"spec":{"signerName":"a.b/d"},"metadata":{"labels":{"a":"b"}}}"#, &[]),
        row(
            CSR,
            "approval",
            r#"{"status":{"conditions":[]}}"#,
            &["status.conditions FieldValueForbidden updates may not remove a condition of type \"Approved\""],
        ),
        row(
            CSR,
            "approval",
            r#"{"status":{"conditions":[{"type":"Approved","status":"True"},{"type":"Denied","status":"True"}]}}"#,
            &["status.conditions FieldValueInvalid Approved and Denied conditions are mutually exclusive"],
        ),
        row(
            CSR,
            "status",
            r#"{"status":{"certificate":"eA=="}}"#,
            &["status.certificate FieldValueInvalid must contain at least one CERTIFICATE PEM block"],
        ),
        row(
            RESOURCE_CLAIM,
            "",
            r#"{"spec":{"devices":{"requests":[{"name":"r","exactly":{"deviceClassName":"d"}}]}}}"#,
            &["spec FieldValueInvalid field is immutable"],
        ),
        row(RESOURCE_CLAIM, "", r#"{"metadata":{"annotations":{"a":"b"}}}"#, &[]),
        row(
            r#"{"apiVersion":"resource.k8s.io/v1","kind":"ResourceClaimTemplate","metadata":{"namespace":"d"},"spec":{"spec":{"devices":{"requests":[
            {"name":"r","exactly":{"deviceClassName":"c"}}]}}}}"#,
            "",
            r#"{"spec":{"spec":{"devices":{"requests":[{"name":"s","exactly":{"deviceClassName":"c"}}]}}}}"#,
            &["spec FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"events.k8s.io/v1","kind":"Event","metadata":{"namespace":"d"},"eventTime":"2026-01-01T00:00:00.000000Z","reason":"r","action":"a","type":"Normal",
            "reportingController":"c","reportingInstance":"i","regarding":{"namespace":"d"}}"#,
            "",
            r#"{"reason":"s"}"#,
            &["reason FieldValueInvalid field is immutable", "reason FieldValueInvalid field is immutable"],
        ),
        row(
            r#"{"apiVersion":"v1","kind":"Node","spec":{"podCIDRs":["10.0.0.0/24"],"podCIDR":"10.0.0.0/24","providerID":"p"}}"#,
            "",
            r#"{"spec":{"unschedulable":true,"taints":[{"key":"k","effect":"NoSchedule"}]},"metadata":{"labels":{"a":"b"}}}"#,
            &[],
        ),
        row(
            r#"{"apiVersion":"v1","kind":"Node","spec":{"podCIDRs":["10.0.0.0/24"],"podCIDR":"10.0.0.0/24","providerID":"p"}}"#,
            "",
            r#"{"spec":{"podCIDRs":["10.0.1.0/24"],"podCIDR":"10.0.1.0/24"}}"#,
            &["spec.podCIDRs FieldValueForbidden node updates may not change podCIDR except from \"\" to valid"],
        ),
        row(
            r#"{"apiVersion":"v1","kind":"Node","spec":{"podCIDRs":["10.0.0.0/24"],"podCIDR":"10.0.0.0/24","providerID":"p"}}"#,
            "",
            r#"{"spec":{"providerID":"q"}}"#,
            &["spec.providerID FieldValueForbidden node updates may not change providerID except from \"\" to valid"],
        ),
    ]);
}

#[test]
fn metadata_of_every_kind_is_the_servers() {
    // More than one check says so, and clients see it once.
    for object in [POD, DEPLOYMENT, CONFIG_MAP, CLASS, CRON_JOB, SERVICE] {
        for (change, want) in [
            (r#"{"metadata":{"name":"b"}}"#, "metadata.name FieldValueInvalid field is immutable"),
            (r#"{"metadata":{"uid":"v"}}"#, "metadata.uid FieldValueInvalid field is immutable"),
        ] {
            let (_, mut got) = said(&row(object, "", change, &[]));
            got.dedup();
            assert_eq!(got, [want], "{object}");
        }
    }
}

#[test]
fn the_generation_counts_changes_of_what_is_wanted() {
    // (object, through, change, generation afterwards; created with 1 unless the kind has none)
    for (object, through, change, want) in [
        (DEPLOYMENT, "", r#"{"metadata":{"labels":{"a":"b"}}}"#, 1),
        (DEPLOYMENT, "", r#"{"metadata":{"annotations":{"a":"b"}}}"#, 2),
        (DEPLOYMENT, "", r#"{"spec":{"paused":true}}"#, 2),
        (DEPLOYMENT, "", r#"{"status":{"replicas":3}}"#, 1),
        (DEPLOYMENT, "status", r#"{"spec":{"paused":true},"status":{"replicas":3}}"#, 1),
        (REPLICA_SET, "", r#"{"spec":{"replicas":3}}"#, 2),
        (DAEMON_SET, "", r#"{"spec":{"minReadySeconds":3}}"#, 2),
        (STATEFUL_SET, "", r#"{"spec":{"replicas":3}}"#, 2),
        (JOB, "", r#"{"spec":{"suspend":true}}"#, 2),
        (CRON_JOB, "", r#"{"metadata":{"annotations":{"a":"b"}}}"#, 1),
        (CRON_JOB, "", r#"{"spec":{"suspend":true}}"#, 2),
        (POD, "", r#"{"spec":{"activeDeadlineSeconds":5}}"#, 2),
        (POD, "ephemeralcontainers", r#"{"spec":{"ephemeralContainers":[{"name":"e","image":"i"}]}}"#, 2),
        (POD, "status", r#"{"status":{"phase":"Running"}}"#, 1),
        (SLICE, "", r#"{"endpoints":[]}"#, 2),
        (SLICE, "", r#"{"metadata":{"labels":{"a":"b"}}}"#, 2),
        (CLAIM, "", r#"{"spec":{"volumeName":"v"}}"#, 0),
        (SERVICE, "", r#"{"spec":{"selector":{"a":"b"}}}"#, 0),
        (CONFIG_MAP, "", r#"{"metadata":{"labels":{"a":"b"}}}"#, 0),
    ] {
        let (new, _) = said(&row(object, through, change, &[]));
        assert_eq!(new.v("metadata").i("generation"), want, "{change} of {object}");
    }
}
