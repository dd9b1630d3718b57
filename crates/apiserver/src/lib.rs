//! The Kubernetes API over HTTP: discovery, verbs, watch, authentication, authorization, admission, subresources.
//!
//! An [`ApiServer`] is a value: thousands of them live in one process. It serves TLS connections
//! ([`ApiServer::serve`]) and callers in the same process ([`ApiServer::kube_client`]) through the same chain.
//!
//! The life of a request: [`request_info`] → authentication ([`authn`]) → authorization ([`authz`]) → [`handlers`] →
//! [`storage`] → [`output`]. Reads are answered from [`cache`], which one watch over the store keeps current.
//!
//! Does not know pods' nodes, containers or the host: what needs them is asked of [`pods::PodBackend`].

pub mod activity;
pub mod admission;
pub mod aggregator;
pub mod authentication;
pub mod authn;
pub mod authz;
pub mod body;
pub mod bootstrap;
pub mod cache;
pub mod config;
pub mod crd;
mod discovery;
mod expiry;
pub mod extension;
mod flow_control;
pub mod groups;
pub mod handlers;
pub mod health;
pub mod hooks;
pub mod impersonate;
pub mod in_process;
pub mod kubelets;
pub mod managed_fields;
pub mod metrics;
pub mod negotiate;
pub mod openapi;
pub mod options;
pub mod output;
pub mod pods;
mod protobuf;
pub mod proxy;
pub mod rbac;
pub mod registry;
pub mod request_info;
pub mod secure;
pub mod selection;
pub mod server;
pub mod services;
mod signing_requests;
pub mod storage;
pub mod strategy;
pub mod tls;
pub mod tokens;
pub mod upstream;
pub mod watch;
pub mod webhook;

pub use authn::{Authenticator, UserInfo};
pub use authz::Authorizer;
pub use config::Config;
pub use secure::{SecureOptions, secure_config};
pub use server::{ApiServer, StartError};
