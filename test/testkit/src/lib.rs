//! What tests share: golden scripts, waiting for a state.

mod dump;
mod golden;
mod wait;

pub use dump::{difference, without_counters};
pub use golden::run_golden_scripts;
pub use wait::{Eventually, eventually};
