//! The list in `docs/conformance.md` names tests that exist, and its sums are right.

use std::path::Path;

/// Every function of a test file, by file stem and name, and the golden cases.
fn exists(root: &Path, reference: &str) -> bool {
    if let Some(case) = reference.strip_prefix("golden ") {
        let passing = std::fs::read_to_string(root.join("tests/golden/passing.txt")).unwrap_or_default();
        return passing.lines().any(|line| line == case);
    }
    let Some((file, function)) = reference.split_once("::") else { return false };
    let text = std::fs::read_to_string(root.join("crates").join(format!("{file}.rs"))).unwrap_or_default();
    text.contains(&format!("fn {function}("))
}

#[test]
fn every_covered_conformance_test_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docs/conformance.md")).expect("the list");
    // (class, all, covered)
    let mut counted = [("A", 0, 0), ("B", 0, 0)];
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, class, _, covered_by] = cells.as_slice() else { continue };
        let Some(count) = counted.iter_mut().find(|(c, ..)| c == class) else { continue };
        count.1 += 1;
        let references: Vec<&str> = covered_by.split('`').skip(1).step_by(2).collect();
        for reference in &references {
            assert!(exists(&root, reference), "{id}: there is no {reference}");
        }
        if !references.is_empty() {
            count.2 += 1;
        }
    }
    assert_eq!((counted[0].1, counted[1].1), (150, 65), "every test of classes A and B is listed");
    for (class, all, covered) in counted {
        let sum = format!("class {class}: {covered} of {all}");
        assert!(text.contains(&sum), "the list should say: {sum}");
    }
}
