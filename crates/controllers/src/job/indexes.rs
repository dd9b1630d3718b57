//! Sets of completion indexes as `status.completedIndexes` writes them: `0,3-5,7`.

use std::collections::BTreeSet;
use std::fmt;

/// Indexes as ordered intervals that do not touch, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i64, i64)>);

impl Indexes {
    /// Parses the compressed form; what cannot be read and what is not below `completions` is left out.
    pub fn parse(text: &str, completions: i64) -> Self {
        let mut intervals: Vec<(i64, i64)> = Vec::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>()) else { continue };
            if first >= completions {
                break;
            }
            intervals.push((first, last.min(completions - 1)));
        }
        Indexes::default().merge(intervals)
    }

    /// The union with `other` intervals, which need not be ordered.
    pub fn merge(&self, other: impl IntoIterator<Item = (i64, i64)>) -> Self {
        let mut all: Vec<(i64, i64)> = self.0.iter().copied().chain(other).collect();
        all.sort_unstable();
        let mut merged: Vec<(i64, i64)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(previous) if first <= previous.1 + 1 => previous.1 = previous.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Indexes(merged)
    }

    pub fn with(&self, indexes: impl IntoIterator<Item = i64>) -> Self {
        self.merge(indexes.into_iter().map(|i| (i, i)))
    }

    pub fn intervals(&self) -> &[(i64, i64)] {
        &self.0
    }

    pub fn total(&self) -> i64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub fn has(&self, index: i64) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    /// How many indexes are in both.
    pub fn overlap(&self, other: &Indexes) -> i64 {
        let both = |a: (i64, i64), b: (i64, i64)| (a.1.min(b.1) - a.0.max(b.0) + 1).max(0);
        self.0.iter().map(|a| other.0.iter().map(|b| both(*a, *b)).sum::<i64>()).sum()
    }

    /// The first `count` indexes below `completions` that are not in the set.
    pub fn first_missing(&self, count: usize, completions: i64) -> Vec<i64> {
        let mut missing = Vec::with_capacity(count);
        let mut candidate = 0;
        for (first, last) in self.0.iter().copied().chain([(completions, completions)]) {
            while candidate < first.min(completions) && missing.len() < count {
                missing.push(candidate);
                candidate += 1;
            }
            candidate = candidate.max(last + 1);
        }
        missing
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// A set made of single indexes.
pub fn from_set(indexes: &BTreeSet<i64>) -> Indexes {
    Indexes::default().with(indexes.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_compressed_and_read_back() {
        // (text, completions, added, text again). A run of two is written as two numbers, as upstream writes it.
        for (text, completions, added, want) in [
            ("", 10, vec![], ""),
            ("", 10, vec![1, 2, 3], "1-3"),
            ("0,3-5,7", 10, vec![1, 6], "0,1,3-7"),
            ("3-5,7", 6, vec![], "3-5"),
            ("x,2,9", 5, vec![], "2"),
            ("4", 10, vec![5], "4,5"),
        ] {
            assert_eq!(Indexes::parse(text, completions).with(added).to_string(), want, "{text}");
        }
    }

    #[test]
    fn missing_indexes_come_in_order() {
        let set = Indexes::parse("0,3-5", 10);
        assert_eq!(set.first_missing(4, 10), [1, 2, 6, 7]);
        assert_eq!(set.first_missing(10, 7), [1, 2, 6]);
        assert_eq!(Indexes::default().first_missing(2, 5), [0, 1]);
        assert!(set.has(4) && !set.has(2) && !set.has(6));
        assert_eq!(set.overlap(&Indexes::parse("4-8", 10)), 2);
    }
}
