//! A connection that a router tracks, in a form that another host's router can take over.

use crate::Protocol;
use std::net::IpAddr;

/// One tracked connection of TCP or UDP. All its addresses are of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracked {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// As its first packet came in.
    pub original: Ends,
    /// As an answer comes in; where it is not the reverse of `original`, addresses are translated.
    pub reply: Ends,
    /// There was an answer.
    pub seen_reply: bool,
    /// It is not given up early when there are too many.
    pub assured: bool,
    /// It ends after so many seconds of silence.
    pub timeout: u32,
    /// The kernel's number of TCP's state; 0 for UDP, and where it is not said.
    pub tcp_state: u8,
}

/// From where and where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// Source address.
    pub from: IpAddr,
    /// Source port.
    pub from_port: u16,
    /// Destination address.
    pub to: IpAddr,
    /// Destination port.
    pub to_port: u16,
}
