//! The walks over typed values: which fields a value has, how two values differ, and what remains without some fields.
//!
//! Follows: `sigs.k8s.io/structured-merge-diff/typed/{tofieldset,compare,remove,reconcile_schema}.go`.

use std::collections::BTreeMap;

use super::path::{PathElement, equal_values};
use super::set::Set;
use super::typed::{ListAtom, MapAtom, Type, as_list, as_map, list_element};
use crate::json::{Map, Str, Value};

/// The fields that a value specifies: what somebody who applies it will own.
pub fn field_set(ty: Type<'_>, value: &Value) -> Set {
    fields_of(ty, value).1
}

/// Whether the value itself counts as a field, and the fields below it.
fn fields_of(ty: Type<'_>, value: &Value) -> (bool, Set) {
    let atom = ty.resolve().deduce(Some(value));
    let mut set = Set::new();
    if let Some(map) = atom.map {
        if map.atomic {
            return (true, set);
        }
        for (name, item) in value.as_object().into_iter().flat_map(Map::iter) {
            let Some(ty) = map.member(name) else { continue };
            let (own, below) = fields_of(ty, item);
            let step = PathElement::Field(name.clone());
            let empty = item.is_null() || item.as_object().is_some_and(Map::is_empty);
            if own || empty || !map.declares(name) {
                set.insert_member(step.clone());
            }
            set.insert_child(step, below);
        }
        return (false, set);
    }
    if atom.scalar.is_some() {
        return (true, set);
    }
    let Some(list) = atom.list else { return (false, set) };
    if !list.associative {
        return (true, set);
    }
    let elements = value.as_array().into_iter().flatten();
    let mut items: Vec<(PathElement, &Value)> =
        elements.filter_map(|item| Some((list_element(&list, item).ok()?, item))).collect();
    // In the order of the set, so that everything is added at its end.
    items.sort_by(|a, b| a.0.cmp(&b.0));
    for same in items.chunk_by(|a, b| a.0 == b.0) {
        let [(step, item), more @ ..] = same else { continue };
        set.insert_member(step.clone());
        // Duplicates are owned as one thing, without what is in them.
        if more.is_empty() {
            set.insert_child(step.clone(), fields_of(list.element, item).1);
        }
    }
    (false, set)
}

/// How one value differs from another. No field is in more than one of the sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

impl Comparison {
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    fn attach(&mut self, step: &PathElement, own: Own, below: Comparison) {
        if own.removed {
            self.removed.insert_member(step.clone());
        }
        if own.modified {
            self.modified.insert_member(step.clone());
        }
        if own.added {
            self.added.insert_member(step.clone());
        }
        self.removed.insert_child(step.clone(), below.removed);
        self.modified.insert_child(step.clone(), below.modified);
        self.added.insert_child(step.clone(), below.added);
    }
}

/// What is true of a value itself, apart from what is below it.
#[derive(Clone, Copy, Default)]
struct Own {
    removed: bool,
    modified: bool,
    added: bool,
}

/// Compares two values of one type.
pub fn compare(ty: Type<'_>, left: &Value, right: &Value) -> Comparison {
    let mut out = Comparison::default();
    compare_values(ty, Some(left), Some(right), &mut out);
    out
}

fn compare_values(ty: Type<'_>, left: Option<&Value>, right: Option<&Value>, out: &mut Comparison) -> Own {
    let atom = ty.resolve();
    let (left_atom, right_atom) = (atom.deduce(left), atom.deduce(right));
    let mut own = Own::default();
    let leaf = if right.is_none() {
        compare_atom(&left_atom, left, right, out, &mut own)
    } else if left.is_none() || left_atom.same_as(&right_atom) {
        compare_atom(&right_atom, left, right, out, &mut own)
    } else {
        // The value changed its kind: what was there goes, what is there comes.
        compare_atom(&left_atom, left, right, out, &mut own);
        compare_atom(&right_atom, left, right, out, &mut own)
    };
    if !leaf {
        own.added |= left.is_none();
        own.removed |= right.is_none();
    }
    own
}

