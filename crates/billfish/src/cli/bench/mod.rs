//! `billfish bench`: speed beside its limit. One file a command.

mod kernels;
mod matrix;
mod model;
mod output;
mod prompts;
mod requests;
mod serve;
mod subject;

use anyhow::Result;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    model: model::Args,
}

#[derive(clap::Subcommand)]
enum What {
    /// Measure single products with the shapes of a model or with given ones, each checked against the oracle first
    Kernels(kernels::Args),
    /// Measure the time of a batch of equal requests (options and JSON keys of `vllm bench latency`)
    Latency(requests::Latency),
    /// Measure how many requests are served in a time (options and JSON keys of `vllm bench throughput`)
    Throughput(requests::Throughput),
    /// Measure a server that speaks OpenAI's API (options, text and JSON keys of `vllm bench serve`)
    Serve(Box<serve::Args>),
    /// Measure throughput, time to first token, memory and perplexity over batch sizes and lengths
    Matrix(matrix::Args),
}

pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        None => model::run(&args.model),
        Some(What::Kernels(args)) => kernels::run(args),
        Some(What::Latency(args)) => requests::latency(args),
        Some(What::Throughput(args)) => requests::throughput(args),
        Some(What::Serve(args)) => serve::run(args),
        Some(What::Matrix(args)) => matrix::run(args),
    }
}
