//! `billfish chat`: a conversation through the model's own template.

use super::options::{ModelArgs, SamplingArgs};
use super::run::check_length;
use super::stats;
use anyhow::Context;
use billfish::{FinishReason, GenerateOptions, LoadedModel, Message, Session};
use serde_json::Map;
use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// System message to begin with
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print what each reply cost
    #[arg(long, short = 'v')]
    verbose: bool,
}

const HELP: &str =
    "/reset forgets the conversation, /system TEXT sets the system message and forgets the rest, /quit ends; Ctrl-C stops a reply";

struct Chat<'m> {
    loaded: &'m LoadedModel,
    session: Session<'m>,
    options: GenerateOptions,
    system: Option<String>,
    history: Vec<Message>,
    cancel: Arc<AtomicBool>,
}

impl Chat<'_> {
    fn reset(&mut self) {
        self.history.clear();
        self.history.extend(self.system.as_ref().map(|s| Message::new("system", s)));
    }

    /// Answers `text`; the exchange joins the history only if there is an answer.
    fn answer(&mut self, text: &str, verbose: bool, out: &mut impl Write) -> anyhow::Result<()> {
        self.history.push(Message::new("user", text));
        let result = self.reply(verbose, out);
        match result {
            Ok(reply) => self.history.push(Message::new("assistant", reply)),
            Err(e) => {
                self.history.pop();
                return Err(e);
            }
        }
        Ok(())
    }

    fn reply(&mut self, verbose: bool, out: &mut impl Write) -> anyhow::Result<String> {
        let template = self.loaded.tokenizer.chat_template(None)?;
        let text = template.render(&self.history, true, &Map::new())?;
        let ids = self.loaded.tokenizer.encode_chat(&text)?;
        check_length(self.loaded, ids.len(), self.options.max_tokens);
        self.cancel.store(false, Ordering::Relaxed);
        let mut request = self.options.request(&ids);
        request.cancel = Some(&self.cancel);
        let mut failed = None;
        let done = self.session.generate(&request, &mut |piece| {
            if failed.is_none()
                && let Err(e) = out.write_all(piece.as_bytes()).and_then(|()| out.flush())
            {
                failed = Some(e);
                request.cancel.iter().for_each(|c| c.store(true, Ordering::Relaxed));
            }
        })?;
        if let Some(e) = failed {
            return Err(e.into());
        }
        writeln!(out)?;
        if done.finish == FinishReason::Cancelled {
            eprintln!("[stopped]");
        }
        if verbose {
            stats::print(self.loaded, &done, self.options.sampling.seed);
        }
        Ok(done.text)
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let loaded = args.model.load()?;
    // a model without a template fails here, not at the first message
    loaded.tokenizer.chat_template(None)?;
    let cancel = Arc::new(AtomicBool::new(false));
    let handler = Arc::clone(&cancel);
    ctrlc::set_handler(move || handler.store(true, Ordering::Relaxed)).context("Ctrl-C cannot be handled")?;
    let options = args.sampling.options(&loaded);
    let session = Session::new(&loaded.model, &loaded.tokenizer);
    let mut chat = Chat { loaded: &loaded, session, options, system: args.system.clone(), history: vec![], cancel };
    chat.reset();
    let mut out = std::io::stdout().lock();
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        eprintln!("{}: {HELP}", loaded.name);
    }
    let mut input = std::io::stdin().lock();
    loop {
        if terminal {
            eprint!("> ");
        }
        let mut line = String::new();
        match input.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) => return Err(anyhow::anyhow!("standard input: {e}")),
        }
        let line = line.trim();
        match line.split_once(char::is_whitespace).unwrap_or((line, "")) {
            ("", _) => {}
            ("/quit" | "/exit", _) => return Ok(()),
            ("/reset", _) => {
                chat.reset();
                eprintln!("[the conversation is forgotten]");
            }
            ("/system", text) => {
                chat.system = Some(text.trim().to_string()).filter(|t| !t.is_empty());
                chat.reset();
                eprintln!("[the system message is {}]", if text.is_empty() { "removed" } else { "set" });
            }
            ("/help", _) => eprintln!("{HELP}"),
            (command, _) if command.starts_with('/') => eprintln!("unknown command {command}; {HELP}"),
            _ => {
                if let Err(e) = chat.answer(line, args.verbose, &mut out) {
                    if e.downcast_ref::<std::io::Error>().is_some() {
                        return Err(e);
                    }
                    eprintln!("error: {e}");
                }
            }
        }
    }
}
