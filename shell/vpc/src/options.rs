//! Options that several commands share.

use crate::connect::ServerAccess;
use crate::output::Format;
use clap::Args;
use std::time::Duration;

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// How to show results: a table for people, or JSON with stable field names
    #[arg(
        short,
        long,
        global = true,
        env = "VPC_OUTPUT",
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true,
        hide_env = true
    )]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) server: ServerAccess,
}

/// How long to wait for hosts.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Wait {
    /// Return when the hosts concerned reported the change done
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long --wait waits at most, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) timeout: u32,
}

impl Wait {
    /// The deadline, if there is to be any waiting.
    pub(crate) fn deadline(self) -> Option<Duration> {
        self.wait.then(|| Duration::from_secs(self.timeout.into()))
    }
}
