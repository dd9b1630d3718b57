//! `cargo xtask image`: one static binary as a container image, without Docker.
//!
//! The archive is an OCI image layout and a Docker archive at once: `skopeo`, `podman load`, `docker load`, `ctr images
//! import` and `kind load image-archive` read it.
//!
//! Invariants:
//! - The same binary, certificates and commit give the same bytes: entries are sorted, times come from the commit.
//! - Nothing is in the image but the binary, what it reads (users, name service order, public authorities), its bill of
//!   materials and empty directories. There is no shell.
//! - A binary that needs a dynamic loader is refused, and an image that is over its budget. A binary over its budget is said.

mod archive;
mod elf;
mod sbom;
mod verify;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Where Rust puts the static binary.
const TARGETS: &[(&str, &str, &str)] =
    &[("x86_64", "x86_64-unknown-linux-gnu", "amd64"), ("aarch64", "aarch64-unknown-linux-gnu", "arm64")];
/// Static, and random numbers from the system call alone: a static program finds no newer function of the library and would
/// look for a device. Relocations are packed, which saves 2 MiB; a static program brings the loader that reads them.
const RUSTFLAGS: &str = "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs \
    --cfg getrandom_backend=\"linux_getrandom\"";
/// Budgets of DESIGN: the stripped binary, and the compressed image.
const BINARY_BUDGET: usize = 40 << 20;
const IMAGE_BUDGET: usize = 20 << 20;
/// Who the process is.
pub const USER: u64 = 65532;

const USAGE: &str = "usage: cargo xtask image [--build] [--verify] [--binary FILE] [--out DIR] [--ca-certificates FILE]\n\
    --build            compile the static binary first\n\
    --verify           unpack the image into an empty root and run it there (root, or user namespaces)\n\
    --binary           the static binary [default: where --build puts it]\n\
    --out              [default: target/image]\n\
    --ca-certificates  public authorities [default: /etc/ssl/certs/ca-certificates.crt]";

struct Options {
    build: bool,
    verify: bool,
    binary: Option<PathBuf>,
    out: Option<PathBuf>,
    authorities: PathBuf,
}

fn options(args: &[&str]) -> anyhow::Result<Options> {
    let mut options = Options {
        build: false,
        verify: false,
        binary: None,
        out: None,
        authorities: "/etc/ssl/certs/ca-certificates.crt".into(),
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().map(PathBuf::from).with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match *arg {
            "--build" => options.build = true,
            "--verify" => options.verify = true,
            "--binary" => options.binary = Some(value()?),
            "--out" => options.out = Some(value()?),
            "--ca-certificates" => options.authorities = value()?,
            _ => bail!("{arg}: {USAGE}"),
        }
    }
    Ok(options)
}

pub fn run(root: &Path, args: &[&str]) -> anyhow::Result<()> {
    let options = options(args)?;
    let target_dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let (_, triple, architecture) = TARGETS
        .iter()
        .find(|(machine, ..)| *machine == std::env::consts::ARCH)
        .with_context(|| format!("images are made for x86_64 and aarch64, not for {}", std::env::consts::ARCH))?;
    if options.build {
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--release", "--locked", "-p", "cli", "--target", triple])
            .env("RUSTFLAGS", RUSTFLAGS)
            .current_dir(root)
            .status()
            .context("run cargo build")?;
        ensure!(status.success(), "the static binary could not be compiled");
    }
    let default = target_dir.join(triple).join("release/alcove");
    let path = options.binary.unwrap_or(default);
    let binary = std::fs::read(&path).with_context(|| format!("read {} (compile it with --build)", path.display()))?;
    elf::check_static(&binary).with_context(|| format!("{}", path.display()))?;
    if binary.len() > BINARY_BUDGET {
        say(&format!(
            "{} has {:.1} MiB, more than its budget of {:.1} MiB",
            path.display(),
            mib(binary.len()),
            mib(BINARY_BUDGET)
        ));
    }

    let time = source_date(root);
    let version = env!("CARGO_PKG_VERSION");
    let bill = sbom::write(root, triple, version, time).context("bill of materials")?;
    let authorities = std::fs::read(&options.authorities)
        .with_context(|| format!("read {}; name another with --ca-certificates", options.authorities.display()))?;
    let image = archive::image(&archive::Contents {
        version,
        architecture,
        time,
        binary: &binary,
        authorities: &authorities,
        bill: bill.as_bytes(),
    })?;
    if image.layer_len > IMAGE_BUDGET {
        say(&format!("the image has {} compressed bytes, more than its budget of {IMAGE_BUDGET}", image.layer_len));
    }
    let out = options.out.unwrap_or_else(|| target_dir.join("image"));
    std::fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    let file = out.join(format!("alcove-{version}-linux-{architecture}.tar"));
    let bill_file = out.join(format!("alcove-{version}-linux-{architecture}.spdx.json"));
    for (path, bytes) in [(&file, image.archive.as_slice()), (&bill_file, bill.as_bytes())] {
        std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))?;
    }
    say(&format!(
        "{}\n  binary {:.1} MiB, image {:.1} MiB compressed, digest {}",
        file.display(),
        mib(binary.len()),
        mib(image.layer_len),
        image.digest
    ));
    if options.verify { verify::run(&image.archive) } else { Ok(()) }
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[allow(clippy::print_stdout)]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// `SOURCE_DATE_EPOCH`, else the time of the commit, else the epoch.
fn source_date(root: &Path) -> u64 {
    if let Some(time) = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok()) {
        return time;
    }
    let output = Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root).output();
    output.ok().and_then(|output| String::from_utf8_lossy(&output.stdout).trim().parse().ok()).unwrap_or(0)
}
