//! Dynamic resource allocation: claims, their templates, device classes and slices of devices.

use super::access::{Fields, semantic_equal};
use super::check::{self, Errors, Report, shown, strings};
use super::core::resources::{self, canonical, quantity};
use super::core::scheduling::node_selector;
use super::core::volume_sources::csi_driver_name as driver_name;
use super::expressions::{Expression, ExpressionCheck, ExpressionUse, expression};
use super::object_meta::{self, MetaRules};
use crate::field::{BadValue, FieldError, FieldPath};
use crate::json::Value;
use crate::names;

const META: MetaRules = MetaRules::namespaced(names::name_is_dns_subdomain);
const CLUSTER_META: MetaRules = MetaRules::cluster(names::name_is_dns_subdomain);
const MAX_OPAQUE_BYTES: usize = 10 * 1024;

/// Checks every element, unless there are too many.
fn each(
    list: &[Value],
    max: usize,
    path: &FieldPath,
    errors: &mut Errors,
    mut check: impl FnMut(&Value, &FieldPath, &mut Errors),
) {
    if list.len() > max {
        return errors.push(FieldError::too_many(path, list.len() as i64, max as i64));
    }
    for (i, one) in list.iter().enumerate() {
        check(one, &path.index(i), errors);
    }
}

/// The same, and no key may come twice.
fn each_once(
    list: &[Value],
    max: usize,
    key: impl Fn(&Value) -> String,
    path: &FieldPath,
    errors: &mut Errors,
    check: impl FnMut(&Value, &FieldPath, &mut Errors),
) {
    each(list, max, path, errors, check);
    if list.len() > max {
        return;
    }
    for (i, one) in list.iter().enumerate() {
        let name = key(one);
        if list[..i].iter().any(|other| key(other) == name) {
            errors.duplicate(&path.index(i), name.as_str());
        }
    }
}

fn by_name(one: &Value) -> String {
    one.s("name").to_owned()
}

fn itself(one: &Value) -> String {
    one.as_str().unwrap_or("").to_owned()
}

fn pool_name(name: &str, path: &FieldPath, errors: &mut Errors) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    if name.len() > 253 {
        errors.push(FieldError::too_long(path, 253));
    }
    for part in name.split('/') {
        check::dns_subdomain(part, path, errors);
    }
}

fn c_identifier(name: &str, path: &FieldPath, errors: &mut Errors) {
    if name.len() > 32 {
        errors.push(FieldError::too_long(path, 32));
    }
    errors.messages(path, name, names::is_c_identifier(name));
}

/// The name of an attribute or capacity, with or without a domain.
fn qualified(name: &str, path: &FieldPath, errors: &mut Errors) {
    let parts: Vec<&str> = name.split('/').collect();
    match parts[..] {
        [id] => c_identifier(id, path, errors),
        [domain, id] => {
            if domain.is_empty() {
                errors.invalid(path, "", "the domain must not be empty");
            } else {
                driver_name(domain, path, errors);
            }
            if id.is_empty() {
                errors.invalid(path, "", "the name must not be empty");
            } else {
                c_identifier(id, path, errors);
            }
        }
        _ => {}
    }
}

fn fully_qualified(name: &str, path: &FieldPath, errors: &mut Errors) {
    qualified(name, path, errors);
    if !name.contains('/') {
        errors.invalid(path, name, "a fully qualified name must be a domain and a name separated by a slash");
    }
}

/// What a claim's requests are called.
struct RequestNames<'a>(&'a [Value]);

impl RequestNames<'_> {
    fn has(&self, name: &str) -> bool {
        let (request, sub) = name.split_once('/').map_or((name, None), |(request, sub)| (request, Some(sub)));
        let Some(request) = self.0.iter().rfind(|r| r.s("name") == request) else { return false };
        sub.is_none_or(|sub| request.list("firstAvailable").iter().any(|s| s.s("name") == sub))
    }

    fn check(&self, name: &str, path: &FieldPath, errors: &mut Errors) {
        const UNKNOWN: &str =
            "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
        if name.matches('/').count() > 1 {
            return errors.invalid(path, name, UNKNOWN);
        }
        for segment in name.split('/') {
            check::dns_label(segment, path, errors);
        }
        if !self.has(name) {
            errors.invalid(path, name, UNKNOWN);
        }
    }

    fn check_all(&self, list: &[Value], path: &FieldPath, errors: &mut Errors) {
        each_once(list, 32, itself, path, errors, |name, path, errors| {
            self.check(name.as_str().unwrap_or(""), path, errors);
        });
    }
}

