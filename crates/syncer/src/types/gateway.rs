//! Gateway API: Gateways, routes, TLS policies and reference grants of tenants.
//!
//! References are checked in the virtual cluster before they are translated: in the one host namespace all namespaces of the
//! tenant are the same, so the host's own checks would let everything pass. A reference that is not permitted any more takes
//! the host object away.
//!
//! Invariants:
//! - A host route attaches only to this tenant's Gateways and to those that the configuration shows to it.
//! - A host Gateway takes routes of this tenant only, whatever its listeners say.
//! - A route that no listener takes, or whose Gateway is gone, has no host object.
//!
//! Follows: vCluster `resources/{gateways,httproutes,tlsroutes,backendtlspolicies,referencegrants}`; GEP-709, GEP-724.

use apimachinery::{Value, json};

use crate::diff::present;
use crate::kind::{self, GATEWAY_GROUP, Kind, Naming};
use crate::metadata::{self, LastSynced, MetadataRules, hash_value, name_of, uid_of};
use crate::names::NamespacedName;
use crate::plan::{Action, LastSeen};
use crate::selectors;
use crate::settings::{GatewayImport, RouteOverride, RoutePolicy};
use crate::types::{Context, Desired, Reference, Refusal, ToHost, object};

/// Label of virtual Gateways that stand for one of the host's.
pub const IMPORTED_GATEWAY_LABEL: &str = "vcluster.loft.sh/imported-gateway";
/// Says that certificate references were taken out of a listener: a listener that ends TLS must have them, or an option.
pub const SANITIZED_OPTION: &str = "vcluster.loft.sh/certificate-refs-sanitized";
/// Where an imported Gateway is on the host, when the configuration allows to say so.
pub const SOURCE_ANNOTATION: &str = "vcluster.loft.sh/source-gateway";
/// On a host route: the name of a rule that a controller of the host put there.
pub const KEEP_RULE_ANNOTATION: &str = "vcluster.loft.sh/preserve-host-rule";
/// On a host route: mirrors that a controller of the host put into its rules stay.
pub const KEEP_MIRRORS_ANNOTATION: &str = "vcluster.loft.sh/preserve-request-mirror-filters";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayType {
    Gateway,
    HttpRoute,
    TlsRoute,
    GrpcRoute,
    TcpRoute,
    UdpRoute,
    BackendTlsPolicy,
    ReferenceGrant,
}

impl GatewayType {
    /// All kinds that go to the host.
    pub const ALL: [GatewayType; 8] = [
        GatewayType::Gateway,
        GatewayType::HttpRoute,
        GatewayType::TlsRoute,
        GatewayType::GrpcRoute,
        GatewayType::TcpRoute,
        GatewayType::UdpRoute,
        GatewayType::BackendTlsPolicy,
        GatewayType::ReferenceGrant,
    ];

    /// Kind and resource name.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            GatewayType::Gateway => ("Gateway", "gateways"),
            GatewayType::HttpRoute => ("HTTPRoute", "httproutes"),
            GatewayType::TlsRoute => ("TLSRoute", "tlsroutes"),
            GatewayType::GrpcRoute => ("GRPCRoute", "grpcroutes"),
            GatewayType::TcpRoute => ("TCPRoute", "tcproutes"),
            GatewayType::UdpRoute => ("UDPRoute", "udproutes"),
            GatewayType::BackendTlsPolicy => ("BackendTLSPolicy", "backendtlspolicies"),
            GatewayType::ReferenceGrant => ("ReferenceGrant", "referencegrants"),
        }
    }

    /// The resource name.
    pub fn plural(self) -> &'static str {
        self.names().1
    }

    /// The versions that a host may serve, best first.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            GatewayType::Gateway | GatewayType::HttpRoute | GatewayType::GrpcRoute => &["v1"],
            GatewayType::TlsRoute => &["v1", "v1alpha3", "v1alpha2"],
            GatewayType::TcpRoute | GatewayType::UdpRoute => &["v1", "v1alpha2"],
            GatewayType::BackendTlsPolicy => &["v1", "v1alpha3"],
            GatewayType::ReferenceGrant => &["v1", "v1beta1"],
        }
    }

    /// The kind in its best version.
    pub fn kind(self) -> Kind {
        let (kind, plural) = self.names();
        Kind {
            group: GATEWAY_GROUP.into(),
            version: self.versions()[0].into(),
            kind: kind.into(),
            plural: plural.into(),
            namespaced: true,
            naming: Naming::Namespaced,
        }
    }
}

