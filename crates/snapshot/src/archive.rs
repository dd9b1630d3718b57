//! The snapshot file: a gzipped tar whose entries are named by key.
//!
//! The first entries tell what the snapshot is of: the release, the request that made it, the revision; then one entry per
//! key, with the stored value as it is. Names begin with `/`, as keys do, which is why headers are filled by hand.
//!
//! Invariants: entries are written in the order of the keys; the same snapshot gives the same tar. Reading never trusts a
//! size or a name.

use std::io::{self, Read, Write};

use apimachinery::Value;
use base64::Engine;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use tar::{Builder, EntryType, Header as TarHeader};

/// What all keys of the archive's own begin with; they never are a cluster's.
pub const METADATA_PREFIX: &str = "/vcluster/snapshot/";
pub const RELEASE_KEY: &str = "/vcluster/snapshot/release";
pub const REQUEST_KEY: &str = "/vcluster/snapshot/request";
pub const REVISION_KEY: &str = "/vcluster/snapshot/revision";
/// An embedded etcd writes its database here instead of single keys.
pub const DATABASE_KEY: &str = "/vcluster/snapshot/db";
const REQUEST_VERSION: &str = "v1beta1";

/// As vCluster: more costs much time and saves little.
const LEVEL: u32 = 3;
/// A value larger than this is none that a store accepts.
const VALUE_BYTES_MAX: u64 = 64 << 20;
/// The longest key of a store.
const KEY_BYTES_MAX: usize = 4096;

/// The virtual cluster a snapshot was taken of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Release {
    pub release_name: String,
    pub release_namespace: String,
    pub chart_name: String,
    pub chart_version: String,
    /// `vcluster.yaml`, base64.
    pub values: String,
}

impl Release {
    pub fn new(name: &str, namespace: &str, version: &str, config_yaml: &str) -> Release {
        Release {
            release_name: name.to_owned(),
            release_namespace: namespace.to_owned(),
            chart_name: "alcove".to_owned(),
            chart_version: version.to_owned(),
            values: base64::engine::general_purpose::STANDARD.encode(config_yaml),
        }
    }

    /// The text of `vcluster.yaml`.
    pub fn config_yaml(&self) -> Option<String> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(&self.values).ok()?;
        String::from_utf8(bytes).ok()
    }
}

/// What a snapshot says about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    pub release: Option<Release>,
    /// The request as vCluster writes it: name, time, URL, phase.
    pub request: Option<Value>,
    pub revision: Option<u64>,
}

/// Why a file is not a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("the file is not a readable snapshot (a gzipped tar)")]
    Read(#[from] io::Error),
    #[error("the file ends before its first entry")]
    Empty,
    #[error("an entry has a name that no key can have")]
    Name,
    #[error("entry {key} has {size_bytes} bytes; no stored value is that large")]
    TooLarge { key: String, size_bytes: u64 },
    #[error("entry {key} is not readable: {reason}")]
    Entry { key: String, reason: String },
    #[error("it holds the database of an embedded etcd; only snapshots with one entry per key can be read")]
    EtcdDatabase,
}

/// Writes a whole snapshot. `entries` are in key order.
pub fn write<'a, W: Write>(
    out: W,
    header: &Header,
    entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> io::Result<W> {
    let mut tar = Builder::new(GzEncoder::new(out, Compression::new(LEVEL)));
    if let Some(release) = &header.release {
        append(&mut tar, RELEASE_KEY.as_bytes(), &serde_json::to_vec(release).map_err(io::Error::other)?)?;
    }
    if let Some(request) = &header.request {
        append(&mut tar, format!("{REQUEST_KEY}/{REQUEST_VERSION}").as_bytes(), &request.to_vec())?;
    }
    if let Some(revision) = header.revision {
        append(&mut tar, REVISION_KEY.as_bytes(), revision.to_string().as_bytes())?;
    }
    for (key, value) in entries {
        if !key.starts_with(METADATA_PREFIX.as_bytes()) {
            append(&mut tar, key, value)?;
        }
    }
    tar.into_inner()?.finish()
}

fn append<W: Write>(tar: &mut Builder<W>, name: &[u8], content: &[u8]) -> io::Result<()> {
    let mut header = TarHeader::new_gnu();
    let short = header.as_old_mut().name.len();
    if name.len() >= short {
        // The name of the next entry, as GNU tar writes it.
        let mut long = TarHeader::new_gnu();
        let marker = b"././@LongLink";
        long.as_old_mut().name[..marker.len()].copy_from_slice(marker);
        fill(&mut long, EntryType::GNULongName, name.len() + 1);
        let mut data = name.to_vec();
        data.push(0);
        tar.append(&long, &data[..])?;
    }
    let part = &name[..name.len().min(short - 1)];
    header.as_old_mut().name[..part.len()].copy_from_slice(part);
    fill(&mut header, EntryType::Regular, content.len());
    tar.append(&header, content)
}

fn fill(header: &mut TarHeader, kind: EntryType, size: usize) {
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o666);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
}

/// Reads a snapshot and hands on each key of the cluster. A snapshot without its first entries is one all the same.
pub fn read<E: From<ArchiveError>>(
    input: impl Read,
    mut entry: impl FnMut(Vec<u8>, Vec<u8>) -> Result<(), E>,
) -> Result<Header, E> {
    let mut header = Header::default();
    let mut count = 0_u64;
    each::<E>(input, |key, value| {
        count += 1;
        if key.starts_with(METADATA_PREFIX.as_bytes()) {
            take_metadata(&mut header, &key, &value)?;
            return Ok(true);
        }
        entry(key, value)?;
        Ok(true)
    })?;
    if count == 0 {
        return Err(ArchiveError::Empty.into());
    }
    Ok(header)
}

