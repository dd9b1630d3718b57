//! What expressions cost while they run. What they may cost at worst is in [`crate::estimate`].
//!
//! A unit is one step. Functions that look at all of a string pay a tenth of its length, those that look at all of a list its
//! length.
//!
//! Follows: cel-go `interpreter/runtimecost.go`; `k8s.io/apiserver/pkg/cel/library/cost.go`.

use crate::ast::op;
use crate::value::Val;

fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

fn quarter(size: u64) -> u64 {
    size.div_ceil(4)
}

/// What functions that make lists cost besides what they go through.
const LIST_CALL: u64 = 11;
/// Of an expression of a named format. Source: `Format.MaxRegexSize`.
const FORMAT_REGEX_SIZE: u64 = 128;

/// The cost of a search for a pattern.
fn pattern_cost(text: u64, pattern: u64) -> u64 {
    tenth(text + 1).saturating_mul(quarter(pattern))
}

/// Each element with each other one.
fn pairs_cost(elements: &Val) -> u64 {
    let pairs = elements.size().saturating_mul(elements.size());
    let by_text = matches!(elements, Val::List(list) if matches!(list.first(), Some(Val::String(_) | Val::Bytes(_))));
    // Texts cost a tenth more.
    let extra = if by_text { pairs / 10 } else { 0 };
    pairs.saturating_mul(2).saturating_add(extra).saturating_add(LIST_CALL)
}

/// The cost of calling `function` with these values, as upstream counts it.
fn counted_cost(function: &str, args: &[Val]) -> u64 {
    let size = |i: usize| args.get(i).map_or(1, Val::size);
    let text = matches!(args.first(), Some(Val::String(_) | Val::Bytes(_)));
    match function {
        op::EQUALS if matches!(args.first(), Some(Val::Opaque(_))) => 1,
        op::EQUALS | op::NOT_EQUALS => tenth(size(0).min(size(1))),
        op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS if text => tenth(size(0).min(size(1))),
        op::ADD if text => tenth(size(0).saturating_add(size(1))),
        op::IN if matches!(args.get(1), Some(Val::List(_))) => size(1),
        "matches" | "find" | "findAll" => pattern_cost(size(0), size(1)),
        "contains" => tenth(size(0)).saturating_mul(tenth(size(1))),
        "startsWith" | "endsWith" | "strings.quote" | "format" => tenth(size(0)),
        "string" if matches!(args.first(), Some(Val::Bytes(_))) => tenth(size(0)),
        "bytes" if matches!(args.first(), Some(Val::String(_))) => tenth(size(0)),
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" => match args.first() {
            Some(Val::String(_) | Val::Bytes(_)) => tenth(size(0)),
            Some(Val::List(list)) => match list.first() {
                // Elements are gone through as well.
                Some(Val::String(_) | Val::Bytes(_)) => {
                    list.iter().map(|v| tenth(v.size())).fold(0, u64::saturating_add)
                }
                _ => size(0),
            },
            _ => 1,
        },
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => tenth(size(0)),
        "ip" if text => tenth(size(0)),
        "replace" | "split" | "ip.isCanonical" => tenth(size(0).saturating_mul(2)),
        "join" => tenth(joined_size(args).saturating_mul(2)),
        "containsIP" | "containsCIDR" => {
            let network = size(0);
            let mask = if function == "containsCIDR" { tenth(network) + 1 } else { 0 };
            let parsed = if matches!(args.get(1), Some(Val::String(_))) { tenth(size(1)) } else { 0 };
            tenth(network.saturating_mul(2)) + mask + parsed
        }
        "validate" => pattern_cost(size(1), FORMAT_REGEX_SIZE),
        "slice" => match args {
            [_, Val::Int(from), Val::Int(to)] if *from >= 0 && from <= to && *to as u64 <= size(0) => {
                LIST_CALL.saturating_add(from.abs_diff(*to))
            }
            _ => 1,
        },
        "reverse" => size(0).saturating_add(LIST_CALL),
        "lists.range" => match args {
            [Val::Int(n)] => LIST_CALL.saturating_add(u64::try_from(*n).unwrap_or(0)),
            _ => 1,
        },
        "flatten" => {
            let depth = match args.get(1) {
                Some(Val::Int(depth)) => u64::try_from(*depth).unwrap_or(0),
                _ => 1,
            };
            size(0).saturating_mul(depth).saturating_add(LIST_CALL)
        }
        "distinct" | "sort" => args.first().map_or(1, pairs_cost),
        "@sortByAssociatedKeys" => args.get(1).map_or(1, pairs_cost),
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)).saturating_add(1),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2).saturating_add(1),
        "fieldSelector" | "labelSelector" => tenth(size(1)).saturating_mul(LABEL_SELECTOR_FACTOR).max(1),
        "check" => 350_000,
        _ => 1,
    }
}