/// One of the kinds, in the version that the host serves.
pub struct GatewayKind {
    pub what: GatewayType,
    pub kind: Kind,
}

fn not_permitted(message: String) -> Refusal {
    Refusal::Never { reason: "RefNotPermitted", message }
}

fn unsupported(message: String) -> Refusal {
    Refusal::Never { reason: "UnsupportedReference", message }
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

/// A reference's group: absent and empty are different things.
fn group_of<'a>(reference: &'a Value, default: &'a str) -> &'a str {
    reference.get("group").and_then(Value::as_str).unwrap_or(default)
}

impl GatewayKind {
    /// Whether a grant of the tenant lets `from_namespace` refer to the object.
    fn granted(&self, ctx: &Context<'_>, from: &str, kind: &str, to: &NamespacedName) -> bool {
        ctx.facts.grants.iter().any(|grant| {
            grant.str_at(&["metadata", "namespace"]) == to.namespace
                && grant.array_at(&["spec", "from"]).iter().any(|f| {
                    f.str_at(&["group"]) == GATEWAY_GROUP
                        && f.str_at(&["kind"]) == self.kind.kind
                        && f.str_at(&["namespace"]) == from
                })
                && grant.array_at(&["spec", "to"]).iter().any(|t| {
                    t.str_at(&["group"]).is_empty()
                        && t.str_at(&["kind"]) == kind
                        && matches!(t.str_at(&["name"]), name if name.is_empty() || name == to.name)
                })
        })
    }

    /// Translates a reference to a Service, Secret or ConfigMap.
    fn reference(
        &self,
        at: &str,
        reference: &mut Value,
        default: &str,
        ctx: &Context<'_>,
        own: &str,
    ) -> Result<(), Refusal> {
        let kind = or(reference.str_at(&["kind"]), default).to_owned();
        let group = group_of(reference, "").to_owned();
        if !group.is_empty() || !matches!(kind.as_str(), "Service" | "Secret" | "ConfigMap") {
            return Err(unsupported(format!("{at}: references to {kind} {group:?} are not supported")));
        }
        let to = NamespacedName::new(or(reference.str_at(&["namespace"]), own), reference.str_at(&["name"]));
        if to.namespace != own && !self.granted(ctx, own, &kind, &to) {
            let message = format!("{at}: {kind} {to} may not be referred to from namespace {own:?}: no ReferenceGrant");
            return Err(not_permitted(message));
        }
        let host = match kind.as_str() {
            "Service" => kind::SERVICE.host_name(ctx.names, &to),
            "ConfigMap" => kind::CONFIG_MAP.host_name(ctx.names, &to),
            _ => kind::SECRET.host_name(ctx.names, &to),
        };
        put_reference(reference, &host, ctx, own);
        Ok(())
    }

    fn filters(&self, at: &str, filters: Option<&mut Value>, ctx: &Context<'_>, own: &str) -> Result<(), Refusal> {
        for (n, filter) in filters.and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            let at = format!("{at}.filters[{n}]");
            if let Some(backend) = filter.at_mut(&["requestMirror", "backendRef"]) {
                self.reference(&format!("{at}.requestMirror.backendRef"), backend, "Service", ctx, own)?;
            }
            if let Some(backend) = filter.at_mut(&["externalAuth", "backendRef"]) {
                self.reference(&format!("{at}.externalAuth.backendRef"), backend, "Service", ctx, own)?;
            }
            if filter.get("extensionRef").is_some_and(|v| !v.is_null()) {
                return Err(unsupported(format!("{at}.extensionRef: not supported")));
            }
        }
        Ok(())
    }

    fn route(&self, route: &Value, ctx: &Context<'_>) -> Result<Value, Refusal> {
        let own = route.str_at(&["metadata", "namespace"]);
        let mut spec = route["spec"].clone();
        let hostnames: Vec<&str> = route.array_at(&["spec", "hostnames"]).iter().filter_map(Value::as_str).collect();
        for (n, parent) in spec.get_mut("parentRefs").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            self.parent(&format!("parentRefs[{n}]"), parent, &hostnames, ctx, own)?;
        }
        for (n, rule) in spec.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            let at = format!("rules[{n}]");
            for (b, backend) in
                rule.get_mut("backendRefs").and_then(Value::as_array_mut).into_iter().flatten().enumerate()
            {
                let at = format!("{at}.backendRefs[{b}]");
                self.reference(&at, backend, "Service", ctx, own)?;
                self.filters(&at, backend.get_mut("filters"), ctx, own)?;
            }
            self.filters(&at, rule.get_mut("filters"), ctx, own)?;
        }
        Ok(spec)
    }

    fn parent(
        &self,
        at: &str,
        parent: &mut Value,
        hostnames: &[&str],
        ctx: &Context<'_>,
        own: &str,
    ) -> Result<(), Refusal> {
        let kind = or(parent.str_at(&["kind"]), "Gateway").to_owned();
        let group = group_of(parent, GATEWAY_GROUP).to_owned();
        if kind == "Service" && group.is_empty() {
            return self.reference(at, parent, "Service", ctx, own);
        }
        if kind != "Gateway" || group != GATEWAY_GROUP {
            return Err(unsupported(format!("{at}: {kind} {group:?} cannot be a parent here")));
        }
        let to = NamespacedName::new(or(parent.str_at(&["namespace"]), own), parent.str_at(&["name"]));
        let (gateway, host_name) = match imported(&to, ctx) {
            Some((import, host)) => {
                check_hostnames(at, import, &host, &to, hostnames)?;
                let mut gateway = shown(&host, import);
                gateway["metadata"]["namespace"] = to.namespace.as_str().into();
                (gateway, name_of(&host))
            }
            None if !ctx.settings.gateway_api.gateways => {
                return Err(not_permitted(format!("{at}: Gateway {to} is not one that the host shows here")));
            }
            None => {
                let Some(gateway) = ctx.facts.gateways.iter().find(|g| name_of(g) == to) else {
                    return Err(not_permitted(format!("{at}: Gateway {to} does not exist")));
                };
                (gateway.clone(), GatewayType::Gateway.kind().host_name(ctx.names, &to))
            }
        };
        if !self.listeners_allow(&gateway, parent, own, ctx) {
            let kind = &self.kind.kind;
            let message = format!("{at}: no listener of Gateway {to} takes a {kind} of namespace {own:?}");
            return Err(not_permitted(message));
        }
        put_reference(parent, &host_name, ctx, own);
        Ok(())
    }

    /// Whether a listener of a virtual Gateway takes this kind of route from a namespace.
    fn listeners_allow(&self, gateway: &Value, parent: &Value, namespace: &str, ctx: &Context<'_>) -> bool {
        let own = gateway.str_at(&["metadata", "namespace"]);
        let section = parent.str_at(&["sectionName"]);
        let port = parent.get("port").and_then(Value::as_i64);
        gateway.array_at(&["spec", "listeners"]).iter().any(|listener| {
            let allowed = &listener["allowedRoutes"]["namespaces"];
            let fits = match allowed.str_at(&["from"]) {
                "All" => true,
                "None" => false,
                "Selector" => {
                    let labels = ctx.facts.namespaces.iter().find(|(n, _)| n == namespace).map(|(_, labels)| labels);
                    present(allowed, &["selector"]).is_some_and(|s| selectors::matches(s, labels))
                }
                _ => own == namespace,
            };
            fits && (section.is_empty() || listener.str_at(&["name"]) == section)
                && port.is_none_or(|port| listener["port"].as_i64() == Some(port))
                && self.listener_takes(listener)
        })
    }

    /// Whether a listener takes routes of this kind: those it names, else those that its protocol is for.
    fn listener_takes(&self, listener: &Value) -> bool {
        let kinds = listener.array_at(&["allowedRoutes", "kinds"]);
        if !kinds.is_empty() {
            return kinds
                .iter()
                .any(|k| group_of(k, GATEWAY_GROUP) == GATEWAY_GROUP && k.str_at(&["kind"]) == self.kind.kind);
        }
        let protocols: &[&str] = match self.what {
            GatewayType::HttpRoute | GatewayType::GrpcRoute => &["HTTP", "HTTPS"],
            GatewayType::TlsRoute => &["TLS"],
            // A listener may end TLS and pass the stream on.
            GatewayType::TcpRoute => &["TCP", "TLS"],
            GatewayType::UdpRoute => &["UDP"],
            GatewayType::Gateway | GatewayType::BackendTlsPolicy | GatewayType::ReferenceGrant => &[],
        };
        protocols.contains(&listener.str_at(&["protocol"]))
    }

    fn gateway(&self, gateway: &Value, ctx: &Context<'_>) -> Result<Value, Refusal> {
        let own = gateway.str_at(&["metadata", "namespace"]);
        if is_reserved(&name_of(gateway), ctx) {
            let message = format!("Gateway {} is reserved for one that the host shows here", name_of(gateway));
            return Err(Refusal::warning(message));
        }
        let class = gateway.str_at(&["spec", "gatewayClassName"]);
        let is_class = |object: &Option<Value>| object.as_ref().is_some_and(|o| name_of(o).name == class);
        let visible = ctx.facts.classes.iter().any(|(kind, object)| *kind == "GatewayClass" && is_class(object));
        if !visible {
            let message = format!("GatewayClass {class:?} is not available in this virtual cluster");
            return Err(Refusal::warning(message));
        }
        let mut spec = gateway["spec"].clone();
        for (n, listener) in spec.get_mut("listeners").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            let at = format!("listeners[{n}].tls");
            let lists = [
                (["tls", "certificateRefs"].as_slice(), "certificateRefs", "Secret"),
                (
                    &["tls", "frontendValidation", "caCertificateRefs"],
                    "frontendValidation.caCertificateRefs",
                    "ConfigMap",
                ),
            ];
            for (path, name, kind) in lists {
                let list = listener.at_mut(path).and_then(Value::as_array_mut);
                for (c, reference) in list.into_iter().flatten().enumerate() {
                    self.reference(&format!("{at}.{name}[{c}]"), reference, kind, ctx, own)?;
                }
            }
            // Which namespaces may attach was decided in the virtual cluster; on the host only this tenant's may.
            let mut allowed = listener.get("allowedRoutes").cloned().unwrap_or_default();
            allowed["namespaces"] = if ctx.names.syncs_namespaces() {
                json!({"from": "Selector", "selector": {"matchLabels": {
                    (metadata::MANAGED_BY_LABEL): (ctx.names.cluster_marker())}}})
            } else {
                json!({"from": "Same"})
            };
            listener["allowedRoutes"] = allowed;
        }
        if let Some(parameters) = spec.at_mut(&["infrastructure", "parametersRef"]) {
            self.reference("infrastructure.parametersRef", parameters, "", ctx, own)?;
        }
        if spec.get("allowedListeners").is_some_and(|v| !v.is_null()) {
            spec["allowedListeners"] = json!({"namespaces": {"from": "None"}});
        }
        Ok(spec)
    }

    fn policy(&self, policy: &Value, ctx: &Context<'_>, creating: bool) -> Result<Value, Refusal> {
        let own = policy.str_at(&["metadata", "namespace"]);
        for (n, target) in policy.array_at(&["spec", "targetRefs"]).iter().enumerate() {
            let name = target.str_at(&["name"]);
            let exists = ctx.facts.services.iter().any(|s| s.str_at(&["metadata", "name"]) == name);
            if creating && !exists {
                return Err(Refusal::error(format!("targetRefs[{n}]: Service {name:?} does not exist")));
            }
        }
        let mut spec = policy["spec"].clone();
        for (path, default) in
            [(["targetRefs"].as_slice(), "Service"), (&["validation", "caCertificateRefs"], "ConfigMap")]
        {
            let list = spec.at_mut(path).and_then(Value::as_array_mut);
            for (n, reference) in list.into_iter().flatten().enumerate() {
                self.reference(&format!("{}[{n}]", path.join(".")), reference, default, ctx, own)?;
            }
        }
        Ok(spec)
    }

    fn grant(&self, grant: &Value, ctx: &Context<'_>) -> Result<Value, Refusal> {
        let mut spec = grant["spec"].clone();
        for from in spec.get_mut("from").and_then(Value::as_array_mut).into_iter().flatten() {
            let namespace = ctx.names.host_namespace(from.str_at(&["namespace"]));
            from["namespace"] = namespace.into();
        }
        let own = grant.str_at(&["metadata", "namespace"]);
        for to in spec.get_mut("to").and_then(Value::as_array_mut).into_iter().flatten() {
            let name = to.str_at(&["name"]).to_owned();
            if !name.is_empty() {
                to["name"] = ctx.names.host_name(&name, own).into();
            }
        }
        Ok(spec)
    }

    fn spec(&self, virtual_: &Value, ctx: &Context<'_>, creating: bool) -> Result<Value, Refusal> {
        match self.what {
            GatewayType::Gateway => self.gateway(virtual_, ctx),
            GatewayType::HttpRoute
            | GatewayType::TlsRoute
            | GatewayType::GrpcRoute
            | GatewayType::TcpRoute
            | GatewayType::UdpRoute => self.route(virtual_, ctx),
            GatewayType::BackendTlsPolicy => self.policy(virtual_, ctx, creating),
            GatewayType::ReferenceGrant => self.grant(virtual_, ctx),
        }
    }

    /// The host's status with the references the tenant wrote.
    fn status(&self, virtual_: &Value, host: &Value, ctx: &Context<'_>) -> Option<Value> {
        let mut status = host.get("status").filter(|s| !s.is_null())?.clone();
        let own = virtual_.str_at(&["metadata", "namespace"]);
        let parents = status.get_mut("parents").and_then(Value::as_array_mut);
        for parent in parents.into_iter().flatten() {
            let at = host.array_at(&["spec", "parentRefs"]).iter().position(|p| same_parent(p, &parent["parentRef"]));
            if let Some(written) = at.and_then(|n| virtual_.array_at(&["spec", "parentRefs"]).get(n)) {
                parent["parentRef"] = written.clone();
            }
        }
        for ancestor in status.get_mut("ancestors").and_then(Value::as_array_mut).into_iter().flatten() {
            let reference = &mut ancestor["ancestorRef"];
            let host_name = NamespacedName::new(
                or(reference.str_at(&["namespace"]), host.str_at(&["metadata", "namespace"])),
                reference.str_at(&["name"]),
            );
            let mut known = ctx.facts.gateways.iter().map(name_of);
            if let Some(name) = known.find(|n| GatewayType::Gateway.kind().is_host_name(ctx.names, n, &host_name)) {
                reference["name"] = name.name.into();
                if name.namespace == own {
                    reference.remove_at(&["namespace"]);
                } else {
                    reference["namespace"] = name.namespace.into();
                }
            }
        }
        let (from, to) = (name_of(host), name_of(virtual_));
        super::show_messages(&mut status, &|text| ctx.names.to_virtual_text(text, Some((&from, &to))));
        super::own_generations(&mut status, host, virtual_);
        Some(status)
    }
}

