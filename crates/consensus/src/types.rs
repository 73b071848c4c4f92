//! The words of consensus: what is logged, what must be durable, who takes part, and how a proposal fails.

use std::{collections::BTreeMap, fmt, sync::Arc};

use buttress_core::{DecodeError, Index, NodeId, Reader, Term, Writer, limits::ENTRY_BYTES_MAX};
use bytes::Bytes;

/// Members of one group, voters and learners together. Seven voters survive three failures; the rest are learners.
pub const MEMBERS_MAX: usize = 64;

/// Largest term or index that is taken from the outside. Nothing real comes near it (a term per nanosecond for a
/// century is 2^62), and it leaves room for every `+ 1` inside the engine.
pub const NUMBER_MAX: u64 = 1 << 62;

/// What a log entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// For the machine. Empty data is a new leader's first entry.
    Normal,
    /// Changes the members; the machine sees it as an empty entry.
    ConfChange,
}

/// One entry of the replicated log.
#[derive(Clone, PartialEq, Eq)]
pub struct LogEntry {
    pub index: Index,
    pub term: Term,
    pub kind: EntryKind,
    pub data: Bytes,
}

/// Entries of the durable log that a follower needs: from `low` on and below `high`, as many as have `bytes_max` bytes, and
/// at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    pub low: Index,
    pub high: Index,
    pub bytes_max: usize,
}

impl fmt::Debug for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)?;
        match self.kind {
            EntryKind::ConfChange => match Change::decode(self.data.clone()) {
                Ok(change) => write!(f, " {change:?}"),
                Err(_) => write!(f, " malformed change"),
            },
            EntryKind::Normal if self.data.is_empty() => write!(f, " empty"),
            EntryKind::Normal => {
                let shown = &self.data[..self.data.len().min(32)];
                write!(f, " \"{}\"", shown.escape_ascii())?;
                if self.data.len() > shown.len() {
                    write!(f, "…({} bytes)", self.data.len())?;
                }
                Ok(())
            }
        }
    }
}

impl LogEntry {
    /// Bytes that the entry is counted with in memory: its data and about what its frame takes.
    pub fn size(&self) -> usize {
        self.data.len() + ENTRY_OVERHEAD_BYTES
    }

    pub fn encode_to(&self, w: &mut Writer) {
        w.varint(self.index.0);
        w.varint(self.term.0);
        w.u8(match self.kind {
            EntryKind::Normal => 0,
            EntryKind::ConfChange => 1,
        });
        w.bytes(&self.data);
    }

    /// Reads an entry, copying its data so that it does not keep the buffer it arrived in alive.
    ///
    /// # Errors
    /// Bytes that are not an entry.
    pub fn decode_from(r: &mut Reader) -> Result<Self, DecodeError> {
        let index = Index(number(r, "entry index")?);
        let term = Term(number(r, "entry term")?);
        let kind = match r.u8("entry kind")? {
            0 => EntryKind::Normal,
            1 => EntryKind::ConfChange,
            tag => return Err(DecodeError::Tag { what: "entry kind", tag: tag.into() }),
        };
        let shared = r.bytes("entry data", ENTRY_BYTES_MAX)?;
        if kind == EntryKind::ConfChange {
            Change::decode(shared.clone())?;
        }
        Ok(Self { index, term, kind, data: Bytes::copy_from_slice(&shared) })
    }
}

/// What an entry costs in memory beyond its data.
pub const ENTRY_OVERHEAD_BYTES: usize = 128;

/// What a node must never forget, besides its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: Term,
    /// The candidate voted for in this term.
    pub vote: Option<NodeId>,
    /// A lower bound of what is committed. It never exceeds what the log held before the same [`crate::Persist`], so
    /// it may be written before or after that persist's entries.
    pub commit: Index,
}

/// Bytes of one text of a [`Contact`]: a host name has at most 253, and a port takes six more.
pub const CONTACT_TEXT_BYTES_MAX: usize = 260;

