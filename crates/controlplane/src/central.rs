//! `policies.centralAdmission`: webhooks of the host's administrator in front of the tenant's API. They are no objects of the
//! virtual cluster, so nobody in it sees, changes or deletes them.

use std::sync::Arc;

use apimachinery::{Value, json};
use apiserver::admission::AdmissionPlugin;
use apiserver::admission::webhook::{MutatingAdmissionWebhook, ValidatingAdmissionWebhook};
use apiserver::authz::Authorizer;
use config::CentralAdmission;

/// The configurations with Services of the host as the URLs under which the control plane reaches them.
fn configurations(list: &[serde_json::Value]) -> Vec<Value> {
    let mut out: Vec<Value> = list.iter().map(|c| Value::from(c.clone())).collect();
    for configuration in &mut out {
        let webhooks = configuration.get_mut("webhooks").and_then(Value::as_array_mut);
        for webhook in webhooks.into_iter().flatten() {
            let service = &webhook["clientConfig"]["service"];
            if service.is_null() {
                continue;
            }
            let (namespace, name) = (service.str_at(&["namespace"]), service.str_at(&["name"]));
            let port = service["port"].as_i64().unwrap_or(443);
            let path = service.str_at(&["path"]).trim_start_matches('/');
            let url = format!("https://{name}.{namespace}.svc:{port}/{path}");
            webhook["clientConfig"].remove_at(&["service"]);
            webhook["clientConfig"]["url"] = url.into();
        }
    }
    out
}

/// Puts the webhooks before those of the tenant.
pub(crate) fn add(
    plugins: &mut Vec<Arc<dyn AdmissionPlugin>>,
    config: &CentralAdmission,
    authorizer: &Arc<dyn Authorizer>,
    name: &str,
    namespace: &str,
) {
    let options = json!({"vCluster": {"name": name, "namespace": namespace}});
    let mut insert = |plugin: Arc<dyn AdmissionPlugin>| {
        let at = plugins.iter().position(|p| p.name() == plugin.name()).unwrap_or(plugins.len());
        plugins.insert(at, plugin);
    };
    if !config.mutating_webhooks.is_empty() {
        let list = configurations(&config.mutating_webhooks);
        insert(Arc::new(MutatingAdmissionWebhook::central(Arc::clone(authorizer), &list, &options)));
    }
    if !config.validating_webhooks.is_empty() {
        let list = configurations(&config.validating_webhooks);
        insert(Arc::new(ValidatingAdmissionWebhook::central(Arc::clone(authorizer), &list, &options)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_the_host_become_urls() {
        let list = [serde_json::json!({"webhooks": [
            {"name": "a", "clientConfig": {"service": {"name": "hook", "namespace": "ops", "path": "/check", "port": 8443}}},
            {"name": "b", "clientConfig": {"service": {"name": "hook", "namespace": "ops"}, "caBundle": "Q0E="}},
            {"name": "c", "clientConfig": {"url": "https://x.example/y"}}]})];
        let got = configurations(&list);
        let urls: Vec<&str> =
            got[0].array_at(&["webhooks"]).iter().map(|w| w.str_at(&["clientConfig", "url"])).collect();
        assert_eq!(urls, ["https://hook.ops.svc:8443/check", "https://hook.ops.svc:443/", "https://x.example/y"]);
        assert_eq!(got[0].array_at(&["webhooks"])[1].str_at(&["clientConfig", "caBundle"]), "Q0E=");
    }
}
