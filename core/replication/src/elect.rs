//! What a replica does as time passes, and as hosts come and go: nothing, unless something is missing.

use crate::group::Group;
use crate::message::Step;
use crate::outbox::Context;
use crate::{BEAT_MICROS, HostId, ReplicaId, STAGGER_MICROS, Time};

/// How often a replica asks whether it is one, while it does not know.
const ASK_MICROS: u64 = 1_000_000;

impl Group {
    /// When this replica has to be looked at, if ever.
    pub(crate) fn deadline(&self) -> Option<Time> {
        if self.failed.is_some() {
            return None;
        }
        let own = match &self.lead {
            Some(lead) => lead.ping_at.into_iter().chain(lead.transfer_until).min(),
            None => self.election_at,
        };
        let care = self.care_at.into_iter().chain(self.ask_at);
        let care = care.chain(self.mending.deadline());
        let care = care.chain(self.doubt.deadline());
        own.into_iter().chain(care).min()
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, context: &mut Context<'_>) {
        if self.failed.is_some() {
            return;
        }
        self.steps += 1;
        if let Some(lead) = &mut self.lead {
            if lead
                .transfer_until
                .is_some_and(|until| until <= context.now)
            {
                lead.transfer_until = None;
                self.node.raft.abort_leader_transfer();
            }
            if lead.ping_at.is_some_and(|at| at <= context.now) {
                lead.ping_at = None;
                self.node.ping();
                self.see_to_followers(context);
            }
        } else if self.election_at.is_some_and(|at| at <= context.now) {
            self.election_at = None;
            self.try_to_lead(context);
        }
        if self.care_at.is_some_and(|at| at <= context.now) {
            self.care_at = None;
            self.go_on_catching_up(context);
        }
        if self.ask_at.is_some_and(|at| at <= context.now) {
            self.ask_at = None;
            self.ask_all(context);
        }
        self.see_to_entries(context);
        self.see_to_blocks(context);
        self.see_to_lost(context);
        self.process(context);
        self.watch(context);
    }

    /// What it has to have done before it leads: it knows who the members are, can vouch for its log, and that is
    /// as far as the chunks that it took in.
    pub(crate) fn may_lead(&self, context: &Context<'_>) -> bool {
        let vouches = !self.is_refused() && !self.doubt.is_there() && !self.is_rebasing();
        let last = self.node.raft.raft_log.last_index();
        vouches && !self.is_configuring_committed() && self.proven(context) <= last
    }

    fn try_to_lead(&mut self, context: &mut Context<'_>) {
        let followed = self.followed.filter(|(host, _)| *host != context.me);
        let followed = followed.filter(|_| !self.leader_gone);
        let promised = followed.map(|(host, _)| host);
        let helps = context.links.may_help(promised, context.now);
        if self.needs_leader(context) && helps && self.may_lead(context) {
            self.attempts += 1;
            // It refuses while a change of members is not in effect; the next time is as good.
            drop(self.node.campaign());
        } else if let Some((host, _)) = followed.filter(|(_, term)| *term < self.term())
            && let Some(leader) = self.members.replica(host)
        {
            // It is promised to one that leads in a term that is over here, and may not know that: nobody hears it.
            let nothing = Step::Appended { last: 0, commit: 0 };
            self.send(context, leader, self.term(), nothing);
        }
    }

    /// Whether nobody that is there leads, as far as is known here.
    pub(crate) fn needs_leader(&self, context: &Context<'_>) -> bool {
        let leader = self.seat_of(ReplicaId(self.node.raft.leader_id));
        self.leader_gone || leader.is_none_or(|seat| !context.links.is_there(seat))
    }

    /// A follower without a leader tries to lead after a while; each of a group after another while.
    pub(crate) fn see_to_election(&mut self, context: &Context<'_>) {
        let votes = self.members.votes(self.me);
        if self.lead.is_some() || self.failed.is_some() || !votes || !self.needs_leader(context) {
            self.election_at = None;
            return;
        }
        if self.election_at.is_some() {
            return;
        }
        let count = self.members.count() as u64;
        // Another one first in each volume, so that leaders are spread; another one at each attempt.
        let spread = mix(self.volume.get() as u64 ^ self.term()) >> 8;
        let rank = (self.members.rank(self.me) as u64 + spread + self.attempts * 7) % count;
        let noise = mix(spread ^ self.me.0 ^ self.attempts << 32) % (STAGGER_MICROS / 2);
        let retry = if self.attempts > 0 {
            2 * STAGGER_MICROS
        } else {
            0
        };
        self.election_at = Some(context.now + rank * STAGGER_MICROS + noise + retry);
    }

    /// Sees to what a leader, or a follower, waits for.
    pub(crate) fn watch(&mut self, context: &mut Context<'_>) {
        self.see_to_election(context);
        // Who goes hears no more of the leader, and may not know it.
        let asks = self.lead.is_none() && (self.unsure || self.members.is_changing());
        self.ask_at = self
            .ask_at
            .or(Some(context.now + ASK_MICROS))
            .filter(|_| asks);
        let behind = self.lead.is_some() && self.waits_for_peers(context);
        let Some(lead) = &mut self.lead else {
            return;
        };
        if behind {
            lead.ping_at.get_or_insert(context.now + BEAT_MICROS);
        } else {
            lead.ping_at = None;
        }
    }

    /// Whether a follower that is there lacks something, or somebody waits for a majority.
    fn waits_for_peers(&self, context: &Context<'_>) -> bool {
        let raft = &self.node.raft;
        let (last, committed) = (raft.raft_log.last_index(), raft.raft_log.committed);
        let lead = self.lead.as_ref().expect("only leaders wait for followers");
        let lacks = |(id, progress): (&u64, &raft::Progress)| {
            let replica = ReplicaId(*id);
            let seat = self.members.seat(replica);
            let Some(seat) = seat.filter(|seat| context.links.is_there(seat)) else {
                return false;
            };
            let has_all = progress.matched >= last && progress.committed_index >= committed;
            let confirmed = lead.followers.get(&replica);
            let follows =
                confirmed.is_some_and(|at| context.links.still_follows(seat.member.host, *at));
            replica != self.me && !(has_all && follows)
        };
        let changes = self.members.is_changing();
        changes || !lead.reads.is_empty() || raft.prs().iter().any(lacks)
    }

    /// A host came, went, or was started again.
    pub(crate) fn host_changed(
        &mut self,
        context: &mut Context<'_>,
        host: HostId,
        restarted: bool,
    ) {
        let here = self.members.iter().filter(|member| member.host == host);
        let here: Vec<ReplicaId> = here.map(|member| member.replica).collect();
        let leads = self.followed.is_some_and(|(followed, _)| followed == host);
        if here.is_empty() && !leads {
            return;
        }
        if restarted {
            if let Some(lead) = &mut self.lead {
                here.iter()
                    .for_each(|replica| _ = lead.followers.remove(replica));
            }
            self.leader_gone |= leads;
        }
        // What it missed while that host was away may be its own removal, and who remembered that may have forgotten it.
        self.unsure |= leads || context.links.is_up(host);
        if self.lead.is_some() && !self.has_majority(context) {
            // Nobody can be asked; who can ask a majority leads from now on.
            let term = self.term();
            self.node.raft.become_follower(term, 0);
            self.leader_gone = true;
        }
        self.process(context);
        self.watch(context);
    }

    fn has_majority(&self, context: &Context<'_>) -> bool {
        let there = |replica| {
            let seat = self.members.seat(replica);
            seat.is_some_and(|seat| context.links.is_there(seat))
        };
        self.members.is_quorum(there)
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
