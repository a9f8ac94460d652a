//! The lab suite: a module for each feature, one binary, labs of their own.

mod capture;
mod contest;
mod crash;
mod distributed;
mod evpn;
mod failover;
mod frr;
mod guest;
mod hostile;
mod input;
mod misconfig;
mod moves;
mod names;
mod reach;
mod reflector;
mod routers;
mod scale;
mod seeing;
mod transports;
mod type5;
mod userspace;
mod volumes;
