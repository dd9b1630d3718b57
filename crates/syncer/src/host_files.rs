//! Links on a node from the names that a tenant knows to the files of the host: what the host path mapper makes, so that log
//! collectors and backup agents in a virtual cluster find pods under their own names.
//!
//! The other half is `types::pod::host_paths`: it mounts the directory made here where a pod of the tenant asks for the
//! host's, and the real directories below `/var/vcluster/physical`, where the links lead.
//!
//! Invariants:
//! - Nothing is written outside of the directory of the virtual cluster, and no link in it is followed: tenants write there.
//! - A link goes when what it leads to is gone, not when the pod is: the last lines of a log are still read.
//! - Only links that lead where the ones made here lead are ever removed.
//!
//! Follows: the layout of vCluster's hostpath-mapper.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use apimachinery::Value;

use crate::kind;
use crate::metadata::{
    KIND_ANNOTATION, MANAGED_BY_LABEL, NAME_ANNOTATION, NAMESPACE_ANNOTATION, UID_ANNOTATION, annotation, label,
    name_of, uid_of,
};
use crate::names::NamespacedName;

/// The node's directories that show all tenants' files.
pub const LOGS: &str = "/var/log";
pub const POD_LOGS: &str = "/var/log/pods";
pub const KUBELET_PODS: &str = "/var/lib/kubelet/pods";
const CONTAINER_LOGS: &str = "/var/log/containers";
/// Where pods of the tenant have the real directories.
pub const PHYSICAL_LOGS: &str = "/var/vcluster/physical/log";
pub const PHYSICAL_POD_LOGS: &str = "/var/vcluster/physical/log/pods";
pub const PHYSICAL_KUBELET_PODS: &str = "/var/vcluster/physical/kubelet/pods";
/// Where the directories of virtual clusters are on a node.
pub const VIRTUAL_ROOT: &str = "/tmp/vcluster";

/// The directory of a virtual cluster on a node.
pub fn virtual_directory(host_namespace: &str, virtual_cluster: &str) -> String {
    format!("{VIRTUAL_ROOT}/{host_namespace}/{virtual_cluster}")
}

/// A pod of the tenant and the host pod that runs for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedPod {
    pub virtual_: NamespacedName,
    pub virtual_uid: String,
    pub host: NamespacedName,
    pub host_uid: String,
}

/// Whether a text can be one name in a path, and nothing else.
fn is_plain(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    !text.is_empty() && !text.starts_with('.') && text.bytes().all(good)
}

impl MappedPod {
    /// Reads what the syncer wrote on a host pod; nothing for pods of others.
    pub fn of(host: &Value, virtual_cluster: &str) -> Option<MappedPod> {
        let ours =
            label(host, MANAGED_BY_LABEL) == virtual_cluster && annotation(host, KIND_ANNOTATION) == kind::POD.gvk();
        let of = |key| annotation(host, key).to_owned();
        let pod = MappedPod {
            virtual_: NamespacedName::new(of(NAMESPACE_ANNOTATION), of(NAME_ANNOTATION)),
            virtual_uid: of(UID_ANNOTATION),
            host: name_of(host),
            host_uid: uid_of(host).to_owned(),
        };
        let parts = [&pod.virtual_.namespace, &pod.virtual_.name, &pod.virtual_uid, &pod.host_uid];
        (ours && parts.into_iter().all(|part| is_plain(part))).then_some(pod)
    }

    fn virtual_logs(&self) -> String {
        format!("{}_{}_{}", self.virtual_.namespace, self.virtual_.name, self.virtual_uid)
    }

    fn host_logs(&self) -> String {
        format!("{}_{}_{}", self.host.namespace, self.host.name, self.host_uid)
    }
}

/// What is in the node's directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Names in `/var/log/pods`.
    pub pod_logs: BTreeSet<String>,
    /// Names in `/var/log/containers`, with the file name that each leads to.
    pub containers: BTreeMap<String, String>,
    /// Names in `/var/lib/kubelet/pods`, with what is in each.
    pub kubelet: BTreeMap<String, BTreeSet<String>>,
}