/// What the snapshot says about itself; the rest of the file is not read.
pub fn read_header(input: impl Read) -> Result<Header, ArchiveError> {
    let mut header = Header::default();
    let mut count = 0_u64;
    each::<ArchiveError>(input, |key, value| {
        count += 1;
        let about_itself = key.starts_with(METADATA_PREFIX.as_bytes());
        if about_itself {
            take_metadata(&mut header, &key, &value)?;
        }
        Ok(about_itself)
    })?;
    if count == 0 { Err(ArchiveError::Empty) } else { Ok(header) }
}

fn take_metadata(header: &mut Header, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
    let key = String::from_utf8_lossy(key);
    let unreadable = |reason: String| ArchiveError::Entry { key: key.to_string(), reason };
    match &*key {
        RELEASE_KEY => header.release = Some(serde_json::from_slice(value).map_err(|e| unreadable(e.to_string()))?),
        REVISION_KEY => {
            let text = String::from_utf8_lossy(value);
            header.revision = Some(text.trim().parse().map_err(|_| unreadable("it is not a number".to_owned()))?);
        }
        DATABASE_KEY => return Err(ArchiveError::EtcdDatabase),
        // Others may be added; what they mean is not ours to know.
        key if key.starts_with(REQUEST_KEY) => header.request = Value::from_slice(value).ok(),
        _ => {}
    }
    Ok(())
}

/// Calls `entry` until it says `false` or there are no more.
fn each<E: From<ArchiveError>>(
    input: impl Read,
    mut entry: impl FnMut(Vec<u8>, Vec<u8>) -> Result<bool, E>,
) -> Result<(), E> {
    let broken = |error: io::Error| E::from(ArchiveError::Read(error));
    let mut archive = tar::Archive::new(GzDecoder::new(input));
    for item in archive.entries().map_err(broken)? {
        let mut item = item.map_err(broken)?;
        if !item.header().entry_type().is_file() {
            continue;
        }
        let key = item.path_bytes().into_owned();
        if !key.starts_with(b"/") || key.len() > KEY_BYTES_MAX {
            return Err(ArchiveError::Name.into());
        }
        let size_bytes = item.size();
        if size_bytes > VALUE_BYTES_MAX {
            // An etcd database is one large entry; its name says so.
            if key == DATABASE_KEY.as_bytes() {
                return Err(ArchiveError::EtcdDatabase.into());
            }
            let key = String::from_utf8_lossy(&key).into_owned();
            return Err(ArchiveError::TooLarge { key, size_bytes }.into());
        }
        let mut value = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0).min(1 << 20));
        item.read_to_end(&mut value).map_err(broken)?;
        if !entry(key, value)? {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long_key() -> Vec<u8> {
        format!("/registry/configmaps/{}/{}", "n".repeat(60), "x".repeat(250)).into_bytes()
    }

    fn sample() -> Vec<u8> {
        let header = Header {
            release: Some(Release::new("a", "vcluster-a", "0.1.0", "sync: {}\n")),
            request: Some(apimachinery::json!({"metadata": {"name": "r"}})),
            revision: Some(42),
        };
        let long = long_key();
        let entries: Vec<(&[u8], &[u8])> =
            vec![(b"/registry/a", b"1"), (&long, b"k8s\0\xff"), (b"/vcluster/snapshot/request", b"old"), (b"/z", b"")];
        write(Vec::new(), &header, entries).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = sample();
        let mut seen = Vec::new();
        let header = read::<ArchiveError>(&bytes[..], |key, value| {
            seen.push((key, value));
            Ok(())
        })
        .unwrap();
        assert_eq!(header.release.as_ref().and_then(Release::config_yaml).as_deref(), Some("sync: {}\n"));
        assert_eq!(header.revision, Some(42));
        assert_eq!(header.request.unwrap().str_at(&["metadata", "name"]), "r");
        let want: Vec<(Vec<u8>, Vec<u8>)> = vec![
            (b"/registry/a".to_vec(), b"1".to_vec()),
            (long_key(), b"k8s\0\xff".to_vec()),
            (b"/z".to_vec(), Vec::new()),
        ];
        assert_eq!(seen, want);
        assert_eq!(read_header(&bytes[..]).unwrap().revision, Some(42));
        assert_eq!(bytes, sample(), "the same snapshot gives the same file");
    }

    #[test]
    fn the_entries_are_vclusters_and_tar_lists_them() {
        let bytes = sample();
        let mut archive = tar::Archive::new(GzDecoder::new(&bytes[..]));
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
            .collect();
        assert_eq!(
            names[..4],
            [RELEASE_KEY, "/vcluster/snapshot/request/v1beta1", REVISION_KEY, "/registry/a"].map(str::to_owned)
        );
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        let whole = sample();
        let database = write(Vec::new(), &Header::default(), []).unwrap();
        let mut tar = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        append(&mut tar, DATABASE_KEY.as_bytes(), b"bolt").unwrap();
        let etcd = tar.into_inner().unwrap().finish().unwrap();
        let mut tar = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        append(&mut tar, b"relative/name", b"").unwrap();
        let relative = tar.into_inner().unwrap().finish().unwrap();
        for (what, bytes, want) in [
            ("text", b"hello".to_vec(), "not a readable snapshot"),
            ("nothing", Vec::new(), "not a readable snapshot"),
            ("half of one", whole[..whole.len() / 2].to_vec(), "not a readable snapshot"),
            ("an empty archive", database, "ends before its first entry"),
            ("an etcd database", etcd, "embedded etcd"),
            ("relative names", relative, "no key can have"),
        ] {
            let error = read::<ArchiveError>(&bytes[..], |_, _| Ok(())).unwrap_err();
            assert!(error.to_string().contains(want), "{what}: {error}");
        }
    }
}
