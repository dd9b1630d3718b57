//! Objects in both encodings, against upstream's fixtures.

use super::*;
use crate::json;

#[test]
fn objects_round_trip() {
    for object in [
        json!({"apiVersion": "v1", "kind": "Pod",
               "metadata": {"name": "a", "creationTimestamp": "2024-01-02T03:04:05Z", "labels": {"a": "b", "c": ""}},
               "spec": {"automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
                        "containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}},
                                        "livenessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 3}}],
                        "volumes": [{"name": "v", "emptyDir": {}}]},
               "status": {}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "YWI="}}),
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "r"},
               "data": {"spec": {"any": [1, null, "x"]}}, "revision": 3}),
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {},
               "status": {"user": {"extra": {"k": ["a", "b"]}}}}),
        json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7"},
               "items": [{"metadata": {"name": "a"}, "data": {"k": "v"}}]}),
        json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404,
               "details": {"causes": [{"reason": "x"}]}}),
        json!({"apiVersion": "policy/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
               "preconditions": {"uid": "u"}}),
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
               "spec": {"renewTime": "2024-01-02T03:04:05.123456Z"}}),
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
               "metadata": {"name": "x.example.com"},
               "spec": {"group": "example.com", "scope": "Namespaced",
                        "names": {"plural": "xs", "kind": "X"},
                        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                            "type": "object", "properties": {
                                "a": {"type": "array", "items": {"type": "string", "maxLength": 3}, "default": ["x"]},
                                "b": {"type": "object", "additionalProperties": {"type": "number", "minimum": 1.5}},
                                "c": {"x-kubernetes-int-or-string": true}}}}}]},
               "status": {"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": null}}),
    ] {
        let bytes = encode(&object).unwrap();
        assert_eq!(decode(&bytes).unwrap(), object);
        let gvk = GroupVersionKind::of(&object).unwrap();
        assert_eq!(super::object(&bytes, &gvk).unwrap().object, object);
    }
}

#[test]
fn zero_scalars_are_written_and_unset_pointers_are_not() {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}});
    let unknown = encode(&object).unwrap();
    let raw = open(&unknown).unwrap().raw;
    // metadata: six strings, the generation and the creation time; nothing else.
    assert_eq!(raw, b"\x0a\x10\x0a\x00\x12\x00\x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00\x42\x00");
}

#[test]
fn garbage_is_refused() {
    let configmap = GroupVersionKind::new("", "v1", "ConfigMap");
    for (body, want) in [
        (
            &b"garbage"[..],
            "the object provided is unrecognized (must be of type ConfigMap): provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] (67617262616765)",
        ),
        (
            &b"k8s\0\x0a\xff"[..],
            "the object provided is unrecognized (must be of type ConfigMap): unexpected EOF (6b3873000aff)",
        ),
    ] {
        assert_eq!(super::object(body, &configmap).unwrap_err().message, want);
    }
    let secret = encode(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}})).unwrap();
    assert!(super::object(&secret, &configmap).unwrap_err().message.contains("unknown conversion"));
    assert!(encode(&json!({"apiVersion": "example.com/v1", "kind": "Widget"})).is_err());
    assert!(encode(&json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table"})).is_err());
    for version in ["v1", "v1beta1"] {
        let partial = json!({"apiVersion": format!("meta.k8s.io/{version}"), "kind": "PartialObjectMetadata", "metadata": {"name": "a"}});
        let bytes = encode(&partial).expect(version);
        assert!(bytes.windows(version.len()).any(|part| part == version.as_bytes()), "{version}");
    }
}

#[test]
fn watch_frames_can_be_read_one_by_one() {
    let object = encode(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})).unwrap();
    let mut stream = watch_frame("ADDED", &object);
    let first = stream.len();
    stream.extend(watch_frame("DELETED", &object));
    let (event, body, used) = read_watch_frame(&stream).unwrap().unwrap();
    assert_eq!((event.as_str(), body, used), ("ADDED", object.as_slice(), first));
    assert_eq!(read_watch_frame(&stream[used..]).unwrap().unwrap().0, "DELETED");
    assert_eq!(read_watch_frame(&stream[..first - 1]).unwrap(), None);
}

#[test]
fn upstream_fixtures_decode_to_their_objects_and_encode_to_their_bytes() {
    macro_rules! fixtures {
        ($($name:literal),* $(,)?) => {
            [$(($name,
                &include_bytes!(concat!("fixtures/", $name, ".json"))[..],
                &include_bytes!(concat!("fixtures/", $name, ".pb"))[..])),*]
        };
    }
    // Every field is set in these, to a value that is not zero.
    for (name, text, bytes) in fixtures![
        "apiextensions.k8s.io.v1.CustomResourceDefinition",
        "apps.v1.ControllerRevision",
        "authentication.k8s.io.v1.TokenReview",
        "autoscaling.v2.HorizontalPodAutoscaler",
        "coordination.k8s.io.v1.Lease",
        "core.v1.ConfigMap",
        "core.v1.Endpoints",
        "core.v1.Event",
        "core.v1.Service",
        "networking.k8s.io.v1.Ingress",
        "rbac.authorization.k8s.io.v1.ClusterRole",
    ] {
        let object = Value::from_slice(text).unwrap();
        assert_eq!(decode(bytes).unwrap(), object, "{name}");
        assert!(encode(&object).unwrap() == bytes, "{name}");
        let gvk = GroupVersionKind::of(&object).unwrap();
        let ty = schema::lookup(&gvk.group, &gvk.version, &gvk.kind).unwrap();
        let read = crate::decode::object(text, crate::decode::Format::Json, &gvk, ty).unwrap();
        assert_eq!(read.object, object, "{name}");
        assert!(read.strict_errors.is_empty(), "{name}");
    }
}
