//! Bodies and what they decode to, as rows; wordings are upstream's.

use super::*;
use crate::json;

fn gvk(group: &str, version: &str, kind: &str) -> GroupVersionKind {
    GroupVersionKind::new(group, version, kind)
}

fn decode(kind: &GroupVersionKind, body: &str) -> Result<Decoded, ObjectError> {
    let ty = schema::lookup(&kind.group, &kind.version, &kind.kind).unwrap();
    object(body.as_bytes(), Format::Json, kind, ty)
}

#[test]
fn unknown_and_duplicate_members_are_told_in_document_order() {
    let configmap = gvk("", "v1", "ConfigMap");
    for (body, want) in [
        (
            r#"{"metadata":{"name":"a","bogus":1},"extra":{"x":1}}"#,
            vec![r#"unknown field "metadata.bogus""#, r#"unknown field "extra""#],
        ),
        (r#"{"Data":{"k":"v"}}"#, vec![r#"unknown field "Data""#]),
        (
            r#"{"data":{"k":"1","k":"2"},"data":{"k":"3"}}"#,
            vec![r#"duplicate field "data.k""#, r#"duplicate field "data""#],
        ),
        (r#"{"data":{"k":"1"},"metadata":{"labels":{"a":"b"}}}"#, vec![]),
    ] {
        assert_eq!(decode(&configmap, body).unwrap().strict_errors, want, "{body}");
    }
    let pod = r#"{"spec":{"containers":[{"name":"c","bogus":1,"ports":[{"containerPort":80,"nope":true}]}]}}"#;
    assert_eq!(
        decode(&gvk("", "v1", "Pod"), pod).unwrap().strict_error().unwrap(),
        r#"strict decoding error: unknown field "spec.containers[0].bogus", unknown field "spec.containers[0].ports[0].nope""#
    );
}

#[test]
fn values_of_wrong_types_are_refused_in_go_words() {
    let deployment = gvk("apps", "v1", "Deployment");
    let secret = gvk("", "v1", "Secret");
    let configmap = gvk("", "v1", "ConfigMap");
    let pod = gvk("", "v1", "Pod");
    for (kind, body, want) in [
        (
            &deployment,
            r#"{"spec":{"replicas":"three"}}"#,
            r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"#,
        ),
        (
            &deployment,
            r#"{"spec":{"replicas":2.5}}"#,
            r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal number 2.5 into Go struct field DeploymentSpec.spec.replicas of type int32"#,
        ),
        (
            &configmap,
            r#"{"metadata":{"labels":{"a":1}}}"#,
            r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"#,
        ),
        (
            &configmap,
            r#"{"metadata":{"creationTimestamp":"yesterday"}}"#,
            r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#,
        ),
        (
            &secret,
            r#"{"data":{"a":"%%%"}}"#,
            r#"Secret in version "v1" cannot be handled as a Secret: illegal base64 data at input byte 0"#,
        ),
        (
            &pod,
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"abc"}}}]}}"#,
            r#"Pod in version "v1" cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"#,
        ),
        (
            &configmap,
            "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"a\"}} x",
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: invalid character 'x' after top-level value ({\"apiVersion\":\"v1\",\"kind\":\"Con ...)",
        ),
        (
            &configmap,
            r#"{"apiVersion":"v1","kind":"Secret"}"#,
            r#"Secret in version "v1" cannot be handled as a ConfigMap: converting (v1.Secret) to (ConfigMap): unknown conversion"#,
        ),
        (
            &deployment,
            r#"{"apiVersion":"extensions/v1beta1","kind":"Deployment"}"#,
            "the API version in the data (extensions/v1beta1) does not match the expected API version (apps/v1)",
        ),
        (
            &configmap,
            r#"{"apiVersion":"v2","kind":"ConfigMap"}"#,
            r#"ConfigMap in version "v2" cannot be handled as a ConfigMap: no kind "ConfigMap" is registered for version "v2" in scheme "pkg/api/legacyscheme/scheme.go:30""#,
        ),
    ] {
        assert_eq!(decode(kind, body).unwrap_err().message, want, "{body}");
    }
    assert!(decode(&configmap, "[]").unwrap_err().message.starts_with("the object provided is unrecognized"));
}

