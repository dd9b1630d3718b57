//! Is an extension server there? The condition `Available` of its APIService.
//!
//! Follows: `k8s.io/kube-aggregator/pkg/controllers/status/{local,remote}`.

use std::time::Duration;

use apimachinery::{Value, json};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{HeaderMap, Method};
use http_body_util::Full;

use super::remote::{Answered, CallError, Remote, Spec};
use super::{API_SERVICES, resolver};
use crate::authn::{SYSTEM_MASTERS, UserInfo};
use crate::body::request_body;
use crate::handlers::write::now;
use crate::server::ApiServer;
use crate::storage::Storage;

/// How long one request of the check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// How many requests are tried; one answer is enough.
const ATTEMPTS: usize = 5;
/// How often a status is written again after somebody else has changed the object.
const CONFLICTS_MAX: usize = 5;

/// What the condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

impl Finding {
    fn new(status: &'static str, reason: &'static str, message: impl Into<String>) -> Finding {
        Finding { status, reason, message: message.into() }
    }

    pub fn local() -> Finding {
        Finding::new("True", "Local", "Local APIServices are always available")
    }

    fn passed() -> Finding {
        Finding::new("True", "Passed", "all checks passed")
    }

    pub fn is_passed(&self) -> bool {
        self.status == "True"
    }

    /// Is it worth asking the extension server again soon, although no object has changed?
    pub fn may_pass(&self) -> bool {
        self.reason == "FailedDiscoveryCheck"
    }
}

/// Looks at the objects; `None` when the extension server itself has to be asked.
fn of_objects(
    spec: &Spec,
    service: &Result<Option<Value>, String>,
    slices: &Result<Vec<Value>, String>,
) -> Option<Finding> {
    let resolver::ServicePort { namespace, name, port } = &spec.service;
    let service = match service {
        Ok(Some(service)) => service,
        Ok(None) => {
            let text = format!("service/{name} in {namespace:?} is not present");
            return Some(Finding::new("False", "ServiceNotFound", text));
        }
        Err(error) => {
            let text = format!("service/{name} in {namespace:?} cannot be checked due to: {error}");
            return Some(Finding::new("Unknown", "ServiceAccessError", text));
        }
    };
    if service.str_at(&["spec", "type"]) != "ClusterIP" {
        return None;
    }
    let ports = service.array_at(&["spec", "ports"]);
    let Some(spec_port) = ports.iter().find(|p| p["port"].as_i64() == Some(i64::from(*port))) else {
        let text = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(Finding::new("False", "ServicePortError", text));
    };
    let port_name = spec_port.str_at(&["name"]);
    let slices = match slices {
        Ok(slices) if slices.is_empty() => {
            let text = format!("cannot find endpointslices for service/{name} in {namespace:?}");
            return Some(Finding::new("False", "EndpointsNotFound", text));
        }
        Ok(slices) => slices,
        Err(error) => {
            let text = format!("service/{name} in {namespace:?} cannot be checked due to: {error}");
            return Some(Finding::new("Unknown", "EndpointsAccessError", text));
        }
    };
    let ready = |endpoint: &Value| endpoint.at(&["conditions", "ready"]).is_none_or(|ready| *ready != false);
    let active = slices.iter().any(|slice| {
        slice.array_at(&["endpoints"]).iter().any(ready)
            && slice.array_at(&["ports"]).iter().any(|p| p.str_at(&["name"]) == port_name && !p["port"].is_null())
    });
    if !active {
        let text = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        return Some(Finding::new("False", "MissingEndpoints", text));
    }
    None
}

