//! Our server with foreign clients, our client with foreign servers, and what neither may do to the other.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod certificates;
mod client;
mod compare;
mod file_device;
mod gate;
mod libnbd;
mod limits;
mod qemu;
mod raw;
mod rig;
mod tls;
