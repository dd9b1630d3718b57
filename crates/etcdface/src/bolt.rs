//! Files in the format of bbolt, etcd's database: written once, from the front, never changed.
//!
//! Knows pages, buckets, keys and bytes; does not know what etcd keeps in them.
//!
//! Layout: two meta pages, an empty list of free pages, then one B+ tree for each bucket and one of the buckets. Every page
//! is in use, so that nothing has to be free.
//!
//! Follows: bbolt's file format, version 2 (`go.etcd.io/bbolt/internal/common`).

/// Every page has this size; what is larger takes several in a row.
const PAGE_BYTES: usize = 4096;
const HEADER_BYTES: usize = 16;
/// The same in a branch as in a leaf.
const ELEMENT_BYTES: usize = 16;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREE_LIST: u16 = 0x10;
/// Marks an element whose value is a bucket.
const BUCKET: u32 = 0x01;

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
const FREE_LIST_PAGE: u64 = 2;
const FIRST_DATA_PAGE: u64 = 3;

/// A key with its value. The keys of a bucket are ascending.
pub(crate) type Item = (Vec<u8>, Vec<u8>);

/// A file with these buckets, whose names are ascending.
pub(crate) fn file<'a>(buckets: impl IntoIterator<Item = (&'a str, Vec<Item>)>) -> Vec<u8> {
    let mut file = File { bytes: vec![0; FIRST_DATA_PAGE as usize * PAGE_BYTES] };
    let roots: Vec<Item> = buckets
        .into_iter()
        .map(|(name, items)| {
            let root = file.tree(&items, 0);
            // The tree's first page, and a sequence number that nobody uses.
            (name.as_bytes().to_vec(), [root.to_le_bytes(), [0; 8]].concat())
        })
        .collect();
    let root = file.tree(&roots, BUCKET);
    let end = file.next_page();
    for (page, transaction) in [(0, 2), (1, 1)] {
        let meta = meta(root, end, transaction);
        file.put_page(page, META, 0, &meta);
    }
    file.put_page(FREE_LIST_PAGE, FREE_LIST, 0, &[]);
    file.bytes
}

/// The newer one of the two, by transaction, counts.
fn meta(root: u64, end: u64, transaction: u64) -> Vec<u8> {
    let mut meta = Vec::with_capacity(64);
    for number in [MAGIC, VERSION, PAGE_BYTES as u32, 0] {
        meta.extend(number.to_le_bytes());
    }
    for number in [root, 0, FREE_LIST_PAGE, end, transaction] {
        meta.extend(number.to_le_bytes());
    }
    // FNV-1a.
    let sum = meta
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    meta.extend(sum.to_le_bytes());
    meta
}

struct File {
    bytes: Vec<u8>,
}

impl File {
    fn next_page(&self) -> u64 {
        (self.bytes.len() / PAGE_BYTES) as u64
    }

    fn put_page(&mut self, page: u64, kind: u16, count: usize, body: &[u8]) {
        let start = page as usize * PAGE_BYTES;
        let pages = (HEADER_BYTES + body.len()).div_ceil(PAGE_BYTES).max(1);
        let end = start + pages * PAGE_BYTES;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend(page.to_le_bytes());
        header.extend(kind.to_le_bytes());
        header.extend((count as u16).to_le_bytes());
        header.extend((pages as u32 - 1).to_le_bytes());
        self.bytes[start..start + HEADER_BYTES].copy_from_slice(&header);
        self.bytes[start + HEADER_BYTES..start + HEADER_BYTES + body.len()].copy_from_slice(body);
    }

