//! Writes a bbolt file from the front to the back, in memory that does not grow with it.
//!
//! A bbolt file is pages of 4 KiB: two *metas*, which name the page where the list of buckets begins and how many pages
//! there are; and B+ trees, whose leaves hold keys and values and whose branches hold the first key of each page below. A
//! page that is too small for its one large element goes on in the pages behind it.
//!
//! Keys come in their order, so a tree is built from its leaves up: a page that is full is written and its first key
//! handed to the branch above, which is written when it is full. At any time there is one open page per level. What cannot
//! be known at the front is what the metas say. So a file is written twice, once to count and once for good, from the same
//! rows; [`Plan`] is what the first time leaves for the second.
//!
//! Source: bbolt 1.4, `internal/common/{page,meta,bucket}.go`.

use bytes::{BufMut, Bytes, BytesMut};

pub(super) const PAGE_BYTES: usize = 4096;
const PAGE_HEAD_BYTES: usize = 16;
/// Position, length of the key and of the value, or the page below.
const ELEMENT_HEAD_BYTES: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
/// An element of a leaf that is a bucket.
const BUCKET: u32 = 0x01;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// There is no list of free pages in the file: nothing is free, and whoever opens it finds that out.
const NO_FREELIST: u64 = u64::MAX;
/// The metas.
const FIRST_PAGE: u64 = 2;

/// What the metas say of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    root: u64,
    pages: u64,
}

impl Plan {
    pub(super) fn bytes(self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }
}

/// A page that takes elements.
struct Page {
    kind: u16,
    heads: Vec<(u32, u32, u64)>,
    data: BytesMut,
    first: Bytes,
}

impl Page {
    fn new(kind: u16) -> Self {
        Self { kind, heads: Vec::new(), data: BytesMut::new(), first: Bytes::new() }
    }

    fn bytes(&self) -> usize {
        PAGE_HEAD_BYTES + self.heads.len() * ELEMENT_HEAD_BYTES + self.data.len()
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.heads.is_empty() || self.bytes() + ELEMENT_HEAD_BYTES + bytes <= PAGE_BYTES
    }

    /// Takes an element. `extra` is the flags of a leaf's element and the page of a branch's.
    fn push(&mut self, extra: u64, key: &[u8], value: &[u8]) {
        if self.heads.is_empty() {
            self.first = Bytes::copy_from_slice(key);
        }
        self.data.reserve(key.len() + value.len());
        self.data.put_slice(key);
        self.data.put_slice(value);
        self.heads.push((key.len() as u32, value.len() as u32, extra));
    }
}

/// The tree of one bucket.
struct Tree {
    /// The open leaf, and the open branches above it.
    levels: Vec<Page>,
}

/// Writes one file. What is complete waits in [`Self::take`].
pub(super) struct File {
    next: u64,
    out: BytesMut,
    buckets: Vec<(Bytes, u64)>,
    tree: Option<(Bytes, Tree)>,
}

impl File {
    /// Begins a file; `plan` is what an earlier one of the same contents gave, where there was one.
    pub(super) fn new(plan: Option<Plan>) -> Self {
        let mut file = Self { next: FIRST_PAGE, out: BytesMut::new(), buckets: Vec::new(), tree: None };
        let plan = plan.unwrap_or(Plan { root: 0, pages: 0 });
        for number in 0..FIRST_PAGE {
            file.meta(number, plan);
        }
        file
    }

    fn meta(&mut self, number: u64, plan: Plan) {
        let out = &mut self.out;
        let end = out.len() + PAGE_BYTES;
        page_head(out, number, META, 0, 0);
        let from = out.len();
        out.put_u32_le(MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(PAGE_BYTES as u32);
        out.put_u32_le(0);
        out.put_u64_le(plan.root);
        out.put_u64_le(0);
        out.put_u64_le(NO_FREELIST);
        out.put_u64_le(plan.pages);
        // The transaction that wrote it: the later of the two counts.
        out.put_u64_le(number);
        let sum = fnv(&out[from..]);
        out.put_u64_le(sum);
        out.resize(end, 0);
    }

    /// Begins a bucket; buckets come in the order of their names.
    pub(super) fn bucket(&mut self, name: &'static str) {
        self.end_bucket();
        let name = Bytes::from_static(name.as_bytes());
        debug_assert!(self.buckets.last().is_none_or(|(last, _)| *last < name), "buckets come in their order");
        self.tree = Some((name, Tree { levels: vec![Page::new(LEAF)] }));
    }

    /// The next key of the bucket that was begun last; keys come in their order.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        let (name, mut tree) = self.tree.take().expect("a bucket was begun");
        self.push(&mut tree, 0, 0, key, value);
        self.tree = Some((name, tree));
    }

