//! Which host name each virtual object has, decided once.
//!
//! The rules of [`crate::names`] give two virtual names one host name now and then, and an object that was made under other
//! rules keeps the name it has. So a name is decided when it is first asked for, and stays until the object is gone on both
//! sides and nothing refers to it. [`crate::engine::mappings`] keeps the decisions in the virtual cluster's store.
//!
//! Invariants:
//! - Of one kind, a virtual object has one host name, and a host name is one virtual object's.
//! - Asking again gives the same answer, until it is forgotten.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use parking_lot::RwLock;

use crate::kind::{self, Kind};
use crate::names::NamespacedName;

/// Group and kind.
type Family = (Cow<'static, str>, Cow<'static, str>);

/// A virtual object with its host object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub virtual_: NamespacedName,
    pub host: NamespacedName,
}

struct Entry {
    host: NamespacedName,
    /// Kept in the store: the objects exist, or the name is not the one that the rules give.
    recorded: bool,
}

#[derive(Default)]
struct Table {
    version: Cow<'static, str>,
    by_virtual: HashMap<NamespacedName, Entry>,
    by_host: HashMap<NamespacedName, NamespacedName>,
}

impl Table {
    fn insert(&mut self, virtual_: &NamespacedName, host: &NamespacedName, recorded: bool) {
        self.by_host.insert(host.clone(), virtual_.clone());
        self.by_virtual.insert(virtual_.clone(), Entry { host: host.clone(), recorded });
    }

    fn remove(&mut self, virtual_: &NamespacedName) -> Option<Entry> {
        let old = self.by_virtual.remove(virtual_)?;
        self.by_host.remove(&old.host);
        Some(old)
    }

    fn is_free(&self, host: &NamespacedName) -> bool {
        !self.by_host.contains_key(host)
    }

    fn pair(&self, family: &Family, virtual_: &NamespacedName, entry: &Entry) -> Pair {
        Pair {
            group: family.0.to_string(),
            version: self.version.to_string(),
            kind: family.1.to_string(),
            virtual_: virtual_.clone(),
            host: entry.host.clone(),
        }
    }
}

type Changed = Box<dyn Fn(Pair) + Send + Sync>;

/// The decisions of one virtual cluster.
pub struct Decisions {
    tables: RwLock<BTreeMap<Family, Table>>,
    /// Told of every pair that the store has to hold, or not to hold any more.
    changed: Changed,
}

fn family(kind: &Kind) -> Family {
    (kind.group.clone(), kind.kind.clone())
}

/// Endpoints have the name of their Service, which the host finds them by.
pub(crate) fn deciding(kind: &Kind) -> &Kind {
    if *kind == kind::ENDPOINTS { &kind::SERVICE } else { kind }
}

impl Decisions {
    pub fn new(changed: impl Fn(Pair) + Send + Sync + 'static) -> Decisions {
        Decisions { tables: RwLock::default(), changed: Box::new(changed) }
    }

    /// The name that was decided, if one was.
    pub fn known(&self, kind: &Kind, virtual_: &NamespacedName) -> Option<NamespacedName> {
        let tables = self.tables.read();
        let entry = tables.get(&family(deciding(kind)))?.by_virtual.get(virtual_)?;
        Some(entry.host.clone())
    }

    /// The virtual object that a host name was given to.
    pub fn virtual_of(&self, kind: &Kind, host: &NamespacedName) -> Option<NamespacedName> {
        self.tables.read().get(&family(deciding(kind)))?.by_host.get(host).cloned()
    }

    /// The name of an object: `rule`, or one of `others` when another object has that.
    pub fn decide(
        &self,
        kind: &Kind,
        virtual_: &NamespacedName,
        rule: NamespacedName,
        others: impl Fn(u32) -> NamespacedName,
    ) -> NamespacedName {
        if let Some(known) = self.known(kind, virtual_) {
            return known;
        }
        let family = family(deciding(kind));
        let mut tables = self.tables.write();
        let table = tables.entry(family.clone()).or_default();
        if let Some(known) = table.by_virtual.get(virtual_) {
            return known.host.clone();
        }
        if table.version.is_empty() {
            table.version = deciding(kind).version.clone();
        }
        if table.is_free(&rule) {
            table.insert(virtual_, &rule, false);
            return rule;
        }
        // Hashes: the first one is free but for a collision of those too.
        let host = (0..).map(others).find(|name| table.is_free(name)).unwrap_or(rule);
        table.insert(virtual_, &host, true);
        let pair = table.by_virtual.get(virtual_).map(|entry| table.pair(&family, virtual_, entry));
        drop(tables);
        tracing::info!(kind = %kind.kind, object = %virtual_, %host, "another object has the usual host name");
        pair.into_iter().for_each(&self.changed);
        host
    }

