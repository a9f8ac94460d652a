//! The datapath on a real kernel: two hosts, each with a bridge, a tunnel and a workload, in namespaces
//! of the test's own.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]
#![allow(clippy::print_stdout, reason = "figures, and what was left out")]

mod flows;
mod full;
mod handover;
mod offloads;
mod rows;
mod world;