fn selectors(list: &[Value], stored: bool, compile: ExpressionCheck<'_>, path: &FieldPath, errors: &mut Errors) {
    each(list, 32, path, errors, |selector, path, errors| {
        let path = path.child("cel");
        let Some(cel) = selector.o("cel") else { return errors.required(&path, "") };
        let path = path.child("expression");
        let source = cel.s("expression");
        if source.len() > MAX_OPAQUE_BYTES {
            return errors.push(FieldError::too_long(&path, MAX_OPAQUE_BYTES as i64));
        }
        let all = Expression {
            source,
            usage: ExpressionUse::DeviceSelector,
            has_params: false,
            has_authorizer: false,
            variables: &[],
            stored,
        };
        expression(compile, all, &path, errors);
    });
}

const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

fn device_request(request: &Value, compile: ExpressionCheck<'_>, path: &FieldPath, errors: &mut Errors) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    check::dns_label(request.s("name"), &path.child("name"), errors);
    let alternatives = request.list("firstAvailable");
    match (request.o("exactly"), alternatives.is_empty()) {
        (None, true) => errors.required(path, ONE),
        (Some(_), false) => {
            errors.invalid(path, Value::Null, format!("{ONE}, but multiple fields are set"));
        }
        (Some(exactly), true) => devices_wanted(exactly, compile, &path.child("exactly"), errors),
        (None, false) => {
            each_once(alternatives, 8, by_name, &path.child("firstAvailable"), errors, |sub, path, errors| {
                check::dns_label(sub.s("name"), &path.child("name"), errors);
                devices_wanted(sub, compile, path, errors);
            });
        }
    }
}

fn devices_wanted(wanted: &Value, compile: ExpressionCheck<'_>, path: &FieldPath, errors: &mut Errors) {
    let class = wanted.s("deviceClassName");
    let at = path.child("deviceClassName");
    if class.is_empty() {
        errors.required(&at, "");
    } else {
        check::dns_subdomain(class, &at, errors);
    }
    selectors(wanted.list("selectors"), false, compile, &path.child("selectors"), errors);
    let count = wanted.i("count");
    match wanted.s("allocationMode") {
        "All" => {
            if count != 0 {
                errors.invalid(&path.child("count"), count, "must not be specified when allocationMode is 'All'");
            }
        }
        "ExactCount" => check::positive(count, &path.child("count"), errors),
        other => errors.not_supported(&path.child("allocationMode"), other, &["All", "ExactCount"]),
    }
    for (i, toleration) in wanted.list("tolerations").iter().enumerate() {
        device_toleration(toleration, &path.child("tolerations").index(i), errors);
    }
}

fn device_toleration(toleration: &Value, path: &FieldPath, errors: &mut Errors) {
    let (key, value) = (toleration.s("key"), toleration.s("value"));
    if !key.is_empty() {
        check::label_name(key, &path.child("key"), errors);
    }
    match toleration.s("operator") {
        "Exists" => {
            if !value.is_empty() {
                errors.invalid(&path.child("value"), value, "must be empty for operator `Exists`");
            }
        }
        "Equal" => errors.messages(&path.child("value"), value, names::is_label_value(value)),
        _ => check::one_of(toleration, "operator", &["Equal", "Exists"], path, errors),
    }
    let effect = toleration.s("effect");
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        errors.not_supported(&path.child("effect"), effect, EFFECTS);
    }
}

fn opaque(config: &Value, stored: bool, path: &FieldPath, errors: &mut Errors) {
    let path = path.child("opaque");
    let Some(opaque) = config.o("opaque") else { return errors.required(&path, "") };
    driver_name(opaque.s("driver"), &path.child("driver"), errors);
    raw_object(opaque.v("parameters"), stored, &path.child("parameters"), errors);
}

/// An object of a driver's own type.
fn raw_object(raw: &Value, stored: bool, path: &FieldPath, errors: &mut Errors) {
    if raw.is_null() {
        errors.required(path, "");
    } else if !stored && raw.to_string().len() > MAX_OPAQUE_BYTES {
        errors.push(FieldError::too_long(path, MAX_OPAQUE_BYTES as i64));
    } else if !raw.is_object() {
        errors.invalid(path, "<value omitted>", "must be a valid JSON object");
    }
}

