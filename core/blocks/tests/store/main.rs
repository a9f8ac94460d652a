//! The store on a simulated disk, against a reference.

mod crash;
mod disk;
mod model;
mod random;
mod rng;
mod world;
