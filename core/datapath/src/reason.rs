//! Why frames are dropped, each counted for itself.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a frame or packet went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A frame of a TAP that says of itself what cannot be.
    Malformed,
    /// A frame of a TAP with a tag that nothing is bound to.
    UnknownVlan,
    /// A frame that is larger than its subnet's packets may be.
    TooBig,
    /// Unicast to a MAC that nobody announced.
    UnknownMac,
    /// Broadcast or multicast, and nobody else is in the domain.
    NobodyElse,
    /// A question for an address that nobody announced, where those are dropped.
    UnknownNeighbour,
    /// A question for an address of this host, which answers itself.
    NeighbourHere,
    /// More questions of a port than are answered.
    TooManyQuestions,
    /// More announcements of a port than are let through.
    TooManyAnnouncements,
    /// More broadcast and multicast of a domain than is let through.
    Storm,
    /// ARP or neighbour discovery that is not as it has to be.
    BadQuestion,
    /// A packet from an address that is no VTEP of ours.
    UnknownVtep,
    /// A packet that is no VXLAN, or has no VNI.
    NoVxlan,
    /// A VNI, or a tag inside, that this host has nothing of.
    UnknownVni,
    /// A packet with something inside that is no Ethernet frame.
    BadInside,
    /// Congestion was told on the way to a flow that does not know the sign (RFC 6040 §4.2).
    Congestion,
    /// Larger than what was received at once.
    Truncated,
    /// The TAP did not take it: it is down, or there is no memory.
    TapFull,
    /// A frame that a TAP's queue had no room for: they come faster than they are read.
    TapQueueFull,
    /// The TAP is gone.
    TapGone,
    /// The underlay's socket did not take it: its buffer is full.
    SocketFull,
    /// A packet that the underlay's socket had no room for: they come faster than they are read. Packets
    /// that the kernel had put together count as one.
    ReceiveBufferFull,
    /// The underlay has no way to the VTEP, or one that is too narrow.
    Unreachable,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 23] = [
        Self::Malformed,
        Self::UnknownVlan,
        Self::TooBig,
        Self::UnknownMac,
        Self::NobodyElse,
        Self::UnknownNeighbour,
        Self::NeighbourHere,
        Self::TooManyQuestions,
        Self::TooManyAnnouncements,
        Self::Storm,
        Self::BadQuestion,
        Self::UnknownVtep,
        Self::NoVxlan,
        Self::UnknownVni,
        Self::BadInside,
        Self::Congestion,
        Self::Truncated,
        Self::TapFull,
        Self::TapQueueFull,
        Self::TapGone,
        Self::SocketFull,
        Self::ReceiveBufferFull,
        Self::Unreachable,
    ];

    /// As it is written in tables, metrics and captures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownVlan => "unknown-vlan",
            Self::TooBig => "too-big",
            Self::UnknownMac => "unknown-mac",
            Self::NobodyElse => "nobody-else",
            Self::UnknownNeighbour => "unknown-neighbour",
            Self::NeighbourHere => "neighbour-here",
            Self::TooManyQuestions => "too-many-questions",
            Self::TooManyAnnouncements => "too-many-announcements",
            Self::Storm => "storm",
            Self::BadQuestion => "bad-question",
            Self::UnknownVtep => "unknown-vtep",
            Self::NoVxlan => "no-vxlan",
            Self::UnknownVni => "unknown-vni",
            Self::BadInside => "bad-inside",
            Self::Congestion => "congestion",
            Self::Truncated => "truncated",
            Self::TapFull => "tap-full",
            Self::TapQueueFull => "tap-queue-full",
            Self::TapGone => "tap-gone",
            Self::SocketFull => "socket-full",
            Self::ReceiveBufferFull => "receive-buffer-full",
            Self::Unreachable => "unreachable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_at_its_own_place() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
        }
    }
}
