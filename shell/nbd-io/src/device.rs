//! What is served: devices, and who finds them by name.

use crate::buffer::Buffer;
use bytes::Bytes;
use nbd::{BlockSizes, ByteRange, Extent, Failure, Listed, Part};
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

/// A block device. Requests are carried out at the same time and in no order, over all connections.
///
/// What is answered is done: who asks afterwards, over whatever connection, gets what was written, and what was
/// flushed, or written with `fua`, is on permanent storage (`NBD_FLAG_CAN_MULTI_CONN` is always offered). Ranges
/// are within the device, multiples of its minimum block size and not empty. A future that was polled is
/// polled to its end, whatever becomes of the client, but for a stop that takes too long.
pub trait Device: Send + Sync + 'static {
    /// Bytes, for as long as it is served.
    fn size(&self) -> u64;

    /// What can be asked at once, in bytes.
    fn block_sizes(&self) -> BlockSizes;

    /// Whether it is not to be written.
    fn is_read_only(&self) -> bool {
        false
    }

    /// What is there, as long as the range in all. It is checked before it is given: once a reply has begun
    /// there is no way to tell of an error.
    fn read(
        &self,
        range: ByteRange,
    ) -> impl Future<Output = Result<Vec<Part<Bytes>>, Failure>> + Send;

    /// Writes from there on.
    fn write(
        &self,
        offset: u64,
        data: Buffer,
        fua: bool,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// All that was answered before goes to permanent storage.
    fn flush(&self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Nobody needs that any more; what is read there afterwards is anything.
    fn trim(&self, range: ByteRange, fua: bool)
    -> impl Future<Output = Result<(), Failure>> + Send;

    /// It reads as zeroes afterwards.
    fn write_zeroes(
        &self,
        range: ByteRange,
        how: Zeroes,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// It is going to be read.
    fn cache(&self, range: ByteRange) -> impl Future<Output = Result<(), Failure>> + Send;

    /// What is allocated, from the range's beginning on: some of it is enough, and one extent if `one`.
    fn status(
        &self,
        range: ByteRange,
        one: bool,
    ) -> impl Future<Output = Result<Vec<Extent>, Failure>> + Send;
}

/// How zeroes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zeroes {
    /// They are on permanent storage when it is answered.
    pub fua: bool,
    /// They stay allocated.
    pub no_hole: bool,
    /// Fail with [`nbd::Errno::NotSupported`], and change nothing, if it is no faster than a write.
    pub fast: bool,
}

/// Devices by name.
pub trait Exports: Send + Sync + 'static {
    /// What is served.
    type Device: Device;

    /// The export of that name; an empty one is the default's. None if there is none for this client.
    fn open(
        &self,
        name: &str,
        peer: &Peer,
    ) -> impl Future<Output = Option<Opened<Self::Device>>> + Send;

    /// All that this client may know of.
    fn list(&self, peer: &Peer) -> impl Future<Output = Vec<Listed>> + Send;
}

/// An export that was found.
pub struct Opened<D> {
    /// Its canonical name.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// What is behind it.
    pub device: Arc<D>,
}

/// Who is on the other side.
#[derive(Debug, Clone)]
pub struct Peer {
    /// From where.
    pub address: PeerAddress,
    /// The certificate that it proved to hold, of the right authority; none without TLS.
    pub certificate: Option<CertificateDer<'static>>,
}

/// From where a client came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAddress {
    /// This machine, through a Unix socket, as this user.
    Local {
        /// The user's number; none if the kernel did not say.
        uid: Option<u32>,
    },
    /// The network.
    Tcp(SocketAddr),
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid: Some(uid) } => write!(f, "user {uid}"),
            Self::Local { uid: None } => f.write_str("this machine"),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}
