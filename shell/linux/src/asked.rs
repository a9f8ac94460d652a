//! Frames that the guard hands to the agent instead of the bridge: what a port asks of the host.
//! Answers go straight out of the port.

use crate::error::{Doing, Error};
use crate::log::{self, PacketLog};
use crate::packet::{Sender, name_of};
use model::IfName;
use std::time::Duration;

/// Longer than what any link of ours carries, but for jumbo frames: those ask nothing.
const COPY_BYTES: u16 = 9216;

/// A frame that a port sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The kernel's number for the port.
    pub port: u32,
    /// The frame from its Ethernet header on.
    pub frame: Vec<u8>,
}

/// Takes questions and sends answers, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Asked {
    log: PacketLog,
    sender: Sender,
}

impl Asked {
    /// Begins to listen. One program at a time can.
    pub fn open() -> Result<Self, Error> {
        let log = PacketLog::open(log::QUESTIONS, COPY_BYTES)?;
        let sender = Sender::open().doing(|| "open a packet socket".to_owned())?;
        Ok(Self { log, sender })
    }

    /// Waits for frames, at most so long; none if there were none.
    pub fn wait(&mut self, most: Duration) -> Result<Vec<Question>, Error> {
        let mut questions = Vec::new();
        self.log.wait(most, |port, frame| {
            questions.push(Question { port, frame });
        })?;
        Ok(questions)
    }

    /// How often frames were lost because they were not taken fast enough.
    pub fn lost(&self) -> u64 {
        self.log.lost()
    }

    /// The name of a port now, if it is still there.
    pub fn name(&self, port: u32) -> Option<IfName> {
        name_of(port)
    }

    /// Sends a frame out of the port that asked. One that went meanwhile, or is full, is passed over.
    pub fn answer(&self, port: u32, frame: &[u8]) -> Result<(), Error> {
        let sent = self.sender.send_by(port, frame);
        sent.map(drop)
            .doing(|| "answer what a port asked".to_owned())
    }

    /// The same, unasked.
    pub fn tell(&self, port: &IfName, frame: &[u8]) -> Result<(), Error> {
        let sent = self.sender.send(port, frame);
        sent.map(drop)
            .doing(|| format!("send a frame out of {port}"))
    }
}
