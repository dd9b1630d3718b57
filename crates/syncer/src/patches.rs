//! `patches` of the configuration: single fields of synced objects, rewritten on their way.
//!
//! A patch is applied to what the type's own translation gives, never to its own result, so that applying it again changes
//! nothing. A field with a patch in one direction only is left alone in the other.
//!
//! Follows: vCluster's documentation of `sync.*.patches`.

use apimachinery::Value;

use crate::script::Script;
use crate::selectors::{bind_selector, host_map_selector, host_selector};
use crate::types::{Context, Refusal};

/// What is done with a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    /// JavaScript expressions, virtual to host and host to virtual.
    Expression { to_host: Option<Script>, to_virtual: Option<Script> },
    /// The value is the name of an object of this kind.
    Reference { kind: String, namespace_path: Option<Path> },
    /// The value is a label selector.
    Labels,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    pub path: Path,
    pub mode: Mode,
}

/// A step into a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Member(String),
    Index(usize),
    /// `[*]`
    Each,
}

/// Where a patch applies. Empty: the whole object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(pub Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path {path:?}: {message}")]
pub struct PathError {
    pub path: String,
    pub message: &'static str,
}

impl Path {
    /// Reads `spec.a[*].b["key.with.dots"][0]`.
    pub fn parse(text: &str) -> Result<Path, PathError> {
        let fail = |message| PathError { path: text.to_owned(), message };
        let mut steps = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            if let Some(tail) = rest.strip_prefix('[') {
                let quoted = ['"', '\''].into_iter().find(|q| tail.starts_with(*q));
                let (step, after) = if let Some(quote) = quoted {
                    let end = tail[1..].find(quote).ok_or_else(|| fail("a quote is not closed"))? + 1;
                    let after = tail[end + 1..].strip_prefix(']').ok_or_else(|| fail("a bracket is not closed"))?;
                    (Step::Member(tail[1..end].to_owned()), after)
                } else {
                    let end = tail.find(']').ok_or_else(|| fail("a bracket is not closed"))?;
                    let step = match &tail[..end] {
                        "*" => Step::Each,
                        digits => Step::Index(digits.parse().map_err(|_| fail("an index must be a number or *"))?),
                    };
                    (step, &tail[end + 1..])
                };
                steps.push(step);
                rest = after.strip_prefix('.').unwrap_or(after);
                if rest.is_empty() && after.starts_with('.') {
                    return Err(fail("ends with a dot"));
                }
            } else {
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                if end == 0 {
                    return Err(fail("an empty name"));
                }
                steps.push(Step::Member(rest[..end].to_owned()));
                let after = &rest[end..];
                rest = after.strip_prefix('.').unwrap_or(after);
                if rest.is_empty() && after.starts_with('.') {
                    return Err(fail("ends with a dot"));
                }
            }
        }
        if let [Step::Member(a), Step::Member(b), ..] = &steps[..]
            && a == "metadata"
            && (b == "name" || b == "namespace" || b == "uid")
        {
            return Err(fail("names and namespaces cannot be patched"));
        }
        Ok(Path(steps))
    }

    /// The concrete places in `object`, `[*]` resolved. A missing last member is a place too; a missing one before is none.
    fn places(&self, object: &Value) -> Vec<Vec<Step>> {
        let mut places = vec![Vec::new()];
        for (n, step) in self.0.iter().enumerate() {
            let last = n + 1 == self.0.len();
            let mut next = Vec::new();
            for place in places {
                let Some(at) = get(object, &place) else { continue };
                match (step, at) {
                    (Step::Each, Value::Array(list)) => {
                        next.extend((0..list.len()).map(|i| [place.clone(), vec![Step::Index(i)]].concat()));
                    }
                    (Step::Each, Value::Object(map)) => {
                        next.extend(map.keys().map(|k| [place.clone(), vec![Step::Member(k.to_string())]].concat()));
                    }
                    (Step::Index(i), Value::Array(list)) if *i < list.len() => {
                        next.push([place, vec![step.clone()]].concat());
                    }
                    (Step::Member(key), Value::Object(map)) if last || map.contains_key(key) => {
                        next.push([place, vec![step.clone()]].concat());
                    }
                    _ => {}
                }
            }
            places = next;
        }
        places
    }
}

