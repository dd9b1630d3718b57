//! Whole texts of refusals, and what becomes of old ways to say things.

use super::{default_object, prepare_create, prepare_update, validate_create, validate_update, warnings_before_create};
use crate::gvk::GroupVersionKind;
use crate::json::Value;
use crate::{decode, schema};

fn kind(api_version: &str, kind: &str) -> GroupVersionKind {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    GroupVersionKind::new(group, version, kind)
}

/// An object as it is before it is stored.
fn read(text: &str) -> (GroupVersionKind, Value) {
    let given = Value::from_slice(text.as_bytes()).unwrap();
    let gvk = kind(given.str_at(&["apiVersion"]), given.str_at(&["kind"]));
    let ty = schema::lookup(&gvk.group, &gvk.version, &gvk.kind).unwrap();
    let mut object = decode::value(&given, ty).unwrap().object;
    default_object(&gvk, &mut object);
    (gvk, object)
}

fn created(text: &str) -> (GroupVersionKind, Value) {
    let (gvk, mut object) = read(text);
    prepare_create(&gvk, &mut object);
    (gvk, object)
}

fn pod(spec: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"a","namespace":"n","uid":"u"}},"spec":{{"containers":[{{"name":"c","image":"i"}}]{spec}}}}}"#
    )
}

fn request(signer: &str) -> String {
    // Only the name of the signer matters here.
    format!(
        r#"{{"apiVersion":"certificates.k8s.io/v1","kind":"CertificateSigningRequest","metadata":{{"name":"a","uid":"u"}},"spec":{{"request":"","usages":["client auth"],"signerName":"{signer}"}}}}"#
    )
}

