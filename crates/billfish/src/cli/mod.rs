//! The command line: one file a command.

mod chat;
mod convert;
mod doctor;
mod eval;
mod inspect;
mod options;
mod run;
mod stats;
mod synth;

use clap::{Parser, Subcommand};

/// Runs GPTQ-family language models from their packed weights.
#[derive(Parser)]
#[command(name = "billfish", version, max_term_width = 110, arg_required_else_help = true)]
#[command(after_help = "Environment: BILLFISH_ISA=scalar|avx2|avx512 forces an instruction set.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt
    Run(run::Args),
    /// Talk with a model through its chat template
    Chat(chat::Args),
    /// Say what a model folder is and how it would run
    Inspect(inspect::Args),
    /// Find everything that is wrong or odd with a model folder (exit code 2 if something is)
    Doctor(doctor::Args),
    /// Measure a model: logits or perplexity
    #[command(subcommand)]
    Eval(eval::Command),
    /// Write a model folder again in another format
    Convert(convert::Args),
    /// Write a model folder with random weights, to try size and speed without a download
    Synth(synth::Args),
}

/// Parses the command line and runs it. Returns false if a gate failed.
pub fn run() -> anyhow::Result<bool> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() && e.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let text = e.render().to_string();
            anyhow::bail!("{}", text.trim_start_matches("error: ").trim_end());
        }
        Err(e) if e.use_stderr() => {
            e.print()?;
            anyhow::bail!("expected a command");
        }
        Err(e) => {
            e.print()?;
            return Ok(true);
        }
    };
    match cli.command {
        Command::Run(args) => run::run(&args)?,
        Command::Chat(args) => chat::run(&args)?,
        Command::Inspect(args) => inspect::run(&args)?,
        Command::Doctor(args) => return doctor::run(&args),
        Command::Eval(command) => eval::run(&command)?,
        Command::Convert(args) => convert::run(&args)?,
        Command::Synth(args) => synth::run(&args)?,
    }
    Ok(true)
}