fn same_parent(a: &Value, b: &Value) -> bool {
    ["name", "namespace", "sectionName", "port"].iter().all(|m| a.get(m) == b.get(m) || a.get(m).is_none())
}

fn put_reference(reference: &mut Value, host: &NamespacedName, ctx: &Context<'_>, own: &str) {
    reference["name"] = host.name.as_str().into();
    if host.namespace == ctx.names.host_namespace(own) {
        reference.remove_at(&["namespace"]);
    } else {
        reference["namespace"] = host.namespace.as_str().into();
    }
}

/// The host Gateway that a virtual one stands for. Follows from the configuration, never from what the virtual one says.
fn imported<'a>(virtual_: &NamespacedName, ctx: &Context<'a>) -> Option<(&'a GatewayImport, Value)> {
    let import = ctx.settings.import_gateways.as_ref()?;
    let install = ctx.names.install_namespace();
    let host = ctx.facts.host_gateways.iter().find(|g| {
        let name = name_of(g);
        let target = super::classes::import_target(&import.mappings, &name.namespace, &name.name, install);
        target.is_some_and(|(namespace, name)| namespace == virtual_.namespace && name == virtual_.name)
            && selected(g, import)
    })?;
    Some((import, host.clone()))
}

/// Whether a name is one under which the configuration shows a Gateway of the host, be it there or not.
fn is_reserved(virtual_: &NamespacedName, ctx: &Context<'_>) -> bool {
    let mappings = ctx.settings.import_gateways.as_ref().map_or(&[][..], |import| import.mappings.as_slice());
    mappings.iter().any(|m| m.to == virtual_.to_string() || m.to.strip_suffix("/*") == Some(&virtual_.namespace))
}

