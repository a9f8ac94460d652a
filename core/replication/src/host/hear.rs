//! What other hosts say.

use super::Host;
use crate::liveness::Heard;
use crate::message::{Care, Envelope, Frame, Message};
use crate::{HostId, ReplicaId, Time};
use blocks::VolumeId;

impl Host {
    /// A frame of a peer, who was found to be that host.
    pub fn handle_frame(&mut self, from: HostId, frame: Frame, now: Time) {
        self.now = now;
        let heard = self.links.hear(from, &frame, now);
        if heard == Heard::Stale {
            return;
        }
        if heard != Heard::Same {
            self.host_changed(from, heard == Heard::Restarted);
        }
        for Envelope { volume, message } in frame.messages {
            self.deliver(from, volume, message);
        }
        self.pump();
    }

    fn deliver(&mut self, from: HostId, volume: VolumeId, message: Message) {
        match message {
            Message::Answer(answer) => self.answered(volume, answer),
            Message::Request(request) => self.request(from, volume, request),
            Message::Consensus { from: replica, .. } => {
                if self.is_of(volume, from, replica) {
                    self.with(volume, |group, context| group.message(context, message));
                }
            }
            Message::Care {
                from: replica,
                to,
                care,
            } => {
                let mine = self.groups.get(&volume).is_some_and(|group| group.me == to);
                if !mine && care == Care::Who {
                    self.is_not_here(from, volume, to);
                    self.tell_members(from, volume, replica);
                }
                let heard = match &care {
                    Care::These { .. } => self.is_believed(volume, from, to),
                    _ => self.is_of(volume, from, replica) && mine,
                };
                if heard {
                    self.with(volume, |group, context| {
                        group.hear_care(context, replica, care)
                    });
                }
            }
            Message::Join {
                to,
                blocks,
                config,
                members,
                ..
            } => {
                // What cannot be made now is asked for again.
                drop(self.join(volume, from, to, blocks, (config, members)));
            }
            Message::Removed { replica, config } => self.removed(from, volume, replica, config),
            Message::Gone { replica } => self.is_gone(from, volume, replica),
        }
    }

    /// Tells a member who the others are that asked a replica of which it thinks that it is here: all that it knows may
    /// be gone, and have others in their places.
    pub(super) fn tell_members(&mut self, asks: HostId, volume: VolumeId, replica: ReplicaId) {
        self.with(volume, |group, context| {
            let seat = group.members.seat(replica);
            if seat.is_some_and(|seat| seat.member.host == asks && context.links.is_on(seat)) {
                group.tell_members(context, replica);
            }
        });
    }

    /// Who the members are a host says that was told that it has none, or was asked: it is an answer. Saying once more to who
    /// is not believed that it is none would have it answer again, and neither would ever end.
    fn is_believed(&mut self, volume: VolumeId, from: HostId, to: ReplicaId) -> bool {
        let group = self.groups.get(&volume).filter(|group| group.me == to);
        let believed = group.is_some_and(|group| group.believes(from));
        if group.is_some() && !believed {
            self.with(volume, |group, _| group.wonder());
        }
        believed
    }

    /// A host speaks for its own replicas only, on the disks that they are on. Who is no member any more is
    /// told so.
    fn is_of(&mut self, volume: VolumeId, from: HostId, replica: ReplicaId) -> bool {
        let Some(group) = self.groups.get(&volume) else {
            return false;
        };
        let seat = group.seat_of(replica);
        if seat.is_some_and(|seat| seat.member.host == from && self.links.is_on(seat)) {
            return true;
        }
        let unknown = seat.is_none();
        let other_host = seat.is_some_and(|seat| seat.member.host != from);
        if !other_host {
            let config = group.configured;
            let message = Message::Removed { replica, config };
            self.out.messages.push((from, Envelope { volume, message }));
        }
        if unknown {
            self.with(volume, |group, _| group.wonder());
        }
        false
    }
}
