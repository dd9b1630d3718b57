//! Tells the tests whether there are kubectl and helm, so that what needs them is reported as ignored where they are missing.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rustc-check-cfg=cfg(kubectl)");
    println!("cargo::rustc-check-cfg=cfg(helm)");
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let paths: Vec<_> = std::env::split_paths(&paths).collect();
    for tool in ["kubectl", "helm"] {
        if paths.iter().any(|folder| folder.join(tool).is_file()) {
            println!("cargo::rustc-cfg={tool}");
        }
    }
}
