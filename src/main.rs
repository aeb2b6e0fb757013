//! The `warpdiff` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    warpdiff::cli::main()
}
