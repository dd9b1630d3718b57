//! Which plugins a server runs, and in which order.
//!
//! Follows: `pkg/kubeapiserver/options/plugins.go`.

use std::sync::Arc;

use super::{
    AdmissionChain, AdmissionPlugin, certificates, classes, defaults, lifecycle, limit_ranger, optional, pod_security,
    pods, policy, priority, quota, service_account, webhook,
};
use crate::authz::Authorizer;

/// Why a list of plugins is refused.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("admission-control plugin {0:?} is unknown")]
    Unknown(String),
    #[error("{0:?} in enable-admission-plugins and disable-admission-plugins")]
    Both(String),
    #[error("admission plugin {0:?} is not supported yet")]
    NotSupported(String),
}

/// Names that upstream knows and this server does not have.
const NOT_SUPPORTED: [&str; 12] = [
    "AlwaysAdmit",
    "AlwaysDeny",
    "ClusterTrustBundleAttest",
    "EventRateLimit",
    "ExtendedResourceToleration",
    "ImagePolicyWebhook",
    "JobValidation",
    "LimitPodHardAntiAffinityTopology",
    "NamespaceAutoProvision",
    "NodeDeclaredFeatureValidator",
    "PodNodeSelector",
    "PodTolerationRestriction",
];

/// All plugins in their order. The flag says whether the plugin runs by default.
fn all(authorizer: &Arc<dyn Authorizer>) -> Vec<(Arc<dyn AdmissionPlugin>, bool)> {
    vec![
        (Arc::new(lifecycle::NamespaceLifecycle), true),
        (Arc::new(optional::NamespaceExists), false),
        (Arc::new(limit_ranger::LimitRanger), true),
        (Arc::new(service_account::ServiceAccount), true),
        (Arc::new(optional::NodeRestriction), false),
        (Arc::new(defaults::TaintNodesByCondition), true),
        (Arc::new(optional::AlwaysPullImages), false),
        (Arc::new(pod_security::PodSecurity), true),
        (Arc::new(priority::Priority), true),
        (Arc::new(defaults::DefaultTolerationSeconds), true),
        (Arc::new(classes::DefaultStorageClass), true),
        (Arc::new(defaults::StorageObjectInUseProtection), true),
        (Arc::new(optional::OwnerReferencesPermissionEnforcement(authorizer.clone())), false),
        (Arc::new(classes::PersistentVolumeClaimResize), true),
        (Arc::new(pods::RuntimeClass), true),
        (Arc::new(certificates::CertificateApproval(authorizer.clone())), true),
        (Arc::new(certificates::CertificateSigning(authorizer.clone())), true),
        (Arc::new(certificates::CertificateSubjectRestriction), true),
        (Arc::new(classes::DefaultIngressClass), true),
        (Arc::new(optional::DenyServiceExternalIps), false),
        (Arc::new(defaults::PodTopologyLabels), true),
        (Arc::new(pods::PodResizeValidator), true),
        (Arc::new(policy::mutating::MutatingAdmissionPolicy::new(authorizer.clone())), true),
        (Arc::new(webhook::MutatingAdmissionWebhook::new(authorizer.clone())), true),
        (Arc::new(policy::ValidatingAdmissionPolicy::new(authorizer.clone())), true),
        (Arc::new(webhook::ValidatingAdmissionWebhook::new(authorizer.clone())), true),
        (Arc::new(quota::ResourceQuota), true),
    ]
}

/// The default plugins, with those of `--enable-admission-plugins` and without those of `--disable-admission-plugins`.
pub fn chain(
    authorizer: &Arc<dyn Authorizer>,
    enable: &[String],
    disable: &[String],
) -> Result<AdmissionChain, PluginError> {
    let all = all(authorizer);
    for name in enable.iter().chain(disable) {
        if all.iter().any(|(plugin, _)| plugin.name() == name) {
            continue;
        }
        if !NOT_SUPPORTED.contains(&name.as_str()) {
            return Err(PluginError::Unknown(name.clone()));
        }
        // To disable what is not there is fine.
        if enable.contains(name) {
            return Err(PluginError::NotSupported(name.clone()));
        }
    }
    if let Some(name) = enable.iter().find(|n| disable.contains(n)) {
        return Err(PluginError::Both(name.clone()));
    }
    let on = |plugin: &Arc<dyn AdmissionPlugin>, default: bool| {
        let named = |list: &[String]| list.iter().any(|n| n == plugin.name());
        (default || named(enable)) && !named(disable)
    };
    Ok(AdmissionChain(all.into_iter().filter(|(plugin, default)| on(plugin, *default)).map(|(p, _)| p).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::AlwaysAllow;

    #[test]
    fn plugins_are_enabled_and_disabled_by_name() {
        let authorizer: Arc<dyn Authorizer> = Arc::new(AlwaysAllow);
        let names = |enable: &[&str], disable: &[&str]| {
            let owned = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            chain(&authorizer, &owned(enable), &owned(disable))
                .map(|c| c.0.iter().map(|p| p.name()).collect::<Vec<_>>())
                .map_err(|e| e.to_string())
        };
        let default = names(&[], &[]).unwrap();
        assert_eq!(default[0], "NamespaceLifecycle");
        let without = names(&[], &["Priority"]).unwrap();
        assert_eq!(without.len() + 1, default.len());
        assert_eq!(names(&["Priority"], &[]).unwrap(), default);
        assert_eq!(names(&["X"], &[]).unwrap_err(), "admission-control plugin \"X\" is unknown");
        assert!(names(&["Priority"], &["Priority"]).is_err());
        assert!(names(&["EventRateLimit"], &[]).unwrap_err().contains("not supported yet"));
    }
}