/// Whether a host Gateway is shown: one that a mapping names, or one of a mapped namespace that the selector takes.
pub fn selected(host: &Value, import: &GatewayImport) -> bool {
    let name = name_of(host).to_string();
    import.mappings.iter().any(|m| m.from == name)
        || selectors::matches(&import.selector, host.at(&["metadata", "labels"]))
}

/// The exception that the configuration makes for a host Gateway.
fn exception<'a>(host: &Value, import: &'a GatewayImport) -> Option<&'a RouteOverride> {
    let name = name_of(host);
    import.overrides.iter().find(|o| o.gateway == name)
}

fn check_hostnames(
    at: &str,
    import: &GatewayImport,
    host: &Value,
    shown: &NamespacedName,
    hostnames: &[&str],
) -> Result<(), Refusal> {
    let patterns = exception(host, import).map_or(&[][..], |o| o.hostnames.as_slice());
    if patterns.is_empty() {
        return Ok(());
    }
    if hostnames.is_empty() {
        return Err(not_permitted(format!("{at}: routes of Gateway {shown} must name their hostnames")));
    }
    match hostnames.iter().find(|h| !patterns.iter().any(|p| hostname_fits(p, h))) {
        Some(hostname) => Err(not_permitted(format!("{at}: hostname {hostname:?} is not allowed at Gateway {shown}"))),
        None => Ok(()),
    }
}