    /// Writes a tree, leaves first; returns its root's page.
    fn tree(&mut self, items: &[Item], flags: u32) -> u64 {
        let mut level: Vec<(&[u8], u64)> = Vec::new();
        let size = |(key, value): &Item| ELEMENT_BYTES + key.len() + value.len();
        for items in in_pages(items, size) {
            let page = self.next_page();
            let heads: Vec<_> = items.iter().map(|(key, value)| (&key[..], &value[..])).collect();
            let body = elements(&heads, |position, key, value| {
                let numbers = [flags, position, key.len() as u32, value.len() as u32];
                numbers.map(u32::to_le_bytes).concat()
            });
            self.put_page(page, LEAF, items.len(), &body);
            level.push((items.first().map_or(&[], |(key, _)| key), page));
        }
        while level.len() > 1 {
            let mut above = Vec::new();
            for children in in_pages(&level, |(key, _)| ELEMENT_BYTES + key.len()) {
                let page = self.next_page();
                let mut pages = children.iter().map(|(_, page)| *page);
                let heads: Vec<_> = children.iter().map(|(key, _)| (*key, &[][..])).collect();
                let body = elements(&heads, |position, key, _| {
                    let child = pages.next().unwrap_or_default();
                    [&position.to_le_bytes()[..], &(key.len() as u32).to_le_bytes(), &child.to_le_bytes()].concat()
                });
                self.put_page(page, BRANCH, children.len(), &body);
                above.push((children[0].0, page));
            }
            level = above;
        }
        level[0].1
    }
}

/// Groups that fit on a page each; what is larger than a page is alone. At least one group, which may be empty.
fn in_pages<T>(items: &[T], size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut groups = Vec::new();
    let (mut start, mut used) = (0, HEADER_BYTES);
    for (index, item) in items.iter().enumerate() {
        let size = size(item);
        if index > start && used + size > PAGE_BYTES {
            groups.push(&items[start..index]);
            (start, used) = (index, HEADER_BYTES);
        }
        used += size;
    }
    groups.push(&items[start..]);
    groups
}

/// The heads of all elements, then their bytes. A head says how far away from it its bytes are.
fn elements<'a>(items: &[(&'a [u8], &'a [u8])], mut head: impl FnMut(u32, &'a [u8], &'a [u8]) -> Vec<u8>) -> Vec<u8> {
    let (mut heads, mut data) = (Vec::new(), Vec::new());
    for (index, (key, value)) in items.iter().enumerate() {
        let away = (items.len() - index) * ELEMENT_BYTES + data.len();
        heads.extend(head(away as u32, key, value));
        data.extend_from_slice(key);
        data.extend_from_slice(value);
    }
    heads.extend(data);
    heads
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// All items below a page, as a reader of the format finds them.
    fn read(file: &[u8], page: u64, items: &mut Vec<Item>) {
        let page = &file[page as usize * PAGE_BYTES..];
        let kind = u16::from_le_bytes([page[8], page[9]]);
        let count = usize::from(u16::from_le_bytes([page[10], page[11]]));
        for element in 0..count {
            let at = HEADER_BYTES + element * ELEMENT_BYTES;
            if kind == BRANCH {
                read(file, u64_at(page, at + 8), items);
                continue;
            }
            assert_eq!(kind, LEAF);
            let key = at + u32_at(page, at + 4);
            let value = key + u32_at(page, at + 8);
            items.push((page[key..value].to_vec(), page[value..value + u32_at(page, at + 12)].to_vec()));
        }
    }

    #[test]
    fn a_file_holds_what_was_put_into_it_in_trees_of_every_height() {
        for (count, size) in [(0, 0), (1, 1), (40, 100), (5_000, 30), (3, 100_000), (60_000, 4)] {
            let items: Vec<Item> = (0..count as u32).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; size])).collect();
            let file = file([("a", items.clone()), ("b", Vec::new())]);
            assert_eq!(file.len() % PAGE_BYTES, 0);
            let meta = &file[HEADER_BYTES..];
            assert_eq!(u64_at(meta, 40), (file.len() / PAGE_BYTES) as u64, "the end of the file");
            let mut buckets = Vec::new();
            read(&file, u64_at(meta, 16), &mut buckets);
            let names: Vec<_> = buckets.iter().map(|(name, _)| name.as_slice()).collect();
            assert_eq!(names, [b"a", b"b"]);
            let mut found = Vec::new();
            read(&file, u64_at(&buckets[0].1, 0), &mut found);
            assert!(found == items, "{count} items of {size} bytes");
        }
    }
}
