//! What a group works with, and what comes of it.

use crate::group::Asked;
use crate::liveness::Links;
use crate::message::{Answer, Envelope};
use crate::{HostId, Message, Time};
use blocks::{Store, Ticket, VolumeId};
use std::collections::BTreeMap;

/// The world of a group while it does one thing.
pub(crate) struct Context<'a> {
    pub(crate) now: Time,
    pub(crate) me: HostId,
    pub(crate) store: &'a mut Store,
    pub(crate) links: &'a Links,
    pub(crate) out: &'a mut Outbox,
}

/// What groups want done.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) messages: Vec<(HostId, Envelope)>,
    /// Answers to endpoints that are on this host.
    pub(crate) local: Vec<(VolumeId, Answer)>,
    /// Blocks that are being read.
    pub(crate) reads: BTreeMap<Ticket, (VolumeId, Asked)>,
    /// Entries that are being read back.
    pub(crate) entries: BTreeMap<Ticket, (VolumeId, u64)>,
}

impl Context<'_> {
    pub(crate) fn send(&mut self, volume: VolumeId, to: HostId, message: Message) {
        self.out.messages.push((to, Envelope { volume, message }));
    }

    pub(crate) fn answer(&mut self, volume: VolumeId, to: HostId, answer: Answer) {
        if to == self.me {
            self.out.local.push((volume, answer));
        } else {
            self.send(volume, to, Message::Answer(answer));
        }
    }
}
