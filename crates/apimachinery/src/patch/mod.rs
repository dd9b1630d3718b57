//! Patches: JSON patch, JSON merge patch and strategic merge patch, as functions from tree to tree.
//!
//! What a patch makes is not yet an object of its kind: the caller decodes, defaults and validates it. Server-side apply
//! is in [`crate::apply`].
//!
//! Follows: `k8s.io/apiserver/pkg/endpoints/handlers/patch.go`.

pub mod json;
pub mod merge;
pub mod strategic;

use crate::gvk::GroupResource;
use crate::status::Status;

/// Why a patch was refused. Which of them a mistake leads to is upstream's choice, odd as it is in places.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// 400.
    #[error("{0}")]
    BadRequest(String),
    /// 413.
    #[error("{0}")]
    TooLarge(String),
    /// 422 with a text that does not say why; the reason is for the log.
    #[error("{0}")]
    Rejected(String),
    /// 500 with the text alone.
    #[error("{0}")]
    Plain(String),
}

impl PatchError {
    /// The answer to the client.
    pub fn to_status(&self) -> Status {
        match self {
            PatchError::BadRequest(message) => Status::bad_request(message.as_str()),
            PatchError::TooLarge(message) => Status::request_entity_too_large(message),
            PatchError::Rejected(message) => {
                Status::generic_server_response(422, "", &GroupResource::default(), "", message, 0, false)
            }
            PatchError::Plain(message) => Status::plain_error(message.as_str()),
        }
    }
}

impl From<PatchError> for Status {
    fn from(error: PatchError) -> Status {
        error.to_status()
    }
}