/// Beside the lowest bit, which says `promote`: an address of the etcd edge follows.
const CONTACT_HAS_ETCD: u8 = 2;

/// How a member that joined later is called and reached. Founders are known from everybody's own configuration; who
/// joins is known from nowhere but the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    pub name: String,
    /// `host:port` of each edge.
    pub peer: String,
    pub kafka: String,
    pub mqtt: String,
    pub http: String,
    /// Empty for members from before there was this edge; then nothing of it is written.
    pub etcd: String,
    /// The leader makes it a voter by itself once it has caught up.
    pub promote: bool,
}

impl Contact {
    fn texts(&self) -> [&String; 6] {
        [&self.name, &self.peer, &self.kafka, &self.mqtt, &self.http, &self.etcd]
    }

    fn is_valid(&self) -> bool {
        self.texts().iter().all(|text| text.len() <= CONTACT_TEXT_BYTES_MAX)
    }

    fn encode_to(&self, w: &mut Writer) {
        let [first @ .., etcd] = self.texts();
        first.iter().for_each(|text| w.bytes(text.as_bytes()));
        // The byte was a flag before there were two things to say; a contact without the edge is written as ever.
        w.u8(u8::from(self.promote) | if etcd.is_empty() { 0 } else { CONTACT_HAS_ETCD });
        if !etcd.is_empty() {
            w.bytes(etcd.as_bytes());
        }
    }

    fn decode_from(r: &mut Reader) -> Result<Self, DecodeError> {
        let mut text = |what| r.string(what, CONTACT_TEXT_BYTES_MAX);
        let (name, peer) = (text("member name")?, text("peer address")?);
        let (kafka, mqtt, http) = (text("kafka address")?, text("mqtt address")?, text("http address")?);
        let flags = r.u8("contact flags")?;
        if flags & !(1 | CONTACT_HAS_ETCD) != 0 {
            return Err(DecodeError::Tag { what: "contact flags", tag: flags.into() });
        }
        let etcd = match flags & CONTACT_HAS_ETCD {
            0 => String::new(),
            _ => r.string("etcd address", CONTACT_TEXT_BYTES_MAX)?,
        };
        // What is written is read; nothing else is.
        if etcd.is_empty() != (flags & CONTACT_HAS_ETCD == 0) {
            return Err(DecodeError::Tag { what: "contact flags", tag: flags.into() });
        }
        Ok(Self { name, peer, kafka, mqtt, http, etcd, promote: flags & 1 != 0 })
    }
}

/// What the log knows about members beyond their roles. Empty until somebody joins or leaves, and then every format
/// that holds it is the one from before there was a book.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// The highest id that was ever used, where no member has it any more; else 0. See [`Members::highest`].
    pub retired: NodeId,
    /// Members that joined after the founding.
    pub contacts: BTreeMap<NodeId, Contact>,
}

impl Book {
    pub fn is_empty(&self) -> bool {
        self.retired.0 == 0 && self.contacts.is_empty()
    }

    /// An upper bound of the encoded size in bytes: numbers take at most 10, and each text one for its length, two where
    /// it has more than 127 bytes.
    pub(crate) fn size_hint(&self) -> usize {
        let contact = |contact: &Contact| contact.texts().iter().map(|text| text.len() + 2).sum::<usize>() + 11;
        16 + self.contacts.values().map(contact).sum::<usize>()
    }

    pub(crate) fn encode_to(&self, w: &mut Writer) {
        w.varint(self.retired.0);
        let contacts: Vec<_> = self.contacts.iter().collect();
        w.list(&contacts, |w, (id, contact)| {
            w.varint(id.0);
            contact.encode_to(w);
        });
    }

    pub(crate) fn decode_from(r: &mut Reader) -> Result<Self, DecodeError> {
        let retired = NodeId(r.varint("retired id")?);
        let contacts = decode_contacts(r)?.into_iter().collect();
        Ok(Self { retired, contacts })
    }
}