#[test]
fn new_objects_are_refused_in_these_words() {
    let long = "a".repeat(66);
    let rows = [
        (
            pod(r#","resourceClaims":[{"name":"x"}]"#),
            r#"spec.resourceClaims[0]: Invalid value: {"Name":"x","ResourceClaimName":null,"ResourceClaimTemplateName":null}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"#,
        ),
        (
            pod(r#","securityContext":{"seLinuxChangePolicy":"MountOption"}"#),
            r#"spec.securityContext.seLinuxChangePolicy: Unsupported value: "MountOption": supported values: "Recursive""#,
        ),
        (
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a","uid":"u"},"status":{"nodeInfo":{"swap":{"capacity":0}}}}"#
                .to_owned(),
            "metadata.nodeSwapStatus.capacity: Invalid value: 0: must be greater than zero",
        ),
        (
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a","uid":"u","annotations":{"scheduler.alpha.kubernetes.io/preferAvoidPods":"{\"preferAvoidPods\":[{\"podSignature\":{}}]}"}}}"#
                .to_owned(),
            "metadata.annotations.scheduler.alpha.kubernetes.io/preferAvoidPods[0].PodSignature: Required value",
        ),
        (
            request(&format!("{long}.example.io/x")),
            &format!(r#"spec.signerName: Invalid value: "{long}.example.io": validating label "{long}": must be no more than 63 characters"#),
        ),
        (
            request("example.com/a/b"),
            r#"spec.signerName: Invalid value: "example.com/a/b": must be a fully qualified domain and path of the form 'example.com/signer-name'"#,
        ),
        (
            r#"{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"a","uid":"u"},"spec":{"capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"],"persistentVolumeReclaimPolicy":"Recycle","hostPath":{"path":"/a/.."}}}"#
                .to_owned(),
            "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
        ),
        (
            r#"{"apiVersion":"flowcontrol.apiserver.k8s.io/v1","kind":"PriorityLevelConfiguration","metadata":{"name":"a","uid":"u","annotations":{"flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares":""}},"spec":{"type":"Limited","limited":{"limitResponse":{"type":"Reject"}}}}"#
                .to_owned(),
            "metadata.annotations: Forbidden: annotation 'flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares' is forbidden",
        ),
    ];
    for (text, want) in rows {
        let (gvk, mut object) = created(&text);
        if gvk.kind == "Node" {
            object = read(&text).1;
        }
        let errors: Vec<String> = validate_create(&gvk, &object).iter().map(ToString::to_string).collect();
        assert!(errors.iter().any(|error| error == want), "{text}\n  got  {errors:#?}\n  want {want}");
    }
}

/// Old and new object, the subresource, and the whole of what is wrong.
fn refused_update(old: &str, new: &str, subresource: &str) -> Vec<String> {
    let (gvk, mut old) = created(old);
    if subresource == "status" {
        old.set_at(&["status", "phase"], "Running".into());
    }
    let mut new = read(new).1;
    prepare_update(&gvk, subresource, &mut new, &old, "2026-01-01T00:00:00Z");
    validate_update(&gvk, subresource, &new, &old).iter().map(ToString::to_string).collect()
}

#[test]
fn updates_are_refused_in_these_words() {
    let binding = |name: &str| {
        format!(
            r#"{{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{{"name":"a","namespace":"n","uid":"u","resourceVersion":"1"}},"roleRef":{{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"{name}"}}}}"#
        )
    };
    assert_eq!(
        refused_update(&binding("a"), &binding("b"), ""),
        [
            r#"roleRef: Invalid value: {"APIGroup":"rbac.authorization.k8s.io","Kind":"Role","Name":"b"}: cannot change roleRef"#
        ]
    );
    let (was, is) = (pod(""), pod(r#","hostNetwork":true"#));
    let errors = refused_update(&was, &is, "");
    let end = " \"SecurityContext\": {\n-  \"HostNetwork\": false,\n+  \"HostNetwork\": true,\n   \"HostPID\": false,\n   \"HostIPC\": false,\n   \"ShareProcessNamespace\": null,\n";
    assert!(errors.iter().any(|error| error.ends_with(end)), "{errors:#?}");
    let status = |status: &str| {
        pod("").replace(r#""metadata":{"#, r#""metadata":{"resourceVersion":"1","#).trim_end_matches('}').to_owned()
            + &format!(r#"}},"status":{{{status}}}}}"#)
    };
    let prefix = "status.extendedResourceClaimStatus";
    for (new, want) in [
        (
            r#""extendedResourceClaimStatus":{"requestMappings":[],"resourceClaimName":"x"}"#,
            vec![format!("{prefix}.requestMappings: Required value: at least one request mapping is required")],
        ),
        (
            r#""extendedResourceClaimStatus":{"requestMappings":[{"containerName":"c","resourceName":"example.com/gpu","requestName":"r"},{"containerName":"d","resourceName":"example.com/gpu","requestName":"r"}],"resourceClaimName":"x"}"#,
            vec![
                format!(
                    r#"{prefix}.requestMappings[0].resourceName: Invalid value: "example.com/gpu": must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests"#
                ),
                format!(
                    r#"{prefix}.requestMappings[1].containerName: Invalid value: "d": must match the name of an entry in spec.initContainers.name or spec.containers.name"#
                ),
            ],
        ),
        (
            r#""containerStatuses":[{"name":"c","image":"i","imageID":"","ready":true,"restartCount":0,"user":{"linux":{"uid":-1,"gid":0}}}]"#,
            vec![
                "status.containerStatuses[0].user.linux.uid: Invalid value: -1: must be between 0 and 2147483647, inclusive"
                    .to_owned(),
            ],
        ),
        (
            r#""podIPs":[{"ip":"::1"},{"ip":"::2"}]"#,
            vec![
                r#"status.podIPs: Invalid value: [{"IP":"::1"},{"IP":"::2"}]: may specify no more than one IP for each IP family"#
                    .to_owned(),
            ],
        ),
    ] {
        assert_eq!(refused_update(&pod(""), &status(new), "status"), want, "{new}");
    }
    let volume = |key: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"PersistentVolume","metadata":{{"name":"a","uid":"u","resourceVersion":"1"}},"spec":{{"capacity":{{"storage":"1Gi"}},"accessModes":["ReadWriteOnce"],"hostPath":{{"path":"/a"}},"nodeAffinity":{{"required":{{"nodeSelectorTerms":[{{"matchExpressions":[{{"key":"{key}","operator":"In","values":["b"]}}]}}]}}}}}}}}"#
        )
    };
    let (beta, stable) = ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone");
    assert!(refused_update(&volume(beta), &volume(stable), "").is_empty());
    assert_eq!(
        refused_update(&volume(stable), &volume(beta), ""),
        [format!(
            r#"nodeAffinity: Invalid value: {{"Required":{{"NodeSelectorTerms":[{{"MatchExpressions":[{{"Key":"{beta}","Operator":"In","Values":["b"]}}],"MatchFields":null}}]}}}}: field is immutable, except for updating from beta label to GA"#
        )]
    );
}

#[test]
fn app_armor_annotations_of_new_pods_move_to_fields() {
    let annotated = |annotation: &str, spec: &str| {
        pod(spec).replace(
            r#""uid":"u""#,
            &format!(
                r#""uid":"u","annotations":{{"container.apparmor.security.beta.kubernetes.io/c":"{annotation}"}}"#
            ),
        )
    };
    for (annotation, spec, field, warned) in [
        ("localhost/p", "", r#"{"localhostProfile":"p","type":"Localhost"}"#, true),
        ("runtime/default", "", r#"{"type":"RuntimeDefault"}"#, true),
        ("nonsense", "", "null", true),
        ("unconfined", r#","securityContext":{"appArmorProfile":{"type":"Unconfined"}}"#, "null", false),
        ("unconfined", r#","os":{"name":"windows"}"#, "null", false),
    ] {
        let (gvk, mut object) = read(&annotated(annotation, spec));
        let warnings = warnings_before_create(&gvk, &object);
        assert_eq!(!warnings.is_empty(), warned, "{annotation}: {warnings:?}");
        prepare_create(&gvk, &mut object);
        let container = &object["spec"]["containers"][0];
        assert_eq!(container["securityContext"]["appArmorProfile"].to_string(), field, "{annotation}");
    }
}

#[test]
fn members_that_are_not_written_any_more_go() {
    let (_, slice) = created(
        r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"a","namespace":"n"},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"],"deprecatedTopology":{"kubernetes.io/hostname":"h"}}]}"#,
    );
    assert_eq!(slice["endpoints"][0].to_string(), r#"{"addresses":["10.0.0.1"],"conditions":{}}"#);
    let (_, devices) = created(
        r#"{"apiVersion":"resource.k8s.io/v1","kind":"ResourceSlice","metadata":{"name":"a"},"spec":{"driver":"d.example.com","pool":{"name":"p","generation":1,"resourceSliceCount":1},"nodeName":"n","devices":[{"name":"x","attributes":{"one":{"bool":true},"many":{"ints":[1]}}}]}}"#,
    );
    let attributes = &devices["spec"]["devices"][0]["attributes"];
    assert_eq!(attributes.to_string(), r#"{"many":{},"one":{"bool":true}}"#);
}
