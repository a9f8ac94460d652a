//! What hosts say to each other.

use crate::{HostId, Members, ReplicaId, SessionId, Stamp, Time};
use blocks::{Base, Body, Buffer, Chunk, Digest, Entry, Run, VolumeId};
use std::sync::Arc;

/// All that one host has for another at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The sender's start: larger at each. What an earlier one said is not heard any more.
    pub incarnation: u64,
    /// The format of the sender's disk: a host that comes back with another disk has none of the replicas
    /// that it had.
    pub disk: u128,
    /// By the sender's clock.
    pub sent: Time,
    /// What the sender heard of the receiver last.
    pub echo: Option<Echo>,
    /// For its groups and endpoints.
    pub messages: Vec<Envelope>,
}

/// A frame that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// The start that sent it.
    pub incarnation: u64,
    /// When, by the clock of who sent it.
    pub sent: Time,
}

/// A message, and of which volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Which.
    pub volume: VolumeId,
    /// What.
    pub message: Message,
}

/// Of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Between replicas.
    Consensus {
        /// Who.
        from: ReplicaId,
        /// To whom.
        to: ReplicaId,
        /// The sender's term; of a vote, the term that it is for.
        term: u64,
        /// What.
        step: Step,
    },
    /// An endpoint's, to the leader.
    Request(Request),
    /// The leader's, to an endpoint.
    Answer(Answer),
    /// Between replicas, whatever the term: what one lacks, and another has.
    Care {
        /// Who.
        from: ReplicaId,
        /// To whom.
        to: ReplicaId,
        /// What.
        care: Care,
    },
    /// A leader's, to a host that is to have a replica, and has none.
    Join {
        /// Who.
        from: ReplicaId,
        /// The replica to be made.
        to: ReplicaId,
        /// Size of the volume.
        blocks: u64,
        /// Index of the members' entry.
        config: u64,
        /// The members, as the log has them.
        members: Arc<[u8]>,
    },
    /// To who is no member any more, or is not on the disk that the member is on.
    Removed {
        /// Who is none.
        replica: ReplicaId,
        /// Index of the entry that says so.
        config: u64,
    },
    /// Of a host that was told so, and has that replica no more.
    Gone {
        /// Which.
        replica: ReplicaId,
    },
}

/// What replicas help each other with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Care {
    /// What was before this entry comes as chunks only: the leader's log begins there; or who lacks it asked for a
    /// damaged entry that is in effect here.
    Behind {
        /// The first.
        first: u64,
    },
    /// Which chunks changed after an entry?
    Changes {
        /// The entry.
        since: u64,
        /// From which chunk on.
        from: u64,
    },
    /// These did.
    Changed {
        /// The entry.
        since: u64,
        /// From which chunk on.
        from: u64,
        /// What was in effect when that was said.
        base: Base,
        /// By number, each with the last entry that changed it.
        chunks: Vec<(u64, u64)>,
        /// There are more.
        more: bool,
    },
    /// A chunk is wanted.
    WantChunk {
        /// Which.
        number: u64,
    },
    /// A chunk.
    Chunk(Chunk),
    /// An entry is wanted that is damaged at the sender's.
    WantEntry {
        /// Which.
        place: Place,
        /// The number of the question.
        question: u64,
    },
    /// An entry that was wanted.
    Entry(Entry),
    /// An entry that was wanted is not there, or is damaged as well; nor is it known to be committed.
    NoEntry {
        /// Which.
        place: Place,
        /// Of the question.
        question: u64,
    },
    /// A block is wanted that is damaged at the sender's.
    WantBlock {
        /// Which.
        lba: u64,
    },
    /// A block that was wanted.
    Block {
        /// Which.
        lba: u64,
        /// As the sender has it; nothing if it is damaged there as well.
        data: Option<Buffer>,
    },
    /// What the volume holds at an entry. To be compared when exactly that is in effect.
    Compare {
        /// The entry.
        index: u64,
        /// Of all blocks.
        digest: Digest,
        /// The first of some chunks.
        from: u64,
        /// Of each of these chunks.
        chunks: Vec<Digest>,
    },
    /// Is the sender still a member, and who are the others? Who knows that it is none says so.
    Who,
    /// It is, and these are the members.
    These {
        /// Index of their entry.
        config: u64,
        /// As the log has them.
        members: Arc<[u8]>,
    },
    /// What came of it.
    Compared {
        /// The entry.
        index: u64,
        /// It holds the same; nothing if it was beyond that entry already.
        same: Option<bool>,
        /// Chunks that differ.
        differ: Vec<u64>,
    },
}

/// A place in a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub index: u64,
    /// Of the entry there.
    pub term: u64,
}

/// What replicas say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Entries, after `prev`.
    Append {
        /// The entry before them.
        prev: Place,
        /// Committed, of the leader.
        commit: u64,
        /// One after another.
        entries: Vec<Entry>,
    },
    /// All up to `last` is durable.
    Appended {
        /// Up to where logs agree.
        last: u64,
        /// Committed, of the follower.
        commit: u64,
    },
    /// There is another entry at `prev`, or none.
    Rejected {
        /// Of the append.
        prev: u64,
        /// Where logs may agree.
        hint: Place,
        /// Committed, of the follower.
        commit: u64,
    },
    /// Somebody wants to lead.
    Vote {
        /// How much.
        kind: VoteKind,
        /// Its last entry.
        last: Place,
        /// Its last committed entry.
        commit: Place,
    },
    /// Whether it may.
    Voted {
        /// To a question, and not a vote.
        pre: bool,
        /// Yes.
        granted: bool,
        /// The voter's last committed entry, when it says no.
        commit: Place,
    },
    /// The leader is there.
    Heartbeat {
        /// Committed, as far as the follower is known to have it.
        commit: u64,
        /// A read that waits for a majority; 0 for none.
        read: u64,
    },
    /// The follower is there.
    HeartbeatReply {
        /// Committed, of the follower.
        commit: u64,
        /// Of the heartbeat.
        read: u64,
    },
    /// The leader wants this one to lead.
    TimeoutNow,
}