fn decode_contacts(r: &mut Reader) -> Result<Vec<(NodeId, Contact)>, DecodeError> {
    r.list("contacts", MEMBERS_MAX, |r| Ok((NodeId(r.varint("contact id")?), Contact::decode_from(r)?)))
}

/// Who takes part. While a joint change runs, decisions need a majority of `voters` and one of `voters_outgoing`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Members {
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    pub voters_outgoing: Vec<NodeId>,
    /// Outgoing voters that become learners when the joint change ends.
    pub learners_next: Vec<NodeId>,
    pub auto_leave: bool,
    /// Shared, because every look at a replica's status gives it.
    pub book: Arc<Book>,
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |ids: &[NodeId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        write!(f, "voters({})", list(&self.voters))?;
        for (name, ids) in
            [("outgoing", &self.voters_outgoing), ("learners", &self.learners), ("learners_next", &self.learners_next)]
        {
            if !ids.is_empty() {
                write!(f, " {name}({})", list(ids))?;
            }
        }
        if !self.book.contacts.is_empty() {
            let names = self.book.contacts.iter().map(|(id, contact)| format!("{id}={}", contact.name));
            write!(f, " book({})", names.collect::<Vec<_>>().join(" "))?;
        }
        if self.book.retired.0 != 0 {
            write!(f, " retired({})", self.book.retired)?;
        }
        Ok(())
    }
}

impl Members {
    pub fn voters(ids: impl IntoIterator<Item = u64>) -> Self {
        let mut voters: Vec<NodeId> = ids.into_iter().map(NodeId).collect();
        voters.sort_unstable();
        Self { voters, ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    pub fn contains(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.learners.contains(&id) || self.voters_outgoing.contains(&id)
    }

    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.voters_outgoing.contains(&id)
    }

    /// Every member once, in order.
    pub fn all(&self) -> Vec<NodeId> {
        let mut all: Vec<NodeId> =
            self.voters.iter().chain(&self.learners).chain(&self.voters_outgoing).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The highest id that is or ever was a member's. Ids are never used again, so an id up to here that is no member's
    /// was removed, and a higher one was never here.
    pub fn highest(&self) -> NodeId {
        self.all().last().copied().unwrap_or_default().max(self.book.retired)
    }

    /// Members after a change that leads from these to `after`, which knows roles only.
    pub(crate) fn changed_to(&self, mut after: Self, contacts: &[(NodeId, Contact)]) -> Self {
        let mut book = Book::clone(&self.book);
        book.contacts.extend(contacts.iter().cloned());
        book.contacts.retain(|id, _| after.contains(*id));
        let highest = self.highest();
        if after.all().last().is_none_or(|last| *last < highest) {
            book.retired = highest;
        } else {
            book.retired = NodeId(0);
        }
        after.book = if book == *self.book { self.book.clone() } else { Arc::new(book) };
        after
    }

    /// Whether a group can be in this configuration at all.
    pub fn is_valid(&self) -> bool {
        let strictly_rising = |ids: &[NodeId]| ids.windows(2).all(|pair| pair[0] < pair[1]);
        let lists = [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next];
        lists.iter().all(|ids| strictly_rising(ids) && ids.iter().all(|id| id.0 != 0))
            && !self.voters.is_empty()
            && self.all().len() <= MEMBERS_MAX
            && self.learners.iter().all(|id| !self.is_voter(*id))
            && self.learners_next.iter().all(|id| self.voters_outgoing.contains(id) && !self.voters.contains(id))
            && (self.is_joint() || !self.auto_leave)
            && self.book.contacts.keys().all(|id| self.contains(*id))
    }

    pub fn encode_to(&self, w: &mut Writer) {
        for ids in [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next] {
            w.list(ids, |w, id| w.varint(id.0));
        }
        w.u8(u8::from(self.auto_leave));
    }

    /// # Errors
    /// Bytes that are not a member list.
    pub fn decode_from(r: &mut Reader) -> Result<Self, DecodeError> {
        let mut ids = |what: &'static str| r.list(what, MEMBERS_MAX, |r| Ok(NodeId(r.varint(what)?)));
        let (voters, learners) = (ids("voters")?, ids("learners")?);
        let (voters_outgoing, learners_next) = (ids("outgoing voters")?, ids("next learners")?);
        let auto_leave = flag(r, "auto leave")?;
        Ok(Self { voters, learners, voters_outgoing, learners_next, auto_leave, ..Self::default() })
    }
}

/// The state after an entry: where it stands in the log and who were members then. The state's bytes are the host's.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    pub index: Index,
    pub term: Term,
    pub members: Members,
}

impl fmt::Debug for SnapshotMeta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} {:?}", self.index, self.term, self.members)
    }
}