fn claim_spec(spec: &Value, compile: ExpressionCheck<'_>, path: &FieldPath, errors: &mut Errors) {
    let (devices, path) = (spec.v("devices"), path.child("devices"));
    let requests = devices.list("requests");
    let known = RequestNames(requests);
    each_once(requests, 32, by_name, &path.child("requests"), errors, |request, path, errors| {
        device_request(request, compile, path, errors);
    });
    each(devices.list("constraints"), 32, &path.child("constraints"), errors, |constraint, path, errors| {
        known.check_all(constraint.list("requests"), &path.child("requests"), errors);
        match (constraint.os("matchAttribute"), constraint.os("distinctAttribute")) {
            (Some(name), _) => fully_qualified(name, &path.child("matchAttribute"), errors),
            (None, Some(name)) => fully_qualified(name, &path.child("distinctAttribute"), errors),
            (None, None) => errors.required(
                path,
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
            ),
        }
    });
    each(devices.list("config"), 32, &path.child("config"), errors, |config, path, errors| {
        known.check_all(config.list("requests"), &path.child("requests"), errors);
        opaque(config, false, path, errors);
    });
}

pub(crate) fn claim(new: &Value, old: Option<&Value>, compile: ExpressionCheck<'_>, errors: &mut Errors) {
    object_meta::validate(new, META, errors);
    let path = FieldPath::new("spec");
    match old {
        Some(old) => {
            object_meta::validate_update(new, old, true, errors);
            check::immutable(new.v("spec"), old.v("spec"), &path, errors);
        }
        None => claim_spec(new.v("spec"), compile, &path, errors),
    }
}

pub(crate) fn claim_template(new: &Value, old: Option<&Value>, compile: ExpressionCheck<'_>, errors: &mut Errors) {
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    match old {
        Some(old) => object_meta::validate_update(new, old, true, errors),
        None => object_meta::validate(new, META, errors),
    }
    object_meta::validate_template(spec.v("metadata"), &path.child("metadata"), errors);
    claim_spec(spec.v("spec"), compile, &path.child("spec"), errors);
    if let Some(old) = old {
        check::immutable(spec, old.v("spec"), &path, errors);
    }
}

/// What identifies a device, or a share of one, as it prints.
fn device_key(one: &Value) -> String {
    let [driver, pool, device, share] = ["driver", "pool", "device", "shareID"].map(|key| Value::from(one.s(key)));
    format!("{{\"Driver\":{driver},\"Pool\":{pool},\"Device\":{device},\"ShareID\":{share}}}")
}

pub(crate) fn claim_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    let known = RequestNames(new.v("spec").v("devices").list("requests"));
    let (status, before, path) = (new.v("status"), old.v("status"), FieldPath::new("status"));
    let reserved = status.list("reservedFor");
    let at = path.child("reservedFor");
    let uid = |one: &Value| one.s("uid").to_owned();
    each_once(reserved, 256, uid, &at, errors, |one, path, errors| {
        for key in ["resource", "name", "uid"] {
            check::required_string(one, key, path, errors);
        }
    });
    let allocation = status.o("allocation");
    let allocated: Vec<String> = status.v("allocation").v("devices").list("results").iter().map(device_key).collect();
    let (devices, devices_path) = (status.list("devices"), path.child("devices"));
    each(devices, usize::MAX, &devices_path, errors, |device, path, errors| {
        device_status(device, &allocated, path, errors);
    });
    for (i, key) in devices.iter().map(device_key).enumerate() {
        if devices[..i].iter().any(|other| device_key(other) == key) {
            errors.duplicate(&devices_path.index(i), BadValue::Printed(key));
        }
    }
    if !reserved.is_empty() {
        if allocation.is_none() {
            errors.forbidden(&at, "may not be specified when `allocated` is not set");
        } else if new.v("metadata").has("deletionTimestamp")
            && reserved.iter().any(|one| !before.list("reservedFor").iter().any(|other| semantic_equal(one, other)))
        {
            let detail = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.forbidden(&at, detail);
        }
    }
    let at = path.child("allocation");
    match (allocation, before.o("allocation")) {
        (Some(after), Some(before)) => check::immutable(after, before, &at, errors),
        (Some(after), None) => allocation_result(after, &known, &at, errors),
        _ => {}
    }
}