/// `*.example.com` takes all names below `example.com`, wildcards among them.
fn hostname_fits(pattern: &str, hostname: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => hostname.strip_suffix(domain).is_some_and(|front| front.len() > 1 && front.ends_with('.')),
        None => pattern == hostname,
    }
}

/// What a controller of the host added to the rules of a host route, put into the rules that the tenant wants.
///
/// Only where annotations of the host object ask for it.
fn keep_host_rules(host: &Value, spec: &mut Value) {
    // Gateways and policies have none, and their schemas no such field.
    if host.at(&["spec", "rules"]).is_none() && spec.get("rules").is_none() {
        return;
    }
    let name_of_rule = |rule: &Value| rule.str_at(&["name"]).to_owned();
    let rule_name = metadata::annotation(host, KEEP_RULE_ANNOTATION);
    let host_rules = host.array_at(&["spec", "rules"]);
    let kept = host_rules.iter().find(|r| !rule_name.is_empty() && name_of_rule(r) == rule_name);
    let rules = spec.make_object().get_or_insert_with("rules", || Value::Array(Vec::new()));
    let Some(rules) = rules.as_array_mut() else { return };
    if let Some(kept) = kept
        && !rules.iter().any(|r| name_of_rule(r) == rule_name)
    {
        rules.insert(0, kept.clone());
    }
    if metadata::annotation(host, KEEP_MIRRORS_ANNOTATION) != "true" {
        return;
    }
    for (n, rule) in rules.iter_mut().enumerate() {
        let name = name_of_rule(rule);
        // A rule without a name is known by its place.
        let of_host = match name.is_empty() {
            true => host_rules.get(n).filter(|r| name_of_rule(r).is_empty()),
            false => host_rules.iter().find(|r| name_of_rule(r) == name),
        };
        let mirrors = of_host.map_or(&[][..], |r| r.array_at(&["filters"])).iter();
        for mirror in mirrors.filter(|f| f.str_at(&["type"]) == "RequestMirror") {
            let filters = rule.make_object().get_or_insert_with("filters", || Value::Array(Vec::new()));
            if let Some(filters) = filters.as_array_mut().filter(|list| !list.contains(mirror)) {
                filters.push(mirror.clone());
            }
        }
    }
}

