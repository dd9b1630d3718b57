//! The protobuf form of objects.

use apimachinery::Value;
use apimachinery::status::{Status, StatusResult};
use bytes::Bytes;

use crate::registry::Resource;

fn unsupported() -> Box<Status> {
    Box::new(Status::failure(406, "NotAcceptable", "protobuf is not supported yet"))
}

pub fn encode(_resource: Option<&Resource>, _value: &Value) -> StatusResult<Vec<u8>> {
    Err(unsupported())
}

pub fn decode_delete_options(_body: &[u8]) -> Result<Value, String> {
    Err("protobuf is not supported yet".to_owned())
}

pub fn watch_frame(_resource: &Resource, _event_type: &str, _object: &Value) -> Bytes {
    Bytes::new()
}
