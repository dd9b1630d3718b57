//! Maintainer's tools. Nothing here runs in a build.
//!
//! `cargo xtask schema DIR VERSION` writes the table of built-in types from Go packages below `DIR`.
//! `cargo xtask image` makes the container image.

mod image;
mod schema;

use std::path::Path;

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["schema", dirs @ .., version] if !dirs.is_empty() => {
            let roots: Vec<&Path> = dirs.iter().map(Path::new).collect();
            let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/apimachinery/src/schema/data");
            schema::generate(&roots, version, &out).context("generate the schema table")
        }
        ["image", args @ ..] => {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
            image::run(root, args)
        }
        _ => bail!(
            "usage: cargo xtask schema DIR... VERSION\n       cargo xtask image [--build] [--verify] ...\n\
             DIR holds k8s.io/api, k8s.io/apimachinery, ... as Debian's golang-k8s-*-dev packages install them\n\
             (below usr/share/gocode/src); VERSION is what the table's header says, such as 0.36.4-1"
        ),
    }
}
