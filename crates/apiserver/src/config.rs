//! What an API server is started with.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::AdmissionChain;
use crate::aggregator;
use crate::authn::{Authenticator, ClientCertificates};
use crate::authz::{AlwaysAllow, Authorizer};
use crate::extension::Extension;
use crate::groups::ApiGroup;
use crate::health::HealthCheck;
use crate::hooks::WriteHooks;
use crate::kubelets::Kubelets;
use crate::metrics::MetricsSource;
use crate::pods::PodBackend;
use crate::services::ServiceAddressing;
use crate::tokens::{TokenAuthenticator, TokenAuthority};
use crate::upstream::Upstream;

/// The configuration of one server. The default allows everything to everybody who shows a client certificate, and
/// anonymous requests.
#[derive(Clone)]
pub struct Config {
    /// Asked in order; the first that recognises a credential decides.
    pub authenticators: Vec<Arc<dyn Authenticator>>,
    /// Asked about bearer tokens, in order, after `authenticators`.
    pub token_authenticators: Vec<Arc<dyn TokenAuthenticator>>,
    /// `--api-audiences`: what bearer tokens must be for.
    pub api_audiences: Vec<String>,
    /// Issues service account tokens. Without one `serviceaccounts/token` is refused.
    pub tokens: Option<Arc<TokenAuthority>>,
    /// Requests without a credential are `system:anonymous` instead of 401.
    pub anonymous: bool,
    /// Only these paths, when there are any.
    pub anonymous_paths: Vec<String>,
    pub authorizer: Arc<dyn Authorizer>,
    /// Brings the default roles and bindings into the store at start.
    pub bootstrap_rbac: bool,
    pub admission: AdmissionChain,
    pub hooks: WriteHooks,
    /// Chooses the addresses of Services in place of the server (a virtual cluster adopts those of its host).
    pub service_addressing: Option<Arc<dyn ServiceAddressing>>,
    /// Answers what only the node of a pod knows (logs, exec, ...).
    pub pods: Option<Arc<dyn PodBackend>>,
    /// Another server on the same store that answers for the API (`distro: k8s`).
    pub upstream: Option<Arc<Upstream>>,
    /// Answers paths of its own beside the API.
    pub extension: Option<Arc<dyn Extension>>,
    /// Answers for the kubelets of nodes: `nodes/proxy`, and requests to the host names of nodes.
    pub kubelets: Option<Arc<dyn Kubelets>>,
    /// How APIServices with a service are reached, and what their servers are told.
    pub aggregation: aggregator::Options,
    /// API groups beside the built-in and custom ones.
    pub groups: Vec<Arc<dyn ApiGroup>>,
    /// Checks of the health paths, beside the server's own.
    pub health_checks: Vec<Arc<dyn HealthCheck>>,
    /// What `/metrics` tells beside the server's own metrics.
    pub metrics: Vec<Arc<dyn MetricsSource>>,
    /// `--service-cluster-ip-range`.
    pub service_cluster_ip_range: String,
    /// `--service-node-port-range`, inclusive.
    pub node_port_range: (u16, u16),
    /// `--service-account-issuer`.
    pub service_account_issuer: String,
    /// `--event-ttl`: how long Events are kept after they were last written; zero keeps them for ever.
    pub event_ttl: Duration,
    /// `--strict-transport-security-directives`, joined: the header of all answers.
    pub strict_transport_security: Option<http::HeaderValue>,
    /// `--allow-privileged`.
    pub allow_privileged: bool,
    /// The address and port in the endpoints of the `kubernetes` Service.
    pub advertise_address: IpAddr,
    pub secure_port: u16,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            authenticators: vec![Arc::new(ClientCertificates)],
            token_authenticators: Vec::new(),
            api_audiences: vec!["https://kubernetes.default.svc.cluster.local".to_owned()],
            tokens: None,
            anonymous: true,
            anonymous_paths: Vec::new(),
            authorizer: Arc::new(AlwaysAllow),
            bootstrap_rbac: false,
            admission: AdmissionChain::default(),
            hooks: WriteHooks::default(),
            service_addressing: None,
            pods: None,
            upstream: None,
            extension: None,
            kubelets: None,
            aggregation: aggregator::Options::default(),
            groups: Vec::new(),
            health_checks: Vec::new(),
            metrics: Vec::new(),
            service_cluster_ip_range: "10.96.0.0/16".to_owned(),
            node_port_range: (30000, 32767),
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            event_ttl: Duration::from_secs(3600),
            strict_transport_security: None,
            allow_privileged: true,
            advertise_address: IpAddr::from([127, 0, 0, 1]),
            secure_port: 6443,
        }
    }
}
