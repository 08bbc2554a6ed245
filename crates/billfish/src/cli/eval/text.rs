//! The text that a measurement reads, and the gates that its result has to pass.

use super::super::GateFailed;
use anyhow::Result;
use billfish::LoadedModel;
use billfish_quantize::Protocol;
use std::path::{Path, PathBuf};

/// Which text, and how.
#[derive(clap::Args)]
pub struct TextArgs {
    /// A UTF-8 text file
    #[arg(long)]
    text: PathBuf,
    /// How the text is cut and what is predicted: gptq2048, llamacpp512 or window:N
    #[arg(long)]
    pub protocol: Protocol,
    /// Keep the first N tokens of the text
    #[arg(long)]
    limit_tokens: Option<usize>,
}

/// A text as a model's tokenizer has it.
#[derive(PartialEq)]
pub struct Ids {
    pub ids: Vec<u32>,
    /// The begin token, if the tokenizer puts one before a prompt.
    pub bos: Option<u32>,
}

impl TextArgs {
    /// The text. Read it before the model: it is quicker to fail.
    pub fn read(&self) -> Result<String> {
        read_text(&self.text)
    }

    /// The tokens of `text`, which [`TextArgs::read`] gave.
    pub fn ids(&self, text: &str, loaded: &LoadedModel) -> Result<Ids> {
        let tokenizer = &loaded.tokenizer;
        let mut ids = tokenizer.encode(text, self.protocol.adds_special())?;
        ids.truncate(self.limit_tokens.unwrap_or(usize::MAX));
        let bos = tokenizer.bos_id().filter(|b| tokenizer.encode("", true).is_ok_and(|ids| ids.first() == Some(b)));
        Ok(Ids { ids, bos })
    }
}

/// Reads a text.
pub fn read_text(path: &Path) -> Result<String> {
    let file = path.display();
    let text = std::fs::read(path).map_err(|e| anyhow::anyhow!("{file}: {e}; name a text file that can be read"))?;
    String::from_utf8(text).map_err(|e| anyhow::anyhow!("{file}: expected UTF-8 text, found {e}; convert the file to UTF-8"))
}

/// Fails, with exit code 2, if a figure is above its limit or is not a number.
pub fn gate(what: &str, found: f64, limit: Option<f64>) -> Result<()> {
    match limit {
        Some(limit) if found.is_nan() || found > limit => Err(GateFailed(format!("{what} is {found:.6}, above {limit}")).into()),
        _ => Ok(()),
    }
}
