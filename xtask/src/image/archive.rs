//! The layer, the image's JSON, and the archive around them.

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::USER;

const REPOSITORY: &str = "ghcr.io/alcove/alcove";
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

pub struct Contents<'a> {
    pub version: &'a str,
    /// As Go calls it.
    pub architecture: &'a str,
    /// Seconds since the epoch, of everything.
    pub time: u64,
    pub binary: &'a [u8],
    pub authorities: &'a [u8],
    pub bill: &'a [u8],
}

pub struct Image {
    pub archive: Vec<u8>,
    /// Of the manifest: what a registry calls the image.
    pub digest: String,
    pub layer_len: usize,
}

/// A file or directory of the layer.
enum Entry<'a> {
    Directory { mode: u32, user: u64 },
    File { mode: u32, bytes: &'a [u8] },
}

fn entries<'a>(contents: &Contents<'a>) -> BTreeMap<&'static str, Entry<'a>> {
    let system = || Entry::Directory { mode: 0o755, user: 0 };
    let own = || Entry::Directory { mode: 0o755, user: USER };
    let text = |bytes| Entry::File { mode: 0o644, bytes };
    BTreeMap::from([
        ("data/", own()),
        ("etc/", system()),
        ("etc/group", text(b"root:x:0:\nalcove:x:65532:\n")),
        ("etc/nsswitch.conf", text(b"hosts: files dns\n")),
        ("etc/passwd", text(b"root:x:0:0:root:/:/sbin/nologin\nalcove:x:65532:65532:alcove:/data:/sbin/nologin\n")),
        ("etc/ssl/", system()),
        ("etc/ssl/certs/", system()),
        ("etc/ssl/certs/ca-certificates.crt", text(contents.authorities)),
        ("pki/", own()),
        ("tmp/", Entry::Directory { mode: 0o1777, user: 0 }),
        ("usr/", system()),
        ("usr/local/", system()),
        ("usr/local/bin/", system()),
        ("usr/local/bin/alcove", Entry::File { mode: 0o755, bytes: contents.binary }),
        ("usr/share/", system()),
        ("usr/share/doc/", system()),
        ("usr/share/doc/alcove/", system()),
        ("usr/share/doc/alcove/sbom.spdx.json", text(contents.bill)),
        ("var/", system()),
        ("var/lib/", system()),
        ("var/lib/vcluster/", own()),
    ])
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &str,
    mode: u32,
    user: u64,
    time: u64,
    bytes: Option<&[u8]>,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(if bytes.is_some() { tar::EntryType::Regular } else { tar::EntryType::Directory });
    header.set_mode(mode);
    header.set_uid(user);
    header.set_gid(user);
    header.set_mtime(time);
    let bytes = bytes.unwrap_or_default();
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("add {path}"))
}

/// The layer as a plain archive.
fn layer(contents: &Contents<'_>) -> anyhow::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, entry) in entries(contents) {
        match entry {
            Entry::Directory { mode, user } => append(&mut tar, path, mode, user, contents.time, None)?,
            Entry::File { mode, bytes } => append(&mut tar, path, mode, 0, contents.time, Some(bytes))?,
        }
    }
    Ok(tar.into_inner()?)
}

fn compress(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    // Gzip, which every runtime reads, at the level that takes seconds and saves 3 % over zlib's best. The header holds no
    // time and no name.
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::best());
    let mut compressed = vec![0; compressor.gzip_compress_bound(bytes.len())];
    let length = compressor.gzip_compress(bytes, &mut compressed)?;
    compressed.truncate(length);
    Ok(compressed)
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

pub fn image(contents: &Contents<'_>) -> anyhow::Result<Image> {
    let plain = layer(contents)?;
    let compressed = compress(&plain)?;
    let created = timestamp(contents.time);
    let labels = json!({
        "org.opencontainers.image.title": "alcove",
        "org.opencontainers.image.description": "Virtual Kubernetes clusters inside one host cluster",
        "org.opencontainers.image.version": contents.version,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.created": created,
    });
    let config = serde_json::to_vec(&json!({
        "architecture": contents.architecture,
        "os": "linux",
        "created": created,
        "config": {
            "User": format!("{USER}:{USER}"),
            "Entrypoint": ["/usr/local/bin/alcove"],
            "Cmd": ["serve"],
            "Env": ["PATH=/usr/local/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt", "HOME=/data"],
            "WorkingDir": "/",
            "ExposedPorts": {"8443/tcp": {}},
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(&plain)]},
        "history": [{"created": created, "created_by": "cargo xtask image"}],
    }))?;
    let (config_digest, layer_digest) = (digest(&config), digest(&compressed));
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": GZIP_LAYER, "digest": layer_digest, "size": compressed.len()}],
        "annotations": labels,
    }))?;
    let manifest_digest = digest(&manifest);
    let name = format!("{REPOSITORY}:{}", contents.version);
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": manifest_digest,
            "size": manifest.len(),
            "platform": {"architecture": contents.architecture, "os": "linux"},
            "annotations": {"org.opencontainers.image.ref.name": contents.version, "io.containerd.image.name": name},
        }],
    }))?;
    let docker = serde_json::to_vec(&json!([{
        "Config": blob_path(&config_digest),
        "RepoTags": [name],
        "Layers": [blob_path(&layer_digest)],
    }]))?;
    let layout = serde_json::to_vec::<Value>(&json!({"imageLayoutVersion": "1.0.0"}))?;

    let files: BTreeMap<String, &[u8]> = BTreeMap::from([
        ("oci-layout".to_string(), layout.as_slice()),
        ("index.json".to_string(), index.as_slice()),
        ("manifest.json".to_string(), docker.as_slice()),
        (blob_path(&config_digest), config.as_slice()),
        (blob_path(&layer_digest), compressed.as_slice()),
        (blob_path(&manifest_digest), manifest.as_slice()),
    ]);
    let mut tar = tar::Builder::new(Vec::new());
    for folder in ["blobs/", "blobs/sha256/"] {
        append(&mut tar, folder, 0o755, 0, contents.time, None)?;
    }
    for (path, bytes) in files {
        append(&mut tar, &path, 0o644, 0, contents.time, Some(bytes))?;
    }
    Ok(Image { archive: tar.into_inner()?, digest: manifest_digest, layer_len: compressed.len() })
}

