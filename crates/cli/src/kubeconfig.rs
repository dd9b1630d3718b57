//! kubeconfig files: read as a tree that keeps every key, changed, written back whole and readable by the owner only.
//!
//! Invariants:
//! - What is not understood stays as it was.
//! - A reader sees the old or the new file, never half of one: written beside and renamed.
//! - `FILE.lock` is held while a file is read, changed and written, as client-go does.
//! - With several files in `KUBECONFIG` the first that has an entry wins; an entry is changed where it stands, new ones and
//!   `current-context` go to the file kubectl would choose.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::failure::Failure;

/// The files in effect, first wins.
pub fn paths(flag: Option<&Path>) -> Vec<PathBuf> {
    if let Some(path) = flag {
        return vec![path.to_path_buf()];
    }
    if let Some(list) = std::env::var_os("KUBECONFIG") {
        let paths: Vec<PathBuf> = std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect();
        if !paths.is_empty() {
            return paths;
        }
    }
    std::env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect()
}

/// Reads one file; a missing or empty one is an empty configuration.
pub fn read(path: &Path) -> anyhow::Result<Value> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read kubeconfig {}", path.display())),
    };
    parse(&text).with_context(|| format!("kubeconfig {} is not usable", path.display()))
}

/// Parses a kubeconfig text.
pub fn parse(text: &str) -> anyhow::Result<Value> {
    let value = match config::yaml::parse(text) {
        Ok(node) => node.map(|node| node.to_value()).unwrap_or(Value::Null),
        Err(error) => return Err(Failure::invalid(format!("it is not YAML: {error}")).into()),
    };
    match value {
        Value::Null => Ok(empty()),
        Value::Object(_) => {
            for key in ["clusters", "users", "contexts"] {
                if !matches!(value.get(key), None | Some(Value::Null | Value::Array(_))) {
                    return Err(Failure::invalid(format!("{key} must be a list")).into());
                }
            }
            Ok(value)
        }
        _ => Err(Failure::invalid("it must be a map").into()),
    }
}

pub fn empty() -> Value {
    json!({"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": [], "current-context": ""})
}

/// All files as one, as kubectl reads them.
pub fn merged(paths: &[PathBuf]) -> anyhow::Result<Value> {
    let mut merged = empty();
    for path in paths {
        let mut value = read(path)?;
        // Relative file names in a kubeconfig are relative to the file.
        absolute_paths(&mut value, path.parent().unwrap_or(Path::new(".")));
        for key in ["clusters", "users", "contexts"] {
            for entry in entries(&value, key) {
                if find(&merged, key, name_of(entry)).is_none() {
                    list_mut(&mut merged, key).push(entry.clone());
                }
            }
        }
        if current_context(&merged).is_none()
            && let Some(context) = current_context(&value)
        {
            merged["current-context"] = json!(context);
        }
    }
    Ok(merged)
}

fn absolute_paths(value: &mut Value, folder: &Path) {
    for (list, object, keys) in [
        ("clusters", "cluster", &["certificate-authority"][..]),
        ("users", "user", &["client-certificate", "client-key", "tokenFile"][..]),
    ] {
        for entry in list_mut(value, list) {
            for key in keys {
                if let Some(slot) = entry.get_mut(object).and_then(|object| object.get_mut(*key))
                    && let Some(path) = slot.as_str().filter(|path| !path.is_empty() && Path::new(path).is_relative())
                {
                    *slot = json!(folder.join(path).to_string_lossy());
                }
            }
        }
    }
}

fn name_of(entry: &Value) -> &str {
    entry.get("name").and_then(Value::as_str).unwrap_or_default()
}

pub fn entries<'a>(config: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    config.get(list).and_then(Value::as_array).into_iter().flatten()
}

fn list_mut<'a>(config: &'a mut Value, list: &str) -> &'a mut Vec<Value> {
    if !config.get(list).is_some_and(Value::is_array) {
        config[list] = json!([]);
    }
    config[list].as_array_mut().expect("just made")
}

pub fn find<'a>(config: &'a Value, list: &str, name: &str) -> Option<&'a Value> {
    entries(config, list).find(|entry| name_of(entry) == name)
}

pub fn current_context(config: &Value) -> Option<&str> {
    config.get("current-context").and_then(Value::as_str).filter(|name| !name.is_empty())
}

