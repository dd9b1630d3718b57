//! Unified differences of two texts, for messages about changes that are not allowed.
//!
//! Follows: Python's `difflib`, which upstream's Go library is a translation of: longest common runs of lines, then
//! the same to their left and right; frequent lines of long texts are not looked for.

use std::collections::HashMap;

use crate::json::Value;
use crate::schema::internal;

const CONTEXT: usize = 3;

/// From this many lines on, lines that make up more than a hundredth are not matched by themselves.
const LONG: usize = 200;

/// Comparisons after which no more common runs are looked for: what is left shows as changed. Upstream goes on, for as long as the
/// square of the lines takes; a pod of a few megabytes must not keep a server busy for minutes.
const STEPS_MAX: usize = 400_000;

/// What became of lines `a.0..a.1` of the first text: lines `b.0..b.1` of the second.
#[derive(Clone, Copy)]
struct Change {
    equal: bool,
    a: (usize, usize),
    b: (usize, usize),
}

/// The difference of two structures of `core/v1`, printed as upstream's own.
pub(crate) fn of(name: &str, old: &Value, new: &Value) -> String {
    match internal::core(name) {
        Some(ty) => unified(&internal::pretty(old, ty), &internal::pretty(new, ty)),
        None => String::new(),
    }
}

/// The difference of the sources of two persistent volumes.
pub(crate) fn of_sources(old: &Value, new: &Value) -> String {
    let Some(ty) = internal::core("PersistentVolumeSpec") else { return String::new() };
    let source = |name: &str| super::claims::SOURCES.iter().any(|(source, ..)| *source == name);
    unified(&internal::pretty_part(old, ty, source), &internal::pretty_part(new, ty, source))
}

/// The difference with three lines around each change, without a header.
pub(crate) fn unified(old: &str, new: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (old.split('\n').collect(), new.split('\n').collect());
    let mut out = String::new();
    for group in groups(&changes(&a, &b)) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        out.push_str(&format!("@@ -{} +{} @@\n", range(first.a.0, last.a.1), range(first.b.0, last.b.1)));
        for change in group {
            let mut lines = |mark: char, lines: &[&str]| {
                for line in lines {
                    out.push(mark);
                    out.push_str(line);
                    out.push('\n');
                }
            };
            if change.equal {
                lines(' ', &a[change.a.0..change.a.1]);
            } else {
                lines('-', &a[change.a.0..change.a.1]);
                lines('+', &b[change.b.0..change.b.1]);
            }
        }
    }
    out
}

fn range(start: usize, end: usize) -> String {
    match end - start {
        0 => format!("{start},0"),
        1 => format!("{}", start + 1),
        length => format!("{},{length}", start + 1),
    }
}

/// Runs of changes that are near each other, with what is around them.
fn groups(changes: &[Change]) -> Vec<Vec<Change>> {
    let mut changes = changes.to_vec();
    if let Some(first) = changes.first_mut().filter(|c| c.equal) {
        first.a.0 = first.a.0.max(first.a.1.saturating_sub(CONTEXT));
        first.b.0 = first.b.0.max(first.b.1.saturating_sub(CONTEXT));
    }
    if let Some(last) = changes.last_mut().filter(|c| c.equal) {
        last.a.1 = last.a.1.min(last.a.0 + CONTEXT);
        last.b.1 = last.b.1.min(last.b.0 + CONTEXT);
    }
    let (mut out, mut group) = (Vec::new(), Vec::new());
    for mut change in changes {
        if change.equal && change.a.1 - change.a.0 > 2 * CONTEXT {
            let end = |range: (usize, usize)| (range.0, range.1.min(range.0 + CONTEXT));
            group.push(Change { equal: true, a: end(change.a), b: end(change.b) });
            out.push(std::mem::take(&mut group));
            change.a.0 = change.a.0.max(change.a.1 - CONTEXT);
            change.b.0 = change.b.0.max(change.b.1 - CONTEXT);
        }
        group.push(change);
    }
    out.push(group);
    out.retain(|group| group.iter().any(|change| !change.equal));
    out
}

/// The whole way from one text to the other.
fn changes(a: &[&str], b: &[&str]) -> Vec<Change> {
    let mut out: Vec<Change> = Vec::new();
    let (mut i, mut j) = (0, 0);
    for (at_a, at_b, length) in matches(a, b).into_iter().chain([(a.len(), b.len(), 0)]) {
        if i < at_a || j < at_b {
            out.push(Change { equal: false, a: (i, at_a), b: (j, at_b) });
        }
        (i, j) = (at_a + length, at_b + length);
        if length > 0 {
            out.push(Change { equal: true, a: (at_a, i), b: (at_b, j) });
        }
    }
    out
}