    fn push(&mut self, tree: &mut Tree, level: usize, extra: u64, key: &[u8], value: &[u8]) {
        if level == tree.levels.len() {
            tree.levels.push(Page::new(BRANCH));
        }
        if !tree.levels[level].has_room(key.len() + value.len()) {
            let kind = tree.levels[level].kind;
            let full = std::mem::replace(&mut tree.levels[level], Page::new(kind));
            let number = self.write(&full);
            self.push(tree, level + 1, number, &full.first, &[]);
        }
        tree.levels[level].push(extra, key, value);
    }

    /// Writes a page where the file is, and gives its number.
    fn write(&mut self, page: &Page) -> u64 {
        let number = self.next;
        let bytes = page.bytes();
        let pages = bytes.div_ceil(PAGE_BYTES);
        self.next += pages as u64;
        let out = &mut self.out;
        let end = out.len() + pages * PAGE_BYTES;
        page_head(out, number, page.kind, page.heads.len() as u16, (pages - 1) as u32);
        let mut at = 0;
        for (i, (key, value, extra)) in page.heads.iter().enumerate() {
            // A position is counted from where the element's head begins.
            let position = ((page.heads.len() - i) * ELEMENT_HEAD_BYTES + at) as u32;
            if page.kind == LEAF {
                out.put_u32_le(*extra as u32);
                out.put_u32_le(position);
                out.put_u32_le(*key);
                out.put_u32_le(*value);
            } else {
                out.put_u32_le(position);
                out.put_u32_le(*key);
                out.put_u64_le(*extra);
            }
            at += (*key + *value) as usize;
        }
        out.put_slice(&page.data);
        out.resize(end, 0);
        number
    }

    /// Writes what is open of a tree, and gives the number of its root.
    fn finish_tree(&mut self, mut tree: Tree) -> u64 {
        let mut level = 0;
        loop {
            let page = std::mem::replace(&mut tree.levels[level], Page::new(LEAF));
            let number = self.write(&page);
            if level + 1 == tree.levels.len() {
                return number;
            }
            level += 1;
            self.push(&mut tree, level, number, &page.first, &[]);
        }
    }

    fn end_bucket(&mut self) {
        if let Some((name, tree)) = self.tree.take() {
            let root = self.finish_tree(tree);
            self.buckets.push((name, root));
        }
    }

    /// Ends the file with the list of its buckets.
    pub(super) fn finish(&mut self) -> Plan {
        self.end_bucket();
        let mut tree = Tree { levels: vec![Page::new(LEAF)] };
        for (name, root) in std::mem::take(&mut self.buckets) {
            let mut value = [0; 16];
            value[..8].copy_from_slice(&root.to_le_bytes());
            self.push(&mut tree, 0, BUCKET.into(), &name, &value);
        }
        let root = self.finish_tree(tree);
        Plan { root, pages: self.next }
    }

    /// Bytes that are complete and were not taken.
    pub(super) fn waiting(&self) -> usize {
        self.out.len()
    }

    /// Takes at most `bytes` of what is complete.
    pub(super) fn take(&mut self, bytes: usize) -> Bytes {
        self.out.split_to(bytes.min(self.out.len())).freeze()
    }

    /// Forgets what is complete: nobody wants it, only to know how much it is.
    pub(super) fn discard(&mut self) {
        self.out.clear();
    }
}

fn page_head(out: &mut BytesMut, number: u64, kind: u16, count: u16, overflow: u32) {
    out.put_u64_le(number);
    out.put_u16_le(kind);
    out.put_u16_le(count);
    out.put_u32_le(overflow);
}

/// FNV-1a of 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
pub(super) mod reader {
    //! Reads a file back as bbolt does: from the later meta down. A second opinion on the layout, not on the constants;
    //! those are held against the original by the conformance suite.

    use std::collections::BTreeMap;

    use super::*;

    pub type Buckets = BTreeMap<String, Vec<(Vec<u8>, Vec<u8>)>>;