fn get<'a>(object: &'a Value, place: &[Step]) -> Option<&'a Value> {
    place.iter().try_fold(object, |v, step| match step {
        Step::Member(key) => v.get(key),
        Step::Index(i) => v.as_array()?.get(*i),
        Step::Each => None,
    })
}

fn get_mut<'a>(object: &'a mut Value, place: &[Step]) -> Option<&'a mut Value> {
    place.iter().try_fold(object, |v, step| match step {
        Step::Member(key) => v.get_mut(key),
        Step::Index(i) => v.as_array_mut()?.get_mut(*i),
        Step::Each => None,
    })
}

/// Sets the value at a place whose parents exist; `None` removes it.
fn set(object: &mut Value, place: &[Step], value: Option<Value>) {
    let Some((last, parents)) = place.split_last() else {
        if let Some(value) = value {
            *object = value;
        }
        return;
    };
    let Some(parent) = get_mut(object, parents) else { return };
    match (last, value) {
        (Step::Member(key), Some(value)) => parent[key.as_str()] = value,
        (Step::Member(key), None) => {
            parent.remove_at(&[key]);
        }
        (Step::Index(i), Some(value)) => {
            if let Some(slot) = parent.as_array_mut().and_then(|a| a.get_mut(*i)) {
                *slot = value;
            }
        }
        _ => {}
    }
}

fn evaluate(
    script: &Script,
    patch: &Patch,
    value: Option<&Value>,
    virtual_: &Value,
    host: &Value,
    ctx: &Context<'_>,
) -> Result<Option<Value>, Refusal> {
    let context = apimachinery::json!({
        "vcluster": {
            "name": (ctx.names.virtual_cluster()), "namespace": (ctx.names.install_namespace()), "config": {},
        },
        "virtualObject": virtual_,
        "hostObject": host,
        "path": (format!("{:?}", patch.path)),
    });
    let namespace = virtual_.str_at(&["metadata", "namespace"]);
    let dns = |name: &str| {
        // `svc`, `svc.ns` and longer forms of a virtual Service.
        let mut parts = name.split('.');
        let service = parts.next().unwrap_or_default();
        let of = parts.next().unwrap_or(namespace);
        let host = ctx.names.host_service(service, of);
        format!("{}.{}.svc", host.name, host.namespace)
    };
    script
        .eval(
            [("value", value.cloned()), ("valueExists", Some(value.is_some().into())), ("context", Some(context))],
            &dns,
        )
        .map_err(|error| Refusal::error(format!("patch of {:?}: {error}", patch.path.0)))
}

/// Applies patches to a freshly translated host object.
pub fn apply_to_host(patches: &[Patch], virtual_: &Value, host: &mut Value, ctx: &Context<'_>) -> Result<(), Refusal> {
    for patch in patches {
        for place in patch.path.places(host) {
            let value = get(host, &place).filter(|v| !v.is_null()).cloned();
            match &patch.mode {
                Mode::Expression { to_host: Some(script), .. } => {
                    let new = evaluate(script, patch, value.as_ref(), virtual_, host, ctx)?;
                    set(host, &place, new);
                }
                // Nothing goes this way.
                Mode::Expression { to_host: None, .. } => set(host, &place, None),
                Mode::Reference { kind, namespace_path } => {
                    let Some(name) = value.as_ref().and_then(Value::as_str) else { continue };
                    let own = virtual_.str_at(&["metadata", "namespace"]);
                    let namespace = namespace_path
                        .as_ref()
                        .and_then(|p| get(virtual_, &p.0))
                        .and_then(Value::as_str)
                        .filter(|n| !n.is_empty())
                        .unwrap_or(own)
                        .to_owned();
                    let target = match kind.as_str() {
                        "ConfigMap" => ctx.names.host_config_map(name, &namespace),
                        "Service" => ctx.names.host_service(name, &namespace),
                        _ => ctx.names.host(name, &namespace),
                    };
                    set(host, &place, Some(target.name.into()));
                    if let Some(path) = namespace_path {
                        set(host, &path.0, Some(target.namespace.into()));
                    }
                }
                Mode::Labels => {
                    let Some(selector) = value else { continue };
                    let namespace = virtual_.str_at(&["metadata", "namespace"]);
                    let plain = selector.get("matchLabels").is_none() && selector.get("matchExpressions").is_none();
                    let new = if plain {
                        host_map_selector(Some(&selector), namespace, ctx.names)
                    } else {
                        let mut new = host_selector(&selector, ctx.names);
                        bind_selector(&mut new, Some(namespace), ctx.names);
                        Some(new)
                    };
                    set(host, &place, new);
                }
            }
        }
    }
    Ok(())
}

