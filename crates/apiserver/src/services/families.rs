//! IP families of a Service and the fields that must agree with them. Pure.

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::kinds;
use apimachinery::status::StatusResult;

use super::{invalid, is_external_name, strings};

const PREFER: &str = "PreferDualStack";

fn set(service: &mut Value, key: &str, list: &[String]) {
    service["spec"][key] = list.iter().map(String::as_str).collect::<Vec<_>>().into();
}

/// Both are PreferDualStack with the same addresses and families: nothing is added or removed on its own.
pub fn unchanged_prefer_dual_stack(new: &Value, old: &Value) -> bool {
    let same = |key: &str| strings(new, key) == strings(old, key);
    let policy = old.str_at(&["spec", "ipFamilyPolicy"]);
    new.str_at(&["spec", "type"]) == old.str_at(&["spec", "type"])
        && !is_external_name(new)
        && new.str_at(&["spec", "ipFamilyPolicy"]) == PREFER
        && (policy == PREFER || policy.is_empty())
        && same("clusterIPs")
        && same("ipFamilies")
}

/// Brings `clusterIP` and `clusterIPs` of an update together for clients that know only one of them.
pub fn normalise_ips(new: &mut Value, old: &Value) {
    let (first, before) = (new.str_at(&["spec", "clusterIP"]).to_owned(), old.str_at(&["spec", "clusterIP"]));
    let old_ips = strings(old, "clusterIPs");
    if !old_ips.is_empty() && strings(new, "clusterIPs").is_empty() && first == before {
        set(new, "clusterIPs", &old_ips);
    }
    if first == before || strings(new, "clusterIPs") != old_ips {
        return;
    }
    if first.is_empty() {
        new["spec"].remove_at(&["clusterIPs"]);
    } else {
        set(new, "clusterIPs", &[first]);
    }
}

/// Fills in policy and families from the cluster's families (`configured`, the default one first) and checks them.
pub fn initialise(configured: &[String], service: &mut Value, old: Option<&Value>) -> StatusResult<()> {
    if is_external_name(service) || old.is_some_and(|old| unchanged_prefer_dual_stack(service, old)) {
        return Ok(());
    }
    let headless = service.str_at(&["spec", "clusterIP"]) == "None";
    let selectorless = service.at(&["spec", "selector"]).and_then(Value::as_object).is_none_or(|s| s.is_empty());
    // An empty one is refused below.
    if service.at(&["spec", "ipFamilyPolicy"]).is_none_or(Value::is_null) {
        let inherited = old.map_or("", |o| o.str_at(&["spec", "ipFamilyPolicy"]));
        let policy = match inherited {
            "" if headless && selectorless => "RequireDualStack",
            "" => "SingleStack",
            inherited => inherited,
        };
        service["spec"]["ipFamilyPolicy"] = policy.into();
    }
    let errors = kinds::service_address_errors(service, old);
    if !errors.is_empty() {
        return Err(invalid(service, &errors));
    }
    let policy = service.str_at(&["spec", "ipFamilyPolicy"]).to_owned();
    let single = policy == "SingleStack";
    let path = FieldPath::new("spec");
    let policy_error = |text: &str| FieldError::invalid(&path.child("ipFamilyPolicy"), policy.as_str(), text);
    let mut errors = Vec::new();
    if let Some(old) = old {
        for (key, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
            let (before, after) = (strings(old, key), strings(service, key));
            if single && before == after && after.len() > 1 {
                set(service, key, &after[..1]);
            } else if !single && !after.is_empty() && after.len() < before.len() {
                errors.push(policy_error(&format!("must be 'SingleStack' to release the secondary {what}")));
            }
        }
    }
    let ips = strings(service, "clusterIPs");
    let mut families = strings(service, "ipFamilies");
    if single {
        for (list, what) in [(&ips, "cluster IPs"), (&families, "IP families")] {
            if list.len() == 2 {
                let text =
                    format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
                errors.push(policy_error(&text));
            }
        }
    }
    for (i, ip) in ips.iter().enumerate().take_while(|(_, ip)| *ip != "None") {
        let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
        if i < families.len() {
            continue;
        }
        if configured.iter().any(|f| f == family) {
            families.push(family.to_owned());
        } else {
            let shown = service["spec"]["clusterIPs"].clone();
            let text = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid(&path.child("clusterIPs").index(i), shown, text));
        }
    }
    if !errors.is_empty() {
        return Err(invalid(service, &errors));
    }
    let other = |family: &str| if family == "IPv4" { "IPv6".to_owned() } else { "IPv4".to_owned() };
    let default = configured.first().cloned().unwrap_or_else(|| "IPv4".to_owned());
    if headless && selectorless {
        if families.is_empty() {
            families.push(default);
        }
        if families.len() < 2 && !single {
            families.push(other(&families[0]));
        }
        set(service, "ipFamilies", &families);
        return Ok(());
    }
    if policy == "RequireDualStack" && configured.len() < 2 {
        errors.push(policy_error("this cluster is not configured for dual-stack services"));
    }
    for (i, family) in families.iter().enumerate().filter(|(_, f)| !configured.contains(f)) {
        let path = path.child("ipFamilies").index(i);
        errors.push(FieldError::invalid(&path, family.as_str(), "not configured on this cluster"));
    }
    if !errors.is_empty() {
        return Err(invalid(service, &errors));
    }
    if families.is_empty() {
        families.push(default);
    }
    if !single && families.len() == 1 && configured.len() == 2 {
        families.push(other(&families[0]));
    }
    set(service, "ipFamilies", &families);
    Ok(())
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn policy_and_families_are_filled_in() {
        let v4 = vec!["IPv4".to_owned()];
        let both = vec!["IPv4".to_owned(), "IPv6".to_owned()];
        for (configured, spec, policy, families) in [
            (&v4, json!({"type": "ClusterIP"}), "SingleStack", json!(["IPv4"])),
            (&both, json!({"type": "ClusterIP"}), "SingleStack", json!(["IPv4"])),
            (&v4, json!({"type": "ClusterIP", "ipFamilyPolicy": PREFER}), PREFER, json!(["IPv4"])),
            (&both, json!({"type": "ClusterIP", "ipFamilyPolicy": PREFER}), PREFER, json!(["IPv4", "IPv6"])),
            (
                &v4,
                json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}),
                "RequireDualStack",
                json!(["IPv4", "IPv6"]),
            ),
        ] {
            let mut service = json!({"metadata": {"name": "a"}, "spec": spec});
            initialise(configured, &mut service, None).unwrap();
            assert_eq!(service["spec"]["ipFamilies"], families);
            assert_eq!(service.str_at(&["spec", "ipFamilyPolicy"]), policy);
        }
        let mut service =
            json!({"metadata": {"name": "a"}, "spec": {"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack"}});
        let error = initialise(&v4, &mut service, None).unwrap_err();
        assert!(error.message.contains("this cluster is not configured for dual-stack services"), "{}", error.message);
    }
}
