//! The only gRPC: generated code, conversions at the edge, TLS, clients.
//!
//! The contract is `proto/vpc/v1`; what a message means is documented there.

mod client;
mod credential;
mod from_proto;
pub mod pki;
mod reference;
pub mod tls;
mod to_proto;
mod token;

pub use client::{
    ConnectError, EnrollError, Enrolled, Enrollment, connect, connect_admin, connect_agent,
    connect_evpn, connect_host, connect_l2, connect_l3, connect_sbs, connect_unix,
    connect_voter_host, connect_voter_server, enroll, enroll_with, management, renewed,
};
pub use credential::{Credential, CredentialError, chain_pem, write_private};
pub use from_proto::{
    BadRequest, Field, MAX_CONDITIONS, MAX_TRACKED, bounded, confirmed, disk_room, handed_over,
    list, number, parse, port_forward, replicated, sized_report, subnet_options, user_data,
};
pub use reference::{object, split};
pub use to_proto::{certificate, external, host, nic, without_secrets};
pub use token::{BadJoinToken, JoinToken};
pub use tonic;

/// The generated messages, clients and servers of package `vpc.v1`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::large_enum_variant,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("vpc.v1");
}

/// The encoded descriptors of every service, for reflection.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vpc.v1.bin"));
