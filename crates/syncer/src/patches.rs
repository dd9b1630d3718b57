//! `patches` of the configuration: single fields of synced objects, rewritten on their way.
//!
//! A patch is applied to what the type's own translation gives, never to its own result, so that applying it again changes
//! nothing. A field with a patch in one direction only is left alone in the other.
//!
//! Follows: vCluster's documentation of `sync.*.patches`.

use apimachinery::Value;

use crate::kind;
use crate::names::NamespacedName;
use crate::script::Script;
use crate::selectors::{bind_selector, host_map_selector, host_selector};
use crate::types::{Context, Reference, Refusal};

/// What is done with a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    /// JavaScript expressions, virtual to host and host to virtual.
    Expression { to_host: Option<Script>, to_virtual: Option<Script> },
    /// The value is the name of an object, or an object with the name inside; paths are relative to it.
    Reference {
        api_version: String,
        kind: String,
        api_version_path: Option<Path>,
        kind_path: Option<Path>,
        name_path: Option<Path>,
        namespace_path: Option<Path>,
    },
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

/// A place as paths are written.
fn text_of(place: &[Step]) -> String {
    let mut out = String::new();
    for step in place {
        match step {
            Step::Member(key) if key.contains(['.', '[', ']']) => out.push_str(&format!("[\"{key}\"]")),
            Step::Member(key) if out.is_empty() => out.push_str(key),
            Step::Member(key) => out.push_str(&format!(".{key}")),
            Step::Index(n) => out.push_str(&format!("[{n}]")),
            Step::Each => out.push_str("[*]"),
        }
    }
    out
}

fn evaluate(
    script: &Script,
    place: &[Step],
    value: Option<&Value>,
    virtual_: &Value,
    host: &Value,
    ctx: &Context<'_>,
) -> Result<Option<Value>, Refusal> {
    let context = apimachinery::json!({
        "vcluster": {
            "name": (ctx.names.virtual_cluster()), "namespace": (ctx.names.install_namespace()), "config": (&ctx.settings.config),
        },
        "virtualObject": virtual_,
        "hostObject": host,
        "path": (text_of(place)),
    });
    let namespace = virtual_.str_at(&["metadata", "namespace"]);
    let dns = |name: &str| {
        // `svc`, `svc.ns` and longer forms of a virtual Service.
        let mut parts = name.split('.');
        let service = parts.next().unwrap_or_default();
        let of = parts.next().unwrap_or(namespace);
        let host = kind::SERVICE.host_name(ctx.names, &NamespacedName::new(of, service));
        format!("{}.{}.svc", host.name, host.namespace)
    };
    script
        .eval(
            [("value", value.cloned()), ("valueExists", Some(value.is_some().into())), ("context", Some(context))],
            &dns,
        )
        .map_err(|error| Refusal::error(format!("patch of {:?}: {error}", text_of(place))))
}

/// Applies patches to a freshly translated host object.
pub fn apply_to_host(patches: &[Patch], virtual_: &Value, host: &mut Value, ctx: &Context<'_>) -> Result<(), Refusal> {
    for patch in patches {
        for place in patch.path.places(host) {
            let value = get(host, &place).filter(|v| !v.is_null()).cloned();
            match &patch.mode {
                Mode::Expression { to_host: Some(script), .. } => {
                    let new = evaluate(script, &place, value.as_ref(), virtual_, host, ctx)?;
                    set(host, &place, new);
                }
                // Nothing goes this way.
                Mode::Expression { to_host: None, .. } => set(host, &place, None),
                Mode::Reference { name_path, namespace_path, .. } => {
                    let own = virtual_.str_at(&["metadata", "namespace"]);
                    let Some(target) = target(patch, host, &place, own) else { continue };
                    let translated = target.host(ctx);
                    let inside = |path: &Path| [place.clone(), path.0.clone()].concat();
                    let name_place = name_path.as_ref().map_or(place.clone(), inside);
                    set(host, &name_place, Some(translated.name.into()));
                    if let Some(namespace_place) = namespace_path.as_ref().map(inside)
                        && get(host, &namespace_place).is_some_and(|n| !n.is_null())
                    {
                        set(host, &namespace_place, Some(translated.namespace.into()));
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
                    let new = evaluate(script, &place, value, virtual_, host, ctx)?;
                    set(new_virtual, &place, new);
                }
                _ if changed => set(new_virtual, &place, get(virtual_, &place).cloned()),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The object that a reference patch points to, at one place.
struct Target {
    api_version: String,
    kind: String,
    name: NamespacedName,
}

impl Target {
    fn host(&self, ctx: &Context<'_>) -> NamespacedName {
        let known = kind::ALL.iter().find(|k| k.kind == self.kind && k.api_version() == self.api_version);
        match known {
            Some(known) => known.host_name(ctx.names, &self.name),
            None => ctx.names.host(&self.name.name, &self.name.namespace),
        }
    }
}

fn target(patch: &Patch, object: &Value, place: &[Step], own: &str) -> Option<Target> {
    let Mode::Reference { api_version, kind, api_version_path, kind_path, name_path, namespace_path } = &patch.mode
    else {
        return None;
    };
    let value = get(object, place)?;
    let at = |path: &Option<Path>, default: &str| {
        let found = path.as_ref().and_then(|p| get(value, &p.0)).and_then(Value::as_str).filter(|t| !t.is_empty());
        found.unwrap_or(default).to_owned()
    };
    let name = match name_path {
        Some(path) => get(value, &path.0)?.as_str()?,
        None => value.as_str()?,
    };
    let kind = at(kind_path, kind);
    let name = (!name.is_empty()).then(|| NamespacedName::new(at(namespace_path, own), name))?;
    Some(Target { api_version: at(api_version_path, api_version), kind, name })
}

/// The objects that reference patches point to.
pub fn references(patches: &[Patch], object: &Value) -> Vec<Reference> {
    let own = object.str_at(&["metadata", "namespace"]);
    let mut out = Vec::new();
    for patch in patches.iter().filter(|p| matches!(p.mode, Mode::Reference { .. })) {
        for place in patch.path.places(object) {
            if let Some(target) = target(patch, object, &place, own) {
                out.push(Reference { kind: target.kind, name: target.name });
            }
        }
    }
    out
}

/// Patches of an object that comes from the host, applied to its virtual copy. Which of the two words an expression was
/// written under does not matter: there is only one way.
pub fn apply_to_import(patches: &[Patch], host: &Value, copy: &mut Value, ctx: &Context<'_>) -> Result<(), Refusal> {
    for patch in patches {
        let Mode::Expression { to_host, to_virtual } = &patch.mode else { continue };
        let Some(script) = to_virtual.as_ref().or(to_host.as_ref()) else { continue };
        for place in patch.path.places(copy) {
            let value = get(copy, &place).filter(|v| !v.is_null()).cloned();
            let shown = copy.clone();
            let new = evaluate(script, &place, value.as_ref(), &shown, host, ctx)?;
            if !place.is_empty() || new.as_ref().is_some_and(Value::is_object) {
                set(copy, &place, new);
            }
        }
    }
    Ok(())
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
