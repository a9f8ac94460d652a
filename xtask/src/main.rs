//! `cargo xtask`: repository chores that need more than a shell.

mod kernel;
mod tidy;

use std::path::Path;
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
    /// Check that the structure is what docs/architecture.md tells
    Tidy,
}

fn main() -> ExitCode {
    kernel::init::run_if_pid_1();
    let outcome = match Cli::parse().chore {
        Chore::Kernel(chore) => kernel::dispatch(chore),
        Chore::Tidy => tidy::check(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .parent()
                .unwrap_or(Path::new(".")),
        )
        .map(|()| 0),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
