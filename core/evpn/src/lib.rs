//! BGP-4 with EVPN: sessions, RIB, reflection, MAC-VRFs. No sockets, clock, RNG or tasks.
//!
//! A [`Speaker`] is one process's BGP. Callers hand in bytes and `now`, and carry out what
//! `poll_*` returns:
//!
//! * `handle_*`: the network or the clock happened;
//! * commands ([`Speaker::set_local`], [`Speaker::set_peers`], [`Speaker::set_members`], [`Speaker::stop`]): the state that
//!   is wanted, as a whole;
//! * `poll_*`: what to send ([`Speaker::poll_transmit`], first), what else to do
//!   ([`Speaker::poll_action`]), when to come back ([`Speaker::poll_timeout`]);
//! * getters: what was learned.
//!
//! What of which RFC is done, and where it departs from the letter, is in
//! `docs/protocols/evpn.md`.

mod advice;
mod clash;
mod codec;
mod config;
mod counts;
mod duplicate;
mod export;
mod foreign;
mod group;
mod history;
mod info;
mod insight;
mod ip_vrf;
mod journal;
mod limit;
mod link;
mod local;
mod membership;
mod mobility;
mod peer;
mod prefix;
mod raised;
mod rest;
mod rib;
mod session;
mod speaker;
mod taken_back;
mod target;
mod vrf;
mod watch;

pub use advice::{Advice, Lost, LostBy};
pub use config::{
    Announces, Config, ConnectMode, MaxRoutes, OverLimit, PeerConfig, PeerId, PeerRole, Policy,
    Role, Timing, router_id_of,
};
pub use counts::Counts;
pub use duplicate::{DuplicateAction, DuplicatePolicy};
pub use history::{Direction, HistoryEntry, MessageCounts, MessageKind};
pub use info::{PeerCounters, PeerInfo, RouteInfo, SessionState};
pub use insight::{Alert, AlertKind, ClaimInfo, MacInfo, PathCount, Summary};
pub use limit::{MacLevel, MacLimit};
pub use link::ConnId;
pub use local::{BadLocalState, LocalEvi, LocalIpVrf, LocalMac, LocalState, RouteTargets, Routed};
pub use raised::Sequences;
pub use speaker::{Action, BadConfig, CannotRefresh, Event, Refused, Speaker, StopKind, Transmit};
pub use taken_back::Members;
pub use target::{Rd, RouteTarget};
