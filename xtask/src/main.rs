//! `cargo xtask`: repository chores that need more than a shell.

mod kernel;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Repository chores that need more than a shell"
)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Full Linux kernels as test hosts (see xtask/kernel/README.md)
    #[command(subcommand)]
    Kernel(kernel::Chore),
}

fn main() -> ExitCode {
    kernel::init::run_if_pid_1();
    let Cli {
        chore: Chore::Kernel(chore),
    } = Cli::parse();
    match kernel::dispatch(chore) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
