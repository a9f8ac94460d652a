//! What this agent itself installed in a router's namespace and knows to be there still, so that a change of
//! a few elements is told the kernel as that.
//!
//! The kernel numbers the states of a namespace's nftables. As long as the number is the one after our own
//! last transaction, all is as we left it; and a transaction that names the number is refused if somebody
//! was faster. Nothing is known after a restart, a failure, or a change by others: then all is read, or put
//! there as a whole.

use super::elements::{Element, Elements, Wire, elements};
use super::rules::{Counters, Seal, chains, counters, data};
use crate::attr::Message;
use crate::error::Cause;
use crate::nft;
use crate::socket::Socket;
use crate::sys;
use host_plan::{Fingerprint, RouterFirewall};
use std::collections::HashSet;

/// More elements that differ than this are put there as a whole.
const MOST: usize = 1024;
/// Elements in one message: its nest has 16 bits of length.
const IN_A_MESSAGE: usize = 256;

/// A ruleset that is there, sealed.
#[derive(Debug)]
pub(crate) struct Held {
    /// The cookie of the namespace: one made anew under the same name is another.
    netns: u64,
    /// Of its nftables, after our last transaction.
    generation: u32,
    firewall: RouterFirewall,
    counters: Counters,
    elements: Elements,
    seal: Seal,
}

impl Held {
    /// What was sealed just now, as the calling thread's namespace has it; none if its elements are not
    /// those that it would be told to change.
    pub(super) fn sealed(
        firewall: &RouterFirewall,
        counters: Counters,
        seal: Seal,
        generation: u32,
    ) -> Option<Self> {
        let held = Self {
            netns: sys::netns_cookie().ok()?,
            generation,
            firewall: firewall.clone(),
            elements: elements(firewall, &counters),
            counters,
            seal,
        };
        (numbers(&held.elements) == held.seal.elements).then_some(held)
    }

    /// True if the calling thread is in its namespace.
    pub(super) fn is_here(&self) -> bool {
        sys::netns_cookie().is_ok_and(|cookie| cookie == self.netns)
    }

    /// True if nothing was changed since, in the calling thread's namespace of this generation.
    pub(super) fn is_at(&self, generation: u32) -> bool {
        self.generation == generation && self.is_here()
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.firewall.fingerprint()
    }

    /// Others made that generation of something else: our table was read and found to be what it was.
    pub(super) fn seen(self, generation: u32, seal: Option<&Seal>) -> Option<Self> {
        let same = seal == Some(&self.seal);
        same.then_some(Self { generation, ..self })
    }

    /// Changes the elements that differ, in one transaction, and ends the flows that are not allowed any
    /// more. None, and nothing was done, if more than elements differs.
    pub(super) fn become_other(
        self,
        socket: &mut Socket,
        firewall: &RouterFirewall,
        now_secs: u64,
    ) -> Result<Option<Self>, Cause> {
        let counters = counters(firewall, &self.counters, now_secs);
        let (old, new) = (&self.elements, elements(firewall, &counters));
        if chains(&self.firewall, &|set| old.contains_key(set))
            != chains(firewall, &|set| new.contains_key(set))
        {
            return Ok(None);
        }
        let (removed, added) = (without(old, &new), without(&new, old));
        if removed.len() + added.len() > MOST {
            return Ok(None);
        }
        let sum = |of: &[(&str, Wire)]| {
            let numbers = of.iter().map(|(set, wire)| wire.number(set));
            numbers.fold(0, u64::wrapping_add)
        };
        let elements = self.seal.elements.wrapping_sub(sum(&removed));
        let seal = Seal {
            contents: self.seal.contents.clone(),
            elements: elements.wrapping_add(sum(&added)),
        };
        let mut requests = Vec::new();
        requests.extend(changes(sys::NFT_MSG_DELSETELEM, &removed));
        let gone = self
            .counters
            .iter()
            .filter(|(rule, name)| counters.get(rule) != Some(name));
        requests.extend(gone.map(|(_, name)| counter(sys::NFT_MSG_DELOBJ, name)));
        let come = counters
            .iter()
            .filter(|(rule, name)| self.counters.get(rule) != Some(name));
        requests.extend(come.map(|(_, name)| counter(sys::NFT_MSG_NEWOBJ, name)));
        requests.extend(changes(sys::NFT_MSG_NEWSETELEM, &added));
        // Until it is sealed again the next agent would do all of it again.
        for name in [self.seal.to_string(), data(self.fingerprint())] {
            requests.push(nft::delete_chain(sys::NFPROTO_INET, &name));
        }
        let fingerprint = data(firewall.fingerprint());
        requests.push(nft::new_chain(sys::NFPROTO_INET, &fingerprint));
        nft::transaction_at(socket, Some(self.generation), &mut requests)?;
        if firewall.may_revoke(&self.firewall) {
            super::flows::end_revoked(socket, firewall)?;
        }
        let changed = nft::next_generation(self.generation);
        let mut sealing = [nft::new_chain(sys::NFPROTO_INET, &seal.to_string())];
        nft::transaction_at(socket, Some(changed), &mut sealing)?;
        Ok(Some(Self {
            netns: self.netns,
            generation: nft::next_generation(changed),
            firewall: firewall.clone(),
            counters,
            elements: new,
            seal,
        }))
    }
}

