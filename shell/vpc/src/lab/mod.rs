//! A whole cluster on one machine, each host a set of namespaces of its own.
//!
//! Nothing is made in the machine's own network namespace: the switches between the hosts are
//! bridges in a namespace of the lab, the hosts' interfaces veth pairs with one end there.
//!
//! **Invariant:** ending the holder processes ends the lab; what is left then is one directory.

pub(crate) mod cli;
mod cluster;
mod control;
mod demo;
mod down;
mod enter;
mod holder;
mod probe;
mod process;
mod progress;
mod sniff;
mod spec;
mod state;
mod status;
mod told;
mod up;
mod wire;

/// The lab that is meant when none is named.
const DEFAULT_NAME: &str = "default";