impl ToHost for GatewayKind {
    fn kind(&self) -> &Kind {
        &self.kind
    }

    fn wanted(&self, virtual_: &Value, ctx: &Context<'_>) -> bool {
        match self.what {
            // Those of the host are shown, not made.
            GatewayType::Gateway => imported(&name_of(virtual_), ctx).is_none(),
            // In the one host namespace a grant would open the tenant to others.
            GatewayType::ReferenceGrant => {
                ctx.names.mapped_namespace(virtual_.str_at(&["metadata", "namespace"])).is_some()
            }
            _ => true,
        }
    }

    fn refers(&self) -> bool {
        true
    }

    fn references(&self, virtual_: &Value) -> Vec<Reference> {
        let own = virtual_.str_at(&["metadata", "namespace"]);
        let mut out = Vec::new();
        let mut add = |reference: &Value, default: &'static str| {
            let kind = match or(reference.str_at(&["kind"]), default) {
                "ConfigMap" => "ConfigMap",
                _ => "Secret",
            };
            out.push(Reference::new(kind, or(reference.str_at(&["namespace"]), own), reference.str_at(&["name"])));
        };
        for listener in virtual_.array_at(&["spec", "listeners"]) {
            listener.array_at(&["tls", "certificateRefs"]).iter().for_each(|r| add(r, "Secret"));
            let authorities = listener.array_at(&["tls", "frontendValidation", "caCertificateRefs"]);
            authorities.iter().for_each(|r| add(r, "ConfigMap"));
        }
        for reference in virtual_.array_at(&["spec", "validation", "caCertificateRefs"]) {
            add(reference, "ConfigMap");
        }
        out
    }

    fn translate(&self, virtual_: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        let mut host = object(&self.kind, ctx.metadata(virtual_, &self.kind, &[]));
        let spec = self.spec(virtual_, ctx, true)?;
        let mut synced = LastSynced::of(&host);
        synced.set("spec", &hash_value(uid_of(virtual_), &spec));
        synced.store(&mut host);
        host["spec"] = spec;
        Ok((host, Vec::new()))
    }

    fn reconcile(
        &self,
        virtual_: &Value,
        host: &Value,
        last: &LastSeen,
        ctx: &Context<'_>,
    ) -> Result<Desired, Refusal> {
        let mut spec = match self.spec(virtual_, ctx, false) {
            Ok(spec) => spec,
            Err(Refusal::Never { reason, message }) => {
                // What is on the host was permitted once and is not any more.
                let actions = vec![
                    Action::Warn { reason, message },
                    Action::delete_host(host, None, "a reference is not permitted any more"),
                ];
                return Ok(Desired {
                    virtual_: virtual_.clone(),
                    host: host.clone(),
                    actions,
                    seen: LastSeen::default(),
                });
            }
            Err(refusal) => return Err(refusal),
        };
        let (mut new_virtual, mut new_host) = (virtual_.clone(), host.clone());
        let mut synced = LastSynced::of(host);
        let hash = hash_value(uid_of(virtual_), &spec);
        // What the host's API server filled in is no difference: only a change of the tenant goes down.
        if !synced.agrees("spec", &hash) {
            keep_host_rules(host, &mut spec);
            new_host["spec"] = spec;
            synced.set("spec", &hash);
            synced.store(&mut new_host);
        }
        let host_only = metadata::sync_metadata(
            &mut new_virtual,
            &mut new_host,
            &self.kind,
            ctx.names,
            MetadataRules::default(),
            Some(&last.host_only),
        );
        if let Some(status) = self.status(virtual_, host, ctx) {
            new_virtual["status"] = status;
        }
        Ok(Desired {
            virtual_: new_virtual,
            host: new_host,
            actions: Vec::new(),
            seen: LastSeen { on_host: true, host_only },
        })
    }

    fn host_gone(&self, _virtual: &Value, _last: &LastSeen) -> Option<Vec<Action>> {
        None
    }
}

