//! The page about synced types is the table.

use std::path::Path;

#[test]
fn the_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/sync.md");
    let wanted = syncer::registry::markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("docs/");
        std::fs::write(&path, &wanted).expect("docs/sync.md is written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == wanted, "docs/sync.md is not up to date: run UPDATE_DOCS=1 cargo test -p syncer");
}

#[test]
fn every_test_named_on_the_page_exists() {
    let sources = [
        include_str!("translate.rs"),
        include_str!("hostile.rs"),
        include_str!("services.rs"),
        include_str!("sync_more.rs"),
        include_str!("configured.rs"),
        include_str!("devices.rs"),
        include_str!("routes.rs"),
    ]
    .concat();
    for entry in syncer::registry::ENTRIES {
        for test in entry.tests.split(", ") {
            assert!(sources.contains(&format!("fn {test}(")), "{}: {test}", entry.name);
        }
    }
}
