//! Sets of fields: which paths of an object somebody owns, changed or resets.
//!
//! A set is a tree. `members` are the steps that are in the set at this level, `children` the sets below a step; a step
//! can be in both. Both lists are sorted and hold each step once; children are not empty.
//!
//! Follows: `sigs.k8s.io/structured-merge-diff/fieldpath.Set`.

use std::cmp::Ordering;

use super::path::{ParseElementError, PathElement};
use super::typed::Type;
use crate::json::{Map, Value};

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub(super) members: Vec<PathElement>,
    pub(super) children: Vec<(PathElement, Set)>,
}

/// Why a stored field set cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeSetError {
    #[error("parsing key as path element: {0}")]
    Element(#[from] ParseElementError),
    #[error("a field set must consist of objects")]
    NotAnObject,
}

/// Calls `each` with the elements of two sorted lists side by side.
fn zip<A, B>(
    mut a: &[A],
    mut b: &[B],
    compare: impl Fn(&A, &B) -> Ordering,
    mut each: impl FnMut(Option<&A>, Option<&B>),
) {
    loop {
        let order = match (a.first(), b.first()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(x), Some(y)) => compare(x, y),
        };
        let (left, right) = (a.first().filter(|_| order.is_le()), b.first().filter(|_| order.is_ge()));
        each(left, right);
        if left.is_some() {
            a = &a[1..];
        }
        if right.is_some() {
            b = &b[1..];
        }
    }
}

impl Set {
    pub const fn new() -> Self {
        Set { members: Vec::new(), children: Vec::new() }
    }

    /// The set of these paths of field names.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Set::new();
        for path in paths {
            let path: Vec<PathElement> = path.iter().map(|name| PathElement::field(name)).collect();
            set.insert(&path);
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.iter().all(|(_, child)| child.is_empty())
    }

    /// How many paths are in the set.
    pub fn len(&self) -> usize {
        self.members.len() + self.children.iter().map(|(_, child)| child.len()).sum::<usize>()
    }

