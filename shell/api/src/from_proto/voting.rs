//! Voters, and what they are asked.

use super::{BadRequest, Field, list, parse};
use crate::v1;
use lease::{Ask, Claim, MAX_CLAIMS};
use model::{Ends, HostId, Protocol, Tracked, VoterSet, Voting};
use standby::{Batch, Key};
use std::collections::BTreeSet;

/// More than a cluster has, with those that are on their way out.
const MAX_SETS: usize = 64;
const MAX_VOTERS: usize = 64;
const MAX_HEARD: usize = 4096;
const MAX_PEERS: usize = 1024;
/// Connections of a router that go with it to another host, at most.
pub const MAX_TRACKED: usize = 20_000;

pub(super) fn voting(wire: v1::Voting) -> Result<Voting, BadRequest> {
    let root = Field::root("voting");
    let sets = list(root.of("sets"), wire.sets, MAX_SETS, |field, set| {
        let voters = voters(field.of("voters"), set.voters)?;
        match voters.is_empty() {
            true => Err(field.bad("it has no voters, and no majority of nobody is ever reached")),
            false => Ok(voters),
        }
    })?;
    if sets.is_empty() {
        return Err(root
            .of("sets")
            .bad("there is none: leave voting out instead"));
    }
    let peers = list(root.of("peers"), wire.peers, MAX_PEERS, |field, peer| {
        let host: HostId = parse(field.of("host_id"), &peer.host_id)?;
        Ok((host, parse(field.of("address"), &peer.address)?))
    })?;
    Ok(Voting {
        sets,
        peers: peers.into_iter().collect(),
    })
}

pub(super) fn report(wire: v1::RoutingReport) -> Result<(VoterSet, BTreeSet<HostId>), BadRequest> {
    let root = Field::root("routing");
    let heard = list(
        root.of("heard_host_ids"),
        wire.heard_host_ids,
        MAX_HEARD,
        |field, id| parse(field, &id),
    )?;
    let voters = voters(root.of("voters"), wire.voters)?;
    Ok((voters, heard.into_iter().collect()))
}

fn voters(field: Field<'_>, wire: Vec<String>) -> Result<VoterSet, BadRequest> {
    let voters = list(field, wire, MAX_VOTERS, |field, text| parse(field, &text))?;
    Ok(voters.into_iter().collect())
}

impl TryFrom<v1::ConfirmRequest> for Ask {
    type Error = BadRequest;
    fn try_from(wire: v1::ConfirmRequest) -> Result<Self, BadRequest> {
        Ok(Self {
            claims: claims(Field::root("claims"), wire.claims)?,
            ended: claims(Field::root("ended"), wire.ended)?,
        })
    }
}

/// What a voter confirmed.
pub fn confirmed(wire: v1::ConfirmReply) -> Result<Vec<Claim>, BadRequest> {
    claims(Field::root("confirmed"), wire.confirmed)
}

fn claims(field: Field<'_>, wire: Vec<v1::RouterClaim>) -> Result<Vec<Claim>, BadRequest> {
    list(field, wire, MAX_CLAIMS, |field, claim| {
        Ok(Claim {
            router: parse(field.of("router_id"), &claim.router_id)?,
            epoch: claim.epoch,
        })
    })
}

impl From<&Claim> for v1::RouterClaim {
    fn from(claim: &Claim) -> Self {
        Self {
            router_id: claim.router.to_string(),
            epoch: claim.epoch,
        }
    }
}

impl From<&Ask> for v1::ConfirmRequest {
    fn from(ask: &Ask) -> Self {
        Self {
            claims: ask.claims.iter().map(Into::into).collect(),
            ended: ask.ended.iter().map(Into::into).collect(),
        }
    }
}

/// What a router is to track that comes from another host.
pub fn handed_over(wire: v1::HandOverRequest) -> Result<(Claim, Vec<Tracked>), BadRequest> {
    let claim = claim(wire.router)?;
    let field = Field::root("connections");
    let connections = list(field, wire.connections, MAX_TRACKED, tracked)?;
    Ok((claim, connections))
}

