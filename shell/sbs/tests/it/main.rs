//! Storage processes of several hosts on this machine: each a process of its own, at a loopback address of its own,
//! with real disks, certificates and NBD clients.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test says what it measured, and what hosts said when it fails"
)]

mod changes;
mod faults;
mod foreign;
mod hostile;
mod load;
mod recovery;
mod rig;
mod start;
