//! The `vpc` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    vpc::main()
}