/// What a router's standby is to keep.
pub fn replicated(wire: v1::ReplicateRequest) -> Result<(Claim, Batch), BadRequest> {
    let claim = claim(wire.router)?;
    let (connections, gone) = (Field::root("connections"), Field::root("gone"));
    let batch = Batch {
        series: wire.series,
        begins: wire.begins,
        ends: wire.ends,
        connections: list(connections, wire.connections, standby::BATCH, tracked)?,
        gone: list(gone, wire.gone, standby::BATCH, key)?,
    };
    Ok((claim, batch))
}

fn key(field: Field<'_>, wire: v1::ConnectionKey) -> Result<Key, BadRequest> {
    Ok(Key {
        protocol: field
            .of("protocol")
            .enumeration::<v1::TransportProtocol, Protocol>(wire.protocol)?,
        original: ends(field.of("original"), wire.original)?,
    })
}

fn claim(wire: Option<v1::RouterClaim>) -> Result<Claim, BadRequest> {
    let root = Field::root("router");
    let router = wire.ok_or_else(|| root.bad("it is missing: say whose connections they are"))?;
    Ok(Claim {
        router: parse(root.of("router_id"), &router.router_id)?,
        epoch: router.epoch,
    })
}

fn tracked(field: Field<'_>, wire: v1::TrackedConnection) -> Result<Tracked, BadRequest> {
    let original = ends(field.of("original"), wire.original)?;
    let reply = ends(field.of("reply"), wire.reply)?;
    let v4 = original.from.is_ipv4();
    let others = [original.to, reply.from, reply.to];
    if others.iter().any(|address| address.is_ipv4() != v4) {
        return Err(field.bad("its addresses are of two families"));
    }
    Ok(Tracked {
        protocol: field
            .of("protocol")
            .enumeration::<v1::TransportProtocol, Protocol>(wire.protocol)?,
        original,
        reply,
        seen_reply: wire.seen_reply,
        assured: wire.assured,
        timeout: wire.timeout,
        tcp_state: u8::try_from(wire.tcp_state)
            .map_err(|_| field.of("tcp_state").bad("no state has such a number"))?,
    })
}

fn ends(field: Field<'_>, wire: Option<v1::ConnectionEnds>) -> Result<Ends, BadRequest> {
    let wire = wire.ok_or_else(|| field.bad("it is missing"))?;
    let port = |name, port: u32| {
        u16::try_from(port).map_err(|_| field.of(name).bad("a port is at most 65535"))
    };
    Ok(Ends {
        from: parse(field.of("from"), &wire.from)?,
        from_port: port("from_port", wire.from_port)?,
        to: parse(field.of("to"), &wire.to)?,
        to_port: port("to_port", wire.to_port)?,
    })
}

impl From<&Tracked> for v1::TrackedConnection {
    fn from(tracked: &Tracked) -> Self {
        Self {
            protocol: v1::TransportProtocol::from(tracked.protocol).into(),
            original: Some((&tracked.original).into()),
            reply: Some((&tracked.reply).into()),
            seen_reply: tracked.seen_reply,
            assured: tracked.assured,
            timeout: tracked.timeout,
            tcp_state: tracked.tcp_state.into(),
        }
    }
}

impl From<&Key> for v1::ConnectionKey {
    fn from(key: &Key) -> Self {
        Self {
            protocol: v1::TransportProtocol::from(key.protocol).into(),
            original: Some((&key.original).into()),
        }
    }
}

impl From<&Ends> for v1::ConnectionEnds {
    fn from(ends: &Ends) -> Self {
        Self {
            from: ends.from.to_string(),
            from_port: ends.from_port.into(),
            to: ends.to.to_string(),
            to_port: ends.to_port.into(),
        }
    }
}

impl From<(&Claim, &Batch)> for v1::ReplicateRequest {
    fn from((claim, batch): (&Claim, &Batch)) -> Self {
        Self {
            router: Some(claim.into()),
            series: batch.series,
            begins: batch.begins,
            ends: batch.ends,
            connections: batch.connections.iter().map(Into::into).collect(),
            gone: batch.gone.iter().map(Into::into).collect(),
        }
    }
}