    /// Adds a path; the empty path is never in a set.
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => self.insert_member(last.clone()),
            [first, rest @ ..] => {
                let i = match self.child_index(first) {
                    Ok(i) => i,
                    Err(i) => {
                        self.children.insert(i, (first.clone(), Set::new()));
                        i
                    }
                };
                self.children[i].1.insert(rest);
            }
        }
    }

    pub(super) fn insert_member(&mut self, step: PathElement) {
        // Walks go in order mostly: look at the end first.
        if self.members.last().is_none_or(|last| *last < step) {
            self.members.push(step);
        } else if let Err(i) = self.members.binary_search(&step) {
            self.members.insert(i, step);
        }
    }

    /// Adds everything in `child` below `step`.
    pub(super) fn insert_child(&mut self, step: PathElement, child: Set) {
        if child.is_empty() {
            return;
        }
        match self.child_index(&step) {
            Ok(i) => self.children[i].1 = self.children[i].1.union(&child),
            Err(i) => self.children.insert(i, (step, child)),
        }
    }

    fn child_index(&self, step: &PathElement) -> Result<usize, usize> {
        match self.children.last() {
            None => Err(0),
            Some((last, _)) if last < step => Err(self.children.len()),
            Some(_) => self.children.binary_search_by(|(s, _)| s.cmp(step)),
        }
    }

    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.has_member(last),
            [first, rest @ ..] => self.child(first).is_some_and(|child| child.has(rest)),
        }
    }

    pub(super) fn has_member(&self, step: &PathElement) -> bool {
        self.members.binary_search(step).is_ok()
    }

    /// What is in the set below `step`.
    pub fn child(&self, step: &PathElement) -> Option<&Set> {
        self.child_index(step).ok().map(|i| &self.children[i].1)
    }

    pub fn union(&self, other: &Set) -> Set {
        let mut out = Set::new();
        zip(&self.members, &other.members, Ord::cmp, |a, b| out.members.extend(a.or(b).cloned()));
        zip(
            &self.children,
            &other.children,
            |a, b| a.0.cmp(&b.0),
            |a, b| match (a, b) {
                (Some((step, a)), Some((_, b))) => out.children.push((step.clone(), a.union(b))),
                (one, two) => out.children.extend(one.or(two).cloned()),
            },
        );
        out
    }

    pub fn intersection(&self, other: &Set) -> Set {
        let mut out = Set::new();
        zip(&self.members, &other.members, Ord::cmp, |a, b| {
            if let (Some(a), Some(_)) = (a, b) {
                out.members.push(a.clone());
            }
        });
        zip(
            &self.children,
            &other.children,
            |a, b| a.0.cmp(&b.0),
            |a, b| {
                if let (Some((step, a)), Some((_, b))) = (a, b) {
                    let both = a.intersection(b);
                    if !both.is_empty() {
                        out.children.push((step.clone(), both));
                    }
                }
            },
        );
        out
    }

    /// Whether every path of this set is in `other`.
    pub fn is_subset(&self, other: &Set) -> bool {
        let mut all = true;
        zip(&self.members, &other.members, Ord::cmp, |a, b| all &= a.is_none() || b.is_some());
        if all {
            zip(
                &self.children,
                &other.children,
                |a, b| a.0.cmp(&b.0),
                |a, b| match (a, b) {
                    (Some((_, a)), Some((_, b))) => all = all && a.is_subset(b),
                    (Some((_, a)), None) => all &= a.is_empty(),
                    (None, _) => {}
                },
            );
        }
        all
    }

    /// The paths of this set that are not in `other`. What is below a path in `other` stays.
    pub fn difference(&self, other: &Set) -> Set {
        self.minus(other, false)
    }

    /// The paths of this set that are neither in `other` nor below a path in `other`.
    pub fn recursive_difference(&self, other: &Set) -> Set {
        self.minus(other, true)
    }

    fn minus(&self, other: &Set, recursive: bool) -> Set {
        let mut out = Set::new();
        zip(&self.members, &other.members, Ord::cmp, |a, b| {
            if let (Some(a), None) = (a, b) {
                out.members.push(a.clone());
            }
        });
        zip(
            &self.children,
            &other.children,
            |a, b| a.0.cmp(&b.0),
            |a, b| {
                let Some((step, a)) = a else { return };
                if recursive && other.has_member(step) {
                    return;
                }
                let rest = match b {
                    Some((_, b)) => a.minus(b, recursive),
                    None => a.clone(),
                };
                if !rest.is_empty() {
                    out.children.push((step.clone(), rest));
                }
            },
        );
        out
    }

    /// Adds every declared field that only has children as a member too, so that removing by this set removes it.
    pub(super) fn with_named_fields(&self, ty: Option<Type<'_>>) -> Set {
        let atom = ty.map(Type::resolve);
        let map = atom.and_then(|a| a.map);
        let mut out = Set { members: self.members.clone(), children: Vec::with_capacity(self.children.len()) };
        for (step, child) in &self.children {
            let below = match step {
                PathElement::Field(name) => {
                    if map.is_some_and(|m| m.declares(name)) {
                        out.insert_member(step.clone());
                    }
                    map.and_then(|m| m.member(name))
                }
                PathElement::Key(_) => atom.and_then(|a| a.list).map(|l| l.element),
                _ => None,
            };
            out.children.push((step.clone(), child.with_named_fields(below)));
        }
        out
    }

    /// All paths: at each level first the members, then what is below.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<PathElement>, out: &mut Vec<Vec<PathElement>>) {
        for member in &self.members {
            let mut path = prefix.clone();
            path.push(member.clone());
            out.push(path);
        }
        for (step, child) in &self.children {
            prefix.push(step.clone());
            child.collect(prefix, out);
            prefix.pop();
        }
    }

    /// The set in the form of `fieldsV1`.
    pub fn to_fields_v1(&self) -> Value {
        self.fields_v1(false)
    }

    /// `own`: the step that leads here is in the set itself.
    fn fields_v1(&self, own: bool) -> Value {
        let mut out = Map::with_capacity(self.members.len() + self.children.len() + 1);
        if own {
            out.insert(".", Value::object());
        }
        zip(
            &self.members,
            &self.children,
            |member, (step, _)| member.cmp(step),
            |member, child| match (member, child) {
                (member, Some((step, child))) => {
                    out.insert(step.to_key(), child.fields_v1(member.is_some() && !child.is_empty()));
                }
                (Some(member), None) => {
                    out.insert(member.to_key(), Value::object());
                }
                (None, None) => {}
            },
        );
        out.into()
    }

    /// Reads `fieldsV1`. Unknown kinds of steps are skipped.
    pub fn from_fields_v1(fields: &Value) -> Result<Set, DecodeSetError> {
        Ok(read(fields)?.0.unwrap_or_default())
    }
}

/// The set below a step, and whether the step itself is a member.
fn read(fields: &Value) -> Result<(Option<Set>, bool), DecodeSetError> {
    let members = match fields {
        Value::Object(members) => members,
        Value::Null => return Ok((None, true)),
        _ => return Err(DecodeSetError::NotAnObject),
    };
    let mut set: Option<Set> = None;
    let mut is_member = false;
    for (key, content) in members.iter() {
        if key == "." {
            is_member = true;
            continue;
        }
        let Some(step) = PathElement::from_key(key)? else { continue };
        let (child, child_is_member) = read(content)?;
        if child_is_member {
            set.get_or_insert_default().insert_member(step.clone());
        }
        if let Some(child) = child {
            let set = set.get_or_insert_default();
            match set.child_index(&step) {
                Ok(i) => set.children[i].1 = child,
                Err(i) => set.children.insert(i, (step, child)),
            }
        }
    }
    let is_member = is_member || set.is_none();
    Ok((set, is_member))
}