/// How much somebody wants to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoteKind {
    /// A question, which changes nothing.
    Pre,
    /// A vote.
    Vote,
    /// A vote at the leader's wish, which breaks no promise to it.
    Transfer,
}

/// What an endpoint wants of the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Whose.
    pub session: SessionId,
    /// The session's number for it.
    pub id: u64,
    /// The leader's term that the endpoint knows of: a request that was under way while another leader
    /// took over counts no more.
    pub term: u64,
    /// Attachment and sequence number. Epoch 0 for reads without an attachment.
    pub stamp: Stamp,
    /// All requests of the attachment below this number are answered.
    pub floor: u64,
    /// What it does.
    pub op: Op,
}

/// What a request does. Places and sizes in blocks of 4 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Attaches the endpoint, alone, for reading and writing.
    Attach {
        /// By which of the attachments that were asked for, in their order: the endpoint of an earlier one is
        /// fenced, also one that asks later. 0 comes after whatever there was.
        claim: u64,
    },
    /// Makes the volume larger, if it is smaller. Needs no attachment.
    Grow {
        /// Its size then.
        blocks: u64,
    },
    /// Changes the volume's replicas to these, one step after another: answered when that is decided. Needs
    /// no attachment.
    Change {
        /// Which of the changes that were asked for, in their order, from 1: one that comes after a later one
        /// changes nothing.
        number: u64,
        /// All of them.
        members: Members,
    },
    /// Writes.
    Write {
        /// The first block.
        lba: u64,
        /// Their contents.
        data: Buffer,
    },
    /// Makes zeroes of blocks, and gives their space back. A trim does the same: what was trimmed reads
    /// alike on all replicas.
    Zero {
        /// The first block.
        lba: u64,
        /// How many.
        blocks: u64,
    },
    /// Reads.
    Read {
        /// The first block.
        lba: u64,
        /// How many.
        blocks: u64,
    },
    /// Asks which blocks have something.
    Allocation {
        /// The first block.
        lba: u64,
        /// How many.
        blocks: u64,
    },
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whose request.
    pub session: SessionId,
    /// Which.
    pub id: u64,
    /// The term that the request had.
    pub term: u64,
    /// What became of it.
    pub result: Result<Answered, Failure>,
}

/// It is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// Written, or zero.
    Done,
    /// The session is attached.
    Attached {
        /// As which attachment.
        epoch: u64,
    },
    /// The blocks, in one or more buffers.
    Data(Vec<Buffer>),
    /// Which blocks have something, from the first that was asked for on; not always of all.
    Allocation(Vec<Run>),
}

/// It is not done. But for `Fenced` and `GaveUp`, it never will be from there on; a copy of it that was sent before may
/// have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Ask the leader. Whether the request is done is not known.
    #[error("this replica does not lead the volume")]
    NotLeader {
        /// Where the leader is thought to be.
        leader: Option<HostId>,
        /// The newest term.
        term: u64,
    },
    /// Not now.
    #[error("too much is under way for the volume; it is tried again")]
    Busy,
    /// The volume was attached elsewhere since.
    #[error("the volume was attached elsewhere since; attach it again to use it here")]
    Fenced,
    /// The leader's disk is full.
    #[error("the disk is full; delete or trim volumes, or move some to another disk")]
    NoSpace,
    /// It cannot be.
    #[error("{why}")]
    Invalid {
        /// Why.
        why: String,
    },
    /// Blocks cannot be read.
    #[error("blocks {lbas:?} are damaged on the leader's disk; they have to come from a peer")]
    Damaged {
        /// Which.
        lbas: Vec<u64>,
    },
    /// No leader was found for long. Whether the request is done is not known.
    #[error(
        "no majority of the volume's replicas can be reached; look at the hosts that have them"
    )]
    GaveUp,
}

impl Step {
    /// Whether it says that its sender follows in the term that it is of.
    pub(crate) const fn follows(&self) -> bool {
        matches!(
            self,
            // One that has nothing is an answer to another term's.
            Self::Appended { last: 1.., .. } | Self::Rejected { .. } | Self::HeartbeatReply { .. }
        )
    }
}

impl Message {
    /// Blocks of payload that go with it.
    pub fn payload_blocks(&self) -> usize {
        match self {
            Self::Consensus {
                step: Step::Append { entries, .. },
                ..
            } => entries.iter().map(entry_blocks).sum(),
            Self::Request(Request {
                op: Op::Write { data, .. },
                ..
            }) => data.blocks(),
            Self::Answer(Answer {
                result: Ok(Answered::Data(buffers)),
                ..
            }) => buffers.iter().map(Buffer::blocks).sum(),
            Self::Care {
                care: Care::Chunk(chunk),
                ..
            } => chunk.blocks(),
            Self::Care {
                care: Care::Entry(entry),
                ..
            } => entry_blocks(entry),
            Self::Care {
                care: Care::Block {
                    data: Some(data), ..
                },
                ..
            } => data.blocks(),
            _ => 0,
        }
    }
}

/// Blocks of payload of an entry.
pub(crate) fn entry_blocks(entry: &Entry) -> usize {
    match &entry.body {
        Body::Write { data, .. } => data.blocks(),
        Body::Zero { .. } | Body::Attach | Body::Config(_) | Body::Empty | Body::Grow { .. } => 0,
    }
}
