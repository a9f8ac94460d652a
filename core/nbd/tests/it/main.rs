//! Both machines, byte for byte: against tables, against each other, against anything.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod client;
mod desk;
mod handshake;
mod properties;
mod transmission;