/// Formats of [`SnapshotMeta::encode`]: without a book, as long as it is empty, and with it.
const SNAPSHOT_META_PLAIN: u8 = 1;
const SNAPSHOT_META_BOOK: u8 = 2;

impl SnapshotMeta {
    /// For the host, which keeps it beside its store.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(64);
        if self.members.book.is_empty() {
            w.u8(SNAPSHOT_META_PLAIN);
            self.encode_to(&mut w);
        } else {
            w.u8(SNAPSHOT_META_BOOK);
            self.encode_to(&mut w);
            self.members.book.encode_to(&mut w);
        }
        w.finish()
    }

    /// # Errors
    /// Bytes that are not what [`Self::encode`] writes.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let has_book = match r.u8("snapshot meta version")? {
            SNAPSHOT_META_PLAIN => false,
            SNAPSHOT_META_BOOK => true,
            got => return Err(DecodeError::Version { got, known: SNAPSHOT_META_BOOK }),
        };
        let mut meta = Self::decode_from(&mut r)?;
        if has_book {
            meta.members.book = Arc::new(Book::decode_from(&mut r)?);
        }
        r.end()?;
        Ok(meta)
    }

    /// Without the book.
    pub(crate) fn encode_to(&self, w: &mut Writer) {
        w.varint(self.index.0);
        w.varint(self.term.0);
        self.members.encode_to(w);
    }

    pub(crate) fn decode_from(r: &mut Reader) -> Result<Self, DecodeError> {
        let index = Index(number(r, "snapshot index")?);
        let term = Term(number(r, "snapshot term")?);
        Ok(Self { index, term, members: Members::decode_from(r)? })
    }
}

/// One step of a change of members.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum MemberStep {
    /// Adds a voter, or makes a learner one.
    Voter(NodeId),
    /// Adds a learner, or makes a voter one.
    Learner(NodeId),
    Remove(NodeId),
}

impl fmt::Debug for MemberStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Voter(id) => write!(f, "voter {id}"),
            Self::Learner(id) => write!(f, "learner {id}"),
            Self::Remove(id) => write!(f, "remove {id}"),
        }
    }
}

/// A wish to change the members. One step is taken directly; several go through joint consensus and leave it by
/// themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberChange {
    /// Given back in [`crate::Applied`] or [`crate::Outputs::failed`].
    pub tag: u64,
    pub steps: Vec<MemberStep>,
    /// How members named in `steps` are reached. A step that changes no role may carry a new contact.
    pub contacts: Vec<(NodeId, Contact)>,
}

/// What a conf-change entry holds.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Ends a joint configuration. Written as no bytes at all, because the engine proposes it by itself.
    Leave,
    Steps {
        steps: Vec<MemberStep>,
        contacts: Vec<(NodeId, Contact)>,
    },
    /// The members that the group was founded with; the first entry of its log.
    Found(Vec<NodeId>),
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leave => write!(f, "leave joint"),
            Self::Steps { steps, contacts } => {
                write!(f, "change {steps:?}")?;
                for (id, contact) in contacts {
                    write!(f, " {id}={}", contact.name)?;
                }
                Ok(())
            }
            Self::Found(voters) => write!(f, "found {:?}", voters.iter().map(|id| id.0).collect::<Vec<_>>()),
        }
    }
}