/// After a type's reconcile: patched fields of the host object are what the patches make of a fresh translation, patched
/// fields of the virtual object come from the host through the reverse expression only.
pub fn apply_to_both(
    patches: &[Patch],
    fresh: &Value,
    virtual_: &Value,
    new_virtual: &mut Value,
    host: &Value,
    new_host: &mut Value,
    ctx: &Context<'_>,
) -> Result<(), Refusal> {
    for patch in patches {
        for place in patch.path.places(fresh) {
            // An empty place is the whole object: only its content was meant, which the expression saw at creation.
            if !place.is_empty() {
                set(new_host, &place, get(fresh, &place).cloned());
            }
        }
        for place in patch.path.places(new_virtual) {
            if place.is_empty() {
                continue;
            }
            let changed = get(new_virtual, &place) != get(virtual_, &place);
            match &patch.mode {
                Mode::Expression { to_virtual: Some(script), .. } if changed => {
                    let value = get(host, &place).filter(|v| !v.is_null());
                    let new = evaluate(script, patch, value, virtual_, host, ctx)?;
                    set(new_virtual, &place, new);
                }
                _ if changed => set(new_virtual, &place, get(virtual_, &place).cloned()),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Names of Secrets or ConfigMaps that reference patches point to, as `namespace/name`.
pub fn references(patches: &[Patch], object: &Value, kind: &str) -> Vec<String> {
    let own = object.str_at(&["metadata", "namespace"]);
    let mut out = Vec::new();
    for patch in patches {
        let Mode::Reference { kind: of, namespace_path } = &patch.mode else { continue };
        if of != kind {
            continue;
        }
        let namespace = namespace_path.as_ref().and_then(|p| get(object, &p.0)).and_then(Value::as_str).unwrap_or(own);
        for place in patch.path.places(object) {
            if let Some(name) = get(object, &place).and_then(Value::as_str).filter(|n| !n.is_empty()) {
                out.push(format!("{namespace}/{name}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        use Step::{Each, Index, Member};
        let m = |s: &str| Member(s.to_owned());
        for (text, want) in [
            ("", Some(vec![])),
            ("spec.a", Some(vec![m("spec"), m("a")])),
            ("spec.list[*].name", Some(vec![m("spec"), m("list"), Each, m("name")])),
            ("metadata.annotations[\"a.b/c\"]", Some(vec![m("metadata"), m("annotations"), m("a.b/c")])),
            (
                "metadata.annotations['a.b/c'].x[0]",
                Some(vec![m("metadata"), m("annotations"), m("a.b/c"), m("x"), Index(0)]),
            ),
            ("metadata.name", None),
            ("metadata.namespace", None),
            ("a..b", None),
            ("a.", None),
            ("a[", None),
            ("a[x]", None),
            ("a[\"x]", None),
        ] {
            assert_eq!(Path::parse(text).ok(), want.map(Path), "{text}");
        }
    }
}