/// Seconds since the epoch as RFC 3339.
pub fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days, in years that begin in March.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest % 3600 / 60, rest % 60)
}

/// The files of an archive, by path.
pub fn files(archive: &[u8]) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes)?;
        all.insert(path, bytes);
    }
    Ok(all)
}

/// The compressed layer of an archive, found as a reader of OCI layouts finds it.
pub fn layer_of(archive: &[u8]) -> anyhow::Result<Vec<u8>> {
    let files = files(archive)?;
    let blob = |descriptor: &Value| -> anyhow::Result<Vec<u8>> {
        let wanted = descriptor["digest"].as_str().context("a descriptor without digest")?;
        let bytes = files.get(&blob_path(wanted)).with_context(|| format!("{wanted} is missing"))?;
        anyhow::ensure!(digest(bytes) == wanted, "{wanted} has other content");
        anyhow::ensure!(descriptor["size"] == bytes.len(), "{wanted} has another size");
        Ok(bytes.clone())
    };
    let index: Value = serde_json::from_slice(files.get("index.json").context("no index.json")?)?;
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])?)?;
    let config: Value = serde_json::from_slice(&blob(&manifest["config"])?)?;
    let layer = blob(&manifest["layers"][0])?;
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(layer.as_slice()), &mut plain)?;
    anyhow::ensure!(config["rootfs"]["diff_ids"][0] == digest(&plain), "the layer is not the one of the configuration");
    Ok(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents<'a>(binary: &'a [u8]) -> Contents<'a> {
        Contents {
            version: "1.2.3",
            architecture: "amd64",
            time: 1_700_000_000,
            binary,
            authorities: b"pem",
            bill: b"{}",
        }
    }

    #[test]
    fn the_same_contents_give_the_same_bytes() {
        let one = image(&contents(b"binary")).unwrap();
        let two = image(&contents(b"binary")).unwrap();
        assert!(one.archive == two.archive);
        assert_eq!(one.digest, two.digest);
        assert_ne!(one.digest, image(&contents(b"other")).unwrap().digest);
    }

    #[test]
    fn both_kinds_of_readers_find_the_layer() {
        let image = image(&contents(b"binary")).unwrap();
        let layer = layer_of(&image.archive).unwrap();
        let files = files(&image.archive).unwrap();
        let docker: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(files[docker[0]["Layers"][0].as_str().unwrap()], layer);
        assert_eq!(docker[0]["RepoTags"][0], "ghcr.io/alcove/alcove:1.2.3");
        let config: Value = serde_json::from_slice(&files[docker[0]["Config"].as_str().unwrap()]).unwrap();
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
        let mut modes = BTreeMap::new();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(layer.as_slice()));
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!(header.mtime().unwrap(), 1_700_000_000);
            modes.insert(
                entry.path().unwrap().to_string_lossy().trim_end_matches('/').to_string(),
                (header.mode().unwrap(), header.uid().unwrap()),
            );
        }
        assert_eq!(modes["usr/local/bin/alcove"], (0o755, 0));
        assert_eq!(modes["tmp"], (0o1777, 0));
        assert_eq!(modes["data"], (0o755, USER));
        assert!(!modes.keys().any(|path| path.ends_with("/sh")));
    }

    #[test]
    fn a_changed_blob_is_found() {
        let mut image = image(&contents(b"binary")).unwrap();
        let at = image.archive.windows(9).position(|window| window == b"\"os\":\"lin").unwrap();
        image.archive[at + 1] = b'O';
        assert!(layer_of(&image.archive).is_err());
    }

    #[test]
    fn seconds_become_dates() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(timestamp(seconds), want);
        }
    }
}
