//! What is fuzzed, as functions over bytes. The targets hand them libFuzzer's bytes, `seeds` makes
//! the bytes to begin with, and a finding is run again with `cargo fuzz run TARGET FILE`.

pub mod asked;
pub mod bgp;
pub mod datapath;
pub mod dhcp;
pub mod disks;
pub mod formats;
pub mod kernel;
pub mod leases;
pub mod nbd;
pub mod volumes;
