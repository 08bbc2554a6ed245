//! `billfish doctor`: everything that is wrong or odd with a folder.

use super::GateFailed;
use super::options::{FolderArgs, byte_bar, follow, isa_from_env};
use anyhow::Result;
use billfish::{Checkpoint, Examination, Finding, Fixed, OpenOptions, Severity, examine, examine_unopened, fix};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// The model folder
    model: PathBuf,
    #[command(flatten)]
    folder: FolderArgs,
    /// Run the model over a short text, too, under both readings of its zero points where there are two
    #[arg(long)]
    deep: bool,
    /// Write a repaired copy to this folder, which must be empty or not exist, and examine it
    #[arg(long, value_name = "OUT")]
    fix: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if !args.model.is_dir() {
        // nothing to examine: the usual message
        args.folder.open(Some(&args.model))?;
    }
    if let Some(out) = &args.fix {
        billfish_formats::check_free(out)?;
    }
    let options = OpenOptions { isa: isa_from_env()?, ..OpenOptions::default() };
    let bar = byte_bar("examining", 0);
    let examination = match Checkpoint::open(&args.model) {
        Err(e) => {
            let mut examination = examine_unopened(&args.model, &e, args.folder.zeros(), &mut follow(&bar));
            if args.deep {
                examination.findings.push(Finding {
                    severity: Severity::Note,
                    subject: "forward pass".into(),
                    evidence: "the folder does not open, so it was not run".into(),
                    consequence: "nothing is known about what it writes".into(),
                    remedy: "put the folder right first".into(),
                });
            }
            examination
        }
        Ok(checkpoint) => {
            let checkpoint = checkpoint.with_zeros(args.folder.zeros())?;
            examine(&checkpoint, args.deep.then_some(&options), &mut follow(&bar))
        }
    };
    bar.finish_and_clear();
    let sound = examination.is_sound();
    let fixed = match &args.fix {
        Some(out) if !sound => {
            let bar = byte_bar("repairing", 0);
            let fixed = fix(&args.model, &examination, args.folder.zeros(), out, &mut follow(&bar));
            bar.finish_and_clear();
            Some((out.display().to_string(), fixed.map_err(|e| e.to_string())))
        }
        _ => None,
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut object = to_json(&examination);
        object["fix"] = match &fixed {
            None => Value::Null,
            Some((out, Err(e))) => json!({"out": out, "written": false, "error": e}),
            Some((out, Ok(f))) => json!({
                "out": out,
                "written": true,
                "format": f.target.map(|t| t.to_string()),
                "set_aside": f.aside,
                "repaired": list(&f.repaired),
                "after": to_json(&f.after),
            }),
        };
        writeln!(out, "{object:#}")?;
    } else {
        print(&examination, args, &mut out)?;
        if let Some((folder, result)) = &fixed {
            print_fix(folder, result, &mut out)?;
        }
    }
    let model = args.model.display();
    match fixed {
        Some((out, Ok(f))) if f.after.is_sound() => {
            eprintln!("{out}: a repaired copy of {model}, in which nothing is wrong");
            Ok(())
        }
        Some((out, Ok(_))) => Err(GateFailed(format!("something is still wrong or odd with {out}")).into()),
        _ if sound => Ok(()),
        Some((out, Err(_))) => Err(GateFailed(format!("something is wrong with {model}, and {out} could not be written")).into()),
        None => Err(GateFailed(format!("something is wrong or odd with {model}")).into()),
    }
}

fn list(findings: &[Finding]) -> Vec<Value> {
    let one = |f: &Finding| {
        json!({
            "severity": f.severity.name(),
            "subject": f.subject,
            "evidence": f.evidence,
            "consequence": f.consequence,
            "remedy": f.remedy,
        })
    };
    findings.iter().map(one).collect()
}

/// What `doctor --json` prints of a folder that opens, with `fix` left out.
pub fn object(checkpoint: &Checkpoint) -> Value {
    to_json(&examine(checkpoint, None, &mut |_, _| ()))
}

fn to_json(e: &Examination) -> Value {
    let engines = e.engines.iter().map(|v| json!({"engine": v.engine, "outcome": v.outcome.name(), "why": v.why}));
    let modules = e.vllm.iter().flat_map(|v| &v.modules).map(|m| {
        let problem = m.problem.as_ref().map(|(outcome, why)| json!({"outcome": outcome.name(), "why": why}));
        json!({"module": m.module, "parts": m.parts, "verdict": m.verdict, "problem": problem})
    });
    json!({
        "sound": e.is_sound(),
        "findings": list(&e.findings),
        "engines": engines.collect::<Vec<_>>(),
        "vllm_modules": modules.collect::<Vec<_>>(),
    })
}

fn print_findings(findings: &[Finding], out: &mut impl Write) -> Result<()> {
    for f in findings {
        writeln!(out, "{}: {}", f.severity.name(), f.subject)?;
        writeln!(out, "  found        {}", f.evidence)?;
        writeln!(out, "  consequence  {}", f.consequence)?;
        writeln!(out, "  remedy       {}", f.remedy)?;
    }
    Ok(())
}

fn print(e: &Examination, args: &Args, out: &mut impl Write) -> Result<()> {
    print_findings(&e.findings, out)?;
    if !e.engines.is_empty() {
        writeln!(out, "other programs")?;
    }
    for v in &e.engines {
        writeln!(out, "  {:<27} {:<8} {}", v.engine, v.outcome.name(), v.why)?;
    }
    if e.is_sound() {
        let more = args.fix.as_ref().map_or(String::new(), |out| format!(": {} is not written", out.display()));
        writeln!(out, "nothing is wrong{more}")?;
    }
    Ok(())
}

fn print_fix(folder: &str, result: &Result<Fixed, String>, out: &mut impl Write) -> Result<()> {
    let fixed = match result {
        Ok(fixed) => fixed,
        Err(e) => return Ok(writeln!(out, "not repaired, {folder} is not written: {e}")?),
    };
    let format = fixed.target.map_or(String::new(), |t| format!(" as {t}"));
    writeln!(out, "repaired copy: {folder}{format}")?;
    for aside in &fixed.aside {
        writeln!(out, "  set aside    {aside}")?;
    }
    for f in &fixed.repaired {
        writeln!(out, "  repaired     {}: {}", f.subject, f.evidence)?;
    }
    let left: Vec<Finding> = fixed.after.findings.iter().filter(|f| f.severity != Severity::Note).cloned().collect();
    if !left.is_empty() {
        writeln!(out, "what remains in {folder}")?;
        print_findings(&left, out)?;
    }
    Ok(())
}
