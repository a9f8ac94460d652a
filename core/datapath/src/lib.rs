//! The userspace transport: what becomes of a frame that a TAP gives, and of a packet that a tunnel
//! brings. No sockets, clock, RNG or tasks: bytes and `now` in, packets and frames out.

mod tables;

pub use tables::{Binding, Change, Domain, Neighbour, Place, Tables, Unknown};
