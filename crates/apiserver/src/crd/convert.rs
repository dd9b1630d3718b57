//! Between the versions of a custom resource: by name only, or by asking a webhook.
//!
//! Objects that have the wanted version already are left alone. Those of a list are sent together, in a bounded number of
//! calls that are each bounded in size and time.
//!
//! Follows: `apiextensions-apiserver/pkg/apiserver/conversion`.

use std::sync::Weak;
use std::time::Duration;

use apimachinery::field::{self, FieldPath};
use apimachinery::gvk::{GroupVersion, GroupVersionKind};
use apimachinery::json::Map;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use apimachinery::{Value, json, kinds, labels};
use futures::{StreamExt, TryStreamExt, stream};

use crate::storage::Storage;
use crate::webhook::Target;

/// How long one call may take. Source: the default timeout of requests to webhooks.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How many objects one call carries, and about how many bytes.
const CALL_OBJECTS_MAX: usize = 200;
const CALL_BYTES_MAX: usize = 1 << 20;
/// How many calls for one request run at once.
const CALLS_MAX: usize = 4;

/// How a definition's versions are converted.
pub enum Converter {
    /// `strategy: None`: only `apiVersion` changes.
    None,
    /// `strategy: Webhook`.
    Webhook(Webhook),
}

impl Converter {
    pub fn new(definition: &Value, storage: Weak<Storage>) -> Converter {
        let conversion = &definition["spec"]["conversion"];
        if conversion.str_at(&["strategy"]) != "Webhook" {
            return Converter::None;
        }
        let versions = conversion.array_at(&["webhook", "conversionReviewVersions"]).iter().filter_map(Value::as_str);
        Converter::Webhook(Webhook {
            definition: definition.name().to_owned(),
            client_config: conversion["webhook"]["clientConfig"].clone(),
            review: versions.filter_map(Review::parse).next(),
            storage,
        })
    }

    /// The objects in `api_version`, in their order.
    pub async fn convert(&self, mut objects: Vec<Value>, api_version: &str) -> StatusResult<Vec<Value>> {
        match self {
            Converter::None => {
                for object in objects.iter_mut().filter(|o| o.str_at(&["apiVersion"]) != api_version) {
                    object["apiVersion"] = api_version.into();
                }
                Ok(objects)
            }
            Converter::Webhook(webhook) => {
                // Upstream answers such errors without a reason.
                let failed = |message: String| Box::new(Status::failure(500, "", message));
                webhook.convert(&mut objects, api_version).await.map_err(failed)?;
                Ok(objects)
            }
        }
    }
}

/// The version of ConversionReview that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Review {
    V1,
    V1Beta1,
}

impl Review {
    fn parse(version: &str) -> Option<Review> {
        match version {
            "v1" => Some(Review::V1),
            "v1beta1" => Some(Review::V1Beta1),
            _ => None,
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Review::V1 => "apiextensions.k8s.io/v1",
            Review::V1Beta1 => "apiextensions.k8s.io/v1beta1",
        }
    }
}

/// A definition's conversion webhook.
pub struct Webhook {
    definition: String,
    client_config: Value,
    review: Option<Review>,
    /// Where the Service is looked up. Weak: the storage's registry holds the strategies, and they hold this.
    storage: Weak<Storage>,
}

impl Webhook {
    async fn convert(&self, objects: &mut [Value], api_version: &str) -> Result<(), String> {
        let mut calls: Vec<Vec<&mut Value>> = Vec::new();
        let mut bytes = 0;
        for object in objects.iter_mut().filter(|o| o.str_at(&["apiVersion"]) != api_version) {
            let length = object.to_vec().len();
            bytes += length;
            match calls.last_mut() {
                Some(call) if call.len() < CALL_OBJECTS_MAX && bytes <= CALL_BYTES_MAX => call.push(object),
                _ => {
                    calls.push(vec![object]);
                    bytes = length;
                }
            }
        }
        if calls.is_empty() {
            return Ok(());
        }
        let target = self.target().await?;
        let calls: Vec<_> = calls.into_iter().map(|objects| self.call(&target, objects, api_version)).collect();
        stream::iter(calls).buffer_unordered(CALLS_MAX).try_collect::<()>().await
    }

    async fn target(&self) -> Result<Target, String> {
        let storage = self.storage.upgrade().ok_or_else(|| "the server is stopping".to_owned())?;
        let described = |e: String| format!("conversion webhook for {} failed: {e}", self.definition);
        Target::read(&storage, &self.client_config).await.map_err(described)
    }

