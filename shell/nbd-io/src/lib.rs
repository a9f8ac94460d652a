//! Serves block devices over NBD, and uses those that others serve: sockets, TLS and buffers around the machines
//! of `nbd`. Data goes from a socket into an aligned buffer and from there to the device, and back, without
//! being copied.

mod buffer;
mod client;
mod device;
mod outgoing;
mod server;
mod stream;
mod tls;

pub use buffer::{ALIGNMENT, Buffer, Pool};
pub use client::{Client, ConnectError, RequestError, Target};
pub use device::{Device, Exports, Opened, Peer, PeerAddress, Zeroes};
pub use server::{Listener, ServeError, Settings, serve};
pub use tls::{ClientTls, ServerTls, TlsError};
