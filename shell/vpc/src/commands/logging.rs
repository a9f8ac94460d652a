//! Logs of the daemons, on standard error.

use crate::failure::{Doing, Failure, Outcome};
use std::io;
use tracing_subscriber::EnvFilter;

/// Starts logging. `RUST_LOG`, if set, wins over `filter`.
pub(crate) fn start(filter: &str) -> Outcome {
    let words = std::env::var("RUST_LOG").unwrap_or_else(|_| filter.to_owned());
    let filter =
        EnvFilter::try_new(&words).doing(|| format!("reading the log filter {words:?}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .try_init()
        .map_err(|error| Failure::new(format!("starting the log: {error}")))
}
