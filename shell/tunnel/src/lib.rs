//! Runs the userspace transport: a process beside the agent that has TAPs and UDP sockets open and moves
//! frames between them by `datapath::Engine`, and what an agent talks to it with.
//!
//! It outlives the agent: an agent that starts again finds it and goes on. It is replaced without losing
//! what is open: a new process takes sockets, queues and tables over from the old one.

mod capture;
mod client;
mod control;
mod deliver;
mod process;
mod sockets;
mod wire;
mod worker;

pub use capture::{CaptureRequest, Record, Side};
pub use client::{Capture, Client, TunnelError};
pub use datapath::Direction;
pub use process::{Options, run};
pub use wire::{Counted, Figures, FlowFigures, SOCKET_NAME};
