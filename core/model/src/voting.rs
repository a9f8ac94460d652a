//! Who says which host a router runs on: the voters that its lease is kept by.

use crate::HostId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// TCP port at which route hosts answer each other whether they may run their routers, on their underlay
/// address.
pub const LEASE_PORT: u16 = 7444;

/// One of those who confirm that a host runs a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Voter {
    /// The management server.
    Server,
    /// A route host.
    Host(HostId),
}

/// Text that names no voter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a voter: server, or a host's id")]
pub struct BadVoter(String);

impl FromStr for Voter {
    type Err = BadVoter;
    fn from_str(text: &str) -> Result<Self, BadVoter> {
        match text {
            "server" => Ok(Self::Server),
            id => id
                .parse()
                .map(Self::Host)
                .map_err(|_| BadVoter(text.to_owned())),
        }
    }
}

impl fmt::Display for Voter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => f.pad("server"),
            Self::Host(id) => fmt::Display::fmt(id, f),
        }
    }
}

impl TryFrom<String> for Voter {
    type Error = BadVoter;
    fn try_from(text: String) -> Result<Self, BadVoter> {
        text.parse()
    }
}

impl From<Voter> for String {
    fn from(voter: Voter) -> String {
        voter.to_string()
    }
}

/// Voters of which a majority counts; never empty where it is used.
pub type VoterSet = BTreeSet<Voter>;

/// By whose word a route host runs its routers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voting {
    /// A majority of each is needed. The first is the one that counts from now on; the others are
    /// those that some host may still go by.
    pub sets: Vec<VoterSet>,
    /// Where the voting hosts listen, but for the host itself.
    pub peers: BTreeMap<HostId, SocketAddr>,
}

impl Voting {
    /// True if the host itself is all that is asked: nobody could take over.
    pub fn is_alone(&self, host: HostId) -> bool {
        let alone = VoterSet::from([Voter::Host(host)]);
        self.sets.iter().all(|set| *set == alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_survive_their_text() {
        for voter in [Voter::Server, Voter::Host(HostId::from_random(7))] {
            assert_eq!(voter.to_string().parse(), Ok(voter));
        }
        assert!("somebody".parse::<Voter>().is_err());
    }
}