/// Looks whether an extension server is there.
pub(crate) async fn check(storage: &Storage, remote: &Remote) -> Finding {
    let resolver::ServicePort { namespace, name, .. } = &remote.spec.service;
    let text = |status: Box<apimachinery::status::Status>| status.message;
    let service = storage.find("", "v1", "services", namespace, name).await.map_err(text);
    let slices = storage.all("discovery.k8s.io", "v1", "endpointslices", namespace).await.map_err(text);
    let slices = slices.map(|mut all| {
        all.retain(|slice| resolver::belongs_to(slice, name));
        all
    });
    if let Some(finding) = of_objects(&remote.spec, &service, &slices) {
        return finding;
    }
    // One after the other would take long when the first endpoints are dead; the first one usually is not.
    let Err(mut last) = ask(remote).await else { return Finding::passed() };
    let mut others: FuturesUnordered<_> = (1..ATTEMPTS).map(|_| ask(remote)).collect();
    while let Some(answer) = others.next().await {
        match answer {
            Ok(()) => return Finding::passed(),
            Err(error) => last = error,
        }
    }
    Finding::new("False", "FailedDiscoveryCheck", last)
}

/// Asks for what every extension server must answer.
async fn ask(remote: &Remote) -> Result<(), String> {
    let user = UserInfo::new("system:kube-aggregator", [SYSTEM_MASTERS]);
    let path = remote.spec.path();
    let url = |address: &str| format!("https://{address}{path}");
    let by_name = || url(&remote.spec.authority());
    let body = request_body(Full::new(Bytes::new()));
    let answer = remote.send(Method::GET, &path, HeaderMap::new(), body, &user);
    match tokio::time::timeout(CHECK_TIMEOUT, answer).await {
        Ok(Ok(response)) if response.status().is_success() => Ok(()),
        Ok(Ok(response)) => {
            let at = response.extensions().get::<Answered>().map_or_else(by_name, |at| url(&at.0));
            let code = response.status().as_u16();
            Err(format!("failing or missing response from {at}: bad status from {at}: {code}"))
        }
        Ok(Err(CallError::Unreachable { address, message })) => {
            let at = address.map_or_else(by_name, |address| url(&address));
            Err(format!("failing or missing response from {at}: Get {at:?}: {message}"))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => {
            let at = by_name();
            Err(format!("failing or missing response from {at}: Get {at:?}: context deadline exceeded"))
        }
    }
}

/// The object with the condition as found; `None` when it says so already.
pub(crate) fn with_condition(object: &Value, finding: &Finding) -> Option<Value> {
    let mut conditions = object.array_at(&["status", "conditions"]).to_vec();
    let mut new = json!({
        "type": "Available", "status": finding.status, "reason": finding.reason,
        "message": finding.message.as_str(), "lastTransitionTime": now(),
    });
    match conditions.iter_mut().find(|condition| condition["type"] == "Available") {
        Some(old) => {
            if old["status"] == finding.status {
                new["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            if *old == new {
                return None;
            }
            *old = new;
        }
        None => conditions.push(new),
    }
    let mut object = object.clone();
    object.set_at(&["status", "conditions"], Value::Array(conditions));
    Some(object)
}

/// Writes what was found, when that is news. `spec` is what was looked at: an object that says something else by now is
/// left to the next look.
pub(crate) async fn report(
    server: &ApiServer,
    name: &str,
    spec: Option<&Spec>,
    finding: &Finding,
) -> Result<(), String> {
    let storage = server.storage();
    let (group, version, plural) = API_SERVICES;
    let Some(resource) = storage.registry.get(group, version, plural) else { return Ok(()) };
    for _ in 0..CONFLICTS_MAX {
        let current = storage.get(&resource, "", name).await.map_err(|status| status.message)?;
        let Some(current) = current.map(|entry| entry.to_value()) else { return Ok(()) };
        if Spec::read(&current).as_ref() != spec {
            return Ok(());
        }
        let Some(update) = with_condition(&current, finding) else { return Ok(()) };
        let path = format!("/apis/{group}/{version}/{plural}/{name}/status");
        match crate::crd::send(server, Method::PUT, &path, Some(&update)).await? {
            409 => continue,
            code if code < 300 || code == 404 => return Ok(()),
            code => return Err(format!("the status was refused with code {code}")),
        }
    }
    Err("the object changes all the time".to_owned())
}

/// Is the condition of the stored object true?
pub(crate) fn is_available(object: &Value) -> bool {
    let conditions = object.array_at(&["status", "conditions"]);
    conditions.iter().any(|condition| condition["type"] == "Available" && condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api_service() -> Value {
        json!({"metadata": {"name": "v1.wardle.example.com"}, "spec": {
            "group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "service": {"namespace": "a", "name": "s", "port": 443}, "insecureSkipTLSVerify": true,
        }})
    }

    #[test]
    fn objects_tell_why_a_server_cannot_be_there() {
        let spec = Spec::read(&api_service()).unwrap();
        let service = |kind: &str, port: i64| {
            let ports = json!([{"name": "api", "port": port}]);
            Ok(Some(json!({"spec": {"type": kind, "ports": ports}})))
        };
        let slice =
            |name: &str, endpoints: Value| json!({"ports": [{"name": name, "port": 1}], "endpoints": endpoints});
        let ready = || json!([{"addresses": ["10.0.0.1"]}]);
        let not_ready = || json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]);
        let away = || Err("away".to_owned());
        for (service, slices, want) in [
            (Ok(None), Ok(vec![]), Some(("False", "ServiceNotFound", "service/s in \"a\" is not present"))),
            (
                away(),
                Ok(vec![]),
                Some(("Unknown", "ServiceAccessError", "service/s in \"a\" cannot be checked due to: away")),
            ),
            (
                service("ClusterIP", 80),
                Ok(vec![slice("api", ready())]),
                Some(("False", "ServicePortError", "service/s in \"a\" is not listening on port 443")),
            ),
            (
                service("ClusterIP", 443),
                Ok(vec![]),
                Some(("False", "EndpointsNotFound", "cannot find endpointslices for service/s in \"a\"")),
            ),
            (
                service("ClusterIP", 443),
                Err("away".to_owned()),
                Some(("Unknown", "EndpointsAccessError", "service/s in \"a\" cannot be checked due to: away")),
            ),
            (
                service("ClusterIP", 443),
                Ok(vec![slice("other", ready()), slice("api", not_ready())]),
                Some((
                    "False",
                    "MissingEndpoints",
                    "endpointslices for service/s in \"a\" have no addresses with port name \"api\"",
                )),
            ),
            (service("ClusterIP", 443), Ok(vec![slice("api", ready())]), None),
            (service("LoadBalancer", 80), Ok(vec![]), None),
        ] {
            let found = of_objects(&spec, &service, &slices);
            let got = found.as_ref().map(|f| (f.status, f.reason, f.message.as_str()));
            assert_eq!(got, want);
        }
    }

    #[test]
    fn other_conditions_and_the_time_of_the_last_change_stay() {
        let mut object = api_service();
        object.set_at(
            &["status", "conditions"],
            json!([
                {"type": "Other", "status": "True"},
                {"type": "Available", "status": "False", "reason": "ServiceNotFound", "message": "m",
                    "lastTransitionTime": "2020-01-01T00:00:00Z"},
            ]),
        );
        let again = Finding::new("False", "ServiceNotFound", "m");
        assert_eq!(with_condition(&object, &again), None, "nothing new");
        let other = with_condition(&object, &Finding::new("False", "MissingEndpoints", "n")).unwrap();
        let conditions = other.array_at(&["status", "conditions"]);
        assert_eq!((conditions.len(), conditions[0].str_at(&["type"])), (2, "Other"));
        assert_eq!(conditions[1].str_at(&["lastTransitionTime"]), "2020-01-01T00:00:00Z");
        let there = with_condition(&object, &Finding::passed()).unwrap();
        let there = &there.array_at(&["status", "conditions"])[1];
        assert_eq!((there.str_at(&["reason"]), there.str_at(&["message"])), ("Passed", "all checks passed"));
        assert_ne!(there.str_at(&["lastTransitionTime"]), "2020-01-01T00:00:00Z");
    }

    #[test]
    fn the_core_group_and_local_services_have_no_remote() {
        let mut local = api_service();
        local.remove_at(&["spec", "service"]);
        assert_eq!(Spec::read(&local), None);
        let mut core = api_service();
        core.set_at(&["spec", "group"], "".into());
        assert_eq!(Spec::read(&core), None);
    }
}
