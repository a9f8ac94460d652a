//! Full kernels as test hosts: User-Mode Linux on the files of this machine.
//!
//! `build` makes the kernel, `run` boots it and runs a command in it, `check` proves what it can do.
//! `init` is pid 1 inside, this same program; `probe` holds the checks that need a system call no command line tool makes.

mod build;
pub(crate) mod init;
mod probe;
mod run;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Chore {
    /// Build the kernel, unless the cache holds one made from the same configuration
    Build(build::Args),
    /// Boot kernels on this machine's files and run a command in each
    Run(run::Args),
    /// Prove by use that the kernel has what the lab needs
    Check,
    /// One check by system calls, for check.sh
    #[command(hide = true)]
    Probe {
        #[arg(value_enum)]
        what: probe::What,
    },
}

/// Returns the exit status for the process.
pub(crate) fn dispatch(chore: Chore) -> Result<u8> {
    match chore {
        Chore::Build(args) => build::run(&args).map(|()| 0),
        Chore::Run(args) => run::run(args),
        Chore::Check => run::run(run::Args::check(sources().join("check.sh"))),
        Chore::Probe { what } => probe::run(what).map(|()| 0),
    }
}

/// Where uml.config and check.sh lie.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel")
}

/// Runs a command to its end; its output goes where ours goes.
fn exec(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("start {shown}"))?;
    ensure!(status.success(), "{shown} failed: {status}");
    Ok(())
}
