//! Tells the tests whether there is a helm, so that what needs one is reported as ignored where it is missing.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rustc-check-cfg=cfg(helm)");
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&paths).any(|folder| folder.join("helm").is_file()) {
        println!("cargo::rustc-cfg=helm");
    }
}