/// Compares as one kind of value; answers whether the value was compared as a whole.
fn compare_atom(
    atom: &super::typed::Atom<'_>,
    left: Option<&Value>,
    right: Option<&Value>,
    out: &mut Comparison,
    own: &mut Own,
) -> bool {
    let mut whole = || {
        match (left, right) {
            (None, _) => own.added = true,
            (_, None) => own.removed = true,
            (Some(l), Some(r)) => own.modified |= !equal_values(l, r),
        }
        true
    };
    if let Some(map) = &atom.map {
        let (l, r) = (as_map(left), as_map(right));
        if map.atomic || (l.is_none_or(Map::is_empty) && r.is_none_or(Map::is_empty)) {
            return whole();
        }
        compare_members(map, l, r, out);
        return false;
    }
    if atom.scalar.is_some() {
        return whole();
    }
    if let Some(list) = &atom.list {
        let (l, r) = (as_list(left), as_list(right));
        if !list.associative || (l.is_none_or(Vec::is_empty) && r.is_none_or(Vec::is_empty)) {
            return whole();
        }
        // Most lists do not change, and finding elements by key costs more than comparing.
        if l != r {
            compare_elements(list, l.map_or(&[], Vec::as_slice), r.map_or(&[], Vec::as_slice), out);
        }
    }
    false
}

/// Calls `each` for every member of either object, in order of names.
pub(super) fn zip_members<'v>(
    left: Option<&'v Map>,
    right: Option<&'v Map>,
    mut each: impl FnMut(&'v Str, Option<&'v Value>, Option<&'v Value>),
) {
    let mut l = left.into_iter().flat_map(Map::iter).peekable();
    let mut r = right.into_iter().flat_map(Map::iter).peekable();
    loop {
        let order = match (l.peek(), r.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.as_str().cmp(b.as_str()),
        };
        let a = if order.is_le() { l.next() } else { None };
        let b = if order.is_ge() { r.next() } else { None };
        if let Some((name, _)) = a.or(b) {
            each(name, a.map(|(_, v)| v), b.map(|(_, v)| v));
        }
    }
}

fn compare_members(map: &MapAtom<'_>, left: Option<&Map>, right: Option<&Map>, out: &mut Comparison) {
    zip_members(left, right, |name, l, r| {
        let Some(ty) = map.member(name) else { return };
        // Most members do not change.
        if l.is_some() && l == r {
            return;
        }
        let mut below = Comparison::default();
        let own = compare_values(ty, l, r, &mut below);
        if own.added || own.removed || own.modified || !below.is_same() {
            out.attach(&PathElement::Field(name.clone()), own, below);
        }
    });
}

/// How many elements may differ for [`compare_in_place`].
const CHANGED_IN_PLACE_MAX: usize = 4;

/// Compares lists of which few elements changed and none moved; answers whether that is what they are.
fn compare_in_place(list: &ListAtom<'_>, left: &[Value], right: &[Value], out: &mut Comparison) -> bool {
    if left.len() != right.len() || list.keys.is_empty() {
        return false;
    }
    let mut changed: Vec<(PathElement, usize)> = Vec::new();
    for (i, (l, r)) in left.iter().zip(right).enumerate().filter(|(_, (l, r))| l != r) {
        match (list_element(list, l), list_element(list, r)) {
            (Ok(a), Ok(b)) if a == b && changed.len() < CHANGED_IN_PLACE_MAX => changed.push((a, i)),
            _ => return false,
        }
    }
    // An element that is there twice is compared in another way. Elements with other first keys are others.
    let first = &list.keys[0];
    for (i, item) in left.iter().enumerate() {
        let again = changed.iter().any(|(step, at)| {
            *at != i && item.get(first) == left[*at].get(first) && list_element(list, item).is_ok_and(|s| s == *step)
        });
        if again {
            return false;
        }
    }
    changed.sort_by(|a, b| a.0.cmp(&b.0));
    for (step, i) in changed {
        let mut below = Comparison::default();
        let own = compare_values(list.element, Some(&left[i]), Some(&right[i]), &mut below);
        out.attach(&step, own, below);
    }
    true
}

