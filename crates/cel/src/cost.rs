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
            (op::EQUALS | op::NOT_EQUALS, Val::List(_) | Val::Map(_)) => deep_size(v).saturating_mul(10),
            ("join", Val::List(list)) if i == 0 => list.iter().map(Val::size).fold(0, u64::saturating_add),
            ("lists.range", Val::Int(n)) => (*n).max(0) as u64,
            _ => v.size(),
        })
        .collect();
    let cost = sized_call_cost(function, &sizes, matches!(args.first(), Some(Val::List(_))));
    // Building a list copies it.
    match (function, args) {
        (op::ADD, [Val::List(a), Val::List(b)]) => cost + tenth((a.len() + b.len()) as u64),
        ("lists.range", _) => cost + sizes[0],
        _ => cost,
    }
}

fn deep_size(value: &Val) -> u64 {
    match value {
        Val::List(list) => list.iter().map(deep_size).fold(1, u64::saturating_add),
        Val::Map(map) => map.values().map(deep_size).fold(1, u64::saturating_add),
        other => tenth(other.size()).max(1),
    }
}