    /// Takes a name over that an object has already. False: it, or the object, has another one.
    pub fn adopt(
        &self,
        group: &str,
        version: &str,
        kind: &str,
        virtual_: &NamespacedName,
        host: &NamespacedName,
    ) -> bool {
        let family: Family = (group.to_owned().into(), kind.to_owned().into());
        let mut tables = self.tables.write();
        let table = tables.entry(family.clone()).or_default();
        if table.version.is_empty() {
            table.version = version.to_owned().into();
        }
        match table.by_virtual.get(virtual_) {
            Some(known) if known.host == *host && known.recorded => return true,
            // Only asked for so far: nothing has that name yet.
            Some(known) if known.host == *host || !known.recorded => drop(table.remove(virtual_)),
            Some(_) => return false,
            None => {}
        }
        if let Some(other) = table.by_host.get(host).cloned() {
            if table.by_virtual.get(&other).is_some_and(|e| e.recorded) {
                return false;
            }
            table.remove(&other);
        }
        table.insert(virtual_, host, true);
        let pair = table.by_virtual.get(virtual_).map(|entry| table.pair(&family, virtual_, entry));
        drop(tables);
        pair.into_iter().for_each(&self.changed);
        true
    }

    /// Both objects exist. False: another virtual object has this host name.
    pub fn record(&self, kind: &Kind, virtual_: &NamespacedName, host: &NamespacedName) -> bool {
        let family = family(kind);
        let mut tables = self.tables.write();
        let table = tables.entry(family.clone()).or_default();
        let mut old = Vec::new();
        if table.version != kind.version {
            // In the store the version is a part of the key.
            let all = table.by_virtual.iter().filter(|(_, e)| e.recorded && !table.version.is_empty());
            old = all.map(|(v, e)| table.pair(&family, v, e)).collect();
            table.version = kind.version.clone();
        }
        let recorded = table.by_virtual.get(virtual_).is_some_and(|e| e.recorded && e.host == *host);
        if !recorded {
            if table.by_host.get(host).is_some_and(|other| other != virtual_) {
                return false;
            }
            table.remove(virtual_);
            table.insert(virtual_, host, true);
        }
        let mut told: Vec<Pair> = Vec::new();
        if !recorded || !old.is_empty() {
            let now = table.by_virtual.iter().filter(|(v, e)| e.recorded && (!old.is_empty() || *v == virtual_));
            told.extend(now.map(|(v, e)| table.pair(&family, v, e)));
        }
        drop(tables);
        old.into_iter().chain(told).for_each(&self.changed);
        true
    }

    /// The object is gone on both sides, and nothing refers to it.
    pub fn forget(&self, group: &str, kind: &str, virtual_: &NamespacedName) {
        let family: Family = (group.to_owned().into(), kind.to_owned().into());
        let mut tables = self.tables.write();
        let Some(table) = tables.get_mut(&family) else { return };
        let Some(entry) = table.remove(virtual_) else { return };
        let pair = entry.recorded.then(|| table.pair(&family, virtual_, &entry));
        if table.by_virtual.is_empty() {
            tables.remove(&family);
        } else if table.by_virtual.capacity() > 64 && table.by_virtual.len() * 4 < table.by_virtual.capacity() {
            table.by_virtual.shrink_to_fit();
            table.by_host.shrink_to_fit();
        }
        drop(tables);
        pair.into_iter().for_each(&self.changed);
    }

    /// What the store has to hold of a virtual object of this group and version and kind, in lower case.
    pub fn recorded(&self, group: &str, version: &str, kind: &str, virtual_: &NamespacedName) -> Option<Pair> {
        let tables = self.tables.read();
        let (family, table) =
            tables.iter().find(|((g, k), t)| g == group && k.to_lowercase() == kind && t.version == version)?;
        let entry = table.by_virtual.get(virtual_).filter(|e| e.recorded)?;
        Some(table.pair(family, virtual_, entry))
    }