fn compare_elements(list: &ListAtom<'_>, left: &[Value], right: &[Value], out: &mut Comparison) {
    if compare_in_place(list, left, right, out) {
        return;
    }
    let mut pairs: BTreeMap<PathElement, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for item in left {
        if let Ok(step) = list_element(list, item) {
            pairs.entry(step).or_default().0.push(item);
        }
    }
    for item in right {
        if let Ok(step) = list_element(list, item) {
            pairs.entry(step).or_default().1.push(item);
        }
    }
    for (step, (l, r)) in pairs {
        let mut below = Comparison::default();
        let mut own = Own::default();
        match (l.as_slice(), r.as_slice()) {
            ([] | [_], [] | [_]) => {
                own = compare_values(list.element, l.first().copied(), r.first().copied(), &mut below);
            }
            // Duplicates on both sides are one value.
            ([_, _, ..], [_, _, ..]) => {
                own.modified = l.len() != r.len() || l.iter().zip(&r).any(|(a, b)| !equal_values(a, b));
            }
            ([_, _, ..], r) => {
                if let Some(item) = r.first() {
                    own = compare_values(list.element, None, Some(item), &mut below);
                }
                own.removed = true;
            }
            (l, [_, _, ..]) => {
                if let Some(item) = l.first() {
                    own = compare_values(list.element, Some(item), None, &mut below);
                }
                own.added = true;
            }
        }
        out.attach(&step, own, below);
    }
}

/// The value without the fields in `items`. Nothing left is `null`, but what loses only its contents stays, empty.
pub fn remove_items(ty: Type<'_>, value: &Value, items: &Set) -> Value {
    let atom = ty.resolve().deduce(Some(value));
    let below = |ty: Type<'_>, item: &Value, items: &Set| match (remove_items(ty, item, items), item) {
        (Value::Null, Value::Object(_)) => Value::object(),
        (Value::Null, Value::Array(_)) => Value::Array(Vec::new()),
        (rest, _) => rest,
    };
    if let Some(map) = atom.map {
        // What is atomic goes as a whole.
        if map.atomic {
            return Value::Null;
        }
        let mut out = Map::new();
        let mut entered = false;
        for (name, item) in value.as_object().into_iter().flat_map(Map::iter) {
            let step = PathElement::Field(name.clone());
            if items.has_member(&step) {
                continue;
            }
            let kept = match (items.child(&step).filter(|s| !s.is_empty()), map.member(name)) {
                (Some(inside), Some(ty)) => {
                    entered = true;
                    below(ty, item, inside)
                }
                _ => item.clone(),
            };
            out.insert(name.clone(), kept);
        }
        return if out.is_empty() && !entered { Value::Null } else { Value::Object(out) };
    }
    if atom.scalar.is_some() {
        return value.clone();
    }
    let Some(list) = atom.list else { return Value::Null };
    if !list.associative {
        return Value::Null;
    }
    let mut out = Vec::new();
    for item in value.as_array().into_iter().flatten() {
        let Ok(step) = list_element(&list, item) else {
            out.push(item.clone());
            continue;
        };
        if items.has_member(&step) {
            continue;
        }
        out.push(match items.child(&step).filter(|s| !s.is_empty()) {
            Some(inside) => below(list.element, item, inside),
            None => item.clone(),
        });
    }
    if out.is_empty() { Value::Null } else { Value::Array(out) }
}

/// Brings a stored field set in line with the schema: where the type has become atomic since, the owner of parts owns
/// the whole. `None` when nothing changes.
pub fn reconcile(ty: Type<'_>, set: &Set) -> Option<Set> {
    let mut walk = Reconcile::default();
    walk.visit(ty, set, &mut Vec::new());
    if walk.whole.is_empty() {
        return None;
    }
    let mut atomic = Set::new();
    walk.whole.iter().for_each(|path| atomic.insert(path));
    Some(set.recursive_difference(&atomic).union(&atomic))
}

#[derive(Default)]
struct Reconcile {
    /// Paths that are to be owned as a whole.
    whole: Vec<Vec<PathElement>>,
}

impl Reconcile {
    /// Looks below a path of which parts are owned.
    fn visit(&mut self, ty: Type<'_>, below: &Set, path: &mut Vec<PathElement>) {
        let atom = ty.resolve();
        if let Some(map) = atom.map {
            if map.is_deduced() {
                return;
            }
            if map.atomic {
                self.whole.push(path.clone());
                return;
            }
            self.steps(below, path, |step| match step {
                PathElement::Field(name) => map.member(name),
                _ => map.element,
            });
        } else if atom.scalar.is_none()
            && let Some(list) = atom.list
        {
            if !list.associative {
                self.whole.push(path.clone());
                return;
            }
            self.steps(below, path, |_| Some(list.element));
        }
    }

    fn steps<'a>(&mut self, set: &Set, path: &mut Vec<PathElement>, member: impl Fn(&PathElement) -> Option<Type<'a>>) {
        for (step, below) in &set.children {
            if let Some(ty) = member(step) {
                path.push(step.clone());
                self.visit(ty, below, path);
                path.pop();
            }
        }
    }
}