/// Links below the directory of a virtual cluster, and where they lead.
pub type Links = BTreeMap<PathBuf, PathBuf>;

/// The links that a virtual cluster's pods on this node should have.
pub fn plan(pods: &[MappedPod], seen: &Seen) -> Links {
    let mut links = Links::new();
    for pod in pods {
        let (virtual_logs, host_logs) = (pod.virtual_logs(), pod.host_logs());
        if seen.pod_logs.contains(&host_logs) {
            links.insert(Path::new("log/pods").join(&virtual_logs), Path::new(PHYSICAL_POD_LOGS).join(&host_logs));
        }
        // POD_NAMESPACE_CONTAINER-ID.log
        let prefix = format!("{}_{}_", pod.host.name, pod.host.namespace);
        for (name, file) in seen.containers.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix)) {
            let container = &name[prefix.len()..];
            let Some((container_name, _)) = container.rsplit_once('-') else { continue };
            let link = format!("{}_{}_{container}", pod.virtual_.name, pod.virtual_.namespace);
            let target = Path::new(POD_LOGS).join(&virtual_logs).join(container_name).join(file);
            links.insert(Path::new("log/containers").join(link), target);
        }
        for entry in seen.kubelet.get(&pod.host_uid).into_iter().flatten() {
            let target = Path::new(PHYSICAL_KUBELET_PODS).join(&pod.host_uid).join(entry);
            links.insert(Path::new("kubelet/pods").join(&pod.virtual_uid).join(entry), target);
        }
    }
    links
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub made: usize,
    pub removed: usize,
}

/// A node's file system, seen from `root`.
#[derive(Clone, Debug)]
pub struct Node {
    root: PathBuf,
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut out = Vec::new();
    for entry in entries {
        // A name that is no text is nobody's who asks here.
        out.extend(entry?.file_name().into_string().ok());
    }
    Ok(out)
}

/// Whether there is a directory, not a link to one.
fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}

