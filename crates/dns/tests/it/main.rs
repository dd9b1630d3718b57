//! The DNS server against an API server in memory, asked by a stub resolver over its real port.

mod forwarding;
mod protocol;
mod specification;
mod support;
mod tenants;
