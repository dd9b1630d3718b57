//! The protobuf form of objects, around the messages of `apimachinery::protobuf`.

use apimachinery::Value;
use apimachinery::protobuf;
use apimachinery::status::{Status, StatusResult};
use bytes::Bytes;

/// An object, list or Status with its envelope. Objects without a message form are refused.
pub fn encode(value: &Value) -> StatusResult<Vec<u8>> {
    protobuf::encode(value).map_err(|e| {
        tracing::debug!(error = %e, "an object has no protobuf form");
        Box::new(Status::failure(406, "NotAcceptable", e.to_string()))
    })
}

/// DeleteOptions from a protobuf body.
pub fn decode_delete_options(body: &[u8]) -> Result<Value, String> {
    let unknown = protobuf::open(body).map_err(|e| e.to_string())?;
    let ty = protobuf::message_type("meta.k8s.io", "v1", "DeleteOptions")
        .or_else(|| protobuf::message_type("", "v1", "DeleteOptions"))
        .ok_or_else(|| "DeleteOptions have no protobuf form".to_owned())?;
    let mut value = protobuf::decode_message(unknown.raw, ty).map_err(|e| e.to_string())?;
    value["apiVersion"] = unknown.api_version.into();
    value["kind"] = unknown.kind.into();

    Ok(value)
}

/// One event of a watch; an object without a message form ends up as an empty frame, which clients refuse.
pub fn watch_frame(event_type: &str, object: &Value) -> Bytes {
    match protobuf::encode(object) {
        Ok(encoded) => protobuf::watch_frame(event_type, &encoded).into(),
        Err(error) => {
            tracing::warn!(%error, "an event has no protobuf form");
            Bytes::new()
        }
    }
}
