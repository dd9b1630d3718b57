//! The merge of an applied object into a stored one: the applied value wins, lists merge by key and keep an order that
//! fits both.
//!
//! Follows: `sigs.k8s.io/structured-merge-diff/typed/merge.go`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::path::PathElement;
use super::typed::{Atom, ListAtom, MapAtom, Type, as_list, as_map, list_element};
use super::walk::zip_members;
use crate::json::{Map, Value};

/// Merges `right` into `left`. Duplicates in `right` must have been refused before.
pub fn merge(ty: Type<'_>, left: &Value, right: &Value) -> Value {
    merge_values(ty, Some(left), Some(right)).unwrap_or_default()
}

fn merge_values(ty: Type<'_>, left: Option<&Value>, right: Option<&Value>) -> Option<Value> {
    let atom = ty.resolve();
    // A value that changes its kind is what it is on the right.
    let deduced = if right.is_none() { atom.deduce(left) } else { atom.deduce(right) };
    merge_atom(&deduced, left, right)
}

fn merge_atom(atom: &Atom<'_>, left: Option<&Value>, right: Option<&Value>) -> Option<Value> {
    let whole = || right.or(left).cloned();
    if let Some(map) = &atom.map {
        let (l, r) = (as_map(left), as_map(right));
        if map.atomic || (l.is_none_or(Map::is_empty) && r.is_none_or(Map::is_empty)) {
            return whole();
        }
        return merge_members(map, l, r);
    }
    if atom.scalar.is_some() {
        return whole();
    }
    let list = atom.list.as_ref()?;
    let (l, r) = (as_list(left), as_list(right));
    if !list.associative || (l.is_none_or(Vec::is_empty) && r.is_none_or(Vec::is_empty)) {
        return whole();
    }
    merge_elements(list, l.map_or(&[], Vec::as_slice), r.map_or(&[], Vec::as_slice))
}

fn merge_members(map: &MapAtom<'_>, left: Option<&Map>, right: Option<&Map>) -> Option<Value> {
    let mut out = Map::with_capacity(left.map_or(0, Map::len).max(right.map_or(0, Map::len)));
    zip_members(left, right, |name, l, r| {
        let merged = match map.member(name) {
            Some(ty) => merge_values(ty, l, r),
            None => r.or(l).cloned(),
        };
        if let Some(value) = merged {
            out.insert(name.clone(), value);
        }
    });
    (!out.is_empty()).then_some(Value::Object(out))
}

/// The elements of a list with how each is found again; elements that cannot be are left out.
fn index<'v>(list: &ListAtom<'_>, items: &'v [Value]) -> Vec<(PathElement, &'v Value)> {
    items.iter().filter_map(|item| Some((list_element(list, item).ok()?, item))).collect()
}

/// Whether no element is there twice.
fn all_differ(items: &[(PathElement, &Value)]) -> bool {
    let mut steps: Vec<&PathElement> = items.iter().map(|(step, _)| step).collect();
    steps.sort();
    steps.windows(2).all(|pair| pair[0] != pair[1])
}

/// Weaves two lists: elements of the right keep their order; an element that is only on the left stays before the next
/// shared one, as it was.
fn merge_elements(list: &ListAtom<'_>, left: &[Value], right: &[Value]) -> Option<Value> {
    static NULL: Value = Value::Null;
    let (left, right) = (index(list, left), index(list, right));
    // Most applies name the same elements in the same order.
    let same_order = left.len() == right.len() && left.iter().zip(&right).all(|(l, r)| l.0 == r.0);
    if same_order && all_differ(&left) {
        let merged = left.iter().zip(&right).filter_map(|(l, r)| merge_values(list.element, Some(l.1), Some(r.1)));
        let out: Vec<Value> = merged.collect();
        return (!out.is_empty()).then_some(Value::Array(out));
    }
    let mut on_left: BTreeMap<&PathElement, &Value> = BTreeMap::new();
    for (step, item) in &left {
        // Duplicates are not merged with: the applied element replaces them.
        on_left.entry(step).and_modify(|v| *v = &NULL).or_insert(*item);
    }
    let on_right: BTreeMap<&PathElement, &Value> = right.iter().map(|(step, item)| (step, *item)).collect();
    let mut shared: VecDeque<&PathElement> =
        right.iter().map(|(step, _)| step).filter(|step| on_left.contains_key(step)).collect();
    let mut next_shared = shared.pop_front();
    let mut merged: BTreeSet<&PathElement> = BTreeSet::new();
    let mut out = Vec::with_capacity(left.len().max(right.len()));
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if l < left.len() && r < right.len() {
            let step = &left[l].0;
            if *step == right[r].0 {
                merged.insert(step);
                out.extend(merge_values(list.element, on_left.get(step).copied(), on_right.get(step).copied()));
                l += 1;
                r += 1;
                next_shared = shared.pop_front();
                continue;
            }
            if on_right.contains_key(step) && next_shared.is_some_and(|next| next != step) {
                // Shared, but its turn comes later.
                l += 1;
                continue;
            }
        }
        if l < left.len() {
            let (step, item) = &left[l];
            if !on_right.contains_key(step) {
                out.extend(merge_values(list.element, Some(item), None));
                l += 1;
                continue;
            }
            if merged.contains(step) {
                l += 1;
            }
        }
        if r < right.len() {
            let step = &right[r].0;
            merged.insert(step);
            out.extend(merge_values(list.element, on_left.get(step).copied(), on_right.get(step).copied()));
            r += 1;
            if next_shared == Some(step) {
                next_shared = shared.pop_front();
            }
        }
    }
    (!out.is_empty()).then_some(Value::Array(out))
}
