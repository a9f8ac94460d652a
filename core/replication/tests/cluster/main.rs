//! Hosts with simulated disks, clocks and networks, and clients that watch what they are told.

#![expect(clippy::print_stdout, reason = "a seed that fails is to be seen")]
#![expect(
    clippy::disallowed_methods,
    reason = "which seeds is the tester's affair"
)]

mod care;
mod changes;
mod clients;
mod clocks;
#[path = "../../../blocks/tests/store/disk.rs"]
#[allow(
    dead_code,
    clippy::explicit_counter_loop,
    reason = "another crate's tests have more use for it"
)]
mod disk;
mod doubt;
mod faults;
mod harm;
mod hostile;
mod idle;
mod random;
mod recovery;
mod register;
#[path = "../../../blocks/tests/store/rng.rs"]
mod rng;
mod scenarios;
mod world;
