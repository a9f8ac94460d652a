//! What tests share: golden scripts, waiting for a state, cleaning up.

mod dump;
mod golden;
pub mod history;
mod keeper;
mod stops;
mod wait;

pub use dump::{difference, without_counters};
pub use golden::run_golden_scripts;
pub use keeper::Keeper;
pub use stops::Stops;
pub use wait::{Eventually, eventually};
