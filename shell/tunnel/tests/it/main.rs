//! The datapath on a real kernel: two hosts, each with a bridge, a tunnel and a workload, in namespaces
//! of the test's own.

mod handover;
mod offloads;
mod rows;
mod world;