impl Change {
    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(32);
        match self {
            Self::Leave => {}
            Self::Steps { steps, contacts } => {
                // The older form wherever it says everything, so that the log stays readable as widely as it can.
                w.u8(if contacts.is_empty() { 1 } else { 3 });
                w.list(steps, |w, step| {
                    let (tag, id) = match step {
                        MemberStep::Voter(id) => (1, id),
                        MemberStep::Learner(id) => (2, id),
                        MemberStep::Remove(id) => (3, id),
                    };
                    w.u8(tag);
                    w.varint(id.0);
                });
                if !contacts.is_empty() {
                    w.list(contacts, |w, (id, contact)| {
                        w.varint(id.0);
                        contact.encode_to(w);
                    });
                }
            }
            Self::Found(voters) => {
                w.u8(2);
                w.list(voters, |w, id| w.varint(id.0));
            }
        }
        w.finish()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Ok(Self::Leave);
        }
        let mut r = Reader::new(bytes);
        let change = match r.u8("change")? {
            tag @ (1 | 3) => {
                let steps = r.list("change steps", MEMBERS_MAX, |r| {
                    let tag = r.u8("change step")?;
                    let id = NodeId(r.varint("change step id")?);
                    match tag {
                        1 => Ok(MemberStep::Voter(id)),
                        2 => Ok(MemberStep::Learner(id)),
                        3 => Ok(MemberStep::Remove(id)),
                        tag => Err(DecodeError::Tag { what: "change step", tag: tag.into() }),
                    }
                })?;
                let contacts = if tag == 3 { decode_contacts(&mut r)? } else { Vec::new() };
                Self::Steps { steps, contacts }
            }
            2 => Self::Found(r.list("founders", MEMBERS_MAX, |r| Ok(NodeId(r.varint("founder")?)))?),
            tag => return Err(DecodeError::Tag { what: "change", tag: tag.into() }),
        };
        r.end()?;
        Ok(change)
    }
}

/// Who leads, as this node believes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    pub leader: Option<NodeId>,
    pub term: Term,
    pub is_leader: bool,
}

/// Why a proposal was not, or may not have been, carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    /// Nothing was logged; ask the leader.
    #[error("this node does not lead")]
    NotLeader { leader: Option<NodeId> },
    /// It was logged here, but leadership was lost before it committed: the outcome is unknown. Retrying with the
    /// same request id is safe.
    #[error("leadership was lost before the proposal committed; its outcome is unknown")]
    Lost,
    /// Nothing was logged: too many bytes wait for their commit.
    #[error("too many bytes wait for their commit")]
    Overloaded,
    /// Nothing was logged: larger than an entry may be.
    #[error("the proposal has {got} bytes, more than {limit}")]
    TooLarge { got: usize, limit: usize },
    /// Nothing was logged: an earlier change of members is not finished.
    #[error("an earlier change of members is not finished")]
    ChangePending,
    /// Nothing was logged: the change makes no sense for the members as they are.
    #[error("the change of members is not possible: {0}")]
    ChangeInvalid(String),
}

/// Whether the contacts of a change may be logged with its steps.
pub(crate) fn contacts_fit(steps: &[MemberStep], contacts: &[(NodeId, Contact)]) -> bool {
    let kept = |id: NodeId| {
        steps.iter().any(|step| matches!(step, MemberStep::Voter(at) | MemberStep::Learner(at) if *at == id))
    };
    contacts.iter().all(|(id, contact)| kept(*id) && contact.is_valid())
}

pub(crate) fn number(r: &mut Reader, what: &'static str) -> Result<u64, DecodeError> {
    match r.varint(what)? {
        got if got > NUMBER_MAX => Err(DecodeError::TooLarge { what, got, limit: NUMBER_MAX }),
        got => Ok(got),
    }
}

pub(crate) fn flag(r: &mut Reader, what: &'static str) -> Result<bool, DecodeError> {
    match r.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        tag => Err(DecodeError::Tag { what, tag: tag.into() }),
    }
}