    pub struct Reader<'a> {
        bytes: &'a [u8],
        seen: Vec<bool>,
    }

    fn u16_at(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    impl<'a> Reader<'a> {
        pub fn read(bytes: &'a [u8]) -> Buckets {
            assert_eq!(bytes.len() % PAGE_BYTES, 0);
            let meta = &bytes[PAGE_BYTES + PAGE_HEAD_BYTES..];
            assert_eq!(u32_at(meta, 0), MAGIC);
            assert_eq!(u64_at(meta, 56), fnv(&meta[..56]));
            assert_eq!(u64_at(meta, 40) as usize * PAGE_BYTES, bytes.len(), "the file has as many pages as it says");
            let mut reader = Self { bytes, seen: vec![false; bytes.len() / PAGE_BYTES] };
            reader.seen[..2].fill(true);
            let mut buckets = Buckets::new();
            let root = u64_at(meta, 16);
            for (name, value, flags) in reader.tree(root) {
                assert_eq!(flags, BUCKET);
                let rows = reader.tree(u64_at(&value, 0)).into_iter().map(|(key, value, flags)| {
                    assert_eq!(flags, 0);
                    (key, value)
                });
                buckets.insert(String::from_utf8(name).unwrap(), rows.collect());
            }
            assert!(reader.seen.iter().all(|seen| *seen), "every page belongs to a tree");
            buckets
        }

        fn tree(&mut self, number: u64) -> Vec<(Vec<u8>, Vec<u8>, u32)> {
            let at = number as usize * PAGE_BYTES;
            let page = &self.bytes[at..];
            assert_eq!(u64_at(page, 0), number);
            let (kind, count, overflow) = (u16_at(page, 8), u16_at(page, 10) as usize, u32_at(page, 12) as usize);
            let page = &page[..(overflow + 1) * PAGE_BYTES];
            for seen in &mut self.seen[number as usize..=number as usize + overflow] {
                assert!(!*seen, "no page belongs to two");
                *seen = true;
            }
            let mut rows = Vec::new();
            for i in 0..count {
                let head = PAGE_HEAD_BYTES + i * ELEMENT_HEAD_BYTES;
                if kind == LEAF {
                    let key = head + u32_at(page, head + 4) as usize;
                    let value = key + u32_at(page, head + 8) as usize;
                    let end = value + u32_at(page, head + 12) as usize;
                    rows.push((page[key..value].to_vec(), page[value..end].to_vec(), u32_at(page, head)));
                } else {
                    assert_eq!(kind, BRANCH);
                    let key = head + u32_at(page, head) as usize;
                    let first = page[key..key + u32_at(page, head + 4) as usize].to_vec();
                    let below = self.tree(u64_at(page, head + 8));
                    assert_eq!(below[0].0, first, "a branch has the first key of each page below");
                    rows.extend(below);
                }
            }
            assert!(rows.is_sorted_by(|a, b| a.0 < b.0), "keys are in order");
            rows
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{reader::Reader, *};

    type Rows = Vec<(Vec<u8>, Vec<u8>)>;

    fn written(buckets: &[(&'static str, Rows)], plan: Option<Plan>) -> (Vec<u8>, Plan) {
        let mut file = File::new(plan);
        let (mut bytes, mut largest) = (Vec::new(), 0);
        for (name, rows) in buckets {
            file.bucket(name);
            for (key, value) in rows {
                file.put(key, value);
                largest = largest.max(key.len() + value.len());
                assert!(file.waiting() < 8 * PAGE_BYTES + largest, "what waits is a page of each level");
                bytes.extend_from_slice(&file.take(usize::MAX));
            }
        }
        let plan = file.finish();
        bytes.extend_from_slice(&file.take(usize::MAX));
        (bytes, plan)
    }

    fn check(buckets: Vec<(&'static str, Rows)>) {
        let (_, plan) = written(&buckets, None);
        let (bytes, again) = written(&buckets, Some(plan));
        assert_eq!(again, plan);
        assert_eq!(bytes.len() as u64, plan.bytes());
        let read: Vec<_> = Reader::read(&bytes).into_iter().collect();
        let wanted: Vec<_> = buckets.into_iter().map(|(name, rows)| (name.to_owned(), rows)).collect();
        assert_eq!(read, wanted);
    }

    #[test]
    fn small_large_and_empty_buckets_are_read_back() {
        let row = |n: u32, bytes: usize| (n.to_be_bytes().to_vec(), vec![n as u8; bytes]);
        check(vec![("empty", Vec::new())]);
        check(vec![
            ("a", (0..100_000).map(|n| row(n, 20)).collect()),
            ("b", Vec::new()),
            ("c", vec![row(1, 3_000_000), row(2, 1), row(3, PAGE_BYTES), row(4, 10)]),
        ]);
        // What just fits, and what just does not.
        for bytes in PAGE_BYTES - 60..PAGE_BYTES + 4 {
            check(vec![("edge", (0..3).map(|n| row(n, bytes)).collect())]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_is_written_is_read_back(
            rows in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..600), 0usize..9000, 0..300)
        ) {
            let rows = rows.into_iter().map(|(key, bytes)| (key, vec![7; bytes])).collect();
            check(vec![("rows", rows)]);
        }
    }
}
