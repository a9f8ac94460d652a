//! `vpc completion`.

use crate::cli::Cli;
use crate::failure::{Failure, Outcome};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::{self, Write};

/// `vpc completion`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vpc completion bash > /etc/bash_completion.d/vpc
  vpc completion zsh > ~/.zfunc/_vpc")]
pub(crate) struct Completion {
    /// Which shell
    shell: Shell,
}

impl Completion {
    /// Does it.
    pub(crate) fn run(self) -> Outcome {
        // Into memory first: the generator panics when its writer fails, as a closed pipe does.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "vpc", &mut script);
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(&script)
            .and_then(|()| stdout.flush())
            .map_err(|error| Failure::output(&error))
    }
}