    /// One call; `objects` are replaced by their converted form.
    async fn call(&self, target: &Target, mut objects: Vec<&mut Value>, api_version: &str) -> Result<(), String> {
        let review = self.review.ok_or_else(|| "no supported conversion review versions".to_owned())?;
        let kind = objects.first().map(|o| kind_of(o)).unwrap_or_default();
        let failed = |e: String| format!("conversion webhook for {kind} failed: {e}");
        let uid = uuid::Uuid::new_v4().to_string();
        let sent: Vec<Value> = objects.iter().map(|o| Value::clone(o)).collect();
        let single = sent.len() == 1;
        let mut request = json!({"kind": "ConversionReview", "apiVersion": review.api_version()});
        request["request"] = json!({"uid": uid, "desiredAPIVersion": api_version, "objects": Value::Array(sent)});
        tracing::debug!(
            definition = self.definition,
            api_version,
            count = objects.len(),
            "asking a conversion webhook"
        );
        let answer = target.call(&request, TIMEOUT).await.map_err(failed)?;
        let converted = converted_objects(&answer, review, &uid).map_err(failed)?;
        if converted.len() != objects.len() {
            return Err(format!(
                "conversion webhook for {kind} returned {} objects, expected {}",
                converted.len(),
                objects.len()
            ));
        }
        for (i, (original, converted)) in objects.iter_mut().zip(converted).enumerate() {
            let accepted = accept(original, converted, api_version).map_err(|e| {
                let place = if single { String::new() } else { format!(" at index {i}") };
                match e {
                    Unusable::Type(reason) if single => {
                        format!("conversion webhook for {kind} returned invalid object at index 0: {reason}")
                    }
                    Unusable::Type(reason) => {
                        format!("conversion webhook for {kind} returned invalid converted object{place}: {reason}")
                    }
                    Unusable::Object(reason) if single => {
                        format!("conversion webhook for {kind} returned invalid object: {reason}")
                    }
                    Unusable::Object(reason) => {
                        format!("conversion webhook for {kind} returned invalid converted object{place}: {reason}")
                    }
                    Unusable::Metadata(reason) if single => {
                        format!("conversion webhook for {kind} returned invalid metadata: {reason}")
                    }
                    Unusable::Metadata(reason) => {
                        format!("conversion webhook for {kind} returned invalid metadata in object{place}: {reason}")
                    }
                }
            })?;
            **original = accepted;
        }
        Ok(())
    }
}

/// An object's kind as messages show it, such as `example.com/v1, Kind=Thing`.
fn kind_of(object: &Value) -> String {
    let version = GroupVersion::parse(object.str_at(&["apiVersion"])).unwrap_or_default();
    version.with_kind(object.str_at(&["kind"])).to_string()
}

/// The objects of an answer that says that all went well.
fn converted_objects<'a>(answer: &'a Value, review: Review, uid: &str) -> Result<&'a [Value], String> {
    if review == Review::V1 {
        let expected = GroupVersionKind::new("apiextensions.k8s.io", "v1", "ConversionReview");
        let got = kind_of(answer);
        if got != expected.to_string() {
            return Err(format!("expected webhook response of {expected}, got {got}"));
        }
    }
    let response = answer.get("response").filter(|r| r.is_object()).ok_or("no response provided")?;
    // The older version was never checked for being meant for this request.
    if review == Review::V1 && response.str_at(&["uid"]) != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", response.str_at(&["uid"])));
    }
    match (response.str_at(&["result", "status"]), response.str_at(&["result", "message"])) {
        ("Success", _) => Ok(response.array_at(&["convertedObjects"])),
        (status, "") => Err(format!("response.result.status was '{status}', not 'Success'")),
        (_, message) => Err(message.to_owned()),
    }
}

/// Why a converted object is not taken.
#[derive(Debug, PartialEq, Eq)]
enum Unusable {
    /// Not of the version and kind that were asked for.
    Type(String),
    /// Not the same object.
    Object(String),
    Metadata(String),
}

/// The converted object with the metadata of the original, of which only labels and annotations may change.
fn accept(original: &Value, converted: &Value, api_version: &str) -> Result<Value, Unusable> {
    let got = converted.str_at(&["apiVersion"]);
    if got != api_version {
        let reason = format!("invalid groupVersion (expected {api_version}, received {got})");
        return Err(Unusable::Type(reason));
    }
    let (expected, got) = (original.str_at(&["kind"]), converted.str_at(&["kind"]));
    if expected != got {
        return Err(Unusable::Type(format!("invalid kind (expected {expected}, received {got})")));
    }
    for (member, shown) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (expected, got) = (original.str_at(&["metadata", member]), converted.str_at(&["metadata", member]));
        if expected != got {
            return Err(Unusable::Object(format!("must have the same {shown}: {expected} != {got}")));
        }
    }
    let metadata = restored_metadata(original, converted).map_err(Unusable::Metadata)?;
    let mut converted = converted.clone();
    converted["metadata"] = metadata;
    Ok(converted)
}

