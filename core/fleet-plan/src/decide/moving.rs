//! Moves of NICs from one host to another.

use super::Work;
use crate::intent::missing;
use crate::{AttachmentSpec, Expect, MoveNic, MoveStep, Refusal};
use model::{Attachment, HostId, Move, MovePhase, Nic, NicId, Object, ObjectId, Placement};

/// What a request to move comes to.
enum Way {
    /// It is there already, or on its way.
    Nothing,
    /// It never left.
    Cancel,
    /// The host that it leaves still has its port.
    TurnRound,
    Start,
}

impl Work<'_> {
    pub(super) fn move_nic(&mut self, asked: MoveNic) -> Result<Object, Refusal> {
        let mut nic = self.nic_expected(asked.nic, asked.expect)?;
        let host = self
            .intent
            .host(asked.host)
            .ok_or_else(|| missing(ObjectId::Host(asked.host)))?;
        let now = self.context.now;
        match self.way(&nic, &asked)? {
            Way::Nothing => return Ok(Object::Nic(nic)),
            Way::Cancel => {
                let moving = nic.moving.as_mut().expect("only a move is cancelled");
                moving.phase = MovePhase::Retire;
                moving.since = now;
                moving.taken_back = "it was asked to".to_owned();
            }
            Way::TurnRound => {
                swap(&mut nic);
                let moving = nic.moving.as_mut().expect("only a move turns round");
                moving.since = now;
            }
            Way::Start => {
                self.suitable_host(host.id)?;
                if let Some(subnet) = self.intent.subnet(nic.subnet) {
                    self.check_speaker(&host.name, host.speaker, subnet.vpc)?;
                }
                let wanted = asked
                    .attachment
                    .unwrap_or_else(|| same_as(&nic.placement.attachment));
                let other = Placement {
                    host: host.id,
                    attachment: self.pick_attachment(host, wanted)?,
                };
                nic.moving = Some(Move {
                    phase: MovePhase::Provision,
                    other,
                    started: now,
                    since: now,
                    taken_back: String::new(),
                });
            }
        }
        Ok(self.put(Object::Nic(nic)))
    }

    pub(super) fn advance_move(
        &mut self,
        nic: NicId,
        expect: Expect,
        step: MoveStep,
    ) -> Result<Object, Refusal> {
        let mut nic = self.nic_expected(nic, expect)?;
        let now = self.context.now;
        let phase = nic.moving.as_ref().map(|moving| moving.phase);
        let (next, taken_back) = match (phase, step) {
            (Some(MovePhase::Provision), MoveStep::Switch) => {
                swap(&mut nic);
                (MovePhase::Switch, String::new())
            }
            (Some(MovePhase::Switch), MoveStep::Retire) => (MovePhase::Retire, String::new()),
            (Some(MovePhase::Provision), MoveStep::Back { reason }) => (MovePhase::Retire, reason),
            (Some(MovePhase::Switch), MoveStep::Back { reason }) => {
                swap(&mut nic);
                (MovePhase::Retire, reason)
            }
            (Some(MovePhase::Retire), MoveStep::Finish) => {
                nic.moving = None;
                return Ok(self.put(Object::Nic(nic)));
            }
            // Worked out for another phase: the version says so too, unless any would do.
            _ => return Ok(Object::Nic(nic)),
        };
        if let Some(moving) = &mut nic.moving {
            moving.phase = next;
            moving.since = now;
            moving.taken_back = taken_back;
        }
        Ok(self.put(Object::Nic(nic)))
    }

    fn nic_expected(&self, id: NicId, expect: Expect) -> Result<Nic, Refusal> {
        match self.expected(ObjectId::Nic(id), expect)? {
            Object::Nic(nic) => Ok(nic),
            _ => Err(missing(ObjectId::Nic(id))),
        }
    }

    fn way(&self, nic: &Nic, asked: &MoveNic) -> Result<Way, Refusal> {
        let here = nic.placement.host == asked.host;
        let to_other = |moving: &Move| moving.other.host == asked.host;
        let (way, seat) = match &nic.moving {
            Some(m) if m.phase == MovePhase::Provision && here => (Way::Cancel, &nic.placement),
            Some(m) if m.phase == MovePhase::Provision && to_other(m) => (Way::Nothing, &m.other),
            Some(m) if m.phase == MovePhase::Switch && to_other(m) => (Way::TurnRound, &m.other),
            _ if here => (Way::Nothing, &nic.placement),
            Some(m) if m.phase != MovePhase::Retire => return Err(self.is_moving(nic, m)),
            _ => return Ok(Way::Start),
        };
        match &asked.attachment {
            Some(wanted) if !fits(wanted, &seat.attachment) => Err(Refusal::AttachedOtherwise {
                nic: self.intent.path(ObjectId::Nic(nic.id)),
                host: self.host_name(asked.host),
                attachment: seat.attachment.clone(),
            }),
            _ => Ok(way),
        }
    }

    fn is_moving(&self, nic: &Nic, moving: &Move) -> Refusal {
        let (from, to) = match moving.phase {
            MovePhase::Provision => (nic.placement.host, moving.other.host),
            MovePhase::Switch | MovePhase::Retire => (moving.other.host, nic.placement.host),
        };
        Refusal::Moving {
            nic: self.intent.path(ObjectId::Nic(nic.id)),
            from: self.host_name(from),
            to: self.host_name(to),
        }
    }

    pub(super) fn host_name(&self, host: HostId) -> String {
        self.intent.path(ObjectId::Host(host))
    }
}

/// The NIC is at the other place from now on, and announced with a higher sequence than before.
fn swap(nic: &mut Nic) {
    if let Some(moving) = &mut nic.moving {
        std::mem::swap(&mut nic.placement, &mut moving.other);
        nic.moves = nic.moves.saturating_add(1);
    }
}

fn same_as(attachment: &Attachment) -> AttachmentSpec {
    match attachment {
        Attachment::Tap => AttachmentSpec::Tap,
        Attachment::Netns { netns, device } => AttachmentSpec::Netns {
            netns: netns.clone(),
            device: Some(device.clone()),
        },
        Attachment::Existing { ifname } => AttachmentSpec::Existing {
            ifname: ifname.clone(),
        },
    }
}

/// True if `attachment` is one that `wanted` could have become.
fn fits(wanted: &AttachmentSpec, attachment: &Attachment) -> bool {
    match (wanted, attachment) {
        (
            AttachmentSpec::Netns {
                netns,
                device: None,
            },
            Attachment::Netns { netns: is, .. },
        ) => netns == is,
        _ => *wanted == same_as(attachment),
    }
}