/// The sum that a seal has of these.
fn numbers(elements: &Elements) -> u64 {
    let all = elements.iter();
    let all = all.flat_map(|(set, held)| held.iter().map(move |one| one.wire().number(set)));
    all.fold(0, u64::wrapping_add)
}

/// Those that are in `some` and not in `others`, by set.
fn without(some: &Elements, others: &Elements) -> Vec<(&'static str, Wire)> {
    let mut rest = Vec::new();
    for (set, held) in some {
        let others: &[Element] = others.get(set).map_or(&[], Vec::as_slice);
        // Both are in the same order, and mostly one differs of hundreds.
        let same = |(one, other): &(&Element, &Element)| one == other;
        let front = held.iter().zip(others).take_while(same).count();
        let (held, others) = (&held[front..], &others[front..]);
        let back = held.iter().rev().zip(others.iter().rev());
        let back = back.take_while(same).count();
        let (held, others) = (&held[..held.len() - back], &others[..others.len() - back]);
        let others: HashSet<&Element> = others.iter().collect();
        let held = held.iter().filter(|one| !others.contains(one));
        rest.extend(held.map(|one| (*set, one.wire())));
    }
    rest
}

/// Requests to add or remove elements.
fn changes(kind: u8, elements: &[(&str, Wire)]) -> Vec<Message> {
    let adds = kind == sys::NFT_MSG_NEWSETELEM;
    let flags = if adds { libc::NLM_F_CREATE } else { 0 };
    let of_sets = elements.chunk_by(|one, other| one.0 == other.0);
    let parts = of_sets.flat_map(|of_set| of_set.chunks(IN_A_MESSAGE));
    parts
        .map(|elements| {
            let mut request = Message::new(nft::message(kind), flags);
            request
                .header(&[sys::NFPROTO_INET, 0, 0, 0])
                .put_text(sys::NFTA_SET_ELEM_LIST_TABLE, "vpc")
                .put_text(sys::NFTA_SET_ELEM_LIST_SET, elements[0].0)
                .nest(sys::NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
                    for (_, wire) in elements {
                        wire.put(m, adds);
                    }
                });
            request
        })
        .collect()
}

/// The request to make or remove a counter.
fn counter(kind: u8, name: &str) -> Message {
    let adds = kind == sys::NFT_MSG_NEWOBJ;
    let flags = if adds { libc::NLM_F_CREATE } else { 0 };
    let mut request = Message::new(nft::message(kind), flags);
    request
        .header(&[sys::NFPROTO_INET, 0, 0, 0])
        .put_text(sys::NFTA_OBJ_TABLE, "vpc")
        .put_text(sys::NFTA_OBJ_NAME, name)
        .put_be32(sys::NFTA_OBJ_TYPE, sys::NFT_OBJECT_COUNTER);
    if adds {
        request.nest(sys::NFTA_OBJ_DATA, |m| {
            for kind in [sys::NFTA_COUNTER_PACKETS, sys::NFTA_COUNTER_BYTES] {
                m.put(kind, &0_u64.to_be_bytes());
            }
        });
    }
    request
}
