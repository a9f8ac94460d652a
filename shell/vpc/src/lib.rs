//! The command line, its tables, and the lab.
//!
//! A command parses its words, asks a server or an agent over `api`, and shows the answer. It
//! decides nothing about networks.

mod cli;
mod commands;
mod connect;
mod failure;
mod lab;
mod options;
mod output;
mod panics;
mod reflector;
mod settings;
mod views;

use clap::Parser;
use failure::Outcome;
use std::process::ExitCode;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    panics::end_the_process();
    // Ends the process itself for --help, --version and words that are no command.
    let cli = cli::Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                output::remark(&text);
            }
            ExitCode::from(failure.exit())
        }
    }
}

/// Runs a command's conversation with a server or agent.
fn block_on<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    use failure::Doing;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "starting the event loop".to_owned())?
        .block_on(work)
}