/// How often a selector's text is gone through.
const LABEL_SELECTOR_FACTOR: u64 = 1;

/// How long the result of `join` is.
fn joined_size(args: &[Val]) -> u64 {
    let Some(Val::List(list)) = args.first() else { return 0 };
    let separator = args.get(1).map_or(0, Val::size);
    let texts = list.iter().map(Val::size).fold(0, u64::saturating_add);
    texts.saturating_add(separator.saturating_mul((list.len() as u64).saturating_sub(1)))
}

/// The cost of a call with these values: what upstream counts, and more for what is larger than it looks, so that no
/// budget pays for more than can be held.
pub(crate) fn call_cost(function: &str, args: &[Val]) -> u64 {
    let more = match (function, args) {
        (op::EQUALS | op::NOT_EQUALS, [a @ (Val::List(_) | Val::Map(_) | Val::Optional(_)), b]) => {
            large_cost(deep_size(a).min(deep_size(b)))
        }
        (op::ADD, [Val::List(a), Val::List(b)]) => large_cost((a.len() as u64).saturating_add(b.len() as u64)),
        // These compare the elements of lists, which may hold lists.
        (
            op::IN | "indexOf" | "lastIndexOf" | "distinct" | "sets.contains" | "sets.intersects" | "sets.equivalent",
            [_, ..],
        ) => large_cost(nested_cost(args)),
        // The result may be much larger than what it is made of.
        ("replace", [_, Val::String(old), Val::String(new), ..]) => {
            let times = match old.chars().count() as u64 {
                0 => args[0].size().saturating_add(1),
                length => args[0].size() / length,
            };
            large_cost(times.saturating_mul(new.len() as u64))
        }
        ("format", [_, Val::List(values)]) => {
            large_cost(values.iter().map(deep_size).fold(0, u64::saturating_add).saturating_mul(10))
        }
        _ => 0,
    };
    counted_cost(function, args).saturating_add(more)
}

/// What a large text costs beyond what upstream counts, so that no budget pays for more than can be held.
fn large_cost(characters: u64) -> u64 {
    const LARGE: u64 = 100_000;
    if characters > LARGE { characters } else { 0 }
}

/// What comparing elements costs when they are lists themselves.
fn nested_cost(args: &[Val]) -> u64 {
    let nested = |value: &Val| match value {
        Val::List(list) => list.iter().any(|v| matches!(v, Val::List(_) | Val::Map(_))),
        Val::Map(_) => true,
        _ => false,
    };
    if !args.iter().any(nested) {
        return 0;
    }
    let sizes = args.iter().map(|v| v.size().max(1));
    let most = sizes.max().unwrap_or(1);
    args.iter().map(deep_size).fold(0, u64::saturating_add).saturating_mul(most)
}

/// How many parts are counted: whatever has more is beyond every budget. Parts that are shared count as often as they are
/// reached, and a short expression can make 2^50 of them.
const PARTS_MAX: u64 = 1_000_000;

/// How many parts a value has, with the parts of its parts; [`u64::MAX`] for more than can be dealt with.
pub(crate) fn deep_size(value: &Val) -> u64 {
    let mut left = PARTS_MAX;
    match measure(value, &mut left) {
        true => PARTS_MAX - left,
        false => u64::MAX,
    }
}

/// Takes the parts of a value from `left`; false when there are more.
fn measure(value: &Val, left: &mut u64) -> bool {
    let own = match value {
        Val::List(_) | Val::Map(_) | Val::Optional(_) => 1,
        other => tenth(other.size()).max(1),
    };
    let Some(rest) = left.checked_sub(own) else { return false };
    *left = rest;
    match value {
        Val::List(list) => list.iter().all(|v| measure(v, left)),
        Val::Map(map) => map.values().all(|v| measure(v, left)),
        Val::Optional(Some(inner)) => measure(inner, left),
        _ => true,
    }
}
