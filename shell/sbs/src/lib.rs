//! The storage process of a host: its disk and the replicas on it, the links to the other hosts' processes, and
//! the volumes that it serves over NBD. It is beside the agent, and outlives it.
//!
//! One thread owns `replication::Host` ([`owner`]): frames, completions and requests come to it as one closed
//! enum, and what it hands out is sent, written and answered by others. What replicas and attachments there are
//! follows from the `StorageConfig` that the process was told last, which it keeps ([`steward`]).
//!
//! **Invariants:** nothing of a peer is heard that has not proved to be a host of the cluster, and to be the one that
//! it says; a slow or silent peer holds neither memory nor another peer up; what was told to the process is kept
//! before it is begun.

mod attachment;
mod client;
mod control;
mod device;
mod figures;
mod had;
mod identity;
mod look;
mod owner;
mod peers;
mod place;
mod process;
mod sole;
mod steward;
mod wire;

pub use client::{Client, SbsError};
pub use figures::{Figures, Histogram};
pub use look::{
    AttachmentLook, AttachmentState, DiskLook, Look, MemberLook, PeerLook, ReplicaLook, ReplicaRole,
};
pub use place::DiskOptions;
pub use process::{Options, StartError, run};
pub use sole::SoleError;
pub use wire::SOCKET_NAME;
