//! The files of a simulated container: a tree in memory of bounded size.

use std::collections::BTreeMap;

/// All files of one container together.
const BYTES_MAX: usize = 64 << 20;
const FILES_MAX: usize = 20_000;

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Folder,
    File(Vec<u8>),
}

/// Paths to what they are. Every path's folders are there too.
#[derive(Clone, Debug)]
pub struct Files {
    nodes: BTreeMap<String, Node>,
    bytes: usize,
}

/// Why a path was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    #[error("No such file or directory")]
    Missing,
    #[error("Is a directory")]
    IsFolder,
    #[error("Not a directory")]
    IsFile,
    #[error("No space left on device")]
    Full,
}

impl Default for Files {
    fn default() -> Self {
        let mut files = Files { nodes: BTreeMap::new(), bytes: 0 };
        for folder in ["/", "/bin", "/etc", "/root", "/tmp", "/usr", "/var"] {
            files.nodes.insert(folder.to_owned(), Node::Folder);
        }
        files
    }
}

/// Without empty and dotted steps; never above the root.
pub fn normal(path: &str) -> String {
    let mut steps: Vec<&str> = Vec::new();
    for step in path.split('/') {
        match step {
            "" | "." => {}
            ".." => {
                steps.pop();
            }
            step => steps.push(step),
        }
    }
    format!("/{}", steps.join("/"))
}

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        None | Some(0) => "/",
        Some(at) => &path[..at],
    }
}

impl Files {
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    pub fn read(&self, path: &str) -> Result<&[u8], FileError> {
        match self.nodes.get(path) {
            Some(Node::File(content)) => Ok(content),
            Some(Node::Folder) => Err(FileError::IsFolder),
            None => Err(FileError::Missing),
        }
    }

    pub fn write(&mut self, path: &str, content: Vec<u8>) -> Result<(), FileError> {
        match self.nodes.get(parent(path)) {
            Some(Node::Folder) => {}
            Some(Node::File(_)) => return Err(FileError::IsFile),
            None => return Err(FileError::Missing),
        }
        let before = match self.nodes.get(path) {
            Some(Node::Folder) => return Err(FileError::IsFolder),
            Some(Node::File(before)) => before.len(),
            None => 0,
        };
        if self.bytes - before + content.len() > BYTES_MAX || self.nodes.len() >= FILES_MAX {
            return Err(FileError::Full);
        }
        self.bytes = self.bytes - before + content.len();
        self.nodes.insert(path.to_owned(), Node::File(content));
        Ok(())
    }

    /// Makes a folder; with `parents` those above it too.
    pub fn make_folder(&mut self, path: &str, parents: bool) -> Result<(), FileError> {
        match self.nodes.get(path) {
            Some(Node::Folder) => return Ok(()),
            Some(Node::File(_)) => return Err(FileError::IsFile),
            None => {}
        }
        if self.nodes.len() >= FILES_MAX {
            return Err(FileError::Full);
        }
        match self.nodes.get(parent(path)) {
            Some(Node::Folder) => {}
            Some(Node::File(_)) => return Err(FileError::IsFile),
            None if parents => self.make_folder(parent(path).to_owned().as_str(), true)?,
            None => return Err(FileError::Missing),
        }
        self.nodes.insert(path.to_owned(), Node::Folder);
        Ok(())
    }

    /// Removes a path and everything below it.
    pub fn remove(&mut self, path: &str) -> bool {
        let below = format!("{}/", path.trim_end_matches('/'));
        let bytes = &mut self.bytes;
        let before = self.nodes.len();
        self.nodes.retain(|name, node| {
            let goes = name == path || name.starts_with(&below);
            if let (true, Node::File(content)) = (goes, &*node) {
                *bytes -= content.len();
            }
            !goes
        });
        self.nodes.len() < before
    }

    /// Names in a folder, sorted.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let prefix = if folder == "/" { "/".to_owned() } else { format!("{folder}/") };
        let names = self.nodes.keys().filter_map(|path| path.strip_prefix(&prefix));
        names.filter(|name| !name.is_empty() && !name.contains('/')).map(str::to_owned).collect()
    }

    /// A path and everything below it, sorted.
    pub fn below<'a>(&'a self, path: &str) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let (path, prefix) = (path.to_owned(), format!("{}/", path.trim_end_matches('/')));
        let all = self.nodes.iter().filter(move |(name, _)| **name == path || name.starts_with(&prefix));
        all.map(|(name, node)| (name.as_str(), node))
    }
}