fn restored_metadata(original: &Value, converted: &Value) -> Result<Value, String> {
    let given = converted.get("metadata").ok_or("missing metadata in converted object")?;
    if !given.is_object() {
        return Err(format!("invalid metadata of type {} in converted object", go_type(given)));
    }
    let mut metadata = original.get("metadata").cloned().unwrap_or_else(Value::object);
    let empty = Map::new();
    for member in ["labels", "annotations"] {
        let texts = match given.get(member) {
            None | Some(Value::Null) => {
                metadata.remove_at(&[member]);
                continue;
            }
            Some(Value::Object(texts)) => texts,
            Some(other) => {
                return Err(format!("invalid metadata.{member} of type {} in converted object", go_type(other)));
            }
        };
        if let Some((key, value)) = texts.iter().find(|(_, v)| v.as_str().is_none()) {
            return Err(format!(
                "metadata.{member}[{key}] must be a string, but is {} in converted object",
                go_type(value)
            ));
        }
        if texts != metadata.get(member).and_then(Value::as_object).unwrap_or(&empty) {
            let mut errors = Vec::new();
            match member {
                "labels" => errors.extend(labels::validate_labels(texts, &FieldPath::new("metadata").child("labels"))),
                // Upstream's path has no `s`.
                _ => kinds::validate_annotations(texts, &FieldPath::new("metadata").child("annotation"), &mut errors),
            }
            if !errors.is_empty() {
                return Err(field::aggregate(&errors));
            }
        }
        metadata[member] = Value::Object(texts.clone());
    }
    Ok(metadata)
}

/// The type of a value as Go names it.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) if value.as_i64().is_some() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original() -> Value {
        json!({"apiVersion": "g/v1", "kind": "Thing", "spec": {"old": 1},
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "generation": 2, "labels": {"l": "1"}}})
    }

    #[test]
    fn only_labels_and_annotations_of_the_metadata_change() {
        let converted = json!({"apiVersion": "g/v2", "kind": "Thing", "spec": {"new": 1},
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "generation": 9, "annotations": {"x": "y"}}});
        let want = json!({"apiVersion": "g/v2", "kind": "Thing", "spec": {"new": 1},
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "generation": 2, "annotations": {"x": "y"}}});
        assert_eq!(accept(&original(), &converted, "g/v2"), Ok(want));
    }

    #[test]
    fn objects_that_are_not_the_same_are_refused() {
        let metadata = |reason: &str| Unusable::Metadata(reason.to_owned());
        let object = |reason: &str| Unusable::Object(reason.to_owned());
        let kind = |reason: &str| Unusable::Type(reason.to_owned());
        let label = "metadata.labels: Invalid value: \"-\": name part must consist of alphanumeric characters, '-', '_' \
                     or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
                     '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
        for (path, value, want) in [
            (&["apiVersion"][..], json!("g/v3"), kind("invalid groupVersion (expected g/v2, received g/v3)")),
            (&["kind"], json!("Other"), kind("invalid kind (expected Thing, received Other)")),
            (&["metadata", "name"], json!("b"), object("must have the same name: a != b")),
            (&["metadata", "namespace"], json!("b"), object("must have the same namespace: n != b")),
            (&["metadata", "uid"], json!("b"), object("must have the same UID: u != b")),
            (
                &["metadata", "labels"],
                json!([]),
                metadata("invalid metadata.labels of type []interface {} in converted object"),
            ),
            (
                &["metadata", "annotations"],
                json!({"x": 1}),
                metadata("metadata.annotations[x] must be a string, but is int64 in converted object"),
            ),
            (&["metadata", "labels"], json!({"-": "x"}), metadata(label)),
        ] {
            let mut converted = original();
            converted["apiVersion"] = "g/v2".into();
            converted.set_at(path, value.clone());
            assert_eq!(accept(&original(), &converted, "g/v2"), Err(want), "{value}");
        }
    }

    #[test]
    fn answers_are_checked_in_the_words_of_upstream() {
        let v1 = |response: Value| json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
        for (answer, review, want) in [
            (v1(json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [1]})), Review::V1, Ok(1)),
            (v1(json!({"uid": "x"})), Review::V1, Err("expected response.uid=\"u\", got \"x\"")),
            (v1(Value::Null), Review::V1, Err("no response provided")),
            (
                v1(json!({"uid": "u", "result": {"status": "Failed"}})),
                Review::V1,
                Err("response.result.status was 'Failed', not 'Success'"),
            ),
            (v1(json!({"uid": "u", "result": {"status": "Failed", "message": "no"}})), Review::V1, Err("no")),
            (
                json!({"kind": "Other", "apiVersion": "a/b"}),
                Review::V1,
                Err("expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got a/b, Kind=Other"),
            ),
            (json!({"response": {"result": {"status": "Success"}}}), Review::V1Beta1, Ok(0)),
        ] {
            let got = converted_objects(&answer, review, "u").map(<[Value]>::len);
            assert_eq!(got, want.map_err(str::to_owned), "{answer}");
        }
    }
}
