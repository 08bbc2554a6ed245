//! The `billfish` binary. Exit code 0: done; 1: any error, wrong usage included; 2: a gate failed; 130: Ctrl-C.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        // whoever reads our output has had enough
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(e) if e.is::<cli::GateFailed>() => {
            eprintln!("failed: {e}");
            ExitCode::from(2)
        }
        Err(e) if e.is::<cli::Interrupted>() => {
            eprintln!("{e}");
            ExitCode::from(130)
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(1)
        }
    }
}
