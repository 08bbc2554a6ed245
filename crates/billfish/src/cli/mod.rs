//! The command line: one file a command.

mod bench;
mod chat;
mod config;
mod convert;
mod diff;
mod doctor;
mod eval;
mod explain;
mod inspect;
mod options;
mod plan;
mod quantize;
mod run;
mod serve;
mod size;
mod stats;
mod synth;
mod verify;
mod version;

use clap::{Parser, Subcommand};

/// Runs GPTQ-family language models from their packed weights.
#[derive(Parser)]
#[command(name = "billfish", disable_version_flag = true, max_term_width = 110, arg_required_else_help = true)]
#[command(after_help = "Environment: BILLFISH_ISA=scalar|avx2|avxvnni|avx512|amx|neon|dotprod forces an instruction set.")]
struct Cli {
    /// Print the version
    #[arg(long, short = 'V')]
    version: bool,
    /// With --version: print the processor, its features, the instruction set and the kernels too
    #[arg(long, short, requires = "version")]
    verbose: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt
    Run(run::Args),
    /// Talk with a model through its chat template
    Chat(chat::Args),
    /// Serve a model to many users at once, behind OpenAI's API
    Serve(Box<serve::Args>),
    /// Show the settings of `serve`
    #[command(subcommand)]
    Config(config::Command),
    /// Say what a model folder is and how it would run
    Inspect(inspect::Args),
    /// Find everything that is wrong or odd with a model folder (exit code 2 if something is)
    Doctor(doctor::Args),
    /// Compare every weight of two folders, whatever formats they are in; exit code 2 if any differs
    Verify(options::PairArgs),
    /// Say in what two folders differ: tensors, codes, zeros, scales, row order, configuration
    Diff(options::PairArgs),
    /// Show where one weight comes from: words, bits, zero point, scale
    Explain(explain::Args),
    /// Measure a model: logits, perplexity, divergence from another, questions
    #[command(subcommand)]
    Eval(eval::Command),
    /// Measure speed: of a model, of single kernels, of requests
    Bench(Box<bench::Args>),
    /// Write a model folder again in another format
    Convert(convert::Args),
    /// Quantize a 16-bit folder, or say what that would take
    Quantize(Box<quantize::Args>),
    /// Choose widths and group sizes for a size, by measuring, or by what modules are
    Plan(Box<plan::Args>),
    /// Write a model folder with random weights, to try size and speed without a download
    Synth(synth::Args),
}

/// What was asked has been done, and the answer is no: exit code 2, not 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GateFailed(pub String);

/// Ctrl-C was pressed, and what was begun can be taken up again: exit code 130, as shells have it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);

/// Parses the command line and runs it.
pub fn run() -> anyhow::Result<()> {
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
        Err(e) => return Ok(e.print()?),
    };
    let command = match cli.command {
        Some(_) if cli.version => anyhow::bail!("expected --version without a command"),
        Some(command) => command,
        None if cli.version => return version::run(cli.verbose),
        None => anyhow::bail!("expected a command; `billfish --help` lists them"),
    };
    match command {
        Command::Bench(args) => bench::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Config(command) => config::run(&command),
        Command::Inspect(args) => inspect::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Eval(command) => eval::run(&command),
        Command::Convert(args) => convert::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Synth(args) => synth::run(&args),
    }
}
