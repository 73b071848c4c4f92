//! Header compression.
//!
//! Decoding follows the peer's table, whatever it does with it. Encoding needs little: what we say is short and mostly the
//! same, so the few fields that the host names as repeated go into the peer's table once, and everything else is sent as
//! it is.
//!
//! A head lies in one buffer that is used again, so decoding allocates only where the peer's table grows.
//!
//! Source: RFC 7541.

use std::collections::VecDeque;

use crate::huffman;

/// The block is no HPACK; nothing that follows on its connection could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The size of a table that nobody has spoken about.
pub const TABLE_BYTES: usize = 4096;
/// What an entry counts beside its texts. Section 4.1.
const ENTRY_BYTES: usize = 32;

/// Appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The fields of a head, in order.
#[derive(Clone, Debug, Default)]
pub struct Head {
    bytes: Vec<u8>,
    /// Where each name and each value ends.
    ends: Vec<(u32, u32)>,
    /// What section 6.5.2 of RFC 9113 counts: texts, and 32 for each field.
    size: usize,
    /// Fields that did not fit were left out.
    pub cut: bool,
}

impl Head {
    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        (self.size, self.cut) = (0, false);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut begin = 0;
        self.ends.iter().map(move |(name, value)| {
            let (from, name, value) = (begin, *name as usize, *value as usize);
            begin = value;
            (&self.bytes[from..name], &self.bytes[name..value])
        })
    }

    /// The value of the first field of this name.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

struct Entry {
    /// Name and value.
    bytes: Box<[u8]>,
    name: usize,
}

impl Entry {
    fn size(&self) -> usize {
        self.bytes.len() + ENTRY_BYTES
    }
}

/// The peer's table as we follow it.
pub struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    /// What the peer wants to use of what it may.
    size_max: usize,
    /// The last block, where decoding it again would say the same: it left the table as it was. Clients repeat themselves.
    last: Vec<u8>,
}

/// A block that is longer is not kept to be compared with the next.
const LAST_BYTES_MAX: usize = 512;

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, size_max: TABLE_BYTES, last: Vec::new() }
    }
}

impl Decoder {
    /// Decodes a block into `head`, which must be what the last call made of it. `false` where it is the same as before.
    /// Fields behind `bytes_max` are left out, and the head says so.
    ///
    /// # Errors
    /// The block is malformed, or names what is in no table.
    pub fn decode(&mut self, block: &[u8], head: &mut Head, bytes_max: usize) -> Result<bool, Malformed> {
        if !self.last.is_empty() && self.last == block {
            return Ok(false);
        }
        self.last.clear();
        head.clear();
        let (mut rest, mut same) = (block, true);
        // Only ahead of the first field may the table's size change. Section 4.2.
        while let Some(first) = rest.first()
            && first & 0xe0 == 0x20
        {
            let wanted = integer(&mut rest, 5)?;
            if wanted > TABLE_BYTES {
                return Err(Malformed);
            }
            self.size_max = wanted;
            self.evict(wanted);
            same = false;
        }
        while let Some(&first) = rest.first() {
            let from = head.bytes.len();
            if first & 0x80 != 0 {
                let (name, value) = self.entry(integer(&mut rest, 7)?)?;
                if head.cut {
                    continue;
                }
                head.bytes.extend_from_slice(name);
                let end = head.bytes.len();
                head.bytes.extend_from_slice(value);
                push(head, from, end, bytes_max);
                continue;
            }
            let indexed = first & 0x40 != 0;
            let named = match (indexed, first & 0xe0) {
                (true, _) => integer(&mut rest, 6)?,
                (_, 0x20) => return Err(Malformed),
                _ => integer(&mut rest, 4)?,
            };
            match named {
                0 => text(&mut rest, &mut head.bytes)?,
                index => head.bytes.extend_from_slice(self.entry(index)?.0),
            }
            let end = head.bytes.len();
            text(&mut rest, &mut head.bytes)?;
            if indexed {
                same = false;
                self.insert(Entry { bytes: head.bytes[from..].into(), name: end - from });
            }
            push(head, from, end, bytes_max);
        }
        if same && block.len() <= LAST_BYTES_MAX {
            self.last.extend_from_slice(block);
        }
        Ok(true)
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
        let at = index.checked_sub(1).ok_or(Malformed)?;
        if let Some((name, value)) = STATIC.get(at) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(at - STATIC.len()).ok_or(Malformed)?;
        Ok(entry.bytes.split_at(entry.name))
    }