/// Makes a directory and those above it below `base`; a link in the way is taken away.
fn make_directory(base: &Path, relative: &Path) -> io::Result<PathBuf> {
    let mut path = base.to_path_buf();
    fs::create_dir_all(&path)?;
    for part in relative {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => continue,
            Ok(_) => fs::remove_file(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::create_dir(&path)?;
    }
    Ok(path)
}

impl Node {
    /// `/` in a pod that has the node's directories mounted where they are on the node.
    pub fn new(root: impl Into<PathBuf>) -> Node {
        Node { root: root.into() }
    }

    fn at(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Looks into the node's directories.
    pub fn look(&self) -> io::Result<Seen> {
        let mut seen = Seen { pod_logs: names(&self.at(POD_LOGS))?.into_iter().collect(), ..Seen::default() };
        let containers = self.at(CONTAINER_LOGS);
        for name in names(&containers)? {
            // Gone between two calls, or no link: not a container's log.
            let Ok(target) = fs::read_link(containers.join(&name)) else { continue };
            if let Some(file) = target.file_name().and_then(|f| f.to_str()) {
                seen.containers.insert(name, file.to_owned());
            }
        }
        let kubelet = self.at(KUBELET_PODS);
        for uid in names(&kubelet)? {
            let entries = names(&kubelet.join(&uid))?;
            seen.kubelet.insert(uid, entries.into_iter().collect());
        }
        Ok(seen)
    }

    /// The virtual clusters that have a directory on this node, as host namespace and name.
    pub fn clusters(&self) -> io::Result<Vec<(String, String)>> {
        let root = self.at(VIRTUAL_ROOT);
        let mut out = Vec::new();
        for namespace in names(&root)? {
            let inside = root.join(&namespace);
            if !is_directory(&inside) {
                continue;
            }
            for name in names(&inside)? {
                if is_directory(&inside.join(&name)) {
                    out.push((namespace.clone(), name));
                }
            }
        }
        Ok(out)
    }

    /// Makes the links of a virtual cluster be those of its pods on this node.
    pub fn sync(
        &self,
        host_namespace: &str,
        virtual_cluster: &str,
        pods: &[MappedPod],
        seen: &Seen,
    ) -> io::Result<Changes> {
        let base = self.at(&virtual_directory(host_namespace, virtual_cluster));
        for directory in ["log/pods", "log/containers", "kubelet/pods"] {
            make_directory(&base, Path::new(directory))?;
        }
        let wanted = plan(pods, seen);
        let mut changes = Changes::default();
        for (link, target) in &wanted {
            changes.made += usize::from(put_link(&base, link, target)?);
        }
        changes.removed = remove_outdated(&base, &wanted, seen)?;
        Ok(changes)
    }
}

/// Makes a link lead to `target`. False: it did already, or something that is no link has the name.
fn put_link(base: &Path, link: &Path, target: &Path) -> io::Result<bool> {
    let directory = make_directory(base, link.parent().unwrap_or(Path::new("")))?;
    let Some(name) = link.file_name().and_then(|n| n.to_str()) else { return Ok(false) };
    let path = directory.join(name);
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.is_symlink() => return Ok(false),
        Ok(_) if fs::read_link(&path)? == target => return Ok(false),
        // Renamed into its place: there is never a moment without one.
        Ok(_) => {
            let fresh = directory.join(format!(".{name}.new"));
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            std::os::unix::fs::symlink(target, &fresh)?;
            fs::rename(&fresh, &path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::os::unix::fs::symlink(target, &path)?,
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// The name that a link leads to directly below `directory`, with what follows it.
fn below(link: &Path, directory: &str) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    let rest = target.strip_prefix(directory).ok()?;
    rest.iter().next()?.to_str().map(str::to_owned)
}

fn remove_outdated(base: &Path, wanted: &Links, seen: &Seen) -> io::Result<usize> {
    let mut removed = 0;
    let mut stays = BTreeSet::new();
    let logs = base.join("log/pods");
    for name in names(&logs)? {
        let link = logs.join(&name);
        let Some(host) = below(&link, PHYSICAL_POD_LOGS) else { continue };
        if wanted.contains_key(&Path::new("log/pods").join(&name)) || seen.pod_logs.contains(&host) {
            stays.insert(name);
        } else {
            fs::remove_file(&link)?;
            removed += 1;
        }
    }
    let has_pod: BTreeSet<String> =
        wanted.keys().filter_map(|l| l.strip_prefix("log/pods").ok()?.to_str().map(str::to_owned)).collect();
    let containers = base.join("log/containers");
    for name in names(&containers)? {
        let link = containers.join(&name);
        let Some(pod) = below(&link, POD_LOGS) else { continue };
        // The containers of a pod that is there are known; those of one that went stay as long as its logs.
        let leftover = stays.contains(&pod) && !has_pod.contains(&pod);
        if !leftover && !wanted.contains_key(&Path::new("log/containers").join(&name)) {
            fs::remove_file(&link)?;
            removed += 1;
        }
    }
    let kubelet = base.join("kubelet/pods");
    for uid in names(&kubelet)? {
        let directory = kubelet.join(&uid);
        if !is_directory(&directory) {
            continue;
        }
        for entry in names(&directory)? {
            let link = directory.join(&entry);
            let Some(host) = below(&link, PHYSICAL_KUBELET_PODS) else { continue };
            let exists = seen.kubelet.get(&host).is_some_and(|entries| entries.contains(&entry));
            if !exists && !wanted.contains_key(&Path::new("kubelet/pods").join(&uid).join(&entry)) {
                fs::remove_file(&link)?;
                removed += 1;
            }
        }
        // What somebody else put into it stays.
        if !wanted.keys().any(|l| l.starts_with(Path::new("kubelet/pods").join(&uid))) && names(&directory)?.is_empty()
        {
            fs::remove_dir(&directory)?;
        }
    }
    Ok(removed)
}
