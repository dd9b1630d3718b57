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

/// The cost of calling `function` with arguments of these sizes.
fn sized_call_cost(function: &str, sizes: &[u64], first_is_list: bool) -> u64 {
    let size = |i: usize| sizes.get(i).copied().unwrap_or(1);
    match function {
        op::EQUALS | op::NOT_EQUALS | op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS => {
            tenth(size(0).min(size(1))).max(1)
        }
        op::ADD if first_is_list => 1,
        op::ADD => tenth(size(0).saturating_add(size(1))).max(1),
        op::IN => size(1).max(1),
        "matches" => tenth(size(0) + 1).saturating_mul(quarter(size(1))).max(1),
        "find" | "findAll" => tenth(size(0) + 1).saturating_mul(quarter(size(1))).max(1),
        "contains" => tenth(size(0)).saturating_mul(tenth(size(1))).max(1),
        "startsWith" | "endsWith" => tenth(size(1)).max(1),
        "indexOf" | "lastIndexOf" if !first_is_list => tenth(size(0)).saturating_mul(tenth(size(1))).max(1),
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" | "reverse" | "flatten" | "slice" => {
            size(0).max(1)
        }
        "distinct" | "sort" => size(0).saturating_mul(size(0)).max(1),
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)).max(1),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2).max(1),
        "lists.range" => 10,
        "string"
        | "bytes"
        | "url"
        | "isURL"
        | "ip"
        | "isIP"
        | "cidr"
        | "isCIDR"
        | "ip.isCanonical"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "charAt"
        | "join"
        | "split"
        | "replace"
        | "format"
        | "strings.quote"
        | "jsonpatch.escapeKey" => tenth(size(0)).max(1),
        "validate" => tenth(size(1)).saturating_mul(15).max(1),
        "check" => 350_000,
        _ => 1,
    }
}

/// The cost of a call with these values.
pub(crate) fn call_cost(function: &str, args: &[Val]) -> u64 {
    let sizes: Vec<u64> = args
        .iter()
        .enumerate()
        .map(|(i, v)| match (function, v) {
            // Comparing lists looks into their elements.
            (op::EQUALS | op::NOT_EQUALS, Val::List(_) | Val::Map(_) | Val::Optional(_)) => {
                deep_size(v).saturating_mul(10)
            }
            ("join", Val::List(list)) if i == 0 => list.iter().map(Val::size).fold(0, u64::saturating_add),
            ("lists.range", Val::Int(n)) => (*n).max(0) as u64,
            _ => v.size(),
        })
        .collect();
    let cost = sized_call_cost(function, &sizes, matches!(args.first(), Some(Val::List(_))));
    let more = match (function, args) {
        // Building a list copies it.
        (op::ADD, [Val::List(a), Val::List(b)]) => tenth((a.len() + b.len()) as u64),
        ("lists.range", _) => sizes[0],
        // These compare the elements of lists, which may hold lists.
        (
            op::IN | "indexOf" | "lastIndexOf" | "distinct" | "sets.contains" | "sets.intersects" | "sets.equivalent",
            [_, ..],
        ) => nested_cost(args),
        // The result may be much larger than what it is made of.
        ("replace", [_, Val::String(old), Val::String(new), ..]) => {
            let times = match old.chars().count() as u64 {
                0 => sizes[0].saturating_add(1),
                length => sizes[0] / length,
            };
            large_cost(times.saturating_mul(new.len() as u64))
        }
        ("join", [Val::List(list), Val::String(separator)]) => {
            large_cost((list.len() as u64).saturating_mul(separator.len() as u64))
        }
        ("format", [_, Val::List(values)]) => {
            large_cost(values.iter().map(deep_size).fold(0, u64::saturating_add).saturating_mul(10))
        }
        _ => 0,
    };
    cost.saturating_add(more)
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