    fn insert(&mut self, entry: Entry) {
        // One that is larger than the table empties it, and is no error. Section 4.4.
        let size = entry.size();
        self.evict(self.size_max.saturating_sub(size));
        if size <= self.size_max {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    fn evict(&mut self, size_max: usize) {
        while self.size > size_max
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.size();
        }
    }

    /// Bytes that the table counts.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// Keeps the field that was just written behind `from`, where it fits.
fn push(head: &mut Head, from: usize, end: usize, bytes_max: usize) {
    head.size += head.bytes.len() - from + ENTRY_BYTES;
    head.cut |= head.size > bytes_max;
    if head.cut {
        head.bytes.truncate(from);
    } else {
        head.ends.push((end as u32, head.bytes.len() as u32));
    }
}

/// Section 5.1. What does not fit into 28 bits is no length and no index of anything.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let (first, mut tail) = rest.split_first().ok_or(Malformed)?;
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (byte, behind) = tail.split_first().ok_or(Malformed)?;
            tail = behind;
            if shift > 21 {
                return Err(Malformed);
            }
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = tail;
    Ok(value)
}

/// Section 5.2.
fn text(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let huffman = rest.first().ok_or(Malformed)? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (text, tail) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = tail;
    if huffman {
        huffman::decode(text, out)
    } else {
        out.extend_from_slice(text);
        Ok(())
    }
}

/// What we put into the peer's table.
pub struct Encoder {
    repeated: &'static [(&'static str, &'static str)],
    /// When each of them went into the table, counted from 1; 0 where it did not.
    inserted: [usize; REPEATED_MAX],
    count: usize,
    /// The peer's table has room for them.
    usable: bool,
    /// The peer has made its table smaller, and waits to be told that we know.
    shrunk: bool,
}

/// Fields that a host may name as repeated; all of them fit into [`TABLE_BYTES`].
pub const REPEATED_MAX: usize = 8;

impl Encoder {
    /// # Panics
    /// Where there are more than [`REPEATED_MAX`], or they do not fit into a table.
    pub fn new(repeated: &'static [(&'static str, &'static str)]) -> Self {
        let size: usize = repeated.iter().map(|(name, value)| name.len() + value.len() + ENTRY_BYTES).sum();
        assert!(repeated.len() <= REPEATED_MAX && size <= TABLE_BYTES, "they must all be in the table at once");
        Self { repeated, inserted: [0; REPEATED_MAX], count: 0, usable: true, shrunk: false }
    }

    /// The peer says how large its table may be. One that is smaller than usual is not used at all.
    pub fn resize(&mut self, bytes: usize) {
        if bytes < TABLE_BYTES && self.usable {
            (self.usable, self.shrunk, self.inserted) = (false, true, [0; REPEATED_MAX]);
        }
    }

    /// Must be called ahead of the fields of each block.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.shrunk) {
            // A size of 0, as section 4.2 wants it said.
            out.push(0x20);
        }
    }

    pub fn status(&mut self, status: u16, out: &mut Vec<u8>) {
        let known = match status {
            200 => 8,
            204 => 9,
            206 => 10,
            304 => 11,
            400 => 12,
            404 => 13,
            500 => 14,
            _ => {
                out.extend_from_slice(&[0x08, 3]);
                out.extend([status / 100, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8));
                return;
            }
        };
        out.push(0x80 | known);
    }

    pub fn field(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        if self.usable
            && let Some(at) = self.repeated.iter().position(|(n, v)| n.as_bytes() == name && v.as_bytes() == value)
        {
            if self.inserted[at] > 0 {
                // At most 69, so it fits into the seven bits.
                out.push(0x80 | (STATIC.len() + 1 + self.count - self.inserted[at]) as u8);
                return;
            }
            self.count += 1;
            self.inserted[at] = self.count;
            out.push(0x40);
        } else {
            out.push(0);
        }
        for text in [name, value] {
            write_integer(text.len(), out);
            out.extend_from_slice(text);
        }
    }
}

/// A length with a prefix of seven bits, the first bit not set.
fn write_integer(value: usize, out: &mut Vec<u8>) {
    if value < 127 {
        out.push(value as u8);
        return;
    }
    out.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
