//! Which replica a volume goes on from, and what is lost by that.

use super::Work;
use crate::{RecoverVolume, Refusal, ReplicaTold, Standing};
use model::{HostId, Leaving, Object, Recovered, Recovery, Replica, Volume};
use std::collections::BTreeSet;

/// A replica that is not gone, and what is known of it.
struct Candidate {
    replica: Replica,
    told: ReplicaTold,
    /// The volume went on without it before.
    lost_before: bool,
    /// It was given up by whoever asks.
    dead: bool,
}

impl Candidate {
    fn works(&self) -> bool {
        self.told.standing == Standing::Works && !self.dead
    }

    /// It works, and can vouch for its log.
    fn decides(&self) -> bool {
        self.works() && self.told.damaged_entries == 0 && !self.lost_before
    }

    fn may_come_back(&self) -> bool {
        let away = matches!(self.told.standing, Standing::Away(_) | Standing::Partial(_));
        away && !self.dead && !self.lost_before
    }
}

impl Work<'_> {
    /// It goes on from the one replica that has most. What was attached is detached: clients remember what may be lost.
    pub(super) fn recover_volume(&mut self, asked: RecoverVolume) -> Result<Object, Refusal> {
        let mut volume = self.expected_volume(asked.volume, asked.expect)?;
        self.check_not_deleted(&volume)?;
        let all = self.candidates(&volume, &asked.dead)?;
        let path = self.path(&volume);
        let leads = |it: &&Candidate| it.works() && it.told.leads && !it.lost_before;
        if let Some(leader) = all.iter().find(leads) {
            return Err(Refusal::VolumeLed {
                volume: path,
                host: self.host_name(leader.replica.host),
            });
        }
        let working = all.iter().filter(|it| it.works());
        // Who has the newest entry has all that this one's log could have committed.
        let survivor = working.max_by_key(|it| {
            let whole = it.told.damaged_entries == 0;
            (whole, it.told.last, std::cmp::Reverse(it.replica.number))
        });
        let Some(survivor) = survivor else {
            let replicas = all.iter().map(|it| self.standing(it));
            return Err(Refusal::NoSurvivor {
                volume: path,
                replicas: replicas.collect::<Vec<_>>().join("; "),
            });
        };
        self.check_hopeless(&path, &all, survivor)?;
        let loss = self.loss(&all, survivor);
        if !asked.accept_loss {
            return Err(Refusal::LossNotAccepted { volume: path, loss });
        }
        let known = all.iter().map(|it| it.told.last.1).max().unwrap_or(0);
        let number = volume.recovered.map_or(0, |last| last.recovery.number) + 1;
        volume.attachments += 1;
        volume.attached.clear();
        volume.recovered = Some(Recovered {
            recovery: Recovery {
                number,
                replica: survivor.replica.number,
                attachments: volume.attachments,
            },
            at: self.context.now,
            kept: survivor.told.last.1,
            known,
        });
        go_on_from(&mut volume, survivor.replica);
        Ok(self.put(Object::Volume(volume)))
    }

    fn candidates(
        &self,
        volume: &Volume,
        dead: &BTreeSet<HostId>,
    ) -> Result<Vec<Candidate>, Refusal> {
        let leaving = volume.leaving.iter().filter(|leaving| !leaving.gone);
        let leaving = leaving.map(|leaving| (leaving.replica, leaving.lost));
        let stay = volume.replicas.iter().map(|replica| (*replica, false));
        let all: Vec<(Replica, bool)> = stay.chain(leaving).collect();
        let no_replica = |host: &&HostId| !all.iter().any(|(it, _)| it.host == **host);
        if let Some(host) = dead.iter().find(no_replica) {
            return Err(Refusal::NoReplica {
                volume: self.path(volume),
                host: self.host_name(*host),
            });
        }
        let candidate = |(replica, lost_before): (Replica, bool)| {
            let told = self.context.replicas.get(&replica.number).cloned();
            Candidate {
                replica,
                told: told.unwrap_or_else(|| ReplicaTold::nothing("nothing was heard of it")),
                lost_before,
                dead: dead.contains(&replica.host),
            }
        };
        Ok(all.into_iter().map(candidate).collect())
    }

    /// Whether there can be no majority without those that are given up.
    fn check_hopeless(
        &self,
        path: &str,
        all: &[Candidate],
        survivor: &Candidate,
    ) -> Result<(), Refusal> {
        let voters = &survivor.told.voters;
        let votes = |it: &&Candidate| voters.is_empty() || voters.contains(&it.replica.number);
        let count = match voters.len() {
            0 => all.len(),
            some => some,
        };
        let deciding: Vec<&Candidate> =
            all.iter().filter(|it| it.decides()).filter(votes).collect();
        let majority = 2 * deciding.len() > count;
        let hopeful: Vec<&Candidate> = match majority {
            true => deciding,
            false => all.iter().filter(|it| it.may_come_back()).collect(),
        };
        if hopeful.is_empty() {
            return Ok(());
        }
        let others = hopeful.iter().filter(|it| it.replica != survivor.replica);
        let dead: Vec<String> = others.map(|it| self.host_name(it.replica.host)).collect();
        let why: Vec<String> = hopeful.iter().map(|it| self.standing(it)).collect();
        Err(Refusal::MayComeBack {
            volume: path.to_owned(),
            majority,
            why: why.join("; "),
            dead,
        })
    }

    /// What goes, for people.
    fn loss(&self, all: &[Candidate], survivor: &Candidate) -> String {
        let (term, last) = survivor.told.last;
        let mut text = format!(
            "it would go on from {} alone, whose log ends with entry {last} of term {term}",
            self.named(survivor)
        );
        if survivor.told.damaged_entries > 0 {
            let damaged = survivor.told.damaged_entries;
            text +=
                &format!(" and has {damaged} damaged entries, which are lost with all after them");
        }
        for other in all.iter().filter(|it| it.replica != survivor.replica) {
            let more = match other.told.last {
                (_, 0) => "nothing is known of its log".to_owned(),
                (term, index) => {
                    let newer = other.told.last > survivor.told.last;
                    let more = match index.saturating_sub(last) {
                        0 if newer => ", which is newer".to_owned(),
                        0 => String::new(),
                        more => format!(": {more} entries more"),
                    };
                    format!("its log was last told of with entry {index} of term {term}{more}")
                }
            };
            text += &format!("; without {}: {more}", self.named(other));
        }
        text
    }

    fn named(&self, candidate: &Candidate) -> String {
        let Replica { number, host, .. } = candidate.replica;
        format!("replica {number} on host {}", self.host_name(host))
    }

    fn standing(&self, candidate: &Candidate) -> String {
        let why = match &candidate.told.standing {
            _ if candidate.dead => "given up",
            Standing::Works => "it works",
            Standing::Away(why) | Standing::Partial(why) | Standing::Lost(why) => why,
        };
        format!("{}: {why}", self.named(candidate))
    }
}

/// All others have no part in it any more. They are kept until the one that stays has taken over.
fn go_on_from(volume: &mut Volume, survivor: Replica) {
    let wanted = volume.replicas.len() + volume.lacking;
    let others = std::mem::replace(&mut volume.replicas, vec![survivor]);
    volume.lacking = wanted - 1;
    let others = others.into_iter().map(|replica| Leaving {
        replica,
        gone: false,
        lost: true,
    });
    volume.leaving.extend(others);
    volume.leaving.retain(|leaving| leaving.replica != survivor);
    for leaving in &mut volume.leaving {
        leaving.lost |= !leaving.gone;
    }
}