/// Shares of devices are named by UUIDs.
fn share_id(id: &str, path: &FieldPath, errors: &mut Errors) {
    let hyphen = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    let plain = |text: &str| {
        text.len() == 36
            && text.bytes().enumerate().all(|(at, b)| if hyphen(at) { b == b'-' } else { b.is_ascii_hexdigit() })
    };
    let bare = |text: &str| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let inside = id.strip_prefix("urn:uuid:").or_else(|| id.strip_prefix('{').and_then(|id| id.strip_suffix('}')));
    if !matches!(id.len(), 32 | 36 | 38 | 45) {
        errors.invalid(path, id, format!("error validating uid: invalid UUID length: {}", id.len()));
    } else if !plain(id) && !bare(id) && !inside.is_some_and(plain) {
        errors.invalid(path, id, "error validating uid: invalid UUID format");
    } else if id.len() != 36 || id != id.to_ascii_lowercase() {
        errors.invalid(
            path,
            id,
            "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase \
             hexadecimal characters",
        );
    }
}

fn device_status(device: &Value, allocated: &[String], path: &FieldPath, errors: &mut Errors) {
    driver_name(device.s("driver"), &path.child("driver"), errors);
    pool_name(device.s("pool"), &path.child("pool"), errors);
    check::dns_label(device.s("device"), &path.child("device"), errors);
    if let Some(share) = device.os("shareID") {
        share_id(share, &path.child("shareID"), errors);
    }
    let key = device_key(device);
    if !allocated.contains(&key) {
        errors.invalid(path, BadValue::Printed(key), "must be an allocated device in the claim");
    }
    let conditions = device.list("conditions");
    let at = path.child("conditions");
    if conditions.len() > 8 {
        errors.push(FieldError::too_many(&at, conditions.len() as i64, 8));
    }
    check::conditions(conditions, &at, errors);
    if device.has("data") {
        raw_object(device.v("data"), false, &path.child("data"), errors);
    }
    let Some(network) = device.o("networkData") else { return };
    let path = path.child("networkData");
    for (key, max) in [("interfaceName", 256), ("hardwareAddress", 128)] {
        if network.s(key).len() > max {
            errors.push(FieldError::too_long(&path.child(key), max as i64));
        }
    }
    each_once(network.list("ips"), 16, itself, &path.child("ips"), errors, |ip, path, errors| {
        let ip = ip.as_str().unwrap_or("");
        match check::parse_cidr_sloppy(ip).map(|cidr| format!("{}/{}", cidr.ip, cidr.prefix)) {
            None => {
                errors.invalid(path, ip, "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)");
            }
            Some(canonical) if canonical != ip => {
                errors.invalid(path, ip, format!("must be in canonical form ({canonical:?})"));
            }
            Some(_) => {}
        }
    });
}

fn allocation_result(result: &Value, known: &RequestNames<'_>, path: &FieldPath, errors: &mut Errors) {
    let (devices, at) = (result.v("devices"), path.child("devices"));
    each(devices.list("results"), 32, &at.child("results"), errors, |one, path, errors| {
        known.check(one.s("request"), &path.child("request"), errors);
        driver_name(one.s("driver"), &path.child("driver"), errors);
        pool_name(one.s("pool"), &path.child("pool"), errors);
        check::dns_label(one.s("device"), &path.child("device"), errors);
        if let Some(share) = one.os("shareID") {
            share_id(share, &path.child("shareID"), errors);
        }
        binding_conditions(one, path, errors);
    });
    each(devices.list("config"), 64, &at.child("config"), errors, |config, path, errors| {
        check::one_of(config, "source", &["FromClaim", "FromClass"], path, errors);
        known.check_all(config.list("requests"), &path.child("requests"), errors);
        opaque(config, false, path, errors);
    });
    if let Some(selector) = result.o("nodeSelector") {
        node_selector(selector, false, &path.child("nodeSelector"), errors);
    }
}

