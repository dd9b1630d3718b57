//! The syncer's pairs of objects in the virtual cluster's own store, beside what the API server keeps there.

use async_trait::async_trait;
use bytes::Bytes;
use store::{Expect, Op, RangeRequest, Store, prefix_end};
use syncer::MappingStore;

pub(crate) struct InStore(pub Store);

#[async_trait]
impl MappingStore for InStore {
    async fn load(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
        let start = Bytes::copy_from_slice(prefix.as_bytes());
        let request = RangeRequest { end: prefix_end(&start), start, ..RangeRequest::default() };
        let found = self.0.range(request).await.map_err(|error| error.to_string())?;
        let entries = found.kvs.iter();
        Ok(entries.map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv.value.to_vec())).collect())
    }

    async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), String> {
        let known = self.0.get(key.as_bytes(), 0).await.map_err(|error| error.to_string())?;
        if known.is_some_and(|kv| *kv.value == *value) {
            return Ok(());
        }
        let op = Op::Put { value: value.into(), lease: 0 };
        self.0.txn(key.to_owned().into(), Expect::Any, op).await.map(drop).map_err(|error| error.to_string())
    }

    async fn delete(&self, key: &str) -> Result<(), String> {
        let known = self.0.get(key.as_bytes(), 0).await.map_err(|error| error.to_string())?;
        if known.is_none() {
            return Ok(());
        }
        self.0.txn(key.to_owned().into(), Expect::Any, Op::Delete).await.map(drop).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pairs_are_kept() {
        let store = InStore(Store::in_memory(store::Options::default()).await);
        for key in ["/vcluster/mappings/v1/pod/a/b", "/vcluster/mappings/v1/pod/a/c", "/vcluster/other"] {
            store.put(key, b"1".to_vec()).await.unwrap();
        }
        store.put("/vcluster/mappings/v1/pod/a/b", b"2".to_vec()).await.unwrap();
        store.delete("/vcluster/mappings/v1/pod/a/c").await.unwrap();
        store.delete("/vcluster/mappings/v1/pod/a/none").await.unwrap();
        let all = store.load("/vcluster/mappings/").await.unwrap();
        assert_eq!(all, [("/vcluster/mappings/v1/pod/a/b".to_owned(), b"2".to_vec())]);
    }
}
