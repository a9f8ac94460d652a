//! What tests share: golden scripts, waiting for a state.

mod golden;
mod wait;

pub use golden::run_golden_scripts;
pub use wait::{Eventually, eventually};
