//! `billfish convert`: the same weights in another format.

use super::options::{FolderArgs, byte_bar, follow};
use anyhow::{Result, bail};
use billfish_formats::{Target, convert};
use clap::ValueEnum;
use std::path::PathBuf;

#[derive(Clone, Copy, ValueEnum)]
enum DtypeArg {
    F16,
    Bf16,
    F32,
}

#[derive(clap::Args)]
pub struct Args {
    /// The model folder to read
    model: PathBuf,
    #[command(flatten)]
    folder: FolderArgs,
    /// The folder to write; it must be empty or not exist
    out: PathBuf,
    /// Format to write: gptq, gptq_v2, gptq_p, awq, compressed-tensors, marlin or dense
    #[arg(long)]
    to: Target,
    /// Type of the weights of a dense folder [default: f32, which is exact]
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,
    /// Write what the format cannot hold as the nearest thing that it can, and say what was lost
    #[arg(long)]
    allow_lossy: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let target = match (args.to, args.dtype) {
        (Target::Dense(_), Some(DtypeArg::F16)) => Target::Dense(billfish_tensor::DType::F16),
        (Target::Dense(_), Some(DtypeArg::Bf16)) => Target::Dense(billfish_tensor::DType::BF16),
        (to, None) | (to @ Target::Dense(_), Some(DtypeArg::F32)) => to,
        (to, Some(_)) => bail!("--dtype goes with --to dense; --to {to} keeps the types of the scales"),
    };
    let source = args.folder.open(Some(&args.model))?;
    let bar = byte_bar("converting", 0);
    let done = convert(&source, &args.out, target, args.allow_lossy, &mut follow(&bar));
    bar.finish_and_clear();
    let done = done?;
    for warning in source.warnings() {
        eprintln!("warning: {warning}");
    }
    for loss in &done.losses {
        eprintln!("lost: {loss}");
    }
    if let [first, ..] = &done.left_out[..] {
        let count = done.left_out.len();
        eprintln!("left out: `{first}` and all scales like it ({count}): {target} has no place to say that they are not for 8-bit floats");
    }
    let out = args.out.display();
    eprintln!("{out}: {} quantized modules as {target}, {} tensors, {:.1} MB", done.modules, done.tensors, done.bytes as f64 / 1e6);
    Ok(())
}
