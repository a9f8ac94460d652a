//! Voters, and what they are asked.

use super::{BadRequest, Field, list, parse};
use crate::v1;
use lease::{Ask, Claim, MAX_CLAIMS};
use model::{HostId, VoterSet, Voting};
use std::collections::BTreeSet;

/// More than a cluster has, with those that are on their way out.
const MAX_SETS: usize = 64;
const MAX_VOTERS: usize = 64;
const MAX_HEARD: usize = 4096;
const MAX_PEERS: usize = 1024;

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
