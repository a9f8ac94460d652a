//! Generates the messages and services of `proto/`, without protoc.

use prost::Message;
use std::path::PathBuf;

const ROOT: &str = "../../proto";
const FILES: [&str; 15] = [
    "vpc/v1/types.proto",
    "vpc/v1/router_config.proto",
    "vpc/v1/host_config.proto",
    "vpc/v1/routing.proto",
    "vpc/v1/storage.proto",
    "vpc/v1/volume.proto",
    "vpc/v1/management.proto",
    "vpc/v1/enrollment.proto",
    "vpc/v1/host_sync.proto",
    "vpc/v1/l2.proto",
    "vpc/v1/l3.proto",
    "vpc/v1/sbs.proto",
    "vpc/v1/evpn.proto",
    "vpc/v1/agent.proto",
    "vpc/v1/lease.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let descriptors = protox::compile(FILES, [ROOT])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // With comments: reflection then answers with the documentation too.
    std::fs::write(out.join("vpc.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
