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
        // `svc`, `svc.ns` and longer forms of a virtual Service; what follows `svc` stays.
        let mut parts = name.splitn(4, '.');
        let service = parts.next().unwrap_or_default();
        let of = parts.next().unwrap_or(namespace);
        let domain = parts.nth(1).map(|domain| format!(".{domain}")).unwrap_or_default();
        let host = kind::SERVICE.host_name(ctx.names, &NamespacedName::new(of, service));
        format!("{}.{}.svc{domain}", host.name, host.namespace)
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
    if patches.is_empty() {
        return Ok(());
    }
    let plain = host.clone();
    for patch in patches {
        for place in patch.path.places(host).into_iter().filter(|place| !is_protected(place)) {
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
    keep_identity(&plain, host);
    Ok(())
}

/// What a virtual object becomes now, without the patches and with them.
pub struct Translations<'a> {
    pub plain: &'a Value,
    pub patched: &'a Value,
}

/// Where two objects differ: members, and lists as wholes.
fn differences(place: &mut Vec<Step>, a: Option<&Value>, b: Option<&Value>, out: &mut Vec<Vec<Step>>) {
    match (a, b) {
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            for key in x.keys().chain(y.keys().filter(|key| !x.contains_key(key))) {
                place.push(Step::Member(key.to_string()));
                differences(place, x.get(key), y.get(key), out);
                place.pop();
            }
        }
        (a, b) if a != b => out.push(place.clone()),
        _ => {}
    }
}

/// Labels and annotations by which host objects are known: no patch touches them.
fn is_protected(place: &[Step]) -> bool {
    match place {
        [Step::Member(metadata), Step::Member(map), Step::Member(key), ..] if metadata == "metadata" => {
            matches!(map.as_str(), "labels" | "annotations")
                && (key.starts_with("vcluster.loft.sh/") || key.starts_with("alcove.dev/"))
        }
        _ => false,
    }
}

/// Gives `host` what `plain` has of what an object is known by.
fn keep_identity(plain: &Value, host: &mut Value) {
    for place in [["metadata", "name"], ["metadata", "namespace"], ["metadata", "ownerReferences"]] {
        crate::diff::put(host, &place, plain.at(&place).cloned());
    }
    for member in ["apiVersion", "kind"] {
        crate::diff::put(host, &[member], plain.get(member).cloned());
    }
    for map in ["labels", "annotations"] {
        let keys = |object: &Value| -> Vec<String> {
            let members = object.at(&["metadata", map]).and_then(Value::as_object);
            members.into_iter().flat_map(|m| m.keys()).map(ToString::to_string).collect()
        };
        for key in keys(plain).into_iter().chain(keys(host)) {
            if is_protected(&["metadata", map, &key].map(|step| Step::Member(step.to_owned()))) {
                let path = ["metadata", map, key.as_str()];
                crate::diff::put(host, &path, plain.at(&path).cloned());
            }
        }
    }
}

impl Patch {
    /// The places that this patch is about, in any of the objects. One of a whole object or map is about what it changes
    /// there.
    fn all_places(&self, translations: &Translations<'_>, host: &Value) -> Vec<Vec<Step>> {
        let mut roots: Vec<Vec<Step>> = Vec::new();
        for object in [translations.plain, translations.patched, host] {
            roots.extend(self.path.places(object).into_iter().filter(|place| !is_protected(place)));
        }
        let mut out: Vec<Vec<Step>> = Vec::new();
        for mut place in roots {
            let (plain, patched) = (get(translations.plain, &place), get(translations.patched, &place));
            let mut found = Vec::new();
            match (plain, patched) {
                (Some(Value::Object(_)), Some(Value::Object(_))) => differences(&mut place, plain, patched, &mut found),
                _ => found.push(place),
            }
            out.extend(found.into_iter().filter(|place| !is_protected(place)));
        }
        let mut seen = std::collections::HashSet::new();
        out.retain(|place| seen.insert(text_of(place)));
        out
    }

    fn to_virtual(&self) -> Option<&Script> {
        match &self.mode {
            Mode::Expression { to_virtual, .. } if !self.path.0.is_empty() => to_virtual.as_ref(),
            _ => None,
        }
    }

    /// Whether anything of this patch goes to the host.
    fn goes_down(&self) -> bool {
        !matches!(self.mode, Mode::Expression { to_host: None, .. })
    }
}

/// The host object as the tenant would have written it: where it has what the patches make, it has what they were made from;
/// what the host changed there comes back through the reverse expression, or not at all.
pub fn without_patches(
    patches: &[Patch],
    translations: &Translations<'_>,
    virtual_: &Value,
    host: &Value,
    ctx: &Context<'_>,
) -> Result<Value, Refusal> {
    let mut seen = host.clone();
    for patch in patches {
        for place in patch.all_places(translations, host) {
            let value = get(host, &place).filter(|v| !v.is_null());
            let plain = get(translations.plain, &place).cloned();
            if value == get(translations.patched, &place).filter(|v| !v.is_null()) {
                set(&mut seen, &place, plain);
            } else if let Some(script) = patch.to_virtual() {
                let back = evaluate(script, &place, value, virtual_, host, ctx)?;
                set(&mut seen, &place, back);
            } else {
                set(&mut seen, &place, plain);
            }
        }
    }
    Ok(seen)
}

/// Puts patched fields into what a type made of [`without_patches`]: those of a fresh translation, but for what the host
/// changed and the tenant takes over.
pub fn put_patches(
    patches: &[Patch],
    translations: &Translations<'_>,
    virtual_: &Value,
    host: &Value,
    desired: &mut crate::types::Desired,
    ctx: &Context<'_>,
) -> Result<(), Refusal> {
    for patch in patches {
        for place in patch.all_places(translations, host) {
            let (plain, patched) = (get(translations.plain, &place), get(translations.patched, &place));
            let taken_over =
                get(&desired.virtual_, &place) != get(virtual_, &place) && get(&desired.host, &place) != plain;
            // What only the host has is the host's.
            let of_host = taken_over || !patch.goes_down() || plain.is_none() && patched.is_none();
            let from = if of_host { host } else { translations.patched };
            set(&mut desired.host, &place, get(from, &place).cloned());
        }
        // Of the whole object: the value is the change; without a word for this way it stays as it is.
        if let Mode::Expression { to_virtual: Some(script), .. } = &patch.mode
            && patch.path.0.is_empty()
            && let Some(change) = crate::diff::merge_patch(virtual_, &desired.virtual_)
            && let Some(change) = evaluate(script, &[], Some(&change), virtual_, host, ctx)?
        {
            desired.virtual_ = apimachinery::patch::merge::apply(virtual_, &change);
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
