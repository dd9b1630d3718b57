//! Tells the tests which servers are installed: without one its test is reported as ignored.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-env-changed=PATH");
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (program, name) in [("moto_server", "moto"), ("docker-registry", "docker_registry")] {
        println!("cargo::rustc-check-cfg=cfg({name})");
        if std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file()) {
            println!("cargo::rustc-cfg={name}");
        }
    }
}