/// The virtual Gateway for one of the host's: what a route has to know, and nothing of the host's secrets.
pub fn shown(host: &Value, import: &GatewayImport) -> Value {
    let mut out = host.clone();
    out.set_at(&["metadata", "labels", IMPORTED_GATEWAY_LABEL], "true".into());
    out.set_at(&["metadata", "annotations", metadata::MANAGED_BY_LABEL], "vcluster".into());
    if import.expose_source {
        out.set_at(&["metadata", "annotations", SOURCE_ANNOTATION], name_of(host).to_string().into());
    } else {
        out.remove_at(&["metadata", "annotations", SOURCE_ANNOTATION]);
    }
    let policy = exception(host, import).and_then(|o| o.policy.as_ref()).unwrap_or(&import.policy);
    for listener in out.at_mut(&["spec", "listeners"]).and_then(Value::as_array_mut).into_iter().flatten() {
        if import.hide_certificates && listener.get("tls").is_some_and(|tls| !tls.is_null()) {
            for path in [["tls", "certificateRefs"], ["tls", "frontendValidation"]] {
                listener.remove_at(&path);
            }
            let ends_tls = matches!(listener.str_at(&["tls", "mode"]), "" | "Terminate");
            if ends_tls && listener["tls"].get("options").is_none_or(|o| o.as_object().is_none_or(|o| o.is_empty())) {
                listener["tls"]["options"] = json!({(SANITIZED_OPTION): "true"});
            }
        }
        let namespaces = match policy {
            RoutePolicy::OfGateway => continue,
            RoutePolicy::Same => json!({"from": "Same"}),
            RoutePolicy::All => json!({"from": "All"}),
            RoutePolicy::None => json!({"from": "None"}),
            RoutePolicy::Selector(selector) => json!({"from": "Selector", "selector": (selector.clone())}),
        };
        listener.set_at(&["allowedRoutes", "namespaces"], namespaces);
    }
    if import.hide_infrastructure {
        out.remove_at(&["spec", "infrastructure"]);
    }
    if !import.expose_addresses {
        out.remove_at(&["spec", "addresses"]);
        out.remove_at(&["status", "addresses"]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kinds_with_rules_get_some() {
        let host = |spec: Value| json!({"metadata": {}, "spec": spec});
        for (on_host, wanted, rules) in [
            (json!({"listeners": []}), json!({"listeners": []}), None),
            (json!({}), json!({"targetRefs": []}), None),
            (json!({"rules": [{"name": "a"}]}), json!({}), Some(json!([]))),
            (json!({}), json!({"rules": [{"name": "a"}]}), Some(json!([{"name": "a"}]))),
        ] {
            let mut spec = wanted.clone();
            keep_host_rules(&host(on_host), &mut spec);
            assert_eq!(spec.get("rules"), rules.as_ref(), "{wanted}");
        }
    }

    #[test]
    fn hostnames_fit_their_pattern() {
        for (pattern, hostname, want) in [
            ("a.example.com", "a.example.com", true),
            ("a.example.com", "b.example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "*.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "evilexample.com", false),
            ("*.example.com", ".example.com", false),
        ] {
            assert_eq!(hostname_fits(pattern, hostname), want, "{pattern} {hostname}");
        }
    }
}