/// Which fields a write may own: what the resource's strategy resets is not owned by whoever sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Everything but these fields and what is below them.
    Exclude(Set),
    /// Only what starts with one of these patterns; `None` matches any step.
    Include(Vec<Vec<Option<PathElement>>>),
}

impl Filter {
    pub fn apply(&self, set: &Set) -> Set {
        match self {
            Filter::Exclude(exclude) => set.recursive_difference(exclude),
            Filter::Include(patterns) => {
                let patterns: Vec<&[Option<PathElement>]> = patterns.iter().map(Vec::as_slice).collect();
                include(set, &patterns)
            }
        }
    }
}

fn include(set: &Set, patterns: &[&[Option<PathElement>]]) -> Set {
    if patterns.iter().any(|p| p.is_empty()) {
        return set.clone();
    }
    let matching = |step: &PathElement| -> Vec<&[Option<PathElement>]> {
        patterns.iter().filter(|p| p[0].as_ref().is_none_or(|s| s == step)).map(|p| &p[1..]).collect()
    };
    let mut out = Set::new();
    out.members.extend(set.members.iter().filter(|m| !matching(m).is_empty()).cloned());
    for (step, child) in &set.children {
        let below = matching(step);
        if !below.is_empty() {
            let kept = include(child, &below);
            if !kept.is_empty() {
                out.children.push((step.clone(), kept));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json;

    fn set(fields: Value) -> Set {
        Set::from_fields_v1(&fields).expect("a valid field set")
    }

    #[test]
    fn field_sets_round_trip() {
        for fields in [
            json!({}),
            json!({"f:data": {".": {}, "f:k": {}}}),
            json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}}}),
            json!({"f:metadata": {"f:finalizers": {".": {}, "v:\"a/b\"": {}}}}),
        ] {
            assert_eq!(set(fields.clone()).to_fields_v1(), fields);
        }
        assert_eq!(set(json!({"x:y": {}, "f:a": null})).to_fields_v1(), json!({"f:a": {}}));
        assert!(Set::from_fields_v1(&json!({"f:a": 1})).is_err());
        assert!(Set::from_fields_v1(&json!({"a": {}})).is_err());
    }

    #[test]
    fn differences_look_below_only_when_recursive() {
        let a = set(json!({"f:status": {".": {}, "f:x": {}}, "f:spec": {"f:y": {}}}));
        let status = Set::of_fields(&[&["status"]]);
        assert_eq!(a.difference(&status), set(json!({"f:status": {"f:x": {}}, "f:spec": {"f:y": {}}})));
        assert_eq!(a.recursive_difference(&status), set(json!({"f:spec": {"f:y": {}}})));
    }

    #[test]
    fn include_filters_keep_what_starts_with_a_pattern() {
        let filter = Filter::Include(vec![vec![
            Some(PathElement::field("spec")),
            Some(PathElement::field("containers")),
            None,
            Some(PathElement::field("resources")),
        ]]);
        let a = set(json!({"f:metadata": {"f:labels": {}}, "f:spec": {"f:containers": {
            "k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:resources": {"f:limits": {}}}}}}));
        assert_eq!(
            filter.apply(&a),
            set(
                json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:resources": {"f:limits": {}}}}}})
            )
        );
    }

    /// Sets over a small alphabet, so that they overlap.
    fn any_set() -> impl Strategy<Value = Set> {
        let step = prop_oneof![
            (0..3i64).prop_map(|i| PathElement::field(&format!("f{i}"))),
            (0..2i64).prop_map(|i| PathElement::Value(i.into())),
            (0..2i64).prop_map(|i| PathElement::Key(vec![("k".into(), i.into())])),
        ];
        prop::collection::vec(prop::collection::vec(step, 1..4), 0..8).prop_map(|paths| {
            let mut set = Set::new();
            paths.iter().for_each(|p| set.insert(p));
            set
        })
    }

    proptest! {
        #[test]
        fn set_operations_obey_set_laws(a in any_set(), b in any_set()) {
            prop_assert_eq!(a.union(&b), b.union(&a));
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.difference(&b).intersection(&b).is_empty());
            prop_assert_eq!(a.is_subset(&b), a.difference(&b).is_empty());
            prop_assert!(a.is_subset(&a.union(&b)));
            prop_assert_eq!(a.union(&a), a.clone());
            prop_assert_eq!(a.union(&b).len() + a.intersection(&b).len(), a.len() + b.len());
            prop_assert_eq!(Set::from_fields_v1(&a.to_fields_v1()), Ok(a.clone()));
            for path in a.paths() {
                prop_assert!(a.has(&path));
                prop_assert!(!a.recursive_difference(&b).has(&path) || !b.has(&path));
            }
        }
    }
}
