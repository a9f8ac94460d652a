//! Hosts with simulated disks, clocks and networks, and clients that watch what they are told.

mod clients;
#[path = "../../../blocks/tests/store/disk.rs"]
#[allow(dead_code)]
mod disk;
mod faults;
mod idle;
mod random;
mod register;
#[path = "../../../blocks/tests/store/rng.rs"]
mod rng;
mod scenarios;
mod world;