fn binding_conditions(one: &Value, path: &FieldPath, errors: &mut Errors) {
    const KEYS: [&str; 2] = ["bindingConditions", "bindingFailureConditions"];
    let [wanted, failed] = KEYS.map(|key| strings(one, key));
    for key in KEYS {
        each(one.list(key), 4, &path.child(key), errors, |name, path, errors| {
            check::label_name(name.as_str().unwrap_or(""), path, errors);
        });
    }
    for (key, list) in KEYS.into_iter().zip([&wanted, &failed]) {
        for (i, name) in list.iter().enumerate() {
            let at = path.child(key).index(i);
            if list[..i].contains(name) {
                errors.duplicate(&at, *name);
            }
            if key == KEYS[1] && wanted.contains(name) {
                errors.invalid(&at, *name, "bindingFailureConditions must not overlap with bindingConditions");
            }
        }
    }
    for (this, other, (missing, present)) in [(0, 1, (&wanted, &failed)), (1, 0, (&failed, &wanted))] {
        if missing.is_empty() && !present.is_empty() {
            let detail = format!("{} are required to use {}", KEYS[this], KEYS[other]);
            errors.invalid(&path.child(KEYS[this]), shown(one.v(KEYS[this])), detail);
        }
    }
}

pub(crate) fn device_class(new: &Value, old: Option<&Value>, compile: ExpressionCheck<'_>, errors: &mut Errors) {
    object_meta::validate(new, CLUSTER_META, errors);
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
    }
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    let stored = |key: &str| old.is_some_and(|old| semantic_equal(spec.v(key), old.v("spec").v(key)));
    selectors(spec.list("selectors"), stored("selectors"), compile, &path.child("selectors"), errors);
    let known = stored("config");
    each(spec.list("config"), 32, &path.child("config"), errors, |config, path, errors| {
        opaque(config, known, path, errors);
    });
    if let Some(name) = spec.os("extendedResourceName")
        && !resources::is_extended(name)
    {
        errors.invalid(&path.child("extendedResourceName"), name, "must be a valid extended resource name");
    }
}

/// The ways to say on which nodes devices are, each with its rules.
fn node_choice<'a>(
    holder: &Value,
    keys: &[&'a str],
    empty_name: &str,
    path: &FieldPath,
    errors: &mut Errors,
) -> Vec<&'a str> {
    let mut set = Vec::new();
    for key in keys {
        let at = path.child(key);
        match (*key, holder.o(key)) {
            (_, None) => continue,
            ("nodeName", Some(name)) => {
                let name = name.as_str().unwrap_or("");
                if name.is_empty() {
                    errors.invalid(&at, name, empty_name);
                    continue;
                }
                check::dns_subdomain(name, &at, errors);
            }
            ("nodeSelector", Some(selector)) => node_selector(selector, false, &at, errors),
            (_, Some(flag)) => {
                if flag.as_bool() != Some(true) {
                    errors.invalid(&at, flag, "must be either unset or set to true");
                    continue;
                }
            }
        }
        set.push(*key);
    }
    set
}

fn listed(keys: &[&str]) -> String {
    let quoted: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
    format!("{{{}}}", quoted.join(", "))
}