    pub fn len(&self) -> usize {
        self.tables.read().values().map(|t| t.by_virtual.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every decision, with whether the store holds it, in order.
    pub fn all(&self) -> Vec<(Pair, bool)> {
        let tables = self.tables.read();
        let mut all: Vec<(Pair, bool)> = Vec::new();
        for (family, table) in tables.iter() {
            all.extend(table.by_virtual.iter().map(|(v, e)| (table.pair(family, v, e), e.recorded)));
        }
        drop(tables);
        let key = |p: &Pair| (p.group.clone(), p.kind.clone(), p.virtual_.clone());
        all.sort_by_cached_key(|(pair, _)| key(pair));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    fn name(text: &str) -> NamespacedName {
        let (namespace, name) = text.split_once('/').unwrap_or(("", text));
        NamespacedName::new(namespace, name)
    }

    fn decisions() -> (Decisions, Arc<Mutex<Vec<Pair>>>) {
        let told: Arc<Mutex<Vec<Pair>>> = Arc::default();
        let log = told.clone();
        (Decisions::new(move |pair| log.lock().push(pair)), told)
    }

    #[test]
    fn a_name_is_one_objects_and_stays_until_it_is_forgotten() {
        let (decisions, told) = decisions();
        let ask = |v: &str, rule: &str| {
            decisions
                .decide(&kind::POD, &name(v), name(rule), |n| name(&format!("{rule}-{v}-{n}").replace('/', ".")))
                .name
        };
        // (asked for, by the rules, answer)
        for (virtual_, rule, want) in [
            ("a/x", "h/one", "one"),
            ("a/x", "h/two", "one"),
            ("b/y", "h/one", "h.one-b.y-0"),
            ("b/y", "h/one", "h.one-b.y-0"),
            ("c/z", "h/two", "two"),
        ] {
            assert_eq!(ask(virtual_, rule), want, "{virtual_} {rule}");
        }
        assert_eq!(told.lock().len(), 1, "the unusual name is kept at once");
        decisions.forget("", "Pod", &name("a/x"));
        assert_eq!(ask("b/y", "h/one"), "h.one-b.y-0", "it keeps its name");
        decisions.forget("", "Pod", &name("b/y"));
        assert_eq!(ask("b/y", "h/one"), "one");
        assert_eq!(decisions.virtual_of(&kind::POD, &name("h/one")), Some(name("b/y")));
        assert_eq!(decisions.virtual_of(&kind::SECRET, &name("h/one")), None, "kinds are apart");
    }

    #[test]
    fn what_is_there_already_keeps_its_name() {
        let (decisions, told) = decisions();
        let pod = |v: &str, h: &str| decisions.adopt("", "v1", "Pod", &name(v), &name(h));
        // Asked for before the store was read.
        decisions.decide(&kind::POD, &name("a/x"), name("h/new"), |_| name("h/other"));
        assert!(pod("a/x", "h/old"));
        assert_eq!(decisions.decide(&kind::POD, &name("a/x"), name("h/new"), |_| name("h/other")), name("h/old"));
        assert!(!pod("a/x", "h/older"), "one name");
        assert!(!pod("b/y", "h/old"), "one object");
        assert!(decisions.record(&kind::POD, &name("a/x"), &name("h/old")));
        assert!(!decisions.record(&kind::POD, &name("b/y"), &name("h/old")));
        assert_eq!(told.lock().len(), 1);
        assert!(decisions.recorded("", "v1", "pod", &name("a/x")).is_some());
        decisions.forget("", "Pod", &name("a/x"));
        assert_eq!(told.lock().len(), 2);
        assert!(decisions.recorded("", "v1", "pod", &name("a/x")).is_none());
    }

    #[test]
    fn endpoints_have_the_name_of_their_service() {
        let (decisions, _) = decisions();
        let of = |kind: &Kind, v: &str| decisions.decide(kind, &name(v), name("h/same"), |_| name("h/other"));
        assert_eq!(of(&kind::SERVICE, "a/x"), name("h/same"));
        assert_eq!(of(&kind::ENDPOINTS, "b/y"), name("h/other"));
        assert_eq!(of(&kind::SERVICE, "b/y"), name("h/other"));
        assert!(decisions.record(&kind::ENDPOINTS, &name("b/y"), &name("h/other")));
        assert_eq!(decisions.all().len(), 3);
    }

    #[test]
    fn a_new_version_of_a_kind_is_another_key() {
        let (decisions, told) = decisions();
        assert!(decisions.adopt("x.io", "v1alpha1", "Thing", &name("a/x"), &name("h/x")));
        told.lock().clear();
        let mut thing = kind::POD.clone();
        (thing.group, thing.version, thing.kind) = ("x.io".into(), "v1".into(), "Thing".into());
        assert!(decisions.record(&thing, &name("a/x"), &name("h/x")));
        let versions: Vec<String> = told.lock().iter().map(|p| p.version.clone()).collect();
        assert_eq!(versions, ["v1alpha1", "v1"]);
    }
}
