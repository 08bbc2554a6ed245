//! `billfish --version`, and with `-v` what it would run on.

use super::options::isa_from_env;
use anyhow::Result;
use billfish::Isa;
use billfish::machine::{COMMIT, Machine, VERSION};
use billfish_kernels::kernel_name;
use std::io::Write;

pub fn run(verbose: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "billfish {VERSION}")?;
    if !verbose {
        return Ok(());
    }
    let machine = Machine::detect();
    let isa = Isa::choose(isa_from_env()?.as_deref())?;
    let mut kernels: Vec<&str> = (2..=8).map(kernel_name).chain(["dense-f16", "dense-bf16", "dense-bf16-13bit", "dense-f32"]).collect();
    kernels.dedup();
    writeln!(out, "commit       {COMMIT}")?;
    writeln!(out, "processor    {}, {} CPUs", machine.cpu, machine.cpus)?;
    writeln!(out, "features     {}", machine.features.join(" "))?;
    writeln!(out, "system       {}", machine.os)?;
    writeln!(out, "runs on      {} ({} available)", isa.name(), Isa::available().map(Isa::name).collect::<Vec<_>>().join(", "))?;
    if let Some(reason) = Isa::Amx.missing().filter(|_| cfg!(target_arch = "x86_64")) {
        writeln!(out, "not amx      {reason}")?;
    }
    writeln!(out, "kernels      {}", kernels.join(", "))?;
    Ok(())
}