pub(crate) fn slice(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    match old {
        Some(old) => object_meta::validate_update(new, old, true, errors),
        None => object_meta::validate(new, CLUSTER_META, errors),
    }
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    driver_name(spec.s("driver"), &path.child("driver"), errors);
    let (pool, at) = (spec.v("pool"), path.child("pool"));
    pool_name(pool.s("name"), &at.child("name"), errors);
    let (count, generation) = (pool.i("resourceSliceCount"), pool.i("generation"));
    check::positive(count, &at.child("resourceSliceCount"), errors);
    if generation < 0 {
        errors.invalid(&at.child("generation"), generation, "must be greater than or equal to zero");
    }
    if let Some(old) = old.map(|old| old.v("spec")) {
        check::immutable(pool.v("name"), old.v("pool").v("name"), &at.child("name"), errors);
        check::immutable(spec.v("driver"), old.v("driver"), &path.child("driver"), errors);
        check::immutable(spec.v("nodeName"), old.v("nodeName"), &path.child("nodeName"), errors);
    }
    const KEYS: &[&str] = &["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let set = node_choice(spec, KEYS, "must be either unset or set to a non-empty string", &path, errors);
    if let Some(selector) = spec.o("nodeSelector")
        && selector.list("nodeSelectorTerms").len() != 1
    {
        errors.invalid(
            &path.child("nodeSelector").child("nodeSelectorTerms"),
            shown(selector.v("nodeSelectorTerms")),
            "must have exactly one node selector term",
        );
    }
    match set.len() {
        0 => errors.required(&path, ONE),
        1 => {}
        _ => errors.invalid(&path, listed(&set).as_str(), format!("{ONE}, but multiple fields are set")),
    }
    if spec.has("sharedCounters") && spec.has("devices") {
        errors.invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let devices = spec.list("devices");
    let max = if devices.iter().any(is_advanced) { 64 } else { 128 };
    let old_devices = old.map_or(&[][..], |old| old.v("spec").list("devices"));
    each_once(devices, max, by_name, &path.child("devices"), errors, |one, path, errors| {
        let before = old_devices.iter().find(|d| d.s("name") == one.s("name"));
        device(one, before, spec.b("perDeviceNodeSelection"), path, errors);
    });
    each_once(spec.list("sharedCounters"), 8, by_name, &path.child("sharedCounters"), errors, |set, path, errors| {
        counters(set, "name", path, errors);
    });
}

const LISTS: &[&str] = &["bools", "ints", "strings", "versions"];

fn is_advanced(device: &Value) -> bool {
    !device.list("taints").is_empty()
        || !device.list("consumesCounters").is_empty()
        || device.members("attributes").values().any(|a| LISTS.iter().any(|key| a.has(key)))
}

fn counters(set: &Value, key: &str, path: &FieldPath, errors: &mut Errors) {
    let name = set.s(key);
    if name.is_empty() {
        errors.required(&path.child(key), "");
    } else {
        check::dns_label(name, &path.child(key), errors);
    }
    let all = set.members("counters");
    let at = path.child("counters");
    if all.is_empty() {
        errors.required(&at, "");
    } else if all.len() > 32 {
        errors.push(FieldError::too_many(&at, all.len() as i64, 32));
    } else {
        for name in all.keys() {
            check::dns_label(name, &at, errors);
        }
    }
}

fn device(device: &Value, old: Option<&Value>, per_device: bool, path: &FieldPath, errors: &mut Errors) {
    check::dns_label(device.s("name"), &path.child("name"), errors);
    let (attributes, capacity) = (device.members("attributes"), device.members("capacity"));
    let total = attributes.len() + capacity.len();
    if total > 32 {
        let detail = "the total number of attributes and capacities must not exceed 32";
        errors.invalid(path, total as i64, detail);
    }
    let values: usize =
        attributes.values().map(|a| LISTS.iter().map(|key| a.list(key).len()).sum::<usize>().max(1)).sum();
    if values > 48 {
        errors.invalid(path, values as i64, "the total number of attribute values must not exceed 48");
    }
    let at = path.child("attributes");
    for (name, attribute) in attributes.iter() {
        qualified(name, &at, errors);
        device_attribute(attribute, &at.key(name), errors);
    }
    let at = path.child("capacity");
    for (name, one) in capacity.iter() {
        qualified(name, &at, errors);
        let Some(policy) = one.o("requestPolicy") else { continue };
        let at = at.key(name).child("requestPolicy");
        if device.b("allowMultipleAllocations") {
            request_policy(one.v("value"), policy, &at, errors);
        } else {
            errors.forbidden(&at, "allowMultipleAllocations must be true");
        }
    }
    if old.is_none_or(|old| !semantic_equal(old.v("taints"), device.v("taints"))) {
        each(device.list("taints"), 16, &path.child("taints"), errors, |taint, path, errors| {
            check::label_name(taint.s("key"), &path.child("key"), errors);
            let value = taint.s("value");
            errors.messages(&path.child("value"), value, names::is_label_value(value));
            check::one_of(taint, "effect", EFFECTS, path, errors);
        });
    }
    let set_name = |one: &Value| one.s("counterSet").to_owned();
    let at = path.child("consumesCounters");
    each_once(device.list("consumesCounters"), 2, set_name, &at, errors, |one, path, errors| {
        counters(one, "counterSet", path, errors);
    });
    const KEYS: &[&str] = &["nodeName", "nodeSelector", "allNodes"];
    if per_device {
        let detail = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        let set = node_choice(device, KEYS, "must not be empty", path, errors);
        match set.len() {
            0 => errors.required(path, detail),
            1 => {}
            _ => errors.invalid(path, listed(&set).as_str(), detail),
        }
    } else if KEYS.iter().any(|key| device.has(key)) {
        let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        errors.invalid(path, Value::Null, detail);
    }
    binding_conditions(device, path, errors);
}

fn is_semver(text: &str) -> bool {
    let number = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) && (n == "0" || !n.starts_with('0'));
    let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
    let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
    let parts: Vec<&str> = core.split('.').collect();
    parts.len() == 3
        && parts.into_iter().all(number)
        && pre
            .is_none_or(|pre| pre.split('.').all(|p| word(p) && (!p.bytes().all(|b| b.is_ascii_digit()) || number(p))))
        && build.is_none_or(|build| build.split('.').all(word))
}

fn device_attribute(attribute: &Value, path: &FieldPath, errors: &mut Errors) {
    let text = |value: &Value, version: bool, path: &FieldPath, errors: &mut Errors| {
        let value = value.as_str().unwrap_or("");
        if version && !is_semver(value) {
            errors.invalid(path, value, "must be a string compatible with semver.org spec 2.0.0");
        }
        if value.len() > 64 {
            errors.push(FieldError::too_long(path, 64));
        }
    };
    let mut count = 0;
    for key in ["bool", "int", "string", "version"] {
        let Some(value) = attribute.o(key) else { continue };
        count += 1;
        if matches!(key, "string" | "version") {
            text(value, key == "version", &path.child(key), errors);
        }
    }
    for key in LISTS {
        if !attribute.has(key) {
            continue;
        }
        count += 1;
        let at = path.child(key);
        if attribute.list(key).is_empty() {
            errors.invalid(&at, shown(attribute.v(key)), "must not be empty if specified");
        }
        if matches!(*key, "strings" | "versions") {
            for (i, value) in attribute.list(key).iter().enumerate() {
                text(value, *key == "versions", &at.index(i), errors);
            }
        }
    }
    match count {
        0 => errors.invalid(path, "", "exactly one value must be specified"),
        1 => {}
        _ => errors.invalid(path, attribute, "exactly one value must be specified"),
    }
}

fn request_policy(capacity: &Value, policy: &Value, path: &FieldPath, errors: &mut Errors) {
    let (values, range) = (policy.list("validValues"), policy.o("validRange"));
    let max = quantity(capacity);
    let default = policy.o("default").map(|default| (quantity(default), canonical(default)));
    match (values.is_empty(), range) {
        (false, Some(_)) => errors.forbidden(
            path,
            "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time",
        ),
        (true, None) => {}
        (false, None) => {
            let Some((default, shown)) = default else {
                return errors.required(&path.child("default"), "required when validValues is defined");
            };
            let at = path.child("validValues");
            for (i, pair) in values.windows(2).enumerate() {
                if quantity(&pair[0]) > quantity(&pair[1]) {
                    let detail = "values must be sorted in ascending order";
                    errors.invalid(&at.index(i + 1), canonical(&pair[1]).as_str(), detail);
                }
            }
            let key = |one: &Value| quantity(one).value().to_string();
            each_once(values, 10, key, &at, errors, |one, path, errors| {
                if quantity(one) > max {
                    let detail = format!("option is larger than capacity value: {}", canonical(capacity));
                    errors.invalid(path, canonical(one).as_str(), detail);
                }
            });
            if !values.iter().any(|one| quantity(one) == default) {
                errors.invalid(&at, shown.as_str(), "default value is not valid according to the requestPolicy");
            }
        }
        (true, Some(range)) => {
            let Some((default, shown)) = default else {
                return errors.required(&path.child("default"), "required when validRange is defined");
            };
            let at = path.child("validRange");
            let Some(min) = range.o("min") else {
                return errors.required(&at.child("min"), "required when validRange is defined");
            };
            if quantity(min) > max {
                let detail = format!("min is larger than capacity value: {}", canonical(capacity));
                errors.invalid(&at.child("min"), canonical(min).as_str(), detail);
            }
            if default < quantity(min) {
                errors.invalid(
                    &at.child("min"),
                    shown.as_str(),
                    format!("default is less than min: {}", canonical(min)),
                );
            }
            let Some(upper) = range.o("max") else { return };
            if quantity(min) > quantity(upper) {
                let detail = format!("min is larger than max: {}", canonical(upper));
                errors.invalid(&at.child("max"), canonical(min).as_str(), detail);
            }
            if quantity(upper) > max {
                let detail = format!("max is larger than capacity value: {}", canonical(capacity));
                errors.invalid(&at.child("max"), canonical(upper).as_str(), detail);
            }
            if default > quantity(upper) {
                let detail = format!("default is more than max: {}", canonical(upper));
                errors.invalid(&at.child("max"), shown.as_str(), detail);
            }
        }
    }
}
