//! etcd's v3 API: messages, and a client.
//!
//! Knows etcd's wire format. Does not know the store, objects, or how to serve the API (that is the crate `etcdface`).
//!
//! The messages are written by hand, so that no build needs `protoc`; numbers and names are those of `rpc.proto` and
//! `kv.proto` of etcd 3.6, which older versions are a subset of.

pub mod client;
pub mod proto;

pub use client::{Client, ConnectError, Tls};
pub use tonic::{Code, Status, Streaming};
