//! `billfish config`: what `serve` would run with.

use super::serve;
use std::io::Write;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Print every setting of `serve` as TOML, and where its value comes from
    Print(Box<serve::Args>),
}

pub fn run(command: &Command) -> anyhow::Result<()> {
    let Command::Print(args) = command;
    Ok(write!(std::io::stdout().lock(), "{}", serve::settings(args)?.toml())?)
}
