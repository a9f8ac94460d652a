//! The store on a simulated disk, against a reference.

mod crash;
mod disk;
mod faults;
mod model;
mod random;
mod rng;
mod world;
