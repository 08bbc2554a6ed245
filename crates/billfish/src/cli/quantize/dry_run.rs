//! `billfish quantize --dry-run`: what it would take.

use anyhow::Result;
use billfish::machine::{peak_memory, resident_memory};
use billfish_quantize::{Estimate, Job, estimate};
use serde_json::{Map, Value, json};
use std::io::Write;

pub fn run(job: &Job<'_>, as_json: bool) -> Result<()> {
    // reading a text takes more than is left of it
    let (now, before) = (resident_memory(), peak_memory().unwrap_or(0));
    let mut e = estimate(job)?;
    e.memory.extend(now.map(|bytes| ("the program and the text, as they are now", bytes)));
    let peak = e.peak_memory().max(before);
    let mut out = std::io::stdout().lock();
    if as_json {
        writeln!(out, "{}", report(job, &e, peak))?;
        return Ok(());
    }
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let sizes = e.bytes.total;
    writeln!(
        out,
        "{}: {} modules, {} bytes of weights in {} files of {} bytes (exact)",
        job.out.display(),
        e.bytes.modules.len(),
        sizes.tensors,
        sizes.shards,
        sizes.files
    )?;
    if let Some(bytes) = e.statistics {
        writeln!(out, "statistics: {:.1} MB", mb(bytes))?;
    }
    writeln!(out, "memory, estimated: {:.0} MB at most", mb(peak))?;
    for (part, bytes) in &e.memory {
        writeln!(out, "  {:>10.1} MB  {part}", mb(*bytes))?;
    }
    if before == peak {
        writeln!(out, "  the text took {:.1} MB while it was read, more than all that", mb(before))?;
    }
    writeln!(out, "time, estimated from short measurements on this machine: {:.0} s", e.total_seconds())?;
    for (part, seconds) in &e.seconds {
        writeln!(out, "  {seconds:>10.1} s   {part}")?;
    }
    writeln!(out, "nothing was written")?;
    Ok(())
}

fn report(job: &Job<'_>, e: &Estimate, peak: u64) -> Value {
    let seconds: Map<String, Value> = e.seconds.iter().map(|(part, s)| ((*part).into(), json!(s))).collect();
    let memory: Map<String, Value> = e.memory.iter().map(|(part, b)| ((*part).into(), json!(b))).collect();
    let modules = e.bytes.modules.iter().map(|(l, s, bytes)| {
        let group_size = s.group_size.map_or(-1, |g| g as i64);
        json!({"module": l.name, "bits": s.grid.bits, "group_size": group_size, "bytes": bytes})
    });
    json!({
        "out": job.out.display().to_string(),
        "bytes": e.bytes.total.tensors,
        "file_bytes": e.bytes.total.files,
        "files": e.bytes.total.shards,
        "statistics_bytes": e.statistics,
        "estimated_memory": peak,
        "estimated_memory_parts": memory,
        "estimated_seconds": e.total_seconds(),
        "estimated_seconds_parts": seconds,
        "modules": modules.collect::<Vec<_>>(),
    })
}