/// A kubeconfig with the single context `name` under that same name for cluster and user.
pub fn renamed(config: &Value, name: &str, server: Option<&str>, insecure: bool) -> anyhow::Result<Value> {
    let single = |list: &str, object: &str| -> anyhow::Result<Value> {
        let mut all = entries(config, list);
        match (all.next(), all.next()) {
            (Some(entry), None) => Ok(entry.get(object).cloned().unwrap_or_else(|| json!({}))),
            _ => Err(Failure::failed(format!("the kubeconfig must hold exactly one entry in {list}")).into()),
        }
    };
    let mut cluster = single("clusters", "cluster")?;
    if let Some(server) = server {
        cluster["server"] = json!(server);
    }
    if insecure {
        cluster["insecure-skip-tls-verify"] = json!(true);
        cluster.as_object_mut().map(|cluster| cluster.remove("certificate-authority-data"));
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": single("users", "user")?}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }))
}

/// A change of the files in effect.
pub enum Change<'a> {
    /// Adds or replaces the entries of `0` and makes its context current.
    AddAndSwitch(&'a Value),
    /// Makes this context current.
    Switch(&'a str),
    /// Removes the context and its cluster and user when nothing else uses them. Current goes to the second, or nowhere.
    Remove(&'a str, Option<&'a str>),
}

/// Applies the change to the files in effect.
pub fn change(paths: &[PathBuf], change: &Change<'_>) -> anyhow::Result<()> {
    let Some(default_path) = default_write_path(paths)? else {
        return Err(Failure::invalid("there is no kubeconfig to write to")
            .hint("set KUBECONFIG or pass --kubeconfig")
            .into());
    };
    match change {
        Change::AddAndSwitch(new) => {
            // Replaced where they stand, else added to the default file.
            let name = current_context(new).unwrap_or_default().to_string();
            let target = paths
                .iter()
                .find(|path| read(path).is_ok_and(|config| find(&config, "contexts", &name).is_some()))
                .unwrap_or(&default_path);
            edit(target, |config| {
                for list in ["clusters", "users", "contexts"] {
                    for entry in entries(new, list) {
                        put(config, list, entry.clone());
                    }
                }
            })?;
            set_current(paths, &default_path, &name)
        }
        Change::Switch(name) => set_current(paths, &default_path, name),
        Change::Remove(name, next) => {
            for path in paths.iter().filter(|path| path.exists()) {
                edit(path, |config| remove(config, name))?;
            }
            let config = merged(paths)?;
            if current_context(&config).is_none_or(|current| current == *name) {
                set_current(paths, &default_path, next.unwrap_or_default())?;
            }
            Ok(())
        }
    }
}

/// kubectl writes `current-context` where it is set, else to the default file.
fn set_current(paths: &[PathBuf], default_path: &Path, name: &str) -> anyhow::Result<()> {
    let target = paths.iter().find(|path| read(path).is_ok_and(|config| current_context(&config).is_some()));
    edit(target.map_or(default_path, |path| path), |config| config["current-context"] = json!(name))
}

/// The first existing file, else the last named.
fn default_write_path(paths: &[PathBuf]) -> anyhow::Result<Option<PathBuf>> {
    Ok(paths.iter().find(|path| path.exists()).or(paths.last()).cloned())
}

fn put(config: &mut Value, list: &str, entry: Value) {
    let name = name_of(&entry).to_string();
    let list = list_mut(config, list);
    match list.iter_mut().find(|existing| name_of(existing) == name) {
        Some(existing) => *existing = entry,
        None => list.push(entry),
    }
}

fn remove(config: &mut Value, name: &str) {
    let Some(context) = find(config, "contexts", name).cloned() else { return };
    list_mut(config, "contexts").retain(|entry| name_of(entry) != name);
    for (list, key) in [("clusters", "cluster"), ("users", "user")] {
        let used = context["context"][key].as_str().unwrap_or_default().to_string();
        let still_used = entries(config, "contexts").any(|entry| entry["context"][key] == used.as_str());
        if !still_used {
            list_mut(config, list).retain(|entry| name_of(entry) != used);
        }
    }
}

/// Reads, changes and writes one file under its lock.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    // A link keeps pointing where it points.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let _lock = Lock::take(&path)?;
    let mut config = read(&path)?;
    let before = config.clone();
    change(&mut config);
    if config != before || !path.exists() {
        write(&path, &config)?;
    }
    Ok(())
}

/// Writes a whole kubeconfig: beside, mode 0600, synced, renamed.
pub fn write(path: &Path, config: &Value) -> anyhow::Result<()> {
    use std::io::Write;
    let text = config::yaml::to_string(config)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".kubeconfig-")
        .tempfile_in(folder)
        .with_context(|| format!("cannot write in {}", folder.display()))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.persist(path).map_err(|error| error.error).with_context(|| format!("cannot replace {}", path.display()))?;
    Ok(())
}

struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> anyhow::Result<Lock> {
        let mut name = path.as_os_str().to_os_string();
        name.push(".lock");
        let lock = PathBuf::from(name);
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match std::fs::OpenOptions::new().write(true).create_new(true).open(&lock) {
                Ok(_) => return Ok(Lock(lock)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    if Instant::now() >= deadline {
                        return Err(Failure::failed(format!("{} is locked by another program", path.display()))
                            .hint(format!("if no other program is running, remove {}", lock.display()))
                            .into());
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The name of the context of a virtual cluster.
pub fn context_name(name: &str, namespace: &str, parent: &str) -> String {
    format!("vcluster_{name}_{namespace}_{parent}")
}

/// Name, namespace and parent context out of a context name.
pub fn parse_context(context: &str) -> Option<(&str, &str, &str)> {
    let rest = context.strip_prefix("vcluster_")?;
    let (name, rest) = rest.split_once('_')?;
    let (namespace, parent) = rest.split_once('_')?;
    (!name.is_empty() && !namespace.is_empty()).then_some((name, namespace, parent))
}

/// Without entries that need nothing: a map for [`kube::config::Kubeconfig`].
pub fn to_kube(config: &Value) -> anyhow::Result<kube::config::Kubeconfig> {
    let mut config = config.clone();
    if let Value::Object(map) = &mut config {
        map.retain(|_, value| !value.is_null());
        if map.get("current-context").is_some_and(|value| value == "") {
            map.remove("current-context");
        }
    }
    serde_json::from_value(Value::Object(config.as_object().cloned().unwrap_or_else(Map::new)))
        .map_err(|error| Failure::invalid(format!("the kubeconfig is not usable: {error}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(name: &str) -> Value {
        json!({
            "clusters": [{"name": name, "cluster": {"server": format!("https://{name}")}}],
            "users": [{"name": name, "user": {"token": "t"}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        })
    }

    #[test]
    fn context_names_are_made_and_taken_apart() {
        for (name, namespace, parent, text) in [
            ("a", "vcluster-a", "kind", "vcluster_a_vcluster-a_kind"),
            ("a", "b", "arn_aws_eks", "vcluster_a_b_arn_aws_eks"),
            ("a", "b", "", "vcluster_a_b_"),
        ] {
            assert_eq!(context_name(name, namespace, parent), text);
            assert_eq!(parse_context(text), Some((name, namespace, parent)));
        }
        for text in ["kind", "vcluster_", "vcluster_a", "vcluster_a_b", "vcluster__b_c"] {
            assert_eq!(parse_context(text), None, "{text}");
        }
    }

    #[test]
    fn unknown_keys_stay_and_the_file_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/config");
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(
            &path,
            "x-mine: 1\nclusters:\n- name: old\n  cluster:\n    server: https://old\n    future-key: yes\ncontexts:\n- name: old\n  context: {cluster: old, user: old, namespace: n}\ncurrent-context: old\n",
        )
        .unwrap();
        let paths = vec![path.clone()];
        change(&paths, &Change::AddAndSwitch(&single("new"))).unwrap();
        let config = read(&path).unwrap();
        assert_eq!(config["x-mine"], 1);
        assert_eq!(find(&config, "clusters", "old").unwrap()["cluster"]["future-key"], true);
        assert_eq!(current_context(&config), Some("new"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!folder.path().join("sub/config.lock").exists());
        change(&paths, &Change::Remove("new", Some("old"))).unwrap();
        let config = read(&path).unwrap();
        assert_eq!(current_context(&config), Some("old"));
        assert!(find(&config, "clusters", "new").is_none() && find(&config, "users", "new").is_none());
        assert!(find(&config, "clusters", "old").is_some());
    }

    #[test]
    fn several_files_are_read_as_one_and_changed_where_entries_stand() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        write(&one, &single("a")).unwrap();
        write(&two, &single("b")).unwrap();
        let paths = vec![one.clone(), two.clone()];
        assert_eq!(current_context(&merged(&paths).unwrap()), Some("a"));
        let mut changed = single("b");
        changed["clusters"][0]["cluster"]["server"] = json!("https://changed");
        change(&paths, &Change::AddAndSwitch(&changed)).unwrap();
        assert_eq!(find(&read(&two).unwrap(), "clusters", "b").unwrap()["cluster"]["server"], "https://changed");
        assert!(find(&read(&one).unwrap(), "clusters", "b").is_none());
        assert_eq!(current_context(&merged(&paths).unwrap()), Some("b"));
    }

    #[test]
    fn files_that_are_no_kubeconfig_are_refused() {
        for (text, want) in [
            ("a: [", "not YAML"),
            ("- a", "must be a map"),
            ("clusters: {}", "clusters must be a list"),
            ("just text", "must be a map"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(want), "{text}: {error}");
        }
        assert_eq!(parse("").unwrap(), empty());
    }

    #[test]
    fn a_long_value_survives_writing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let mut config = single("a");
        for text in [
            "A".repeat(3000),
            "0644".into(),
            "yes".into(),
            "12:30".into(),
            "a: b # c".into(),
            "- x".into(),
            String::new(),
        ] {
            config["users"][0]["user"]["token"] = json!(text);
            write(&path, &config).unwrap();
            assert_eq!(read(&path).unwrap()["users"][0]["user"]["token"], json!(text));
        }
    }
}
