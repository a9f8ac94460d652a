//! What an agent and a datapath say to each other, over a socket that only root reaches: each message is
//! `| length 4, little-endian | JSON |`. Descriptors that are handed over follow their message, some with
//! each byte (`SCM_RIGHTS`).

use crate::capture::CaptureRequest;
use datapath::{Change, Engine, Flow, Traffic};
use model::IfName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;

/// The socket's name in the run directory.
pub const SOCKET_NAME: &str = "datapath.sock";
/// A table of 500,000 rows is smaller.
const MESSAGE_MAX: usize = 256 << 20;

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Who are you?
    Hello,
    /// All rows.
    Dump,
    /// Take these in.
    Apply(Vec<Change>),
    /// What was counted.
    Figures,
    /// Which flows pass.
    Flows,
    /// Hand over all that is open. Nothing is taken in from then on.
    TakeOver,
    /// All was taken over and is in use: end, and say what was counted.
    TakenOver,
    /// Show frames from now on, until the connection ends; records follow the answer.
    Capture(CaptureRequest),
    /// End, and leave nothing open.
    Stop,
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Response {
    Hello(Hello),
    Rows(Vec<Change>),
    /// For each change what was wrong with it, if anything.
    Applied(Vec<Option<String>>),
    Figures(Figures),
    Flows(FlowFigures),
    /// The descriptors follow.
    Handed(Handed),
    /// What each worker noted of flows follows.
    Counted(Tally),
    Done,
    Refused(String),
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Of the process.
    pub(crate) pid: u32,
    /// Which file it was started from: device, inode and time of change. Another is another version.
    pub(crate) program: (u64, u64, i64),
}

/// What goes with descriptors that are handed over: those of each TAP's queues in this order, then those
/// of each worker's sockets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Handed {
    pub(crate) workers: usize,
    pub(crate) local: Option<IpAddr>,
    pub(crate) rows: Vec<Change>,
    /// TAPs, and whether they take super-frames of UDP.
    pub(crate) taps: Vec<(IfName, bool)>,
    /// Sockets of each worker.
    pub(crate) sockets: usize,
}

/// What was counted until the end, for the process that goes on. What each worker had noted of flows
/// follows, in a message for each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) figures: Figures,
    /// See [`FlowFigures::pushed_out`].
    pub(crate) pushed_out: u64,
    /// What each TAP's queues had had no room for when that was last counted. The device counts on.
    pub(crate) not_taken: BTreeMap<IfName, u64>,
    /// The same of each worker's receiving socket.
    pub(crate) overflowed: Vec<Option<u32>>,
}

/// What a datapath counted since it was started, and those whose place it took over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// To other hosts.
    pub out: Counted,
    /// From other hosts.
    pub inward: Counted,
    /// Questions for neighbours that were answered here.
    pub answered: u64,
    /// ARP requests among them; an older datapath does not say.
    #[serde(default)]
    pub answered_arp: u64,
    /// Frames and packets that went no further, by reason; those that never happened are absent.
    pub dropped: BTreeMap<String, u64>,
}

/// See [`Traffic`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Frames as the kernel has them: a super-frame is one.
    pub frames: u64,
    /// Packets on the wire.
    pub packets: u64,
    /// Of frames.
    pub bytes: u64,
}

/// Flows that pass, as far as they are counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowFigures {
    /// The largest first.
    pub flows: Vec<Flow>,
    /// Flows that were no longer counted while they passed, because there was no room; since when, as
    /// for [`Figures`].
    pub pushed_out: u64,
}

impl Figures {
    pub(crate) fn of(engine: &Engine) -> Self {
        let counted = |traffic: Traffic| Counted {
            frames: traffic.frames,
            packets: traffic.packets,
            bytes: traffic.bytes,
        };
        let [out, inward] = engine.traffic().map(counted);
        let answered = engine.answered();
        let dropped = engine.drops().filter(|(_, count)| *count > 0);
        Self {
            out,
            inward,
            answered: answered.arp + answered.nd,
            answered_arp: answered.arp,
            dropped: dropped.map(|(r, n)| (r.name().to_owned(), n)).collect(),
        }
    }

    /// Of several workers together.
    pub(crate) fn add(mut self, other: Figures) -> Self {
        for (mine, theirs) in [(&mut self.out, other.out), (&mut self.inward, other.inward)] {
            mine.frames += theirs.frames;
            mine.packets += theirs.packets;
            mine.bytes += theirs.bytes;
        }
        self.answered += other.answered;
        self.answered_arp += other.answered_arp;
        for (reason, count) in other.dropped {
            *self.dropped.entry(reason).or_default() += count;
        }
        self
    }
}

pub(crate) fn send<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(body);
    stream.write_all(&bytes)
}

/// None where the other side has ended.
pub(crate) fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_MAX {
        let text = format!("a message of {length} bytes is none of ours");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}