/// The common runs as (place in `a`, place in `b`, length), in order, neighbours joined.
fn matches(a: &[&str], b: &[&str]) -> Vec<(usize, usize, usize)> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (j, line) in b.iter().enumerate() {
        places.entry(line).or_default().push(j);
    }
    if b.len() >= LONG {
        places.retain(|_, lines| lines.len() <= b.len() / 100 + 1);
    }
    let mut steps = STEPS_MAX;
    let mut found = Vec::new();
    let mut todo = vec![(0, a.len(), 0, b.len())];
    while let Some((a_low, a_high, b_low, b_high)) = todo.pop() {
        let (i, j, length) = longest(a, b, &places, (a_low, a_high), (b_low, b_high), &mut steps);
        if length == 0 {
            continue;
        }
        found.push((i, j, length));
        todo.push((a_low, i, b_low, j));
        todo.push((i + length, a_high, j + length, b_high));
    }
    found.sort_unstable();
    let mut joined: Vec<(usize, usize, usize)> = Vec::new();
    for (i, j, length) in found {
        match joined.last_mut() {
            Some(last) if last.0 + last.2 == i && last.1 + last.2 == j => last.2 += length,
            _ => joined.push((i, j, length)),
        }
    }
    joined
}

fn longest(
    a: &[&str],
    b: &[&str],
    places: &HashMap<&str, Vec<usize>>,
    (a_low, a_high): (usize, usize),
    (b_low, b_high): (usize, usize),
    steps: &mut usize,
) -> (usize, usize, usize) {
    let mut best = (a_low, b_low, 0);
    // The length of the run that ends before this line of `b`.
    let mut lengths: HashMap<usize, usize> = HashMap::new();
    for (i, line) in a.iter().enumerate().take(a_high).skip(a_low) {
        if *steps == 0 {
            break;
        }
        *steps -= 1;
        let mut next = HashMap::new();
        for &j in places.get(line).map_or(&[][..], Vec::as_slice) {
            if j < b_low {
                continue;
            }
            if j >= b_high {
                break;
            }
            *steps = steps.saturating_sub(1);
            let length = lengths.get(&j).copied().unwrap_or(0) + 1;
            next.insert(j + 1, length);
            if length > best.2 {
                best = (i + 1 - length, j + 1 - length, length);
            }
        }
        lengths = next;
    }
    while best.0 > a_low && best.1 > b_low && a[best.0 - 1] == b[best.1 - 1] {
        best = (best.0 - 1, best.1 - 1, best.2 + 1);
    }
    while best.0 + best.2 < a_high && best.1 + best.2 < b_high && a[best.0 + best.2] == b[best.1 + best.2] {
        best.2 += 1;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::unified;

    /// Without a bound each of these takes minutes.
    #[test]
    fn texts_made_to_take_long_come_to_an_end() {
        let many =
            |step: usize, kinds: usize| -> String { (0..60_000).map(|i| format!("{}\n", i * step % kinds)).collect() };
        for (old, new) in [(many(1, 150), many(7, 150)), (many(1, 60_000), many(59_999, 60_000))] {
            let out = unified(&old, &new);
            assert!(out.starts_with("@@ -1"), "{}", &out[..40]);
            assert!(out.len() <= 2 * (old.len() + new.len()), "{} of {}", out.len(), old.len() + new.len());
        }
    }

    #[test]
    fn changes_show_with_three_lines_around_them() {
        let lines = |list: &[&str]| list.join("\n");
        let numbers = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"];
        let mut other = numbers;
        other[1] = "x";
        assert_eq!(unified(&lines(&numbers), &lines(&numbers)), "");
        assert_eq!(unified(&lines(&numbers), &lines(&other)), "@@ -1,5 +1,5 @@\n 1\n-2\n+x\n 3\n 4\n 5\n");
        other[10] = "y";
        assert_eq!(
            unified(&lines(&numbers), &lines(&other)),
            "@@ -1,5 +1,5 @@\n 1\n-2\n+x\n 3\n 4\n 5\n@@ -8,5 +8,5 @@\n 8\n 9\n 10\n-11\n+y\n 12\n"
        );
        assert_eq!(unified("a", "a\nb"), "@@ -1 +1,2 @@\n a\n+b\n");
        assert_eq!(unified("{\n}", "{\n \"a\": 1\n}"), "@@ -1,2 +1,3 @@\n {\n+ \"a\": 1\n }\n");
    }
}
