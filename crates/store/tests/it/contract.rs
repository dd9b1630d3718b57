//! Every backend of this crate keeps the contract.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use store::contract::{Place, cases};
use store::{Backend, Memory, Sqlite, SqliteOptions};

struct InMemory(Memory);

#[async_trait]
impl Place for InMemory {
    async fn open(&self) -> Arc<dyn Backend> {
        Arc::new(self.0.clone())
    }
}

struct InFile(PathBuf);

#[async_trait]
impl Place for InFile {
    async fn open(&self) -> Arc<dyn Backend> {
        Arc::new(Sqlite::open(&self.0, SqliteOptions::default()).await.expect("the file opens"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_keeps_the_contract() {
    for (name, case) in cases() {
        println!("{name}");
        case(Arc::new(InMemory(Memory::new()))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_the_contract() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, case) in cases() {
        println!("{name}");
        case(Arc::new(InFile(directory.path().join(name)))).await;
    }
}
