//! The store on a simulated disk, against a reference.

#![expect(clippy::print_stdout, reason = "a seed that fails has to be told")]

mod checkpoints;
mod chunks;
mod crash;
mod disk;
mod faults;
mod last;
mod machine;
mod model;
mod opening;
mod random;
mod rng;
mod room;
mod sick;
mod survives;
mod world;