#[test]
fn options_may_name_any_group() {
    let options = gvk("", "v1", "DeleteOptions");
    let body = r#"{"apiVersion":"policy/v1","kind":"DeleteOptions","gracePeriodSeconds":0}"#;
    assert_eq!(decode(&options, body).unwrap().object["gracePeriodSeconds"], 0);
    assert!(decode(&options, r#"{"apiVersion":"v1","kind":"Pod"}"#).is_err());
}

#[test]
fn objects_take_the_form_that_go_writes() {
    for (kind, body, want) in [
        (
            gvk("apps", "v1", "Deployment"),
            json!({"metadata": {"name": "a", "creationTimestamp": null, "labels": {}},
                   "spec": {"replicas": null, "paused": false, "template": {"spec": {
                       "hostNetwork": false, "automountServiceAccountToken": false,
                       "containers": [{"name": "c", "resources": {"limits": {"cpu": "1000m", "memory": 1048576}},
                                       "ports": [{"containerPort": 80}]}]}}}}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
                   "spec": {"selector": null, "strategy": {}, "template": {"metadata": {}, "spec": {
                       "automountServiceAccountToken": false,
                       "containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1048576"}},
                                       "ports": [{"containerPort": 80}]}]}}},
                   "status": {}}),
        ),
        (
            gvk("rbac.authorization.k8s.io", "v1", "Role"),
            json!({"metadata": {"name": "a"}, "rules": []}),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "a"}, "rules": []}),
        ),
        (
            gvk("", "v1", "Service"),
            json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 81}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {}, "status": {"loadBalancer": {}},
                   "spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 0}]}}),
        ),
        (
            gvk("", "v1", "Secret"),
            json!({"data": {"a": "YQ==", "b": null}}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "data": {"a": "YQ==", "b": ""}}),
        ),
        (
            gvk("coordination.k8s.io", "v1", "Lease"),
            json!({"spec": {"acquireTime": "2024-01-02T03:04:05+01:00", "renewTime": "2024-01-02T03:04:05.123456Z"}}),
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {},
                   "spec": {"acquireTime": "2024-01-02T02:04:05.000000Z", "renewTime": "2024-01-02T03:04:05.123456Z"}}),
        ),
    ] {
        let decoded = decode(&kind, &body.to_string()).unwrap();
        assert_eq!(decoded.object, want, "{body}");
        let mut again = want.clone();
        normalize(&mut again, schema::lookup(&kind.group, &kind.version, &kind.kind).unwrap());
        assert_eq!(again, want, "normalizing changes nothing");
    }
}

#[test]
fn storing_forgets_that_a_required_list_was_empty() {
    for (kind, object, want) in [
        (
            gvk("rbac.authorization.k8s.io", "v1", "Role"),
            json!({"metadata": {"name": "a"}, "rules": []}),
            json!({"metadata": {"name": "a"}, "rules": null}),
        ),
        (
            gvk("", "v1", "PodTemplate"),
            json!({"template": {"spec": {"containers": [], "nodeSelector": {}}}}),
            json!({"template": {"spec": {"containers": null, "nodeSelector": {}}}}),
        ),
        (
            gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            json!({"status": {"conditions": []}}),
            json!({"status": {"conditions": []}}),
        ),
    ] {
        let ty = schema::lookup(&kind.group, &kind.version, &kind.kind).unwrap();
        assert_eq!(*as_stored(&object, ty), want);
    }
}

#[test]
fn yaml_is_read_as_kubernetes_reads_it() {
    let configmap = gvk("", "v1", "ConfigMap");
    let ty = schema::lookup("", "v1", "ConfigMap").unwrap();
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: '1'\n  k: '2'\n";
    let decoded = object(body.as_bytes(), Format::Yaml, &configmap, ty).unwrap();
    assert_eq!(decoded.object.str_at(&["data", "k"]), "2");
    assert_eq!(decoded.strict_errors, ["yaml: unmarshal errors:\n  line 7: key \"k\" already set in map"]);
    let body = "apiVersion: v1\nkind: ConfigMap\nzz: 1\nmetadata:\n  nope: 1\n  name: a\naa: 1\n";
    let decoded = object(body.as_bytes(), Format::Yaml, &configmap, ty).unwrap();
    let unknown = ["aa", "metadata.nope", "zz"].map(|field| format!("unknown field {field:?}"));
    assert_eq!(decoded.strict_errors, unknown, "in the order of names");
    let free = untyped(b"mode: 0644\nyes: on\n1: a\ntime: 12:30\n", Format::Yaml).unwrap().object;
    assert_eq!(free, json!({"mode": 420, "true": true, "1": "a", "time": "12:30"}));
    assert!(object(b"a: [\n", Format::Yaml, &configmap, ty).unwrap_err().message.contains("yaml: line"));
}

#[test]
fn broken_documents_are_refused() {
    for body in
        ["", "{", "{\"a\"", "{\"a\":}", "[1,]", "{\"a\":1,}", "{a:1}", "01", "1.", "\"\\x\"", "tru", "nul", "\"\u{1}\""]
    {
        assert!(untyped(body.as_bytes(), Format::Json).is_err(), "{body}");
    }
    let deep = "[".repeat(MAX_DEPTH + 1) + &"]".repeat(MAX_DEPTH + 1);
    assert_eq!(untyped(deep.as_bytes(), Format::Json), Err(DecodeError::Syntax("exceeded max depth".into())));
    let fine = untyped(br#"{"a":"\u00e9\ud83d\ude00\ud800","b":[1,-2.5e3,true,null]}"#, Format::Json).unwrap().object;
    assert_eq!(fine, json!({"a": "é😀\u{fffd}", "b": [1, -2500.0, true, null]}));
}

#[test]
fn null_and_an_empty_document_are_an_object_without_fields() {
    let kind = GroupVersionKind::new("", "v1", "Pod");
    let ty = crate::schema::lookup("", "v1", "Pod").unwrap();
    let empty = object(b"{}", Format::Json, &kind, ty).unwrap().object;
    for (body, format) in [(&b"null"[..], Format::Json), (b"", Format::Yaml), (b"null", Format::Yaml)] {
        assert_eq!(object(body, format, &kind, ty).unwrap().object, empty, "{format:?} {body:?}");
    }
}
