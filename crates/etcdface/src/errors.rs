//! etcd's errors: the same codes and texts, because clients compare them.

use store::{CompactError, ReadError, WriteError};
use tonic::Status;

pub fn empty_key() -> Status {
    Status::invalid_argument("etcdserver: key is not provided")
}

pub fn key_not_found() -> Status {
    Status::invalid_argument("etcdserver: key not found")
}

pub fn value_provided() -> Status {
    Status::invalid_argument("etcdserver: value is provided")
}

pub fn lease_provided() -> Status {
    Status::invalid_argument("etcdserver: lease is provided")
}

pub fn too_many_operations() -> Status {
    Status::invalid_argument("etcdserver: too many operations in txn request")
}

pub fn duplicate_key() -> Status {
    Status::invalid_argument("etcdserver: duplicate key given in txn request")
}

pub fn sort_option() -> Status {
    Status::invalid_argument("etcdserver: invalid sort option")
}

pub fn compacted() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision has been compacted")
}

pub fn future_revision() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision is a future revision")
}

pub fn lease_not_found() -> Status {
    Status::not_found("etcdserver: requested lease not found")
}

pub fn lease_ttl_too_large() -> Status {
    Status::out_of_range("etcdserver: too large lease TTL")
}

fn unavailable(error: &(dyn std::error::Error + 'static)) -> Status {
    tracing::warn!(error, "the store is not available");
    Status::unavailable("etcdserver: request timed out")
}

pub fn read(error: ReadError) -> Status {
    match error {
        ReadError::Compacted { .. } => compacted(),
        ReadError::FutureRevision { .. } => future_revision(),
        ReadError::Unavailable(error) => unavailable(&error),
    }
}

pub fn write(error: WriteError) -> Status {
    match error {
        WriteError::Full => Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
        WriteError::TooLarge { .. } => Status::invalid_argument("etcdserver: request is too large"),
        WriteError::EmptyKey => empty_key(),
        WriteError::LeaseNotFound { .. } => lease_not_found(),
        WriteError::LeaseExists { .. } => Status::failed_precondition("etcdserver: lease already exists"),
        // Only single writes expect something, and there are none here.
        error @ WriteError::Conflict { .. } => Status::internal(error.to_string()),
        error @ WriteError::Unavailable { .. } => unavailable(&error),
    }
}

pub fn compact(error: CompactError) -> Status {
    match error {
        CompactError::Compacted { .. } => compacted(),
        CompactError::FutureRevision { .. } => future_revision(),
        CompactError::Backend(error) => unavailable(&error),
    }
}
