//! The only gRPC: generated code, conversions at the edge, TLS, clients.

/// The generated messages, clients and servers of package `vpc.v1`. What they mean is documented
/// in `proto/vpc/v1`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::large_futures,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("vpc.v1");
}

/// The encoded descriptors of every service, for reflection.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vpc.v1.bin"));

pub use tonic;
