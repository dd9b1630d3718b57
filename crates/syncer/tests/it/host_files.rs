//! Links of the host path mapper, in a directory that stands for a node.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use apimachinery::{Value, json};
use syncer::host_files::{Changes, MappedPod, Node, plan};
use syncer::kind;
use syncer::types::ToHost;
use syncer::types::pod::Pods;

use crate::translate::World;

const BASE: &str = "tmp/vcluster/host-ns/vc";

/// A host pod as the syncer makes it.
fn host_pod(name: &str, uid: &str) -> Value {
    let world = World::new();
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": (format!("v-{uid}"))},
        "spec": {"containers": [{"name": "app", "image": "i"}]}});
    let (mut host, _) = Pods.translate(&pod, &world.ctx()).expect("a host pod");
    host["metadata"]["uid"] = uid.into();
    host
}

/// What kubelet and container runtime make for it.
fn make_files(root: &Path, host: &Value, container_id: &str) {
    let of = |member: &str| host.str_at(&["metadata", member]).to_owned();
    let logs = format!("{}_{}_{}", of("namespace"), of("name"), of("uid"));
    let container = root.join("var/log/pods").join(&logs).join("app");
    fs::create_dir_all(&container).unwrap();
    fs::write(container.join("0.log"), format!("said by {container_id}\n")).unwrap();
    let containers = root.join("var/log/containers");
    fs::create_dir_all(&containers).unwrap();
    let link = format!("{}_{}_app-{container_id}.log", of("name"), of("namespace"));
    symlink(Path::new("/var/log/pods").join(&logs).join("app/0.log"), containers.join(link)).unwrap();
    let volumes = root.join("var/lib/kubelet/pods").join(of("uid")).join("volumes/kubernetes.io~empty-dir/data");
    fs::create_dir_all(&volumes).unwrap();
    fs::write(volumes.join("file"), "kept").unwrap();
}

/// All links below the directory of the virtual cluster.
fn links(root: &Path) -> BTreeMap<String, String> {
    fn walk(at: &Path, base: &Path, out: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(base).unwrap().display().to_string();
            match fs::read_link(&path) {
                Ok(target) => drop(out.insert(name, target.display().to_string())),
                Err(_) => walk(&path, base, out),
            }
        }
    }
    let base = root.join(BASE);
    let mut out = BTreeMap::new();
    walk(&base, &base, &mut out);
    out
}

fn sync(root: &Path, pods: &[&Value]) -> Changes {
    let node = Node::new(root);
    let pods: Vec<MappedPod> = pods.iter().filter_map(|p| MappedPod::of(p, "vc")).collect();
    node.sync("host-ns", "vc", &pods, &node.look().unwrap()).unwrap()
}

/// What a collector in the virtual cluster sees at a path: the mapped directories in the place of the node's.
fn read_as_tenant(root: &Path, path: &str) -> String {
    let mut path = PathBuf::from(path);
    for _ in 0..20 {
        let text = path.display().to_string();
        let mounts = [
            ("/var/vcluster/physical/log", root.join("var/log")),
            ("/var/vcluster/physical/kubelet/pods", root.join("var/lib/kubelet/pods")),
            ("/var/lib/kubelet/pods", root.join(BASE).join("kubelet/pods")),
            ("/var/log", root.join(BASE).join("log")),
        ];
        let (mount, real) = mounts.into_iter().find(|(m, _)| text.starts_with(m)).expect("a mounted path");
        // Follow the first link on the way, as the kernel does.
        let rest: Vec<String> = text[mount.len()..].split('/').filter(|p| !p.is_empty()).map(str::to_owned).collect();
        let mut at = real.clone();
        let mut followed = None;
        for (n, part) in rest.iter().enumerate() {
            at.push(part);
            if let Ok(target) = fs::read_link(&at) {
                followed = Some(target.join(rest[n + 1..].join("/")));
                break;
            }
        }
        match followed {
            Some(next) => path = next.components().collect(),
            None => return fs::read_to_string(at).unwrap(),
        }
    }
    panic!("too many links at {}", path.display());
}

