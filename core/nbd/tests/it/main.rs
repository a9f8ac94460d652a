//! Both machines, byte for byte: against tables, against each other, against anything.

mod client;
mod desk;
mod handshake;
mod properties;
mod transmission;
