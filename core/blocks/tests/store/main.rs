//! The store on a simulated disk, against a reference.

#![expect(clippy::print_stdout, reason = "a seed that fails has to be told")]

mod crash;
mod disk;
mod faults;
mod model;
mod random;
mod rng;
mod world;