#[test]
fn a_collector_in_the_virtual_cluster_finds_its_own_pods() {
    let root = tempfile::tempdir().unwrap();
    let web = host_pod("web", "u-1");
    let mut other = host_pod("other", "u-2");
    other["metadata"]["labels"]["vcluster.loft.sh/managed-by"] = "victim".into();
    for (pod, id) in [(&web, "c1"), (&other, "c2")] {
        make_files(root.path(), pod, id);
    }
    assert_eq!(sync(root.path(), &[&web, &other]).made, 3);
    let host_logs = "host-ns_web-x-default-x-vc_u-1";
    assert_eq!(
        links(root.path()),
        BTreeMap::from(
            [
                ("log/pods/default_web_v-u-1", format!("/var/vcluster/physical/log/pods/{host_logs}")),
                ("log/containers/web_default_app-c1.log", "/var/log/pods/default_web_v-u-1/app/0.log".to_owned()),
                ("kubelet/pods/v-u-1/volumes", "/var/vcluster/physical/kubelet/pods/u-1/volumes".to_owned()),
            ]
            .map(|(link, target)| (link.to_owned(), target))
        )
    );
    for (path, want) in [
        ("/var/log/containers/web_default_app-c1.log", "said by c1\n"),
        ("/var/log/pods/default_web_v-u-1/app/0.log", "said by c1\n"),
        ("/var/lib/kubelet/pods/v-u-1/volumes/kubernetes.io~empty-dir/data/file", "kept"),
    ] {
        assert_eq!(read_as_tenant(root.path(), path), want, "{path}");
    }
    assert_eq!(sync(root.path(), &[&web]), Changes::default(), "again, nothing");
}

#[test]
fn links_go_with_the_files_and_follow_restarts() {
    let root = tempfile::tempdir().unwrap();
    let web = host_pod("web", "u-1");
    make_files(root.path(), &web, "c1");
    sync(root.path(), &[&web]);
    // The container was started again: another id, another file.
    let logs = root.path().join("var/log/pods/host-ns_web-x-default-x-vc_u-1/app");
    fs::write(logs.join("1.log"), "again").unwrap();
    let containers = root.path().join("var/log/containers");
    fs::remove_file(containers.join("web-x-default-x-vc_host-ns_app-c1.log")).unwrap();
    symlink("/var/log/pods/x/app/1.log", containers.join("web-x-default-x-vc_host-ns_app-c2.log")).unwrap();
    assert_eq!(sync(root.path(), &[&web]), Changes { made: 1, removed: 1 });
    assert_eq!(read_as_tenant(root.path(), "/var/log/containers/web_default_app-c2.log"), "again");
    // The pod is gone, its logs are not.
    assert_eq!(sync(root.path(), &[]), Changes::default());
    assert_eq!(read_as_tenant(root.path(), "/var/log/containers/web_default_app-c2.log"), "again");
    fs::remove_dir_all(root.path().join("var/log/pods")).unwrap();
    fs::remove_dir_all(root.path().join("var/lib/kubelet/pods/u-1")).unwrap();
    assert_eq!(sync(root.path(), &[]).removed, 3);
    assert_eq!(links(root.path()), BTreeMap::new());
    assert!(!root.path().join(BASE).join("kubelet/pods/v-u-1").exists());
    assert_eq!(Node::new(root.path()).clusters().unwrap(), [("host-ns".to_owned(), "vc".to_owned())]);
}

#[test]
fn what_a_tenant_writes_into_its_directory_harms_nobody() {
    let root = tempfile::tempdir().unwrap();
    let web = host_pod("web", "u-1");
    make_files(root.path(), &web, "c1");
    let base = root.path().join(BASE);
    fs::create_dir_all(base.join("log")).unwrap();
    // A directory replaced by a way out, a link that leads elsewhere, a file under the name of a link, foreign files.
    let outside = root.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    symlink(&outside, base.join("log/containers")).unwrap();
    fs::create_dir_all(base.join("log/pods")).unwrap();
    symlink("/etc/shadow", base.join("log/pods/default_web_v-u-1")).unwrap();
    symlink("/etc", base.join("log/pods/mine")).unwrap();
    fs::create_dir_all(base.join("kubelet/pods/v-u-1")).unwrap();
    fs::write(base.join("kubelet/pods/v-u-1/volumes"), "mine").unwrap();
    sync(root.path(), &[&web]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing is written outside");
    let links = links(root.path());
    assert_eq!(links["log/pods/default_web_v-u-1"], "/var/vcluster/physical/log/pods/host-ns_web-x-default-x-vc_u-1");
    assert_eq!(links["log/pods/mine"], "/etc", "the tenant's own");
    assert_eq!(fs::read_to_string(base.join("kubelet/pods/v-u-1/volumes")).unwrap(), "mine");
    // Names that are no names.
    for (member, value) in [("object-name", "../../x"), ("object-namespace", "a/b"), ("object-uid", "..")] {
        let mut forged = web.clone();
        forged.set_at(&["metadata", "annotations", &format!("vcluster.loft.sh/{member}")], value.into());
        assert_eq!(MappedPod::of(&forged, "vc"), None, "{member}");
    }
    assert_eq!(MappedPod::of(&web, "other"), None);
    assert_eq!(plan(&[], &Node::new(root.path()).look().unwrap()), BTreeMap::new());
    let _ = kind::POD.gvk();
}
