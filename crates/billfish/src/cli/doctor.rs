//! `billfish doctor`: everything that is wrong or odd with a folder.

use super::GateFailed;
use super::options::{FolderArgs, byte_bar};
use anyhow::Result;
use billfish::{Examination, Finding, Severity, examine};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// The model folder
    model: PathBuf,
    #[command(flatten)]
    folder: FolderArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if !args.model.is_dir() {
        // nothing to examine: the usual message
        args.folder.open(Some(&args.model))?;
    }
    let examination = match args.folder.open(Some(&args.model)) {
        Err(e) => {
            let finding = Finding {
                severity: Severity::Error,
                subject: args.model.display().to_string(),
                evidence: e.to_string(),
                consequence: "the folder cannot be opened".into(),
                remedy: "see the message".into(),
            };
            Examination { findings: vec![finding], engines: vec![] }
        }
        Ok(checkpoint) => {
            let bar = byte_bar("examining", checkpoint.total_bytes());
            let findings = examine(&checkpoint, &mut |done, _| bar.set_position(done));
            bar.finish_and_clear();
            findings
        }
    };
    let sound = examination.is_sound();
    let Examination { findings, engines } = examination;
    let mut out = std::io::stdout().lock();
    if args.json {
        let list = findings.iter().map(|f| {
            json!({
                "severity": f.severity.name(),
                "subject": f.subject,
                "evidence": f.evidence,
                "consequence": f.consequence,
                "remedy": f.remedy,
            })
        });
        let verdicts = engines.iter().map(|v| json!({"engine": v.engine, "outcome": v.outcome.name(), "why": v.why}));
        writeln!(out, "{:#}", json!({"sound": sound, "findings": list.collect::<Vec<_>>(), "engines": verdicts.collect::<Vec<_>>()}))?;
    } else {
        for f in &findings {
            writeln!(out, "{}: {}", f.severity.name(), f.subject)?;
            writeln!(out, "  found        {}", f.evidence)?;
            writeln!(out, "  consequence  {}", f.consequence)?;
            writeln!(out, "  remedy       {}", f.remedy)?;
        }
        if !engines.is_empty() {
            writeln!(out, "other programs")?;
        }
        for v in &engines {
            writeln!(out, "  {:<27} {:<8} {}", v.engine, v.outcome.name(), v.why)?;
        }
        if sound {
            writeln!(out, "nothing is wrong")?;
        }
    }
    if sound { Ok(()) } else { Err(GateFailed(format!("something is wrong or odd with {}", args.model.display())).into()) }
}
