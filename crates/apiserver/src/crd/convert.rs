//! Between the versions of a custom resource: by name only. Webhooks are refused by name until they are built.
//!
//! Follows: `apiextensions-apiserver/pkg/apiserver/conversion`.

use apimachinery::Value;
use apimachinery::status::{Status, StatusResult};

/// How a definition's versions are converted.
#[derive(Clone, Debug, PartialEq)]
pub enum Converter {
    /// `strategy: None`: only `apiVersion` changes.
    None,
    /// `strategy: Webhook`.
    Webhook,
}

impl Converter {
    pub fn new(conversion: &Value) -> Converter {
        if conversion.str_at(&["strategy"]) == "Webhook" { Converter::Webhook } else { Converter::None }
    }

    /// The object in `api_version`.
    pub async fn convert(&self, mut object: Value, api_version: &str) -> StatusResult<Value> {
        match self {
            Converter::None => {
                object["apiVersion"] = api_version.into();
                Ok(object)
            }
            Converter::Webhook => Err(Box::new(Status::internal_error(format!(
                "conversion of {} from {} to {api_version} by webhook is not supported yet",
                object.str_at(&["kind"]),
                object.str_at(&["apiVersion"])
            )))),
        }
    }
}
