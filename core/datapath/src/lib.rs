//! The userspace transport: what becomes of a frame that a TAP gives, and of a packet that a tunnel
//! brings. No sockets, clock, RNG or tasks: bytes and `now` in, packets and frames out.

pub mod bucket;
pub mod checksum;
mod dissect;
mod dues;
mod engine;
pub mod filter;
mod flows;
mod merge;
mod message;
pub mod neighbour;
mod offload;
mod outbox;
mod outer;
mod packet;
pub mod pcapng;
mod reason;
mod slots;
mod split;
mod summary;
mod tables;
mod vxlan;

pub use dissect::inner;
pub use dues::{ANNOUNCEMENTS, Dues};
pub use engine::{Answered, Engine, Fate, Received, Traffic};
pub use flows::{
    Direction, Ends, FLOW_IDLE, FLOWS_DEFAULT, FLOWS_MAX, Flow, FlowKey, Noted,
    together as flows_together,
};
pub use message::{Bounds, Message};
pub use offload::{OFFLOAD_BYTES, Offload, Partial, SegmentKind, Segmentation};
pub use outbox::{Frame, Inbox, Outbox, Packets, Segment, Span};
pub use outer::outer;
pub use reason::Reason;
pub use summary::summary;
pub use tables::{Binding, Change, Domain, Limits, Neighbour, Place, Tables, Unknown};
pub use vxlan::{VXLAN_PORT, vni_of};
