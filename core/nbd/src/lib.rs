//! The Network Block Device protocol: a server's and a client's side of one connection. No sockets, clock,
//! tasks or disks: bytes in, requests out; results in, bytes out.
//!
//! The standard is `doc/proto.md` of the NBD project; what of it is done is told in docs/protocols/nbd.md. Data
//! that is written or read never passes through here: a machine says how many bytes of the connection go into a
//! buffer of its caller's, and gives buffers back in the order in which they are to be sent.

mod client;
mod error;
mod export;
mod gather;
mod server;
mod transmit;
pub mod wire;

pub use client::{
    Answer, Client, ClientConfig, ClientError, Command, Cookie, Export as RemoteExport,
    Next as ClientNext, Unsendable,
};
pub use error::{Errno, Failure};
pub use export::{BadExport, BlockSizes, Export};
pub use server::{
    ByteRange, Ending, Extent, Limits, Listed, Next, Part, ReadTicket, Request, Server,
    StatusTicket, Ticket, Tls, WriteRequest,
};
pub use transmit::{Piece, Sent};

/// The metadata context that says what is allocated, and what reads as zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The largest payload that anybody has to take: 32 MiB ("Size constraints").
pub const PAYLOAD_MAX: u32 = 1 << 25;
