//! Endpoints and EndpointSlices of Services without a selector: the tenant says where they lead.
//!
//! With a selector both clusters compute their own. Slices that a controller mirrors from Endpoints are left to the host's
//! mirror of the host Endpoints.

use apimachinery::Value;

use crate::kind::{self, Kind};
use crate::metadata::{self, MetadataRules, label};
use crate::names::NamespacedName;
use crate::plan::{Action, LastSeen};
use crate::types::{Context, Desired, Refusal, ToHost, copy_members, object};

/// On an EndpointSlice: its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const SLICE_MANAGER_LABEL: &str = "endpointslice.kubernetes.io/managed-by";

/// Endpoints or EndpointSlices.
pub enum EndpointKinds {
    Endpoints,
    EndpointSlices,
}

/// The Service an Endpoints or EndpointSlice belongs to, in its own namespace.
pub fn service_of(object: &Value) -> &str {
    match label(object, SERVICE_NAME_LABEL) {
        "" if object.get("addressType").is_none() => object.str_at(&["metadata", "name"]),
        name => name,
    }
}

fn without_selector(service: &Value) -> bool {
    crate::diff::present(service, &["spec", "selector"]).is_none()
        && service.str_at(&["spec", "type"]) != "ExternalName"
}

fn translate_target(target: Option<&mut Value>, namespace: &str, ctx: &Context<'_>) {
    let Some(target) = target else { return };
    if target.is_null() {
        return;
    }
    // Only pods have a host object that is known; any other reference would name something of the host.
    if target.str_at(&["kind"]) != "Pod" || target.str_at(&["name"]).is_empty() {
        *target = Value::Null;
        return;
    }
    let of = match target.str_at(&["namespace"]) {
        "" => namespace.to_owned(),
        other => other.to_owned(),
    };
    let host = kind::POD.host_name(ctx.names, &NamespacedName::new(of, target.str_at(&["name"])));
    *target = apimachinery::json!({"kind": "Pod", "name": (host.name), "namespace": (host.namespace)});
}

impl EndpointKinds {
    fn spec(&self, virtual_: &Value, host: &mut Value, ctx: &Context<'_>) {
        let namespace = virtual_.str_at(&["metadata", "namespace"]);
        match self {
            EndpointKinds::Endpoints => {
                let mut subsets = virtual_.array_at(&["subsets"]).to_vec();
                for subset in &mut subsets {
                    for member in ["addresses", "notReadyAddresses"] {
                        for address in subset.get_mut(member).and_then(Value::as_array_mut).into_iter().flatten() {
                            translate_target(address.get_mut("targetRef"), namespace, ctx);
                            drop_null(address, "targetRef");
                        }
                    }
                }
                put_list(host, "subsets", subsets);
            }
            EndpointKinds::EndpointSlices => {
                let mut endpoints = virtual_.array_at(&["endpoints"]).to_vec();
                for endpoint in &mut endpoints {
                    translate_target(endpoint.get_mut("targetRef"), namespace, ctx);
                    drop_null(endpoint, "targetRef");
                }
                // Required even when it is empty.
                host["endpoints"] = Value::Array(endpoints);
                put_list(host, "ports", virtual_.array_at(&["ports"]).to_vec());
                let service = kind::SERVICE.name_on_host(ctx.names, service_of(virtual_), namespace);
                host.set_at(&["metadata", "labels", SERVICE_NAME_LABEL], service.into());
            }
        }
    }
}

fn drop_null(object: &mut Value, member: &str) {
    if object.get(member).is_some_and(Value::is_null) {
        object.remove_at(&[member]);
    }
}

fn put_list(object: &mut Value, member: &str, list: Vec<Value>) {
    if list.is_empty() {
        object.remove_at(&[member]);
    } else {
        object[member] = Value::Array(list);
    }
}

impl ToHost for EndpointKinds {
    fn kind(&self) -> &Kind {
        match self {
            EndpointKinds::Endpoints => &kind::ENDPOINTS,
            EndpointKinds::EndpointSlices => &kind::ENDPOINT_SLICE,
        }
    }

    fn wanted(&self, object: &Value, ctx: &Context<'_>) -> bool {
        let enabled = match self {
            EndpointKinds::Endpoints => ctx.settings.endpoints,
            EndpointKinds::EndpointSlices => ctx.settings.endpoint_slices,
        };
        let mirrored =
            ctx.settings.endpoints && label(object, SLICE_MANAGER_LABEL) == "endpointslicemirroring-controller.k8s.io";
        enabled
            && !mirrored
            && ctx.facts.service.as_ref().is_some_and(|s| without_selector(s) && !super::service::is_api_server(s))
    }

    fn host_gone(&self, _virtual: &Value, _last: &LastSeen) -> Option<Vec<Action>> {
        // The host's controllers delete Endpoints too, when a Service goes and comes back.
        None
    }

    fn translate(&self, virtual_: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        let mut host = object(self.kind(), ctx.metadata(virtual_, self.kind(), &[]));
        copy_members(virtual_, &mut host, &["addressType"]);
        self.spec(virtual_, &mut host, ctx);
        Ok((host, Vec::new()))
    }

    fn reconcile(
        &self,
        virtual_: &Value,
        host: &Value,
        last: &LastSeen,
        ctx: &Context<'_>,
    ) -> Result<Desired, Refusal> {
        let mut new_virtual = virtual_.clone();
        let mut new_host = host.clone();
        let rules = MetadataRules { excluded: &[], down_only: true };
        let host_only = metadata::sync_metadata(
            &mut new_virtual,
            &mut new_host,
            self.kind(),
            ctx.names,
            rules,
            Some(&last.host_only),
        );
        self.spec(virtual_, &mut new_host, ctx);
        Ok(Desired {
            virtual_: virtual_.clone(),
            host: new_host,
            actions: Vec::new(),
            seen: LastSeen { on_host: true, host_only },
        })
    }
}
